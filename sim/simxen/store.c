/* Nodes, maps and transactions; see store.h. The map is a chained hash that doubles, plus a list in order of
 * insertion. */
#include "sim/simxen/store.h"
#include "sim/simxen/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DOMIDS 0x8000u

static struct map store;
static uint64_t last_gen;
static int32_t owned[DOMIDS]; /* nodes by owner, in the store itself */
static struct tx *all_tx;

struct node *node_make(const struct perm *perms, uint32_t nperms, const void *data, uint32_t data_bytes,
		       const char *kids, uint32_t kids_bytes)
{
	size_t perms_bytes = nperms * sizeof(*perms);
	struct node *n = must_alloc(sizeof(*n) + perms_bytes + data_bytes + kids_bytes);

	n->refs = 1;
	n->gen = ++last_gen;
	n->perms = (struct perm *)(n + 1);
	n->data = (char *)(n + 1) + perms_bytes;
	n->kids = n->data + data_bytes;
	n->nperms = nperms;
	n->data_bytes = data_bytes;
	n->kids_bytes = kids_bytes;
	memcpy(n->perms, perms, perms_bytes);
	if (data_bytes)
		memcpy(n->data, data, data_bytes);
	if (kids_bytes)
		memcpy(n->kids, kids, kids_bytes);
	return n;
}

void node_unref(struct node *n)
{
	if (n && --n->refs == 0)
		free(n);
}

static struct node *node_ref(struct node *n)
{
	if (n)
		n->refs++;
	return n;
}

static uint32_t hash_of(const char *path)
{
	uint32_t h = 2166136261u;

	for (; *path; path++)
		h = (h ^ (unsigned char)*path) * 16777619u;
	return h;
}

static void map_init(struct map *m, uint32_t nbuckets)
{
	*m = (struct map){.nbuckets = nbuckets};
	m->buckets = must_alloc(nbuckets * sizeof(struct entry *));
}

static struct entry *map_find(const struct map *m, const char *path, uint32_t hash)
{
	struct entry *e = m->buckets[hash & (m->nbuckets - 1)];

	while (e && (e->hash != hash || strcmp(e->path, path) != 0))
		e = e->hash_next;
	return e;
}

static void map_grow(struct map *m)
{
	uint32_t nbuckets = m->nbuckets * 2;
	struct entry **buckets = must_alloc(nbuckets * sizeof(struct entry *));

	for (struct entry *e = m->first; e; e = e->next) {
		struct entry **slot = &buckets[e->hash & (nbuckets - 1)];

		e->hash_next = *slot;
		*slot = e;
	}
	free(m->buckets);
	m->buckets = buckets;
	m->nbuckets = nbuckets;
}

static struct entry *map_insert(struct map *m, const char *path, uint32_t hash)
{
	size_t len = strlen(path) + 1;
	struct entry *e = must_alloc(sizeof(*e) + len), **slot;

	if (m->n >= m->nbuckets)
		map_grow(m);
	memcpy(e->path, path, len);
	e->hash = hash;
	slot = &m->buckets[hash & (m->nbuckets - 1)];
	e->hash_next = *slot;
	*slot = e;
	e->prev = m->last;
	if (m->last)
		m->last->next = e;
	else
		m->first = e;
	m->last = e;
	m->n++;
	return e;
}

static void map_remove(struct map *m, struct entry *e)
{
	struct entry **slot = &m->buckets[e->hash & (m->nbuckets - 1)];

	while (*slot != e)
		slot = &(*slot)->hash_next;
	*slot = e->hash_next;
	if (e->prev)
		e->prev->next = e->next;
	else
		m->first = e->next;
	if (e->next)
		e->next->prev = e->prev;
	else
		m->last = e->prev;
	m->n--;
	node_unref(e->base);
	node_unref(e->now);
	free(e);
}

void store_init(void)
{
	map_init(&store, 1024);
}

bool store_full(void)
{
	return store.n >= STORE_MAX_NODES;
}

/* The transaction's entry of a path; the first touch makes it, and is what the commit will compare with. */
static int tx_touch(struct tx *tx, const char *path, struct entry **out)
{
	uint32_t hash = hash_of(path);
	struct entry *e = map_find(&tx->map, path, hash);

	if (!e) {
		struct entry *in_store = map_find(&store, path, hash);

		if (tx->map.n >= tx->max_touched)
			return -ENOSPC;
		e = map_insert(&tx->map, path, hash);
		e->base = node_ref(in_store ? in_store->now : NULL);
		e->now = node_ref(e->base);
	}
	*out = e;
	return 0;
}

int store_get(struct tx *tx, const char *path, const struct node **out)
{
	struct entry *e;

	if (tx) {
		int rc = tx_touch(tx, path, &e);

		if (rc < 0)
			return rc;
	} else {
		e = map_find(&store, path, hash_of(path));
	}
	if (!e || !e->now)
		return -ENOENT;
	*out = e->now;
	return 0;
}

