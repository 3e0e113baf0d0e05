/*
 * simguest: a guest for simxen. It is what a Linux domU's blkfront is for a backend, only less forgiving: it
 * checks each response against the protocol, each byte around a segment, and each sector against a model of
 * everything it ever wrote.
 *
 * It shares no code with blkd: what they agree on is in public headers and in sim/simproto.h. One process is
 * one domain, and one thread: order is what the tests are about. It does not test durability (nothing here
 * can cut the power), nor hostile frontends.
 *
 * Exit: 0 all good; 1 a verification, protocol or I/O error; 2 usage; 3 no connection, or no time left.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/simguest/session.h"

static void on_signal(int sig)
{
	(void)sig;
	guest_stop = 1;
}

int main(int argc, char **argv)
{
	static struct options opt;
	static struct guest guest;
	struct sigaction sa = {.sa_handler = on_signal};
	struct report report = {.g = &guest};
	int rc = options_parse(&opt, argc, argv);

	if (rc)
		return rc > 0 ? EXIT_GOOD : EXIT_USAGE;
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (opt.check_raw) {
		rc = session_check_raw(&opt);
		options_free(&opt);
		return rc;
	}
	if (guest_open(&guest, &opt)) {
		guest_close(&guest);
		options_free(&opt);
		return EXIT_SETUP;
	}
	/* First of all, so that whoever plugs the disks knows where; on stdout, unless that is for the report
	 * alone. */
	fprintf(opt.json && !strcmp(opt.json, "-") ? stderr : stdout, "simguest: domain %" PRIu32 "\n",
		guest.hyp.domid);
	fflush(stdout);
	report.domid = guest.hyp.domid;
	report.exit_code = session_run(&guest, &report);
	if (report.results) {
		report_table(&report);
		if (opt.json && report_json(&report, opt.json)) {
			note("%s: the report could not be written", opt.json);
			report.exit_code = report.exit_code ? report.exit_code : EXIT_SETUP;
		}
	}
	rc = report.exit_code;
	free(report.results);
	guest_close(&guest);
	options_free(&opt);
	return rc;
}
