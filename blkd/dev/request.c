/* HOT PATH: no malloc, no log, no syscall, no lock. */
/*
 * The life of a request: admitted in order of arrival, run, answered once.
 *
 * Overlaps. A request that overlaps one that came earlier and is not answered yet, one of them not a read,
 * waits until that one is answered. So nothing answered ever overlaps anything in the journal, reads never
 * see half a write, and a block can be freed by a trim because every read that was mapped before has ended.
 * Admitted requests stand in a dense array of ranges that is scanned: with some hundred entries that is
 * cheaper than any tree, and reads skip it while nothing mutates.
 *
 * Barriers. While a barrier is admitted nothing is fetched; it runs alone: commit, its data, commit.
 *
 * When is a write answered? (datapath.md 1 and 2.) When the commit that covers it is done; or at landing,
 * where the guest flushes (write mode back), if what it changed in the metadata is in the journal, which a
 * successor of this process replays.
 */
#include "blkd/dev/dev_priv.h"

static const uint8_t legal_moves[REQ_DONE + 1] = {
    [REQ_IDLE] = 1u << REQ_BLOCKED | 1u << REQ_RUN,
    [REQ_BLOCKED] = 1u << REQ_RUN,
    [REQ_RUN] = 1u << REQ_PARKED | 1u << REQ_LANDED | 1u << REQ_DONE,
    [REQ_PARKED] = 1u << REQ_RUN,
    [REQ_LANDED] = 1u << REQ_RUN | 1u << REQ_DONE,
    [REQ_DONE] = 1u << REQ_IDLE,
};

void req_set_state(struct blkreq *r, enum req_state to)
{
	CHECK(legal_moves[r->state] & 1u << to);
	r->state = to;
}

void req_fail(struct blkreq *r, int res)
{
	if (!r->status)
		r->status = res;
}

/* ---- admission ---- */

static void active_add(struct dev *d, struct blkreq *r)
{
	uint64_t len_bytes = r->op == BLK_FLUSH ? 0 : r->len_bytes;

	CHECK(d->n_active < d->max_active);
	r->active_i = d->n_active;
	d->active[d->n_active++] = (struct range){r->off_bytes, r->off_bytes + len_bytes, r, r->mutates};
	d->n_mutating += r->mutates;
}

static void active_del(struct dev *d, struct blkreq *r)
{
	struct range *hole = &d->active[r->active_i];

	DCHECK(hole->req == r);
	d->n_mutating -= r->mutates;
	*hole = d->active[--d->n_active];
	hole->req->active_i = r->active_i;
}

/* An earlier request that r must wait for, or NULL. */
static struct blkreq *find_conflict(const struct dev *d, const struct blkreq *r)
{
	uint64_t start = r->off_bytes, end = r->off_bytes + r->len_bytes;

	if (r->op == BLK_FLUSH || (!r->mutates && !d->n_mutating))
		return NULL;
	for (unsigned i = 0; i < d->n_active; i++) {
		const struct range *a = &d->active[i];

		if (a->start < end && start < a->end && (a->mutates || r->mutates) && a->req->seq < r->seq)
			return a->req;
	}
	return NULL;
}

static void block(struct dev *d, struct blkreq *r, struct blkreq *blocker)
{
	r->blocker = blocker;
	req_set_state(r, REQ_BLOCKED);
	list_add_tail(&d->blocked, &r->link);
	stat_add(&d->stats.blocked, 1);
}

void req_admit(struct dev *d, struct blkreq *r)
{
	struct blkreq *blocker;

	r->seq = d->next_seq++;
	r->start_ns = d->now_ns;
	r->plan_off = r->off_bytes;
	r->plan_layer = 0;
	r->pieces = 0;
	r->epoch = 0;
	r->status = 0;
	r->planned = false;
	r->recorded = true;
	r->barrier = BARRIER_DRAIN;
	r->mutates = r->op == BLK_WRITE || r->op == BLK_TRIM || r->op == BLK_ZERO || r->op == BLK_BARRIER;
	list_init(&r->link);
	active_add(d, r);
	if (d->barrier) {
		block(d, r, d->barrier);
		return;
	}
	if (r->op == BLK_BARRIER) {
		d->barrier = r;
		if (d->n_active > 1)
			block(d, r, NULL);
		else
			req_run(d, r);
		return;
	}
	blocker = find_conflict(d, r);
	if (blocker)
		block(d, r, blocker);
	else
		req_run(d, r);
}

/* ---- running ---- */

static void land(struct dev *d, struct blkreq *r)
{
	req_set_state(r, REQ_LANDED);
	list_add_tail(&d->landed, &r->link);
	jobs_want_commit(d);
}

static void finish(struct dev *d, struct blkreq *r)
{
	req_set_state(r, REQ_DONE);
	list_add_tail(&d->done, &r->link);
}

void req_run(struct dev *d, struct blkreq *r)
{
	req_set_state(r, REQ_RUN);
	switch (r->op) {
	case BLK_READ:
		plan_read(d, r);
		break;
	case BLK_WRITE:
	case BLK_TRIM:
	case BLK_ZERO:
		plan_write(d, r);
		break;
	case BLK_FLUSH:
		land(d, r);
		break;
	case BLK_BARRIER:
		if (r->barrier == BARRIER_DRAIN) {
			r->barrier = BARRIER_COMMIT;
			land(d, r);
		} else if (r->len_bytes) {
			plan_write(d, r);
		} else {
			finish(d, r);
		}
		break;
	}
}

