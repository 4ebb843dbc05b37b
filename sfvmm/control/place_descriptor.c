/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/place_descriptor.h"

#include <string.h>

#include "sfvmm/pager/multicast_blob.h"
#include "sfvmm/store/sha256.h"

#define MEMBER        "descriptor"
#define MEMBER_LENGTH "descriptor_length"
#define MEMBER_DIGEST "descriptor_digest"
#define ASK_MS        10000u /* with the bound of multicast_blob far below the origin's patience with "place" */

/* ---- origin ---- */

void sf_place_descriptor_add(JsonObject *object, GBytes *descriptor)
{
    g_autofree char *text = g_base64_encode(g_bytes_get_data(descriptor, NULL), g_bytes_get_size(descriptor));

    json_object_set_string_member(object, MEMBER, text);
}

char *sf_place_descriptor_send(SfPager *server, GBytes *descriptor)
{
    char *digest = sf_sha256_of_bytes(descriptor);

    sf_multicast_blob_send(server, digest, descriptor);
    return digest;
}

void sf_place_descriptor_add_digest(JsonObject *params, GBytes *descriptor, const char *digest)
{
    json_object_set_int_member(params, MEMBER_LENGTH, (gint64)g_bytes_get_size(descriptor));
    json_object_set_string_member(params, MEMBER_DIGEST, digest);
}

gboolean sf_place_descriptor_can_be_sent(GBytes *descriptor)
{
    return g_bytes_get_size(descriptor) <= SF_MULTICAST_BLOB_MAX;
}

/* ---- the others ---- */

/* Task data. */
typedef struct {
    SfHost *host;
    char *origin, *digest;
    guint64 ticket;
} Wanted;

static void wanted_free(gpointer data)
{
    Wanted *wanted = data;

    g_object_unref(wanted->host);
    g_free(wanted->origin);
    g_free(wanted->digest);
    g_free(wanted);
}

/* What "descriptor" says. NULL: it is missing, or no text. */
static GBytes *bytes_of(JsonObject *object)
{
    JsonNode *node = json_object_get_member(object, MEMBER);
    const char *text = node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : NULL;
    gsize length = 0;
    guchar *data = text ? g_base64_decode(text, &length) : NULL;

    return data ? g_bytes_new_take(data, length) : NULL;
}

static gboolean has_digest(GBytes *bytes, const char *digest)
{
    g_autofree char *own = sf_sha256_of_bytes(bytes);

    return g_ascii_strcasecmp(own, digest) == 0;
}

/* Takes the task. */
static void fail(GTask *task, SfPeerError code, const char *text)
{
    g_task_return_new_error(task, SF_PEER_ERROR, code, "%s", text);
    g_object_unref(task);
}

static void on_answer(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    const Wanted *wanted = g_task_get_task_data(task);
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = sf_peer_call_finish(result, &error);
    g_autoptr(GBytes) bytes = answer ? bytes_of(answer) : NULL;

    if (bytes && has_digest(bytes, wanted->digest)) {
        g_task_return_pointer(task, g_steal_pointer(&bytes), (GDestroyNotify)g_bytes_unref);
        g_object_unref(task);
    } else {
        fail(task, SF_PEER_ERROR_FAILED, answer ? "the descriptor is not what its digest says" : error->message);
    }
}

/* Takes the task. */
static void ask_origin(GTask *task, const char *reason)
{
    const Wanted *wanted = g_task_get_task_data(task);
    SfPeer *peer = sf_host_peer(wanted->host, wanted->origin);
    g_autofree char *id = sf_ticket_id_to_text(wanted->ticket);
    JsonObject *params;

    if (!peer) {
        fail(task, SF_PEER_ERROR_LOST, "the connection has ended");
        return;
    }
    g_message("ticket %s: its descriptor is fetched from host %s: %s", id, wanted->origin, reason);
    params = json_object_new();
    json_object_set_string_member(params, "ticket", id);
    sf_peer_call_async(peer, MEMBER, params, ASK_MS, on_answer, task);
}

static void on_blob(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    const Wanted *wanted = g_task_get_task_data(task);
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) bytes = sf_multicast_blob_receive_finish(result, &error);

    if (bytes && has_digest(bytes, wanted->digest)) {
        g_task_return_pointer(task, g_steal_pointer(&bytes), (GDestroyNotify)g_bytes_unref);
        g_object_unref(task);
    } else {
        ask_origin(task, bytes ? "what the multicast group has brought is not what its digest says" : error->message);
    }
}

/* Of a descriptor that is not in params. */
static gboolean parse_digest(JsonObject *params, const char **digest, gint64 *length)
{
    JsonNode *text = json_object_get_member(params, MEMBER_DIGEST);
    JsonNode *number = json_object_get_member(params, MEMBER_LENGTH);
    guint64 id;

    *digest = text && json_node_get_value_type(text) == G_TYPE_STRING ? json_node_get_string(text) : NULL;
    *length = number && json_node_get_value_type(number) == G_TYPE_INT64 ? json_node_get_int(number) : 0;
    return *digest && sf_pager_blob_id(*digest, &id) && *length > 0 && *length <= SF_MULTICAST_BLOB_MAX;
}

void sf_place_descriptor_get_async(SfHostTicket *ticket, JsonObject *params, GAsyncReadyCallback callback,
                                   gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    GBytes *bytes = bytes_of(params);
    Wanted *wanted;
    const char *digest;
    gint64 length;

    if (bytes) {
        g_task_return_pointer(task, bytes, (GDestroyNotify)g_bytes_unref);
        g_object_unref(task);
        return;
    }
    if (!parse_digest(params, &digest, &length)) {
        fail(task, SF_PEER_ERROR_BAD_REQUEST, "\"" MEMBER "\" must be a text, or have a digest and a length");
        return;
    }
    wanted = g_new0(Wanted, 1);
    wanted->host = g_object_ref(ticket->host);
    wanted->origin = g_strdup(ticket->grant->origin);
    wanted->digest = g_strdup(digest);
    wanted->ticket = ticket->grant->id;
    g_task_set_task_data(task, wanted, wanted_free);
    sf_multicast_blob_receive_async(ticket->pager, digest, (gsize)length, on_blob, task);
}

GBytes *sf_place_descriptor_get_finish(GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}
