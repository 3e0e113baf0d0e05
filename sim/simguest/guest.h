/*
 * The whole guest: one domain, its memory, its two voices in xenstore, its disks; and the one place where it
 * sleeps. One thread. Nothing here is shared with anybody but the backend, through the guest's pages.
 */
#ifndef SIMGUEST_GUEST_H
#define SIMGUEST_GUEST_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "sim/simguest/front.h"
#include "sim/simguest/hypcall.h"
#include "sim/simguest/options.h"
#include "sim/simguest/xswire.h"

struct guest {
	const struct options *opt;
	struct hyp hyp;
	struct xw xs;	/* as the guest */
	struct xw dom0; /* as the toolstack; fd -1 unless a disk of ours is to be plugged */
	struct vbd vbd[MAX_DISKS];
	unsigned nvbds;
};

/* Set by SIGINT and SIGTERM: end the phase, close, report. */
extern volatile sig_atomic_t guest_stop;

/* Births the domain with memory for all disks and phases; connects to xenstore. 0 or -errno, told on stderr.
 */
int guest_open(struct guest *g, const struct options *opt);
void guest_close(struct guest *g);

/*
 * Sleeps until an event channel, xenstore or a signal has something, at most timeout_ms (0: only looks).
 * Events of xenstore have been dispatched to the frontends when it returns. -errno when the domain or
 * xenstore is gone: nothing works any more.
 */
int guest_wait(struct guest *g, int timeout_ms);

uint64_t now_ns(void);

#endif
