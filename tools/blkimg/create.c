/*
 * create and snapshot. A new file is made with O_EXCL, so nothing is ever written over; if anything fails it
 * is removed again. The path to the parent is stored relative to the child, as sm does it, so a directory of
 * images can be moved.
 */
#include "tools/blkimg/blkimg.h"

#include "blkd/vhd.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct plan {
	const char *path, *format;
	uint64_t size_bytes; /* 0: the parent's */
	const char *parent, *parent_format;
};

static int fill(struct backing *b, const struct plan *p, const struct image *parent, struct err *e)
{
	struct vhd_create_opts opts = {.kind = VHD_KIND_DYNAMIC, .size_bytes = p->size_bytes};
	char name[PATH_MAX];
	int ret;

	if (!strcmp(p->format, "raw")) {
		ret = b->ops->truncate(b, p->size_bytes);
		if (!ret)
			ret = b->ops->flush(b);
		return ret ? err_set(e, ret, "%s: cannot make it %llu bytes long: %s", p->path,
				     (unsigned long long)p->size_bytes, strerror(-ret))
			   : 0;
	}
	if (!strcmp(p->format, "vhd-fixed"))
		opts.kind = VHD_KIND_FIXED;
	if (parent) {
		ret = path_relative(p->path, p->parent, name, sizeof(name), e);
		if (ret)
			return ret;
		opts.kind = VHD_KIND_DIFFERENCING;
		opts.parent = parent;
		opts.parent_path = name;
	}
	return vhd_create(b, &opts, e);
}

static int make(const struct plan *p, const struct args *a, const struct image *parent, struct err *e)
{
	struct backing *b;
	int ret = file_create(p->path, a, &b, e);

	if (ret)
		return ret;
	ret = fill(b, p, parent, e);
	b->ops->close(b);
	if (!ret)
		ret = dir_sync(p->path, e);
	if (ret)
		unlink(p->path);
	return ret;
}

/* The whole chain must open, and have room for one more. */
static int clone_of(const struct plan *p, const struct args *a, struct err *e)
{
	struct ro_chain *c;
	int ret;

	if (strcmp(p->format, "vhd"))
		return err_set(e, -EINVAL, "%s: only the format vhd can have a parent, not %s", p->path,
			       p->format);
	ret = image_settle(p->parent, p->parent_format, a, e);
	if (!ret)
		ret = ro_open(p->parent, p->parent_format, a, &c, e);
	if (ret)
		return err_prefix(e, "the parent");
	if (c->n + 1 > CHAIN_MAX_DEPTH)
		ret = err_set(e, -ELOOP,
			      "%s: its chain is %u deep already, the most that can be opened: flatten it "
			      "with blkimg convert",
			      p->parent, c->n + 1);
	else
		ret = make(p, a, c->chain.leaf, e);
	ro_close(c);
	return ret;
}

static int answer(const struct plan *p, const struct args *a, json_t *out, struct err *e)
{
	struct image *img;
	char text[37], size[32];
	int ret = image_open_path(&file_opener, p->path, a->backing_flags, p->format, &img, e);

	if (ret)
		return ret;
	uuid_text(img->uuid, text);
	if (out) {
		json_object_set_new(out, "file", json_string(p->path));
		json_object_set_new(out, "format", json_string(img->ops->name));
		json_object_set_new(out, "size_bytes", json_integer((json_int_t)img->size_bytes));
		json_object_set_new(out, "uuid", strcmp(p->format, "raw") ? json_string(text) : json_null());
		json_object_set_new(out, "parent",
				    img->has_parent ? json_string(img->parent_names[0]) : json_null());
	} else {
		printf("%s: %s, %s%s%s\n", p->path, img->ops->name, human(img->size_bytes, size),
		       img->has_parent ? ", over " : "", img->has_parent ? img->parent_names[0] : "");
	}
	img->ops->close(img);
	return 0;
}

int verb_create(const struct args *a, json_t *out, struct err *e)
{
	struct plan p = {.path = a->word[0], .parent = a->parent, .parent_format = a->src_format};
	int ret = 0;

	p.format = format_of(p.path, a->format, e);
	if (!p.format)
		return -EINVAL;
	if (a->n_words == 2)
		ret = size_parse(a->word[1], &p.size_bytes, e);
	else if (!p.parent)
		ret = err_set(e, -EINVAL, "%s: say its size, as in: blkimg create %s 10G", p.path, p.path);
	if (!ret)
		ret = p.parent ? clone_of(&p, a, e) : make(&p, a, NULL, e);
	return ret ? ret : answer(&p, a, out, e);
}

/* After the child is durable: a parent that is hidden without a child would be an image that nobody can use.
 */
static int hide(const struct plan *p, const struct args *a, struct err *e)
{
	struct image *img;
	int ret = image_open_path(&file_opener, p->parent, a->backing_flags | BACKING_WRITE, p->parent_format,
				  &img, e);

	if (ret)
		return ret;
	if (!strcmp(img->ops->name, "raw"))
		ret = err_set(e, -EINVAL, "%s: a raw image has no place for the hidden mark; %s was made",
			      p->parent, p->path);
	else
		ret = vhd_set_hidden(img, true, e);
	img->ops->close(img);
	return ret;
}

int verb_snapshot(const struct args *a, json_t *out, struct err *e)
{
	struct plan p = {
	    .path = a->word[1], .parent = a->word[0], .parent_format = a->format, .format = "vhd"};
	int ret = clone_of(&p, a, e);

	if (!ret && a->set & OPT_HIDE)
		ret = hide(&p, a, e);
	return ret ? ret : answer(&p, a, out, e);
}
