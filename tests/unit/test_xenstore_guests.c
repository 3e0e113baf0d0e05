/*
 * What unprivileged domains see of a xenstore: permissions, suppressed events, quotas, birth and death.
 * Behaviour and numbers are those of the C xenstored 4.17. Each test has a guest of its own.
 */
#include "tests/lib/xs_store.h"

static void guest_has_a_home_it_reads_but_does_not_own(void **state)
{
	(void)state;
	READS(gx, 0, "domid", with_id("#"));
	READS(gx, 0, with_id("/local/domain/#/domid"), with_id("#"));
	OK(xs_raw_1(gx, XS_DIRECTORY, 0, home));
	OK(xs_raw_1(x, XS_GET_PERMS, 0, home));
	assert_string_equal(x->reply, "n0");
	assert_string_equal(x->reply + 3, with_id("r#"));
	FAILS(xs_raw_write(gx, 0, "domid", "0"), EACCES);
	FAILS(xs_raw_write(gx, 0, "new", "0"), EACCES);
	FAILS(xs_raw_rm(gx, 0, home), EACCES);
	FAILS(xs_raw_set_perms(gx, 0, home, with_id("b#")), EACCES);
}

static void guest_owns_what_it_makes(void **state)
{
	(void)state;
	OK(xs_raw_write(gx, 0, "data/a/b", "v"));
	OK(xs_raw_write(gx, 0, "device/x", "v"));
	READS(x, 0, with_id("/local/domain/#/data/a/b"), "v");
	OK(xs_raw_1(gx, XS_GET_PERMS, 0, "data/a"));
	assert_string_equal(gx->reply, with_id("n#"));
	/* In a directory of domain 0 that it may write, too. */
	OK(xs_raw_set_perms(x, 0, "/conf", with_id("n0 b#")));
	OK(xs_raw_write(gx, 0, "/conf/mine", "v"));
	OK(xs_raw_1(x, XS_GET_PERMS, 0, "/conf/mine"));
	assert_string_equal(x->reply, with_id("n#"));
	assert_string_equal(x->reply + strlen(x->reply) + 1, with_id("b#"));
}

static void guest_writes_its_frontend_as_a_toolstack_makes_it(void **state)
{
	(void)state;
	OK(xs_raw_mkdir(x, 0, with_id("/local/domain/#/device/vbd/51712")));
	OK(xs_raw_set_perms(x, 0, with_id("/local/domain/#/device/vbd/51712"), with_id("n# r0")));
	OK(xs_raw_write(gx, 0, "device/vbd/51712/state", "1"));
	OK(xs_raw_mkdir(x, 0, with_id("/conf/backend/#/51712")));
	OK(xs_raw_set_perms(x, 0, with_id("/conf/backend/#/51712"), with_id("n0 r#")));
	OK(xs_raw_write(x, 0, with_id("/conf/backend/#/51712/state"), "2"));
	READS(gx, 0, with_id("/conf/backend/#/51712/state"), "2");
	FAILS(xs_raw_write(gx, 0, with_id("/conf/backend/#/51712/state"), "4"), EACCES);
}

static void permission_letters_mean_what_they_say(void **state)
{
	(void)state;
	OK(xs_raw_write(x, 0, "/conf/n", "v"));
	FAILS(xs_raw_read(gx, 0, "/conf/n"), EACCES);
	OK(xs_raw_set_perms(x, 0, "/conf/n", "r0"));
	READS(gx, 0, "/conf/n", "v");
	FAILS(xs_raw_write(gx, 0, "/conf/n", "w"), EACCES);
	OK(xs_raw_set_perms(x, 0, "/conf/n", "w0"));
	FAILS(xs_raw_read(gx, 0, "/conf/n"), EACCES);
	OK(xs_raw_write(gx, 0, "/conf/n", "w"));
	OK(xs_raw_set_perms(x, 0, "/conf/n", "b0"));
	READS(gx, 0, "/conf/n", "w");
	OK(xs_raw_set_perms(x, 0, "/conf/n", with_id("b0 n#")));
	FAILS(xs_raw_read(gx, 0, "/conf/n"), EACCES);
	OK(xs_raw_set_perms(x, 0, "/conf/n", with_id("n0 r#")));
	READS(gx, 0, "/conf/n", "w");
	FAILS(xs_raw_write(gx, 0, "/conf/n", "w"), EACCES);
	FAILS(xs_raw_rm(gx, 0, "/conf/n"), EACCES);
	FAILS(xs_raw_set_perms(gx, 0, "/conf/n", "b0"), EACCES);
	OK(xs_raw_set_perms(x, 0, "/conf/n", with_id("n# r0")));
	OK(xs_raw_set_perms(gx, 0, "/conf/n", with_id("b#")));
	FAILS(xs_raw_set_perms(gx, 0, "/conf/n", "b0"), EPERM);
}

