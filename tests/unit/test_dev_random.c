/*
 * Random loads against a model that knows the order of arrival: overlapping requests over several
 * connections, barriers, discards with and without parents, failing and torn operations, kills. Deterministic
 * from the seed; BLKD_SEEDS=n runs n of them, BLKD_SEED=s one.
 *
 * The model is a history per sector: what was asked of it, in order of arrival, and how it ended. A read that
 * arrived at time s may see the last write before s that succeeded, or any that failed (or a discard) after
 * that one. It also checks the order itself: when something is answered, no earlier overlapping request may
 * be under way.
 */
#include "tests/lib/devrig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

#define SIZE	    (8u << 20)
#define SECTORS	    (SIZE / 512)
#define GOLDEN_SECS (5u * 2048 + 7)
#define SLOTS	    24u
#define SLOT_BYTES  (128u << 10)
#define HISTORY	    8u
#define TAG_GOLDEN  0xffffffffu

enum state { PENDING, OK, MAYBE };

struct entry {
	uint32_t seq, tag;
	enum state state;
};

struct sector {
	unsigned n;
	bool unknown; /* the history was too long */
	struct entry e[HISTORY];
};

struct load {
	struct devrig g;
	uint64_t rng;
	struct sector model[SECTORS];
	uint32_t seq_of[SLOTS], arrivals, tags;
	unsigned char data[SLOTS][SLOT_BYTES];
	bool used[SLOTS];
	unsigned done, failed, idle_turns;
	unsigned fault_permille, flush_permille;
	bool stopping;
	uint64_t seed;
};

static struct load load;

static void die(const char *what, uint64_t at)
{
	print_error("seed %llu: %s (%llu)\n", (unsigned long long)load.seed, what, (unsigned long long)at);
	fail();
}

static uint32_t rnd(uint32_t n)
{
	load.rng = load.rng * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)((load.rng >> 33) % n);
}

static void content(uint32_t tag, uint32_t lba, unsigned char out[512])
{
	uint64_t word = ((uint64_t)tag << 32 | lba) * 0x9e3779b97f4a7c15u | 1;

	if (tag == TAG_GOLDEN)
		memset(out, (int)(lba % 251 + 1), 512);
	else if (!tag)
		memset(out, 0, 512);
	else
		for (unsigned i = 0; i < 64; i++)
			memcpy(out + i * 8, &word, 8);
}

static bool matches(uint32_t tag, uint32_t lba, const unsigned char *got)
{
	unsigned char want[512];

	content(tag, lba, want);
	return !memcmp(want, got, 512);
}

static void check_sector(uint32_t lba, uint32_t seq, const unsigned char *got)
{
	const struct sector *s = &load.model[lba];

	if (s->unknown)
		return;
	for (unsigned i = s->n; i--;) {
		const struct entry *x = &s->e[i];

		if (x->seq >= seq)
			continue;
		if (x->state == PENDING)
			die("a read was answered before an earlier write of its sector", lba);
		if (matches(x->tag, lba, got))
			return;
		if (x->state == OK)
			die("a sector reads what was never asked for", lba);
	}
	die("a sector without a history", lba);
}

static bool mutates(const struct blkreq *q)
{
	return q->op == BLK_WRITE || q->op == BLK_TRIM || q->op == BLK_ZERO ||
	       (q->op == BLK_BARRIER && q->len_bytes);
}

static void on_fetch(struct devrig *g, struct rig_req *r)
{
	unsigned slot = (unsigned)(r - g->req);
	const struct blkreq *q = &r->req;
	uint32_t tag = 0;

	load.seq_of[slot] = ++load.arrivals;
	if (!mutates(q))
		return;
	if (q->op == BLK_WRITE || q->op == BLK_BARRIER) {
		tag = ++load.tags;
		for (uint32_t i = 0; i < q->len_bytes / 512; i++)
			content(tag, (uint32_t)(q->off_bytes / 512) + i,
				(unsigned char *)q->buf.mem + i * 512);
	}
	for (uint64_t lba = q->off_bytes / 512; lba < (q->off_bytes + q->len_bytes) / 512; lba++) {
		struct sector *s = &load.model[lba];

		if (s->n == HISTORY) {
			s->unknown = true;
			s->n = 0;
		}
		s->e[s->n++] = (struct entry){load.arrivals, tag, PENDING};
	}
}

static void settle(struct sector *s, uint32_t seq, bool exact)
{
	unsigned i = 0;

	while (i < s->n && s->e[i].seq != seq)
		if (s->e[i++].state == PENDING && !s->unknown)
			die("a write was answered before an earlier one of its sector",
			    (uint64_t)(s - load.model));
	if (i == s->n)
		return; /* forgotten: the sector is unknown */
	s->e[i].state = exact ? OK : MAYBE;
	if (!exact)
		return;
	s->unknown = false;
	s->n -= i;
	memmove(s->e, s->e + i, s->n * sizeof(s->e[0]));
}

