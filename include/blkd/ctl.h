/*
 * The control socket of blkd: JSON-RPC 2.0 over a unix stream socket, one message a line. One table of verbs
 * gives dispatch, help and the list of parameters that blkctl checks against. Only root and the user that
 * blkd runs as may connect (peer credentials).
 *
 * Each connection is served by a thread of its own, so that a verb that waits for slow storage holds up
 * nobody else.
 */
#ifndef BLKD_CTL_H
#define BLKD_CTL_H

#include "blkd/dev.h"

#include <jansson.h>

struct blkif_backend;
struct ctl;
struct err;
struct nbd_server;

/* What the verbs act on. Owned by main; outlives the control server. */
struct ctl_host {
	struct blkif_backend *blkif; /* NULL: this host has no hypervisor */
	struct nbd_server *nbd;
	const char *kind; /* backend kind in xenstore */
	const char *run_dir;
	const struct io_engine_ops *engine;
	enum write_mode write_mode;
	struct bufpool *pool;
	struct cache *cache;
	unsigned backing_flags;
};

/* "auto", "through", "back". */
int write_mode_parse(const char *text, enum write_mode *out, struct err *);

struct ctl_param {
	const char *name, *help;
	bool required;
};

struct ctl_verb {
	const char *name, *help, *example;
	const struct ctl_param *params; /* ends with a NULL name */
	/* params: an object of strings, names already checked against the table. Answers a new reference, or
	 * NULL with err filled. */
	json_t *(*run)(const struct ctl_host *, json_t *params, struct err *);
};

/* Ends with a NULL name. */
extern const struct ctl_verb ctl_verbs[];

int ctl_start(const char *socket_path, const struct ctl_host *, struct ctl **, struct err *);
/* Takes no more calls, waits for those under way, unlinks the socket. */
void ctl_stop(struct ctl *);

#endif
