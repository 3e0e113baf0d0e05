/*
 * The checker of one VHD file: footers and header here, BAT, batmap and locators in vhd_check_map.c. It
 * judges what vhd_scan.c loaded, field by field, and goes on after each finding as far as the next structure
 * can still be found. What it calls sound is at least what vhd-util check calls valid.
 */
#include "formats/vhd/vhd_check_parts.h"

#include "blkd/bytes.h"
#include "blkd/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#define CLOCK_SLACK_S 3600 /* between the hosts of a pool */

static void check_creator(struct check_run *run, const struct vhd_footer_info *f, uint64_t off)
{
	if (memcmp(f->creator_app, VHD_CREATOR_TAP, 4))
		return;
	if (f->creator_version < VHD_CREATOR_VERSION(1, 0) || f->creator_version > VHD_CREATOR_VERSION(1, 3))
		check_report(run, CHECK_FOOTER_CREATOR,
			     off + offsetof(struct vhd_footer_disk, creator_version), "tap 1.0 to 1.3",
			     "tap %u.%u", f->creator_version >> 16, f->creator_version & 0xffff);
}

static void check_geometry(struct check_run *run, const struct vhd_footer_info *f, uint64_t off)
{
	uint64_t has = (uint64_t)f->cylinders * f->heads * f->sectors_per_track;
	uint16_t c;
	uint8_t h, s;
	char want[64];

	vhd_geometry(f->curr_size, &c, &h, &s);
	if (has <= (uint64_t)c * h * s)
		return;
	snprintf(want, sizeof(want), "at most %u/%u/%u", c, h, s);
	check_report(run, CHECK_FOOTER_GEOMETRY, off + offsetof(struct vhd_footer_disk, cylinders), want,
		     "%u/%u/%u", f->cylinders, f->heads, f->sectors_per_track);
}

static void check_identity(struct check_run *run, const struct vhd_footer_info *f, uint64_t off)
{
	bool sparse = f->type == VHD_DYNAMIC || f->type == VHD_DIFFERENCING;

	if (f->type < VHD_FIXED || f->type > VHD_DIFFERENCING)
		check_report(run, CHECK_FOOTER_TYPE, off + offsetof(struct vhd_footer_disk, type),
			     "2, 3 or 4", "%" PRIu32, f->type);
	if (sparse && (f->data_offset < VHD_FOOTER_BYTES || f->data_offset % SECTOR_BYTES ||
		       f->data_offset > 1ull << 62))
		check_report(run, CHECK_FOOTER_DATA_OFFSET,
			     off + offsetof(struct vhd_footer_disk, data_offset), "512", "%" PRIu64,
			     f->data_offset);
	if (f->type == VHD_FIXED && f->data_offset != VHD_NO_OFFSET && !run->opts->lenient)
		check_report(run, CHECK_FOOTER_DATA_OFFSET,
			     off + offsetof(struct vhd_footer_disk, data_offset), "all ones", "%" PRIu64,
			     f->data_offset);
	if (!f->curr_size || f->curr_size % SECTOR_BYTES || f->curr_size > VHD_MAX_SIZE_BYTES)
		check_report(run, CHECK_FOOTER_SIZE, off + offsetof(struct vhd_footer_disk, curr_size),
			     "a positive multiple of 512, at most 2040 GiB", "%" PRIu64, f->curr_size);
	if (bytes_are_zero(f->uuid, 16))
		check_report(run, CHECK_FOOTER_UUID, off + offsetof(struct vhd_footer_disk, uuid), "not zero",
			     "all zero");
}

static int64_t now_of(const struct check_run *run)
{
	return run->opts->now_s ? run->opts->now_s : (int64_t)time(NULL);
}

