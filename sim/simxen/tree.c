/*
 * What may be done to nodes, by whom: the verbs on paths, with permissions, inheritance and quotas, over the
 * store.
 *
 * Each operation first looks at everything it will touch, and changes something only when nothing can refuse
 * any more: a refused call leaves no trace. In a transaction that also means that every path is touched
 * (store_get) before it is put.
 */
#include "sim/simxen/xs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A path that cannot be seen must not be told from one that does not exist: the nearest ancestor decides
 * which it is. */
static int error_seen_by(const struct domain *who, struct tx *tx, const char *path, uint8_t need, int error)
{
	char up[PATH_BYTES];
	const struct node *n;
	int rc;

	snprintf(up, sizeof(up), "%s", path);
	do {
		path_to_parent(up);
		rc = store_get(tx, up, &n);
	} while (rc == -ENOENT && up[1] != '\0');
	if (rc < 0)
		return rc;
	return (perms_of(who, n->perms, n->nperms) & need) ? error : -EACCES;
}

int tree_get(const struct domain *who, struct tx *tx, const char *path, uint8_t need, const struct node **out)
{
	int rc = store_get(tx, path, out);

	if (rc == 0 && (perms_of(who, (*out)->perms, (*out)->nperms) & need) != need)
		rc = -EACCES;
	if (rc == -ENOENT || rc == -EACCES)
		rc = error_seen_by(who, tx, path, need, rc);
	return rc;
}

static bool entry_too_big(const struct domain *who, uint32_t nperms, size_t data_bytes, size_t kids_bytes)
{
	return !is_privileged(who) &&
	       QUOTA_ENTRY_HEADER + QUOTA_PERM_BYTES * nperms + data_bytes + kids_bytes >= QUOTA_ENTRY_BYTES;
}

static const char *last_part(const char *path)
{
	return strrchr(path, '/') + 1;
}

/* The parent again, with one more child. */
static struct node *with_kid(const struct node *parent, const char *name)
{
	size_t name_bytes = strlen(name) + 1;
	char *kids = must_alloc(parent->kids_bytes + name_bytes);
	struct node *n;

	memcpy(kids, parent->kids, parent->kids_bytes);
	memcpy(kids + parent->kids_bytes, name, name_bytes);
	n = node_make(parent->perms, parent->nperms, parent->data, parent->data_bytes, kids,
		      parent->kids_bytes + (uint32_t)name_bytes);
	free(kids);
	return n;
}

static struct node *without_kid(const struct node *parent, const char *name)
{
	const char *end = parent->kids + parent->kids_bytes, *kid = parent->kids;
	size_t name_bytes = strlen(name) + 1, before;
	char *kids = must_alloc(parent->kids_bytes);
	struct node *n;

	while (kid < end && strcmp(kid, name) != 0)
		kid += strlen(kid) + 1;
	before = (size_t)(kid - parent->kids);
	memcpy(kids, parent->kids, before);
	if (kid < end)
		memcpy(kids + before, kid + name_bytes, parent->kids_bytes - before - name_bytes);
	n = node_make(parent->perms, parent->nperms, parent->data, parent->data_bytes, kids,
		      parent->kids_bytes - (kid < end ? (uint32_t)name_bytes : 0));
	free(kids);
	return n;
}

/*
 * Makes `path` and its missing ancestors. All inherit the permissions of the nearest node that exists; an
 * unprivileged domain owns what it makes.
 */
