/* HOT PATH: no malloc, no log, no syscall, no lock. */
/*
 * The commit: makes one epoch durable.
 *
 *   volatile backing:       wait for the epoch's data; FLUSH; {bitmaps, BAT sectors} in any order; FLUSH
 *   durable at completion:  wait for the epoch's data; bitmaps; then BAT sectors
 *
 * The first flush puts the data, and zeroed bitmaps of new slots, on the medium before any bit that vouches
 * for it. Bitmaps and BAT may then go in one step: a new block whose BAT entry landed without its bitmap has
 * a bitmap of zeros there, and reads as before. An epoch without changes is one FLUSH: it covers overwrites,
 * and somebody waits for it.
 *
 * What is written are copies: committed bits and those that landed in this epoch; BAT sectors from bat_raw,
 * which gets this epoch's changes when its data has ended. Later changes of the same sectors wait for the
 * next commit; one commit runs at a time, so a sector has at most one write in flight.
 *
 * If anything fails, all changes of the epoch join the open one and are written again by the next commit.
 * bat_raw keeps them: the medium may have them already.
 */
#include "formats/vhd/vhd_write.h"

#include "blkd/log.h"

#include <errno.h>

enum phase { WAIT_DATA, FLUSH_DATA, WRITE_BITMAPS, WRITE_BAT, FLUSH_META, OVER };

#define BAT_SECTOR_OF(block) ((block) >> 7)

void vhd_bat_raw_set(struct vhd_write *w, uint32_t block, uint32_t sector)
{
	be32_store(w->bat_raw + (size_t)block * 4, sector);
}

static struct vhd_bitmap *changed_bitmap(struct list *l, unsigned parity)
{
	return parity ? container_of(l, struct vhd_bitmap, in_epoch[1])
		      : container_of(l, struct vhd_bitmap, in_epoch[0]);
}

int vhd_commit_begin(struct vhd *v, struct job *job)
{
	struct vhd_write *w = v->w;
	struct vhd_epoch *next = vhd_epoch_of(w, w->open + 1);

	if (w->commit.running)
		return -EBUSY;
	CHECK(list_empty(&next->changed) && !next->pieces);
	w->commit.running = true;
	w->commit.asked = false;
	job->epoch = w->open++;
	next->number = w->open;
	vhd_wants_update(v);
	return 0;
}

/* The epoch's data has ended: its list does not change any more. Its BAT changes enter the commit view. */
static void take_changes(struct vhd *v, unsigned parity)
{
	struct vhd_write *w = v->w;
	struct list *l, *changed = &w->epoch[parity].changed;

	w->commit.changes = !list_empty(changed);
	w->commit.next = changed->next;
	w->commit.bat_next = 0;
	list_for_each (l, changed) {
		struct vhd_bitmap *b = changed_bitmap(l, parity);

		if (b->bat == BAT_SAME || b->bat_parity != parity)
			continue;
		vhd_bat_raw_set(w, b->block, b->bat == BAT_SET ? b->sector : VHD_BAT_FREE);
		w->bat_todo[BAT_SECTOR_OF(b->block) / 64] |= 1ull << (BAT_SECTOR_OF(b->block) % 64);
	}
}

static bool bitmap_changed(const struct vhd_bitmap *b, unsigned parity)
{
	for (unsigned i = 0; i < VHD_BITS_BYTES; i += 8) {
		uint64_t landed, committed;

		memcpy(&landed, b->landed[parity] + i, 8);
		memcpy(&committed, b->committed + i, 8);
		if (landed & ~committed)
			return true;
	}
	return false;
}

static unsigned next_bitmaps(struct vhd_write *w, struct job *job, unsigned parity, struct meta_act *acts,
			     unsigned max)
{
	struct list *end = &w->epoch[parity].changed;
	unsigned n = 0;

	for (; n < max && w->commit.next != end; w->commit.next = w->commit.next->next) {
		struct vhd_bitmap *b = changed_bitmap(w->commit.next, parity);

		if (b->bat == BAT_CLEARED || !bitmap_changed(b, parity))
			continue;
		memcpy(acts[n].buf, b->committed, VHD_BITS_BYTES);
		vhd_bits_or(acts[n].buf, b->landed[parity]);
		n += vhd_act(job, &acts[n], ACT_WRITE, (uint64_t)b->sector * SECTOR_BYTES, VHD_BITS_BYTES, 0);
	}
	return n;
}

