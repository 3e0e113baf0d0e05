/*
 * A raw NBD client for tests, and a server in the same process with real files: what a test sends is exactly
 * what is on the wire. It shares no code with blkd/nbd/. Reads have a time limit, so that a hang is a
 * failure.
 */
#ifndef TESTS_LIB_NBDCLIENT_H
#define TESTS_LIB_NBDCLIENT_H

#include "blkd/bufpool.h"
#include "blkd/cache.h"
#include "blkd/err.h"
#include "blkd/log.h"
#include "blkd/nbd.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

enum {
	OPT_EXPORT_NAME = 1,
	OPT_ABORT,
	OPT_LIST,
	OPT_STARTTLS = 5,
	OPT_INFO,
	OPT_GO,
	OPT_STRUCTURED,
	OPT_LIST_META,
	OPT_SET_META
};
enum { CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_ZEROES, CMD_STATUS };
enum { F_FUA = 1, F_NO_HOLE = 2, F_DF = 4, F_ONE = 8, F_FAST = 16 };
#define REP_UNSUP   0x80000001u
#define REP_INVALID 0x80000003u
#define REP_UNKNOWN 0x80000006u
#define REP_TOO_BIG 0x80000009u

#define MIB	   (1u << 20)
#define POOL_BYTES (64u << 20)

static inline void fill(unsigned char *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i += 8) {
		uint64_t v = (i + seed) * 0x9e3779b97f4a7c15ull;

		memcpy(p + i, &v, 8);
	}
}

struct rig {
	char dir[64], sock[96], image[96];
	struct bufpool *pool;
	struct cache *cache;
	struct nbd_server *srv;
};

/* Opens image (absolute) as a device that the server offers as name. */
static inline int rig_try_export(struct rig *g, const char *image, const char *name, bool writable,
				 const struct io_engine_ops *engine, struct err *e)
{
	struct devtab_opts o = {.path = image,
				.user = name,
				.writable = writable,
				.shared = true,
				.run_dir = g->dir,
				.engine = engine ? engine : &io_uring_engine,
				.pool = g->pool,
				.cache = g->cache};
	struct devref *ref;
	int res = devtab_get(&o, &ref, e);

	if (res < 0)
		return res;
	res = nbd_export_add(g->srv, name, ref, !writable, e);
	if (res < 0)
		devtab_put(ref, NULL);
	return res;
}

static inline void rig_export(struct rig *g, const char *image, const char *name, bool writable,
			      const struct io_engine_ops *engine)
{
	struct err e = ERR_INIT;

	if (rig_try_export(g, image, name, writable, engine, &e) < 0)
		fail_msg("%s: %s", name, e.text);
}

/* A directory, a raw image of size_bytes (holes) in it, pools, a server; nothing exported yet. */
static inline void rig_start(struct rig *g, uint64_t size_bytes)
{
	struct err e = ERR_INIT;
	int fd;

	memset(g, 0, sizeof(*g));
	snprintf(g->dir, sizeof(g->dir), "/tmp/test_nbd.XXXXXX");
	assert_non_null(mkdtemp(g->dir));
	snprintf(g->sock, sizeof(g->sock), "%s/nbd.sock", g->dir);
	snprintf(g->image, sizeof(g->image), "%s/disk.raw", g->dir);
	fd = open(g->image, O_CREAT | O_RDWR, 0600);
	assert_true(fd >= 0 && ftruncate(fd, (off_t)size_bytes) == 0);
	close(fd);
	assert_int_equal(bufpool_create(POOL_BYTES, &g->pool, &e), 0);
	assert_int_equal(cache_create(1u << 20, &g->cache, &e), 0);
	if (nbd_server_start(g->sock, &g->srv, &e) < 0)
		fail_msg("%s", e.text);
}

/* Also the proof that nothing is left: no device, no buffer. */
static inline void rig_stop(struct rig *g)
{
	struct bufpool_stats stats;
	char cmd[128];

	nbd_server_stop(g->srv);
	assert_int_equal(devtab_count(), 0);
	bufpool_stats(g->pool, &stats);
	assert_int_equal(stats.in_use_bytes, 0);
	cache_destroy(g->cache);
	bufpool_destroy(g->pool);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", g->dir);
	assert_int_equal(system(cmd), 0);
}

/* ---- the wire ---- */

static inline int dial(const struct rig *g)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = 30};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", g->sock);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	return fd;
}

