/*
 * Both engines by one suite: what io.h promises, on a real file. The file is opened through its driver, so it
 * is direct I/O on the local file system. Times are never asserted, but for waits that must not end early.
 */
#include "blkd/backing.h"
#include "blkd/clock.h"
#include "blkd/err.h"
#include "blkd/io.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEPTH = 64, BLOCK = 4096, BLOCKS = 512 };

static const struct io_engine_ops *ops; /* under test */

struct fixture {
	char path[64];
	struct backing *backing;
	struct io_engine *engine;
	struct io_file file;
	struct list done, ready;
	unsigned char *mem;
};
static struct fixture f;

static int setup(void **state)
{
	struct err e = ERR_INIT;
	int fd;

	(void)state;
	f = (struct fixture){.path = "/var/tmp/blkd-engine-XXXXXX"};
	list_init(&f.done);
	list_init(&f.ready);
	fd = mkstemp(f.path);
	assert_true(fd >= 0);
	close(fd);
	if (file_opener.open(NULL, f.path, BACKING_WRITE, &f.backing, &e))
		fail_msg("%s", e.text);
	if (ops->create(DEPTH, &f.engine, &e))
		fail_msg("%s", e.text);
	assert_ptr_equal(f.engine->ops, ops);
	assert_int_equal(ops->file_add(f.engine, f.backing, &f.file), 0);
	assert_int_equal(posix_memalign((void **)&f.mem, BLOCK, 2 * DEPTH * BLOCK), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	ops->file_del(f.engine, &f.file);
	ops->destroy(f.engine);
	f.backing->ops->close(f.backing);
	unlink(f.path);
	free(f.mem);
	return 0;
}

static struct io *one_done(void)
{
	while (list_empty(&f.done))
		ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
	return container_of(list_pop(&f.done), struct io, link);
}

static int run_on(const struct io_file *file, enum io_op op, uint64_t off, uint64_t len, void *buf)
{
	struct io io = {.op = op, .file = file, .off_bytes = off, .len_bytes = len, .buf = buf};

	assert_int_equal(ops->queue(f.engine, &io), 0);
	assert_ptr_equal(one_done(), &io);
	assert_int_equal(f.engine->in_flight, 0);
	return io.res;
}

static int run(enum io_op op, uint64_t off, uint64_t len, void *buf)
{
	return run_on(&f.file, op, off, len, buf);
}

static uint64_t file_bytes(void)
{
	struct stat st;

	assert_int_equal(stat(f.path, &st), 0);
	return (uint64_t)st.st_size;
}

static void every_operation_does_what_it_says(void **state)
{
	unsigned char *a = f.mem, *b = f.mem + 4 * BLOCK;

	(void)state;
	memset(a, 0x5a, 4 * BLOCK);
	assert_int_equal(run(IO_EXTEND, 0, 16 * BLOCK, NULL), 0);
	assert_int_equal(file_bytes(), 16 * BLOCK);
	assert_int_equal(run(IO_WRITE, 4 * BLOCK, 4 * BLOCK, a), 4 * BLOCK);
	assert_int_equal(run(IO_FLUSH, 0, 0, NULL), 0);
	assert_int_equal(run(IO_READ, 4 * BLOCK, 4 * BLOCK, b), 4 * BLOCK);
	assert_memory_equal(a, b, 4 * BLOCK);
	assert_int_equal(run(IO_ZERO, 4 * BLOCK, BLOCK, NULL), 0);
	assert_int_equal(run(IO_PUNCH, 6 * BLOCK, BLOCK, NULL), 0);
	assert_int_equal(file_bytes(), 16 * BLOCK);
	assert_int_equal(run(IO_READ, 4 * BLOCK, 4 * BLOCK, b), 4 * BLOCK);
	memset(a, 0, BLOCK);
	memset(a + 2 * BLOCK, 0, BLOCK);
	assert_memory_equal(a, b, 4 * BLOCK);
	assert_int_equal(run(IO_TRUNCATE, 5 * BLOCK, 0, NULL), 0);
	assert_int_equal(file_bytes(), 5 * BLOCK);
}

static void extend_without_fallocate_sets_the_size(void **state)
{
	struct stat st;

	(void)state;
	f.backing->traits.can_fallocate = false;
	assert_int_equal(run(IO_EXTEND, 0, 64 * BLOCK, NULL), 0);
	assert_int_equal(stat(f.path, &st), 0);
	assert_int_equal(st.st_size, 64 * BLOCK);
	assert_int_equal(st.st_blocks, 0);
}

static void read_that_meets_the_end_is_short(void **state)
{
	(void)state;
	assert_int_equal(run(IO_EXTEND, 0, 3 * BLOCK, NULL), 0);
	assert_int_equal(run(IO_READ, 2 * BLOCK, 4 * BLOCK, f.mem), BLOCK);
	assert_int_equal(run(IO_READ, 8 * BLOCK, BLOCK, f.mem), 0);
}

static void errors_come_back_as_results(void **state)
{
	struct backing gone = *f.backing;
	struct io_file file = {.backing = &gone, .slot = -1};
	struct rlimit old, small;

	(void)state;
	gone.fd = 1 << 20; /* no such descriptor */
	assert_int_equal(run_on(&file, IO_READ, 0, BLOCK, f.mem), -EBADF);
	assert_int_equal(run_on(&file, IO_FLUSH, 0, 0, NULL), -EBADF);
	assert_int_equal(run_on(&file, IO_TRUNCATE, 0, 0, NULL), -EBADF);
	gone.fd = -1;
	assert_int_equal(ops->file_add(f.engine, &gone, &file), -EBADF);
	assert_int_equal(run(IO_READ, 0, BLOCK, NULL), 0); /* nothing is moved at the end */
	assert_int_equal(run(IO_EXTEND, 0, BLOCK, NULL), 0);
	assert_int_equal(run(IO_READ, 0, BLOCK, (void *)BLOCK), -EFAULT); /* aligned, and not mapped */

	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = old;
	small.rlim_cur = 4 * BLOCK;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	memset(f.mem, 1, BLOCK);
	assert_int_equal(run(IO_WRITE, 8 * BLOCK, BLOCK, f.mem), -EFBIG);
	assert_int_equal(run(IO_EXTEND, BLOCK, 8 * BLOCK, NULL), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(run(IO_EXTEND, BLOCK, 1ull << 43, NULL) < 0, 1);
	assert_true(file_bytes() < 1ull << 43);
}

static void what_the_store_cannot_do_is_told(void **state)
{
	char path[] = "/dev/shm/blkd-engine-XXXXXX"; /* tmpfs punches but has no zero-range */
	struct err e = ERR_INIT;
	struct backing *b;
	struct io_file file;
	int fd = mkstemp(path);

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(file_opener.open(NULL, path, BACKING_WRITE | BACKING_BUFFERED, &b, &e), 0);
	assert_int_equal(ops->file_add(f.engine, b, &file), 0);
	assert_int_equal(run_on(&file, IO_EXTEND, 0, 4 * BLOCK, NULL), 0);
	assert_int_equal(run_on(&file, IO_ZERO, 0, BLOCK, NULL), -EOPNOTSUPP);
	assert_int_equal(run_on(&file, IO_PUNCH, 0, BLOCK, NULL), 0);
	ops->file_del(f.engine, &file);
	b->ops->close(b);
	unlink(path);
}

static void depth_is_a_limit_and_busy_leaves_no_trace(void **state)
{
	struct io io[DEPTH + 1];
	unsigned reaped = 0;

	(void)state;
	assert_int_equal(run(IO_EXTEND, 0, BLOCKS * BLOCK, NULL), 0);
	for (unsigned i = 0; i < DEPTH + 1; i++)
		io[i] = (struct io){.op = i % 8 == 7 ? IO_FLUSH : IO_READ,
				    .file = &f.file,
				    .off_bytes = i * BLOCK,
				    .len_bytes = i % 8 == 7 ? 0 : BLOCK,
				    .buf = f.mem + i * BLOCK,
				    .res = 12345};
	for (unsigned i = 0; i < DEPTH; i++)
		assert_int_equal(ops->queue(f.engine, &io[i]), 0);
	assert_int_equal(f.engine->in_flight, DEPTH);
	assert_int_equal(ops->queue(f.engine, &io[DEPTH]), -EBUSY);
	assert_int_equal(ops->queue(f.engine, &io[DEPTH]), -EBUSY);
	assert_int_equal(f.engine->in_flight, DEPTH);
	while (reaped < DEPTH) {
		assert_true(one_done() != &io[DEPTH]);
		reaped++;
	}
	assert_int_equal(io[DEPTH].res, 12345);
	assert_int_equal(ops->queue(f.engine, &io[DEPTH]), 0);
	assert_ptr_equal(one_done(), &io[DEPTH]);
}

static void one_turn_submits_everything_queued(void **state)
{
	struct io io[32];
	uint64_t before;
	unsigned n = 0;

	(void)state;
	assert_int_equal(run(IO_EXTEND, 0, BLOCKS * BLOCK, NULL), 0);
	for (unsigned i = 0; i < 32; i++) {
		io[i] = (struct io){.op = IO_READ,
				    .file = &f.file,
				    .off_bytes = i * BLOCK,
				    .len_bytes = BLOCK,
				    .buf = f.mem + i * BLOCK};
		assert_int_equal(ops->queue(f.engine, &io[i]), 0);
	}
	before = f.engine->syscalls;
	ops->turn(f.engine, 0, &f.done, &f.ready);
	/* uring: io_uring_enter; aio: io_submit, epoll_wait and at most two io_getevents */
	assert_true(f.engine->syscalls - before <= (ops == &io_uring_engine ? 1 : 4));
	while (n < 32) {
		one_done();
		n++;
	}
}

static void files_beyond_the_registered_table_work(void **state)
{
	struct io_file files[100];

	(void)state;
	assert_int_equal(run(IO_EXTEND, 0, BLOCK, NULL), 0);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(ops->file_add(f.engine, f.backing, &files[i]), 0);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(run_on(&files[i], IO_READ, 0, BLOCK, f.mem), BLOCK);
	for (unsigned i = 0; i < 100; i++)
		ops->file_del(f.engine, &files[i]);
	assert_int_equal(ops->file_add(f.engine, f.backing, &files[0]), 0);
	assert_int_equal(run_on(&files[0], IO_READ, 0, BLOCK, f.mem), BLOCK);
	ops->file_del(f.engine, &files[0]);
}

/* A writer, verified: each block holds its number and generation; no two operations in flight touch one
 * block. */
struct mixed {
	struct io io[DEPTH];
	struct list idle;
	uint64_t generation[BLOCKS];
	bool busy[BLOCKS], zero[BLOCKS];
	unsigned seed, started, ended;
};

static void fill(uint64_t *words, uint64_t block, uint64_t generation)
{
	for (unsigned i = 0; i < BLOCK / sizeof(*words); i++)
		words[i] = block << 32 ^ generation << 10 ^ i;
}

static void start_one(struct mixed *m)
{
	struct io *io = container_of(list_pop(&m->idle), struct io, link);
	unsigned block, kind = (unsigned)rand_r(&m->seed) % 100;

	do {
		block = (unsigned)rand_r(&m->seed) % BLOCKS;
	} while (m->busy[block]);
	io->op = kind < 45   ? IO_READ
		 : kind < 90 ? IO_WRITE
		 : kind < 94 ? IO_ZERO
		 : kind < 98 ? IO_PUNCH
			     : IO_FLUSH;
	io->off_bytes = (uint64_t)block * BLOCK;
	io->len_bytes = BLOCK;
	m->busy[block] = true;
	if (io->op == IO_WRITE)
		fill(io->buf, block, ++m->generation[block]);
	assert_int_equal(ops->queue(f.engine, io), 0);
	m->started++;
}

static void end_one(struct mixed *m, struct io *io)
{
	uint64_t block = io->off_bytes / BLOCK, expect[BLOCK / 8] = {0};

	m->busy[block] = false;
	m->ended++;
	assert_int_equal(io->res, io->op == IO_READ || io->op == IO_WRITE ? BLOCK : 0);
	if (io->op == IO_WRITE)
		m->zero[block] = false;
	if (io->op == IO_ZERO || io->op == IO_PUNCH)
		m->zero[block] = true;
	if (io->op == IO_READ) {
		if (!m->zero[block])
			fill(expect, block, m->generation[block]);
		assert_memory_equal(io->buf, expect, BLOCK);
	}
	list_add_tail(&m->idle, &io->link);
}

static void ten_thousand_mixed_operations_verify(void **state)
{
	static struct mixed m;

	(void)state;
	m = (struct mixed){.seed = 7};
	list_init(&m.idle);
	memset(m.zero, 1, sizeof(m.zero));
	assert_int_equal(run(IO_EXTEND, 0, BLOCKS * BLOCK, NULL), 0);
	for (unsigned i = 0; i < DEPTH; i++) {
		m.io[i] = (struct io){.file = &f.file, .buf = f.mem + i * BLOCK};
		list_add_tail(&m.idle, &m.io[i].link);
	}
	while (m.ended < 10000) {
		while (m.started < 10000 && !list_empty(&m.idle))
			start_one(&m);
		end_one(&m, one_done());
	}
	assert_int_equal(f.engine->in_flight, 0);
}

/* ---- polls and waiting ---- */

static void turn_waits_for_the_deadline_and_not_less(void **state)
{
	uint64_t before = clock_ns();

	(void)state;
	ops->turn(f.engine, before + 30000000, &f.done, &f.ready);
	assert_true(clock_ns() >= before + 30000000);
	ops->turn(f.engine, 0, &f.done, &f.ready);
	ops->turn(f.engine, 1, &f.done, &f.ready); /* long past */
	assert_true(list_empty(&f.done) && list_empty(&f.ready));
	assert_true(ops->now(f.engine) >= before);
}

static void poll_fires_once_and_can_be_armed_again(void **state)
{
	int fd = eventfd(0, EFD_NONBLOCK);
	struct io_poll p = {.fd = fd, .events = POLLIN};

	(void)state;
	ops->poll_arm(f.engine, &p);
	ops->turn(f.engine, 0, &f.done, &f.ready);
	assert_true(list_empty(&f.ready));
	assert_true(p.armed);
	assert_int_equal(eventfd_write(fd, 1), 0);
	ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
	assert_ptr_equal(list_pop(&f.ready), &p.link);
	assert_true(p.revents & POLLIN);
	assert_false(p.armed);
	ops->turn(f.engine, clock_ns() + 1000000, &f.done, &f.ready); /* still readable, but not armed */
	assert_true(list_empty(&f.ready));
	ops->poll_arm(f.engine, &p); /* readable already: at once */
	ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
	assert_ptr_equal(list_pop(&f.ready), &p.link);
	ops->poll_disarm(f.engine, &p); /* not armed: harmless */
	close(fd);
}

static void two_polls_on_one_descriptor_are_two(void **state)
{
	int fd = eventfd(0, EFD_NONBLOCK);
	struct io_poll in = {.fd = fd, .events = POLLIN}, out = {.fd = fd, .events = POLLOUT};

	(void)state;
	ops->poll_arm(f.engine, &in);
	ops->poll_arm(f.engine, &out);
	ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
	assert_ptr_equal(list_pop(&f.ready), &out.link);
	assert_true(list_empty(&f.ready));
	assert_true(in.armed);
	assert_int_equal(eventfd_write(fd, 1), 0);
	ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
	assert_ptr_equal(list_pop(&f.ready), &in.link);
	ops->poll_arm(f.engine, &in);
	ops->poll_arm(f.engine, &out);
	ops->poll_disarm(f.engine, &in);
	ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
	assert_ptr_equal(list_pop(&f.ready), &out.link);
	assert_true(list_empty(&f.ready));
	close(fd);
}

static void poll_on_a_bad_descriptor_is_ready_with_an_error(void **state)
{
	struct io_poll p = {.fd = 1 << 20, .events = POLLIN};

	(void)state;
	ops->poll_arm(f.engine, &p);
	ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
	assert_ptr_equal(list_pop(&f.ready), &p.link);
	assert_true(p.revents & (POLLNVAL | POLLERR));
	assert_false(p.armed);
}

static void disarmed_poll_is_never_touched_again(void **state)
{
	int fd = eventfd(0, EFD_NONBLOCK);
	unsigned fired = 0;

	(void)state;
	for (unsigned i = 0; i < 3000; i++) {
		struct io_poll *p = calloc(1, sizeof(*p));

		assert_non_null(p);
		*p = (struct io_poll){.fd = fd, .events = POLLIN};
		ops->poll_arm(f.engine, p);
		if (i % 3)
			ops->turn(f.engine, 0, &f.done, &f.ready);
		if (i % 2)
			assert_int_equal(eventfd_write(fd, 1), 0);
		if (i % 5 == 0)
			ops->turn(f.engine, 0, &f.done, &f.ready);
		if (!list_empty(&f.ready)) {
			assert_ptr_equal(list_pop(&f.ready), &p->link);
			fired++;
		}
		assert_true(list_empty(&f.ready));
		ops->poll_disarm(f.engine, p);
		memset(p, 0xa5, sizeof(*p)); /* under asan the free is enough */
		free(p);
		if (i % 7 == 0) {
			eventfd_t v;

			(void)eventfd_read(fd, &v);
		}
	}
	assert_true(fired > 0);
	ops->turn(f.engine, 0, &f.done, &f.ready);
	assert_true(list_empty(&f.ready));
	close(fd);
}

static void descriptor_number_that_comes_again_is_a_new_poll(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 200; i++) {
		int fd = eventfd(0, EFD_NONBLOCK);
		struct io_poll p = {.fd = fd, .events = POLLIN};

		ops->poll_arm(f.engine, &p);
		if (i % 2)
			ops->turn(f.engine, 0, &f.done, &f.ready);
		if (i % 3 == 0) {
			assert_int_equal(eventfd_write(fd, 1), 0);
			ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
			assert_ptr_equal(list_pop(&f.ready), &p.link);
		}
		ops->poll_disarm(f.engine, &p);
		assert_true(list_empty(&f.ready));
		close(fd);
	}
}

static void more_polls_than_slots_all_fire(void **state)
{
	enum { MANY = 1100 };
	struct io_poll *p = calloc(MANY, sizeof(*p));
	int fd = eventfd(1, EFD_NONBLOCK);
	unsigned n = 0;

	(void)state;
	assert_non_null(p);
	for (unsigned i = 0; i < MANY; i++) {
		p[i] = (struct io_poll){.fd = dup(fd), .events = POLLIN};
		assert_true(p[i].fd >= 0);
		ops->poll_arm(f.engine, &p[i]);
	}
	while (n < MANY) {
		ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
		while (list_pop(&f.ready))
			n++;
	}
	for (unsigned i = 0; i < MANY; i++) {
		assert_false(p[i].armed);
		close(p[i].fd);
	}
	free(p);
	close(fd);
}

static void *write_later(void *arg)
{
	usleep(20000);
	(void)eventfd_write(*(int *)arg, 1);
	return NULL;
}

static void another_thread_wakes_a_waiting_turn(void **state)
{
	int fd = eventfd(0, EFD_NONBLOCK);
	struct io_poll p = {.fd = fd, .events = POLLIN};
	pthread_t t;

	(void)state;
	ops->poll_arm(f.engine, &p);
	assert_int_equal(pthread_create(&t, NULL, write_later, &fd), 0);
	ops->turn(f.engine, IO_DEADLINE_NONE, &f.done, &f.ready);
	assert_ptr_equal(list_pop(&f.ready), &p.link);
	pthread_join(t, NULL);
	close(fd);
}

static void worker_serves_many_at_once(void **state)
{
	struct io io[DEPTH];
	unsigned n = 0;

	(void)state;
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < DEPTH; i++) {
			io[i] = (struct io){.op = IO_TRUNCATE, .file = &f.file, .off_bytes = i * BLOCK};
			assert_int_equal(ops->queue(f.engine, &io[i]), 0);
		}
		for (n = 0; n < DEPTH; n++)
			assert_int_equal(one_done()->res, 0);
		assert_int_equal(f.engine->in_flight, 0);
	}
}

