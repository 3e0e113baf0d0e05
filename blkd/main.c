/*
 * blkd: the datapath daemon. Reads its options, opens the hypervisor, starts the backend, the NBD server and
 * the control socket, and waits for a signal. SIGTERM and SIGINT: takes no more calls, detaches and drains
 * every device, closes the images cleanly, exits 0.
 *
 * Runs in the foreground and logs to stderr: whoever supervises it does the rest.
 */
#include "blkd/blkif.h"
#include "blkd/cache.h"
#include "blkd/conf.h"
#include "blkd/ctl.h"
#include "blkd/err.h"
#include "blkd/hyp.h"
#include "blkd/log.h"
#include "blkd/nbd.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_CONFIG "/etc/blkd.conf"

static const struct opt_desc options[] = {
    {"config", "FILE", NULL,
     "config file: lines of name = value with these names; " DEFAULT_CONFIG " if it exists"},
    {"run-dir", "DIR", "/run/blkd", "control socket, NBD socket and in-flight journals; a tmpfs"},
    {"hyp", "KIND", "auto", "hypervisor: xen, sim, none, or auto (xen where there is one)"},
    {"sim-dir", "DIR", NULL, "--hyp sim: simxen's directory"},
    {"kind", "NAME", BLKIF_DEFAULT_KIND, "backend kind in xenstore that is served"},
    {"engine", "NAME", "auto", "I/O engine: uring, aio, or auto (uring where the kernel has it)"},
    {"write-mode", "MODE", "auto", "when a plain write is answered: auto, through, back"},
    {"idle-commit", "MS", "1000", "metadata of an idle disk is made durable after this time"},
    {"buffers", "MIB", "256", "bound of data in flight on the whole host"},
    {"meta-cache", "MIB", "64", "bound of parents' metadata in memory"},
    {"log-level", "LEVEL", "info", "error, warning, info or debug"},
    {NULL, NULL, NULL, NULL},
};

static void usage(void)
{
	printf("usage: blkd [--option VALUE]...\nServes virtual disks to Xen guests and by NBD. Options:\n");
	conf_help(options);
	printf("  --help\nSIGTERM: drains, closes all images cleanly, exits.\n");
}

struct host {
	struct conf conf;
	struct hyp *hyp;
	struct ctl_host ctl_host;
	struct ctl *ctl;
	char nbd_path[PATH_MAX], ctl_path[PATH_MAX];
};

static int read_conf(struct host *h, int argc, char **argv, struct err *e)
{
	char given[PATH_MAX];
	int res = conf_init(&h->conf, options, e);

	/* The command line is read twice: it may name the file, and wins over it. */
	if (res == 0)
		res = conf_read_args(&h->conf, argc, argv, e);
	if (res < 0)
		return res;
	snprintf(given, sizeof(given), "%s", conf_get(&h->conf, "config"));
	res = conf_read_file(&h->conf, given[0] ? given : DEFAULT_CONFIG, given[0], e);
	return res < 0 ? res : conf_read_args(&h->conf, argc, argv, e);
}

static int set_log_level(const char *name, struct err *e)
{
	static const char *const names[] = {"error", "warning", "info", "debug"};

	for (unsigned i = 0; i < 4; i++) {
		if (!strcmp(name, names[i])) {
			log_set_level((enum log_level)i);
			return 0;
		}
	}
	return err_set(e, -EINVAL, "log-level = %s: expected error, warning, info or debug", name);
}

static int make_run_dir(const char *dir, struct err *e)
{
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return err_set(e, -errno, "run-dir = %s: cannot be made: %s", dir, strerror(errno));
	if (access(dir, W_OK | X_OK) < 0)
		return err_set(e, -errno, "run-dir = %s: %s", dir, strerror(errno));
	return 0;
}

static int start_memory(struct host *h, struct err *e)
{
	unsigned long buffers_mib, meta_mib;
	int res = conf_get_number(&h->conf, "buffers", 1, 1u << 20, &buffers_mib, e);

	if (res == 0)
		res = conf_get_number(&h->conf, "meta-cache", 1, 1u << 20, &meta_mib, e);
	if (res == 0)
		res = bufpool_create((uint64_t)buffers_mib << 20, &h->ctl_host.pool, e);
	if (res == 0)
		res = cache_create((uint64_t)meta_mib << 20, &h->ctl_host.cache, e);
	return res;
}

