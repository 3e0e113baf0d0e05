/*
 * The hypervisor side of simxen: connections to DIR/hyp, grants, event channels. The protocol is
 * sim/simproto.h. Errors are negative errno, which go to the client as they are.
 */
#ifndef SIMXEN_HYPSIDE_H
#define SIMXEN_HYPSIDE_H

#include "sim/simxen/domain.h"

#define MAX_HYP_CONNS	    8192
#define MAX_PORTS_PER_GUEST 512	 /* two descriptors each */
#define MAX_BOUND	    8192 /* channels of one backend connection */

/* One event channel, from the guest's allocation until the guest closes it or dies. Bound or not, its two
 * eventfds are the same. */
struct evtchn {
	struct evtchn *next; /* of the guest */
	struct domain *dom;
	uint32_t port;
	uint32_t for_domid;	/* who may bind */
	int guest_fd, peer_fd;	/* readable while that side is pending */
	struct hyp_conn *bound; /* NULL: unbound */
	struct evtchn *bound_next;
	uint32_t local_port; /* of the binder */
};

struct hyp_conn {
	struct source src;
	struct hyp_conn *prev, *next;
	bool greeted, doomed;
	struct domain *guest; /* NULL: a backend in domain 0 */
	struct evtchn *bound;
	unsigned nbound;
	uint32_t next_local_port;
};

/* hyp.c */
void hyp_accept(int listen_fd);
void hyp_reap(void); /* ends doomed connections, and with a guest's its domain */

/* grants.c */
int mem_create(struct domain *d, uint32_t npages); /* -EEXIST: has memory */
int mem_grant(struct domain *d, uint32_t gref, uint32_t page, uint32_t count, uint32_t domid, uint32_t flags);
int mem_revoke(struct domain *d, uint32_t gref, uint32_t count);
void mem_release(
    struct domain *d); /* no grant is valid from here on, for those too who keep the memory mapped */

/* evtchn.c */
int evtchn_alloc(struct domain *d, uint32_t for_domid, struct evtchn **out);
int evtchn_bind(struct hyp_conn *c, uint32_t domid, uint32_t port, struct evtchn **out);
int evtchn_close_guest(struct domain *d, uint32_t port);
int evtchn_close_local(struct hyp_conn *c, uint32_t local_port);
void evtchn_unbind_all(struct hyp_conn *c);
void evtchn_close_all(struct domain *d);

#endif
