/*
 * The life of the guest's disks: toolstack's plug (if asked), handshake, model, phases, close. The model
 * outlives a connection, so that a disk which is closed and opened again must still hold what it held.
 */
#include "sim/simguest/session.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sim/simguest/toolstack.h"

#define RAW_CHUNK (1u << 20)

static void state_path(const struct options *o, const struct disk_spec *spec, char *out, size_t len)
{
	if (o->ndisks > 1)
		snprintf(out, len, "%s.%" PRIu32, o->state, spec->devid);
	else
		snprintf(out, len, "%s", o->state);
}

/* Every disk: has it arrived? */
static bool connected(const struct vbd *v)
{
	return v->state == FRONT_CONNECTED || v->state == FRONT_FAILED;
}

static bool asked_to_close(const struct vbd *v)
{
	return v->closing || v->gone || v->state != FRONT_CONNECTED;
}

static bool closed(const struct vbd *v)
{
	return (v->state == FRONT_CLOSED && v->gone) || v->state == FRONT_FAILED ||
	       v->state < FRONT_CONNECTED;
}

/* True when `done` holds for all disks within the time. A signal ends the wait only if asked for. */
static int wait_all(struct guest *g, bool (*done)(const struct vbd *), bool stoppable)
{
	uint64_t until = now_ns() + g->opt->timeout_s * 1000000000ull;

	for (;;) {
		bool all = true;
		int err;

		for (unsigned i = 0; i < g->nvbds; i++)
			all &= done(&g->vbd[i]);
		if (all)
			return 0;
		if (stoppable && guest_stop)
			return -EINTR;
		if (now_ns() >= until)
			return -ETIMEDOUT;
		err = guest_wait(g, 100);
		if (err)
			return err;
	}
}

static int open_model(struct guest *g, struct vbd *v)
{
	const struct options *o = g->opt;
	char path[4096];
	int err = -ENOENT;

	if (o->state) {
		state_path(o, v->spec, path, sizeof(path));
		err = model_load(&v->model, path);
		if (err && (err != -ENOENT || o->verify_only)) {
			note("%s: %s", path,
			     err == -EINVAL ? "not a state file, or damaged" : strerror(-err));
			return err;
		}
		if (!err && v->model.sectors > v->sectors) {
			note("%s: is of a disk of %" PRIu64 " sectors, this one has %" PRIu64, path,
			     v->model.sectors, v->sectors);
			model_destroy(&v->model);
			return -EINVAL;
		}
		if (!err)
			err = model_resize(&v->model, v->sectors);
	}
	if (err == -ENOENT)
		err = model_create(&v->model, v->sectors, o->seed == UINT64_MAX ? g->hyp.domid : o->seed);
	if (err)
		return err;
	v->have_model = true;
	if (o->base || o->base_zero)
		err = model_set_base(&v->model, o->base);
	if (err)
		note("%s: %s", o->base, strerror(-err));
	return err;
}

static int connect_all(struct guest *g)
{
	int err = wait_all(g, connected, true);

	for (unsigned i = 0; i < g->nvbds; i++) {
		struct vbd *v = &g->vbd[i];

		if (v->state != FRONT_CONNECTED) {
			note("%s: not connected: %s (frontend %s, backend state %" PRIu64 ")", v->name,
			     v->reason[0] ? v->reason : strerror(err ? -err : ECONNREFUSED),
			     front_state_name(v->state), v->be_state);
			toolstack_show_error(g, v);
			err = err ? err : -ECONNREFUSED;
		}
	}
	for (unsigned i = 0; i < g->nvbds && !err; i++) {
		if (!g->vbd[i].have_model)
			err = open_model(g, &g->vbd[i]);
	}
	return err;
}

static bool any_leaving(const struct guest *g)
{
	for (unsigned i = 0; i < g->nvbds; i++) {
		if (asked_to_close(&g->vbd[i]))
			return true;
	}
	return false;
}

static int run_phases(struct guest *g, struct report *r)
{
	int err = 0;

	for (unsigned i = 0; i < g->opt->nphases && !err && !guest_stop && !any_leaving(g); i++)
		err = load_run(g, &g->opt->phase[i], &r->results[r->nruns++ * g->nvbds]);
	while (!err && g->opt->hold && !guest_stop && !any_leaving(g))
		err = guest_wait(g, 1000);
	return err;
}

/* `detach`: the toolstack begins for its own disks; else the guest does, as a driver that is unloaded. */
static int close_all(struct guest *g, bool detach)
{
	int err = 0;

	for (unsigned i = 0; i < g->nvbds && detach; i++) {
		struct vbd *v = &g->vbd[i];

		if (v->spec->params && v->state == FRONT_CONNECTED && !v->gone)
			toolstack_detach(g, v);
	}
	for (unsigned i = 0; i < g->nvbds && !err; i++) {
		struct vbd *v = &g->vbd[i];

		if (v->state != FRONT_CONNECTED)
			continue;
		/* With a detach under way the backend's Closing is in xenstore already: the frontend follows
		 * it. */
		err = front_begin_close(g, v);
	}
	if (!err)
		err = wait_all(g, closed, false);
	for (unsigned i = 0; i < g->nvbds; i++) {
		struct vbd *v = &g->vbd[i];

		if (!closed(v))
			tally_add(&v->tally, FAULT_LOST, 1,
				  "the backend did not close in time (its state is %" PRIu64 ")",
				  v->be_state);
		front_release(g, v);
	}
	return err == -ETIMEDOUT ? 0 : err;
}

