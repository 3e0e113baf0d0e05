/*
 * crashtest: records what the real device does with a disk, cuts the power or kills the process at every
 * moment, and checks what is left.
 *
 *   crashtest [--states N | --minutes M] [--seed S] [--from W] [--workload W [--state K]] [--until-red]
 *   crashtest --mutants                    false logs, then sources (run-mutants): all must be found
 *   crashtest --export DIR [--states N]    writes states for other programs to read (export.c)
 *
 * The last line is "crash: N states, N workloads, N failures"; before it stands what was covered. A failure's
 * line begins with the command that shows it alone. Exit 0: no failures. A run of 100,000 states or more that
 * begins with workload 0 sees every sequence and every directed workload.
 */
#include "blkd/clock.h"
#include "blkd/log.h"
#include "tests/crash/crash.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct options {
	struct explore_opts x;
	uint64_t states, minutes, from;
	int64_t workload;
	bool engine_mutants, until_red;
	const char *export_dir;
};

#define WHOLE_ROUND_STATES 100000u /* so many are promised to cover a round, but for its random part */

static bool parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
	    {"states", 1, NULL, 'n'},	  {"minutes", 1, NULL, 'm'},  {"seed", 1, NULL, 's'},
	    {"from", 1, NULL, 'f'},	  {"workload", 1, NULL, 'w'}, {"state", 1, NULL, 'k'},
	    {"budget", 1, NULL, 'b'},	  {"mutants", 0, NULL, 'M'},  {"until-red", 0, NULL, 'r'},
	    {"log-mutant", 1, NULL, 'l'}, {"export", 1, NULL, 'e'},   {NULL, 0, NULL, 0},
	};
	int c;

	*o = (struct options){.states = 100000,
			      .workload = -1,
			      .x = {.seed = 1, .budget = 80, .nested_of = 1000, .only_state = -1}};
	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		uint64_t v = optarg ? strtoull(optarg, NULL, 0) : 0;

		switch (c) {
		case 'n':
			o->states = v;
			break;
		case 'm':
			o->minutes = v;
			o->states = UINT64_MAX;
			break;
		case 's':
			o->x.seed = v;
			break;
		case 'f':
			o->from = v;
			break;
		case 'w':
			o->workload = (int64_t)v;
			o->x.budget = 1000000;
			o->x.verbose = true;
			break;
		case 'k':
			o->x.only_state = (int64_t)v;
			break;
		case 'b':
			o->x.budget = v;
			break;
		case 'M':
			o->engine_mutants = true;
			break;
		case 'r':
			o->until_red = true;
			break;
		case 'l':
			o->x.mutant = (int)v;
			break;
		case 'e':
			o->export_dir = optarg;
			o->x.budget = 3;
			break;
		default:
			return false;
		}
	}
	return optind == argc && o->x.mutant < LOG_MUTANTS;
}

/* A run of that many states from the beginning goes on until it has seen the fixed part of a round. */
static uint64_t promised(const struct options *o)
{
	bool whole = !o->from && !o->minutes && !o->export_dir && o->states >= WHOLE_ROUND_STATES;

	return whole ? N_DIRECTED + N_SEQUENCES : 0;
}

static void search(struct crash_host *host, const struct options *o, struct explore_result *res,
		   uint64_t *next)
{
	uint64_t until_ns = o->minutes ? clock_ns() + o->minutes * 60000000000u : UINT64_MAX, shown_ns = 0;
	bool tty = isatty(2);

	for (*next = o->from; (res->states < o->states || *next < promised(o)) && clock_ns() < until_ns &&
			      !(o->until_red && res->failures);
	     ++*next) {
		explore(host, *next, &o->x, res);
		if (res->failures >= 20)
			break;
		if (tty && clock_ns() - shown_ns > 200000000u) {
			shown_ns = clock_ns();
			fprintf(stderr,
				"\rcrash: workload %llu, %llu states (%llu kills, %llu in recovery), %llu "
				"failures ",
				(unsigned long long)*next, (unsigned long long)res->states,
				(unsigned long long)res->kills, (unsigned long long)res->nested,
				(unsigned long long)res->failures);
		}
	}
	if (tty)
		fprintf(stderr, "\r\033[K");
}

