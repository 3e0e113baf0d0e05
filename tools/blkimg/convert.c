/*
 * convert: the content of a chain into a new image without parents. It goes by the source's map, so what is a
 * hole there costs nothing; in what is data it looks for zeros, 4 KiB at a time, and leaves runs of them out.
 * Short runs are written along: a write per page would be slower than the zeros.
 *
 * A thread reads ahead while this one writes; two hands on a ring of buffers. The destination is made with
 * O_EXCL and removed if anything fails, a signal too.
 */
#include "tools/blkimg/blkimg.h"

#include "blkd/bytes.h"
#include "blkd/vhd.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUF_BYTES      (1u << 20)
#define N_BUFS	       4u
#define LOOK_BYTES     (1ull << 30) /* how far the map is asked about at a time */
#define PAGE_BYTES     4096u
#define ZERO_RUN_BYTES (64u << 10) /* shorter ones are written along */

struct copy {
	struct ro_chain *src;
	struct disk *dst;
	pthread_mutex_t lock;
	pthread_cond_t moved;
	struct {
		unsigned char *mem;
		uint64_t off_bytes;
		uint32_t len_bytes;
	} buf[N_BUFS];
	unsigned filled, emptied; /* free-running; filled - emptied buffers wait for the writer */
	bool end, stop;		  /* the reader is through; the writer gave up */
	int read_res;
	struct err read_err;
	uint64_t written_bytes;
};

/* A buffer to fill, or -1: stop. */
static int reader_wait(struct copy *c)
{
	int i;

	pthread_mutex_lock(&c->lock);
	while (c->filled - c->emptied == N_BUFS && !c->stop)
		pthread_cond_wait(&c->moved, &c->lock);
	i = c->stop ? -1 : (int)(c->filled % N_BUFS);
	pthread_mutex_unlock(&c->lock);
	return i;
}

static void reader_give(struct copy *c)
{
	pthread_mutex_lock(&c->lock);
	c->filled++;
	pthread_cond_signal(&c->moved);
	pthread_mutex_unlock(&c->lock);
}

static void *reader(void *arg)
{
	struct copy *c = arg;
	const struct chain *chain = &c->src->chain;
	uint64_t off = 0, got;
	int ret = 0, i = 0;

	while (off < chain->size_bytes && !ret && i >= 0) {
		struct extent x;
		uint32_t len;

		ret = extent_at(chain, off, u64_min(chain->size_bytes - off, LOOK_BYTES), &x, &got,
				&c->read_err);
		if (ret || x.kind == EXT_ZERO) {
			off += ret ? 0 : got;
			continue;
		}
		len = (uint32_t)u64_min(BUF_BYTES - off % BUF_BYTES, chain->size_bytes - off);
		i = reader_wait(c);
		if (i < 0)
			break;
		ret = chain_read(chain, off, c->buf[i].mem, len, &c->read_err);
		if (ret)
			break;
		c->buf[i].off_bytes = off;
		c->buf[i].len_bytes = len;
		reader_give(c);
		off += len;
	}
	pthread_mutex_lock(&c->lock);
	c->end = true;
	c->read_res = ret;
	pthread_cond_signal(&c->moved);
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

/* A buffer to write, or -1: there are no more. */
static int writer_wait(struct copy *c)
{
	int i;

	pthread_mutex_lock(&c->lock);
	while (c->filled == c->emptied && !c->end)
		pthread_cond_wait(&c->moved, &c->lock);
	i = c->filled == c->emptied ? -1 : (int)(c->emptied % N_BUFS);
	pthread_mutex_unlock(&c->lock);
	return i;
}

static void writer_give(struct copy *c, bool stop)
{
	pthread_mutex_lock(&c->lock);
	c->emptied += !stop;
	c->stop |= stop;
	pthread_cond_signal(&c->moved);
	pthread_mutex_unlock(&c->lock);
}

static uint32_t zero_run(const unsigned char *p, uint32_t len)
{
	uint32_t n = 0;

	while (n < len && bytes_are_zero(p + n, u64_min(PAGE_BYTES, len - n)))
		n += (uint32_t)u64_min(PAGE_BYTES, len - n);
	return n;
}

/* Bytes up to the next run of zeros that is worth leaving out. */
static uint32_t data_run(const unsigned char *p, uint32_t len)
{
	uint32_t n = 0;

	while (n < len) {
		uint32_t z = zero_run(p + n, len - n);

		if (z >= ZERO_RUN_BYTES || (z && n + z == len))
			break;
		n += z ? z : (uint32_t)u64_min(PAGE_BYTES, len - n);
	}
	return n;
}

static int write_buf(struct copy *c, unsigned i, struct err *e)
{
	const unsigned char *p = c->buf[i].mem;
	uint32_t len = c->buf[i].len_bytes, at = 0;
	int ret = 0;

	while (at < len && !ret) {
		uint32_t n;

		at += zero_run(p + at, len - at);
		n = data_run(p + at, len - at);
		if (n)
			ret = chain_write(&c->dst->chain, WRITE_DATA, c->buf[i].off_bytes + at, p + at, n, e);
		at += n;
		c->written_bytes += n;
	}
	return ret;
}

static int writer(struct copy *c, struct err *e)
{
	struct progress progress;
	int i, ret = 0;

	progress_start(&progress, "converting", c->src->chain.size_bytes);
	while (!ret && (i = writer_wait(c)) >= 0) {
		ret = write_buf(c, (unsigned)i, e);
		if (!ret)
			ret = interrupt_check(e);
		progress_at(&progress, c->buf[i].off_bytes);
		writer_give(c, ret != 0);
	}
	progress_end(&progress);
	return ret;
}

static int copy_run(struct copy *c, struct err *e)
{
	pthread_t thread;
	int ret = 0;

	for (unsigned i = 0; i < N_BUFS && !ret; i++)
		if (posix_memalign((void **)&c->buf[i].mem, PAGE_BYTES, BUF_BYTES)) {
			c->buf[i].mem = NULL;
			ret = err_set(e, -ENOMEM, "no memory for buffers");
		}
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->moved, NULL);
	if (!ret) {
		ret = -pthread_create(&thread, NULL, reader, c);
		if (ret)
			err_set(e, ret, "cannot start a thread: %s", strerror(-ret));
	}
	if (!ret) {
		ret = writer(c, e);
		pthread_join(thread, NULL);
		if (!ret && c->read_res) {
			ret = c->read_res;
			*e = c->read_err;
		}
	}
	pthread_cond_destroy(&c->moved);
	pthread_mutex_destroy(&c->lock);
	for (unsigned i = 0; i < N_BUFS; i++)
		free(c->buf[i].mem);
	return ret;
}

