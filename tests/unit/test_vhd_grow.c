/* Space of a VHD: the order in which a file grows, what a failure leaves, what gaps are good for. */
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

static int make(bool promises_zeros)
{
	struct vw_image_opts o = {.size_bytes = 2000 * BLK, .block_bytes = BLK, .batmap = true};

	file = vw_create("/t.vhd", &o);
	file->traits.zeroes_on_allocate = promises_zeros;
	img = vw_open_write(file);
	return img ? 0 : -1;
}

static int setup(void **state)
{
	(void)state;
	return make(true);
}

static int setup_dirty(void **state)
{
	(void)state;
	return make(false);
}

static int teardown(void **state)
{
	(void)state;
	vhd_close(img);
	mem_file_put(file);
	return 0;
}

static struct vhd_space *space(void)
{
	return &vhd_of(img)->w->space;
}

static bool footer_at_end(void)
{
	unsigned char front[512], back[512];

	mem_peek(file, 0, front, 512);
	mem_peek(file, mem_size(file) - 512, back, 512);
	return !memcmp(front, back, 512);
}

static void reopen(void)
{
	vhd_close(img);
	img = vw_open_write(file);
	assert_non_null(img);
}

static void file_grows_behind_a_durable_footer(void **state)
{
	struct vw_trace t = {0};
	uint64_t old = mem_size(file);

	(void)state;
	assert_int_equal(vw_run(img, JOB_GROW, &t), 0);
	/* the old footer's sector is the first slot's bitmap: one zero for both */
	assert_string_equal(t.acts, "EWFWF");
	assert_int_equal(t.off[0], old);
	assert_int_equal(t.off[1], mem_size(file) - 512);
	assert_int_equal(t.off[3], old - 512);
	assert_true(footer_at_end());
	assert_int_equal(mem_size(file) % 4096, 0);
	assert_int_equal(space()->n_ready, VHD_SLOTS_MAX);
	assert_int_equal(space()->ready[0], (old - 512) / 512);
}

static void bitmaps_are_zeroed_where_the_storage_promises_nothing(void **state)
{
	struct vw_trace t = {0};

	(void)state;
	assert_int_equal(vw_run(img, JOB_GROW, &t), 0);
	assert_int_equal(t.n, 3 + VHD_SLOTS_MAX + 1);
	for (unsigned i = 0; i < VHD_SLOTS_MAX; i++) {
		assert_int_equal(t.acts[3 + i], 'W');
		assert_int_equal(t.off[3 + i], space()->ready[i] * 512ull);
	}
	assert_int_equal(t.acts[3 + VHD_SLOTS_MAX], 'F');
}

static void no_slot_is_offered_before_the_last_flush(void **state)
{
	struct vw_job j;

	(void)state;
	assert_int_equal(vhd_job_begin(img, JOB_GROW, &j.job), 0);
	while (vw_next(img, &j, 1) > 0) {
		assert_int_equal(space()->n_ready, 0);
		vhd_job_done(img, &j.job, &j.acts[0], vw_act_do(img, &j.acts[0]));
	}
	assert_true(space()->n_ready > 0);
}

static void file_cut_at_any_act_of_a_grow_opens(void **state)
{
	(void)state;
	for (unsigned acts = 0; acts < 6; acts++) {
		struct mem_file *f;
		struct image *i;
		struct vw_job j;

		assert_int_equal(vhd_job_begin(img, JOB_GROW, &j.job), 0);
		for (unsigned n = 0; n < acts && vw_next(img, &j, 1) > 0; n++)
			vhd_job_done(img, &j.job, &j.acts[0], vw_act_do(img, &j.acts[0]));
		f = mem_file_clone(file, "/cut.vhd");
		i = vw_open_write(f);
		assert_non_null(i);
		assert_true(vw_write(i, WRITE_DATA, 0, 0, 4096, 1) > 0);
		assert_int_equal(vw_run(i, JOB_COMMIT, NULL), 0);
		vhd_close(i);
		mem_file_put(f);
		reopen();
	}
}

static void full_disk_fails_the_grow_and_changes_nothing(void **state)
{
	struct vw_trace t = {.fail_at = 1, .fail_errno = ENOSPC};
	uint64_t old = mem_size(file);

	(void)state;
	assert_int_equal(vw_run(img, JOB_GROW, &t), -ENOSPC);
	assert_string_equal(t.acts, "ET");
	assert_int_equal(t.off[1], old);
	assert_int_equal(mem_size(file), old);
	assert_true(footer_at_end());
	assert_int_equal(space()->n_ready, 0);
	assert_false(img->wants & IMAGE_WANT_GROW);
	/* room again */
	assert_true(vw_write(img, WRITE_DATA, 0, 0, 512, 1) > 0);
}

