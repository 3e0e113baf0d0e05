/*
 * The xenstore side of simxen: connections, verbs, watches, and the tree operations with permissions and
 * quotas. Behaviour is that of the C xenstored of Xen 4.17. Errors are negative errno; the wire carries their
 * names (xs_wire.h).
 */
#ifndef SIMXEN_XS_H
#define SIMXEN_XS_H

#include "sim/simxen/domain.h"
#include "sim/simxen/loop.h"
#include "sim/simxen/store.h"

#include <errno.h>
#include <xen/io/xs_wire.h>

/* Quotas of an unprivileged domain: the defaults of the C xenstored 4.17. */
#define QUOTA_NODES	   1000 /* owned */
#define QUOTA_WATCHES	   128
#define QUOTA_TXS	   10
#define QUOTA_TX_TOUCHED   1024 /* paths in one transaction */
#define QUOTA_PERMS	   5	/* per node */
#define QUOTA_ENTRY_BYTES  2048 /* header, permissions, value and names of children of one node */
#define QUOTA_ENTRY_HEADER 24
#define QUOTA_PERM_BYTES   8

/* Bounds of our own. */
#define PATH_BYTES	    (XENSTORE_PAYLOAD_MAX + 32) /* any absolute path with its NUL */
#define MAX_CONNS	    4096
#define MAX_CONNS_PER_GUEST 16
#define MAX_TXS_OF_DOM0	    1024	 /* per connection */
#define MAX_WATCHES_OF_DOM0 65536	 /* per connection */
#define OUT_PAUSE_BYTES	    (256u << 10) /* unread answers: no more requests are taken */
#define OUT_MAX_BYTES_GUEST (1u << 20)	 /* unread events: the connection ends */
#define OUT_MAX_BYTES_DOM0  (64u << 20)

struct xs_conn;

struct watch {
	struct watch *next;
	struct xs_conn *conn;
	char *path; /* absolute, or special: "@..." */
	char *token;
	unsigned rel_bytes;  /* of `path`, not shown to a client that watched a relative path */
	struct msg *pending; /* its events still in the queue, newest first */
};

struct xs_conn {
	struct source src;
	struct xs_conn *prev, *next;
	struct domain *dom; /* NULL once doomed */
	bool doomed;
	bool paused; /* not reading, until the client has read */
	struct watch *watches;
	struct watch **watches_end;
	unsigned nwatches, ntxs;
	struct tx *txs;
	uint32_t next_tx_id;
	struct msg *out_first, *out_last;
	size_t out_bytes;
	uint32_t in_bytes;
	char in[sizeof(struct xsd_sockmsg) + XENSTORE_PAYLOAD_MAX];
};

struct request {
	struct xsd_sockmsg hdr;
	char *data; /* hdr.len bytes, not necessarily with a NUL at the end */
	struct tx *tx;
};

static inline bool is_privileged(const struct domain *who)
{
	return !who || who->domid == 0;
}

/* conn.c */
void xs_accept(struct domain *d);     /* a client waits at d->xs_listen */
void xs_conn_doom(struct xs_conn *c); /* it is freed by xs_reap */
void xs_conns_doom(struct domain *d); /* all of a domain */
void xs_reap(void);
struct xs_conn *xs_conns_first(void);
void xs_reply(struct xs_conn *c, const struct request *r, const void *data,
	      size_t bytes); /* E2BIG if it is too long */
void xs_ack(struct xs_conn *c, const struct request *r);
void xs_reply_error(struct xs_conn *c, const struct request *r, int error); /* positive */
/* Queues a watch event, unless the same is queued already and unread. */
void xs_event(struct watch *w, const char *path);
void xs_event_forget(struct watch *w); /* before a watch is freed: its queued events no longer point at it */

/* verbs.c */
void xs_handle(struct xs_conn *c, struct request *r);

/* watch.c */
int watch_add(struct xs_conn *c, const char *path, unsigned rel_bytes, const char *token, struct watch **out);
int watch_remove(struct xs_conn *c, const char *path, const char *token);
void watches_drop(struct xs_conn *c);
void watch_initial(struct watch *w);
/* In a transaction the event waits for its commit. `was` is the node before the change, NULL if there was
 * none. */
void watch_fire(struct tx *tx, const char *path, bool exact, const struct node *was);
void watch_fire_special(const char *name);
void watch_fire_committed(const struct tx *tx);
int special_set_perms(const struct domain *who, const char *name, const struct perm *perms, unsigned nperms);

/* perms.c */
uint8_t perms_of(const struct domain *who, const struct perm *perms, unsigned nperms);
/* n NUL-terminated strings. -EINVAL: malformed; -ENOENT: the owner does not exist. */
int perms_parse(const char *strings, unsigned n, struct perm *out);
size_t perms_format(const struct perm *perms, unsigned nperms, char *out,
		    size_t out_bytes); /* bytes, NULs included */

/* tree.c: `who` NULL is simxen itself. Paths are absolute and valid. */
int tree_get(const struct domain *who, struct tx *tx, const char *path, uint8_t need,
	     const struct node **out);
int tree_write(const struct domain *who, struct tx *tx, const char *path, const void *data, uint32_t bytes);
int tree_mkdir(const struct domain *who, struct tx *tx, const char *path);
int tree_rm(const struct domain *who, struct tx *tx, const char *path);
int tree_set_perms(const struct domain *who, struct tx *tx, const char *path, const struct perm *perms,
		   unsigned nperms);
void tree_init(void);			     /* "/", "/tool/xenstored", "/local/domain/0" */
void tree_make_home(const struct domain *d); /* as a toolstack does */
void tree_forget_domain(
    const struct domain *d); /* its home, the nodes it owns, the permissions that name it */

/* path.c */
/* Absolute form of what a client said. *rel_bytes: the length of the prefix it did not say. -EINVAL. */
int path_canonical(const struct domain *who, const char *said, char out[static PATH_BYTES],
		   unsigned *rel_bytes);
bool path_is_within(const char *path, const char *top);
/* Cuts the last part off; the root stays. */
void path_to_parent(char *path);

#endif
