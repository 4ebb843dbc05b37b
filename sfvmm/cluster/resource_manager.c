/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dispatch to the kind of resource manager behind the interface, and what all kinds share.
 */
#include "sfvmm/cluster/resource_manager.h"
#include "sfvmm/cluster/resource_manager_kind.h"

G_DEFINE_QUARK(sf - cluster - error - quark, sf_cluster_error)

/*
 * A clone costs its QEMU process and the pages that it writes. 36 MiB is what an idle TCG clone was measured at
 * (docs/figures.md); a sixteenth of the RAM is what a clone at work is expected to write. It is an estimate for
 * admission, not a limit.
 */
#define CLONE_PROCESS_BYTES (36ull << 20)
#define CLONE_WRITTEN_SHARE 16u

guint64 sf_resource_manager_clone_memory(guint64 vm_memory)
{
    return CLONE_PROCESS_BYTES + vm_memory / CLONE_WRITTEN_SHARE;
}

const char *sf_resource_manager_name(SfResourceManager *manager)
{
    return manager->kind->name;
}

SfTicket *sf_resource_manager_request(SfResourceManager *manager, const char *vm, guint64 vm_memory, guint count,
                                      gboolean all, guint32 request, GError **error)
{
    return manager->kind->request(manager, vm, vm_memory, count, all, request, error);
}

void sf_resource_manager_restore(SfResourceManager *manager, const SfTicket *ticket)
{
    manager->kind->restore(manager, ticket);
}

void sf_resource_manager_release(SfResourceManager *manager, const SfTicket *ticket)
{
    manager->kind->release(manager, ticket);
}

void sf_resource_manager_free(SfResourceManager *manager)
{
    if (manager) {
        manager->kind->free(manager);
    }
}
