/* Commits of a VHD: which acts in which order, what the copies hold, what a failure leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/vhdwrite.h"

#include "formats/vhd/vhd_write.h"

#define BLK   65536u
#define BELOW 0xbb

static struct mem_file *file;
static struct image *img;

static int setup(void **state)
{
	struct vw_image_opts o = {.size_bytes = 400 * BLK, .block_bytes = BLK, .batmap = true};

	(void)state;
	file = vw_create("/t.vhd", &o);
	img = vw_open_write(file);
	return img ? 0 : -1;
}

static int setup_durable(void **state)
{
	struct vw_image_opts o = {.size_bytes = 400 * BLK, .block_bytes = BLK, .batmap = true};

	(void)state;
	file = vw_create("/t.vhd", &o);
	file->traits.durable_at_completion = true;
	img = vw_open_write(file);
	return img ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	vhd_close(img);
	mem_file_put(file);
	return 0;
}

static uint32_t bat_on_medium(uint32_t block)
{
	unsigned char raw[4];

	mem_peek(file, vhd_of(img)->bat_off + block * 4ull, raw, 4);
	return be32_load(raw);
}

static bool bit_on_medium(uint32_t block, uint32_t sector)
{
	unsigned char bits[512];

	mem_peek(file, vhd_of(img)->bat[block] * 512ull, bits, 512);
	return vhd_bit(bits, sector);
}

static void write_sector(uint32_t block, uint32_t sector)
{
	assert_true(vw_write(img, WRITE_DATA, 0, (uint64_t)block * BLK + sector * 512ull, 512, (int)block) >=
		    0);
}

static void volatile_commit_is_flush_then_metadata_then_flush(void **state)
{
	struct vw_trace t = {0};

	(void)state;
	write_sector(0, 0);
	write_sector(200, 0);
	assert_int_equal(bat_on_medium(0), VHD_BAT_FREE);
	assert_int_equal(vw_run(img, JOB_COMMIT, &t), 0);
	assert_string_equal(t.acts, "FWWWWF"); /* two bitmaps, two BAT sectors */
	assert_int_equal(bat_on_medium(0), vhd_of(img)->bat[0]);
	assert_int_equal(bat_on_medium(200), vhd_of(img)->bat[200]);
	assert_true(bit_on_medium(0, 0) && bit_on_medium(200, 0));
	/* known blocks: no BAT sector */
	write_sector(0, 5);
	t.n = 0;
	assert_int_equal(vw_run(img, JOB_COMMIT, &t), 0);
	assert_string_equal(t.acts, "FWF");
	assert_int_equal(t.off[1], vhd_of(img)->bat[0] * 512ull);
}

static void bitmaps_and_bat_go_together_on_a_volatile_backing(void **state)
{
	struct vw_job j;

	(void)state;
	write_sector(0, 0);
	write_sector(200, 0);
	assert_int_equal(vhd_job_begin(img, JOB_COMMIT, &j.job), 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 1);
	assert_int_equal(j.acts[0].kind, ACT_FLUSH);
	vhd_job_done(img, &j.job, &j.acts[0], 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 2);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 2);
	assert_int_equal(j.acts[0].off_bytes, vhd_of(img)->bat_off);
	assert_int_equal(vw_next(img, &j, VW_ACTS), -EAGAIN);
	for (unsigned i = 0; i < 4; i++)
		vhd_job_done(img, &j.job, &j.acts[0], 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 1);
	assert_int_equal(j.acts[0].kind, ACT_FLUSH);
	assert_int_equal(vhd_epoch_durable(img), 0);
	vhd_job_done(img, &j.job, &j.acts[0], 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 0);
	assert_int_equal(vhd_epoch_durable(img), 1);
}

