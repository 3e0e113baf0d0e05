/*
 * For tests: a xenstore client that says exactly what it is told to, and hands back exactly what came: error
 * names as errno, watch events in their order. libxenstore hides too much of both.
 */
#ifndef TESTS_XS_RAW_H
#define TESTS_XS_RAW_H

#include "tests/lib/simxen_fixture.h"

#include <xen/io/xs_wire.h>

#define XS_EVENTS_MAX 4096

struct xs_raw_event {
	char *path, *token;
};

struct xs_raw {
	int fd;
	uint32_t req_id;
	unsigned nevents;
	struct xs_raw_event events[XS_EVENTS_MAX]; /* not yet looked at */
	uint32_t reply_bytes;
	char reply[XENSTORE_PAYLOAD_MAX + 1];
};

/* NULL: nobody listens there. */
static inline struct xs_raw *xs_raw_try(const char *dir, const char *name)
{
	struct xs_raw *x = calloc(1, sizeof(*x));

	if (!x)
		DIE("out of memory");
	x->fd = connect_to(dir, name, SOCK_STREAM);
	if (x->fd < 0) {
		free(x);
		return NULL;
	}
	return x;
}

static inline struct xs_raw *xs_raw_open(const char *dir, const char *name)
{
	struct xs_raw *x = xs_raw_try(dir, name);

	if (!x)
		DIE("cannot connect to %s/%s", dir, name);
	return x;
}

static inline void xs_raw_forget_events(struct xs_raw *x)
{
	for (unsigned i = 0; i < x->nevents; i++) {
		free(x->events[i].path);
		free(x->events[i].token);
	}
	x->nevents = 0;
}

static inline void xs_raw_close(struct xs_raw *x)
{
	xs_raw_forget_events(x);
	close(x->fd);
	free(x);
}

static inline bool xs_raw_recv_all(int fd, void *buf, size_t bytes)
{
	for (size_t got = 0; got < bytes;) {
		ssize_t n = recv(fd, (char *)buf + got, bytes - got, 0);

		if (n <= 0)
			return false;
		got += (size_t)n;
	}
	return true;
}

/* One frame: an event is queued, anything else is the reply. False: the connection ended. */
static inline bool xs_raw_frame(struct xs_raw *x, struct xsd_sockmsg *hdr)
{
	if (!xs_raw_recv_all(x->fd, hdr, sizeof(*hdr)) || hdr->len > XENSTORE_PAYLOAD_MAX ||
	    !xs_raw_recv_all(x->fd, x->reply, hdr->len))
		return false;
	x->reply[hdr->len] = '\0';
	if (hdr->type != XS_WATCH_EVENT) {
		x->reply_bytes = hdr->len;
		return true;
	}
	if (x->nevents == XS_EVENTS_MAX)
		DIE("too many watch events");
	x->events[x->nevents++] =
	    (struct xs_raw_event){.path = strdup(x->reply), .token = strdup(x->reply + strlen(x->reply) + 1)};
	return true;
}

