/*
 * Image formats: functions of bytes. A format decides; it never waits, allocates or does I/O on the hot path.
 * The executor (blkd/dev) owns every buffer, operation, retry and completion, and asks the format three
 * things: map() says where bytes live, write_begin() which data moves where, a job (commit, grow, close)
 * which metadata follows, in which order.
 *
 * Opening, creating, checking and repairing are control path: they read and write through the backing's
 * synchronous calls.
 *
 * Threads: a leaf belongs to its device's thread. A parent is immutable after open and shared by all: map()
 * of it is pure. An image becomes a leaf by begin_writing(), and never goes back: seal (JOB_CLOSE) ends its
 * writable life.
 *
 * Metadata of a format comes in sectors that live in pages of META_PAGE_BYTES of the file: the executor
 * brings the page (for a parent: as a pinned frame of the host-wide cache, for a leaf: into meta_put()) and
 * asks again.
 */
#ifndef BLKD_FORMAT_H
#define BLKD_FORMAT_H

#include "blkd/backing.h"

#include <stdbool.h>
#include <stdint.h>

struct err;
struct image;

#define META_PAGE_BYTES 4096u
#define CHAIN_MAX_DEPTH 1024u

enum extent_kind {
	EXT_ZERO, /* memset */
	EXT_HOLE, /* ask the layer below (never answered by chain_map) */
	EXT_DATA, /* read file_off of layer */
	EXT_META, /* bring the 512 bytes at file_off of layer (they lie within one META_PAGE_BYTES page), ask
		     again with them */
};

struct extent {
	enum extent_kind kind;
	uint16_t layer;	    /* 0: leaf. Filled by chain_map; 0 from map() */
	uint32_t len_bytes; /* of guest data that the answer covers, > 0; for META: to ask again about */
	uint64_t file_off;
};

/* ---- writing ---- */

enum write_op {
	WRITE_DATA,
	WRITE_ZERO, /* exact: the range reads zero afterwards */
	WRITE_TRIM, /* a hint: reads old bytes or zeros afterwards, and never uncovers a parent */
};
#define WRITE_BELOW_ZERO                                                                                     \
	1u /* flag: every layer below reads zero (or is absent) in the whole range asked about */

enum piece_act { PIECE_WRITE, PIECE_ZERO, PIECE_PUNCH, PIECE_NOTHING };
enum piece_park { PARK_META, PARK_EPOCH, PARK_GROW };

/* What outlives the process in the in-flight journal: one metadata change that an answered write depends on.
 */
struct meta_record {
	uint32_t block;
	uint32_t sector; /* BAT entry of the block: file sector of its bitmap; META_RECORD_FREED: the entry
			    was cleared */
	uint16_t first, count; /* sectors of the block whose bit is set; count 0: none */
	uint32_t epoch_low;    /* low half of the epoch that will make it durable */
};
#define META_RECORD_FREED 0xffffffffu
_Static_assert(sizeof(struct meta_record) == 16, "lives in shared memory");

struct write_piece {
	enum piece_act act;
	uint32_t len_bytes; /* guest bytes covered from off_bytes, > 0; may be less than asked: call again for
			       the rest */
	uint64_t off_bytes; /* guest offset */
	uint64_t file_off;  /* where to act */
	uint64_t epoch;	    /* the commit that must be durable before the write is; 0: none */
	struct meta_record rec; /* when epoch != 0: what goes to the journal once the data landed */
	enum piece_park park;	/* when -EINPROGRESS */
	uint64_t park_key;	/* PARK_META: file offset to bring (512 bytes), then meta_put() */
};

/* ---- jobs: ordered metadata acts of one image ---- */

enum job_kind {
	JOB_COMMIT, /* close the current epoch and make it durable */
	JOB_GROW,   /* make more slots ready for allocation */
	JOB_CLOSE,  /* after the last commit, no write in flight: batmap, slack cut, trailing footer. The leaf
		       is sealed afterwards */
};

enum act_kind { ACT_FLUSH, ACT_WRITE, ACT_EXTEND, ACT_TRUNCATE, ACT_ZERO, ACT_PUNCH };

struct meta_act {
	enum act_kind kind;
	uint32_t tag;	    /* the format's */
	uint64_t off_bytes; /* as enum io_op has them; EXTEND: old size and what is added */
	uint64_t len_bytes; /* WRITE: a multiple of 512, <= META_PAGE_BYTES */
	void *buf;	    /* WRITE: META_PAGE_BYTES that the executor lends; the format copies into it */
};

struct job { /* the executor's memory; the format's content */
	enum job_kind kind;
	uint64_t epoch;	  /* COMMIT: the epoch it closes */
	unsigned phase;	  /* format's */
	unsigned running; /* acts handed out and not done */
	uint64_t cursor;  /* format's */
	int res;	  /* first failure, or 0; the job's result once job_next answered 0 */
};

