/*
 * The driver for images by path, against a plain array of bytes: what the file reads must be what the array
 * has, whatever the offsets, and its size must be what an ordinary write would have left. Storage of 4096 is
 * had twice: by telling the backing so, and for real, by a loop device with that block size.
 */
#include "blkd/backing.h"
#include "blkd/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[64], path[100];

static int setup(void **state)
{
	(void)state;
	strcpy(dir, "/var/tmp/blkd-file-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/image", dir);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(path);
	rmdir(dir);
	return 0;
}

static struct backing *open_ok(const char *name, unsigned flags)
{
	struct backing *b = NULL;
	struct err e = ERR_INIT;

	if (file_opener.open(file_opener.ctx, name, flags, &b, &e))
		fail_msg("%s", e.text);
	return b;
}

static void open_refused(const char *name, unsigned flags, int code, const char *word)
{
	struct backing *b = NULL;
	struct err e = ERR_INIT;

	assert_int_equal(file_opener.open(file_opener.ctx, name, flags, &b, &e), code);
	assert_null(b);
	assert_int_equal(e.code, code);
	if (!strstr(e.text, word) || !strstr(e.text, name))
		fail_msg("the sentence lacks '%s' or the path: %s", word, e.text);
}

static uint64_t size_of(struct backing *b)
{
	uint64_t size_bytes;

	assert_int_equal(b->ops->size(b, &size_bytes), 0);
	return size_bytes;
}

static void open_is_direct_and_not_inherited(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);
	struct stat st;

	(void)state;
	assert_true(fcntl(b->fd, F_GETFL) & O_DIRECT);
	assert_false(fcntl(b->fd, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(b->fd, F_GETFD) & FD_CLOEXEC);
	assert_true(b->writable);
	assert_string_equal(b->path, path);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(b->ino, st.st_ino);
	assert_int_equal(b->dev_id, st.st_dev);
	assert_int_equal(b->traits.fence, FENCE_FILE_LOCK);
	assert_false(b->traits.durable_at_completion);
	assert_false(b->traits.fixed_size);
	assert_true(b->traits.physical_bytes >= b->traits.logical_bytes);
	b->ops->close(b);
}

static void create_refuses_what_exists_and_leaves_it(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);

	(void)state;
	assert_int_equal(b->ops->write(b, 0, "keep", 4), 0);
	b->ops->close(b);
	open_refused(path, BACKING_CREATE, -EEXIST, "exists");
	b = open_ok(path, 0);
	assert_int_equal(size_of(b), 4);
	b->ops->close(b);
}

static void other_kinds_of_files_are_refused_without_touching_them(void **state)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd;

	(void)state;
	open_refused(dir, 0, -EISDIR, "directory");
	open_refused(path, 0, -ENOENT, "No such file");
	open_refused("/dev/null", BACKING_WRITE, -ENOTBLK, "character device");
	assert_int_equal(mkfifo(path, 0600), 0);
	open_refused(path, BACKING_WRITE, -ENOTBLK, "fifo");
	open_refused(path, 0, -ENOTBLK, "fifo");
	unlink(path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	open_refused(path, 0, -ENOTBLK, "socket");
	close(fd);
}

static void writes_to_a_read_only_backing_fail(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);
	char c = 0;

	(void)state;
	assert_int_equal(b->ops->extend(b, 8192), 0);
	b->ops->close(b);
	b = open_ok(path, 0);
	assert_int_equal(b->ops->write(b, 0, &c, 1), -EBADF);
	assert_int_equal(b->ops->truncate(b, 0), -EBADF);
	assert_int_equal(b->ops->extend(b, 16384), -EBADF);
	assert_int_equal(b->ops->zero(b, 0, 512), -EBADF);
	assert_int_equal(size_of(b), 8192);
	b->ops->close(b);
}

static void read_beyond_end_is_zeros(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);
	unsigned char buf[9000], data[700];

	(void)state;
	memset(data, 7, sizeof(data));
	assert_int_equal(b->ops->write(b, 0, data, sizeof(data)), 0);
	assert_int_equal(size_of(b), sizeof(data));
	memset(buf, 0xee, sizeof(buf));
	assert_int_equal(b->ops->read(b, 100, buf, sizeof(buf)), 0);
	for (unsigned i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], i < sizeof(data) - 100 ? 7 : 0);
	memset(buf, 0xee, sizeof(buf));
	assert_int_equal(b->ops->read(b, 1u << 20, buf, sizeof(buf)), 0);
	for (unsigned i = 0; i < sizeof(buf); i++)
		assert_int_equal(buf[i], 0);
	b->ops->close(b);
}

static void offsets_beyond_2_pow_63_are_refused(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);
	char c[512] = {0};

	(void)state;
	assert_int_equal(b->ops->read(b, UINT64_MAX - 100, c, sizeof(c)), -EINVAL);
	assert_int_equal(b->ops->write(b, INT64_MAX - 100, c, sizeof(c)), -EINVAL);
	assert_int_equal(b->ops->zero(b, 512, UINT64_MAX), -EINVAL);
	assert_int_equal(b->ops->zero(b, 512, INT64_MAX), -EINVAL);
	assert_int_equal(b->ops->truncate(b, UINT64_MAX), -EFBIG);
	assert_int_equal(b->ops->extend(b, UINT64_MAX), -EFBIG);
	assert_int_equal(size_of(b), 0);
	b->ops->close(b);
}

