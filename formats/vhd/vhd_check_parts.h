/* The parts of the checker, private to formats/vhd/. Control path. */
#ifndef FORMATS_VHD_VHD_CHECK_PARTS_H
#define FORMATS_VHD_VHD_CHECK_PARTS_H

#include "formats/vhd/vhd_findings.h"
#include "formats/vhd/vhd_scan.h"

/* vhd_check.c: one file. format "raw" leaves *s as it was. The scan is the caller's to free, after a failure
 * too. */
int check_one(struct check_run *, struct backing *, const char *format, struct vhd_scan *, struct err *);

/* vhd_check_map.c: metadata's places, locators, BAT and batmap of a file whose header was read. */
int check_map(struct check_run *, struct vhd_scan *, struct err *);

#endif
