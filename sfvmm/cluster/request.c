/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests for tickets: tried when they come, and again when something may have become free.
 *
 *     request --> quotas --> places ------------------------> ticket
 *        |          |          |                                ^
 *        |          |          +--> the scheduler's slots --> places     of a kind that has one: it has a queue of its
 * own |          v                       |
 *        +<--- too little: error, or, if it may wait, the end of the queue
 *
 * The queue is short (limits->waiting) and every request in it has a deadline: who asks gets an answer in any case. One
 * that waits for room holds back those that came later, so that many small ones don't starve a large one. One that
 * waits for its VM or its user to give something back holds back nobody.
 *
 * A GTask of a request may call anybody when it returns, so it returns when the queue is in order again.
 */
#include <string.h>

#include "sfvmm/cluster/resource_manager_kind.h"

#define US_PER_MS 1000

typedef struct {
    SfResourceManager *manager;
    SfTicketRequest what; /* vm is a copy */
    char *vm;
    GTask *task;
    gint64 deadline;   /* g_get_monotonic_time(); 0: it does not wait */
    guint timer;       /* while it is in the queue */
    gboolean for_room; /* that is what it waits for, else for a quota */
    GError *reason;    /* why it waits */
    gboolean abandoned;
    SfAllocation allocation; /* while the scheduler has it */
} SfRequest;

static void request_free(SfRequest *request)
{
    g_clear_handle_id(&request->timer, g_source_remove);
    g_clear_error(&request->reason);
    g_object_unref(request->task);
    g_free(request->vm);
    g_free(request);
}

static void request_fail(SfRequest *request, GError *error)
{
    g_task_return_error(request->task, error);
    request_free(request);
}

/* ---- one try ---- */

static void start_allocation(SfRequest *request, SfTicket *ticket)
{
    SfResourceManager *manager = request->manager;
    gint64 left = request->deadline ? request->deadline - g_get_monotonic_time() : 0;

    request->allocation = (SfAllocation){
        .ticket = ticket,
        .least = request->what.all ? request->what.count : 1,
        .vcpus = MAX(request->what.vcpus, 1),
        .here = request->what.here,
        .wait_ms = left > 0 ? (guint)(left / US_PER_MS) : 0,
    };
    g_ptr_array_add(manager->allocating, request);
    manager->kind->allocate(manager, &request->allocation);
}

void sf_allocation_done(SfAllocation *allocation, GError *error)
{
    SfRequest *request = (SfRequest *)((char *)allocation - G_STRUCT_OFFSET(SfRequest, allocation));
    SfResourceManager *manager = request->manager;
    SfTicket *ticket = allocation->ticket;
    GError *local = error;

    g_ptr_array_remove(manager->allocating, request);
    if (!local && request->abandoned) {
        local = g_error_new(SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY, "VM \"%s\": it has ended", request->vm);
    }
    if (!local && sf_resource_manager_place(manager, ticket, &request->what, &local)) {
        g_task_return_pointer(request->task, ticket, (GDestroyNotify)sf_ticket_free);
        request_free(request);
        return;
    }
    sf_resource_manager_release(manager, ticket); /* the scheduler's slots, too, if it gave any */
    sf_ticket_free(ticket);
    request_fail(request, local);
}

static gboolean somebody_waits_for_room(SfResourceManager *manager)
{
    for (GList *item = manager->waiting.head; item; item = item->next) {
        if (((SfRequest *)item->data)->for_room) {
            return TRUE;
        }
    }
    return FALSE;
}

/*
 * TRUE: the request has its ticket (*granted), or the scheduler has the request (*granted is NULL). blocked: others
 * were there before and wait for room.
 */
static gboolean request_try(SfRequest *request, gboolean blocked, SfTicket **granted, GError **error)
{
    SfResourceManager *manager = request->manager;
    SfTicket *ticket = sf_resource_manager_admit(manager, &request->what, error);

    *granted = NULL;
    if (!ticket) {
        return FALSE;
    }
    if (manager->kind->allocate) {
        start_allocation(request, ticket);
        return TRUE;
    }
    if (blocked) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                    "VM \"%s\": %u clones asked, but others wait for room already", request->vm, request->what.count);
    } else if (sf_resource_manager_place(manager, ticket, &request->what, error)) {
        *granted = ticket;
        return TRUE;
    }
    sf_resource_manager_dismiss(manager, ticket);
    return FALSE;
}

/* ---- the queue ---- */

static gboolean on_deadline(gpointer data)
{
    SfRequest *request = data;
    GError *error = g_steal_pointer(&request->reason);

    request->timer = 0;
    g_queue_remove(&request->manager->waiting, request);
    sf_requests_wake(request->manager); /* those behind it */
    g_prefix_error(&error, "nothing became free within %u ms: ", request->what.wait_ms);
    request_fail(request, error);
    return G_SOURCE_REMOVE;
}

/* More than a ticket may have: waiting helps nobody. */
static gboolean is_hopeless(const SfRequest *request)
{
    return request->what.all && request->what.count > request->manager->limits.clones_per_ticket;
}

static void set_reason(SfRequest *request, GError *reason)
{
    g_clear_error(&request->reason);
    request->reason = reason;
    request->for_room = g_error_matches(reason, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY);
}

