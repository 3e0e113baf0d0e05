/*
 * The load: phases of fio-like requests on all disks at once, each answer checked against the disk's model.
 */
#ifndef SIMGUEST_LOAD_H
#define SIMGUEST_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/simguest/hist.h"
#include "sim/simguest/options.h"

struct guest;

enum op_kind { OP_READ, OP_WRITE, OP_TRIM, OP_FLUSH, OP_BARRIER, OP_KINDS };

struct op_stats {
	uint64_t ops, bytes, errors;
	struct hist latency;
};

struct phase_result {
	char name[48];
	struct op_stats kind[OP_KINDS];
	uint64_t elapsed_ns, cpu_ns; /* cpu: of the whole guest, during the phase */
	uint64_t ring_requests, notifies, wakeups;
	bool no_trim, no_flush; /* asked for, but the backend does not offer it: left out */
	bool cut_short;
};

const char *op_kind_name(enum op_kind kind);

/* Pages of buffers that one disk needs for this phase. */
uint64_t load_pages(const struct phase *ph);

/*
 * Runs one phase on every connected disk; res has one element a disk. Faults go to the disks' tallies.
 * Negative errno: the phase cannot be run at all (told on stderr), or the domain is gone.
 */
int load_run(struct guest *g, const struct phase *ph, struct phase_result *res);

#endif