static int create(const struct domain *who, struct tx *tx, const char *path, const void *data,
		  uint32_t data_bytes)
{
	char at[PATH_BYTES], kid[PATH_BYTES];
	const struct node *top = NULL;
	struct perm *perms;
	unsigned missing = 0;
	size_t kid_bytes = 0;
	bool too_big = false;
	uint32_t nperms;
	int rc;

	snprintf(at, sizeof(at), "%s", path);
	do {
		missing++;
		path_to_parent(at);
		rc = store_get(tx, at, &top);
	} while (rc == -ENOENT);
	if (rc < 0)
		return rc;
	nperms = top->nperms;

	/* Nothing has changed yet; now all that quotas have to say. */
	snprintf(kid, sizeof(kid), "%s", path);
	too_big = entry_too_big(who, nperms, data_bytes, 0);
	for (unsigned i = 0; i < missing; i++) {
		kid_bytes = strlen(last_part(kid)) + 1;
		path_to_parent(kid);
		too_big |= i + 1 < missing
			       ? entry_too_big(who, nperms, 0, kid_bytes)
			       : entry_too_big(who, nperms, top->data_bytes, top->kids_bytes + kid_bytes);
	}
	if (too_big || store_full() ||
	    (!is_privileged(who) && store_owned(tx, who->domid) + missing > QUOTA_NODES))
		return -ENOSPC;

	perms = must_alloc(nperms * sizeof(*perms));
	memcpy(perms, top->perms, nperms * sizeof(*perms));
	if (!is_privileged(who))
		perms[0].domid = who->domid;
	snprintf(at, sizeof(at), "%s", path);
	snprintf(kid, sizeof(kid), "%s", path);
	store_put(tx, at, node_make(perms, nperms, data, data_bytes, NULL, 0));
	for (unsigned i = 1; i < missing; i++) {
		const char *name = last_part(kid);

		path_to_parent(at);
		store_put(tx, at, node_make(perms, nperms, NULL, 0, name, (uint32_t)strlen(name) + 1));
		path_to_parent(kid);
	}
	free(perms);
	path_to_parent(at);
	store_put(tx, at, with_kid(top, last_part(kid)));
	return 0;
}

int tree_write(const struct domain *who, struct tx *tx, const char *path, const void *data, uint32_t bytes)
{
	const struct node *was = NULL;
	int rc = tree_get(who, tx, path, PERM_WRITE, &was);

	if (rc == -ENOENT) {
		rc = create(who, tx, path, data, bytes);
		if (rc == 0)
			watch_fire(tx, path, false, NULL);
		return rc;
	}
	if (rc < 0)
		return rc;
	if (entry_too_big(who, was->nperms, bytes, was->kids_bytes))
		return -ENOSPC;
	store_put(tx, path, node_make(was->perms, was->nperms, data, bytes, was->kids, was->kids_bytes));
	watch_fire(tx, path, false, NULL);
	return 0;
}

int tree_mkdir(const struct domain *who, struct tx *tx, const char *path)
{
	const struct node *was;
	int rc = tree_get(who, tx, path, PERM_WRITE, &was);

	if (rc != -ENOENT)
		return rc;
	rc = create(who, tx, path, NULL, 0);
	if (rc == 0)
		watch_fire(tx, path, false, NULL);
	return rc;
}

struct path_list {
	char **paths;
	size_t n;
};

static void list_add(struct path_list *l, const char *path)
{
	if ((l->n & (l->n - 1)) == 0)
		l->paths = must_realloc(l->paths, (l->n ? 2 * l->n : 1) * sizeof(*l->paths));
	l->paths[l->n++] = must_strdup(path);
}

/* Lists the subtree with each node behind its children. `path` is a buffer of PATH_BYTES that is used on the
 * way. */
static int list_subtree(struct tx *tx, char *path, struct path_list *l)
{
	const struct node *n;
	size_t len = strlen(path);
	int rc = store_get(tx, path, &n);

	if (rc < 0)
		return rc == -ENOENT ? 0 : rc;
	for (const char *kid = n->kids; kid < n->kids + n->kids_bytes; kid += strlen(kid) + 1) {
		snprintf(path + len, PATH_BYTES - len, "/%s", kid);
		rc = list_subtree(tx, path, l);
		path[len] = '\0';
		if (rc < 0)
			return rc;
	}
	list_add(l, path);
	return 0;
}

static void rm_listed(struct tx *tx, const char *path, const char *parent, const struct path_list *l)
{
	const struct node *n;

	/* Watchers are told while permissions can still be seen. */
	for (size_t i = 0; i < l->n; i++)
		if (store_get(tx, l->paths[i], &n) == 0)
			watch_fire(tx, l->paths[i], i + 1 < l->n, n);
	for (size_t i = 0; i < l->n; i++)
		store_put(tx, l->paths[i], NULL);
	if (store_get(tx, parent, &n) == 0)
		store_put(tx, parent, without_kid(n, last_part(path)));
}

