/*
 * The synchronous way into a replayed file: struct backing_ops and the opener. Each call is one logged
 * operation that is submitted and completed without anything in between; it takes 1 us of simulated time.
 * Faults apply to it as to any operation.
 */
#include "blkd/io/replay.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <stdlib.h>

#define SYNC_CALL_NS 1000u
#define MEDIUM_DEV   0x5eedu
#define FIRST_INODE  1000u

static struct replay_backing *backing_of(struct backing *b)
{
	return container_of(b, struct replay_backing, base);
}

static int run(struct backing *b, enum io_op op, uint64_t off, uint64_t len, void *buf)
{
	struct replay_file *f = backing_of(b)->file;
	struct replay_rec rec = {.op = op, .file = f->id, .sync = true, .off_bytes = off, .len_bytes = len};
	struct replay_fate fate;
	size_t index;
	int rc;

	if (op != IO_READ && op != IO_FLUSH && !b->writable)
		return -EBADF;
	f->replay->now_ns += SYNC_CALL_NS;
	replay_submit(f->replay, &rec, op == IO_WRITE ? buf : NULL, &fate, &index);
	rc = replay_finish(f->replay, &rec, buf, &fate, index);
	return rc < 0 ? rc : 0;
}

static int backing_read(struct backing *b, uint64_t off, void *buf, size_t len)
{
	return run(b, IO_READ, off, len, buf);
}

static int backing_write(struct backing *b, uint64_t off, const void *buf, size_t len)
{
	return run(b, IO_WRITE, off, len, (void *)(uintptr_t)buf);
}

static int backing_flush(struct backing *b)
{
	return run(b, IO_FLUSH, 0, 0, NULL);
}

static int backing_size(struct backing *b, uint64_t *size)
{
	*size = backing_of(b)->file->size;
	return 0;
}

static int backing_extend(struct backing *b, uint64_t size)
{
	uint64_t old = backing_of(b)->file->size;

	if (b->traits.fixed_size)
		return -ENOSPC;
	if (size <= old)
		return 0;
	return run(b, IO_EXTEND, old, size - old, NULL);
}

static int backing_truncate(struct backing *b, uint64_t size)
{
	if (b->traits.fixed_size)
		return -EINVAL;
	return run(b, IO_TRUNCATE, size, 0, NULL);
}

static int backing_zero(struct backing *b, uint64_t off, uint64_t len)
{
	return run(b, IO_ZERO, off, len, NULL);
}

static int backing_fence(struct backing *b, unsigned wait_ms)
{
	struct replay_backing *rb = backing_of(b);

	if (rb->has_fence)
		return 0;
	if (rb->file->fenced) {
		rb->file->replay->now_ns += (uint64_t)wait_ms * 1000000u;
		return -EBUSY;
	}
	rb->file->fenced = rb->has_fence = true;
	return 0;
}

static void backing_close(struct backing *b)
{
	struct replay_backing *rb = backing_of(b);

	if (rb->has_fence)
		rb->file->fenced = false;
	rb->file->opens--;
	rb->file->replay->opens--;
	free(b->path);
	free(rb);
}

const struct backing_ops replay_backing_ops = {
    .name = "replay",
    .read = backing_read,
    .write = backing_write,
    .flush = backing_flush,
    .size = backing_size,
    .extend = backing_extend,
    .truncate = backing_truncate,
    .zero = backing_zero,
    .fence = backing_fence,
    .close = backing_close,
};

int replay_open(void *ctx, const char *path, unsigned flags, struct backing **out, struct err *e)
{
	struct replay *r = ctx;
	struct replay_file *f;
	struct replay_backing *rb;
	int id = replay_file_find(r, path), rc = id;

	if (flags & BACKING_CREATE) {
		f = replay_file_new(r, path, &rc);
		if (!f)
			return err_set(e, rc, "%s: cannot create: %s", path, strerror(-rc));
	} else if (id < 0) {
		return err_set(e, id, "%s: no such file on the medium", path);
	} else {
		f = replay_file_at(r, id);
	}
	rb = calloc(1, sizeof(*rb));
	if (rb)
		rb->base.path = strdup(path);
	if (!rb || !rb->base.path) {
		free(rb);
		return err_set(e, -ENOMEM, "%s: no memory", path);
	}
	rb->base.ops = &replay_backing_ops;
	rb->base.traits = f->traits;
	rb->base.fd = -1;
	rb->base.writable = flags & (BACKING_WRITE | BACKING_CREATE);
	rb->base.dev_id = MEDIUM_DEV;
	rb->base.ino = FIRST_INODE + f->id;
	rb->file = f;
	f->opens++;
	r->opens++;
	*out = &rb->base;
	return 0;
}
