/*
 * One workload: run it, then let the world end at every moment of it, in many ways, and judge what is left.
 *
 * States are numbered in the order in which they are enumerated, checked or not, so that a number names a
 * state for ever (with seed and workload). A budget thins them out evenly; equal disks with equal
 * expectations are checked once. Of every so many states the recovery itself is recorded and cut, and of
 * those recoveries again.
 */
#include "tests/crash/crash.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEEN_SLOTS 8192u

const char *const log_mutant_name[LOG_MUTANTS] = {
    "none",
    "every flush is dropped",
    "the first of two flushes is dropped",
    "the second of two flushes is dropped",
    "answers come before the data landed",
    "the journal is not written",
};

struct explorer {
	struct crash_host *host;
	const struct explore_opts *o;
	struct explore_result *res;
	uint64_t w;
	struct run *run;
	struct replay_rec *log; /* a copy, perhaps mutated */
	struct oracle *oracle;
	const struct point *at;
	uint64_t number, total; /* of states enumerated */
	uint64_t seen[SEEN_SLOTS];
	char plan[1024];
	unsigned failures;
	unsigned marks_seen[2]; /* by enum model_kind: at its last moment */
	bool answered;		/* something was answered since */
};

static const struct model_bounds full_bounds = {
    .all_subsets_up_to = 6, .random_subsets = 24, .torn = 6, .reordered = 4};
static const struct model_bounds kill_bounds = {.all_subsets_up_to = 3, .random_subsets = 2, .torn = 2};
static const struct model_bounds nested_bounds = {
    .all_subsets_up_to = 3, .random_subsets = 4, .torn = 2, .reordered = 1};

/* Where we are, should blkd stop the process: a CHECK that fails is a finding too. */
static struct explorer *current;

static void on_abort(int sig)
{
	if (current)
		fprintf(stderr,
			"FAIL crashtest --seed %llu --workload %llu --state %llu: the process was stopped by "
			"signal %d [%s]\n",
			(unsigned long long)current->o->seed, (unsigned long long)current->w,
			(unsigned long long)current->number, sig, current->plan);
	if (current) {
		run_dir_clear(current->host);
		rmdir(current->host->run_dir);
	}
	signal(sig, SIG_DFL);
	raise(sig);
}

static void fail(struct explorer *x, const char *where, const char *why)
{
	char text[sizeof(x->res->first)];

	snprintf(text, sizeof(text), "crashtest --seed %llu --workload %llu --state %llu: %s: %s [%s]",
		 (unsigned long long)x->o->seed, (unsigned long long)x->w, (unsigned long long)x->number,
		 where, why, x->plan);
	x->failures++;
	if (!x->res->failures++)
		snprintf(x->res->first, sizeof(x->res->first), "%s", text);
	if (!x->o->mutant)
		fprintf(stderr, "FAIL %s\n", text);
}

static bool seen_before(struct explorer *x, uint64_t key)
{
	uint64_t *slot = &x->seen[key % SEEN_SLOTS];

	if (x->o->only_state >= 0)
		return false;
	if (*slot == key)
		return true;
	*slot = key;
	return false;
}

/* ---- the recovery is cut, too ---- */

static struct model *recovery_model(const struct explorer *x, struct mstate *s, const struct recovery *rec,
				    struct replay_rec **joined, uint64_t *first_event)
{
	const struct tree *t = x->run->tree;
	struct model_init init[MAX_DEPTH];
	size_t n = 0;

	for (unsigned i = 0; i < t->depth; i++)
		init[i] = (struct model_init){t->file_size[i], t->pages[i],
					      !i && t->cfg->traits.durable_at_completion};
	if (s) {
		/* What the crash left is all there is, and it stays. */
		init[0].size = s->file[0].size;
		init[0].pages = mstate_pages(s, 0);
		*joined = NULL;
		*first_event = 0;
		return model_create(rec->log, rec->n_log, init, t->depth);
	}
	/* The process died, the storage did not: what had landed and was not durable then is still open now.
	 */
	*joined = crash_need(malloc((x->run->n_log + rec->n_log + 1) * sizeof(**joined)));
	for (size_t i = 0; i < x->run->n_log; i++)
		if (x->log[i].completed_at < x->at->event)
			(*joined)[n++] = x->log[i];
	for (size_t i = 0; i < rec->n_log; i++) {
		struct replay_rec r = rec->log[i];

		r.submitted_at += x->at->event;
		r.completed_at += r.completed_at == REPLAY_PENDING ? 0 : x->at->event;
		(*joined)[n++] = r;
	}
	*first_event = x->at->event;
	return model_create(*joined, n, init, t->depth);
}

static void nested(struct explorer *x, struct mstate *s, enum model_kind kind, bool joined_log,
		   struct recovery *rec, unsigned level);

