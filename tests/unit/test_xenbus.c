/*
 * The xenbus handshake against toolstacks and frontends of all tempers, played by this test through xenstore:
 * what is published, every way to close and come back, lies in every value a guest can write, and storms.
 *
 * The frontend here is minimal on purpose: pages, grants and a channel of simxen, one request to see that a
 * ring is served.
 */
#include "tests/lib/blkif_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <xen/xen.h>
#include <xen/io/blkif.h>

#include <cmocka.h>

#define XVDA	   51712u
#define GREF(p)	   (8u + (p))
#define RING_PAGES 16u /* 0..15: rings; 16: data */
#define DATA_PAGE  16u

static struct rig rig;

struct frontend {
	struct guest g;
	uint32_t port[2];
	int wait_fd[2], notify_fd[2];
	uint32_t prod, cons;
	char be[96], fe[96];
};

/* ---- xenstore by hand ---- */

__attribute__((format(printf, 3, 4))) static void put(const char *dir, const char *node, const char *fmt, ...)
{
	char path[256], value[4096];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(value, sizeof(value), fmt, ap);
	va_end(ap);
	snprintf(path, sizeof(path), "%s/%s", dir, node);
	assert_true(xs_write(rig.xs, XBT_NULL, path, value, (unsigned)strlen(value)));
}

static void take(const char *dir, const char *node)
{
	char path[256];

	snprintf(path, sizeof(path), "%s%s%s", dir, *node ? "/" : "", node);
	xs_rm(rig.xs, XBT_NULL, path);
}

/* "" when absent. */
static const char *get(const char *dir, const char *node)
{
	static char value[4096];
	char path[256];
	unsigned len = 0;
	char *v;

	snprintf(path, sizeof(path), "%s/%s", dir, node);
	v = xs_read(rig.xs, XBT_NULL, path, &len);
	snprintf(value, sizeof(value), "%s", v ? v : "");
	free(v);
	return value;
}

static int state_of(const struct frontend *f)
{
	const char *s = get(f->be, "state");

	return *s ? atoi(s) : 0;
}

/* Waits for our state; false after some seconds. */
static bool becomes(const struct frontend *f, int state)
{
	for (unsigned i = 0; i < 8000; i++) {
		if (state_of(f) == state)
			return true;
		rig_sleep_ms(1);
	}
	fprintf(stderr, "state is %d, wanted %d (frontend %s)\n", state_of(f), state, get(f->fe, "state"));
	return false;
}

static bool vanishes(const char *dir, const char *node)
{
	for (unsigned i = 0; i < 8000; i++) {
		if (!*get(dir, node))
			return true;
		rig_sleep_ms(1);
	}
	return false;
}

static const char *reason(const struct frontend *f)
{
	char dir[160];

	snprintf(dir, sizeof(dir), "/local/domain/0/error/backend/vbd3/%u/%u", f->g.domid, XVDA);
	return get(dir, "error");
}

/* ---- toolstack and frontend ---- */

static void toolstack_writes(const struct frontend *f, const char *params, const char *mode)
{
	put(f->be, "frontend", "%s", f->fe);
	put(f->be, "frontend-id", "%u", f->g.domid);
	put(f->be, "online", "1");
	put(f->be, "removable", "0");
	put(f->be, "state", "1");
	put(f->be, "dev", "xvda");
	put(f->be, "mode", "%s", mode);
	put(f->fe, "backend", "%s", f->be);
	put(f->fe, "backend-id", "0");
	put(f->fe, "state", "1");
	put(f->be, "params", "%s", params);
}

