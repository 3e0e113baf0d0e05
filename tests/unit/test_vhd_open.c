/*
 * Opening VHDs that somebody else, or nobody sane, has written: each lie is refused with a sentence that
 * names it, what is merely unclean is accepted with a note, and nothing that a footer at the end says is ever
 * believed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/vhdtest.h"

#include "formats/vhd/utf16.h"
#include "formats/vhd/vhd.h"

#define SIZE (20 * TV_MIB) /* 10 blocks: map of one sector, of which two bytes count */

static const unsigned char ones[512] = {[0 ... 511] = 0xff};

static uint64_t end_footer(const struct mem_file *f)
{
	return mem_size(f) - 512;
}

/* Both footers get the value, with right checksums. */
static void both32(struct mem_file *f, unsigned off, uint32_t v)
{
	tv_poke32(f, off, v);
	tv_fix_footer(f, 0);
	tv_poke32(f, end_footer(f) + off, v);
	tv_fix_footer(f, end_footer(f));
}

static void both64(struct mem_file *f, unsigned off, uint64_t v)
{
	both32(f, off, (uint32_t)(v >> 32));
	both32(f, off + 4, (uint32_t)v);
}

static void hdr32(struct mem_file *f, unsigned off, uint32_t v)
{
	tv_poke32(f, TV_HDR + off, v);
	tv_fix_header(f);
}

static void hdr64(struct mem_file *f, unsigned off, uint64_t v)
{
	tv_poke64(f, TV_HDR + off, v);
	tv_fix_header(f);
}

/* ---- the lies ---- */

static void front_damaged(struct mem_file *f)
{
	tv_poke32(f, 100, 1);
}

static void front_gone(struct mem_file *f)
{
	static const unsigned char zeros[512];

	mem_poke(f, 0, zeros, 512);
}

static void both_gone(struct mem_file *f)
{
	static const unsigned char zeros[512];

	mem_poke(f, 0, zeros, 512);
	mem_poke(f, end_footer(f), zeros, 512);
}

static void file_empty(struct mem_file *f)
{
	mem_resize(f, 0);
}

static void is_fixed(struct mem_file *f)
{
	both32(f, 60, 2);
}

static void poisoned(struct mem_file *f)
{
	mem_poke(f, 0, "v_poison", 8);
	mem_poke(f, end_footer(f), "v_poison", 8);
}

static void size_too_large(struct mem_file *f)
{
	both64(f, 48, (2040ull << 30) + 512);
}

static void size_past_bat(struct mem_file *f)
{
	both64(f, 48, SIZE + 512);
}

static void size_zero(struct mem_file *f)
{
	both64(f, 48, 0);
}

static void header_far(struct mem_file *f)
{
	both64(f, 16, 1ull << 50);
}

static void header_gone(struct mem_file *f)
{
	tv_poke32(f, TV_HDR, 0);
}

static void header_flipped(struct mem_file *f)
{
	tv_poke32(f, TV_HDR + 800, 1);
}

static void header_version(struct mem_file *f)
{
	hdr32(f, 24, 0x20000);
}

static void header_chained(struct mem_file *f)
{
	hdr64(f, 8, 512);
}

static void block_0(struct mem_file *f)
{
	hdr32(f, 32, 0);
}

static void block_1(struct mem_file *f)
{
	hdr32(f, 32, 1);
}

static void block_2(struct mem_file *f)
{
	hdr32(f, 32, 2);
}

static void block_odd(struct mem_file *f)
{
	hdr32(f, 32, 3 << 20);
}

static void block_2048(struct mem_file *f)
{
	hdr32(f, 32, 2048);
}

static void block_4m(struct mem_file *f)
{
	hdr32(f, 32, 4 << 20);
}

static void block_2g(struct mem_file *f)
{
	hdr32(f, 32, 1u << 31);
}

static void bat_short(struct mem_file *f)
{
	hdr32(f, 28, 9);
}

static void bat_huge(struct mem_file *f)
{
	hdr32(f, 28, UINT32_MAX);
}

