/*
 * simxen's event loop: one thread, one epoll.
 *
 * Handlers never free what the loop may still hold: objects that must go are marked by their owners and freed
 * in the hook that the loop calls after each handler. loop_del() also takes a source out of the batch under
 * way.
 */
#ifndef SIMXEN_LOOP_H
#define SIMXEN_LOOP_H

#include <stddef.h>
#include <stdint.h>

/* Embedded in whatever owns a descriptor. The owner keeps it alive until loop_del. */
struct source {
	int fd;
	void (*ready)(struct source *s, uint32_t events); /* EPOLL* bits */
};

/* `after` runs after each handler. Ends the process with a sentence if the kernel refuses. */
void loop_init(void (*after)(void));
int loop_add(struct source *s, uint32_t events); /* 0 or -errno */
void loop_set(struct source *s, uint32_t events);
void loop_del(struct source *s); /* also closes s->fd; legal twice */
void loop_run(void);		 /* until loop_stop */
void loop_stop(void);

/* A listening unix socket at `path` (a stale one is replaced), mode 0600. fd or -errno. */
int listen_at(const char *path, int type);

/* accept4() that survives running out of descriptors: the client is turned away instead of being offered
 * again for ever. -1: none. */
int accept_or_refuse(int listen_fd);

/* malloc that ends the process with a sentence: a simulator out of memory has nothing better to do. Sizes are
 * bounded by callers. */
void *must_alloc(size_t bytes); /* zeroed */
void *must_realloc(void *p, size_t bytes);
char *must_strdup(const char *s);

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#endif
