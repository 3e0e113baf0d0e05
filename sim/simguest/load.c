/*
 * The loop of a phase: choose and submit on every disk, reap, and sleep when there was nothing to reap. The
 * model learns of a write's landing, and a read is compared, per ring request, the moment its response is
 * seen.
 */
#include "sim/simguest/load.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <xen/xen.h>
#include <xen/io/blkif.h>

#include "sim/simguest/op.h"
#include "sim/simguest/rng.h"
#include "sim/simproto.h"

#define TURNS_BETWEEN_LOOKS 256u
#define SLEEP_MAX_MS	    200

const char *op_kind_name(enum op_kind kind)
{
	static const char *const names[OP_KINDS] = {"read", "write", "trim", "flush", "barrier"};

	return names[kind];
}

uint64_t load_pages(const struct phase *ph)
{
	return (uint64_t)ph->iodepth * (buffer_data_pages(ph) + 1 + buffer_ind_pages(ph));
}

static uint64_t cpu_ns(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return ((uint64_t)ru.ru_utime.tv_sec + (uint64_t)ru.ru_stime.tv_sec) * 1000000000u +
	       ((uint64_t)ru.ru_utime.tv_usec + (uint64_t)ru.ru_stime.tv_usec) * 1000u;
}

/* With regrant the backend may touch an operation's pages only while it runs; what it must not write it gets
 * read-only. */
static int grant_op(struct load *l, const struct op *op)
{
	uint32_t ind = op->page0 + l->data_pages + 1;
	int err;

	if (!l->g->opt->regrant || op->nseg == 0)
		return 0;
	err = hyp_grant(&l->g->hyp, op->page0, op->nseg, l->v->be_domid,
			SIM_GRANT_VALID | (op->kind == OP_READ ? 0 : SIM_GRANT_READONLY));
	if (!err && l->indirect)
		err = hyp_grant(&l->g->hyp, ind, l->ind_pages, l->v->be_domid,
				SIM_GRANT_VALID | SIM_GRANT_READONLY);
	return err;
}

static void revoke_op(struct load *l, const struct op *op)
{
	if (!l->g->opt->regrant || op->nseg == 0)
		return;
	hyp_revoke(&l->g->hyp, op->page0, op->nseg);
	if (l->indirect)
		hyp_revoke(&l->g->hyp, op->page0 + l->data_pages + 1, l->ind_pages);
}

static void check_read(struct load *l, struct op *op, const struct shadow *part, enum check_mode mode)
{
	char why[200] = "", more[200] = "";
	uint32_t bad = 0;

	for (uint32_t i = part->seg_first; l->ph->verify && i < part->seg_first + part->seg_count; i++) {
		const struct seg *s = &op->seg[i];

		bad += model_check(&l->v->model, op->sector + s->start, s->count, buffer_segment(l, op, i),
				   l->ph->overlap ? op->snap + s->start : NULL, mode, bad ? more : why,
				   sizeof(why));
	}
	if (bad)
		tally_add(&l->v->tally, FAULT_VERIFY, bad, "%s%s", why,
			  mode == CHECK_FAILED ? " (in a read that was answered with an error)" : "");
}

static void part_ok(struct load *l, struct op *op, const struct shadow *part)
{
	if (op->kind == OP_READ) {
		check_read(l, op, part, CHECK_OK);
		return;
	}
	if (op->nsect && !op->tracked)
		tally_add(&l->v->tally, FAULT_PROTOCOL, 1, "a %s on a read-only disk was answered OK",
			  op_kind_name(op->kind));
	if (op->kind == OP_TRIM)
		return;
	buffer_check_written(l, op, part->seg_first, part->seg_count);
	for (uint32_t i = part->seg_first; op->tracked && i < part->seg_first + part->seg_count; i++)
		model_write_landed(&l->v->model, op->sector + op->seg[i].start, op->seg[i].count, op->gen);
}

static void finish_op(struct load *l, struct op *op, uint64_t now)
{
	struct op_stats *st = &l->res->kind[op->kind];

	hist_add(&st->latency, now - op->begin_ns);
	st->ops++;
	st->errors += op->failed;
	if (!op->failed)
		st->bytes += (uint64_t)op->nsect * SECTOR_BYTES;
	revoke_op(l, op);
	buffer_check_guards(l, op);
	op->busy = false;
	l->free_op[l->nfree++] = (uint32_t)(op - l->ops);
}

