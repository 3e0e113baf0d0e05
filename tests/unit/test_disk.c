/*
 * Claims about the one door to a leaf: what disk_open refuses, with which sentence; whom parents are shared
 * with; what a killed process leaves behind. On real files, and on the replay medium where something must
 * fail.
 */
#include "tests/lib/devrig.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (8u << 20)

static unsigned fence_wait_ms; /* 0: as long as a killed process needs */
static char dir[64], run_dir[80];
static unsigned char data[4096], got[4096];

/* In dir. */
static void shell(const char *what)
{
	char cmd[256];

	snprintf(cmd, sizeof(cmd), "cd %s && %s", dir, what);
	assert_int_equal(system(cmd), 0);
}

static int setup(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/blkd-disk-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(run_dir, sizeof(run_dir), "%s/run", dir);
	shell("mkdir run");
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	shell("rm -r $PWD");
	return 0;
}

static char *path_of(const char *name)
{
	static char path[4][128];
	static unsigned i;

	i = (i + 1) % 4;
	snprintf(path[i], sizeof(path[i]), "%s/%s", dir, name);
	return path[i];
}

static void create(const char *name, const char *parent)
{
	struct vhd_create_opts o = {.kind = parent ? VHD_KIND_DIFFERENCING : VHD_KIND_DYNAMIC,
				    .size_bytes = SIZE,
				    .parent_path = parent};
	struct image *img = NULL;
	struct err e = ERR_INIT;
	struct backing *b;
	char from[256];

	if (parent) {
		const char *path = path_of(name);

		snprintf(from, sizeof(from), "%.*s/%s", (int)(strrchr(path, '/') - path), path, parent);
		if (image_open_path(&file_opener, from, 0, NULL, &img, &e))
			fail_msg("%s", e.text);
		o.parent = img;
	}
	if (file_opener.open(NULL, path_of(name), BACKING_CREATE, &b, &e) || vhd_create(b, &o, &e))
		fail_msg("%s", e.text);
	b->ops->close(b);
	if (img)
		img->ops->close(img);
}

static int open_as(const char *name, bool writable, struct disk **disk, struct err *e)
{
	const struct disk_opts o = {
	    .path = path_of(name), .writable = writable, .run_dir = run_dir, .fence_wait_ms = fence_wait_ms};

	return disk_open(&o, disk, e);
}

static struct disk *open_ok(const char *name, bool writable)
{
	struct err e = ERR_INIT;
	struct disk *d;

	if (open_as(name, writable, &d, &e))
		fail_msg("%s", e.text);
	return d;
}

static void refused(const char *name, bool writable, int code, const char *word)
{
	struct err e = ERR_INIT;
	struct disk *d;
	int res;

	fence_wait_ms = 1;
	res = open_as(name, writable, &d, &e);
	fence_wait_ms = 0;
	if (res != code || !strstr(e.text, word))
		fail_msg("%d, not %d: %s (wanted: %s)", res, code, e.text, word);
	assert_int_equal(e.code, code);
}

static void finish(struct disk *d)
{
	struct err e = ERR_INIT;

	if (disk_finish(d, &e))
		fail_msg("%s", e.text);
	disk_close(d);
}

static unsigned journals(void)
{
	DIR *d = opendir(run_dir);
	struct dirent *ent;
	unsigned n = 0;

	while ((ent = readdir(d)))
		n += ent->d_name[0] != '.';
	closedir(d);
	return n;
}

/* ---- refusals ---- */

static void hidden_image_is_never_written(void **state)
{
	struct err e = ERR_INIT;
	struct image *img;

	(void)state;
	create("h.vhd", NULL);
	assert_int_equal(image_open_path(&file_opener, path_of("h.vhd"), BACKING_WRITE, NULL, &img, &e), 0);
	assert_int_equal(vhd_set_hidden(img, true, &e), 0);
	img->ops->close(img);
	refused("h.vhd", true, -EROFS, "hidden");
	disk_close(open_ok("h.vhd", false));
	assert_int_equal(journals(), 0);
}

