/*
 * Repair of a dynamic or differencing VHD: plan, then write.
 *
 * What is put right is only what can be derived: one footer from the other, the batmap from BAT and bitmaps.
 * BAT entries that point where no block can be are never guessed at; they are freed on the operator's word,
 * and what the disk loses is listed.
 *
 * Order, so that a power cut between any two writes leaves an image no worse than before (each step is
 * flushed before the next):
 *   1. the footer copy at 0: without it nothing is found;
 *   2. the batmap's header with a checksum that does not fit: from here the map is not believed, half-written
 * as it may be;
 *   3. the map; 4. its header with the right checksum and a raised open generation, so that records of an
 * in-flight journal that were made before the repair are refused after it;
 *   5. BAT sectors with bad entries freed: after the map, so that no freed block is ever called full;
 *   6. the trailing footer, at the end of the file if nobody's data is there, else behind it.
 * Every write is a whole number of sectors, of which each is old or new after a power cut.
 */
#include "blkd/vhd_check.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/image.h"
#include "formats/vhd/vhd_scan.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void note(struct repair_plan *plan, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int add_write(struct repair_plan *plan, uint64_t off, const void *data, uint32_t len,
		     bool flush_before, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 7, 8)));

static void note(struct repair_plan *plan, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	note_add(plan->notes, sizeof(plan->notes), fmt, ap);
	va_end(ap);
}

static int add_write(struct repair_plan *plan, uint64_t off, const void *data, uint32_t len,
		     bool flush_before, struct err *e, const char *fmt, ...)
{
	struct repair_write *w = reallocarray(plan->writes, plan->n_writes + 1, sizeof(*w));
	va_list ap;

	if (!w)
		return err_set(e, -ENOMEM, "no memory for the plan");
	plan->writes = w;
	w += plan->n_writes;
	*w = (struct repair_write){
	    .off_bytes = off, .len_bytes = len, .flush_before = flush_before, .data = malloc(len)};
	if (!w->data)
		return err_set(e, -ENOMEM, "no memory for the plan");
	memcpy(w->data, data, len);
	va_start(ap, fmt);
	vsnprintf(w->why, sizeof(w->why), fmt, ap);
	va_end(ap);
	plan->n_writes++;
	return 0;
}

/* ---- 1: the footer copy ---- */

static int plan_copy(const struct vhd_scan *s, struct repair_plan *plan, struct err *e)
{
	if (!s->by_tail)
		return 0;
	if (s->tail_short)
		note(plan, "the trailing footer has 511 bytes; the copy gets a zero as its last one");
	return add_write(plan, 0, s->tail_raw, VHD_FOOTER_BYTES, false, e,
			 "the footer copy at offset 0, from the trailing footer (type %" PRIu32
			 ", and the header agrees)",
			 s->tail.type);
}

/* ---- 2 to 4: the batmap ---- */

static bool bitmap_all_ones(const unsigned char *bits, uint32_t block_bytes)
{
	uint32_t n = block_bytes / SECTOR_BYTES / 8;

	for (uint32_t i = 0; i < n; i++)
		if (bits[i] != 0xff)
			return false;
	return true;
}

/* Which blocks are full, by their bitmaps, read in the file's order. */
static int build_map(const struct vhd_scan *s, const struct repair_opts *opts, uint8_t *map,
		     uint32_t map_bytes, struct err *e)
{
	unsigned char bits[VHD_BLOCK_BYTES / SECTOR_BYTES / 8];

	memset(map, 0, map_bytes);
	for (uint32_t i = 0; i < s->n_order; i++) {
		uint32_t entry = (uint32_t)s->order[i];
		uint64_t off = scan_block_off(s, entry);
		int ret;

		if (opts->progress)
			opts->progress(opts->progress_ctx, i, s->n_order);
		if (scan_bad(s, entry) || entry >= s->n_blocks || entry / 8 >= map_bytes)
			continue;
		ret = s->file->ops->read(s->file, off, bits, sizeof(bits));
		if (ret)
			return err_set(e, ret,
				       "%s: cannot read the bitmap of block %" PRIu32 " at offset %" PRIu64
				       ": %s",
				       s->file->path, entry, off, strerror(-ret));
		if (bitmap_all_ones(bits, s->block_bytes))
			vhd_batmap_set(map, entry);
	}
	return 0;
}

/* Does the map call a block full that is not, or that is about to be freed? Bits that are missing are no
 * fault. */
