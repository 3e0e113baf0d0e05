/*
 * The device: one thread, one disk, one engine, and the transports that bring requests to it (rings, NBD
 * connections). The executor: it knows formats, cache and engines, and they do not know each other.
 *
 * Ownership of a request (struct blkreq): it is part of a transport's slot. fetch() hands it to the device;
 * respond() hands it back. In between it is the device's, and so is its buffer. Everything here runs on the
 * device thread unless it says otherwise.
 */
#ifndef BLKD_DEV_H
#define BLKD_DEV_H

#include "blkd/bufpool.h"
#include "blkd/disk.h"
#include "blkd/io.h"
#include "blkd/list.h"

#include <stdbool.h>
#include <stdint.h>

struct dev;
struct transport;
struct cache;

#define REQ_MAX_BYTES (1u << 20) /* of data in one request; TRIM and ZERO may be longer */

enum blk_op { BLK_READ, BLK_WRITE, BLK_FLUSH, BLK_TRIM, BLK_ZERO, BLK_BARRIER };
enum { BLK_OPS = BLK_BARRIER + 1 };

/* Legal moves are a table in request.c; only req_set_state() changes it. */
enum req_state {
	REQ_IDLE,    /* transport's */
	REQ_BLOCKED, /* overlaps one that came earlier, or stands behind a barrier */
	REQ_RUN,     /* being planned, pieces in flight */
	REQ_PARKED,  /* no progress before metadata, an epoch, a grow or a free operation is there; or others
			go first */
	REQ_LANDED,  /* its data landed; waits for the commit that makes it durable */
	REQ_DONE,    /* has its status; waits for copy-out and response in this turn */
};

struct blkreq {
	/* ---- the transport fills these before fetch() hands the request over ---- */
	struct transport *transport;
	enum blk_op op;
	bool fua;	    /* answered when durable */
	uint64_t off_bytes; /* multiples of 512 within the disk: the transport validated them */
	uint64_t len_bytes; /* READ, WRITE: 0 < len <= REQ_MAX_BYTES. BARRIER: data of len (may be 0) follows
			       in buf */
	struct buf buf;	    /* READ, WRITE, BARRIER with data: from dev_buf_get; WRITE's bytes are in it */
	/* ---- the device's answer ---- */
	int status; /* 0 or -errno, once respond() is called */
	/* ---- the device's own; transports do not look ---- */
	enum req_state state;
	struct list link; /* exactly one of the device's queues */
	uint64_t seq;	  /* arrival, over all transports of the device */
	uint64_t start_ns;
	uint64_t plan_off; /* guest offset up to which pieces were issued */
	uint32_t plan_len; /* with plan_layer */
	uint16_t
	    plan_layer;	   /* a read, parked on its way down the chain: where it goes on; 0: from the leaf */
	unsigned pieces;   /* in flight */
	unsigned active_i; /* index in the table of ranges in flight */
	struct blkreq *blocker;
	uint64_t epoch;	 /* newest epoch that the data depends on; 0: none */
	bool planned;	 /* all pieces were issued */
	bool mutates;	 /* changes the disk: WRITE, TRIM, ZERO, BARRIER with data */
	bool recorded;	 /* all its metadata changes, if any, are in the journal */
	uint8_t barrier; /* BARRIER: enum barrier_stage in dev_priv.h */
};

struct transport_ops {
	const char *name;
	/* Up to max new requests into reqs[]: descriptors copied out of shared memory once, completely
	 * validated, buffers taken (dev_buf_get) and write data copied in. Requests that fail validation are
	 * answered by the transport itself. Called when the transport said it has work (dev_transport_ready).
	 * Returns the count; fewer than max: nothing is left, or no buffers: it will say so. */
	unsigned (*fetch)(struct transport *, struct blkreq **reqs, unsigned max);
	/* Moves data of finished reads to the guest, in one batch; sets status of those that fail. Requests
	 * with a non-zero status are skipped. */
	void (*copy_out)(struct transport *, struct blkreq *const *reqs, unsigned n);
	/* Answers req->status. Afterwards the request is the transport's again; it gives the buffer back
	 * (dev_buf_put). */
	void (*respond)(struct transport *, struct blkreq *);
	/* At most one notification a loop turn, after the last respond() of the turn. */
	void (*kick)(struct transport *);
	/* A descriptor it had armed (dev_poll_arm) is ready. */
	void (*event)(struct transport *, struct io_poll *);
	/* Told once, on the device thread, when detached: no request is in flight, polls are disarmed by it
	 * here. It may free itself. */
	void (*detached)(struct transport *);
};

