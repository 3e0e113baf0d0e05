/*
 * Inside of hypervisor kind "sim": what sim.c (the connection), sim_mem.c (rings, grants, copies) and
 * sim_evtchn.c share.
 */
#ifndef BLKD_HYP_SIM_PRIV_H
#define BLKD_HYP_SIM_PRIV_H

#include "blkd/hyp.h"
#include "sim/simproto.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#define SIM_DOMIDS	   0x7ff0u /* DOMID_FIRST_RESERVED of xen/xen.h: ids above name no domain */
#define SIM_COUNTER_SHARDS 16u

struct sim_domain; /* sim_mem.c */

/* Sharded by domid, so that devices of different guests do not share a cache line. */
struct sim_counters {
	_Alignas(64) _Atomic uint64_t copies;
	_Atomic uint64_t segs, bad_segs, copied_bytes, notifies, acks;
};

struct sim {
	struct hyp hyp;
	pthread_mutex_t
	    lock; /* the socket, the writing side of `domains`, and each domain's count of rings */
	int fd;	  /* -1 once the connection is unusable */
	_Atomic(struct sim_domain *) domains[SIM_DOMIDS];
	struct sim_counters counters[SIM_COUNTER_SHARDS];
};

static inline struct sim *sim_of(struct hyp *h)
{
	return (struct sim *)(void *)h;
}

static inline struct sim_counters *sim_counters_of(struct sim *s, uint32_t domid)
{
	return &s->counters[domid % SIM_COUNTER_SHARDS];
}

static inline void sim_count(_Atomic uint64_t *c, uint64_t n)
{
	atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

static inline void sim_close_fds(int fds[static 2])
{
	for (unsigned i = 0; i < 2; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

/*
 * One request and its answer. `want_fds` descriptors come with success and are the caller's; none with an
 * error. s->lock is held. -ENOTCONN and other errors of the connection end it, because after them requests
 * and answers no longer pair.
 */
int sim_request(struct sim *s, const struct sim_req *req, struct sim_rsp *rsp, int fds[static 2],
		unsigned want_fds);

/* sim_mem.c */
int sim_map_ring(struct hyp *h, uint32_t domid, const uint32_t *grefs, unsigned npages, struct hyp_map **out,
		 void **addr, struct err *e);
void sim_unmap(struct hyp *h, struct hyp_map *map);
int sim_copy(struct hyp *h, uint32_t domid, struct hyp_seg *segs, unsigned n);

/* sim_evtchn.c */
int sim_bind(struct hyp *h, uint32_t domid, uint32_t remote_port, struct hyp_evtchn **out, struct err *e);
void sim_unbind(struct hyp_evtchn *base);
int sim_notify(struct hyp_evtchn *base);
int sim_ack(struct hyp_evtchn *base);
int sim_unmask(struct hyp_evtchn *base);

#endif
