/*
 * The verbs of the store: one table, from request type to function, as xen/io/xs_wire.h numbers them.
 *
 * A verb answers itself and returns 0, or returns a negative errno that becomes the answer. Arguments are
 * taken apart here, completely, before anything below sees them; the frame is followed by a NUL that is not
 * part of it, so strings always end.
 */
#include "sim/simxen/xs.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The whole payload is one string with its NUL. */
static const char *only_arg(const struct request *r)
{
	return r->hdr.len && strlen(r->data) + 1 == r->hdr.len ? r->data : NULL;
}

static unsigned count_strings(const struct request *r)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < r->hdr.len; i++)
		n += r->data[i] == '\0';
	return n;
}

static const char *second_arg(const struct request *r)
{
	return r->data + strlen(r->data) + 1;
}

/* A number as xenstored takes it, or -1. */
static int64_t number(const char *s)
{
	char *end;
	unsigned long long v = strtoull(s, &end, 10);

	if (end == s || *end != '\0' || s[0] == '-' || v > UINT32_MAX)
		return -1;
	return (int64_t)v;
}

static int get_path(const struct xs_conn *c, const char *said, char path[static PATH_BYTES])
{
	unsigned rel;

	return said ? path_canonical(c->dom, said, path, &rel) : -EINVAL;
}

static int get_node(struct xs_conn *c, struct request *r, const char *said, const struct node **out)
{
	char path[PATH_BYTES];
	int rc = get_path(c, said, path);

	return rc < 0 ? rc : tree_get(c->dom, r->tx, path, PERM_READ, out);
}

static int do_directory(struct xs_conn *c, struct request *r)
{
	const struct node *n;
	int rc = get_node(c, r, only_arg(r), &n);

	if (rc == 0)
		xs_reply(c, r, n->kids, n->kids_bytes);
	return rc;
}

/*
 * A piece of a directory that is too long for one frame: generation, names, and an empty name behind the
 * last. The generation tells the client whether the pieces are of one directory.
 */
static int do_directory_part(struct xs_conn *c, struct request *r)
{
	char out[XENSTORE_PAYLOAD_MAX];
	const struct node *n;
	size_t at, room;
	uint32_t off;
	int rc;

	if (count_strings(r) != 2)
		return -EINVAL;
	rc = get_node(c, r, r->data, &n);
	if (rc < 0)
		return rc;
	off = (uint32_t)strtoul(second_arg(r), NULL, 10);
	at = (size_t)snprintf(out, sizeof(out), "%" PRIu64, n->gen) + 1;
	room = sizeof(out) - 1;
	/* An offset inside of a name reads on from there, as xenstored does it; the kids end with a NUL in
	 * any case. */
	while (off < n->kids_bytes) {
		size_t bytes = strlen(n->kids + off) + 1;

		if (at + bytes > room)
			break;
		memcpy(out + at, n->kids + off, bytes);
		at += bytes;
		off += (uint32_t)bytes;
	}
	if (off >= n->kids_bytes)
		out[at++] = '\0';
	xs_reply(c, r, out, at);
	return 0;
}

static int do_read(struct xs_conn *c, struct request *r)
{
	const struct node *n;
	int rc = get_node(c, r, only_arg(r), &n);

	if (rc == 0)
		xs_reply(c, r, n->data, n->data_bytes);
	return rc;
}

static int do_get_perms(struct xs_conn *c, struct request *r)
{
	char out[XENSTORE_PAYLOAD_MAX];
	const struct node *n;
	int rc = get_node(c, r, only_arg(r), &n);

	if (rc == 0)
		xs_reply(c, r, out, perms_format(n->perms, n->nperms, out, sizeof(out)));
	return rc;
}

static int do_set_perms(struct xs_conn *c, struct request *r)
{
	char path[PATH_BYTES];
	struct perm *perms;
	unsigned n = count_strings(r);
	int rc;

	if (n < 2 || r->data[r->hdr.len - 1] != '\0')
		return -EINVAL;
	n--;
	if (!is_privileged(c->dom) && n > QUOTA_PERMS)
		return -ENOSPC;
	perms = must_alloc(n * sizeof(*perms));
	rc = perms_parse(second_arg(r), n, perms);
	if (rc == 0 && r->data[0] == '@') {
		rc = special_set_perms(c->dom, r->data, perms, n);
	} else if (rc == 0) {
		rc = get_path(c, r->data, path);
		if (rc == 0)
			rc = tree_set_perms(c->dom, r->tx, path, perms, n);
	}
	free(perms);
	if (rc == 0)
		xs_ack(c, r);
	return rc;
}

static int do_write(struct xs_conn *c, struct request *r)
{
	char path[PATH_BYTES];
	size_t path_bytes;
	int rc;

	if (count_strings(r) < 1)
		return -EINVAL;
	path_bytes = strlen(r->data) + 1;
	rc = get_path(c, r->data, path);
	if (rc == 0)
		rc = tree_write(c->dom, r->tx, path, r->data + path_bytes, r->hdr.len - (uint32_t)path_bytes);
	if (rc == 0)
		xs_ack(c, r);
	return rc;
}

