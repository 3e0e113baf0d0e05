/*
 * One table gives parsing and help. Keys of the load are shared by the command line (where they change the
 * defaults) and by
 * --phase "key=value,flag,..." (where they change that phase only; a phase starts from the defaults given
 * before it).
 */
#include "sim/simguest/options.h"

#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/simguest/tally.h"
#include "sim/simproto.h"

struct key {
	const char *name, *arg, *help; /* arg NULL: a flag */
	int (*set)(struct options *o, struct phase *p, const char *value);
	size_t flag_off; /* of a bool, for flags without set() */
};

static int parse_u64(const char *s, uint64_t *out)
{
	static const char suffix[] = "kmgt";
	const char *at;
	char *end;
	uint64_t v;

	if (!isdigit((unsigned char)*s))
		return -EINVAL;
	errno = 0;
	v = strtoull(s, &end, 0);
	if (errno)
		return -EINVAL;
	if (*end) {
		at = strchr(suffix, tolower((unsigned char)*end));
		if (!at || end[1] || __builtin_mul_overflow(v, 1ull << (10 * (at - suffix + 1)), &v))
			return -EINVAL;
	}
	*out = v;
	return 0;
}

static int parse_u32(const char *s, uint64_t lo, uint64_t hi, uint32_t *out)
{
	uint64_t v;

	if (parse_u64(s, &v) || v < lo || v > hi)
		return -EINVAL;
	*out = (uint32_t)v;
	return 0;
}

static int set_rw(struct options *o, struct phase *p, const char *value)
{
	static const struct {
		const char *name;
		unsigned read, write, trim, random;
	} modes[] = {{"read", 1, 0, 0, 0},     {"write", 0, 1, 0, 0},	  {"trim", 0, 0, 1, 0},
		     {"randread", 1, 0, 0, 1}, {"randwrite", 0, 1, 0, 1}, {"randtrim", 0, 0, 1, 1},
		     {"rw", 1, 1, 0, 0},       {"randrw", 1, 1, 0, 1}};

	(void)o;
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		if (strcmp(modes[i].name, value))
			continue;
		p->mix[MIX_READ] = modes[i].read;
		p->mix[MIX_WRITE] = modes[i].write;
		p->mix[MIX_TRIM] = modes[i].trim;
		p->mix[MIX_FLUSH] = 0;
		p->random = modes[i].random;
		snprintf(p->name, sizeof(p->name), "%s", value);
		return 0;
	}
	return -EINVAL;
}

static int set_mix(struct options *o, struct phase *p, const char *value)
{
	unsigned w[MIXES] = {0}, sum = 0;
	char *end;

	(void)o;
	for (unsigned i = 0; i < MIXES; i++) {
		unsigned long v = strtoul(value, &end, 10);

		if (end == value || v > 1000000)
			return -EINVAL;
		w[i] = (unsigned)v;
		sum += w[i];
		if (!*end)
			break;
		if (*end != ':')
			return -EINVAL;
		value = end + 1;
	}
	if (*end || !sum)
		return -EINVAL;
	memcpy(p->mix, w, sizeof(w));
	p->random = true;
	snprintf(p->name, sizeof(p->name), "mix %u:%u:%u:%u", w[0], w[1], w[2], w[3]);
	return 0;
}

static int set_readall(struct options *o, struct phase *p, const char *value)
{
	(void)value;
	set_rw(o, p, "read");
	p->offset = p->size = p->io_bytes = p->ios = 0;
	p->runtime_ms = p->flush_every = p->marks = 0;
	snprintf(p->name, sizeof(p->name), "readall");
	return 0;
}

static int set_bs(struct options *o, struct phase *p, const char *value)
{
	char one[32];
	const char *dash = strchr(value, '-');

	(void)o;
	snprintf(one, sizeof(one), "%.*s", dash ? (int)(dash - value) : (int)strlen(value), value);
	if (parse_u32(one, 512, MAX_BS, &p->bs_min) ||
	    parse_u32(dash ? dash + 1 : one, p->bs_min, MAX_BS, &p->bs_max))
		return -EINVAL;
	return p->bs_min % 512 || p->bs_max % 512 ? -EINVAL : 0;
}

#define PHASE_U64(field, multiple)                                                                           \
	static int set_##field(struct options *o, struct phase *p, const char *value)                        \
	{                                                                                                    \
		(void)o;                                                                                     \
		return parse_u64(value, &p->field) || p->field % (multiple) ? -EINVAL : 0;                   \
	}
#define PHASE_U32(field, lo, hi)                                                                             \
	static int set_##field(struct options *o, struct phase *p, const char *value)                        \
	{                                                                                                    \
		(void)o;                                                                                     \
		return parse_u32(value, lo, hi, &p->field);                                                  \
	}
