/*
 * Which format is this file? And the few helpers that every format needs.
 *
 * The name decides: --format or the record, else the suffix. Content is the guest's wherever the format lets
 * it be (both ends of a raw disk, sector 0 of a fixed VHD, and the last sector of an unclosed dynamic one),
 * so it is never asked "what are you?", only "can you be what your name says?". A .vhd may be of two kinds;
 * there the two footers decide, and when they contradict each other nobody but the operator can know.
 */
#include "formats/image.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/vhd/layout.h"
#include "formats/vhd/vhd_read.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/stat.h>

static const struct image_format *const formats[] = {&raw_format, &vhd_fixed_format, &vhd_format};

const struct image_format *format_by_name(const char *name)
{
	for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
		if (!strcmp(name, formats[i]->name))
			return formats[i];
	return NULL;
}

int format_find_vhd(struct backing *b, const struct image_format **out, struct err *e)
{
	struct vhd_ends ends;
	int ret = vhd_ends_read(b, &ends, e);

	if (ret)
		return ret;
	if (ends.front_ok && ends.back_ok && ends.front.type != ends.back.type)
		return err_set(e, -EINVAL,
			       "%s: its two footers differ in type (%u at offset 0, %u at the end), and a "
			       "guest may have written either: say "
			       "which it is with --format vhd or --format vhd-fixed",
			       b->path, ends.front.type, ends.back.type);
	if (ends.back_ok)
		*out = ends.back.type == VHD_FIXED ? &vhd_fixed_format : &vhd_format;
	else if (ends.front_ok && ends.front.type != VHD_FIXED)
		*out = &vhd_format;
	else if (ends.front_ok)
		return err_set(e, -EINVAL, "%s: a fixed VHD without its footer at the end (%s)", b->path,
			       ends.back_err.text);
	else
		return err_set(e, -EINVAL, "%s: not a VHD: at offset 0: %s; at the end: %s", b->path,
			       ends.front_err.text, ends.back_err.text);
	return 0;
}

static bool has_suffix(const char *path, const char *suffix)
{
	size_t n = strlen(path), m = strlen(suffix);

	return n > m && !strcasecmp(path + n - m, suffix);
}

int format_find(struct backing *b, const char *name, const struct image_format **out, struct err *e)
{
	if (name) {
		*out = format_by_name(name);
		return *out ? 0
			    : err_set(e, -EINVAL, "format '%s' is unknown; there are raw, vhd-fixed and vhd",
				      name);
	}
	if (has_suffix(b->path, ".raw") || has_suffix(b->path, ".img")) {
		*out = &raw_format;
		return 0;
	}
	if (has_suffix(b->path, ".vhd"))
		return format_find_vhd(b, out, e);
	return err_set(
	    e, -EINVAL,
	    "%s: its name does not say its format (.raw, .img, .vhd): use --format raw, vhd-fixed or vhd",
	    b->path);
}

uint64_t image_serial(void)
{
	static uint64_t last;

	return __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
}

void image_init(struct image *img, const struct image_format *ops, struct backing *b)
{
	img->ops = ops;
	img->file = b;
	img->serial = image_serial();
}

void image_release(struct image *img)
{
	for (unsigned i = 0; i < img->n_parent_names; i++)
		free(img->parent_names[i]);
	img->n_parent_names = 0;
	if (img->file)
		img->file->ops->close(img->file);
	img->file = NULL;
}

void note_add(char *notes, size_t room_bytes, const char *fmt, va_list ap)
{
	size_t used = strlen(notes);

	if (used && used + 2 < room_bytes) {
		memcpy(notes + used, "; ", 3);
		used += 2;
	}
	vsnprintf(notes + used, room_bytes - used, fmt, ap);
}

void image_note(struct image *img, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	note_add(img->notes, sizeof(img->notes), fmt, ap);
	va_end(ap);
}

void uuid_text(const unsigned char uuid[16], char out[37])
{
	char *p = out;

	for (unsigned i = 0; i < 16; i++)
		p += snprintf(p, 4, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", uuid[i]);
}

int path_beside(const char *child, const char *name, char *out, size_t room_bytes)
{
	const char *slash = strrchr(child, '/');
	int dir = name[0] == '/' || !slash ? 0 : (int)(slash - child + 1), n;

	/* "./a.vhd" is how it is stored: without this a path would grow with each level of a chain. */
	while (name[0] == '.' && name[1] == '/' && name[2] && name[2] != '/')
		name += 2;
	n = snprintf(out, room_bytes, "%.*s%s", dir, child, name);

	return n < 0 || (size_t)n >= room_bytes ? -ENAMETOOLONG : 0;
}

uint32_t backing_mtime(const struct backing *b)
{
	struct stat st;

	if (b->fd < 0 || fstat(b->fd, &st) || !S_ISREG(st.st_mode))
		return 0;
	return vhd_time(st.st_mtim.tv_sec);
}
