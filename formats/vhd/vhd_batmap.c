/*
 * Reading tapdisk's batmap: one bit a block, "every sector of the block is present", so that its bitmap need
 * not be read.
 *
 * It is a hint whose loss costs reads of bitmaps and whose forgery costs data, so it is believed only when
 * all fits: made by tap 1.1 or later, header and map in place and untouched by blocks (qemu puts its first
 * block right over them), right checksum, no bit for a block that is not allocated, and the bit among those
 * that the checksum covers. Anything else: no block is known full, and a note.
 */
#include "formats/vhd/vhd.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/image.h"
#include "formats/vhd/vhd_read.h"

#include <errno.h>
#include <stdlib.h>

#define MAP_MAX_BYTES (VHD_MAX_BAT_ENTRIES / 8)

static bool touched_by_block(const struct vhd *v, uint64_t off, uint64_t end)
{
	uint64_t slot_bytes = (uint64_t)vhd_bitmap_bytes(v->block_bytes) + v->block_bytes;

	for (uint32_t i = 0; i < v->n_blocks; i++) {
		uint64_t at = (uint64_t)v->bat[i] * SECTOR_BYTES;

		if (v->bat[i] != VHD_BAT_FREE && at < end && at + slot_bytes > off)
			return true;
	}
	return false;
}

/* Is there a batmap whose header and place can be used? Fills the place. Tells in *why if not. */
static bool batmap_place(struct vhd *v, uint64_t hdr_off, const struct vhd_batmap_info *m, const char **why)
{
	uint64_t room = (uint64_t)m->map_sectors * SECTOR_BYTES, map_end;
	uint64_t need = u64_max((v->n_blocks + 7) / 8, vhd_batmap_covered_bytes(v->footer.curr_size));

	*why = "its header does not fit the image";
	if (m->map_off < hdr_off + VHD_BATMAP_HEADER_BYTES || m->map_off % SECTOR_BYTES || room < need)
		return false;
	if (__builtin_add_overflow(m->map_off, room, &map_end) || map_end > v->file_bytes)
		return false;
	*why = "blocks were written over it, as qemu does";
	if (touched_by_block(v, hdr_off, hdr_off + VHD_BATMAP_HEADER_BYTES) ||
	    touched_by_block(v, m->map_off, map_end))
		return false;
	v->batmap_hdr_off = hdr_off;
	v->batmap_off = m->map_off;
	v->batmap_bytes = (uint32_t)u64_min(room, MAP_MAX_BYTES);
	v->generation = m->generation;
	v->meta_end = u64_max(v->meta_end, map_end);
	return true;
}

/* Fills full[] from the map, or says why the map is not believed. */
static const char *batmap_believe(struct vhd *v, const struct vhd_batmap_info *m, const uint8_t *map)
{
	uint64_t covered = vhd_batmap_covered_bytes(v->footer.curr_size);
	uint64_t whole = (uint64_t)m->map_sectors * SECTOR_BYTES;

	if (whole <= v->batmap_bytes && m->checksum == vhd_batmap_checksum(map, whole, m->version))
		covered = whole;
	else if (m->checksum != vhd_batmap_checksum(map, covered, m->version))
		return "its checksum is wrong";
	for (uint32_t i = 0; i < v->n_blocks; i++)
		if (vhd_batmap_test(map, i) && v->bat[i] == VHD_BAT_FREE)
			return "it calls a block full that is not allocated";
	for (uint32_t i = 0; i < v->n_blocks && i / 8 < covered; i++)
		if (vhd_batmap_test(map, i))
			v->full[i >> 3] |= (uint8_t)(1u << (i & 7));
	return NULL;
}

static int batmap_load(struct vhd *v, const struct vhd_batmap_info *m, struct err *e)
{
	struct backing *b = v->img.file;
	uint8_t *map = malloc(v->batmap_bytes);
	const char *why;
	int ret;

	if (!map)
		return err_set(e, -ENOMEM, "%s: no memory for the batmap", b->path);
	ret = b->ops->read(b, v->batmap_off, map, v->batmap_bytes);
	if (ret) {
		free(map);
		return err_set(e, ret, "%s: cannot read its batmap: %s", b->path, strerror(-ret));
	}
	why = batmap_believe(v, m, map);
	if (why) {
		image_note(&v->img, "the batmap is ignored: %s", why);
		free(map);
		return 0;
	}
	v->batmap_disk = map;
	v->batmap_valid = true;
	return 0;
}

int vhd_batmap_read(struct vhd *v, struct err *e)
{
	struct backing *b = v->img.file;
	uint64_t hdr_off = v->bat_off + vhd_bat_bytes(v->header.bat_entries);
	unsigned char raw[VHD_BATMAP_HEADER_BYTES];
	struct vhd_batmap_info m;
	const char *why;
	int ret;

	v->full = calloc((v->n_blocks + 7) / 8, 1);
	if (!v->full)
		return err_set(e, -ENOMEM, "%s: no memory for the image", b->path);
	if (memcmp(v->footer.creator_app, VHD_CREATOR_TAP, 4) ||
	    v->footer.creator_version < VHD_CREATOR_VERSION(1, 1))
		return 0;
	ret = b->ops->read(b, hdr_off, raw, sizeof(raw));
	if (ret)
		return err_set(e, ret, "%s: cannot read its batmap: %s", b->path, strerror(-ret));
	if (!vhd_batmap_parse(raw, &m)) {
		image_note(&v->img,
			   "the batmap is ignored: there is no header, something was written over it");
		return 0;
	}
	if (!batmap_place(v, hdr_off, &m, &why)) {
		image_note(&v->img, "the batmap is ignored: %s", why);
		return 0;
	}
	return batmap_load(v, &m, e);
}