static void absence_is_not_told_to_who_may_not_look(void **state)
{
	(void)state;
	FAILS(xs_raw_read(gx, 0, "/conf/none"), EACCES);
	FAILS(xs_raw_write(gx, 0, "/conf/none", "v"), EACCES);
	FAILS(xs_raw_rm(gx, 0, "/conf/none"), EACCES);
	FAILS(xs_raw_read(gx, 0, "/none"), EACCES);
	FAILS(xs_raw_1(gx, XS_DIRECTORY, 0, "/"), EACCES);
	FAILS(xs_raw_read(gx, 0, "none"), ENOENT);
	OK(xs_raw_set_perms(x, 0, "/conf", with_id("n0 r#")));
	FAILS(xs_raw_read(gx, 0, "/conf/none"), ENOENT);
	FAILS(xs_raw_write(gx, 0, "/conf/none", "v"), EACCES);
}

static void privileged_verbs_are_eacces_to_guests(void **state)
{
	(void)state;
	FAILS(xs_raw_1(gx, XS_IS_DOMAIN_INTRODUCED, 0, "0"), EACCES);
	FAILS(xs_raw_1(gx, XS_RELEASE, 0, "0"), EACCES);
	FAILS(xs_raw_1(gx, XS_RESUME, 0, "0"), EACCES);
	FAILS(xs_raw_call(gx, XS_INTRODUCE, 0, "5\0001\0001", 6), EACCES);
	FAILS(xs_raw_2(gx, XS_SET_TARGET, 0, "5", "0", true), EACCES);
	FAILS(xs_raw_1(gx, XS_CONTROL, 0, "check"), EACCES);
	OK(xs_raw_1(gx, XS_GET_DOMAIN_PATH, 0, "9"));
}

static void events_of_unreadable_nodes_are_suppressed(void **state)
{
	(void)state;
	OK(xs_raw_watch(gx, "/conf", "tok"));
	assert_true(xs_raw_event_is(gx, "/conf", "tok"));
	OK(xs_raw_write(x, 0, "/conf/secret", "v"));
	OK(xs_raw_rm(x, 0, "/conf/secret"));
	assert_true(xs_raw_no_event(gx));
	OK(xs_raw_write(x, 0, "/conf/open", "v"));
	OK(xs_raw_set_perms(x, 0, "/conf/open", with_id("n0 r#")));
	assert_true(xs_raw_event_is(gx, "/conf/open", "tok"));
	OK(xs_raw_write(x, 0, "/conf/open", "w"));
	assert_true(xs_raw_event_is(gx, "/conf/open", "tok"));
	/* Losing sight of a node is seen, and its later changes are not. */
	OK(xs_raw_set_perms(x, 0, "/conf/open", "n0"));
	assert_true(xs_raw_event_is(gx, "/conf/open", "tok"));
	OK(xs_raw_write(x, 0, "/conf/open", "z"));
	assert_true(xs_raw_no_event(gx));
}

static void rm_of_a_readable_node_is_seen(void **state)
{
	uint32_t tx;

	(void)state;
	OK(xs_raw_write(x, 0, "/conf/open/kid", "v"));
	OK(xs_raw_set_perms(x, 0, "/conf/open", with_id("n0 r#")));
	OK(xs_raw_set_perms(x, 0, "/conf/open/kid", with_id("n0 r#")));
	OK(xs_raw_watch(gx, "/conf/open", "tok"));
	OK(xs_raw_watch(gx, "/conf/open/kid", "kid"));
	xs_raw_settle(gx);
	xs_raw_forget_events(gx);
	OK(xs_raw_rm(x, 0, "/conf/open"));
	xs_raw_settle(gx);
	assert_int_equal(gx->nevents, 2);
	xs_raw_forget_events(gx);
	/* In a transaction as well. */
	OK(xs_raw_write(x, 0, "/conf/open", "v"));
	OK(xs_raw_set_perms(x, 0, "/conf/open", with_id("n0 r#")));
	xs_raw_settle(gx);
	xs_raw_forget_events(gx);
	tx = tx_start(x);
	OK(xs_raw_rm(x, tx, "/conf/open"));
	OK(xs_raw_tx_end(x, tx, true));
	assert_true(xs_raw_event_is(gx, "/conf/open", "tok"));
	assert_true(xs_raw_no_event(gx));
}

