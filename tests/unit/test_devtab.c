/*
 * The device table: who may share an image with whom, by whatever name, from any thread.
 */
#include "blkd/bufpool.h"
#include "blkd/cache.h"
#include "blkd/devtab.h"
#include "blkd/err.h"
#include "blkd/io.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64], image[96], alias[96];
static struct bufpool *pool;
static struct cache *cache;

static int start(void **state)
{
	struct err e = ERR_INIT;
	int fd;

	(void)state;
	strcpy(dir, "/tmp/devtab-test-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(image, sizeof(image), "%s/a.img", dir);
	snprintf(alias, sizeof(alias), "%s/link", dir);
	fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	close(fd);
	assert_int_equal(symlink(image, alias), 0);
	assert_int_equal(bufpool_create(8 << 20, &pool, &e), 0);
	assert_int_equal(cache_create(8 << 20, &cache, &e), 0);
	return 0;
}

static int end(void **state)
{
	(void)state;
	bufpool_destroy(pool);
	cache_destroy(cache);
	unlink(image);
	unlink(alias);
	return rmdir(dir);
}

static int get(const char *path, const char *user, bool writable, bool shared, struct devref **out,
	       struct err *e)
{
	struct devtab_opts o = {.path = path,
				.format = "raw",
				.user = user,
				.writable = writable,
				.shared = shared,
				.engine = io_engine_find(NULL, e),
				.pool = pool,
				.cache = cache,
				.backing_flags = BACKING_BUFFERED};

	assert_non_null(o.engine);
	*out = NULL;
	return devtab_get(&o, out, e);
}

static struct devref *must_get(const char *path, const char *user, bool writable, bool shared)
{
	struct err e = ERR_INIT;
	struct devref *r;

	if (get(path, user, writable, shared, &r, &e) < 0)
		fail_msg("%s", e.text);
	return r;
}

static void refused(const char *path, bool writable, bool shared, const char *because_of)
{
	struct err e = ERR_INIT;
	struct devref *r;

	assert_int_equal(get(path, "late", writable, shared, &r, &e), -EBUSY);
	assert_non_null(strstr(e.text, because_of));
	assert_null(r);
}

static void put(struct devref *r)
{
	struct err e = ERR_INIT;

	assert_int_equal(devtab_put(r, &e), 0);
}

static void a_second_writer_is_told_who_has_it(void **state)
{
	struct devref *a = must_get(image, "vbd-1-51712", true, false);

	(void)state;
	refused(image, true, false, "vbd-1-51712");
	refused(image, false, false, "vbd-1-51712");
	refused(alias, true, false, "vbd-1-51712");
	put(a);
	assert_int_equal(devtab_count(), 0);
	put(must_get(alias, "next", true, false));
}

static void a_shared_user_joins_the_writer(void **state)
{
	struct devref *a = must_get(image, "vbd-1-51712", true, false);
	struct devref *b = must_get(alias, "nbd:x", true, true);
	struct devref *c = must_get(image, "nbd:y", false, true);

	(void)state;
	assert_ptr_equal(a->dev, b->dev);
	assert_ptr_equal(a->dev, c->dev);
	assert_int_equal(devtab_count(), 1);
	refused(image, true, false, "vbd-1-51712");
	/* Who opened it may go first. */
	put(a);
	a = must_get(image, "vbd-2-51712", true, false);
	assert_ptr_equal(a->dev, b->dev);
	put(b);
	put(c);
	put(a);
	assert_int_equal(devtab_count(), 0);
}

static void readers_share_and_keep_writers_out(void **state)
{
	struct devref *a = must_get(image, "one", false, false);
	struct devref *b = must_get(image, "two", false, false);

	(void)state;
	assert_ptr_equal(a->dev, b->dev);
	assert_false(dev_writable(a->dev));
	refused(image, true, false, "one");
	refused(image, true, true, "one");
	put(a);
	refused(image, true, false, "two");
	put(b);
}

static void what_cannot_be_opened_leaves_no_entry(void **state)
{
	struct err e = ERR_INIT;
	struct devref *r;

	(void)state;
	assert_int_equal(get("/nonexistent/x", "u", true, false, &r, &e), -ENOENT);
	assert_non_null(strstr(e.text, "/nonexistent/x"));
	assert_int_equal(get(dir, "u", true, false, &r, &e), -EINVAL);
	assert_int_equal(get("/dev/null", "u", true, false, &r, &e), -EINVAL);
	assert_int_equal(devtab_count(), 0);
}

struct seen {
	unsigned devices, users;
	char user[2][64];
};

static bool look(void *ctx, const struct devtab_info *i)
{
	struct seen *s = ctx;

	s->devices++;
	assert_string_equal(i->path, image);
	assert_string_equal(i->format, "raw");
	assert_int_equal(dev_size_bytes(i->dev), 1 << 20);
	for (unsigned u = 0; u < i->n_users; u++)
		snprintf(s->user[s->users++], sizeof(s->user[0]), "%s", i->users[u]);
	return true;
}

static void the_table_can_be_shown(void **state)
{
	struct devref *a = must_get(image, "vbd-1-51712", true, false),
		      *b = must_get(image, "nbd:x", true, true);
	struct seen s = {0};

	(void)state;
	devtab_each(look, &s);
	assert_int_equal(s.devices, 1);
	assert_int_equal(s.users, 2);
	assert_string_equal(s.user[0], "vbd-1-51712");
	assert_string_equal(s.user[1], "nbd:x");
	put(a);
	put(b);
}

static unsigned got, busy;

static void *come_and_go(void *arg)
{
	bool shared = arg != NULL;

	for (unsigned i = 0; i < 100; i++) {
		struct err e = ERR_INIT;
		struct devref *r;
		int rc = get(i % 2 ? image : alias, "thread", true, shared, &r, &e);

		if (rc == 0) {
			__atomic_fetch_add(&got, 1, __ATOMIC_RELAXED);
			if (devtab_put(r, &e) < 0)
				abort();
		} else if (rc == -EBUSY) {
			__atomic_fetch_add(&busy, 1, __ATOMIC_RELAXED);
		} else {
			abort();
		}
	}
	return NULL;
}

static void threads_meet_in_the_table_not_at_the_fence(void **state)
{
	pthread_t t[4];

	(void)state;
	for (unsigned shared = 0; shared < 2; shared++) {
		got = busy = 0;
		for (unsigned i = 0; i < 4; i++)
			assert_int_equal(pthread_create(&t[i], NULL, come_and_go, shared ? &got : NULL), 0);
		for (unsigned i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
		assert_int_equal(got + busy, 400);
		if (shared)
			assert_int_equal(busy, 0);
		assert_int_equal(devtab_count(), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_second_writer_is_told_who_has_it),
	    cmocka_unit_test(a_shared_user_joins_the_writer),
	    cmocka_unit_test(readers_share_and_keep_writers_out),
	    cmocka_unit_test(what_cannot_be_opened_leaves_no_entry),
	    cmocka_unit_test(the_table_can_be_shown),
	    cmocka_unit_test(threads_meet_in_the_table_not_at_the_fence),
	};

	return cmocka_run_group_tests(tests, start, end);
}
