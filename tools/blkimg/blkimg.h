/*
 * blkimg: what its verbs share. One table of verbs (main.c) gives dispatch and help; one table of options
 * (args.c) parsing and help. A verb gets parsed arguments, fills *out when --json was given, and answers 0,
 * BLKIMG_DIFFERENT (findings, difference), or -errno with a sentence in *e. Only main.c prints errors and
 * decides exit codes: 0 fine, 1 failed or found something, 2 usage.
 */
#ifndef TOOLS_BLKIMG_BLKIMG_H
#define TOOLS_BLKIMG_BLKIMG_H

#include "blkd/disk.h"
#include "blkd/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define BLKIMG_FOUND 1 /* not an error: check found something, compare a difference */

enum opt_id {
	OPT_JSON = 1,
	OPT_FORMAT = 2,
	OPT_SRC_FORMAT = 4,
	OPT_PARENT = 8,
	OPT_HIDE = 16,
	OPT_RUN_DIR = 32,
	OPT_DRY_RUN = 64,
	OPT_DROP = 128,
	OPT_LENIENT = 256,
	OPT_BITMAPS = 512,
	OPT_EVEN_PARENT = 1024,
	OPT_BUFFERED = 2048,
	OPT_HELP = 4096,
};

struct args {
	unsigned set; /* enum opt_id */
	const char *format, *src_format, *parent, *run_dir;
	const char *word[3];
	unsigned n_words;
	unsigned backing_flags;
};

struct verb {
	const char *name, *words, *summary;
	unsigned min_words, max_words;
	unsigned opts;
	int (*run)(const struct args *, json_t *out, struct err *e);
};

/* args.c */
/* -EINVAL and a sentence: a usage error. */
int args_parse(const struct verb *, int argc, char **argv, struct args *, struct err *);
void args_print_options(unsigned opts);
/* "4096", "512K", "10G", "1T"; a multiple of 512. */
int size_parse(const char *text, uint64_t *size_bytes, struct err *);

/* chain.c: a chain opened read-only, and the walk over what it holds */
struct ro_chain {
	struct chain chain;
	struct image *img[CHAIN_MAX_DEPTH];
	unsigned n;
};
int ro_open(const char *path, const char *format, const struct args *, struct ro_chain **, struct err *);
void ro_close(struct ro_chain *);
/* The extent at off (never META or HOLE), at most len long, with what follows on it in the file joined. */
int extent_at(const struct chain *, uint64_t off_bytes, uint64_t len_bytes, struct extent *,
	      uint64_t *got_bytes, struct err *);

/* progress.c */
struct progress {
	const char *what;
	uint64_t total_bytes;
	uint64_t start_ns, last_ns;
	bool on, shown;
};
void progress_start(struct progress *, const char *what, uint64_t total_bytes);
void progress_at(struct progress *, uint64_t done_bytes);
void progress_end(struct progress *);
/* A check_progress: ctx is a struct progress; the total is taken from the call, in blocks. */
void progress_blocks(void *ctx, uint64_t done, uint64_t total);
/* Catches SIGINT and SIGTERM from now on, so that a half-made file can be removed. */
void interrupt_catch(void);
int interrupt_check(struct err *);

/* files.c: new files, and what may be written */
const char *format_of(const char *path, const char *named, struct err *);
/* Creates the file (refused if it is there) and opens it. */
int file_create(const char *path, const struct args *, struct backing **, struct err *);
/* Makes the directory entry durable. */
int dir_sync(const char *path, struct err *);
/* Path of `to` relative to the directory of `from`, "./name" or "../x/name". Both exist or will: directories
 * must. */
int path_relative(const char *from, const char *to, char *out, size_t room, struct err *);
/* Opens the image for writing once, if it is unclean or a journal has records for it, so that these are in it
 * before it becomes a parent. Refuses one that somebody has open for writing. */
int image_settle(const char *path, const char *format, const struct args *, struct err *);
int disk_open_rw(const char *path, const char *format, const struct args *, struct disk **, struct err *);

/* 1: a journal holds records for this image; 0: none; -errno: it cannot be told, or they are for another
 * state of it. The caller fenced it. */
int records_pending(const struct image *, const struct args *, struct err *);

/* "1.5 GiB" */
const char *human(uint64_t bytes, char out[32]);

int verb_create(const struct args *, json_t *, struct err *);
int verb_snapshot(const struct args *, json_t *, struct err *);
int verb_info(const struct args *, json_t *, struct err *);
int verb_map(const struct args *, json_t *, struct err *);
int verb_check(const struct args *, json_t *, struct err *);
int verb_repair(const struct args *, json_t *, struct err *);
int verb_convert(const struct args *, json_t *, struct err *);
int verb_compare(const struct args *, json_t *, struct err *);

#endif