static int do_mkdir(struct xs_conn *c, struct request *r)
{
	char path[PATH_BYTES];
	int rc = get_path(c, only_arg(r), path);

	if (rc == 0)
		rc = tree_mkdir(c->dom, r->tx, path);
	if (rc == 0)
		xs_ack(c, r);
	return rc;
}

static int do_rm(struct xs_conn *c, struct request *r)
{
	char path[PATH_BYTES];
	int rc = get_path(c, only_arg(r), path);

	if (rc == 0)
		rc = tree_rm(c->dom, r->tx, path);
	if (rc == 0)
		xs_ack(c, r);
	return rc;
}

/* Two strings: a path or special name, and a token. */
static int watch_args(struct xs_conn *c, const struct request *r, char path[static PATH_BYTES], unsigned *rel,
		      const char **token)
{
	if (count_strings(r) != 2 || r->data[r->hdr.len - 1] != '\0')
		return -EINVAL;
	*token = second_arg(r);
	*rel = 0;
	if (r->data[0] != '@')
		return path_canonical(c->dom, r->data, path, rel);
	if (strlen(r->data) > XENSTORE_REL_PATH_MAX)
		return -EINVAL;
	snprintf(path, PATH_BYTES, "%s", r->data);
	return 0;
}

static int do_watch(struct xs_conn *c, struct request *r)
{
	char path[PATH_BYTES];
	const char *token = NULL;
	struct watch *w = NULL;
	unsigned rel;
	int rc = watch_args(c, r, path, &rel, &token);

	if (rc == 0)
		rc = watch_add(c, path, rel, token, &w);
	if (rc < 0)
		return rc;
	xs_ack(c, r);
	if (!c->doomed)
		watch_initial(w);
	return 0;
}

static int do_unwatch(struct xs_conn *c, struct request *r)
{
	char path[PATH_BYTES];
	const char *token = NULL;
	unsigned rel;
	int rc = watch_args(c, r, path, &rel, &token);

	if (rc == 0)
		rc = watch_remove(c, path, token);
	if (rc == 0)
		xs_ack(c, r);
	return rc;
}

static void unlink_tx(struct xs_conn *c, struct tx *tx)
{
	struct tx **at = &c->txs;

	while (*at != tx)
		at = &(*at)->next;
	*at = tx->next;
	c->ntxs--;
	c->dom->ntxs--;
}

static int do_reset_watches(struct xs_conn *c, struct request *r)
{
	watches_drop(c);
	while (c->txs) {
		struct tx *tx = c->txs;

		unlink_tx(c, tx);
		tx_free(tx);
	}
	r->tx = NULL;
	xs_ack(c, r);
	return 0;
}

static struct tx *find_tx(const struct xs_conn *c, uint32_t id)
{
	struct tx *tx = c->txs;

	while (tx && tx->id != id)
		tx = tx->next;
	return tx;
}

static int do_transaction_start(struct xs_conn *c, struct request *r)
{
	bool privileged = is_privileged(c->dom);
	char id[16];
	struct tx *tx;

	if (r->tx)
		return -EBUSY;
	/* One above the quota: xenstored compares before it counts. */
	if (privileged ? c->ntxs >= MAX_TXS_OF_DOM0 : c->dom->ntxs > QUOTA_TXS)
		return -ENOSPC;
	while (c->next_tx_id == 0 || find_tx(c, c->next_tx_id))
		c->next_tx_id++;
	tx = tx_new(c->next_tx_id++, privileged ? STORE_MAX_NODES : QUOTA_TX_TOUCHED);
	tx->next = c->txs;
	c->txs = tx;
	c->ntxs++;
	c->dom->ntxs++;
	snprintf(id, sizeof(id), "%u", tx->id);
	xs_reply(c, r, id, strlen(id) + 1);
	return 0;
}

/* Whether the nodes that the transaction makes still have room: others may have been made meanwhile. */
static int check_commit_quota(const struct tx *tx)
{
	for (unsigned i = 0; i < tx->ndeltas; i++)
		if (tx->deltas[i].domid != 0 && tx->deltas[i].nodes > 0 &&
		    store_owned(tx, tx->deltas[i].domid) > QUOTA_NODES)
			return -ENOSPC;
	return 0;
}

static int do_transaction_end(struct xs_conn *c, struct request *r)
{
	const char *arg = only_arg(r);
	struct tx *tx = r->tx;
	int rc = 0;

	if (!arg || (strcmp(arg, "T") != 0 && strcmp(arg, "F") != 0))
		return -EINVAL;
	if (!tx)
		return -ENOENT;
	/* Whatever becomes of it, it is no longer the connection's: the events of a commit may end the
	 * connection. */
	r->tx = NULL;
	unlink_tx(c, tx);
	if (arg[0] == 'T') {
		rc = check_commit_quota(tx);
		if (rc == 0)
			rc = tx_commit(tx);
		if (rc == 0)
			watch_fire_committed(tx);
	}
	tx_free(tx);
	if (rc == 0)
		xs_ack(c, r);
	return rc;
}