static void frontend_is_born(struct frontend *f, uint32_t domid)
{
	struct sim_rsp rsp;

	memset(f, 0, sizeof(*f));
	guest_birth(&rig.sim, &f->g, domid, 32);
	assert_int_equal(
	    hyp_do(f->g.hyp,
		   (struct sim_req){
		       .op = SIM_GRANT, .gref = GREF(0), .page = 0, .count = 32, .flags = SIM_GRANT_VALID}),
	    0);
	for (unsigned q = 0; q < 2; q++) {
		int fds[2];

		assert_int_equal(
		    hyp_call(f->g.hyp, (struct sim_req){.op = SIM_EVTCHN_ALLOC, .domid = 0}, &rsp, fds), 0);
		f->port[q] = rsp.port;
		f->wait_fd[q] = fds[0];
		f->notify_fd[q] = fds[1];
	}
	snprintf(f->be, sizeof(f->be), "/local/domain/0/backend/vbd3/%u/%u", f->g.domid, XVDA);
	snprintf(f->fe, sizeof(f->fe), "/local/domain/%u/device/vbd/%u", f->g.domid, XVDA);
}

static void frontend_dies(struct frontend *f)
{
	for (unsigned q = 0; q < 2; q++) {
		close(f->wait_fd[q]);
		close(f->notify_fd[q]);
	}
	guest_death(&rig.sim, &f->g);
}

static struct blkif_sring *sring(const struct frontend *f)
{
	return (struct blkif_sring *)(void *)f->g.mem;
}

static void ring_init(struct frontend *f)
{
	memset(f->g.mem, 0, RING_PAGES * 4096);
	SHARED_RING_INIT(sring(f));
	f->prod = f->cons = 0;
}

static void ring_nodes(const struct frontend *f)
{
	put(f->fe, "ring-ref", "%u", GREF(0));
	put(f->fe, "event-channel", "%u", f->port[0]);
	put(f->fe, "protocol", "x86_64-abi");
}

static void frontend_connects(struct frontend *f)
{
	ring_init(f);
	ring_nodes(f);
	put(f->fe, "state", "3");
}

/* One read, answered. */
static void is_served(struct frontend *f)
{
	struct blkif_request *req = &sring(f)->ring[f->prod % 32].req;
	const uint64_t one = 1;
	struct blkif_response rsp;

	memset(req, 0, sizeof(*req));
	req->operation = BLKIF_OP_READ;
	req->nr_segments = 1;
	req->id = 1000 + f->prod;
	req->seg[0] =
	    (struct blkif_request_segment){.gref = GREF(DATA_PAGE), .first_sect = 0, .last_sect = 7};
	__atomic_store_n(&sring(f)->req_prod, ++f->prod, __ATOMIC_RELEASE);
	assert_int_equal(write(f->notify_fd[0], &one, sizeof(one)), sizeof(one));
	for (unsigned i = 0; __atomic_load_n(&sring(f)->rsp_prod, __ATOMIC_ACQUIRE) == f->cons; i++) {
		assert_true(i < 8000);
		rig_sleep_ms(1);
	}
	rsp = sring(f)->ring[f->cons++ % 32].rsp;
	assert_int_equal(rsp.id, 999 + f->prod);
	assert_int_equal(rsp.status, BLKIF_RSP_OKAY);
}

static struct frontend *fe;
static char image[128];

static void ready_frontend(struct frontend *f, uint32_t domid)
{
	char params[160];

	frontend_is_born(f, domid);
	snprintf(params, sizeof(params), "raw:%s", image);
	toolstack_writes(f, params, "w");
	assert_true(becomes(f, 2));
}

static void connected_frontend(struct frontend *f, uint32_t domid)
{
	ready_frontend(f, domid);
	frontend_connects(f);
	assert_true(becomes(f, 4));
	is_served(f);
	put(f->fe, "state", "4");
}

static uint32_t next_domid = 10;

static int bare(void **state)
{
	static struct frontend f;

	(void)state;
	fe = &f;
	rig_raw_image(&rig, "disk.img", 1 << 20, image);
	return 0;
}

static int ready(void **state)
{
	bare(state);
	ready_frontend(fe, next_domid++);
	return 0;
}

static int connected(void **state)
{
	bare(state);
	connected_frontend(fe, next_domid++);
	return 0;
}

static bool all_released(void *ctx)
{
	(void)ctx;
	return devtab_count() == 0;
}

