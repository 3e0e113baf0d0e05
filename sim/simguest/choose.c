/*
 * What to do next. Requests in flight never overlap unless both read, as no kernel lets them; with `overlap`
 * they may, and then all that overlap go to one queue, where the order of arrival is the order on the ring.
 * Generations are given in that order.
 */
#include "sim/simguest/op.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "sim/simguest/rng.h"
#include "sim/simproto.h"

#define TRIES	      16u
#define INFO_READONLY 4u

/* Region and weights of this phase on this disk. */
int choose_setup(struct load *l)
{
	const struct phase *ph = l->ph;
	struct vbd *v = l->v;
	uint64_t begin = ph->offset / SECTOR_BYTES, len = ph->size / SECTOR_BYTES;

	if (begin >= v->sectors) {
		note("%s: offset %" PRIu64 " is past the end (%" PRIu64 " sectors)", v->name, ph->offset,
		     v->sectors);
		return -EINVAL;
	}
	if (len == 0 || len > v->sectors - begin)
		len = v->sectors - begin;
	l->region_begin = l->pos = begin;
	l->region_sectors = len;
	if (ph->bs_min % v->sector_size || ph->bs_max % v->sector_size) {
		note("%s: bs is not a multiple of the sector size %" PRIu64, v->name, v->sector_size);
		return -EINVAL;
	}
	memcpy(l->weight, ph->mix, sizeof(l->weight));
	l->res->no_trim = !v->discard && l->weight[MIX_TRIM];
	l->res->no_flush =
	    !(ph->barrier ? v->barrier : v->flush) && (l->weight[MIX_FLUSH] || ph->flush_every);
	if (!v->discard)
		l->weight[MIX_TRIM] = 0;
	if (l->res->no_flush)
		l->weight[MIX_FLUSH] = 0;
	if (v->info & INFO_READONLY && !ph->force_write)
		l->weight[MIX_WRITE] = l->weight[MIX_TRIM] = 0;
	if (l->res->no_trim || l->res->no_flush)
		note("%s: the backend offers no %s: left out", v->name,
		     l->res->no_trim ? "discard"
		     : ph->barrier   ? "barrier"
				     : "flush");
	for (unsigned i = 0; i < MIXES; i++)
		l->weight_sum += l->weight[i];
	if (l->weight_sum == 0) {
		note("%s: nothing of phase '%s' is possible on this disk", v->name, ph->name);
		return -EOPNOTSUPP;
	}
	return 0;
}

static bool spent(const struct load *l, uint64_t now)
{
	const struct phase *ph = l->ph;

	if (guest_stop || l->v->closing || l->v->gone)
		return true;
	if (ph->runtime_ms && now >= l->deadline_ns)
		return true;
	if ((ph->ios && l->issued >= ph->ios) || (ph->io_bytes && l->issued_bytes >= ph->io_bytes))
		return true;
	if (ph->ios || ph->io_bytes || ph->runtime_ms)
		return false;
	if (ph->random)
		return l->issued_bytes >= l->region_sectors * SECTOR_BYTES ||
		       (l->weight[MIX_FLUSH] == l->weight_sum && l->issued);
	return l->pos >= l->region_begin + l->region_sectors ||
	       (l->weight[MIX_FLUSH] == l->weight_sum && l->issued);
}

/* The write besides the load, at a random place. */
static bool mark_is_due(const struct load *l)
{
	uint32_t marks = l->ph->marks;

	return marks && !(l->v->info & INFO_READONLY) && l->issued % (marks + 1) == marks;
}

static enum op_kind draw_kind(struct load *l)
{
	static const enum op_kind kinds[MIXES] = {OP_READ, OP_WRITE, OP_TRIM, OP_FLUSH};
	uint64_t at = rng_below(&l->rng, l->weight_sum);
	unsigned i = 0;

	if (l->ph->flush_every && !l->res->no_flush && l->writes_since_flush >= l->ph->flush_every)
		return l->ph->barrier ? OP_BARRIER : OP_FLUSH;
	if (mark_is_due(l))
		return OP_WRITE;
	while (at >= l->weight[i])
		at -= l->weight[i++];
	return kinds[i] == OP_FLUSH && l->ph->barrier ? OP_BARRIER : kinds[i];
}

