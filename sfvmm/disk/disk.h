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
 *
 * Layers may be used from any thread; a chain belongs to one thread at a time. Errors are G_IO_ERROR (or g_spawn's) and
 * name the file.
 */
#ifndef SF_DISK_H
#define SF_DISK_H

#include <glib.h>
#include <json-glib/json-glib.h>

#define SF_DISK_LAYERS_MAX 256u         /* of one chain, as read back from JSON */
#define SF_DISK_SIZE_MAX   (1ull << 50) /* virtual, bytes */

/* Format of a layer that is no file but an NBD export; always the lowest of its chain, and read-only. */
#define SF_DISK_FORMAT_NBD "nbd"

typedef struct {
    int refs;       /* under disk.c's lock */
    char *path;     /* absolute; of format nbd: a URI */
    char *format;   /* "raw", "qcow2" or SF_DISK_FORMAT_NBD */
    gboolean owned; /* an overlay of ours: unlink with the last reference */
    gpointer kept;  /* what must live as long as the layer is used, or NULL: main thread */
    GDestroyNotify kept_free;
} SfDiskLayer;

/*
 * A reference to the one layer of that path: asked again for a path that is in use it gives the same object, so that
 * chains read back from JSON after a restart share their layers as they did before (`owned` and format stay as they
 * were first). To keep files, take all chains that use them before giving any back.
 */
SfDiskLayer *sf_disk_layer_new(const char *path, const char *format, gboolean owned);
SfDiskLayer *sf_disk_layer_ref(SfDiskLayer *layer);
void sf_disk_layer_unref(SfDiskLayer *layer);
/* The layer of that path if somebody has it (a reference), or NULL. */
SfDiskLayer *sf_disk_layer_find(const char *path);
/* Gives it something to hold until its end, once. The last reference to such a layer must be dropped in the main thread. */
void sf_disk_layer_keep(SfDiskLayer *layer, gpointer kept, GDestroyNotify kept_free);
gboolean sf_disk_layer_keeps(const SfDiskLayer *layer);
gboolean sf_disk_layer_is_nbd(const SfDiskLayer *layer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDiskLayer, sf_disk_layer_unref)

typedef struct {
    char *id;     /* "disk0" */
    guint64 size; /* virtual, bytes */
    gboolean readonly;
    GPtrArray *layers; /* of SfDiskLayer, lowest first, at least one */
} SfDiskChain;

/* A chain without layers yet. */
SfDiskChain *sf_disk_chain_new(const char *id, guint64 size, gboolean readonly);
SfDiskChain *sf_disk_chain_copy(const SfDiskChain *chain); /* shares the layers */
void sf_disk_chain_free(SfDiskChain *chain);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDiskChain, sf_disk_chain_free)

/* {"id","size","readonly","layers":[{"path","format","owned"}]}; reading is strict. */
JsonObject *sf_disk_chain_to_json(const SfDiskChain *chain);
SfDiskChain *sf_disk_chain_from_json(JsonObject *object, GError **error);

/*
 * Drops the layers below the user's own image: that is the highest one that is no overlay of ours, and what stands
 * below it (the base image of a cloud image, say) may be others' too. A chain of overlays alone stays as it is.
 */
void sf_disk_chain_drop_bases(SfDiskChain *chain);

/* Does another chain, or anybody else, hold one of its layers too? */
gboolean sf_disk_chain_is_shared(const SfDiskChain *chain);

/*
 * Format and virtual size (bytes) of an image (qemu-img info; blocks for some 10 ms). Refuses what is neither raw nor
 * qcow2, has a backing file or an external data file, or is encrypted. format: "raw" or "qcow2", NULL: found out, which
 * lets a guest that can write a raw image pass it off as something else. The caller owns *format.
 */
gboolean sf_disk_probe(const char *qemu_img, const char *path, const char *format_or_null, char **format, guint64 *size,
                       GError **error);

/*
 * A template overlay (empty qcow2 of a size, with no backing file in it: QEMU is told that node by node) made once by
 * qemu-img, then copied for each use (0.15 ms instead of 11). The overlay must not exist yet; it is given to owner and
 * group, (uid_t)-1 and (gid_t)-1: left as they are.
 */
gboolean sf_disk_template_create(const char *qemu_img, const char *path, guint64 size, GError **error);
SfDiskLayer *sf_disk_overlay_create(const char *template_path, const char *path, uid_t owner, gid_t group,
                                    GError **error);

/*
 * Writes all overlays of an offline chain into its lowest layer, the user's own image, and drops them from the chain
 * (qemu-img commit). A layer above the lowest that is no overlay of ours: G_IO_ERROR_INVALID_ARGUMENT, nothing is
 * written. For a worker thread; the chain is its own meanwhile. Does nothing for one layer or a read-only disk. Not for
 * ephemeral disks, whose writes must never reach the image. G_IO_ERROR_BUSY when another chain still uses a layer.
 * After an error everything is kept, and it may be tried again; *begun is TRUE (it is never set to FALSE) if the image
 * has perhaps been written to.
 */
gboolean sf_disk_commit_offline(const char *qemu_img, SfDiskChain *chain, gboolean *begun, GError **error);

/*
 * All that a URI serves (NBD), as a new qcow2 image without backing file. Blocks for long: for a worker thread. After an
 * error what was written is the caller's to remove.
 */
gboolean sf_disk_convert(const char *qemu_img, const char *uri, const char *path, GError **error);

#endif