void req_park(struct dev *d, struct blkreq *r, struct list *where)
{
	req_set_state(r, REQ_PARKED);
	list_add_tail(where, &r->link);
	stat_add(&d->stats.parked, 1);
}

/* May the write be answered now that its data landed? */
static bool answered_at_landing(const struct dev *d, const struct blkreq *r)
{
	bool durable = d->leaf->file->traits.durable_at_completion;
	bool back =
	    d->opts.write_mode == WRITE_BACK || (d->opts.write_mode == WRITE_AUTO && r->transport->flushed);

	if (durable)
		return !r->epoch;
	return back && !r->fua && r->op != BLK_BARRIER && r->recorded;
}

void req_settle(struct dev *d, struct blkreq *r)
{
	if (r->state != REQ_RUN || r->pieces || !(r->planned || r->status))
		return;
	if (r->status || !r->mutates || answered_at_landing(d, r))
		finish(d, r);
	else
		land(d, r);
}

void req_committed(struct dev *d, struct blkreq *r, int res)
{
	if (res < 0)
		req_fail(r, res);
	if (r->op == BLK_BARRIER && r->barrier == BARRIER_COMMIT && !r->status) {
		r->barrier = BARRIER_DATA;
		req_run(d, r);
		return;
	}
	finish(d, r);
}

/* ---- answering ---- */

/* Is the barrier the oldest request that is not answered? */
static bool barrier_alone(const struct dev *d, const struct blkreq *barrier)
{
	for (unsigned i = 0; i < d->n_active; i++)
		if (d->active[i].req->seq < barrier->seq)
			return false;
	return true;
}

/* What r waited for was answered: it runs, or finds the next one to wait for. r stays in d->blocked in the
 * latter case. */
static void reconsider(struct dev *d, struct blkreq *r)
{
	if (d->barrier && d->barrier != r && d->barrier->seq < r->seq) {
		r->blocker = d->barrier;
		return;
	}
	r->blocker = NULL;
	if (r->op == BLK_BARRIER) {
		d->barrier = r;
		if (!barrier_alone(d, r))
			return;
	} else {
		r->blocker = find_conflict(d, r);
		if (r->blocker)
			return;
	}
	list_del(&r->link);
	req_run(d, r);
}

static void unblock(struct dev *d, const struct blkreq *answered)
{
	struct list *pos, *next;

	list_for_each_safe (pos, next, &d->blocked) {
		struct blkreq *r = container_of(pos, struct blkreq, link);

		if (r->blocker == answered || r == d->barrier)
			reconsider(d, r);
	}
}

static void account(struct dev *d, const struct blkreq *r)
{
	stat_add(&d->stats.reqs[r->op], 1);
	stat_add(&d->stats.bytes[r->op], r->len_bytes);
	stat_add(&d->stats.errors[r->op], r->status != 0);
	stat_add(&d->stats.latency_ns_sum[r->op], d->now_ns - r->start_ns);
}

static void answer(struct dev *d, struct blkreq *r)
{
	struct transport *t = r->transport;

	if ((r->op == BLK_FLUSH || r->op == BLK_BARRIER) && !r->status && !t->flushed) {
		t->flushed = true;
		if (d->disk->journal)
			journal_set_guest_flushed(d->disk->journal, true);
	}
	account(d, r);
	active_del(d, r);
	if (d->barrier == r)
		d->barrier = NULL;
	req_set_state(r, REQ_IDLE);
	t->in_flight--;
	t->kick_wanted = true;
	t->ops->respond(t, r);
}

static void complete_batch(struct dev *d, struct transport *t)
{
	t->ops->copy_out(t, t->batch, t->n_batch);
	for (unsigned i = 0; i < t->n_batch; i++)
		answer(d, t->batch[i]);
	/* The answered requests are the transport's again: only their addresses are used from here on. */
	if (!list_empty(&d->blocked))
		for (unsigned i = 0; i < t->n_batch; i++)
			unblock(d, t->batch[i]);
	t->n_batch = 0;
}

/* Answers what is done, a batch a transport, then kicks each transport once. Answers may set blocked requests
 * free, which may be done at once (zeros, metadata in memory): the loop goes on until nothing is left. */
void dev_complete(struct dev *d)
{
	struct list *pos, *n;

	while (!list_empty(&d->done)) {
		while ((n = list_pop(&d->done))) {
			struct blkreq *r = container_of(n, struct blkreq, link);
			struct transport *t = r->transport;

			t->batch[t->n_batch++] = r;
			if (t->n_batch == sizeof(t->batch) / sizeof(t->batch[0]))
				complete_batch(d, t);
		}
		list_for_each (pos, &d->transports) {
			struct transport *t = container_of(pos, struct transport, link);

			if (t->n_batch)
				complete_batch(d, t);
		}
	}
	list_for_each (pos, &d->transports) {
		struct transport *t = container_of(pos, struct transport, link);

		if (t->kick_wanted) {
			t->kick_wanted = false;
			stat_add(&d->stats.kicks, 1);
			t->ops->kick(t);
		}
	}
}
