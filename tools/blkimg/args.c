/* Options and sizes of the command line. One table gives parsing and help; an option that a verb does not
 * know is refused by name. */
#include "tools/blkimg/blkimg.h"

#include "blkd/bytes.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define FLAG SIZE_MAX

static const struct opt {
	enum opt_id id;
	const char *name, *value;
	size_t field; /* of struct args, a const char *; FLAG: takes no value */
	const char *help;
} options[] = {
    {OPT_JSON, "--json", NULL, FLAG, "answer in JSON"},
    {OPT_FORMAT, "--format", "F", offsetof(struct args, format),
     "raw, vhd-fixed or vhd: of FILE, CHILD, DST or A; else the suffix decides"},
    {OPT_SRC_FORMAT, "--src-format", "F", offsetof(struct args, src_format),
     "the same, of the parent, SRC or B"},
    {OPT_PARENT, "--parent", "P", offsetof(struct args, parent), "the image to clone"},
    {OPT_HIDE, "--hide", NULL, FLAG,
     "mark PARENT as a parent (hidden), so that nothing opens it for writing"},
    {OPT_RUN_DIR, "--run-dir", "DIR", offsetof(struct args, run_dir),
     "where blkd keeps its journals; else $BLKD_RUN_DIR or /run/blkd"},
    {OPT_DRY_RUN, "--dry-run", NULL, FLAG, "list what would be written, and write nothing"},
    {OPT_DROP, "--drop-bad-blocks", NULL, FLAG,
     "free blocks that lie where none can be; what they held is lost"},
    {OPT_EVEN_PARENT, "--even-parent", NULL, FLAG,
     "repair an image that is a parent; no child of it may be in use"},
    {OPT_LENIENT, "--lenient", NULL, FLAG, "only warn about what other tools are known to write"},
    {OPT_BITMAPS, "--bitmaps", NULL, FLAG, "also read the bitmap of each block that the batmap calls full"},
    {OPT_BUFFERED, "--buffered", NULL, FLAG, "for tests: accept a file system without direct I/O"},
    {OPT_HELP, "--help", NULL, FLAG, "this text"},
};
#define N_OPTIONS (sizeof(options) / sizeof(options[0]))

void args_print_options(unsigned opts)
{
	for (size_t i = 0; i < N_OPTIONS; i++) {
		char left[40];

		if (!(opts & options[i].id))
			continue;
		snprintf(left, sizeof(left), "%s%s%s", options[i].name, options[i].value ? " " : "",
			 options[i].value ? options[i].value : "");
		printf("  %-20s %s\n", left, options[i].help);
	}
}

static const struct opt *find(const struct verb *v, const char *word, const char **value)
{
	const char *eq = strchr(word, '=');
	size_t n = eq ? (size_t)(eq - word) : strlen(word);

	*value = eq ? eq + 1 : NULL;
	for (size_t i = 0; i < N_OPTIONS; i++)
		if (v->opts & options[i].id && strlen(options[i].name) == n &&
		    !memcmp(options[i].name, word, n))
			return &options[i];
	return NULL;
}

static int check_values(const struct args *a, struct err *e)
{
	const char *const formats[] = {a->format, a->src_format};

	for (size_t i = 0; i < 2; i++)
		if (formats[i] && !format_by_name(formats[i]))
			return err_set(e, -EINVAL, "there is no format '%s', only raw, vhd-fixed and vhd",
				       formats[i]);
	return 0;
}

static void take(struct args *a, const struct opt *o, const char *value)
{
	a->set |= o->id;
	if (o->field != FLAG)
		memcpy((char *)a + o->field, &value, sizeof(value));
}

int args_parse(const struct verb *v, int argc, char **argv, struct args *a, struct err *e)
{
	bool words_only = false;

	for (int i = 0; i < argc; i++) {
		const char *value;
		const struct opt *o;

		if (words_only || argv[i][0] != '-' || !argv[i][1]) {
			if (a->n_words == v->max_words)
				return err_set(e, -EINVAL, "'%s' is one word too many", argv[i]);
			a->word[a->n_words++] = argv[i];
			continue;
		}
		if (!strcmp(argv[i], "--")) {
			words_only = true;
			continue;
		}
		o = find(v, strcmp(argv[i], "-h") ? argv[i] : "--help", &value);
		if (!o)
			return err_set(e, -EINVAL, "there is no option '%s' here", argv[i]);
		if (o->field == FLAG && value)
			return err_set(e, -EINVAL, "%s takes no value", o->name);
		if (o->field != FLAG && !value && ++i == argc)
			return err_set(e, -EINVAL, "%s wants a value", o->name);
		take(a, o, value ? value : argv[i]);
	}
	if (a->set & OPT_HELP)
		return 0;
	if (a->n_words < v->min_words)
		return err_set(e, -EINVAL, "wants %s", v->words);
	for (unsigned i = 0; i < a->n_words; i++)
		if (!a->word[i][0])
			return err_set(e, -EINVAL, "word %u is empty, wants %s", i + 1, v->words);
	if (!a->run_dir)
		a->run_dir = getenv("BLKD_RUN_DIR");
	if (!a->run_dir)
		a->run_dir = "/run/blkd";
	a->backing_flags = a->set & OPT_BUFFERED ? BACKING_BUFFERED : 0;
	return check_values(a, e);
}

int size_parse(const char *text, uint64_t *size_bytes, struct err *e)
{
	static const char suffixes[] = "KMGT";
	unsigned long long n;
	const char *suffix;
	unsigned shift = 0;
	char *end;

	errno = 0;
	n = strtoull(text, &end, 10);
	suffix = *end ? strchr(suffixes, *end & ~0x20) : NULL;
	if (suffix && *suffix)
		shift = 10u * (unsigned)(suffix - suffixes + 1);
	if (text[0] < '0' || text[0] > '9' || errno || (*end && !shift) || (shift && end[1]))
		return err_set(e, -EINVAL, "'%s' is not a size: bytes, or a number with K, M, G or T", text);
	if (!n || n > (uint64_t)INT64_MAX >> shift)
		return err_set(e, -EINVAL, "the size '%s' is zero or beyond all files", text);
	*size_bytes = (uint64_t)n << shift;
	if (*size_bytes % SECTOR_BYTES)
		return err_set(e, -EINVAL, "the size '%s' is not a multiple of 512 bytes", text);
	return 0;
}
