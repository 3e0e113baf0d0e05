/*
 * Birth, memory and sleep of the guest.
 *
 * Memory, in pages: per disk the rings, then one arena for I/O buffers that each phase carves anew, sized for
 * the greediest phase. A page has one grant reference for ever (page + 8), so arenas of all disks must fit a
 * grant table.
 */
#include "sim/simguest/guest.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sim/simguest/load.h"
#include "sim/simproto.h"

volatile sig_atomic_t guest_stop;

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void name_disk(struct vbd *v)
{
	uint32_t devid = v->spec->devid;

	if (devid >> 8 == 202 && (devid & 15) == 0)
		snprintf(v->name, sizeof(v->name), "xvd%c", (char)('a' + ((devid >> 4) & 15)));
	else
		snprintf(v->name, sizeof(v->name), "vbd-%" PRIu32, devid);
}

/* Gives each disk its pages; returns how many that are. */
static uint64_t lay_out(struct guest *g)
{
	uint64_t page = 0, arena = 0;

	for (unsigned i = 0; i < g->opt->nphases; i++) {
		uint64_t need = load_pages(&g->opt->phase[i]);

		if (need > arena)
			arena = need;
	}
	for (unsigned i = 0; i < g->nvbds; i++) {
		g->vbd[i].ring_page0 = (uint32_t)page;
		page += (uint64_t)g->opt->queues << g->opt->ring_order;
		g->vbd[i].arena_page0 = (uint32_t)page;
		g->vbd[i].arena_pages = (uint32_t)arena;
		page += arena;
	}
	return page;
}

static int dial(struct xw *x, const char *dir, const char *name)
{
	char path[512];
	int err;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	err = xw_dial(x, path);
	if (err)
		note("%s: %s", path, strerror(-err));
	return err;
}

int guest_open(struct guest *g, const struct options *opt)
{
	char name[32];
	uint64_t pages;
	int err;

	*g = (struct guest){.opt = opt, .hyp.fd = -1, .xs.fd = -1, .dom0.fd = -1, .nvbds = opt->ndisks};
	for (unsigned i = 0; i < g->nvbds; i++) {
		g->vbd[i].spec = &opt->disk[i];
		name_disk(&g->vbd[i]);
		g->vbd[i].tally.who = g->vbd[i].name;
	}
	pages = lay_out(g);
	if (pages > SIM_GRANTS - GREF_FIRST) {
		note("iodepth and bs want %" PRIu64 " pages, a grant table has %u", pages,
		     SIM_GRANTS - GREF_FIRST);
		return -ENOSPC;
	}
	err = hyp_open(&g->hyp, opt->dir, opt->domid);
	if (err) {
		note("%s/hyp: %s", opt->dir, strerror(-err));
		return err;
	}
	err = hyp_mem_create(&g->hyp, (uint32_t)pages);
	if (err) {
		note("%" PRIu64 " pages of memory: %s", pages, strerror(-err));
		return err;
	}
	snprintf(name, sizeof(name), "xs-dom%" PRIu32, g->hyp.domid);
	err = dial(&g->xs, opt->dir, name);
	for (unsigned i = 0; i < g->nvbds && !err; i++) {
		if (opt->disk[i].params && g->dom0.fd < 0)
			err = dial(&g->dom0, opt->dir, "socket");
	}
	return err;
}

void guest_close(struct guest *g)
{
	for (unsigned i = 0; i < g->nvbds; i++) {
		struct vbd *v = &g->vbd[i];

		for (unsigned q = 0; q < v->nrings; q++)
			ring_destroy(&v->ring[q]);
		if (v->have_model)
			model_destroy(&v->model);
	}
	xw_hangup(&g->xs);
	xw_hangup(&g->dom0);
	hyp_close(&g->hyp);
}

static int dispatch(struct guest *g)
{
	struct xw_event *e;
	bool any = false;
	int err = xw_pump(&g->xs);

	while ((e = xw_next_event(&g->xs))) {
		any = true;
		free(e);
	}
	for (unsigned i = 0; any && !err && i < g->nvbds; i++)
		err = front_step(g, &g->vbd[i]);
	return err;
}

int guest_wait(struct guest *g, int timeout_ms)
{
	struct pollfd pfd[2 + MAX_DISKS * MAX_QUEUES];
	nfds_t n = 2;
	uint64_t drop;

	/* Events that came while an answer was awaited are in the queue, not in the socket. */
	if (g->xs.head)
		timeout_ms = 0;
	pfd[0] = (struct pollfd){.fd = g->hyp.fd, .events = POLLIN};
	pfd[1] = (struct pollfd){.fd = g->xs.fd, .events = POLLIN};
	for (unsigned i = 0; i < g->nvbds; i++) {
		for (unsigned q = 0; q < g->vbd[i].nrings; q++)
			pfd[n++] = (struct pollfd){.fd = g->vbd[i].ring[q].ec.wait_fd, .events = POLLIN};
	}
	if (poll(pfd, n, timeout_ms) < 0)
		return errno == EINTR ? 0 : -errno;
	for (nfds_t i = 2; i < n; i++) {
		if (pfd[i].revents && read(pfd[i].fd, &drop, sizeof(drop)) < 0 && errno != EAGAIN)
			return -errno;
	}
	if (pfd[0].revents) {
		note("the domain was destroyed");
		return -ECONNRESET;
	}
	return pfd[1].revents || g->xs.head ? dispatch(g) : 0;
}
