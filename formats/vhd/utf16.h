/* File names between UTF-8 and UTF-16, as VHD headers hold them. Pure; strict in both directions. */
#ifndef FORMATS_VHD_UTF16_H
#define FORMATS_VHD_UTF16_H

#include <stdbool.h>
#include <stddef.h>

/* Decodes len bytes, up to the first NUL unit, which only NULs may follow. Returns the length of the string
 * in out (NUL-terminated), or -EILSEQ (odd length, lone surrogate, control character, something after a NUL),
 * -ENAMETOOLONG. */
int utf16_to_utf8(const unsigned char *in, size_t len_bytes, bool big_endian, char *out, size_t room_bytes);

/* Encodes a NUL-terminated string, without the NUL. Returns bytes, or -EILSEQ (no UTF-8, or a control
 * character), -ENAMETOOLONG. */
int utf8_to_utf16(const char *in, bool big_endian, unsigned char *out, size_t room_bytes);

/* Is this a file name that we would print and pass on: valid UTF-8 without control characters? */
bool utf8_is_name(const char *s, size_t len_bytes);

#endif
