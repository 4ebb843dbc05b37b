/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A RAM block of a snapshot, flattened into one sparse raw file. */
#ifndef SF_MEMORY_FILE_H
#define SF_MEMORY_FILE_H

#include <gio/gio.h>
#include "sfvmm/memory/snapshot.h"

/*
 * Writes what the block holds over all its layers to fd, an empty file. Pages of zeros become holes. present: of SfRun,
 * where the snapshot may have content (sf_snapshot_present_runs()). Returns the runs that are not zero, for the
 * descriptor; *sha256 is of the whole file. The caller owns both. Reads descriptors of the snapshot only: for a worker
 * thread, while somebody holds the snapshot.
 */
GArray *sf_memory_file_write(const SfBlock *block, const GArray *present, int fd, char **sha256, GError **error);

#endif
