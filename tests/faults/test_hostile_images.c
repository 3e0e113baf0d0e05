/*
 * Hostile images (goal R4): thousands of structured mutations of small VHDs, with checksums made right again,
 * go through everything that reads an image: open, the map of the whole disk, check of the tree, plan of a
 * repair; then the repair itself, on the copy, and a check again.
 *
 * Asserted for each: no crash and no sanitizer report; nothing is written by open, check and plan; a refusal
 * has one line that names the file; what the checker calls clean opens; a repair converges. Over all of them:
 * memory stays bounded. A watchdog ends a hang.
 */
#include "blkd/log.h"
#include "blkd/vhd_check.h"
#include "tests/lib/vhdmut.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <signal.h>
#include <sys/resource.h>

#define WATCHDOG_S 20u

struct tally {
	struct mem_dir dir;
	struct mem_file *base;
	const char *kind;
	unsigned n, opened, clean, repaired, wrong;
	struct err why; /* why the last open was refused */
};

static const char *current = "";

#define WRONG(t, m, ...)                                                                                     \
	do {                                                                                                 \
		print_error("%s, %s: ", (t)->kind, (m)->name);                                               \
		print_error(__VA_ARGS__);                                                                    \
		print_error("\n");                                                                           \
		(t)->wrong++;                                                                                \
	} while (0)

static void on_alarm(int sig)
{
	(void)sig;
	(void)!write(2, "hang in: ", 9);
	(void)!write(2, current, strlen(current));
	(void)!write(2, "\n", 1);
	abort();
}

static uint64_t changes(const struct mem_file *f)
{
	return f->calls[MEM_WRITE] + f->calls[MEM_EXTEND] + f->calls[MEM_TRUNCATE] + f->calls[MEM_ZERO];
}

static void assert_sentence(struct tally *t, const struct mutation *m, int ret, const struct err *e)
{
	if (ret >= 0 || (strlen(e->text) > 10 && !strchr(e->text, '\n') && strstr(e->text, ".vhd")))
		return;
	WRONG(t, m, "refused with %d and no proper sentence: '%s'", ret, e->text);
}

/* Walks the whole map, bringing bitmaps as asked. */
static void map_all(struct tally *t, const struct mutation *m, struct image *img)
{
	unsigned char meta[512];
	unsigned steps = 0;

	for (uint64_t off = 0; off < img->size_bytes;) {
		uint64_t left = img->size_bytes - off;
		struct extent x;

		img->ops->map(img, NULL, off, left > 1u << 30 ? 1u << 30 : (uint32_t)left, &x);
		if (x.kind == EXT_META) {
			assert_int_equal(img->file->ops->read(img->file, x.file_off, meta, sizeof(meta)), 0);
			img->ops->map(img, meta, off, x.len_bytes, &x);
		}
		if (!x.len_bytes || x.len_bytes % 512 || x.len_bytes > left || x.kind == EXT_META)
			fail_msg("%s, %s: bad extent at %" PRIu64, t->kind, m->name, off);
		if (x.kind == EXT_DATA && x.file_off > 1ull << 41)
			fail_msg("%s, %s: data at %" PRIu64, t->kind, m->name, x.file_off);
		off += x.len_bytes;
		if (++steps == 200000) /* a disk of many tiny extents: enough was seen */
			return;
	}
}

static bool opens(struct tally *t, const struct mutation *m, struct mem_file *f)
{
	const struct image_format *format;
	struct err e = ERR_INIT;
	struct image *img;
	struct backing *b = mem_open(f, BACKING_WRITE);
	int ret = format_find(b, NULL, &format, &e);

	if (!ret)
		ret = format->open(b, &img, &e);
	assert_sentence(t, m, ret, &e);
	t->why = e;
	if (ret) {
		b->ops->close(b);
		return false;
	}
	t->opened++;
	map_all(t, m, img);
	img->ops->close(img);
	return true;
}

static void on_finding(void *ctx, const struct check_finding *f)
{
	(void)ctx;
	assert_non_null(f->code);
	assert_non_null(f->what);
	assert_non_null(f->advice);
	assert_true(memchr(f->expected, 0, sizeof(f->expected)) && memchr(f->found, 0, sizeof(f->found)));
}

