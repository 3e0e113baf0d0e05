/*
 * The verbs of the control socket: one table, then their functions. A verb takes strings and answers JSON;
 * what it refuses it refuses with a sentence and without a change.
 *
 * A VBD has a name: a ring's is "DOMID/DEVID", an NBD export's is its export name. vbd-unplug and stats take
 * it. vbd-plug answers one string, as xe prints a uuid: a ring's name, or an export's URI.
 */
#include "blkd/blkif.h"
#include "blkd/cache.h"
#include "blkd/ctl.h"
#include "blkd/err.h"
#include "blkd/nbd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- parameters ---- */

static const char *param(const json_t *params, const char *name)
{
	return json_string_value(json_object_get(params, name));
}

static int parse_bool(const char *name, const char *text, bool *out, struct err *e)
{
	if (!text)
		return 0;
	*out = !strcmp(text, "true");
	return *out || !strcmp(text, "false")
		   ? 0
		   : err_set(e, -EINVAL, "%s=%s: expected true or false", name, text);
}

static int parse_tristate(const char *name, const char *text, int *out, struct err *e)
{
	bool value = false;
	int res = parse_bool(name, text, &value, e);

	*out = text ? value : -1;
	return res;
}

static int parse_domid(const char *text, uint32_t *out, struct err *e)
{
	char *end;
	unsigned long v = strtoul(text, &end, 10);

	if (!*text || *end || *text == '-' || v == 0 || v > 0x7ff0)
		return err_set(e, -EINVAL, "domid=%s: expected the number of a guest's domain, 1 to 32752",
			       text);
	*out = (uint32_t)v;
	return 0;
}

static int parse_mode(const char *text, bool *writable, struct err *e)
{
	*writable = !text || !strcmp(text, "RW");
	return *writable || !strcmp(text, "RO") ? 0 : err_set(e, -EINVAL, "mode=%s: expected RO or RW", text);
}

int write_mode_parse(const char *text, enum write_mode *out, struct err *e)
{
	static const char *const names[] = {
	    [WRITE_AUTO] = "auto", [WRITE_THROUGH] = "through", [WRITE_BACK] = "back"};

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (!strcmp(text, names[i])) {
			*out = (enum write_mode)i;
			return 0;
		}
	}
	return err_set(e, -EINVAL, "write-mode=%s: expected auto, through or back", text);
}

/* ---- vbd-plug ---- */

struct plug {
	const char *image, *format, *domid, *device, *name, *write_mode_text;
	bool writable, nbd, shared;
	uint32_t dom, devid;
	int barrier, discard;
	enum write_mode write_mode;
};

static int parse_plug(const struct ctl_host *host, const json_t *params, struct plug *p, struct err *e)
{
	*p = (struct plug){.image = param(params, "image"),
			   .format = param(params, "format"),
			   .domid = param(params, "domid"),
			   .device = param(params, "device"),
			   .name = param(params, "name"),
			   .write_mode_text = param(params, "write-mode"),
			   .write_mode = host->write_mode};
	if (p->image[0] != '/')
		return err_set(e, -EINVAL, "image=%s: an absolute path is needed", p->image);
	if (p->format && !format_by_name(p->format))
		return err_set(e, -EINVAL, "format=%s: expected raw, vhd or vhd-fixed", p->format);
	if (p->write_mode_text && write_mode_parse(p->write_mode_text, &p->write_mode, e) < 0)
		return e->code;
	if (parse_mode(param(params, "mode"), &p->writable, e) < 0 ||
	    parse_bool("nbd", param(params, "nbd"), &p->nbd, e) < 0 ||
	    parse_tristate("barrier", param(params, "barrier"), &p->barrier, e) < 0 ||
	    parse_tristate("discard", param(params, "discard"), &p->discard, e) < 0)
		return e->code;
	if (p->domid && parse_domid(p->domid, &p->dom, e) < 0)
		return e->code;
	if (p->device && blkif_devid(p->device, &p->devid) < 0)
		return err_set(e, -EINVAL, "device=%s: expected a name like xvda, or a number", p->device);
	if (!p->domid && !p->nbd)
		return err_set(e, -EINVAL,
			       "vbd-plug: say for whom: domid=N device=xvda for a guest, nbd=true for tools");
	if (p->domid && p->nbd)
		return err_set(e, -EINVAL, "vbd-plug: domid and nbd=true are two calls");
	if (p->domid && !p->device)
		return err_set(e, -EINVAL, "vbd-plug: device=xvda (or another) is missing");
	return 0;
}

