/*
 * A device on the replay engine with a transport in the same thread: tests put requests in and see the answers. Deterministic from
 * the seed. The golden image is dynamic, the leaf differencing (or what opts say); a flat model of what the disk must read is kept.
 */
#ifndef TESTS_LIB_DEVRIG_H
#define TESTS_LIB_DEVRIG_H

#include "blkd/bytes.h"
#include "blkd/cache.h"
#include "blkd/dev.h"
#include "blkd/err.h"
#include "blkd/replay.h"
#include "blkd/vhd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define RIG_REQS 64u

struct rig_req {
	struct blkreq req;
	bool busy, queued, answered;
	unsigned order; /* of the answer, from 1 */
	unsigned char *data; /* WRITE: what to write, READ: where to put what was read */
	uint64_t answered_event;
};

struct devrig {
	struct transport t;
	struct replay *medium;
	struct bufpool *pool;
	struct cache *cache;
	struct dev *dev;
	struct dev_opts opts;
	char *run_dir;
	struct rig_req req[RIG_REQS];
	unsigned answers, detached;
};

static unsigned rig_fetch(struct transport *t, struct blkreq **out, unsigned max)
{
	struct devrig *g = (struct devrig *)t;
	unsigned n = 0;

	for (unsigned i = 0; i < RIG_REQS && n < max; i++) {
		struct rig_req *r = &g->req[i];

		if (!r->queued)
			continue;
		if (r->data && !dev_buf_get(g->dev, t, r->req.len_bytes, &r->req.buf))
			break;
		if (r->data && r->req.op != BLK_READ)
			memcpy(r->req.buf.mem, r->data, r->req.len_bytes);
		r->queued = false;
		out[n++] = &r->req;
	}
	return n;
}

static void rig_copy_out(struct transport *t, struct blkreq *const *reqs, unsigned n)
{
	(void)t;
	for (unsigned i = 0; i < n; i++) {
		struct rig_req *r = (struct rig_req *)reqs[i];

		if (r->req.op == BLK_READ && !r->req.status)
			memcpy(r->data, r->req.buf.mem, r->req.len_bytes);
	}
}

static void rig_respond(struct transport *t, struct blkreq *req)
{
	struct devrig *g = (struct devrig *)t;
	struct rig_req *r = (struct rig_req *)req;

	dev_buf_put(g->dev, &req->buf);
	r->answered = true;
	r->order = ++g->answers;
	r->answered_event = replay_events(g->medium);
}

static void rig_kick(struct transport *t)
{
	(void)t;
}

static void rig_event(struct transport *t, struct io_poll *p)
{
	(void)t;
	(void)p;
}

static void rig_detached(struct transport *t)
{
	((struct devrig *)t)->detached++;
}

static const struct transport_ops rig_ops = {
    .name = "rig",
    .fetch = rig_fetch,
    .copy_out = rig_copy_out,
    .respond = rig_respond,
    .kick = rig_kick,
    .event = rig_event,
    .detached = rig_detached,
};

static inline void rig_die(const char *what, const struct err *e)
{
	fprintf(stderr, "devrig: %s: %s\n", what, e ? e->text : "");
	abort();
}

