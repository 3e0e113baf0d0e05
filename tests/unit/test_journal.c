/* Claims about the disk journal: what a successor of a killed process finds. A kill is journal_abandon():
 * stores are in the file at once. */
#include "blkd/backing.h"
#include "blkd/bytes.h"
#include "blkd/err.h"
#include "blkd/journal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64], file[400];
static struct backing backing = {.dev_id = 0x801, .ino = 77};
static struct image leaf = {.file = &backing, .uuid = {1, 2, 3}};

static int setup(void **state)
{
	(void)state;
	strcpy(dir, "/dev/shm/blkd-journal-XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
	char cmd[128];

	(void)state;
	snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
	return system(cmd);
}

/* The only file in dir, or NULL. */
static const char *the_file(void)
{
	DIR *d = opendir(dir);
	struct dirent *ent;
	unsigned n = 0;

	while ((ent = readdir(d)))
		if (ent->d_name[0] != '.') {
			snprintf(file, sizeof(file), "%s/%s", dir, ent->d_name);
			n++;
		}
	closedir(d);
	assert_true(n <= 1);
	return n ? file : NULL;
}

static struct journal *open_it(void)
{
	struct err e = ERR_INIT;
	struct journal *j;

	if (journal_open(dir, &leaf, &j, &e))
		fail_msg("%s", e.text);
	return j;
}

static struct meta_record rec(uint32_t block, uint16_t first, uint16_t count, uint32_t epoch)
{
	return (struct meta_record){
	    .block = block, .sector = 1000 + block, .first = first, .count = count, .epoch_low = epoch};
}

static int add(struct journal *j, uint32_t block, uint16_t first, uint16_t count, uint32_t epoch)
{
	struct meta_record r = rec(block, first, count, epoch);

	return journal_add(j, &r);
}

static unsigned found(struct journal *j, uint64_t generation, const struct meta_record **r)
{
	struct err e = ERR_INIT;
	unsigned n;

	assert_int_equal(journal_records(j, generation, r, &n, &e), 0);
	return n;
}

static void records_outlive_a_kill_in_order(void **state)
{
	const struct meta_record *r;
	struct journal *j = open_it();

	(void)state;
	journal_set_generation(j, 7);
	for (uint32_t i = 0; i < 100; i++)
		assert_int_equal(add(j, i, (uint16_t)(i * 3), 2, 1), 0);
	journal_abandon(j);
	j = open_it();
	assert_int_equal(found(j, 7, &r), 100);
	for (uint32_t i = 0; i < 100; i++)
		assert_true(r[i].block == i && r[i].first == i * 3 && r[i].count == 2 &&
			    r[i].sector == 1000 + i);
	journal_clear(j);
	journal_close(j);
	assert_null(the_file());
}

static void what_continues_the_last_record_is_merged(void **state)
{
	const struct meta_record *r;
	struct journal *j = open_it();

	(void)state;
	add(j, 1, 0, 8, 1);
	add(j, 1, 8, 8, 1);
	add(j, 1, 24, 8, 1); /* a gap */
	add(j, 1, 32, 8, 2); /* another epoch */
	add(j, 2, 40, 8, 2); /* another block */
	journal_abandon(j);
	j = open_it();
	assert_int_equal(found(j, 0, &r), 4);
	assert_int_equal(r[0].count, 16);
	journal_clear(j);
	journal_close(j);
}

static void merged_counts_do_not_overflow(void **state)
{
	const struct meta_record *r;
	struct journal *j = open_it();
	unsigned sum = 0, n;

	(void)state;
	add(j, 1, 0, 40000, 1);
	add(j, 1, 40000, 25535, 1);
	add(j, 1, 65535, 1, 1);
	journal_abandon(j);
	j = open_it();
	n = found(j, 0, &r);
	for (unsigned i = 0; i < n; i++)
		sum += r[i].count;
	assert_int_equal(sum, 65536);
	journal_clear(j);
	journal_close(j);
}

/* A record of a freed block has no count and merges with nothing. */
static void freed_blocks_stand_alone(void **state)
{
	struct meta_record r = {.block = 5, .sector = META_RECORD_FREED, .epoch_low = 1};
	const struct meta_record *out;
	struct journal *j = open_it();

	(void)state;
	journal_add(j, &r);
	journal_add(j, &r);
	journal_abandon(j);
	j = open_it();
	assert_int_equal(found(j, 0, &out), 2);
	journal_clear(j);
	journal_close(j);
}

/* Adds and drops at random against an array; now and then killed. */
static void ring_holds_what_was_added_and_not_dropped(void **state)
{
	static struct meta_record model[200000];
	unsigned head = 0, tail = 0, rng = 1;
	uint32_t epoch = 0xfffffff0u; /* its low half wraps, too */
	const struct meta_record *r;
	struct journal *j = open_it();

	(void)state;
	for (unsigned step = 0; step < 400000 && tail < 190000; step++) {
		rng = rng * 1664525u + 1013904223u;
		if ((rng >> 16) % 700) {
			struct meta_record x = rec(rng >> 8, (uint16_t)(2 * step), 1, epoch);

			if (journal_add(j, &x) == 0)
				model[tail++] = x;
			else
				assert_true(journal_is_full(j));
			continue;
		}
		if ((rng >> 8) % 2) {
			journal_drop(j, epoch - 1);
			while (head < tail && model[head].epoch_low != epoch)
				head++;
			journal_relieve(j);
			epoch++;
		}
		if ((rng >> 5) % 7)
			continue;
		journal_abandon(j);
		j = open_it();
		assert_int_equal(found(j, 0, &r), tail - head);
		assert_memory_equal(r, model + head, (tail - head) * sizeof(*r));
	}
	assert_true(tail > 100000);
	journal_clear(j);
	journal_close(j);
}

static void room_grows_to_its_maximum_and_stays(void **state)
{
	struct journal *j = open_it();
	struct stat st;
	unsigned n = 0;

	(void)state;
	for (unsigned round = 0; round < 8; round++) {
		for (n = 0; add(j, n, 0, 1, round + 1) == 0; n++)
			;
		assert_true(journal_is_full(j));
		journal_drop(j, round + 1);
		assert_false(journal_is_full(j));
		journal_relieve(j);
	}
	assert_int_equal(n, JOURNAL_RECORDS_MAX);
	assert_int_equal(stat(the_file(), &st), 0);
	assert_true((uint64_t)st.st_blocks * 512 >= JOURNAL_RECORDS_MAX * sizeof(struct meta_record));
	journal_close(j);
}

static void other_generation_is_refused_and_kept(void **state)
{
	const struct meta_record *r;
	struct err e = ERR_INIT;
	struct journal *j = open_it();
	unsigned n;

	(void)state;
	journal_set_generation(j, 3);
	add(j, 1, 0, 1, 1);
	journal_abandon(j);
	j = open_it();
	assert_int_equal(journal_records(j, 4, &r, &n, &e), -ESTALE);
	assert_non_null(strstr(e.text, "another"));
	journal_close(j); /* not clean: the file stays */
	j = open_it();
	assert_int_equal(found(j, 3, &r), 1);
	journal_clear(j);
	journal_close(j);
}

static void poke(unsigned off, const void *bytes, unsigned n)
{
	int fd = open(the_file(), O_RDWR | O_CLOEXEC);

	assert_int_equal(pwrite(fd, bytes, n, off), n);
	close(fd);
}

static void one_record_left_behind(void)
{
	struct journal *j = open_it();

	add(j, 1, 0, 1, 1);
	journal_abandon(j);
}

static unsigned records_now(void)
{
	const struct meta_record *r;
	struct journal *j = open_it();
	unsigned n = found(j, 0, &r);

	journal_clear(j);
	journal_close(j);
	return n;
}

static void another_boot_or_image_empties_it(void **state)
{
	struct err e = ERR_INIT;
	struct journal *j;

	(void)state;
	one_record_left_behind();
	poke(16, "another-boot", 12);
	assert_int_equal(records_now(), 0);
	one_record_left_behind();
	leaf.uuid[0] = 9; /* the inode was given to a new image */
	assert_int_equal(records_now(), 0);
	leaf.uuid[0] = 1;
	one_record_left_behind();
	poke(0, "XX", 2); /* killed while it was made */
	assert_int_equal(records_now(), 0);
	one_record_left_behind();
	assert_int_equal(records_now(), 1);
	one_record_left_behind();
	backing.ino = 78;
	assert_int_equal(journal_open(dir, &leaf, &j, &e), 0);
	assert_int_equal(found(j, 0, &(const struct meta_record *){NULL}), 0);
	journal_close(j);
	backing.ino = 77;
	assert_int_equal(records_now(), 1);
}

static void damaged_journal_is_refused_and_kept(void **state)
{
	static const struct {
		unsigned off;
		uint32_t value;
		const char *word;
	} damage[] = {{8, 2, "version"},     {12, 7, "damaged"},    {96, 5, "damaged"},
		      {100, 600, "damaged"}, {104, 600, "damaged"}, {104, 1u << 20, "damaged"},
		      {104, 1024, "damaged"}};
	struct err e = ERR_INIT;
	struct journal *j;

	(void)state;
	for (unsigned i = 0; i < sizeof(damage) / sizeof(damage[0]); i++) {
		one_record_left_behind();
		poke(damage[i].off, &damage[i].value, 4);
		assert_int_equal(journal_open(dir, &leaf, &j, &e), -EUCLEAN);
		assert_non_null(strstr(e.text, damage[i].word));
		assert_int_equal(unlink(the_file()), 0);
	}
}

static void poison_outlives_a_close(void **state)
{
	struct journal *j = open_it();

	(void)state;
	assert_false(journal_poisoned(j));
	journal_poison(j);
	journal_close(j);
	j = open_it();
	assert_true(journal_poisoned(j));
	journal_unpoison(j);
	journal_close(j);
	assert_null(the_file());
}

static void file_cut_short_is_made_whole(void **state)
{
	struct journal *j = open_it();
	struct stat st;

	(void)state;
	journal_abandon(j);
	assert_int_equal(truncate(the_file(), 0), 0) /* killed before it was allocated */;
	j = open_it();
	assert_int_equal(add(j, 1, 0, 1, 1), 0);
	assert_int_equal(stat(the_file(), &st), 0);
	assert_true((uint64_t)st.st_blocks * 512 >= JOURNAL_RECORDS_MIN * sizeof(struct meta_record));
	journal_clear(j);
	journal_close(j);
	/* a hole in place of memory would be a SIGBUS on a full tmpfs */
	j = open_it();
	journal_abandon(j);
	assert_int_equal(truncate(the_file(), 0), 0);
	assert_int_equal(truncate(the_file(), 1 << 20), 0);
	j = open_it();
	assert_int_equal(stat(the_file(), &st), 0);
	assert_true((uint64_t)st.st_blocks * 512 >= JOURNAL_RECORDS_MIN * sizeof(struct meta_record));
	journal_close(j);
}

static void without_a_run_directory_it_is_memory(void **state)
{
	const struct meta_record *r;
	struct err e = ERR_INIT;
	struct journal *j;

	(void)state;
	assert_int_equal(journal_open(NULL, &leaf, &j, &e), 0);
	assert_int_equal(add(j, 1, 0, 1, 1), 0);
	assert_int_equal(found(j, 0, &r), 0);
	journal_close(j);
	assert_null(the_file());
	assert_true(journal_open("/nowhere/at/all", &leaf, &j, &e) < 0);
	assert_non_null(strstr(e.text, "run directory"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(records_outlive_a_kill_in_order),
	    cmocka_unit_test(what_continues_the_last_record_is_merged),
	    cmocka_unit_test(merged_counts_do_not_overflow),
	    cmocka_unit_test(freed_blocks_stand_alone),
	    cmocka_unit_test(ring_holds_what_was_added_and_not_dropped),
	    cmocka_unit_test(room_grows_to_its_maximum_and_stays),
	    cmocka_unit_test(other_generation_is_refused_and_kept),
	    cmocka_unit_test(another_boot_or_image_empties_it),
	    cmocka_unit_test(damaged_journal_is_refused_and_kept),
	    cmocka_unit_test(poison_outlives_a_close),
	    cmocka_unit_test(file_cut_short_is_made_whole),
	    cmocka_unit_test(without_a_run_directory_it_is_memory),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
