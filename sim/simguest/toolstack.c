/*
 * The toolstack's part: the nodes of libxl's device_disk_add for kind vbd3 (or any other: the frontend finds
 * its backend by path). Backend directory n<backend>,r<guest>; frontend directory n<guest>,r<backend>;
 * permissions are set on every node, as libxl does, so nothing depends on how a store inherits them.
 */
#include "sim/simguest/toolstack.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/simguest/guest.h"

static void be_path(const struct guest *g, const struct vbd *v, char *out, size_t len)
{
	snprintf(out, len, "/local/domain/0/backend/%s/%" PRIu32 "/%" PRIu32,
		 v->spec->kind ? v->spec->kind : g->opt->kind, g->hyp.domid, v->spec->devid);
}

static void fe_path(const struct guest *g, const struct vbd *v, char *out, size_t len)
{
	snprintf(out, len, "/local/domain/%" PRIu32 "/device/vbd/%" PRIu32, g->hyp.domid, v->spec->devid);
}

struct where {
	struct xw *xs;
	uint32_t tx, owner, reader;
	const char *dir;
	int err; /* the first; later puts do nothing */
};

static void put(struct where *w, const char *node, const char *value)
{
	char path[PATH_BYTES + 64];
	int len = snprintf(path, sizeof(path), "%s/%s", w->dir, node);

	if (!w->err && (len < 0 || (size_t)len >= sizeof(path)))
		w->err = -ENAMETOOLONG;
	if (!w->err)
		w->err = xw_write(w->xs, w->tx, path, value);
	if (!w->err)
		w->err = xw_set_perms(w->xs, w->tx, path, w->owner, w->reader);
}

static void put_u32(struct where *w, const char *node, uint32_t value)
{
	char text[16];

	snprintf(text, sizeof(text), "%" PRIu32, value);
	put(w, node, text);
}

static void make_dir(struct where *w)
{
	w->err = xw_mkdir(w->xs, w->tx, w->dir);
	if (!w->err)
		w->err = xw_set_perms(w->xs, w->tx, w->dir, w->owner, w->reader);
}

static int write_frontend(struct guest *g, struct vbd *v, uint32_t tx, const char *fe, const char *be)
{
	struct where w = {.xs = &g->dom0, .tx = tx, .owner = g->hyp.domid, .reader = 0, .dir = fe};

	make_dir(&w);
	put(&w, "backend", be);
	put_u32(&w, "backend-id", 0);
	put_u32(&w, "virtual-device", v->spec->devid);
	put(&w, "device-type", "disk");
	put_u32(&w, "trusted", 1);
	put_u32(&w, "state", 1);
	return w.err;
}

static int write_backend(struct guest *g, struct vbd *v, uint32_t tx, const char *fe, const char *be)
{
	struct where w = {.xs = &g->dom0, .tx = tx, .owner = 0, .reader = g->hyp.domid, .dir = be};

	make_dir(&w);
	put(&w, "frontend", fe);
	put_u32(&w, "frontend-id", g->hyp.domid);
	put(&w, "params", v->spec->params);
	put_u32(&w, "online", 1);
	put_u32(&w, "removable", 0);
	put_u32(&w, "bootable", 1);
	put(&w, "dev", v->name);
	put(&w, "type", "tap");
	put(&w, "mode", v->spec->mode);
	put(&w, "device-type", "disk");
	put_u32(&w, "discard-enable", *v->spec->mode == 'w');
	put(&w, "specification", "xen");
	for (unsigned i = 0; i < v->spec->nextra; i++) {
		char node[64];
		const char *eq = strchr(v->spec->extra[i], '=');

		snprintf(node, sizeof(node), "%.*s", (int)(eq - v->spec->extra[i]), v->spec->extra[i]);
		put(&w, node, eq + 1);
	}
	put_u32(&w, "state", 1);
	return w.err;
}

/* Runs `body` in transactions until one is not conflicted. */
static int transact(struct guest *g, struct vbd *v,
		    int (*body)(struct guest *, struct vbd *, uint32_t tx, const char *fe, const char *be))
{
	char fe[PATH_BYTES], be[PATH_BYTES];
	uint32_t tx;
	int err;

	fe_path(g, v, fe, sizeof(fe));
	be_path(g, v, be, sizeof(be));
	do {
		err = xw_tx_start(&g->dom0, &tx);
		if (err)
			return err;
		err = body(g, v, tx, fe, be);
		if (err) {
			xw_tx_end(&g->dom0, tx, false);
			return err;
		}
		err = xw_tx_end(&g->dom0, tx, true);
	} while (err == -EAGAIN);
	return err;
}

static int write_both(struct guest *g, struct vbd *v, uint32_t tx, const char *fe, const char *be)
{
	int err = write_frontend(g, v, tx, fe, be);

	return err ? err : write_backend(g, v, tx, fe, be);
}

static int write_detach(struct guest *g, struct vbd *v, uint32_t tx, const char *fe, const char *be)
{
	uint64_t state;
	int err = xw_read_u64(&g->dom0, tx, be, "state", &state);

	(void)v;
	(void)fe;
	if (!err)
		err = xw_printf(&g->dom0, tx, be, "online", "0");
	return err ? err : xw_printf(&g->dom0, tx, be, "state", "5");
}

int toolstack_plug(struct guest *g, struct vbd *v)
{
	return transact(g, v, write_both);
}

int toolstack_detach(struct guest *g, struct vbd *v)
{
	return transact(g, v, write_detach);
}

/* Removes a node, and its parent if that is empty then, as libxl does: backend/<kind>/<domid> must not
 * outlive its disks. */
static void remove_with_parent(struct xw *x, char *path)
{
	char *slash = strrchr(path, '/');

	xw_rm(x, 0, path);
	*slash = 0;
	if (xw_is_empty_dir(x, path))
		xw_rm(x, 0, path);
}

void toolstack_remove(struct guest *g, struct vbd *v)
{
	char path[PATH_BYTES];

	fe_path(g, v, path, sizeof(path));
	remove_with_parent(&g->dom0, path);
	be_path(g, v, path, sizeof(path));
	remove_with_parent(&g->dom0, path);
}

void toolstack_show_error(struct guest *g, struct vbd *v)
{
	char path[PATH_BYTES + 64], be[PATH_BYTES], *text;
	int err;

	if (g->dom0.fd < 0)
		return;
	be_path(g, v, be, sizeof(be));
	snprintf(path, sizeof(path), "/local/domain/0/error/%s/error", be + strlen("/local/domain/0/"));
	text = xw_read(&g->dom0, 0, path, &err);
	if (text)
		note("%s: the backend says: %s", v->name, text);
	free(text);
}
