/*
 * What every client may rely on in a xenstore, as statements. The server is the one at $XENSTORED_PATH if
 * that is set (such as a real xenstored), or else the build's simxen. What unprivileged domains see is in
 * test_xenstore_guests.c.
 */
#include "tests/lib/xs_store.h"

#include <xenstore.h>

/* Nodes */

static void write_makes_a_node_and_its_ancestors(void **state)
{
	(void)state;
	OK(xs_raw_write(x, 0, "/conf/a/b/c", "v"));
	READS(x, 0, "/conf/a/b/c", "v");
	OK(xs_raw_read(x, 0, "/conf/a"));
	assert_int_equal(x->reply_bytes, 0);
	OK(xs_raw_write(x, 0, "/conf/a/b/c", "w"));
	READS(x, 0, "/conf/a/b/c", "w");
}

static void values_are_bytes(void **state)
{
	static const char data[] = "/conf/bin\0a\0b\xff\0";

	(void)state;
	OK(xs_raw_call(x, XS_WRITE, 0, data, sizeof(data) - 1));
	OK(xs_raw_read(x, 0, "/conf/bin"));
	assert_int_equal(x->reply_bytes, 5);
	assert_memory_equal(x->reply, "a\0b\xff\0", 5);
	OK(xs_raw_write(x, 0, "/conf/bin", ""));
	OK(xs_raw_read(x, 0, "/conf/bin"));
	assert_int_equal(x->reply_bytes, 0);
}

static void read_of_nothing_is_enoent(void **state)
{
	(void)state;
	FAILS(xs_raw_read(x, 0, "/conf/none"), ENOENT);
	FAILS(xs_raw_1(x, XS_DIRECTORY, 0, "/conf/none/deeper"), ENOENT);
	FAILS(xs_raw_1(x, XS_GET_PERMS, 0, "/conf/none"), ENOENT);
	FAILS(xs_raw_set_perms(x, 0, "/conf/none", "n0"), ENOENT);
}

static void mkdir_keeps_what_is_there(void **state)
{
	(void)state;
	OK(xs_raw_write(x, 0, "/conf/d", "v"));
	OK(xs_raw_write(x, 0, "/conf/d/kid", "k"));
	OK(xs_raw_mkdir(x, 0, "/conf/d"));
	READS(x, 0, "/conf/d", "v");
	READS(x, 0, "/conf/d/kid", "k");
	OK(xs_raw_mkdir(x, 0, "/conf/e/f"));
	OK(xs_raw_1(x, XS_DIRECTORY, 0, "/conf/e"));
	assert_string_equal(x->reply, "f");
}

static void directory_lists_names_in_order_of_making(void **state)
{
	(void)state;
	OK(xs_raw_1(x, XS_DIRECTORY, 0, "/conf"));
	assert_int_equal(x->reply_bytes, 0);
	OK(xs_raw_write(x, 0, "/conf/z", ""));
	OK(xs_raw_write(x, 0, "/conf/a", ""));
	OK(xs_raw_write(x, 0, "/conf/m", ""));
	OK(xs_raw_rm(x, 0, "/conf/a"));
	OK(xs_raw_1(x, XS_DIRECTORY, 0, "/conf"));
	assert_int_equal(x->reply_bytes, 4);
	assert_memory_equal(x->reply, "z\0m\0", 4);
}

static void rm_takes_the_subtree(void **state)
{
	(void)state;
	OK(xs_raw_write(x, 0, "/conf/t/a/b", "1"));
	OK(xs_raw_write(x, 0, "/conf/t/c", "2"));
	OK(xs_raw_write(x, 0, "/conf/tt", "3"));
	OK(xs_raw_rm(x, 0, "/conf/t"));
	FAILS(xs_raw_read(x, 0, "/conf/t"), ENOENT);
	FAILS(xs_raw_read(x, 0, "/conf/t/a/b"), ENOENT);
	READS(x, 0, "/conf/tt", "3");
}

static void rm_of_nothing_is_fine_if_the_parent_is_there(void **state)
{
	(void)state;
	OK(xs_raw_rm(x, 0, "/conf/none"));
	FAILS(xs_raw_rm(x, 0, "/conf/none/deeper"), ENOENT);
	FAILS(xs_raw_rm(x, 0, "/"), EINVAL);
}

