/*
 * The trees that the crash test works on: a writable leaf over nothing, a VHD, a raw file, or both, as bytes,
 * with what each sector of the disk reads. Built by hand, so that block sizes, alignments and gaps occur that
 * our own tools would not write.
 *
 * Every leaf has block 1 half full and block 2 full; every VHD parent block 1 and 2 full and block 3 in
 * stripes. All else is free.
 */
#include "tests/crash/crash.h"

#include <stdlib.h>
#include <string.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

#define TRAITS(l, dur, zero, fixed, falloc)                                                                  \
	{                                                                                                    \
		.logical_bytes = (l), .physical_bytes = 4096, .mem_align_bytes = 512,                        \
		.durable_at_completion = (dur), .zeroes_on_allocate = (zero), .can_fallocate = (falloc),     \
		.can_punch = true, .fixed_size = (fixed), .fence = FENCE_FILE_LOCK,                          \
	}

const struct tree_cfg tree_cfgs[] = {
    {"back-over-vhd", TREE_OVER_VHD, 16 * KIB, 12, 0, false, WRITE_BACK,
     TRAITS(512, false, true, false, true), 0},
    {"back-alone", TREE_ALONE, 16 * KIB, 12, 4096, false, WRITE_BACK, TRAITS(512, false, true, false, true),
     0},
    {"auto-over-raw", TREE_OVER_RAW, 16 * KIB, 12, 0, false, WRITE_AUTO,
     TRAITS(512, false, true, false, true), 0},
    {"back-4k-over-both", TREE_OVER_BOTH, 16 * KIB, 12, 8192, false, WRITE_BACK,
     TRAITS(4096, false, true, false, true), 0},
    {"durable-no-zeros", TREE_OVER_VHD, 16 * KIB, 12, 0, false, WRITE_BACK,
     TRAITS(512, true, false, false, false), 0},
    {"through-over-vhd", TREE_OVER_VHD, 16 * KIB, 12, 0, false, WRITE_THROUGH,
     TRAITS(512, false, true, false, true), 0},
    {"back-no-zeros", TREE_OVER_RAW, 16 * KIB, 12, 0, false, WRITE_BACK,
     TRAITS(512, false, false, false, false), 0},
    {"foreign-4k", TREE_OVER_VHD, 16 * KIB, 12, 0, true, WRITE_BACK, TRAITS(4096, false, true, false, true),
     0},
    {"device-room", TREE_OVER_VHD, 16 * KIB, 12, 0, false, WRITE_BACK, TRAITS(512, false, false, true, false),
     14 * 24 * KIB},
    {"back-2m", TREE_OVER_VHD, 2 * MIB, 9, 0, false, WRITE_BACK, TRAITS(512, false, true, false, true), 0},
};
const unsigned n_tree_cfgs = sizeof(tree_cfgs) / sizeof(tree_cfgs[0]);

/* ---- helpers of all parts ---- */

uint64_t crash_mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

uint64_t crash_rnd(uint64_t *state)
{
	return crash_mix(*state += 0x9e3779b97f4a7c15u);
}

void *crash_need(void *p)
{
	if (!p) {
		fprintf(stderr, "crashtest: no memory\n");
		abort();
	}
	return p;
}

void sector_fill(uint8_t out[512], uint64_t word)
{
	for (unsigned i = 0; i < 512; i += 8)
		memcpy(out + i, &word, 8);
}

uint64_t sector_word(const uint8_t sector[512])
{
	uint64_t word;

	memcpy(&word, sector, 8);
	return memcmp(sector, sector + 8, 504) ? WORD_GARBAGE : word;
}

/* ---- building ---- */

struct build {
	uint8_t *bytes;
	uint64_t used, cap;
};

static void put(uint8_t *p, uint64_t v, unsigned bytes)
{
	while (bytes--) {
		p[bytes] = (uint8_t)v;
		v >>= 8;
	}
}

static uint8_t *room(struct build *b, uint64_t off, uint64_t n)
{
	if (off + n > b->cap) {
		uint64_t cap = (off + n) * 2;

		b->bytes = crash_need(realloc(b->bytes, cap));
		memset(b->bytes + b->cap, 0, cap - b->cap);
		b->cap = cap;
	}
	if (off + n > b->used)
		b->used = off + n;
	return b->bytes + off;
}

static void seal_sum(uint8_t *p, size_t n, size_t field)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += p[i];
	put(p + field, ~sum, 4);
}

static void make_uuid(uint8_t out[16], unsigned layer)
{
	for (unsigned i = 0; i < 16; i++)
		out[i] = (uint8_t)(0x10 + layer * 16 + i);
}