static struct check_result check(struct tally *t, const struct mutation *m, struct mem_file *f)
{
	struct check_opts opts = {.lenient = true, .bitmaps = true, .found = on_finding, .now_s = 1800000000};
	struct check_result r = {0};
	struct err e = ERR_INIT;
	int ret = vhd_check_tree(&t->dir.opener, 0, f->path, &opts, &r, &e);

	assert_sentence(t, m, ret, &e);
	assert_int_equal(ret, 0);
	return r;
}

/* Returns writes planned, -1 when refused. */
static int repair(struct tally *t, const struct mutation *m, struct mem_file *f, bool apply)
{
	struct repair_opts opts = {.format = NULL, .drop_bad_blocks = true};
	struct repair_plan plan;
	struct err e = ERR_INIT;
	struct backing *b = mem_open(f, BACKING_WRITE);
	uint64_t before = changes(f);
	int n, ret = vhd_repair_plan(b, &opts, &plan, &e);

	assert_sentence(t, m, ret, &e);
	assert_int_equal(changes(f), before);
	n = ret ? -1 : (int)plan.n_writes;
	if (n > 0 && apply)
		assert_int_equal(vhd_repair_apply(b, &plan, &e), 0);
	vhd_repair_free(&plan);
	b->ops->close(b);
	return n;
}

static void one(void *ctx, const struct mutation *m)
{
	struct tally *t = ctx;
	struct mem_file *f = mem_file_clone(t->base, "/d/image.vhd");
	struct check_result before, after;
	bool opened;
	int n;

	current = m->name;
	alarm(WATCHDOG_S);
	mem_dir_add(&t->dir, f);
	mut_apply(f, m);
	opened = opens(t, m, f);
	before = check(t, m, f);
	assert_int_equal(changes(f), 0);
	if (!before.errors && !before.unclean) {
		t->clean++;
		if (!opened)
			WRONG(t, m, "the checker calls it clean, but it does not open: %s", t->why.text);
	}
	n = repair(t, m, f, true);
	if (n > 0) {
		t->repaired++;
		after = check(t, m, f);
		if (after.errors > before.errors)
			WRONG(t, m, "%u errors before the repair, %u after", before.errors, after.errors);
		if (repair(t, m, f, false) > 0)
			WRONG(t, m, "a repair that does not converge");
		opens(t, m, f);
	}
	t->n++;
	t->dir.n--;
	mem_file_put(f);
	alarm(0);
}

static void run_kind(enum vhd_kind kind, const char *name, unsigned at_least)
{
	struct tally t = {.kind = name};
	struct mem_file *parent;
	struct rusage before, after;

	mem_dir_init(&t.dir);
	parent = mut_make("/d/parent.vhd", VHD_KIND_DYNAMIC, NULL);
	mem_dir_add(&t.dir, parent);
	t.base = mut_make("/d/image.vhd", kind, kind == VHD_KIND_DIFFERENCING ? parent : NULL);
	getrusage(RUSAGE_SELF, &before);
	mut_each(t.base, kind != VHD_KIND_FIXED, one, &t);
	getrusage(RUSAGE_SELF, &after);
	print_message("%s: %u mutations, %u opened, %u clean, %u repaired, %ld KiB more at the peak\n", name,
		      t.n, t.opened, t.clean, t.repaired, after.ru_maxrss - before.ru_maxrss);
	assert_int_equal(t.wrong, 0);
	assert_true(t.n >= at_least);
#ifndef __SANITIZE_ADDRESS__
	assert_true(after.ru_maxrss - before.ru_maxrss < 160 << 10);
#endif
	mem_file_put(t.base);
	mem_dir_destroy(&t.dir);
}

static void mutated_dynamic_images_are_refused_or_safe(void **state)
{
	(void)state;
	run_kind(VHD_KIND_DYNAMIC, "dynamic", 1500);
}

static void mutated_differencing_images_are_refused_or_safe(void **state)
{
	(void)state;
	run_kind(VHD_KIND_DIFFERENCING, "differencing", 1500);
}

static void mutated_fixed_images_are_refused_or_safe(void **state)
{
	(void)state;
	run_kind(VHD_KIND_FIXED, "fixed", 500);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(mutated_dynamic_images_are_refused_or_safe),
	    cmocka_unit_test(mutated_differencing_images_are_refused_or_safe),
	    cmocka_unit_test(mutated_fixed_images_are_refused_or_safe),
	};

	signal(SIGALRM, on_alarm);
	log_set_level(LOG_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
