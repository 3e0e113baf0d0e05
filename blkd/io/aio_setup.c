/*
 * The libaio engine's cold half: making and ending a context. Contexts come out of a host-wide budget
 * (fs.aio-max-nr), which many devices can exhaust: that is told with the figure to raise.
 */
#include "blkd/io/aio_priv.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { DEPTH_MAX = 4096 };

static int refuse(int ret, struct err *e)
{
	switch (-ret) {
	case ENOSYS:
		return err_set(e, ret, "this kernel has no Linux AIO");
	case EAGAIN:
		return err_set(e, ret, "the host's AIO contexts are used up: raise the sysctl fs.aio-max-nr");
	default:
		return err_set(e, ret, "cannot set up an AIO context: %s", strerror(-ret));
	}
}

int aio_probe(struct err *e)
{
	io_context_t ctx = NULL;
	int ret = io_setup(1, &ctx);

	if (ret)
		return refuse(ret, e);
	io_destroy(ctx);
	return 0;
}

static int watch(struct aio *a, int fd, uint32_t events, void *what)
{
	struct epoll_event ev = {.events = events, .data.ptr = what};

	return epoll_ctl(a->epoll_fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

/* The descriptors and their set. What was opened before a failure is closed by the caller. */
static int open_fds(struct aio *a)
{
	int ret;

	a->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (a->epoll_fd < 0)
		return -errno;
	a->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (a->event_fd < 0)
		return -errno;
	ret = watch(a, a->event_fd, EPOLLIN | EPOLLET, &a->event_fd);
	return ret ? ret : watch(a, a->box.event_fd, EPOLLIN, &a->box);
}

static void release(struct aio *a)
{
	if (a->epoll_fd >= 0)
		close(a->epoll_fd);
	if (a->event_fd >= 0)
		close(a->event_fd);
	free(a->queued);
	free(a->events);
	free(a);
}

int aio_create(unsigned depth, struct io_engine **out, struct err *e)
{
	struct aio *a;
	int ret;

	if (!depth || depth > DEPTH_MAX)
		return err_set(e, -EINVAL, "an engine's depth is 1 to %u, not %u", (unsigned)DEPTH_MAX,
			       depth);
	a = calloc(1, sizeof(*a));
	if (!a)
		return err_set(e, -ENOMEM, "no memory for an I/O engine");
	a->base.ops = &io_aio_engine;
	a->depth = depth;
	a->epoll_fd = a->event_fd = -1;
	list_init(&a->armed);
	list_init(&a->ready_now);
	a->queued = calloc(depth, sizeof(*a->queued));
	a->events = calloc(depth, sizeof(*a->events));
	ret = a->queued && a->events ? io_worker_box_init(&a->box) : -ENOMEM;
	if (ret) {
		release(a);
		return err_set(e, ret, "cannot make an I/O engine: %s", strerror(-ret));
	}
	ret = open_fds(a);
	if (ret) {
		err_set(e, ret, "cannot make an I/O engine's event set: %s", strerror(-ret));
	} else {
		ret = io_setup((int)depth, &a->ctx);
		if (ret)
			refuse(ret, e);
	}
	if (ret) {
		io_worker_box_destroy(&a->box);
		release(a);
		return ret;
	}
	*out = &a->base;
	return 0;
}

void aio_destroy(struct io_engine *engine)
{
	struct aio *a = container_of(engine, struct aio, base);

	CHECK(!a->base.in_flight && list_empty(&a->armed) && list_empty(&a->ready_now));
	io_destroy(a->ctx);
	io_worker_box_destroy(&a->box);
	release(a);
}
