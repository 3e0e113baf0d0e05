/*
 * The "sim" hypervisor of blkd against a real simxen: grants, copies, channels, and the deaths of guest and
 * backend. Each test has a guest of its own and a connection of its own.
 */
#include "blkd/err.h"
#include "blkd/hyp.h"
#include "tests/lib/simxen_fixture.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define NPAGES 64

static struct simxen server;

struct world {
	struct guest g;
	struct hyp *h;
};

static int world_make(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	struct err e = ERR_INIT;

	guest_birth(&server, &w->g, SIM_NEW_DOMAIN, NPAGES);
	if (hyp_open("sim", server.dir, &w->h, &e) < 0)
		DIE("%s", e.text);
	*state = w;
	return 0;
}

static int world_end(void **state)
{
	struct world *w = *state;

	hyp_close(w->h);
	if (w->g.hyp >= 0)
		guest_death(&server, &w->g);
	free(w);
	return 0;
}

static void grant_pages(struct guest *g, uint32_t gref, uint32_t page, uint32_t count, uint32_t domid,
			uint32_t flags)
{
	assert_int_equal(hyp_do(g->hyp, (struct sim_req){.op = SIM_GRANT,
							 .gref = gref,
							 .page = page,
							 .count = count,
							 .domid = domid,
							 .flags = flags}),
			 0);
}

static void revoke_grants(struct guest *g, uint32_t gref, uint32_t count)
{
	assert_int_equal(hyp_do(g->hyp, (struct sim_req){.op = SIM_REVOKE, .gref = gref, .count = count}), 0);
}

static uint8_t *page(const struct guest *g, uint32_t n)
{
	return g->mem + (size_t)n * SIM_PAGE_BYTES;
}

/* Maps one page granted as `gref`, which makes copies legal. */
static struct hyp_map *map_one(struct world *w, uint32_t gref, void **addr)
{
	struct err e = ERR_INIT;
	struct hyp_map *m = NULL;

	if (hyp_map_ring(w->h, w->g.domid, &gref, 1, &m, addr, &e) < 0)
		DIE("%s", e.text);
	return m;
}

struct channel {
	uint32_t port;
	int wait_fd, notify_fd; /* the guest's */
};

static void guest_channel(struct guest *g, uint32_t for_domid, struct channel *ch)
{
	struct sim_rsp rsp;
	int fds[2];

	assert_int_equal(
	    hyp_call(g->hyp, (struct sim_req){.op = SIM_EVTCHN_ALLOC, .domid = for_domid}, &rsp, fds), 0);
	assert_int_equal(rsp.nfds, 2);
	*ch = (struct channel){.port = rsp.port, .wait_fd = fds[0], .notify_fd = fds[1]};
}

static void channel_end(struct channel *ch)
{
	close(ch->wait_fd);
	close(ch->notify_fd);
}

static bool readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) == 1;
}

static void unknown_kind_is_refused_with_a_sentence(void **state)
{
	struct err e = ERR_INIT;
	struct hyp *h = NULL;

	(void)state;
	assert_int_equal(hyp_open("xen", NULL, &h, &e), -ENOTSUP);
	assert_non_null(strstr(e.text, "xen"));
	assert_null(h);
}

static void open_without_simxen_fails_with_a_sentence(void **state)
{
	struct err e = ERR_INIT;
	struct hyp *h = NULL;

	(void)state;
	assert_int_equal(hyp_open("sim", "/nonexistent", &h, &e), -ENOENT);
	assert_non_null(strstr(e.text, "/nonexistent"));
	assert_int_equal(hyp_open("sim", NULL, &h, NULL), -EINVAL);
}

static void ring_pages_far_apart_are_one_range(void **state)
{
	struct world *w = *state;
	uint32_t grefs[HYP_MAX_RING_PAGES];
	struct err e = ERR_INIT;
	struct hyp_map *m;
	void *addr;

	for (uint32_t i = 0; i < HYP_MAX_RING_PAGES; i++) {
		uint32_t at = (i * 37 + 5) % NPAGES; /* a permutation with holes */

		grefs[i] = 100 + 3 * i;
		grant_pages(&w->g, grefs[i], at, 1, 0, 0);
		memset(page(&w->g, at), (int)(i + 1), SIM_PAGE_BYTES);
	}
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, grefs, HYP_MAX_RING_PAGES, &m, &addr, &e), 0);
	for (uint32_t i = 0; i < HYP_MAX_RING_PAGES; i++) {
		const uint8_t *p = (const uint8_t *)addr + (size_t)i * HYP_PAGE_BYTES;

		assert_int_equal(p[0], i + 1);
		assert_int_equal(p[HYP_PAGE_BYTES - 1], i + 1);
	}
	((uint8_t *)addr)[HYP_PAGE_BYTES] = 0xee;
	assert_int_equal(page(&w->g, (37 + 5) % NPAGES)[0], 0xee);
	hyp_unmap(w->h, m);
}

