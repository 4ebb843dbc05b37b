/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What hosts tell of the clones there.
 *
 *     clone         a result is newer than ours --> fetched in pieces --> then the report is applied
 *     complete      the host has all of the memory; the last one to have it needs no source any more
 *     working-set   what a clone there needed first, for the hosts of the next forks
 */
#include "sfvmm/control/borrow_private.h"

#include <string.h>

#include "sfvmm/control/snapshots.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/fork/remote.h"

#define RESULT_MS    15000u
#define RESULT_PIECE (512u << 10) /* bytes of a result in one answer */

/* The result of a clone that is being fetched, or was. */
typedef struct {
    guint id;
    gboolean running;
    gint64 serial; /* the host's time of the sync that is being fetched */
    gint64 done;   /* of the one that we have; 0: none */
    guint64 offset;
    JsonObject *report; /* the newest: applied when we have its result; NULL: all are */
} SfBorrowFetch;

static void fetch_step(SfHostTicket *ticket, SfBorrowFetch *fetch);

void sf_borrow_fetch_free(gpointer data)
{
    SfBorrowFetch *fetch = data;

    g_clear_pointer(&fetch->report, json_object_unref);
    g_free(fetch);
}

static SfBorrowFetch *fetch_of(SfBorrow *borrow, guint id)
{
    SfBorrowFetch *fetch = g_hash_table_lookup(borrow->fetches, GUINT_TO_POINTER(id));

    if (!fetch) {
        fetch = g_new0(SfBorrowFetch, 1);
        fetch->id = id;
        g_hash_table_insert(borrow->fetches, GUINT_TO_POINTER(id), fetch);
    }
    return fetch;
}

static void apply(SfHostTicket *ticket, SfBorrowFetch *fetch)
{
    g_autoptr(JsonObject) object = g_steal_pointer(&fetch->report);
    SfClone *clone = sf_fork_clone(ticket->fork, fetch->id);
    SfCloneReport report;

    if (clone && sf_clone_report_parse(object, &report, NULL)) {
        sf_clone_apply_report(clone, &report);
    }
}

/* The result that the newest report tells of, if we have not got it; then the report. */
static void fetch_review(SfHostTicket *ticket, SfBorrowFetch *fetch)
{
    SfCloneReport report;

    if (fetch->running || !fetch->report || !sf_clone_report_parse(fetch->report, &report, NULL)) {
        return;
    }
    if (report.synced && report.synced > fetch->done) {
        fetch->running = TRUE;
        fetch->serial = report.synced;
        fetch->offset = 0;
        fetch_step(ticket, fetch);
    } else {
        apply(ticket, fetch);
    }
}

/* One piece has come. FALSE + error: it is not what was asked for. */
static gboolean take_piece(SfHostTicket *ticket, SfBorrowFetch *fetch, JsonObject *answer, gboolean *whole,
                           GError **error)
{
    SfClone *clone = sf_fork_clone(ticket->fork, fetch->id);
    const char *text = json_object_get_string_member_with_default(answer, "data", "");
    gint64 total = json_object_get_int_member_with_default(answer, "total", -1);
    gint64 serial = json_object_get_int_member_with_default(answer, "synced", 0);
    g_autofree guchar *data = NULL;
    gsize length;

    *whole = FALSE;
    if (serial > fetch->serial) { /* it has handed back another one meanwhile */
        fetch->serial = serial;
        fetch->offset = 0;
        return TRUE;
    }
    data = g_base64_decode(text ? text : "", &length);
    if (total < 0 || length > RESULT_PIECE || (guint64)total > SF_GP_MAX_RESULT ||
        (length == 0 && fetch->offset < (guint64)total)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "it is not the piece that was asked for");
        return FALSE;
    }
    if (!sf_fork_clone_sync(clone, fetch->offset, (guint64)total, data, length, error)) {
        return FALSE;
    }
    fetch->offset += length;
    *whole = fetch->offset == (guint64)total;
    return TRUE;
}

static void on_piece(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(SfBorrowCall) call = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);
    SfHostTicket *ticket = sf_borrow_call_ticket(call);
    SfBorrowFetch *fetch = ticket ? g_hash_table_lookup(ticket->borrow->fetches, GUINT_TO_POINTER(call->count)) : NULL;
    gboolean whole = FALSE;

    if (!fetch || !fetch->running) {
        return;
    }
    if (!answer && (!sf_borrow_is_definite(error) || g_error_matches(error, SF_PEER_ERROR, SF_PEER_ERROR_NOT_UP))) {
        fetch->running = FALSE; /* sync begins it anew */
        return;
    }
    if (!answer || !take_piece(ticket, fetch, answer, &whole, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x clone %u: its result can't be fetched from host %s: %s",
                  ticket->grant->id, fetch->id, call->peer, error->message);
        whole = TRUE;
    }
    if (!whole) {
        fetch_step(ticket, fetch);
        return;
    }
    fetch->running = FALSE;
    fetch->done = fetch->serial;
    fetch_review(ticket, fetch);
}

