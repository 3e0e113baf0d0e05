/*
 * xenstore with distrust: see store.h. Nothing here knows blkif. What libxenstore reports in errno becomes a
 * negative errno.
 */
#include "blkd/blkif/store.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRANSACTION_TRIES 64u
#define VALUE_MAX	  1024u

static int failed(void)
{
	return errno ? -errno : -EIO;
}

static int join(char path[static STORE_PATH_MAX], const char *dir, const char *node)
{
	int n = snprintf(path, STORE_PATH_MAX, "%s%s%s", dir, *node ? "/" : "", node);

	return n < 0 || n >= (int)STORE_PATH_MAX ? -ENAMETOOLONG : 0;
}

int store_read(struct xs_handle *xs, xs_transaction_t t, const char *dir, const char *node, char *out,
	       unsigned cap)
{
	char path[STORE_PATH_MAX];
	unsigned len = 0;
	char *value;
	int rc = join(path, dir, node);

	if (rc < 0)
		return rc;
	value = xs_read(xs, t, path, &len);
	if (!value)
		return failed();
	if (len >= cap)
		rc = -EINVAL;
	for (unsigned i = 0; rc == 0 && i < len; i++) {
		if ((unsigned char)value[i] < 0x20 || value[i] == 0x7f)
			rc = -EINVAL;
	}
	if (rc == 0) {
		memcpy(out, value, len);
		out[len] = '\0';
	}
	free(value);
	return rc;
}

int store_parse_u32(const char *s, uint32_t min, uint32_t max, uint32_t *out)
{
	uint64_t v = 0;
	unsigned n = 0;

	for (; s[n]; n++) {
		if (s[n] < '0' || s[n] > '9')
			return -EINVAL;
		if (n >= 10)
			return -ERANGE;
		v = v * 10 + (unsigned)(s[n] - '0');
	}
	if (n == 0)
		return -EINVAL;
	if (v < min || v > max)
		return -ERANGE;
	*out = (uint32_t)v;
	return 0;
}

int store_read_u32(struct xs_handle *xs, xs_transaction_t t, const char *dir, const char *node, uint32_t min,
		   uint32_t max, uint32_t *out)
{
	char value[24] = "";
	int rc = store_read(xs, t, dir, node, value, sizeof(value));

	return rc < 0 ? rc : store_parse_u32(value, min, max, out);
}

int store_write(struct xs_handle *xs, xs_transaction_t t, const char *dir, const char *node,
		const char *value, uint32_t owner, uint32_t reader)
{
	struct xs_permissions perms[2] = {{.id = owner, .perms = XS_PERM_NONE},
					  {.id = reader, .perms = XS_PERM_READ}};
	char path[STORE_PATH_MAX];
	int rc = join(path, dir, node);

	if (rc < 0)
		return rc;
	if (!xs_write(xs, t, path, value, (unsigned)strlen(value)) ||
	    !xs_set_permissions(xs, t, path, perms, 2))
		return failed();
	return 0;
}

int store_printf(struct xs_handle *xs, xs_transaction_t t, const char *dir, const char *node, uint32_t reader,
		 const char *fmt, ...)
{
	char value[VALUE_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(value, sizeof(value), fmt, ap);
	va_end(ap);
	return store_write(xs, t, dir, node, value, STORE_BACKEND_DOMID, reader);
}

bool store_exists(struct xs_handle *xs, xs_transaction_t t, const char *path)
{
	unsigned len;
	char *value = xs_read(xs, t, path, &len);

	free(value);
	return value != NULL;
}

int store_rm(struct xs_handle *xs, xs_transaction_t t, const char *dir, const char *node)
{
	char path[STORE_PATH_MAX];
	int rc = join(path, dir, node);

	if (rc < 0)
		return rc;
	if (xs_rm(xs, t, path) || errno == ENOENT)
		return 0;
	return failed();
}

int store_transaction(struct xs_handle *xs, int (*fn)(struct xs_handle *, xs_transaction_t, void *),
		      void *arg)
{
	for (unsigned i = 0; i < TRANSACTION_TRIES; i++) {
		xs_transaction_t t = xs_transaction_start(xs);
		int rc;

		if (t == XBT_NULL)
			return failed();
		rc = fn(xs, t, arg);
		if (rc < 0) {
			xs_transaction_end(xs, t, true);
			return rc;
		}
		if (xs_transaction_end(xs, t, false))
			return 0;
		if (errno != EAGAIN)
			return failed();
	}
	return -EAGAIN;
}
