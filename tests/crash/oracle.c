/*
 * What the guest may expect of each sector, worked out from what it asked and what it was answered; nothing
 * of blkd's is used.
 *
 * For each sector a list of candidates: words it may hold. Two views: after a kill, an answered write is
 * there, exactly; after a power cut, only what a later flush, or the mode, promised. A write adds its word
 * when it is submitted. Words that came before the newest one that is promised go. A TRIM adds zero and
 * promises nothing.
 *
 * A barrier also orders: it begins when all before it were answered and are durable, and nothing behind it
 * begins before it was answered. So words of it, or of what came behind it, tell of what else must be there.
 */
#include "tests/crash/crash.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CANDIDATES 40u

struct candidate {
	uint64_t word;
	unsigned req;
	unsigned answered; /* mark number + 1, or 0 */
	bool firm;	   /* a successful write of exactly this: can replace what came before */
};

struct view {
	unsigned n;
	struct candidate c[MAX_CANDIDATES];
};

struct oracle {
	const struct run *run;
	unsigned n_marks;
	unsigned submitted_at[MAX_REQS]; /* mark number + 1 */
	bool answered[MAX_REQS];
	struct view *view[2]; /* per enum model_kind and sector of the disk */
	uint64_t *sectors;
	size_t n_sectors;
	int *slot; /* per lba: index into view[], -1: not looked at */
	uint64_t version;
};

static bool near_a_request(const struct run *r, uint64_t lba)
{
	for (unsigned i = 0; i < r->n_req; i++)
		if (lba + 9 > r->req[i].lba && lba < r->req[i].lba + r->req[i].n + 9)
			return true;
	return false;
}

struct oracle *oracle_make(const struct run *run)
{
	struct oracle *o = crash_need(calloc(1, sizeof(*o)));
	uint64_t n = run->tree->n_sectors;

	o->run = run;
	o->slot = crash_need(malloc(n * sizeof(int)));
	o->sectors = crash_need(malloc(n * sizeof(uint64_t)));
	for (uint64_t lba = 0; lba < n; lba++) {
		bool look = n <= 4096 || lba % 256 == 77 || near_a_request(run, lba);

		o->slot[lba] = look ? (int)o->n_sectors : -1;
		if (look)
			o->sectors[o->n_sectors++] = lba;
	}
	for (unsigned k = 0; k < 2; k++) {
		o->view[k] = crash_need(calloc(o->n_sectors, sizeof(struct view)));
		for (size_t i = 0; i < o->n_sectors; i++) {
			o->view[k][i].n = 1;
			o->view[k][i].c[0] = (struct candidate){
			    .word = run->tree->initial[o->sectors[i]], .answered = 1, .firm = true};
		}
	}
	return o;
}

void oracle_free(struct oracle *o)
{
	free(o->view[0]);
	free(o->view[1]);
	free(o->sectors);
	free(o->slot);
	free(o);
}

/* Everything answered up to mark number `upto` is promised: what came before the newest of it goes. */
static void promise(struct view *v, unsigned upto)
{
	unsigned newest = 0, kept = 0;

	for (unsigned i = 0; i < v->n; i++)
		if (v->c[i].firm && v->c[i].answered && v->c[i].answered <= upto && v->c[i].answered > newest)
			newest = v->c[i].answered;
	for (unsigned i = 0; i < v->n; i++)
		if (!v->c[i].answered || v->c[i].answered >= newest)
			v->c[kept++] = v->c[i];
	v->n = kept;
}

static void add(struct view *v, uint64_t word, unsigned req)
{
	if (v->n == MAX_CANDIDATES) {
		fprintf(stderr, "crashtest: a sector with more than %u candidates\n", MAX_CANDIDATES);
		abort();
	}
	v->c[v->n++] = (struct candidate){.word = word, .req = req + 1};
}

static bool has_data(const struct request *r)
{
	return r->op == BLK_WRITE || r->op == BLK_ZERO || r->op == BLK_TRIM || (r->op == BLK_BARRIER && r->n);
}

static void submitted(struct oracle *o, const struct mark *m, unsigned at)
{
	const struct request *r = &o->run->req[m->req];

	o->submitted_at[m->req] = at;
	for (uint64_t lba = r->lba; has_data(r) && lba < r->lba + r->n; lba++) {
		bool data = r->op == BLK_WRITE || r->op == BLK_BARRIER;

		for (unsigned k = 0; k < 2; k++)
			add(&o->view[k][o->slot[lba]], data ? word_of(m->req + 1, lba) : 0, m->req);
	}
}

static void answer_sector(struct view *v, const struct request *r, const struct mark *m, unsigned at,
			  bool promised)
{
	for (unsigned i = 0; i < v->n; i++) {
		if (v->c[i].req != m->req + 1)
			continue;
		v->c[i].answered = at;
		v->c[i].firm = m->status == 0 && r->op != BLK_TRIM;
	}
	if (promised)
		promise(v, at);
}