static bool map_lies(const struct vhd_scan *s, const uint8_t *right, uint32_t right_bytes)
{
	for (uint32_t i = 0; i < s->n_blocks; i++)
		if (i / 8 < s->map_bytes && vhd_batmap_test(s->map, i) &&
		    !(i / 8 < right_bytes && vhd_batmap_test(right, i)))
			return true;
	return false;
}

/* A fresh header keeps the generation, if the old one's place for it can be made out, and raises it. */
static void fresh_header(const struct vhd_scan *s, uint64_t map_off, uint32_t map_bytes, uint32_t checksum,
			 unsigned char raw[512])
{
	const struct vhd_batmap_disk *old = (const void *)s->batmap_raw;
	struct vhd_batmap_info info = {.map_off = map_off,
				       .map_sectors = map_bytes / SECTOR_BYTES,
				       .version = VHD_BATMAP_VERSION_1_2,
				       .checksum = checksum,
				       .has_generation = true};

	if (!memcmp(old->generation_cookie, "blkdgen1", 8))
		info.generation = be64_load(old->generation);
	info.generation++;
	vhd_batmap_build(&info, raw);
}

static int write_map(const struct vhd_scan *s, const uint8_t *map, uint64_t map_off, uint32_t map_bytes,
		     struct repair_plan *plan, struct err *e)
{
	uint32_t sum =
	    vhd_batmap_checksum(map, vhd_batmap_covered_bytes(s->footer->curr_size), VHD_BATMAP_VERSION_1_2);
	unsigned char raw[VHD_BATMAP_HEADER_BYTES];
	int ret = 0;

	fresh_header(s, map_off, map_bytes, sum, raw);
	if (s->batmap_ok) {
		unsigned char off[VHD_BATMAP_HEADER_BYTES];

		memcpy(off, s->batmap_raw, sizeof(off));
		memset(off, 0, 8);
		ret = add_write(plan, s->batmap_hdr_off, off, sizeof(off), true, e,
				"the batmap header without its cookie: out of use for now");
	}
	if (!ret)
		ret = add_write(plan, map_off, map, map_bytes, true, e,
				"the batmap, rebuilt from the BAT and the blocks' bitmaps");
	if (!ret)
		ret = add_write(plan, s->batmap_hdr_off, raw, sizeof(raw), true, e,
				"the batmap header, with its checksum");
	return ret;
}

static bool any_bad(const struct vhd_scan *s)
{
	return s->n_order && !bytes_are_zero(s->bad, s->n_entries / 8 + 1);
}

/* Where a map of map_bytes may lie: where the old one is if that is long enough, else right behind its
 * header. */
static bool map_room(const struct vhd_scan *s, bool drop, uint64_t *map_off, uint32_t *map_bytes)
{
	uint64_t end;

	*map_off = s->batmap_hdr_ok ? s->batmap.map_off : s->batmap_hdr_off + VHD_BATMAP_HEADER_BYTES;
	*map_bytes = s->batmap_hdr_ok ? s->map_bytes : scan_map_need(s);
	if (s->batmap_hdr_ok)
		return true;
	end = *map_off + *map_bytes;
	if (end > s->limit && (s->limit != s->file_bytes || s->file->traits.fixed_size))
		return false;
	return scan_block_at(s, s->batmap_hdr_off, end, drop) == SCAN_BAT_FREE &&
	       !scan_in_region(s, s->batmap_hdr_off, end);
}

static int plan_batmap(const struct vhd_scan *s, const struct repair_opts *opts, struct repair_plan *plan,
		       struct err *e)
{
	bool drop = opts->drop_bad_blocks;
	uint32_t map_bytes;
	uint64_t map_off;
	uint8_t *map;
	int ret;

	if (!s->wants_batmap)
		return 0;
	if (!map_room(s, drop, &map_off, &map_bytes)) {
		note(plan,
		     "the batmap at offset %" PRIu64
		     " cannot be rebuilt, other data lies in its place: blkimg convert makes a clean copy",
		     s->batmap_hdr_off);
		return 0;
	}
	map = calloc(1, (size_t)map_bytes + 1);
	if (!map)
		return err_set(e, -ENOMEM, "%s: no memory for its batmap", s->file->path);
	ret = build_map(s, opts, map, map_bytes, e);
	if (!ret && (!s->batmap_ok || map_lies(s, map, map_bytes) || (drop && any_bad(s))))
		ret = write_map(s, map, map_off, map_bytes, plan, e);
	free(map);
	return ret;
}

/* ---- 5: bad BAT entries ---- */

