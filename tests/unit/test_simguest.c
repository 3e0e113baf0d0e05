/*
 * simguest against a RAM-disk backend of its own (simback.h) on a real simxen: green when the backend is
 * good, in every dialect the guest speaks; red, and for the right reason, for each way in which a backend can
 * be wrong. A strict guest that cannot fail would be worthless, so most of this file is failures.
 */
#include "tests/lib/simxen_fixture.h"
#include "tests/unit/simback.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <jansson.h>

#define MAX_ARGS 40

static struct simxen server;

struct bench {
	struct simback back;
	json_t *report; /* of the last run; NULL if none was written */
	char messages[4096];
};

static int bench_make(void **state)
{
	struct bench *t = calloc(1, sizeof(*t));

	if (!t || sb_start(&t->back, server.dir))
		DIE("the test backend does not start");
	*state = t;
	return 0;
}

static int bench_end(void **state)
{
	struct bench *t = *state;

	sb_end(&t->back);
	json_decref(t->report);
	free(t);
	return 0;
}

static void program_path(char *out, size_t len)
{
	char simxen[4096];

	simxen_program(simxen, sizeof(simxen));
	*strrchr(simxen, '/') = 0;
	snprintf(out, len, "%s/simguest", simxen);
}

static void collect_messages(struct bench *t)
{
	json_t *disks = json_object_get(t->report, "disks"), *disk, *m;
	size_t i, k;

	t->messages[0] = 0;
	json_array_foreach(disks, i, disk)
	{
		json_array_foreach(json_object_get(disk, "messages"), k, m)
		{
			size_t used = strlen(t->messages);

			snprintf(t->messages + used, sizeof(t->messages) - used, "%s\n",
				 json_string_value(m));
		}
	}
}

/* Runs simguest with these options (one string, split at blanks) against the backend; its exit code. */
static int run(struct bench *t, const char *options)
{
	char program[4200], json[128], log[128], *copy = strdup(options), *rest = copy, *item;
	char *argv[MAX_ARGS] = {program, (char[]){"--dir"}, server.dir, (char[]){"--json"}, json};
	unsigned argc = 5;
	pid_t pid;
	int rc;

	program_path(program, sizeof(program));
	snprintf(json, sizeof(json), "%s/report.json", server.dir);
	snprintf(log, sizeof(log), "%s/guest.log", server.dir);
	while ((item = strsep(&rest, " ")) && argc < MAX_ARGS - 1)
		if (*item)
			argv[argc++] = item;
	unlink(json);
	pid = fork();
	if (pid == 0) {
		int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
		execv(program, argv);
		_exit(127);
	}
	rc = sb_serve(&t->back, pid);
	free(copy);
	json_decref(t->report);
	t->report = json_load_file(json, 0, NULL);
	collect_messages(t);
	return rc;
}

static long fault_count(const struct bench *t, const char *kind)
{
	return (long)json_integer_value(json_object_get(json_object_get(t->report, "faults"), kind));
}

static void show_log(void)
{
	char path[128], line[512];
	FILE *f;

	snprintf(path, sizeof(path), "%s/guest.log", server.dir);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		fputs(line, stderr);
	if (f)
		fclose(f);
}

static void expect_green(struct bench *t, const char *options)
{
	int rc = run(t, options);

	if (rc)
		show_log();
	assert_int_equal(rc, 0);
	assert_non_null(t->report);
	assert_int_equal(fault_count(t, "protocol") + fault_count(t, "verify") + fault_count(t, "stall"), 0);
}

/* Exit 1, a fault of this kind, and a sentence that contains `says`. */
static void expect_red(struct bench *t, enum mischief mischief, unsigned trigger, const char *options,
		       const char *kind, const char *says)
{
	int rc;

	t->back.mischief = mischief;
	t->back.trigger = trigger;
	rc = run(t, options);
	if (rc != 1 || fault_count(t, kind) == 0 || !strstr(t->messages, says))
		show_log();
	assert_int_equal(rc, 1);
	assert_true(fault_count(t, kind) > 0);
	assert_non_null(strstr(t->messages, says));
}

