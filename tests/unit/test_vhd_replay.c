/* Replay of journal records: what it brings back, and that a record which contradicts the image changes
 * nothing. */
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
static struct meta_record rec[64];
static unsigned n_rec;

static int setup(void **state)
{
	struct vw_image_opts o = {.size_bytes = 32 * BLK + 1536, .block_bytes = BLK, .batmap = true};

	(void)state;
	file = vw_create("/t.vhd", &o);
	img = vw_open_write(file);
	n_rec = 0;
	return img ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	vhd_close(img);
	mem_file_put(file);
	return 0;
}

/* One piece, with its record kept as the executor keeps it. */
static void do_piece(enum write_op op, unsigned flags, uint64_t off, uint64_t len, int fill)
{
	static unsigned char buf[BLK];
	struct write_piece p;

	memset(buf, fill, sizeof(buf));
	assert_int_equal(vw_begin(img, op, flags, off, len, &p), 0);
	assert_int_equal(p.len_bytes, len);
	assert_int_equal(vw_piece_do(img, &p, buf), 0);
	vhd_write_end(img, &p, 0);
	if (p.epoch)
		rec[n_rec++] = p.rec;
}

static void kill_process(void)
{
	vhd_close(img);
	img = vw_open(file, BACKING_WRITE);
	assert_non_null(img);
}

static void resume(void)
{
	struct err e = ERR_INIT;

	assert_int_equal(vhd_dirty_replay(img, rec, n_rec, &e), 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vhd_begin_writing(img, &e), 0);
}

static void writes_that_no_commit_made_durable_come_back(void **state)
{
	(void)state;
	do_piece(WRITE_DATA, 0, 0, 4096, 1);
	do_piece(WRITE_DATA, 0, 8192, 512, 2);
	do_piece(WRITE_ZERO, 0, 3 * BLK, BLK, 0);
	kill_process();
	assert_int_equal(vw_value(img, 0, BELOW), BELOW);
	resume();
	assert_int_equal(vw_value(img, 0, BELOW), 1);
	assert_int_equal(vw_value(img, 8192, BELOW), 2);
	assert_int_equal(vw_value(img, 8704, BELOW), BELOW);
	assert_int_equal(vw_value(img, 3 * BLK, BELOW), 0);
	/* durable now, without any record */
	kill_process();
	assert_int_equal(vw_value(img, 0, BELOW), 1);
	assert_int_equal(vw_value(img, 3 * BLK, BELOW), 0);
}

static void bits_are_added_to_those_on_the_medium(void **state)
{
	(void)state;
	do_piece(WRITE_DATA, 0, 0, 4096, 1);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	n_rec = 0;
	do_piece(WRITE_DATA, 0, 8192, 4096, 2);
	kill_process();
	resume();
	assert_int_equal(vw_value(img, 0, BELOW), 1);
	assert_int_equal(vw_value(img, 8192, BELOW), 2);
	assert_int_equal(vw_value(img, 4096, BELOW), BELOW);
}

static void replay_of_what_is_on_disk_already_changes_nothing(void **state)
{
	(void)state;
	do_piece(WRITE_DATA, 0, 0, 4096, 1);
	do_piece(WRITE_DATA, 0, 5 * BLK, BLK, 1);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	do_piece(WRITE_TRIM, WRITE_BELOW_ZERO, 0, BLK, 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	for (unsigned twice = 0; twice < 2; twice++) {
		kill_process();
		resume();
		assert_int_equal(vhd_of(img)->bat[0], VHD_BAT_FREE);
		assert_int_equal(vw_value(img, 5 * BLK, BELOW), 1);
	}
}

static void freed_block_is_freed_again(void **state)
{
	uint32_t slot;

	(void)state;
	do_piece(WRITE_DATA, 0, 0, BLK, 1);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	slot = vhd_of(img)->bat[0];
	do_piece(WRITE_TRIM, WRITE_BELOW_ZERO, 0, BLK, 0);
	kill_process();
	assert_int_equal(vhd_of(img)->bat[0], slot);
	resume();
	assert_int_equal(vhd_of(img)->bat[0], VHD_BAT_FREE);
	kill_process();
	assert_int_equal(vhd_of(img)->bat[0], VHD_BAT_FREE);
	/* its slot is in one place of the free space only */
	resume();
	do_piece(WRITE_DATA, 0, 0, 512, 3);
	do_piece(WRITE_DATA, 0, BLK, 512, 4);
	assert_int_not_equal(vhd_of(img)->bat[0], vhd_of(img)->bat[1]);
}

static void block_freed_and_written_again_ends_where_its_last_records_say(void **state)
{
	struct meta_record two[2];
	struct err e = ERR_INIT;
	uint32_t other;

	(void)state;
	do_piece(WRITE_DATA, 0, 0, BLK, 1);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	other = vhd_of(img)->w->space.ready[vhd_of(img)->w->space.ready_head];
	two[0] = (struct meta_record){.block = 0, .sector = META_RECORD_FREED};
	two[1] = (struct meta_record){.block = 0, .sector = other, .first = 1, .count = 1};
	kill_process();
	assert_int_equal(vhd_dirty_replay(img, two, 2, &e), 0);
	assert_int_equal(vhd_of(img)->bat[0], other);
	assert_false(vhd_full_test(vhd_of(img), 0));
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vhd_begin_writing(img, &e), 0);
	assert_int_equal(vw_value(img, 0, BELOW), BELOW);
	assert_int_equal(vw_value(img, 512, BELOW), 0);
}

