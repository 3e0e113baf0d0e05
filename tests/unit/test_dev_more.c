/* Claims about the executor's edges: fairness, waiting without spinning, failures at the end, large discards.
 */
#include "tests/lib/devrig.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

#define MIB (1ull << 20)

static unsigned char buf[1u << 20], got[128][4096];
static struct devrig g;
static char run_dir[64];

static void make_run_dir(void)
{
	strcpy(run_dir, "/tmp/blkd-more-XXXXXX");
	assert_non_null(mkdtemp(run_dir));
	g.run_dir = run_dir;
}

static void drop_run_dir(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -r %s", run_dir);
	assert_int_equal(system(cmd), 0);
}

static void up(const struct rig_shape *o, enum write_mode mode, bool journal, unsigned conns,
	       unsigned max_requests)
{
	struct err e = ERR_INIT;

	rig_medium_of(&g, o);
	if (journal)
		make_run_dir();
	g.n_conns = conns;
	g.max_requests = max_requests;
	if (rig_open(&g, mode, &e))
		rig_die("open", &e);
}

static void down(void)
{
	rig_close(&g);
	rig_free(&g);
	if (g.run_dir)
		drop_run_dir();
}

static uint64_t turns(void)
{
	struct dev_stats s;

	dev_stats(g.dev, &s);
	return s.turns;
}

static bool is_flush(void *ctx, const struct replay_rec *rec)
{
	(void)ctx;
	return rec->op == IO_FLUSH && !rec->sync;
}

static bool is_meta_write(void *ctx, const struct replay_rec *rec)
{
	(void)ctx;
	return rec->op == IO_WRITE && !rec->sync && rec->len_bytes == 512;
}

/* ---- poison ---- */

static void failed_flush_of_the_last_commit_poisons_the_journal(void **state)
{
	struct replay_fault f = {.kind = REPLAY_FAIL, .nth = 1, .match = is_flush, .error = EIO};
	const struct rig_shape o = {.seed = 1, .size_bytes = 16 * MIB, .parents = 1};
	struct err e = ERR_INIT;

	(void)state;
	for (unsigned nth = 1; nth <= 4; nth++) {
		up(&o, WRITE_BACK, true, 1, 0);
		assert_int_equal(rig_do(&g, BLK_WRITE, MIB, 4096, buf), 0);
		for (unsigned i = 0; i < 2000; i++) /* what grows ahead of need ends first */
			dev_turn(g.dev, replay_now(g.medium) + 10000);
		f.nth = nth;
		replay_fault_add(g.medium, &f);
		if (dev_destroy(g.dev, &e) == 0) {
			assert_true(nth > 2); /* fewer flushes than that */
			drop_run_dir();
			rig_free(&g);
			continue;
		}
		replay_fault_clear(g.medium);
		assert_int_equal(rig_open(&g, WRITE_BACK, &e), -EIO);
		assert_non_null(strstr(e.text, "flush"));
		g.poison_clear = true;
		assert_int_equal(rig_open(&g, WRITE_BACK, &e), 0);
		down();
	}
}

/* ---- failing commits ---- */

static void failing_commits_are_not_repeated_at_full_speed(void **state)
{
	struct replay_fault f = {.kind = REPLAY_FAIL, .match = is_meta_write, .error = EIO};
	const struct rig_shape o = {.seed = 1, .size_bytes = 16 * MIB, .parents = 1};
	struct dev_stats before, after;
	uint64_t until;

	(void)state;
	up(&o, WRITE_BACK, true, 1, 0);
	for (unsigned i = 0; i < 6400; i++) { /* room grows up to 8192 records */
		if (i == 300)
			replay_fault_add(g.medium, &f);
		(void)rig_put(&g, 0, BLK_WRITE, i * 2048, 1024, buf);
		(void)rig_wait(&g, &g.req[0]);
	}
	dev_stats(g.dev, &before);
	until = replay_now(g.medium) + 3000000000u;
	while (replay_now(g.medium) < until)
		dev_turn(g.dev, until);
	dev_stats(g.dev, &after);
	assert_in_range(after.commits - before.commits, 1, 5); /* the idle pace */
	replay_fault_clear(g.medium);
	down();
}

/* ---- waiting ---- */

static bool is_read(void *ctx, const struct replay_rec *rec)
{
	(void)ctx;
	return rec->op == IO_READ && !rec->sync;
}

