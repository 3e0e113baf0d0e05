/*
 * Connections to DIR/hyp: one request, one answer. What a request may say and by whom is checked here and in
 * what it calls; a message that is none (size, magic) ends the connection, a refused one is answered with its
 * error.
 *
 * A connection is bound to its role by HELLO. The end of a guest's connection is the death of its domain; the
 * end of a backend's lets its channels fall to unbound. Both happen in hyp_reap, after the handler.
 */
#include "sim/simxen/hypside.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct answer {
	struct sim_rsp rsp;
	int fds[2]; /* borrowed */
};

static struct hyp_conn *all;
static unsigned nconns;
static bool any_doomed;

static void doom(struct hyp_conn *c)
{
	if (c->doomed)
		return;
	c->doomed = true;
	any_doomed = true;
	loop_del(&c->src);
}

static int op_hello(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	int rc = 0;

	if (c->greeted)
		return -EISCONN;
	if (q->domid != 0)
		rc = domain_birth(q->domid, &c->guest);
	if (rc < 0)
		return rc;
	c->greeted = true;
	a->rsp.domid = c->guest ? c->guest->domid : 0;
	return 0;
}

static int op_mem_create(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	int rc = mem_create(c->guest, q->count);

	if (rc < 0)
		return rc;
	a->rsp.count = q->count;
	a->rsp.nfds = 1;
	a->fds[0] = c->guest->mem_fd;
	return 0;
}

static int op_grant(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	(void)a;
	return mem_grant(c->guest, q->gref, q->page, q->count, q->domid, q->flags);
}

static int op_revoke(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	(void)a;
	return mem_revoke(c->guest, q->gref, q->count);
}

static int op_evtchn_alloc(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	struct evtchn *ch;
	int rc = evtchn_alloc(c->guest, q->domid, &ch);

	if (rc < 0)
		return rc;
	a->rsp.port = ch->port;
	a->rsp.nfds = 2;
	a->fds[0] = ch->guest_fd;
	a->fds[1] = ch->peer_fd;
	return 0;
}

static int op_evtchn_bind(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	struct evtchn *ch;
	int rc = evtchn_bind(c, q->domid, q->port, &ch);

	if (rc < 0)
		return rc;
	a->rsp.domid = q->domid;
	a->rsp.port = ch->local_port;
	a->rsp.nfds = 2;
	a->fds[0] = ch->peer_fd;
	a->fds[1] = ch->guest_fd;
	return 0;
}

static int op_evtchn_close(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	(void)a;
	return c->guest ? evtchn_close_guest(c->guest, q->port) : evtchn_close_local(c, q->port);
}

static int op_map(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	const struct domain *d = domain_find(q->domid);

	(void)c;
	if (!d || !d->grants)
		return -ESRCH;
	a->rsp.domid = d->domid;
	a->rsp.count = d->npages;
	a->rsp.nfds = 2;
	a->fds[0] = d->mem_fd;
	a->fds[1] = d->grants_fd;
	return 0;
}

static int op_domain_destroy(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	(void)c;
	(void)a;
	for (struct hyp_conn *g = all; g; g = g->next) {
		if (g->guest && g->guest->domid == q->domid && !g->doomed) {
			doom(g);
			return 0;
		}
	}
	return -ESRCH;
}

static int op_domain_list(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	const struct domain *d = domain_first_above(q->domid, &a->rsp.count);

	(void)c;
	a->rsp.domid = d ? d->domid : 0;
	return 0;
}

enum role { ANYBODY, GUEST, BACKEND };

static const struct {
	int (*run)(struct hyp_conn *, const struct sim_req *, struct answer *);
	enum role role;
} ops[] = {
    [SIM_HELLO] = {op_hello, ANYBODY},
    [SIM_MEM_CREATE] = {op_mem_create, GUEST},
    [SIM_GRANT] = {op_grant, GUEST},
    [SIM_REVOKE] = {op_revoke, GUEST},
    [SIM_EVTCHN_ALLOC] = {op_evtchn_alloc, GUEST},
    [SIM_EVTCHN_BIND] = {op_evtchn_bind, BACKEND},
    [SIM_EVTCHN_CLOSE] = {op_evtchn_close, ANYBODY},
    [SIM_MAP] = {op_map, BACKEND},
    [SIM_DOMAIN_DESTROY] = {op_domain_destroy, BACKEND},
    [SIM_DOMAIN_LIST] = {op_domain_list, BACKEND},
};

static int run(struct hyp_conn *c, const struct sim_req *q, struct answer *a)
{
	if (q->op >= sizeof(ops) / sizeof(ops[0]) || !ops[q->op].run)
		return -ENOSYS;
	if (!c->greeted && q->op != SIM_HELLO)
		return -ENOTCONN;
	if (ops[q->op].role != ANYBODY && (ops[q->op].role == GUEST) != (c->guest != NULL))
		return -EPERM;
	return ops[q->op].run(c, q, a);
}

static void send_answer(struct hyp_conn *c, const struct answer *a)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(2 * sizeof(int))];
	} control = {.bytes = {0}};
	struct sim_rsp rsp = a->rsp;
	struct iovec iov = {.iov_base = &rsp, .iov_len = sizeof(rsp)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (rsp.nfds) {
		size_t bytes = rsp.nfds * sizeof(int);

		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(bytes);
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(bytes);
		memcpy(CMSG_DATA(&control.align), a->fds, bytes);
	}
	/* A client that asks without taking its answers has broken "strictly in turn". */
	if (sendmsg(c->src.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)sizeof(rsp))
		doom(c);
}

static void conn_ready(struct source *s, uint32_t events)
{
	struct hyp_conn *c = container_of(s, struct hyp_conn, src);
	struct sim_req q = {0};
	ssize_t n = recv(s->fd, &q, sizeof(q), MSG_DONTWAIT | MSG_TRUNC);
	struct answer a = {0};

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n != (ssize_t)sizeof(q) || q.magic != SIM_MAGIC) {
		doom(c);
		return;
	}
	int rc = run(c, &q, &a);

	if (rc < 0)
		a = (struct answer){.rsp.error = rc};
	a.rsp.magic = SIM_MAGIC;
	a.rsp.op = q.op;
	if (!c->doomed)
		send_answer(c, &a);
}

void hyp_accept(int listen_fd)
{
	int fd = accept_or_refuse(listen_fd);
	struct hyp_conn *c;

	if (fd < 0)
		return;
	if (nconns >= MAX_HYP_CONNS) {
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
	c->next = all;
	if (all)
		all->prev = c;
	all = c;
	nconns++;
}

void hyp_reap(void)
{
	struct hyp_conn *next;

	if (!any_doomed)
		return;
	any_doomed = false;
	for (struct hyp_conn *c = all; c; c = next) {
		next = c->next;
		if (!c->doomed)
			continue;
		if (c->guest)
			domain_death(c->guest);
		evtchn_unbind_all(c);
		if (c->prev)
			c->prev->next = c->next;
		else
			all = c->next;
		if (c->next)
			c->next->prev = c->prev;
		nconns--;
		free(c);
	}
}
