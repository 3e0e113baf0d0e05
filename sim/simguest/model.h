/*
 * What each sector of a disk may hold.
 *
 * Every write and every trim gets a generation, a number that only grows, when it is issued. A written
 * sector's content is a function of (seed, sector, generation), so whoever reads it can tell which write it
 * came from. Per sector the model keeps
 * - lo: the newest generation that is certain, a write that was answered OK (0: the base, what the disk held
 *   before us);
 * - hi: the newest generation that was tried;
 * - trim: the newest generation that was a trim (0: none).
 *
 * A read may find: any of our generations in [lo, hi]; the base, if lo is 0; zeros, if trim >= lo and trim is
 * not 0. So an unanswered or failed write means "old or new", a trimmed sector is "what it was, or zero"
 * until it is rewritten, and a generation older than lo is never right again: that would be a lost write, or
 * a parent uncovered by a discard. A trimmed sector that was once seen as zero must stay zero: then lo
 * becomes the trim's own generation.
 *
 * Generations in [lo, hi] other than those two were tried on this very sector too (the content names the
 * sector), so a range loses no strictness.
 */
#ifndef SIMGUEST_MODEL_H
#define SIMGUEST_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SECTOR_BYTES 512u
#define MODEL_CHUNK  4096u /* sectors whose entries are allocated together */

enum base_kind {
	BASE_ANY,  /* never-written sectors may hold anything */
	BASE_ZERO, /* ... are zero */
	BASE_FILE, /* ... are the bytes of a raw image, zero behind its end */
};

struct expect {
	uint32_t lo, hi, trim;
};

struct model {
	uint64_t sectors, seed;
	uint32_t next_gen;
	enum base_kind base_kind;
	const uint8_t *base;
	uint64_t base_bytes;
	struct expect **chunks; /* MODEL_CHUNK sectors each; NULL: all base */
	uint64_t nchunks;
};

/* How a read that is checked went. */
enum check_mode {
	CHECK_OK,     /* answered OK: every sector must be acceptable */
	CHECK_FAILED, /* answered with an error: the buffer may also still hold the poison it was filled with,
			 or zeros */
};

#define MODEL_POISON 0xa5

int model_create(struct model *m, uint64_t sectors, uint64_t seed);
void model_destroy(struct model *m);
/* `path` NULL: BASE_ZERO. */
int model_set_base(struct model *m, const char *path);
int model_resize(struct model *m, uint64_t sectors);

/* A fresh generation; 0 when 2^32 are used up. */
uint32_t model_next_gen(struct model *m);

/* -ENOMEM only. `tried` comes before the request is published, `landed` when a write was answered OK. */
int model_write_tried(struct model *m, uint64_t sector, uint32_t n, uint32_t gen);
int model_trim_tried(struct model *m, uint64_t sector, uint64_t n, uint32_t gen);
void model_write_landed(struct model *m, uint64_t sector, uint32_t n, uint32_t gen);

void model_fill(const struct model *m, uint8_t *buf, uint64_t sector, uint32_t n, uint32_t gen);
void model_snapshot(const struct model *m, uint64_t sector, uint32_t n, struct expect *out);

/*
 * Checks n sectors. `snap`: the state when the read was issued, for loads whose requests overlap; NULL
 * otherwise. Returns the number of sectors that are not acceptable; `why` gets a sentence about the first.
 */
uint32_t model_check(struct model *m, uint64_t sector, uint32_t n, const uint8_t *buf,
		     const struct expect *snap, enum check_mode mode, char *why, size_t why_len);

/* The state file (state.c): seed, generations, base kind; not the base itself. Replaces the file by rename.
 */
int model_save(const struct model *m, const char *path);
int model_load(struct model *m, const char *path);

/* The entry of a sector for writing; NULL without memory. For state.c. */
struct expect *model_entry(struct model *m, uint64_t sector);

/* What the bytes of a sector that is not acceptable look like, in words (diagnose.c). */
void model_diagnose(const struct model *m, uint64_t sector, const struct expect *e, const uint8_t *p,
		    char *why, size_t why_len);

/* pattern.c: the content function. A sector of ours starts with {tag ^ seed, sector, gen}. */
void pattern_fill(uint8_t *p, uint64_t seed, uint64_t sector, uint32_t gen);
bool pattern_is(const uint8_t *p, uint64_t seed, uint64_t sector, uint32_t gen);
/* True if the header says that (seed) wrote it; then *sector and *gen are what it claims to be. */
bool pattern_parse(const uint8_t *p, uint64_t seed, uint64_t *sector, uint64_t *gen);
bool sector_is_zero(const uint8_t *p);

#endif