enum { /* image->wants: what the executor should do soon, off the hot path. Set and cleared by the format. */
       IMAGE_DIRTY = 1,	      /* an epoch has changes: commit when idle */
       IMAGE_WANT_COMMIT = 2, /* the bound on dirty sectors is near: commit now */
       IMAGE_WANT_GROW = 4,   /* few ready slots: grow ahead of need */
};

struct image_format {
	const char *name; /* "raw", "vhd-fixed", "vhd" */

	/* Control path, blocking. Opens read-only in effect: nothing is written, whatever the backing allows;
	 * a damaged image is refused with a sentence, what is merely unclean (trailing footer missing or
	 * differing, batmap clobbered) is accepted and noted in image->notes. Takes the backing over on
	 * success. */
	int (*open)(struct backing *, struct image **, struct err *);
	/* Frees the image and closes its backing. Writes nothing. */
	void (*close)(struct image *);

	/* Any thread for a parent, device thread for a leaf; pure. off and len: multiples of 512 within
	 * size_bytes; len > 0. meta: NULL, or the 512 bytes that an EXT_META answer asked for. Answers about
	 * a prefix of the range. */
	void (*map)(const struct image *, const void *meta, uint64_t off_bytes, uint32_t len_bytes,
		    struct extent *out);
	/* May the image have an entry for some byte of [off, off + len)? Pure, no metadata needed (owner
	 * index). len > 0. */
	bool (*owns)(const struct image *, uint64_t off_bytes, uint64_t len_bytes);

	/* ---- leaf only, device thread; NULL where the format cannot be written ---- */

	/* Live view of the metadata sector at file offset key, or NULL: not in memory. Valid until the next
	 * call on the image. */
	const void *(*meta_get)(struct image *, uint64_t key);
	/* Takes the 512 bytes read from key (res 0), or notes that reading failed (res < 0: nothing is kept).
	 * Evicts clean ones only. -EBUSY: all are dirty; commit first, then bring it again. The executor has
	 * at most one read of a key in flight, and none over a block that is being discarded. A leaf that is
	 * only read takes the memory of its cache with the first one (-ENOMEM). */
	int (*meta_put)(struct image *, uint64_t key, const void *buf, int res);
	/* 0: do piece->act at file_off, then call write_end exactly once. -EINPROGRESS: nothing was changed;
	 * park on piece->park and call again. Other: fail the request with it, nothing was changed. Parked on
	 * EPOCH: it wants a commit that has not begun yet (IMAGE_WANT_COMMIT is set); parked on GROW: a
	 * JOB_GROW, whose failure is the request's. */
	int (*write_begin)(struct image *, enum write_op, unsigned flags, uint64_t off_bytes,
			   uint64_t len_bytes, struct write_piece *);
	void (*write_end)(struct image *, const struct write_piece *, int res);

	/* Starts a job. At most one job of each kind runs at a time (the executor's duty). 0, or -errno: not
	 * started, nothing changed
	 * (-ENOSPC, -EROFS, -EIO for a poisoned image). */
	int (*job_begin)(struct image *, enum job_kind, struct job *);
	/* Fills up to max acts, which may run in any order. > 0: acts. -EAGAIN: nothing to do until running
	 * acts are done or, for a commit, until its epoch's data ended: ask again after any job_done or
	 * write_end. 0: the job is over, see job->res. */
	int (*job_next)(struct image *, struct job *, struct meta_act *, unsigned max);
	void (*job_done)(struct image *, struct job *, const struct meta_act *, int res);

	uint64_t (*epoch_open)(const struct image *);	 /* the epoch that writes join now; from 1 */
	uint64_t (*epoch_durable)(const struct image *); /* all epochs up to this one are durable */

	/* Opening for writing, in this order, blocking, backing writable and fenced (disk_open does it):
	 * 1. dirty_replay: marks what the journal's records name; refuses (-EINVAL and a sentence) what
	 * contradicts the image.
	 * 2. the caller runs a JOB_COMMIT (image_run_job) and drops the records;
	 * 3. begin_writing: puts the trailing footer right, finds the free space, raises the open generation,
	 * durable when it returns. */
	int (*dirty_replay)(struct image *, const struct meta_record *, unsigned n, struct err *);
	int (*begin_writing)(struct image *, struct err *);
	/* Counter on disk, raised by every open for writing; 0: this image has no place for one (then it is
	 * served write-through only). */
	uint64_t (*generation)(const struct image *);
};

/* The first member of every image. */
struct image {
	const struct image_format *ops;
	struct backing *file;
	uint64_t size_bytes;	/* of the virtual disk, a multiple of 512 */
	uint64_t serial;	/* of this opened object, never reused in a process: the cache's key */
	unsigned char uuid[16]; /* all zero: none */
	bool hidden;		/* marked as a parent: never opened for writing */
	bool writing;		/* begin_writing was done */
	bool poisoned;		/* a flush failed: every later commit fails until it is opened anew */
	unsigned wants;		/* IMAGE_* */
	unsigned refs;		/* registry of parents, under its lock */
	/* Parent reference, as stored. parent_names: candidate paths in order of preference, relative ones to
	 * be resolved against the directory of this image's path. Owned by the image. */
	bool has_parent;
	bool parent_is_raw;
	unsigned char parent_uuid[16];
	uint32_t parent_mtime; /* as stored, seconds since 2000-01-01 UTC */
	char *parent_names[9];
	unsigned n_parent_names;
	char notes[512]; /* what open() accepted and an operator should know; one sentence each, "; " between;
			    empty: nothing */
};

