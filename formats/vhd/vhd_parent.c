/*
 * Whom does a differencing disk name as its parent? Up to eight locators and a base name, all untrusted,
 * become candidate paths.
 *
 * Order of preference: what was meant as relative (an image moves with its directory), then what was meant as
 * absolute, then the base name. tapdisk stores the relative path under every code, so the same name usually
 * comes three times and is kept once. Wi2r, Wi2k and Mac are legal codes whose content has no specified
 * encoding; they are passed over. That the file found is the right one is proved by its uuid (chain_open.c),
 * not by its name.
 */
#include "formats/vhd/vhd.h"

#include "blkd/bytes.h"
#include "blkd/err.h"
#include "formats/vhd/vhd_names.h"
#include "formats/vhd/vhd_read.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

static int name_add(struct image *img, const char *name, struct err *e)
{
	char *copy;

	if (!name[0])
		return 0;
	for (unsigned i = 0; i < img->n_parent_names; i++)
		if (!strcmp(img->parent_names[i], name))
			return 0;
	copy = strdup(name);
	if (!copy)
		return err_set(e, -ENOMEM, "%s: no memory for its parent's name", img->file->path);
	img->parent_names[img->n_parent_names++] = copy;
	return 0;
}

/* Reads and decodes one locator into name (empty: nothing usable). */
static int locator_read(struct vhd *v, unsigned i, unsigned char *raw, char *name, struct err *e)
{
	const struct vhd_locator *l = &v->header.locators[i];
	struct backing *b = v->img.file;
	int ret;

	name[0] = 0;
	if (l->len_bytes > VHD_LOCATOR_MAX_BYTES)
		return err_set(e, -EINVAL,
			       "%s: parent locator %u holds %" PRIu32
			       " bytes, no path is that long: run blkimg check",
			       b->path, i, l->len_bytes);
	ret = b->ops->read(b, l->off_bytes, raw, l->len_bytes);
	if (ret)
		return err_set(e, ret, "%s: cannot read parent locator %u: %s", b->path, i, strerror(-ret));
	if (vhd_locator_text(l->code, raw, l->len_bytes, name, VHD_NAME_ROOM_BYTES) < 0)
		return err_set(e, -EINVAL,
			       "%s: parent locator %u does not decode to a path: run blkimg check", b->path,
			       i);
	return 0;
}

/* Room of a locator: within the file, clear of the fixed metadata. */
static int locator_check(struct vhd *v, unsigned i, struct err *e)
{
	const struct vhd_locator *l = &v->header.locators[i];
	uint64_t end = l->off_bytes + vhd_locator_room(l->space);
	uint64_t bat_end = v->bat_off + vhd_bat_bytes(v->header.bat_entries);
	uint64_t hdr = v->footer.data_offset;

	if (end > v->file_bytes)
		return err_set(e, -EINVAL,
			       "%s: parent locator %u reaches past the end of the file: run blkimg check",
			       v->img.file->path, i);
	if ((l->off_bytes < hdr + VHD_HEADER_BYTES && end > hdr) ||
	    (l->off_bytes < bat_end && end > v->bat_off))
		return err_set(e, -EINVAL,
			       "%s: parent locator %u overlaps the header or the BAT: run blkimg check",
			       v->img.file->path, i);
	v->meta_end = u64_max(v->meta_end, round_up_u64(end, SECTOR_BYTES));
	return 0;
}

static int names_collect(struct vhd *v, unsigned char *raw, char *name, struct err *e)
{
	static const uint32_t order[] = {VHD_LOC_W2RU, VHD_LOC_MACX, VHD_LOC_W2KU};
	struct image *img = &v->img;

	for (unsigned k = 0; k < sizeof(order) / sizeof(order[0]); k++)
		for (unsigned i = 0; i < VHD_LOCATORS; i++) {
			int ret;

			if (v->header.locators[i].code != order[k] || !v->header.locators[i].len_bytes)
				continue;
			ret = locator_read(v, i, raw, name, e);
			if (!ret)
				ret = name_add(img, name, e);
			if (ret)
				return ret;
		}
	if (vhd_name_text(v->header.parent_name, name, VHD_NAME_ROOM_BYTES) < 0)
		return err_set(e, -EINVAL,
			       "%s: the parent's name in its header does not decode: run blkimg check",
			       img->file->path);
	return name_add(img, name, e);
}

int vhd_parent_read(struct vhd *v, struct err *e)
{
	struct image *img = &v->img;
	unsigned char *raw;
	char *name;
	int ret = 0;

	img->has_parent = true;
	img->parent_is_raw = bytes_are_zero(v->header.parent_uuid, sizeof(v->header.parent_uuid));
	img->parent_mtime = v->header.parent_mtime;
	memcpy(img->parent_uuid, v->header.parent_uuid, sizeof(img->parent_uuid));
	for (unsigned i = 0; i < VHD_LOCATORS && !ret; i++)
		if (v->header.locators[i].code != VHD_LOC_NONE && v->header.locators[i].len_bytes)
			ret = locator_check(v, i, e);
	if (ret)
		return ret;
	raw = malloc(VHD_LOCATOR_MAX_BYTES);
	name = malloc(VHD_NAME_ROOM_BYTES);
	if (!raw || !name)
		ret = err_set(e, -ENOMEM, "%s: no memory to read its parent's name", img->file->path);
	else
		ret = names_collect(v, raw, name, e);
	free(raw);
	free(name);
	if (!ret && !img->n_parent_names)
		ret = err_set(e, -EINVAL, "%s: a differencing disk that names no parent: run blkimg check",
			      img->file->path);
	return ret;
}
