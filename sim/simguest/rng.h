/*
 * The random numbers of the load: splitmix64, one state per disk, so that a seed repeats a run.
 */
#ifndef SIMGUEST_RNG_H
#define SIMGUEST_RNG_H

#include <stdint.h>

/* The finaliser alone: a good mix of 64 bits into 64. */
static inline uint64_t mix64(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static inline uint64_t rng_next(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15ull;
	return mix64(*state);
}

/* Below `bound`, which must not be 0. The bias of the modulo is far below anything a load can show. */
static inline uint64_t rng_below(uint64_t *state, uint64_t bound)
{
	return rng_next(state) % bound;
}

#endif
