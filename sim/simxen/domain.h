/*
 * Domains: birth, death, what each owns. Domain 0 is there from the start and never dies.
 *
 * A guest is born by HELLO on DIR/hyp and dies with that connection, or by SIM_DOMAIN_DESTROY. At birth it
 * gets its home in the store as a toolstack makes it, its own xenstore socket, and is introduced; at death
 * all of that goes, in the order of the real thing: grants and channels first, then the store's connection,
 * then the nodes, and @releaseDomain last.
 */
#ifndef SIMXEN_DOMAIN_H
#define SIMXEN_DOMAIN_H

#include "sim/simxen/loop.h"
#include "sim/simproto.h"

#include <stdbool.h>

#define DOMID_LIMIT 0x7ff0u /* DOMID_FIRST_RESERVED (xen/xen.h) */
#define NO_TARGET   0xffffffffu

struct evtchn;

struct domain {
	struct domain *next; /* ascending domid */
	uint32_t domid;

	/* xenstore */
	bool introduced;
	uint32_t target; /* SET_TARGET: may do what that domain may */
	struct source xs_listen;
	char *xs_path;
	unsigned nconns, nwatches, ntxs;

	/* grants.c */
	int mem_fd, grants_fd; /* grants_fd is open for reading only */
	uint32_t npages;
	struct sim_grant *grants;

	/* evtchn.c */
	struct evtchn *ports;
	unsigned nports;
	uint32_t next_port;
};

/* Makes domain 0 and remembers the directory. */
void domains_init(const char *dir);

/* `domid` may be SIM_NEW_DOMAIN. -EEXIST: is alive; -EINVAL: no such id is possible; or why its socket cannot
 * be made. */
int domain_birth(uint32_t domid, struct domain **out);
void domain_death(struct domain *d);

struct domain *domain_find(uint32_t domid); /* NULL: none */
struct domain *domain_first_above(uint32_t domid, uint32_t *count);

/* What XS_INTRODUCE and XS_RELEASE do: open or close the domain's door to the store. */
int domain_introduce(struct domain *d);
void domain_release(struct domain *d);

/* Removes every guest's socket; for the end of the process. */
void domains_remove_sockets(void);

#endif
