/*
 * Memory of a VHD leaf: taken once, given back by close. Control path, but for the small cache of bitmaps of
 * a leaf that is only read: nobody tells an image that it is a leaf before its first bitmap comes.
 */
#include "formats/vhd/vhd_write.h"

#include "blkd/err.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define BAT_ENTRIES_PER_SECTOR 128u

/* The file may have changed between open and fence: writing by an old BAT would give one slot to two blocks.
 */
static int bat_reread(struct vhd *v, struct err *e)
{
	struct backing *b = v->img.file;
	struct vhd_write *w = v->w;
	int ret = b->ops->read(b, v->bat_off, w->bat_raw, (size_t)w->n_bat_sectors * SECTOR_BYTES);

	if (ret)
		return err_set(e, ret, "%s: cannot read its BAT: %s", b->path, strerror(-ret));
	for (uint32_t i = 0; i < v->n_blocks; i++)
		if (be32_load(w->bat_raw + (size_t)i * 4) != v->bat[i])
			return err_set(e, -ESTALE,
				       "%s: BAT entry %" PRIu32
				       " has changed since the image was opened: another "
				       "program writes it",
				       b->path, i);
	return 0;
}

int vhd_cache_make(struct vhd *v, unsigned n_bitmaps)
{
	struct vhd_write *w = calloc(1, sizeof(*w));
	unsigned buckets = 64;

	if (!w)
		return -ENOMEM;
	v->w = w;
	list_init(&w->clean);
	list_init(&w->spare);
	list_init(&w->epoch[0].changed);
	list_init(&w->epoch[1].changed);
	w->open = 1;
	w->epoch[1].number = 1;
	w->n_pool = (unsigned)u64_min(n_bitmaps, v->n_blocks);
	/* A quarter stays for clean ones. Where there is one for each block, none can be missing: no commit
	 * is wanted for their sake, and the bound cannot be reached. */
	w->max_held = w->n_pool < v->n_blocks ? w->n_pool - w->n_pool / 4 : 2 * w->n_pool;
	while (buckets < w->n_pool)
		buckets *= 2;
	w->bucket_mask = buckets - 1;
	w->pool = calloc(w->n_pool, sizeof(*w->pool));
	w->bucket = calloc(buckets, sizeof(struct vhd_bitmap *));
	if (w->pool && w->bucket)
		return 0;
	vhd_write_free(v);
	return -ENOMEM;
}

static int write_alloc(struct vhd *v, unsigned n_bitmaps)
{
	struct vhd_write *w;

	vhd_write_free(v);
	if (vhd_cache_make(v, n_bitmaps ? n_bitmaps : VHD_BITMAPS_DEFAULT))
		return -ENOMEM;
	w = v->w;
	w->n_bat_sectors = (v->n_blocks + BAT_ENTRIES_PER_SECTOR - 1) / BAT_ENTRIES_PER_SECTOR;
	w->bat_raw = malloc((size_t)w->n_bat_sectors * SECTOR_BYTES);
	w->bat_todo = calloc(w->n_bat_sectors / 64 + 1, sizeof(*w->bat_todo));
	w->unsettled = calloc(v->n_blocks / 8 + 1, 1);
	w->space.freed = calloc(v->n_blocks, sizeof(*w->space.freed));
	w->closing.map = calloc((size_t)v->batmap_bytes + 1, 1);
	for (uint32_t i = 0; i < v->n_blocks; i++)
		w->space.n_unallocated += v->bat[i] == VHD_BAT_FREE;
	return w->bat_raw && w->bat_todo && w->unsettled && w->space.freed && w->closing.map ? 0 : -ENOMEM;
}

int vhd_write_prepare(struct vhd *v, unsigned n_bitmaps, struct err *e)
{
	struct backing *b = v->img.file;
	int ret;

	if (vhd_prepared(v))
		return 0;
	if (v->img.hidden)
		return err_set(e, -EROFS, "%s: it is marked as a parent (hidden) and never written", b->path);
	if (!b->writable)
		return err_set(e, -EROFS, "%s: it was opened read-only", b->path);
	if (!v->big_endian_bitmap)
		return err_set(e, -EROFS, "%s: its bitmaps have the bit order of tap 0.1, which is only read",
			       b->path);
	if (write_alloc(v, n_bitmaps))
		ret = err_set(e, -ENOMEM, "%s: no memory to write it", b->path);
	else
		ret = bat_reread(v, e);
	if (ret)
		vhd_write_free(v);
	return ret;
}

void vhd_write_free(struct vhd *v)
{
	struct vhd_write *w = v->w;

	if (!w)
		return;
	free(w->pool);
	free(w->bucket);
	free(w->bat_raw);
	free(w->bat_todo);
	free(w->unsettled);
	free(w->space.freed);
	free(w->space.gaps);
	free(w->closing.map);
	free(w);
	v->w = NULL;
}
