/*
 * Where the bytes of a VHD live, against a bit-by-bit reading of BAT and bitmaps: random blocks, bitmaps,
 * offsets, lengths and block sizes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/vhdfake.h"

#define MIB (1ull << 20)

static void check_answer(const struct fake *f, uint64_t off, uint32_t len)
{
	const struct vhd *v = &f->v;
	uint32_t b = (uint32_t)(off / v->block_bytes);
	struct extent x, y;

	vhd_map(&v->img, NULL, off, len, &x);
	if (x.kind == EXT_META) {
		assert_int_equal(x.file_off, (uint64_t)v->bat[b] * 512);
		assert_true(x.len_bytes > 0 && x.len_bytes <= len &&
			    off % v->block_bytes + x.len_bytes <= v->block_bytes);
		vhd_map(&v->img, f->bitmaps[b], off, x.len_bytes, &y);
		assert_true(y.len_bytes <= x.len_bytes);
		len = x.len_bytes;
		x = y;
	}
	assert_true(x.kind == EXT_DATA || x.kind == EXT_HOLE);
	assert_int_equal(x.layer, 0);
	assert_true(x.len_bytes > 0 && x.len_bytes <= len && x.len_bytes % 512 == 0);
	for (uint64_t s = off / 512; s < (off + x.len_bytes) / 512; s++)
		assert_int_equal(sector_present(f, s), x.kind == EXT_DATA);
	if (x.kind == EXT_DATA)
		assert_int_equal(x.file_off, (uint64_t)v->bat[b] * 512 + 512 + off % v->block_bytes);
	/* The run is as long as one answer can be: to the end of the question, of the block, or to a sector
	 * of the other kind. */
	if (x.len_bytes < len && (off + x.len_bytes) % v->block_bytes)
		assert_int_equal(sector_present(f, (off + x.len_bytes) / 512), x.kind == EXT_HOLE);
}

static void random_questions_are_answered_as_bit_by_bit(void **state)
{
	static const uint32_t block_sizes[] = {4096, 8192, 65536, 512 << 10, 2 << 20};

	(void)state;
	for (size_t k = 0; k < sizeof(block_sizes) / sizeof(block_sizes[0]); k++)
		for (unsigned round = 0; round < 6; round++) {
			uint64_t size = (uint64_t)block_sizes[k] * 9 + 512 * (1 + rng(7));
			struct fake f;

			fake_make(&f, block_sizes[k], size);
			for (unsigned i = 0; i < 1500; i++) {
				uint64_t off = rng((uint32_t)(size / 512)) * 512ull;
				uint64_t most = (size - off) / 512;
				uint32_t len = 512 * (1 + rng((uint32_t)(rng(2) && most > 64 ? 64 : most)));

				check_answer(&f, off, len);
			}
			fake_free(&f);
		}
}

static void hole_spans_free_blocks_and_stops_at_the_first_used_one(void **state)
{
	struct extent x;
	struct fake f;

	(void)state;
	fake_make(&f, 2 << 20, 20 * MIB);
	for (unsigned b = 0; b < 10; b++)
		f.v.bat[b] = b == 7 ? 4096 : VHD_BAT_FREE;
	vhd_map(&f.v.img, NULL, MIB, 19u << 20, &x);
	assert_int_equal(x.kind, EXT_HOLE);
	assert_int_equal(x.len_bytes, 13u << 20);
	vhd_map(&f.v.img, NULL, 16 * MIB, 4u << 20, &x);
	assert_int_equal(x.kind, EXT_HOLE);
	assert_int_equal(x.len_bytes, 4u << 20);
	fake_free(&f);
}

static void block_known_full_needs_no_bitmap(void **state)
{
	struct extent x;
	struct fake f;

	(void)state;
	fake_make(&f, 2 << 20, 20 * MIB);
	f.v.bat[3] = 4095;
	f.v.full[0] |= 1u << 3;
	vhd_map(&f.v.img, NULL, 6 * MIB + 4096, 4u << 20, &x);
	assert_int_equal(x.kind, EXT_DATA);
	assert_int_equal(x.file_off, 4096 * 512 + 4096);
	assert_int_equal(x.len_bytes, (2u << 20) - 4096);
	fake_free(&f);
}

static void owns_is_true_exactly_where_a_block_is_allocated(void **state)
{
	struct fake f;

	(void)state;
	fake_make(&f, 65536, 65536 * 40);
	for (unsigned i = 0; i < 4000; i++) {
		uint64_t off = rng(65536 * 40 / 512) * 512ull,
			 len = 512 * (1 + rng((uint32_t)((65536 * 40 - off) / 512)));
		bool want = false;

		for (uint64_t b = off / 65536; b <= (off + len - 1) / 65536; b++)
			want |= f.v.bat[b] != VHD_BAT_FREE;
		assert_int_equal(vhd_owns(&f.v.img, off, len), want);
	}
	fake_free(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(random_questions_are_answered_as_bit_by_bit),
	    cmocka_unit_test(hole_spans_free_blocks_and_stops_at_the_first_used_one),
	    cmocka_unit_test(block_known_full_needs_no_bitmap),
	    cmocka_unit_test(owns_is_true_exactly_where_a_block_is_allocated),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
