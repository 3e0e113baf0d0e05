/*
 * Guest memory under simxen: rings, grants, copies.
 *
 * A domain's memory and its grant table are mapped once per domain, at the first ring, and counted by rings.
 * They hang in a table indexed by domid, which changes only under s->lock (control path); sim_copy reads one
 * entry of it with acquire, and the contract (the caller has a ring of that domain mapped) keeps what it
 * finds alive. So a copy takes no lock and makes no syscall.
 *
 * Nothing the guest does can make a mapping fault: simxen creates the memfds, seals them against any change
 * of size, and we verify seals and size before mmap(). A grant is looked up at each use; the guest may revoke
 * it at any moment, and dies by simxen clearing the whole table, after which every segment fails.
 */
#include "blkd/hyp/sim_priv.h"
#include "blkd/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define FIRST_GREF 8u /* 0..7 are reserved */

_Static_assert(SIM_PAGE_BYTES == HYP_PAGE_BYTES, "one page size");

/* Mapped memory of one domain. Immutable while it is in the table, but for `rings`. */
struct sim_domain {
	uint32_t domid;
	unsigned rings; /* under sim.lock */
	uint8_t *mem;
	uint32_t npages;
	const struct sim_grant *grants;
	dev_t mem_dev; /* identity of the memfd: tells a domain from a later one with the same id */
	ino_t mem_ino;
	int mem_fd;
};

struct hyp_map {
	struct sim_domain *dom;
	void *addr;
	size_t len_bytes;
};

/* A memfd that cannot change its size and has the size it should have: a mapping of it cannot fault. */
static int verify_memfd(int fd, uint64_t want_bytes, struct stat *st)
{
	const int want = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || (seals & want) != want)
		return -EIO;
	if (fstat(fd, st) < 0 || (uint64_t)st->st_size != want_bytes)
		return -EIO;
	return 0;
}

/* Takes over fds[0], the memory, and leaves fds[1], the grant table, to the caller. */
static int domain_map(uint32_t domid, uint32_t npages, int fds[static 2], struct sim_domain **out)
{
	const size_t table_bytes = SIM_GRANTS * sizeof(struct sim_grant);
	size_t mem_bytes = (size_t)npages * SIM_PAGE_BYTES;
	struct stat mem_st, table_st;
	struct sim_domain *dom;
	void *mem, *table;

	if (npages == 0 || npages > SIM_MAX_PAGES || verify_memfd(fds[0], mem_bytes, &mem_st) < 0 ||
	    verify_memfd(fds[1], table_bytes, &table_st) < 0)
		return -EIO;
	dom = calloc(1, sizeof(*dom));
	if (!dom)
		return -ENOMEM;
	mem = mmap(NULL, mem_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fds[0], 0);
	table = mmap(NULL, table_bytes, PROT_READ, MAP_SHARED, fds[1], 0);
	if (mem == MAP_FAILED || table == MAP_FAILED) {
		int rc = -errno;

		if (mem != MAP_FAILED)
			munmap(mem, mem_bytes);
		if (table != MAP_FAILED)
			munmap(table, table_bytes);
		free(dom);
		return rc;
	}
	*dom = (struct sim_domain){.domid = domid,
				   .mem = mem,
				   .npages = npages,
				   .grants = table,
				   .mem_dev = mem_st.st_dev,
				   .mem_ino = mem_st.st_ino,
				   .mem_fd = fds[0]};
	fds[0] = -1;
	*out = dom;
	return 0;
}

static void domain_unmap(struct sim_domain *dom)
{
	munmap(dom->mem, (size_t)dom->npages * SIM_PAGE_BYTES);
	/* The mapping is ours to give back; const was about its contents. */
	munmap((void *)(uintptr_t)dom->grants, SIM_GRANTS * sizeof(struct sim_grant));
	close(dom->mem_fd);
	free(dom);
}

