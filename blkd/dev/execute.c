/* HOT PATH: no malloc, no log, no syscall, no lock but the lock-free buffer pool. */
/*
 * Operations on files: one op moves [file_off, file_off + len) with one verb, in steps that the engine and
 * the storage allow.
 *
 * Step kinds. DIRECT: what the caller asked for is aligned and goes to the engine as it is; after a short
 * result the rest is a new step. COVER: what is not aligned to the storage's blocks is done in a bounce
 * buffer that covers whole blocks: read the cover, copy out (a read), or copy in and write the cover
 * (read-modify-write).
 *
 * Read-modify-write is serialised by block of the file: on a leaf whose storage has blocks above 512 bytes
 * all writes in flight are registered, and one that shares a block with another, one of the two unaligned,
 * waits. Metadata goes the same way: a foreign image may have a bitmap and a neighbour's data in one block.
 *
 * Zeroing: the aligned middle of a long range is asked of the file system, everything else is written,
 * because a file system does the edges of its own blocks through the page cache, behind the back of direct
 * I/O.
 *
 * An op never fails for want of a resource: it waits (engine full: io_wait; no bounce buffer: bounce_wait; a
 * neighbour's read-modify-write: rmw_wait) and ops_retry() starts it when something was given back.
 */
#include "blkd/bytes.h"
#include "blkd/dev/dev_priv.h"

static const unsigned char zeros[ZERO_WRITE_BYTES] __attribute__((aligned(4096)));

struct op *op_get(struct dev *d)
{
	struct list *n = list_pop(&d->ops_free);

	return n ? container_of(n, struct op, link) : NULL;
}

void op_put(struct dev *d, struct op *op)
{
	if (!op->pooled)
		return;
	list_add_tail(&d->ops_free, &op->link);
	d->replan = true;
}

/* ---- bounce buffers ---- */

static bool bounce_get(struct dev *d, uint64_t len_bytes, struct buf *out)
{
	if (bufpool_get(d->opts.pool, len_bytes, out))
		return true;
	if (d->bounce_busy)
		return false;
	d->bounce_busy = true;
	*out = d->bounce_reserve;
	return true;
}

static void bounce_put(struct dev *d, struct buf *b)
{
	if (b->mem == d->bounce_reserve.mem)
		d->bounce_busy = false;
	else
		bufpool_put(d->opts.pool, b);
	b->mem = NULL;
}

/* ---- the end of an op ---- */

static void op_end(struct dev *d, struct op *op, int res)
{
	if (op->bounce.mem)
		bounce_put(d, &op->bounce);
	if (op->in_leaf_writes) {
		list_del(&op->link);
		op->in_leaf_writes = false;
	}
	op->done(d, op, res);
}

/* ---- steps ---- */

static void io_submit(struct dev *d, struct op *op)
{
	if (d->engine->ops->queue(d->engine, &op->io) < 0)
		list_add_tail(&d->io_wait, &op->io.link);
}

static void io_queue(struct dev *d, struct op *op, enum io_op verb, uint64_t off_bytes, uint64_t len_bytes,
		     void *buf)
{
	op->io.op = verb;
	op->io.file = op->file;
	op->io.off_bytes = off_bytes;
	op->io.len_bytes = len_bytes;
	op->io.buf = buf;
	op->io.owner = op;
	io_submit(d, op);
}

static void direct(struct dev *d, struct op *op, enum io_op verb)
{
	op->stage = STEP_DIRECT;
	io_queue(d, op, verb, op->step_off, op->step_len, op->step_buf);
}

static void cover_read(struct dev *d, struct op *op)
{
	op->stage = STEP_COVER_READ;
	io_queue(d, op, IO_READ, op->cover_off, op->cover_len, op->bounce.mem);
}

static void cover_write(struct dev *d, struct op *op)
{
	op->stage = STEP_COVER_WRITE;
	io_queue(d, op, IO_WRITE, op->cover_off, op->cover_len, op->bounce.mem);
}

static void cover_begin(struct dev *d, struct op *op, enum io_op verb)
{
	uint32_t block = op->file->backing->traits.logical_bytes;

	op->step_len = (uint32_t)u64_min(op->step_len, STEP_BOUNCE_BYTES);
	op->cover_off = round_down_u64(op->step_off, block);
	op->cover_len = (uint32_t)(round_up_u64(op->step_off + op->step_len, block) - op->cover_off);
	if (!bounce_get(d, op->cover_len, &op->bounce)) {
		list_add_tail(&d->bounce_wait, &op->io.link);
		return;
	}
	stat_add(&d->stats.rmw, verb == IO_WRITE);
	if (verb == IO_WRITE && op->cover_off == op->step_off && op->cover_len == op->step_len) {
		memcpy(op->bounce.mem, op->step_buf, op->step_len);
		cover_write(d, op);
	} else {
		cover_read(d, op);
	}
}

static bool step_is_aligned(const struct op *op)
{
	const struct backing_traits *t = &op->file->backing->traits;

	return !((op->step_off | op->step_len) & (t->logical_bytes - 1)) &&
	       !((uintptr_t)op->step_buf & (t->mem_align_bytes - 1));
}

