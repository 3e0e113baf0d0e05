/*
 * Which parts of the file does nothing name? Control path.
 *
 * The answer counts when the journal's records have been replayed and committed: a block that a record names
 * is not slack. Ranges too small for a slot are left out; what lies in the others, bitmaps and data of a
 * commit that a power cut undid perhaps, is of no interest: a slot's bitmap is zeroed before it is offered
 * (vhd_grow.c).
 */
#include "formats/vhd/vhd_write.h"

#include "blkd/err.h"
#include "blkd/log.h"

#include <errno.h>
#include <stdlib.h>

uint64_t vhd_used_end(const struct vhd *v)
{
	uint64_t end = v->meta_end;

	for (uint32_t i = 0; i < v->n_blocks; i++)
		if (v->bat[i] != VHD_BAT_FREE)
			end = u64_max(end, vhd_data_off(v->bat[i]) + v->block_bytes);
	return end;
}

static int cmp_u32(const void *a, const void *b)
{
	uint32_t x, y;

	memcpy(&x, a, sizeof(x));
	memcpy(&y, b, sizeof(y));
	return (x > y) - (x < y);
}

/* Fills gaps[] (room for n + 1) from the n sorted sectors. */
static int gaps_fill(struct vhd *v, const uint32_t *sorted, uint32_t n, struct err *e)
{
	struct vhd_space *s = &v->w->space;
	uint64_t at = v->meta_end, last_end = 0;

	s->n_gaps = s->gap_i = 0;
	s->n_freed = 0; /* what the replay's commit freed is a gap like any other */
	for (uint32_t i = 0; i < n; i++) {
		uint64_t start = (uint64_t)sorted[i] * SECTOR_BYTES;

		if (start < last_end)
			return err_set(e, -EINVAL, "%s: two blocks own sector %u: run blkimg check",
				       v->img.file->path, sorted[i]);
		last_end = vhd_data_off(sorted[i]) + v->block_bytes;
		/* Less than a slot is of no use. */
		if (start >= at + SECTOR_BYTES + v->block_bytes)
			s->gaps[s->n_gaps++] = (struct vhd_gap){at, start};
		at = u64_max(at, last_end);
	}
	s->gaps[s->n_gaps++] = (struct vhd_gap){at, u64_max(at, v->file_bytes - VHD_FOOTER_BYTES)};
	return 0;
}

int vhd_space_find(struct vhd *v, struct err *e)
{
	struct vhd_space *s = &v->w->space;
	uint32_t n = 0, used = v->n_blocks - s->n_unallocated;
	uint32_t *sorted = malloc(((size_t)used + 1) * sizeof(*sorted));
	int ret;

	free(s->gaps);
	s->gaps = calloc((size_t)used + 1, sizeof(*s->gaps));
	if (!sorted || !s->gaps) {
		free(sorted);
		return err_set(e, -ENOMEM, "%s: no memory to find its free space", v->img.file->path);
	}
	for (uint32_t i = 0; i < v->n_blocks; i++)
		if (v->bat[i] != VHD_BAT_FREE)
			sorted[n++] = v->bat[i];
	CHECK(n == used);
	qsort(sorted, n, sizeof(*sorted), cmp_u32);
	ret = gaps_fill(v, sorted, n, e);
	free(sorted);
	return ret;
}
