/*
 * A block backend for the tests of simguest: a RAM disk that serves blkif on simxen, and can be told to
 * misbehave in one way. It is kept apart from blkd on purpose (a guest that is only tested with the backend
 * it tests proves nothing), and small: it trusts the guest, handles a batch of requests at once and answers
 * it in reverse order, because order of answers is free.
 *
 * One thread: sb_serve() plays the backend until the given process has ended.
 */
#ifndef TESTS_SIMBACK_H
#define TESTS_SIMBACK_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <xenstore.h>

#include "sim/simproto.h"

#define SB_PAGE	   SIM_PAGE_BYTES
#define SB_QUEUES  4u
#define SB_SECTORS 16384u /* 8 MiB */
#define SB_BATCH   64u
#define SB_KIND	   "vbd3"

enum mischief {
	GOOD,
	DOUBLE_RESPONSE,
	WRONG_ID,
	STALE_ID,
	WRONG_OP,
	INDIRECT_ANSWERED_AS_INDIRECT,
	UNKNOWN_STATUS,
	PADDING_GARBAGE,
	RSP_PROD_AHEAD,
	CORRUPT_BYTE,
	LOST_WRITE,
	MISPLACED_WRITE,
	STALE_READ,
	NOTHING_COPIED,
	OTHER_SECTORS_READ,
	TOUCHES_OUTSIDE,
	CHANGES_WRITE_BUFFER,
	FAILS_A_READ,
	FAILED_READ_LEAKS,
	FAILED_WRITE_LANDS, /* legal */
	TRIM_TO_GARBAGE,
	TRIM_UNCOVERS_OLDER,
	TRIM_TO_ZERO_THEN_BACK,
	NO_FLUSH_ANSWER,
	OVERLAP_OUT_OF_ORDER,
	CLOSES_MIDWAY,
	VANISHES,
	ANSWERS_AFTER_CLOSE,
	NEVER_CLOSES,
	REFUSES,
	READ_ONLY_YET_WRITES,
};

struct sb_ring {
	uint8_t *shared;
	uint32_t nent, req_cons, rsp_prod, port;
	int wait_fd, notify_fd;
};

/* A request, parsed. */
struct sb_req {
	uint8_t op, inner, flag;
	uint32_t nseg;
	uint64_t id, sector, nr_sectors;
	uint8_t seg[256][8];
};

struct simback {
	/* what it offers; set before sb_serve() */
	uint32_t max_order, max_queues, max_indirect, barrier, flush, discard, info;
	enum mischief mischief;
	unsigned trigger; /* the mischief strikes at this many requests of its kind */
	uint64_t grow_at, grown_sectors;
	uint64_t term_after; /* requests, then SIGTERM to the guest; 0: never */
	uint32_t only_devid; /* 0: any disk */

	char be[128], fe[128];
	int hyp;
	pid_t guest;
	struct xs_handle *xs;
	uint32_t domid, devid;
	uint64_t npages;
	uint8_t *mem;
	const struct sim_grant *grants;
	bool abi32;
	struct sb_ring ring[SB_QUEUES];
	unsigned nrings, state, order;
	uint8_t *disk, *old; /* old: what each sector held before its last write */
	uint64_t sectors, requests, indirects, discards, flushes, barriers, reads, writes, max_segments,
	    connects;
	struct sb_req held; /* OVERLAP_OUT_OF_ORDER */
	unsigned struck;
};

/* ---- hypervisor protocol ---- */

