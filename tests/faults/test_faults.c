/*
 * Every operation on storage fails in turn, in every way: the one operation, or all from it on until the
 * trouble is over. Over the whole life of a disk: attach, new blocks, overwrites, flush, commit, growth,
 * discard, close. On the replay engine, so the Nth operation is the same in every run.
 */
#include "blkd/log.h"
#include "tests/lib/faultrig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

struct kind {
	const char *name;
	enum replay_fault_kind kind;
	int error;
	bool lasts; /* until it is cleared */
};

static const struct kind kinds[] = {
    {"EIO", REPLAY_FAIL, EIO, false},
    {"EIO from then on", REPLAY_FAIL, EIO, true},
    {"torn EIO", REPLAY_FAIL_TORN, EIO, false},
    {"ENOSPC", REPLAY_FAIL, ENOSPC, false},
    {"ENOSPC from then on", REPLAY_FAIL, ENOSPC, true},
    {"EINTR", REPLAY_FAIL, EINTR, false},
    {"EAGAIN", REPLAY_FAIL, EAGAIN, false},
    {"ENOMEM", REPLAY_FAIL, ENOMEM, false},
    {"short", REPLAY_SHORT, 0, false},
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* Under a sanitizer every fourth, another fourth for each kind; under the thread sanitizer, which has one
 * thread to look at here and is slow, every fortieth. */
#if defined(__SANITIZE_THREAD__)
#define STRIDE 40u
#elif defined(__SANITIZE_ADDRESS__)
#define STRIDE 4u
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define STRIDE 40u
#elif __has_feature(address_sanitizer)
#define STRIDE 4u
#endif
#endif
#ifndef STRIDE
#define STRIDE 1u
#endif

struct scenario {
	const char *name;
	struct backing_traits traits;
	enum write_mode mode;
	bool journal, raw;
};

#define LOCAL                                                                                                \
	.logical_bytes = 512, .physical_bytes = 4096, .mem_align_bytes = 512, .zeroes_on_allocate = true,    \
	.can_fallocate = true, .can_punch = true

static struct life life;
static char run_dir[] = "/tmp/blkd-faults-XXXXXX";
static uint64_t cases, ops_hit;

struct aim {
	uint64_t nth, seen;
	bool lasts, flush_hit, hit;
};

static bool match(void *ctx, const struct replay_rec *rec)
{
	struct aim *aim = ctx;
	uint64_t n = ++aim->seen;

	if (n != aim->nth && !(aim->lasts && n > aim->nth))
		return false;
	aim->hit = true;
	aim->flush_hit |= rec->op == IO_FLUSH;
	return true;
}

static void prepare(const struct scenario *s, const char *where)
{
	life.where = where;
	life.path = s->raw ? "/m/disk.raw" : "/m/leaf.vhd";
	rig_medium(&life.rig, 11, LIFE_BYTES, LIFE_GOLDEN_BYTES, &s->traits);
	life.rig.run_dir = s->journal ? run_dir : NULL;
	life.opener = replay_opener(life.rig.medium);
	life.engine = &io_replay_engine;
	life.mode = s->mode;
	life.vhd = !s->raw;
	memset(life.status, 0, sizeof(life.status));
	life_start(&life);
	if (s->raw) {
		int id = replay_file_add(life.rig.medium, life.path, LIFE_BYTES, NULL);
		unsigned char sector[512];

		LIFE_REQUIRE(&life, id >= 0);
		for (uint64_t i = 0; i < LIFE_GOLDEN_BYTES / 512; i++) {
			life_sector(0, i, sector);
			replay_file_poke(life.rig.medium, id, i * 512, sector, 512);
		}
	}
	replay_record(life.rig.medium, false);
}

/* Every second case does not try again before it closes. */
static void one_case(const struct scenario *s, const struct kind *k, struct aim *aim)
{
	struct replay_fault f = {
	    .kind = k->kind, .match = match, .ctx = aim, .error = k->error, .short_bytes = 512};
	struct err e = ERR_INIT;
	char where[128];
	int res;

	snprintf(where, sizeof(where), "%s: operation %llu: %s", s->name, (unsigned long long)aim->nth,
		 k->name);
	prepare(s, where);
	LIFE_REQUIRE(&life, replay_fault_add(life.rig.medium, &f) == 0);
	res = life_attach(&life, false, &e);
	LIFE_REQUIRE(&life, res == 0 || aim->hit);
	LIFE_REQUIRE(&life, res == 0 || k->kind != REPLAY_SHORT);
	if (res == 0) {
		life_run(&life);
		if (aim->hit)
			replay_fault_clear(life.rig.medium);
		for (unsigned i = 0; i < LIFE_STEPS; i++)
			LIFE_REQUIRE(&life, life.status[i] == 0 || (aim->hit && k->kind != REPLAY_SHORT));
		if (aim->hit && !aim->flush_hit && aim->nth % 2) {
			life_again(&life);
			life_read_all(&life);
			LIFE_REQUIRE(&life, life_do(&life, BLK_FLUSH, 0, 0, NULL) == 0);
		}
		res = dev_destroy(life.rig.dev, &e);
		LIFE_REQUIRE(&life, res == 0 || (aim->hit && e.text[0]));
		LIFE_REQUIRE(&life, res == 0 || k->kind != REPLAY_SHORT);
	}
	replay_fault_clear(life.rig.medium);
	life_recover(&life, aim->flush_hit);
	rig_free(&life.rig);
	cases++;
	ops_hit += aim->hit;
}

/* N = 1, 2, ... until a life passes in which nothing is hit. */
static void every_operation_fails(const struct scenario *s)
{
	for (unsigned k = 0; k < KINDS; k++) {
		struct aim aim;
		uint64_t nth = 1 + k % STRIDE;

		do {
			aim = (struct aim){.nth = nth, .lasts = kinds[k].lasts};
			one_case(s, &kinds[k], &aim);
			nth += STRIDE;
		} while (aim.hit);
		assert_true(nth > 15);
	}
	printf("%s: %llu lives, a fault in %llu of them\n", s->name, (unsigned long long)cases,
	       (unsigned long long)ops_hit);
	cases = ops_hit = 0;
}

static void clone_with_writes_through(void **state)
{
	(void)state;
	every_operation_fails(&(struct scenario){"clone, through", {LOCAL}, WRITE_THROUGH, false, false});
}

static void clone_with_writes_back_and_a_journal(void **state)
{
	(void)state;
	every_operation_fails(&(struct scenario){"clone, back", {LOCAL}, WRITE_BACK, true, false});
}

static void storage_that_is_durable_at_completion(void **state)
{
	(void)state;
	every_operation_fails(&(struct scenario){
	    "clone, durable storage", {LOCAL, .durable_at_completion = true}, WRITE_AUTO, true, false});
}

static void storage_in_blocks_of_4k(void **state)
{
	struct scenario s = {"clone, 4 KiB blocks", {LOCAL}, WRITE_AUTO, true, false};

	(void)state;
	s.traits.logical_bytes = s.traits.mem_align_bytes = 4096;
	every_operation_fails(&s);
}

static void storage_that_can_neither_reserve_nor_punch(void **state)
{
	struct scenario s = {"clone, poor storage", {LOCAL}, WRITE_AUTO, true, false};

	(void)state;
	s.traits.can_fallocate = s.traits.can_punch = s.traits.zeroes_on_allocate = false;
	every_operation_fails(&s);
}

static void raw_disk(void **state)
{
	(void)state;
	every_operation_fails(&(struct scenario){"raw", {LOCAL}, WRITE_BACK, true, true});
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(clone_with_writes_through),
	    cmocka_unit_test(clone_with_writes_back_and_a_journal),
	    cmocka_unit_test(storage_that_is_durable_at_completion),
	    cmocka_unit_test(storage_in_blocks_of_4k),
	    cmocka_unit_test(storage_that_can_neither_reserve_nor_punch),
	    cmocka_unit_test(raw_disk),
	};
	int failed;

	if (!mkdtemp(run_dir))
		return 1;
	/* Each of the thousands of refusals would be told. */
	log_set_level(LOG_ERROR);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	if (rmdir(run_dir) < 0)
		failed++;
	return failed;
}
