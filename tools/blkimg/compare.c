/* compare: do two disks hold the same bytes? By their maps, so that holes in both cost nothing. What lies
 * beyond the end of the shorter one must be zero in the other to be called equal in content; the difference
 * in size is told all the same. */
#include "tools/blkimg/blkimg.h"

#include "blkd/bytes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUF_BYTES  (1u << 20)
#define LOOK_BYTES (1ull << 30) /* how far the map is asked about at a time */

struct side {
	const struct chain *c;
	unsigned char *buf;
	bool zero; /* in the whole step */
};

/* Is [off, off + *len) zero by the map? Shortens *len to what is one or the other. */
static int look(struct side *s, uint64_t off, uint64_t *len, struct err *e)
{
	struct extent x;
	uint64_t got = *len;
	int ret = 0;

	s->zero = true;
	if (off >= s->c->size_bytes)
		return 0;
	*len = u64_min(*len, s->c->size_bytes - off);
	ret = extent_at(s->c, off, *len, &x, &got, e);
	s->zero = x.kind == EXT_ZERO;
	if (!ret && s->zero)
		*len = got;
	return ret;
}

static int bring(struct side *s, uint64_t off, uint32_t len, struct err *e)
{
	if (!s->zero)
		return chain_read(s->c, off, s->buf, len, e);
	memset(s->buf, 0, len);
	return 0;
}

/* Compares one step; *differs: the first difference, if there is one. */
static int step(struct side *a, struct side *b, uint64_t off, uint64_t end, uint64_t *len, int64_t *differs,
		struct err *e)
{
	uint64_t n = u64_min(end - off, LOOK_BYTES);
	int ret = look(a, off, &n, e);

	if (!ret)
		ret = look(b, off, &n, e);
	if (ret)
		return ret;
	*len = n;
	if (a->zero && b->zero)
		return 0;
	*len = u64_min(n, BUF_BYTES - off % BUF_BYTES);
	ret = bring(a, off, (uint32_t)*len, e);
	if (!ret)
		ret = bring(b, off, (uint32_t)*len, e);
	if (ret || !memcmp(a->buf, b->buf, *len))
		return ret;
	for (uint64_t i = 0; i < *len; i++)
		if (a->buf[i] != b->buf[i]) {
			*differs = (int64_t)(off + i);
			break;
		}
	return 0;
}

static int run(struct side *a, struct side *b, int64_t *differs, struct err *e)
{
	uint64_t end = u64_max(a->c->size_bytes, b->c->size_bytes), len;
	struct progress progress;
	int ret = 0;

	progress_start(&progress, "comparing", end);
	for (uint64_t off = 0; off < end && !ret && *differs < 0; off += len) {
		ret = step(a, b, off, end, &len, differs, e);
		progress_at(&progress, off);
		if (ret)
			break;
	}
	progress_end(&progress);
	return ret;
}

static int answer(const struct args *args, const struct side *a, const struct side *b, int64_t differs,
		  json_t *out)
{
	bool sizes = a->c->size_bytes != b->c->size_bytes;

	if (out) {
		json_object_set_new(out, "equal", json_boolean(differs < 0 && !sizes));
		json_object_set_new(out, "first_difference",
				    differs < 0 ? json_null() : json_integer(differs));
		json_object_set_new(out, "size_a", json_integer((json_int_t)a->c->size_bytes));
		json_object_set_new(out, "size_b", json_integer((json_int_t)b->c->size_bytes));
	} else if (differs >= 0) {
		printf("%s and %s differ, first at byte %" PRId64 " (sector %" PRId64 ")\n", args->word[0],
		       args->word[1], differs, differs / (int64_t)SECTOR_BYTES);
	} else if (sizes) {
		printf("%s and %s differ in size: %" PRIu64 " and %" PRIu64
		       " bytes; what both have is the same, the rest is zero\n",
		       args->word[0], args->word[1], a->c->size_bytes, b->c->size_bytes);
	} else {
		printf("%s and %s hold the same %" PRIu64 " bytes\n", args->word[0], args->word[1],
		       a->c->size_bytes);
	}
	return differs >= 0 || sizes ? BLKIMG_FOUND : 0;
}

int verb_compare(const struct args *args, json_t *out, struct err *e)
{
	struct ro_chain *ca = NULL, *cb = NULL;
	struct side a = {0}, b = {0};
	int64_t differs = -1;
	int ret = ro_open(args->word[0], args->format, args, &ca, e);

	if (!ret)
		ret = ro_open(args->word[1], args->src_format, args, &cb, e);
	if (!ret) {
		a.c = &ca->chain;
		b.c = &cb->chain;
		a.buf = aligned_alloc(4096, BUF_BYTES);
		b.buf = aligned_alloc(4096, BUF_BYTES);
		ret =
		    a.buf && b.buf ? run(&a, &b, &differs, e) : err_set(e, -ENOMEM, "no memory for buffers");
	}
	if (!ret)
		ret = answer(args, &a, &b, differs, out);
	free(a.buf);
	free(b.buf);
	ro_close(ca);
	ro_close(cb);
	return ret;
}
