/*
 * Making and ending the buffer pool. The region is reserved without being backed: a page costs memory when it
 * is first used.
 */
#include "blkd/base/bufpool_priv.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CAP_MAX_BYTES (1ull << 40)

int bufpool_create(uint64_t cap_bytes, struct bufpool **out, struct err *e)
{
	uint64_t units = cap_bytes / BUF_UNIT_BYTES;
	uint32_t words = (uint32_t)((units + 63) / 64);
	struct bufpool *p;
	void *region, *mem;
	size_t p_bytes;

	if (cap_bytes < BUF_MAX_BYTES || cap_bytes > CAP_MAX_BYTES)
		return err_set(e, -EINVAL, "a buffer pool has %u KiB to %llu GiB, not %llu bytes",
			       BUF_MAX_BYTES >> 10, CAP_MAX_BYTES >> 30, (unsigned long long)cap_bytes);
	p_bytes = sizeof(*p) + words * sizeof(p->words[0]);
	if (posix_memalign(&mem, _Alignof(struct bufpool), p_bytes))
		return err_set(e, -ENOMEM, "no memory for the buffer pool's table");
	region = mmap(NULL, units * BUF_UNIT_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (region == MAP_FAILED) {
		int ret = -errno;

		free(mem);
		return err_set(e, ret, "cannot reserve %llu MiB for data buffers: %s",
			       (unsigned long long)(cap_bytes >> 20), strerror(-ret));
	}
	p = mem;
	memset(p, 0, p_bytes);
	p->region = region;
	p->n_units = units;
	p->n_words = words;
	for (uint32_t i = 0; i < words; i++) {
		uint64_t left = units - (uint64_t)i * 64;

		atomic_init(&p->words[i], left >= 64 ? UINT64_MAX : (1ull << left) - 1);
	}
	BUF_POISON(region, units * BUF_UNIT_BYTES);
	*out = p;
	return 0;
}

void bufpool_destroy(struct bufpool *p)
{
	if (!p)
		return;
	CHECK(!atomic_load(&p->used));
	BUF_UNPOISON(p->region, p->n_units * BUF_UNIT_BYTES);
	munmap(p->region, p->n_units * BUF_UNIT_BYTES);
	free(p);
}
