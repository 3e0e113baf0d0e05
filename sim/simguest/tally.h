/*
 * What went wrong on one disk, counted by kind, with the first sentences kept for the report.
 */
#ifndef SIMGUEST_TALLY_H
#define SIMGUEST_TALLY_H

#include <stdint.h>

#define TALLY_MESSAGES 16u

enum fault {
	FAULT_PROTOCOL, /* the backend broke blkif or xenbus */
	FAULT_VERIFY,	/* a sector held what it must not */
	FAULT_IO,	/* a request was answered with an error */
	FAULT_STALL,	/* no answer in time */
	FAULT_LOST,	/* the backend went away, or closed, in the middle */
	FAULTS,
};

struct tally {
	const char *who; /* the disk's name */
	uint64_t count[FAULTS];
	unsigned nmessages;
	char message[TALLY_MESSAGES][256];
};

const char *fault_name(enum fault kind);

/* Counts `n` faults; prints and keeps the sentence while there is room for more. */
void tally_add(struct tally *t, enum fault kind, uint64_t n, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* One line on stderr, "simguest: ...". */
void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
