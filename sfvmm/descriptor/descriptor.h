/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The VM descriptor: all that another host needs to know of a snapshot, as a flattened device tree (libfdt). It is
 * small (page maps are run-length coded, device state is compressed), versioned, and decoded strictly: nothing in it
 * is trusted. docs/descriptor.md has the layout.
 *
 * Nothing here has state: any thread may call anything, each descriptor belongs to one thread at a time. Errors are
 * G_IO_ERROR: INVALID_DATA, or NOT_SUPPORTED for a version that is not ours.
 */
#ifndef SF_DESCRIPTOR_H
#define SF_DESCRIPTOR_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>
#include "sfvmm/wire/page_run.h"

#define SF_DESCRIPTOR_VERSION  1u
#define SF_DESCRIPTOR_MAX_SIZE (16u << 20) /* bytes; more is refused before it is parsed */

/* Bounds of what is in it, for encoding and decoding alike. */
#define SF_DESCRIPTOR_MAX_STATE  (64u << 20) /* bytes of device state */
#define SF_DESCRIPTOR_MAX_RUNS   (1u << 22)  /* of all page maps together */
#define SF_DESCRIPTOR_MAX_BLOCKS 16u
#define SF_DESCRIPTOR_MAX_DISKS  32u
#define SF_DESCRIPTOR_MAX_LIST   256u  /* entries of lineage and page_sources */
#define SF_DESCRIPTOR_MAX_TEXT   1024u /* bytes of any text */
#define SF_DESCRIPTOR_MAX_VCPUS  4096u
#define SF_DESCRIPTOR_MAX_LENGTH (1ull << 42) /* bytes of memory, and of a block */
#define SF_DESCRIPTOR_MAX_DISK   (1ull << 50) /* bytes */

typedef struct {
    char *id;     /* "disk0" */
    guint64 size; /* bytes */
    char *format; /* of the base: "raw" or "qcow2" */
    char *base;   /* file name or URI of the frozen top, for people and exports */
} SfDescriptorDisk;

typedef struct {
    char *id;
    guint64 length;  /* bytes */
    GArray *present; /* of SfRun: pages with content; all others are zero */
} SfDescriptorBlock;

typedef struct {
    guint32 version;
    char *id;      /* of the snapshot */
    char *vm;      /* the forked VM's name */
    GStrv lineage; /* ids of the snapshots below, oldest first; NULL or empty: none */
    char *machine, *cpu, *accel, *qemu_version, *config_hash;
    guint32 vcpus;
    guint64 memory;       /* bytes */
    guint64 created;      /* ns since the epoch */
    GPtrArray *blocks;    /* of SfDescriptorBlock */
    GPtrArray *disks;     /* of SfDescriptorDisk */
    GStrv page_sources;   /* NBD URIs; NULL or empty for a local one */
    GBytes *device_state; /* raw; compressed with CRC-32 in the encoding */
} SfDescriptor;

/* An empty one of this version; blocks and disks free their elements. */
SfDescriptor *sf_descriptor_new(void);
void sf_descriptor_free(SfDescriptor *descriptor);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDescriptor, sf_descriptor_free)

/* Adds an element. present: taken; the texts are copied. */
void sf_descriptor_add_block(SfDescriptor *descriptor, const char *id, guint64 length, GArray *present);
void sf_descriptor_add_disk(SfDescriptor *descriptor, const char *id, guint64 size, const char *format,
                            const char *base);

GBytes *sf_descriptor_encode(const SfDescriptor *descriptor, GError **error);
SfDescriptor *sf_descriptor_decode(GBytes *bytes, GError **error);
char *sf_descriptor_to_text(const SfDescriptor *descriptor);     /* what `sfctl descriptor show` prints */
JsonNode *sf_descriptor_to_json(const SfDescriptor *descriptor); /* and --json; page maps as totals and run counts */

#endif
