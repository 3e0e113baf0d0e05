/* The libaio engine's object, shared by its hot half (aio.c) and its setup (aio_setup.c). */
#ifndef BLKD_IO_AIO_PRIV_H
#define BLKD_IO_AIO_PRIV_H

#include "blkd/io.h"
#include "blkd/io/worker.h"

#include <libaio.h>

struct aio {
	struct io_engine base;
	io_context_t ctx;
	unsigned depth;
	int epoll_fd;
	int event_fd;	/* the kernel's completions signal it; watched edge-triggered, so it is never read */
	bool no_fdsync; /* this kernel (before 4.18), or file system, refuses it: flushes are the worker's */
	unsigned in_kernel;	 /* submitted and not reaped */
	unsigned n_queued;	 /* in queued[] */
	struct iocb **queued;	 /* to submit; depth of them fit */
	struct io_event *events; /* depth */
	struct io_worker_box box;
	struct list armed;     /* polls that are in the epoll set and enabled */
	struct list ready_now; /* polls that were ready, or in error, when armed */
};

_Static_assert(sizeof(struct iocb) <= sizeof(((struct io *)0)->engine_priv),
	       "an iocb lives in the operation");

int aio_create(unsigned depth, struct io_engine **, struct err *);
void aio_destroy(struct io_engine *);

/* Can this kernel run the engine now? 0, or -errno with a sentence. Any thread. */
int aio_probe(struct err *);

#endif
