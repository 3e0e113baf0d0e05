/*
 * What the checker can say: one table of codes, severities and sentences, and the function that hands a
 * finding out. The table is the contract with scripts: codes never change. "lenient" is the severity under
 * check_opts.lenient: what other tools are known to write and blkd serves well only warns there.
 */
#include "formats/vhd/vhd_findings.h"

#include <stdarg.h>
#include <stdio.h>

#define DO_CONVERT "copy its content to a new image with blkimg convert"
#define DO_RESTORE "restore it from a backup"
#define DO_REPAIR  "run blkimg repair"
#define DO_DROP	   "run blkimg repair --dry-run --drop-bad-blocks to see which part of the disk would be lost"
#define DO_NOTHING "nothing needs to be done"
#define DO_REWRITE                                                                                           \
	"another tool wrote it; blkimg check --lenient accepts it, blkimg convert makes a clean copy"
#define DO_PARENT "put the parent back under the name that the child has for it"

static const struct check_text {
	const char *code;
	enum check_severity strict, lenient;
	const char *what, *advice;
} texts[CHECK_IDS] = {
    [CHECK_NO_FOOTER] = {"no-footer", CHECK_ERROR, CHECK_ERROR,
			 "no VHD footer at either end: not a VHD, or its ends are lost", DO_RESTORE},
    [CHECK_TYPE_AMBIGUOUS] =
	{"type-ambiguous", CHECK_ERROR, CHECK_ERROR,
	 "its two footers are valid and differ in type, and a guest may have written either",
	 "say which it is with --format vhd or --format vhd-fixed"},
    [CHECK_TYPE_REFUSED] = {"type-refused", CHECK_ERROR, CHECK_ERROR,
			    "its footer is of another type than the format that was named",
			    "name the right format with --format"},
    [CHECK_POISONED] = {"disabled", CHECK_ERROR, CHECK_ERROR,
			"the image was disabled by its owner (cookie v_poison)",
			"enable it with the tool that disabled it"},
    [CHECK_FOOTER_COOKIE] = {"footer-cookie", CHECK_ERROR, CHECK_ERROR,
			     "the footer copy at offset 0 is not there", DO_REPAIR},
    [CHECK_FOOTER_CHECKSUM] = {"footer-checksum", CHECK_ERROR, CHECK_ERROR,
			       "the footer's checksum does not fit", DO_REPAIR},
    [CHECK_FOOTER_FEATURES] = {"footer-features", CHECK_ERROR, CHECK_ERROR, "the footer has unknown features",
			       DO_CONVERT},
    [CHECK_FOOTER_VERSION] = {"footer-version", CHECK_ERROR, CHECK_ERROR, "the footer's version is unknown",
			      DO_CONVERT},
    [CHECK_FOOTER_DATA_OFFSET] = {"footer-data-offset", CHECK_ERROR, CHECK_ERROR,
				  "the footer does not say properly where the header is", DO_RESTORE},
    [CHECK_FOOTER_TIMESTAMP] = {"footer-timestamp", CHECK_ERROR, CHECK_WARNING,
				"the footer says that it was made in the future",
				"set the clock right, if it is the clock"},
    [CHECK_FOOTER_CREATOR] = {"footer-creator", CHECK_ERROR, CHECK_ERROR,
			      "made by a version of tap that is not known", DO_CONVERT},
    [CHECK_FOOTER_SIZE] = {"footer-size", CHECK_ERROR, CHECK_ERROR, "the disk size in the footer cannot be",
			   DO_RESTORE},
    [CHECK_FOOTER_GEOMETRY] = {"footer-geometry", CHECK_ERROR, CHECK_WARNING,
			       "the geometry in the footer is larger than the disk", DO_REWRITE},
    [CHECK_FOOTER_TYPE] = {"footer-type", CHECK_ERROR, CHECK_ERROR, "the disk type in the footer is unknown",
			   DO_RESTORE},
    [CHECK_FOOTER_UUID] = {"footer-uuid", CHECK_ERROR, CHECK_ERROR, "the footer has no unique id",
			   DO_CONVERT},
    [CHECK_FOOTER_SAVED] = {"footer-saved", CHECK_ERROR, CHECK_WARNING,
			    "the footer's saved mark is neither 0 nor 1", DO_REWRITE},
    [CHECK_FOOTER_HIDDEN] = {"footer-hidden", CHECK_ERROR, CHECK_WARNING,
			     "the footer's hidden mark is neither 0 nor 1", DO_REWRITE},
    [CHECK_FOOTER_RESERVED] = {"footer-reserved", CHECK_ERROR, CHECK_WARNING,
			       "reserved bytes of the footer are not zero", DO_REWRITE},
    [CHECK_TAIL_MISSING] =
	{"tail-missing", CHECK_UNCLEAN, CHECK_UNCLEAN,
	 "there is no footer at the end; the copy at offset 0 is good (a crash leaves this)",
	 DO_REPAIR ", or open it for writing"},
    [CHECK_TAIL_KILLED] =
	{"tail-killed", CHECK_UNCLEAN, CHECK_UNCLEAN,
	 "the footer at the end is struck out: tapdisk has the image open, or died while it had",
	 "if no tapdisk has it open, " DO_REPAIR},
    [CHECK_TAIL_DIFFERS] = {"tail-differs", CHECK_UNCLEAN, CHECK_UNCLEAN,
			    "the footer at the end differs from the copy at offset 0, which rules",
			    DO_REPAIR ", or open it for writing"},
    [CHECK_FIXED_SHORT] = {"fixed-short", CHECK_ERROR, CHECK_ERROR,
			   "the file is too short for the size of its fixed disk", DO_RESTORE},
    [CHECK_FIXED_LONG] = {"fixed-long", CHECK_WARNING, CHECK_WARNING,
			  "the file is longer than its fixed disk", DO_NOTHING},
    [CHECK_HEADER_COOKIE] = {"header-cookie", CHECK_ERROR, CHECK_ERROR,
			     "there is no dynamic header where the footer says", DO_RESTORE},
    [CHECK_HEADER_CHECKSUM] = {"header-checksum", CHECK_ERROR, CHECK_ERROR,
			       "the header's checksum does not fit", DO_RESTORE},
    [CHECK_HEADER_VERSION] = {"header-version", CHECK_ERROR, CHECK_ERROR, "the header's version is unknown",
			      DO_CONVERT},
    [CHECK_HEADER_DATA_OFFSET] = {"header-data-offset", CHECK_ERROR, CHECK_ERROR,
				  "the header's data offset is not all ones", DO_CONVERT},
    [CHECK_HEADER_TABLE_OFFSET] = {"header-table-offset", CHECK_ERROR, CHECK_ERROR,
				   "the header puts the BAT where it cannot be", DO_RESTORE},
    [CHECK_HEADER_BLOCK_SIZE] = {"header-block-size", CHECK_ERROR, CHECK_ERROR,
				 "the header's block size cannot be", DO_RESTORE},
    [CHECK_HEADER_ENTRIES] = {"header-entries", CHECK_ERROR, CHECK_ERROR,
			      "the BAT's length does not fit the disk's size", DO_RESTORE},
    [CHECK_HEADER_RESERVED] = {"header-reserved", CHECK_ERROR, CHECK_WARNING,
			       "reserved bytes of the header are not zero", DO_REWRITE},
    [CHECK_HEADER_PARENT] = {"header-parent", CHECK_ERROR, CHECK_ERROR,
			     "disk type and parent contradict each other", DO_RESTORE},
    [CHECK_META_OVERLAP] = {"metadata-overlap", CHECK_ERROR, CHECK_ERROR,
			    "two metadata structures lie over each other", DO_RESTORE},
    [CHECK_META_BEYOND_END] = {"metadata-beyond-end", CHECK_ERROR, CHECK_ERROR,
			       "metadata lies beyond the end of the file", DO_RESTORE},
    [CHECK_LOCATOR_CODE] = {"locator-code", CHECK_ERROR, CHECK_ERROR,
			    "a parent locator has an unknown platform code", DO_CONVERT},
    [CHECK_LOCATOR_ROOM] = {"locator-room", CHECK_ERROR, CHECK_ERROR,
			    "a parent locator is longer than its room", DO_CONVERT},
    [CHECK_LOCATOR_TEXT] = {"locator-text", CHECK_ERROR, CHECK_ERROR,
			    "a parent locator, or the parent's name, is no text", DO_CONVERT},
    [CHECK_LOCATOR_NAME] = {"locator-name", CHECK_WARNING, CHECK_WARNING,
			    "a parent locator names another file than the header does", DO_NOTHING},
    [CHECK_LOCATOR_NONE] = {"locator-none", CHECK_ERROR, CHECK_ERROR,
			    "a differencing disk without a way to its parent", DO_RESTORE},
    [CHECK_LOCATOR_RESERVED] = {"locator-reserved", CHECK_ERROR, CHECK_WARNING,
				"reserved bytes of a parent locator are not zero", DO_REWRITE},
    [CHECK_BLOCK_IN_META] = {"block-in-metadata", CHECK_ERROR, CHECK_ERROR, "a block lies over metadata",
			     DO_DROP},
    [CHECK_BLOCK_BEYOND_END] = {"block-beyond-end", CHECK_ERROR, CHECK_ERROR,
				"a block lies beyond the end of the file or over its footer", DO_DROP},
    [CHECK_BLOCK_CUT_SHORT] = {"block-cut-short", CHECK_ERROR, CHECK_ERROR,
			       "the file ends within its last block (a crash of tapdisk leaves this)",
			       DO_REPAIR},
    [CHECK_BLOCK_OVERLAP] = {"block-overlap", CHECK_ERROR, CHECK_ERROR, "two blocks lie over each other",
			     DO_DROP},
    [CHECK_BLOCK_BEYOND_SIZE] = {"block-beyond-size", CHECK_ERROR, CHECK_ERROR,
				 "a block beyond the end of the disk is in use", DO_DROP},
    [CHECK_BATMAP_CLOBBERED] =
	{"batmap-clobbered", CHECK_UNCLEAN, CHECK_UNCLEAN,
	 "a block lies where the batmap should be (qemu writes so); blkd serves it, vhd-util refuses it",
	 DO_CONVERT},
    [CHECK_BATMAP_MISSING] = {"batmap-missing", CHECK_UNCLEAN, CHECK_UNCLEAN,
			      "there is no batmap header behind the BAT", DO_REPAIR},
    [CHECK_BATMAP_PLACE] = {"batmap-place", CHECK_UNCLEAN, CHECK_UNCLEAN,
			    "the batmap lies where it cannot be, or is too short", DO_REPAIR},
    [CHECK_BATMAP_CHECKSUM] = {"batmap-checksum", CHECK_UNCLEAN, CHECK_UNCLEAN,
			       "the batmap's checksum does not fit", DO_REPAIR},
    [CHECK_BATMAP_UNALLOCATED] = {"batmap-unallocated", CHECK_ERROR, CHECK_ERROR,
				  "the batmap calls a block full that is not allocated", DO_REPAIR},
    [CHECK_BATMAP_BITMAP] = {"batmap-bitmap", CHECK_ERROR, CHECK_ERROR,
			     "the batmap calls a block full whose bitmap says otherwise", DO_REPAIR},
    [CHECK_PARENT_MISSING] = {"parent-missing", CHECK_ERROR, CHECK_ERROR, "the parent cannot be opened",
			      DO_PARENT},
    [CHECK_PARENT_UUID] = {"parent-uuid", CHECK_ERROR, CHECK_ERROR,
			   "the parent is another image than the one the child was made from", DO_PARENT},
    [CHECK_PARENT_TIME] =
	{"parent-time", CHECK_WARNING, CHECK_WARNING,
	 "the parent's time stamp is not the one that the child has (hiding a parent changes it)",
	 DO_NOTHING},
    [CHECK_PARENT_SIZE] = {"parent-size", CHECK_WARNING, CHECK_WARNING,
			   "the parent is larger than the child: its end cannot be seen", DO_NOTHING},
    [CHECK_PARENT_CYCLE] = {"parent-cycle", CHECK_ERROR, CHECK_ERROR,
			    "the chain comes back to a file that is already in it", DO_RESTORE},
    [CHECK_PARENT_DEPTH] = {"parent-depth", CHECK_ERROR, CHECK_ERROR,
			    "the chain is deeper than can be opened", "flatten it with blkimg convert"},
    [CHECK_DEPTH_HIGH] = {"depth-high", CHECK_WARNING, CHECK_WARNING,
			  "the chain is deeper than 30, where other tools stop", "coalesce it"},
    [CHECK_FOOTER_REFUSED] = {"footer-refused", CHECK_ERROR, CHECK_ERROR, "the footer cannot be used",
			      DO_REPAIR},
    [CHECK_HEADER_REFUSED] = {"header-refused", CHECK_ERROR, CHECK_ERROR, "the header cannot be used",
			      DO_RESTORE},
    [CHECK_RAW_SIZE] = {"raw-size", CHECK_ERROR, CHECK_ERROR,
			"the size of a raw disk is not a positive multiple of 512", DO_RESTORE},
};

