/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * What a peer sends is untrusted: each parameter is checked for type and bounds (cluster/peer_params.h), names for
 * their characters, and a descriptor is decoded strictly and compared with what this host reserved and can run, before
 * a shell is touched. "reserve" and "place" may be sent again, after a lost connection: what was done already is
 * answered, not done twice.
 *
 *     lend.c           the methods: a request finds its ticket, and who carries it out
 *     lend_reserve.c   reserve      lend_fit.c      what this host can run
 *     lend_place.c     place        lend_report.c   what its origin learns of its clones
 *     lend_origin.c    sync; an origin that stays away
 *
 *     RUNDIR/tickets/HEX/   ticket.json (with origin)  descriptor.dtb  disks.json  fork.json  result-N
 *     RUNDIR/pager/s-HEX/   the sf-pager, which keeps the memory while sfvmmd is restarted
 */
#include "sfvmm/control/lend_private.h"

#include <string.h>

#include "sfvmm/cluster/peer_params.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/control/pager_record.h"
#include "sfvmm/vm/disk_server.h"

#define REASON_MAX 4096u

/* The ticket that the peer speaks of, lent to it; NULL + error. */
SfHostTicket *sf_lend_ticket(SfHost *host, const char *origin, JsonObject *params, GError **error)
{
    SfHostTicket *ticket = NULL;
    guint64 id;

    if (!sf_peer_param_ticket(params, &id, error)) {
        return NULL;
    }
    ticket = sf_host_ticket(host, id, NULL);
    if (!ticket || g_strcmp0(ticket->grant->origin, origin) != 0) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_GONE, "ticket %016" G_GINT64_MODIFIER "x is not known here",
                    id);
        return NULL;
    }
    return ticket;
}

void sf_lend_free(SfLend *lend)
{
    if (!lend) {
        return;
    }
    g_clear_handle_id(&lend->record_timer, g_source_remove);
    g_clear_pointer(&lend->disks, sf_disk_server_unref);
    g_free(lend);
}

SfLend *sf_lend_new(SfHostTicket *ticket)
{
    SfLend *lend = g_new0(SfLend, 1);

    lend->ticket = ticket;
    ticket->lend = lend;
    return lend;
}

static void handle_kill(SfHost *host, SfPeerRequest *request)
{
    JsonObject *params = sf_peer_request_params(request);
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_lend_ticket(host, sf_peer_request_from(request), params, &error);
    const char *reason;
    gint64 id;

    if (!ticket || !sf_peer_param_int(params, "id", 1, SF_GP_MAX_CLONES, &id, &error) ||
        !sf_peer_param_text(params, "reason", REASON_MAX, &reason, &error)) {
        sf_peer_request_fail(request, error);
        return;
    }
    if (ticket->fork && sf_fork_clone(ticket->fork, (guint)id)) {
        sf_fork_clone_kill(sf_fork_clone(ticket->fork, (guint)id), reason);
    }
    sf_peer_request_reply(request, NULL);
}

static void handle_complete(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_lend_ticket(host, sf_peer_request_from(request), sf_peer_request_params(request), &error);

    if (ticket && ticket->pager && sf_pager_complete(ticket->pager, &error)) {
        sf_pager_record_save(host, ticket->pager);
        sf_peer_request_reply(request, NULL);
        return;
    }
    if (!error) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_GONE, "its memory is gone");
    }
    sf_peer_request_fail(request, error);
}

static void handle_network(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;
    JsonObject *params = sf_peer_request_params(request);
    SfPeer *peer = sf_peer_request_peer(request);
    SfHostTicket *ticket = sf_lend_ticket(host, sf_peer_request_from(request), params, &error);

    if (ticket && peer && sf_networks_take_hosts(ticket, peer, params, &error)) {
        sf_peer_request_reply(request, NULL);
        return;
    }
    if (!error) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_LOST, "the connection has ended");
    }
    sf_peer_request_fail(request, error);
}

static void handle_release(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_lend_ticket(host, sf_peer_request_from(request), sf_peer_request_params(request), &error);

    sf_lend_reserve_release(host, request);
    if (!ticket) {
        sf_peer_request_fail(request, error);
        return;
    }
    sf_host_release_ticket(host, ticket);
    sf_peer_request_reply(request, NULL);
}

typedef struct {
    const char *name;
    void (*handle)(SfHost *host, SfPeerRequest *request);
} Method;

static const Method methods[] = {
    { "reserve", sf_lend_reserve },  { "place", sf_lend_place },    { "kill", handle_kill },
    { "result", sf_lend_result },    { "release", handle_release }, { "sync", sf_lend_sync },
    { "complete", handle_complete }, { "network", handle_network },
};

void sf_lend_request(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;

    for (guint i = 0; i < G_N_ELEMENTS(methods); i++) {
        if (strcmp(methods[i].name, sf_peer_request_method(request)) == 0) {
            methods[i].handle(host, request);
            return;
        }
    }
    error = g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_BAD_REQUEST, "method \"%.64s\": not known",
                        sf_peer_request_method(request));
    sf_peer_request_fail(request, error);
}

void sf_lend_recover(SfHostTicket *ticket)
{
    g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, ticket->grant->id);

    sf_lend_new(ticket);
    if (ticket->pager) {
        sf_lend_watch_pager(ticket->pager, ticket->host);
    }
    ticket->lend->disks = sf_disk_server_find(sf_host_launcher(ticket->host), id);
    sf_lend_await_origin(ticket);
}
