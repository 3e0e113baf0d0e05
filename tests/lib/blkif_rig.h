/*
 * For tests: simxen as a process, the blkif backend in this process, guests as processes (simguest) or played
 * by the test. Failures here end the test program.
 */
#ifndef TESTS_BLKIF_RIG_H
#define TESTS_BLKIF_RIG_H

#include "blkd/backing.h"
#include "blkd/blkif.h"
#include "blkd/bufpool.h"
#include "blkd/cache.h"
#include "blkd/devtab.h"
#include "blkd/err.h"
#include "blkd/hyp.h"
#include "blkd/io.h"
#include "blkd/log.h"
#include "tests/lib/simxen_fixture.h"

#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>
#include <xenstore.h>

struct rig {
	struct simxen sim;
	char images[64], run[80];
	struct hyp *hyp;
	struct bufpool *pool;
	struct cache *cache;
	struct blkif_backend *be;
	struct xs_handle *xs; /* domain 0 */
};

static inline void rig_backend(struct rig *r, struct blkif_opts o)
{
	struct err e = ERR_INIT;

	o.run_dir = r->run;
	o.pool = r->pool;
	o.cache = r->cache;
	o.engine = io_engine_find(getenv("BLKD_ENGINE"), &e);
	o.backing_flags = BACKING_BUFFERED;
	if (!o.engine)
		DIE("engine: %s", e.text);
	if (blkif_start(r->hyp, &o, &r->be, &e) < 0)
		DIE("blkif_start: %s", e.text);
}

static inline void rig_start(struct rig *r, struct blkif_opts o)
{
	struct err e = ERR_INIT;
	char socket[96];

	memset(r, 0, sizeof(*r));
	log_set_level(getenv("RIG_LOG") ? LOG_DEBUG : LOG_ERROR);
	simxen_start(&r->sim);
	strcpy(r->images, "/tmp/blkif-test-XXXXXX");
	if (!mkdtemp(r->images))
		DIE("mkdtemp: %s", strerror(errno));
	snprintf(r->run, sizeof(r->run), "%s/run", r->images);
	if (mkdir(r->run, 0700) < 0)
		DIE("mkdir: %s", strerror(errno));
	snprintf(socket, sizeof(socket), "%s/socket", r->sim.dir);
	setenv("XENSTORED_PATH", socket, 1);
	r->xs = xs_open(0);
	if (!r->xs)
		DIE("xs_open: %s", strerror(errno));
	if (hyp_open("sim", r->sim.dir, &r->hyp, &e) < 0 || bufpool_create(64u << 20, &r->pool, &e) < 0 ||
	    cache_create(16u << 20, &r->cache, &e) < 0)
		DIE("%s", e.text);
	rig_backend(r, o);
}

static inline int rig_stop_backend(struct rig *r)
{
	struct err e = ERR_INIT;
	int rc = blkif_stop(r->be, &e);

	r->be = NULL;
	if (rc < 0)
		fprintf(stderr, "blkif_stop: %s\n", e.text);
	return rc;
}

static inline void rig_remove_dir(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			unlinkat(dirfd(d), e->d_name, 0);
	}
	if (d)
		closedir(d);
	rmdir(path);
}

/* Answers what blkif_stop said. Everything must be given back. */
static inline int rig_end(struct rig *r)
{
	struct bufpool_stats st;
	int rc = r->be ? rig_stop_backend(r) : 0;

	if (devtab_count())
		DIE("%u devices are left", devtab_count());
	bufpool_stats(r->pool, &st);
	if (st.in_use_bytes)
		DIE("%llu bytes of buffers are left", (unsigned long long)st.in_use_bytes);
	bufpool_destroy(r->pool);
	cache_destroy(r->cache);
	hyp_close(r->hyp);
	xs_close(r->xs);
	simxen_end(&r->sim);
	simxen_remove_dir(&r->sim);
	rig_remove_dir(r->run);
	rig_remove_dir(r->images);
	return rc;
}

/* A program of this build. */
static inline void rig_program(char *out, size_t bytes, const char *name)
{
	simxen_program(out, bytes);
	strcpy(strrchr(out, '/') + 1, name);
}

static inline pid_t rig_spawn(const char *name, char *const *args)
{
	char program[4096];
	char *argv[64] = {(char *)(uintptr_t)name};
	unsigned n = 1;
	pid_t pid;

	rig_program(program, sizeof(program), name);
	for (; args[n - 1] && n < 63; n++)
		argv[n] = args[n - 1];
	pid = fork();
	if (pid == 0) {
		execv(program, argv);
		fprintf(stderr, "%s: %s\n", program, strerror(errno));
		_exit(127);
	}
	return pid;
}

static inline int rig_wait(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		DIE("waitpid: %s", strerror(errno));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Words of `fmt`, split at blanks, as arguments; waits for the end. */
__attribute__((format(printf, 2, 0))) static inline pid_t rig_vspawn(const char *name, const char *fmt,
								     va_list ap)
{
	char line[2048], *args[64], *save = NULL;
	unsigned n = 0;

	vsnprintf(line, sizeof(line), fmt, ap);
	for (char *w = strtok_r(line, " ", &save); w && n < 62; w = strtok_r(NULL, " ", &save))
		args[n++] = w;
	args[n] = NULL;
	return rig_spawn(name, args);
}

__attribute__((format(printf, 2, 3))) static inline int rig_run(const char *name, const char *fmt, ...)
{
	va_list ap;
	pid_t pid;

	va_start(ap, fmt);
	pid = rig_vspawn(name, fmt, ap);
	va_end(ap);
	return rig_wait(pid);
}

__attribute__((format(printf, 2, 3))) static inline pid_t rig_begin(const char *name, const char *fmt, ...)
{
	va_list ap;
	pid_t pid;

	va_start(ap, fmt);
	pid = rig_vspawn(name, fmt, ap);
	va_end(ap);
	return pid;
}

static inline void rig_raw_image(const struct rig *r, const char *name, uint64_t size_bytes,
				 char path[static 128])
{
	int fd;

	snprintf(path, 128, "%s/%s", r->images, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
		DIE("%s: %s", path, strerror(errno));
	close(fd);
}

static inline void rig_sleep_ms(unsigned ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&ts, NULL);
}

struct rig_find {
	uint32_t domid, devid;
	struct blkif_vbd *out;
	bool found;
};

static inline bool rig_match(void *ctx, const struct blkif_vbd *v)
{
	struct rig_find *f = ctx;

	if (v->domid != f->domid || v->devid != f->devid)
		return true;
	*f->out = *v;
	f->found = true;
	return false;
}

static inline bool rig_vbd(const struct rig *r, uint32_t domid, uint32_t devid, struct blkif_vbd *out)
{
	struct rig_find f = {.domid = domid, .devid = devid, .out = out};

	blkif_each(r->be, rig_match, &f);
	return f.found;
}

static inline void rig_vwait(bool (*is)(void *), void *ctx, const char *what)
{
	for (unsigned i = 0; !is(ctx); i++) {
		if (i > 20000)
			DIE("waited 20 s for %s", what);
		rig_sleep_ms(1);
	}
}

#endif
