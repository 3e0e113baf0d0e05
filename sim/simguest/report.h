/*
 * What a run has to say: a table for people on stderr, JSON for tools.
 */
#ifndef SIMGUEST_REPORT_H
#define SIMGUEST_REPORT_H

#include <stdint.h>

#include "sim/simguest/guest.h"
#include "sim/simguest/load.h"

/* All phases of all cycles; `results` has nruns * nvbds elements, one row of disks per run. */
struct report {
	const struct guest *g;
	uint32_t domid;
	struct phase_result *results;
	unsigned nruns;
	int exit_code;
};

void report_table(const struct report *r);

/* `path` "-": stdout. 0 or -errno. */
int report_json(const struct report *r, const char *path);

#endif
