/* The io_uring engine's object, shared by its hot half (uring.c) and its setup (uring_setup.c). */
#ifndef BLKD_IO_URING_PRIV_H
#define BLKD_IO_URING_PRIV_H

#include "blkd/io.h"
#include "blkd/io/worker.h"

#include <liburing.h>

#define URING_FILE_SLOTS 64u   /* files of deeper chains go by descriptor */
#define URING_POLL_SLOTS 1024u /* polls beyond wait for a slot */

/*
 * What a CQE of a poll names. The slot is the engine's and lives until that CQE came, whatever became of the
 * poll: so a disarmed poll may be freed at once, and its late CQE finds an empty slot.
 */
struct uring_poll_slot {
	struct io_poll *poll; /* NULL: disarmed, or free */
	uint32_t next_free;
};

struct uring {
	struct io_engine base;
	struct io_uring ring;
	unsigned depth;
	bool files_registered;
	uint64_t file_used; /* bit per slot of the registered table */
	struct io_worker_box box;
	bool box_armed;
	unsigned armed;	       /* polls */
	struct list poll_wait; /* armed, without a slot */
	struct uring_poll_slot *slots;
	uint32_t slots_touched, free_slot; /* first never used; head of the list of freed ones */
};
#define URING_NO_SLOT UINT32_MAX

_Static_assert(URING_FILE_SLOTS == 64, "file_used is one word");

int uring_create(unsigned depth, struct io_engine **, struct err *);
void uring_destroy(struct io_engine *);
int uring_file_add(struct io_engine *, struct backing *, struct io_file *);
void uring_file_del(struct io_engine *, struct io_file *);

/* Can this kernel run the engine? 0, or -errno with a sentence. Any thread. */
int uring_probe(struct err *);

#endif
