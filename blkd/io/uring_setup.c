/*
 * The io_uring engine's cold half: what the kernel can, making and ending a ring, the table of registered
 * files.
 *
 * A ring is made by the thread that uses it, with DEFER_TASKRUN and SINGLE_ISSUER where the kernel has them
 * (6.1), else with COOP_TASKRUN (5.19), else plain. Needed at least: waiting with a timeout in the one system
 * call (EXT_ARG, 5.11); older kernels have the aio engine. The submission ring is small, whatever the depth:
 * it is emptied each turn, and a turn that queues more submits in between.
 */
#include "blkd/io/uring_priv.h"
#include "blkd/backing.h"
#include "blkd/clock.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SQ_MAX = 128, CQ_SPARE = 64, DEPTH_MAX = 4096, WORKERS_BOUNDED = 4, WORKERS_UNBOUNDED = 2 };

#ifdef __SANITIZE_THREAD__
/* A ring's memory is mapped and unmapped by liburing's own system calls, which the sanitizer does not see:
 * when another thread's ring comes to lie at the address of one that is gone, it takes the two for one. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
	return "race:liburing.h\n";
}
#endif

static const unsigned setup_steps[] = {
    IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
    0,
};

static int ring_init(unsigned sq, unsigned cq, struct io_uring *ring, struct io_uring_params *p)
{
	int ret = -EINVAL;

	for (unsigned i = 0; i < sizeof(setup_steps) / sizeof(setup_steps[0]) && ret == -EINVAL; i++) {
		*p =
		    (struct io_uring_params){.flags = setup_steps[i] | IORING_SETUP_CQSIZE, .cq_entries = cq};
		ret = io_uring_queue_init_params(sq, ring, p);
	}
	return ret;
}

static int refuse(int ret, struct err *e)
{
	switch (-ret) {
	case ENOSYS:
		return err_set(e, ret, "this kernel has no io_uring");
	case EPERM:
	case EACCES:
		return err_set(e, ret,
			       "io_uring is not permitted here (kernel.io_uring_disabled, or a sandbox)");
	case ENOMEM:
		return err_set(e, ret,
			       "no memory for an io_uring (before Linux 5.12: see the memlock limit)");
	default:
		return err_set(e, ret, "cannot set up an io_uring: %s", strerror(-ret));
	}
}

static int check_features(struct io_uring *ring, const struct io_uring_params *p, struct err *e)
{
	static const int needed[] = {IORING_OP_READ,	  IORING_OP_WRITE,    IORING_OP_FSYNC,
				     IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_POLL_REMOVE};
	struct io_uring_probe *probe;
	bool all = true;

	if (!(p->features & IORING_FEAT_EXT_ARG) || !(p->features & IORING_FEAT_NODROP))
		return err_set(e, -EOPNOTSUPP,
			       "this kernel's io_uring is too old (Linux 5.11 or later is needed)");
	probe = io_uring_get_probe_ring(ring);
	if (!probe)
		return err_set(e, -EOPNOTSUPP, "this kernel does not tell what its io_uring can");
	for (unsigned i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		all = all && io_uring_opcode_supported(probe, needed[i]);
	io_uring_free_probe(probe);
	return all ? 0 : err_set(e, -EOPNOTSUPP, "this kernel's io_uring lacks an operation that is needed");
}

int uring_probe(struct err *e)
{
	struct io_uring_params p;
	struct io_uring ring;
	int ret = ring_init(4, 8, &ring, &p);

	if (ret)
		return refuse(ret, e);
	ret = check_features(&ring, &p, e);
	io_uring_queue_exit(&ring);
	return ret;
}

/* All of these only save work; without them the ring works as well. */
static void tune(struct uring *u)
{
	unsigned workers[2] = {WORKERS_BOUNDED, WORKERS_UNBOUNDED};
	int none[URING_FILE_SLOTS];

	(void)io_uring_register_ring_fd(&u->ring);
	(void)io_uring_register_iowq_max_workers(&u->ring, workers);
	u->files_registered = !io_uring_register_files_sparse(&u->ring, URING_FILE_SLOTS);
	if (!u->files_registered) {
		memset(none, 0xff, sizeof(none)); /* -1: an empty slot */
		u->files_registered = !io_uring_register_files(&u->ring, none, URING_FILE_SLOTS);
	}
}

static unsigned pow2_at_least(unsigned v)
{
	unsigned p = 1;

	while (p < v)
		p <<= 1;
	return p;
}

int uring_create(unsigned depth, struct io_engine **out, struct err *e)
{
	struct io_uring_params p;
	struct uring *u;
	unsigned sq;
	int ret;

	if (!depth || depth > DEPTH_MAX)
		return err_set(e, -EINVAL, "an engine's depth is 1 to %u, not %u", DEPTH_MAX, depth);
	u = calloc(1, sizeof(*u));
	if (!u)
		return err_set(e, -ENOMEM, "no memory for an I/O engine");
	/* Not touched before it is used: an idle device pays for the polls it has. */
	u->slots = malloc(URING_POLL_SLOTS * sizeof(*u->slots));
	ret = u->slots ? io_worker_box_init(&u->box) : -ENOMEM;
	if (ret) {
		free(u->slots);
		free(u);
		return err_set(e, ret, "cannot make an I/O engine: %s", strerror(-ret));
	}
	sq = pow2_at_least(depth) < SQ_MAX ? pow2_at_least(depth) : SQ_MAX;
	ret = ring_init(sq, pow2_at_least(depth + CQ_SPARE), &u->ring, &p);
	if (ret) {
		io_worker_box_destroy(&u->box);
		free(u->slots);
		free(u);
		return refuse(ret, e);
	}
	u->base.ops = &io_uring_engine;
	u->depth = depth;
	u->free_slot = URING_NO_SLOT;
	list_init(&u->poll_wait);
	tune(u);
	*out = &u->base;
	return 0;
}

void uring_destroy(struct io_engine *engine)
{
	struct uring *u = container_of(engine, struct uring, base);

	CHECK(!u->base.in_flight && !u->armed);
	io_uring_queue_exit(&u->ring);
	io_worker_box_destroy(&u->box);
	free(u->slots);
	free(u);
}

int uring_file_add(struct io_engine *engine, struct backing *b, struct io_file *file)
{
	struct uring *u = container_of(engine, struct uring, base);
	int slot;

	if (b->fd < 0)
		return -EBADF;
	*file = (struct io_file){.backing = b, .slot = -1};
	if (!u->files_registered || u->file_used == UINT64_MAX)
		return 0;
	slot = __builtin_ctzll(~u->file_used);
	if (io_uring_register_files_update(&u->ring, (unsigned)slot, &b->fd, 1) != 1)
		return 0; /* by descriptor, then */
	u->file_used |= 1ull << slot;
	file->slot = slot;
	return 0;
}

void uring_file_del(struct io_engine *engine, struct io_file *file)
{
	struct uring *u = container_of(engine, struct uring, base);
	int none = -1;

	if (file->slot >= 0) {
		CHECK(u->file_used & 1ull << file->slot);
		/* A slot that would not be emptied stays taken: its file is another's when used again. */
		if (io_uring_register_files_update(&u->ring, (unsigned)file->slot, &none, 1) == 1)
			u->file_used &= ~(1ull << file->slot);
	}
	*file = (struct io_file){.slot = -1};
}
