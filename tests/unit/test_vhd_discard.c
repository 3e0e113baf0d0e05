/* Discards and zeroes of a VHD: a parent never shows through, and a block is freed only where that is safe.
 */
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
	struct vw_image_opts o = {.size_bytes = 32 * BLK + 1536, .block_bytes = BLK, .batmap = true};

	(void)state;
	file = vw_create("/t.vhd", &o);
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

static void commit(void)
{
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
}

static struct write_piece ask(enum write_op op, unsigned flags, uint64_t off, uint64_t len)
{
	struct write_piece p;

	assert_int_equal(vw_begin(img, op, flags, off, len, &p), 0);
	return p;
}

static void finish(const struct write_piece *p)
{
	assert_int_equal(vw_piece_do(img, p, NULL), 0);
	vhd_write_end(img, p, 0);
}

static uint32_t bat_on_medium(uint32_t block)
{
	unsigned char raw[4];

	mem_peek(file, vhd_of(img)->bat_off + block * 4ull, raw, 4);
	return be32_load(raw);
}

static void trim_of_absent_sectors_is_nothing(void **state)
{
	struct write_piece p = ask(WRITE_TRIM, 0, 0, BLK);

	(void)state;
	assert_int_equal(p.act, PIECE_NOTHING);
	assert_int_equal(p.epoch, 0);
	assert_int_equal(p.len_bytes, BLK);
	finish(&p);
	assert_int_equal(vw_value(img, 0, BELOW), BELOW);
}

static void trim_of_present_sectors_makes_present_zeros(void **state)
{
	struct write_piece p;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 0, 16384, 7) > 0);
	commit();
	p = ask(WRITE_TRIM, 0, 0, BLK);
	assert_int_equal(p.act, PIECE_PUNCH);
	assert_int_equal(p.len_bytes, 16384);
	assert_int_equal(p.epoch, 0);
	finish(&p);
	assert_int_equal(vw_value(img, 4096, BELOW), 0);
	p = ask(WRITE_TRIM, 0, 16384, BLK - 16384);
	assert_int_equal(p.act, PIECE_NOTHING);
	finish(&p);
	assert_int_equal(vw_value(img, 16384, BELOW), BELOW);
}

static void trim_is_rounded_inward_to_pages_of_the_file(void **state)
{
	struct write_piece p;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 0, BLK, 7) > 0);
	commit();
	p = ask(WRITE_TRIM, 0, 512, 12288);
	assert_int_equal(p.act, PIECE_NOTHING);
	assert_int_equal(p.len_bytes, 3584);
	finish(&p);
	p = ask(WRITE_TRIM, 0, 4096, 8704);
	assert_int_equal(p.act, PIECE_PUNCH);
	assert_int_equal(p.len_bytes, 8192);
	finish(&p);
	p = ask(WRITE_TRIM, 0, 12288, 512);
	assert_int_equal(p.act, PIECE_NOTHING);
	assert_int_equal(p.len_bytes, 512);
	finish(&p);
	assert_int_equal(vw_value(img, 3584, BELOW), 7);
	assert_int_equal(vw_value(img, 4096, BELOW), 0);
	assert_int_equal(vw_value(img, 12288, BELOW), 7);
}

static void trim_is_nothing_where_the_storage_cannot_punch(void **state)
{
	struct write_piece p;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 0, BLK, 7) > 0);
	commit();
	img->file->traits.can_punch = false;
	p = ask(WRITE_TRIM, 0, 0, BLK);
	assert_int_equal(p.act, PIECE_NOTHING);
	finish(&p);
	assert_int_equal(vw_value(img, 0, BELOW), 7);
}

static void zeroing_is_exact_and_hides_the_parent(void **state)
{
	struct write_piece p;

	(void)state;
	p = ask(WRITE_ZERO, 0, 512, 1024);
	assert_int_equal(p.act, PIECE_ZERO);
	assert_true(p.epoch != 0);
	assert_int_equal(p.rec.count, 2);
	finish(&p);
	assert_int_equal(vw_value(img, 0, BELOW), BELOW);
	assert_int_equal(vw_value(img, 512, BELOW), 0);
	assert_int_equal(vw_value(img, 1536, BELOW), BELOW);
	commit();
	p = ask(WRITE_ZERO, 0, 512, 512);
	assert_int_equal(p.act, PIECE_ZERO);
	assert_int_equal(p.epoch, 0);
	finish(&p);
}