/* Whatever happened: the guest dies, the image is let go, the directory removed is forgotten. */
static int bury(void **state)
{
	struct blkif_vbd v;

	(void)state;
	frontend_dies(fe);
	rig_vwait(all_released, NULL, "the image to be closed");
	take(fe->be, "");
	for (unsigned i = 0; rig_vbd(&rig, fe->g.domid, XVDA, &v); i++) {
		assert_true(i < 8000);
		rig_sleep_ms(1);
	}
	return 0;
}

/* ---- what is published ---- */

static void offer_and_features_are_published(void **state)
{
	(void)state;
	assert_string_equal(get(fe->be, "max-ring-page-order"), "4");
	assert_string_equal(get(fe->be, "feature-max-indirect-segments"), "256");
	assert_string_equal(get(fe->be, "multi-queue-max-queues"), "4");
	assert_string_equal(get(fe->be, "hotplug-status"), "connected");
	assert_string_equal(get(fe->be, "sectors"), "");
	frontend_connects(fe);
	assert_true(becomes(fe, 4));
	assert_string_equal(get(fe->be, "sectors"), "2048");
	assert_string_equal(get(fe->be, "sector-size"), "512");
	assert_string_equal(get(fe->be, "physical-sector-size"), "4096");
	assert_string_equal(get(fe->be, "info"), "0");
	assert_string_equal(get(fe->be, "feature-flush-cache"), "1");
	assert_string_equal(get(fe->be, "feature-barrier"), "0");
	assert_string_equal(get(fe->be, "feature-discard"), "1");
	assert_string_equal(get(fe->be, "discard-granularity"), "4096");
	assert_string_equal(get(fe->be, "discard-alignment"), "0");
	assert_string_equal(get(fe->be, "feature-persistent"), "0");
	assert_string_equal(get(fe->be, "feature-large-sector-size"), "");
	is_served(fe);
}

static void every_node_of_ours_is_readable_by_its_guest_alone(void **state)
{
	static const char *const nodes[] = {
	    "state",	  "sectors", "hotplug-status", "info", "feature-flush-cache", "max-ring-page-order",
	    "kthread-pid"};

	(void)state;
	for (unsigned i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++) {
		char path[256];
		unsigned n = 0;
		struct xs_permissions *p;

		snprintf(path, sizeof(path), "%s/%s", fe->be, nodes[i]);
		p = xs_get_permissions(rig.xs, XBT_NULL, path, &n);
		assert_non_null(p);
		assert_int_equal(n, 2);
		assert_int_equal(p[0].id, 0);
		assert_int_equal(p[0].perms, XS_PERM_NONE);
		assert_int_equal(p[1].id, fe->g.domid);
		assert_int_equal(p[1].perms, XS_PERM_READ);
		free(p);
	}
}

static void read_only_cdrom_says_so(void **state)
{
	char params[160];

	(void)state;
	frontend_is_born(fe, next_domid++);
	put(fe->be, "device-type", "cdrom");
	put(fe->be, "removable", "1");
	snprintf(params, sizeof(params), "aio:%s", image);
	toolstack_writes(fe, params, "r");
	put(fe->be, "removable", "1");
	assert_true(becomes(fe, 2));
	frontend_connects(fe);
	assert_true(becomes(fe, 4));
	assert_true(atoi(get(fe->be, "info")) & 4);
	assert_true(atoi(get(fe->be, "info")) & 1);
	assert_string_equal(get(fe->be, "feature-discard"), "0");
	assert_string_equal(get(fe->be, "discard-granularity"), "");
	is_served(fe);
}

