/*
 * Two threads for the whole host and one queue in arrival order: truncates, and what libaio lacks, are rare
 * and need no more. The threads are made at the first submission, never end, and take no signals. Where none
 * can be made, operations fail with the reason.
 *
 * Locks: the queue's mutex and each box's, never both, never across the operation itself. A box outlives its
 * pending operations: the engine destroys it only when all were reaped.
 *
 * What it does not do: keep a hung store from holding both threads. Operations on other stores then wait
 * behind it.
 */
#include "blkd/io/worker.h"
#include "blkd/backing.h"
#include "blkd/log.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { THREADS = 2, STACK_BYTES = 256 << 10 };

static struct {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct list queue; /* struct io, engine_priv[0]: its box */
	int start_error;   /* 0, or why not a single thread runs */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static pthread_once_t pool_once = PTHREAD_ONCE_INIT;

static struct io_worker_box *box_of(const struct io *io)
{
	return (struct io_worker_box *)(uintptr_t)io->engine_priv[0];
}

static int do_fallocate(int fd, int mode, const struct io *io)
{
	int ret;

	do {
		ret = fallocate(fd, mode, (off_t)io->off_bytes, (off_t)io->len_bytes) ? -errno : 0;
	} while (ret == -EINTR);
	return ret;
}

static int perform(const struct io *io)
{
	const struct backing *b = io->file->backing;

	switch (io->op) {
	case IO_FLUSH:
		return fdatasync(b->fd) ? -errno : 0;
	case IO_EXTEND:
		if (b->traits.can_fallocate && io->len_bytes)
			return do_fallocate(b->fd, 0, io);
		return ftruncate(b->fd, (off_t)(io->off_bytes + io->len_bytes)) ? -errno : 0;
	case IO_TRUNCATE:
		return ftruncate(b->fd, (off_t)io->off_bytes) ? -errno : 0;
	case IO_ZERO:
		return do_fallocate(b->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, io);
	case IO_PUNCH:
		return do_fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, io);
	case IO_READ:
	case IO_WRITE:
		break;
	}
	return -EOPNOTSUPP;
}

static void post(struct io *io, int res)
{
	struct io_worker_box *box = box_of(io);
	bool was_empty;
	uint64_t one = 1;

	io->res = res;
	pthread_mutex_lock(&box->lock);
	was_empty = list_empty(&box->done);
	list_add_tail(&box->done, &io->link);
	/* Within the lock: after it the engine may reap, find nothing pending and destroy the box. An eventfd
	 * write of 1 does not block. */
	if (was_empty)
		(void)!write(box->event_fd, &one, sizeof(one));
	pthread_mutex_unlock(&box->lock);
}

static void *worker_main(void *arg)
{
	(void)arg;
	for (;;) {
		struct io *io;

		pthread_mutex_lock(&pool.lock);
		while (list_empty(&pool.queue))
			pthread_cond_wait(&pool.wake, &pool.lock);
		io = container_of(list_pop(&pool.queue), struct io, link);
		pthread_mutex_unlock(&pool.lock);
		post(io, perform(io));
	}
	return NULL;
}

static void pool_start(void)
{
	sigset_t all, old;
	pthread_attr_t attr;
	pthread_t thread;
	int ret, made = 0;

	list_init(&pool.queue);
	ret = pthread_attr_init(&attr);
	if (ret) {
		pool.start_error = -ret;
		return;
	}
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (made < THREADS) {
		ret = pthread_create(&thread, &attr, worker_main, NULL);
		if (ret)
			break;
		pthread_setname_np(thread, "blkd-worker");
		made++;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	pool.start_error = made ? 0 : -ret;
}

int io_worker_box_init(struct io_worker_box *box)
{
	int ret;

	box->pending = 0;
	list_init(&box->done);
	box->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (box->event_fd < 0)
		return -errno;
	ret = pthread_mutex_init(&box->lock, NULL);
	if (ret)
		close(box->event_fd);
	return -ret;
}

void io_worker_box_destroy(struct io_worker_box *box)
{
	CHECK(!box->pending);
	close(box->event_fd);
	pthread_mutex_destroy(&box->lock);
}

void io_worker_submit(struct io_worker_box *box, struct io *io)
{
	io->engine_priv[0] = (uintptr_t)box;
	box->pending++;
	pthread_once(&pool_once, pool_start);
	if (pool.start_error) {
		post(io, pool.start_error);
		return;
	}
	pthread_mutex_lock(&pool.lock);
	list_add_tail(&pool.queue, &io->link);
	pthread_cond_signal(&pool.wake);
	pthread_mutex_unlock(&pool.lock);
}

unsigned io_worker_reap(struct io_worker_box *box, struct list *done)
{
	struct list got, *pos;
	unsigned n = 0;
	uint64_t count;

	list_init(&got);
	pthread_mutex_lock(&box->lock);
	/* With the list in one lock, so that a later post writes again. */
	(void)!read(box->event_fd, &count, sizeof(count));
	list_splice_tail(&got, &box->done);
	pthread_mutex_unlock(&box->lock);
	list_for_each (pos, &got)
		n++;
	box->pending -= n;
	list_splice_tail(done, &got);
	return n;
}
