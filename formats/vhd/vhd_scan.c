/*
 * Loading a VHD file for the checker and the repairer (vhd_scan.h). Each step depends on the one before:
 * footers say where the header is, the header where the BAT is, the BAT where blocks are and where the batmap
 * must be. A step that fails leaves its flag false and ends the walk; it is the checker that says why.
 *
 * Which footer rules: in a dynamic or differencing image the copy at offset 0, always when it is valid; the
 * trailing one only when the copy is unusable, because the end of an unclosed image may be guest data. In a
 * fixed disk there is only the trailing one; its sector 0 is the guest's.
 */
#include "formats/vhd/vhd_scan.h"

#include "blkd/bytes.h"
#include "blkd/err.h"

#include <errno.h>
#include <stdlib.h>

static int read_at(struct vhd_scan *s, uint64_t off, void *buf, size_t len, const char *name, struct err *e)
{
	int ret = s->file->ops->read(s->file, off, buf, len);

	if (ret)
		err_set(e, ret, "%s: cannot read %s at offset %llu: %s", s->file->path, name,
			(unsigned long long)off, strerror(-ret));
	return ret;
}

static void no_memory(struct vhd_scan *s, const char *name, uint64_t bytes, struct err *e)
{
	err_set(e, -ENOMEM, "%s: no memory for its %s (%llu bytes)", s->file->path, name,
		(unsigned long long)bytes);
}

/* ---- footers ---- */

static int load_footers(struct vhd_scan *s, struct err *e)
{
	uint64_t size = s->file_bytes;
	int ret;

	if (size >= VHD_FOOTER_BYTES) {
		ret = read_at(s, 0, s->copy_raw, VHD_FOOTER_BYTES, "the footer copy", e);
		if (ret)
			return ret;
		s->copy_ok = !vhd_footer_parse(s->copy_raw, &s->copy, NULL);
	}
	if (size < VHD_SHORT_FOOTER_BYTES)
		return 0;
	s->tail_short = size % SECTOR_BYTES == VHD_SHORT_FOOTER_BYTES;
	s->tail_off = s->tail_short ? size - VHD_SHORT_FOOTER_BYTES
				    : round_down_u64(size, SECTOR_BYTES) - VHD_FOOTER_BYTES;
	ret = read_at(s, s->tail_off, s->tail_raw, s->tail_short ? VHD_SHORT_FOOTER_BYTES : VHD_FOOTER_BYTES,
		      "the trailing footer", e);
	if (ret)
		return ret;
	s->tail_ok =
	    (s->tail_short || size % SECTOR_BYTES == 0) && !vhd_footer_parse(s->tail_raw, &s->tail, NULL);
	return 0;
}

static bool cookie(const unsigned char *raw)
{
	return !memcmp(raw, "conectix", 8) || !memcmp(raw, "v_poison", 8);
}

/* A file of exactly one footer has it at both ends: nothing can be said about its copy then. */
static void choose_footer(struct vhd_scan *s)
{
	bool one = s->file_bytes <= VHD_FOOTER_BYTES;
	bool copy_sparse = s->copy_ok && s->copy.type != VHD_FIXED && s->may_be_sparse && !one;
	bool tail_fixed = s->tail_ok && s->tail.type == VHD_FIXED && s->may_be_fixed;
	bool tail_sparse = s->tail_ok && s->tail.type != VHD_FIXED && s->may_be_sparse;

	if (s->copy_ok && s->tail_ok && s->copy.type != s->tail.type && s->may_be_fixed && s->may_be_sparse) {
		s->kind = SCAN_AMBIGUOUS;
	} else if (copy_sparse) {
		s->kind = SCAN_SPARSE;
		s->footer = &s->copy;
		s->footer_raw = s->copy_raw;
	} else if (tail_fixed || tail_sparse) {
		s->kind = tail_fixed ? SCAN_FIXED : SCAN_SPARSE;
		s->by_tail = true;
		s->footer = &s->tail;
		s->footer_raw = s->tail_raw;
	} else if (s->may_be_sparse && !one && cookie(s->copy_raw)) {
		s->kind = SCAN_SPARSE; /* unusable, but its faults can be named */
	} else if (s->tail_off && cookie(s->tail_raw)) {
		s->kind = s->may_be_fixed ? SCAN_FIXED : SCAN_SPARSE;
		s->by_tail = true;
	}
}

/* ---- header and BAT ---- */

