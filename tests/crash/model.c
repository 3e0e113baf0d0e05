/*
 * The crash model; its rules are in model.h.
 *
 * It walks the log once, forwards. `base` is what is durable at the cut, `live` what a reader would see; an
 * operation is pending from its submission until it is durable. A state is base (or live, for a kill) plus a
 * choice among the pending ones. Pages are shared between base, live and states and copied at the first
 * write, with their hashes remembered: a state costs what it changes.
 */
#include "tests/crash/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u

struct mpage {
	unsigned refs;
	bool hashed;
	uint64_t hash;
	uint8_t data[MODEL_PAGE_BYTES];
};

struct op {
	const struct replay_rec *rec;
	bool completed; /* at the cut */
	bool limbo;	/* a failed flush covered it */
	uint8_t *dead;	/* per 512 bytes: something durable came later; NULL: none */
};

struct model {
	const struct replay_rec *rec;
	size_t n_rec, next; /* next: first record not submitted at the cut */
	unsigned n_files;
	bool *durable_at_completion;
	struct mfile *base, *live;
	struct op *op; /* pending, completed ones first and in the order of completion */
	unsigned n_op, cap_op;
	uint64_t event;
};

/* What a state takes of one pending operation. */
enum take { TAKE_NO, TAKE_ALL, TAKE_TORN };

struct choice {
	unsigned n;
	enum take *take;
	unsigned *order;
	uint64_t torn_seed;
};

static void *need(void *p)
{
	if (!p) {
		fprintf(stderr, "crash model: no memory\n");
		abort();
	}
	return p;
}

static uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint64_t rnd(uint64_t *s)
{
	return mix(*s += 0x9e3779b97f4a7c15u);
}

/* ---- files of shared pages ---- */

static void page_put(struct mpage *p)
{
	if (p && !--p->refs)
		free(p);
}

static void file_resize(struct mfile *f, uint64_t size)
{
	size_t n = (size_t)((size + MODEL_PAGE_BYTES - 1) / MODEL_PAGE_BYTES);

	for (size_t i = n; i < f->n; i++)
		page_put(f->page[i]);
	if (n > f->cap) {
		f->cap = n + n / 2 + 16;
		f->page = need(realloc(f->page, f->cap * sizeof(struct mpage *)));
	}
	for (size_t i = f->n; i < n; i++)
		f->page[i] = NULL;
	f->n = n;
	f->size = size;
}

static uint8_t *page_to_write(struct mfile *f, size_t i)
{
	struct mpage *p = f->page[i];

	if (!p || p->refs > 1) {
		struct mpage *fresh = need(malloc(sizeof(*fresh)));

		fresh->refs = 1;
		if (p)
			memcpy(fresh->data, p->data, MODEL_PAGE_BYTES);
		else
			memset(fresh->data, 0, MODEL_PAGE_BYTES);
		page_put(p);
		f->page[i] = p = fresh;
	}
	p->hashed = false;
	return p->data;
}

/* data NULL: zeros. Within the file. */
static void file_put(struct mfile *f, uint64_t off, const uint8_t *data, uint64_t len)
{
	while (len) {
		size_t i = (size_t)(off / MODEL_PAGE_BYTES), in = off % MODEL_PAGE_BYTES;
		size_t n = len < MODEL_PAGE_BYTES - in ? (size_t)len : MODEL_PAGE_BYTES - in;

		if (data) {
			memcpy(page_to_write(f, i) + in, data, n);
			data += n;
		} else if (f->page[i]) {
			memset(page_to_write(f, i) + in, 0, n);
		}
		off += n;
		len -= n;
	}
}

/* A size that grows again uncovers zeros, whatever the last page held. */
static void file_set_size(struct mfile *f, uint64_t size)
{
	uint64_t old = f->size;

	if (size < old) {
		file_resize(f, size);
		if (size % MODEL_PAGE_BYTES)
			file_put(f, size, NULL, MODEL_PAGE_BYTES - size % MODEL_PAGE_BYTES);
	} else if (size > old) {
		file_resize(f, size);
	}
}