#define DISK "--disk ram:disk --base-zero --timeout 5 --io-timeout 5 "
#define MIX  DISK "--phase mix=4:4:1:1,bs=512-64k,ios=1500 --phase readall,bs=256k"

/* ---- green ---- */

static void good_backend_is_green(void **state)
{
	struct bench *t = *state;

	expect_green(t, MIX);
	assert_true(t->back.reads > 0 && t->back.writes > 0 && t->back.discards > 0 && t->back.flushes > 0);
	assert_true(t->back.indirects > 0);
}

static void every_abi_is_spoken(void **state)
{
	struct bench *t = *state;

	expect_green(t, MIX " --abi x86_32");
	assert_true(t->back.abi32);
	assert_true(t->back.indirects > 0 && t->back.discards > 0);
	memset(t->back.disk, 0, SB_SECTORS * 512);
	expect_green(t, MIX " --abi native");
	assert_false(t->back.abi32);
}

static void ring_orders_and_queues_are_negotiated(void **state)
{
	struct bench *t = *state;
	json_t *disk;

	expect_green(t, MIX " --ring-order 4 --queues 3 --iodepth 200");
	disk = json_array_get(json_object_get(t->report, "disks"), 0);
	assert_int_equal(json_integer_value(json_object_get(disk, "queues")), 3);
	assert_int_equal(json_integer_value(json_object_get(disk, "ring_order")), 4);
	assert_int_equal(t->back.order, 4);
	memset(t->back.disk, 0, SB_SECTORS * 512);
	t->back.max_order = 1;
	t->back.max_queues = 1;
	expect_green(t, MIX " --ring-order 3 --queues 4");
	assert_int_equal(t->back.order, 1);
}

static void without_indirect_large_requests_are_split(void **state)
{
	struct bench *t = *state;

	t->back.max_indirect = 0;
	expect_green(t, DISK "--phase rw=randrw,bs=1M,ios=60 --phase readall,bs=1M");
	assert_int_equal(t->back.indirects, 0);
	assert_int_equal(t->back.max_segments, 11);
}

static void offered_segments_are_used_and_not_exceeded(void **state)
{
	struct bench *t = *state;

	t->back.max_indirect = 32;
	expect_green(t, DISK "--phase rw=randrw,bs=1M,ios=60");
	assert_int_equal(t->back.max_segments, 32);
}

static void partial_pages_and_single_indirect_segments_work(void **state)
{
	struct bench *t = *state;

	expect_green(
	    t,
	    DISK "--phase rw=randrw,bs=512-96k,ios=1500,unaligned,force-indirect --phase readall,unaligned");
	assert_true(t->back.indirects > 1000);
}

static void barriers_are_sent_where_asked(void **state)
{
	struct bench *t = *state;

	expect_green(t, DISK "--phase rw=randwrite,bs=4k,ios=500,flush-every=7,barrier --phase readall");
	assert_true(t->back.barriers > 30);
	assert_int_equal(t->back.flushes, 0);
}

static void pages_can_be_granted_per_request(void **state)
{
	expect_green(*state, MIX " --regrant");
}

static void overlapping_requests_in_order_are_green(void **state)
{
	expect_green(*state, DISK "--phase mix=4:4:1,bs=4k-32k,size=128k,ios=4000,overlap --phase readall");
}

static void overlaps_keep_to_one_queue(void **state)
{
	expect_green(*state, DISK
		     "--queues 3 --phase mix=4:4:1,bs=4k-32k,size=512k,ios=4000,overlap --phase readall");
}

static void busy_polling_needs_no_events(void **state)
{
	expect_green(*state, DISK "--poll --rw randrw --ios 2000");
}

static void a_disk_can_be_closed_and_opened_again(void **state)
{
	struct bench *t = *state;

	expect_green(t, DISK "--cycles 3 --rw randrw --ios 300");
	assert_int_equal(t->back.connects, 3);
}