static void make_footer(uint8_t *f, const struct tree_cfg *c, unsigned layer, bool diff)
{
	uint64_t size = (uint64_t)c->block_bytes * c->n_blocks - c->cut_bytes;

	memcpy(f, "conectix", 8);
	put(f + 8, 2, 4);
	put(f + 12, 0x10000, 4);
	put(f + 16, 512, 8);
	put(f + 24, 0x2a000000, 4);
	memcpy(f + 28, c->foreign ? "win " : "tap", c->foreign ? 4 : 3);
	put(f + 32, c->foreign ? 0x60001 : 0x10003, 4);
	put(f + 40, size, 8);
	put(f + 48, size, 8);
	put(f + 56, 3, 2);
	f[58] = 4;
	f[59] = 17;
	put(f + 60, diff ? 4 : 3, 4);
	make_uuid(f + 68, layer);
	f[85] = layer > 0; /* parents are hidden */
	seal_sum(f, 512, 64);
}

#define LOCATOR_OFF 3072u

static void make_header(struct build *b, const struct tree_cfg *c, const char *parent, bool parent_is_raw,
			unsigned layer)
{
	uint8_t *h = room(b, 512, 1024);
	size_t n = parent ? strlen(parent) : 0;

	memcpy(h, "cxsparse", 8);
	memset(h + 8, 0xff, 8);
	put(h + 16, 1536, 8);
	put(h + 24, 0x10000, 4);
	put(h + 28, c->n_blocks, 4);
	put(h + 32, c->block_bytes, 4);
	if (parent) {
		if (!parent_is_raw)
			make_uuid(h + 40, layer + 1);
		for (size_t i = 2; i < n; i++) /* without "./" */
			h[64 + (i - 2) * 2 + 1] = (uint8_t)parent[i];
		put(h + 576, 0x57327275, 4); /* W2ru */
		put(h + 580, 512, 4);
		put(h + 584, n * 2, 4);
		put(h + 592, LOCATOR_OFF, 8);
	}
	seal_sum(h, 1024, 36);
	for (size_t i = 0; i < n; i++)
		room(b, LOCATOR_OFF, 512)[i * 2] = (uint8_t)parent[i];
}

static bool sector_present(unsigned layer, unsigned block, uint64_t s, uint64_t per_block)
{
	switch (block) {
	case 1:
		return layer > 0 || s >= per_block / 2;
	case 2:
		return true;
	case 3:
		return layer > 0 && s / 3 % 2;
	case 8:
		return layer > 1;
	default:
		return false;
	}
}

static void make_block(struct build *b, const struct tree_cfg *c, unsigned layer, unsigned block)
{
	uint64_t per_block = c->block_bytes / 512, at = b->used;
	uint64_t n = (uint64_t)c->n_blocks * per_block - c->cut_bytes / 512;

	if (!c->foreign || layer)
		at = (at + 512 + 4095) / 4096 * 4096 - 512;
	room(b, at, 512 + c->block_bytes);
	put(b->bytes + 1536 + 4 * block, at / 512, 4);
	for (uint64_t s = 0; s < per_block; s++) {
		uint64_t lba = block * per_block + s;

		if (!sector_present(layer, block, s, per_block) || lba >= n)
			continue;
		b->bytes[at + s / 8] |= (uint8_t)(0x80 >> (s % 8));
		sector_fill(b->bytes + at + 512 + s * 512, word_of(WORD_ID_LAYER + layer, lba));
	}
}

static void make_batmap(struct build *b, const struct tree_cfg *c)
{
	uint64_t size = (uint64_t)c->block_bytes * c->n_blocks - c->cut_bytes;
	uint8_t *h = room(b, 2048, 512), *map = room(b, 2560, 512);
	uint32_t sum = 0;

	h = b->bytes + 2048;
	memcpy(h, "tdbatmap", 8);
	put(h + 8, 2560, 8);
	put(h + 16, 1, 4);
	put(h + 20, 0x10002, 4);
	map[0] = 0x20; /* block 2 */
	for (unsigned i = 0; i < 512 && (size >> 24); i++)
		sum += map[i];
	put(h + 24, ~sum, 4);
	memcpy(h + 496, "blkdgen1", 8);
	put(h + 504, 7, 8);
}

