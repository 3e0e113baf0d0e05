/*
 * Crash states as files, for programs that share no code with this project: the second opinions of
 * tests/integ/crash_second_opinions.sh.
 *
 * A state becomes up to two images. "cut": the leaf as the power cut left it; only where its trailing footer
 * is in place, because others look for it there first. "closed": the leaf after blkd opened it, replayed the
 * journal that a killed process left, and closed it. Beside them lies what the disk reads, flat, as blkd read
 * it in between; that it is what the guest may expect is check.c's business. Parents never change: they are
 * written once for each tree. A leaf over a raw file is nothing that others can read.
 *
 * DIR/manifest has a line for each image, with tabs: kind, flat file, leaf, parents from the nearest. Files
 * of a line are complete before it is written, and "closed" is the last line of its state; so the manifest
 * may be a pipe whose reader removes what it has seen.
 */
#include "blkd/err.h"
#include "tests/crash/crash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096u

struct exporter {
	const char *dir;
	FILE *manifest;
	uint64_t n;
	bool parents_done[64]; /* per tree */
};

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "crashtest: cannot write %s: %s\n", what, strerror(errno));
	exit(2);
}

struct exporter *export_begin(const char *dir)
{
	struct exporter *x = crash_need(calloc(1, sizeof(*x)));
	char path[512];

	x->dir = dir;
	snprintf(path, sizeof(path), "%s/manifest", dir);
	x->manifest = fopen(path, "we");
	if (!x->manifest)
		die(path);
	return x;
}

void export_end(struct exporter *x)
{
	if (fclose(x->manifest))
		die("manifest");
	free(x);
}

bool export_wants(const struct tree_cfg *c)
{
	return c->parents == TREE_ALONE || c->parents == TREE_OVER_VHD;
}

/* ---- files ---- */

static bool is_zero(const uint8_t *p, size_t n)
{
	return !p[0] && !memcmp(p, p + 1, n - 1);
}

/* Sparse, as big as `size` says. */
static void file_write(const char *path, uint64_t size, const uint8_t *const *pages)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)size))
		die(path);
	for (uint64_t off = 0; off < size; off += PAGE) {
		const uint8_t *page = pages[off / PAGE];
		size_t n = size - off < PAGE ? (size_t)(size - off) : PAGE;

		if (page && !is_zero(page, n) && pwrite(fd, page, n, (off_t)off) != (ssize_t)n)
			die(path);
	}
	close(fd);
}

static void medium_write(const char *path, const struct replay *m, int id)
{
	size_t n;
	const uint8_t *const *pages = replay_file_pages(m, id, &n);

	file_write(path, replay_file_size(m, id), pages);
}

static void parent_path(const struct exporter *x, const struct tree *t, char *out, size_t n)
{
	snprintf(out, n, "%s/%s-parent.vhd", x->dir, t->cfg->name);
}

static void parents_write(struct exporter *x, const struct tree *t)
{
	size_t which = (size_t)(t->cfg - tree_cfgs);
	char path[512];

	if (t->depth < 2 || x->parents_done[which])
		return;
	x->parents_done[which] = true;
	parent_path(x, t, path, sizeof(path));
	file_write(path, t->file_size[1], t->pages[1]);
}

/* The path of the state's file of that kind. */
static void state_path(const struct exporter *x, const char *kind, char *out, size_t n)
{
	snprintf(out, n, "%s/%llu-%s", x->dir, (unsigned long long)x->n, kind);
}

static void list(struct exporter *x, const struct tree *t, const char *kind)
{
	char flat[512], leaf[512], parent[512];

	state_path(x, "flat", flat, sizeof(flat));
	state_path(x, kind, leaf, sizeof(leaf));
	parent_path(x, t, parent, sizeof(parent));
	fprintf(x->manifest, "%s\t%s\t%s%s%s\n", kind, flat, leaf, t->depth > 1 ? "\t" : "",
		t->depth > 1 ? parent : "");
	if (fflush(x->manifest))
		die("manifest");
}

/* ---- a state ---- */

/* Everything that the disk reads, as blkd reads it. */
static int flat_write(const struct exporter *x, const struct disk *disk, struct err *e)
{
	static uint8_t buf[64 * PAGE];
	uint64_t size = disk->chain.size_bytes;
	char path[512];
	int fd, res = 0;

	state_path(x, "flat", path, sizeof(path));
	fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size))
		die(path);
	for (uint64_t off = 0; off < size && !res; off += sizeof(buf)) {
		size_t n = size - off < sizeof(buf) ? (size_t)(size - off) : sizeof(buf);

		res = chain_read(&disk->chain, off, buf, n, e);
		if (!res && !is_zero(buf, n) && pwrite(fd, buf, n, (off_t)off) != (ssize_t)n)
			die(path);
	}
	close(fd);
	return res;
}

static bool has_trailing_footer(const struct replay *m)
{
	uint64_t size = replay_file_size(m, 0);
	uint8_t copy[512], tail[512];

	if (size < 1024)
		return false;
	replay_file_peek(m, 0, 0, copy, sizeof(copy));
	replay_file_peek(m, 0, size - 512, tail, sizeof(tail));
	return !memcmp(copy, tail, sizeof(copy));
}

bool export_state(struct exporter *x, const struct check_ctx *c, struct mstate *s, char *why, size_t n)
{
	const struct tree *t = c->run->tree;
	struct replay *m = state_medium(c, s);
	struct disk_opts o = {.path = t->path[0],
			      .format = "vhd",
			      .writable = true,
			      .opener = replay_opener(m),
			      .poison_clear = true};
	bool cut = c->kind == MODEL_POWER_CUT && has_trailing_footer(m);
	struct disk *disk = NULL;
	struct err e = ERR_INIT;
	char path[512];

	parents_write(x, t);
	state_path(x, "cut", path, sizeof(path));
	if (cut)
		medium_write(path, m, 0);
	if (c->kind == MODEL_KILL) {
		o.run_dir = c->host->run_dir;
		run_dir_clear(c->host);
		if (c->journal)
			run_dir_put(c->host, c->journal);
	}
	if (disk_open(&o, &disk, &e) || flat_write(x, disk, &e) || disk_finish(disk, &e)) {
		snprintf(why, n, "%.400s", e.text);
		return false; /* something may still be open on the medium: it stays */
	}
	disk_close(disk);
	state_path(x, "closed", path, sizeof(path));
	medium_write(path, m, 0);
	replay_destroy(m);
	if (cut)
		list(x, t, "cut");
	list(x, t, "closed");
	x->n++;
	return true;
}
