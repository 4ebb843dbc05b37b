/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tickets of this host, and their forks. On record in RUNDIR/tickets/HEX/ticket.json. One that nobody uses expires;
 * one whose clones have ended is kept until somebody joins them, or too many are.
 */
#include <string.h>

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/describe.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/lend.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/control/pager_record.h"
#include "sfvmm/wire/state_file.h"

#define DONE_TICKETS_MAX 64u /* of one VM, kept for a join */

gboolean sf_host_ticket_is_of(const SfHostTicket *ticket, const char *vm)
{
    return !ticket->grant->origin && strcmp(ticket->grant->vm, vm) == 0;
}

void sf_host_ticket_free(gpointer data)
{
    SfHostTicket *ticket = data;

    sf_borrow_free(ticket->borrow);
    sf_lend_free(ticket->lend);
    g_clear_object(&ticket->pager);
    g_clear_handle_id(&ticket->expiry, g_source_remove);
    if (ticket->fork) {
        g_signal_handlers_disconnect_by_data(ticket->fork, ticket);
    }
    g_clear_object(&ticket->fork);
    sf_ticket_free(ticket->grant);
    g_free(ticket->saved);
    g_free(ticket->directory);
    g_free(ticket);
}

void sf_host_ticket_save(SfHostTicket *ticket)
{
    g_autofree char *path = g_build_filename(ticket->directory, "ticket.json", NULL);
    g_autoptr(JsonObject) object = sf_ticket_to_json(ticket->grant);
    g_autoptr(GError) error = NULL;

    json_object_set_string_member(object, "family", ticket->family->name);
    if (ticket->pager) {
        json_object_set_string_member(object, "pager", sf_pager_snapshot_id(ticket->pager));
    }
    json_object_set_int_member(object, "first_address", ticket->first_address);
    json_object_set_int_member(object, "parent_address", ticket->parent_address);
    sf_borrow_save(ticket, object);
    if (!sf_state_write(path, object, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s; a restart of sfvmmd would lose it", ticket->grant->id,
                  error->message);
    }
}

static gboolean on_ticket_expired(gpointer data)
{
    SfHostTicket *ticket = data;

    ticket->expiry = 0;
    g_message("ticket %016" G_GINT64_MODIFIER "x: expired unused", ticket->grant->id);
    sf_host_release_ticket(ticket->host, ticket);
    return G_SOURCE_REMOVE;
}

SfHostTicket *sf_host_add_ticket(SfHost *host, SfTicket *grant, SfFamily *family)
{
    SfHostTicket *ticket = g_new0(SfHostTicket, 1);
    g_autofree char *id = sf_ticket_id_to_text(grant->id);

    ticket->host = host;
    ticket->grant = grant;
    ticket->family = family;
    ticket->directory = sf_host_path(host, "tickets", id);
    ticket->booked = TRUE;
    sf_host_family_join(family);
    g_hash_table_insert(host->tickets, &grant->id, ticket);
    if (!grant->used && !grant->origin) {
        ticket->expiry = g_timeout_add_seconds(host->config->ticket_seconds, on_ticket_expired, ticket);
    }
    return ticket;
}

SfHostTicket *sf_host_ticket(SfHost *host, guint64 id, GError **error)
{
    SfHostTicket *ticket = g_hash_table_lookup(host->tickets, &id);

    if (!ticket) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_NO_SUCH_TICKET,
                    "ticket %016" G_GINT64_MODIFIER "x: not known on this host", id);
    }
    return ticket;
}

SfHostTicket *sf_host_ticket_of_request(SfHost *host, const char *vm, guint32 request)
{
    GHashTableIter iter;
    SfHostTicket *ticket;

    g_hash_table_iter_init(&iter, host->tickets);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&ticket)) {
        if (!ticket->fork && ticket->grant->request == request && sf_host_ticket_is_of(ticket, vm) &&
            !sf_borrow_is_asking(ticket)) {
            return ticket;
        }
    }
    return NULL;
}

static gint by_age(gconstpointer a, gconstpointer b)
{
    const SfHostTicket *left = a, *right = b;

    return left->grant->created < right->grant->created ? -1 : left->grant->created > right->grant->created;
}

GList *sf_host_tickets(SfHost *host)
{
    return g_list_sort(g_hash_table_get_values(host->tickets), by_age);
}

