/*
 * The table of open devices of this process: which image is served, by which device, and who uses it.
 *
 * One image file is one device, whatever the names it is asked for by: the key is the file's identity (device
 * and inode, or the number of a block device). A user is a ring backend, an NBD export or a control verb;
 * each holds one reference and attaches its transports to ref->dev itself. The rules at the door:
 *   - of a writable device, two users that are not `shared` exclude each other (two rings); a `shared` one
 * joins whoever is there (NBD beside a ring: it becomes a second transport);
 *   - any number of readers of one image, which share one read-only device;
 *   - a reader never gets a second device of an image that is being written, and a writer none of one that is
 * being read: a second opening would not see the first one's metadata. A refusal says who has the image.
 * Writers of other processes are kept out by the fence of disk_open().
 *
 * Threads: every call may come from any thread but a device's, and may block: on storage (opening, fencing,
 * draining, closing), and on another call that opens or closes the same image. No lock is held while it does.
 */
#ifndef BLKD_DEVTAB_H
#define BLKD_DEVTAB_H

#include "blkd/dev.h"

#include <stdbool.h>

struct err;

struct devtab_opts {
	const char *path;   /* absolute */
	const char *format; /* as disk_opts.format */
	const char *user;   /* who asks, for messages: "vbd-5-51712", "nbd:leaf1"; also the device's name if
			       this opens it */
	bool writable;
	bool shared; /* see above. A user that asked for read-only may get a writable device: it enforces that
			in its transport */
	/* How to open, if it is not open: as in disk_opts and dev_opts. A device that is there stays as it
	 * is. */
	const char *run_dir;
	const struct backing_opener *opener;
	unsigned fence_wait_ms, backing_flags;
	bool poison_clear;
	const struct io_engine_ops *engine;
	enum write_mode write_mode;
	struct bufpool *pool;
	struct cache *cache;
	unsigned idle_commit_ms, max_requests;
};

/* One user's hold on a device. */
struct devref {
	struct list link; /* table's */
	struct dev *dev;  /* valid until devtab_put */
	struct devtab_entry *entry;
	char user[64];
	bool writable, shared;
};

/* Opens the image and starts its device, or joins. -EBUSY: in use, by whom is in the sentence; others are
 * disk_open's and dev_create's. */
int devtab_get(const struct devtab_opts *, struct devref **, struct err *);

/* Gives the hold back; the user's transports were detached before (ops->detached came). The last one drains,
 * commits and closes the image: then the result is dev_destroy()'s, else 0. */
int devtab_put(struct devref *, struct err *);

struct devtab_info {
	const char *path;   /* as first opened */
	const char *format; /* of the leaf: "raw", "vhd-fixed", "vhd" */
	bool writable;
	struct dev *dev; /* for the calls of dev.h marked "any thread"; valid during the callback */
	const char *const *users;
	unsigned n_users;
};

/* Calls fn for each open device until it answers false. fn runs under the table's lock: it must not call back
 * into the table, block, or keep a pointer. */
void devtab_each(bool (*fn)(void *ctx, const struct devtab_info *), void *ctx);

/* Devices open, opening or closing: 0 at the end of a clean stop. */
unsigned devtab_count(void);

#endif
