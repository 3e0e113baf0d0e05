/* The flat formats: raw, and fixed VHD, which is raw with a footer behind it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/vhdtest.h"

static struct image *writable(struct mem_file *f, const struct image_format *format)
{
	struct err e = ERR_INIT;
	struct image *img = tv_open_as(f, format, BACKING_WRITE, &e);

	assert_non_null(img);
	assert_int_equal(img->ops->begin_writing(img, &e), 0);
	return img;
}

static void sizes_that_are_no_sectors_are_refused(void **state)
{
	static const uint64_t sizes[] = {0, 1, 511, 513, 1000};

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct mem_file *f = mem_file_new("/d.raw", sizes[i]);
		struct err e = ERR_INIT;

		assert_null(tv_open_as(f, &raw_format, 0, &e));
		assert_non_null(strstr(e.text, "multiple of 512"));
		mem_file_put(f);
	}
}

static void byte_n_of_the_disk_is_byte_n_of_the_file(void **state)
{
	struct mem_file *f = mem_file_new("/d.raw", 1 << 20);
	unsigned char out[1024], in[1024];
	struct image *img = writable(f, &raw_format);
	struct chain c = {.leaf = img, .size_bytes = img->size_bytes};
	struct err e = ERR_INIT;

	(void)state;
	memset(in, 0xab, sizeof(in));
	assert_int_equal(chain_write(&c, WRITE_DATA, 4096, in, 1024, &e), 0);
	mem_peek(f, 4096, out, 1024);
	assert_memory_equal(in, out, 1024);
	assert_int_equal(chain_write(&c, WRITE_ZERO, 4096, NULL, 512, &e), 0);
	memset(in, 0, 512);
	assert_int_equal(chain_read(&c, 4096, out, 1024, &e), 0);
	assert_memory_equal(in, out, 1024);
	assert_int_equal(chain_write(&c, WRITE_DATA, 1 << 20, in, 512, &e), -EINVAL);
	assert_int_equal(mem_size(f), 1 << 20);
	img->ops->close(img);
	mem_file_put(f);
}

static void commit_is_one_flush_and_none_where_writes_are_durable(void **state)
{
	unsigned char sector[512] = {1};

	(void)state;
	for (int durable = 0; durable < 2; durable++) {
		struct mem_file *f = mem_file_new("/d.raw", 1 << 20);
		struct err e = ERR_INIT;
		struct image *img;
		struct chain c;

		f->traits.durable_at_completion = durable;
		img = writable(f, &raw_format);
		c = (struct chain){.leaf = img, .size_bytes = img->size_bytes};
		assert_int_equal(img->ops->epoch_durable(img), 0);
		assert_int_equal(chain_write(&c, WRITE_DATA, 0, sector, 512, &e), 0);
		assert_int_equal(img->wants & IMAGE_DIRTY, durable ? 0 : IMAGE_DIRTY);
		assert_int_equal(image_run_job(img, JOB_COMMIT, &e), 0);
		assert_int_equal(f->calls[MEM_FLUSH], durable ? 0 : 1);
		assert_int_equal(img->ops->epoch_durable(img), 1);
		assert_int_equal(img->ops->epoch_open(img), 2);
		assert_int_equal(img->wants, 0);
		img->ops->close(img);
		mem_file_put(f);
	}
}

static void failed_flush_poisons_for_good(void **state)
{
	struct mem_file *f = mem_file_new("/d.raw", 1 << 20);
	struct image *img = writable(f, &raw_format);
	struct err e = ERR_INIT;

	(void)state;
	f->fail_op = MEM_FLUSH;
	f->fail_nth = 1;
	assert_int_equal(image_run_job(img, JOB_COMMIT, &e), -EIO);
	assert_true(img->poisoned);
	assert_int_equal(image_run_job(img, JOB_COMMIT, &e), -EIO);
	assert_int_equal(f->calls[MEM_FLUSH], 1);
	assert_int_equal(img->ops->epoch_durable(img), 0);
	img->ops->close(img);
	mem_file_put(f);
}

static void sealed_and_read_only_images_refuse_writes(void **state)
{
	struct mem_file *f = mem_file_new("/d.raw", 1 << 20);
	struct image *img = writable(f, &raw_format);
	struct chain c = {.leaf = img, .size_bytes = img->size_bytes};
	unsigned char sector[512] = {1};
	struct write_piece p;
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(image_run_job(img, JOB_CLOSE, &e), 0);
	assert_int_equal(img->ops->write_begin(img, WRITE_DATA, 0, 0, 512, &p), -EROFS);
	assert_int_equal(chain_write(&c, WRITE_DATA, 0, sector, 512, &e), -EROFS);
	img->ops->close(img);
	img = tv_open_as(f, &raw_format, 0, &e);
	assert_int_equal(img->ops->begin_writing(img, &e), -EROFS);
	assert_non_null(strstr(e.text, "read-only"));
	img->ops->close(img);
	mem_file_put(f);
}

static void journal_records_for_a_flat_image_are_refused(void **state)
{
	struct mem_file *f = mem_file_new("/d.raw", 1 << 20);
	struct err e = ERR_INIT;
	struct image *img = tv_open_as(f, &raw_format, BACKING_WRITE, &e);
	struct meta_record r = {0};

	(void)state;
	assert_int_equal(img->ops->dirty_replay(img, &r, 0, &e), 0);
	assert_int_equal(img->ops->dirty_replay(img, &r, 1, &e), -EINVAL);
	img->ops->close(img);
	mem_file_put(f);
}

static struct mem_file *fixed(uint64_t size_bytes)
{
	struct vhd_create_opts o = {.kind = VHD_KIND_FIXED, .size_bytes = size_bytes, .exact_size = true};

	return tv_create("/f.vhd", &o);
}

static void fixed_vhd_ends_where_its_footer_says(void **state)
{
	struct mem_file *f = fixed(TV_MIB);
	struct image *img = writable(f, &vhd_fixed_format);
	struct chain c = {.leaf = img, .size_bytes = img->size_bytes};
	unsigned char before[512], after[512], sector[512] = {7};
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(img->size_bytes, TV_MIB);
	mem_peek(f, TV_MIB, before, 512);
	assert_int_equal(chain_write(&c, WRITE_DATA, TV_MIB - 512, sector, 512, &e), 0);
	assert_int_equal(chain_write(&c, WRITE_DATA, TV_MIB, sector, 512, &e), -EINVAL);
	mem_peek(f, TV_MIB, after, 512);
	assert_memory_equal(before, after, 512);
	img->ops->close(img);
	mem_file_put(f);
}

static void footer_in_sector_0_of_a_fixed_vhd_is_guest_data(void **state)
{
	struct mem_file *f = fixed(TV_MIB), *other = tv_dynamic("/x.vhd", 64 * TV_MIB);
	unsigned char forged[2048], got[2048];
	struct err e = ERR_INIT;
	struct image *img;
	struct chain c;

	(void)state;
	mem_peek(other, 0, forged, sizeof(forged));
	mem_poke(f, 0, forged, sizeof(forged));
	img = tv_open_as(f, &vhd_fixed_format, 0, &e);
	assert_non_null(img);
	c = (struct chain){.leaf = img, .size_bytes = img->size_bytes};
	assert_int_equal(img->size_bytes, TV_MIB);
	assert_int_equal(chain_read(&c, 0, got, sizeof(got), &e), 0);
	assert_memory_equal(forged, got, sizeof(got));
	img->ops->close(img);
	mem_file_put(f);
	mem_file_put(other);
}

static void short_footer_of_511_bytes_is_accepted(void **state)
{
	struct mem_file *f = fixed(TV_MIB);
	struct err e = ERR_INIT;
	struct image *img;

	(void)state;
	mem_resize(f, mem_size(f) - 1);
	img = tv_open_as(f, &vhd_fixed_format, 0, &e);
	assert_non_null(img);
	assert_int_equal(img->size_bytes, TV_MIB);
	assert_non_null(strstr(img->notes, "511"));
	img->ops->close(img);
	mem_file_put(f);
}

static void cut_or_foreign_fixed_vhds_are_refused(void **state)
{
	struct mem_file *f = fixed(TV_MIB);
	struct err e = ERR_INIT;

	(void)state;
	tv_poke64(f, TV_MIB + 48, TV_MIB + 512);
	tv_fix_footer(f, TV_MIB);
	assert_null(tv_open_as(f, &vhd_fixed_format, 0, &e));
	assert_non_null(strstr(e.text, "was cut"));
	tv_poke32(f, TV_MIB, 0);
	assert_null(tv_open_as(f, &vhd_fixed_format, 0, &e));
	assert_non_null(strstr(e.text, "not a fixed VHD"));
	mem_file_put(f);
	f = tv_dynamic("/x.vhd", TV_MIB);
	assert_null(tv_open_as(f, &vhd_fixed_format, 0, &e));
	assert_non_null(strstr(e.text, "--format vhd"));
	mem_file_put(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(sizes_that_are_no_sectors_are_refused),
	    cmocka_unit_test(byte_n_of_the_disk_is_byte_n_of_the_file),
	    cmocka_unit_test(commit_is_one_flush_and_none_where_writes_are_durable),
	    cmocka_unit_test(failed_flush_poisons_for_good),
	    cmocka_unit_test(sealed_and_read_only_images_refuse_writes),
	    cmocka_unit_test(journal_records_for_a_flat_image_are_refused),
	    cmocka_unit_test(fixed_vhd_ends_where_its_footer_says),
	    cmocka_unit_test(footer_in_sector_0_of_a_fixed_vhd_is_guest_data),
	    cmocka_unit_test(short_footer_of_511_bytes_is_accepted),
	    cmocka_unit_test(cut_or_foreign_fixed_vhds_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