static void ring_of_a_bad_gref_is_refused_as_a_whole(void **state)
{
	struct world *w = *state;
	uint32_t grefs[3] = {20, 21, 22};
	struct err e = ERR_INIT;
	struct hyp_map *m = NULL;
	void *addr;

	grant_pages(&w->g, 20, 0, 3, 0, 0);
	revoke_grants(&w->g, 22, 1);
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, grefs, 3, &m, &addr, &e), -ENOENT);
	assert_non_null(strstr(e.text, "22"));
	grant_pages(&w->g, 22, 2, 1, 0, SIM_GRANT_READONLY);
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, grefs, 3, &m, &addr, NULL), -EACCES);
	grant_pages(&w->g, 22, 2, 1, 7, 0);
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, grefs, 3, &m, &addr, NULL), -EACCES);
	grefs[2] = SIM_GRANTS;
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, grefs, 3, &m, &addr, NULL), -ENOENT);
	grefs[2] = 7;
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, grefs, 3, &m, &addr, NULL), -ENOENT);
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, grefs, 0, &m, &addr, NULL), -EINVAL);
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, grefs, 17, &m, &addr, NULL), -EINVAL);
	assert_null(m);
	/* Nothing of the refused maps is left: without a ring no copy is legal. */
	assert_int_equal(hyp_copy(w->h, w->g.domid, NULL, 0), -ESRCH);
}

static void map_of_no_domain_is_esrch(void **state)
{
	struct world *w = *state;
	uint32_t gref = 8;
	struct hyp_map *m;
	void *addr;

	assert_int_equal(hyp_map_ring(w->h, 12345, &gref, 1, &m, &addr, NULL), -ESRCH);
	assert_int_equal(hyp_map_ring(w->h, 0, &gref, 1, &m, &addr, NULL), -ESRCH);
	assert_int_equal(hyp_map_ring(w->h, 0xffffffff, &gref, 1, &m, &addr, NULL), -ESRCH);
	assert_int_equal(hyp_copy(w->h, 0xffffffff, NULL, 0), -ESRCH);
}

static void guest_without_memory_is_esrch(void **state)
{
	struct world *w = *state;
	struct guest bare;
	uint32_t gref = 8;
	struct hyp_map *m;
	void *addr;

	guest_birth(&server, &bare, SIM_NEW_DOMAIN, 0);
	assert_int_equal(hyp_map_ring(w->h, bare.domid, &gref, 1, &m, &addr, NULL), -ESRCH);
	guest_death(&server, &bare);
}

static void copies_go_both_ways(void **state)
{
	struct world *w = *state;
	uint8_t in[512], out[512];
	struct hyp_map *m;
	void *ring;
	struct hyp_seg segs[2] = {
	    {.local = in, .gref = 31, .offset_bytes = 512, .len_bytes = 512, .dir = HYP_FROM_GUEST},
	    {.local = out, .gref = 32, .offset_bytes = 3584, .len_bytes = 512, .dir = HYP_TO_GUEST},
	};

	grant_pages(&w->g, 30, 10, 3, 0, 0);
	m = map_one(w, 30, &ring);
	memset(page(&w->g, 11), 0x5a, SIM_PAGE_BYTES);
	memset(page(&w->g, 12), 0x11, SIM_PAGE_BYTES);
	memset(out, 0xc3, sizeof(out));
	assert_int_equal(hyp_copy(w->h, w->g.domid, segs, 2), 0);
	assert_int_equal(segs[0].status, HYP_OKAY);
	assert_int_equal(segs[1].status, HYP_OKAY);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(in[i], 0x5a);
	assert_int_equal(page(&w->g, 12)[3583], 0x11);
	assert_int_equal(page(&w->g, 12)[3584], 0xc3);
	assert_int_equal(page(&w->g, 12)[4095], 0xc3);
	assert_int_equal(page(&w->g, 13)[0], 0);
	hyp_unmap(w->h, m);
}

