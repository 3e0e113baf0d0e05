/* HOT PATH: no log, no syscall, no lock; no malloc but once, by the first bitmap of a leaf that is only read.
 */
/*
 * The leaf's cache of sector bitmaps, keyed by the file sector they live in.
 *
 * A bitmap is *held* while a piece that will set bits is in flight, while an epoch has changes of it, or
 * while its block is freed; held ones are never evicted, so a block whose bits are not all committed is
 * always found here, whatever v->full says. For a clean one live equals committed, and the medium has the
 * same bytes: it may be forgotten at any time and read again.
 *
 * The executor has at most one read of a metadata sector in flight. Otherwise the slower of two could bring
 * back bits from before a commit; a bitmap that is already here always wins over what meta_put() brings.
 */
#include "formats/vhd/vhd_write.h"

#include "blkd/log.h"

#include <errno.h>

static struct vhd_bitmap **bucket_of(struct vhd_write *w, uint32_t sector)
{
	/* Slots of one image lie a fixed stride apart: multiply, and take the upper bits. */
	return &w->bucket[(uint32_t)(sector * 0x9e3779b1u) >> 8 & w->bucket_mask];
}

struct vhd_bitmap *vhd_bitmap_find(struct vhd_write *w, uint32_t sector)
{
	struct vhd_bitmap *b = *bucket_of(w, sector);

	while (b && b->sector != sector)
		b = b->hash_next;
	return b;
}

static void unhash(struct vhd_write *w, struct vhd_bitmap *b)
{
	struct vhd_bitmap **at = bucket_of(w, b->sector);

	while (*at != b)
		at = &(*at)->hash_next;
	*at = b->hash_next;
}

void vhd_bitmap_drop(struct vhd_write *w, struct vhd_bitmap *b)
{
	CHECK(!b->held);
	unhash(w, b);
	list_del(&b->lru);
	list_add_tail(&w->spare, &b->lru);
}

static struct vhd_bitmap *bitmap_memory(struct vhd_write *w)
{
	struct list *l = list_pop(&w->spare);
	struct vhd_bitmap *b;

	if (l)
		return container_of(l, struct vhd_bitmap, lru);
	if (w->n_taken < w->n_pool)
		return &w->pool[w->n_taken++];
	l = list_pop(&w->clean);
	if (!l)
		return NULL;
	b = container_of(l, struct vhd_bitmap, lru);
	unhash(w, b);
	return b;
}

struct vhd_bitmap *vhd_bitmap_new(struct vhd_write *w, uint32_t sector)
{
	struct vhd_bitmap *b = bitmap_memory(w), **at;

	if (!b)
		return NULL;
	memset(b, 0, sizeof(*b));
	list_init(&b->in_epoch[0]);
	list_init(&b->in_epoch[1]);
	b->sector = sector;
	b->block = VHD_NO_BLOCK;
	b->known = true;
	at = bucket_of(w, sector);
	b->hash_next = *at;
	*at = b;
	list_init(&b->lru);
	list_add_tail(&w->clean, &b->lru);
	return b;
}

void vhd_wants_update(struct vhd *v)
{
	struct vhd_write *w = v->w;
	unsigned wants = 0;

	if (!list_empty(&vhd_epoch_of(w, w->open)->changed))
		wants |= IMAGE_DIRTY;
	/* After a failed commit the next one waits for the idle pace or for a request, not for a loop. */
	if ((w->commit.asked || w->held >= w->max_held - w->max_held / 4) && !w->commit.running &&
	    !w->commit.last_res)
		wants |= IMAGE_WANT_COMMIT;
	v->img.wants = (v->img.wants & IMAGE_WANT_GROW) | wants;
}

void vhd_bitmap_settle(struct vhd *v, struct vhd_bitmap *b)
{
	struct vhd_write *w = v->w;
	bool held = b->pieces || b->freeing || !list_empty(&b->in_epoch[0]) || !list_empty(&b->in_epoch[1]);

	if (held != b->held) {
		b->held = held;
		w->held += held ? 1u : -1u;
		list_del(&b->lru);
		if (!held) {
			DCHECK(!memcmp(b->live, b->committed, VHD_BITS_BYTES));
			list_add_tail(&w->clean, &b->lru);
		}
	}
	vhd_wants_update(v);
}

void vhd_full_update(struct vhd *v, const struct vhd_bitmap *b)
{
	if (!vhd_full_test(v, b->block) && vhd_bits_all(b->live, 0, vhd_block_sectors(v, b->block)))
		vhd_full_set(v, b->block, true);
}

const void *vhd_meta_get(struct image *img, uint64_t key)
{
	struct vhd_write *w = vhd_of(img)->w;
	struct vhd_bitmap *b = w ? vhd_bitmap_find(w, (uint32_t)(key / SECTOR_BYTES)) : NULL;

	if (!b || !b->known)
		return NULL;
	if (!b->held) {
		list_del(&b->lru);
		list_add_tail(&w->clean, &b->lru);
	}
	return b->live;
}

int vhd_meta_put(struct image *img, uint64_t key, const void *buf, int res)
{
	struct vhd_write *w = vhd_of(img)->w;
	struct vhd_bitmap *b;

	if (key % SECTOR_BYTES || key / SECTOR_BYTES >= VHD_BAT_FREE)
		return -EINVAL;
	if (res < 0)
		return 0;
	if (!w && vhd_cache_make(vhd_of(img), VHD_BITMAPS_READ_ONLY))
		return -ENOMEM;
	w = vhd_of(img)->w;
	b = vhd_bitmap_find(w, (uint32_t)(key / SECTOR_BYTES));
	if (b && b->known)
		return 0;
	if (!b)
		b = vhd_bitmap_new(w, (uint32_t)(key / SECTOR_BYTES));
	if (!b)
		return -EBUSY;
	memcpy(b->live, buf, VHD_BITS_BYTES);
	memcpy(b->committed, buf, VHD_BITS_BYTES);
	b->known = true;
	return 0;
}
