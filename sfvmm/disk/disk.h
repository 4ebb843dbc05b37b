/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfDiskChain: one disk of one VM as a chain of image layers, lowest first. All layers but the last are immutable while
 * somebody else has them in a chain; the last (top) is written by this VM alone.
 *
 *     image.qcow2 <- parent's overlay 1 <- parent's overlay 2 (top of the parent)
 *                                       <- clone 1's overlay  (top of clone 1)
 *
 * A layer is reference counted; an overlay's file is deleted with its last reference, the user's own image never.
 * QEMU opens nothing by path: layers go in as descriptors (add-fd), so that it runs as a user that can't read them.
 */
#ifndef SF_DISK_H
#define SF_DISK_H

#include <glib.h>
#include <json-glib/json-glib.h>

typedef struct {
    int refs;
    char *path;
    char *format;             /* "raw" or "qcow2" */
    gboolean owned;           /* an overlay of ours: unlink with the last reference */
} SfDiskLayer;

SfDiskLayer *sf_disk_layer_new(const char *path, const char *format, gboolean owned);
SfDiskLayer *sf_disk_layer_ref(SfDiskLayer *layer);
void sf_disk_layer_unref(SfDiskLayer *layer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDiskLayer, sf_disk_layer_unref)

typedef struct {
    char *id;                 /* "disk0" */
    guint64 size;             /* virtual, bytes */
    gboolean readonly;
    GPtrArray *layers;        /* of SfDiskLayer, lowest first, at least one */
} SfDiskChain;

SfDiskChain *sf_disk_chain_new(const char *id, guint64 size, gboolean readonly);
SfDiskChain *sf_disk_chain_copy(const SfDiskChain *chain);        /* shares the layers */
void sf_disk_chain_free(SfDiskChain *chain);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDiskChain, sf_disk_chain_free)
JsonObject *sf_disk_chain_to_json(const SfDiskChain *chain);
SfDiskChain *sf_disk_chain_from_json(JsonObject *object, GError **error);

/* Format, virtual size (bytes) and backing file of an image; refuses what is neither raw nor qcow2 (qemu-img info). */
gboolean sf_disk_probe(const char *qemu_img, const char *path, const char *format_or_null,
                       char **format, guint64 *size, GError **error);

/* A template overlay (empty qcow2 of a size) made once by qemu-img, then copied for each use (0.15 ms instead of 11). */
gboolean sf_disk_template_create(const char *qemu_img, const char *path, guint64 size, GError **error);
SfDiskLayer *sf_disk_overlay_create(const char *template_path, const char *path, uid_t owner, gid_t group, GError **error);

/* Commits an offline chain's top into the layer below (qemu-img commit) when that is the user's own image. In a worker thread. */
gboolean sf_disk_commit_offline(const char *qemu_img, SfDiskChain *chain, GError **error);

#endif