static void file_share(struct mfile *to, const struct mfile *from)
{
	*to = (struct mfile){.size = from->size, .n = from->n, .cap = from->n};
	to->page = need(malloc((from->n + 1) * sizeof(struct mpage *)));
	for (size_t i = 0; i < from->n; i++) {
		to->page[i] = from->page[i];
		if (to->page[i])
			to->page[i]->refs++;
	}
}

static void file_clear(struct mfile *f)
{
	for (size_t i = 0; i < f->n; i++)
		page_put(f->page[i]);
	free(f->page);
}

static uint64_t page_hash(struct mpage *p)
{
	if (!p->hashed) {
		uint64_t h = 0, w;

		for (size_t i = 0; i < MODEL_PAGE_BYTES; i += 8) {
			memcpy(&w, p->data + i, 8);
			h = (h ^ w) * 0x9fb21c651e98df25u;
			h ^= h >> 29;
		}
		p->hash = h;
		p->hashed = true;
	}
	return p->hash;
}

/* ---- what operations do ---- */

static bool sizes(const struct replay_rec *r)
{
	return r->op == IO_EXTEND || r->op == IO_TRUNCATE;
}

static bool changes(const struct replay_rec *r)
{
	return r->op != IO_READ && r->op != IO_FLUSH;
}

static uint64_t first_sector(const struct replay_rec *r)
{
	return r->off_bytes / SECTOR;
}

static size_t n_sectors(const struct replay_rec *r)
{
	return r->len_bytes ? (size_t)((r->off_bytes + r->len_bytes - 1) / SECTOR - first_sector(r) + 1) : 0;
}

static void apply_size(struct mfile *f, const struct replay_rec *r)
{
	uint64_t size = r->op == IO_EXTEND ? r->off_bytes + r->len_bytes : r->off_bytes;

	if (r->op == IO_EXTEND && size <= f->size)
		return;
	if (r->op == IO_EXTEND && r->data && r->completed_at != REPLAY_PENDING) {
		file_set_size(f, size);
		file_put(f, r->size_before, r->data, r->size_after - r->size_before);
		return;
	}
	file_set_size(f, size);
}

/* Does a write make the file longer, as it ran (or, still in flight, as it would run now)? */
static bool grows(const struct op *o, uint64_t live_size)
{
	const struct replay_rec *r = o->rec;

	return r->op == IO_WRITE &&
	       (o->completed ? r->size_after > r->size_before : r->off_bytes + r->len_bytes > live_size);
}

/* limit: bytes from its start that may land. */
static void apply_bytes(struct mfile *f, const struct op *o, uint64_t live_size, uint64_t limit,
			const uint8_t *skip)
{
	const struct replay_rec *r = o->rec;
	uint64_t off = r->off_bytes, end = r->off_bytes + limit;

	if (grows(o, live_size) && end > f->size)
		file_set_size(f, end);
	if (end > f->size)
		end = f->size;
	if (off < end && !skip && !o->dead) {
		file_put(f, off, r->op == IO_WRITE ? r->data : NULL, end - off);
		return;
	}
	while (off < end) {
		uint64_t stop = (off / SECTOR + 1) * SECTOR;
		size_t s = (size_t)(off / SECTOR - first_sector(r));

		if (stop > end)
			stop = end;
		if (!(skip && skip[s]) && !(o->dead && o->dead[s]))
			file_put(f, off, r->op == IO_WRITE ? r->data + (off - r->off_bytes) : NULL,
				 stop - off);
		off = stop;
	}
}

static void apply_whole(struct mfile *f, const struct op *o, uint64_t live_size, uint64_t limit)
{
	if (sizes(o->rec)) {
		if (!o->completed || o->rec->res >= 0)
			apply_size(f, o->rec);
	} else {
		apply_bytes(f, o, live_size, limit, NULL);
	}
}

/* ---- walking the log ---- */

