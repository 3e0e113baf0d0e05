/* Claims about the replay engine: what it promises in include/blkd/replay.h. */
#include "blkd/bytes.h"
#include "blkd/err.h"
#include "blkd/replay.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define SECTORS 64u

struct rig {
	struct replay *r;
	struct io_engine *e;
	struct backing *b;
	struct io_file file;
	struct io io[16];
	unsigned char *buf[16];
};

static void rig_up_traits(struct rig *g, uint64_t seed, const struct backing_traits *t)
{
	struct err err = ERR_INIT;

	memset(g, 0, sizeof(*g));
	g->r = replay_create(seed);
	if (t)
		replay_set_traits(g->r, t);
	assert_int_equal(replay_file_add(g->r, "/m/a", SECTORS * 512, NULL), 0);
	replay_bind(g->r);
	assert_int_equal(io_replay_engine.create(16, &g->e, &err), 0);
	assert_int_equal(
	    replay_opener(g->r)->open(replay_opener(g->r)->ctx, "/m/./x/../a", BACKING_WRITE, &g->b, &err),
	    0);
	assert_int_equal(g->e->ops->file_add(g->e, g->b, &g->file), 0);
	for (unsigned i = 0; i < 16; i++)
		g->buf[i] = aligned_alloc(4096, 65536);
}

static void rig_up(struct rig *g, uint64_t seed)
{
	rig_up_traits(g, seed, NULL);
}

static void rig_down(struct rig *g)
{
	g->e->ops->file_del(g->e, &g->file);
	g->e->ops->destroy(g->e);
	g->b->ops->close(g->b);
	replay_destroy(g->r);
	for (unsigned i = 0; i < 16; i++)
		free(g->buf[i]);
}

static void queue(struct rig *g, unsigned i, enum io_op op, uint64_t off, uint64_t len)
{
	struct io *io = &g->io[i];

	io->op = op;
	io->file = &g->file;
	io->off_bytes = off;
	io->len_bytes = len;
	io->buf = g->buf[i];
	assert_int_equal(g->e->ops->queue(g->e, io), 0);
}

/* Turns until n operations are done; their indices in order of completion. */
static void finish(struct rig *g, unsigned n, unsigned *order)
{
	unsigned got = 0;

	for (unsigned turns = 0; got < n; turns++) {
		struct list done, ready, *l;

		assert_true(turns < 1000);
		list_init(&done);
		list_init(&ready);
		g->e->ops->turn(g->e, IO_DEADLINE_NONE, &done, &ready);
		assert_true(list_empty(&ready));
		while ((l = list_pop(&done))) {
			unsigned i = (unsigned)(container_of(l, struct io, link) - g->io);

			if (order)
				order[got] = i;
			got++;
		}
	}
	assert_int_equal(g->e->in_flight, 0);
}

static int one(struct rig *g, enum io_op op, uint64_t off, uint64_t len)
{
	queue(g, 0, op, off, len);
	finish(g, 1, NULL);
	return g->io[0].res;
}

static uint64_t scripted_run(uint64_t seed, unsigned *order)
{
	struct rig g;
	struct replay_shape shape = {.delay_min_ns = 10, .delay_max_ns = 100000, .short_permille = 300};
	uint64_t h;

	rig_up(&g, seed);
	replay_set_shape(g.r, &shape);
	for (unsigned i = 0; i < 16; i++) {
		memset(g.buf[i], (int)i + 1, 4096);
		queue(&g, i, i % 4 == 3 ? IO_READ : IO_WRITE, i % 8 * 4096, 4096);
	}
	finish(&g, 16, order);
	assert_int_equal(g.b->ops->flush(g.b), 0);
	h = replay_log_hash(g.r);
	rig_down(&g);
	return h;
}

static void same_seed_gives_the_same_log(void **state)
{
	unsigned a[16], b[16];

	(void)state;
	assert_true(scripted_run(7, a) == scripted_run(7, b));
	assert_memory_equal(a, b, sizeof(a));
}