static inline void put(int fd, const void *p, size_t n)
{
	for (size_t done = 0; done < n;) {
		ssize_t r = send(fd, (const char *)p + done, n - done, MSG_NOSIGNAL);

		if (r <= 0)
			fail_msg("send: %s", strerror(errno));
		done += (size_t)r;
	}
}

static inline void get(int fd, void *p, size_t n)
{
	for (size_t done = 0; done < n;) {
		ssize_t r = recv(fd, (char *)p + done, n - done, 0);

		if (r <= 0)
			fail_msg("recv: %s", r ? strerror(errno) : "closed");
		done += (size_t)r;
	}
}

/* The server has closed, whatever it said before. */
static inline void expect_closed(int fd)
{
	char buf[4096];
	ssize_t r;

	while ((r = recv(fd, buf, sizeof(buf), 0)) > 0)
		;
	assert_true(r == 0 || errno == ECONNRESET);
	close(fd);
}

static inline uint16_t get16(int fd)
{
	uint16_t v;

	get(fd, &v, 2);
	return be16toh(v);
}

static inline uint32_t get32(int fd)
{
	uint32_t v;

	get(fd, &v, 4);
	return be32toh(v);
}

static inline uint64_t get64(int fd)
{
	uint64_t v;

	get(fd, &v, 8);
	return be64toh(v);
}

/* ---- handshake ---- */

static inline int greet(const struct rig *g, uint32_t flags)
{
	int fd = dial(g);
	uint32_t be = htobe32(flags);

	assert_true(get64(fd) == 0x4e42444d41474943ull);
	assert_true(get64(fd) == 0x49484156454f5054ull);
	assert_int_equal(get16(fd), 3);
	put(fd, &be, 4);
	return fd;
}

static inline void opt(int fd, uint32_t option, const void *data, uint32_t len)
{
	unsigned char head[16] = "IHAVEOPT";

	option = htobe32(option);
	memcpy(head + 8, &option, 4);
	option = htobe32(len);
	memcpy(head + 12, &option, 4);
	put(fd, head, 16);
	put(fd, data, len);
}

/* One reply to option; its data into buf. Returns its type. */
static inline uint32_t reply(int fd, uint32_t option, void *buf, uint32_t room, uint32_t *len)
{
	uint32_t type, n;

	assert_true(get64(fd) == 0x3e889045565a9ull);
	assert_int_equal(get32(fd), option);
	type = get32(fd);
	n = get32(fd);
	assert_true(n <= room);
	get(fd, buf, n);
	if (len)
		*len = n;
	return type;
}

/* The reply that ends the option; those before it are counted. */
static inline uint32_t last_reply(int fd, uint32_t option, unsigned *before)
{
	unsigned char buf[8192];
	unsigned n = 0;
	uint32_t type;

	while ((type = reply(fd, option, buf, sizeof(buf), NULL)) != 1 && type < 0x80000000u)
		n++;
	if (before)
		*before = n;
	return type;
}

/* Data of INFO and GO: name and information requests. */
static inline uint32_t go_data(unsigned char *buf, const char *name, unsigned n_infos, const uint16_t *infos)
{
	uint32_t len = (uint32_t)strlen(name), be = htobe32(len);
	uint16_t be2 = htobe16((uint16_t)n_infos);

	memcpy(buf, &be, 4);
	memcpy(buf + 4, name, len);
	memcpy(buf + 4 + len, &be2, 2);
	for (unsigned i = 0; i < n_infos; i++) {
		be2 = htobe16(infos[i]);
		memcpy(buf + 6 + len + 2 * i, &be2, 2);
	}
	return 6 + len + 2 * n_infos;
}

static inline uint32_t meta_data(unsigned char *buf, const char *name, unsigned n, const char *const *queries)
{
	uint32_t at = 4 + (uint32_t)strlen(name), be = htobe32((uint32_t)strlen(name));

	memcpy(buf, &be, 4);
	memcpy(buf + 4, name, strlen(name));
	be = htobe32(n);
	memcpy(buf + at, &be, 4);
	at += 4;
	for (unsigned i = 0; i < n; i++) {
		uint32_t len = (uint32_t)strlen(queries[i]);

		be = htobe32(len);
		memcpy(buf + at, &be, 4);
		memcpy(buf + at + 4, queries[i], len);
		at += 4 + len;
	}
	return at;
}

