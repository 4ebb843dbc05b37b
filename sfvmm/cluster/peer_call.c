/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     sf_peer_call_async() --> Call, in peer->calls --request--> peer
 *                                 | <-- answer, timeout, or the link ends
 *     handlers.request()  <-- SfPeerRequest <--request--  peer
 *                                 | --> sf_peer_request_reply(), _fail()
 *
 * Everything that a call waits for is bound to its link: when that ends, the calls end with it. A request outlives the
 * link that it came over, and even SfPeers; its answer goes nowhere then.
 */
#include "sfvmm/cluster/peer_private.h"

#include <string.h>

#include "sfvmm/cluster/resource_manager.h"

#define REQUESTS_MAX 1024u /* of one peer, not answered yet */
#define CALLS_MAX    4096u /* to one peer, not answered yet */

typedef struct {
    SfPeer *peer;
    guint64 id;
    GTask *task;
    guint timer;
    guint timeout_ms;
    char *method;
} Call;

struct SfPeerRequest {
    SfPeers *peers;
    char *from, *method;
    guint64 id, serial;
    JsonObject *params;
};

/* ---- calls ---- */

static void call_free(Call *call)
{
    g_clear_handle_id(&call->timer, g_source_remove);
    g_object_unref(call->task);
    g_free(call->method);
    g_free(call);
}

GHashTable *sf_peer_calls_new(void)
{
    return g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, (GDestroyNotify)call_free);
}

/* Takes the call out of the peer's table; it answers with error, or result (takes it). */
static void call_return(Call *call, JsonObject *result, GError *error)
{
    g_autoptr(GTask) task = g_object_ref(call->task);

    g_hash_table_remove(call->peer->calls, &call->id);
    if (error) {
        g_task_return_error(task, error);
    } else {
        g_task_return_pointer(task, result, (GDestroyNotify)json_object_unref);
    }
}

static gboolean on_call_timeout(gpointer data)
{
    Call *call = data;

    call->timer = 0;
    call_return(call, NULL,
                g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_TIMEOUT, "host \"%s\": %s: no answer within %u ms",
                            call->peer->name, call->method, call->timeout_ms));
    return G_SOURCE_REMOVE;
}

void sf_peer_call_async(SfPeer *peer, const char *method, JsonObject *params, guint timeout_ms,
                        GAsyncReadyCallback callback, gpointer data)
{
    g_autoptr(GTask) task = g_task_new(NULL, NULL, callback, data);
    g_autoptr(JsonObject) object = NULL, owned G_GNUC_UNUSED = params;
    g_autoptr(GError) error = NULL;
    SfPeerMessage message = { .kind = SF_PEER_REQUEST, .word = method, .body = params };
    Call *call;

    if (!peer->link) {
        g_task_return_new_error(task, SF_PEER_ERROR, SF_PEER_ERROR_NOT_UP, "host \"%s\": it is not connected%s%s",
                                peer->name, peer->reason ? ": " : "", peer->reason ? peer->reason : "");
        return;
    }
    if (g_hash_table_size(peer->calls) >= CALLS_MAX) {
        g_task_return_new_error(task, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "host \"%s\": %u calls wait for it already",
                                peer->name, CALLS_MAX);
        return;
    }
    message.id = ++peer->last_id;
    object = sf_peer_message_format(&message);
    if (!sf_peer_link_send(peer->link, object, &error)) {
        g_task_return_new_error(task, error->domain, error->code, "host \"%s\": %s: %s", peer->name, method,
                                error->message);
        return;
    }
    call = g_new0(Call, 1);
    call->peer = peer;
    call->id = message.id;
    call->task = g_steal_pointer(&task);
    call->method = g_strdup(method);
    call->timeout_ms = timeout_ms;
    call->timer = g_timeout_add(timeout_ms, on_call_timeout, call);
    g_hash_table_insert(peer->calls, &call->id, call);
}

JsonObject *sf_peer_call_finish(GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

void sf_peer_fail_calls(SfPeer *peer, const char *reason)
{
    g_autoptr(GList) calls = g_hash_table_get_values(peer->calls);

    for (GList *item = calls; item; item = item->next) {
        Call *call = item->data;
        call_return(call, NULL,
                    g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_LOST, "host \"%s\": %s: the connection was lost: %s",
                                peer->name, call->method, reason));
    }
}

/* Codes of answers, as they go over the wire. */
static const struct {
    SfPeerError error;
    const char *code;
} codes[] = {
    { SF_PEER_ERROR_REFUSED, "refused" }, { SF_PEER_ERROR_NO_CAPACITY, "no-capacity" },
    { SF_PEER_ERROR_GONE, "gone" },       { SF_PEER_ERROR_BAD_REQUEST, "bad-request" },
    { SF_PEER_ERROR_FAILED, "failed" },
};

