/*
 * The server: exports by name, the listening socket, and the one control thread on which clients haggle.
 *
 * The thread owns the listening socket and the haggling clients. When one is ready it becomes a connection
 * (conn.c) and goes to its device's thread by a message. The lock guards the exports, their lists of
 * connections and the counts; it is held for moments only, never across a call that waits. A connection is on
 * its export's list from before its attach message until its device's thread says it is gone: so an export
 * without connections has nothing left on its device, and its reference can be given back.
 *
 * Removal: hide the export, tell its connections on their own thread to finish, wait; after a grace period
 * tell them to drop what they have (a client that does not read its answers would hold it for ever).
 *
 * Bounds: HAGGLERS clients before transmission, each with a deadline; beyond them the backlog waits. CLIENTS
 * connections in all.
 */
#include "blkd/nbd.h"

#include "blkd/clock.h"
#include "blkd/err.h"
#include "blkd/log.h"
#include "blkd/nbd/conn.h"
#include "blkd/nbd/haggle.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
	HAGGLERS = 32,
	HAGGLE_SECONDS = 30,
	CLIENTS = 256,
	GRACE_SECONDS = 5,
	SEND_BUFFER_BYTES = 1 << 20, /* so that a batch of answers fits the socket */
};

struct export
{
	struct list link;
	struct nbd_server *server;
	struct devref *ref;
	char name[NBD_NAME_MAX + 1];
	bool read_only, removing;
	struct list conns;
	unsigned clients;
	uint64_t clients_total;
};

struct nbd_server {
	char *path;
	int listen_fd, wake_fd;
	pthread_t thread;
	struct haggle *hagglers[HAGGLERS]; /* the thread's */
	unsigned n_hagglers;
	/* under the lock */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a connection is gone */
	struct list exports;
	unsigned clients;
	bool stopping;
};

/* ---- exports, under the lock ---- */

static struct export *find(const struct nbd_server *srv, const char *name, size_t len)
{
	const struct list *pos;

	list_for_each (pos, &srv->exports) {
		struct export *x = (struct export *)((uintptr_t)pos - offsetof(struct export, link));

		if (strlen(x->name) == len && !memcmp(x->name, name, len))
			return x;
	}
	return NULL;
}

static void view(const struct export *x, struct nbd_export_view *v)
{
	memcpy(v->name, x->name, sizeof(v->name));
	snprintf(v->description, sizeof(v->description), "blkd, %s", dev_disk(x->ref->dev)->path);
	v->size_bytes = dev_size_bytes(x->ref->dev) & ~(uint64_t)(NBD_MIN_BLOCK_BYTES - 1);
	v->read_only = x->read_only;
}

bool server_find(struct nbd_server *srv, const char *name, size_t len, struct nbd_export_view *v)
{
	struct export *x;

	pthread_mutex_lock(&srv->lock);
	if (len)
		x = find(srv, name, len);
	else if (!list_empty(&srv->exports) && srv->exports.next->next == &srv->exports)
		x = container_of(srv->exports.next, struct export, link);
	else
		x = NULL;
	if (x && x->removing)
		x = NULL;
	if (x)
		view(x, v);
	pthread_mutex_unlock(&srv->lock);
	return x != NULL;
}

void server_each(struct nbd_server *srv, void (*fn)(void *, const struct nbd_export_view *), void *ctx)
{
	struct list *pos;

	pthread_mutex_lock(&srv->lock);
	list_for_each (pos, &srv->exports) {
		const struct export *x = container_of(pos, struct export, link);
		struct nbd_export_view v;

		if (x->removing)
			continue;
		view(x, &v);
		fn(ctx, &v);
	}
	pthread_mutex_unlock(&srv->lock);
}

void nbd_export_each(struct nbd_server *srv, bool (*fn)(void *, const struct nbd_export_info *), void *ctx)
{
	struct list *pos;

	pthread_mutex_lock(&srv->lock);
	list_for_each (pos, &srv->exports) {
		const struct export *x = container_of(pos, struct export, link);
		struct nbd_export_info info = {.name = x->name,
					       .dev = x->ref->dev,
					       .read_only = x->read_only,
					       .clients = x->clients,
					       .clients_total = x->clients_total};

		if (!fn(ctx, &info))
			break;
	}
	pthread_mutex_unlock(&srv->lock);
}

/* ---- connections ---- */

/* Device thread: the last that is heard of a connection. */
static void conn_gone(void *owner, struct nbd_conn *c)
{
	struct export *x = owner;
	struct nbd_server *srv = x->server;

	if (c->why)
		log_warn("nbd: a client of %s was disconnected: it sent %s", x->name, c->why);
	pthread_mutex_lock(&srv->lock);
	list_del(&c->link);
	x->clients--;
	srv->clients--;
	/* Under the lock: the server may be freed as soon as it is given up. */
	pthread_cond_broadcast(&srv->changed);
	pthread_mutex_unlock(&srv->lock);
	conn_free(c);
}

