/*
 * Structured mutations of VHDs, and small images to mutate: for the hostile-image test and the fuzzers.
 * Header only, all static.
 *
 * A mutation changes one thing on purpose (a field, a BAT entry, the length) and then makes the checksums
 * right again, so that it gets past the door and meets the code behind. mut_each() enumerates them all in a
 * fixed order; each has a name that says what it did.
 *
 * The layout is written down here again, as numbers: a test that took offsets from layout.h would move with
 * it.
 */
#ifndef TESTS_LIB_VHDMUT_H
#define TESTS_LIB_VHDMUT_H

#include "blkd/format.h"
#include "blkd/vhd.h"
#include "tests/lib/membacking.h"

#include <inttypes.h>

#define MUT_FOOTER     512u
#define MUT_HEADER_OFF 512u
#define MUT_BAT_OFF    1536u

struct mut_field {
	const char *name;
	uint16_t off, len;
};

static const struct mut_field mut_footer_fields[] MEM_UNUSED = {
    {"cookie", 0, 8},	  {"features", 8, 4},	{"version", 12, 4},	    {"data_offset", 16, 8},
    {"timestamp", 24, 4}, {"creator", 28, 4},	{"creator_version", 32, 4}, {"creator_os", 36, 4},
    {"orig_size", 40, 8}, {"curr_size", 48, 8}, {"cylinders", 56, 2},	    {"heads", 58, 1},
    {"sectors", 59, 1},	  {"type", 60, 4},	{"checksum", 64, 4},	    {"uuid", 68, 8},
    {"saved", 84, 1},	  {"hidden", 85, 1},	{"reserved", 504, 8},
};

static const struct mut_field mut_header_fields[] MEM_UNUSED = {
    {"cookie", 0, 8},	     {"data_offset", 8, 8},  {"table_offset", 16, 8}, {"version", 24, 4},
    {"bat_entries", 28, 4},  {"block_bytes", 32, 4}, {"checksum", 36, 4},     {"parent_uuid", 40, 8},
    {"parent_mtime", 56, 4}, {"reserved1", 60, 4},   {"parent_name", 64, 8},  {"reserved2", 1016, 8},
};

static const struct mut_field mut_locator_fields[] MEM_UNUSED = {
    {"code", 0, 4}, {"space", 4, 4}, {"length", 8, 4}, {"reserved", 12, 4}, {"offset", 16, 8},
};

static const struct mut_field mut_batmap_fields[] MEM_UNUSED = {
    {"cookie", 0, 8},	 {"map_offset", 8, 8}, {"map_sectors", 16, 4},	      {"version", 20, 4},
    {"checksum", 24, 4}, {"marker", 28, 1},    {"generation_cookie", 496, 8}, {"generation", 504, 8},
};

enum mut_fix { /* checksums to make right after the pokes */
	       MUT_FIX_COPY = 1,
	       MUT_FIX_TAIL = 2,
	       MUT_FIX_HEADER = 4,
	       MUT_FIX_BATMAP = 8,
	       MUT_FIX_ALL = 15
};

struct mutation {
	char name[128];
	struct mut_poke {
		uint64_t off;
		unsigned len;
		unsigned char bytes[16];
	} poke[2];
	unsigned n_pokes;
	unsigned fix;
	bool resize;
	uint64_t size;
};

static MEM_UNUSED uint32_t mut_sum(const unsigned char *p, size_t n, size_t skip)
{
	uint32_t s = 0;

	for (size_t i = 0; i < n; i++)
		s += i >= skip && i < skip + 4 ? 0 : p[i];
	return ~s;
}

/* ---- pure bytes: also for the fuzzers' mutator ---- */

struct mut_bytes { /* how to get at the bytes of an image */
	void (*get)(void *ctx, uint64_t off, void *buf, size_t len);
	void (*put)(void *ctx, uint64_t off, const void *buf, size_t len);
	void *ctx;
	uint64_t size;
};

static MEM_UNUSED void mut_fix_footer(const struct mut_bytes *b, uint64_t off)
{
	unsigned char f[512];

	if (b->size < 512 || off > b->size - 512)
		return;
	b->get(b->ctx, off, f, 512);
	be32_store(f + 64, mut_sum(f, 512, 64));
	b->put(b->ctx, off + 64, f + 64, 4);
}