#define GLOBAL_U32(field, lo, hi)                                                                            \
	static int set_##field(struct options *o, struct phase *p, const char *value)                        \
	{                                                                                                    \
		(void)p;                                                                                     \
		return parse_u32(value, lo, hi, &o->field);                                                  \
	}
#define GLOBAL_STR(field)                                                                                    \
	static int set_##field(struct options *o, struct phase *p, const char *value)                        \
	{                                                                                                    \
		(void)p;                                                                                     \
		o->field = value;                                                                            \
		return 0;                                                                                    \
	}

PHASE_U64(size, 512)
PHASE_U64(offset, 512)
PHASE_U64(io_bytes, 1)
PHASE_U64(ios, 1)
PHASE_U32(iodepth, 1, MAX_DEPTH)
PHASE_U32(flush_every, 0, UINT32_MAX)
PHASE_U32(marks, 0, UINT32_MAX - 1)
PHASE_U32(think_us, 0, 60000000)
GLOBAL_U32(domid, 1, 32751)
GLOBAL_U32(ring_order, 0, 4)
GLOBAL_U32(queues, 1, 16)
GLOBAL_U32(max_segments, 1, 256)
GLOBAL_U32(cycles, 1, 1000)
GLOBAL_U32(timeout_s, 1, 86400)
GLOBAL_U32(io_timeout_s, 1, 86400)
GLOBAL_STR(dir)
GLOBAL_STR(kind)
GLOBAL_STR(json)
GLOBAL_STR(state)
GLOBAL_STR(base)
GLOBAL_STR(check_raw)

static int set_runtime(struct options *o, struct phase *p, const char *value)
{
	char *end;
	double s = strtod(value, &end);

	(void)o;
	if (end == value || *end || !(s > 0 && s < 1e6))
		return -EINVAL;
	p->runtime_ms = (uint32_t)(s * 1000);
	return 0;
}

static int set_verify(struct options *o, struct phase *p, const char *value)
{
	(void)o;
	if (strcmp(value, "0") && strcmp(value, "1"))
		return -EINVAL;
	p->verify = *value == '1';
	return 0;
}

static int set_seed(struct options *o, struct phase *p, const char *value)
{
	(void)p;
	return parse_u64(value, &o->seed);
}

static int set_abi(struct options *o, struct phase *p, const char *value)
{
	(void)p;
	o->abi = abi_find(value);
	return o->abi ? 0 : -EINVAL;
}

static int new_disk(struct options *o, struct disk_spec **d)
{
	if (o->ndisks == MAX_DISKS)
		return -EINVAL;
	*d = &o->disk[o->ndisks];
	(*d)->devid = 51712 + 16 * o->ndisks++;
	(*d)->mode = "w";
	return 0;
}

static int set_vbd(struct options *o, struct phase *p, const char *value)
{
	struct disk_spec *d;

	(void)p;
	return new_disk(o, &d) ? -EINVAL : parse_u32(value, 1, UINT32_MAX, &d->devid);
}

static int set_disk(struct options *o, struct phase *p, const char *value)
{
	struct disk_spec *d;
	char *rest, *item;

	(void)p;
	if (new_disk(o, &d))
		return -EINVAL;
	d->params = strdup(value);
	if (!d->params)
		return -ENOMEM;
	rest = strchr(d->params, ',');
	if (rest)
		*rest++ = 0;
	while ((item = strsep(&rest, ","))) {
		if (!strncmp(item, "mode=", 5))
			d->mode = item + 5;
		else if (!strncmp(item, "kind=", 5))
			d->kind = item + 5;
		else if (!strncmp(item, "devid=", 6)) {
			if (parse_u32(item + 6, 1, UINT32_MAX, &d->devid))
				return -EINVAL;
		} else if (strchr(item, '=') && d->nextra < MAX_EXTRA)
			d->extra[d->nextra++] = item;
		else
			return -EINVAL;
	}
	return *d->params && (!strcmp(d->mode, "r") || !strcmp(d->mode, "w")) ? 0 : -EINVAL;
}

static int set_phase(struct options *o, struct phase *p, const char *value);

#define GFLAG(n, field, text)                                                                                \
	{                                                                                                    \
		n, NULL, text, NULL, offsetof(struct options, field)                                         \
	}
#define PFLAG(n, field, text)                                                                                \
	{                                                                                                    \
		n, NULL, text, NULL, offsetof(struct phase, field)                                           \
	}