static int load_header(struct vhd_scan *s, struct err *e)
{
	int ret;

	if (s->footer->data_offset > s->file_bytes ||
	    s->file_bytes - s->footer->data_offset < VHD_HEADER_BYTES)
		return 0;
	ret = read_at(s, s->footer->data_offset, s->header_raw, VHD_HEADER_BYTES, "the dynamic header", e);
	if (ret)
		return ret;
	vhd_header_load(s->header_raw, &s->header);
	s->header_read = true;
	s->header_ok = !vhd_header_parse(s->header_raw, s->footer, &s->header, NULL);
	return 0;
}

static void add_region(struct vhd_scan *s, uint64_t off, uint64_t len, const char *name)
{
	s->regions[s->n_regions++] = (struct scan_region){off, off + len, name};
}

/* The BAT is worth loading when it lies within the file and its numbers make sense, whatever else is wrong
 * with the header. */
static bool bat_is_sane(const struct vhd_scan *s)
{
	const struct vhd_header_info *h = &s->header;

	return is_pow2_u64(h->block_bytes) && h->block_bytes >= VHD_MIN_BLOCK_BYTES &&
	       h->block_bytes <= VHD_BLOCK_BYTES && h->bat_entries && h->bat_entries <= VHD_MAX_BAT_ENTRIES &&
	       h->table_offset >= VHD_FOOTER_BYTES && h->table_offset % SECTOR_BYTES == 0 &&
	       h->table_offset <= s->file_bytes &&
	       vhd_bat_bytes(h->bat_entries) <= s->file_bytes - h->table_offset;
}

static int load_bat(struct vhd_scan *s, struct err *e)
{
	const struct vhd_header_info *h = &s->header;
	int ret;

	if (!s->header_read || memcmp(s->header_raw, "cxsparse", 8) || !bat_is_sane(s))
		return 0;
	s->bat = calloc(h->bat_entries, sizeof(*s->bat));
	s->bad = calloc(1, h->bat_entries / 8 + 1);
	if (!s->bat || !s->bad) {
		no_memory(s, "BAT", 4ull * h->bat_entries, e);
		return -ENOMEM;
	}
	ret = read_at(s, h->table_offset, s->bat, 4ull * h->bat_entries, "the BAT", e);
	if (ret)
		return ret;
	for (uint32_t i = 0; i < h->bat_entries; i++)
		s->bat[i] = be32_load(&s->bat[i]);
	s->n_entries = h->bat_entries;
	s->block_bytes = h->block_bytes;
	s->bitmap_bytes = vhd_bitmap_bytes(h->block_bytes);
	s->n_blocks = (uint32_t)u64_min(vhd_blocks_of(s->footer->curr_size, h->block_bytes), h->bat_entries);

	add_region(s, 0, VHD_FOOTER_BYTES, "the footer copy");
	add_region(s, s->footer->data_offset, VHD_HEADER_BYTES, "the header");
	add_region(s, h->table_offset, vhd_bat_bytes(h->bat_entries), "the BAT");
	for (unsigned i = 0; i < VHD_LOCATORS; i++) {
		const struct vhd_locator *l = &h->locators[i];
		uint32_t room = vhd_locator_room(l->space);

		if (l->code != VHD_LOC_NONE && room && l->off_bytes <= s->file_bytes &&
		    room <= s->file_bytes - l->off_bytes)
			add_region(s, l->off_bytes, room, "a parent locator");
	}
	return 0;
}

/* ---- blocks ---- */

/* Heap sort: in place, and no input makes it slow. */
static void sift(uint64_t *a, size_t root, size_t n)
{
	for (size_t kid = 2 * root + 1; kid < n; root = kid, kid = 2 * root + 1) {
		uint64_t t = a[root];

		if (kid + 1 < n && a[kid + 1] > a[kid])
			kid++;
		if (a[kid] <= t)
			return;
		a[root] = a[kid];
		a[kid] = t;
	}
}

static void sort_u64(uint64_t *a, size_t n)
{
	bool sorted = true;

	for (size_t i = 1; i < n && sorted; i++)
		sorted = a[i - 1] <= a[i];
	if (sorted)
		return;
	for (size_t i = n / 2; i-- > 0;)
		sift(a, i, n);
	for (size_t i = n; i-- > 1;) {
		uint64_t t = a[0];

		a[0] = a[i];
		a[i] = t;
		sift(a, 0, i);
	}
}

const char *scan_in_region(const struct vhd_scan *s, uint64_t off, uint64_t end)
{
	for (unsigned i = 0; i < s->n_regions; i++)
		if (off < s->regions[i].end && s->regions[i].off < end)
			return s->regions[i].name;
	return NULL;
}

