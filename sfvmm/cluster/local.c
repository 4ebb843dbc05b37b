/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Resource manager `local`: tickets from this host's capacity. A grant is the smallest of what was asked and of what
 * each quota leaves; the quota that leaves nothing is named in the error.
 */
#include <glib.h>
#include <string.h>

#include "sfvmm/cluster/resource_manager_kind.h"

typedef struct {
    SfResourceManager base;
    SfLimits limits;
    guint clones;       /* booked on this host */
    guint64 memory;     /* booked, bytes */
    GHashTable *per_vm; /* char * -> GUINT_TO_POINTER(clones booked) */
} LocalManager;

static guint vm_clones(LocalManager *local, const char *vm)
{
    return GPOINTER_TO_UINT(g_hash_table_lookup(local->per_vm, vm));
}

static guint left_of(guint limit, guint booked)
{
    return limit > booked ? limit - booked : 0;
}

static void local_restore(SfResourceManager *manager, const SfTicket *ticket)
{
    LocalManager *local = (LocalManager *)manager;

    local->clones += ticket->granted;
    local->memory += ticket->reserved * ticket->granted;
    g_hash_table_insert(local->per_vm, g_strdup(ticket->vm),
                        GUINT_TO_POINTER(vm_clones(local, ticket->vm) + ticket->granted));
}

static void local_release(SfResourceManager *manager, const SfTicket *ticket)
{
    LocalManager *local = (LocalManager *)manager;
    guint rest = left_of(vm_clones(local, ticket->vm), ticket->granted);

    local->clones = left_of(local->clones, ticket->granted);
    local->memory -= MIN(local->memory, ticket->reserved * ticket->granted);
    if (rest) {
        g_hash_table_insert(local->per_vm, g_strdup(ticket->vm), GUINT_TO_POINTER(rest));
    } else {
        g_hash_table_remove(local->per_vm, ticket->vm);
    }
}

static SfTicket *local_request(SfResourceManager *manager, const char *vm, guint64 vm_memory, guint count, gboolean all,
                               guint32 request, GError **error)
{
    LocalManager *local = (LocalManager *)manager;
    const SfLimits *limits = &local->limits;
    guint64 per_clone = sf_resource_manager_clone_memory(vm_memory);
    guint64 memory_left = limits->memory > local->memory ? limits->memory - local->memory : 0;
    guint by_memory = (guint)MIN(memory_left / per_clone, G_MAXUINT);
    guint by_vm = left_of(limits->clones_per_vm, vm_clones(local, vm));
    guint by_host = left_of(limits->clones, local->clones);
    guint granted = MIN(MIN(count, limits->clones_per_ticket), MIN(MIN(by_vm, by_host), by_memory));
    SfTicket *ticket;

    if (granted == 0 || (all && granted < count)) {
        if (by_vm < count && by_vm == granted) {
            g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_QUOTA,
                        "VM \"%s\": %u clones asked, but of its quota of %u clones only %u are free; join or kill a "
                        "ticket first (clones-per-vm in sfvmmd.conf)",
                        vm, count, limits->clones_per_vm, by_vm);
        } else if (limits->clones_per_ticket < count && limits->clones_per_ticket == granted) {
            g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_QUOTA,
                        "VM \"%s\": %u clones asked, but a ticket may have %u (clones-per-ticket in sfvmmd.conf)", vm,
                        count, limits->clones_per_ticket);
        } else if (by_memory < count && by_memory == granted) {
            g_set_error(
                error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                "VM \"%s\": %u clones asked, but this host has memory for %u more clones of it (%" G_GUINT64_FORMAT
                " MiB each are set aside; limit memory in sfvmmd.conf)",
                vm, count, by_memory, per_clone >> 20);
        } else {
            g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                        "VM \"%s\": %u clones asked, but this host has slots for %u more (clones in sfvmmd.conf)", vm,
                        count, by_host);
        }
        return NULL;
    }
    ticket = sf_ticket_new(sf_ticket_random_id(), vm, granted, request);
    ticket->reserved = per_clone;
    local_restore(manager, ticket);
    return ticket;
}

static void local_free(SfResourceManager *manager)
{
    LocalManager *local = (LocalManager *)manager;

    g_hash_table_unref(local->per_vm);
    g_free(local);
}

static const SfResourceManagerKind local_kind = {
    .name = "local",
    .request = local_request,
    .restore = local_restore,
    .release = local_release,
    .free = local_free,
};

SfResourceManager *sf_resource_manager_local_new(const SfLimits *limits)
{
    LocalManager *local = g_new0(LocalManager, 1);

    local->base.kind = &local_kind;
    local->limits = *limits;
    local->per_vm = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    return &local->base;
}