static uint32_t draw_sectors(struct load *l, enum op_kind kind)
{
	uint32_t unit = l->ph->bs_min, steps = (l->ph->bs_max - unit) / unit, bytes;

	if (kind == OP_FLUSH || (kind == OP_BARRIER && rng_below(&l->rng, 2)))
		return 0;
	bytes = unit + (uint32_t)rng_below(&l->rng, steps + 1) * unit;
	/* A barrier has no INDIRECT form: keep it within one page, which any buffer layout fits. */
	if (kind == OP_BARRIER && bytes > SIM_PAGE_BYTES)
		bytes = SIM_PAGE_BYTES;
	return bytes / SECTOR_BYTES;
}

static void draw_place(struct load *l, struct op *op)
{
	uint64_t end = l->region_begin + l->region_sectors, unit = l->ph->bs_min / SECTOR_BYTES;

	if (op->nsect == 0) {
		op->sector = 0;
		return;
	}
	if (l->ph->random || mark_is_due(l)) {
		uint64_t blocks = l->region_sectors / unit;

		op->sector = l->region_begin + rng_below(&l->rng, blocks ? blocks : 1) * unit;
	} else {
		if (l->pos >= end)
			l->pos = l->region_begin;
		op->sector = l->pos;
	}
	if (op->nsect > end - op->sector)
		op->nsect = (uint32_t)(end - op->sector);
}

/* Finds the queue: the next one, or the queue of what it overlaps. False: it has to wait. */
static bool admit(struct load *l, struct op *op)
{
	unsigned queue = l->next_queue % l->v->nrings;
	bool bound = false;

	for (uint32_t i = 0; i < l->ph->iodepth; i++) {
		const struct op *o = &l->ops[i];

		if (!o->busy || o->nsect == 0 || op->nsect == 0 ||
		    (o->kind == OP_READ && op->kind == OP_READ))
			continue;
		if (op->sector >= o->sector + o->nsect || o->sector >= op->sector + op->nsect)
			continue;
		if (!l->ph->overlap || (bound && o->queue != queue))
			return false;
		queue = o->queue;
		bound = true;
	}
	op->queue = queue;
	return true;
}

/* The model hears of it before the backend can. */
static int track(struct load *l, struct op *op)
{
	struct model *m = &l->v->model;
	int err = 0;

	op->tracked = false;
	if (op->kind == OP_READ) {
		if (l->ph->overlap && l->ph->verify)
			model_snapshot(m, op->sector, op->nsect, op->snap);
		return 0;
	}
	op->gen = model_next_gen(m);
	if (op->gen == 0)
		return -EOVERFLOW;
	if (op->nsect == 0 || l->v->info & INFO_READONLY)
		return 0;
	op->tracked = true;
	err = op->kind == OP_TRIM ? model_trim_tried(m, op->sector, op->nsect, op->gen)
				  : model_write_tried(m, op->sector, op->nsect, op->gen);
	return err;
}

static void count_issue(struct load *l, const struct op *op)
{
	bool in_order = !l->ph->random && !mark_is_due(l);

	l->next_queue++;
	l->issued++;
	l->issued_bytes += (uint64_t)op->nsect * SECTOR_BYTES;
	if (op->nsect && in_order)
		l->pos = op->sector + op->nsect;
	if (op->kind == OP_WRITE)
		l->writes_since_flush++;
	else if (op->kind == OP_FLUSH || op->kind == OP_BARRIER)
		l->writes_since_flush = 0;
}

enum choice choose_op(struct load *l, uint64_t now, struct op **out)
{
	struct op *op;

	if (spent(l, now))
		return EXHAUSTED;
	if (l->nfree == 0 || now < l->next_issue_ns)
		return BLOCKED;
	op = &l->ops[l->free_op[l->nfree - 1]];
	for (unsigned i = 0; i < (l->ph->random || mark_is_due(l) ? TRIES : 1); i++) {
		op->kind = draw_kind(l);
		op->nsect = draw_sectors(l, op->kind);
		draw_place(l, op);
		if (!admit(l, op))
			continue;
		if (track(l, op)) {
			note("%s: the model is full", l->v->name);
			return EXHAUSTED;
		}
		l->nfree--;
		op->busy = true;
		op->failed = false;
		op->seg_next = op->parts_made = op->parts_out = 0;
		count_issue(l, op);
		*out = op;
		return CHOSEN;
	}
	return BLOCKED;
}