/* ---- random operations against an array ---- */

#define MODEL_BYTES (3u << 20)

struct model {
	unsigned char *bytes;
	uint64_t size_bytes;
	unsigned seed;
};

static uint64_t pick(struct model *m, uint64_t below)
{
	return (uint64_t)rand_r(&m->seed) % below;
}

static uint64_t pick_len(struct model *m)
{
	switch (pick(m, 4)) {
	case 0:
		return 1 + pick(m, 100);
	case 1:
		return 512 * (1 + pick(m, 16));
	case 2:
		return 4096 * (1 + pick(m, 16));
	default:
		return 1 + pick(m, 2u << 20);
	}
}

static void one_operation(struct backing *b, struct model *m, unsigned char *buf)
{
	uint64_t len = pick_len(m), off = pick(m, MODEL_BYTES - len), unit = pick(m, 3) ? 512 : 1;
	uint64_t limit = b->traits.fixed_size ? m->size_bytes : MODEL_BYTES;

	off -= off % unit;
	if (off + len > limit)
		off = limit - len;
	switch (pick(m, b->traits.fixed_size ? 3 : 5)) {
	case 0: {
		unsigned char *p = buf + pick(m, 2) * pick(m, 600);

		memset(p, (int)pick(m, 256), len);
		p[len / 2] ^= 0x55;
		assert_int_equal(b->ops->write(b, off, p, len), 0);
		memcpy(m->bytes + off, p, len);
		if (off + len > m->size_bytes)
			m->size_bytes = off + len;
		break;
	}
	case 1:
		assert_int_equal(b->ops->zero(b, off, len), 0);
		memset(m->bytes + off, 0, len);
		break;
	case 2:
		memset(buf, 0xdb, len);
		assert_int_equal(b->ops->read(b, off, buf, len), 0);
		assert_memory_equal(buf, m->bytes + off, len);
		break;
	case 3:
		assert_int_equal(b->ops->extend(b, off), 0);
		if (off > m->size_bytes)
			m->size_bytes = off;
		break;
	default:
		if (pick(m, 4))
			break;
		assert_int_equal(b->ops->truncate(b, off), 0);
		if (off < m->size_bytes)
			memset(m->bytes + off, 0, m->size_bytes - off);
		m->size_bytes = off;
		break;
	}
	assert_int_equal(size_of(b), m->size_bytes);
}

static void run_model(struct backing *b, unsigned seed, unsigned ops)
{
	struct model m = {.bytes = calloc(1, MODEL_BYTES), .seed = seed};
	unsigned char *buf = malloc(MODEL_BYTES + 4096);

	assert_true(m.bytes && buf);
	m.size_bytes = size_of(b);
	for (unsigned i = 0; i < ops; i++)
		one_operation(b, &m, buf);
	assert_int_equal(b->ops->flush(b), 0);
	assert_int_equal(b->ops->read(b, 0, buf, m.size_bytes), 0);
	assert_memory_equal(buf, m.bytes, m.size_bytes);
	free(m.bytes);
	free(buf);
}

static void operations_of_any_alignment_match_a_plain_array(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);

	(void)state;
	run_model(b, 1, 400);
	b->ops->close(b);
}

static void logical_sector_of_4096_is_never_split_nor_does_the_file_grow_by_it(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);

	(void)state;
	b->traits.logical_bytes = b->traits.physical_bytes = b->traits.mem_align_bytes = 4096;
	run_model(b, 2, 400);
	b->ops->close(b);
}

static void without_fallocate_and_punch_the_same_holds(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);

	(void)state;
	b->traits.can_fallocate = b->traits.can_punch = false;
	run_model(b, 3, 300);
	b->ops->close(b);
}

static void zero_range_that_the_store_refuses_is_learnt(void **state)
{
	char shm[] = "/dev/shm/blkd-file-test-XXXXXX";
	int fd = mkstemp(shm);
	struct backing *b;

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	b = open_ok(shm, BACKING_WRITE | BACKING_BUFFERED);
	assert_false(b->traits.durable_at_completion);
	b->traits.can_punch = true; /* tmpfs has no zero-range */
	run_model(b, 4, 200);
	assert_false(b->traits.can_punch);
	b->ops->close(b);
	unlink(shm);
}

static void extend_reserves_space(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);
	struct stat st;

	(void)state;
	assert_int_equal(b->ops->extend(b, 1u << 20), 0);
	assert_int_equal(fstat(b->fd, &st), 0);
	if (b->traits.can_fallocate)
		assert_true(st.st_blocks * 512 >= 1 << 20);
	assert_int_equal(b->ops->extend(b, 4096), 0);
	assert_int_equal(size_of(b), 1u << 20);
	b->ops->close(b);
}

