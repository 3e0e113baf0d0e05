/*
 * VHD on disk: where each field lies, and the functions that turn sectors into structs and back.
 *
 * All fields are big-endian. The *_disk structs are byte arrays only, so a pointer to any 512 bytes may be
 * looked at through them. What a file says is untrusted: *_load() decodes without judging (for the checker,
 * which wants to name every fault), *_parse() decodes and refuses with a sentence what blkd would not serve.
 * Both look at one structure alone; what needs the rest of the file (does the BAT lie within it, do blocks
 * overlap) is vhd_open.c's.
 *
 * Sources: [MS] "Virtual Hard Disk Image Format Specification", version 1.0, October 2006. [BT] blktap
 * include/vhd.h and include/libvhd.h, whose extensions (hidden, batmap) existing images carry. Pure
 * functions: any thread, no allocation.
 */
#ifndef FORMATS_VHD_LAYOUT_H
#define FORMATS_VHD_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define VHD_FOOTER_BYTES 512u
#define VHD_SHORT_FOOTER_BYTES                                                                               \
	511u /* Virtual PC before 2004 wrote no last byte: [MS] "Hard Disk Footer Format" */
#define VHD_HEADER_BYTES    1024u
#define VHD_HEADER_OFF	    512u  /* where it is written; where it is read is the footer's data_offset */
#define VHD_BAT_OFF	    1536u /* where it is written; where it is read is the header's table_offset */
#define VHD_BLOCK_BYTES	    (2u << 20)
#define VHD_MIN_BLOCK_BYTES 4096u
#define VHD_MAX_SIZE_BYTES                                                                                   \
	(2040ull << 30) /* what sm and qemu accept; beyond, 32-bit sector numbers run out */
#define VHD_MAX_BAT_ENTRIES                                                                                  \
	(1u << 23) /* 8 times what 2040 GiB needs in 2 MiB blocks: bounds the memory of an open */
#define VHD_NO_OFFSET  UINT64_MAX
#define VHD_EPOCH_UNIX 946684800 /* 2000-01-01 00:00 UTC: [MS] "Time Stamp" */

#define VHD_VERSION_1_0			  0x00010000u /* footer and header */
#define VHD_FEATURE_TEMPORARY		  1u
#define VHD_FEATURE_RESERVED		  2u /* always set */
#define VHD_CREATOR_TAP			  "tap\0"
#define VHD_CREATOR_VERSION(major, minor) ((uint32_t)(major) << 16 | (minor))
#define VHD_KILLED_FOOTER_BYTE                                                                               \
	0xc7u /* tapdisk fills the trailing footer with it while it writes: [BT] vhd_kill_footer */

enum vhd_type { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFFERENCING = 4 }; /* [MS] "Disk Type" */

/* [MS] "Hard Disk Footer Format"; hidden: [BT] struct hd_ftr */
struct vhd_footer_disk {
	unsigned char cookie[8]; /* "conectix" */
	unsigned char features[4];
	unsigned char version[4];
	unsigned char data_offset[8]; /* of the dynamic header; all ones in a fixed disk */
	unsigned char timestamp[4];
	unsigned char creator_app[4];
	unsigned char creator_version[4];
	unsigned char creator_os[4];
	unsigned char orig_size[8];
	unsigned char curr_size[8];
	unsigned char cylinders[2];
	unsigned char heads[1];
	unsigned char sectors_per_track[1];
	unsigned char type[4];
	unsigned char checksum[4]; /* ~sum of all bytes, this field taken as zero */
	unsigned char uuid[16];
	unsigned char saved[1];
	unsigned char hidden[1]; /* [BT]; reserved in [MS] */
	unsigned char reserved[426];
};
_Static_assert(sizeof(struct vhd_footer_disk) == VHD_FOOTER_BYTES, "on disk");
_Static_assert(offsetof(struct vhd_footer_disk, data_offset) == 16, "on disk");
_Static_assert(offsetof(struct vhd_footer_disk, timestamp) == 24, "on disk");
_Static_assert(offsetof(struct vhd_footer_disk, orig_size) == 40, "on disk");
_Static_assert(offsetof(struct vhd_footer_disk, curr_size) == 48, "on disk");
_Static_assert(offsetof(struct vhd_footer_disk, type) == 60, "on disk");
_Static_assert(offsetof(struct vhd_footer_disk, checksum) == 64, "on disk");
_Static_assert(offsetof(struct vhd_footer_disk, uuid) == 68, "on disk");
_Static_assert(offsetof(struct vhd_footer_disk, hidden) == 85, "on disk");

