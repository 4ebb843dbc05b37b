/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Every call to a host is answered, fails, or its time is over; whichever it is, the answer finds its ticket by id
 * again, as it may have been released meanwhile. Only an answer that says so means that nothing was done: then the
 * clones go to other hosts. After a lost connection the host may have placed them, and two clones with one id are worse
 * than one less: they wait for the host to come back, or are given up.
 *
 *     borrow_reserve.c   reserve           borrow_serve.c    what hosts fetch memory and disks from
 *     borrow_place.c     place, kill       borrow_report.c   what hosts tell of clones; their results are fetched
 *     borrow_peer.c      a connection is made (sync), lost
 */
#include "sfvmm/control/borrow_private.h"

/* ---- calls ---- */

SfBorrowCall *sf_borrow_call_new(SfHostTicket *ticket, const char *peer, guint count)
{
    SfBorrowCall *call = g_new0(SfBorrowCall, 1);

    call->host = g_object_ref(ticket->host);
    call->ticket = ticket->grant->id;
    call->peer = g_strdup(peer);
    call->count = count;
    return call;
}

void sf_borrow_call_free(SfBorrowCall *call)
{
    g_object_unref(call->host);
    g_free(call->peer);
    g_free(call);
}

/* Its ticket, if it is still there. */
SfHostTicket *sf_borrow_call_ticket(const SfBorrowCall *call)
{
    SfHostTicket *ticket = sf_host_ticket(call->host, call->ticket, NULL);

    return ticket && ticket->borrow ? ticket : NULL;
}

JsonObject *sf_borrow_params(SfHostTicket *ticket)
{
    JsonObject *params = json_object_new();
    g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);

    json_object_set_string_member(params, "ticket", id);
    return params;
}

gboolean sf_borrow_is_definite(const GError *error)
{
    return !g_error_matches(error, SF_PEER_ERROR, SF_PEER_ERROR_LOST) &&
           !g_error_matches(error, SF_PEER_ERROR, SF_PEER_ERROR_TIMEOUT);
}

void sf_borrow_ignore_answer(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);

    if (!answer) {
        g_debug("%s", error->message); /* sync makes up for it */
    }
}

void sf_borrow_tell(SfHostTicket *ticket, const char *host, const char *method, JsonObject *params)
{
    SfPeer *peer = sf_host_peer(ticket->host, host);

    if (peer) {
        sf_peer_call_async(peer, method, params, SF_BORROW_ORDER_MS, sf_borrow_ignore_answer, NULL);
    } else {
        json_object_unref(params);
    }
}

/* ---- a ticket with places elsewhere ---- */

void sf_borrow_new(SfHostTicket *ticket)
{
    SfBorrow *borrow = g_new0(SfBorrow, 1);

    borrow->ticket = ticket;
    borrow->wanted = ticket->grant->granted;
    borrow->waiting = g_ptr_array_new_with_free_func(g_free);
    borrow->fetches = g_hash_table_new_full(NULL, NULL, NULL, sf_borrow_fetch_free);
    borrow->complete = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    borrow->asked = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    borrow->in_group = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    ticket->borrow = borrow;
}

void sf_borrow_free(SfBorrow *borrow)
{
    if (!borrow) {
        return;
    }
    sf_borrow_stop_pages(borrow);
    g_clear_pointer(&borrow->disks, sf_disk_server_unref);
    if (borrow->task) {
        g_task_return_new_error(borrow->task, SF_HOST_ERROR, SF_HOST_ERROR_GONE,
                                "the ticket was released while other hosts were asked for places");
        g_object_unref(borrow->task);
    }
    g_clear_pointer(&borrow->descriptor, g_bytes_unref);
    g_ptr_array_unref(borrow->waiting);
    g_hash_table_unref(borrow->fetches);
    g_hash_table_unref(borrow->complete);
    g_hash_table_unref(borrow->asked);
    g_hash_table_unref(borrow->in_group);
    g_free(borrow->descriptor_digest);
    g_free(borrow->vm);
    g_free(borrow->qemu_version);
    g_free(borrow->machine);
    g_free(borrow->cpu);
    g_free(borrow->uri);
    g_free(borrow->reason);
    g_free(borrow);
}

