/*
 * What a parent locator and the parent's name in a header say, to the open and to the checker. Private to
 * formats/vhd/. Pure; any thread. Text in a file is untrusted: what is not text is refused, never mended, and
 * the result is only ever tried as a path.
 */
#ifndef FORMATS_VHD_VHD_NAMES_H
#define FORMATS_VHD_VHD_NAMES_H

#include "formats/vhd/layout.h"

#include <stddef.h>

struct err;

#define VHD_LOCATOR_MAX_BYTES 8192u			  /* PATH_MAX in UTF-16 */
#define VHD_NAME_ROOM_BYTES   (VHD_LOCATOR_MAX_BYTES * 2) /* 3 for each two and one more are enough */

/* One locator's bytes (MacX, W2ku, W2ru) as a path of ours; empty: it means nothing here. 0, -EILSEQ,
 * -ENAMETOOLONG. */
int vhd_locator_text(uint32_t code, const unsigned char *raw, uint32_t len_bytes, char *out,
		     size_t room_bytes);
/* The parent's file name in the header (UTF-16BE, zero padded). Likewise. */
int vhd_name_text(const unsigned char raw[VHD_PARENT_NAME_BYTES], char *out, size_t room_bytes);

/* The same for the checker: -EINVAL and a sentence when it is no text, empty, or of another code. */
int vhd_locator_decode(uint32_t code, const unsigned char *raw, uint32_t len_bytes, char *out,
		       size_t room_bytes, struct err *);
int vhd_parent_name_decode(const unsigned char raw[VHD_PARENT_NAME_BYTES], char *out, size_t room_bytes,
			   struct err *);

#endif
