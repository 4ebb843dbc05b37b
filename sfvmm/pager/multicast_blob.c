/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sf-pager gathers the blob in a memfd, and gives up by itself soon when nothing comes (mc_blob_in.c). One that has
 * been stopped or killed says nothing: then a timer ends it here.
 */
#include "sfvmm/pager/multicast_blob.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define WAIT_MS 1500u /* above sf-pager's own bound of 1 s */

/* Task data. */
typedef struct {
    SfPager *pager;
    guint64 id;
    gsize length;
    int memfd;
    guint timer;
    gboolean is_over;
} Wait;

static void wait_free(gpointer data)
{
    Wait *wait = data;

    close(wait->memfd);
    g_object_unref(wait->pager);
    g_free(wait);
}

/* Error, taken; NULL: the memfd holds it all. Only the first call counts. */
static void end(GTask *task, GError *error)
{
    Wait *wait = g_task_get_task_data(task);
    g_autofree char *bytes = NULL;

    if (wait->is_over) {
        g_clear_error(&error);
        return;
    }
    wait->is_over = TRUE;
    g_clear_handle_id(&wait->timer, g_source_remove);
    g_signal_handlers_disconnect_by_data(wait->pager, task);
    bytes = error ? NULL : g_malloc(wait->length); /* a copy: the process could still write to the memfd */
    if (bytes && pread(wait->memfd, bytes, wait->length, 0) != (gssize)wait->length) {
        error = g_error_new(G_IO_ERROR, G_IO_ERROR_FAILED, "multicast: a blob can't be read: %s", g_strerror(errno));
    }
    if (error) {
        g_task_return_error(task, error);
    } else {
        g_task_return_pointer(task, g_bytes_new_take(g_steal_pointer(&bytes), wait->length),
                              (GDestroyNotify)g_bytes_unref);
    }
    g_object_unref(task);
}

static GError *nothing_came(const char *why)
{
    return g_error_new(G_IO_ERROR, G_IO_ERROR_TIMED_OUT, "the multicast group has not brought it: %s", why);
}

static gboolean on_timer(gpointer task)
{
    ((Wait *)g_task_get_task_data(task))->timer = 0;
    end(task, nothing_came("sf-pager does not answer"));
    return G_SOURCE_REMOVE;
}

static void on_blob(SfPager *pager, guint64 id, gboolean whole, GTask *task)
{
    if (id == ((Wait *)g_task_get_task_data(task))->id) {
        end(task, whole ? NULL : nothing_came("too little has come"));
    }
}

static void on_restarted(SfPager *pager, const char *reason, GTask *task)
{
    end(task, nothing_came("sf-pager was started anew"));
}

static void on_begun(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    GError *error = NULL;

    if (!sf_pager_blob_finish(SF_PAGER(source), result, &error)) {
        end(task, error);
    }
}

void sf_multicast_blob_receive_async(SfPager *pager, const char *digest, gsize length, GAsyncReadyCallback callback,
                                     gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    Wait *wait = g_new0(Wait, 1);

    wait->pager = g_object_ref(pager);
    wait->length = length;
    wait->memfd = memfd_create("sf-blob", MFD_CLOEXEC);
    g_task_set_task_data(task, wait, wait_free);
    if (wait->memfd < 0 || !sf_pager_blob_id(digest, &wait->id)) {
        end(task, g_error_new(G_IO_ERROR, G_IO_ERROR_FAILED, "multicast: no room for a blob, or no digest"));
        return;
    }
    wait->timer = g_timeout_add(WAIT_MS, on_timer, task);
    g_signal_connect(pager, "blob", G_CALLBACK(on_blob), task);
    g_signal_connect(pager, "restarted", G_CALLBACK(on_restarted), task);
    sf_pager_blob_async(pager, digest, length, wait->memfd, on_begun, g_object_ref(task));
}

GBytes *sf_multicast_blob_receive_finish(GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

/* ---- origin ---- */

static void on_sending(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;

    if (!sf_pager_blob_finish(SF_PAGER(source), result, &error)) {
        g_message("%s", error->message);
    }
}

void sf_multicast_blob_send(SfPager *server, const char *digest, GBytes *blob)
{
    gsize length;
    const void *bytes = g_bytes_get_data(blob, &length);
    int memfd = memfd_create("sf-blob", MFD_CLOEXEC);

    if (memfd < 0 || write(memfd, bytes, length) != (gssize)length) {
        g_warning("multicast: a blob of %" G_GSIZE_FORMAT " bytes: %s", length, g_strerror(errno));
    } else {
        sf_pager_blob_async(server, digest, length, memfd, on_sending, NULL);
    }
    if (memfd >= 0) {
        close(memfd);
    }
}