static void move_begin(struct dev *d, struct op *op, enum io_op verb)
{
	if (step_is_aligned(op))
		direct(d, op, verb);
	else
		cover_begin(d, op, verb);
}

/* The next step of zeroing: the edges and short ranges are written. */
static void zero_begin(struct dev *d, struct op *op, uint64_t off, uint64_t left)
{
	uint64_t head = round_up_u64(off, FS_BLOCK_BYTES) - off;

	op->step_off = off;
	if (!head && left >= ZERO_WRITE_BYTES && op->file->backing->traits.can_punch) {
		op->step_len = (uint32_t)round_down_u64(u64_min(left, 1u << 30), FS_BLOCK_BYTES);
		op->stage = STEP_DIRECT;
		io_queue(d, op, IO_ZERO, off, op->step_len, NULL);
		return;
	}
	op->step_len = (uint32_t)u64_min(left, head ? head : ZERO_WRITE_BYTES);
	/* Cast away const: the engine only reads from the buffer of a write. */
	op->step_buf = (unsigned char *)(uintptr_t)zeros;
	move_begin(d, op, IO_WRITE);
}

static void step_begin(struct dev *d, struct op *op)
{
	uint64_t off = op->file_off + op->pos_bytes, left = op->len_bytes - op->pos_bytes;

	switch (op->verb) {
	case IO_READ:
	case IO_WRITE:
		op->step_off = off;
		op->step_len = (uint32_t)left;
		op->step_buf = op->buf + op->pos_bytes;
		move_begin(d, op, op->verb);
		break;
	case IO_ZERO:
		zero_begin(d, op, off, left);
		break;
	case IO_PUNCH:
	case IO_FLUSH:
	case IO_EXTEND:
	case IO_TRUNCATE:
		op->stage = STEP_DIRECT;
		op->step_len = 0;
		io_queue(d, op, op->verb, off, left, NULL);
		break;
	}
}

/* The step's bytes are where they should be. */
static void step_end(struct dev *d, struct op *op)
{
	if (op->bounce.mem)
		bounce_put(d, &op->bounce);
	op->pos_bytes += op->step_len;
	if (op->pos_bytes < op->len_bytes)
		step_begin(d, op);
	else
		op_end(d, op, 0);
}

/* ---- serialising read-modify-write ---- */

static bool shares_block(const struct op *a, const struct op *b, uint32_t block)
{
	uint64_t a0 = round_down_u64(a->file_off, block),
		 a1 = round_up_u64(a->file_off + a->len_bytes, block);
	uint64_t b0 = round_down_u64(b->file_off, block),
		 b1 = round_up_u64(b->file_off + b->len_bytes, block);

	return a0 < b1 && b0 < a1;
}

static bool must_wait(const struct dev *d, const struct op *op)
{
	uint32_t block = op->file->backing->traits.logical_bytes;
	struct list *pos;

	list_for_each (pos, &d->leaf_writes)
		if (shares_block(op, container_of(pos, struct op, link), block))
			return true;
	list_for_each (pos, &d->rmw_wait) /* in order: nobody waits behind those that came later */
		if (shares_block(op, container_of(pos, struct op, link), block))
			return true;
	return false;
}

static bool writes_data(const struct op *op)
{
	return op->verb == IO_WRITE || op->verb == IO_ZERO || op->verb == IO_PUNCH;
}

static void op_start(struct dev *d, struct op *op)
{
	if (d->rmw && op->file == &d->files[0] && writes_data(op)) {
		if (must_wait(d, op)) {
			list_add_tail(&d->rmw_wait, &op->link);
			return;
		}
		list_add_tail(&d->leaf_writes, &op->link);
		op->in_leaf_writes = true;
	}
	step_begin(d, op);
}

static void op_account(struct dev *d, const struct op *op)
{
	if (op->verb == IO_READ) {
		stat_add(&d->stats.store_reads, 1);
		stat_add(&d->stats.store_read_bytes, op->len_bytes);
	} else if (op->verb == IO_FLUSH) {
		stat_add(&d->stats.store_flushes, 1);
	} else {
		stat_add(&d->stats.store_writes, 1);
		stat_add(&d->stats.store_write_bytes, op->verb == IO_WRITE ? op->len_bytes : 0);
	}
}

void op_begin(struct dev *d, struct op *op)
{
	op->pos_bytes = 0;
	op->bounce.mem = NULL;
	op->in_leaf_writes = false;
	list_init(&op->link);
	if (op->verb == IO_PUNCH) {
		uint64_t end = round_down_u64(op->file_off + op->len_bytes, FS_BLOCK_BYTES);

		op->file_off = round_up_u64(op->file_off, FS_BLOCK_BYTES);
		if (end <= op->file_off || !op->file->backing->traits.can_punch) {
			op_end(d, op, 0);
			return;
		}
		op->len_bytes = end - op->file_off;
	}
	op_account(d, op);
	op_start(d, op);
}

