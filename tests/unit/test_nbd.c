/*
 * The NBD server as a hostile or merely odd client sees it: the door's rules as tables, the handshake option
 * by option, the server's socket and names. Every test ends with the proof that no device and no buffer is
 * left.
 */
#include "blkd/nbd/proto.h"

#include "tests/lib/nbdclient.h"

/* ---- the door ---- */

static void errors_become_what_the_protocol_knows(void **state)
{
	(void)state;
	assert_int_equal(nbd_error_of(0), 0);
	assert_int_equal(nbd_error_of(-EPERM), 1);
	assert_int_equal(nbd_error_of(-EROFS), 1);
	assert_int_equal(nbd_error_of(-EIO), 5);
	assert_int_equal(nbd_error_of(-ENOMEM), 12);
	assert_int_equal(nbd_error_of(-EINVAL), 22);
	assert_int_equal(nbd_error_of(-ENOSPC), 28);
	assert_int_equal(nbd_error_of(-EDQUOT), 28);
	assert_int_equal(nbd_error_of(-EFBIG), 28);
	assert_int_equal(nbd_error_of(-EOVERFLOW), 75);
	assert_int_equal(nbd_error_of(-EOPNOTSUPP), 95);
	assert_int_equal(nbd_error_of(-ESHUTDOWN), 108);
	assert_int_equal(nbd_error_of(-EBADF), 5);
	assert_int_equal(nbd_error_of(-ESTALE), 5);
}

static void the_door_judges_each_command(void **state)
{
	static const struct nbd_session rw = {.size_bytes = MIB, .structured = true, .block_status = true};
	static const struct nbd_session ro = {.size_bytes = MIB, .read_only = true};
	static const struct {
		const struct nbd_session *session;
		unsigned type, flags;
		uint64_t off;
		uint32_t len;
		unsigned error;
	} cases[] = {
	    {&rw, CMD_READ, 0, 0, 512, 0},
	    {&rw, CMD_READ, F_FUA | F_DF, 512, 4096, 0},
	    {&ro, CMD_READ, F_DF, 0, 512, NBD_EINVAL}, /* without structured replies */
	    {&rw, CMD_READ, F_NO_HOLE, 0, 512, NBD_EINVAL},
	    {&rw, CMD_READ, 0, 0, 0, NBD_EINVAL},
	    {&rw, CMD_READ, 0, 1, 512, NBD_EINVAL},
	    {&rw, CMD_READ, 0, 0, 511, NBD_EINVAL},
	    {&rw, CMD_READ, 0, MIB - 512, 512, 0},
	    {&rw, CMD_READ, 0, MIB - 512, 1024, NBD_EINVAL},
	    {&rw, CMD_READ, 0, UINT64_MAX - 511, 512, NBD_EINVAL},
	    {&rw, CMD_READ, 0, 0, 0xfffffe00u, NBD_EINVAL},
	    {&rw, CMD_WRITE, F_FUA, 0, 512, 0},
	    {&rw, CMD_WRITE, F_DF, 0, 512, NBD_EINVAL},
	    {&rw, CMD_WRITE, 0, MIB, 512, NBD_ENOSPC},
	    {&rw, CMD_WRITE, 0, 0, 0, NBD_EINVAL},
	    {&ro, CMD_WRITE, 0, 0, 512, NBD_EPERM},
	    {&rw, CMD_TRIM, F_FUA, 0, MIB, 0},
	    {&rw, CMD_TRIM, 0, 0, MIB + 512, NBD_EINVAL},
	    {&ro, CMD_TRIM, 0, 0, 512, NBD_EPERM},
	    {&rw, CMD_ZEROES, F_FUA | F_NO_HOLE | F_FAST, 0, 512, 0},
	    {&rw, CMD_ZEROES, F_ONE, 0, 512, NBD_EINVAL},
	    {&rw, CMD_ZEROES, 0, 512, MIB, NBD_ENOSPC},
	    {&ro, CMD_ZEROES, 0, 0, 512, NBD_EPERM},
	    {&rw, CMD_FLUSH, F_FUA, 0, 0, 0},
	    {&ro, CMD_FLUSH, 0, 0, 0, 0},
	    {&rw, CMD_FLUSH, 0, 512, 0, NBD_EINVAL},
	    {&rw, CMD_FLUSH, 0, 0, 512, NBD_EINVAL},
	    {&rw, CMD_STATUS, F_ONE, 0, MIB, 0},
	    {&ro, CMD_STATUS, 0, 0, 512, NBD_EINVAL}, /* not negotiated */
	    {&rw, CMD_STATUS, 0, 0, MIB + 512, NBD_EINVAL},
	    {&rw, CMD_CACHE, 0, 0, 512, NBD_EINVAL},
	    {&rw, 8, 0, 0, 512, NBD_EINVAL},
	    {&rw, 0xffff, 0, 0, 512, NBD_EINVAL},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct nbd_request r = {.type = (uint16_t)cases[i].type,
					.flags = (uint16_t)cases[i].flags,
					.off_bytes = cases[i].off,
					.len_bytes = cases[i].len};

		if (nbd_request_check(cases[i].session, &r) != cases[i].error)
			fail_msg("case %zu: %d", i, nbd_request_check(cases[i].session, &r));
	}
}