static void on_answer(struct devrig *g, struct rig_req *r)
{
	unsigned slot = (unsigned)(r - g->req);
	const struct blkreq *q = &r->req;
	uint32_t lba = (uint32_t)(q->off_bytes / 512), n = (uint32_t)(q->len_bytes / 512);

	if (q->status && !load.fault_permille && !load.flush_permille)
		die("failed without a reason", (uint64_t)-q->status);
	if (q->status && q->status != -EIO && q->status != -ENOSPC)
		die("failed with a strange error", (uint64_t)-q->status);
	load.failed += q->status != 0;
	load.done++;
	if (mutates(q))
		for (uint32_t i = 0; i < n; i++)
			settle(&load.model[lba + i], load.seq_of[slot], !q->status && q->op != BLK_TRIM);
	if (q->op == BLK_READ && !q->status)
		for (uint32_t i = 0; i < n; i++)
			check_sector(lba + i, load.seq_of[slot], r->data + i * 512);
}

static bool unlucky(void *ctx, const struct replay_rec *rec)
{
	(void)ctx;
	if (rec->sync || load.stopping)
		return false;
	return rnd(1000) < (rec->op == IO_FLUSH ? load.flush_permille : load.fault_permille);
}

static void put_random(unsigned slot)
{
	static const enum blk_op ops[] = {BLK_READ,  BLK_READ,	BLK_READ,  BLK_READ,   BLK_WRITE,
					  BLK_WRITE, BLK_WRITE, BLK_WRITE, BLK_WRITE,  BLK_TRIM,
					  BLK_TRIM,  BLK_FLUSH, BLK_ZERO,  BLK_BARRIER};
	enum blk_op op = ops[rnd(sizeof(ops) / sizeof(ops[0]))];
	/* mostly in two hot megabytes, so that requests overlap */
	uint32_t lba = rnd(3) ? rnd(4096) + (uint32_t)(load.seed % 3) * 4096 : rnd(SECTORS),
		 n = 1 + rnd(rnd(4) ? 16 : 256);
	struct rig_req *r;

	if (op == BLK_BARRIER && rnd(3))
		op = BLK_WRITE;
	if (op == BLK_TRIM && rnd(2)) { /* whole blocks */
		lba = rnd(4) * 4096;
		n = 4096 * (1 + rnd(3));
	}
	if (op == BLK_ZERO && !rnd(6))
		n = 1 + rnd(6000);
	if (lba + n > SECTORS)
		n = SECTORS - lba;
	if (op == BLK_FLUSH || (op == BLK_BARRIER && rnd(2)))
		lba = n = 0;
	r = rig_put(&load.g, slot, op, (uint64_t)lba * 512, (uint64_t)n * 512,
		    n && (op == BLK_READ || op == BLK_WRITE || op == BLK_BARRIER) ? load.data[slot] : NULL);
	r->req.fua = op == BLK_WRITE && !rnd(8);
	load.used[slot] = true;
}

/* One turn. Spinning is counted: a turn that waits may come back with nothing a few times, but not for ever.
 */
static void turn(void)
{
	uint64_t events = replay_events(load.g.medium);
	unsigned answers = load.g.answers;
	bool busy = dev_turn(load.g.dev, IO_DEADLINE_NONE);

	if (!busy || events != replay_events(load.g.medium) || answers != load.g.answers)
		load.idle_turns = 0;
	else if (++load.idle_turns > 12)
		die("spins or hangs", load.done);
}

static void run_load(unsigned n_requests, bool to_the_end)
{
	unsigned until = load.done + n_requests;

	load.idle_turns = 0;
	while (load.done < until) {
		for (unsigned i = 0; i < SLOTS; i++)
			if ((!load.used[i] || load.g.req[i].answered) && !rnd(3))
				put_random(i);
		turn();
	}
	for (unsigned i = 0; to_the_end && i < SLOTS; i++)
		while (load.used[i] && !load.g.req[i].answered)
			turn();
}

static void verify_all(void)
{
	static unsigned char all[1u << 20];

	load.stopping = true;
	for (uint32_t off = 0; off < SIZE; off += sizeof(all)) {
		struct rig_req *r = rig_put(&load.g, 0, BLK_READ, off, sizeof(all), all);

		if (!rig_wait(&load.g, r))
			die("the last read hangs", off);
		if (r->req.status)
			die("the last read failed", off);
	}
	load.stopping = false;
}

