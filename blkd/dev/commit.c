/*
 * Jobs of the leaf: commits, growth, the clean close. The format says which acts, in which order (job_next);
 * here they are run.
 *
 * One commit at a time. It covers every request that had landed when it began (and every one that is answered
 * before its metadata is durable): they move from `landed` to `covered` and are answered with its result.
 * What lands later waits for the next, which begins as soon as this one ends: a flush is shared by all that
 * wait for one.
 *
 * A commit begins when a request waits for one, when the image or the journal has no room for more changes,
 * or when the image was dirty and nothing changed for idle_commit_ms. Growth begins when the image asks for
 * it, ahead of need, or a request waits for a slot; a failed growth fails the requests that wait for it and
 * is not tried again within a second unless somebody needs it.
 */
#include "blkd/dev/dev_priv.h"

enum { GROW_RETRY_NS = 1000000000 };

void jobs_want_commit(struct dev *d)
{
	d->commit_wanted = true;
}

static void act_done(struct dev *d, struct op *op, int res)
{
	struct act_slot *slot = container_of(op, struct act_slot, op);
	struct job_run *run = slot->run;

	slot->busy = false;
	d->leaf->ops->job_done(d->leaf, &run->job, &slot->act, res);
}

static void act_start(struct dev *d, struct act_slot *slot)
{
	static const enum io_op verbs[] = {
	    [ACT_FLUSH] = IO_FLUSH,	  [ACT_WRITE] = IO_WRITE, [ACT_EXTEND] = IO_EXTEND,
	    [ACT_TRUNCATE] = IO_TRUNCATE, [ACT_ZERO] = IO_ZERO,	  [ACT_PUNCH] = IO_PUNCH};
	struct op *op = &slot->op;

	slot->busy = true;
	op->done = act_done;
	op->file = &d->files[0];
	op->verb = verbs[slot->act.kind];
	op->file_off = slot->act.off_bytes;
	op->len_bytes = slot->act.len_bytes;
	op->buf = slot->act.buf;
	op_begin(d, op);
}

/* Hands the format the free slots' buffers, starts what it answers. False: the job is over. */
static bool job_pump(struct dev *d, struct job_run *run)
{
	for (;;) {
		struct meta_act acts[DEV_ACTS];
		unsigned index[DEV_ACTS], n_free = 0;
		int n;

		for (unsigned i = 0; i < DEV_ACTS; i++) {
			if (run->slot[i].busy)
				continue;
			index[n_free] = i;
			acts[n_free++] = (struct meta_act){.buf = run->slot[i].buf};
		}
		if (!n_free)
			return true;
		n = d->leaf->ops->job_next(d->leaf, &run->job, acts, n_free);
		if (n <= 0)
			return n != 0;
		for (int i = 0; i < n; i++) {
			struct act_slot *slot = &run->slot[index[i]];

			slot->act = acts[i];
			slot->act.buf = slot->buf;
			act_start(d, slot);
		}
	}
}

static int job_start(struct dev *d, struct job_run *run, enum job_kind kind)
{
	int res = d->leaf->ops->job_begin(d->leaf, kind, &run->job);

	if (res == 0) {
		run->active = true;
		run->started_ns = d->now_ns;
	}
	return res;
}

/* ---- commits ---- */

static void wake_parked(struct dev *d, struct list *parked, int res)
{
	struct list list, *n;

	list_init(&list);
	list_splice_tail(&list, parked);
	while ((n = list_pop(&list))) {
		struct blkreq *r = container_of(n, struct blkreq, link);

		if (res < 0)
			req_fail(r, res);
		req_run(d, r);
	}
}

/* A flush of any job may have failed: a successor must know, too. */
static void note_poison(struct dev *d)
{
	if (!d->disk->journal || !d->leaf->poisoned || journal_poisoned(d->disk->journal))
		return;
	journal_poison(d->disk->journal);
	log_error("%s: a flush of %s failed: what the storage lost cannot be known, so no later flush will "
		  "succeed until the disk is checked and plugged anew",
		  d->name, d->disk->path);
}

/* What is durable now needs no record any more. */
static void drop_records(struct dev *d)
{
	if (!d->disk->journal)
		return;
	journal_drop(d->disk->journal, d->leaf->ops->epoch_durable(d->leaf));
	journal_relieve(d->disk->journal);
}

static void commit_ended(struct dev *d, int res)
{
	struct list *n;

	d->commit_failed = res < 0;
	drop_records(d);
	while ((n = list_pop(&d->covered)))
		req_committed(d, container_of(n, struct blkreq, link), res);
	wake_parked(d, &d->park_epoch, res);
	if (!(d->leaf->wants & IMAGE_DIRTY))
		d->dirty_since_ns = 0;
	else
		d->dirty_since_ns = d->now_ns;
}

static bool idle_commit_due(const struct dev *d)
{
	return d->dirty_since_ns &&
	       d->now_ns - d->dirty_since_ns >= (uint64_t)d->opts.idle_commit_ms * 1000000u;
}