static void bat_long_past_end(struct mem_file *f)
{
	hdr32(f, 28, VHD_MAX_BAT_ENTRIES);
}

static void bat_at_0(struct mem_file *f)
{
	hdr64(f, 16, 0);
}

static void bat_unaligned(struct mem_file *f)
{
	hdr64(f, 16, 1537);
}

static void bat_wraps(struct mem_file *f)
{
	hdr64(f, 16, UINT64_MAX - 511);
}

static void bat_past_end(struct mem_file *f)
{
	hdr64(f, 16, 1ull << 40);
}

static void bat_in_header(struct mem_file *f)
{
	hdr64(f, 16, 1024);
}

static void entry_past_end(struct mem_file *f)
{
	tv_poke32(f, TV_BAT + 4 * 3, 1u << 30);
}

static void entry_last_sector(struct mem_file *f)
{
	tv_poke32(f, TV_BAT + 4 * 3, 0xfffffffe);
}

static void entry_half_past_end(struct mem_file *f)
{
	tv_add_block(f, 3, ones);
	mem_resize(f, mem_size(f) - TV_MIB);
}

static void entry_over_footer(struct mem_file *f)
{
	uint64_t data = tv_add_block(f, 3, ones);

	mem_resize(f, data + VHD_BLOCK_BYTES);
}

static void entry_over_good_footer(struct mem_file *f)
{
	unsigned char footer[512];

	entry_over_footer(f);
	mem_peek(f, 0, footer, 512);
	mem_poke(f, end_footer(f), footer, 512);
}

static void entry_in_front(struct mem_file *f)
{
	tv_add_block(f, 3, ones);
	tv_poke32(f, TV_BAT + 4 * 4, 0);
}

static void entry_in_header(struct mem_file *f)
{
	tv_add_block(f, 3, ones);
	tv_poke32(f, TV_BAT + 4 * 4, 2);
}

static void entry_ends_in_bat_sector(struct mem_file *f)
{
	tv_add_block(f, 3, ones);
	tv_poke32(f, TV_BAT + 4 * 4, 3);
	tv_poke64(f, TV_HDR + 16, 1536 + 4096ull * 512); /* the BAT moves to the last sector of that slot */
	tv_fix_header(f);
	tv_poke32(f, 1536 + 4096ull * 512 + 4 * 4, 3);
	for (unsigned i = 0; i < 128; i++)
		if (i != 4)
			tv_poke32(f, 1536 + 4096ull * 512 + 4 * i, VHD_BAT_FREE);
}

static void entry_in_bat(struct mem_file *f)
{
	tv_add_block(f, 3, ones);
	tv_poke32(f, TV_BAT + 4 * 4, 3);
}

static void entries_equal(struct mem_file *f)
{
	tv_add_block(f, 3, ones);
	tv_poke32(f, TV_BAT + 4 * 7, tv_peek32(f, TV_BAT + 4 * 3));
}

static void entries_overlap(struct mem_file *f)
{
	tv_add_block(f, 5, ones);
	tv_add_block(f, 3, ones);
	tv_poke32(f, TV_BAT + 4 * 5, tv_peek32(f, TV_BAT + 4 * 3) - 1);
}

static void entries_share_a_sector(struct mem_file *f)
{
	tv_add_block(f, 5, ones);
	tv_add_block(f, 3, ones);
	tv_poke32(f, TV_BAT + 4 * 3, tv_peek32(f, TV_BAT + 4 * 5) + 4096);
}

static void entry_beyond_disk(struct mem_file *f)
{
	tv_add_block(f, 9, ones);
	both64(f, 48, SIZE - 2 * TV_MIB);
}

static void parent_in_dynamic(struct mem_file *f)
{
	hdr32(f, 40, 7);
}

static void locator_in_dynamic(struct mem_file *f)
{
	hdr32(f, 576, VHD_LOC_W2RU);
}

/* Lies that only a differencing disk can tell. */

static void locator_code(struct mem_file *f)
{
	hdr32(f, 576 + 24 * 4, 0x41424344);
}

