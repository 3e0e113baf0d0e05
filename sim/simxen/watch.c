/*
 * Watches: who is told of what.
 *
 * A change of a node reaches every watch on it or on an ancestor; an "exact" event (a node that went with its
 * parent) only the watches on that very node. A connection is told only of nodes it may read, or whose parent
 * it may read, before or after the change. In a transaction events wait for the commit. "@introduceDomain"
 * and "@releaseDomain" are names without a node; their permissions live here, and only domain 0 has any at
 * first.
 */
#include "sim/simxen/xs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct special {
	const char *name;
	unsigned nperms;
	struct perm perms[QUOTA_PERMS + 1];
};

static struct special specials[] = {
    {.name = "@introduceDomain", .nperms = 1, .perms = {{.domid = 0}}},
    {.name = "@releaseDomain", .nperms = 1, .perms = {{.domid = 0}}},
};

static struct special *special_find(const char *name)
{
	for (size_t i = 0; i < sizeof(specials) / sizeof(specials[0]); i++)
		if (strcmp(specials[i].name, name) == 0)
			return &specials[i];
	return NULL;
}

int special_set_perms(const struct domain *who, const char *name, const struct perm *perms, unsigned nperms)
{
	struct special *s = special_find(name);

	if (!s || nperms > sizeof(s->perms) / sizeof(s->perms[0]))
		return -EINVAL;
	if (!is_privileged(who))
		return -EACCES;
	memcpy(s->perms, perms, nperms * sizeof(*perms));
	s->nperms = nperms;
	return 0;
}

int watch_add(struct xs_conn *c, const char *path, unsigned rel_bytes, const char *token, struct watch **out)
{
	struct domain *d = c->dom;
	struct watch *w;

	for (w = c->watches; w; w = w->next)
		if (strcmp(w->path, path) == 0 && strcmp(w->token, token) == 0)
			return -EEXIST;
	/* One above the quota: xenstored compares before it counts. */
	if (is_privileged(d) ? c->nwatches >= MAX_WATCHES_OF_DOM0 : d->nwatches > QUOTA_WATCHES)
		return -E2BIG;
	w = must_alloc(sizeof(*w));
	w->conn = c;
	w->path = must_strdup(path);
	w->token = must_strdup(token);
	w->rel_bytes = rel_bytes;
	*c->watches_end = w;
	c->watches_end = &w->next;
	c->nwatches++;
	d->nwatches++;
	*out = w;
	return 0;
}

static void watch_free(struct watch *w)
{
	xs_event_forget(w);
	w->conn->nwatches--;
	w->conn->dom->nwatches--;
	free(w->path);
	free(w->token);
	free(w);
}

int watch_remove(struct xs_conn *c, const char *path, const char *token)
{
	for (struct watch **at = &c->watches; *at; at = &(*at)->next) {
		struct watch *w = *at;

		if (strcmp(w->path, path) != 0 || strcmp(w->token, token) != 0)
			continue;
		*at = w->next;
		if (!w->next)
			c->watches_end = at;
		watch_free(w);
		return 0;
	}
	return -ENOENT;
}

void watches_drop(struct xs_conn *c)
{
	while (c->watches) {
		struct watch *w = c->watches;

		c->watches = w->next;
		watch_free(w);
	}
	c->watches_end = &c->watches;
}

void watch_initial(struct watch *w)
{
	xs_event(w, w->path + w->rel_bytes);
}

static bool readable(const struct domain *who, const struct node *n)
{
	return n && (perms_of(who, n->perms, n->nperms) & PERM_READ);
}

static void emit(const char *path, bool exact, const struct node *was)
{
	const struct node *now = NULL, *parent = NULL;
	char up[PATH_BYTES];

	snprintf(up, sizeof(up), "%s", path);
	path_to_parent(up);
	if (store_get(NULL, path, &now) < 0)
		now = NULL;
	if (store_get(NULL, up, &parent) < 0)
		parent = NULL;
	for (struct xs_conn *c = xs_conns_first(); c; c = c->next) {
		if (c->doomed || !c->watches ||
		    !(is_privileged(c->dom) || readable(c->dom, was) || readable(c->dom, now) ||
		      readable(c->dom, parent)))
			continue;
		for (struct watch *w = c->watches, *next; w && !c->doomed; w = next) {
			next = w->next; /* an event too many ends the connection and its watches */
			if (exact ? strcmp(path, w->path) == 0 : path_is_within(path, w->path))
				xs_event(w, path + w->rel_bytes);
		}
	}
}

void watch_fire(struct tx *tx, const char *path, bool exact, const struct node *was)
{
	if (tx)
		tx_fire(tx, path, exact);
	else
		emit(path, exact, was);
}

void watch_fire_committed(const struct tx *tx)
{
	for (const struct entry *e = tx->map.first; e; e = e->next)
		/* What came and went within the transaction never was. */
		if (e->fire && (e->base || e->now))
			emit(e->path, e->fire_exact, e->base);
}

void watch_fire_special(const char *name)
{
	const struct special *s = special_find(name);

	for (struct xs_conn *c = xs_conns_first(); c; c = c->next) {
		if (c->doomed ||
		    !(is_privileged(c->dom) || (perms_of(c->dom, s->perms, s->nperms) & PERM_READ)))
			continue;
		for (struct watch *w = c->watches, *next; w && !c->doomed; w = next) {
			next = w->next;
			if (strcmp(w->path, name) == 0)
				xs_event(w, name);
		}
	}
}
