/* The checker over a tree in which the image may be its own parent; what it calls clean must open. It never
 * writes. */
#include "blkd/vhd_check.h"
#include "tests/fuzz/fuzz.h"

static void found(void *ctx, const struct check_finding *f)
{
	(void)ctx;
	if (!f->code || !f->what || !f->advice || !memchr(f->found, 0, sizeof(f->found)) ||
	    !memchr(f->expected, 0, sizeof(f->expected)))
		abort();
}

static bool opens(void)
{
	const struct image_format *format;
	struct image *img;
	struct backing *b = flat_open(false);

	if (format_find(b, NULL, &format, NULL) || format->open(b, &img, NULL)) {
		flat_close(b);
		return false;
	}
	img->ops->close(img);
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct backing_opener opener = {.open = flat_opener_open};
	struct check_opts opts = {.lenient = true, .bitmaps = true, .found = found, .now_s = 1800000000};
	struct check_result r = {0};
	struct err e = ERR_INIT;

	if (!flat_load(data, size))
		return 0;
	if (vhd_check_tree(&opener, 0, flat_path, &opts, &r, &e) || flat.changes || flat.open)
		abort();
	if (!r.errors && !r.unclean && !opens())
		abort();
	return 0;
}