SfClone *sf_host_clone_of(SfHost *host, SfHostVm *hvm)
{
    SfHostTicket *ticket = hvm->ticket ? g_hash_table_lookup(host->tickets, &hvm->ticket) : NULL;

    return ticket && ticket->fork ? sf_fork_clone_of_vm(ticket->fork, hvm->vm) : NULL;
}

void sf_host_ticket_unbook(SfHostTicket *ticket)
{
    if (ticket->booked) {
        ticket->booked = FALSE;
        sf_resource_manager_release(ticket->host->manager, ticket->grant);
    }
}

/* ---- release ---- */

/* The last ticket of a pager ends it. */
static void drop_pager(SfHost *host, SfHostTicket *ticket)
{
    GHashTableIter iter;
    SfHostTicket *other;

    if (!ticket->pager) {
        return;
    }
    g_hash_table_iter_init(&iter, host->tickets);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&other)) {
        if (other->pager == ticket->pager) {
            return;
        }
    }
    sf_pager_stop(ticket->pager);
    sf_pager_record_drop(host, sf_pager_snapshot_id(ticket->pager));
}

void sf_host_release_ticket(SfHost *host, SfHostTicket *ticket)
{
    SfFamily *family = ticket->family;

    g_hash_table_steal(host->tickets, &ticket->grant->id);
    if (ticket->fork) {
        g_signal_handlers_disconnect_by_data(ticket->fork, ticket);
        sf_fork_kill(ticket->fork, "its ticket was released");
    }
    if (ticket->pager) {
        sf_lend_pager_used_less(host, ticket->pager);
    }
    sf_borrow_release(ticket);
    drop_pager(host, ticket);
    sf_host_ticket_unbook(ticket);
    sf_state_remove_folder(ticket->directory);
    sf_host_ticket_free(ticket);
    sf_networks_spread(host, family);
    sf_host_family_settle_later(host, family);
    sf_host_family_leave(host, family);
}

static gboolean on_release_idle(gpointer data)
{
    SfHostTicket *ticket = data;

    ticket->expiry = 0;
    sf_host_release_ticket(ticket->host, ticket);
    return G_SOURCE_REMOVE;
}

/* Before any more requests are read: who was told that a ticket has been joined finds it no more. */
void sf_host_release_ticket_later(SfHostTicket *ticket)
{
    if (!ticket->expiry) {
        ticket->expiry = g_idle_add_full(G_PRIORITY_HIGH, on_release_idle, ticket, NULL);
    }
}

/* Finished forks that nobody joins are kept for a while, but not without bound. */
static void drop_oldest_done(SfHost *host, const char *vm)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);
    guint done = 0;

    for (GList *item = g_list_last(tickets); item; item = item->prev) {
        SfHostTicket *ticket = item->data;
        if (sf_host_ticket_is_of(ticket, vm) && ticket->fork && sf_fork_is_done(ticket->fork) &&
            ++done > DONE_TICKETS_MAX) {
            g_message("ticket %016" G_GINT64_MODIFIER
                      "x: nobody joined it, and newer ones of its VM have ended; it is forgotten",
                      ticket->grant->id);
            sf_host_release_ticket_later(ticket);
        }
    }
}

/* ---- forks ---- */

static JsonObject *describe_clone_event(SfHostTicket *ticket, SfClone *clone)
{
    JsonObject *data = sf_fork_describe_clone(clone);
    g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);

    json_object_set_string_member(data, "ticket", id);
    return data;
}

static const char *clone_event_name(const SfClone *clone)
{
    if (clone->exited) {
        return "clone.exited";
    }
    if (clone->synced) {
        return "clone.synced";
    }
    return clone->answered ? "clone.answered" : "clone.running";
}

static void on_fork_changed(SfFork *fork, SfClone *clone, SfHostTicket *ticket)
{
    SfHost *host = ticket->host;

    if (clone && ticket->grant->origin) {
        sf_lend_clone_changed(ticket, clone);
    }
    if (!clone) {
        if (sf_fork_state(fork) == SF_FORK_PLACING) {
            sf_host_event(host, "fork.snapshot", sf_describe_ticket(ticket));
        }
        return;
    }
    if (clone->vm && clone->loaded && !sf_host_vm_of(host, clone->vm)) {
        sf_host_add_clone(host, ticket, clone);
    }
    if (clone->running || clone->exited) {
        sf_host_event(host, clone_event_name(clone), describe_clone_event(ticket, clone));
    }
}