static void toolstack_lies_are_refused_with_a_reason(void **state)
{
	static const struct {
		const char *params, *mode;
	} bad[] = {{"/no/format", "w"},
		   {"qcow2:/x", "w"},
		   {"raw:relative", "w"},
		   {"raw:/nonexistent/x.img", "w"},
		   {"vhd:/etc/passwd", "r"},
		   {"raw:/etc", "r"},
		   {"raw:/dev/null", "r"},
		   {"raw:/x", "z"},
		   {"", "w"}};
	char long_path[1200];

	(void)state;
	for (unsigned i = 0; i <= sizeof(bad) / sizeof(bad[0]); i++) {
		bool last = i == sizeof(bad) / sizeof(bad[0]);

		frontend_is_born(fe, next_domid++);
		memset(long_path, 'a', sizeof(long_path) - 1);
		memcpy(long_path, "raw:/", 5);
		long_path[sizeof(long_path) - 1] = '\0';
		toolstack_writes(fe, last ? long_path : bad[i].params, last ? "w" : bad[i].mode);
		assert_true(becomes(fe, 6));
		assert_true(*get(fe->be, "hotplug-error"));
		assert_true(*reason(fe));
		assert_string_equal(get(fe->be, "hotplug-status"), "");
		if (!last)
			bury(state);
	}
}

/* ---- connecting ---- */

static void frontend_may_be_early(void **state)
{
	char params[160];

	(void)state;
	frontend_is_born(fe, next_domid++);
	frontend_connects(fe);
	snprintf(params, sizeof(params), "raw:%s", image);
	toolstack_writes(fe, "", "w");
	take(fe->be, "params");
	put(fe->fe, "state", "3");
	put(fe->be, "state", "1");
	/* toolstack_writes wrote empty params first; a refusal then is fine, and the device made anew is
	 * served. */
	take(fe->be, "");
	toolstack_writes(fe, params, "w");
	put(fe->fe, "state", "3");
	assert_true(becomes(fe, 4));
	is_served(fe);
}

static void connected_first_seen_counts_as_initialised(void **state)
{
	(void)state;
	ring_init(fe);
	ring_nodes(fe);
	put(fe->fe, "state", "4");
	assert_true(becomes(fe, 4));
	is_served(fe);
}

static void page_order_zero_goes_by_either_name(void **state)
{
	(void)state;
	ring_init(fe);
	ring_nodes(fe);
	take(fe->fe, "ring-ref");
	put(fe->fe, "ring-page-order", "0");
	put(fe->fe, "ring-ref0", "%u", GREF(0));
	put(fe->fe, "state", "3");
	assert_true(becomes(fe, 4));
	is_served(fe);
}

static void page_order_zero_with_the_old_name(void **state)
{
	(void)state;
	ring_init(fe);
	ring_nodes(fe);
	put(fe->fe, "ring-page-order", "0");
	put(fe->fe, "state", "3");
	assert_true(becomes(fe, 4));
	is_served(fe);
}

static void absent_protocol_is_native(void **state)
{
	(void)state;
	ring_init(fe);
	ring_nodes(fe);
	take(fe->fe, "protocol");
	put(fe->fe, "state", "3");
	assert_true(becomes(fe, 4));
	is_served(fe);
}

/* The lie is refused with a reason and state Closing, and an honest restart of the same frontend is served.
 */
static void lie(const char *node, const char *value)
{
	ring_init(fe);
	ring_nodes(fe);
	take(fe->fe, "ring-page-order");
	take(fe->fe, "multi-queue-num-queues");
	if (value)
		put(fe->fe, node, "%s", value);
	else
		take(fe->fe, node);
	put(fe->fe, "state", "3");
	if (!becomes(fe, 5))
		fail_msg("%s = %s was believed", node, value ? value : "(absent)");
	assert_true(*reason(fe));
	put(fe->fe, "state", "6");
	assert_true(becomes(fe, 6));
	take(fe->fe, "ring-page-order");
	take(fe->fe, "multi-queue-num-queues");
	put(fe->fe, "state", "1");
	assert_true(becomes(fe, 2));
	frontend_connects(fe);
	assert_true(becomes(fe, 4));
	is_served(fe);
	assert_string_equal(reason(fe), "");
	put(fe->fe, "state", "6");
	assert_true(becomes(fe, 6));
	put(fe->fe, "state", "1");
	assert_true(becomes(fe, 2));
}