/* The medium with /m/golden.vhd (dynamic, size) and /m/leaf.vhd on it; golden's first golden_bytes are pattern (i / 512) % 251 + 1. */
static inline void rig_medium(struct devrig *g, uint64_t seed, uint64_t size_bytes, uint64_t golden_bytes,
			      const struct backing_traits *traits)
{
	struct vhd_create_opts dyn = {.kind = VHD_KIND_DYNAMIC, .size_bytes = size_bytes, .exact_size = true};
	struct vhd_create_opts diff = {
	    .kind = VHD_KIND_DIFFERENCING, .size_bytes = size_bytes, .exact_size = true, .parent_path = "golden.vhd"};
	const struct backing_opener *o;
	struct err e = ERR_INIT;
	struct disk_opts dopts = {.path = "/m/golden.vhd", .writable = true};
	struct disk *golden;
	struct backing *b;
	struct image *img;
	unsigned char *data = malloc(golden_bytes ? golden_bytes : 1);

	memset(g, 0, sizeof(*g));
	g->medium = replay_create(seed);
	if (traits)
		replay_set_traits(g->medium, traits);
	o = replay_opener(g->medium);
	dopts.opener = o;
	if (o->open(o->ctx, "/m/golden.vhd", BACKING_CREATE, &b, &e) || vhd_create(b, &dyn, &e))
		rig_die("golden", &e);
	b->ops->close(b);
	for (uint64_t i = 0; i < golden_bytes; i++)
		data[i] = (unsigned char)(i / 512 % 251 + 1);
	if (disk_open(&dopts, &golden, &e) ||
	    (golden_bytes && chain_write(&golden->chain, WRITE_DATA, 0, data, golden_bytes, &e)) || disk_finish(golden, &e))
		rig_die("golden data", &e);
	disk_close(golden);
	free(data);
	if (image_open_path(o, "/m/golden.vhd", 0, NULL, &img, &e))
		rig_die("golden again", &e);
	diff.parent = img;
	if (o->open(o->ctx, "/m/leaf.vhd", BACKING_CREATE, &b, &e) || vhd_create(b, &diff, &e))
		rig_die("leaf", &e);
	b->ops->close(b);
	img->ops->close(img);
	if (bufpool_create(8u << 20, &g->pool, &e) || cache_create(1u << 20, &g->cache, &e))
		rig_die("pools", &e);
	replay_bind(g->medium);
}

static inline int rig_open(struct devrig *g, enum write_mode mode, struct err *e)
{
	struct disk_opts dopts = {.path = "/m/leaf.vhd",
				  .writable = true,
				  .opener = replay_opener(g->medium),
				  .run_dir = g->run_dir,
				  .cache = g->cache};
	struct disk *disk;
	int res;

	g->opts = (struct dev_opts){.name = "rig", .engine = &io_replay_engine, .write_mode = mode, .pool = g->pool, .cache = g->cache};
	res = disk_open(&dopts, &disk, e);
	if (res)
		return res;
	res = dev_create(disk, &g->opts, false, &g->dev, e);
	if (res) {
		disk_close(disk);
		return res;
	}
	memset(&g->t, 0, sizeof(g->t));
	g->t.ops = &rig_ops;
	dev_attach(g->dev, &g->t);
	return 0;
}

/* Puts a request into slot i; it is fetched in the next turn. */
static inline struct rig_req *rig_put(struct devrig *g, unsigned i, enum blk_op op, uint64_t off, uint64_t len, void *data)
{
	struct rig_req *r = &g->req[i];

	memset(&r->req, 0, sizeof(r->req));
	r->req.transport = &g->t;
	r->req.op = op;
	r->req.off_bytes = off;
	r->req.len_bytes = len;
	r->data = data;
	r->queued = true;
	r->answered = false;
	dev_transport_ready(&g->t);
	return r;
}

/* Turns until r is answered (or gives up: false). */
static inline bool rig_wait(struct devrig *g, const struct rig_req *r)
{
	for (unsigned turns = 0; turns < 100000 && !r->answered; turns++)
		dev_turn(g->dev, IO_DEADLINE_NONE);
	return r->answered;
}

static inline int rig_do(struct devrig *g, enum blk_op op, uint64_t off, uint64_t len, void *data)
{
	struct rig_req *r = rig_put(g, 0, op, off, len, data);

	return rig_wait(g, r) ? r->req.status : -ETIMEDOUT;
}

static inline void rig_close(struct devrig *g)
{
	struct err e = ERR_INIT;

	if (dev_destroy(g->dev, &e))
		rig_die("destroy", &e);
}

static inline void rig_free(struct devrig *g)
{
	cache_destroy(g->cache);
	bufpool_destroy(g->pool);
	replay_bind(NULL);
	replay_destroy(g->medium);
}

#endif
