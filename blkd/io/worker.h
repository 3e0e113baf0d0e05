/*
 * The host's blocking worker: two threads, made at the first submission, that do what an engine cannot do
 * asynchronously. Private to blkd/io. Each engine has a box, where its finished operations wait; the box's
 * eventfd says that there are some.
 */
#ifndef BLKD_IO_WORKER_H
#define BLKD_IO_WORKER_H

#include "blkd/io.h"

#include <pthread.h>

struct io_worker_box {
	pthread_mutex_t lock;
	struct list done; /* struct io; under the lock */
	int event_fd;	  /* readable while done has something that reap has not seen */
	unsigned pending; /* handed in and not reaped; the engine thread's */
};

/* Engine thread. 0 or -errno. */
int io_worker_box_init(struct io_worker_box *);
/* Engine thread; nothing is pending. */
void io_worker_box_destroy(struct io_worker_box *);

/* Engine thread. Does FLUSH, EXTEND, TRUNCATE, ZERO or PUNCH elsewhere; never blocks for long.
 * io->engine_priv[0] is the worker's. */
void io_worker_submit(struct io_worker_box *, struct io *);

/* Engine thread. Appends what is finished to done; returns how many. */
unsigned io_worker_reap(struct io_worker_box *, struct list *done);

#endif