static void locator_long(struct mem_file *f)
{
	hdr32(f, 576 + 8, 513);
}

static void locator_space_odd(struct mem_file *f)
{
	hdr32(f, 576 + 4, 700);
}

static void locator_past_end(struct mem_file *f)
{
	hdr64(f, 576 + 16, 1ull << 40);
}

static void locator_wraps(struct mem_file *f)
{
	hdr64(f, 576 + 16, UINT64_MAX - 100);
}

static void locator_in_bat(struct mem_file *f)
{
	hdr64(f, 576 + 16, TV_BAT);
}

static void locator_no_text(struct mem_file *f)
{
	unsigned char raw[24];

	mem_peek(f, TV_HDR + 576 + 48, raw, 24); /* the third: W2ru */
	mem_poke(f, be64_load(raw + 16), "\x00\xd8\x00\xd8", 4);
}

static void name_no_text(struct mem_file *f)
{
	hdr32(f, 64, 0xdc000000);
}

static void block_over_locator(struct mem_file *f)
{
	unsigned char raw[24];

	tv_add_block(f, 3, ones);
	mem_peek(f, TV_HDR + 576, raw, 24);
	tv_poke32(f, TV_BAT, (uint32_t)(be64_load(raw + 16) / 512));
}

static void no_names(struct mem_file *f)
{
	static const unsigned char zeros[512];

	for (unsigned i = 0; i < 8; i++)
		tv_poke32(f, TV_HDR + 576 + 24 * i, 0);
	mem_poke(f, TV_HDR + 64, zeros, 512);
	tv_fix_header(f);
}

struct lie {
	const char *word, *also;
	void (*tell)(struct mem_file *);
};

static const struct lie of_any[] = {
    {"blkimg repair", "checksum", front_damaged},
    {"blkimg repair", "damaged", front_gone},
    {"not a dynamic", "no VHD footer", both_gone},
    {"not a VHD", "too few", file_empty},
    {"--format vhd-fixed", "fixed", is_fixed},
    {"disabled", "v_poison", poisoned},
    {"2040 GiB", "size", size_too_large},
    {"too short", "BAT has 10", size_past_bat},
    {"positive multiple", "size", size_zero},
    {"past the end", "header", header_far},
    {"cxsparse", "header", header_gone},
    {"checksum", "header", header_flipped},
    {"header version", "unknown", header_version},
    {"data offset", "all ones", header_chained},
    {"block size 0", "power of two", block_0},
    {"block size 1", "power of two", block_1},
    {"block size 2", "power of two", block_2},
    {"block size 3145728", "power of two", block_odd},
    {"block size 2048", "4096", block_2048},
    {"block size 4194304", "2 MiB", block_4m},
    {"block size 2147483648", "2 MiB", block_2g},
    {"too short", "BAT has 9", bat_short},
    {"beyond what blkd opens", "4294967295", bat_huge},
    {"past the end", "BAT of 8388608", bat_long_past_end},
    {"BAT at offset 0", "cannot be", bat_at_0},
    {"BAT at offset 1537", "cannot be", bat_unaligned},
    {"BAT at offset", "cannot be", bat_wraps},
    {"past the end", "BAT of 10", bat_past_end},
    {"overlaps", "header", bat_in_header},
    {"BAT entry 3", "past the end", entry_past_end},
    {"BAT entry 3", "blkimg check", entry_last_sector},
    {"BAT entry 3", "past the end", entry_half_past_end},
    {"BAT entry 3", "over the trailing footer: run blkimg check", entry_over_good_footer},
    {"BAT entry 4", "footer copy", entry_in_front},
    {"BAT entry 4", "header", entry_in_header},
    {"BAT entry 4", "BAT: run blkimg check", entry_in_bat},
    {"BAT entry 4", "BAT: run blkimg check", entry_ends_in_bat_sector},
    {"BAT entries 3 and 7", "overlap", entries_equal},
    {"BAT entries 5 and 3", "overlap", entries_overlap},
    {"BAT entries 5 and 3", "overlap", entries_share_a_sector},
    {"BAT entry 9", "ends with block 8", entry_beyond_disk},
    {"names a parent", "contradict", parent_in_dynamic},
    {"names a parent", "contradict", locator_in_dynamic},
};

