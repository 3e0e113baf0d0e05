/*
 * The checker's second half: where the metadata of a dynamic or differencing image lies, what its parent
 * locators say, whether each block has a place of its own, and whether the batmap may be believed. Blocks
 * were sorted by the scan, so overlaps are neighbours: O(n log n).
 */
#include "formats/vhd/vhd_check_parts.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/vhd/vhd_names.h"

#include <inttypes.h>
#include <stdio.h>

/* At most 13 regions: all pairs. A pair of locators may share their bytes: some tools store one text once. */
static void check_regions(struct check_run *run, const struct vhd_scan *s)
{
	for (unsigned i = 0; i < s->n_regions; i++) {
		const struct scan_region *a = &s->regions[i];

		if (a->end > s->limit)
			check_report(run, CHECK_META_BEYOND_END, a->off,
				     "metadata before the trailing footer",
				     "%s from %" PRIu64 " to %" PRIu64 ", the footer at %" PRIu64, a->name,
				     a->off, a->end, s->limit);
		for (unsigned j = i + 1; j < s->n_regions; j++) {
			const struct scan_region *b = &s->regions[j];
			char want[96];

			if (a->off >= b->end || b->off >= a->end || (a->name == b->name && a->off == b->off))
				continue;
			snprintf(want, sizeof(want), "%s outside %" PRIu64 " to %" PRIu64, b->name, a->off,
				 a->end);
			check_report(run, CHECK_META_OVERLAP, b->off, want,
				     "%s from %" PRIu64 " to %" PRIu64 " over %s", b->name, b->off, b->end,
				     a->name);
		}
	}
}

/* ---- parent locators ---- */

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* *leads: it can be followed. */
static int check_locator_text(struct check_run *run, const struct vhd_scan *s, unsigned i, const char *name,
			      bool *leads, struct err *e)
{
	const struct vhd_locator *l = &s->header.locators[i];
	unsigned char raw[VHD_LOCATOR_MAX_BYTES];
	char path[VHD_NAME_ROOM_BYTES];
	struct err why = ERR_INIT;
	int ret;

	if (l->code != VHD_LOC_MACX && l->code != VHD_LOC_W2KU && l->code != VHD_LOC_W2RU)
		return 0;
	if (l->len_bytes > sizeof(raw)) {
		check_report(run, CHECK_LOCATOR_TEXT, l->off_bytes, "at most 8192 bytes",
			     "locator %u of %" PRIu32 " bytes", i, l->len_bytes);
		return 0;
	}
	ret = s->file->ops->read(s->file, l->off_bytes, raw, l->len_bytes);
	if (ret)
		return err_set(e, ret, "%s: cannot read parent locator %u at offset %" PRIu64 ": %s",
			       s->file->path, i, l->off_bytes, strerror(-ret));
	if (vhd_locator_decode(l->code, raw, l->len_bytes, path, sizeof(path), &why)) {
		check_report(run, CHECK_LOCATOR_TEXT, l->off_bytes, "a path", "locator %u: %.100s", i,
			     why.text);
		return 0;
	}
	*leads |= path[0] != 0;
	if (path[0] && name[0] && strcmp(base_name(path), name)) {
		char want[160];

		snprintf(want, sizeof(want), "%.150s", name);
		check_report(run, CHECK_LOCATOR_NAME, l->off_bytes, want, "%.150s", base_name(path));
	}
	return 0;
}