/* One engine per thread, as devices have them; the worker is shared. */
static void *device_like(void *arg)
{
	struct io_engine *engine;
	struct io_file file;
	struct list done, ready;
	struct io io[8];
	void *mem;
	unsigned seed = (unsigned)(uintptr_t)arg;

	list_init(&done);
	list_init(&ready);
	if (ops->create(8, &engine, NULL) || posix_memalign(&mem, BLOCK, 8 * BLOCK))
		return (void *)1;
	if (ops->file_add(engine, f.backing, &file))
		return (void *)2;
	for (unsigned round = 0; round < 100; round++) {
		unsigned n = 0;

		for (unsigned i = 0; i < 8; i++) {
			static const enum io_op kinds[] = {IO_READ, IO_READ, IO_TRUNCATE, IO_FLUSH};

			io[i] = (struct io){.op = kinds[(unsigned)rand_r(&seed) % 4],
					    .file = &file,
					    .buf = (char *)mem + i * BLOCK};
			io[i].len_bytes = io[i].op == IO_READ ? BLOCK : 0;
			io[i].off_bytes = io[i].op == IO_READ ? i * BLOCK : 64 * BLOCK;
			if (ops->queue(engine, &io[i]))
				return (void *)3;
		}
		while (n < 8) {
			struct list *link;

			ops->turn(engine, IO_DEADLINE_NONE, &done, &ready);
			while ((link = list_pop(&done)))
				n += container_of(link, struct io, link)->res >= 0;
		}
	}
	ops->file_del(engine, &file);
	ops->destroy(engine);
	free(mem);
	return NULL;
}

