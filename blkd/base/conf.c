/*
 * Options from one table. A value is a string until its reader asks for a number, so that the refusal can
 * quote what was typed.
 */
#include "blkd/conf.h"
#include "blkd/err.h"
#include "blkd/log.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_MAX_BYTES = 4096 };

static int find(const struct opt_desc *table, const char *name, size_t n)
{
	for (int i = 0; table[i].name; i++)
		if (strlen(table[i].name) == n && !strncmp(table[i].name, name, n))
			return i;
	return -1;
}

/* The option that shares the longest beginning with what was typed. */
static const char *nearest(const struct opt_desc *table, const char *name)
{
	const char *best = table[0].name;
	size_t best_n = 0;

	for (int i = 0; table[i].name; i++) {
		size_t n = 0;

		while (name[n] && name[n] == table[i].name[n])
			n++;
		if (n > best_n) {
			best_n = n;
			best = table[i].name;
		}
	}
	return best;
}

static int set(struct conf *c, int i, const char *value, struct err *e)
{
	char *copy = strdup(value);

	if (!copy)
		return err_set(e, -ENOMEM, "no memory for options");
	free(c->values[i]);
	c->values[i] = copy;
	return 0;
}

int conf_init(struct conf *c, const struct opt_desc *table, struct err *e)
{
	int n = 0;

	while (table[n].name)
		n++;
	c->table = table;
	c->values = calloc((size_t)n + 1, sizeof(*c->values));
	return c->values ? 0 : err_set(e, -ENOMEM, "no memory for options");
}

void conf_free(struct conf *c)
{
	for (int i = 0; c->values && c->table[i].name; i++)
		free(c->values[i]);
	free(c->values);
	c->values = NULL;
}

static char *trim(char *s)
{
	char *end;

	while (isspace((unsigned char)*s))
		s++;
	end = s + strlen(s);
	while (end > s && isspace((unsigned char)end[-1]))
		*--end = 0;
	return s;
}

static int read_line(struct conf *c, bool *seen, char *line, const char *path, unsigned number, struct err *e)
{
	char *text = trim(line), *eq = strchr(text, '='), *name, *value;
	int i;

	if (!*text || *text == '#')
		return 0;
	if (!eq)
		return err_set(e, -EINVAL, "%s: line %u: expected name = value, found: %.80s", path, number,
			       text);
	*eq = 0;
	name = trim(text);
	value = trim(eq + 1);
	i = find(c->table, name, strlen(name));
	if (i < 0)
		return err_set(e, -EINVAL, "%s: line %u: unknown option %.80s; the nearest is %s", path,
			       number, name, nearest(c->table, name));
	if (seen[i])
		return err_set(e, -EINVAL, "%s: line %u: %s is set twice", path, number, name);
	seen[i] = true;
	return set(c, i, value, e);
}

int conf_read_file(struct conf *c, const char *path, bool must_exist, struct err *e)
{
	FILE *f = fopen(path, "re");
	char line[LINE_MAX_BYTES];
	bool seen[64] = {false};
	unsigned number = 0;
	int res = 0;

	if (!f)
		return errno == ENOENT && !must_exist ? 0
						      : err_set(e, -errno, "%s: %s", path, strerror(errno));
	while (res == 0 && fgets(line, sizeof(line), f)) {
		number++;
		if (!strchr(line, '\n') && !feof(f))
			res = err_set(e, -EINVAL, "%s: line %u: longer than %u bytes", path, number,
				      (unsigned)LINE_MAX_BYTES);
		else
			res = read_line(c, seen, line, path, number, e);
	}
	if (res == 0 && ferror(f))
		res = err_set(e, -EIO, "%s: cannot be read", path);
	fclose(f);
	return res;
}

int conf_read_args(struct conf *c, int argc, char **argv, struct err *e)
{
	for (int k = 1; k < argc; k++) {
		const char *name = argv[k] + 2, *eq, *value;
		size_t n;
		int i;

		if (strncmp(argv[k], "--", 2) != 0)
			return err_set(e, -EINVAL, "unexpected argument %.80s: options are --name VALUE",
				       argv[k]);
		eq = strchr(name, '=');
		n = eq ? (size_t)(eq - name) : strlen(name);
		i = find(c->table, name, n);
		if (i < 0)
			return err_set(e, -EINVAL, "unknown option %.80s; the nearest is --%s", argv[k],
				       nearest(c->table, name));
		value = eq ? eq + 1 : ++k < argc ? argv[k] : NULL;
		if (!value)
			return err_set(e, -EINVAL, "--%s needs a value: %s", c->table[i].name,
				       c->table[i].value);
		if (set(c, i, value, e) < 0)
			return -ENOMEM;
	}
	return 0;
}

const char *conf_get(const struct conf *c, const char *name)
{
	int i = find(c->table, name, strlen(name));

	CHECK(i >= 0);
	if (c->values[i])
		return c->values[i];
	return c->table[i].dflt ? c->table[i].dflt : "";
}

int conf_get_number(const struct conf *c, const char *name, unsigned long min, unsigned long max,
		    unsigned long *out, struct err *e)
{
	const char *text = conf_get(c, name);
	char *end;

	errno = 0;
	*out = strtoul(text, &end, 10);
	if (!isdigit((unsigned char)*text) || *end || errno || *out < min || *out > max)
		return err_set(e, -EINVAL, "%s = %.80s: expected a number from %lu to %lu", name, text, min,
			       max);
	return 0;
}

void conf_help(const struct opt_desc *table)
{
	for (int i = 0; table[i].name; i++)
		printf("  --%-14s %-10s %s%s%s%s\n", table[i].name, table[i].value, table[i].help,
		       table[i].dflt ? " [" : "", table[i].dflt ? table[i].dflt : "",
		       table[i].dflt ? "]" : "");
}