static int list_lost(const struct vhd_scan *s, struct repair_plan *plan, struct err *e)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->n_entries; i++)
		n += scan_bad(s, i);
	plan->lost = calloc((size_t)n + 1, sizeof(*plan->lost));
	if (!plan->lost)
		return err_set(e, -ENOMEM, "%s: no memory for the list of bad blocks", s->file->path);
	for (uint32_t i = 0; i < s->n_entries; i++) {
		uint64_t guest = (uint64_t)i * s->block_bytes;

		if (scan_bad(s, i))
			plan->lost[plan->n_lost++] = (struct repair_lost){
			    .guest_off = guest,
			    .len_bytes =
				i < s->n_blocks ? u64_min(s->block_bytes, s->footer->curr_size - guest) : 0,
			    .block = i,
			};
	}
	return 0;
}

static int plan_bat(const struct vhd_scan *s, struct repair_plan *plan, struct err *e)
{
	enum { PER_SECTOR = SECTOR_BYTES / 4 };
	bool first = true;
	int ret = 0;

	for (uint32_t base = 0; base < s->n_entries && !ret; base += PER_SECTOR) {
		unsigned char raw[SECTOR_BYTES];
		uint64_t off = s->header.table_offset + 4ull * base;
		uint32_t freed = 0;

		if (bytes_are_zero(s->bad + base / 8, (u64_min(PER_SECTOR, s->n_entries - base) + 7) / 8))
			continue;
		ret = s->file->ops->read(s->file, off, raw,
					 sizeof(raw)); /* for the padding behind the last entry */
		if (ret)
			return err_set(e, ret, "%s: cannot read the BAT at offset %" PRIu64 ": %s",
				       s->file->path, off, strerror(-ret));
		for (uint32_t i = base; i < s->n_entries && i < base + PER_SECTOR; i++) {
			if (!scan_bad(s, i))
				continue;
			be32_store(raw + (i - base) * 4, SCAN_BAT_FREE);
			freed++;
		}
		ret = add_write(plan, off, raw, sizeof(raw), first, e,
				"the BAT sector of blocks %" PRIu32 " to %" PRIu32 ", with %" PRIu32
				" bad entries freed",
				base, (uint32_t)u64_min(base + PER_SECTOR, s->n_entries) - 1, freed);
		first = false;
	}
	return ret;
}

/* ---- 6: the trailing footer ---- */

static uint64_t meta_end(const struct vhd_scan *s)
{
	uint64_t end = 0;

	for (unsigned i = 0; i < s->n_regions; i++)
		end = u64_max(end, s->regions[i].end);
	for (unsigned i = 0; i < s->n_regions; i++) /* a batmap that is about to be rebuilt needs its room */
		if (s->wants_batmap)
			end = u64_max(end, s->batmap_hdr_off + VHD_BATMAP_HEADER_BYTES + scan_map_need(s));
	return end;
}

/* With bad entries still in the BAT nothing may be put behind the end that one of them claims. */
static int plan_tail(const struct vhd_scan *s, bool drop, struct repair_plan *plan, struct err *e)
{
	uint32_t len = s->tail_short ? VHD_SHORT_FOOTER_BYTES : VHD_FOOTER_BYTES;
	bool placed = s->tail_short || s->file_bytes % SECTOR_BYTES == 0;
	uint64_t data_end = u64_max(s->blocks_end, meta_end(s)), off;

	if (s->by_tail || (placed && !memcmp(s->copy_raw, s->tail_raw, len)))
		return 0;
	if (any_bad(s) && !drop) {
		note(plan, "the trailing footer stays as it is until the bad BAT entries are gone "
			   "(--drop-bad-blocks)");
		return 0;
	}
	if (placed && !s->tail_short && s->tail_off >= data_end)
		off = s->tail_off;
	else
		off = round_up_u64(u64_max(s->file_bytes, data_end), SECTOR_BYTES);
	if (off + VHD_FOOTER_BYTES > s->file_bytes && s->file->traits.fixed_size) {
		note(plan,
		     "no room for the trailing footer: its place at offset %" PRIu64
		     " holds data and the volume cannot grow; extend the volume",
		     s->tail_off);
		return 0;
	}
	return add_write(plan, off, s->copy_raw, VHD_FOOTER_BYTES, true, e,
			 "the trailing footer, from the copy at offset 0%s",
			 off >= s->file_bytes ? "; the file grows" : "");
}

/* ---- plan and apply ---- */