static void engines_of_several_threads_share_the_worker(void **state)
{
	pthread_t t[4];
	void *ret;

	(void)state;
	assert_int_equal(run(IO_EXTEND, 0, 64 * BLOCK, NULL), 0);
	for (uintptr_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, device_like, (void *)(i + 1)), 0);
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(t[i], &ret);
		assert_null(ret);
	}
}

static void depth_out_of_range_is_refused(void **state)
{
	struct io_engine *engine = NULL;
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(ops->create(0, &engine, &e), -EINVAL);
	assert_int_equal(ops->create(1u << 20, &engine, &e), -EINVAL);
	assert_non_null(strstr(e.text, "depth"));
	assert_null(engine);
}

static void engines_are_found_by_name(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	assert_ptr_equal(io_engine_find("uring", &e), &io_uring_engine);
	assert_ptr_equal(io_engine_find("aio", &e), &io_aio_engine);
	assert_ptr_equal(io_engine_find("auto", &e), &io_uring_engine);
	assert_ptr_equal(io_engine_find(NULL, &e), &io_uring_engine);
	assert_int_equal(e.code, 0);
	assert_null(io_engine_find("posix", &e));
	assert_int_equal(e.code, -EINVAL);
	assert_non_null(strstr(e.text, "posix"));
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	static const char *const names[] = {"uring", "aio"};
	const struct CMUnitTest tests[] = {
	    T(every_operation_does_what_it_says),
	    T(extend_without_fallocate_sets_the_size),
	    T(read_that_meets_the_end_is_short),
	    T(errors_come_back_as_results),
	    T(what_the_store_cannot_do_is_told),
	    T(depth_is_a_limit_and_busy_leaves_no_trace),
	    T(one_turn_submits_everything_queued),
	    T(files_beyond_the_registered_table_work),
	    T(ten_thousand_mixed_operations_verify),
	    T(turn_waits_for_the_deadline_and_not_less),
	    T(poll_fires_once_and_can_be_armed_again),
	    T(two_polls_on_one_descriptor_are_two),
	    T(poll_on_a_bad_descriptor_is_ready_with_an_error),
	    T(disarmed_poll_is_never_touched_again),
	    T(descriptor_number_that_comes_again_is_a_new_poll),
	    T(more_polls_than_slots_all_fire),
	    T(another_thread_wakes_a_waiting_turn),
	    T(worker_serves_many_at_once),
	    T(engines_of_several_threads_share_the_worker),
	    cmocka_unit_test(depth_out_of_range_is_refused),
	};
	const struct CMUnitTest find[] = {cmocka_unit_test(engines_are_found_by_name)};
	int failed = cmocka_run_group_tests_name("engines", find, NULL, NULL);

	for (unsigned i = 0; i < 2; i++) {
		struct err e = ERR_INIT;

		ops = io_engine_find(names[i], &e);
		if (!ops) {
			fprintf(stderr, "%s\n", e.text);
			return 1;
		}
		failed += cmocka_run_group_tests_name(names[i], tests, NULL, NULL);
	}
	return failed;
}
