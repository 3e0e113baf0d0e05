/* The event loop and the few helpers that every file of simxen uses; see loop.h. */
#include "sim/simxen/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BATCH	64
#define BACKLOG 128

static int epoll_fd = -1;
static int spare_fd = -1; /* given up for a moment to turn a client away when descriptors are out */
static void (*after_each)(void);
static bool stopping;
static struct epoll_event batch[BATCH];
static int batch_len;

void loop_init(void (*after)(void))
{
	after_each = after;
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (epoll_fd < 0 || spare_fd < 0) {
		fprintf(stderr, "simxen: cannot make the event loop: %s\n", strerror(errno));
		exit(1);
	}
}

int loop_add(struct source *s, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = s};

	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, s->fd, &ev) < 0 ? -errno : 0;
}

void loop_set(struct source *s, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = s};

	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, s->fd, &ev) < 0) {
		fprintf(stderr, "simxen: epoll_ctl: %s\n", strerror(errno));
		exit(1);
	}
}

void loop_del(struct source *s)
{
	if (s->fd < 0)
		return;
	/* Explicitly, because a duplicate of the descriptor elsewhere would keep close() from removing it. */
	epoll_ctl(epoll_fd, EPOLL_CTL_DEL, s->fd, NULL);
	close(s->fd);
	s->fd = -1;
	for (int i = 0; i < batch_len; i++)
		if (batch[i].data.ptr == s)
			batch[i].data.ptr = NULL;
}

void loop_run(void)
{
	while (!stopping) {
		batch_len = epoll_wait(epoll_fd, batch, BATCH, -1);
		if (batch_len < 0) {
			batch_len = 0;
			if (errno == EINTR)
				continue;
			fprintf(stderr, "simxen: epoll_wait: %s\n", strerror(errno));
			exit(1);
		}
		for (int i = 0; i < batch_len && !stopping; i++) {
			struct source *s = batch[i].data.ptr;

			if (s)
				s->ready(s, batch[i].events);
			after_each();
		}
		batch_len = 0;
	}
}

void loop_stop(void)
{
	stopping = true;
}

int listen_at(const char *path, int type)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	size_t len = strlen(path);
	int fd, rc;

	if (len >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, len);
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	unlink(path);
	if (bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0 || chmod(path, 0600) < 0 ||
	    listen(fd, BACKLOG) < 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

int accept_or_refuse(int listen_fd)
{
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
		close(spare_fd);
		fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0)
			close(fd);
		spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
		return -1;
	}
	return fd;
}

void *must_alloc(size_t bytes)
{
	void *p = calloc(1, bytes ? bytes : 1);

	if (!p) {
		fprintf(stderr, "simxen: out of memory\n");
		exit(1);
	}
	return p;
}

void *must_realloc(void *p, size_t bytes)
{
	p = realloc(p, bytes ? bytes : 1);
	if (!p) {
		fprintf(stderr, "simxen: out of memory\n");
		exit(1);
	}
	return p;
}

char *must_strdup(const char *s)
{
	size_t len = strlen(s) + 1;

	return memcpy(must_alloc(len), s, len);
}
