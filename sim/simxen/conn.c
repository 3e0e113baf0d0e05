/*
 * Connections to the store: framing in, queueing out, and the bounds that keep one client's behaviour its own
 * affair.
 *
 * A client that sends a frame too long, or does not read what it asked for, loses its connection; one that
 * merely reads slowly is not read from meanwhile. Watch events come uninvited, so they have a bound of their
 * own; an event equal to one that still waits in the queue is not queued again: the client has yet to look
 * anyway. Nothing is freed in a handler: a connection is doomed, which ends its watches and transactions at
 * once, and reaped after it.
 */
#include "sim/simxen/xs.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct msg {
	struct msg *next;	/* in the queue */
	struct watch *watch;	/* whose event this is; NULL: an answer, or the watch is gone */
	struct msg *watch_next; /* of the same watch, older */
	uint32_t bytes, sent;
	char frame[];
};

static struct xs_conn *all;
static unsigned nconns;
static bool any_doomed;

struct xs_conn *xs_conns_first(void)
{
	return all;
}

static void conn_ready(struct source *s, uint32_t events);

void xs_accept(struct domain *d)
{
	int fd = accept_or_refuse(d->xs_listen.fd);
	struct xs_conn *c;

	if (fd < 0)
		return;
	if (nconns >= MAX_CONNS || (!is_privileged(d) && d->nconns >= MAX_CONNS_PER_GUEST)) {
		close(fd);
		return;
	}
	c = must_alloc(sizeof(*c));
	c->src = (struct source){.fd = fd, .ready = conn_ready};
	if (loop_add(&c->src, EPOLLIN) < 0) {
		close(fd);
		free(c);
		return;
	}
	c->dom = d;
	c->watches_end = &c->watches;
	c->next_tx_id = 1;
	c->next = all;
	if (all)
		all->prev = c;
	all = c;
	nconns++;
	d->nconns++;
}

void xs_conn_doom(struct xs_conn *c)
{
	if (c->doomed)
		return;
	watches_drop(c);
	while (c->txs) {
		struct tx *tx = c->txs;

		c->txs = tx->next;
		tx_free(tx);
		c->dom->ntxs--;
	}
	c->dom->nconns--;
	c->dom = NULL;
	c->doomed = true;
	any_doomed = true;
	loop_del(&c->src);
}

void xs_conns_doom(struct domain *d)
{
	for (struct xs_conn *c = all; c; c = c->next)
		if (c->dom == d)
			xs_conn_doom(c);
}

static void out_drop_first(struct xs_conn *c)
{
	struct msg *m = c->out_first;

	if (m->watch) {
		/* The oldest of its watch is the last of that list. */
		struct msg **at = &m->watch->pending;

		while (*at != m)
			at = &(*at)->watch_next;
		*at = m->watch_next;
	}
	c->out_first = m->next;
	if (!c->out_first)
		c->out_last = NULL;
	c->out_bytes -= m->bytes;
	free(m);
}

void xs_reap(void)
{
	struct xs_conn *next;

	if (!any_doomed)
		return;
	any_doomed = false;
	for (struct xs_conn *c = all; c; c = next) {
		next = c->next;
		if (!c->doomed)
			continue;
		if (c->prev)
			c->prev->next = c->next;
		else
			all = c->next;
		if (c->next)
			c->next->prev = c->prev;
		while (c->out_first)
			out_drop_first(c);
		nconns--;
		free(c);
	}
}

/* Sends what the socket takes, and decides what to wait for. */
static void flush_out(struct xs_conn *c)
{
	while (c->out_first) {
		struct msg *m = c->out_first;
		ssize_t n =
		    send(c->src.fd, m->frame + m->sent, m->bytes - m->sent, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			xs_conn_doom(c);
			return;
		}
		if (n < 0)
			break;
		m->sent += (uint32_t)n;
		if (m->sent == m->bytes)
			out_drop_first(c);
	}
	c->paused = c->out_bytes > OUT_PAUSE_BYTES;
	loop_set(&c->src, (c->paused ? 0u : EPOLLIN) | (c->out_first ? EPOLLOUT : 0u));
}

static void out_append(struct xs_conn *c, struct msg *m)
{
	bool was_empty = !c->out_first;

	if (c->out_last)
		c->out_last->next = m;
	else
		c->out_first = m;
	c->out_last = m;
	c->out_bytes += m->bytes;
	if (c->out_bytes > (is_privileged(c->dom) ? OUT_MAX_BYTES_DOM0 : OUT_MAX_BYTES_GUEST))
		xs_conn_doom(c);
	else if (was_empty)
		flush_out(c);
}

