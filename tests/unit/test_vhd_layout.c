/*
 * The VHD structures on disk, one at a time: what is built parses back, each field lies where the
 * specification has it, and every value that blkd would not serve is refused with a sentence that names it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/vhd/layout.h"
#include "formats/vhd/utf16.h"

#include <errno.h>

static struct vhd_footer_info footer_sample(void)
{
	struct vhd_footer_info f = {
	    .features = 2,
	    .version = VHD_VERSION_1_0,
	    .data_offset = 512,
	    .timestamp = 0x11223344,
	    .creator_app = VHD_CREATOR_TAP,
	    .creator_version = VHD_CREATOR_VERSION(1, 3),
	    .orig_size = 1 << 20,
	    .curr_size = 100 << 20,
	    .cylinders = 0x1234,
	    .heads = 16,
	    .sectors_per_track = 63,
	    .type = VHD_DYNAMIC,
	    .uuid = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
	};

	return f;
}

static void footer_fields_lie_where_the_specification_has_them(void **state)
{
	struct vhd_footer_info f = footer_sample(), back;
	unsigned char raw[512];
	struct err e = ERR_INIT;

	(void)state;
	f.hidden = 1;
	vhd_footer_build(&f, raw);
	assert_memory_equal(raw, "conectix", 8);
	assert_int_equal(be32_load(raw + 8), 2);
	assert_int_equal(be32_load(raw + 12), 0x10000);
	assert_int_equal(be64_load(raw + 16), 512);
	assert_int_equal(be32_load(raw + 24), 0x11223344);
	assert_memory_equal(raw + 28, "tap\0", 4);
	assert_int_equal(be32_load(raw + 32), 0x10003);
	assert_int_equal(be64_load(raw + 40), 1 << 20);
	assert_int_equal(be64_load(raw + 48), 100 << 20);
	assert_int_equal(be16_load(raw + 56), 0x1234);
	assert_int_equal(raw[58], 16);
	assert_int_equal(raw[59], 63);
	assert_int_equal(be32_load(raw + 60), 3);
	assert_memory_equal(raw + 68, f.uuid, 16);
	assert_int_equal(raw[85], 1);
	assert_int_equal(vhd_footer_parse(raw, &back, &e), 0);
	f.checksum = back.checksum;
	assert_memory_equal(&f, &back, sizeof(f));
}

static void checksum_is_the_inverted_sum_of_all_other_bytes(void **state)
{
	struct vhd_footer_info f = footer_sample();
	unsigned char raw[512];
	uint32_t sum = 0;

	(void)state;
	vhd_footer_build(&f, raw);
	for (unsigned i = 0; i < 512; i++)
		if (i < 64 || i > 67)
			sum += raw[i];
	assert_int_equal(be32_load(raw + 64), ~sum);
	raw[300] ^= 1;
	assert_false(vhd_footer_checksum_ok(raw));
}

static void hidden_mark_of_tap_1_1_may_be_outside_the_checksum_and_of_1_3_not(void **state)
{
	struct vhd_footer_info f = footer_sample();
	unsigned char raw[512];

	(void)state;
	vhd_footer_build(&f, raw);
	raw[85] = 1;
	assert_false(vhd_footer_checksum_ok(raw));
	f.creator_version = VHD_CREATOR_VERSION(1, 1);
	vhd_footer_build(&f, raw);
	raw[85] = 1;
	assert_true(vhd_footer_checksum_ok(raw));
	raw[86] = 1;
	assert_false(vhd_footer_checksum_ok(raw));
}

struct bad_footer {
	const char *word;
	unsigned off, len;
	uint64_t value;
};

static void bad_footers_are_refused_by_name(void **state)
{
	static const struct bad_footer bad[] = {
	    {"no VHD footer", 0, 1, 'C'},
	    {"features", 8, 4, 0},
	    {"features", 8, 4, 6},
	    {"version", 12, 4, 0x20000},
	    {"dynamic header at offset", 16, 8, UINT64_MAX},
	    {"dynamic header at offset", 16, 8, 0},
	    {"dynamic header at offset", 16, 8, 513},
	    {"tap 0.1", 32, 4, 1},
	    {"not a positive multiple", 48, 8, 0},
	    {"not a positive multiple", 48, 8, 1000},
	    {"2040 GiB", 48, 8, (2040ull << 30) + 512},
	    {"disk type 0", 60, 4, 0},
	    {"disk type 5", 60, 4, 5},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct vhd_footer_info f = footer_sample(), got;
		unsigned char raw[512];
		struct err e = ERR_INIT;

		vhd_footer_build(&f, raw);
		for (unsigned k = 0; k < bad[i].len; k++)
			raw[bad[i].off + k] = (unsigned char)(bad[i].value >> 8 * (bad[i].len - 1 - k));
		be32_store(raw + 64, vhd_footer_checksum(raw));
		assert_true(vhd_footer_parse(raw, &got, &e) < 0);
		if (!strstr(e.text, bad[i].word))
			fail_msg("wanted '%s' in: %s", bad[i].word, e.text);
	}
}

static void poisoned_and_uuidless_and_miscounted_footers_are_refused(void **state)
{
	struct vhd_footer_info f = footer_sample(), got;
	unsigned char raw[512];
	struct err e = ERR_INIT;

	(void)state;
	vhd_footer_build(&f, raw);
	memcpy(raw, "v_poison", 8);
	assert_int_equal(vhd_footer_parse(raw, &got, &e), -EINVAL);
	assert_non_null(strstr(e.text, "disabled"));
	memset(f.uuid, 0, 16);
	vhd_footer_build(&f, raw);
	assert_int_equal(vhd_footer_parse(raw, &got, &e), -EINVAL);
	assert_non_null(strstr(e.text, "unique id"));
	f = footer_sample();
	vhd_footer_build(&f, raw);
	raw[67] ^= 1;
	assert_int_equal(vhd_footer_parse(raw, &got, &e), -EINVAL);
	assert_non_null(strstr(e.text, "checksum"));
}

static void geometry_follows_the_specification(void **state)
{
	static const struct {
		uint64_t size, sectors;
	} known[] = {
	    {100ull << 20, 104761344 / 512}, /* qemu's view of a vhd-util image of 100 MiB */
	    {128ull << 30, 65535ull * 16 * 255},
	    {2040ull << 30, 65535ull * 16 * 255},
	    {2ull << 20, 60 * 4 * 17},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		uint16_t c;
		uint8_t h, s;

		vhd_geometry(known[i].size, &c, &h, &s);
		assert_int_equal((uint64_t)c * h * s, known[i].sectors);
	}
	for (uint64_t size = 512; size < 200ull << 30; size += size / 3 / 512 * 512 + 512) {
		uint16_t c;
		uint8_t h, s;

		vhd_geometry(size, &c, &h, &s);
		assert_true((uint64_t)c * h * s * 512 <= size);
	}
}

