/* Progress on a terminal for what takes longer than a second, and interruption by a signal. */
#include "tools/blkimg/blkimg.h"

#include "blkd/clock.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define QUIET_NS 1000000000ull
#define STEP_NS	 250000000ull

void progress_start(struct progress *p, const char *what, uint64_t total_bytes)
{
	*p = (struct progress){
	    .what = what, .total_bytes = total_bytes, .on = isatty(STDERR_FILENO), .start_ns = clock_ns()};
}

void progress_at(struct progress *p, uint64_t done_bytes)
{
	uint64_t now;
	char a[32], b[32];

	if (!p->on)
		return;
	now = clock_ns();
	if (now - p->start_ns < QUIET_NS || now - p->last_ns < STEP_NS)
		return;
	p->last_ns = now;
	p->shown = true;
	fprintf(stderr, "\r%s: %3u%% (%s of %s)\033[K", p->what,
		(unsigned)(p->total_bytes ? (double)done_bytes * 100.0 / (double)p->total_bytes : 100.0),
		human(done_bytes, a), human(p->total_bytes, b));
}

void progress_end(struct progress *p)
{
	if (p->shown)
		fprintf(stderr, "\r\033[K");
}

void progress_blocks(void *ctx, uint64_t done, uint64_t total)
{
	struct progress *p = ctx;

	p->total_bytes = total * CHAIN_BLOCK_BYTES;
	progress_at(p, done * CHAIN_BLOCK_BYTES);
}

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

void interrupt_catch(void)
{
	struct sigaction sa = {.sa_handler = on_signal};

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
}

int interrupt_check(struct err *e)
{
	return interrupted ? err_set(e, -EINTR, "interrupted by signal %d; what was begun was removed",
				     (int)interrupted)
			   : 0;
}