static void bad_segments_fail_alone(void **state)
{
	struct world *w = *state;
	uint8_t buf[8][64];
	struct hyp_counters before, after;
	struct hyp_map *m;
	void *ring;
	struct hyp_seg segs[8];

	memset(buf, 0xaa, sizeof(buf));
	for (unsigned i = 0; i < 8; i++)
		segs[i] = (struct hyp_seg){
		    .local = buf[i], .gref = 40 + i, .len_bytes = 64, .dir = HYP_FROM_GUEST, .status = 99};
	grant_pages(&w->g, 40, 0, 8, 0, 0);
	memset(page(&w->g, 0), 0x77, 8 * SIM_PAGE_BYTES);
	revoke_grants(&w->g, 41, 1);
	grant_pages(&w->g, 42, 2, 1, 5, 0); /* somebody else's */
	segs[3].offset_bytes = 4090;	    /* crosses the page */
	segs[4].gref = 0;		    /* reserved */
	segs[5].gref = 0xffffffff;
	grant_pages(&w->g, 46, 6, 1, 0, SIM_GRANT_READONLY);
	segs[6].dir = HYP_TO_GUEST;
	m = map_one(w, 40, &ring);
	hyp_counters(w->h, &before);
	assert_int_equal(hyp_copy(w->h, w->g.domid, segs, 8), 0);
	hyp_counters(w->h, &after);
	assert_int_equal(segs[0].status, HYP_OKAY);
	assert_int_equal(segs[1].status, HYP_BAD_GREF);
	assert_int_equal(segs[2].status, HYP_GENERAL_ERROR);
	assert_int_equal(segs[3].status, HYP_BAD_COPY_ARG);
	assert_int_equal(segs[4].status, HYP_BAD_GREF);
	assert_int_equal(segs[5].status, HYP_BAD_GREF);
	assert_int_equal(segs[6].status, HYP_GENERAL_ERROR);
	assert_int_equal(segs[7].status, HYP_OKAY);
	assert_int_equal(buf[0][63], 0x77);
	assert_int_equal(buf[7][0], 0x77);
	assert_int_equal(buf[1][0], 0xaa);
	assert_int_equal(page(&w->g, 6)[0], 0x77);
	assert_int_equal(after.copies - before.copies, 1);
	assert_int_equal(after.segs - before.segs, 8);
	assert_int_equal(after.bad_segs - before.bad_segs, 6);
	assert_int_equal(after.copied_bytes - before.copied_bytes, 128);
	/* Read-only grants can be read. */
	segs[6].dir = HYP_FROM_GUEST;
	assert_int_equal(hyp_copy(w->h, w->g.domid, &segs[6], 1), 0);
	assert_int_equal(segs[6].status, HYP_OKAY);
	hyp_unmap(w->h, m);
}

static void full_page_and_empty_segments_are_legal(void **state)
{
	struct world *w = *state;
	uint8_t buf[HYP_PAGE_BYTES];
	struct hyp_map *m;
	void *ring;
	struct hyp_seg segs[3] = {
	    {.local = buf, .gref = 50, .len_bytes = HYP_PAGE_BYTES, .dir = HYP_FROM_GUEST},
	    {.local = buf, .gref = 50, .offset_bytes = HYP_PAGE_BYTES, .len_bytes = 0, .dir = HYP_FROM_GUEST},
	    {.local = buf, .gref = 50, .offset_bytes = 1, .len_bytes = HYP_PAGE_BYTES, .dir = HYP_FROM_GUEST},
	};

	grant_pages(&w->g, 50, NPAGES - 1, 1, 0, 0);
	m = map_one(w, 50, &ring);
	assert_int_equal(hyp_copy(w->h, w->g.domid, segs, 3), 0);
	assert_int_equal(segs[0].status, HYP_OKAY);
	assert_int_equal(segs[1].status, HYP_OKAY);
	assert_int_equal(segs[2].status, HYP_BAD_COPY_ARG);
	hyp_unmap(w->h, m);
}

static void simxen_refuses_grants_outside_of_memory(void **state)
{
	struct world *w = *state;
	int fd = w->g.hyp;

	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_GRANT, .gref = 8, .page = NPAGES, .count = 1}),
			 -EINVAL);
	assert_int_equal(
	    hyp_do(fd, (struct sim_req){.op = SIM_GRANT, .gref = 8, .page = 1, .count = 0xffffffff}),
	    -EINVAL);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_GRANT, .gref = 8, .page = 0, .count = 0}),
			 -EINVAL);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_GRANT, .gref = 7, .page = 0, .count = 1}),
			 -EINVAL);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_GRANT, .gref = SIM_GRANTS, .count = 1}),
			 -EINVAL);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_GRANT, .gref = SIM_GRANTS - 1, .count = 2}),
			 -EINVAL);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_GRANT, .gref = 8, .count = 1, .flags = 4}),
			 -EINVAL);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_REVOKE, .gref = 0, .count = 1}), -EINVAL);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_MEM_CREATE, .count = 1}), -EEXIST);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_GRANT, .gref = SIM_GRANTS - 1, .count = 1}),
			 0);
}

