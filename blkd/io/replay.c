/*
 * The replay engine: simulated time and the asynchronous way into a medium. See include/blkd/replay.h for
 * what it promises.
 *
 * An engine keeps its operations in a table of `depth` slots. queue() notes one; turn() submits what was
 * queued (in order), moves the clock, and completes what is due in order of due time, ties in order of
 * submission. Because an operation acts on the medium when it completes, two that overlap in flight may act
 * in either order, as with a real disk.
 */
#include "blkd/io/replay.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <stdlib.h>

#define TURN_NS	       1000u
#define CLOCK_START_NS 1000000000u /* a deadline of 0 means "do not wait": time must have left it behind */

struct replay_op {
	struct io *io; /* NULL: free slot */
	struct replay_rec rec;
	struct replay_fate fate;
	size_t index;
	uint64_t due_ns;
};

struct replay_engine {
	struct io_engine base;
	struct replay *replay;
	unsigned depth, submitted;
	struct list link; /* replay->engines */
	struct list queued;
	struct replay_op op[];
};

static __thread struct replay *bound;

/* ---- medium: life and settings ---- */

struct replay *replay_create(uint64_t seed)
{
	struct replay *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->seed = r->rng = seed;
	r->now_ns = CLOCK_START_NS;
	r->capacity = UINT64_MAX;
	r->recording = true;
	list_init(&r->engines);
	r->shape = (struct replay_shape){.delay_min_ns = 20000, .delay_max_ns = 200000};
	r->traits = (struct backing_traits){
	    .logical_bytes = 512,
	    .physical_bytes = 4096,
	    .mem_align_bytes = 512,
	    .zeroes_on_allocate = true,
	    .can_fallocate = true,
	    .can_punch = true,
	    .fence = FENCE_FILE_LOCK,
	};
	r->opener = (struct backing_opener){.open = replay_open, .ctx = r};
	return r;
}

void replay_destroy(struct replay *r)
{
	CHECK(!r->opens && list_empty(&r->engines));
	for (unsigned i = 0; i < r->n_files; i++) {
		struct replay_file *f = r->file[i];

		for (size_t p = 0; p < f->n_pages; p++)
			if (f->owned[p])
				free(f->page[p]);
		free(f->page);
		free(f->owned);
		free(f->path);
		free(f);
	}
	while (r->chunks) {
		struct replay_chunk *c = r->chunks;

		r->chunks = c->next;
		free(c);
	}
	if (bound == r)
		bound = NULL;
	free(r->file);
	free(r->rec);
	free(r);
}

void replay_set_traits(struct replay *r, const struct backing_traits *t)
{
	r->traits = *t;
}

void replay_set_capacity(struct replay *r, uint64_t bytes)
{
	r->capacity = bytes;
}

void replay_set_shape(struct replay *r, const struct replay_shape *s)
{
	CHECK(s->delay_min_ns <= s->delay_max_ns);
	r->shape = *s;
}

const struct backing_opener *replay_opener(struct replay *r)
{
	return &r->opener;
}

uint64_t replay_now(const struct replay *r)
{
	return r->now_ns;
}

void replay_advance(struct replay *r, uint64_t ns)
{
	r->now_ns += ns;
}

void replay_record(struct replay *r, bool on)
{
	r->recording = on;
}

const struct replay_rec *replay_log(const struct replay *r, size_t *n)
{
	*n = r->n_rec;
	return r->rec;
}

uint64_t replay_events(const struct replay *r)
{
	return r->events;
}

static uint64_t hash_bytes(uint64_t h, const void *p, size_t n)
{
	const uint8_t *b = p;

	while (n--)
		/* FNV-1a. The analyser sees no bytes in an array of uint64_t.
		 * NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult) */
		h = (h ^ *b++) * 0x100000001b3u;
	return h;
}

