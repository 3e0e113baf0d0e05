/*
 * VHD on disk, one structure at a time: decode, judge, encode. See layout.h for offsets and sources.
 *
 * The parse functions are the door for untrusted sectors: what passes here is in range, so the code behind
 * computes with it freely. Messages name the field and the value found; the caller puts the file's name in
 * front.
 */
#include "formats/vhd/layout.h"

#include "blkd/bytes.h"
#include "blkd/err.h"

#include <errno.h>
#include <inttypes.h>

#define OFF_MAX (1ull << 62) /* offsets below it can be added to without overflow */

static uint32_t sum_bytes(const unsigned char *p, size_t n)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += p[i];
	return sum;
}

/* ~sum of all bytes, with the four bytes of the checksum itself taken as zero. */
static uint32_t checksum_without(const unsigned char *raw, size_t n, size_t field_off)
{
	return ~(sum_bytes(raw, n) - sum_bytes(raw + field_off, 4));
}

/* ---- footer ---- */

uint32_t vhd_footer_checksum(const unsigned char raw[VHD_FOOTER_BYTES])
{
	return checksum_without(raw, VHD_FOOTER_BYTES, offsetof(struct vhd_footer_disk, checksum));
}

bool vhd_footer_checksum_ok(const unsigned char raw[VHD_FOOTER_BYTES])
{
	const struct vhd_footer_disk *f = (const void *)raw;
	uint32_t stored = be32_load(f->checksum), want = vhd_footer_checksum(raw);
	uint32_t version = be32_load(f->creator_version);

	if (stored == want)
		return true;
	if (memcmp(f->creator_app, VHD_CREATOR_TAP, 4) ||
	    (version != VHD_CREATOR_VERSION(0, 1) && version != VHD_CREATOR_VERSION(1, 1)))
		return false;
	return stored == want + f->hidden[0]; /* ~(sum - hidden) */
}

bool vhd_footer_is_killed(const unsigned char raw[VHD_FOOTER_BYTES])
{
	return raw[0] == VHD_KILLED_FOOTER_BYTE && !memcmp(raw, raw + 1, VHD_FOOTER_BYTES - 1);
}

void vhd_footer_load(const unsigned char raw[VHD_FOOTER_BYTES], struct vhd_footer_info *out)
{
	const struct vhd_footer_disk *f = (const void *)raw;

	*out = (struct vhd_footer_info){
	    .features = be32_load(f->features),
	    .version = be32_load(f->version),
	    .data_offset = be64_load(f->data_offset),
	    .timestamp = be32_load(f->timestamp),
	    .creator_version = be32_load(f->creator_version),
	    .creator_os = be32_load(f->creator_os),
	    .orig_size = be64_load(f->orig_size),
	    .curr_size = be64_load(f->curr_size),
	    .cylinders = be16_load(f->cylinders),
	    .heads = f->heads[0],
	    .sectors_per_track = f->sectors_per_track[0],
	    .type = be32_load(f->type),
	    .checksum = be32_load(f->checksum),
	    .saved = f->saved[0],
	    .hidden = f->hidden[0],
	};
	memcpy(out->creator_app, f->creator_app, 4);
	memcpy(out->uuid, f->uuid, 16);
}

static int footer_judge_size(const struct vhd_footer_info *f, struct err *e)
{
	if (!f->curr_size || f->curr_size % SECTOR_BYTES)
		return err_set(e, -EINVAL,
			       "the disk size in the footer, %" PRIu64
			       " bytes, is not a positive multiple of 512",
			       f->curr_size);
	if (f->curr_size > VHD_MAX_SIZE_BYTES)
		return err_set(e, -EFBIG,
			       "the disk size in the footer, %" PRIu64
			       " bytes, is above 2040 GiB, the most a VHD can hold",
			       f->curr_size);
	return 0;
}

