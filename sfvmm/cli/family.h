/* SPDX-License-Identifier: GPL-2.0-or-later */
/* VMs in the order in which people look at them: each parent, below it its clones, below those theirs. */
#ifndef SF_CTL_FAMILY_H
#define SF_CTL_FAMILY_H

#include <glib.h>
#include <json-glib/json-glib.h>

typedef struct {
    JsonObject *vm;       /* borrowed from the array */
    guint depth;          /* 0: nobody's clone, or of one that is gone */
    guint root;           /* index of the family's first row */
} SfFamilyRow;

/* vms: objects with name, role, and for clones parent, ticket, id; a shell without parent is its name's. Caller unrefs
 * the array of SfFamilyRow; borrows from vms. */
GArray *sf_family_sort(JsonArray *vms);

/* Compares as people count: web-2 before web-10. */
int sf_family_compare_names(const char *a, const char *b);

#endif
