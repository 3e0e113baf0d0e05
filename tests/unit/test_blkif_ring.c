/*
 * The ring's door, answers and notifications against hostile and honest guests: one case per rule of the
 * security list. The device and the hypervisor are small fakes in this file (they stand in for libblkd's at
 * link time), so that the test sees every hand-over and can strike at any moment: the hooks run between "the
 * request was copied" and "the request is handed over".
 *
 * Requests are written with the public header's structs, not with the code under test.
 */
#include "blkd/blkif/ring.h"

#include "blkd/err.h"
#include "blkd/journal.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xen/xen.h>
#include <xen/io/blkif.h>

#include <cmocka.h>

#define PAGES	   512u
#define GREF0	   100u
#define SECTORS	   100000ull
#define BUFS	   600u
#define FIRST_PORT 7u

union entry {
	struct blkif_request req;
	struct blkif_request_indirect ind;
	struct blkif_request_discard dis;
	unsigned char bytes[112];
};

static struct world {
	/* guest */
	_Alignas(4096) unsigned char ring[2][16 * 4096];
	_Alignas(4096) unsigned char page[PAGES][4096];
	bool revoked[PAGES];
	uint32_t prod[2], rsp_cons[2];
	/* hypervisor */
	struct hyp hyp;
	struct hyp_evtchn channel[2];
	unsigned n_channels, copies, largest_copy, notifies[2], acks, unmasks, masked_unmasks;
	int copy_error;
	bool unmask_saw_unread; /* unmasked while the ring had requests that were not consumed */
	/* device */
	unsigned buffers; /* still to give */
	unsigned outstanding;
	unsigned arms;
	bool ready;
	struct blkif_conn *conn;
	unsigned events;
	void (*on_buf_get)(void), (*on_copy)(void);
	/* journal */
	struct ring_slot journal[2][512];
	uint32_t consumed, published;
	bool journalled;
} w;

/* ---- the fake device ---- */

bool dev_buf_get(struct dev *d, struct transport *t, uint64_t len_bytes, struct buf *out)
{
	(void)d;
	(void)t;
	assert_true(len_bytes > 0 && len_bytes <= REQ_MAX_BYTES);
	if (w.on_buf_get)
		w.on_buf_get();
	if (!w.buffers)
		return false;
	w.buffers--;
	w.outstanding++;
	/* Exactly as long as asked: the sanitizer sees a byte beyond. Old content of another guest is 0xdb.
	 */
	*out = (struct buf){.mem = malloc(len_bytes), .cap_bytes = (uint32_t)len_bytes};
	memset(out->mem, 0xdb, len_bytes);
	return true;
}

void dev_buf_put(struct dev *d, struct buf *b)
{
	(void)d;
	free(b->mem);
	b->mem = NULL;
	w.buffers++;
	w.outstanding--;
}

void dev_transport_ready(struct transport *t)
{
	(void)t;
	w.ready = true;
}

void dev_poll_arm(struct dev *d, struct io_poll *p, struct transport *t)
{
	(void)d;
	(void)t;
	assert_false(p->armed);
	p->armed = true;
	w.arms++;
}

void dev_poll_disarm(struct dev *d, struct io_poll *p)
{
	(void)d;
	p->armed = false;
}

void dev_attach(struct dev *d, struct transport *t)
{
	(void)d;
	(void)t;
}

void dev_detach(struct dev *d, struct transport *t)
{
	(void)d;
	t->ops->detached(t);
}

int dev_post(struct dev *d, void (*fn)(struct dev *, void *), void *arg)
{
	fn(d, arg);
	return 0;
}

/* ---- the fake journal ---- */

int ring_journal_open(const char *run_dir, const char *name, const void *binding, unsigned bytes,
		      struct ring_journal **out, struct err *e)
{
	(void)run_dir;
	(void)binding;
	(void)bytes;
	(void)e;
	*out = (struct ring_journal *)(void *)w.journal[name[strlen(name) - 1] - '0'];
	return 0;
}

void ring_journal_close(struct ring_journal *j, bool keep)
{
	(void)j;
	(void)keep;
}

struct ring_slot *ring_journal_slot(struct ring_journal *j, unsigned i)
{
	return (struct ring_slot *)(void *)j + i;
}

void ring_journal_consumed(struct ring_journal *j, uint32_t req_cons)
{
	(void)j;
	w.consumed = req_cons;
}

void ring_journal_published(struct ring_journal *j, uint32_t rsp_prod)
{
	(void)j;
	w.published = rsp_prod;
}

/* ---- the fake hypervisor ---- */

static int fake_map(struct hyp *h, uint32_t domid, const uint32_t *grefs, unsigned n, struct hyp_map **out,
		    void **addr, struct err *e)
{
	(void)h;
	(void)domid;
	(void)e;
	(void)n;
	*addr = w.ring[grefs[0]];
	*out = (struct hyp_map *)*addr;
	return 0;
}

static void fake_unmap(struct hyp *h, struct hyp_map *m)
{
	(void)h;
	(void)m;
}

static int fake_copy(struct hyp *h, uint32_t domid, struct hyp_seg *segs, unsigned n)
{
	(void)h;
	assert_int_equal(domid, 5);
	w.copies++;
	if (n > w.largest_copy)
		w.largest_copy = n;
	for (unsigned i = 0; i < n; i++) {
		uint32_t p = segs[i].gref - GREF0;

		assert_true((unsigned)segs[i].offset_bytes + segs[i].len_bytes <= 4096);
		if (segs[i].gref < GREF0 || p >= PAGES || w.revoked[p]) {
			segs[i].status = HYP_BAD_GREF;
			continue;
		}
		segs[i].status = HYP_OKAY;
		if (w.copy_error)
			continue;
		if (segs[i].dir == HYP_TO_GUEST)
			memcpy(w.page[p] + segs[i].offset_bytes, segs[i].local, segs[i].len_bytes);
		else
			memcpy(segs[i].local, w.page[p] + segs[i].offset_bytes, segs[i].len_bytes);
	}
	if (w.on_copy)
		w.on_copy();
	return w.copy_error;
}

static int fake_bind(struct hyp *h, uint32_t domid, uint32_t port, struct hyp_evtchn **out, struct err *e)
{
	(void)domid;
	(void)e;
	*out = &w.channel[port - FIRST_PORT];
	(*out)->hyp = h;
	(*out)->fd = 1000 + (int)port;
	w.n_channels++;
	return 0;
}

