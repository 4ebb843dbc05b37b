/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What peer.c (connections) and peer_call.c (what is said over them) share. Nobody else includes this. */
#ifndef SF_PEER_PRIVATE_H
#define SF_PEER_PRIVATE_H

#include "sfvmm/cluster/peer.h"
#include "sfvmm/cluster/peer_identity.h"
#include "sfvmm/cluster/peer_link.h"
#include "sfvmm/cluster/peer_message.h"

struct SfPeers {
    guint refs; /* sf_peers_new()'s, and each request's */
    gboolean started, gone;
    SfPeersHandlers handlers;
    gpointer owner;
    char *name, *version, *instance;
    SfPeerIdentity *identity;
    GSocketService *service; /* NULL: does not listen */
    guint port;
    GHashTable *table; /* name -> SfPeer, owned */
    GPtrArray *links;  /* of SfPeerLink, owned: all that have not ended */
    guint64 last_serial;
};

struct SfPeer {
    SfPeers *peers;
    char *name, *address, *version, *instance, *reason;
    JsonObject *facts;
    gboolean added;
    gboolean falling;         /* its end is being told: it must not be forgotten meanwhile */
    SfPeerLink *link;         /* up; NULL: it is not */
    guint64 serial;           /* of the time that it is up: another one each time */
    SfPeerLink *dialled;      /* ours, on its way to up */
    GCancellable *connecting; /* TCP is on its way */
    guint timer, backoff;
    GHashTable *calls; /* sf_peer_calls_new() */
    guint64 last_id;
    guint requests; /* of its, not answered */
};

void sf_peers_unref(SfPeers *peers);

/* Of calls to one peer that wait for its answer. */
GHashTable *sf_peer_calls_new(void);

/* The link is lost: they all end. */
void sf_peer_fail_calls(SfPeer *peer, const char *reason);

/* What came over its link: the answer to one of them, a request of its own. */
void sf_peer_take_answer(SfPeer *peer, const SfPeerMessage *message);
void sf_peer_take_request(SfPeer *peer, const SfPeerMessage *message);

#endif
