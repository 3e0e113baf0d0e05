/*
 * Log-linear histogram. Values below 32 have a bucket each; above, the five bits behind the leading one
 * choose among 32 buckets of the octave. Values past the last octave (about 18 minutes) share the last
 * bucket: the maximum is kept apart.
 */
#include "sim/simguest/hist.h"

static unsigned bucket_of(uint64_t ns)
{
	unsigned lead, octave;

	if (ns < HIST_SUB)
		return (unsigned)ns;
	lead = 63u - (unsigned)__builtin_clzll(ns);
	octave = lead - HIST_SUB_BITS + 1;
	if (octave >= HIST_OCTAVES)
		return HIST_BUCKETS - 1;
	return octave * HIST_SUB + (unsigned)((ns >> (lead - HIST_SUB_BITS)) & (HIST_SUB - 1));
}

static uint64_t bucket_top(unsigned bucket)
{
	unsigned octave = bucket / HIST_SUB, sub = bucket % HIST_SUB;

	if (octave == 0)
		return sub;
	return (((uint64_t)HIST_SUB + sub + 1) << (octave - 1)) - 1;
}

void hist_add(struct hist *h, uint64_t ns)
{
	if (h->n == 0 || ns < h->min_ns)
		h->min_ns = ns;
	if (ns > h->max_ns)
		h->max_ns = ns;
	h->n++;
	h->sum_ns += ns;
	h->bucket[bucket_of(ns)]++;
}

uint64_t hist_quantile_ns(const struct hist *h, unsigned permille)
{
	uint64_t want, seen = 0;

	if (h->n == 0)
		return 0;
	want = (h->n * permille + 999) / 1000;
	if (want == 0)
		want = 1;
	for (unsigned i = 0; i < HIST_BUCKETS; i++) {
		seen += h->bucket[i];
		if (seen >= want) {
			uint64_t top = bucket_top(i);

			return top < h->max_ns ? top : h->max_ns;
		}
	}
	return h->max_ns;
}

uint64_t hist_mean_ns(const struct hist *h)
{
	return h->n ? h->sum_ns / h->n : 0;
}