static void fake_unbind(struct hyp_evtchn *ch)
{
	(void)ch;
	w.n_channels--;
}

static int fake_notify(struct hyp_evtchn *ch)
{
	w.notifies[ch - w.channel]++;
	return 0;
}

static int fake_ack(struct hyp_evtchn *ch)
{
	(void)ch;
	w.acks++;
	return 1;
}

static int fake_unmask(struct hyp_evtchn *ch)
{
	unsigned q = (unsigned)(ch - w.channel);

	w.unmasks++;
	if (w.conn->rings[q].req_cons != w.prod[q])
		w.unmask_saw_unread = true;
	return 0;
}

static const struct hyp_ops fake_ops = {.kind = "fake",
					.map_ring = fake_map,
					.unmap = fake_unmap,
					.copy = fake_copy,
					.bind = fake_bind,
					.unbind = fake_unbind,
					.notify = fake_notify,
					.ack = fake_ack,
					.unmask = fake_unmask};

/* ---- the guest ---- */

static void report(void *ctx, enum blkif_event ev)
{
	(void)ctx;
	w.events |= ev;
}

struct setup {
	bool readonly, no_barrier, no_discard, journal;
	enum blkif_abi abi;
	unsigned queues, order;
};

static void connect_with(struct setup s)
{
	struct blkif_connect o = {.hyp = &w.hyp,
				  .domid = 5,
				  .abi = s.abi,
				  .limits = {.sectors = SECTORS,
					     .writable = !s.readonly,
					     .barrier = !s.no_barrier,
					     .discard = !s.no_discard},
				  .n_queues = s.queues ? s.queues : 1,
				  .pages = 1u << s.order,
				  .run_dir = s.journal ? "/nowhere" : NULL,
				  .name = "vbd",
				  .report = report};
	struct err e = ERR_INIT;

	memset(&w, 0, sizeof(w));
	w.hyp.ops = &fake_ops;
	w.buffers = BUFS;
	for (unsigned q = 0; q < 2; q++) {
		struct blkif_shared *sh = (struct blkif_shared *)(void *)w.ring[q];

		sh->req_event = sh->rsp_event = 1;
		o.queue[q].port = FIRST_PORT + q;
		o.queue[q].grefs[0] = q;
	}
	assert_int_equal(blkif_conn_create(&o, &w.conn, &e), 0);
	assert_int_equal(blkif_conn_attach(w.conn, (struct dev *)&w), 0);
}

static void disconnect(void)
{
	assert_int_equal(blkif_conn_detach(w.conn), 0);
	assert_true(w.events & BLKIF_EV_DETACHED);
	assert_int_equal(w.outstanding, 0);
	for (unsigned q = 0; q < w.conn->n_rings; q++)
		assert_false(w.conn->rings[q].poll.armed);
	assert_false(w.conn->timer.armed);
	blkif_conn_destroy(w.conn, &w.hyp);
	assert_int_equal(w.n_channels, 0);
}

static int setup_plain(void **state)
{
	(void)state;
	connect_with((struct setup){.queues = 1});
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	disconnect();
	return 0;
}

static struct blkif_shared *shared(unsigned q)
{
	return (struct blkif_shared *)(void *)w.ring[q];
}

static unsigned char *slot_at(unsigned q, uint32_t idx)
{
	const struct blkif_ring *r = &w.conn->rings[q];

	return w.ring[q] + 64 + (size_t)(idx & (r->entries - 1)) * r->entry_bytes;
}

/* Word by word, atomically: in one test another thread writes to the ring too. */
static void shared_copy(void *to, const void *from, unsigned bytes)
{
	for (unsigned i = 0; i < bytes / 4; i++) {
		uint32_t v = __atomic_load_n((const uint32_t *)from + i, __ATOMIC_RELAXED);

		__atomic_store_n((uint32_t *)to + i, v, __ATOMIC_RELAXED);
	}
}

static void push(unsigned q, const union entry *e)
{
	shared_copy(slot_at(q, w.prod[q]++), e, w.conn->rings[q].entry_bytes);
	__atomic_store_n(&shared(q)->req_prod, w.prod[q], __ATOMIC_RELEASE);
}

/* n segments of whole pages from gref on. */
static union entry direct(uint8_t op, uint64_t id, uint64_t sector, unsigned n, unsigned page)
{
	union entry e;

	memset(&e, 0xa5, sizeof(e));
	e.req.operation = op;
	e.req.nr_segments = (uint8_t)n;
	e.req.id = id;
	e.req.sector_number = sector;
	for (unsigned i = 0; i < n && i < 11; i++)
		e.req.seg[i] =
		    (struct blkif_request_segment){.gref = GREF0 + page + i, .first_sect = 0, .last_sect = 7};
	return e;
}

static union entry indirect(uint8_t op, uint64_t id, uint64_t sector, unsigned n, unsigned table_page,
			    unsigned page)
{
	struct blkif_request_segment *seg = (struct blkif_request_segment *)(void *)w.page[table_page];
	union entry e = {.req = {0}};

	e.ind.operation = BLKIF_OP_INDIRECT;
	e.ind.indirect_op = op;
	e.ind.nr_segments = (uint16_t)n;
	e.ind.id = id;
	e.ind.sector_number = sector;
	e.ind.indirect_grefs[0] = GREF0 + table_page;
	for (unsigned i = 0; i < n && i < 512; i++)
		seg[i] = (struct blkif_request_segment){
		    .gref = GREF0 + page + i % 256, .first_sect = 0, .last_sect = 7};
	return e;
}

static union entry discard(uint64_t id, uint64_t sector, uint64_t n, uint8_t flag)
{
	union entry e = {.req = {0}};

	e.dis.operation = BLKIF_OP_DISCARD;
	e.dis.flag = flag;
	e.dis.id = id;
	e.dis.sector_number = sector;
	e.dis.nr_sectors = n;
	return e;
}

