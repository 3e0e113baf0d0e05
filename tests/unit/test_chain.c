/*
 * Chains: lookup through random trees against a sector-by-sector walk, the index, opening of parents by name
 * and uuid, and the synchronous read.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/lib/vhdfake.h"
#include "tests/lib/vhdtest.h"

#include <sys/resource.h>

#define MAX_LAYERS 40

/* ---- chain_map against the model ---- */

struct tree {
	struct fake fake[MAX_LAYERS]; /* [0]: leaf */
	struct image raw;	      /* the last layer, in some trees */
	struct image *img[MAX_LAYERS];
	unsigned n;
	struct chain chain;
};

static void tree_make(struct tree *t, unsigned n)
{
	static const uint32_t blocks[] = {4096, 65536, 2 << 20, 2 << 20, 2 << 20};
	struct err e = ERR_INIT;
	bool raw_base = n > 1 && rng(3) == 0;

	t->n = n;
	for (unsigned i = 0; i < n; i++) {
		uint64_t size = 512 * (uint64_t)(1 + rng(rng(2) ? 40000 : 20000));

		t->img[i] = &t->fake[i].v.img;
		if (raw_base && i == n - 1) {
			t->raw = (struct image){.ops = &raw_format, .size_bytes = size};
			t->img[i] = &t->raw;
			memset(&t->fake[i], 0, sizeof(t->fake[i]));
		} else {
			fake_make(&t->fake[i], blocks[rng(5)], size);
		}
	}
	t->chain = (struct chain){.leaf = t->img[0], .size_bytes = t->img[0]->size_bytes};
	if (n > 1)
		assert_int_equal(parents_build(t->img + 1, n - 1, &t->chain.parents, &e), 0);
}

static void tree_free(struct tree *t)
{
	for (unsigned i = 0; i < t->n; i++)
		fake_free(&t->fake[i]);
	parents_free(t->chain.parents);
}

/* The layer that has the sector, or -1: zero. */
static int model_layer(const struct tree *t, uint64_t sector)
{
	for (unsigned i = 0; i < t->n; i++) {
		if (sector * 512 >= t->img[i]->size_bytes)
			return -1;
		if (t->img[i] == &t->raw || sector_present(&t->fake[i], sector))
			return (int)i;
	}
	return -1;
}

static uint64_t model_file_off(const struct tree *t, int layer, uint64_t off)
{
	const struct vhd *v = &t->fake[layer].v;

	if (t->img[layer] == &t->raw)
		return off;
	return (uint64_t)v->bat[off / v->block_bytes] * 512 + 512 + off % v->block_bytes;
}

/* Asks until the answer is no META. Returns how many layers were asked for metadata. */
static unsigned ask(const struct tree *t, uint64_t off, uint32_t len, struct extent *x)
{
	unsigned metas = 0;

	chain_map(&t->chain, 0, NULL, off, len, x);
	while (x->kind == EXT_META) {
		const struct fake *f = &t->fake[x->layer];
		uint32_t block = (uint32_t)(off / f->v.block_bytes), was = x->len_bytes;
		unsigned layer = x->layer;

		assert_int_equal(x->file_off, (uint64_t)f->v.bat[block] * 512);
		chain_map(&t->chain, layer, f->bitmaps[block], off, was, x);
		assert_true(x->len_bytes <= was);
		assert_true(x->kind != EXT_META || x->layer > layer);
		metas++;
	}
	return metas;
}

static void check_range(const struct tree *t, uint64_t off, uint64_t len)
{
	while (len) {
		struct extent x;

		ask(t, off, (uint32_t)len, &x);
		assert_true(x.len_bytes > 0 && x.len_bytes <= len && x.len_bytes % 512 == 0);
		for (uint64_t o = off; o < off + x.len_bytes; o += 512) {
			int layer = model_layer(t, o / 512);

			assert_int_equal(x.kind, layer < 0 ? EXT_ZERO : EXT_DATA);
			if (layer >= 0) {
				assert_int_equal(x.layer, layer);
				assert_int_equal(x.file_off + (o - off), model_file_off(t, layer, o));
			}
		}
		off += x.len_bytes;
		len -= x.len_bytes;
	}
}

static void check_below(const struct tree *t, uint64_t off, uint64_t len)
{
	bool model = true;

	if (!chain_below_is_zero(&t->chain, off, len))
		return; /* it may know less than the model, never more */
	for (uint64_t o = off; o < off + len; o += 512)
		for (unsigned i = 1; i < t->n; i++) {
			if (o >= t->img[i]->size_bytes)
				break;
			model &= t->img[i] != &t->raw && !sector_present(&t->fake[i], o / 512);
		}
	assert_true(model);
}

