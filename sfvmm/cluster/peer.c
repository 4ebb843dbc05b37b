/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     added, or connected to us          SfPeer: name, address?, facts, calls
 *            |                             |
 *     timer, backoff -> TCP -> link (TLS)  | hello -->            <-- hello    : up
 *     listener ------> TCP -> link (TLS)   |            hello <--  hello -->   : up
 *                                          v
 *                                        peer->link, the one connection that is up
 *
 * Who dials sends the first hello; who was dialled answers with its own, and from then on both are up. It is the one
 * who was dialled who decides:
 *
 *   - Both dial at the same time: the connection that the host with the lesser name has dialled stays. Who is dialled
 *     while its own dialled link is under way, and has the lesser name, refuses the hello; with the greater name
 *     it gives its own up.
 *   - It has this peer up already: nobody dials who is up, so the peer has lost the old connection, or was started
 * anew. The new one takes its place (down, then up).
 *
 * What is said over a link that is up is in peer_call.c.
 */
#include "sfvmm/cluster/peer_private.h"

#include <string.h>

#include "sfvmm/cluster/address.h"
#include "sfvmm/cluster/pki.h"

#define PEERS_MAX      1024u
#define PENDING_MAX    64u   /* links of others that have not said hello yet */
#define PENDING_IP_MAX 16u   /* of them from one address */
#define BACKOFF_FIRST  250u  /* ms until the next try to connect */
#define BACKOFF_MAX    5000u
#define DIAL_SECONDS   10u
#define FACTS_EVENT    "peer.facts"
#define ALIVE_EVENT    "peer.alive"

G_DEFINE_QUARK(sf - peer - error - quark, sf_peer_error)

static void peer_dial_later(SfPeer *peer);
static void on_link_opened(SfPeerLink *link, gpointer owner);
static void on_link_object(SfPeerLink *link, JsonObject *object, gpointer owner);
static void on_link_ended(SfPeerLink *link, const GError *error, gpointer owner);

static const SfPeerLinkHandlers link_handlers = {
    .opened = on_link_opened,
    .object = on_link_object,
    .ended = on_link_ended,
};

gboolean sf_peer_name_is_valid(const char *name)
{
    return sf_pki_name_is_valid(name);
}

void sf_peers_unref(SfPeers *peers)
{
    if (--peers->refs == 0) {
        g_free(peers);
    }
}

/* ---- a peer ---- */

static SfPeer *peer_new(SfPeers *peers, const char *name)
{
    SfPeer *peer = g_new0(SfPeer, 1);

    peer->peers = peers;
    peer->name = g_strdup(name);
    peer->backoff = BACKOFF_FIRST;
    peer->calls = sf_peer_calls_new();
    g_hash_table_insert(peers->table, peer->name, peer);
    return peer;
}

static void peer_cancel_dial(SfPeer *peer)
{
    g_clear_handle_id(&peer->timer, g_source_remove);
    if (peer->connecting) {
        g_cancellable_cancel(peer->connecting);
        g_clear_object(&peer->connecting);
    }
    if (peer->dialled) {
        sf_peer_link_end(g_steal_pointer(&peer->dialled),
                         g_error_new_literal(SF_PEER_ERROR, SF_PEER_ERROR_LOST, "not needed any more"));
    }
}

static void peer_free(SfPeer *peer)
{
    peer_cancel_dial(peer);
    g_hash_table_unref(peer->calls);
    g_clear_pointer(&peer->facts, json_object_unref);
    g_free(peer->name);
    g_free(peer->address);
    g_free(peer->version);
    g_free(peer->instance);
    g_free(peer->reason);
    g_free(peer);
}

static void peer_set_reason(SfPeer *peer, const char *reason)
{
    if (peer->added && reason && g_strcmp0(peer->reason, reason) != 0) {
        g_message("host \"%s\" at %s: %s", peer->name, peer->address, reason);
    }
    g_free(peer->reason);
    peer->reason = g_strdup(reason);
}

