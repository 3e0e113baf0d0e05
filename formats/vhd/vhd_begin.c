/*
 * Opening a VHD leaf for writing: the trailing footer, the free space, the open generation. Control path:
 * blocking, through the backing. The caller holds the fence and has replayed and committed the journal's
 * records.
 *
 * The footer copy at offset 0 rules, so the trailing one may be missing at any point here and a power cut
 * leaves an image that opens; what is at the end of the file is overwritten only where no block is. Another
 * program may have left less room behind the last block than a footer takes: then the file grows first.
 */
#include "formats/vhd/vhd_write.h"

#include "blkd/err.h"

#include <errno.h>
#include <inttypes.h>

/* The file gets the size that the rest relies on: a multiple of 4096 with room for a footer behind the last
 * block. */
static int file_resize(struct vhd *v, uint64_t size, uint64_t used_end, struct err *e)
{
	struct backing *b = v->img.file;
	uint64_t want = u64_max(round_up_u64(used_end + VHD_FOOTER_BYTES, VHD_PAGE_BYTES),
				round_up_u64(size, VHD_PAGE_BYTES));
	int ret;

	v->file_bytes = size;
	if (b->traits.fixed_size && (size % SECTOR_BYTES || size < used_end + VHD_FOOTER_BYTES))
		return err_set(
		    e, -ENOSPC,
		    "%s: its last block leaves no room for the footer in the last sector of the device: run "
		    "lvextend",
		    b->path);
	if (b->traits.fixed_size || want == size)
		return 0;
	ret = b->ops->extend(b, want);
	if (ret)
		return err_set(e, ret, "%s: cannot make room for its trailing footer: %s", b->path,
			       strerror(-ret));
	v->file_bytes = want;
	return 0;
}

static int footer_put_right(struct vhd *v, struct err *e)
{
	struct backing *b = v->img.file;
	uint64_t used_end = vhd_used_end(v), size;
	unsigned char at_end[VHD_FOOTER_BYTES];
	int ret = b->ops->size(b, &size);

	if (ret)
		return err_set(e, ret, "%s: cannot tell its size: %s", b->path, strerror(-ret));
	if (size % SECTOR_BYTES == 0 && size >= used_end + VHD_FOOTER_BYTES) {
		ret = b->ops->read(b, size - VHD_FOOTER_BYTES, at_end, sizeof(at_end));
		if (ret)
			return err_set(e, ret, "%s: cannot read its trailing footer: %s", b->path,
				       strerror(-ret));
		if (!memcmp(at_end, v->footer_raw, sizeof(at_end))) {
			v->file_bytes = size;
			v->footer_at_end_ok = true;
			return 0;
		}
	}
	ret = file_resize(v, size, used_end, e);
	if (ret)
		return ret;
	ret = b->ops->write(b, v->file_bytes - VHD_FOOTER_BYTES, v->footer_raw, VHD_FOOTER_BYTES);
	if (ret)
		return err_set(e, ret, "%s: cannot write its trailing footer: %s", b->path, strerror(-ret));
	v->footer_at_end_ok = true;
	return 0;
}

/* One sector, so a power cut leaves the old counter or the new one. */
static int generation_raise(struct vhd *v, struct err *e)
{
	struct backing *b = v->img.file;
	unsigned char *raw = v->w->closing.header;
	struct vhd_batmap_info info;
	uint64_t next;
	int ret;

	if (!v->batmap_hdr_off)
		return 0;
	ret = b->ops->read(b, v->batmap_hdr_off, raw, VHD_BATMAP_HEADER_BYTES);
	if (ret)
		return err_set(e, ret, "%s: cannot read its batmap's header: %s", b->path, strerror(-ret));
	if (!vhd_batmap_parse(raw, &info) || info.generation != v->generation)
		return err_set(e, -ESTALE,
			       "%s: its batmap's header has changed since the image was opened: another "
			       "program writes it",
			       b->path);
	next = v->generation + 1 ? v->generation + 1 : 1;
	vhd_batmap_set_generation(raw, next);
	ret = b->ops->write(b, v->batmap_hdr_off, raw, VHD_BATMAP_HEADER_BYTES);
	if (ret)
		return err_set(e, ret, "%s: cannot raise its open generation: %s", b->path, strerror(-ret));
	v->generation = next;
	return 0;
}

int vhd_begin_writing(struct image *img, struct err *e)
{
	struct vhd *v = vhd_of(img);
	struct backing *b = img->file;
	int ret = vhd_write_prepare(v, 0, e);

	if (ret)
		return ret;
	if (img->writing || v->w->sealed)
		return err_set(e, -EINVAL, "%s: it was opened for writing before", b->path);
	if (img->poisoned || v->w->held)
		return err_set(e, -EIO, "%s: what the journal's records say could not be made durable",
			       b->path);
	ret = footer_put_right(v, e);
	if (!ret)
		ret = vhd_space_find(v, e);
	if (!ret)
		ret = generation_raise(v, e);
	if (ret)
		return ret;
	ret = b->ops->flush(b);
	if (ret) {
		img->poisoned = true;
		return err_set(e, ret, "%s: cannot flush: %s", b->path, strerror(-ret));
	}
	img->writing = true;
	return 0;
}

uint64_t vhd_generation(const struct image *img)
{
	return vhd_of_const(img)->generation;
}
