/*
 * The life of a disk under faults: attach, a script of requests, close; and a model that says what each
 * sector may read. The model knows sectors as tags (0: as the images were made; 1: zeros; from 2: what a step
 * of the script wrote). A step that was answered with success leaves one tag, a failed one adds its tag to
 * what was allowed: old or new, sector by sector, and never anything else. Whatever fails, the same questions
 * are asked afterwards: life_recover().
 */
#ifndef TESTS_LIB_FAULTRIG_H
#define TESTS_LIB_FAULTRIG_H

#include "blkd/clock.h"
#include "blkd/vhd_check.h"
#include "tests/lib/devrig.h"

#define LIFE_BYTES	  (16ull << 20)
#define LIFE_GOLDEN_BYTES (3ull << 20)
#define LIFE_SECTORS	  (LIFE_BYTES / 512)
#define LIFE_PIECE	  (512u << 10)

struct step {
	enum blk_op op;
	uint32_t off_sect, n_sect;
	bool wait; /* for this one and all before it, before the next is put */
};

#define MIB_SECT 2048u

/* New blocks over data of the parent and over holes, overwrites, unaligned edges, a write across blocks,
 * several on one new block at once, each kind of flush, zeroing and trimming; more blocks than the first
 * growth has room for. */
static const struct step life_script[] = {
    {BLK_WRITE, 8, 8, true},
    {BLK_WRITE, 9, 3, false},
    {BLK_WRITE, 2 * MIB_SECT - 3, 6, true},
    {BLK_FLUSH, 0, 0, true},
    {BLK_READ, 0, 256, false},
    {BLK_WRITE, 4 * MIB_SECT, 128, false},
    {BLK_WRITE, 4 * MIB_SECT + 512, 16, false},
    {BLK_WRITE, 4 * MIB_SECT + 1, 7, true},
    {BLK_WRITE, 6 * MIB_SECT + 100, 200, true},
    {BLK_ZERO, 6 * MIB_SECT + 120, 64, false},
    {BLK_TRIM, 4 * MIB_SECT, 2048, true},
    {BLK_BARRIER, 8 * MIB_SECT, 8, false},
    {BLK_WRITE, 10 * MIB_SECT + 1, 1, false},
    {BLK_WRITE, 12 * MIB_SECT + 5, 16, false},
    {BLK_READ, 2 * MIB_SECT - 64, 128, true},
    {BLK_TRIM, 8, 4, false},
    {BLK_ZERO, MIB_SECT, 2 * MIB_SECT, false},
    {BLK_FLUSH, 0, 0, true},
    {BLK_WRITE, 14 * MIB_SECT, 64, true},
    {BLK_WRITE, 14 * MIB_SECT, 64, true},
    {BLK_READ, 14 * MIB_SECT, 64, true},
};
#define LIFE_STEPS (sizeof(life_script) / sizeof(life_script[0]))

struct life {
	struct devrig rig;
	const char *path;
	const struct backing_opener *opener;
	const struct io_engine_ops *engine;
	enum write_mode mode;
	bool vhd; /* can be checked */
	int status[LIFE_STEPS];
	uint64_t allowed[LIFE_SECTORS]; /* bit t: may read as tag t */
	unsigned char data[LIFE_STEPS][LIFE_PIECE / 4], got[LIFE_PIECE];
	const char *where; /* for messages */
};