static void complete(struct load *l, const struct completion *c, uint64_t now)
{
	struct op *op = c->part.op;

	if (c->status == BLKIF_RSP_OKAY) {
		part_ok(l, op, &c->part);
	} else {
		if (!op->failed)
			tally_add(&l->v->tally, FAULT_IO, 1,
				  "%s of %" PRIu32 " sectors at %" PRIu64 ": status %d",
				  op_kind_name(op->kind), op->nsect, op->sector, c->status);
		op->failed = true;
		if (op->kind == OP_READ)
			check_read(l, op, &c->part, CHECK_FAILED);
	}
	if (--op->parts_out == 0 && op->seg_next == op->nseg)
		finish_op(l, op, now);
}

/* True: something was reaped. */
static bool reap(struct load *l)
{
	struct completion c;
	bool any = false;

	for (unsigned q = 0; q < l->v->nrings; q++) {
		struct ring *r = &l->v->ring[q];
		uint64_t now = 0;

		while (ring_reap(r, &c)) {
			if (!now)
				now = l->progress_ns = now_ns();
			complete(l, &c, now);
			any = true;
		}
		l->aborted |= r->broken;
	}
	return any;
}

static void issue(struct load *l)
{
	uint64_t now = now_ns();

	if (l->nfree == l->ph->iodepth)
		l->progress_ns = now;
	while (!l->exhausted && !l->aborted) {
		enum choice c;

		if (l->pending && !submit_op(l, l->pending))
			break;
		l->pending = NULL;
		c = choose_op(l, now, &l->pending);
		if (c == EXHAUSTED)
			l->exhausted = true;
		if (c != CHOSEN)
			break;
		l->next_issue_ns = l->ph->think_us ? now + l->ph->think_us * 1000ull : 0;
		buffer_prepare(l, l->pending);
		if (grant_op(l, l->pending)) {
			tally_add(&l->v->tally, FAULT_LOST, 1, "the hypervisor refuses grants");
			l->aborted = true;
			break;
		}
		l->pending->begin_ns = now = now_ns();
	}
	if (l->pending && l->exhausted && submit_op(l, l->pending))
		l->pending = NULL;
	for (unsigned q = 0; q < l->v->nrings; q++)
		ring_push(&l->v->ring[q]);
}

static bool finished(struct load *l)
{
	if (l->v->gone)
		l->aborted = true;
	if (!l->aborted && l->nfree < l->ph->iodepth &&
	    now_ns() - l->progress_ns > l->g->opt->io_timeout_s * 1000000000ull) {
		tally_add(&l->v->tally, FAULT_STALL, 1,
			  "no answer for %" PRIu32 " s with %" PRIu32 " operations in flight",
			  l->g->opt->io_timeout_s, l->ph->iodepth - l->nfree);
		l->aborted = true;
	}
	return l->aborted || (l->exhausted && !l->pending && l->nfree == l->ph->iodepth);
}

static int setup(struct load *l, struct guest *g, struct vbd *v, const struct phase *ph,
		 struct phase_result *res)
{
	uint32_t depth = ph->iodepth, per_slot, max_sect = ph->bs_max / SECTOR_BYTES;
	uint64_t offered = g->opt->no_indirect ? 0 : v->max_indirect;
	struct expect *snap;
	struct seg *seg;

