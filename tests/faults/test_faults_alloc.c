/*
 * Every allocation, and every system call of those that attach and close make through libc, fails in turn
 * while a disk is attached, served and closed: on real files, by the real engines. After each, nothing that
 * was allocated and no descriptor is left, and the disk opens and holds what it must.
 *
 * How: this program's own malloc and friends stand before libc's (or before the sanitizer's) and count. What
 * liburing does it does without libc, so a small RLIMIT_NOFILE, tried at each size, stands for it.
 */
#include "blkd/log.h"
#include "tests/lib/faultrig.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* ---- what stands before libc ---- */

static struct { /* engines have worker threads: what changes while armed is atomic */
	_Atomic bool armed, hit;
	_Atomic uint64_t seen;
	_Atomic long live; /* allocations not freed */
	bool lasts;
	uint64_t nth;
} aim;

static bool fails(void)
{
	uint64_t n;

	if (!aim.armed)
		return false;
	n = ++aim.seen;
	if (n != aim.nth && !(aim.lasts && n > aim.nth))
		return false;
	aim.hit = true;
	return true;
}

#if !SANITIZED
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static void *counted(void *p)
{
	aim.live += p != NULL;
	return p;
}

static void *refuse(void)
{
	errno = ENOMEM;
	return NULL;
}

void *malloc(size_t n)
{
	return fails() ? refuse() : counted(__libc_malloc(n));
}

void *calloc(size_t n, size_t size)
{
	return fails() ? refuse() : counted(__libc_calloc(n, size));
}

void *realloc(void *p, size_t n)
{
	if (!p)
		return malloc(n);
	return fails() ? refuse() : __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
	return fails() ? refuse() : counted(__libc_memalign(align, n));
}

