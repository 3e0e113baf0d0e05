/*
 * Reading the BAT and proving that it is one: every entry in use names a slot (bitmap and data) inside the
 * file, outside of all metadata, and no two slots overlap. After that, map() may turn an entry into offsets
 * without looking again.
 *
 * The slots are sorted by place, so the proof costs O(n log n) whatever a file claims; the sorted copy (4
 * bytes a block in use) is gone when this returns. Entries beyond the disk's last block must be free:
 * somebody who grows the disk would find them.
 */
#include "formats/vhd/vhd.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/vhd/vhd_read.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define CHUNK_BYTES (1u << 20)

/* A part of the file that no slot may touch. */
struct extent_name {
	uint64_t off, end;
	const char *what;
};

/* A block may reach into the last 512 bytes, where the trailing footer belongs, if no footer is there: that
 * is how a program that was killed leaves a file which it had grown; the bytes are the guest's, and the first
 * opening for writing makes room for a footer. */
static int entry_check_end(const struct vhd *v, uint32_t block, uint32_t sector, struct err *e)
{
	uint64_t off = (uint64_t)sector * SECTOR_BYTES;
	uint64_t end = off + vhd_bitmap_bytes(v->block_bytes) + v->block_bytes;
	const char *path = v->img.file->path;

	if (end > v->file_bytes)
		return err_set(e, -EINVAL,
			       "%s: BAT entry %" PRIu32 " names sector %" PRIu32
			       ", whose block reaches past the end of the file: run blkimg "
			       "check",
			       path, block, sector);
	if (end + VHD_FOOTER_BYTES <= round_up_u64(v->file_bytes, SECTOR_BYTES) || !v->footer_at_end_ok)
		return 0;
	return err_set(e, -EINVAL,
		       "%s: BAT entry %" PRIu32
		       " names a block that lies over the trailing footer: run blkimg check",
		       path, block);
}

/* Reads all entries; v->bat gets those of the disk's blocks. *n_used: how many of them are in use. */
static int bat_load(struct vhd *v, unsigned char *chunk, uint32_t *n_used, struct err *e)
{
	struct backing *b = v->img.file;
	uint32_t entries = v->header.bat_entries;

	for (uint32_t i = 0; i < entries;) {
		uint32_t n = (uint32_t)u64_min(entries - i, CHUNK_BYTES / 4);
		int ret = b->ops->read(b, v->bat_off + (uint64_t)i * 4, chunk, (size_t)n * 4);

		if (ret)
			return err_set(e, ret, "%s: cannot read its BAT: %s", b->path, strerror(-ret));
		for (uint32_t k = 0; k < n; k++, i++) {
			uint32_t sector = be32_load(chunk + (size_t)k * 4);

			if (i < v->n_blocks)
				v->bat[i] = sector;
			if (sector == VHD_BAT_FREE)
				continue;
			if (i >= v->n_blocks)
				return err_set(e, -EINVAL,
					       "%s: BAT entry %" PRIu32
					       " is in use, but the disk ends with block %" PRIu32
					       ": run blkimg check",
					       b->path, i, v->n_blocks - 1);
			ret = entry_check_end(v, i, sector, e);
			if (ret)
				return ret;
			++*n_used;
		}
	}
	return 0;
}

static uint32_t block_at(const struct vhd *v, uint32_t sector, uint32_t not_this)
{
	for (uint32_t i = 0; i < v->n_blocks; i++)
		if (v->bat[i] == sector && i != not_this)
			return i;
	return not_this;
}

/* Sorts in place, by one bit after the other from the top: 32 passes over a file's worst order, and no second
 * copy. */
static void sort_by_bits(uint32_t *a, uint32_t n, uint32_t bit)
{
	uint32_t lo = 0, hi = n;

	if (n < 2 || !bit)
		return;
	while (lo < hi) {
		if (a[lo] & bit) {
			uint32_t swap = a[--hi];

			a[hi] = a[lo];
			a[lo] = swap;
		} else {
			lo++;
		}
	}
	sort_by_bits(a, lo, bit >> 1);
	sort_by_bits(a + lo, n - lo, bit >> 1);
}