/* The first member of every transport; zeroed by its owner before attach. */
struct transport {
	const struct transport_ops *ops;
	struct dev *dev;
	struct list link;   /* device's */
	unsigned in_flight; /* device's: requests handed over and not answered */
	bool ready;	    /* has work for fetch() */
	bool kick_wanted;   /* device's: respond() was called in this turn */
	bool detaching;	    /* no more fetch(); detached() once in_flight is 0 */
	bool flushed;	    /* device's: this guest has had a flush or barrier answered (write-mode auto) */
	bool buf_starved;   /* device's: dev_buf_get had nothing; is made ready again when a buffer of the
			       device comes back */
	struct blkreq *batch[64]; /* device's: finished in this turn */
	unsigned n_batch;
};

enum write_mode { WRITE_AUTO, WRITE_THROUGH, WRITE_BACK };

struct dev_opts {
	const char *name; /* for messages: "vbd-5-51712", "nbd:leaf1" */
	const struct io_engine_ops *engine;
	enum write_mode write_mode;
	struct bufpool *pool;	 /* host-wide */
	struct cache *cache;	 /* host-wide: metadata frames of parents */
	unsigned idle_commit_ms; /* 0: 1000 */
	unsigned max_requests;	 /* in flight in the device; 0: 512 */
};

struct dev_stats { /* written by the device thread, read by anybody: relaxed atomics */
	uint64_t reqs[BLK_OPS], bytes[BLK_OPS], errors[BLK_OPS];
	uint64_t store_reads, store_read_bytes, store_writes, store_write_bytes, store_flushes;
	uint64_t commits, grows, meta_reads, rmw, blocked, parked, turns, syscalls, kicks;
	uint64_t in_flight;
	uint64_t latency_ns_sum[BLK_OPS];
};

/* Takes the disk over (also on failure: no; then it stays the caller's). Control path. With start = false no
 * thread is made: the caller is the device thread and drives dev_turn() itself (tests, the crash model). */
int dev_create(struct disk *, const struct dev_opts *, bool start, struct dev **, struct err *);
/* Any thread but the device's. Detaches all transports, drains, commits, closes the leaf cleanly, ends the
 * thread, closes the disk, frees the device. Returns the result of the last commit and clean close. */
int dev_destroy(struct dev *, struct err *);
/* Tests only (start = false): what SIGKILL would do. Frees memory, finishes nothing, writes nothing; the
 * journal file stays as it is. Operations that the engine has in flight must have been dropped by their
 * engine before. */
void dev_abandon(struct dev *);

/* One turn of the loop; waits until deadline_ns at most (0: does not wait). Returns whether the device still
 * has work in flight. */
bool dev_turn(struct dev *, uint64_t deadline_ns);

/* Any thread. Runs fn(arg) on the device thread between two turns; -EAGAIN: the mailbox is full; blocks only
 * in dev_call. */
int dev_post(struct dev *, void (*fn)(struct dev *, void *), void *arg);
int dev_call(struct dev *, void (*fn)(struct dev *, void *), void *arg);

/* Device thread (so through dev_call from elsewhere). */
void dev_attach(struct dev *, struct transport *);
void dev_detach(
    struct dev *,
    struct transport *); /* ops->detached() follows, at once or when its last request was answered */
void dev_transport_ready(struct transport *); /* fetch() will be called in this or the next turn */
void dev_poll_arm(struct dev *, struct io_poll *, struct transport *);
void dev_poll_disarm(struct dev *, struct io_poll *);

/* Buffer of at least len_bytes, contiguous, page aligned. false: none now; the transport leaves the request
 * where it is, and is made ready again when one comes free. One maximal request is always possible. */
bool dev_buf_get(struct dev *, struct transport *, uint64_t len_bytes, struct buf *);
void dev_buf_put(struct dev *, struct buf *);

/* Any thread. */
const char *dev_name(const struct dev *);
const struct disk *dev_disk(const struct dev *);
void dev_stats(const struct dev *, struct dev_stats *);
uint64_t dev_size_bytes(const struct dev *);
bool dev_writable(const struct dev *);

/* Device thread. What a byte range is, for NBD's base:allocation: extents of allocated (DATA in any layer)
 * and zero. Answers about a prefix without I/O; a range whose metadata is not in memory is reported as data.
 */
enum extent_kind dev_block_status(struct dev *, uint64_t off_bytes, uint64_t len_bytes,
				  uint64_t *prefix_bytes);

#endif