static int start_hyp(struct host *h, unsigned idle_ms, struct err *e)
{
	const char *kind = conf_get(&h->conf, "hyp"), *sim_dir = conf_get(&h->conf, "sim-dir");
	struct blkif_opts opts = {.kind = h->ctl_host.kind,
				  .run_dir = h->ctl_host.run_dir,
				  .engine = h->ctl_host.engine,
				  .write_mode = h->ctl_host.write_mode,
				  .pool = h->ctl_host.pool,
				  .cache = h->ctl_host.cache,
				  .idle_commit_ms = idle_ms};
	char xenstore[PATH_MAX];
	int res;

	if (!strcmp(kind, "auto"))
		kind = access("/dev/xen/gntdev", F_OK) == 0 ? "xen" : "none";
	if (!strcmp(kind, "none")) {
		log_info("no hypervisor: disks are served by NBD only");
		return 0;
	}
	if (!strcmp(kind, "sim")) {
		if (!sim_dir[0])
			return err_set(
			    e, -EINVAL,
			    "hyp = sim: sim-dir is missing: the directory that simxen was started with");
		snprintf(xenstore, sizeof(xenstore), "%s/socket", sim_dir);
		opts.xenstore = xenstore;
	}
	res = hyp_open(kind, sim_dir, &h->hyp, e);
	return res < 0 ? res : blkif_start(h->hyp, &opts, &h->ctl_host.blkif, e);
}

static int start(struct host *h, struct err *e)
{
	struct ctl_host *c = &h->ctl_host;
	unsigned long idle_ms = 0;
	int res;

	res = set_log_level(conf_get(&h->conf, "log-level"), e);
	if (res == 0)
		res = write_mode_parse(conf_get(&h->conf, "write-mode"), &c->write_mode, e);
	if (res == 0)
		res = conf_get_number(&h->conf, "idle-commit", 1, 3600000, &idle_ms, e);
	if (res < 0)
		return res;
	c->kind = conf_get(&h->conf, "kind");
	c->run_dir = conf_get(&h->conf, "run-dir");
	c->engine = io_engine_find(conf_get(&h->conf, "engine"), e);
	if (!c->engine)
		return e->code;
	res = make_run_dir(c->run_dir, e);
	if (res == 0)
		res = start_memory(h, e);
	if (res < 0)
		return res;
	snprintf(h->nbd_path, sizeof(h->nbd_path), "%s/nbd.sock", c->run_dir);
	snprintf(h->ctl_path, sizeof(h->ctl_path), "%s/ctl.sock", c->run_dir);
	/* The NBD socket first: it refuses a second blkd in this run directory. The control socket last: who
	 * gets an answer there finds all started. */
	res = nbd_server_start(h->nbd_path, &c->nbd, e);
	if (res == 0)
		res = start_hyp(h, (unsigned)idle_ms, e);
	if (res == 0)
		res = ctl_start(h->ctl_path, c, &h->ctl, e);
	return res;
}

static int stop(struct host *h)
{
	struct err e = ERR_INIT;
	int res = 0;

	ctl_stop(h->ctl);
	if (h->ctl_host.nbd)
		nbd_server_stop(h->ctl_host.nbd);
	if (h->ctl_host.blkif) {
		res = blkif_stop(h->ctl_host.blkif, &e);
		if (res < 0)
			log_error("%s", e.text);
	}
	hyp_close(h->hyp);
	cache_destroy(h->ctl_host.cache);
	bufpool_destroy(h->ctl_host.pool);
	conf_free(&h->conf);
	return res;
}

/* Each device costs a few descriptors and locks a little memory for its ring: take what we may. */
static void raise_limits(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
		l.rlim_cur = l.rlim_max;
		setrlimit(RLIMIT_NOFILE, &l);
	}
}

int main(int argc, char **argv)
{
	struct host h = {0};
	struct err e = ERR_INIT;
	sigset_t set;
	int sig, res;

	if (argc == 2 && !strcmp(argv[1], "--help")) {
		usage();
		return 0;
	}
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	/* Blocked here, before any thread is made, so that sigwait below is the only one to see them. */
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (read_conf(&h, argc, argv, &e) < 0) {
		fprintf(stderr, "blkd: %s\n", e.text);
		conf_free(&h.conf);
		return 2;
	}
	raise_limits();
	if (start(&h, &e) < 0) {
		log_error("%s", e.text);
		stop(&h);
		return 1;
	}
	log_info("ready: control socket %s, engine %s", h.ctl_path, h.ctl_host.engine->name);
	while (sigwait(&set, &sig) != 0)
		;
	log_info("%s: draining", sig == SIGTERM ? "SIGTERM" : "SIGINT");
	res = stop(&h);
	return res < 0 ? 1 : 0;
}
