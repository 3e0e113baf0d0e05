/*
 * devbench: the executor alone. A transport that lives on the device thread keeps QD requests in flight on an
 * image and counts, so that what is measured is plan, format, engine and storage, without ring or socket. For
 * reading the leaf's own data, allocating writes, overwrites; compare with fio on the same file in one run
 * (bench/p6p7).
 *
 *   devbench IMAGE read|write QD SECONDS [engine] [write-mode] [block bytes] [flush every N]
 * prints one line of JSON: iops, cpu_us_per_io, p50_us, p99_us.
 */
#include "blkd/cache.h"
#include "blkd/clock.h"
#include "blkd/dev.h"
#include "blkd/err.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { MAX_QD = 512, SAMPLES = 1 << 20 };

struct bench {
	struct transport t;
	struct dev *dev;
	struct blkreq req[MAX_QD];
	uint64_t began_ns[MAX_QD];
	unsigned qd, block, flush_every;
	enum blk_op op;
	uint64_t size_bytes, rng, done, flushes, since_flush, errors;
	unsigned idle[MAX_QD], n_idle;
	uint32_t *lat_ns;
	uint64_t stop_ns;
	int finished;
};

static uint64_t next_random(struct bench *b)
{
	b->rng ^= b->rng << 13;
	b->rng ^= b->rng >> 7;
	b->rng ^= b->rng << 17;
	return b->rng;
}

static unsigned fetch(struct transport *t, struct blkreq **out, unsigned max)
{
	struct bench *b = (struct bench *)t;
	unsigned n = 0;
	uint64_t now_ns = clock_ns();

	while (b->n_idle && n < max && now_ns < b->stop_ns) {
		unsigned i = b->idle[b->n_idle - 1];
		struct blkreq *r = &b->req[i];

		if (!r->buf.mem && !dev_buf_get(b->dev, t, b->block, &r->buf))
			break;
		r->op = b->op;
		r->len_bytes = b->block;
		r->off_bytes = next_random(b) % (b->size_bytes / b->block) * b->block;
		if (b->flush_every && b->since_flush >= b->flush_every) {
			b->since_flush = 0;
			r->op = BLK_FLUSH;
			r->len_bytes = 0;
		}
		b->since_flush += r->op == BLK_WRITE;
		b->began_ns[i] = now_ns;
		b->n_idle--;
		out[n++] = r;
	}
	if (now_ns >= b->stop_ns && b->n_idle == b->qd)
		b->finished = 1;
	return n;
}

static void copy_out(struct transport *t, struct blkreq *const *reqs, unsigned n)
{
	(void)t;
	(void)reqs;
	(void)n;
}

static void respond(struct transport *t, struct blkreq *r)
{
	struct bench *b = (struct bench *)t;
	unsigned i = (unsigned)(r - b->req);

	b->idle[b->n_idle++] = i;
	b->errors += r->status != 0;
	if (r->op == BLK_FLUSH) {
		b->flushes++;
	} else {
		b->lat_ns[b->done++ % SAMPLES] = (uint32_t)(clock_ns() - b->began_ns[i]);
	}
	dev_transport_ready(t);
}

static void nothing(struct transport *t)
{
	(void)t;
}

static void event(struct transport *t, struct io_poll *p)
{
	(void)t;
	(void)p;
}

static void detached(struct transport *t)
{
	struct bench *b = (struct bench *)t;

	(void)b;
}

static const struct transport_ops ops = {"bench", fetch, copy_out, respond, nothing, event, detached};

static void attach(struct dev *d, void *arg)
{
	struct bench *b = arg;

	dev_attach(d, &b->t);
	if (b->flush_every) /* write-mode auto: a guest that flushes */
		b->t.flushed = true;
}

