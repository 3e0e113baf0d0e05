/*
 * Replay of the in-flight journal's metadata records, before the first write of an opening. Control path:
 * blocking, allocates.
 *
 * Records say what answered writes depend on and no commit is known to have made durable. The image may have
 * none, some or all of it: the commit that ran when the process died may have landed in part. So only the end
 * of the story counts: of each block, what its records after its last FREED say. The entry on disk may be
 * free or already the one that they name; only where the records themselves freed the block may it be
 * another. Everything is checked first; one record that contradicts the image, and nothing is changed.
 *
 * Bits of a block that has its slot already are added to the bitmap on the medium. For a slot that no BAT
 * entry names, the bitmap on the medium is not looked at: it may have bits of writes that nobody was told of.
 */
#include "formats/vhd/vhd_write.h"

#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

/* What the records say of one block. */
struct fate {
	uint32_t block;
	uint32_t last_freed; /* 1 + index of the last FREED record; 0: none */
	uint32_t sector;     /* of the records after it; VHD_BAT_FREE: there are none */
};

struct replay {
	const struct meta_record *rec;
	unsigned n;
	struct fate *fate; /* ascending by block */
	uint32_t n_fates;
};

static int refuse(const struct vhd *v, struct err *e, unsigned i, uint32_t block, const char *why)
{
	return err_set(e, -EINVAL, "%s: journal record %u (block %" PRIu32 ") contradicts the image: %s",
		       v->img.file->path, i, block, why);
}

static int check_record(const struct vhd *v, const struct meta_record *r, unsigned i, struct err *e)
{
	uint64_t start = (uint64_t)r->sector * SECTOR_BYTES;

	if (r->block >= v->n_blocks)
		return refuse(v, e, i, r->block, "the disk has no such block");
	if (r->sector == META_RECORD_FREED) {
		if (r->count || r->first)
			return refuse(v, e, i, r->block, "a freed block has no sectors");
		if (vhd_batmap_disk_test(v, r->block))
			return refuse(v, e, i, r->block, "it frees a block that the batmap calls full");
		return 0;
	}
	if ((uint32_t)r->first + r->count > vhd_block_sectors(v, r->block))
		return refuse(v, e, i, r->block, "its sectors reach past the end of the block");
	if (start < v->meta_end)
		return refuse(v, e, i, r->block, "its slot lies over the image's metadata");
	if (vhd_data_off(r->sector) + v->block_bytes + VHD_FOOTER_BYTES > v->file_bytes)
		return refuse(v, e, i, r->block, "its slot reaches past the end of the file");
	if (r->sector != v->bat[r->block] && vhd_data_off(r->sector) % VHD_PAGE_BYTES)
		return refuse(v, e, i, r->block, "its slot is not where blkd puts one");
	return 0;
}

static int cmp_u32(const void *a, const void *b)
{
	uint32_t x, y;

	memcpy(&x, a, sizeof(x)); /* struct fate begins with its block */
	memcpy(&y, b, sizeof(y));
	return (x > y) - (x < y);
}

static struct fate *fate_of(const struct replay *p, uint32_t block)
{
	struct fate *f = bsearch(&block, p->fate, p->n_fates, sizeof(*p->fate), cmp_u32);

	CHECK(f); /* every record has one */
	return f;
}

/* One fate a block; p->fate has room for n. */
static void fates_collect(struct replay *p)
{
	uint32_t n = 0;

	for (unsigned i = 0; i < p->n; i++)
		p->fate[i] = (struct fate){.block = p->rec[i].block, .sector = VHD_BAT_FREE};
	qsort(p->fate, p->n, sizeof(*p->fate), cmp_u32);
	for (unsigned i = 0; i < p->n; i++)
		if (!i || p->fate[i].block != p->fate[n - 1].block)
			p->fate[n++] = p->fate[i];
	p->n_fates = n;
	for (unsigned i = 0; i < p->n; i++)
		if (p->rec[i].sector == META_RECORD_FREED)
			fate_of(p, p->rec[i].block)->last_freed = i + 1;
}

static int fates_judge(const struct vhd *v, struct replay *p, struct err *e)
{
	for (unsigned i = 0; i < p->n; i++) {
		const struct meta_record *r = &p->rec[i];
		struct fate *f = fate_of(p, r->block);

		if (i < f->last_freed)
			continue;
		if (f->sector != VHD_BAT_FREE && f->sector != r->sector)
			return refuse(v, e, i, r->block, "an earlier record names another slot for it");
		f->sector = r->sector;
		if (!f->last_freed && v->bat[r->block] != VHD_BAT_FREE && v->bat[r->block] != r->sector)
			return refuse(v, e, i, r->block, "the block has another slot");
	}
	return 0;
}