static void another_seed_gives_another_order(void **state)
{
	unsigned a[16], b[16];

	(void)state;
	assert_true(scripted_run(7, a) != scripted_run(8, b));
	assert_memory_not_equal(a, b, sizeof(a));
}

static void completions_do_not_follow_submission(void **state)
{
	unsigned order[16], moved = 0;

	(void)state;
	scripted_run(3, order);
	for (unsigned i = 0; i < 16; i++)
		moved += order[i] != i;
	assert_true(moved > 4);
}

static void write_acts_when_it_completes(void **state)
{
	struct rig g;
	struct list done, ready;
	unsigned char seen[512];

	(void)state;
	rig_up(&g, 1);
	memset(g.buf[0], 0xaa, 512);
	queue(&g, 0, IO_WRITE, 512, 512);
	list_init(&done);
	list_init(&ready);
	g.e->ops->turn(g.e, 0, &done, &ready);
	assert_true(list_empty(&done));
	replay_file_peek(g.r, 0, 512, seen, 512);
	assert_true(bytes_are_zero(seen, 512));
	finish(&g, 1, NULL);
	assert_int_equal(g.io[0].res, 512);
	replay_file_peek(g.r, 0, 512, seen, 512);
	assert_memory_equal(seen, g.buf[0], 512);
	rig_down(&g);
}

static void deadline_ends_a_turn_and_moves_the_clock(void **state)
{
	struct rig g;
	struct list done, ready;
	uint64_t t0;

	(void)state;
	rig_up(&g, 1);
	list_init(&done);
	list_init(&ready);
	t0 = g.e->ops->now(g.e);
	g.e->ops->turn(g.e, t0 + 5000000, &done, &ready);
	assert_true(list_empty(&done));
	assert_int_equal(g.e->ops->now(g.e), t0 + 5000000);
	g.e->ops->turn(g.e, 0, &done, &ready);
	assert_int_equal(g.e->ops->now(g.e), t0 + 5001000);
	rig_down(&g);
}

static void log_holds_both_ways_in_with_their_events(void **state)
{
	struct rig g;
	const struct replay_rec *rec;
	size_t n;

	(void)state;
	rig_up(&g, 1);
	memset(g.buf[0], 1, 512);
	memset(g.buf[1], 2, 512);
	queue(&g, 0, IO_WRITE, 0, 512);
	queue(&g, 1, IO_WRITE, 512, 512);
	finish(&g, 2, NULL);
	assert_int_equal(g.b->ops->write(g.b, 100, "abc", 3), 0);
	assert_int_equal(g.b->ops->extend(g.b, 65536), 0);
	rec = replay_log(g.r, &n);
	assert_int_equal(n, 4);
	assert_int_equal(rec[0].submitted_at, 0);
	assert_int_equal(rec[1].submitted_at, 1);
	assert_int_equal(rec[0].completed_at + rec[1].completed_at, 5);
	assert_int_equal(rec[1].data[0], 2);
	assert_true(rec[2].sync && rec[2].submitted_at == 4 && rec[2].completed_at == 5);
	assert_memory_equal(rec[2].data, "abc", 3);
	assert_int_equal(rec[3].op, IO_EXTEND);
	assert_int_equal(rec[3].size_before, SECTORS * 512);
	assert_int_equal(rec[3].size_after, 65536);
	assert_int_equal(replay_events(g.r), 8);
	rig_down(&g);
}

static bool is_flush(void *ctx, const struct replay_rec *rec)
{
	(void)ctx;
	return rec->op == IO_FLUSH;
}

static void nth_matching_operation_fails_and_only_that(void **state)
{
	struct rig g;
	struct replay_fault f = {.kind = REPLAY_FAIL, .nth = 2, .match = is_flush, .error = EIO};

	(void)state;
	rig_up(&g, 1);
	assert_int_equal(replay_fault_add(g.r, &f), 0);
	assert_int_equal(one(&g, IO_FLUSH, 0, 0), 0);
	assert_int_equal(one(&g, IO_READ, 0, 512), 512);
	assert_int_equal(g.b->ops->flush(g.b), -EIO);
	assert_int_equal(one(&g, IO_FLUSH, 0, 0), 0);
	assert_int_equal(replay_fault_hits(g.r), 1);
	rig_down(&g);
}

