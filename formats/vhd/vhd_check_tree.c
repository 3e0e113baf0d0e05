/*
 * The checker over a chain: each file by itself (vhd_check.c), then the link to its parent. It walks by what
 * it read itself and never by an image that open() accepted, so a chain with a damaged member is still
 * followed as far as its locators lead.
 *
 * Which file is the parent is decided as at open (chain_open.c): the names are tried in order, and a uuid
 * proves the right one. When no candidate has it, the first that exists is told. Memory: one file's scan at a
 * time, and two words per level for the search for cycles.
 */
#include "formats/vhd/vhd_check_parts.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "blkd/format.h"
#include "formats/image.h"
#include "formats/vhd/vhd_names.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#define DEPTH_OF_OTHERS 30u

struct link { /* what a child says about its parent */
	bool has_parent, raw;
	unsigned char uuid[16];
	uint32_t mtime;
	uint64_t child_size;
	uint64_t header_off;
	char *names[VHD_LOCATORS + 1];
	unsigned n_names;
};

struct walk {
	const struct backing_opener *opener;
	unsigned flags;
	struct check_run run;
	struct {
		dev_t dev;
		ino_t ino;
	} * seen;
	unsigned n_seen;
	struct link link;
};

static void link_free(struct link *l)
{
	for (unsigned i = 0; i < l->n_names; i++)
		free(l->names[i]);
	*l = (struct link){0};
}

static int link_add(struct link *l, const char *name)
{
	if (!name[0])
		return 0;
	for (unsigned i = 0; i < l->n_names; i++)
		if (!strcmp(l->names[i], name))
			return 0;
	l->names[l->n_names] = strdup(name);
	if (!l->names[l->n_names])
		return -ENOMEM;
	l->n_names++;
	return 0;
}

/* Candidates in order of preference, as vhd_parent.c has them. What does not decode was reported already. */
static int link_names(const struct vhd_scan *s, struct link *l)
{
	static const uint32_t order[] = {VHD_LOC_W2RU, VHD_LOC_MACX, VHD_LOC_W2KU};
	unsigned char raw[VHD_LOCATOR_MAX_BYTES];
	char path[VHD_NAME_ROOM_BYTES];
	int ret;

	for (unsigned k = 0; k < sizeof(order) / sizeof(order[0]); k++)
		for (unsigned i = 0; i < VHD_LOCATORS; i++) {
			const struct vhd_locator *loc = &s->header.locators[i];

			if (loc->code != order[k] || !loc->len_bytes || loc->len_bytes > sizeof(raw) ||
			    loc->off_bytes > s->file_bytes)
				continue;
			ret = s->file->ops->read(s->file, loc->off_bytes, raw, loc->len_bytes);
			if (!ret &&
			    !vhd_locator_decode(loc->code, raw, loc->len_bytes, path, sizeof(path), NULL))
				ret = link_add(l, path);
			if (ret)
				return ret;
		}
	if (!vhd_parent_name_decode(s->header.parent_name, path, sizeof(path), NULL))
		return link_add(l, path);
	return 0;
}

static int link_read(const struct vhd_scan *s, struct link *l, struct err *e)
{
	int ret;

	link_free(l);
	if (s->kind != SCAN_SPARSE || !s->footer || !s->header_read || s->footer->type != VHD_DIFFERENCING ||
	    memcmp(s->header_raw, "cxsparse", 8))
		return 0;
	l->has_parent = true;
	l->raw = bytes_are_zero(s->header.parent_uuid, 16);
	memcpy(l->uuid, s->header.parent_uuid, 16);
	l->mtime = s->header.parent_mtime;
	l->child_size = s->footer->curr_size;
	l->header_off = s->footer->data_offset;
	ret = link_names(s, l);
	return ret ? err_set(e, ret, "%s: cannot read its parent's name: %s", s->file->path, strerror(-ret))
		   : 0;
}

/* uuid and disk size by the footer that rules. */
static int look_at(struct backing *b, unsigned char uuid[16], uint64_t *size_bytes, struct err *e)
{
	struct vhd_scan s;
	int ret = vhd_scan_ends(b, NULL, &s, e);

	if (ret)
		return ret;
	if (!s.footer)
		return err_set(e, -EINVAL, "%s: no usable footer", b->path);
	memcpy(uuid, s.footer->uuid, 16);
	*size_bytes = s.footer->curr_size;
	return 0;
}

/* Opens the parent: the first candidate with the right uuid. Reports why there is none. *out NULL: reported.
 */
