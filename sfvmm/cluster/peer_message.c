/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cluster/peer_message.h"

#include <gio/gio.h>
#include <string.h>

static gboolean refuse(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "message of a peer: %s", what);
    return FALSE;
}

/* Members: as many as are named, and those. */
static gboolean has_only(JsonObject *object, const char *const *names)
{
    guint n = 0;

    for (; names[n]; n++) {
        if (!json_object_has_member(object, names[n])) {
            return FALSE;
        }
    }
    return json_object_get_size(object) == n;
}

static JsonObject *object_member(JsonObject *object, const char *name)
{
    JsonNode *node = json_object_get_member(object, name);

    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

/* A text of 1 to max bytes (min 0: may be empty), else NULL. */
static const char *text_member(JsonObject *object, const char *name, gsize min, gsize max)
{
    JsonNode *node = json_object_get_member(object, name);
    const char *text = node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_STRING
                           ? json_node_get_string(node)
                           : NULL;
    gsize length = text ? strlen(text) : 0;

    return text && length >= min && length <= max ? text : NULL;
}

static gboolean integer_member(JsonObject *object, const char *name, gint64 min, gint64 *value)
{
    JsonNode *node = json_object_get_member(object, name);

    if (!node || !JSON_NODE_HOLDS_VALUE(node) || json_node_get_value_type(node) != G_TYPE_INT64) {
        return FALSE;
    }
    *value = json_node_get_int(node);
    return *value >= min;
}

/* Letters, digits, dots and hyphens: what methods, events and codes are made of. */
static const char *word_member(JsonObject *object, const char *name)
{
    const char *word = text_member(object, name, 1, SF_PEER_WORD_MAX);

    return word && strspn(word, "abcdefghijklmnopqrstuvwxyz0123456789.-_") == strlen(word) ? word : NULL;
}

static gboolean parse_hello(JsonObject *hello, SfPeerMessage *message, GError **error)
{
    static const char *const members[] = { "protocol", "name", "version", "instance", "facts", NULL };

    if (!hello || !has_only(hello, members)) {
        return refuse(error, "a hello has other members than protocol, name, version, instance and facts");
    }
    message->name = text_member(hello, "name", 1, SF_PEER_WORD_MAX);
    message->version = text_member(hello, "version", 1, SF_PEER_WORD_MAX);
    message->instance = text_member(hello, "instance", SF_PEER_INSTANCE_LEN, SF_PEER_INSTANCE_LEN);
    message->body = object_member(hello, "facts");
    if (!integer_member(hello, "protocol", 1, &message->protocol) || !message->name || !message->version ||
        !message->instance || !message->body) {
        return refuse(error, "a member of a hello is of the wrong type or size");
    }
    return TRUE;
}

static gboolean parse_error(JsonObject *failure, SfPeerMessage *message, GError **error)
{
    static const char *const members[] = { "code", "message", NULL };

    if (!failure || !has_only(failure, members) || !(message->word = word_member(failure, "code")) ||
        !(message->text = text_member(failure, "message", 0, SF_PEER_TEXT_MAX))) {
        return refuse(error, "an error has not exactly a code and a message");
    }
    return TRUE;
}

static gboolean parse_refused(JsonObject *refused, SfPeerMessage *message, GError **error)
{
    static const char *const members[] = { "message", NULL };

    if (!refused || !has_only(refused, members) ||
        !(message->text = text_member(refused, "message", 0, SF_PEER_TEXT_MAX))) {
        return refuse(error, "a refusal has not exactly a message");
    }
    return TRUE;
}

/* One of the members that make a message with an id what it is. */
static gboolean parse_with_id(JsonObject *object, SfPeerMessage *message, GError **error)
{
    guint size = json_object_get_size(object);
    gint64 id;

    if (!integer_member(object, "id", 1, &id)) {
        return refuse(error, "its id is no positive integer");
    }
    message->id = (guint64)id;
    if (json_object_has_member(object, "method")) {
        message->kind = SF_PEER_REQUEST;
        message->word = word_member(object, "method");
        message->body = object_member(object, "params");
        return (message->word && size == 2u + (message->body != NULL)) ||
               refuse(error, "a request has not exactly id, method and params");
    }
    if (size != 2) {
        return refuse(error, "an answer has not exactly an id and a result or error");
    }
    if (json_object_has_member(object, "error")) {
        message->kind = SF_PEER_FAILURE;
        return parse_error(object_member(object, "error"), message, error);
    }
    message->kind = SF_PEER_RESULT;
    message->body = object_member(object, "result");
    return message->body || refuse(error, "neither request nor answer");
}

gboolean sf_peer_message_parse(JsonObject *object, SfPeerMessage *message, GError **error)
{
    static const char *const event[] = { "event", "data", NULL };
    guint size = json_object_get_size(object);

    *message = (SfPeerMessage){ 0 };
    if (json_object_has_member(object, "id")) {
        return parse_with_id(object, message, error);
    }
    if (json_object_has_member(object, "event")) {
        message->kind = SF_PEER_EVENT;
        message->word = word_member(object, "event");
        message->body = object_member(object, "data");
        return (has_only(object, event) && message->word && message->body) ||
               refuse(error, "an event has not exactly a name and data");
    }
    if (json_object_has_member(object, "hello") && size == 1) {
        message->kind = SF_PEER_HELLO;
        return parse_hello(object_member(object, "hello"), message, error);
    }
    if (json_object_has_member(object, "refused") && size == 1) {
        message->kind = SF_PEER_REFUSED;
        return parse_refused(object_member(object, "refused"), message, error);
    }
    return refuse(error, "no message of the protocol");
}

/* ---- the other way ---- */

static void set_body(JsonObject *object, const char *name, JsonObject *body)
{
    json_object_set_object_member(object, name, body ? json_object_ref(body) : json_object_new());
}

/* A text that the other side will take: cut to its bound, between two characters. */
static void set_text(JsonObject *object, const char *name, const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text ? text : "", -1);

    if (strlen(valid) > SF_PEER_TEXT_MAX) {
        char *end = g_utf8_find_prev_char(valid, valid + SF_PEER_TEXT_MAX + 1);
        *end = '\0';
    }
    json_object_set_string_member(object, name, valid);
}

JsonObject *sf_peer_message_format(const SfPeerMessage *message)
{
    JsonObject *object = json_object_new(), *inner = NULL;

    if (message->id) {
        json_object_set_int_member(object, "id", (gint64)message->id);
    }
    switch (message->kind) {
    case SF_PEER_HELLO:
        inner = json_object_new();
        json_object_set_int_member(inner, "protocol", message->protocol);
        json_object_set_string_member(inner, "name", message->name);
        json_object_set_string_member(inner, "version", message->version);
        json_object_set_string_member(inner, "instance", message->instance);
        set_body(inner, "facts", message->body);
        json_object_set_object_member(object, "hello", inner);
        break;
    case SF_PEER_REFUSED:
        inner = json_object_new();
        set_text(inner, "message", message->text);
        json_object_set_object_member(object, "refused", inner);
        break;
    case SF_PEER_REQUEST:
        json_object_set_string_member(object, "method", message->word);
        set_body(object, "params", message->body);
        break;
    case SF_PEER_RESULT:
        set_body(object, "result", message->body);
        break;
    case SF_PEER_FAILURE:
        inner = json_object_new();
        json_object_set_string_member(inner, "code", message->word);
        set_text(inner, "message", message->text);
        json_object_set_object_member(object, "error", inner);
        break;
    case SF_PEER_EVENT:
        json_object_set_string_member(object, "event", message->word);
        set_body(object, "data", message->body);
        break;
    }
    return object;
}
