/*
 * A backing: where an image's bytes live. What an SR driver turns a VDI name into: a file descriptor plus
 * traits.
 *
 * Two ways in. The hot path goes through an I/O engine (io.h), which uses fd and traits. The control path
 * (opening, checking, repairing, creating an image) uses the calls below: synchronous, any offset, length and
 * buffer address (the implementation bounces what direct I/O would refuse). They block and are never made by
 * a device thread while it serves requests. Implementations: sr-drivers/file.c (files and block devices), the
 * replay engine's medium, memory images of tests and fuzzers.
 */
#ifndef BLKD_BACKING_H
#define BLKD_BACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct err;
struct backing;

enum backing_fence {
	FENCE_NONE,	 /* nothing keeps late I/O of a dead process out */
	FENCE_FILE_LOCK, /* flock: references of in-flight I/O keep the lock */
	FENCE_SESSION,	 /* a new login ends the old session's tasks */
};

struct backing_traits {
	uint32_t logical_bytes; /* offsets and lengths of direct I/O are multiples of it: 512 or 4096 */
	uint32_t
	    physical_bytes; /* what the storage says it writes without read-modify-write; >= logical_bytes */
	uint32_t mem_align_bytes;   /* buffer addresses of direct I/O */
	bool durable_at_completion; /* a completed write survives a power cut; flushes are free */
	bool zeroes_on_allocate;    /* a range that extend() added reads zero, after a power cut too */
	bool can_fallocate;	    /* extend() reserves space; else it only sets the size */
	bool can_punch;		    /* punch and zero-range work; else zeros are written */
	bool fixed_size;	    /* a block device: cannot be extended or truncated */
	enum backing_fence fence;
};

struct backing_ops {
	const char *name;
	/* Reads exactly len bytes into buf; what lies beyond the end of the file reads as zeros. 0 or -errno.
	 */
	int (*read)(struct backing *, uint64_t off_bytes, void *buf, size_t len_bytes);
	/* Writes exactly len bytes (short writes are continued). 0 or -errno. Not durable before flush(). */
	int (*write)(struct backing *, uint64_t off_bytes, const void *buf, size_t len_bytes);
	int (*flush)(struct backing *);
	int (*size)(struct backing *, uint64_t *size_bytes);
	/* Grows the file to size_bytes, with space reserved where can_fallocate. -ENOSPC: nothing was changed
	 * that matters. */
	int (*extend)(struct backing *, uint64_t size_bytes);
	int (*truncate)(struct backing *, uint64_t size_bytes);
	/* Makes the range read zero, without growing the file. */
	int (*zero)(struct backing *, uint64_t off_bytes, uint64_t len_bytes);
	/* Takes the exclusive fence (lock) for writing; waits up to wait_ms for a dying predecessor's I/O to
	 * end. -EBUSY: another holds it. */
	int (*fence)(struct backing *, unsigned wait_ms);
	void (*close)(struct backing *); /* frees the backing too */
};

struct backing {
	const struct backing_ops *ops;
	struct backing_traits traits;
	int fd; /* for engines that take descriptors; -1: none. Owned by the backing, O_CLOEXEC, O_DIRECT */
	bool writable;
	char *path;   /* as opened; for messages and for finding parents. Owned by the backing */
	dev_t dev_id; /* identity of the file, whatever its name */
	ino_t ino;
};

/* Opens backings by name for whoever walks a chain (chain_open) without knowing drivers. */
struct backing_opener {
	/* path is absolute or relative to the process; flags: BACKING_*. Fills *out or err. May block. */
	int (*open)(void *ctx, const char *path, unsigned flags, struct backing **out, struct err *);
	void *ctx;
};

#define BACKING_WRITE	 1u /* read-write; else read-only */
#define BACKING_BUFFERED 2u /* tests only: accept a file system that refuses O_DIRECT */
#define BACKING_CREATE	 4u /* create a new file, which must not exist (O_EXCL); implies BACKING_WRITE */

/* The driver for images by path: regular files and block devices (sr-drivers/file.c). ctx is unused. */
extern const struct backing_opener file_opener;

#endif
