/*
 * VHD images without a file, for tests of map() and of chains: random BAT, random bitmaps (noise, all, none,
 * runs), random blocks known full. sector_present() is the truth, read bit by bit.
 */
#ifndef TESTS_LIB_VHDFAKE_H
#define TESTS_LIB_VHDFAKE_H

#include "formats/vhd/vhd.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define FAKE_UNUSED __attribute__((unused))

static uint64_t rng_state = 1;

static FAKE_UNUSED uint32_t rng(uint32_t below)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return (uint32_t)(rng_state >> 32) % below;
}

/* An open image that needs no file: map() looks at nothing but these fields. */
struct fake {
	struct vhd v;
	unsigned char (*bitmaps)[512];
};

static FAKE_UNUSED void fake_make(struct fake *f, uint32_t block_bytes, uint64_t size_bytes)
{
	struct vhd *v = &f->v;
	uint32_t slot = block_bytes / 512 + 1, next = 15;

	memset(f, 0, sizeof(*f));
	v->img.ops = &vhd_format;
	v->img.size_bytes = size_bytes;
	v->block_bytes = block_bytes;
	v->block_shift = (uint32_t)__builtin_ctz(block_bytes);
	v->n_blocks = (uint32_t)((size_bytes + block_bytes - 1) / block_bytes);
	v->bat = malloc(v->n_blocks * sizeof(*v->bat));
	v->full = calloc(v->n_blocks / 8 + 1, 1);
	f->bitmaps = calloc(v->n_blocks, 512);
	assert(v->bat && v->full && f->bitmaps);
	for (uint32_t b = 0; b < v->n_blocks; b++) {
		uint32_t style = rng(5);

		v->bat[b] = rng(2) ? VHD_BAT_FREE : next;
		next += slot;
		for (unsigned i = 0; i < 512; i++)
			f->bitmaps[b][i] = (unsigned char)(style == 0	? rng(256)
							   : style == 1 ? 0xff
							   : style == 2 ? 0
							   : rng(8)	? 0xff
									: 0);
		if (v->bat[b] != VHD_BAT_FREE && style == 1 && rng(2))
			v->full[b >> 3] |= (uint8_t)(1u << (b & 7));
	}
}

static FAKE_UNUSED void fake_free(struct fake *f)
{
	free(f->v.bat);
	free(f->v.full);
	free(f->bitmaps);
}

static FAKE_UNUSED bool sector_present(const struct fake *f, uint64_t sector)
{
	uint32_t spb = f->v.block_bytes / 512, b = (uint32_t)(sector / spb), i = (uint32_t)(sector % spb);

	return f->v.bat[b] != VHD_BAT_FREE && f->bitmaps[b][i / 8] & 0x80 >> i % 8;
}

#endif