/* ---- handshake ---- */

static void unknown_client_flags_end_the_connection(void **state)
{
	struct rig g;

	(void)state;
	rig_start(&g, MIB);
	expect_closed(greet(&g, 4));
	expect_closed(greet(&g, 0x80000003u));
	rig_stop(&g);
}

static void export_name_enters_with_and_without_zeroes(void **state)
{
	unsigned char zeroes[124], sector[512];
	struct rig g;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	for (unsigned flags = 1; flags <= 3; flags += 2) {
		int fd = greet(&g, flags);

		opt(fd, OPT_EXPORT_NAME, "disk", 4);
		assert_true(get64(fd) == MIB);
		assert_int_equal(get16(fd), 1 | 4 | 8 | 32 | 64 | 256 | 2048);
		if (!(flags & 2)) {
			get(fd, zeroes, sizeof(zeroes));
			for (unsigned i = 0; i < sizeof(zeroes); i++)
				assert_int_equal(zeroes[i], 0);
		}
		assert_int_equal(do_read(fd, 0, sector, 512), 0);
		hang_up(fd);
	}
	rig_stop(&g);
}

static void export_name_of_nothing_ends_the_connection(void **state)
{
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	fd = greet(&g, 3);
	opt(fd, OPT_EXPORT_NAME, "nope", 4);
	expect_closed(fd);
	fd = greet(&g, 3);
	opt(fd, OPT_EXPORT_NAME, "", 0);
	expect_closed(fd);
	rig_stop(&g);
}

static void go_tells_size_flags_and_what_was_asked(void **state)
{
	static const uint16_t infos[] = {1, 2, 3, 77};
	unsigned char buf[1024];
	bool seen[4] = {0};
	uint32_t type, len;
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", false, NULL);
	fd = greet(&g, 3);
	opt(fd, OPT_STRUCTURED, "", 0);
	assert_int_equal(last_reply(fd, OPT_STRUCTURED, NULL), 1);
	opt(fd, OPT_INFO, buf, go_data(buf, "disk", 4, infos));
	while ((type = reply(fd, OPT_INFO, buf, sizeof(buf), &len)) == 3) {
		assert_int_equal(buf[0], 0);
		assert_true(buf[1] <= 3 && !seen[buf[1]]);
		seen[buf[1]] = true;
		if (buf[1] == 0) {
			assert_int_equal(len, 12);
			assert_int_equal(buf[10] << 8 | buf[11], 1 | 2 | 4 | 8 | 128 | 256);
		} else if (buf[1] == 1) {
			assert_int_equal(len, 6);
			assert_memory_equal(buf + 2, "disk", 4);
		} else if (buf[1] == 3) {
			assert_memory_equal(buf + 2, "\0\0\2\0\0\0\x10\0\2\0\0\0", 12);
		}
	}
	assert_int_equal(type, 1);
	assert_true(seen[0] && seen[1] && seen[2] && seen[3]);
	/* INFO does not enter: another option is still possible. */
	opt(fd, OPT_ABORT, "bye", 3);
	assert_int_equal(last_reply(fd, OPT_ABORT, NULL), 1);
	expect_closed(fd);
	rig_stop(&g);
}

