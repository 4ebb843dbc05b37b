/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Resource manager `static`: this host and a list of others, each with slots and memory.
 *
 *     spread   the next clone goes where the smallest part of the slots is used; of equals, to this host, then by name
 *     pack     to this host while it has room, then to the others by name
 *
 * The books are ours alone: another host may have lent its slots to somebody else as well. It then refuses, and
 * reassign() finds another one.
 */
#include "sfvmm/cluster/resource_manager_kind.h"

/* Whether a is used less than b, as parts of their slots. */
static gboolean is_emptier(const SfClusterHost *a, const SfClusterHost *b)
{
    return (guint64)a->booked * sf_cluster_host_slots(b) < (guint64)b->booked * sf_cluster_host_slots(a);
}

static SfClusterHost *static_choose(SfResourceManager *manager, const SfTicket *ticket)
{
    SfClusterHost *chosen = NULL;

    for (guint i = 0; i < manager->hosts->len; i++) {
        SfClusterHost *host = g_ptr_array_index(manager->hosts, i);
        if (!sf_resource_manager_has_room(manager, host, ticket)) {
            continue;
        }
        if (manager->policy == SF_POLICY_PACK) {
            return host;
        }
        if (!chosen || is_emptier(host, chosen)) {
            chosen = host;
        }
    }
    return chosen;
}

static const SfResourceManagerKind static_kind = { .name = "static", .many_hosts = TRUE, .choose = static_choose };

SfResourceManager *sf_resource_manager_static_new(const SfLimits *limits, const char *name, SfPolicy policy)
{
    SfResourceManager *manager = sf_resource_manager_new(&static_kind, limits, name);

    manager->policy = policy;
    return manager;
}
