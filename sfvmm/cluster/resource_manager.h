/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfResourceManager: decides how many clones a VM gets. One interface; `local` (this host's capacity) is the default,
 * others (static, slurm) give slots on several hosts. It only counts: starting and ending clones is fork/'s work.
 *
 * Main thread only. A grant is booked until sf_resource_manager_release().
 */
#ifndef SF_RESOURCE_MANAGER_H
#define SF_RESOURCE_MANAGER_H

#include "sfvmm/cluster/ticket.h"

#define SF_CLUSTER_ERROR (sf_cluster_error_quark())
GQuark sf_cluster_error_quark(void);
typedef enum {
    SF_CLUSTER_ERROR_QUOTA,    /* the VM or the user has all that it may have; asking again helps only after a join */
    SF_CLUSTER_ERROR_CAPACITY, /* the host is full now; asking later may help */
} SfClusterError;

/* Quotas: upper bounds, each of them counts. */
typedef struct {
    guint clones_per_ticket;
    guint clones_per_vm; /* of all live tickets of one VM */
    guint clones;        /* of this host */
    guint64 memory;      /* bytes that all clones of this host together may be expected to use privately */
} SfLimits;

typedef struct SfResourceManager SfResourceManager;

/* The resource manager of this host alone. */
SfResourceManager *sf_resource_manager_local_new(const SfLimits *limits);
void sf_resource_manager_free(SfResourceManager *manager);
const char *sf_resource_manager_name(SfResourceManager *manager);

/*
 * Up to `count` clones of a VM with `vm_memory` bytes of RAM, at least one, or an error. With `all`, exactly count or
 * an error. The ticket belongs to the caller, who gives its slots back with release() before freeing it.
 */
SfTicket *sf_resource_manager_request(SfResourceManager *manager, const char *vm, guint64 vm_memory, guint count,
                                      gboolean all, guint32 request, GError **error);

/* Book a ticket that was granted before a restart of sfvmmd. */
void sf_resource_manager_restore(SfResourceManager *manager, const SfTicket *ticket);
void sf_resource_manager_release(SfResourceManager *manager, const SfTicket *ticket);

/* What a clone of a VM with that much RAM is expected to use privately, bytes. */
guint64 sf_resource_manager_clone_memory(guint64 vm_memory);

#endif
