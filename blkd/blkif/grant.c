/* HOT PATH: no malloc, no log, no syscall but one batched grant copy per flush (an ioctl on Xen), no lock. */
/*
 * Moving bytes between guest pages and our buffers, by grant copy, in batches over many requests.
 *
 * A batch belongs to a connection and is preallocated. Whoever fills it adds all requests of a turn and
 * flushes once; a batch that is full flushes itself, so that a hypercall has as many segments as there are,
 * up to GRANT_BATCH. Each segment has its own status: one bad gref in the middle fails the request it belongs
 * to and no other (XSA-361, 362, 365). A refusal of the batch as a whole fails all of its requests: no status
 * in it means anything then.
 *
 * The guest may revoke or scribble over its pages while they are copied. For data that harms only the guest;
 * an indirect page is looked at only after it was copied here.
 *
 * Bytes: never more than the sectors that a segment names (XSA-403), and never for a request that failed: the
 * caller skips those.
 */
#include "blkd/blkif/ring.h"

#include "blkd/log.h"

void grant_flush(struct grant_batch *b)
{
	int rc;

	if (b->n == 0)
		return;
	rc = hyp_copy(b->hyp, b->domid, b->seg, b->n);
	for (unsigned i = 0; i < b->n; i++) {
		if (rc < 0 || b->seg[i].status != HYP_OKAY)
			b->owner[i]->copy_failed = true;
	}
	b->n = 0;
}

void grant_add_indirect(struct grant_batch *b, struct blkif_slot *s)
{
	if (b->n == GRANT_BATCH)
		grant_flush(b);
	b->owner[b->n] = s;
	b->seg[b->n++] = (struct hyp_seg){.local = s->segs,
					  .gref = s->indirect_gref,
					  .len_bytes = (uint16_t)(s->n_segs * sizeof(s->segs[0])),
					  .dir = HYP_FROM_GUEST};
}

void grant_add_data(struct grant_batch *b, struct blkif_slot *s, enum hyp_dir dir)
{
	unsigned char *at = s->req.buf.mem;

	if (b->n + s->n_segs > GRANT_BATCH)
		grant_flush(b);
	for (unsigned i = 0; i < s->n_segs; i++) {
		const struct blkif_seg *seg = &s->segs[i];
		unsigned len_bytes = ((unsigned)seg->last_sect - seg->first_sect + 1u) * 512u;

		b->owner[b->n] = s;
		b->seg[b->n++] = (struct hyp_seg){.local = at,
						  .gref = seg->gref,
						  .offset_bytes = (uint16_t)(seg->first_sect * 512u),
						  .len_bytes = (uint16_t)len_bytes,
						  .dir = (uint8_t)dir};
		at += len_bytes;
	}
	DCHECK(at <= (unsigned char *)s->req.buf.mem + s->req.buf.cap_bytes);
}