uint64_t replay_log_hash(const struct replay *r)
{
	uint64_t h = 0xcbf29ce484222325u;

	for (size_t i = 0; i < r->n_rec; i++) {
		const struct replay_rec *c = &r->rec[i];
		uint64_t field[] = {c->op,	    c->file,	     c->sync,	       c->off_bytes,
				    c->len_bytes,   c->submitted_at, c->completed_at,  c->landed_bytes,
				    c->size_before, c->size_after,   (uint64_t)c->res, c->data != NULL};

		h = hash_bytes(h, field, sizeof(field));
		if (c->op == IO_WRITE)
			h = hash_bytes(h, c->data, (size_t)c->len_bytes);
		else if (c->data)
			h = hash_bytes(h, c->data, (size_t)(c->size_after - c->size_before));
	}
	return h;
}

void replay_on_event(struct replay *r, void (*fn)(void *, uint64_t), void *ctx)
{
	r->on_event = fn;
	r->on_event_ctx = ctx;
}

int replay_fault_add(struct replay *r, const struct replay_fault *f)
{
	if (r->n_faults == REPLAY_FAULTS)
		return -ENOSPC;
	r->fault[r->n_faults++] = (struct armed_fault){.f = *f};
	return 0;
}

void replay_fault_clear(struct replay *r)
{
	r->n_faults = 0;
}

uint64_t replay_fault_hits(const struct replay *r)
{
	return r->fault_hits;
}

void replay_bind(struct replay *r)
{
	bound = r;
}

/* ---- engine ---- */

static struct replay_engine *engine_of(struct io_engine *e)
{
	return container_of(e, struct replay_engine, base);
}

static int engine_create(unsigned depth, struct io_engine **out, struct err *e)
{
	struct replay_engine *re;

	if (!bound)
		return err_set(e, -ENXIO, "no replay medium is bound to this thread");
	re = calloc(1, sizeof(*re) + depth * sizeof(re->op[0]));
	if (!re)
		return err_set(e, -ENOMEM, "no memory for a replay engine");
	re->base.ops = &io_replay_engine;
	re->replay = bound;
	re->depth = depth;
	list_init(&re->queued);
	list_add_tail(&bound->engines, &re->link);
	*out = &re->base;
	return 0;
}

static void engine_destroy(struct io_engine *e)
{
	struct replay_engine *re = engine_of(e);

	CHECK(!e->in_flight && list_empty(&re->queued));
	list_del(&re->link);
	free(re);
}

static int engine_file_add(struct io_engine *e, struct backing *b, struct io_file *file)
{
	(void)e;
	if (b->ops != &replay_backing_ops)
		return -EINVAL;
	file->backing = b;
	file->slot = 0;
	return 0;
}

void replay_drop_in_flight(struct replay *r)
{
	struct list *pos;

	list_for_each (pos, &r->engines) {
		struct replay_engine *re = container_of(pos, struct replay_engine, link);

		while (list_pop(&re->queued))
			;
		for (unsigned i = 0; i < re->depth; i++)
			re->op[i].io = NULL;
		re->submitted = 0;
		re->base.in_flight = 0;
	}
}

static void engine_file_del(struct io_engine *e, struct io_file *file)
{
	const struct replay_engine *re = engine_of(e);

	for (unsigned i = 0; i < re->depth; i++)
		CHECK(!re->op[i].io || re->op[i].io->file != file);
	file->backing = NULL;
}

static int engine_queue(struct io_engine *e, struct io *io)
{
	struct replay_engine *re = engine_of(e);

	if (e->in_flight == re->depth)
		return -EBUSY;
	e->in_flight++;
	list_add_tail(&re->queued, &io->link);
	return 0;
}

static void engine_poll_arm(struct io_engine *e, struct io_poll *p)
{
	(void)e;
	p->armed = true;
}

static void engine_poll_disarm(struct io_engine *e, struct io_poll *p)
{
	(void)e;
	p->armed = false;
}