static void roles_are_kept_apart(void **state)
{
	struct world *w = *state;
	int fd = connect_to(server.dir, "hyp", SOCK_SEQPACKET);

	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_MAP, .domid = w->g.domid}), -ENOTCONN);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_HELLO, .domid = w->g.domid}), -EEXIST);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_HELLO, .domid = 0x7ff0}), -EINVAL);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_HELLO}), 0);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_HELLO}), -EISCONN);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_MEM_CREATE, .count = 1}), -EPERM);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_GRANT, .gref = 8, .count = 1}), -EPERM);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = 99}), -ENOSYS);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = 0}), -ENOSYS);
	assert_int_equal(hyp_do(w->g.hyp, (struct sim_req){.op = SIM_MAP, .domid = w->g.domid}), -EPERM);
	assert_int_equal(hyp_do(w->g.hyp, (struct sim_req){.op = SIM_DOMAIN_DESTROY, .domid = w->g.domid}),
			 -EPERM);
	close(fd);
}

static void malformed_message_ends_only_its_connection(void **state)
{
	struct world *w = *state;
	char junk[200] = "junk";
	int fd = connect_to(server.dir, "hyp", SOCK_SEQPACKET);

	assert_int_equal(send(fd, junk, sizeof(junk), MSG_NOSIGNAL), sizeof(junk));
	assert_int_equal(recv(fd, junk, sizeof(junk), 0), 0);
	close(fd);
	fd = connect_to(server.dir, "hyp", SOCK_SEQPACKET);
	assert_int_equal(send(fd, junk, sizeof(struct sim_req), MSG_NOSIGNAL), sizeof(struct sim_req));
	assert_int_equal(recv(fd, junk, sizeof(junk), 0), 0);
	close(fd);
	grant_pages(&w->g, 8, 0, 1, 0, 0);
}

/* A client that never takes an answer fills its socket and is cut off; everyone else is served. */
static void client_that_never_reads_is_cut_off(void **state)
{
	struct world *w = *state;
	const struct sim_req q = {.magic = SIM_MAGIC, .op = SIM_DOMAIN_LIST};
	int fd = connect_to(server.dir, "hyp", SOCK_SEQPACKET), i;

	for (i = 0; i < 100000; i++)
		if (send(fd, &q, sizeof(q), MSG_NOSIGNAL) < 0)
			break;
	assert_true(i < 100000);
	assert_true(errno == EPIPE || errno == ECONNRESET);
	close(fd);
	grant_pages(&w->g, 8, 0, 1, 0, 0);
}

static void memory_and_grant_table_cannot_be_resized(void **state)
{
	struct world *w = *state;
	int fd = connect_to(server.dir, "hyp", SOCK_SEQPACKET), fds[2];
	struct sim_rsp rsp;

	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_HELLO}), 0);
	assert_int_equal(hyp_call(fd, (struct sim_req){.op = SIM_MAP, .domid = w->g.domid}, &rsp, fds), 0);
	assert_int_equal(rsp.count, NPAGES);
	for (int i = 0; i < 2; i++) {
		int seals = fcntl(fds[i], F_GET_SEALS);

		assert_int_equal(seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
				 F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
		assert_int_equal(ftruncate(fds[i], 0), -1);
	}
	assert_ptr_equal(mmap(NULL, SIM_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0),
			 MAP_FAILED);
	close(fds[0]);
	close(fds[1]);
	close(fd);
}

static void channel_is_pending_right_after_its_bind(void **state)
{
	struct world *w = *state;
	struct hyp_evtchn *ch;
	struct channel gc;

	guest_channel(&w->g, 0, &gc);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &ch, NULL), 0);
	assert_true(readable(hyp_evtchn_fd(ch)));
	assert_int_equal(hyp_ack(ch), 1);
	assert_int_equal(hyp_unmask(ch), 0);
	assert_false(readable(hyp_evtchn_fd(ch)));
	assert_int_equal(hyp_ack(ch), 0);
	assert_false(readable(gc.wait_fd));
	hyp_unbind(ch);
	channel_end(&gc);
}

static void notifications_reach_the_other_side(void **state)
{
	struct world *w = *state;
	struct hyp_counters before, after;
	struct hyp_evtchn *ch;
	struct channel gc;
	uint64_t n = 1;

	guest_channel(&w->g, 0, &gc);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &ch, NULL), 0);
	assert_int_equal(hyp_ack(ch), 1);
	hyp_counters(w->h, &before);
	assert_int_equal(hyp_notify(ch), 0);
	assert_int_equal(hyp_notify(ch), 0);
	hyp_counters(w->h, &after);
	assert_int_equal(after.notifies - before.notifies, 2);
	assert_true(readable(gc.wait_fd));
	assert_int_equal(read(gc.wait_fd, &n, sizeof(n)), sizeof(n));
	assert_int_equal(n, 2);
	n = 1;
	assert_int_equal(write(gc.notify_fd, &n, sizeof(n)), sizeof(n));
	assert_true(readable(hyp_evtchn_fd(ch)));
	assert_int_equal(hyp_ack(ch), 1);
	hyp_unbind(ch);
	channel_end(&gc);
}