struct model *model_create(const struct replay_rec *rec, size_t n, const struct model_init *init,
			   unsigned n_files)
{
	struct model *m = need(calloc(1, sizeof(*m)));

	m->rec = rec;
	m->n_rec = n;
	m->n_files = n_files;
	m->durable_at_completion = need(calloc(n_files, sizeof(bool)));
	m->base = need(calloc(n_files, sizeof(struct mfile)));
	m->live = need(calloc(n_files, sizeof(struct mfile)));
	for (unsigned i = 0; i < n_files; i++) {
		m->durable_at_completion[i] = init[i].durable_at_completion;
		file_resize(&m->base[i], init[i].size);
		for (size_t p = 0; init[i].pages && p < m->base[i].n; p++)
			if (init[i].pages[p])
				memcpy(page_to_write(&m->base[i], p), init[i].pages[p], MODEL_PAGE_BYTES);
		/* What lies in the last page beyond the size is not the file's. */
		if (init[i].size % MODEL_PAGE_BYTES)
			file_put(&m->base[i], init[i].size, NULL,
				 MODEL_PAGE_BYTES - init[i].size % MODEL_PAGE_BYTES);
		file_share(&m->live[i], &m->base[i]);
	}
	return m;
}

void model_free(struct model *m)
{
	for (unsigned i = 0; i < m->n_files; i++) {
		file_clear(&m->base[i]);
		file_clear(&m->live[i]);
	}
	for (unsigned i = 0; i < m->n_op; i++)
		free(m->op[i].dead);
	free(m->op);
	free(m->base);
	free(m->live);
	free(m->durable_at_completion);
	free(m);
}

static void op_remove(struct model *m, unsigned i)
{
	free(m->op[i].dead);
	memmove(&m->op[i], &m->op[i + 1], (m->n_op - i - 1) * sizeof(*m->op));
	m->n_op--;
}

/* What is durable now replaces what waits in limbo below it. */
static void bury(struct model *m, const struct replay_rec *r)
{
	uint64_t first = first_sector(r);
	size_t n = n_sectors(r);

	for (unsigned i = 0; i < m->n_op; i++) {
		struct op *o = &m->op[i];

		if (!o->completed || o->rec->file != r->file || o->rec->completed_at >= r->completed_at ||
		    sizes(o->rec))
			continue;
		for (size_t s = 0; s < n_sectors(o->rec); s++) {
			uint64_t at = first_sector(o->rec) + s;

			if (at < first || at >= first + n)
				continue;
			if (!o->dead)
				o->dead = need(calloc(n_sectors(o->rec), 1));
			o->dead[s] = 1;
		}
	}
}

static void make_durable(struct model *m, unsigned i)
{
	const struct replay_rec *r = m->op[i].rec;

	apply_whole(&m->base[r->file], &m->op[i], m->live[r->file].size, r->landed_bytes);
	op_remove(m, i);
	if (!sizes(r))
		bury(m, r);
}

static void flushed(struct model *m, const struct replay_rec *flush)
{
	unsigned i = 0;

	while (i < m->n_op) {
		struct op *o = &m->op[i];
		bool covered =
		    o->completed && o->rec->file == flush->file && o->rec->completed_at < flush->submitted_at;

		if (covered && flush->res < 0)
			o->limbo = true;
		if (covered && flush->res >= 0 && !o->limbo)
			make_durable(m, i);
		else
			i++;
	}
}

static void completed(struct model *m, unsigned i)
{
	struct op o = m->op[i];
	unsigned at = 0;

	o.completed = true;
	apply_whole(&m->live[o.rec->file], &o, m->live[o.rec->file].size, o.rec->landed_bytes);
	/* Behind those that completed before it, before those in flight. */
	while (at < m->n_op && m->op[at].completed)
		at++;
	memmove(&m->op[at + 1], &m->op[at], (i - at) * sizeof(*m->op));
	m->op[at] = o;
	if (m->durable_at_completion[o.rec->file])
		make_durable(m, at);
}

static void submitted(struct model *m, const struct replay_rec *r)
{
	if (m->n_op == m->cap_op) {
		m->cap_op = m->cap_op ? m->cap_op * 2 : 32;
		m->op = need(realloc(m->op, m->cap_op * sizeof(*m->op)));
	}
	m->op[m->n_op++] = (struct op){.rec = r};
}