static void list_names_all_exports(void **state)
{
	unsigned char buf[1024];
	char second[128];
	unsigned n;
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = greet(&g, 3);
	opt(fd, OPT_LIST, "", 0);
	assert_int_equal(reply(fd, OPT_LIST, buf, sizeof(buf), NULL), 2);
	assert_memory_equal(buf, "\0\0\0\4disk", 8);
	assert_int_equal(last_reply(fd, OPT_LIST, NULL), 1);
	snprintf(second, sizeof(second), "%s/two.raw", g.dir);
	n = (unsigned)open(second, O_CREAT | O_RDWR, 0600);
	assert_int_equal(ftruncate((int)n, MIB), 0);
	close((int)n);
	rig_export(&g, second, "two", true, NULL);
	opt(fd, OPT_LIST, "", 0);
	assert_int_equal(last_reply(fd, OPT_LIST, &n), 1);
	assert_int_equal(n, 2);
	opt(fd, OPT_LIST, "x", 1);
	assert_int_equal(last_reply(fd, OPT_LIST, NULL), REP_INVALID);
	/* The empty name means the only export, and there are two. */
	opt(fd, OPT_INFO, buf, go_data(buf, "", 0, NULL));
	assert_int_equal(last_reply(fd, OPT_INFO, NULL), REP_UNKNOWN);
	assert_int_equal(nbd_export_remove(g.srv, "two", false, NULL), 0);
	opt(fd, OPT_INFO, buf, go_data(buf, "", 0, NULL));
	assert_int_equal(last_reply(fd, OPT_INFO, &n), 1);
	close(fd);
	rig_stop(&g);
}

static void options_are_refused_with_the_right_reason(void **state)
{
	unsigned char buf[16384] = {0};
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = greet(&g, 3);
	opt(fd, OPT_STARTTLS, "", 0);
	assert_int_equal(last_reply(fd, OPT_STARTTLS, NULL), REP_UNSUP);
	opt(fd, 4, "peek", 4);
	assert_int_equal(last_reply(fd, 4, NULL), REP_UNSUP);
	opt(fd, 0xffffffffu, buf, 8000);
	assert_int_equal(last_reply(fd, 0xffffffffu, NULL), REP_UNSUP);
	opt(fd, OPT_STRUCTURED, "x", 1);
	assert_int_equal(last_reply(fd, OPT_STRUCTURED, NULL), REP_INVALID);
	opt(fd, OPT_GO, buf, go_data(buf, "nope", 0, NULL));
	assert_int_equal(last_reply(fd, OPT_GO, NULL), REP_UNKNOWN);
	opt(fd, OPT_GO, buf, go_data(buf, "dis", 0, NULL));
	assert_int_equal(last_reply(fd, OPT_GO, NULL), REP_UNKNOWN);
	opt(fd, OPT_GO, buf, sizeof(buf));
	assert_int_equal(last_reply(fd, OPT_GO, NULL), REP_TOO_BIG);
	opt(fd, OPT_ABORT, "", 0);
	assert_int_equal(last_reply(fd, OPT_ABORT, NULL), 1);
	expect_closed(fd);
	rig_stop(&g);
}

static void lengths_inside_options_are_checked(void **state)
{
	unsigned char buf[512];
	uint32_t len;
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = greet(&g, 3);
	opt(fd, OPT_STRUCTURED, "", 0);
	assert_int_equal(last_reply(fd, OPT_STRUCTURED, NULL), 1);
	len = go_data(buf, "disk", 2, (const uint16_t[]){1, 3});
	for (uint32_t cut = 0; cut < len; cut++) {
		opt(fd, OPT_INFO, buf, cut);
		assert_int_equal(last_reply(fd, OPT_INFO, NULL), REP_INVALID);
	}
	opt(fd, OPT_INFO, buf, len + 1);
	assert_int_equal(last_reply(fd, OPT_INFO, NULL), REP_INVALID);
	memset(buf, 0xff, 4); /* a name of 4 GiB */
	opt(fd, OPT_INFO, buf, len);
	assert_int_equal(last_reply(fd, OPT_INFO, NULL), REP_INVALID);
	len = meta_data(buf, "disk", 1, (const char *const[]){"base:allocation"});
	for (uint32_t cut = 0; cut < len; cut++) {
		opt(fd, OPT_SET_META, buf, cut);
		assert_int_equal(last_reply(fd, OPT_SET_META, NULL), REP_INVALID);
	}
	memset(buf + 8, 0xff, 4); /* 4 Gi queries */
	opt(fd, OPT_LIST_META, buf, len);
	assert_int_equal(last_reply(fd, OPT_LIST_META, NULL), REP_INVALID);
	close(fd);
	rig_stop(&g);
}

