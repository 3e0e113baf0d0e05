/*
 * Names of nodes. A path is absolute ("/..."), or relative to the home of whoever says it,
 * "/local/domain/<id>/...". Legal characters and lengths are xenstored's (docs/misc/xenstore.txt; lengths in
 * xs_wire.h): a limit of 2048 bytes applies to what follows "/local/domain/<id>/", or to the whole of any
 * other path. Names of special watches ("@...") are no paths.
 */
#include "sim/simxen/xs.h"

#include <stdio.h>
#include <string.h>

static const char legal[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@";

/* The length of "/local/domain/<number>/" at the head of a path; 0 if it is not there. */
static size_t home_prefix_len(const char *path)
{
	static const char head[] = "/local/domain/";
	size_t len = sizeof(head) - 1, digits;

	if (strncmp(path, head, len) != 0)
		return 0;
	digits = strspn(path + len, "0123456789");
	if (digits == 0 || digits > 5 || path[len + digits] != '/')
		return 0;
	return len + digits + 1;
}

int path_canonical(const struct domain *who, const char *said, char out[static PATH_BYTES],
		   unsigned *rel_bytes)
{
	size_t len;
	int n;

	if (said[strspn(said, legal)] != '\0' || said[0] == '@')
		return -EINVAL;
	n = said[0] == '/' ? snprintf(out, PATH_BYTES, "%s", said)
			   : snprintf(out, PATH_BYTES, "/local/domain/%u/%s", who->domid, said);
	if (n < 0 || n >= (int)PATH_BYTES)
		return -EINVAL;
	len = (size_t)n;
	if ((len > 1 && out[len - 1] == '/') || strstr(out, "//") ||
	    len > home_prefix_len(out) + XENSTORE_REL_PATH_MAX)
		return -EINVAL;
	*rel_bytes = (unsigned)(len - strlen(said));
	return 0;
}

bool path_is_within(const char *path, const char *top)
{
	size_t len = strlen(top);

	if (len == 1)
		return path[0] == '/';
	return strncmp(path, top, len) == 0 && (path[len] == '/' || path[len] == '\0');
}

void path_to_parent(char *path)
{
	char *slash = strrchr(path, '/');

	if (slash == path)
		slash++;
	*slash = '\0';
}
