/*
 * New files, and what must hold before a file is written: nobody else has it open for writing, and nothing
 * that blkd answered before it died is still outside of it, in a journal.
 */
#include "tools/blkimg/blkimg.h"

#include "blkd/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define FENCE_WAIT_MS 2000u

const char *format_of(const char *path, const char *named, struct err *e)
{
	size_t n = strlen(path);

	if (named)
		return named;
	if (n > 4 && !strcasecmp(path + n - 4, ".vhd"))
		return "vhd";
	if (n > 4 && (!strcasecmp(path + n - 4, ".raw") || !strcasecmp(path + n - 4, ".img")))
		return "raw";
	err_set(e, -EINVAL,
		"%s: its name does not say its format (.raw, .img, .vhd): use --format raw, vhd-fixed or vhd",
		path);
	return NULL;
}

int file_create(const char *path, const struct args *a, struct backing **out, struct err *e)
{
	return file_opener.open(file_opener.ctx, path, BACKING_CREATE | BACKING_WRITE | a->backing_flags, out,
				e);
}

/* The directory part of a path, "." if there is none. */
static int dir_of(const char *path, char *out, size_t room)
{
	const char *slash = strrchr(path, '/');
	int n = snprintf(out, room, "%.*s", slash ? (int)(slash - path + 1) : 1, slash ? path : ".");

	return n < 0 || (size_t)n >= room ? -ENAMETOOLONG : 0;
}

int dir_sync(const char *path, struct err *e)
{
	char dir[PATH_MAX];
	int fd, ret = dir_of(path, dir, sizeof(dir));

	if (ret)
		return err_set(e, ret, "%s: the path is too long", path);
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd))
		ret = err_set(e, -errno, "%s: cannot make the new name durable in its directory: %s", path,
			      strerror(errno));
	if (fd >= 0)
		close(fd);
	return ret;
}

static const char *after_prefix(const char *path, const char *dir, size_t n)
{
	return !strncmp(path, dir, n) && (path[n] == '/' || n == 1) ? path + (n == 1 ? 1 : n + 1) : NULL;
}

int path_relative(const char *from, const char *to, char *out, size_t room, struct err *e)
{
	char from_dir[PATH_MAX], dir[PATH_MAX], target[PATH_MAX];
	const char *rest;
	size_t n, used = 0;
	unsigned ups = 0;

	if (dir_of(from, dir, sizeof(dir)) || !realpath(dir, from_dir))
		return err_set(e, -errno, "%s: its directory cannot be found: %s", from, strerror(errno));
	if (!realpath(to, target))
		return err_set(e, -errno, "%s: %s", to, strerror(errno));
	n = strlen(from_dir);
	while (!(rest = after_prefix(target, from_dir, n))) { /* up to the directory that both share */
		while (n > 1 && from_dir[n - 1] != '/')
			n--;
		n -= n > 1;
		from_dir[n] = 0;
		ups++;
	}
	if (ups * 3 + strlen(rest) + 3 > room)
		return err_set(e, -ENAMETOOLONG, "%s: the path from %s is too long", to, from);
	if (!ups)
		used += (size_t)snprintf(out, room, "./");
	for (; ups; ups--)
		used += (size_t)snprintf(out + used, room - used, "../");
	snprintf(out + used, room - used, "%s", rest);
	return 0;
}

int disk_open_rw(const char *path, const char *format, const struct args *a, struct disk **out, struct err *e)
{
	struct disk_opts opts = {
	    .path = path,
	    .format = format,
	    .writable = true,
	    .run_dir = access(a->run_dir, F_OK) ? NULL : a->run_dir, /* no directory: no journals either */
	    .fence_wait_ms = FENCE_WAIT_MS,
	    .backing_flags = a->backing_flags};

	return disk_open(&opts, out, e);
}

int records_pending(const struct image *img, const struct args *a, struct err *e)
{
	const struct meta_record *recs;
	struct journal *j;
	unsigned n = 0;
	int ret;

	if (access(a->run_dir, F_OK))
		return 0;
	ret = journal_open(a->run_dir, img, &j, e);
	if (ret)
		return ret;
	ret = journal_records(j, img->ops && img->ops->generation ? img->ops->generation(img) : 0, &recs, &n,
			      e);
	journal_close(j);
	return ret ? ret : n != 0;
}

int image_settle(const char *path, const char *format, const struct args *a, struct err *e)
{
	struct disk *disk;
	struct image *img;
	bool dirty;
	int ret = image_open_path(&file_opener, path, a->backing_flags, format, &img, e);

	if (ret)
		return ret;
	if (img->hidden ||
	    disk_check_not_parent(img, path, NULL)) { /* a parent already: it was settled then */
		img->ops->close(img);
		return 0;
	}
	ret = img->file->ops->fence(img->file, FENCE_WAIT_MS);
	if (ret)
		err_set(
		    e, ret,
		    "%s: somebody has it open for writing: unplug it first, or make the snapshot with blkctl",
		    path);
	else
		ret = records_pending(img, a, e);
	dirty = ret > 0 || img->notes[0];
	img->ops->close(img);
	if (ret < 0 || !dirty)
		return ret < 0 ? ret : 0;
	ret = disk_open_rw(path, format, a, &disk, e);
	if (ret)
		return ret;
	ret = disk_finish(disk, e);
	disk_close(disk);
	return ret;
}