static void forget_in_flight(void)
{
	for (uint32_t i = 0; i < SECTORS; i++)
		for (unsigned k = 0; k < load.model[i].n; k++)
			if (load.model[i].e[k].state == PENDING)
				load.model[i].e[k].state = MAYBE;
	for (unsigned i = 0; i < SLOTS; i++) {
		struct rig_req *r = &load.g.req[i];

		if (r->in_device)
			dev_buf_put(load.g.dev, &r->req.buf);
		r->in_device = r->queued = false;
		r->answered = true;
	}
}

static void choose_traits(struct backing_traits *t)
{
	uint32_t logical = rnd(4) ? 512 : 4096;

	*t = (struct backing_traits){.logical_bytes = logical,
				     .physical_bytes = 4096,
				     .mem_align_bytes = rnd(2) ? 512 : 4096,
				     .durable_at_completion = !rnd(4),
				     .zeroes_on_allocate = rnd(2),
				     .can_fallocate = rnd(4),
				     .can_punch = rnd(3)};
}

static void run_seed(uint64_t seed, const char *run_dir)
{
	static const uint32_t blocks[] = {0, 0, 512u << 10, 64u << 10};
	struct replay_shape shape = {.delay_min_ns = 1000, .delay_max_ns = 300000};
	struct backing_traits traits;
	struct rig_shape o = {
	    .seed = seed, .size_bytes = SIZE, .golden_bytes = GOLDEN_SECS * 512ull, .traits = &traits};
	struct replay_fault f = {.match = unlucky, .error = EIO};
	struct err e = ERR_INIT;
	enum write_mode mode;
	char dir[64];

	memset(&load.model, 0, sizeof(load.model));
	memset(load.used, 0, sizeof(load.used));
	load.seed = seed;
	load.rng = seed * 0x9e3779b97f4a7c15u;
	load.done = load.failed = load.arrivals = load.tags = 0;
	load.fault_permille = load.flush_permille = 0;
	load.stopping = false;
	rnd(2);
	choose_traits(&traits);
	o.parents = rnd(4);
	o.block_bytes = blocks[rnd(4)];
	o.cache_bytes = rnd(2) ? 4096u << rnd(4) : 0;
	o.pool_bytes = rnd(3) ? 0 : 1u << 20;
	rig_medium_of(&load.g, &o);
	replay_record(load.g.medium, false);
	shape.short_permille = rnd(2) * 100;
	replay_set_shape(load.g.medium, &shape);
	load.g.n_conns = 1 + rnd(RIG_CONNS);
	load.g.max_requests = rnd(3) ? 0 : 1 + rnd(16);
	load.g.on_fetch = on_fetch;
	load.g.on_answer = on_answer;
	load.g.poison_clear = true;
	snprintf(dir, sizeof(dir), "%s", run_dir);
	load.g.run_dir = rnd(4) ? dir : NULL;
	mode = (enum write_mode)rnd(3);
	for (uint32_t i = 0; i < SECTORS; i++) {
		load.model[i].n = 1;
		load.model[i].e[0] = (struct entry){0, o.parents && i < GOLDEN_SECS ? TAG_GOLDEN : 0, OK};
	}
	if (rnd(2)) {
		f.kind = rnd(2) ? REPLAY_FAIL : REPLAY_FAIL_TORN;
		f.error = rnd(3) ? EIO : ENOSPC;
		load.fault_permille = 1 + rnd(60);
		load.flush_permille = rnd(4) ? 0 : 1 + rnd(20);
		replay_fault_add(load.g.medium, &f);
	}
	for (unsigned round = 0; round < 3; round++) {
		bool kill = load.g.run_dir && rnd(2);

		if (rig_open(&load.g, mode, &e)) {
			print_error("seed %llu: %s\n", (unsigned long long)seed, e.text);
			die("open", round);
		}
		verify_all();
		run_load(150, !kill);
		if (kill) {
			forget_in_flight();
			replay_drop_in_flight(load.g.medium);
			dev_abandon(load.g.dev);
		} else {
			load.stopping = true;
			if (dev_destroy(load.g.dev, &e) && !load.flush_permille)
				die("close", round);
			load.stopping = false;
		}
	}
	load.fault_permille = load.flush_permille = 0;
	if (rig_open(&load.g, mode, &e))
		die("the last open", 0);
	verify_all();
	rig_close(&load.g);
	rig_free(&load.g);
}

static void random_load_matches_a_model_of_histories(void **state)
{
	const char *n = getenv("BLKD_SEEDS"), *one = getenv("BLKD_SEED");
	uint64_t first = one ? strtoull(one, NULL, 0) : 1, count = one ? 1 : n ? strtoull(n, NULL, 0) : 300;
	char dir[64] = "/tmp/blkd-random-XXXXXX";

	(void)state;
	assert_non_null(mkdtemp(dir));
	for (uint64_t seed = first; seed < first + count; seed++)
		run_seed(seed, dir);
	assert_int_equal(rmdir(dir), 0); /* clean closes leave no journal behind */
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(random_load_matches_a_model_of_histories)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
