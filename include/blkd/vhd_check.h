/*
 * Checking and repairing VHD files, and whole trees of them. Unlike open, which refuses at the first thing
 * that it would not serve, the checker goes on and names everything that it sees; it trusts nothing, so that
 * a forged file costs bounded memory (the BAT, twice) and O(n log n) time. It never writes.
 *
 * Repair plans first and writes then: the plan is a list of writes, so what a dry run prints is what a real
 * run does. It touches one file, never a parent, and nothing that would have to be guessed.
 *
 * Control path: all calls block. Any thread, one at a time per backing.
 */
#ifndef BLKD_VHD_CHECK_H
#define BLKD_VHD_CHECK_H

#include "blkd/backing.h"

#include <stdbool.h>
#include <stdint.h>

struct err;

enum check_severity {
	CHECK_WARNING, /* worth knowing; served as it is */
	CHECK_UNCLEAN, /* what a crash or another program left behind; blkd opens it and puts it right, other
			  tools may not */
	CHECK_ERROR,   /* damaged */
};

/* Codes are stable: scripts may rely on check_code(). Append only. */
enum check_id {
	CHECK_NO_FOOTER,
	CHECK_TYPE_AMBIGUOUS,
	CHECK_TYPE_REFUSED,
	CHECK_POISONED,
	CHECK_FOOTER_COOKIE,
	CHECK_FOOTER_CHECKSUM,
	CHECK_FOOTER_FEATURES,
	CHECK_FOOTER_VERSION,
	CHECK_FOOTER_DATA_OFFSET,
	CHECK_FOOTER_TIMESTAMP,
	CHECK_FOOTER_CREATOR,
	CHECK_FOOTER_SIZE,
	CHECK_FOOTER_GEOMETRY,
	CHECK_FOOTER_TYPE,
	CHECK_FOOTER_UUID,
	CHECK_FOOTER_SAVED,
	CHECK_FOOTER_HIDDEN,
	CHECK_FOOTER_RESERVED,
	CHECK_TAIL_MISSING,
	CHECK_TAIL_KILLED,
	CHECK_TAIL_DIFFERS,
	CHECK_FIXED_SHORT,
	CHECK_FIXED_LONG,
	CHECK_HEADER_COOKIE,
	CHECK_HEADER_CHECKSUM,
	CHECK_HEADER_VERSION,
	CHECK_HEADER_DATA_OFFSET,
	CHECK_HEADER_TABLE_OFFSET,
	CHECK_HEADER_BLOCK_SIZE,
	CHECK_HEADER_ENTRIES,
	CHECK_HEADER_RESERVED,
	CHECK_HEADER_PARENT,
	CHECK_META_OVERLAP,
	CHECK_META_BEYOND_END,
	CHECK_LOCATOR_CODE,
	CHECK_LOCATOR_ROOM,
	CHECK_LOCATOR_TEXT,
	CHECK_LOCATOR_NAME,
	CHECK_LOCATOR_NONE,
	CHECK_LOCATOR_RESERVED,
	CHECK_BLOCK_IN_META,
	CHECK_BLOCK_BEYOND_END,
	CHECK_BLOCK_CUT_SHORT,
	CHECK_BLOCK_OVERLAP,
	CHECK_BLOCK_BEYOND_SIZE,
	CHECK_BATMAP_CLOBBERED,
	CHECK_BATMAP_MISSING,
	CHECK_BATMAP_PLACE,
	CHECK_BATMAP_CHECKSUM,
	CHECK_BATMAP_UNALLOCATED,
	CHECK_BATMAP_BITMAP,
	CHECK_PARENT_MISSING,
	CHECK_PARENT_UUID,
	CHECK_PARENT_TIME,
	CHECK_PARENT_SIZE,
	CHECK_PARENT_CYCLE,
	CHECK_PARENT_DEPTH,
	CHECK_DEPTH_HIGH,
	CHECK_RAW_SIZE,
	CHECK_FOOTER_REFUSED,
	CHECK_HEADER_REFUSED,
	CHECK_IDS
};

