/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfVmDisk: one disk of one VM as a graph of QEMU's block nodes, and the QMP commands that change it. Main thread only.
 */
#ifndef SF_VM_DISK_H
#define SF_VM_DISK_H

#include "sfvmm/disk/disk.h"
#include "sfvmm/vm/qmp.h"
#include "sfvmm/vm/vm_config.h"

typedef struct {
    SfDiskChain *chain; /* NULL: a writable disk of a shell, which has its overlay only */
    GPtrArray *nodes;   /* of char *: the format node of each layer of the chain */
    guint writable;     /* index of the lowest layer that this QEMU has opened for writing; nodes->len: none */
    guint next_node;    /* number of the next node's name */
    guint commit_to;    /* index of the layer that a block job is going to; G_MAXUINT: none is under way */
    gboolean streaming; /* it copies the layers between that one and the top into the top; else it commits them */
    GPtrArray *stale;   /* of char *: nodes that QEMU has still to delete, the upper ones first; it may do it twice */

    /* An overlay that is in QEMU but in no chain yet: a shell's own, or a snapshot's on its way. NULL: none. */
    SfDiskLayer *overlay;
    char *overlay_node;

    /*
     * The node of this disk that libvirt has opened for writing: its options, with node-name, but without read-only and
     * backing. NULL: we have made all of its nodes.
     */
    JsonObject *domain_node;
} SfVmDisk;

SfVmDisk *sf_vm_disk_new(SfDiskChain *chain_or_null); /* takes chain */
void sf_vm_disk_free(SfVmDisk *disk);
/* Its overlays outlive us: nobody in this process removes their files any more. */
void sf_vm_disk_leave(SfVmDisk *disk);
JsonObject *sf_vm_disk_to_json(const SfVmDisk *disk);
SfVmDisk *sf_vm_disk_from_json(JsonObject *object, GError **error);

/* The node that the device is to be given; valid after one of the two below. */
const char *sf_vm_disk_top_node(const SfVmDisk *disk);

/* ---- command line: JSON texts for -blockdev ---- */

/* Gives QEMU a descriptor of the layer, in *fdset. */
typedef gboolean (*SfVmDiskOpen)(SfDiskLayer *layer, gboolean writable, guint *fdset, gpointer data, GError **error);

/* Nodes of the whole chain, lowest first, file nodes in front of their format nodes. */
gboolean sf_vm_disk_blockdevs(SfVmDisk *disk, GPtrArray *json_texts, SfVmDiskOpen open_layer, gpointer data,
                              GError **error);
/* The node of a shell's overlay (taken), without what will be below it. */
gboolean sf_vm_disk_shell_blockdevs(SfVmDisk *disk, const char *id, SfDiskLayer *overlay, GPtrArray *json_texts,
                                    SfVmDiskOpen open_layer, gpointer data, GError **error);

/* ---- nodes that libvirt has made ---- */

/* The nodes of the whole chain, lowest first; options (taken): see domain_node. */
void sf_vm_disk_adopt_nodes(SfVmDisk *disk, const char *const *nodes, JsonObject *options);
/* The node of a shell's overlay (taken). */
void sf_vm_disk_adopt_overlay(SfVmDisk *disk, SfDiskLayer *overlay, JsonObject *options);

/* ---- QMP: each adds commands to the batch ---- */

/* At the snapshot: an overlay without backing, beside the graph. */
gboolean sf_vm_disk_add_overlay(SfVmDisk *disk, SfQmpBatch *batch, const char *template_path, const char *path,
                                uid_t uid, gid_t gid, GError **error);
/* The snapshot has put it above the top: the old top is closed for writing. */
void sf_vm_disk_overlay_done(SfVmDisk *disk, SfQmpBatch *batch);
/* The snapshot has failed: it goes. */
void sf_vm_disk_overlay_undo(SfVmDisk *disk, SfQmpBatch *batch);

/* A chain of which nothing is written, in a QEMU without a machine: all layers in one command. */
gboolean sf_vm_disk_add_frozen(SfVmDisk *disk, SfQmpBatch *batch, GError **error);
/* A node of `size` bytes whose content comes later; until then nobody may read it. Then: that of another node. */
void sf_vm_disk_add_empty_node(SfQmpBatch *batch, const char *node, guint64 size);
void sf_vm_disk_fill_empty_node(SfQmpBatch *batch, const char *node, const char *content);
/* A chain of an NBD layer and an overlay that caches it. tls_creds: id of an object of that QEMU, for nbds: URIs. */
gboolean sf_vm_disk_add_cache(SfVmDisk *disk, const char *tls_creds, SfQmpBatch *batch, GError **error);

/* At the load: the frozen chain (taken) goes below the shell's overlay. */
gboolean sf_vm_disk_load(SfVmDisk *disk, SfDiskChain *chain, SfQmpBatch *batch, GError **error);
/* Descriptors that the load has left behind: when there is time for it. */
void sf_vm_disk_load_clean(SfVmDisk *disk, SfQmpBatch *batch);

/* The lowest layer that all layers above can be committed to; TRUE if there is anything to commit. */
gboolean sf_vm_disk_commit_target(const SfVmDisk *disk, guint *target);
/*
 * Layers that clones still use can't be committed. Of a chain that is long all the same, the layers between *target and
 * the top can be copied into the top, which is this VM's own. The target is not the lowest, as a rule: a layer stays if
 * it is larger than twice all above it, so that a byte is copied a few times, however many forks there are.
 */
gboolean sf_vm_disk_stream_target(const SfVmDisk *disk, guint *target);
/* The job to commit_to, block-commit or block-stream: its QMP command, and the arguments. */
const char *sf_vm_disk_job_command(const SfVmDisk *disk);
JsonObject *sf_vm_disk_job_arguments(const SfVmDisk *disk, const char *job);
/* The node that is in use while that job is not through, and not any more afterwards. */
const char *sf_vm_disk_job_node(const SfVmDisk *disk);
/* None is under way any more. */
void sf_vm_disk_job_over(SfVmDisk *disk);
/* The job is through: layers above commit_to leave the chain (of a stream: but for the top), and their nodes are stale.
 */
void sf_vm_disk_job_done(SfVmDisk *disk);
/* Deletes stale nodes. While there are any, no snapshot can be made: they lie upon the disk. */
void sf_vm_disk_delete_stale(const SfVmDisk *disk, SfQmpBatch *batch);

#endif
