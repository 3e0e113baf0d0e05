/*
 * Faults: counted always, printed as long as they are few. A broken backend can produce millions of them a
 * second.
 */
#include "sim/simguest/tally.h"

#include <stdarg.h>
#include <stdio.h>

static const char *const names[FAULTS] = {
    [FAULT_PROTOCOL] = "protocol", [FAULT_VERIFY] = "verify", [FAULT_IO] = "io",
    [FAULT_STALL] = "stall",	   [FAULT_LOST] = "lost",
};

const char *fault_name(enum fault kind)
{
	return names[kind];
}

void note(const char *fmt, ...)
{
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	fprintf(stderr, "simguest: %s\n", line);
}

void tally_add(struct tally *t, enum fault kind, uint64_t n, const char *fmt, ...)
{
	va_list ap;
	char *line;

	t->count[kind] += n;
	if (t->nmessages == TALLY_MESSAGES)
		return;
	line = t->message[t->nmessages++];
	va_start(ap, fmt);
	vsnprintf(line, sizeof(t->message[0]), fmt, ap);
	va_end(ap);
	note("%s: %s fault: %s", t->who, names[kind], line);
}
