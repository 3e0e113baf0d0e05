/* HOT PATH: no malloc, no log, no syscall, no lock but a cache shard's and the mailbox's (a wake-up from
 * another device). */
/*
 * Bringing metadata that the plan asks for. A leaf's sectors go into the format's own cache (meta_put), a
 * parent's pages into the host-wide one, once for all clones. One pending entry a page, however many requests
 * of this device wait for it; when it ended they are planned on from where they stood. A fill by another
 * device wakes us through the woken list, which cannot be full: its nodes are the entries.
 *
 * When the cache has no frame to give, or another's fill failed, the page is read for ourselves, once, into
 * memory of our own, and shown to the requests that wait (READY) while they are planned on. Nothing erroneous
 * is ever inserted.
 */
#include "blkd/bytes.h"
#include "blkd/dev/dev_priv.h"

#include <unistd.h>

static uint64_t page_of(uint64_t file_off)
{
	return round_down_u64(file_off, CACHE_FRAME_BYTES);
}

static struct pending *pending_find(struct dev *d, unsigned layer, uint64_t key)
{
	for (unsigned i = 0; i < DEV_PENDING; i++)
		if (d->pending[i].state != PEND_FREE && d->pending[i].layer == layer &&
		    d->pending[i].key == key)
			return &d->pending[i];
	return NULL;
}

static struct pending *pending_unused(struct dev *d)
{
	for (unsigned i = 0; i < DEV_PENDING; i++)
		if (d->pending[i].state == PEND_FREE)
			return &d->pending[i];
	return NULL;
}

static void pending_free(struct dev *d, struct pending *p)
{
	p->state = PEND_FREE;
	d->replan = true;
}

/* Plans on all that wait for p. A READY page is shown to them meanwhile; else p may serve anew at once. */
static void pending_end(struct dev *d, struct pending *p, int res)
{
	struct list reqs, *n;

	list_init(&reqs);
	list_splice_tail(&reqs, &p->reqs);
	if (p->state != PEND_READY)
		pending_free(d, p);
	while ((n = list_pop(&reqs))) {
		struct blkreq *r = container_of(n, struct blkreq, link);

		if (res < 0)
			req_fail(r, res);
		req_run(d, r);
	}
	if (p->state == PEND_READY)
		pending_free(d, p);
}

/* ---- the leaf ---- */

static void leaf_read_done(struct dev *d, struct op *op, int res)
{
	struct pending *p = op->owner;
	int put = d->leaf->ops->meta_put(d->leaf, p->key, p->page, res);

	op_put(d, op);
	if (res == 0 && put == -EBUSY) {
		list_splice_tail(&d->park_epoch, &p->reqs);
		jobs_want_commit(d);
		pending_free(d, p);
		return;
	}
	pending_end(d, p, res < 0 ? res : put);
}

/* ---- parents ---- */

static void fill_done(struct dev *d, struct op *op, int res)
{
	struct pending *p = op->owner;
	struct cache_frame *frame = p->frame;

	op_put(d, op);
	p->frame = NULL;
	cache_fill_done(d->opts.cache, frame, res < 0 ? res : 0);
	if (res >= 0) {
		memcpy(p->page, cache_frame_mem(frame), CACHE_FRAME_BYTES);
		cache_put(d->opts.cache, frame);
		p->state = PEND_READY;
	}
	pending_end(d, p, res);
}

static void own_read_done(struct dev *d, struct op *op, int res)
{
	struct pending *p = op->owner;

	op_put(d, op);
	if (res >= 0)
		p->state = PEND_READY;
	pending_end(d, p, res);
}

static void start_read(struct dev *d, struct pending *p, struct op *op, void *mem, uint32_t len_bytes,
		       void (*done)(struct dev *, struct op *, int))
{
	op->owner = p;
	op->done = done;
	op->file = &d->files[p->layer];
	op->verb = IO_READ;
	op->file_off = p->key;
	op->len_bytes = len_bytes;
	op->buf = mem;
	stat_add(&d->stats.meta_reads, 1);
	op_begin(d, op);
}