static void enlarge_send_buffer(int fd)
{
	int bytes = SEND_BUFFER_BYTES;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

/* Under the lock, so that an export which is not hidden yet gets the attach before any message of its
 * removal. dev_post does not wait. */
static int adopt_locked(struct nbd_server *srv, const char *name, struct nbd_conn *c)
{
	struct export *x = find(srv, name, strlen(name));
	int res;

	if (!x || x->removing)
		return -ENOENT;
	if (srv->clients >= CLIENTS)
		return -EUSERS;
	c->owner = x;
	c->session.size_bytes = dev_size_bytes(x->ref->dev) & ~(uint64_t)(NBD_MIN_BLOCK_BYTES - 1);
	c->session.read_only = x->read_only;
	list_add_tail(&x->conns, &c->link);
	res = dev_post(x->ref->dev, conn_attach, c);
	if (res < 0) {
		list_del(&c->link);
		return res;
	}
	x->clients++;
	x->clients_total++;
	srv->clients++;
	return 0;
}

int server_adopt(struct nbd_server *srv, const char *name, int fd, bool structured, bool block_status,
		 const void *rest, uint32_t rest_bytes)
{
	const struct nbd_session session = {.structured = structured, .block_status = block_status};
	struct nbd_conn *c = conn_create(fd, &session, rest, rest_bytes);
	int res;

	if (!c)
		return -ENOMEM;
	enlarge_send_buffer(fd);
	c->gone = conn_gone;
	pthread_mutex_lock(&srv->lock);
	res = adopt_locked(srv, name, c);
	pthread_mutex_unlock(&srv->lock);
	if (res < 0) {
		c->fd = -1; /* the caller's */
		conn_free(c);
	}
	return res;
}

/* ---- the thread ---- */

static void accept_one(struct nbd_server *srv)
{
	int fd = accept4(srv->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct haggle *h;

	if (fd < 0) {
		/* Without descriptors or memory the backlog stays ready: do not spin on it. */
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
			log_warn("nbd: a client cannot be accepted: %s", strerror(errno));
			usleep(10000);
		}
		return;
	}
	h = haggle_create(fd, clock_ns() + (uint64_t)HAGGLE_SECONDS * 1000000000u);
	if (h)
		srv->hagglers[srv->n_hagglers++] = h;
	else
		close(fd);
}

/* false: this one is over. */
static bool haggler_turn(struct nbd_server *srv, struct haggle *h, uint64_t now_ns)
{
	int res;

	if (now_ns >= h->deadline_ns || !haggle_turn(h, srv))
		return false;
	if (haggle_events(h))
		return true;
	res = server_adopt(srv, h->export_name, h->fd, h->structured, h->block_status, h->in, h->in_bytes);
	if (res == -EAGAIN)
		return true;
	if (res < 0)
		log_warn("nbd: a client of %s was turned away: %s", h->export_name, strerror(-res));
	else
		h->fd = -1;
	return false;
}

static void hagglers_turn(struct nbd_server *srv)
{
	uint64_t now_ns = clock_ns();
	unsigned kept = 0;

	for (unsigned i = 0; i < srv->n_hagglers; i++) {
		struct haggle *h = srv->hagglers[i];

		if (haggler_turn(srv, h, now_ns))
			srv->hagglers[kept++] = h;
		else
			haggle_free(h);
	}
	srv->n_hagglers = kept;
}

/* Milliseconds until the next deadline, or soon if one waits for a mailbox. */
static int poll_timeout(const struct nbd_server *srv)
{
	uint64_t now_ns = clock_ns(), wait_ns = UINT64_MAX;

	for (unsigned i = 0; i < srv->n_hagglers; i++) {
		const struct haggle *h = srv->hagglers[i];

		if (!haggle_events(h))
			return 5;
		if (h->again || h->deadline_ns <= now_ns)
			return 0;
		if (h->deadline_ns - now_ns < wait_ns)
			wait_ns = h->deadline_ns - now_ns;
	}
	return wait_ns == UINT64_MAX ? -1 : (int)(wait_ns / 1000000u) + 1;
}

static bool is_stopping(struct nbd_server *srv)
{
	bool stopping;

	pthread_mutex_lock(&srv->lock);
	stopping = srv->stopping;
	pthread_mutex_unlock(&srv->lock);
	return stopping;
}

static void *server_thread(void *arg)
{
	struct nbd_server *srv = arg;

	while (!is_stopping(srv)) {
		struct pollfd fds[2 + HAGGLERS] = {
		    {.fd = srv->wake_fd, .events = POLLIN},
		    {.fd = srv->n_hagglers < HAGGLERS ? srv->listen_fd : -1, .events = POLLIN}};

		for (unsigned i = 0; i < srv->n_hagglers; i++)
			fds[2 + i] =
			    (struct pollfd){.fd = haggle_events(srv->hagglers[i]) ? srv->hagglers[i]->fd : -1,
					    .events = haggle_events(srv->hagglers[i])};
		(void)poll(fds, 2 + srv->n_hagglers, poll_timeout(srv));
		if (fds[1].revents)
			accept_one(srv);
		hagglers_turn(srv);
	}
	while (srv->n_hagglers)
		haggle_free(srv->hagglers[--srv->n_hagglers]);
	return NULL;
}

/* ---- exports come and go ---- */

static bool name_is_legal(const char *name)
{
	size_t len = strlen(name);

	if (!len || len > NBD_NAME_MAX)
		return false;
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
			return false;
	return true;
}

int nbd_export_add(struct nbd_server *srv, const char *name, struct devref *ref, bool read_only,
		   struct err *e)
{
	struct export *x;
	bool taken;

	if (!name_is_legal(name))
		return err_set(e, -EINVAL, "an export's name has 1 to %u bytes and no control characters",
			       NBD_NAME_MAX);
	x = calloc(1, sizeof(*x));
	if (!x)
		return err_set(e, -ENOMEM, "no memory for export %s", name);
	x->server = srv;
	x->ref = ref;
	x->read_only = read_only || !dev_writable(ref->dev);
	list_init(&x->conns);
	snprintf(x->name, sizeof(x->name), "%s", name);
	pthread_mutex_lock(&srv->lock);
	taken = find(srv, name, strlen(name)) != NULL;
	if (!taken)
		list_add_tail(&srv->exports, &x->link);
	pthread_mutex_unlock(&srv->lock);
	if (taken) {
		free(x);
		return err_set(e, -EEXIST, "export %s exists: choose another name, or remove it first", name);
	}
	return 0;
}

/* Device thread. */
static void end_all(struct dev *d, void *export)
{
	struct export *x = export;
	struct list *pos;

	(void)d;
	pthread_mutex_lock(&x->server->lock);
	list_for_each (pos, &x->conns)
		conn_end(container_of(pos, struct nbd_conn, link));
	pthread_mutex_unlock(&x->server->lock);
}

static void kill_all(struct dev *d, void *export)
{
	struct export *x = export;
	struct list *pos;

	(void)d;
	pthread_mutex_lock(&x->server->lock);
	list_for_each (pos, &x->conns)
		conn_die(container_of(pos, struct nbd_conn, link), NULL);
	pthread_mutex_unlock(&x->server->lock);
}

/* Until x has no clients, or the grace period is over. Under the lock. */
static void wait_for_clients(struct nbd_server *srv, const struct export *x, bool with_grace)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += GRACE_SECONDS;
	while (x->clients) {
		int res = with_grace ? pthread_cond_timedwait(&srv->changed, &srv->lock, &until)
				     : pthread_cond_wait(&srv->changed, &srv->lock);

		if (res == ETIMEDOUT)
			return;
	}
}

