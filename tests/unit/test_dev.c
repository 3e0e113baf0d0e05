/* Claims about the executor: order, overlaps, durability, faults. */
#include "tests/lib/devrig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>
#include <dirent.h>

#include <cmocka.h>

#define MIB (1ull << 20)

static unsigned char buf[4u << 20], got[4u << 20];

static void up(struct devrig *g, enum write_mode mode)
{
	struct err e = ERR_INIT;

	rig_medium(g, 1, 16 * MIB, 5 * MIB, NULL);
	if (rig_open(g, mode, &e))
		rig_die("open", &e);
}

static void down(struct devrig *g)
{
	rig_close(g);
	rig_free(g);
}

static void assert_golden(const unsigned char *p, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		assert_int_equal(p[i], off + i < 5 * MIB ? (off + i) / 512 % 251 + 1 : 0);
}

static void read_falls_to_the_parent_and_beyond_it_reads_zero(void **state)
{
	struct devrig g;

	(void)state;
	up(&g, WRITE_AUTO);
	assert_int_equal(rig_do(&g, BLK_READ, 5 * MIB - 256 * 1024, 512 * 1024, got), 0);
	assert_golden(got, 5 * MIB - 256 * 1024, 512 * 1024);
	assert_int_equal(rig_do(&g, BLK_READ, 512, 512, got), 0);
	assert_golden(got, 512, 512);
	down(&g);
}

static void written_sectors_read_back_and_neighbours_stay(void **state)
{
	struct devrig g;

	(void)state;
	up(&g, WRITE_AUTO);
	memset(buf, 0xee, sizeof(buf));
	assert_int_equal(rig_do(&g, BLK_WRITE, 2 * MIB - 1536, 3072, buf), 0);
	assert_int_equal(rig_do(&g, BLK_READ, 2 * MIB - 4096, 8192, got), 0);
	assert_golden(got, 2 * MIB - 4096, 4096 - 1536);
	assert_memory_equal(got + 4096 - 1536, buf, 3072);
	assert_golden(got + 4096 + 1536, 2 * MIB + 1536, 4096 - 1536);
	rig_close(&g);
	assert_int_equal(rig_open(&g, WRITE_AUTO, NULL), 0);
	assert_int_equal(rig_do(&g, BLK_READ, 2 * MIB - 1536, 3072, got), 0);
	assert_memory_equal(got, buf, 3072);
	down(&g);
}

/* Is every write to the leaf that completed before `event` covered by a flush that was submitted later and
 * completed before it? */
static bool all_flushed_before(struct devrig *g, uint64_t event)
{
	int leaf = replay_file_find(g->medium, "/m/leaf.vhd");
	size_t n;
	const struct replay_rec *log = replay_log(g->medium, &n);

	for (size_t i = 0; i < n; i++) {
		bool covered = false;

		if (log[i].file != (unsigned)leaf || log[i].op != IO_WRITE || log[i].completed_at >= event)
			continue;
		for (size_t k = 0; k < n && !covered; k++)
			covered = log[k].file == (unsigned)leaf && log[k].op == IO_FLUSH &&
				  log[k].submitted_at > log[i].completed_at && log[k].completed_at < event;
		if (!covered)
			return false;
	}
	return true;
}

static void through_answers_a_write_when_it_is_durable(void **state)
{
	struct devrig g;
	struct rig_req *r;

	(void)state;
	up(&g, WRITE_AUTO);
	r = rig_put(&g, 0, BLK_WRITE, 0, 4096, buf);
	assert_true(rig_wait(&g, r));
	assert_true(all_flushed_before(&g, r->answered_event));
	r = rig_put(&g, 0, BLK_WRITE, 0, 4096, buf); /* an overwrite too */
	assert_true(rig_wait(&g, r));
	assert_true(all_flushed_before(&g, r->answered_event));
	down(&g);
}

static char *make_run_dir(void)
{
	static char dir[64];

	strcpy(dir, "/tmp/blkd-dev-XXXXXX");
	assert_non_null(mkdtemp(dir));
	return dir;
}

