/*
 * Devices with their own threads on real files, for the thread sanitizer: several that share parents and a
 * cache of a few frames, made and destroyed under load, with messages and calls from many threads. What each
 * reads is checked against what it wrote.
 */
#include "blkd/bytes.h"
#include "blkd/cache.h"
#include "blkd/dev.h"
#include "blkd/err.h"
#include "blkd/vhd.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOTS	     16u
#define REGION_BYTES (1u << 20)
#define DISK_BYTES   (SLOTS * (uint64_t)REGION_BYTES)
#define IO_BYTES     8192u
#define WORKERS	     4u

static char dir[64];
static struct bufpool *pool;
static struct cache *cache;

/* ---- images ---- */

static const char *in_dir(const char *name)
{
	static __thread char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static void image_create(const char *name, struct vhd_create_opts *o)
{
	struct err e = ERR_INIT;
	struct backing *b;

	if (file_opener.open(NULL, in_dir(name), BACKING_CREATE, &b, &e) || vhd_create(b, o, &e))
		fail_msg("%s: %s", name, e.text);
	b->ops->close(b);
}

static void image_child(const char *name, const char *parent)
{
	struct vhd_create_opts o = {.kind = VHD_KIND_DIFFERENCING, .parent_path = parent};
	struct err e = ERR_INIT;
	struct image *img;

	if (image_open_path(&file_opener, in_dir(parent), 0, NULL, &img, &e))
		fail_msg("%s: %s", parent, e.text);
	o.parent = img;
	image_create(name, &o);
	img->ops->close(img);
}

static unsigned char golden_byte(uint64_t off)
{
	return (unsigned char)(off / 512 % 251 + 1);
}

/* Writes every other 4 KiB from `first` on, so that bitmaps must be looked at. */
static void image_fill(const char *name, uint64_t first)
{
	struct disk_opts o = {.path = in_dir(name), .writable = true};
	static unsigned char data[4096];
	struct err e = ERR_INIT;
	struct disk *disk;

	if (disk_open(&o, &disk, &e))
		fail_msg("%s: %s", name, e.text);
	for (uint64_t off = first; off < DISK_BYTES; off += 8192) {
		for (unsigned i = 0; i < sizeof(data); i++)
			data[i] = golden_byte(off + i);
		if (chain_write(&disk->chain, WRITE_DATA, off, data, sizeof(data), &e))
			fail_msg("%s: %s", name, e.text);
	}
	if (disk_finish(disk, &e))
		fail_msg("%s: %s", name, e.text);
	disk_close(disk);
}

static int setup(void **state)
{
	struct vhd_create_opts dyn = {.kind = VHD_KIND_DYNAMIC, .size_bytes = DISK_BYTES};
	struct err e = ERR_INIT;

	(void)state;
	strcpy(dir, "/tmp/blkd-threads-XXXXXX");
	assert_non_null(mkdtemp(dir));
	image_create("golden.vhd", &dyn);
	image_fill("golden.vhd", 0);
	image_child("middle.vhd", "golden.vhd");
	image_fill("middle.vhd", 4096);
	assert_int_equal(bufpool_create(2u << 20, &pool, &e), 0);
	assert_int_equal(cache_create(3 * CACHE_FRAME_BYTES, &cache, &e), 0);
	return 0;
}

static int teardown(void **state)
{
	char cmd[128];

	(void)state;
	cache_destroy(cache);
	bufpool_destroy(pool);
	snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
	return system(cmd);
}

/* ---- a transport that makes its own load ---- */

struct gen;

struct gen_slot {
	struct blkreq req;
	bool busy;
};

struct gen {
	struct transport t;
	struct dev *dev;
	struct gen_slot slot[SLOTS];
	unsigned to_do, issued, wrong, failed;
	uint32_t rng;
	uint8_t model[DISK_BYTES / 512]; /* 0: golden, else the byte that fills the sector; 255: zeros */
	sem_t done, detached;
	unsigned answered;
};

static uint32_t rnd(struct gen *g, uint32_t n)
{
	g->rng = g->rng * 1664525u + 1013904223u;
	return (g->rng >> 10) % n;
}

static unsigned gen_fetch(struct transport *t, struct blkreq **out, unsigned max)
{
	static const enum blk_op ops[] = {BLK_READ,  BLK_READ, BLK_READ, BLK_WRITE,
					  BLK_WRITE, BLK_ZERO, BLK_FLUSH};
	struct gen *g = (struct gen *)t;
	unsigned n = 0;

	for (unsigned i = 0; i < SLOTS && n < max && g->issued < g->to_do; i++) {
		struct gen_slot *s = &g->slot[i];
		struct blkreq *r = &s->req;
		enum blk_op op = ops[rnd(g, sizeof(ops) / sizeof(ops[0]))];
		bool data = op == BLK_READ || op == BLK_WRITE;

		if (s->busy)
			continue;
		memset(r, 0, sizeof(*r));
		r->transport = t;
		r->op = op;
		r->len_bytes = op == BLK_FLUSH ? 0 : (1 + rnd(g, IO_BYTES / 512)) * 512;
		r->off_bytes = op == BLK_FLUSH ? 0
					       : i * (uint64_t)REGION_BYTES +
						     rnd(g, (REGION_BYTES - IO_BYTES) / 512) * 512;
		if (data && !dev_buf_get(g->dev, t, r->len_bytes, &r->buf))
			break;
		if (op == BLK_WRITE || op == BLK_ZERO) {
			uint8_t fill = op == BLK_ZERO ? 255 : (uint8_t)(1 + rnd(g, 254));

			if (op == BLK_WRITE)
				memset(r->buf.mem, fill, r->len_bytes);
			memset(g->model + r->off_bytes / 512, fill, r->len_bytes / 512);
		}
		s->busy = true;
		g->issued++;
		out[n++] = r;
	}
	return n;
}

static bool sector_is_right(const struct gen *g, uint64_t off, const unsigned char *got)
{
	uint8_t fill = g->model[off / 512];
	unsigned char want = fill == 255 ? 0 : fill ? fill : golden_byte(off);

	return got[0] == want && !memcmp(got, got + 1, 511);
}

static void gen_copy_out(struct transport *t, struct blkreq *const *reqs, unsigned n)
{
	struct gen *g = (struct gen *)t;

	for (unsigned i = 0; i < n; i++)
		for (uint64_t at = 0; reqs[i]->op == BLK_READ && !reqs[i]->status && at < reqs[i]->len_bytes;
		     at += 512)
			g->wrong += !sector_is_right(g, reqs[i]->off_bytes + at,
						     (unsigned char *)reqs[i]->buf.mem + at);
}

static void gen_respond(struct transport *t, struct blkreq *r)
{
	struct gen *g = (struct gen *)t;
	struct gen_slot *s = container_of(r, struct gen_slot, req);

	g->failed += r->status != 0;
	dev_buf_put(g->dev, &r->buf);
	s->busy = false;
	dev_transport_ready(t);
	if (++g->answered == g->to_do)
		sem_post(&g->done);
}

static void gen_kick(struct transport *t)
{
	(void)t;
}

static void gen_event(struct transport *t, struct io_poll *p)
{
	(void)t;
	(void)p;
}

static void gen_detached(struct transport *t)
{
	sem_post(&((struct gen *)t)->detached);
}

static const struct transport_ops gen_ops = {
    .name = "gen",
    .fetch = gen_fetch,
    .copy_out = gen_copy_out,
    .respond = gen_respond,
    .kick = gen_kick,
    .event = gen_event,
    .detached = gen_detached,
};

static void gen_attach(struct dev *d, void *arg)
{
	struct gen *g = arg;

	memset(&g->t, 0, sizeof(g->t));
	g->t.ops = &gen_ops;
	g->dev = d;
	dev_attach(d, &g->t);
}

static void gen_detach(struct dev *d, void *arg)
{
	dev_detach(d, arg);
}

static struct gen *gen_new(uint32_t seed, unsigned to_do)
{
	struct gen *g = calloc(1, sizeof(*g));

	assert_non_null(g);
	g->rng = seed;
	g->to_do = to_do;
	sem_init(&g->done, 0, 0);
	sem_init(&g->detached, 0, 0);
	return g;
}

static void sem_get(sem_t *s)
{
	while (sem_wait(s) < 0)
		;
}

/* ---- devices ---- */

static struct dev *device_open(const char *leaf, const char *engine, enum write_mode mode,
			       const char *run_dir)
{
	struct disk_opts dopts = {.path = in_dir(leaf), .writable = true, .run_dir = run_dir, .cache = cache};
	struct dev_opts opts = {
	    .name = leaf, .write_mode = mode, .pool = pool, .cache = cache, .idle_commit_ms = 5};
	struct err e = ERR_INIT;
	struct disk *disk;
	struct dev *d;

	opts.engine = io_engine_find(engine, &e);
	if (!opts.engine || disk_open(&dopts, &disk, &e) || dev_create(disk, &opts, true, &d, &e)) {
		print_error("%s: %s\n", leaf, e.text);
		return NULL;
	}
	return d;
}

struct worker {
	pthread_t thread;
	unsigned index;
	const char *engine;
	unsigned rounds, to_do,
	    leave_at; /* leave_at: destroyed when so many are answered, with others in flight */
	unsigned bad;
};

/* Opens, runs a load, closes, with the same leaf and model again and again. */
static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct gen *g = gen_new(1000 + w->index / 2, 0); /* two of a kind ask for the same pages */
	char leaf[32];

	snprintf(leaf, sizeof(leaf), "leaf%u.vhd", w->index);
	for (unsigned round = 0; round < w->rounds; round++) {
		struct dev *d =
		    device_open(leaf, w->engine, (enum write_mode)(round % 3), round % 2 ? dir : NULL);

		if (!d) {
			w->bad++;
			break;
		}
		g->answered = g->issued = 0;
		g->to_do = w->to_do;
		dev_call(d, gen_attach, g);
		if (round % 2)
			usleep(500 * (round % 7)); /* and away under load */
		else
			sem_get(&g->done);
		if (round % 3 == 2) {
			dev_call(d, gen_detach, g);
			sem_get(&g->detached);
		}
		w->bad += dev_destroy(d, NULL) != 0;
		if (round % 3 != 2)
			sem_get(&g->detached);
		while (sem_trywait(&g->done) == 0)
			;
		w->bad += g->wrong || g->failed;
	}
	sem_destroy(&g->done);
	sem_destroy(&g->detached);
	free(g);
	return NULL;
}