static void guest_watches_are_relative_to_its_own_home(void **state)
{
	(void)state;
	OK(xs_raw_watch(gx, "data", "tok"));
	assert_true(xs_raw_event_is(gx, "data", "tok"));
	OK(xs_raw_write(x, 0, with_id("/local/domain/#/data/a"), "v"));
	assert_true(xs_raw_event_is(gx, "data/a", "tok"));
}

static void quota_of_nodes(void **state)
{
	char path[64];
	unsigned n;
	int rc = 0;

	(void)state;
	for (n = 0; n < 1100 && rc == 0; n++) {
		snprintf(path, sizeof(path), "data/%u/%u", n / 100, n);
		rc = xs_raw_write(gx, 0, path, "v");
	}
	assert_int_equal(rc, -ENOSPC);
	assert_true(n > 950);
	READS(gx, 0, "data/0/0", "v");
	FAILS(xs_raw_mkdir(gx, 0, "data/more"), ENOSPC);
	FAILS(xs_raw_read(gx, 0, "data/more"), ENOENT);
	OK(xs_raw_write(gx, 0, "data/0/0", "changed"));
	OK(xs_raw_rm(gx, 0, "data/0"));
	OK(xs_raw_mkdir(gx, 0, "data/more"));
	/* Domain 0 gives nodes to the guest whatever it has. */
	for (n = 0; n < 200; n++) {
		snprintf(path, sizeof(path), "/local/domain/%u/data/dom0-%u", g.domid, n);
		OK(xs_raw_write(x, 0, path, "v"));
	}
}

static void quota_of_nodes_holds_for_transactions(void **state)
{
	struct xs_raw *other = guest_open(g.domid);
	uint32_t tx = tx_start(gx), tx2 = tx_start(other);
	char path[64];

	(void)state;
	OK(xs_raw_mkdir(x, 0, with_id("/local/domain/#/data/one")));
	OK(xs_raw_mkdir(x, 0, with_id("/local/domain/#/data/two")));
	for (unsigned i = 0; i < 600; i++) {
		snprintf(path, sizeof(path), "data/one/%u/%u", i / 100, i);
		OK(xs_raw_write(gx, tx, path, "v"));
		snprintf(path, sizeof(path), "data/two/%u/%u", i / 100, i);
		OK(xs_raw_write(other, tx2, path, "v"));
	}
	OK(xs_raw_tx_end(gx, tx, true));
	FAILS(xs_raw_tx_end(other, tx2, true), ENOSPC);
	FAILS(xs_raw_read(gx, 0, "data/two/0"), ENOENT);
	xs_raw_close(other);
}

static void quota_of_watches(void **state)
{
	char token[16];
	unsigned n;
	int rc = 0;

	(void)state;
	for (n = 0; n < 200 && rc == 0; n++) {
		snprintf(token, sizeof(token), "t%u", n);
		rc = xs_raw_watch(gx, "data", token);
	}
	assert_int_equal(rc, -E2BIG);
	assert_int_equal(n - 1, 129); /* one above 128: xenstored compares before it counts */
	OK(xs_raw_unwatch(gx, "data", "t0"));
	OK(xs_raw_watch(gx, "data", "again"));
}

static void quota_of_transactions(void **state)
{
	int64_t tx = 1;
	unsigned n;

	(void)state;
	for (n = 0; n < 50 && tx > 0; n++)
		tx = xs_raw_tx_start(gx);
	assert_int_equal(tx, -ENOSPC);
	assert_int_equal(n - 1, 11);
	OK(xs_raw_call(gx, XS_RESET_WATCHES, 0, "", 1));
	assert_true(xs_raw_tx_start(gx) > 0);
}

static void quota_of_entry_size(void **state)
{
	char data[3000] = "data/big";

	(void)state;
	memset(data + 9, 'v', sizeof(data) - 9);
	OK(xs_raw_call(gx, XS_WRITE, 0, data, 9 + 2047 - 24 - 8));
	FAILS(xs_raw_call(gx, XS_WRITE, 0, data, 9 + 2048 - 24 - 8), ENOSPC);
	FAILS(xs_raw_call(gx, XS_WRITE, 0, data, sizeof(data)), ENOSPC);
	memcpy(data, "/conf/big", 10);
	OK(xs_raw_call(x, XS_WRITE, 0, data, sizeof(data)));
}

