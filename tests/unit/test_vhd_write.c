/* The data half of writing a VHD: which piece goes where, which epoch it depends on, what a failed one
 * leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/vhdwrite.h"

#include "formats/vhd/vhd_write.h"

#define BLK   65536u
#define BELOW 0xbb

struct rig {
	struct mem_file *f;
	struct image *img;
};

static struct rig rig_of(uint64_t size)
{
	struct vw_image_opts o = {.size_bytes = size, .block_bytes = BLK, .batmap = true};
	struct rig r = {.f = vw_create("/t.vhd", &o)};

	r.img = vw_open_write(r.f);
	assert_non_null(r.img);
	return r;
}

static void rig_end(struct rig *r)
{
	vhd_close(r->img);
	mem_file_put(r->f);
}

static struct write_piece begin_ok(struct rig *r, enum write_op op, unsigned flags, uint64_t off,
				   uint64_t len)
{
	struct write_piece p;

	assert_int_equal(vw_begin(r->img, op, flags, off, len, &p), 0);
	return p;
}

static void end_ok(struct rig *r, const struct write_piece *p, int fill)
{
	unsigned char *buf = malloc(p->len_bytes);

	memset(buf, fill, p->len_bytes);
	assert_int_equal(vw_piece_do(r->img, p, buf), 0);
	vhd_write_end(r->img, p, 0);
	free(buf);
}

static void first_write_takes_an_aligned_slot_and_joins_the_open_epoch(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct write_piece p;

	(void)state;
	assert_int_equal(vhd_write_begin(r.img, WRITE_DATA, 0, BLK, 512, &p), -EINPROGRESS);
	assert_int_equal(p.park, PARK_GROW);
	assert_true(r.img->wants & IMAGE_WANT_GROW);
	p = begin_ok(&r, WRITE_DATA, 0, BLK + 1024, 512);
	assert_int_equal(p.act, PIECE_WRITE);
	assert_int_equal(p.epoch, vhd_epoch_open(r.img));
	assert_int_equal(p.file_off % 4096, 1024);
	assert_int_equal(p.rec.block, 1);
	assert_int_equal(p.rec.first, 2);
	assert_int_equal(p.rec.count, 1);
	assert_int_equal((p.rec.sector + 1) * 512ull + 1024, p.file_off);
	assert_int_equal(p.rec.epoch_low, p.epoch);
	end_ok(&r, &p, 7);
	assert_true(r.img->wants & IMAGE_DIRTY);
	rig_end(&r);
}

static void piece_never_crosses_a_block(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct write_piece p = begin_ok(&r, WRITE_DATA, 0, BLK - 1024, 4 * BLK);

	(void)state;
	assert_int_equal(p.len_bytes, 1024);
	end_ok(&r, &p, 1);
	rig_end(&r);
}

static void bits_become_live_only_when_the_piece_landed(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct write_piece p = begin_ok(&r, WRITE_DATA, 0, 0, 4096);

	(void)state;
	assert_int_equal(vw_value(r.img, 0, BELOW), BELOW);
	end_ok(&r, &p, 5);
	assert_int_equal(vw_value(r.img, 0, BELOW), 5);
	assert_int_equal(vw_value(r.img, 4096, BELOW), BELOW);
	rig_end(&r);
}

static void failed_piece_leaves_no_bit_and_does_not_fail_its_neighbour(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct write_piece a = begin_ok(&r, WRITE_DATA, 0, 0, 4096),
			   b = begin_ok(&r, WRITE_DATA, 0, 8192, 4096);

	(void)state;
	assert_int_equal(a.rec.sector, b.rec.sector);
	assert_int_equal(a.epoch, b.epoch);
	vhd_write_end(r.img, &a, -EIO);
	end_ok(&r, &b, 9);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vw_value(r.img, 0, BELOW), BELOW);
	assert_int_equal(vw_value(r.img, 8192, BELOW), 9);
	vhd_close(r.img);
	r.img = vw_open(r.f, 0);
	assert_int_equal(vw_value(r.img, 0, BELOW), BELOW);
	assert_int_equal(vw_value(r.img, 8192, BELOW), 9);
	rig_end(&r);
}

static void rewrite_of_an_uncommitted_sector_depends_on_the_open_epoch(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct write_piece p;

	(void)state;
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 0, 4096, 1), 1);
	p = begin_ok(&r, WRITE_DATA, 0, 0, 512);
	assert_int_equal(p.epoch, 1);
	end_ok(&r, &p, 2);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	p = begin_ok(&r, WRITE_DATA, 0, 0, 512);
	assert_int_equal(p.epoch, 0);
	end_ok(&r, &p, 3);
	/* one absent sector among them: the whole piece joins */
	p = begin_ok(&r, WRITE_DATA, 0, 0, 8192);
	assert_int_equal(p.epoch, 2);
	assert_int_equal(p.len_bytes, 8192);
	end_ok(&r, &p, 4);
	rig_end(&r);
}