static void end_clients(struct nbd_server *srv, struct export *x)
{
	unsigned left;

	dev_call(x->ref->dev, end_all, x);
	pthread_mutex_lock(&srv->lock);
	wait_for_clients(srv, x, true);
	left = x->clients;
	pthread_mutex_unlock(&srv->lock);
	if (!left)
		return;
	log_warn("nbd: %u clients of %s do not read their answers: dropped", left, x->name);
	dev_call(x->ref->dev, kill_all, x);
	pthread_mutex_lock(&srv->lock);
	wait_for_clients(srv, x, false);
	pthread_mutex_unlock(&srv->lock);
}

/* Hidden by the caller: nobody else removes it. */
static int export_end(struct nbd_server *srv, struct export *x, struct err *e)
{
	int res;

	end_clients(srv, x);
	pthread_mutex_lock(&srv->lock);
	list_del(&x->link);
	pthread_mutex_unlock(&srv->lock);
	res = devtab_put(x->ref, e);
	free(x);
	return res;
}

int nbd_export_remove(struct nbd_server *srv, const char *name, bool force, struct err *e)
{
	struct export *x;
	unsigned clients = 0;
	bool there;

	pthread_mutex_lock(&srv->lock);
	x = find(srv, name, strlen(name));
	there = x && !x->removing;
	if (there) {
		clients = x->clients;
		x->removing = force || !clients;
	}
	pthread_mutex_unlock(&srv->lock);
	if (!there)
		return err_set(e, -ENOENT, "there is no export %s", name);
	if (clients && !force)
		return err_set(e, -EBUSY, "export %s has %u clients: disconnect them, or use force", name,
			       clients);
	return export_end(srv, x, e);
}