static unsigned files_in(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *ent;
	unsigned n = 0;

	while ((ent = readdir(d)))
		n += ent->d_name[0] != '.';
	closedir(d);
	return n;
}

static void auto_turns_to_back_after_the_first_flush(void **state)
{
	struct devrig g;
	struct rig_req *r;
	struct err e = ERR_INIT;

	(void)state;
	rig_medium(&g, 1, 16 * MIB, 5 * MIB, NULL);
	g.run_dir = make_run_dir();
	assert_int_equal(rig_open(&g, WRITE_AUTO, &e), 0);
	assert_int_equal(rig_do(&g, BLK_FLUSH, 0, 0, NULL), 0);
	r = rig_put(&g, 0, BLK_WRITE, 8 * MIB, 4096, buf);
	assert_true(rig_wait(&g, r));
	assert_int_equal(r->req.status, 0);
	assert_false(all_flushed_before(&g, r->answered_event));
	r = rig_put(&g, 0, BLK_FLUSH, 0, 0, NULL);
	assert_true(rig_wait(&g, r));
	assert_true(all_flushed_before(&g, r->answered_event));
	rig_close(&g);
	assert_int_equal(files_in(g.run_dir), 0);
	rmdir(g.run_dir);
	rig_free(&g);
}

static void answered_write_survives_the_death_of_the_process(void **state)
{
	struct devrig g;
	struct err e = ERR_INIT;

	(void)state;
	rig_medium(&g, 1, 16 * MIB, 5 * MIB, NULL);
	g.run_dir = make_run_dir();
	assert_int_equal(rig_open(&g, WRITE_BACK, &e), 0);
	for (unsigned i = 0; i < 8; i++) {
		memset(buf, (int)(0x40 + i), 4096);
		assert_int_equal(rig_do(&g, BLK_WRITE, (i * 2 + 1) * MIB - 2048, 4096, buf), 0);
	}
	replay_drop_in_flight(g.medium);
	dev_abandon(g.dev);
	if (rig_open(&g, WRITE_BACK, &e))
		rig_die("reopen", &e);
	for (unsigned i = 0; i < 8; i++) {
		memset(buf, (int)(0x40 + i), 4096);
		assert_int_equal(rig_do(&g, BLK_READ, (i * 2 + 1) * MIB - 2048, 4096, got), 0);
		assert_memory_equal(got, buf, 4096);
	}
	rig_close(&g);
	rmdir(g.run_dir);
	rig_free(&g);
}

static void overlapping_requests_act_in_order_of_arrival(void **state)
{
	struct devrig g;

	(void)state;
	for (unsigned round = 0; round < 20; round++) {
		struct rig_req *r[6];
		unsigned char *a = buf, *b = buf + 65536, *c = buf + 131072;

		rig_medium(&g, round, 16 * MIB, 5 * MIB, NULL);
		assert_int_equal(rig_open(&g, WRITE_AUTO, NULL), 0);
		memset(a, 1, 65536);
		memset(b, 2, 65536);
		memset(c, 3, 65536);
		r[0] = rig_put(&g, 0, BLK_WRITE, MIB, 65536, a);
		r[1] = rig_put(&g, 1, BLK_READ, MIB + 4096, 4096, got);
		r[2] = rig_put(&g, 2, BLK_WRITE, MIB + 4096, 4096, b);
		r[3] = rig_put(&g, 3, BLK_READ, MIB, 8192 + 4096, got + 65536);
		r[4] = rig_put(&g, 4, BLK_WRITE, MIB, 65536, c);
		r[5] = rig_put(&g, 5, BLK_READ, MIB, 65536, got + 131072);
		for (unsigned i = 0; i < 6; i++)
			assert_true(rig_wait(&g, r[i]));
		assert_true(r[1]->order > r[0]->order && r[2]->order > r[1]->order &&
			    r[3]->order > r[2]->order);
		assert_memory_equal(got, a, 4096);
		assert_memory_equal(got + 65536, a, 4096);
		assert_memory_equal(got + 65536 + 4096, b, 4096);
		assert_memory_equal(got + 131072, c, 65536);
		down(&g);
	}
}

