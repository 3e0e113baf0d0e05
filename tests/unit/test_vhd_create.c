/*
 * Images made by vhd_create: they open without a note, lie as other tools expect them, and a power cut while
 * one is made never leaves one that opens and is not whole. And the mark of a parent.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/vhdtest.h"

#include "formats/vhd/utf16.h"
#include "formats/vhd/vhd.h"

static void new_dynamic_image_is_clean_and_reads_zero(void **state)
{
	struct vhd_create_opts o = {.kind = VHD_KIND_DYNAMIC, .size_bytes = 100 * TV_MIB - 5000};
	struct mem_file *f = tv_create("/i.vhd", &o);
	struct image *img = tv_open(f);
	struct vhd *v = vhd_of(img);
	struct extent x;

	(void)state;
	assert_int_equal(img->size_bytes, 100 * TV_MIB);
	assert_string_equal(img->notes, "");
	assert_true(v->footer_at_end_ok);
	assert_true(v->batmap_valid);
	assert_false(img->has_parent);
	assert_int_equal(v->footer.creator_version, VHD_CREATOR_VERSION(1, 3));
	/* as vhd-util lays out 100 MiB */
	assert_int_equal(v->bat_off, 1536);
	assert_int_equal(v->batmap_hdr_off, 2048);
	assert_int_equal(v->batmap_off, 2560);
	assert_int_equal(v->meta_end, 3072);
	img->ops->map(img, NULL, 0, 100 << 20, &x);
	assert_int_equal(x.kind, EXT_HOLE);
	assert_int_equal(x.len_bytes, 100 << 20);
	img->ops->close(img);
	mem_file_put(f);
}

static void first_slot_puts_data_on_a_page(void **state)
{
	(void)state;
	for (uint64_t size = 2 * TV_MIB; size < 2000 * 1024 * TV_MIB; size = size * 3 + 512) {
		struct mem_file *f = tv_dynamic("/i.vhd", size);

		assert_int_equal(mem_size(f) % 4096, 0);
		mem_file_put(f);
	}
}

static void size_is_rounded_up_unless_exact(void **state)
{
	static const struct {
		uint64_t size, want;
		bool exact;
	} t[] = {
	    {1, 2 * TV_MIB, false},
	    {2 * TV_MIB, 2 * TV_MIB, false},
	    {2 * TV_MIB + 1, 4 * TV_MIB, false},
	    {512, 512, true},
	    {2040ull << 30, 2040ull << 30, false},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct vhd_create_opts o = {
		    .kind = VHD_KIND_DYNAMIC, .size_bytes = t[i].size, .exact_size = t[i].exact};
		struct mem_file *f = tv_create("/i.vhd", &o);
		struct image *img = tv_open(f);

		assert_int_equal(img->size_bytes, t[i].want);
		img->ops->close(img);
		mem_file_put(f);
	}
}

static int create_err(struct mem_file *f, const struct vhd_create_opts *o, struct err *e)
{
	struct backing *b = mem_open(f, BACKING_WRITE);
	int ret = vhd_create(b, o, e);

	b->ops->close(b);
	return ret;
}

static void wrong_wishes_are_refused_and_nothing_is_written(void **state)
{
	static const struct image parent = {.size_bytes = TV_MIB};
	static const struct {
		struct vhd_create_opts o;
		const char *word;
	} t[] = {
	    {{.kind = VHD_KIND_DYNAMIC}, "0 bytes"},
	    {{.kind = VHD_KIND_DYNAMIC, .size_bytes = (2040ull << 30) + 1}, "2040 GiB"},
	    {{.kind = VHD_KIND_DYNAMIC, .size_bytes = UINT64_MAX}, "2040 GiB"},
	    {{.kind = VHD_KIND_FIXED, .size_bytes = 1000, .exact_size = true}, "multiples of 512"},
	    {{.kind = VHD_KIND_DIFFERENCING, .size_bytes = TV_MIB}, "needs a parent"},
	    {{.kind = VHD_KIND_DIFFERENCING, .parent = &parent, .parent_path = "x/"}, "cannot be stored"},
	    {{.kind = VHD_KIND_DIFFERENCING, .parent = &parent, .parent_path = "a\xff"}, "cannot be stored"},
	};
	struct mem_file *f = mem_file_new("/i.vhd", 0);
	struct backing b = {.ops = mem_backing_ops(), .fd = -1};
	struct image p = parent;

	(void)state;
	p.file = &b;
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct vhd_create_opts o = t[i].o;
		struct err e = ERR_INIT;

		if (o.parent)
			o.parent = &p;
		assert_true(create_err(f, &o, &e) < 0);
		if (!strstr(e.text, t[i].word))
			fail_msg("wanted '%s' in: %s", t[i].word, e.text);
		assert_int_equal(mem_size(f), 0);
	}
	mem_file_put(f);
}

static void file_with_something_in_it_is_not_overwritten(void **state)
{
	struct mem_file *f = mem_file_new("/i.vhd", 512);
	struct vhd_create_opts o = {.kind = VHD_KIND_DYNAMIC, .size_bytes = TV_MIB};
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(create_err(f, &o, &e), -EEXIST);
	assert_int_equal(f->calls[MEM_WRITE], 0);
	mem_file_put(f);
}

