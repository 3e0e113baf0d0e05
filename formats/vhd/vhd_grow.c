/* HOT PATH: no malloc, no log, no syscall, no lock. */
/*
 * Space: slots that are ready for new blocks, and the job that makes more of them.
 *
 * A slot is a bitmap sector and the data behind it, data on a 4 KiB boundary. It is offered only when its
 * bitmap is known zero on the medium: a bitmap left there by a commit that a power cut undid, or by the
 * slot's former owner, would vouch for bytes that the new owner never wrote.
 *
 * Where slots come from, in this order:
 * - blocks that were discarded, their cleared BAT entry durable;
 * - gaps: ranges that no BAT entry named at open, slack before the footer included;
 * - the end: the file is extended by a chunk.
 *
 * A grow takes either from the first two or from the end, never from both. From the end: EXTEND; footer at
 * the new end; FLUSH; zero the old footer's sector and what the storage does not promise to be zero; FLUSH;
 * offer. Cut anywhere, the file has its footer at the end, or none there and the copy at offset 0. The data
 * area needs no zeroing: bytes behind clear bits are never looked at.
 *
 * A freed slot whose data is not on a 4 KiB boundary (made by another program) is left to the next opening,
 * which sees the whole gap around it. Slots are lost for this opening, never offered, when zeroing them
 * failed.
 */
#include "formats/vhd/vhd_write.h"

#include <errno.h>

enum phase { EXTEND, FOOTER, FLUSH_FOOTER, ZERO, FLUSH_ZERO, UNDO, OVER };

#define CHUNK_MIN_BYTES (32ull << 20)
#define CHUNK_MAX_BYTES (128ull << 20)
#define SECTOR_LAST	0xfffffffeull /* 0xffffffff marks a free entry */

static uint64_t stride(const struct vhd *v)
{
	return (uint64_t)v->block_bytes + VHD_PAGE_BYTES;
}

/* Slots of one grow: 32 MiB, up to 128 MiB for large files and where slots ran out before the last grow was
 * over; never more than blocks that could want one. */
static unsigned chunk_slots(const struct vhd *v)
{
	uint64_t bytes = u64_max(v->file_bytes / 16, CHUNK_MIN_BYTES << v->w->space.hurry);
	uint64_t wanted = v->w->space.n_unallocated > v->w->space.n_ready
			      ? v->w->space.n_unallocated - v->w->space.n_ready
			      : 0;

	bytes = u64_max(CHUNK_MIN_BYTES, u64_min(bytes, CHUNK_MAX_BYTES));
	return (unsigned)u64_min(u64_min(u64_max(bytes / stride(v), 1), VHD_SLOTS_MAX), wanted);
}

bool vhd_slots_low(const struct vhd *v)
{
	unsigned chunk = chunk_slots(v);

	return chunk && v->w->space.n_ready < chunk;
}

static void want_grow(struct vhd *v, bool want)
{
	v->img.wants = want ? v->img.wants | IMAGE_WANT_GROW : v->img.wants & ~(unsigned)IMAGE_WANT_GROW;
}

bool vhd_slot_take(struct vhd *v, uint32_t *sector)
{
	struct vhd_space *s = &v->w->space;
	bool got = s->n_ready > 0;

	if (got) {
		*sector = s->ready[s->ready_head++ % VHD_READY_MAX];
		s->n_ready--;
		s->n_unallocated--;
	}
	if (!s->grow.running && vhd_slots_low(v))
		want_grow(v, true);
	return got;
}

void vhd_slot_freed(struct vhd *v, uint32_t sector)
{
	struct vhd_space *s = &v->w->space;

	if (!(vhd_data_off(sector) % VHD_PAGE_BYTES) && s->n_freed < v->n_blocks)
		s->freed[s->n_freed++] = sector;
}

/* Cuts the next slot out of a gap. False: none fits. */
static bool gap_cut(const struct vhd *v, struct vhd_gap *g, uint32_t *sector)
{
	uint64_t data = round_up_u64(g->start + SECTOR_BYTES, VHD_PAGE_BYTES);
	uint64_t at = data / SECTOR_BYTES - 1;

	if (data + v->block_bytes > g->end || at > SECTOR_LAST)
		return false;
	g->start = data + v->block_bytes;
	*sector = (uint32_t)at;
	return true;
}

