/*
 * The control server: accepts, checks the peer, reads lines, answers JSON-RPC 2.0. A thread per connection,
 * at most CONNECTIONS_MAX; a line is at most LINE_MAX_BYTES. What a client sends is hostile until parsed:
 * unknown members, types and parameters are refused by name.
 */
#include "blkd/ctl.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 32, LINE_MAX_BYTES = 65536, SEND_TIMEOUT_S = 5 };

/* JSON-RPC 2.0, section 5.1. */
enum { RPC_PARSE = -32700, RPC_INVALID = -32600, RPC_METHOD = -32601, RPC_PARAMS = -32602 };

struct ctl {
	const struct ctl_host *host;
	int listen_fd, stop_fd;
	struct sockaddr_un addr;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t idle;
	unsigned connections;
};

struct connection {
	struct ctl *ctl;
	int fd;
	size_t used;
	char line[LINE_MAX_BYTES];
};

/* ---- calls ---- */

static json_t *reply_error(json_t *id, int code, const char *text)
{
	return json_pack("{s:s, s:{s:i, s:s}, s:O}", "jsonrpc", "2.0", "error", "code", code, "message", text,
			 "id", id);
}

static const struct ctl_verb *find_verb(const char *name)
{
	for (const struct ctl_verb *v = ctl_verbs; v->name; v++)
		if (!strcmp(v->name, name))
			return v;
	return NULL;
}

static bool has_param(const struct ctl_verb *v, const char *key)
{
	for (const struct ctl_param *p = v->params; p->name; p++)
		if (!strcmp(p->name, key))
			return true;
	return false;
}

static int check_params(const struct ctl_verb *v, json_t *params, struct err *e)
{
	const char *key;
	json_t *value;

	if (!json_is_object(params))
		return err_set(e, -EINVAL, "%s: params must be an object of strings", v->name);
	json_object_foreach(params, key, value)
	{
		if (!has_param(v, key))
			return err_set(e, -EINVAL, "%s: unknown parameter %.64s", v->name, key);
		if (!json_is_string(value))
			return err_set(e, -EINVAL, "%s: parameter %s must be a string", v->name, key);
	}
	for (const struct ctl_param *p = v->params; p->name; p++)
		if (p->required && !json_object_get(params, p->name))
			return err_set(e, -EINVAL, "%s: parameter %s is missing (%s)", v->name, p->name,
				       p->help);
	return 0;
}

static json_t *call(const struct ctl_host *host, json_t *msg)
{
	json_t *id = json_object_get(msg, "id"), *params = json_object_get(msg, "params"), *result,
	       *empty = NULL, *reply;
	const char *method = json_string_value(json_object_get(msg, "method"));
	const char *version = json_string_value(json_object_get(msg, "jsonrpc"));
	const struct ctl_verb *v;
	struct err e = ERR_INIT;

	if (!id)
		id = json_null();
	if (!method || !version || strcmp(version, "2.0") != 0)
		return reply_error(id, RPC_INVALID,
				   "not a JSON-RPC 2.0 request: jsonrpc \"2.0\" and a method are needed");
	v = find_verb(method);
	if (!v) {
		err_set(&e, -ENOSYS, "unknown verb %.64s: `blkctl help` lists them", method);
		return reply_error(id, RPC_METHOD, e.text);
	}
	if (!params)
		params = empty = json_object();
	if (check_params(v, params, &e) < 0)
		reply = reply_error(id, RPC_PARAMS, e.text);
	else if ((result = v->run(host, params, &e)))
		reply = json_pack("{s:s, s:o, s:O}", "jsonrpc", "2.0", "result", result, "id", id);
	else
		reply = reply_error(id, e.code ? e.code : -EIO, e.text);
	json_decref(empty);
	return reply;
}

/* ---- connections ---- */

static bool send_all(int fd, const char *text, size_t n)
{
	while (n) {
		ssize_t sent = send(fd, text, n, MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return false;
		text += sent;
		n -= (size_t)sent;
	}
	return true;
}

static bool answer_line(struct connection *c, const char *line, size_t n)
{
	json_error_t why;
	json_t *msg = json_loadb(line, n, JSON_REJECT_DUPLICATES, &why), *reply;
	char *text;
	bool ok;

	if (json_is_object(msg))
		reply = call(c->ctl->host, msg);
	else
		reply = reply_error(json_null(), RPC_PARSE,
				    msg ? "a request is one object on one line" : why.text);
	json_decref(msg);
	text = reply ? json_dumps(reply, JSON_COMPACT) : NULL;
	json_decref(reply);
	ok = text && send_all(c->fd, text, strlen(text)) && send_all(c->fd, "\n", 1);
	free(text);
	return ok;
}

static bool take_lines(struct connection *c)
{
	char *end;

	while ((end = memchr(c->line, '\n', c->used))) {
		size_t n = (size_t)(end - c->line);

		if (!answer_line(c, c->line, n))
			return false;
		c->used -= n + 1;
		memmove(c->line, end + 1, c->used);
	}
	if (c->used < sizeof(c->line))
		return true;
	log_warn("control: a request above %u bytes: the connection is closed", (unsigned)LINE_MAX_BYTES);
	return false;
}

static void *serve(void *arg)
{
	struct connection *c = arg;
	struct ctl *ctl = c->ctl;
	struct pollfd p[2] = {{.fd = c->fd, .events = POLLIN}, {.fd = ctl->stop_fd, .events = POLLIN}};

	for (;;) {
		ssize_t n;

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			break;
		if (p[1].revents)
			break;
		n = recv(c->fd, c->line + c->used, sizeof(c->line) - c->used, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			break;
		c->used += (size_t)n;
		if (!take_lines(c))
			break;
	}
	close(c->fd);
	free(c);
	pthread_mutex_lock(&ctl->lock);
	ctl->connections--;
	pthread_cond_signal(&ctl->idle);
	pthread_mutex_unlock(&ctl->lock);
	return NULL;
}

static bool peer_is_allowed(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 &&
	       (cred.uid == 0 || cred.uid == geteuid());
}

static void take_connection(struct ctl *ctl, int fd)
{
	struct connection *c = NULL;
	pthread_t thread;
	bool full;

	/* Who sends and does not read is given up, so that ctl_stop() ends. */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){.tv_sec = SEND_TIMEOUT_S},
		   sizeof(struct timeval));
	if (!peer_is_allowed(fd)) {
		log_warn("control: a peer that is neither root nor our user was refused");
		close(fd);
		return;
	}
	pthread_mutex_lock(&ctl->lock);
	full = ctl->connections >= CONNECTIONS_MAX;
	if (!full)
		ctl->connections++;
	pthread_mutex_unlock(&ctl->lock);
	if (!full)
		c = calloc(1, sizeof(*c));
	if (c) {
		c->ctl = ctl;
		c->fd = fd;
		if (pthread_create(&thread, NULL, serve, c) == 0) {
			pthread_detach(thread);
			return;
		}
		free(c);
	}
	close(fd);
	if (full) {
		log_warn("control: more than %d connections at once: one was refused", (int)CONNECTIONS_MAX);
		return;
	}
	pthread_mutex_lock(&ctl->lock);
	ctl->connections--;
	pthread_mutex_unlock(&ctl->lock);
}