static void block_device_gets_its_footer_in_its_last_sector(void **state)
{
	struct mem_file *f = mem_file_new("/lv", 64 * TV_MIB);
	struct vhd_create_opts o = {.kind = VHD_KIND_DYNAMIC, .size_bytes = 40 * TV_MIB};
	struct err e = ERR_INIT;
	struct image *img;

	(void)state;
	f->traits.fixed_size = true;
	assert_int_equal(create_err(f, &o, &e), 0);
	assert_int_equal(mem_size(f), 64 * TV_MIB);
	img = tv_open(f);
	assert_true(vhd_of(img)->footer_at_end_ok);
	img->ops->close(img);
	o.kind = VHD_KIND_FIXED;
	o.size_bytes = 64 * TV_MIB;
	assert_int_equal(create_err(f, &o, &e), -ENOSPC);
	mem_file_put(f);
}

static void parent_is_named_as_vhd_util_names_it(void **state)
{
	struct mem_file *pf = tv_dynamic("/p.vhd", 100 * TV_MIB), *f;
	struct image *parent = tv_open(pf), *img;
	unsigned char text[64];
	char name[64];

	(void)state;
	f = tv_child("/c.vhd", parent, "a.vhd", 0);
	img = tv_open(f);
	for (unsigned i = 0; i < 3; i++) {
		const struct vhd_locator *l = &vhd_of(img)->header.locators[i];

		assert_int_equal(l->off_bytes, 3072 + 512 * i);
		assert_int_equal(l->len_bytes, 14);
		assert_int_equal(l->space, 512);
		mem_peek(f, l->off_bytes, text, sizeof(text));
		if (i) {
			assert_int_equal(utf16_to_utf8(text, 14, false, name, sizeof(name)), 7);
			assert_string_equal(name, "./a.vhd");
		} else {
			assert_memory_equal(text, "file://./a.vhd", 15);
		}
	}
	assert_int_equal(vhd_of(img)->header.locators[0].code, VHD_LOC_MACX);
	assert_int_equal(vhd_of(img)->header.locators[1].code, VHD_LOC_W2KU);
	assert_int_equal(vhd_of(img)->header.locators[2].code, VHD_LOC_W2RU);
	assert_memory_equal(vhd_of(img)->header.parent_name, "\0a\0.\0v\0h\0d\0", 11);
	assert_int_equal(img->size_bytes, 100 * TV_MIB);
	img->ops->close(img);
	parent->ops->close(parent);
	mem_file_put(pf);
	mem_file_put(f);
}

/* ---- power cuts ---- */

/* Unflushed writes of one backing, by sector: any subset of them may have reached the medium. */
struct cut {
	struct mem_file *medium; /* what survived the last flush */
	uint64_t stop_at;	 /* this call fails, as do all after it */
	uint64_t calls;
	bool flushed;
};

static int cut_hook(void *ctx, struct mem_file *f, enum mem_op op, uint64_t off, uint64_t len)
{
	struct cut *c = ctx;

	(void)off;
	(void)len;
	if (++c->calls >= c->stop_at)
		return -EIO;
	if (op == MEM_FLUSH) {
		c->flushed = true;
		mem_file_put(c->medium);
		c->medium = mem_file_clone(f, f->path);
	}
	return 0;
}

static void must_be_nothing_or_whole(struct mem_file *f)
{
	struct err e = ERR_INIT;
	struct image *img = tv_open_as(f, &vhd_format, 0, &e);

	if (!img) { /* no footer copy yet; a copy with something wrong behind it would be a broken promise */
		assert_non_null(strstr(e.text, "footer"));
		assert_non_null(strstr(e.text, "at offset 0"));
		return;
	}
	assert_int_equal(img->size_bytes, 10 * TV_MIB);
	assert_true(img->has_parent);
	assert_string_equal(img->parent_names[0], "./p.vhd");
	assert_true(vhd_of(img)->batmap_valid);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(vhd_of(img)->bat[i], VHD_BAT_FREE);
	img->ops->close(img);
}

/* The medium, with each sector in which the written file differs taken over at random. */
static void check_subsets(const struct mem_file *medium, const struct mem_file *written, uint64_t bytes)
{
	static uint32_t seed = 1;

	for (unsigned round = 0; round < 40; round++) {
		struct mem_file *f = mem_file_clone(medium, "/cut.vhd");
		unsigned char sector[512];

		if (mem_size(written) > mem_size(f))
			mem_resize(f, mem_size(written));
		for (uint64_t off = 0; off < bytes; off += 512) {
			seed = seed * 1664525 + 1013904223;
			if (seed >> 31)
				continue;
			mem_peek(written, off, sector, 512);
			mem_poke(f, off, sector, 512);
		}
		must_be_nothing_or_whole(f);
		mem_file_put(f);
	}
}

