/* Private to the replay engine: the medium as its three files see it (replay.c: engine and time,
 * replay_medium.c: files and log, replay_backing.c: the synchronous way in). */
#ifndef BLKD_IO_REPLAY_H
#define BLKD_IO_REPLAY_H

#include "blkd/replay.h"

#define REPLAY_FAULTS 16u

struct replay_file {
	struct replay *replay;
	unsigned id;
	char *path;
	uint64_t size;
	size_t n_pages, cap_pages;
	uint8_t **page; /* NULL: zeros */
	uint8_t *owned; /* per page: ours to write and to free; else borrowed */
	struct backing_traits traits;
	unsigned opens;
	bool fenced;
};

struct replay_backing {
	struct backing base;
	struct replay_file *file;
	bool has_fence;
};

struct replay_chunk {
	struct replay_chunk *next;
	size_t used, size;
	uint8_t bytes[];
};

struct armed_fault {
	struct replay_fault f;
	unsigned seen;
};

/* What the fault plan and the shape decided about one operation, at its submission. */
struct replay_fate {
	int error;	     /* 0, or negative errno */
	uint64_t move_bytes; /* how much of it acts on the medium */
	uint64_t delay_ns;
};

struct replay {
	uint64_t seed, rng, now_ns, events;
	struct backing_traits traits;
	uint64_t capacity;
	struct replay_shape shape;
	struct replay_file **file;
	unsigned n_files, opens;
	struct list engines;
	bool recording;
	struct replay_rec *rec;
	size_t n_rec, cap_rec;
	struct replay_chunk *chunks;
	struct armed_fault fault[REPLAY_FAULTS];
	unsigned n_faults;
	uint64_t fault_hits;
	void (*on_event)(void *, uint64_t);
	void *on_event_ctx;
	struct backing_opener opener;
};

#define REPLAY_NO_REC SIZE_MAX

/* Logs the submission and decides its fate. data: what a WRITE carries. Fills *index for replay_finish. */
void replay_submit(struct replay *, struct replay_rec *, const void *data, struct replay_fate *,
		   size_t *index);
/* Acts on the medium, logs the completion, returns the result. buf: what a READ fills, a WRITE carries. */
int replay_finish(struct replay *, struct replay_rec *, void *buf, const struct replay_fate *, size_t index);

uint64_t replay_random(struct replay *);
struct replay_file *replay_file_at(const struct replay *, int id);
struct replay_file *replay_file_new(struct replay *, const char *path, int *error);
char *replay_normal_path(const char *path);
void replay_file_read(const struct replay_file *, uint64_t off_bytes, void *buf, uint64_t len_bytes);

extern const struct backing_ops replay_backing_ops;
int replay_open(void *ctx, const char *path, unsigned flags, struct backing **, struct err *);

#endif