static void locator_room_is_sectors_or_bytes(void **state)
{
	(void)state;
	assert_int_equal(vhd_locator_room(0), 0);
	assert_int_equal(vhd_locator_room(1), 512);
	assert_int_equal(vhd_locator_room(511), 511 * 512);
	assert_int_equal(vhd_locator_room(512), 512);
	assert_int_equal(vhd_locator_room(1024), 1024);
	assert_int_equal(vhd_locator_room(1000), 0);
}

static void batmap_checksum_of_1_1_is_signed_and_of_1_2_unsigned(void **state)
{
	const unsigned char map[4] = {0x80, 0x01, 0xff, 0x7f};

	(void)state;
	assert_int_equal(vhd_batmap_checksum(map, 4, VHD_BATMAP_VERSION_1_2),
			 ~(uint32_t)(0x80 + 1 + 0xff + 0x7f));
	assert_int_equal(vhd_batmap_checksum(map, 4, VHD_BATMAP_VERSION_1_1),
			 ~(uint32_t)(-128 + 1 - 1 + 127));
	assert_int_equal(vhd_batmap_covered_bytes(100 << 20), 512);
	assert_int_equal(vhd_batmap_covered_bytes(8 << 20), 0);
	assert_int_equal(vhd_batmap_covered_bytes(2040ull << 30), 130560);
}

static void batmap_header_keeps_key_hash_when_the_generation_is_set(void **state)
{
	struct vhd_batmap_info m = {.map_off = 4096,
				    .map_sectors = 3,
				    .version = VHD_BATMAP_VERSION_1_2,
				    .checksum = 77},
			       got;
	unsigned char raw[512];

	(void)state;
	vhd_batmap_build(&m, raw);
	memset(raw + 28, 0x5a, 66);
	vhd_batmap_set_generation(raw, 9);
	vhd_batmap_set_checksum(raw, 78);
	assert_int_equal(raw[28], 0x5a);
	assert_int_equal(raw[93], 0x5a);
	assert_memory_equal(raw + 496, "blkdgen1", 8);
	assert_int_equal(be64_load(raw + 504), 9);
	assert_true(vhd_batmap_parse(raw, &got));
	assert_true(got.has_generation);
	assert_int_equal(got.generation, 9);
	assert_int_equal(got.checksum, 78);
	raw[496] = 'x';
	assert_true(vhd_batmap_parse(raw, &got));
	assert_false(got.has_generation);
	assert_int_equal(got.generation, 0);
	raw[23] = 3;
	assert_false(vhd_batmap_parse(raw, &got));
}

