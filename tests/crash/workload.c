/*
 * Workloads: what a guest does, and the run of it on the real device thread over the replay engine, recorded.
 *
 * Eleven operations make all sequences of length one to three; where they touch the disk (first sector of a
 * block, its end, across two blocks, below 4 KiB, the same place again or another) and on which tree follows
 * from the workload's number. Long random ones follow. A run keeps the log, a mark for each request and
 * answer, and the journal's file as it was at each of these moments.
 */
#include "blkd/err.h"
#include "tests/crash/crash.h"

#include "blkd/bufpool.h"
#include "blkd/cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum verb {
	V_NEW,
	V_OVER,
	V_SPAN,
	V_UNALIGNED,
	V_FLUSH,
	V_FUA,
	V_TRIM_PART,
	V_TRIM_BLOCK,
	V_ZERO,
	V_REOPEN,
	V_BARRIER,
	VERBS
};
static const char *const verb_name[VERBS] = {
    "new",	 "overwrite",  "span", "unaligned", "flush",   "fua",
    "trim-part", "trim-block", "zero", "reopen",    "barrier",
};

/* ---- host ---- */

void host_make(struct crash_host *h)
{
	struct err e = ERR_INIT;

	memset(h, 0, sizeof(*h));
	snprintf(h->run_dir, sizeof(h->run_dir), "%s/crashtest-XXXXXX",
		 access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	if (!mkdtemp(h->run_dir) || bufpool_create(16u << 20, &h->pool, &e) ||
	    cache_create(1u << 20, &h->cache, &e)) {
		fprintf(stderr, "crashtest: cannot start: %s\n", e.text);
		exit(2);
	}
}

void host_free(struct crash_host *h)
{
	run_dir_clear(h);
	rmdir(h->run_dir);
	cache_destroy(h->cache);
	bufpool_destroy(h->pool);
}

static int next_file(DIR *d, char *name, size_t n)
{
	struct dirent *e;

	while ((e = readdir(d)))
		if (e->d_name[0] != '.') {
			snprintf(name, n, "%s", e->d_name);
			return 1;
		}
	return 0;
}

void run_dir_clear(const struct crash_host *h)
{
	DIR *d = opendir(h->run_dir);
	char name[256];

	while (d && next_file(d, name, sizeof(name)))
		unlinkat(dirfd(d), name, 0);
	if (d)
		closedir(d);
}

void run_dir_put(const struct crash_host *h, const struct journal_file *j)
{
	char path[384];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", h->run_dir, j->name);
	fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, j->bytes, j->size) != (ssize_t)j->size) {
		fprintf(stderr, "crashtest: cannot write %s\n", path);
		abort();
	}
	close(fd);
}

bool run_dir_get(const struct crash_host *h, struct journal_file *j)
{
	static uint8_t bytes[1 << 20];
	DIR *d = opendir(h->run_dir);
	bool found = d && next_file(d, j->name, sizeof(j->name));
	int fd = found ? openat(dirfd(d), j->name, O_RDONLY | O_CLOEXEC) : -1;
	ssize_t n = fd < 0 ? -1 : read(fd, bytes, sizeof(bytes));

	j->bytes = bytes;
	j->size = n < 0 ? 0 : (size_t)n;
	j->hash = j->size;
	for (size_t i = 0; i + 8 <= j->size; i += 8) {
		uint64_t w;

		memcpy(&w, bytes + i, 8);
		j->hash = (j->hash ^ w) * 0x9fb21c651e98df25u;
		j->hash ^= j->hash >> 31;
	}
	if (fd >= 0)
		close(fd);
	if (d)
		closedir(d);
	return n > 0;
}

/* ---- plans ---- */

static struct request *push(struct run *r, enum blk_op op, uint64_t lba, uint64_t n)
{
	struct request *q = &r->req[r->n_req++];

	*q = (struct request){.op = op, .lba = lba, .n = n};
	return q;
}

/* Sectors [s, s + n) counted from the start of a block; cut at the end of the disk. */
static void place(const struct tree_cfg *c, unsigned block, uint64_t s, uint64_t n, uint64_t *lba,
		  uint64_t *len)
{
	uint64_t per_block = c->block_bytes / 512, end = per_block * c->n_blocks - c->cut_bytes / 512;

	*lba = block * per_block + s;
	if (*lba >= end)
		*lba = end - 1;
	*len = *lba + n > end ? end - *lba : n;
}