static unsigned fetch(struct blkreq **reqs, unsigned max)
{
	unsigned n;

	w.ready = false;
	n = w.conn->transport.ops->fetch(&w.conn->transport, reqs, max);
	for (unsigned i = 0; i < n; i++) {
		assert_ptr_equal(reqs[i]->transport, &w.conn->transport);
		if (reqs[i]->op != BLK_FLUSH)
			assert_true(reqs[i]->off_bytes % 512 == 0 && reqs[i]->len_bytes % 512 == 0);
		assert_true(reqs[i]->off_bytes + reqs[i]->len_bytes <= SECTORS * 512);
		if (reqs[i]->op == BLK_READ || reqs[i]->op == BLK_WRITE) {
			assert_true(reqs[i]->len_bytes > 0 && reqs[i]->len_bytes <= REQ_MAX_BYTES);
			assert_true(reqs[i]->len_bytes <= reqs[i]->buf.cap_bytes);
		}
	}
	return n;
}

static void finish(struct blkreq **reqs, unsigned n)
{
	const struct transport_ops *ops = w.conn->transport.ops;

	ops->copy_out(&w.conn->transport, reqs, n);
	for (unsigned i = 0; i < n; i++)
		ops->respond(&w.conn->transport, reqs[i]);
	ops->kick(&w.conn->transport);
}

static bool reap(unsigned q, struct blkif_response *rsp)
{
	_Alignas(4) unsigned char raw[16];

	if (w.rsp_cons[q] == __atomic_load_n(&shared(q)->rsp_prod, __ATOMIC_ACQUIRE))
		return false;
	shared_copy(raw, slot_at(q, w.rsp_cons[q]++), w.conn->abi == BLKIF_ABI_X86_64 ? 16 : 12);
	memset(rsp, 0, sizeof(*rsp));
	memcpy(&rsp->id, raw, 8);
	rsp->operation = raw[8];
	memcpy(&rsp->status, raw + 10, 2);
	assert_int_equal(raw[9], 0);
	if (w.conn->abi == BLKIF_ABI_X86_64)
		assert_memory_equal(raw + 12, "\0\0\0\0", 4);
	return true;
}

static void expect(uint64_t id, uint8_t op, int16_t status)
{
	struct blkif_response rsp;

	assert_true(reap(0, &rsp));
	assert_int_equal(rsp.id, id);
	assert_int_equal(rsp.operation, op);
	assert_int_equal(rsp.status, status);
}

static void expect_none(void)
{
	struct blkif_response rsp;

	assert_false(reap(0, &rsp));
}

/* The request is refused with `status`, the device sees nothing of it, and the ring goes on. */
static void refuses(const union entry *e, uint8_t op, int16_t status)
{
	struct blkreq *reqs[64];
	union entry good = direct(BLKIF_OP_READ, 999, 0, 1, 0);

	push(0, e);
	assert_int_equal(fetch(reqs, 64), 0);
	expect(e->req.id, op, status);
	expect_none();
	push(0, &good);
	assert_int_equal(fetch(reqs, 64), 1);
	finish(reqs, 1);
	expect(999, BLKIF_OP_READ, BLKIF_RSP_OKAY);
	assert_int_equal(w.outstanding, 0);
	assert_int_equal(w.events, 0);
}

/* ---- honest guests ---- */

static void read_is_handed_over_and_its_data_copied_out(void **state)
{
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_READ, 42, 8, 2, 3);

	(void)state;
	e.req.seg[0].first_sect = 2;
	e.req.seg[1].last_sect = 0;
	push(0, &e);
	assert_int_equal(fetch(reqs, 64), 1);
	assert_int_equal(reqs[0]->op, BLK_READ);
	assert_int_equal(reqs[0]->off_bytes, 8 * 512);
	assert_int_equal(reqs[0]->len_bytes, 7 * 512);
	expect_none();
	memset(reqs[0]->buf.mem, 0x11, 6 * 512);
	memset((char *)reqs[0]->buf.mem + 6 * 512, 0x22, 512);
	memset(w.page[3], 0xee, 2 * 4096);
	finish(reqs, 1);
	expect(42, BLKIF_OP_READ, BLKIF_RSP_OKAY);
	/* Not a byte beside the sectors named. */
	for (unsigned i = 0; i < 4096; i++) {
		assert_int_equal(w.page[3][i], i < 1024 ? 0xee : 0x11);
		assert_int_equal(w.page[4][i], i < 512 ? 0x22 : 0xee);
	}
}

static void write_data_is_there_when_handed_over(void **state)
{
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_WRITE, 1, 0, 11, 0);

	(void)state;
	for (unsigned i = 0; i < 11; i++)
		memset(w.page[i], (int)i + 1, 4096);
	push(0, &e);
	assert_int_equal(fetch(reqs, 64), 1);
	assert_int_equal(reqs[0]->op, BLK_WRITE);
	assert_int_equal(reqs[0]->len_bytes, 11 * 4096);
	for (unsigned i = 0; i < 11; i++)
		assert_int_equal(((unsigned char *)reqs[0]->buf.mem)[i * 4096 + 77], i + 1);
	finish(reqs, 1);
	expect(1, BLKIF_OP_WRITE, BLKIF_RSP_OKAY);
}

static void indirect_is_answered_with_its_inner_operation(void **state)
{
	struct blkreq *reqs[64];
	union entry e = indirect(BLKIF_OP_WRITE, 5, 16, 256, 500, 0);

	(void)state;
	push(0, &e);
	assert_int_equal(fetch(reqs, 64), 1);
	assert_int_equal(reqs[0]->op, BLK_WRITE);
	assert_int_equal(reqs[0]->len_bytes, 1 << 20);
	finish(reqs, 1);
	expect(5, BLKIF_OP_WRITE, BLKIF_RSP_OKAY);
}