uint32_t scan_block_at(const struct vhd_scan *s, uint64_t off, uint64_t end, bool skip_bad)
{
	uint64_t span = s->bitmap_bytes + s->block_bytes;
	uint32_t lo = 0, hi = s->n_order;

	while (lo < hi) { /* the first block whose end is beyond off: all have one length, so ends ascend as
			     starts do */
		uint32_t mid = lo + (hi - lo) / 2;

		if ((s->order[mid] >> 32) * SECTOR_BYTES + span <= off)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < s->n_order && (s->order[lo] >> 32) * SECTOR_BYTES < end; lo++)
		if (!skip_bad || !scan_bad(s, (uint32_t)s->order[lo]))
			return (uint32_t)s->order[lo];
	return SCAN_BAT_FREE;
}

static void set_bad(struct vhd_scan *s, uint32_t entry)
{
	s->bad[entry >> 3] |= (uint8_t)(1u << (entry & 7));
}

/* Where must blocks end? Before the trailing footer, if the file has one that deserves the name: one that
 * equals the copy. Any other last sector is a block's when a block claims it. */
static void find_limit(struct vhd_scan *s)
{
	bool is_tail =
	    s->tail_ok && (s->by_tail || !memcmp(s->copy_raw, s->tail_raw,
						 s->tail_short ? VHD_SHORT_FOOTER_BYTES : VHD_FOOTER_BYTES));

	s->limit = is_tail ? s->tail_off : s->file_bytes;
}

/* A crash of a tapdisk leaves the file ending within the block that it wrote last: legal, if there is no
 * footer behind and no sector that is marked as present lies beyond the end. */
static int find_cut_block(struct vhd_scan *s, struct err *e)
{
	unsigned char bits[VHD_BLOCK_BYTES / SECTOR_BYTES / 8];
	uint64_t data;
	uint32_t top;
	int ret;

	if (!s->n_order || s->limit != s->file_bytes || s->tail_ok || s->file->traits.fixed_size)
		return 0;
	top = (uint32_t)s->order[s->n_order - 1];
	data = scan_block_off(s, top) + s->bitmap_bytes;
	if (scan_block_end(s, top) <= s->limit || data > s->limit)
		return 0;
	ret = read_at(s, scan_block_off(s, top), bits, sizeof(bits), "the last block's bitmap", e);
	if (ret)
		return ret;
	for (uint32_t i = (uint32_t)((s->limit - data) / SECTOR_BYTES); i < s->block_bytes / SECTOR_BYTES;
	     i++)
		if (bits[i >> 3] & (0x80u >> (i & 7)))
			return 0;
	s->cut_entry = top;
	return 0;
}

/* Of two blocks in one place neither can be trusted, unless one of them could not be there anyway. */
static void judge_blocks(struct vhd_scan *s)
{
	uint32_t reach = SCAN_BAT_FREE; /* the block that reaches farthest so far */

	for (uint32_t i = 0; i < s->n_order; i++) {
		uint32_t entry = (uint32_t)s->order[i];
		uint64_t off = scan_block_off(s, entry), end = scan_block_end(s, entry);

		if (entry >= s->n_blocks || scan_in_region(s, off, end) ||
		    (end > s->limit && entry != s->cut_entry)) {
			set_bad(s, entry);
			continue;
		}
		if (reach != SCAN_BAT_FREE && off < scan_block_end(s, reach)) {
			set_bad(s, entry);
			set_bad(s, reach);
		}
		reach = entry;
	}
	for (uint32_t i = 0; i < s->n_order; i++)
		if (!scan_bad(s, (uint32_t)s->order[i]))
			s->blocks_end = scan_block_end(s, (uint32_t)s->order[i]);
	if (s->cut_entry != SCAN_BAT_FREE && scan_bad(s, s->cut_entry))
		s->cut_entry = SCAN_BAT_FREE;
}

static int load_blocks(struct vhd_scan *s, struct err *e)
{
	uint32_t n = 0;
	int ret;

	for (uint32_t i = 0; i < s->n_entries; i++)
		n += s->bat[i] != SCAN_BAT_FREE;
	s->order = calloc((size_t)n + 1, sizeof(*s->order));
	if (!s->order) {
		no_memory(s, "list of blocks", 8ull * n, e);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < s->n_entries; i++)
		if (s->bat[i] != SCAN_BAT_FREE)
			s->order[s->n_order++] = (uint64_t)s->bat[i] << 32 | i;
	sort_u64(s->order, s->n_order);
	find_limit(s);
	ret = find_cut_block(s, e);
	if (ret)
		return ret;
	judge_blocks(s);
	return 0;
}

/* ---- batmap ---- */