static void give_back(struct dev *d, void *arg)
{
	struct bench *b = arg;

	for (unsigned i = 0; i < b->qd; i++)
		dev_buf_put(d, &b->req[i].buf);
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static double cpu_seconds(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
	static struct bench b;
	struct disk_opts dopts = {.run_dir = "/dev/shm"};
	struct dev_opts opts = {.name = "bench"};
	struct disk *disk;
	struct err e = ERR_INIT;
	struct dev_stats s;
	double cpu, seconds;
	uint64_t t0, n;

	if (argc < 5) {
		fprintf(stderr, "usage: devbench IMAGE read|write QD SECONDS [engine] [write-mode] [block "
				"bytes] [flush every N]\n");
		return 2;
	}
	dopts.path = argv[1];
	b.op = !strcmp(argv[2], "write") ? BLK_WRITE : BLK_READ;
	b.qd = (unsigned)strtoul(argv[3], NULL, 10);
	seconds = strtod(argv[4], NULL);
	b.block = argc > 7 ? (unsigned)strtoul(argv[7], NULL, 10) : 4096;
	b.flush_every = argc > 8 ? (unsigned)strtoul(argv[8], NULL, 10) : 0;
	dopts.writable = b.op == BLK_WRITE;
	opts.engine = io_engine_find(argc > 5 ? argv[5] : "auto", &e);
	if (!opts.engine || b.qd < 1 || b.qd > MAX_QD)
		goto fail;
	if (argc > 6)
		opts.write_mode = !strcmp(argv[6], "back")	? WRITE_BACK
				  : !strcmp(argv[6], "through") ? WRITE_THROUGH
								: WRITE_AUTO;
	if (bufpool_create(256u << 20, &opts.pool, &e) < 0 || cache_create(0, &opts.cache, &e) < 0)
		goto fail;
	dopts.cache = opts.cache;
	if (disk_open(&dopts, &disk, &e) < 0 || dev_create(disk, &opts, true, &b.dev, &e) < 0)
		goto fail;
	b.lat_ns = calloc(SAMPLES, sizeof(*b.lat_ns));
	b.size_bytes = dev_size_bytes(b.dev);
	b.rng = 88172645463325252ull;
	for (unsigned i = 0; i < b.qd; i++) {
		b.req[i].transport = &b.t;
		b.idle[b.n_idle++] = i;
	}
	b.t.ops = &ops;
	cpu = cpu_seconds();
	t0 = clock_ns();
	b.stop_ns = t0 + (uint64_t)(seconds * 1e9);
	dev_call(b.dev, attach, &b);
	while (!__atomic_load_n(&b.finished, __ATOMIC_ACQUIRE))
		usleep(1000);
	cpu = cpu_seconds() - cpu;
	seconds = (double)(clock_ns() - t0) / 1e9;
	dev_call(b.dev, give_back, &b);
	n = b.done < SAMPLES ? b.done : SAMPLES;
	dev_stats(b.dev, &s);
	qsort(b.lat_ns, n, sizeof(*b.lat_ns), by_value);
	printf("{\"iops\": %.0f, \"cpu_us_per_io\": %.3f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"flushes\": "
	       "%llu, \"errors\": %llu, \"commits\": %llu, \"grows\": %llu, \"parked\": %llu, "
	       "\"blocked\": %llu, \"store_writes\": %llu, \"store_flushes\": %llu, \"syscalls\": %llu}\n",
	       (double)b.done / seconds, cpu * 1e6 / (double)(b.done ? b.done : 1),
	       n ? b.lat_ns[n / 2] / 1e3 : 0, n ? b.lat_ns[n - 1 - n / 100] / 1e3 : 0,
	       (unsigned long long)b.flushes, (unsigned long long)b.errors, (unsigned long long)s.commits,
	       (unsigned long long)s.grows, (unsigned long long)s.parked, (unsigned long long)s.blocked,
	       (unsigned long long)s.store_writes, (unsigned long long)s.store_flushes,
	       (unsigned long long)s.syscalls);
	if (dev_destroy(b.dev, &e) < 0)
		goto fail;
	cache_destroy(opts.cache);
	bufpool_destroy(opts.pool);
	free(b.lat_ns);
	return b.errors != 0;
fail:
	fprintf(stderr, "devbench: %s\n", e.text);
	return 1;
}
