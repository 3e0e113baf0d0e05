/* Sector bitmaps: one bit a sector, most significant bit first, 512 bytes for every legal block size. Pure.
 */
#ifndef FORMATS_VHD_BITS_H
#define FORMATS_VHD_BITS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define VHD_BITS_BYTES 512u

static inline bool vhd_bit(const unsigned char *bits, uint32_t i)
{
	return bits[i >> 3] >> (7 - (i & 7)) & 1;
}

static inline void vhd_bits_set(unsigned char *bits, uint32_t first, uint32_t n)
{
	uint32_t end = first + n;

	for (; first < end && first & 7; first++)
		bits[first >> 3] |= (unsigned char)(0x80 >> (first & 7));
	if (first >= end)
		return;
	memset(bits + (first >> 3), 0xff, (end - first) >> 3);
	for (first += (end - first) & ~7u; first < end; first++)
		bits[first >> 3] |= (unsigned char)(0x80 >> (first & 7));
}

/* How many bits from `first` on, n at most, equal the first one? n > 0. */
static inline uint32_t vhd_bits_run(const unsigned char *bits, uint32_t first, uint32_t n, bool *set)
{
	uint32_t i = first, end = first + n;
	unsigned char same = (*set = vhd_bit(bits, first)) ? 0xff : 0;

	while (i < end) {
		uint64_t word;

		if (!(i & 63) && end - i >= 64) {
			memcpy(&word, bits + (i >> 3), sizeof(word));
			if (word == (*set ? UINT64_MAX : 0)) {
				i += 64;
				continue;
			}
		}
		if (!(i & 7) && end - i >= 8 && bits[i >> 3] == same)
			i += 8;
		else if (vhd_bit(bits, i) == *set)
			i++;
		else
			break;
	}
	return i - first;
}

static inline bool vhd_bits_all(const unsigned char *bits, uint32_t first, uint32_t n)
{
	bool set;

	return vhd_bits_run(bits, first, n, &set) == n && set;
}

static inline void vhd_bits_or(unsigned char *to, const unsigned char *from)
{
	for (unsigned i = 0; i < VHD_BITS_BYTES; i++)
		to[i] |= from[i];
}

#endif
