/*
 * The owner index of a chain of parents: for each 2 MiB of the disk, the first layer that has anything there.
 * Built once, when a chain is opened or changed; immutable and shared afterwards.
 *
 * Layers claim units from the nearest one down, and only as far as they can be seen: a layer below a smaller
 * one shows no more than that one's size. Costs one owns() per layer and unclaimed unit, and two bytes a
 * unit.
 */
#include "blkd/format.h"

#include "blkd/bytes.h"
#include "blkd/err.h"

#include <errno.h>
#include <stdlib.h>

/* Gives `layer` the units that no layer above owns anything of, but it does. */
static void units_claim(struct parents *p, unsigned layer)
{
	const struct image *img = p->img[layer];
	uint64_t visible = p->visible_bytes[layer];

	/* NOLINTBEGIN(clang-analyzer-core.UndefinedBinaryOperatorResult): visible is within n_owner. */
	for (uint64_t u = 0, off = 0; off < visible; u++, off += CHAIN_BLOCK_BYTES)
		if (p->owner[u] == CHAIN_NO_OWNER &&
		    img->ops->owns(img, off, u64_min(CHAIN_BLOCK_BYTES, visible - off)))
			p->owner[u] = (uint16_t)layer;
	/* NOLINTEND(clang-analyzer-core.UndefinedBinaryOperatorResult) */
}

int parents_build(struct image **img, unsigned n, struct parents **out, struct err *e)
{
	struct parents *p;

	if (!n || n > CHAIN_MAX_DEPTH)
		return err_set(e, -EINVAL, "a chain of %u parents is beyond the %u that blkd serves", n,
			       CHAIN_MAX_DEPTH);
	p = calloc(1, sizeof(*p));
	if (!p)
		return err_set(e, -ENOMEM, "no memory for a chain");
	p->n = n;
	p->n_owner = (img[0]->size_bytes + CHAIN_BLOCK_BYTES - 1) / CHAIN_BLOCK_BYTES;
	p->img = malloc(n * sizeof(*p->img));
	p->visible_bytes = malloc(n * sizeof(*p->visible_bytes));
	p->owner = malloc(p->n_owner * sizeof(*p->owner));
	if (!p->img || !p->visible_bytes || !p->owner) {
		parents_free(p);
		return err_set(e, -ENOMEM, "no memory for the index of a chain");
	}
	for (uint64_t u = 0; u < p->n_owner; u++)
		p->owner[u] = CHAIN_NO_OWNER;
	for (unsigned i = 0; i < n; i++) {
		p->img[i] = img[i];
		p->visible_bytes[i] =
		    i ? u64_min(p->visible_bytes[i - 1], img[i]->size_bytes) : img[i]->size_bytes;
		units_claim(p, i);
	}
	*out = p;
	return 0;
}

void parents_free(struct parents *p)
{
	if (!p)
		return;
	free(p->img);
	free(p->visible_bytes);
	free(p->owner);
	free(p);
}