static void absurd_options_end_the_connection(void **state)
{
	unsigned char head[16] = "IHAVEOPT\0\0\0\3\xff\xff\xff";
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	fd = greet(&g, 3);
	put(fd, head, 16);
	expect_closed(fd);
	fd = greet(&g, 3);
	head[0] = 'X';
	put(fd, head, 16);
	expect_closed(fd);
	rig_stop(&g);
}

static void the_handshake_may_come_byte_by_byte(void **state)
{
	unsigned char buf[64], all[128] = "\0\0\0\3IHAVEOPT\0\0\0\7\0\0\0\12", sector[512];
	uint32_t len;
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	len = go_data(buf, "disk", 0, NULL);
	assert_int_equal(len, 10);
	memcpy(all + 20, buf, len);
	fd = dial(&g);
	for (unsigned i = 0; i < 20 + len; i++) {
		put(fd, all + i, 1);
		usleep(200);
	}
	get(fd, buf, 18);
	assert_int_equal(last_reply(fd, OPT_GO, NULL), 1);
	assert_int_equal(do_read(fd, 0, sector, 512), 0);
	close(fd);
	rig_stop(&g);
}

/* Not allowed to a client, but nobody must hang. */
static void options_sent_without_waiting_are_all_answered(void **state)
{
	enum { N = 400 };
	struct rig g;
	unsigned n;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = greet(&g, 3);
	for (unsigned i = 0; i < N; i++)
		opt(fd, i % 2 ? OPT_LIST : 77, "", 0);
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(last_reply(fd, i % 2 ? OPT_LIST : 77, &n), i % 2 ? 1 : REP_UNSUP);
		assert_int_equal(n, i % 2);
	}
	close(fd);
	rig_stop(&g);
}

static void contexts_are_listed_and_chosen(void **state)
{
	static const char *const base[] = {"base:allocation"}, *const wild[] = {"base:"},
				 *const other[] = {"qemu:x", "nonsense"};
	unsigned char buf[512];
	unsigned n;
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = greet(&g, 3);
	opt(fd, OPT_SET_META, buf, meta_data(buf, "disk", 1, base));
	assert_int_equal(last_reply(fd, OPT_SET_META, NULL), REP_INVALID); /* before structured replies */
	opt(fd, OPT_STRUCTURED, "", 0);
	assert_int_equal(last_reply(fd, OPT_STRUCTURED, NULL), 1);
	opt(fd, OPT_LIST_META, buf, meta_data(buf, "disk", 0, NULL));
	assert_int_equal(last_reply(fd, OPT_LIST_META, &n), 1);
	assert_int_equal(n, 1);
	opt(fd, OPT_LIST_META, buf, meta_data(buf, "disk", 1, wild));
	assert_int_equal(last_reply(fd, OPT_LIST_META, &n), 1);
	assert_int_equal(n, 1);
	opt(fd, OPT_LIST_META, buf, meta_data(buf, "disk", 2, other));
	assert_int_equal(last_reply(fd, OPT_LIST_META, &n), 1);
	assert_int_equal(n, 0);
	opt(fd, OPT_LIST_META, buf, meta_data(buf, "nope", 0, NULL));
	assert_int_equal(last_reply(fd, OPT_LIST_META, NULL), REP_UNKNOWN);
	opt(fd, OPT_SET_META, buf, meta_data(buf, "", 1, base)); /* the only export, by its empty name */
	assert_int_equal(last_reply(fd, OPT_SET_META, &n), 1);
	assert_int_equal(n, 1);
	opt(fd, OPT_SET_META, buf, meta_data(buf, "disk", 0, NULL)); /* no queries: none chosen */
	assert_int_equal(last_reply(fd, OPT_SET_META, &n), 1);
	assert_int_equal(n, 0);
	opt(fd, OPT_GO, buf, go_data(buf, "disk", 0, NULL));
	assert_int_equal(last_reply(fd, OPT_GO, NULL), 1);
	ask(fd, CMD_STATUS, 0, 5, 0, MIB);
	assert_int_equal(get_chunk(fd).type, 0x8001);
	assert_int_equal(get32(fd), NBD_EINVAL);
	close(fd);
	rig_stop(&g);
}