static int footer_judge_type(const struct vhd_footer_info *f, struct err *e)
{
	switch (f->type) {
	case VHD_FIXED:
		return 0;
	case VHD_DYNAMIC:
	case VHD_DIFFERENCING:
		if (f->data_offset < VHD_FOOTER_BYTES || f->data_offset % SECTOR_BYTES ||
		    f->data_offset > OFF_MAX - VHD_HEADER_BYTES)
			return err_set(e, -EINVAL,
				       "the footer puts the dynamic header at offset %" PRIu64
				       ", which cannot be",
				       f->data_offset);
		return 0;
	default:
		return err_set(e, -EINVAL,
			       "disk type %" PRIu32
			       " in the footer is not fixed (2), dynamic (3) or differencing (4)",
			       f->type);
	}
}

int vhd_footer_parse(const unsigned char raw[VHD_FOOTER_BYTES], struct vhd_footer_info *out, struct err *e)
{
	if (!memcmp(raw, "v_poison", 8))
		return err_set(e, -EINVAL, "the image was disabled (its footer's cookie is 'v_poison')");
	if (memcmp(raw, "conectix", 8))
		return err_set(e, -EINVAL, "no VHD footer (cookie 'conectix')");
	vhd_footer_load(raw, out);
	if (!vhd_footer_checksum_ok(raw))
		return err_set(e, -EINVAL, "the footer's checksum is 0x%08" PRIx32 ", should be 0x%08" PRIx32,
			       out->checksum, vhd_footer_checksum(raw));
	if (out->version != VHD_VERSION_1_0)
		return err_set(e, -EINVAL, "footer version 0x%08" PRIx32 " is unknown", out->version);
	if (!(out->features & VHD_FEATURE_RESERVED) ||
	    out->features & ~(VHD_FEATURE_RESERVED | VHD_FEATURE_TEMPORARY))
		return err_set(e, -EINVAL, "the footer's features, 0x%" PRIx32 ", are unknown",
			       out->features);
	if (!memcmp(out->creator_app, VHD_CREATOR_TAP, 4) &&
	    out->creator_version == VHD_CREATOR_VERSION(0, 1))
		return err_set(
		    e, -EINVAL,
		    "made by tap 0.1, whose bitmaps have another bit order; convert it with its own tools");
	if (bytes_are_zero(out->uuid, sizeof(out->uuid)))
		return err_set(e, -EINVAL, "the footer's unique id is all zero");
	if (footer_judge_type(out, e))
		return -EINVAL;
	return footer_judge_size(out, e);
}

void vhd_footer_build(const struct vhd_footer_info *in, unsigned char raw[VHD_FOOTER_BYTES])
{
	struct vhd_footer_disk *f = (void *)raw;

	memset(raw, 0, VHD_FOOTER_BYTES);
	memcpy(f->cookie, "conectix", 8);
	be32_store(f->features, in->features);
	be32_store(f->version, in->version);
	be64_store(f->data_offset, in->data_offset);
	be32_store(f->timestamp, in->timestamp);
	memcpy(f->creator_app, in->creator_app, 4);
	be32_store(f->creator_version, in->creator_version);
	be32_store(f->creator_os, in->creator_os);
	be64_store(f->orig_size, in->orig_size);
	be64_store(f->curr_size, in->curr_size);
	be16_store(f->cylinders, in->cylinders);
	f->heads[0] = in->heads;
	f->sectors_per_track[0] = in->sectors_per_track;
	be32_store(f->type, in->type);
	memcpy(f->uuid, in->uuid, 16);
	f->saved[0] = in->saved;
	f->hidden[0] = in->hidden;
	be32_store(f->checksum, vhd_footer_checksum(raw));
}