static bool judge(struct explorer *x, enum model_kind kind, const struct journal_file *j, struct mstate *s,
		  bool pristine, unsigned level)
{
	struct check_ctx c = {
	    .host = x->host, .run = x->run, .oracle = x->oracle, .kind = kind, .journal = j};
	uint64_t h = crash_mix(x->number * 31 + crash_mix(x->w + (x->o->seed << 32)));
	bool again = level ? level < 3 && h % 3 == 0
			   : x->o->only_state >= 0 || (x->o->nested_of && h % x->o->nested_of == 0);
	struct recovery rec;
	char why[600], where[64];

	c.seed = h;
	c.record = again && !x->o->exporter;
	x->res->states++;
	x->res->nested += level > 0;
	x->res->kills += kind == MODEL_KILL;
	snprintf(where, sizeof(where), "export of event %llu", (unsigned long long)x->at->event);
	if (x->o->exporter) {
		if (!export_state(x->o->exporter, &c, s, why, sizeof(why)))
			fail(x, where, why);
		return true;
	}
	if (!check_state(&c, s, again ? &rec : NULL, why, sizeof(why))) {
		snprintf(where, sizeof(where), "%s at event %llu%s%s",
			 kind == MODEL_KILL ? "kill" : "power cut", (unsigned long long)x->at->event,
			 level ? ", then again during recovery" : "", level > 1 ? ", twice" : "");
		fail(x, where, why);
		return false;
	}
	if (again) {
		nested(x, s, kind, false, &rec, level + 1);
		if (kind == MODEL_KILL && pristine && !level)
			nested(x, NULL, MODEL_POWER_CUT, true, &rec, level + 1);
		recovery_free(&rec);
	}
	return true;
}

static void nested(struct explorer *x, struct mstate *s, enum model_kind kind, bool joined_log,
		   struct recovery *rec, unsigned level)
{
	struct model_bounds b = nested_bounds;
	struct replay_rec *joined;
	uint64_t first, rng = crash_mix(x->number ^ level);
	struct model *m = recovery_model(x, joined_log ? NULL : s, rec, &joined, &first);
	unsigned left = level == 1 ? 10 : 4, failed = x->failures;

	b.seed = rng;
	for (uint64_t e = 0; e <= rec->events && left && x->failures == failed; e++) {
		const struct journal_file *j = NULL;
		uint64_t n;

		model_cut(m, first + e);
		for (unsigned i = 0; i < rec->n_points; i++)
			if (rec->point[i].event <= e)
				j = rec->point[i].journal < 0 ? NULL : &rec->journal[rec->point[i].journal];
		n = model_states(m, kind, &b);
		/* Cuts where nothing is open add little to the one before. */
		if (n == 1 && crash_rnd(&rng) % 16)
			continue;
		for (unsigned tries = n == 1 ? 1 : 2; tries && left; tries--, left--) {
			struct mstate next;

			model_state(m, kind, &b, crash_rnd(&rng) % n, &next);
			judge(x, kind, kind == MODEL_KILL ? j : NULL, &next, false, level);
			mstate_free(&next);
		}
	}
	model_free(m);
	free(joined);
}

/* ---- all moments of a run ---- */

static bool wanted(const struct explorer *x, uint64_t k)
{
	uint64_t h = crash_mix(x->number * 0x9e3779b97f4a7c15u ^ x->o->seed ^ x->w << 20) % 1000000;
	uint64_t budget = x->o->budget;

	if (x->o->only_state >= 0)
		return x->number == (uint64_t)x->o->only_state;
	if (x->o->exporter)
		return h * x->total / 1000000 < budget;
	/* Right after an answer is when a promise counts most; nothing and all are the plainest states. */
	if (k < 2 && x->answered)
		return true;
	if (k < 2)
		budget *= 3;
	return !x->total || h * x->total / 1000000 < budget;
}

static void moment(struct explorer *x, const struct model *m, enum model_kind kind)
{
	const struct journal_file *j = NULL;
	struct model_bounds b = kind == MODEL_KILL ? kill_bounds : full_bounds;
	uint64_t n;

	b.seed = x->o->seed;
	n = model_states(m, kind, &b);
	x->answered = x->at->n_marks > x->marks_seen[kind];
	x->marks_seen[kind] = x->at->n_marks;
	if (kind == MODEL_KILL && x->at->journal >= 0)
		j = &x->run->journal[x->at->journal];
	for (uint64_t k = 0; k < n; k++, x->number++) {
		struct mstate s;

		if (x->failures > 3 || !wanted(x, k))
			continue;
		model_state(m, kind, &b, k, &s);
		if (!seen_before(x, mstate_hash(&s) ^ crash_mix(oracle_version(x->oracle) + kind * 7 +
								(j ? j->hash : 0)))) {
			if (x->o->only_state >= 0 && x->o->verbose) {
				char text[2048];

				model_describe(m, kind, &b, k, text, sizeof(text));
				printf("%s at event %llu, mark %u: %s\n",
				       kind == MODEL_KILL ? "kill" : "power cut",
				       (unsigned long long)x->at->event, x->at->n_marks, text);
			}
			judge(x, kind, j, &s, k == 0, 0);
		}
		mstate_free(&s);
	}
}

