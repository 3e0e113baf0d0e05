/*
 * The device's inside, shared by the files of blkd/dev/. Everything here belongs to the device thread, but
 * for the mailbox (its mutex) and the statistics (written by the thread, read by anybody, relaxed).
 *
 * The walk of a request: transport -> dev_fetch -> req_admit (overlaps) -> plan_read | plan_write -> op_begin
 * (execute.c) -> engine -> op done -> req_piece_done -> [commit.c: LANDED] -> req_finish -> dev_complete ->
 * transport.
 */
#ifndef BLKD_DEV_PRIV_H
#define BLKD_DEV_PRIV_H

#include "blkd/cache.h"
#include "blkd/dev.h"
#include "blkd/err.h"
#include "blkd/journal.h"
#include "blkd/log.h"

#include <errno.h>

#include <pthread.h>

enum {
	DEV_OPS = 256,	  /* operations of requests and metadata reads; more requests wait their turn */
	DEV_ACTS = 16,	  /* metadata acts in flight of one job */
	DEV_PENDING = 64, /* metadata pages being brought */
	DEV_MAILBOX = 256,
	DEV_FETCH = 64,			/* requests taken from one transport in one turn */
	STEP_BOUNCE_BYTES = 512u << 10, /* of one unaligned step, so that its cover fits a buffer */
	ZERO_WRITE_BYTES = 64u << 10,	/* zeros up to this are written; above, the file system is asked */
	PLAN_STEPS = 1024,		/* pieces of one request in one go; a discard may have millions */
	FS_BLOCK_BYTES = 4096, /* zero-range and punch go in these: a file system would do the edges through
				  its page cache */
};

enum barrier_stage { BARRIER_DRAIN, BARRIER_COMMIT, BARRIER_DATA };

/* One operation on a file: of a request's piece, of metadata, of a job. Moves [file_off, file_off + len) in
 * steps that the engine and the storage's alignment allow. */
struct op {
	struct io io;
	struct list link; /* free list, or a list of ops that wait */
	void (*done)(struct dev *, struct op *, int res);
	void *owner;		  /* request, pending page or act, as done() knows */
	struct write_piece piece; /* of a write request */
	const struct io_file *file;
	enum io_op verb;
	uint64_t file_off, len_bytes, pos_bytes;
	unsigned char *buf;
	/* the step under way */
	enum { STEP_DIRECT, STEP_COVER_READ, STEP_COVER_WRITE } stage;
	uint64_t step_off;
	uint32_t step_len;
	unsigned char *step_buf;
	struct buf bounce;
	uint64_t cover_off;
	uint32_t cover_len;
	bool in_leaf_writes; /* registered in dev->leaf_writes */
	bool pooled;	     /* from dev->ops_free; else embedded in a job's act */
};

/* A page of metadata that requests wait for. */
struct pending {
	enum { PEND_FREE, PEND_READ, PEND_FILL, PEND_WAIT, PEND_READY } state;
	uint16_t layer;
	uint64_t key; /* leaf: the sector; parent: the page */
	struct cache_waiter waiter;
	struct cache_frame *frame; /* FILL */
	unsigned char *
	    page; /* META_PAGE_BYTES of the device's, when the cache has no frame to give, and for the leaf */
	int wake_res;	   /* under the mailbox lock until taken */
	struct list woken; /* dev->woken, under the mailbox lock */
	struct list reqs;  /* parked */
	struct dev *dev;
};

struct act_slot {
	struct op op;
	struct meta_act act;
	void *buf;
	bool busy;
	struct job_run *run;
};

/* A job of the leaf under way, or not. */
struct job_run {
	struct job job;
	bool active;
	uint64_t started_ns;
	struct act_slot slot[DEV_ACTS];
};

struct range {
	uint64_t start, end;
	struct blkreq *req;
	bool mutates;
};

struct message {
	void (*fn)(struct dev *, void *);
	void *arg;
};

enum stop_stage { STOP_NO, STOP_DRAIN, STOP_COMMIT, STOP_CLOSE, STOP_DONE };

