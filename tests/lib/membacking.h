/*
 * Backings in memory, for unit, property, fault and fuzz tests. Header only, all functions static.
 *
 * A mem_file is the medium: bytes (a memfd, so a file of 2 TiB with a few pages costs a few pages), identity,
 * counters and fault hooks. It outlives the backings that open it: close one, open the next, and look at what
 * the first one left. A mem_dir names files, and is a backing_opener for code that walks chains.
 *
 * Faults: set fail_op and fail_nth (the nth call of that operation from now on fails once with fail_errno),
 * or a hook that sees every call before it takes effect and may refuse it. Bounds are checked: a call outside
 * what backing.h allows aborts the test.
 */
#ifndef TESTS_LIB_MEMBACKING_H
#define TESTS_LIB_MEMBACKING_H

#include "blkd/backing.h"
#include "blkd/bytes.h"
#include "blkd/err.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEM_UNUSED __attribute__((unused))

enum mem_op {
	MEM_READ,
	MEM_WRITE,
	MEM_FLUSH,
	MEM_SIZE,
	MEM_EXTEND,
	MEM_TRUNCATE,
	MEM_ZERO,
	MEM_FENCE,
	MEM_OPS,
	MEM_ANY = MEM_OPS
};

struct mem_file {
	int memfd;
	ino_t ino;
	unsigned refs; /* owner and open backings */
	bool fenced;
	struct backing_traits traits; /* given to backings opened from now on; change it before mem_open */
	uint64_t calls[MEM_OPS];
	enum mem_op fail_op; /* MEM_ANY: whichever comes */
	uint64_t fail_nth;   /* 1: the next; 0: none */
	int fail_errno;	     /* positive; 0 means EIO */
	/* Before the call takes effect. 0, or -errno: the call fails with it. */
	int (*hook)(void *ctx, struct mem_file *, enum mem_op, uint64_t off_bytes, uint64_t len_bytes);
	void *hook_ctx;
	char path[256];
};

struct mem_backing {
	struct backing b;
	struct mem_file *file;
	bool fence_held;
};

static MEM_UNUSED uint64_t mem_size(const struct mem_file *f)
{
	off_t end = lseek(f->memfd, 0, SEEK_END);

	assert(end >= 0);
	return (uint64_t)end;
}

static MEM_UNUSED void mem_resize(struct mem_file *f, uint64_t size_bytes)
{
	int ret = ftruncate(f->memfd, (off_t)size_bytes);

	assert(!ret);
	(void)ret;
}

/* Raw access for tests: no hooks, no counters. Beyond the end reads zeros; writing there grows the file. */
static MEM_UNUSED void mem_peek(const struct mem_file *f, uint64_t off_bytes, void *buf, size_t len_bytes)
{
	size_t got = 0;

	while (got < len_bytes) {
		ssize_t n = pread(f->memfd, (char *)buf + got, len_bytes - got, (off_t)(off_bytes + got));

		assert(n >= 0);
		if (n <= 0)
			break;
		got += (size_t)n;
	}
	memset((char *)buf + got, 0, len_bytes - got);
}

static MEM_UNUSED void mem_poke(struct mem_file *f, uint64_t off_bytes, const void *buf, size_t len_bytes)
{
	size_t done = 0;

	while (done < len_bytes) {
		ssize_t n =
		    pwrite(f->memfd, (const char *)buf + done, len_bytes - done, (off_t)(off_bytes + done));

		assert(n > 0);
		if (n <= 0)
			abort();
		done += (size_t)n;
	}
}

/* A new file, all zeros. The caller gives it back with mem_file_put. */
static MEM_UNUSED struct mem_file *mem_file_new(const char *path, uint64_t size_bytes)
{
	static ino_t next_ino = 1000;
	struct mem_file *f = calloc(1, sizeof(*f));

	assert(f);
	f->memfd = memfd_create("membacking", MFD_CLOEXEC);
	assert(f->memfd >= 0);
	f->ino = __atomic_add_fetch(&next_ino, 1, __ATOMIC_RELAXED);
	f->refs = 1;
	f->traits = (struct backing_traits){
	    .logical_bytes = 512,
	    .physical_bytes = 4096,
	    .mem_align_bytes = 512,
	    .zeroes_on_allocate = true,
	    .can_fallocate = true,
	    .can_punch = true,
	    .fence = FENCE_FILE_LOCK,
	};
	snprintf(f->path, sizeof(f->path), "%s", path);
	mem_resize(f, size_bytes);
	return f;
}

static MEM_UNUSED struct mem_file *mem_file_get(struct mem_file *f)
{
	f->refs++;
	return f;
}