static void bitmap_of_a_slot_that_nothing_names_is_not_believed(void **state)
{
	unsigned char ones[512];

	(void)state;
	memset(ones, 0xff, sizeof(ones));
	do_piece(WRITE_DATA, 0, 0, 512, 1);
	mem_poke(file, vhd_of(img)->bat[0] * 512ull, ones, 512); /* landed, its BAT sector did not */
	kill_process();
	resume();
	assert_int_equal(vw_value(img, 0, BELOW), 1);
	assert_int_equal(vw_value(img, 512, BELOW), BELOW);
}

static void replayed_slots_are_not_free_space(void **state)
{
	uint32_t slot;

	(void)state;
	do_piece(WRITE_DATA, 0, 0, 512, 1);
	slot = vhd_of(img)->bat[0];
	kill_process();
	resume();
	for (unsigned b = 1; b < 32; b++) {
		assert_true(vw_write(img, WRITE_DATA, 0, b * BLK, 512, 1) > 0);
		assert_int_not_equal(vhd_of(img)->bat[b], slot);
	}
}

static void writing_does_not_begin_before_the_replay_is_durable(void **state)
{
	struct err e = ERR_INIT;
	struct vw_trace t = {.fail_at = 2};

	(void)state;
	do_piece(WRITE_DATA, 0, 0, 512, 1);
	kill_process();
	assert_int_equal(vhd_dirty_replay(img, rec, n_rec, &e), 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, &t), -EIO);
	assert_int_equal(vhd_begin_writing(img, &e), -EIO);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vhd_begin_writing(img, &e), 0);
}

static void no_records_are_replayed_too(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	kill_process();
	assert_int_equal(vhd_dirty_replay(img, NULL, 0, &e), 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vhd_begin_writing(img, &e), 0);
}

/* ---- records that cannot be ---- */

static void refuse(const struct meta_record *r, unsigned n)
{
	struct vhd *v = vhd_of(img);
	struct err e = ERR_INIT;
	size_t bytes = v->n_blocks * sizeof(*v->bat);
	uint32_t *bat = malloc(bytes);

	memcpy(bat, v->bat, bytes);
	assert_int_equal(vhd_dirty_replay(img, r, n, &e), -EINVAL);
	assert_int_equal(e.code, -EINVAL);
	assert_non_null(strstr(e.text, "contradict"));
	assert_memory_equal(bat, v->bat, bytes);
	assert_false(img->wants & IMAGE_DIRTY);
	free(bat);
}

static void record_that_contradicts_the_image_is_refused(void **state)
{
	uint32_t slot, next, n_sectors;
	struct meta_record r[3];

	(void)state;
	do_piece(WRITE_DATA, 0, 0, 512, 1);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	slot = vhd_of(img)->bat[0];
	next = slot + (BLK + 4096) / 512;
	n_sectors = (uint32_t)(mem_size(file) / 512);
	kill_process();
#define ONE(...)                                                                                             \
	do {                                                                                                 \
		r[0] = (struct meta_record){__VA_ARGS__};                                                    \
		refuse(r, 1);                                                                                \
	} while (0)
	ONE(.block = 33, .sector = next, .count = 1);
	ONE(.block = UINT32_MAX, .sector = next, .count = 1);
	ONE(.block = 1, .sector = 0, .count = 1);
	ONE(.block = 1, .sector = 7, .count = 1);	 /* metadata */
	ONE(.block = 1, .sector = next + 1, .count = 1); /* unaligned */
	ONE(.block = 1, .sector = slot, .count = 1);	 /* owned by block 0 */
	ONE(.block = 1, .sector = slot + 8, .count = 1); /* overlaps it */
	ONE(.block = 1, .sector = slot - 8, .count = 1);
	ONE(.block = 0, .sector = next, .count = 1);	      /* block 0 has another slot */
	ONE(.block = 1, .sector = n_sectors - 1, .count = 1); /* past the end */
	ONE(.block = 1, .sector = n_sectors - 1 - BLK / 512, .count = 1);
	ONE(.block = 1, .sector = 0xfffffffe, .count = 1);
	ONE(.block = 1, .sector = next, .first = 128, .count = 1); /* past the block */
	ONE(.block = 1, .sector = next, .first = 65535, .count = 65535);
	ONE(.block = 32, .sector = next, .first = 3, .count = 1); /* past the disk */
	ONE(.block = 0, .sector = META_RECORD_FREED, .count = 1);
	/* good ones first do not help */
	r[0] = (struct meta_record){.block = 1, .sector = next, .count = 1};
	r[1] = (struct meta_record){.block = 2, .sector = next, .count = 1};
	refuse(r, 2);
	r[1] = (struct meta_record){.block = 1, .sector = next + (BLK + 4096) / 512, .count = 1};
	refuse(r, 2);
	r[1] = (struct meta_record){.block = 40, .sector = next, .count = 1};
	refuse(r, 2);
	/* and the image is as it was */
	r[0] = (struct meta_record){.block = 1, .sector = next, .count = 1};
	assert_int_equal(vhd_dirty_replay(img, r, 1, NULL), 0);
}

