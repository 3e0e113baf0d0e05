/*
 * Bytes on disk and on the wire: the only place that knows endianness. Loads and stores work at any
 * alignment. Also the few integer helpers that image code needs everywhere.
 */
#ifndef BLKD_BYTES_H
#define BLKD_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SECTOR_BYTES 512u

static inline uint16_t be16_load(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap16(v);
}

static inline uint32_t be32_load(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap32(v);
}

static inline uint64_t be64_load(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap64(v);
}

static inline void be16_store(void *p, uint16_t v)
{
	v = __builtin_bswap16(v);
	memcpy(p, &v, sizeof(v));
}

static inline void be32_store(void *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, sizeof(v));
}

static inline void be64_store(void *p, uint64_t v)
{
	v = __builtin_bswap64(v);
	memcpy(p, &v, sizeof(v));
}

static inline uint64_t u64_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t u64_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* `to` is a power of two; the caller knows that v + to does not overflow. */
static inline uint64_t round_up_u64(uint64_t v, uint64_t to)
{
	return (v + to - 1) & ~(to - 1);
}

static inline uint64_t round_down_u64(uint64_t v, uint64_t to)
{
	return v & ~(to - 1);
}

static inline bool is_pow2_u64(uint64_t v)
{
	return v && !(v & (v - 1));
}

static inline bool bytes_are_zero(const void *p, size_t n)
{
	const unsigned char *b = p;

	return !n || (!b[0] && !memcmp(b, b + 1, n - 1));
}

#endif