static void lies_of_a_frontend_are_refused(void **state)
{
	static const char *const numbers[] = {"",
					      "-1",
					      "+1",
					      " 1",
					      "1 ",
					      "0x8",
					      "1e3",
					      "4294967296",
					      "18446744073709551616",
					      "99999999999999999999999999",
					      "abc",
					      "8\n"};
	static const char *const nodes[] = {"ring-ref", "event-channel", "ring-page-order",
					    "multi-queue-num-queues"};
	char huge[3000];

	(void)state;
	for (unsigned n = 0; n < 4; n++) {
		for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
			lie(nodes[n], numbers[i]);
	}
	memset(huge, '1', sizeof(huge) - 1);
	huge[sizeof(huge) - 1] = '\0';
	for (unsigned n = 0; n < 4; n++)
		lie(nodes[n], huge);
	lie("protocol", huge);
	lie("protocol", "x86_16-abi");
	lie("protocol", "");
	lie("ring-ref", NULL);
	lie("event-channel", NULL);
	lie("event-channel", "0");
	lie("event-channel", "131072");
	lie("event-channel", "131071"); /* no such port */
	lie("ring-ref", "0");
	lie("ring-ref", "7");	  /* reserved */
	lie("ring-ref", "5000");  /* grants nothing */
	lie("ring-ref", "65536"); /* beyond the table */
	lie("ring-ref", "4294967295");
	lie("ring-page-order", "5");
	lie("ring-page-order", "4"); /* ring-ref0 is missing */
	lie("multi-queue-num-queues", "0");
	lie("multi-queue-num-queues", "5");
	lie("multi-queue-num-queues", "2"); /* queue-0 is missing */
}

static void half_mapped_queues_are_given_back(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 20; i++) {
		ring_init(fe);
		put(fe->fe, "multi-queue-num-queues", "2");
		for (unsigned q = 0; q < 2; q++) {
			char dir[128];

			snprintf(dir, sizeof(dir), "%s/queue-%u", fe->fe, q);
			put(dir, "ring-ref", "%u", q ? 9999 : GREF(0)); /* the second grants nothing */
			put(dir, "event-channel", "%u", fe->port[q]);
		}
		put(fe->fe, "state", "3");
		assert_true(becomes(fe, 5));
		assert_non_null(strstr(reason(fe), "queue 1"));
		put(fe->fe, "state", "6");
		assert_true(becomes(fe, 6));
		put(fe->fe, "state", "1");
		assert_true(becomes(fe, 2));
	}
	take(fe->fe, "multi-queue-num-queues");
	frontend_connects(fe);
	assert_true(becomes(fe, 4));
	is_served(fe);
}

static void used_ring_is_refused(void **state)
{
	(void)state;
	ring_init(fe);
	ring_nodes(fe);
	sring(fe)->rsp_prod = 5;
	put(fe->fe, "state", "3");
	assert_true(becomes(fe, 5));
	assert_non_null(strstr(reason(fe), "in use before"));
}

/* ---- closing and coming back ---- */

static void broken_ring_closes_the_device_with_a_reason(void **state)
{
	const uint64_t one = 1;

	(void)state;
	__atomic_store_n(&sring(fe)->req_prod, 0x12345678, __ATOMIC_RELEASE);
	assert_int_equal(write(fe->notify_fd[0], &one, sizeof(one)), sizeof(one));
	assert_true(becomes(fe, 5));
	assert_non_null(strstr(reason(fe), "req_prod"));
	/* It stays so until the frontend starts anew. */
	rig_sleep_ms(20);
	assert_int_equal(state_of(fe), 5);
	put(fe->fe, "state", "6");
	assert_true(becomes(fe, 6));
	put(fe->fe, "state", "1");
	assert_true(becomes(fe, 2));
	frontend_connects(fe);
	assert_true(becomes(fe, 4));
	is_served(fe);
}

static void frontend_closes_and_comes_back(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 50; i++) {
		put(fe->fe, "state", "5");
		assert_true(becomes(fe, 5));
		is_served(fe); /* until it has closed */
		put(fe->fe, "state", "6");
		assert_true(becomes(fe, 6));
		put(fe->fe, "state", "1");
		assert_true(becomes(fe, 2));
		frontend_connects(fe);
		assert_true(becomes(fe, 4));
		is_served(fe);
		put(fe->fe, "state", "4");
	}
}

