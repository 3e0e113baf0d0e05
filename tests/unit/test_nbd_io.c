/*
 * The NBD server's transmission phase, over a real socket to a device on a real file with io_uring: every
 * command, splits, pieces, refusals, failing storage, zeros and holes.
 */
#include "blkd/nbd/proto.h"

#include "blkd/backing.h"
#include "blkd/bytes.h"
#include "blkd/clock.h"
#include "blkd/vhd.h"
#include "tests/lib/nbdclient.h"

/* ---- an engine that fails some, or lets small reads wait ---- */

static uint64_t bad_from = UINT64_MAX, bad_to;
static bool lag;
static struct list lagging; /* the device thread's */
static struct io_engine_ops odd_engine;

static bool is_bad(const struct io *io)
{
	uint64_t from = __atomic_load_n(&bad_from, __ATOMIC_SEQ_CST),
		 to = __atomic_load_n(&bad_to, __ATOMIC_SEQ_CST);

	return (io->op == IO_READ || io->op == IO_WRITE) && io->off_bytes < to &&
	       io->off_bytes + io->len_bytes > from;
}

/* While large reads complete, small ones are kept; they come, last first, when nothing else does. */
static void odd_turn(struct io_engine *engine, uint64_t deadline_ns, struct list *done, struct list *ready)
{
	struct list *pos, *next;
	unsigned others = 0;

	io_uring_engine.turn(engine,
			     list_empty(&lagging) ? deadline_ns : u64_min(deadline_ns, clock_ns() + 2000000),
			     done, ready);
	list_for_each_safe (pos, next, done) {
		struct io *io = container_of(pos, struct io, link);

		if (is_bad(io))
			io->res = -EIO;
		if (__atomic_load_n(&lag, __ATOMIC_SEQ_CST) && io->op == IO_READ && io->len_bytes <= 65536) {
			list_del(&io->link);
			list_add_tail(&lagging, &io->link);
		} else {
			others++;
		}
	}
	while (!others && !list_empty(&lagging)) {
		pos = lagging.prev;
		list_del(pos);
		list_add_tail(done, pos);
	}
}

static int odd_create(unsigned depth, struct io_engine **out, struct err *e)
{
	int res = io_uring_engine.create(depth, out, e);

	list_init(&lagging);
	if (res == 0)
		(*out)->ops = &odd_engine;
	return res;
}

static const struct io_engine_ops *odd(bool lags)
{
	odd_engine = io_uring_engine;
	odd_engine.create = odd_create;
	odd_engine.turn = odd_turn;
	lag = lags;
	return &odd_engine;
}

static void break_range(uint64_t from, uint64_t to)
{
	__atomic_store_n(&bad_from, from, __ATOMIC_SEQ_CST);
	__atomic_store_n(&bad_to, to, __ATOMIC_SEQ_CST);
}

/* ---- data ---- */

