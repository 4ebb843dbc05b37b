/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The methods ticket.*, clone, join, complete, result and kill of the control protocol. */
#include <string.h>

#include "sfvmm/control/api_method.h"
#include "sfvmm/control/api_wait.h"
#include "sfvmm/control/borrow.h"
#include "sfvmm/control/describe.h"

#define RESULT_CHUNK_MAX (512u << 10) /* bytes of a result in one answer; base64 of it fits a line */

#define TEXT    SF_API_TEXT
#define INTEGER SF_API_INTEGER
#define BOOLEAN SF_API_BOOLEAN

/* The callback has data; nothing is called when the parameters are wrong, and the call has been answered. */
static gboolean request_ticket(SfHost *host, JsonObject *params, gboolean all, SfCall *call,
                               GAsyncReadyCallback callback, gpointer data)
{
    SfHostVm *hvm = sf_api_vm(host, params, call);
    SfHostTicketOrder order = { .all = all };
    gint64 count, queue_ms;

    if (!hvm || !sf_api_int(params, "count", 1, SF_GP_MAX_CLONES, 0, &count, call) ||
        !sf_api_int(params, "queue_ms", 0, SF_API_TIMEOUT_MAX_MS, 0, &queue_ms, call)) {
        return FALSE;
    }
    order.count = (guint)count;
    order.queue_ms = (guint)queue_ms;
    sf_host_request_ticket_async(host, hvm, &order, callback, data);
    return TRUE;
}

static void on_ticket(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_host_request_ticket_finish(SF_HOST(source), result, &error);

    if (ticket) {
        sf_api_reply_with(data, "ticket", sf_describe_ticket(ticket));
    } else {
        sf_call_fail(data, error);
    }
}

static void api_ticket_request(SfHost *host, JsonObject *params, SfCall *call)
{
    request_ticket(host, params, sf_api_flag(params, "all", FALSE), call, on_ticket, call);
}

static void api_ticket_list(SfHost *host, JsonObject *params, SfCall *call)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);
    JsonObject *result = json_object_new();
    JsonArray *array = json_array_new();

    for (GList *item = tickets; item; item = item->next) {
        json_array_add_object_element(array, sf_describe_ticket(item->data));
    }
    json_object_set_array_member(result, "tickets", array);
    sf_call_reply(call, result);
}

static void api_ticket_status(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostTicket *ticket = sf_api_ticket(host, params, call);

    if (ticket) {
        sf_api_reply_with(call, "ticket", sf_describe_ticket(ticket));
    }
}

/* ---- clone ---- */

static gboolean clone_wait_is_over(const SfApiWait *wait)
{
    SfFork *fork = SF_FORK(wait->object);

    return wait->answered ? sf_fork_is_answered(fork) : sf_fork_is_placed(fork);
}

static void clone_wait_finish(SfApiWait *wait)
{
    SfFork *fork = SF_FORK(wait->object);
    SfHostTicket *ticket = sf_api_wait_ticket(wait);

    if (!ticket) {
        return;
    }
    if (sf_fork_state(fork) == SF_FORK_FAILED) {
        if (sf_fork_is_refused(fork)) {
            g_autoptr(GError) error = g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_REFUSED, sf_fork_reason(fork));
            sf_call_fail(wait->call, error);
        } else {
            sf_api_fail(wait->call, SF_HOST_ERROR_FAILED, "VM \"%s\": fork failed: %s", sf_fork_parent_name(fork),
                        sf_fork_reason(fork));
        }
        sf_host_release_ticket_later(ticket);
    } else {
        sf_api_reply_with(wait->call, "ticket", sf_describe_ticket(ticket));
    }
    sf_api_wait_free(wait);
}

static void on_clone_signal(SfFork *fork, SfApiWait *wait)
{
    if (clone_wait_is_over(wait)) {
        clone_wait_finish(wait);
    }
}

