/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The VM descriptor: all that another host needs to know of a snapshot, as a flattened device tree (libfdt). It is small (page
 * maps are run-length coded, device state is compressed), versioned, and decoded strictly: nothing in it is trusted.
 * docs/descriptor.md has the layout.
 */
#ifndef SF_DESCRIPTOR_H
#define SF_DESCRIPTOR_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include "sfvmm/wire/page_run.h"

#define SF_DESCRIPTOR_VERSION   1u
#define SF_DESCRIPTOR_MAX_SIZE  (16u << 20)        /* bytes; more is refused before it is parsed */

typedef struct {
    char *id;                                       /* "disk0" */
    guint64 size;                                   /* bytes */
    char *format;
    char *base;                                     /* file name or URI of the frozen top, for people and for issue 3's export */
} SfDescriptorDisk;

typedef struct {
    char *id;
    guint64 length;                                 /* bytes */
    GArray *present;                                /* of SfRun: pages with content; all others are zero */
} SfDescriptorBlock;

typedef struct {
    guint32 version;
    char *id;                                       /* of the snapshot */
    char *vm;                                       /* the forked VM's name */
    GStrv lineage;                                  /* ids of the snapshots below, oldest first; may be empty */
    char *machine, *cpu, *accel, *qemu_version, *config_hash;
    guint32 vcpus;
    guint64 memory;
    guint64 created;                                /* ns since the epoch */
    GPtrArray *blocks;                              /* of SfDescriptorBlock */
    GPtrArray *disks;                               /* of SfDescriptorDisk */
    GStrv page_sources;                             /* NBD URIs; empty for a local one */
    GBytes *device_state;                           /* raw; compressed (zstd or LZ4) with CRC-32 in the encoding */
} SfDescriptor;

SfDescriptor *sf_descriptor_new(void);
void sf_descriptor_free(SfDescriptor *descriptor);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDescriptor, sf_descriptor_free)

GBytes *sf_descriptor_encode(const SfDescriptor *descriptor, GError **error);
SfDescriptor *sf_descriptor_decode(GBytes *bytes, GError **error);
char *sf_descriptor_to_text(const SfDescriptor *descriptor);        /* what `sfctl descriptor show` prints */
JsonNode *sf_descriptor_to_json(const SfDescriptor *descriptor);    /* and --json; page maps as totals and run counts */

#endif
