/*
 * Fixed VHD: a flat disk with a footer behind it. Data from offset 0, the footer in the last 512 bytes of the
 * file (or 511, as Virtual PC wrote it before 2004).
 *
 * Whoever opens a file as this format has it from a record, from --format, or from format_find(). So sector 0
 * is never looked at: it is the guest's, who may write a footer of any type there. The disk is curr_size
 * bytes; what a larger file holds between them and the footer is nobody's. The footer is never written while
 * serving, so everything else is raw.c's.
 */
#include "formats/raw.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/image.h"
#include "formats/vhd/vhd_read.h"

#include <inttypes.h>
#include <errno.h>

static int vhd_fixed_open(struct backing *b, struct image **out, struct err *e)
{
	struct raw_image *r;
	struct vhd_ends ends;
	int ret = vhd_ends_read(b, &ends, e);

	if (ret)
		return ret;
	if (!ends.back_ok)
		return err_set(e, -EINVAL, "%s: not a fixed VHD: at its end: %s", b->path,
			       ends.back_err.text);
	if (ends.back.type != VHD_FIXED)
		return err_set(e, -EINVAL,
			       "%s: its footer says type %" PRIu32
			       ", not fixed (2): open it with --format vhd",
			       b->path, ends.back.type);
	if (ends.back.curr_size > ends.back_off)
		return err_set(e, -EINVAL,
			       "%s: its footer says %" PRIu64 " bytes, but only %" PRIu64
			       " lie before it: the file was cut; run blkimg check",
			       b->path, ends.back.curr_size, ends.back_off);
	r = raw_new(&vhd_fixed_format, b, ends.back.curr_size);
	if (!r)
		return err_set(e, -ENOMEM, "%s: no memory for the image", b->path);
	memcpy(r->img.uuid, ends.back.uuid, sizeof(r->img.uuid));
	r->img.hidden = ends.back.hidden != 0;
	if (ends.back_bytes == VHD_SHORT_FOOTER_BYTES)
		image_note(&r->img, "the footer has 511 bytes, as old Virtual PC wrote it");
	*out = &r->img;
	return 0;
}

const struct image_format vhd_fixed_format = {
    .name = "vhd-fixed",
    .open = vhd_fixed_open,
    .close = raw_close,
    .map = raw_map,
    .owns = raw_owns,
    .meta_get = raw_meta_get,
    .meta_put = raw_meta_put,
    .write_begin = raw_write_begin,
    .write_end = raw_write_end,
    .job_begin = raw_job_begin,
    .job_next = raw_job_next,
    .job_done = raw_job_done,
    .epoch_open = raw_epoch_open,
    .epoch_durable = raw_epoch_durable,
    .dirty_replay = raw_dirty_replay,
    .begin_writing = raw_begin_writing,
    .generation = raw_generation,
};