static void notify_to_a_full_counter_does_not_block(void **state)
{
	struct world *w = *state;
	uint64_t most = UINT64_MAX - 1;
	struct hyp_evtchn *ch;
	struct channel gc;

	guest_channel(&w->g, 0, &gc);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &ch, NULL), 0);
	assert_int_equal(write(gc.wait_fd, &most, sizeof(most)), sizeof(most));
	assert_int_equal(hyp_notify(ch), 0);
	hyp_unbind(ch);
	channel_end(&gc);
}

static void bind_is_refused_where_xen_refuses_it(void **state)
{
	struct world *w = *state;
	struct err e = ERR_INIT;
	struct hyp_evtchn *ch, *other = NULL;
	struct channel gc, foreign;

	guest_channel(&w->g, 0, &gc);
	guest_channel(&w->g, 9, &foreign);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &ch, &e), 0);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &other, &e), -EBUSY);
	assert_int_equal(hyp_bind(w->h, w->g.domid, foreign.port, &other, &e), -EINVAL);
	assert_int_equal(hyp_bind(w->h, w->g.domid, 4711, &other, &e), -EINVAL);
	assert_int_equal(hyp_bind(w->h, w->g.domid, 0, &other, &e), -EINVAL);
	assert_int_equal(hyp_bind(w->h, 12345, gc.port, &other, &e), -ESRCH);
	assert_null(other);
	hyp_unbind(ch);
	channel_end(&gc);
	channel_end(&foreign);
}

static void unbound_port_drops_notifications_and_binds_again(void **state)
{
	struct world *w = *state;
	struct hyp_evtchn *ch;
	struct channel gc;
	uint64_t n = 3;

	guest_channel(&w->g, 0, &gc);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &ch, NULL), 0);
	hyp_unbind(ch);
	assert_int_equal(write(gc.notify_fd, &n, sizeof(n)), sizeof(n));
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &ch, NULL), 0);
	assert_int_equal(read(hyp_evtchn_fd(ch), &n, sizeof(n)), sizeof(n));
	assert_int_equal(n, 1); /* what the bind itself set, nothing older */
	hyp_unbind(ch);
	channel_end(&gc);
}

static void channel_of_a_dead_backend_can_be_bound_by_the_next(void **state)
{
	struct world *w = *state;
	struct hyp_evtchn *ch;
	struct hyp *next;
	struct channel gc;
	pid_t pid;
	int status, ready[2];
	char c;

	guest_channel(&w->g, 0, &gc);
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		struct hyp *h;

		if (hyp_open("sim", server.dir, &h, NULL) < 0 ||
		    hyp_bind(h, w->g.domid, gc.port, &ch, NULL) < 0)
			_exit(1);
		if (write(ready[1], "x", 1) != 1)
			_exit(1);
		pause();
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &ch, NULL), -EBUSY);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(hyp_open("sim", server.dir, &next, NULL), 0);
	assert_int_equal(hyp_bind(next, w->g.domid, gc.port, &ch, NULL), 0);
	assert_int_equal(hyp_ack(ch), 1);
	assert_int_equal(hyp_notify(ch), 0);
	assert_true(readable(gc.wait_fd));
	hyp_unbind(ch);
	hyp_close(next);
	channel_end(&gc);
}

static void guest_that_closes_its_port_takes_it_away(void **state)
{
	struct world *w = *state;
	struct hyp_evtchn *ch, *again;
	struct channel gc;

	guest_channel(&w->g, 0, &gc);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &ch, NULL), 0);
	assert_int_equal(hyp_do(w->g.hyp, (struct sim_req){.op = SIM_EVTCHN_CLOSE, .port = gc.port}), 0);
	assert_int_equal(hyp_do(w->g.hyp, (struct sim_req){.op = SIM_EVTCHN_CLOSE, .port = gc.port}),
			 -EINVAL);
	assert_int_equal(hyp_notify(ch), 0);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &again, NULL), -EINVAL);
	hyp_unbind(ch);
	channel_end(&gc);
}