/* It is up no more; forgets it unless it was added. */
static void peer_down(SfPeer *peer, const GError *reason)
{
    SfPeers *peers = peer->peers;

    peer->link = NULL;
    peer->requests = 0;
    peer->falling = TRUE;
    peer_set_reason(peer, reason->message);
    sf_peer_fail_calls(peer, reason->message);
    if (peers->handlers.down) {
        peers->handlers.down(peer, reason, peers->owner);
    }
    peer->falling = FALSE;
}

static void peer_forget_or_dial(SfPeer *peer)
{
    if (peer->added) {
        peer_dial_later(peer);
    } else if (!peer->link) {
        g_hash_table_remove(peer->peers->table, peer->name);
    }
}

static void peer_up(SfPeer *peer, SfPeerLink *link, const SfPeerMessage *hello)
{
    SfPeers *peers = peer->peers;

    if (peer->link) {
        SfPeerLink *old = peer->link;
        g_autoptr(GError) reason = g_error_new_literal(SF_PEER_ERROR, SF_PEER_ERROR_LOST, "it has connected anew");
        peer_down(peer, reason);
        sf_peer_link_end(old, g_error_copy(reason));
    }
    if (peer->dialled == link) {
        peer->dialled = NULL;
    }
    peer_cancel_dial(peer);
    peer->link = link;
    peer->serial = ++peers->last_serial;
    peer->backoff = BACKOFF_FIRST;
    peer_set_reason(peer, NULL);
    g_clear_pointer(&peer->facts, json_object_unref);
    peer->facts = json_object_ref(hello->body);
    g_free(peer->version);
    peer->version = g_strdup(hello->version);
    g_free(peer->instance);
    peer->instance = g_strdup(hello->instance);
    sf_peer_link_establish(link);
    g_message("host \"%s\" is up, from %s", peer->name, sf_peer_link_remote_ip(link));
    if (peers->handlers.up) {
        peers->handlers.up(peer, peers->owner);
    }
}

static JsonObject *own_facts(SfPeers *peers)
{
    return peers->handlers.describe ? peers->handlers.describe(peers->owner) : json_object_new();
}

static void send_hello(SfPeers *peers, SfPeerLink *link)
{
    g_autoptr(JsonObject) facts = own_facts(peers), object = NULL;
    const SfPeerMessage hello = {
        .kind = SF_PEER_HELLO,
        .protocol = SF_PEER_PROTOCOL,
        .name = peers->name,
        .version = peers->version,
        .instance = peers->instance,
        .body = facts,
    };
    g_autoptr(GError) error = NULL;

    object = sf_peer_message_format(&hello);
    if (!sf_peer_link_send(link, object, &error)) {
        sf_peer_link_end(link, g_steal_pointer(&error));
    }
}

/* ---- what comes over a link ---- */

static SfPeer *peer_of_link(SfPeers *peers, SfPeerLink *link)
{
    const char *name = sf_peer_link_name(link);
    SfPeer *peer = name ? g_hash_table_lookup(peers->table, name) : NULL;

    return peer && peer->link == link ? peer : NULL;
}

static SfPeer *peer_that_dialled(SfPeers *peers, SfPeerLink *link)
{
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, peers->table);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        if (((SfPeer *)value)->dialled == link) {
            return value;
        }
    }
    return NULL;
}

static void refuse_hello(SfPeerLink *link, const char *why)
{
    const SfPeerMessage refused = { .kind = SF_PEER_REFUSED, .text = why };
    g_autoptr(JsonObject) object = sf_peer_message_format(&refused);

    sf_peer_link_send(link, object, NULL);
    sf_peer_link_end(link, g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_PROTOCOL, "refused: %s", why));
}