static SfPeerError error_of_code(const char *code)
{
    for (guint i = 0; i < G_N_ELEMENTS(codes); i++) {
        if (strcmp(codes[i].code, code) == 0) {
            return codes[i].error;
        }
    }
    return SF_PEER_ERROR_FAILED;
}

static const char *code_of_error(const GError *error)
{
    if (error->domain == SF_CLUSTER_ERROR) {
        return "no-capacity";
    }
    for (guint i = 0; error->domain == SF_PEER_ERROR && i < G_N_ELEMENTS(codes); i++) {
        if ((int)codes[i].error == error->code) {
            return codes[i].code;
        }
    }
    return "failed";
}

void sf_peer_take_answer(SfPeer *peer, const SfPeerMessage *message)
{
    Call *call = g_hash_table_lookup(peer->calls, &message->id);

    if (!call) {
        return; /* we did not want to wait for it any longer */
    }
    if (message->kind == SF_PEER_RESULT) {
        call_return(call, json_object_ref(message->body), NULL);
    } else {
        call_return(call, NULL,
                    g_error_new(SF_PEER_ERROR, error_of_code(message->word), "host \"%s\": %s: %s", peer->name,
                                call->method, message->text));
    }
}

/* ---- requests ---- */

void sf_peer_take_request(SfPeer *peer, const SfPeerMessage *message)
{
    SfPeers *peers = peer->peers;
    SfPeerRequest *request;

    if (peer->requests >= REQUESTS_MAX) {
        sf_peer_link_end(peer->link, g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_PROTOCOL,
                                                 "more than %u requests of it wait for an answer", REQUESTS_MAX));
        return;
    }
    request = g_new0(SfPeerRequest, 1);
    request->peers = peers;
    peers->refs++;
    request->from = g_strdup(peer->name);
    request->method = g_strdup(message->word);
    request->id = message->id;
    request->serial = peer->serial;
    request->params = message->body ? json_object_ref(message->body) : json_object_new();
    peer->requests++;
    if (peers->handlers.request) {
        peers->handlers.request(request, peers->owner);
    } else {
        g_autoptr(GError) error =
            g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_BAD_REQUEST, "method \"%s\": not known", message->word);
        sf_peer_request_fail(request, error);
    }
}

SfPeer *sf_peer_request_peer(SfPeerRequest *request)
{
    SfPeer *peer = request->peers->gone ? NULL : sf_peers_get(request->peers, request->from);

    return peer && peer->link && peer->serial == request->serial ? peer : NULL;
}

const char *sf_peer_request_from(const SfPeerRequest *request)
{
    return request->from;
}

const char *sf_peer_request_method(const SfPeerRequest *request)
{
    return request->method;
}

JsonObject *sf_peer_request_params(const SfPeerRequest *request)
{
    return request->params;
}

static void request_answer(SfPeerRequest *request, SfPeerMessage *message)
{
    SfPeer *peer = sf_peer_request_peer(request);

    if (peer) {
        g_autoptr(JsonObject) object = NULL;
        g_autoptr(GError) error = NULL;
        message->id = request->id;
        object = sf_peer_message_format(message);
        if (!sf_peer_link_send(peer->link, object, &error)) {
            const SfPeerMessage failure = {
                .kind = SF_PEER_FAILURE, .id = request->id, .word = "failed", .text = error->message
            };
            g_autoptr(JsonObject) instead = sf_peer_message_format(&failure);
            sf_peer_link_send(peer->link, instead, NULL);
        }
        peer->requests--;
    }
    sf_peers_unref(request->peers);
    json_object_unref(request->params);
    g_free(request->from);
    g_free(request->method);
    g_free(request);
}

void sf_peer_request_reply(SfPeerRequest *request, JsonObject *result)
{
    g_autoptr(JsonObject) owned G_GNUC_UNUSED = result;
    SfPeerMessage message = { .kind = SF_PEER_RESULT, .body = result };

    request_answer(request, &message);
}

void sf_peer_request_fail(SfPeerRequest *request, const GError *error)
{
    SfPeerMessage message = { .kind = SF_PEER_FAILURE, .word = code_of_error(error), .text = error->message };

    request_answer(request, &message);
}

gboolean sf_peer_send_event(SfPeer *peer, const char *name, JsonObject *data)
{
    const SfPeerMessage message = { .kind = SF_PEER_EVENT, .word = name, .body = data };
    g_autoptr(JsonObject) object = NULL, owned G_GNUC_UNUSED = data;
    g_autoptr(GError) error = NULL;

    if (!peer->link) {
        return FALSE;
    }
    object = sf_peer_message_format(&message);
    if (!sf_peer_link_send(peer->link, object, &error)) {
        g_warning("host \"%s\": event %s: %s", peer->name, name, error->message);
        return FALSE;
    }
    return TRUE;
}