static MEM_UNUSED void mut_fix_header(const struct mut_bytes *b, uint64_t off)
{
	unsigned char h[1024];

	if (b->size < 1024 || off > b->size - 1024)
		return;
	b->get(b->ctx, off, h, 1024);
	be32_store(h + 36, mut_sum(h, 1024, 36));
	b->put(b->ctx, off + 36, h + 36, 4);
}

/* The batmap header of an image whose BAT is where the header says. */
static MEM_UNUSED void mut_fix_batmap(const struct mut_bytes *b, uint64_t header_off)
{
	unsigned char f[512], h[1024], m[512], sector[512];
	uint64_t table, at, map, covered;
	uint32_t sum = 0;

	if (b->size < 2048 || header_off > b->size - 1024)
		return;
	b->get(b->ctx, 0, f, 512);
	b->get(b->ctx, header_off, h, 1024);
	table = be64_load(h + 16);
	at = (uint64_t)be32_load(h + 28) * 4;
	at = (at + 511) / 512 * 512;
	if (table > b->size || at > b->size - table || b->size - table - at < 512)
		return;
	at += table;
	b->get(b->ctx, at, m, 512);
	map = be64_load(m + 8);
	covered = ((be64_load(f + 48) >> 24) + 511) / 512 * 512;
	if (covered > 1u << 20 || map > b->size || covered > b->size - map)
		return;
	for (uint64_t i = 0; i < covered; i += 512) {
		b->get(b->ctx, map + i, sector, 512);
		for (unsigned k = 0; k < 512; k++)
			sum += sector[k];
	}
	be32_store(m + 24, ~sum);
	b->put(b->ctx, at + 24, m + 24, 4);
}

static MEM_UNUSED void mut_fix(const struct mut_bytes *b, unsigned fix)
{
	unsigned char f[512];
	uint64_t header = MUT_HEADER_OFF;

	if (b->size >= 512) {
		b->get(b->ctx, 0, f, 512);
		if (be64_load(f + 16) < b->size)
			header = be64_load(f + 16);
	}
	if (fix & MUT_FIX_HEADER)
		mut_fix_header(b, header);
	if (fix & MUT_FIX_BATMAP)
		mut_fix_batmap(b, header);
	if (fix & MUT_FIX_COPY)
		mut_fix_footer(b, 0);
	if (fix & MUT_FIX_TAIL && b->size >= 512)
		mut_fix_footer(b, b->size / 512 * 512 - 512);
}

static MEM_UNUSED void mut_file_get(void *ctx, uint64_t off, void *buf, size_t len)
{
	mem_peek(ctx, off, buf, len);
}

static MEM_UNUSED void mut_file_put(void *ctx, uint64_t off, const void *buf, size_t len)
{
	mem_poke(ctx, off, buf, len);
}

static MEM_UNUSED void mut_apply(struct mem_file *f, const struct mutation *m)
{
	struct mut_bytes b = {mut_file_get, mut_file_put, f, 0};

	for (unsigned i = 0; i < m->n_pokes; i++)
		mem_poke(f, m->poke[i].off, m->poke[i].bytes, m->poke[i].len);
	if (m->resize)
		mem_resize(f, m->size);
	b.size = mem_size(f);
	mut_fix(&b, m->fix);
}

/* ---- enumeration ---- */

#define MUT_VALUES 36u

static MEM_UNUSED uint64_t mut_value(unsigned i, uint64_t file_bytes)
{
	const uint64_t v[MUT_VALUES] = {
	    0,		1,
	    2,		3,
	    4,		5,
	    7,		31,
	    127,	128,
	    255,	256,
	    511,	512,
	    513,	1023,
	    1024,	1536,
	    2048,	4095,
	    4096,	2097151,
	    2097152,	4194304,
	    1u << 23,	0x7fffffff,
	    0x80000000, 0xffffffff,
	    1ull << 32, file_bytes - 512,
	    file_bytes, (1ull << 62) - 512,
	    1ull << 62, INT64_MAX,
	    1ull << 63, UINT64_MAX - 511,
	};

	return i < MUT_VALUES ? v[i] : UINT64_MAX;
}

