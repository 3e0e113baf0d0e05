/*
 * simxen: a stand-in for Xen on any Linux host. It serves the xenstore protocol, guest memory with grants,
 * and event channels to processes on the same host (sim/simproto.h), so that a block backend and its guests
 * run, and are tested, without Xen.
 *
 * One thread, one epoll; what it serves lives in its memory and ends with it. It holds DIR/lock while it
 * runs.
 *
 * - The process: main.c (options, directory, signals), loop.c (the event loop), domain.c (birth and death).
 * - The store: conn.c (connections), verbs.c (what they ask), tree.c (permissions and quotas), store.c (nodes
 *   and transactions), watch.c (who is told of what), path.c, perms.c.
 * - The hypervisor: hyp.c (requests on DIR/hyp), grants.c (memory and grant tables), evtchn.c (channels).
 */
#include "sim/simxen/hypside.h"
#include "sim/simxen/xs.h"

#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIR_BYTES_MAX 80 /* a socket's whole path has 107 */

static const char usage[] =
    "usage: simxen --dir DIR [--foreground]\n"
    "\n"
    "Stand-in for Xen: serves xenstore, grants and event channels to processes of this host.\n"
    "\n"
    "  --dir DIR      where its sockets are; made if it does not exist (its parent must)\n"
    "  --foreground   stay in the foreground (it always does)\n"
    "  --help         this text\n"
    "\n"
    "DIR/socket     xenstore as domain 0: XENSTORED_PATH=DIR/socket xenstore-ls\n"
    "DIR/xs-dom<N>  xenstore as guest N, while it lives\n"
    "DIR/hyp        domains, memory, grants, event channels: sim/simproto.h\n"
    "\n"
    "Prints \"simxen: ready DIR\" when it serves. SIGTERM or SIGINT end it.\n";

static struct source hyp_listen = {.fd = -1};
static struct source signals = {.fd = -1};

static void after_each(void)
{
	/* First the deaths, for they end connections to the store. */
	hyp_reap();
	xs_reap();
}

static void hyp_client_waits(struct source *s, uint32_t events)
{
	(void)events;
	hyp_accept(s->fd);
}

static void signal_came(struct source *s, uint32_t events)
{
	(void)s;
	(void)events;
	loop_stop();
}

static const char *parse_args(int argc, char **argv)
{
	static const struct option options[] = {
	    {"dir", required_argument, NULL, 'd'},
	    {"foreground", no_argument, NULL, 'f'},
	    {"help", no_argument, NULL, 'h'},
	    {NULL, 0, NULL, 0},
	};
	const char *dir = NULL;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'd':
			dir = optarg;
			break;
		case 'f':
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fprintf(stderr, "simxen: see simxen --help\n");
			exit(2);
		}
	}
	if (optind < argc) {
		fprintf(stderr, "simxen: unexpected argument \"%s\"; see simxen --help\n", argv[optind]);
		exit(2);
	}
	if (!dir || !*dir) {
		fprintf(stderr, "simxen: --dir DIR is needed; see simxen --help\n");
		exit(2);
	}
	if (strlen(dir) > DIR_BYTES_MAX) {
		fprintf(stderr, "simxen: --dir %s: more than %d bytes, too long for the path of a socket\n",
			dir, DIR_BYTES_MAX);
		exit(2);
	}
	return dir;
}

static void fail(const char *dir, const char *what, int error)
{
	fprintf(stderr, "simxen: %s: %s: %s\n", dir, what, strerror(error));
	exit(1);
}

/* The lock lives as long as the process; nobody removes the file, so two can never hold locks on two files of
 * that name. */
static void lock_directory(const char *dir)
{
	char path[DIR_BYTES_MAX + 16];
	int fd;

	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		fail(dir, "cannot make the directory", errno);
	snprintf(path, sizeof(path), "%s/lock", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		fail(dir, "cannot open its lock file", errno);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno == EWOULDBLOCK) {
			fprintf(stderr, "simxen: %s: another simxen serves this directory\n", dir);
			exit(1);
		}
		fail(dir, "cannot lock", errno);
	}
}

/* Doors of domains that died with an earlier simxen. */
static void remove_stale_sockets(const char *dir)
{
	DIR *d = opendir(dir);
	const struct dirent *e;

	if (!d)
		fail(dir, "cannot read the directory", errno);
	while ((e = readdir(d)))
		if (strncmp(e->d_name, "xs-dom", 6) == 0 && e->d_type == DT_SOCK)
			unlinkat(dirfd(d), e->d_name, 0);
	closedir(d);
}

static void serve_hyp(const char *path, const char *dir)
{
	int rc = listen_at(path, SOCK_SEQPACKET);

	if (rc >= 0) {
		hyp_listen = (struct source){.fd = rc, .ready = hyp_client_waits};
		rc = loop_add(&hyp_listen, EPOLLIN);
	}
	if (rc < 0)
		fail(dir, "cannot listen at hyp", -rc);
}

static void take_signals(const char *dir)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = (struct source){.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), .ready = signal_came};
	if (signals.fd < 0 || loop_add(&signals, EPOLLIN) < 0)
		fail(dir, "cannot take signals", errno);
}

static void raise_fd_limit(void)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim) == 0) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
	}
}

int main(int argc, char **argv)
{
	const char *dir = parse_args(argc, argv);
	char hyp_path[DIR_BYTES_MAX + 16];

	raise_fd_limit();
	lock_directory(dir);
	remove_stale_sockets(dir);
	loop_init(after_each);
	take_signals(dir);
	tree_init();
	domains_init(dir);
	snprintf(hyp_path, sizeof(hyp_path), "%s/hyp", dir);
	serve_hyp(hyp_path, dir);
	printf("simxen: ready %s\n", dir);
	if (fflush(stdout) != 0)
		fail(dir, "cannot say that it is ready", errno);
	loop_run();
	unlink(hyp_path);
	domains_remove_sockets();
	return 0;
}
