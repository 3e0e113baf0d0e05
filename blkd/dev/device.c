/*
 * The device thread: its loop, its mailbox, its birth and its end.
 *
 * One turn: mail, fetch, plan, jobs, submit and wait (one system call), reap, jobs, complete, kick. The
 * thread owns everything but the mailbox; others send it functions to run between two turns. The loop sleeps
 * in the engine's turn() and nowhere else.
 */
#include "blkd/bytes.h"
#include "blkd/clock.h"
#include "blkd/dev/dev_priv.h"
#include "blkd/err.h"

#include <limits.h>
#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- mailbox ---- */

/* Under d->lock: makes the loop look. One write a batch of mail: the signal stays until the loop read it. */
static void signal_loop(struct dev *d)
{
	__atomic_store_n(&d->mail, true, __ATOMIC_RELEASE);
	if (!d->wake_signalled) {
		d->wake_signalled = true;
		(void)!write(d->wake_fd, &(uint64_t){1}, sizeof(uint64_t));
	}
}

void dev_wake(struct dev *d, struct pending *p, int res)
{
	pthread_mutex_lock(&d->lock);
	p->wake_res = res;
	list_add_tail(&d->woken, &p->woken);
	signal_loop(d);
	pthread_mutex_unlock(&d->lock);
}

int dev_post(struct dev *d, void (*fn)(struct dev *, void *), void *arg)
{
	int res = -EAGAIN;

	pthread_mutex_lock(&d->lock);
	if (d->box_tail - d->box_head < DEV_MAILBOX) {
		d->box[d->box_tail++ % DEV_MAILBOX] = (struct message){fn, arg};
		signal_loop(d);
		res = 0;
	}
	pthread_mutex_unlock(&d->lock);
	return res;
}

struct call {
	void (*fn)(struct dev *, void *);
	void *arg;
	sem_t done;
};

static void run_call(struct dev *d, void *arg)
{
	struct call *call = arg;

	call->fn(d, call->arg);
	sem_post(&call->done);
}

int dev_call(struct dev *d, void (*fn)(struct dev *, void *), void *arg)
{
	struct call call = {.fn = fn, .arg = arg};
	int res;

	if (!d->threaded || pthread_equal(pthread_self(), d->thread)) {
		fn(d, arg);
		return 0;
	}
	sem_init(&call.done, 0, 0);
	while ((res = dev_post(d, run_call, &call)) == -EAGAIN)
		usleep(1000);
	while (sem_wait(&call.done) < 0)
		;
	sem_destroy(&call.done);
	return res;
}

static void read_mail(struct dev *d)
{
	struct message mail[DEV_MAILBOX];
	unsigned n = 0;
	struct list woken;

	if (!__atomic_load_n(&d->mail, __ATOMIC_ACQUIRE))
		return;
	list_init(&woken);
	pthread_mutex_lock(&d->lock);
	__atomic_store_n(&d->mail, false, __ATOMIC_RELAXED);
	if (d->wake_signalled) {
		uint64_t count;

		d->wake_signalled = false;
		(void)!read(d->wake_fd, &count, sizeof(count));
	}
	while (d->box_head != d->box_tail)
		mail[n++] = d->box[d->box_head++ % DEV_MAILBOX];
	list_splice_tail(&woken, &d->woken);
	pthread_mutex_unlock(&d->lock);
	meta_take_woken(d, &woken);
	for (unsigned i = 0; i < n; i++)
		mail[i].fn(d, mail[i].arg);
}

/* ---- the loop ---- */

