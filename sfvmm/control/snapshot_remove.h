/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Removal of a saved snapshot that may have been in use until just now. Main thread only. */
#ifndef SF_SNAPSHOT_REMOVE_H
#define SF_SNAPSHOT_REMOVE_H

#include "sfvmm/control/snapshots.h"

/*
 * Removes it from the store. SF_HOST_ERROR_BUSY while there are tickets of it; clones that have been killed are waited
 * for, 30 s at most.
 */
void sf_snapshot_remove_async(SfHost *host, const char *name, GAsyncReadyCallback callback, gpointer data);
gboolean sf_snapshot_remove_finish(SfHost *host, GAsyncResult *result, GError **error);

#endif