static void relative_paths_start_at_home(void **state)
{
	(void)state;
	OK(xs_raw_write(x, 0, "conf-rel/a", "v"));
	READS(x, 0, "/local/domain/0/conf-rel/a", "v");
	OK(xs_raw_rm(x, 0, "conf-rel"));
	FAILS(xs_raw_read(x, 0, "/local/domain/0/conf-rel"), ENOENT);
}

static void malformed_paths_are_einval(void **state)
{
	static const char *const bad[] = {"",	       "/conf/",   "//conf",	     "/conf//a",
					  "/conf/a b", "/conf/a*", "/conf/\xc3\xa4", "a/",
					  "/conf/a+",  "@conf",	   "/conf/a:b",	     "/conf/a.b"};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		FAILS(xs_raw_write(x, 0, bad[i], "v"), EINVAL);
		FAILS(xs_raw_read(x, 0, bad[i]), EINVAL);
	}
	OK(xs_raw_write(x, 0, "/conf/Az09-_@", "v"));
}

static void path_length_is_limited(void **state)
{
	char path[XENSTORE_PAYLOAD_MAX];

	(void)state;
	memset(path, 'a', sizeof(path));
	memcpy(path, "/conf/", 6);
	path[XENSTORE_REL_PATH_MAX] = '\0';
	OK(xs_raw_write(x, 0, path, "v"));
	path[XENSTORE_REL_PATH_MAX] = 'a';
	path[XENSTORE_REL_PATH_MAX + 1] = '\0';
	FAILS(xs_raw_write(x, 0, path, "v"), EINVAL);
	/* Within a domain's home the limit is of what follows it. */
	memset(path, 'a', sizeof(path));
	memcpy(path, "/local/domain/0/conf-rel/", 25);
	path[16 + XENSTORE_REL_PATH_MAX] = '\0';
	OK(xs_raw_write(x, 0, path, "v"));
	path[16 + XENSTORE_REL_PATH_MAX] = 'a';
	path[16 + XENSTORE_REL_PATH_MAX + 1] = '\0';
	FAILS(xs_raw_write(x, 0, path, "v"), EINVAL);
	OK(xs_raw_rm(x, 0, "/local/domain/0/conf-rel"));
}

/* Which error that is differs between servers. */
static void refused(int rc)
{
	assert_true(rc < 0);
	assert_int_not_equal(rc, -EPIPE);
}

static void strings_must_be_whole(void **state)
{
	(void)state;
	refused(xs_raw_call(x, XS_READ, 0, "/conf", 5));
	refused(xs_raw_call(x, XS_READ, 0, "/conf\0x", 8));
	refused(xs_raw_call(x, XS_READ, 0, "", 0));
	refused(xs_raw_call(x, XS_WRITE, 0, "/conf/a", 7));
	refused(xs_raw_call(x, XS_MKDIR, 0, "", 0));
	refused(xs_raw_call(x, XS_WATCH, 0, "/conf", 6));
	refused(xs_raw_call(x, XS_SET_PERMS, 0, "/conf", 6));
	refused(xs_raw_call(x, XS_DIRECTORY_PART, 0, "/conf", 6));
}

static void largest_payload_is_4096(void **state)
{
	char data[XENSTORE_PAYLOAD_MAX] = "/conf/big";

	(void)state;
	memset(data + 10, 'v', sizeof(data) - 10);
	OK(xs_raw_call(x, XS_WRITE, 0, data, sizeof(data)));
	OK(xs_raw_read(x, 0, "/conf/big"));
	assert_int_equal(x->reply_bytes, sizeof(data) - 10);
	assert_memory_equal(x->reply, data + 10, sizeof(data) - 10);
}

static void unknown_verbs_are_enosys(void **state)
{
	(void)state;
	FAILS(xs_raw_1(x, XS_TYPE_COUNT, 0, "/"), ENOSYS);
	FAILS(xs_raw_1(x, 1000000, 0, "/"), ENOSYS);
	FAILS(xs_raw_1(x, XS_WATCH_EVENT, 0, "/"), ENOSYS);
}