static const struct lie of_child[] = {
    {"locator 4", "unknown platform code", locator_code},
    {"locator 0", "513 bytes in a room of 512", locator_long},
    {"locator 0", "room of 0", locator_space_odd},
    {"locator 0", "past the end", locator_past_end},
    {"locator 0", "cannot be", locator_wraps},
    {"locator 0", "overlaps", locator_in_bat},
    {"locator 2", "does not decode", locator_no_text},
    {"name in its header", "does not decode", name_no_text},
    {"BAT entry 0", "parent locators", block_over_locator},
    {"names no parent", "blkimg check", no_names},
};

static void must_refuse(struct mem_file *f, const struct lie *l, size_t i)
{
	struct err e = ERR_INIT;
	struct image *img;

	l->tell(f);
	img = tv_open_as(f, &vhd_format, 0, &e);
	if (img)
		fail_msg("lie %zu was believed; wanted '%s'", i, l->word);
	if (!strstr(e.text, l->word) || !strstr(e.text, l->also))
		fail_msg("lie %zu: wanted '%s' and '%s' in: %s", i, l->word, l->also, e.text);
	assert_int_equal(f->refs, 1); /* the backing stayed ours and was closed once */
	mem_file_put(f);
}

static void every_lie_is_refused_by_name(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(of_any) / sizeof(of_any[0]); i++)
		must_refuse(tv_dynamic("/i.vhd", SIZE), &of_any[i], i);
}

static struct mem_file *child_file(void)
{
	struct mem_file *pf = tv_dynamic("/p.vhd", SIZE), *f;
	struct image *parent = tv_open(pf);

	f = tv_child("/c.vhd", parent, "p.vhd", 0);
	parent->ops->close(parent);
	mem_file_put(pf);
	return f;
}

static void every_lie_about_a_parent_is_refused_by_name(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(of_child) / sizeof(of_child[0]); i++)
		must_refuse(child_file(), &of_child[i], i);
}

/* ---- unclean, and accepted ---- */

static void must_note(struct mem_file *f, const char *word)
{
	struct image *img = tv_open(f);

	assert_non_null(img);
	if (word ? !strstr(img->notes, word) : img->notes[0])
		fail_msg("wanted '%s' in the notes: '%s'", word ? word : "", img->notes);
	assert_int_equal(img->size_bytes, SIZE);
	assert_int_equal(vhd_of(img)->footer_at_end_ok, !word || !strstr(word, "footer"));
	img->ops->close(img);
	mem_file_put(f);
}

static void clean_image_opens_without_a_note(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);

	(void)state;
	tv_add_block(f, 2, ones);
	must_note(f, NULL);
}

static void killed_footer_is_noted(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);
	unsigned char c7[512];

	(void)state;
	memset(c7, 0xc7, sizeof(c7));
	mem_poke(f, end_footer(f), c7, 512);
	must_note(f, "trailing footer was killed");
}

/* What a killed tapdisk leaves after it allocated a block at the end of the file. */
static void block_where_the_footer_was_is_noted_and_belongs_to_the_guest(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);

	(void)state;
	entry_over_footer(f);
	must_note(f, "trailing footer is missing");
}

static void missing_footer_is_noted(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);

	(void)state;
	mem_resize(f, mem_size(f) + TV_MIB);
	must_note(f, "trailing footer is missing");
}

static void forged_trailing_footer_is_noted_and_not_believed(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);

	(void)state;
	tv_add_block(f, 0, ones);
	tv_poke64(f, end_footer(f) + 48, 7 * TV_MIB);
	tv_poke32(f, end_footer(f) + 60, VHD_DIFFERENCING);
	tv_fix_footer(f, end_footer(f));
	must_note(f, "trailing footer differs");
}

static void short_trailing_footer_is_accepted(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);

	(void)state;
	mem_resize(f, mem_size(f) - 1);
	must_note(f, NULL);
}

