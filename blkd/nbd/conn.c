/*
 * A connection's birth and end, and its side of the device's contract.
 *
 * Ways to end. The client says DISC, or closes its half: nothing more is read, what is in flight is answered,
 * then it is closed. The socket is broken or the client breaks the protocol: answers are dropped, what the
 * device has in flight ends without one. The device stops: what the socket takes at once is sent. In each
 * case the device's detached() is the last call, when no request is in flight, and frees the connection.
 *
 * Not on the hot path: event() and kick() only lead there.
 */
#include "blkd/nbd/conn.h"

#include "blkd/log.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static struct nbd_conn *conn_of(struct transport *t)
{
	return container_of(t, struct nbd_conn, transport);
}

/* ---- the contract ---- */

/* Data leaves from the requests' buffers, with the answers. */
static void nbd_copy_out(struct transport *t, struct blkreq *const *reqs, unsigned n)
{
	(void)t;
	(void)reqs;
	(void)n;
}

static void nbd_respond(struct transport *t, struct blkreq *req)
{
	part_ended(conn_of(t), container_of(req, struct nbd_slot, req), nbd_error_of(req->status));
}

static void nbd_kick(struct transport *t)
{
	tx_send(conn_of(t));
}

static void nbd_event(struct transport *t, struct io_poll *p)
{
	struct nbd_conn *c = conn_of(t);

	if (p == &c->out) {
		tx_send(c);
	} else {
		c->drained = false;
		dev_transport_ready(t);
	}
}

static void nbd_detached(struct transport *t)
{
	struct nbd_conn *c = conn_of(t);

	tx_send(c);
	dev_poll_disarm(c->dev, &c->in);
	dev_poll_disarm(c->dev, &c->out);
	for (unsigned i = 0; i < NBD_SLOTS; i++)
		dev_buf_put(c->dev, &c->slots[i].req.buf);
	/* Seen by the client now, though the removal of a poll may hold the file for another turn. */
	shutdown(c->fd, SHUT_RDWR);
	c->gone(c->owner, c);
}

static const struct transport_ops nbd_transport_ops = {
    .name = "nbd",
    .fetch = nbd_fetch,
    .copy_out = nbd_copy_out,
    .respond = nbd_respond,
    .kick = nbd_kick,
    .event = nbd_event,
    .detached = nbd_detached,
};

/* ---- the end ---- */

static void leave(struct nbd_conn *c)
{
	if (c->leaving)
		return;
	c->leaving = true;
	dev_detach(c->dev, &c->transport);
}

void conn_leave_if_idle(struct nbd_conn *c)
{
	if (c->ending && !c->used)
		leave(c);
}

void conn_end(struct nbd_conn *c)
{
	struct nbd_cmd *cmd = c->cmd;

	if (c->ending || c->dead)
		return;
	c->ending = true;
	if (c->filling) {
		slot_put(c, c->filling);
		c->filling = NULL;
	}
	if (cmd && cmd->issued_bytes < cmd->r.len_bytes) {
		/* It stays unfinished: its last part in flight tells so. */
		cmd->issued_bytes = cmd->r.len_bytes;
		cmd->error = NBD_ESHUTDOWN;
		c->cmd = NULL;
		if (cmd->ordered && !list_empty(&cmd->ended))
			ordered_advance(c, cmd);
	}
	conn_leave_if_idle(c);
}

static void drop_all(struct nbd_conn *c, struct list *slots)
{
	struct list *n;

	while ((n = list_pop(slots)))
		slot_put(c, container_of(n, struct nbd_slot, link));
}

void conn_die(struct nbd_conn *c, const char *why)
{
	if (c->dead)
		return;
	c->dead = true;
	c->why = why;
	drop_all(c, &c->answers);
	for (unsigned i = 0; i < NBD_SLOTS; i++)
		drop_all(c, &c->cmds[i].ended);
	if (c->filling)
		slot_put(c, c->filling);
	c->filling = NULL;
	c->cmd = NULL;
	leave(c);
}

/* ---- birth ---- */

void conn_attach(struct dev *d, void *conn)
{
	struct nbd_conn *c = conn;

	c->dev = d;
	dev_attach(d, &c->transport);
}

struct nbd_conn *conn_create(int fd, const struct nbd_session *session, const void *rest, uint32_t rest_bytes)
{
	struct nbd_conn *c = calloc(1, sizeof(*c));
	void *mem;

	CHECK(rest_bytes <= NBD_RX_WINDOW_BYTES);
	if (!c)
		return NULL;
	/* Address space: memory only as far as it is used. */
	mem = mmap(NULL, NBD_RX_BYTES + REQ_MAX_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED) {
		free(c);
		return NULL;
	}
	c->transport.ops = &nbd_transport_ops;
	list_init(&c->transport.link);
	c->fd = fd;
	c->session = *session;
	c->in = (struct io_poll){.fd = fd, .events = POLLIN};
	c->out = (struct io_poll){.fd = fd, .events = POLLOUT};
	list_init(&c->in.link);
	list_init(&c->out.link);
	list_init(&c->link);
	c->rx = mem;
	c->stash = c->rx + NBD_RX_BYTES;
	memcpy(c->rx, rest, rest_bytes);
	c->rx_end = rest_bytes;
	list_init(&c->answers);
	list_init(&c->free_slots);
	list_init(&c->free_cmds);
	for (unsigned i = 0; i < NBD_SLOTS; i++) {
		c->slots[i].req.transport = &c->transport;
		list_add_tail(&c->free_slots, &c->slots[i].link);
		list_init(&c->cmds[i].ended);
		list_add_tail(&c->free_cmds, &c->cmds[i].link);
	}
	return c;
}

void conn_free(struct nbd_conn *c)
{
	if (c->fd >= 0)
		close(c->fd);
	munmap(c->rx, NBD_RX_BYTES + REQ_MAX_BYTES);
	free(c);
}
