/* HOT PATH: no malloc, no log, no syscall but one event channel notification in ring_publish(), no lock. */
/*
 * The backend's half of a blkif ring: consuming requests, judging them, answering them.
 *
 * The door. All a guest says is judged here, completely, and once: a ring entry is copied to private memory
 * with volatile reads, one for each word, and only the copy is looked at (XSA-155: a compiler may re-read
 * what it was not forbidden to). What passes is a blkreq whose offset, length and operation the device may
 * trust. What does not is answered with an error and the ring goes on; only a producer index that no frontend
 * could write ends the ring, because then no entry in it means anything.
 *
 * Indices follow xen/io/ring.h (own code): free-running 32-bit counters; the slot of an index is its low
 * bits. A response goes where the oldest unanswered index points, so it may overwrite a request that is still
 * in flight: which is why requests are copied, and why the in-flight journal has its own copy (facts: a ring
 * alone can never rebuild the state).
 *
 * The order of stores into the journal is what a successor of a killed process relies on. Consume: slot
 * TAKEN, then the consumed index. Answer: slot DONE, then the response, then the ring's rsp_prod, then the
 * published index, then the slot FREE.
 *
 * Not here: moving data (grant.c), when to look at which ring (transport.c), order between requests (the
 * device).
 */
#include "blkd/blkif/ring.h"

#include "blkd/journal.h"
#include "blkd/log.h"

#include <errno.h>
#include <string.h>

void ring_reset(struct blkif_ring *r)
{
	r->req_cons = r->rsp_prod = r->rsp_published = 0;
	for (unsigned i = 0; i < r->entries; i++) {
		struct blkif_slot *s = &r->slots[i];

		s->ring = r;
		s->req.transport = &r->conn->transport;
		s->segs = &r->segs[(size_t)i * BLKIF_INDIRECT_SEGS];
		s->index = (uint16_t)i;
		s->next = i + 1 < r->entries ? (uint16_t)(i + 1) : NO_SLOT;
	}
	r->free_head = 0;
	r->answered_head = r->answered_tail = NO_SLOT;
}

static unsigned char *entry_of(const struct blkif_ring *r, uint32_t idx)
{
	return (unsigned char *)r->shared + BLKIF_RING_HEADER_BYTES +
	       (size_t)(idx & (r->entries - 1)) * r->entry_bytes;
}

/* The one read of a request from shared memory: a relaxed atomic load of each word cannot be repeated by the
 * compiler. */