static void promise_all(struct oracle *o, unsigned upto)
{
	for (size_t i = 0; i < o->n_sectors; i++)
		promise(&o->view[MODEL_POWER_CUT][i], upto);
}

static void answered(struct oracle *o, const struct mark *m, unsigned at)
{
	const struct request *r = &o->run->req[m->req];
	bool ok = m->status == 0;

	for (uint64_t lba = r->lba; has_data(r) && lba < r->lba + r->n; lba++) {
		answer_sector(&o->view[MODEL_KILL][o->slot[lba]], r, m, at, ok);
		answer_sector(&o->view[MODEL_POWER_CUT][o->slot[lba]], r, m, at, ok && m->durable);
	}
	o->answered[m->req] = true;
	/* A flush covers what was answered before it was consumed; a barrier all that was asked before it. */
	if (ok && (r->op == BLK_FLUSH || r->op == BLK_BARRIER))
		promise_all(o, r->op == BLK_BARRIER ? at : o->submitted_at[m->req]);
}

void oracle_advance(struct oracle *o, unsigned n_marks)
{
	while (o->n_marks < n_marks) {
		const struct mark *m = &o->run->mark[o->n_marks++];
		unsigned at = o->n_marks + 1; /* initial content was answered at 1 */

		o->version = crash_mix(o->version + at);
		if (m->kind == MARK_SUBMIT)
			submitted(o, m, at);
		else if (m->kind == MARK_ANSWER)
			answered(o, m, at);
		else if (m->status == 0)
			promise_all(o, at);
	}
}

bool oracle_allows(const struct oracle *o, enum model_kind kind, uint64_t lba, uint64_t word)
{
	const struct view *v = &o->view[kind][o->slot[lba]];

	for (unsigned i = 0; i < v->n; i++)
		if (v->c[i].word == word)
			return true;
	return false;
}

/* The barrier that is under way: asked and not answered, none before it so. -1: none. */
static int open_barrier(const struct oracle *o)
{
	for (unsigned i = 0; i < o->run->n_req; i++)
		if (o->run->req[i].op == BLK_BARRIER && o->submitted_at[i] && !o->answered[i])
			return (int)i;
	return -1;
}

/* May the word be there if all that was answered to requests before `barrier` is? */
static bool allowed_behind(const struct view *v, uint64_t word, unsigned barrier)
{
	unsigned newest = 0;

	for (unsigned i = 0; i < v->n; i++)
		if (v->c[i].firm && v->c[i].req <= barrier && v->c[i].answered > newest)
			newest = v->c[i].answered;
	for (unsigned i = 0; i < v->n; i++)
		if (v->c[i].word == word && (!v->c[i].answered || v->c[i].answered >= newest))
			return true;
	return false;
}

bool oracle_ordered(const struct oracle *o, enum model_kind kind, const uint64_t *word, char *why, size_t n)
{
	int barrier = open_barrier(o);
	unsigned latest = 0; /* request + 1 */

	if (barrier < 0)
		return true;
	for (size_t i = 0; i < o->n_sectors; i++) {
		unsigned id = (uint16_t)(word[i] >> 32);

		if (word[i] == word_of(id, o->sectors[i]) && id <= o->run->n_req && id > latest)
			latest = id;
	}
	if (latest > (unsigned)barrier + 1) {
		snprintf(why, n, "request %u is there, and barrier %d before it is not answered", latest - 1,
			 barrier);
		return false;
	}
	for (size_t i = 0; latest == (unsigned)barrier + 1 && i < o->n_sectors; i++)
		if (!allowed_behind(&o->view[kind][i], word[i], (unsigned)barrier)) {
			snprintf(
			    why, n,
			    "data of barrier %d is there, and sector %llu reads %#llx, older than what was "
			    "answered before it",
			    barrier, (unsigned long long)o->sectors[i], (unsigned long long)word[i]);
			return false;
		}
	return true;
}

void oracle_describe(const struct oracle *o, enum model_kind kind, uint64_t lba, char *text, size_t n)
{
	const struct view *v = &o->view[kind][o->slot[lba]];
	size_t at = 0;

	text[0] = 0;
	for (unsigned i = 0; i < v->n && at + 1 < n; i++)
		at += (size_t)snprintf(text + at, n - at, "%s%#llx%s", i ? " or " : "",
				       (unsigned long long)v->c[i].word,
				       v->c[i].answered ? "" : " (unanswered)");
}

uint64_t oracle_version(const struct oracle *o)
{
	return o->version;
}

const uint64_t *oracle_sectors(const struct oracle *o, size_t *n)
{
	*n = o->n_sectors;
	return o->sectors;
}
