/*
 * Which engine: by name, or the best that this kernel has. The kernel is asked once in a process; what it
 * said is kept as a sentence for every later refusal.
 */
#include "blkd/io/aio_priv.h"
#include "blkd/io/uring_priv.h"
#include "blkd/err.h"

#include <errno.h>
#include <string.h>

static const struct candidate {
	const struct io_engine_ops *ops;
	int (*probe)(struct err *);
} candidates[] = {
    /* best first */
    {&io_uring_engine, uring_probe},
    {&io_aio_engine, aio_probe},
};

enum { CANDIDATES = sizeof(candidates) / sizeof(candidates[0]) };

static struct err verdict[CANDIDATES];
static pthread_once_t probed = PTHREAD_ONCE_INIT;

static void probe_all(void)
{
	for (unsigned i = 0; i < CANDIDATES; i++)
		candidates[i].probe(&verdict[i]);
}

const struct io_engine_ops *io_engine_find(const char *name, struct err *e)
{
	bool any = !name || !strcmp(name, "auto");

	pthread_once(&probed, probe_all);
	for (unsigned i = 0; i < CANDIDATES; i++) {
		if (any && !verdict[i].code)
			return candidates[i].ops;
		if (any || strcmp(name, candidates[i].ops->name) != 0)
			continue;
		if (!verdict[i].code)
			return candidates[i].ops;
		err_set(e, verdict[i].code, "engine %s: %s", name, verdict[i].text);
		return NULL;
	}
	if (any)
		err_set(e, -EOPNOTSUPP, "no I/O engine works here: uring: %s; aio: %s", verdict[0].text,
			verdict[1].text);
	else
		err_set(e, -EINVAL, "there is no I/O engine '%s': uring, aio or auto", name);
	return NULL;
}
