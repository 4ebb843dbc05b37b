/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/saved_verify.h"

#include <string.h>

#include "sfvmm/store/sha256.h"

#define PAGER_KEY "sf-saved-verify"

/* A block as it was saved. */
typedef struct {
    char *id, *sha256;
} Expected;

/* Of a pager that is not complete yet. */
typedef struct {
    SfHost *host; /* not owned: it ends after its pagers */
    char *uri;
    GPtrArray *blocks; /* of Expected */
} Verify;

/* In a thread of its own. */
typedef struct {
    GPtrArray *blocks; /* of Expected */
    SfPageCache *cache;
} Work;

static void expected_free(gpointer data)
{
    Expected *expected = data;

    g_free(expected->id);
    g_free(expected->sha256);
    g_free(expected);
}

static void verify_free(gpointer data)
{
    Verify *verify = data;

    g_ptr_array_unref(verify->blocks);
    g_free(verify->uri);
    g_free(verify);
}

static void work_free(gpointer data)
{
    Work *work = data;

    g_ptr_array_unref(work->blocks);
    g_free(work);
}

static const SfCachedBlock *find_block(const SfPageCache *cache, const char *id)
{
    for (guint i = 0; i < cache->n_blocks; i++) {
        if (strcmp(cache->blocks[i].id, id) == 0) {
            return &cache->blocks[i];
        }
    }
    return NULL;
}

/* The cache's descriptors stay open: on_verified() has the reference. */
static void verify_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    const Work *work = data;

    for (guint i = 0; i < work->blocks->len; i++) {
        const Expected *expected = g_ptr_array_index(work->blocks, i);
        const SfCachedBlock *block = find_block(work->cache, expected->id);
        g_autofree char *sum = NULL;
        GError *error = NULL;

        sum = block ? sf_sha256_of_fd(block->memory_ro, block->length, &error) : NULL;
        if (!block) {
            g_set_error(&error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "block %s is missing", expected->id);
        }
        if (!sum) {
            g_task_return_error(task, error);
            return;
        }
        if (strcmp(sum, expected->sha256) != 0) {
            g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "block %s has SHA-256 %s, not %s",
                                    expected->id, sum, expected->sha256);
            return;
        }
    }
    g_task_return_boolean(task, TRUE);
}

static void lose_clones(SfHost *host, SfPager *pager, const char *reason)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        for (guint i = 0; ticket->pager == pager && ticket->fork && i < sf_fork_count(ticket->fork); i++) {
            SfClone *clone = sf_fork_nth(ticket->fork, i);
            if (!clone->host) {
                sf_fork_clone_lose(clone, reason);
            }
        }
    }
}

static void on_verified(GObject *source, GAsyncResult *result, gpointer data)
{
    SfPager *pager = SF_PAGER(source);
    const Work *work = g_task_get_task_data(G_TASK(result));
    g_autoptr(SfPageCache) cache = work->cache; /* the reference of the thread */
    const Verify *verify = g_object_get_data(G_OBJECT(pager), PAGER_KEY);
    g_autoptr(GError) error = NULL;

    if (g_task_propagate_boolean(G_TASK(result), &error)) {
        g_message("pager of %s: all of its memory is what was saved", sf_pager_snapshot_id(pager));
    } else {
        g_autofree char *reason =
            g_strdup_printf("its memory, from %s, is not what was saved: %s", verify->uri, error->message);
        g_warning("pager of %s: %s", sf_pager_snapshot_id(pager), reason);
        lose_clones(verify->host, pager, reason);
    }
}

static void on_complete(SfPager *pager, Verify *verify)
{
    SfSnapshot *snapshot = sf_pager_snapshot(pager);
    g_autoptr(GTask) task = NULL;
    Work *work;

    g_signal_handlers_disconnect_by_data(pager, verify);
    if (!snapshot || !snapshot->cache) {
        return;
    }
    work = g_new0(Work, 1);
    work->blocks = g_ptr_array_ref(verify->blocks);
    work->cache = sf_page_cache_ref(snapshot->cache);
    task = g_task_new(pager, NULL, on_verified, NULL);
    g_task_set_task_data(task, work, work_free);
    g_task_run_in_thread(task, verify_thread);
}

void sf_saved_verify_when_complete(SfHost *host, SfPager *pager, const SfSaved *saved)
{
    Verify *verify;

    if (!saved->memory_uri || g_object_get_data(G_OBJECT(pager), PAGER_KEY)) {
        return;
    }
    verify = g_new0(Verify, 1);
    verify->host = host;
    verify->uri = g_strdup(saved->memory_uri);
    verify->blocks = g_ptr_array_new_with_free_func(expected_free);
    for (guint i = 0; i < saved->blocks->len; i++) {
        const SfSavedBlock *block = g_ptr_array_index(saved->blocks, i);
        Expected *expected = g_new0(Expected, 1);
        expected->id = g_strdup(block->id);
        expected->sha256 = g_strdup(block->file.sha256);
        g_ptr_array_add(verify->blocks, expected);
    }
    g_object_set_data_full(G_OBJECT(pager), PAGER_KEY, verify, verify_free);
    g_signal_connect(pager, "complete", G_CALLBACK(on_complete), verify);
}
