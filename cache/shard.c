/* HOT PATH: no malloc, no log, no syscall, no lock but a shard mutex (pthread_mutex_lock), held for a few
 * instructions. */
/*
 * The metadata cache at work: look up, lend a frame to fill, pin, wake, evict.
 *
 * Eviction is S3-FIFO: a page enters `small`, a tenth of the shard, and is promoted to `main` only if it was
 * used again before its turn came; so a scan washes through the tenth and leaves the rest alone. A page that
 * comes back soon after it was evicted from `small` (a ghost) was evicted too early and enters `main` at
 * once. Main gives each page another round per use. Pinned frames are passed over. The walk is bounded, so
 * the lock is held for microseconds whatever the pages' history.
 *
 * Invariants under the lock: a frame is in the table exactly when it is not FREE; no two frames have one key;
 * a FILLING frame is pinned and in no queue; only FILLING frames have waiters.
 *
 * Not here: I/O, invalidation (serials are never used again), giving memory back.
 */
#include "cache/shard.h"
#include "blkd/log.h"

enum { WALK_MAX = 64 }; /* pages that are given another round in one eviction */

static uint64_t hash(uint64_t serial, uint64_t off_bytes)
{
	uint64_t h = serial * 0x9e3779b97f4a7c15u + off_bytes / CACHE_FRAME_BYTES;

	h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
	h = (h ^ h >> 27) * 0x94d049bb133111ebu;
	return h ^ h >> 31;
}

/* Shard from the top bits, slot from the low ones, a ghost's mark from those between. */
static struct cache_shard *shard_of(struct cache *c, uint64_t h)
{
	return &c->shards[h >> 60 & (c->n_shards - 1)];
}

static uint32_t ghost_mark(uint64_t h)
{
	return (uint32_t)(h >> 28) | 1;
}

/* ---- table and queues; all under the lock ---- */

static struct cache_frame *find(const struct cache_shard *s, uint64_t h, uint64_t serial, uint64_t off_bytes)
{
	struct cache_frame *f = s->table[h & s->mask];

	while (f && (f->serial != serial || f->off_bytes != off_bytes))
		f = f->hash_next;
	return f;
}

static void table_remove(struct cache_shard *s, struct cache_frame *f)
{
	struct cache_frame **at = &s->table[hash(f->serial, f->off_bytes) & s->mask];

	while (*at != f)
		at = &(*at)->hash_next;
	*at = f->hash_next;
}

static void queue_add(struct frame_queue *q, struct cache_frame *f, enum frame_state state)
{
	f->state = (uint8_t)state;
	list_add_tail(&q->frames, &f->link);
	q->n++;
}

static void queue_remove(struct frame_queue *q, struct cache_frame *f)
{
	list_del(&f->link);
	q->n--;
}

void shard_drop(struct cache_shard *s, struct cache_frame *f)
{
	table_remove(s, f);
	if (f->state == FRAME_SMALL)
		queue_remove(&s->small, f);
	if (f->state == FRAME_MAIN)
		queue_remove(&s->main, f);
	f->state = FRAME_FREE;
	list_add_tail(&s->free, &f->link);
}

static bool ghost_seen(const struct cache_shard *s, uint64_t h)
{
	const struct ghost *g = &s->ghosts[h & s->mask];

	return g->mark == ghost_mark(h) && s->ghost_clock - g->at < s->n_frames;
}

static void ghost_add(struct cache_shard *s, const struct cache_frame *f)
{
	uint64_t h = hash(f->serial, f->off_bytes);

	s->ghosts[h & s->mask] = (struct ghost){.mark = ghost_mark(h), .at = s->ghost_clock++};
}

/* Acquire: pairs with the release in cache_put(), so that the last reader is done before the frame is filled
 * anew. */
static bool is_pinned(struct cache_frame *f)
{
	return atomic_load_explicit(&f->pins, memory_order_acquire) != 0;
}

static struct cache_frame *oldest(const struct frame_queue *q)
{
	return container_of(q->frames.next, struct cache_frame, link);
}

static void pass_over(struct frame_queue *q, struct cache_frame *f)
{
	list_del(&f->link);
	list_add_tail(&q->frames, &f->link);
}

static struct cache_frame *victim_in_small(struct cache_shard *s)
{
	unsigned walked = 0;

	for (uint32_t left = s->small.n; left; left--) {
		struct cache_frame *f = oldest(&s->small);

		if (is_pinned(f)) {
			pass_over(&s->small, f);
		} else if (f->uses && walked++ < WALK_MAX) {
			f->uses = 0;
			queue_remove(&s->small, f);
			queue_add(&s->main, f, FRAME_MAIN);
		} else {
			ghost_add(s, f);
			return f;
		}
	}
	return NULL;
}

static struct cache_frame *victim_in_main(struct cache_shard *s)
{
	unsigned walked = 0;

	/* So many steps see each frame once after the last that was given another round. */
	for (uint32_t left = s->main.n + WALK_MAX; left && s->main.n; left--) {
		struct cache_frame *f = oldest(&s->main);

		if (is_pinned(f)) {
			pass_over(&s->main, f);
		} else if (f->uses && walked++ < WALK_MAX) {
			f->uses--;
			pass_over(&s->main, f);
		} else {
			return f;
		}
	}
	return NULL;
}

