/*
 * xs_wire client: one request in flight, answers matched by request id, watch events queued while an answer
 * is awaited. The server is trusted no further than its framing: a message longer than the protocol's limit
 * ends the connection.
 */
#include "sim/simguest/xswire.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <xen/io/xs_wire.h>

#define ANSWER_TIMEOUT_MS 30000

int xw_dial(struct xw *x, const char *socket_path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};

	*x = (struct xw){.fd = -1};
	x->tail = &x->head;
	if (strlen(socket_path) >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	strcpy(sa.sun_path, socket_path);
	x->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (x->fd < 0)
		return -errno;
	if (connect(x->fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0) {
		int err = -errno;

		xw_hangup(x);
		return err;
	}
	return 0;
}

void xw_hangup(struct xw *x)
{
	struct xw_event *e;

	while ((e = xw_next_event(x)))
		free(e);
	if (x->fd >= 0)
		close(x->fd);
	x->fd = -1;
}

static int read_full(struct xw *x, void *buf, size_t len)
{
	char *p = buf;

	while (len) {
		struct pollfd pfd = {.fd = x->fd, .events = POLLIN};
		ssize_t n;
		int ready = poll(&pfd, 1, ANSWER_TIMEOUT_MS);

		if (ready < 0 && errno == EINTR)
			continue;
		if (ready <= 0)
			return ready ? -errno : -ETIMEDOUT;
		n = read(x->fd, p, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ECONNRESET;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static int queue_event(struct xw *x, const char *body, uint32_t len)
{
	const char *nul = memchr(body, 0, len);
	struct xw_event *e;

	if (!nul || nul + 1 >= body + len || !memchr(nul + 1, 0, (size_t)(body + len - nul - 1)))
		return -EPROTO;
	e = malloc(sizeof(*e) + len);
	if (!e)
		return -ENOMEM;
	memcpy(e->data, body, len);
	e->next = NULL;
	e->path = e->data;
	e->token = e->data + (nul - body) + 1;
	*x->tail = e;
	x->tail = &e->next;
	return 0;
}

static int recv_msg(struct xw *x, struct xsd_sockmsg *hdr, char *body)
{
	int err;

	memset(hdr, 0, sizeof(*hdr));
	err = read_full(x, hdr, sizeof(*hdr));
	if (err)
		return err;
	if (hdr->len > XENSTORE_PAYLOAD_MAX)
		return -EPROTO;
	err = read_full(x, body, hdr->len);
	if (err)
		return err;
	body[hdr->len] = 0;
	return 0;
}

static int error_of(const char *name)
{
	for (size_t i = 0; i < sizeof(xsd_errors) / sizeof(xsd_errors[0]); i++) {
		if (!strcmp(name, xsd_errors[i].errstring))
			return -xsd_errors[i].errnum;
	}
	return -EINVAL;
}

/* One request and its answer. On success, if `answer` is given, it gets the body, NUL-terminated and the
 * caller's. */
static int talk(struct xw *x, enum xsd_sockmsg_type type, uint32_t tx, const char *payload, size_t len,
		char **answer)
{
	struct xsd_sockmsg hdr = {
	    .type = (uint32_t)type, .req_id = ++x->next_req, .tx_id = tx, .len = (uint32_t)len};
	char body[XENSTORE_PAYLOAD_MAX + 1];
	struct iovec iov[2] = {{.iov_base = &hdr, .iov_len = sizeof(hdr)},
			       {.iov_base = body, .iov_len = len}};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
	int err;

	if (len > XENSTORE_PAYLOAD_MAX)
		return -E2BIG;
	memcpy(body, payload, len);
	if (sendmsg(x->fd, &msg, MSG_NOSIGNAL) != (ssize_t)(sizeof(hdr) + len))
		return errno ? -errno : -EIO;
	for (;;) {
		err = recv_msg(x, &hdr, body);
		if (err)
			return err;
		if (hdr.type == XS_WATCH_EVENT) {
			err = queue_event(x, body, hdr.len);
			if (err)
				return err;
			continue;
		}
		if (hdr.req_id != x->next_req)
			return -EPROTO;
		break;
	}
	if (hdr.type == XS_ERROR)
		return error_of(body);
	if (hdr.type != (uint32_t)type)
		return -EPROTO;
	if (answer) {
		*answer = malloc(hdr.len + 1);
		if (!*answer)
			return -ENOMEM;
		memcpy(*answer, body, hdr.len + 1);
	}
	return 0;
}

char *xw_read(struct xw *x, uint32_t tx, const char *path, int *err)
{
	char *value = NULL;

	*err = talk(x, XS_READ, tx, path, strlen(path) + 1, &value);
	return *err ? NULL : value;
}

int xw_write(struct xw *x, uint32_t tx, const char *path, const char *value)
{
	char payload[XENSTORE_PAYLOAD_MAX + 1];
	int len = snprintf(payload, sizeof(payload), "%s%c%s", path, 0, value);

	if (len < 0 || (size_t)len >= sizeof(payload))
		return -E2BIG;
	/* The value goes without its NUL. */
	return talk(x, XS_WRITE, tx, payload, (size_t)len, NULL);
}

int xw_printf(struct xw *x, uint32_t tx, const char *dir, const char *node, const char *fmt, ...)
{
	char path[512], value[1024];
	va_list ap;
	int len;

	va_start(ap, fmt);
	len = vsnprintf(value, sizeof(value), fmt, ap);
	va_end(ap);
	if (len < 0 || (size_t)len >= sizeof(value))
		return -E2BIG;
	len = snprintf(path, sizeof(path), "%s/%s", dir, node);
	if (len < 0 || (size_t)len >= sizeof(path))
		return -E2BIG;
	return xw_write(x, tx, path, value);
}

int xw_mkdir(struct xw *x, uint32_t tx, const char *path)
{
	return talk(x, XS_MKDIR, tx, path, strlen(path) + 1, NULL);
}

int xw_rm(struct xw *x, uint32_t tx, const char *path)
{
	return talk(x, XS_RM, tx, path, strlen(path) + 1, NULL);
}

bool xw_is_empty_dir(struct xw *x, const char *path)
{
	char *names = NULL;
	bool empty = !talk(x, XS_DIRECTORY, 0, path, strlen(path) + 1, &names) && !*names;

	free(names);
	return empty;
}

int xw_set_perms(struct xw *x, uint32_t tx, const char *path, uint32_t owner, uint32_t reader)
{
	char payload[1024];
	int len = snprintf(payload, sizeof(payload), "%s%cn%u%cr%u", path, 0, owner, 0, reader);

	if (len < 0 || (size_t)len >= sizeof(payload))
		return -E2BIG;
	return talk(x, XS_SET_PERMS, tx, payload, (size_t)len + 1, NULL);
}

static int watch_op(struct xw *x, enum xsd_sockmsg_type type, const char *path, const char *token)
{
	char payload[1024];
	int len = snprintf(payload, sizeof(payload), "%s%c%s", path, 0, token);

	if (len < 0 || (size_t)len >= sizeof(payload))
		return -E2BIG;
	return talk(x, type, 0, payload, (size_t)len + 1, NULL);
}

int xw_watch(struct xw *x, const char *path, const char *token)
{
	return watch_op(x, XS_WATCH, path, token);
}

int xw_unwatch(struct xw *x, const char *path, const char *token)
{
	return watch_op(x, XS_UNWATCH, path, token);
}

int xw_tx_start(struct xw *x, uint32_t *tx)
{
	char *id = NULL;
	int err = talk(x, XS_TRANSACTION_START, 0, "", 1, &id);

	if (err)
		return err;
	*tx = (uint32_t)strtoul(id, NULL, 10);
	free(id);
	return 0;
}

int xw_tx_end(struct xw *x, uint32_t tx, bool commit)
{
	return talk(x, XS_TRANSACTION_END, tx, commit ? "T" : "F", 2, NULL);
}

int xw_read_u64(struct xw *x, uint32_t tx, const char *dir, const char *node, uint64_t *out)
{
	char path[512], *value, *end;
	int err, len = snprintf(path, sizeof(path), "%s/%s", dir, node);

	if (len < 0 || (size_t)len >= sizeof(path))
		return -E2BIG;
	value = xw_read(x, tx, path, &err);
	if (!value)
		return err;
	errno = 0;
	*out = strtoull(value, &end, 10);
	if (errno || end == value || *end || *value == '-')
		err = -EINVAL;
	free(value);
	return err;
}

int xw_pump(struct xw *x)
{
	for (;;) {
		struct pollfd pfd = {.fd = x->fd, .events = POLLIN};
		struct xsd_sockmsg hdr;
		char body[XENSTORE_PAYLOAD_MAX + 1];
		int err;

		if (poll(&pfd, 1, 0) <= 0)
			return 0;
		err = recv_msg(x, &hdr, body);
		if (err)
			return err;
		if (hdr.type != XS_WATCH_EVENT)
			return -EPROTO;
		err = queue_event(x, body, hdr.len);
		if (err)
			return err;
	}
}

struct xw_event *xw_next_event(struct xw *x)
{
	struct xw_event *e = x->head;

	if (!e)
		return NULL;
	x->head = e->next;
	if (!x->head)
		x->tail = &x->head;
	return e;
}
