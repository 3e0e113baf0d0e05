/*
 * I/O engines: queue, submit, reap. One engine object per device thread, created, used and destroyed by that
 * thread.
 *
 * An engine moves bytes and reports what the kernel said: no retries, no ordering, no meaning. io_uring does
 * not order an fsync behind writes and neither does any engine here: the executor waits for what it needs.
 * Short results are reported as they are; continuing them is the executor's work. What an engine cannot do
 * asynchronously (truncate; fallocate and fsync for libaio) it hands to the host's blocking worker
 * (blkd/io/worker.c), so that turn() never blocks but in its one wait.
 */
#ifndef BLKD_IO_H
#define BLKD_IO_H

#include "blkd/list.h"

#include <stdbool.h>
#include <stdint.h>

struct backing;
struct err;
struct io_engine;

enum io_op {
	IO_READ,
	IO_WRITE,
	IO_FLUSH,    /* fdatasync: durable with all metadata needed to read it back */
	IO_EXTEND,   /* file size becomes off_bytes + len_bytes; the range [off, off + len) is reserved where
			traits.can_fallocate */
	IO_TRUNCATE, /* file size becomes off_bytes */
	IO_ZERO,     /* range reads zero, space kept (FALLOC_FL_ZERO_RANGE | KEEP_SIZE) */
	IO_PUNCH,    /* range reads zero, space given back (FALLOC_FL_PUNCH_HOLE | KEEP_SIZE) */
};

/* A file that an engine knows (registered with io_uring). Owned by the caller, filled by file_add. */
struct io_file {
	struct backing *backing;
	int slot;
};

/* One operation. The caller owns it, but for the time between queue() and its appearance on a done list. */
struct io {
	struct list link; /* engine's while queued */
	enum io_op op;
	const struct io_file *file;
	uint64_t off_bytes; /* READ and WRITE: aligned to traits.logical_bytes, as len is; buf to
			       mem_align_bytes */
	uint64_t len_bytes; /* READ and WRITE: below 2 GiB */
	void *buf;
	int res;		  /* READ, WRITE: bytes moved; others 0; or -errno */
	void *owner;		  /* the caller's */
	uint64_t engine_priv[10]; /* the engine's: an iocb fits */
};

/* Interest in a descriptor becoming readable or writable, one-shot: it appears once on the ready list, then
 * must be armed again. */
struct io_poll {
	struct list link; /* engine's while armed */
	int fd;
	uint32_t events, revents; /* POLLIN, POLLOUT, ... */
	bool armed;		  /* engine's */
	void *owner;		  /* the caller's */
	uint64_t engine_priv[2];
};

#define IO_DEADLINE_NONE UINT64_MAX

struct io_engine_ops {
	const char *name;
	/* depth: operations that can be in flight. Called on the thread that will use the engine. */
	int (*create)(unsigned depth, struct io_engine **, struct err *);
	/* All operations have completed and polls are disarmed (CHECKed). */
	void (*destroy)(struct io_engine *);
	int (*file_add)(struct io_engine *, struct backing *, struct io_file *);
	void (*file_del)(struct io_engine *, struct io_file *); /* no operation on it is in flight */
	/* 0: queued, will be submitted by the next turn() at the latest; -EBUSY: depth reached, an ordinary
	 * answer: reap first. */
	int (*queue)(struct io_engine *, struct io *);
	void (*poll_arm)(struct io_engine *, struct io_poll *);
	void (*poll_disarm)(
	    struct io_engine *,
	    struct io_poll *); /* afterwards the engine does not touch it; harmless if not armed */
	/* Submits all that is queued, then waits until something is done or ready, or until deadline_ns
	 * (clock_ns(); 0: does not wait; IO_DEADLINE_NONE), and appends to the two lists. One system call
	 * where the kernel allows. */
	void (*turn)(struct io_engine *, uint64_t deadline_ns, struct list *done, struct list *ready);
	/* Nanoseconds of the engine's clock: CLOCK_MONOTONIC, or simulated time (replay). */
	uint64_t (*now)(struct io_engine *);
};

/* The first member of every engine. */
struct io_engine {
	const struct io_engine_ops *ops;
	unsigned in_flight; /* operations queued or submitted, not yet on a done list */
	uint64_t syscalls;  /* for stats and the count tests */
};

/* "uring", "aio", "auto" (uring where the kernel has it, else aio), or NULL for auto. NULL: unknown or not
 * possible here, with why. Any thread; probes the kernel once. */
const struct io_engine_ops *io_engine_find(const char *name, struct err *);

extern const struct io_engine_ops io_uring_engine, io_aio_engine;

#endif