static void power_cut_at_any_call_leaves_nothing_or_the_whole(void **state)
{
	struct mem_file *pf = tv_dynamic("/p.vhd", 10 * TV_MIB), *old = tv_dynamic("/old.vhd", 20 * TV_MIB);
	struct image *parent = tv_open(pf);
	struct vhd_create_opts o = {.kind = VHD_KIND_DIFFERENCING, .parent = parent, .parent_path = "p.vhd"};
	unsigned char footer[512];
	int ret = -EIO;

	(void)state;
	mem_peek(old, 0, footer, 512);
	mem_poke(old, 65536 - 512, footer, 512);
	for (uint64_t stop = 1; ret; stop++) {
		/* on a device that holds another image, whose remains must not mix with ours */
		struct mem_file *f = mem_file_clone(old, "/lv");
		struct cut c = {.medium = mem_file_clone(old, "/lv"), .stop_at = stop};
		struct err e = ERR_INIT;

		f->traits.fixed_size = true;
		f->hook = cut_hook;
		f->hook_ctx = &c;
		ret = create_err(f, &o, &e);
		f->hook = NULL;
		if (c.flushed) /* before the old footers are dead the old image is legally there */
			check_subsets(c.medium, f, mem_size(f));
		if (!ret) {
			struct image *img = tv_open(c.medium);

			assert_non_null(img); /* durable when it returned */
			assert_string_equal(img->notes, "");
			img->ops->close(img);
		}
		mem_file_put(c.medium);
		mem_file_put(f);
		assert_true(stop < 40);
	}
	parent->ops->close(parent);
	mem_file_put(pf);
	mem_file_put(old);
}

/* ---- hidden ---- */

static void mark_of_a_parent_is_durable_in_both_footers_and_can_be_taken_back(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", 10 * TV_MIB);
	struct err e = ERR_INIT;

	(void)state;
	for (int hidden = 1; hidden >= 0; hidden--) {
		struct image *img = tv_open_as(f, &vhd_format, BACKING_WRITE, &e);

		assert_int_equal(vhd_set_hidden(img, hidden, &e), 0);
		assert_int_equal(img->hidden, hidden);
		img->ops->close(img);
		img = tv_open_as(f, &vhd_format, BACKING_WRITE, &e);
		assert_int_equal(img->hidden, hidden);
		assert_string_equal(img->notes, "");
		assert_int_equal(img->ops->begin_writing ? img->ops->begin_writing(img, &e) : 0,
				 hidden ? -EROFS : 0);
		img->ops->close(img);
	}
	mem_file_put(f);
}

static void fixed_vhd_can_be_marked_too_and_raw_cannot(void **state)
{
	struct vhd_create_opts o = {.kind = VHD_KIND_FIXED, .size_bytes = TV_MIB, .exact_size = true};
	struct mem_file *f = tv_create("/f.vhd", &o);
	struct err e = ERR_INIT;
	struct image *img = tv_open_as(f, &vhd_fixed_format, BACKING_WRITE, &e);

	(void)state;
	assert_int_equal(vhd_set_hidden(img, true, &e), 0);
	img->ops->close(img);
	img = tv_open_as(f, &vhd_fixed_format, BACKING_WRITE, &e);
	assert_true(img->hidden);
	assert_int_equal(img->ops->begin_writing(img, &e), -EROFS);
	img->ops->close(img);
	mem_file_put(f);
	f = mem_file_new("/d.raw", TV_MIB);
	img = tv_open_as(f, &raw_format, BACKING_WRITE, &e);
	assert_int_equal(vhd_set_hidden(img, true, &e), -EINVAL);
	img->ops->close(img);
	mem_file_put(f);
}

static void footer_that_is_not_ours_to_judge_is_left_alone_by_the_mark(void **state)
{
	struct mem_file *f = tv_dynamic("/i.vhd", 10 * TV_MIB);
	unsigned char guest[512], after[512];
	struct err e = ERR_INIT;
	struct image *img;

	(void)state;
	memset(guest, 0x77, sizeof(guest));
	mem_poke(f, mem_size(f) - 512, guest, 512);
	img = tv_open_as(f, &vhd_format, BACKING_WRITE, &e);
	assert_int_equal(vhd_set_hidden(img, true, &e), 0);
	img->ops->close(img);
	mem_peek(f, mem_size(f) - 512, after, 512);
	assert_memory_equal(guest, after, 512);
	mem_file_put(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(new_dynamic_image_is_clean_and_reads_zero),
	    cmocka_unit_test(first_slot_puts_data_on_a_page),
	    cmocka_unit_test(size_is_rounded_up_unless_exact),
	    cmocka_unit_test(wrong_wishes_are_refused_and_nothing_is_written),
	    cmocka_unit_test(file_with_something_in_it_is_not_overwritten),
	    cmocka_unit_test(block_device_gets_its_footer_in_its_last_sector),
	    cmocka_unit_test(parent_is_named_as_vhd_util_names_it),
	    cmocka_unit_test(power_cut_at_any_call_leaves_nothing_or_the_whole),
	    cmocka_unit_test(mark_of_a_parent_is_durable_in_both_footers_and_can_be_taken_back),
	    cmocka_unit_test(fixed_vhd_can_be_marked_too_and_raw_cannot),
	    cmocka_unit_test(footer_that_is_not_ours_to_judge_is_left_alone_by_the_mark),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
