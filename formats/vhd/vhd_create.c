/*
 * Making an empty VHD, and marking one as a parent.
 *
 * Layout of a new dynamic or differencing disk: footer copy, header, BAT, batmap header, batmap, three parent
 * locators of one sector each (differencing only), a gap, and the trailing footer in the last sector of a 4
 * KiB page. When the first block is allocated, its bitmap takes the place of that footer and its data starts
 * on the next page: aligned, as all data of blocks should be.
 *
 * Order: first both places where a footer could stand are made invalid (a block device may hold an old
 * image), then everything but the footers is written and flushed, then the footers. So whatever a power cut
 * leaves either opens as the whole image or does not open.
 *
 * The three locators hold the same relative path, as vhd-util and sm write and expect it; see vhd_parent.c
 * for how they are read.
 */
#include "blkd/vhd.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/image.h"
#include "formats/raw.h"
#include "formats/vhd/utf16.h"
#include "formats/vhd/vhd.h"
#include "formats/vhd/vhd_read.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <uuid/uuid.h>

#define SIZE_UNIT_BYTES	 (2u << 20)
#define DATA_ALIGN_BYTES 4096u
#define CHUNK_BYTES	 (1u << 20)
#define N_LOCATORS	 3u

/* Everything that is to be written, computed before the first write. */
struct plan {
	struct backing *b;
	struct vhd_footer_info footer;
	struct vhd_header_info header;
	uint64_t batmap_hdr_off, meta_end, file_bytes;
	uint32_t map_sectors;
	unsigned char locator[N_LOCATORS][SECTOR_BYTES];
};

static int io_err(const struct plan *p, int ret, const char *what, struct err *e)
{
	return ret ? err_set(e, ret, "%s: cannot %s: %s", p->b->path, what, strerror(-ret)) : 0;
}

/* ---- planning ---- */

static int plan_size(const struct vhd_create_opts *o, uint64_t *size, struct err *e)
{
	bool of_parent = o->kind == VHD_KIND_DIFFERENCING && !o->size_bytes;

	*size = of_parent ? o->parent->size_bytes : o->size_bytes;
	if (!*size)
		return err_set(e, -EINVAL, "a disk of 0 bytes cannot be");
	if (*size > VHD_MAX_SIZE_BYTES)
		return err_set(e, -EFBIG, "%" PRIu64 " bytes are above 2040 GiB, the most a VHD can hold",
			       *size);
	if (!of_parent && !o->exact_size)
		*size = round_up_u64(*size, SIZE_UNIT_BYTES);
	if (*size % SECTOR_BYTES)
		return err_set(e, -EINVAL,
			       "a disk of %" PRIu64 " bytes cannot be: sizes are multiples of 512", *size);
	return 0;
}

static void plan_footer(struct plan *p, const struct vhd_create_opts *o, uint64_t size)
{
	struct vhd_footer_info *f = &p->footer;

	*f = (struct vhd_footer_info){
	    .features = VHD_FEATURE_RESERVED,
	    .version = VHD_VERSION_1_0,
	    .data_offset = o->kind == VHD_KIND_FIXED ? VHD_NO_OFFSET : VHD_HEADER_OFF,
	    .timestamp = vhd_time(time(NULL)),
	    .creator_version = VHD_CREATOR_VERSION(1, 3),
	    .orig_size = size,
	    .curr_size = size,
	    .type = (uint32_t)o->kind,
	};
	memcpy(f->creator_app, VHD_CREATOR_TAP, 4);
	memcpy(f->uuid, o->uuid, sizeof(f->uuid));
	if (bytes_are_zero(f->uuid, sizeof(f->uuid)))
		uuid_generate_random(f->uuid);
	vhd_geometry(size, &f->cylinders, &f->heads, &f->sectors_per_track);
}