static unsigned a_block(const struct tree_cfg *c, bool allocated, uint64_t *rng, bool same)
{
	static const unsigned fresh[] = {0, 3, 4, 5, 7, 8};
	uint64_t pick = same ? 2 : crash_rnd(rng);

	if (allocated)
		return 1 + (unsigned)(pick % 2);
	return pick % 11 == 10 ? c->n_blocks - 1 : fresh[pick % (sizeof(fresh) / sizeof(fresh[0]))];
}

static void plan_verb(struct run *r, const struct tree_cfg *c, enum verb v, uint64_t *rng, bool same)
{
	uint64_t per_block = c->block_bytes / 512, lba, n, s = crash_rnd(rng);
	/* start of the block, a page inside, its end, half of it */
	static const struct {
		unsigned at, n;
	} shape[] = {{0, 8}, {8, 8}, {24, 8}, {0, 16}};
	unsigned sh = same ? 0 : (unsigned)(s % 4); /* the same place again */
	unsigned block = a_block(c, v == V_OVER || (v != V_NEW && s >> 8 & 1), rng, same);

	switch (v) {
	case V_NEW:
	case V_OVER:
		place(c, block, shape[sh].at, shape[sh].n, &lba, &n);
		push(r, BLK_WRITE, lba, n);
		break;
	case V_SPAN:
		place(c, block % (c->n_blocks - 1), per_block - (s & 16 ? 8 : 3), s & 32 ? 16 : 7, &lba, &n);
		push(r, BLK_WRITE, lba, n);
		break;
	case V_UNALIGNED:
		place(c, block, 1 + s % 15, 1 + (s >> 4) % 5, &lba, &n);
		push(r, BLK_WRITE, lba, n);
		break;
	case V_FLUSH:
		push(r, BLK_FLUSH, 0, 0);
		break;
	case V_FUA:
		place(c, block, shape[sh].at, shape[sh].n, &lba, &n);
		push(r, BLK_WRITE, lba, n)->fua = true;
		break;
	case V_TRIM_PART:
		place(c, block, 3 + s % 9, 5 + (s >> 4) % 20, &lba, &n);
		push(r, BLK_TRIM, lba, n);
		break;
	case V_TRIM_BLOCK:
		place(c, block, 0, per_block, &lba, &n);
		push(r, BLK_TRIM, lba, n);
		break;
	case V_ZERO:
		place(c, block, s % 3 ? 4 + s % 8 : 0, s % 3 ? 12 : per_block, &lba, &n);
		push(r, BLK_ZERO, lba, n);
		break;
	case V_REOPEN:
		push(r, BLK_FLUSH, 0, 0)->reopen = true;
		break;
	case V_BARRIER: /* one in four has no data: a flush that nothing overtakes */
		place(c, block, shape[sh].at, s & 0x300 ? shape[sh].n : 0, &lba, &n);
		push(r, BLK_BARRIER, lba, n);
		break;
	case VERBS:
		break;
	}
}

static bool fault_hits(void *ctx, const struct replay_rec *rec)
{
	struct run *r = ctx;
	static const uint8_t zeros[512];
	uint64_t word = 0;

	if (r->fault_what == FAULT_ZEROING)
		return !rec->sync && !rec->file && rec->op == IO_WRITE && rec->len_bytes == 512 &&
		       rec->data && !memcmp(rec->data, zeros, 512);
	if (rec->op == IO_WRITE && rec->data && rec->len_bytes >= 8)
		memcpy(&word, rec->data, 8);
	if (word >> 48 == 0xb10c)
		r->data_seen = true;
	if (r->fault_what == FAULT_METADATA &&
	    (!r->data_seen || word >> 48 == 0xb10c || rec->len_bytes > 512))
		return false;
	if (r->fault_what == FAULT_DATA && word >> 48 != 0xb10c)
		return false;
	return !rec->sync && !rec->file && rec->op == r->fault_op;
}

