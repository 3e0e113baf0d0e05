/*
 * The frontend's half of one blkif ring, as strict as Linux 6.1 blkfront and stricter: a response must name a
 * request that is in flight (the id carries a use count, so that an answer to an earlier use is seen), its
 * operation must be the one asked for (for INDIRECT the inner one), there may not be more responses than
 * requests, and its padding must be zero. After the first of these, padding apart, the ring is broken for
 * good, as blkfront disables its disk.
 */
#ifndef SIMGUEST_RING_H
#define SIMGUEST_RING_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/simguest/abi.h"
#include "sim/simguest/hypcall.h"
#include "sim/simguest/tally.h"

struct op;

/* One request in flight; its index is the low half of the request's id. */
struct shadow {
	bool busy;
	uint8_t answer_op;
	uint32_t use, next_free;
	struct op *op;		       /* the load's operation it is a part of ... */
	uint32_t seg_first, seg_count; /* ... and which of its segments */
};

struct ring {
	const struct abi *abi;
	struct tally *tally;
	uint8_t *mem; /* shared */
	uint32_t page, order, nent;
	uint32_t req_prod, req_pushed, rsp_cons;
	uint32_t in_flight, free_head;
	struct shadow *shadow;
	uint8_t (*sent)[ABI_RSP_MAX]; /* the first bytes of what we wrote into each slot */
	struct evtchn ec;
	bool broken, own_padding_ok;
	uint64_t notifies;
};

struct completion {
	struct shadow part; /* a copy: the slot is free again */
	int16_t status;
};

/* Takes 1 << order pages from `page` of the guest's memory. 0 or -ENOMEM. */
int ring_init(struct ring *r, const struct abi *abi, struct hyp *h, uint32_t page, uint32_t order,
	      struct tally *t);
void ring_destroy(struct ring *r);

bool ring_full(const struct ring *r);

/* Reserves a shadow for the next request: fill its op, segments and answer_op. Only when not full. */
struct shadow *ring_claim(struct ring *r, uint64_t *id);
/* Writes the request into the ring; not visible before ring_push(). */
void ring_put(struct ring *r, const uint8_t *entry);
/* Publishes what was put, and notifies the backend if it wants to know. */
void ring_push(struct ring *r);

/* Takes one response: 1 and *out, 0 when there is none (or the ring is broken). */
int ring_reap(struct ring *r, struct completion *out);

/* Asks for an event at the next response. True: there is one already, do not sleep. */
bool ring_arm(struct ring *r);

/* After the backend has closed: has it answered more than was reaped? */
bool ring_spoke_after_close(const struct ring *r);

#endif
