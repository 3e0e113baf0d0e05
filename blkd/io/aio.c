/* HOT PATH: no malloc, no log, no syscall but io_submit, epoll_wait and io_getevents, and for polls
 * epoll_ctl, dup and close; no lock but the worker box's. */
/*
 * The libaio engine, for kernels without io_uring: a turn is one io_submit, one epoll_wait over the
 * completion eventfd and the polls, and one io_getevents when completions were signalled.
 *
 * The iocb lives in the operation. The completion eventfd is watched edge-triggered: each completion re-arms
 * it, so it is never read, and whoever sees it drains the context. A poll is a one-shot entry of the epoll
 * set. The set knows a descriptor once, so a second poll on one that is armed already goes in under a
 * duplicate. An event names the poll by address, which is looked up among the armed ones before it is
 * touched: a descriptor that was closed with a duplicate elsewhere can still speak after disarm.
 *
 * Not here: flushes where the kernel has no asynchronous fdsync, and all changes of size and space: the
 * worker's. Not curable here: io_submit of a write that extends a file, or needs a lock of the file system,
 * blocks. Deadlines are rounded up to milliseconds.
 */
#include "blkd/io/aio_priv.h"
#include "blkd/backing.h"
#include "blkd/clock.h"
#include "blkd/log.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { EPOLL_BATCH = 64, BUSY_RETRY_MS = 2 };

static struct aio *aio_of(struct io_engine *engine)
{
	return container_of(engine, struct aio, base);
}

static struct iocb *iocb_of(struct io *io)
{
	return (struct iocb *)(void *)io->engine_priv;
}

static int aio_file_add(struct io_engine *engine, struct backing *b, struct io_file *file)
{
	(void)engine;
	if (b->fd < 0)
		return -EBADF;
	*file = (struct io_file){.backing = b, .slot = -1};
	return 0;
}

static void aio_file_del(struct io_engine *engine, struct io_file *file)
{
	(void)engine;
	*file = (struct io_file){.slot = -1};
}

static int aio_queue(struct io_engine *engine, struct io *io)
{
	struct aio *a = aio_of(engine);
	struct iocb *cb = iocb_of(io);
	int fd = io->file->backing->fd;

	DCHECK(io->len_bytes < 1ull << 31 || (io->op != IO_READ && io->op != IO_WRITE));
	if (a->base.in_flight >= a->depth)
		return -EBUSY;
	a->base.in_flight++;
	if (io->op == IO_READ)
		io_prep_pread(cb, fd, io->buf, io->len_bytes, (long long)io->off_bytes);
	else if (io->op == IO_WRITE)
		io_prep_pwrite(cb, fd, io->buf, io->len_bytes, (long long)io->off_bytes);
	else if (io->op == IO_FLUSH && !a->no_fdsync)
		io_prep_fdsync(cb, fd);
	else {
		io_worker_submit(&a->box, io);
		return 0;
	}
	io_set_eventfd(cb, a->event_fd);
	cb->data = io;
	a->queued[a->n_queued++] = cb;
	return 0;
}

/* ---- polls ---- */

static bool fd_is_armed(struct aio *a, int fd)
{
	struct list *pos;

	list_for_each (pos, &a->armed)
		if (container_of(pos, struct io_poll, link)->fd == fd)
			return true;
	return false;
}