/* What is wrong with a hello itself; NULL: nothing. */
static char *check_hello(SfPeers *peers, SfPeerLink *link, const SfPeerMessage *hello)
{
    if (hello->protocol != SF_PEER_PROTOCOL) {
        return g_strdup_printf("it speaks version %" G_GINT64_FORMAT
                               " of the protocol, and \"%s\" speaks %d: both need the "
                               "same release",
                               hello->protocol, peers->name, SF_PEER_PROTOCOL);
    }
    if (strcmp(hello->name, sf_peer_link_name(link)) != 0) {
        return g_strdup("the name in its hello is not that of its certificate");
    }
    if (strcmp(hello->name, peers->name) == 0) {
        return g_strdup_printf("\"%s\" is the name of both hosts", peers->name);
    }
    return NULL;
}

/* The first line of a host that has dialled us. */
static void answer_hello(SfPeers *peers, SfPeerLink *link, const SfPeerMessage *hello)
{
    g_autofree char *wrong = check_hello(peers, link, hello);
    SfPeer *peer = g_hash_table_lookup(peers->table, hello->name);

    gboolean crossing = !wrong && peer && peer->dialled && strcmp(peers->name, peer->name) < 0;

    if (!wrong && !peer && g_hash_table_size(peers->table) >= PEERS_MAX) {
        wrong = g_strdup("too many hosts are connected");
    }
    if (crossing) {
        refuse_hello(link, "both have dialled at once; the other connection stays");
        return;
    }
    if (wrong) {
        g_message("host \"%s\" from %s: refused: %s", sf_peer_link_name(link), sf_peer_link_remote_ip(link), wrong);
        refuse_hello(link, wrong);
        return;
    }
    send_hello(peers, link);
    peer_up(peer ? peer : peer_new(peers, hello->name), link, hello);
}

/* The first line of a host that we have dialled. */
static void take_hello(SfPeer *peer, SfPeerLink *link, const SfPeerMessage *hello)
{
    g_autofree char *wrong = check_hello(peer->peers, link, hello);

    if (wrong) {
        sf_peer_link_end(link, g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_PROTOCOL, "%s", wrong));
        return;
    }
    peer_up(peer, link, hello);
}

static void serve_first(SfPeers *peers, SfPeerLink *link, const SfPeerMessage *message)
{
    SfPeer *dialled = peer_that_dialled(peers, link);

    if (message->kind == SF_PEER_HELLO && dialled) {
        take_hello(dialled, link, message);
    } else if (message->kind == SF_PEER_HELLO && sf_peer_link_is_server(link)) {
        answer_hello(peers, link, message);
    } else if (message->kind == SF_PEER_REFUSED && dialled) {
        sf_peer_link_end(link, g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_PROTOCOL, "it refuses: %s", message->text));
    } else {
        sf_peer_link_end(link,
                         g_error_new_literal(SF_PEER_ERROR, SF_PEER_ERROR_PROTOCOL, "its first line is no hello"));
    }
}

static void serve_event(SfPeer *peer, const SfPeerMessage *message)
{
    SfPeers *peers = peer->peers;

    if (strcmp(message->word, ALIVE_EVENT) == 0) {
        return;
    }
    if (strcmp(message->word, FACTS_EVENT) == 0) {
        json_object_unref(peer->facts);
        peer->facts = json_object_ref(message->body);
        if (peers->handlers.facts) {
            peers->handlers.facts(peer, peers->owner);
        }
    } else if (peers->handlers.event) {
        peers->handlers.event(peer, message->word, message->body, peers->owner);
    }
}

static void on_link_object(SfPeerLink *link, JsonObject *object, gpointer owner)
{
    SfPeers *peers = owner;
    SfPeer *peer = peer_of_link(peers, link);
    GError *error = NULL;
    SfPeerMessage message;

    if (!sf_peer_message_parse(object, &message, &error)) {
        sf_peer_link_end(link, g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_PROTOCOL, "%s", error->message));
        g_error_free(error);
        return;
    }
    if (!peer) {
        serve_first(peers, link, &message);
        return;
    }
    switch (message.kind) {
    case SF_PEER_REQUEST:
        sf_peer_take_request(peer, &message);
        break;
    case SF_PEER_RESULT:
    case SF_PEER_FAILURE:
        sf_peer_take_answer(peer, &message);
        break;
    case SF_PEER_EVENT:
        serve_event(peer, &message);
        break;
    case SF_PEER_HELLO:
    case SF_PEER_REFUSED:
        sf_peer_link_end(link, g_error_new_literal(SF_PEER_ERROR, SF_PEER_ERROR_PROTOCOL, "a second hello"));
        break;
    }
}

