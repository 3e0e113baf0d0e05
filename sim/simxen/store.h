/*
 * The store: nodes by path, and transactions over them.
 *
 * A node is immutable and counted; a change puts another node at its path. So a transaction is a map of the
 * paths it has touched: what was there at first touch, what is there now in its eyes. Reads are repeatable;
 * nobody else sees anything before the commit; the commit succeeds only if each touched path still holds the
 * generation seen at first touch, and then is applied as a whole. That is how the C xenstored detects
 * conflicts: making or removing a child changes the parent, changing a child's value does not.
 *
 * This layer knows nothing of permissions, quotas or watches, but for counting nodes by owner, in and outside
 * of transactions.
 */
#ifndef SIMXEN_STORE_H
#define SIMXEN_STORE_H

#include <stdbool.h>
#include <stdint.h>

#define PERM_READ  1u
#define PERM_WRITE 2u
#define PERM_OWNER 4u

struct perm {
	uint32_t domid;
	uint8_t bits;
	bool dead; /* names a domain that was not there when it was set, or has died since: never matches
		      again */
};

/* perms[0] is the owner; its bits are what domains that have no entry may do. `kids` is a sequence of
 * NUL-terminated names. */
struct node {
	unsigned refs;
	uint64_t gen;
	struct perm *perms;
	char *data, *kids;
	uint32_t nperms, data_bytes, kids_bytes;
};

/* One path of a map, in a map's own order of insertion. In the store itself only `now` is used. */
struct entry {
	struct entry *hash_next, *prev, *next;
	struct node *base; /* at first touch; NULL: there was none */
	struct node *now;  /* NULL: there is none */
	bool modified;
	bool fire, fire_exact; /* watch event due at commit */
	uint32_t hash;
	char path[];
};

struct map {
	struct entry **buckets;
	uint32_t nbuckets, n;
	struct entry *first, *last;
};

struct owner_delta {
	uint32_t domid;
	int32_t nodes;
};

struct tx {
	struct tx *next; /* of its connection */
	struct tx *all_prev, *all_next;
	uint32_t id;
	uint32_t max_touched; /* paths; beyond: -ENOSPC */
	struct map map;
	struct owner_delta *deltas;
	unsigned ndeltas;
};

#define STORE_MAX_NODES (1u << 20)

void store_init(void);

/* A new node, with one reference, which copies what it is given. Dead entries of `perms` stay dead. */
struct node *node_make(const struct perm *perms, uint32_t nperms, const void *data, uint32_t data_bytes,
		       const char *kids, uint32_t kids_bytes);
void node_unref(struct node *n);

/* In all calls tx == NULL is the store itself. */

/* 0 and the node, borrowed until the next put; -ENOENT; -ENOSPC: the transaction touches too many paths. */
int store_get(struct tx *tx, const char *path, const struct node **out);
bool store_full(void);

/* Puts `n` (its reference is taken over; NULL deletes). In a transaction the path must have been got before.
 */
void store_put(struct tx *tx, const char *path, struct node *n);

/* Nodes that `domid` owns as `tx` sees it. */
int64_t store_owned(const struct tx *tx, uint32_t domid);

struct tx *tx_new(uint32_t id, uint32_t max_touched);
void tx_free(struct tx *tx);
/* Marks that the commit fires a watch event for `path`, which the transaction has touched. */
void tx_fire(struct tx *tx, const char *path, bool exact);
/* -EAGAIN: a path changed under it. 0: applied; tx->map stays readable until tx_free. */
int tx_commit(struct tx *tx);

/* A domain is no more: every permission that names it is dead, in transactions too, where it also owns no
 * node any more. */
void store_forget_domain(uint32_t domid);
/* Calls `fn` with each path that `domid` owned at the call, ancestors before what is below them; `fn` may
 * change the store. */
void store_each_owned(uint32_t domid, void (*fn)(const char *path));

#endif
