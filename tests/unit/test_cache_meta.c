/*
 * The metadata cache: one fill for any number of askers, no frame under two keys, nothing erroneous kept,
 * pins respected. The stress test is for tsan as much as for its own assertions: pages carry their key, and
 * every reader checks it.
 */
#include "blkd/cache.h"
#include "blkd/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE CACHE_FRAME_BYTES

static struct cache *make(uint64_t frames)
{
	struct cache *c = NULL;
	struct err e = ERR_INIT;

	if (cache_create(frames * PAGE, &c, &e))
		fail_msg("%s", e.text);
	return c;
}

static uint64_t mark(uint64_t serial, uint64_t off)
{
	return serial * 0x100000001b3u ^ off;
}

static void write_page(struct cache_frame *f, uint64_t serial, uint64_t off)
{
	uint64_t *words = cache_frame_mem(f);

	for (unsigned i = 0; i < PAGE / 8; i++)
		words[i] = mark(serial, off) + i;
}

static bool page_is(const struct cache_frame *f, uint64_t serial, uint64_t off)
{
	const uint64_t *words = cache_frame_mem(f);

	return words[0] == mark(serial, off) && words[511] == mark(serial, off) + 511;
}

/* Brings a page and lets it go again. Answers whether it was there. */
static bool touch(struct cache *c, uint64_t serial, uint64_t off)
{
	struct cache_frame *f;
	enum cache_answer a = cache_get(c, serial, off, NULL, &f);

	if (a == CACHE_FILL) {
		write_page(f, serial, off);
		cache_fill_done(c, f, 0);
	}
	assert_true(a == CACHE_FILL || a == CACHE_HIT);
	assert_true(page_is(f, serial, off));
	cache_put(c, f);
	return a == CACHE_HIT;
}

struct waiter {
	struct cache_waiter w;
	int woken, res;
};

static void note(struct cache_waiter *w, int res)
{
	struct waiter *me = container_of(w, struct waiter, w);

	me->woken++;
	me->res = res;
}

static void miss_is_lent_to_the_asker_and_then_hit(void **state)
{
	struct cache *c = make(16);
	struct cache_stats s;
	struct cache_frame *f, *again;

	(void)state;
	assert_int_equal(cache_get(c, 1, 8192, NULL, &f), CACHE_FILL);
	write_page(f, 1, 8192);
	cache_fill_done(c, f, 0);
	assert_true(page_is(f, 1, 8192)); /* the filler's own pin */
	assert_int_equal(cache_get(c, 1, 8192, NULL, &again), CACHE_HIT);
	assert_ptr_equal(f, again);
	cache_put(c, f);
	cache_put(c, again);
	cache_stats(c, &s);
	assert_int_equal(s.hits, 1);
	assert_int_equal(s.misses, 1);
	assert_int_equal(s.fills, 1);
	assert_int_equal(s.used_bytes, PAGE);
	assert_int_equal(s.cap_bytes, 16 * PAGE);
	cache_destroy(c);
}

static void same_offset_of_another_image_is_another_page(void **state)
{
	struct cache *c = make(1024);

	(void)state;
	for (uint64_t serial = 1; serial <= 20; serial++)
		for (uint64_t i = 0; i < 20; i++)
			assert_false(touch(c, serial, i * PAGE));
	for (uint64_t serial = 1; serial <= 20; serial++)
		for (uint64_t i = 0; i < 20; i++)
			assert_true(touch(c, serial, i * PAGE));
	cache_destroy(c);
}