/* Runs in the filler's thread. */
static void woken(struct cache_waiter *w, int res)
{
	struct pending *p = container_of(w, struct pending, waiter);

	if (res == 0)
		cache_put(p->dev->opts.cache, w->frame);
	dev_wake(p->dev, p, res);
}

/* Another device's fill ended. On success, or without an op to read with, the pages are asked for anew (they
 * are there, or are filled again). */
void meta_take_woken(struct dev *d, struct list *list)
{
	struct list *n;

	while ((n = list_pop(list))) {
		struct pending *p = container_of(n, struct pending, woken);
		struct op *op = p->wake_res < 0 ? op_get(d) : NULL;

		if (!op) {
			list_splice_tail(&d->starved, &p->reqs);
			pending_free(d, p);
			continue;
		}
		p->state = PEND_READ;
		start_read(d, p, op, p->page, CACHE_FRAME_BYTES, own_read_done);
	}
}

/* Starts what brings the page; p is unused. HIT: nothing was started, *frame is pinned. */
static enum cache_answer ask_cache(struct dev *d, struct pending *p, struct op *op,
				   struct cache_frame **frame)
{
	uint64_t serial = chain_image(&d->disk->chain, p->layer)->serial;
	enum cache_answer answer;

	p->waiter.wake = woken;
	p->waiter.owner = d;
	p->state = PEND_WAIT;
	answer = cache_get(d->opts.cache, serial, p->key, &p->waiter, frame);
	switch (answer) {
	case CACHE_HIT:
		p->state = PEND_FREE;
		op_put(d, op);
		break;
	case CACHE_FILL:
		p->state = PEND_FILL;
		p->frame = *frame;
		break;
	case CACHE_WAIT:
		op_put(d, op);
		break;
	case CACHE_BYPASS:
		p->state = PEND_READ;
		break;
	}
	return answer;
}

bool meta_bring(struct dev *d, struct blkreq *r, unsigned layer, uint64_t file_off, struct meta_pin *pin)
{
	uint64_t key = layer ? page_of(file_off) : file_off;
	struct cache_frame *frame;
	enum cache_answer answer;
	struct pending *p;
	struct op *op;

	pin->frame = NULL;
	pin->bytes = layer ? NULL : d->leaf->ops->meta_get(d->leaf, key);
	if (pin->bytes)
		return true;
	p = pending_find(d, layer, key);
	if (p && p->state == PEND_READY) {
		pin->bytes = p->page + (file_off - key);
		return true;
	}
	if (p) {
		req_park(d, r, &p->reqs);
		return false;
	}
	p = pending_unused(d);
	op = p ? op_get(d) : NULL;
	if (!op) {
		req_park(d, r, &d->starved);
		return false;
	}
	p->layer = (uint16_t)layer;
	p->key = key;
	if (!layer) {
		p->state = PEND_READ;
		req_park(d, r, &p->reqs);
		start_read(d, p, op, p->page, SECTOR_BYTES, leaf_read_done);
		return false;
	}
	answer = ask_cache(d, p, op, &frame);
	if (answer == CACHE_HIT) {
		pin->frame = frame;
		pin->bytes = (const unsigned char *)cache_frame_mem(frame) + (file_off - key);
		return true;
	}
	req_park(d, r, &p->reqs);
	if (answer == CACHE_FILL)
		start_read(d, p, op, cache_frame_mem(frame), CACHE_FRAME_BYTES, fill_done);
	else if (answer == CACHE_BYPASS)
		start_read(d, p, op, p->page, CACHE_FRAME_BYTES, own_read_done);
	return false;
}

void meta_unpin(struct dev *d, struct meta_pin *pin)
{
	if (pin->frame)
		cache_put(d->opts.cache, pin->frame);
	pin->frame = NULL;
}