/* ---- completions ---- */

/* How many of the want bytes of the step's READ or WRITE were moved, in whole blocks, or -errno. Less than
 * want: the step ends there and the rest is a new one, which may need a bounce where this one did not. Only a
 * read that moves less than a block has met the end of the file: what lies beyond reads zero. */
static int moved(const struct op *op, uint32_t want, unsigned char *mem, bool reading)
{
	uint32_t block = op->file->backing->traits.logical_bytes, n;

	if (op->io.res < 0)
		return op->io.res;
	n = (uint32_t)u64_min((uint64_t)op->io.res, want);
	if (n >= block || n == want)
		return (int)(n == want ? n : n - n % block);
	if (!reading)
		return -EIO;
	memset(mem + n, 0, want - n);
	return (int)want;
}

static void move_done(struct dev *d, struct op *op)
{
	int n = moved(op, op->step_len, op->step_buf, op->io.op == IO_READ);

	if (n < 0) {
		op_end(d, op, n);
		return;
	}
	op->step_len = (uint32_t)n;
	step_end(d, op);
}

/* The cover ends after its first n bytes, and the step with it. */
static void cover_cut(struct op *op, int n)
{
	uint32_t skip = (uint32_t)(op->step_off - op->cover_off);

	op->cover_len = (uint32_t)n;
	op->step_len = (uint32_t)u64_min(op->step_len, op->cover_len - skip);
}

static void cover_read_done(struct dev *d, struct op *op)
{
	unsigned char *cover = op->bounce.mem;
	int n = moved(op, op->cover_len, cover, true);

	if (n < 0) {
		op_end(d, op, n);
		return;
	}
	cover_cut(op, n);
	if (op->verb == IO_READ) {
		memcpy(op->step_buf, cover + (op->step_off - op->cover_off), op->step_len);
		step_end(d, op);
	} else {
		memcpy(cover + (op->step_off - op->cover_off), op->step_buf, op->step_len);
		cover_write(d, op);
	}
}

static void cover_write_done(struct dev *d, struct op *op)
{
	int n = moved(op, op->cover_len, op->bounce.mem, false);

	if (n < 0) {
		op_end(d, op, n);
		return;
	}
	cover_cut(op, n);
	step_end(d, op);
}

/* What the file system cannot do is noted in the traits and done another way. */
static void other_done(struct dev *d, struct op *op)
{
	struct backing_traits *t = &op->file->backing->traits;
	int res = op->io.res;

	if (res == -EOPNOTSUPP && op->io.op == IO_ZERO) {
		t->can_punch = false;
		step_begin(d, op);
	} else if (res == -EOPNOTSUPP && op->io.op == IO_PUNCH) {
		t->can_punch = false;
		op_end(d, op, 0);
	} else if (res == -EOPNOTSUPP && op->io.op == IO_EXTEND && t->can_fallocate) {
		t->can_fallocate = false;
		step_begin(d, op);
	} else if (res < 0) {
		op_end(d, op, res);
	} else if (op->verb == IO_ZERO) {
		step_end(d, op);
	} else {
		op_end(d, op, 0);
	}
}

void op_io_done(struct dev *d, struct op *op)
{
	/* Of a flush it would be an error like any other: the kernel may have dropped what it could not
	 * write. */
	if (op->io.res == -EINTR && op->io.op != IO_FLUSH) {
		io_submit(d, op);
		return;
	}
	switch (op->stage) {
	case STEP_DIRECT:
		if (op->io.op == IO_READ || op->io.op == IO_WRITE)
			move_done(d, op);
		else
			other_done(d, op);
		break;
	case STEP_COVER_READ:
		cover_read_done(d, op);
		break;
	case STEP_COVER_WRITE:
		cover_write_done(d, op);
		break;
	}
}

/* ---- waiting ---- */

static void retry(struct dev *d, struct list *waiting, void (*again)(struct dev *, struct op *),
		  bool by_io_link)
{
	struct list list, *n;

	if (list_empty(waiting))
		return;
	list_init(&list);
	list_splice_tail(&list, waiting);
	while ((n = list_pop(&list)))
		again(d, by_io_link ? container_of(n, struct op, io.link) : container_of(n, struct op, link));
}

/* Once a turn. */
void ops_retry(struct dev *d)
{
	retry(d, &d->io_wait, io_submit, true);
	retry(d, &d->rmw_wait, op_start, false);
	retry(d, &d->bounce_wait, step_begin, true);
}

/* The process died, for a test: what is shared with other devices is given back. */
void ops_abandon(struct dev *d)
{
	struct job_run *runs[] = {d->commit, d->grow};

	for (unsigned i = 0; i < DEV_OPS; i++)
		if (d->ops[i].bounce.mem)
			bounce_put(d, &d->ops[i].bounce);
	for (unsigned r = 0; r < 2; r++)
		for (unsigned i = 0; i < DEV_ACTS; i++)
			if (runs[r]->slot[i].op.bounce.mem)
				bounce_put(d, &runs[r]->slot[i].op.bounce);
}
