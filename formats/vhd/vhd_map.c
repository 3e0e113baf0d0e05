/* HOT PATH: no malloc, no log, no syscall, no lock. */
/*
 * Where do the bytes of a VHD live? BAT entry -> slot; then, unless the block is known full, its sector
 * bitmap says run by run what is here (DATA) and what is below (HOLE).
 *
 * open() has proved that every BAT entry names a slot within the file, so offsets are computed without
 * checks. An answer covers several blocks only where all of them are free: elsewhere each block has its own
 * bitmap. Runs are found 64 sectors at a time.
 *
 * An image without a parent answers HOLE for absent sectors as a differencing one does: whatever hides behind
 * a clear bit is never relied upon, and the chain turns a hole with nothing below into zeros. Bitmaps have
 * the most significant bit first (open refuses others).
 */
#include "formats/vhd/vhd.h"

#include "blkd/bytes.h"

/* Bits from `from` on that are equal to the first, at most n. from + n <= 4096. */
static uint32_t bit_run(const unsigned char *bitmap, uint32_t from, uint32_t n, bool *set)
{
	uint64_t word = be64_load(bitmap + (from >> 6) * 8) << (from & 63);
	uint64_t flip, differ;
	uint32_t len = 0, step = 64 - (from & 63);

	*set = word >> 63;
	flip = *set ? UINT64_MAX : 0;
	/* Shifting brought zeros in from the right: set runs end there by themselves, clear runs are cut by
	 * step. */
	differ = word ^ flip;
	for (;;) {
		uint32_t same = differ ? (uint32_t)__builtin_clzll(differ) : 64;

		if (same < step || len + step >= n) {
			len += same < step ? same : step;
			return len < n ? len : n;
		}
		len += step;
		differ = be64_load(bitmap + ((from + len) >> 6) * 8) ^ flip;
		step = 64;
	}
}

/* Bytes from off on, at most len, that lie in free blocks. The first block is free. */
static uint32_t free_run(const struct vhd *v, uint64_t off_bytes, uint32_t len_bytes)
{
	uint64_t end = off_bytes + len_bytes;
	uint32_t block = (uint32_t)(off_bytes >> v->block_shift) + 1;

	while (((uint64_t)block << v->block_shift) < end && v->bat[block] == VHD_BAT_FREE)
		block++;
	return (uint32_t)(u64_min((uint64_t)block << v->block_shift, end) - off_bytes);
}

void vhd_map(const struct image *img, const void *meta, uint64_t off_bytes, uint32_t len_bytes,
	     struct extent *out)
{
	const struct vhd *v = vhd_of_const(img);
	uint32_t block = (uint32_t)(off_bytes >> v->block_shift);
	uint32_t in_block = (uint32_t)off_bytes & (v->block_bytes - 1);
	uint64_t bitmap_off, data_off;
	uint32_t run, sectors;
	bool present;

	out->layer = 0;
	out->file_off = 0;
	if (v->bat[block] == VHD_BAT_FREE) {
		out->kind = EXT_HOLE;
		out->len_bytes = free_run(v, off_bytes, len_bytes);
		return;
	}
	run = (uint32_t)u64_min(len_bytes, v->block_bytes - in_block);
	bitmap_off = (uint64_t)v->bat[block] * SECTOR_BYTES;
	data_off = bitmap_off + VHD_BITMAP_BYTES + in_block;
	if (vhd_full_test(v, block)) {
		*out = (struct extent){.kind = EXT_DATA, .len_bytes = run, .file_off = data_off};
		return;
	}
	if (!meta) {
		*out = (struct extent){.kind = EXT_META, .len_bytes = run, .file_off = bitmap_off};
		return;
	}
	sectors = bit_run(meta, in_block / SECTOR_BYTES, run / SECTOR_BYTES, &present);
	out->len_bytes = sectors * SECTOR_BYTES;
	out->kind = present ? EXT_DATA : EXT_HOLE;
	out->file_off = present ? data_off : 0;
}

bool vhd_owns(const struct image *img, uint64_t off_bytes, uint64_t len_bytes)
{
	const struct vhd *v = vhd_of_const(img);
	uint64_t last = (off_bytes + len_bytes - 1) >> v->block_shift;

	for (uint64_t block = off_bytes >> v->block_shift; block <= last && block < v->n_blocks; block++)
		if (v->bat[block] != VHD_BAT_FREE)
			return true;
	return false;
}
