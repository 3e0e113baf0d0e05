/*
 * From an operation to ring requests. As blkfront: up to 11 segments go into the request itself, more into an
 * indirect page, and what is larger than the backend takes becomes several requests, which may be answered in
 * any order.
 */
#include "sim/simguest/op.h"

#include <string.h>

#include <xen/xen.h>
#include <xen/io/blkif.h>

#include "sim/simproto.h"

static const uint8_t wire_op[OP_KINDS] = {
    [OP_READ] = BLKIF_OP_READ,
    [OP_WRITE] = BLKIF_OP_WRITE,
    [OP_TRIM] = BLKIF_OP_DISCARD,
    [OP_FLUSH] = BLKIF_OP_FLUSH_DISKCACHE,
    [OP_BARRIER] = BLKIF_OP_WRITE_BARRIER,
};

static struct segment segment_of(const struct op *op, uint32_t i)
{
	const struct seg *s = &op->seg[i];

	return (struct segment){.gref = op->page0 + i + GREF_FIRST,
				.first_sect = s->first,
				.last_sect = (uint8_t)(s->first + s->count - 1)};
}

static void put_indirect(struct load *l, struct op *op, uint8_t *entry, uint64_t id, uint32_t nseg)
{
	uint32_t page = op->page0 + l->data_pages + 1 + op->parts_made, gref = page + GREF_FIRST;
	uint8_t *table = l->g->hyp.mem + (size_t)page * SIM_PAGE_BYTES;

	for (uint32_t i = 0; i < nseg; i++) {
		struct segment s = segment_of(op, op->seg_next + i);

		abi_put_segment(table + (size_t)i * 8, &s);
	}
	abi_put_indirect(l->g->opt->abi, entry, wire_op[op->kind], id, (uint16_t)l->v->spec->devid,
			 op->sector + op->seg[op->seg_next].start, nseg, &gref, 1);
}

static void put_part(struct load *l, struct op *op, struct ring *r)
{
	const struct abi *abi = l->g->opt->abi;
	uint16_t handle = (uint16_t)l->v->spec->devid;
	uint8_t entry[ABI_ENTRY_MAX];
	struct segment seg[DIRECT_SEGMENTS];
	uint32_t nseg = op->nseg - op->seg_next;
	uint64_t id;
	struct shadow *s = ring_claim(r, &id);

	if (nseg > l->max_segs)
		nseg = l->max_segs;
	if (op->kind == OP_TRIM)
		abi_put_discard(abi, entry, id, handle, op->sector, op->nsect);
	else if (l->indirect && op->kind != OP_BARRIER && nseg &&
		 (nseg > DIRECT_SEGMENTS || l->ph->force_indirect))
		put_indirect(l, op, entry, id, nseg);
	else {
		for (uint32_t i = 0; i < nseg; i++)
			seg[i] = segment_of(op, op->seg_next + i);
		abi_put_direct(abi, entry, wire_op[op->kind], id, handle,
			       nseg ? op->sector + op->seg[op->seg_next].start : 0, seg, nseg);
	}
	s->answer_op = wire_op[op->kind];
	s->op = op;
	s->seg_first = op->seg_next;
	s->seg_count = nseg;
	op->seg_next += nseg;
	op->parts_made++;
	op->parts_out++;
	l->res->ring_requests++;
	ring_put(r, entry);
}

bool submit_op(struct load *l, struct op *op)
{
	struct ring *r = &l->v->ring[op->queue];

	while (op->parts_made == 0 || op->seg_next < op->nseg) {
		if (ring_full(r))
			return false;
		put_part(l, op, r);
	}
	return true;
}
