/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a kind of resource manager implements. Private to cluster/. */
#ifndef SF_RESOURCE_MANAGER_KIND_H
#define SF_RESOURCE_MANAGER_KIND_H

#include "sfvmm/cluster/resource_manager.h"

typedef struct {
    const char *name;
    SfTicket *(*request)(SfResourceManager *manager, const char *vm, guint64 vm_memory, guint count, gboolean all,
                         guint32 request, GError **error);
    void (*restore)(SfResourceManager *manager, const SfTicket *ticket);
    void (*release)(SfResourceManager *manager, const SfTicket *ticket);
    void (*free)(SfResourceManager *manager);
} SfResourceManagerKind;

/* First member of each kind's own struct. */
struct SfResourceManager {
    const SfResourceManagerKind *kind;
};

#endif
