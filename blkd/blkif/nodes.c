/*
 * What a VBD reads from xenstore and writes to it. The backend directory is the toolstack's (trusted, but
 * checked); the frontend directory belongs to the guest, which can write anything there at any moment: each
 * value is read once, capped, digits only, in range, and its path is computed from domid and devid, never
 * read.
 *
 * sector-size is always 512 and `sectors` counts 512 bytes: the one reading on which all frontends agree
 * (xen/io/blkif.h, note 12 of its later versions). feature-persistent is 0: data moves by grant copy.
 *
 * The toolstack writes our own `state` too (Closing, to detach), so every write of it is a transaction that
 * looks first. A directory that was removed is never brought back by a write.
 */
#include "blkd/blkif/backend_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PHYSICAL_SECTOR_BYTES 4096u
#define PORT_MAX	      ((1u << 17) - 1) /* event channels of FIFO ABI */

enum { INFO_CDROM = 1, INFO_REMOVABLE = 2, INFO_READONLY = 4 }; /* xen/io/blkif.h, VDISK_* */

static struct xs_handle *xs_of(const struct vbd *v)
{
	return v->be->xs;
}

/* ---- the toolstack's nodes ---- */

/* "vhd:/path" into format and image. */
static int parse_params(struct vbd_config *c, struct err *e)
{
	static const struct {
		const char *prefix, *format;
	} formats[] = {{"vhd:", "vhd"}, {"vhd-fixed:", "vhd-fixed"}, {"raw:", "raw"}, {"aio:", "raw"}};

	for (unsigned i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
		size_t n = strlen(formats[i].prefix);

		if (strncmp(c->params, formats[i].prefix, n))
			continue;
		snprintf(c->format, sizeof(c->format), "%s", formats[i].format);
		c->image = c->params + n;
		if (c->image[0] != '/')
			return err_set(e, -EINVAL, "params \"%s\": the path must be absolute", c->params);
		return 0;
	}
	return err_set(e, -EINVAL,
		       "params \"%s\": vhd:/path, vhd-fixed:/path, raw:/path or aio:/path is served here",
		       c->params);
}

static int parse_write_mode(const char *s, enum write_mode *out)
{
	if (!strcmp(s, "auto"))
		*out = WRITE_AUTO;
	else if (!strcmp(s, "through"))
		*out = WRITE_THROUGH;
	else if (!strcmp(s, "back"))
		*out = WRITE_BACK;
	else
		return -EINVAL;
	return 0;
}

/* A node that may be absent and is 0 or 1. */
static int read_flag(const struct vbd *v, const char *node, bool fallback, bool *out, struct err *e)
{
	uint32_t n;
	int rc = store_read_u32(xs_of(v), XBT_NULL, v->dir, node, 0, 1, &n);

	*out = rc == -ENOENT ? fallback : rc == 0 && n;
	return rc == 0 || rc == -ENOENT ? 0 : err_set(e, rc, "%s/%s: neither 0 nor 1", v->dir, node);
}

static int read_options(const struct vbd *v, struct vbd_config *c, struct err *e)
{
	char text[24];
	int rc = store_read(xs_of(v), XBT_NULL, v->dir, "blkd-write-mode", text, sizeof(text));

	c->write_mode = v->be->opts.write_mode;
	if (rc != -ENOENT && (rc < 0 || parse_write_mode(text, &c->write_mode)))
		return err_set(e, -EINVAL, "%s/blkd-write-mode: not auto, through or back", v->dir);
	rc = store_read(xs_of(v), XBT_NULL, v->dir, "device-type", text, sizeof(text));
	c->cdrom = rc == 0 && !strcmp(text, "cdrom");
	rc = read_flag(v, "blkd-barrier", v->be->opts.barrier, &c->barrier, e);
	if (rc == 0)
		rc = read_flag(v, "removable", false, &c->removable, e);
	if (rc == 0)
		rc = read_flag(v, "discard-enable", true, &c->discard, e);
	c->discard = c->discard && c->writable;
	return rc;
}

