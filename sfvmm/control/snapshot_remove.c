/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Removal of a saved snapshot.
 *
 * A ticket is joined when its clones have been told to end; their processes are there for a moment more, and their
 * family with them. Who removes the snapshot then has done all that he can do: the removal waits for them. A ticket of
 * the snapshot is another matter: somebody still wants it.
 */
#include "sfvmm/control/snapshot_remove.h"

#include "sfvmm/control/host_private.h"

#define LOOK_MS 20u
#define LOOKS   1500u /* 30 s: processes whose memory the kernel takes back */

typedef struct {
    SfSnapshots *snapshots;
    SfHost *host;
    char *name;
    guint looks;
} RemoveCall;

static void remove_call_free(gpointer data)
{
    RemoveCall *call = data;

    g_object_unref(call->host);
    g_free(call->name);
    g_free(call);
}

static gboolean has_tickets(SfHost *host, const SfFamily *family)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        if (((const SfHostTicket *)item->data)->family == family) {
            return TRUE;
        }
    }
    return FALSE;
}

/* TRUE when the call has been ended. */
static gboolean try_to_remove(GTask *task)
{
    RemoveCall *call = g_task_get_task_data(task);
    const SfFamily *family = sf_snapshots_family(call->snapshots, call->name);
    GError *error = NULL;

    if (family && !has_tickets(call->host, family) && call->looks++ < LOOKS) {
        return FALSE;
    }
    if (family) {
        g_task_return_new_error(task, SF_HOST_ERROR, SF_HOST_ERROR_BUSY,
                                "snapshot \"%s\": clones of it live, and read it; kill them first, or release their "
                                "tickets",
                                call->name);
    } else if (sf_store_remove(sf_snapshots_store(call->snapshots), call->name, &error)) {
        g_task_return_boolean(task, TRUE);
    } else {
        g_task_return_error(task, error);
    }
    g_object_unref(task);
    return TRUE;
}

static gboolean on_look(gpointer data)
{
    return try_to_remove(data) ? G_SOURCE_REMOVE : G_SOURCE_CONTINUE;
}

void sf_snapshot_remove_async(SfHost *host, const char *name, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(host, NULL, callback, data);
    RemoveCall *call = g_new0(RemoveCall, 1);

    call->host = g_object_ref(host);
    call->snapshots = sf_snapshots_of(host);
    call->name = g_strdup(name);
    g_task_set_task_data(task, call, remove_call_free);
    if (!try_to_remove(task)) {
        g_timeout_add(LOOK_MS, on_look, task);
    }
}

gboolean sf_snapshot_remove_finish(SfHost *host, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}
