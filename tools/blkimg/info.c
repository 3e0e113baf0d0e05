/* info and map: what a chain is, and where its bytes live. Both only read. */
#include "tools/blkimg/blkimg.h"

#include "blkd/bytes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

static uint64_t blocks_owned(const struct image *img)
{
	uint64_t n = 0;

	for (uint64_t off = 0; off < img->size_bytes; off += CHAIN_BLOCK_BYTES)
		n += img->ops->owns(img, off, u64_min(CHAIN_BLOCK_BYTES, img->size_bytes - off));
	return n;
}

static uint64_t bytes_allocated(const struct image *img)
{
	struct stat st;

	return img->file->fd >= 0 && !fstat(img->file->fd, &st) && S_ISREG(st.st_mode)
		   ? (uint64_t)st.st_blocks * 512
		   : 0;
}

static json_t *image_json(const struct image *img)
{
	json_t *j = json_object(), *names = json_array();
	uint64_t file_bytes = 0;
	char uuid[37];

	uuid_text(img->uuid, uuid);
	img->file->ops->size(img->file, &file_bytes);
	for (unsigned i = 0; i < img->n_parent_names; i++)
		json_array_append_new(names, json_string(img->parent_names[i]));
	json_object_set_new(j, "file", json_string(img->file->path));
	json_object_set_new(j, "format", json_string(img->ops->name));
	json_object_set_new(j, "size_bytes", json_integer((json_int_t)img->size_bytes));
	json_object_set_new(j, "file_bytes", json_integer((json_int_t)file_bytes));
	json_object_set_new(j, "allocated_bytes", json_integer((json_int_t)bytes_allocated(img)));
	json_object_set_new(j, "blocks", json_integer((json_int_t)blocks_owned(img)));
	json_object_set_new(j, "uuid", bytes_are_zero(img->uuid, 16) ? json_null() : json_string(uuid));
	json_object_set_new(j, "hidden", json_boolean(img->hidden));
	json_object_set_new(j, "parent_names", names);
	json_object_set_new(j, "notes", img->notes[0] ? json_string(img->notes) : json_null());
	return j;
}

static void image_print(const struct image *img, unsigned layer)
{
	uint64_t file_bytes = 0;
	char uuid[37], a[32], b[32];

	uuid_text(img->uuid, uuid);
	img->file->ops->size(img->file, &file_bytes);
	printf("%s%s\n", layer ? "parent: " : "", img->file->path);
	printf("  format: %s%s\n  disk:   %" PRIu64 " bytes (%s)\n", img->ops->name,
	       img->hidden ? ", hidden (a parent)" : "", img->size_bytes, human(img->size_bytes, a));
	printf("  file:   %s, of which allocated %s; %" PRIu64 " blocks of 2 MiB hold data\n",
	       human(file_bytes, a), human(bytes_allocated(img), b), blocks_owned(img));
	if (!bytes_are_zero(img->uuid, 16))
		printf("  uuid:   %s\n", uuid);
	if (img->n_parent_names)
		printf("  parent: %s\n", img->parent_names[0]);
	if (img->notes[0])
		printf("  note:   %s\n", img->notes);
}

/* The leaf is told in any case; if its parents cannot be opened, that is the error. */
static int info_leaf_only(const struct args *a, json_t *out)
{
	struct image *img;
	int ret = image_open_path(&file_opener, a->word[0], a->backing_flags, a->format, &img, NULL);

	if (ret)
		return ret;
	if (out)
		json_object_set_new(out, "image", image_json(img));
	else
		image_print(img, 0);
	img->ops->close(img);
	return 0;
}

int verb_info(const struct args *a, json_t *out, struct err *e)
{
	struct ro_chain *c;
	json_t *parents;
	int ret = ro_open(a->word[0], a->format, a, &c, e);

	if (ret) {
		info_leaf_only(a, out);
		return ret;
	}
	if (!out) {
		for (unsigned i = 0; i <= c->n; i++)
			image_print(chain_image(&c->chain, i), i);
		printf("depth: %u\n", c->n + 1);
	} else {
		parents = json_array();
		json_object_set_new(out, "image", image_json(c->chain.leaf));
		for (unsigned i = 0; i < c->n; i++)
			json_array_append_new(parents, image_json(c->img[i]));
		json_object_set_new(out, "parents", parents);
		json_object_set_new(out, "depth", json_integer(c->n + 1));
	}
	ro_close(c);
	return 0;
}

static void extent_out(const struct chain *c, uint64_t off, uint64_t len, const struct extent *x,
		       json_t *list)
{
	const struct image *img = chain_image(c, x->layer);
	json_t *j;

	if (!list) {
		if (x->kind == EXT_DATA)
			printf("%14" PRIu64 " %14" PRIu64 "  data  %4u %14" PRIu64 " %s\n", off, len,
			       x->layer, x->file_off, img->file->path);
		else
			printf("%14" PRIu64 " %14" PRIu64 "  zero\n", off, len);
		return;
	}
	j = json_object();
	json_object_set_new(j, "offset", json_integer((json_int_t)off));
	json_object_set_new(j, "length", json_integer((json_int_t)len));
	json_object_set_new(j, "kind", json_string(x->kind == EXT_DATA ? "data" : "zero"));
	if (x->kind == EXT_DATA) {
		json_object_set_new(j, "layer", json_integer(x->layer));
		json_object_set_new(j, "file", json_string(img->file->path));
		json_object_set_new(j, "file_offset", json_integer((json_int_t)x->file_off));
	}
	json_array_append_new(list, j);
}

int verb_map(const struct args *a, json_t *out, struct err *e)
{
	struct ro_chain *c;
	json_t *list = out ? json_array() : NULL;
	int ret = ro_open(a->word[0], a->format, a, &c, e);

	if (ret) {
		json_decref(list);
		return ret;
	}
	if (!out)
		printf("%14s %14s  kind layer %13s file\n", "offset", "length", "file offset");
	for (uint64_t off = 0, got; off < c->chain.size_bytes && !ret; off += got) {
		struct extent x;

		ret = extent_at(&c->chain, off, c->chain.size_bytes - off, &x, &got, e);
		if (!ret)
			extent_out(&c->chain, off, got, &x, list);
	}
	if (out) {
		json_object_set_new(out, "size_bytes", json_integer((json_int_t)c->chain.size_bytes));
		json_object_set_new(out, "extents", list);
	}
	ro_close(c);
	return ret;
}
