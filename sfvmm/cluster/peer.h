/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfPeers: the sfvmmds of other hosts that this one talks to. TLS 1.3 with certificates on both sides, JSON lines in
 * it (docs/peers.md). One connection per pair of hosts, used both ways; it is made and, with backoff, made again by
 * whoever knows the other's address.
 *
 *     who a peer is      the CN of its certificate, which our CA signed for a host (OU=host). Nothing that it says
 *     up                 both hellos have been exchanged; calls and events go
 *     down               no connection; pending calls have failed with SF_PEER_ERROR_LOST
 *
 * Whatever a peer sends is untrusted: lines are checked by wire/json_line and bounded in length, number and rate; a
 * peer that breaks a rule loses its connection, never more. The members of params, results and events are for their
 * readers to check.
 *
 * Order: what is sent to a peer (calls, replies, events) arrives in the order of sending, as long as it is up.
 *
 * Main thread only; nothing blocks. No function calls back before it has returned.
 */
#ifndef SF_PEER_H
#define SF_PEER_H

#include <gio/gio.h>
#include <json-glib/json-glib.h>

#define SF_PEER_PORT         7410u
#define SF_PEER_PROTOCOL     1
#define SF_PEER_NAME_MAX     40u         /* characters of a host's name, [a-z0-9][a-z0-9.-]* */
#define SF_PEER_LINE_MAX     (32u << 20) /* bytes of one line */
#define SF_PEER_KEEPALIVE_MS 2000u       /* something is sent at least so often */
#define SF_PEER_DEAD_MS      10000u      /* nothing heard for so long: the connection is given up */

#define SF_PEER_ERROR (sf_peer_error_quark())
GQuark sf_peer_error_quark(void);
typedef enum {
    SF_PEER_ERROR_NOT_UP,      /* there is no connection now; nothing was sent */
    SF_PEER_ERROR_LOST,        /* the connection ended before the answer: it may or may not have been done */
    SF_PEER_ERROR_TIMEOUT,     /* no answer in time: it may or may not have been done */
    SF_PEER_ERROR_REFUSED,     /* answered: can't run this here, another host may; nothing was changed */
    SF_PEER_ERROR_NO_CAPACITY, /* answered: this host is full, or draining; nothing was changed */
    SF_PEER_ERROR_GONE,        /* answered: what the call names is not known there (any more) */
    SF_PEER_ERROR_BAD_REQUEST, /* answered: method or params are wrong */
    SF_PEER_ERROR_FAILED,      /* answered: any other failure */
    SF_PEER_ERROR_PROTOCOL,    /* it broke the protocol: a reason of a connection's end */
    SF_PEER_ERROR_IDENTITY,    /* certificate missing, expired, of another CA, of another name or of another kind */
} SfPeerError;

typedef struct SfPeers SfPeers;
typedef struct SfPeer SfPeer;               /* owned by SfPeers; keep names, not pointers, across main loop turns */
typedef struct SfPeerRequest SfPeerRequest; /* a call of a peer, until it is answered */

/* What its owner does for SfPeers; each may be NULL. Called from the main loop. */
typedef struct {
    /* Answer with exactly one of sf_peer_request_reply() and _fail(), now or later. NULL: all are refused. */
    void (*request)(SfPeerRequest *request, gpointer owner);
    void (*event)(SfPeer *peer, const char *name, JsonObject *data, gpointer owner); /* data is borrowed */
    void (*up)(SfPeer *peer, gpointer owner);
    /* reason is borrowed. The peer is still in SfPeers; an up() may follow. */
    void (*down)(SfPeer *peer, const GError *reason, gpointer owner);
    void (*facts)(SfPeer *peer, gpointer owner); /* it has told new facts while up */
    JsonObject *(*describe)(gpointer owner);     /* the facts of this host, for hello; transfer full */
} SfPeersHandlers;

typedef struct {
    const char *name;      /* of this host; must be that of its certificates */
    const char *listen;    /* ADDRESS[:PORT], "[v6]:PORT", ":PORT" (all addresses); NULL: only dial others */
    const char *directory; /* the host's certificates: ca-cert.pem, {server,client}-{cert,key}.pem (cluster/pki.h) */
    const char *version;   /* of this program, for hello */
} SfPeersOptions;

