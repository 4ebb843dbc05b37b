/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cluster/peer_params.h"

#include <string.h>

#include "sfvmm/cluster/peer.h"
#include "sfvmm/cluster/ticket.h"

#define TICKET_TEXT_MAX 1024u

gboolean sf_peer_param_bad(GError **error, const char *member, const char *what)
{
    g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_BAD_REQUEST, "\"%s\" must be %s", member, what);
    return FALSE;
}

gboolean sf_peer_param_text(JsonObject *params, const char *member, gsize max, const char **value, GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : NULL;
    return (*value && strlen(*value) <= max) || sf_peer_param_bad(error, member, "a text, not too long");
}

gboolean sf_peer_param_int(JsonObject *params, const char *member, gint64 min, gint64 max, gint64 *value,
                           GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && json_node_get_value_type(node) == G_TYPE_INT64 ? json_node_get_int(node) : min - 1;
    return (*value >= min && *value <= max) || sf_peer_param_bad(error, member, "an integer within its bounds");
}

gboolean sf_peer_param_bool(JsonObject *params, const char *member, gboolean *value, GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && json_node_get_value_type(node) == G_TYPE_BOOLEAN && json_node_get_boolean(node);
    return (node && json_node_get_value_type(node) == G_TYPE_BOOLEAN) ||
           sf_peer_param_bad(error, member, "true or false");
}

gboolean sf_peer_param_object(JsonObject *params, const char *member, JsonObject **value, GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    return *value || sf_peer_param_bad(error, member, "an object");
}

gboolean sf_peer_param_array(JsonObject *params, const char *member, guint max, JsonArray **value, GError **error)
{
    JsonNode *node = json_object_get_member(params, member);

    *value = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
    return (*value && json_array_get_length(*value) <= max) ||
           sf_peer_param_bad(error, member, "an array, not too long");
}

gboolean sf_peer_param_texts(JsonObject *params, const char *member, guint max, JsonArray **value, GError **error)
{
    if (!sf_peer_param_array(params, member, max, value, error)) {
        return FALSE;
    }
    for (guint i = 0; i < json_array_get_length(*value); i++) {
        if (json_node_get_value_type(json_array_get_element(*value, i)) != G_TYPE_STRING) {
            return sf_peer_param_bad(error, member, "an array of texts");
        }
    }
    return TRUE;
}

gboolean sf_peer_param_ticket(JsonObject *params, guint64 *id, GError **error)
{
    const char *text;

    return sf_peer_param_text(params, "ticket", TICKET_TEXT_MAX, &text, error) &&
           (sf_ticket_id_from_text(text, id) || sf_peer_param_bad(error, "ticket", "16 hexadecimal digits"));
}
