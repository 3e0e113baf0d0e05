/*
 * The hypervisor of kind "sim": simxen's protocol (sim/simproto.h) seen from domain 0.
 *
 * A domain's memory and its grant table are mapped once per domain, at the first ring, and counted by rings.
 * They hang in a table indexed by domid, which changes only under `lock` (control path); hyp_copy reads one
 * entry of it with acquire, and the contract (the caller has a ring of that domain mapped) keeps what it
 * finds alive. So the hot path has no lock and no syscall but the write or read of an eventfd.
 *
 * Nothing the guest does can make a mapping fault: simxen creates the memfds, seals them against any change
 * of size, and we verify seals and size before mmap(). A grant is looked up at each use; the guest may revoke
 * it at any moment, and dies by simxen clearing the whole table, after which every segment fails.
 *
 * The socket is request-response under one mutex. If an answer is late or malformed the connection is shut:
 * later control calls fail with -ENOTCONN, rings and channels that exist go on.
 */
#include "blkd/hyp.h"
#include "blkd/err.h"
#include "sim/simproto.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define DOMIDS	       0x7ff0u /* DOMID_FIRST_RESERVED of xen/xen.h: ids above name no domain */
#define FIRST_GREF     8u      /* 0..7 are reserved */
#define ANSWER_SECONDS 10
#define COUNTER_SHARDS 16u

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

/* Sharded by domid, so that devices of different guests do not share a cache line. */
struct counter_shard {
	_Alignas(64) _Atomic uint64_t copies;
	_Atomic uint64_t segs, bad_segs, copied_bytes, notifies, acks;
};

struct sim {
	struct hyp hyp;
	pthread_mutex_t lock; /* the socket, the writing side of `domains`, and rings */
	int fd;		      /* -1 once the connection is unusable */
	_Atomic(struct sim_domain *) domains[DOMIDS];
	struct counter_shard counters[COUNTER_SHARDS];
};

struct hyp_map {
	struct sim_domain *dom;
	void *addr;
	size_t len_bytes;
};

struct sim_evtchn {
	struct hyp_evtchn ch; /* ch.fd: our eventfd */
	int peer_fd;	      /* the guest's */
	uint32_t local_port;
	uint32_t domid;
};

static struct sim *sim_of(struct hyp *h)
{
	return (struct sim *)(void *)h;
}

static struct counter_shard *shard_of(struct sim *s, uint32_t domid)
{
	return &s->counters[domid % COUNTER_SHARDS];
}

static void count(_Atomic uint64_t *c, uint64_t n)
{
	atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

/* Takes every descriptor out of the message, so that none can leak whatever the answer turns out to be. */
static unsigned take_fds(struct msghdr *msg, int fds[static 2])
{
	unsigned n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		for (size_t i = 0; i < count_fds; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (n < 2)
				fds[n++] = fd;
			else
				close(fd);
		}
	}
	return n;
}

static void close_fds(int fds[static 2])
{
	for (unsigned i = 0; i < 2; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

static int receive(int fd, struct sim_rsp *rsp, int fds[static 2], unsigned *nfds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = rsp, .iov_len = sizeof(*rsp)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.bytes,
			     .msg_controllen = sizeof(control.bytes)};
	ssize_t got;

	do
		got = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (got == 0)
		return -ENOTCONN;
	*nfds = take_fds(&msg, fds);
	if (got != (ssize_t)sizeof(*rsp) || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return -EPROTO;
	return 0;
}

/*
 * One request and its answer. `want_fds` descriptors come with success and are the caller's; none with an
 * error. `s->lock` is held. An error of the connection ends the connection, because after it requests and
 * answers no longer pair.
 */
static int request(struct sim *s, const struct sim_req *req, struct sim_rsp *rsp, int fds[static 2],
		   unsigned want_fds)
{
	unsigned nfds = 0;
	ssize_t sent;
	int rc;

	fds[0] = fds[1] = -1;
	if (s->fd < 0)
		return -ENOTCONN;
	do
		sent = send(s->fd, req, sizeof(*req), MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	rc = sent == (ssize_t)sizeof(*req) ? receive(s->fd, rsp, fds, &nfds) : -ENOTCONN;
	if (rc == 0 && (rsp->magic != SIM_MAGIC || rsp->op != req->op || rsp->error > 0 ||
			rsp->nfds != nfds || nfds != (rsp->error ? 0 : want_fds)))
		rc = -EPROTO;
	if (rc < 0) {
		close_fds(fds);
		close(s->fd);
		s->fd = -1;
		return rc;
	}
	return rsp->error;
}

static int sim_connect(const char *dir, struct err *e)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = ANSWER_SECONDS};
	size_t len = strlen(dir);
	int fd, rc;

	if (len + sizeof("/hyp") > sizeof(addr.sun_path))
		return err_set(e, -ENAMETOOLONG, "%s: too long a directory for a socket", dir);
	memcpy(addr.sun_path, dir, len);
	memcpy(addr.sun_path + len, "/hyp", sizeof("/hyp"));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_set(e, -errno, "socket: %s", strerror(errno));
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
	    connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
		rc = -errno;
		close(fd);
		return err_set(e, rc, "%s/hyp: %s; is simxen running there?", dir, strerror(-rc));
	}
	return fd;
}