static void ports_of_a_guest_are_bounded(void **state)
{
	struct world *w = *state;
	struct sim_rsp rsp;
	int fds[2], rc = 0, n;

	for (n = 0; n < 10000; n++) {
		rc = hyp_call(w->g.hyp, (struct sim_req){.op = SIM_EVTCHN_ALLOC}, &rsp, fds);
		if (rc < 0)
			break;
		close(fds[0]);
		close(fds[1]);
	}
	assert_int_equal(rc, -ENOSPC);
	assert_true(n >= 64);
}

static void death_while_mapped_fails_copies_and_never_faults(void **state)
{
	struct world *w = *state;
	uint8_t buf[64];
	struct hyp_evtchn *ch;
	struct hyp_map *m, *late = NULL;
	struct channel gc;
	void *ring;
	uint32_t gref = 60;
	struct hyp_seg seg = {.local = buf, .gref = 61, .len_bytes = 64, .dir = HYP_TO_GUEST};

	grant_pages(&w->g, 60, 4, 2, 0, 0);
	guest_channel(&w->g, 0, &gc);
	assert_int_equal(hyp_bind(w->h, w->g.domid, gc.port, &ch, NULL), 0);
	m = map_one(w, 60, &ring);
	channel_end(&gc);
	guest_death(&server, &w->g);
	assert_int_equal(hyp_copy(w->h, w->g.domid, &seg, 1), 0);
	assert_true(seg.status < 0);
	memset(ring, 1, HYP_PAGE_BYTES);
	assert_int_equal(hyp_notify(ch), 0);
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, &gref, 1, &late, &ring, NULL), -ESRCH);
	hyp_unbind(ch);
	hyp_unmap(w->h, m);
	assert_int_equal(hyp_copy(w->h, w->g.domid, &seg, 1), -ESRCH);
}

static void reborn_domid_is_another_domain(void **state)
{
	struct world *w = *state;
	struct err e = ERR_INIT;
	struct guest again;
	struct hyp_map *old, *m = NULL;
	uint32_t domid = w->g.domid, gref = 70;
	uint8_t buf[16];
	void *addr;
	struct hyp_seg seg = {.local = buf, .gref = 70, .len_bytes = 16, .dir = HYP_FROM_GUEST};

	grant_pages(&w->g, 70, 0, 1, 0, 0);
	old = map_one(w, 70, &addr);
	guest_death(&server, &w->g);
	guest_birth(&server, &again, domid, NPAGES);
	assert_int_equal(again.domid, domid);
	grant_pages(&again, 70, 0, 1, 0, 0);
	memset(page(&again, 0), 0x42, SIM_PAGE_BYTES);
	/* The old rings still name the dead domain's memory, never the new one's. */
	assert_int_equal(hyp_copy(w->h, domid, &seg, 1), 0);
	assert_true(seg.status < 0);
	assert_int_equal(hyp_map_ring(w->h, domid, &gref, 1, &m, &addr, &e), -EBUSY);
	hyp_unmap(w->h, old);
	assert_int_equal(hyp_map_ring(w->h, domid, &gref, 1, &m, &addr, &e), 0);
	assert_int_equal(hyp_copy(w->h, domid, &seg, 1), 0);
	assert_int_equal(seg.status, HYP_OKAY);
	assert_int_equal(buf[0], 0x42);
	hyp_unmap(w->h, m);
	guest_death(&server, &again);
}

static void domains_are_listed_and_destroyed(void **state)
{
	struct world *w = *state;
	int fd = connect_to(server.dir, "hyp", SOCK_SEQPACKET), fds[2];
	struct sim_rsp rsp;
	char c;

	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_HELLO}), 0);
	assert_int_equal(hyp_call(fd, (struct sim_req){.op = SIM_DOMAIN_LIST}, &rsp, fds), 0);
	assert_int_equal(rsp.count, 1);
	assert_int_equal(rsp.domid, w->g.domid);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_DOMAIN_DESTROY, .domid = 12345}), -ESRCH);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_DOMAIN_DESTROY, .domid = 0}), -ESRCH);
	assert_int_equal(hyp_do(fd, (struct sim_req){.op = SIM_DOMAIN_DESTROY, .domid = w->g.domid}), 0);
	assert_int_equal(recv(w->g.hyp, &c, 1, 0), 0);
	assert_int_equal(hyp_call(fd, (struct sim_req){.op = SIM_DOMAIN_LIST}, &rsp, fds), 0);
	assert_int_equal(rsp.count, 0);
	assert_int_equal(rsp.domid, 0);
	close(fd);
}

struct copier {
	pthread_t thread;
	struct world *w;
	uint32_t gref;
	uint64_t ok, bad;
};

