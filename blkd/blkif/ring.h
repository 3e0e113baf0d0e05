/*
 * One connection of one frontend: the transport that a device sees (dev.h), its rings, and a slot for each
 * request a ring can hold.
 *
 * Ownership. The control thread creates the connection (maps, channels, journals, all memory), attaches it to
 * the device, and frees it after it was told `detached`. In between all of this is the device thread's, but
 * for `events`, which go the other way. A slot is FREE, or belongs to a request from its consumption until
 * its response is published: consumed and unpublished requests == req_cons - rsp_published == slots not free
 * so a guest that keeps the protocol never finds the slots used up, and one that does not has broken its ring
 * before.
 *
 * Split: transport.c the life of it and the vtable; ring.c consumption, the door, responses; grant.c moving
 * bytes.
 */
#ifndef BLKD_BLKIF_RING_H
#define BLKD_BLKIF_RING_H

#include "blkd/blkif/abi.h"
#include "blkd/dev.h"
#include "blkd/hyp.h"

#include <stdbool.h>
#include <stdint.h>

struct blkif_conn;
struct blkif_ring;
struct ring_journal;

#define BLKIF_MAX_QUEUES 16u
#define BLKIF_FETCH_MAX	 64u   /* requests of one fetch() */
#define GRANT_BATCH	 1024u /* segments of one hyp_copy() */
#define NO_SLOT		 0xffffu

struct blkif_slot {
	struct blkreq req; /* first: the device gives us back a pointer to it */
	struct blkif_ring *ring;
	uint64_t id;
	uint16_t index, next; /* next: in the ring's free or answered list */
	uint16_t n_segs;
	uint8_t rsp_op;
	bool indirect;	  /* segs are still to be brought from indirect_gref */
	bool copy_failed; /* set by grant_flush(): one of its segments failed */
	uint32_t indirect_gref;
	struct blkif_seg *segs; /* the slot's own, BLKIF_INDIRECT_SEGS of them */
};

struct blkif_ring {
	struct blkif_conn *conn;
	struct blkif_shared *shared; /* the guest writes to it at any moment: each read is made once, through
					the accessors in ring.c */
	uint32_t entries;	     /* a power of two */
	uint32_t entry_bytes;
	uint32_t req_cons;	/* free-running, as all indices */
	uint32_t rsp_prod;	/* responses written */
	uint32_t rsp_published; /* of these, made visible */
	uint16_t free_head;
	uint16_t answered_head, answered_tail; /* written and not published: slots in response order */
	bool acked; /* the channel was acknowledged (or is fresh): unmask and arm it after the ring was worked
		       on */
	bool seen;  /* in this fetch: `prod` is current */
	bool drained;	   /* in this fetch: nothing left */
	unsigned spurious; /* wake-ups in a row that brought no request */
	bool throttled;	   /* waits for the conn's timer before it listens again */
	uint32_t prod;
	struct blkif_slot *slots;
	struct blkif_seg *segs; /* the slots' */
	struct ring_journal *journal;
	struct hyp_map *map;
	struct hyp_evtchn *channel;
	struct io_poll poll;
};

/* What this connection was promised and may do; set at connect. */
struct blkif_limits {
	uint64_t sectors; /* of 512 */
	bool writable, barrier, discard;
};

/* A batch of copies, and whose each segment is. */
struct grant_batch {
	struct hyp *hyp;
	uint32_t domid;
	unsigned n;
	struct hyp_seg seg[GRANT_BATCH];
	struct blkif_slot *owner[GRANT_BATCH];
};

/* Reported to the control thread, or'd into `events`. */
enum blkif_event {
	BLKIF_EV_DETACHED = 1, /* the device does not use the connection any more */
	BLKIF_EV_BROKEN = 2,   /* the guest broke a ring: `reason` is valid */
};

struct blkif_counters {	  /* device thread writes, others read: relaxed atomics */
	uint64_t refused; /* answered at the door */
	uint64_t copy_failures;
	uint64_t notifies, wakeups, spurious;
};