static void slack_between_last_block_and_footer_is_legal(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);
	unsigned char footer[512];

	(void)state;
	tv_add_block(f, 2, ones);
	mem_peek(f, 0, footer, 512);
	mem_poke(f, mem_size(f) + 8 * TV_MIB - 512, footer, 512);
	must_note(f, NULL);
}

static void hidden_of_tap_1_1_is_read_from_the_copy_with_the_old_checksum(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);
	struct image *img;

	(void)state;
	both32(f, 32, VHD_CREATOR_VERSION(1, 1));
	mem_poke(f, 85, "\1", 1);
	img = tv_open(f);
	assert_non_null(img);
	assert_true(img->hidden);
	img->ops->close(img);
	mem_file_put(f);
}

/* ---- batmap ---- */

static uint64_t batmap_hdr(void)
{
	return TV_BAT + 512;
}

static void batmap_write(struct mem_file *f, const unsigned char map[2], bool right)
{
	unsigned char full[512] = {map[0], map[1]};

	mem_poke(f, batmap_hdr() + 512, full, 512);
	tv_poke32(f, batmap_hdr() + 24, vhd_batmap_checksum(full, 512, VHD_BATMAP_VERSION_1_2) ^ !right);
}

static void valid_batmap_makes_blocks_full(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);
	struct image *img;

	(void)state;
	tv_add_block(f, 0, ones);
	tv_add_block(f, 9, ones);
	batmap_write(f, (const unsigned char[2]){0x80, 0x40}, true);
	img = tv_open(f);
	assert_true(vhd_of(img)->batmap_valid);
	assert_true(vhd_full_test(vhd_of(img), 0));
	assert_true(vhd_full_test(vhd_of(img), 9));
	assert_false(vhd_full_test(vhd_of(img), 1));
	assert_int_equal(vhd_of(img)->batmap_disk[1], 0x40);
	assert_string_equal(img->notes, "");
	img->ops->close(img);
	mem_file_put(f);
}

static void must_ignore_batmap(struct mem_file *f, const char *word, bool header_usable)
{
	struct image *img = tv_open(f);

	assert_non_null(img);
	if (!strstr(img->notes, "batmap is ignored") || !strstr(img->notes, word))
		fail_msg("wanted '%s' in the notes: '%s'", word, img->notes);
	assert_false(vhd_of(img)->batmap_valid);
	assert_int_equal(vhd_of(img)->batmap_hdr_off != 0, header_usable);
	for (uint32_t i = 0; i < vhd_of(img)->n_blocks; i++)
		assert_false(vhd_full_test(vhd_of(img), i));
	img->ops->close(img);
	mem_file_put(f);
}

static void batmap_with_a_wrong_checksum_is_never_full(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);

	(void)state;
	tv_add_block(f, 0, ones);
	batmap_write(f, (const unsigned char[2]){0x80, 0}, false);
	must_ignore_batmap(f, "checksum", true);
}

static void batmap_bit_of_a_free_block_discredits_the_map(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);

	(void)state;
	tv_add_block(f, 0, ones);
	batmap_write(f, (const unsigned char[2]){0xc0, 0}, true);
	must_ignore_batmap(f, "not allocated", true);
}

static void clobbered_batmap_header_is_ignored(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);

	(void)state;
	mem_poke(f, batmap_hdr(), ones, 512);
	must_ignore_batmap(f, "no header", false);
}

static void block_over_a_batmap_that_looks_whole_discredits_it(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);
	unsigned char footer[512];

	(void)state; /* a guest that forges a batmap header in the first sector of a block that qemu put there
		      */
	mem_peek(f, 0, footer, 512);
	tv_poke32(f, TV_BAT, (uint32_t)(batmap_hdr() / 512));
	mem_resize(f, batmap_hdr() + 512 + VHD_BLOCK_BYTES);
	mem_poke(f, mem_size(f), footer, 512);
	must_ignore_batmap(f, "blocks were written over it", false);
}

