/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What recover.c needs of snapshot.c. For memory/ alone. */
#ifndef SF_SNAPSHOT_PRIVATE_H
#define SF_SNAPSHOT_PRIVATE_H

#include "sfvmm/memory/snapshot.h"

/* A snapshot with no block, all descriptors -1, counted at its base. */
SfSnapshot *sf_snapshot_new_empty(const char *id, SfRamBase *base);

/* Are all descriptors regular files of the size that the snapshot says, and few enough for one LOAD? */
gboolean sf_snapshot_validate(const SfSnapshot *snapshot, GError **error);

#endif
