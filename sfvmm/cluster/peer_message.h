/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The lines that peers exchange, taken apart and put together (docs/peers.md).
 *
 *     {"hello": {"protocol": 1, "name": "h1", "version": "0.1.0", "instance": "5f0c...", "facts": {...}}}
 *     {"refused": {"message": "..."}}                        instead of a hello
 *     {"id": 7, "method": "reserve", "params": {...}}
 *     {"id": 7, "result": {...}}   {"id": 7, "error": {"code": "no-capacity", "message": "..."}}
 *     {"event": "clone.exited", "data": {...}}
 *
 * Private to cluster/.
 */
#ifndef SF_PEER_MESSAGE_H
#define SF_PEER_MESSAGE_H

#include <json-glib/json-glib.h>

#define SF_PEER_WORD_MAX     64u   /* characters of a method, an event or a code */
#define SF_PEER_TEXT_MAX     4096u /* characters of an error's message */
#define SF_PEER_INSTANCE_LEN 16u

typedef enum {
    SF_PEER_HELLO,
    SF_PEER_REFUSED,
    SF_PEER_REQUEST,
    SF_PEER_RESULT,
    SF_PEER_FAILURE,
    SF_PEER_EVENT,
} SfPeerMessageKind;

/* Everything in it is borrowed from the object that it was parsed from. */
typedef struct {
    SfPeerMessageKind kind;
    guint64 id;       /* of REQUEST, RESULT, FAILURE; never 0 */
    const char *word; /* method, event, or code of a FAILURE */
    const char *text; /* message of FAILURE and REFUSED */
    JsonObject *body; /* facts, params (NULL: none), result or data */
    gint64 protocol;  /* of HELLO, as name, version and instance */
    const char *name, *version, *instance;
} SfPeerMessage;

/* Strict: exactly the members above, each of its type and within its bounds. FALSE + error (G_IO_ERROR_INVALID_DATA).
 */
gboolean sf_peer_message_parse(JsonObject *object, SfPeerMessage *message, GError **error);

/* The object of a message, with references to its body. Caller owns it. */
JsonObject *sf_peer_message_format(const SfPeerMessage *message);

#endif