static void rewrite_while_the_commit_runs_joins_the_next_epoch(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct write_piece p;
	struct vw_job j;

	(void)state;
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 0, 4096, 1), 1);
	assert_int_equal(vhd_job_begin(r.img, JOB_COMMIT, &j.job), 0);
	assert_int_equal(j.job.epoch, 1);
	p = begin_ok(&r, WRITE_DATA, 0, 0, 512);
	assert_int_equal(p.epoch, 2);
	end_ok(&r, &p, 2);
	while (vw_next(r.img, &j, VW_ACTS) > 0)
		for (unsigned i = 0; i < j.n; i++)
			vhd_job_done(r.img, &j.job, &j.acts[i], vw_act_do(r.img, &j.acts[i]));
	assert_int_equal(j.job.res, 0);
	assert_int_equal(vhd_epoch_durable(r.img), 1);
	assert_true(r.img->wants & IMAGE_DIRTY);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vhd_epoch_durable(r.img), 2);
	assert_false(r.img->wants & IMAGE_DIRTY);
	rig_end(&r);
}

static void full_block_with_uncommitted_bits_still_joins_an_epoch(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct write_piece p;

	(void)state;
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 2 * BLK, BLK, 1), 1);
	assert_true(vhd_full_test(vhd_of(r.img), 2));
	p = begin_ok(&r, WRITE_DATA, 0, 2 * BLK, 4096);
	assert_int_equal(p.epoch, 1);
	end_ok(&r, &p, 2);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	p = begin_ok(&r, WRITE_DATA, 0, 2 * BLK, 4096);
	assert_int_equal(p.epoch, 0);
	end_ok(&r, &p, 2);
	rig_end(&r);
}

static void last_block_of_an_odd_size_is_full_when_its_sectors_are(void **state)
{
	struct rig r = rig_of(3 * BLK + 1536);

	(void)state;
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 3 * BLK, 1536, 1), 1);
	assert_true(vhd_full_test(vhd_of(r.img), 3));
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 3 * BLK, 2048, 1), -EINVAL);
	rig_end(&r);
}

static void unknown_bitmap_parks_the_write_and_changes_nothing(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct write_piece p;
	unsigned char bits[512];

	(void)state;
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 0, 4096, 1), 1);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	vhd_close(r.img);
	r.img = vw_open_write(r.f);
	assert_int_equal(vhd_write_begin(r.img, WRITE_DATA, 0, 0, 512, &p), -EINPROGRESS);
	assert_int_equal(p.park, PARK_META);
	assert_int_equal(p.park_key, vhd_of(r.img)->bat[0] * 512ull);
	assert_null(vhd_meta_get(r.img, p.park_key));
	/* a failed read keeps nothing */
	assert_int_equal(vhd_meta_put(r.img, p.park_key, bits, -EIO), 0);
	assert_null(vhd_meta_get(r.img, p.park_key));
	mem_peek(r.f, p.park_key, bits, 512);
	assert_int_equal(vhd_meta_put(r.img, p.park_key, bits, 0), 0);
	assert_int_equal(vhd_write_begin(r.img, WRITE_DATA, 0, 0, 512, &p), 0);
	assert_int_equal(p.epoch, 0);
	vhd_write_end(r.img, &p, 0);
	rig_end(&r);
}