static void long_directories_come_in_parts(void **state)
{
	char path[64], rebuilt[65536] = {0}, want[65536], request[64], gen[32] = "";
	size_t got = 0, want_bytes = 0;

	(void)state;
	for (unsigned i = 0; i < 1000; i++) {
		snprintf(path, sizeof(path), "/conf/dir/child-%u", i);
		OK(xs_raw_write(x, 0, path, ""));
		want_bytes += (size_t)sprintf(want + want_bytes, "child-%u", i) + 1;
	}
	FAILS(xs_raw_1(x, XS_DIRECTORY, 0, "/conf/dir"), E2BIG);
	for (bool last = false; !last;) {
		size_t gen_bytes;

		snprintf(request, sizeof(request), "%zu", got);
		OK(xs_raw_2(x, XS_DIRECTORY_PART, 0, "/conf/dir", request, true));
		if (got)
			assert_string_equal(x->reply, gen);
		snprintf(gen, sizeof(gen), "%.31s", x->reply);
		gen_bytes = strlen(x->reply) + 1;
		memcpy(rebuilt + got, x->reply + gen_bytes, x->reply_bytes - gen_bytes);
		got += x->reply_bytes - gen_bytes;
		last = got > 1 && rebuilt[got - 2] == '\0' && rebuilt[got - 1] == '\0';
	}
	assert_int_equal(got, want_bytes + 1);
	assert_memory_equal(rebuilt, want, want_bytes);
	/* Behind the end there is an empty name. */
	OK(xs_raw_2(x, XS_DIRECTORY_PART, 0, "/conf/dir", "1000000", true));
	assert_int_equal(x->reply_bytes, strlen(x->reply) + 2);
	OK(xs_raw_write(x, 0, "/conf/dir/one-more", ""));
	OK(xs_raw_2(x, XS_DIRECTORY_PART, 0, "/conf/dir", "0", true));
	assert_string_not_equal(x->reply, gen);
}

static void domain_path_and_introduction(void **state)
{
	(void)state;
	OK(xs_raw_1(x, XS_GET_DOMAIN_PATH, 0, "7"));
	assert_string_equal(x->reply, "/local/domain/7");
	OK(xs_raw_1(x, XS_IS_DOMAIN_INTRODUCED, 0, "0"));
	assert_string_equal(x->reply, "T");
	OK(xs_raw_1(x, XS_IS_DOMAIN_INTRODUCED, 0, "31999"));
	assert_string_equal(x->reply, "F");
	FAILS(xs_raw_1(x, XS_RELEASE, 0, "31999"), ENOENT);
}

/* Permissions, as domain 0 sees them */

static void permissions_are_kept_and_inherited(void **state)
{
	(void)state;
	OK(xs_raw_set_perms(x, 0, "/conf", "b0"));
	OK(xs_raw_1(x, XS_GET_PERMS, 0, "/conf"));
	assert_int_equal(x->reply_bytes, 3);
	assert_string_equal(x->reply, "b0");
	OK(xs_raw_write(x, 0, "/conf/kid", ""));
	OK(xs_raw_1(x, XS_GET_PERMS, 0, "/conf/kid"));
	assert_string_equal(x->reply, "b0");
	OK(xs_raw_set_perms(x, 0, "/conf", "r0"));
	OK(xs_raw_1(x, XS_GET_PERMS, 0, "/conf/kid"));
	assert_string_equal(x->reply, "b0");
}

static void malformed_permissions_are_einval(void **state)
{
	(void)state;
	FAILS(xs_raw_set_perms(x, 0, "/conf", "x0"), EINVAL);
	FAILS(xs_raw_set_perms(x, 0, "/conf", "n"), EINVAL);
	FAILS(xs_raw_set_perms(x, 0, "/conf", "n0x"), EINVAL);
	FAILS(xs_raw_set_perms(x, 0, "/conf", "n0 r"), EINVAL);
	FAILS(xs_raw_set_perms(x, 0, "/conf", ""), EINVAL);
	FAILS(xs_raw_set_perms(x, 0, "/conf", "n31999"), ENOENT); /* nobody of that id */
	OK(xs_raw_1(x, XS_GET_PERMS, 0, "/conf"));
	assert_string_equal(x->reply, "n0");
}

/* Watches */

