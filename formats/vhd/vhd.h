/*
 * The VHD image object, private to formats/vhd/. On-disk layout: layout.h. One object for dynamic and
 * differencing images; fixed ones are vhd_fixed.c.
 *
 * Who owns what: everything up to `w` is filled by open (vhd_open.c) and is immutable afterwards in a parent.
 * In a leaf, bat[] and full[] are the live view and change on the device thread. `w` belongs to the write
 * half (vhd_write.h); it exists after the first dirty_replay or begin_writing, or, as a cache of bitmaps
 * only, after the first meta_put of a leaf that is only read.
 */
#ifndef FORMATS_VHD_VHD_H
#define FORMATS_VHD_VHD_H

#include "blkd/format.h"
#include "formats/vhd/layout.h"

#define VHD_BAT_FREE 0xffffffffu

struct vhd_write;

struct vhd {
	struct image img;
	struct vhd_footer_info footer; /* parsed; layout.h */
	unsigned char footer_raw[512]; /* as it should stand at both ends: what the copy at offset 0 holds */
	struct vhd_header_info header;
	uint64_t file_bytes;   /* size of the file, footer included */
	bool footer_at_end_ok; /* the trailing footer is there and equals the copy */
	uint32_t block_bytes;  /* power of two, 512 * 8 .. 2 MiB */
	uint32_t block_shift;
	uint32_t n_blocks; /* ceil(size / block_bytes); <= BAT entries */
	uint64_t bat_off;  /* file offset of the BAT */
	uint64_t meta_end; /* first byte after all metadata: header, BAT, batmap, locators; multiple of 512 */
	bool big_endian_bitmap; /* false only for creator tap 0.1 */
	uint32_t *bat; /* n_blocks entries, host order; VHD_BAT_FREE or file sector of the block's bitmap */
	uint8_t *full; /* 1 bit a block (LSB first): every sector of the block is present. Known from a valid
			  batmap; grows as bitmaps are seen full (leaf only) */
	bool batmap_valid;	 /* there is a batmap, with a right checksum */
	uint64_t batmap_hdr_off; /* 0: no (usable) batmap header in this file */
	uint64_t batmap_off;	 /* the map */
	uint32_t batmap_bytes;	 /* room of the map on disk */
	uint8_t *batmap_disk; /* as on disk (MSB first), when valid; a bit that is set here is never unset in
				 this opening */
	uint64_t generation;  /* open generation from the batmap header; 0: none */
	struct vhd_write *w;
};

static inline struct vhd *vhd_of(struct image *img)
{
	return (struct vhd *)img;
}

static inline const struct vhd *vhd_of_const(const struct image *img)
{
	return (const struct vhd *)img;
}

static inline bool vhd_full_test(const struct vhd *v, uint32_t block)
{
	return v->full[block >> 3] >> (block & 7) & 1;
}

/* vhd_map.c */
void vhd_map(const struct image *, const void *meta, uint64_t off_bytes, uint32_t len_bytes,
	     struct extent *out);
bool vhd_owns(const struct image *, uint64_t off_bytes, uint64_t len_bytes);

/* the write half (vhd_write.h): see struct image_format */
const void *vhd_meta_get(struct image *, uint64_t key);
int vhd_meta_put(struct image *, uint64_t key, const void *buf, int res);
int vhd_write_begin(struct image *, enum write_op, unsigned flags, uint64_t off_bytes, uint64_t len_bytes,
		    struct write_piece *);
void vhd_write_end(struct image *, const struct write_piece *, int res);
int vhd_job_begin(struct image *, enum job_kind, struct job *);
int vhd_job_next(struct image *, struct job *, struct meta_act *, unsigned max);
void vhd_job_done(struct image *, struct job *, const struct meta_act *, int res);
uint64_t vhd_epoch_open(const struct image *);
uint64_t vhd_epoch_durable(const struct image *);
int vhd_dirty_replay(struct image *, const struct meta_record *, unsigned n, struct err *);
int vhd_begin_writing(struct image *, struct err *);
uint64_t vhd_generation(const struct image *);
void vhd_write_free(struct vhd *); /* frees w; close calls it */

#endif
