/*
 * The NBD server: a second way in, for tools and for guests whose device model reads through a socket. Fixed
 * newstyle; one server carries many exports by name. Negotiation runs on the server's one control thread;
 * then a connection is a transport of its export's device, on that device's thread. Protocol:
 * NetworkBlockDevice/nbd, doc/proto.md.
 *
 * Threads: all calls come from control threads (not from a device's) and may block until a device thread
 * answered.
 */
#ifndef BLKD_NBD_H
#define BLKD_NBD_H

#include "blkd/devtab.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct nbd_server;

/* Listens on the unix socket at path (a stale one of a dead server is replaced, a live one is refused:
 * -EADDRINUSE), mode 0600. */
int nbd_server_start(const char *path, struct nbd_server **, struct err *);
/* Removes all exports, ends the thread, unlinks the socket. */
void nbd_server_stop(struct nbd_server *);

/* Offers ref's device under name (1 to 255 bytes, no control characters). Takes ref over on success: gives it
 * back with devtab_put when the export goes. read_only: writes are refused even if the device is writable.
 * -EEXIST: the name is taken. */
int nbd_export_add(struct nbd_server *, const char *name, struct devref *, bool read_only, struct err *);
/* No new clients; clients are disconnected after what they have in flight was answered; then the device
 * reference is given back, whose result this is. force false: -EBUSY while clients are connected (their
 * number is in the sentence). -ENOENT. */
int nbd_export_remove(struct nbd_server *, const char *name, bool force, struct err *);

struct nbd_export_info {
	const char *name;
	struct dev *dev;
	bool read_only;
	unsigned clients; /* connected now */
	uint64_t clients_total;
};
/* Calls fn for each export under the server's lock, until it answers false: fn must not call back, block or
 * keep a pointer. */
void nbd_export_each(struct nbd_server *, bool (*fn)(void *ctx, const struct nbd_export_info *), void *ctx);

/* "nbd+unix:///NAME?socket=PATH", percent-encoded where needed. -ENAMETOOLONG. */
int nbd_uri(const struct nbd_server *, const char *name, char *buf, size_t room);

#endif