static void copy_entry(const struct blkif_ring *r, uint32_t idx,
		       uint32_t raw[static BLKIF_ENTRY_MAX_BYTES / 4])
{
	const uint32_t *from = (const uint32_t *)(const void *)entry_of(r, idx);

	for (unsigned i = 0; i < r->entry_bytes / 4; i++)
		raw[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

static void put_response(const struct blkif_ring *r, uint32_t idx, const uint32_t *rsp)
{
	uint32_t *to = (uint32_t *)(void *)entry_of(r, idx);

	for (unsigned i = 0; i < blkif_response_bytes(r->conn->abi) / 4; i++)
		__atomic_store_n(&to[i], rsp[i], __ATOMIC_RELAXED);
}

/* Operation and count: what can be told without segments. Fills the slot's op. 0 or -errno; *n_segs: pieces
 * of data that follow. */
static int check_header(const struct blkif_limits *lim, const struct blkif_req *q, struct blkreq *req,
			unsigned *n_segs)
{
	unsigned n = q->nr_segments;

	*n_segs = 0;
	switch (q->op) {
	case BLKIF_INDIRECT:
		if (q->inner != BLKIF_READ && q->inner != BLKIF_WRITE)
			return -EINVAL;
		if (n == 0 || n > BLKIF_INDIRECT_SEGS)
			return -EINVAL;
		break;
	case BLKIF_READ:
	case BLKIF_WRITE:
		if (n == 0 || n > BLKIF_DIRECT_SEGS)
			return -EINVAL;
		break;
	case BLKIF_WRITE_BARRIER:
		if (!lim->barrier)
			return -EOPNOTSUPP;
		if (n > BLKIF_DIRECT_SEGS)
			return -EINVAL;
		break;
	case BLKIF_FLUSH:
		if (n > BLKIF_DIRECT_SEGS)
			return -EINVAL;
		break;
	case BLKIF_DISCARD:
		/* A secure discard promises that the old bytes are gone for good; nobody offered that. */
		if (!lim->discard || (q->flag & BLKIF_DISCARD_SECURE))
			return -EOPNOTSUPP;
		req->op = BLK_TRIM;
		return 0;
	default:
		return -EOPNOTSUPP;
	}
	*n_segs = n;
	if (q->inner == BLKIF_READ)
		req->op = BLK_READ;
	else if (q->inner == BLKIF_WRITE)
		req->op = BLK_WRITE;
	else if (q->inner == BLKIF_FLUSH && n == 0)
		req->op = BLK_FLUSH;
	else
		/* A flush that carries data: blkback flushes before and writes; a barrier promises that and
		 * more. */
		req->op = BLK_BARRIER;
	return req->op == BLK_READ || req->op == BLK_FLUSH || lim->writable ? 0 : -EROFS;
}

static int check_range(const struct blkif_limits *lim, uint64_t sector, uint64_t n)
{
	uint64_t end;

	if (__builtin_add_overflow(sector, n, &end) || end > lim->sectors)
		return -EINVAL;
	return 0;
}

int ring_check_data(const struct blkif_limits *lim, struct blkif_slot *s)
{
	uint64_t sectors = 0, sector = s->req.off_bytes; /* ring_take() left the sector there */

	for (unsigned i = 0; i < s->n_segs; i++) {
		const struct blkif_seg *seg = &s->segs[i];

		if (seg->first_sect > seg->last_sect || seg->last_sect >= BLKIF_PAGE_SECTORS)
			return -EINVAL;
		sectors += (unsigned)seg->last_sect - seg->first_sect + 1u;
	}
	if (check_range(lim, sector, sectors))
		return -EINVAL;
	s->req.off_bytes = sector * 512;
	s->req.len_bytes = sectors * 512;
	return 0;
}

static struct blkif_slot *slot_pop(struct blkif_ring *r)
{
	struct blkif_slot *s;

	DCHECK(r->free_head != NO_SLOT);
	s = &r->slots[r->free_head];
	r->free_head = s->next;
	s->next = NO_SLOT;
	return s;
}

/* From here on the request is ours: its slot has what resume and answer need, whatever becomes of the ring
 * entry. */
static struct blkif_slot *consume(struct blkif_ring *r, const uint32_t *raw, const struct blkif_req *q)
{
	struct blkif_slot *s = slot_pop(r);

	if (r->journal) {
		struct ring_slot *j = ring_journal_slot(r->journal, s->index);

		j->ring_idx = r->req_cons;
		j->arrival = r->conn->arrivals;
		memcpy(j->request, raw, r->entry_bytes);
		/* Pairs with the successor's acquire: a slot seen TAKEN is whole. */
		__atomic_store_n(&j->state, RING_SLOT_TAKEN, __ATOMIC_RELEASE);
		ring_journal_consumed(r->journal, r->req_cons + 1);
	}
	r->conn->arrivals++;
	r->req_cons++;
	s->id = q->id;
	s->rsp_op = q->inner; /* to INDIRECT blkfront wants the inner operation, or disables its disk */
	s->n_segs = 0;
	s->indirect = s->copy_failed = false;
	s->req.fua = false;
	s->req.status = 0;
	s->req.off_bytes = s->req.len_bytes = 0;
	s->req.buf = (struct buf){0};
	return s;
}

/* Reads the producer index once a fetch; the ring is broken when it says what no frontend can. */
static enum ring_take look(struct blkif_ring *r)
{
	uint32_t pending, outstanding = r->req_cons - r->rsp_published;

	if (!r->seen) {
		/* Pairs with the guest's barrier between writing requests and req_prod. */
		r->prod = __atomic_load_n(&r->shared->req_prod, __ATOMIC_ACQUIRE);
		r->seen = true;
	}
	pending = r->prod - r->rsp_published;
	if (pending > r->entries) {
		conn_break(r->conn, "req_prod ran ahead: req_prod and entries are", r->prod, r->entries);
		return RING_BROKEN;
	}
	if (pending < outstanding) {
		conn_break(r->conn, "req_prod went back: req_prod and req_cons are", r->prod, r->req_cons);
		return RING_BROKEN;
	}
	return pending == outstanding ? RING_EMPTY : RING_TAKEN;
}

enum ring_take ring_take(struct blkif_ring *r)
{
	struct blkif_conn *c = r->conn;
	uint32_t raw[BLKIF_ENTRY_MAX_BYTES / 4] = {0};
	struct blkreq wanted = {.buf.mem = NULL};
	struct blkif_slot *s;
	struct blkif_req q;
	enum ring_take have = look(r);
	unsigned n_segs;
	int rc;

	if (have != RING_TAKEN)
		return have;
	copy_entry(r, r->req_cons, raw);
	blkif_decode(c->abi, raw, &q);
	rc = check_header(&c->limits, &q, &wanted, &n_segs);
	/* The length is not known yet if the segments are indirect; whole pages are its bound. */
	if (rc == 0 && n_segs &&
	    !dev_buf_get(c->dev, &c->transport, (uint64_t)n_segs * HYP_PAGE_BYTES, &wanted.buf))
		return RING_NO_BUFFER;
	s = consume(r, raw, &q);
	if (rc == 0) {
		s->req.op = wanted.op;
		s->req.buf = wanted.buf;
		s->req.off_bytes = q.sector;
		s->n_segs = (uint16_t)n_segs;
		s->indirect = q.op == BLKIF_INDIRECT;
		if (s->indirect)
			s->indirect_gref = q.grefs[0];
		else
			memcpy(s->segs, q.segs, n_segs * sizeof(q.segs[0]));
	}
	if (rc == 0 && wanted.op == BLK_TRIM) {
		rc = q.nr_sectors ? check_range(&c->limits, q.sector, q.nr_sectors) : -EINVAL;
		if (rc == 0) {
			s->req.off_bytes = q.sector * 512;
			s->req.len_bytes = q.nr_sectors * 512;
		}
	} else if (rc == 0 && n_segs == 0) {
		s->req.off_bytes = 0; /* FLUSH and empty barriers name no place */
	} else if (rc == 0 && !s->indirect) {
		rc = ring_check_data(&c->limits, s);
	}
	if (rc < 0) {
		counter_add(&c->counters.refused, 1);
		ring_answer(s, rc);
		return RING_REFUSED;
	}
	c->fresh[c->n_fresh++] = s;
	return RING_TAKEN;
}

void ring_answer(struct blkif_slot *s, int result)
{
	struct blkif_ring *r = s->ring;
	struct blkif_conn *c = r->conn;
	int16_t status = blkif_status_of(result);
	uint32_t rsp[BLKIF_RESPONSE_MAX_BYTES / 4];

	if (s->req.buf.mem)
		dev_buf_put(c->dev, &s->req.buf);
	if (r->journal) {
		struct ring_slot *j = ring_journal_slot(r->journal, s->index);

		j->status = status;
		j->rsp_idx = r->rsp_prod;
		/* Before the response: a published response without DONE would be taken for a request to run
		 * again. */
		__atomic_store_n(&j->state, RING_SLOT_DONE, __ATOMIC_RELEASE);
	}
	blkif_encode_response(c->abi, s->id, s->rsp_op, status, rsp);
	put_response(r, r->rsp_prod, rsp);
	r->rsp_prod++;
	if (r->answered_tail == NO_SLOT)
		r->answered_head = s->index;
	else
		r->slots[r->answered_tail].next = s->index;
	r->answered_tail = s->index;
	s->next = NO_SLOT;
}

static void free_answered(struct blkif_ring *r)
{
	while (r->answered_head != NO_SLOT) {
		struct blkif_slot *s = &r->slots[r->answered_head];

		r->answered_head = s->next;
		if (r->journal)
			__atomic_store_n(&ring_journal_slot(r->journal, s->index)->state, RING_SLOT_FREE,
					 __ATOMIC_RELEASE);
		s->next = r->free_head;
		r->free_head = s->index;
	}
	r->answered_tail = NO_SLOT;
}

void ring_publish(struct blkif_ring *r)
{
	uint32_t from = r->rsp_published, to = r->rsp_prod, event;

	if (from == to)
		return;
	/* Responses before the index: pairs with the guest's barrier after it read rsp_prod. */
	__atomic_store_n(&r->shared->rsp_prod, to, __ATOMIC_RELEASE);
	/* rsp_prod before rsp_event: pairs with the guest's barrier between setting rsp_event and looking at
	 * rsp_prod again. One of the two sees the other, or both sleep. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	event = __atomic_load_n(&r->shared->rsp_event, __ATOMIC_RELAXED);
	r->rsp_published = to;
	if (r->journal)
		ring_journal_published(r->journal, to);
	free_answered(r);
	/* Only if rsp_event lies in (from, to]: else the guest is awake, or was told (XSA-391). */
	if ((uint32_t)(to - event) < (uint32_t)(to - from)) {
		counter_add(&r->conn->counters.notifies, 1);
		hyp_notify(r->channel);
	}
}

bool ring_sleep(struct blkif_ring *r)
{
	__atomic_store_n(&r->shared->req_event, r->req_cons + 1, __ATOMIC_RELAXED);
	/* req_event before req_prod: pairs with the guest's barrier between setting req_prod and looking at
	 * req_event. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&r->shared->req_prod, __ATOMIC_ACQUIRE) == r->req_cons;
}