static void barrier_runs_alone_and_is_durable(void **state)
{
	struct devrig g;
	struct rig_req *before, *bar, *after;

	(void)state;
	up(&g, WRITE_AUTO);
	before = rig_put(&g, 0, BLK_WRITE, MIB, 4096, buf);
	bar = rig_put(&g, 1, BLK_BARRIER, 3 * MIB, 4096, buf);
	after = rig_put(&g, 2, BLK_WRITE, 5 * MIB, 4096, buf);
	(void)rig_put(&g, 3, BLK_BARRIER, 0, 0, NULL);
	assert_true(rig_wait(&g, &g.req[3]));
	assert_true(before->order == 1 && bar->order == 2 && after->order == 3 && g.req[3].order == 4);
	assert_true(all_flushed_before(&g, bar->answered_event));
	down(&g);
}

static void trimmed_sectors_never_uncover_the_parent(void **state)
{
	struct devrig g;

	(void)state;
	up(&g, WRITE_AUTO);
	memset(buf, 0xaa, 65536);
	assert_int_equal(rig_do(&g, BLK_WRITE, MIB, 65536, buf), 0);
	assert_int_equal(rig_do(&g, BLK_TRIM, MIB, 65536, NULL), 0);
	assert_int_equal(rig_do(&g, BLK_READ, MIB, 65536, got), 0);
	for (unsigned i = 0; i < 65536; i++)
		assert_true(got[i] == 0 || got[i] == 0xaa);
	assert_int_equal(rig_do(&g, BLK_TRIM, 0, 16 * MIB, NULL), 0);
	assert_int_equal(rig_do(&g, BLK_ZERO, MIB + 512, 3 * MIB, NULL), 0);
	assert_int_equal(rig_do(&g, BLK_READ, MIB + 512, MIB, got), 0);
	assert_true(bytes_are_zero(got, MIB));
	assert_int_equal(rig_do(&g, BLK_READ, 4 * MIB + 512, 512 * 1024, got), 0);
	assert_golden(got, 4 * MIB + 512, 512 * 1024);
	down(&g);
}

static bool is_write(void *ctx, const struct replay_rec *rec)
{
	(void)ctx;
	return rec->op == IO_WRITE && !rec->sync;
}

static bool is_flush(void *ctx, const struct replay_rec *rec)
{
	(void)ctx;
	return rec->op == IO_FLUSH && !rec->sync;
}

static void failed_write_fails_alone_and_the_disk_goes_on(void **state)
{
	struct replay_fault f = {.kind = REPLAY_FAIL, .nth = 1, .match = is_write, .error = EIO};
	struct devrig g;

	(void)state;
	up(&g, WRITE_AUTO);
	memset(buf, 0x77, 4096);
	replay_fault_add(g.medium, &f);
	assert_int_equal(rig_do(&g, BLK_WRITE, MIB, 4096, buf), -EIO);
	assert_int_equal(rig_do(&g, BLK_READ, MIB, 4096, got), 0);
	assert_golden(got, MIB, 4096);
	assert_int_equal(rig_do(&g, BLK_WRITE, MIB, 4096, buf), 0);
	assert_int_equal(rig_do(&g, BLK_READ, MIB, 4096, got), 0);
	assert_memory_equal(got, buf, 4096);
	down(&g);
}

