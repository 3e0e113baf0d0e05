/*
 * The VHD format's table: dynamic and differencing images. Reading: vhd_open.c and what it calls, vhd_map.c.
 * Writing: vhd_write.c (data), vhd_commit.c (epochs, closing), vhd_grow.c (space). Making new ones:
 * vhd_create.c. Fixed VHDs are a format of their own, vhd_fixed.c.
 */
#include "formats/vhd/vhd.h"

#include "formats/vhd/vhd_read.h"

const struct image_format vhd_format = {
    .name = "vhd",
    .open = vhd_open,
    .close = vhd_close,
    .map = vhd_map,
    .owns = vhd_owns,
    .meta_get = vhd_meta_get,
    .meta_put = vhd_meta_put,
    .write_begin = vhd_write_begin,
    .write_end = vhd_write_end,
    .job_begin = vhd_job_begin,
    .job_next = vhd_job_next,
    .job_done = vhd_job_done,
    .epoch_open = vhd_epoch_open,
    .epoch_durable = vhd_epoch_durable,
    .dirty_replay = vhd_dirty_replay,
    .begin_writing = vhd_begin_writing,
    .generation = vhd_generation,
};