static struct msg *msg_new(uint32_t type, uint32_t req_id, uint32_t tx_id, const void *data, size_t bytes)
{
	const struct xsd_sockmsg hdr = {
	    .type = type, .req_id = req_id, .tx_id = tx_id, .len = (uint32_t)bytes};
	struct msg *m = must_alloc(sizeof(*m) + sizeof(hdr) + bytes);

	m->bytes = (uint32_t)(sizeof(hdr) + bytes);
	memcpy(m->frame, &hdr, sizeof(hdr));
	if (bytes)
		memcpy(m->frame + sizeof(hdr), data, bytes);
	return m;
}

static const char *error_name(int error)
{
	for (size_t i = 0; i < sizeof(xsd_errors) / sizeof(xsd_errors[0]); i++)
		if (xsd_errors[i].errnum == error)
			return xsd_errors[i].errstring;
	return "EINVAL";
}

void xs_reply_error(struct xs_conn *c, const struct request *r, int error)
{
	const char *name = error_name(error);

	if (!c->doomed)
		out_append(c, msg_new(XS_ERROR, r->hdr.req_id, r->hdr.tx_id, name, strlen(name) + 1));
}

void xs_reply(struct xs_conn *c, const struct request *r, const void *data, size_t bytes)
{
	if (c->doomed)
		return;
	if (bytes > XENSTORE_PAYLOAD_MAX)
		xs_reply_error(c, r, E2BIG);
	else
		out_append(c, msg_new(r->hdr.type, r->hdr.req_id, r->hdr.tx_id, data, bytes));
}

void xs_ack(struct xs_conn *c, const struct request *r)
{
	xs_reply(c, r, "OK", sizeof("OK"));
}

void xs_event(struct watch *w, const char *path)
{
	char data[XENSTORE_PAYLOAD_MAX];
	size_t path_bytes = strlen(path) + 1, token_bytes = strlen(w->token) + 1;
	struct msg *m;

	/* xenstored drops what does not fit a frame. */
	if (path_bytes + token_bytes > sizeof(data))
		return;
	memcpy(data, path, path_bytes);
	memcpy(data + path_bytes, w->token, token_bytes);
	m = msg_new(XS_WATCH_EVENT, 0, 0, data, path_bytes + token_bytes);
	for (const struct msg *same = w->pending; same; same = same->watch_next) {
		if (same->bytes == m->bytes && memcmp(same->frame, m->frame, m->bytes) == 0) {
			free(m);
			return;
		}
	}
	m->watch = w;
	m->watch_next = w->pending;
	w->pending = m;
	out_append(w->conn, m);
}

void xs_event_forget(struct watch *w)
{
	struct msg *next;

	for (struct msg *m = w->pending; m; m = next) {
		next = m->watch_next;
		m->watch = NULL;
		m->watch_next = NULL;
	}
	w->pending = NULL;
}

/* The frame at the head of the buffer; false if it is not whole yet. */
static bool take_frame(struct xs_conn *c)
{
	char data[XENSTORE_PAYLOAD_MAX + 1];
	struct request r = {.data = data};
	size_t frame_bytes;

	if (c->in_bytes < sizeof(r.hdr))
		return false;
	memcpy(&r.hdr, c->in, sizeof(r.hdr));
	if (r.hdr.len > XENSTORE_PAYLOAD_MAX) {
		xs_conn_doom(c);
		return false;
	}
	frame_bytes = sizeof(r.hdr) + r.hdr.len;
	if (c->in_bytes < frame_bytes)
		return false;
	memcpy(data, c->in + sizeof(r.hdr), r.hdr.len);
	data[r.hdr.len] = '\0';
	c->in_bytes -= (uint32_t)frame_bytes;
	memmove(c->in, c->in + frame_bytes, c->in_bytes);
	xs_handle(c, &r);
	return true;
}

static void read_in(struct xs_conn *c)
{
	ssize_t n = recv(c->src.fd, c->in + c->in_bytes, sizeof(c->in) - c->in_bytes, MSG_DONTWAIT);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		xs_conn_doom(c);
		return;
	}
	if (n > 0)
		c->in_bytes += (uint32_t)n;
}

/* All whole frames of the buffer (also those that waited through a pause), until unread answers pause the
 * client. */
static void take_frames(struct xs_conn *c)
{
	while (!c->doomed && !c->paused && take_frame(c)) {
		c->paused = !c->doomed && c->out_bytes > OUT_PAUSE_BYTES;
		if (c->paused)
			flush_out(c);
	}
}

static void conn_ready(struct source *s, uint32_t events)
{
	struct xs_conn *c = container_of(s, struct xs_conn, src);

	if (events & EPOLLOUT)
		flush_out(c);
	if (!c->doomed && !c->paused && (events & EPOLLIN))
		read_in(c);
	take_frames(c);
	if (!c->doomed && (events & (EPOLLERR | EPOLLHUP)) && !(events & EPOLLIN))
		xs_conn_doom(c);
}