static json_t *plug_ring(const struct ctl_host *host, const struct plug *p, struct err *e)
{
	struct blkif_plug plug = {.kind = host->kind,
				  .domid = p->dom,
				  .device = p->device,
				  .image = p->image,
				  .format = p->format,
				  .writable = p->writable,
				  .write_mode = p->write_mode_text,
				  .barrier = p->barrier,
				  .discard = p->discard};
	char name[32];

	if (!host->blkif) {
		err_set(e, -ENODEV,
			"this blkd serves no guests (started without a hypervisor): use nbd=true, or start "
			"it with --hyp");
		return NULL;
	}
	if (blkif_plug(&plug, e) < 0)
		return NULL;
	snprintf(name, sizeof(name), "%u/%u", p->dom, p->devid);
	return json_string(name);
}

/* The file's name without its suffix, unless it is taken. */
static void default_name(const char *image, char *out, size_t room)
{
	const char *base = strrchr(image, '/') + 1, *dot = strrchr(base, '.');

	snprintf(out, room, "%.*s", dot && dot != base ? (int)(dot - base) : (int)strlen(base), base);
}

static json_t *plug_nbd(const struct ctl_host *host, const struct plug *p, struct err *e)
{
	char name[256], user[300], uri[1024];
	struct devtab_opts opts = {.path = p->image,
				   .format = p->format,
				   .user = user,
				   .writable = p->writable,
				   .shared = true,
				   .run_dir = host->run_dir,
				   .backing_flags = host->backing_flags,
				   .engine = host->engine,
				   .write_mode = p->write_mode,
				   .pool = host->pool,
				   .cache = host->cache};
	struct devref *ref;
	struct err ignored = ERR_INIT;

	if (p->name && strlen(p->name) >= sizeof(name)) {
		err_set(e, -ENAMETOOLONG, "name: an export's name has at most %zu bytes", sizeof(name) - 1);
		return NULL;
	}
	if (p->name)
		snprintf(name, sizeof(name), "%s", p->name);
	else
		default_name(p->image, name, sizeof(name));
	snprintf(user, sizeof(user), "nbd:%s", name);
	if (nbd_uri(host->nbd, name, uri, sizeof(uri)) < 0) {
		err_set(e, -ENAMETOOLONG, "name=%s: too long for a URI", name);
		return NULL;
	}
	if (devtab_get(&opts, &ref, e) < 0)
		return NULL;
	if (nbd_export_add(host->nbd, name, ref, !p->writable, e) < 0) {
		devtab_put(ref, &ignored);
		return NULL;
	}
	return json_string(uri);
}

static json_t *vbd_plug(const struct ctl_host *host, json_t *params, struct err *e)
{
	struct plug p;

	if (parse_plug(host, params, &p, e) < 0)
		return NULL;
	return p.nbd ? plug_nbd(host, &p, e) : plug_ring(host, &p, e);
}

/* ---- vbd-unplug ---- */

static bool parse_ring_name(const char *text, uint32_t *domid, uint32_t *devid)
{
	int used = 0;

	return sscanf(text, "%u/%u%n", domid, devid, &used) == 2 && !text[used];
}

static json_t *vbd_unplug(const struct ctl_host *host, json_t *params, struct err *e)
{
	const char *vbd = param(params, "vbd");
	uint32_t domid, devid;
	bool force = false;
	int res;

	if (parse_bool("force", param(params, "force"), &force, e) < 0)
		return NULL;
	if (host->blkif && parse_ring_name(vbd, &domid, &devid))
		res = blkif_unplug(host->kind, domid, devid, force, 0, e);
	else
		res = nbd_export_remove(host->nbd, vbd, force, e);
	return res < 0 ? NULL : json_null();
}