static void clones_under_load(const char *engine)
{
	struct worker w[WORKERS] = {{0}};
	struct cache_stats s;
	char leaf[32];

	for (unsigned i = 0; i < WORKERS; i++) {
		snprintf(leaf, sizeof(leaf), "leaf%u.vhd", i);
		(void)unlink(in_dir(leaf));
		image_child(leaf, "middle.vhd");
		w[i] = (struct worker){.index = i, .engine = engine, .rounds = 12, .to_do = 400};
		assert_int_equal(pthread_create(&w[i].thread, NULL, worker_main, &w[i]), 0);
	}
	for (unsigned i = 0; i < WORKERS; i++) {
		pthread_join(w[i].thread, NULL);
		assert_int_equal(w[i].bad, 0);
	}
	cache_stats(cache, &s);
	print_message("%s: %llu hits, %llu fills, %llu waits, %llu bypasses\n", engine,
		      (unsigned long long)s.hits, (unsigned long long)s.fills, (unsigned long long)s.waits,
		      (unsigned long long)s.bypasses);
	assert_int_equal(s.used_bytes, 0); /* the last close of the parents forgot their pages */
}

static void clones_come_and_go_under_load_uring(void **state)
{
	(void)state;
	clones_under_load("uring");
}

static void clones_come_and_go_under_load_aio(void **state)
{
	(void)state;
	clones_under_load("aio");
}