static void torn_failure_lands_a_part_and_tells_how_much(void **state)
{
	unsigned parts = 0;

	(void)state;
	for (uint64_t seed = 0; seed < 20; seed++) {
		struct rig g;
		struct replay_fault f = {.kind = REPLAY_FAIL_TORN, .error = EIO};
		unsigned char seen[4096];
		const struct replay_rec *rec;
		size_t n;

		rig_up(&g, seed);
		replay_fault_add(g.r, &f);
		memset(g.buf[0], 0xaa, 4096);
		assert_int_equal(one(&g, IO_WRITE, 0, 4096), -EIO);
		rec = replay_log(g.r, &n);
		replay_file_peek(g.r, 0, 0, seen, 4096);
		assert_memory_equal(seen, g.buf[0], rec[0].landed_bytes);
		assert_true(bytes_are_zero(seen + rec[0].landed_bytes, 4096 - rec[0].landed_bytes));
		parts += rec[0].landed_bytes != 0 && rec[0].landed_bytes != 4096;
		rig_down(&g);
	}
	assert_true(parts > 5);
}

static void short_fault_moves_whole_sectors(void **state)
{
	struct rig g;
	struct replay_fault f = {.kind = REPLAY_SHORT, .nth = 1, .short_bytes = 1500};

	(void)state;
	rig_up(&g, 1);
	replay_fault_add(g.r, &f);
	memset(g.buf[0], 0xaa, 4096);
	assert_int_equal(one(&g, IO_WRITE, 0, 4096), 1024);
	assert_int_equal(one(&g, IO_WRITE, 0, 4096), 4096);
	rig_down(&g);
}

static void stuck_operation_takes_its_time(void **state)
{
	struct rig g;
	struct replay_fault f = {.kind = REPLAY_STUCK, .nth = 1, .delay_ns = 60000000000u};
	uint64_t t0;
	unsigned order[2];

	(void)state;
	rig_up(&g, 1);
	replay_fault_add(g.r, &f);
	t0 = replay_now(g.r);
	queue(&g, 0, IO_READ, 0, 512);
	queue(&g, 1, IO_READ, 0, 512);
	finish(&g, 2, order);
	assert_int_equal(order[0], 1);
	assert_true(replay_now(g.r) - t0 >= 60000000000u);
	rig_down(&g);
}

static void full_medium_refuses_growth_and_nothing_else(void **state)
{
	struct rig g;

	(void)state;
	rig_up(&g, 1);
	replay_set_capacity(g.r, SECTORS * 512 + 4096);
	assert_int_equal(one(&g, IO_EXTEND, SECTORS * 512, 8192), -ENOSPC);
	assert_int_equal(replay_file_size(g.r, 0), SECTORS * 512);
	assert_int_equal(one(&g, IO_EXTEND, SECTORS * 512, 4096), 0);
	assert_int_equal(one(&g, IO_WRITE, SECTORS * 512, 4096), 4096);
	assert_int_equal(one(&g, IO_WRITE, SECTORS * 512 + 4096, 512), -ENOSPC);
	assert_int_equal(g.b->ops->extend(g.b, 1 << 20), -ENOSPC);
	rig_down(&g);
}

static void shrunk_and_grown_again_reads_zero(void **state)
{
	struct rig g;
	unsigned char seen[4096];

	(void)state;
	rig_up(&g, 1);
	memset(g.buf[0], 0xaa, 8192);
	assert_int_equal(one(&g, IO_WRITE, 0, 8192), 8192);
	assert_int_equal(one(&g, IO_TRUNCATE, 512, 0), 0);
	assert_int_equal(one(&g, IO_READ, 0, 4096), 512);
	assert_int_equal(one(&g, IO_EXTEND, 512, 16384), 0);
	replay_file_peek(g.r, 0, 512, seen, 4096);
	assert_true(bytes_are_zero(seen, 4096));
	rig_down(&g);
}

