/*
 * Between the server (exports, connections) and the haggling that leads to a connection. Control thread.
 */
#ifndef BLKD_NBD_SERVER_H
#define BLKD_NBD_SERVER_H

#include "blkd/nbd/proto.h"

#include <stddef.h>

struct nbd_server;

#define NBD_NAME_MAX 255u

/* A copy of what a client may know of an export. */
struct nbd_export_view {
	char name[NBD_NAME_MAX + 1];
	char description[512];
	uint64_t size_bytes;
	bool read_only;
};

/* By name; the empty name is the only export, if there is exactly one. false: none, or on its way out. */
bool server_find(struct nbd_server *, const char *name, size_t len, struct nbd_export_view *);
/* Calls fn for each export that clients may see, under the server's lock. */
void server_each(struct nbd_server *, void (*fn)(void *ctx, const struct nbd_export_view *), void *ctx);
/* The client at fd goes over to the transmission phase of the export of that (canonical) name. 0: fd was
 * taken over. -EAGAIN: the device's mailbox is full, try again soon. Other: the export is gone, or there are
 * too many clients. */
int server_adopt(struct nbd_server *, const char *name, int fd, bool structured, bool block_status,
		 const void *rest, uint32_t rest_bytes);

#endif
