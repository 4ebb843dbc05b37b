/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfStore: the saved snapshots of this host.
 *
 *     DIRECTORY/NAME/              a saved snapshot (saved.h), or a link to its directory elsewhere (load)
 *              /NAME/source.json   of one whose memory is served by NBD: where that is, and the directory of the rest
 *              /.NAME.part/        one that is being written; appears under its name when it is whole, or never
 *
 * Main thread only; the work is done in worker threads. Errors are G_IO_ERROR, EXISTS and NOT_FOUND for names.
 */
#ifndef SF_STORE_H
#define SF_STORE_H

#include "sfvmm/store/saved.h"
#include "sfvmm/vm/launcher.h"

typedef struct SfStore SfStore;

/* The directory is made when something is first saved. What an earlier process left half written in it is removed. */
SfStore *sf_store_new(const char *directory, SfLauncher *launcher);
void sf_store_free(SfStore *store);

/* Names, sorted; those that are being saved or loaded are not among them. Caller frees with g_strfreev(). */
GStrv sf_store_names(SfStore *store);
GStrv sf_store_busy(SfStore *store); /* those */
/* Reads it. Caller owns the result. */
SfSaved *sf_store_read(SfStore *store, const char *name, GError **error);
gboolean sf_store_is_link(SfStore *store, const char *name);

/* Removes it; of a link the link alone. */
gboolean sf_store_remove(SfStore *store, const char *name, GError **error);

/*
 * Save: memory and disks are copied from the snapshot, which is held until then, in the background; the VM has been
 * running again since it was taken. descriptor: of the snapshot, taken. machine, agent, request: see SfSaved; machine is
 * taken. Finishes when it
 * is on the disk for good; after an error nothing is left.
 */
void sf_store_save_async(SfStore *store, const char *name, SfSnapshot *snapshot, GPtrArray *frozen_disks,
                         SfDescriptor *descriptor, JsonObject *machine, gboolean agent, guint32 request,
                         GAsyncReadyCallback callback, gpointer data);
gboolean sf_store_save_finish(SfStore *store, GAsyncResult *result, GError **error);

/*
 * Load: verifies the snapshot in a directory (absolute path) and links to it. memory_uri: an NBD server that has its memory
 * (see SfSaved), which is not looked at yet; NULL: it is in the directory.
 */
void sf_store_load_async(SfStore *store, const char *directory, const char *memory_uri, const char *name,
                         GAsyncReadyCallback callback, gpointer data);
gboolean sf_store_load_finish(SfStore *store, GAsyncResult *result, GError **error);

#endif
