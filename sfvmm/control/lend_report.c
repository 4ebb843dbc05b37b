/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the origin of a lent ticket learns of its clones: each change of one, what it handed back, and which pages the
 * first of them needed (its working set, for the hosts of the next forks).
 */
#include "sfvmm/control/lend_private.h"

#include <string.h>

#include "sfvmm/cluster/peer_params.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/fork/fork_record.h"
#include "sfvmm/fork/remote.h"

#define RESULT_PIECE_MAX (512 << 10)
#define RECORD_MS        3000u /* after the order: what the first clone has touched by then is its working set */

/*
 * A clone that has forked is not told to have ended while clones of it live, or clones of those: what they lack of
 * memory and disks still comes from the origin, which stops giving it when the last of its own has ended.
 */
static gboolean end_is_held(SfHostTicket *ticket, const SfClone *clone)
{
    g_autoptr(GList) tickets = sf_clone_is_alive(clone) || !ticket->pager ? NULL : sf_host_tickets(ticket->host);

    for (GList *item = tickets; item; item = item->next) {
        const SfHostTicket *other = item->data;
        if (other != ticket && other->pager == ticket->pager && other->fork && sf_fork_alive(other->fork) > 0 &&
            g_str_has_prefix(other->grant->vm, clone->name)) {
            return TRUE;
        }
    }
    return FALSE;
}

static JsonObject *report_of(SfHostTicket *ticket, const SfClone *clone)
{
    JsonObject *report = sf_clone_report(clone);

    if (end_is_held(ticket, clone)) {
        json_object_set_string_member(report, "state", sf_clone_state_name(SF_GP_STATE_RUNNING));
        json_object_set_int_member(report, "exited", 0);
    }
    return report;
}

JsonArray *sf_lend_reports(SfHostTicket *ticket)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; ticket->fork && i < sf_fork_count(ticket->fork); i++) {
        json_array_add_object_element(array, report_of(ticket, sf_fork_nth(ticket->fork, i)));
    }
    return array;
}

void sf_lend_result(SfHost *host, SfPeerRequest *request)
{
    JsonObject *params = sf_peer_request_params(request), *result;
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) data = NULL;
    g_autoptr(JsonObject) report = NULL;
    g_autofree char *text = NULL;
    SfHostTicket *ticket = sf_lend_ticket(host, sf_peer_request_from(request), params, &error);
    gint64 id, offset, length;
    SfClone *clone;

    if (!ticket || !sf_peer_param_int(params, "id", 1, SF_GP_MAX_CLONES, &id, &error) ||
        !sf_peer_param_int(params, "offset", 0, SF_GP_MAX_RESULT, &offset, &error) ||
        !sf_peer_param_int(params, "length", 1, RESULT_PIECE_MAX, &length, &error)) {
        sf_peer_request_fail(request, error);
        return;
    }
    clone = ticket->fork ? sf_fork_clone(ticket->fork, (guint)id) : NULL;
    if (!clone) {
        error = g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_GONE, "clone %" G_GINT64_FORMAT " is not here", id);
        sf_peer_request_fail(request, error);
        return;
    }
    data = sf_fork_clone_fetch(clone, (guint64)offset, (gsize)length, &error);
    if (!data) {
        sf_peer_request_fail(request, error);
        return;
    }
    text = g_base64_encode(g_bytes_get_data(data, NULL), g_bytes_get_size(data));
    report = sf_clone_report(clone);
    result = json_object_new();
    json_object_set_string_member(result, "data", text);
    json_object_set_int_member(result, "total", (gint64)clone->result_length);
    json_object_set_int_member(result, "synced", json_object_get_int_member(report, "synced"));
    sf_peer_request_reply(request, result);
}

/* ---- working sets ---- */

/* What a call to the pager needs when it is answered. */
typedef struct {
    SfHost *host;
    guint64 ticket;
} Call;

static Call *call_new(SfHostTicket *ticket)
{
    Call *call = g_new0(Call, 1);

    call->host = g_object_ref(ticket->host);
    call->ticket = ticket->grant->id;
    return call;
}

static void call_free(Call *call)
{
    g_object_unref(call->host);
    g_free(call);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Call, call_free)

static SfLend *call_lend(const Call *call)
{
    SfHostTicket *ticket = sf_host_ticket(call->host, call->ticket, NULL);

    return ticket ? ticket->lend : NULL;
}

static void on_recorded(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Call) call = data;
    g_autoptr(GArray) runs = sf_pager_working_set_finish(SF_PAGER(source), result, NULL);
    SfLend *lend = call_lend(call);
    JsonObject *object;

    if (lend && runs && runs->len > 0) {
        g_autoptr(GBytes) packed = sf_working_set_pack(runs);
        object = json_object_new();
        sf_working_set_to_json(packed, object, "runs");
        sf_lend_tell_origin(lend->ticket, "working-set", object);
    }
}

static void record(SfLend *lend)
{
    if (lend->ticket->pager) {
        sf_pager_working_set_async(lend->ticket->pager, on_recorded, call_new(lend->ticket));
    }
}

static gboolean on_record_timer(gpointer data)
{
    SfLend *lend = data;

    lend->record_timer = 0;
    record(lend);
    return G_SOURCE_REMOVE;
}

void sf_lend_record_later(SfLend *lend)
{
    lend->record_timer = g_timeout_add(RECORD_MS, on_record_timer, lend);
}

/* Its sf_clone() returns: what it took to get there is known, even if the fork is over before the timer. */
static void record_answer(SfLend *lend, const SfClone *clone)
{
    if (lend->record_timer && clone->answered && !lend->answer_recorded) {
        lend->answer_recorded = TRUE;
        record(lend);
    }
}

void sf_lend_done(SfHostTicket *ticket)
{
    if (ticket->lend && ticket->lend->record_timer) {
        g_clear_handle_id(&ticket->lend->record_timer, g_source_remove);
        record(ticket->lend);
    }
}

/* ---- told at once ---- */

void sf_lend_clone_changed(SfHostTicket *ticket, SfClone *clone)
{
    JsonObject *data = json_object_new();

    json_object_set_object_member(data, "clone", report_of(ticket, clone));
    sf_lend_tell_origin(ticket, "clone", data);
    if (ticket->lend) {
        record_answer(ticket->lend, clone);
    }
}

void sf_lend_pager_used_less(SfHost *host, SfPager *pager)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        for (guint i = 0;
             ticket->grant->origin && ticket->pager == pager && ticket->fork && i < sf_fork_count(ticket->fork); i++) {
            SfClone *clone = sf_fork_nth(ticket->fork, i);
            if (!sf_clone_is_alive(clone)) {
                sf_lend_clone_changed(ticket, clone);
            }
        }
    }
}