static void bitmap_in_memory_wins_over_a_late_read(void **state)
{
	struct rig r = rig_of(16 * BLK);
	unsigned char zeros[512] = {0};
	uint64_t key;

	(void)state;
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 0, 4096, 1), 1);
	key = vhd_of(r.img)->bat[0] * 512ull;
	assert_int_equal(vhd_meta_put(r.img, key, zeros, 0), 0);
	assert_int_equal(vw_value(r.img, 0, BELOW), 1);
	rig_end(&r);
}

/* An image with few bitmaps in memory. */
static struct rig small_cache(unsigned n)
{
	struct vw_image_opts o = {.size_bytes = 64 * BLK, .block_bytes = BLK, .batmap = true};
	struct rig r = {.f = vw_create("/t.vhd", &o)};
	struct err e = ERR_INIT;

	r.img = vw_open(r.f, BACKING_WRITE);
	assert_int_equal(vhd_write_prepare(vhd_of(r.img), n, &e), 0);
	assert_int_equal(vhd_begin_writing(r.img, &e), 0);
	return r;
}

static void bound_on_dirty_sectors_asks_for_a_commit_then_parks(void **state)
{
	struct rig r = small_cache(8); /* 6 may be held */
	struct write_piece p;

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		assert_int_equal(!!(r.img->wants & IMAGE_WANT_COMMIT), i >= 5);
		p = begin_ok(&r, WRITE_DATA, 0, i * BLK, 512);
		end_ok(&r, &p, (int)i);
	}
	assert_int_equal(vw_begin(r.img, WRITE_DATA, 0, 6 * BLK, 512, &p), -EINPROGRESS);
	assert_int_equal(p.park, PARK_EPOCH);
	/* a block that is held already goes on */
	p = begin_ok(&r, WRITE_DATA, 0, BLK, 512);
	end_ok(&r, &p, 1);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	assert_false(r.img->wants & IMAGE_WANT_COMMIT);
	p = begin_ok(&r, WRITE_DATA, 0, 6 * BLK, 512);
	end_ok(&r, &p, 6);
	rig_end(&r);
}

static void parked_write_fails_while_commits_fail(void **state)
{
	struct rig r = small_cache(8);
	struct vw_trace t = {.fail_at = 2};
	struct write_piece p;

	(void)state;
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(vw_write(r.img, WRITE_DATA, 0, i * BLK, 512, 1), 1);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, &t), -EIO);
	assert_int_equal(vw_begin(r.img, WRITE_DATA, 0, 6 * BLK, 512, &p), -EIO);
	assert_false(r.img->wants & IMAGE_WANT_COMMIT);
	assert_true(r.img->wants & IMAGE_DIRTY);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 6 * BLK, 512, 1), 3);
	rig_end(&r);
}

static void clean_bitmaps_are_evicted_and_dirty_ones_are_not(void **state)
{
	struct rig r = small_cache(8);
	uint64_t dirty_key;

	(void)state;
	for (unsigned i = 0; i < 32; i++) {
		assert_int_not_equal(vw_write(r.img, WRITE_DATA, 0, i * BLK, 512, (int)i), -EIO);
		assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	}
	assert_true(vw_write(r.img, WRITE_DATA, 0, 40 * BLK, 512, 40) > 0);
	dirty_key = vhd_of(r.img)->bat[40] * 512ull;
	for (unsigned i = 0; i < 32; i++)
		assert_int_equal(vw_value(r.img, i * BLK, BELOW), i);
	assert_non_null(vhd_meta_get(r.img, dirty_key));
	assert_int_equal(vw_value(r.img, 40 * BLK, BELOW), 40);
	rig_end(&r);
}

static void meta_put_is_busy_when_all_are_dirty(void **state)
{
	struct rig r = small_cache(2);
	unsigned char bits[512] = {0};

	(void)state;
	assert_true(vw_write(r.img, WRITE_DATA, 0, 0, 512, 1) > 0);
	assert_true(vw_write(r.img, WRITE_DATA, 0, BLK, 512, 1) > 0);
	assert_int_equal(vhd_meta_put(r.img, 1 << 20, bits, 0), -EBUSY);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vhd_meta_put(r.img, 1 << 20, bits, 0), 0);
	rig_end(&r);
}