/* ---- vbd-list and stats ---- */

static const char *const op_names[BLK_OPS] = {"read", "write", "flush", "trim", "write-zeroes", "barrier"};

static json_t *stats_json(const struct dev_stats *s)
{
	json_t *o = json_object(), *ops = json_object();

	for (unsigned i = 0; i < BLK_OPS; i++)
		json_object_set_new(ops, op_names[i],
				    json_pack("{s:I, s:I, s:I, s:I}", "requests", (json_int_t)s->reqs[i],
					      "bytes", (json_int_t)s->bytes[i], "errors",
					      (json_int_t)s->errors[i], "latency_ns_sum",
					      (json_int_t)s->latency_ns_sum[i]));
	json_object_set_new(o, "ops", ops);
	json_object_set_new(
	    o, "storage",
	    json_pack("{s:I, s:I, s:I, s:I, s:I}", "reads", (json_int_t)s->store_reads, "read_bytes",
		      (json_int_t)s->store_read_bytes, "writes", (json_int_t)s->store_writes, "write_bytes",
		      (json_int_t)s->store_write_bytes, "flushes", (json_int_t)s->store_flushes));
	json_object_set_new(o, "device",
			    json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "in_flight",
				      (json_int_t)s->in_flight, "commits", (json_int_t)s->commits, "grows",
				      (json_int_t)s->grows, "meta_reads", (json_int_t)s->meta_reads,
				      "read_modify_writes", (json_int_t)s->rmw, "blocked",
				      (json_int_t)s->blocked, "parked", (json_int_t)s->parked, "turns",
				      (json_int_t)s->turns, "syscalls", (json_int_t)s->syscalls, "kicks",
				      (json_int_t)s->kicks));
	return o;
}

struct listing {
	json_t *rows;
	const char *only; /* name, or NULL */
	bool stats;
};

static bool list_ring(void *ctx, const struct blkif_vbd *v)
{
	static const char *const modes[] = {
	    [WRITE_AUTO] = "auto", [WRITE_THROUGH] = "through", [WRITE_BACK] = "back"};
	struct listing *l = ctx;
	char name[32];
	json_t *row;

	snprintf(name, sizeof(name), "%u/%u", v->domid, v->devid);
	if (l->only && strcmp(l->only, name) != 0)
		return true;
	row = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:s}", "vbd", name, "type", "ring",
			"image", v->image, "mode", v->writable ? "RW" : "RO", "state", v->state, "write-mode",
			modes[v->write_mode], "queues", (int)v->queues, "ring-pages", (int)v->ring_pages,
			"size", (json_int_t)v->size_bytes, "failure", v->failure);
	if (l->stats && v->has_stats)
		json_object_set_new(row, "stats", stats_json(&v->stats));
	json_array_append_new(l->rows, row);
	return true;
}

static bool list_nbd(void *ctx, const struct nbd_export_info *x)
{
	struct listing *l = ctx;
	struct dev_stats stats;
	json_t *row;

	if (l->only && strcmp(l->only, x->name) != 0)
		return true;
	row = json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:I}", "vbd", x->name, "type", "nbd", "image",
			dev_disk(x->dev)->path, "mode", x->read_only ? "RO" : "RW", "state", "Connected",
			"clients", (int)x->clients, "size", (json_int_t)dev_size_bytes(x->dev));
	if (l->stats) {
		dev_stats(x->dev, &stats);
		json_object_set_new(row, "stats", stats_json(&stats));
	}
	json_array_append_new(l->rows, row);
	return true;
}

static json_t *list(const struct ctl_host *host, struct listing *l)
{
	l->rows = json_array();
	if (host->blkif)
		blkif_each(host->blkif, list_ring, l);
	nbd_export_each(host->nbd, list_nbd, l);
	return l->rows;
}

static json_t *vbd_list(const struct ctl_host *host, json_t *params, struct err *e)
{
	struct listing l = {.only = NULL};

	(void)params;
	(void)e;
	return list(host, &l);
}

