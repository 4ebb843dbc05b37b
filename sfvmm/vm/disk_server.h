/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfDiskServer: a process that serves disk images of one snapshot by NBD, read-only, as the user that QEMU runs as.
 *
 *     where the snapshot was taken      frozen chain of files ---------------------> TLS, for other hosts
 *                                                                                    unix socket, for this one
 *     on another host                   nbds://... <-- copy-on-read, host cache ---> unix socket, for all its clones
 *
 * It is never the QEMU of a VM. Images come as descriptors, as to any QEMU; they are locked while it serves them, and
 * the layers of its chains count as used. It lives as long as somebody holds a reference (a layer of
 * sf_disk_server_layer() does), and over restarts of sfvmmd. Main thread only.
 */
#ifndef SF_DISK_SERVER_H
#define SF_DISK_SERVER_H

#include "sfvmm/disk/disk.h"
#include "sfvmm/vm/launcher.h"

#define SF_DISK_SERVER_EXPORTS_MAX 40u /* disks of a VM, or its RAM blocks */

/*
 * One image: `chain`, or `uri`, or neither: it is announced. Others can connect to its export then, so that a fork
 * costs no connection, but must not read before a chain has been added by the same name.
 */
typedef struct {
    const char *name;         /* of the export: "s-0123456789abcdef/disk0" */
    const SfDiskChain *chain; /* of files */
    const char *uri;          /* NBD, served elsewhere: nbds://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH */
    guint64 size;             /* without chain: virtual, bytes */
} SfDiskExport;

typedef struct {
    const char *id; /* of the snapshot; names RUNDIR/nbd/ID */
    const char
        *tls_directory; /* page certificates: the server's with listen_fd, the client's for nbds: URIs. Or NULL */
    int listen_fd; /* a listening TCP socket, borrowed: TLS with client certificates (plain without tls_directory, which
                    * is for tests on loopback). -1: a unix socket, plain */
    uid_t client_uid; /* without: who may connect to the unix socket, when we are root; 0: those that QEMU runs as */
    gid_t client_gid;
    const char *const *allowed; /* with listen_fd: names (CN) of the hosts that may read; NULL-terminated */
} SfDiskServerOptions;

typedef struct SfDiskServer SfDiskServer;

/*
 * Starts it, with these exports or none yet. Finishes when clients can connect. Everything pointed to is copied. A
 * start takes some 50 ms: begin when the ticket is granted.
 */
void sf_disk_server_start_async(SfLauncher *launcher, const SfDiskServerOptions *options, const SfDiskExport *exports,
                                guint n_exports, GAsyncReadyCallback callback, gpointer data);
SfDiskServer *sf_disk_server_start_finish(GAsyncResult *result, GError **error);

/* More exports, some ms each; chains for those that were announced: when the snapshot has been taken. */
void sf_disk_server_add_async(SfDiskServer *server, const SfDiskExport *exports, guint n_exports,
                              GAsyncReadyCallback callback, gpointer data);
gboolean sf_disk_server_add_finish(SfDiskServer *server, GAsyncResult *result, GError **error);

/* It has announced exports whose chains have not come: they read as zeros. Also after a restart of sfvmmd. */
gboolean sf_disk_server_is_waiting(const SfDiskServer *server);

SfDiskServer *sf_disk_server_ref(SfDiskServer *server);
void sf_disk_server_unref(SfDiskServer *server); /* the last one ends the process */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfDiskServer, sf_disk_server_unref)

/* nbd+unix:///NAME?socket=PATH; of a server at a unix socket. Caller frees. */
char *sf_disk_server_uri(SfDiskServer *server, const char *name);

/* A layer for a chain of a clone on this host, which reads that export and holds the server. Caller owns it. */
SfDiskLayer *sf_disk_server_layer(SfDiskServer *server, const char *name);

/*
 * After a restart of sfvmmd, when all VMs are adopted and all chains restored: servers whose layers are in use live on
 * with them, the others are ended. sf_disk_server_find() gives one to who had it (a reference, or NULL); call it
 * before.
 */
SfDiskServer *sf_disk_server_find(SfLauncher *launcher, const char *id);
void sf_disk_servers_sweep(SfLauncher *launcher);

#endif