static void step(struct model *m, uint64_t event)
{
	if (m->next < m->n_rec && m->rec[m->next].submitted_at == event) {
		if (m->rec[m->next].op != IO_READ)
			submitted(m, &m->rec[m->next]);
		m->next++;
		return;
	}
	for (unsigned i = 0; i < m->n_op; i++) {
		const struct replay_rec *r = m->op[i].rec;

		if (r->completed_at != event)
			continue;
		if (r->op == IO_FLUSH) {
			op_remove(m, i);
			flushed(m, r);
		} else {
			completed(m, i);
		}
		return;
	}
}

void model_cut(struct model *m, uint64_t event)
{
	while (m->event < event)
		step(m, m->event++);
}

/* ---- states ---- */

static bool open_question(const struct op *o, enum model_kind kind)
{
	return changes(o->rec) && (kind == MODEL_POWER_CUT || !o->completed);
}

unsigned model_pending(const struct model *m, enum model_kind kind)
{
	unsigned n = 0;

	for (unsigned i = 0; i < m->n_op; i++)
		n += open_question(&m->op[i], kind);
	return n;
}

uint64_t model_states(const struct model *m, enum model_kind kind, const struct model_bounds *b)
{
	unsigned n = model_pending(m, kind);

	if (!n)
		return 1;
	return (n <= b->all_subsets_up_to ? 1ull << n : 2 + 2ull * n + b->random_subsets) + b->torn +
	       (n > 1 ? b->reordered : 0);
}

static void shuffle(unsigned *order, unsigned n, uint64_t *s)
{
	for (unsigned i = n; i > 1; i--) {
		unsigned j = (unsigned)(rnd(s) % i), t = order[i - 1];

		order[i - 1] = order[j];
		order[j] = t;
	}
}

static void choose_random(struct choice *c, uint64_t *s)
{
	uint64_t bias = 1 + rnd(s) % 7;

	for (unsigned i = 0; i < c->n; i++)
		c->take[i] = rnd(s) % 8 < bias ? TAKE_ALL : TAKE_NO;
}

static void choose(const struct model *m, enum model_kind kind, const struct model_bounds *b, uint64_t k,
		   struct choice *c)
{
	unsigned n = model_pending(m, kind);
	bool every = n <= b->all_subsets_up_to;
	uint64_t subsets = !n ? 1 : every ? 1ull << n : 2 + 2ull * n + b->random_subsets;
	uint64_t s = mix(b->seed) ^ mix(m->event * 0x10001 + k);

	*c = (struct choice){.n = n, .torn_seed = rnd(&s)};
	c->take = need(calloc(n + 1, sizeof(enum take)));
	c->order = need(calloc(n + 1, sizeof(unsigned)));
	for (unsigned i = 0; i < n; i++)
		c->order[i] = i;
	if (k >= subsets) {
		choose_random(c, &s);
		for (unsigned i = 0; i < n && k - subsets < b->torn; i++)
			if (rnd(&s) & 1)
				c->take[i] = TAKE_TORN;
		if (k - subsets >= b->torn)
			shuffle(c->order, n, &s);
		return;
	}
	if (!every && k >= 2 + 2ull * n) {
		choose_random(c, &s);
		return;
	}
	for (unsigned i = 0; i < n; i++) {
		bool take;

		if (every)
			take = k >> i & 1;
		else if (k < 2)
			take = k == 1;
		else if (k < 2 + n)
			take = i != k - 2; /* all but one */
		else
			take = i == k - 2 - n; /* one alone */
		c->take[i] = take ? TAKE_ALL : TAKE_NO;
	}
}

static void choice_free(struct choice *c)
{
	free(c->take);
	free(c->order);
}

static const struct op *question(const struct model *m, enum model_kind kind, unsigned q)
{
	for (unsigned i = 0; i < m->n_op; i++)
		if (open_question(&m->op[i], kind) && !q--)
			return &m->op[i];
	abort();
}

static void apply_torn(struct mfile *f, const struct op *o, uint64_t live_size, uint64_t *s)
{
	size_t n = n_sectors(o->rec);
	uint8_t *skip = need(calloc(n + 1, 1));
	uint64_t way = rnd(s) % 3, cut = n ? rnd(s) % n : 0;

	for (size_t i = 0; i < n; i++)
		skip[i] = (way == 0 && i >= cut) || (way == 1 && i < cut) || (way == 2 && (rnd(s) & 1));
	apply_bytes(f, o, live_size, o->rec->len_bytes, skip);
	free(skip);
}