/* Every field of a footer that has its cookie. */
static void check_footer_fields(struct check_run *run, const unsigned char *raw, uint64_t off)
{
	const struct vhd_footer_disk *d = (const void *)raw;
	struct vhd_footer_info f;
	char want[64];

	if (!memcmp(raw, "v_poison", 8)) {
		check_report(run, CHECK_POISONED, off, "conectix", "v_poison");
		return;
	}
	vhd_footer_load(raw, &f);
	if (!vhd_footer_checksum_ok(raw)) {
		snprintf(want, sizeof(want), "0x%08" PRIx32, vhd_footer_checksum(raw));
		check_report(run, CHECK_FOOTER_CHECKSUM, off + offsetof(struct vhd_footer_disk, checksum),
			     want, "0x%08" PRIx32, f.checksum);
	}
	if (!(f.features & VHD_FEATURE_RESERVED) ||
	    f.features & ~(VHD_FEATURE_RESERVED | VHD_FEATURE_TEMPORARY))
		check_report(run, CHECK_FOOTER_FEATURES, off + offsetof(struct vhd_footer_disk, features),
			     "2 or 3", "0x%" PRIx32, f.features);
	if (f.version != VHD_VERSION_1_0)
		check_report(run, CHECK_FOOTER_VERSION, off + offsetof(struct vhd_footer_disk, version),
			     "0x00010000", "0x%08" PRIx32, f.version);
	if (f.timestamp > vhd_time(now_of(run) + CLOCK_SLACK_S))
		check_report(run, CHECK_FOOTER_TIMESTAMP, off + offsetof(struct vhd_footer_disk, timestamp),
			     "a time in the past", "%" PRIu32 " seconds since 2000", f.timestamp);
	check_creator(run, &f, off);
	check_identity(run, &f, off);
	check_geometry(run, &f, off);
	if (f.saved > 1)
		check_report(run, CHECK_FOOTER_SAVED, off + offsetof(struct vhd_footer_disk, saved), "0 or 1",
			     "%u", f.saved);
	if (f.hidden > 1)
		check_report(run, CHECK_FOOTER_HIDDEN, off + offsetof(struct vhd_footer_disk, hidden),
			     "0 or 1", "%u", f.hidden);
	if (!bytes_are_zero(d->reserved, sizeof(d->reserved)))
		check_report(run, CHECK_FOOTER_RESERVED, off + offsetof(struct vhd_footer_disk, reserved),
			     "zeros", "other bytes");
}

/* Whatever open() would refuse is a finding, even if no field above has a name for it. */
static void check_footer(struct check_run *run, const unsigned char *raw, uint64_t off)
{
	uint32_t before = run->result->errors;
	struct vhd_footer_info f;
	struct err why = ERR_INIT;

	check_footer_fields(run, raw, off);
	if (run->result->errors == before && vhd_footer_parse(raw, &f, &why))
		check_report(run, CHECK_FOOTER_REFUSED, off, NULL, "%.150s", why.text);
}

static bool has_cookie(const unsigned char *raw)
{
	return !memcmp(raw, "conectix", 8) || !memcmp(raw, "v_poison", 8);
}

/* The end of a sparse image whose copy rules. */
static void check_tail(struct check_run *run, const struct vhd_scan *s)
{
	uint32_t len = s->tail_short ? VHD_SHORT_FOOTER_BYTES : VHD_FOOTER_BYTES, i = 0;
	bool placed = s->tail_short || s->file_bytes % SECTOR_BYTES == 0;

	if (placed && s->tail_off && !memcmp(s->copy_raw, s->tail_raw, len))
		return;
	if (placed && vhd_footer_is_killed(s->tail_raw)) {
		check_report(run, CHECK_TAIL_KILLED, s->tail_off, "the copy at offset 0",
			     "512 bytes of 0xc7");
	} else if (placed && s->tail_off && has_cookie(s->tail_raw)) {
		while (s->copy_raw[i] == s->tail_raw[i])
			i++;
		check_report(run, CHECK_TAIL_DIFFERS, s->tail_off, "the copy at offset 0",
			     "another byte from its byte %" PRIu32 " on", i);
	} else {
		check_report(run, CHECK_TAIL_MISSING, s->tail_off, "conectix", "no footer");
	}
}

static void check_fixed(struct check_run *run, const struct vhd_scan *s)
{
	uint64_t want;
	char text[64];

	if (!s->tail_short && s->file_bytes % SECTOR_BYTES)
		check_report(run, CHECK_FOOTER_REFUSED, s->tail_off, "a footer at the very end",
			     "%u bytes behind it", (unsigned)(s->file_bytes % SECTOR_BYTES));
	check_footer(run, s->tail_raw, s->tail_off);
	if (!s->footer)
		return;
	want = s->footer->curr_size + VHD_FOOTER_BYTES;
	snprintf(text, sizeof(text), "%" PRIu64 " bytes", want);
	if (s->tail_off < s->footer->curr_size)
		check_report(run, CHECK_FIXED_SHORT, 0, text, "%" PRIu64 " bytes", s->file_bytes);
	else if (s->tail_off > s->footer->curr_size)
		check_report(run, CHECK_FIXED_LONG, 0, text, "%" PRIu64 " bytes", s->file_bytes);
}

