/*
 * The log sink. A mutex keeps lines whole and guards the sites' counters; nothing is held across anything but
 * the write of one line.
 */
#include "blkd/log.h"
#include "blkd/clock.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { LINES_PER_WINDOW = 10 };

static pthread_mutex_t sink_lock = PTHREAD_MUTEX_INITIALIZER;
static enum log_level max_level = LOG_INFO;

void log_set_level(enum log_level max)
{
	pthread_mutex_lock(&sink_lock);
	max_level = max;
	pthread_mutex_unlock(&sink_lock);
}

/* Counts the line in its site's window of one second; false: it is to be dropped. */
static int site_admits(struct log_site *site, unsigned *dropped)
{
	uint64_t now_ns = clock_ns();

	*dropped = 0;
	if (now_ns - site->window_ns >= 1000000000u) {
		*dropped = site->dropped;
		*site = (struct log_site){.window_ns = now_ns};
	}
	if (site->count >= LINES_PER_WINDOW) {
		site->dropped++;
		return 0;
	}
	site->count++;
	return 1;
}

void log_line(struct log_site *site, enum log_level level, const char *fmt, ...)
{
	static const char *const names[] = {"error", "warning", "info", "debug"};
	char text[1024];
	unsigned dropped;
	va_list ap;

	pthread_mutex_lock(&sink_lock);
	if (level <= max_level && site_admits(site, &dropped)) {
		va_start(ap, fmt);
		vsnprintf(text, sizeof(text), fmt, ap);
		va_end(ap);
		if (dropped)
			fprintf(stderr, "blkd: %s: %s (%u like it were dropped)\n", names[level], text,
				dropped);
		else
			fprintf(stderr, "blkd: %s: %s\n", names[level], text);
	}
	pthread_mutex_unlock(&sink_lock);
}

_Noreturn void check_failed(const char *expr, const char *file, int line)
{
	fprintf(stderr, "blkd: fatal: CHECK(%s) failed at %s:%d: stopped before wrong bytes are written\n",
		expr, file, line);
	abort();
}