	*l = (struct load){.g = g, .v = v, .ph = ph, .res = res, .nfree = depth};
	snprintf(res->name, sizeof(res->name), "%s", ph->name);
	l->data_pages = buffer_data_pages(ph);
	l->ind_pages = buffer_ind_pages(ph);
	per_slot = l->data_pages + 1 + l->ind_pages;
	if (offered > g->opt->max_segments)
		offered = g->opt->max_segments;
	l->indirect = offered && (offered > DIRECT_SEGMENTS || ph->force_indirect);
	l->max_segs = l->indirect ? (uint32_t)offered : DIRECT_SEGMENTS;
	l->rng = mix64(v->model.seed + v->model.next_gen) ^ mix64(v->connects);
	l->ops = calloc(depth, sizeof(*l->ops));
	l->free_op = calloc(depth, sizeof(*l->free_op));
	l->slab = calloc(depth, l->data_pages * sizeof(*seg) + (ph->overlap ? max_sect * sizeof(*snap) : 0));
	if (!l->ops || !l->free_op || !l->slab)
		return -ENOMEM;
	snap = l->slab;
	seg = (struct seg *)(snap + (ph->overlap ? (size_t)depth * max_sect : 0));
	for (uint32_t i = 0; i < depth; i++) {
		l->free_op[i] = depth - 1 - i;
		l->ops[i].page0 = v->arena_page0 + i * per_slot;
		l->ops[i].seg = seg + (size_t)i * l->data_pages;
		l->ops[i].snap = snap + (size_t)i * max_sect;
	}
	l->progress_ns = now_ns();
	l->deadline_ns = l->progress_ns + ph->runtime_ms * 1000000ull;
	buffer_setup(l);
	return choose_setup(l);
}

static void teardown(struct load *l)
{
	free(l->ops);
	free(l->free_op);
	free(l->slab);
}

/* How long nothing can happen but by an event. 0: do not sleep. */
static int sleep_ms(struct load *loads, unsigned n)
{
	uint64_t now = now_ns(), until = now + SLEEP_MAX_MS * 1000000ull;

	for (unsigned i = 0; i < n; i++) {
		struct load *l = &loads[i];

		for (unsigned q = 0; q < l->v->nrings; q++) {
			if (ring_arm(&l->v->ring[q]))
				return 0;
		}
		if (l->exhausted || l->aborted)
			continue;
		if (l->next_issue_ns && l->next_issue_ns < until)
			until = l->next_issue_ns;
		if (l->ph->runtime_ms && l->deadline_ns < until)
			until = l->deadline_ns;
	}
	return until <= now ? 0 : (int)((until - now + 999999) / 1000000);
}

static int run(struct guest *g, struct load *loads, unsigned n)
{
	for (unsigned turn = 0;; turn++) {
		bool any = false, done = true;
		int err = 0;

		for (unsigned i = 0; i < n; i++)
			issue(&loads[i]);
		for (unsigned i = 0; i < n; i++)
			any |= reap(&loads[i]);
		for (unsigned i = 0; i < n; i++)
			done &= finished(&loads[i]);
		if (done)
			return 0;
		if (any || g->opt->poll) {
			if (turn % TURNS_BETWEEN_LOOKS == 0)
				err = guest_wait(g, 0);
		} else {
			int ms = sleep_ms(loads, n);

			if (ms) {
				err = guest_wait(g, ms);
				loads[0].res->wakeups++;
			}
		}
		if (err)
			return err;
	}
}

int load_run(struct guest *g, const struct phase *ph, struct phase_result *res)
{
	struct load *loads = calloc(g->nvbds, sizeof(*loads));
	uint64_t begin, cpu;
	unsigned n = 0;
	int err = loads ? 0 : -ENOMEM;

	for (; !err && n < g->nvbds; n++)
		err = setup(&loads[n], g, &g->vbd[n], ph, &res[n]);
	begin = now_ns();
	cpu = cpu_ns();
	if (!err)
		err = run(g, loads, n);
	for (unsigned i = 0; i < n; i++) {
		struct vbd *v = loads[i].v;

		res[i].elapsed_ns = now_ns() - begin;
		res[i].cpu_ns = cpu_ns() - cpu;
		for (unsigned q = 0; q < v->nrings; q++) {
			res[i].notifies += v->ring[q].notifies;
			v->ring[q].notifies = 0;
			/* Answers still to come would name operations that are no more. */
			v->ring[q].broken |= loads[i].aborted;
		}
		res[i].cut_short = loads[i].aborted || v->closing || v->gone;
		if (v->closing && !v->gone && !g->opt->expect_close)
			tally_add(&v->tally, FAULT_LOST, 1, "the backend closes in the middle of '%s'",
				  ph->name);
		teardown(&loads[i]);
	}
	free(loads);
	return err;
}
