/*
 * Which hypervisors this build knows: one table, one row a kind.
 *
 * All else goes straight through the vtable (include/blkd/hyp.h); this file only picks the row, and says in a
 * sentence when there is none.
 */
#include "blkd/hyp.h"
#include "blkd/err.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

static const struct hyp_ops *const kinds[] = {
    &hyp_sim_ops,
};

int hyp_open(const char *kind, const char *dir, struct hyp **out, struct err *e)
{
	*out = NULL;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (strcmp(kinds[i]->kind, kind) == 0)
			return kinds[i]->open(dir, out, e);
	return err_set(e, -ENOTSUP, "hypervisor \"%s\" is not in this build; it knows \"sim\"", kind);
}
