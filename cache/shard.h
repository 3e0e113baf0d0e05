/* A shard of the metadata cache: private to cache/. What is said to be under the lock is touched nowhere
 * else. */
#ifndef CACHE_SHARD_H
#define CACHE_SHARD_H

#include "blkd/cache.h"

#include <pthread.h>
#include <stdatomic.h>

enum frame_state {
	FRAME_FREE,    /* in shard.free */
	FRAME_FILLING, /* in the table, in no queue; its filler's, and pinned by it */
	FRAME_SMALL,   /* in the table and in shard.small */
	FRAME_MAIN,    /* in the table and in shard.main */
};

struct cache_frame {
	unsigned char *mem;    /* CACHE_FRAME_BYTES, fixed */
	_Atomic uint32_t pins; /* raised under the lock, dropped anywhere: so 0 under the lock stays 0 */
	uint8_t state;	       /* enum frame_state; this and all below under the lock */
	uint8_t uses;	       /* hits since it was last looked at for eviction, at most USES_MAX */
	bool to_main;	       /* FILLING: it was evicted lately, so it goes to main */
	uint64_t serial, off_bytes;
	struct list link;    /* free, small or main */
	struct list waiters; /* FILLING: struct cache_waiter */
	struct cache_frame *hash_next;
};

struct frame_queue { /* oldest first */
	struct list frames;
	uint32_t n;
};

/* A page that was evicted from `small`, remembered for as many further such evictions as the shard has
 * frames. */
struct ghost {
	uint32_t mark; /* 0: none */
	uint32_t at;   /* shard.ghost_clock then */
};

struct cache_shard {
	_Alignas(64) pthread_mutex_t lock;
	struct cache_frame *frames; /* n_frames, fixed */
	uint32_t n_frames, small_target;
	uint32_t mask; /* of both tables, fixed */
	struct cache_frame **table;
	struct ghost *ghosts;
	uint32_t ghost_clock;
	struct list free;
	struct frame_queue small, main;
	struct cache_stats stats; /* but used and cap */
};

struct cache {
	uint32_t n_shards; /* a power of two */
	uint64_t n_frames;
	unsigned char *region;
	struct cache_shard *shards;
};

enum { SHARDS_MAX = 16, USES_MAX = 3 };

/* Under the lock: takes a frame out of the table and its queue, and makes it free. */
void shard_drop(struct cache_shard *, struct cache_frame *);

#endif