/* Says why and tries again, unless the host has dialled us meanwhile: it is up, and the dial's end is no news of it. */
static void peer_dial_failed(SfPeer *peer, const GError *error)
{
    if (!peer->link) {
        peer_set_reason(peer, error->message);
        peer_dial_later(peer);
    }
}

static void on_link_opened(SfPeerLink *link, gpointer owner)
{
    SfPeers *peers = owner;
    SfPeer *peer = peer_that_dialled(peers, link);

    if (!peer) {
        return; /* it has dialled us: its hello comes first */
    }
    if (strcmp(sf_peer_link_name(link), peer->name) != 0) {
        sf_peer_link_end(link, g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY,
                                           "it is host \"%s\" that answers there", sf_peer_link_name(link)));
        return;
    }
    send_hello(peers, link);
}

static void on_link_ended(SfPeerLink *link, const GError *error, gpointer owner)
{
    SfPeers *peers = owner;
    SfPeer *up = peer_of_link(peers, link), *dialled = peer_that_dialled(peers, link);

    if (up) {
        peer_down(up, error);
        peer_forget_or_dial(up);
    } else if (dialled) {
        dialled->dialled = NULL;
        peer_dial_failed(dialled, error);
    } else if (sf_peer_link_is_server(link) && !sf_peer_link_name(link)) {
        g_message("a connection from %s: %s", sf_peer_link_remote_ip(link), error->message);
    }
    g_ptr_array_remove_fast(peers->links, link);
}

/* ---- dialling ---- */

typedef struct {
    SfPeers *peers;
    char *name;
    GCancellable *cancellable;
} Dial;

static void on_connected(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GSocketConnection) connection =
        g_socket_client_connect_to_host_finish(G_SOCKET_CLIENT(source), result, &error);
    Dial *dial = data;
    SfPeers *peers = dial->peers;
    SfPeer *peer = peers->gone ? NULL : sf_peers_get(peers, dial->name);

    if (peer && peer->connecting == dial->cancellable) {
        g_clear_object(&peer->connecting);
        if (connection) {
            peer->dialled = sf_peer_link_new(peers->identity, connection, FALSE, &link_handlers, peers);
            g_ptr_array_add(peers->links, peer->dialled);
        } else {
            peer_dial_failed(peer, error);
        }
    }
    sf_peers_unref(peers);
    g_object_unref(dial->cancellable);
    g_free(dial->name);
    g_free(dial);
}

static gboolean peer_dial(gpointer data)
{
    SfPeer *peer = data;
    g_autoptr(GSocketClient) client = g_socket_client_new();
    Dial *dial = g_new0(Dial, 1);

    peer->timer = 0;
    peer->connecting = g_cancellable_new();
    dial->peers = peer->peers;
    dial->peers->refs++;
    dial->name = g_strdup(peer->name);
    dial->cancellable = g_object_ref(peer->connecting);
    g_socket_client_set_enable_proxy(client, FALSE);
    g_socket_client_set_timeout(client, DIAL_SECONDS);
    g_socket_client_connect_to_host_async(client, peer->address, SF_PEER_PORT, peer->connecting, on_connected, dial);
    return G_SOURCE_REMOVE;
}

/* After the backoff, with some chance in it so that hosts which lost each other don't meet in lockstep. */
static void peer_dial_later(SfPeer *peer)
{
    guint wait = peer->backoff / 2 + (guint)g_random_int_range(0, (gint32)peer->backoff);

    if (!peer->peers->started || !peer->added || peer->link || peer->timer || peer->connecting || peer->dialled) {
        return;
    }
    peer->timer = g_timeout_add(wait, peer_dial, peer);
    peer->backoff = MIN(peer->backoff * 2, BACKOFF_MAX);
}