static void *copy_often(void *arg)
{
	struct copier *c = arg;
	uint8_t buf[256];

	for (int i = 0; i < 20000; i++) {
		struct hyp_seg seg = {
		    .local = buf, .gref = c->gref, .len_bytes = sizeof(buf), .dir = HYP_FROM_GUEST};

		if (hyp_copy(c->w->h, c->w->g.domid, &seg, 1) == 0 && seg.status == HYP_OKAY)
			c->ok++;
		else
			c->bad++;
	}
	return NULL;
}

/* Two device threads copy while the control path maps and unmaps rings of the same and of another domain. */
static void copies_run_beside_the_control_path(void **state)
{
	struct world *w = *state;
	struct copier copiers[2];
	struct hyp_counters cnt;
	struct guest other;
	struct hyp_map *keep;
	uint32_t gref = 80;
	void *addr;

	grant_pages(&w->g, 80, 0, 4, 0, 0);
	guest_birth(&server, &other, SIM_NEW_DOMAIN, NPAGES);
	grant_pages(&other, 80, 0, 4, 0, 0);
	keep = map_one(w, 80, &addr);
	for (uint32_t i = 0; i < 2; i++) {
		copiers[i] = (struct copier){.w = w, .gref = 81 + i};
		assert_int_equal(pthread_create(&copiers[i].thread, NULL, copy_often, &copiers[i]), 0);
	}
	for (int i = 0; i < 200; i++) {
		struct hyp_map *a, *b;

		assert_int_equal(hyp_map_ring(w->h, w->g.domid, &gref, 1, &a, &addr, NULL), 0);
		assert_int_equal(hyp_map_ring(w->h, other.domid, &gref, 1, &b, &addr, NULL), 0);
		hyp_unmap(w->h, a);
		hyp_unmap(w->h, b);
	}
	for (uint32_t i = 0; i < 2; i++) {
		pthread_join(copiers[i].thread, NULL);
		assert_int_equal(copiers[i].bad, 0);
	}
	hyp_counters(w->h, &cnt);
	assert_int_equal(cnt.segs, 40000);
	hyp_unmap(w->h, keep);
	guest_death(&server, &other);
}

/* Comes last: without simxen the control path fails with an error, and what is mapped goes on. */
static void simxen_gone_fails_control_calls_only(void **state)
{
	struct world *w = *state;
	uint8_t buf[16];
	uint32_t gref = 90;
	struct hyp_map *m, *late;
	void *addr;
	struct hyp_seg seg = {.local = buf, .gref = 90, .len_bytes = 16, .dir = HYP_FROM_GUEST};

	grant_pages(&w->g, 90, 0, 1, 0, 0);
	m = map_one(w, 90, &addr);
	kill(server.pid, SIGKILL);
	waitpid(server.pid, NULL, 0);
	assert_int_equal(hyp_copy(w->h, w->g.domid, &seg, 1), 0);
	assert_int_equal(seg.status, HYP_OKAY);
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, &gref, 1, &late, &addr, NULL), -ENOTCONN);
	assert_int_equal(hyp_map_ring(w->h, w->g.domid, &gref, 1, &late, &addr, NULL), -ENOTCONN);
	hyp_unmap(w->h, m);
	close(w->g.hyp);
	munmap(w->g.mem, (size_t)NPAGES * SIM_PAGE_BYTES);
	w->g.hyp = -1;
	/* A new one takes the directory over, stale sockets and all. */
	server.pid = simxen_spawn(server.dir);
}

/* A server that lies: it greets, then answers one request for memory as it is told to. */
struct liar {
	pthread_t thread;
	struct simxen where; /* no process: only the directory */
	int listen_fd;
	uint32_t count, nfds;
	uint64_t mem_bytes, table_bytes;
	int seals;
	uint32_t magic;
};

static int lying_memfd(uint64_t bytes, int seals)
{
	int fd = memfd_create("liar", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 || fcntl(fd, F_ADD_SEALS, seals) < 0)
		DIE("memfd: %s", strerror(errno));
	return fd;
}

static void *lie(void *arg)
{
	struct liar *l = arg;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(2 * sizeof(int))];
	} control = {.bytes = {0}};
	int fd = accept(l->listen_fd, NULL, NULL), fds[2];
	struct sim_req q;
	struct sim_rsp r = {.magic = SIM_MAGIC};
	struct iovec iov = {.iov_base = &r, .iov_len = sizeof(r)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	fds[0] = lying_memfd(l->mem_bytes, l->seals);
	fds[1] = lying_memfd(l->table_bytes, l->seals);
	while (recv(fd, &q, sizeof(q), 0) == (ssize_t)sizeof(q)) {
		r.op = q.op;
		if (q.op == SIM_MAP) {
			r.magic = l->magic;
			r.count = l->count;
			r.nfds = l->nfds;
			control.align.cmsg_level = SOL_SOCKET;
			control.align.cmsg_type = SCM_RIGHTS;
			control.align.cmsg_len = CMSG_LEN(sizeof(fds));
			memcpy(CMSG_DATA(&control.align), fds, sizeof(fds));
			msg.msg_control = control.bytes;
			msg.msg_controllen = sizeof(control.bytes);
		}
		if (sendmsg(fd, &msg, MSG_NOSIGNAL) < 0)
			break;
	}
	close(fd);
	close(fds[0]);
	close(fds[1]);
	return NULL;
}

