/*
 * A small xenstore client that speaks xen/io/xs_wire.h on a unix socket. simguest needs two identities in one
 * process (the guest, and domain 0 when it plays the toolstack), which libxenstore does not offer: so it has
 * its own client, which also tests the wire protocol from a second side. Calls block until the answer is
 * there (30 s at most). 0 or negative errno.
 */
#ifndef SIMGUEST_XSWIRE_H
#define SIMGUEST_XSWIRE_H

#include <stdbool.h>
#include <stdint.h>

struct xw_event {
	struct xw_event *next;
	char *path, *token; /* inside data */
	char data[];
};

struct xw {
	int fd; /* poll it for POLLIN; then xw_pump() */
	uint32_t next_req;
	struct xw_event *head, **tail; /* watch events not yet fetched */
};

int xw_dial(struct xw *x, const char *socket_path);
void xw_hangup(struct xw *x);

/* tx: 0 or what xw_tx_start() gave. Returned strings are the caller's to free; NULL on error with *err set.
 */
char *xw_read(struct xw *x, uint32_t tx, const char *path, int *err);
int xw_write(struct xw *x, uint32_t tx, const char *path, const char *value);
int xw_printf(struct xw *x, uint32_t tx, const char *dir, const char *node, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
int xw_mkdir(struct xw *x, uint32_t tx, const char *path);
int xw_rm(struct xw *x, uint32_t tx, const char *path);
/* True if the node is there and has no children. */
bool xw_is_empty_dir(struct xw *x, const char *path);

/* Owner `owner` with no access for others, and read access for `reader`: "n<owner>", "r<reader>". */
int xw_set_perms(struct xw *x, uint32_t tx, const char *path, uint32_t owner, uint32_t reader);
int xw_watch(struct xw *x, const char *path, const char *token);
int xw_unwatch(struct xw *x, const char *path, const char *token);
int xw_tx_start(struct xw *x, uint32_t *tx);
/* -EAGAIN: conflicted, do it all again. */
int xw_tx_end(struct xw *x, uint32_t tx, bool commit);

/* DIR/NODE as an unsigned decimal. -ENOENT: absent; -EINVAL: not a number. */
int xw_read_u64(struct xw *x, uint32_t tx, const char *dir, const char *node, uint64_t *out);

/* Takes in watch events that have arrived, without blocking. */
int xw_pump(struct xw *x);
/* The oldest event, the caller's to free; NULL when there is none. */
struct xw_event *xw_next_event(struct xw *x);

#endif