extern const struct image_format raw_format, vhd_fixed_format, vhd_format;

/* By name: "raw", "vhd-fixed", "vhd" (dynamic and differencing). NULL: unknown. */
const struct image_format *format_by_name(const char *name);
/* By file name suffix and, for .vhd, by what its footers say; content may only refuse: a bare .vhd with valid
 * footers at both ends that differ in type is refused. Blocking. name may be NULL (then path's suffix rules)
 * or what --format said. */
int format_find(struct backing *, const char *name, const struct image_format **, struct err *);
/* A fresh image serial. Any thread. */
uint64_t image_serial(void);
/* In hexadecimal, with hyphens. Pure. */
void uuid_text(const unsigned char uuid[16], char out[37]);

/* ---- chain.c: the ordered images of one disk ---- */

/* The immutable part, shared by all clones of one parent. img[0] is the leaf's parent. owner[] gives for each
 * CHAIN_BLOCK_BYTES of the disk the first layer (index into img) that owns anything of it, or CHAIN_NO_OWNER.
 */
struct parents {
	unsigned refs; /* registry, under its lock */
	unsigned n;
	struct image **img;
	uint16_t *owner;
	uint64_t n_owner;	 /* entries: of the nearest parent's size */
	uint64_t *visible_bytes; /* of img[i]: the least size of img[0..i]; what lies beyond reads zero,
				    whatever img[i] and those below hold */
};
#define CHAIN_BLOCK_BYTES (2u << 20)
#define CHAIN_NO_OWNER	  0xffffu

struct chain {
	struct image *leaf;
	struct parents *parents; /* NULL: none */
	uint64_t size_bytes;	 /* the leaf's */
};

/* Builds owner[] for img[0..n). Allocates; control path. The images stay the caller's. */
int parents_build(struct image **img, unsigned n, struct parents **out, struct err *);
void parents_free(struct parents *); /* the index only, not the images */

static inline struct image *chain_image(const struct chain *c, unsigned layer)
{
	return layer ? c->parents->img[layer - 1] : c->leaf;
}

static inline unsigned chain_depth(const struct chain *c)
{
	return 1 + (c->parents ? c->parents->n : 0);
}

/* HOT. Where do the bytes at off live? Looks from layer `from` downwards (0: the whole chain); meta belongs
 * to layer `from`, or is NULL. Answers ZERO, DATA or META (for META: bring it, ask again with from =
 * out->layer and len = out->len_bytes). Pure. */
void chain_map(const struct chain *, unsigned from, const void *meta, uint64_t off_bytes, uint32_t len_bytes,
	       struct extent *out);

/* HOT. Do all layers below the leaf read zero in the whole range, as far as the index can tell without
 * metadata? Pure. */
bool chain_below_is_zero(const struct chain *, uint64_t off_bytes, uint64_t len_bytes);

/* ---- chain_open.c ---- */

/* Opens the parents of `leaf`, nearest first, read-only, into img[CHAIN_MAX_DEPTH]; checks uuids, cycles (by
 * file identity), depth; warns (log) about time stamps and depth above 30. share, if not NULL, is asked first
 * for an image already open (by file identity) and told of new ones; it returns a counted image or NULL. On
 * error everything it opened is closed. Blocking. */
struct chain_share {
	struct image *(*get)(void *ctx, const struct backing *);
	void (*put)(void *ctx, struct image *); /* gives a counted image back */
	void (*added)(void *ctx, struct image *);
	void *ctx;
};
int chain_open_parents(struct image *leaf, const struct backing_opener *, const struct chain_share *,
		       struct image **img, unsigned *n, struct err *);

/* Opens one image by path with format_find. flags: BACKING_*. */
int image_open_path(const struct backing_opener *, const char *path, unsigned flags, const char *format,
		    struct image **, struct err *);

/* ---- sync.c: the synchronous executor of the control path and of offline tools ---- */

/* Runs a job to its end through the backing's calls. Blocking. */
int image_run_job(struct image *, enum job_kind, struct err *);
/* Reads and writes guest bytes of a chain; len any multiple of 512. For WRITE_ZERO and WRITE_TRIM buf is
 * NULL. Not durable before JOB_COMMIT. */
int chain_read(const struct chain *, uint64_t off_bytes, void *buf, uint64_t len_bytes, struct err *);
int chain_write(const struct chain *, enum write_op, uint64_t off_bytes, const void *buf, uint64_t len_bytes,
		struct err *);

#endif
