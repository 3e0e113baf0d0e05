/* The checker names what it should, and a repair survives a power cut after any sector that it writes. */
#include "blkd/log.h"
#include "blkd/vhd_check.h"
#include "tests/lib/vhdmut.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define DISK_BLOCKS 32u

struct seen {
	unsigned of[CHECK_IDS];
	struct check_result r;
};

static void on_finding(void *ctx, const struct check_finding *f)
{
	struct seen *s = ctx;

	s->of[f->id]++;
}

static void look(struct mem_file *f, bool lenient, bool bitmaps, struct seen *s)
{
	struct check_opts opts = {.lenient = lenient, .bitmaps = bitmaps, .found = on_finding, .ctx = s};
	struct backing *b = mem_open(f, 0);
	struct err e = ERR_INIT;

	*s = (struct seen){0};
	assert_int_equal(vhd_check(b, &opts, &s->r, &e), 0);
	b->ops->close(b);
}

static struct mem_file *image(void)
{
	return mut_make("/d/image.vhd", VHD_KIND_DYNAMIC, NULL);
}

static void poke_be32(struct mem_file *f, uint64_t off, uint32_t v)
{
	unsigned char b[4];

	be32_store(b, v);
	mem_poke(f, off, b, 4);
}

static uint32_t peek_be32(const struct mem_file *f, uint64_t off)
{
	unsigned char b[4];

	mem_peek(f, off, b, 4);
	return be32_load(b);
}

static void fix(struct mem_file *f)
{
	struct mut_bytes b = {mut_file_get, mut_file_put, f, mem_size(f)};

	mut_fix(&b, MUT_FIX_ALL);
}

static void images_that_we_made_are_clean(void **state)
{
	struct seen s;
	struct mem_file *f = image();

	(void)state;
	look(f, false, true, &s);
	assert_int_equal(s.r.errors + s.r.unclean + s.r.warnings, 0);
	mem_file_put(f);
	f = mut_make("/d/fixed.vhd", VHD_KIND_FIXED, NULL);
	look(f, false, true, &s);
	assert_int_equal(s.r.errors + s.r.unclean + s.r.warnings, 0);
	mem_file_put(f);
}

static void each_forged_field_is_named(void **state)
{
	static const struct {
		uint64_t off;
		unsigned len;
		unsigned char byte;
		bool both;
		enum check_id id;
	} cases[] = {
	    {8, 4, 0xff, true, CHECK_FOOTER_FEATURES},	   {12, 4, 7, true, CHECK_FOOTER_VERSION},
	    {16, 8, 0xff, true, CHECK_FOOTER_DATA_OFFSET}, {24, 4, 0xff, true, CHECK_FOOTER_TIMESTAMP},
	    {34, 2, 9, true, CHECK_FOOTER_CREATOR},	   {48, 8, 0x7f, true, CHECK_FOOTER_SIZE},
	    {56, 4, 0xff, true, CHECK_FOOTER_GEOMETRY},	   {68, 16, 0, true, CHECK_FOOTER_UUID},
	    {84, 1, 2, true, CHECK_FOOTER_SAVED},	   {85, 1, 2, true, CHECK_FOOTER_HIDDEN},
	    {300, 1, 1, true, CHECK_FOOTER_RESERVED},	   {512, 8, 'x', false, CHECK_HEADER_COOKIE},
	    {520, 8, 0, false, CHECK_HEADER_DATA_OFFSET},  {528, 8, 0x41, false, CHECK_HEADER_TABLE_OFFSET},
	    {536, 4, 9, false, CHECK_HEADER_VERSION},	   {540, 4, 0, false, CHECK_HEADER_ENTRIES},
	    {544, 4, 3, false, CHECK_HEADER_BLOCK_SIZE},   {576, 8, 'x', false, CHECK_HEADER_PARENT},
	    {1500, 1, 1, false, CHECK_HEADER_RESERVED},	   {1088, 4, 'q', false, CHECK_LOCATOR_CODE},
	    {2048, 8, 'x', false, CHECK_BATMAP_MISSING},   {2056, 8, 0x11, false, CHECK_BATMAP_PLACE},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct mem_file *f = image();
		unsigned char bytes[16];
		struct seen s;

		memset(bytes, cases[i].byte, sizeof(bytes));
		mem_poke(f, cases[i].off, bytes, cases[i].len);
		if (cases[i].both)
			mem_poke(f, mem_size(f) - 512 + cases[i].off, bytes, cases[i].len);
		fix(f);
		look(f, false, true, &s);
		if (!s.of[cases[i].id])
			fail_msg("byte 0x%02x at %u: no %s", cases[i].byte, (unsigned)cases[i].off,
				 check_code(cases[i].id));
		mem_file_put(f);
	}
}