static void fetch_step(SfHostTicket *ticket, SfBorrowFetch *fetch)
{
    SfClone *clone = sf_fork_clone(ticket->fork, fetch->id);
    SfPeer *peer = clone->host ? sf_host_peer(ticket->host, clone->host) : NULL;
    JsonObject *params;

    if (!peer) {
        fetch->running = FALSE;
        return;
    }
    params = sf_borrow_params(ticket);
    json_object_set_int_member(params, "id", fetch->id);
    json_object_set_int_member(params, "offset", (gint64)fetch->offset);
    json_object_set_int_member(params, "length", RESULT_PIECE);
    sf_peer_call_async(peer, "result", params, RESULT_MS, on_piece, sf_borrow_call_new(ticket, clone->host, fetch->id));
}

/* What a host says of a clone that is there. */
static void take_report(SfHostTicket *ticket, const char *host, JsonObject *object)
{
    g_autoptr(GError) error = NULL;
    SfCloneReport report;
    SfClone *clone;
    SfBorrowFetch *fetch;

    if (!sf_clone_report_parse(object, &report, &error)) {
        g_warning("host %s: ticket %016" G_GINT64_MODIFIER "x: %s", host, ticket->grant->id, error->message);
        return;
    }
    clone = sf_fork_clone(ticket->fork, report.id);
    if (!clone || g_strcmp0(clone->host, host) != 0) {
        return; /* it was moved elsewhere, or is none of that host's */
    }
    if (!sf_clone_is_alive(clone)) {
        if (report.state == SF_GP_STATE_STARTING || report.state == SF_GP_STATE_RUNNING) {
            sf_borrow_kill(ticket->host, clone, clone->reason);
        }
        return;
    }
    fetch = fetch_of(ticket->borrow, report.id);
    g_clear_pointer(&fetch->report, json_object_unref);
    fetch->report = json_object_ref(object);
    fetch_review(ticket, fetch);
}

void sf_borrow_take_reports(SfHostTicket *ticket, const char *host, JsonObject *answer)
{
    JsonNode *node = json_object_get_member(answer, "clones");
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    for (guint i = 0; array && i < MIN(json_array_get_length(array), SF_GP_MAX_CLONES); i++) {
        JsonNode *item = json_array_get_element(array, i);
        if (JSON_NODE_HOLDS_OBJECT(item)) {
            take_report(ticket, host, json_node_get_object(item));
        }
    }
}

/* ---- memory that is all there ---- */

gboolean sf_borrow_is_complete_at(const SfHostTicket *ticket, const char *host)
{
    return ticket->borrow && g_hash_table_contains(ticket->borrow->complete, host);
}

gboolean sf_borrow_is_complete(SfHostTicket *ticket)
{
    for (guint i = 0; ticket->borrow && ticket->fork && i < sf_fork_count(ticket->fork); i++) {
        const SfClone *clone = sf_fork_nth(ticket->fork, i);
        if (clone->host && sf_clone_is_alive(clone) && !sf_borrow_is_complete_at(ticket, clone->host)) {
            return FALSE;
        }
    }
    return TRUE;
}

void sf_borrow_complete(SfHostTicket *ticket)
{
    g_autoptr(GPtrArray) hosts = sf_borrow_hosts(ticket);

    for (guint i = 0; ticket->borrow && i < hosts->len; i++) {
        sf_borrow_tell(ticket, g_ptr_array_index(hosts, i), "complete", sf_borrow_params(ticket));
    }
}

/* The last host that lacked some needs no source: the snapshot is not kept for it any more. */
void sf_borrow_take_complete(SfHostTicket *ticket, const char *host)
{
    if (sf_ticket_count_at(ticket->grant, host) == 0 || sf_fork_is_done(ticket->fork)) {
        return;
    }
    g_hash_table_add(ticket->borrow->complete, g_strdup(host));
    if (sf_borrow_is_complete(ticket) && sf_fork_state(ticket->fork) == SF_FORK_RUNNING) {
        g_message("ticket %016" G_GINT64_MODIFIER "x: its clones on other hosts have all of their memory",
                  ticket->grant->id);
        sf_borrow_withdraw_pages(ticket->borrow);
        sf_fork_source_done(ticket->fork);
    }
}

/* ---- events ---- */

/* What a clone there needed first: given to the hosts of the next forks. The longest is kept. */
static void take_working_set(SfHostTicket *ticket, JsonObject *data)
{
    g_autoptr(GBytes) runs = sf_working_set_from_json(data, "runs");
    SfFamily *family = ticket->family;

    if (runs && (!family->working_set || g_bytes_get_size(runs) > g_bytes_get_size(family->working_set))) {
        sf_host_family_set_working_set(ticket->host, family, runs); /* checked by who uses it */
        if (ticket->saved) {
            sf_snapshots_note_working_set(sf_snapshots_of(ticket->host), ticket->saved, runs);
        }
    }
}

void sf_borrow_event(SfHost *host, SfPeer *peer, const char *name, JsonObject *data)
{
    SfHostTicket *ticket = sf_borrow_ticket(host, json_object_get_string_member_with_default(data, "ticket", NULL));
    JsonNode *node = json_object_get_member(data, "clone");

    if (strcmp(name, "clone") == 0 && ticket && node && JSON_NODE_HOLDS_OBJECT(node)) {
        take_report(ticket, sf_peer_name(peer), json_node_get_object(node));
    } else if (strcmp(name, "complete") == 0 && ticket) {
        sf_borrow_take_complete(ticket, sf_peer_name(peer));
    } else if (strcmp(name, "working-set") == 0 && ticket && sf_ticket_count_at(ticket->grant, sf_peer_name(peer))) {
        take_working_set(ticket, data);
    }
}