/* ---- the server ---- */

static void a_live_socket_is_refused_a_stale_one_replaced(void **state)
{
	struct nbd_server *second = NULL;
	struct err e = ERR_INIT;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	char long_path[200];
	struct rig g;
	struct stat st;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	assert_int_equal(stat(g.sock, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(nbd_server_start(g.sock, &second, &e), -EADDRINUSE);
	memset(long_path, 'x', sizeof(long_path) - 1);
	long_path[sizeof(long_path) - 1] = '\0';
	assert_int_equal(nbd_server_start(long_path, &second, &e), -ENAMETOOLONG);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/stale", g.dir);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	assert_int_equal(nbd_server_start(addr.sun_path, &second, &e), 0);
	nbd_server_stop(second);
	assert_int_equal(access(addr.sun_path, F_OK), -1);
	rig_stop(&g);
}

static void uris_are_percent_encoded(void **state)
{
	char buf[256], want[256];
	struct rig g;

	(void)state;
	rig_start(&g, MIB);
	assert_int_equal(nbd_uri(g.srv, "a b/c?%", buf, sizeof(buf)), 0);
	snprintf(want, sizeof(want), "nbd+unix:///a%%20b%%2Fc%%3F%%25?socket=%s", g.sock);
	assert_string_equal(buf, want);
	for (size_t room = 1; room <= strlen(want); room++)
		assert_int_equal(nbd_uri(g.srv, "a b/c?%", buf, room), -ENAMETOOLONG);
	assert_int_equal(nbd_uri(g.srv, "a b/c?%", buf, strlen(want) + 1), 0);
	rig_stop(&g);
}

static void names_are_checked(void **state)
{
	char name[300];
	struct err e = ERR_INIT;
	struct rig g;

	(void)state;
	rig_start(&g, MIB);
	memset(name, 'n', sizeof(name));
	name[256] = '\0';
	assert_int_equal(rig_try_export(&g, g.image, name, true, NULL, &e), -EINVAL);
	assert_int_equal(rig_try_export(&g, g.image, "", true, NULL, &e), -EINVAL);
	assert_int_equal(rig_try_export(&g, g.image, "a\nb", true, NULL, &e), -EINVAL);
	name[255] = '\0';
	rig_export(&g, g.image, name, true, NULL);
	hang_up(enter(&g, name, true));
	rig_stop(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(errors_become_what_the_protocol_knows),
	    cmocka_unit_test(the_door_judges_each_command),
	    cmocka_unit_test(unknown_client_flags_end_the_connection),
	    cmocka_unit_test(export_name_enters_with_and_without_zeroes),
	    cmocka_unit_test(export_name_of_nothing_ends_the_connection),
	    cmocka_unit_test(go_tells_size_flags_and_what_was_asked),
	    cmocka_unit_test(list_names_all_exports),
	    cmocka_unit_test(options_are_refused_with_the_right_reason),
	    cmocka_unit_test(lengths_inside_options_are_checked),
	    cmocka_unit_test(absurd_options_end_the_connection),
	    cmocka_unit_test(the_handshake_may_come_byte_by_byte),
	    cmocka_unit_test(options_sent_without_waiting_are_all_answered),
	    cmocka_unit_test(contexts_are_listed_and_chosen),
	    cmocka_unit_test(a_live_socket_is_refused_a_stale_one_replaced),
	    cmocka_unit_test(uris_are_percent_encoded),
	    cmocka_unit_test(names_are_checked),
	};

	log_set_level(LOG_ERROR);
	return cmocka_run_group_tests_name("nbd", tests, NULL, NULL);
}
