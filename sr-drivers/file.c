/*
 * The driver for images by path: regular files and block devices.
 *
 * Files are opened O_DIRECT and O_CLOEXEC, always: the page cache would double every byte, and a descriptor
 * that a successor inherits would share the lock that is meant to keep it out. The file's kind is looked at
 * before the open, because opening a fifo or a tape acts on it, and again after it.
 *
 * The calls here are the control path's: synchronous, of any offset, length and address. What direct I/O
 * would refuse goes through a bounce buffer; a write that begins or ends within a logical block reads that
 * block first. A file's size need not be a multiple of its storage's block (VHDs are multiples of 512 on
 * storage of 4096): writing its last block whole would leave it longer, so its size is put back. A death
 * between the two leaves zeros behind the end, never data.
 *
 * The fence is flock(): it belongs to the open file, which I/O in flight keeps alive after its process was
 * killed. So whoever gets it knows that the predecessor's writes have ended.
 *
 * Not here: any caching, any order between callers. Two threads that write parts of one block through these
 * calls race.
 */
#include "sr-drivers/file_traits.h"
#include "blkd/backing.h"
#include "blkd/bytes.h"
#include "blkd/clock.h"
#include "blkd/err.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define BOUNCE_MAX_BYTES (1u << 20)
#define FENCE_POLL_US	 5000u

static int file_size(struct backing *b, uint64_t *size_bytes)
{
	struct stat st;

	if (b->traits.fixed_size)
		return ioctl(b->fd, BLKGETSIZE64, size_bytes) ? -errno : 0;
	if (fstat(b->fd, &st))
		return -errno;
	*size_bytes = (uint64_t)st.st_size;
	return 0;
}

static bool is_direct(const struct backing *b, uint64_t off_bytes, const void *buf, size_t len_bytes)
{
	uint64_t unit = b->traits.logical_bytes;

	return !(off_bytes % unit) && !(len_bytes % unit) && !((uintptr_t)buf % b->traits.mem_align_bytes);
}

static int bounce_get(const struct backing *b, uint64_t off_bytes, size_t len_bytes, void **buf,
		      size_t *cap_bytes)
{
	uint64_t unit = b->traits.logical_bytes;
	uint64_t span = round_up_u64(off_bytes % unit + u64_min(len_bytes, BOUNCE_MAX_BYTES), unit);

	*cap_bytes = u64_min(span, BOUNCE_MAX_BYTES);
	return -posix_memalign(buf, FILE_LOGICAL_MAX_BYTES, *cap_bytes);
}

static bool range_ok(uint64_t off_bytes, uint64_t len_bytes)
{
	const uint64_t limit = (uint64_t)INT64_MAX - FILE_LOGICAL_MAX_BYTES;

	return len_bytes <= limit && off_bytes <= limit - len_bytes;
}

