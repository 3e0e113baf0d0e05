/*
 * A run from connect to close, once or several times.
 */
#ifndef SIMGUEST_SESSION_H
#define SIMGUEST_SESSION_H

#include "sim/simguest/guest.h"
#include "sim/simguest/report.h"

/* What main() exits with. */
enum { EXIT_GOOD, EXIT_FAULTS, EXIT_USAGE, EXIT_SETUP };

/* Plugs, connects, loads, closes; fills r->results and nruns. Returns an exit code. */
int session_run(struct guest *g, struct report *r);

/* --check-raw: compares a raw image with the model, without any simxen. Returns an exit code. */
int session_check_raw(const struct options *o);

#endif