static void quota_of_permissions(void **state)
{
	(void)state;
	OK(xs_raw_write(gx, 0, "data/p", "v"));
	OK(xs_raw_set_perms(gx, 0, "data/p", with_id("n# r0 r0 r0 r0")));
	FAILS(xs_raw_set_perms(gx, 0, "data/p", with_id("n# r0 r0 r0 r0 r0")), ENOSPC);
	OK(xs_raw_set_perms(x, 0, "/conf", "n0 r0 r0 r0 r0 r0 r0"));
}

static void quota_of_paths_in_a_transaction(void **state)
{
	uint32_t tx = tx_start(gx);
	char path[64];
	int rc = -ENOENT;
	unsigned n;

	(void)state;
	for (n = 0; n < 2000 && rc == -ENOENT; n++) {
		snprintf(path, sizeof(path), "data/none-%u", n);
		rc = xs_raw_read(gx, tx, path);
	}
	assert_int_equal(rc, -ENOSPC);
	assert_true(n > 500);
	OK(xs_raw_tx_end(gx, tx, false));
}

/* Birth and death */

static void birth_and_death_fire_the_special_watches(void **state)
{
	struct guest other;

	(void)state;
	OK(xs_raw_watch(x, "@introduceDomain", "i"));
	OK(xs_raw_watch(x, "@releaseDomain", "r"));
	OK(xs_raw_watch(gx, "@introduceDomain", "i"));
	xs_raw_settle(x);
	xs_raw_settle(gx);
	xs_raw_forget_events(x);
	xs_raw_forget_events(gx);
	guest_birth(&server, &other, SIM_NEW_DOMAIN, 0);
	assert_true(xs_raw_event_is(x, "@introduceDomain", "i"));
	OK(xs_raw_1(x, XS_IS_DOMAIN_INTRODUCED, 0, with_id("#")));
	assert_string_equal(x->reply, "T");
	guest_death(&server, &other);
	assert_true(xs_raw_event_is(x, "@releaseDomain", "r"));
	assert_true(xs_raw_no_event(x));
	assert_true(xs_raw_no_event(gx));
	/* Unless domain 0 lets it hear. */
	OK(xs_raw_set_perms(x, 0, "@introduceDomain", with_id("n0 r#")));
	guest_birth(&server, &other, SIM_NEW_DOMAIN, 0);
	assert_true(xs_raw_event_is(gx, "@introduceDomain", "i"));
	guest_death(&server, &other);
	OK(xs_raw_set_perms(x, 0, "@introduceDomain", "n0"));
}