/* One run in four meets one fault of the storage. */
static void plan_fault(struct run *r, uint64_t *rng)
{
	uint64_t f = crash_rnd(rng);

	r->fault = (struct replay_fault){.match = fault_hits, .ctx = r, .error = EIO};
	if (f % 4)
		return;
	switch (f / 8 % 4) {
	case 0:
	case 1:
		r->fault_op = IO_WRITE;
		r->fault.kind = f & 1u << 20 ? REPLAY_FAIL : REPLAY_FAIL_TORN;
		r->fault_what = f / 32 % 3;
		/* growing alone writes a dozen */
		r->fault.nth = 1 + (unsigned)(f >> 8) % (r->fault_what == FAULT_ANY	   ? 24
							 : r->fault_what == FAULT_METADATA ? 4
											   : 2);
		break;
	case 2:
		r->fault_op = IO_FLUSH;
		r->fault.kind = REPLAY_FAIL;
		r->fault.nth = 1 + (unsigned)(f >> 8) % 4;
		break;
	default:
		r->fault_op = IO_EXTEND;
		r->fault.kind = REPLAY_FAIL;
		r->fault.error = ENOSPC;
		r->fault.nth = 1;
		break;
	}
}

/* A barrier in the middle of writes that all are on offer at once: what came before it may still be in flight
 * when it is fetched, what comes after it must not be begun. */
static const unsigned barrier_verbs[N_BARRIERS / 9][5] = {
    {V_NEW, V_NEW, V_BARRIER, V_NEW, V_OVER},
    {V_OVER, V_SPAN, V_BARRIER, V_UNALIGNED, V_FLUSH},
    {V_NEW, V_BARRIER, V_OVER, V_BARRIER, V_ZERO},
};

/* All slots but one are taken, two blocks go, and their slots are wanted at once for others, while their
 * zeroing takes long: of the old owner nothing may shine through. */
static void plan_reuse(struct run *r, const struct tree_cfg *c)
{
	static const unsigned last = 5, gone[2] = {4, 7};
	uint64_t per_block = c->block_bytes / 512;

	for (unsigned i = 0; i < c->n_blocks; i++)
		if (!tree_block_allocated(i) && i != last)
			push(r, BLK_WRITE, i * per_block, 8);
	for (unsigned i = 0; i < 2; i++)
		push(r, BLK_TRIM, gone[i] * per_block, per_block);
	push(r, BLK_FLUSH, 0, 0);
	push(r, BLK_WRITE, last * per_block, 8);
	push(r, BLK_WRITE, gone[0] * per_block + 16, 8);
	push(r, BLK_WRITE, gone[1] * per_block + 16, 8);
	push(r, BLK_FLUSH, 0, 0);
}

/* The operations of number k of a round. Returns how many. */
static unsigned pick_verbs(uint64_t k, uint64_t *rng, unsigned verbs[MAX_REQS])
{
	unsigned n = 0, i = (unsigned)k, len;

	if (i < N_REWRITES) {
		verbs[0] = verbs[1] = i / 27 ? V_OVER : V_NEW;
		return 2;
	}
	i -= N_REWRITES;
	if (i < N_BARRIERS) {
		memcpy(verbs, barrier_verbs[i / 9], sizeof(barrier_verbs[0]));
		return sizeof(barrier_verbs[0]) / sizeof(barrier_verbs[0][0]);
	}
	i -= N_BARRIERS;
	if (i < N_REUSES)
		return 0; /* plan_reuse() */
	i -= N_REUSES;
	if (i < VERBS) {
		verbs[0] = i;
		return 1;
	}
	i -= VERBS;
	if (i < VERBS * VERBS) {
		verbs[0] = i / VERBS;
		verbs[1] = i % VERBS;
		return 2;
	}
	i -= VERBS * VERBS;
	if (i < VERBS * VERBS * VERBS) {
		verbs[0] = i / (VERBS * VERBS);
		verbs[1] = i / VERBS % VERBS;
		verbs[2] = i % VERBS;
		return 3;
	}
	for (len = 5 + (unsigned)(crash_rnd(rng) % 20); n < len; n++)
		verbs[n] = (unsigned)(crash_rnd(rng) % VERBS);
	return n;
}

