/*
 * Reading and writing xenstore with distrust and with permissions. Thin wrappers over libxenstore; control
 * path, each call is a round trip.
 *
 * A value is whatever another domain wrote: it is capped, must be one string without NUL or control bytes,
 * and a number is decimal digits and nothing else, within the range the caller names. A node of ours gets its
 * permissions at every write: owned by us, readable by the one frontend.
 */
#ifndef BLKD_BLKIF_STORE_H
#define BLKD_BLKIF_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include <xenstore.h>

#define STORE_PATH_MAX	    192u
#define STORE_BACKEND_DOMID 0u

/* Reads dir/node ("" for dir itself). 0; -ENOENT; -EINVAL: too long, or not printable; other -errno of the
 * store. */
int store_read(struct xs_handle *, xs_transaction_t, const char *dir, const char *node, char *out,
	       unsigned cap);
/* 0; -ENOENT; -EINVAL: no digits; -ERANGE: outside [min, max]. */
int store_read_u32(struct xs_handle *, xs_transaction_t, const char *dir, const char *node, uint32_t min,
		   uint32_t max, uint32_t *out);
/* Digits only. -EINVAL, -ERANGE. Pure. */
int store_parse_u32(const char *s, uint32_t min, uint32_t max, uint32_t *out);
/* Writes and sets permissions: owner `owner`, reader `reader`. */
int store_write(struct xs_handle *, xs_transaction_t, const char *dir, const char *node, const char *value,
		uint32_t owner, uint32_t reader);
/* The same with a formatted value. */
int store_printf(struct xs_handle *, xs_transaction_t, const char *dir, const char *node, uint32_t reader,
		 const char *fmt, ...) __attribute__((format(printf, 6, 7)));
bool store_exists(struct xs_handle *, xs_transaction_t, const char *path);
/* Removes dir/node; absent is success. */
int store_rm(struct xs_handle *, xs_transaction_t, const char *dir, const char *node);
/* Runs fn in a transaction, again if it conflicted (a bounded number of times: then -EAGAIN). fn answers 0 to
 * commit, or -errno, which is handed through and changes nothing. */
int store_transaction(struct xs_handle *, int (*fn)(struct xs_handle *, xs_transaction_t, void *), void *arg);

#endif