static void failed_flush_poisons_the_image_and_its_journal(void **state)
{
	struct replay_fault f = {.kind = REPLAY_FAIL, .nth = 1, .match = is_flush, .error = EIO};
	struct devrig g;
	struct err e = ERR_INIT;

	(void)state;
	rig_medium(&g, 1, 16 * MIB, 5 * MIB, NULL);
	g.run_dir = make_run_dir();
	assert_int_equal(rig_open(&g, WRITE_BACK, &e), 0);
	assert_int_equal(rig_do(&g, BLK_WRITE, MIB, 4096, buf), 0);
	replay_fault_add(g.medium, &f);
	assert_int_equal(rig_do(&g, BLK_FLUSH, 0, 0, NULL), -EIO);
	assert_int_equal(rig_do(&g, BLK_FLUSH, 0, 0, NULL), -EIO);
	assert_true(dev_destroy(g.dev, &e) < 0);
	assert_int_equal(rig_open(&g, WRITE_BACK, &e), -EIO);
	assert_non_null(strstr(e.text, "flush"));
	assert_int_equal(files_in(g.run_dir), 1);
	char cmd[128];
	snprintf(cmd, sizeof(cmd), "rm -r %s", g.run_dir);
	assert_int_equal(system(cmd), 0);
	rig_free(&g);
}

static void full_disk_fails_the_write_and_keeps_the_image(void **state)
{
	struct devrig g;
	struct err e = ERR_INIT;
	unsigned failed = 0;

	(void)state;
	rig_medium(&g, 1, 512 * MIB, 0, NULL);
	if (rig_open(&g, WRITE_AUTO, &e))
		rig_die("open", &e);
	replay_set_capacity(g.medium, 100 * MIB);
	memset(buf, 0x11, 4096);
	for (unsigned i = 0; i < 128; i++) {
		int res = rig_do(&g, BLK_WRITE, i * 4 * MIB, 4096, buf);

		assert_true(res == 0 || res == -ENOSPC);
		failed += res != 0;
		assert_int_equal(rig_do(&g, BLK_READ, i * 4 * MIB, 4096, got), 0);
		assert_int_equal(got[0], res ? 0 : 0x11);
	}
	assert_in_range(failed, 1, 127);
	replay_set_capacity(g.medium, 2048 * MIB);
	assert_int_equal(rig_do(&g, BLK_WRITE, 508 * MIB, 4096, buf), 0);
	down(&g);
}

static void storage_of_4k_blocks_is_written_by_read_modify_write(void **state)
{
	struct backing_traits t = {.logical_bytes = 4096,
				   .physical_bytes = 4096,
				   .mem_align_bytes = 4096,
				   .zeroes_on_allocate = true,
				   .can_fallocate = true,
				   .can_punch = true};
	struct devrig g;
	struct err e = ERR_INIT;

	(void)state;
	rig_medium(&g, 7, 16 * MIB, 5 * MIB, &t);
	if (rig_open(&g, WRITE_AUTO, &e))
		rig_die("open", &e);
	for (unsigned i = 0; i < 16; i++) {
		memset(buf + i * 512, (int)i + 1, 512);
		(void)rig_put(&g, i, BLK_WRITE, 8 * MIB + i * 512, 512, buf + i * 512);
	}
	for (unsigned i = 0; i < 16; i++)
		assert_true(rig_wait(&g, &g.req[i]) && !g.req[i].req.status);
	assert_int_equal(rig_do(&g, BLK_READ, 8 * MIB, 8192, got), 0);
	assert_memory_equal(got, buf, 8192);
	assert_int_equal(rig_do(&g, BLK_READ, MIB + 512, 1024, got), 0);
	assert_golden(got, MIB + 512, 1024);
	down(&g);
}