static void waiters_share_one_fill_and_each_gets_a_pin(void **state)
{
	struct cache *c = make(1);
	struct waiter w[5] = {{.woken = 0}};
	struct cache_frame *f, *other;
	struct cache_stats s;

	(void)state;
	assert_int_equal(cache_get(c, 1, 0, NULL, &f), CACHE_FILL);
	for (unsigned i = 0; i < 5; i++) {
		w[i].w.wake = note;
		assert_int_equal(cache_get(c, 1, 0, &w[i].w, &other), CACHE_WAIT);
		assert_null(other);
	}
	assert_int_equal(cache_get(c, 1, 0, NULL, &other), CACHE_BYPASS);
	write_page(f, 1, 0);
	cache_fill_done(c, f, 0);
	cache_put(c, f);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(w[i].woken, 1);
		assert_int_equal(w[i].res, 0);
		assert_true(page_is(w[i].w.frame, 1, 0));
		assert_int_equal(cache_get(c, 2, 0, NULL, &other),
				 CACHE_BYPASS); /* their pins hold the only frame */
		cache_put(c, w[i].w.frame);
	}
	assert_false(touch(c, 2, 0));
	cache_stats(c, &s);
	assert_int_equal(s.fills, 2);
	assert_int_equal(s.waits, 5);
	assert_int_equal(s.bypasses, 6);
	cache_destroy(c);
}

static void failed_fill_keeps_nothing_and_tells_each_waiter(void **state)
{
	struct cache *c = make(4);
	struct waiter w[3] = {{.woken = 0}};
	struct cache_frame *f, *other;
	struct cache_stats s;

	(void)state;
	assert_int_equal(cache_get(c, 1, 0, NULL, &f), CACHE_FILL);
	for (unsigned i = 0; i < 3; i++) {
		w[i].w.wake = note;
		assert_int_equal(cache_get(c, 1, 0, &w[i].w, &other), CACHE_WAIT);
	}
	cache_fill_done(c, f, -EIO);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(w[i].woken, 1);
		assert_int_equal(w[i].res, -EIO);
		assert_null(w[i].w.frame);
	}
	cache_stats(c, &s);
	assert_int_equal(s.used_bytes, 0);
	assert_int_equal(s.fill_errors, 1);
	assert_false(touch(c, 1, 0)); /* asked anew, it is read anew */
	assert_true(touch(c, 1, 0));
	cache_destroy(c);
}

static void cancelled_waiter_is_not_woken_and_a_woken_one_cannot_be_cancelled(void **state)
{
	struct cache *c = make(4);
	struct waiter w[3] = {{.woken = 0}};
	struct cache_frame *f, *other;

	(void)state;
	assert_int_equal(cache_get(c, 1, 0, NULL, &f), CACHE_FILL);
	for (unsigned i = 0; i < 3; i++) {
		w[i].w.wake = note;
		assert_int_equal(cache_get(c, 1, 0, &w[i].w, &other), CACHE_WAIT);
	}
	assert_true(cache_wait_cancel(c, &w[1].w));
	assert_false(cache_wait_cancel(c, &w[1].w));
	write_page(f, 1, 0);
	cache_fill_done(c, f, 0);
	assert_int_equal(w[0].woken, 1);
	assert_int_equal(w[1].woken, 0);
	assert_int_equal(w[2].woken, 1);
	assert_false(cache_wait_cancel(c, &w[0].w));
	cache_put(c, f);
	cache_put(c, w[0].w.frame);
	cache_put(c, w[2].w.frame);
	cache_destroy(c);
}

static void pinned_frames_are_never_taken(void **state)
{
	struct cache *c = make(16);
	struct cache_frame *pinned[15], *f, *other;

	(void)state;
	for (uint64_t i = 0; i < 15; i++) {
		assert_int_equal(cache_get(c, 1, i * PAGE, NULL, &pinned[i]), CACHE_FILL);
		write_page(pinned[i], 1, i * PAGE);
		cache_fill_done(c, pinned[i], 0);
	}
	for (uint64_t i = 0; i < 1000; i++)
		assert_false(touch(c, 2, i * PAGE));
	assert_int_equal(cache_get(c, 3, 0, NULL, &f), CACHE_FILL); /* the last one; all are held now */
	assert_int_equal(cache_get(c, 4, 0, NULL, &other), CACHE_BYPASS);
	cache_fill_done(c, f, -EIO);
	for (uint64_t i = 0; i < 15; i++) {
		assert_true(page_is(pinned[i], 1, i * PAGE));
		cache_put(c, pinned[i]);
	}
	cache_destroy(c);
}