static void peer_dial_now(SfPeer *peer)
{
    if (peer->peers->started && !peer->link && !peer->timer && !peer->connecting && !peer->dialled) {
        peer->timer = g_timeout_add(0, peer_dial, peer);
    }
}

gboolean sf_peers_add(SfPeers *peers, const char *name, const char *address, GError **error)
{
    SfPeer *peer = sf_peers_get(peers, name);

    if (!sf_peer_name_is_valid(name)) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED,
                    "host \"%.64s\": a name is made of a-z, 0-9, dots and hyphens, and has at most %u", name,
                    SF_PEER_NAME_MAX);
        return FALSE;
    }
    if (strcmp(name, peers->name) == 0) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "host \"%s\": that is this host", name);
        return FALSE;
    }
    if (!sf_address_is_valid(address, error)) {
        return FALSE;
    }
    if (!peer && g_hash_table_size(peers->table) >= PEERS_MAX) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "host \"%s\": there are %u hosts, more can't be added",
                    name, PEERS_MAX);
        return FALSE;
    }
    peer = peer ? peer : peer_new(peers, name);
    peer->added = TRUE;
    if (g_strcmp0(peer->address, address) != 0) {
        g_free(peer->address);
        peer->address = g_strdup(address);
        peer_cancel_dial(peer);
        peer->backoff = BACKOFF_FIRST;
    }
    peer_dial_now(peer);
    return TRUE;
}

void sf_peers_start(SfPeers *peers)
{
    GHashTableIter iter;
    gpointer value;

    peers->started = TRUE;
    if (peers->service) {
        g_socket_service_start(peers->service);
    }
    g_hash_table_iter_init(&iter, peers->table);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        peer_dial_now(value);
    }
}

void sf_peers_remove(SfPeers *peers, const char *name)
{
    SfPeer *peer = sf_peers_get(peers, name);

    if (!peer) {
        return;
    }
    peer->added = FALSE;
    g_clear_pointer(&peer->address, g_free);
    peer_cancel_dial(peer);
    if (peer->link) {
        sf_peer_link_end(peer->link, g_error_new_literal(SF_PEER_ERROR, SF_PEER_ERROR_LOST, "it was removed"));
    } else if (!peer->falling) {
        g_hash_table_remove(peers->table, name);
    }
}

/* ---- listening ---- */

/* How many others have not said hello yet; with ip: of those from there. */
static guint pending_links(SfPeers *peers, const char *ip)
{
    guint n = 0;

    for (guint i = 0; i < peers->links->len; i++) {
        SfPeerLink *link = g_ptr_array_index(peers->links, i);
        n += sf_peer_link_is_server(link) && !peer_of_link(peers, link) &&
             (!ip || strcmp(ip, sf_peer_link_remote_ip(link)) == 0);
    }
    return n;
}

static gboolean on_incoming(GSocketService *service, GSocketConnection *connection, GObject *source, SfPeers *peers)
{
    SfPeerLink *link = NULL;

    if (pending_links(peers, NULL) < PENDING_MAX) {
        link = sf_peer_link_new(peers->identity, connection, TRUE, &link_handlers, peers);
        if (pending_links(peers, sf_peer_link_remote_ip(link)) < PENDING_IP_MAX) {
            g_ptr_array_add(peers->links, link);
            return TRUE;
        }
    }
    sf_peer_link_free(link); /* a host tries again */
    return TRUE;
}

static gboolean peers_listen(SfPeers *peers, const char *text, GError **error)
{
    peers->service = sf_address_listen("listen", text, SF_PEER_PORT, &peers->port, error);
    if (!peers->service) {
        return FALSE;
    }
    g_signal_connect(peers->service, "incoming", G_CALLBACK(on_incoming), peers);
    return TRUE;
}

/* ---- all of them ---- */

