/*
 * The flat image: guest offset = file offset. raw.c is the format; vhd_fixed.c adds a footer behind the same
 * bytes and shares everything else. Each function is the slot of that name in struct image_format.
 */
#ifndef FORMATS_RAW_H
#define FORMATS_RAW_H

#include "blkd/format.h"

struct raw_image {
	struct image img;
	uint64_t epoch_open, epoch_durable;
};

/* A flat image of size_bytes on the backing. NULL: no memory. */
struct raw_image *raw_new(const struct image_format *, struct backing *, uint64_t size_bytes);

void raw_close(struct image *);
void raw_map(const struct image *, const void *meta, uint64_t off_bytes, uint32_t len_bytes,
	     struct extent *out);
bool raw_owns(const struct image *, uint64_t off_bytes, uint64_t len_bytes);
const void *raw_meta_get(struct image *, uint64_t key);
int raw_meta_put(struct image *, uint64_t key, const void *buf, int res);
int raw_write_begin(struct image *, enum write_op, unsigned flags, uint64_t off_bytes, uint64_t len_bytes,
		    struct write_piece *);
void raw_write_end(struct image *, const struct write_piece *, int res);
int raw_job_begin(struct image *, enum job_kind, struct job *);
int raw_job_next(struct image *, struct job *, struct meta_act *, unsigned max);
void raw_job_done(struct image *, struct job *, const struct meta_act *, int res);
uint64_t raw_epoch_open(const struct image *);
uint64_t raw_epoch_durable(const struct image *);
int raw_dirty_replay(struct image *, const struct meta_record *, unsigned n, struct err *);
int raw_begin_writing(struct image *, struct err *);
uint64_t raw_generation(const struct image *);

#endif
