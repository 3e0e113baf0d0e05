/* Open, read the map of the whole disk, and where the image can be written: write into it, read that back,
 * close it, and open it again. */
#include "tests/fuzz/fuzz.h"

static void map_all(struct image *img)
{
	unsigned char meta[512];
	unsigned steps = 0;

	for (uint64_t off = 0; off < img->size_bytes && steps < 20000; steps++) {
		uint64_t left = img->size_bytes - off;
		struct extent x;

		img->ops->map(img, NULL, off, left > 1u << 30 ? 1u << 30 : (uint32_t)left, &x);
		if (x.kind == EXT_META) {
			flat_read(img->file, x.file_off, meta, sizeof(meta));
			img->ops->map(img, meta, off, x.len_bytes, &x);
		}
		if (!x.len_bytes || x.kind == EXT_META || x.len_bytes > left)
			abort();
		off += x.len_bytes;
	}
}

static struct image *open_it(bool writable)
{
	const struct image_format *format;
	struct err e = ERR_INIT;
	struct image *img;
	struct backing *b = flat_open(writable);
	int ret = format_find(b, NULL, &format, &e);

	if (!ret)
		ret = format->open(b, &img, &e);
	if (flat.changes)
		abort();
	if (!ret)
		return img;
	if (!e.text[0] || strchr(e.text, '\n') || e.code != ret)
		abort();
	flat_close(b);
	return NULL;
}

static void write_it(struct image *img, const uint8_t *data)
{
	struct chain c = {.leaf = img, .size_bytes = img->size_bytes};
	unsigned char buf[4096], back[4096];
	uint64_t off =
	    ((uint64_t)data[0] << 16 | (uint64_t)data[1] << 8 | data[2]) * 4096 % img->size_bytes / 512 * 512;
	uint64_t len = img->size_bytes - off < sizeof(buf) ? img->size_bytes - off : sizeof(buf);

	memset(buf, 0xa5, sizeof(buf));
	if (img->ops->begin_writing(img, NULL))
		return;
	if (!chain_write(&c, WRITE_DATA, off, buf, len, NULL)) {
		if (chain_read(&c, off, back, len, NULL) || memcmp(buf, back, len))
			abort();
		if (image_run_job(img, JOB_COMMIT, NULL) == 0 && image_run_job(img, JOB_CLOSE, NULL) == 0)
			flat.changes = 0;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct image *img;
	bool written;

	if (!flat_load(data, size))
		return 0;
	img = open_it(true);
	if (!img)
		return 0;
	map_all(img);
	if (!img->hidden)
		write_it(img, data);
	written = img->writing && !flat.changes;
	img->ops->close(img);
	if (written) { /* what we closed cleanly opens, and opens clean */
		img = open_it(false);
		if (!img)
			abort();
		img->ops->close(img);
	}
	return 0;
}