typedef void mut_fn(void *ctx, const struct mutation *);

static MEM_UNUSED void mut_emit_field(mut_fn *fn, void *ctx, const char *where, const struct mut_field *f,
				      uint64_t base, uint64_t also, uint64_t file_bytes)
{
	for (unsigned i = 0; i <= MUT_VALUES; i++) {
		uint64_t v = mut_value(i, file_bytes);
		struct mutation m = {.n_pokes = also == base ? 1 : 2, .fix = MUT_FIX_ALL};
		unsigned char be[8];

		be64_store(be, v);
		for (unsigned k = 0; k < m.n_pokes; k++) {
			m.poke[k].off = (k ? also : base) + f->off;
			m.poke[k].len = f->len;
			memcpy(m.poke[k].bytes, be + 8 - f->len, f->len);
		}
		if (!strcmp(f->name, "checksum"))
			m.fix = 0;
		snprintf(m.name, sizeof(m.name), "%s %s = 0x%" PRIx64, where, f->name, v);
		fn(ctx, &m);
	}
}

#define MUT_COUNT(a) (sizeof(a) / sizeof((a)[0]))

static MEM_UNUSED void mut_each_footer(mut_fn *fn, void *ctx, uint64_t file_bytes, bool sparse)
{
	uint64_t tail = file_bytes - MUT_FOOTER;

	for (unsigned i = 0; i < MUT_COUNT(mut_footer_fields); i++) {
		const struct mut_field *f = &mut_footer_fields[i];

		mut_emit_field(fn, ctx, "tail", f, tail, tail, file_bytes);
		if (!sparse)
			continue;
		mut_emit_field(fn, ctx, "copy", f, 0, 0, file_bytes);
		mut_emit_field(fn, ctx, "both", f, 0, tail, file_bytes);
	}
}

static MEM_UNUSED void mut_each_bat(mut_fn *fn, void *ctx, const struct mem_file *file, unsigned n_entries)
{
	uint64_t size = mem_size(file);
	unsigned char bat[256];
	uint32_t other;

	mem_peek(file, MUT_BAT_OFF, bat, sizeof(bat));
	other = be32_load(bat);
	for (unsigned e = 0; e < n_entries; e++) {
		const struct mut_field f = {"entry", 0, 4};
		const uint32_t near[] = {other,
					 other + 1,
					 other - 1,
					 other + 8,
					 other + 4096,
					 other + 4097,
					 (uint32_t)(size / 512) - 1,
					 (uint32_t)(size / 512),
					 (uint32_t)(size / 512) - 4097,
					 (uint32_t)(size / 512) - 4098};
		char where[32];

		snprintf(where, sizeof(where), "BAT %u", e);
		mut_emit_field(fn, ctx, where, &f, MUT_BAT_OFF + 4u * e, MUT_BAT_OFF + 4u * e, size);
		for (unsigned i = 0; i < MUT_COUNT(near); i++) {
			struct mutation m = {.n_pokes = 1, .fix = MUT_FIX_ALL};

			m.poke[0].off = MUT_BAT_OFF + 4u * e;
			m.poke[0].len = 4;
			be32_store(m.poke[0].bytes, near[i]);
			snprintf(m.name, sizeof(m.name), "BAT %u = sector %" PRIu32, e, near[i]);
			fn(ctx, &m);
		}
	}
}

static MEM_UNUSED void mut_each_cut(mut_fn *fn, void *ctx, uint64_t file_bytes)
{
	static const uint64_t borders[] = {0,	 512,  1024, 1536, 2048,    2560,    3072,
					   3584, 4096, 4608, 8192, 2097152, 2105344, 4202496};
	static const int64_t around[] = {-513, -512, -511, -1, 0, 1, 511, 512, 513};

	for (unsigned i = 0; i < MUT_COUNT(borders) + 1; i++)
		for (unsigned k = 0; k < MUT_COUNT(around); k++) {
			int64_t at = (int64_t)(i < MUT_COUNT(borders) ? borders[i] : file_bytes) + around[k];
			struct mutation m = {.resize = true, .size = (uint64_t)at};

			if (at < 0)
				continue;
			snprintf(m.name, sizeof(m.name), "cut to %" PRId64 " bytes", at);
			fn(ctx, &m);
		}
}