uint32_t scan_map_need(const struct vhd_scan *s)
{
	uint32_t covered = vhd_batmap_covered_bytes(s->footer->curr_size);
	uint32_t all = (uint32_t)round_up_u64(((uint64_t)s->n_blocks + 7) / 8, SECTOR_BYTES);

	return covered > all ? covered : all;
}

static bool map_place_ok(const struct vhd_scan *s)
{
	uint64_t off = s->batmap.map_off, len = (uint64_t)s->batmap.map_sectors * SECTOR_BYTES;

	return off % SECTOR_BYTES == 0 && off >= s->batmap_hdr_off + VHD_BATMAP_HEADER_BYTES &&
	       len >= scan_map_need(s) && off <= s->limit && len <= s->limit - off &&
	       len <= VHD_MAX_BAT_ENTRIES && !scan_in_region(s, off, off + len);
}

static int load_batmap(struct vhd_scan *s, struct err *e)
{
	const struct vhd_footer_info *f = s->footer;
	int ret;

	s->wants_batmap =
	    !memcmp(f->creator_app, VHD_CREATOR_TAP, 4) && f->creator_version >= VHD_CREATOR_VERSION(1, 1);
	if (!s->wants_batmap)
		return 0;
	s->batmap_hdr_off = s->header.table_offset + vhd_bat_bytes(s->n_entries);
	if (s->batmap_hdr_off > s->file_bytes || s->file_bytes - s->batmap_hdr_off < VHD_BATMAP_HEADER_BYTES)
		return 0;
	ret = read_at(s, s->batmap_hdr_off, s->batmap_raw, VHD_BATMAP_HEADER_BYTES, "the batmap header", e);
	if (ret)
		return ret;
	s->batmap_clobbered = scan_block_at(s, s->batmap_hdr_off, s->batmap_hdr_off + VHD_BATMAP_HEADER_BYTES,
					    false) != SCAN_BAT_FREE;
	if (s->batmap_clobbered || !vhd_batmap_parse(s->batmap_raw, &s->batmap) || !map_place_ok(s))
		return 0;
	s->map_bytes = s->batmap.map_sectors * SECTOR_BYTES;
	if (scan_block_at(s, s->batmap.map_off, s->batmap.map_off + s->map_bytes, false) != SCAN_BAT_FREE) {
		s->batmap_clobbered = true;
		return 0;
	}
	s->map = malloc(s->map_bytes);
	if (!s->map) {
		no_memory(s, "batmap", s->map_bytes, e);
		return -ENOMEM;
	}
	s->batmap_hdr_ok = true;
	ret = read_at(s, s->batmap.map_off, s->map, s->map_bytes, "the batmap", e);
	if (ret)
		return ret;
	s->batmap_ok = vhd_batmap_checksum(s->map, vhd_batmap_covered_bytes(f->curr_size),
					   s->batmap.version) == s->batmap.checksum;
	return 0;
}

int vhd_scan_ends(struct backing *file, const char *format, struct vhd_scan *s, struct err *e)
{
	int ret;

	memset(s, 0, sizeof(*s));
	s->file = file;
	s->cut_entry = SCAN_BAT_FREE;
	s->may_be_sparse = !format || !strcmp(format, "vhd");
	s->may_be_fixed = !format || !strcmp(format, "vhd-fixed");
	ret = file->ops->size(file, &s->file_bytes);
	if (ret)
		return err_set(e, ret, "%s: cannot learn its size: %s", file->path, strerror(-ret));
	ret = load_footers(s, e);
	if (!ret)
		choose_footer(s);
	return ret;
}

int vhd_scan(struct backing *file, const char *format, struct vhd_scan *s, struct err *e)
{
	int ret = vhd_scan_ends(file, format, s, e);

	if (ret || s->kind != SCAN_SPARSE || !s->footer)
		return ret;
	ret = load_header(s, e);
	if (!ret)
		ret = load_bat(s, e);
	if (!ret && s->bat)
		ret = load_blocks(s, e);
	if (!ret && s->bat)
		ret = load_batmap(s, e);
	if (!ret && s->batmap_hdr_ok) {
		add_region(s, s->batmap_hdr_off, VHD_BATMAP_HEADER_BYTES, "the batmap header");
		add_region(s, s->batmap.map_off, s->map_bytes, "the batmap");
	}
	return ret;
}

void vhd_scan_free(struct vhd_scan *s)
{
	free(s->bat);
	free(s->bad);
	free(s->order);
	free(s->map);
	s->bat = NULL;
	s->bad = NULL;
	s->order = NULL;
	s->map = NULL;
}
