/*
 * Clients of the NBD server that leave, stall or share: disconnects at every point, unread answers, a pool
 * without buffers, removal of exports, several connections. Every test ends with the proof that no device and
 * no buffer is left.
 */
#include "blkd/nbd/proto.h"

#include "tests/lib/nbdclient.h"

static unsigned clients_of(struct rig *g);

static bool one_export(void *ctx, const struct nbd_export_info *x)
{
	*(unsigned *)ctx = x->clients;
	return true;
}

static unsigned clients_of(struct rig *g)
{
	unsigned n = 0;

	nbd_export_each(g->srv, one_export, &n);
	return n;
}

static void wait_for_clients(struct rig *g, unsigned want)
{
	for (unsigned i = 0; i < 30000 && clients_of(g) != want; i++)
		usleep(1000);
	assert_int_equal(clients_of(g), want);
}

static void abrupt_disconnects_leave_nothing(void **state)
{
	unsigned char *junk = calloc(1, MIB);
	struct rig g;

	(void)state;
	rig_start(&g, 64 * MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	for (unsigned round = 0; round < 60; round++) {
		int fd = enter(&g, "disk", round & 1);

		for (unsigned i = 0; i < 40; i++)
			ask(fd, CMD_READ, 0, i, (uint64_t)i * MIB, round % 3 ? 4096 : MIB + 4096);
		if (round % 4 == 1) { /* in the middle of a payload */
			ask(fd, CMD_WRITE, 0, 99, 0, MIB);
			put(fd, junk, 1000 * (round % 7));
		}
		if (round % 5 == 2) /* in the middle of a header */
			put(fd, junk, 11);
		if (round % 6 == 3)
			get(fd, junk, 100);
		close(fd);
	}
	wait_for_clients(&g, 0);
	free(junk);
	rig_stop(&g);
}

static void disc_answers_what_is_in_flight_first(void **state)
{
	unsigned char buf[4096];
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = enter(&g, "disk", false);
	for (unsigned i = 0; i < 64; i++)
		ask(fd, CMD_READ, 0, i, i * 4096, 4096);
	ask(fd, CMD_DISC, 0, 0, 0, 0);
	for (unsigned i = 0; i < 64; i++) {
		assert_int_equal(answer(fd, NULL), 0);
		get(fd, buf, sizeof(buf));
	}
	expect_closed(fd);
	/* As does closing one half without DISC. */
	fd = enter(&g, "disk", false);
	ask(fd, CMD_READ, 0, 1, 0, 4096);
	shutdown(fd, SHUT_WR);
	assert_int_equal(answer(fd, NULL), 0);
	get(fd, buf, sizeof(buf));
	expect_closed(fd);
	rig_stop(&g);
}

static void unread_answers_hold_up_their_client_only(void **state)
{
	enum { N = 200 };
	struct bufpool_stats stats;
	unsigned char *buf = malloc(MIB), sector[512];
	struct rig g;
	int greedy, other;

	(void)state;
	rig_start(&g, 64 * MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	greedy = enter(&g, "disk", false);
	other = enter(&g, "disk", false);
	for (unsigned i = 0; i < N; i++)
		ask(greedy, CMD_READ, 0, i, (i % 64) * MIB, MIB);
	for (unsigned i = 0; i < 200; i++)
		assert_int_equal(do_read(other, i * 512, sector, 512), 0);
	bufpool_stats(g.pool, &stats);
	assert_true(stats.in_use_bytes <= 9 * MIB);
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(answer(greedy, NULL), 0);
		get(greedy, buf, MIB);
	}
	hang_up(greedy);
	hang_up(other);
	free(buf);
	rig_stop(&g);
}

/* Takes all of the pool, so that each device has only its own last buffer. */
static unsigned take_pool(struct rig *g, struct buf *bufs, unsigned max)
{
	unsigned n = 0;

	while (n < max && bufpool_get(g->pool, BUF_UNIT_BYTES, &bufs[n]))
		n++;
	return n;
}

static void the_last_buffer_never_waits_for_a_client(void **state)
{
	enum { MAX = POOL_BYTES / BUF_UNIT_BYTES };
	struct buf *bufs = calloc(MAX, sizeof(*bufs));
	unsigned char *a = malloc(8 * MIB), *b = malloc(8 * MIB);
	int unread[3], half, good;
	unsigned n;
	struct rig g;

	(void)state;
	rig_start(&g, 16 * MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	good = enter(&g, "disk", true);
	fill(a, 8 * MIB, 2);
	assert_int_equal(do_write(good, 0, 0, a, 8 * MIB), 0);
	n = take_pool(&g, bufs, MAX);
	assert_true(n > 0);
	/* Three that do not read their answers, one that does not finish its payload. */
	for (unsigned i = 0; i < 3; i++) {
		unread[i] = enter(&g, "disk", i & 1);
		for (unsigned k = 0; k < 10; k++)
			ask(unread[i], CMD_READ, 0, k, k * MIB / 2, MIB);
		ask(unread[i], CMD_READ, 0, 10, 0, 6 * MIB);
	}
	half = enter(&g, "disk", false);
	ask(half, CMD_WRITE, 0, 1, 8 * MIB, MIB);
	put(half, a, MIB - 1);
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(do_write(good, 0, 10 * MIB, a, 2 * MIB), 0);
		assert_int_equal(do_chunked(good, 0, 0, b, 2 * MIB, NULL), 0);
		assert_memory_equal(a, b, 2 * MIB);
	}
	put(half, a + MIB - 1, 1);
	assert_int_equal(answer(half, NULL), 0);
	assert_int_equal(do_read(half, 8 * MIB, b, MIB), 0);
	assert_memory_equal(a, b, MIB);
	/* And they get what they asked for, once they read. */
	for (unsigned i = 0; i < 3; i += 2) {
		for (unsigned k = 0; k < 11; k++) {
			uint64_t cookie;
			uint32_t len;

			assert_int_equal(answer(unread[i], &cookie), 0);
			assert_true(cookie <= 10);
			len = cookie == 10 ? 6 * MIB : MIB;
			get(unread[i], b, len);
			assert_memory_equal(b, a + (cookie == 10 ? 0 : cookie * MIB / 2), len);
		}
		hang_up(unread[i]);
	}
	close(unread[1]);
	hang_up(half);
	hang_up(good);
	wait_for_clients(&g, 0);
	while (n)
		bufpool_put(g.pool, &bufs[--n]);
	free(bufs);
	free(a);
	free(b);
	rig_stop(&g);
}

static void idle_strangers_do_not_disturb(void **state)
{
	unsigned char sector[512];
	int fds[80], fd;
	struct rig g;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = enter(&g, "disk", false);
	for (unsigned i = 0; i < 80; i++) /* more than may haggle at once */
		fds[i] = dial(&g);
	assert_int_equal(do_read(fd, 0, sector, 512), 0);
	for (unsigned i = 0; i < 80; i++)
		close(fds[i]);
	hang_up(fd);
	fd = enter(&g, "disk", false); /* there is room again */
	hang_up(fd);
	rig_stop(&g);
}

static void removal_waits_for_clients_or_ends_them(void **state)
{
	unsigned char buf[4096];
	struct err e = ERR_INIT;
	struct rig g;
	int fd, more;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	assert_int_equal(rig_try_export(&g, g.image, "disk", true, NULL, &e), -EEXIST);
	fd = enter(&g, "disk", false);
	more = enter(&g, "disk", true);
	wait_for_clients(&g, 2);
	assert_int_equal(nbd_export_remove(g.srv, "disk", false, &e), -EBUSY);
	assert_non_null(strstr(e.text, "2 clients"));
	for (unsigned i = 0; i < 32; i++)
		ask(fd, CMD_READ, 0, i, i * 4096, 4096);
	assert_int_equal(do_simple(more, CMD_FLUSH, 0, 0, 0), 0);
	assert_int_equal(answer(fd, NULL), 0); /* so the others were taken too */
	get(fd, buf, 4096);
	assert_int_equal(nbd_export_remove(g.srv, "disk", true, &e), 0);
	assert_int_equal(devtab_count(), 0);
	for (unsigned i = 1; i < 32; i++) {
		ssize_t r = recv(fd, buf, 1, MSG_PEEK);

		if (r <= 0)
			break; /* what it had not read from the socket is not answered */
		assert_int_equal(answer(fd, NULL), 0);
		get(fd, buf, 4096);
	}
	expect_closed(fd);
	expect_closed(more);
	assert_int_equal(nbd_export_remove(g.srv, "disk", true, &e), -ENOENT);
	rig_export(&g, g.image, "disk", true, NULL); /* and it can be served again */
	rig_stop(&g);
}

static void a_client_that_reads_nothing_cannot_stop_a_removal(void **state)
{
	struct err e = ERR_INIT;
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, 64 * MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = enter(&g, "disk", false);
	for (unsigned i = 0; i < 30; i++)
		ask(fd, CMD_READ, 0, i, i * MIB, MIB);
	assert_int_equal(nbd_export_remove(g.srv, "disk", true, &e), 0);
	close(fd);
	rig_stop(&g);
}

static void all_connections_share_one_disk(void **state)
{
	unsigned char a[4096], b[4096];
	int fd[4];
	struct rig g;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	for (unsigned i = 0; i < 4; i++)
		fd[i] = enter(&g, "disk", i & 1);
	for (unsigned i = 0; i < 64; i++) {
		fill(a, sizeof(a), i);
		assert_int_equal(do_write(fd[i % 4], 0, i * 4096, a, 4096), 0);
		assert_int_equal(do_simple(fd[(i + 1) % 4], CMD_FLUSH, 0, 0, 0), 0);
		assert_int_equal(do_read(fd[(i / 4 % 2) * 2], i * 4096, b, 4096), 0);
		assert_memory_equal(a, b, 4096);
	}
	for (unsigned i = 0; i < 4; i++)
		hang_up(fd[i]);
	rig_stop(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(abrupt_disconnects_leave_nothing),
	    cmocka_unit_test(disc_answers_what_is_in_flight_first),
	    cmocka_unit_test(unread_answers_hold_up_their_client_only),
	    cmocka_unit_test(the_last_buffer_never_waits_for_a_client),
	    cmocka_unit_test(idle_strangers_do_not_disturb),
	    cmocka_unit_test(removal_waits_for_clients_or_ends_them),
	    cmocka_unit_test(a_client_that_reads_nothing_cannot_stop_a_removal),
	    cmocka_unit_test(all_connections_share_one_disk),
	};

	log_set_level(LOG_ERROR);
	return cmocka_run_group_tests_name("nbd_ends", tests, NULL, NULL);
}