void vhd_geometry(uint64_t size_bytes, uint16_t *cylinders, uint8_t *heads, uint8_t *sectors_per_track)
{
	uint64_t sectors = u64_min(size_bytes / SECTOR_BYTES, 65535ull * 16 * 255);
	uint64_t spt, h, tracks;

	if (sectors >= 65535ull * 16 * 63) {
		spt = 255;
		h = 16;
		tracks = sectors / spt;
	} else {
		spt = 17;
		tracks = sectors / spt;
		h = u64_max((tracks + 1023) / 1024, 4);
		if (tracks >= h * 1024 || h > 16) {
			spt = 31;
			h = 16;
			tracks = sectors / spt;
		}
		if (tracks >= h * 1024) {
			spt = 63;
			h = 16;
			tracks = sectors / spt;
		}
	}
	*cylinders = (uint16_t)(tracks / h);
	*heads = (uint8_t)h;
	*sectors_per_track = (uint8_t)spt;
}

uint32_t vhd_time(int64_t unix_seconds)
{
	if (unix_seconds <= VHD_EPOCH_UNIX)
		return 0;
	return (uint32_t)u64_min((uint64_t)(unix_seconds - VHD_EPOCH_UNIX), UINT32_MAX);
}

/* ---- dynamic header ---- */

uint32_t vhd_header_checksum(const unsigned char raw[VHD_HEADER_BYTES])
{
	return checksum_without(raw, VHD_HEADER_BYTES, offsetof(struct vhd_header_disk, checksum));
}

uint32_t vhd_locator_room(uint32_t space)
{
	if (space < SECTOR_BYTES)
		return space * SECTOR_BYTES;
	return space % SECTOR_BYTES ? 0 : space;
}

bool vhd_locator_code_known(uint32_t code)
{
	static const uint32_t known[] = {VHD_LOC_NONE, VHD_LOC_WI2R, VHD_LOC_WI2K, VHD_LOC_W2RU,
					 VHD_LOC_W2KU, VHD_LOC_MAC,  VHD_LOC_MACX};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (code == known[i])
			return true;
	return false;
}

void vhd_header_load(const unsigned char raw[VHD_HEADER_BYTES], struct vhd_header_info *out)
{
	const struct vhd_header_disk *h = (const void *)raw;

	*out = (struct vhd_header_info){
	    .data_offset = be64_load(h->data_offset),
	    .table_offset = be64_load(h->table_offset),
	    .version = be32_load(h->version),
	    .bat_entries = be32_load(h->bat_entries),
	    .block_bytes = be32_load(h->block_bytes),
	    .checksum = be32_load(h->checksum),
	    .parent_mtime = be32_load(h->parent_mtime),
	};
	memcpy(out->parent_uuid, h->parent_uuid, 16);
	memcpy(out->parent_name, h->parent_name, VHD_PARENT_NAME_BYTES);
	for (unsigned i = 0; i < VHD_LOCATORS; i++) {
		out->locators[i].code = be32_load(h->locators[i].code);
		out->locators[i].space = be32_load(h->locators[i].space);
		out->locators[i].len_bytes = be32_load(h->locators[i].len);
		out->locators[i].off_bytes = be64_load(h->locators[i].off);
	}
}

static int header_judge_table(const struct vhd_header_info *h, const struct vhd_footer_info *f, struct err *e)
{
	uint64_t table_end, need;

	if (!is_pow2_u64(h->block_bytes) || h->block_bytes < VHD_MIN_BLOCK_BYTES ||
	    h->block_bytes > VHD_BLOCK_BYTES)
		return err_set(e, -EINVAL, "block size %" PRIu32 " is not a power of two from 4096 to 2 MiB",
			       h->block_bytes);
	if (h->bat_entries > VHD_MAX_BAT_ENTRIES)
		return err_set(e, -EINVAL, "a BAT of %" PRIu32 " entries is beyond what blkd opens (%u)",
			       h->bat_entries, VHD_MAX_BAT_ENTRIES);
	need = vhd_blocks_of(f->curr_size, h->block_bytes);
	if (h->bat_entries < need)
		return err_set(e, -EINVAL,
			       "the BAT has %" PRIu32
			       " entries, too short for the disk's size, which needs %" PRIu64,
			       h->bat_entries, need);
	if (!h->table_offset || h->table_offset % SECTOR_BYTES ||
	    h->table_offset > OFF_MAX - vhd_bat_bytes(h->bat_entries))
		return err_set(e, -EINVAL, "the header puts the BAT at offset %" PRIu64 ", which cannot be",
			       h->table_offset);
	table_end = h->table_offset + vhd_bat_bytes(h->bat_entries);
	if (h->table_offset < VHD_FOOTER_BYTES ||
	    (h->table_offset < f->data_offset + VHD_HEADER_BYTES && f->data_offset < table_end))
		return err_set(e, -EINVAL,
			       "the BAT at offset %" PRIu64 " overlaps the footer copy or the header",
			       h->table_offset);
	return 0;
}