struct dev {
	struct disk *disk;
	struct image *leaf;
	struct dev_opts opts;
	char name[64];
	struct io_engine *engine;
	struct io_file *files; /* a file of each layer */
	bool rmw;	       /* the leaf's storage has blocks above 512 bytes */

	/* requests */
	struct list transports;
	struct range *active; /* admitted and not answered, dense */
	unsigned n_active, max_active, n_mutating;
	uint64_t next_seq;
	struct list blocked;	/* REQ_BLOCKED, in order of arrival */
	struct blkreq *barrier; /* nothing is fetched while one is there */
	struct list starved;	/* REQ_PARKED for a free op or pending page, or to let others pass */
	bool replan;		/* something that a starved one may need was given back */
	struct list park_epoch, park_grow;
	struct list landed;  /* REQ_LANDED: wait for a commit that begins from now on */
	struct list covered; /* REQ_LANDED: wait for the commit under way */
	struct list done;    /* REQ_DONE */

	/* operations */
	struct op *ops;
	struct list ops_free;
	struct list io_wait;	 /* the engine was full */
	struct list leaf_writes; /* rmw: writes in flight on the leaf */
	struct list rmw_wait;	 /* ops that wait for one of them */
	struct list bounce_wait; /* ops that wait for a bounce buffer */
	struct pending pending[DEV_PENDING];
	unsigned char *pending_pages;
	struct buf reserve; /* one maximal request is always possible */
	struct buf bounce_reserve;
	bool reserve_busy, bounce_busy;

	/* jobs */
	struct job_run *commit, *grow; /* grow's memory serves the close too */
	uint64_t dirty_since_ns;       /* last write that left the image dirty; 0: clean */
	uint64_t grow_retry_ns;
	bool commit_wanted;
	bool commit_failed; /* the last one: the next waits for a request or the idle pace */
	enum stop_stage stop;
	int stop_res;

	/* loop */
	uint64_t now_ns;
	struct dev_stats stats;
	pthread_t thread;
	bool threaded;
	int create_res;
	struct err create_err;

	/* mailbox */
	pthread_mutex_t lock;
	pthread_cond_t created;
	struct message box[DEV_MAILBOX];
	unsigned box_head, box_tail;
	struct list woken;
	int wake_fd;
	bool wake_signalled; /* under lock: the eventfd was written and not yet read */
	bool mail;	     /* relaxed hint: look into the mailbox */
	bool is_created;
	struct io_poll wake_poll;
};

static inline void stat_add(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/* request.c */
void req_set_state(struct blkreq *, enum req_state);
void req_admit(struct dev *, struct blkreq *);
void req_run(struct dev *, struct blkreq *); /* plans it on, from wherever it is */
void req_park(struct dev *, struct blkreq *, struct list *where);
void req_fail(struct blkreq *, int res); /* first error stays */
void req_settle(struct dev *,
		struct blkreq *); /* after planning or a piece's end: finished, landed, or still under way */
void req_committed(struct dev *, struct blkreq *, int res);
void dev_complete(struct dev *);

/* plan.c */
void plan_read(struct dev *, struct blkreq *);
void plan_write(struct dev *, struct blkreq *);

/* meta.c */
struct meta_pin {
	const void *bytes;	   /* 512 of them */
	struct cache_frame *frame; /* pinned, or NULL */
};
/* The metadata sector at file_off of a layer, pinned until meta_unpin (for one map(), no longer); false: r
 * was parked until it is there. */
bool meta_bring(struct dev *, struct blkreq *, unsigned layer, uint64_t file_off, struct meta_pin *);
void meta_unpin(struct dev *, struct meta_pin *);
void meta_take_woken(struct dev *, struct list *woken);

/* device.c. Any thread: p's wait for another device's fill ended with res. */
void dev_wake(struct dev *, struct pending *, int res);

/* execute.c */
struct op *op_get(struct dev *);
void op_put(struct dev *, struct op *);
void op_begin(struct dev *, struct op *);
void op_io_done(struct dev *, struct op *);
void ops_retry(struct dev *);
void ops_abandon(struct dev *);

/* commit.c */
void jobs_run(struct dev *);
void jobs_want_commit(struct dev *);
uint64_t jobs_deadline(const struct dev *);
bool jobs_stopped(struct dev *);

#endif
