/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The origin of lent tickets: it is told what happens here; it may stay away, and come back.
 *
 *     connected --> lost --> awaited for away-seconds --> what can't go on is given up, the rest waits on
 *                     <-- sync: it says which tickets it has, and gets all reports of these
 *
 * An event that can't be sent is dropped: sync makes up for it.
 */
#include "sfvmm/control/lend_private.h"

#include "sfvmm/cluster/peer_params.h"
#include "sfvmm/fork/remote.h"

#define TICKETS_MAX   65536u /* in one sync */
#define KEEP_SECONDS  86400  /* a finished ticket waits so long for its origin */
#define US_PER_S      1000000
#define PAGER_CUT_OFF "sf-lend-cut-off"

/* data: taken. What is lost because the origin is not there, sync makes up for. */
void sf_lend_tell_origin(SfHostTicket *ticket, const char *event, JsonObject *data)
{
    SfPeer *peer = sf_host_peer(ticket->host, ticket->grant->origin);
    g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);

    if (!peer || !sf_peer_is_up(peer)) {
        json_object_unref(data);
        return;
    }
    json_object_set_string_member(data, "ticket", id);
    sf_peer_send_event(peer, event, data);
}

/* ---- its sf-pager, as the one here sees it ---- */

static void on_pager_complete(SfPager *pager, SfHost *host)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (ticket->pager == pager && ticket->grant->origin) {
            sf_lend_tell_origin(ticket, "complete", json_object_new());
        }
    }
}

static void on_pager_sources(SfPager *pager, guint up, SfHost *host)
{
    g_object_set_data(G_OBJECT(pager), PAGER_CUT_OFF, GINT_TO_POINTER(up == 0));
}

void sf_lend_watch_pager(SfPager *pager, SfHost *host)
{
    g_signal_connect(pager, "complete", G_CALLBACK(on_pager_complete), host);
    g_signal_connect(pager, "sources", G_CALLBACK(on_pager_sources), host);
}

/* ---- sync ---- */

static gboolean parse_tickets(JsonArray *array, GHashTable *listed, GError **error)
{
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *node = json_array_get_element(array, i);
        const char *text = json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : "";
        guint64 id;
        if (!sf_ticket_id_from_text(text, &id)) {
            return sf_peer_param_bad(error, "tickets", "tickets");
        }
        g_hash_table_add(listed, g_memdup2(&id, sizeof(id)));
    }
    return TRUE;
}

/* The origin says which of its tickets it has; others of its are released here, of these it gets all reports. */
void sf_lend_sync(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GHashTable) listed = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    g_autoptr(GList) tickets = sf_host_tickets(host);
    g_autoptr(GError) error = NULL;
    JsonArray *asked, *told;
    JsonObject *result;

    if (!sf_peer_param_array(sf_peer_request_params(request), "tickets", TICKETS_MAX, &asked, &error) ||
        !parse_tickets(asked, listed, &error)) {
        sf_peer_request_fail(request, error);
        return;
    }
    told = json_array_new();
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        JsonObject *entry;
        g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);
        if (g_strcmp0(ticket->grant->origin, sf_peer_request_from(request)) != 0) {
            continue;
        }
        if (!g_hash_table_contains(listed, &ticket->grant->id)) {
            g_message("ticket %s: host %s has released it", id, ticket->grant->origin);
            sf_host_release_ticket(host, ticket);
            continue;
        }
        entry = json_object_new();
        json_object_set_string_member(entry, "ticket", id);
        json_object_set_array_member(entry, "clones", sf_lend_reports(ticket));
        json_object_set_boolean_member(entry, "complete", ticket->pager && sf_pager_is_complete(ticket->pager));
        json_array_add_object_element(told, entry);
    }
    result = json_object_new();
    json_object_set_array_member(result, "tickets", told);
    sf_peer_request_reply(request, result);
}

/* ---- an origin that stays away ---- */

/*
 * Its clones can't go on, or nobody will ask for what they have done. Those that live go on: their memory may be
 * complete, or come from the origin's sf-pager, which needs no sfvmmd.
 */
static gboolean is_abandoned(const SfHostTicket *ticket, gint64 away_us)
{
    if (!ticket->fork) {
        return TRUE;
    }
    if (sf_fork_alive(ticket->fork) > 0) {
        return !ticket->pager ||
               (g_object_get_data(G_OBJECT(ticket->pager), PAGER_CUT_OFF) && !sf_pager_is_complete(ticket->pager));
    }
    return away_us > KEEP_SECONDS * (gint64)US_PER_S;
}

/* Nothing of it is kept but what the origin may want to know. */
static void lose_clones(SfHostTicket *ticket)
{
    g_autofree char *reason =
        g_strdup_printf("host %s, which has the rest of its memory, was not heard of for %u s", ticket->grant->origin,
                        sf_host_config(ticket->host)->cluster.away_seconds);

    for (guint i = 0; i < sf_fork_count(ticket->fork); i++) {
        sf_fork_clone_lose(sf_fork_nth(ticket->fork, i), reason);
    }
    sf_host_set_pool(ticket->host, ticket->family, 0);
}

static gboolean on_away(gpointer data)
{
    SfHostTicket *ticket = data;

    gint64 away_us = g_get_monotonic_time() - ticket->away;
    gboolean abandoned = is_abandoned(ticket, away_us);

    g_message("ticket %016" G_GINT64_MODIFIER "x: its host %s has not been heard of for %u s; %s", ticket->grant->id,
              ticket->grant->origin, (guint)(away_us / US_PER_S), abandoned ? "given up" : "kept");
    if (!abandoned) {
        return G_SOURCE_CONTINUE;
    }
    if (ticket->fork && sf_fork_alive(ticket->fork) > 0) {
        lose_clones(ticket);
        return G_SOURCE_CONTINUE; /* what became of them is told when the origin is back */
    }
    ticket->expiry = 0;
    sf_host_release_ticket(ticket->host, ticket);
    return G_SOURCE_REMOVE;
}

void sf_lend_await_origin(SfHostTicket *ticket)
{
    if (!ticket->expiry) {
        ticket->away = g_get_monotonic_time();
        ticket->expiry = g_timeout_add_seconds(sf_host_config(ticket->host)->cluster.away_seconds, on_away, ticket);
    }
}

void sf_lend_peer_down(SfHost *host, SfPeer *peer)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (g_strcmp0(ticket->grant->origin, sf_peer_name(peer)) == 0) {
            sf_lend_await_origin(ticket);
        }
    }
}

void sf_lend_peer_up(SfHost *host, SfPeer *peer)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (g_strcmp0(ticket->grant->origin, sf_peer_name(peer)) == 0) {
            g_clear_handle_id(&ticket->expiry, g_source_remove);
            ticket->away = 0;
        }
    }
}