/* Local resume, kexec: no Closing at all. */
static void frontend_starts_anew_while_connected(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 20; i++) {
		put(fe->fe, "state", "1");
		assert_true(becomes(fe, 2));
		frontend_connects(fe);
		assert_true(becomes(fe, 4));
		is_served(fe);
		put(fe->fe, "state", "4");
	}
}

/* Suspend: the new ring is there at once, and Initialised comes straight after Connected. */
static void initialised_after_connected_is_a_new_connection(void **state)
{
	struct blkif_vbd v;

	(void)state;
	rig_sleep_ms(50); /* the frontend's Connected is seen */
	put(fe->fe, "state", "3");
	for (unsigned i = 0; state_of(fe) == 4 && i < 2000; i++)
		rig_sleep_ms(1);
	/* The ring is the old one, and in use: refused, rather than answered twice. */
	assert_true(becomes(fe, 5));
	put(fe->fe, "state", "1");
	assert_true(becomes(fe, 2));
	frontend_connects(fe);
	assert_true(becomes(fe, 4));
	is_served(fe);
	assert_true(rig_vbd(&rig, fe->g.domid, XVDA, &v));
	assert_int_equal(v.connects, 2);
}

static void frontends_directory_vanishes(void **state)
{
	(void)state;
	take(fe->fe, "");
	assert_true(becomes(fe, 6));
	put(fe->fe, "state", "1");
	assert_true(becomes(fe, 2));
}

static void backends_directory_vanishes_and_stays_so(void **state)
{
	(void)state;
	take(fe->be, "");
	rig_vwait(all_released, NULL, "the image to be closed");
	rig_sleep_ms(50);
	assert_int_equal(state_of(fe), 0);
	put(fe->fe, "state", "6");
	rig_sleep_ms(20);
	assert_int_equal(state_of(fe), 0);
}

static void toolstack_detaches(void **state)
{
	(void)state;
	put(fe->be, "online", "0");
	put(fe->be, "state", "5");
	rig_sleep_ms(50);
	/* The guest has its disk in use: it is served until it lets go. */
	assert_int_equal(state_of(fe), 5);
	is_served(fe);
	put(fe->fe, "state", "5");
	rig_sleep_ms(10);
	put(fe->fe, "state", "6");
	assert_true(becomes(fe, 6));
	assert_true(vanishes(fe->be, "hotplug-status"));
	/* Closed is said when the image is closed: another host may open it now. */
	assert_int_equal(devtab_count(), 0);
	/* Twice does no harm. */
	put(fe->be, "state", "5");
	assert_true(becomes(fe, 6));
}

static void toolstack_detaches_what_never_connected(void **state)
{
	(void)state;
	put(fe->be, "online", "0");
	put(fe->be, "state", "5");
	assert_true(becomes(fe, 6));
	assert_int_equal(devtab_count(), 0);
}

static void toolstack_forces(void **state)
{
	(void)state;
	put(fe->be, "online", "0");
	put(fe->be, "state", "5");
	take(fe->fe, "");
	assert_true(becomes(fe, 6));
	assert_int_equal(devtab_count(), 0);
}

static void offline_after_close_releases(void **state)
{
	(void)state;
	put(fe->fe, "state", "6");
	assert_true(becomes(fe, 6));
	assert_int_equal(devtab_count(), 1);
	put(fe->be, "online", "0");
	rig_vwait(all_released, NULL, "the image to be closed");
	assert_true(vanishes(fe->be, "hotplug-status"));
}

