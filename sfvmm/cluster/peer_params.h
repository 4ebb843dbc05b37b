/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parameters of a peer's request, each checked for its type and its bounds: what a peer sends is untrusted.
 *
 * Each reads one member into *value and returns TRUE; or returns FALSE with SF_PEER_ERROR_BAD_REQUEST, which names the
 * member, and *value is of no use. Texts, objects and arrays are the request's.
 */
#ifndef SF_PEER_PARAMS_H
#define SF_PEER_PARAMS_H

#include <json-glib/json-glib.h>

gboolean sf_peer_param_text(JsonObject *params, const char *member, gsize max, const char **value, GError **error);
gboolean sf_peer_param_int(JsonObject *params, const char *member, gint64 min, gint64 max, gint64 *value,
                           GError **error); /* min to max, both included */
gboolean sf_peer_param_bool(JsonObject *params, const char *member, gboolean *value, GError **error);
gboolean sf_peer_param_object(JsonObject *params, const char *member, JsonObject **value, GError **error);
gboolean sf_peer_param_array(JsonObject *params, const char *member, guint max, JsonArray **value, GError **error);
gboolean sf_peer_param_texts(JsonObject *params, const char *member, guint max, JsonArray **value, GError **error);
gboolean sf_peer_param_ticket(JsonObject *params, guint64 *id, GError **error); /* "ticket" */

/* Says that it must be what it is not. Always FALSE, so that a check can end with it. */
gboolean sf_peer_param_bad(GError **error, const char *member, const char *what);

#endif