static void death_takes_home_socket_and_connection(void **state)
{
	char c;

	(void)state;
	OK(xs_raw_write(x, 0, with_id("/conf/backend/#/state"), "4"));
	OK(xs_raw_set_perms(x, 0, "/conf", with_id("n0 b#")));
	OK(xs_raw_write(gx, 0, "/conf/mine/deep", "v"));
	OK(xs_raw_watch(x, "/conf/mine", "mine"));
	OK(xs_raw_watch(x, home, "home"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	guest_death(&server, &g);
	assert_int_equal(recv(gx->fd, &c, 1, 0), 0);
	assert_null(guest_try(g.domid));
	xs_raw_settle(x);
	assert_int_equal(x->nevents, 2);
	xs_raw_forget_events(x);
	FAILS(xs_raw_read(x, 0, home), ENOENT);
	READS(x, 0, with_id("/conf/backend/#/state"), "4");
	/* As the C xenstored since XSA-419: what a dead domain owned outside of its home goes too. */
	FAILS(xs_raw_read(x, 0, "/conf/mine"), ENOENT);
	OK(xs_raw_1(x, XS_IS_DOMAIN_INTRODUCED, 0, with_id("#")));
	assert_string_equal(x->reply, "F");
}

static void reborn_domid_inherits_no_permission(void **state)
{
	uint32_t domid = g.domid, tx;

	(void)state;
	OK(xs_raw_write(x, 0, "/conf/n", "v"));
	OK(xs_raw_set_perms(x, 0, "/conf/n", with_id("n0 r#")));
	tx = tx_start(x);
	OK(xs_raw_write(x, tx, "/conf/t", "v"));
	OK(xs_raw_set_perms(x, tx, "/conf/t", with_id("n0 r#")));
	READS(gx, 0, "/conf/n", "v");
	xs_raw_close(gx);
	guest_death(&server, &g);
	guest_birth(&server, &g, domid, 0);
	gx = guest_open(domid);
	assert_non_null(gx);
	FAILS(xs_raw_read(gx, 0, "/conf/n"), EACCES);
	OK(xs_raw_tx_end(x, tx, true));
	FAILS(xs_raw_read(gx, 0, "/conf/t"), EACCES); /* the C xenstored 4.17 is less strict here */
	/* Not even when the node is written again, with the permissions it had. */
	OK(xs_raw_write(x, 0, "/conf/n", "w"));
	FAILS(xs_raw_read(gx, 0, "/conf/n"), EACCES);
	OK(xs_raw_set_perms(x, 0, "/conf/n", with_id("n0 r#")));
	READS(gx, 0, "/conf/n", "w");
}

static void permissions_given_before_birth_do_not_count(void **state)
{
	struct guest late;
	struct xs_raw *lx;

	(void)state;
	OK(xs_raw_write(x, 0, "/conf/n", "v"));
	OK(xs_raw_set_perms(x, 0, "/conf/n", "n0 r4242"));
	guest_birth(&server, &late, 4242, 0);
	lx = guest_open(4242);
	FAILS(xs_raw_read(lx, 0, "/conf/n"), EACCES);
	xs_raw_close(lx);
	guest_death(&server, &late);
}

static void release_closes_the_door_and_introduce_opens_it(void **state)
{
	struct xs_raw *again;
	char args[32], c;

	(void)state;
	OK(xs_raw_watch(x, "@releaseDomain", "r"));
	xs_raw_settle(x);
	xs_raw_forget_events(x);
	OK(xs_raw_1(x, XS_RELEASE, 0, with_id("#")));
	assert_true(xs_raw_event_is(x, "@releaseDomain", "r"));
	assert_int_equal(recv(gx->fd, &c, 1, 0), 0);
	assert_null(guest_try(g.domid));
	FAILS(xs_raw_1(x, XS_RELEASE, 0, with_id("#")), ENOENT);
	FAILS(xs_raw_1(x, XS_INTRODUCE, 0, with_id("#")), EINVAL);
	snprintf(args, sizeof(args), "%u%c1%c1", g.domid, 0, 0);
	OK(xs_raw_call(x, XS_INTRODUCE, 0, args, strlen(args) + 5));
	again = guest_open(g.domid);
	assert_non_null(again);
	OK(xs_raw_1(again, XS_GET_DOMAIN_PATH, 0, "0"));
	xs_raw_close(again);
}

static void target_gives_the_rights_of_another_domain(void **state)
{
	struct guest dm;
	struct xs_raw *dx;
	char id[16];

	(void)state;
	guest_birth(&server, &dm, SIM_NEW_DOMAIN, 0);
	dx = guest_open(dm.domid);
	snprintf(id, sizeof(id), "%u", dm.domid);
	FAILS(xs_raw_write(dx, 0, with_id("/local/domain/#/data/a"), "v"), EACCES);
	OK(xs_raw_2(x, XS_SET_TARGET, 0, id, with_id("#"), true));
	OK(xs_raw_write(dx, 0, with_id("/local/domain/#/data/a"), "v"));
	xs_raw_close(dx);
	guest_death(&server, &dm);
}

#define G(name) cmocka_unit_test_setup_teardown(name, guest_fresh, guest_stale)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    G(guest_has_a_home_it_reads_but_does_not_own),
	    G(guest_owns_what_it_makes),
	    G(guest_writes_its_frontend_as_a_toolstack_makes_it),
	    G(permission_letters_mean_what_they_say),
	    G(absence_is_not_told_to_who_may_not_look),
	    G(privileged_verbs_are_eacces_to_guests),
	    G(events_of_unreadable_nodes_are_suppressed),
	    G(rm_of_a_readable_node_is_seen),
	    G(guest_watches_are_relative_to_its_own_home),
	    G(quota_of_nodes),
	    G(quota_of_nodes_holds_for_transactions),
	    G(quota_of_watches),
	    G(quota_of_transactions),
	    G(quota_of_entry_size),
	    G(quota_of_permissions),
	    G(quota_of_paths_in_a_transaction),
	    G(birth_and_death_fire_the_special_watches),
	    G(death_takes_home_socket_and_connection),
	    G(reborn_domid_inherits_no_permission),
	    G(permissions_given_before_birth_do_not_count),
	    G(release_closes_the_door_and_introduce_opens_it),
	    G(target_gives_the_rights_of_another_domain),
	};
	int failed;

	signal(SIGPIPE, SIG_IGN);
	server_start();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + server_end();
}
