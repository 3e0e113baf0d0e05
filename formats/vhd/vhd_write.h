/*
 * What a VHD leaf has while it is written, private to formats/vhd/'s write half.
 *
 * Three views of every metadata sector:
 * - live: what reads see; changed when a write's data landed;
 * - commit: what the running commit writes, changes of its epoch and of those before, nothing later;
 * - committed: what a finished commit wrote, or what the medium held at open.
 *
 * Two epochs exist at most: the open one, which writes join, and the one that a commit has closed. They live
 * in epoch[number & 1].
 *
 * A bitmap's live view is committed | landed[0] | landed[1], the commit view of an epoch committed |
 * landed[its parity]. Of the BAT, v->bat is live (an allocation shows at once, its bits do not) and bat_raw
 * is the commit view; a bitmap object whose `bat` is not BAT_SAME carries the one pending change of its
 * block.
 *
 * A commit succeeds or fails as a whole. When it fails, its changes join the open epoch: nothing that a
 * failed write may or may not have put on the medium is ever taken back, so the space it names stays with its
 * block (its quarantine) until the same BAT sector was written successfully.
 *
 * Files: vhd_bitmaps.c (the cache of bitmaps), vhd_write.c (data), vhd_job.c (dispatch), vhd_commit.c,
 * vhd_grow.c (space), vhd_close.c, vhd_prepare.c (memory), vhd_space.c, vhd_begin.c (open for writing),
 * vhd_replay.c. All memory is taken by vhd_write_prepare() and vhd_space_find(): nothing else allocates.
 */
#ifndef FORMATS_VHD_VHD_WRITE_H
#define FORMATS_VHD_VHD_WRITE_H

#include "blkd/bytes.h"
#include "blkd/list.h"
#include "formats/vhd/bits.h"
#include "formats/vhd/vhd.h"

#define VHD_BITMAPS_DEFAULT   4096u /* 8 GiB of 2 MiB blocks; untouched ones cost no memory */
#define VHD_BITMAPS_READ_ONLY 512u
#define VHD_SLOTS_MAX	      64u   /* of one grow */
#define VHD_READY_MAX	      256u  /* power of two */
#define VHD_PAGE_BYTES	      4096u /* what data is aligned to */
#define VHD_NO_BLOCK	      0xffffffffu

enum vhd_bat_change { BAT_SAME, BAT_SET, BAT_CLEARED };

/* One block's bitmap. Evictable unless held: a piece in flight, a change in some epoch, or being freed. */
struct vhd_bitmap {
	struct list lru;	 /* w->clean, w->spare, or alone while held */
	struct list in_epoch[2]; /* w->epoch[parity].changed */
	struct vhd_bitmap *hash_next;
	uint32_t
	    sector; /* key: file sector of the bitmap; slots are never shared, so it names the block too */
	uint32_t block;	 /* VHD_NO_BLOCK until the write path has met it */
	unsigned pieces; /* in flight that have an epoch */
	enum vhd_bat_change bat;
	unsigned bat_parity; /* the epoch of the change */
	bool held;
	bool known;   /* the bits are; false only for a block that is freed without having been read */
	bool freeing; /* its discard is in flight */
	unsigned char live[VHD_BITS_BYTES];
	unsigned char committed[VHD_BITS_BYTES];
	unsigned char landed[2][VHD_BITS_BYTES]; /* in the epoch of that parity, not committed */
};

struct vhd_epoch {
	uint64_t number;
	unsigned pieces;     /* data in flight */
	struct list changed; /* vhd_bitmap.in_epoch[parity] */
};

/* A range of the file that no BAT entry names, in bytes. Its bitmap sectors are to be zeroed before use. */
struct vhd_gap {
	uint64_t start, end;
};

struct vhd_slot {
	uint32_t sector; /* of the bitmap */
	bool zero;	 /* must be zeroed: not known to be zero on the medium */
	bool lost;	 /* zeroing failed: not offered in this opening */
};

