/*
 * repair: lists the writes that would put a file right, makes them unless --dry-run, and checks the file
 * again. A damaged image cannot be opened as a disk, so its door is this one: the fence, no parent of others,
 * and no records in a journal (those are replayed first, by opening the disk, or the repair is refused).
 */
#include "tools/blkimg/blkimg.h"

#include "blkd/vhd_check.h"
#include "formats/vhd/layout.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FENCE_WAIT_MS 2000u

/* Enough of an image for those who ask about identity: a damaged one has no more. */
static void stand_in(struct backing *b, struct image *img)
{
	unsigned char raw[VHD_FOOTER_BYTES];
	struct vhd_footer_info f;
	uint64_t size = 0;

	*img = (struct image){.file = b};
	b->ops->size(b, &size);
	for (int end = 0; end < 2; end++) {
		if (size < VHD_FOOTER_BYTES ||
		    b->ops->read(b, end ? size - VHD_FOOTER_BYTES : 0, raw, sizeof(raw)) ||
		    vhd_footer_parse(raw, &f, NULL))
			continue;
		memcpy(img->uuid, f.uuid, 16);
		img->hidden = f.hidden;
		return;
	}
}

static int refuse_parent(struct backing *b, const struct args *a, struct err *e)
{
	struct image img;
	int ret;

	if (a->set & OPT_EVEN_PARENT)
		return 0;
	stand_in(b, &img);
	ret = img.hidden ? err_set(e, -EROFS, "%s: is marked hidden, it is a parent of others", b->path)
			 : disk_check_not_parent(&img, b->path, e);
	if (ret)
		err_set(e, ret,
			"%.300s; to repair it all the same, unplug its children and say --even-parent",
			e->text);
	return ret;
}

/* Writes that blkd answered and that are not in the image yet come first. */
static int replay_first(const struct args *a, struct err *e)
{
	struct image *img, fake;
	struct disk *disk;
	struct backing *b;
	int pending, ret = image_open_path(&file_opener, a->word[0], a->backing_flags, "vhd", &img, NULL);

	if (ret) { /* damaged */
		ret = file_opener.open(file_opener.ctx, a->word[0], a->backing_flags, &b, e);
		if (ret)
			return ret;
		stand_in(b, &fake);
		pending = records_pending(&fake, a, NULL);
		b->ops->close(b);
		return pending ? err_set(e, -EBUSY,
					 "%s: a journal in %s holds answered writes for it, which cannot be "
					 "replayed while it is damaged: remove the "
					 "journal to repair it without them",
					 a->word[0], a->run_dir)
			       : 0;
	}
	pending = records_pending(img, a, e);
	img->ops->close(img);
	if (pending <= 0)
		return pending;
	ret = disk_open_rw(a->word[0], "vhd", a, &disk, e);
	if (ret)
		return ret;
	ret = disk_finish(disk, e);
	disk_close(disk);
	return ret;
}

static void plan_print(const struct args *a, const struct repair_plan *p, bool dry)
{
	for (unsigned i = 0; i < p->n_writes; i++)
		printf("%s: %s %" PRIu32 " bytes at offset %" PRIu64 ": %s\n", a->word[0],
		       dry ? "would write" : "write", p->writes[i].len_bytes, p->writes[i].off_bytes,
		       p->writes[i].why);
	for (unsigned i = 0; i < p->n_lost; i++)
		printf("%s: block %" PRIu32 " lies where none can be: %" PRIu64
		       " bytes of the disk at %" PRIu64 " %s\n",
		       a->word[0], p->lost[i].block, p->lost[i].len_bytes, p->lost[i].guest_off,
		       a->set & OPT_DROP ? (dry ? "would be lost" : "are lost")
					 : "are unreadable; --drop-bad-blocks gives them up");
	if (p->notes[0])
		printf("%s: %s\n", a->word[0], p->notes);
	if (!p->n_writes && !p->n_lost && !p->notes[0])
		printf("%s: nothing to repair\n", a->word[0]);
}

