/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * "reserve": other hosts are asked for places, and for others what they have not.
 *
 *     granted < asked  --> resource manager: other places --> reserve there ... none --> a smaller ticket
 *
 * It is done when each host has answered, or its time is over, and the disk server runs.
 */
#include "sfvmm/control/borrow_private.h"

#include <string.h>

#include "sfvmm/control/cluster.h"
#include "sfvmm/control/facts.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/control/page_uri.h"

#define RESERVE_MS 5000u

SfBorrowSubject sf_borrow_subject_of_vm(SfHostVm *hvm)
{
    return (SfBorrowSubject){
        .vm = sf_vm_name(hvm->vm),
        .config = hvm->family->config,
        .qemu_version = sf_vm_qemu_version(hvm->vm),
        .machine = sf_vm_machine(hvm->vm),
        .cpu = sf_vm_cpu(hvm->vm),
        .disks = sf_vm_disks(hvm->vm),
    };
}

void sf_borrow_note_subject(SfBorrow *borrow, const SfBorrowSubject *subject)
{
    borrow->vm = g_strdup(subject->vm);
    borrow->qemu_version = g_strdup(subject->qemu_version);
    borrow->machine = g_strdup(subject->machine);
    borrow->cpu = g_strdup(subject->cpu);
    borrow->uri = g_strdup(subject->uri);
    borrow->descriptor = subject->descriptor ? g_bytes_ref(subject->descriptor) : NULL;
}

/* ---- a host is asked ---- */

/*
 * What a host needs to join the group of this ticket; the group is made for the first one. NULL: it uses unicast, as
 * all do that fetch from a page cache: what that lacks can only be asked for.
 */
static JsonObject *invite(SfHostTicket *ticket, const char *host)
{
    SfBorrow *borrow = ticket->borrow;
    const SfMulticastConfig *config = &sf_host_config(ticket->host)->cluster.multicast;
    g_autoptr(GPtrArray) hosts = sf_borrow_hosts(ticket);
    g_autoptr(GError) error = NULL;
    SfPeer *peer = sf_host_peer(ticket->host, host);
    const char *local_ip = peer ? sf_peer_local_ip(peer) : NULL;

    if (config->mode == SF_MULTICAST_OFF || (config->mode == SF_MULTICAST_AUTO && hosts->len < 2) || !local_ip ||
        !borrow->server || borrow->shared || ticket->pager) {
        return NULL;
    }
    if (!borrow->multicast && !borrow->no_multicast) {
        borrow->multicast = sf_multicast_new(config, borrow->server, ticket->grant->id, local_ip, hosts->len, &error);
        borrow->no_multicast = !borrow->multicast;
        if (error) {
            g_message("ticket %016" G_GINT64_MODIFIER "x: pages go by unicast: %s", ticket->grant->id, error->message);
        }
    }
    return borrow->multicast ? sf_multicast_invite(borrow->multicast, host, local_ip) : NULL;
}

static void add_subject(SfHostTicket *ticket, SfVmConfig *config, JsonObject *params)
{
    SfBorrow *borrow = ticket->borrow;
    SfHostVm *hvm = borrow->vm ? NULL : sf_host_vm(ticket->host, ticket->grant->vm, NULL);
    g_autofree char *hash = NULL;

    if (hvm) {
        SfBorrowSubject subject = sf_borrow_subject_of_vm(hvm);
        sf_borrow_note_subject(borrow, &subject);
    }
    if (!borrow->vm) {
        return; /* it has ended; the other host refuses */
    }
    hash = sf_vm_config_hash(config, borrow->qemu_version);
    json_object_set_string_member(params, "vm", borrow->vm);
    json_object_set_string_member(params, "qemu_version", borrow->qemu_version);
    json_object_set_string_member(params, "machine", borrow->machine);
    json_object_set_string_member(params, "cpu", borrow->cpu);
    json_object_set_string_member(params, "config_hash", hash);
}