static void header_parses_back_what_was_built(void **state)
{
	struct vhd_footer_info f = footer_sample();
	struct vhd_header_info h = {
	    .data_offset = VHD_NO_OFFSET,
	    .table_offset = 1536,
	    .version = VHD_VERSION_1_0,
	    .bat_entries = 50,
	    .block_bytes = VHD_BLOCK_BYTES,
	    .parent_uuid = {9},
	    .parent_mtime = 5,
	    .parent_name = {0, 'a'},
	    .locators = {{VHD_LOC_W2RU, 512, 14, 4096}},
	};
	struct vhd_header_info got;
	unsigned char raw[1024];
	struct err e = ERR_INIT;

	(void)state;
	f.type = VHD_DIFFERENCING;
	vhd_header_build(&h, raw);
	assert_int_equal(vhd_header_parse(raw, &f, &got, &e), 0);
	h.checksum = got.checksum;
	assert_memory_equal(&h, &got, sizeof(h));
	assert_int_equal(be32_load(raw + 576), VHD_LOC_W2RU);
	assert_int_equal(be64_load(raw + 592), 4096);
	f.type = VHD_DYNAMIC;
	assert_int_equal(vhd_header_parse(raw, &f, &got, &e), -EINVAL);
	assert_non_null(strstr(e.text, "names a parent"));
}

static void names_survive_both_directions(void **state)
{
	static const char *const names[] = {"./a.vhd", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x92\xbe.vhd",
					    "/x y/%20.vhd", ""};

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		for (int big = 0; big < 2; big++) {
			unsigned char wide[256];
			char back[256];
			int n = utf8_to_utf16(names[i], big, wide, sizeof(wide));

			assert_true(n >= 0);
			assert_int_equal(utf16_to_utf8(wide, (size_t)n, big, back, sizeof(back)),
					 strlen(names[i]));
			assert_string_equal(back, names[i]);
		}
	assert_int_equal(utf8_to_utf16("abc", false, (unsigned char[4]){0}, 4), -ENAMETOOLONG);
}

static void what_is_no_name_is_refused(void **state)
{
	static const struct {
		unsigned char raw[8];
		size_t len;
	} wide[] = {
	    {{'a', 0, 'b'}, 3},		 /* odd */
	    {{0x00, 0xd8}, 2},		 /* lone high surrogate at the end */
	    {{0x00, 0xd8, 'a', 0}, 4},	 /* high without low */
	    {{0x00, 0xdc, 'a', 0}, 4},	 /* low alone */
	    {{'a', 0, '\n', 0}, 4},	 /* a line break */
	    {{'a', 0, 0, 0, 'b', 0}, 6}, /* something after the end */
	};
	static const char *const narrow[] = {"\xff", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
					     "a\nb", "\x7f"};
	char out[64];
	unsigned char wout[64];

	(void)state;
	for (size_t i = 0; i < sizeof(wide) / sizeof(wide[0]); i++)
		assert_int_equal(utf16_to_utf8(wide[i].raw, wide[i].len, false, out, sizeof(out)), -EILSEQ);
	for (size_t i = 0; i < sizeof(narrow) / sizeof(narrow[0]); i++)
		assert_int_equal(utf8_to_utf16(narrow[i], false, wout, sizeof(wout)), -EILSEQ);
	assert_int_equal(utf16_to_utf8((const unsigned char *)"a\0b\0", 4, false, out, 2), -ENAMETOOLONG);
	assert_int_equal(utf16_to_utf8((const unsigned char *)"a\0b\0", 4, false, out, 3), 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(footer_fields_lie_where_the_specification_has_them),
	    cmocka_unit_test(checksum_is_the_inverted_sum_of_all_other_bytes),
	    cmocka_unit_test(hidden_mark_of_tap_1_1_may_be_outside_the_checksum_and_of_1_3_not),
	    cmocka_unit_test(bad_footers_are_refused_by_name),
	    cmocka_unit_test(poisoned_and_uuidless_and_miscounted_footers_are_refused),
	    cmocka_unit_test(geometry_follows_the_specification),
	    cmocka_unit_test(locator_room_is_sectors_or_bytes),
	    cmocka_unit_test(batmap_checksum_of_1_1_is_signed_and_of_1_2_unsigned),
	    cmocka_unit_test(batmap_header_keeps_key_hash_when_the_generation_is_set),
	    cmocka_unit_test(header_parses_back_what_was_built),
	    cmocka_unit_test(names_survive_both_directions),
	    cmocka_unit_test(what_is_no_name_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