static json_t *cache_json(const struct ctl_host *host)
{
	struct cache_stats c;

	cache_stats(host->cache, &c);
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "hits", (json_int_t)c.hits, "misses",
			 (json_int_t)c.misses, "fills", (json_int_t)c.fills, "waits", (json_int_t)c.waits,
			 "evictions", (json_int_t)c.evictions, "used_bytes", (json_int_t)c.used_bytes,
			 "limit_bytes", (json_int_t)c.cap_bytes);
}

static json_t *pool_json(const struct ctl_host *host)
{
	struct bufpool_stats p;

	bufpool_stats(host->pool, &p);
	return json_pack("{s:I, s:I, s:I, s:I}", "limit_bytes", (json_int_t)p.cap_bytes, "used_bytes",
			 (json_int_t)p.in_use_bytes, "peak_bytes", (json_int_t)p.peak_bytes, "failures",
			 (json_int_t)p.failures);
}

static json_t *stats(const struct ctl_host *host, json_t *params, struct err *e)
{
	struct listing l = {.only = param(params, "vbd"), .stats = true};
	json_t *rows = list(host, &l);

	if (l.only && !json_array_size(rows)) {
		json_decref(rows);
		err_set(e, -ENOENT, "vbd=%s: no such VBD: `blkctl vbd-list` shows them", l.only);
		return NULL;
	}
	return json_pack("{s:o, s:o, s:o}", "vbds", rows, "metadata_cache", cache_json(host), "buffers",
			 pool_json(host));
}

/* ---- help ---- */

static json_t *help(const struct ctl_host *host, json_t *params, struct err *e)
{
	json_t *verbs = json_array();

	(void)host;
	(void)params;
	(void)e;
	for (const struct ctl_verb *v = ctl_verbs; v->name; v++) {
		json_t *ps = json_array();

		for (const struct ctl_param *p = v->params; p->name; p++)
			json_array_append_new(ps, json_pack("{s:s, s:s, s:b}", "name", p->name, "help",
							    p->help, "required", p->required));
		json_array_append_new(verbs, json_pack("{s:s, s:s, s:s, s:o}", "name", v->name, "help",
						       v->help, "example", v->example, "params", ps));
	}
	return verbs;
}

static const struct ctl_param no_params[] = {{NULL, NULL, false}};
static const struct ctl_param plug_params[] = {
    {"image", "path of the image", true},
    {"format", "raw, vhd or vhd-fixed; without it the suffix decides", false},
    {"mode", "RW (default) or RO", false},
    {"domid", "guest's domain: the disk is served on its ring", false},
    {"device", "xvda, xvdb, ... in the guest", false},
    {"nbd", "true: the disk is served by NBD; the URI is printed", false},
    {"name", "NBD export name; default: the file's name without suffix", false},
    {"write-mode", "auto (default), through or back", false},
    {"barrier", "true: offer WRITE_BARRIER, for guests that know no flush", false},
    {"discard", "false: do not offer DISCARD", false},
    {NULL, NULL, false},
};
static const struct ctl_param unplug_params[] = {
    {"vbd", "as vbd-plug and vbd-list print it", true},
    {"force", "true: does not wait for the guest or the clients", false},
    {NULL, NULL, false},
};
static const struct ctl_param stats_params[] = {{"vbd", "only this one", false}, {NULL, NULL, false}};

const struct ctl_verb ctl_verbs[] = {
    {"vbd-plug", "serve an image to a guest or by NBD",
     "blkctl vbd-plug image=/sr/leaf.vhd domid=5 device=xvda", plug_params, vbd_plug},
    {"vbd-unplug", "stop serving it; what was answered is durable when this returns",
     "blkctl vbd-unplug vbd=5/51712", unplug_params, vbd_unplug},
    {"vbd-list", "what is served, and in which state", "blkctl vbd-list", no_params, vbd_list},
    {"stats", "counters of VBDs, metadata cache and buffers", "blkctl stats vbd=5/51712", stats_params,
     stats},
    {"help", "all verbs and their parameters", "blkctl help", no_params, help},
    {NULL, NULL, NULL, NULL, NULL},
};