static void image_that_a_neighbour_names_is_never_written(void **state)
{
	(void)state;
	create("p.vhd", NULL);
	create("c.vhd", "p.vhd");
	refused("p.vhd", true, -EROFS, "c.vhd");
	assert_int_equal(rename(path_of("c.vhd"), path_of(".c.vhd")), 0);
	finish(open_ok("p.vhd", true)); /* aside: recovery's */
}

static void neighbours_of_the_file_behind_a_link_count(void **state)
{
	(void)state;
	shell("mkdir sub");
	create("sub/p.vhd", NULL);
	create("sub/c.vhd", "p.vhd");
	assert_int_equal(symlink("sub/p.vhd", path_of("link.vhd")), 0);
	refused("link.vhd", true, -EROFS, "c.vhd");
}

static void second_writer_is_kept_out(void **state)
{
	struct disk *d;

	(void)state;
	create("w.vhd", NULL);
	d = open_ok("w.vhd", true);
	refused("w.vhd", true, -EBUSY, "another");
	finish(d);
	finish(open_ok("w.vhd", true));
}

static void missing_things_are_named(void **state)
{
	(void)state;
	refused("nothing.vhd", true, -ENOENT, "nothing.vhd");
	create("gp.vhd", NULL);
	create("gc.vhd", "gp.vhd");
	assert_int_equal(unlink(path_of("gp.vhd")), 0);
	refused("gc.vhd", true, -ENOENT, "parent");
	refused("gc.vhd", false, -ENOENT, "parent");
	assert_int_equal(journals(), 0);
}

static void what_a_disk_has_as_its_parent_is_not_written_whatever_its_directory(void **state)
{
	struct disk *child, *parent;

	(void)state;
	shell("mkdir far");
	create("far/base.vhd", NULL);
	create("near.vhd", "far/base.vhd");
	child = open_ok("near.vhd", true);
	refused("far/base.vhd", true, -EBUSY, "parent");
	finish(child);
	parent = open_ok("far/base.vhd", true);
	refused("near.vhd", true, -EBUSY, "written");
	refused("near.vhd", false, -EBUSY, "written");
	finish(parent);
	finish(open_ok("near.vhd", true));
}

/* ---- sharing ---- */

static void parents_and_their_index_are_shared_until_the_last_close(void **state)
{
	struct disk *a, *b, *c;
	uint64_t serial;

	(void)state;
	create("sp.vhd", NULL);
	create("sm.vhd", "sp.vhd");
	create("sa.vhd", "sm.vhd");
	create("sb.vhd", "sm.vhd");
	create("sc.vhd", "sp.vhd");
	a = open_ok("sa.vhd", true);
	b = open_ok("sb.vhd", true);
	c = open_ok("sc.vhd", false);
	assert_ptr_equal(a->chain.parents, b->chain.parents);
	assert_ptr_equal(a->chain.parents->img[1], c->chain.parents->img[0]);
	serial = a->chain.parents->img[0]->serial;
	finish(a);
	finish(b);
	a = open_ok("sa.vhd", true);
	assert_int_not_equal(a->chain.parents->img[0]->serial,
			     serial); /* closed in between: another object */
	assert_ptr_equal(a->chain.parents->img[1], c->chain.parents->img[0]);
	finish(a);
	disk_close(c);
}

static void parent_that_changed_is_opened_anew(void **state)
{
	struct disk *a, *b;

	(void)state;
	create("xp.vhd", NULL);
	create("xa.vhd", "xp.vhd");
	create("xb.vhd", "xp.vhd");
	a = open_ok("xa.vhd", false);
	shell("touch -d 2001-01-01 xp.vhd");
	b = open_ok("xb.vhd", false);
	assert_ptr_not_equal(a->chain.parents->img[0], b->chain.parents->img[0]);
	disk_close(a);
	disk_close(b);
}

/* ---- a killed process ---- */

