/*
 * Options of a program, from one table: command line (--name VALUE), config file (name = value) and help.
 * Later sources win: defaults, file, command line.
 */
#ifndef BLKD_CONF_H
#define BLKD_CONF_H

#include <stdbool.h>

struct err;

struct opt_desc {
	const char *name, *value, *dflt, *help; /* value: what it takes, as help prints it */
};

/* values[i] belongs to table[i] (which ends with a NULL name); strings owned by conf until conf_free. */
struct conf {
	const struct opt_desc *table;
	char **values;
};

int conf_init(struct conf *, const struct opt_desc *table, struct err *);
void conf_free(struct conf *);
/* "name = value" lines; '#' comments; a missing file is an error if must_exist. Refuses unknown names and
 * double ones, with the line. */
int conf_read_file(struct conf *, const char *path, bool must_exist, struct err *);
/* "--name VALUE" or "--name=VALUE" only. -EINVAL with a sentence that names the nearest option. */
int conf_read_args(struct conf *, int argc, char **argv, struct err *);
/* Never NULL for an option of the table (CHECKed): "" where there is neither value nor default. */
const char *conf_get(const struct conf *, const char *name);
int conf_get_number(const struct conf *, const char *name, unsigned long min, unsigned long max,
		    unsigned long *out, struct err *);
void conf_help(const struct opt_desc *table); /* to stdout */

#endif