guint sf_resource_manager_waiting(SfResourceManager *manager)
{
    guint waiting = manager->waiting.length;

    for (guint i = 0; i < manager->allocating->len; i++) {
        waiting += ((SfRequest *)g_ptr_array_index(manager->allocating, i))->deadline != 0;
    }
    return waiting;
}

static gboolean on_wake(gpointer data)
{
    SfResourceManager *manager = data;
    g_autoptr(GPtrArray) served = g_ptr_array_new(), tickets = g_ptr_array_new();
    gboolean blocked = FALSE;

    manager->wake = 0;
    for (GList *item = manager->waiting.head, *next; item; item = next) {
        SfRequest *request = item->data;
        GError *error = NULL;
        SfTicket *ticket;
        next = item->next;
        if (!request_try(request, blocked, &ticket, &error)) {
            set_reason(request, error);
            blocked = blocked || request->for_room;
            continue;
        }
        g_queue_delete_link(&manager->waiting, item);
        g_clear_handle_id(&request->timer, g_source_remove);
        if (ticket) {
            g_ptr_array_add(served, request);
            g_ptr_array_add(tickets, ticket);
        }
    }
    for (guint i = 0; i < served->len; i++) {
        SfRequest *request = g_ptr_array_index(served, i);
        g_task_return_pointer(request->task, g_ptr_array_index(tickets, i), (GDestroyNotify)sf_ticket_free);
        request_free(request);
    }
    return G_SOURCE_REMOVE;
}

void sf_requests_wake(SfResourceManager *manager)
{
    if (!manager->wake && manager->waiting.length > 0) {
        manager->wake = g_idle_add(on_wake, manager);
    }
}

/* ---- the way in ---- */

static SfRequest *request_new(SfResourceManager *manager, const SfTicketRequest *what, GAsyncReadyCallback callback,
                              gpointer data)
{
    SfRequest *request = g_new0(SfRequest, 1);

    request->manager = manager;
    request->vm = g_strdup(what->vm);
    request->what = *what;
    request->what.vm = request->vm;
    request->task = g_task_new(NULL, NULL, callback, data);
    if (what->wait_ms > 0) {
        request->deadline = g_get_monotonic_time() + (gint64)what->wait_ms * US_PER_MS;
    }
    return request;
}

/* FALSE: no more may wait, and the request has failed. */
static gboolean may_wait(SfRequest *request)
{
    SfResourceManager *manager = request->manager;

    if (sf_resource_manager_waiting(manager) < manager->limits.waiting) {
        return TRUE;
    }
    request_fail(
        request,
        g_error_new(SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                    "VM \"%s\": %u clones asked, but as many requests as may (waiting in sfvmmd.conf: %u) wait "
                    "already",
                    request->vm, request->what.count, manager->limits.waiting));
    return FALSE;
}

void sf_resource_manager_request_async(SfResourceManager *manager, const SfTicketRequest *what,
                                       GAsyncReadyCallback callback, gpointer data)
{
    SfRequest *request = request_new(manager, what, callback, data);
    GError *error = NULL;
    SfTicket *ticket;

    if (request->deadline && manager->kind->allocate && !may_wait(request)) {
        return; /* the scheduler would let it wait */
    }
    if (request_try(request, somebody_waits_for_room(manager), &ticket, &error)) {
        if (ticket) {
            g_task_return_pointer(request->task, ticket, (GDestroyNotify)sf_ticket_free);
            request_free(request);
        }
    } else if (!request->deadline || is_hopeless(request)) {
        request_fail(request, error);
    } else if (may_wait(request)) {
        set_reason(request, error);
        request->timer = g_timeout_add(what->wait_ms, on_deadline, request);
        g_queue_push_tail(&manager->waiting, request);
    } else {
        g_error_free(error);
    }
}

SfTicket *sf_resource_manager_request_finish(SfResourceManager *manager, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

static void abandon(SfRequest *request)
{
    if (!request->abandoned) {
        request->abandoned = TRUE;
        request->manager->kind->abandon(request->manager, &request->allocation);
    }
}

/* vm NULL: all */
static void drop_requests(SfResourceManager *manager, const char *vm, const char *why)
{
    g_autoptr(GPtrArray) dropped = g_ptr_array_new();
    g_autoptr(GPtrArray) allocating = g_ptr_array_copy(manager->allocating, NULL, NULL);

    for (GList *item = manager->waiting.head, *next; item; item = next) {
        SfRequest *request = item->data;
        next = item->next;
        if (!vm || strcmp(request->vm, vm) == 0) {
            g_queue_delete_link(&manager->waiting, item);
            g_ptr_array_add(dropped, request);
        }
    }
    for (guint i = 0; i < allocating->len; i++) {
        SfRequest *request = g_ptr_array_index(allocating, i);
        if (!vm || strcmp(request->vm, vm) == 0) {
            abandon(request);
        }
    }
    for (guint i = 0; i < dropped->len; i++) {
        SfRequest *request = g_ptr_array_index(dropped, i);
        request_fail(request,
                     g_error_new(SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY, "VM \"%s\": %s", request->vm, why));
    }
}

void sf_resource_manager_forget_vm(SfResourceManager *manager, const char *vm)
{
    drop_requests(manager, vm, "it has ended");
    sf_requests_wake(manager);
}

void sf_requests_end(SfResourceManager *manager)
{
    drop_requests(manager, NULL, "sfvmmd ends");
    g_clear_handle_id(&manager->wake, g_source_remove);
}