static void find_parent(struct walk *w, struct backing **out, uint64_t *size_bytes)
{
	const struct link *l = &w->link;
	struct err first = ERR_INIT;
	char other[PATH_MAX] = "", want[37], have[37];
	unsigned char other_uuid[16] = {0};

	*out = NULL;
	for (unsigned i = 0; i < l->n_names; i++) {
		unsigned char uuid[16] = {0};
		struct err why = ERR_INIT;
		char path[PATH_MAX];
		struct backing *b;

		if (path_beside(w->run.path, l->names[i], path, sizeof(path)))
			continue;
		if (w->opener->open(w->opener->ctx, path, w->flags, &b, &why)) {
			if (!first.text[0])
				first = why;
			continue;
		}
		if (l->raw ? !b->ops->size(b, size_bytes)
			   : !look_at(b, uuid, size_bytes, &why) && !memcmp(uuid, l->uuid, 16)) {
			*out = b;
			return;
		}
		if (!other[0]) {
			snprintf(other, sizeof(other), "%s", path);
			memcpy(other_uuid, uuid, 16);
		}
		b->ops->close(b);
	}
	uuid_text(l->uuid, want);
	uuid_text(other_uuid, have);
	if (other[0])
		check_report(&w->run, CHECK_PARENT_UUID,
			     l->header_off + offsetof(struct vhd_header_disk, parent_uuid), want,
			     "%.110s: %s", other, bytes_are_zero(other_uuid, 16) ? "no usable footer" : have);
	else
		check_report(&w->run, CHECK_PARENT_MISSING, l->header_off,
			     l->n_names ? l->names[0] : "a path", "%.150s",
			     first.text[0] ? first.text : "no path to try");
}

/* -ELOOP: in the chain already. */
static int remember(struct walk *w, const struct backing *b)
{
	for (unsigned i = 0; i < w->n_seen; i++)
		if (w->seen[i].dev == b->dev_id && w->seen[i].ino == b->ino)
			return -ELOOP;
	w->seen[w->n_seen].dev = b->dev_id;
	w->seen[w->n_seen].ino = b->ino;
	w->n_seen++;
	return 0;
}

static void check_link(struct walk *w, const struct backing *parent, uint64_t parent_size)
{
	const struct link *l = &w->link;
	uint32_t now = backing_mtime(parent);
	char want[64];

	if (l->mtime && now && now != l->mtime) {
		snprintf(want, sizeof(want), "%" PRIu32, l->mtime);
		check_report(&w->run, CHECK_PARENT_TIME,
			     l->header_off + offsetof(struct vhd_header_disk, parent_mtime), want, "%" PRIu32,
			     now);
	}
	if (parent_size > l->child_size) {
		snprintf(want, sizeof(want), "at most %" PRIu64 " bytes", l->child_size);
		check_report(&w->run, CHECK_PARENT_SIZE, l->header_off, want, "%" PRIu64 " bytes",
			     parent_size);
	}
}

/* The suffix rules over content, as in format_find(); what has neither is looked at as a VHD, which may
 * refuse it. */
static const char *leaf_format(const char *path, const char *named)
{
	size_t n = strlen(path);

	if (named)
		return named;
	return n > 4 && (!strcasecmp(path + n - 4, ".raw") || !strcasecmp(path + n - 4, ".img")) ? "raw"
												 : NULL;
}

/* May the chain go on into the parent? Reports and closes it if not. */
static struct backing *admit(struct walk *w, struct backing *parent)
{
	if (w->n_seen == CHAIN_MAX_DEPTH + 1) {
		check_report(&w->run, CHECK_PARENT_DEPTH, w->link.header_off, "at most 1024 parents",
			     "more, with %.120s", parent->path);
	} else if (remember(w, parent)) {
		check_report(&w->run, CHECK_PARENT_CYCLE, w->link.header_off,
			     "a file that is not in the chain yet", "%.150s", parent->path);
	} else {
		if (w->n_seen == DEPTH_OF_OTHERS + 1)
			check_report(&w->run, CHECK_DEPTH_HIGH, w->link.header_off, "30", "more");
		return parent;
	}
	parent->ops->close(parent);
	return NULL;
}

/* Checks *file, and replaces it by its parent; NULL: the root was reached, or the chain breaks here. */
static int check_level(struct walk *w, struct backing **file, const char *format, struct err *e)
{
	struct backing *child = *file, *parent = NULL;
	struct vhd_scan s = {0};
	uint64_t parent_size = 0;
	int ret;

	memset(w->run.seen, 0, sizeof(w->run.seen));
	ret = check_one(&w->run, child, format, &s, e);
	check_report_end(&w->run);
	if (!ret)
		ret = link_read(&s, &w->link, e);
	vhd_scan_free(&s);
	memset(w->run.seen, 0, sizeof(w->run.seen));
	if (!ret && w->link.has_parent)
		find_parent(w, &parent, &parent_size);
	if (parent) {
		check_link(w, parent, parent_size);
		parent = admit(w, parent);
	}
	child->ops->close(child);
	*file = parent;
	return ret;
}

int vhd_check_tree(const struct backing_opener *opener, unsigned backing_flags, const char *path,
		   const struct check_opts *opts, struct check_result *result, struct err *e)
{
	struct walk w = {.opener = opener,
			 .flags = backing_flags & ~BACKING_WRITE,
			 .run = {.opts = opts, .result = result}};
	const char *format = leaf_format(path, opts->format);
	struct backing *file = NULL;
	int ret = opener->open(opener->ctx, path, w.flags, &file, e);

	if (ret)
		return ret;
	w.seen = calloc(CHAIN_MAX_DEPTH + 2, sizeof(*w.seen));
	ret = w.seen ? remember(&w, file) : err_set(e, -ENOMEM, "no memory to check the tree of %s", path);
	while (!ret && file) {
		ret = check_level(&w, &file, format, e);
		format = w.link.raw ? "raw" : NULL;
	}
	if (file)
		file->ops->close(file);
	link_free(&w.link);
	free(w.seen);
	return ret;
}
