/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfPager: the sf-pager process of one snapshot, as sfvmmd sees it. It serves the snapshot's pages to other hosts, or
 * fetches them from other hosts for the clones here, or both.
 *
 *     origin:  sf_pager_start (listens) ... peers connect ... sf_pager_set_snapshot (complete) ... served
 *     remote:  sf_pager_start ... sf_pager_add_source (connects) ... sf_pager_set_snapshot (cached) ... clones attach
 *
 * The object keeps every order that it gave, with its descriptors (the ledger), and gives them again to a new process
 * when the old one dies; whatever the process dies of, clones only wait meanwhile. A later sfvmmd gets the ledger
 * back from the process: sf_pager_adopt().
 *
 * RUNDIR/pager/SNAPSHOT/  pager.json  pager.sock  pager.log  tls-N/
 *
 * Signals
 *   "lost"       (const char *reason)  pages can't be had any more: a fault has waited for its bound. Clones that are not
 *                                      complete must be stopped
 *   "complete"   ()                    no page is missing: the source is not needed any more
 *   "restarted"  (const char *reason)  the process had died of that; a new one is at work
 *   "failed"     (const char *reason)  it died too often, or can't be started: as "lost"
 *   "sources"    (guint up)            how many sources are connected has changed
 *   "blob"       (guint64 id, gboolean whole)  what became of a blob that it was to get: multicast_blob.h
 *
 * All from the main thread. Unreferencing does not end the process: sf_pager_stop() does.
 */
#ifndef SF_PAGER_H
#define SF_PAGER_H

#include <gio/gio.h>
#include "sfvmm/memory/fault_handler.h"
#include "sfvmm/memory/snapshot.h"
#include "sfvmm/wire/pager_message.h"

#define SF_TYPE_PAGER (sf_pager_get_type())
G_DECLARE_FINAL_TYPE(SfPager, sf_pager, SF, PAGER, GObject)

typedef struct {
    const char *binary;        /* path of sf-pager */
    const char *run_directory; /* RUNDIR */
    const char *snapshot;      /* its id: known when the ticket is granted, before the snapshot exists */
    uid_t uid;                 /* that it runs as; ours when we are not root */
    gid_t gid;
    int listen_fd; /* a listening socket to serve pages on, taken in every case; -1: it serves nobody */
    SfPagerSecurity security; /* of serving */
    const char *keys;         /* X509: directory of the pages certificates (ca-cert.pem, server-cert.pem,
                               * server-key.pem); PSK: the key file; what is needed of it is copied for the process */
    guint fault_seconds;      /* bound of one fault, then "lost"; 0: the default, 60 */
} SfPagerOptions;

/* Starts the process. NULL + error names what is missing. */
SfPager *sf_pager_start(const SfPagerOptions *options, GError **error);

/*
 * After a restart of sfvmmd: takes over the process of RUNDIR/pager/SNAPSHOT. Blocks for some ms (bounded). NULL +
 * error: it has gone, or does not answer (then it is killed); the directory is removed. What the process has to say
 * ("lost", "complete", "sources") comes from the main loop afterwards: connect to the signals at once.
 */
SfPager *sf_pager_adopt(const char *run_directory, const char *snapshot, GError **error);

/*
 * Serves its pages from now on, once: for one that was started without a listener. listen_fd is taken in every case;
 * security and keys as in SfPagerOptions.
 */
gboolean sf_pager_serve(SfPager *pager, int listen_fd, SfPagerSecurity security, const char *keys, GError **error);
guint sf_pager_port(SfPager *pager); /* TCP, that it serves at; 0: it does not */

/* Is there a process of RUNDIR/pager/SNAPSHOT, left by an earlier sfvmmd, that can be adopted? Nothing is done. */
gboolean sf_pager_is_running(const char *run_directory, const char *snapshot);

/* After a restart, when all that are needed have been adopted: ends the others of RUNDIR/pager, and removes what is left. */
typedef gboolean (*SfPagerIsUsed)(const char *snapshot, gpointer data);
void sf_pagers_sweep(const char *run_directory, SfPagerIsUsed is_used, gpointer data);

/* Ends the process and removes its directory. Clones that are still attached would wait for ever: detach them first. */
void sf_pager_stop(SfPager *pager);

const char *sf_pager_snapshot_id(SfPager *pager);
pid_t sf_pager_pid(SfPager *pager); /* 0: none at present */

/*
 * Its pages, once: those of a complete snapshot, or the cache's (and the deltas over it) for a lazy one. A reference
 * is kept until sf_pager_stop().
 */
gboolean sf_pager_set_snapshot(SfPager *pager, SfSnapshot *snapshot, GError **error);

/* No page is missing: "complete" has been emitted. */
gboolean sf_pager_is_complete(SfPager *pager);

/* What it was given by sf_pager_set_snapshot() or sf_pager_keep_snapshot(); NULL: nothing yet. Borrowed. */
SfSnapshot *sf_pager_snapshot(SfPager *pager);
/* After adoption: the page cache that it fills, made anew from its descriptors; NULL if it has none. Borrowed. */
SfPageCache *sf_pager_cache(SfPager *pager);
/* After adoption: the descriptors of its snapshot, for sf_snapshot_restore_from(). Borrowed, until the next call. */
const int *sf_pager_fds(SfPager *pager, guint *n_fds);
/* After adoption, once the snapshot has been restored: holds it as sf_pager_set_snapshot() does. */
void sf_pager_keep_snapshot(SfPager *pager, SfSnapshot *snapshot);
/* After adoption: is this VM attached? */
gboolean sf_pager_is_attached(SfPager *pager, const char *vm);