/* The domain with one more ring counted. `s->lock` is held. */
static int domain_get(struct sim *s, uint32_t domid, struct sim_domain **out, struct err *e)
{
	struct sim_req req = {.magic = SIM_MAGIC, .op = SIM_MAP, .domid = domid};
	struct sim_domain *dom = atomic_load_explicit(&s->domains[domid], memory_order_relaxed);
	struct sim_rsp rsp;
	struct stat st;
	int fds[2], rc;

	/* Asked even if the domain is mapped: a domain that died and was born again is another one. */
	rc = sim_request(s, &req, &rsp, fds, 2);
	if (rc < 0)
		return err_set(e, rc, "memory of domain %u: %s", domid, strerror(-rc));
	if (dom) {
		rc = fstat(fds[0], &st) < 0 ? -EIO : 0;
		sim_close_fds(fds);
		if (rc == 0 && (st.st_dev != dom->mem_dev || st.st_ino != dom->mem_ino))
			rc = -EBUSY;
		if (rc < 0)
			return err_set(
			    e, rc, "domain %u: rings of a dead domain with this id are still mapped", domid);
	} else {
		rc = domain_map(domid, rsp.count, fds, &dom);
		sim_close_fds(fds);
		if (rc < 0)
			return err_set(e, rc, "memory of domain %u cannot be mapped: %s", domid,
				       strerror(-rc));
		/* Pairs with the acquire in sim_copy. */
		atomic_store_explicit(&s->domains[domid], dom, memory_order_release);
	}
	/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): it takes -errno for a possible 0. */
	dom->rings++;
	*out = dom;
	return 0;
}

static void domain_put(struct sim *s, struct sim_domain *dom)
{
	pthread_mutex_lock(&s->lock);
	bool last = --dom->rings == 0;

	if (last)
		atomic_store_explicit(&s->domains[dom->domid], NULL, memory_order_release);
	pthread_mutex_unlock(&s->lock);
	if (last)
		domain_unmap(dom);
}

/* The page that a gref grants us now. Xen looks a grant up at each use; so do we, reading each field once. */
static int grant_lookup(const struct sim_domain *dom, uint32_t gref, bool to_guest, uint32_t *page)
{
	const struct sim_grant *g;
	uint16_t flags;

	if (gref < FIRST_GREF || gref >= SIM_GRANTS)
		return HYP_BAD_GREF;
	g = &dom->grants[gref];
	/* Pairs with simxen's release store of flags: page and domid are those of this grant. */
	flags = __atomic_load_n(&g->flags, __ATOMIC_ACQUIRE);
	if (!(flags & SIM_GRANT_VALID))
		return HYP_BAD_GREF;
	*page = __atomic_load_n(&g->page, __ATOMIC_RELAXED);
	if (*page >= dom->npages)
		return HYP_BAD_GREF;
	if (__atomic_load_n(&g->domid, __ATOMIC_RELAXED) != 0 || (to_guest && (flags & SIM_GRANT_READONLY)))
		return HYP_GENERAL_ERROR;
	return HYP_OKAY;
}

