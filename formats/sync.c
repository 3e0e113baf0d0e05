/*
 * The synchronous executor: what the device thread does with a format, done one step after the other through
 * the backing's blocking calls. For opening, for offline tools and for tests. It shows in the smallest form
 * what an executor owes a format: every write_begin that answered 0 gets its write_end, a parked write
 * changes nothing and is asked again, acts of one batch may run in any order (here: as given).
 */
#include "blkd/format.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define ACTS_MAX 16u
#define PARKS_MAX                                                                                            \
	64u /* a write that is parked that often without a step forward is a defect of ours, not of the      \
	       image */
#define ZERO_STEP_BYTES (1u << 30)

static int act_run(struct backing *b, const struct meta_act *a)
{
	switch (a->kind) {
	case ACT_FLUSH:
		return b->ops->flush(b);
	case ACT_WRITE:
		return b->ops->write(b, a->off_bytes, a->buf, a->len_bytes);
	case ACT_EXTEND:
		return b->ops->extend(b, a->off_bytes + a->len_bytes);
	case ACT_TRUNCATE:
		return b->ops->truncate(b, a->off_bytes);
	case ACT_ZERO:
	case ACT_PUNCH:
		return b->ops->zero(b, a->off_bytes, a->len_bytes);
	}
	return -EINVAL;
}

static const char *job_name(enum job_kind kind)
{
	switch (kind) {
	case JOB_COMMIT:
		return "making it durable";
	case JOB_GROW:
		return "growing it";
	case JOB_CLOSE:
		return "closing it";
	}
	return "?";
}

/* Runs what job_next hands out until the job is over. */
static void job_run(struct image *img, struct job *j, struct meta_act *acts, unsigned char *bufs)
{
	int n;

	for (;;) {
		for (unsigned i = 0; i < ACTS_MAX; i++)
			acts[i] = (struct meta_act){.buf = bufs + (size_t)i * META_PAGE_BYTES};
		n = img->ops->job_next(img, j, acts, ACTS_MAX);
		if (!n)
			return;
		CHECK(n >
		      0); /* nothing of ours is in flight between calls: there is nothing it could wait for */
		for (int i = 0; i < n; i++)
			img->ops->job_done(img, j, &acts[i], act_run(img->file, &acts[i]));
	}
}

int image_run_job(struct image *img, enum job_kind kind, struct err *e)
{
	struct meta_act *acts;
	unsigned char *bufs;
	struct job j;
	int ret;

	acts = calloc(ACTS_MAX, sizeof(*acts));
	bufs = calloc(ACTS_MAX, META_PAGE_BYTES);
	ret = acts && bufs ? img->ops->job_begin(img, kind, &j) : -ENOMEM;
	if (!ret) {
		job_run(img, &j, acts, bufs);
		ret = j.res;
	}
	free(acts);
	free(bufs);
	return ret ? err_set(e, ret, "%s: %s failed: %s", img->file->path, job_name(kind), strerror(-ret))
		   : 0;
}

/* ---- reading ---- */

/* The metadata sectors read last: neighbouring runs of a block ask for the same one again. */
#define MEMO_N 8u

struct meta_memo {
	struct {
		const struct image *img;
		uint64_t key;
		unsigned char sector[SECTOR_BYTES];
	} slot[MEMO_N];
};

/* The live view if the image has one, else what is on disk. NULL: reading failed with *ret. */
static const void *meta_bring(struct meta_memo *m, const struct chain *c, const struct extent *x, int *ret)
{
	struct image *img = chain_image(c, x->layer);
	unsigned i = x->layer % MEMO_N;

	if (!x->layer && img->writing) {
		const void *live = img->ops->meta_get(img, x->file_off);

		if (live)
			return live;
	}
	if (m->slot[i].img != img || m->slot[i].key != x->file_off) {
		m->slot[i].img = NULL;
		/* No layer is without an image. NOLINTNEXTLINE(clang-analyzer-core.NullDereference) */
		*ret = img->file->ops->read(img->file, x->file_off, m->slot[i].sector, SECTOR_BYTES);
		if (*ret)
			return NULL;
		m->slot[i].img = img;
		m->slot[i].key = x->file_off;
	}
	return m->slot[i].sector;
}

static int range_check(const struct chain *c, uint64_t off_bytes, uint64_t len_bytes, struct err *e)
{
	if (off_bytes % SECTOR_BYTES || len_bytes % SECTOR_BYTES || off_bytes > c->size_bytes ||
	    len_bytes > c->size_bytes - off_bytes)
		return err_set(e, -EINVAL,
			       "%s: %" PRIu64 " bytes at %" PRIu64 " are not sectors of a disk of %" PRIu64
			       " bytes",
			       c->leaf->file->path, len_bytes, off_bytes, c->size_bytes);
	return 0;
}