/* This program once more, as the backend of one disk. By exec: libxenstore's thread does not survive a bare
 * fork. */
static pid_t serve_devid(const char *devid)
{
	pid_t pid = fork();

	if (pid == 0) {
		execl("/proc/self/exe", "test_simguest", "--serve", server.dir, devid, (char *)NULL);
		_exit(127);
	}
	return pid;
}

static int serve_main(char **argv)
{
	struct simback b;

	if (sb_start(&b, argv[2]))
		return 1;
	b.only_devid = (uint32_t)strtoul(argv[3], NULL, 10);
	sb_serve(&b, 0);
	sb_end(&b);
	return 0;
}

/* The reads still cover the whole disk, in order: one mark after each eight. */
static void marks_are_written_besides_the_load(void **state)
{
	struct bench *t = *state;
	unsigned reads = SB_SECTORS / 8;

	expect_green(t, DISK "--phase readall,marks=8 --phase readall");
	assert_int_equal(json_integer_value(json_object_get(json_object_get(t->report, "totals"), "ops")),
			 2 * reads + (reads - 1) / 8);
}

static void one_guest_has_several_disks(void **state)
{
	struct bench *t = *state;
	pid_t other = serve_devid("51728");
	json_t *disk;
	int status;

	t->back.only_devid = 51712;
	expect_green(t, "--disk ram:a " DISK "--phase rw=randrw,ios=1000 --phase readall");
	assert_int_equal(waitpid(other, &status, 0), other);
	assert_int_equal(status, 0);
	disk = json_array_get(json_object_get(t->report, "disks"), 1);
	assert_string_equal(json_string_value(json_object_get(disk, "name")), "xvdb");
	assert_int_equal(json_integer_value(json_object_get(json_object_get(t->report, "totals"), "ops")),
			 2 * (1000 + SB_SECTORS / 8));
}

static void abandoned_domains_die_without_a_word(void **state)
{
	struct bench *t = *state;

	expect_green(t, DISK "--rw randrw --ios 500 --abandon");
	assert_int_equal(t->back.state, 4);
}

static void sigterm_ends_load_and_hold_in_order(void **state)
{
	struct bench *t = *state;

	t->back.term_after = 500;
	expect_green(t, DISK "--rw randrw --runtime 60");
	assert_int_equal(t->back.state, 6);
	t->back.requests = 0;
	t->back.term_after = 99;
	memset(t->back.disk, 0, SB_SECTORS * 512);
	expect_green(t, DISK "--ios 100 --hold");
	assert_int_equal(t->back.state, 6);
}

static void growth_of_a_live_disk_is_noticed(void **state)
{
	struct bench *t = *state;

	t->back.grow_at = 200;
	t->back.grown_sectors = 2 * SB_SECTORS;
	expect_green(t, DISK "--phase rw=randrw,ios=20000 --phase readall,bs=64k");
	assert_int_equal(json_integer_value(json_object_get(
			     json_array_get(json_object_get(t->report, "disks"), 0), "resizes")),
			 1);
	assert_int_equal(json_integer_value(json_object_get(
			     json_array_get(json_object_get(t->report, "disks"), 0), "sectors")),
			 2 * SB_SECTORS);
}

static void a_backend_without_features_is_used_without_them(void **state)
{
	struct bench *t = *state;

	t->back.flush = t->back.discard = t->back.max_indirect = 0;
	expect_green(t, MIX);
	assert_int_equal(t->back.flushes + t->back.discards + t->back.indirects, 0);
}

static void a_failed_write_is_old_or_new(void **state)
{
	struct bench *t = *state;

	t->back.mischief = FAILED_WRITE_LANDS;
	expect_green(t, DISK "--expect-errors --phase rw=randrw,bs=4k,size=256k,ios=3000 --phase readall");
	assert_true(fault_count(t, "io") > 100);
}

static void a_read_only_disk_refuses_writes(void **state)
{
	struct bench *t = *state;

	t->back.info = 4;
	expect_green(t, DISK "--expect-errors --phase rw=randwrite,ios=50,force-write --phase readall");
	assert_true(fault_count(t, "io") > 0);
}

