/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What snapshots.c, snapshot_save.c and snapshot_clone.c share. */
#ifndef SF_SNAPSHOTS_PRIVATE_H
#define SF_SNAPSHOTS_PRIVATE_H

#include "sfvmm/control/snapshots.h"

struct SfSnapshots {
    SfHost *host; /* not owned */
    SfStore *store;
};

/* Clones are called after their family. Caller frees. */
char *sf_snapshots_family_name(const char *name);

#endif