/* A free frame, or NULL: all are pinned. */
static struct cache_frame *frame_take(struct cache_shard *s)
{
	struct cache_frame *victim = NULL;

	if (list_empty(&s->free)) {
		if (s->small.n >= s->small_target)
			victim = victim_in_small(s);
		if (!victim)
			victim = victim_in_main(s);
		if (!victim)
			victim = victim_in_small(s);
		if (!victim)
			return NULL;
		shard_drop(s, victim);
		s->stats.evictions++;
	}
	return container_of(list_pop(&s->free), struct cache_frame, link);
}

/* ---- get ---- */

static enum cache_answer found(struct cache_shard *s, struct cache_frame *f, struct cache_waiter *w,
			       struct cache_frame **frame)
{
	if (f->state != FRAME_FILLING) {
		atomic_fetch_add_explicit(&f->pins, 1, memory_order_relaxed);
		if (f->uses < USES_MAX)
			f->uses++;
		s->stats.hits++;
		*frame = f;
		return CACHE_HIT;
	}
	s->stats.misses++;
	if (!w) {
		s->stats.bypasses++;
		return CACHE_BYPASS;
	}
	w->frame = NULL;
	w->queued = 1;
	list_add_tail(&f->waiters, &w->link);
	s->stats.waits++;
	return CACHE_WAIT;
}

static enum cache_answer missed(struct cache_shard *s, uint64_t h, uint64_t serial, uint64_t off_bytes,
				struct cache_frame **frame)
{
	struct cache_frame *f = frame_take(s);

	s->stats.misses++;
	if (!f) {
		s->stats.bypasses++;
		return CACHE_BYPASS;
	}
	f->serial = serial;
	f->off_bytes = off_bytes;
	f->state = FRAME_FILLING;
	f->uses = 0;
	f->to_main = ghost_seen(s, h);
	f->hash_next = s->table[h & s->mask];
	s->table[h & s->mask] = f;
	atomic_store_explicit(&f->pins, 1, memory_order_relaxed);
	s->stats.fills++;
	*frame = f;
	return CACHE_FILL;
}

enum cache_answer cache_get(struct cache *c, uint64_t serial, uint64_t off_bytes, struct cache_waiter *w,
			    struct cache_frame **frame)
{
	uint64_t h = hash(serial, off_bytes);
	struct cache_shard *s = shard_of(c, h);
	enum cache_answer answer;
	struct cache_frame *f;

	DCHECK(!(off_bytes % CACHE_FRAME_BYTES));
	*frame = NULL;
	if (w)
		w->shard = (uint32_t)(s - c->shards);
	pthread_mutex_lock(&s->lock);
	f = find(s, h, serial, off_bytes);
	answer = f ? found(s, f, w, frame) : missed(s, h, serial, off_bytes, frame);
	pthread_mutex_unlock(&s->lock);
	return answer;
}

void *cache_frame_mem(const struct cache_frame *f)
{
	return f->mem;
}

void cache_put(struct cache *c, struct cache_frame *f)
{
	uint32_t before = atomic_fetch_sub_explicit(&f->pins, 1, memory_order_release);

	(void)c;
	CHECK(before);
}

/* ---- the end of a fill ---- */

/* Under the lock. Takes the waiters off the frame; afterwards cancel answers false and they are the filler's
 * to wake. */
static uint32_t take_waiters(struct cache_frame *f, bool ok, struct list *woken)
{
	struct list *pos;
	uint32_t n = 0;

	list_for_each (pos, &f->waiters) {
		struct cache_waiter *w = container_of(pos, struct cache_waiter, link);

		w->queued = 0;
		w->frame = ok ? f : NULL;
		n++;
	}
	list_splice_tail(woken, &f->waiters);
	return n;
}

void cache_fill_done(struct cache *c, struct cache_frame *f, int res)
{
	/* The key is the filler's to read: nobody changes it while the frame is FILLING. */
	struct cache_shard *s = shard_of(c, hash(f->serial, f->off_bytes));
	struct list woken, *link;
	uint32_t n;

	list_init(&woken);
	pthread_mutex_lock(&s->lock);
	CHECK(f->state == FRAME_FILLING);
	n = take_waiters(f, res >= 0, &woken);
	if (res < 0) {
		atomic_store_explicit(&f->pins, 0, memory_order_relaxed);
		shard_drop(s, f);
		s->stats.fill_errors++;
	} else {
		atomic_fetch_add_explicit(&f->pins, n, memory_order_relaxed);
		if (f->to_main)
			queue_add(&s->main, f, FRAME_MAIN);
		else
			queue_add(&s->small, f, FRAME_SMALL);
	}
	pthread_mutex_unlock(&s->lock);
	while ((link = list_pop(&woken))) {
		struct cache_waiter *w = container_of(link, struct cache_waiter, link);

		w->wake(w, res < 0 ? res : 0);
	}
}

bool cache_wait_cancel(struct cache *c, struct cache_waiter *w)
{
	struct cache_shard *s = &c->shards[w->shard];
	bool queued;

	pthread_mutex_lock(&s->lock);
	queued = w->queued;
	if (queued) {
		w->queued = 0;
		list_del(&w->link);
	}
	pthread_mutex_unlock(&s->lock);
	return queued;
}
