/* The name decides the format; content may only refuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/vhdtest.h"

static struct mem_file *fixed(void)
{
	struct vhd_create_opts o = {.kind = VHD_KIND_FIXED, .size_bytes = TV_MIB, .exact_size = true};

	return tv_create("/f.vhd", &o);
}

/* The format's name, or the refusal. */
static const char *find_as(struct mem_file *f, const char *path, const char *name)
{
	static struct err e;
	const struct image_format *format = NULL;
	struct backing *b = mem_open_as(f, path, 0);
	int ret = format_find(b, name, &format, &e);

	b->ops->close(b);
	return ret ? e.text : format->name;
}

static void suffix_decides_and_any_case_will_do(void **state)
{
	struct mem_file *f = tv_dynamic("/x", TV_MIB);

	(void)state;
	assert_string_equal(find_as(f, "/x.raw", NULL), "raw");
	assert_string_equal(find_as(f, "/x.IMG", NULL), "raw");
	assert_string_equal(find_as(f, "/x.vhd", NULL), "vhd");
	assert_string_equal(find_as(f, "/x.VHD", NULL), "vhd");
	mem_file_put(f);
	f = fixed();
	assert_string_equal(find_as(f, "/x.vhd", NULL), "vhd-fixed");
	mem_file_put(f);
}

static void name_given_beats_suffix_and_content(void **state)
{
	struct mem_file *f = fixed();

	(void)state;
	assert_string_equal(find_as(f, "/x.vhd", "raw"), "raw");
	assert_string_equal(find_as(f, "/x.raw", "vhd"), "vhd");
	assert_string_equal(find_as(f, "/x", "vhd-fixed"), "vhd-fixed");
	assert_non_null(strstr(find_as(f, "/x", "qcow2"), "unknown"));
	mem_file_put(f);
}

static void name_without_a_known_suffix_is_refused(void **state)
{
	struct mem_file *f = tv_dynamic("/x", TV_MIB);

	(void)state;
	assert_non_null(strstr(find_as(f, "/dev/sdb", NULL), "--format"));
	assert_non_null(strstr(find_as(f, ".vhd", NULL), "--format"));
	mem_file_put(f);
}

static void bare_vhd_with_footers_of_two_types_is_refused(void **state)
{
	struct mem_file *f = fixed(), *dyn = tv_dynamic("/d.vhd", TV_MIB);
	unsigned char footer[512];

	(void)state;
	mem_peek(dyn, 0, footer, 512);
	mem_poke(f, 0, footer, 512);
	assert_non_null(strstr(find_as(f, "/x.vhd", NULL), "differ in type"));
	assert_string_equal(find_as(f, "/x.vhd", "vhd-fixed"), "vhd-fixed");
	mem_file_put(f);
	mem_file_put(dyn);
}

static void one_good_footer_of_an_unclosed_or_damaged_vhd_is_enough_to_know_it(void **state)
{
	static const unsigned char zeros[512];
	struct mem_file *f = tv_dynamic("/d.vhd", TV_MIB);

	(void)state;
	mem_poke(f, mem_size(f) - 512, zeros, 512);
	assert_string_equal(find_as(f, "/x.vhd", NULL), "vhd");
	mem_file_put(f);
	f = tv_dynamic("/d.vhd", TV_MIB);
	mem_poke(f, 0, zeros, 512);
	assert_string_equal(find_as(f, "/x.vhd", NULL), "vhd"); /* whose open says: blkimg repair */
	mem_poke(f, mem_size(f) - 512, zeros, 512);
	assert_non_null(strstr(find_as(f, "/x.vhd", NULL), "not a VHD"));
	mem_file_put(f);
}

static void fixed_footer_in_sector_0_alone_makes_no_fixed_vhd(void **state)
{
	struct mem_file *f = fixed();
	unsigned char footer[512];

	(void)state;
	mem_peek(f, TV_MIB, footer, 512);
	mem_poke(f, 0, footer, 512);
	assert_string_equal(find_as(f, "/x.vhd", NULL), "vhd-fixed");
	mem_resize(f, TV_MIB);
	assert_non_null(strstr(find_as(f, "/x.vhd", NULL), "without its footer"));
	mem_file_put(f);
}

static void serials_are_never_reused(void **state)
{
	uint64_t last = image_serial();

	(void)state;
	for (unsigned i = 0; i < 1000; i++) {
		uint64_t now = image_serial();

		assert_true(now > last);
		last = now;
	}
	assert_null(format_by_name("vpc"));
	assert_ptr_equal(format_by_name("raw"), &raw_format);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(suffix_decides_and_any_case_will_do),
	    cmocka_unit_test(name_given_beats_suffix_and_content),
	    cmocka_unit_test(name_without_a_known_suffix_is_refused),
	    cmocka_unit_test(bare_vhd_with_footers_of_two_types_is_refused),
	    cmocka_unit_test(one_good_footer_of_an_unclosed_or_damaged_vhd_is_enough_to_know_it),
	    cmocka_unit_test(fixed_footer_in_sector_0_alone_makes_no_fixed_vhd),
	    cmocka_unit_test(serials_are_never_reused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