/* What direct I/O refuses, the medium refuses. */
static int refused(const struct io *io)
{
	const struct backing *b = io->file->backing;
	uint64_t sector = b->traits.logical_bytes;

	switch (io->op) {
	case IO_READ:
	case IO_WRITE:
		if (io->off_bytes % sector || io->len_bytes % sector || !io->len_bytes ||
		    io->len_bytes >= 1u << 31 || (uintptr_t)io->buf % b->traits.mem_align_bytes)
			return -EINVAL;
		break;
	case IO_EXTEND:
	case IO_TRUNCATE:
		if (b->traits.fixed_size)
			return -EINVAL;
		break;
	case IO_ZERO:
	case IO_PUNCH:
		if (!b->traits.can_punch)
			return -EOPNOTSUPP;
		break;
	case IO_FLUSH:
		break;
	}
	return io->op != IO_READ && io->op != IO_FLUSH && !b->writable ? -EBADF : 0;
}

static struct replay_op *free_slot(struct replay_engine *re)
{
	unsigned i = 0;

	while (re->op[i].io)
		i++;
	return &re->op[i];
}

static void submit(struct replay_engine *re, struct list *done)
{
	struct list *n;

	if (!list_empty(&re->queued))
		re->base.syscalls++;
	while ((n = list_pop(&re->queued))) {
		struct io *io = container_of(n, struct io, link);
		struct replay_file *f = container_of(io->file->backing, struct replay_backing, base)->file;
		struct replay_op *op;

		CHECK(f->replay == re->replay);
		io->res = refused(io);
		if (io->res) {
			re->base.in_flight--;
			list_add_tail(done, n);
			continue;
		}
		op = free_slot(re);
		*op = (struct replay_op){
		    .io = io,
		    .rec = {.op = io->op,
			    .file = f->id,
			    .off_bytes = io->off_bytes,
			    .len_bytes = io->len_bytes},
		};
		replay_submit(re->replay, &op->rec, io->op == IO_WRITE ? io->buf : NULL, &op->fate,
			      &op->index);
		op->due_ns = re->replay->now_ns + op->fate.delay_ns;
		re->submitted++;
	}
}

static struct replay_op *next_due(struct replay_engine *re)
{
	struct replay_op *best = NULL;

	for (unsigned i = 0; re->submitted && i < re->depth; i++) {
		struct replay_op *op = &re->op[i];

		if (op->io && (!best || op->due_ns < best->due_ns ||
			       (op->due_ns == best->due_ns && op->rec.submitted_at < best->rec.submitted_at)))
			best = op;
	}
	return best;
}

static void engine_turn(struct io_engine *e, uint64_t deadline_ns, struct list *done, struct list *ready)
{
	struct replay_engine *re = engine_of(e);
	struct replay *r = re->replay;
	struct replay_op *op;

	(void)ready;
	submit(re, done);
	r->now_ns += TURN_NS;
	op = next_due(re);
	if (list_empty(done) && (!op || op->due_ns > r->now_ns)) {
		uint64_t until = u64_min(op ? op->due_ns : IO_DEADLINE_NONE, deadline_ns);

		if (until != IO_DEADLINE_NONE && until > r->now_ns)
			r->now_ns = until;
	}
	for (; op && op->due_ns <= r->now_ns; op = next_due(re)) {
		struct io *io = op->io;

		io->res = replay_finish(r, &op->rec, io->buf, &op->fate, op->index);
		op->io = NULL;
		re->submitted--;
		e->in_flight--;
		list_add_tail(done, &io->link);
	}
}

static uint64_t engine_now(struct io_engine *e)
{
	return engine_of(e)->replay->now_ns;
}

const struct io_engine_ops io_replay_engine = {
    .name = "replay",
    .create = engine_create,
    .destroy = engine_destroy,
    .file_add = engine_file_add,
    .file_del = engine_file_del,
    .queue = engine_queue,
    .poll_arm = engine_poll_arm,
    .poll_disarm = engine_poll_disarm,
    .turn = engine_turn,
    .now = engine_now,
};