static void fetch(struct dev *d)
{
	struct blkreq *reqs[DEV_FETCH];
	struct list *pos, *next;

	/* Another one first each time: where requests are many, none takes every free place. */
	if ((pos = list_pop(&d->transports)))
		list_add_tail(&d->transports, pos);
	list_for_each_safe (pos, next, &d->transports) {
		struct transport *t = container_of(pos, struct transport, link);

		/* Once a turn each: a transport that refuses all it fetches must not keep the loop from its
		 * mail. */
		if (t->ready && !t->detaching && !d->barrier && d->n_active < d->max_active) {
			unsigned max = (unsigned)u64_min(DEV_FETCH, d->max_active - d->n_active), n;

			t->ready = false;
			n = t->ops->fetch(t, reqs, max);
			t->ready |= n == max;
			t->in_flight += n;
			for (unsigned i = 0; i < n; i++)
				req_admit(d, reqs[i]);
		}
	}
}

static bool fetch_is_due(const struct dev *d)
{
	struct list *pos;

	if (d->barrier || d->n_active >= d->max_active)
		return false;
	list_for_each (pos, &d->transports) {
		const struct transport *t = container_of(pos, const struct transport, link);

		if (t->ready && !t->detaching)
			return true;
	}
	return false;
}

static void plan_starved(struct dev *d)
{
	struct list list, *n;

	if (!d->replan)
		return;
	d->replan = false;
	list_init(&list);
	list_splice_tail(&list, &d->starved);
	while ((n = list_pop(&list)))
		req_run(d, container_of(n, struct blkreq, link));
}

static void events(struct dev *d, struct list *ready)
{
	struct list *n;

	while ((n = list_pop(ready))) {
		struct io_poll *poll = container_of(n, struct io_poll, link);
		struct transport *t = poll->owner;

		if (poll == &d->wake_poll)
			d->engine->ops->poll_arm(d->engine, poll);
		else
			t->ops->event(t, poll);
	}
}

static void detach_idle(struct dev *d)
{
	struct list *pos, *next;

	list_for_each_safe (pos, next, &d->transports) {
		struct transport *t = container_of(pos, struct transport, link);

		if (!t->detaching || t->in_flight)
			continue;
		list_del(&t->link);
		t->dev = NULL;
		t->ops->detached(t);
	}
}

bool dev_turn(struct dev *d, uint64_t deadline_ns)
{
	struct list done, ready, *n;

	list_init(&done);
	list_init(&ready);
	d->now_ns = d->engine->ops->now(d->engine);
	read_mail(d);
	plan_starved(d); /* before those that come now: they would take what was given back */
	fetch(d);
	ops_retry(d);
	jobs_run(d);
	dev_complete(d);
	detach_idle(d); /* before the wait: the mail may have asked for it */
	if (fetch_is_due(d) || !list_empty(&d->done) || (d->replan && !list_empty(&d->starved)) ||
	    (d->stop != STOP_NO && !d->n_active && !d->engine->in_flight))
		deadline_ns = 0;
	else
		deadline_ns = u64_min(deadline_ns, jobs_deadline(d));
	d->engine->ops->turn(d->engine, deadline_ns, &done, &ready);
	d->now_ns = d->engine->ops->now(d->engine);
	while ((n = list_pop(&done)))
		op_io_done(d, container_of(container_of(n, struct io, link), struct op, io));
	events(d, &ready);
	ops_retry(d);
	jobs_run(d);
	dev_complete(d);
	detach_idle(d);
	stat_add(&d->stats.turns, 1);
	__atomic_store_n(&d->stats.syscalls, d->engine->syscalls, __ATOMIC_RELAXED);
	__atomic_store_n(&d->stats.in_flight, d->n_active, __ATOMIC_RELAXED);
	return d->n_active || d->engine->in_flight || d->commit->active || d->grow->active || fetch_is_due(d);
}

static void device_loop(struct dev *d)
{
	while (!jobs_stopped(d))
		dev_turn(d, IO_DEADLINE_NONE);
}

/* ---- transports ---- */

void dev_attach(struct dev *d, struct transport *t)
{
	t->dev = d;
	t->in_flight = 0;
	t->n_batch = 0;
	t->detaching = d->stop != STOP_NO;
	t->flushed = false;
	t->ready = true;
	list_add_tail(&d->transports, &t->link);
}