static void slot_add(struct vhd_grow *g, uint32_t sector, bool zero)
{
	g->slot[g->n++] = (struct vhd_slot){.sector = sector, .zero = zero};
}

/* Freed slots and gaps. */
static void take_known(struct vhd *v, unsigned max)
{
	struct vhd_space *s = &v->w->space;
	struct vhd_grow *g = &s->grow;
	uint32_t sector;

	while (g->n < max && s->n_freed)
		slot_add(g, s->freed[--s->n_freed], true);
	while (g->n < max && s->gap_i < s->n_gaps) {
		if (gap_cut(v, &s->gaps[s->gap_i], &sector))
			slot_add(g, sector, true);
		else if (s->gap_i + 1 < s->n_gaps)
			s->gap_i++;
		else
			break; /* the tail stays: it grows */
	}
}

/* Plans an extension by n slots. The tail gap is left as it is until the new footer is durable. */
static bool plan_extension(const struct vhd *v, struct vhd_grow *g, unsigned n)
{
	struct vhd_gap tail = v->w->space.gaps[v->w->space.n_gaps - 1];
	uint32_t sector;

	if (v->img.file->traits.fixed_size)
		return false;
	tail.end = UINT64_MAX;
	for (; g->n < n && gap_cut(v, &tail, &sector);)
		slot_add(g, sector,
			 !v->img.file->traits.zeroes_on_allocate ||
			     (uint64_t)sector * SECTOR_BYTES <
				 u64_max(g->old_bytes, v->w->space.written_end));
	g->new_bytes = round_up_u64(tail.start + VHD_FOOTER_BYTES, VHD_PAGE_BYTES);
	return g->n > 0;
}

int vhd_grow_begin(struct vhd *v, struct job *job)
{
	struct vhd_space *s = &v->w->space;
	struct vhd_grow *g = &s->grow;
	unsigned n;

	if (g->running)
		return -EBUSY;
	if (!s->n_ready && CHUNK_MIN_BYTES << s->hurry < CHUNK_MAX_BYTES && v->file_bytes > CHUNK_MIN_BYTES)
		s->hurry++;
	n = chunk_slots(v);
	g->n = 0;
	g->old_bytes = g->new_bytes = v->file_bytes;
	if (n && s->n_ready + n <= VHD_READY_MAX) {
		take_known(v, n);
		if (!g->n && !plan_extension(v, g, n)) {
			want_grow(v, false);
			return -ENOSPC;
		}
	}
	want_grow(v, false);
	g->running = true;
	vhd_phase(job, g->new_bytes > g->old_bytes ? EXTEND : g->n ? ZERO : OVER);
	return 0;
}

static unsigned zero_act(struct job *job, struct meta_act *act, uint64_t off_bytes)
{
	memset(act->buf, 0, SECTOR_BYTES);
	return vhd_act(job, act, ACT_WRITE, off_bytes, SECTOR_BYTES, 0);
}

/* cursor: 0 the old footer's sector, then 1 + slot. */
static unsigned next_zeroes(const struct vhd_grow *g, struct job *job, struct meta_act *acts, unsigned max)
{
	uint64_t old_footer = g->old_bytes - VHD_FOOTER_BYTES;
	unsigned n = 0;

	for (; n < max && job->cursor <= g->n; job->cursor++) {
		const struct vhd_slot *slot = &g->slot[job->cursor ? job->cursor - 1 : 0];
		uint64_t at = (uint64_t)slot->sector * SECTOR_BYTES;

		if (!job->cursor) {
			if (g->new_bytes > g->old_bytes)
				n += zero_act(job, &acts[n], old_footer);
		} else if (slot->zero && !(g->new_bytes > g->old_bytes && at == old_footer)) {
			n += zero_act(job, &acts[n], at);
		}
	}
	return n;
}

