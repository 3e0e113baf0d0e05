/*
 * For tests of a xenstore: one server for the program, a connection of domain 0 for each test, with /conf
 * empty; and, where a test asks for it, a guest with a connection of its own.
 */
#ifndef TESTS_XS_STORE_H
#define TESTS_XS_STORE_H

#include "tests/lib/xs_raw.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static struct simxen server;		   /* dir is also set for a foreign one */
static const char *socket_name = "socket"; /* in server.dir */
static struct xs_raw *x;

static inline void server_start(void)
{
	simxen_start(&server);
}

/* The number of things that were wrong with its end. */
static inline int server_end(void)
{
	int status = simxen_end(&server);

	if (status != 0)
		fprintf(stderr, "simxen did not exit with 0\n");
	simxen_remove_dir(&server);
	return status != 0;
}

static inline int fresh(void **state)
{
	(void)state;
	x = xs_raw_open(server.dir, socket_name);
	xs_raw_rm(x, 0, "/conf");
	if (xs_raw_mkdir(x, 0, "/conf") < 0)
		DIE("cannot make /conf");
	return 0;
}

static inline int stale(void **state)
{
	(void)state;
	xs_raw_rm(x, 0, "/conf");
	xs_raw_close(x);
	return 0;
}

static inline uint32_t tx_start(struct xs_raw *c)
{
	int64_t tx = xs_raw_tx_start(c);

	assert_true(tx > 0);
	return (uint32_t)tx;
}

/* clang-format off */
#define OK(call)       assert_int_equal(call, 0)
#define FAILS(call, e) assert_int_equal(call, -(e))
#define READS(c, tx, path, value)                          \
	do {                                               \
		OK(xs_raw_read(c, tx, path));              \
		assert_string_equal((c)->reply, value);    \
	} while (0)
/* clang-format on */

static struct guest g;
static struct xs_raw *gx;
static char home[64];

static inline struct xs_raw *guest_try(uint32_t domid)
{
	char name[32];

	snprintf(name, sizeof(name), "xs-dom%u", domid);
	return xs_raw_try(server.dir, name);
}

static inline struct xs_raw *guest_open(uint32_t domid)
{
	struct xs_raw *c = guest_try(domid);

	if (!c)
		DIE("domain %u has no socket", domid);
	return c;
}

static inline int guest_fresh(void **state)
{
	fresh(state);
	guest_birth(&server, &g, SIM_NEW_DOMAIN, 0);
	gx = guest_open(g.domid);
	snprintf(home, sizeof(home), "/local/domain/%u", g.domid);
	return 0;
}

static inline int guest_stale(void **state)
{
	xs_raw_close(gx);
	if (g.hyp >= 0)
		guest_death(&server, &g);
	return stale(state);
}

/* A path or permission list, with the guest's id for each '#'. */
static inline const char *with_id(const char *format)
{
	static char ring[4][256];
	static unsigned at;
	char *out = ring[at++ % 4], *end = out;

	for (; *format; format++)
		end += *format == '#' ? sprintf(end, "%u", g.domid) : sprintf(end, "%c", *format);
	*end = '\0';
	return out;
}

#endif