static void flush_barrier_and_discard_are_handed_over(void **state)
{
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_FLUSH_DISKCACHE, 1, UINT64_MAX, 0, 0);

	(void)state;
	push(0, &e);
	e = direct(BLKIF_OP_WRITE_BARRIER, 2, 100, 3, 0);
	push(0, &e);
	e = direct(BLKIF_OP_WRITE_BARRIER, 3, UINT64_MAX, 0, 0);
	push(0, &e);
	e = discard(4, 8, SECTORS - 8, 0);
	push(0, &e);
	e = direct(BLKIF_OP_FLUSH_DISKCACHE, 5, 40, 1, 0);
	push(0, &e);
	assert_int_equal(fetch(reqs, 64), 5);
	assert_int_equal(reqs[0]->op, BLK_FLUSH);
	assert_int_equal(reqs[0]->len_bytes, 0);
	assert_int_equal(reqs[1]->op, BLK_BARRIER);
	assert_int_equal(reqs[1]->len_bytes, 3 * 4096);
	assert_int_equal(reqs[2]->op, BLK_BARRIER);
	assert_int_equal(reqs[2]->len_bytes, 0);
	assert_int_equal(reqs[3]->op, BLK_TRIM);
	assert_int_equal(reqs[3]->len_bytes, (SECTORS - 8) * 512);
	assert_int_equal(reqs[4]->op, BLK_BARRIER);
	assert_int_equal(reqs[4]->off_bytes, 40 * 512);
	finish(reqs, 5);
	expect(1, BLKIF_OP_FLUSH_DISKCACHE, 0);
	expect(2, BLKIF_OP_WRITE_BARRIER, 0);
	expect(3, BLKIF_OP_WRITE_BARRIER, 0);
	expect(4, BLKIF_OP_DISCARD, 0);
	expect(5, BLKIF_OP_FLUSH_DISKCACHE, 0);
}

static void x86_32_ring_reads_and_answers(void **state)
{
	struct blkreq *reqs[64];
	union entry e;

	(void)state;
	connect_with((struct setup){.abi = BLKIF_ABI_X86_32});
	for (unsigned i = 0; i < 100; i++) {
		uint64_t id = 0x100000000ull + i, sector = i;
		uint32_t gref = GREF0 + i;

		memset(&e, 0, sizeof(e));
		e.bytes[0] = BLKIF_OP_READ;
		e.bytes[1] = 1;
		memcpy(e.bytes + 4, &id, 8);
		memcpy(e.bytes + 12, &sector, 8);
		memcpy(e.bytes + 20, &gref, 4);
		e.bytes[25] = 7;
		push(0, &e);
		assert_int_equal(fetch(reqs, 64), 1);
		assert_int_equal(reqs[0]->off_bytes, i * 512);
		assert_int_equal(reqs[0]->len_bytes, 4096);
		memset(reqs[0]->buf.mem, (int)i, 4096);
		finish(reqs, 1);
		expect(id, BLKIF_OP_READ, 0);
		assert_int_equal(w.page[i][4095], i);
	}
	disconnect();
}

static void ring_of_order_4_holds_512(void **state)
{
	struct blkreq *reqs[512];
	unsigned n = 0, got;

	(void)state;
	connect_with((struct setup){.order = 4});
	for (unsigned i = 0; i < 512; i++) {
		union entry e = direct(BLKIF_OP_READ, i, i, 1, i);

		push(0, &e);
	}
	while ((got = fetch(reqs + n, 64))) {
		assert_true(got <= 64);
		n += got;
	}
	assert_int_equal(n, 512);
	for (unsigned i = 0; i < 512; i += 64)
		finish(reqs + i, 64);
	for (unsigned i = 0; i < 512; i++)
		expect(i, BLKIF_OP_READ, 0);
	disconnect();
}

static void indices_wrap(void **state)
{
	struct blkif_ring *r = &w.conn->rings[0];
	struct blkreq *reqs[64];

	(void)state;
	r->req_cons = r->rsp_prod = r->rsp_published = w.prod[0] = w.rsp_cons[0] = UINT32_MAX - 40;
	shared(0)->req_prod = shared(0)->rsp_prod = UINT32_MAX - 40;
	for (unsigned round = 0; round < 10; round++) {
		for (unsigned i = 0; i < 32; i++) {
			union entry e = direct(BLKIF_OP_WRITE, i, i, 1, i);

			push(0, &e);
		}
		assert_int_equal(fetch(reqs, 64), 32);
		finish(reqs, 32);
		for (unsigned i = 0; i < 32; i++)
			expect(i, BLKIF_OP_WRITE, 0);
		expect_none();
	}
	assert_int_equal(w.events, 0);
}

static void out_of_order_answers_each_come_once(void **state)
{
	struct blkreq *reqs[64], *rev[64];
	bool seen[32] = {false};
	struct blkif_response rsp;

	(void)state;
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 32; i++) {
			union entry e = direct(BLKIF_OP_READ, i, i, 1, i);

			push(0, &e);
		}
		assert_int_equal(fetch(reqs, 64), 32);
		for (unsigned i = 0; i < 32; i++)
			rev[i] = reqs[(i * 7 + round) % 32];
		for (unsigned i = 0; i < 32; i += 8)
			finish(rev + i, 8);
		memset(seen, 0, sizeof(seen));
		while (reap(0, &rsp)) {
			assert_true(rsp.id < 32);
			assert_false(seen[rsp.id]);
			seen[rsp.id] = true;
		}
		for (unsigned i = 0; i < 32; i++)
			assert_true(seen[i]);
	}
}

/* ---- batches, buffers, sleep ---- */

static void one_turn_is_one_copy_each_way(void **state)
{
	struct blkreq *reqs[64];

	(void)state;
	for (unsigned i = 0; i < 32; i++) {
		union entry e = direct(i % 2 ? BLKIF_OP_READ : BLKIF_OP_WRITE, i, i * 8, 2, i * 2);

		push(0, &e);
	}
	assert_int_equal(fetch(reqs, 64), 32);
	assert_int_equal(w.copies, 1);
	assert_int_equal(w.largest_copy, 32);
	finish(reqs, 32);
	assert_int_equal(w.copies, 2);
	assert_int_equal(w.notifies[0], 1);
}

static void batches_are_full_when_there_is_more(void **state)
{
	struct blkreq *reqs[64];

	(void)state;
	for (unsigned i = 0; i < 32; i++) {
		union entry e = indirect(BLKIF_OP_WRITE, i, 0, 256, 500, 0);

		push(0, &e);
	}
	assert_int_equal(fetch(reqs, 64), 32);
	/* 32 indirect pages, then 8192 segments in full batches. */
	assert_int_equal(w.copies, 1 + 32 * 256 / GRANT_BATCH);
	assert_int_equal(w.largest_copy, GRANT_BATCH);
	finish(reqs, 32);
}

