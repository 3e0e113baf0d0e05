/*
 * Opening a dynamic or differencing VHD.
 *
 * The footer copy at offset 0 rules: the last sector of an image that was not closed may be a guest's, and a
 * forged footer there would choose size, type and, through a header, which host file is the parent. A
 * trailing footer that is missing, killed by tapdisk or different is noted, never believed; a copy at 0 that
 * is damaged is damage, and mending it is an operator's decision (blkimg repair).
 *
 * Everything is checked before the image exists, in the order in which the later checks lean on the earlier
 * ones: footer, header, BAT, blocks, batmap, parent locators. Memory: the BAT (bounded by
 * VHD_MAX_BAT_ENTRIES), as much again while blocks are sorted, and small change. Nothing is written and
 * nothing is retried.
 */
#include "formats/vhd/vhd.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/image.h"
#include "formats/vhd/vhd_read.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

int vhd_ends_read(struct backing *b, struct vhd_ends *out, struct err *e)
{
	int ret;

	memset(out, 0, sizeof(*out));
	ret = b->ops->size(b, &out->file_bytes);
	if (ret)
		return err_set(e, ret, "%s: cannot tell its size: %s", b->path, strerror(-ret));
	if (out->file_bytes < VHD_SHORT_FOOTER_BYTES)
		return err_set(e, -EINVAL, "%s: not a VHD: %" PRIu64 " bytes are too few", b->path,
			       out->file_bytes);
	out->back_bytes = out->file_bytes % SECTOR_BYTES == VHD_SHORT_FOOTER_BYTES ? VHD_SHORT_FOOTER_BYTES
										   : VHD_FOOTER_BYTES;
	out->back_off = out->file_bytes - out->back_bytes;
	ret = b->ops->read(b, 0, out->front_raw, VHD_FOOTER_BYTES);
	if (!ret)
		ret = b->ops->read(b, out->back_off, out->back_raw, out->back_bytes);
	if (ret)
		return err_set(e, ret, "%s: cannot read its footers: %s", b->path, strerror(-ret));
	out->front_ok = !vhd_footer_parse(out->front_raw, &out->front, &out->front_err);
	out->back_ok = !vhd_footer_parse(out->back_raw, &out->back, &out->back_err);
	out->same = out->front_ok && !memcmp(out->front_raw, out->back_raw, out->back_bytes);
	return 0;
}

static int footer_choose(struct vhd *v, const struct vhd_ends *ends, struct err *e)
{
	struct image *img = &v->img;
	const char *path = img->file->path;

	if (!ends->front_ok && ends->back_ok && ends->back.type != VHD_FIXED)
		return err_set(e, -EINVAL,
			       "%s: the footer copy at offset 0, which rules, is damaged (%s); the one at "
			       "the end is whole: run blkimg repair",
			       path, ends->front_err.text);
	if (!ends->front_ok)
		return err_set(e, ends->front_err.code,
			       "%s: not a dynamic or differencing VHD: at offset 0: %s", path,
			       ends->front_err.text);
	if (ends->front.type == VHD_FIXED)
		return err_set(e, -EINVAL,
			       "%s: the footer at offset 0 says fixed, not dynamic or differencing: open it "
			       "with --format vhd-fixed",
			       path);
	v->footer_at_end_ok = ends->same;
	if (ends->same)
		return 0;
	if (vhd_footer_is_killed(ends->back_raw))
		image_note(img, "the trailing footer was killed by tapdisk, which did not close the image");
	else if (ends->back_ok)
		image_note(img, "the trailing footer differs from the copy at offset 0 and is not believed");
	else
		image_note(img, "the trailing footer is missing: the image was not closed");
	return 0;
}

static int header_read(struct vhd *v, struct err *e)
{
	struct backing *b = v->img.file;
	unsigned char raw[VHD_HEADER_BYTES];
	int ret;

	if (v->footer.data_offset + VHD_HEADER_BYTES > v->file_bytes)
		return err_set(e, -EINVAL,
			       "%s: the footer puts the header at offset %" PRIu64
			       ", past the end of the file",
			       b->path, v->footer.data_offset);
	ret = b->ops->read(b, v->footer.data_offset, raw, sizeof(raw));
	if (ret)
		return err_set(e, ret, "%s: cannot read its header: %s", b->path, strerror(-ret));
	ret = vhd_header_parse(raw, &v->footer, &v->header, e);
	if (ret) {
		err_prefix(e, "%s", b->path);
		return ret;
	}
	v->bat_off = v->header.table_offset;
	if (v->bat_off + vhd_bat_bytes(v->header.bat_entries) > v->file_bytes)
		return err_set(e, -EINVAL,
			       "%s: the BAT of %" PRIu32 " entries at offset %" PRIu64
			       " reaches past the end of the file",
			       b->path, v->header.bat_entries, v->bat_off);
	v->block_bytes = v->header.block_bytes;
	v->block_shift = (uint32_t)__builtin_ctz(v->block_bytes);
	v->n_blocks = (uint32_t)vhd_blocks_of(v->footer.curr_size, v->block_bytes);
	v->meta_end = u64_max(v->footer.data_offset + VHD_HEADER_BYTES,
			      v->bat_off + vhd_bat_bytes(v->header.bat_entries));
	return 0;
}

static int read_all(struct vhd *v, const struct vhd_ends *ends, struct err *e)
{
	struct image *img = &v->img;
	int ret = footer_choose(v, ends, e);

	if (ret)
		return ret;
	v->footer = ends->front;
	memcpy(v->footer_raw, ends->front_raw, sizeof(v->footer_raw));
	v->file_bytes = ends->file_bytes;
	v->big_endian_bitmap = true; /* tap 0.1 was refused with its footer */
	img->size_bytes = v->footer.curr_size;
	img->hidden = v->footer.hidden != 0;
	memcpy(img->uuid, v->footer.uuid, sizeof(img->uuid));
	ret = header_read(v, e);
	if (!ret && v->footer.type == VHD_DIFFERENCING)
		ret = vhd_parent_read(v, e);
	if (!ret)
		ret = vhd_bat_read(v, e);
	if (!ret)
		ret = vhd_batmap_read(v, e);
	return ret;
}

static void vhd_free(struct vhd *v)
{
	free(v->bat);
	free(v->full);
	free(v->batmap_disk);
	free(v);
}

int vhd_open(struct backing *b, struct image **out, struct err *e)
{
	struct vhd_ends ends;
	struct vhd *v;
	int ret = vhd_ends_read(b, &ends, e);

	if (ret)
		return ret;
	v = calloc(1, sizeof(*v));
	if (!v)
		return err_set(e, -ENOMEM, "%s: no memory for the image", b->path);
	image_init(&v->img, &vhd_format, b);
	ret = read_all(v, &ends, e);
	if (ret) {
		v->img.file = NULL; /* stays the caller's */
		image_release(&v->img);
		vhd_free(v);
		return ret;
	}
	*out = &v->img;
	return 0;
}

void vhd_close(struct image *img)
{
	struct vhd *v = vhd_of(img);

	vhd_write_free(v);
	image_release(img);
	vhd_free(v);
}