static void foreign_geometry_only_warns_when_lenient(void **state)
{
	static const unsigned char max[4] = {0xff, 0xff, 16, 255};
	struct mem_file *f = image();
	struct seen s;

	(void)state;
	mem_poke(f, 56, max, 4);
	mem_poke(f, mem_size(f) - 512 + 56, max, 4);
	fix(f);
	look(f, false, false, &s);
	assert_int_equal(s.r.errors, 1);
	look(f, true, false, &s);
	assert_int_equal(s.r.errors, 0);
	assert_int_equal(s.r.warnings, 1);
	mem_file_put(f);
}

static void a_wrong_checksum_is_named_at_each_place(void **state)
{
	static const struct {
		int64_t off;
		enum check_id id;
	} cases[] = {{64, CHECK_FOOTER_CHECKSUM},
		     {548, CHECK_HEADER_CHECKSUM},
		     {2072, CHECK_BATMAP_CHECKSUM},
		     {-448, CHECK_TAIL_DIFFERS}};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct mem_file *f = image();
		uint64_t off =
		    cases[i].off < 0 ? mem_size(f) - (uint64_t)-cases[i].off : (uint64_t)cases[i].off;
		struct seen s;

		poke_be32(f, off, peek_be32(f, off) ^ 1);
		look(f, false, false, &s);
		assert_int_equal(s.of[cases[i].id], 1);
		mem_file_put(f);
	}
}

static void blocks_out_of_place_are_named(void **state)
{
	struct mem_file *f = image();
	uint32_t first = peek_be32(f, MUT_BAT_OFF);
	struct seen s;

	(void)state;
	poke_be32(f, MUT_BAT_OFF + 4 * 5, first + 100);
	look(f, false, false, &s);
	assert_true(s.of[CHECK_BLOCK_OVERLAP] >= 1);
	poke_be32(f, MUT_BAT_OFF + 4 * 5, (uint32_t)(mem_size(f) / 512) - 10);
	look(f, false, false, &s);
	assert_int_equal(s.of[CHECK_BLOCK_BEYOND_END], 1);
	poke_be32(f, MUT_BAT_OFF + 4 * 5, 1);
	look(f, false, false, &s);
	assert_int_equal(s.of[CHECK_BLOCK_IN_META], 1);
	poke_be32(f, MUT_BAT_OFF + 4 * 5, 0xffffffff);
	poke_be32(f, 52, 4u << 20); /* the disk ends before block 2 */
	poke_be32(f, mem_size(f) - 512 + 52, 4u << 20);
	fix(f);
	look(f, false, false, &s);
	assert_int_equal(s.of[CHECK_BLOCK_BEYOND_SIZE], 1);
	mem_file_put(f);
}

static void many_findings_of_one_code_are_counted_and_cut(void **state)
{
	struct mem_file *f = image();
	struct seen s;

	(void)state;
	for (unsigned i = 4; i < DISK_BLOCKS; i++)
		poke_be32(f, MUT_BAT_OFF + 4 * i, 0xffff0000 + 8192 * i);
	look(f, false, false, &s);
	assert_int_equal(s.of[CHECK_BLOCK_BEYOND_END], CHECK_SHOWN_PER_CODE + 1);
	assert_true(s.r.errors >= DISK_BLOCKS - 4);
	mem_file_put(f);
}

static void a_full_mark_over_an_unfull_bitmap_is_found_only_when_asked(void **state)
{
	struct mem_file *f = image();
	unsigned char map = 0xa0; /* blocks 0 and 2; only 2 is full */
	struct seen s;

	(void)state;
	mem_poke(f, 2560, &map, 1);
	fix(f);
	look(f, false, false, &s);
	if (s.of[CHECK_BATMAP_BITMAP])
		fail_msg("read bitmaps unasked");
	look(f, false, true, &s);
	assert_int_equal(s.of[CHECK_BATMAP_BITMAP], 1);
	mem_file_put(f);
}

