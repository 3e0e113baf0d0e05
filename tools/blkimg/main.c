/*
 * blkimg, the offline image tool: one table of verbs gives dispatch and help. Errors are one line on stderr
 * that names file, place and remedy; with --json they are in the answer too. Exit codes: 0 fine; 1 it failed,
 * or check and compare found something; 2 the command line is wrong.
 */
#include "tools/blkimg/blkimg.h"

#include "blkd/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define COMMON (OPT_JSON | OPT_BUFFERED | OPT_HELP)

static const struct verb verbs[] = {
    {"create", "FILE SIZE", "make an empty image; with --parent a clone of it (SIZE may then be left out)", 1,
     2, COMMON | OPT_FORMAT | OPT_PARENT | OPT_SRC_FORMAT | OPT_RUN_DIR, verb_create},
    {"snapshot", "PARENT CHILD", "make CHILD, a differencing image over PARENT", 2, 2,
     COMMON | OPT_FORMAT | OPT_HIDE | OPT_RUN_DIR, verb_snapshot},
    {"info", "FILE", "say what an image is, and its parents", 1, 1, COMMON | OPT_FORMAT, verb_info},
    {"map", "FILE", "list where the disk's bytes live in the chain", 1, 1, COMMON | OPT_FORMAT, verb_map},
    {"check", "FILE", "verify an image and all its parents", 1, 1,
     COMMON | OPT_FORMAT | OPT_LENIENT | OPT_BITMAPS, verb_check},
    {"repair", "FILE", "put right what can be derived from the rest of the file", 1, 1,
     COMMON | OPT_FORMAT | OPT_DRY_RUN | OPT_DROP | OPT_EVEN_PARENT | OPT_RUN_DIR, verb_repair},
    {"convert", "SRC DST", "copy a disk into a new image, without its parents and its zeros", 2, 2,
     COMMON | OPT_FORMAT | OPT_SRC_FORMAT | OPT_RUN_DIR, verb_convert},
    {"compare", "A B", "compare the content of two disks", 2, 2, COMMON | OPT_FORMAT | OPT_SRC_FORMAT,
     verb_compare},
};
#define N_VERBS (sizeof(verbs) / sizeof(verbs[0]))

static void help_all(FILE *to)
{
	fprintf(to, "usage: blkimg VERB [options] ...\n\n");
	for (size_t i = 0; i < N_VERBS; i++)
		fprintf(to, "  %-9s %-14s %s\n", verbs[i].name, verbs[i].words, verbs[i].summary);
	fprintf(to, "\nblkimg VERB --help lists a verb's options. Sizes are bytes or have a suffix K, M, G "
		    "or T (powers of 1024).\n"
		    "Formats are raw, vhd-fixed and vhd (dynamic and differencing); without --format the "
		    "suffix decides:\n"
		    ".vhd, and .raw or .img. Content never decides, it can only refuse.\n"
		    "Exit status: 0 fine, 1 failed or found something, 2 wrong usage.\n");
}

static void help_verb(const struct verb *v)
{
	printf("usage: blkimg %s [options] %s\n%s\n\n", v->name, v->words, v->summary);
	args_print_options(v->opts);
}

static const struct verb *find(const char *name)
{
	for (size_t i = 0; i < N_VERBS; i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

static void print_json(json_t *out, int ret, const struct err *e)
{
	if (ret < 0)
		json_object_set_new(out, "error", json_string(e->text));
	json_object_set_new(out, "ok", json_boolean(ret == 0));
	json_dumpf(out, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
	putchar('\n');
}

static int run(const struct verb *v, const struct args *a)
{
	struct err e = ERR_INIT;
	json_t *out = a->set & OPT_JSON ? json_object() : NULL;
	int ret;

	if (a->set & OPT_JSON && !out) {
		fprintf(stderr, "blkimg: no memory\n");
		return 1;
	}
	ret = v->run(a, out, &e);
	if (ret < 0 && !e.text[0])
		err_set(&e, ret, "%s: %s", a->word[0], strerror(-ret));
	if (out)
		print_json(out, ret, &e);
	json_decref(out);
	if (ret < 0)
		fprintf(stderr, "blkimg %s: %s\n", v->name, e.text);
	if ((fflush(stdout) || ferror(stdout)) && ret >= 0) {
		fprintf(stderr, "blkimg %s: cannot write the answer: %s\n", v->name, strerror(errno));
		ret = -EIO;
	}
	return ret ? 1 : 0;
}

int main(int argc, char **argv)
{
	const struct verb *v;
	struct args a = {0};
	struct err e = ERR_INIT;

	log_set_level(LOG_ERROR);
	if (argc < 2) {
		help_all(stderr);
		return 2;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
		help_all(stdout);
		return 0;
	}
	v = find(argv[1]);
	if (!v) {
		fprintf(stderr, "blkimg: there is no verb '%s'; blkimg --help lists them\n", argv[1]);
		return 2;
	}
	if (args_parse(v, argc - 2, argv + 2, &a, &e)) {
		fprintf(stderr, "blkimg %s: %s; see blkimg %s --help\n", v->name, e.text, v->name);
		return 2;
	}
	if (a.set & OPT_HELP) {
		help_verb(v);
		return 0;
	}
	return run(v, &a);
}