/* Each round moves every sequence to another tree; the large one is slow and comes seldom. */
static unsigned pick_tree(uint64_t k, uint64_t round, uint64_t *rng)
{
	unsigned c = (unsigned)((k + round + (k / 7)) % n_tree_cfgs);

	if (k < N_DIRECTED)
		return (unsigned)(k % (n_tree_cfgs - 1));
	return c == n_tree_cfgs - 1 && crash_rnd(rng) % 4 ? (unsigned)(crash_rnd(rng) % (n_tree_cfgs - 1))
							  : c;
}

void workload_plan(uint64_t seed, uint64_t w, struct run *r, const struct tree_cfg **cfg, char *text,
		   size_t n)
{
	uint64_t rng = crash_mix(seed * 77 + 5) ^ crash_mix(w + 1), k = w % ROUND_WORKLOADS,
		 round = w / ROUND_WORKLOADS;
	unsigned verbs[MAX_REQS], n_verbs;
	size_t at;
	bool same;

	*cfg = &tree_cfgs[pick_tree(k, round, &rng)];
	n_verbs = pick_verbs(k, &rng, verbs);
	plan_fault(r, &rng);
	r->n_req = 0;
	r->together = crash_rnd(&rng) & 1;
	same = k < N_DIRECTED + N_SEQUENCES && crash_rnd(&rng) & 1;
	if (k < N_REWRITES) {
		r->fault_op = IO_WRITE;
		r->fault_what = FAULT_METADATA;
		r->fault.kind = REPLAY_FAIL;
		r->fault.error = EIO;
		r->fault.nth = 1 + (unsigned)(k / 9 % 3);
		r->together = false;
		same = true;
	} else if (k < N_REWRITES + N_BARRIERS) {
		r->fault.nth = 0;
		r->together = true;
		same = false;
	} else if (k < N_DIRECTED) {
		r->fault_op = IO_WRITE;
		r->fault_what = FAULT_ZEROING;
		r->fault.kind = REPLAY_STUCK;
		r->fault.delay_ns = 5000000;
		r->fault.nth = 0; /* every one of them */
		r->together = same = false;
		plan_reuse(r, *cfg);
	}
	at = (size_t)snprintf(text, n, "%s%s%s", (*cfg)->name, r->together ? " at-once" : "",
			      same ? " same-block" : "");
	if (r->fault.nth)
		at += (size_t)snprintf(text + at, n - at, " fault(op %d, number %u, kind %d)",
				       (int)r->fault_op, r->fault.nth, (int)r->fault.kind);
	else if (r->fault_what == FAULT_ZEROING)
		at += (size_t)snprintf(text + at, n - at, " slots used again, slow zeroing");
	at += (size_t)snprintf(text + at, n - at, ":");
	for (unsigned i = 0; i < n_verbs; i++) {
		plan_verb(r, *cfg, (enum verb)verbs[i], &rng, same);
		if (at < n)
			at += (size_t)snprintf(text + at, n - at, " %s@%llu+%llu", verb_name[verbs[i]],
					       (unsigned long long)r->req[r->n_req - 1].lba,
					       (unsigned long long)r->req[r->n_req - 1].n);
	}
}

/* ---- the guest: an in-process transport ---- */

struct guest {
	struct transport t; /* first */
	struct run *run;
	struct crash_host *host;
	struct dev *dev;
	unsigned next, upto, open; /* requests [next, upto) are offered; open: not answered */
	struct blkreq req[MAX_REQS];
	bool flushed, through;
};

static void add_point(struct guest *g)
{
	struct run *r = g->run;
	uint64_t event = replay_events(r->replay);
	struct journal_file j;
	struct point p = {.event = event, .n_marks = r->n_marks, .journal = -1};

	if (run_dir_get(g->host, &j)) {
		if (!r->n_journals || r->journal[r->n_journals - 1].hash != j.hash) {
			uint8_t *copy = crash_need(malloc(j.size));

			if (r->n_journals == r->cap_journals) {
				r->cap_journals = r->cap_journals * 2 + 16;
				r->journal = crash_need(realloc(r->journal, r->cap_journals * sizeof(j)));
			}
			memcpy(copy, j.bytes, j.size);
			j.bytes = copy;
			r->journal[r->n_journals++] = j;
		}
		p.journal = (int)r->n_journals - 1;
	}
	if (r->n_points && !memcmp(&r->point[r->n_points - 1], &p, sizeof(p)))
		return;
	if (r->n_points == r->cap_points) {
		r->cap_points = r->cap_points * 2 + 64;
		r->point = crash_need(realloc(r->point, r->cap_points * sizeof(p)));
	}
	r->point[r->n_points++] = p;
}