static const struct key phase_keys[] = {
    {"rw", "MODE", "read write trim randread randwrite randtrim rw randrw", set_rw, 0},
    {"mix", "R:W:T:F", "weights of reads, writes, trims and flushes, at random places", set_mix, 0},
    {"readall", NULL, "read the whole disk once, in order", set_readall, 0},
    {"bs", "N[-N]", "bytes of a request, or a range (512 to 4M; default 4k)", set_bs, 0},
    {"iodepth", "N", "requests in flight (default 32)", set_iodepth, 0},
    {"size", "N", "bytes of the region (default: to the end)", set_size, 0},
    {"offset", "N", "where the region begins", set_offset, 0},
    {"io-size", "N", "stop after so many bytes", set_io_bytes, 0},
    {"ios", "N", "stop after so many requests", set_ios, 0},
    {"runtime", "SECS", "stop after so long; without io-size and ios, go round until then", set_runtime, 0},
    {"flush-every", "N", "a flush after every N writes", set_flush_every, 0},
    {"marks", "N", "after every N requests, a write at a random place besides", set_marks, 0},
    {"think", "USECS", "pause before each request", set_think_us, 0},
    {"verify", "0|1", "check what is read, write patterns (default 1)", set_verify, 0},
    PFLAG("overlap", overlap, "let requests in flight overlap; they must take effect in order of arrival"),
    PFLAG("unaligned", unaligned, "segments that cover parts of their pages"),
    PFLAG("barrier", barrier, "flush with WRITE_BARRIER, with data or empty, instead of FLUSH_DISKCACHE"),
    PFLAG("force-indirect", force_indirect, "INDIRECT even for few segments"),
    PFLAG("force-write", force_write, "write to a read-only disk too (it must fail)"),
};

static const struct key global_keys[] = {
    {"dir", "DIR", "where simxen lives", set_dir, 0},
    {"domid", "N", "be this domain (default: the next free)", set_domid, 0},
    {"disk", "FMT:PATH[,mode=r][,devid=N][,kind=K][,NODE=VALUE]", "plug this disk as a toolstack would",
     set_disk, 0},
    {"vbd", "DEVID", "wait for somebody else to plug this one (default 51712, xvda)", set_vbd, 0},
    {"kind", "NAME", "kind of backend for --disk (default vbd3)", set_kind, 0},
    {"abi", "NAME", "x86_64, x86_32, or native: x86_64 without saying so (default x86_64)", set_abi, 0},
    {"ring-order", "N", "log2 of the ring's pages, at most what is offered (default 0)", set_ring_order, 0},
    {"queues", "N", "rings, at most what is offered (default 1)", set_queues, 0},
    {"max-segments", "N", "segments of an INDIRECT request, at most what is offered (default 256)",
     set_max_segments, 0},
    GFLAG("no-indirect", no_indirect, "never INDIRECT, as old frontends"),
    GFLAG("regrant", regrant, "grant and revoke pages around each request"),
    GFLAG("poll", poll, "look at the ring without sleeping"),
    GFLAG("own-padding-ok", own_padding_ok, "padding of a response may hold our own request's bytes"),
    {"base", "FILE", "raw image of what the disk holds before we write", set_base, 0},
    GFLAG("base-zero", base_zero, "the disk is zero before we write"),
    {"state", "FILE", "keep what was written (DEVID is appended with several disks); read it if it is there",
     set_state, 0},
    GFLAG("verify-only", verify_only, "one readall phase; the state file must be there"),
    {"check-raw", "FILE", "no simxen: check this raw image against --state and --base", set_check_raw, 0},
    {"seed", "N", "of patterns and random places (default: the domain's number)", set_seed, 0},
    {"phase", "KEY[=VALUE],...", "a phase of load; may be repeated", set_phase, 0},
    {"cycles", "N", "connect, run all phases and close N times", set_cycles, 0},
    GFLAG("hold", hold, "after the last phase stay connected until SIGTERM or until the backend closes"),
    GFLAG("abandon", abandon, "end without closing, as a destroyed domain"),
    GFLAG("expect-errors", expect_errors, "requests answered with an error are no failure"),
    GFLAG("expect-close", expect_close, "a backend that closes in the middle is no failure"),
    {"timeout", "SECS", "for connecting and closing (default 60)", set_timeout_s, 0},
    {"io-timeout", "SECS", "without any answer, a stall (default 120)", set_io_timeout_s, 0},
    {"json", "FILE", "the report; - is stdout", set_json, 0},
};

static const struct key *find_key(const struct key *keys, size_t n, const char *name, size_t len)
{
	for (size_t i = 0; i < n; i++) {
		if (strlen(keys[i].name) == len && !strncmp(keys[i].name, name, len))
			return &keys[i];
	}
	return NULL;
}

#define FIND(keys, name, len) find_key(keys, sizeof(keys) / sizeof((keys)[0]), name, len)