/* ---- base and state files ---- */

static void write_file(const char *path, const void *data, size_t len)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

static void fill_golden(struct bench *t)
{
	uint32_t x = 12345;

	for (size_t i = 0; i < SB_SECTORS * 512; i++) {
		x = x * 1664525u + 1013904223u;
		t->back.disk[i] = (uint8_t)(x >> 24);
	}
}

static void never_written_sectors_are_checked_against_the_base(void **state)
{
	struct bench *t = *state;
	char base[128], args[512];

	fill_golden(t);
	snprintf(base, sizeof(base), "%s/base.raw", server.dir);
	write_file(base, t->back.disk, SB_SECTORS * 512);
	snprintf(args, sizeof(args),
		 "--disk ram:x --base %s --phase rw=randwrite,ios=200,size=2M --phase readall,bs=128k", base);
	expect_green(t, args);
	t->back.disk[5000 * 512 + 17] ^= 0x40;
	snprintf(args, sizeof(args), "--disk ram:x --base %s --readall --offset 2500k --size 64k", base);
	assert_int_equal(run(t, args), 1);
	assert_int_equal(fault_count(t, "verify"), 1);
	assert_non_null(
	    strstr(t->messages, "sector 5000: due the base, found the base with 1 bytes wrong from byte 17"));
}

static int check_raw(struct bench *t, const char *args)
{
	char raw[128], cmd[9000], program[4200];
	int rc;

	program_path(program, sizeof(program));
	snprintf(raw, sizeof(raw), "%s/export.raw", server.dir);
	write_file(raw, t->back.disk, SB_SECTORS * 512);
	snprintf(cmd, sizeof(cmd), "%s --check-raw %s %s >%s/guest.log 2>&1", program, raw, args, server.dir);
	rc = system(cmd);
	return WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
}

static void a_later_run_verifies_what_an_earlier_one_wrote(void **state)
{
	struct bench *t = *state;
	char args[512], both[256];

	snprintf(both, sizeof(both), "--base-zero --state %s/state", server.dir);
	snprintf(args, sizeof(args), "--disk ram:x %s --phase mix=1:6:1:1,bs=512-32k,ios=1000", both);
	expect_green(t, args);
	snprintf(args, sizeof(args), "--disk ram:x %s --verify-only --bs 64k", both);
	expect_green(t, args);
	assert_int_equal(check_raw(t, both), 0);
	memcpy(t->back.disk, t->back.old, SB_SECTORS * 512);
	assert_int_equal(run(t, args), 1);
	assert_true(fault_count(t, "verify") > 100);
	assert_int_equal(check_raw(t, both), 1);
}

static void damaged_state_files_are_refused(void **state)
{
	struct bench *t = *state;
	char path[128], args[512];

	snprintf(path, sizeof(path), "%s/broken", server.dir);
	write_file(path, "simguest?", 9);
	snprintf(args, sizeof(args), "--disk ram:x --state %s --ios 1", path);
	assert_int_equal(run(t, args), 3);
	snprintf(args, sizeof(args), "--disk ram:x --state %s.absent --verify-only", path);
	assert_int_equal(run(t, args), 3);
}

static void bad_usage_is_exit_2(void **state)
{
	struct bench *t = *state;

	assert_int_equal(run(t, "--bs 513"), 2);
	assert_int_equal(run(t, "--phase rw=sideways"), 2);
	assert_int_equal(run(t, "--iodepth 0"), 2);
	assert_int_equal(run(t, "--frobnicate"), 2);
	assert_int_equal(run(t, "--disk ram:x,mode=q"), 2);
	assert_int_equal(run(t, "--verify-only"), 2);
}

/* ---- red ---- */

#define RED(name, mischief, trigger, options, kind, says)                                                    \
	static void name(void **state)                                                                       \
	{                                                                                                    \
		expect_red(*state, mischief, trigger, options, kind, says);                                  \
	}

