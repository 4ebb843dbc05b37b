/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfSaved: a snapshot that was saved to a directory, as its snapshot.json says (docs/saved-snapshots.md has the format).
 *
 *     DIR/  snapshot.json    what it is, and size and SHA-256 of the other files
 *           descriptor.dtb   the VM descriptor: page maps, device state, machine
 *           pc.ram.raw       one sparse raw file per RAM block
 *           disk0.qcow2      one image per disk, without backing file
 *
 * All of it is a file from somebody: nothing in it is trusted. Errors are G_IO_ERROR_INVALID_DATA, NOT_SUPPORTED for a
 * version that is not ours, or what the file system said. Nothing here has state; any thread may call anything.
 */
#ifndef SF_SAVED_H
#define SF_SAVED_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>
#include "sfvmm/descriptor/descriptor.h"

#define SF_SAVED_VERSION    1u
#define SF_SAVED_JSON       "snapshot.json"
#define SF_SAVED_DESCRIPTOR "descriptor.dtb"
#define SF_SAVED_JSON_MAX   (256u << 10) /* bytes; more is refused unread */
#define SF_SAVED_NAME_MAX   80u          /* of a snapshot in the store; VM.NAME of a checkpoint fits */
#define SF_SAVED_FILE_MAX   128u         /* bytes of a file's name */
#define SF_SAVED_SHA256_LEN 64u          /* hexadecimal digits */

typedef struct {
    char *name;   /* in the directory: A-Z a-z 0-9 . _ -, no dot first */
    guint64 size; /* bytes */
    char *sha256; /* lower-case hexadecimal */
} SfSavedFile;

typedef struct {
    char *id;
    SfSavedFile file; /* its size is the block's length */
} SfSavedBlock;

typedef struct {
    char *id;     /* "disk0": by its place */
    guint64 size; /* virtual, bytes */
    gboolean readonly;
    SfSavedFile file;
} SfSavedDisk;

typedef struct {
    char *directory;  /* where it was read from; NULL after parse() */
    char *memory_uri; /* where its memory is served by NBD, "{block}" standing for a block's id; NULL: in the directory */
    char *id;        /* of the snapshot, "s-0123456789abcdef" */
    char *vm;        /* that was saved */
    guint64 created; /* ns since the epoch */
    gboolean agent;  /* clones have an agent that makes them unique */
    guint64 request;         /* the agent's CHECKPOINT, which the clones answer; 0: saved by an operator */
    guint64 device_length;
    JsonObject *machine; /* memory, vcpus, accel, cpu, network, as in `vm.run` */
    SfSavedFile descriptor;
    GPtrArray *blocks; /* of SfSavedBlock */
    GPtrArray *disks;  /* of SfSavedDisk */
} SfSaved;

SfSaved *sf_saved_new(void); /* empty */
void sf_saved_free(SfSaved *saved);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfSaved, sf_saved_free)

/* Adds an element with these values; texts are copied, the file is left empty. Owned by saved. */
SfSavedBlock *sf_saved_add_block(SfSaved *saved, const char *id, guint64 length);
SfSavedDisk *sf_saved_add_disk(SfSaved *saved, const char *id, guint64 size, gboolean readonly);

/* snapshot.json to and from text. */
char *sf_saved_format(const SfSaved *saved, gsize *length);
SfSaved *sf_saved_parse(const char *text, gsize length, GError **error);

/* Reads DIR/snapshot.json, and looks that each file is there and has its size; with memory_uri those of memory may be
 * elsewhere. */
SfSaved *sf_saved_read(const char *directory, const char *memory_uri_or_null, GError **error);

/* The path of one of its files. Caller frees. */
char *sf_saved_path(const SfSaved *saved, const SfSavedFile *file);

/* Its descriptor, checksum verified, and compared with the rest: the same id, blocks and lengths. */
SfDescriptor *sf_saved_descriptor(const SfSaved *saved, GError **error);

/* Computes the checksums of all its files, but of memory that is elsewhere. Reads all of them: for a worker thread. */
gboolean sf_saved_verify(const SfSaved *saved, GError **error);

/* Bytes that it takes on its file system. */
guint64 sf_saved_disk_usage(const SfSaved *saved);

/* 1 to SF_SAVED_NAME_MAX of a-z, 0-9, '.' and '-', a letter or digit first. */
gboolean sf_saved_name_is_valid(const char *name);

#endif