static void image_not_opened_for_writing_refuses_writes_and_jobs(void **state)
{
	struct vw_image_opts o = {.size_bytes = 4 * BLK, .block_bytes = BLK};
	struct mem_file *f = vw_create("/t.vhd", &o);
	struct image *img = vw_open(f, BACKING_WRITE);
	struct write_piece p;
	struct job j;

	(void)state;
	assert_int_equal(vhd_write_begin(img, WRITE_DATA, 0, 0, 512, &p), -EROFS);
	assert_int_equal(vhd_job_begin(img, JOB_COMMIT, &j), -EROFS);
	assert_int_equal(vhd_epoch_open(img), 1);
	vhd_close(img);
	mem_file_put(f);
}

static void leaf_that_is_only_read_keeps_bitmaps(void **state)
{
	struct rig r = rig_of(16 * BLK);
	unsigned char bits[512];
	uint64_t key;

	(void)state;
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 0, 4096, 1), 1);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	vhd_close(r.img);
	r.img = vw_open(r.f, 0);
	key = vhd_of(r.img)->bat[0] * 512ull;
	assert_null(vhd_meta_get(r.img, key));
	mem_peek(r.f, key, bits, 512);
	assert_int_equal(vhd_meta_put(r.img, key, bits, 0), 0);
	assert_memory_equal(vhd_meta_get(r.img, key), bits, 512);
	assert_int_equal(vw_value(r.img, 0, BELOW), 1);
	rig_end(&r);
}

/* ---- begin_writing ---- */

static void refused(struct mem_file *f, unsigned flags, int code)
{
	struct image *img = vw_open(f, flags);
	struct err e = ERR_INIT;

	assert_non_null(img);
	assert_int_equal(vhd_begin_writing(img, &e), code);
	assert_int_equal(e.code, code);
	assert_true(e.text[0]);
	assert_false(img->writing);
	vhd_close(img);
}

static void hidden_and_read_only_images_are_not_opened_for_writing(void **state)
{
	struct vw_image_opts o = {.size_bytes = 4 * BLK, .block_bytes = BLK, .hidden = true};
	struct mem_file *f = vw_create("/t.vhd", &o);

	(void)state;
	refused(f, BACKING_WRITE, -EROFS);
	assert_int_equal(f->calls[MEM_WRITE], 0);
	mem_file_put(f);
	o.hidden = false;
	f = vw_create("/t.vhd", &o);
	refused(f, 0, -EROFS);
	mem_file_put(f);
}

static void image_changed_since_open_is_not_opened_for_writing(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct image *late;
	struct err e = ERR_INIT;

	(void)state;
	late = vw_open(r.f, BACKING_WRITE);
	assert_int_equal(vw_write(r.img, WRITE_DATA, 0, 0, 4096, 1), 1);
	assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vhd_begin_writing(late, &e), -ESTALE);
	vhd_close(late);
	rig_end(&r);
}

static void generation_rises_with_every_open_for_writing(void **state)
{
	struct rig r = rig_of(16 * BLK);
	struct image *img;

	(void)state;
	assert_int_equal(vhd_generation(r.img), 2);
	vhd_close(r.img);
	r.img = vw_open_write(r.f);
	assert_int_equal(vhd_generation(r.img), 3);
	img = vw_open(r.f, 0);
	assert_int_equal(vhd_generation(img), 3);
	vhd_close(img);
	rig_end(&r);
}

static void image_without_batmap_has_no_generation(void **state)
{
	struct vw_image_opts o = {.size_bytes = 4 * BLK, .block_bytes = BLK};
	struct mem_file *f = vw_create("/t.vhd", &o);
	struct image *img = vw_open_write(f);

	(void)state;
	assert_int_equal(vhd_generation(img), 0);
	vhd_close(img);
	mem_file_put(f);
}

