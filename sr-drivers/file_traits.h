/* What an opened file or block device can do. Private to the driver for images by path. */
#ifndef SR_DRIVERS_FILE_TRAITS_H
#define SR_DRIVERS_FILE_TRAITS_H

#include "blkd/backing.h"

struct err;
struct stat;

#define FILE_LOGICAL_MAX_BYTES 4096u

/* Fills *t for fd, whose fstat is *st. Reads at most one logical block, changes nothing. Control path,
 * blocks. 0, or -EOPNOTSUPP with a sentence: direct I/O there needs larger units than an image's sectors can
 * be moved in. */
int file_traits(int fd, const struct stat *st, const char *path, bool direct, struct backing_traits *t,
		struct err *);

#endif
