/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfPeerLink: one TLS connection of lines of JSON to a host, from the TCP connection on. It knows who is at the other
 * end, not what is said. Private to cluster/. Main thread only; no function calls back before it has returned.
 *
 *     HANDSHAKE --opened--> OPEN --ended--> ENDED       ended() is the last call of a link, and may be the first
 */
#ifndef SF_PEER_LINK_H
#define SF_PEER_LINK_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>

#include "sfvmm/cluster/peer_identity.h"

typedef struct SfPeerLink SfPeerLink;

typedef struct {
    void (*opened)(SfPeerLink *link, gpointer owner);                     /* the other side has proved its name */
    void (*object)(SfPeerLink *link, JsonObject *object, gpointer owner); /* borrowed */
    void (*ended)(SfPeerLink *link, const GError *error, gpointer owner); /* free it now or later */
} SfPeerLinkHandlers;

/* Takes a TCP connection, as server or as client of TLS. */
SfPeerLink *sf_peer_link_new(SfPeerIdentity *identity, GSocketConnection *connection, gboolean server,
                             const SfPeerLinkHandlers *handlers, gpointer owner);
/* No handler is called any more. What is not sent yet is not sent. */
void sf_peer_link_free(SfPeerLink *link);

const char *sf_peer_link_name(const SfPeerLink *link); /* of the host at the other end; NULL before opened() */
const char *sf_peer_link_local_ip(const SfPeerLink *link);
const char *sf_peer_link_remote_ip(const SfPeerLink *link);
gboolean sf_peer_link_is_server(const SfPeerLink *link);

/* Lines may be as long as SF_PEER_LINE_MAX from now on, and the link stays: the hellos have been exchanged. */
void sf_peer_link_establish(SfPeerLink *link);

/* Queue an object. FALSE + error: its line is too long, and it was not queued. One that does not read ends, later. */
gboolean sf_peer_link_send(SfPeerLink *link, JsonObject *object, GError **error);

/* End it for this reason: ended() comes from the main loop, once what is queued has been sent, or soon. Takes error. */
void sf_peer_link_end(SfPeerLink *link, GError *error);

#endif