int nodes_read_config(struct vbd *v, struct err *e)
{
	struct vbd_config c = {.image = NULL};
	uint32_t fe_id;
	char mode[8] = "";
	int rc;

	rc = store_read(xs_of(v), XBT_NULL, v->dir, "params", c.params, sizeof(c.params));
	if (rc == 0)
		rc = store_read(xs_of(v), XBT_NULL, v->dir, "mode", mode, sizeof(mode));
	if (rc == 0)
		rc = store_read_u32(xs_of(v), XBT_NULL, v->dir, "frontend-id", v->domid, v->domid, &fe_id);
	if (rc == -ENOENT || (rc == 0 && v->own == XB_UNKNOWN))
		return -EAGAIN;
	if (rc < 0)
		return err_set(e, rc, "%s: params, mode or frontend-id cannot be understood: %s", v->dir,
			       strerror(-rc));
	if (mode[0] != 'r' && mode[0] != 'w')
		return err_set(e, -EINVAL, "%s/mode \"%s\": neither r nor w", v->dir, mode);
	c.writable = mode[0] == 'w';
	rc = parse_params(&c, e);
	if (rc == 0)
		rc = read_options(v, &c, e);
	if (rc < 0)
		return rc;
	v->config = c;
	v->config.image = v->config.params + (c.image - c.params);
	v->mine = store_read(xs_of(v), XBT_NULL, v->dir, "plugged-by", mode, sizeof(mode)) == 0 &&
		  !strcmp(mode, "blkd");
	return 0;
}

/* ---- what we write ---- */

/* Does the directory still stand, and has nobody asked to close? `to` Closing and beyond may always be
 * written. */
static int may_write_state(const struct vbd *v, struct xs_handle *xs, xs_transaction_t t, unsigned to)
{
	uint32_t now;
	int rc = store_read_u32(xs, t, v->dir, "state", 0, XB_STATES - 1, &now);

	if (rc == -ENOENT)
		return rc;
	/* Made anew behind our back: what we would say is about the old one. */
	if (rc == 0 && now == XB_INITIALISING && v->published > XB_INITIALISING)
		return -ECANCELED;
	if (rc == 0 && now == XB_CLOSING && v->published != XB_CLOSING && to < XB_CLOSING)
		return -ECANCELED;
	return 0;
}

static int write_offer(struct xs_handle *xs, xs_transaction_t t, void *arg)
{
	const struct vbd *v = arg;
	const struct blkif_opts *o = &v->be->opts;
	unsigned order = (unsigned)__builtin_ctz(o->max_ring_pages);
	const struct {
		const char *node;
		unsigned value;
	} nodes[] = {{"max-ring-page-order", order},
		     {"max-ring-pages", o->max_ring_pages},
		     {"feature-max-indirect-segments", BLKIF_INDIRECT_SEGS},
		     {"multi-queue-max-queues", o->max_queues},
		     {"feature-persistent", 0},
		     {"kthread-pid", (unsigned)getpid()},
		     {"state", XB_INIT_WAIT}};
	int rc = may_write_state(v, xs, t, XB_INIT_WAIT);

	if (rc == 0)
		rc = store_write(xs, t, v->dir, "hotplug-status", "connected", STORE_BACKEND_DOMID, v->domid);
	for (unsigned i = 0; rc == 0 && i < sizeof(nodes) / sizeof(nodes[0]); i++)
		rc = store_printf(xs, t, v->dir, nodes[i].node, v->domid, "%u", nodes[i].value);
	return rc;
}

int nodes_write_offer(struct vbd *v, struct err *e)
{
	int rc = store_transaction(xs_of(v), write_offer, v);

	if (rc == 0)
		v->published = XB_INIT_WAIT;
	else if (rc != -ENOENT && rc != -ECANCELED)
		err_set(e, rc, "%s cannot be written: %s", v->dir, strerror(-rc));
	return rc;
}

static int write_connected(struct xs_handle *xs, xs_transaction_t t, void *arg)
{
	const struct vbd *v = arg;
	const struct vbd_config *c = &v->config;
	unsigned info = (c->cdrom ? INFO_CDROM : 0u) | (c->removable ? INFO_REMOVABLE : 0u) |
			(c->writable ? 0u : INFO_READONLY);
	const struct {
		const char *node;
		uint64_t value;
		bool write;
	} nodes[] = {{"feature-flush-cache", 1, true},
		     {"feature-barrier", c->barrier && c->writable, true},
		     {"feature-discard", c->discard, true},
		     {"discard-granularity", PHYSICAL_SECTOR_BYTES, c->discard},
		     {"discard-alignment", 0, c->discard},
		     {"discard-secure", 0, c->discard},
		     {"feature-persistent", 0, true},
		     {"sectors", v->connect.limits.sectors, true},
		     {"info", info, true},
		     {"sector-size", 512, true},
		     {"physical-sector-size", PHYSICAL_SECTOR_BYTES, true},
		     {"state", XB_CONNECTED, true}};
	int rc = may_write_state(v, xs, t, XB_CONNECTED);

	for (unsigned i = 0; rc == 0 && i < sizeof(nodes) / sizeof(nodes[0]); i++) {
		if (nodes[i].write)
			rc = store_printf(xs, t, v->dir, nodes[i].node, v->domid, "%llu",
					  (unsigned long long)nodes[i].value);
	}
	return rc;
}

