/*
 * The blkif backend against real frontends: simxen and simguest as processes, as strict as Linux blkfront,
 * each sector verified. The backend, its device threads and the store run in this process, so that sanitizers
 * see them.
 */
#include "tests/lib/blkif_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

#define XVDA 51712u

static struct rig rig;

static int start(void **state)
{
	(void)state;
	rig_start(&rig, (struct blkif_opts){.barrier = true});
	return 0;
}

static int end(void **state)
{
	(void)state;
	return rig_end(&rig);
}

/* A guest with the usual loads over one disk, its end awaited. */
static void guest_is_happy(const char *disk, const char *options)
{
	assert_int_equal(
	    rig_run(
		"simguest",
		"--dir %s --disk %s --base-zero %s --phase mix=50:40:5:5,ios=1500,bs=512-128k,flush-every=50 "
		"--phase readall,bs=256k",
		rig.sim.dir, disk, options),
	    0);
}

static void every_ring_order_and_abi_serves(void **state)
{
	static const char *const abis[] = {"native", "x86_64", "x86_32"};
	char path[128], disk[160], options[128];

	(void)state;
	for (unsigned order = 0; order <= 4; order++) {
		for (unsigned a = 0; a < 3; a++) {
			rig_raw_image(&rig, "disk.img", 16 << 20, path);
			snprintf(disk, sizeof(disk), "raw:%s", path);
			snprintf(options, sizeof(options), "--abi %s --ring-order %u --iodepth %u", abis[a],
				 order, 32u << order);
			guest_is_happy(disk, options);
		}
	}
}

static void old_frontends_serve(void **state)
{
	static const char *const options[] = {"--no-indirect",	  "--regrant",
					      "--unaligned",	  "--overlap",
					      "--barrier",	  "--barrier --no-indirect --abi x86_32",
					      "--force-indirect", "--max-segments 20 --poll"};
	char path[128], disk[160];

	(void)state;
	for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		rig_raw_image(&rig, "disk.img", 16 << 20, path);
		snprintf(disk, sizeof(disk), "aio:%s", path);
		guest_is_happy(disk, options[i]);
	}
}

static void queues_serve(void **state)
{
	char path[128], disk[160], options[64];

	(void)state;
	for (unsigned n = 1; n <= 4; n++) {
		rig_raw_image(&rig, "disk.img", 16 << 20, path);
		snprintf(disk, sizeof(disk), "raw:%s", path);
		snprintf(options, sizeof(options), "--queues %u --ring-order %u", n, n % 3);
		guest_is_happy(disk, options);
	}
}

static void a_vhd_serves_and_is_closed_cleanly(void **state)
{
	char path[128], disk[160];

	(void)state;
	snprintf(path, sizeof(path), "%s/a.vhd", rig.images);
	assert_int_equal(rig_run("blkimg", "create %s 64M", path), 0);
	snprintf(disk, sizeof(disk), "vhd:%s", path);
	guest_is_happy(disk, "");
	assert_int_equal(devtab_count(), 0);
	assert_int_equal(rig_run("blkimg", "check %s", path), 0);
}

static void a_guest_connects_again_and_again(void **state)
{
	char path[128];

	(void)state;
	rig_raw_image(&rig, "disk.img", 16 << 20, path);
	assert_int_equal(rig_run("simguest",
				 "--dir %s --disk raw:%s --base-zero --cycles 20 --queues 2 --phase "
				 "mix=50:50,ios=200 --phase readall",
				 rig.sim.dir, path),
			 0);
}

