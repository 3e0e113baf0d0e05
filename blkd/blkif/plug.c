/*
 * The toolstack's half of a VBD, for people without a toolstack: what libxl writes for a disk, the wait for
 * the backend, and the removal.
 *
 * All nodes are written in one transaction, so no backend ever sees half a device. Permissions are a
 * toolstack's: the backend directory is ours and the guest may read it; the frontend directory is the guest's
 * and we may read it.
 *
 * Works on its own connection to xenstore, against any backend that follows the protocol, in this process or
 * not. What it wrote carries plugged-by=blkd: then the backend takes the directory away when the domain dies,
 * since no toolstack will.
 */
#include "blkd/blkif.h"

#include "blkd/blkif/backend_priv.h"
#include "blkd/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_TIMEOUT_MS 10000u

/* ---- device names ---- */

/* "a" 0, "z" 25, "aa" 26 ... -1: not lower-case letters, or too many. */
static int letters(const char **s)
{
	int n = 0, digits = 0;

	for (; **s >= 'a' && **s <= 'z'; (*s)++) {
		if (++digits > 3)
			return -1;
		n = n * 26 + (**s - 'a' + 1);
	}
	return digits ? n - 1 : -1;
}

static int partition(const char *s, uint32_t *part)
{
	*part = 0;
	return *s ? store_parse_u32(s, 1, 255, part) : 0;
}

static int extended(uint32_t disk, uint32_t part, uint32_t *devid)
{
	if (disk < 16 && part < 16)
		*devid = 202u << 8 | disk << 4 | part;
	else if (disk < (1u << 20))
		*devid = 1u << 28 | disk << 8 | part;
	else
		return -EINVAL;
	return 0;
}

int blkif_devid(const char *device, uint32_t *devid)
{
	const char *s = device;
	uint32_t part, disk32;
	char digits[16];
	int disk;

	if (store_parse_u32(device, 0, UINT32_MAX, devid) == 0)
		return 0;
	if (*s == 'd' && sscanf(s, "d%9[0-9]%n", digits, &disk) == 1) {
		s += disk;
		if (store_parse_u32(digits, 0, (1u << 20) - 1, &disk32) < 0 || (*s && (*s++ != 'p' || !*s)) ||
		    partition(s, &part) < 0)
			return -EINVAL;
		return extended(disk32, part, devid);
	}
	if (strncmp(s, "xvd", 3) == 0) {
		s += 3;
		disk = letters(&s);
		return disk < 0 || partition(s, &part) < 0 ? -EINVAL : extended((uint32_t)disk, part, devid);
	}
	if (strncmp(s, "sd", 2) != 0 && strncmp(s, "hd", 2) != 0)
		return -EINVAL;
	s += 2;
	disk = letters(&s);
	if (disk < 0 || partition(s, &part) < 0)
		return -EINVAL;
	if (device[0] == 's' && disk < 16 && part < 16)
		*devid = 8u << 8 | (uint32_t)disk << 4 | part;
	else if (device[0] == 'h' && disk < 4 && part < 64)
		*devid = (disk < 2 ? 3u : 22u) << 8 | ((uint32_t)disk & 1) << 6 | part;
	else
		return -EINVAL;
	return 0;
}

/* ---- plugging ---- */

struct plug {
	const struct blkif_plug *o;
	const char *kind, *format;
	uint32_t domid, devid;
	bool force;
	char dir[STORE_PATH_MAX], fe_dir[STORE_PATH_MAX], error_dir[STORE_PATH_MAX];
};

static void fill_paths(struct plug *p, const char *kind, uint32_t domid, uint32_t devid)
{
	p->kind = kind ? kind : BLKIF_DEFAULT_KIND;
	p->domid = domid;
	p->devid = devid;
	snprintf(p->dir, sizeof(p->dir), "/local/domain/%u/backend/%.32s/%u/%u", STORE_BACKEND_DOMID, p->kind,
		 domid, devid);
	snprintf(p->fe_dir, sizeof(p->fe_dir), "/local/domain/%u/device/vbd/%u", domid, devid);
	snprintf(p->error_dir, sizeof(p->error_dir), "/local/domain/%u/error/backend/%.32s/%u/%u",
		 STORE_BACKEND_DOMID, p->kind, domid, devid);
}

struct node {
	const char *name, *value; /* value NULL: is not written */
};

static int write_nodes(struct xs_handle *xs, xs_transaction_t t, const char *dir, const struct node *nodes,
		       unsigned n, uint32_t owner, uint32_t reader)
{
	int rc = store_write(xs, t, dir, "", "", owner, reader);

	for (unsigned i = 0; rc == 0 && i < n; i++) {
		if (nodes[i].value)
			rc = store_write(xs, t, dir, nodes[i].name, nodes[i].value, owner, reader);
	}
	return rc;
}