void dev_detach(struct dev *d, struct transport *t)
{
	(void)d;
	t->detaching = true;
}

void dev_transport_ready(struct transport *t)
{
	t->ready = true;
}

void dev_poll_arm(struct dev *d, struct io_poll *poll, struct transport *t)
{
	poll->owner = t;
	d->engine->ops->poll_arm(d->engine, poll);
}

void dev_poll_disarm(struct dev *d, struct io_poll *poll)
{
	d->engine->ops->poll_disarm(d->engine, poll);
}

/* ---- buffers ---- */

bool dev_buf_get(struct dev *d, struct transport *t, uint64_t len_bytes, struct buf *out)
{
	if (bufpool_get(d->opts.pool, len_bytes, out))
		return true;
	if (!d->reserve_busy && len_bytes <= d->reserve.cap_bytes) {
		d->reserve_busy = true;
		*out = d->reserve;
		return true;
	}
	t->buf_starved = true;
	return false;
}

void dev_buf_put(struct dev *d, struct buf *b)
{
	struct list *pos;

	if (!b->mem)
		return;
	if (b->mem == d->reserve.mem)
		d->reserve_busy = false;
	else
		bufpool_put(d->opts.pool, b);
	b->mem = NULL;
	list_for_each (pos, &d->transports) {
		struct transport *t = container_of(pos, struct transport, link);

		if (t->buf_starved) {
			t->buf_starved = false;
			t->ready = true;
		}
	}
}

/* ---- birth and end ---- */

static void dev_free(struct dev *d)
{
	if (!d)
		return;
	if (d->reserve.mem)
		munmap(d->reserve.mem, 2 * (size_t)BUF_MAX_BYTES);
	free(d->pending_pages);
	if (d->commit)
		free(d->commit->slot[0].buf);
	if (d->grow)
		free(d->grow->slot[0].buf);
	free(d->commit);
	free(d->grow);
	free(d->ops);
	free(d->files);
	free(d->active);
	if (d->wake_fd >= 0)
		close(d->wake_fd);
	pthread_mutex_destroy(&d->lock);
	pthread_cond_destroy(&d->created);
	free(d);
}

static struct job_run *run_new(void)
{
	struct job_run *run = calloc(1, sizeof(*run));
	unsigned char *bufs = run ? aligned_alloc(META_PAGE_BYTES, (size_t)DEV_ACTS * META_PAGE_BYTES) : NULL;

	if (!bufs) {
		free(run);
		return NULL;
	}
	for (unsigned i = 0; i < DEV_ACTS; i++) {
		run->slot[i].buf = bufs + (size_t)i * META_PAGE_BYTES;
		run->slot[i].run = run;
	}
	return run;
}

static int dev_alloc(struct dev *d)
{
	unsigned depth = chain_depth(&d->disk->chain);
	void *mem;

	d->max_active = d->opts.max_requests ? d->opts.max_requests : 512;
	d->active = calloc(d->max_active, sizeof(*d->active));
	d->files = calloc(depth, sizeof(*d->files));
	d->ops = calloc(DEV_OPS, sizeof(*d->ops));
	d->commit = run_new();
	d->grow = run_new();
	d->pending_pages = aligned_alloc(META_PAGE_BYTES, (size_t)DEV_PENDING * META_PAGE_BYTES);
	mem = mmap(NULL, 2 * (size_t)BUF_MAX_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem != MAP_FAILED) {
		d->reserve = (struct buf){mem, BUF_MAX_BYTES, 1};
		d->bounce_reserve = (struct buf){(unsigned char *)mem + BUF_MAX_BYTES, BUF_MAX_BYTES, 1};
	}
	d->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!d->active || !d->files || !d->ops || !d->commit || !d->grow || !d->pending_pages ||
	    mem == MAP_FAILED || d->wake_fd < 0)
		return -ENOMEM;
	for (unsigned i = 0; i < DEV_OPS; i++) {
		d->ops[i].pooled = true;
		list_add_tail(&d->ops_free, &d->ops[i].link);
	}
	for (unsigned i = 0; i < DEV_PENDING; i++) {
		d->pending[i].dev = d;
		d->pending[i].page = d->pending_pages + (size_t)i * META_PAGE_BYTES;
		list_init(&d->pending[i].reqs);
	}
	return 0;
}