static void bits_that_the_checksum_misses_are_not_believed(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", 8 * TV_MIB); /* tapdisk's rule covers no byte of the map */
	unsigned char map[512] = {0x80};
	struct image *img;

	(void)state;
	tv_add_block(f, 0, ones);
	mem_poke(f, batmap_hdr() + 512, map, 512);
	img = tv_open(f);
	assert_true(vhd_of(img)->batmap_valid);
	assert_false(vhd_full_test(vhd_of(img), 0));
	img->ops->close(img);
	mem_file_put(f);
}

static void generation_comes_from_the_batmap_header_or_is_zero(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", SIZE);
	struct image *img;

	(void)state;
	tv_poke64(f, batmap_hdr() + 504, 41);
	img = tv_open(f);
	assert_int_equal(vhd_of(img)->generation, 41);
	img->ops->close(img);
	mem_poke(f, batmap_hdr() + 496, "x", 1);
	img = tv_open(f);
	assert_int_equal(vhd_of(img)->generation, 0);
	img->ops->close(img);
	mem_file_put(f);
}

/* ---- parents, bounds, faults ---- */

static void parent_names_are_in_order_of_preference_and_once(void **state)
{
	struct mem_file *pf = tv_dynamic("/p.vhd", SIZE), *f;
	struct image *parent = tv_open(pf), *img;
	struct vhd_create_opts o = {
	    .kind = VHD_KIND_DIFFERENCING,
	    .parent = parent,
	    .parent_path = "p.vhd",
	    .parent_path_absolute = "/sr/p.vhd",
	};

	(void)state;
	f = tv_create("/c.vhd", &o);
	img = tv_open(f);
	assert_true(img->has_parent);
	assert_false(img->parent_is_raw);
	assert_memory_equal(img->parent_uuid, parent->uuid, 16);
	assert_int_equal(img->n_parent_names, 3);
	assert_string_equal(img->parent_names[0], "./p.vhd");
	assert_string_equal(img->parent_names[1], "/sr/p.vhd");
	assert_string_equal(img->parent_names[2], "p.vhd");
	img->ops->close(img);
	parent->ops->close(parent);
	mem_file_put(pf);
	mem_file_put(f);
}

static void locators_of_windows_are_read(void **state)
{
	struct mem_file *f = child_file();
	unsigned char raw[64] = {0};
	struct image *img;
	int n;

	(void)state;
	/* one sector, counted in sectors; a relative path with backslashes; a drive letter under the absolute
	 * code; a mac alias */
	n = utf8_to_utf16("..\\x\\p.vhd", false, raw, sizeof(raw));
	mem_poke(f, tv_peek32(f, TV_HDR + 576 + 48 + 20), raw, sizeof(raw));
	hdr32(f, 576 + 48 + 4, 1);
	hdr32(f, 576 + 48 + 8, (uint32_t)n);
	n = utf8_to_utf16("C:\\x\\p.vhd", false, raw, sizeof(raw));
	mem_poke(f, tv_peek32(f, TV_HDR + 576 + 24 + 20), raw, sizeof(raw));
	hdr32(f, 576 + 24 + 8, (uint32_t)n);
	hdr32(f, 576, VHD_LOC_MAC);
	img = tv_open(f);
	assert_non_null(img);
	assert_int_equal(img->n_parent_names, 2);
	assert_string_equal(img->parent_names[0], "../x/p.vhd");
	assert_string_equal(img->parent_names[1], "p.vhd");
	img->ops->close(img);
	mem_file_put(f);
}

