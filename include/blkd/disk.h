/*
 * A disk: the chain of images behind one device, opened with everything that must happen before the first
 * byte is served. Shared by blkd's devices and by blkimg, so that every open for writing goes through the
 * same door (datapath.md 3 and 7): fence; replay of the journal's records and their commit; footers and free
 * space; open generation.
 *
 * Parents are opened once per process and shared by all disks (the registry in disk.c, one mutex, control
 * path only). Control path: these calls block.
 */
#ifndef BLKD_DISK_H
#define BLKD_DISK_H

#include "blkd/format.h"

struct err;
struct journal;
struct cache;

struct disk_opts {
	const char *path;
	const char *format; /* raw, vhd-fixed, vhd, or NULL: by suffix */
	bool writable;
	const char *run_dir;		     /* where journals live; NULL: records die with the process */
	const struct backing_opener *opener; /* NULL: file_opener */
	unsigned fence_wait_ms;		     /* how long a dying predecessor's I/O is waited for; 0: 5000 */
	unsigned backing_flags;		     /* BACKING_BUFFERED in tests, or 0 */
	bool poison_clear;		     /* an operator accepts the poisoned image: go on */
	struct cache *cache; /* told to forget a parent's frames at its last close; NULL: none */
};

struct disk {
	struct chain chain;
	struct journal *journal; /* writable disks only */
	bool writable;
	struct cache *cache;   /* as in disk_opts */
	bool has_records_home; /* answered writes may depend on journal records (generation and journal are
				  there) */
	char *path;
};

int disk_open(const struct disk_opts *, struct disk **, struct err *);
/* Closes images, journal and fence. Clean close of a leaf (JOB_COMMIT, JOB_CLOSE) is the caller's work
 * before: disk_finish() for the synchronous user, the device for a served disk. */
void disk_close(struct disk *);
/* As the death of the process would leave it: frees memory and descriptors, the journal file stays as it is.
 * For tests of crashes. */
void disk_abandon(struct disk *);
/* Commits and closes the leaf cleanly through its backing; then only disk_close may follow. */
int disk_finish(struct disk *, struct err *);

/* May the image at path be written? Refuses one that another image in its directory names as its parent (by
 * uuid), with that child's name in the sentence. Children aside (names that begin with a dot) do not count.
 */
int disk_check_not_parent(const struct image *, const char *path, struct err *);

#endif
