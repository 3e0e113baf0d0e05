/*
 * crashtest: records what the real device does with a disk, cuts the power or kills the process at every
 * moment, and checks what is left.
 *
 *   crashtest [--states N] [--minutes M] [--seed S] [--from W] [--workload W [--state K]] [--engine-mutants]
 * [--until-red]
 *
 * The last line is "crash: N states, N workloads, N failures"; a failure's line begins with the command that
 * shows it alone. Exit 0: no failures. The mutants of the source are tests/crash/run-mutants' work; those of
 * the log are --engine-mutants.
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
};

static bool parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
	    {"states", 1, NULL, 'n'},	  {"minutes", 1, NULL, 'm'},  {"seed", 1, NULL, 's'},
	    {"from", 1, NULL, 'f'},	  {"workload", 1, NULL, 'w'}, {"state", 1, NULL, 'k'},
	    {"budget", 1, NULL, 'b'},	  {"mutants", 0, NULL, 'M'},  {"until-red", 0, NULL, 'r'},
	    {"log-mutant", 1, NULL, 'l'}, {NULL, 0, NULL, 0},
	};
	int c;

	*o = (struct options){.states = 100000,
			      .workload = -1,
			      .x = {.seed = 1, .budget = 80, .nested_of = 250, .only_state = -1}};
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
		default:
			return false;
		}
	}
	return optind == argc && o->x.mutant < LOG_MUTANTS;
}

static void search(struct crash_host *host, const struct options *o, struct explore_result *res,
		   uint64_t *next)
{
	uint64_t until_ns = o->minutes ? clock_ns() + o->minutes * 60000000000u : UINT64_MAX, shown_ns = 0;
	bool tty = isatty(2);

	for (*next = o->from;
	     res->states < o->states && clock_ns() < until_ns && !(o->until_red && res->failures); ++*next) {
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

int main(int argc, char **argv)
{
	struct explore_result res = {0};
	struct crash_host host;
	struct options o;
	uint64_t next = 0;
	int rc;

	if (!parse(argc, argv, &o)) {
		fprintf(stderr, "usage: crashtest [--states N | --minutes M] [--seed S] [--from W] "
				"[--workload W [--state K]] [--budget N] "
				"[--until-red] [--mutants]\n");
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
	if (o.workload >= 0)
		explore(&host, (uint64_t)o.workload, &o.x, &res);
	else
		search(&host, &o, &res, &next);
	host_free(&host);
	if (res.failures)
		printf("first failure: %s\n", res.first);
	printf("crash: next workload %llu, %llu kills, %llu cut in recovery\n", (unsigned long long)next,
	       (unsigned long long)res.kills, (unsigned long long)res.nested);
	printf("crash: %llu states, %llu workloads, %llu failures\n", (unsigned long long)res.states,
	       (unsigned long long)res.workloads, (unsigned long long)res.failures);
	return res.failures ? 1 : 0;
}