static int check_locators(struct check_run *run, const struct vhd_scan *s, struct err *e)
{
	uint64_t base = s->footer->data_offset + offsetof(struct vhd_header_disk, locators);
	const struct vhd_header_disk *d = (const void *)s->header_raw;
	char name[VHD_PARENT_NAME_BYTES * 2] = "";
	struct err why = ERR_INIT;
	bool leads = false;

	if (!bytes_are_zero(s->header.parent_name, VHD_PARENT_NAME_BYTES) &&
	    vhd_parent_name_decode(s->header.parent_name, name, sizeof(name), &why)) {
		check_report(run, CHECK_LOCATOR_TEXT,
			     s->footer->data_offset + offsetof(struct vhd_header_disk, parent_name),
			     "a file name", "%.120s", why.text);
		name[0] = 0;
	}
	for (unsigned i = 0; i < VHD_LOCATORS; i++) {
		const struct vhd_locator *l = &s->header.locators[i];
		uint64_t at = base + i * sizeof(struct vhd_locator_disk);
		uint32_t room = vhd_locator_room(l->space);
		int ret;

		if (!vhd_locator_code_known(l->code)) {
			check_report(run, CHECK_LOCATOR_CODE, at, "W2ru, W2ku, MacX, Mac, Wi2r, Wi2k or none",
				     "0x%08" PRIx32, l->code);
			continue;
		}
		if (!bytes_are_zero(d->locators[i].reserved, 4))
			check_report(run, CHECK_LOCATOR_RESERVED, at, "zeros", "other bytes in locator %u",
				     i);
		if (l->code == VHD_LOC_NONE)
			continue;
		if (l->len_bytes > room || !room) {
			check_report(run, CHECK_LOCATOR_ROOM, at, "a length within its room",
				     "locator %u: %" PRIu32 " bytes in %" PRIu32, i, l->len_bytes, room);
			continue;
		}
		if (l->off_bytes < VHD_FOOTER_BYTES || l->off_bytes > s->file_bytes ||
		    room > s->file_bytes - l->off_bytes) {
			check_report(run, CHECK_META_BEYOND_END, at, "a parent locator within the file",
				     "locator %u, %" PRIu32 " bytes at %" PRIu64, i, room, l->off_bytes);
			continue;
		}
		ret = check_locator_text(run, s, i, name, &leads, e);
		if (ret)
			return ret;
	}
	if (s->footer->type == VHD_DIFFERENCING && !leads && !name[0])
		check_report(run, CHECK_LOCATOR_NONE, base, "a path to the parent",
			     "none that can be followed");
	return 0;
}

/* ---- blocks ---- */

static void check_blocks(struct check_run *run, const struct vhd_scan *s)
{
	uint64_t table = s->header.table_offset;
	uint32_t before = SCAN_BAT_FREE;
	char want[96];

	for (uint32_t i = 0; i < s->n_order; i++) {
		uint32_t entry = (uint32_t)s->order[i];
		uint64_t off = scan_block_off(s, entry), end = scan_block_end(s, entry),
			 at = table + 4ull * entry;
		const char *region = scan_in_region(s, off, end);

		if (entry >= s->n_blocks)
			check_report(run, CHECK_BLOCK_BEYOND_SIZE, at, "free",
				     "block %" PRIu32 " at %" PRIu64, entry, off);
		if (entry == s->cut_entry) {
			snprintf(want, sizeof(want), "a file of at least %" PRIu64 " bytes", end);
			check_report(run, CHECK_BLOCK_CUT_SHORT, at, want,
				     "%" PRIu64 " bytes, block %" PRIu32, s->file_bytes, entry);
		} else if (end > s->limit) {
			snprintf(want, sizeof(want), "an end at or before %" PRIu64, s->limit);
			check_report(run, CHECK_BLOCK_BEYOND_END, at, want,
				     "block %" PRIu32 " from %" PRIu64 " to %" PRIu64, entry, off, end);
		}
		/* The batmap is a region too, but what lies over it is told as a clobbered batmap. */
		if (region && scan_bad(s, entry))
			check_report(run, CHECK_BLOCK_IN_META, at, "a place outside metadata",
				     "block %" PRIu32 " at %" PRIu64 " over %s", entry, off, region);
		if (before != SCAN_BAT_FREE && off < scan_block_end(s, before))
			check_report(run, CHECK_BLOCK_OVERLAP, at, "a place of its own",
				     "block %" PRIu32 " at %" PRIu64 " over block %" PRIu32 " at %" PRIu64,
				     entry, off, before, scan_block_off(s, before));
		before = entry;
	}
}

/* ---- batmap ---- */

/* Bits beyond what the checksum covers are believed by nobody. */
static bool map_full(const struct vhd_scan *s, uint32_t entry)
{
	return entry / 8 < s->map_bytes && entry / 8 < vhd_batmap_covered_bytes(s->footer->curr_size) &&
	       vhd_batmap_test(s->map, entry);
}