static void storage_without_promise_shows_stale_bytes_and_logs_them(void **state)
{
	struct rig g;
	struct backing_traits t = {
	    .logical_bytes = 512, .physical_bytes = 512, .mem_align_bytes = 512, .can_punch = true};
	unsigned char seen[4096];
	const struct replay_rec *rec;
	size_t n;

	(void)state;
	rig_up_traits(&g, 1, &t);
	assert_int_equal(one(&g, IO_EXTEND, SECTORS * 512, 4096), 0);
	replay_file_peek(g.r, 0, SECTORS * 512, seen, 4096);
	assert_false(bytes_are_zero(seen, 4096));
	rec = replay_log(g.r, &n);
	assert_memory_equal(rec[0].data, seen, 4096);
	assert_int_equal(one(&g, IO_ZERO, SECTORS * 512 + 512, 1 << 20), 0);
	replay_file_peek(g.r, 0, SECTORS * 512, seen, 4096);
	assert_true(bytes_are_zero(seen + 512, 4096 - 512));
	assert_int_equal(replay_file_size(g.r, 0), SECTORS * 512 + 4096);
	rig_down(&g);
}

static void misaligned_io_is_refused_as_direct_io_does(void **state)
{
	struct rig g;
	struct backing_traits t = {.logical_bytes = 4096, .physical_bytes = 4096, .mem_align_bytes = 512};
	size_t n;

	(void)state;
	rig_up_traits(&g, 1, &t);
	assert_int_equal(one(&g, IO_READ, 512, 4096), -EINVAL);
	assert_int_equal(one(&g, IO_WRITE, 4096, 512), -EINVAL);
	assert_int_equal(one(&g, IO_PUNCH, 4096, 4096), -EOPNOTSUPP);
	g.buf[0] += 8;
	assert_int_equal(one(&g, IO_READ, 4096, 4096), -EINVAL);
	g.buf[0] -= 8;
	replay_log(g.r, &n);
	assert_int_equal(n, 0);
	rig_down(&g);
}

static void depth_is_a_bound_and_busy_an_answer(void **state)
{
	struct rig g;
	struct io extra = {.op = IO_FLUSH};

	(void)state;
	rig_up(&g, 1);
	extra.file = &g.file;
	for (unsigned i = 0; i < 16; i++)
		queue(&g, i, IO_FLUSH, 0, 0);
	assert_int_equal(g.e->ops->queue(g.e, &extra), -EBUSY);
	finish(&g, 16, NULL);
	rig_down(&g);
}

static void borrowed_pages_are_never_written(void **state)
{
	struct rig g;
	static unsigned char page[2][4096];
	const uint8_t *table[3] = {page[0], NULL, page[1]};
	const uint8_t *const *now;
	struct backing *b;
	unsigned char seen[4096];
	size_t n;

	(void)state;
	memset(page, 0x11, sizeof(page));
	rig_up(&g, 1);
	assert_int_equal(replay_file_add(g.r, "/m/p", 8192 + 1024, table), 1);
	assert_int_equal(replay_opener(g.r)->open(g.r, "/m/p", BACKING_WRITE, &b, NULL), 0);
	assert_int_equal(b->ops->write(b, 10, "xyz", 3), 0);
	assert_int_equal(page[0][10], 0x11);
	replay_file_peek(g.r, 1, 0, seen, 4096);
	assert_memory_equal(seen + 10, "xyz", 3);
	now = replay_file_pages(g.r, 1, &n);
	assert_int_equal(n, 3);
	assert_true(now[0] != page[0] && now[1] == NULL && now[2] == page[1]);
	b->ops->close(b);
	rig_down(&g);
}

static void second_fence_is_busy_until_the_first_is_closed(void **state)
{
	struct rig g;
	struct backing *b;

	(void)state;
	rig_up(&g, 1);
	assert_int_equal(g.b->ops->fence(g.b, 0), 0);
	assert_int_equal(replay_opener(g.r)->open(g.r, "/m/a", BACKING_WRITE, &b, NULL), 0);
	assert_int_equal(b->ops->fence(b, 0), -EBUSY);
	b->ops->close(b);
	rig_down(&g);
}