/* Each false log must be found out. */
static int log_mutants(struct crash_host *host, struct options *o)
{
	unsigned green = 0;

	o->until_red = true;
	for (o->x.mutant = 1; o->x.mutant < LOG_MUTANTS; o->x.mutant++) {
		struct explore_result res = {0};
		uint64_t next;

		search(host, o, &res, &next);
		printf("mutant \"%s\": %s after %llu states\n", log_mutant_name[o->x.mutant],
		       res.failures ? "red" : "GREEN", (unsigned long long)res.states);
		green += !res.failures;
	}
	printf("crash mutants: %u of the log, %u not found\n", LOG_MUTANTS - 1, green);
	return green ? 1 : 0;
}

/* Workloads [from, next) were done: which of a round's? */
static void tell_coverage(uint64_t from, uint64_t next)
{
	uint64_t first = from % ROUND_WORKLOADS, done = next - from, directed = 0, sequences = 0, random = 0;

	for (uint64_t k = 0; k < ROUND_WORKLOADS; k++) {
		uint64_t times =
		    (done + (ROUND_WORKLOADS - 1 - (k + ROUND_WORKLOADS - first) % ROUND_WORKLOADS)) /
		    ROUND_WORKLOADS;

		if (k < N_DIRECTED)
			directed += times > 0;
		else if (k < N_DIRECTED + N_SEQUENCES)
			sequences += times > 0;
		else
			random += times;
	}
	printf("crash: coverage: %llu of %u sequences of up to 3 operations, %llu of %u directed workloads, "
	       "%llu random "
	       "ones\n",
	       (unsigned long long)sequences, N_SEQUENCES, (unsigned long long)directed, N_DIRECTED,
	       (unsigned long long)random);
}

static int run(struct crash_host *host, struct options *o)
{
	struct explore_result res = {0};
	uint64_t next = 0;

	if (o->export_dir)
		o->x.exporter = export_begin(o->export_dir);
	if (o->workload >= 0)
		explore(host, (uint64_t)o->workload, &o->x, &res);
	else
		search(host, o, &res, &next);
	if (o->x.exporter)
		export_end(o->x.exporter);
	if (res.failures)
		printf("first failure: %s\n", res.first);
	if (o->workload < 0)
		tell_coverage(o->from, next);
	printf("crash: next workload %llu, %llu kills, %llu cut in recovery\n", (unsigned long long)next,
	       (unsigned long long)res.kills, (unsigned long long)res.nested);
	printf("crash: %llu states, %llu workloads, %llu failures\n", (unsigned long long)res.states,
	       (unsigned long long)res.workloads, (unsigned long long)res.failures);
	return res.failures ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct crash_host host;
	struct options o;
	int rc;

	if (!parse(argc, argv, &o)) {
		fprintf(stderr, "usage: crashtest [--states N | --minutes M] [--seed S] [--from W] "
				"[--workload W [--state K]] [--budget N] "
				"[--until-red] [--mutants] [--export DIR]\n");
		return 2;
	}
	log_set_level(LOG_ERROR);
	setvbuf(stdout, NULL, _IOLBF, 0);
	host_make(&host);
	if (o.engine_mutants) {
		rc = log_mutants(&host, &o);
		host_free(&host);
		/* The mutants of the source are built and run by a script, with a crashtest of their own
		 * each. */
		if (!rc)
			execlp("bash", "bash", "tests/crash/run-mutants", (char *)NULL);
		return rc ? rc : 2;
	}
	rc = run(&host, &o);
	host_free(&host);
	return rc;
}
