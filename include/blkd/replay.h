/*
 * The replay engine: an I/O engine over an in-memory medium, in simulated time, deterministic from a seed.
 * Tests drive the real executor and the real formats through it; the crash model reads its log.
 *
 * A medium (struct replay) holds named files. Both ways into a file, the control path (struct backing_ops,
 * synchronous) and the engine (struct io_engine_ops), go through one log: one record per operation, with the
 * places of its submission and of its completion in one common sequence of events. An operation acts on the
 * medium at the instant of its completion. Completions come in the order of seeded delays, not of submission.
 * The same seed and the same calls give the same log, byte for byte.
 *
 * The clock moves in turn() only: 1 us per turn, further to the next completion or the deadline when nothing
 * is due; and 1 us per synchronous call. Descriptors armed for polling never become ready.
 *
 * Threads: a medium and all that is opened from it belong to one thread. Nothing blocks.
 */
#ifndef BLKD_REPLAY_H
#define BLKD_REPLAY_H

#include "blkd/backing.h"
#include "blkd/io.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REPLAY_PAGE_BYTES 4096u
#define REPLAY_PENDING	  UINT64_MAX /* completed_at of an operation that has not completed */

struct replay;

/* One operation. Plain data: whoever judges a log needs no function of this header. */
struct replay_rec {
	enum io_op op;
	unsigned file;	    /* id */
	bool sync;	    /* control path: submitted and completed without anything in between */
	uint64_t off_bytes; /* as struct io has them; a synchronous extend is off = old size, len = what is
			       added */
	uint64_t len_bytes;
	uint64_t submitted_at; /* index in the sequence of events, from 0 */
	uint64_t completed_at; /* likewise, or REPLAY_PENDING */
	uint64_t landed_bytes; /* of a WRITE, ZERO or PUNCH: how far it changed the medium; a failed one may
				  have, in part */
	uint64_t size_before;  /* EXTEND, TRUNCATE and a WRITE: size of the file when it acted, and after */
	uint64_t size_after;
	int res;	     /* as struct io */
	const uint8_t *data; /* WRITE: the bytes, len_bytes of them. EXTEND where storage does not promise
				zeros: what the new range holds. Else NULL. The medium's */
};

/* ---- medium. NULL on lack of memory. ---- */

struct replay *replay_create(uint64_t seed);
/* All backings are closed and all engines destroyed before (CHECKed). */
void replay_destroy(struct replay *);

/* Traits of files added or created from now on. Default: 512-byte sectors, 4096 physical, volatile, fallocate
 * and punch, zeroes. */
void replay_set_traits(struct replay *, const struct backing_traits *);
/* Bytes that all files together may have; beyond it growing fails with -ENOSPC. Default: none. */
void replay_set_capacity(struct replay *, uint64_t bytes);

struct replay_shape {
	uint64_t delay_min_ns, delay_max_ns; /* of an asynchronous operation */
	unsigned short_permille; /* of READ and WRITE operations that move only a part, at least one sector */
};
/* Default: 20 us to 200 us, no short operations. */
void replay_set_shape(struct replay *, const struct replay_shape *);

/* Adds a file and returns its id (from 0), or -EEXIST, -ENOMEM. pages: ceil(size / REPLAY_PAGE_BYTES)
 * pointers, NULL where zeros; the array is copied, the pages are borrowed until the medium is destroyed and
 * never written. pages NULL: all zeros. */
int replay_file_add(struct replay *, const char *path, uint64_t size_bytes, const uint8_t *const *pages);
int replay_file_find(const struct replay *, const char *path); /* id or -ENOENT */
unsigned replay_file_count(const struct replay *);
uint64_t replay_file_size(const struct replay *, int id);
/* The file as it is now: pointers as in replay_file_add, valid until the next operation. */
const uint8_t *const *replay_file_pages(const struct replay *, int id, size_t *n);
/* Around the log, as a test's hand. Reads zeros beyond the end; poke does not grow the file. */
void replay_file_peek(const struct replay *, int id, uint64_t off_bytes, void *buf, size_t len_bytes);
int replay_file_poke(struct replay *, int id, uint64_t off_bytes, const void *buf, size_t len_bytes);

/* Opens files of the medium; paths are compared after removing ".", ".." and doubled slashes. Valid as long
 * as the medium. */
const struct backing_opener *replay_opener(struct replay *);

/* ---- time and log ---- */

uint64_t replay_now(const struct replay *);
void replay_advance(struct replay *, uint64_t ns);

/* Recording is on from the start; off keeps faults and time but no records. */
void replay_record(struct replay *, bool on);
const struct replay_rec *replay_log(const struct replay *, size_t *n); /* in order of submission */
uint64_t replay_events(const struct replay *);	 /* submissions and completions so far */
uint64_t replay_log_hash(const struct replay *); /* of everything in the log */
/* Called before each event, with its index: the moment that a cut at this index means. */
void replay_on_event(struct replay *, void (*fn)(void *ctx, uint64_t event), void *ctx);

/* ---- faults ---- */

enum replay_fault_kind {
	REPLAY_FAIL,	  /* res is -error; nothing reaches the medium */
	REPLAY_FAIL_TORN, /* res is -error; a seeded part of a WRITE reached the medium */
	REPLAY_SHORT, /* READ, WRITE: only short_bytes are moved (rounded down to logical sectors, at least
			 one) */
	REPLAY_STUCK, /* takes delay_ns longer */
};

struct replay_fault {
	enum replay_fault_kind kind;
	unsigned nth; /* hit only the nth match from now, from 1; 0: every match */
	bool (*match)(
	    void *ctx,
	    const struct replay_rec *); /* NULL: every operation. Sees op, file, off, len, sync, data */
	void *ctx;
	int error; /* positive errno */
	uint64_t short_bytes;
	uint64_t delay_ns;
};

/* At most 16 at a time: -ENOSPC. Copied. */
int replay_fault_add(struct replay *, const struct replay_fault *);
void replay_fault_clear(struct replay *);
uint64_t replay_fault_hits(const struct replay *);

/* ---- engine ---- */

/* Engines created on this thread from now on serve this medium; NULL: none, and create() answers -ENXIO. */
void replay_bind(struct replay *);
/* What SIGKILL does: every operation queued or in flight, of all engines of this medium, is forgotten; none
 * completes (in the log they stay REPLAY_PENDING), none acts on the medium. Before dev_abandon(). */
void replay_drop_in_flight(struct replay *);
extern const struct io_engine_ops io_replay_engine;

#endif
