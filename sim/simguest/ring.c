/*
 * Front ring. The shared header is {req_prod, req_event, rsp_prod, rsp_event} and 48 bytes of padding, then
 * the entries; private indexes run freely and are masked at use. Responses are copied out once and judged
 * from the copy.
 */
#include "sim/simguest/ring.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xen/xen.h>
#include <xen/io/blkif.h>

#include "sim/simproto.h"

#define HEADER_BYTES 64u
#define NO_SLOT	     UINT32_MAX

struct header {
	uint32_t req_prod, req_event, rsp_prod, rsp_event;
};

static struct header *header_of(const struct ring *r)
{
	return (struct header *)(void *)r->mem;
}

static uint8_t *entry_of(const struct ring *r, uint32_t index)
{
	return r->mem + HEADER_BYTES + (size_t)(index & (r->nent - 1)) * r->abi->entry_bytes;
}

static uint32_t entries(const struct abi *abi, uint32_t order)
{
	uint32_t n = ((SIM_PAGE_BYTES << order) - HEADER_BYTES) / abi->entry_bytes;

	return 1u << (31 - __builtin_clz(n));
}

int ring_init(struct ring *r, const struct abi *abi, struct hyp *h, uint32_t page, uint32_t order,
	      struct tally *t)
{
	*r = (struct ring){
	    .abi = abi, .tally = t, .page = page, .order = order, .ec = {.wait_fd = -1, .notify_fd = -1}};
	r->mem = h->mem + (size_t)page * SIM_PAGE_BYTES;
	r->nent = entries(abi, order);
	r->shadow = calloc(r->nent, sizeof(*r->shadow));
	r->sent = calloc(r->nent, sizeof(*r->sent));
	if (!r->shadow || !r->sent) {
		ring_destroy(r);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < r->nent; i++)
		r->shadow[i].next_free = i + 1 < r->nent ? i + 1 : NO_SLOT;
	memset(r->mem, 0, (size_t)SIM_PAGE_BYTES << order);
	*header_of(r) = (struct header){.req_event = 1, .rsp_event = 1};
	return 0;
}

void ring_destroy(struct ring *r)
{
	free(r->shadow);
	free(r->sent);
	r->shadow = NULL;
	r->sent = NULL;
}

bool ring_full(const struct ring *r)
{
	return r->broken || r->in_flight == r->nent;
}

struct shadow *ring_claim(struct ring *r, uint64_t *id)
{
	uint32_t slot = r->free_head;
	struct shadow *s = &r->shadow[slot];

	r->free_head = s->next_free;
	r->in_flight++;
	s->busy = true;
	s->use++;
	*id = (uint64_t)s->use << 32 | slot;
	return s;
}

void ring_put(struct ring *r, const uint8_t *entry)
{
	memcpy(entry_of(r, r->req_prod), entry, r->abi->entry_bytes);
	memcpy(r->sent[r->req_prod & (r->nent - 1)], entry, ABI_RSP_MAX);
	r->req_prod++;
}

void ring_push(struct ring *r)
{
	struct header *h = header_of(r);
	uint32_t old = r->req_pushed, new = r->req_prod, event;
	uint64_t one = 1;

	if (old == new)
		return;
	/* Partner: the backend's acquire load of req_prod before it reads the requests. */
	__atomic_store_n(&h->req_prod, new, __ATOMIC_RELEASE);
	r->req_pushed = new;
	/* Partner: the backend sets req_event, then looks at req_prod again. One of the two sees the other.
	 */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	event = __atomic_load_n(&h->req_event, __ATOMIC_RELAXED);
	if (new - event < new - old) {
		r->notifies++;
		if (write(r->ec.notify_fd, &one, sizeof(one)) < 0)
			note("notify: %s", strerror(errno));
	}
}

static void check_padding(struct ring *r, const struct response *rsp, const uint8_t *sent)
{
	uint8_t foreign = 0;

	for (uint32_t i = 0; i < rsp->npad; i++) {
		uint8_t was = sent[i == 0 ? 9 : 11 + i];

		if (rsp->pad[i] && !(r->own_padding_ok && rsp->pad[i] == was))
			foreign |= rsp->pad[i];
	}
	if (foreign)
		tally_add(r->tally, FAULT_PROTOCOL, 1, "response %" PRIu32 ": padding is not zero",
			  r->rsp_cons);
}

static int judge(struct ring *r, const struct response *rsp, struct completion *out)
{
	uint32_t slot = (uint32_t)rsp->id, use = (uint32_t)(rsp->id >> 32);
	struct shadow *s;

	if (slot >= r->nent || use == 0) {
		tally_add(r->tally, FAULT_PROTOCOL, 1, "response id %#" PRIx64 " is out of range", rsp->id);
		return -EPROTO;
	}
	s = &r->shadow[slot];
	if (!s->busy || s->use != use) {
		tally_add(r->tally, FAULT_PROTOCOL, 1, "response id %#" PRIx64 " is not in flight (%s)",
			  rsp->id, use <= s->use ? "answered twice" : "never asked");
		return -EPROTO;
	}
	if (rsp->operation != s->answer_op) {
		tally_add(r->tally, FAULT_PROTOCOL, 1, "response has operation %u instead of %u",
			  rsp->operation, s->answer_op);
		return -EPROTO;
	}
	if (rsp->status != BLKIF_RSP_OKAY && rsp->status != BLKIF_RSP_ERROR &&
	    rsp->status != BLKIF_RSP_EOPNOTSUPP) {
		tally_add(r->tally, FAULT_PROTOCOL, 1, "response has unknown status %d", rsp->status);
		return -EPROTO;
	}
	out->part = *s;
	out->status = rsp->status;
	s->busy = false;
	s->next_free = r->free_head;
	r->free_head = slot;
	r->in_flight--;
	return 0;
}

int ring_reap(struct ring *r, struct completion *out)
{
	uint8_t bytes[ABI_RSP_MAX] = {0};
	struct response rsp;
	uint32_t avail;

	if (r->broken)
		return 0;
	/* Partner: the backend's release store of rsp_prod after it wrote the response (and the data). */
	avail = __atomic_load_n(&header_of(r)->rsp_prod, __ATOMIC_ACQUIRE) - r->rsp_cons;
	if (avail == 0)
		return 0;
	if (avail > r->req_pushed - r->rsp_cons) {
		tally_add(r->tally, FAULT_PROTOCOL, 1,
			  "rsp_prod is %" PRIu32 " ahead with %" PRIu32 " requests out", avail,
			  r->req_pushed - r->rsp_cons);
		r->broken = true;
		return 0;
	}
	memcpy(bytes, entry_of(r, r->rsp_cons), r->abi->rsp_bytes);
	abi_get_response(r->abi, bytes, &rsp);
	check_padding(r, &rsp, r->sent[r->rsp_cons & (r->nent - 1)]);
	r->rsp_cons++;
	if (judge(r, &rsp, out)) {
		r->broken = true;
		return 0;
	}
	return 1;
}

bool ring_arm(struct ring *r)
{
	struct header *h = header_of(r);

	if (r->broken)
		return false;
	__atomic_store_n(&h->rsp_event, r->rsp_cons + 1, __ATOMIC_RELAXED);
	/* Partner: the backend publishes rsp_prod, then looks at rsp_event. One of the two sees the other. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&h->rsp_prod, __ATOMIC_ACQUIRE) != r->rsp_cons;
}

bool ring_spoke_after_close(const struct ring *r)
{
	return !r->broken && __atomic_load_n(&header_of(r)->rsp_prod, __ATOMIC_ACQUIRE) != r->rsp_cons;
}