static void made_anew_is_opened_anew(void **state)
{
	char other[128], path[256], params[160];
	xs_transaction_t t;

	(void)state;
	rig_raw_image(&rig, "other.img", 3 << 20, other);
	snprintf(params, sizeof(params), "raw:%s", other);
	t = xs_transaction_start(rig.xs);
	assert_true(xs_rm(rig.xs, t, fe->be));
	const char *const nodes[][2] = {{"params", params}, {"mode", "w"}, {"online", "1"}, {"state", "1"}};

	for (unsigned i = 0; i < 4; i++) {
		snprintf(path, sizeof(path), "%s/%s", fe->be, nodes[i][0]);
		assert_true(xs_write(rig.xs, t, path, nodes[i][1], (unsigned)strlen(nodes[i][1])));
	}
	snprintf(path, sizeof(path), "%s/frontend-id", fe->be);
	snprintf(params, sizeof(params), "%u", fe->g.domid);
	assert_true(xs_write(rig.xs, t, path, params, (unsigned)strlen(params)));
	assert_true(xs_transaction_end(rig.xs, t, false));
	put(fe->fe, "state", "1");
	assert_true(becomes(fe, 2));
	frontend_connects(fe);
	assert_true(becomes(fe, 4));
	assert_string_equal(get(fe->be, "sectors"), "6144");
	is_served(fe);
}

static void domain_dies_while_connected(void **state)
{
	(void)state;
	frontend_dies(fe);
	assert_true(becomes(fe, 6));
	assert_true(vanishes(fe->be, "hotplug-status"));
	assert_int_equal(devtab_count(), 0);
	/* The same number comes back as another guest, its toolstack makes the directory anew. */
	take(fe->be, "");
	connected_frontend(fe, fe->g.domid);
}

/* ---- the matrix, and storms ---- */

static uint32_t rng = 1;

static uint32_t rnd(void)
{
	rng = rng * 1664525u + 1013904223u;
	return rng >> 8;
}

/* From wherever it is, an honest restart works. */
static void honest_restart_works(void)
{
	for (unsigned i = 0;; i++) {
		assert_true(i < 20);
		put(fe->fe, "state", "6");
		rig_sleep_ms(2);
		put(fe->fe, "state", "1");
		for (unsigned k = 0; k < 400 && state_of(fe) != 2; k++)
			rig_sleep_ms(1);
		if (state_of(fe) == 2)
			break;
	}
	frontend_connects(fe);
	assert_true(becomes(fe, 4));
	is_served(fe);
	put(fe->fe, "state", "4");
}

static void every_pair_of_states_can_be_survived(void **state)
{
	static const char *const states[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "x"};

	(void)state;
	for (unsigned a = 0; a < 11; a++) {
		for (unsigned b = 0; b < 11; b++) {
			put(fe->fe, "state", "%s", states[a]);
			if ((a + b) % 2)
				rig_sleep_ms(1);
			put(fe->fe, "state", "%s", states[b]);
			rig_sleep_ms(1);
		}
		honest_restart_works();
	}
}

/* XSA-350: connects and disconnects as fast as xenstore goes, with a fresh ring each time. */
static void storm_of_connects_and_closes(void **state)
{
	static const char *const states[] = {"1", "3", "3", "4", "5", "6"};

	(void)state;
	for (unsigned i = 0; i < 5000; i++) {
		if (rnd() % 4 == 0)
			ring_init(fe);
		put(fe->fe, "state", "%s", states[rnd() % 6]);
		if (rnd() % 16 == 0)
			rig_sleep_ms(1);
	}
	honest_restart_works();
}

static void storm_of_toolstack_and_frontend(void **state)
{
	char params[160];

	(void)state;
	for (unsigned i = 0; i < 1000; i++) {
		switch (rnd() % 6) {
		case 0:
			put(fe->be, "state", "5");
			break;
		case 1:
			put(fe->be, "online", "%u", rnd() % 2);
			break;
		case 2:
			take(fe->fe, "state");
			break;
		case 3:
			put(fe->be, "state", "%u", rnd() % 7);
			break;
		default:
			ring_init(fe);
			put(fe->fe, "state", "%u", rnd() % 7);
			break;
		}
	}
	take(fe->be, "");
	rig_vwait(all_released, NULL, "the image to be closed");
	snprintf(params, sizeof(params), "raw:%s", image);
	toolstack_writes(fe, params, "w");
	assert_true(becomes(fe, 2));
	frontend_connects(fe);
	assert_true(becomes(fe, 4));
	is_served(fe);
}