static void zeroing_absent_sectors_over_zeros_is_nothing(void **state)
{
	struct write_piece p = ask(WRITE_ZERO, WRITE_BELOW_ZERO, 0, BLK);

	(void)state;
	assert_int_equal(p.act, PIECE_NOTHING);
	finish(&p);
	assert_true(vw_write(img, WRITE_DATA, 0, 4096, 4096, 7) > 0);
	commit();
	p = ask(WRITE_ZERO, WRITE_BELOW_ZERO, 0, BLK);
	assert_int_equal(p.act, PIECE_NOTHING);
	assert_int_equal(p.len_bytes, 4096);
	finish(&p);
	p = ask(WRITE_ZERO, WRITE_BELOW_ZERO, 4096, BLK - 4096);
	assert_int_equal(p.act, PIECE_ZERO);
	assert_int_equal(p.len_bytes, 4096);
	finish(&p);
	assert_int_equal(vw_value(img, 4096, BELOW), 0);
}

static void whole_block_over_zeros_is_freed(void **state)
{
	struct write_piece p;
	uint32_t slot;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, BLK, BLK, 7) > 0);
	commit();
	slot = vhd_of(img)->bat[1];
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, BLK, 3 * BLK);
	assert_int_equal(p.act, PIECE_PUNCH);
	assert_int_equal(p.len_bytes, BLK);
	assert_int_equal(p.epoch, vhd_epoch_open(img));
	assert_int_equal(p.rec.sector, META_RECORD_FREED);
	assert_int_equal(p.rec.count, 0);
	assert_int_equal(vhd_of(img)->bat[1], slot); /* until it landed */
	finish(&p);
	assert_int_equal(vhd_of(img)->bat[1], VHD_BAT_FREE);
	assert_int_equal(vw_value(img, BLK, 0), 0);
	assert_int_equal(bat_on_medium(1), slot);
	commit();
	assert_int_equal(bat_on_medium(1), VHD_BAT_FREE);
}

static void only_a_trim_of_the_whole_block_over_zeros_frees_it(void **state)
{
	struct write_piece p;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 0, BLK, 7) > 0);
	/* pending */
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, 0, BLK);
	assert_int_equal(p.epoch, 0);
	finish(&p);
	commit();
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, 0, BLK - 512);
	assert_int_equal(p.epoch, 0);
	finish(&p);
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, 512, BLK - 512);
	assert_int_equal(p.epoch, 0);
	finish(&p);
	p = ask(WRITE_TRIM, 0, 0, BLK);
	assert_int_equal(p.epoch, 0);
	finish(&p);
	p = ask(WRITE_ZERO, WRITE_BELOW_ZERO, 0, BLK);
	assert_int_equal(p.act, PIECE_ZERO);
	finish(&p);
	assert_int_not_equal(vhd_of(img)->bat[0], VHD_BAT_FREE);
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, 0, BLK);
	assert_true(p.epoch > 0);
	finish(&p);
}

static void block_that_the_batmap_on_disk_calls_full_is_never_freed(void **state)
{
	struct vw_image_opts o = {.size_bytes = 64ull << 20, .block_bytes = 2u << 20, .batmap = true};
	struct mem_file *f = vw_create("/b.vhd", &o);
	struct image *i = vw_open_write(f);
	struct write_piece p;

	(void)state;
	assert_true(vw_write(i, WRITE_DATA, 0, 0, 2u << 20, 5) > 0);
	assert_int_equal(vw_run(i, JOB_COMMIT, NULL), 0);
	assert_int_equal(vw_run(i, JOB_CLOSE, NULL), 0);
	vhd_close(i);
	i = vw_open_write(f);
	assert_int_equal(vw_begin(i, WRITE_TRIM, WRITE_BELOW_ZERO, 0, 2u << 20, &p), 0);
	assert_int_equal(p.act, PIECE_PUNCH);
	assert_int_equal(p.epoch, 0);
	vhd_write_end(i, &p, 0);
	assert_int_not_equal(vhd_of(i)->bat[0], VHD_BAT_FREE);
	vhd_close(i);
	mem_file_put(f);
}

static void last_part_block_can_be_freed(void **state)
{
	struct write_piece p;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 32 * BLK, 1536, 7) > 0);
	commit();
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, 32 * BLK, 1536);
	assert_int_equal(p.act, PIECE_NOTHING); /* not whole pages */
	assert_int_equal(p.rec.sector, META_RECORD_FREED);
	finish(&p);
	assert_int_equal(vhd_of(img)->bat[32], VHD_BAT_FREE);
}