static void random_load_matches_a_flat_model(void **state)
{
	static unsigned char model[16u << 20], wbuf[16][65536], rbuf[16][65536];
	struct replay_shape shape = {.delay_min_ns = 1000, .delay_max_ns = 300000, .short_permille = 100};

	(void)state;
	for (unsigned seed = 1; seed <= 12; seed++) {
		struct devrig g;
		unsigned rng = seed * 2654435761u, done = 0;

		rig_medium(&g, seed, 16 * MIB, 5 * MIB, NULL);
		replay_set_shape(g.medium, &shape);
		assert_int_equal(rig_open(&g, seed % 2 ? WRITE_AUTO : WRITE_BACK, NULL), 0);
		for (uint64_t i = 0; i < 16 * MIB; i++)
			model[i] = (unsigned char)(i < 5 * MIB ? i / 512 % 251 + 1 : 0);
		while (done < 1500) {
			for (unsigned i = 0; i < 16; i++) {
				struct rig_req *r = &g.req[i];
				uint64_t off, len;

				if (r->busy && !r->answered)
					continue;
				if (r->busy) {
					assert_int_equal(r->req.status, 0);
					if (r->req.op == BLK_READ)
						assert_memory_equal(rbuf[i], model + r->req.off_bytes,
								    r->req.len_bytes);
					done++;
				}
				rng = rng * 1664525u + 1013904223u;
				/* each slot has its own megabyte: no overlaps, so the model is exact at any
				 * time */
				off = i * MIB + (rng >> 8) % 2000 * 512;
				rng = rng * 1664525u + 1013904223u;
				len = u64_min(((rng >> 8) % 128 + 1) * 512, (i + 1) * MIB - off);
				switch ((rng >> 4) % 8) {
				case 0:
				case 1:
				case 2:
					memset(wbuf[i], (int)(rng >> 24), len);
					memcpy(model + off, wbuf[i], len);
					rig_put(&g, i, BLK_WRITE, off, len, wbuf[i]);
					break;
				case 3:
					memset(model + off, 0, len);
					rig_put(&g, i, BLK_ZERO, off, len, NULL);
					break;
				case 4:
					rig_put(&g, i, BLK_FLUSH, 0, 0, NULL);
					break;
				default:
					rig_put(&g, i, BLK_READ, off, len, rbuf[i]);
				}
				r->busy = true;
			}
			dev_turn(g.dev, IO_DEADLINE_NONE);
		}
		for (unsigned i = 0; i < 16; i++)
			assert_true(rig_wait(&g, &g.req[i]));
		rig_close(&g);
		assert_int_equal(rig_open(&g, WRITE_AUTO, NULL), 0);
		for (unsigned i = 0; i < 16; i++) {
			assert_int_equal(rig_do(&g, BLK_READ, i * MIB, MIB, got), 0);
			assert_memory_equal(got, model + i * MIB, MIB);
		}
		down(&g);
	}
}

static void dirty_image_is_committed_when_idle(void **state)
{
	struct devrig g;
	struct rig_req *r;
	uint64_t t0;

	(void)state;
	rig_medium(&g, 1, 16 * MIB, 5 * MIB, NULL);
	g.run_dir = make_run_dir();
	assert_int_equal(rig_open(&g, WRITE_BACK, NULL), 0);
	r = rig_put(&g, 0, BLK_WRITE, MIB, 4096, buf);
	assert_true(rig_wait(&g, r));
	t0 = replay_now(g.medium);
	while (replay_now(g.medium) < t0 + 2000000000ull)
		dev_turn(g.dev, t0 + 2000000000ull);
	assert_true(all_flushed_before(&g, replay_events(g.medium)));
	rig_close(&g);
	rmdir(g.run_dir);
	rig_free(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(read_falls_to_the_parent_and_beyond_it_reads_zero),
	    cmocka_unit_test(written_sectors_read_back_and_neighbours_stay),
	    cmocka_unit_test(through_answers_a_write_when_it_is_durable),
	    cmocka_unit_test(auto_turns_to_back_after_the_first_flush),
	    cmocka_unit_test(answered_write_survives_the_death_of_the_process),
	    cmocka_unit_test(overlapping_requests_act_in_order_of_arrival),
	    cmocka_unit_test(barrier_runs_alone_and_is_durable),
	    cmocka_unit_test(trimmed_sectors_never_uncover_the_parent),
	    cmocka_unit_test(failed_write_fails_alone_and_the_disk_goes_on),
	    cmocka_unit_test(failed_flush_poisons_the_image_and_its_journal),
	    cmocka_unit_test(full_disk_fails_the_write_and_keeps_the_image),
	    cmocka_unit_test(storage_of_4k_blocks_is_written_by_read_modify_write),
	    cmocka_unit_test(random_load_matches_a_flat_model),
	    cmocka_unit_test(dirty_image_is_committed_when_idle),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
