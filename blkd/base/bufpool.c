/* HOT PATH: no malloc, no log, no syscall, no lock. (get and put; create and destroy are control path, in
 * bufpool_setup.c) */
/*
 * The buffer pool: a bit per unit, 64 units to a word, 1: free. A buffer is a run of ones within one word,
 * taken by one compare-and-swap and given back by one OR. So there is no list whose head could be read stale,
 * and neighbours merge by themselves.
 *
 * First fit from the low end keeps the touched part of the region, which is what costs memory, at the peak of
 * use. A word is 4 MiB; the scan is over words, so a pool of 1 GiB that is full is told in 256 loads.
 *
 * Ordering: put's OR releases the buffer's last use, get's swap acquires it.
 */
#include "blkd/base/bufpool_priv.h"
#include "blkd/log.h"

/* Bit i of the answer: a run of n ones begins at bit i of w. n: 1 to 16. */
static uint64_t runs(uint64_t w, unsigned n)
{
	unsigned have = 1;

	/* Each step makes a set bit stand for a run as long as two overlapping ones of before. */
	while (have < n) {
		unsigned step = have < n - have ? have : n - have;

		w &= w >> step;
		have += step;
	}
	return w;
}

static void count_get(struct bufpool *p, unsigned n)
{
	uint64_t used = atomic_fetch_add_explicit(&p->used, n, memory_order_relaxed) + n;
	uint64_t peak = atomic_load_explicit(&p->peak, memory_order_relaxed);

	atomic_fetch_add_explicit(&p->gets, 1, memory_order_relaxed);
	while (used > peak && !atomic_compare_exchange_weak_explicit(
				  &p->peak, &peak, used, memory_order_relaxed, memory_order_relaxed))
		;
}

/* Takes a run of n out of the word; false: it has none. */
static bool word_take(_Atomic uint64_t *word, unsigned n, unsigned *at)
{
	uint64_t w = atomic_load_explicit(word, memory_order_relaxed), fit, mask;

	do {
		fit = runs(w, n);
		if (!fit)
			return false;
		*at = (unsigned)__builtin_ctzll(fit);
		mask = ((1ull << n) - 1) << *at;
	} while (!atomic_compare_exchange_weak_explicit(word, &w, w & ~mask, memory_order_acquire,
							memory_order_relaxed));
	return true;
}

bool bufpool_get(struct bufpool *p, uint64_t len_bytes, struct buf *out)
{
	unsigned n, at;

	if (!len_bytes || len_bytes > BUF_MAX_BYTES)
		return false;
	n = (unsigned)((len_bytes + BUF_UNIT_BYTES - 1) / BUF_UNIT_BYTES);
	for (uint32_t i = 0; i < p->n_words; i++) {
		if (!word_take(&p->words[i], n, &at))
			continue;
		count_get(p, n);
		*out = (struct buf){
		    .mem = p->region + ((uint64_t)i * 64 + at) * BUF_UNIT_BYTES,
		    .cap_bytes = n * BUF_UNIT_BYTES,
		};
		BUF_UNPOISON(out->mem, out->cap_bytes);
		return true;
	}
	atomic_fetch_add_explicit(&p->failures, 1, memory_order_relaxed);
	return false;
}

void bufpool_put(struct bufpool *p, struct buf *b)
{
	/* As numbers: what was never ours is found by the CHECK. */
	uint64_t off_bytes = (uintptr_t)b->mem - (uintptr_t)p->region, mask, old;
	unsigned n = b->cap_bytes / BUF_UNIT_BYTES, at = (unsigned)(off_bytes / BUF_UNIT_BYTES % 64);

	CHECK(b->mem && off_bytes < p->n_units * BUF_UNIT_BYTES && !(off_bytes % BUF_UNIT_BYTES));
	CHECK(n && n <= BUF_MAX_BYTES / BUF_UNIT_BYTES && at + n <= 64);
	BUF_POISON(b->mem, b->cap_bytes);
	mask = ((1ull << n) - 1) << at;
	atomic_fetch_sub_explicit(&p->used, n, memory_order_relaxed);
	old =
	    atomic_fetch_or_explicit(&p->words[off_bytes / BUF_UNIT_BYTES / 64], mask, memory_order_release);
	CHECK(!(old & mask));
	*b = (struct buf){0};
}

void bufpool_stats(const struct bufpool *p, struct bufpool_stats *s)
{
	*s = (struct bufpool_stats){
	    .cap_bytes = p->n_units * BUF_UNIT_BYTES,
	    .in_use_bytes = atomic_load_explicit(&p->used, memory_order_relaxed) * BUF_UNIT_BYTES,
	    .peak_bytes = atomic_load_explicit(&p->peak, memory_order_relaxed) * BUF_UNIT_BYTES,
	    .gets = atomic_load_explicit(&p->gets, memory_order_relaxed),
	    .failures = atomic_load_explicit(&p->failures, memory_order_relaxed),
	};
}
