/*
 * Opening the parents of an image, down to the one that has none.
 *
 * A child's word about its parent is two things: names, which are tried in order against the child's
 * directory, and a uuid, which proves the file found to be the right one. So a candidate that exists but is
 * another image is passed over like one that does not exist, and its reason is told if none fits. A raw
 * parent has no uuid: there the name must do. Time stamps prove nothing (marking a parent as hidden changes
 * it) and only warn. Cycles are found by file identity, whatever the names.
 */
#include "formats/image.h"

#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define DEPTH_OF_OTHERS 30u /* sm refuses to snapshot beyond it */

struct walk {
	const struct backing_opener *opener;
	const struct chain_share *share;
	struct image *leaf;
	struct image **img;
	unsigned n;
};

int image_open_path(const struct backing_opener *opener, const char *path, unsigned flags, const char *format,
		    struct image **out, struct err *e)
{
	const struct image_format *f;
	struct backing *b;
	int ret = opener->open(opener->ctx, path, flags, &b, e);

	if (ret)
		return ret;
	ret = format_find(b, format, &f, e);
	if (!ret)
		ret = f->open(b, out, e);
	if (ret)
		b->ops->close(b);
	return ret;
}

static void give_back(const struct walk *w, struct image *img)
{
	if (w->share)
		w->share->put(w->share->ctx, img);
	else
		img->ops->close(img);
}

/* Opens b as the parent of child, or finds it open already. Takes b over on success. */
static int parent_open(const struct walk *w, const struct image *child, struct backing *b, struct image **out,
		       struct err *e)
{
	const struct image_format *f = &raw_format;
	int ret;

	if (w->share) {
		*out = w->share->get(w->share->ctx, b);
		if (*out) {
			b->ops->close(b);
			return 0;
		}
	}
	ret = child->parent_is_raw ? 0 : format_find_vhd(b, &f, e);
	if (!ret)
		ret = f->open(b, out, e);
	if (!ret && w->share)
		w->share->added(w->share->ctx, *out);
	return ret;
}

static bool same_file(const struct image *img, const struct backing *b)
{
	return img->file->dev_id == b->dev_id && img->file->ino == b->ino;
}

/* A cycle is damage, not a wrong name: it ends the search. */
static int check_cycle(const struct walk *w, const struct image *child, const struct backing *b,
		       struct err *e)
{
	bool seen = same_file(w->leaf, b);

	for (unsigned i = 0; i < w->n; i++)
		seen |= same_file(w->img[i], b);
	return seen ? err_set(e, -ELOOP, "%s: names %s as its parent, which is itself or its child: a cycle",
			      child->file->path, b->path)
		    : 0;
}

static int check_identity(const struct image *child, const struct image *parent, struct err *e)
{
	char want[37], have[37];

	if (child->parent_is_raw) {
		if (parent->ops == &raw_format)
			return 0;
		return err_set(e, -EINVAL, "%s: %s wants it as a raw parent, but it is open as %s",
			       parent->file->path, child->file->path, parent->ops->name);
	}
	if (!memcmp(child->parent_uuid, parent->uuid, 16))
		return 0;
	uuid_text(child->parent_uuid, want);
	uuid_text(parent->uuid, have);
	return err_set(e, -EINVAL, "%s: its uuid is %s, but %s wants the parent %s", parent->file->path, have,
		       child->file->path, want);
}

static void warn_mtime(const struct image *child, const struct image *parent)
{
	uint32_t now = backing_mtime(parent->file);

	if (child->parent_mtime && now && now != child->parent_mtime)
		log_warn("%s: its parent %s was changed at %" PRIu32 ", recorded is %" PRIu32
			 " (seconds since 2000); the uuid is right, so only a time stamp differs",
			 child->file->path, parent->file->path, now, child->parent_mtime);
}

/* Tries one candidate. -ENOENT: there is no such file. */
static int candidate_try(const struct walk *w, const struct image *child, const char *name,
			 struct image **out, struct err *e)
{
	char path[PATH_MAX];
	struct backing *b;
	int ret = path_beside(child->file->path, name, path, sizeof(path));

	if (ret)
		return err_set(e, ret, "%s: the path of its parent is too long", child->file->path);
	ret = w->opener->open(w->opener->ctx, path, 0, &b, e);
	if (ret)
		return ret;
	ret = check_cycle(w, child, b, e);
	if (!ret)
		ret = parent_open(w, child, b, out, e);
	if (ret) {
		b->ops->close(b);
		return ret;
	}
	ret = check_identity(child, *out, e);
	if (ret)
		give_back(w, *out);
	else
		warn_mtime(child, *out);
	return ret;
}

static int err_missing(const struct image *child, struct err *e)
{
	char names[256] = "", want[37] = "raw";
	size_t used = 0;

	for (unsigned i = 0; i < child->n_parent_names && used < sizeof(names); i++)
		used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", i ? ", " : "",
					 child->parent_names[i]);
	if (!child->parent_is_raw)
		uuid_text(child->parent_uuid, want);
	return err_set(e, -ENOENT, "%s: its parent (%s) is missing; wanted: %s", child->file->path, want,
		       names);
}

static int parent_find(const struct walk *w, const struct image *child, struct image **out, struct err *e)
{
	struct err why = ERR_INIT;
	bool have_why = false;

	for (unsigned i = 0; i < child->n_parent_names; i++) {
		struct err this = ERR_INIT;
		int ret = candidate_try(w, child, child->parent_names[i], out, &this);

		if (!ret)
			return 0;
		if (ret != -ENOENT && ret != -ENOTDIR && !have_why) {
			why = this;
			why.code = ret;
			have_why = true;
		}
		if (ret == -ELOOP)
			break;
	}
	if (!have_why)
		return err_missing(child, e);
	return err_set(e, why.code, "%s", why.text);
}

int chain_open_parents(struct image *leaf, const struct backing_opener *opener,
		       const struct chain_share *share, struct image **img, unsigned *n, struct err *e)
{
	struct walk w = {.opener = opener, .share = share, .leaf = leaf, .img = img};
	const struct image *child = leaf;
	int ret = 0;

	while (child->has_parent && !ret) {
		if (w.n == CHAIN_MAX_DEPTH) {
			ret = err_set(e, -ELOOP, "%s: its chain is deeper than %u images: coalesce it",
				      leaf->file->path, CHAIN_MAX_DEPTH);
			break;
		}
		ret = parent_find(&w, child, &img[w.n], e);
		if (!ret)
			child = img[w.n++];
	}
	if (ret) {
		while (w.n)
			give_back(&w, img[--w.n]);
		*n = 0;
		return ret;
	}
	if (w.n + 1 > DEPTH_OF_OTHERS)
		log_warn("%s: a chain of %u images; other tools stop at %u", leaf->file->path, w.n + 1,
			 DEPTH_OF_OTHERS);
	*n = w.n;
	return 0;
}
