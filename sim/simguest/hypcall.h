/*
 * The guest's hypercalls: a connection to DIR/hyp (sim/simproto.h). It is the life of the domain: when it
 * closes, the domain dies. Every call is one message and one answer, and may block for as long as simxen
 * takes. 0 or negative errno.
 */
#ifndef SIMGUEST_HYPCALL_H
#define SIMGUEST_HYPCALL_H

#include <stddef.h>
#include <stdint.h>

/* Grant references below 8 are reserved on Xen. Ours are page number + 8, for ever: a page has one gref. */
#define GREF_FIRST 8u

struct hyp {
	int fd;
	uint32_t domid;
	uint8_t *mem; /* the guest's pages, mapped shared with the backend */
	uint32_t npages;
};

struct evtchn {
	uint32_t port;
	int wait_fd, notify_fd; /* owned */
};

/* Births the domain. `domid`: SIM_NEW_DOMAIN or a wanted number. */
int hyp_open(struct hyp *h, const char *dir, uint32_t domid);
int hyp_mem_create(struct hyp *h, uint32_t npages);

/* Pages page..page+count for domain `domid`; flags as in simproto.h. */
int hyp_grant(struct hyp *h, uint32_t page, uint32_t count, uint32_t domid, uint32_t flags);
int hyp_revoke(struct hyp *h, uint32_t page, uint32_t count);

int hyp_evtchn_alloc(struct hyp *h, uint32_t domid, struct evtchn *ec);
void hyp_evtchn_close(struct hyp *h, struct evtchn *ec);

/* Unmaps and ends the domain. */
void hyp_close(struct hyp *h);

#endif