static void what_is_written_is_read_back(void **state)
{
	unsigned char *a = malloc(MIB), *b = malloc(MIB);
	struct rig g;

	(void)state;
	rig_start(&g, 4 * MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	for (int structured = 0; structured < 2; structured++) {
		int fd = enter(&g, "disk", structured);

		fill(a, MIB, (unsigned)structured);
		assert_int_equal(do_write(fd, 0, 512, a, 512), 0);
		assert_int_equal(do_write(fd, F_FUA, 8192, a, 65536), 0);
		assert_int_equal(do_write(fd, 0, MIB, a, MIB), 0);
		assert_int_equal(do_simple(fd, CMD_FLUSH, 0, 0, 0), 0);
		if (structured) {
			assert_int_equal(do_chunked(fd, 0, MIB, b, MIB, NULL), 0);
			assert_memory_equal(a, b, MIB);
			assert_int_equal(do_chunked(fd, F_DF, 8192, b, 65536, NULL), 0);
		} else {
			assert_int_equal(do_read(fd, MIB, b, MIB), 0);
			assert_memory_equal(a, b, MIB);
			assert_int_equal(do_read(fd, 8192, b, 65536), 0);
		}
		assert_memory_equal(a, b, 65536);
		hang_up(fd);
	}
	free(a);
	free(b);
	rig_stop(&g);
}

static void commands_of_32_mib_are_split(void **state)
{
	const uint32_t len = 32 * MIB;
	unsigned char *a = malloc(len), *b = malloc(len);
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, 80 * MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fill(a, len, 1);
	fd = enter(&g, "disk", false);
	assert_int_equal(do_write(fd, 0, 512, a, len), 0);
	assert_int_equal(do_read(fd, 512, b, len),
			 0); /* ordered, and streamed: more than a connection may hold */
	assert_memory_equal(a, b, len);
	memset(b, 0, len);
	assert_int_equal(do_read(fd, 512, b, 3 * MIB), 0); /* ordered, whole */
	assert_memory_equal(a, b, 3 * MIB);
	hang_up(fd);
	fd = enter(&g, "disk", true);
	memset(b, 0, len);
	assert_int_equal(do_chunked(fd, 0, 512, b, len, NULL), 0);
	assert_memory_equal(a, b, len);
	assert_int_equal(do_chunked(fd, F_DF, 0, b, 2 * MIB, NULL), NBD_EOVERFLOW);
	hang_up(fd);
	free(a);
	free(b);
	rig_stop(&g);
}

/* Of the i-th read: small ones, some that are answered whole, some that stream. */
static uint32_t mixed_len(uint64_t i)
{
	if (i % 40 == 39)
		return 20 * MIB;
	return i % 20 == 19 ? 3 * MIB + 512 : 65536;
}

static void ordered_reads_queue_behind_others(void **state)
{
	enum { N = 160 };
	unsigned char *a = malloc(24 * MIB), *b = malloc(24 * MIB);
	uint64_t cookie;
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, 32 * MIB);
	rig_export(&g, g.image, "disk", true, odd(true));
	fill(a, 24 * MIB, 3);
	fd = enter(&g, "disk", false);
	assert_int_equal(do_write(fd, 0, 0, a, 24 * MIB), 0);
	for (unsigned i = 0; i < N; i++)
		ask(fd, CMD_READ, 0, i, i * 512, mixed_len(i));
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(answer(fd, &cookie), 0);
		assert_true(cookie < N);
		get(fd, b, mixed_len(cookie));
		assert_memory_equal(a + cookie * 512, b, mixed_len(cookie));
	}
	hang_up(fd);
	free(a);
	free(b);
	rig_stop(&g);
}