static void make_vhd(struct build *b, const struct tree_cfg *c, unsigned layer, const char *parent,
		     bool parent_is_raw)
{
	uint8_t footer[512] = {0};

	make_footer(footer, c, layer, parent != NULL);
	memcpy(room(b, 0, 512), footer, 512);
	make_header(b, c, parent, parent_is_raw, layer);
	memset(room(b, 1536, 512), 0xff, 512);
	if (!c->foreign)
		make_batmap(b, c);
	room(b, LOCATOR_OFF, 512);
	for (unsigned block = 0; block < c->n_blocks; block++)
		if (block == 1 || block == 2 || (layer && block == 3) || (layer > 1 && block == 8))
			make_block(b, c, layer, block);
	if (!layer && c->room_bytes) {
		uint64_t at = b->used, seed = 99;

		room(b, at, c->room_bytes);
		for (uint64_t i = 0; i < c->room_bytes; i++)
			b->bytes[at + i] = (uint8_t)crash_rnd(&seed);
	}
	/* Where sectors are larger, the file ends on one of them; the footer is its last 512 bytes. */
	if (c->traits.logical_bytes > 512)
		room(b, 0, (b->used + 512 + 4095) / 4096 * 4096 - 512);
	memcpy(room(b, b->used, 512), footer, 512);
}

static void make_raw(struct build *b, const struct tree_cfg *c, unsigned layer)
{
	uint64_t n = (uint64_t)c->block_bytes / 512 * c->n_blocks - c->cut_bytes / 512;

	for (uint64_t lba = 0; lba < n; lba++)
		if (lba / 5 % 4)
			sector_fill(room(b, lba * 512, 512), word_of(WORD_ID_LAYER + layer, lba));
	room(b, n * 512 - 512, 512);
}

/* ---- trees ---- */

bool tree_block_allocated(unsigned block)
{
	return block == 1 || block == 2;
}

static void keep(struct tree *t, unsigned i, const char *path, struct build *b)
{
	size_t n = (size_t)((b->used + 4095) / 4096);

	room(b, 0, n * 4096);
	t->path[i] = path;
	t->bytes[i] = b->bytes;
	t->pages[i] = crash_need(malloc(n * sizeof(uint8_t *)));
	for (size_t p = 0; p < n; p++)
		t->pages[i][p] = b->bytes + p * 4096;
}

static void read_initial(struct tree *t)
{
	const struct vref *chain[MAX_DEPTH];
	struct vref leaf;
	char why[256];
	uint8_t sector[512];

	for (unsigned i = 0; i < t->depth; i++) {
		struct vref_bytes f = {t->file_size[i], t->pages[i]};
		struct vref *v = i ? &t->parent[i] : &leaf;

		chain[i] = v;
		if (strstr(t->path[i], ".raw")) {
			vref_open_raw(v, &f);
		} else if (!vref_open(v, &f, VREF_OPEN, why, sizeof(why))) {
			fprintf(stderr, "crashtest: the tree %s is wrong at its start: %s: %s\n",
				t->cfg->name, t->path[i], why);
			abort();
		}
	}
	t->n_sectors = leaf.size / 512;
	t->initial = crash_need(calloc(t->n_sectors, sizeof(uint64_t)));
	for (uint64_t lba = 0; lba < t->n_sectors; lba++) {
		vref_read(chain, t->depth, lba, sector);
		t->initial[lba] = sector_word(sector);
	}
}

struct tree *tree_make(const struct tree_cfg *c)
{
	static const char *const parent_name[] = {NULL, "./golden.vhd", "./base.raw", "./golden.vhd"};
	struct tree *t = crash_need(calloc(1, sizeof(*t)));
	bool over_vhd = c->parents == TREE_OVER_VHD || c->parents == TREE_OVER_BOTH;
	struct build b = {0};

	t->cfg = c;
	make_vhd(&b, c, 0, parent_name[c->parents], c->parents == TREE_OVER_RAW);
	t->file_size[t->depth] = b.used;
	keep(t, t->depth++, "/m/leaf.vhd", &b);
	if (over_vhd) {
		b = (struct build){0};
		make_vhd(&b, c, 1, c->parents == TREE_OVER_BOTH ? "./base.raw" : NULL, true);
		t->file_size[t->depth] = b.used;
		keep(t, t->depth++, "/m/golden.vhd", &b);
	}
	if (c->parents == TREE_OVER_RAW || c->parents == TREE_OVER_BOTH) {
		b = (struct build){0};
		make_raw(&b, c, t->depth);
		t->file_size[t->depth] = b.used;
		keep(t, t->depth++, "/m/base.raw", &b);
	}
	read_initial(t);
	return t;
}

void tree_free(struct tree *t)
{
	for (unsigned i = 0; i < t->depth; i++) {
		free(t->bytes[i]);
		free(t->pages[i]);
	}
	free(t->initial);
	free(t);
}
