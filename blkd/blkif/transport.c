/*
 * A frontend's connection as a transport of a device: the vtable of dev.h over the rings, and the
 * connection's birth and end.
 *
 * A turn of fetch(). Rings are visited in rotation, one request each, from where the last fetch stopped, so
 * that no queue starves another. Then the batch is finished in two copies: indirect segments of all requests,
 * checked as they become private; write data of all requests. What fails on the way is answered here and does
 * not count. The work of a turn is bounded by BLKIF_FETCH_MAX entries, refused ones included.
 *
 * Sleeping. A ring that was read to its end asks to be told of the next request, looks once more, and only
 * then has its channel unmasked and its descriptor armed: while there is work, and while there are no
 * buffers, the guest's notifications cost nothing (XSA-331, 332). A guest that notifies and never brings a
 * request is listened to once a millisecond.
 *
 * A broken connection is neither read nor listened to any more; what is in flight is answered, and the
 * control thread detaches it.
 */
#include "blkd/blkif/ring.h"

#include "blkd/err.h"
#include "blkd/journal.h"
#include "blkd/log.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define SPURIOUS_MAX 64u
#define THROTTLE_NS  1000000

static struct blkif_conn *conn_of(struct transport *t)
{
	return container_of(t, struct blkif_conn, transport);
}

static struct blkif_slot *slot_of(struct blkreq *req)
{
	return container_of(req, struct blkif_slot, req);
}

void conn_break(struct blkif_conn *c, const char *reason, uint32_t a, uint32_t b)
{
	if (c->broken)
		return;
	c->broken = true;
	snprintf(c->reason, sizeof(c->reason), "the frontend broke its ring: %s %u and %u", reason, a, b);
	c->report(c->report_ctx, BLKIF_EV_BROKEN);
}

/* ---- fetch ---- */

/* One entry of each ring in turn. Returns whether work is left that needs no event to be found. */
static bool gather(struct blkif_conn *c, unsigned max)
{
	unsigned budget = BLKIF_FETCH_MAX, idle = 0;

	for (unsigned i = 0; i < c->n_rings; i++)
		c->rings[i].seen = c->rings[i].drained = false;
	while (idle < c->n_rings) {
		struct blkif_ring *r = &c->rings[c->next_ring];

		if (budget == 0 || c->n_fresh == max)
			return true;
		if (r->drained) {
			idle++;
			c->next_ring = (c->next_ring + 1) % c->n_rings;
			continue;
		}
		switch (ring_take(r)) {
		case RING_TAKEN:
		case RING_REFUSED:
			r->spurious = 0;
			budget--;
			idle = 0;
			break;
		case RING_EMPTY:
			r->drained = true;
			break;
		case RING_NO_BUFFER: /* the same ring is first when there is one */
		case RING_BROKEN:
			return false;
		}
		c->next_ring = (c->next_ring + 1) % c->n_rings;
	}
	return false;
}

/* Answers those of the batch whose copy failed or whose segments do not hold; the others move up. */
static void weed(struct blkif_conn *c, bool check_segments)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < c->n_fresh; i++) {
		struct blkif_slot *s = c->fresh[i];
		int rc = 0;

		if (s->copy_failed) {
			counter_add(&c->counters.copy_failures, 1);
			rc = -EFAULT;
		} else if (check_segments && s->indirect) {
			s->indirect = false;
			rc = ring_check_data(&c->limits, s);
		}
		if (rc < 0) {
			counter_add(&c->counters.refused, 1);
			ring_answer(s, rc);
		} else {
			c->fresh[kept++] = s;
		}
	}
	c->n_fresh = kept;
}

static void bring_segments(struct blkif_conn *c)
{
	for (unsigned i = 0; i < c->n_fresh; i++) {
		if (c->fresh[i]->indirect)
			grant_add_indirect(&c->batch, c->fresh[i]);
	}
	grant_flush(&c->batch);
	weed(c, true);
}

static void bring_data(struct blkif_conn *c)
{
	for (unsigned i = 0; i < c->n_fresh; i++) {
		struct blkif_slot *s = c->fresh[i];

		if (s->n_segs && s->req.op != BLK_READ)
			grant_add_data(&c->batch, s, HYP_FROM_GUEST);
	}
	grant_flush(&c->batch);
	weed(c, false);
}

/* Is the guest's pace worth a wait? Then the timer will listen for it. */
static bool throttle(struct blkif_ring *r)
{
	const struct itimerspec once = {.it_value.tv_nsec = THROTTLE_NS};
	struct blkif_conn *c = r->conn;

	if (r->spurious < SPURIOUS_MAX)
		return false;
	if (!c->timer_armed) {
		if (timerfd_settime(c->timer.fd, 0, &once, NULL) < 0)
			return false;
		dev_poll_arm(c->dev, &c->timer, &c->transport);
		c->timer_armed = true;
	}
	r->throttled = true;
	return true;
}