/* [MS] "Parent Locator Entry" */
struct vhd_locator_disk {
	unsigned char code[4];
	unsigned char space[4]; /* sectors by the book, bytes in many files: vhd_locator_room() */
	unsigned char len[4];
	unsigned char reserved[4];
	unsigned char off[8];
};
_Static_assert(sizeof(struct vhd_locator_disk) == 24, "on disk");

#define VHD_LOCATORS	      8u
#define VHD_PARENT_NAME_BYTES 512u

/* [MS] "Dynamic Disk Header Format" */
struct vhd_header_disk {
	unsigned char cookie[8];      /* "cxsparse" */
	unsigned char data_offset[8]; /* all ones */
	unsigned char table_offset[8];
	unsigned char version[4];
	unsigned char bat_entries[4];
	unsigned char block_bytes[4];
	unsigned char checksum[4]; /* as the footer's */
	unsigned char parent_uuid[16];
	unsigned char parent_mtime[4];
	unsigned char reserved1[4];
	unsigned char parent_name[VHD_PARENT_NAME_BYTES]; /* UTF-16BE, zero padded */
	struct vhd_locator_disk locators[VHD_LOCATORS];
	unsigned char reserved2[256];
};
_Static_assert(sizeof(struct vhd_header_disk) == VHD_HEADER_BYTES, "on disk");
_Static_assert(offsetof(struct vhd_header_disk, table_offset) == 16, "on disk");
_Static_assert(offsetof(struct vhd_header_disk, bat_entries) == 28, "on disk");
_Static_assert(offsetof(struct vhd_header_disk, block_bytes) == 32, "on disk");
_Static_assert(offsetof(struct vhd_header_disk, checksum) == 36, "on disk");
_Static_assert(offsetof(struct vhd_header_disk, parent_uuid) == 40, "on disk");
_Static_assert(offsetof(struct vhd_header_disk, parent_name) == 64, "on disk");
_Static_assert(offsetof(struct vhd_header_disk, locators) == 576, "on disk");
_Static_assert(offsetof(struct vhd_header_disk, reserved2) == 768, "on disk");

/* [BT] struct dd_batmap_hdr. One sector, right after the padded BAT. The generation is ours, in bytes that
 * others leave alone. */
struct vhd_batmap_disk {
	unsigned char cookie[8]; /* "tdbatmap" */
	unsigned char map_off[8];
	unsigned char map_sectors[4];
	unsigned char version[4];
	unsigned char checksum[4]; /* of the map, not of this sector: vhd_batmap_checksum() */
	unsigned char marker[1];
	unsigned char key_cookie[1];
	unsigned char key_nonce[32];
	unsigned char key_hash[32];
	unsigned char reserved[402];
	unsigned char generation_cookie[8]; /* "blkdgen1", or anything: no generation here */
	unsigned char generation[8];
};
#define VHD_BATMAP_HEADER_BYTES 512u
_Static_assert(sizeof(struct vhd_batmap_disk) == VHD_BATMAP_HEADER_BYTES, "on disk");
_Static_assert(offsetof(struct vhd_batmap_disk, checksum) == 24, "on disk");
_Static_assert(offsetof(struct vhd_batmap_disk, marker) == 28, "on disk");
_Static_assert(offsetof(struct vhd_batmap_disk, reserved) == 94, "on disk");
_Static_assert(offsetof(struct vhd_batmap_disk, generation_cookie) == 496, "on disk");
_Static_assert(offsetof(struct vhd_batmap_disk, generation) == 504, "on disk");