struct blkif_conn {
	struct transport transport; /* first */
	struct dev *dev;	    /* set by blkif_conn_attach */
	enum blkif_abi abi;
	struct blkif_limits limits;
	unsigned n_rings, next_ring; /* next_ring: where the next fetch begins */
	struct blkif_ring rings[BLKIF_MAX_QUEUES];
	struct blkif_slot *fresh[BLKIF_FETCH_MAX]; /* consumed in this fetch */
	unsigned n_fresh;
	bool broken;
	uint64_t arrivals;    /* requests consumed, over all rings */
	struct io_poll timer; /* fd: a timerfd, for throttled rings */
	bool timer_armed;
	struct blkif_counters counters;
	char reason[160];			     /* written before BLKIF_EV_BROKEN is reported */
	void (*report)(void *ctx, enum blkif_event); /* device thread; must not block */
	void *report_ctx;
	struct grant_batch batch;
};

static inline void counter_add(uint64_t *c, uint64_t n)
{
	__atomic_store_n(c, *c + n, __ATOMIC_RELAXED); /* one writer: the device thread */
}

static inline uint64_t counter_get(const uint64_t *c)
{
	return __atomic_load_n(c, __ATOMIC_RELAXED);
}

/* ---- ring.c: device thread, HOT ---- */

enum ring_take {
	RING_TAKEN,   /* a slot more in conn->fresh */
	RING_REFUSED, /* a request was consumed and answered at the door */
	RING_EMPTY,
	RING_NO_BUFFER, /* nothing was consumed: the device has no buffer now, and will call again */
	RING_BROKEN,	/* the ring is not read any more */
};

/* All slots free, indices 0. Control thread, before attach. */
void ring_reset(struct blkif_ring *);
/* Consumes one request: copied out once, header validated, buffer taken. */
enum ring_take ring_take(struct blkif_ring *);
/* The rest of the door, once indirect segments are private: segments, range, permissions. Fills
 * req->off_bytes and len_bytes. 0 or -errno. */
int ring_check_data(const struct blkif_limits *, struct blkif_slot *);
/* Writes the response and gives the buffer back. Not visible before ring_publish(). */
void ring_answer(struct blkif_slot *, int result);
/* Makes answers visible, frees their slots, tells the guest if it asked to be told. */
void ring_publish(struct blkif_ring *);
/* Before sleeping: asks to be told of the next request. False: there is one already. */
bool ring_sleep(struct blkif_ring *);
/* Stops all rings of the connection for good, and reports why. */
void conn_break(struct blkif_conn *, const char *reason, uint32_t a, uint32_t b);

/* ---- grant.c: device thread, HOT ---- */

/* Adds to the batch, running it first when it is full; results are complete after grant_flush(). */
void grant_add_indirect(struct grant_batch *, struct blkif_slot *);
void grant_add_data(struct grant_batch *, struct blkif_slot *, enum hyp_dir);
/* Runs what is there: slot->copy_failed is set for each slot with a failed segment, and never cleared. */
void grant_flush(struct grant_batch *);

/* ---- transport.c: control thread ---- */

struct blkif_connect {
	struct hyp *hyp;
	uint32_t domid;
	enum blkif_abi abi;
	struct blkif_limits limits;
	unsigned n_queues, pages; /* pages of each ring: 1, 2, 4, 8 or 16 */
	struct {
		uint32_t port;
		uint32_t grefs[1u << BLKIF_MAX_ORDER];
	} queue[BLKIF_MAX_QUEUES];
	const char *run_dir, *name; /* of journals: name-queue */
	void (*report)(void *ctx, enum blkif_event);
	void *report_ctx;
};

/* Maps rings, binds channels, allocates all that the hot path needs. May block on the hypervisor. The caller
 * attaches ->transport. */
int blkif_conn_create(const struct blkif_connect *, struct blkif_conn **, struct err *);
/* Hands the connection to the device thread / asks for it back: BLKIF_EV_DETACHED follows. -EAGAIN: the
 * device's mailbox is full, try again later. Do not block. */
int blkif_conn_attach(struct blkif_conn *, struct dev *);
int blkif_conn_detach(struct blkif_conn *);
/* After BLKIF_EV_DETACHED, or if it was never attached. */
void blkif_conn_destroy(struct blkif_conn *, struct hyp *);

#endif