static unsigned next_bat(struct vhd *v, struct job *job, struct meta_act *acts, unsigned max)
{
	struct vhd_write *w = v->w;
	unsigned n = 0;

	while (n < max && w->commit.bat_next < w->n_bat_sectors) {
		uint32_t s = w->commit.bat_next;
		uint64_t left = w->bat_todo[s / 64] >> (s % 64);

		if (!left) {
			w->commit.bat_next = (s / 64 + 1) * 64;
			continue;
		}
		s += (uint32_t)__builtin_ctzll(left);
		w->bat_todo[s / 64] &= ~(1ull << (s % 64));
		w->commit.bat_next = s + 1;
		memcpy(acts[n].buf, w->bat_raw + (size_t)s * SECTOR_BYTES, SECTOR_BYTES);
		n += vhd_act(job, &acts[n], ACT_WRITE, v->bat_off + (uint64_t)s * SECTOR_BYTES, SECTOR_BYTES,
			     0);
	}
	return n;
}

/* The bitmap's changes of this epoch are durable. */
static void settle_committed(struct vhd *v, struct vhd_bitmap *b, unsigned parity)
{
	struct vhd_write *w = v->w;
	bool freed = false;

	vhd_bits_or(b->committed, b->landed[parity]);
	memset(b->landed[parity], 0, VHD_BITS_BYTES);
	list_del(&b->in_epoch[parity]);
	if (b->bat != BAT_SAME && b->bat_parity == parity) {
		freed = b->bat == BAT_CLEARED;
		b->bat = BAT_SAME;
	}
	vhd_bitmap_settle(v, b);
	if (!freed)
		return;
	vhd_unsettled_set(w, b->block, false);
	vhd_slot_freed(v, b->sector);
	vhd_bitmap_drop(w, b);
}

/* The bitmap's changes of this epoch become changes of the open one. */
static void postpone(struct vhd_write *w, struct vhd_bitmap *b, unsigned parity)
{
	vhd_bits_or(b->landed[!parity], b->landed[parity]);
	memset(b->landed[parity], 0, VHD_BITS_BYTES);
	if (b->bat != BAT_SAME)
		b->bat_parity = !parity;
	list_del(&b->in_epoch[parity]);
	vhd_bitmap_join(w, b, !parity);
}

static void commit_over(struct vhd *v, struct job *job)
{
	struct vhd_write *w = v->w;
	unsigned parity = job->epoch & 1;
	struct list *changed = &w->epoch[parity].changed;

	while (!list_empty(changed)) {
		struct vhd_bitmap *b = changed_bitmap(changed->next, parity);

		if (job->res)
			postpone(w, b, parity);
		else
			settle_committed(v, b, parity);
	}
	memset(w->bat_todo, 0, ((size_t)w->n_bat_sectors / 64 + 1) * sizeof(*w->bat_todo));
	if (!job->res)
		w->durable = job->epoch;
	w->commit.last_res = job->res;
	w->commit.running = false;
	vhd_phase(job, OVER);
	vhd_wants_update(v);
}

/* Acts of the phase that are not handed out yet; 0: none are left. */
static unsigned phase_acts(struct vhd *v, struct job *job, struct meta_act *acts, unsigned max)
{
	switch ((enum phase)job->phase) {
	case FLUSH_DATA:
	case FLUSH_META:
		return job->cursor++ ? 0 : vhd_act(job, acts, ACT_FLUSH, 0, 0, 0);
	case WRITE_BITMAPS:
		return next_bitmaps(v->w, job, job->epoch & 1, acts, max);
	case WRITE_BAT:
		return next_bat(v, job, acts, max);
	case WAIT_DATA:
	case OVER:
		break;
	}
	return 0;
}

/* What comes after a phase of which nothing is left to hand out. */
static enum phase phase_after(const struct vhd *v, const struct job *job)
{
	bool durable = v->img.file->traits.durable_at_completion;

	switch ((enum phase)job->phase) {
	case WAIT_DATA:
		return durable ? WRITE_BITMAPS : FLUSH_DATA;
	case FLUSH_DATA:
		return v->w->commit.changes ? WRITE_BITMAPS : OVER;
	case WRITE_BITMAPS:
		return WRITE_BAT;
	case WRITE_BAT:
		return durable ? OVER : FLUSH_META;
	case FLUSH_META:
	case OVER:
		break;
	}
	return OVER;
}

int vhd_commit_next(struct vhd *v, struct job *job, struct meta_act *acts, unsigned max)
{
	struct vhd_epoch *epoch = vhd_epoch_of(v->w, job->epoch);

	while (job->phase != OVER) {
		unsigned n;

		if (job->phase == WAIT_DATA) {
			if (epoch->pieces)
				return -EAGAIN;
			take_changes(v, job->epoch & 1);
		}
		n = job->res ? 0 : phase_acts(v, job, acts, max);
		if (n)
			return (int)n;
		/* On a volatile backing the BAT goes along with the bitmaps: the flush before made both safe.
		 */
		if (job->running &&
		    (job->res || job->phase != WRITE_BITMAPS || v->img.file->traits.durable_at_completion))
			return -EAGAIN;
		vhd_phase(job, job->res ? OVER : phase_after(v, job));
	}
	if (v->w->commit.running)
		commit_over(v, job);
	return 0;
}
