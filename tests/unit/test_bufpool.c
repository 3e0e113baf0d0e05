/* The buffer pool: no two holders of one byte, whatever the threads do; what was put can be got again, at
 * full length. */
#include "blkd/bufpool.h"
#include "blkd/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1u << 20)

static struct bufpool *make(uint64_t cap_bytes)
{
	struct bufpool *p = NULL;
	struct err e = ERR_INIT;

	if (bufpool_create(cap_bytes, &p, &e))
		fail_msg("%s", e.text);
	return p;
}

static void buffers_are_whole_units_and_page_aligned(void **state)
{
	static const struct {
		uint64_t len;
		uint32_t cap;
	} cases[] = {{1, 64 << 10},	     {512, 64 << 10},
		     {64 << 10, 64 << 10},   {(64 << 10) + 1, 128 << 10},
		     {700 << 10, 704 << 10}, {MIB, MIB}};
	struct bufpool *p = make(8 * MIB);

	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct buf b = {0};

		assert_true(bufpool_get(p, cases[i].len, &b));
		assert_int_equal(b.cap_bytes, cases[i].cap);
		assert_int_equal((uintptr_t)b.mem % 4096, 0);
		assert_int_equal(b.tag, 0);
		memset(b.mem, 1, b.cap_bytes);
		bufpool_put(p, &b);
		assert_null(b.mem);
	}
	bufpool_destroy(p);
}

static void lengths_that_no_buffer_has_are_refused(void **state)
{
	struct bufpool *p = make(4 * MIB);
	struct bufpool_stats s;
	struct buf b = {.tag = 77};

	(void)state;
	assert_false(bufpool_get(p, 0, &b));
	assert_false(bufpool_get(p, MIB + 1, &b));
	assert_false(bufpool_get(p, UINT64_MAX, &b));
	assert_int_equal(b.tag, 77);
	bufpool_stats(p, &s);
	assert_int_equal(s.failures, 0);
	bufpool_destroy(p);
}

static void caps_out_of_range_are_refused(void **state)
{
	struct bufpool *p = NULL;
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(bufpool_create(MIB - 1, &p, &e), -EINVAL);
	assert_int_equal(bufpool_create(UINT64_MAX, &p, &e), -EINVAL);
	assert_null(p);
	bufpool_destroy(NULL);
}

static void pool_gives_its_cap_and_then_says_no(void **state)
{
	static struct buf b[200];
	struct bufpool *p =
	    make(5 * MIB + 3 * BUF_UNIT_BYTES + 100); /* 83 units: the second word is not full */
	struct bufpool_stats s;
	unsigned n = 0;

	(void)state;
	while (n < 200 && bufpool_get(p, 1, &b[n]))
		memset(b[n++].mem, 1, BUF_UNIT_BYTES);
	assert_int_equal(n, 83);
	bufpool_stats(p, &s);
	assert_int_equal(s.in_use_bytes, 83 * BUF_UNIT_BYTES);
	assert_int_equal(s.cap_bytes, 83 * BUF_UNIT_BYTES);
	assert_int_equal(s.failures, 1);
	assert_int_equal(s.gets, 83);
	while (n)
		bufpool_put(p, &b[--n]);
	bufpool_stats(p, &s);
	assert_int_equal(s.in_use_bytes, 0);
	assert_int_equal(s.peak_bytes, 83 * BUF_UNIT_BYTES);
	bufpool_destroy(p);
}

static void small_buffers_that_were_put_merge_to_large_ones(void **state)
{
	static struct buf b[64], large[4];
	struct bufpool *p = make(4 * MIB);

	(void)state;
	for (unsigned i = 0; i < 64; i++)
		assert_true(bufpool_get(p, 1, &b[i]));
	for (unsigned i = 0; i < 64; i += 2)
		bufpool_put(p, &b[i]);
	assert_false(bufpool_get(p, BUF_UNIT_BYTES + 1, &large[0]));
	for (unsigned i = 1; i < 64; i += 2)
		bufpool_put(p, &b[i]);
	for (unsigned i = 0; i < 4; i++)
		assert_true(bufpool_get(p, MIB, &large[i]));
	for (unsigned i = 0; i < 4; i++)
		bufpool_put(p, &large[i]);
	bufpool_destroy(p);
}

static void low_end_is_used_first(void **state)
{
	struct bufpool *p = make(64 * MIB);
	struct buf a, b, c;
	void *first;

	(void)state;
	assert_true(bufpool_get(p, 1, &a));
	first = a.mem;
	assert_true(bufpool_get(p, MIB, &b));
	assert_ptr_equal(b.mem, (char *)first + BUF_UNIT_BYTES);
	bufpool_put(p, &a);
	assert_true(bufpool_get(p, 1, &c));
	assert_ptr_equal(c.mem, first);
	bufpool_put(p, &b);
	bufpool_put(p, &c);
	bufpool_destroy(p);
}

enum { THREADS = 4, HELD = 12, ROUNDS = 4000 };

static void *churn(void *arg)
{
	static _Atomic unsigned ids;
	struct bufpool *p = arg;
	unsigned char id = (unsigned char)++ids;
	unsigned seed = id;
	struct buf held[HELD] = {{0}};

	for (unsigned i = 0; i < ROUNDS; i++) {
		struct buf *b = &held[(unsigned)rand_r(&seed) % HELD];

		if (b->mem) {
			unsigned char *m = b->mem;

			/* Nobody else wrote into either end while it was ours. */
			if (m[0] != id || m[b->cap_bytes - 1] != id)
				return arg; /* two holders */
			bufpool_put(p, b);
		} else if (bufpool_get(p, 1 + (unsigned)rand_r(&seed) % MIB, b)) {
			((unsigned char *)b->mem)[0] = id;
			((unsigned char *)b->mem)[b->cap_bytes - 1] = id;
		}
	}
	for (unsigned i = 0; i < HELD; i++)
		if (held[i].mem)
			bufpool_put(p, &held[i]);
	return NULL;
}

static void threads_never_share_a_buffer(void **state)
{
	struct bufpool *p = make(4 * MIB); /* less than one alone may want: get fails too */
	struct bufpool_stats s;
	pthread_t t[THREADS];
	void *ret;

	(void)state;
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, churn, p), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(t[i], &ret);
		assert_null(ret);
	}
	bufpool_stats(p, &s);
	assert_int_equal(s.in_use_bytes, 0);
	assert_true(s.peak_bytes <= s.cap_bytes);
	assert_true(s.failures > 0);
	bufpool_destroy(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(buffers_are_whole_units_and_page_aligned),
	    cmocka_unit_test(lengths_that_no_buffer_has_are_refused),
	    cmocka_unit_test(caps_out_of_range_are_refused),
	    cmocka_unit_test(pool_gives_its_cap_and_then_says_no),
	    cmocka_unit_test(small_buffers_that_were_put_merge_to_large_ones),
	    cmocka_unit_test(low_end_is_used_first),
	    cmocka_unit_test(threads_never_share_a_buffer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