static void engine_close(struct dev *d, unsigned n_files)
{
	if (d->wake_poll.armed)
		d->engine->ops->poll_disarm(d->engine, &d->wake_poll);
	while (n_files)
		d->engine->ops->file_del(d->engine, &d->files[--n_files]);
	d->engine->ops->destroy(d->engine);
	d->engine = NULL;
}

/* On the device thread. */
static int engine_open(struct dev *d, struct err *e)
{
	unsigned depth = chain_depth(&d->disk->chain);
	int res = d->opts.engine->create(DEV_OPS + 2 * DEV_ACTS, &d->engine, e);

	if (res < 0)
		return res;
	for (unsigned i = 0; i < depth; i++) {
		res =
		    d->engine->ops->file_add(d->engine, chain_image(&d->disk->chain, i)->file, &d->files[i]);
		if (res < 0) {
			engine_close(d, i);
			return err_set(e, res, "%s: the %s engine does not take %s: %s", d->name,
				       d->opts.engine->name, chain_image(&d->disk->chain, i)->file->path,
				       strerror(-res));
		}
	}
	d->wake_poll = (struct io_poll){.fd = d->wake_fd, .events = POLLIN};
	d->engine->ops->poll_arm(d->engine, &d->wake_poll);
	d->now_ns = d->engine->ops->now(d->engine);
	return 0;
}

static void *thread_main(void *arg)
{
	struct dev *d = arg;
	int res = engine_open(d, &d->create_err);

	pthread_mutex_lock(&d->lock);
	d->create_res = res;
	d->is_created = true;
	pthread_cond_signal(&d->created);
	pthread_mutex_unlock(&d->lock);
	if (res == 0) {
		device_loop(d);
		engine_close(d, chain_depth(&d->disk->chain));
	}
	return NULL;
}

static int thread_start(struct dev *d, struct err *e)
{
	pthread_attr_t attr;
	char name[16];
	int res;

	d->threaded = true;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256u << 10);
	res = -pthread_create(&d->thread, &attr, thread_main, d);
	pthread_attr_destroy(&attr);
	if (res < 0)
		return err_set(e, res, "%s: no thread for the device: %s", d->name, strerror(-res));
	snprintf(name, sizeof(name), "%.15s", d->name);
	pthread_setname_np(d->thread, name);
	pthread_mutex_lock(&d->lock);
	while (!d->is_created)
		pthread_cond_wait(&d->created, &d->lock);
	pthread_mutex_unlock(&d->lock);
	if (d->create_res < 0) {
		pthread_join(d->thread, NULL);
		*e = d->create_err;
	}
	return d->create_res;
}

static void lists_init(struct dev *d)
{
	struct list *all[] = {&d->transports, &d->blocked,     &d->starved,	&d->park_epoch, &d->park_grow,
			      &d->landed,     &d->covered,     &d->done,	&d->ops_free,	&d->io_wait,
			      &d->rmw_wait,   &d->bounce_wait, &d->leaf_writes, &d->woken};

	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		list_init(all[i]);
}