/* peer NULL: it is not there, and will not read it. */
static JsonObject *pages_of(SfHostTicket *ticket, const char *host, SfPeer *peer)
{
    SfPagerSecurity security = sf_host_config(ticket->host)->cluster.pages;
    const SfBorrow *borrow = ticket->borrow;
    JsonObject *pages = json_object_new(), *invitation = invite(ticket, host);

    json_object_set_int_member(pages, "port", borrow->port);
    json_object_set_string_member(pages, "security", security == SF_PAGER_X509 ? "tls" : "plain");
    if (borrow->shared) {
        json_object_set_string_member(pages, "snapshot", sf_pager_snapshot_id(borrow->server));
    }
    if (peer && borrow->uri && sf_page_uri_is_portable(borrow->uri, security, sf_peer_remote_ip(peer))) {
        json_object_set_string_member(pages, "uri", borrow->uri);
    }
    if (invitation) {
        json_object_set_object_member(pages, "multicast", invitation);
    }
    return pages;
}

/* So many of the clones on a host can't be there: they get other places, or the ticket becomes smaller. */
static void replace(SfHostTicket *ticket, SfVmConfig *config, const char *host, guint count)
{
    SfResourceManager *manager = sf_host_manager(ticket->host);
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) places = sf_resource_manager_reassign(manager, ticket->grant, host, count, &error);

    if (!places) {
        sf_resource_manager_give_back(manager, ticket->grant, host, count);
        return;
    }
    for (guint i = 0; i < places->len; i++) {
        const SfPlace *place = g_ptr_array_index(places, i);
        if (!sf_place_is_local(place)) {
            sf_borrow_ask(ticket, config, place->host, FALSE);
        }
    }
}

/* The ticket is granted when all hosts have answered and what they will fetch from runs: a fork shall not wait for it.
 */
void sf_borrow_reserve_review(SfHostTicket *ticket)
{
    SfBorrow *borrow = ticket->borrow;

    if (borrow->asking == 0 && borrow->disks_state != SF_BORROW_DISKS_STARTING && borrow->task) {
        g_autoptr(GTask) task = g_steal_pointer(&borrow->task);
        g_task_return_pointer(task, g_memdup2(&ticket->grant->id, sizeof(guint64)), g_free);
    }
}

static void on_asked(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(SfBorrowCall) call = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);
    SfHostTicket *ticket = sf_borrow_call_ticket(call);
    gint64 number = answer ? json_object_get_int_member_with_default(answer, "granted", 0) : 0;
    guint granted = (guint)CLAMP(number, 0, (gint64)call->count), wanted;

    if (!ticket) {
        return; /* its release has been told, or sync will */
    }
    ticket->borrow->asking--;
    g_hash_table_remove(ticket->borrow->asked, call->peer);
    if (answer && json_object_get_boolean_member_with_default(answer, "multicast", FALSE)) {
        g_hash_table_add(ticket->borrow->in_group, g_strdup(call->peer));
    }
    wanted = sf_ticket_count_at(ticket->grant, call->peer);
    if (granted < call->count) {
        g_free(ticket->borrow->reason);
        ticket->borrow->reason =
            error ? g_strdup(error->message)
                  : g_strdup_printf("host \"%s\" has room for %u of %u clones", call->peer, granted, call->count);
        g_message("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, ticket->borrow->reason);
    } else if (granted < wanted) {
        sf_borrow_ask(ticket, ticket->family->config, call->peer, call->then_place); /* it got more of them meanwhile */
        return;
    }
    sf_networks_spread(ticket->host, ticket->family);
    if (granted == 0) {
        sf_borrow_tell(ticket, call->peer, "release",
                       sf_borrow_params(ticket)); /* it may have been reserved, and the answer lost */
    }
    if (!call->then_place) {
        if (granted < wanted) {
            replace(ticket, ticket->family->config, call->peer, wanted - granted);
        }
        sf_borrow_reserve_review(ticket);
    } else if (granted == wanted) {
        sf_borrow_order(ticket, call->peer);
    } else {
        sf_borrow_move_clones(ticket, call->peer, ticket->borrow->reason);
    }
}

