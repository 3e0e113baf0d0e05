/*
 * The content of a sector that this guest wrote: 64 words, the first three a header {tag ^ seed, sector,
 * generation}, the others an arithmetic progression whose start is mixed from all three. So every byte is
 * determined, a stray sector names its origin, and filling or comparing is a loop that compilers turn into
 * vectors. The bytes do not compress as zeros and no two sectors are alike.
 */
#include "sim/simguest/model.h"

#include <string.h>

#include "sim/simguest/rng.h"

#define TAG    0x73696d6775657374ull /* "simguest" */
#define STRIDE 0x9e3779b97f4a7c15ull
#define WORDS  (SECTOR_BYTES / 8)
#define HEADER 3u

static uint64_t start_of(uint64_t seed, uint64_t sector, uint32_t gen)
{
	return mix64(mix64(seed + STRIDE) ^ (sector * STRIDE) ^ ((uint64_t)gen << 40) ^ gen);
}

void pattern_fill(uint8_t *p, uint64_t seed, uint64_t sector, uint32_t gen)
{
	uint64_t w[WORDS], start = start_of(seed, sector, gen);

	for (unsigned i = 0; i < WORDS; i++)
		w[i] = start + i * STRIDE;
	w[0] = TAG ^ seed;
	w[1] = sector;
	w[2] = gen;
	memcpy(p, w, sizeof(w));
}

bool pattern_is(const uint8_t *p, uint64_t seed, uint64_t sector, uint32_t gen)
{
	uint64_t w[WORDS], start = start_of(seed, sector, gen), diff;

	memcpy(w, p, sizeof(w));
	diff = (w[0] ^ TAG ^ seed) | (w[1] ^ sector) | (w[2] ^ gen);
	for (unsigned i = HEADER; i < WORDS; i++)
		diff |= w[i] ^ (start + i * STRIDE);
	return diff == 0;
}

bool pattern_parse(const uint8_t *p, uint64_t seed, uint64_t *sector, uint64_t *gen)
{
	uint64_t w[HEADER];

	memcpy(w, p, sizeof(w));
	*sector = w[1];
	*gen = w[2];
	return w[0] == (TAG ^ seed);
}

bool sector_is_zero(const uint8_t *p)
{
	uint64_t w[WORDS], any = 0;

	memcpy(w, p, sizeof(w));
	for (unsigned i = 0; i < WORDS; i++)
		any |= w[i];
	return any == 0;
}