static void plan_sparse(struct plan *p, uint64_t size, bool differencing)
{
	uint32_t n_blocks = (uint32_t)vhd_blocks_of(size, VHD_BLOCK_BYTES);

	p->header = (struct vhd_header_info){
	    .data_offset = VHD_NO_OFFSET,
	    .table_offset = VHD_BAT_OFF,
	    .version = VHD_VERSION_1_0,
	    .bat_entries = n_blocks,
	    .block_bytes = VHD_BLOCK_BYTES,
	};
	p->batmap_hdr_off = VHD_BAT_OFF + vhd_bat_bytes(n_blocks);
	p->map_sectors = ((n_blocks + 7) / 8 + SECTOR_BYTES - 1) / SECTOR_BYTES;
	p->meta_end = p->batmap_hdr_off + VHD_BATMAP_HEADER_BYTES + (uint64_t)p->map_sectors * SECTOR_BYTES;
	if (differencing)
		p->meta_end += N_LOCATORS * SECTOR_BYTES;
	p->file_bytes = round_up_u64(p->meta_end + VHD_FOOTER_BYTES, DATA_ALIGN_BYTES);
}

/* "a.vhd" and "x/a.vhd" as "./a.vhd", "./x/a.vhd": what other tools take for relative. */
static int path_spell(const char *path, char *out, size_t room)
{
	bool plain = path[0] != '/' && strncmp(path, "./", 2) && strncmp(path, "../", 3);
	int n = snprintf(out, room, "%s%s", plain ? "./" : "", path);

	return n < 0 || (size_t)n >= room ? -ENAMETOOLONG : n;
}

/* Fills locator i and its entry in the header. Returns the encoded length or a negative errno. */
static int plan_locator(struct plan *p, unsigned i, uint32_t code, const char *path)
{
	char spelled[SECTOR_BYTES], url[SECTOR_BYTES];
	int len = path_spell(path, spelled, sizeof(spelled));

	if (len < 0)
		return len;
	if (code == VHD_LOC_MACX) {
		len = snprintf(url, sizeof(url), "file://%s", spelled);
		if (len >= (int)sizeof(url))
			return -ENAMETOOLONG;
		memcpy(p->locator[i], url, (size_t)len);
	} else {
		len = utf8_to_utf16(spelled, false, p->locator[i], SECTOR_BYTES);
	}
	if (len > 0)
		p->header.locators[i] = (struct vhd_locator){
		    .code = code,
		    .space = SECTOR_BYTES, /* bytes, as vhd-util has it; by the book it would be 1 sector */
		    .len_bytes = (uint32_t)len,
		    .off_bytes = p->meta_end - (N_LOCATORS - i) * SECTOR_BYTES,
		};
	return len;
}

static int plan_parent(struct plan *p, const struct vhd_create_opts *o, struct err *e)
{
	const char *absolute = o->parent_path_absolute ? o->parent_path_absolute : o->parent_path;
	const char *slash = strrchr(o->parent_path, '/');
	const char *base = slash ? slash + 1 : o->parent_path;
	int ret = -EINVAL;

	memcpy(p->header.parent_uuid, o->parent->uuid, sizeof(p->header.parent_uuid));
	p->header.parent_mtime = backing_mtime(o->parent->file);
	if (*base && utf8_is_name(o->parent_path, strlen(o->parent_path)) &&
	    utf8_is_name(absolute, strlen(absolute)))
		ret = utf8_to_utf16(base, true, p->header.parent_name, sizeof(p->header.parent_name));
	if (ret >= 0)
		ret = plan_locator(p, 0, VHD_LOC_MACX, o->parent_path);
	if (ret >= 0)
		ret = plan_locator(p, 1, VHD_LOC_W2KU, absolute);
	if (ret >= 0)
		ret = plan_locator(p, 2, VHD_LOC_W2RU, o->parent_path);
	if (ret == -ENAMETOOLONG)
		return err_set(e, ret,
			       "the parent's path '%s' is too long: a locator holds 512 bytes of UTF-16",
			       o->parent_path);
	return ret < 0 ? err_set(e, ret,
				 "the parent's path '%s' cannot be stored: it must be UTF-8 and name a file",
				 o->parent_path)
		       : 0;
}