static void random_trees_map_as_a_walk_by_sector_does(void **state)
{
	static struct tree t;

	(void)state;
	for (unsigned round = 0; round < 60; round++) {
		tree_make(&t, 1 + rng(round % 4 ? 6 : MAX_LAYERS));
		for (unsigned i = 0; i < 40; i++) {
			uint64_t sectors = t.chain.size_bytes / 512, off = rng((uint32_t)sectors);
			uint64_t len = 1 + rng((uint32_t)(sectors - off));

			check_range(&t, off * 512, (rng(4) ? u64_min(len, 300) : len) * 512);
			check_below(&t, off * 512, u64_min(len, 5000) * 512);
		}
		tree_free(&t);
	}
}

static void parent_larger_than_its_child_is_not_seen_through_it(void **state)
{
	static struct tree t;
	struct extent x;

	(void)state;
	t.n = 3;
	for (unsigned i = 0; i < 3; i++) {
		fake_make(&t.fake[i], 2 << 20, (i == 1 ? 3 : 8) * TV_MIB);
		for (unsigned b = 0; b < t.fake[i].v.n_blocks; b++) {
			t.fake[i].v.bat[b] = i == 2 ? 15 + b * 4097 : VHD_BAT_FREE;
			t.fake[i].v.full[0] = 0xff;
		}
		t.img[i] = &t.fake[i].v.img;
	}
	t.chain = (struct chain){.leaf = t.img[0], .size_bytes = 8 * TV_MIB};
	assert_int_equal(parents_build(t.img + 1, 2, &t.chain.parents, NULL), 0);
	chain_map(&t.chain, 0, NULL, 2 * TV_MIB, 6 << 20, &x);
	assert_int_equal(x.kind, EXT_DATA);
	assert_int_equal(x.layer, 2);
	assert_int_equal(x.len_bytes, 1 << 20);
	chain_map(&t.chain, 0, NULL, 3 * TV_MIB, 5 << 20, &x);
	assert_int_equal(x.kind, EXT_ZERO);
	tree_free(&t);
}

static void deep_chain_is_asked_once_where_one_layer_owns(void **state)
{
	enum { N = 1025 };
	static struct fake f[N];
	static struct image *img[N];
	struct chain c;
	struct extent x;
	struct err e = ERR_INIT;
	struct parents *p;

	(void)state;
	for (unsigned i = 0; i < N; i++) {
		fake_make(&f[i], 2 << 20, 64 * TV_MIB);
		for (unsigned b = 0; b < 32; b++)
			f[i].v.bat[b] = i == 1024 && b == 5 ? 15 : VHD_BAT_FREE;
		img[i] = &f[i].v.img;
	}
	c = (struct chain){.leaf = img[0], .size_bytes = 64 * TV_MIB};
	assert_int_equal(parents_build(img + 1, N - 1, &c.parents, &e), 0);
	chain_map(&c, 0, NULL, 10 * TV_MIB, 4096, &x);
	assert_true(x.kind == EXT_META || x.kind == EXT_DATA);
	assert_int_equal(x.layer, 1024);
	assert_false(chain_below_is_zero(&c, 9 * TV_MIB, 2 * TV_MIB));
	assert_true(chain_below_is_zero(&c, 8 * TV_MIB, 2 * TV_MIB));
	chain_map(&c, 0, NULL, 0, 64 << 20, &x);
	assert_int_equal(x.kind, EXT_ZERO);
	assert_int_equal(x.len_bytes, 10 << 20);
	assert_int_equal(chain_depth(&c), 1025);
	assert_int_equal(parents_build(img, N, &p, &e), -EINVAL);
	parents_free(c.parents);
	for (unsigned i = 0; i < N; i++)
		fake_free(&f[i]);
}

/* ---- chain_open ---- */

static struct mem_dir dir;

static int dir_setup(void **state)
{
	(void)state;
	mem_dir_init(&dir);
	return 0;
}

static int dir_teardown(void **state)
{
	(void)state;
	for (unsigned i = 0; i < dir.n; i++)
		if (dir.files[i]->refs != 1)
			return -1; /* a backing was left open */
	mem_dir_destroy(&dir);
	return 0;
}

