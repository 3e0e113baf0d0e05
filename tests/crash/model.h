/*
 * The crash model: from a log of what was asked of a few files, the states that a power cut or the death of
 * the process may leave.
 *
 * Rules (the design's datapath, section 11):
 * - An operation is durable once a flush of its file, submitted after the operation completed, has completed
 * with success; on storage that is durable at completion, once it completed.
 * - Of what is not durable, any subset is there, in any order, each WRITE, ZERO and PUNCH torn at 512 bytes.
 * The size of a file is the file system's: changes of it (EXTEND, TRUNCATE) are there up to some point in
 * their order; bytes written beyond the size that survived are gone, bytes that a surviving size uncovers
 * read as zeros (or as what the storage held, where it promises no zeros).
 * - What a failed flush should have covered is never durable, whatever later flushes say, until something
 * durable replaces it.
 * - Process kill: all that completed is there, and any subset, torn, of what was in flight.
 *
 * It takes the log as plain data and shares no code with what it judges.
 */
#ifndef TESTS_CRASH_MODEL_H
#define TESTS_CRASH_MODEL_H

#include "blkd/replay.h" /* struct replay_rec: data only */

#define MODEL_PAGE_BYTES 4096u

struct mpage;

struct mfile { /* bytes of one file; pages are shared and copied when written */
	uint64_t size;
	size_t n, cap;
	struct mpage **page; /* NULL: zeros */
};

struct mstate {
	unsigned n_files;
	struct mfile *file;
	const uint8_t ***pages; /* per file; made by mstate_pages() */
};

struct model_init {
	uint64_t size;
	const uint8_t *const *pages; /* copied */
	bool durable_at_completion;
};

enum model_kind { MODEL_POWER_CUT, MODEL_KILL };

struct model_bounds {
	uint64_t seed;
	unsigned all_subsets_up_to; /* of pending operations */
	unsigned random_subsets, torn, reordered;
};

struct model;

struct model *model_create(const struct replay_rec *, size_t n, const struct model_init *, unsigned n_files);
void model_free(struct model *);
/* All events below `event` have happened. Only forwards. */
void model_cut(struct model *, uint64_t event);
/* Operations whose presence is open at this cut. */
unsigned model_pending(const struct model *, enum model_kind);
/* How many states are enumerated here (some may be equal), and the k-th of them. */
uint64_t model_states(const struct model *, enum model_kind, const struct model_bounds *);
void model_state(const struct model *, enum model_kind, const struct model_bounds *, uint64_t k,
		 struct mstate *out);
/* The same choice, told: one word for each pending operation. */
void model_describe(const struct model *, enum model_kind, const struct model_bounds *, uint64_t k,
		    char *text, size_t n);
/* Which of the pending operations (as indices into the log) the k-th state has whole; for kills, to build a
 * log that goes on. Returns false if one is torn or the order is not the log's. */
bool model_choice(const struct model *, enum model_kind, const struct model_bounds *, uint64_t k,
		  size_t *index, unsigned *n, unsigned max);

void mstate_free(struct mstate *);
uint64_t mstate_hash(const struct mstate *);
/* The pages of a file as replay_file_add wants them; valid as long as the state. */
const uint8_t *const *mstate_pages(struct mstate *, unsigned file);

#endif