/* ---- header ---- */

static bool names_parent(const struct vhd_header_info *h)
{
	bool any = !bytes_are_zero(h->parent_uuid, 16) || h->parent_mtime ||
		   !bytes_are_zero(h->parent_name, VHD_PARENT_NAME_BYTES);

	for (unsigned i = 0; i < VHD_LOCATORS; i++)
		any |= h->locators[i].code != VHD_LOC_NONE;
	return any;
}

static void check_header_table(struct check_run *run, const struct vhd_scan *s, uint64_t off)
{
	const struct vhd_header_info *h = &s->header;
	uint64_t end, need;
	char want[64];

	if (!is_pow2_u64(h->block_bytes) || h->block_bytes < VHD_MIN_BLOCK_BYTES ||
	    h->block_bytes > VHD_BLOCK_BYTES) {
		check_report(run, CHECK_HEADER_BLOCK_SIZE,
			     off + offsetof(struct vhd_header_disk, block_bytes),
			     "a power of two, at most 2097152", "%" PRIu32, h->block_bytes);
	} else {
		need = vhd_blocks_of(s->footer->curr_size, h->block_bytes);
		snprintf(want, sizeof(want), "%" PRIu64 " to %u", need, VHD_MAX_BAT_ENTRIES);
		if (h->bat_entries < need || h->bat_entries > VHD_MAX_BAT_ENTRIES)
			check_report(run, CHECK_HEADER_ENTRIES,
				     off + offsetof(struct vhd_header_disk, bat_entries), want, "%" PRIu32,
				     h->bat_entries);
	}
	if (h->table_offset < VHD_FOOTER_BYTES || h->table_offset % SECTOR_BYTES ||
	    h->table_offset > (1ull << 62) - vhd_bat_bytes(h->bat_entries)) {
		check_report(run, CHECK_HEADER_TABLE_OFFSET,
			     off + offsetof(struct vhd_header_disk, table_offset), "1536", "%" PRIu64,
			     h->table_offset);
		return;
	}
	end = h->table_offset + vhd_bat_bytes(h->bat_entries);
	if (end > s->file_bytes) {
		snprintf(want, sizeof(want), "at most %" PRIu64, s->file_bytes);
		check_report(run, CHECK_META_BEYOND_END, h->table_offset, want, "a BAT that ends at %" PRIu64,
			     end);
	}
}

static void check_header_fields(struct check_run *run, const struct vhd_scan *s)
{
	const struct vhd_header_disk *d = (const void *)s->header_raw;
	const struct vhd_header_info *h = &s->header;
	uint64_t off = s->footer->data_offset;
	char want[64];

	if (!s->header_read) {
		check_report(run, CHECK_META_BEYOND_END, off, "the dynamic header",
			     "the end of the file at %" PRIu64, s->file_bytes);
		return;
	}
	if (memcmp(s->header_raw, "cxsparse", 8)) {
		check_report(run, CHECK_HEADER_COOKIE, off, "cxsparse", "other bytes");
		return;
	}
	if (h->checksum != vhd_header_checksum(s->header_raw)) {
		snprintf(want, sizeof(want), "0x%08" PRIx32, vhd_header_checksum(s->header_raw));
		check_report(run, CHECK_HEADER_CHECKSUM, off + offsetof(struct vhd_header_disk, checksum),
			     want, "0x%08" PRIx32, h->checksum);
	}
	if (h->version != VHD_VERSION_1_0)
		check_report(run, CHECK_HEADER_VERSION, off + offsetof(struct vhd_header_disk, version),
			     "0x00010000", "0x%08" PRIx32, h->version);
	if (h->data_offset != VHD_NO_OFFSET)
		check_report(run, CHECK_HEADER_DATA_OFFSET,
			     off + offsetof(struct vhd_header_disk, data_offset), "all ones", "%" PRIu64,
			     h->data_offset);
	if (!bytes_are_zero(d->reserved1, sizeof(d->reserved1)) ||
	    !bytes_are_zero(d->reserved2, sizeof(d->reserved2)))
		check_report(run, CHECK_HEADER_RESERVED, off, "zeros", "other bytes");
	check_header_table(run, s, off);
	if (s->footer->type == VHD_DYNAMIC && names_parent(h))
		check_report(run, CHECK_HEADER_PARENT, off, "no parent in a dynamic disk",
			     "parent fields that are not empty");
	if (s->footer->type == VHD_DIFFERENCING && !names_parent(h))
		check_report(run, CHECK_HEADER_PARENT, off, "a parent in a differencing disk",
			     "no parent at all");
	else if (s->footer->type == VHD_DIFFERENCING && !memcmp(h->parent_uuid, s->footer->uuid, 16))
		check_report(run, CHECK_HEADER_PARENT, off, "a parent", "the image itself");
}