/* All bits of sectors that exist; the disk's last block may be a part of one. */
static bool bitmap_is_full(const struct vhd_scan *s, uint32_t entry, const unsigned char *bits)
{
	uint64_t guest = (uint64_t)entry * s->block_bytes;
	uint32_t n = (uint32_t)(u64_min(s->block_bytes, s->footer->curr_size - guest) / SECTOR_BYTES);

	for (uint32_t i = 0; i < n; i++)
		if (!(bits[i >> 3] & (0x80u >> (i & 7))))
			return false;
	return true;
}

static int check_full_block(struct check_run *run, const struct vhd_scan *s, uint32_t entry, struct err *e)
{
	unsigned char bits[512];
	uint64_t off = scan_block_off(s, entry);
	int ret = s->file->ops->read(s->file, off, bits, sizeof(bits));

	if (ret)
		return err_set(e, ret,
			       "%s: cannot read the bitmap of block %" PRIu32 " at offset %" PRIu64 ": %s",
			       s->file->path, entry, off, strerror(-ret));
	if (!bitmap_is_full(s, entry, bits))
		check_report(run, CHECK_BATMAP_BITMAP, off, "all bits set",
			     "block %" PRIu32 " with sectors that are not there", entry);
	return 0;
}

static int check_map_bits(struct check_run *run, const struct vhd_scan *s, struct err *e)
{
	for (uint32_t i = 0; i < s->n_blocks; i++)
		if (map_full(s, i) && s->bat[i] == SCAN_BAT_FREE)
			check_report(run, CHECK_BATMAP_UNALLOCATED, s->batmap.map_off + i / 8, "a clear bit",
				     "block %" PRIu32, i);
	if (!run->opts->bitmaps)
		return 0;
	for (uint32_t i = 0; i < s->n_order; i++) { /* in the file's order */
		uint32_t entry = (uint32_t)s->order[i];
		int ret = 0;

		if (run->opts->progress)
			run->opts->progress(run->opts->progress_ctx, i, s->n_order);
		if (entry < s->n_blocks && !scan_bad(s, entry) && map_full(s, entry))
			ret = check_full_block(run, s, entry, e);
		if (ret)
			return ret;
	}
	return 0;
}

static int check_batmap(struct check_run *run, const struct vhd_scan *s, struct err *e)
{
	char want[96];

	if (s->batmap_clobbered) {
		uint32_t entry =
		    scan_block_at(s, s->batmap_hdr_off,
				  s->batmap_hdr_off + VHD_BATMAP_HEADER_BYTES + scan_map_need(s), false);

		check_report(run, CHECK_BATMAP_CLOBBERED, s->batmap_hdr_off, "a batmap header",
			     "block %" PRIu32, entry);
		return 0;
	}
	if (!s->batmap_hdr_ok) {
		struct vhd_batmap_info info;

		if (vhd_batmap_parse(s->batmap_raw, &info)) {
			snprintf(want, sizeof(want), "%" PRIu32 " sectors at %" PRIu64,
				 scan_map_need(s) / SECTOR_BYTES,
				 s->batmap_hdr_off + VHD_BATMAP_HEADER_BYTES);
			check_report(run, CHECK_BATMAP_PLACE, s->batmap_hdr_off, want,
				     "%" PRIu32 " sectors at %" PRIu64, info.map_sectors, info.map_off);
		} else {
			check_report(run, CHECK_BATMAP_MISSING, s->batmap_hdr_off,
				     "tdbatmap, version 1.1 or 1.2", "other bytes");
		}
		return 0;
	}
	if (!s->batmap_ok) {
		snprintf(want, sizeof(want), "0x%08" PRIx32,
			 vhd_batmap_checksum(s->map, vhd_batmap_covered_bytes(s->footer->curr_size),
					     s->batmap.version));
		check_report(run, CHECK_BATMAP_CHECKSUM,
			     s->batmap_hdr_off + offsetof(struct vhd_batmap_disk, checksum), want,
			     "0x%08" PRIx32, s->batmap.checksum);
		return 0;
	}
	return check_map_bits(run, s, e);
}

int check_map(struct check_run *run, struct vhd_scan *s, struct err *e)
{
	int ret = check_locators(run, s, e);

	if (ret || !s->bat)
		return ret;
	check_regions(run, s);
	check_blocks(run, s);
	return s->wants_batmap ? check_batmap(run, s, e) : 0;
}
