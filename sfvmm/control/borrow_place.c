/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * "place": hosts are ordered to begin their clones, with the descriptor of the snapshot.
 *
 *     refused, not up  --> resource manager: other places --> here: placed; there: reserve, then place
 *     its descriptor goes to the multicast group --> a host that does not get it there asks: "descriptor"
 */
#include "sfvmm/control/borrow_private.h"

#include <string.h>

#include "sfvmm/control/describe.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/control/place_descriptor.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/fork/remote.h"

#define PLACE_MS 30000u

GArray *sf_borrow_fork_places(SfHostTicket *ticket)
{
    GArray *places = g_array_new(FALSE, FALSE, sizeof(SfForkPlace));

    for (guint i = 0; i < ticket->grant->places->len; i++) {
        const SfPlace *place = g_ptr_array_index(ticket->grant->places, i);
        SfForkPlace fork_place = { sf_place_is_local(place) ? NULL : place->host, place->count };
        g_array_append_val(places, fork_place);
    }
    return places;
}

/* ---- the descriptor ---- */

/* Made once; kept in the ticket's directory for a later sfvmmd. */
GBytes *sf_borrow_descriptor(SfHostTicket *ticket, GError **error)
{
    SfBorrow *borrow = ticket->borrow;
    g_autofree char *path = g_build_filename(ticket->directory, SF_HOST_FILE_DESCRIPTOR, NULL);
    SfSnapshot *snapshot = sf_fork_snapshot(ticket->fork);
    SfVm *parent = sf_fork_parent(ticket->fork);
    gsize length;
    char *text;

    if (borrow->descriptor) {
        return borrow->descriptor;
    }
    if (g_file_get_contents(path, &text, &length, NULL)) {
        borrow->descriptor = g_bytes_new_take(text, length);
        return borrow->descriptor;
    }
    if (!parent || !snapshot) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_GONE, "the VM and its snapshot have gone");
        return NULL;
    }
    borrow->descriptor =
        sf_describe_snapshot_of(parent, ticket->grant->vm, snapshot, sf_fork_frozen_disks(ticket->fork), error);
    if (borrow->descriptor) {
        const void *data = g_bytes_get_data(borrow->descriptor, &length);
        g_autoptr(GError) write_error = NULL;
        if (!g_file_set_contents_full(path, data, (gssize)length, G_FILE_SET_CONTENTS_CONSISTENT, 0600, &write_error)) {
            g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, write_error->message);
        }
    }
    return borrow->descriptor;
}

void sf_borrow_descriptor_request(SfHost *host, SfPeerRequest *request)
{
    const char *from = sf_peer_request_from(request);
    JsonObject *params = sf_peer_request_params(request), *answer;
    SfHostTicket *ticket = sf_borrow_ticket(host, json_object_get_string_member_with_default(params, "ticket", NULL));
    g_autoptr(GError) error = NULL;
    GBytes *descriptor;

    if (!ticket || sf_ticket_count_at(ticket->grant, from) == 0) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_GONE, "no such ticket has a fork with places at host %s",
                    from);
        sf_peer_request_fail(request, error);
        return;
    }
    descriptor = sf_borrow_descriptor(ticket, &error);
    if (!descriptor) {
        sf_peer_request_fail(request, error);
        return;
    }
    answer = json_object_new();
    sf_place_descriptor_add(answer, descriptor);
    sf_peer_request_reply(request, answer);
}

/* Its digest, for who is in the group: all of them get it at once. */
static void add_descriptor(SfBorrow *borrow, const char *host, GBytes *descriptor, JsonObject *params)
{
    if (!borrow->multicast || !g_hash_table_contains(borrow->in_group, host) ||
        !sf_place_descriptor_can_be_sent(descriptor)) {
        sf_place_descriptor_add(params, descriptor);
        return;
    }
    if (!borrow->descriptor_digest) {
        borrow->descriptor_digest = sf_place_descriptor_send(borrow->server, descriptor);
    }
    sf_place_descriptor_add_digest(params, descriptor, borrow->descriptor_digest);
}

/* ---- the order ---- */

/* The clones of a host that wait to be placed there. */
static GPtrArray *waiting_at(SfHostTicket *ticket, const char *host)
{
    GPtrArray *clones = g_ptr_array_new();

    for (guint i = 0; i < sf_fork_count(ticket->fork); i++) {
        SfClone *clone = sf_fork_nth(ticket->fork, i);
        if (g_strcmp0(clone->host, host) == 0 && sf_clone_is_being_placed(clone)) {
            g_ptr_array_add(clones, clone);
        }
    }
    return clones;
}

void sf_borrow_give_up(GPtrArray *clones, guint32 state, const char *reason)
{
    for (guint i = 0; i < clones->len; i++) {
        sf_clone_give_up(g_ptr_array_index(clones, i), state, reason);
    }
}

/* The host has said that it does not place them, or was not there. */
void sf_borrow_move_clones(SfHostTicket *ticket, const char *host, const char *reason)
{
    g_autoptr(GPtrArray) clones = waiting_at(ticket, host);
    g_autofree char *from = g_strdup(host);
    g_autofree char *why = g_strdup(reason);
    g_autoptr(SfFork) keep = g_object_ref(ticket->fork);
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) places = NULL;
    guint next = 0;

    if (clones->len == 0) {
        return;
    }
    places = sf_resource_manager_reassign(sf_host_manager(ticket->host), ticket->grant, from, clones->len, &error);
    g_message("ticket %016" G_GINT64_MODIFIER "x: host %s places none of %u clones: %s; %s", ticket->grant->id, from,
              clones->len, why, places ? "others do" : error->message);
    if (!places) {
        g_autofree char *text = g_strdup_printf("host %s: %s; and %s", from, why, error->message);
        sf_borrow_give_up(clones, SF_GP_STATE_FAILED, text);
        return;
    }
    sf_host_ticket_save(ticket);
    for (guint i = 0; i < places->len; i++) {
        const SfPlace *place = g_ptr_array_index(places, i);
        for (guint n = 0; n < place->count && next < clones->len; n++) {
            sf_clone_move(g_ptr_array_index(clones, next++), sf_place_is_local(place) ? NULL : place->host);
        }
        if (!sf_place_is_local(place)) {
            sf_borrow_ask(ticket, ticket->family->config, place->host, TRUE);
        }
    }
}

