/*
 * The state file: what the model knows, for a later run on the same disk. Little more than the memory itself,
 * in the byte order of the host (both ends of a test live on one): a header, then one record {chunk number,
 * entries} per chunk that was ever written, then the magic again, so that a cut file is noticed. Written
 * aside and renamed.
 */
#include "sim/simguest/model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATE_MAGIC   0x3154534747554d53ull
#define STATE_SECTORS (1ull << 43) /* 4 PiB: beyond any disk that blkif or VHD can name in a test */

struct state_header {
	uint64_t magic, sectors, seed;
	uint32_t next_gen, chunk_sectors;
};

static int write_chunks(const struct model *m, FILE *f)
{
	struct state_header h = {.magic = STATE_MAGIC,
				 .sectors = m->sectors,
				 .seed = m->seed,
				 .next_gen = m->next_gen,
				 .chunk_sectors = MODEL_CHUNK};
	uint64_t end[2] = {UINT64_MAX, STATE_MAGIC};

	if (fwrite(&h, sizeof(h), 1, f) != 1)
		return -EIO;
	for (uint64_t i = 0; i < m->nchunks; i++) {
		if (!m->chunks[i])
			continue;
		if (fwrite(&i, sizeof(i), 1, f) != 1 ||
		    fwrite(m->chunks[i], sizeof(struct expect), MODEL_CHUNK, f) != MODEL_CHUNK)
			return -EIO;
	}
	return fwrite(end, sizeof(end), 1, f) == 1 ? 0 : -EIO;
}

int model_save(const struct model *m, const char *path)
{
	char tmp[4096];
	FILE *f;
	int err, len = snprintf(tmp, sizeof(tmp), "%s.tmp", path);

	if (len < 0 || (size_t)len >= sizeof(tmp))
		return -ENAMETOOLONG;
	f = fopen(tmp, "we");
	if (!f)
		return -errno;
	err = write_chunks(m, f);
	if (fclose(f) != 0 && !err)
		err = -errno;
	if (!err && rename(tmp, path) < 0)
		err = -errno;
	if (err)
		remove(tmp);
	return err;
}

static int read_chunks(struct model *m, FILE *f)
{
	uint64_t i, magic;

	for (;;) {
		struct expect *e;

		if (fread(&i, sizeof(i), 1, f) != 1)
			return -EINVAL;
		if (i == UINT64_MAX)
			return fread(&magic, sizeof(magic), 1, f) == 1 && magic == STATE_MAGIC ? 0 : -EINVAL;
		if (i >= m->nchunks)
			return -EINVAL;
		e = model_entry(m, i * MODEL_CHUNK);
		if (!e)
			return -ENOMEM;
		if (fread(e, sizeof(*e), MODEL_CHUNK, f) != MODEL_CHUNK)
			return -EINVAL;
	}
}

int model_load(struct model *m, const char *path)
{
	struct state_header h;
	FILE *f = fopen(path, "re");
	int err;

	if (!f)
		return -errno;
	if (fread(&h, sizeof(h), 1, f) != 1 || h.magic != STATE_MAGIC || h.chunk_sectors != MODEL_CHUNK ||
	    h.sectors > STATE_SECTORS)
		err = -EINVAL;
	else
		err = model_create(m, h.sectors, h.seed);
	if (!err) {
		m->next_gen = h.next_gen;
		err = read_chunks(m, f);
		if (err)
			model_destroy(m);
	}
	fclose(f);
	return err;
}