static void save_states(struct guest *g)
{
	char path[4096];

	for (unsigned i = 0; g->opt->state && !g->opt->verify_only && i < g->nvbds; i++) {
		int err;

		if (!g->vbd[i].have_model)
			continue;
		state_path(g->opt, g->vbd[i].spec, path, sizeof(path));
		err = model_save(&g->vbd[i].model, path);
		if (err)
			note("%s: %s", path, strerror(-err));
	}
}

static bool any_fault(const struct guest *g)
{
	for (unsigned i = 0; i < g->nvbds; i++) {
		const uint64_t *n = g->vbd[i].tally.count;

		if (n[FAULT_PROTOCOL] || n[FAULT_VERIFY] || n[FAULT_STALL] ||
		    (n[FAULT_IO] && !g->opt->expect_errors) || (n[FAULT_LOST] && !g->opt->expect_close))
			return true;
	}
	return false;
}

static int plug_all(struct guest *g)
{
	int err = 0;

	for (unsigned i = 0; i < g->nvbds && !err; i++)
		err = front_start(g, &g->vbd[i]);
	for (unsigned i = 0; i < g->nvbds && !err; i++) {
		if (g->vbd[i].spec->params)
			err = toolstack_plug(g, &g->vbd[i]);
	}
	if (err)
		note("plugging the disks: %s", strerror(-err));
	return err;
}

/* One cycle: connect, load, close. */
static int cycle(struct guest *g, struct report *r, bool last)
{
	int err = connect_all(g), close_err;

	if (err)
		return err;
	err = run_phases(g, r);
	if (g->opt->abandon && last)
		return err;
	close_err = close_all(g, last);
	return err ? err : close_err;
}

int session_run(struct guest *g, struct report *r)
{
	int err = 0;

	r->results = calloc((size_t)g->opt->cycles * (g->opt->nphases + 1) * g->nvbds, sizeof(*r->results));
	if (!r->results)
		return EXIT_SETUP;
	err = plug_all(g);
	for (uint32_t c = 0; c < g->opt->cycles && !err && !guest_stop; c++) {
		for (unsigned i = 0; i < g->nvbds && c && !err; i++)
			err = front_restart(g, &g->vbd[i]);
		if (!err)
			err = cycle(g, r, c + 1 == g->opt->cycles);
	}
	for (unsigned i = 0; i < g->nvbds && !g->opt->abandon; i++) {
		if (g->vbd[i].spec->params)
			toolstack_remove(g, &g->vbd[i]);
	}
	save_states(g);
	if (err && err != -EINTR)
		note("ended: %s", strerror(-err));
	return any_fault(g) ? EXIT_FAULTS : err && err != -EINTR ? EXIT_SETUP : EXIT_GOOD;
}

static int check_chunk(struct model *m, struct tally *t, int fd, uint64_t sector, uint8_t *buf)
{
	uint64_t left = m->sectors - sector;
	uint32_t n = left < RAW_CHUNK / SECTOR_BYTES ? (uint32_t)left : RAW_CHUNK / SECTOR_BYTES;
	char why[200];
	uint32_t bad;

	for (size_t got = 0, want = (size_t)n * SECTOR_BYTES; got < want;) {
		ssize_t len = pread(fd, buf + got, want - got, (off_t)(sector * SECTOR_BYTES + got));

		if (len <= 0)
			return len < 0 ? -errno : -ENODATA;
		got += (size_t)len;
	}
	bad = model_check(m, sector, n, buf, NULL, CHECK_OK, why, sizeof(why));
	if (bad)
		tally_add(t, FAULT_VERIFY, bad, "%s", why);
	return 0;
}

int session_check_raw(const struct options *o)
{
	struct tally t = {.who = o->check_raw};
	struct model m;
	uint8_t *buf = malloc(RAW_CHUNK);
	int fd = -1, err;

	err = buf ? model_load(&m, o->state) : -ENOMEM;
	if (err) {
		note("%s: %s", o->state, strerror(-err));
		free(buf);
		return EXIT_SETUP;
	}
	if (o->base || o->base_zero)
		err = model_set_base(&m, o->base);
	if (!err) {
		fd = open(o->check_raw, O_RDONLY | O_CLOEXEC);
		err = fd < 0 ? -errno : 0;
	}
	for (uint64_t s = 0; s < m.sectors && !err; s += RAW_CHUNK / SECTOR_BYTES)
		err = check_chunk(&m, &t, fd, s, buf);
	if (err)
		note("%s: %s", o->check_raw, err == -ENODATA ? "shorter than the disk" : strerror(-err));
	else
		note("%s: %" PRIu64 " sectors, %" PRIu64 " wrong", o->check_raw, m.sectors,
		     t.count[FAULT_VERIFY]);
	if (fd >= 0)
		close(fd);
	model_destroy(&m);
	free(buf);
	return err ? EXIT_SETUP : t.count[FAULT_VERIFY] ? EXIT_FAULTS : EXIT_GOOD;
}