SfPeers *sf_peers_new(const SfPeersOptions *options, const SfPeersHandlers *handlers, gpointer owner, GError **error)
{
    SfPeers *peers;

    if (!sf_peer_name_is_valid(options->name)) {
        g_set_error(
            error, SF_PEER_ERROR, SF_PEER_ERROR_IDENTITY,
            "host name \"%.64s\": it is made of a-z, 0-9, dots and hyphens, and has at most %u; set name= in group "
            "[cluster] of sfvmmd.conf",
            options->name, SF_PEER_NAME_MAX);
        return NULL;
    }
    peers = g_new0(SfPeers, 1);
    peers->refs = 1;
    peers->handlers = *handlers;
    peers->owner = owner;
    peers->name = g_strdup(options->name);
    peers->version = g_strdup(options->version);
    peers->instance = g_strdup_printf("%08x%08x", g_random_int(), g_random_int());
    peers->table = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, (GDestroyNotify)peer_free);
    peers->links = g_ptr_array_new_with_free_func((GDestroyNotify)sf_peer_link_free);
    peers->identity = sf_peer_identity_load(options->directory, options->name, error);
    if (!peers->identity || (options->listen && !peers_listen(peers, options->listen, error))) {
        sf_peers_free(peers);
        return NULL;
    }
    return peers;
}

void sf_peers_free(SfPeers *peers)
{
    GHashTableIter iter;
    gpointer value;

    if (!peers) {
        return;
    }
    peers->gone = TRUE;
    if (peers->service) {
        g_signal_handlers_disconnect_by_data(peers->service, peers);
        g_socket_service_stop(peers->service);
        g_socket_listener_close(G_SOCKET_LISTENER(peers->service));
        g_object_unref(peers->service);
    }
    g_hash_table_iter_init(&iter, peers->table);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        SfPeer *peer = value;
        peer->link = NULL;
        sf_peer_fail_calls(peer, "this host's sfvmmd ends");
    }
    g_hash_table_unref(peers->table);
    g_ptr_array_unref(peers->links);
    sf_peer_identity_free(peers->identity);
    g_free(peers->name);
    g_free(peers->version);
    g_free(peers->instance);
    sf_peers_unref(peers);
}

const char *sf_peers_name(const SfPeers *peers)
{
    return peers->name;
}

guint sf_peers_listen_port(const SfPeers *peers)
{
    return peers->port;
}

SfPeer *sf_peers_get(SfPeers *peers, const char *name)
{
    return g_hash_table_lookup(peers->table, name);
}

static int compare_peers(gconstpointer a, gconstpointer b)
{
    return strcmp(((const SfPeer *)a)->name, ((const SfPeer *)b)->name);
}

GList *sf_peers_list(SfPeers *peers)
{
    return g_list_sort(g_hash_table_get_values(peers->table), compare_peers);
}

void sf_peers_facts_changed(SfPeers *peers)
{
    GHashTableIter iter;
    gpointer value;

    g_hash_table_iter_init(&iter, peers->table);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        if (((SfPeer *)value)->link) {
            sf_peer_send_event(value, FACTS_EVENT, own_facts(peers));
        }
    }
}

const char *sf_peer_name(const SfPeer *peer)
{
    return peer->name;
}

const char *sf_peer_address(const SfPeer *peer)
{
    return peer->address;
}

gboolean sf_peer_is_up(const SfPeer *peer)
{
    return peer->link != NULL;
}

JsonObject *sf_peer_facts(const SfPeer *peer)
{
    return peer->facts;
}

const char *sf_peer_version(const SfPeer *peer)
{
    return peer->version;
}

const char *sf_peer_instance(const SfPeer *peer)
{
    return peer->instance;
}

const char *sf_peer_reason(const SfPeer *peer)
{
    return peer->reason;
}

const char *sf_peer_local_ip(const SfPeer *peer)
{
    return peer->link ? sf_peer_link_local_ip(peer->link) : NULL;
}

const char *sf_peer_remote_ip(const SfPeer *peer)
{
    return peer->link ? sf_peer_link_remote_ip(peer->link) : NULL;
}