/* ---- birth and end of the server ---- */

static int is_alive(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool alive;

	if (fd < 0)
		return -errno;
	alive = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0;
	close(fd);
	return alive;
}

static int listen_at(const char *path, struct err *e)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd, res;

	if (strlen(path) >= sizeof(addr.sun_path))
		return err_set(e, -ENAMETOOLONG, "%s: a socket's path has at most %zu bytes", path,
			       sizeof(addr.sun_path) - 1);
	memcpy(addr.sun_path, path, strlen(path) + 1);
	res = is_alive(&addr);
	if (res > 0)
		return err_set(e, -EADDRINUSE, "%s: another server answers there: stop it first", path);
	fd = res < 0 ? res : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_set(e, res < 0 ? res : -errno, "no socket for NBD: %s",
			       strerror(res < 0 ? -res : errno));
	unlink(path);
	/* The mode of the socket becomes that of its file, without a moment in which it is another. */
	if (fchmod(fd, 0600) < 0 || bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0 ||
	    listen(fd, 128) < 0) {
		res = -errno;
		close(fd);
		return err_set(e, res, "%s: cannot listen: %s", path, strerror(-res));
	}
	return fd;
}

static void server_free(struct nbd_server *srv)
{
	if (srv->listen_fd >= 0) {
		unlink(srv->path);
		close(srv->listen_fd);
	}
	if (srv->wake_fd >= 0)
		close(srv->wake_fd);
	pthread_mutex_destroy(&srv->lock);
	pthread_cond_destroy(&srv->changed);
	free(srv->path);
	free(srv);
}

int nbd_server_start(const char *path, struct nbd_server **out, struct err *e)
{
	struct nbd_server *srv = calloc(1, sizeof(*srv));
	int res;

	if (!srv)
		return err_set(e, -ENOMEM, "no memory for the NBD server");
	pthread_mutex_init(&srv->lock, NULL);
	pthread_cond_init(&srv->changed, NULL);
	list_init(&srv->exports);
	srv->path = strdup(path);
	srv->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	srv->listen_fd = -1;
	if (!srv->path || srv->wake_fd < 0) {
		server_free(srv);
		return err_set(e, -ENOMEM, "no memory or descriptor for the NBD server");
	}
	srv->listen_fd = listen_at(path, e);
	if (srv->listen_fd < 0) {
		res = srv->listen_fd;
		server_free(srv);
		return res;
	}
	res = -pthread_create(&srv->thread, NULL, server_thread, srv);
	if (res < 0) {
		server_free(srv);
		return err_set(e, res, "no thread for the NBD server: %s", strerror(-res));
	}
	pthread_setname_np(srv->thread, "nbd");
	*out = srv;
	return 0;
}

void nbd_server_stop(struct nbd_server *srv)
{
	struct err e = ERR_INIT;

	pthread_mutex_lock(&srv->lock);
	srv->stopping = true;
	pthread_mutex_unlock(&srv->lock);
	(void)!write(srv->wake_fd, &(uint64_t){1}, sizeof(uint64_t));
	pthread_join(srv->thread, NULL);
	for (;;) {
		struct export *x = NULL;

		pthread_mutex_lock(&srv->lock);
		if (!list_empty(&srv->exports)) {
			x = container_of(srv->exports.next, struct export, link);
			x->removing = true;
		}
		pthread_mutex_unlock(&srv->lock);
		if (!x)
			break;
		if (export_end(srv, x, &e) < 0)
			log_error("nbd: %s", e.text);
	}
	server_free(srv);
}

/* ---- the address ---- */

static bool is_plain(unsigned char c, const char *also)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       strchr("-._~", c) || strchr(also, c);
}

/* Appends text, percent-encoded where it is not unreserved (RFC 3986) or in also. */
static bool put_encoded(char *buf, size_t room, size_t *at, const char *text, const char *also)
{
	for (; *text; text++) {
		bool plain = is_plain((unsigned char)*text, also);
		int n;

		if (*at >= room)
			return false;
		n = snprintf(buf + *at, room - *at, plain ? "%c" : "%%%02X", (unsigned char)*text);
		if ((size_t)n >= room - *at)
			return false;
		*at += (size_t)n;
	}
	return true;
}

static bool put(char *buf, size_t room, size_t *at, const char *text)
{
	int n = snprintf(buf + *at, room - *at, "%s", text);

	*at += (size_t)n;
	return *at < room;
}

int nbd_uri(const struct nbd_server *srv, const char *name, char *buf, size_t room)
{
	size_t at = 0;

	if (!put(buf, room, &at, "nbd+unix:///") || !put_encoded(buf, room, &at, name, "") ||
	    !put(buf, room, &at, "?socket=") || !put_encoded(buf, room, &at, srv->path, "/"))
		return -ENAMETOOLONG;
	return 0;
}
