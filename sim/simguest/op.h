/*
 * Inside of the load: operations, their buffers, and the steps of their life.
 *
 *   choose (choose.c)   kind, place and length; a generation; no conflict with what is in flight
 *   buffer (buffer.c)   pages, segments, patterns and guards
 *   submit (submit.c)   cut into ring requests of as many segments as the backend takes
 *   complete (load.c)   per ring request the model learns or checks; at the last one the latency counts
 */
#ifndef SIMGUEST_OP_H
#define SIMGUEST_OP_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/simguest/guest.h"
#include "sim/simguest/load.h"

/* Sectors `start`.. of the operation, in page i of its buffer from sector `first`. */
struct seg {
	uint32_t start;
	uint8_t first, count;
};

struct op {
	bool busy, failed, tracked; /* tracked: the model knows of this write or trim */
	enum op_kind kind;
	uint64_t sector;
	uint32_t nsect, gen;
	unsigned queue;
	uint64_t begin_ns;

	uint32_t page0;		 /* the slot's pages: data, one guard page, indirect pages */
	uint32_t nseg, seg_next; /* segments in all; first one not yet on the ring */
	uint32_t parts_made, parts_out;
	struct seg *seg;     /* slot's, load.data_pages long */
	struct expect *snap; /* slot's, only for overlapping loads */
};

struct load {
	struct guest *g;
	struct vbd *v;
	const struct phase *ph;
	struct phase_result *res;
	struct op *ops; /* iodepth of them */
	uint32_t *free_op;
	uint32_t nfree;
	struct op *pending; /* chosen, not fully on its ring */
	void *slab;	    /* backs all seg and snap arrays */

	uint32_t data_pages, ind_pages; /* of each slot */
	uint32_t max_segs;
	bool indirect;
	unsigned weight[MIXES], weight_sum;
	uint64_t region_begin, region_sectors, pos;
	uint64_t rng, issued, issued_bytes;
	uint32_t writes_since_flush;
	unsigned next_queue;
	uint64_t deadline_ns, next_issue_ns, progress_ns;
	bool exhausted, aborted;
};

enum choice { CHOSEN, BLOCKED, EXHAUSTED };

/* choose.c: takes a free slot and makes it the next operation, or says why not. */
enum choice choose_op(struct load *l, uint64_t now, struct op **out);
int choose_setup(struct load *l);

/* buffer.c */
uint32_t buffer_data_pages(const struct phase *ph);
uint32_t buffer_ind_pages(const struct phase *ph);
void buffer_setup(struct load *l);
void buffer_prepare(struct load *l, struct op *op);
uint8_t *buffer_segment(const struct load *l, const struct op *op, uint32_t i);
void buffer_check_guards(struct load *l, struct op *op);
void buffer_check_written(struct load *l, struct op *op, uint32_t first, uint32_t count);

/* submit.c: puts as much of the operation on its ring as fits; true when all of it is there. */
bool submit_op(struct load *l, struct op *op);

#endif