static void begin_writing_flushes_and_reports_any_failure(void **state)
{
	struct vw_image_opts o = {.size_bytes = 4 * BLK, .block_bytes = BLK, .batmap = true};
	struct mem_file *f = vw_create("/t.vhd", &o);

	(void)state;
	for (unsigned nth = 1;; nth++) {
		struct image *img = vw_open(f, BACKING_WRITE);
		uint64_t flushes = f->calls[MEM_FLUSH];
		struct err e = ERR_INIT;
		int ret;

		f->fail_op = MEM_ANY;
		f->fail_nth = nth;
		ret = vhd_begin_writing(img, &e);
		assert_int_equal(ret == 0, img->writing);
		if (!ret) {
			assert_int_equal(f->calls[MEM_FLUSH], flushes + 1);
			f->fail_nth = 0;
			vhd_close(img);
			break;
		}
		assert_int_equal(ret, -EIO);
		assert_true(e.text[0]);
		vhd_close(img);
		assert_true(nth < 50);
	}
	mem_file_put(f);
}

static void missing_trailing_footer_is_put_right(void **state)
{
	struct rig r = rig_of(16 * BLK);
	unsigned char front[512], back[512];

	(void)state;
	mem_peek(r.f, 0, front, 512);
	for (unsigned how = 0; how < 3; how++) {
		uint64_t size;

		assert_true(vw_write(r.img, WRITE_DATA, 0, how * BLK, 512, 1) > 0);
		assert_int_equal(vw_run(r.img, JOB_COMMIT, NULL), 0);
		vhd_close(r.img);
		memset(back, 0xc7, 512);
		size = mem_size(r.f);
		if (how == 0) /* as tapdisk leaves it */
			mem_poke(r.f, size - 512, back, 512);
		else if (how == 1) /* a power cut after EXTEND */
			mem_resize(r.f, size + (8u << 20));
		else /* an odd end */
			mem_resize(r.f, size + 100);
		r.img = vw_open_write(r.f);
		assert_non_null(r.img);
		assert_int_equal(mem_size(r.f) % 4096, 0);
		mem_peek(r.f, mem_size(r.f) - 512, back, 512);
		assert_memory_equal(back, front, 512);
		for (unsigned i = 0; i <= how; i++)
			assert_int_equal(vw_value(r.img, i * BLK, BELOW), 1);
	}
	rig_end(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(first_write_takes_an_aligned_slot_and_joins_the_open_epoch),
	    cmocka_unit_test(piece_never_crosses_a_block),
	    cmocka_unit_test(bits_become_live_only_when_the_piece_landed),
	    cmocka_unit_test(failed_piece_leaves_no_bit_and_does_not_fail_its_neighbour),
	    cmocka_unit_test(rewrite_of_an_uncommitted_sector_depends_on_the_open_epoch),
	    cmocka_unit_test(rewrite_while_the_commit_runs_joins_the_next_epoch),
	    cmocka_unit_test(full_block_with_uncommitted_bits_still_joins_an_epoch),
	    cmocka_unit_test(last_block_of_an_odd_size_is_full_when_its_sectors_are),
	    cmocka_unit_test(unknown_bitmap_parks_the_write_and_changes_nothing),
	    cmocka_unit_test(bitmap_in_memory_wins_over_a_late_read),
	    cmocka_unit_test(bound_on_dirty_sectors_asks_for_a_commit_then_parks),
	    cmocka_unit_test(parked_write_fails_while_commits_fail),
	    cmocka_unit_test(clean_bitmaps_are_evicted_and_dirty_ones_are_not),
	    cmocka_unit_test(meta_put_is_busy_when_all_are_dirty),
	    cmocka_unit_test(image_not_opened_for_writing_refuses_writes_and_jobs),
	    cmocka_unit_test(leaf_that_is_only_read_keeps_bitmaps),
	    cmocka_unit_test(hidden_and_read_only_images_are_not_opened_for_writing),
	    cmocka_unit_test(image_changed_since_open_is_not_opened_for_writing),
	    cmocka_unit_test(generation_rises_with_every_open_for_writing),
	    cmocka_unit_test(image_without_batmap_has_no_generation),
	    cmocka_unit_test(begin_writing_flushes_and_reports_any_failure),
	    cmocka_unit_test(missing_trailing_footer_is_put_right),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