static void cap_holds_and_what_was_evicted_is_filled_again(void **state)
{
	struct cache *c = make(256);
	struct cache_stats s;

	(void)state;
	for (unsigned round = 0; round < 3; round++)
		for (uint64_t i = 0; i < 2000; i++)
			touch(c, 1, i * PAGE);
	cache_stats(c, &s);
	assert_int_equal(s.cap_bytes, 256 * PAGE);
	assert_int_equal(s.used_bytes, s.cap_bytes);
	assert_int_equal(s.fills, s.evictions + 256);
	assert_int_equal(s.hits + s.misses, 6000);
	cache_destroy(c);
}

static void scan_leaves_the_pages_in_use_alone(void **state)
{
	enum { HOT = 128 };
	struct cache *c = make(512);
	unsigned kept = 0;

	(void)state;
	for (unsigned round = 0; round < 4; round++)
		for (uint64_t i = 0; i < HOT; i++)
			touch(c, 1, i * PAGE);
	for (uint64_t i = 0; i < 20000; i++)
		touch(c, 2, i * PAGE);
	for (uint64_t i = 0; i < HOT; i++)
		kept += touch(c, 1, i * PAGE);
	assert_true(kept >= HOT * 9 / 10);
	cache_destroy(c);
}

static void page_that_returns_soon_after_its_eviction_is_kept_longer(void **state)
{
	struct cache *c = make(64);
	uint64_t fresh = 1000;

	(void)state;
	for (uint64_t i = 0; i < 64; i++)
		touch(c, 1, i * PAGE);
	for (unsigned i = 0; i < 8; i++)
		touch(c, 1, fresh++ * PAGE); /* page 0 is among the evicted */
	assert_false(touch(c, 1, 0));
	for (unsigned i = 0; i < 200; i++)
		touch(c, 1, fresh++ * PAGE);
	assert_true(touch(c, 1, 0));
	cache_destroy(c);
}

static void forget_drops_one_image_and_no_other(void **state)
{
	struct cache *c = make(1024);
	struct cache_stats s;

	(void)state;
	for (uint64_t i = 0; i < 100; i++) {
		touch(c, 1, i * PAGE);
		touch(c, 2, i * PAGE);
	}
	cache_forget(c, 1);
	cache_forget(c, 77);
	cache_stats(c, &s);
	assert_int_equal(s.used_bytes, 100 * PAGE);
	for (uint64_t i = 0; i < 100; i++) {
		assert_true(touch(c, 2, i * PAGE));
		assert_false(touch(c, 1, i * PAGE));
	}
	cache_destroy(c);
}

static void caps_out_of_range_are_refused_and_0_is_the_default(void **state)
{
	struct cache *c = NULL;
	struct err e = ERR_INIT;
	struct cache_stats s;

	(void)state;
	assert_int_equal(cache_create(PAGE - 1, &c, &e), -EINVAL);
	assert_int_equal(cache_create(UINT64_MAX, &c, &e), -EINVAL);
	assert_null(c);
	assert_int_equal(cache_create(0, &c, &e), 0);
	cache_stats(c, &s);
	assert_int_equal(s.cap_bytes, CACHE_DEFAULT_BYTES);
	cache_destroy(c);
	cache_destroy(NULL);
}

/* ---- threads ---- */

enum { THREADS = 4, ROUNDS = 20000, IMAGES = 3, PAGES = 60 };

struct thread_waiter {
	struct cache_waiter w;
	_Atomic int woken; /* 0: not yet; 1: with a pin; 2: with an error */
};

static void wake_thread(struct cache_waiter *w, int res)
{
	struct thread_waiter *me = container_of(w, struct thread_waiter, w);

	atomic_store_explicit(&me->woken, res ? 2 : 1, memory_order_release);
}

struct stress {
	struct cache *cache;
	unsigned seed;
	uint64_t hits, waits, cancelled, errors;
	bool wrong;
};

static void await(struct stress *t, struct thread_waiter *me, uint64_t serial, uint64_t off)
{
	int woken;

	t->waits++;
	if ((unsigned)rand_r(&t->seed) % 3 == 0 && cache_wait_cancel(t->cache, &me->w)) {
		t->cancelled++;
		return;
	}
	while (!(woken = atomic_load_explicit(&me->woken, memory_order_acquire)))
		sched_yield();
	if (woken == 2)
		return;
	t->wrong = t->wrong || !page_is(me->w.frame, serial, off);
	cache_put(t->cache, me->w.frame);
}

