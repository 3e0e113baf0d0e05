/* Permissions: who may do what with a node, and their form on the wire ("n0", "r5": a letter and a domid). */
#include "sim/simxen/xs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char letters[] = "nrwb"; /* indexed by PERM_READ | PERM_WRITE */

/* The first entry owns the node, and its letter is what everybody has who is not named by a later one. */
uint8_t perms_of(const struct domain *who, const struct perm *perms, unsigned nperms)
{
	const uint8_t all = PERM_READ | PERM_WRITE | PERM_OWNER;

	if (is_privileged(who) || perms[0].domid == who->domid || perms[0].domid == who->target)
		return all;
	for (unsigned i = 1; i < nperms; i++)
		if (!perms[i].dead && (perms[i].domid == who->domid || perms[i].domid == who->target))
			return perms[i].bits;
	return perms[0].bits;
}

static int parse_one(const char *s, struct perm *out)
{
	const char *letter = *s ? strchr(letters, *s) : NULL;
	unsigned long domid;
	char *end;

	if (!letter || s[1] < '0' || s[1] > '9')
		return -EINVAL;
	errno = 0;
	domid = strtoul(s + 1, &end, 0);
	if (*end != '\0' || errno || domid > UINT32_MAX)
		return -EINVAL;
	/* A domain that does not exist cannot be given anything: whoever bears its id later is somebody else.
	 */
	*out = (struct perm){.domid = (uint32_t)domid,
			     .bits = (uint8_t)(letter - letters),
			     .dead = !domain_find((uint32_t)domid)};
	return 0;
}

int perms_parse(const char *strings, unsigned n, struct perm *out)
{
	for (unsigned i = 0; i < n; i++, strings += strlen(strings) + 1)
		if (parse_one(strings, &out[i]) < 0)
			return -EINVAL;
	return n && out[0].dead ? -ENOENT : 0;
}

size_t perms_format(const struct perm *perms, unsigned nperms, char *out, size_t out_bytes)
{
	size_t at = 0;

	for (unsigned i = 0; i < nperms; i++) {
		char one[16];
		int len = snprintf(one, sizeof(one), "%c%u",
				   letters[perms[i].bits & (PERM_READ | PERM_WRITE)], perms[i].domid);

		if (at + (size_t)len + 1 > out_bytes)
			break;
		memcpy(out + at, one, (size_t)len + 1);
		at += (size_t)len + 1;
	}
	return at;
}
