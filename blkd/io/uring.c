/* HOT PATH: no malloc, no log, no lock but the worker box's (truncate, rare), no syscall but io_uring_enter:
 * by io_uring_submit, io_uring_submit_and_get_events and io_uring_submit_and_wait_timeout. */
/*
 * The io_uring engine: queue() fills an SQE, turn() makes the one system call that submits all of them and
 * waits, then empties the completion ring.
 *
 * user_data is the address of the struct io, or a small number with the low bits set: a poll's slot, the
 * worker box's poll, or nothing (the CQE of a removal). Polls go through slots because a CQE may come after
 * disarm: see uring_priv.h. Completions that the ring could not hold are kept by the kernel (NODROP) and
 * fetched in the same turn.
 *
 * Not here: any retry. A submission that the kernel puts off (EAGAIN, EBUSY) stays in the ring for the next
 * turn.
 */
#include "blkd/io/uring_priv.h"
#include "blkd/backing.h"
#include "blkd/clock.h"
#include "blkd/log.h"

#include <errno.h>
#include <linux/falloc.h>
#include <poll.h>

/* Low two bits of user_data; a struct io is aligned to 8. */
enum { TAG_IO = 0, TAG_POLL = 1, TAG_BOX = 2, TAG_NONE = 3, TAG_MASK = 3 };

static struct uring *uring_of(struct io_engine *engine)
{
	return container_of(engine, struct uring, base);
}

/* The ring is smaller than what may be queued: when it is full, submits what is there. NULL: the kernel takes
 * nothing now. */
static struct io_uring_sqe *get_sqe(struct uring *u)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (sqe)
		return sqe;
	u->base.syscalls++;
	(void)io_uring_submit(&u->ring);
	return io_uring_get_sqe(&u->ring);
}