static void durable_commit_is_bitmaps_then_bat_without_flushes(void **state)
{
	struct vw_job j;

	(void)state;
	write_sector(0, 0);
	write_sector(200, 0);
	assert_int_equal(vhd_job_begin(img, JOB_COMMIT, &j.job), 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 2);
	assert_int_equal(j.acts[0].off_bytes, vhd_of(img)->bat[0] * 512ull);
	assert_int_equal(j.acts[1].off_bytes, vhd_of(img)->bat[200] * 512ull);
	vhd_job_done(img, &j.job, &j.acts[0], 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), -EAGAIN);
	vhd_job_done(img, &j.job, &j.acts[0], 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 2);
	assert_int_equal(j.acts[0].off_bytes, vhd_of(img)->bat_off);
	vhd_job_done(img, &j.job, &j.acts[0], 0);
	vhd_job_done(img, &j.job, &j.acts[1], 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 0);
	assert_int_equal(vhd_epoch_durable(img), 1);
}

static void epoch_without_changes_is_one_flush(void **state)
{
	struct vw_trace t = {0};

	(void)state;
	assert_int_equal(vw_run(img, JOB_COMMIT, &t), 0);
	assert_string_equal(t.acts, "F");
	assert_int_equal(vhd_epoch_durable(img), 1);
}

static void epoch_without_changes_is_nothing_on_a_durable_backing(void **state)
{
	struct vw_trace t = {0};

	(void)state;
	assert_int_equal(vw_run(img, JOB_COMMIT, &t), 0);
	assert_int_equal(t.n, 0);
	assert_int_equal(vhd_epoch_durable(img), 1);
}

static void commit_waits_for_the_data_of_its_epoch_only(void **state)
{
	struct write_piece a, b;
	struct vw_job j;

	(void)state;
	assert_int_equal(vw_begin(img, WRITE_DATA, 0, 0, 512, &a), 0);
	assert_int_equal(vhd_job_begin(img, JOB_COMMIT, &j.job), 0);
	assert_int_equal(j.job.epoch, a.epoch);
	assert_int_equal(vw_next(img, &j, VW_ACTS), -EAGAIN);
	assert_int_equal(vw_begin(img, WRITE_DATA, 0, BLK, 512, &b), 0);
	assert_int_equal(b.epoch, a.epoch + 1);
	vhd_write_end(img, &a, 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 1);
	assert_int_equal(j.acts[0].kind, ACT_FLUSH);
	vhd_job_done(img, &j.job, &j.acts[0], 0);
	vhd_write_end(img, &b, 0);
	while (vw_next(img, &j, VW_ACTS) > 0)
		for (unsigned i = 0; i < j.n; i++)
			vhd_job_done(img, &j.job, &j.acts[i], vw_act_do(img, &j.acts[i]));
	/* what landed later is not in the copies */
	assert_int_equal(bat_on_medium(0), vhd_of(img)->bat[0]);
	assert_int_equal(bat_on_medium(1), VHD_BAT_FREE);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(bat_on_medium(1), vhd_of(img)->bat[1]);
}

static void bits_that_land_during_the_commit_are_not_in_its_copy(void **state)
{
	struct vw_job j;

	(void)state;
	write_sector(0, 0);
	assert_int_equal(vhd_job_begin(img, JOB_COMMIT, &j.job), 0);
	assert_int_equal(vw_next(img, &j, VW_ACTS), 1);
	write_sector(0, 1); /* landed now, epoch 2 */
	vhd_job_done(img, &j.job, &j.acts[0], 0);
	while (vw_next(img, &j, VW_ACTS) > 0)
		for (unsigned i = 0; i < j.n; i++)
			vhd_job_done(img, &j.job, &j.acts[i], vw_act_do(img, &j.acts[i]));
	assert_true(bit_on_medium(0, 0));
	assert_false(bit_on_medium(0, 1));
	assert_int_equal(vw_value(img, 512, BELOW), 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_true(bit_on_medium(0, 1));
}

static void failed_metadata_write_keeps_everything_dirty(void **state)
{
	(void)state;
	write_sector(0, 0);
	write_sector(1, 0);
	for (unsigned at = 2; at <= 4; at++) {
		struct vw_trace t = {.fail_at = at};
		struct write_piece p;
		uint32_t slot = vhd_of(img)->bat[0];

		assert_int_equal(vw_run(img, JOB_COMMIT, &t), -EIO);
		assert_int_equal(vhd_epoch_durable(img), 0);
		assert_int_equal(vhd_of(img)->bat[0], slot);
		assert_true(img->wants & IMAGE_DIRTY);
		assert_false(img->poisoned);
		/* the sector still depends on a commit */
		assert_int_equal(vw_begin(img, WRITE_DATA, 0, 0, 512, &p), 0);
		assert_int_equal(p.epoch, vhd_epoch_open(img));
		vhd_write_end(img, &p, 0);
	}
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vhd_epoch_durable(img), 4);
	assert_int_equal(bat_on_medium(0), vhd_of(img)->bat[0]);
	assert_true(bit_on_medium(0, 0) && bit_on_medium(1, 0));
}