static void on_fork_done(SfFork *fork, SfHostTicket *ticket)
{
    SfHost *host = ticket->host;

    sf_host_ticket_unbook(ticket);
    sf_host_event(host, "ticket.done", sf_describe_ticket(ticket));
    sf_borrow_done(ticket);
    if (ticket->pager) {
        sf_lend_pager_used_less(host, ticket->pager);
    }
    sf_host_family_settle_later(host, ticket->family);
    if (ticket->grant->origin) {
        sf_lend_done(ticket);
        return; /* its origin releases it, when it has fetched the results */
    }
    if (!ticket->saved && !g_hash_table_contains(host->vms, ticket->grant->vm)) {
        sf_host_release_ticket_later(ticket); /* nobody is left to join it */
    } else {
        drop_oldest_done(host, ticket->grant->vm);
    }
}

/* Before its sf_clone() returns, which waits for the same signal. */
static void on_fork_placed(SfFork *fork, SfHostTicket *ticket)
{
    SfHostVm *parent = ticket->grant->origin ? NULL : sf_host_vm(ticket->host, ticket->grant->vm, NULL);

    if (parent && ticket->first_address) {
        sf_networks_tell(ticket->host->networks, parent);
    }
}

void sf_host_connect_fork(SfHostTicket *ticket)
{
    g_signal_connect(ticket->fork, "placed", G_CALLBACK(on_fork_placed), ticket);
    g_signal_connect(ticket->fork, "changed", G_CALLBACK(on_fork_changed), ticket);
    g_signal_connect(ticket->fork, "done", G_CALLBACK(on_fork_done), ticket);
}

SfForkOptions sf_host_fork_options(SfHost *host, SfHostTicket *ticket)
{
    SfHostVm *parent = ticket->grant->origin ? NULL : g_hash_table_lookup(host->vms, ticket->grant->vm);

    return (SfForkOptions){
        .ticket = ticket->grant->id,
        .count = ticket->grant->granted,
        .parent = parent ? parent->vm : NULL,
        .pool = ticket->family->pool,
        .with_agent = parent && sf_vm_expects_agent(parent->vm),
        .directory = ticket->directory,
        .identify_seconds = host->config->identify_seconds,
        .network = sf_networks_of_fork(host->networks, ticket),
        .remote = &host->remote,
        .pager = ticket->pager,
        .server = sf_borrow_server(ticket),
    };
}

/* A VM whose memory comes from elsewhere passes that on to its clones. */
void sf_host_take_pager(SfHost *host, SfHostTicket *ticket)
{
    SfHostVm *parent = ticket->grant->origin ? NULL : g_hash_table_lookup(host->vms, ticket->grant->vm);
    SfHostTicket *of = parent && parent->ticket ? g_hash_table_lookup(host->tickets, &parent->ticket) : NULL;

    if (of && of->pager && !ticket->pager) {
        ticket->pager = g_object_ref(of->pager);
    }
}

SfFork *sf_host_fork(SfHost *host, SfHostTicket *ticket, guint32 clone_request, GError **error)
{
    g_autoptr(GArray) places = sf_borrow_fork_places(ticket);
    SfHostVm *parent = sf_host_vm(host, ticket->grant->vm, NULL);
    SfForkOptions options;

    if (parent && !ticket->fork && !sf_networks_reserve(host->networks, ticket, parent, error)) {
        return NULL;
    }
    sf_host_take_pager(host, ticket);
    options = sf_host_fork_options(host, ticket);
    options.places = (const SfForkPlace *)places->data;
    options.n_places = places->len;
    if (sf_borrow_is_asking(ticket)) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_BUSY,
                    "ticket %016" G_GINT64_MODIFIER "x: other hosts are still being asked for places",
                    ticket->grant->id);
        return NULL;
    }
    if (ticket->fork) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_BUSY,
                    "ticket %016" G_GINT64_MODIFIER "x: it has forked already; ask for another", ticket->grant->id);
        return NULL;
    }
    if (ticket->grant->revoked) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                    "ticket %016" G_GINT64_MODIFIER "x: %s; ask for another", ticket->grant->id,
                    ticket->grant->revoked);
        return NULL;
    }
    if (!options.parent) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_NO_SUCH_VM, "VM \"%s\": it has ended", ticket->grant->vm);
        return NULL;
    }
    g_clear_handle_id(&ticket->expiry, g_source_remove);
    options.clone_request = clone_request;
    ticket->grant->used = TRUE;
    sf_host_ticket_save(ticket);
    ticket->fork = sf_fork_new(&options);
    sf_host_connect_fork(ticket);
    sf_fork_start(ticket->fork);
    return ticket->fork;
}