static int plan_make(struct plan *p, const struct vhd_create_opts *o, struct err *e)
{
	uint64_t size = 0;
	int ret;

	if (o->kind == VHD_KIND_DIFFERENCING && (!o->parent || !o->parent_path))
		return err_set(e, -EINVAL, "a differencing disk needs a parent and its path");
	ret = plan_size(o, &size, e);
	if (ret)
		return ret;
	plan_footer(p, o, size);
	if (o->kind == VHD_KIND_FIXED) {
		p->file_bytes = size + VHD_FOOTER_BYTES;
		return 0;
	}
	plan_sparse(p, size, o->kind == VHD_KIND_DIFFERENCING);
	return o->kind == VHD_KIND_DIFFERENCING ? plan_parent(p, o, e) : 0;
}

/* ---- writing ---- */

/* Room for the image, and nothing in it that could be taken for one. */
static int medium_prepare(struct plan *p, struct err *e)
{
	static const unsigned char zeros[SECTOR_BYTES];
	struct backing *b = p->b;
	uint64_t have;
	int ret = b->ops->size(b, &have);

	if (ret)
		return io_err(p, ret, "tell its size", e);
	if (!b->traits.fixed_size) {
		if (have)
			return err_set(e, -EEXIST,
				       "%s: is not empty (%" PRIu64
				       " bytes): will not write a new image over it",
				       b->path, have);
		return io_err(p, b->ops->extend(b, p->file_bytes), "extend it", e);
	}
	if (have < p->file_bytes)
		return err_set(e, -ENOSPC, "%s: has %" PRIu64 " bytes, the image needs %" PRIu64, b->path,
			       have, p->file_bytes);
	p->file_bytes = have;
	ret = b->ops->write(b, 0, zeros, sizeof(zeros));
	if (!ret)
		ret = b->ops->write(b, have - SECTOR_BYTES, zeros, sizeof(zeros));
	if (!ret)
		ret = b->ops->flush(b);
	return io_err(p, ret, "make its old content invalid", e);
}

/* A BAT without a block, padding included. */
static int bat_write(const struct plan *p)
{
	uint64_t left = vhd_bat_bytes(p->header.bat_entries), off = p->header.table_offset;
	unsigned char *ones = malloc(CHUNK_BYTES);
	int ret = ones ? 0 : -ENOMEM;

	if (ones)
		memset(ones, 0xff, CHUNK_BYTES);
	while (left && !ret) {
		size_t n = u64_min(left, CHUNK_BYTES);

		ret = p->b->ops->write(p->b, off, ones, n);
		off += n;
		left -= n;
	}
	free(ones);
	return ret;
}

static int batmap_write(const struct plan *p)
{
	size_t map_bytes = (size_t)p->map_sectors * SECTOR_BYTES;
	unsigned char raw[VHD_BATMAP_HEADER_BYTES];
	unsigned char *map = calloc(1, map_bytes);
	struct vhd_batmap_info m = {
	    .map_off = p->batmap_hdr_off + VHD_BATMAP_HEADER_BYTES,
	    .map_sectors = p->map_sectors,
	    .version = VHD_BATMAP_VERSION_1_2,
	    .checksum = vhd_batmap_checksum(NULL, 0, VHD_BATMAP_VERSION_1_2), /* zeros add nothing */
	};
	int ret;

	if (!map)
		return -ENOMEM;
	vhd_batmap_build(&m, raw);
	ret = p->b->ops->write(p->b, p->batmap_hdr_off, raw, sizeof(raw));
	if (!ret)
		ret = p->b->ops->write(p->b, m.map_off, map, map_bytes);
	free(map);
	return ret;
}