static const char *flag(int value)
{
	return value < 0 ? NULL : value ? "1" : "0";
}

static int write_plug(struct xs_handle *xs, xs_transaction_t t, void *arg)
{
	const struct plug *p = arg;
	char params[300], id[16], devid[16];
	const struct node back[] = {{"frontend", p->fe_dir},
				    {"frontend-id", id},
				    {"params", params},
				    {"type", "phy"},
				    {"dev", p->o->device},
				    {"mode", p->o->writable ? "w" : "r"},
				    {"device-type", "disk"},
				    {"removable", "0"},
				    {"bootable", "1"},
				    {"discard-enable", flag(p->o->discard)},
				    {"blkd-write-mode", p->o->write_mode},
				    {"blkd-barrier", flag(p->o->barrier)},
				    {"plugged-by", "blkd"},
				    {"online", "1"},
				    {"state", "1"}};
	const struct node front[] = {{"backend", p->dir},
				     {"backend-id", "0"},
				     {"virtual-device", devid},
				     {"device-type", "disk"},
				     {"state", "1"}};
	int rc;

	snprintf(params, sizeof(params), "%s:%s", p->format, p->o->image);
	snprintf(id, sizeof(id), "%u", p->domid);
	snprintf(devid, sizeof(devid), "%u", p->devid);
	if (store_exists(xs, t, p->dir))
		return -EEXIST;
	rc = write_nodes(xs, t, p->dir, back, sizeof(back) / sizeof(back[0]), STORE_BACKEND_DOMID, p->domid);
	if (rc == 0)
		rc = write_nodes(xs, t, p->fe_dir, front, sizeof(front) / sizeof(front[0]), p->domid,
				 STORE_BACKEND_DOMID);
	return rc;
}

static int remove_nodes(struct xs_handle *xs, xs_transaction_t t, void *arg)
{
	const struct plug *p = arg;
	int rc = store_rm(xs, t, p->dir, "");

	if (rc == 0)
		rc = store_rm(xs, t, p->error_dir, "");
	return rc < 0 ? rc : store_rm(xs, t, p->fe_dir, "");
}

/* Waits until there may be news of the directory. False: the deadline passed. */
static bool wait_for_news(struct xs_handle *xs, uint64_t deadline_ns)
{
	uint64_t now = clock_ns();
	struct pollfd fd = {.fd = xs_fileno(xs), .events = POLLIN};
	char **e;

	if (now >= deadline_ns)
		return false;
	poll(&fd, 1, (int)((deadline_ns - now) / 1000000 + 1));
	while ((e = xs_check_watch(xs)))
		free(e);
	return true;
}

/* 1: ready; 0: not yet; -errno: refused, with the backend's reason. */
static int plug_state(struct xs_handle *xs, const struct plug *p, struct err *e)
{
	uint32_t state = XB_UNKNOWN;
	char reason[400];
	int rc = store_read(xs, XBT_NULL, p->dir, "hotplug-error", reason, sizeof(reason));

	if (rc == 0)
		return err_set(e, -EIO, "%s", reason);
	rc = store_read_u32(xs, XBT_NULL, p->dir, "state", 0, XB_STATES - 1, &state);
	if (rc == -ENOENT)
		return err_set(e, -ENOENT, "%s was taken away meanwhile", p->dir);
	if (state == XB_CLOSING || state == XB_CLOSED)
		return err_set(e, -EIO, "the backend went to state %s without saying why",
			       xenbus_name(state));
	return state >= XB_INIT_WAIT;
}

static int check_plug(const struct blkif_plug *o, struct plug *p, struct err *e)
{
	const char *dot = strrchr(o->image, '.');
	uint32_t devid;

	if (blkif_devid(o->device, &devid) < 0)
		return err_set(e, -EINVAL, "\"%s\" is no device: xvda, sdb, hdc, d5 or a number please",
			       o->device);
	if (o->image[0] != '/' || strlen(o->image) > 240)
		return err_set(e, -EINVAL, "\"%s\": an absolute path of at most 240 bytes please", o->image);
	fill_paths(p, o->kind, o->domid, devid);
	p->format = o->format ? o->format : dot && !strcmp(dot, ".vhd") ? "vhd" : "raw";
	return 0;
}