static inline bool xs_raw_send(struct xs_raw *x, uint32_t type, uint32_t tx, const void *data, size_t bytes)
{
	struct xsd_sockmsg hdr = {.type = type, .req_id = ++x->req_id, .tx_id = tx, .len = (uint32_t)bytes};

	return send(x->fd, &hdr, sizeof(hdr), MSG_NOSIGNAL) == (ssize_t)sizeof(hdr) &&
	       send(x->fd, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes;
}

/* 0 with the reply in x->reply, or the error as -errno. -EPIPE: the connection ended. */
static inline int xs_raw_call(struct xs_raw *x, uint32_t type, uint32_t tx, const void *data, size_t bytes)
{
	struct xsd_sockmsg hdr;

	if (!xs_raw_send(x, type, tx, data, bytes))
		return -EPIPE;
	do
		if (!xs_raw_frame(x, &hdr))
			return -EPIPE;
	while (hdr.type == XS_WATCH_EVENT);
	if (hdr.req_id != x->req_id)
		DIE("answer to request %u, not %u", hdr.req_id, x->req_id);
	if (hdr.type == type)
		return 0;
	if (hdr.type != XS_ERROR)
		DIE("answer of type %u to a request of type %u", hdr.type, type);
	for (size_t i = 0; i < sizeof(xsd_errors) / sizeof(xsd_errors[0]); i++)
		if (strcmp(xsd_errors[i].errstring, x->reply) == 0)
			return -xsd_errors[i].errnum;
	DIE("unknown error \"%s\"", x->reply);
}

/* The common forms. `a` and `b` are strings; their NULs are sent. */
static inline int xs_raw_1(struct xs_raw *x, uint32_t type, uint32_t tx, const char *a)
{
	return xs_raw_call(x, type, tx, a, strlen(a) + 1);
}

static inline int xs_raw_2(struct xs_raw *x, uint32_t type, uint32_t tx, const char *a, const char *b,
			   bool b_has_nul)
{
	char data[2 * XENSTORE_PAYLOAD_MAX];
	size_t a_bytes = strlen(a) + 1, b_bytes = strlen(b) + b_has_nul;

	memcpy(data, a, a_bytes);
	memcpy(data + a_bytes, b, b_bytes);
	return xs_raw_call(x, type, tx, data, a_bytes + b_bytes);
}

static inline int xs_raw_write(struct xs_raw *x, uint32_t tx, const char *path, const char *value)
{
	return xs_raw_2(x, XS_WRITE, tx, path, value, false);
}

static inline int xs_raw_read(struct xs_raw *x, uint32_t tx, const char *path)
{
	return xs_raw_1(x, XS_READ, tx, path);
}

static inline int xs_raw_mkdir(struct xs_raw *x, uint32_t tx, const char *path)
{
	return xs_raw_1(x, XS_MKDIR, tx, path);
}

static inline int xs_raw_rm(struct xs_raw *x, uint32_t tx, const char *path)
{
	return xs_raw_1(x, XS_RM, tx, path);
}

static inline int xs_raw_watch(struct xs_raw *x, const char *path, const char *token)
{
	return xs_raw_2(x, XS_WATCH, 0, path, token, true);
}

static inline int xs_raw_unwatch(struct xs_raw *x, const char *path, const char *token)
{
	return xs_raw_2(x, XS_UNWATCH, 0, path, token, true);
}

/* `perms` is a list with blanks: "n0 r5". */
static inline int xs_raw_set_perms(struct xs_raw *x, uint32_t tx, const char *path, const char *perms)
{
	char data[XENSTORE_PAYLOAD_MAX];
	size_t path_bytes = strlen(path) + 1, perms_bytes = strlen(perms) + 1;

	memcpy(data, path, path_bytes);
	memcpy(data + path_bytes, perms, perms_bytes);
	for (size_t i = 0; i < perms_bytes; i++)
		if (data[path_bytes + i] == ' ')
			data[path_bytes + i] = '\0';
	return xs_raw_call(x, XS_SET_PERMS, tx, data, path_bytes + perms_bytes);
}

/* Transaction id, or the error as -errno. */
static inline int64_t xs_raw_tx_start(struct xs_raw *x)
{
	int rc = xs_raw_call(x, XS_TRANSACTION_START, 0, "", 1);

	return rc < 0 ? rc : (int64_t)strtoul(x->reply, NULL, 10);
}

static inline int xs_raw_tx_end(struct xs_raw *x, uint32_t tx, bool commit)
{
	return xs_raw_1(x, XS_TRANSACTION_END, tx, commit ? "T" : "F");
}

/* All events that the server has sent by now are in x->events after this: answers and events keep their
 * order. */
static inline void xs_raw_settle(struct xs_raw *x)
{
	int rc = xs_raw_1(x, XS_GET_DOMAIN_PATH, 0, "0");

	if (rc < 0)
		DIE("GET_DOMAIN_PATH: %s", strerror(-rc));
}

/* Whether that is the next event; it is taken. */
static inline bool xs_raw_event_is(struct xs_raw *x, const char *path, const char *token)
{
	bool same;

	xs_raw_settle(x);
	if (!x->nevents) {
		fprintf(stderr, "expected event %s %s, there is none\n", path, token);
		return false;
	}
	same = strcmp(x->events[0].path, path) == 0 && strcmp(x->events[0].token, token) == 0;
	if (!same)
		fprintf(stderr, "expected event %s %s, got %s %s\n", path, token, x->events[0].path,
			x->events[0].token);
	free(x->events[0].path);
	free(x->events[0].token);
	memmove(x->events, x->events + 1, --x->nevents * sizeof(x->events[0]));
	return same;
}

static inline bool xs_raw_no_event(struct xs_raw *x)
{
	xs_raw_settle(x);
	if (x->nevents)
		fprintf(stderr, "unexpected event %s %s\n", x->events[0].path, x->events[0].token);
	return x->nevents == 0;
}

#endif