static void extension_that_went_half_of_the_way_is_taken_back(void **state)
{
	uint64_t old = mem_size(file);
	struct vw_job j;

	(void)state;
	assert_int_equal(vhd_job_begin(img, JOB_GROW, &j.job), 0);
	assert_int_equal(vw_next(img, &j, 1), 1);
	mem_resize(file, old + 40960);
	vhd_job_done(img, &j.job, &j.acts[0], -ENOSPC);
	assert_int_equal(vw_next(img, &j, 1), 1);
	assert_int_equal(j.acts[0].kind, ACT_TRUNCATE);
	vhd_job_done(img, &j.job, &j.acts[0], vw_act_do(img, &j.acts[0]));
	assert_int_equal(vw_next(img, &j, 1), 0);
	assert_int_equal(j.job.res, -ENOSPC);
	assert_true(footer_at_end());
}

/* The new footer's sector is where a later slot may have its bitmap. */
static void footer_of_a_failed_grow_never_passes_for_a_bitmap(void **state)
{
	uint64_t old = mem_size(file);
	struct vw_trace t = {0};
	struct vw_job j;

	(void)state;
	assert_int_equal(vhd_job_begin(img, JOB_GROW, &j.job), 0);
	assert_int_equal(vw_next(img, &j, 1), 1);
	vhd_job_done(img, &j.job, &j.acts[0], vw_act_do(img, &j.acts[0]));
	assert_int_equal(vw_next(img, &j, 1), 1);
	vw_act_do(img, &j.acts[0]);
	vhd_job_done(img, &j.job, &j.acts[0], -EIO); /* landed, but says no */
	assert_int_equal(vw_next(img, &j, 1), 1);
	assert_int_equal(j.acts[0].kind, ACT_TRUNCATE);
	vhd_job_done(img, &j.job, &j.acts[0], -EIO); /* not done */
	assert_int_equal(vw_next(img, &j, 1), 0);
	assert_true(mem_size(file) > old);
	assert_int_equal(vw_run(img, JOB_GROW, &t), 0);
	for (unsigned i = 0; i < space()->n_ready; i++) {
		unsigned char bits[512];

		mem_peek(file, space()->ready[i] * 512ull, bits, 512);
		assert_true(bytes_are_zero(bits, 512));
	}
	assert_int_equal(t.n, 3 + VHD_SLOTS_MAX + 1);
}

static void close_mends_the_end_that_a_failed_grow_left(void **state)
{
	struct vw_job j;

	(void)state;
	assert_int_equal(vhd_job_begin(img, JOB_GROW, &j.job), 0);
	assert_int_equal(vw_next(img, &j, 1), 1);
	vw_act_do(img, &j.acts[0]);
	vhd_job_done(img, &j.job, &j.acts[0], -EIO);
	assert_int_equal(vw_next(img, &j, 1), 1);
	vhd_job_done(img, &j.job, &j.acts[0], -EIO);
	assert_int_equal(vw_next(img, &j, 1), 0);
	assert_false(footer_at_end());
	assert_int_equal(vw_run(img, JOB_CLOSE, NULL), 0);
	assert_true(footer_at_end());
}

