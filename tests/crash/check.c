/*
 * The judge of one state. What a power cut left is first read by the independent reader; then it is opened
 * for writing through blkd's own door, read again by blkd, written to, flushed, closed, and read once more by
 * both. Each reading is held against what the guest may expect.
 */
#include "blkd/err.h"
#include "blkd/vhd_check.h"
#include "tests/crash/crash.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

struct look { /* one state under judgement */
	const struct check_ctx *c;
	struct replay *medium;
	uint64_t *word; /* per sector looked at: what it reads */
	const uint64_t *lba;
	size_t n;
	char *why;
	size_t why_n;
};

static bool wrong(struct look *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static bool wrong(struct look *l, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(l->why, l->why_n, fmt, ap);
	va_end(ap);
	return false;
}

/* ---- by the independent reader ---- */

static bool vref_words(struct look *l, const struct vref_bytes *leaf, enum vref_close how, const char *when,
		       uint64_t *out)
{
	const struct tree *t = l->c->run->tree;
	const struct vref *chain[MAX_DEPTH];
	struct vref v;
	char why[256];
	uint8_t sector[512];

	if (!vref_open(&v, leaf, how, why, sizeof(why)))
		return wrong(l, "%s: the image is not valid: %s", when, why);
	chain[0] = &v;
	for (unsigned i = 1; i < t->depth; i++)
		chain[i] = &t->parent[i];
	if (v.size / 512 != t->n_sectors || (v.differencing && t->depth < 2))
		return wrong(l, "%s: the image changed its size or type", when);
	for (size_t i = 0; i < l->n; i++) {
		vref_read(chain, t->depth, l->lba[i], sector);
		out[i] = sector_word(sector);
	}
	return true;
}

static struct vref_bytes leaf_now(const struct look *l)
{
	size_t n;
	const uint8_t *const *pages = replay_file_pages(l->medium, 0, &n);

	return (struct vref_bytes){replay_file_size(l->medium, 0), pages};
}

static bool allowed(struct look *l, const uint64_t *word, const char *when)
{
	char order[200];

	for (size_t i = 0; i < l->n; i++) {
		char may[300];

		if (oracle_allows(l->c->oracle, l->c->kind, l->lba[i], word[i]))
			continue;
		oracle_describe(l->c->oracle, l->c->kind, l->lba[i], may, sizeof(may));
		return wrong(l, "%s: sector %llu reads %#llx, may be %s", when, (unsigned long long)l->lba[i],
			     (unsigned long long)word[i], may);
	}
	if (!oracle_ordered(l->c->oracle, l->c->kind, word, order, sizeof(order)))
		return wrong(l, "%s: %s", when, order);
	return true;
}

static bool same(struct look *l, const uint64_t *word, const char *when)
{
	for (size_t i = 0; i < l->n; i++)
		if (word[i] != l->word[i])
			return wrong(l, "%s: sector %llu reads %#llx, was %#llx", when,
				     (unsigned long long)l->lba[i], (unsigned long long)word[i],
				     (unsigned long long)l->word[i]);
	return true;
}

/* ---- by blkd ---- */

static bool chain_words(struct look *l, const struct disk *disk, uint64_t *out)
{
	static uint8_t buf[256 * 512];
	struct err e = ERR_INIT;
	size_t i = 0;

	while (i < l->n) {
		size_t n = 1;

		while (i + n < l->n && n < 256 && l->lba[i + n] == l->lba[i] + n)
			n++;
		if (chain_read(&disk->chain, l->lba[i] * 512, buf, n * 512, &e))
			return wrong(l, "reading sector %llu: %s", (unsigned long long)l->lba[i], e.text);
		for (size_t s = 0; s < n; s++)
			out[i + s] = sector_word(buf + s * 512);
		i += n;
	}
	return true;
}

static void note_finding(void *ctx, const struct check_finding *f)
{
	struct look *l = ctx;

	if (f->severity != CHECK_WARNING && !l->why[0])
		wrong(l, "%s at %llu: %s (%s, %s)", f->code, (unsigned long long)f->off_bytes, f->what,
		      f->expected, f->found);
}

/* clean: nothing but warnings may be found; else what a crash leaves is fine. */
static bool vhd_checks(struct look *l, bool clean, const char *when)
{
	struct check_opts o = {
	    .format = "vhd", .bitmaps = true, .found = note_finding, .ctx = l, .now_s = 2000000000};
	const struct backing_opener *opener = replay_opener(l->medium);
	struct check_result r = {0};
	struct err e = ERR_INIT;
	struct backing *b;
	char what[400];
	int rc = opener->open(opener->ctx, l->c->run->tree->path[0], 0, &b, &e);

	if (rc)
		return wrong(l, "%s: %s", when, e.text);
	l->why[0] = 0;
	rc = vhd_check(b, &o, &r, &e);
	b->ops->close(b);
	if (rc)
		return wrong(l, "%s: blkimg check: %s", when, e.text);
	snprintf(what, sizeof(what), "%s", l->why);
	if (r.errors || (clean && r.unclean))
		return wrong(l, "%s: blkimg check: %s", when, what);
	l->why[0] = 0;
	return true;
}

static int64_t index_of(const struct look *l, uint64_t lba)
{
	size_t lo = 0, hi = l->n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (l->lba[mid] < lba)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < l->n && l->lba[lo] == lba ? (int64_t)lo : -1;
}

/* The recovered image must serve: writes to three places, one of them surely a new block, then a commit. */
static bool probe(struct look *l, struct disk *disk)
{
	uint64_t rng = l->c->seed, per_block = l->c->run->tree->cfg->block_bytes / 512, word;
	uint8_t buf[3 * 512];
	struct err e = ERR_INIT;

	for (unsigned i = 0; i < 3; i++) {
		uint64_t lba =
		    i < 2 ? l->lba[crash_rnd(&rng) % l->n] : 6 * per_block + crash_rnd(&rng) % per_block;
		uint64_t n = 1 + crash_rnd(&rng) % 3;

		if (lba + n > l->c->run->tree->n_sectors)
			lba = l->c->run->tree->n_sectors - n;
		for (uint64_t s = 0; s < n; s++) {
			int64_t at = index_of(l, lba + s);

			word = word_of(WORD_ID_PROBE + i, lba + s);
			sector_fill(buf + s * 512, word);
			if (at >= 0)
				l->word[at] = word;
		}
		if (chain_write(&disk->chain, WRITE_DATA, lba * 512, buf, n * 512, &e))
			return wrong(l, "writing sector %llu of the recovered image: %s",
				     (unsigned long long)lba, e.text);
	}
	if (image_run_job(disk->chain.leaf, JOB_COMMIT, &e))
		return wrong(l, "flush of the recovered image: %s", e.text);
	return true;
}

/* ---- the parts together ---- */

struct replay *state_medium(const struct check_ctx *c, struct mstate *s)
{
	const struct tree *t = c->run->tree;
	struct replay *medium = crash_need(replay_create(c->seed));

	replay_record(medium, c->record);
	for (unsigned i = 0; i < t->depth; i++) {
		struct backing_traits tr = t->cfg->traits;

		tr.fixed_size = tr.fixed_size && !i;
		replay_set_traits(medium, &tr);
		replay_file_add(medium, t->path[i], i ? t->file_size[i] : s->file[0].size,
				i ? t->pages[i] : mstate_pages(s, 0));
	}
	return medium;
}

struct recorder {
	struct recovery *rec;
	struct crash_host *host;
	struct replay *medium;
};

static void record_point(void *ctx, uint64_t event)
{
	struct recorder *k = ctx;
	struct recovery *rec = k->rec;
	struct journal_file j;
	struct point p = {.event = event, .journal = -1};

	if (run_dir_get(k->host, &j)) {
		if (!rec->n_journals || rec->journal[rec->n_journals - 1].hash != j.hash) {
			uint8_t *copy = crash_need(malloc(j.size));

			memcpy(copy, j.bytes, j.size);
			j.bytes = copy;
			rec->journal = crash_need(realloc(rec->journal, (rec->n_journals + 1) * sizeof(j)));
			rec->journal[rec->n_journals++] = j;
		}
		p.journal = (int)rec->n_journals - 1;
	}
	rec->point = crash_need(realloc(rec->point, (rec->n_points + 1) * sizeof(p)));
	rec->point[rec->n_points++] = p;
}

static bool use_and_close(struct look *l, struct disk *disk, uint64_t *now)
{
	struct err e = ERR_INIT;
	struct vref_bytes leaf = leaf_now(l);
	bool ok = chain_words(l, disk, now);

	/* A kill keeps what was answered in the journal: only now, replayed, can it be read. */
	if (ok && l->c->kind == MODEL_KILL) {
		ok = allowed(l, now, "opened by blkd");
		memcpy(l->word, now, l->n * sizeof(*now));
	} else if (ok) {
		ok = same(l, now, "opened by blkd");
	}
	ok = ok && vref_words(l, &leaf, VREF_OPEN, "opened for writing", now) &&
	     same(l, now, "opened for writing");
	ok = ok && probe(l, disk) && chain_words(l, disk, now) && same(l, now, "written to");
	if (ok && disk_finish(disk, &e))
		ok = wrong(l, "clean close of the recovered image: %s", e.text);
	disk_close(disk);
	leaf = leaf_now(l);
	return ok &&
	       vref_words(l, &leaf, l->c->run->tree->cfg->traits.fixed_size ? VREF_OPEN : VREF_CLEAN,
			  "closed again", now) &&
	       same(l, now, "closed again") && vhd_checks(l, true, "closed again");
}

static bool look_at(struct look *l, struct mstate *s, struct recovery *rec)
{
	const struct tree *t = l->c->run->tree;
	struct vref_bytes cut = {s->file[0].size, mstate_pages(s, 0)};
	struct disk_opts o = {.path = t->path[0],
			      .format = "vhd",
			      .writable = true,
			      .opener = replay_opener(l->medium),
			      .poison_clear = true};
	struct recorder recorder = {rec, l->c->host, l->medium};
	uint64_t *now = crash_need(malloc((l->n + 1) * sizeof(uint64_t)));
	struct err e = ERR_INIT;
	struct disk *disk;
	bool ok = vref_words(l, &cut, VREF_CUT, "as the crash left it", l->word);

	if (ok && l->c->kind == MODEL_POWER_CUT)
		ok = allowed(l, l->word, "as the crash left it");
	ok = ok && vhd_checks(l, false, "as the crash left it");
	if (ok && l->c->kind == MODEL_KILL) {
		o.run_dir = l->c->host->run_dir;
		run_dir_clear(l->c->host);
		if (l->c->journal)
			run_dir_put(l->c->host, l->c->journal);
		if (rec) {
			record_point(&recorder, 0);
			replay_on_event(l->medium, record_point, &recorder);
		}
	}
	if (ok && disk_open(&o, &disk, &e)) {
		ok = wrong(l, "blkd does not open it: %s", e.text);
	} else if (ok) {
		if (rec) {
			if (o.run_dir)
				record_point(&recorder, replay_events(l->medium));
			replay_on_event(l->medium, NULL, NULL);
			rec->events = replay_events(l->medium);
			replay_log(l->medium, &rec->n_log);
			replay_record(l->medium, false);
		}
		ok = use_and_close(l, disk, now);
	}
	free(now);
	return ok;
}

/* A second host opened the image without this host's journal, wrote, and closed it. Here the old journal must
 * not be replayed over that: refused, or of no effect. */
static bool stale_journal(struct look *l, struct mstate *s)
{
	struct disk_opts o = {
	    .path = l->c->run->tree->path[0], .format = "vhd", .writable = true, .poison_clear = true};
	uint64_t *now = crash_need(malloc((l->n + 1) * sizeof(uint64_t)));
	struct err e = ERR_INIT;
	struct disk *disk;
	bool ok = true;

	l->medium = state_medium(l->c, s);
	replay_record(l->medium, false);
	o.opener = replay_opener(l->medium);
	if (disk_open(&o, &disk, &e)) {
		ok = wrong(l, "a second host does not open it: %s", e.text);
	} else {
		ok = chain_words(l, disk, l->word) && probe(l, disk);
		if (ok && disk_finish(disk, &e))
			ok = wrong(l, "a second host does not close it: %s", e.text);
		disk_close(disk);
	}
	run_dir_clear(l->c->host);
	run_dir_put(l->c->host, l->c->journal);
	o.run_dir = l->c->host->run_dir;
	if (ok && !disk_open(&o, &disk, &e)) {
		ok = chain_words(l, disk, now) && same(l, now, "opened with a stale journal");
		disk_close(disk);
	}
	free(now);
	if (ok)
		replay_destroy(l->medium);
	return ok;
}

bool check_state(const struct check_ctx *c, struct mstate *s, struct recovery *rec, char *why, size_t n)
{
	struct look l = {.c = c, .why = why, .why_n = n};
	bool ok;

	why[0] = 0;
	l.lba = oracle_sectors(c->oracle, &l.n);
	l.word = crash_need(malloc((l.n + 1) * sizeof(uint64_t)));
	if (rec)
		*rec = (struct recovery){0};
	if (c->kind == MODEL_KILL && c->journal && c->seed % 8 == 0 && !stale_journal(&l, s)) {
		free(l.word);
		return false;
	}
	l.medium = state_medium(c, s);
	ok = look_at(&l, s, rec);
	free(l.word);
	if (!ok)
		return false; /* something may still be open on the medium: it stays */
	if (rec) {
		size_t all;

		rec->replay = l.medium;
		rec->log = replay_log(l.medium, &all);
	} else {
		replay_destroy(l.medium);
	}
	return true;
}

void recovery_free(struct recovery *rec)
{
	for (unsigned i = 0; i < rec->n_journals; i++)
		free(rec->journal[i].bytes);
	free(rec->journal);
	free(rec->point);
	if (rec->replay)
		replay_destroy(rec->replay);
}