static void on_clone_changed(SfFork *fork, SfClone *clone, SfApiWait *wait)
{
    on_clone_signal(fork, wait);
}

void sf_api_wait_for_clones(SfCall *call, SfHostTicket *ticket, gint64 timeout_ms, const char *until)
{
    SfApiWait *wait = sf_api_wait_new_for_ticket(call, ticket, timeout_ms,
                                                 g_strdup_printf("VM \"%s\": its clones", ticket->grant->vm));

    wait->answered = until ? strcmp(until, "answered") == 0 : sf_fork_with_agent(ticket->fork);
    if (clone_wait_is_over(wait)) {
        clone_wait_finish(wait);
        return;
    }
    sf_api_wait_watch(wait, ticket->fork, "changed", G_CALLBACK(on_clone_changed));
    sf_api_wait_watch(wait, ticket->fork, "placed", G_CALLBACK(on_clone_signal));
}

/* A clone call whose parameters are right. */
typedef struct {
    SfCall *call;
    gint64 timeout;
    char *until; /* "resumed", "answered", or NULL */
    gboolean has_avoid;
    guint avoid; /* SF_AVOID_*, if it is given */
} CloneCall;

static void clone_call_free(CloneCall *clone)
{
    g_free(clone->until);
    g_free(clone);
}

/* Frees clone. */
static void clone_with(SfHost *host, SfHostTicket *ticket, CloneCall *clone)
{
    g_autoptr(GError) error = NULL;

    if (clone->has_avoid) {
        ticket->grant->avoid = clone->avoid;
    }
    if (!sf_host_fork(host, ticket, 0, &error)) {
        sf_call_fail(clone->call, error);
        clone_call_free(clone);
        return;
    }
    sf_api_wait_for_clones(clone->call, ticket, clone->timeout, clone->until);
    clone_call_free(clone);
}

static void on_clone_ticket(GObject *source, GAsyncResult *result, gpointer data)
{
    CloneCall *clone = data;
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_host_request_ticket_finish(SF_HOST(source), result, &error);

    if (ticket) {
        clone_with(SF_HOST(source), ticket, clone);
    } else {
        sf_call_fail(clone->call, error);
        clone_call_free(clone);
    }
}