static int make_dst(const char *path, const char *format, uint64_t size, const struct args *a, struct err *e)
{
	struct vhd_create_opts opts = {.kind = strcmp(format, "vhd") ? VHD_KIND_FIXED : VHD_KIND_DYNAMIC,
				       .size_bytes = size,
				       .exact_size = true};
	struct backing *b;
	int ret = file_create(path, a, &b, e);

	if (ret)
		return ret;
	if (!strcmp(format, "raw")) {
		ret = b->ops->truncate(b, size);
		if (ret)
			err_set(e, ret, "%s: cannot make it %" PRIu64 " bytes long: %s", path, size,
				strerror(-ret));
	} else {
		ret = vhd_create(b, &opts, e);
	}
	b->ops->close(b);
	if (ret)
		unlink(path);
	return ret;
}

static int fill_dst(struct ro_chain *src, const char *path, const char *format, const struct args *a,
		    uint64_t *written, struct err *e)
{
	struct copy c = {.src = src};
	int ret = disk_open_rw(path, format, a, &c.dst, e);

	if (ret)
		return ret;
	ret = copy_run(&c, e);
	if (!ret)
		ret = disk_finish(c.dst, e);
	disk_close(c.dst);
	if (!ret)
		ret = dir_sync(path, e);
	*written = c.written_bytes;
	return ret;
}

int verb_convert(const struct args *a, json_t *out, struct err *e)
{
	const char *path = a->word[1], *format = format_of(path, a->format, e);
	struct ro_chain *src;
	uint64_t written = 0;
	char x[32], y[32];
	int ret;

	if (!format)
		return -EINVAL;
	ret = ro_open(a->word[0], a->src_format, a, &src, e);
	if (ret)
		return ret;
	interrupt_catch();
	ret = make_dst(path, format, src->chain.size_bytes, a, e);
	if (!ret) {
		ret = fill_dst(src, path, format, a, &written, e);
		if (ret)
			unlink(path);
	}
	if (!ret && out) {
		json_object_set_new(out, "file", json_string(path));
		json_object_set_new(out, "format", json_string(format));
		json_object_set_new(out, "size_bytes", json_integer((json_int_t)src->chain.size_bytes));
		json_object_set_new(out, "written_bytes", json_integer((json_int_t)written));
	} else if (!ret) {
		printf("%s: %s, %s, of which %s are not zero\n", path, format,
		       human(src->chain.size_bytes, x), human(written, y));
	}
	ro_close(src);
	return ret;
}