RED(second_response_is_red, DOUBLE_RESPONSE, 20, MIX, "protocol", "")
RED(foreign_id_is_red, WRONG_ID, 20, MIX, "protocol", "out of range")
RED(id_of_an_earlier_use_is_red, STALE_ID, 200, MIX, "protocol", "answered twice")
RED(other_operation_is_red, WRONG_OP, 20, MIX, "protocol", "response has operation")
RED(indirect_answered_as_6_is_red, INDIRECT_ANSWERED_AS_INDIRECT, 3, MIX, "protocol",
    "operation 6 instead of")
RED(unknown_status_is_red, UNKNOWN_STATUS, 9, MIX, "protocol", "unknown status -5")
RED(padding_is_red, PADDING_GARBAGE, 9, MIX, "protocol", "padding is not zero")
RED(rsp_prod_ahead_is_red, RSP_PROD_AHEAD, 9, MIX, "protocol", "rsp_prod is")
RED(one_wrong_bit_is_red, CORRUPT_BYTE, 50, MIX, "verify", "due")
RED(lost_write_is_red, LOST_WRITE, 50, MIX, "verify", "found")
RED(misplaced_write_is_red, MISPLACED_WRITE, 50, MIX, "verify", "our own sector")
RED(stale_read_is_red, STALE_READ, 20, DISK "--phase rw=write,bs=64k --phase rw=write,bs=64k --phase readall",
    "verify", "too old")
RED(uncopied_read_is_red, NOTHING_COPIED, 20, MIX, "verify", "foreign bytes a5a5")
RED(read_from_elsewhere_is_red, OTHER_SECTORS_READ, 20, DISK "--phase rw=write --phase readall", "verify",
    "our own sector")
RED(bytes_outside_a_segment_are_red, TOUCHES_OUTSIDE, 20, DISK "--phase rw=write --phase rw=randread,bs=512",
    "protocol", "outside its segments")
RED(changed_write_buffer_is_red, CHANGES_WRITE_BUFFER, 20, MIX, "protocol", "the buffer of a write")
RED(io_error_is_red, FAILS_A_READ, 20, MIX, "io", "status -1")
RED(garbage_with_an_io_error_is_red, FAILED_READ_LEAKS, 5, MIX " --expect-errors", "verify",
    "answered with an error")
RED(trim_to_garbage_is_red, TRIM_TO_GARBAGE, 0, MIX, "verify", "found")
RED(trim_that_uncovers_is_red, TRIM_UNCOVERS_OLDER, 0,
    DISK "--phase rw=write --phase rw=write --phase rw=randtrim,ios=50 --phase readall", "verify", "too old")
RED(unanswered_flush_is_red, NO_FLUSH_ANSWER, 0, MIX " --io-timeout 1", "stall", "no answer for 1 s")
RED(overlap_out_of_order_is_red, OVERLAP_OUT_OF_ORDER, 0,
    DISK "--phase rw=randrw,bs=16k,size=64k,ios=4000,overlap", "verify", "found")
RED(backend_that_closes_midway_is_red, CLOSES_MIDWAY, 300, DISK "--rw randrw --ios 100000", "lost",
    "closes in the middle")
RED(backend_that_vanishes_is_red, VANISHES, 300, DISK "--rw randrw --ios 100000", "lost", "vanished")
RED(response_after_close_is_red, ANSWERS_AFTER_CLOSE, 0, DISK "--ios 10", "protocol", "after close")
RED(backend_that_never_closes_is_red, NEVER_CLOSES, 0, "--disk ram:x --ios 10 --timeout 1", "lost",
    "did not close in time")
RED(write_to_read_only_disk_is_red, READ_ONLY_YET_WRITES, 0,
    DISK "--phase rw=randwrite,ios=5,force-write --expect-errors", "protocol",
    "read-only disk was answered OK")

static void read_only_case(void **state)
{
	((struct bench *)*state)->back.info = 4;
	write_to_read_only_disk_is_red(state);
}

