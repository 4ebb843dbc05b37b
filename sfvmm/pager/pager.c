/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * One connection to one process. Every order is a message with descriptors (wire/pager_message.h). Orders that make
 * the process what it is go into the ledger first, then out; the process keeps the same ledger.
 *
 *     start    directory, listener, pager.json; exec; connect; (orders)                 pager_process.c
 *     orders   into the ledger; sent; answered                        pager_orders.c, pager_connection.c
 *     asked    working set, statistics                                                    pager_stats.c
 *     dies     pidfd tells; a new process on the same listener; the whole ledger again; "restarted"
 *     adopt    pager.json -> pidfd, connect, recall 0, 1, 2 ... -> ledger                 pager_adopt.c
 */
#include "sfvmm/pager/pager_private.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sfvmm/process/process.h"
#include "sfvmm/wire/state_file.h"

G_DEFINE_FINAL_TYPE(SfPager, sf_pager, G_TYPE_OBJECT)

gboolean sf_pager_fail_errno(SfPager *pager, GError **error, const char *what)
{
    int saved = errno;

    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved), "pager of %s: %s: %s", pager->id, what,
                g_strerror(saved));
    return FALSE;
}

char *sf_pager_path(const SfPager *pager, const char *file)
{
    return g_build_filename(pager->directory, file, NULL);
}

/* ---- start and stop ---- */

SfPager *sf_pager_new(const char *run_directory, const char *snapshot)
{
    SfPager *pager = g_object_new(SF_TYPE_PAGER, NULL);

    pager->id = g_strdup(snapshot);
    pager->handler.id = pager->id;
    pager->directory = g_build_filename(run_directory, SF_PAGER_FOLDER, snapshot, NULL);
    return pager;
}

static gboolean pager_start(SfPager *pager, const SfPagerOptions *options, GError **error)
{
    sf_state_remove_folder(pager->directory);
    if (g_mkdir_with_parents(pager->directory, SF_PAGER_MODE_DIRECTORY) < 0) {
        return sf_pager_fail_errno(pager, error, pager->directory);
    }
    return sf_pager_listen(pager, error) && sf_pager_start_process(pager, error) && sf_pager_connect(pager, error);
}

SfPager *sf_pager_start(const SfPagerOptions *options, GError **error)
{
    g_autoptr(SfPager) pager = sf_pager_new(options->run_directory, options->snapshot);
    gboolean ok;

    pager->binary = g_strdup(options->binary);
    pager->uid = options->uid;
    pager->gid = options->gid;
    pager->fault_seconds = options->fault_seconds;
    ok = pager_start(pager, options, error);
    if (ok && options->listen_fd >= 0) {
        ok = sf_pager_serve(pager, options->listen_fd, options->security, options->keys, error);
    } else if (options->listen_fd >= 0) {
        close(options->listen_fd);
    }
    if (!ok) {
        sf_pager_stop(pager);
        return NULL;
    }
    return g_steal_pointer(&pager);
}

void sf_pager_stop(SfPager *pager)
{
    pager->stopped = TRUE;
    sf_pager_disconnect(pager, "it is stopped");
    g_clear_handle_id(&pager->exit_source, g_source_remove);
    g_clear_handle_id(&pager->early_source, g_source_remove);
    if (pager->pidfd >= 0) {
        g_autofree char *reason = NULL;
        syscall(SYS_pidfd_send_signal, pager->pidfd, SIGKILL, NULL, 0);
        for (guint i = 0; i < 100 && pager->pid && !reason; i++) { /* a child of ours is gone within ms */
            reason = sf_process_reap(pager->pidfd, "sf-pager");
            if (!reason) {
                g_usleep(1000);
            }
        }
        close(pager->pidfd);
        pager->pidfd = -1;
        pager->pid = 0;
    }
    if (pager->listener >= 0) {
        close(pager->listener);
        pager->listener = -1;
    }
    g_ptr_array_set_size(pager->ledger, 0);
    g_clear_pointer(&pager->snapshot, sf_snapshot_unref);
    g_clear_pointer(&pager->cache, sf_page_cache_unref);
    sf_state_remove_folder(pager->directory);
}

/* ---- what it is ---- */

const char *sf_pager_snapshot_id(SfPager *pager)
{
    return pager->id;
}

pid_t sf_pager_pid(SfPager *pager)
{
    return pager->pid;
}

gboolean sf_pager_is_complete(SfPager *pager)
{
    return pager->complete;
}

SfSnapshot *sf_pager_snapshot(SfPager *pager)
{
    return pager->snapshot;
}

SfPageCache *sf_pager_cache(SfPager *pager)
{
    return pager->cache;
}

const int *sf_pager_fds(SfPager *pager, guint *n_fds)
{
    const SfPagerOrder *entry = sf_pager_ledger_find(pager, SF_PAGER_DO_SNAPSHOT, NULL);

    *n_fds = entry ? entry->n_fds : 0;
    return entry ? entry->fds : NULL;
}

void sf_pager_keep_snapshot(SfPager *pager, SfSnapshot *snapshot)
{
    g_clear_pointer(&pager->snapshot, sf_snapshot_unref);
    pager->snapshot = sf_snapshot_ref(snapshot);
}

gboolean sf_pager_is_attached(SfPager *pager, const char *vm)
{
    return sf_pager_ledger_find(pager, SF_PAGER_DO_ATTACH, vm) != NULL;
}

const SfFaultHandler *sf_pager_fault_handler(SfPager *pager)
{
    return &pager->handler;
}

/* ---- the object ---- */

static void sf_pager_finalize(GObject *object)
{
    SfPager *pager = SF_PAGER(object);

    sf_pager_disconnect(pager, "nobody listens any more");
    g_clear_handle_id(&pager->exit_source, g_source_remove);
    g_clear_handle_id(&pager->early_source, g_source_remove);
    g_queue_clear_full(&pager->early, (GDestroyNotify)json_object_unref);
    if (pager->pidfd >= 0) {
        close(pager->pidfd);
    }
    if (pager->listener >= 0) {
        close(pager->listener);
    }
    g_ptr_array_unref(pager->ledger);
    g_clear_pointer(&pager->snapshot, sf_snapshot_unref);
    g_clear_pointer(&pager->cache, sf_page_cache_unref);
    g_clear_pointer(&pager->multicast_stats, json_object_unref);
    g_free(pager->id);
    g_free(pager->binary);
    g_free(pager->directory);
    G_OBJECT_CLASS(sf_pager_parent_class)->finalize(object);
}

static void sf_pager_init(SfPager *pager)
{
    pager->listener = pager->socket = pager->pidfd = -1;
    pager->ledger = g_ptr_array_new_with_free_func(sf_pager_order_free);
    pager->handler = (SfFaultHandler){ .owner = pager, .attach = sf_pager_attach, .detach = sf_pager_detach };
    pager->prefetch = SF_PREFETCH_WORKING_SET | SF_PREFETCH_NEIGHBOURS;
    g_queue_init(&pager->early);
    g_queue_init(&pager->waiting);
    g_queue_init(&pager->unsent);
}

static void sf_pager_class_init(SfPagerClass *class)
{
    G_OBJECT_CLASS(class)->finalize = sf_pager_finalize;
    g_signal_new("lost", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_STRING);
    g_signal_new("complete", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 0);
    g_signal_new("restarted", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_STRING);
    g_signal_new("failed", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_STRING);
    g_signal_new("sources", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_UINT);
    g_signal_new("blob", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 2, G_TYPE_UINT64,
                 G_TYPE_BOOLEAN);
}
