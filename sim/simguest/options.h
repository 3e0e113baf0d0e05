/*
 * The command line as data: how to connect, which disks, which phases of load.
 */
#ifndef SIMGUEST_OPTIONS_H
#define SIMGUEST_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/simguest/abi.h"

#define MAX_DISKS  16u
#define MAX_PHASES 32u
#define MAX_EXTRA  16u
#define MAX_DEPTH  4096u
#define MAX_BS	   (4u << 20)

enum mix { MIX_READ, MIX_WRITE, MIX_TRIM, MIX_FLUSH, MIXES };

/* One run of load over a disk. Zero in ios, io_bytes and runtime_ms together: one pass over `size`. */
struct phase {
	char name[48];
	unsigned mix[MIXES]; /* weights */
	bool random, verify, overlap, unaligned, barrier, force_indirect, force_write;
	uint32_t bs_min, bs_max, iodepth;
	uint64_t offset, size; /* bytes; size 0: to the end */
	uint64_t io_bytes, ios;
	uint32_t runtime_ms, flush_every, think_us;
	uint32_t marks; /* a write at a random place after so many other requests; 0: none */
};

struct disk_spec {
	uint32_t devid;
	char *params; /* NULL: somebody else plugs it */
	const char *kind, *mode;
	char *extra[MAX_EXTRA]; /* "node=value" for the backend's directory */
	unsigned nextra;
};

struct options {
	const char *dir, *kind, *json, *state, *check_raw;
	const char *base;
	bool base_zero;
	const struct abi *abi;
	uint32_t domid, ring_order, queues, max_segments, cycles;
	uint32_t timeout_s, io_timeout_s;
	uint64_t seed;
	bool regrant, poll, no_indirect, own_padding_ok, expect_errors, expect_close, verify_only, abandon,
	    hold;
	struct phase defaults;
	bool have_load; /* some option of a plain load was given */
	struct phase phase[MAX_PHASES];
	unsigned nphases;
	struct disk_spec disk[MAX_DISKS];
	unsigned ndisks;
};

/* 0; 1: help was printed; -EINVAL: a sentence is on stderr. */
int options_parse(struct options *o, int argc, char **argv);
void options_free(struct options *o);

#endif