static MEM_UNUSED void mem_file_put(struct mem_file *f)
{
	if (!f || --f->refs)
		return;
	close(f->memfd);
	free(f);
}

/* Copy of a file with all its bytes (holes stay holes), under another name and identity. */
static MEM_UNUSED struct mem_file *mem_file_clone(const struct mem_file *from, const char *path)
{
	struct mem_file *f = mem_file_new(path, mem_size(from));
	static char buf[1 << 16];
	off_t at = 0, end;

	while ((at = lseek(from->memfd, at, SEEK_DATA)) >= 0) {
		end = lseek(from->memfd, at, SEEK_HOLE);
		while (at < end) {
			size_t n = (size_t)(end - at) < sizeof(buf) ? (size_t)(end - at) : sizeof(buf);

			mem_peek(from, (uint64_t)at, buf, n);
			mem_poke(f, (uint64_t)at, buf, n);
			at += (off_t)n;
		}
	}
	f->traits = from->traits;
	return f;
}

static MEM_UNUSED int mem_call(struct backing *b, enum mem_op op, uint64_t off_bytes, uint64_t len_bytes,
			       struct mem_file **out)
{
	struct mem_file *f = ((struct mem_backing *)b)->file;
	bool changes = op == MEM_WRITE || op == MEM_EXTEND || op == MEM_TRUNCATE || op == MEM_ZERO;

	*out = f;
	f->calls[op]++;
	assert(off_bytes <= (uint64_t)INT64_MAX && len_bytes <= (uint64_t)INT64_MAX - off_bytes);
	if (f->fail_nth && (f->fail_op == MEM_ANY || f->fail_op == op) && !--f->fail_nth)
		return f->fail_errno ? -f->fail_errno : -EIO;
	if (changes && !b->writable)
		return -EBADF;
	return f->hook ? f->hook(f->hook_ctx, f, op, off_bytes, len_bytes) : 0;
}

static MEM_UNUSED int mem_op_read(struct backing *b, uint64_t off_bytes, void *buf, size_t len_bytes)
{
	struct mem_file *f;
	int ret = mem_call(b, MEM_READ, off_bytes, len_bytes, &f);

	if (!ret)
		mem_peek(f, off_bytes, buf, len_bytes);
	return ret;
}

static MEM_UNUSED int mem_op_write(struct backing *b, uint64_t off_bytes, const void *buf, size_t len_bytes)
{
	struct mem_file *f;
	int ret = mem_call(b, MEM_WRITE, off_bytes, len_bytes, &f);

	if (ret)
		return ret;
	if (b->traits.fixed_size && off_bytes + len_bytes > mem_size(f))
		return -ENOSPC;
	mem_poke(f, off_bytes, buf, len_bytes);
	return 0;
}

static MEM_UNUSED int mem_op_flush(struct backing *b)
{
	struct mem_file *f;

	return mem_call(b, MEM_FLUSH, 0, 0, &f);
}

static MEM_UNUSED int mem_op_size(struct backing *b, uint64_t *size_bytes)
{
	struct mem_file *f;
	int ret = mem_call(b, MEM_SIZE, 0, 0, &f);

	*size_bytes = mem_size(f);
	return ret;
}

static MEM_UNUSED int mem_op_extend(struct backing *b, uint64_t size_bytes)
{
	struct mem_file *f;
	int ret = mem_call(b, MEM_EXTEND, size_bytes, 0, &f);

	if (ret)
		return ret;
	if (b->traits.fixed_size)
		return -EINVAL;
	if (size_bytes > mem_size(f))
		mem_resize(f, size_bytes);
	return 0;
}

static MEM_UNUSED int mem_op_truncate(struct backing *b, uint64_t size_bytes)
{
	struct mem_file *f;
	int ret = mem_call(b, MEM_TRUNCATE, size_bytes, 0, &f);

	if (ret)
		return ret;
	if (b->traits.fixed_size)
		return -EINVAL;
	mem_resize(f, size_bytes);
	return 0;
}

static MEM_UNUSED int mem_op_zero(struct backing *b, uint64_t off_bytes, uint64_t len_bytes)
{
	struct mem_file *f;
	int ret = mem_call(b, MEM_ZERO, off_bytes, len_bytes, &f);

	if (ret || !len_bytes)
		return ret;
	ret = fallocate(f->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off_bytes,
			(off_t)len_bytes);
	assert(!ret);
	return 0;
}