static int header_judge_locators(const struct vhd_header_info *h, struct err *e)
{
	for (unsigned i = 0; i < VHD_LOCATORS; i++) {
		const struct vhd_locator *l = &h->locators[i];

		if (!vhd_locator_code_known(l->code))
			return err_set(e, -EINVAL,
				       "parent locator %u has the unknown platform code 0x%08" PRIx32, i,
				       l->code);
		if (l->code == VHD_LOC_NONE || !l->len_bytes)
			continue;
		if (l->len_bytes > vhd_locator_room(l->space))
			return err_set(e, -EINVAL,
				       "parent locator %u says %" PRIu32 " bytes in a room of %" PRIu32, i,
				       l->len_bytes, vhd_locator_room(l->space));
		if (l->off_bytes < VHD_FOOTER_BYTES || l->off_bytes > OFF_MAX - vhd_locator_room(l->space))
			return err_set(e, -EINVAL,
				       "parent locator %u lies at offset %" PRIu64 ", which cannot be", i,
				       l->off_bytes);
	}
	return 0;
}

static int header_judge_no_parent(const struct vhd_header_info *h, struct err *e)
{
	bool any = !bytes_are_zero(h->parent_uuid, 16) || h->parent_mtime ||
		   !bytes_are_zero(h->parent_name, VHD_PARENT_NAME_BYTES);

	for (unsigned i = 0; i < VHD_LOCATORS; i++)
		any |= h->locators[i].code != VHD_LOC_NONE;
	if (any)
		return err_set(
		    e, -EINVAL,
		    "a dynamic disk that names a parent: its footer and header contradict each other");
	return 0;
}

int vhd_header_parse(const unsigned char raw[VHD_HEADER_BYTES], const struct vhd_footer_info *f,
		     struct vhd_header_info *out, struct err *e)
{
	int ret;

	vhd_header_load(raw, out);
	if (memcmp(raw, "cxsparse", 8))
		return err_set(e, -EINVAL, "no dynamic header (cookie 'cxsparse') at offset %" PRIu64,
			       f->data_offset);
	if (out->checksum != vhd_header_checksum(raw))
		return err_set(e, -EINVAL, "the header's checksum is 0x%08" PRIx32 ", should be 0x%08" PRIx32,
			       out->checksum, vhd_header_checksum(raw));
	if (out->version != VHD_VERSION_1_0)
		return err_set(e, -EINVAL, "header version 0x%08" PRIx32 " is unknown", out->version);
	if (out->data_offset != VHD_NO_OFFSET)
		return err_set(e, -EINVAL, "the header's data offset, %" PRIu64 ", is not all ones",
			       out->data_offset);
	ret = header_judge_table(out, f, e);
	if (!ret)
		ret = header_judge_locators(out, e);
	if (!ret && f->type == VHD_DYNAMIC)
		ret = header_judge_no_parent(out, e);
	return ret;
}

