/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/api_wait.h"

#include "sfvmm/control/api_method.h"

void sf_api_wait_watch(SfApiWait *wait, gpointer object, const char *signal, GCallback callback)
{
    SfApiWatch *watch = &wait->watches[wait->n_watches++];

    g_assert(wait->n_watches <= SF_API_WAIT_WATCHES_MAX);
    watch->object = g_object_ref(object);
    watch->handler = g_signal_connect(object, signal, callback, wait);
}

void sf_api_wait_free(SfApiWait *wait)
{
    for (guint i = 0; i < wait->n_watches; i++) {
        g_clear_signal_handler(&wait->watches[i].handler, wait->watches[i].object);
        g_object_unref(wait->watches[i].object);
    }
    g_clear_handle_id(&wait->timer, g_source_remove);
    g_object_unref(wait->object);
    g_free(wait->what);
    g_free(wait);
}

static gboolean on_wait_timeout(gpointer data)
{
    SfApiWait *wait = data;

    wait->timer = 0;
    sf_api_fail(wait->call, SF_HOST_ERROR_TIMEOUT, "%s: not within the time given", wait->what);
    sf_api_wait_free(wait);
    return G_SOURCE_REMOVE;
}

/* Takes what. The caller says which signals end it. */
SfApiWait *sf_api_wait_new(SfCall *call, gpointer object, gint64 timeout_ms, char *what)
{
    SfApiWait *wait = g_new0(SfApiWait, 1);

    wait->call = call;
    wait->object = g_object_ref(object);
    wait->what = what;
    if (timeout_ms > 0) {
        wait->timer = g_timeout_add((guint)timeout_ms, on_wait_timeout, wait);
    }
    return wait;
}

/* For something of the ticket's fork. */
SfApiWait *sf_api_wait_new_for_ticket(SfCall *call, SfHostTicket *ticket, gint64 timeout_ms, char *what)
{
    SfApiWait *wait = sf_api_wait_new(call, ticket->fork, timeout_ms, what);

    wait->host = ticket->host;
    wait->ticket = ticket->grant->id;
    return wait;
}

/* The ticket; NULL: it has been released, and the call ends with that. */
SfHostTicket *sf_api_wait_ticket(SfApiWait *wait)
{
    SfHostTicket *ticket = sf_host_ticket(wait->host, wait->ticket, NULL);

    if (!ticket) {
        sf_api_fail(wait->call, SF_HOST_ERROR_GONE, "%s: the ticket was released meanwhile", wait->what);
        sf_api_wait_free(wait);
    }
    return ticket;
}
