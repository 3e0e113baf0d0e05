/*
 * What the parts of the crash test share: the trees they work on (tree.c), what the guest may expect
 * (oracle.c), recorded runs of the real device (workload.c), and the judge of one state (check.c). The crash
 * model and the VHD judge have headers of their own, because they know nothing of all this.
 *
 * Every sector that is ever written holds 64 times one word that says who wrote it and where it belongs; 0 is
 * a sector of zeros. So what a sector holds is one number, and what it may hold a set of numbers.
 */
#ifndef TESTS_CRASH_CRASH_H
#define TESTS_CRASH_CRASH_H

#include "blkd/dev.h"
#include "blkd/replay.h"
#include "tests/crash/model.h"
#include "tests/crash/vhdref.h"

#include <stdio.h>

#define WORD_GARBAGE 1u /* of a sector that is not 64 times a word */
#define MAX_DEPTH    3u
#define MAX_REQS     64u

uint64_t crash_mix(uint64_t);
uint64_t crash_rnd(uint64_t *state);
void *crash_need(void *); /* aborts on NULL */

static inline uint64_t word_of(unsigned id, uint64_t lba)
{
	return 0xb10cull << 48 | (uint64_t)id << 32 | lba;
}
#define WORD_ID_LAYER 0xf000u /* what layer n held before the run: id WORD_ID_LAYER + n */
#define WORD_ID_PROBE 0xe000u /* what the check writes into a recovered image */

void sector_fill(uint8_t out[512], uint64_t word);
uint64_t sector_word(const uint8_t sector[512]);

/* ---- tree.c ---- */

enum tree_parents { TREE_ALONE, TREE_OVER_VHD, TREE_OVER_RAW, TREE_OVER_BOTH };

struct tree_cfg {
	const char *name;
	enum tree_parents parents;
	uint32_t block_bytes, n_blocks;
	uint64_t cut_bytes; /* the disk is that much shorter than its blocks */
	bool foreign; /* made by others: no batmap, no place for a generation, data not on page boundaries */
	enum write_mode mode;
	struct backing_traits traits; /* of the leaf */
	uint64_t room_bytes;	      /* fixed_size: bytes behind the last block, holding anything */
};

struct tree {
	const struct tree_cfg *cfg;
	unsigned depth;
	const char *path[MAX_DEPTH]; /* leaf first */
	uint64_t file_size[MAX_DEPTH];
	const uint8_t **pages[MAX_DEPTH];
	uint8_t *bytes[MAX_DEPTH];
	uint64_t n_sectors;
	uint64_t *initial;	       /* word of every sector of the disk */
	struct vref parent[MAX_DEPTH]; /* [i]: file i, i > 0 */
};

extern const struct tree_cfg tree_cfgs[];
extern const unsigned n_tree_cfgs;

struct tree *tree_make(const struct tree_cfg *);
void tree_free(struct tree *);
bool tree_block_allocated(unsigned block); /* in every leaf, before the run */

/* ---- requests and their marks ---- */

struct request { /* as planned */
	enum blk_op op;
	bool fua, reopen;
	uint64_t lba, n; /* sectors */
};

enum mark_kind { MARK_SUBMIT, MARK_ANSWER, MARK_CLOSED };

struct mark {
	enum mark_kind kind;
	unsigned req;
	int status;
	bool durable; /* ANSWER of a write: the mode promises that it is on the disk */
};

struct journal_file { /* of the run directory, at one moment */
	char name[256];
	size_t size;
	uint8_t *bytes;
	uint64_t hash;
};

struct point {		  /* a moment at which the world may end */
	uint64_t event;	  /* all events below have happened */
	unsigned n_marks; /* and that many marks */
	int journal;	  /* index into run->journals; -1: there was none */
	bool last_of_event;
};

struct run {
	struct tree *tree;
	struct replay *replay; /* with the log, and the pages it borrowed */
	const struct replay_rec *log;
	size_t n_log;
	struct request req[MAX_REQS];
	unsigned n_req;
	bool together;		   /* submitted all at once; else one after the other */
	struct replay_fault fault; /* nth 0: none; matches asynchronous operations of fault_op on the leaf */
	enum io_op fault_op;
	enum {
		FAULT_ANY,
		FAULT_METADATA,
		FAULT_DATA,
		FAULT_ZEROING
	} fault_what; /* of writes; metadata: 512 bytes, after the guest's first data; zeroing: 512 zero bytes
		       */
	bool data_seen;
	struct mark *mark;
	unsigned n_marks, cap_marks;
	struct point *point;
	unsigned n_points, cap_points;
	struct journal_file *journal;
	unsigned n_journals, cap_journals;
	char failure[512]; /* the run itself went wrong */
};

/* ---- workload.c ---- */

struct crash_host { /* made once */
	struct bufpool *pool;
	struct cache *cache;
	char run_dir[64];
};