static void slot_whose_zeroing_failed_is_not_offered(void **state)
{
	struct vw_trace t = {.fail_at = 5};

	(void)state;
	assert_int_equal(vw_run(img, JOB_GROW, &t), 0); /* there are others */
	assert_int_equal(space()->n_ready, VHD_SLOTS_MAX - 1);
	for (unsigned i = 0; i < space()->n_ready; i++)
		assert_int_not_equal(space()->ready[i] * 512ull, t.off[4]);
	/* the next opening finds it again */
	assert_true(vw_write(img, WRITE_DATA, 0, 0, 512, 1) > 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	reopen();
	assert_int_equal(vw_run(img, JOB_GROW, NULL), 0);
	assert_int_equal(space()->ready[0] * 512ull, t.off[4]);
}

static void grow_that_offers_nothing_fails(void **state)
{
	struct vw_image_opts o = {.size_bytes = BLK, .block_bytes = BLK};
	struct mem_file *f = vw_create("/s.vhd", &o);
	struct vw_trace t = {.fail_at = 4};
	struct image *i = vw_open_write(f);

	(void)state;
	assert_int_equal(vw_run(i, JOB_GROW, &t), -EIO);
	assert_string_equal(t.acts, "EWFWF");
	assert_int_equal(vhd_of(i)->w->space.n_ready, 0);
	assert_true(vw_write(i, WRITE_DATA, 0, 0, 512, 1) > 0);
	vhd_close(i);
	mem_file_put(f);
}

static void grow_is_wanted_below_one_chunk(void **state)
{
	(void)state;
	assert_int_equal(vw_run(img, JOB_GROW, NULL), 0);
	assert_false(img->wants & IMAGE_WANT_GROW);
	assert_true(vw_write(img, WRITE_DATA, 0, 0, 512, 1) > 0);
	assert_true(img->wants & IMAGE_WANT_GROW);
	assert_int_equal(vw_run(img, JOB_GROW, NULL), 0);
	assert_false(img->wants & IMAGE_WANT_GROW);
	assert_int_equal(space()->n_ready, 2 * VHD_SLOTS_MAX - 1);
}

static void disk_never_grows_beyond_what_its_blocks_can_want(void **state)
{
	struct vw_image_opts o = {.size_bytes = 5 * BLK, .block_bytes = BLK};
	struct mem_file *f = vw_create("/s.vhd", &o);
	struct image *i = vw_open_write(f);

	(void)state;
	for (unsigned b = 0; b < 5; b++)
		assert_true(vw_write(i, WRITE_DATA, 0, b * BLK, 512, 1) > 0);
	assert_int_equal(vhd_of(i)->w->space.n_ready, 0);
	assert_false(i->wants & IMAGE_WANT_GROW);
	assert_true(mem_size(f) <= 8192 + 5 * (BLK + 4096) + 4096);
	vhd_close(i);
	mem_file_put(f);
}

static void slack_left_by_an_unclean_end_is_used_before_the_file_grows(void **state)
{
	struct vw_trace t = {0};
	uint64_t size;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 0, 512, 1) > 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	size = mem_size(file);
	reopen();
	assert_int_equal(vw_run(img, JOB_GROW, &t), 0);
	assert_int_equal(mem_size(file), size);
	assert_int_equal(t.n, VHD_SLOTS_MAX - 1 + 1); /* zeroes and one flush */
	assert_int_equal(t.acts[t.n - 1], 'F');
}

static void stale_bitmap_in_a_gap_is_not_inherited(void **state)
{
	unsigned char ones[512];
	uint64_t at;

	(void)state;
	assert_int_equal(vw_run(img, JOB_GROW, NULL), 0);
	at = space()->ready[0] * 512ull;
	memset(ones, 0xff, sizeof(ones));
	mem_poke(file, at, ones, 512); /* the bitmap of a commit whose BAT sector was lost */
	reopen();
	assert_true(vw_write(img, WRITE_DATA, 0, BLK, 512, 1) > 0);
	assert_int_equal(vhd_of(img)->bat[1] * 512ull, at);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	reopen();
	assert_int_equal(vw_value(img, BLK, BELOW), 1);
	assert_int_equal(vw_value(img, BLK + 512, BELOW), BELOW);
}

static void odd_gaps_of_foreign_images_give_aligned_slots(void **state)
{
	struct vhd *v = vhd_of(img);
	uint64_t base = round_up_u64(v->meta_end, 512), at[3] = {base, base + 512 + BLK + 3 * 512, 0};
	unsigned char footer[512], raw[4];

	(void)state;
	/* blocks back to back at odd places, a gap of one and a half slots between the second and the third
	 */
	at[2] = at[1] + 512 + BLK + BLK + BLK / 2;
	mem_peek(file, 0, footer, 512);
	vhd_close(img);
	mem_resize(file, at[2] + 512 + BLK + 512);
	mem_poke(file, at[2] + 512 + BLK, footer, 512);
	for (unsigned i = 0; i < 3; i++) {
		unsigned char zeros[512] = {0};

		be32_store(raw, (uint32_t)(at[i] / 512));
		mem_poke(file, VHD_BAT_OFF + i * 4, raw, 4);
		mem_poke(file, at[i], zeros, 512);
	}
	img = vw_open_write(file);
	assert_non_null(img);
	assert_true(vw_write(img, WRITE_DATA, 0, 5 * BLK, 512, 1) > 0);
	v = vhd_of(img);
	assert_int_equal((v->bat[5] + 1) % 8, 0);
	assert_true(v->bat[5] * 512ull > at[1] && v->bat[5] * 512ull < at[2]);
	assert_true(vw_write(img, WRITE_DATA, 0, 0, BLK, 2) >
		    0); /* an unaligned block is written where it is */
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(v->bat[0] * 512ull, at[0]);
	assert_int_equal(vw_value(img, 5 * BLK, BELOW), 1);
}