/* For all places that the ticket has there. */
void sf_borrow_ask(SfHostTicket *ticket, SfVmConfig *config, const char *host, gboolean then_place)
{
    if (g_hash_table_contains(ticket->borrow->asked, host)) {
        return; /* its answer asks again */
    }
    SfBorrowCall *call = sf_borrow_call_new(ticket, host, sf_ticket_count_at(ticket->grant, host));
    SfPeer *peer = sf_host_peer(ticket->host, host);
    JsonObject *params = sf_borrow_params(ticket);
    JsonObject *facts = sf_cluster_facts(sf_cluster_of(ticket->host));

    json_object_set_int_member(params, "count", call->count);
    json_object_set_object_member(params, "config", sf_vm_config_to_portable_json(config));
    add_subject(ticket, config, params);
    sf_networks_invite(ticket, peer, params);
    json_object_set_array_member(params, "cpu_flags",
                                 sf_facts_list(strcmp(config->accel, "kvm") == 0 ? facts : NULL, "cpu_flags"));
    json_object_set_object_member(params, "pages", pages_of(ticket, host, peer));
    json_object_set_int_member(params, "disks_port", ticket->borrow->disks_port);
    call->then_place = then_place;
    if (ticket->borrow->server) {
        sf_borrow_allow_hosts(ticket->host, ticket->borrow->server);
    }
    ticket->borrow->asking++;
    g_hash_table_add(ticket->borrow->asked, g_strdup(host));
    if (peer) {
        sf_peer_call_async(peer, "reserve", params, RESERVE_MS, on_asked, call);
    } else {
        GTask *none = g_task_new(NULL, NULL, on_asked, call);
        json_object_unref(params);
        g_task_return_new_error(none, SF_PEER_ERROR, SF_PEER_ERROR_NOT_UP, "host %s: not connected", host);
        g_object_unref(none);
    }
}

/* ---- all of them ---- */

void sf_borrow_reserve_async(SfHostTicket *ticket, const SfBorrowSubject *subject, GAsyncReadyCallback callback,
                             gpointer data)
{
    GTask *task = g_task_new(ticket->host, NULL, callback, data);
    g_autoptr(GPtrArray) hosts = sf_borrow_hosts(ticket);
    g_autoptr(GError) error = NULL;
    SfBorrow *borrow;

    if (hosts->len == 0) {
        g_task_return_pointer(task, g_memdup2(&ticket->grant->id, sizeof(guint64)), g_free);
        g_object_unref(task);
        return;
    }
    sf_borrow_new(ticket);
    borrow = ticket->borrow;
    borrow->task = task;
    sf_borrow_note_subject(borrow, subject);
    if (!(subject->pager ? sf_borrow_share_server(borrow, subject->pager, &error)
                         : sf_borrow_start_server(borrow, &error))) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: its memory can't be served to other hosts: %s", ticket->grant->id,
                  error->message);
        borrow->reason = g_strdup(error->message);
        for (guint i = 0; i < hosts->len; i++) {
            const char *host = g_ptr_array_index(hosts, i);
            sf_resource_manager_give_back(sf_host_manager(ticket->host), ticket->grant, host,
                                          sf_ticket_count_at(ticket->grant, host));
        }
    } else {
        if (subject->config->disks->len > 0) {
            sf_borrow_start_disk_server(ticket, subject->disks);
        }
        for (guint i = 0; i < hosts->len; i++) {
            sf_borrow_ask(ticket, subject->config, g_ptr_array_index(hosts, i), FALSE);
        }
    }
    sf_borrow_reserve_review(ticket);
}

SfHostTicket *sf_borrow_reserve_finish(SfHost *host, GAsyncResult *result, GError **error)
{
    g_autofree guint64 *id = g_task_propagate_pointer(G_TASK(result), error);

    return id ? sf_host_ticket(host, *id, error) : NULL;
}

gboolean sf_borrow_is_asking(SfHostTicket *ticket)
{
    return ticket->borrow && ticket->borrow->task;
}

gboolean sf_borrow_is_whole(SfHostTicket *ticket)
{
    return !ticket->borrow || ticket->grant->granted == ticket->borrow->wanted;
}

const char *sf_borrow_reason(SfHostTicket *ticket)
{
    return ticket->borrow && ticket->borrow->reason ? ticket->borrow->reason : "no host has room";
}