int tree_rm(const struct domain *who, struct tx *tx, const char *path)
{
	struct path_list l = {0};
	char parent[PATH_BYTES], buf[PATH_BYTES];
	const struct node *n;
	int rc;

	snprintf(parent, sizeof(parent), "%s", path);
	path_to_parent(parent);
	rc = tree_get(who, tx, path, PERM_WRITE, &n);
	if (rc == -ENOENT)
		return store_get(tx, parent, &n);
	if (rc < 0)
		return rc;
	if (path[1] == '\0')
		return -EINVAL;
	rc = store_get(tx, parent, &n);
	if (rc == 0) {
		snprintf(buf, sizeof(buf), "%s", path);
		rc = list_subtree(tx, buf, &l);
	}
	if (rc == 0)
		rm_listed(tx, path, parent, &l);
	for (size_t i = 0; i < l.n; i++)
		free(l.paths[i]);
	free(l.paths);
	return rc;
}

int tree_set_perms(const struct domain *who, struct tx *tx, const char *path, const struct perm *perms,
		   unsigned nperms)
{
	const struct node *was;
	struct node *old;
	int rc = tree_get(who, tx, path, PERM_WRITE | PERM_OWNER, &was);

	if (rc < 0)
		return rc;
	if (!is_privileged(who) && perms[0].domid != was->perms[0].domid)
		return -EPERM;
	if (entry_too_big(who, nperms, was->data_bytes, was->kids_bytes))
		return -ENOSPC;
	/* Who loses sight of the node by this hears of it all the same. */
	old = node_make(was->perms, was->nperms, NULL, 0, NULL, 0);
	store_put(tx, path, node_make(perms, nperms, was->data, was->data_bytes, was->kids, was->kids_bytes));
	watch_fire(tx, path, false, old);
	node_unref(old);
	return 0;
}

static void must_write(const char *path, const char *value, const struct perm *perms, unsigned nperms)
{
	int rc = tree_write(NULL, NULL, path, value, (uint32_t)strlen(value));

	if (rc == 0 && nperms)
		rc = tree_set_perms(NULL, NULL, path, perms, nperms);
	if (rc < 0)
		fprintf(stderr, "simxen: cannot make %s: %s\n", path, strerror(-rc));
}

void tree_init(void)
{
	const struct perm dom0 = {.domid = 0};

	store_init();
	store_put(NULL, "/", node_make(&dom0, 1, NULL, 0, NULL, 0));
	must_write("/tool/xenstored", "", NULL, 0);
	must_write("/local/domain/0/domid", "0", NULL, 0);
	must_write("/local/domain/0/name", "Domain-0", NULL, 0);
}

void tree_make_home(const struct domain *d)
{
	const struct perm seen[2] = {{.domid = 0}, {.domid = d->domid, .bits = PERM_READ}};
	const struct perm own = {.domid = d->domid};
	char home[64], path[128], value[32];

	snprintf(home, sizeof(home), "/local/domain/%u", d->domid);
	must_write(home, "", seen, 2);
	/* Below, everything inherits what its directory has. */
	snprintf(path, sizeof(path), "%s/domid", home);
	snprintf(value, sizeof(value), "%u", d->domid);
	must_write(path, value, NULL, 0);
	snprintf(path, sizeof(path), "%s/name", home);
	snprintf(value, sizeof(value), "guest-%u", d->domid);
	must_write(path, value, NULL, 0);
	snprintf(path, sizeof(path), "%s/device", home);
	must_write(path, "", &own, 1);
	snprintf(path, sizeof(path), "%s/data", home);
	must_write(path, "", &own, 1);
}

static void rm_if_there(const char *path)
{
	const struct node *n;

	if (path[1] != '\0' && store_get(NULL, path, &n) == 0)
		tree_rm(NULL, NULL, path);
}

void tree_forget_domain(const struct domain *d)
{
	char home[64];

	snprintf(home, sizeof(home), "/local/domain/%u", d->domid);
	rm_if_there(home);
	store_each_owned(d->domid, rm_if_there);
	store_forget_domain(d->domid);
}