static int refuse(const struct vhd_scan *s, struct err *e)
{
	struct err why = ERR_INIT;
	struct vhd_footer_info f;
	struct vhd_header_info h;

	if (s->kind == SCAN_AMBIGUOUS)
		return err_set(e, -EINVAL,
			       "%s: its two footers are valid and differ in type: say which it is with "
			       "--format vhd or vhd-fixed",
			       s->file->path);
	if (s->kind == SCAN_FIXED)
		return err_set(e, -EINVAL, "%s: a fixed VHD: there is nothing to repair it from",
			       s->file->path);
	if (!s->footer) {
		vhd_footer_parse(s->copy_raw, &f, &why);
		return err_set(e, -EINVAL,
			       "%s: neither the footer at offset 0 nor the one at the end can be used (at 0: "
			       "%s): restore it from a backup",
			       s->file->path, why.text);
	}
	if (!s->header_read)
		return err_set(e, -EINVAL,
			       "%s: the header should be at offset %" PRIu64
			       ", beyond the end of the file: restore it from a backup",
			       s->file->path, s->footer->data_offset);
	vhd_header_parse(s->header_raw, s->footer, &h, &why);
	return err_set(e, -EINVAL, "%s: its header cannot be used (%s): restore it from a backup",
		       s->file->path, why.text[0] ? why.text : "its BAT lies beyond the end of the file");
}

/* A footer at the end may be forged: it is believed only when it agrees with a header that says itself whose
 * kind it is. */
static bool tail_agrees(const struct vhd_scan *s)
{
	bool parent = !bytes_are_zero(s->header.parent_uuid, 16) ||
		      !bytes_are_zero(s->header.parent_name, VHD_PARENT_NAME_BYTES);

	return parent == (s->footer->type == VHD_DIFFERENCING);
}

static int make_plan(const struct vhd_scan *s, const struct repair_opts *opts, struct repair_plan *plan,
		     struct err *e)
{
	bool drop = opts->drop_bad_blocks;
	int ret;

	if (s->kind != SCAN_SPARSE || !s->footer || !s->header_ok || !s->bat)
		return refuse(s, e);
	if (s->by_tail && !tail_agrees(s))
		return err_set(
		    e, -EINVAL,
		    "%s: the footer copy at offset 0 is unusable and the one at the end says type %" PRIu32
		    ", which its header contradicts: restore it from a backup",
		    s->file->path, s->footer->type);
	for (unsigned i = 0; i < s->n_regions; i++)
		if (s->regions[i].end > s->limit)
			return err_set(e, -EINVAL,
				       "%s: %s lies over the trailing footer: restore it from a backup",
				       s->file->path, s->regions[i].name);
	ret = plan_copy(s, plan, e);
	if (!ret)
		ret = list_lost(s, plan, e);
	if (!ret)
		ret = plan_batmap(s, opts, plan, e);
	if (!ret && plan->n_lost && drop)
		ret = plan_bat(s, plan, e);
	if (!ret)
		ret = plan_tail(s, drop, plan, e);
	return ret;
}

int vhd_repair_plan(struct backing *file, const struct repair_opts *opts, struct repair_plan *plan,
		    struct err *e)
{
	struct vhd_scan s;
	int ret;

	*plan = (struct repair_plan){0};
	ret = vhd_scan(file, opts->format, &s, e);
	if (!ret)
		ret = make_plan(&s, opts, plan, e);
	vhd_scan_free(&s);
	return ret;
}

int vhd_repair_apply(struct backing *file, const struct repair_plan *plan, struct err *e)
{
	int ret = 0;

	for (unsigned i = 0; i < plan->n_writes && !ret; i++) {
		const struct repair_write *w = &plan->writes[i];
		uint64_t size = 0;

		if (w->flush_before)
			ret = file->ops->flush(file);
		if (!ret)
			ret = file->ops->size(file, &size);
		if (!ret && w->off_bytes + w->len_bytes > size && !file->traits.fixed_size)
			ret = file->ops->extend(file, w->off_bytes + w->len_bytes);
		if (!ret)
			ret = file->ops->write(file, w->off_bytes, w->data, w->len_bytes);
		if (ret)
			return err_set(e, ret,
				       "%s: cannot write %s at offset %" PRIu64 ": %s; run repair again",
				       file->path, w->why, w->off_bytes, strerror(-ret));
	}
	if (plan->n_writes)
		ret = file->ops->flush(file);
	return ret ? err_set(e, ret, "%s: cannot flush the repair: %s; run it again", file->path,
			     strerror(-ret))
		   : 0;
}

void vhd_repair_free(struct repair_plan *plan)
{
	for (unsigned i = 0; i < plan->n_writes; i++)
		free(plan->writes[i].data);
	free(plan->writes);
	free(plan->lost);
	*plan = (struct repair_plan){0};
}
