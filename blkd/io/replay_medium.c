/*
 * The replay engine's medium: files as tables of pages, what each operation does to them, the log, and the
 * fault plan.
 *
 * A file is an array of pointers to 4 KiB pages; NULL is zeros. Pages given by the caller are borrowed and
 * copied at the first write, so that a crash checker can make a medium from a disk state in the time it takes
 * to copy the pointers. An operation acts when it completes, never before: between the two events the medium
 * holds the old bytes.
 *
 * It does not model caches or power cuts: what a cut may leave is worked out from the log by tests/crash, on
 * purpose without this code.
 */
#include "blkd/io/replay.h"

#include "blkd/bytes.h"
#include "blkd/log.h"

#include <errno.h>
#include <stdlib.h>

#define CHUNK_BYTES (256u << 10)

uint64_t replay_random(struct replay *r)
{
	uint64_t z = r->rng += 0x9e3779b97f4a7c15u; /* splitmix64 */

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* ---- files ---- */

struct replay_file *replay_file_at(const struct replay *r, int id)
{
	CHECK(id >= 0 && (unsigned)id < r->n_files);
	return r->file[id];
}

/* Drops ".", resolves ".." by name, and squeezes slashes. NULL: no memory. */
char *replay_normal_path(const char *path)
{
	char *out = malloc(strlen(path) + 2), *o = out;
	const char *p = path;

	if (!out)
		return NULL;
	while (*p) {
		size_t n = strcspn(p, "/");

		if (n == 2 && p[0] == '.' && p[1] == '.') {
			while (o > out && *--o != '/')
				;
		} else if (n && !(n == 1 && p[0] == '.')) {
			if (o > out || path[0] == '/')
				*o++ = '/';
			memcpy(o, p, n);
			o += n;
		}
		p += n;
		p += strspn(p, "/");
	}
	*o = 0;
	return out;
}

static int reserve_pages(struct replay_file *f, size_t n)
{
	size_t cap = f->cap_pages ? f->cap_pages : 16;
	uint8_t **page;
	uint8_t *owned;

	if (n <= f->cap_pages)
		return 0;
	while (cap < n)
		cap *= 2;
	page = realloc(f->page, cap * sizeof(*page));
	if (!page)
		return -ENOMEM;
	f->page = page;
	owned = realloc(f->owned, cap);
	if (!owned)
		return -ENOMEM;
	f->owned = owned;
	f->cap_pages = cap;
	return 0;
}

static int set_size(struct replay_file *f, uint64_t size)
{
	size_t n = (size_t)((size + REPLAY_PAGE_BYTES - 1) / REPLAY_PAGE_BYTES);

	if (reserve_pages(f, n))
		return -ENOMEM;
	for (size_t i = n; i < f->n_pages; i++)
		if (f->owned[i])
			free(f->page[i]);
	for (size_t i = f->n_pages; i < n; i++) {
		f->page[i] = NULL;
		f->owned[i] = 0;
	}
	f->n_pages = n;
	f->size = size;
	return 0;
}

static uint8_t *page_to_write(struct replay_file *f, size_t i)
{
	if (!f->owned[i]) {
		uint8_t *page = malloc(REPLAY_PAGE_BYTES);

		if (!page)
			return NULL;
		if (f->page[i])
			memcpy(page, f->page[i], REPLAY_PAGE_BYTES);
		else
			memset(page, 0, REPLAY_PAGE_BYTES);
		f->page[i] = page;
		f->owned[i] = 1;
	}
	return f->page[i];
}

void replay_file_read(const struct replay_file *f, uint64_t off, void *buf, uint64_t len)
{
	uint8_t *out = buf;

	while (len) {
		uint64_t i = off / REPLAY_PAGE_BYTES, in = off % REPLAY_PAGE_BYTES;
		uint64_t n = u64_min(len, REPLAY_PAGE_BYTES - in);
		uint64_t have = off >= f->size ? 0 : u64_min(n, f->size - off);

		if (have && f->page[i])
			memcpy(out, f->page[i] + in, (size_t)have);
		else
			have = 0;
		memset(out + have, 0, (size_t)(n - have));
		out += n;
		off += n;
		len -= n;
	}
}

/* data NULL: zeros. Within the file. */
static int file_write(struct replay_file *f, uint64_t off, const uint8_t *data, uint64_t len)
{
	while (len) {
		uint64_t i = off / REPLAY_PAGE_BYTES, in = off % REPLAY_PAGE_BYTES;
		uint64_t n = u64_min(len, REPLAY_PAGE_BYTES - in);

		if (data || f->page[i]) {
			uint8_t *page = page_to_write(f, i);

			if (!page)
				return -ENOMEM;
			if (data)
				memcpy(page + in, data, (size_t)n);
			else
				memset(page + in, 0, (size_t)n);
		}
		if (data)
			data += n;
		off += n;
		len -= n;
	}
	return 0;
}

static int grow_to(struct replay_file *f, uint64_t size)
{
	struct replay *r = f->replay;
	uint64_t used = 0;

	if (size <= f->size)
		return 0;
	for (unsigned i = 0; i < r->n_files; i++)
		used += r->file[i]->size;
	if (size - f->size > r->capacity - u64_min(used, r->capacity))
		return -ENOSPC;
	/* What a shrunk file kept of its last page must not come back. */
	if (f->size % REPLAY_PAGE_BYTES && f->page[f->n_pages - 1]) {
		uint64_t last = f->size;
		uint64_t n = REPLAY_PAGE_BYTES - last % REPLAY_PAGE_BYTES;

		if (file_write(f, last, NULL, n))
			return -ENOMEM;
	}
	return set_size(f, size);
}

struct replay_file *replay_file_new(struct replay *r, const char *path, int *error)
{
	struct replay_file *f = NULL;
	struct replay_file **file;
	char *name;

	*error = -EEXIST;
	if (replay_file_find(r, path) >= 0)
		return NULL;
	*error = -ENOMEM;
	name = replay_normal_path(path);
	file = realloc(r->file, (r->n_files + 1) * sizeof(*file));
	if (file)
		r->file = file;
	if (name && file)
		f = calloc(1, sizeof(*f));
	if (!f) {
		free(name);
		return NULL;
	}
	f->replay = r;
	f->id = r->n_files;
	f->path = name;
	f->traits = r->traits;
	r->file[r->n_files++] = f;
	return f;
}

int replay_file_add(struct replay *r, const char *path, uint64_t size, const uint8_t *const *pages)
{
	int rc;
	struct replay_file *f = replay_file_new(r, path, &rc);

	if (!f)
		return rc;
	if (set_size(f, size))
		return -ENOMEM;
	for (size_t i = 0; pages && i < f->n_pages; i++)
		f->page[i] = (uint8_t *)(uintptr_t)pages[i]; /* borrowed: page_to_write copies it first */
	return (int)f->id;
}

int replay_file_find(const struct replay *r, const char *path)
{
	char *name = replay_normal_path(path);
	int id = -ENOENT;

	for (unsigned i = 0; name && i < r->n_files && id < 0; i++)
		if (!strcmp(r->file[i]->path, name))
			id = (int)i;
	free(name);
	return id;
}

unsigned replay_file_count(const struct replay *r)
{
	return r->n_files;
}

uint64_t replay_file_size(const struct replay *r, int id)
{
	return replay_file_at(r, id)->size;
}

const uint8_t *const *replay_file_pages(const struct replay *r, int id, size_t *n)
{
	const struct replay_file *f = replay_file_at(r, id);

	*n = f->n_pages;
	return (const uint8_t *const *)f->page;
}

void replay_file_peek(const struct replay *r, int id, uint64_t off, void *buf, size_t len)
{
	replay_file_read(replay_file_at(r, id), off, buf, len);
}

int replay_file_poke(struct replay *r, int id, uint64_t off, const void *buf, size_t len)
{
	struct replay_file *f = replay_file_at(r, id);

	if (off > f->size || len > f->size - off)
		return -EINVAL;
	return file_write(f, off, buf, len);
}

/* ---- log ---- */

static uint64_t next_event(struct replay *r)
{
	if (r->on_event)
		r->on_event(r->on_event_ctx, r->events);
	return r->events++;
}

static uint8_t *log_bytes(struct replay *r, uint64_t len)
{
	struct replay_chunk *c = r->chunks;
	uint8_t *p;

	if (!c || c->size - c->used < len) {
		size_t size = (size_t)u64_max(len, CHUNK_BYTES);

		c = malloc(sizeof(*c) + size);
		CHECK(c);
		c->next = r->chunks;
		c->used = 0;
		c->size = size;
		r->chunks = c;
	}
	p = c->bytes + c->used;
	c->used += (size_t)len;
	return p;
}

static size_t log_add(struct replay *r, struct replay_rec *rec, const void *data)
{
	if (r->n_rec == r->cap_rec) {
		size_t cap = r->cap_rec ? r->cap_rec * 2 : 64;
		struct replay_rec *list = realloc(r->rec, cap * sizeof(*list));

		CHECK(list);
		r->rec = list;
		r->cap_rec = cap;
	}
	if (data) {
		uint8_t *copy = log_bytes(r, rec->len_bytes);

		memcpy(copy, data, (size_t)rec->len_bytes);
		rec->data = copy;
	}
	r->rec[r->n_rec] = *rec;
	return r->n_rec++;
}

static void apply_fault(struct replay *r, const struct replay_fault *f, const struct replay_rec *rec,
			struct replay_fate *fate)
{
	uint32_t sector = r->file[rec->file]->traits.logical_bytes;

	r->fault_hits++;
	switch (f->kind) {
	case REPLAY_FAIL:
		fate->error = -f->error;
		fate->move_bytes = 0;
		break;
	case REPLAY_FAIL_TORN:
		fate->error = -f->error;
		fate->move_bytes = rec->op == IO_WRITE
				       ? replay_random(r) % (rec->len_bytes / SECTOR_BYTES + 1) * SECTOR_BYTES
				       : 0;
		break;
	case REPLAY_SHORT:
		if (rec->op == IO_READ || rec->op == IO_WRITE)
			fate->move_bytes =
			    u64_min(rec->len_bytes, u64_max(sector, round_down_u64(f->short_bytes, sector)));
		break;
	case REPLAY_STUCK:
		fate->delay_ns += f->delay_ns;
		break;
	}
}

static void decide(struct replay *r, const struct replay_rec *rec, struct replay_fate *fate)
{
	const struct replay_shape *s = &r->shape;
	uint32_t sector = r->file[rec->file]->traits.logical_bytes;

	fate->error = 0;
	fate->move_bytes = rec->len_bytes;
	fate->delay_ns =
	    rec->sync ? 0 : s->delay_min_ns + replay_random(r) % (s->delay_max_ns - s->delay_min_ns + 1);
	if (!rec->sync && s->short_permille && (rec->op == IO_READ || rec->op == IO_WRITE) &&
	    rec->len_bytes > sector && replay_random(r) % 1000 < s->short_permille)
		fate->move_bytes = (1 + replay_random(r) % (rec->len_bytes / sector - 1)) * sector;
	for (unsigned i = 0; i < r->n_faults; i++) {
		struct armed_fault *a = &r->fault[i];

		if (a->f.match && !a->f.match(a->f.ctx, rec))
			continue;
		if (!a->f.nth || ++a->seen == a->f.nth)
			apply_fault(r, &a->f, rec, fate);
	}
}

void replay_submit(struct replay *r, struct replay_rec *rec, const void *data, struct replay_fate *fate,
		   size_t *index)
{
	rec->submitted_at = next_event(r);
	rec->completed_at = REPLAY_PENDING;
	*index = r->recording ? log_add(r, rec, data) : REPLAY_NO_REC;
	if (data && *index == REPLAY_NO_REC)
		rec->data = data;
	decide(r, rec, fate);
}

/* ---- what operations do ---- */

static int act_read(struct replay_file *f, const struct replay_rec *rec, void *buf,
		    const struct replay_fate *fate)
{
	uint64_t have = rec->off_bytes >= f->size ? 0 : f->size - rec->off_bytes;
	uint64_t n = rec->sync ? rec->len_bytes : u64_min(fate->move_bytes, have);

	if (fate->error)
		return fate->error;
	replay_file_read(f, rec->off_bytes, buf, n);
	return (int)n;
}

static int act_write(struct replay_file *f, struct replay_rec *rec, const struct replay_fate *fate)
{
	uint64_t n = fate->move_bytes;
	int rc = n ? grow_to(f, u64_max(f->size, rec->off_bytes + n)) : 0;

	if (!rc)
		rc = file_write(f, rec->off_bytes, rec->data, n);
	if (rc)
		return rc;
	rec->landed_bytes = n;
	return fate->error ? fate->error : (int)n;
}

static int act_zero(struct replay_file *f, struct replay_rec *rec, const struct replay_fate *fate)
{
	uint64_t n = rec->off_bytes >= f->size ? 0 : u64_min(rec->len_bytes, f->size - rec->off_bytes);
	int rc = fate->error;

	if (!rc)
		rc = file_write(f, rec->off_bytes, NULL, n);
	if (!rc)
		rec->landed_bytes = n;
	return rc;
}

/* Storage that does not promise zeros shows what was there before: here, seeded noise. */
static int fill_stale(struct replay *r, struct replay_file *f, struct replay_rec *rec, uint64_t from)
{
	uint64_t len = f->size - from;
	uint8_t *noise = log_bytes(r, round_up_u64(len, 8));

	for (uint64_t i = 0; i < len; i += 8) {
		uint64_t v = replay_random(r);

		memcpy(noise + i, &v, 8);
	}
	rec->data = noise;
	return file_write(f, from, noise, len);
}

static int act_extend(struct replay *r, struct replay_file *f, struct replay_rec *rec,
		      const struct replay_fate *fate)
{
	uint64_t old = f->size;
	int rc = fate->error;

	if (!rc)
		rc = grow_to(f, rec->off_bytes + rec->len_bytes);
	if (!rc && f->size > old && !f->traits.zeroes_on_allocate)
		rc = fill_stale(r, f, rec, old);
	return rc;
}

static int act(struct replay *r, struct replay_rec *rec, void *buf, const struct replay_fate *fate)
{
	struct replay_file *f = r->file[rec->file];

	switch (rec->op) {
	case IO_READ:
		return act_read(f, rec, buf, fate);
	case IO_WRITE:
		return act_write(f, rec, fate);
	case IO_FLUSH:
		return fate->error;
	case IO_EXTEND:
		return act_extend(r, f, rec, fate);
	case IO_TRUNCATE:
		if (fate->error)
			return fate->error;
		return rec->off_bytes > f->size ? grow_to(f, rec->off_bytes) : set_size(f, rec->off_bytes);
	case IO_ZERO:
	case IO_PUNCH:
		return act_zero(f, rec, fate);
	}
	return -EINVAL;
}

int replay_finish(struct replay *r, struct replay_rec *rec, void *buf, const struct replay_fate *fate,
		  size_t index)
{
	struct replay_file *f = r->file[rec->file];

	/* The engine's user lent the buffer: bytes that change under way would reach a disk in any mixture.
	 */
	if (rec->op == IO_WRITE)
		CHECK(rec->data == buf || !memcmp(rec->data, buf, (size_t)rec->len_bytes));
	rec->completed_at = next_event(r);
	rec->size_before = f->size;
	rec->res = act(r, rec, buf, fate);
	rec->size_after = f->size;
	if (index != REPLAY_NO_REC)
		r->rec[index] = *rec;
	return rec->res;
}