static void without_buffers_requests_stay_in_the_ring(void **state)
{
	struct blkreq *reqs[64], *more[64];

	(void)state;
	w.buffers = 2;
	for (unsigned i = 0; i < 5; i++) {
		union entry e = direct(BLKIF_OP_WRITE, i, i, 1, i);

		push(0, &e);
	}
	assert_int_equal(fetch(reqs, 64), 2);
	assert_int_equal(w.conn->rings[0].req_cons, 2);
	assert_false(w.ready);
	assert_int_equal(w.unmasks, 0);
	assert_int_equal(w.arms, 0);
	finish(reqs, 1);
	assert_int_equal(fetch(more, 64), 1);
	finish(more, 1);
	finish(reqs + 1, 1);
	assert_int_equal(fetch(more, 64), 2);
	finish(more, 2);
	for (unsigned i = 0; i < 5; i++)
		expect(i == 1 ? 2 : i == 2 ? 1 : i, BLKIF_OP_WRITE, 0);
}

static void channel_is_unmasked_after_the_ring_was_worked_on(void **state)
{
	struct blkreq *reqs[64];

	(void)state;
	assert_int_equal(w.unmasks, 0);
	for (unsigned i = 0; i < 20; i++) {
		union entry e = direct(BLKIF_OP_READ, i, i, 1, i);

		push(0, &e);
	}
	assert_int_equal(fetch(reqs, 8), 8);
	assert_int_equal(w.unmasks, 0);
	finish(reqs, 8);
	assert_int_equal(fetch(reqs, 64), 12);
	assert_int_equal(w.unmasks, 1);
	assert_int_equal(w.arms, 1);
	assert_false(w.unmask_saw_unread);
	/* Asks to be told of the next request. */
	assert_int_equal(shared(0)->req_event, 21);
	finish(reqs, 12);
}

static void late_push(void)
{
	union entry e = direct(BLKIF_OP_READ, 77, 0, 1, 0);

	w.on_copy = NULL;
	push(0, &e);
}

/* A request that comes after the producer index was read, and before the ring sleeps, is not forgotten. */
static void last_look_finds_a_late_request(void **state)
{
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_WRITE, 1, 0, 1, 0);

	(void)state;
	push(0, &e);
	w.on_copy = late_push;
	assert_int_equal(fetch(reqs, 64), 1);
	assert_true(w.ready);
	assert_int_equal(w.arms, 0);
	finish(reqs, 1);
	assert_int_equal(fetch(reqs, 64), 1);
	assert_int_equal(w.arms, 1);
	finish(reqs, 1);
}

/* XSA-391. */
static void guest_is_notified_only_when_it_asked(void **state)
{
	struct blkreq *reqs[64];

	(void)state;
	for (unsigned i = 0; i < 6; i++) {
		union entry e = direct(BLKIF_OP_READ, i, i, 1, i);

		push(0, &e);
	}
	assert_int_equal(fetch(reqs, 64), 6);
	shared(0)->rsp_event = 3;
	finish(reqs, 1);
	finish(reqs + 1, 1);
	assert_int_equal(w.notifies[0], 0);
	finish(reqs + 2, 1);
	assert_int_equal(w.notifies[0], 1);
	finish(reqs + 3, 1);
	assert_int_equal(w.notifies[0], 1);
	shared(0)->rsp_event = 5;
	finish(reqs + 4, 2);
	assert_int_equal(w.notifies[0], 2);
}

/* XSA-331, 332. */
static void guest_that_only_notifies_is_listened_to_slowly(void **state)
{
	struct blkif_ring *r = &w.conn->rings[0];
	const struct transport_ops *ops = w.conn->transport.ops;
	struct blkreq *reqs[64];
	unsigned listened = 0;
	union entry e = direct(BLKIF_OP_READ, 1, 0, 1, 0);

	(void)state;
	assert_int_equal(fetch(reqs, 64), 0);
	while (r->poll.armed && listened < 1000) {
		r->poll.armed = false;
		ops->event(&w.conn->transport, &r->poll);
		assert_int_equal(fetch(reqs, 64), 0);
		listened++;
	}
	assert_true(listened < 100);
	assert_true(w.conn->timer.armed);
	usleep(2000);
	w.conn->timer.armed = false;
	push(0, &e);
	ops->event(&w.conn->transport, &w.conn->timer);
	assert_true(w.ready);
	assert_int_equal(fetch(reqs, 64), 1);
	assert_true(r->poll.armed);
	assert_int_equal(r->spurious, 0);
	finish(reqs, 1);
}

static void queues_take_turns(void **state)
{
	struct blkreq *reqs[64];
	unsigned of[2] = {0, 0};

	(void)state;
	connect_with((struct setup){.queues = 2, .order = 2});
	for (unsigned i = 0; i < 100; i++) {
		union entry e = direct(BLKIF_OP_READ, i, i, 1, i);

		push(0, &e);
		if (i < 10)
			push(1, &e);
	}
	assert_int_equal(fetch(reqs, 16), 16);
	for (unsigned i = 0; i < 16; i++)
		of[container_of(reqs[i], struct blkif_slot, req)->ring - w.conn->rings]++;
	assert_int_equal(of[0], 8);
	assert_int_equal(of[1], 8);
	finish(reqs, 16);
	assert_int_equal(shared(0)->rsp_prod, 8);
	assert_int_equal(shared(1)->rsp_prod, 8);
	assert_int_equal(w.notifies[0], 1);
	assert_int_equal(w.notifies[1], 1);
	disconnect();
}

/* ---- hostile guests ---- */

static void bad_counts_are_refused(void **state)
{
	static const uint8_t counts[] = {0, 12, 255};
	static const uint16_t icounts[] = {0, 257, 512, 4096, 65535};
	union entry e;

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		e = direct(BLKIF_OP_READ, 1, 0, counts[i], 0);
		refuses(&e, BLKIF_OP_READ, BLKIF_RSP_ERROR);
		e = direct(BLKIF_OP_WRITE, 2, 0, counts[i], 0);
		refuses(&e, BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
		if (!counts[i])
			continue;
		e = direct(BLKIF_OP_WRITE_BARRIER, 3, 0, counts[i], 0);
		refuses(&e, BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_ERROR);
		e = direct(BLKIF_OP_FLUSH_DISKCACHE, 3, 0, counts[i], 0);
		refuses(&e, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_RSP_ERROR);
	}
	for (unsigned i = 0; i < 5; i++) {
		e = indirect(BLKIF_OP_READ, 4, 0, icounts[i], 500, 0);
		refuses(&e, BLKIF_OP_READ, BLKIF_RSP_ERROR);
	}
	assert_int_equal(w.conn->counters.refused, 3 * 2 + 2 * 2 + 5);
}

