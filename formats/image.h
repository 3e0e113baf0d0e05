/* What image formats share, private to formats/. Control path. */
#ifndef FORMATS_IMAGE_H
#define FORMATS_IMAGE_H

#include "blkd/format.h"

#include <stdarg.h>

/* Fills ops, file and serial of an image that is otherwise zero. */
void image_init(struct image *, const struct image_format *, struct backing *);

/* Frees what the image owns but itself, and closes its backing. */
void image_release(struct image *);

/* Adds a sentence to img->notes; what does not fit is cut. */
void image_note(struct image *, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The same for any buffer of notes. */
void note_add(char *notes, size_t room_bytes, const char *fmt, va_list) __attribute__((format(printf, 3, 0)));

/* A name found in the image `child`: relative to the child's directory. 0 or -ENAMETOOLONG. Pure. */
int path_beside(const char *child, const char *name, char *out, size_t room_bytes);

/* Time of the last change, seconds since 2000, as VHD headers store it; 0: not a regular file. Blocking. */
uint32_t backing_mtime(const struct backing *);

/* Which kind of VHD is this, whatever its name? By its footers; refuses what is none or could be both.
 * Blocking. */
int format_find_vhd(struct backing *, const struct image_format **, struct err *);

#endif
