/* HOT PATH: no malloc, no log, no syscall, no lock. */
/*
 * The clean close (or seal) of a VHD leaf: batmap, then the slack behind the last block.
 *
 *   header with a checksum that no map can have; FLUSH; map; FLUSH; header with the right one
 *   footer at the new end; FLUSH; TRUNCATE; FLUSH
 *
 * Map and checksum lie in different sectors: a power cut between them must leave a batmap that is ignored,
 * not one that lies, and a sum of bytes alone cannot promise that. Blocks are called full when all their bits
 * are committed, which a close guarantees: it begins only when nothing is pending. A failed batmap costs
 * later readers some bitmaps; a failed footer stops the cut.
 *
 * From its begin on the image is sealed, whatever comes of the job: ready slots are forgotten, and no write
 * begins again.
 */
#include "formats/vhd/vhd_write.h"

#include <errno.h>

enum phase { UNTRUST, FLUSH_UNTRUST, MAP, FLUSH_MAP, TRUST, FOOTER, FLUSH_FOOTER, CUT, FLUSH_END, OVER };

/* A map has at most 1 MiB, so its sum is far from what this stands for, with signed bytes too. */
#define CHECKSUM_NEVER 0x7fffffffu

/* What is on disk and still true, and every whole block that is known full. The disk's last block may be a
 * part only: other programs would take a set bit for all of its sectors. */
static bool map_build(const struct vhd *v, uint8_t *map)
{
	uint32_t n = (uint32_t)u64_min(v->n_blocks, (uint64_t)v->batmap_bytes * 8);

	if (v->batmap_valid)
		memcpy(map, v->batmap_disk, v->batmap_bytes);
	for (uint32_t i = 0; i < n; i++)
		if (v->bat[i] != VHD_BAT_FREE && vhd_full_test(v, i) &&
		    vhd_block_sectors(v, i) == v->block_bytes / SECTOR_BYTES)
			vhd_batmap_set(map, i);
	return !v->batmap_valid || memcmp(map, v->batmap_disk, v->batmap_bytes) != 0;
}

static enum phase footer_part(const struct vhd *v, enum phase otherwise)
{
	return v->w->closing.cut ? FOOTER : otherwise;
}

int vhd_closing_begin(struct vhd *v, struct job *job)
{
	struct vhd_write *w = v->w;
	struct vhd_closing *c = &w->closing;

	if (w->commit.running || w->space.grow.running || w->held)
		return -EBUSY;
	w->sealed = true;
	w->space.n_ready = 0;
	v->img.wants = 0;
	c->write_map = v->batmap_hdr_off && map_build(v, c->map);
	c->new_bytes =
	    u64_min(round_up_u64(vhd_used_end(v) + VHD_FOOTER_BYTES, VHD_PAGE_BYTES), v->file_bytes);
	c->cut = !v->img.file->traits.fixed_size && (c->new_bytes < v->file_bytes || w->space.ragged);
	vhd_phase(job, c->write_map ? UNTRUST : footer_part(v, OVER));
	return 0;
}

static unsigned header_act(struct vhd *v, struct job *job, struct meta_act *act, uint32_t checksum)
{
	vhd_batmap_set_checksum(v->w->closing.header, checksum);
	memcpy(act->buf, v->w->closing.header, VHD_BATMAP_HEADER_BYTES);
	return vhd_act(job, act, ACT_WRITE, v->batmap_hdr_off, VHD_BATMAP_HEADER_BYTES, 0);
}

static uint32_t map_checksum(const struct vhd *v)
{
	const struct vhd_closing *c = &v->w->closing;
	struct vhd_batmap_info info;

	vhd_batmap_parse(c->header, &info);
	return vhd_batmap_checksum(c->map, vhd_batmap_covered_bytes(v->footer.curr_size), info.version);
}

static unsigned next_map(const struct vhd *v, struct job *job, struct meta_act *acts, unsigned max)
{
	unsigned n = 0;

	while (n < max && job->cursor < v->batmap_bytes) {
		uint64_t len = u64_min(META_PAGE_BYTES, v->batmap_bytes - job->cursor);

		memcpy(acts[n].buf, v->w->closing.map + job->cursor, len);
		n += vhd_act(job, &acts[n], ACT_WRITE, v->batmap_off + job->cursor, len, 0);
		job->cursor += len;
	}
	return n;
}

static unsigned phase_acts(struct vhd *v, struct job *job, struct meta_act *acts, unsigned max)
{
	const struct vhd_closing *c = &v->w->closing;

	if (job->phase == MAP)
		return next_map(v, job, acts, max);
	if (job->cursor++)
		return 0;
	switch ((enum phase)job->phase) {
	case UNTRUST:
		return header_act(v, job, acts, CHECKSUM_NEVER);
	case TRUST:
		return header_act(v, job, acts, map_checksum(v));
	case FOOTER:
		memcpy(acts->buf, v->footer_raw, VHD_FOOTER_BYTES);
		return vhd_act(job, acts, ACT_WRITE, c->new_bytes - VHD_FOOTER_BYTES, VHD_FOOTER_BYTES, 0);
	case CUT:
		return vhd_act(job, acts, ACT_TRUNCATE, c->new_bytes, 0, 0);
	case FLUSH_UNTRUST:
	case FLUSH_MAP:
	case FLUSH_FOOTER:
	case FLUSH_END:
		return vhd_act(job, acts, ACT_FLUSH, 0, 0, 0);
	case MAP:
	case OVER:
		break;
	}
	return 0;
}

static enum phase phase_after(struct vhd *v, const struct job *job)
{
	enum phase phase = job->phase;

	if (v->img.poisoned)
		return OVER;
	if (job->res && phase <= TRUST)
		return footer_part(v, OVER);
	switch (phase) {
	case TRUST:
		return footer_part(v, FLUSH_END);
	case FOOTER: /* res may be the batmap's; then the end is cut all the same */
		return v->w->closing.cut ? FLUSH_FOOTER : OVER;
	case CUT:
		v->file_bytes = v->w->closing.new_bytes;
		return FLUSH_END;
	case FLUSH_END:
	case OVER:
		return OVER;
	case UNTRUST:
	case FLUSH_UNTRUST:
	case MAP:
	case FLUSH_MAP:
	case FLUSH_FOOTER:
		break;
	}
	return phase + 1;
}

int vhd_closing_next(struct vhd *v, struct job *job, struct meta_act *acts, unsigned max)
{
	while (job->phase != OVER) {
		unsigned n = v->img.poisoned ? 0 : phase_acts(v, job, acts, max);

		if (n)
			return (int)n;
		if (job->running)
			return -EAGAIN;
		vhd_phase(job, phase_after(v, job));
	}
	return 0;
}

void vhd_closing_done(struct vhd *v, const struct job *job, int res)
{
	if (res < 0 && job->phase == FOOTER)
		v->w->closing.cut = false; /* nothing may be cut away that holds the only footer at an end */
}
