/*
 * A VHD file as the checker and the repairer see it: every structure loaded as far as it can be, each with a
 * flag that says whether it may be relied upon, and nothing refused that can still be looked at. Private to
 * formats/vhd/.
 *
 * Memory is bounded by what the file can hold: the BAT is loaded only where it lies within the file and has
 * at most VHD_MAX_BAT_ENTRIES; order[] has one entry per allocated block.
 */
#ifndef FORMATS_VHD_VHD_SCAN_H
#define FORMATS_VHD_VHD_SCAN_H

#include "blkd/backing.h"
#include "formats/vhd/layout.h"

struct err;

#define SCAN_BAT_FREE UINT32_MAX

enum scan_kind { SCAN_UNKNOWN, SCAN_AMBIGUOUS, SCAN_FIXED, SCAN_SPARSE };

struct scan_region { /* metadata in the file: [off, end) */
	uint64_t off, end;
	const char *name;
};

struct vhd_scan {
	struct backing *file;
	uint64_t file_bytes;
	enum scan_kind kind;
	bool may_be_fixed, may_be_sparse; /* the format that the caller named, if any, allows it */

	unsigned char copy_raw[VHD_FOOTER_BYTES], tail_raw[VHD_FOOTER_BYTES];
	bool copy_ok, tail_ok; /* vhd_footer_parse() takes it */
	bool tail_short;       /* a footer of 511 bytes */
	uint64_t tail_off;     /* where the trailing footer is or, if there is none, was looked for */
	struct vhd_footer_info copy, tail;
	bool by_tail;			      /* the trailing footer rules: the copy is unusable */
	const struct vhd_footer_info *footer; /* the one that rules; NULL: none does */
	const unsigned char *footer_raw;

	bool header_read; /* header_raw and header are filled */
	bool header_ok;	  /* vhd_header_parse() takes it */
	unsigned char header_raw[VHD_HEADER_BYTES];
	struct vhd_header_info header;

	/* From here on only where block size and BAT make sense: bat != NULL */
	uint32_t *bat;		      /* n_entries, host order */
	uint32_t n_entries, n_blocks; /* of the BAT; of them within the disk's size */
	uint32_t block_bytes, bitmap_bytes;
	uint64_t limit; /* blocks must end at or before it */
	struct scan_region regions[5 + VHD_LOCATORS];
	unsigned n_regions;
	uint64_t *order; /* sector << 32 | entry of each allocated block, ascending */
	uint32_t n_order;
	uint8_t *bad;	     /* a bit per entry: points where no block can be, or overlaps another */
	uint64_t blocks_end; /* end of the last block that is not bad */
	uint32_t cut_entry;  /* the topmost block, when the file ends within it; else SCAN_BAT_FREE */

	bool wants_batmap; /* made by tap >= 1.1 */
	uint64_t batmap_hdr_off;
	bool batmap_clobbered; /* a block lies where the batmap should be */
	bool batmap_hdr_ok;    /* a header of a known version, whose map lies where it may */
	bool batmap_ok;	       /* and the checksum fits */
	unsigned char batmap_raw[VHD_BATMAP_HEADER_BYTES];
	struct vhd_batmap_info batmap;
	uint8_t *map; /* map_bytes, as on disk; NULL unless batmap_hdr_ok */
	uint32_t map_bytes;
};

/* format: "vhd", "vhd-fixed" or NULL. 0, or -errno and a sentence: the file cannot be read, or no memory.
 * Free it in both cases. */
int vhd_scan(struct backing *, const char *format, struct vhd_scan *, struct err *);
/* Footers only, and which of them rules. Nothing to free. */
int vhd_scan_ends(struct backing *, const char *format, struct vhd_scan *, struct err *);
void vhd_scan_free(struct vhd_scan *);

static inline bool scan_bad(const struct vhd_scan *s, uint32_t entry)
{
	return s->bad[entry >> 3] >> (entry & 7) & 1;
}

static inline uint64_t scan_block_off(const struct vhd_scan *s, uint32_t entry)
{
	return (uint64_t)s->bat[entry] * 512;
}

static inline uint64_t scan_block_end(const struct vhd_scan *s, uint32_t entry)
{
	return scan_block_off(s, entry) + s->bitmap_bytes + s->block_bytes;
}

/* Does [off, end) meet a metadata region? Its name, or NULL. */
const char *scan_in_region(const struct vhd_scan *, uint64_t off, uint64_t end);
/* Does an allocated block (skip_bad: one that is not bad) meet [off, end)? Its entry, or SCAN_BAT_FREE. O(log
 * n) but for bad ones. */
uint32_t scan_block_at(const struct vhd_scan *, uint64_t off, uint64_t end, bool skip_bad);
/* Bytes of the map that n_blocks need, padded to sectors; at least what the checksum covers. */
uint32_t scan_map_need(const struct vhd_scan *);

#endif
