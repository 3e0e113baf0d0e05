/* HOT PATH: no malloc, no log, no syscall, no lock. */
/*
 * The chain of images under one disk: who has these bytes? (The index is built in chain_index.c.)
 *
 * A request that the leaf does not answer is looked up in owner[]: for each 2 MiB of the disk the first
 * parent that has anything there. So the depth of a chain costs nothing where one layer owns a unit, or none.
 * Where several own it, the walk goes down from the first, and steps over layers that have nothing in the
 * range.
 *
 * A child sees its parent as a disk of the parent's size and zeros beyond, even where a grandparent is
 * larger: an image i is visible up to the least size of the images above it and its own (visible_bytes).
 * owner[] never names a layer for what it cannot show.
 *
 * Invariant of the walk: `len` only shrinks, and never below one sector: sizes, offsets and all answers are
 * multiples of 512.
 */
#include "blkd/format.h"

#include "blkd/bytes.h"

#define NO_LAYER UINT32_MAX

/* The first parent to ask, for a prefix of the range: *len shrinks to it. NO_LAYER: the prefix reads zero. */
static uint32_t first_owner(const struct parents *p, uint64_t off, uint32_t *len)
{
	uint64_t unit = off / CHAIN_BLOCK_BYTES, next, end = off + *len;
	uint32_t owner;

	if (unit >= p->n_owner)
		return NO_LAYER;
	owner = p->owner[unit++];
	next = unit * CHAIN_BLOCK_BYTES;
	if (owner == CHAIN_NO_OWNER) {
		while (next < end && (unit >= p->n_owner || p->owner[unit] == CHAIN_NO_OWNER)) {
			next = unit >= p->n_owner ? end : next + CHAIN_BLOCK_BYTES;
			unit++;
		}
		*len = (uint32_t)(u64_min(next, end) - off);
		return NO_LAYER;
	}
	if (off >= p->visible_bytes[owner]) {
		*len = (uint32_t)(u64_min(next, end) - off);
		return NO_LAYER;
	}
	*len = (uint32_t)(u64_min(u64_min(next, end), p->visible_bytes[owner]) - off);
	return owner;
}

/* The first parent from i on that may own some of the range, for a prefix of it. */
static uint32_t next_owner(const struct parents *p, uint32_t i, uint64_t off, uint32_t *len)
{
	for (; i < p->n && off < p->visible_bytes[i]; i++) {
		*len = (uint32_t)u64_min(*len, p->visible_bytes[i] - off);
		if (p->img[i]->ops->owns(p->img[i], off, *len))
			return i;
	}
	return NO_LAYER;
}

void chain_map(const struct chain *c, unsigned from, const void *meta, uint64_t off_bytes, uint32_t len_bytes,
	       struct extent *out)
{
	const struct parents *p = c->parents;
	unsigned layer = from;

	for (;;) {
		const struct image *img = chain_image(c, layer);
		uint32_t i = NO_LAYER;

		img->ops->map(img, meta, off_bytes, len_bytes, out);
		out->layer = (uint16_t)layer;
		if (out->kind != EXT_HOLE)
			return;
		meta = NULL;
		len_bytes = out->len_bytes;
		if (p)
			i = layer ? next_owner(p, layer, off_bytes, &len_bytes)
				  : first_owner(p, off_bytes, &len_bytes);
		if (i == NO_LAYER) {
			*out = (struct extent){
			    .kind = EXT_ZERO, .layer = (uint16_t)layer, .len_bytes = len_bytes};
			return;
		}
		layer = i + 1;
	}
}

bool chain_below_is_zero(const struct chain *c, uint64_t off_bytes, uint64_t len_bytes)
{
	const struct parents *p = c->parents;
	uint64_t end;

	if (!p)
		return true;
	end = u64_min(off_bytes + len_bytes, p->visible_bytes[0]);
	for (uint64_t unit = off_bytes / CHAIN_BLOCK_BYTES; unit * CHAIN_BLOCK_BYTES < end; unit++)
		if (p->owner[unit] != CHAIN_NO_OWNER)
			return false;
	return true;
}
