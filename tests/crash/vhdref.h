/*
 * The judge: an independent, strict, minimal reader of VHD trees from plain bytes, after the VHD
 * specification 1.0 and blktap's extensions (hidden, batmap). Whatever it dislikes is a fault of what wrote
 * the image. It shares no code and no structure with what it judges, is slow where that is simpler, and knows
 * only what the crash tests need: dynamic and differencing images, over any number of parents, of which the
 * last may be raw.
 */
#ifndef TESTS_CRASH_VHDREF_H
#define TESTS_CRASH_VHDREF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vref_bytes { /* a file: 4096-byte pages, NULL reads zero */
	uint64_t size;
	const uint8_t *const *page;
};

enum vref_close {
	VREF_CUT,   /* after a crash: the trailing footer may be missing or old */
	VREF_OPEN,  /* opened for writing: trailing footer in place */
	VREF_CLEAN, /* closed: also no slack behind the last block but less than 4096 bytes */
};

struct vref {
	struct vref_bytes f;
	bool raw;
	bool differencing;
	uint64_t size; /* of the disk */
	uint32_t block, n_blocks;
	uint64_t bat_off;
	uint64_t batmap_off;  /* 0: none that is to be believed */
	uint32_t batmap_bits; /* how many of its bits the checksum covers */
	uint8_t uuid[16], parent_uuid[16];
};

/* Reads and judges one image. false: why says what and where. */
bool vref_open(struct vref *, const struct vref_bytes *, enum vref_close, char *why, size_t n);
void vref_open_raw(struct vref *, const struct vref_bytes *);

/* 512 bytes of the tree: chain[0] is the leaf. Beyond a parent's end reads zero. */
void vref_read(const struct vref *const *chain, unsigned depth, uint64_t sector, uint8_t out[512]);

#endif