static void record_of_a_slot_over_metadata_is_refused(void **state)
{
	struct vw_image_opts o = {.size_bytes = 4000ull * BLK, .block_bytes = BLK, .batmap = true};
	struct meta_record r = {.block = 1, .count = 1};

	(void)state;
	vhd_close(img);
	mem_file_put(file);
	file = vw_create("/b.vhd", &o);
	mem_resize(file, 1 << 20);
	img = vw_open(file, BACKING_WRITE);
	assert_true(vhd_of(img)->meta_end > 3 * 4096);
	for (r.sector = 7; r.sector * 512ull < vhd_of(img)->meta_end; r.sector += 8)
		refuse(&r, 1);
	assert_int_equal(vhd_dirty_replay(img, &r, 1, NULL), 0);
}

static void record_that_frees_a_block_full_on_disk_is_refused(void **state)
{
	struct vw_image_opts o = {.size_bytes = 64ull << 20, .block_bytes = 2u << 20, .batmap = true};
	struct meta_record r = {.block = 0, .sector = META_RECORD_FREED};

	(void)state;
	vhd_close(img);
	mem_file_put(file);
	file = vw_create("/b.vhd", &o);
	img = vw_open_write(file);
	assert_true(vw_write(img, WRITE_DATA, 0, 0, 2u << 20, 5) > 0);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	assert_int_equal(vw_run(img, JOB_CLOSE, NULL), 0);
	kill_process();
	refuse(&r, 1);
	/* bits of a block that is full are there already */
	r = (struct meta_record){.block = 0, .sector = vhd_of(img)->bat[0], .first = 9, .count = 100};
	assert_int_equal(vhd_dirty_replay(img, &r, 1, NULL), 0);
	assert_false(img->wants & IMAGE_DIRTY);
}

static void unreadable_bitmap_refuses_the_replay(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	do_piece(WRITE_DATA, 0, 0, 4096, 1);
	assert_int_equal(vw_run(img, JOB_COMMIT, NULL), 0);
	n_rec = 0;
	do_piece(WRITE_DATA, 0, 8192, 4096, 2);
	do_piece(WRITE_DATA, 0, BLK, 4096, 2);
	kill_process();
	file->fail_op = MEM_READ;
	file->fail_nth = 2; /* the first one is the BAT */
	assert_int_equal(vhd_dirty_replay(img, rec, n_rec, &e), -EIO);
	assert_int_equal(vhd_of(img)->bat[1], VHD_BAT_FREE);
	assert_int_equal(vhd_of(img)->w->held, 0);
	resume();
	assert_int_equal(vw_value(img, 8192, BELOW), 2);
	assert_int_equal(vw_value(img, 0, BELOW), 1);
	assert_int_equal(vw_value(img, BLK, BELOW), 2);
}

static void replay_comes_before_the_first_write_only(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(vhd_dirty_replay(img, NULL, 0, &e), -EINVAL);
}

static void replay_refuses_what_may_not_be_written(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	vhd_close(img);
	img = vw_open(file, 0);
	assert_int_equal(vhd_dirty_replay(img, NULL, 0, &e), -EROFS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
	    T(writes_that_no_commit_made_durable_come_back),
	    T(bits_are_added_to_those_on_the_medium),
	    T(replay_of_what_is_on_disk_already_changes_nothing),
	    T(freed_block_is_freed_again),
	    T(block_freed_and_written_again_ends_where_its_last_records_say),
	    T(bitmap_of_a_slot_that_nothing_names_is_not_believed),
	    T(replayed_slots_are_not_free_space),
	    T(writing_does_not_begin_before_the_replay_is_durable),
	    T(no_records_are_replayed_too),
	    T(record_that_contradicts_the_image_is_refused),
	    T(record_of_a_slot_over_metadata_is_refused),
	    T(record_that_frees_a_block_full_on_disk_is_refused),
	    T(unreadable_bitmap_refuses_the_replay),
	    T(replay_comes_before_the_first_write_only),
	    T(replay_refuses_what_may_not_be_written),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