static long rss_kib(void)
{
	long pages = 0, rss = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (!f || fscanf(f, "%ld %ld", &pages, &rss) != 2)
		DIE("statm");
	fclose(f);
	return rss * 4;
}

/* XSA-349: watch events are not stored up, and a neighbour connects meanwhile. */
static void storm_of_keys_costs_no_memory_and_no_neighbour(void **state)
{
	char neighbour_image[128], params[160];
	struct frontend other;
	long before;

	(void)state;
	rig_raw_image(&rig, "neighbour.img", 1 << 20, neighbour_image);
	for (unsigned i = 0; i < 2000; i++)
		put(fe->fe, "state", "4");
	before = rss_kib();
	pid_t storm = fork();

	if (storm == 0) {
		struct xs_handle *xs = xs_open(0);
		char path[256];

		snprintf(path, sizeof(path), "%s/state", fe->fe);
		for (unsigned i = 0; i < 50000; i++)
			xs_write(xs, XBT_NULL, path, "4", 1);
		_exit(0);
	}
	frontend_is_born(&other, next_domid++);
	snprintf(params, sizeof(params), "raw:%s", neighbour_image);
	toolstack_writes(&other, params, "w");
	assert_true(becomes(&other, 2));
	frontend_connects(&other);
	assert_true(becomes(&other, 4));
	is_served(&other);
	assert_int_equal(rig_wait(storm), 0);
	is_served(fe);
	/* Sanitizers keep what was freed for a while: there the figure says nothing. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
	assert_true(rss_kib() - before < 4096);
#else
	(void)before;
#endif
	frontend_dies(&other);
	take(other.be, "");
}

static int start(void **state)
{
	(void)state;
	rig_start(&rig, (struct blkif_opts){.barrier = false});
	return 0;
}

static int end(void **state)
{
	(void)state;
	return rig_end(&rig);
}

#define BARE(f)	     cmocka_unit_test_setup_teardown(f, bare, bury)
#define READY(f)     cmocka_unit_test_setup_teardown(f, ready, bury)
#define CONNECTED(f) cmocka_unit_test_setup_teardown(f, connected, bury)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    READY(offer_and_features_are_published),
	    CONNECTED(every_node_of_ours_is_readable_by_its_guest_alone),
	    BARE(read_only_cdrom_says_so),
	    BARE(toolstack_lies_are_refused_with_a_reason),
	    BARE(frontend_may_be_early),
	    READY(connected_first_seen_counts_as_initialised),
	    READY(page_order_zero_goes_by_either_name),
	    READY(page_order_zero_with_the_old_name),
	    READY(absent_protocol_is_native),
	    READY(lies_of_a_frontend_are_refused),
	    READY(half_mapped_queues_are_given_back),
	    READY(used_ring_is_refused),
	    CONNECTED(broken_ring_closes_the_device_with_a_reason),
	    CONNECTED(frontend_closes_and_comes_back),
	    CONNECTED(frontend_starts_anew_while_connected),
	    CONNECTED(initialised_after_connected_is_a_new_connection),
	    CONNECTED(frontends_directory_vanishes),
	    CONNECTED(backends_directory_vanishes_and_stays_so),
	    CONNECTED(toolstack_detaches),
	    READY(toolstack_detaches_what_never_connected),
	    CONNECTED(toolstack_forces),
	    CONNECTED(offline_after_close_releases),
	    CONNECTED(made_anew_is_opened_anew),
	    CONNECTED(domain_dies_while_connected),
	    CONNECTED(every_pair_of_states_can_be_survived),
	    CONNECTED(storm_of_connects_and_closes),
	    CONNECTED(storm_of_toolstack_and_frontend),
	    CONNECTED(storm_of_keys_costs_no_memory_and_no_neighbour),
	};

	return cmocka_run_group_tests(tests, start, end);
}
