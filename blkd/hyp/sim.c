/*
 * The hypervisor of kind "sim": simxen's protocol (sim/simproto.h) seen from domain 0. Here: the connection,
 * and the vtable.
 *
 * The socket is request-response under one mutex, for the control path only; rings, copies and channels that
 * exist never use it. If an answer is late or malformed the connection is shut: later control calls fail with
 * -ENOTCONN, the rest goes on.
 */
#include "blkd/hyp/sim_priv.h"
#include "blkd/err.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#define ANSWER_SECONDS 10

/* Takes every descriptor out of the message, so that none can leak whatever the answer turns out to be. */
static unsigned take_fds(struct msghdr *msg, int fds[static 2])
{
	unsigned n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		for (size_t i = 0; i < count_fds; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (n < 2)
				fds[n++] = fd;
			else
				close(fd);
		}
	}
	return n;
}

static int receive(int fd, struct sim_rsp *rsp, int fds[static 2], unsigned *nfds)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = rsp, .iov_len = sizeof(*rsp)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.bytes,
			     .msg_controllen = sizeof(control.bytes)};
	ssize_t got;

	do
		got = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	if (got == 0)
		return -ENOTCONN;
	*nfds = take_fds(&msg, fds);
	if (got != (ssize_t)sizeof(*rsp) || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return -EPROTO;
	return 0;
}

int sim_request(struct sim *s, const struct sim_req *req, struct sim_rsp *rsp, int fds[static 2],
		unsigned want_fds)
{
	unsigned nfds = 0;
	ssize_t sent;
	int rc;

	fds[0] = fds[1] = -1;
	if (s->fd < 0)
		return -ENOTCONN;
	do
		sent = send(s->fd, req, sizeof(*req), MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	rc = sent == (ssize_t)sizeof(*req) ? receive(s->fd, rsp, fds, &nfds) : -ENOTCONN;
	if (rc == 0 && (rsp->magic != SIM_MAGIC || rsp->op != req->op || rsp->error > 0 ||
			rsp->nfds != nfds || nfds != (rsp->error ? 0 : want_fds)))
		rc = -EPROTO;
	if (rc < 0) {
		sim_close_fds(fds);
		close(s->fd);
		s->fd = -1;
		return rc;
	}
	return rsp->error;
}

static int sim_connect(const char *dir, struct err *e)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = ANSWER_SECONDS};
	size_t len = strlen(dir);
	int fd, rc;

	if (len + sizeof("/hyp") > sizeof(addr.sun_path))
		return err_set(e, -ENAMETOOLONG, "%s: too long a directory for a socket", dir);
	memcpy(addr.sun_path, dir, len);
	memcpy(addr.sun_path + len, "/hyp", sizeof("/hyp"));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_set(e, -errno, "socket: %s", strerror(errno));
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
	    connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
		rc = -errno;
		close(fd);
		return err_set(e, rc, "%s/hyp: %s; is simxen running there?", dir, strerror(-rc));
	}
	return fd;
}

static int sim_open(const char *dir, struct hyp **out, struct err *e)
{
	struct sim_req req = {.magic = SIM_MAGIC, .op = SIM_HELLO, .domid = 0};
	struct sim_rsp rsp;
	struct sim *s;
	int fds[2], rc;

	if (!dir)
		return err_set(e, -EINVAL, "hypervisor \"sim\" needs the directory of simxen");
	s = aligned_alloc(_Alignof(struct sim), sizeof(*s));
	if (!s)
		return err_set(e, -ENOMEM, "no memory for the connection to simxen");
	memset(s, 0, sizeof(*s));
	s->hyp.ops = &hyp_sim_ops;
	rc = sim_connect(dir, e);
	if (rc < 0) {
		free(s);
		return rc;
	}
	s->fd = rc;
	pthread_mutex_init(&s->lock, NULL);
	rc = sim_request(s, &req, &rsp, fds, 0);
	if (rc < 0) {
		s->hyp.ops->close(&s->hyp);
		return err_set(e, rc, "%s/hyp: simxen refused the greeting: %s", dir, strerror(-rc));
	}
	*out = &s->hyp;
	return 0;
}

static void sim_close(struct hyp *h)
{
	struct sim *s = sim_of(h);

	if (s->fd >= 0)
		close(s->fd);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static void sim_counters(const struct hyp *h, struct hyp_counters *out)
{
	const struct sim *s = (const struct sim *)(const void *)h;

	*out = (struct hyp_counters){0};
	for (unsigned i = 0; i < SIM_COUNTER_SHARDS; i++) {
		const struct sim_counters *c = &s->counters[i];

		out->copies += atomic_load_explicit(&c->copies, memory_order_relaxed);
		out->segs += atomic_load_explicit(&c->segs, memory_order_relaxed);
		out->bad_segs += atomic_load_explicit(&c->bad_segs, memory_order_relaxed);
		out->copied_bytes += atomic_load_explicit(&c->copied_bytes, memory_order_relaxed);
		out->notifies += atomic_load_explicit(&c->notifies, memory_order_relaxed);
		out->acks += atomic_load_explicit(&c->acks, memory_order_relaxed);
	}
}

const struct hyp_ops hyp_sim_ops = {
    .kind = "sim",
    .open = sim_open,
    .close = sim_close,
    .map_ring = sim_map_ring,
    .unmap = sim_unmap,
    .copy = sim_copy,
    .bind = sim_bind,
    .unbind = sim_unbind,
    .notify = sim_notify,
    .ack = sim_ack,
    .unmask = sim_unmask,
    .counters = sim_counters,
};