static void refusals_leave_the_connection_usable(void **state)
{
	unsigned char *junk = calloc(1, 2 * MIB), sector[512];
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = enter(&g, "disk", false);
	memset(junk, 0x55, 2 * MIB);
	assert_int_equal(do_write(fd, 0, 100, junk, 1024), NBD_EINVAL);
	assert_int_equal(do_write(fd, 0, 0, junk, 1000), NBD_EINVAL);
	assert_int_equal(do_write(fd, 0, 0, junk, 0), NBD_EINVAL);
	assert_int_equal(do_write(fd, 0x40, 0, junk, 512), NBD_EINVAL);
	assert_int_equal(do_write(fd, 0, 512, junk, MIB), NBD_ENOSPC);
	assert_int_equal(do_write(fd, 0, MIB - MIB / 2, junk, 2 * MIB), NBD_ENOSPC);
	assert_int_equal(do_read(fd, 0, sector, 100), NBD_EINVAL);
	assert_int_equal(do_read(fd, 1, sector, 512), NBD_EINVAL);
	assert_int_equal(do_simple(fd, CMD_READ, 0, 0, 33 * MIB), NBD_EINVAL);
	assert_int_equal(do_simple(fd, CMD_READ, 0, 0, 0xffffffffu), NBD_EINVAL);
	assert_int_equal(do_simple(fd, CMD_CACHE, 0, 0, 4096), NBD_EINVAL);
	assert_int_equal(do_simple(fd, CMD_STATUS, 0, 0, 4096), NBD_EINVAL);
	assert_int_equal(do_simple(fd, 99, 0, 0, 4096), NBD_EINVAL);
	assert_int_equal(do_read(fd, 0, sector, 512), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(sector[i], 0);
	hang_up(fd);
	free(junk);
	rig_stop(&g);
}

static void a_read_only_export_is_not_changed(void **state)
{
	unsigned char sector[512] = {1};
	struct rig g;

	(void)state;
	for (int writable = 0; writable < 2; writable++) {
		int fd;

		rig_start(&g, MIB);
		if (writable) { /* the device is writable, the export not */
			struct devtab_opts o = {.path = g.image,
						.user = "x",
						.writable = true,
						.shared = true,
						.run_dir = g.dir,
						.engine = &io_uring_engine,
						.pool = g.pool,
						.cache = g.cache};
			struct devref *ref;

			assert_int_equal(devtab_get(&o, &ref, NULL), 0);
			assert_int_equal(nbd_export_add(g.srv, "disk", ref, true, NULL), 0);
		} else {
			rig_export(&g, g.image, "disk", false, NULL);
		}
		fd = enter(&g, "disk", false);
		assert_int_equal(do_write(fd, 0, 0, sector, 512), NBD_EPERM);
		assert_int_equal(do_simple(fd, CMD_TRIM, 0, 0, 4096), NBD_EPERM);
		assert_int_equal(do_simple(fd, CMD_ZEROES, 0, 0, 4096), NBD_EPERM);
		assert_int_equal(do_simple(fd, CMD_FLUSH, 0, 0, 0), 0);
		assert_int_equal(do_read(fd, 0, sector, 512), 0);
		assert_int_equal(sector[0], 0);
		hang_up(fd);
		rig_stop(&g);
	}
}

static void hostile_requests_end_the_connection(void **state)
{
	unsigned char r[28];
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = enter(&g, "disk", false);
	request_bytes(r, CMD_READ, 0, 1, 0, 512);
	r[0] ^= 1;
	put(fd, r, sizeof(r));
	expect_closed(fd);
	fd = enter(&g, "disk", false);
	ask(fd, CMD_WRITE, 0, 1, 0, 32 * MIB + 512);
	expect_closed(fd);
	fd = enter(&g, "disk", false);
	ask(fd, CMD_WRITE, 0, 1, 0, 0xffffffffu);
	expect_closed(fd);
	fd = enter(&g, "disk", false);
	assert_int_equal(do_read(fd, 0, r, 0), NBD_EINVAL);
	hang_up(fd);
	rig_stop(&g);
}

static void requests_may_come_in_any_pieces(void **state)
{
	unsigned char wire[28 + 8192 + 28], back[8192];
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = enter(&g, "disk", false);
	for (unsigned piece = 1; piece < 3000; piece = piece * 3 + 1) {
		request_bytes(wire, CMD_WRITE, 0, 1, 4096, 8192);
		fill(wire + 28, 8192, piece);
		request_bytes(wire + 28 + 8192, CMD_READ, 0, 2, 0, 512);
		for (unsigned at = 0; at < sizeof(wire); at += piece) {
			unsigned n = piece < sizeof(wire) - at ? piece : (unsigned)sizeof(wire) - at;

			put(fd, wire + at, n);
			if (piece < 100 ? at % 512 < piece : 1)
				usleep(100);
		}
		for (unsigned i = 0; i < 2; i++) {
			uint64_t cookie;

			assert_int_equal(answer(fd, &cookie), 0);
			if (cookie == 2)
				get(fd, back, 512);
		}
		assert_int_equal(do_read(fd, 4096, back, 8192), 0);
		assert_memory_equal(back, wire + 28, 8192);
	}
	hang_up(fd);
	rig_stop(&g);
}

static void many_in_flight_are_all_answered_once(void **state)
{
	enum { N = 500 };
	unsigned char *disk = malloc(4 * MIB), buf[8192];
	bool seen[N] = {0};
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, 4 * MIB);
	rig_export(&g, g.image, "disk", true, odd(true));
	fd = enter(&g, "disk", true);
	fill(disk, 4 * MIB, 5);
	assert_int_equal(do_write(fd, 0, 0, disk, 4 * MIB), 0);
	for (unsigned i = 0; i < N; i++)
		ask(fd, CMD_READ, 0, i, (uint64_t)i * 4096, 4096 + 4096 * (i % 2));
	for (unsigned i = 0; i < N; i++) {
		struct chunk c = get_chunk(fd);
		uint32_t n = c.len - 8;

		assert_int_equal(c.type, 1);
		assert_int_equal(c.flags, 1);
		assert_true(c.cookie < N && !seen[c.cookie]);
		seen[c.cookie] = true;
		assert_true(get64(fd) == c.cookie * 4096);
		assert_int_equal(n, 4096 + 4096 * (c.cookie % 2));
		get(fd, buf, n);
		assert_memory_equal(buf, disk + c.cookie * 4096, n);
	}
	hang_up(fd);
	free(disk);
	rig_stop(&g);
}