/* Adds a dynamic image, or a child of the one at parent_at whose stored parent path is `stored`. */
static struct mem_file *add(const char *path, const char *parent_at, const char *stored)
{
	struct image *parent = NULL;
	struct mem_file *f;
	struct err e = ERR_INIT;

	if (!parent_at)
		return mem_dir_add(&dir, tv_dynamic(path, 4 * TV_MIB));
	assert_int_equal(image_open_path(&dir.opener, parent_at, 0, NULL, &parent, &e), 0);
	f = mem_dir_add(&dir, tv_child(path, parent, stored, 0));
	parent->ops->close(parent);
	return f;
}

static struct image *open_leaf(const char *path)
{
	struct err e = ERR_INIT;
	struct image *img = NULL;

	assert_int_equal(image_open_path(&dir.opener, path, 0, NULL, &img, &e), 0);
	return img;
}

static struct image *parents[CHAIN_MAX_DEPTH];

static void close_all(struct image *leaf, unsigned n)
{
	while (n)
		parents[n - 1]->ops->close(parents[n - 1]), n--;
	leaf->ops->close(leaf);
}

static int open_chain(const char *path, unsigned *n, struct err *e)
{
	struct image *leaf = open_leaf(path);
	int ret = chain_open_parents(leaf, &dir.opener, NULL, parents, n, e);

	if (ret) {
		assert_int_equal(*n, 0);
		assert_null(strchr(e->text, '\n'));
	}
	close_all(leaf, *n);
	return ret;
}

static void must_fail(const char *path, int code, const char *word, const char *also)
{
	struct err e = ERR_INIT;
	unsigned n;

	assert_int_equal(open_chain(path, &n, &e), code);
	if (!strstr(e.text, word) || !strstr(e.text, also))
		fail_msg("wanted '%s' and '%s' in: %s", word, also, e.text);
}

static void parents_are_found_relative_to_their_child(void **state)
{
	struct err e = ERR_INIT;
	unsigned n;

	(void)state;
	add("/sr/base/a.vhd", NULL, NULL);
	add("/sr/b.vhd", "/sr/base/a.vhd", "base/a.vhd");
	add("/sr/leaves/c.vhd", "/sr/b.vhd", "../b.vhd");
	add("/d.vhd", "/sr/leaves/c.vhd", "/sr/leaves/c.vhd");
	assert_int_equal(open_chain("/d.vhd", &n, &e), 0);
	assert_int_equal(n, 3);
}

static void missing_parent_is_told_with_child_and_names(void **state)
{
	(void)state;
	add("/a.vhd", NULL, NULL);
	add("/b.vhd", "/a.vhd", "gone.vhd");
	must_fail("/b.vhd", -ENOENT, "/b.vhd: its parent", "wanted: ./gone.vhd");
}

static void other_image_under_the_parents_name_is_refused(void **state)
{
	struct mem_file *f;

	(void)state;
	add("/a.vhd", NULL, NULL);
	f = add("/b.vhd", "/a.vhd", "a.vhd");
	tv_poke32(f, TV_HDR + 40, 0x12345678);
	tv_fix_header(f);
	must_fail("/b.vhd", -EINVAL, "/a.vhd: its uuid is", "wants the parent 12345678-");
}

static void candidate_that_is_another_image_is_passed_over(void **state)
{
	struct vhd_create_opts o = {
	    .kind = VHD_KIND_DIFFERENCING,
	    .parent_path = "x/p.vhd",
	    .parent_path_absolute = "/real/p.vhd",
	};
	struct err e = ERR_INIT;
	struct image *parent;
	unsigned n;

	(void)state;
	add("/real/p.vhd", NULL, NULL);
	add("/x/p.vhd", NULL, NULL);
	parent = open_leaf("/real/p.vhd");
	o.parent = parent;
	mem_dir_add(&dir, tv_create("/c.vhd", &o));
	parent->ops->close(parent);
	assert_int_equal(open_chain("/c.vhd", &n, &e), 0);
	assert_int_equal(n, 1);
}

static void cycles_are_refused_whatever_the_names(void **state)
{
	struct mem_file *a, *b;
	unsigned char uuid[16];

	(void)state;
	add("/base.vhd", NULL, NULL);
	a = add("/a.vhd", "/base.vhd", "b.vhd");
	b = add("/b.vhd", "/a.vhd", "sub/../a.vhd");
	mem_peek(b, 68, uuid, 16);
	mem_poke(a, TV_HDR + 40, uuid, 16);
	tv_fix_header(a);
	must_fail("/a.vhd", -ELOOP, "cycle", "/b.vhd");
	a = add("/self.vhd", "/base.vhd", "self.vhd");
	mem_peek(a, 68, uuid, 16);
	mem_poke(a, TV_HDR + 40, uuid, 16);
	tv_fix_header(a);
	must_fail("/self.vhd", -ELOOP, "cycle", "itself");
}