static void extend_without_space_leaves_the_size(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);

	(void)state;
	assert_int_equal(b->ops->extend(b, 65536), 0);
	assert_true(b->ops->extend(b, 1ull << 43) < 0);
	assert_int_equal(size_of(b), 65536);
	b->ops->close(b);
}

static void fence_keeps_a_second_holder_out_until_the_first_closes(void **state)
{
	struct backing *a = open_ok(path, BACKING_CREATE), *b = open_ok(path, BACKING_WRITE);

	(void)state;
	assert_int_equal(a->ops->fence(a, 0), 0);
	assert_int_equal(b->ops->fence(b, 20), -EBUSY);
	a->ops->close(a);
	assert_int_equal(b->ops->fence(b, 1000), 0);
	b->ops->close(b);
}

static void fence_waits_for_a_dying_holder(void **state)
{
	struct backing *b = open_ok(path, BACKING_CREATE);
	int to_parent[2];
	char c;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(to_parent), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		int fd = open(path, O_RDWR);

		if (fd < 0 || flock(fd, LOCK_EX) || write(to_parent[1], "x", 1) != 1)
			_exit(1);
		usleep(100000);
		_exit(0);
	}
	assert_int_equal(read(to_parent[0], &c, 1), 1);
	assert_int_equal(b->ops->fence(b, 0), -EBUSY);
	assert_int_equal(b->ops->fence(b, 20000), 0);
	waitpid(pid, NULL, 0);
	close(to_parent[0]);
	close(to_parent[1]);
	b->ops->close(b);
}

/* A loop device over `path`, with blocks of 4096. Returns its name's number, or fails the test. */
static int loop_attach(int *loop_fd, char *name, size_t cap)
{
	struct loop_config cfg = {.block_size = 4096};
	int file = open(path, O_RDWR | O_CLOEXEC), ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC), n;

	assert_true(file >= 0 && ctl >= 0);
	cfg.fd = (uint32_t)file;
	cfg.info.lo_flags = LO_FLAGS_AUTOCLEAR;
	for (int tries = 0; tries < 20; tries++) {
		n = ioctl(ctl, LOOP_CTL_GET_FREE);
		assert_true(n >= 0);
		snprintf(name, cap, "/dev/loop%d", n);
		*loop_fd = open(name, O_RDWR | O_CLOEXEC);
		assert_true(*loop_fd >= 0);
		if (!ioctl(*loop_fd, LOOP_CONFIGURE, &cfg)) {
			close(file);
			close(ctl);
			return n;
		}
		close(*loop_fd); /* somebody else was quicker */
	}
	fail_msg("no loop device could be had: %s", strerror(errno));
	return -1;
}

static void block_device_of_4096_serves_any_alignment_and_keeps_its_size(void **state)
{
	struct backing *file = open_ok(path, BACKING_CREATE), *b;
	char name[32], c[512] = {0};
	int loop_fd;

	(void)state;
	assert_int_equal(file->ops->truncate(file, MODEL_BYTES), 0);
	loop_attach(&loop_fd, name, sizeof(name));
	b = open_ok(name, BACKING_WRITE);
	close(loop_fd);
	assert_int_equal(b->traits.logical_bytes, 4096);
	assert_int_equal(b->traits.physical_bytes, 4096);
	assert_true(b->traits.fixed_size);
	assert_false(b->traits.can_fallocate);
	assert_int_equal(b->ino, 0);
	assert_int_equal(size_of(b), MODEL_BYTES);
	run_model(b, 5, 300);
	assert_true(b->ops->write(b, MODEL_BYTES, c, sizeof(c)) < 0);
	assert_int_equal(b->ops->truncate(b, 4096), -EOPNOTSUPP);
	assert_int_equal(b->ops->extend(b, MODEL_BYTES + 4096), -ENOSPC);
	assert_int_equal(b->ops->extend(b, MODEL_BYTES), 0);
	assert_int_equal(size_of(b), MODEL_BYTES);
	b->ops->close(b);
	file->ops->close(file);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(open_is_direct_and_not_inherited),
	    T(create_refuses_what_exists_and_leaves_it),
	    T(other_kinds_of_files_are_refused_without_touching_them),
	    T(writes_to_a_read_only_backing_fail),
	    T(read_beyond_end_is_zeros),
	    T(offsets_beyond_2_pow_63_are_refused),
	    T(operations_of_any_alignment_match_a_plain_array),
	    T(logical_sector_of_4096_is_never_split_nor_does_the_file_grow_by_it),
	    T(without_fallocate_and_punch_the_same_holds),
	    T(zero_range_that_the_store_refuses_is_learnt),
	    T(extend_reserves_space),
	    T(extend_without_space_leaves_the_size),
	    T(fence_keeps_a_second_holder_out_until_the_first_closes),
	    T(fence_waits_for_a_dying_holder),
	    T(block_device_of_4096_serves_any_alignment_and_keeps_its_size),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
