/* HOT PATH: no malloc, no log, no syscall, no lock. */
/*
 * Which data moves where: write_begin() and write_end() of a VHD leaf.
 *
 * A bit becomes live when the data behind it landed, never before, so a piece that failed leaves nothing. A
 * sector whose bit is not committed is written as if it were absent: its write joins the open epoch. Only
 * where all bits of a piece are committed does it depend on no epoch. The first piece on a free block takes a
 * slot and shows it in the live BAT at once; other pieces on that block find it there and share it; the slot
 * stays the block's even if all of them fail, as a block without bits.
 *
 * Discards. Present sectors become present zeros: punched, bits kept, so that no parent shows through. Only a
 * discard of a whole block with zeros below frees it, and only where nothing of the block is pending and no
 * batmap on disk calls it full: then the BAT entry is cleared in an epoch, and the slot comes back through
 * vhd_slot_freed(). The executor keeps overlapping requests apart, so no read mapped before is in flight over
 * a block that is being freed. Until the cleared entry is durable the block takes no new slot.
 *
 * Not done here: anything with metadata sectors (vhd_commit.c) or space (vhd_grow.c).
 */
#include "formats/vhd/vhd_write.h"

#include "blkd/log.h"

#include <errno.h>

/* The part of a request that lies in one block, in sectors. */
struct span {
	uint32_t block, first, n;
};

static int park(struct write_piece *piece, enum piece_park on, uint64_t key)
{
	piece->park = on;
	piece->park_key = key;
	return -EINPROGRESS;
}

/* Where the last commit failed, waiting for the next one might be for ever: the request fails, an idle commit
 * tries again. */
static int park_on_epoch(struct vhd *v, struct write_piece *piece)
{
	struct vhd_write *w = v->w;

	if (w->commit.last_res)
		return w->commit.last_res;
	w->commit.asked = true;
	vhd_wants_update(v);
	return park(piece, PARK_EPOCH, 0);
}

static bool may_hold(const struct vhd_write *w, const struct vhd_bitmap *b)
{
	return (b && b->held) || w->held < w->max_held;
}

static int answer(struct write_piece *piece, enum piece_act act, uint32_t sectors, uint64_t file_off)
{
	piece->act = act;
	piece->len_bytes = sectors * SECTOR_BYTES;
	piece->file_off = file_off;
	return 0;
}

static int nothing(struct write_piece *piece, uint32_t sectors)
{
	return answer(piece, PIECE_NOTHING, sectors, 0);
}

static uint64_t file_off(uint32_t sector, const struct span *s)
{
	return vhd_data_off(sector) + (uint64_t)s->first * SECTOR_BYTES;
}

static enum piece_act act_of(enum write_op op)
{
	return op == WRITE_DATA ? PIECE_WRITE : PIECE_ZERO;
}

/* The piece belongs to the open epoch, which waits for it. */
static void depend(struct vhd *v, struct vhd_bitmap *b, const struct span *s, uint32_t rec_sector,
		   struct write_piece *piece)
{
	struct vhd_write *w = v->w;

	b->block = s->block;
	b->pieces++;
	vhd_epoch_of(w, w->open)->pieces++;
	piece->epoch = w->open;
	piece->rec = (struct meta_record){
	    .block = s->block,
	    .sector = rec_sector,
	    .first = (uint16_t)(rec_sector == META_RECORD_FREED ? 0 : s->first),
	    .count = (uint16_t)(rec_sector == META_RECORD_FREED ? 0 : s->n),
	    .epoch_low = (uint32_t)w->open,
	};
	vhd_bitmap_settle(v, b);
}

static int begin_absent(struct vhd *v, enum write_op op, unsigned flags, const struct span *s,
			struct write_piece *piece)
{
	struct vhd_write *w = v->w;
	struct vhd_bitmap *b;
	uint32_t sector;

	if (op == WRITE_TRIM)
		return nothing(piece, s->n);
	if (vhd_unsettled(w, s->block) || !may_hold(w, NULL))
		return park_on_epoch(v, piece);
	if (op == WRITE_ZERO && flags & WRITE_BELOW_ZERO)
		return nothing(piece, s->n);
	if (!vhd_slot_take(v, &sector))
		return park(piece, PARK_GROW, 0);
	b = vhd_bitmap_find(w, sector); /* brought by a late read of the slot's former owner */
	if (b)
		vhd_bitmap_drop(w, b);
	b = vhd_bitmap_new(w, sector);
	CHECK(b); /* fewer are held than exist */
	v->bat[s->block] = sector;
	b->bat = BAT_SET;
	b->bat_parity = w->open & 1;
	vhd_bitmap_join(w, b, w->open & 1);
	depend(v, b, s, sector, piece);
	return answer(piece, act_of(op), s->n, file_off(sector, s));
}

/* All of a block may be given back. Its bits need not be known for that. */
static int begin_free(struct vhd *v, struct vhd_bitmap *b, const struct span *s, struct write_piece *piece)
{
	uint32_t sector = v->bat[s->block];
	uint64_t at = vhd_data_off(sector);
	bool aligned = !((at | (uint64_t)s->n * SECTOR_BYTES) & (VHD_PAGE_BYTES - 1));

	if (!b) {
		b = vhd_bitmap_new(v->w, sector);
		CHECK(b); /* fewer are held than exist */
		b->known = false;
	}
	b->freeing = true;
	depend(v, b, s, META_RECORD_FREED, piece);
	return answer(piece, aligned && v->img.file->traits.can_punch ? PIECE_PUNCH : PIECE_NOTHING, s->n,
		      at);
}

static bool may_free(const struct vhd *v, const struct vhd_bitmap *b, unsigned flags, const struct span *s)
{
	return flags & WRITE_BELOW_ZERO && !s->first && s->n == vhd_block_sectors(v, s->block) &&
	       !vhd_batmap_disk_test(v, s->block) && !(b && b->held) && may_hold(v->w, b);
}