/*
 * Checks the certificates (they must be readable, valid now, of this name) and takes the port. owner is given to the
 * handlers and must outlive the SfPeers. NULL + error that names the file or address.
 */
SfPeers *sf_peers_new(const SfPeersOptions *options, const SfPeersHandlers *handlers, gpointer owner, GError **error);

/* Only from now on are connections made and accepted. */
void sf_peers_start(SfPeers *peers);

/* All connections end at once, without down() calls; pending calls fail with SF_PEER_ERROR_LOST. Not from a handler. */
void sf_peers_free(SfPeers *peers);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfPeers, sf_peers_free)

const char *sf_peers_name(const SfPeers *peers);  /* of this host */
guint sf_peers_listen_port(const SfPeers *peers); /* 0: does not listen */

/* Keep a connection to this host from now on. Adding a known one changes its address. Error: name or address is wrong.
 */
gboolean sf_peers_add(SfPeers *peers, const char *name, const char *address, GError **error);
/* End the connection and don't make it again. Nothing happens for an unknown name. down() is called if it was up. */
void sf_peers_remove(SfPeers *peers, const char *name);

/* NULL: neither added nor connected. A peer that was not added but has connected to us is a peer while it is up. */
SfPeer *sf_peers_get(SfPeers *peers, const char *name);
GList *sf_peers_list(SfPeers *peers); /* of SfPeer, by name; caller frees the list */

/* The facts of this host have changed: every peer that is up is told (describe() is called). */
void sf_peers_facts_changed(SfPeers *peers);

/* All borrowed. */
const char *sf_peer_name(const SfPeer *peer);
const char *sf_peer_address(const SfPeer *peer); /* as it was added; NULL: it was not */
gboolean sf_peer_is_up(const SfPeer *peer);
JsonObject *sf_peer_facts(const SfPeer *peer);    /* what its hello told last; NULL: never up. Unchecked */
const char *sf_peer_version(const SfPeer *peer);  /* of its sfvmmd; NULL: never up */
const char *sf_peer_instance(const SfPeer *peer); /* another one after its sfvmmd was started anew; NULL: never up */
const char *sf_peer_reason(const SfPeer *peer);   /* why it is not up, for people; NULL: it is, or was not tried yet */
/* IP addresses of the connection, as text without port; NULL when not up: where pages of this host are to be had, seen
 * from there, and the other way. */
const char *sf_peer_local_ip(const SfPeer *peer);
const char *sf_peer_remote_ip(const SfPeer *peer);

/*
 * Call a method of a peer. params: transfer full, NULL means none. timeout_ms: for the answer, at least 1. The source
 * object of the callback is NULL. Fails with SF_PEER_ERROR_NOT_UP (through the callback) when it is not up.
 */
void sf_peer_call_async(SfPeer *peer, const char *method, JsonObject *params, guint timeout_ms,
                        GAsyncReadyCallback callback, gpointer data);
JsonObject *sf_peer_call_finish(GAsyncResult *result, GError **error); /* transfer full; the message names the host */

/* Tell a peer. data: transfer full. FALSE: it is not up, nothing was sent. */
gboolean sf_peer_send_event(SfPeer *peer, const char *name, JsonObject *data);

/* The peer that asks; NULL when its connection has ended since (reply and fail then only free the request). */
SfPeer *sf_peer_request_peer(SfPeerRequest *request);
const char *sf_peer_request_from(const SfPeerRequest *request); /* its name, in any case */
const char *sf_peer_request_method(const SfPeerRequest *request);
JsonObject *sf_peer_request_params(const SfPeerRequest *request);       /* never NULL; borrowed */
void sf_peer_request_reply(SfPeerRequest *request, JsonObject *result); /* transfer full, NULL means {} ; frees it */
/* Codes REFUSED, NO_CAPACITY, GONE, BAD_REQUEST of SF_PEER_ERROR go over as they are, SF_CLUSTER_ERROR as NO_CAPACITY,
 * all else as FAILED. Frees the request. */
void sf_peer_request_fail(SfPeerRequest *request, const GError *error);

/* [a-z0-9][a-z0-9.-]{0,39}: what a host may be called. */
gboolean sf_peer_name_is_valid(const char *name);

#endif
