/*
 * The control thread: it owns the connection to xenstore and all VBDs, and turns watch events into steps of
 * the handshake.
 *
 * Three kinds of watches and no more: our own directory (filtered by depth: devices that come and go, and the
 * two nodes that the toolstack writes later), each frontend's `state`, and @releaseDomain. Of what a guest
 * can write, only that one node wakes us. Events carry no work: one sets a flag, all that are there are
 * drained, and only then each flagged VBD is stepped once, with another drain after every step; so a storm
 * costs one step a round and no memory of ours, and libxenstore's queue is kept short (XSA-349).
 *
 * Other threads (devices, tasks) report by or-ing bits into a VBD's `async` and writing an eventfd. A VBD is
 * freed only when no connection and no task is left that could do so.
 */
#include "blkd/blkif/backend_priv.h"

#include "blkd/clock.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define VBDS_MAX     4096u
#define DRAIN_MAX    65536u /* events taken before a step is made in any case */
#define BUSY_WAIT_MS 0

void vbd_notify(struct vbd *v, unsigned async)
{
	const uint64_t one = 1;
	struct blkif_backend *b = v->be;

	/* The VBD may be gone as soon as its flag is seen, the backend not before `notifying` is back at 0.
	 */
	__atomic_fetch_add(&b->notifying, 1, __ATOMIC_RELAXED);
	/* Pairs with the exchange in take_async(). */
	__atomic_fetch_or(&v->async, async, __ATOMIC_RELEASE);
	while (write(b->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	/* Pairs with blkif_stop(). */
	__atomic_fetch_sub(&b->notifying, 1, __ATOMIC_RELEASE);
}

static void wake(struct vbd *v)
{
	v->wake = v->be->woken = true;
}

/* ---- finding and making ---- */

static struct vbd *vbd_find(struct blkif_backend *b, uint32_t domid, uint32_t devid)
{
	struct list *pos;

	list_for_each (pos, &b->vbds) {
		struct vbd *v = container_of(pos, struct vbd, link);

		if (v->domid == domid && v->devid == devid)
			return v;
	}
	return NULL;
}

static void fe_watch_names(const struct vbd *v, char path[static STORE_PATH_MAX + 8], char token[static 32])
{
	snprintf(path, STORE_PATH_MAX + 8, "%s/state", v->fe_dir);
	snprintf(token, 32, "f%u/%u", v->domid, v->devid);
}

static void vbd_add(struct blkif_backend *b, uint32_t domid, uint32_t devid)
{
	char path[STORE_PATH_MAX + 8], token[32];
	struct vbd *v;

	if (b->n_vbds >= VBDS_MAX) {
		log_error("%s/%u/%u is not served: %u devices are the limit", b->root, domid, devid,
			  VBDS_MAX);
		return;
	}
	v = calloc(1, sizeof(*v));
	if (!v) {
		log_error("%s/%u/%u is not served: no memory", b->root, domid, devid);
		return;
	}
	v->be = b;
	v->domid = domid;
	v->devid = devid;
	v->state = VBD_INITIALISING;
	wake(v);
	snprintf(v->name, sizeof(v->name), "vbd-%u-%u", domid, devid);
	snprintf(v->dir, sizeof(v->dir), "%.150s/%u/%u", b->root, domid, devid);
	snprintf(v->fe_dir, sizeof(v->fe_dir), "/local/domain/%u/device/vbd/%u", domid, devid);
	v->introduced = xs_is_domain_introduced(b->xs, domid);
	v->info.state = vbd_state_names[VBD_INITIALISING];
	v->info.frontend = xenbus_name(XB_UNKNOWN);
	v->info.domid = domid;
	v->info.devid = devid;
	fe_watch_names(v, path, token);
	if (!xs_watch(b->xs, path, token))
		log_error("%s: %s cannot be watched: %s", v->name, path, strerror(errno));
	pthread_mutex_lock(&b->lock);
	list_add_tail(&b->vbds, &v->link);
	b->n_vbds++;
	pthread_mutex_unlock(&b->lock);
}

static void vbd_free(struct vbd *v)
{
	struct blkif_backend *b = v->be;
	char path[STORE_PATH_MAX + 8], token[32];

	fe_watch_names(v, path, token);
	xs_unwatch(b->xs, path, token);
	pthread_mutex_lock(&b->lock);
	list_del(&v->link);
	b->n_vbds--;
	pthread_mutex_unlock(&b->lock);
	free(v);
}

static void scan_domain(struct blkif_backend *b, uint32_t domid)
{
	char path[STORE_PATH_MAX];
	unsigned n = 0;
	uint32_t devid;
	char **names;

	snprintf(path, sizeof(path), "%.160s/%u", b->root, domid);
	names = xs_directory(b->xs, XBT_NULL, path, &n);
	for (unsigned i = 0; names && i < n; i++) {
		if (store_parse_u32(names[i], 0, UINT32_MAX, &devid) == 0 && !vbd_find(b, domid, devid))
			vbd_add(b, domid, devid);
	}
	free(names);
}

static void scan(struct blkif_backend *b)
{
	unsigned n = 0;
	uint32_t domid;
	char **names = xs_directory(b->xs, XBT_NULL, b->root, &n);

	for (unsigned i = 0; names && i < n; i++) {
		if (store_parse_u32(names[i], 0, 0x7fef, &domid) == 0)
			scan_domain(b, domid);
	}
	free(names);
}

/* ---- events ---- */

/* root/<domid>/<devid>[/leaf]: what the toolstack changed, or the echo of what we wrote. */
static void own_event(struct blkif_backend *b, const char *path)
{
	size_t n = strlen(b->root);
	unsigned domid, devid;
	struct vbd *v;
	int used = 0;
	const char *leaf;

	if (strncmp(path, b->root, n) != 0 || sscanf(path + n, "/%5u/%10u%n", &domid, &devid, &used) != 2) {
		/* A domain's directory, or our own: devices below it may have come or gone. */
		struct list *pos;

		list_for_each (pos, &b->vbds)
			wake(container_of(pos, struct vbd, link));
		b->rescan = true;
		return;
	}
	v = vbd_find(b, domid, devid);
	if (!v) {
		b->rescan = true;
		return;
	}
	leaf = path + n + used;
	if (!*leaf || v->state == VBD_INITIALISING || !strcmp(leaf, "/state") || !strcmp(leaf, "/online"))
		wake(v);
}

static void event(struct blkif_backend *b, char **e)
{
	unsigned domid, devid;
	struct vbd *v;

	switch (e[XS_WATCH_TOKEN][0]) {
	case 'b':
		own_event(b, e[XS_WATCH_PATH]);
		break;
	case 'r':
		b->deaths = true;
		break;
	case 'f':
		if (sscanf(e[XS_WATCH_TOKEN], "f%5u/%10u", &domid, &devid) != 2)
			break;
		v = vbd_find(b, domid, devid);
		if (v)
			wake(v);
		break;
	default:
		break;
	}
}

static void drain(struct blkif_backend *b)
{
	char **e;

	for (unsigned i = 0; i < DRAIN_MAX && (e = xs_check_watch(b->xs)); i++) {
		event(b, e);
		free(e);
	}
}

static void look_for_deaths(struct blkif_backend *b)
{
	struct list *pos;

	b->deaths = false;
	list_for_each (pos, &b->vbds) {
		struct vbd *v = container_of(pos, struct vbd, link);
		bool here = xs_is_domain_introduced(b->xs, v->domid);

		/* A domain that was never here may yet come: toolstacks write the nodes first. */
		if (v->introduced && !here && !v->dead) {
			v->dead = true;
			wake(v);
		}
		v->introduced = v->introduced || here;
	}
}

/* ---- the loop ---- */

/* Steps what is flagged. Answers how long poll() may wait. */
static int step_all(struct blkif_backend *b)
{
	uint64_t now = clock_ns(), next = UINT64_MAX;
	struct list *pos, *n;
	int wait_ms = -1;

	b->woken = false;
	list_for_each_safe (pos, n, &b->vbds) {
		struct vbd *v = container_of(pos, struct vbd, link);

		if (!v->wake && !__atomic_load_n(&v->async, __ATOMIC_RELAXED) &&
		    !(v->retry_ns && v->retry_ns <= now)) {
			if (v->retry_ns && v->retry_ns < next)
				next = v->retry_ns;
			continue;
		}
		v->wake = false;
		if (vbd_step(v)) {
			vbd_free(v);
			continue;
		}
		if (v->wake)
			wait_ms = BUSY_WAIT_MS;
		if (v->retry_ns && v->retry_ns < next)
			next = v->retry_ns;
		drain(b);
	}
	if (wait_ms < 0 && next != UINT64_MAX)
		wait_ms = next <= now ? 0 : (int)((next - now) / 1000000 + 1);
	/* An event drained after a VBD's turn waits in its flag. */
	return b->woken || b->rescan || b->deaths ? BUSY_WAIT_MS : wait_ms;
}

static void ask_all_to_stop(struct blkif_backend *b)
{
	struct list *pos;

	b->stopping = true;
	list_for_each (pos, &b->vbds)
		wake(container_of(pos, struct vbd, link));
}

static void *control(void *arg)
{
	struct blkif_backend *b = arg;
	uint64_t count;
	int wait_ms = 0;

	b->rescan = true;
	while (!(b->stopping && list_empty(&b->vbds))) {
		struct pollfd fds[2] = {{.fd = xs_fileno(b->xs), .events = POLLIN},
					{.fd = b->wake_fd, .events = POLLIN}};

		if (poll(fds, 2, wait_ms) > 0 && (fds[1].revents & POLLIN) &&
		    read(b->wake_fd, &count, sizeof(count)) < 0)
			count = 0;
		if (__atomic_load_n(&b->stop_asked, __ATOMIC_ACQUIRE) && !b->stopping)
			ask_all_to_stop(b);
		drain(b);
		if (b->deaths)
			look_for_deaths(b);
		if (b->rescan && !b->stopping)
			scan(b);
		b->rescan = false;
		wait_ms = step_all(b);
	}
	return NULL;
}

/* ---- the API ---- */

static void backend_free(struct blkif_backend *b)
{
	xs_close(b->xs);
	if (b->wake_fd >= 0)
		close(b->wake_fd);
	free((void *)(uintptr_t)b->opts.kind);
	free((void *)(uintptr_t)b->opts.run_dir);
	pthread_mutex_destroy(&b->lock);
	free(b);
}

static bool kind_is_sane(const char *kind)
{
	size_t n = strlen(kind);

	return n >= 1 && n <= 32 && strspn(kind, "abcdefghijklmnopqrstuvwxyz0123456789-_") == n;
}

static int take_options(struct blkif_backend *b, const struct blkif_opts *o, struct err *e)
{
	const char *kind = o->kind ? o->kind : BLKIF_DEFAULT_KIND;

	b->opts = *o;
	b->opts.kind = strdup(kind);
	b->opts.run_dir = o->run_dir ? strdup(o->run_dir) : NULL;
	b->opts.max_ring_pages = o->max_ring_pages ? o->max_ring_pages : 1u << BLKIF_MAX_ORDER;
	b->opts.max_queues = o->max_queues ? o->max_queues : 4;
	if (!b->opts.kind || (o->run_dir && !b->opts.run_dir))
		return err_set(e, -ENOMEM, "no memory for the blkif backend");
	if (!kind_is_sane(kind))
		return err_set(e, -EINVAL, "backend kind \"%s\": lower-case letters, digits, - and _ please",
			       kind);
	if (b->opts.max_ring_pages > (1u << BLKIF_MAX_ORDER) ||
	    (b->opts.max_ring_pages & (b->opts.max_ring_pages - 1)))
		return err_set(e, -EINVAL, "%u ring pages: 1, 2, 4, 8 or 16 please", b->opts.max_ring_pages);
	if (b->opts.max_queues > BLKIF_MAX_QUEUES)
		return err_set(e, -EINVAL, "%u queues: at most %u please", b->opts.max_queues,
			       BLKIF_MAX_QUEUES);
	snprintf(b->root, sizeof(b->root), "/local/domain/%u/backend/%s", STORE_BACKEND_DOMID, kind);
	return 0;
}

static int connect_store(struct blkif_backend *b, const struct blkif_opts *o, struct err *e)
{
	if (o->xenstore && setenv("XENSTORED_PATH", o->xenstore, 1) < 0)
		return err_set(e, -errno, "XENSTORED_PATH cannot be set: %s", strerror(errno));
	b->xs = xs_open(0);
	if (!b->xs)
		return err_set(e, errno ? -errno : -EIO, "no connection to xenstore (%s): %s",
			       o->xenstore ? o->xenstore : "by XENSTORED_PATH or the default",
			       strerror(errno));
	if (!xs_watch(b->xs, b->root, "b") || !xs_watch(b->xs, "@releaseDomain", "r"))
		return err_set(e, errno ? -errno : -EIO, "%s cannot be watched: %s", b->root,
			       strerror(errno));
	return 0;
}

int blkif_start(struct hyp *hyp, const struct blkif_opts *o, struct blkif_backend **out, struct err *e)
{
	struct blkif_backend *b = calloc(1, sizeof(*b));
	int rc;

	if (!b)
		return err_set(e, -ENOMEM, "no memory for the blkif backend");
	b->hyp = hyp;
	list_init(&b->vbds);
	pthread_mutex_init(&b->lock, NULL);
	b->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = b->wake_fd < 0 ? err_set(e, -errno, "no eventfd: %s", strerror(errno)) : take_options(b, o, e);
	if (rc == 0)
		rc = connect_store(b, o, e);
	if (rc < 0) {
		backend_free(b);
		return rc;
	}
	tasks_init(&b->tasks);
	rc = pthread_create(&b->thread, NULL, control, b);
	if (rc) {
		tasks_end(&b->tasks);
		backend_free(b);
		return err_set(e, -rc, "no thread for the blkif backend: %s", strerror(rc));
	}
	*out = b;
	return 0;
}

int blkif_stop(struct blkif_backend *b, struct err *e)
{
	const uint64_t one = 1;
	int rc;

	__atomic_store_n(&b->stop_asked, 1, __ATOMIC_RELEASE);
	while (write(b->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	pthread_join(b->thread, NULL);
	tasks_end(&b->tasks);
	/* A device that goes on for NBD may be between its last word to us and its return. */
	while (__atomic_load_n(&b->notifying, __ATOMIC_ACQUIRE))
		sched_yield();
	rc = b->first_failure;
	if (rc < 0 && e)
		*e = b->first_err;
	backend_free(b);
	return rc;
}

static void fill_live(const struct vbd *v, struct blkif_vbd *out)
{
	*out = v->info;
	if (v->info_dev) {
		out->has_stats = true;
		dev_stats(v->info_dev, &out->stats);
	}
	if (v->info_conn) {
		const struct blkif_counters *c = &v->info_conn->counters;

		out->refused = counter_get(&c->refused);
		out->copy_failures = counter_get(&c->copy_failures);
		out->notifies = counter_get(&c->notifies);
		out->wakeups = counter_get(&c->wakeups);
	}
}

int blkif_each(struct blkif_backend *b, bool (*fn)(void *ctx, const struct blkif_vbd *), void *ctx)
{
	struct blkif_vbd *all;
	struct list *pos;
	unsigned n = 0;

	pthread_mutex_lock(&b->lock);
	all = calloc(b->n_vbds + 1, sizeof(*all));
	if (all) {
		list_for_each (pos, &b->vbds)
			fill_live(container_of(pos, struct vbd, link), &all[n++]);
	}
	pthread_mutex_unlock(&b->lock);
	if (!all)
		return -ENOMEM;
	for (unsigned i = 0; i < n && fn(ctx, &all[i]); i++)
		;
	free(all);
	return 0;
}