static void *accept_loop(void *arg)
{
	struct ctl *ctl = arg;
	struct pollfd p[2] = {{.fd = ctl->listen_fd, .events = POLLIN},
			      {.fd = ctl->stop_fd, .events = POLLIN}};

	for (;;) {
		int fd;

		if (poll(p, 2, -1) < 0 && errno != EINTR)
			break;
		if (p[1].revents)
			break;
		if (!(p[0].revents & POLLIN))
			continue;
		fd = accept4(ctl->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			take_connection(ctl, fd);
		else if (errno == EMFILE || errno == ENFILE)
			usleep(100000);
	}
	return NULL;
}

/* ---- start and stop ---- */

/* Is somebody listening there? A socket file without a listener is a dead server's. */
static bool is_alive(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool alive = fd >= 0 && connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0;

	if (fd >= 0)
		close(fd);
	return alive;
}

static int listen_at(struct ctl *ctl, const char *path, struct err *e)
{
	mode_t mask;
	int res;

	ctl->addr.sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(ctl->addr.sun_path))
		return err_set(e, -ENAMETOOLONG,
			       "%s: the path of the control socket is longer than %zu bytes", path,
			       sizeof(ctl->addr.sun_path) - 1);
	strcpy(ctl->addr.sun_path, path);
	if (is_alive(&ctl->addr))
		return err_set(e, -EADDRINUSE,
			       "%s: another blkd answers there: stop it first, or use another --run-dir",
			       path);
	unlink(path);
	ctl->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (ctl->listen_fd < 0)
		return err_set(e, -errno, "no socket: %s", strerror(errno));
	mask = umask(0177);
	res = bind(ctl->listen_fd, (struct sockaddr *)&ctl->addr, sizeof(ctl->addr)) < 0 ? -errno : 0;
	umask(mask);
	if (res < 0 || listen(ctl->listen_fd, 16) < 0)
		return err_set(e, res ? res : -errno, "%s: cannot listen: %s", path,
			       strerror(res ? -res : errno));
	return 0;
}

int ctl_start(const char *socket_path, const struct ctl_host *host, struct ctl **out, struct err *e)
{
	struct ctl *ctl = calloc(1, sizeof(*ctl));
	int res;

	if (!ctl)
		return err_set(e, -ENOMEM, "no memory for the control server");
	ctl->host = host;
	ctl->listen_fd = -1;
	pthread_mutex_init(&ctl->lock, NULL);
	pthread_cond_init(&ctl->idle, NULL);
	ctl->stop_fd = eventfd(0, EFD_CLOEXEC);
	res = ctl->stop_fd < 0 ? err_set(e, -errno, "no eventfd: %s", strerror(errno))
			       : listen_at(ctl, socket_path, e);
	if (res == 0) {
		res = -pthread_create(&ctl->thread, NULL, accept_loop, ctl);
		if (res < 0)
			err_set(e, res, "no thread for the control server: %s", strerror(-res));
	}
	if (res < 0) {
		if (ctl->listen_fd >= 0)
			close(ctl->listen_fd);
		if (ctl->stop_fd >= 0)
			close(ctl->stop_fd);
		free(ctl);
		return res;
	}
	*out = ctl;
	return 0;
}

void ctl_stop(struct ctl *ctl)
{
	if (!ctl)
		return;
	(void)!write(ctl->stop_fd, &(uint64_t){1}, sizeof(uint64_t));
	pthread_join(ctl->thread, NULL);
	pthread_mutex_lock(&ctl->lock);
	while (ctl->connections)
		pthread_cond_wait(&ctl->idle, &ctl->lock);
	pthread_mutex_unlock(&ctl->lock);
	unlink(ctl->addr.sun_path);
	close(ctl->listen_fd);
	close(ctl->stop_fd);
	free(ctl);
}
