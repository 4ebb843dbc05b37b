/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A ticket on its way, for operators and agents alike:
 *
 *     request --> resource manager --> SfTicket --> places on other hosts are reserved (borrow.h) --> SfHostTicket
 *
 * Each step takes its time, in which the VM may end. Main thread only.
 */
#include <errno.h>
#include <glib/gstdio.h>

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/describe.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/networks_hosts.h"

typedef struct {
    SfVm *vm; /* it may end meanwhile */
    gboolean all;
} TicketCall;

static void ticket_call_free(gpointer data)
{
    TicketCall *call = data;

    g_object_unref(call->vm);
    g_free(call);
}

static void on_reserved(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    SfHost *host = SF_HOST(source);
    GError *error = NULL;
    SfHostTicket *ticket = sf_borrow_reserve_finish(host, result, &error);
    const TicketCall *call = g_task_get_task_data(task);

    if (ticket && (ticket->grant->granted == 0 || (call->all && !sf_borrow_is_whole(ticket)))) {
        error = g_error_new(SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY, "VM \"%s\": %s", ticket->grant->vm,
                            sf_borrow_reason(ticket));
        sf_host_release_ticket(host, ticket);
        ticket = NULL;
    }
    if (!ticket) {
        g_task_return_error(task, error);
        return;
    }
    sf_host_ticket_save(ticket);
    sf_host_event(host, "ticket.granted", sf_describe_ticket(ticket));
    g_task_return_pointer(task, g_memdup2(&ticket->grant->id, sizeof(guint64)), g_free);
}

/*
 * What has its gateway on another host has its forks here: that host gives the other ones their part of the network. So
 * has a domain that has something of this host in it.
 */
static gboolean must_be_here(SfHost *host, SfHostVm *hvm)
{
    const SfVmConfig *config = hvm->family->config;

    return !sf_host_peers(host) || !sf_vm_config_is_portable(config, NULL) ||
           (sf_vm_config_has_cluster(config) && sf_networks_is_lent(hvm->family));
}

/* Takes grant. */
static SfHostTicket *new_ticket(SfHost *host, SfHostVm *hvm, SfTicket *grant, GError **error)
{
    SfHostTicket *ticket;

    grant->avoid = sf_host_config(host)->cluster.avoid;
    ticket = sf_host_add_ticket(host, grant, hvm->family);
    if (g_mkdir(ticket->directory, 0700) < 0) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_FAILED, "ticket of VM \"%s\": can't make \"%s\": %s",
                    sf_vm_name(hvm->vm), ticket->directory, g_strerror(errno));
        sf_host_release_ticket(host, ticket);
        return NULL;
    }
    sf_host_take_pager(host, ticket); /* it is known who may fetch from whom before the hosts are asked */
    return ticket;
}

static void on_granted(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    SfHost *host = g_task_get_source_object(task);
    const TicketCall *call = g_task_get_task_data(task);
    GError *error = NULL;
    SfTicket *grant = sf_resource_manager_request_finish(sf_host_manager(host), result, &error);
    SfHostVm *hvm = sf_host_vm_of(host, call->vm);
    SfHostTicket *ticket = NULL;
    SfBorrowSubject subject;

    if (grant && !hvm) {
        sf_resource_manager_release(sf_host_manager(host), grant);
        sf_ticket_free(grant);
        error = g_error_new(SF_HOST_ERROR, SF_HOST_ERROR_NO_SUCH_VM, "VM \"%s\": it has ended", sf_vm_name(call->vm));
    } else if (grant) {
        ticket = new_ticket(host, hvm, grant, &error);
    }
    if (!ticket) {
        g_task_return_error(task, error);
        g_object_unref(task);
        return;
    }
    subject = sf_borrow_subject_of_vm(hvm);
    sf_borrow_reserve_async(ticket, &subject, on_reserved, task);
}

void sf_host_request_ticket_async(SfHost *host, SfHostVm *hvm, const SfHostTicketOrder *order,
                                  GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(host, NULL, callback, data);
    const SfTicketRequest request = {
        .vm = sf_vm_name(hvm->vm),
        .user = hvm->family->user,
        .memory = hvm->family->config->memory,
        .vcpus = hvm->family->config->vcpus,
        .count = order->count,
        .all = order->all,
        .here = must_be_here(host, hvm),
        .request = order->request,
        .wait_ms = order->queue_ms,
    };
    TicketCall *call;

    if (order->count < 1 || order->count > SF_GP_MAX_CLONES) {
        g_task_return_new_error(task, SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS,
                                "VM \"%s\": a ticket for %u clones was asked; 1 to %u can be had", request.vm,
                                order->count, SF_GP_MAX_CLONES);
        g_object_unref(task);
        return;
    }
    call = g_new0(TicketCall, 1);
    call->vm = g_object_ref(hvm->vm);
    call->all = order->all;
    g_task_set_task_data(task, call, ticket_call_free);
    sf_resource_manager_request_async(sf_host_manager(host), &request, on_granted, task);
}

/* By its id: it may have been released since. */
SfHostTicket *sf_host_request_ticket_finish(SfHost *host, GAsyncResult *result, GError **error)
{
    g_autofree guint64 *id = g_task_propagate_pointer(G_TASK(result), error);

    return id ? sf_host_ticket(host, *id, error) : NULL;
}