static void a_failed_part_fails_its_command_only(void **state)
{
	unsigned char *buf = malloc(32 * MIB);
	struct rig g;
	int fd;

	(void)state;
	break_range(2 * MIB, 2 * MIB + 512);
	rig_start(&g, 40 * MIB);
	rig_export(&g, g.image, "disk", true, odd(false));
	fd = enter(&g, "disk", false);
	memset(buf, 1, 32 * MIB);
	assert_int_equal(do_write(fd, 0, 0, buf, 4 * MIB), NBD_EIO);
	assert_int_equal(do_write(fd, 0, 0, buf, 2 * MIB), 0);
	assert_int_equal(do_read(fd, 2 * MIB, buf, 512), NBD_EIO);
	assert_int_equal(do_read(fd, 0, buf, 4 * MIB), NBD_EIO); /* ordered: told, since nothing was sent */
	assert_int_equal(do_read(fd, 0, buf, 2 * MIB), 0);
	hang_up(fd);
	fd = enter(&g, "disk", true);
	assert_int_equal(do_chunked(fd, 0, 0, buf, 4 * MIB, NULL), NBD_EIO);
	assert_int_equal(do_chunked(fd, 0, 2 * MIB, buf, 512, NULL), NBD_EIO);
	assert_int_equal(do_chunked(fd, 0, 0, buf, 2 * MIB, NULL), 0);
	hang_up(fd);
	/* Streamed, and the error comes when the answer has begun: only closing can tell. */
	break_range(30 * MIB, 30 * MIB + 512);
	fd = enter(&g, "disk", false);
	ask(fd, CMD_READ, 0, 1, 0, 32 * MIB);
	assert_int_equal(answer(fd, NULL), 0);
	expect_closed(fd);
	break_range(UINT64_MAX, 0);
	free(buf);
	rig_stop(&g);
}

/* ---- zeros and holes ---- */

static void zeroes_trims_and_fast_zeroes(void **state)
{
	unsigned char *a = malloc(MIB), *b = malloc(MIB);
	struct rig g;
	struct stat st;
	uint32_t res;
	int fd;

	(void)state;
	rig_start(&g, 8 * MIB);
	rig_export(&g, g.image, "disk", true, NULL);
	fd = enter(&g, "disk", false);
	fill(a, MIB, 8);
	assert_int_equal(do_write(fd, 0, 0, a, MIB), 0);
	assert_int_equal(do_simple(fd, CMD_ZEROES, F_FUA, 512, 4096), 0);
	memset(a + 512, 0, 4096);
	assert_int_equal(do_simple(fd, CMD_ZEROES, 0, 65536, 200 * 1024), 0);
	memset(a + 65536, 0, 200 * 1024);
	assert_int_equal(do_read(fd, 0, b, MIB), 0);
	assert_memory_equal(a, b, MIB);
	assert_int_equal(do_simple(fd, CMD_ZEROES, F_FAST, 0, 4096), NBD_ENOTSUP);
	assert_int_equal(do_simple(fd, CMD_ZEROES, F_FAST | F_NO_HOLE, 0, MIB), NBD_ENOTSUP);
	assert_int_equal(do_read(fd, 0, b, MIB), 0);
	assert_memory_equal(a, b, MIB); /* a refused one changes nothing */
	res = do_simple(fd, CMD_ZEROES, F_FAST, 0, MIB);
	assert_true(res == 0 || res == NBD_ENOTSUP); /* as the file system can */
	if (res == 0) {
		assert_int_equal(do_read(fd, 0, b, MIB), 0);
		for (unsigned i = 0; i < MIB; i++)
			assert_int_equal(b[i], 0);
	}
	/* NO_HOLE provisions. */
	assert_int_equal(do_simple(fd, CMD_ZEROES, F_NO_HOLE, 4 * MIB, 3 * MIB), 0);
	assert_int_equal(stat(g.image, &st), 0);
	assert_true(st.st_blocks * 512 >= 3 * (int64_t)MIB);
	assert_int_equal(do_simple(fd, CMD_TRIM, F_FUA, 0, 8 * MIB), 0);
	hang_up(fd);
	free(a);
	free(b);
	rig_stop(&g);
}