static void on_event(void *ctx, uint64_t event)
{
	(void)event;
	add_point(ctx);
}

static void add_mark(struct guest *g, enum mark_kind kind, unsigned req, int status, bool durable)
{
	struct run *r = g->run;

	if (r->n_marks == r->cap_marks) {
		r->cap_marks = r->cap_marks * 2 + 64;
		r->mark = crash_need(realloc(r->mark, r->cap_marks * sizeof(struct mark)));
	}
	r->mark[r->n_marks++] = (struct mark){kind, req, status, durable};
	add_point(g);
}

static unsigned guest_fetch(struct transport *t, struct blkreq **reqs, unsigned max)
{
	struct guest *g = (struct guest *)t;
	unsigned n = 0;

	while (n < max && g->next < g->upto) {
		const struct request *q = &g->run->req[g->next];
		struct blkreq *b = &g->req[g->next];

		*b = (struct blkreq){.transport = t,
				     .op = q->op,
				     .fua = q->fua,
				     .off_bytes = q->lba * 512,
				     .len_bytes = q->n * 512};
		if (q->op == BLK_WRITE || (q->op == BLK_BARRIER && q->n)) {
			if (!dev_buf_get(g->dev, t, b->len_bytes, &b->buf))
				break;
			for (uint64_t i = 0; i < q->n; i++)
				sector_fill((uint8_t *)b->buf.mem + i * 512,
					    word_of(g->next + 1, q->lba + i));
		}
		add_mark(g, MARK_SUBMIT, g->next, 0, false);
		g->next++;
		reqs[n++] = b;
	}
	return n;
}

static void guest_copy_out(struct transport *t, struct blkreq *const *reqs, unsigned n)
{
	(void)t;
	(void)reqs;
	(void)n;
}

static void guest_respond(struct transport *t, struct blkreq *b)
{
	struct guest *g = (struct guest *)t;
	unsigned i = (unsigned)(b - g->req);
	enum write_mode mode = g->run->tree->cfg->mode;
	bool durable = b->fua || b->op == BLK_BARRIER || mode == WRITE_THROUGH ||
		       (mode == WRITE_AUTO && !g->flushed) || g->run->tree->cfg->traits.durable_at_completion;

	add_mark(g, MARK_ANSWER, i, b->status, durable);
	if (b->status == 0 && (b->op == BLK_FLUSH || b->op == BLK_BARRIER))
		g->flushed = true;
	if (b->status && !g->run->failure[0] && !replay_fault_hits(g->run->replay))
		snprintf(g->run->failure, sizeof(g->run->failure),
			 "request %u was answered %d without a fault", i, b->status);
	g->open--;
	dev_buf_put(g->dev, &b->buf);
}

static void guest_nothing(struct transport *t)
{
	(void)t;
}

static void guest_event(struct transport *t, struct io_poll *p)
{
	(void)t;
	(void)p;
}

static const struct transport_ops guest_ops = {
    .name = "crashtest",
    .fetch = guest_fetch,
    .copy_out = guest_copy_out,
    .respond = guest_respond,
    .kick = guest_nothing,
    .event = guest_event,
    .detached = guest_nothing,
};

/* ---- the run ---- */

static bool guest_open(struct guest *g)
{
	struct run *r = g->run;
	struct disk_opts o = {.path = r->tree->path[0],
			      .format = "vhd",
			      .writable = true,
			      .run_dir = g->host->run_dir,
			      .opener = replay_opener(r->replay),
			      .poison_clear = true,
			      .cache = g->host->cache};
	struct dev_opts dopts = {.name = "crash",
				 .engine = &io_replay_engine,
				 .write_mode = r->tree->cfg->mode,
				 .pool = g->host->pool,
				 .cache = g->host->cache};
	struct err e = ERR_INIT;
	struct disk *disk;

	if (disk_open(&o, &disk, &e)) {
		snprintf(r->failure, sizeof(r->failure), "open: %.480s", e.text);
		return false;
	}
	if (dev_create(disk, &dopts, false, &g->dev, &e)) {
		snprintf(r->failure, sizeof(r->failure), "device: %.480s", e.text);
		disk_close(disk);
		return false;
	}
	g->t = (struct transport){.ops = &guest_ops};
	g->flushed = false;
	dev_attach(g->dev, &g->t);
	return true;
}

