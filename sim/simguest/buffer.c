/*
 * Buffers of operations. A slot owns data pages, one guard page that is never part of a request, and indirect
 * pages. Bytes of the pages that no segment covers hold the poison, and must still hold it at the end: a
 * backend that copies more than a segment's sectors is caught. A read's own sectors are poisoned too, so that
 * "answered OK but nothing was copied" cannot look like data.
 */
#include "sim/simguest/op.h"

#include <inttypes.h>
#include <string.h>

#include "sim/simguest/rng.h"
#include "sim/simproto.h"

#define PAGE_SECTORS (SIM_PAGE_BYTES / SECTOR_BYTES)

uint32_t buffer_data_pages(const struct phase *ph)
{
	uint32_t pages = (ph->bs_max + SIM_PAGE_BYTES - 1) / SIM_PAGE_BYTES;

	return ph->unaligned ? pages * 2 + 1 : pages;
}

uint32_t buffer_ind_pages(const struct phase *ph)
{
	uint32_t pages = buffer_data_pages(ph);

	return ph->force_indirect ? pages : (pages + DIRECT_SEGMENTS - 1) / DIRECT_SEGMENTS;
}

static uint8_t *page_at(const struct load *l, uint32_t page)
{
	return l->g->hyp.mem + (size_t)page * SIM_PAGE_BYTES;
}

void buffer_setup(struct load *l)
{
	for (uint32_t i = 0; i < l->ph->iodepth; i++)
		memset(page_at(l, l->ops[i].page0), MODEL_POISON,
		       (size_t)(l->data_pages + 1) * SIM_PAGE_BYTES);
}

uint8_t *buffer_segment(const struct load *l, const struct op *op, uint32_t i)
{
	return page_at(l, op->page0 + i) + (size_t)op->seg[i].first * SECTOR_BYTES;
}

/* Whole pages from the first on, as the block layer's bios mostly are. */
static void lay_aligned(struct op *op)
{
	uint32_t left = op->nsect;

	for (op->nseg = 0; left; op->nseg++) {
		uint32_t n = left < PAGE_SECTORS ? left : PAGE_SECTORS;

		op->seg[op->nseg] = (struct seg){.start = op->nsect - left, .first = 0, .count = (uint8_t)n};
		left -= n;
	}
}

/* Any part of each page, but never so little that the rest would not fit the rest of the pages. */
static void lay_unaligned(struct load *l, struct op *op)
{
	uint32_t left = op->nsect, sector_unit = (uint32_t)(l->v->sector_size / SECTOR_BYTES);

	for (op->nseg = 0; left; op->nseg++) {
		uint32_t pages_after = l->data_pages - op->nseg - 1, room_after = pages_after * PAGE_SECTORS,
			 least, n;

		least = left > room_after ? left - room_after : 1;
		n = left < PAGE_SECTORS ? left : PAGE_SECTORS;
		n = least + (uint32_t)rng_below(&l->rng, n - least + 1);
		n -= n % sector_unit;
		if (n < sector_unit)
			n = sector_unit;
		op->seg[op->nseg] = (struct seg){.start = op->nsect - left, .count = (uint8_t)n};
		op->seg[op->nseg].first = (uint8_t)rng_below(&l->rng, PAGE_SECTORS - n + 1);
		left -= n;
	}
}

void buffer_prepare(struct load *l, struct op *op)
{
	bool guard = l->ph->verify, whole = l->ph->unaligned || op->kind == OP_READ;

	op->nseg = 0;
	if (op->kind == OP_TRIM || op->nsect == 0)
		return;
	if (l->ph->unaligned)
		lay_unaligned(l, op);
	else
		lay_aligned(op);
	for (uint32_t i = 0; i < op->nseg; i++) {
		const struct seg *s = &op->seg[i];

		if (guard && (whole || s->count < PAGE_SECTORS))
			memset(page_at(l, op->page0 + i), MODEL_POISON, SIM_PAGE_BYTES);
		if (op->kind != OP_READ)
			model_fill(&l->v->model, buffer_segment(l, op, i), op->sector + s->start, s->count,
				   op->gen);
	}
}

static bool poisoned(const uint8_t *p, size_t len)
{
	return len == 0 || (p[0] == MODEL_POISON && !memcmp(p, p + 1, len - 1));
}

void buffer_check_guards(struct load *l, struct op *op)
{
	uint8_t *guard = page_at(l, op->page0 + l->data_pages);
	bool bad = false;

	if (!l->ph->verify || op->nseg == 0)
		return;
	for (uint32_t i = 0; i < op->nseg; i++) {
		const uint8_t *page = page_at(l, op->page0 + i);
		size_t from = (size_t)op->seg[i].first * SECTOR_BYTES,
		       to = from + (size_t)op->seg[i].count * SECTOR_BYTES;

		bad |= !poisoned(page, from) || !poisoned(page + to, SIM_PAGE_BYTES - to);
	}
	if (!poisoned(guard, SIM_PAGE_BYTES)) {
		bad = true;
		memset(guard, MODEL_POISON, SIM_PAGE_BYTES);
	}
	if (bad)
		tally_add(&l->v->tally, FAULT_PROTOCOL, 1,
			  "%s of %" PRIu32 " sectors at %" PRIu64 ": memory outside its segments was touched",
			  op_kind_name(op->kind), op->nsect, op->sector);
}

/* The backend reads a write's pages; it has no business in changing them. */
void buffer_check_written(struct load *l, struct op *op, uint32_t first, uint32_t count)
{
	for (uint32_t i = first; l->ph->verify && i < first + count; i++) {
		const struct seg *s = &op->seg[i];

		for (uint32_t k = 0; k < s->count; k++) {
			if (pattern_is(buffer_segment(l, op, i) + (size_t)k * SECTOR_BYTES, l->v->model.seed,
				       op->sector + s->start + k, op->gen))
				continue;
			tally_add(&l->v->tally, FAULT_PROTOCOL, 1,
				  "the buffer of a write at sector %" PRIu64 " was changed", op->sector);
			return;
		}
	}
}