#define VHD_BATMAP_VERSION_1_1 0x00010001u /* checksum over signed chars */
#define VHD_BATMAP_VERSION_1_2 0x00010002u /* over unsigned ones */

/* ---- footer ---- */

struct vhd_footer_info {
	uint32_t features;
	uint32_t version;
	uint64_t data_offset;
	uint32_t timestamp; /* seconds since 2000 */
	char creator_app[4];
	uint32_t creator_version; /* VHD_CREATOR_VERSION */
	uint32_t creator_os;
	uint64_t orig_size;
	uint64_t curr_size; /* bytes; the size of the disk, always (geometry is decoration) */
	uint16_t cylinders;
	uint8_t heads, sectors_per_track;
	uint32_t type; /* enum vhd_type once parsed */
	uint32_t checksum;
	unsigned char uuid[16];
	uint8_t saved;
	uint8_t hidden;
};

/* Decodes whatever is there. */
void vhd_footer_load(const unsigned char raw[VHD_FOOTER_BYTES], struct vhd_footer_info *);

/* Decodes and judges: cookie, checksum, version, features, type, uuid, creator, size, data offset for the
 * type. -EINVAL and a sentence; info is filled all the same unless the cookie is wrong. A short (511-byte)
 * footer is given with a zero as its last byte. */
int vhd_footer_parse(const unsigned char raw[VHD_FOOTER_BYTES], struct vhd_footer_info *, struct err *);

/* Encodes all fields, reserved bytes zero, and computes the checksum (info->checksum is ignored). */
void vhd_footer_build(const struct vhd_footer_info *, unsigned char raw[VHD_FOOTER_BYTES]);

/* What the checksum field should hold. */
uint32_t vhd_footer_checksum(const unsigned char raw[VHD_FOOTER_BYTES]);

/* Does the stored checksum fit? Allows for tap 0.1 and 1.1, which set hidden without renewing it. */
bool vhd_footer_checksum_ok(const unsigned char raw[VHD_FOOTER_BYTES]);

/* Is this what tapdisk leaves in place of the trailing footer of an image that it has open, or had when it
 * died? */
bool vhd_footer_is_killed(const unsigned char raw[VHD_FOOTER_BYTES]);

/* [MS] appendix "CHS Calculation"; sizes beyond what CHS can say give its maximum. */
void vhd_geometry(uint64_t size_bytes, uint16_t *cylinders, uint8_t *heads, uint8_t *sectors_per_track);

/* Seconds since 2000 of a Unix time, clamped to what 32 bits hold. */
uint32_t vhd_time(int64_t unix_seconds);

/* ---- dynamic header ---- */

#define VHD_LOC_NONE 0u
#define VHD_LOC_WI2R 0x57693272u /* deprecated, no encoding specified: known, never followed */
#define VHD_LOC_WI2K 0x5769326bu
#define VHD_LOC_W2RU 0x57327275u /* relative path, UTF-16LE */
#define VHD_LOC_W2KU 0x57326b75u /* absolute path, UTF-16LE; tapdisk stores a relative one here too */
#define VHD_LOC_MAC  0x4d616320u /* an alias blob: known, never followed */
#define VHD_LOC_MACX 0x4d616358u /* file:// URL, UTF-8 */

struct vhd_locator {
	uint32_t code;
	uint32_t space; /* as stored */
	uint32_t len_bytes;
	uint64_t off_bytes;
};

