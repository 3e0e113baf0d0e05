/*
 * Other readers of VHD trees against a flat file, for many images in one process.
 *
 *   vhd_opinions                    reads lines "KIND, FLAT, LEAF[, PARENT ...]" with tabs between them, and
 * reads each tree with libvhdi and with the reader below. Images that stand alone are kept and named on
 * stdout, for qemu; all other leaves are removed, and with the line "closed" the flat file of their state.
 *   vhd_opinions --qemu FLAT LEAF GOT   GOT is what qemu made of LEAF and differs from FLAT
 *
 * The reader below is the specification in thirty lines. It also knows the rules by which others are known to
 * misread, and a sector where they differ from the flat file counts as explained only when it holds what that
 * rule makes of the very image, byte for byte, and the flat file what the specification does. All else is a
 * disagreement: one line each, exit 1.
 *
 * Known: libvhdi 20210425 takes what follows a run of set bits, up to the next multiple of 8 sectors, for
 * present. qemu takes every sector of an allocated block for present. And where blocks are smaller than 2
 * MiB, libvhdi takes the padding of a bitmap for sectors, so that a run of clear bits at the end of a block
 * hides the next blocks from one and the same read: it is asked for a block at a time.
 *
 * Shares no code with formats/ or with the crash test's judge.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <libvhdi.h>

#define MAX_LAYERS 4
#define SECTOR	   512u
#define MAX_BLOCK  (2u * 1024 * 1024)

enum rule { RULE_SPEC, RULE_LIBVHDI, RULE_QEMU };

struct file {
	const unsigned char *p;
	uint64_t size;
};

struct tally {
	uint64_t images, sectors, explained, images_explained, wrong;
};

static _Noreturn void die(const char *what)
{
	perror(what);
	exit(2);
}

static struct file map_file(const char *path)
{
	struct file f = {0};
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) || !st.st_size)
		die(path);
	f.size = (uint64_t)st.st_size;
	f.p = mmap(NULL, f.size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (f.p == MAP_FAILED)
		die(path);
	close(fd);
	return f;
}

static void unmap_file(struct file *f)
{
	munmap((void *)(uintptr_t)f->p, f->size);
}

/* ---- the specification ---- */

static uint64_t number(struct file f, uint64_t off, unsigned bytes)
{
	uint64_t v = 0;

	if (off > f.size || bytes > f.size - off) {
		fprintf(stderr, "vhd_opinions: a number at %llu is beyond the end of a file\n",
			(unsigned long long)off);
		exit(2);
	}
	while (bytes--)
		v = v << 8 | f.p[off++];
	return v;
}

static bool present(struct file f, uint64_t bitmap, uint64_t s, enum rule rule)
{
	unsigned byte = (unsigned)number(f, bitmap + s / 8, 1), upto = (unsigned)(s % 8);

	switch (rule) {
	case RULE_QEMU:
		return true;
	case RULE_LIBVHDI:
		return byte >> (7 - upto);
	case RULE_SPEC:
		break;
	}
	return byte >> (7 - upto) & 1;
}

static void read_sector(const struct file *layer, int n, uint64_t lba, enum rule rule, unsigned char *out)
{
	for (int i = 0; i < n; i++) {
		struct file f = layer[i];
		uint64_t header = number(f, 16, 8), block = number(f, header + 32, 4) / SECTOR, at, off;

		if (lba >= number(f, 48, 8) / SECTOR)
			break;
		at = number(f, number(f, header + 16, 8) + 4 * (lba / block), 4);
		if (at == 0xffffffff || !present(f, at * SECTOR, lba % block, rule))
			continue;
		off = (at + 1 + lba % block) * SECTOR;
		(void)number(f, off + SECTOR - 1, 1);
		memcpy(out, f.p + off, SECTOR);
		return;
	}
	memset(out, 0, SECTOR);
}

/* ---- comparing ---- */

struct subject {
	const char *who, *leaf;
	struct file flat, layer[MAX_LAYERS];
	int n;
	enum rule rule; /* of whom is read */
	bool explained;
};

static void compare(struct subject *s, uint64_t lba, const unsigned char *got, struct tally *t)
{
	unsigned char rule[SECTOR], spec[SECTOR];

	t->sectors++;
	if (!memcmp(got, s->flat.p + lba * SECTOR, SECTOR))
		return;
	read_sector(s->layer, s->n, lba, s->rule, rule);
	read_sector(s->layer, s->n, lba, RULE_SPEC, spec);
	if (!memcmp(got, rule, SECTOR) && !memcmp(s->flat.p + lba * SECTOR, spec, SECTOR)) {
		t->explained++;
		t->images_explained += !s->explained;
		s->explained = true;
		return;
	}
	if (t->wrong++ < 20)
		fprintf(stderr, "DISAGREEMENT: %s: sector %llu by %s\n", s->leaf, (unsigned long long)lba,
			s->who);
}

static void by_specification(struct subject *s, struct tally *t)
{
	unsigned char got[SECTOR];

	s->who = "the specification";
	s->rule = RULE_SPEC;
	t->images++;
	for (uint64_t lba = 0; lba < s->flat.size / SECTOR; lba++) {
		read_sector(s->layer, s->n, lba, RULE_SPEC, got);
		t->sectors++;
		if (memcmp(got, s->flat.p + lba * SECTOR, SECTOR) && t->wrong++ < 20)
			fprintf(stderr, "DISAGREEMENT: %s: sector %llu by the specification\n", s->leaf,
				(unsigned long long)lba);
	}
}

