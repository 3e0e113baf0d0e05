/* HOT PATH: no malloc, no log, no syscall, no lock but a cache shard's. */
/*
 * From a request to pieces: asks the format where the bytes are (chain_map) or which data moves
 * (write_begin), and starts one operation per piece. The plan is a cursor (plan_off), not a list: what cannot
 * go on parks the request where it stands, and planning goes on from there. A request is settled when the
 * cursor is at its end and no piece is in flight.
 */
#include "blkd/bytes.h"
#include "blkd/dev/dev_priv.h"

static void read_done(struct dev *d, struct op *op, int res)
{
	struct blkreq *r = op->owner;

	op_put(d, op);
	if (res < 0)
		req_fail(r, res);
	r->pieces--;
	req_settle(d, r);
}

/* The answer of the chain for the bytes at the cursor; false: the request was parked for metadata. It goes on
 * from the layer it had come to: with more layers than the cache has frames, those above would be evicted
 * again and again before the walk is through. Nothing in the range changes meanwhile: parents never do, and
 * writes that overlap wait. */
static bool locate(struct dev *d, struct blkreq *r, uint32_t len_bytes, struct extent *ext)
{
	struct meta_pin pin = {NULL, NULL};
	unsigned from = r->plan_layer;

	if (from)
		len_bytes = r->plan_len;
	for (;;) {
		chain_map(&d->disk->chain, from, pin.bytes, r->plan_off, len_bytes, ext);
		meta_unpin(d, &pin);
		if (ext->kind != EXT_META) {
			r->plan_layer = 0;
			return true;
		}
		from = ext->layer;
		len_bytes = ext->len_bytes;
		r->plan_layer = (uint16_t)from;
		r->plan_len = len_bytes;
		if (!meta_bring(d, r, from, ext->file_off, &pin))
			return false;
	}
}

void plan_read(struct dev *d, struct blkreq *r)
{
	uint64_t end = r->off_bytes + r->len_bytes;
	struct extent ext;

	while (r->plan_off < end && !r->status) {
		unsigned char *buf = (unsigned char *)r->buf.mem + (r->plan_off - r->off_bytes);
		struct op *op;

		if (!locate(d, r, (uint32_t)(end - r->plan_off), &ext))
			return;
		if (ext.kind == EXT_ZERO) {
			memset(buf, 0, ext.len_bytes);
			r->plan_off += ext.len_bytes;
			continue;
		}
		op = op_get(d);
		if (!op) {
			req_park(d, r, &d->starved);
			return;
		}
		op->owner = r;
		op->done = read_done;
		op->file = &d->files[ext.layer];
		op->verb = IO_READ;
		op->file_off = ext.file_off;
		op->len_bytes = ext.len_bytes;
		op->buf = buf;
		r->plan_off += ext.len_bytes;
		r->pieces++;
		op_begin(d, op);
	}
	r->planned = true;
	req_settle(d, r);
}

/* ---- writes ---- */

/* A piece has ended: the format learns of it, the journal too, then the request may be settled. */
static void piece_done(struct dev *d, struct blkreq *r, const struct write_piece *piece, int res)
{
	d->leaf->ops->write_end(d->leaf, piece, res);
	if (res < 0)
		req_fail(r, res);
	else if (piece->epoch &&
		 (!d->disk->has_records_home || journal_add(d->disk->journal, &piece->rec) < 0))
		r->recorded = false;
	if (d->leaf->wants & IMAGE_DIRTY)
		d->dirty_since_ns = d->now_ns;
}

static void write_done(struct dev *d, struct op *op, int res)
{
	struct blkreq *r = op->owner;

	piece_done(d, r, &op->piece, res);
	op_put(d, op);
	r->pieces--;
	req_settle(d, r);
}

static void write_park(struct dev *d, struct blkreq *r, const struct write_piece *piece)
{
	struct meta_pin pin;

	switch (piece->park) {
	case PARK_META:
		if (meta_bring(d, r, 0, piece->park_key, &pin)) {
			req_park(d, r, &d->starved);
			d->replan = true;
		}
		break;
	case PARK_EPOCH:
		req_park(d, r, &d->park_epoch);
		jobs_want_commit(d);
		break;
	case PARK_GROW:
		req_park(d, r, &d->park_grow);
		break;
	}
}

static void start_piece(struct dev *d, struct blkreq *r, struct op *op)
{
	op->owner = r;
	op->done = write_done;
	op->file = &d->files[0];
	op->file_off = op->piece.file_off;
	op->len_bytes = op->piece.len_bytes;
	op->buf = NULL;
	switch (op->piece.act) {
	case PIECE_WRITE:
		op->verb = IO_WRITE;
		op->buf = (unsigned char *)r->buf.mem + (op->piece.off_bytes - r->off_bytes);
		break;
	case PIECE_ZERO:
		op->verb = IO_ZERO;
		break;
	case PIECE_PUNCH:
	case PIECE_NOTHING:
		op->verb = IO_PUNCH;
		break;
	}
	r->pieces++;
	op_begin(d, op);
}

void plan_write(struct dev *d, struct blkreq *r)
{
	static const enum write_op verbs[BLK_OPS] = {[BLK_WRITE] = WRITE_DATA,
						     [BLK_BARRIER] = WRITE_DATA,
						     [BLK_TRIM] = WRITE_TRIM,
						     [BLK_ZERO] = WRITE_ZERO};
	uint64_t end = r->off_bytes + r->len_bytes;
	unsigned steps = 0;

	while (r->plan_off < end && !r->status) {
		uint64_t len_bytes = end - r->plan_off;
		struct op *op = steps++ < PLAN_STEPS ? op_get(d) : NULL;
		unsigned flags = 0;
		int res;

		if (!op) {
			req_park(d, r, &d->starved);
			d->replan |= steps > PLAN_STEPS;
			return;
		}
		if (verbs[r->op] != WRITE_DATA) {
			len_bytes = u64_min(len_bytes, CHAIN_BLOCK_BYTES - r->plan_off % CHAIN_BLOCK_BYTES);
			if (chain_below_is_zero(&d->disk->chain, r->plan_off, len_bytes))
				flags = WRITE_BELOW_ZERO;
		}
		res = d->leaf->ops->write_begin(d->leaf, verbs[r->op], flags, r->plan_off, len_bytes,
						&op->piece);
		if (res == -EINPROGRESS) {
			write_park(d, r, &op->piece);
			op_put(d, op);
			return;
		}
		if (res < 0) {
			op_put(d, op);
			req_fail(r, res);
			break;
		}
		r->plan_off += op->piece.len_bytes;
		r->epoch = u64_max(r->epoch, op->piece.epoch);
		if (op->piece.act == PIECE_NOTHING) {
			piece_done(d, r, &op->piece, 0);
			op_put(d, op);
		} else {
			start_piece(d, r, op);
		}
	}
	r->planned = true;
	req_settle(d, r);
}
