/*
 * Who names this image as its parent? For a bare path the answer is a scan of its directory: the headers of
 * all .vhd files there. An SR driver will know it from its records. Only 1.5 KiB of each file is read, and
 * files that are no VHD (or not readable) say nothing.
 *
 * A parent in another directory than its child is not found this way: `hidden` is the mark that goes with the
 * image itself.
 */
#include "blkd/bytes.h"
#include "blkd/disk.h"
#include "blkd/err.h"
#include "formats/vhd/layout.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool ends_in_vhd(const char *name)
{
	size_t n = strlen(name);

	return n > 4 && !strcasecmp(name + n - 4, ".vhd");
}

/* Is the header's parent name (UTF-16BE) this file name? */
static bool names_it(const struct vhd_header_info *h, const char *base)
{
	size_t i;

	for (i = 0; base[i] && 2 * i + 1 < sizeof(h->parent_name); i++)
		if (h->parent_name[2 * i] || h->parent_name[2 * i + 1] != (unsigned char)base[i])
			return false;
	return !base[i] && (2 * i + 1 >= sizeof(h->parent_name) ||
			    (!h->parent_name[2 * i] && !h->parent_name[2 * i + 1]));
}

static bool is_child(const struct image *img, const char *base, const unsigned char *head)
{
	struct vhd_footer_info footer;
	struct vhd_header_info header;

	if (vhd_footer_parse(head, &footer, NULL) < 0 || footer.type != VHD_DIFFERENCING)
		return false;
	if (vhd_header_parse(head + VHD_FOOTER_BYTES, &footer, &header, NULL) < 0)
		return false;
	if (bytes_are_zero(header.parent_uuid, sizeof(header.parent_uuid)))
		return bytes_are_zero(img->uuid, sizeof(img->uuid)) && names_it(&header, base);
	return !memcmp(header.parent_uuid, img->uuid, sizeof(img->uuid));
}

/* Reads the head of a regular file; buffered: these pages are no image data of ours. */
static bool read_head(int dir, const char *name, unsigned char *head, size_t len_bytes)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	bool ok;

	if (fd < 0)
		return false;
	ok =
	    fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && pread(fd, head, len_bytes, 0) == (ssize_t)len_bytes;
	close(fd);
	return ok;
}

static int check_directory(const struct image *img, const char *path, struct err *e)
{
	unsigned char head[VHD_FOOTER_BYTES + VHD_HEADER_BYTES];
	const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
	char dir_name[PATH_MAX];
	struct dirent *ent;
	DIR *dir;
	int res = 0;

	snprintf(dir_name, sizeof(dir_name), "%.*s", slash ? (int)(slash - path + 1) : 1, slash ? path : ".");
	dir = opendir(dir_name);
	if (!dir)
		return errno == ENOENT || errno == ENOTDIR
			   ? 0
			   : err_set(e, -errno, "%s: cannot look for children of %s: %s", dir_name, base,
				     strerror(errno));
	while (res == 0 && (ent = readdir(dir))) {
		if (ent->d_name[0] == '.' || !ends_in_vhd(ent->d_name) || !strcmp(ent->d_name, base))
			continue;
		if (read_head(dirfd(dir), ent->d_name, head, sizeof(head)) && is_child(img, base, head))
			res = err_set(e, -EROFS,
				      "%s: is the parent of %s%s: it is never written; make a clone of it "
				      "(`blkimg snapshot`)",
				      path, slash ? dir_name : "", ent->d_name);
	}
	closedir(dir);
	return res;
}

int disk_check_not_parent(const struct image *img, const char *path, struct err *e)
{
	char real[PATH_MAX];
	int res = check_directory(img, path, e);

	/* Behind a link, children stand beside the file itself. */
	if (res == 0 && realpath(path, real) && strcmp(real, path) != 0)
		res = check_directory(img, real, e);
	return res;
}