static void *stress(void *arg)
{
	struct stress *t = arg;

	for (unsigned i = 0; i < ROUNDS && !t->wrong; i++) {
		uint64_t serial = 1 + (unsigned)rand_r(&t->seed) % IMAGES,
			 off = (unsigned)rand_r(&t->seed) % PAGES * PAGE;
		struct thread_waiter me = {.w.wake = wake_thread};
		struct cache_frame *f;

		switch (cache_get(t->cache, serial, off, &me.w, &f)) {
		case CACHE_HIT:
			t->hits++;
			t->wrong = !page_is(f, serial, off);
			cache_put(t->cache, f);
			break;
		case CACHE_FILL:
			if ((unsigned)rand_r(&t->seed) % 16 == 0)
				usleep(50);
			if ((unsigned)rand_r(&t->seed) % 8 == 0) {
				memset(cache_frame_mem(f), 0xee, PAGE);
				t->errors++;
				cache_fill_done(t->cache, f, -EIO);
				break;
			}
			write_page(f, serial, off);
			cache_fill_done(t->cache, f, 0);
			t->wrong = !page_is(f, serial, off);
			cache_put(t->cache, f);
			break;
		case CACHE_WAIT:
			await(t, &me, serial, off);
			break;
		case CACHE_BYPASS:
			break;
		}
	}
	return NULL;
}

static void run_stress(uint64_t frames)
{
	struct stress t[THREADS];
	struct cache *c = make(frames);
	struct cache_stats s;
	pthread_t id[THREADS];
	uint64_t hits = 0, waits = 0, errors = 0;

	for (unsigned i = 0; i < THREADS; i++) {
		t[i] = (struct stress){.cache = c, .seed = i + 1};
		assert_int_equal(pthread_create(&id[i], NULL, stress, &t[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(id[i], NULL);
		assert_false(t[i].wrong);
		hits += t[i].hits;
		waits += t[i].waits;
		errors += t[i].errors;
	}
	cache_stats(c, &s);
	assert_int_equal(s.hits, hits);
	assert_int_equal(s.waits, waits);
	assert_int_equal(s.fill_errors, errors);
	assert_int_equal(s.hits + s.misses, THREADS * ROUNDS);
	assert_int_equal(s.misses, s.fills + s.waits + s.bypasses);
	assert_int_equal(s.used_bytes / PAGE, s.fills - s.fill_errors - s.evictions);
	for (uint64_t serial = 1; serial <= IMAGES; serial++)
		cache_forget(c, serial);
	cache_stats(c, &s);
	assert_int_equal(s.used_bytes, 0);
	cache_destroy(c);
}

static void threads_see_only_their_page_while_frames_are_scarce(void **state)
{
	(void)state;
	run_stress(3);
	run_stress(40);
}

static void threads_see_only_their_page_in_many_shards(void **state)
{
	(void)state;
	run_stress(128);
	run_stress(2048);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(miss_is_lent_to_the_asker_and_then_hit),
	    cmocka_unit_test(same_offset_of_another_image_is_another_page),
	    cmocka_unit_test(waiters_share_one_fill_and_each_gets_a_pin),
	    cmocka_unit_test(failed_fill_keeps_nothing_and_tells_each_waiter),
	    cmocka_unit_test(cancelled_waiter_is_not_woken_and_a_woken_one_cannot_be_cancelled),
	    cmocka_unit_test(pinned_frames_are_never_taken),
	    cmocka_unit_test(cap_holds_and_what_was_evicted_is_filled_again),
	    cmocka_unit_test(scan_leaves_the_pages_in_use_alone),
	    cmocka_unit_test(page_that_returns_soon_after_its_eviction_is_kept_longer),
	    cmocka_unit_test(forget_drops_one_image_and_no_other),
	    cmocka_unit_test(caps_out_of_range_are_refused_and_0_is_the_default),
	    cmocka_unit_test(threads_see_only_their_page_while_frames_are_scarce),
	    cmocka_unit_test(threads_see_only_their_page_in_many_shards),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
