/* How the checker's parts report what they find. Private to formats/vhd/. */
#ifndef FORMATS_VHD_VHD_FINDINGS_H
#define FORMATS_VHD_VHD_FINDINGS_H

#include "blkd/vhd_check.h"

struct check_run { /* over one file, or over the links of one tree */
	const struct check_opts *opts;
	struct check_result *result;
	const char *path;
	uint32_t seen[CHECK_IDS];
};

/* Counts the finding and hands it out. `expected` and `found` are cut to their room; NULL: nothing to say. */
void check_report(struct check_run *, enum check_id, uint64_t off_bytes, const char *expected,
		  const char *found_fmt, ...) __attribute__((format(printf, 5, 6)));
/* Tells how many findings of each code were not shown. */
void check_report_end(struct check_run *);

#endif