void host_make(struct crash_host *);
void host_free(struct crash_host *);
void run_dir_clear(const struct crash_host *);
void run_dir_put(const struct crash_host *, const struct journal_file *);
/* What is in the run directory now. Returns whether there is a file. */
bool run_dir_get(const struct crash_host *, struct journal_file *);

#define N_REWRITES	54u /* a metadata write fails, then the guest writes the same place again */
#define N_BARRIERS	27u /* a barrier in the middle of others; both kinds on every small tree */
#define N_REUSES	9u  /* slots of discarded blocks are wanted at once; on every small tree */
#define N_DIRECTED	(N_REWRITES + N_BARRIERS + N_REUSES)
#define N_SEQUENCES	(11u + 11u * 11u + 11u * 11u * 11u) /* of 1, 2 and 3 operations out of eleven */
#define N_RANDOM	222u				    /* long ones */
#define ROUND_WORKLOADS (N_DIRECTED + N_SEQUENCES + N_RANDOM)

/* Number w of a seed's workloads, which come in rounds. text: the plan in words. */
void workload_plan(uint64_t seed, uint64_t w, struct run *, const struct tree_cfg **, char *text, size_t n);
/* Runs the plan on the real device over the replay engine. */
void workload_run(struct crash_host *, struct run *, const struct tree_cfg *, uint64_t seed);
void run_free(struct run *);

/* ---- oracle.c ---- */

struct oracle;

struct oracle *oracle_make(const struct run *);
void oracle_free(struct oracle *);
void oracle_advance(struct oracle *, unsigned n_marks); /* forwards */
/* May the sector hold this word, after a power cut or after a kill? */
bool oracle_allows(const struct oracle *, enum model_kind, uint64_t lba, uint64_t word);
void oracle_describe(const struct oracle *, enum model_kind, uint64_t lba, char *text, size_t n);
/* Whatever of a barrier, or of what was asked behind it, is there: then all that was answered before it is.
 */
bool oracle_ordered(const struct oracle *, enum model_kind, const uint64_t *word, char *why, size_t n);
uint64_t oracle_version(const struct oracle *); /* changes with what is allowed */

/* The sectors that a check of this run looks at: all of a small disk, else those near what was written and a
 * sample. */
const uint64_t *oracle_sectors(const struct oracle *, size_t *n);

/* ---- check.c ---- */

struct check_ctx {
	struct crash_host *host;
	const struct run *run;
	const struct oracle *oracle;
	enum model_kind kind;
	const struct journal_file *journal; /* kills; NULL: none */
	uint64_t seed;
	bool record; /* leave the log of the recovery in *recovery */
};

struct recovery { /* the opening of a state, recorded */
	struct replay *replay;
	const struct replay_rec *log;
	size_t n_log;
	uint64_t events;
	struct point *point; /* journal as it was, per event */
	unsigned n_points;
	struct journal_file *journal;
	unsigned n_journals;
};

/* The state's files on a medium of their own. The caller destroys it when nothing of it is open. */
struct replay *state_medium(const struct check_ctx *, struct mstate *);
/* Opens the state, looks at everything, uses it, closes it. false: why says what is wrong, where. */
bool check_state(const struct check_ctx *, struct mstate *, struct recovery *, char *why, size_t n);
void recovery_free(struct recovery *);

/* ---- export.c ---- */

struct exporter;

/* DIR exists; DIR/manifest is made, or written to where it is (a pipe). Dies with a message where it cannot.
 */
struct exporter *export_begin(const char *dir);
void export_end(struct exporter *);
/* Can other programs read the tree at all? */
bool export_wants(const struct tree_cfg *);
/* Writes the state as it is, where it has a trailing footer, and as blkd's opening and closing leave it.
 * false: why says what went wrong. */
bool export_state(struct exporter *, const struct check_ctx *, struct mstate *, char *why, size_t n);

/* ---- explore.c ---- */

struct explore_opts {
	uint64_t seed;
	uint64_t budget;	   /* states of one workload */
	unsigned nested_of;	   /* every so many states, the recovery is cut too */
	int64_t only_state;	   /* check this one and tell, or -1 */
	int mutant;		   /* of the log (enum log_mutant); 0: none */
	struct exporter *exporter; /* states are handed to it, not judged; NULL: none */
	bool verbose;
};

struct explore_result {
	uint64_t states, workloads, nested, kills, failures;
	char first[2048]; /* the first failure */
};

/* Mutations of what the log says happened: each is a defect of the executor or the format in effect. */
enum log_mutant {
	LOG_TRUE,
	LOG_NO_FLUSH,
	LOG_NO_FIRST_FLUSH,
	LOG_NO_SECOND_FLUSH,
	LOG_EARLY_ANSWER,
	LOG_NO_JOURNAL,
	LOG_MUTANTS
};
extern const char *const log_mutant_name[LOG_MUTANTS];

void explore(struct crash_host *, uint64_t w, const struct explore_opts *, struct explore_result *);

#endif