static void plan_json(const struct args *a, const struct repair_plan *p, bool dry, json_t *out)
{
	json_t *writes = json_array(), *lost = json_array();

	for (unsigned i = 0; i < p->n_writes; i++) {
		json_t *j = json_object();

		json_object_set_new(j, "offset", json_integer((json_int_t)p->writes[i].off_bytes));
		json_object_set_new(j, "length", json_integer(p->writes[i].len_bytes));
		json_object_set_new(j, "why", json_string(p->writes[i].why));
		json_array_append_new(writes, j);
	}
	for (unsigned i = 0; i < p->n_lost; i++) {
		json_t *j = json_object();

		json_object_set_new(j, "block", json_integer(p->lost[i].block));
		json_object_set_new(j, "offset", json_integer((json_int_t)p->lost[i].guest_off));
		json_object_set_new(j, "length", json_integer((json_int_t)p->lost[i].len_bytes));
		json_array_append_new(lost, j);
	}
	json_object_set_new(out, "file", json_string(a->word[0]));
	json_object_set_new(out, "dry_run", json_boolean(dry));
	json_object_set_new(out, "writes", writes);
	json_object_set_new(out, "bad_blocks", lost);
	json_object_set_new(out, "dropped", json_boolean(!dry && a->set & OPT_DROP && p->n_lost));
	json_object_set_new(out, "notes", p->notes[0] ? json_string(p->notes) : json_null());
}

/* What is still wrong. */
static int check_again(struct backing *b, const struct args *a, json_t *out, struct err *e)
{
	struct check_opts opts = {.format = "vhd", .lenient = true};
	struct check_result r = {0};
	int ret = vhd_check(b, &opts, &r, e);

	if (ret)
		return ret;
	if (out) {
		json_object_set_new(out, "errors_left", json_integer(r.errors));
		json_object_set_new(out, "unclean_left", json_integer(r.unclean));
	} else if (r.errors || r.unclean) {
		printf("%s: %" PRIu32 " errors and %" PRIu32 " unclean left: see blkimg check\n", a->word[0],
		       r.errors, r.unclean);
	}
	return r.errors || r.unclean ? BLKIMG_FOUND : 0;
}

static int repair_open(struct backing *b, const struct args *a, json_t *out, struct err *e)
{
	struct progress progress;
	struct repair_opts opts = {.format = a->format,
				   .drop_bad_blocks = a->set & OPT_DROP,
				   .progress = progress_blocks,
				   .progress_ctx = &progress};
	bool dry = a->set & OPT_DRY_RUN;
	struct repair_plan plan;
	int ret;

	progress_start(&progress, "reading bitmaps", 0);
	ret = vhd_repair_plan(b, &opts, &plan, e);
	progress_end(&progress);
	if (!ret && !dry)
		ret = vhd_repair_apply(b, &plan, e);
	if (!ret && out)
		plan_json(a, &plan, dry, out);
	else if (!ret)
		plan_print(a, &plan, dry);
	if (!ret)
		ret = dry ? ((plan.n_lost && !opts.drop_bad_blocks) || plan.notes[0] ? BLKIMG_FOUND : 0)
			  : check_again(b, a, out, e);
	vhd_repair_free(&plan);
	return ret;
}

int verb_repair(const struct args *a, json_t *out, struct err *e)
{
	bool dry = a->set & OPT_DRY_RUN;
	const char *format = format_of(a->word[0], a->format, e);
	struct backing *b;
	int ret;

	if (!format)
		return -EINVAL;
	if (!strcmp(format, "raw"))
		return err_set(e, -EINVAL, "%s: a raw image has nothing that could be repaired", a->word[0]);
	ret = file_opener.open(file_opener.ctx, a->word[0], (dry ? 0 : BACKING_WRITE) | a->backing_flags, &b,
			       e);
	if (ret)
		return ret;
	if (!dry) {
		ret = b->ops->fence(b, FENCE_WAIT_MS);
		if (ret)
			err_set(e, ret, "%s: somebody has it open for writing: unplug it first", a->word[0]);
		if (!ret)
			ret = refuse_parent(b, a, e);
		if (!ret) { /* the replay takes the fence itself, and gives it back */
			b->ops->close(b);
			b = NULL;
			ret = replay_first(a, e);
		}
		if (!ret)
			ret = file_opener.open(file_opener.ctx, a->word[0], BACKING_WRITE | a->backing_flags,
					       &b, e);
		if (!ret)
			ret = b->ops->fence(b, FENCE_WAIT_MS);
	}
	if (!ret)
		ret = repair_open(b, a, out, e);
	if (b)
		b->ops->close(b);
	return ret;
}