/* ---- libvhdi ---- */

static void told(const char *leaf, libvhdi_error_t **error, struct tally *t)
{
	t->wrong++;
	fprintf(stderr, "DISAGREEMENT: libvhdi does not read %s\n", leaf);
	if (*error)
		libvhdi_error_backtrace_fprint(*error, stderr);
	libvhdi_error_free(error);
}

static bool libvhdi_tree(libvhdi_file_t **file, char **path, int n, libvhdi_error_t **error)
{
	for (int i = 0; i < n; i++)
		if (libvhdi_file_initialize(&file[i], error) != 1 ||
		    libvhdi_file_open(file[i], path[i], libvhdi_get_access_flags_read(), error) != 1)
			return false;
	for (int i = n - 2; i >= 0; i--)
		if (libvhdi_file_set_parent_file(file[i], file[i + 1], error) != 1)
			return false;
	return true;
}

static void by_libvhdi(struct subject *s, char **path, struct tally *t)
{
	static unsigned char buf[MAX_BLOCK];
	uint64_t block = number(s->layer[0], number(s->layer[0], 16, 8) + 32, 4);
	libvhdi_file_t *file[MAX_LAYERS] = {0};
	libvhdi_error_t *error = NULL;
	size64_t size = 0;
	bool ok = block && block <= MAX_BLOCK && libvhdi_tree(file, path, s->n, &error) &&
		  libvhdi_file_get_media_size(file[0], &size, &error) == 1 && size == s->flat.size;

	s->who = "libvhdi";
	s->rule = RULE_LIBVHDI;
	t->images++;
	for (uint64_t off = 0; ok && off < size; off += block) {
		size_t len = size - off < block ? (size_t)(size - off) : (size_t)block;

		ok = libvhdi_file_read_buffer_at_offset(file[0], buf, len, (off64_t)off, &error) ==
		     (ssize_t)len;
		for (size_t i = 0; ok && i < len; i += SECTOR)
			compare(s, (off + i) / SECTOR, buf + i, t);
	}
	if (!ok)
		told(s->leaf, &error, t);
	for (int i = 0; i < s->n; i++) {
		libvhdi_file_close(file[i], NULL);
		libvhdi_file_free(&file[i], NULL);
	}
}

/* ---- the two uses ---- */

static int split(char *line, char **word, int max)
{
	int n = 0;

	line[strcspn(line, "\n")] = 0;
	for (char *at = line; at && n < max; n++)
		word[n] = strsep(&at, "\t");
	return n;
}

static void judge_line(char *line, struct tally *spec, struct tally *lib)
{
	char *word[2 + MAX_LAYERS];
	int n = split(line, word, 2 + MAX_LAYERS);
	struct subject s = {.n = n - 2};

	if (n < 3) {
		fprintf(stderr, "vhd_opinions: a line without three words\n");
		exit(2);
	}
	s.leaf = word[2];
	s.flat = map_file(word[1]);
	for (int i = 0; i < s.n; i++)
		s.layer[i] = map_file(word[2 + i]);
	by_specification(&s, spec);
	by_libvhdi(&s, word + 2, lib);
	unmap_file(&s.flat);
	for (int i = 0; i < s.n; i++)
		unmap_file(&s.layer[i]);
	if (s.n == 1) {
		printf("%s\t%s\t%s\n", word[0], word[1], word[2]);
		return;
	}
	unlink(word[2]);
	if (!strcmp(word[0], "closed"))
		unlink(word[1]);
}

static int qemu(char **path)
{
	struct subject s = {.who = "qemu", .leaf = path[1], .n = 1, .rule = RULE_QEMU};
	struct file got = map_file(path[2]);
	struct tally t = {0};

	s.flat = map_file(path[0]);
	s.layer[0] = map_file(path[1]);
	if (got.size != s.flat.size) {
		fprintf(stderr, "DISAGREEMENT: %s: size by qemu\n", path[1]);
		return 1;
	}
	for (uint64_t lba = 0; lba < got.size / SECTOR; lba++)
		compare(&s, lba, got.p + lba * SECTOR, &t);
	return t.wrong ? 1 : 0;
}

int main(int argc, char **argv)
{
	struct tally spec = {0}, lib = {0};
	char *line = NULL;
	size_t cap = 0;

	if (argc == 5 && !strcmp(argv[1], "--qemu"))
		return qemu(argv + 2);
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (getline(&line, &cap, stdin) > 0)
		judge_line(line, &spec, &lib);
	free(line);
	fprintf(stderr, "specification: %llu images, %llu sectors, %llu disagreements\n",
		(unsigned long long)spec.images, (unsigned long long)spec.sectors,
		(unsigned long long)spec.wrong);
	fprintf(stderr,
		"libvhdi: %llu images, %llu sectors, %llu disagreements; explained: %llu sectors of %llu "
		"images\n",
		(unsigned long long)lib.images, (unsigned long long)lib.sectors,
		(unsigned long long)lib.wrong, (unsigned long long)lib.explained,
		(unsigned long long)lib.images_explained);
	return spec.wrong || lib.wrong || !lib.images ? 1 : 0;
}