int posix_memalign(void **out, size_t align, size_t n)
{
	void *p = aligned_alloc(align, n);

	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

void free(void *p)
{
	aim.live -= p != NULL;
	__libc_free(p);
}
#endif

/* Calls that may fail on their own account. */
#define STAND_BEFORE(type, name, bad, error, params, args)                                                   \
	type name params;                                                                                    \
	type name params                                                                                     \
	{                                                                                                    \
		static type(*real) params;                                                                   \
                                                                                                             \
		if (!real)                                                                                   \
			*(void **)&real = dlsym(RTLD_NEXT, #name);                                           \
		if (fails()) {                                                                               \
			errno = (error);                                                                     \
			return (bad);                                                                        \
		}                                                                                            \
		return real args;                                                                            \
	}

STAND_BEFORE(int, flock, -1, EINTR, (int fd, int op), (fd, op))
STAND_BEFORE(int, fstat, -1, EIO, (int fd, struct stat *st), (fd, st))
STAND_BEFORE(int, fallocate, -1, ENOSPC, (int fd, int mode, off_t off, off_t len), (fd, mode, off, len))
STAND_BEFORE(int, posix_fallocate, ENOSPC, ENOSPC, (int fd, off_t off, off_t len), (fd, off, len))
STAND_BEFORE(int, ftruncate, -1, ENOSPC, (int fd, off_t len), (fd, len))
STAND_BEFORE(int, fdatasync, -1, EIO, (int fd), (fd))
STAND_BEFORE(int, fsync, -1, EIO, (int fd), (fd))
STAND_BEFORE(ssize_t, pread, -1, EIO, (int fd, void *buf, size_t n, off_t off), (fd, buf, n, off))
STAND_BEFORE(ssize_t, pwrite, -1, ENOSPC, (int fd, const void *buf, size_t n, off_t off), (fd, buf, n, off))
STAND_BEFORE(int, eventfd, -1, EMFILE, (unsigned count, int flags), (count, flags))
#if !SANITIZED
STAND_BEFORE(void *, mmap, MAP_FAILED, ENOMEM, (void *at, size_t n, int prot, int flags, int fd, off_t off),
	     (at, n, prot, flags, fd, off))
STAND_BEFORE(DIR *, opendir, NULL, EMFILE, (const char *path), (path))
#endif

int open(const char *path, int flags, ...)
{
	static int (*real)(const char *, int, ...);
	va_list ap;
	mode_t mode;

	va_start(ap, flags);
	mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
	va_end(ap);
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "open");
	if (fails()) {
		errno = EMFILE;
		return -1;
	}
	return real(path, flags, mode);
}

/* ---- the disk, on files ---- */

static struct life life;
static char dir[] = "/tmp/blkd-faults-XXXXXX", run_dir[64], leaf[64], golden[64], pristine[64];

static void copy(const char *from, const char *to)
{
	char command[256];

	/* Not hard links, and holes stay holes. */
	snprintf(command, sizeof(command), "cp --sparse=always %s %s", from, to);
	if (system(command))
		abort();
}

static unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* The images are made on the medium, as ever, and then laid down as files. */
static void lay_down(int id, const char *path)
{
	static unsigned char page[64 << 10];
	uint64_t size = replay_file_size(life.rig.medium, id), off;
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	for (off = 0; off < size; off += sizeof(page)) {
		size_t n = (size_t)u64_min(sizeof(page), size - off);

		replay_file_peek(life.rig.medium, id, off, page, n);
		if (pwrite(fd, page, n, (off_t)off) != (ssize_t)n)
			abort();
	}
	close(fd);
}

static int setup(void **state)
{
	(void)state;
	if (!mkdtemp(dir))
		return -1;
	snprintf(run_dir, sizeof(run_dir), "%s/run", dir);
	snprintf(leaf, sizeof(leaf), "%s/leaf.vhd", dir);
	snprintf(golden, sizeof(golden), "%s/golden.vhd", dir);
	snprintf(pristine, sizeof(pristine), "%s/.pristine", dir);
	if (mkdir(run_dir, 0700))
		return -1;
	/* Each of hundreds of refusals would be told. */
	log_set_level(LOG_ERROR);
	rig_medium(&life.rig, 5, LIFE_BYTES, LIFE_GOLDEN_BYTES, NULL);
	lay_down(replay_file_find(life.rig.medium, "/m/leaf.vhd"), pristine);
	lay_down(replay_file_find(life.rig.medium, "/m/golden.vhd"), golden);
	life.rig.run_dir = run_dir;
	life.path = leaf;
	life.opener = &file_opener;
	life.mode = WRITE_BACK;
	life.vhd = true;
	return 0;
}

static int teardown(void **state)
{
	char command[128];

	(void)state;
	rig_free(&life.rig);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	return system(command);
}

static void fresh_life(const char *where)
{
	life.where = where;
	copy(pristine, leaf);
	memset(life.status, 0, sizeof(life.status));
	life_start(&life);
}

/* Worker threads come and go when they like, with a few allocations of their own; uring has none. */
#define WORKERS_ALLOCATIONS 16

static void left(long before)
{
	long more = aim.live - before;

	if (more)
		fprintf(stderr, "%s: %ld allocations more than before\n", life.where, more);
	LIFE_REQUIRE(&life, !more || (life.engine != &io_uring_engine && labs(more) < WORKERS_ALLOCATIONS));
}

/* Attach, serve, close, with what `aim` says. */
static void live_once(void)
{
	struct err e = ERR_INIT;
	long live = aim.live;
	unsigned fds = open_fds();

	aim.armed = true;
	if (life_attach(&life, false, &e) == 0) {
		life_run(&life);
		(void)dev_destroy(life.rig.dev, &e);
	}
	aim.armed = false;
	left(live);
	LIFE_REQUIRE(&life, open_fds() == fds);
	/* A flush may be what failed: then an operator says that the image is to be opened. */
	life_recover(&life, true);
	left(live);
}

static void every_call_fails(const char *engine, bool lasts)
{
	struct err e = ERR_INIT;
	char where[64];
	uint64_t nth = 0;
	long live = aim.live;

	life.engine = io_engine_find(engine, &e);
	assert_non_null(life.engine);
	/* What libc allocates once and keeps is allocated now. */
	aim.armed = aim.hit = false;
	fresh_life("warm-up");
	live_once();
	do {
		aim.nth = ++nth;
		aim.seen = 0;
		aim.hit = false;
		aim.lasts = lasts;
		snprintf(where, sizeof(where), "%s: call %llu%s", engine, (unsigned long long)nth,
			 lasts ? " and on" : "");
		fresh_life(where);
		live_once();
	} while (aim.hit);
	/* One that is lost in each life would show here. */
	left(live);
	printf("%s: %llu calls failed in turn\n", engine, (unsigned long long)nth - 1);
	assert_true(nth > 15);
}

static void each_call_of_a_life_on_uring(void **state)
{
	(void)state;
	every_call_fails("uring", false);
}

static void each_call_and_all_after_it_on_uring(void **state)
{
	(void)state;
	every_call_fails("uring", true);
}

static void each_call_of_a_life_on_aio(void **state)
{
	(void)state;
	every_call_fails("aio", false);
}

/* With room for n descriptors more, n from none to enough. */
static void too_few_descriptors(void **state)
{
	const char *const engines[] = {"uring", "aio"};
	struct rlimit before, few;
	struct err e = ERR_INIT;
	char where[64];

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	for (unsigned k = 0; k < 2; k++) {
		int res = -1;

		life.engine = io_engine_find(engines[k], &e);
		for (unsigned n = 0; n < 24 && res; n++) {
			unsigned fds = open_fds();

			snprintf(where, sizeof(where), "%s: %u descriptors", engines[k], n);
			fresh_life(where);
			few = before;
			few.rlim_cur = fds - 3 + n; /* without ".", "..", and the directory itself */
			assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
			res = life_attach(&life, false, &e);
			if (res == 0) {
				life_run(&life);
				assert_int_equal(dev_destroy(life.rig.dev, &e), 0);
			}
			assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
			LIFE_REQUIRE(&life, open_fds() == fds);
			life_recover(&life, false);
		}
		assert_int_equal(res, 0);
	}
}

/* The file may not grow beyond a limit: EFBIG, where a full disk says ENOSPC. */
static void a_limit_on_the_size_of_files(void **state)
{
	struct rlimit before, few;
	struct err e = ERR_INIT;
	char where[64];
	unsigned failed = 0;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
	life.engine = io_engine_find("uring", &e);
	for (uint64_t mib = 1; mib < 24; mib += 3) {
		snprintf(where, sizeof(where), "files of at most %llu MiB", (unsigned long long)mib);
		fresh_life(where);
		few = before;
		few.rlim_cur = mib << 20;
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &few), 0);
		if (life_attach(&life, false, &e) == 0) {
			life_run(&life);
			for (unsigned i = 0; i < LIFE_STEPS; i++)
				failed += life.status[i] != 0;
			(void)dev_destroy(life.rig.dev, &e);
		} else {
			failed++;
		}
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
		life_recover(&life, false);
	}
	assert_true(failed > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(each_call_of_a_life_on_uring),
	    cmocka_unit_test(each_call_and_all_after_it_on_uring),
	    cmocka_unit_test(each_call_of_a_life_on_aio),
	    cmocka_unit_test(too_few_descriptors),
	    cmocka_unit_test(a_limit_on_the_size_of_files),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