static int slots_check_pairs(const struct vhd *v, const uint32_t *sorted, uint32_t n, struct err *e)
{
	uint32_t slot_sectors = (vhd_bitmap_bytes(v->block_bytes) + v->block_bytes) / SECTOR_BYTES;

	for (uint32_t i = 1; i < n; i++)
		if (sorted[i] - sorted[i - 1] < slot_sectors) {
			uint32_t first = block_at(v, sorted[i - 1], UINT32_MAX),
				 second = block_at(v, sorted[i], first);

			return err_set(e, -EINVAL,
				       "%s: BAT entries %" PRIu32 " and %" PRIu32 " overlap (sectors %" PRIu32
				       " and %" PRIu32 "): run blkimg check",
				       v->img.file->path, first, second, sorted[i - 1], sorted[i]);
		}
	return 0;
}

/* sorted[] has no overlaps: the slot before `end` that ends last is the last one that starts there. */
static int slots_check_metadata(const struct vhd *v, const uint32_t *sorted, uint32_t n,
				const struct extent_name *m, struct err *e)
{
	uint64_t slot_bytes = (uint64_t)vhd_bitmap_bytes(v->block_bytes) + v->block_bytes;
	uint32_t lo = 0, hi = n;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if ((uint64_t)sorted[mid] * SECTOR_BYTES < m->end)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo && (uint64_t)sorted[lo - 1] * SECTOR_BYTES + slot_bytes > m->off)
		return err_set(
		    e, -EINVAL,
		    "%s: BAT entry %" PRIu32 " names sector %" PRIu32 ", inside the %s: run blkimg check",
		    v->img.file->path, block_at(v, sorted[lo - 1], UINT32_MAX), sorted[lo - 1], m->what);
	return 0;
}

static int slots_check(struct vhd *v, uint32_t n_used, struct err *e)
{
	struct extent_name meta[3 + VHD_LOCATORS] = {
	    {0, VHD_FOOTER_BYTES, "footer copy"},
	    {v->footer.data_offset, v->footer.data_offset + VHD_HEADER_BYTES, "header"},
	    {v->bat_off, v->bat_off + vhd_bat_bytes(v->header.bat_entries), "BAT"},
	};
	uint32_t *sorted, n = 0;
	bool ascending = true;
	unsigned n_meta = 3;
	int ret = 0;

	for (unsigned i = 0; i < VHD_LOCATORS; i++) {
		const struct vhd_locator *l = &v->header.locators[i];

		if (l->code != VHD_LOC_NONE && l->len_bytes)
			meta[n_meta++] = (struct extent_name){
			    l->off_bytes, l->off_bytes + vhd_locator_room(l->space), "parent locators"};
	}
	if (!n_used)
		return 0;
	sorted = malloc((size_t)n_used * sizeof(*sorted));
	if (!sorted)
		return err_set(e, -ENOMEM, "%s: no memory to check %" PRIu32 " blocks", v->img.file->path,
			       n_used);
	for (uint32_t i = 0; i < v->n_blocks; i++)
		if (v->bat[i] != VHD_BAT_FREE) {
			ascending &= !n || sorted[n - 1] <= v->bat[i];
			sorted[n++] = v->bat[i];
		}
	if (!ascending)
		sort_by_bits(sorted, n, 1u << 31);
	for (unsigned i = 0; i < n_meta && !ret; i++)
		ret = slots_check_metadata(v, sorted, n, &meta[i], e);
	if (!ret)
		ret = slots_check_pairs(v, sorted, n, e);
	free(sorted);
	return ret;
}

int vhd_bat_read(struct vhd *v, struct err *e)
{
	unsigned char *chunk = malloc(CHUNK_BYTES);
	uint32_t n_used = 0;
	int ret;

	v->bat = malloc((size_t)v->n_blocks * sizeof(*v->bat));
	if (!chunk || !v->bat)
		ret = err_set(e, -ENOMEM, "%s: no memory for a BAT of %" PRIu32 " entries", v->img.file->path,
			      v->n_blocks);
	else
		ret = bat_load(v, chunk, &n_used, e);
	free(chunk);
	return ret ? ret : slots_check(v, n_used, e);
}
