/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfCluster: this host among others: it brings resource manager, peers and the list of hosts together, and gives what
 * peers ask and tell to lend.h and borrow.h.
 *
 *     STATEDIR/hosts.json   the hosts that were added, and which are draining
 *
 * Main thread only. Events of the control protocol: host.up, host.down with HOST.
 */
#ifndef SF_CLUSTER_H
#define SF_CLUSTER_H

#include "sfvmm/control/host.h"

typedef struct SfCluster SfCluster;

/* The resource manager that the configuration names; caller owns it (and gives it to sf_host_new). */
SfResourceManager *sf_cluster_manager_new(const SfDaemonConfig *config);

/* Before recovery: reads the hosts, takes the port, gives the host its peers. NULL + error: keys or port are missing,
 * the list is damaged. The host has it until sf_cluster_free(). */
SfCluster *sf_cluster_new(SfHost *host, GError **error);
void sf_cluster_free(SfCluster *cluster);

/* After recovery: what this host is gets found out, then others are met. */
void sf_cluster_start(SfCluster *cluster);

SfCluster *sf_cluster_of(SfHost *host); /* borrowed */

/* The facts of this host (facts.h); NULL until they have been found out. Borrowed. */
JsonObject *sf_cluster_facts(SfCluster *cluster);

/* memory in bytes; slots and memory 0: what the host says of itself. All are remembered. */
gboolean sf_cluster_add(SfCluster *cluster, const char *name, const char *address, guint slots, guint64 memory,
                        GError **error);
gboolean sf_cluster_remove(SfCluster *cluster, const char *name, GError **error);
gboolean sf_cluster_drain(SfCluster *cluster, const char *name, gboolean drain, GError **error);

JsonObject *sf_cluster_describe(SfCluster *cluster, const SfClusterHost *host); /* HOST; transfer full */

#endif