GPtrArray *sf_borrow_hosts(SfHostTicket *ticket)
{
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);

    for (guint i = 0; i < ticket->grant->places->len; i++) {
        const SfPlace *place = g_ptr_array_index(ticket->grant->places, i);
        if (!sf_place_is_local(place)) {
            g_ptr_array_add(names, g_strdup(place->host));
        }
    }
    return names;
}

/* The ticket that a peer speaks of, if it is one of ours that has clones. */
SfHostTicket *sf_borrow_ticket(SfHost *host, const char *text)
{
    guint64 id;
    SfHostTicket *ticket = text && sf_ticket_id_from_text(text, &id) ? sf_host_ticket(host, id, NULL) : NULL;

    return ticket && ticket->borrow && ticket->fork ? ticket : NULL;
}

SfPager *sf_borrow_server(SfHostTicket *ticket)
{
    return ticket->borrow && !ticket->borrow->shared ? ticket->borrow->server : NULL;
}

/* ---- end, restart ---- */

static void stop_serving(SfBorrow *borrow)
{
    sf_borrow_withdraw_pages(borrow);
    g_clear_pointer(&borrow->disks, sf_disk_server_unref);
}

void sf_borrow_done(SfHostTicket *ticket)
{
    if (ticket->borrow) {
        stop_serving(ticket->borrow);
    }
}

void sf_borrow_release(SfHostTicket *ticket)
{
    g_autoptr(GPtrArray) hosts = sf_borrow_hosts(ticket);

    for (guint i = 0; ticket->borrow && i < hosts->len; i++) {
        sf_borrow_tell(ticket, g_ptr_array_index(hosts, i), "release", sf_borrow_params(ticket));
    }
    if (ticket->borrow) {
        sf_borrow_withdraw_pages(ticket->borrow);
    }
}

void sf_borrow_save(SfHostTicket *ticket, JsonObject *record)
{
    if (ticket->borrow) {
        json_object_set_int_member(record, "pages_port", ticket->borrow->port);
        json_object_set_int_member(record, "disks_port", ticket->borrow->disks_port);
        json_object_set_int_member(record, "multicast_receivers",
                                   sf_multicast_last_receiver(ticket->borrow->multicast));
    }
}

void sf_borrow_recover_subject(SfHostTicket *ticket, const SfBorrowSubject *subject)
{
    if (ticket->borrow) {
        sf_borrow_note_subject(ticket->borrow, subject);
    }
}

void sf_borrow_recover(SfHostTicket *ticket, JsonObject *record)
{
    g_autoptr(GPtrArray) hosts = sf_borrow_hosts(ticket);
    g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, ticket->grant->id);
    SfBorrow *borrow;

    if (hosts->len == 0 || ticket->grant->origin) {
        return;
    }
    sf_borrow_new(ticket);
    borrow = ticket->borrow;
    borrow->port = (guint)json_object_get_int_member_with_default(record, "pages_port", 0);
    borrow->disks_port = (guint)json_object_get_int_member_with_default(record, "disks_port", 0);
    sf_borrow_recover_server(ticket, id, record);
    borrow->disks = sf_disk_server_find(sf_host_launcher(ticket->host), id);
    borrow->disks_state = !borrow->disks                             ? SF_BORROW_DISKS_NONE
                          : sf_disk_server_is_waiting(borrow->disks) ? SF_BORROW_DISKS_STARTED
                                                                     : SF_BORROW_DISKS_READY;
    for (guint i = 0; i < hosts->len; i++) {
        sf_borrow_await_peer(ticket->host, g_ptr_array_index(hosts, i));
    }
}