int dev_create(struct disk *disk, const struct dev_opts *opts, bool start, struct dev **out, struct err *e)
{
	struct dev *d = calloc(1, sizeof(*d));
	struct err ignored;
	int res;

	if (!d)
		return err_set(e, -ENOMEM, "no memory for a device");
	if (!e)
		e = &ignored;
	d->disk = disk;
	d->leaf = disk->chain.leaf;
	d->opts = *opts;
	d->opts.idle_commit_ms = opts->idle_commit_ms ? opts->idle_commit_ms : 1000;
	d->rmw = d->leaf->file->traits.logical_bytes > SECTOR_BYTES;
	d->wake_fd = -1;
	snprintf(d->name, sizeof(d->name), "%s", opts->name ? opts->name : "dev");
	lists_init(d);
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->created, NULL);
	res = dev_alloc(d);
	if (res < 0)
		err_set(e, res, "%s: no memory for the device", d->name);
	else
		res = start ? thread_start(d, e) : engine_open(d, e);
	if (res < 0) {
		dev_free(d);
		return res;
	}
	*out = d;
	return 0;
}

static void stop(struct dev *d, void *arg)
{
	struct list *pos;

	(void)arg;
	d->stop = STOP_DRAIN;
	list_for_each (pos, &d->transports)
		dev_detach(d, container_of(pos, struct transport, link));
}

int dev_destroy(struct dev *d, struct err *e)
{
	int res;

	dev_call(d, stop, NULL);
	if (d->threaded) {
		pthread_join(d->thread, NULL);
	} else {
		device_loop(d);
		engine_close(d, chain_depth(&d->disk->chain));
	}
	res = d->stop_res;
	if (res < 0)
		err_set(e, res,
			"%s: the last commit or the clean close of %s failed: %s: it is put right when it is "
			"next opened for writing",
			d->name, d->disk->path, strerror(-res));
	disk_close(d->disk);
	dev_free(d);
	return res;
}

void dev_abandon(struct dev *d)
{
	for (unsigned i = 0; i < DEV_PENDING; i++) {
		if (d->pending[i].state == PEND_FILL)
			cache_fill_done(d->opts.cache, d->pending[i].frame, -EIO);
		if (d->pending[i].state == PEND_WAIT)
			(void)cache_wait_cancel(d->opts.cache, &d->pending[i].waiter);
	}
	ops_abandon(d);
	engine_close(d, chain_depth(&d->disk->chain));
	disk_abandon(d->disk);
	dev_free(d);
}

/* ---- asked from outside ---- */

const char *dev_name(const struct dev *d)
{
	return d->name;
}

const struct disk *dev_disk(const struct dev *d)
{
	return d->disk;
}

uint64_t dev_size_bytes(const struct dev *d)
{
	return d->disk->chain.size_bytes;
}

bool dev_writable(const struct dev *d)
{
	return d->disk->writable;
}

void dev_stats(const struct dev *d, struct dev_stats *out)
{
	const uint64_t *from = (const uint64_t *)(const void *)&d->stats;
	uint64_t *to = (uint64_t *)(void *)out;

	for (size_t i = 0; i < sizeof(*out) / sizeof(*to); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

enum extent_kind dev_block_status(struct dev *d, uint64_t off_bytes, uint64_t len_bytes,
				  uint64_t *prefix_bytes)
{
	uint64_t done = 0;
	enum extent_kind kind = EXT_DATA;

	while (done < len_bytes) {
		uint32_t len = (uint32_t)u64_min(len_bytes - done, 1u << 30);
		const void *meta = NULL;
		struct extent ext;
		enum extent_kind now;

		chain_map(&d->disk->chain, 0, NULL, off_bytes + done, len, &ext);
		if (ext.kind == EXT_META && ext.layer == 0)
			meta = d->leaf->ops->meta_get ? d->leaf->ops->meta_get(d->leaf, ext.file_off) : NULL;
		if (meta)
			chain_map(&d->disk->chain, 0, meta, off_bytes + done, ext.len_bytes, &ext);
		now = ext.kind == EXT_ZERO ? EXT_ZERO : EXT_DATA;
		if (done && now != kind)
			break;
		kind = now;
		done += ext.len_bytes;
	}
	*prefix_bytes = done;
	return kind;
}
