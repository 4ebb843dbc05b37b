/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Resource manager `local`: tickets from this host's capacity. */
#include "sfvmm/cluster/resource_manager_kind.h"

#define OWN_NAME "localhost" /* a host without [cluster] has no other */

static SfClusterHost *local_choose(SfResourceManager *manager, const SfTicket *ticket)
{
    SfClusterHost *host = g_ptr_array_index(manager->hosts, 0);

    return sf_resource_manager_has_room(manager, host, ticket) ? host : NULL;
}

static const SfResourceManagerKind local_kind = { .name = "local", .choose = local_choose };

SfResourceManager *sf_resource_manager_local_new(const SfLimits *limits)
{
    return sf_resource_manager_new(&local_kind, limits, OWN_NAME);
}