/* A process writes one block back, has its answer, and is killed. */
static void killed_writer(const char *name)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		struct bufpool *pool;
		struct cache *cache;
		struct devrig *g = calloc(1, sizeof(*g));
		struct dev_opts opts = {.name = "killed", .write_mode = WRITE_BACK, .idle_commit_ms = 60000};
		struct err e = ERR_INIT;
		struct disk *disk;

		memset(data, 0x5a, sizeof(data));
		if (bufpool_create(4u << 20, &pool, &e) || cache_create(0, &cache, &e) ||
		    open_as(name, true, &disk, &e))
			_exit(1);
		opts.engine = io_engine_find(NULL, &e);
		opts.pool = pool;
		opts.cache = cache;
		if (dev_create(disk, &opts, false, &g->dev, &e))
			_exit(2);
		g->medium = replay_create(1); /* the rig asks it for events */
		g->n_conns = 1;
		g->conn[0] = (struct rig_conn){.g = g};
		g->conn[0].t.ops = &rig_ops;
		dev_attach(g->dev, &g->conn[0].t);
		if (rig_do(g, BLK_WRITE, 2u << 20, sizeof(data), data))
			_exit(3);
		kill(getpid(), SIGKILL);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
}

static void assert_reads(const struct disk *d, uint64_t off, unsigned char byte)
{
	struct err e = ERR_INIT;

	if (chain_read(&d->chain, off, got, sizeof(got), &e))
		fail_msg("%s", e.text);
	for (unsigned i = 0; i < sizeof(got); i++)
		assert_int_equal(got[i], byte);
}

static void answered_write_of_a_killed_process_is_there(void **state)
{
	struct disk *d;

	(void)state;
	create("k.vhd", NULL);
	killed_writer("k.vhd");
	assert_int_equal(journals(), 1);
	d = open_ok("k.vhd", true);
	assert_reads(d, 2u << 20, 0x5a);
	finish(d);
	assert_int_equal(journals(), 0);
	d = open_ok("k.vhd", false);
	assert_reads(d, 2u << 20, 0x5a);
	disk_close(d);
}

static void reader_is_refused_while_writes_are_in_the_journal_only(void **state)
{
	struct disk *d;

	(void)state;
	create("r.vhd", NULL);
	create("rc.vhd", "r.vhd");
	assert_int_equal(unlink(path_of("rc.vhd")), 0);
	killed_writer("r.vhd");
	refused("r.vhd", false, -EBUSY, "journal");
	finish(open_ok("r.vhd", true));
	d = open_ok("r.vhd", false);
	assert_reads(d, 2u << 20, 0x5a);
	disk_close(d);
}

static void child_of_an_image_with_journal_records_is_refused(void **state)
{
	(void)state;
	create("jp.vhd", NULL);
	killed_writer("jp.vhd");
	create("jc.vhd", "jp.vhd");
	refused("jc.vhd", true, -EBUSY, "journal");
	refused("jc.vhd", false, -EBUSY, "journal");
	assert_int_equal(unlink(path_of("jc.vhd")), 0);
	finish(open_ok("jp.vhd", true));
}

static void records_under_another_generation_are_refused(void **state)
{
	const struct disk_opts other = {.path = path_of("g.vhd"),
					.writable = true}; /* another host: without our journal */
	struct err e = ERR_INIT;
	struct disk *d;

	(void)state;
	create("g.vhd", NULL);
	killed_writer("g.vhd");
	assert_int_equal(disk_open(&other, &d, &e), 0);
	finish(d);
	refused("g.vhd", true, -ESTALE, "another");
	refused("g.vhd", true, -ESTALE, "another"); /* and it stays so */
	shell("rm run/*");
	finish(open_ok("g.vhd", true));
}

/* ---- poison ---- */

static bool sync_flush(void *ctx, const struct replay_rec *rec)
{
	(void)ctx;
	return rec->op == IO_FLUSH && rec->sync;
}

static void medium_up(struct devrig *g)
{
	const struct rig_shape o = {.seed = 1, .size_bytes = SIZE};

	rig_medium_of(g, &o);
	g->run_dir = run_dir;
}