struct vhd_header_info {
	uint64_t data_offset;
	uint64_t table_offset;
	uint32_t version;
	uint32_t bat_entries;
	uint32_t block_bytes;
	uint32_t checksum;
	unsigned char parent_uuid[16]; /* all zero in a differencing disk: the parent is raw */
	uint32_t parent_mtime;	       /* seconds since 2000 */
	unsigned char parent_name[VHD_PARENT_NAME_BYTES]; /* UTF-16BE */
	struct vhd_locator locators[VHD_LOCATORS];
};

void vhd_header_load(const unsigned char raw[VHD_HEADER_BYTES], struct vhd_header_info *);

/* Decodes and judges, for the disk that the (parsed) footer describes: cookie, checksum, version, BAT offset,
 * number of entries against the size, block size, locator codes and lengths; a dynamic disk names no parent.
 * -EINVAL and a sentence. */
int vhd_header_parse(const unsigned char raw[VHD_HEADER_BYTES], const struct vhd_footer_info *,
		     struct vhd_header_info *, struct err *);

void vhd_header_build(const struct vhd_header_info *, unsigned char raw[VHD_HEADER_BYTES]);

uint32_t vhd_header_checksum(const unsigned char raw[VHD_HEADER_BYTES]);

/* Bytes that a locator's space field means: sectors if below 512, bytes if a multiple of 512, else nonsense:
 * 0. [BT] vhd_parent_locator_size */
uint32_t vhd_locator_room(uint32_t space);

bool vhd_locator_code_known(uint32_t code);

/* ---- blocks ---- */

/* Bytes of a block's sector bitmap, padded to sectors: 512 for every legal block size. */
uint32_t vhd_bitmap_bytes(uint32_t block_bytes);

#define VHD_BITMAP_BYTES                                                                                     \
	512u /* what vhd_bitmap_bytes() says for every legal block size: at most 4096 bits                   \
	      */

/* Bytes of a BAT, padded to sectors. */
uint64_t vhd_bat_bytes(uint32_t entries);

/* Blocks that a disk needs. */
uint64_t vhd_blocks_of(uint64_t size_bytes, uint32_t block_bytes);

/* ---- batmap ---- */

struct vhd_batmap_info {
	uint64_t map_off;
	uint32_t map_sectors;
	uint32_t version;
	uint32_t checksum;
	uint64_t generation; /* 0: none */
	bool has_generation; /* the place for it is ours: "blkdgen1" is there */
};

/* Decodes. False: no batmap header of a version that we know. Whether the map lies where it may is the
 * caller's to check. */
bool vhd_batmap_parse(const unsigned char raw[VHD_BATMAP_HEADER_BYTES], struct vhd_batmap_info *);

/* A fresh header (marker and key hash zero), with a place for the generation. To change one that exists, use
 * the two setters. */
void vhd_batmap_build(const struct vhd_batmap_info *, unsigned char raw[VHD_BATMAP_HEADER_BYTES]);
void vhd_batmap_set_generation(unsigned char raw[VHD_BATMAP_HEADER_BYTES], uint64_t generation);
void vhd_batmap_set_checksum(unsigned char raw[VHD_BATMAP_HEADER_BYTES], uint32_t checksum);

/* Bytes of the map that the checksum covers: [BT] takes curr_size >> 24 rounded up to sectors, whatever the
 * block size: nothing at all below 16 MiB, and the map's last byte may be missed. A bit that is not covered
 * is not believed (vhd_open.c). */
uint32_t vhd_batmap_covered_bytes(uint64_t curr_size_bytes);

/* Of the map's first len bytes. version: VHD_BATMAP_VERSION_*. */
uint32_t vhd_batmap_checksum(const void *map, size_t len_bytes, uint32_t version);

/* The bit of a block in the map on disk, most significant bit first. */
static inline bool vhd_batmap_test(const uint8_t *map, uint32_t block)
{
	return map[block >> 3] >> (7 - (block & 7)) & 1;
}

static inline void vhd_batmap_set(uint8_t *map, uint32_t block)
{
	map[block >> 3] |= (uint8_t)(0x80 >> (block & 7));
}

#endif