static int apply(const struct key *k, struct options *o, struct phase *p, bool global, const char *value)
{
	if (k->set)
		return k->set(o, p, value);
	*(bool *)((char *)(global ? (void *)o : (void *)p) + k->flag_off) = true;
	return 0;
}

static int set_phase(struct options *o, struct phase *unused, const char *value)
{
	struct phase *p = &o->phase[o->nphases];
	char *copy, *rest, *item;
	int err = 0;

	(void)unused;
	if (o->nphases == MAX_PHASES)
		return -EINVAL;
	*p = o->defaults;
	copy = rest = strdup(value);
	if (!copy)
		return -ENOMEM;
	while (!err && (item = strsep(&rest, ","))) {
		size_t len = strcspn(item, "=");
		const struct key *k = FIND(phase_keys, item, len);

		if (!k || !k->arg != !item[len])
			err = -EINVAL;
		else
			err = apply(k, o, p, false, item[len] ? item + len + 1 : NULL);
		if (err)
			note("--phase: cannot take '%s'", item);
	}
	free(copy);
	o->nphases++;
	return err;
}

static void print_keys(const struct key *keys, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		char left[80];

		snprintf(left, sizeof(left), "--%s%s%s", keys[i].name, keys[i].arg ? " " : "",
			 keys[i].arg ? keys[i].arg : "");
		printf("  %-24s%s%s\n", left, strlen(left) > 23 ? "\n                          " : "",
		       keys[i].help);
	}
}

static void print_help(void)
{
	printf("usage: simguest --dir DIR [option...]\n"
	       "A guest of simxen: connects to blkif disks as Linux would, loads them and checks every "
	       "sector.\n\n");
	print_keys(global_keys, sizeof(global_keys) / sizeof(global_keys[0]));
	printf("\nThe load; as options for all phases, or as keys of one --phase:\n");
	print_keys(phase_keys, sizeof(phase_keys) / sizeof(phase_keys[0]));
	printf(
	    "\nExit: 0 all good, 1 a verification, protocol or I/O error, 2 usage, 3 could not connect.\n");
}

static int parse_one(struct options *o, char **argv, int argc, int *i)
{
	const char *arg = argv[*i], *name = arg + 2, *value = NULL;
	size_t len = strcspn(name, "=");
	const struct key *k;
	bool global = true;

	if (strncmp(arg, "--", 2)) {
		note("unexpected argument '%s'", arg);
		return -EINVAL;
	}
	k = FIND(global_keys, name, len);
	if (!k) {
		k = FIND(phase_keys, name, len);
		global = false;
		o->have_load = true;
	}
	if (!k) {
		note("unknown option '%s' (try --help)", arg);
		return -EINVAL;
	}
	if (name[len])
		value = name + len + 1;
	else if (k->arg && *i + 1 < argc)
		value = argv[++*i];
	if (!k->arg != !value || apply(k, o, &o->defaults, global, value)) {
		note("cannot take --%s %s", k->name, value ? value : "without a value");
		return -EINVAL;
	}
	return 0;
}

static int finish(struct options *o)
{
	if (!o->dir && !o->check_raw) {
		note("--dir is missing (try --help)");
		return -EINVAL;
	}
	if ((o->verify_only || o->check_raw) && !o->state) {
		note("%s needs --state", o->check_raw ? "--check-raw" : "--verify-only");
		return -EINVAL;
	}
	if (o->ndisks == 0) {
		struct disk_spec *d;

		new_disk(o, &d);
	}
	if (o->verify_only) {
		o->nphases = 0;
		set_readall(o, &o->defaults, NULL);
		o->have_load = true;
	}
	if (o->nphases == 0 && (o->have_load || !o->hold))
		o->phase[o->nphases++] = o->defaults;
	return 0;
}

int options_parse(struct options *o, int argc, char **argv)
{
	*o = (struct options){.kind = "vbd3",
			      .abi = abi_find("x86_64"),
			      .domid = SIM_NEW_DOMAIN,
			      .queues = 1,
			      .max_segments = 256,
			      .cycles = 1,
			      .timeout_s = 60,
			      .io_timeout_s = 120,
			      .seed = UINT64_MAX};
	o->defaults = (struct phase){.verify = true, .bs_min = 4096, .bs_max = 4096, .iodepth = 32};
	set_rw(o, &o->defaults, "read");
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			print_help();
			return 1;
		}
		if (parse_one(o, argv, argc, &i))
			return -EINVAL;
	}
	return finish(o);
}

void options_free(struct options *o)
{
	for (unsigned i = 0; i < o->ndisks; i++)
		free(o->disk[i].params);
}
