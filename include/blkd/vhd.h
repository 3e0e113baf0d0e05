/*
 * Making VHDs, and marking them as parents: what snapshot, create and convert need beyond struct
 * image_format. Control path, blocking.
 */
#ifndef BLKD_VHD_H
#define BLKD_VHD_H

#include <stdbool.h>
#include <stdint.h>

struct backing;
struct err;
struct image;

enum vhd_kind {
	VHD_KIND_FIXED = 2,
	VHD_KIND_DYNAMIC = 3,
	VHD_KIND_DIFFERENCING = 4
}; /* the numbers on disk */

struct vhd_create_opts {
	enum vhd_kind kind;
	uint64_t size_bytes; /* of the disk; 0 in a differencing one: the parent's. At most 2040 GiB */
	bool exact_size; /* else it is rounded up to 2 MiB, as other tools expect; a parent's size is never
			    rounded */
	unsigned char uuid[16]; /* all zero: a random one */

	/* Differencing only. The parent as opened (VHD of any kind, or raw), and the path to store for it:
	 * relative to the child's directory
	 * ("a.vhd", "./a.vhd", "../x/a.vhd"; stored under all codes, as vhd-util and sm do), or absolute.
	 * parent_path_absolute, if not NULL, is what goes under the code for absolute paths instead. UTF-8.
	 */
	const struct image *parent;
	const char *parent_path;
	const char *parent_path_absolute;
};

/* Writes a new, empty VHD onto a writable backing: an empty file, or a block device (whose old content at
 * both ends is made invalid first). Durable when it returns. A power cut before leaves nothing that opens, or
 * the whole image. The backing stays the caller's. -EINVAL, -EFBIG (size), -EEXIST (the file is not empty),
 * -ENOSPC (a device too small), -EIO ...: with a sentence. */
int vhd_create(struct backing *, const struct vhd_create_opts *, struct err *);

/* Sets or clears the mark "this is a parent" in the footers of an open VHD (fixed or not) that nobody is
 * writing; its backing must be writable. Durable when it returns; img->hidden follows. The trailing footer is
 * touched only if it equals the copy at offset 0. */
int vhd_set_hidden(struct image *, bool hidden, struct err *);

#endif