/* ---- the mailbox ---- */

struct storm {
	struct dev *d;
	unsigned posted, calls; /* by this thread */
	unsigned *ran;		/* the device thread's */
};

static void count(struct dev *d, void *arg)
{
	(void)d;
	++*(unsigned *)arg;
}

static void *storm_main(void *arg)
{
	struct storm *s = arg;

	for (unsigned i = 0; i < 2000; i++) {
		if (i % 16 == 0) {
			if (dev_call(s->d, count, s->ran) == 0)
				s->calls++;
		} else if (dev_post(s->d, count, s->ran) == 0) {
			s->posted++;
		}
	}
	return NULL;
}

static void every_message_that_was_taken_is_run_once(void **state)
{
	pthread_t thread[WORKERS];
	struct storm s[WORKERS];
	unsigned ran = 0, taken = 0;
	struct gen *g = gen_new(5, 2000);
	struct dev *d;

	(void)state;
	image_child("storm.vhd", "middle.vhd");
	d = device_open("storm.vhd", "auto", WRITE_BACK, dir);
	assert_non_null(d);
	dev_call(d, gen_attach, g);
	for (unsigned i = 0; i < WORKERS; i++) {
		s[i] = (struct storm){.d = d, .ran = &ran};
		assert_int_equal(pthread_create(&thread[i], NULL, storm_main, &s[i]), 0);
	}
	for (unsigned i = 0; i < WORKERS; i++) {
		pthread_join(thread[i], NULL);
		taken += s[i].posted + s[i].calls;
		assert_int_equal(s[i].calls, 125);
	}
	sem_get(&g->done);
	assert_int_equal(dev_destroy(d, NULL), 0); /* runs what is left */
	assert_int_equal(ran, taken);
	assert_int_equal(g->wrong + g->failed, 0);
	free(g);
}

struct gate {
	sem_t entered, open;
};

static void wait_at(struct dev *d, void *arg)
{
	struct gate *gate = arg;

	(void)d;
	sem_post(&gate->entered);
	sem_get(&gate->open);
}

static void full_mailbox_refuses_and_goes_on(void **state)
{
	unsigned ran = 0, taken = 0;
	struct gate gate;
	struct dev *d;

	(void)state;
	sem_init(&gate.entered, 0, 0);
	sem_init(&gate.open, 0, 0);
	image_child("mail.vhd", "middle.vhd");
	d = device_open("mail.vhd", "auto", WRITE_AUTO, NULL);
	assert_non_null(d);
	assert_int_equal(dev_post(d, wait_at, &gate), 0);
	sem_get(&gate.entered);
	while (taken < 10000 && dev_post(d, count, &ran) == 0)
		taken++;
	assert_in_range(taken, 1, 9999);
	assert_int_equal(dev_post(d, count, &ran), -EAGAIN);
	sem_post(&gate.open);
	assert_int_equal(dev_call(d, count, &ran), 0);
	assert_int_equal(ran, taken + 1);
	assert_int_equal(dev_destroy(d, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(clones_come_and_go_under_load_uring),
	    cmocka_unit_test(clones_come_and_go_under_load_aio),
	    cmocka_unit_test(every_message_that_was_taken_is_run_once),
	    cmocka_unit_test(full_mailbox_refuses_and_goes_on),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
