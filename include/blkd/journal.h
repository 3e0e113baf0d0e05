/*
 * The in-flight journal: what must outlive this process so that a successor can go on where it was killed.
 * Files in the run directory (/run/blkd, a tmpfs), MAP_SHARED, fully allocated at create so that a full tmpfs
 * is an error and not a SIGBUS. Stores become visible to a successor as they are made: no system call, no
 * flush. It protects against the death of the process, never of the host.
 *
 * One file per disk (struct journal): identity of the leaf, write-mode state, and the metadata records that
 * answered writes depend on. A ring journal is one file per ring (struct ring_journal): a copy of every
 * request in flight, consumed and published indices.
 *
 * Bound: the disk journal to boot id, leaf identity (device, inode, uuid) and open generation; a ring journal
 * to its connection.
 */
#ifndef BLKD_JOURNAL_H
#define BLKD_JOURNAL_H

#include "blkd/format.h"

#include <stdbool.h>
#include <stdint.h>

struct err;

#define JOURNAL_RECORDS_MIN 512u /* room at first: memory follows need */
#define JOURNAL_RECORDS_MAX 8192u

struct journal;

/* ---- per disk. Control path: may block on the file system. ---- */

/* Opens or creates the journal of `leaf` in run_dir. Records of an earlier life are kept for
 * journal_records(); a file of another boot or of another leaf under the same name is emptied. -EUCLEAN:
 * written by an unknown layout version. run_dir NULL: memory only, for engines and tests without a run
 * directory (then records die with the process). */
int journal_open(const char *run_dir, const struct image *leaf, struct journal **, struct err *);
/* May the image be read as it is? -EBUSY and a sentence: answered writes are in its journal only, so they
 * must be replayed by an open for writing first. run_dir NULL: yes. */
int journal_check(const char *run_dir, const struct image *, struct err *);
/* Unmaps; removes the file when clean (nothing recorded, not poisoned). */
void journal_close(struct journal *);
/* Unmaps and leaves the file as it is, as a killed process does. */
void journal_abandon(struct journal *);

/* Earlier records in order, for dirty_replay(). Refuses (-ESTALE and a sentence) when records are there and
 * the leaf's open generation is not the one they were written under: another writer has been here. */
int journal_records(const struct journal *, uint64_t generation, const struct meta_record **, unsigned *n,
		    struct err *);
/* Forgets all records: they are durable in the image. */
void journal_clear(struct journal *);
/* The generation under which records are written from now on. */
void journal_set_generation(struct journal *, uint64_t generation);

bool journal_poisoned(const struct journal *);
void journal_poison(struct journal *);
void journal_unpoison(struct journal *); /* an operator accepts the image as it is */
bool journal_guest_flushed(const struct journal *);
void journal_set_guest_flushed(struct journal *, bool);

/* ---- device thread, hot: no system call, no allocation ---- */

/* Adds what an answered write will depend on; merges with the last record where it continues it. -ENOSPC:
 * full; commit first. */
int journal_add(struct journal *, const struct meta_record *);
/* All epochs up to this one are durable: their records go. */
void journal_drop(struct journal *, uint64_t epoch_durable);
/* Is there so little room that a commit should begin? */
bool journal_is_full(const struct journal *);
/* After a commit: doubles the room, up to the maximum, if it was short (a system call; rare). */
void journal_relieve(struct journal *);

/* ---- per ring ---- */

#define RING_JOURNAL_SLOTS 512u /* a ring of order 4 */

enum ring_slot_state { RING_SLOT_FREE, RING_SLOT_TAKEN, RING_SLOT_DONE };

struct ring_slot {
	uint32_t state;		    /* enum ring_slot_state; stored last (release) */
	uint32_t ring_idx;	    /* free-running consumer index it was read at */
	uint32_t rsp_idx;	    /* DONE: producer index of its response */
	int32_t status;		    /* DONE */
	uint64_t arrival;	    /* sequence over all queues of the disk */
	unsigned char request[112]; /* copied from the ring, ABI as the header says */
};

struct ring_journal;

/* Creates (emptying any older one) the journal of one ring connection: name is unique per device and queue.
 * Control path. */
int ring_journal_open(const char *run_dir, const char *name, const void *binding, unsigned binding_bytes,
		      struct ring_journal **, struct err *);
void ring_journal_close(struct ring_journal *, bool keep);
/* Device thread, hot. Order on consume: slot TAKEN, then consumed index; on answer: DONE, response written,
 * published, FREE. */
struct ring_slot *ring_journal_slot(struct ring_journal *, unsigned i);
void ring_journal_consumed(struct ring_journal *, uint32_t req_cons);
void ring_journal_published(struct ring_journal *, uint32_t rsp_prod);

#endif
