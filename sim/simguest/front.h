/*
 * One vbd's frontend: the xenbus handshake of Linux 6.1 blkfront as named states.
 *
 *   ABSENT     the toolstack has not written our directory yet
 *   PROBED     state 1; waits for the backend's InitWait (2)
 *   OFFERED    rings published, state 3 (Initialised); waits for Connected (4)
 *   CONNECTED  state 4
 *   CLOSING    state 5; waits for the backend's Closing (5)
 *   CLOSED     state 6; the backend has to follow to 6, or its directory vanishes: then `gone` is set
 *   FAILED     the backend refused, or broke the handshake; `reason` says how
 */
#ifndef SIMGUEST_FRONT_H
#define SIMGUEST_FRONT_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/simguest/model.h"
#include "sim/simguest/ring.h"
#include "sim/simguest/tally.h"

#define MAX_QUEUES	16u
#define DIRECT_SEGMENTS 11u
#define PATH_BYTES	256u

struct guest;
struct disk_spec;

enum front_state {
	FRONT_ABSENT,
	FRONT_PROBED,
	FRONT_OFFERED,
	FRONT_CONNECTED,
	FRONT_CLOSING,
	FRONT_CLOSED,
	FRONT_FAILED
};

struct vbd {
	const struct disk_spec *spec;
	char name[16], fe[PATH_BYTES], be[PATH_BYTES];
	uint32_t be_domid;
	enum front_state state;
	char reason[256];

	/* what the backend offers and says */
	uint64_t sectors, info, sector_size, physical_sector_size, max_order, max_queues, max_indirect;
	uint64_t flush, barrier, discard, discard_granularity, discard_alignment;
	uint64_t be_state; /* as last read; 0: absent */
	unsigned connects, resizes;

	struct ring ring[MAX_QUEUES];
	unsigned nrings, last_rings, last_order; /* last_*: of the newest connection, for the report */
	uint32_t ring_page0;			 /* pages for MAX rings of the wanted order */
	uint32_t arena_page0, arena_pages;	 /* I/O buffers */

	bool closing; /* the backend wants to close: drain */
	bool gone;    /* the backend closed, or its directory vanished */

	struct model model;
	bool have_model;
	struct tally tally;
};

const char *front_state_name(enum front_state s);

/* Starts to watch for the frontend's directory. */
int front_start(struct guest *g, struct vbd *v);

/* Something changed in xenstore: look and move on as far as possible. 0 or -errno of xenstore. */
int front_step(struct guest *g, struct vbd *v);

/* CONNECTED -> CLOSING, or straight to CLOSED when the backend is closing already. No request may be in
 * flight. */
int front_begin_close(struct guest *g, struct vbd *v);

/* Takes back event channels and grants, after looking for late responses. The backend has closed. */
void front_release(struct guest *g, struct vbd *v);

/* CLOSED and released -> PROBED again, as a driver that is loaded once more. */
int front_restart(struct guest *g, struct vbd *v);

#endif