static void requests_without_a_pending_page_wait_without_spinning(void **state)
{
	struct replay_fault f = {.kind = REPLAY_STUCK, .match = is_read, .delay_ns = 50000000};
	const struct rig_shape o = {.seed = 1,
				    .size_bytes = 512 * MIB,
				    .golden_bytes = 300 * MIB,
				    .parents = 2,
				    .cache_bytes = 8u << 20};

	(void)state;
	up(&o, WRITE_AUTO, false, 1, 0);
	replay_fault_add(g.medium, &f);
	for (unsigned i = 0; i < 120; i++)
		(void)rig_put(&g, i, BLK_READ, i * 2 * MIB + MIB, 4096, got[i]);
	for (unsigned i = 0; i < 120; i++)
		assert_true(rig_wait(&g, &g.req[i]) && !g.req[i].req.status);
	assert_true(turns() < 2000);
	down();
}

static unsigned turned;

static void counted_turn(struct io_engine *e, uint64_t deadline_ns, struct list *done, struct list *ready)
{
	turned++;
	io_replay_engine.turn(e, deadline_ns, done, ready);
}

static void stopping_waits_without_spinning(void **state)
{
	struct replay_fault f = {.kind = REPLAY_STUCK, .match = is_flush, .delay_ns = 100000000};
	const struct rig_shape o = {.seed = 1, .size_bytes = 64 * MIB, .parents = 1};
	struct io_engine_ops counting = io_replay_engine;
	struct disk_opts dopts = {.path = "/m/leaf.vhd", .writable = true, .opener = NULL};
	struct dev_opts opts = {.name = "stop", .engine = &counting, .write_mode = WRITE_BACK};
	struct err e = ERR_INIT;
	struct disk *disk;

	(void)state;
	counting.turn = counted_turn;
	rig_medium_of(&g, &o);
	make_run_dir();
	dopts.opener = replay_opener(g.medium);
	dopts.run_dir = run_dir;
	opts.pool = g.pool;
	opts.cache = g.cache;
	g.n_conns = 1;
	assert_int_equal(disk_open(&dopts, &disk, &e), 0);
	assert_int_equal(dev_create(disk, &opts, false, &g.dev, &e), 0);
	g.conn[0] = (struct rig_conn){.g = &g};
	g.conn[0].t.ops = &rig_ops;
	dev_attach(g.dev, &g.conn[0].t);
	assert_int_equal(rig_do(&g, BLK_WRITE, MIB, 4096, buf), 0);
	replay_fault_add(g.medium, &f);
	turned = 0;
	rig_close(&g);
	assert_true(turned < 200);
	rig_free(&g);
	drop_run_dir();
}

/* ---- fairness ---- */

static void connections_share_a_full_device(void **state)
{
	const struct rig_shape o = {.seed = 1, .size_bytes = 16 * MIB, .golden_bytes = 8 * MIB, .parents = 1};
	unsigned answered[2] = {0, 0};

	(void)state;
	up(&o, WRITE_AUTO, false, 2, 4);
	while (answered[0] + answered[1] < 1000) {
		for (unsigned i = 0; i < 16; i++)
			if (g.req[i].answered || !g.req[i].req.transport) {
				answered[i % 2] += g.req[i].answered;
				(void)rig_put(&g, i, BLK_READ, i * 65536, 4096, got[i]);
			}
		dev_turn(g.dev, IO_DEADLINE_NONE);
	}
	assert_in_range(answered[0], 300, 700);
	for (unsigned i = 0; i < 16; i++)
		assert_true(rig_wait(&g, &g.req[i]));
	down();
}

static void large_discard_lets_others_pass(void **state)
{
	const struct rig_shape o = {.seed = 1, .size_bytes = 1024 * 1024 * MIB};
	struct rig_req *trim, *zero, *read;

	(void)state;
	up(&o, WRITE_AUTO, false, 1, 0);
	trim = rig_put(&g, 0, BLK_TRIM, 0, 512 * 1024 * MIB, NULL);
	zero = rig_put(&g, 1, BLK_ZERO, 512 * 1024 * MIB, 511 * 1024 * MIB, NULL);
	read = rig_put(&g, 2, BLK_READ, 1023 * 1024 * MIB, 4096, got[0]);
	assert_true(rig_wait(&g, read));
	assert_true(!trim->answered && !zero->answered);
	assert_true(rig_wait(&g, trim) && rig_wait(&g, zero));
	assert_int_equal(trim->req.status, 0);
	assert_int_equal(zero->req.status, 0);
	down();
}

/* ---- what is answered when ---- */