static unsigned phase_acts(struct vhd *v, struct job *job, struct meta_act *acts, unsigned max)
{
	const struct vhd_grow *g = &v->w->space.grow;

	if (job->phase == ZERO)
		return next_zeroes(g, job, acts, max);
	if (job->cursor++)
		return 0;
	switch ((enum phase)job->phase) {
	case EXTEND:
		return vhd_act(job, acts, ACT_EXTEND, g->old_bytes, g->new_bytes - g->old_bytes, 0);
	case FOOTER:
		v->w->space.written_end = u64_max(v->w->space.written_end, g->new_bytes);
		memcpy(acts->buf, v->footer_raw, VHD_FOOTER_BYTES);
		return vhd_act(job, acts, ACT_WRITE, g->new_bytes - VHD_FOOTER_BYTES, VHD_FOOTER_BYTES, 0);
	case FLUSH_FOOTER:
	case FLUSH_ZERO:
		return vhd_act(job, acts, ACT_FLUSH, 0, 0, 0);
	case UNDO: /* an extension may have gone half of the way: the old footer goes back to the end */
		return vhd_act(job, acts, ACT_TRUNCATE, g->old_bytes, 0, 0);
	case ZERO:
	case OVER:
		break;
	}
	return 0;
}

/* The new footer is durable: the tail is longer now, and its new part spoken for. */
static void extended(struct vhd *v)
{
	struct vhd_space *s = &v->w->space;
	struct vhd_gap *tail = &s->gaps[s->n_gaps - 1];

	v->file_bytes = s->grow.new_bytes;
	tail->start = vhd_data_off(s->grow.slot[s->grow.n - 1].sector) + v->block_bytes;
	tail->end = v->file_bytes - VHD_FOOTER_BYTES;
}

static enum phase phase_after(struct vhd *v, const struct job *job)
{
	if (v->img.poisoned)
		return OVER;
	switch ((enum phase)job->phase) {
	case EXTEND:
		return job->res ? UNDO : FOOTER;
	case FOOTER:
		return job->res ? UNDO : FLUSH_FOOTER;
	case FLUSH_FOOTER:
		extended(v);
		return ZERO;
	case ZERO:
		return FLUSH_ZERO;
	case FLUSH_ZERO:
	case UNDO:
	case OVER:
		break;
	}
	return OVER;
}

/* One slot more is what the job is for: others that were lost on the way are no failure of it. */
static void offer(struct vhd *v, struct job *job)
{
	struct vhd_space *s = &v->w->space;

	for (unsigned i = 0; i < s->grow.n; i++)
		if (!s->grow.slot[i].lost) {
			s->ready[(s->ready_head + s->n_ready++) % VHD_READY_MAX] = s->grow.slot[i].sector;
			job->res = 0;
		}
}

int vhd_grow_next(struct vhd *v, struct job *job, struct meta_act *acts, unsigned max)
{
	struct vhd_grow *g = &v->w->space.grow;

	while (job->phase != OVER) {
		unsigned phase = job->phase;
		unsigned n = v->img.poisoned ? 0 : phase_acts(v, job, acts, max);

		if (n)
			return (int)n;
		if (job->running)
			return -EAGAIN;
		vhd_phase(job, phase_after(v, job));
		if (phase == FLUSH_ZERO && !v->img.poisoned)
			offer(v, job);
	}
	g->running = false;
	g->n = 0;
	return 0;
}

void vhd_grow_done(struct vhd *v, struct job *job, const struct meta_act *act, int res)
{
	struct vhd_grow *g = &v->w->space.grow;

	if (res < 0 && job->phase == UNDO)
		v->w->space.ragged = true;
	if (res >= 0 || job->phase != ZERO)
		return;
	for (unsigned i = 0; i < g->n; i++) {
		uint64_t start = (uint64_t)g->slot[i].sector * SECTOR_BYTES;

		/* The sector may be the slot's bitmap, or the old footer anywhere in it. */
		if (act->off_bytes >= start && act->off_bytes < start + SECTOR_BYTES + v->block_bytes)
			g->slot[i].lost = true;
	}
}
