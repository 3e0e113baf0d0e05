/*
 * Errors that carry a sentence. Every function answers 0 (or a count) or a negative errno; functions of the
 * control path also fill a struct err, so that whoever handles the error can say what was wrong, in which
 * file, at which offset, and what to do. The first sentence stays: a caller adds context in front with
 * err_prefix(), it never replaces the reason.
 */
#ifndef BLKD_ERR_H
#define BLKD_ERR_H

struct err {
	int code;	/* negative errno; 0: nothing was set */
	char text[512]; /* one line, no newline, no full stop needed */
};

#define ERR_INIT                                                                                             \
	{                                                                                                    \
		0                                                                                            \
	}

/* Sets code (negative errno) and sentence; cuts what is too long. e may be NULL. Returns code, so `return
 * err_set(...)`. Any thread. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "context: " in front of the sentence (or makes one from strerror if none is there). Returns e->code,
 * which is no news if e is NULL: then 0. */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