/* ---- repair ---- */

static int plan_of(struct mem_file *f, bool drop, struct repair_plan *p)
{
	struct repair_opts opts = {.drop_bad_blocks = drop};
	struct backing *b = mem_open(f, 0);
	struct err e = ERR_INIT;
	int ret = vhd_repair_plan(b, &opts, p, &e);

	b->ops->close(b);
	return ret;
}

/* The guest's bytes of the blocks that are not among `lost`; false: it does not open. */
static bool same_content(struct mem_file *good, struct mem_file *f, uint64_t lost_blocks)
{
	struct mem_file *files[2] = {good, f};
	static unsigned char buf[2][1 << 20];
	struct chain c[2] = {0};
	bool same = true;

	for (unsigned i = 0; i < 2; i++) {
		struct backing *b = mem_open(files[i], 0);
		struct err e = ERR_INIT;

		if (vhd_format.open(b, &c[i].leaf, &e)) {
			print_error("%s\n", e.text);
			b->ops->close(b);
			if (i)
				c[0].leaf->ops->close(c[0].leaf);
			return false;
		}
		c[i].size_bytes = c[i].leaf->size_bytes;
	}
	for (uint64_t off = 0; off < 16u << 20 && same; off += 1 << 20) {
		if (lost_blocks >> (off >> 21) & 1)
			continue;
		for (unsigned i = 0; i < 2; i++)
			assert_int_equal(chain_read(&c[i], off, buf[i], 1 << 20, NULL), 0);
		same = !memcmp(buf[0], buf[1], 1 << 20);
	}
	c[0].leaf->ops->close(c[0].leaf);
	c[1].leaf->ops->close(c[1].leaf);
	return same;
}

/* Cuts the power after each sector of each write of the plan; then repairs, and looks. */
static void survives_cuts(struct mem_file *good, struct mem_file *broken, bool drop, uint64_t lost_blocks)
{
	struct repair_plan p;
	unsigned sectors = 0, cut;

	assert_int_equal(plan_of(broken, drop, &p), 0);
	assert_true(p.n_writes > 0);
	for (unsigned i = 0; i < p.n_writes; i++)
		sectors += p.writes[i].len_bytes / 512;
	for (cut = 0; cut <= sectors; cut++) {
		struct mem_file *f = mem_file_clone(broken, "/d/cut.vhd");
		unsigned left = cut;
		struct backing *b;
		struct repair_plan again;
		struct seen s;

		for (unsigned i = 0; i < p.n_writes && left; i++)
			for (uint32_t at = 0; at < p.writes[i].len_bytes && left; at += 512, left--)
				mem_poke(f, p.writes[i].off_bytes + at, p.writes[i].data + at, 512);
		look(f, true, true, &s);
		if (s.of[CHECK_BATMAP_BITMAP] || s.of[CHECK_BATMAP_UNALLOCATED])
			assert_true(cut < sectors);
		assert_int_equal(plan_of(f, drop, &again), 0);
		b = mem_open(f, BACKING_WRITE);
		assert_int_equal(vhd_repair_apply(b, &again, NULL), 0);
		b->ops->close(b);
		vhd_repair_free(&again);
		look(f, false, true, &s);
		assert_int_equal(s.r.errors + s.r.unclean, 0);
		if (!same_content(good, f, lost_blocks))
			fail_msg("%s, cut after %u of %u sectors", broken->path, cut, sectors);
		mem_file_put(f);
	}
	vhd_repair_free(&p);
}