static int sparse_write(const struct plan *p, struct err *e)
{
	unsigned char raw[VHD_HEADER_BYTES];
	struct backing *b = p->b;
	int ret;

	vhd_header_build(&p->header, raw);
	ret = b->ops->write(b, VHD_HEADER_OFF, raw, sizeof(raw));
	if (!ret)
		ret = bat_write(p);
	if (!ret)
		ret = batmap_write(p);
	for (unsigned i = 0; i < N_LOCATORS && !ret; i++)
		if (p->header.locators[i].code != VHD_LOC_NONE)
			ret = b->ops->write(b, p->header.locators[i].off_bytes, p->locator[i], SECTOR_BYTES);
	return io_err(p, ret, "write its metadata", e);
}

/* The data of a fixed disk reads zero. */
static int fixed_write(const struct plan *p, struct err *e)
{
	if (!p->b->traits.fixed_size && p->b->traits.zeroes_on_allocate)
		return 0;
	return io_err(p, p->b->ops->zero(p->b, 0, p->footer.curr_size), "zero it", e);
}

static int footers_write(const struct plan *p, struct err *e)
{
	unsigned char raw[VHD_FOOTER_BYTES];
	struct backing *b = p->b;
	int ret = b->ops->flush(b);

	vhd_footer_build(&p->footer, raw);
	if (!ret)
		ret = b->ops->write(b, p->file_bytes - VHD_FOOTER_BYTES, raw, sizeof(raw));
	if (!ret && p->footer.type != VHD_FIXED)
		ret = b->ops->write(b, 0, raw, sizeof(raw));
	if (!ret)
		ret = b->ops->flush(b);
	return io_err(p, ret, "write its footers", e);
}

int vhd_create(struct backing *b, const struct vhd_create_opts *o, struct err *e)
{
	struct plan *p = calloc(1, sizeof(*p));
	int ret;

	if (!p)
		return err_set(e, -ENOMEM, "%s: no memory to create it", b->path);
	p->b = b;
	ret = plan_make(p, o, e);
	if (ret)
		err_prefix(e, "%s", b->path);
	if (!ret)
		ret = medium_prepare(p, e);
	if (!ret)
		ret = o->kind == VHD_KIND_FIXED ? fixed_write(p, e) : sparse_write(p, e);
	if (!ret)
		ret = footers_write(p, e);
	free(p);
	return ret;
}

/* ---- hidden ---- */

static void footer_mark(unsigned char raw[VHD_FOOTER_BYTES], bool hidden)
{
	struct vhd_footer_disk *f = (void *)raw;

	f->hidden[0] = hidden;
	be32_store(f->checksum, vhd_footer_checksum(raw));
}

int vhd_set_hidden(struct image *img, bool hidden, struct err *e)
{
	bool fixed = img->ops == &vhd_fixed_format;
	struct backing *b = img->file;
	struct vhd_ends ends;
	int ret;

	if (!fixed && img->ops != &vhd_format)
		return err_set(e, -EINVAL, "%s: a %s image has no place for the mark of a parent", b->path,
			       img->ops->name);
	if (img->writing)
		return err_set(e, -EBUSY, "%s: is being written: close it first", b->path);
	ret = vhd_ends_read(b, &ends, e);
	if (ret)
		return ret;
	if (fixed ? !ends.back_ok : !ends.front_ok)
		return err_set(e, -EINVAL, "%s: its footer is damaged: run blkimg repair", b->path);
	footer_mark(ends.front_raw, hidden);
	footer_mark(ends.back_raw, hidden);
	if (fixed || ends.same)
		ret = b->ops->write(b, ends.back_off, ends.back_raw, ends.back_bytes);
	if (!ret)
		ret = b->ops->flush(b);
	if (!ret && !fixed) {
		ret = b->ops->write(b, 0, ends.front_raw, VHD_FOOTER_BYTES);
		if (!ret)
			ret = b->ops->flush(b);
	}
	if (ret)
		return err_set(e, ret, "%s: cannot write its footers: %s", b->path, strerror(-ret));
	if (!fixed) {
		memcpy(vhd_of(img)->footer_raw, ends.front_raw, VHD_FOOTER_BYTES);
		vhd_footer_load(ends.front_raw, &vhd_of(img)->footer);
	}
	img->hidden = hidden;
	return 0;
}