static void device_of_fixed_size_keeps_its_footer_in_the_last_sector(void **state)
{
	struct vw_image_opts o = {.size_bytes = 40 * BLK, .block_bytes = BLK, .batmap = true};
	struct mem_file *f = vw_create("/lv", &o);
	unsigned char footer[512], back[512];
	struct vw_trace t = {0};
	struct image *i;
	struct job j;

	(void)state;
	mem_peek(f, 0, footer, 512);
	mem_resize(f, 4096 + 10 * (BLK + 4096));
	mem_poke(f, mem_size(f) - 512, footer, 512);
	f->traits.fixed_size = true;
	i = vw_open_write(f);
	for (unsigned b = 0; b < 9; b++)
		assert_true(vw_write(i, WRITE_DATA, 0, b * BLK, 512, 1) > 0);
	while (vw_write(i, WRITE_DATA, 0, 20 * BLK, 512, 1) > 0 && vhd_of(i)->w->space.n_ready)
		assert_true(vw_write(i, WRITE_DATA, 0, 21 * BLK, 512, 1) > 0);
	assert_int_equal(vw_write(i, WRITE_DATA, 0, 30 * BLK, 512, 1), -ENOSPC);
	assert_int_equal(vhd_job_begin(i, JOB_GROW, &j), -ENOSPC);
	assert_int_equal(vw_run(i, JOB_COMMIT, NULL), 0);
	assert_int_equal(vw_run(i, JOB_CLOSE, &t), 0);
	assert_null(strpbrk(t.acts, "ET"));
	mem_peek(f, mem_size(f) - 512, back, 512);
	assert_memory_equal(back, footer, 512);
	vhd_close(i);
	mem_file_put(f);
}

static void sector_numbers_end_below_two_tebibytes(void **state)
{
	struct vhd *v = vhd_of(img);
	unsigned char footer[512];
	uint64_t end = (1ull << 41) - 3 * (BLK + 4096); /* room for two or three slots */
	struct job j;
	unsigned n = 0;

	(void)state;
	/* one block near the end of what 32-bit sector numbers reach */
	mem_peek(file, 0, footer, 512);
	mem_resize(file, end);
	mem_poke(file, end - 512, footer, 512);
	be32_store(footer, (uint32_t)((end - 4096 - BLK) / 512 - 1));
	mem_poke(file, v->bat_off, footer, 4);
	vhd_close(img);
	img = vw_open_write(file);
	assert_non_null(img);
	v = vhd_of(img);
	v->w->space.gap_i = v->w->space.n_gaps - 1; /* the gap below is of no interest here */
	while (!vhd_job_begin(img, JOB_GROW, &j)) {
		struct vhd_grow *g = &v->w->space.grow;

		for (unsigned i = 0; i < g->n; i++)
			assert_true(g->slot[i].sector < 0xfffffff8);
		n += g->n;
		g->running = false;
		v->w->space.gaps[v->w->space.n_gaps - 1].start = vhd_data_off(g->slot[g->n - 1].sector) + BLK;
		v->file_bytes = g->new_bytes;
	}
	assert_in_range(n, 2, 4);
	assert_int_equal(vhd_job_begin(img, JOB_GROW, &j), -ENOSPC);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define ZEROS(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
#define DIRTY(t) cmocka_unit_test_setup_teardown(t, setup_dirty, teardown)
	    ZEROS(file_grows_behind_a_durable_footer),
	    DIRTY(bitmaps_are_zeroed_where_the_storage_promises_nothing),
	    ZEROS(no_slot_is_offered_before_the_last_flush),
	    ZEROS(file_cut_at_any_act_of_a_grow_opens),
	    ZEROS(full_disk_fails_the_grow_and_changes_nothing),
	    ZEROS(extension_that_went_half_of_the_way_is_taken_back),
	    ZEROS(footer_of_a_failed_grow_never_passes_for_a_bitmap),
	    ZEROS(close_mends_the_end_that_a_failed_grow_left),
	    DIRTY(slot_whose_zeroing_failed_is_not_offered),
	    ZEROS(grow_that_offers_nothing_fails),
	    ZEROS(grow_is_wanted_below_one_chunk),
	    ZEROS(disk_never_grows_beyond_what_its_blocks_can_want),
	    ZEROS(slack_left_by_an_unclean_end_is_used_before_the_file_grows),
	    ZEROS(stale_bitmap_in_a_gap_is_not_inherited),
	    ZEROS(odd_gaps_of_foreign_images_give_aligned_slots),
	    ZEROS(device_of_fixed_size_keeps_its_footer_in_the_last_sector),
	    ZEROS(sector_numbers_end_below_two_tebibytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
