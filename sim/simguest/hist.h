/*
 * Latency histogram: log-linear, 32 buckets an octave (3 % wide), nanoseconds, fixed size, no allocation.
 */
#ifndef SIMGUEST_HIST_H
#define SIMGUEST_HIST_H

#include <stdint.h>

#define HIST_SUB_BITS 5u
#define HIST_SUB      (1u << HIST_SUB_BITS)
#define HIST_OCTAVES  40u
#define HIST_BUCKETS  (HIST_OCTAVES * HIST_SUB)

struct hist {
	uint64_t n, sum_ns, min_ns, max_ns;
	uint64_t bucket[HIST_BUCKETS];
};

void hist_add(struct hist *h, uint64_t ns);

/* The upper edge of the bucket that holds the given quantile (in 1/1000: 999 = p99.9), never above the
 * maximum. 0 when empty. */
uint64_t hist_quantile_ns(const struct hist *h, unsigned permille);

uint64_t hist_mean_ns(const struct hist *h);

#endif