static struct model *run_model(const struct explorer *x)
{
	const struct tree *t = x->run->tree;
	struct model_init init[MAX_DEPTH];

	for (unsigned i = 0; i < t->depth; i++)
		init[i] = (struct model_init){t->file_size[i], t->pages[i],
					      !i && t->cfg->traits.durable_at_completion};
	return model_create(x->log, x->run->n_log, init, t->depth);
}

static uint64_t count(const struct explorer *x)
{
	struct model *m = run_model(x);
	uint64_t total = 0;

	for (unsigned i = 0; i < x->run->n_points; i++) {
		const struct point *p = &x->run->point[i];

		model_cut(m, p->event);
		if (p->last_of_event)
			total += model_states(m, MODEL_POWER_CUT, &full_bounds);
		total += model_states(m, MODEL_KILL, &kill_bounds);
	}
	model_free(m);
	return total;
}

static void walk(struct explorer *x)
{
	struct model *m = run_model(x);

	x->total = count(x);
	for (unsigned i = 0; i < x->run->n_points; i++) {
		x->at = &x->run->point[i];
		oracle_advance(x->oracle, x->at->n_marks);
		model_cut(m, x->at->event);
		if (x->at->last_of_event)
			moment(x, m, MODEL_POWER_CUT);
		moment(x, m, MODEL_KILL);
	}
	model_free(m);
}

static void mutate(struct explorer *x)
{
	unsigned flushes = 0;
	struct run *r = x->run;

	for (size_t i = 0; i < r->n_log; i++) {
		struct replay_rec *rec = &x->log[i];

		if (rec->op != IO_FLUSH || rec->sync)
			continue;
		flushes++;
		if (x->o->mutant == LOG_NO_FLUSH || (x->o->mutant == LOG_NO_FIRST_FLUSH && flushes % 2) ||
		    (x->o->mutant == LOG_NO_SECOND_FLUSH && !(flushes % 2)))
			rec->op = IO_READ;
	}
	for (unsigned i = 0; i < r->n_points; i++) {
		struct point *p = &r->point[i];

		if (x->o->mutant == LOG_NO_JOURNAL)
			p->journal = -1;
		for (unsigned k = i;
		     x->o->mutant == LOG_EARLY_ANSWER && k < r->n_points && r->point[k].event < p->event + 4;
		     k++)
			p->n_marks = r->point[k].n_marks;
	}
}

static bool parents_untouched(struct explorer *x)
{
	for (size_t i = 0; i < x->run->n_log; i++)
		if (x->log[i].file && x->log[i].op != IO_READ && x->log[i].op != IO_FLUSH) {
			fail(x, "run", "a parent was written to");
			return false;
		}
	return true;
}

void explore(struct crash_host *host, uint64_t w, const struct explore_opts *o, struct explore_result *res)
{
	struct explorer *x = crash_need(calloc(1, sizeof(*x)));
	const struct tree_cfg *cfg;

	x->host = host;
	x->o = o;
	x->res = res;
	x->w = w;
	current = x;
	signal(SIGABRT, on_abort);
	signal(SIGSEGV, on_abort);
	x->run = crash_need(calloc(1, sizeof(*x->run)));
	workload_plan(o->seed, w, x->run, &cfg, x->plan, sizeof(x->plan));
	if (o->exporter && !export_wants(cfg)) {
		current = NULL;
		free(x->run);
		free(x);
		return;
	}
	if (o->verbose)
		printf("workload %llu: %s\n", (unsigned long long)w, x->plan);
	workload_run(host, x->run, cfg, crash_mix(o->seed + w));
	res->workloads++;
	if (x->run->failure[0])
		fail(x, "run", x->run->failure);
	x->log = crash_need(malloc((x->run->n_log + 1) * sizeof(*x->log)));
	memcpy(x->log, x->run->log, x->run->n_log * sizeof(*x->log));
	mutate(x);
	if (!x->failures && parents_untouched(x)) {
		x->oracle = oracle_make(x->run);
		walk(x);
		oracle_free(x->oracle);
	}
	current = NULL;
	run_free(x->run);
	free(x->run);
	free(x->log);
	free(x);
}