/* All mutations of an image that make_*() below built. */
static MEM_UNUSED void mut_each(const struct mem_file *file, bool sparse, mut_fn *fn, void *ctx)
{
	uint64_t size = mem_size(file);
	unsigned char h[1024];
	uint64_t batmap;

	mut_each_footer(fn, ctx, size, sparse);
	mut_each_cut(fn, ctx, size);
	if (!sparse)
		return;
	mem_peek(file, MUT_HEADER_OFF, h, sizeof(h));
	batmap = MUT_BAT_OFF + (be32_load(h + 28) * 4ull + 511) / 512 * 512;
	for (unsigned i = 0; i < MUT_COUNT(mut_header_fields); i++)
		mut_emit_field(fn, ctx, "header", &mut_header_fields[i], MUT_HEADER_OFF, MUT_HEADER_OFF,
			       size);
	for (unsigned l = 0; l < 8; l += l < 3 ? 1 : 4)
		for (unsigned i = 0; i < MUT_COUNT(mut_locator_fields); i++) {
			uint64_t at = MUT_HEADER_OFF + 576 + 24u * l;
			char where[32];

			snprintf(where, sizeof(where), "locator %u", l);
			mut_emit_field(fn, ctx, where, &mut_locator_fields[i], at, at, size);
		}
	for (unsigned i = 0; i < MUT_COUNT(mut_batmap_fields); i++)
		mut_emit_field(fn, ctx, "batmap", &mut_batmap_fields[i], batmap, batmap, size);
	mut_each_bat(fn, ctx, file, 4);
}

/* ---- images to mutate ---- */

#define MUT_DISK_BYTES (64ull << 20)

/* Writes one pattern sector into each of a few blocks and closes cleanly. */
static MEM_UNUSED int mut_fill(struct mem_file *f, const struct image_format *format)
{
	struct backing *b = mem_open(f, BACKING_WRITE);
	struct chain c = {0};
	unsigned char sector[4096];
	int ret = format->open(b, &c.leaf, NULL);

	if (ret) {
		b->ops->close(b);
		return ret;
	}
	memset(sector, 0x5a, sizeof(sector));
	c.size_bytes = c.leaf->size_bytes;
	ret = c.leaf->ops->begin_writing(c.leaf, NULL);
	for (uint64_t block = 0; block < 4 && !ret; block++) /* the third is written whole: a full block */
		for (uint64_t off = 0; off < (block == 2 ? 2u << 20 : 4096u) && !ret; off += 4096)
			ret = block == 3 ? 0
					 : chain_write(&c, WRITE_DATA, (block * 2 << 20) + off, sector,
						       sizeof(sector), NULL);
	if (!ret)
		ret = image_run_job(c.leaf, JOB_COMMIT, NULL);
	if (!ret)
		ret = image_run_job(c.leaf, JOB_CLOSE, NULL);
	c.leaf->ops->close(c.leaf);
	return ret;
}

static MEM_UNUSED struct mem_file *mut_make(const char *path, enum vhd_kind kind, struct mem_file *parent)
{
	struct vhd_create_opts opts = {
	    .kind = kind, .size_bytes = MUT_DISK_BYTES, .parent_path = "./parent.vhd"};
	struct mem_file *f = mem_file_new(path, 0);
	struct backing *b, *pb;
	struct image *img = NULL;
	int ret = 0;

	if (kind == VHD_KIND_FIXED)
		opts.size_bytes = 4u << 20;
	if (parent) {
		pb = mem_open(parent, 0);
		ret = vhd_format.open(pb, &img, NULL);
		assert(!ret);
		opts.parent = img;
	}
	memset(opts.uuid, 0x11 * (int)kind, 16);
	b = mem_open(f, BACKING_WRITE);
	if (!ret)
		ret = vhd_create(b, &opts, NULL);
	b->ops->close(b);
	if (img)
		img->ops->close(img);
	if (!ret && kind != VHD_KIND_FIXED)
		ret = mut_fill(f, &vhd_format);
	assert(!ret);
	if (ret)
		abort();
	return f;
}

#endif
