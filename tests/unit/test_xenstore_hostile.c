/*
 * What hostile clients of simxen's xenstore achieve: the end of their own connection, and nothing else.
 */
#include "tests/lib/xs_store.h"

static void oversized_frame_ends_only_its_connection(void **state)
{
	const struct xsd_sockmsg hdr = {.type = XS_READ, .len = XENSTORE_PAYLOAD_MAX + 1};
	struct xs_raw *bad = guest_open(g.domid);
	char c;

	(void)state;
	assert_int_equal(send(bad->fd, &hdr, sizeof(hdr), MSG_NOSIGNAL), sizeof(hdr));
	assert_int_equal(recv(bad->fd, &c, 1, 0), 0);
	xs_raw_close(bad);
	READS(gx, 0, "domid", with_id("#"));
}

static void half_a_frame_disturbs_nobody(void **state)
{
	struct xs_raw *bad = guest_open(g.domid);
	const struct xsd_sockmsg hdr = {.type = XS_WRITE, .len = 100};

	(void)state;
	assert_int_equal(send(bad->fd, &hdr, 7, MSG_NOSIGNAL), 7);
	READS(gx, 0, "domid", with_id("#"));
	assert_int_equal(send(bad->fd, (const char *)&hdr + 7, 9, MSG_NOSIGNAL), 9);
	READS(gx, 0, "domid", with_id("#"));
	xs_raw_close(bad);
	READS(gx, 0, "domid", with_id("#"));
}

/* Events are queued for a client that does not read, up to a bound; then it is cut off. */
static void client_that_never_reads_its_events_is_cut_off(void **state)
{
	struct xs_raw *deaf = guest_open(g.domid);
	char path[2100], token[1500];
	bool cut = false;

	(void)state;
	memset(token, 't', sizeof(token));
	token[sizeof(token) - 1] = '\0';
	OK(xs_raw_watch(deaf, "data", token));
	for (unsigned i = 0; i < 3000; i++) {
		snprintf(path, sizeof(path), "data/%u/%u", i % 9, i % 900);
		OK(xs_raw_write(gx, 0, path, "v"));
	}
	for (unsigned i = 0; i < 4000 && !cut; i++) {
		struct xsd_sockmsg hdr;

		cut = !xs_raw_frame(deaf, &hdr);
		xs_raw_forget_events(deaf);
	}
	assert_true(cut);
	xs_raw_close(deaf);
	READS(gx, 0, "domid", with_id("#"));
}

static void equal_unread_events_are_told_once(void **state)
{
	struct xs_raw *slow = guest_open(g.domid);

	(void)state;
	OK(xs_raw_watch(slow, "data", "tok"));
	for (unsigned i = 0; i < 60000; i++)
		OK(xs_raw_write(x, 0, with_id("/local/domain/#/data"), "v"));
	/* What the socket's buffer held is told one by one, the rest is one. */
	xs_raw_settle(slow);
	assert_in_range(slow->nevents, 2, XS_EVENTS_MAX - 1);
	xs_raw_close(slow);
}

/* A client may send requests without reading: it is not read from until it does, and gets every answer. */
static void pipelined_requests_are_all_answered(void **state)
{
	struct xs_raw *busy = guest_open(g.domid);
	const unsigned n = 20000;
	struct xsd_sockmsg hdr;
	pid_t pid;

	(void)state;
	pid = fork();
	if (pid == 0) {
		for (unsigned i = 0; i < n; i++)
			if (!xs_raw_send(busy, XS_READ, 0, "domid", 6))
				_exit(1);
		_exit(0);
	}
	usleep(100000);
	READS(gx, 0, "domid", with_id("#"));
	for (unsigned i = 0; i < n; i++) {
		assert_true(xs_raw_frame(busy, &hdr));
		assert_int_equal(hdr.type, XS_READ);
		assert_int_equal(hdr.req_id, i + 1);
	}
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	xs_raw_close(busy);
}

static void connections_of_a_guest_are_bounded(void **state)
{
	struct xs_raw *many[40];
	unsigned n;

	(void)state;
	for (n = 0; n < 40; n++) {
		many[n] = guest_open(g.domid);
		assert_non_null(many[n]);
	}
	/* The last ones were accepted by the kernel only. */
	assert_int_equal(xs_raw_read(many[39], 0, "domid"), -EPIPE);
	READS(many[0], 0, "domid", with_id("#"));
	READS(x, 0, "/conf", "");
	while (n--)
		xs_raw_close(many[n]);
}

static void random_frames_do_no_harm(void **state)
{
	static const char *const words[] = {"/",  "data", "@releaseDomain", "T",  "F", "n0",
					    "r1", "0",	  "data/x/y",	    "tok"};
	uint32_t rnd = 12345;

	(void)state;
	for (unsigned round = 0; round < 200; round++) {
		struct xs_raw *c = round % 4 ? guest_open(g.domid) : xs_raw_open(server.dir, socket_name);

		assert_non_null(c);
		for (unsigned i = 0; i < 50; i++) {
			char data[512];
			size_t bytes = 0;

			rnd = rnd * 1664525u + 1013904223u;
			for (unsigned k = rnd >> 30; k; k--) {
				const char *word = words[(rnd >> (4 * k)) % 10];

				memcpy(data + bytes, word, strlen(word) + 1);
				bytes += strlen(word) + ((rnd >> 20) % 5 != 0);
			}
			for (unsigned k = 0; (rnd >> 8) % 7 == 0 && k < 40; k++)
				data[bytes++] = (char)(rnd >> (k % 24));
			if ((rnd >> 10) % 23 == XS_RELEASE)
				continue;
			if (xs_raw_call(c, (rnd >> 10) % 23, (rnd >> 16) % 3, data, bytes) == -EPIPE)
				break;
			xs_raw_forget_events(c);
		}
		xs_raw_close(c);
	}
	xs_raw_close(x);
	x = xs_raw_open(server.dir, socket_name);
	READS(x, 0, with_id("/local/domain/#/domid"), with_id("#"));
}

#define G(name) cmocka_unit_test_setup_teardown(name, guest_fresh, guest_stale)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    G(oversized_frame_ends_only_its_connection),
	    G(half_a_frame_disturbs_nobody),
	    G(client_that_never_reads_its_events_is_cut_off),
	    G(equal_unread_events_are_told_once),
	    G(pipelined_requests_are_all_answered),
	    G(connections_of_a_guest_are_bounded),
	    G(random_frames_do_no_harm),
	};
	int failed;

	signal(SIGPIPE, SIG_IGN);
	server_start();
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	return failed + server_end();
}