static void bad_segments_are_refused(void **state)
{
	static const uint8_t bad[][2] = {{1, 0}, {7, 6}, {0, 8}, {8, 8}, {255, 255}, {0, 255}, {255, 0}};

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct blkif_request_segment *table = (struct blkif_request_segment *)(void *)w.page[500];
		union entry e = direct(BLKIF_OP_WRITE, 1, 0, 3, 0);

		e.req.seg[2].first_sect = bad[i][0];
		e.req.seg[2].last_sect = bad[i][1];
		refuses(&e, BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
		e = indirect(BLKIF_OP_READ, 2, 0, 200, 500, 0);
		table[199].first_sect = bad[i][0];
		table[199].last_sect = bad[i][1];
		refuses(&e, BLKIF_OP_READ, BLKIF_RSP_ERROR);
	}
}

static void ranges_beyond_the_disk_are_refused(void **state)
{
	static const uint64_t bad[] = {SECTORS,	   SECTORS - 7,	   1ull << 63,	 (1ull << 63) - 4,
				       UINT64_MAX, UINT64_MAX - 7, (1ull << 55), (1ull << 55) - 1};

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		union entry e = direct(BLKIF_OP_WRITE, 1, bad[i], 1, 0);

		refuses(&e, BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
		e = indirect(BLKIF_OP_READ, 2, bad[i], 1, 500, 0);
		refuses(&e, BLKIF_OP_READ, BLKIF_RSP_ERROR);
		e = discard(3, bad[i], 8, 0);
		refuses(&e, BLKIF_OP_DISCARD, BLKIF_RSP_ERROR);
		e = direct(BLKIF_OP_WRITE_BARRIER, 4, bad[i], 1, 0);
		refuses(&e, BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_ERROR);
	}
	union entry e = discard(5, 1, UINT64_MAX, 0);

	refuses(&e, BLKIF_OP_DISCARD, BLKIF_RSP_ERROR);
	e = discard(6, 0, 0, 0);
	refuses(&e, BLKIF_OP_DISCARD, BLKIF_RSP_ERROR);
	e = discard(7, 0, SECTORS + 1, 0);
	refuses(&e, BLKIF_OP_DISCARD, BLKIF_RSP_ERROR);
}

static void the_last_sector_is_reachable(void **state)
{
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_READ, 1, SECTORS - 8, 1, 0);

	(void)state;
	push(0, &e);
	assert_int_equal(fetch(reqs, 64), 1);
	finish(reqs, 1);
	expect(1, BLKIF_OP_READ, 0);
}

static void unknown_operations_are_not_supported(void **state)
{
	static const uint8_t ops[] = {4, 7, 8, 128, 255};

	(void)state;
	for (unsigned i = 0; i < sizeof(ops); i++) {
		union entry e = direct(ops[i], 1, 0, 1, 0);

		refuses(&e, ops[i], BLKIF_RSP_EOPNOTSUPP);
	}
}

static void indirect_wraps_reads_and_writes_only(void **state)
{
	static const uint8_t ops[] = {BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_DISCARD,
				      BLKIF_OP_INDIRECT, 77};

	(void)state;
	for (unsigned i = 0; i < sizeof(ops); i++) {
		union entry e = indirect(ops[i], 1, 0, 4, 500, 0);

		refuses(&e, ops[i], BLKIF_RSP_ERROR);
	}
}

static void secure_discard_is_not_supported(void **state)
{
	union entry e = discard(1, 0, 8, 1);

	(void)state;
	refuses(&e, BLKIF_OP_DISCARD, BLKIF_RSP_EOPNOTSUPP);
}