static void zero_after_trim_must_stay_zero(void **state)
{
	struct bench *t = *state;
	char args[256];

	snprintf(args, sizeof(args), "--disk ram:x --base-zero --state %s/zero", server.dir);
	strcat(args, " --phase rw=write,size=64k --phase rw=trim,size=64k --phase readall");
	t->back.mischief = TRIM_TO_ZERO_THEN_BACK;
	expect_green(t, args);
	memcpy(t->back.disk, t->back.old, 64 << 10);
	snprintf(args, sizeof(args), "--disk ram:x --base-zero --state %s/zero --verify-only", server.dir);
	assert_int_equal(run(t, args), 1);
	assert_non_null(strstr(t->messages, "seen as zero"));
}

static void an_expected_close_is_green(void **state)
{
	struct bench *t = *state;

	t->back.mischief = CLOSES_MIDWAY;
	t->back.trigger = 300;
	expect_green(t, DISK "--rw randrw --ios 100000 --expect-close");
}

static void refusal_and_absence_are_exit_3(void **state)
{
	struct bench *t = *state;

	assert_int_equal(run(t, "--timeout 1 --vbd 51712"), 3);
	t->back.mischief = REFUSES;
	assert_int_equal(run(t, "--disk ram:x --timeout 10"), 3);
}

#define T(f) cmocka_unit_test_setup_teardown(f, bench_make, bench_end)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    T(good_backend_is_green),
	    T(every_abi_is_spoken),
	    T(ring_orders_and_queues_are_negotiated),
	    T(without_indirect_large_requests_are_split),
	    T(offered_segments_are_used_and_not_exceeded),
	    T(partial_pages_and_single_indirect_segments_work),
	    T(barriers_are_sent_where_asked),
	    T(pages_can_be_granted_per_request),
	    T(overlapping_requests_in_order_are_green),
	    T(overlaps_keep_to_one_queue),
	    T(busy_polling_needs_no_events),
	    T(a_disk_can_be_closed_and_opened_again),
	    T(growth_of_a_live_disk_is_noticed),
	    T(marks_are_written_besides_the_load),
	    T(one_guest_has_several_disks),
	    T(abandoned_domains_die_without_a_word),
	    T(sigterm_ends_load_and_hold_in_order),
	    T(a_backend_without_features_is_used_without_them),
	    T(a_failed_write_is_old_or_new),
	    T(a_read_only_disk_refuses_writes),
	    T(never_written_sectors_are_checked_against_the_base),
	    T(a_later_run_verifies_what_an_earlier_one_wrote),
	    T(damaged_state_files_are_refused),
	    T(bad_usage_is_exit_2),
	    T(second_response_is_red),
	    T(foreign_id_is_red),
	    T(id_of_an_earlier_use_is_red),
	    T(other_operation_is_red),
	    T(indirect_answered_as_6_is_red),
	    T(unknown_status_is_red),
	    T(padding_is_red),
	    T(rsp_prod_ahead_is_red),
	    T(one_wrong_bit_is_red),
	    T(lost_write_is_red),
	    T(misplaced_write_is_red),
	    T(stale_read_is_red),
	    T(uncopied_read_is_red),
	    T(read_from_elsewhere_is_red),
	    T(bytes_outside_a_segment_are_red),
	    T(changed_write_buffer_is_red),
	    T(io_error_is_red),
	    T(garbage_with_an_io_error_is_red),
	    T(trim_to_garbage_is_red),
	    T(trim_that_uncovers_is_red),
	    T(unanswered_flush_is_red),
	    T(overlap_out_of_order_is_red),
	    T(backend_that_closes_midway_is_red),
	    T(backend_that_vanishes_is_red),
	    T(response_after_close_is_red),
	    T(backend_that_never_closes_is_red),
	    T(read_only_case),
	    T(zero_after_trim_must_stay_zero),
	    T(an_expected_close_is_green),
	    T(refusal_and_absence_are_exit_3),
	};
	int failed;

	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && !strcmp(argv[1], "--serve"))
		return serve_main(argv);
	simxen_start(&server);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	simxen_end(&server);
	simxen_remove_dir(&server);
	return failed;
}
