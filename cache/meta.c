/*
 * The metadata cache's control path: making and ending it, forgetting an image, statistics.
 *
 * Everything is sized at creation: frames, their memory in one anonymous region (which costs memory as pages
 * are first filled), a table slot and a ghost per frame. Shards are fewer for small caches, so that a shard
 * always has enough frames to choose from.
 */
#include "cache/shard.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SHARD_MIN_FRAMES = 64, SMALL_SHARE = 10 };
#define CAP_MAX_BYTES (1ull << 40)

static uint32_t pow2_at_least(uint64_t v)
{
	uint32_t p = 1;

	while (p < v)
		p <<= 1;
	return p;
}

static int shard_init(struct cache_shard *s, uint32_t n_frames, unsigned char *mem)
{
	uint32_t slots = pow2_at_least(n_frames);
	int ret;

	s->n_frames = n_frames;
	s->small_target = n_frames / SMALL_SHARE ? n_frames / SMALL_SHARE : 1;
	s->mask = slots - 1;
	s->frames = calloc(n_frames, sizeof(*s->frames));
	s->table = calloc(slots, sizeof(*s->table));
	s->ghosts = calloc(slots, sizeof(*s->ghosts));
	ret = s->frames && s->table && s->ghosts ? pthread_mutex_init(&s->lock, NULL) : ENOMEM;
	if (ret) {
		free(s->frames);
		free(s->table);
		free(s->ghosts);
		return -ret;
	}
	list_init(&s->free);
	list_init(&s->small.frames);
	list_init(&s->main.frames);
	for (uint32_t i = 0; i < n_frames; i++) {
		struct cache_frame *f = &s->frames[i];

		f->mem = mem + (uint64_t)i * CACHE_FRAME_BYTES;
		atomic_init(&f->pins, 0);
		list_init(&f->waiters);
		list_add_tail(&s->free, &f->link);
	}
	return 0;
}

static void release(struct cache *c, uint32_t n_shards)
{
	for (uint32_t i = 0; i < n_shards; i++) {
		struct cache_shard *s = &c->shards[i];

		pthread_mutex_destroy(&s->lock);
		free(s->frames);
		free(s->table);
		free(s->ghosts);
	}
	if (c->region)
		munmap(c->region, c->n_frames * CACHE_FRAME_BYTES);
	free(c->shards);
	free(c);
}

static uint32_t shards_for(uint64_t frames)
{
	uint32_t n = SHARDS_MAX;

	while (n > 1 && frames / n < SHARD_MIN_FRAMES)
		n /= 2;
	return n;
}

static int reserve(struct cache *c)
{
	void *mem;

	if (posix_memalign(&mem, _Alignof(struct cache_shard), c->n_shards * sizeof(*c->shards)))
		return -ENOMEM;
	c->shards = memset(mem, 0, c->n_shards * sizeof(*c->shards));
	mem = mmap(NULL, c->n_frames * CACHE_FRAME_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		return -errno;
	c->region = mem;
	return 0;
}

int cache_create(uint64_t cap_bytes, struct cache **out, struct err *e)
{
	uint64_t frames = (cap_bytes ? cap_bytes : CACHE_DEFAULT_BYTES) / CACHE_FRAME_BYTES;
	uint32_t per_shard, made = 0;
	struct cache *c;
	int ret;

	if (!frames || cap_bytes > CAP_MAX_BYTES)
		return err_set(e, -EINVAL, "a metadata cache has %u bytes to %llu GiB, not %llu bytes",
			       CACHE_FRAME_BYTES, CAP_MAX_BYTES >> 30, (unsigned long long)cap_bytes);
	c = calloc(1, sizeof(*c));
	if (!c)
		return err_set(e, -ENOMEM, "no memory for the metadata cache");
	c->n_shards = shards_for(frames);
	per_shard = (uint32_t)(frames / c->n_shards);
	c->n_frames = (uint64_t)per_shard * c->n_shards;
	ret = reserve(c);
	while (!ret && made < c->n_shards) {
		ret = shard_init(&c->shards[made], per_shard,
				 c->region + (uint64_t)made * per_shard * CACHE_FRAME_BYTES);
		if (!ret)
			made++;
	}
	if (ret) {
		release(c, made);
		return err_set(e, ret, "no memory for a metadata cache of %llu MiB: %s",
			       (unsigned long long)(frames * CACHE_FRAME_BYTES >> 20), strerror(-ret));
	}
	*out = c;
	return 0;
}

void cache_destroy(struct cache *c)
{
	if (!c)
		return;
	for (uint32_t i = 0; i < c->n_shards; i++)
		for (uint32_t j = 0; j < c->shards[i].n_frames; j++) {
			struct cache_frame *f = &c->shards[i].frames[j];

			CHECK(!atomic_load_explicit(&f->pins, memory_order_acquire) &&
			      f->state != FRAME_FILLING);
		}
	release(c, c->n_shards);
}

void cache_forget(struct cache *c, uint64_t serial)
{
	for (uint32_t i = 0; i < c->n_shards; i++) {
		struct cache_shard *s = &c->shards[i];

		pthread_mutex_lock(&s->lock);
		for (uint32_t j = 0; j < s->n_frames; j++) {
			struct cache_frame *f = &s->frames[j];

			if (f->state == FRAME_FREE || f->serial != serial)
				continue;
			CHECK(f->state != FRAME_FILLING &&
			      !atomic_load_explicit(&f->pins, memory_order_acquire));
			shard_drop(s, f);
		}
		pthread_mutex_unlock(&s->lock);
	}
}

void cache_stats(struct cache *c, struct cache_stats *out)
{
	*out = (struct cache_stats){.cap_bytes = c->n_frames * CACHE_FRAME_BYTES};
	for (uint32_t i = 0; i < c->n_shards; i++) {
		struct cache_shard *s = &c->shards[i];

		pthread_mutex_lock(&s->lock);
		out->hits += s->stats.hits;
		out->misses += s->stats.misses;
		out->fills += s->stats.fills;
		out->fill_errors += s->stats.fill_errors;
		out->waits += s->stats.waits;
		out->bypasses += s->stats.bypasses;
		out->evictions += s->stats.evictions;
		out->used_bytes += (uint64_t)(s->small.n + s->main.n) * CACHE_FRAME_BYTES;
		pthread_mutex_unlock(&s->lock);
	}
}
