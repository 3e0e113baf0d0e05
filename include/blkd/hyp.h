/*
 * What blkd asks of a hypervisor: ring pages, grant copies, event channels.
 *
 * Two kinds stand behind one small vtable: "xen" (libxengnttab, libxenevtchn) and "sim" (simxen, a process on
 * the same host). The ring code sees neither. Both honour Xen's rules: a grant is looked up at each use; a
 * batch of copies has a status per segment; an event channel is pending right after its bind, and falls to
 * "unbound" when one side goes.
 *
 * Threads. One struct hyp serves the whole process. The calls are of two classes:
 * - Hot: hyp_copy, hyp_notify, hyp_ack, hyp_unmask, hyp_evtchn_fd, hyp_counters. Any thread, concurrently, no
 *   lock, no allocation; they do not block (sim: a memcpy, or one write or read of an eventfd; xen: one
 *   ioctl).
 * - Control: all others. Any thread; may allocate, take a mutex and block for a round trip to the hypervisor.
 *
 * Calls on one hyp_evtchn are the caller's to order (a device thread owns its channels); so are hyp_unmap and
 * hyp_close against copies that still run.
 *
 * Errors are negative errno; control calls also fill the struct err, if it is not NULL.
 * Sources: xen/include/public/{grant_table,event_channel}.h; Xen 4.17 common/{grant_table,event_channel}.c.
 */
#ifndef BLKD_HYP_H
#define BLKD_HYP_H

#include <stdint.h>

struct err;
struct hyp_ops;

#define HYP_PAGE_BYTES	   4096u
#define HYP_MAX_RING_PAGES 16u /* ring-page-order 4 */

/* A connection to a hypervisor. Each kind embeds it as its first member. */
struct hyp {
	const struct hyp_ops *ops;
};

/* Mapped ring pages; opaque. */
struct hyp_map;

/* A bound event channel. Each kind embeds it as its first member. */
struct hyp_evtchn {
	struct hyp *hyp;
	int fd; /* readable while the channel is pending; owned by the channel; poll it, never read it:
		   hyp_ack does */
};

enum hyp_dir {
	HYP_FROM_GUEST, /* granted page -> local: the guest writes to its disk */
	HYP_TO_GUEST,	/* local -> granted page: the guest reads */
};

/* What became of one segment. The numbers are Xen's (GNTST_*), so that the xen kind stores the kernel's
 * answer as it is; others of Xen's negative numbers may appear. */
enum hyp_status {
	HYP_OKAY = 0,
	HYP_GENERAL_ERROR = -1, /* granted to another domain; or read-only and HYP_TO_GUEST */
	HYP_BAD_DOMAIN = -2,
	HYP_BAD_GREF = -3,	/* no such grant (any more) */
	HYP_BAD_COPY_ARG = -11, /* crosses the end of the page */
};

/* One segment of a batch, within one granted page. The caller fills all but `status` and owns `local`. */
struct hyp_seg {
	void *local; /* only read if HYP_TO_GUEST */
	uint32_t gref;
	uint16_t offset_bytes; /* in the granted page; offset + len <= HYP_PAGE_BYTES */
	uint16_t len_bytes;    /* 0 is legal: it only checks the grant */
	uint8_t dir;	       /* enum hyp_dir */
	int16_t status;	       /* out: enum hyp_status */
};

/* Totals since hyp_open. Each is exact; together they are no snapshot. */
struct hyp_counters {
	uint64_t copies;   /* calls of hyp_copy (hypercalls on Xen) */
	uint64_t segs;	   /* segments in them */
	uint64_t bad_segs; /* of these, with status < 0 */
	uint64_t copied_bytes;
	uint64_t notifies; /* calls of hyp_notify */
	uint64_t acks;	   /* calls of hyp_ack that found the channel pending */
};

/* The slots have the meaning, thread and blocking class of the hyp_* function of that name below. */
struct hyp_ops {
	const char *kind;
	int (*open)(const char *dir, struct hyp **out, struct err *e);
	void (*close)(struct hyp *h);
	int (*map_ring)(struct hyp *h, uint32_t domid, const uint32_t *grefs, unsigned npages,
			struct hyp_map **out, void **addr, struct err *e);
	void (*unmap)(struct hyp *h, struct hyp_map *map);
	int (*copy)(struct hyp *h, uint32_t domid, struct hyp_seg *segs, unsigned n);
	int (*bind)(struct hyp *h, uint32_t domid, uint32_t remote_port, struct hyp_evtchn **out,
		    struct err *e);
	void (*unbind)(struct hyp_evtchn *ch);
	int (*notify)(struct hyp_evtchn *ch);
	int (*ack)(struct hyp_evtchn *ch);
	int (*unmask)(struct hyp_evtchn *ch);
	void (*counters)(const struct hyp *h, struct hyp_counters *out);
};