static void prep(struct io_uring_sqe *sqe, const struct io *io)
{
	const struct io_file *f = io->file;
	int fd = f->slot >= 0 ? f->slot : f->backing->fd;
	off_t off = (off_t)io->off_bytes, len = (off_t)io->len_bytes;

	switch (io->op) {
	case IO_READ:
		io_uring_prep_read(sqe, fd, io->buf, (unsigned)io->len_bytes, io->off_bytes);
		break;
	case IO_WRITE:
		io_uring_prep_write(sqe, fd, io->buf, (unsigned)io->len_bytes, io->off_bytes);
		break;
	case IO_FLUSH:
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
		break;
	case IO_EXTEND:
		io_uring_prep_fallocate(sqe, fd, 0, off, len);
		break;
	case IO_ZERO:
		io_uring_prep_fallocate(sqe, fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, off, len);
		break;
	case IO_PUNCH:
		io_uring_prep_fallocate(sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
		break;
	case IO_TRUNCATE: /* the worker's */
		io_uring_prep_nop(sqe);
		break;
	}
	if (f->slot >= 0)
		io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	io_uring_sqe_set_data64(sqe, (uintptr_t)io);
}

static bool by_worker(const struct io *io)
{
	if (io->op == IO_EXTEND)
		return !io->file->backing->traits.can_fallocate || !io->len_bytes;
	return io->op == IO_TRUNCATE;
}

static void box_arm(struct uring *u)
{
	struct io_uring_sqe *sqe;

	if (u->box_armed || !u->box.pending)
		return;
	sqe = get_sqe(u);
	if (!sqe)
		return; /* turn() tries again */
	io_uring_prep_poll_add(sqe, u->box.event_fd, POLLIN);
	io_uring_sqe_set_data64(sqe, TAG_BOX);
	u->box_armed = true;
}

/*
 * Submissions do not wait for the end of the turn: the storage works while the rest is planned. One
 * submission a turn was tried: at depth 32 the disk then stood idle while a dozen answers were taken, and had
 * 0.80 of fio's reads; in groups of two it has all of them, for half a system call each.
 */
enum { SUBMIT_GROUP = 2 };

static int uring_queue(struct io_engine *engine, struct io *io)
{
	struct uring *u = uring_of(engine);
	struct io_uring_sqe *sqe;

	DCHECK(io->len_bytes < 1ull << 31 || (io->op != IO_READ && io->op != IO_WRITE));
	if (u->base.in_flight >= u->depth)
		return -EBUSY;
	if (by_worker(io)) {
		io_worker_submit(&u->box, io);
		box_arm(u);
	} else {
		sqe = get_sqe(u);
		if (!sqe)
			return -EBUSY;
		prep(sqe, io);
		if (io_uring_sq_ready(&u->ring) >= SUBMIT_GROUP) {
			/* What the kernel puts off stays in the ring for turn(). */
			u->base.syscalls++;
			io_uring_submit(&u->ring);
		}
	}
	u->base.in_flight++;
	return 0;
}

/* ---- polls ---- */

static uint32_t slot_take(struct uring *u)
{
	uint32_t i = u->free_slot;

	if (i != URING_NO_SLOT)
		u->free_slot = u->slots[i].next_free;
	else if (u->slots_touched < URING_POLL_SLOTS)
		i = u->slots_touched++;
	return i;
}

static void slot_free(struct uring *u, uint32_t i)
{
	u->slots[i] = (struct uring_poll_slot){.next_free = u->free_slot};
	u->free_slot = i;
}

static bool poll_start(struct uring *u, struct io_poll *poll)
{
	uint32_t i = slot_take(u);
	struct io_uring_sqe *sqe;

	if (i == URING_NO_SLOT)
		return false;
	sqe = get_sqe(u);
	if (!sqe) {
		slot_free(u, i);
		return false;
	}
	u->slots[i].poll = poll;
	poll->engine_priv[0] = i;
	io_uring_prep_poll_add(sqe, poll->fd, poll->events);
	io_uring_sqe_set_data64(sqe, (uint64_t)i << 2 | TAG_POLL);
	return true;
}

static void uring_poll_arm(struct io_engine *engine, struct io_poll *poll)
{
	struct uring *u = uring_of(engine);

	CHECK(!poll->armed);
	poll->armed = true;
	poll->engine_priv[0] = URING_NO_SLOT;
	list_init(&poll->link);
	u->armed++;
	if (!poll_start(u, poll))
		list_add_tail(&u->poll_wait, &poll->link);
}

static void polls_start(struct uring *u)
{
	while (!list_empty(&u->poll_wait)) {
		struct io_poll *poll = container_of(u->poll_wait.next, struct io_poll, link);

		if (!poll_start(u, poll))
			return;
		list_del(&poll->link);
	}
}

static void uring_poll_disarm(struct io_engine *engine, struct io_poll *poll)
{
	struct uring *u = uring_of(engine);
	uint64_t i = poll->engine_priv[0];
	struct io_uring_sqe *sqe;

	if (!poll->armed)
		return;
	poll->armed = false;
	u->armed--;
	if (i == URING_NO_SLOT) {
		list_del(&poll->link);
		return;
	}
	u->slots[i].poll = NULL;
	sqe = get_sqe(u);
	if (!sqe)
		return; /* it stays until its event; its slot has no poll any more */
	io_uring_prep_poll_remove(sqe, i << 2 | TAG_POLL);
	io_uring_sqe_set_data64(sqe, TAG_NONE);
}

static void poll_done(struct uring *u, uint32_t i, int res, struct list *ready)
{
	struct io_poll *poll = u->slots[i].poll;

	slot_free(u, i);
	if (!poll)
		return;
	poll->armed = false;
	poll->revents = res >= 0 ? (uint32_t)res : res == -EBADF ? POLLNVAL : POLLERR;
	u->armed--;
	list_add_tail(ready, &poll->link);
}

/* ---- the turn ---- */

static void reap_cqe(struct uring *u, const struct io_uring_cqe *cqe, struct list *done, struct list *ready)
{
	struct io *io;

	switch (cqe->user_data & TAG_MASK) {
	case TAG_IO:
		io = (struct io *)(uintptr_t)cqe->user_data;
		io->res = cqe->res;
		u->base.in_flight--;
		list_add_tail(done, &io->link);
		break;
	case TAG_POLL:
		poll_done(u, (uint32_t)(cqe->user_data >> 2), cqe->res, ready);
		break;
	case TAG_BOX:
		u->box_armed = false;
		u->base.in_flight -= io_worker_reap(&u->box, done);
		break;
	default:
		break;
	}
}

static void reap(struct uring *u, struct list *done, struct list *ready)
{
	for (;;) {
		struct io_uring_cqe *cqe;
		unsigned head, n = 0;

		io_uring_for_each_cqe(&u->ring, head, cqe)
		{
			reap_cqe(u, cqe, done, ready);
			n++;
		}
		io_uring_cq_advance(&u->ring, n);
		if (!io_uring_cq_has_overflow(&u->ring))
			return;
		u->base.syscalls++;
		if (io_uring_get_events(&u->ring) < 0)
			return;
	}
}

/* Submits and waits until deadline_ns at most. Negative: the kernel puts us off; what is done already can
 * still be reaped. */
static int enter(struct uring *u, uint64_t deadline_ns)
{
	struct __kernel_timespec ts, *timeout = NULL;
	struct io_uring_cqe *cqe;
	uint64_t now_ns;

	u->base.syscalls++;
	if (!deadline_ns)
		return io_uring_submit_and_get_events(&u->ring);
	if (deadline_ns != IO_DEADLINE_NONE) {
		now_ns = clock_ns();
		if (now_ns >= deadline_ns)
			return io_uring_submit_and_get_events(&u->ring);
		ts.tv_sec = (long long)((deadline_ns - now_ns) / 1000000000u);
		ts.tv_nsec = (long long)((deadline_ns - now_ns) % 1000000000u);
		timeout = &ts;
	}
	return io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, timeout, NULL);
}

static void uring_turn(struct io_engine *engine, uint64_t deadline_ns, struct list *done, struct list *ready)
{
	struct uring *u = uring_of(engine);
	int ret;

	do {
		polls_start(u);
		box_arm(u);
		ret = enter(u, deadline_ns);
		reap(u, done, ready);
		/* Nothing yet: the CQE was of a removal, or a signal came. Any other error ends the turn,
		 * which the caller repeats. */
	} while (list_empty(done) && list_empty(ready) && (ret >= 0 || ret == -EINTR) && deadline_ns &&
		 (deadline_ns == IO_DEADLINE_NONE || clock_ns() < deadline_ns));
	box_arm(u);
}

static uint64_t uring_now(struct io_engine *engine)
{
	(void)engine;
	return clock_ns();
}

const struct io_engine_ops io_uring_engine = {
    .name = "uring",
    .create = uring_create,
    .destroy = uring_destroy,
    .file_add = uring_file_add,
    .file_del = uring_file_del,
    .queue = uring_queue,
    .poll_arm = uring_poll_arm,
    .poll_disarm = uring_poll_disarm,
    .turn = uring_turn,
    .now = uring_now,
};