static void check_header(struct check_run *run, const struct vhd_scan *s)
{
	uint32_t before = run->result->errors;
	struct vhd_header_info h;
	struct err why = ERR_INIT;

	check_header_fields(run, s);
	if (run->result->errors == before && vhd_header_parse(s->header_raw, s->footer, &h, &why))
		check_report(run, CHECK_HEADER_REFUSED, s->footer->data_offset, NULL, "%.150s", why.text);
}

static int check_sparse(struct check_run *run, struct vhd_scan *s, struct err *e)
{
	if (s->by_tail) {
		if (has_cookie(s->copy_raw))
			check_footer(run, s->copy_raw, 0);
		else
			check_report(run, CHECK_FOOTER_COOKIE, 0, "conectix", "other bytes");
		check_footer(run, s->tail_raw, s->tail_off);
	} else {
		check_footer(run, s->copy_raw, 0);
		if (s->footer)
			check_tail(run, s);
	}
	if (!s->footer)
		return 0;
	check_header(run, s);
	if (s->header_read && !memcmp(s->header_raw, "cxsparse", 8))
		return check_map(run, s, e);
	return 0;
}

static int check_raw(struct check_run *run, struct backing *file, struct err *e)
{
	uint64_t size;
	int ret = file->ops->size(file, &size);

	if (ret)
		return err_set(e, ret, "%s: cannot learn its size: %s", file->path, strerror(-ret));
	if (!size || size % SECTOR_BYTES)
		check_report(run, CHECK_RAW_SIZE, 0, "a positive multiple of 512", "%" PRIu64 " bytes", size);
	return 0;
}

int check_one(struct check_run *run, struct backing *file, const char *format, struct vhd_scan *s,
	      struct err *e)
{
	uint32_t before = run->result->errors;
	int ret;

	run->path = file->path;
	run->result->files++;
	if (format && !strcmp(format, "raw"))
		return check_raw(run, file, e);
	ret = vhd_scan(file, format, s, e);
	if (ret)
		return ret;
	switch (s->kind) {
	case SCAN_UNKNOWN:
		if ((s->copy_ok || s->tail_ok) && s->file_bytes > VHD_FOOTER_BYTES)
			check_report(run, CHECK_TYPE_REFUSED, s->copy_ok ? 0 : s->tail_off,
				     format ? format : "a dynamic disk's copy", "type %" PRIu32,
				     s->copy_ok ? s->copy.type : s->tail.type);
		else
			check_report(run, CHECK_NO_FOOTER, s->tail_off, "conectix",
				     "neither at offset 0 nor at the end, of %" PRIu64 " bytes",
				     s->file_bytes);
		break;
	case SCAN_AMBIGUOUS:
		check_report(run, CHECK_TYPE_AMBIGUOUS, s->tail_off, NULL,
			     "type %" PRIu32 " at offset 0, %" PRIu32 " at the end", s->copy.type,
			     s->tail.type);
		break;
	case SCAN_FIXED:
		check_fixed(run, s);
		break;
	case SCAN_SPARSE:
		ret = check_sparse(run, s, e);
		break;
	}
	if (!ret && !s->footer && run->result->errors == before)
		check_report(run, CHECK_FOOTER_REFUSED, s->tail_off, "a footer that fits its place",
			     "type %" PRIu32 " at offset 0 only", s->copy.type);
	return ret;
}

int vhd_check(struct backing *file, const struct check_opts *opts, struct check_result *result, struct err *e)
{
	struct check_run run = {.opts = opts, .result = result};
	struct vhd_scan s = {0};
	int ret = check_one(&run, file, opts->format, &s, e);

	check_report_end(&run);
	vhd_scan_free(&s);
	return ret;
}