/* No two blocks share a byte once all fates have come true. */
static int fates_check_overlap(const struct vhd *v, const struct replay *p, struct err *e)
{
	uint32_t slot_sectors = 1 + v->block_bytes / SECTOR_BYTES, n = 0;
	uint32_t *sorted = malloc(((size_t)v->n_blocks + 1) * sizeof(*sorted));
	int ret = 0;

	if (!sorted)
		return err_set(e, -ENOMEM, "%s: no memory to check journal records", v->img.file->path);
	for (uint32_t i = 0, k = 0; i < v->n_blocks; i++) {
		uint32_t sector = v->bat[i];

		if (k < p->n_fates && p->fate[k].block == i)
			sector = p->fate[k++].sector;
		if (sector != VHD_BAT_FREE)
			sorted[n++] = sector;
	}
	qsort(sorted, n, sizeof(*sorted), cmp_u32);
	for (uint32_t i = 1; i < n && !ret; i++)
		if (sorted[i] - sorted[i - 1] < slot_sectors)
			ret = err_set(
			    e, -EINVAL,
			    "%s: the journal's records contradict the image: two blocks would share the slot "
			    "at sector %" PRIu32,
			    v->img.file->path, sorted[i]);
	free(sorted);
	return ret;
}

/* Is there anything to change for this block? */
static bool fate_is_new(const struct vhd *v, const struct fate *f)
{
	return f->sector == VHD_BAT_FREE ? v->bat[f->block] != VHD_BAT_FREE
					 : v->bat[f->block] != f->sector || !vhd_full_test(v, f->block);
}

/* Brings the bitmap that the fate is about into memory: empty for a new slot, else from the medium. */
static int fate_load(struct vhd *v, const struct fate *f, struct err *e)
{
	struct backing *file = v->img.file;
	uint32_t sector = f->sector == VHD_BAT_FREE ? v->bat[f->block] : f->sector;
	struct vhd_bitmap *b = vhd_bitmap_find(v->w, sector);
	unsigned char bits[VHD_BITS_BYTES] = {0};
	int ret = 0;

	if (b)
		vhd_bitmap_drop(v->w, b);
	if (v->bat[f->block] == sector)
		ret = file->ops->read(file, (uint64_t)sector * SECTOR_BYTES, bits, sizeof(bits));
	if (ret)
		return err_set(e, ret, "%s: cannot read the bitmap of block %" PRIu32 ": %s", file->path,
			       f->block, strerror(-ret));
	b = vhd_bitmap_new(v->w, sector);
	CHECK(b); /* there is one for each fate */
	b->block = f->block;
	memcpy(b->committed, bits, sizeof(bits));
	memcpy(b->live, bits, sizeof(bits));
	return 0;
}

static void fate_apply(struct vhd *v, const struct fate *f)
{
	struct vhd_write *w = v->w;
	uint32_t old = v->bat[f->block];
	struct vhd_bitmap *b = vhd_bitmap_find(w, f->sector == VHD_BAT_FREE ? old : f->sector);

	if (old != f->sector) {
		w->space.n_unallocated += f->sector == VHD_BAT_FREE;
		w->space.n_unallocated -= old == VHD_BAT_FREE;
		v->bat[f->block] = f->sector;
		vhd_full_set(v, f->block, false);
		b->bat = f->sector == VHD_BAT_FREE ? BAT_CLEARED : BAT_SET;
		b->bat_parity = w->open & 1;
		vhd_unsettled_set(w, f->block, f->sector == VHD_BAT_FREE);
	}
	vhd_bitmap_join(w, b, w->open & 1);
	vhd_bitmap_settle(v, b);
}

static void bits_apply(struct vhd *v, const struct meta_record *r)
{
	struct vhd_bitmap *b = vhd_bitmap_find(v->w, r->sector);

	if (!b || !b->held) /* of a block that is full on disk */
		return;
	vhd_bits_set(b->live, r->first, r->count);
	vhd_bits_set(b->landed[v->w->open & 1], r->first, r->count);
	vhd_full_update(v, b);
}

static int replay_run(struct vhd *v, struct replay *p, struct err *e)
{
	int ret = 0;

	for (uint32_t i = 0; i < p->n_fates && !ret; i++)
		if (fate_is_new(v, &p->fate[i]))
			ret = fate_load(v, &p->fate[i], e);
	if (ret)
		return ret;
	for (uint32_t i = 0; i < p->n_fates; i++)
		if (fate_is_new(v, &p->fate[i]))
			fate_apply(v, &p->fate[i]);
	for (unsigned i = 0; i < p->n; i++)
		if (i >= fate_of(p, p->rec[i].block)->last_freed)
			bits_apply(v, &p->rec[i]);
	return 0;
}

int vhd_dirty_replay(struct image *img, const struct meta_record *rec, unsigned n, struct err *e)
{
	struct vhd *v = vhd_of(img);
	struct replay p = {.rec = rec, .n = n};
	int ret = 0;

	for (unsigned i = 0; i < n && !ret; i++)
		ret = check_record(v, &rec[i], i, e);
	if (ret)
		return ret;
	p.fate = calloc((size_t)n + 1, sizeof(*p.fate));
	if (!p.fate)
		return err_set(e, -ENOMEM, "%s: no memory to check journal records", img->file->path);
	fates_collect(&p);
	ret = fates_judge(v, &p, e);
	if (!ret)
		ret = fates_check_overlap(v, &p, e);
	if (!ret)
		ret = vhd_write_prepare(v, p.n_fates > VHD_BITMAPS_DEFAULT ? p.n_fates : 0, e);
	if (!ret && (img->writing || v->w->sealed || v->w->held || v->w->n_pool < p.n_fates))
		ret = err_set(e, -EINVAL, "%s: records are replayed once, before anything is written",
			      img->file->path);
	if (!ret)
		ret = replay_run(v, &p, e);
	free(p.fate);
	return ret;
}