/* Enables the poll in the set, under the descriptor in engine_priv[0]. */
static int poll_enable(struct aio *a, struct io_poll *poll)
{
	struct epoll_event ev = {.events = poll->events | EPOLLONESHOT, .data.ptr = poll};
	int fd = (int)poll->engine_priv[0];

	/* A descriptor that was polled before is still in the set, disabled. */
	a->base.syscalls++;
	if (!epoll_ctl(a->epoll_fd, EPOLL_CTL_MOD, fd, &ev))
		return 0;
	if (errno != ENOENT)
		return -errno;
	a->base.syscalls++;
	return epoll_ctl(a->epoll_fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static void dup_close(struct io_poll *poll)
{
	if (poll->engine_priv[1])
		close((int)poll->engine_priv[0]);
	poll->engine_priv[1] = 0;
}

static void aio_poll_arm(struct io_engine *engine, struct io_poll *poll)
{
	struct aio *a = aio_of(engine);
	int fd = poll->fd, ret = 0;

	CHECK(!poll->armed);
	poll->armed = true;
	poll->engine_priv[1] = fd_is_armed(a, fd);
	if (poll->engine_priv[1])
		fd = dup(fd);
	poll->engine_priv[0] = (unsigned)fd;
	if (fd < 0) {
		poll->engine_priv[1] = 0;
		ret = -errno;
	} else {
		ret = poll_enable(a, poll);
	}
	if (!ret) {
		list_add_tail(&a->armed, &poll->link);
		return;
	}
	dup_close(poll);
	/* A regular file cannot be polled (EPERM): it is always ready. */
	poll->revents = ret == -EPERM	? poll->events & (POLLIN | POLLOUT)
			: ret == -EBADF ? POLLNVAL
					: POLLERR;
	list_add_tail(&a->ready_now, &poll->link);
}

static void aio_poll_disarm(struct io_engine *engine, struct io_poll *poll)
{
	struct aio *a = aio_of(engine);

	if (!poll->armed)
		return;
	poll->armed = false;
	list_del(&poll->link);
	a->base.syscalls++;
	(void)epoll_ctl(a->epoll_fd, EPOLL_CTL_DEL, (int)poll->engine_priv[0], NULL);
	dup_close(poll);
}

static void poll_ready(struct aio *a, const void *named, uint32_t revents, struct list *ready)
{
	struct list *pos, *next;

	list_for_each_safe (pos, next, &a->armed) {
		struct io_poll *poll = container_of(pos, struct io_poll, link);

		if (poll != named)
			continue;
		list_del(&poll->link);
		dup_close(poll);
		poll->armed = false;
		poll->revents = revents;
		list_add_tail(ready, &poll->link);
		return;
	}
}

/* ---- the turn ---- */

static void finish(struct aio *a, struct io *io, int res, struct list *done)
{
	io->res = res;
	a->base.in_flight--;
	list_add_tail(done, &io->link);
}

/* The kernel refused the first iocb of a batch. A flush that it does not know goes to the worker, now and
 * from now on. */
static void refused(struct aio *a, struct iocb *cb, int res, struct list *done)
{
	struct io *io = cb->data;

	if (io->op == IO_FLUSH && res == -EINVAL) {
		a->no_fdsync = true;
		io_worker_submit(&a->box, io);
		return;
	}
	finish(a, io, res, done);
}

/* Submits what is queued. true: the kernel wants the rest later. */
static bool submit(struct aio *a, struct list *done)
{
	unsigned at = 0;
	bool later = false;

	while (at < a->n_queued && !later) {
		int n;

		a->base.syscalls++;
		n = io_submit(a->ctx, (long)(a->n_queued - at), a->queued + at);
		if (n > 0) {
			at += (unsigned)n;
			a->in_kernel += (unsigned)n;
		} else if (n == -EAGAIN || n == -EINTR || !n) {
			later = true;
		} else {
			refused(a, a->queued[at++], n, done);
		}
	}
	for (unsigned i = at; i < a->n_queued; i++)
		a->queued[i - at] = a->queued[i];
	a->n_queued -= at;
	return later;
}

static void reap(struct aio *a, struct list *done)
{
	struct timespec none = {0};

	while (a->in_kernel) {
		int n;

		a->base.syscalls++;
		n = io_getevents(a->ctx, 0, (long)a->depth, a->events, &none);
		if (n == -EINTR)
			continue;
		if (n <= 0)
			return;
		for (int i = 0; i < n; i++)
			finish(a, a->events[i].data, (int)(long)a->events[i].res, done);
		a->in_kernel -= (unsigned)n;
	}
}

static int timeout_ms(uint64_t deadline_ns)
{
	uint64_t now_ns, left_ms;

	if (!deadline_ns)
		return 0;
	if (deadline_ns == IO_DEADLINE_NONE)
		return -1;
	now_ns = clock_ns();
	if (now_ns >= deadline_ns)
		return 0;
	left_ms = (deadline_ns - now_ns + 999999) / 1000000;
	return left_ms > INT_MAX ? INT_MAX : (int)left_ms;
}

static void wait_and_reap(struct aio *a, int wait_ms, struct list *done, struct list *ready)
{
	struct epoll_event ev[EPOLL_BATCH];
	int n;

	a->base.syscalls++;
	n = epoll_wait(a->epoll_fd, ev, EPOLL_BATCH, wait_ms);
	for (int i = 0; i < n; i++) {
		if (ev[i].data.ptr == &a->event_fd)
			reap(a, done);
		else if (ev[i].data.ptr == &a->box)
			a->base.in_flight -= io_worker_reap(&a->box, done);
		else
			poll_ready(a, ev[i].data.ptr, ev[i].events, ready);
	}
}

static void aio_turn(struct io_engine *engine, uint64_t deadline_ns, struct list *done, struct list *ready)
{
	struct aio *a = aio_of(engine);
	struct list *pos;

	list_for_each (pos, &a->ready_now)
		container_of(pos, struct io_poll, link)->armed = false;
	list_splice_tail(ready, &a->ready_now);
	do {
		bool later = submit(a, done);
		int wait_ms = list_empty(done) && list_empty(ready) ? timeout_ms(deadline_ns) : 0;

		/* Put off without anything of ours to wait for: other contexts hold the host's resources. */
		if (later && (wait_ms < 0 || wait_ms > BUSY_RETRY_MS))
			wait_ms = BUSY_RETRY_MS;
		wait_and_reap(a, wait_ms, done, ready);
	} while (list_empty(done) && list_empty(ready) && deadline_ns &&
		 (deadline_ns == IO_DEADLINE_NONE || clock_ns() < deadline_ns));
}

static uint64_t aio_now(struct io_engine *engine)
{
	(void)engine;
	return clock_ns();
}

const struct io_engine_ops io_aio_engine = {
    .name = "aio",
    .create = aio_create,
    .destroy = aio_destroy,
    .file_add = aio_file_add,
    .file_del = aio_file_del,
    .queue = aio_queue,
    .poll_arm = aio_poll_arm,
    .poll_disarm = aio_poll_disarm,
    .turn = aio_turn,
    .now = aio_now,
};