static void owned_add(struct tx *tx, uint32_t domid, int32_t nodes)
{
	if (!tx) {
		owned[domid % DOMIDS] += nodes;
		return;
	}
	for (unsigned i = 0; i < tx->ndeltas; i++) {
		if (tx->deltas[i].domid == domid) {
			tx->deltas[i].nodes += nodes;
			return;
		}
	}
	tx->deltas = must_realloc(tx->deltas, (tx->ndeltas + 1) * sizeof(*tx->deltas));
	tx->deltas[tx->ndeltas++] = (struct owner_delta){.domid = domid, .nodes = nodes};
}

int64_t store_owned(const struct tx *tx, uint32_t domid)
{
	int64_t n = owned[domid % DOMIDS];

	for (unsigned i = 0; tx && i < tx->ndeltas; i++)
		if (tx->deltas[i].domid == domid)
			n += tx->deltas[i].nodes;
	return n;
}

void store_put(struct tx *tx, const char *path, struct node *n)
{
	uint32_t hash = hash_of(path);
	struct map *m = tx ? &tx->map : &store;
	struct entry *e = map_find(m, path, hash);

	if (e && e->now)
		owned_add(tx, e->now->perms[0].domid, -1);
	if (n)
		owned_add(tx, n->perms[0].domid, 1);
	if (!tx && !n) {
		if (e)
			map_remove(m, e);
		return;
	}
	if (!e)
		e = map_insert(m, path, hash);
	node_unref(e->now);
	e->now = n;
	e->modified = true;
}

struct tx *tx_new(uint32_t id, uint32_t max_touched)
{
	struct tx *tx = must_alloc(sizeof(*tx));

	tx->id = id;
	tx->max_touched = max_touched;
	map_init(&tx->map, 16);
	tx->all_next = all_tx;
	if (all_tx)
		all_tx->all_prev = tx;
	all_tx = tx;
	return tx;
}

void tx_free(struct tx *tx)
{
	if (tx->all_prev)
		tx->all_prev->all_next = tx->all_next;
	else
		all_tx = tx->all_next;
	if (tx->all_next)
		tx->all_next->all_prev = tx->all_prev;
	while (tx->map.first)
		map_remove(&tx->map, tx->map.first);
	free(tx->map.buckets);
	free(tx->deltas);
	free(tx);
}

void tx_fire(struct tx *tx, const char *path, bool exact)
{
	struct entry *e = map_find(&tx->map, path, hash_of(path));

	if (!e)
		return;
	/* An event of the whole subtree covers the one of the node alone. */
	e->fire_exact = e->fire ? e->fire_exact && exact : exact;
	e->fire = true;
}

int tx_commit(struct tx *tx)
{
	for (struct entry *e = tx->map.first; e; e = e->next) {
		const struct entry *in_store = map_find(&store, e->path, e->hash);
		uint64_t gen = in_store ? in_store->now->gen : 0;

		if (gen != (e->base ? e->base->gen : 0))
			return -EAGAIN;
	}
	for (struct entry *e = tx->map.first; e; e = e->next) {
		if (!e->modified || (!e->now && !e->base))
			continue;
		if (e->now)
			e->now->gen = ++last_gen;
		store_put(NULL, e->path, node_ref(e->now));
	}
	return 0;
}

/* Nodes are shared between store and transactions, so this is said once for all who see them. */
static void perms_forget(struct tx *tx, struct node *n, uint32_t domid)
{
	if (!n)
		return;
	if (n->perms[0].domid == domid) {
		owned_add(tx, domid, -1);
		owned_add(tx, 0, 1);
		n->perms[0].domid = 0;
	}
	for (uint32_t i = 1; i < n->nperms; i++)
		if (n->perms[i].domid == domid)
			n->perms[i].dead = true;
}

void store_forget_domain(uint32_t domid)
{
	for (struct entry *e = store.first; e; e = e->next)
		perms_forget(NULL, e->now, domid);
	for (struct tx *tx = all_tx; tx; tx = tx->all_next) {
		for (struct entry *e = tx->map.first; e; e = e->next) {
			perms_forget(tx, e->now, domid);
			perms_forget(tx, e->base, domid);
		}
	}
}

static int shorter_first(const void *a, const void *b)
{
	size_t la = strlen(*(char *const *)a), lb = strlen(*(char *const *)b);

	return (la > lb) - (la < lb);
}

void store_each_owned(uint32_t domid, void (*fn)(const char *path))
{
	char **paths = NULL;
	size_t n = 0;

	for (const struct entry *e = store.first; e; e = e->next) {
		if (e->now->perms[0].domid != domid)
			continue;
		if ((n & (n - 1)) == 0)
			paths = must_realloc(paths, (n ? 2 * n : 1) * sizeof(*paths));
		paths[n++] = must_strdup(e->path);
	}
	if (n)
		qsort(paths, n, sizeof(*paths), shorter_first);
	for (size_t i = 0; i < n; i++) {
		fn(paths[i]);
		free(paths[i]);
	}
	free(paths);
}