static void api_clone(SfHost *host, JsonObject *params, SfCall *call)
{
    const char *until = sf_api_text(params, "wait"), *avoid = sf_api_text(params, "avoid");
    g_autoptr(GError) error = NULL;
    guint what = 0;
    SfHostTicket *ticket;
    gint64 timeout;
    CloneCall *clone;

    if (until && strcmp(until, "resumed") != 0 && strcmp(until, "answered") != 0) {
        sf_api_fail(call, SF_HOST_ERROR_BAD_PARAMS, "clone: parameter \"wait\" must be \"resumed\" or \"answered\"");
        return;
    }
    if (json_object_has_member(params, "ticket") == json_object_has_member(params, "vm")) {
        sf_api_fail(call, SF_HOST_ERROR_BAD_PARAMS, "clone: either \"ticket\" or \"vm\" and \"count\" must be given");
        return;
    }
    if (!sf_api_int(params, "timeout_ms", 0, SF_API_TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    if (avoid && !sf_avoid_parse(avoid, &what, &error)) {
        sf_api_fail(call, SF_HOST_ERROR_BAD_PARAMS, "clone: parameter \"avoid\": %s", error->message);
        return;
    }
    clone = g_new0(CloneCall, 1);
    *clone = (CloneCall){ call, timeout, g_strdup(until), avoid != NULL, what };
    if (!json_object_has_member(params, "ticket")) {
        if (!request_ticket(host, params, FALSE, call, on_clone_ticket, clone)) {
            clone_call_free(clone);
        }
        return;
    }
    ticket = sf_api_ticket(host, params, call);
    if (ticket) {
        clone_with(host, ticket, clone);
    } else {
        clone_call_free(clone);
    }
}

/* ---- join, result, kill ---- */

static void join_finish(SfApiWait *wait)
{
    SfHostTicket *ticket = sf_api_wait_ticket(wait);

    if (!ticket) {
        return;
    }
    sf_api_reply_with(wait->call, "ticket", sf_describe_ticket(ticket));
    if (wait->release) {
        sf_host_release_ticket_later(ticket);
    }
    sf_api_wait_free(wait);
}

static void on_join_done(SfFork *fork, SfApiWait *wait)
{
    join_finish(wait);
}

static void api_join(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostTicket *ticket = sf_api_ticket(host, params, call);
    gint64 timeout;
    SfApiWait *wait;

    if (!ticket || !sf_api_int(params, "timeout_ms", 0, SF_API_TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    if (!ticket->fork) {
        sf_api_fail(call, SF_HOST_ERROR_BUSY, "ticket %s: it has not forked, so there is nothing to join",
                    sf_api_text(params, "ticket"));
        return;
    }
    wait = sf_api_wait_new_for_ticket(call, ticket, timeout,
                                      g_strdup_printf("ticket %s: clones still run", sf_api_text(params, "ticket")));
    wait->release = sf_api_flag(params, "release", TRUE);
    if (sf_fork_is_done(ticket->fork)) {
        join_finish(wait);
    } else {
        sf_api_wait_watch(wait, ticket->fork, "done", G_CALLBACK(on_join_done));
    }
}

/* Over when the other hosts have it all, and those clones here whose memory comes from elsewhere. */
static void complete_review(SfApiWait *wait)
{
    SfHostTicket *ticket = sf_api_wait_ticket(wait);

    if (ticket && sf_borrow_is_complete(ticket) && (!ticket->pager || sf_pager_is_complete(ticket->pager))) {
        sf_api_reply_with(wait->call, "ticket", sf_describe_ticket(ticket));
        sf_api_wait_free(wait);
    }
}

static void on_pager_complete(SfPager *pager, SfApiWait *wait)
{
    complete_review(wait);
}

static void on_pager_lost(SfPager *pager, const char *reason, SfApiWait *wait)
{
    sf_api_fail(wait->call, SF_HOST_ERROR_FAILED, "%s: %s", wait->what, reason);
    sf_api_wait_free(wait);
}

static void on_complete_changed(SfFork *fork, SfClone *clone, SfApiWait *wait)
{
    complete_review(wait);
}

static void api_complete(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostTicket *ticket = sf_api_ticket(host, params, call);
    g_autoptr(GError) error = NULL;
    gint64 timeout;
    SfApiWait *wait;

    if (!ticket || !sf_api_int(params, "timeout_ms", 0, SF_API_TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    if (!ticket->fork || !sf_fork_is_placed(ticket->fork)) {
        sf_api_fail(call, SF_HOST_ERROR_BUSY, "ticket %s: it has no clones yet", sf_api_text(params, "ticket"));
        return;
    }
    if (ticket->pager && !sf_pager_complete(ticket->pager, &error)) {
        sf_call_fail(call, error);
        return;
    }
    sf_borrow_complete(ticket);
    wait = sf_api_wait_new_for_ticket(
        call, ticket, timeout,
        g_strdup_printf("ticket %s: memory is still being fetched", sf_api_text(params, "ticket")));
    sf_api_wait_watch(wait, ticket->fork, "changed", G_CALLBACK(on_complete_changed));
    if (ticket->pager) {
        sf_api_wait_watch(wait, ticket->pager, "complete", G_CALLBACK(on_pager_complete));
        sf_api_wait_watch(wait, ticket->pager, "lost", G_CALLBACK(on_pager_lost));
    }
    complete_review(wait);
}

static void api_result(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostTicket *ticket = sf_api_ticket(host, params, call);
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) data = NULL;
    g_autofree char *text = NULL;
    gint64 id, offset, length;
    JsonObject *result;
    SfClone *clone;

    if (!ticket || !sf_api_int(params, "id", 1, SF_GP_MAX_CLONES, 0, &id, call) ||
        !sf_api_int(params, "offset", 0, SF_GP_MAX_RESULT, 0, &offset, call) ||
        !sf_api_int(params, "length", 1, RESULT_CHUNK_MAX, RESULT_CHUNK_MAX, &length, call)) {
        return;
    }
    clone = ticket->fork ? sf_fork_clone(ticket->fork, (guint)id) : NULL;
    if (!clone) {
        sf_api_fail(call, SF_HOST_ERROR_BAD_PARAMS, "ticket %s: it has no clone %" G_GINT64_FORMAT,
                    sf_api_text(params, "ticket"), id);
        return;
    }
    data = sf_fork_clone_fetch(clone, (guint64)offset, (gsize)length, &error);
    if (!data) {
        sf_call_fail(call, error);
        return;
    }
    text = g_base64_encode(g_bytes_get_data(data, NULL), g_bytes_get_size(data));
    result = json_object_new();
    json_object_set_string_member(result, "data", text);
    json_object_set_int_member(result, "length", (gint64)g_bytes_get_size(data));
    json_object_set_int_member(result, "total", (gint64)clone->result_length);
    sf_call_reply(call, result);
}

static void api_kill(SfHost *host, JsonObject *params, SfCall *call)
{
    gboolean by_ticket = json_object_has_member(params, "ticket");
    JsonObject *result;
    gint64 killed = 1;

    if (by_ticket == json_object_has_member(params, "vm")) {
        sf_api_fail(call, SF_HOST_ERROR_BAD_PARAMS, "kill: either \"ticket\" or \"vm\" must be given");
        return;
    }
    if (by_ticket) {
        SfHostTicket *ticket = sf_api_ticket(host, params, call);
        if (!ticket) {
            return;
        }
        killed = ticket->fork ? sf_fork_alive(ticket->fork) : 0;
        if (ticket->fork) {
            sf_fork_kill(ticket->fork, "killed by an operator");
        } else {
            sf_host_release_ticket(host, ticket);
        }
    } else {
        SfHostVm *hvm = sf_api_vm(host, params, call);
        if (!hvm) {
            return;
        }
        sf_api_end_vm(host, hvm);
    }
    result = json_object_new();
    json_object_set_int_member(result, "killed", killed);
    sf_call_reply(call, result);
}

/* ---- the table ---- */

/* clang-format off */
#define VM_REQUIRED      { "vm", TEXT, TRUE }
#define TICKET_REQUIRED  { "ticket", TEXT, TRUE }
#define TIMEOUT          { "timeout_ms", INTEGER, FALSE }

const SfApiMethod sf_api_ticket_methods[] = {
    { "ticket.request", api_ticket_request, { VM_REQUIRED, { "count", INTEGER, TRUE }, { "all", BOOLEAN, FALSE },
      { "queue_ms", INTEGER, FALSE } } },
    { "ticket.list", api_ticket_list, { { 0 } } },
    { "ticket.status", api_ticket_status, { TICKET_REQUIRED } },
    { "clone", api_clone, { { "vm", TEXT, FALSE }, { "count", INTEGER, FALSE }, { "queue_ms", INTEGER, FALSE },
      { "ticket", TEXT, FALSE },
      { "wait", TEXT, FALSE }, { "avoid", TEXT, FALSE }, TIMEOUT } },
    { "join", api_join, { TICKET_REQUIRED, { "release", BOOLEAN, FALSE }, TIMEOUT } },
    { "complete", api_complete, { TICKET_REQUIRED, TIMEOUT } },
    { "result", api_result, { TICKET_REQUIRED, { "id", INTEGER, TRUE }, { "offset", INTEGER, FALSE },
      { "length", INTEGER, FALSE } } },
    { "kill", api_kill, { { "ticket", TEXT, FALSE }, { "vm", TEXT, FALSE } } },
    { 0 },
};
/* clang-format on */
