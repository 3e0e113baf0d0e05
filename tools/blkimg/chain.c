/* A chain opened read-only, and the walk over its extents with metadata brought as it is asked for. */
#include "tools/blkimg/blkimg.h"

#include "blkd/bytes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

int ro_open(const char *path, const char *format, const struct args *a, struct ro_chain **out, struct err *e)
{
	struct ro_chain *c = calloc(1, sizeof(*c));
	int ret;

	if (!c)
		return err_set(e, -ENOMEM, "no memory to open %s", path);
	ret = image_open_path(&file_opener, path, a->backing_flags, format, &c->chain.leaf, e);
	if (!ret && c->chain.leaf->has_parent) {
		ret = chain_open_parents(c->chain.leaf, &file_opener, NULL, c->img, &c->n, e);
		if (!ret)
			ret = parents_build(c->img, c->n, &c->chain.parents, e);
	}
	if (ret) {
		ro_close(c);
		return ret;
	}
	c->chain.size_bytes = c->chain.leaf->size_bytes;
	*out = c;
	return 0;
}

void ro_close(struct ro_chain *c)
{
	if (!c)
		return;
	if (c->chain.parents)
		parents_free(c->chain.parents);
	for (unsigned i = 0; i < c->n; i++)
		c->img[i]->ops->close(c->img[i]);
	if (c->chain.leaf)
		c->chain.leaf->ops->close(c->chain.leaf);
	free(c);
}

/* The bitmap read last, per process: a walk asks for the same one until it is through with the block. */
static struct {
	const struct image *img;
	uint64_t serial, key;
	unsigned char sector[SECTOR_BYTES];
} memo[16];

static const void *bring(struct image *img, uint64_t key, int *ret)
{
	unsigned i = (unsigned)((img->serial ^ key / SECTOR_BYTES) % (sizeof(memo) / sizeof(memo[0])));

	if (memo[i].img == img && memo[i].serial == img->serial && memo[i].key == key)
		return memo[i].sector;
	memo[i].img = NULL;
	*ret = img->file->ops->read(img->file, key, memo[i].sector, SECTOR_BYTES);
	if (*ret)
		return NULL;
	memo[i].img = img;
	memo[i].serial = img->serial;
	memo[i].key = key;
	return memo[i].sector;
}

static int one_extent(const struct chain *c, uint64_t off, uint32_t len, struct extent *x, struct err *e)
{
	chain_map(c, 0, NULL, off, len, x);
	while (x->kind == EXT_META) {
		struct image *img = chain_image(c, x->layer);
		int ret = 0;
		const void *meta = bring(img, x->file_off, &ret);

		if (!meta)
			return err_set(e, ret, "%s: cannot read the bitmap at offset %" PRIu64 ": %s",
				       img->file->path, x->file_off, strerror(-ret));
		chain_map(c, x->layer, meta, off, x->len_bytes, x);
	}
	return 0;
}

int extent_at(const struct chain *c, uint64_t off, uint64_t len, struct extent *x, uint64_t *got,
	      struct err *e)
{
	int ret = one_extent(c, off, (uint32_t)u64_min(len, 1u << 30), x, e);

	if (ret)
		return ret;
	*got = x->len_bytes;
	while (*got < len) {
		struct extent next;

		ret = one_extent(c, off + *got, (uint32_t)u64_min(len - *got, 1u << 30), &next, e);
		if (ret)
			return ret;
		if (next.kind != x->kind ||
		    (x->kind == EXT_DATA && (next.layer != x->layer || next.file_off != x->file_off + *got)))
			break;
		*got += next.len_bytes;
	}
	return 0;
}

const char *human(uint64_t bytes, char out[32])
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)bytes;
	unsigned i = 0;

	for (; v >= 1024.0 && i < 6; i++)
		v /= 1024.0;
	snprintf(out, 32, i ? "%.4g %s" : "%.0f %s", v, units[i]);
	return out;
}
