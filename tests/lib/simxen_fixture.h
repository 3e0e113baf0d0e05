/*
 * For tests: starts the build's simxen in a directory of its own, and speaks the guest's side of
 * sim/simproto.h. Failures here end the test program: nothing useful can follow.
 */
#ifndef TESTS_SIMXEN_FIXTURE_H
#define TESTS_SIMXEN_FIXTURE_H

#include "sim/simproto.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define DIE(...)                                                                                             \
	do {                                                                                                 \
		fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                              \
		fprintf(stderr, __VA_ARGS__);                                                                \
		fprintf(stderr, "\n");                                                                       \
		exit(99);                                                                                    \
	} while (0)

struct simxen {
	pid_t pid;
	char dir[64];
};

/* $BUILD/simxen, or the one of the build that this program is from: BUILD/tests/unit/NAME. */
static inline void simxen_program(char *out, size_t bytes)
{
	const char *build = getenv("BUILD");
	char self[2048];
	ssize_t n;

	if (build) {
		snprintf(out, bytes, "%s/simxen", build);
		return;
	}
	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (n < 0)
		DIE("readlink: %s", strerror(errno));
	self[n] = '\0';
	*strrchr(self, '/') = '\0';
	snprintf(out, bytes, "%s/../../simxen", self);
}

/* Returns when it is ready to serve `dir`. */
static inline pid_t simxen_spawn(const char *dir)
{
	char program[4096], line[256] = {0};
	size_t got = 0;
	int out[2];
	pid_t pid;

	simxen_program(program, sizeof(program));
	if (pipe2(out, O_CLOEXEC) < 0)
		DIE("pipe: %s", strerror(errno));
	pid = fork();
	if (pid == 0) {
		dup2(out[1], STDOUT_FILENO);
		execl(program, program, "--dir", dir, (char *)NULL);
		fprintf(stderr, "%s: %s\n", program, strerror(errno));
		_exit(127);
	}
	close(out[1]);
	while (got < sizeof(line) - 1 && !strchr(line, '\n')) {
		ssize_t n = read(out[0], line + got, sizeof(line) - 1 - got);

		if (n <= 0)
			DIE("simxen did not become ready");
		got += (size_t)n;
	}
	close(out[0]);
	if (strncmp(line, "simxen: ready ", 14) != 0)
		DIE("simxen said \"%s\"", line);
	return pid;
}

static inline void simxen_start(struct simxen *s)
{
	strcpy(s->dir, "/tmp/simxen-test-XXXXXX");
	if (!mkdtemp(s->dir))
		DIE("mkdtemp: %s", strerror(errno));
	s->pid = simxen_spawn(s->dir);
}

/* Ends it as an operator would; its exit status. */
static inline int simxen_end(struct simxen *s)
{
	int status = 0;

	kill(s->pid, SIGTERM);
	if (waitpid(s->pid, &status, 0) != s->pid)
		DIE("waitpid: %s", strerror(errno));
	return status;
}

static inline void simxen_remove_dir(const struct simxen *s)
{
	DIR *d = opendir(s->dir);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (e->d_name[0] != '.')
			unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
	rmdir(s->dir);
}

static inline int connect_to(const char *dir, const char *name, int type)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", dir, name);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int rc = -errno;

		if (fd >= 0)
			close(fd);
		return rc;
	}
	return fd;
}

/* One request on DIR/hyp. Returns the answer's error; fds that came are in fds[0..rsp->nfds). -EPIPE: the
 * connection ended. */
static inline int hyp_call(int fd, struct sim_req req, struct sim_rsp *rsp, int fds[2])
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = rsp, .iov_len = sizeof(*rsp)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.bytes,
			     .msg_controllen = sizeof(control.bytes)};

	req.magic = SIM_MAGIC;
	fds[0] = fds[1] = -1;
	if (send(fd, &req, sizeof(req), MSG_NOSIGNAL) != (ssize_t)sizeof(req))
		return -EPIPE;
	if (recvmsg(fd, &msg, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(*rsp))
		return -EPIPE;
	if (rsp->magic != SIM_MAGIC || rsp->op != req.op)
		DIE("answer to op %u is of op %u", req.op, rsp->op);
	if (CMSG_FIRSTHDR(&msg))
		memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&msg)), rsp->nfds * sizeof(int));
	else if (rsp->nfds)
		DIE("op %u promised %u descriptors and sent none", req.op, rsp->nfds);
	return rsp->error;
}

/* For requests whose answer has no descriptors and no interest but its error. */
static inline int hyp_do(int fd, struct sim_req req)
{
	struct sim_rsp rsp;
	int fds[2];

	return hyp_call(fd, req, &rsp, fds);
}

struct guest {
	int hyp;
	uint32_t domid, npages;
	uint8_t *mem;
};

/* `domid` as in SIM_HELLO; npages 0: without memory. */
static inline void guest_birth(const struct simxen *s, struct guest *g, uint32_t domid, uint32_t npages)
{
	struct sim_rsp rsp;
	int fds[2], rc;

	*g = (struct guest){.hyp = connect_to(s->dir, "hyp", SOCK_SEQPACKET), .npages = npages};
	if (g->hyp < 0)
		DIE("%s/hyp: %s", s->dir, strerror(-g->hyp));
	rc = hyp_call(g->hyp, (struct sim_req){.op = SIM_HELLO, .domid = domid}, &rsp, fds);
	if (rc < 0)
		DIE("HELLO: %s", strerror(-rc));
	g->domid = rsp.domid;
	if (!npages)
		return;
	rc = hyp_call(g->hyp, (struct sim_req){.op = SIM_MEM_CREATE, .count = npages}, &rsp, fds);
	if (rc < 0)
		DIE("MEM_CREATE: %s", strerror(-rc));
	g->mem = mmap(NULL, (size_t)npages * SIM_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	close(fds[0]);
	if (g->mem == MAP_FAILED)
		DIE("mmap: %s", strerror(errno));
}

/* Closes the guest's connection; returns when simxen has buried the domain. */
static inline void guest_death(const struct simxen *s, struct guest *g)
{
	int fd = connect_to(s->dir, "hyp", SOCK_SEQPACKET);
	struct sim_rsp rsp;
	int fds[2];

	close(g->hyp);
	if (g->mem)
		munmap(g->mem, (size_t)g->npages * SIM_PAGE_BYTES);
	if (fd < 0 || hyp_do(fd, (struct sim_req){.op = SIM_HELLO}) < 0)
		DIE("cannot ask simxen for its domains");
	do {
		if (hyp_call(fd, (struct sim_req){.op = SIM_DOMAIN_LIST, .domid = g->domid - 1}, &rsp, fds) <
		    0)
			DIE("DOMAIN_LIST failed");
	} while (rsp.count && rsp.domid == g->domid);
	close(fd);
	g->hyp = -1;
	g->mem = NULL;
}

#endif