static int medium_open(struct devrig *g, bool clear, struct disk **d, struct err *e)
{
	const struct disk_opts o = {.path = "/m/leaf.vhd",
				    .writable = true,
				    .opener = replay_opener(g->medium),
				    .run_dir = g->run_dir,
				    .poison_clear = clear};

	return disk_open(&o, d, e);
}

static void poison_goes_when_an_open_that_clears_it_succeeded(void **state)
{
	struct replay_fault f = {.kind = REPLAY_FAIL, .nth = 1, .match = sync_flush, .error = EIO};
	struct err e = ERR_INIT;
	struct devrig g;
	struct disk *d;

	(void)state;
	medium_up(&g);
	assert_int_equal(medium_open(&g, false, &d, &e), 0);
	assert_int_equal(chain_write(&d->chain, WRITE_DATA, 0, data, sizeof(data), &e), 0);
	replay_fault_add(g.medium, &f);
	assert_true(disk_finish(d, &e) < 0); /* the synchronous user's flush counts like the device's */
	disk_close(d);
	assert_int_equal(medium_open(&g, false, &d, &e), -EIO);
	assert_non_null(strstr(e.text, "flush"));
	replay_fault_clear(g.medium);
	replay_fault_add(g.medium, &f);
	assert_int_equal(medium_open(&g, true, &d, &e), -EIO); /* begin_writing's flush */
	replay_fault_clear(g.medium);
	assert_int_equal(medium_open(&g, false, &d, &e), -EIO);
	assert_non_null(strstr(e.text, "earlier"));
	assert_int_equal(medium_open(&g, true, &d, &e), 0);
	finish(d);
	assert_int_equal(medium_open(&g, false, &d, &e), 0);
	finish(d);
	assert_int_equal(journals(), 0);
	rig_free(&g);
}

static void failed_flush_of_an_open_poisons(void **state)
{
	struct replay_fault f = {.kind = REPLAY_FAIL, .nth = 1, .match = sync_flush, .error = EIO};
	struct err e = ERR_INIT;
	struct devrig g;
	struct disk *d;

	(void)state;
	medium_up(&g);
	for (unsigned replay = 0; replay < 2; replay++) {
		if (replay) { /* with records to replay: its commit's flush */
			assert_int_equal(rig_open(&g, WRITE_BACK, &e), 0);
			assert_int_equal(rig_do(&g, BLK_WRITE, 2u << 20, sizeof(data), data), 0);
			replay_drop_in_flight(g.medium);
			dev_abandon(g.dev);
		}
		replay_fault_add(g.medium, &f);
		assert_int_equal(medium_open(&g, false, &d, NULL),
				 -EIO); /* without anybody to tell the reason to */
		replay_fault_clear(g.medium);
		assert_int_equal(medium_open(&g, false, &d, &e), -EIO);
		assert_non_null(strstr(e.text, "earlier"));
		assert_int_equal(medium_open(&g, true, &d, &e), 0);
		finish(d);
	}
	rig_free(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(hidden_image_is_never_written),
	    cmocka_unit_test(image_that_a_neighbour_names_is_never_written),
	    cmocka_unit_test(neighbours_of_the_file_behind_a_link_count),
	    cmocka_unit_test(second_writer_is_kept_out),
	    cmocka_unit_test(missing_things_are_named),
	    cmocka_unit_test(what_a_disk_has_as_its_parent_is_not_written_whatever_its_directory),
	    cmocka_unit_test(parents_and_their_index_are_shared_until_the_last_close),
	    cmocka_unit_test(parent_that_changed_is_opened_anew),
	    cmocka_unit_test(answered_write_of_a_killed_process_is_there),
	    cmocka_unit_test(reader_is_refused_while_writes_are_in_the_journal_only),
	    cmocka_unit_test(child_of_an_image_with_journal_records_is_refused),
	    cmocka_unit_test(records_under_another_generation_are_refused),
	    cmocka_unit_test(poison_goes_when_an_open_that_clears_it_succeeded),
	    cmocka_unit_test(failed_flush_of_an_open_poisons),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