static void space_of_a_failed_bat_write_is_never_offered_to_another_block(void **state)
{
	struct vw_trace t = {.fail_at = 3};

	(void)state;
	write_sector(0, 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, &t),
			 -EIO); /* the BAT sector: on the medium or not, nobody knows */
	for (uint32_t b = 1; b < 100; b++) {
		write_sector(b, 0);
		assert_int_not_equal(vhd_of(img)->bat[b], vhd_of(img)->bat[0]);
	}
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
}

static void failed_flush_poisons_the_image(void **state)
{
	struct write_piece p;
	struct job j;

	(void)state;
	for (unsigned at = 1; at <= 4; at += 3) {
		struct vw_trace t = {.fail_at = at};

		write_sector(0, 0);
		assert_int_equal(vw_run(img, JOB_COMMIT, &t), -EIO);
		assert_true(img->poisoned);
		assert_int_equal(vhd_job_begin(img, JOB_COMMIT, &j), -EIO);
		assert_int_equal(vhd_job_begin(img, JOB_GROW, &j), -EIO);
		assert_int_equal(vhd_job_begin(img, JOB_CLOSE, &j), -EIO);
		assert_int_equal(vhd_write_begin(img, WRITE_DATA, 0, 0, 512, &p), -EIO);
		assert_int_equal(vhd_epoch_durable(img), 0);
		vhd_close(img);
		img = vw_open_write(file); /* an operator opens it anew */
		assert_non_null(img);
	}
	write_sector(0, 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
}

static void flush_that_fails_in_a_grow_fails_the_running_commit(void **state)
{
	struct vw_job c, g;
	int n;

	(void)state;
	write_sector(0, 0);
	assert_int_equal(vhd_job_begin(img, JOB_COMMIT, &c.job), 0);
	vhd_of(img)->w->space.n_ready = 0; /* so that there is something to grow for */
	assert_int_equal(vhd_job_begin(img, JOB_GROW, &g.job), 0);
	for (;;) {
		n = vw_next(img, &g, 1);
		assert_true(n > 0);
		if (g.acts[0].kind == ACT_FLUSH)
			break;
		vhd_job_done(img, &g.job, &g.acts[0], vw_act_do(img, &g.acts[0]));
	}
	vhd_job_done(img, &g.job, &g.acts[0], -EIO);
	assert_int_equal(vw_next(img, &g, 1), 0);
	assert_int_equal(g.job.res, -EIO);
	assert_int_equal(vw_next(img, &c, 1), 0);
	assert_int_equal(c.job.res, -EIO);
	assert_int_equal(vhd_epoch_durable(img), 0);
}

static void block_whose_writes_all_failed_stays_without_bits(void **state)
{
	struct write_piece p;

	(void)state;
	assert_int_equal(vw_begin(img, WRITE_DATA, 0, 0, 4096, &p), 0);
	vhd_write_end(img, &p, -EIO);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(bat_on_medium(0), vhd_of(img)->bat[0]);
	assert_int_equal(vw_value(img, 0, BELOW), BELOW);
	assert_int_equal(vw_write(img, WRITE_DATA, 0, 0, 512, 3), 2);
	assert_int_equal(vw_value(img, 0, BELOW), 3);
}

static void entries_of_other_programs_in_a_bat_sector_are_kept(void **state)
{
	unsigned char before[512], after[512];
	struct vhd *v = vhd_of(img);

	(void)state;
	/* 400 blocks: entries 400..511 of the last sector are padding */
	mem_peek(file, v->bat_off + 3 * 512, before, 512);
	write_sector(399, 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	mem_peek(file, v->bat_off + 3 * 512, after, 512);
	be32_store(before + (399 % 128) * 4, v->bat[399]);
	assert_memory_equal(before, after, 512);
}

/* ---- close ---- */

static void close_refuses_while_anything_is_pending(void **state)
{
	struct job j;

	(void)state;
	write_sector(0, 0);
	assert_int_equal(vhd_job_begin(img, JOB_CLOSE, &j), -EBUSY);
	write_sector(0, 1); /* not sealed by that */
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vw_run(img, JOB_CLOSE, NULL), 0);
}

static void closed_image_is_sealed_for_ever_and_still_reads(void **state)
{
	struct write_piece p;
	struct job j;

	(void)state;
	write_sector(3, 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vw_run(img, JOB_CLOSE, NULL), 0);
	assert_int_equal(vhd_write_begin(img, WRITE_DATA, 0, 0, 512, &p), -EROFS);
	assert_int_equal(vhd_job_begin(img, JOB_COMMIT, &j), -EROFS);
	assert_int_equal(vhd_job_begin(img, JOB_GROW, &j), -EROFS);
	assert_int_equal(vhd_job_begin(img, JOB_CLOSE, &j), -EROFS);
	assert_int_equal(vw_value(img, 3ull * BLK, BELOW), 3);
}

static void close_cuts_the_slack_behind_a_new_footer(void **state)
{
	struct vw_trace t = {0};
	unsigned char front[512], back[512];
	uint64_t end;

	(void)state;
	write_sector(0, 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	end = vhd_data_off(vhd_of(img)->bat[0]) + BLK + 4096;
	assert_true(mem_size(file) > end);
	assert_int_equal(vw_run(img, JOB_CLOSE, &t), 0);
	assert_string_equal(t.acts, "WFTF");
	assert_int_equal(t.off[0], end - 512);
	assert_int_equal(mem_size(file), end);
	mem_peek(file, 0, front, 512);
	mem_peek(file, end - 512, back, 512);
	assert_memory_equal(front, back, 512);
}

static void nothing_is_cut_when_the_new_footer_failed(void **state)
{
	struct vw_trace t = {.fail_at = 1};
	uint64_t size;

	(void)state;
	write_sector(0, 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	size = mem_size(file);
	assert_int_equal(vw_run(img, JOB_CLOSE, &t), -EIO);
	assert_string_equal(t.acts, "W");
	assert_int_equal(mem_size(file), size);
}

static void close_writes_a_batmap_that_is_untrusted_until_it_is_whole(void **state)
{
	struct vw_image_opts o = {.size_bytes = 64ull << 20, .block_bytes = 2u << 20, .batmap = true};

	(void)state;
	for (unsigned acts = 0; acts <= 9; acts++) {
		struct mem_file *f = vw_create("/b.vhd", &o);
		struct image *i = vw_open_write(f);
		struct vw_job j;
		unsigned n = 0;

		assert_true(vw_write(i, WRITE_DATA, 0, 4u << 20, 2u << 20, 5) > 0);
		assert_true(vw_write(i, WRITE_DATA, 0, 0, 4096, 5) > 0);
		assert_int_equal(vw_run(i, JOB_COMMIT, NULL), 0);
		assert_int_equal(vhd_job_begin(i, JOB_CLOSE, &j.job), 0);
		/* cut after so many acts */
		while (n < acts && vw_next(i, &j, 1) > 0) {
			vhd_job_done(i, &j.job, &j.acts[0], vw_act_do(i, &j.acts[0]));
			n++;
		}
		vhd_close(i);
		i = vw_open(f, 0);
		assert_non_null(i);
		assert_int_equal(vhd_of(i)->batmap_valid, acts == 0 || acts >= 5);
		assert_int_equal(vhd_full_test(vhd_of(i), 2), acts >= 5);
		assert_false(vhd_full_test(vhd_of(i), 0));
		assert_int_equal(vw_value(i, 4u << 20, BELOW), 5);
		assert_int_equal(vhd_generation(i), 2);
		vhd_close(i);
		mem_file_put(f);
	}
}

static void part_block_at_the_end_of_the_disk_is_never_called_full_on_disk(void **state)
{
	struct vw_image_opts o = {
	    .size_bytes = (64ull << 20) + 4096, .block_bytes = 2u << 20, .batmap = true};
	struct mem_file *f = vw_create("/b.vhd", &o);
	struct image *i = vw_open_write(f);

	(void)state;
	assert_true(vw_write(i, WRITE_DATA, 0, 64u << 20, 4096, 5) > 0);
	assert_true(vw_write(i, WRITE_DATA, 0, 0, 2u << 20, 5) > 0);
	assert_true(vhd_full_test(vhd_of(i), 32));
	assert_int_equal(vw_run(i, JOB_COMMIT, NULL), 0);
	assert_int_equal(vw_run(i, JOB_CLOSE, NULL), 0);
	vhd_close(i);
	i = vw_open(f, 0);
	assert_true(vhd_of(i)->batmap_valid);
	assert_true(vhd_batmap_test(vhd_of(i)->batmap_disk, 0));
	assert_false(vhd_batmap_test(vhd_of(i)->batmap_disk, 32));
	vhd_close(i);
	mem_file_put(f);
}

static void failed_batmap_does_not_stop_the_cut(void **state)
{
	struct vw_image_opts o = {.size_bytes = 64ull << 20, .block_bytes = 2u << 20, .batmap = true};
	struct mem_file *f = vw_create("/b.vhd", &o);
	struct image *i = vw_open_write(f);
	struct vw_trace t = {.fail_at = 3};

	(void)state;
	assert_true(vw_write(i, WRITE_DATA, 0, 0, 2u << 20, 5) > 0);
	assert_int_equal(vw_run(i, JOB_COMMIT, NULL), 0);
	assert_int_equal(vw_run(i, JOB_CLOSE, &t), -EIO);
	assert_string_equal(t.acts, "WFWWFTF");
	vhd_close(i);
	i = vw_open(f, 0);
	assert_false(vhd_of(i)->batmap_valid);
	assert_true(vhd_of(i)->footer_at_end_ok);
	assert_int_equal(vw_value(i, 0, BELOW), 5);
	vhd_close(i);
	mem_file_put(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define VOLATILE(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
#define DURABLE(t)  cmocka_unit_test_setup_teardown(t, setup_durable, teardown)
	    VOLATILE(volatile_commit_is_flush_then_metadata_then_flush),
	    VOLATILE(bitmaps_and_bat_go_together_on_a_volatile_backing),
	    DURABLE(durable_commit_is_bitmaps_then_bat_without_flushes),
	    VOLATILE(epoch_without_changes_is_one_flush),
	    DURABLE(epoch_without_changes_is_nothing_on_a_durable_backing),
	    VOLATILE(commit_waits_for_the_data_of_its_epoch_only),
	    VOLATILE(bits_that_land_during_the_commit_are_not_in_its_copy),
	    VOLATILE(failed_metadata_write_keeps_everything_dirty),
	    VOLATILE(space_of_a_failed_bat_write_is_never_offered_to_another_block),
	    VOLATILE(failed_flush_poisons_the_image),
	    VOLATILE(flush_that_fails_in_a_grow_fails_the_running_commit),
	    VOLATILE(block_whose_writes_all_failed_stays_without_bits),
	    VOLATILE(entries_of_other_programs_in_a_bat_sector_are_kept),
	    VOLATILE(close_refuses_while_anything_is_pending),
	    VOLATILE(closed_image_is_sealed_for_ever_and_still_reads),
	    VOLATILE(close_cuts_the_slack_behind_a_new_footer),
	    VOLATILE(nothing_is_cut_when_the_new_footer_failed),
	    cmocka_unit_test(close_writes_a_batmap_that_is_untrusted_until_it_is_whole),
	    cmocka_unit_test(part_block_at_the_end_of_the_disk_is_never_called_full_on_disk),
	    cmocka_unit_test(failed_batmap_does_not_stop_the_cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
