/*
 * blkctl: a thin client of the control sockets, in xe's grammar: blkctl noun-verb key=value ... It knows no
 * verb itself: the server's table says which there are and which parameters they take. Relative image paths
 * are made absolute here, since the daemon has another working directory.
 *
 * Exit: 0 done; 1 the server refused or failed, its sentence is on stderr; 2 usage; 3 no server.
 */
#include <jansson.h>

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { EXIT_REFUSED = 1, EXIT_USAGE = 2, EXIT_NO_SERVER = 3 };

struct options {
	const char *socket;
	bool json, minimal;
};

static void usage(FILE *to)
{
	fprintf(to, "usage: blkctl [--socket PATH] [--json] [--minimal] VERB [key=value]...\n"
		    "       blkctl help            all verbs of the running daemon, with examples\n"
		    "The socket: --socket, else $BLKD_RUN_DIR/ctl.sock, else /run/blkd/ctl.sock.\n"
		    "  --json      the answer as JSON\n"
		    "  --minimal   values only, comma separated\n");
}

/* ---- transport ---- */

static int connect_once(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd;

	if (strlen(path) >= sizeof(addr.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		int saved = errno;

		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

/* A daemon that is just being started, or restarted, is waited for: up to a second. */
static int connect_to(const char *path)
{
	int fd = connect_once(path);

	for (int tries = 0; fd < 0 && (errno == ENOENT || errno == ECONNREFUSED) && tries < 20; tries++) {
		usleep(50000);
		fd = connect_once(path);
	}
	return fd;
}

/* One request, one reply. NULL: the connection broke. */
static json_t *call(int fd, const char *method, json_t *params)
{
	json_t *msg = json_pack("{s:s, s:i, s:s, s:O}", "jsonrpc", "2.0", "id", 1, "method", method, "params",
				params),
	       *reply;
	char *text = json_dumps(msg, JSON_COMPACT);
	json_error_t why;
	FILE *in = fdopen(dup(fd), "r");
	char *line = NULL;
	size_t room = 0;
	ssize_t n;

	json_decref(msg);
	if (!text || !in || dprintf(fd, "%s\n", text) < 0) {
		free(text);
		return NULL;
	}
	free(text);
	n = getline(&line, &room, in);
	reply = n > 0 ? json_loadb(line, (size_t)n, JSON_REJECT_DUPLICATES, &why) : NULL;
	free(line);
	fclose(in);
	return reply;
}

/* ---- output ---- */

static void print_value(const json_t *v)
{
	if (json_is_string(v)) {
		fputs(json_string_value(v), stdout);
	} else {
		char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);

		fputs(text ? text : "", stdout);
		free(text);
	}
}

/* As xe does: "name ( RW): value", here simply aligned; nested objects as name.name. */
static void print_object(json_t *o, const char *prefix)
{
	const char *key;
	json_t *v;

	json_object_foreach(o, key, v)
	{
		char name[128];

		snprintf(name, sizeof(name), "%s%s", prefix, key);
		if (json_is_object(v)) {
			strncat(name, ".", sizeof(name) - strlen(name) - 1);
			print_object(v, name);
			continue;
		}
		printf("%-24s: ", name);
		print_value(v);
		putchar('\n');
	}
}

static void print_rows(json_t *rows)
{
	size_t i;
	json_t *row;

	json_array_foreach(rows, i, row)
	{
		if (i)
			putchar('\n');
		print_object(row, "");
	}
}

static void print_help(json_t *verbs)
{
	size_t i, k;
	json_t *v, *p;

	json_array_foreach(verbs, i, v)
	{
		printf("%s\n    %s\n", json_string_value(json_object_get(v, "name")),
		       json_string_value(json_object_get(v, "help")));
		json_array_foreach(json_object_get(v, "params"), k, p)
		    printf("      %s%-12s %s\n", json_is_true(json_object_get(p, "required")) ? "* " : "  ",
			   json_string_value(json_object_get(p, "name")),
			   json_string_value(json_object_get(p, "help")));
		printf("    example: %s\n", json_string_value(json_object_get(v, "example")));
	}
	printf("(* required)\n");
}

static void print_minimal(json_t *result)
{
	const char *key;
	json_t *v, *row;
	size_t i;
	bool first = true;

	if (json_is_array(result)) {
		json_array_foreach(result, i, row)
		{
			if (i)
				putchar(',');
			print_value(json_is_object(row) ? json_object_iter_value(json_object_iter(row))
							: row);
		}
	} else if (json_is_object(result)) {
		json_object_foreach(result, key, v)
		{
			if (!first)
				putchar(',');
			first = false;
			print_value(v);
		}
	}
	putchar('\n');
}

static void print_result(const struct options *o, const char *verb, json_t *result)
{
	if (o->json) {
		json_dumpf(result, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
		putchar('\n');
	} else if (json_is_null(result)) {
		return;
	} else if (json_is_string(result)) {
		puts(json_string_value(result));
	} else if (o->minimal) {
		print_minimal(result);
	} else if (!strcmp(verb, "help")) {
		print_help(result);
	} else if (json_is_array(result)) {
		print_rows(result);
	} else {
		json_t *vbds = json_object_get(result, "vbds");

		if (json_is_array(vbds)) {
			print_rows(vbds);
			putchar('\n');
			json_object_del(result, "vbds");
		}
		print_object(result, "");
	}
}

/* ---- arguments ---- */

static json_t *parse_params(int argc, char **argv)
{
	json_t *params = json_object();

	for (int i = 0; i < argc; i++) {
		char *eq = strchr(argv[i], '='), absolute[PATH_MAX * 2], cwd[PATH_MAX];
		const char *value;

		if (!eq || eq == argv[i]) {
			fprintf(stderr, "blkctl: %s: expected key=value\n", argv[i]);
			json_decref(params);
			return NULL;
		}
		*eq = 0;
		value = eq + 1;
		if (!strcmp(argv[i], "image") && value[0] != '/' && getcwd(cwd, sizeof(cwd))) {
			snprintf(absolute, sizeof(absolute), "%s/%s", cwd, value);
			value = absolute;
		}
		if (json_object_get(params, argv[i])) {
			fprintf(stderr, "blkctl: %s is given twice\n", argv[i]);
			json_decref(params);
			return NULL;
		}
		if (json_object_set_new(params, argv[i], json_string(value)) < 0) {
			fprintf(stderr, "blkctl: %s: the value is not UTF-8\n", argv[i]);
			json_decref(params);
			return NULL;
		}
	}
	return params;
}

static int run(const struct options *o, const char *verb, int argc, char **argv)
{
	json_t *params = parse_params(argc, argv), *reply, *error, *result;
	int fd, rc = 0;

	if (!params)
		return EXIT_USAGE;
	fd = connect_to(o->socket);
	if (fd < 0) {
		fprintf(stderr, "blkctl: no blkd answers at %s: %s\n", o->socket, strerror(errno));
		json_decref(params);
		return EXIT_NO_SERVER;
	}
	reply = call(fd, verb, params);
	json_decref(params);
	close(fd);
	error = json_object_get(reply, "error");
	result = json_object_get(reply, "result");
	if (error) {
		const char *text = json_string_value(json_object_get(error, "message"));

		fprintf(stderr, "blkctl: %s\n", text ? text : "refused without a reason");
		rc = EXIT_REFUSED;
	} else if (!result) {
		fprintf(stderr, "blkctl: %s: blkd closed the connection before it answered\n", o->socket);
		rc = EXIT_NO_SERVER;
	} else {
		print_result(o, verb, result);
	}
	json_decref(reply);
	return rc;
}

int main(int argc, char **argv)
{
	const char *run_dir = getenv("BLKD_RUN_DIR");
	struct options o = {0};
	char path[PATH_MAX];
	int i = 1;

	snprintf(path, sizeof(path), "%s/ctl.sock", run_dir && run_dir[0] ? run_dir : "/run/blkd");
	o.socket = path;
	for (; i < argc && argv[i][0] == '-'; i++) {
		if (!strcmp(argv[i], "--help")) {
			usage(stdout);
			return 0;
		} else if (!strcmp(argv[i], "--json")) {
			o.json = true;
		} else if (!strcmp(argv[i], "--minimal")) {
			o.minimal = true;
		} else if (!strcmp(argv[i], "--socket") && i + 1 < argc) {
			o.socket = argv[++i];
		} else {
			fprintf(stderr, "blkctl: unknown option %s\n", argv[i]);
			usage(stderr);
			return EXIT_USAGE;
		}
	}
	if (i == argc) {
		usage(stderr);
		return EXIT_USAGE;
	}
	return run(&o, argv[i], argc - i - 1, argv + i + 1);
}
