/*
 * UTF-8 and UTF-16, strictly: what comes out of a decoder here is a file name, goes to open() and into log
 * lines. So surrogates pair up, UTF-8 is shortest form, and control characters (a newline would break a log
 * line in two) are refused on both ways.
 */
#include "formats/vhd/utf16.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

static bool scalar_ok(uint32_t c)
{
	return c >= 0x20 && c != 0x7f && (c < 0xd800 || c > 0xdfff) && c <= 0x10ffff;
}

static uint32_t unit_load(const unsigned char *p, bool big_endian)
{
	return big_endian ? (uint32_t)p[0] << 8 | p[1] : (uint32_t)p[1] << 8 | p[0];
}

static void unit_store(unsigned char *p, uint32_t unit, bool big_endian)
{
	p[big_endian ? 0 : 1] = (unsigned char)(unit >> 8);
	p[big_endian ? 1 : 0] = (unsigned char)unit;
}

/* Length of the encoding; writes it if it fits in room. */
static size_t utf8_put(uint32_t c, char *out, size_t room)
{
	size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
	static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};

	if (n > room)
		return n;
	for (size_t i = n - 1; i > 0; i--, c >>= 6)
		out[i] = (char)(0x80 | (c & 0x3f));
	out[0] = (char)(lead[n] | c);
	return n;
}

/* Bytes consumed, or 0: not UTF-8. */
static size_t utf8_get(const unsigned char *p, size_t len, uint32_t *c)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t n = p[0] < 0x80 ? 1 : p[0] >> 5 == 6 ? 2 : p[0] >> 4 == 14 ? 3 : p[0] >> 3 == 30 ? 4 : 0;

	if (!n || n > len)
		return 0;
	*c = n == 1 ? p[0] : p[0] & (0x7fu >> n);
	for (size_t i = 1; i < n; i++) {
		if (p[i] >> 6 != 2)
			return 0;
		*c = *c << 6 | (p[i] & 0x3f);
	}
	return *c >= least[n] && scalar_ok(*c) ? n : 0;
}

bool utf8_is_name(const char *s, size_t len_bytes)
{
	size_t n;
	uint32_t c;

	for (size_t at = 0; at < len_bytes; at += n) {
		n = utf8_get((const unsigned char *)s + at, len_bytes - at, &c);
		if (!n)
			return false;
	}
	return true;
}

int utf16_to_utf8(const unsigned char *in, size_t len_bytes, bool big_endian, char *out, size_t room_bytes)
{
	size_t used = 0;

	if (len_bytes % 2)
		return -EILSEQ;
	for (size_t at = 0; at < len_bytes; at += 2) {
		uint32_t c = unit_load(in + at, big_endian);

		if (!c) {
			for (; at < len_bytes; at++)
				if (in[at])
					return -EILSEQ;
			break;
		}
		if (c >= 0xd800 && c <= 0xdbff && at + 4 <= len_bytes) {
			uint32_t low = unit_load(in + at + 2, big_endian);

			if (low < 0xdc00 || low > 0xdfff)
				return -EILSEQ;
			c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
			at += 2;
		}
		if (!scalar_ok(c))
			return -EILSEQ;
		used += utf8_put(c, out + used, room_bytes - used);
		if (used >= room_bytes)
			return -ENAMETOOLONG;
	}
	out[used] = 0;
	return (int)used;
}

int utf8_to_utf16(const char *in, bool big_endian, unsigned char *out, size_t room_bytes)
{
	size_t len = strlen(in), used = 0, n;

	for (size_t at = 0; at < len; at += n) {
		uint32_t c;

		n = utf8_get((const unsigned char *)in + at, len - at, &c);
		if (!n)
			return -EILSEQ;
		if (used + (c < 0x10000 ? 2 : 4) > room_bytes)
			return -ENAMETOOLONG;
		if (c >= 0x10000) {
			unit_store(out + used, 0xd800 + ((c - 0x10000) >> 10), big_endian);
			used += 2;
			c = 0xdc00 + ((c - 0x10000) & 0x3ff);
		}
		unit_store(out + used, c, big_endian);
		used += 2;
	}
	return (int)used;
}
