/*
 * The handshake. front_step() is level-triggered: it reads what is there and moves through as many states as
 * that allows, so a lost or merged watch event does no harm. What the backend offers is read once per
 * connection, in the places where blkfront reads it: ring limits before the rings are made, the disk's
 * properties at Connected.
 */
#include "sim/simguest/front.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/simguest/guest.h"
#include "sim/simproto.h"

enum { XB_INITIALISING = 1, XB_INITWAIT, XB_INITIALISED, XB_CONNECTED, XB_CLOSING, XB_CLOSED };

const char *front_state_name(enum front_state s)
{
	static const char *const names[] = {"absent",  "probed", "offered", "connected",
					    "closing", "closed", "failed"};

	return names[s];
}

static int fail(struct vbd *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int fail(struct vbd *v, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(v->reason, sizeof(v->reason), fmt, ap);
	va_end(ap);
	v->state = FRONT_FAILED;
	return 0;
}

/* Absent or not a number: the default, as xenbus_read_unsigned(). */
static uint64_t read_default(struct guest *g, const char *dir, const char *node, uint64_t value)
{
	uint64_t got;

	return xw_read_u64(&g->xs, 0, dir, node, &got) ? value : got;
}

static int set_state(struct guest *g, struct vbd *v, int state)
{
	return xw_printf(&g->xs, 0, v->fe, "state", "%d", state);
}

int front_start(struct guest *g, struct vbd *v)
{
	snprintf(v->fe, sizeof(v->fe), "/local/domain/%" PRIu32 "/device/vbd/%" PRIu32, g->hyp.domid,
		 v->spec->devid);
	return xw_watch(&g->xs, v->fe, v->fe);
}

/* ABSENT: who is our backend? */
static int probe(struct guest *g, struct vbd *v, bool *moved)
{
	char path[PATH_BYTES + 16], *be;
	uint64_t domid, state;
	int err;

	if (xw_read_u64(&g->xs, 0, v->fe, "state", &state) || state != XB_INITIALISING ||
	    xw_read_u64(&g->xs, 0, v->fe, "backend-id", &domid))
		return 0;
	snprintf(path, sizeof(path), "%s/backend", v->fe);
	be = xw_read(&g->xs, 0, path, &err);
	if (!be)
		return err == -ENOENT ? 0 : err;
	if (strlen(be) >= sizeof(v->be)) {
		free(be);
		return fail(v, "the backend's path is too long");
	}
	strcpy(v->be, be);
	free(be);
	v->be_domid = (uint32_t)domid;
	snprintf(path, sizeof(path), "%s/state", v->be);
	err = xw_watch(&g->xs, path, path);
	if (err && err != -EEXIST)
		return err;
	v->state = FRONT_PROBED;
	*moved = true;
	return 0;
}

static int make_rings(struct guest *g, struct vbd *v)
{
	uint32_t order = g->opt->ring_order, per_ring = 1u << order;
	int err = 0;

	if (order > v->max_order)
		order = (uint32_t)v->max_order;
	v->nrings = g->opt->queues < v->max_queues ? g->opt->queues : (unsigned)v->max_queues;
	if (v->nrings == 0)
		v->nrings = 1;
	v->last_rings = v->nrings;
	v->last_order = order;
	for (unsigned i = 0; i < v->nrings && !err; i++) {
		struct ring *r = &v->ring[i];

		err = ring_init(r, g->opt->abi, &g->hyp, v->ring_page0 + i * per_ring, order, &v->tally);
		if (!err)
			err = hyp_grant(&g->hyp, r->page, 1u << order, v->be_domid, SIM_GRANT_VALID);
		if (!err)
			err = hyp_evtchn_alloc(&g->hyp, v->be_domid, &r->ec);
		r->own_padding_ok = g->opt->own_padding_ok;
	}
	if (!err && !g->opt->regrant)
		err = hyp_grant(&g->hyp, v->arena_page0, v->arena_pages, v->be_domid, SIM_GRANT_VALID);
	return err;
}

/* One ring's keys, into the frontend's directory or one of its queue-N. */
static int write_ring(struct guest *g, uint32_t tx, const char *dir, const struct ring *r)
{
	char node[32];
	int err = 0;

	if (r->order == 0)
		err = xw_printf(&g->xs, tx, dir, "ring-ref", "%u", r->page + GREF_FIRST);
	for (uint32_t i = 0; r->order && i < 1u << r->order && !err; i++) {
		snprintf(node, sizeof(node), "ring-ref%u", i);
		err = xw_printf(&g->xs, tx, dir, node, "%u", r->page + i + GREF_FIRST);
	}
	return err ? err : xw_printf(&g->xs, tx, dir, "event-channel", "%u", r->ec.port);
}

static int write_rings(struct guest *g, struct vbd *v, uint32_t tx)
{
	char dir[PATH_BYTES + 32];
	int err = 0;

	if (v->ring[0].order)
		err = xw_printf(&g->xs, tx, v->fe, "ring-page-order", "%u", v->ring[0].order);
	if (!err && v->nrings > 1)
		err = xw_printf(&g->xs, tx, v->fe, "multi-queue-num-queues", "%u", v->nrings);
	for (unsigned i = 0; i < v->nrings && !err; i++) {
		if (v->nrings == 1)
			snprintf(dir, sizeof(dir), "%s", v->fe);
		else
			snprintf(dir, sizeof(dir), "%s/queue-%u", v->fe, i);
		err = write_ring(g, tx, dir, &v->ring[i]);
	}
	if (!err && g->opt->abi->protocol)
		err = xw_printf(&g->xs, tx, v->fe, "protocol", "%s", g->opt->abi->protocol);
	return err ? err : xw_printf(&g->xs, tx, v->fe, "feature-persistent", "%d", !g->opt->regrant);
}

/* PROBED, and the backend waits: make the rings, publish them in one transaction. */
static int offer(struct guest *g, struct vbd *v)
{
	uint32_t tx;
	int err;

	v->max_order = read_default(g, v->be, "max-ring-page-order", 0);
	v->max_queues = read_default(g, v->be, "multi-queue-max-queues", 1);
	err = make_rings(g, v);
	if (err)
		return fail(v, "making the rings: %s", strerror(-err));
	do {
		err = xw_tx_start(&g->xs, &tx);
		if (err)
			return err;
		err = write_rings(g, v, tx);
		if (err) {
			xw_tx_end(&g->xs, tx, false);
			return fail(v, "publishing the rings: %s", strerror(-err));
		}
		err = xw_tx_end(&g->xs, tx, true);
	} while (err == -EAGAIN);
	if (!err)
		err = set_state(g, v, XB_INITIALISED);
	if (!err)
		v->state = FRONT_OFFERED;
	return err;
}

/* OFFERED, and the backend is Connected: what is this disk? */
static int connect_disk(struct guest *g, struct vbd *v)
{
	uint64_t sectors;
	int err = xw_read_u64(&g->xs, 0, v->be, "sectors", &sectors);

	if (!err)
		err = xw_read_u64(&g->xs, 0, v->be, "info", &v->info);
	if (!err)
		err = xw_read_u64(&g->xs, 0, v->be, "sector-size", &v->sector_size);
	if (err)
		return fail(v, "the connected backend has no sectors, info or sector-size: %s",
			    strerror(-err));
	if (v->sector_size < 512 || v->sector_size > 4096 || v->sector_size & (v->sector_size - 1))
		return fail(v, "sector-size %" PRIu64, v->sector_size);
	v->physical_sector_size = read_default(g, v->be, "physical-sector-size", v->sector_size);
	v->flush = read_default(g, v->be, "feature-flush-cache", 0);
	v->barrier = read_default(g, v->be, "feature-barrier", 0);
	v->discard = read_default(g, v->be, "feature-discard", 0);
	if (v->discard) {
		v->discard_granularity = read_default(g, v->be, "discard-granularity", 0);
		v->discard_alignment = read_default(g, v->be, "discard-alignment", 0);
	}
	v->max_indirect = read_default(g, v->be, "feature-max-indirect-segments", 0);
	v->sectors = sectors;
	err = set_state(g, v, XB_CONNECTED);
	if (!err) {
		v->state = FRONT_CONNECTED;
		v->connects++;
	}
	return err;
}

/* CONNECTED and the backend wrote state 4 again: has it grown? blkfront re-reads `sectors` alone. */
static int look_for_resize(struct guest *g, struct vbd *v)
{
	uint64_t sectors;

	if (xw_read_u64(&g->xs, 0, v->be, "sectors", &sectors) || sectors == v->sectors)
		return 0;
	note("%s: capacity changes from %" PRIu64 " to %" PRIu64 " sectors", v->name, v->sectors, sectors);
	v->resizes++;
	v->sectors = sectors;
	return v->have_model ? model_resize(&v->model, sectors) : 0;
}

static int step_connected(struct guest *g, struct vbd *v)
{
	switch (v->be_state) {
	case XB_CONNECTED:
		return look_for_resize(g, v);
	case XB_CLOSING:
		v->closing = true;
		return 0;
	case 0:
	case XB_CLOSED:
		if (!v->gone)
			tally_add(&v->tally, FAULT_LOST, 1, "the backend %s while connected",
				  v->be_state ? "closed" : "vanished");
		v->gone = true;
		return 0;
	default:
		return 0;
	}
}

static int step_once(struct guest *g, struct vbd *v, bool *moved)
{
	uint64_t be;

	if (v->state == FRONT_ABSENT)
		return probe(g, v, moved);
	be = v->be_state = read_default(g, v->be, "state", 0);
	switch (v->state) {
	case FRONT_PROBED:
		if (be == XB_CLOSING || (be == XB_CLOSED && v->connects == 0))
			return fail(v, "the backend refuses (state %" PRIu64 ")", be);
		*moved = be == XB_INITWAIT;
		return *moved ? offer(g, v) : 0;
	case FRONT_OFFERED:
		if (be == 0 || be == XB_CLOSING || be == XB_CLOSED)
			return fail(v, "the backend refuses the rings (state %" PRIu64 ")", be);
		*moved = be == XB_CONNECTED;
		return *moved ? connect_disk(g, v) : 0;
	case FRONT_CONNECTED:
		return step_connected(g, v);
	case FRONT_CLOSING:
		if (be && be != XB_CLOSING && be != XB_CLOSED)
			return 0;
		*moved = true;
		v->state = FRONT_CLOSED;
		return set_state(g, v, XB_CLOSED);
	case FRONT_CLOSED:
		v->gone = v->gone || be == 0 || be == XB_CLOSED;
		return 0;
	case FRONT_ABSENT:
	case FRONT_FAILED:
		return 0;
	}
	return 0;
}

int front_step(struct guest *g, struct vbd *v)
{
	bool moved;
	int err;

	do {
		moved = false;
		err = step_once(g, v, &moved);
	} while (!err && moved);
	return err;
}

int front_begin_close(struct guest *g, struct vbd *v)
{
	int err;

	v->gone = false;
	v->state = FRONT_CLOSING;
	err = set_state(g, v, XB_CLOSING);
	/* The directory may be gone before we were asked: a detach by force. */
	if (err == -ENOENT || err == -EACCES)
		err = 0;
	return err ? err : front_step(g, v);
}

void front_release(struct guest *g, struct vbd *v)
{
	for (unsigned i = 0; i < v->nrings; i++) {
		struct ring *r = &v->ring[i];

		if (r->shadow && ring_spoke_after_close(r))
			tally_add(&v->tally, FAULT_PROTOCOL, 1, "queue %u: a response after close", i);
		hyp_evtchn_close(&g->hyp, &r->ec);
		hyp_revoke(&g->hyp, r->page, 1u << r->order);
		ring_destroy(r);
	}
	if (v->nrings && !g->opt->regrant)
		hyp_revoke(&g->hyp, v->arena_page0, v->arena_pages);
	v->nrings = 0;
	v->closing = v->gone = false;
}

int front_restart(struct guest *g, struct vbd *v)
{
	v->state = FRONT_PROBED;
	return set_state(g, v, XB_INITIALISING);
}