void vhd_header_build(const struct vhd_header_info *in, unsigned char raw[VHD_HEADER_BYTES])
{
	struct vhd_header_disk *h = (void *)raw;

	memset(raw, 0, VHD_HEADER_BYTES);
	memcpy(h->cookie, "cxsparse", 8);
	be64_store(h->data_offset, in->data_offset);
	be64_store(h->table_offset, in->table_offset);
	be32_store(h->version, in->version);
	be32_store(h->bat_entries, in->bat_entries);
	be32_store(h->block_bytes, in->block_bytes);
	memcpy(h->parent_uuid, in->parent_uuid, 16);
	be32_store(h->parent_mtime, in->parent_mtime);
	memcpy(h->parent_name, in->parent_name, VHD_PARENT_NAME_BYTES);
	for (unsigned i = 0; i < VHD_LOCATORS; i++) {
		be32_store(h->locators[i].code, in->locators[i].code);
		be32_store(h->locators[i].space, in->locators[i].space);
		be32_store(h->locators[i].len, in->locators[i].len_bytes);
		be64_store(h->locators[i].off, in->locators[i].off_bytes);
	}
	be32_store(h->checksum, vhd_header_checksum(raw));
}

/* ---- blocks ---- */

uint32_t vhd_bitmap_bytes(uint32_t block_bytes)
{
	return (uint32_t)round_up_u64((block_bytes / SECTOR_BYTES + 7) / 8, SECTOR_BYTES);
}

uint64_t vhd_bat_bytes(uint32_t entries)
{
	return round_up_u64((uint64_t)entries * 4, SECTOR_BYTES);
}

uint64_t vhd_blocks_of(uint64_t size_bytes, uint32_t block_bytes)
{
	return size_bytes / block_bytes + (size_bytes % block_bytes != 0);
}

/* ---- batmap ---- */

bool vhd_batmap_parse(const unsigned char raw[VHD_BATMAP_HEADER_BYTES], struct vhd_batmap_info *out)
{
	const struct vhd_batmap_disk *b = (const void *)raw;

	if (memcmp(b->cookie, "tdbatmap", 8))
		return false;
	*out = (struct vhd_batmap_info){
	    .map_off = be64_load(b->map_off),
	    .map_sectors = be32_load(b->map_sectors),
	    .version = be32_load(b->version),
	    .checksum = be32_load(b->checksum),
	    .has_generation = !memcmp(b->generation_cookie, "blkdgen1", 8),
	};
	if (out->has_generation)
		out->generation = be64_load(b->generation);
	return out->version == VHD_BATMAP_VERSION_1_1 || out->version == VHD_BATMAP_VERSION_1_2;
}

void vhd_batmap_build(const struct vhd_batmap_info *in, unsigned char raw[VHD_BATMAP_HEADER_BYTES])
{
	struct vhd_batmap_disk *b = (void *)raw;

	memset(raw, 0, VHD_BATMAP_HEADER_BYTES);
	memcpy(b->cookie, "tdbatmap", 8);
	be64_store(b->map_off, in->map_off);
	be32_store(b->map_sectors, in->map_sectors);
	be32_store(b->version, in->version);
	vhd_batmap_set_checksum(raw, in->checksum);
	vhd_batmap_set_generation(raw, in->generation);
}

void vhd_batmap_set_generation(unsigned char raw[VHD_BATMAP_HEADER_BYTES], uint64_t generation)
{
	struct vhd_batmap_disk *b = (void *)raw;

	memcpy(b->generation_cookie, "blkdgen1", 8);
	be64_store(b->generation, generation);
}

void vhd_batmap_set_checksum(unsigned char raw[VHD_BATMAP_HEADER_BYTES], uint32_t checksum)
{
	be32_store(((struct vhd_batmap_disk *)(void *)raw)->checksum, checksum);
}

uint32_t vhd_batmap_covered_bytes(uint64_t curr_size_bytes)
{
	return (uint32_t)round_up_u64(curr_size_bytes >> 24, SECTOR_BYTES);
}

uint32_t vhd_batmap_checksum(const void *map, size_t len_bytes, uint32_t version)
{
	const unsigned char *p = map;
	uint32_t sum = sum_bytes(p, len_bytes);

	if (version == VHD_BATMAP_VERSION_1_1) /* a byte from 128 up counts as itself - 256 */
		for (size_t i = 0; i < len_bytes; i++)
			sum -= (uint32_t)(p[i] >> 7) << 8;
	return ~sum;
}