/* Is there no room for more changes? Where commits fail, making room is left to the idle pace. */
static bool room_wanted(const struct dev *d)
{
	return !d->commit_failed && (d->leaf->wants & IMAGE_WANT_COMMIT ||
				     (d->disk->journal && journal_is_full(d->disk->journal)));
}

static void commit_maybe_start(struct dev *d)
{
	int res;

	if (d->commit->active || !d->disk->writable || d->stop >= STOP_COMMIT)
		return;
	if (!d->commit_wanted && !room_wanted(d) && !idle_commit_due(d))
		return;
	d->commit_wanted = false;
	list_splice_tail(&d->covered, &d->landed);
	stat_add(&d->stats.commits, 1);
	res = job_start(d, d->commit, JOB_COMMIT);
	if (res < 0)
		commit_ended(d, res);
}

/* A read-only disk has nothing to make durable: its flushes are answered at once. */
static void landed_without_writer(struct dev *d)
{
	struct list *n;

	if (d->disk->writable)
		return;
	d->commit_wanted = false;
	while ((n = list_pop(&d->landed)))
		req_committed(d, container_of(n, struct blkreq, link), 0);
}

/* ---- growth ---- */

static void grow_ended(struct dev *d, int res)
{
	if (res < 0)
		d->grow_retry_ns = d->now_ns + GROW_RETRY_NS;
	wake_parked(d, &d->park_grow, res);
}

static void grow_maybe_start(struct dev *d)
{
	bool ahead = (d->leaf->wants & IMAGE_WANT_GROW) && d->now_ns >= d->grow_retry_ns;
	int res;

	if (d->grow->active || !d->disk->writable || d->stop > STOP_DRAIN ||
	    (!ahead && list_empty(&d->park_grow)))
		return;
	stat_add(&d->stats.grows, 1);
	res = job_start(d, d->grow, JOB_GROW);
	if (res < 0)
		grow_ended(d, res);
}

/* ---- the end of the device ---- */

static bool nothing_runs(const struct dev *d)
{
	return !d->n_active && !d->commit->active && !d->grow->active && list_empty(&d->transports) &&
	       !d->engine->in_flight;
}

static void stop_with(struct dev *d, int res)
{
	d->stop_res = res;
	d->stop = STOP_DONE;
}

/* Drained: a last commit, then the clean close, unless something failed: then the leaf stays as it is, which
 * the next open puts right. */
static void stop_advance(struct dev *d)
{
	int res = 0;

	if (d->stop == STOP_NO || d->stop == STOP_DONE || !nothing_runs(d))
		return;
	if (!d->disk->writable) {
		stop_with(d, 0);
	} else if (d->stop == STOP_DRAIN) {
		d->stop = STOP_COMMIT;
		res = job_start(d, d->commit, JOB_COMMIT);
	} else if (d->stop == STOP_COMMIT && d->commit->job.res == 0) {
		d->stop = STOP_CLOSE;
		res = job_start(d, d->grow, JOB_CLOSE);
	} else {
		stop_with(d, d->stop == STOP_COMMIT ? d->commit->job.res : d->grow->job.res);
	}
	if (res < 0)
		stop_with(d, res);
}

bool jobs_stopped(struct dev *d)
{
	stop_advance(d);
	return d->stop == STOP_DONE;
}

/* Once or twice a turn: starts what is due, moves on what runs. */
void jobs_run(struct dev *d)
{
	landed_without_writer(d);
	commit_maybe_start(d);
	if (d->commit->active && !job_pump(d, d->commit)) {
		d->commit->active = false;
		note_poison(d);
		if (d->stop < STOP_COMMIT)
			commit_ended(d, d->commit->job.res);
		else
			drop_records(d);
		commit_maybe_start(d);
	}
	grow_maybe_start(d);
	if (d->grow->active && !job_pump(d, d->grow)) {
		d->grow->active = false;
		note_poison(d);
		if (d->grow->job.kind == JOB_GROW)
			grow_ended(d, d->grow->job.res);
	}
}

/* When the loop must wake up by itself: the idle commit, or a growth to try again. 0: at once, for a job that
 * was begun and has nothing in flight yet, or is to begin. */
uint64_t jobs_deadline(const struct dev *d)
{
	uint64_t deadline = IO_DEADLINE_NONE;

	if ((d->commit->active || d->grow->active) && !d->engine->in_flight)
		return 0;
	if (d->stop >= STOP_COMMIT)
		return deadline;
	if ((d->commit_wanted && !d->commit->active) || (!list_empty(&d->park_grow) && !d->grow->active))
		return 0;
	if (d->dirty_since_ns && !d->commit->active)
		deadline = d->dirty_since_ns + (uint64_t)d->opts.idle_commit_ms * 1000000u;
	if ((d->leaf->wants & IMAGE_WANT_GROW) && !d->grow->active && d->disk->writable &&
	    d->grow_retry_ns < deadline)
		deadline = d->grow_retry_ns;
	return deadline;
}