const char *check_code(enum check_id id)
{
	return id < CHECK_IDS ? texts[id].code : "unknown";
}

const char *check_severity_name(enum check_severity s)
{
	switch (s) {
	case CHECK_WARNING:
		return "warning";
	case CHECK_UNCLEAN:
		return "unclean";
	case CHECK_ERROR:
		break;
	}
	return "error";
}

static enum check_severity severity_of(const struct check_run *run, enum check_id id)
{
	return run->opts->lenient ? texts[id].lenient : texts[id].strict;
}

static void hand_out(const struct check_run *run, struct check_finding *f)
{
	f->code = texts[f->id].code;
	f->severity = severity_of(run, f->id);
	f->path = run->path;
	f->what = texts[f->id].what;
	f->advice = texts[f->id].advice;
	if (run->opts->found)
		run->opts->found(run->opts->ctx, f);
}

void check_report(struct check_run *run, enum check_id id, uint64_t off_bytes, const char *expected,
		  const char *found_fmt, ...)
{
	struct check_finding f = {.id = id, .off_bytes = off_bytes};
	va_list ap;

	switch (severity_of(run, id)) {
	case CHECK_WARNING:
		run->result->warnings++;
		break;
	case CHECK_UNCLEAN:
		run->result->unclean++;
		break;
	case CHECK_ERROR:
		run->result->errors++;
		break;
	}
	if (run->seen[id]++ >= CHECK_SHOWN_PER_CODE)
		return;
	if (expected)
		snprintf(f.expected, sizeof(f.expected), "%s", expected);
	va_start(ap, found_fmt);
	vsnprintf(f.found, sizeof(f.found), found_fmt, ap);
	va_end(ap);
	hand_out(run, &f);
}

void check_report_end(struct check_run *run)
{
	for (unsigned id = 0; id < CHECK_IDS; id++) {
		struct check_finding f = {.id = (enum check_id)id};

		if (run->seen[id] <= CHECK_SHOWN_PER_CODE)
			continue;
		snprintf(f.found, sizeof(f.found), "%u more like these",
			 run->seen[id] - CHECK_SHOWN_PER_CODE);
		hand_out(run, &f);
	}
}