static void four_guests_on_clones_do_not_meet(void **state)
{
	char golden[128], clone[4][128], raw[128];
	pid_t pid[4];

	(void)state;
	rig_raw_image(&rig, "golden.raw", 0, raw);
	snprintf(golden, sizeof(golden), "%s/golden.vhd", rig.images);
	/* The base's content is a pattern that each guest knows as a raw file. */
	int fd = open(raw, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	for (unsigned i = 0; i < 4096; i++) {
		uint32_t page[1024];

		for (unsigned w = 0; w < 1024; w++)
			page[w] = i * 2654435761u + w;
		assert_int_equal(write(fd, page, sizeof(page)), sizeof(page));
	}
	close(fd);
	assert_int_equal(rig_run("blkimg", "convert %s %s", raw, golden), 0);
	for (unsigned i = 0; i < 4; i++) {
		snprintf(clone[i], sizeof(clone[i]), "%s/clone%u.vhd", rig.images, i);
		assert_int_equal(rig_run("blkimg", "create --parent %s %s", golden, clone[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++)
		pid[i] = rig_begin("simguest",
				   "--dir %s --disk vhd:%s --base %s --seed %u --phase "
				   "mix=60:40,ios=2000,bs=512-64k,flush-every=100 "
				   "--phase readall",
				   rig.sim.dir, clone[i], raw, i + 1);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(rig_wait(pid[i]), 0);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(rig_run("blkimg", "check %s", clone[i]), 0);
}

static void a_read_only_disk_refuses_writes_of_a_guest_that_tries(void **state)
{
	char path[128];

	(void)state;
	rig_raw_image(&rig, "disk.img", 4 << 20, path);
	assert_int_equal(rig_run("simguest", "--dir %s --disk raw:%s,mode=r --base-zero --phase readall",
				 rig.sim.dir, path),
			 0);
	assert_int_equal(rig_run("simguest",
				 "--dir %s --disk raw:%s,mode=r --base-zero --force-write --expect-errors "
				 "--phase rw=randwrite,ios=100 "
				 "--phase readall",
				 rig.sim.dir, path),
			 0);
}

static void many_readers_share_one_image(void **state)
{
	char path[128];
	pid_t pid[3];

	(void)state;
	rig_raw_image(&rig, "disk.img", 8 << 20, path);
	for (unsigned i = 0; i < 3; i++)
		pid[i] = rig_begin("simguest",
				   "--dir %s --disk raw:%s,mode=r --base-zero --phase rw=randread,ios=3000",
				   rig.sim.dir, path);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(rig_wait(pid[i]), 0);
}

static bool nothing_is_open(void *ctx)
{
	(void)ctx;
	return devtab_count() == 0;
}

struct connected {
	uint32_t domid;
	unsigned requests;
};

static bool busy(void *ctx)
{
	const struct connected *c = ctx;
	struct blkif_vbd v;

	return rig_vbd(&rig, c->domid, XVDA, &v) && v.queues && v.has_stats &&
	       v.stats.reqs[BLK_READ] + v.stats.reqs[BLK_WRITE] > c->requests;
}

static void a_guest_killed_in_the_middle_leaves_nothing(void **state)
{
	char path[128];

	(void)state;
	for (unsigned i = 0; i < 10; i++) {
		struct connected c = {.domid = 100 + i, .requests = 20};
		pid_t pid;

		rig_raw_image(&rig, "disk.img", 64 << 20, path);
		pid = rig_begin("simguest",
				"--dir %s --domid %u --disk raw:%s --queues 2 --iodepth 64 --phase "
				"rw=randrw,runtime=60,bs=4k-256k",
				rig.sim.dir, c.domid, path);
		rig_vwait(busy, &c, "the guest's requests");
		kill(pid, SIGKILL);
		assert_int_equal(rig_wait(pid), 128 + SIGKILL);
		rig_vwait(nothing_is_open, NULL, "the image to be closed");
		/* And the next guest gets it at once. */
		assert_int_equal(rig_run("simguest", "--dir %s --disk raw:%s --phase rw=read,ios=10,verify=0",
					 rig.sim.dir, path),
				 0);
	}
}

static void stop_in_the_middle_of_io_drains(void **state)
{
	struct connected c = {.domid = 300, .requests = 50};
	char path[128];
	pid_t pid;

	(void)state;
	rig_raw_image(&rig, "disk.img", 64 << 20, path);
	pid = rig_begin("simguest",
			"--dir %s --domid 300 --disk raw:%s --base-zero --expect-close --iodepth 64 --phase "
			"rw=randrw,runtime=60,bs=4k-64k",
			rig.sim.dir, path);
	rig_vwait(busy, &c, "the guest's requests");
	assert_int_equal(rig_stop_backend(&rig), 0);
	assert_int_equal(devtab_count(), 0);
	assert_int_equal(rig_wait(pid), 0);
	rig_backend(&rig, (struct blkif_opts){.barrier = true});
}

/* ---- plug and unplug, without a toolstack ---- */

static void plug_serves_and_unplug_takes_away(void **state)
{
	struct err e = ERR_INIT;
	char path[128];
	struct blkif_vbd v;
	pid_t pid;

	(void)state;
	rig_raw_image(&rig, "disk.img", 16 << 20, path);
	struct blkif_plug o = {
	    .domid = 400, .device = "xvda", .image = path, .writable = true, .barrier = -1, .discard = -1};

	assert_int_equal(blkif_plug(&o, &e), -ESRCH);
	pid = rig_begin("simguest",
			"--dir %s --domid 400 --vbd %u --base-zero --hold --expect-close --phase "
			"rw=randrw,ios=500 --phase readall",
			rig.sim.dir, XVDA);
	for (unsigned i = 0; blkif_plug(&o, &e) == -ESRCH && i < 1000; i++)
		rig_sleep_ms(10);
	assert_true(rig_vbd(&rig, 400, XVDA, &v));
	assert_int_equal(v.size_bytes, 16 << 20);
	assert_true(v.writable);
	assert_string_equal(v.image, path);
	assert_string_equal(v.failure, "");
	/* Twice is refused, and does no harm. */
	assert_int_equal(blkif_plug(&o, &e), -EEXIST);

	struct connected c = {.domid = 400, .requests = 100};

	rig_vwait(busy, &c, "the guest's requests");
	assert_int_equal(blkif_unplug(NULL, 400, XVDA, false, 20000, &e), 0);
	assert_int_equal(rig_wait(pid), 0);
	assert_int_equal(blkif_unplug(NULL, 400, XVDA, false, 1000, &e), -ENOENT);
	assert_int_equal(devtab_count(), 0);
}

static void one_image_has_one_writer(void **state)
{
	struct err e = ERR_INIT;
	struct guest a, b;
	char path[128];

	(void)state;
	guest_birth(&rig.sim, &a, 501, 0);
	guest_birth(&rig.sim, &b, 502, 0);
	rig_raw_image(&rig, "disk.img", 16 << 20, path);
	struct blkif_plug o = {
	    .domid = 501, .device = "xvda", .image = path, .writable = true, .barrier = -1, .discard = -1};

	assert_int_equal(blkif_plug(&o, &e), 0);
	o.domid = 502;
	assert_int_equal(blkif_plug(&o, &e), -EIO);
	assert_non_null(strstr(e.text, "vbd-501-51712"));
	o.writable = false;
	assert_int_equal(blkif_plug(&o, &e), -EIO);
	assert_non_null(strstr(e.text, "vbd-501-51712"));
	/* What was refused leaves nothing behind. */
	unsigned n = 0;
	char **names = xs_directory(rig.xs, XBT_NULL, "/local/domain/502/device/vbd", &n);

	assert_int_equal(n, 0);
	free(names);
	assert_int_equal(blkif_unplug(NULL, 501, XVDA, false, 5000, &e), 0);
	o.domid = 502;
	o.writable = true;
	assert_int_equal(blkif_plug(&o, &e), 0);
	/* The domain's death takes a device away that no toolstack knows of. */
	guest_death(&rig.sim, &b);
	rig_vwait(nothing_is_open, NULL, "the image to be closed");
	guest_death(&rig.sim, &a);
}

static void what_cannot_be_served_says_why(void **state)
{
	struct err e = ERR_INIT;
	struct guest g;
	char path[128];

	(void)state;
	guest_birth(&rig.sim, &g, 510, 0);
	rig_raw_image(&rig, "disk.img", 0, path);
	snprintf(path, sizeof(path), "%s/missing.vhd", rig.images);
	struct blkif_plug o = {
	    .domid = 510, .device = "xvdb", .image = path, .writable = true, .barrier = -1, .discard = -1};

	assert_int_equal(blkif_plug(&o, &e), -EIO);
	assert_non_null(strstr(e.text, "missing.vhd"));
	o.device = "vda";
	assert_int_equal(blkif_plug(&o, &e), -EINVAL);
	o.device = "xvda";
	o.image = "relative.img";
	assert_int_equal(blkif_plug(&o, &e), -EINVAL);
	o.image = path;
	o.kind = "nobody";
	o.timeout_ms = 100;
	assert_int_equal(blkif_plug(&o, &e), -ETIMEDOUT);
	guest_death(&rig.sim, &g);
}

static void device_names_become_numbers(void **state)
{
	static const struct {
		const char *name;
		uint32_t devid;
	} good[] = {{"xvda", 51712},	 {"xvdb", 51728},      {"xvda1", 51713},      {"xvdp", 51952},
		    {"xvdq", 268439552}, {"xvdaa", 268442112}, {"xvda16", 268435472}, {"d0", 51712},
		    {"d1p2", 51730},	 {"sda", 2048},	       {"sdb3", 2067},	      {"hda", 768},
		    {"hdb", 832},	 {"hdc", 5632},	       {"51712", 51712},      {"0", 0}};
	static const char *const bad[] = {"",	     "xvd", "xvdA", "xvda0",	  "xvda256", "vda",
					  "hde",     "sdq", "d",    "dp1",	  "d0p",     "xvda1x",
					  "xvdaaaa", "-1",  "1 ",   "99999999999"};
	uint32_t devid;

	(void)state;
	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(blkif_devid(good[i].name, &devid), 0);
		assert_int_equal(devid, good[i].devid);
	}
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(blkif_devid(bad[i], &devid), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(device_names_become_numbers),
	    cmocka_unit_test(every_ring_order_and_abi_serves),
	    cmocka_unit_test(old_frontends_serve),
	    cmocka_unit_test(queues_serve),
	    cmocka_unit_test(a_vhd_serves_and_is_closed_cleanly),
	    cmocka_unit_test(a_guest_connects_again_and_again),
	    cmocka_unit_test(four_guests_on_clones_do_not_meet),
	    cmocka_unit_test(a_read_only_disk_refuses_writes_of_a_guest_that_tries),
	    cmocka_unit_test(many_readers_share_one_image),
	    cmocka_unit_test(a_guest_killed_in_the_middle_leaves_nothing),
	    cmocka_unit_test(stop_in_the_middle_of_io_drains),
	    cmocka_unit_test(plug_serves_and_unplug_takes_away),
	    cmocka_unit_test(one_image_has_one_writer),
	    cmocka_unit_test(what_cannot_be_served_says_why),
	};

	return cmocka_run_group_tests(tests, start, end);
}
