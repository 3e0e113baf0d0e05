/* check: every finding of a whole chain, in one list. */
#include "tools/blkimg/blkimg.h"

#include "blkd/vhd_check.h"

#include <inttypes.h>
#include <stdio.h>

static void finding_json(void *ctx, const struct check_finding *f)
{
	json_t *j = json_object();

	json_object_set_new(j, "code", json_string(f->code));
	json_object_set_new(j, "severity", json_string(check_severity_name(f->severity)));
	json_object_set_new(j, "file", json_string(f->path));
	json_object_set_new(j, "offset", json_integer((json_int_t)f->off_bytes));
	json_object_set_new(j, "what", json_string(f->what));
	json_object_set_new(j, "expected", f->expected[0] ? json_string(f->expected) : json_null());
	json_object_set_new(j, "found", f->found[0] ? json_string(f->found) : json_null());
	json_object_set_new(j, "advice", json_string(f->advice));
	json_array_append_new(ctx, j);
}

static void finding_print(void *ctx, const struct check_finding *f)
{
	(void)ctx;
	printf("%s: %s at offset %" PRIu64 ": %s (%s)", f->path, check_severity_name(f->severity),
	       f->off_bytes, f->what, f->code);
	if (f->expected[0])
		printf("; expected %s", f->expected);
	if (f->found[0])
		printf("; found %s", f->found);
	printf("; %s\n", f->advice);
}

int verb_check(const struct args *a, json_t *out, struct err *e)
{
	json_t *list = out ? json_array() : NULL;
	struct check_result r = {0};
	struct progress progress;
	struct check_opts opts = {.format = a->format,
				  .lenient = a->set & OPT_LENIENT,
				  .bitmaps = a->set & OPT_BITMAPS,
				  .found = out ? finding_json : finding_print,
				  .ctx = list,
				  .progress = progress_blocks,
				  .progress_ctx = &progress};
	int ret;

	progress_start(&progress, "checking", 0);
	ret = vhd_check_tree(&file_opener, a->backing_flags, a->word[0], &opts, &r, e);
	progress_end(&progress);
	if (out) {
		json_object_set_new(out, "findings", list);
		json_object_set_new(out, "files", json_integer(r.files));
		json_object_set_new(out, "errors", json_integer(r.errors));
		json_object_set_new(out, "unclean", json_integer(r.unclean));
		json_object_set_new(out, "warnings", json_integer(r.warnings));
	} else if (!ret) {
		printf("%s: %" PRIu32 " file%s: %" PRIu32 " errors, %" PRIu32 " unclean, %" PRIu32
		       " warnings\n",
		       a->word[0], r.files, r.files == 1 ? "" : "s", r.errors, r.unclean, r.warnings);
	}
	if (ret)
		return ret;
	return r.errors || r.unclean ? BLKIMG_FOUND : 0;
}