static void a_repair_cut_short_anywhere_is_finished_by_the_next(void **state)
{
	static const unsigned char zeros[512];
	struct mem_file *good = image(), *f;

	(void)state;
	f = mem_file_clone(good, "/d/a.vhd"); /* no footer at the end */
	mem_poke(f, mem_size(f) - 512, zeros, 512);
	survives_cuts(good, f, false, 0);
	mem_file_put(f);

	f = mem_file_clone(good, "/d/b.vhd"); /* no copy at 0, no batmap */
	mem_poke(f, 0, zeros, 512);
	mem_poke(f, 2048, zeros, 512);
	survives_cuts(good, f, false, 0);
	mem_file_put(f);

	f = mem_file_clone(good, "/d/c.vhd"); /* a map that lies */
	mem_poke(f, 2560, "\xff", 1);
	fix(f);
	survives_cuts(good, f, false, 0);
	mem_file_put(f);

	f = mem_file_clone(good,
			   "/d/d.vhd"); /* bad entries, a full block among them, and no footer at the end */
	poke_be32(f, MUT_BAT_OFF + 4 * 2, 0xff000000);
	poke_be32(f, MUT_BAT_OFF + 4 * 7, 2);
	mem_poke(f, mem_size(f) - 512, zeros, 512);
	survives_cuts(good, f, true, 1u << 2 | 1u << 7);
	mem_file_put(f);
	mem_file_put(good);
}

static void bad_blocks_are_listed_and_left_alone_unless_told(void **state)
{
	struct mem_file *f = image();
	struct repair_plan p;

	(void)state;
	poke_be32(f, MUT_BAT_OFF + 4 * 6, 0xff000000);
	assert_int_equal(plan_of(f, false, &p), 0);
	assert_int_equal(p.n_writes, 0);
	assert_int_equal(p.n_lost, 1);
	assert_int_equal(p.lost[0].guest_off, 6u << 21);
	assert_int_equal(p.lost[0].len_bytes, 2u << 20);
	vhd_repair_free(&p);
	mem_file_put(f);
}

static void a_repair_raises_the_open_generation_that_it_finds(void **state)
{
	struct mem_file *f = image();
	unsigned char header[512];
	struct repair_plan p;
	struct backing *b;
	uint64_t before;

	(void)state;
	mem_peek(f, 2048, header, 512);
	before = be64_load(header + 504);
	mem_poke(f, 2560, "\xff", 1); /* the checksum does not fit now */
	assert_int_equal(plan_of(f, false, &p), 0);
	b = mem_open(f, BACKING_WRITE);
	assert_int_equal(vhd_repair_apply(b, &p, NULL), 0);
	b->ops->close(b);
	vhd_repair_free(&p);
	mem_peek(f, 2048, header, 512);
	assert_memory_equal(header + 496, "blkdgen1", 8);
	assert_int_equal(be64_load(header + 504), before + 1);
	mem_file_put(f);
}

static void a_failing_read_or_write_is_an_error_with_a_sentence(void **state)
{
	(void)state;
	for (uint64_t nth = 1; nth < 40; nth++) {
		struct check_opts opts = {.bitmaps = true};
		struct check_result r = {0};
		struct err e = ERR_INIT;
		struct mem_file *f = image();
		struct backing *b = mem_open(f, 0);
		int ret;

		f->fail_op = MEM_ANY;
		f->fail_nth = nth;
		ret = vhd_check(b, &opts, &r, &e);
		assert_int_equal(ret, f->fail_nth ? 0 : -EIO);
		if (ret)
			assert_non_null(strstr(e.text, "/d/image.vhd"));
		b->ops->close(b);
		mem_file_put(f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(images_that_we_made_are_clean),
	    cmocka_unit_test(each_forged_field_is_named),
	    cmocka_unit_test(foreign_geometry_only_warns_when_lenient),
	    cmocka_unit_test(a_wrong_checksum_is_named_at_each_place),
	    cmocka_unit_test(blocks_out_of_place_are_named),
	    cmocka_unit_test(many_findings_of_one_code_are_counted_and_cut),
	    cmocka_unit_test(a_full_mark_over_an_unfull_bitmap_is_found_only_when_asked),
	    cmocka_unit_test(a_repair_cut_short_anywhere_is_finished_by_the_next),
	    cmocka_unit_test(bad_blocks_are_listed_and_left_alone_unless_told),
	    cmocka_unit_test(a_repair_raises_the_open_generation_that_it_finds),
	    cmocka_unit_test(a_failing_read_or_write_is_an_error_with_a_sentence),
	};

	log_set_level(LOG_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