static int map_pages(const struct sim_domain *dom, const uint32_t *grefs, unsigned npages, void **addr,
		     struct err *e)
{
	size_t len_bytes = (size_t)npages * SIM_PAGE_BYTES;
	uint8_t *base = mmap(NULL, len_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int rc = 0;

	if (base == MAP_FAILED)
		return err_set(e, -errno, "no address range for a ring: %s", strerror(errno));
	for (unsigned i = 0; rc == 0 && i < npages; i++) {
		uint32_t page = 0;
		int status = grant_lookup(dom, grefs[i], true, &page);

		if (status != HYP_OKAY)
			rc = err_set(e, status == HYP_BAD_GREF ? -ENOENT : -EACCES,
				     "ring page %u of domain %u: gref %u does not grant it to us writable", i,
				     dom->domid, grefs[i]);
		else if (mmap(base + (size_t)i * SIM_PAGE_BYTES, SIM_PAGE_BYTES, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_FIXED, dom->mem_fd,
			      (off_t)page * SIM_PAGE_BYTES) == MAP_FAILED)
			rc = err_set(e, -errno, "ring page %u of domain %u: %s", i, dom->domid,
				     strerror(errno));
	}
	if (rc < 0)
		munmap(base, len_bytes);
	else
		*addr = base;
	return rc;
}

int sim_map_ring(struct hyp *h, uint32_t domid, const uint32_t *grefs, unsigned npages, struct hyp_map **out,
		 void **addr, struct err *e)
{
	struct sim *s = sim_of(h);
	struct sim_domain *dom = NULL;
	struct hyp_map *map;
	int rc;

	if (npages == 0 || npages > HYP_MAX_RING_PAGES)
		return err_set(e, -EINVAL, "a ring of %u pages; 1 to %u are possible", npages,
			       HYP_MAX_RING_PAGES);
	if (domid == 0 || domid >= SIM_DOMIDS)
		return err_set(e, -ESRCH, "domain %u is no guest", domid);
	map = calloc(1, sizeof(*map));
	if (!map)
		return err_set(e, -ENOMEM, "no memory to map a ring of domain %u", domid);
	pthread_mutex_lock(&s->lock);
	rc = domain_get(s, domid, &dom, e);
	pthread_mutex_unlock(&s->lock);
	if (rc < 0) {
		free(map);
		return rc;
	}
	rc = map_pages(dom, grefs, npages, &map->addr, e);
	if (rc < 0) {
		domain_put(s, dom);
		free(map);
		return rc;
	}
	map->dom = dom;
	map->len_bytes = (size_t)npages * SIM_PAGE_BYTES;
	*addr = map->addr;
	*out = map;
	return 0;
}

void sim_unmap(struct hyp *h, struct hyp_map *map)
{
	munmap(map->addr, map->len_bytes);
	domain_put(sim_of(h), map->dom);
	free(map);
}

static int copy_seg(const struct sim_domain *dom, const struct hyp_seg *seg)
{
	bool to_guest = seg->dir == HYP_TO_GUEST;
	uint32_t page = 0;
	uint8_t *guest;
	int status;

	if ((uint32_t)seg->offset_bytes + seg->len_bytes > SIM_PAGE_BYTES ||
	    (!to_guest && seg->dir != HYP_FROM_GUEST))
		return HYP_BAD_COPY_ARG;
	status = grant_lookup(dom, seg->gref, to_guest, &page);
	if (status != HYP_OKAY || seg->len_bytes == 0)
		return status;
	guest = dom->mem + (size_t)page * SIM_PAGE_BYTES + seg->offset_bytes;
	if (to_guest)
		memcpy(guest, seg->local, seg->len_bytes);
	else
		memcpy(seg->local, guest, seg->len_bytes);
	return HYP_OKAY;
}

int sim_copy(struct hyp *h, uint32_t domid, struct hyp_seg *segs, unsigned n)
{
	struct sim *s = sim_of(h);
	struct sim_counters *c = sim_counters_of(s, domid);
	struct sim_domain *dom;
	uint64_t bytes = 0, bad = 0;

	if (domid >= SIM_DOMIDS)
		return -ESRCH;
	/* Pairs with the release in domain_get. */
	dom = atomic_load_explicit(&s->domains[domid], memory_order_acquire);
	if (!dom)
		return -ESRCH;
	for (unsigned i = 0; i < n; i++) {
		segs[i].status = (int16_t)copy_seg(dom, &segs[i]);
		if (segs[i].status < 0)
			bad++;
		else
			bytes += segs[i].len_bytes;
	}
	sim_count(&c->copies, 1);
	sim_count(&c->segs, n);
	sim_count(&c->copied_bytes, bytes);
	if (bad)
		sim_count(&c->bad_segs, bad);
	return 0;
}
