/*
 * Client of simxen's hypervisor protocol. The answer's file descriptors come as SCM_RIGHTS; whatever comes
 * that was not asked for is closed, so that a confused server cannot fill our table.
 */
#include "sim/simguest/hypcall.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "sim/simproto.h"

#define MAX_FDS 4

static unsigned take_fds(struct msghdr *msg, int *fds)
{
	unsigned n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t count;
		int got[MAX_FDS];

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		if (count > MAX_FDS)
			count = MAX_FDS;
		memcpy(got, CMSG_DATA(c), count * sizeof(int));
		for (size_t i = 0; i < count; i++) {
			if (n < MAX_FDS)
				fds[n++] = got[i];
			else
				close(got[i]);
		}
	}
	return n;
}

/* One call. On success exactly `want_fds` descriptors are in fds[]. */
static int hypcall(struct hyp *h, struct sim_req *req, struct sim_rsp *rsp, int *fds, unsigned want_fds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(MAX_FDS * sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = rsp, .iov_len = sizeof(*rsp)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.buf,
			     .msg_controllen = sizeof(control.buf)};
	int got[MAX_FDS];
	unsigned n;
	ssize_t len;
	int err = 0;

	req->magic = SIM_MAGIC;
	if (send(h->fd, req, sizeof(*req), MSG_NOSIGNAL) != (ssize_t)sizeof(*req))
		return errno ? -errno : -EIO;
	do
		len = recvmsg(h->fd, &msg, MSG_CMSG_CLOEXEC);
	while (len < 0 && errno == EINTR);
	if (len < 0)
		return -errno;
	n = take_fds(&msg, got);
	if (len != (ssize_t)sizeof(*rsp) || rsp->magic != SIM_MAGIC || rsp->op != req->op)
		err = len == 0 ? -ECONNRESET : -EPROTO;
	else if (rsp->error)
		err = rsp->error < 0 ? rsp->error : -EPROTO;
	else if (n != want_fds || rsp->nfds != want_fds)
		err = -EPROTO;
	for (unsigned i = 0; i < n; i++) {
		if (err)
			close(got[i]);
		else
			fds[i] = got[i];
	}
	return err;
}

int hyp_open(struct hyp *h, const char *dir, uint32_t domid)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct sim_req req = {.op = SIM_HELLO, .domid = domid};
	struct sim_rsp rsp = {0};
	int len, err;

	*h = (struct hyp){.fd = -1};
	len = snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/hyp", dir);
	if (len < 0 || (size_t)len >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	h->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (h->fd < 0)
		return -errno;
	if (connect(h->fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0)
		err = -errno;
	else
		err = hypcall(h, &req, &rsp, NULL, 0);
	if (err) {
		hyp_close(h);
		return err;
	}
	h->domid = rsp.domid;
	return 0;
}

int hyp_mem_create(struct hyp *h, uint32_t npages)
{
	struct sim_req req = {.op = SIM_MEM_CREATE, .count = npages};
	struct sim_rsp rsp;
	void *mem;
	int fd = -1, err;

	err = hypcall(h, &req, &rsp, &fd, 1);
	if (err)
		return err;
	mem = mmap(NULL, (size_t)npages * SIM_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	err = mem == MAP_FAILED ? -errno : 0;
	close(fd);
	if (err)
		return err;
	h->mem = mem;
	h->npages = npages;
	return 0;
}

int hyp_grant(struct hyp *h, uint32_t page, uint32_t count, uint32_t domid, uint32_t flags)
{
	struct sim_req req = {.op = SIM_GRANT,
			      .gref = page + GREF_FIRST,
			      .page = page,
			      .count = count,
			      .domid = domid,
			      .flags = flags};
	struct sim_rsp rsp;

	return hypcall(h, &req, &rsp, NULL, 0);
}

int hyp_revoke(struct hyp *h, uint32_t page, uint32_t count)
{
	struct sim_req req = {.op = SIM_REVOKE, .gref = page + GREF_FIRST, .count = count};
	struct sim_rsp rsp;

	return hypcall(h, &req, &rsp, NULL, 0);
}

int hyp_evtchn_alloc(struct hyp *h, uint32_t domid, struct evtchn *ec)
{
	struct sim_req req = {.op = SIM_EVTCHN_ALLOC, .domid = domid};
	struct sim_rsp rsp;
	int fds[MAX_FDS];
	int err;

	err = hypcall(h, &req, &rsp, fds, 2);
	if (err)
		return err;
	*ec = (struct evtchn){.port = rsp.port, .wait_fd = fds[0], .notify_fd = fds[1]};
	return 0;
}

void hyp_evtchn_close(struct hyp *h, struct evtchn *ec)
{
	struct sim_req req = {.op = SIM_EVTCHN_CLOSE, .port = ec->port};
	struct sim_rsp rsp;

	if (ec->wait_fd < 0)
		return;
	hypcall(h, &req, &rsp, NULL, 0);
	close(ec->wait_fd);
	close(ec->notify_fd);
	ec->wait_fd = ec->notify_fd = -1;
}

void hyp_close(struct hyp *h)
{
	if (h->mem)
		munmap(h->mem, (size_t)h->npages * SIM_PAGE_BYTES);
	if (h->fd >= 0)
		close(h->fd);
	*h = (struct hyp){.fd = -1};
}