#define LIFE_REQUIRE(l, x)                                                                                   \
	do {                                                                                                 \
		if (!(x)) {                                                                                  \
			fprintf(stderr, "%s: not so: %s (%s:%d)\n", (l)->where, #x, __FILE__, __LINE__);     \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

static inline void life_sector(unsigned tag, uint64_t sector, unsigned char out[512])
{
	if (tag == 0) {
		memset(out, sector * 512 < LIFE_GOLDEN_BYTES ? (int)(sector % 251 + 1) : 0, 512);
		return;
	}
	memset(out, tag == 1 ? 0 : (int)(0x80 + tag), 512);
	if (tag > 1)
		memcpy(out + 128, &sector, sizeof(sector));
}

static inline void life_start(struct life *l)
{
	for (uint64_t s = 0; s < LIFE_SECTORS; s++)
		l->allowed[s] = 1;
}

/* ---- attach and close, each of which may fail ---- */

static inline int life_attach(struct life *l, bool poison_clear, struct err *e)
{
	struct disk_opts dopts = {.path = l->path,
				  .writable = true,
				  .opener = l->opener,
				  .run_dir = l->rig.run_dir,
				  .cache = l->rig.cache,
				  .poison_clear = poison_clear};
	struct devrig *g = &l->rig;
	struct disk *disk = NULL;
	int res = disk_open(&dopts, &disk, e);

	if (res < 0) {
		LIFE_REQUIRE(l, e->text[0]);
		return res;
	}
	g->opts = (struct dev_opts){
	    .name = "life", .engine = l->engine, .write_mode = l->mode, .pool = g->pool, .cache = g->cache};
	res = dev_create(disk, &g->opts, false, &g->dev, e);
	if (res < 0) {
		LIFE_REQUIRE(l, e->text[0]);
		disk_close(disk);
		return res;
	}
	memset(g->req, 0, sizeof(g->req));
	g->n_conns = 1;
	g->conn[0] = (struct rig_conn){.g = g};
	g->conn[0].t.ops = &rig_ops;
	dev_attach(g->dev, &g->conn[0].t);
	return 0;
}

/* ---- the script ---- */

/* On real engines a turn is not for ever: what needed no I/O was answered before the engine was asked to
 * wait. */
static inline bool life_wait(struct life *l, const struct rig_req *r)
{
	bool real = l->engine != &io_replay_engine;

	for (unsigned turns = 0; turns < 100000 && !r->answered; turns++)
		dev_turn(l->rig.dev, real ? clock_ns() + 1000000u : IO_DEADLINE_NONE);
	return r->answered;
}

static inline int life_do(struct life *l, enum blk_op op, uint64_t off, uint64_t len, void *data)
{
	struct rig_req *r = rig_put(&l->rig, 0, op, off, len, data);

	return life_wait(l, r) ? r->req.status : -ETIMEDOUT;
}

static inline unsigned life_tag(unsigned step)
{
	return step + 2;
}

static inline void life_settle(struct life *l, unsigned step, int status)
{
	const struct step *s = &life_script[step];
	uint64_t bit = 1ull << life_tag(step);

	LIFE_REQUIRE(l, status <= 0 && status != -ETIMEDOUT);
	l->status[step] = status;
	for (uint32_t i = s->off_sect; i < s->off_sect + s->n_sect; i++) {
		if (s->op == BLK_WRITE || s->op == BLK_BARRIER)
			l->allowed[i] = status ? l->allowed[i] | bit : bit;
		else if (s->op == BLK_ZERO)
			l->allowed[i] = status ? l->allowed[i] | 2 : 2;
		else if (s->op == BLK_TRIM)
			l->allowed[i] |= 2;
	}
}

static inline void life_verify(struct life *l, uint64_t off_sect, uint64_t n_sect, const unsigned char *got)
{
	unsigned char want[512];

	for (uint64_t i = 0; i < n_sect; i++) {
		uint64_t allowed = l->allowed[off_sect + i];
		bool good = false;

		for (unsigned tag = 0; allowed >> tag && !good; tag++) {
			if (!(allowed >> tag & 1))
				continue;
			life_sector(tag, off_sect + i, want);
			good = !memcmp(want, got + i * 512, 512);
		}
		if (!good)
			fprintf(stderr, "%s: sector %llu: reads %02x %02x, allowed are the tags %llx\n",
				l->where, (unsigned long long)(off_sect + i), got[i * 512],
				got[i * 512 + 128], (unsigned long long)allowed);
		LIFE_REQUIRE(l, good);
	}
}

static inline void life_put(struct life *l, unsigned step)
{
	const struct step *s = &life_script[step];
	bool has_data = s->op == BLK_WRITE || s->op == BLK_BARRIER;

	for (uint32_t i = 0; i < s->n_sect && has_data; i++)
		life_sector(life_tag(step), s->off_sect + i, l->data[step] + i * 512);
	rig_put(&l->rig, step, s->op, s->off_sect * 512ull, s->n_sect * 512ull,
		has_data || s->op == BLK_READ ? l->data[step] : NULL);
}

/* Requests in flight together overlap in the script only in the order in which they are put, which is the
 * order in which they act. Reads are judged when all of their batch was: by then the model allows the new
 * content too, so only those that nothing in the batch overlaps are in the script. */
static inline void life_run(struct life *l)
{
	unsigned first = 0;

	for (unsigned i = 0; i < LIFE_STEPS; i++) {
		life_put(l, i);
		if (!life_script[i].wait)
			continue;
		for (; first <= i; first++) {
			const struct step *s = &life_script[first];

			LIFE_REQUIRE(l, life_wait(l, &l->rig.req[first]));
			life_settle(l, first, l->rig.req[first].req.status);
			if (s->op == BLK_READ && !l->status[first])
				life_verify(l, s->off_sect, s->n_sect, l->data[first]);
		}
	}
}

/* ---- afterwards ---- */

static inline void life_read_all(struct life *l)
{
	for (uint64_t off = 0; off < LIFE_BYTES; off += LIFE_PIECE) {
		LIFE_REQUIRE(l, life_do(l, BLK_READ, off, LIFE_PIECE, l->got) == 0);
		life_verify(l, off / 512, LIFE_PIECE / 512, l->got);
	}
}

/* With nothing failing any more: what failed can be done again, in order; what is there is right. */
static inline void life_again(struct life *l)
{
	for (unsigned i = 0; i < LIFE_STEPS; i++) {
		if (!l->status[i])
			continue;
		life_put(l, i);
		LIFE_REQUIRE(l, life_wait(l, &l->rig.req[i]));
		life_settle(l, i, l->rig.req[i].req.status);
		LIFE_REQUIRE(l, l->status[i] == 0);
	}
}

/* What is worse than `unclean` is never there; after a clean close nothing is. */
static inline void life_check(struct life *l, bool clean)
{
	struct check_opts opts = {.bitmaps = true};
	struct check_result result = {0};
	struct err e = ERR_INIT;

	if (!l->vhd)
		return;
	LIFE_REQUIRE(l, vhd_check_tree(l->opener, 0, l->path, &opts, &result, &e) == 0);
	LIFE_REQUIRE(l, result.errors == 0);
	LIFE_REQUIRE(l, !clean || result.unclean + result.warnings == 0);
}

/* The disk is closed, nothing fails any more. It opens, holds what it must, takes everything again, closes
 * clean. */
static inline void life_recover(struct life *l, bool poison_allowed)
{
	struct err e = ERR_INIT;
	int res;

	life_check(l, false);
	res = life_attach(l, false, &e);
	if (res == -EIO && poison_allowed)
		res = life_attach(l, true, &e);
	if (res)
		fprintf(stderr, "%s: reopen: %s\n", l->where, e.text);
	LIFE_REQUIRE(l, res == 0);
	life_read_all(l);
	life_again(l);
	LIFE_REQUIRE(l, life_do(l, BLK_FLUSH, 0, 0, NULL) == 0);
	life_read_all(l);
	LIFE_REQUIRE(l, dev_destroy(l->rig.dev, &e) == 0);
	life_check(l, true);
}

#endif