/* All of the span is present. A head or tail that shares a page of the file with something else is left
 * alone. */
static int begin_trim(const struct vhd *v, const struct span *s, struct write_piece *piece)
{
	uint64_t start = file_off(v->bat[s->block], s);
	uint32_t head = (uint32_t)(round_up_u64(start, VHD_PAGE_BYTES) - start) / SECTOR_BYTES;
	uint32_t pages = s->n & ~(VHD_PAGE_BYTES / SECTOR_BYTES - 1);

	if (!v->img.file->traits.can_punch)
		return nothing(piece, s->n);
	if (head)
		return nothing(piece, head < s->n ? head : s->n);
	return pages ? answer(piece, PIECE_PUNCH, pages, start) : nothing(piece, s->n);
}

/* b is NULL for a block that is full and has nothing pending. */
static int begin_present(struct vhd *v, enum write_op op, unsigned flags, struct vhd_bitmap *b,
			 struct span *s, struct write_piece *piece)
{
	uint32_t sector = v->bat[s->block];
	bool set = true;

	if (b && (op == WRITE_TRIM || (op == WRITE_ZERO && flags & WRITE_BELOW_ZERO))) {
		s->n = vhd_bits_run(b->live, s->first, s->n, &set);
		if (!set)
			return nothing(piece, s->n);
	}
	if (op == WRITE_TRIM)
		return begin_trim(v, s, piece);
	if (b && !vhd_bits_all(b->committed, s->first, s->n)) {
		if (!may_hold(v->w, b))
			return park_on_epoch(v, piece);
		depend(v, b, s, sector, piece);
	}
	return answer(piece, act_of(op), s->n, file_off(sector, s));
}

int vhd_write_begin(struct image *img, enum write_op op, unsigned flags, uint64_t off_bytes,
		    uint64_t len_bytes, struct write_piece *piece)
{
	struct vhd *v = vhd_of(img);
	struct vhd_bitmap *b;
	struct span s;
	uint64_t end;

	if (!img->writing || v->w->sealed)
		return -EROFS;
	if (img->poisoned)
		return -EIO;
	if (!len_bytes || (off_bytes | len_bytes) % SECTOR_BYTES || off_bytes >= img->size_bytes ||
	    len_bytes > img->size_bytes - off_bytes)
		return -EINVAL;
	s.block = (uint32_t)(off_bytes >> v->block_shift);
	s.first = (uint32_t)(off_bytes & (v->block_bytes - 1)) / SECTOR_BYTES;
	end = u64_min(off_bytes + len_bytes, ((uint64_t)s.block + 1) << v->block_shift);
	s.n = (uint32_t)((end - off_bytes) / SECTOR_BYTES);
	*piece = (struct write_piece){.off_bytes = off_bytes};
	if (v->bat[s.block] == VHD_BAT_FREE)
		return begin_absent(v, op, flags, &s, piece);
	b = vhd_bitmap_find(v->w, v->bat[s.block]);
	if (b && b->freeing)
		return park_on_epoch(v, piece);
	if (op == WRITE_TRIM && may_free(v, b, flags, &s))
		return begin_free(v, b, &s, piece);
	if (!b && !vhd_full_test(v, s.block))
		return park(piece, PARK_META, (uint64_t)v->bat[s.block] * SECTOR_BYTES);
	if (b && b->block == VHD_NO_BLOCK) {
		b->block = s.block;
		vhd_full_update(v, b);
	}
	return begin_present(v, op, flags, b, &s, piece);
}

/* The discard of a whole block ended: the live entry goes, the slot stays the block's until that is durable.
 */
static void end_free(struct vhd *v, struct vhd_bitmap *b, unsigned parity, int res)
{
	struct vhd_write *w = v->w;

	b->freeing = false;
	if (!res) {
		v->bat[b->block] = VHD_BAT_FREE;
		w->space.n_unallocated++;
		vhd_full_set(v, b->block, false);
		vhd_unsettled_set(w, b->block, true);
		b->bat = BAT_CLEARED;
		b->bat_parity = parity;
		vhd_bitmap_join(w, b, parity);
		vhd_bitmap_settle(v, b);
		return;
	}
	vhd_bitmap_settle(v, b);
	if (!b->known)
		vhd_bitmap_drop(w, b);
}

void vhd_write_end(struct image *img, const struct write_piece *piece, int res)
{
	struct vhd *v = vhd_of(img);
	struct vhd_write *w = v->w;
	const struct meta_record *rec = &piece->rec;
	struct vhd_epoch *epoch;
	struct vhd_bitmap *b;
	unsigned parity = piece->epoch & 1;

	if (!piece->epoch)
		return;
	epoch = &w->epoch[parity];
	b = vhd_bitmap_find(w, v->bat[rec->block]);
	CHECK(epoch->number == piece->epoch && epoch->pieces && b && b->pieces);
	epoch->pieces--;
	b->pieces--;
	if (b->freeing) {
		end_free(v, b, parity, res);
		return;
	}
	if (!res) {
		vhd_bits_set(b->live, rec->first, rec->count);
		vhd_bits_set(b->landed[parity], rec->first, rec->count);
		vhd_bitmap_join(w, b, parity);
		vhd_full_update(v, b);
	}
	vhd_bitmap_settle(v, b);
}

uint64_t vhd_epoch_open(const struct image *img)
{
	const struct vhd *v = vhd_of_const(img);

	return v->w ? v->w->open : 1;
}

uint64_t vhd_epoch_durable(const struct image *img)
{
	const struct vhd *v = vhd_of_const(img);

	return v->w ? v->w->durable : 0;
}