static MEM_UNUSED int mem_op_fence(struct backing *b, unsigned wait_ms)
{
	struct mem_backing *m = (struct mem_backing *)b;
	struct mem_file *f;
	int ret = mem_call(b, MEM_FENCE, 0, 0, &f);

	(void)wait_ms;
	if (ret)
		return ret;
	if (f->fenced && !m->fence_held)
		return -EBUSY;
	f->fenced = m->fence_held = true;
	return 0;
}

static MEM_UNUSED void mem_op_close(struct backing *b)
{
	struct mem_backing *m = (struct mem_backing *)b;

	if (m->fence_held)
		m->file->fenced = false;
	mem_file_put(m->file);
	free(b->path);
	free(m);
}

static MEM_UNUSED const struct backing_ops *mem_backing_ops(void)
{
	static const struct backing_ops ops = {
	    .name = "memory",
	    .read = mem_op_read,
	    .write = mem_op_write,
	    .flush = mem_op_flush,
	    .size = mem_op_size,
	    .extend = mem_op_extend,
	    .truncate = mem_op_truncate,
	    .zero = mem_op_zero,
	    .fence = mem_op_fence,
	    .close = mem_op_close,
	};
	return &ops;
}

/* Opens the file. path: as it shall appear in backing->path; NULL: the file's own. */
static MEM_UNUSED struct backing *mem_open_as(struct mem_file *f, const char *path, unsigned flags)
{
	struct mem_backing *m = calloc(1, sizeof(*m));

	assert(m);
	m->file = mem_file_get(f);
	m->b.ops = mem_backing_ops();
	m->b.traits = f->traits;
	m->b.fd = -1;
	m->b.writable = flags & (BACKING_WRITE | BACKING_CREATE);
	m->b.path = strdup(path ? path : f->path);
	m->b.dev_id = 1;
	m->b.ino = f->ino;
	assert(m->b.path);
	return &m->b;
}

static MEM_UNUSED struct backing *mem_open(struct mem_file *f, unsigned flags)
{
	return mem_open_as(f, NULL, flags);
}

/* ---- names ---- */

struct mem_dir {
	struct mem_file **files;
	unsigned n;
	struct backing_opener opener; /* set by mem_dir_init */
};

/* Takes "." and "name/.." out of a path and squeezes slashes. */
static MEM_UNUSED void mem_normalise(const char *path, char *out, size_t room)
{
	size_t n = 0;

	while (*path) {
		size_t len;

		while (*path == '/')
			path++;
		len = strcspn(path, "/");
		if (len == 2 && !strncmp(path, "..", 2)) {
			while (n && out[--n] != '/')
				;
		} else if (len && !(len == 1 && *path == '.')) {
			assert(n + len + 2 < room);
			out[n++] = '/';
			memcpy(out + n, path, len);
			n += len;
		}
		path += len;
	}
	out[n] = 0;
	(void)room;
}

static MEM_UNUSED struct mem_file *mem_dir_find(const struct mem_dir *d, const char *path)
{
	char want[4096], have[4096];

	mem_normalise(path, want, sizeof(want));
	for (unsigned i = 0; i < d->n; i++) {
		mem_normalise(d->files[i]->path, have, sizeof(have));
		if (!strcmp(want, have))
			return d->files[i];
	}
	return NULL;
}

/* The directory takes over the caller's reference. Returns f. */
static MEM_UNUSED struct mem_file *mem_dir_add(struct mem_dir *d, struct mem_file *f)
{
	d->files = realloc(d->files, (d->n + 1) * sizeof(struct mem_file *));
	assert(d->files);
	d->files[d->n++] = f;
	return f;
}

static MEM_UNUSED int mem_dir_open(void *ctx, const char *path, unsigned flags, struct backing **out,
				   struct err *e)
{
	struct mem_dir *d = ctx;
	struct mem_file *f = mem_dir_find(d, path);

	if (f && flags & BACKING_CREATE)
		return err_set(e, -EEXIST, "%s: exists", path);
	if (!f && !(flags & BACKING_CREATE))
		return err_set(e, -ENOENT, "%s: no such file", path);
	if (!f)
		f = mem_dir_add(d, mem_file_new(path, 0));
	*out = mem_open_as(f, path, flags);
	return 0;
}

static MEM_UNUSED void mem_dir_init(struct mem_dir *d)
{
	*d = (struct mem_dir){.opener = {.open = mem_dir_open}};
	d->opener.ctx = d;
}

static MEM_UNUSED void mem_dir_destroy(struct mem_dir *d)
{
	for (unsigned i = 0; i < d->n; i++)
		mem_file_put(d->files[i]);
	free(d->files);
	*d = (struct mem_dir){0};
}

#endif