static void opener_creates_only_new_files_and_read_only_cannot_write(void **state)
{
	struct rig g;
	struct backing *b;
	struct err err = ERR_INIT;

	(void)state;
	rig_up(&g, 1);
	assert_int_equal(replay_opener(g.r)->open(g.r, "/m/a", BACKING_CREATE, &b, &err), -EEXIST);
	assert_int_equal(replay_opener(g.r)->open(g.r, "/m/none", 0, &b, &err), -ENOENT);
	assert_int_equal(replay_opener(g.r)->open(g.r, "/m//new", BACKING_CREATE, &b, &err), 0);
	assert_int_equal(b->ops->write(b, 0, "q", 1), 0);
	assert_int_equal(replay_file_size(g.r, replay_file_find(g.r, "/m/new")), 1);
	b->ops->close(b);
	assert_int_equal(replay_opener(g.r)->open(g.r, "/m/a", 0, &b, &err), 0);
	assert_int_equal(b->ops->write(b, 0, "q", 1), -EBADF);
	b->ops->close(b);
	rig_down(&g);
}

static void dropped_operations_never_complete_nor_act(void **state)
{
	struct rig g;
	struct list done, ready;
	const struct replay_rec *rec;
	unsigned char seen[512];
	size_t n;

	(void)state;
	rig_up(&g, 1);
	memset(g.buf[0], 0xaa, 512);
	queue(&g, 0, IO_WRITE, 0, 512);
	list_init(&done);
	list_init(&ready);
	g.e->ops->turn(g.e, 0, &done, &ready);
	queue(&g, 1, IO_FLUSH, 0, 0);
	replay_drop_in_flight(g.r);
	assert_int_equal(g.e->in_flight, 0);
	g.e->ops->turn(g.e, replay_now(g.r) + 1000000000u, &done, &ready);
	assert_true(list_empty(&done));
	rec = replay_log(g.r, &n);
	assert_int_equal(n, 1);
	assert_true(rec[0].completed_at == REPLAY_PENDING);
	replay_file_peek(g.r, 0, 0, seen, 512);
	assert_true(bytes_are_zero(seen, 512));
	rig_down(&g);
}

static void engine_without_a_medium_is_refused(void **state)
{
	struct io_engine *e;
	struct err err = ERR_INIT;

	(void)state;
	replay_bind(NULL);
	assert_int_equal(io_replay_engine.create(4, &e, &err), -ENXIO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(same_seed_gives_the_same_log),
	    cmocka_unit_test(another_seed_gives_another_order),
	    cmocka_unit_test(completions_do_not_follow_submission),
	    cmocka_unit_test(write_acts_when_it_completes),
	    cmocka_unit_test(deadline_ends_a_turn_and_moves_the_clock),
	    cmocka_unit_test(log_holds_both_ways_in_with_their_events),
	    cmocka_unit_test(nth_matching_operation_fails_and_only_that),
	    cmocka_unit_test(torn_failure_lands_a_part_and_tells_how_much),
	    cmocka_unit_test(short_fault_moves_whole_sectors),
	    cmocka_unit_test(stuck_operation_takes_its_time),
	    cmocka_unit_test(full_medium_refuses_growth_and_nothing_else),
	    cmocka_unit_test(shrunk_and_grown_again_reads_zero),
	    cmocka_unit_test(storage_without_promise_shows_stale_bytes_and_logs_them),
	    cmocka_unit_test(misaligned_io_is_refused_as_direct_io_does),
	    cmocka_unit_test(depth_is_a_bound_and_busy_an_answer),
	    cmocka_unit_test(borrowed_pages_are_never_written),
	    cmocka_unit_test(second_fence_is_busy_until_the_first_is_closed),
	    cmocka_unit_test(opener_creates_only_new_files_and_read_only_cannot_write),
	    cmocka_unit_test(dropped_operations_never_complete_nor_act),
	    cmocka_unit_test(engine_without_a_medium_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
