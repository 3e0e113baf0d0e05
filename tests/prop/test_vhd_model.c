/*
 * The write half of the VHD format against a flat array: random writes, zeroes, discards, commits, grows,
 * closes, reopens and process kills, pieces and acts completing in random order or failing, on images of many
 * shapes.
 *
 * The model knows of each sector which values it may read as: one, or two after a discard or a kill, until
 * somebody looks. A failed act may have landed or not. After some steps the space is audited: no slot that a
 * BAT entry names, live, to be written, or on the medium, belongs to another block or is on offer, and what
 * is on offer has a bitmap of zeros.
 *
 * test_vhd_model [seed [steps]] runs one seed; without arguments a fixed number of seeds from 1. A failure
 * prints its seed.
 */
#include "tests/lib/vhdwrite.h"

#include "blkd/vhd_check.h"
#include "formats/vhd/vhd_write.h"

#define MAX_OPS	    24u
#define MAX_RECORDS 4096u
#define MAX_SECTORS 40960u

#define ENSURE(x)                                                                                            \
	do {                                                                                                 \
		if (!(x)) {                                                                                  \
			fprintf(stderr, "seed %llu step %u: %s:%d: %s\n", (unsigned long long)g.seed,        \
				g.step, __FILE__, __LINE__, #x);                                             \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

struct op {
	bool busy;
	struct write_piece p;
	enum write_op op;
	uint8_t value;
};

struct sector {
	uint8_t value, other; /* other == value: it is certain */
	bool present; /* somebody wrote or zeroed it: may never show what is below again (unless below is
			 zero) */
};

static struct {
	uint64_t seed, rng;
	unsigned step;
	struct mem_file *f;
	struct image *img;
	uint32_t n_sectors;
	uint8_t below;
	unsigned flags; /* WRITE_BELOW_ZERO if below is zero */
	struct sector s[MAX_SECTORS];
	struct op ops[MAX_OPS];
	bool job_on[2];	      /* COMMIT, GROW */
	struct vw_job job[2]; /* acts[] of which done[] are over */
	bool done[2][VW_ACTS];
	struct meta_record rec[MAX_RECORDS];
	uint64_t rec_epoch[MAX_RECORDS];
	unsigned n_rec;
	unsigned fail_percent;
	uint64_t n_commits, n_grows, n_closes, n_kills, n_pieces, n_frees, n_failed_commits, n_parked;
} g;

static uint32_t rnd(uint32_t n)
{
	g.rng ^= g.rng << 13;
	g.rng ^= g.rng >> 7;
	g.rng ^= g.rng << 17;
	return (uint32_t)((g.rng >> 16) % n);
}

static bool chance(unsigned percent)
{
	return rnd(100) < percent;
}

static uint64_t disk_bytes(void)
{
	return (uint64_t)g.n_sectors * 512;
}

/* ---- the model ---- */

static void verify(uint32_t sector)
{
	struct sector *s = &g.s[sector];
	int v = vw_value(g.img, (uint64_t)sector * 512, g.below);

	if (v != s->value && v != s->other)
		fprintf(stderr, "sector %u reads %d, should %u or %u\n", sector, v, s->value, s->other);
	ENSURE(v == s->value || v == s->other);
	s->value = s->other = (uint8_t)v;
}

static bool in_flight(uint32_t sector)
{
	uint64_t at = (uint64_t)sector * 512;

	for (unsigned i = 0; i < MAX_OPS; i++)
		if (g.ops[i].busy && at >= g.ops[i].p.off_bytes &&
		    at < g.ops[i].p.off_bytes + g.ops[i].p.len_bytes)
			return true;
	return false;
}

static void verify_all(void)
{
	for (uint32_t i = 0; i < g.n_sectors; i++)
		if (!in_flight(i))
			verify(i);
}

static void model_done(const struct op *o, bool maybe)
{
	uint32_t first = (uint32_t)(o->p.off_bytes / 512), n = o->p.len_bytes / 512;

	for (uint32_t i = first; i < first + n; i++) {
		struct sector *s = &g.s[i];
		uint8_t now = o->op == WRITE_DATA ? o->value : 0;

		if (o->op == WRITE_TRIM && s->value == g.below && s->other == g.below && !s->present)
			continue; /* absent: left alone */
		if (o->op == WRITE_TRIM || maybe) {
			s->other = now;
		} else {
			s->value = s->other = now;
		}
		s->present |= o->op != WRITE_TRIM;
	}
}

/* ---- space ---- */

struct owned {
	uint64_t start;
	uint32_t block; /* VHD_NO_BLOCK: on offer */
};

static int cmp_owned(const void *a, const void *b)
{
	const struct owned *x = a, *y = b;

	if (x->start != y->start)
		return x->start < y->start ? -1 : 1;
	return (x->block > y->block) - (x->block < y->block);
}

static uint32_t medium32(uint64_t off)
{
	unsigned char raw[4];

	mem_peek(g.f, off, raw, 4);
	return be32_load(raw);
}

static void audit(void)
{
	struct vhd *v = vhd_of(g.img);
	struct vhd_write *w = v->w;
	static struct owned o[4 * MAX_SECTORS];
	unsigned char bits[512];
	uint32_t n = 0, unallocated = 0;

	for (uint32_t b = 0; b < v->n_blocks; b++) {
		uint32_t raw = be32_load(w->bat_raw + b * 4ull), medium = medium32(v->bat_off + b * 4ull);

		unallocated += v->bat[b] == VHD_BAT_FREE;
		if (v->bat[b] != VHD_BAT_FREE)
			o[n++] = (struct owned){v->bat[b] * 512ull, b};
		if (raw != VHD_BAT_FREE)
			o[n++] = (struct owned){raw * 512ull, b};
		if (medium != VHD_BAT_FREE)
			o[n++] = (struct owned){medium * 512ull, b};
	}
	ENSURE(unallocated == w->space.n_unallocated);
	for (unsigned i = 0; i < w->space.n_ready; i++) {
		uint32_t sector = w->space.ready[(w->space.ready_head + i) % VHD_READY_MAX];

		mem_peek(g.f, sector * 512ull, bits, 512);
		ENSURE(bytes_are_zero(bits, 512));
		ENSURE((sector + 1) % 8 == 0);
		o[n++] = (struct owned){sector * 512ull, VHD_NO_BLOCK - 1 - i};
	}
	for (uint32_t i = 0; i < w->space.n_freed; i++)
		o[n++] = (struct owned){w->space.freed[i] * 512ull, VHD_NO_BLOCK - 1000 - i};
	qsort(o, n, sizeof(*o), cmp_owned);
	for (uint32_t i = 0; i < n; i++) {
		ENSURE(o[i].start >= v->meta_end);
		ENSURE(o[i].start + 512 + v->block_bytes + 512 <= v->file_bytes);
		if (i && o[i].block != o[i - 1].block)
			ENSURE(o[i].start >= o[i - 1].start + 512 + v->block_bytes);
	}
}

/* ---- pieces ---- */

static void record(const struct write_piece *p)
{
	ENSURE(g.n_rec < MAX_RECORDS);
	g.rec[g.n_rec] = p->rec;
	g.rec_epoch[g.n_rec++] = p->epoch;
}

static void forget_records(void)
{
	uint64_t durable = vhd_epoch_durable(g.img);
	unsigned n = 0;

	while (n < g.n_rec && g.rec_epoch[n] <= durable)
		n++;
	if (n && (chance(20) || g.n_rec > MAX_RECORDS / 2)) {
		memmove(g.rec, g.rec + n, (g.n_rec - n) * sizeof(g.rec[0]));
		memmove(g.rec_epoch, g.rec_epoch + n, (g.n_rec - n) * sizeof(g.rec_epoch[0]));
		g.n_rec -= n;
	}
}

static void job_start(enum job_kind kind);

static void pick_range(enum write_op op, uint64_t *off, uint64_t *len)
{
	struct vhd *v = vhd_of(g.img);
	uint32_t spb = v->block_bytes / 512;

	if (op == WRITE_TRIM && chance(50)) { /* whole blocks */
		uint32_t b = rnd(v->n_blocks);

		*off = (uint64_t)b << v->block_shift;
		*len = u64_min((uint64_t)(1 + rnd(3)) << v->block_shift, disk_bytes() - *off);
		return;
	}
	*off = (uint64_t)rnd(g.n_sectors) * 512;
	*len = (uint64_t)(1 + rnd(chance(20) ? 2 * spb : chance(50) ? 16 : 3)) * 512;
	if (chance(30)) { /* page-aligned */
		*off = round_down_u64(*off, 4096);
		*len = round_up_u64(*len, 4096);
	}
	*len = u64_min(*len, disk_bytes() - *off);
}

static void piece_start(void)
{
	enum write_op op = chance(60) ? WRITE_DATA : chance(50) ? WRITE_ZERO : WRITE_TRIM;
	unsigned char bits[512];
	struct op *o = NULL;
	uint64_t off, len;
	int ret;

	for (unsigned i = 0; i < MAX_OPS && !o; i++)
		if (!g.ops[i].busy)
			o = &g.ops[i];
	if (!o)
		return;
	pick_range(op, &off, &len);
	for (uint64_t i = off / 512; i < (off + len) / 512; i++)
		if (in_flight((uint32_t)i))
			return;
	for (uint64_t i = off / 512; i < (off + len) / 512; i++)
		if (g.s[i].value != g.s[i].other)
			verify((uint32_t)i); /* two values at most are known of it */
	ret = vhd_write_begin(g.img, op, g.flags, off, len, &o->p);
	if (ret == -EINPROGRESS) {
		g.n_parked++;
		if (o->p.park == PARK_META) {
			mem_peek(g.f, o->p.park_key, bits, 512);
			ret = vhd_meta_put(g.img, o->p.park_key, bits, chance(5) ? -EIO : 0);
			ENSURE(ret == 0 || ret == -EBUSY);
		} else {
			job_start(o->p.park == PARK_GROW ? JOB_GROW : JOB_COMMIT);
		}
		return;
	}
	if (ret) { /* only while commits fail */
		ENSURE(ret == -EIO && vhd_of(g.img)->w->commit.last_res);
		return;
	}
	ENSURE(o->p.off_bytes == off && o->p.len_bytes && o->p.len_bytes <= len && o->p.len_bytes % 512 == 0);
	o->busy = true;
	o->op = op;
	o->value = (uint8_t)(1 + rnd(180));
	g.n_pieces++;
	g.n_frees += o->p.rec.sector == META_RECORD_FREED && o->p.epoch;
	if (op == WRITE_ZERO && o->p.act == PIECE_NOTHING)
		ENSURE(g.below == 0);
}

/* Garbage behind the sectors that the guest never wrote: a failed piece may leave anything there. */
static void spoil(const struct op *o)
{
	unsigned char junk[512];

	memset(junk, 0xdd, sizeof(junk));
	for (uint32_t i = 0; i < o->p.len_bytes / 512; i++)
		if (!g.s[o->p.off_bytes / 512 + i].present && o->p.act == PIECE_WRITE)
			mem_poke(g.f, o->p.file_off + i * 512ull, junk, 512);
}

static void piece_act(const struct op *o)
{
	static unsigned char buf[2u << 20];

	memset(buf, o->value, o->p.len_bytes);
	ENSURE(!vw_piece_do(g.img, &o->p, buf));
}

static void piece_finish(void)
{
	struct op *o = &g.ops[rnd(MAX_OPS)];

	if (!o->busy)
		return;
	o->busy = false;
	if (chance(g.fail_percent)) {
		spoil(o);
		vhd_write_end(g.img, &o->p, -EIO);
		return;
	}
	piece_act(o);
	vhd_write_end(g.img, &o->p, 0);
	model_done(o, false);
	if (o->p.epoch)
		record(&o->p);
}

/* ---- jobs ---- */

static void job_start(enum job_kind kind)
{
	int ret;

	if (g.job_on[kind])
		return;
	ret = vhd_job_begin(g.img, kind, &g.job[kind].job);
	ENSURE(ret == 0 || (kind == JOB_GROW && ret == -ENOSPC && g.f->traits.fixed_size));
	if (ret)
		return;
	g.job_on[kind] = true;
	g.job[kind].n = 0;
	memset(g.done[kind], true, sizeof(g.done[kind]));
}

static void act_finish(enum job_kind kind, unsigned i, bool may_fail)
{
	struct vw_job *j = &g.job[kind];
	const struct meta_act *a = &j->acts[i];
	bool fails = may_fail && a->kind != ACT_FLUSH && chance(g.fail_percent);
	uint64_t old = mem_size(g.f);
	unsigned char junk[512];

	if (!fails || chance(50))
		ENSURE(!vw_act_do(g.img, a));
	memset(junk, 0xee, sizeof(junk));
	if (a->kind == ACT_EXTEND && !g.f->traits.zeroes_on_allocate)
		for (uint64_t at = round_up_u64(old, 512); at + 512 <= mem_size(g.f); at += 512)
			mem_poke(g.f, at, junk, 512);
	g.done[kind][i] = true;
	vhd_job_done(g.img, &j->job, a, fails ? -EIO : 0);
}

static void job_step(enum job_kind kind, bool may_fail)
{
	struct vw_job *j = &g.job[kind];
	unsigned left = 0;
	int n;

	if (!g.job_on[kind])
		return;
	for (unsigned i = 0; i < j->n; i++)
		left += !g.done[kind][i];
	if (left) {
		unsigned i = rnd(j->n);

		while (g.done[kind][i])
			i = (i + 1) % j->n;
		act_finish(kind, i, may_fail);
		return;
	}
	n = vw_next(g.img, j, 1 + rnd(VW_ACTS));
	memset(g.done[kind], false, sizeof(g.done[kind]));
	if (n != 0)
		return;
	g.job_on[kind] = false;
	if (kind == JOB_COMMIT) {
		g.n_commits++;
		g.n_failed_commits += j->job.res != 0;
		if (!j->job.res)
			ENSURE(vhd_epoch_durable(g.img) == j->job.epoch);
	} else {
		g.n_grows++;
	}
	audit();
}

static void drain(void)
{
	for (unsigned i = 0; i < MAX_OPS; i++)
		if (g.ops[i].busy) {
			piece_act(&g.ops[i]);
			g.ops[i].busy = false;
			vhd_write_end(g.img, &g.ops[i].p, 0);
			model_done(&g.ops[i], false);
			if (g.ops[i].p.epoch)
				record(&g.ops[i].p);
		}
	while (g.job_on[JOB_COMMIT] || g.job_on[JOB_GROW]) {
		job_step(JOB_COMMIT, false);
		job_step(JOB_GROW, false);
	}
}

static void reopen(const struct meta_record *rec, unsigned n)
{
	struct err e = ERR_INIT;

	g.img = vw_open(g.f, BACKING_WRITE);
	ENSURE(g.img);
	if (chance(50) || n) {
		unsigned few = 4 + rnd(40);

		if (!n)
			ENSURE(!vhd_write_prepare(vhd_of(g.img), few, &e));
		if (vhd_dirty_replay(g.img, rec, n, &e)) {
			fprintf(stderr, "replay: %s\n", e.text);
			ENSURE(false);
		}
		ENSURE(!vw_run(g.img, JOB_COMMIT, NULL));
	}
	if (vhd_begin_writing(g.img, &e)) {
		fprintf(stderr, "begin_writing: %s\n", e.text);
		ENSURE(false);
	}
	g.n_rec = 0;
	audit();
}

static void found(void *ctx, const struct check_finding *f)
{
	(void)ctx;
	if (f->severity != CHECK_WARNING)
		fprintf(stderr, "check: %s at %llu: %s (%s, %s)\n", f->code, (unsigned long long)f->off_bytes,
			f->what, f->found, f->expected);
}

/* The checker, which shares no code with the write path, has nothing against the file. */
static void check_file(bool clean)
{
	struct backing *b = mem_open(g.f, 0);
	struct check_opts o = {
	    .format = "vhd", .lenient = true, .bitmaps = true, .found = clean ? found : NULL};
	struct check_result r = {0};
	struct err e = ERR_INIT;

	ENSURE(!vhd_check(b, &o, &r, &e));
	b->ops->close(b);
	ENSURE(r.errors == 0);
	ENSURE(!clean || r.unclean == 0);
}

/* Clean close; what is on the medium then is all there is. */
static void close_and_reopen(void)
{
	unsigned char front[512], back[512];
	struct vw_trace t = {.fail_at = 0};
	struct write_piece p;
	bool clean = !chance(g.fail_percent);
	int ret;

	drain();
	ENSURE(!vw_run(g.img, JOB_COMMIT, NULL));
	audit();
	if (!clean)
		t.fail_at = 1 + rnd(6);
	ret = vw_run(g.img, JOB_CLOSE, &t);
	ENSURE(clean ? ret == 0 : ret == 0 || ret == -EIO);
	ENSURE(vhd_write_begin(g.img, WRITE_DATA, 0, 0, 512, &p) == -EROFS || g.img->poisoned);
	verify_all();
	vhd_close(g.img);
	if (clean) {
		mem_peek(g.f, 0, front, 512);
		mem_peek(g.f, mem_size(g.f) - 512, back, 512);
		ENSURE(!memcmp(front, back, 512));
	}
	check_file(clean);
	g.n_closes++;
	reopen(NULL, 0);
	verify_all();
}

/* The process dies: what landed stays, what was in flight may have. */
static void kill_and_resume(void)
{
	for (unsigned k = 0; k < 2; k++)
		for (unsigned i = 0; g.job_on[k] && i < g.job[k].n; i++)
			if (!g.done[k][i] && chance(50))
				vw_act_do(g.img, &g.job[k].acts[i]);
	for (unsigned i = 0; i < MAX_OPS; i++)
		if (g.ops[i].busy) {
			if (chance(50))
				piece_act(&g.ops[i]);
			model_done(&g.ops[i], true);
			/* may read as nothing of this block was ever written */
			g.ops[i].busy = false;
		}
	g.job_on[0] = g.job_on[1] = false;
	vhd_close(g.img);
	check_file(false);
	g.n_kills++;
	reopen(g.rec, g.n_rec);
	verify_all();
}

static void step(void)
{
	uint32_t dice = rnd(1000);

	if (dice < 350) {
		piece_start();
	} else if (dice < 650) {
		piece_finish();
	} else if (dice < 820) {
		job_step(JOB_COMMIT, true);
	} else if (dice < 920) {
		job_step(JOB_GROW, true);
	} else if (dice < 930) {
		job_start(JOB_COMMIT);
	} else if (dice < 935) {
		if (g.img->wants & IMAGE_WANT_GROW)
			job_start(JOB_GROW);
		if (g.img->wants & IMAGE_WANT_COMMIT)
			job_start(JOB_COMMIT);
	} else if (dice < 994) {
		for (unsigned i = 0; i < 8; i++) {
			uint32_t s = rnd(g.n_sectors);

			if (!in_flight(s))
				verify(s);
		}
	} else if (dice < 997) {
		if (chance(30))
			close_and_reopen();
	} else {
		if (chance(30))
			kill_and_resume();
	}
	forget_records();
}

static void run_seed(uint64_t seed, unsigned steps)
{
	static const uint32_t sizes[] = {4096, 8192, 16384, 65536, 2u << 20};
	struct vw_image_opts o;

	memset(&g, 0, sizeof(g));
	g.seed = seed;
	g.rng = seed * 0x9e3779b97f4a7c15ull + 1;
	for (unsigned i = 0; i < 8; i++)
		rnd(2);
	o = (struct vw_image_opts){.block_bytes = sizes[rnd(5)], .batmap = chance(80)};
	g.n_sectors = o.block_bytes / 512 * (1 + rnd(o.block_bytes > 65536 ? 8 : 40)) +
		      (chance(60) ? rnd(o.block_bytes / 512) : 0);
	ENSURE(g.n_sectors <= MAX_SECTORS);
	o.size_bytes = disk_bytes();
	g.below = chance(50) ? 0xbb : 0;
	o.differencing = g.below != 0;
	g.flags = g.below ? 0 : WRITE_BELOW_ZERO;
	g.fail_percent = chance(30) ? 0 : 1 + rnd(15);
	for (uint32_t i = 0; i < g.n_sectors; i++)
		g.s[i].value = g.s[i].other = g.below;
	g.f = vw_create("/model.vhd", &o);
	g.f->traits.durable_at_completion = chance(30);
	g.f->traits.zeroes_on_allocate = chance(50);
	g.f->traits.can_punch = chance(80);
	if (chance(20)) {
		unsigned char footer[512];

		mem_peek(g.f, 0, footer, 512);
		g.f->traits.fixed_size = true;
		mem_resize(g.f, mem_size(g.f) + o.size_bytes * 3 + (1u << 20));
		mem_poke(g.f, mem_size(g.f) - 512, footer, 512);
	}
	reopen(NULL, 0);
	for (g.step = 0; g.step < steps; g.step++)
		step();
	g.fail_percent = 0;
	close_and_reopen();
	vhd_close(g.img);
	mem_file_put(g.f);
	printf("seed %llu: block %u, %u sectors, %u steps, pieces %llu, frees %llu, parked %llu, commits "
	       "%llu (%llu failed), grows %llu, "
	       "closes %llu, kills %llu\n",
	       (unsigned long long)seed, o.block_bytes, g.n_sectors, steps, (unsigned long long)g.n_pieces,
	       (unsigned long long)g.n_frees, (unsigned long long)g.n_parked, (unsigned long long)g.n_commits,
	       (unsigned long long)g.n_failed_commits, (unsigned long long)g.n_grows,
	       (unsigned long long)g.n_closes, (unsigned long long)g.n_kills);
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		run_seed(strtoull(argv[1], NULL, 0), argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : 20000);
		return 0;
	}
	for (uint64_t seed = 1; seed <= 60; seed++)
		run_seed(seed, 6000);
	return 0;
}