static int sb_hypcall(struct simback *b, struct sim_req req, struct sim_rsp *rsp, int *fds, unsigned nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(4 * sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = rsp, .iov_len = sizeof(*rsp)};
	struct msghdr msg = {
	    .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	struct cmsghdr *c;

	req.magic = SIM_MAGIC;
	if (send(b->hyp, &req, sizeof(req), MSG_NOSIGNAL) != (ssize_t)sizeof(req) ||
	    recvmsg(b->hyp, &msg, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(*rsp))
		return -EIO;
	if (rsp->error)
		return rsp->error;
	c = CMSG_FIRSTHDR(&msg);
	if (nfds && (!c || c->cmsg_len != CMSG_LEN(nfds * sizeof(int))))
		return -EPROTO;
	if (nfds)
		memcpy(fds, CMSG_DATA(c), nfds * sizeof(int));
	return 0;
}

static int sb_map_domain(struct simback *b)
{
	struct sim_rsp rsp;
	int fds[2];
	int err = sb_hypcall(b, (struct sim_req){.op = SIM_MAP, .domid = b->domid}, &rsp, fds, 2);

	if (err)
		return err;
	b->npages = rsp.count;
	b->mem = mmap(NULL, b->npages * SB_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	b->grants = mmap(NULL, SIM_GRANTS * sizeof(*b->grants), PROT_READ, MAP_SHARED, fds[1], 0);
	close(fds[0]);
	close(fds[1]);
	return b->mem == MAP_FAILED || (const void *)b->grants == MAP_FAILED ? -ENOMEM : 0;
}

static void sb_unmap_domain(struct simback *b)
{
	if (!b->mem)
		return;
	munmap(b->mem, b->npages * SB_PAGE);
	munmap((void *)(uintptr_t)b->grants, SIM_GRANTS * sizeof(*b->grants));
	b->mem = NULL;
}

/* NULL: no such grant. */
static uint8_t *sb_grant(struct simback *b, uint32_t gref, bool write)
{
	struct sim_grant g;

	if (gref < 8 || gref >= SIM_GRANTS)
		return NULL;
	g.flags = __atomic_load_n(&b->grants[gref].flags, __ATOMIC_ACQUIRE);
	g.page = b->grants[gref].page;
	g.domid = b->grants[gref].domid;
	if (!(g.flags & SIM_GRANT_VALID) || g.domid != 0 || (write && g.flags & SIM_GRANT_READONLY) ||
	    g.page >= b->npages)
		return NULL;
	return b->mem + (size_t)g.page * SB_PAGE;
}

/* ---- xenstore ---- */

static long sb_read(struct simback *b, const char *dir, const char *node, long missing)
{
	char path[256], *value;
	unsigned len;
	long n;

	snprintf(path, sizeof(path), "%s/%s", dir, node);
	value = xs_read(b->xs, XBT_NULL, path, &len);
	n = value ? strtol(value, NULL, 10) : missing;
	free(value);
	return n;
}

static void sb_write(struct simback *b, const char *dir, const char *node, uint64_t value)
{
	char path[256], text[32];
	int len = snprintf(text, sizeof(text), "%" PRIu64, value);

	snprintf(path, sizeof(path), "%s/%s", dir, node);
	if (!xs_write(b->xs, XBT_NULL, path, text, (unsigned)len))
		fprintf(stderr, "simback: cannot write %s\n", path);
}

static void sb_state(struct simback *b, unsigned state)
{
	b->state = state;
	sb_write(b, b->be, "state", state);
}

/* The first disk of one domain that waits for a backend. */
static bool sb_find_in(struct simback *b, uint32_t domid)
{
	char path[128], **dev;
	unsigned n = 0;
	bool found = false;

	snprintf(path, sizeof(path), "/local/domain/0/backend/" SB_KIND "/%u", domid);
	dev = xs_directory(b->xs, XBT_NULL, path, &n);
	for (unsigned i = 0; dev && i < n && !found; i++) {
		b->domid = domid;
		b->devid = (uint32_t)strtoul(dev[i], NULL, 10);
		snprintf(b->be, sizeof(b->be), "/local/domain/0/backend/" SB_KIND "/%u/%u", domid, b->devid);
		snprintf(b->fe, sizeof(b->fe), "/local/domain/%u/device/vbd/%u", domid, b->devid);
		found = (!b->only_devid || b->devid == b->only_devid) && sb_read(b, b->be, "state", 0) == 1;
	}
	free(dev);
	if (!found)
		b->be[0] = 0;
	return found;
}

static bool sb_find(struct simback *b)
{
	unsigned n = 0;
	char **dom = xs_directory(b->xs, XBT_NULL, "/local/domain/0/backend/" SB_KIND, &n);
	bool found = false;

	for (unsigned i = 0; dom && i < n && !found; i++)
		found = sb_find_in(b, (uint32_t)strtoul(dom[i], NULL, 10));
	free(dom);
	return found;
}

/* ---- rings ---- */

static int sb_open_ring(struct simback *b, const char *dir, struct sb_ring *r)
{
	uint32_t order = (uint32_t)sb_read(b, b->fe, "ring-page-order", 0), size = b->abi32 ? 108 : 112, n;
	struct sim_rsp rsp;
	int fds[2];

	b->order = order;
	r->shared = sb_grant(b, (uint32_t)sb_read(b, dir, order ? "ring-ref0" : "ring-ref", 0), true);
	if (!r->shared)
		return -EFAULT;
	/* simguest's ring pages are neighbours; a backend that maps them one by one need not know. */
	for (uint32_t i = 1; i < 1u << order; i++) {
		char node[32];

		snprintf(node, sizeof(node), "ring-ref%u", i);
		if (sb_grant(b, (uint32_t)sb_read(b, dir, node, 0), true) != r->shared + (size_t)i * SB_PAGE)
			return -EFAULT;
	}
	n = ((SB_PAGE << order) - 64) / size;
	r->nent = 1u << (31 - __builtin_clz(n));
	r->req_cons = r->rsp_prod = 0;
	if (sb_hypcall(b,
		       (struct sim_req){.op = SIM_EVTCHN_BIND,
					.domid = b->domid,
					.port = (uint32_t)sb_read(b, dir, "event-channel", 0)},
		       &rsp, fds, 2))
		return -EINVAL;
	r->port = rsp.port;
	r->wait_fd = fds[0];
	r->notify_fd = fds[1];
	return 0;
}

static int sb_open_rings(struct simback *b)
{
	char path[160], *proto;
	unsigned len;
	int err = sb_map_domain(b);

	snprintf(path, sizeof(path), "%s/protocol", b->fe);
	proto = xs_read(b->xs, XBT_NULL, path, &len);
	b->abi32 = proto && !strcmp(proto, "x86_32-abi");
	free(proto);
	b->nrings = (unsigned)sb_read(b, b->fe, "multi-queue-num-queues", 1);
	for (unsigned i = 0; i < b->nrings && !err; i++) {
		if (b->nrings == 1)
			snprintf(path, sizeof(path), "%s", b->fe);
		else
			snprintf(path, sizeof(path), "%s/queue-%u", b->fe, i);
		err = sb_open_ring(b, path, &b->ring[i]);
	}
	return err;
}

static void sb_close_rings(struct simback *b)
{
	struct sim_rsp rsp;

	for (unsigned i = 0; i < b->nrings; i++) {
		sb_hypcall(b, (struct sim_req){.op = SIM_EVTCHN_CLOSE, .port = b->ring[i].port}, &rsp, NULL,
			   0);
		close(b->ring[i].wait_fd);
		close(b->ring[i].notify_fd);
	}
	b->nrings = 0;
	sb_unmap_domain(b);
}

static uint32_t *sb_index(struct sb_ring *r, unsigned i) /* req_prod, req_event, rsp_prod, rsp_event */
{
	return (uint32_t *)(void *)r->shared + i;
}

static uint32_t sb_u32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static uint64_t sb_u64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static void sb_parse(struct simback *b, const uint8_t *e, struct sb_req *q)
{
	unsigned id = b->abi32 ? 4 : 8;

	memset(q, 0, sizeof(*q));
	q->op = q->inner = e[0];
	q->id = sb_u64(e + id);
	q->sector = sb_u64(e + id + 8);
	if (q->op == 5) {
		q->nr_sectors = sb_u64(e + id + 16);
	} else if (q->op == 6) {
		const uint8_t *page = sb_grant(b, sb_u32(e + id + 20), false);

		q->inner = e[1];
		q->nseg = (uint32_t)e[2] | (uint32_t)e[3] << 8;
		if (page && q->nseg <= 256)
			memcpy(q->seg, page, q->nseg * 8u);
		b->indirects++;
	} else {
		q->nseg = e[1];
		memcpy(q->seg, e + id + 16, q->nseg * 8u);
	}
	if (q->nseg > b->max_segments)
		b->max_segments = q->nseg;
}

static void sb_respond(struct simback *b, struct sb_ring *r, uint64_t id, uint8_t op, int16_t status,
		       uint8_t pad)
{
	uint8_t *p = r->shared + 64 + (size_t)(r->rsp_prod++ & (r->nent - 1)) * (b->abi32 ? 108 : 112);

	memset(p, 0, b->abi32 ? 12 : 16);
	memcpy(p, &id, 8);
	p[8] = op;
	p[9] = pad;
	memcpy(p + 10, &status, 2);
}

static void sb_kick(struct sb_ring *r, uint32_t old)
{
	uint64_t one = 1;

	if (old == r->rsp_prod)
		return;
	__atomic_store_n(sb_index(r, 2), r->rsp_prod, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (r->rsp_prod - __atomic_load_n(sb_index(r, 3), __ATOMIC_RELAXED) < r->rsp_prod - old &&
	    write(r->notify_fd, &one, sizeof(one)) < 0)
		fprintf(stderr, "simback: notify: %s\n", strerror(errno));
}

/* ---- requests ---- */

/* The mischief `m` strikes once, at the trigger-th time it could. */
static bool sb_strike(struct simback *b, enum mischief m)
{
	return b->mischief == m && b->struck++ == b->trigger;
}

static void sb_store(struct simback *b, uint64_t sector, const uint8_t *from)
{
	memcpy(b->old + sector * 512, b->disk + sector * 512, 512);
	memcpy(b->disk + sector * 512, from, 512);
}

static void sb_write_segment(struct simback *b, uint64_t sector, uint8_t *data, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		sb_store(b, sector + i, data + (size_t)i * 512);
}

static void sb_read_segment(struct simback *b, uint64_t sector, uint8_t *page, uint8_t *data, uint32_t n)
{
	bool outside = n < 8 && sb_strike(b, TOUCHES_OUTSIDE);
	const uint8_t *from = b->disk + sector * 512;

	if (sb_strike(b, NOTHING_COPIED))
		return;
	if (sb_strike(b, OTHER_SECTORS_READ))
		from = b->disk + (sector >= 64 ? sector - 64 : sector + 64) * 512;
	if (sb_strike(b, STALE_READ))
		from = b->old + sector * 512;
	memcpy(data, from, (size_t)n * 512);
	if (sb_strike(b, CORRUPT_BYTE))
		data[n * 512 - 3] ^= 0x10;
	if (outside)
		(data > page ? data[-1]++ : data[n * 512]++);
}

static int sb_transfer(struct simback *b, struct sb_req *q, bool write)
{
	uint64_t sector = q->sector;

	for (uint32_t i = 0; i < q->nseg; i++) {
		uint8_t *page = sb_grant(b, sb_u32(q->seg[i]), !write), *data;
		uint32_t first = q->seg[i][4], last = q->seg[i][5], n = last - first + 1;

		if (!page || last > 7 || first > last || sector + n > b->sectors)
			return -1;
		data = page + first * 512;
		if (write)
			sb_write_segment(b, sector, data, n);
		else
			sb_read_segment(b, sector, page, data, n);
		if (write && sb_strike(b, CHANGES_WRITE_BUFFER))
			data[5] ^= 1;
		sector += n;
	}
	return 0;
}

static int sb_write_op(struct simback *b, struct sb_req *q)
{
	b->writes++;
	if (b->info & 4 && b->mischief != READ_ONLY_YET_WRITES)
		return -1;
	if (sb_strike(b, LOST_WRITE))
		return 0;
	if (sb_strike(b, MISPLACED_WRITE))
		q->sector = q->sector >= 16 ? q->sector - 16 : q->sector + 16;
	if (b->mischief == FAILED_WRITE_LANDS && b->struck++ % 8 == 0) {
		sb_transfer(b, q, true);
		return -1;
	}
	return sb_transfer(b, q, true);
}

static int sb_read_op(struct simback *b, struct sb_req *q)
{
	b->reads++;
	if (sb_strike(b, FAILS_A_READ))
		return -1;
	if (sb_strike(b, FAILED_READ_LEAKS)) {
		uint8_t *page = sb_grant(b, sb_u32(q->seg[0]), true);

		if (page)
			memset(page + q->seg[0][4] * 512, 0x77, 512);
		return -1;
	}
	return sb_transfer(b, q, false);
}

static int sb_discard_op(struct simback *b, const struct sb_req *q)
{
	static const uint8_t zero[512];

	b->discards++;
	if (q->nr_sectors > b->sectors || q->sector > b->sectors - q->nr_sectors)
		return -1;
	for (uint64_t s = q->sector; s < q->sector + q->nr_sectors; s++) {
		if (b->mischief == TRIM_TO_GARBAGE)
			memset(b->disk + s * 512, 0x5a, 512);
		else if (b->mischief == TRIM_UNCOVERS_OLDER)
			memcpy(b->disk + s * 512, b->old + s * 512, 512);
		else if (s & 1 ||
			 b->mischief ==
			     TRIM_TO_ZERO_THEN_BACK) /* the others stay as they are, which is legal */
			sb_store(b, s, zero);
	}
	return 0;
}

static int sb_execute(struct simback *b, struct sb_req *q)
{
	b->requests++;
	switch (q->inner) {
	case 0:
		return sb_read_op(b, q);
	case 1:
		return sb_write_op(b, q);
	case 2:
		b->barriers++;
		return q->nseg ? sb_transfer(b, q, true) : 0;
	case 3:
		b->flushes++;
		return 0;
	case 5:
		return sb_discard_op(b, q);
	default:
		return -2;
	}
}

static void sb_answer(struct simback *b, struct sb_ring *r, const struct sb_req *q, int status)
{
	uint8_t op = q->inner;
	uint64_t id = q->id;

	if (q->op == 6 && sb_strike(b, INDIRECT_ANSWERED_AS_INDIRECT))
		op = 6;
	if (sb_strike(b, WRONG_OP))
		op = op == 0 ? 1 : 0;
	if (sb_strike(b, WRONG_ID))
		id = (id & ~0xffffffffull) | 0xffff;
	if (sb_strike(b, STALE_ID))
		id -= 1ull << 32;
	if (sb_strike(b, UNKNOWN_STATUS))
		status = -5;
	if (q->op == 3 && b->mischief == NO_FLUSH_ANSWER)
		return;
	sb_respond(b, r, id, op, (int16_t)status, sb_strike(b, PADDING_GARBAGE) ? 0x99 : 0);
	if (sb_strike(b, DOUBLE_RESPONSE))
		sb_respond(b, r, id, op, (int16_t)status, 0);
	if (sb_strike(b, RSP_PROD_AHEAD))
		r->rsp_prod += r->nent + 1;
}

/* One batch. A write that OVERLAP_OUT_OF_ORDER chose runs at the end of its batch, after those that came
 * later. */
static bool sb_turn(struct simback *b, struct sb_ring *r)
{
	static struct sb_req batch[SB_BATCH];
	static int status[SB_BATCH];
	uint32_t prod = __atomic_load_n(sb_index(r, 0), __ATOMIC_ACQUIRE), old = r->rsp_prod, n = 0;
	bool hold = false;

	for (; r->req_cons != prod && n < SB_BATCH; n++) {
		uint8_t entry[112];

		memcpy(entry, r->shared + 64 + (size_t)(r->req_cons & (r->nent - 1)) * (b->abi32 ? 108 : 112),
		       b->abi32 ? 108 : 112);
		r->req_cons++;
		sb_parse(b, entry, &batch[n]);
		if (b->mischief == OVERLAP_OUT_OF_ORDER && batch[n].inner == 1 && !hold &&
		    prod - r->req_cons > 4) {
			hold = true;
			b->held = batch[n];
			status[n] = 0;
			continue;
		}
		status[n] = sb_execute(b, &batch[n]);
	}
	if (hold)
		sb_execute(b, &b->held);
	for (uint32_t i = n; i-- > 0;)
		sb_answer(b, r, &batch[i], status[i]);
	sb_kick(r, old);
	__atomic_store_n(sb_index(r, 1), r->req_cons + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return n || __atomic_load_n(sb_index(r, 0), __ATOMIC_ACQUIRE) != r->req_cons;
}

/* ---- handshake ---- */

static void sb_offer(struct simback *b)
{
	sb_write(b, b->be, "max-ring-page-order", b->max_order);
	sb_write(b, b->be, "multi-queue-max-queues", b->max_queues);
	if (b->max_indirect)
		sb_write(b, b->be, "feature-max-indirect-segments", b->max_indirect);
	sb_state(b, b->mischief == REFUSES ? 5 : 2);
}

static void sb_connect(struct simback *b)
{
	int err = sb_open_rings(b);

	if (err) {
		fprintf(stderr, "simback: rings: %s\n", strerror(-err));
		sb_state(b, 5);
		return;
	}
	sb_write(b, b->be, "feature-flush-cache", b->flush);
	sb_write(b, b->be, "feature-barrier", b->barrier);
	if (b->discard) {
		sb_write(b, b->be, "feature-discard", 1);
		sb_write(b, b->be, "discard-granularity", 512);
		sb_write(b, b->be, "discard-alignment", 0);
	}
	sb_write(b, b->be, "sectors", b->sectors);
	sb_write(b, b->be, "info", b->info);
	sb_write(b, b->be, "sector-size", 512);
	sb_write(b, b->be, "physical-sector-size", 4096);
	b->connects++;
	sb_state(b, 4);
}

static void sb_finish_close(struct simback *b)
{
	if (b->mischief == NEVER_CLOSES)
		return;
	if (b->mischief == ANSWERS_AFTER_CLOSE && b->nrings) {
		sb_respond(b, &b->ring[0], 1ull << 32, 0, 0, 0);
		__atomic_store_n(sb_index(&b->ring[0], 2), b->ring[0].rsp_prod, __ATOMIC_RELEASE);
	}
	sb_close_rings(b);
	sb_state(b, 6);
}

static void sb_step(struct simback *b)
{
	long be, fe;

	if (!b->be[0] && !sb_find(b))
		return;
	be = sb_read(b, b->be, "state", 0);
	fe = sb_read(b, b->fe, "state", 0);
	if (b->state == 0 && be == 1)
		sb_offer(b);
	else if (b->state == 2 && fe == 3)
		sb_connect(b);
	else if (b->state == 4 && (fe >= 5 || be == 5))
		sb_state(b, 5);
	else if (b->state == 6 && fe == 1 && be == 6)
		sb_state(b, 2);
	if (b->state == 5 && fe == 6)
		sb_finish_close(b);
}

static void sb_midway(struct simback *b)
{
	if (b->state != 4)
		return;
	if (b->mischief == CLOSES_MIDWAY && b->requests > b->trigger)
		sb_state(b, 5);
	if (b->mischief == VANISHES && b->requests > b->trigger) {
		xs_rm(b->xs, XBT_NULL, b->be);
		b->state = 7; /* says nothing more */
	}
	if (b->term_after && b->requests > b->term_after) {
		b->term_after = 0;
		kill(b->guest, SIGTERM);
	}
	if (b->grow_at && b->requests > b->grow_at) {
		b->grow_at = 0;
		b->sectors = b->grown_sectors;
		sb_write(b, b->be, "sectors", b->sectors);
		sb_write(b, b->be, "state", 4);
	}
}

/* Plays the backend until process `pid` has ended; returns its exit code, or -1 when a signal ended it. pid
 * 0: until it closes. */
static int sb_serve(struct simback *b, pid_t pid)
{
	int status = 0;

	b->be[0] = 0;
	b->guest = pid;
	b->state = b->struck = 0;
	while (pid ? waitpid(pid, &status, WNOHANG) == 0 : b->state != 6) {
		struct pollfd pfd[1 + SB_QUEUES] = {{.fd = xs_fileno(b->xs), .events = POLLIN}};
		bool busy = false;
		uint64_t drop;
		char **event;

		for (unsigned i = 0; i < b->nrings; i++)
			busy |= sb_turn(b, &b->ring[i]);
		sb_midway(b);
		for (unsigned i = 0; i < b->nrings; i++)
			pfd[1 + i] = (struct pollfd){.fd = b->ring[i].wait_fd, .events = POLLIN};
		poll(pfd, 1 + b->nrings, busy ? 0 : 5);
		for (unsigned i = 0; i < b->nrings; i++) {
			if (pfd[1 + i].revents && read(pfd[1 + i].fd, &drop, sizeof(drop)) < 0)
				fprintf(stderr, "simback: event channel: %s\n", strerror(errno));
		}
		while ((event = xs_check_watch(b->xs)))
			free(event);
		sb_step(b);
	}
	sb_close_rings(b);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int sb_start(struct simback *b, const char *dir)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct sim_rsp rsp;
	char path[128];

	*b = (struct simback){.max_order = 4,
			      .max_queues = SB_QUEUES,
			      .max_indirect = 256,
			      .flush = 1,
			      .barrier = 1,
			      .discard = 1,
			      .sectors = SB_SECTORS};
	snprintf(path, sizeof(path), "%s/socket", dir);
	setenv("XENSTORED_PATH", path, 1);
	b->xs = xs_open(0);
	if (!b->xs || !xs_watch(b->xs, "/local/domain/0/backend", "be"))
		return -errno;
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/hyp", dir);
	b->hyp = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connect(b->hyp, (const struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	b->disk = calloc(2 * SB_SECTORS, 512);
	b->old = calloc(2 * SB_SECTORS, 512);
	return b->disk && b->old ? sb_hypcall(b, (struct sim_req){.op = SIM_HELLO}, &rsp, NULL, 0) : -ENOMEM;
}

static void sb_end(struct simback *b)
{
	xs_close(b->xs);
	close(b->hyp);
	free(b->disk);
	free(b->old);
}

#endif