int nodes_write_connected(struct vbd *v, struct err *e)
{
	int rc = store_transaction(xs_of(v), write_connected, v);

	if (rc == 0)
		v->published = XB_CONNECTED;
	else if (rc != -ENOENT && rc != -ECANCELED)
		err_set(e, rc, "%s cannot be written: %s", v->dir, strerror(-rc));
	return rc;
}

struct state_write {
	const struct vbd *v;
	unsigned state;
};

static int write_state(struct xs_handle *xs, xs_transaction_t t, void *arg)
{
	const struct state_write *w = arg;
	int rc = may_write_state(w->v, xs, t, w->state);

	return rc < 0 ? rc : store_printf(xs, t, w->v->dir, "state", w->v->domid, "%u", w->state);
}

int nodes_write_state(struct vbd *v, unsigned state)
{
	struct state_write w = {.v = v, .state = state};
	int rc = store_transaction(xs_of(v), write_state, &w);

	if (rc == 0)
		v->published = v->own = state;
	else if (rc == -ENOENT)
		v->exists = false;
	return rc;
}

struct released_write {
	const struct vbd *v;
	bool remove;
};

static int write_released(struct xs_handle *xs, xs_transaction_t t, void *arg)
{
	const struct released_write *w = arg;
	int rc = may_write_state(w->v, xs, t, XB_CLOSED);

	if (rc == 0 && w->remove)
		return store_rm(xs, t, w->v->dir, "");
	if (rc == 0)
		rc = store_rm(xs, t, w->v->dir, "hotplug-status");
	return rc < 0 ? rc : store_printf(xs, t, w->v->dir, "state", w->v->domid, "%u", XB_CLOSED);
}

/* backend/<kind>/<domid>, when this was its last device. */
static void remove_empty_parent(const struct vbd *v)
{
	char path[STORE_PATH_MAX];
	unsigned n = 1;
	char **names;

	snprintf(path, sizeof(path), "%.160s/%u", v->be->root, v->domid);
	names = xs_directory(xs_of(v), XBT_NULL, path, &n);
	free(names);
	if (names && n == 0)
		store_rm(xs_of(v), XBT_NULL, path, "");
}

void nodes_write_released(struct vbd *v)
{
	struct released_write w = {.v = v, .remove = v->mine && v->dead};
	int rc = store_transaction(xs_of(v), write_released, &w);

	v->published = XB_CLOSED;
	if (rc == 0 && w.remove)
		remove_empty_parent(v);
	if (rc == -ENOENT || (rc == 0 && w.remove))
		v->exists = false;
	else if (rc < 0 && rc != -ECANCELED)
		log_error("%s: %s cannot be written: %s", v->name, v->dir, strerror(-rc));
}

/* ---- failures ---- */

static void error_dir(const struct vbd *v, char path[static STORE_PATH_MAX])
{
	snprintf(path, STORE_PATH_MAX, "/local/domain/%u/error/backend/%s/%u/%u", STORE_BACKEND_DOMID,
		 v->be->opts.kind, v->domid, v->devid);
}

static int write_failure(struct xs_handle *xs, xs_transaction_t t, void *arg)
{
	const struct vbd *v = arg;
	char path[STORE_PATH_MAX];
	int rc;

	error_dir(v, path);
	rc = store_write(xs, t, path, "error", v->failure, STORE_BACKEND_DOMID, v->domid);
	/* xenopsd and libxl's scripts wait for this one when nothing was connected yet. */
	if (rc == 0 && v->state <= VBD_OPENING && store_exists(xs, t, v->dir))
		rc = store_write(xs, t, v->dir, "hotplug-error", v->failure, STORE_BACKEND_DOMID, v->domid);
	return rc;
}

void nodes_fail(struct vbd *v, const struct err *e)
{
	int rc;

	snprintf(v->failure, sizeof(v->failure), "%s", e->text[0] ? e->text : strerror(-e->code));
	log_error("%s: %s", v->name, v->failure);
	rc = store_transaction(xs_of(v), write_failure, v);
	if (rc < 0)
		log_warn("%s: the reason cannot be written to xenstore: %s", v->name, strerror(-rc));
}