static void listen_ring(struct blkif_ring *r)
{
	struct blkif_conn *c = r->conn;

	r->acked = false;
	hyp_unmask(r->channel);
	dev_poll_arm(c->dev, &r->poll, &c->transport);
}

/* Puts drained rings to sleep. Returns whether one of them has something after all. */
static bool sleep_rings(struct blkif_conn *c)
{
	bool more = false;

	for (unsigned i = 0; i < c->n_rings; i++) {
		struct blkif_ring *r = &c->rings[i];

		if (!r->drained)
			continue;
		if (!ring_sleep(r))
			more = true;
		else if (r->acked && !r->throttled && !throttle(r))
			listen_ring(r);
	}
	return more;
}

static unsigned blkif_fetch(struct transport *t, struct blkreq **reqs, unsigned max)
{
	struct blkif_conn *c = conn_of(t);
	bool more;

	if (c->broken)
		return 0;
	c->n_fresh = 0;
	more = gather(c, max < BLKIF_FETCH_MAX ? max : BLKIF_FETCH_MAX);
	bring_segments(c);
	bring_data(c);
	/* Answers of the door; those of the device are published by kick(). */
	for (unsigned i = 0; i < c->n_rings; i++)
		ring_publish(&c->rings[i]);
	if (!c->broken && (sleep_rings(c) || more))
		dev_transport_ready(t);
	for (unsigned i = 0; i < c->n_fresh; i++)
		reqs[i] = &c->fresh[i]->req;
	return c->n_fresh;
}

/* ---- the rest of the vtable ---- */

static void blkif_copy_out(struct transport *t, struct blkreq *const *reqs, unsigned n)
{
	struct blkif_conn *c = conn_of(t);

	for (unsigned i = 0; i < n; i++) {
		if (reqs[i]->op == BLK_READ && reqs[i]->status == 0)
			grant_add_data(&c->batch, slot_of(reqs[i]), HYP_TO_GUEST);
	}
	grant_flush(&c->batch);
	for (unsigned i = 0; i < n; i++) {
		if (slot_of(reqs[i])->copy_failed && reqs[i]->status == 0) {
			counter_add(&c->counters.copy_failures, 1);
			reqs[i]->status = -EFAULT;
		}
	}
}

static void blkif_respond(struct transport *t, struct blkreq *req)
{
	(void)t;
	ring_answer(slot_of(req), req->status);
}

static void blkif_kick(struct transport *t)
{
	struct blkif_conn *c = conn_of(t);

	for (unsigned i = 0; i < c->n_rings; i++)
		ring_publish(&c->rings[i]);
}

static void timer_event(struct blkif_conn *c)
{
	uint64_t expirations;

	c->timer_armed = false;
	/* Nothing to do about a spurious poll: the rings are looked at either way. */
	if (read(c->timer.fd, &expirations, sizeof(expirations)) < 0)
		expirations = 0;
	for (unsigned i = 0; i < c->n_rings; i++) {
		c->rings[i].throttled = false;
		/* One more empty wake-up and it waits again. */
		if (c->rings[i].spurious >= SPURIOUS_MAX)
			c->rings[i].spurious = SPURIOUS_MAX - 1;
	}
}

static void blkif_event(struct transport *t, struct io_poll *p)
{
	struct blkif_conn *c = conn_of(t);

	if (p == &c->timer) {
		timer_event(c);
	} else {
		struct blkif_ring *r = container_of(p, struct blkif_ring, poll);

		counter_add(&c->counters.wakeups, 1);
		/* Counted as empty until a request is found. */
		r->spurious++;
		hyp_ack(r->channel);
		r->acked = true;
	}
	if (!c->broken)
		dev_transport_ready(t);
}

static void blkif_detached(struct transport *t)
{
	struct blkif_conn *c = conn_of(t);

	for (unsigned i = 0; i < c->n_rings; i++) {
		ring_publish(&c->rings[i]);
		dev_poll_disarm(c->dev, &c->rings[i].poll);
	}
	dev_poll_disarm(c->dev, &c->timer);
	c->report(c->report_ctx, BLKIF_EV_DETACHED);
}

static const struct transport_ops blkif_transport_ops = {
    .name = "blkif",
    .fetch = blkif_fetch,
    .copy_out = blkif_copy_out,
    .respond = blkif_respond,
    .kick = blkif_kick,
    .event = blkif_event,
    .detached = blkif_detached,
};

/* ---- birth and end: control thread ---- */