struct check_finding {
	enum check_id id;
	const char *code; /* check_code(id) */
	enum check_severity severity;
	const char *path;
	uint64_t off_bytes;		/* in the file at path */
	const char *what;		/* what is wrong */
	const char *advice;		/* what to do about it */
	char expected[160], found[160]; /* may be empty */
};

/* Of each code at most this many findings a file are handed out; the last one says how many more there are.
 */
#define CHECK_SHOWN_PER_CODE 8u

typedef void check_progress(void *ctx, uint64_t done, uint64_t total);

struct check_opts {
	const char *format; /* "vhd", "vhd-fixed", "raw"; NULL: by what the footers say (in a tree: of the
			       leaf; .raw and .img are raw) */
	bool lenient;	    /* what foreign tools get away with only warns */
	bool bitmaps;	    /* read the bitmap of each block that the batmap calls full */
	int64_t now_s;	    /* Unix time that time stamps are held against; 0: the clock's */
	void (*found)(void *ctx,
		      const struct check_finding *); /* may be NULL; the finding is valid during the call */
	void *ctx;
	check_progress *progress; /* while bitmaps are read; may be NULL */
	void *progress_ctx;
};

struct check_result {
	uint32_t errors, unclean, warnings; /* all of them, shown or not */
	uint32_t files;
};

const char *check_code(enum check_id);		      /* "footer-checksum" */
const char *check_severity_name(enum check_severity); /* "error", "unclean", "warning" */

/* Checks one VHD file by itself. Adds to *result. 0: the check was made, whatever it found. -errno and a
 * sentence: it could not be made (I/O error, out of memory). The backing stays the caller's. */
int vhd_check(struct backing *, const struct check_opts *, struct check_result *, struct err *);

/* Checks the file at path and all its parents down to the root: each by itself; then that the parent is
 * there, has the uuid that the child names, a size that is told when it differs, that there is no cycle, and
 * the depth. */
int vhd_check_tree(const struct backing_opener *, unsigned backing_flags, const char *path,
		   const struct check_opts *, struct check_result *, struct err *);

/* ---- repair ---- */

struct repair_opts {
	const char *format;	  /* "vhd" or NULL. Fixed disks have nothing to repair them from */
	check_progress *progress; /* as in check_opts */
	void *progress_ctx;
	bool drop_bad_blocks; /* free BAT entries that point where no block can be; what they held is lost */
};

struct repair_write {
	uint64_t off_bytes;
	uint32_t len_bytes;
	unsigned char *data; /* owned by the plan */
	bool flush_before;   /* all earlier writes must be durable first */
	char why[192];
};

struct repair_lost { /* guest bytes that drop_bad_blocks gives up */
	uint64_t guest_off, len_bytes;
	uint32_t block;
};

struct repair_plan {
	struct repair_write *writes; /* in the order in which they are made */
	unsigned n_writes;
	struct repair_lost *lost; /* what is lost, or, without drop_bad_blocks, what would be */
	unsigned n_lost;
	char notes[1024]; /* what cannot be repaired, and why; sentences with "; " between */
};

/* Reads only. 0 and a plan, empty when there is nothing to do; -errno and a sentence when the file cannot be
 * understood at all (no footer to go by) or not be read. A plan is to be freed with vhd_repair_free(), after
 * a failure too. */
int vhd_repair_plan(struct backing *, const struct repair_opts *, struct repair_plan *, struct err *);

/* Makes the plan's writes, in order, with flushes, and a flush at the end. A power cut after any of them
 * leaves an image that is no worse than before and that a second repair finishes. The caller fenced the
 * backing. */
int vhd_repair_apply(struct backing *, const struct repair_plan *, struct err *);
void vhd_repair_free(struct repair_plan *);

#endif
