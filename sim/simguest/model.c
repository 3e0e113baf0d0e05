/*
 * The in-guest model of a disk; model.h says what it believes. Entries live in chunks that are allocated at
 * the first write, so that a 2 TiB disk of which little is written costs little. One thread; nothing here
 * does I/O but the mapped base file.
 */
#include "sim/simguest/model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int model_create(struct model *m, uint64_t sectors, uint64_t seed)
{
	*m = (struct model){.seed = seed, .next_gen = 1};
	return model_resize(m, sectors);
}

void model_destroy(struct model *m)
{
	for (uint64_t i = 0; i < m->nchunks; i++)
		free(m->chunks[i]);
	free(m->chunks);
	if (m->base && m->base_bytes)
		munmap((void *)(uintptr_t)m->base, m->base_bytes);
	*m = (struct model){0};
}

int model_set_base(struct model *m, const char *path)
{
	struct stat st;
	void *map;
	int fd, err = 0;

	m->base_kind = BASE_ZERO;
	if (!path)
		return 0;
	m->base_kind = BASE_FILE;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0) {
		err = -errno;
	} else if (st.st_size > 0) {
		map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED)
			err = -errno;
		else {
			m->base = map;
			m->base_bytes = (uint64_t)st.st_size;
		}
	}
	close(fd);
	return err;
}

int model_resize(struct model *m, uint64_t sectors)
{
	uint64_t want = (sectors + MODEL_CHUNK - 1) / MODEL_CHUNK;
	struct expect **chunks;

	if (want > m->nchunks) {
		chunks = realloc(m->chunks, want * sizeof(*chunks));
		if (!chunks)
			return -ENOMEM;
		memset(chunks + m->nchunks, 0, (want - m->nchunks) * sizeof(*chunks));
		m->chunks = chunks;
		m->nchunks = want;
	}
	m->sectors = sectors;
	return 0;
}

uint32_t model_next_gen(struct model *m)
{
	return m->next_gen == UINT32_MAX ? 0 : m->next_gen++;
}

static const struct expect *entry_of(const struct model *m, uint64_t sector)
{
	static const struct expect untouched;
	const struct expect *chunk = m->chunks[sector / MODEL_CHUNK];

	return chunk ? &chunk[sector % MODEL_CHUNK] : &untouched;
}

struct expect *model_entry(struct model *m, uint64_t sector)
{
	struct expect **chunk = &m->chunks[sector / MODEL_CHUNK];

	if (!*chunk)
		*chunk = calloc(MODEL_CHUNK, sizeof(**chunk));
	return *chunk ? &(*chunk)[sector % MODEL_CHUNK] : NULL;
}

int model_write_tried(struct model *m, uint64_t sector, uint32_t n, uint32_t gen)
{
	for (uint32_t i = 0; i < n; i++) {
		struct expect *e = model_entry(m, sector + i);

		if (!e)
			return -ENOMEM;
		e->hi = gen;
	}
	return 0;
}

int model_trim_tried(struct model *m, uint64_t sector, uint64_t n, uint32_t gen)
{
	for (uint64_t i = 0; i < n; i++) {
		struct expect *e = model_entry(m, sector + i);

		if (!e)
			return -ENOMEM;
		e->trim = gen;
	}
	return 0;
}

void model_write_landed(struct model *m, uint64_t sector, uint32_t n, uint32_t gen)
{
	for (uint32_t i = 0; i < n; i++) {
		struct expect *e = model_entry(m, sector + i);

		if (e && e->lo < gen)
			e->lo = gen;
	}
}

void model_fill(const struct model *m, uint8_t *buf, uint64_t sector, uint32_t n, uint32_t gen)
{
	for (uint32_t i = 0; i < n; i++)
		pattern_fill(buf + (size_t)i * SECTOR_BYTES, m->seed, sector + i, gen);
}

void model_snapshot(const struct model *m, uint64_t sector, uint32_t n, struct expect *out)
{
	for (uint32_t i = 0; i < n; i++)
		out[i] = *entry_of(m, sector + i);
}

static bool base_matches(const struct model *m, uint64_t sector, const uint8_t *p)
{
	uint64_t off = sector * SECTOR_BYTES;

	if (m->base_kind == BASE_ANY)
		return true;
	if (m->base_kind == BASE_ZERO || off >= m->base_bytes)
		return sector_is_zero(p);
	if (m->base_bytes - off < SECTOR_BYTES) {
		uint8_t tail[SECTOR_BYTES] = {0};

		memcpy(tail, m->base + off, m->base_bytes - off);
		return !memcmp(tail, p, SECTOR_BYTES);
	}
	return !memcmp(m->base + off, p, SECTOR_BYTES);
}

/* Also narrows what the sector may be from now on: a trimmed sector seen as zero has lost its old content for
 * good. */
static bool acceptable(struct model *m, uint64_t sector, struct expect e, const uint8_t *p, bool narrow)
{
	uint64_t claims_sector, gen;

	if (e.hi && e.lo <= e.hi && pattern_parse(p, m->seed, &claims_sector, &gen) &&
	    claims_sector == sector && gen && gen >= e.lo && gen <= e.hi)
		return pattern_is(p, m->seed, sector, (uint32_t)gen);
	if (e.trim && e.trim >= e.lo && sector_is_zero(p)) {
		struct expect *now = narrow && e.trim > e.hi ? model_entry(m, sector) : NULL;

		if (now)
			now->lo = e.trim;
		return true;
	}
	return e.lo == 0 && base_matches(m, sector, p);
}

static bool is_poison(const uint8_t *p)
{
	for (unsigned i = 0; i < SECTOR_BYTES; i++) {
		if (p[i] != MODEL_POISON)
			return false;
	}
	return true;
}

/*
 * With a snapshot, what was issued later than the read must not be seen (hi and trim are the snapshot's), and
 * what was answered since but issued before the read must be: in arrival order, the read ran after it. lo has
 * passed the snapshot's hi only if a later write overtook the read in the answers, and then the snapshot's
 * own lo is all that is known.
 */
static struct expect merge_snapshot(struct expect now, struct expect snap)
{
	uint32_t newest = snap.hi > snap.trim ? snap.hi : snap.trim;

	if (now.lo <= newest)
		snap.lo = now.lo;
	return snap;
}

uint32_t model_check(struct model *m, uint64_t sector, uint32_t n, const uint8_t *buf,
		     const struct expect *snap, enum check_mode mode, char *why, size_t why_len)
{
	uint32_t bad = 0;

	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *p = buf + (size_t)i * SECTOR_BYTES;
		struct expect e = *entry_of(m, sector + i);

		if (snap)
			e = merge_snapshot(e, snap[i]);
		if (acceptable(m, sector + i, e, p, !snap && mode == CHECK_OK))
			continue;
		if (mode == CHECK_FAILED && (is_poison(p) || sector_is_zero(p)))
			continue;
		if (bad++ == 0)
			model_diagnose(m, sector + i, &e, p, why, why_len);
	}
	return bad;
}