static void read_only_disks_refuse_every_change(void **state)
{
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_WRITE, 1, 0, 1, 0);

	(void)state;
	connect_with((struct setup){.readonly = true, .no_discard = true});
	refuses(&e, BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
	e = indirect(BLKIF_OP_WRITE, 2, 0, 20, 500, 0);
	refuses(&e, BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
	e = direct(BLKIF_OP_WRITE_BARRIER, 3, 0, 1, 0);
	refuses(&e, BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_ERROR);
	e = direct(BLKIF_OP_FLUSH_DISKCACHE, 4, 0, 1, 0);
	refuses(&e, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_RSP_ERROR);
	e = discard(5, 0, 8, 0);
	refuses(&e, BLKIF_OP_DISCARD, BLKIF_RSP_EOPNOTSUPP);
	e = direct(BLKIF_OP_FLUSH_DISKCACHE, 6, 0, 0, 0);
	push(0, &e);
	assert_int_equal(fetch(reqs, 64), 1);
	finish(reqs, 1);
	disconnect();
}

static void barriers_not_offered_are_not_supported(void **state)
{
	union entry e = direct(BLKIF_OP_WRITE_BARRIER, 3, 0, 1, 0);

	(void)state;
	connect_with((struct setup){.no_barrier = true});
	refuses(&e, BLKIF_OP_WRITE_BARRIER, BLKIF_RSP_EOPNOTSUPP);
	disconnect();
}

/* XSA-362, 365. */
static void bad_gref_fails_its_request_and_no_other(void **state)
{
	struct blkreq *reqs[64];

	(void)state;
	w.revoked[5] = true;
	for (unsigned i = 0; i < 3; i++) {
		union entry e = direct(BLKIF_OP_WRITE, i, i * 100, 3, i * 3 + 1);

		push(0, &e);
	}
	assert_int_equal(fetch(reqs, 64), 2);
	assert_int_equal(w.copies, 1);
	assert_int_equal(w.largest_copy, 9);
	assert_int_equal(reqs[0]->off_bytes, 0);
	assert_int_equal(reqs[1]->off_bytes, 200 * 512);
	expect(1, BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
	finish(reqs, 2);
	expect(0, BLKIF_OP_WRITE, 0);
	expect(2, BLKIF_OP_WRITE, 0);
}

static void bad_gref_of_a_read_fails_it_alone(void **state)
{
	struct blkreq *reqs[64];

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		union entry e = direct(BLKIF_OP_READ, i, i * 100, 3, i * 3);

		push(0, &e);
	}
	assert_int_equal(fetch(reqs, 64), 3);
	w.revoked[4] = true; /* between request and answer */
	finish(reqs, 3);
	expect(0, BLKIF_OP_READ, 0);
	expect(1, BLKIF_OP_READ, BLKIF_RSP_ERROR);
	expect(2, BLKIF_OP_READ, 0);
	assert_int_equal(w.conn->counters.copy_failures, 1);
}

static void bad_indirect_page_is_refused(void **state)
{
	union entry e = indirect(BLKIF_OP_READ, 1, 0, 20, 500, 0);

	(void)state;
	e.ind.indirect_grefs[0] = 0;
	refuses(&e, BLKIF_OP_READ, BLKIF_RSP_ERROR);
	e.ind.indirect_grefs[0] = UINT32_MAX;
	refuses(&e, BLKIF_OP_READ, BLKIF_RSP_ERROR);
	assert_int_equal(w.conn->counters.copy_failures, 2);
}

static void dead_guest_fails_all_and_nothing_else(void **state)
{
	struct blkreq *reqs[64];

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		union entry e = direct(i < 2 ? BLKIF_OP_READ : BLKIF_OP_WRITE, i, i * 100, 3, i * 3);

		push(0, &e);
	}
	w.copy_error = -ESRCH;
	assert_int_equal(fetch(reqs, 64), 2);
	finish(reqs, 2);
	expect(2, BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
	expect(3, BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
	expect(0, BLKIF_OP_READ, BLKIF_RSP_ERROR);
	expect(1, BLKIF_OP_READ, BLKIF_RSP_ERROR);
}

/* XSA-403: what the buffer held before is another guest's. */
static void failed_read_shows_no_old_bytes(void **state)
{
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_READ, 1, 0, 1, 9);

	(void)state;
	memset(w.page[9], 0x77, 4096);
	push(0, &e);
	assert_int_equal(fetch(reqs, 64), 1);
	reqs[0]->status = -EIO;
	finish(reqs, 1);
	expect(1, BLKIF_OP_READ, BLKIF_RSP_ERROR);
	for (unsigned i = 0; i < 4096; i++)
		assert_int_equal(w.page[9][i], 0x77);
}

static void duplicate_ids_are_answered_as_often_as_asked(void **state)
{
	struct blkreq *reqs[64];

	(void)state;
	for (unsigned i = 0; i < 5; i++) {
		union entry e = direct(BLKIF_OP_READ, 3, 0, 1, 0);

		push(0, &e);
	}
	assert_int_equal(fetch(reqs, 64), 5);
	finish(reqs, 5);
	for (unsigned i = 0; i < 5; i++)
		expect(3, BLKIF_OP_READ, 0);
	expect_none();
}

static void rewrite_entry(void)
{
	union entry evil = direct(BLKIF_OP_WRITE, 666, UINT64_MAX, 255, 500);

	for (unsigned i = 0; i < 11; i++)
		evil.req.seg[i].last_sect = 255;
	memcpy(slot_at(0, 0), &evil, 112);
}

/* XSA-155: the guest rewrites the entry as soon as it was copied. */
static void entry_is_read_once(void **state)
{
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_READ, 1, 64, 2, 3);

	(void)state;
	push(0, &e);
	w.on_buf_get = rewrite_entry;
	assert_int_equal(fetch(reqs, 64), 1);
	assert_int_equal(reqs[0]->op, BLK_READ);
	assert_int_equal(reqs[0]->off_bytes, 64 * 512);
	assert_int_equal(reqs[0]->len_bytes, 2 * 4096);
	memset(reqs[0]->buf.mem, 0x33, 8192);
	finish(reqs, 1);
	expect(1, BLKIF_OP_READ, 0);
	assert_int_equal(w.page[3][0], 0x33);
	assert_int_equal(w.page[4][4095], 0x33);
}

static void rewrite_table(void)
{
	memset(w.page[500], 0xff, 4096);
}

static void indirect_page_is_read_once(void **state)
{
	struct blkreq *reqs[64];
	union entry e = indirect(BLKIF_OP_WRITE, 1, 64, 100, 500, 0);

	(void)state;
	push(0, &e);
	w.on_copy = rewrite_table;
	assert_int_equal(fetch(reqs, 64), 1);
	assert_int_equal(reqs[0]->len_bytes, 100 * 4096);
	finish(reqs, 1);
	expect(1, BLKIF_OP_WRITE, 0);
}

static void breaks_with(uint32_t req_prod)
{
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_READ, 1, 0, 1, 0);

	connect_with((struct setup){.queues = 1});
	push(0, &e);
	push(0, &e);
	assert_int_equal(fetch(reqs, 64), 2);
	shared(0)->req_prod = req_prod;
	assert_int_equal(fetch(reqs + 2, 62), 0);
	assert_true(w.events & BLKIF_EV_BROKEN);
	assert_non_null(strstr(w.conn->reason, "req_prod"));
	/* What was in flight is answered; nothing more is read, whatever the index says then. */
	finish(reqs, 2);
	expect(1, BLKIF_OP_READ, 0);
	expect(1, BLKIF_OP_READ, 0);
	shared(0)->req_prod = 3;
	assert_int_equal(fetch(reqs, 64), 0);
	assert_int_equal(w.conn->rings[0].req_cons, 2);
	disconnect();
}

static void producer_index_out_of_reach_stops_the_ring(void **state)
{
	(void)state;
	breaks_with(33);
	breaks_with(2 + 33);
	breaks_with(0x80000000);
	breaks_with(UINT32_MAX);
	breaks_with(1); /* back */
	breaks_with(0);
}

static void flood_of_bad_requests_is_bounded_per_turn(void **state)
{
	struct blkreq *reqs[64];

	(void)state;
	connect_with((struct setup){.order = 4});
	for (unsigned i = 0; i < 512; i++) {
		union entry e = direct(99, i, 0, 1, 0);

		push(0, &e);
	}
	for (unsigned turn = 1; turn <= 8; turn++) {
		assert_int_equal(fetch(reqs, 64), 0);
		assert_int_equal(w.conn->rings[0].req_cons, turn * BLKIF_FETCH_MAX);
		assert_true(turn == 8 || w.ready);
	}
	for (unsigned i = 0; i < 512; i++)
		expect(i, 99, BLKIF_RSP_EOPNOTSUPP);
	disconnect();
}