static int sim_open(const char *dir, struct hyp **out, struct err *e)
{
	struct sim_req req = {.magic = SIM_MAGIC, .op = SIM_HELLO, .domid = 0};
	struct sim_rsp rsp;
	struct sim *s;
	int fds[2], rc;

	if (!dir)
		return err_set(e, -EINVAL, "hypervisor \"sim\" needs the directory of simxen");
	s = aligned_alloc(_Alignof(struct sim), sizeof(*s));
	if (!s)
		return err_set(e, -ENOMEM, "no memory for the connection to simxen");
	memset(s, 0, sizeof(*s));
	s->hyp.ops = &hyp_sim_ops;
	rc = sim_connect(dir, e);
	if (rc < 0) {
		free(s);
		return rc;
	}
	s->fd = rc;
	pthread_mutex_init(&s->lock, NULL);
	rc = request(s, &req, &rsp, fds, 0);
	if (rc < 0) {
		s->hyp.ops->close(&s->hyp);
		return err_set(e, rc, "%s/hyp: simxen refused the greeting: %s", dir, strerror(-rc));
	}
	*out = &s->hyp;
	return 0;
}

static void sim_close(struct hyp *h)
{
	struct sim *s = sim_of(h);

	if (s->fd >= 0)
		close(s->fd);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

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
	rc = request(s, &req, &rsp, fds, 2);
	if (rc < 0)
		return err_set(e, rc, "memory of domain %u: %s", domid, strerror(-rc));
	if (dom) {
		rc = fstat(fds[0], &st) < 0 ? -EIO : 0;
		close_fds(fds);
		if (rc == 0 && (st.st_dev != dom->mem_dev || st.st_ino != dom->mem_ino))
			rc = -EBUSY;
		if (rc < 0)
			return err_set(
			    e, rc, "domain %u: rings of a dead domain with this id are still mapped", domid);
	} else {
		rc = domain_map(domid, rsp.count, fds, &dom);
		close_fds(fds);
		if (rc < 0)
			return err_set(e, rc, "memory of domain %u cannot be mapped: %s", domid,
				       strerror(-rc));
		/* Pairs with the acquire in sim_copy. */
		atomic_store_explicit(&s->domains[domid], dom, memory_order_release);
	}
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

static int sim_map_ring(struct hyp *h, uint32_t domid, const uint32_t *grefs, unsigned npages,
			struct hyp_map **out, void **addr, struct err *e)
{
	struct sim *s = sim_of(h);
	struct sim_domain *dom = NULL;
	struct hyp_map *map;
	int rc;

	if (npages == 0 || npages > HYP_MAX_RING_PAGES)
		return err_set(e, -EINVAL, "a ring of %u pages; 1 to %u are possible", npages,
			       HYP_MAX_RING_PAGES);
	if (domid == 0 || domid >= DOMIDS)
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

static void sim_unmap(struct hyp *h, struct hyp_map *map)
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

static int sim_copy(struct hyp *h, uint32_t domid, struct hyp_seg *segs, unsigned n)
{
	struct sim *s = sim_of(h);
	struct counter_shard *c = shard_of(s, domid);
	struct sim_domain *dom;
	uint64_t bytes = 0, bad = 0;

	if (domid >= DOMIDS)
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
	count(&c->copies, 1);
	count(&c->segs, n);
	count(&c->copied_bytes, bytes);
	if (bad)
		count(&c->bad_segs, bad);
	return 0;
}

static int sim_bind(struct hyp *h, uint32_t domid, uint32_t remote_port, struct hyp_evtchn **out,
		    struct err *e)
{
	struct sim_req req = {.magic = SIM_MAGIC, .op = SIM_EVTCHN_BIND, .domid = domid, .port = remote_port};
	struct sim *s = sim_of(h);
	struct sim_rsp rsp;
	struct sim_evtchn *ch = calloc(1, sizeof(*ch));
	int fds[2], rc;

	if (!ch)
		return err_set(e, -ENOMEM, "no memory for an event channel of domain %u", domid);
	pthread_mutex_lock(&s->lock);
	rc = request(s, &req, &rsp, fds, 2);
	pthread_mutex_unlock(&s->lock);
	if (rc < 0) {
		free(ch);
		return err_set(e, rc, "event channel %u of domain %u: %s", remote_port, domid, strerror(-rc));
	}
	ch->ch = (struct hyp_evtchn){.hyp = h, .fd = fds[0]};
	ch->peer_fd = fds[1];
	ch->local_port = rsp.port;
	ch->domid = domid;
	*out = &ch->ch;
	return 0;
}

static struct sim_evtchn *evtchn_of(struct hyp_evtchn *ch)
{
	return (struct sim_evtchn *)ch;
}

static void sim_unbind(struct hyp_evtchn *base)
{
	struct sim_evtchn *ch = evtchn_of(base);
	struct sim *s = sim_of(base->hyp);
	struct sim_req req = {.magic = SIM_MAGIC, .op = SIM_EVTCHN_CLOSE, .port = ch->local_port};
	struct sim_rsp rsp;
	int fds[2];

	close(base->fd);
	close(ch->peer_fd);
	pthread_mutex_lock(&s->lock);
	/* Nothing to do about a refusal: the guest has died, or simxen has. */
	(void)request(s, &req, &rsp, fds, 0);
	pthread_mutex_unlock(&s->lock);
	free(ch);
}

static int sim_notify(struct hyp_evtchn *base)
{
	struct sim_evtchn *ch = evtchn_of(base);
	const uint64_t one = 1;

	count(&shard_of(sim_of(base->hyp), ch->domid)->notifies, 1);
	/* EAGAIN: the count is at its maximum, so the guest's side is pending already. */
	if (write(ch->peer_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		return -errno;
	return 0;
}

static int sim_ack(struct hyp_evtchn *base)
{
	uint64_t n;

	if (read(base->fd, &n, sizeof(n)) < 0)
		return errno == EAGAIN ? 0 : -errno;
	count(&shard_of(sim_of(base->hyp), evtchn_of(base)->domid)->acks, 1);
	return 1;
}

/* An eventfd has no mask: what came since the ack is readable already. */
static int sim_unmask(struct hyp_evtchn *base)
{
	(void)base;
	return 0;
}

static void sim_counters(const struct hyp *h, struct hyp_counters *out)
{
	const struct sim *s = (const struct sim *)(const void *)h;

	*out = (struct hyp_counters){0};
	for (unsigned i = 0; i < COUNTER_SHARDS; i++) {
		const struct counter_shard *c = &s->counters[i];

		out->copies += atomic_load_explicit(&c->copies, memory_order_relaxed);
		out->segs += atomic_load_explicit(&c->segs, memory_order_relaxed);
		out->bad_segs += atomic_load_explicit(&c->bad_segs, memory_order_relaxed);
		out->copied_bytes += atomic_load_explicit(&c->copied_bytes, memory_order_relaxed);
		out->notifies += atomic_load_explicit(&c->notifies, memory_order_relaxed);
		out->acks += atomic_load_explicit(&c->acks, memory_order_relaxed);
	}
}

const struct hyp_ops hyp_sim_ops = {
    .kind = "sim",
    .open = sim_open,
    .close = sim_close,
    .map_ring = sim_map_ring,
    .unmap = sim_unmap,
    .copy = sim_copy,
    .bind = sim_bind,
    .unbind = sim_unbind,
    .notify = sim_notify,
    .ack = sim_ack,
    .unmask = sim_unmask,
    .counters = sim_counters,
};