static bool flushed_before(uint64_t event)
{
	size_t n;
	const struct replay_rec *log = replay_log(g.medium, &n);

	for (size_t i = 0; i < n; i++)
		if (log[i].op == IO_FLUSH && !log[i].sync && log[i].completed_at < event)
			return true;
	return false;
}

static void overwrite_in_write_back_needs_no_journal(void **state)
{
	const struct rig_shape o = {.seed = 1, .size_bytes = 16 * MIB};
	const struct backing_opener *op;
	struct disk_opts dopts = {.path = "/m/disk.raw", .format = "raw", .writable = true};
	struct dev_opts opts = {.name = "raw", .engine = &io_replay_engine, .write_mode = WRITE_BACK};
	struct err e = ERR_INIT;
	struct disk *disk;

	(void)state;
	rig_medium_of(&g, &o);
	assert_true(replay_file_add(g.medium, "/m/disk.raw", 4 * MIB, NULL) >= 0);
	op = replay_opener(g.medium);
	dopts.opener = op;
	opts.pool = g.pool;
	opts.cache = g.cache;
	g.n_conns = 1;
	assert_int_equal(disk_open(&dopts, &disk, &e), 0);
	assert_int_equal(dev_create(disk, &opts, false, &g.dev, &e), 0);
	g.conn[0] = (struct rig_conn){.g = &g};
	g.conn[0].t.ops = &rig_ops;
	dev_attach(g.dev, &g.conn[0].t);
	assert_int_equal(rig_do(&g, BLK_WRITE, MIB, 4096, buf), 0);
	assert_false(flushed_before(g.req[0].answered_event));
	g.req[0].req.fua = false;
	assert_int_equal(rig_do(&g, BLK_FLUSH, 0, 0, NULL), 0);
	assert_true(flushed_before(g.req[0].answered_event));
	rig_close(&g);
	rig_free(&g);
}

static void interrupted_operation_is_repeated(void **state)
{
	struct replay_fault f = {.kind = REPLAY_FAIL, .nth = 1, .match = is_read, .error = EINTR};
	const struct rig_shape o = {.seed = 1, .size_bytes = 16 * MIB, .golden_bytes = 8 * MIB, .parents = 1};

	(void)state;
	up(&o, WRITE_AUTO, false, 1, 0);
	for (unsigned i = 0; i < 4; i++) {
		replay_fault_clear(g.medium);
		replay_fault_add(g.medium, &f);
		assert_int_equal(rig_do(&g, BLK_READ, i * MIB + 512, 4096, got[0]), 0);
		assert_int_equal(got[0][0], (i * MIB / 512 + 1) % 251 + 1);
	}
	down();
}

static void durable_storage_answers_flushes_and_barriers_without_io(void **state)
{
	const struct backing_traits t = {.logical_bytes = 512,
					 .physical_bytes = 4096,
					 .mem_align_bytes = 512,
					 .durable_at_completion = true,
					 .zeroes_on_allocate = true,
					 .can_fallocate = true,
					 .can_punch = true};
	const struct rig_shape o = {.seed = 1, .size_bytes = 16 * MIB, .parents = 1, .traits = &t};
	struct dev_stats s;

	(void)state;
	up(&o, WRITE_AUTO, false, 2, 0);
	assert_int_equal(rig_do(&g, BLK_WRITE, MIB, 4096, buf), 0);
	for (unsigned i = 0; i < 8; i++) {
		(void)rig_put(&g, 2 * i, BLK_FLUSH, 0, 0, NULL);
		(void)rig_put(&g, 2 * i + 1, BLK_BARRIER, i * MIB, i % 2 * 4096, i % 2 ? buf : NULL);
	}
	for (unsigned i = 0; i < 16; i++)
		assert_true(rig_wait(&g, &g.req[i]) && !g.req[i].req.status);
	dev_stats(g.dev, &s);
	assert_int_equal(s.reqs[BLK_BARRIER], 8);
	down();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(failed_flush_of_the_last_commit_poisons_the_journal),
	    cmocka_unit_test(failing_commits_are_not_repeated_at_full_speed),
	    cmocka_unit_test(requests_without_a_pending_page_wait_without_spinning),
	    cmocka_unit_test(stopping_waits_without_spinning),
	    cmocka_unit_test(connections_share_a_full_device),
	    cmocka_unit_test(large_discard_lets_others_pass),
	    cmocka_unit_test(overwrite_in_write_back_needs_no_journal),
	    cmocka_unit_test(interrupted_operation_is_repeated),
	    cmocka_unit_test(durable_storage_answers_flushes_and_barriers_without_io),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