/*
 * Where missing pages come from. uri: nbd://, nbds://, nbd+unix://, nbds+unix://; the export's name is its path, in
 * which "{block}" stands for the block's id ("nbds://10.0.0.1:9001/s-4f/{block}"); without it, the snapshot must have
 * one block. Connects at once (TCP, TLS, NBD in opt mode) and asks for the export when the snapshot is set. Several
 * sources: the first that works is used, the next when it fails.
 */
typedef struct {
    const char *uri;
    SfPagerSecurity security;
    const char *keys; /* X509: directory (ca-cert.pem, client-cert.pem, client-key.pem); PSK: the key file */
    const char *user; /* PSK: the key's name */
    guint connections; /* 0: the default */
} SfPageSource;
gboolean sf_pager_add_source(SfPager *pager, const SfPageSource *source, GError **error);

/*
 * Makes it a part of its snapshot's multicast group, once: pages come from there, or go there, besides NBD. socket: of
 * udp_group.h; keys: the master's bytes at the origin, elsewhere a struct mc_receiver_keys. All are copied.
 */
gboolean sf_pager_set_multicast(SfPager *pager, const char *group, const SfPagerMulticast *order, int socket,
                                const void *keys, gsize length, GError **error);
/* That order again, after adoption: what is set is borrowed until sf_pager_stop(); fds: socket, memfd of the keys. FALSE: none. */
gboolean sf_pager_get_multicast(SfPager *pager, const char **group, const SfPagerMulticast **order, const int **fds);

gboolean sf_pager_is_in_group(SfPager *pager); /* it has been told to be */

/*
 * At the origin: sends the first `length` bytes of this memfd to the group, once. Elsewhere: gathers them there into
 * it; "blob" tells the end. digest: SHA-256, hexadecimal. The callback's finish tells whether it was begun. Not kept
 * for a new process.
 */
void sf_pager_blob_async(SfPager *pager, const char *digest, gsize length, int memfd, GAsyncReadyCallback callback,
                         gpointer data);
gboolean sf_pager_blob_finish(SfPager *pager, GAsyncResult *result, GError **error);

/*
 * For a later sfvmmd, whose process has died meanwhile: {"sources": [{"uri", "security": "tls" | "plain"}],
 * "complete"}, without those that need a key (PSK). The second adds these sources to another one, and orders completion
 * if it had been; keys: as in SfPageSource.
 */
JsonObject *sf_pager_describe_sources(SfPager *pager);
gboolean sf_pager_add_described_sources(SfPager *pager, JsonObject *object, const char *keys, GError **error);

/* For sf_vm_load_async(); lives as long as the pager. */
const SfFaultHandler *sf_pager_fault_handler(SfPager *pager);

/* Which peers (CN of the client certificate; user of a PSK) may list and read. None: nobody, unless plain. */
gboolean sf_pager_allow(SfPager *pager, const char *const *names, GError **error);

/* What is fetched unasked. At start: working set and neighbours. COMPLETE: all of it, in the background. */
typedef enum {
    SF_PREFETCH_WORKING_SET = 1,
    SF_PREFETCH_NEIGHBOURS = 2,
    SF_PREFETCH_COMPLETE = 4,
} SfPrefetch;
gboolean sf_pager_set_prefetch(SfPager *pager, SfPrefetch what, GError **error);
gboolean sf_pager_complete(SfPager *pager, GError **error); /* adds COMPLETE; "complete" follows */

/* Pages to fetch first, in this order: struct sf_pager_run, what an earlier clone of the same VM needed. Copied. */
gboolean sf_pager_set_working_set(SfPager *pager, const GArray *runs, GError **error);
/* What has been fetched for faults so far, in their order: a working set for the next clones. */
void sf_pager_working_set_async(SfPager *pager, GAsyncReadyCallback callback, gpointer data);
GArray *sf_pager_working_set_finish(SfPager *pager, GAsyncResult *result, GError **error);

typedef struct {
    guint64 faults;            /* answered, of all clones */
    guint64 demand_faults;     /* of them: had to be fetched */
    guint64 fetched_bytes;     /* from sources, all reasons */
    guint64 demand_bytes;      /* for the page that a fault asked for */
    guint64 prefetched_bytes;  /* unasked: neighbours, working set, completion */
    guint64 prefetched_unused; /* bytes of them that no clone has mapped; from samples */
    guint64 resident_bytes;    /* in the cache */
    guint64 served_bytes;      /* to other hosts */
    guint64 fault_ns_median, fault_ns_p99; /* from reading the fault to waking, of the last ones that were fetched */
    guint sources, sources_up, clones;
    gboolean complete;
} SfPagerStats;
void sf_pager_stats_async(SfPager *pager, GAsyncReadyCallback callback, gpointer data);
gboolean sf_pager_stats_finish(SfPager *pager, GAsyncResult *result, SfPagerStats *stats, GError **error);
/* Of its part in a multicast group, told with the last statistics: the object of vm.usage. Borrowed; NULL: none. */
JsonObject *sf_pager_multicast_stats(SfPager *pager);

#endif