static void watch_fires_once_at_first(void **state)
{
	(void)state;
	OK(xs_raw_watch(x, "/conf/w", "tok"));
	assert_true(xs_raw_event_is(x, "/conf/w", "tok"));
	assert_true(xs_raw_no_event(x));
}

static void watch_sees_node_and_subtree(void **state)
{
	(void)state;
	OK(xs_raw_watch(x, "/conf/w", "tok"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	OK(xs_raw_write(x, 0, "/conf/w", "1"));
	assert_true(xs_raw_event_is(x, "/conf/w", "tok"));
	OK(xs_raw_write(x, 0, "/conf/w/a/b", "1"));
	assert_true(xs_raw_event_is(x, "/conf/w/a/b", "tok"));
	OK(xs_raw_mkdir(x, 0, "/conf/w/d"));
	assert_true(xs_raw_event_is(x, "/conf/w/d", "tok"));
	OK(xs_raw_set_perms(x, 0, "/conf/w/d", "r0"));
	assert_true(xs_raw_event_is(x, "/conf/w/d", "tok"));
	OK(xs_raw_rm(x, 0, "/conf/w/a"));
	assert_true(xs_raw_event_is(x, "/conf/w/a", "tok"));
	OK(xs_raw_write(x, 0, "/conf/www", "1"));
	OK(xs_raw_write(x, 0, "/conf/other", "1"));
	OK(xs_raw_mkdir(x, 0, "/conf/w/d")); /* is there: nothing changed */
	OK(xs_raw_rm(x, 0, "/conf/w/none"));
	assert_true(xs_raw_no_event(x));
}

static void watch_hears_of_the_death_of_an_ancestor(void **state)
{
	(void)state;
	OK(xs_raw_write(x, 0, "/conf/p/q/r/s", "1"));
	OK(xs_raw_watch(x, "/conf/p/q/r", "deep"));
	OK(xs_raw_watch(x, "/conf/p/none", "none"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	OK(xs_raw_rm(x, 0, "/conf/p"));
	assert_true(xs_raw_event_is(x, "/conf/p/q/r", "deep"));
	assert_true(xs_raw_no_event(x));
}

static void watch_of_a_root_sees_everything(void **state)
{
	(void)state;
	OK(xs_raw_watch(x, "/", "root"));
	assert_true(xs_raw_event_is(x, "/", "root"));
	OK(xs_raw_write(x, 0, "/conf/a", "1"));
	assert_true(xs_raw_event_is(x, "/conf/a", "root"));
}

static void relative_watches_report_relative_paths(void **state)
{
	(void)state;
	OK(xs_raw_watch(x, "conf-rel", "rel"));
	assert_true(xs_raw_event_is(x, "conf-rel", "rel"));
	OK(xs_raw_write(x, 0, "/local/domain/0/conf-rel/a", "1"));
	assert_true(xs_raw_event_is(x, "conf-rel/a", "rel"));
	OK(xs_raw_rm(x, 0, "conf-rel"));
	assert_true(xs_raw_event_is(x, "conf-rel", "rel"));
}

static void duplicate_watch_is_eexist(void **state)
{
	(void)state;
	OK(xs_raw_watch(x, "/conf/w", "tok"));
	FAILS(xs_raw_watch(x, "/conf/w", "tok"), EEXIST);
	OK(xs_raw_watch(x, "/conf/w", "tok2"));
	OK(xs_raw_watch(x, "/conf/w2", "tok"));
}

static void two_watches_are_told_in_order_of_making(void **state)
{
	(void)state;
	OK(xs_raw_watch(x, "/conf", "one"));
	OK(xs_raw_watch(x, "/conf/w", "two"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	OK(xs_raw_write(x, 0, "/conf/w", "1"));
	assert_true(xs_raw_event_is(x, "/conf/w", "one"));
	assert_true(xs_raw_event_is(x, "/conf/w", "two"));
}

static void unwatch_ends_the_events(void **state)
{
	(void)state;
	OK(xs_raw_watch(x, "/conf/w", "tok"));
	OK(xs_raw_unwatch(x, "/conf/w", "tok"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	OK(xs_raw_write(x, 0, "/conf/w", "1"));
	assert_true(xs_raw_no_event(x));
	FAILS(xs_raw_unwatch(x, "/conf/w", "tok"), ENOENT);
	OK(xs_raw_watch(x, "/conf/w", "tok"));
}

static void reset_watches_ends_watches_and_transactions(void **state)
{
	uint32_t tx = tx_start(x);

	(void)state;
	OK(xs_raw_watch(x, "/conf/w", "tok"));
	OK(xs_raw_call(x, XS_RESET_WATCHES, 0, "", 1));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	OK(xs_raw_write(x, 0, "/conf/w", "1"));
	assert_true(xs_raw_no_event(x));
	FAILS(xs_raw_tx_end(x, tx, true), ENOENT);
}

static void watches_of_a_closed_connection_are_gone(void **state)
{
	struct xs_raw *other = xs_raw_open(server.dir, socket_name);

	(void)state;
	OK(xs_raw_watch(other, "/conf/w", "tok"));
	xs_raw_close(other);
	OK(xs_raw_write(x, 0, "/conf/w", "1"));
	READS(x, 0, "/conf/w", "1");
}

static void watches_tell_other_connections(void **state)
{
	struct xs_raw *other = xs_raw_open(server.dir, socket_name);

	(void)state;
	OK(xs_raw_watch(other, "/conf/w", "tok"));
	assert_true(xs_raw_event_is(other, "/conf/w", "tok"));
	OK(xs_raw_write(x, 0, "/conf/w", "1"));
	assert_true(xs_raw_event_is(other, "/conf/w", "tok"));
	assert_true(xs_raw_no_event(x));
	xs_raw_close(other);
}

static void special_watches_can_be_set(void **state)
{
	(void)state;
	OK(xs_raw_watch(x, "@introduceDomain", "i"));
	assert_true(xs_raw_event_is(x, "@introduceDomain", "i"));
	OK(xs_raw_watch(x, "@releaseDomain", "r"));
	assert_true(xs_raw_event_is(x, "@releaseDomain", "r"));
	FAILS(xs_raw_write(x, 0, "@introduceDomain", "v"), EINVAL);
	OK(xs_raw_unwatch(x, "@introduceDomain", "i"));
}

/* Transactions */

static void transaction_is_isolated_until_its_commit(void **state)
{
	uint32_t tx = tx_start(x);

	(void)state;
	OK(xs_raw_write(x, tx, "/conf/t", "in"));
	READS(x, tx, "/conf/t", "in");
	FAILS(xs_raw_read(x, 0, "/conf/t"), ENOENT);
	OK(xs_raw_1(x, XS_DIRECTORY, tx, "/conf"));
	assert_string_equal(x->reply, "t");
	OK(xs_raw_1(x, XS_DIRECTORY, 0, "/conf"));
	assert_int_equal(x->reply_bytes, 0);
	OK(xs_raw_tx_end(x, tx, true));
	READS(x, 0, "/conf/t", "in");
	FAILS(xs_raw_read(x, tx, "/conf/t"), ENOENT);
}

static void aborted_transaction_leaves_no_trace(void **state)
{
	uint32_t tx;

	(void)state;
	OK(xs_raw_write(x, 0, "/conf/keep", "1"));
	OK(xs_raw_watch(x, "/conf", "tok"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	tx = tx_start(x);
	OK(xs_raw_write(x, tx, "/conf/t", "in"));
	OK(xs_raw_rm(x, tx, "/conf/keep"));
	OK(xs_raw_tx_end(x, tx, false));
	FAILS(xs_raw_read(x, 0, "/conf/t"), ENOENT);
	READS(x, 0, "/conf/keep", "1");
	assert_true(xs_raw_no_event(x));
}

static void reads_in_a_transaction_are_repeatable(void **state)
{
	uint32_t tx;

	(void)state;
	OK(xs_raw_write(x, 0, "/conf/t", "old"));
	tx = tx_start(x);
	READS(x, tx, "/conf/t", "old");
	OK(xs_raw_write(x, 0, "/conf/t", "new"));
	READS(x, tx, "/conf/t", "old");
	READS(x, 0, "/conf/t", "new");
	FAILS(xs_raw_tx_end(x, tx, true), EAGAIN);
}

static void conflicting_write_is_eagain_and_changes_nothing(void **state)
{
	struct xs_raw *other = xs_raw_open(server.dir, socket_name);
	uint32_t tx, tx2;

	(void)state;
	OK(xs_raw_write(x, 0, "/conf/t", "0"));
	tx = tx_start(x);
	tx2 = tx_start(other);
	OK(xs_raw_write(x, tx, "/conf/t", "1"));
	OK(xs_raw_write(x, tx, "/conf/side", "1"));
	OK(xs_raw_write(other, tx2, "/conf/t", "2"));
	OK(xs_raw_tx_end(other, tx2, true));
	FAILS(xs_raw_tx_end(x, tx, true), EAGAIN);
	READS(x, 0, "/conf/t", "2");
	FAILS(xs_raw_read(x, 0, "/conf/side"), ENOENT);
	FAILS(xs_raw_tx_end(x, tx, true), ENOENT);
	xs_raw_close(other);
}

static void absence_that_was_read_is_protected_too(void **state)
{
	uint32_t tx = tx_start(x);

	(void)state;
	FAILS(xs_raw_read(x, tx, "/conf/none"), ENOENT);
	OK(xs_raw_write(x, 0, "/conf/none", "now"));
	FAILS(xs_raw_tx_end(x, tx, true), EAGAIN);
}

static void unrelated_changes_are_no_conflict(void **state)
{
	uint32_t tx;

	(void)state;
	OK(xs_raw_write(x, 0, "/conf/a", "0"));
	OK(xs_raw_write(x, 0, "/conf/b", "0"));
	OK(xs_raw_write(x, 0, "/conf/d/kid", "0"));
	tx = tx_start(x);
	READS(x, tx, "/conf/a", "0");
	OK(xs_raw_1(x, XS_DIRECTORY, tx, "/conf/d"));
	OK(xs_raw_write(x, tx, "/conf/a", "1"));
	OK(xs_raw_write(x, 0, "/conf/b", "2"));
	OK(xs_raw_write(x, 0, "/conf/d/kid", "2")); /* the value of a child is no part of the directory */
	OK(xs_raw_tx_end(x, tx, true));
	READS(x, 0, "/conf/a", "1");
	READS(x, 0, "/conf/b", "2");
}

static void new_child_conflicts_with_a_listing(void **state)
{
	uint32_t tx;

	(void)state;
	OK(xs_raw_write(x, 0, "/conf/d/kid", "0"));
	tx = tx_start(x);
	OK(xs_raw_1(x, XS_DIRECTORY, tx, "/conf/d"));
	OK(xs_raw_write(x, 0, "/conf/d/kid2", "0"));
	FAILS(xs_raw_tx_end(x, tx, true), EAGAIN);
}

static void transaction_fires_its_watches_at_commit(void **state)
{
	uint32_t tx;

	(void)state;
	OK(xs_raw_write(x, 0, "/conf/t/gone/deep", "0"));
	OK(xs_raw_watch(x, "/conf/t", "tok"));
	OK(xs_raw_watch(x, "/conf/t/gone/deep", "deep"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	tx = tx_start(x);
	OK(xs_raw_write(x, tx, "/conf/t/a", "1"));
	OK(xs_raw_write(x, tx, "/conf/t/a", "2"));
	assert_true(xs_raw_no_event(x));
	OK(xs_raw_tx_end(x, tx, true));
	assert_true(xs_raw_event_is(x, "/conf/t/a", "tok"));
	assert_true(xs_raw_no_event(x));
	tx = tx_start(x);
	OK(xs_raw_rm(x, tx, "/conf/t/gone"));
	OK(xs_raw_tx_end(x, tx, true));
	xs_raw_settle(x);
	assert_int_equal(x->nevents, 2);
	xs_raw_forget_events(x);
}

static void made_and_removed_in_one_transaction_is_nothing(void **state)
{
	uint32_t tx = tx_start(x);

	(void)state;
	OK(xs_raw_watch(x, "/conf", "tok"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	OK(xs_raw_write(x, tx, "/conf/t/u", "1"));
	OK(xs_raw_rm(x, tx, "/conf/t"));
	FAILS(xs_raw_read(x, tx, "/conf/t/u"), ENOENT);
	OK(xs_raw_tx_end(x, tx, true));
	assert_true(xs_raw_no_event(x));
	OK(xs_raw_1(x, XS_DIRECTORY, 0, "/conf"));
	assert_int_equal(x->reply_bytes, 0);
}

static void watches_tell_children_before_their_parent(void **state)
{
	(void)state;
	OK(xs_raw_write(x, 0, "/conf/a/b/c", "v"));
	OK(xs_raw_write(x, 0, "/conf/a/d", "v"));
	OK(xs_raw_watch(x, "/conf/a", "A"));
	OK(xs_raw_watch(x, "/conf/a/b", "B"));
	OK(xs_raw_watch(x, "/conf/a/b/c", "C"));
	OK(xs_raw_watch(x, "/conf/a/d", "D"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	OK(xs_raw_rm(x, 0, "/conf/a"));
	assert_true(xs_raw_event_is(x, "/conf/a/b/c", "C"));
	assert_true(xs_raw_event_is(x, "/conf/a/b", "B"));
	assert_true(xs_raw_event_is(x, "/conf/a/d", "D"));
	assert_true(xs_raw_event_is(x, "/conf/a", "A"));
	assert_true(xs_raw_no_event(x));
}

static void siblings_and_blind_writes_conflict(void **state)
{
	uint32_t tx = tx_start(x);

	(void)state;
	OK(xs_raw_write(x, tx, "/conf/s1", "v"));
	OK(xs_raw_write(x, 0, "/conf/s2", "v"));
	FAILS(xs_raw_tx_end(x, tx, true), EAGAIN);
	tx = tx_start(x);
	OK(xs_raw_write(x, tx, "/conf/s2", "1"));
	OK(xs_raw_write(x, 0, "/conf/s2", "2"));
	FAILS(xs_raw_tx_end(x, tx, true), EAGAIN);
}

static void transaction_ids_belong_to_their_connection(void **state)
{
	struct xs_raw *other = xs_raw_open(server.dir, socket_name);
	uint32_t tx = tx_start(x);

	(void)state;
	FAILS(xs_raw_read(other, tx + 77, "/conf"), ENOENT);
	FAILS(xs_raw_tx_end(other, tx, true), ENOENT);
	FAILS(xs_raw_1(x, XS_TRANSACTION_END, tx, "X"), EINVAL);
	FAILS(xs_raw_call(x, XS_TRANSACTION_START, tx, "", 1), EBUSY);
	OK(xs_raw_tx_end(x, tx, false));
	FAILS(xs_raw_tx_end(x, 0, true), ENOENT);
	xs_raw_close(other);
}

/* libxenstore itself */

static void libxenstore_watches_through_its_fd(void **state)
{
	struct xs_handle *xs = xs_open(0);
	struct pollfd p = {.events = POLLIN};
	char **ev;

	(void)state;
	assert_non_null(xs);
	p.fd = xs_fileno(xs);
	assert_true(xs_watch(xs, "/conf/l", "tok"));
	assert_int_equal(poll(&p, 1, 10000), 1);
	ev = xs_check_watch(xs);
	assert_non_null(ev);
	free(ev);
	assert_int_equal(xs_raw_write(x, 0, "/conf/l/a", "1"), 0);
	assert_int_equal(poll(&p, 1, 10000), 1);
	ev = xs_check_watch(xs);
	assert_non_null(ev);
	assert_string_equal(ev[XS_WATCH_PATH], "/conf/l/a");
	assert_string_equal(ev[XS_WATCH_TOKEN], "tok");
	free(ev);
	assert_null(xs_check_watch(xs));
	assert_int_equal(errno, EAGAIN);
	assert_true(xs_unwatch(xs, "/conf/l", "tok"));
	xs_close(xs);
}

static void libxenstore_does_the_rest(void **state)
{
	struct xs_handle *xs = xs_open(0);
	struct xs_permissions perms[2] = {{.id = 0, .perms = XS_PERM_NONE}, {.id = 0, .perms = XS_PERM_READ}},
			      *got;
	unsigned n, len;
	xs_transaction_t t;
	char path[64], *value, **dir;

	(void)state;
	assert_non_null(xs);
	for (unsigned i = 0; i < 1500; i++) {
		snprintf(path, sizeof(path), "/conf/dir/child%u", i);
		assert_true(xs_write(xs, XBT_NULL, path, "v", 1));
	}
	dir = xs_directory(xs, XBT_NULL, "/conf/dir", &n);
	assert_non_null(dir);
	assert_int_equal(n, 1500);
	free(dir);
	assert_true(xs_set_permissions(xs, XBT_NULL, "/conf/dir", perms, 2));
	got = xs_get_permissions(xs, XBT_NULL, "/conf/dir", &n);
	assert_non_null(got);
	assert_int_equal(n, 2);
	assert_int_equal(got[1].perms, XS_PERM_READ);
	free(got);
	t = xs_transaction_start(xs);
	assert_true(t != XBT_NULL);
	value = xs_read(xs, t, "/conf/dir/child7", &len);
	assert_string_equal(value, "v");
	free(value);
	assert_int_equal(xs_raw_write(x, 0, "/conf/dir/child7", "w"), 0);
	assert_false(xs_transaction_end(xs, t, false));
	assert_int_equal(errno, EAGAIN);
	assert_true(xs_rm(xs, XBT_NULL, "/conf/dir"));
	value = xs_get_domain_path(xs, 3);
	assert_string_equal(value, "/local/domain/3");
	free(value);
	assert_true(xs_is_domain_introduced(xs, 0));
	xs_close(xs);
}

#define T(name) cmocka_unit_test_setup_teardown(name, fresh, stale)

static const struct CMUnitTest any_server[] = {
    T(write_makes_a_node_and_its_ancestors),
    T(values_are_bytes),
    T(read_of_nothing_is_enoent),
    T(mkdir_keeps_what_is_there),
    T(directory_lists_names_in_order_of_making),
    T(rm_takes_the_subtree),
    T(rm_of_nothing_is_fine_if_the_parent_is_there),
    T(relative_paths_start_at_home),
    T(malformed_paths_are_einval),
    T(path_length_is_limited),
    T(strings_must_be_whole),
    T(largest_payload_is_4096),
    T(unknown_verbs_are_enosys),
    T(long_directories_come_in_parts),
    T(domain_path_and_introduction),
    T(permissions_are_kept_and_inherited),
    T(malformed_permissions_are_einval),
    T(watch_fires_once_at_first),
    T(watch_sees_node_and_subtree),
    T(watch_hears_of_the_death_of_an_ancestor),
    T(watch_of_a_root_sees_everything),
    T(relative_watches_report_relative_paths),
    T(duplicate_watch_is_eexist),
    T(two_watches_are_told_in_order_of_making),
    T(unwatch_ends_the_events),
    T(reset_watches_ends_watches_and_transactions),
    T(watches_of_a_closed_connection_are_gone),
    T(watches_tell_other_connections),
    T(special_watches_can_be_set),
    T(transaction_is_isolated_until_its_commit),
    T(aborted_transaction_leaves_no_trace),
    T(reads_in_a_transaction_are_repeatable),
    T(conflicting_write_is_eagain_and_changes_nothing),
    T(absence_that_was_read_is_protected_too),
    T(unrelated_changes_are_no_conflict),
    T(new_child_conflicts_with_a_listing),
    T(transaction_fires_its_watches_at_commit),
    T(made_and_removed_in_one_transaction_is_nothing),
    T(watches_tell_children_before_their_parent),
    T(siblings_and_blind_writes_conflict),
    T(transaction_ids_belong_to_their_connection),
    T(libxenstore_watches_through_its_fd),
    T(libxenstore_does_the_rest),
};

static int run_against(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash || (size_t)(slash - path) >= sizeof(server.dir))
		DIE("XENSTORED_PATH %s is not DIR/NAME with a short DIR", path);
	memcpy(server.dir, path, (size_t)(slash - path));
	socket_name = slash + 1;
	return cmocka_run_group_tests(any_server, NULL, NULL);
}

int main(void)
{
	const char *foreign = getenv("XENSTORED_PATH");
	char path[128];
	int failed;

	signal(SIGPIPE, SIG_IGN);
	if (foreign)
		return run_against(foreign);
	server_start();
	snprintf(path, sizeof(path), "%s/socket", server.dir);
	setenv("XENSTORED_PATH", path, 1);
	failed = cmocka_run_group_tests(any_server, NULL, NULL);
	return failed + server_end();
}
