/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A host with places comes, stays away, comes back.
 *
 *     connected   sync: it says what it has of our tickets; what it lacks is lost, moved, or ordered again
 *     lost        awaited for away-seconds --> its clones are lost
 */
#include "sfvmm/control/borrow_private.h"

#include <string.h>

#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/fork/remote.h"

#define SYNC_MS     15000u
#define AWAY_TIMERS "sf-borrow-away"

/* Does the ticket concern that host? */
static gboolean concerns(SfHostTicket *ticket, const char *host)
{
    return ticket->borrow && sf_ticket_count_at(ticket->grant, host) > 0;
}

/* ---- after a connection was made ---- */

/* Those of our clones that should be on the host and are not in its answer. */
static void settle_missing(SfHostTicket *ticket, const char *host, gboolean known, JsonObject *entry)
{
    g_autoptr(GHashTable) told = g_hash_table_new(NULL, NULL);
    g_autoptr(GPtrArray) missing = g_ptr_array_new();
    JsonNode *node = entry ? json_object_get_member(entry, "clones") : NULL;
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
    g_autofree char *reason = g_strdup_printf("host %s does not know it any more", host);

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *item = json_array_get_element(array, i);
        if (JSON_NODE_HOLDS_OBJECT(item)) {
            gint64 id = json_object_get_int_member_with_default(json_node_get_object(item), "id", 0);
            g_hash_table_add(told, GINT_TO_POINTER((gint)id));
        }
    }
    for (guint i = 0; i < sf_fork_count(ticket->fork); i++) {
        SfClone *clone = sf_fork_nth(ticket->fork, i);
        if (g_strcmp0(clone->host, host) == 0 && sf_clone_is_alive(clone) && !sf_clone_is_being_placed(clone) &&
            !g_hash_table_contains(told, GUINT_TO_POINTER(clone->id))) {
            g_ptr_array_add(missing, clone);
        }
    }
    sf_borrow_give_up(missing, SF_GP_STATE_LOST, reason);
    if (!known) {
        sf_borrow_move_clones(ticket, host, "it does not know the ticket any more");
    } else if (!array || json_array_get_length(array) == 0) {
        sf_borrow_order(ticket, host); /* the order did not reach it */
    }
}

static void on_synced(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(SfBorrowCall) call = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);
    g_autoptr(GHashTable) entries = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GList) tickets = NULL;
    JsonNode *node = answer ? json_object_get_member(answer, "tickets") : NULL;
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    if (!array) {
        g_message("host %s: sync: %s", call->peer, error ? error->message : "its answer is malformed");
        return;
    }
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *item = json_array_get_element(array, i);
        JsonObject *entry = JSON_NODE_HOLDS_OBJECT(item) ? json_node_get_object(item) : NULL;
        const char *id = entry ? json_object_get_string_member_with_default(entry, "ticket", NULL) : NULL;
        if (id) {
            g_hash_table_insert(entries, (gpointer)id, entry);
        }
    }
    tickets = sf_host_tickets(call->host);
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);
        JsonObject *entry = g_hash_table_lookup(entries, id);
        if (!ticket->borrow || !ticket->fork || sf_fork_is_done(ticket->fork) ||
            sf_fork_state(ticket->fork) == SF_FORK_SNAPSHOT) {
            continue;
        }
        if (entry) {
            sf_borrow_take_reports(ticket, call->peer, entry);
        }
        settle_missing(ticket, call->peer, entry != NULL, entry);
        if (entry && json_object_get_boolean_member_with_default(entry, "complete", FALSE)) {
            sf_borrow_take_complete(ticket, call->peer);
        }
    }
}

void sf_borrow_sync(SfHost *host, SfPeer *peer)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);
    JsonObject *params = json_object_new();
    JsonArray *array = json_array_new();
    SfBorrowCall *call = g_new0(SfBorrowCall, 1);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (concerns(ticket, sf_peer_name(peer))) {
            g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);
            json_array_add_string_element(array, id);
        }
    }
    json_object_set_array_member(params, "tickets", array);
    call->host = g_object_ref(host);
    call->peer = g_strdup(sf_peer_name(peer));
    sf_peer_call_async(peer, "sync", params, SYNC_MS, on_synced, call);
}

/* ---- hosts that stay away ---- */

typedef struct {
    SfHost *host; /* outlives the timer: the timers are its data */
    char *peer;
    guint source;
} Away;

static void away_free(gpointer data)
{
    Away *away = data;

    g_clear_handle_id(&away->source, g_source_remove);
    g_free(away->peer);
    g_free(away);
}

static GHashTable *away_timers(SfHost *host)
{
    return sf_host_table(host, AWAY_TIMERS, g_str_hash, g_str_equal, NULL, away_free);
}

static void lose_clones(SfHostTicket *ticket, const char *host, const char *reason)
{
    g_autoptr(GPtrArray) clones = g_ptr_array_new();

    for (guint i = 0; ticket->fork && i < sf_fork_count(ticket->fork); i++) {
        SfClone *clone = sf_fork_nth(ticket->fork, i);
        if (g_strcmp0(clone->host, host) == 0 && sf_clone_is_alive(clone)) {
            g_ptr_array_add(clones, clone);
        }
    }
    sf_borrow_give_up(clones, SF_GP_STATE_LOST, reason);
}

static gboolean on_away(gpointer data)
{
    Away *away = data;
    SfHost *host = away->host;
    g_autofree char *peer = g_strdup(away->peer);
    g_autoptr(GList) tickets = sf_host_tickets(host);
    g_autofree char *reason =
        g_strdup_printf("host %s has not been heard of for %u s", peer, sf_host_config(host)->cluster.away_seconds);

    away->source = 0;
    g_hash_table_remove(away_timers(host), peer);
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (concerns(ticket, peer)) {
            lose_clones(ticket, peer, reason);
        }
    }
    return G_SOURCE_REMOVE;
}

void sf_borrow_await_peer(SfHost *host, const char *name)
{
    GHashTable *timers = away_timers(host);
    Away *away;

    if (g_hash_table_contains(timers, name)) {
        return;
    }
    away = g_new0(Away, 1);
    away->host = host;
    away->peer = g_strdup(name);
    away->source = g_timeout_add_seconds(sf_host_config(host)->cluster.away_seconds, on_away, away);
    g_hash_table_insert(timers, away->peer, away);
}

void sf_borrow_peer_up(SfHost *host, SfPeer *peer)
{
    g_hash_table_remove(away_timers(host), sf_peer_name(peer));
    sf_borrow_sync(host, peer);
    sf_networks_spread_all(host);
}

void sf_borrow_peer_down(SfHost *host, SfPeer *peer)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        if (concerns(item->data, sf_peer_name(peer))) {
            sf_borrow_await_peer(host, sf_peer_name(peer));
            return;
        }
    }
}