/* Reads a prefix of the range; *done: how much. */
static int read_some(struct meta_memo *memo, const struct chain *c, uint64_t off, void *buf, uint32_t len,
		     uint32_t *done, struct err *e)
{
	const void *meta = NULL;
	struct image *img;
	struct extent x;
	int ret = 0;

	chain_map(c, 0, NULL, off, len, &x);
	while (x.kind == EXT_META) {
		meta = meta_bring(memo, c, &x, &ret);
		if (!meta)
			break;
		chain_map(c, x.layer, meta, off, x.len_bytes, &x);
	}
	*done = x.len_bytes;
	img = chain_image(c, x.layer);
	if (!ret && x.kind == EXT_DATA)
		ret = img->file->ops->read(img->file, x.file_off, buf, x.len_bytes);
	else if (!ret)
		memset(buf, 0, x.len_bytes);
	return ret ? err_set(e, ret, "%s: cannot read at offset %" PRIu64 ": %s", img->file->path, x.file_off,
			     strerror(-ret))
		   : 0;
}

int chain_read(const struct chain *c, uint64_t off_bytes, void *buf, uint64_t len_bytes, struct err *e)
{
	struct meta_memo *memo;
	unsigned char *p = buf;
	int ret = range_check(c, off_bytes, len_bytes, e);

	if (ret)
		return ret;
	memo = calloc(1, sizeof(*memo));
	if (!memo)
		return err_set(e, -ENOMEM, "%s: no memory to read it", c->leaf->file->path);
	while (len_bytes && !ret) {
		uint32_t done;

		ret =
		    read_some(memo, c, off_bytes, p, (uint32_t)u64_min(len_bytes, ZERO_STEP_BYTES), &done, e);
		off_bytes += done;
		p += done;
		len_bytes -= done;
	}
	free(memo);
	return ret;
}

/* ---- writing ---- */

static int unpark_meta(struct image *leaf, uint64_t key, struct err *e)
{
	unsigned char sector[SECTOR_BYTES];
	int ret = leaf->file->ops->read(leaf->file, key, sector, sizeof(sector));
	int put = leaf->ops->meta_put(leaf, key, sector, ret);

	if (ret)
		return err_set(e, ret, "%s: cannot read metadata at offset %" PRIu64 ": %s", leaf->file->path,
			       key, strerror(-ret));
	if (put == -EBUSY) /* the write will park on it again, and then there is room */
		return image_run_job(leaf, JOB_COMMIT, e);
	return put ? err_set(e, put, "%s: no room for metadata: %s", leaf->file->path, strerror(-put)) : 0;
}

static int unpark(struct image *leaf, const struct write_piece *p, struct err *e)
{
	switch (p->park) {
	case PARK_META:
		return unpark_meta(leaf, p->park_key, e);
	case PARK_EPOCH:
		return image_run_job(leaf, JOB_COMMIT, e);
	case PARK_GROW:
		return image_run_job(leaf, JOB_GROW, e);
	}
	return err_set(e, -EINVAL, "%s: parked on nothing", leaf->file->path);
}

static int piece_run(struct backing *b, const struct write_piece *p, const void *buf)
{
	switch (p->act) {
	case PIECE_WRITE:
		return b->ops->write(b, p->file_off, buf, p->len_bytes);
	case PIECE_ZERO:
	case PIECE_PUNCH:
		return b->ops->zero(b, p->file_off, p->len_bytes);
	case PIECE_NOTHING:
		return 0;
	}
	return -EINVAL;
}

/* Writes a prefix of the range, which lies within one unit of the owner index; *done: how much. */
static int write_some(const struct chain *c, enum write_op op, uint64_t off, const void *buf, uint64_t len,
		      uint32_t *done, struct err *e)
{
	unsigned flags = chain_below_is_zero(c, off, len) ? WRITE_BELOW_ZERO : 0;
	struct image *leaf = c->leaf;
	struct write_piece p;
	int ret;

	for (unsigned parks = 0;; parks++) {
		p = (struct write_piece){0};
		ret = leaf->ops->write_begin(leaf, op, flags, off, len, &p);
		if (ret != -EINPROGRESS)
			break;
		CHECK(parks < PARKS_MAX);
		ret = unpark(leaf, &p, e);
		if (ret)
			return ret;
	}
	if (!ret) {
		ret = piece_run(leaf->file, &p, buf);
		leaf->ops->write_end(leaf, &p, ret);
		*done = p.len_bytes;
	}
	if (ret)
		return err_set(e, ret, "%s: cannot write %" PRIu64 " bytes of the disk at %" PRIu64 ": %s",
			       leaf->file->path, len, off, strerror(-ret));
	return leaf->wants & IMAGE_WANT_COMMIT ? image_run_job(leaf, JOB_COMMIT, e) : 0;
}

int chain_write(const struct chain *c, enum write_op op, uint64_t off_bytes, const void *buf,
		uint64_t len_bytes, struct err *e)
{
	const unsigned char *p = buf;
	int ret = range_check(c, off_bytes, len_bytes, e);

	if (!ret && (!c->leaf->writing || !c->leaf->ops->write_begin))
		ret = err_set(e, -EROFS, "%s: is not open for writing", c->leaf->file->path);
	while (len_bytes && !ret) {
		uint64_t unit_left = CHAIN_BLOCK_BYTES - off_bytes % CHAIN_BLOCK_BYTES;
		uint32_t done = 0;

		ret = write_some(c, op, off_bytes, p, u64_min(len_bytes, unit_left), &done, e);
		off_bytes += done;
		len_bytes -= done;
		if (p)
			p += done;
	}
	return ret;
}