static void raw_parent_needs_no_uuid_and_never_is_probed(void **state)
{
	struct mem_file *base = mem_dir_add(&dir, mem_file_new("/base.raw", 4 * TV_MIB)),
			*forged = add("/x.vhd", NULL, NULL);
	unsigned char sectors[4096], got[4096];
	struct image *leaf;
	struct err e = ERR_INIT;
	struct chain c;
	unsigned n;

	(void)state;
	mem_peek(forged, 0, sectors, sizeof(sectors)); /* the guest of the raw disk wrote a VHD into it */
	mem_poke(base, 0, sectors, sizeof(sectors));
	add("/c.vhd", "/base.raw", "base.raw");
	leaf = open_leaf("/c.vhd");
	assert_true(leaf->parent_is_raw);
	assert_int_equal(chain_open_parents(leaf, &dir.opener, NULL, parents, &n, &e), 0);
	assert_ptr_equal(parents[0]->ops, &raw_format);
	c = (struct chain){.leaf = leaf, .size_bytes = leaf->size_bytes};
	assert_int_equal(parents_build(parents, n, &c.parents, &e), 0);
	assert_int_equal(chain_read(&c, 0, got, sizeof(got), &e), 0);
	assert_memory_equal(sectors, got, sizeof(got));
	parents_free(c.parents);
	close_all(leaf, n);
}

static void chain_of_1024_parents_opens_and_one_more_is_refused(void **state)
{
	struct rlimit files = {4096, 4096};
	char path[32], parent[32];
	struct err e = ERR_INIT;
	unsigned n;

	(void)state;
	setrlimit(RLIMIT_NOFILE, &files);
	add("/0.vhd", NULL, NULL);
	for (unsigned i = 1; i <= CHAIN_MAX_DEPTH + 1; i++) {
		snprintf(path, sizeof(path), "/%u.vhd", i);
		snprintf(parent, sizeof(parent), "/%u.vhd", i - 1);
		add(path, parent, parent + 1);
	}
	assert_int_equal(open_chain("/1024.vhd", &n, &e), 0);
	assert_int_equal(n, 1024);
	must_fail("/1025.vhd", -ELOOP, "deeper than 1024", "coalesce");
}

/* A registry with one image in it. */
struct registry {
	struct image *img;
	unsigned got, put, added;
};

static struct image *registry_get(void *ctx, const struct backing *b)
{
	struct registry *r = ctx;

	if (!r->img || r->img->file->ino != b->ino)
		return NULL;
	r->got++;
	return r->img;
}

static void registry_put(void *ctx, struct image *img)
{
	struct registry *r = ctx;

	r->put++;
	if (img != r->img)
		img->ops->close(img);
}

static void registry_added(void *ctx, struct image *img)
{
	(void)img;
	((struct registry *)ctx)->added++;
}

static void shared_parents_are_taken_and_given_back_on_error(void **state)
{
	struct registry r = {0};
	struct chain_share share = {registry_get, registry_put, registry_added, &r};
	struct err e = ERR_INIT;
	struct image *leaf;
	unsigned n;

	(void)state;
	add("/a.vhd", NULL, NULL);
	add("/b.vhd", "/a.vhd", "gone.vhd");
	add("/c.vhd", "/b.vhd", "b.vhd");
	add("/d.vhd", "/c.vhd", "c.vhd");
	r.img = open_leaf("/c.vhd");
	leaf = open_leaf("/d.vhd");
	assert_int_equal(chain_open_parents(leaf, &dir.opener, &share, parents, &n, &e), -ENOENT);
	assert_int_equal(r.got, 1);
	assert_int_equal(r.added, 1);
	assert_int_equal(r.put, 2);
	leaf->ops->close(leaf);
	r.img->ops->close(r.img);
}