/* Into transmission of name. */
static inline int enter(const struct rig *g, const char *name, bool structured)
{
	static const char *const base[] = {"base:allocation"};
	unsigned char buf[512];
	int fd = greet(g, 3);

	if (structured) {
		opt(fd, OPT_STRUCTURED, "", 0);
		assert_int_equal(last_reply(fd, OPT_STRUCTURED, NULL), 1);
		opt(fd, OPT_SET_META, buf, meta_data(buf, name, 1, base));
		assert_int_equal(last_reply(fd, OPT_SET_META, NULL), 1);
	}
	opt(fd, OPT_GO, buf, go_data(buf, name, 0, NULL));
	assert_int_equal(last_reply(fd, OPT_GO, NULL), 1);
	return fd;
}

/* ---- transmission ---- */

static inline void request_bytes(unsigned char *out, uint16_t type, uint16_t flags, uint64_t cookie,
				 uint64_t off, uint32_t len)
{
	uint32_t magic = htobe32(0x25609513);

	type = htobe16(type);
	flags = htobe16(flags);
	cookie = htobe64(cookie);
	off = htobe64(off);
	len = htobe32(len);
	memcpy(out, &magic, 4);
	memcpy(out + 4, &flags, 2);
	memcpy(out + 6, &type, 2);
	memcpy(out + 8, &cookie, 8);
	memcpy(out + 16, &off, 8);
	memcpy(out + 24, &len, 4);
}

static inline void ask(int fd, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t off, uint32_t len)
{
	unsigned char r[28];

	request_bytes(r, type, flags, cookie, off, len);
	put(fd, r, sizeof(r));
}

/* A simple reply; returns its error. */
static inline uint32_t answer(int fd, uint64_t *cookie)
{
	uint32_t error;
	uint64_t c;

	assert_int_equal(get32(fd), 0x67446698);
	error = get32(fd);
	c = get64(fd);
	if (cookie)
		*cookie = c;
	return error;
}

static inline uint32_t do_simple(int fd, uint16_t type, uint16_t flags, uint64_t off, uint32_t len)
{
	uint64_t cookie;
	uint32_t error;

	ask(fd, type, flags, 0x1122334455667788ull, off, len);
	error = answer(fd, &cookie);
	assert_true(cookie == 0x1122334455667788ull);
	return error;
}

static inline uint32_t do_write(int fd, uint16_t flags, uint64_t off, const void *data, uint32_t len)
{
	ask(fd, CMD_WRITE, flags, 7, off, len);
	put(fd, data, len);
	return answer(fd, NULL);
}

static inline uint32_t do_read(int fd, uint64_t off, void *data, uint32_t len)
{
	uint32_t error = do_simple(fd, CMD_READ, 0, off, len);

	if (!error)
		get(fd, data, len);
	return error;
}

struct chunk {
	uint16_t flags, type;
	uint64_t cookie;
	uint32_t len;
};

static inline struct chunk get_chunk(int fd)
{
	struct chunk c;

	assert_int_equal(get32(fd), 0x668e33ef);
	c.flags = get16(fd);
	c.type = get16(fd);
	c.cookie = get64(fd);
	c.len = get32(fd);
	return c;
}

/* Chunks of one structured read until the last; data into buf, whose bytes are those of [off, off + len).
 * Returns the error. Every byte must come exactly once. */
static inline uint32_t read_chunks(int fd, uint64_t off, unsigned char *buf, uint32_t len, unsigned *holes)
{
	uint32_t error = 0, covered = 0;
	struct chunk c;

	do {
		c = get_chunk(fd);
		if (c.type & 0x8000) {
			error = get32(fd);
			assert_int_equal(get16(fd), 0);
		} else {
			uint64_t at = get64(fd) - off;
			uint32_t n = c.type == 2 ? get32(fd) : c.len - 8;

			assert_true(at + n <= len);
			if (c.type == 2) {
				assert_int_equal(c.len, 12);
				memset(buf + at, 0, n);
				if (holes)
					(*holes)++;
			} else {
				assert_int_equal(c.type, 1);
				get(fd, buf + at, n);
			}
			covered += n;
		}
	} while (!(c.flags & 1));
	if (!error)
		assert_int_equal(covered, len);
	return error;
}

static inline uint32_t do_chunked(int fd, uint16_t flags, uint64_t off, void *buf, uint32_t len,
				  unsigned *holes)
{
	ask(fd, CMD_READ, flags, 9, off, len);
	return read_chunks(fd, off, buf, len, holes);
}

static inline void hang_up(int fd)
{
	ask(fd, CMD_DISC, 0, 0, 0, 0);
	expect_closed(fd);
}

#endif