/* All three aligned. What lies beyond the end reads zero. */
static int read_direct(struct backing *b, uint64_t off_bytes, void *buf, size_t len_bytes)
{
	char *p = buf;
	size_t done = 0;

	while (done < len_bytes) {
		ssize_t n = pread(b->fd, p + done, len_bytes - done, (off_t)(off_bytes + done));
		uint64_t size_bytes = 0;
		int ret;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if ((size_t)n == len_bytes - done)
			return 0;
		ret = file_size(b, &size_bytes);
		if (ret)
			return ret;
		if (off_bytes + done + (uint64_t)n >= size_bytes) {
			memset(p + done + n, 0, len_bytes - done - (size_t)n);
			return 0;
		}
		/* Cut short within the file: go on from a whole block, which is read again. */
		n = (ssize_t)round_down_u64((uint64_t)n, b->traits.logical_bytes);
		if (!n)
			return -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int file_read(struct backing *b, uint64_t off_bytes, void *buf, size_t len_bytes)
{
	uint64_t unit = b->traits.logical_bytes;
	char *p = buf, *bounce;
	size_t cap_bytes;
	void *mem;
	int ret;

	if (!range_ok(off_bytes, len_bytes))
		return -EINVAL;
	if (!len_bytes)
		return 0;
	if (is_direct(b, off_bytes, buf, len_bytes))
		return read_direct(b, off_bytes, buf, len_bytes);
	ret = bounce_get(b, off_bytes, len_bytes, &mem, &cap_bytes);
	if (ret)
		return ret;
	bounce = mem;
	while (len_bytes) {
		size_t skip = off_bytes % unit, n = u64_min(len_bytes, cap_bytes - skip);

		ret = read_direct(b, off_bytes - skip, bounce, round_up_u64(skip + n, unit));
		if (ret)
			break;
		memcpy(p, bounce + skip, n);
		p += n;
		off_bytes += n;
		len_bytes -= n;
	}
	free(mem);
	return ret;
}

/* All three aligned. */
static int write_direct(struct backing *b, uint64_t off_bytes, const void *buf, size_t len_bytes)
{
	const char *p = buf;
	size_t done = 0;

	while (done < len_bytes) {
		ssize_t n = pwrite(b->fd, p + done, len_bytes - done, (off_t)(off_bytes + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if ((size_t)n < len_bytes - done)
			n = (ssize_t)round_down_u64((uint64_t)n, b->traits.logical_bytes);
		if (!n)
			return -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* Writes the n bytes at src (NULL: zeros) to off, through a bounce buffer that holds all blocks they touch.
 */
static int write_window(struct backing *b, uint64_t off_bytes, const char *src, size_t n, char *bounce)
{
	uint64_t unit = b->traits.logical_bytes;
	size_t skip = off_bytes % unit, span = round_up_u64(skip + n, unit);
	uint64_t start = off_bytes - skip;
	int ret = 0;

	if (skip)
		ret = read_direct(b, start, bounce, unit);
	if (!ret && (skip + n) % unit && (span > unit || !skip))
		ret = read_direct(b, start + span - unit, bounce + span - unit, unit);
	if (ret)
		return ret;
	if (src)
		memcpy(bounce + skip, src, n);
	else
		memset(bounce + skip, 0, n);
	return write_direct(b, start, bounce, span);
}

/* buf NULL: zeros. */
static int write_bounced(struct backing *b, uint64_t off_bytes, const char *buf, uint64_t len_bytes)
{
	uint64_t unit = b->traits.logical_bytes, end = off_bytes + len_bytes, size_bytes = 0;
	size_t cap_bytes;
	void *mem;
	int ret;

	ret = file_size(b, &size_bytes);
	if (ret)
		return ret;
	ret = bounce_get(b, off_bytes, len_bytes, &mem, &cap_bytes);
	if (ret)
		return ret;
	while (!ret && len_bytes) {
		size_t n = u64_min(len_bytes, cap_bytes - off_bytes % unit);

		ret = write_window(b, off_bytes, buf, n, mem);
		buf = buf ? buf + n : NULL;
		off_bytes += n;
		len_bytes -= n;
	}
	free(mem);
	if (b->traits.fixed_size || round_up_u64(end, unit) <= size_bytes)
		return ret;
	/* Also after an error: a block may have been written whole. */
	end = ret ? size_bytes : u64_max(end, size_bytes);
	if (file_size(b, &size_bytes) == 0 && size_bytes > end && ftruncate(b->fd, (off_t)end) && !ret)
		ret = -errno;
	return ret;
}

static int file_write(struct backing *b, uint64_t off_bytes, const void *buf, size_t len_bytes)
{
	if (!b->writable)
		return -EBADF;
	if (!range_ok(off_bytes, len_bytes))
		return -EINVAL;
	if (!len_bytes)
		return 0;
	if (is_direct(b, off_bytes, buf, len_bytes))
		return write_direct(b, off_bytes, buf, len_bytes);
	return write_bounced(b, off_bytes, buf, len_bytes);
}

static int file_flush(struct backing *b)
{
	return fdatasync(b->fd) ? -errno : 0;
}

static int file_truncate(struct backing *b, uint64_t size_bytes)
{
	if (!b->writable)
		return -EBADF;
	if (b->traits.fixed_size)
		return -EOPNOTSUPP;
	if (size_bytes > INT64_MAX)
		return -EFBIG;
	return ftruncate(b->fd, (off_t)size_bytes) ? -errno : 0;
}

static int file_extend(struct backing *b, uint64_t size_bytes)
{
	uint64_t old_bytes = 0;
	int ret;

	if (!b->writable)
		return -EBADF;
	if (size_bytes > INT64_MAX)
		return -EFBIG;
	ret = file_size(b, &old_bytes);
	if (ret || size_bytes <= old_bytes)
		return ret;
	if (b->traits.fixed_size)
		return -ENOSPC;
	if (b->traits.can_fallocate) {
		do {
			ret = fallocate(b->fd, 0, (off_t)old_bytes, (off_t)(size_bytes - old_bytes)) ? -errno
												     : 0;
		} while (ret == -EINTR);
		if (!ret)
			return 0;
		if (ret != -EOPNOTSUPP) {
			/* What was reserved before space ran out goes back, as far as the file system lets
			 * it. */
			(void)!ftruncate(b->fd, (off_t)old_bytes);
			return ret;
		}
		b->traits.can_fallocate = false;
	}
	return file_truncate(b, size_bytes);
}

/* Whole blocks. Learns when the file system has no such call. */
static int zero_blocks(struct backing *b, uint64_t off_bytes, uint64_t len_bytes)
{
	if (!len_bytes)
		return 0;
	while (b->traits.can_punch) {
		if (!fallocate(b->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)off_bytes,
			       (off_t)len_bytes))
			return 0;
		if (errno == EOPNOTSUPP)
			b->traits.can_punch = false;
		else if (errno != EINTR)
			return -errno;
	}
	return write_bounced(b, off_bytes, NULL, len_bytes);
}

static int file_zero(struct backing *b, uint64_t off_bytes, uint64_t len_bytes)
{
	uint64_t unit = b->traits.logical_bytes, size_bytes = 0, first, last, end;
	int ret;

	if (!b->writable)
		return -EBADF;
	if (!range_ok(off_bytes, len_bytes))
		return -EINVAL;
	ret = file_size(b, &size_bytes);
	if (ret)
		return ret;
	end = u64_min(off_bytes + len_bytes, size_bytes);
	if (off_bytes >= end)
		return 0;
	first = round_up_u64(off_bytes, unit);
	last = round_down_u64(end, unit);
	if (first >= last)
		return write_bounced(b, off_bytes, NULL, end - off_bytes);
	if (off_bytes < first)
		ret = write_bounced(b, off_bytes, NULL, first - off_bytes);
	if (!ret)
		ret = zero_blocks(b, first, last - first);
	if (!ret && last < end)
		ret = write_bounced(b, last, NULL, end - last);
	return ret;
}

static int file_fence(struct backing *b, unsigned wait_ms)
{
	uint64_t until_ns = clock_ns() + wait_ms * 1000000ull;

	for (;;) {
		if (!flock(b->fd, LOCK_EX | LOCK_NB))
			return 0;
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (clock_ns() >= until_ns)
			return -EBUSY;
		usleep(FENCE_POLL_US);
	}
}

static void file_close(struct backing *b)
{
	close(b->fd);
	free(b->path);
	free(b);
}

static const struct backing_ops file_ops = {
    .name = "file",
    .read = file_read,
    .write = file_write,
    .flush = file_flush,
    .size = file_size,
    .extend = file_extend,
    .truncate = file_truncate,
    .zero = file_zero,
    .fence = file_fence,
    .close = file_close,
};

static int check_kind(const struct stat *st, const char *path, struct err *e)
{
	const char *what;

	switch (st->st_mode & S_IFMT) {
	case S_IFREG:
	case S_IFBLK:
		return 0;
	case S_IFDIR:
		what = "a directory";
		break;
	case S_IFIFO:
		what = "a fifo";
		break;
	case S_IFSOCK:
		what = "a socket";
		break;
	case S_IFCHR:
		what = "a character device";
		break;
	default:
		what = "of an unknown kind";
		break;
	}
	return err_set(e, S_ISDIR(st->st_mode) ? -EISDIR : -ENOTBLK,
		       "%s is %s; an image is a regular file or a block device", path, what);
}

/* O_NONBLOCK for the open only: a fifo that took the file's place must not hang us. On the open file it would
 * make io_uring answer EAGAIN instead of waiting. */
static int open_kind(const char *path, int how, struct stat *st, struct err *e)
{
	int fd, flags, ret;

	if (stat(path, st))
		return err_set(e, -errno, "cannot open %s: %s", path, strerror(errno));
	ret = check_kind(st, path, e);
	if (ret)
		return ret;
	fd = open(path, how | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 && errno == EINVAL && (how & O_DIRECT))
		return err_set(e, -EINVAL,
			       "%s: its file system refuses direct I/O (O_DIRECT), without which an image "
			       "cannot be served; "
			       "put it on another file system",
			       path);
	if (fd < 0)
		return err_set(e, -errno, "cannot open %s for %s: %s", path,
			       (how & O_ACCMODE) == O_RDWR ? "writing" : "reading", strerror(errno));
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) || fstat(fd, st))
		ret = err_set(e, -errno, "cannot examine %s: %s", path, strerror(errno));
	else
		ret = check_kind(st, path, e);
	if (ret) {
		close(fd);
		return ret;
	}
	return fd;
}

static int create_empty(const char *path, struct err *e)
{
	int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);

	if (fd < 0 && errno == EEXIST)
		return err_set(e, -EEXIST, "%s exists already and is not overwritten", path);
	if (fd < 0)
		return err_set(e, -errno, "cannot create %s: %s", path, strerror(errno));
	close(fd);
	return 0;
}

static int open_existing(const char *path, unsigned flags, struct backing **out, struct err *e)
{
	int how = flags & BACKING_WRITE ? O_RDWR : O_RDONLY, fd, ret;
	bool direct = true;
	struct backing *b;
	struct stat st;

	fd = open_kind(path, how | O_DIRECT, &st, e);
	if (fd == -EINVAL && (flags & BACKING_BUFFERED)) {
		if (e)
			*e = (struct err)ERR_INIT;
		direct = false;
		fd = open_kind(path, how, &st, e);
	}
	if (fd < 0)
		return fd;
	b = calloc(1, sizeof(*b));
	if (b)
		b->path = strdup(path);
	if (!b || !b->path) {
		free(b);
		close(fd);
		return err_set(e, -ENOMEM, "cannot open %s: out of memory", path);
	}
	b->ops = &file_ops;
	b->fd = fd;
	b->writable = flags & BACKING_WRITE;
	/* A device's nodes may be many; the device is one. */
	b->dev_id = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
	b->ino = S_ISBLK(st.st_mode) ? 0 : st.st_ino;
	ret = file_traits(fd, &st, path, direct, &b->traits, e);
	if (ret) {
		file_close(b);
		return ret;
	}
	*out = b;
	return 0;
}

static int file_open(void *ctx, const char *path, unsigned flags, struct backing **out, struct err *e)
{
	int ret;

	(void)ctx;
	if (!(flags & BACKING_CREATE))
		return open_existing(path, flags, out, e);
	ret = create_empty(path, e);
	if (ret)
		return ret;
	ret = open_existing(path, flags | BACKING_WRITE, out, e);
	if (ret)
		unlink(path);
	return ret;
}

const struct backing_opener file_opener = {.open = file_open};
