/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a kind of resource manager implements: its choice of a host. Quotas, books and the list of hosts are common
 * (resource_manager.c). Private to cluster/.
 */
#ifndef SF_RESOURCE_MANAGER_KIND_H
#define SF_RESOURCE_MANAGER_KIND_H

#include "sfvmm/cluster/resource_manager.h"

typedef struct {
    const char *name;
    gboolean many_hosts; /* hosts may be added */
    /* The host that gets the next clone, among those where sf_resource_manager_has_room(); NULL: all are full. */
    SfClusterHost *(*choose)(SfResourceManager *manager, const SfTicket *ticket);
} SfResourceManagerKind;

struct SfResourceManager {
    const SfResourceManagerKind *kind;
    SfLimits limits;
    SfPolicy policy;
    GPtrArray *hosts;   /* of SfClusterHost, owned; the first is this one, the others are sorted by name */
    GHashTable *per_vm; /* char * -> GUINT_TO_POINTER(clones booked), of our own VMs */
};

SfResourceManager *sf_resource_manager_new(const SfResourceManagerKind *kind, const SfLimits *limits, const char *name);

/* One more clone of the ticket fits on the host, and the host has not refused the ticket. */
gboolean sf_resource_manager_has_room(SfResourceManager *manager, const SfClusterHost *host, const SfTicket *ticket);
guint sf_cluster_host_slots(const SfClusterHost *host);    /* as configured, or else as it says */
guint64 sf_cluster_host_memory(const SfClusterHost *host); /* bytes, likewise */

#endif