struct vhd_grow {
	bool running;
	uint64_t old_bytes, new_bytes; /* of the file; equal: no extension */
	unsigned n;
	struct vhd_slot slot[VHD_SLOTS_MAX];
};

struct vhd_space {
	uint32_t ready[VHD_READY_MAX]; /* ring */
	unsigned ready_head, n_ready;
	uint32_t *freed; /* slots whose cleared BAT entry is durable; room for n_blocks */
	uint32_t n_freed;
	struct vhd_gap
	    *gaps; /* ascending; the last one is the tail, up to the footer. NULL before begin_writing */
	uint32_t n_gaps, gap_i;
	uint32_t n_unallocated; /* blocks without a slot, live */
	uint64_t written_end;	/* beyond file_bytes, a failed grow may have written up to here */
	bool ragged;		/* a failed grow may have left the file longer than file_bytes */
	unsigned hurry;		/* chunks are larger by this power of two: slots ran out before */
	struct vhd_grow grow;
};

struct vhd_commit {
	bool running;
	bool asked;	   /* a write waits for a commit that has not begun */
	bool changes;	   /* the epoch has metadata to write */
	struct list *next; /* in epoch.changed: next bitmap to write */
	uint32_t bat_next; /* BAT sector to look at */
	int last_res;	   /* of the last commit */
};

struct vhd_closing {
	bool write_map;
	bool cut;
	uint64_t new_bytes;			       /* of the file, if cut */
	unsigned char header[VHD_BATMAP_HEADER_BYTES]; /* the batmap's, as on disk; read by begin_writing */
	uint8_t *map;
};

struct vhd_write {
	struct vhd_bitmap *pool;
	unsigned n_pool, n_taken; /* pool[n_taken..] were never used */
	struct vhd_bitmap **bucket;
	unsigned bucket_mask;
	struct list clean;	 /* least recently used first */
	struct list spare;	 /* used before, now empty */
	unsigned held, max_held; /* the bound on dirty sectors */

	struct vhd_epoch epoch[2];
	uint64_t open, durable;
	unsigned char *bat_raw; /* commit view of the sectors of blocks 0..n_blocks, as on disk */
	uint32_t n_bat_sectors;
	uint64_t *bat_todo; /* bit a sector: the running commit has to write it */
	uint8_t *unsettled; /* bit a block: its entry was cleared, and that is not durable yet */
	bool sealed;

	struct vhd_commit commit;
	struct vhd_space space;
	struct vhd_closing closing;
};

static inline struct vhd_epoch *vhd_epoch_of(struct vhd_write *w, uint64_t number)
{
	return &w->epoch[number & 1];
}

static inline uint64_t vhd_data_off(uint32_t sector)
{
	return ((uint64_t)sector + 1) * SECTOR_BYTES;
}

/* Sectors of the block that lie within the disk. */
static inline uint32_t vhd_block_sectors(const struct vhd *v, uint32_t block)
{
	uint64_t start = (uint64_t)block << v->block_shift;

	return (uint32_t)(u64_min(v->block_bytes, v->img.size_bytes - start) / SECTOR_BYTES);
}

static inline void vhd_full_set(struct vhd *v, uint32_t block, bool full)
{
	uint8_t bit = (uint8_t)(1u << (block & 7));

	v->full[block >> 3] = (uint8_t)(full ? v->full[block >> 3] | bit : v->full[block >> 3] & ~bit);
}

static inline bool vhd_batmap_disk_test(const struct vhd *v, uint32_t block)
{
	return v->batmap_valid && block / 8 < v->batmap_bytes && vhd_batmap_test(v->batmap_disk, block);
}

static inline bool vhd_unsettled(const struct vhd_write *w, uint32_t block)
{
	return w->unsettled[block >> 3] >> (block & 7) & 1;
}

static inline void vhd_unsettled_set(struct vhd_write *w, uint32_t block, bool set)
{
	uint8_t bit = (uint8_t)(1u << (block & 7));

	w->unsettled[block >> 3] =
	    (uint8_t)(set ? w->unsettled[block >> 3] | bit : w->unsettled[block >> 3] & ~bit);
}