static void largest_image_opens_and_its_scattered_bat_is_checked(void **state)
{
	struct vhd_create_opts o = {.kind = VHD_KIND_DYNAMIC, .size_bytes = 2040ull << 30};
	struct mem_file *f = tv_create("/big.vhd", &o);
	uint32_t n = 1044480, slot = 4097, base = 16384, clash;
	unsigned char *bat = malloc((size_t)n * 4);
	struct err e = ERR_INIT;
	struct image *img;

	(void)state;
	assert_non_null(bat);
	for (uint32_t i = 0; i < n;
	     i++) /* 7919 and n have no common factor: each slot once, far from its neighbours */
		be32_store(bat + (size_t)i * 4, base + (uint32_t)((uint64_t)i * 7919 % n) * slot);
	mem_poke(f, TV_BAT, bat, (size_t)n * 4);
	mem_resize(f, ((uint64_t)base + (uint64_t)n * slot) * 512 + 512);
	img = tv_open(f);
	assert_non_null(img);
	assert_int_equal(img->size_bytes, 2040ull << 30);
	img->ops->close(img);
	clash = be32_load(bat + 4ull * 777777);
	tv_poke32(f, TV_BAT + 4 * 123, clash + slot - 1);
	assert_null(tv_open_as(f, &vhd_format, 0, &e));
	assert_non_null(strstr(e.text, "overlap"));
	free(bat);
	mem_file_put(f);
}

static void failing_reads_are_told_and_leak_nothing(void **state)
{
	struct mem_file *f = child_file();
	bool opened = false;

	(void)state;
	tv_add_block(f, 3, ones);
	for (uint64_t nth = 1; !opened; nth++) {
		struct err e = ERR_INIT;
		struct image *img;

		f->fail_op = MEM_ANY;
		f->fail_nth = nth;
		img = tv_open_as(f, &vhd_format, 0, &e);
		opened = img;
		if (img)
			img->ops->close(img);
		else
			assert_int_equal(e.code, -EIO);
		assert_true(nth < 50);
		assert_int_equal(f->refs, 1);
	}
	f->fail_nth = 0;
	mem_file_put(f);
}

static void opening_never_writes(void **state)
{
	struct mem_file *f = child_file();
	struct err e = ERR_INIT;
	struct image *img;
	uint64_t before =
	    f->calls[MEM_WRITE] + f->calls[MEM_ZERO] + f->calls[MEM_EXTEND] + f->calls[MEM_TRUNCATE];

	(void)state;
	img = tv_open_as(f, &vhd_format, BACKING_WRITE, &e);
	assert_non_null(img);
	img->ops->close(img);
	assert_int_equal(before, f->calls[MEM_WRITE] + f->calls[MEM_ZERO] + f->calls[MEM_EXTEND] +
				     f->calls[MEM_TRUNCATE]);
	mem_file_put(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_lie_is_refused_by_name),
	    cmocka_unit_test(every_lie_about_a_parent_is_refused_by_name),
	    cmocka_unit_test(clean_image_opens_without_a_note),
	    cmocka_unit_test(killed_footer_is_noted),
	    cmocka_unit_test(missing_footer_is_noted),
	    cmocka_unit_test(block_where_the_footer_was_is_noted_and_belongs_to_the_guest),
	    cmocka_unit_test(forged_trailing_footer_is_noted_and_not_believed),
	    cmocka_unit_test(short_trailing_footer_is_accepted),
	    cmocka_unit_test(slack_between_last_block_and_footer_is_legal),
	    cmocka_unit_test(hidden_of_tap_1_1_is_read_from_the_copy_with_the_old_checksum),
	    cmocka_unit_test(valid_batmap_makes_blocks_full),
	    cmocka_unit_test(batmap_with_a_wrong_checksum_is_never_full),
	    cmocka_unit_test(batmap_bit_of_a_free_block_discredits_the_map),
	    cmocka_unit_test(clobbered_batmap_header_is_ignored),
	    cmocka_unit_test(block_over_a_batmap_that_looks_whole_discredits_it),
	    cmocka_unit_test(bits_that_the_checksum_misses_are_not_believed),
	    cmocka_unit_test(generation_comes_from_the_batmap_header_or_is_zero),
	    cmocka_unit_test(parent_names_are_in_order_of_preference_and_once),
	    cmocka_unit_test(locators_of_windows_are_read),
	    cmocka_unit_test(largest_image_opens_and_its_scattered_bat_is_checked),
	    cmocka_unit_test(failing_reads_are_told_and_leak_nothing),
	    cmocka_unit_test(opening_never_writes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