/* Descriptors of one BLOCK_STATUS, in pairs. */
static unsigned status(int fd, uint16_t flags, uint64_t off, uint32_t len, uint32_t *pairs, unsigned max)
{
	struct chunk c;
	unsigned n;

	ask(fd, CMD_STATUS, flags, 3, off, len);
	c = get_chunk(fd);
	assert_int_equal(c.type, 5);
	assert_int_equal(c.flags, 1);
	assert_int_equal(get32(fd), 1);
	n = (c.len - 4) / 8;
	assert_true(n >= 1 && n <= max && c.len % 8 == 4);
	for (unsigned i = 0; i < 2 * n; i++)
		pairs[i] = get32(fd);
	return n;
}

static void a_vhd_shows_its_holes(void **state)
{
	unsigned char *a = malloc(MIB), *b = malloc(8 * MIB);
	struct vhd_create_opts opts = {.kind = VHD_KIND_DYNAMIC, .size_bytes = 64 * MIB, .exact_size = true};
	struct backing *backing;
	struct err e = ERR_INIT;
	char path[128];
	uint32_t pairs[512];
	unsigned holes = 0, n;
	struct rig g;
	int fd;

	(void)state;
	rig_start(&g, MIB);
	snprintf(path, sizeof(path), "%s/leaf.vhd", g.dir);
	assert_int_equal(file_opener.open(file_opener.ctx, path, BACKING_CREATE, &backing, &e), 0);
	assert_int_equal(vhd_create(backing, &opts, &e), 0);
	backing->ops->close(backing);
	rig_export(&g, path, "leaf", true, NULL);
	fd = enter(&g, "leaf", true);
	fill(a, MIB, 6);
	assert_int_equal(do_write(fd, 0, 4 * MIB, a, MIB), 0);
	assert_int_equal(do_write(fd, 0, 5 * MIB, a, MIB),
			 0); /* all of a block, so that its bitmap need not be known */
	assert_int_equal(do_simple(fd, CMD_FLUSH, 0, 0, 0), 0);
	n = status(fd, 0, 0, 64 * MIB, pairs, 256);
	assert_int_equal(n, 3);
	assert_int_equal(pairs[0], 4 * MIB);
	assert_int_equal(pairs[1], 3);
	assert_int_equal(pairs[2], 2 * MIB);
	assert_int_equal(pairs[3], 0);
	assert_int_equal(pairs[4], 58 * MIB);
	assert_int_equal(pairs[5], 3);
	assert_int_equal(status(fd, F_ONE, MIB, 64 * MIB - MIB, pairs, 1), 1);
	assert_int_equal(pairs[0], 3 * MIB);
	assert_int_equal(pairs[1], 3);
	assert_int_equal(status(fd, F_ONE, 512, 512, pairs, 1), 1);
	assert_int_equal(pairs[0], 512);
	assert_int_equal(do_chunked(fd, 0, 0, b, 8 * MIB, &holes), 0);
	assert_int_equal(holes, 6);
	assert_memory_equal(b + 4 * MIB, a, MIB);
	for (unsigned i = 0; i < 4 * MIB; i++)
		assert_int_equal(b[i], 0);
	assert_int_equal(do_simple(fd, CMD_ZEROES, F_NO_HOLE, 0, 2 * MIB), 0);
	assert_int_equal(status(fd, F_ONE, 0, MIB, pairs, 1), 1);
	assert_int_equal(pairs[1], 0); /* provisioned */
	hang_up(fd);
	free(a);
	free(b);
	rig_stop(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(what_is_written_is_read_back),
	    cmocka_unit_test(commands_of_32_mib_are_split),
	    cmocka_unit_test(ordered_reads_queue_behind_others),
	    cmocka_unit_test(refusals_leave_the_connection_usable),
	    cmocka_unit_test(a_read_only_export_is_not_changed),
	    cmocka_unit_test(hostile_requests_end_the_connection),
	    cmocka_unit_test(requests_may_come_in_any_pieces),
	    cmocka_unit_test(many_in_flight_are_all_answered_once),
	    cmocka_unit_test(a_failed_part_fails_its_command_only),
	    cmocka_unit_test(zeroes_trims_and_fast_zeroes),
	    cmocka_unit_test(a_vhd_shows_its_holes),
	};

	log_set_level(LOG_ERROR);
	return cmocka_run_group_tests_name("nbd_io", tests, NULL, NULL);
}