/* What the journal of a ring is bound to: this connection and no other. */
struct journal_binding {
	uint32_t domid, abi, pages, port;
	uint32_t grefs[1u << BLKIF_MAX_ORDER];
};

static int ring_open(struct blkif_ring *r, const struct blkif_connect *o, unsigned index, struct err *e)
{
	struct journal_binding binding = {
	    .domid = o->domid, .abi = o->abi, .pages = o->pages, .port = o->queue[index].port};
	char name[96];
	void *addr;
	int rc;

	r->entry_bytes = blkif_entry_bytes(o->abi);
	r->entries = blkif_ring_entries(o->abi, o->pages);
	r->slots = calloc(r->entries, sizeof(r->slots[0]));
	r->segs = calloc((size_t)r->entries * BLKIF_INDIRECT_SEGS, sizeof(r->segs[0]));
	if (!r->slots || !r->segs)
		return err_set(e, -ENOMEM, "no memory for the requests of a ring of %u", r->entries);
	rc = hyp_map_ring(o->hyp, o->domid, o->queue[index].grefs, o->pages, &r->map, &addr, e);
	if (rc < 0)
		return rc;
	r->shared = addr;
	/* A frontend makes a new ring for each connection. One that was in use has requests whose state
	 * nobody knows. */
	if (__atomic_load_n(&r->shared->rsp_prod, __ATOMIC_RELAXED) != 0)
		return err_set(e, -EADDRINUSE, "the ring was in use before: the frontend must connect anew");
	rc = hyp_bind(o->hyp, o->domid, o->queue[index].port, &r->channel, e);
	if (rc < 0)
		return rc;
	if (o->run_dir) {
		snprintf(name, sizeof(name), "%s-%u", o->name, index);
		memcpy(binding.grefs, o->queue[index].grefs, o->pages * sizeof(binding.grefs[0]));
		rc = ring_journal_open(o->run_dir, name, &binding, sizeof(binding), &r->journal, e);
		if (rc < 0)
			return rc;
	}
	r->poll = (struct io_poll){.fd = hyp_evtchn_fd(r->channel), .events = POLLIN};
	list_init(&r->poll.link);
	/* A channel is pending right after its bind, and requests may be there: the first fetch looks without
	 * being told. */
	r->acked = true;
	ring_reset(r);
	return 0;
}

static void ring_close(struct blkif_ring *r, struct hyp *hyp)
{
	hyp_unbind(r->channel);
	hyp_unmap(hyp, r->map);
	if (r->journal)
		ring_journal_close(r->journal, false);
	free(r->slots);
	free(r->segs);
}

static void attach_now(struct dev *d, void *conn)
{
	struct blkif_conn *c = conn;

	dev_attach(d, &c->transport);
}

static void detach_now(struct dev *d, void *conn)
{
	struct blkif_conn *c = conn;

	dev_detach(d, &c->transport);
}

int blkif_conn_attach(struct blkif_conn *c, struct dev *d)
{
	c->dev = d;
	return dev_post(d, attach_now, c);
}

int blkif_conn_detach(struct blkif_conn *c)
{
	return dev_post(c->dev, detach_now, c);
}

void blkif_conn_destroy(struct blkif_conn *c, struct hyp *hyp)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->n_rings; i++)
		ring_close(&c->rings[i], hyp);
	if (c->timer.fd >= 0)
		close(c->timer.fd);
	free(c);
}

int blkif_conn_create(const struct blkif_connect *o, struct blkif_conn **out, struct err *e)
{
	struct blkif_conn *c = calloc(1, sizeof(*c));
	int rc = 0;

	if (!c)
		return err_set(e, -ENOMEM, "no memory for a connection of domain %u", o->domid);
	CHECK(o->n_queues >= 1 && o->n_queues <= BLKIF_MAX_QUEUES);
	c->transport.ops = &blkif_transport_ops;
	list_init(&c->transport.link);
	c->abi = o->abi;
	c->limits = o->limits;
	c->report = o->report;
	c->report_ctx = o->report_ctx;
	c->batch.hyp = o->hyp;
	c->batch.domid = o->domid;
	c->timer = (struct io_poll){.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
				    .events = POLLIN};
	list_init(&c->timer.link);
	if (c->timer.fd < 0)
		rc = err_set(e, -errno, "no timer for a connection of domain %u: %s", o->domid,
			     strerror(errno));
	for (unsigned i = 0; rc == 0 && i < o->n_queues; i++) {
		c->n_rings = i + 1;
		c->rings[i].conn = c;
		rc = ring_open(&c->rings[i], o, i, e);
		if (rc < 0)
			err_prefix(e, "queue %u", i);
	}
	if (rc < 0) {
		blkif_conn_destroy(c, o->hyp);
		return rc;
	}
	*out = c;
	return 0;
}