static void failing_opens_leave_nothing_open(void **state)
{
	struct mem_file *a = add("/a.vhd", NULL, NULL), *b = add("/b.vhd", "/a.vhd", "a.vhd");
	struct image *leaf;
	unsigned n;

	(void)state;
	add("/c.vhd", "/b.vhd", "b.vhd");
	leaf = open_leaf("/c.vhd");
	for (uint64_t nth = 1;; nth++) {
		struct err e = ERR_INIT;
		int ret;

		a->fail_op = b->fail_op = MEM_ANY;
		a->fail_nth = nth;
		b->fail_nth = nth + 3;
		ret = chain_open_parents(leaf, &dir.opener, NULL, parents, &n, &e);
		if (!ret)
			break;
		assert_int_equal(ret, -EIO);
		assert_int_equal(a->refs + b->refs, 2);
		assert_true(nth < 40);
	}
	a->fail_nth = b->fail_nth = 0;
	close_all(leaf, n);
}

static void reading_a_chain_falls_through_to_the_layer_that_has_it(void **state)
{
	struct mem_file *a = add("/a.vhd", NULL, NULL), *b, *c;
	unsigned char bitmap[512] = {0}, buf[4096], *all = malloc(4 << 20);
	struct err e = ERR_INIT;
	struct image *leaf;
	struct chain chain;
	uint64_t data;
	unsigned n;

	(void)state;
	assert_non_null(all);
	b = add("/b.vhd", "/a.vhd", "a.vhd");
	c = add("/c.vhd", "/b.vhd", "b.vhd");
	memset(bitmap, 0xff, sizeof(bitmap));
	data = tv_add_block(a, 0, bitmap);
	memset(buf, 'a', sizeof(buf));
	mem_poke(a, data, buf, 4096);
	memset(bitmap, 0, sizeof(bitmap));
	bitmap[0] = 0x40; /* sector 1 */
	data = tv_add_block(b, 0, bitmap);
	memset(buf, 'b', sizeof(buf));
	mem_poke(b, data, buf, 4096); /* stale bytes behind clear bits must not show */
	bitmap[0] = 0x10;	      /* sector 3 */
	data = tv_add_block(c, 0, bitmap);
	memset(buf, 'c', sizeof(buf));
	mem_poke(c, data, buf, 4096);
	leaf = open_leaf("/c.vhd");
	assert_int_equal(chain_open_parents(leaf, &dir.opener, NULL, parents, &n, &e), 0);
	chain = (struct chain){.leaf = leaf, .size_bytes = leaf->size_bytes};
	assert_int_equal(parents_build(parents, n, &chain.parents, &e), 0);
	assert_int_equal(chain_read(&chain, 0, all, 4 << 20, &e), 0);
	assert_int_equal(all[0], 'a');
	assert_int_equal(all[512], 'b');
	assert_int_equal(all[1024], 'a');
	assert_int_equal(all[1536], 'c');
	assert_int_equal(all[2048], 'a');
	assert_int_equal(all[4096], 0);
	assert_true(bytes_are_zero(all + 4096, (4 << 20) - 4096));
	assert_int_equal(chain_read(&chain, 512, all, 100, &e), -EINVAL);
	assert_int_equal(chain_read(&chain, 4 << 20, all, 512, &e), -EINVAL);
	a->fail_op = MEM_READ;
	a->fail_nth = 1;
	assert_int_equal(chain_read(&chain, 0, all, 512, &e), -EIO);
	assert_non_null(strstr(e.text, "/a.vhd"));
	parents_free(chain.parents);
	close_all(leaf, n);
	free(all);
}

int main(void)
{
#define DIR_TEST(f) cmocka_unit_test_setup_teardown(f, dir_setup, dir_teardown)
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(random_trees_map_as_a_walk_by_sector_does),
	    cmocka_unit_test(parent_larger_than_its_child_is_not_seen_through_it),
	    cmocka_unit_test(deep_chain_is_asked_once_where_one_layer_owns),
	    DIR_TEST(parents_are_found_relative_to_their_child),
	    DIR_TEST(missing_parent_is_told_with_child_and_names),
	    DIR_TEST(other_image_under_the_parents_name_is_refused),
	    DIR_TEST(candidate_that_is_another_image_is_passed_over),
	    DIR_TEST(cycles_are_refused_whatever_the_names),
	    DIR_TEST(raw_parent_needs_no_uuid_and_never_is_probed),
	    DIR_TEST(chain_of_1024_parents_opens_and_one_more_is_refused),
	    DIR_TEST(shared_parents_are_taken_and_given_back_on_error),
	    DIR_TEST(failing_opens_leave_nothing_open),
	    DIR_TEST(reading_a_chain_falls_through_to_the_layer_that_has_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
