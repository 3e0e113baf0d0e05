/*
 * A device on the replay engine with a transport in the same thread: tests put requests in and see the
 * answers. Deterministic from the seed. The golden image is dynamic, the leaf differencing (or what opts
 * say); a flat model of what the disk must read is kept.
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

#define RIG_REQS  128u
#define RIG_CONNS 4u

struct rig_req {
	struct blkreq req;
	bool busy, queued, answered, in_device;
	unsigned order;	     /* of the answer, from 1 */
	unsigned char *data; /* WRITE: what to write, READ: where to put what was read */
	uint64_t answered_event;
};

struct devrig;

struct rig_conn { /* one transport; slot i is of connection i % n_conns */
	struct transport t;
	struct devrig *g;
	unsigned index;
};

struct devrig {
	struct rig_conn conn[RIG_CONNS];
	unsigned n_conns; /* 0: one */
	void (*on_fetch)(struct devrig *, struct rig_req *);
	void (*on_answer)(struct devrig *, struct rig_req *);
	void *ctx; /* the test's */
	bool poison_clear;
	unsigned max_requests;
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
	struct rig_conn *conn = (struct rig_conn *)t;
	struct devrig *g = conn->g;
	unsigned n = 0;

	for (unsigned i = conn->index; i < RIG_REQS && n < max; i += g->n_conns) {
		struct rig_req *r = &g->req[i];

		if (!r->queued)
			continue;
		if (r->data && !dev_buf_get(g->dev, t, r->req.len_bytes, &r->req.buf))
			break;
		if (r->data && r->req.op != BLK_READ)
			memcpy(r->req.buf.mem, r->data, r->req.len_bytes);
		r->queued = false;
		r->in_device = true;
		if (g->on_fetch)
			g->on_fetch(g, r);
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
	struct devrig *g = ((struct rig_conn *)t)->g;
	struct rig_req *r = (struct rig_req *)req;

	if (!r->in_device)
		abort(); /* answered twice */
	dev_buf_put(g->dev, &req->buf);
	r->in_device = false;
	r->answered = true;
	r->order = ++g->answers;
	r->answered_event = replay_events(g->medium);
	if (g->on_answer)
		g->on_answer(g, r);
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
	((struct rig_conn *)t)->g->detached++;
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

/* Rewrites the header of an empty VHD for smaller blocks. */
static inline void rig_set_block_bytes(struct devrig *g, const char *path, uint64_t size_bytes,
				       uint32_t block_bytes)
{
	int id = replay_file_find(g->medium, path);
	unsigned char h[1024];
	uint32_t sum = 0;

	replay_file_peek(g->medium, id, 512, h, sizeof(h));
	be32_store(h + 28, (uint32_t)((size_bytes + block_bytes - 1) / block_bytes));
	be32_store(h + 32, block_bytes);
	be32_store(h + 36, 0);
	for (unsigned i = 0; i < sizeof(h); i++)
		sum += h[i];
	be32_store(h + 36, ~sum);
	replay_file_poke(g->medium, id, 512, h, sizeof(h));
}

struct rig_shape {
	uint64_t seed, size_bytes, golden_bytes, cache_bytes, pool_bytes;
	uint32_t block_bytes; /* of the leaf; 0: 2 MiB */
	unsigned
	    parents; /* golden and, above it, layers with a little of each block; 0: the leaf is dynamic */
	const struct backing_traits *traits;
};

static inline void rig_create(struct devrig *g, const char *path, struct vhd_create_opts *o)
{
	const struct backing_opener *op = replay_opener(g->medium);
	struct err e = ERR_INIT;
	struct backing *b;

	if (op->open(op->ctx, path, BACKING_CREATE, &b, &e) || vhd_create(b, o, &e))
		rig_die(path, &e);
	b->ops->close(b);
}

/* Writes len bytes at off of the image through the synchronous door, and closes it cleanly. */
static inline void rig_fill(struct devrig *g, const char *path, uint64_t off, const void *data, uint64_t len)
{
	struct disk_opts o = {.path = path, .writable = true, .opener = replay_opener(g->medium)};
	struct err e = ERR_INIT;
	struct disk *disk;

	if (disk_open(&o, &disk, &e) || (len && chain_write(&disk->chain, WRITE_DATA, off, data, len, &e)) ||
	    disk_finish(disk, &e))
		rig_die(path, &e);
	disk_close(disk);
}

/* A child of parent (a name in /m). */
static inline void rig_child(struct devrig *g, const char *path, const char *parent, uint64_t size_bytes)
{
	struct vhd_create_opts diff = {
	    .kind = VHD_KIND_DIFFERENCING, .size_bytes = size_bytes, .exact_size = true};
	struct err e = ERR_INIT;
	char parent_path[64];
	struct image *img;

	snprintf(parent_path, sizeof(parent_path), "/m/%s", parent);
	if (image_open_path(replay_opener(g->medium), parent_path, 0, NULL, &img, &e))
		rig_die(parent_path, &e);
	diff.parent = img;
	diff.parent_path = parent;
	rig_create(g, path, &diff);
	img->ops->close(img);
}

static inline void rig_medium_of(struct devrig *g, const struct rig_shape *o)
{
	struct vhd_create_opts dyn = {
	    .kind = VHD_KIND_DYNAMIC, .size_bytes = o->size_bytes, .exact_size = true};
	unsigned char *data = malloc(o->golden_bytes ? o->golden_bytes : 1);
	char below[32] = "golden.vhd", path[32];
	struct err e = ERR_INIT;

	memset(g, 0, sizeof(*g));
	g->medium = replay_create(o->seed);
	if (o->traits)
		replay_set_traits(g->medium, o->traits);
	for (uint64_t i = 0; i < o->golden_bytes; i++)
		data[i] = (unsigned char)(i / 512 % 251 + 1);
	if (o->parents) {
		rig_create(g, "/m/golden.vhd", &dyn);
		rig_fill(g, "/m/golden.vhd", 0, data, o->golden_bytes);
		for (unsigned i = 1; i < o->parents; i++) {
			snprintf(path, sizeof(path), "/m/layer%u.vhd", i);
			rig_child(g, path, below, o->size_bytes);
			/* something of each block, the same bytes as below */
			for (uint64_t off = i * 8192; off + 4096 <= o->golden_bytes; off += 2u << 20)
				rig_fill(g, path, off, data + off, 4096);
			snprintf(below, sizeof(below), "layer%u.vhd", i);
		}
		rig_child(g, "/m/leaf.vhd", below, o->size_bytes);
	} else {
		rig_create(g, "/m/leaf.vhd", &dyn);
	}
	free(data);
	if (o->block_bytes)
		rig_set_block_bytes(g, "/m/leaf.vhd", o->size_bytes, o->block_bytes);
	if (bufpool_create(o->pool_bytes ? o->pool_bytes : 8u << 20, &g->pool, &e) ||
	    cache_create(o->cache_bytes ? o->cache_bytes : 1u << 20, &g->cache, &e))
		rig_die("pools", &e);
	replay_bind(g->medium);
}

/* The medium with /m/golden.vhd (dynamic, size) and /m/leaf.vhd on it; golden's first golden_bytes are
 * pattern (i / 512) % 251 + 1. */
static inline void rig_medium(struct devrig *g, uint64_t seed, uint64_t size_bytes, uint64_t golden_bytes,
			      const struct backing_traits *traits)
{
	const struct rig_shape o = {.seed = seed,
				    .size_bytes = size_bytes,
				    .golden_bytes = golden_bytes,
				    .parents = 1,
				    .traits = traits};

	rig_medium_of(g, &o);
}

static inline int rig_open(struct devrig *g, enum write_mode mode, struct err *e)
{
	struct disk_opts dopts = {.path = "/m/leaf.vhd",
				  .writable = true,
				  .opener = replay_opener(g->medium),
				  .run_dir = g->run_dir,
				  .poison_clear = g->poison_clear,
				  .cache = g->cache};
	struct disk *disk;
	int res;

	g->opts = (struct dev_opts){.name = "rig",
				    .engine = &io_replay_engine,
				    .write_mode = mode,
				    .pool = g->pool,
				    .cache = g->cache,
				    .max_requests = g->max_requests};
	res = disk_open(&dopts, &disk, e);
	if (res)
		return res;
	res = dev_create(disk, &g->opts, false, &g->dev, e);
	if (res) {
		disk_close(disk);
		return res;
	}
	g->n_conns = g->n_conns ? g->n_conns : 1;
	for (unsigned i = 0; i < g->n_conns; i++) {
		g->conn[i] = (struct rig_conn){.g = g, .index = i};
		g->conn[i].t.ops = &rig_ops;
		dev_attach(g->dev, &g->conn[i].t);
	}
	return 0;
}

/* Puts a request into slot i; it is fetched in the next turn. */
static inline struct rig_req *rig_put(struct devrig *g, unsigned i, enum blk_op op, uint64_t off,
				      uint64_t len, void *data)
{
	struct rig_req *r = &g->req[i];

	memset(&r->req, 0, sizeof(r->req));
	r->req.transport = &g->conn[i % g->n_conns].t;
	r->req.op = op;
	r->req.off_bytes = off;
	r->req.len_bytes = len;
	r->data = data;
	r->queued = true;
	r->answered = false;
	dev_transport_ready(r->req.transport);
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
