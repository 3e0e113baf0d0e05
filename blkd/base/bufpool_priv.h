/* The buffer pool's object, shared by its hot half (bufpool.c) and its setup (bufpool_setup.c). */
#ifndef BLKD_BASE_BUFPOOL_PRIV_H
#define BLKD_BASE_BUFPOOL_PRIV_H

#include "blkd/bufpool.h"

#include <stdatomic.h>

struct bufpool {
	unsigned char *region;
	uint64_t n_units;
	uint32_t n_words;
	_Alignas(64) _Atomic uint64_t used; /* units; of these four, only for stats */
	_Atomic uint64_t peak, gets, failures;
	_Alignas(64) _Atomic uint64_t words[]; /* 1: free; bits beyond n_units are never free */
};

/* Under asan, a use after put is caught like a use after free. The kernel's accesses are not. */
#if defined(__SANITIZE_ADDRESS__)
#define BUF_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BUF_ASAN 1
#endif
#endif
#ifdef BUF_ASAN
#include <sanitizer/asan_interface.h>
#define BUF_POISON(p, n)   __asan_poison_memory_region((p), (n))
#define BUF_UNPOISON(p, n) __asan_unpoison_memory_region((p), (n))
#else
#define BUF_POISON(p, n)   ((void)0)
#define BUF_UNPOISON(p, n) ((void)0)
#endif

#endif