static bool guest_close(struct guest *g)
{
	struct err e = ERR_INIT;
	int rc = dev_destroy(g->dev, &e);

	if (rc && !replay_fault_hits(g->run->replay))
		snprintf(g->run->failure, sizeof(g->run->failure), "close: %.480s", e.text);
	else
		add_mark(g, MARK_CLOSED, 0, rc, true);
	/* After a failed close there is nobody to promise anything: the run ends. */
	return !rc;
}

static bool guest_do(struct guest *g, unsigned upto)
{
	unsigned turns = 0;

	g->open += upto - g->upto;
	g->upto = upto;
	dev_transport_ready(&g->t);
	while (g->open) {
		if (turns++ > 20000) {
			snprintf(g->run->failure, sizeof(g->run->failure),
				 "stuck: request %u is not answered", g->next);
			return false;
		}
		dev_turn(g->dev, replay_now(g->run->replay) + 1000000);
	}
	return !g->run->failure[0];
}

static bool guest_play(struct guest *g, uint64_t *rng)
{
	struct run *r = g->run;
	unsigned i = 0;

	while (i < r->n_req) {
		unsigned to = i + 1;

		if (r->req[i].reopen) {
			if (!guest_close(g) || !guest_open(g))
				return false;
			g->next = g->upto = i = to;
			continue;
		}
		while (r->together && to < r->n_req && !r->req[to].reopen && to - i < 6)
			to++;
		if (!guest_do(g, to))
			return false;
		i = to;
		/* Now and then the guest rests long enough for the idle commit. */
		if (crash_rnd(rng) % 4 == 0)
			for (unsigned turn = 0; turn < 12; turn++)
				dev_turn(g->dev, replay_now(r->replay) + 150000000);
	}
	return guest_close(g);
}

void workload_run(struct crash_host *h, struct run *r, const struct tree_cfg *cfg, uint64_t seed)
{
	struct guest *g = crash_need(calloc(1, sizeof(*g)));
	uint64_t rng = seed;
	struct replay_shape shape = {
	    .delay_min_ns = 20000, .delay_max_ns = 200000, .short_permille = crash_rnd(&rng) % 4 ? 0 : 200};

	r->tree = tree_make(cfg);
	r->replay = crash_need(replay_create(seed));
	replay_set_shape(r->replay, &shape);
	for (unsigned i = 0; i < r->tree->depth; i++) {
		struct backing_traits t = cfg->traits;

		t.fixed_size = t.fixed_size && !i;
		replay_set_traits(r->replay, &t);
		replay_file_add(r->replay, r->tree->path[i], r->tree->file_size[i], r->tree->pages[i]);
	}
	run_dir_clear(h);
	g->run = r;
	g->host = h;
	replay_bind(r->replay);
	replay_on_event(r->replay, on_event, g);
	if (r->fault.nth || r->fault_what == FAULT_ZEROING)
		replay_fault_add(r->replay, &r->fault);
	if (guest_open(g) && guest_play(g, &rng))
		add_point(g);
	replay_on_event(r->replay, NULL, NULL);
	replay_bind(NULL);
	r->log = replay_log(r->replay, &r->n_log);
	for (unsigned i = 0; i < r->n_points; i++)
		r->point[i].last_of_event =
		    i + 1 == r->n_points || r->point[i + 1].event != r->point[i].event;
	free(g);
}

void run_free(struct run *r)
{
	for (unsigned i = 0; i < r->n_journals; i++)
		free(r->journal[i].bytes);
	free(r->journal);
	free(r->point);
	free(r->mark);
	if (!r->failure[0])
		replay_destroy(r->replay);
	tree_free(r->tree);
}