static int plug_and_wait(struct xs_handle *xs, struct plug *p, struct err *e)
{
	unsigned timeout_ms = p->o->timeout_ms ? p->o->timeout_ms : DEFAULT_TIMEOUT_MS;
	uint64_t deadline_ns = clock_ns() + timeout_ms * 1000000ull;
	int rc;

	if (!xs_is_domain_introduced(xs, p->domid))
		return err_set(e, -ESRCH, "there is no domain %u", p->domid);
	if (!xs_watch(xs, p->dir, "p"))
		return err_set(e, errno ? -errno : -EIO, "%s cannot be watched: %s", p->dir, strerror(errno));
	rc = store_transaction(xs, write_plug, p);
	if (rc == -EEXIST)
		return err_set(e, rc, "domain %u has a device %s (%u) already", p->domid, p->o->device,
			       p->devid);
	if (rc < 0)
		return err_set(e, rc, "%s cannot be written: %s", p->dir, strerror(-rc));
	while ((rc = plug_state(xs, p, e)) == 0) {
		if (!wait_for_news(xs, deadline_ns)) {
			rc = err_set(e, -ETIMEDOUT, "no backend of kind %s took up %s within %u ms", p->kind,
				     p->dir, timeout_ms);
			break;
		}
	}
	if (rc < 0)
		store_transaction(xs, remove_nodes, p);
	return rc < 0 ? rc : 0;
}

int blkif_plug(const struct blkif_plug *o, struct err *e)
{
	struct xs_handle *xs;
	struct plug p = {.o = o};
	int rc = check_plug(o, &p, e);

	if (rc < 0)
		return rc;
	xs = xs_open(0);
	if (!xs)
		return err_set(e, errno ? -errno : -EIO, "no connection to xenstore: %s", strerror(errno));
	rc = plug_and_wait(xs, &p, e);
	xs_close(xs);
	return rc;
}

/* ---- unplugging ---- */

static int write_unplug(struct xs_handle *xs, xs_transaction_t t, void *arg)
{
	const struct plug *p = arg;
	int rc = store_exists(xs, t, p->dir) ? 0 : -ENOENT;

	if (rc == 0)
		rc = store_printf(xs, t, p->dir, "online", p->domid, "0");
	if (rc == 0)
		rc = store_printf(xs, t, p->dir, "state", p->domid, "%u", XB_CLOSING);
	if (rc == 0 && p->force)
		rc = store_rm(xs, t, p->fe_dir, "");
	return rc;
}

static bool is_released(struct xs_handle *xs, const struct plug *p)
{
	char value[32];
	uint32_t state;
	int rc = store_read_u32(xs, XBT_NULL, p->dir, "state", 0, XB_STATES - 1, &state);

	if (rc == -ENOENT)
		return true;
	return rc == 0 && state == XB_CLOSED &&
	       store_read(xs, XBT_NULL, p->dir, "hotplug-status", value, sizeof(value)) == -ENOENT;
}

static int unplug_and_wait(struct xs_handle *xs, struct plug *p, unsigned timeout_ms, struct err *e)
{
	uint64_t deadline_ns = clock_ns() + timeout_ms * 1000000ull;
	int rc;

	if (!xs_watch(xs, p->dir, "p"))
		return err_set(e, errno ? -errno : -EIO, "%s cannot be watched: %s", p->dir, strerror(errno));
	rc = store_transaction(xs, write_unplug, p);
	if (rc == -ENOENT)
		return err_set(e, rc, "domain %u has no device %u of kind %s", p->domid, p->devid, p->kind);
	if (rc < 0)
		return err_set(e, rc, "%s cannot be written: %s", p->dir, strerror(-rc));
	while (!is_released(xs, p)) {
		if (!wait_for_news(xs, deadline_ns))
			return err_set(e, -ETIMEDOUT,
				       "domain %u did not let go of device %u within %u ms; it goes when the "
				       "guest closes it%s",
				       p->domid, p->devid, timeout_ms, p->force ? "" : ", or with force");
	}
	rc = store_transaction(xs, remove_nodes, p);
	return rc < 0 ? err_set(e, rc, "%s cannot be removed: %s", p->dir, strerror(-rc)) : 0;
}

int blkif_unplug(const char *kind, uint32_t domid, uint32_t devid, bool force, unsigned timeout_ms,
		 struct err *e)
{
	struct xs_handle *xs = xs_open(0);
	struct plug p = {.force = force};
	int rc;

	if (!xs)
		return err_set(e, errno ? -errno : -EIO, "no connection to xenstore: %s", strerror(errno));
	fill_paths(&p, kind, domid, devid);
	rc = unplug_and_wait(xs, &p, timeout_ms ? timeout_ms : DEFAULT_TIMEOUT_MS, e);
	xs_close(xs);
	return rc;
}
