/*
 * The blkif backend: serves every virtual block device that a toolstack describes in xenstore under
 * backend/<kind>. What main and ctl see.
 *
 * One control thread talks to xenstore and walks each device (VBD) through the xenbus handshake; images are
 * opened and closed on helper threads, so that one slow storage does not hold up another guest's handshake;
 * requests are served by the devices' own threads.
 *
 * Toolstacks: xenopsd and libxl >= 4.19 write kind "vbd3" by themselves. Without one, blkif_plug() writes
 * what they would.
 *
 * Nodes of the backend directory that are read: params ("vhd:/path", "vhd-fixed:/path", "raw:/path",
 * "aio:/path"), mode, online, state, removable, device-type, discard-enable; and, ours, blkd-write-mode
 * (auto, through, back) and blkd-barrier (0, 1).
 */
#ifndef BLKD_BLKIF_H
#define BLKD_BLKIF_H

#include "blkd/dev.h"

#include <stdbool.h>
#include <stdint.h>

struct blkif_backend;
struct bufpool;
struct cache;
struct err;
struct hyp;

#define BLKIF_DEFAULT_KIND "vbd3"

struct blkif_opts {		 /* strings are copied; pool, cache and engine outlive the backend */
	const char *kind;	 /* NULL: "vbd3" */
	const char *xenstore;	 /* socket; NULL: libxenstore's own way (XENSTORED_PATH, ...). Else sets
				    XENSTORED_PATH of the process */
	const char *run_dir;	 /* of journals; NULL: none */
	unsigned max_ring_pages; /* power of two; 0: 16 */
	unsigned max_queues;	 /* 0: 4; at most 16 */
	bool barrier;		 /* offer feature-barrier, where a VBD does not say */
	/* defaults of devices, see dev_opts, disk_opts */
	const struct io_engine_ops *engine;
	enum write_mode write_mode;
	struct bufpool *pool;
	struct cache *cache;
	unsigned idle_commit_ms, fence_wait_ms, backing_flags;
};

/* Starts the control thread; devices that are already in xenstore are taken up. The hypervisor stays the
 * caller's and outlives it. */
int blkif_start(struct hyp *, const struct blkif_opts *, struct blkif_backend **, struct err *);

/* Detaches every device (what was consumed is answered), closes the images cleanly, tells the frontends
 * "Closed", ends the thread, frees all. Blocks as long as storage does. Answers the first failure of a close,
 * or 0. */
int blkif_stop(struct blkif_backend *, struct err *);

struct blkif_vbd {
	uint32_t domid, devid;
	char image[256];      /* as params has it, without the format */
	char format[16];      /* as asked for; "" by suffix */
	const char *state;    /* ours, by name: "Connected", ... */
	const char *frontend; /* the frontend's XenbusState, by name */
	bool online, writable, barrier, discard;
	enum write_mode write_mode;
	unsigned queues, ring_pages;			    /* 0: not connected */
	const char *protocol;				    /* NULL: not connected */
	uint64_t size_bytes;				    /* 0: not open */
	uint64_t refused, copy_failures, notifies, wakeups; /* of this connection */
	uint64_t connects;				    /* since the device appeared */
	bool has_stats;
	struct dev_stats stats;
	char failure[512]; /* the last one's reason; "": none */
};

/* Calls fn for each VBD, with no lock held; any thread. fn answers false to stop. -ENOMEM, else 0. */
int blkif_each(struct blkif_backend *, bool (*fn)(void *ctx, const struct blkif_vbd *), void *ctx);

/* "xvda", "xvdc3", "sda", "hda", "d0p1" or a number -> devid. -EINVAL: none of these. Source:
 * docs/man/xen-vbd-interface.7 */
int blkif_devid(const char *device, uint32_t *devid);

struct blkif_plug {
	const char *kind; /* NULL: "vbd3" */
	uint32_t domid;
	const char *device; /* see blkif_devid() */
	const char *image;  /* absolute path */
	const char *format; /* raw, vhd, vhd-fixed; NULL: by suffix, .vhd is vhd and all else raw */
	bool writable;
	const char *write_mode; /* auto, through, back; NULL: the backend's default */
	int barrier, discard;	/* 0, 1; -1: the backend's default */
	unsigned timeout_ms;	/* 0: 10000 */
};

/* Writes what a toolstack would, in one transaction, and waits until the backend is ready for the frontend.
 * Own connection to xenstore; any thread; the backend may run in this process or in another. On failure what
 * was written is taken away again. -ESRCH no such domain; -EEXIST; -ETIMEDOUT no backend answered; else the
 * backend's reason. */
int blkif_plug(const struct blkif_plug *, struct err *);

/* Asks the frontend to let go, waits until the image is closed, removes the nodes. force: does not wait for
 * the guest (it sees its disk vanish). -ENOENT; -ETIMEDOUT: the guest still uses it; the request stays, and
 * the device goes when the guest closes it. */
int blkif_unplug(const char *kind, uint32_t domid, uint32_t devid, bool force, unsigned timeout_ms,
		 struct err *);

#endif
