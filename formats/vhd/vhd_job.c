/* HOT PATH: no malloc, no log, no syscall, no lock. */
/*
 * Jobs of a VHD leaf: dispatch, and what all of them share. A failed flush poisons the image, whichever job
 * it belonged to: the kernel may have dropped the pages that it could not write, and the next flush would
 * succeed and say nothing.
 */
#include "formats/vhd/vhd_write.h"

#include "blkd/log.h"

#include <errno.h>

int vhd_job_begin(struct image *img, enum job_kind kind, struct job *job)
{
	struct vhd *v = vhd_of(img);

	*job = (struct job){.kind = kind};
	if (img->poisoned)
		return -EIO;
	if (!vhd_prepared(v) || v->w->sealed)
		return -EROFS;
	switch (kind) {
	case JOB_COMMIT:
		return vhd_commit_begin(v, job);
	case JOB_GROW:
		return img->writing ? vhd_grow_begin(v, job) : -EROFS;
	case JOB_CLOSE:
		return img->writing ? vhd_closing_begin(v, job) : -EROFS;
	}
	return -EINVAL;
}

int vhd_job_next(struct image *img, struct job *job, struct meta_act *acts, unsigned max)
{
	struct vhd *v = vhd_of(img);

	CHECK(max);
	if (img->poisoned && !job->res)
		job->res = -EIO;
	switch (job->kind) {
	case JOB_COMMIT:
		return vhd_commit_next(v, job, acts, max);
	case JOB_GROW:
		return vhd_grow_next(v, job, acts, max);
	case JOB_CLOSE:
		return vhd_closing_next(v, job, acts, max);
	}
	return 0;
}

void vhd_job_done(struct image *img, struct job *job, const struct meta_act *act, int res)
{
	CHECK(job->running);
	job->running--;
	if (res < 0 && act->kind == ACT_FLUSH)
		img->poisoned = true;
	if (res < 0 && !job->res)
		job->res = res;
	if (job->kind == JOB_GROW)
		vhd_grow_done(vhd_of(img), job, act, res);
	else if (job->kind == JOB_CLOSE)
		vhd_closing_done(vhd_of(img), job, res);
}