/* ---- the journal ---- */

static void journal_has_each_request_until_its_answer_is_out(void **state)
{
	const struct transport_ops *ops;
	struct blkreq *reqs[64];
	union entry e = direct(BLKIF_OP_READ, 0x55, 7, 1, 0);

	(void)state;
	connect_with((struct setup){.journal = true});
	ops = w.conn->transport.ops;
	push(0, &e);
	push(0, &e);
	assert_int_equal(fetch(reqs, 64), 2);
	assert_int_equal(w.consumed, 2);
	assert_int_equal(w.journal[0][0].state, RING_SLOT_TAKEN);
	assert_int_equal(w.journal[0][1].state, RING_SLOT_TAKEN);
	assert_int_equal(w.journal[0][1].ring_idx, 1);
	assert_int_equal(w.journal[0][1].arrival, 1);
	assert_memory_equal(w.journal[0][1].request, &e, 112);
	reqs[1]->status = -EIO;
	ops->copy_out(&w.conn->transport, reqs + 1, 1);
	ops->respond(&w.conn->transport, reqs[1]);
	assert_int_equal(w.journal[0][1].state, RING_SLOT_DONE);
	assert_int_equal(w.journal[0][1].status, BLKIF_RSP_ERROR);
	assert_int_equal(w.journal[0][1].rsp_idx, 0);
	assert_int_equal(w.published, 0);
	assert_int_equal(shared(0)->rsp_prod, 0);
	ops->kick(&w.conn->transport);
	assert_int_equal(w.journal[0][1].state, RING_SLOT_FREE);
	assert_int_equal(w.journal[0][0].state, RING_SLOT_TAKEN);
	assert_int_equal(w.published, 1);
	assert_int_equal(shared(0)->rsp_prod, 1);
	finish(reqs, 1);
	disconnect();
}

/* ---- random rings ---- */

static uint64_t rng_state = 88172645463325252ull;

static uint64_t rnd(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

static atomic_bool flipping;

/* XSA-155 once more, blindly: bytes of entries change while they are read. */
static void *flip(void *arg)
{
	uint64_t x = 12345;

	(void)arg;
	while (atomic_load(&flipping)) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		__atomic_store_n(&w.ring[0][64 + (x >> 33) % (32 * 112)], (unsigned char)(x >> 20),
				 __ATOMIC_RELAXED);
	}
	return NULL;
}

/* Random entries, half-sane so that many pass the door: every one consumed is answered exactly once, and what
 * passes is in bounds. */
static void random_entries_never_pass_the_bounds(void **state)
{
	struct blkreq *reqs[64];
	pthread_t thread;

	(void)state;
	atomic_store(&flipping, true);
	assert_int_equal(pthread_create(&thread, NULL, flip, NULL), 0);
	for (unsigned round = 0; round < 20000; round++) {
		unsigned n = (unsigned)(rnd() % 33), got;
		uint32_t before = w.conn->rings[0].rsp_published;

		for (unsigned i = 0; i < n; i++) {
			union entry e = direct((uint8_t)(rnd() % 8), rnd(), rnd() % (SECTORS + 100),
					       (unsigned)(rnd() % 13), (unsigned)(rnd() % 400));
			unsigned hits = (unsigned)(rnd() % 4);

			for (unsigned h = 0; h < hits; h++)
				e.bytes[rnd() % 112] = (unsigned char)rnd();
			push(0, &e);
		}
		got = fetch(reqs, 64);
		finish(reqs, got);
		assert_int_equal(w.conn->rings[0].rsp_published - before, n);
		assert_int_equal(w.outstanding, 0);
	}
	atomic_store(&flipping, false);
	pthread_join(thread, NULL);
	assert_int_equal(w.events, 0);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup_plain, teardown)
#define BARE(f) cmocka_unit_test(f) /* connects by itself */

int main(void)
{
	const struct CMUnitTest tests[] = {
	    CASE(read_is_handed_over_and_its_data_copied_out),
	    CASE(write_data_is_there_when_handed_over),
	    CASE(indirect_is_answered_with_its_inner_operation),
	    CASE(flush_barrier_and_discard_are_handed_over),
	    BARE(x86_32_ring_reads_and_answers),
	    BARE(ring_of_order_4_holds_512),
	    CASE(indices_wrap),
	    CASE(out_of_order_answers_each_come_once),
	    CASE(one_turn_is_one_copy_each_way),
	    CASE(batches_are_full_when_there_is_more),
	    CASE(without_buffers_requests_stay_in_the_ring),
	    CASE(channel_is_unmasked_after_the_ring_was_worked_on),
	    CASE(last_look_finds_a_late_request),
	    CASE(guest_is_notified_only_when_it_asked),
	    CASE(guest_that_only_notifies_is_listened_to_slowly),
	    BARE(queues_take_turns),
	    CASE(bad_counts_are_refused),
	    CASE(bad_segments_are_refused),
	    CASE(ranges_beyond_the_disk_are_refused),
	    CASE(the_last_sector_is_reachable),
	    CASE(unknown_operations_are_not_supported),
	    CASE(indirect_wraps_reads_and_writes_only),
	    CASE(secure_discard_is_not_supported),
	    BARE(read_only_disks_refuse_every_change),
	    BARE(barriers_not_offered_are_not_supported),
	    CASE(bad_gref_fails_its_request_and_no_other),
	    CASE(bad_gref_of_a_read_fails_it_alone),
	    CASE(bad_indirect_page_is_refused),
	    CASE(dead_guest_fails_all_and_nothing_else),
	    CASE(failed_read_shows_no_old_bytes),
	    CASE(duplicate_ids_are_answered_as_often_as_asked),
	    CASE(entry_is_read_once),
	    CASE(indirect_page_is_read_once),
	    BARE(producer_index_out_of_reach_stops_the_ring),
	    BARE(flood_of_bad_requests_is_bounded_per_turn),
	    BARE(journal_has_each_request_until_its_answer_is_out),
	    CASE(random_entries_never_pass_the_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