void nodes_clear_failure(struct vbd *v)
{
	char path[STORE_PATH_MAX];

	error_dir(v, path);
	store_rm(xs_of(v), XBT_NULL, path, "");
	store_rm(xs_of(v), XBT_NULL, v->dir, "hotplug-error");
}

/* ---- states ---- */

void nodes_read_states(struct vbd *v)
{
	uint32_t n;
	int rc = store_read_u32(xs_of(v), XBT_NULL, v->dir, "state", 0, XB_STATES - 1, &n);

	v->own = rc == 0 ? n : XB_UNKNOWN;
	v->exists = rc != -ENOENT || store_exists(xs_of(v), XBT_NULL, v->dir);
	rc = store_read_u32(xs_of(v), XBT_NULL, v->dir, "online", 0, 1, &n);
	v->online = v->exists && (rc < 0 || n);
	rc = store_read_u32(xs_of(v), XBT_NULL, v->fe_dir, "state", 0, XB_STATES - 1, &n);
	v->fe = rc == 0 ? n : XB_UNKNOWN;
}

/* ---- the frontend's nodes ---- */

/* A number the guest wrote. With fallback: absent is that. */
static int fe_number(const struct vbd *v, const char *dir, const char *node, uint32_t min, uint32_t max,
		     const uint32_t *fallback, uint32_t *out, struct err *e)
{
	int rc = store_read_u32(xs_of(v), XBT_NULL, dir, node, min, max, out);

	if (rc == -ENOENT && fallback) {
		*out = *fallback;
		return 0;
	}
	if (rc == -ENOENT)
		return err_set(e, rc, "the frontend says it is ready, but %s/%s is not there", dir, node);
	if (rc < 0)
		return err_set(e, rc, "%s/%s: not a number from %u to %u", dir, node, min, max);
	return 0;
}

static int fe_queue(const struct vbd *v, const char *dir, bool has_order, struct blkif_connect *o, unsigned q,
		    struct err *e)
{
	int rc = fe_number(v, dir, "event-channel", 1, PORT_MAX, NULL, &o->queue[q].port, e);
	char node[24];

	for (unsigned i = 0; rc == 0 && i < o->pages; i++) {
		snprintf(node, sizeof(node), "ring-ref%u", i);
		/* One page goes by either name: Linux writes ring-ref, others ring-page-order 0 and
		 * ring-ref0. */
		if (o->pages == 1 &&
		    (!has_order || store_read_u32(xs_of(v), XBT_NULL, dir, node, 0, UINT32_MAX,
						  &o->queue[q].grefs[0]) == -ENOENT))
			snprintf(node, sizeof(node), "ring-ref");
		rc = fe_number(v, dir, node, 0, UINT32_MAX, NULL, &o->queue[q].grefs[i], e);
	}
	return rc;
}

int nodes_read_frontend(struct vbd *v, struct blkif_connect *o, struct err *e)
{
	const uint32_t one = 1, none = UINT32_MAX;
	uint32_t order, queues = 1;
	char protocol[24], dir[STORE_PATH_MAX + 32];
	bool has_protocol;
	int rc;

	memset(o, 0, sizeof(*o));
	rc = store_read(xs_of(v), XBT_NULL, v->fe_dir, "protocol", protocol, sizeof(protocol));
	has_protocol = rc == 0;
	if ((rc < 0 && rc != -ENOENT) || blkif_abi_find(has_protocol ? protocol : NULL, &o->abi) < 0)
		return err_set(e, -ENOTSUP, "%s/protocol: neither x86_64-abi nor x86_32-abi", v->fe_dir);
	rc = fe_number(v, v->fe_dir, "ring-page-order", 0,
		       (uint32_t)__builtin_ctz(v->be->opts.max_ring_pages), &none, &order, e);
	if (rc == 0)
		rc = fe_number(v, v->fe_dir, "multi-queue-num-queues", 1, v->be->opts.max_queues, &one,
			       &queues, e);
	if (rc < 0)
		return rc;
	o->pages = order == none ? 1 : 1u << order;
	o->n_queues = queues;
	if (queues == 1)
		return fe_queue(v, v->fe_dir, order != none, o, 0, e);
	for (unsigned q = 0; rc == 0 && q < queues; q++) {
		snprintf(dir, sizeof(dir), "%s/queue-%u", v->fe_dir, q);
		rc = fe_queue(v, dir, order != none, o, q, e);
	}
	return rc;
}
