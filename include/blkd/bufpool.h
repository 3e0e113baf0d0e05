/*
 * The host-wide pool of data buffers: one anonymous region of bounded size, cut into units of 64 KiB. A
 * buffer is a contiguous run of 1 to 16 units (64 KiB to 1 MiB), page aligned. Requests of all devices share
 * it, so memory follows what is in flight and not what is attached. That each device can always serve one
 * maximal request is not the pool's promise: the device keeps a private buffer.
 *
 * get and put: any thread, no lock, no system call, no allocation, bounded work. Empty is an ordinary answer.
 * A buffer holds whatever its last user left, perhaps another guest's bytes: who answers from it has filled
 * every byte of the answer.
 */
#ifndef BLKD_BUFPOOL_H
#define BLKD_BUFPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct bufpool;

#define BUF_UNIT_BYTES (64u << 10)
#define BUF_MAX_BYTES  (1u << 20)

/* Owned by whoever got it; copied freely, put once. */
struct buf {
	void *mem;	    /* NULL: none */
	uint32_t cap_bytes; /* a multiple of BUF_UNIT_BYTES */
	uint32_t tag; /* 0 from the pool; otherwise free for the owner of buffers that are not the pool's */
};

struct bufpool_stats {
	uint64_t cap_bytes;
	uint64_t in_use_bytes,
	    peak_bytes;		 /* peak: since creation; a moment's figure among concurrent callers */
	uint64_t gets, failures; /* failures: get() that found no run */
};

/* Control path. cap_bytes is rounded down to units; at least BUF_MAX_BYTES. Memory is touched, and so
 * resident, only as far as it was ever in use: runs are taken from the low end. */
int bufpool_create(uint64_t cap_bytes, struct bufpool **, struct err *);
/* No buffer is out (CHECKed), no thread inside. NULL is harmless. */
void bufpool_destroy(struct bufpool *);

/* Any thread. At least len_bytes (1 .. BUF_MAX_BYTES; more: false). false: no such run is free now, *out is
 * untouched. */
bool bufpool_get(struct bufpool *, uint64_t len_bytes, struct buf *out);
/* Any thread, no matter which one got it. Afterwards b->mem is NULL. CHECKs that the run is the pool's and is
 * out. */
void bufpool_put(struct bufpool *, struct buf *b);

/* Any thread. */
void bufpool_stats(const struct bufpool *, struct bufpool_stats *);

#endif