void model_state(const struct model *m, enum model_kind kind, const struct model_bounds *b, uint64_t k,
		 struct mstate *out)
{
	const struct mfile *from = kind == MODEL_KILL ? m->live : m->base;
	bool *size_lost = need(calloc(m->n_files, sizeof(bool)));
	struct choice c;

	out->n_files = m->n_files;
	out->file = need(calloc(m->n_files, sizeof(struct mfile)));
	out->pages = need(calloc(m->n_files, sizeof(*out->pages)));
	for (unsigned i = 0; i < m->n_files; i++)
		file_share(&out->file[i], &from[i]);
	choose(m, kind, b, k, &c);
	for (unsigned i = 0; i < c.n; i++) {
		const struct op *o = question(m, kind, c.order[i]);
		unsigned file = o->rec->file;
		enum take take = c.take[c.order[i]];

		if (sizes(o->rec)) {
			size_lost[file] |= take == TAKE_NO;
			if (!size_lost[file])
				apply_whole(&out->file[file], o, m->live[file].size, 0);
		} else if (take == TAKE_ALL) {
			apply_whole(&out->file[file], o, m->live[file].size, o->rec->len_bytes);
		} else if (take == TAKE_TORN) {
			apply_torn(&out->file[file], o, m->live[file].size, &c.torn_seed);
		}
	}
	choice_free(&c);
	free(size_lost);
}

void model_describe(const struct model *m, enum model_kind kind, const struct model_bounds *b, uint64_t k,
		    char *text, size_t n)
{
	static const char *const op_name[] = {"read",	  "write", "flush", "extend",
					      "truncate", "zero",  "punch"};
	static const char *const take_name[] = {"lost", "there", "torn"};
	struct choice c;
	size_t at = 0;

	choose(m, kind, b, k, &c);
	text[0] = 0;
	for (unsigned i = 0; i < c.n && at + 1 < n; i++) {
		const struct op *o = question(m, kind, c.order[i]);

		at += (size_t)snprintf(text + at, n - at, "%s%s %#llx+%#llx %s%s", i ? ", " : "",
				       op_name[o->rec->op], (unsigned long long)o->rec->off_bytes,
				       (unsigned long long)o->rec->len_bytes, take_name[c.take[c.order[i]]],
				       o->completed ? "" : " (in flight)");
	}
	choice_free(&c);
}

bool model_choice(const struct model *m, enum model_kind kind, const struct model_bounds *b, uint64_t k,
		  size_t *index, unsigned *n, unsigned max)
{
	struct choice c;
	bool plain = true;

	*n = 0;
	choose(m, kind, b, k, &c);
	for (unsigned i = 0; i < c.n; i++) {
		plain = plain && c.order[i] == i && c.take[i] != TAKE_TORN && *n < max;
		if (plain && c.take[i] == TAKE_ALL)
			index[(*n)++] = (size_t)(question(m, kind, i)->rec - m->rec);
	}
	choice_free(&c);
	return plain;
}

void mstate_free(struct mstate *s)
{
	for (unsigned i = 0; i < s->n_files; i++) {
		file_clear(&s->file[i]);
		free(s->pages[i]);
	}
	free(s->file);
	free(s->pages);
}

uint64_t mstate_hash(const struct mstate *s)
{
	uint64_t h = 0;

	for (unsigned f = 0; f < s->n_files; f++) {
		h ^= mix(s->file[f].size * 31 + f);
		for (size_t i = 0; i < s->file[f].n; i++)
			if (s->file[f].page[i])
				h ^= mix(page_hash(s->file[f].page[i]) + mix(i + 1) + f);
	}
	return h;
}

const uint8_t *const *mstate_pages(struct mstate *s, unsigned file)
{
	const struct mfile *f = &s->file[file];

	if (!s->pages[file]) {
		s->pages[file] = need(malloc((f->n + 1) * sizeof(uint8_t *)));
		for (size_t i = 0; i < f->n; i++)
			s->pages[file][i] = f->page[i] ? f->page[i]->data : NULL;
	}
	return s->pages[file];
}