static int map_from_liar(struct liar l)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	uint32_t gref = 8;
	struct hyp_map *m;
	struct hyp *h;
	void *a;
	int rc;

	strcpy(l.where.dir, "/tmp/simxen-test-XXXXXX");
	assert_non_null(mkdtemp(l.where.dir));
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/hyp", l.where.dir);
	l.listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(l.listen_fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(l.listen_fd, 1), 0);
	assert_int_equal(pthread_create(&l.thread, NULL, lie, &l), 0);
	assert_int_equal(hyp_open("sim", l.where.dir, &h, NULL), 0);
	rc = hyp_map_ring(h, 1, &gref, 1, &m, &a, NULL);
	hyp_close(h);
	pthread_join(l.thread, NULL);
	close(l.listen_fd);
	simxen_remove_dir(&l.where);
	return rc;
}

static void memory_that_could_fault_is_not_mapped(void **state)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	const uint64_t table = SIM_GRANTS * sizeof(struct sim_grant);
	const struct liar honest = {.count = 4,
				    .nfds = 2,
				    .mem_bytes = 4 * 4096,
				    .table_bytes = table,
				    .seals = seals,
				    .magic = SIM_MAGIC};
	struct liar l = honest;

	(void)state;
	assert_int_equal(map_from_liar(l), -ENOENT); /* all in order, but nothing is granted */
	l.seals = F_SEAL_GROW | F_SEAL_SEAL;
	assert_int_equal(map_from_liar(l), -EIO);
	l = honest;
	l.mem_bytes = 3 * 4096;
	assert_int_equal(map_from_liar(l), -EIO);
	l = honest;
	l.table_bytes = table - 8;
	assert_int_equal(map_from_liar(l), -EIO);
	l = honest;
	l.count = 0;
	assert_int_equal(map_from_liar(l), -EIO);
	l.count = 0xffffffff;
	assert_int_equal(map_from_liar(l), -EIO);
	l = honest;
	l.nfds = 1;
	assert_int_equal(map_from_liar(l), -EPROTO);
	l = honest;
	l.magic = 0;
	assert_int_equal(map_from_liar(l), -EPROTO);
}

#define T(name) cmocka_unit_test_setup_teardown(name, world_make, world_end)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(unknown_kind_is_refused_with_a_sentence),
	    T(open_without_simxen_fails_with_a_sentence),
	    T(ring_pages_far_apart_are_one_range),
	    T(ring_of_a_bad_gref_is_refused_as_a_whole),
	    T(map_of_no_domain_is_esrch),
	    T(guest_without_memory_is_esrch),
	    T(copies_go_both_ways),
	    T(bad_segments_fail_alone),
	    T(full_page_and_empty_segments_are_legal),
	    T(simxen_refuses_grants_outside_of_memory),
	    T(roles_are_kept_apart),
	    T(malformed_message_ends_only_its_connection),
	    T(client_that_never_reads_is_cut_off),
	    T(memory_and_grant_table_cannot_be_resized),
	    T(memory_that_could_fault_is_not_mapped),
	    T(channel_is_pending_right_after_its_bind),
	    T(notifications_reach_the_other_side),
	    T(notify_to_a_full_counter_does_not_block),
	    T(bind_is_refused_where_xen_refuses_it),
	    T(unbound_port_drops_notifications_and_binds_again),
	    T(channel_of_a_dead_backend_can_be_bound_by_the_next),
	    T(guest_that_closes_its_port_takes_it_away),
	    T(ports_of_a_guest_are_bounded),
	    T(death_while_mapped_fails_copies_and_never_faults),
	    T(reborn_domid_is_another_domain),
	    T(domains_are_listed_and_destroyed),
	    T(copies_run_beside_the_control_path),
	    T(simxen_gone_fails_control_calls_only),
	};
	int failed;

	simxen_start(&server);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	if (simxen_end(&server) != 0) {
		fprintf(stderr, "simxen did not exit with 0\n");
		failed++;
	}
	simxen_remove_dir(&server);
	return failed;
}