static void failed_discard_frees_nothing(void **state)
{
	struct write_piece p;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 0, 4096, 7) > 0);
	commit();
	vhd_close(img);
	img = vw_open_write(file); /* its bitmap is not in memory now */
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, 0, BLK);
	assert_int_equal(p.rec.sector, META_RECORD_FREED);
	assert_null(vhd_meta_get(img, vhd_of(img)->bat[0] * 512ull));
	vhd_write_end(img, &p, -EIO);
	assert_int_equal(vw_value(img, 0, BELOW), 7);
	assert_int_equal(vw_value(img, 4096, BELOW), BELOW);
	assert_false(img->wants & IMAGE_DIRTY);
	assert_int_equal(vhd_of(img)->w->held, 0);
}

static void block_being_freed_takes_no_writes_until_that_is_durable(void **state)
{
	struct write_piece p, q;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 0, BLK, 7) > 0);
	commit();
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, 0, BLK);
	assert_int_equal(vw_begin(img, WRITE_DATA, 0, 0, 512, &q), -EINPROGRESS);
	assert_int_equal(q.park, PARK_EPOCH);
	finish(&p);
	assert_int_equal(vw_begin(img, WRITE_DATA, 0, 0, 512, &q), -EINPROGRESS);
	assert_int_equal(q.park, PARK_EPOCH);
	assert_true(img->wants & IMAGE_WANT_COMMIT);
	/* zeros that a commit has yet to make true */
	assert_int_equal(vw_begin(img, WRITE_ZERO, WRITE_BELOW_ZERO, 0, 512, &q), -EINPROGRESS);
	commit();
	assert_true(vw_write(img, WRITE_DATA, 0, 0, 512, 9) > 0);
	assert_int_equal(vw_value(img, 512, 0), 0);
}

static void freed_slot_comes_back_zeroed_and_flushed(void **state)
{
	struct vhd_space *s = &vhd_of(img)->w->space;
	struct vw_trace t = {0};
	unsigned char bits[512];
	struct write_piece p;
	uint32_t slot;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 0, BLK, 7) > 0);
	commit();
	slot = vhd_of(img)->bat[0];
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, 0, BLK);
	finish(&p);
	assert_int_equal(s->n_freed, 0);
	commit();
	assert_int_equal(s->n_freed, 1);
	s->n_ready = 0;
	assert_int_equal(vw_run(img, JOB_GROW, &t), 0);
	assert_int_equal(t.off[0], slot * 512ull);
	assert_int_equal(t.acts[t.n - 1], 'F');
	mem_peek(file, slot * 512ull, bits, 512);
	assert_true(bytes_are_zero(bits, 512));
	assert_true(vw_write(img, WRITE_DATA, 0, 9 * BLK, 512, 3) > 0);
	assert_int_equal(vhd_of(img)->bat[9], slot);
	assert_int_equal(vw_value(img, 9 * BLK + 512, BELOW), BELOW);
}

static void slot_is_not_reused_when_clearing_its_entry_failed(void **state)
{
	struct vhd_space *s = &vhd_of(img)->w->space;
	struct vw_trace t = {.fail_at = 2};
	struct write_piece p;
	uint32_t slot;

	(void)state;
	assert_true(vw_write(img, WRITE_DATA, 0, 0, BLK, 7) > 0);
	commit();
	slot = vhd_of(img)->bat[0];
	p = ask(WRITE_TRIM, WRITE_BELOW_ZERO, 0, BLK);
	finish(&p);
	assert_int_equal(vw_run(img, JOB_COMMIT, &t), -EIO);
	assert_int_equal(s->n_freed, 0);
	assert_int_equal(bat_on_medium(0), slot);
	assert_int_equal(vw_begin(img, WRITE_DATA, 0, 0, 512, &p), -EIO);
	commit();
	assert_int_equal(s->n_freed, 1);
	assert_int_equal(bat_on_medium(0), VHD_BAT_FREE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
	    T(trim_of_absent_sectors_is_nothing),
	    T(trim_of_present_sectors_makes_present_zeros),
	    T(trim_is_rounded_inward_to_pages_of_the_file),
	    T(trim_is_nothing_where_the_storage_cannot_punch),
	    T(zeroing_is_exact_and_hides_the_parent),
	    T(zeroing_absent_sectors_over_zeros_is_nothing),
	    T(whole_block_over_zeros_is_freed),
	    T(only_a_trim_of_the_whole_block_over_zeros_frees_it),
	    cmocka_unit_test(block_that_the_batmap_on_disk_calls_full_is_never_freed),
	    T(last_part_block_can_be_freed),
	    T(failed_discard_frees_nothing),
	    T(block_being_freed_takes_no_writes_until_that_is_durable),
	    T(freed_slot_comes_back_zeroed_and_flushed),
	    T(slot_is_not_reused_when_clearing_its_entry_failed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