static int do_get_domain_path(struct xs_conn *c, struct request *r)
{
	const char *arg = only_arg(r);
	int64_t domid = arg ? number(arg) : -1;
	char path[64];

	if (domid < 0)
		return -EINVAL;
	snprintf(path, sizeof(path), "/local/domain/%" PRId64, domid);
	xs_reply(c, r, path, strlen(path) + 1);
	return 0;
}

static struct domain *domain_arg(const char *arg)
{
	int64_t domid = arg ? number(arg) : -1;

	return domid < 0 ? NULL : domain_find((uint32_t)domid);
}

/* domid, frame number, port: the latter two mean nothing here. */
static int do_introduce(struct xs_conn *c, struct request *r)
{
	struct domain *d;
	int rc;

	if (count_strings(r) < 3)
		return -EINVAL;
	d = domain_arg(r->data);
	if (!d)
		return -ENOENT;
	rc = domain_introduce(d);
	if (rc == 0)
		xs_ack(c, r);
	return rc;
}

static int do_release(struct xs_conn *c, struct request *r)
{
	struct domain *d = domain_arg(only_arg(r));

	if (!only_arg(r) || (d && d->domid == 0))
		return -EINVAL;
	if (!d || !d->introduced)
		return -ENOENT;
	xs_ack(c, r);
	domain_release(d);
	return 0;
}

static int do_is_domain_introduced(struct xs_conn *c, struct request *r)
{
	const struct domain *d = domain_arg(only_arg(r));

	if (!only_arg(r) || number(r->data) < 0)
		return -EINVAL;
	xs_reply(c, r, d && d->introduced ? "T" : "F", 2);
	return 0;
}

static int do_resume(struct xs_conn *c, struct request *r)
{
	const struct domain *d = domain_arg(only_arg(r));

	if (!only_arg(r))
		return -EINVAL;
	if (!d || !d->introduced)
		return -ENOENT;
	xs_ack(c, r);
	return 0;
}

static int do_set_target(struct xs_conn *c, struct request *r)
{
	struct domain *d, *target;

	if (count_strings(r) < 2)
		return -EINVAL;
	d = domain_arg(r->data);
	target = domain_arg(second_arg(r));
	if (!d || !target)
		return -ENOENT;
	d->target = target->domid;
	xs_ack(c, r);
	return 0;
}

/* The one control command that means something here, and the list of it. */
static int do_control(struct xs_conn *c, struct request *r)
{
	static const char help[] = "check\nhelp\n";

	if (r->hdr.len == 0)
		return -EINVAL;
	if (strcmp(r->data, "help") == 0)
		xs_reply(c, r, help, sizeof(help));
	else if (strcmp(r->data, "check") == 0)
		xs_ack(c, r);
	else
		return -EINVAL;
	return 0;
}

static const struct verb {
	int (*run)(struct xs_conn *, struct request *);
	bool no_tx; /* the transaction id of the request is ignored */
	bool privileged;
} verbs[XS_TYPE_COUNT] = {
    [XS_CONTROL] = {.run = do_control, .privileged = true},
    [XS_DIRECTORY] = {.run = do_directory},
    [XS_READ] = {.run = do_read},
    [XS_GET_PERMS] = {.run = do_get_perms},
    [XS_WATCH] = {.run = do_watch, .no_tx = true},
    [XS_UNWATCH] = {.run = do_unwatch, .no_tx = true},
    [XS_TRANSACTION_START] = {.run = do_transaction_start},
    [XS_TRANSACTION_END] = {.run = do_transaction_end},
    [XS_INTRODUCE] = {.run = do_introduce, .no_tx = true, .privileged = true},
    [XS_RELEASE] = {.run = do_release, .no_tx = true, .privileged = true},
    [XS_GET_DOMAIN_PATH] = {.run = do_get_domain_path},
    [XS_WRITE] = {.run = do_write},
    [XS_MKDIR] = {.run = do_mkdir},
    [XS_RM] = {.run = do_rm},
    [XS_SET_PERMS] = {.run = do_set_perms},
    [XS_IS_DOMAIN_INTRODUCED] = {.run = do_is_domain_introduced, .privileged = true},
    [XS_RESUME] = {.run = do_resume, .privileged = true},
    [XS_SET_TARGET] = {.run = do_set_target, .privileged = true},
    [XS_RESET_WATCHES] = {.run = do_reset_watches},
    [XS_DIRECTORY_PART] = {.run = do_directory_part},
};

void xs_handle(struct xs_conn *c, struct request *r)
{
	const struct verb *v = r->hdr.type < XS_TYPE_COUNT ? &verbs[r->hdr.type] : NULL;
	int rc = 0;

	if (!v || !v->run)
		rc = -ENOSYS;
	else if (v->privileged && !is_privileged(c->dom))
		rc = -EACCES;
	else if (!v->no_tx && r->hdr.tx_id != 0) {
		r->tx = find_tx(c, r->hdr.tx_id);
		rc = r->tx ? 0 : -ENOENT;
	}
	if (rc == 0)
		rc = v->run(c, r);
	if (rc < 0)
		xs_reply_error(c, r, -rc);
}