/*
 * Open a hypervisor. `kind` is "sim" or "xen"; `dir` is the directory simxen was started with ("xen" ignores
 * it; may be NULL). Control. -ENOTSUP: no such kind in this build. -ENOENT, -ECONNREFUSED: simxen is not
 * running there. -EPROTO: it speaks otherwise.
 */
int hyp_open(const char *kind, const char *dir, struct hyp **out, struct err *e);

/* Every map and channel must be gone by then. Control. NULL is legal. */
static inline void hyp_close(struct hyp *h)
{
	if (h)
		h->ops->close(h);
}

/*
 * Map `npages` (1..HYP_MAX_RING_PAGES) granted pages, in this order, writable, as one contiguous range at
 * *addr. Control. The caller owns the map and gives it back with hyp_unmap. The pages stay mapped and never
 * fault whatever the guest does, its death included; all they hold is the guest's and may change at any
 * moment. While at least one ring of a domain is mapped, hyp_copy with that domid is legal. All or nothing:
 * -ESRCH no such domain; -EINVAL npages; -ENOENT a gref that grants nothing; -EACCES granted to another
 * domain or read-only; -EBUSY a previous domain with this id is dead and still mapped by this process (unmap
 * its rings first: on Xen its id would not be free yet either); -EIO the hypervisor's answer is not sane.
 */
static inline int hyp_map_ring(struct hyp *h, uint32_t domid, const uint32_t *grefs, unsigned npages,
			       struct hyp_map **out, void **addr, struct err *e)
{
	return h->ops->map_ring(h, domid, grefs, npages, out, addr, e);
}

/* Control. NULL is legal. The address range is gone on return. */
static inline void hyp_unmap(struct hyp *h, struct hyp_map *map)
{
	if (map)
		h->ops->unmap(h, map);
}

/*
 * Copy `n` segments between local memory and pages that `domid` granted to this domain, in order, as one
 * batch. Hot. Returns 0 when each segment has its status: one bad segment fails only itself. Returns -ESRCH
 * if this process has no ring of `domid` mapped, or another -errno if the batch as a whole was refused: no
 * status is valid then. The guest's pages may change while they are copied; nothing is ever read twice. After
 * the guest's death segments fail.
 */
static inline int hyp_copy(struct hyp *h, uint32_t domid, struct hyp_seg *segs, unsigned n)
{
	return h->ops->copy(h, domid, segs, n);
}

/*
 * Bind to the unbound port `remote_port` that `domid` allocated for this domain. Control. The caller owns the
 * channel. It is pending at once ("we may have lost notifications"): whoever resumes a ring needs no special
 * case. -ESRCH no such domain; -EINVAL no such port, or it is for another domain; -EBUSY it is bound.
 */
static inline int hyp_bind(struct hyp *h, uint32_t domid, uint32_t remote_port, struct hyp_evtchn **out,
			   struct err *e)
{
	return h->ops->bind(h, domid, remote_port, out, e);
}

/* Close the channel; the guest's port falls to unbound and can be bound again. Control. NULL is legal. */
static inline void hyp_unbind(struct hyp_evtchn *ch)
{
	if (ch)
		ch->hyp->ops->unbind(ch);
}

/* The fd to poll for POLLIN. Valid until hyp_unbind. Hot. */
static inline int hyp_evtchn_fd(const struct hyp_evtchn *ch)
{
	return ch->fd;
}

/* Tell the guest. Hot. To a guest that closed its port or died it is silently dropped, as on Xen. */
static inline int hyp_notify(struct hyp_evtchn *ch)
{
	return ch->hyp->ops->notify(ch);
}

/*
 * Take the pending state: 1 if it was pending, 0 if not (a spurious wake-up). Hot. On Xen the channel is
 * masked from here until hyp_unmask, so call that after the ring was worked on, not before (XSA-332: the
 * guest sets our pace otherwise).
 */
static inline int hyp_ack(struct hyp_evtchn *ch)
{
	return ch->hyp->ops->ack(ch);
}

/* Let the next notification through; one that came since hyp_ack makes the fd readable now. Hot. */
static inline int hyp_unmask(struct hyp_evtchn *ch)
{
	return ch->hyp->ops->unmask(ch);
}

static inline void hyp_counters(const struct hyp *h, struct hyp_counters *out)
{
	h->ops->counters(h, out);
}

/* The kinds of this build; each is one row of the table in blkd/hyp/hyp.c. */
extern const struct hyp_ops hyp_sim_ops;

#endif