/* ---- vhd_prepare.c ---- */

/* The cache of bitmaps alone: v->w, with nothing that writing needs. -ENOMEM. */
int vhd_cache_make(struct vhd *, unsigned n_bitmaps);
/* Has v->w what writing needs? */
static inline bool vhd_prepared(const struct vhd *v)
{
	return v->w && v->w->bat_raw;
}

/* Makes v->w if there is none: room for n_bitmaps (0: the default), the BAT read once more and compared with
 * what open saw. Control path, blocking. Refuses hidden images and backings that cannot be written (-EROFS).
 */
int vhd_write_prepare(struct vhd *, unsigned n_bitmaps, struct err *);

/* ---- vhd_bitmaps.c ---- */

/* NULL: not in memory. */
struct vhd_bitmap *vhd_bitmap_find(struct vhd_write *, uint32_t sector);
/* A new one, empty, clean and not held; evicts. NULL: all are held. The sector is not in memory yet. */
struct vhd_bitmap *vhd_bitmap_new(struct vhd_write *, uint32_t sector);
/* Looks whether it is held now, and keeps lists, count and wants in step. After every change of pieces,
 * freeing or in_epoch. */
void vhd_bitmap_settle(struct vhd *, struct vhd_bitmap *);
/* Forgets it. Not held. */
void vhd_bitmap_drop(struct vhd_write *, struct vhd_bitmap *);
static inline void vhd_bitmap_join(struct vhd_write *w, struct vhd_bitmap *b, unsigned parity)
{
	if (list_empty(&b->in_epoch[parity]))
		list_add_tail(&w->epoch[parity].changed, &b->in_epoch[parity]);
}
void vhd_wants_update(struct vhd *);
/* Sets v->full if the live bitmap says so. b->block is known. */
void vhd_full_update(struct vhd *, const struct vhd_bitmap *);

/* ---- vhd_commit.c ---- */

int vhd_commit_begin(struct vhd *, struct job *);
int vhd_commit_next(struct vhd *, struct job *, struct meta_act *, unsigned max);
/* Puts the entry of the block into the commit view. */
void vhd_bat_raw_set(struct vhd_write *, uint32_t block, uint32_t sector);

/* ---- vhd_grow.c ---- */

/* Takes a ready slot for a block that had none. False: none. */
bool vhd_slot_take(struct vhd *, uint32_t *sector);
/* The slot's cleared BAT entry is durable. */
void vhd_slot_freed(struct vhd *, uint32_t sector);
/* Are ready slots fewer than one chunk, and more of use? */
bool vhd_slots_low(const struct vhd *);
int vhd_grow_begin(struct vhd *, struct job *);
int vhd_grow_next(struct vhd *, struct job *, struct meta_act *, unsigned max);
void vhd_grow_done(struct vhd *, struct job *, const struct meta_act *, int res);

/* ---- vhd_space.c ---- */

/* First byte after metadata and all blocks. */
uint64_t vhd_used_end(const struct vhd *);
/* Finds all free ranges between metadata, blocks and the footer at file_bytes - 512. Control path; allocates.
 */
int vhd_space_find(struct vhd *, struct err *);

/* ---- vhd_close.c ---- */

int vhd_closing_begin(struct vhd *, struct job *);
int vhd_closing_next(struct vhd *, struct job *, struct meta_act *, unsigned max);
void vhd_closing_done(struct vhd *, const struct job *, int res);

/* ---- vhd_job.c ---- */

/* Hands one act out. */
static inline unsigned vhd_act(struct job *job, struct meta_act *act, enum act_kind kind, uint64_t off_bytes,
			       uint64_t len_bytes, uint32_t tag)
{
	act->kind = kind;
	act->off_bytes = off_bytes;
	act->len_bytes = len_bytes;
	act->tag = tag;
	job->running++;
	return 1;
}

static inline void vhd_phase(struct job *job, unsigned phase)
{
	job->phase = phase;
	job->cursor = 0;
}

#endif
