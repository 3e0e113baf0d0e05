/*
 * Guest memory and grant tables: one memfd each, sealed against any change of size, so that whoever maps them
 * cannot fault.
 *
 * The table is written here only; backends read it at each use. An entry's flags are the last thing written
 * when it becomes valid and the first when it ceases to be, so that a reader who sees a valid entry (acquire)
 * sees its page and domain.
 */
#include "sim/simxen/hypside.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define FIRST_GREF  8u /* 0..7 are reserved */
#define TABLE_BYTES (SIM_GRANTS * sizeof(struct sim_grant))

static int sealed_memfd(const char *what, uint32_t domid, uint64_t bytes)
{
	char name[64];
	int fd, rc;

	snprintf(name, sizeof(name), "simxen-%s-%u", what, domid);
	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

static int make_table(struct domain *d)
{
	char self[64];
	void *table;
	int fd = sealed_memfd("grants", d->domid, TABLE_BYTES), ro, rc;

	if (fd < 0)
		return fd;
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	ro = open(self, O_RDONLY | O_CLOEXEC);
	if (ro < 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	table = mmap(NULL, TABLE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	rc = table == MAP_FAILED ? -errno : 0;
	close(fd);
	if (rc < 0) {
		close(ro);
		return rc;
	}
	d->grants = table;
	d->grants_fd = ro;
	return 0;
}

int mem_create(struct domain *d, uint32_t npages)
{
	int rc;

	if (d->grants)
		return -EEXIST;
	if (npages == 0 || npages > SIM_MAX_PAGES)
		return -EINVAL;
	rc = sealed_memfd("memory", d->domid, (uint64_t)npages * SIM_PAGE_BYTES);
	if (rc < 0)
		return rc;
	d->mem_fd = rc;
	rc = make_table(d);
	if (rc < 0) {
		close(d->mem_fd);
		d->mem_fd = -1;
		return rc;
	}
	d->npages = npages;
	return 0;
}

static void invalidate(struct sim_grant *g)
{
	/* Pairs with the reader's acquire of flags; later stores to this entry must not be seen with the old
	 * flags. */
	__atomic_store_n(&g->flags, 0, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static bool range_ok(const struct domain *d, uint32_t gref, uint32_t count)
{
	return d->grants && count != 0 && gref >= FIRST_GREF && gref < SIM_GRANTS &&
	       count <= SIM_GRANTS - gref;
}

int mem_grant(struct domain *d, uint32_t gref, uint32_t page, uint32_t count, uint32_t domid, uint32_t flags)
{
	if (!range_ok(d, gref, count) || page >= d->npages || count > d->npages - page ||
	    domid >= DOMID_LIMIT || (flags & ~(SIM_GRANT_VALID | SIM_GRANT_READONLY)))
		return -EINVAL;
	for (uint32_t i = 0; i < count; i++) {
		struct sim_grant *g = &d->grants[gref + i];

		invalidate(g);
		__atomic_store_n(&g->page, page + i, __ATOMIC_RELAXED);
		__atomic_store_n(&g->domid, (uint16_t)domid, __ATOMIC_RELAXED);
		__atomic_store_n(&g->flags, (uint16_t)(flags | SIM_GRANT_VALID), __ATOMIC_RELEASE);
	}
	return 0;
}

int mem_revoke(struct domain *d, uint32_t gref, uint32_t count)
{
	if (!range_ok(d, gref, count))
		return -EINVAL;
	for (uint32_t i = 0; i < count; i++)
		invalidate(&d->grants[gref + i]);
	return 0;
}

void mem_release(struct domain *d)
{
	if (!d->grants)
		return;
	for (uint32_t i = 0; i < SIM_GRANTS; i++)
		invalidate(&d->grants[i]);
	munmap(d->grants, TABLE_BYTES);
	close(d->grants_fd);
	close(d->mem_fd);
	d->grants = NULL;
	d->npages = 0;
}
