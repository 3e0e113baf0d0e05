/*
 * What `xl` does for a disk, over domain 0's xenstore connection.
 */
#ifndef SIMGUEST_TOOLSTACK_H
#define SIMGUEST_TOOLSTACK_H

#include <stdbool.h>

struct guest;
struct vbd;

/* Writes both directories in one transaction, with the permissions that libxl sets. 0 or -errno. */
int toolstack_plug(struct guest *g, struct vbd *v);

/* Asks for a detach: online=0 and state=5 on the backend. */
int toolstack_detach(struct guest *g, struct vbd *v);

/* Removes both directories. */
void toolstack_remove(struct guest *g, struct vbd *v);

/* Prints what the backend left in its error node, if anything. */
void toolstack_show_error(struct guest *g, struct vbd *v);

#endif
