/*
 * Reading a VHD's metadata: the steps of an open, private to formats/. Control path, blocking. Everything in
 * the file is untrusted.
 */
#ifndef FORMATS_VHD_VHD_READ_H
#define FORMATS_VHD_VHD_READ_H

#include "blkd/backing.h"
#include "blkd/err.h"
#include "formats/vhd/layout.h"

struct vhd;

/* The sectors at both ends of a file that may be a VHD. */
struct vhd_ends {
	uint64_t file_bytes;
	uint64_t back_off;	/* where the trailing footer starts, or should */
	uint32_t back_bytes;	/* 512, or 511 for a short one */
	bool front_ok, back_ok; /* parses as a footer */
	bool same;		/* front_ok, and the trailing one equals it byte for byte */
	struct vhd_footer_info front, back;
	struct err front_err, back_err; /* why not */
	unsigned char front_raw[VHD_FOOTER_BYTES], back_raw[VHD_FOOTER_BYTES];
};

/* Fails only if the file cannot be read, or is too small to be a VHD. */
int vhd_ends_read(struct backing *, struct vhd_ends *, struct err *);

/* Fills v->bat: entries within the file and clear of headers and of each other. */
int vhd_bat_read(struct vhd *, struct err *);

/* Fills the batmap's fields and full[]. A batmap that cannot be believed is ignored and noted; fails only on
 * I/O errors and memory. */
int vhd_batmap_read(struct vhd *, struct err *);

/* Fills the image's parent fields from header and locators of a differencing disk. */
int vhd_parent_read(struct vhd *, struct err *);

/* vhd.c: the slots of struct image_format */
int vhd_open(struct backing *, struct image **, struct err *);
void vhd_close(struct image *);

#endif
