/*
 * Turns a sector that should not be into a sentence: whose bytes these are, how old, or how many differ from
 * what was due. Only runs once something is wrong, so it may take its time.
 */
#include "sim/simguest/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "sim/simguest/rng.h"

static unsigned differing(const uint8_t *a, const uint8_t *b, unsigned *first)
{
	unsigned n = 0;

	for (unsigned i = 0; i < SECTOR_BYTES; i++) {
		if (a[i] != b[i] && n++ == 0)
			*first = i;
	}
	return n;
}

static void describe_due(const struct expect *e, char *out, size_t len)
{
	const char *zero = e->trim && e->trim >= e->lo ? " or zeros (trimmed)" : "";

	if (e->lo > e->hi)
		snprintf(out, len, "zeros (trimmed as generation %" PRIu32 " and seen as zero)", e->trim);
	else if (e->hi == 0)
		snprintf(out, len, "the base%s", zero);
	else if (e->lo == e->hi)
		snprintf(out, len, "generation %" PRIu32 "%s", e->hi, zero);
	else if (e->lo == 0)
		snprintf(out, len, "the base or a generation up to %" PRIu32 "%s", e->hi, zero);
	else
		snprintf(out, len, "a generation from %" PRIu32 " to %" PRIu32 "%s", e->lo, e->hi, zero);
}

static void describe_own(const struct model *m, uint64_t sector, const struct expect *e, const uint8_t *p,
			 uint64_t of, uint64_t gen, char *out, size_t len)
{
	uint8_t whole[SECTOR_BYTES];
	unsigned n, first = 0;

	pattern_fill(whole, m->seed, of, (uint32_t)gen);
	n = differing(p, whole, &first);
	if (n)
		snprintf(out, len,
			 "generation %" PRIu64 " of sector %" PRIu64 " with %u bytes wrong from byte %u", gen,
			 of, n, first);
	else if (of != sector)
		snprintf(out, len, "our own sector %" PRIu64 ", generation %" PRIu64, of, gen);
	else
		snprintf(out, len, "our own generation %" PRIu64 " (%s)", gen,
			 gen < e->lo ? "too old: a lost write, or an older layer uncovered"
				     : "too new: not yet due");
}

void model_diagnose(const struct model *m, uint64_t sector, const struct expect *e, const uint8_t *p,
		    char *why, size_t why_len)
{
	char due[96], found[128];
	uint8_t want[SECTOR_BYTES];
	uint64_t of, gen, head;
	unsigned n, first = 0;

	describe_due(e, due, sizeof(due));
	memcpy(&head, p, sizeof(head));
	pattern_fill(want, m->seed, sector, e->hi);
	n = differing(p, want, &first);
	if (sector_is_zero(p))
		snprintf(found, sizeof(found), "zeros");
	else if (pattern_parse(p, m->seed, &of, &gen))
		describe_own(m, sector, e, p, of, gen, found, sizeof(found));
	else if (e->hi && n < SECTOR_BYTES / 2)
		snprintf(found, sizeof(found), "generation %" PRIu32 " with %u bytes wrong from byte %u",
			 e->hi, n, first);
	else if (m->base_kind == BASE_FILE && (sector + 1) * SECTOR_BYTES <= m->base_bytes &&
		 (n = differing(p, m->base + sector * SECTOR_BYTES, &first)) < SECTOR_BYTES / 2)
		snprintf(found, sizeof(found), n ? "the base with %u bytes wrong from byte %u" : "the base",
			 n, first);
	else
		snprintf(found, sizeof(found), "foreign bytes %016" PRIx64 "...", head);
	snprintf(why, why_len, "sector %" PRIu64 ": due %s, found %s", sector, due, found);
}
