/*
 * The raw format: byte n of the disk is byte n of the file. Read this one first: it fills every slot of
 * struct image_format with the least that the slot can mean.
 *
 * Reading: map() answers DATA for the whole range, and never META: there is no metadata.
 * Writing: write_begin() hands the range back with epoch 0, because nothing but the data itself has to become
 * durable. A commit is then a single flush, or nothing where a completed write is durable already. Growing
 * and closing have nothing to do. A failed flush poisons the image: the kernel may have dropped the pages and
 * would call the next flush good.
 *
 * An image that has no parent may be punched where the guest trims: there is nothing below to be uncovered.
 */
#include "formats/raw.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define PIECE_MAX_BYTES (1u << 30) /* a piece's length has 32 bits */

enum { PHASE_START, PHASE_FLUSHING, PHASE_OVER };

static struct raw_image *raw_of(struct image *img)
{
	return (struct raw_image *)img;
}

struct raw_image *raw_new(const struct image_format *ops, struct backing *b, uint64_t size_bytes)
{
	struct raw_image *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	image_init(&r->img, ops, b);
	r->img.size_bytes = size_bytes;
	r->epoch_open = 1;
	return r;
}

static int raw_open(struct backing *b, struct image **out, struct err *e)
{
	struct raw_image *r;
	uint64_t size_bytes;
	int ret = b->ops->size(b, &size_bytes);

	if (ret)
		return err_set(e, ret, "%s: cannot tell its size: %s", b->path, strerror(-ret));
	if (!size_bytes || size_bytes % SECTOR_BYTES)
		return err_set(e, -EINVAL,
			       "%s: %" PRIu64
			       " bytes are no raw disk: the size must be a positive multiple of 512",
			       b->path, size_bytes);
	r = raw_new(&raw_format, b, size_bytes);
	if (!r)
		return err_set(e, -ENOMEM, "%s: no memory for the image", b->path);
	*out = &r->img;
	return 0;
}

void raw_close(struct image *img)
{
	image_release(img);
	free(raw_of(img));
}

void raw_map(const struct image *img, const void *meta, uint64_t off_bytes, uint32_t len_bytes,
	     struct extent *out)
{
	(void)img;
	(void)meta;
	*out = (struct extent){.kind = EXT_DATA, .len_bytes = len_bytes, .file_off = off_bytes};
}

bool raw_owns(const struct image *img, uint64_t off_bytes, uint64_t len_bytes)
{
	(void)len_bytes;
	return off_bytes < img->size_bytes;
}

const void *raw_meta_get(struct image *img, uint64_t key)
{
	(void)img;
	(void)key;
	return NULL;
}

int raw_meta_put(struct image *img, uint64_t key, const void *buf, int res)
{
	(void)img;
	(void)key;
	(void)buf;
	(void)res;
	return 0;
}

int raw_write_begin(struct image *img, enum write_op op, unsigned flags, uint64_t off_bytes,
		    uint64_t len_bytes, struct write_piece *p)
{
	(void)flags;
	if (!img->writing)
		return -EROFS;
	if (off_bytes >= img->size_bytes || len_bytes > img->size_bytes - off_bytes)
		return -EINVAL;
	*p = (struct write_piece){
	    .off_bytes = off_bytes,
	    .file_off = off_bytes,
	    .len_bytes = (uint32_t)u64_min(len_bytes, PIECE_MAX_BYTES),
	};
	switch (op) {
	case WRITE_DATA:
		p->act = PIECE_WRITE;
		break;
	case WRITE_ZERO:
		p->act = PIECE_ZERO;
		break;
	case WRITE_TRIM:
		p->act = img->file->traits.can_punch ? PIECE_PUNCH : PIECE_NOTHING;
		break;
	}
	return 0;
}

void raw_write_end(struct image *img, const struct write_piece *p, int res)
{
	(void)res;
	if (p->act != PIECE_NOTHING && !img->file->traits.durable_at_completion)
		img->wants |= IMAGE_DIRTY;
}

int raw_job_begin(struct image *img, enum job_kind kind, struct job *j)
{
	if (!img->writing)
		return -EROFS;
	if (img->poisoned)
		return -EIO;
	*j = (struct job){.kind = kind, .phase = PHASE_OVER};
	switch (kind) {
	case JOB_COMMIT:
		img->wants &= ~(unsigned)IMAGE_DIRTY;
		j->epoch = raw_of(img)->epoch_open++;
		j->phase = PHASE_START;
		break;
	case JOB_GROW:
		break;
	case JOB_CLOSE:
		img->writing = false;
		break;
	}
	return 0;
}

int raw_job_next(struct image *img, struct job *j, struct meta_act *acts, unsigned max)
{
	switch (j->phase) {
	case PHASE_START:
		if (img->file->traits.durable_at_completion) {
			raw_of(img)->epoch_durable = j->epoch;
			j->phase = PHASE_OVER;
			return 0;
		}
		if (!max)
			return -EAGAIN;
		acts[0].kind = ACT_FLUSH;
		j->phase = PHASE_FLUSHING;
		j->running = 1;
		return 1;
	case PHASE_FLUSHING:
		return -EAGAIN;
	default:
		return 0;
	}
}

void raw_job_done(struct image *img, struct job *j, const struct meta_act *act, int res)
{
	(void)act;
	j->running--;
	j->phase = PHASE_OVER;
	if (res < 0) {
		j->res = res;
		img->poisoned = true;
	} else {
		raw_of(img)->epoch_durable = j->epoch;
	}
}

uint64_t raw_epoch_open(const struct image *img)
{
	return ((const struct raw_image *)img)->epoch_open;
}

uint64_t raw_epoch_durable(const struct image *img)
{
	return ((const struct raw_image *)img)->epoch_durable;
}

int raw_dirty_replay(struct image *img, const struct meta_record *rec, unsigned n, struct err *e)
{
	(void)rec;
	if (n)
		return err_set(e, -EINVAL,
			       "%s: the journal holds %u metadata records, but a flat image has no metadata",
			       img->file->path, n);
	return 0;
}

int raw_begin_writing(struct image *img, struct err *e)
{
	if (!img->file->writable)
		return err_set(e, -EROFS, "%s: was opened read-only", img->file->path);
	if (img->hidden)
		return err_set(e, -EROFS, "%s: is marked as a parent (hidden) and is never written",
			       img->file->path);
	img->writing = true;
	return 0;
}

uint64_t raw_generation(const struct image *img)
{
	(void)img;
	return 0;
}

const struct image_format raw_format = {
    .name = "raw",
    .open = raw_open,
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
