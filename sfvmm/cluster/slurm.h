/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Resource manager `slurm`: tickets are allocations of the cluster's scheduler. Slurm's nodes are the hosts of the same
 * names. docs/resource-managers.md says what it asks of Slurm.
 */
#ifndef SF_SLURM_H
#define SF_SLURM_H

#include <sys/types.h>

#include "sfvmm/cluster/resource_manager.h"

typedef struct {
    char *account, *partition, *constraint; /* of its jobs; NULL: Slurm's defaults */
    char *conf;                             /* slurm.conf; NULL: where Slurm's commands look for it */
    guint minutes;                          /* time limit of a job */
    guint poll_seconds;                     /* how often its jobs are looked after */
    uid_t uid;                              /* that owns the jobs; changed to only when we are root */
    gid_t gid;
} SfSlurmOptions;

/* As sf_resource_manager_static_new(). Borrows options. */
SfResourceManager *sf_resource_manager_slurm_new(const SfLimits *limits, const char *name,
                                                 const SfSlurmOptions *options);

#endif
