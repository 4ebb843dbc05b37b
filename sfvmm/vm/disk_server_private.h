/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of disk_server.h share. Nobody else includes this. */
#ifndef SF_DISK_SERVER_PRIVATE_H
#define SF_DISK_SERVER_PRIVATE_H

#include "sfvmm/vm/disk_server.h"
#include "sfvmm/vm/vm_private.h"

#define SF_DISK_SERVER_FOLDER "nbd"      /* of the run directory */
#define SF_DISK_SERVER_SOCKET "nbd.sock" /* of its directory: where clones of this host connect */
#define SF_DISK_SERVER_TLS    "tls"      /* of the server's directory: certificates */

/* An export whose chain has not come yet, or of which QEMU has not said yet that it is under the export. */
typedef struct {
    char *name, *node;
    guint64 size;
    gboolean given; /* the chain has been sent: it is among the server's chains as well */
} SfDiskAnnounced;

struct SfDiskServer {
    int refs;
    const SfLauncherOptions *options;
    GHashTable *all; /* options->disk_servers, a reference */
    char *id, *directory, *tls_directory, *socket;
    GStrv allowed;
    gboolean local;   /* at a unix socket of its directory */
    uid_t client_uid; /* whose that is */
    gid_t client_gid;
    gboolean tls; /* to hosts with certificates */
    pid_t pid;
    guint64 start_time;
    int pidfd;
    guint exit_source;
    int listener; /* for a new process; -1: lost in a restart of sfvmmd */
    guint restarts, restart_timer;
    SfQmp *qmp; /* NULL: it has died, or is not connected */
    GPtrArray
        *chains; /* of SfDiskChain: the layers that it has open; those that are not read-only are caches of a URI */
    GPtrArray *names;     /* of char *: exports, as many */
    GPtrArray *announced; /* of SfDiskAnnounced */
    guint next_disk;
};

/* disk_server.c */
SfDiskServer *sf_disk_server_new(const SfLauncherOptions *options, const char *id); /* without a process */
SfDiskAnnounced *sf_disk_server_announced_add(SfDiskServer *server, const char *name, const char *node, guint64 size);
void sf_disk_server_start_anew(SfDiskServer *server); /* a process in place of the one that has died */

/* disk_server_record.c */
void sf_disk_server_save(SfDiskServer *server);

/* disk_server_process.c */
gboolean sf_disk_server_make_directory(SfDiskServer *server, GError **error);
gboolean sf_disk_server_listen(SfDiskServer *server, GError **error); /* where clones of this host connect */
gboolean sf_disk_server_start_process(SfDiskServer *server, GError **error);
void sf_disk_server_watch(SfDiskServer *server);                       /* its process */
gboolean sf_disk_server_connect(SfDiskServer *server, GError **error); /* to its monitor */
gboolean sf_disk_server_fail_errno(GError **error, const char *what);  /* always FALSE */

/* disk_server_exports.c: each adds orders to the batch. FALSE + error: that can't be served. */
void sf_disk_server_add_listener(SfDiskServer *server, SfQmpBatch *batch); /* first: to whom it serves */
gboolean sf_disk_server_add_exports(SfDiskServer *server, const SfDiskExport *exports, guint n, SfQmpBatch *batch,
                                    GError **error);
/* announced_or_null: the node that is exported already; else an export is added. */
gboolean sf_disk_server_add_frozen(const char *name, const SfDiskChain *chain, const SfDiskAnnounced *announced_or_null,
                                   SfQmpBatch *batch, GError **error);
gboolean sf_disk_server_add_cache(SfDiskServer *server, const char *name, const SfDiskChain *chain, SfQmpBatch *batch,
                                  GError **error);
void sf_disk_server_add_announced(const SfDiskAnnounced *announced, SfQmpBatch *batch);
SfDiskAnnounced *sf_disk_server_find_announced(const SfDiskServer *server, const char *name); /* or NULL */

#endif
