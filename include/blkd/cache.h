/*
 * The host-wide cache of parents' metadata: 4 KiB pages of immutable files, shared by all device threads.
 * Bounded at creation, sharded; the only lock is a shard's mutex, held for a few instructions, never across
 * I/O or a callback.
 *
 * The key is (image serial, file offset of the page). A serial names an *opened image object* and is never
 * used again, so nothing ever has to be invalidated; cache_forget() gives frames back when the image was
 * closed.
 *
 * The cache does no I/O. A miss lends the caller an empty frame (FILL): it reads the page and says how that
 * went. Others who ask meanwhile wait for that one read (WAIT). An error inserts nothing: each waiter is told
 * and reads for itself, uncached, once.
 *
 * Who owns a frame's memory: the cache; between FILL and cache_fill_done() the filler, alone; a pin (HIT, a
 * FILL that succeeded, a WAIT that was woken with 0) lets its holder read until cache_put(). Pins are short:
 * never held across an action of a guest or client.
 */
#ifndef BLKD_CACHE_H
#define BLKD_CACHE_H

#include "blkd/list.h"

#include <stdbool.h>
#include <stdint.h>

struct err;
struct cache;
struct cache_frame;

#define CACHE_FRAME_BYTES   4096u /* META_PAGE_BYTES of format.h */
#define CACHE_DEFAULT_BYTES (64ull << 20)

enum cache_answer {
	CACHE_HIT,    /* *frame is pinned for the caller; cache_put() when done */
	CACHE_FILL,   /* *frame is the caller's to fill: CACHE_FRAME_BYTES at cache_frame_mem(), then
			 cache_fill_done() exactly once */
	CACHE_WAIT,   /* the waiter is queued; wake() will be called once, unless cache_wait_cancel() answers
			 true first */
	CACHE_BYPASS, /* no frame can be had now: read for yourself, into memory of your own */
};

/* The caller's memory, from CACHE_WAIT until wake() was called or cancel answered true. */
struct cache_waiter {
	/* Set by the caller. Runs in the filler's thread, without a lock, after the fill ended: must not
	 * block, and may not call back into the cache but for cache_put(); it usually posts to its device.
	 * res 0: w->frame is pinned for this waiter, who will cache_put() it. res < 0: w->frame is NULL; the
	 * page could not be read. */
	void (*wake)(struct cache_waiter *, int res);
	void *owner;		   /* the caller's */
	struct cache_frame *frame; /* answer of wake() */
	struct list link;	   /* cache's, as are the next two; under the shard's lock */
	uint32_t shard;
	uint32_t queued;
};

struct cache_stats { /* sums over all shards, each shard's at one moment */
	uint64_t hits, misses, fills, fill_errors, waits, bypasses, evictions;
	uint64_t used_bytes, cap_bytes;
};

/* Control path. cap_bytes: of page memory, 0 for the default, at least one frame. */
int cache_create(uint64_t cap_bytes, struct cache **, struct err *);
/* No pin, fill or waiter is there any more (CHECKed). NULL is harmless. */
void cache_destroy(struct cache *);

/* HOT. Any thread. off_bytes: a multiple of CACHE_FRAME_BYTES. w may be NULL: then BYPASS is answered in
 * place of WAIT. *frame is set for HIT and FILL, otherwise NULL. */
enum cache_answer cache_get(struct cache *, uint64_t serial, uint64_t off_bytes, struct cache_waiter *w,
			    struct cache_frame **frame);

/* Readable by whoever holds a pin; writable by the filler until cache_fill_done(). */
void *cache_frame_mem(const struct cache_frame *);

/* Ends a FILL; the thread that calls it runs the waiters' wake(). res 0: all CACHE_FRAME_BYTES are valid
 * (what lies beyond the end of the file was zeroed by the filler); the caller now holds a pin like that of a
 * HIT. res < 0: the frame is the cache's again. */
void cache_fill_done(struct cache *, struct cache_frame *, int res);

/* HOT. Any thread: gives one pin back. No lock. */
void cache_put(struct cache *, struct cache_frame *);

/* Any thread. true: w left the list, wake() is never called. false: wake() has run, is running or is about to
 * in the filler's thread; w must stay until it has, and its pin is w's to put. */
bool cache_wait_cancel(struct cache *, struct cache_waiter *w);

/* Control path, at the last close of an image: drops its frames. Nobody uses the serial any more (CHECKed: no
 * pin, no fill). */
void cache_forget(struct cache *, uint64_t serial);

/* Any thread. */
void cache_stats(struct cache *, struct cache_stats *);

#endif