static void on_ordered(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(SfBorrowCall) call = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);
    SfHostTicket *ticket = sf_borrow_call_ticket(call);

    if (!ticket || !ticket->fork) {
        return;
    }
    if (answer) {
        sf_borrow_take_reports(ticket, call->peer, answer);
    } else if (sf_borrow_is_definite(error)) {
        sf_borrow_move_clones(ticket, call->peer, error->message);
    } else {
        SfPeer *peer = sf_host_peer(call->host, call->peer);
        g_message("ticket %016" G_GINT64_MODIFIER "x: %s; waiting for the host to say what it did", ticket->grant->id,
                  error->message);
        if (peer && sf_peer_is_up(peer)) {
            sf_borrow_sync(call->host, peer);
        }
    }
}

static JsonObject *order_params(SfHostTicket *ticket, const char *host, GPtrArray *clones, GBytes *descriptor)
{
    JsonObject *params = sf_borrow_params(ticket);
    JsonArray *ids = json_array_new();

    for (guint i = 0; i < clones->len; i++) {
        json_array_add_int_element(ids, ((SfClone *)g_ptr_array_index(clones, i))->id);
    }
    json_object_set_array_member(params, "ids", ids);
    json_object_set_int_member(params, "total", sf_fork_total(ticket->fork));
    json_object_set_boolean_member(params, "with_agent", sf_fork_with_agent(ticket->fork));
    json_object_set_int_member(params, "clone_request", sf_fork_clone_request(ticket->fork));
    json_object_set_boolean_member(params, "complete", sf_host_config(ticket->host)->cluster.complete);
    json_object_set_int_member(params, "identify_seconds", sf_host_config(ticket->host)->identify_seconds);
    json_object_set_string_member(params, "avoid", sf_avoid_to_text(ticket->grant->avoid));
    add_descriptor(ticket->borrow, host, descriptor, params);
    if (ticket->family->working_set) {
        sf_working_set_to_json(ticket->family->working_set, params, "working_set");
    }
    sf_networks_add_place(ticket, params);
    return params;
}

/* Has the clones of a host placed that wait for it. */
void sf_borrow_order(SfHostTicket *ticket, const char *host)
{
    g_autoptr(GPtrArray) clones = waiting_at(ticket, host);
    SfPeer *peer = sf_host_peer(ticket->host, host);
    GPtrArray *disks = sf_fork_frozen_disks(ticket->fork);
    g_autoptr(GError) error = NULL;
    GBytes *descriptor;

    if (clones->len == 0) {
        return;
    }
    if (disks && disks->len > 0 && ticket->borrow->disks_state != SF_BORROW_DISKS_READY) {
        if (ticket->borrow->disks_state == SF_BORROW_DISKS_FAILED) {
            sf_borrow_move_clones(ticket, host, "the disks can't be served");
            return;
        }
        g_ptr_array_add(ticket->borrow->waiting, g_strdup(host));
        if (ticket->borrow->disks_state == SF_BORROW_DISKS_STARTED) {
            sf_borrow_add_disks(ticket);
        }
        return;
    }
    descriptor = sf_borrow_descriptor(ticket, &error);
    if (!descriptor) {
        sf_borrow_give_up(clones, SF_GP_STATE_FAILED, error->message);
        return;
    }
    if (!peer || !sf_peer_is_up(peer)) {
        sf_borrow_move_clones(ticket, host, "it is not connected");
        return;
    }
    for (guint i = 0; i < clones->len; i++) {
        sf_clone_ordered(g_ptr_array_index(clones, i));
    }
    sf_peer_call_async(peer, "place", order_params(ticket, host, clones, descriptor), PLACE_MS, on_ordered,
                       sf_borrow_call_new(ticket, host, 0));
}

/* ---- SfForkRemote ---- */

static void remote_place(gpointer owner, SfFork *fork, const char *host)
{
    SfHostTicket *ticket = sf_host_ticket(owner, sf_fork_ticket(fork), NULL);

    if (ticket && ticket->borrow) {
        sf_borrow_order(ticket, host);
    }
}

void sf_borrow_kill(gpointer owner, SfClone *clone, const char *reason)
{
    SfPeer *peer = sf_host_peer(owner, clone->host);
    g_autofree char *id = sf_ticket_id_to_text(sf_fork_ticket(clone->fork));
    JsonObject *params;

    if (!peer || !sf_peer_is_up(peer)) {
        return; /* sync tells it */
    }
    params = json_object_new();
    json_object_set_string_member(params, "ticket", id);
    json_object_set_int_member(params, "id", clone->id);
    json_object_set_string_member(params, "reason", reason ? reason : "");
    sf_peer_call_async(peer, "kill", params, SF_BORROW_ORDER_MS, sf_borrow_ignore_answer, NULL);
}

SfForkRemote sf_borrow_remote(SfHost *host)
{
    return (SfForkRemote){ .owner = host, .place = remote_place, .kill = sf_borrow_kill };
}
