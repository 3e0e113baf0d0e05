/* Permissions: who may do what with a node, and their form on the wire ("n0", "r5": a letter and a domid). */
#include "sim/simxen/xs.h"

#include <stdio.h>
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
	uint32_t domid = 0;

	if (!letter || s[1] == '\0' || strlen(s) > 6)
		return -EINVAL;
	for (const char *p = s + 1; *p; p++) {
		if (*p < '0' || *p > '9')
			return -EINVAL;
		domid = domid * 10 + (uint32_t)(*p - '0');
	}
	if (domid >= DOMID_LIMIT)
		return -EINVAL;
	/* A domain that does not exist cannot be given anything: whoever bears its id later is somebody else.
	 */
	*out =
	    (struct perm){.domid = domid, .bits = (uint8_t)(letter - letters), .dead = !domain_find(domid)};
	return 0;
}

int perms_parse(const char *strings, unsigned n, struct perm *out)
{
	for (unsigned i = 0; i < n; i++, strings += strlen(strings) + 1)
		if (parse_one(strings, &out[i]) < 0)
			return -EINVAL;
	if (n && out[0].dead)
		out[0] = (struct perm){.domid = 0, .bits = out[0].bits};
	return 0;
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
