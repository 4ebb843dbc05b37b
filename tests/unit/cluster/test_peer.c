/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Peers over loopback: two SfPeers in one main loop, and, from threads, clients and servers of plain GnuTLS and plain
 * TCP that break one rule each. After each of those the honest two must still talk.
 */
#include <arpa/inet.h>
#include <gnutls/x509.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sfvmm/cluster/peer.h"
#include "sfvmm/cluster/pki.h"
#include "sfvmm/cluster/resource_manager.h"
#include "sfvmm/wire/state_file.h"

#define BOUND_S     60 /* for what takes milliseconds on an idle machine */
#define TLS_1_3     "NORMAL:-VERS-ALL:+VERS-TLS1.3"
#define TLS_1_2     "NORMAL:-VERS-ALL:+VERS-TLS1.2"
#define DAY         86400
#define FLOOD_LINES 20000
#define HELLO(name)                                                                                                    \
    "{\"hello\":{\"protocol\":1,\"name\":\"" name                                                                      \
    "\",\"version\":\"1\",\"instance\":\"0123456789abcdef\",\"facts\":{}}}\n"

static char *pki; /* with a CA and hosts a, b, c */

typedef struct {
    SfPeers *peers;
    guint ups, downs, events, facts;
    SfPeerError last_down;
    GString *said;   /* the data of events, in order */
    GPtrArray *held; /* requests "hold" */
    guint told;      /* in describe() */
} Node;

/* ---- waiting ---- */

static gboolean on_bound(gpointer data)
{
    g_error("not within %d s: %s", BOUND_S, (const char *)data);
    return G_SOURCE_REMOVE;
}

#define WAIT(condition)                                                                                                \
    do {                                                                                                               \
        guint bound_ = g_timeout_add_seconds(BOUND_S, on_bound, (gpointer) #condition);                                \
        while (!(condition)) {                                                                                         \
            g_main_context_iteration(NULL, TRUE);                                                                      \
        }                                                                                                              \
        g_source_remove(bound_);                                                                                       \
    } while (0)

/* ---- a node ---- */

static void on_request(SfPeerRequest *request, gpointer owner)
{
    const char *method = sf_peer_request_method(request);
    Node *node = owner;

    if (strcmp(method, "echo") == 0) {
        sf_peer_request_reply(request, json_object_ref(sf_peer_request_params(request)));
    } else if (strcmp(method, "nothing") == 0) {
        sf_peer_request_reply(request, NULL);
    } else if (strcmp(method, "hold") == 0) {
        g_ptr_array_add(node->held, request);
    } else if (strcmp(method, "full") == 0) {
        g_autoptr(GError) error = g_error_new(SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY, "full");
        sf_peer_request_fail(request, error);
    } else if (strcmp(method, "refuse") == 0) {
        g_autoptr(GError) error = g_error_new(SF_PEER_ERROR, SF_PEER_ERROR_REFUSED, "other QEMU");
        sf_peer_request_fail(request, error);
    } else {
        g_autoptr(GError) error = g_error_new(G_IO_ERROR, G_IO_ERROR_FAILED, "from %s", sf_peer_request_from(request));
        sf_peer_request_fail(request, error);
    }
}

static void on_event(SfPeer *peer, const char *name, JsonObject *data, gpointer owner)
{
    Node *node = owner;

    node->events++;
    if (json_object_has_member(data, "n")) {
        g_string_append_printf(node->said, "%s%d ", name, (int)json_object_get_int_member(data, "n"));
    }
}

static void on_up(SfPeer *peer, gpointer owner)
{
    ((Node *)owner)->ups++;
    g_assert_true(sf_peer_is_up(peer));
}

static void on_down(SfPeer *peer, const GError *reason, gpointer owner)
{
    ((Node *)owner)->downs++;
    ((Node *)owner)->last_down = (SfPeerError)reason->code;
    g_assert_false(sf_peer_is_up(peer));
}

static void on_facts(SfPeer *peer, gpointer owner)
{
    ((Node *)owner)->facts++;
}

static JsonObject *on_describe(gpointer owner)
{
    JsonObject *facts = json_object_new();

    json_object_set_int_member(facts, "told", ++((Node *)owner)->told);
    return facts;
}

static const SfPeersHandlers handlers = {
    .request = on_request,
    .event = on_event,
    .up = on_up,
    .down = on_down,
    .facts = on_facts,
    .describe = on_describe,
};

static void node_listen(Node *node, const char *directory, const char *name, const char *listen_at)
{
    g_autofree char *folder = g_build_filename(directory, name, "host", NULL);
    const SfPeersOptions options = { .name = name, .listen = listen_at, .directory = folder, .version = "1" };
    g_autoptr(GError) error = NULL;

    node->said = node->said ? node->said : g_string_new(NULL);
    node->held = node->held ? node->held : g_ptr_array_new();
    node->peers = sf_peers_new(&options, &handlers, node, &error);
    g_assert_no_error(error);
    sf_peers_start(node->peers);
}

static void node_start(Node *node, const char *name)
{
    node_listen(node, pki, name, "127.0.0.1:0");
}

static void node_stop(Node *node)
{
    sf_peers_free(node->peers);
    for (guint i = 0; i < node->held->len; i++) {
        sf_peer_request_reply(g_ptr_array_index(node->held, i), NULL);
    }
    g_ptr_array_unref(node->held);
    g_string_free(node->said, TRUE);
    *node = (Node){ 0 };
}

static char *address_of(const Node *node)
{
    return g_strdup_printf("127.0.0.1:%u", sf_peers_listen_port(node->peers));
}

static gboolean is_up(const Node *node, const char *name)
{
    SfPeer *peer = sf_peers_get(node->peers, name);

    return peer && sf_peer_is_up(peer);
}

static void add(Node *node, const char *name, const Node *other)
{
    g_autofree char *address = address_of(other);
    g_autoptr(GError) error = NULL;

    g_assert_true(sf_peers_add(node->peers, name, address, &error));
    g_assert_no_error(error);
}

/* Two nodes, a and b, that are up. */
static void pair_start(Node *a, Node *b)
{
    node_start(a, "a");
    node_start(b, "b");
    add(a, "b", b);
    WAIT(is_up(a, "b") && is_up(b, "a"));
}

static void on_called(GObject *source, GAsyncResult *result, gpointer data)
{
    *(GAsyncResult **)data = g_object_ref(result);
}

static JsonObject *call(Node *node, const char *name, const char *method, JsonObject *params, guint timeout_ms,
                        GError **error)
{
    g_autoptr(GAsyncResult) result = NULL;

    sf_peer_call_async(sf_peers_get(node->peers, name), method, params, timeout_ms, on_called, &result);
    g_assert_null(result);
    WAIT(result);
    return sf_peer_call_finish(result, error);
}

static JsonObject *number(const char *member, gint64 n)
{
    JsonObject *object = json_object_new();

    json_object_set_int_member(object, member, n);
    return object;
}

/* The two talk, both ways. */
static void check_talk(Node *a, Node *b)
{
    for (guint i = 0; i < 2; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) result =
            call(i ? a : b, i ? "b" : "a", "echo", number("n", 40 + i), BOUND_S * 1000, &error);
        g_assert_no_error(error);
        g_assert_cmpint(json_object_get_int_member(result, "n"), ==, 40 + i);
    }
}

/* ---- honest peers ---- */

static void test_talk(void)
{
    static const struct {
        const char *method;
        SfPeerError code;
        const char *text;
    } failures[] = {
        { "full", SF_PEER_ERROR_NO_CAPACITY, "full" },
        { "refuse", SF_PEER_ERROR_REFUSED, "other QEMU" },
        { "what", SF_PEER_ERROR_FAILED, "from a" },
    };
    Node a = { 0 }, b = { 0 };

    pair_start(&a, &b);
    SfPeer *peer = sf_peers_get(a.peers, "b");
    check_talk(&a, &b);
    for (guint i = 0; i < G_N_ELEMENTS(failures); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(call(&a, "b", failures[i].method, NULL, BOUND_S * 1000, &error));
        g_assert_error(error, SF_PEER_ERROR, (int)failures[i].code);
        g_assert_nonnull(strstr(error->message, failures[i].text));
        g_assert_nonnull(strstr(error->message, "host \"b\""));
    }
    g_autoptr(JsonObject) nothing = call(&b, "a", "nothing", NULL, BOUND_S * 1000, NULL);
    g_assert_cmpuint(json_object_get_size(nothing), ==, 0);

    for (guint i = 0; i < 100; i++) {
        g_assert_true(sf_peer_send_event(peer, "e", number("n", i)));
    }
    WAIT(b.events == 100);
    g_assert_true(g_str_has_prefix(b.said->str, "e0 e1 e2 "));
    g_assert_true(g_str_has_suffix(b.said->str, "e98 e99 "));

    g_assert_cmpstr(sf_peer_version(peer), ==, "1");
    g_assert_cmpint(json_object_get_int_member(sf_peer_facts(peer), "told"), ==, 1);
    g_assert_cmpstr(sf_peer_local_ip(peer), ==, "127.0.0.1");
    g_assert_cmpstr(sf_peer_remote_ip(peer), ==, "127.0.0.1");
    sf_peers_facts_changed(b.peers);
    WAIT(a.facts == 1);
    g_assert_cmpint(json_object_get_int_member(sf_peer_facts(peer), "told"), ==, 2);
    node_stop(&a);
    WAIT(b.downs == 1);
    g_assert_null(sf_peers_get(b.peers, "a"));
    node_stop(&b);
}

static void test_large(void)
{
    g_autofree char *text = g_strnfill(8u << 20, 'x'), *more = g_strnfill(33u << 20, 'x');
    JsonObject *params = json_object_new(), *huge = json_object_new();
    g_autoptr(JsonObject) result = NULL;
    g_autoptr(GError) error = NULL;
    Node a = { 0 }, b = { 0 };

    pair_start(&a, &b);
    json_object_set_string_member(params, "text", text);
    result = call(&a, "b", "echo", params, BOUND_S * 1000, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(json_object_get_string_member(result, "text"), ==, text);
    json_object_set_string_member(huge, "text", more);
    g_assert_null(call(&a, "b", "echo", huge, BOUND_S * 1000, &error));
    g_assert_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED);
    check_talk(&a, &b);
    node_stop(&a);
    node_stop(&b);
}

static void test_timeout(void)
{
    g_autoptr(GError) error = NULL;
    Node a = { 0 }, b = { 0 };

    pair_start(&a, &b);
    g_assert_null(call(&a, "b", "hold", NULL, 50, &error));
    g_assert_error(error, SF_PEER_ERROR, SF_PEER_ERROR_TIMEOUT);
    g_assert_cmpuint(b.held->len, ==, 1);
    sf_peer_request_reply(g_ptr_array_steal_index(b.held, 0), NULL); /* too late, and nobody minds */
    check_talk(&a, &b);
    node_stop(&a);
    node_stop(&b);
}

static void test_both_dial(void)
{
    Node a = { 0 }, b = { 0 };

    node_start(&a, "a");
    node_start(&b, "b");
    add(&a, "b", &b);
    add(&b, "a", &a);
    WAIT(is_up(&a, "b") && is_up(&b, "a"));
    check_talk(&a, &b);
    check_talk(&a, &b);
    g_assert_cmpuint(a.ups - a.downs, ==, 1);
    g_assert_cmpuint(b.ups - b.downs, ==, 1);
    node_stop(&a);
    node_stop(&b);
}

/* A peer that ends takes what waits for it along, and is found again when it is back. */
static void test_restart(void)
{
    g_autoptr(GAsyncResult) result = NULL;
    g_autoptr(GError) error = NULL;
    Node a = { 0 }, b = { 0 };
    g_autofree char *address = NULL, *instance = NULL;

    pair_start(&a, &b);
    address = address_of(&b);
    instance = g_strdup(sf_peer_instance(sf_peers_get(a.peers, "b")));
    sf_peer_call_async(sf_peers_get(a.peers, "b"), "hold", NULL, BOUND_S * 1000, on_called, &result);
    WAIT(b.held->len == 1);
    node_stop(&b);
    WAIT(result && a.downs == 1);
    g_assert_null(sf_peer_call_finish(result, &error));
    g_assert_error(error, SF_PEER_ERROR, SF_PEER_ERROR_LOST);
    g_clear_error(&error);
    g_assert_null(call(&a, "b", "echo", NULL, 1000, &error));
    g_assert_error(error, SF_PEER_ERROR, SF_PEER_ERROR_NOT_UP);
    g_assert_false(sf_peer_send_event(sf_peers_get(a.peers, "b"), "e", json_object_new()));

    node_listen(&b, pki, "b", address);
    WAIT(is_up(&a, "b"));
    g_assert_cmpstr(sf_peer_instance(sf_peers_get(a.peers, "b")), !=, instance);
    check_talk(&a, &b);
    node_stop(&a);
    node_stop(&b);
}

static void test_remove(void)
{
    g_autoptr(GError) error = NULL;
    Node a = { 0 }, b = { 0 };

    pair_start(&a, &b);
    sf_peers_remove(a.peers, "b");
    sf_peers_remove(a.peers, "nobody");
    WAIT(!sf_peers_get(a.peers, "b") && b.downs == 1);
    g_assert_cmpuint(a.downs, ==, 1);
    g_assert_false(sf_peers_add(a.peers, "a", "127.0.0.1", &error));
    g_clear_error(&error);
    g_assert_false(sf_peers_add(a.peers, "b", "127.0.0.1:99999", &error));
    g_clear_error(&error);
    g_assert_false(sf_peers_add(a.peers, "B", "127.0.0.1", &error));
    add(&a, "b", &b);
    sf_peers_remove(a.peers, "b"); /* on its way */
    g_assert_null(sf_peers_get(a.peers, "b"));
    add(&a, "b", &b);
    WAIT(is_up(&a, "b") && is_up(&b, "a"));
    check_talk(&a, &b);
    node_stop(&a);
    node_stop(&b);
}

static const char *reason_of(const Node *node, const char *name)
{
    return sf_peer_reason(sf_peers_get(node->peers, name));
}

static void test_wrong_name(void)
{
    Node a = { 0 }, b = { 0 };

    node_start(&a, "a");
    node_start(&b, "b");
    add(&a, "c", &b);
    WAIT(reason_of(&a, "c"));
    g_assert_nonnull(strstr(reason_of(&a, "c"), "it is host \"b\""));
    g_assert_cmpuint(a.ups + b.ups, ==, 0);
    node_stop(&a);
    node_stop(&b);
}

static void test_foreign_ca(void)
{
    g_autofree char *other = g_dir_make_tmp("sf-pki-XXXXXX", NULL);
    const SfPkiOptions plain = { 0 };
    Node a = { 0 }, b = { 0 };

    g_assert_true(sf_pki_make_ca(other, &plain, NULL));
    g_assert_true(sf_pki_make_host(other, "b", NULL, &plain, NULL));
    node_start(&a, "a");
    node_listen(&b, other, "b", "127.0.0.1:0");
    add(&a, "b", &b);
    add(&b, "a", &a);
    WAIT(reason_of(&a, "b") && reason_of(&b, "a"));
    g_test_message("a says: %s; b says: %s", reason_of(&a, "b"), reason_of(&b, "a"));
    g_assert_nonnull(strstr(reason_of(&a, "b"), "trusted"));
    g_assert_cmpuint(a.ups + b.ups, ==, 0);
    node_stop(&a);
    node_stop(&b);
    sf_state_remove_folder(other);
}

static void test_same_name(void)
{
    Node a = { 0 }, b = { 0 };

    node_start(&a, "a");
    node_start(&b, "a");
    add(&a, "b", &b);
    WAIT(reason_of(&a, "b"));
    g_assert_cmpuint(a.ups + b.ups, ==, 0);
    node_stop(&a);
    node_stop(&b);
}

/* All addresses, IPv4 and IPv6; a peer's address is shown without the form that it has on such a socket. */
static void test_listen_everywhere(void)
{
    Node a = { 0 }, b = { 0 };

    node_listen(&a, pki, "a", ":0");
    node_start(&b, "b");
    add(&b, "a", &a);
    WAIT(is_up(&a, "b") && is_up(&b, "a"));
    g_assert_cmpstr(sf_peer_remote_ip(sf_peers_get(a.peers, "b")), ==, "127.0.0.1");
    check_talk(&a, &b);
    node_stop(&a);
    node_stop(&b);
}

static void test_bad_options(void)
{
    g_autofree char *folder = g_build_filename(pki, "a", "host", NULL),
                    *pages = g_build_filename(pki, "a", "pages", NULL);
    const SfPeersOptions bad[] = {
        { .name = "b", .directory = folder, .version = "1" },
        { .name = "a", .directory = pages, .version = "1" },
        { .name = "a", .directory = pki, .version = "1" },
        { .name = "A", .directory = folder, .version = "1" },
        { .name = "a", .directory = folder, .version = "1", .listen = "nowhere.example:1" },
        { .name = "a", .directory = folder, .version = "1", .listen = "192.0.2.1:7410" },
        { .name = "a", .directory = folder, .version = "1", .listen = "127.0.0.1:70000" },
    };

    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(sf_peers_new(&bad[i], &handlers, NULL, &error));
        g_assert_nonnull(error);
        g_test_message("%s", error->message);
    }
}

/* ---- others ---- */

/* What a thread does to a port, and what came of it. */
typedef struct {
    guint port;
    int listener;           /* of a server; else it is a client */
    const char *priorities; /* NULL: plain TCP */
    char *directory;        /* of certificates, or NULL: shows none */
    const char *role;       /* which of them */
    const char *first;      /* what it sends first */
    const char *again;      /* and then, as often as this, */
    guint times;
    gboolean stays; /* it only reads from then on */
    gint handshake; /* result */
    GString *read;  /* what it was told, until the other side hung up */
    gint done;
} Other;

static int dial_or_accept(const Other *other)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((guint16)other->port) };
    const struct timeval bound = { .tv_sec = BOUND_S };
    int fd;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (other->listener >= 0) {
        fd = accept(other->listener, NULL, NULL);
    } else {
        fd = socket(AF_INET, SOCK_STREAM, 0);
        g_assert_cmpint(connect(fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    }
    g_assert_cmpint(fd, >=, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof(bound));
    return fd;
}

static gssize put(gnutls_session_t session, int fd, const char *data, gsize length)
{
    gssize n;

    do {
        n = session ? gnutls_record_send(session, data, length) : send(fd, data, length, MSG_NOSIGNAL);
    } while (session && (n == GNUTLS_E_INTERRUPTED || n == GNUTLS_E_AGAIN));
    return n;
}

static gboolean put_all(gnutls_session_t session, int fd, const char *text)
{
    gsize length = strlen(text);

    for (gsize done = 0; done < length;) {
        gssize n = put(session, fd, text + done, length - done);
        if (n <= 0) {
            return FALSE;
        }
        done += (gsize)n;
    }
    return TRUE;
}

/* Speaks until the other side hangs up. */
static void speak(Other *other, gnutls_session_t session, int fd)
{
    char buffer[4096];
    gssize n;

    if (other->first && put_all(session, fd, other->first)) {
        for (guint i = 0; i < other->times && put_all(session, fd, other->again); i++) {
        }
    }
    if (!other->stays) {
        shutdown(fd, SHUT_WR);
    }
    while ((n = session ? gnutls_record_recv(session, buffer, sizeof(buffer)) : recv(fd, buffer, sizeof(buffer), 0)) >
               0 ||
           n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED) {
        if (n > 0) {
            g_string_append_len(other->read, buffer, n);
        }
    }
}

static gpointer other_run(gpointer data)
{
    Other *other = data;
    int fd = dial_or_accept(other);
    gnutls_certificate_credentials_t credentials = NULL;
    gnutls_session_t session = NULL;

    if (other->priorities) {
        g_autofree char *cert =
            g_strdup_printf("%s/%s-cert.pem", other->directory ? other->directory : "", other->role);
        g_autofree char *key = g_strdup_printf("%s/%s-key.pem", other->directory ? other->directory : "", other->role);
        g_assert_cmpint(gnutls_init(&session, other->listener >= 0 ? GNUTLS_SERVER : GNUTLS_CLIENT), ==, 0);
        gnutls_certificate_allocate_credentials(&credentials);
        if (other->directory) {
            g_assert_cmpint(gnutls_certificate_set_x509_key_file(credentials, cert, key, GNUTLS_X509_FMT_PEM), ==, 0);
        }
        gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
        g_assert_cmpint(gnutls_priority_set_direct(session, other->priorities, NULL), ==, 0);
        gnutls_transport_set_int(session, fd);
        do {
            other->handshake = gnutls_handshake(session);
        } while (other->handshake < 0 && !gnutls_error_is_fatal(other->handshake));
    }
    if (other->handshake == 0) {
        speak(other, session, fd);
    }
    if (session) {
        gnutls_deinit(session);
        gnutls_certificate_free_credentials(credentials);
    }
    close(fd);
    g_atomic_int_set(&other->done, 1);
    g_main_context_wakeup(NULL);
    return NULL;
}

static char *certificates(const char *host, const char *unit)
{
    return g_build_filename(pki, host, unit, NULL);
}

/* Lets it happen to node a, until the other side has been hung up on. */
static void suffer(Node *a, Other *other)
{
    g_autoptr(GThread) thread = NULL;

    other->port = sf_peers_listen_port(a->peers);
    other->role = other->role ? other->role : "client";
    other->read = g_string_new(NULL);
    thread = g_thread_ref(g_thread_new("other", other_run, other));
    WAIT(g_atomic_int_get(&other->done));
    g_thread_join(thread);
}

static void other_clear(Other *other)
{
    g_string_free(other->read, TRUE);
    g_free(other->directory);
}

typedef struct {
    const char *what;
    Other other; /* directory: "HOST/UNIT" */
    gboolean comes_up;
} Attack;

#define PLAIN     .listener = -1
#define TLS(from) .listener = -1, .priorities = TLS_1_3, .directory = (char *)from

static const Attack attacks[] = {
    { "plain TCP that says nothing", { PLAIN } },
    { "plain TCP garbage", { PLAIN, .first = "GET / HTTP/1.1\r\n\r\n", .stays = TRUE } },
    { "no certificate", { .listener = -1, .priorities = TLS_1_3, .first = HELLO("c"), .stays = TRUE } },
    { "TLS 1.2",
      { .listener = -1, .priorities = TLS_1_2, .directory = (char *)"c/host", .first = HELLO("c"), .stays = TRUE } },
    { "certificate for pages", { TLS("c/pages"), .first = HELLO("c"), .stays = TRUE } },
    { "a server's certificate", { TLS("c/host"), .role = "server", .first = HELLO("c"), .stays = TRUE } },
    { "expired certificate", { TLS("c/expired"), .first = HELLO("c"), .stays = TRUE } },
    { "certificate of tomorrow", { TLS("c/tomorrow"), .first = HELLO("c"), .stays = TRUE } },
    { "hello of another", { TLS("c/host"), .first = HELLO("b"), .stays = TRUE } },
    { "hello of the node itself", { TLS("a/host"), .first = HELLO("a"), .stays = TRUE } },
    { "hello of another version",
      { .listener = -1,
        .priorities = TLS_1_3,
        .directory = (char *)"c/host",
        .first = "{\"hello\":{\"protocol\":9,\"name\":\"c\",\"version\":\"1\",\"instance\":\"0123456789abcdef\","
                 "\"facts\":{}}}\n",
        .stays = TRUE } },
    { "request before hello", { TLS("c/host"), .first = "{\"id\":1,\"method\":\"echo\"}\n", .stays = TRUE } },
    { "garbage in TLS", { TLS("c/host"), .first = "\x80\x81\x82{{{{\n", .stays = TRUE } },
    { "endless first line",
      { TLS("c/host"), .first = "{\"", .again = "aaaaaaaaaaaaaaaaaaaaaaaa", .times = 1 << 20, .stays = TRUE } },
    { "garbage after hello", { TLS("c/host"), .first = HELLO("c") "}\n", .stays = TRUE }, TRUE },
    { "unknown message", { TLS("c/host"), .first = HELLO("c") "{\"a\":1}\n", .stays = TRUE }, TRUE },
    { "second hello", { TLS("c/host"), .first = HELLO("c") HELLO("c"), .stays = TRUE }, TRUE },
    { "answers to what nobody asked, then leaves",
      { TLS("c/host"),
        .first = HELLO("c") "{\"id\":7,\"result\":{}}\n{\"id\":7,\"error\":{\"code\":\"x\",\"message\":\"\"}}\n" },
      TRUE },
    { "requests without end",
      { TLS("c/host"), .first = HELLO("c"), .again = "{\"id\":1,\"method\":\"hold\"}\n", .times = FLOOD_LINES,
        .stays = TRUE },
      TRUE },
    { "many events",
      { TLS("c/host"), .first = HELLO("c"), .again = "{\"event\":\"flood\",\"data\":{}}\n", .times = FLOOD_LINES },
      TRUE },
};

static void test_attack(gconstpointer data)
{
    const Attack *attack = data;
    Other other = attack->other;
    Node a = { 0 }, b = { 0 };

    pair_start(&a, &b);
    other.directory = other.directory ? g_build_filename(pki, other.directory, NULL) : NULL;
    suffer(&a, &other);
    g_test_message("handshake: %s; it was told: %s", other.handshake ? gnutls_strerror(other.handshake) : "done",
                   other.read->str);
    WAIT(!sf_peers_get(a.peers, "c"));
    g_assert_cmpuint(a.ups, ==, 1 + attack->comes_up);
    g_assert_cmpuint(a.downs, ==, attack->comes_up);
    g_assert_true(attack->comes_up || !strstr(other.read->str, "\"hello\""));
    check_talk(&a, &b);
    g_assert_cmpuint(b.downs, ==, 0);
    other_clear(&other);
    node_stop(&a);
    node_stop(&b);
}

/* While one peer floods, the calls of another are answered. */
static void test_flood_is_fair(void)
{
    Node a = { 0 }, b = { 0 };
    Other other = {
        .listener = -1,
        .priorities = TLS_1_3,
        .role = "client",
        .first = HELLO("c"),
        .again = "{\"event\":\"flood\",\"data\":{}}\n",
        .times = FLOOD_LINES * 2,
    };
    g_autoptr(GThread) thread = NULL;
    guint calls = 0;

    pair_start(&a, &b);
    other.port = sf_peers_listen_port(a.peers);
    other.directory = certificates("c", "host");
    other.read = g_string_new(NULL);
    thread = g_thread_ref(g_thread_new("other", other_run, &other));
    WAIT(a.events > 0);
    for (; !g_atomic_int_get(&other.done) && a.downs == 0; calls++) {
        check_talk(&a, &b);
    }
    WAIT(g_atomic_int_get(&other.done) && !sf_peers_get(a.peers, "c"));
    g_thread_join(thread);
    g_test_message("%u times two calls during the flood", calls);
    g_assert_cmpuint(a.events, ==, FLOOD_LINES * 2);
    g_assert_cmpuint(calls, >, 1);
    other_clear(&other);
    node_stop(&a);
    node_stop(&b);
}

/* Who falls silent is given up; who is only idle hears from us. */
static void test_silence(void)
{
    Other other = { .listener = -1, .priorities = TLS_1_3, .first = HELLO("c"), .stays = TRUE };
    Node a = { 0 }, b = { 0 };
    guint alive = 0;

    pair_start(&a, &b);
    other.directory = certificates("c", "host");
    suffer(&a, &other);
    for (const char *p = other.read->str; (p = strstr(p, "peer.alive")); p++) {
        alive++;
    }
    g_assert_cmpuint(alive, >=, 3);
    WAIT(a.downs == 1);
    g_assert_cmpint(a.last_down, ==, SF_PEER_ERROR_LOST);
    g_assert_cmpuint(b.downs, ==, 0);
    check_talk(&a, &b);
    other_clear(&other);
    node_stop(&a);
    node_stop(&b);
}

/* A server that is not who it should be: what the one who dials makes of it. */
static void test_bad_server(gconstpointer data)
{
    static const char *const units[] = { "host", "expired", "pages", "host" };
    static const char *const words[] = { "TLS", "expired", "not that of a host", "nsuitable|purpose|usage|trusted" };
    const guint which = GPOINTER_TO_UINT(data);
    struct sockaddr_in bound = { .sin_family = AF_INET };
    socklen_t length = sizeof(bound);
    Other other = {
        .priorities = which == 0 ? TLS_1_2 : TLS_1_3,
        .role = which == 3 ? "client" : "server",
        .first = "",
        .stays = TRUE,
    };
    g_autoptr(GThread) thread = NULL;
    g_autofree char *address = NULL;
    Node a = { 0 };

    bound.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    other.listener = socket(AF_INET, SOCK_STREAM, 0);
    g_assert_cmpint(bind(other.listener, (struct sockaddr *)&bound, sizeof(bound)), ==, 0);
    g_assert_cmpint(listen(other.listener, 4), ==, 0);
    g_assert_cmpint(getsockname(other.listener, (struct sockaddr *)&bound, &length), ==, 0);
    other.directory = certificates("c", units[which]);
    other.read = g_string_new(NULL);
    address = g_strdup_printf("127.0.0.1:%u", ntohs(bound.sin_port));
    node_start(&a, "a");
    thread = g_thread_ref(g_thread_new("other", other_run, &other));
    g_assert_true(sf_peers_add(a.peers, "c", address, NULL));
    WAIT(reason_of(&a, "c") && g_atomic_int_get(&other.done));
    g_thread_join(thread);
    g_test_message("%s", reason_of(&a, "c"));
    g_assert_true(g_regex_match_simple(words[which], reason_of(&a, "c"), 0, 0));
    g_assert_cmpuint(a.ups, ==, 0);
    close(other.listener);
    other_clear(&other);
    node_stop(&a);
}

/* ---- certificates that pki.h never makes ---- */

static gnutls_datum_t load(const char *folder, const char *name)
{
    g_autofree char *path = g_build_filename(folder, name, NULL), *text = NULL;
    gsize length;

    g_assert_true(g_file_get_contents(path, &text, &length, NULL));
    return (gnutls_datum_t){ (unsigned char *)g_steal_pointer(&text), (unsigned)length };
}

/* PKI/c/NAME with certificates for host c that are good from begin to end only. */
static void make_timed(const char *name, time_t begin, time_t end)
{
    g_autofree char *folder = g_build_filename(pki, "c", name, NULL), *good = g_build_filename(pki, "c", "host", NULL);
    static const char *const roles[] = { "server", "client" };
    gnutls_datum_t ca_cert = load(pki, "ca-cert.pem"), ca_key = load(pki, "ca-key.pem");
    gnutls_x509_privkey_t issuer_key;
    gnutls_x509_crt_t issuer;

    g_assert_cmpint(g_mkdir_with_parents(folder, 0700), ==, 0);
    gnutls_x509_crt_init(&issuer);
    gnutls_x509_privkey_init(&issuer_key);
    g_assert_cmpint(gnutls_x509_crt_import(issuer, &ca_cert, GNUTLS_X509_FMT_PEM), ==, 0);
    g_assert_cmpint(gnutls_x509_privkey_import2(issuer_key, &ca_key, GNUTLS_X509_FMT_PEM, NULL, 0), ==, 0);
    for (guint i = 0; i < G_N_ELEMENTS(roles); i++) {
        g_autofree char *cert_name = g_strconcat(roles[i], "-cert.pem", NULL);
        g_autofree char *key_name = g_strconcat(roles[i], "-key.pem", NULL);
        g_autofree char *cert_path = g_build_filename(folder, cert_name, NULL);
        g_autofree char *key_path = g_build_filename(folder, key_name, NULL);
        gnutls_datum_t pem = load(good, cert_name), key = load(good, key_name), out;
        gnutls_x509_crt_t cert;
        gnutls_x509_crt_init(&cert);
        g_assert_cmpint(gnutls_x509_crt_import(cert, &pem, GNUTLS_X509_FMT_PEM), ==, 0);
        gnutls_x509_crt_set_activation_time(cert, begin);
        gnutls_x509_crt_set_expiration_time(cert, end);
        g_assert_cmpint(gnutls_x509_crt_sign2(cert, issuer, issuer_key, GNUTLS_DIG_SHA256, 0), ==, 0);
        g_assert_cmpint(gnutls_x509_crt_export2(cert, GNUTLS_X509_FMT_PEM, &out), ==, 0);
        g_assert_true(g_file_set_contents(cert_path, (char *)out.data, out.size, NULL));
        g_assert_true(g_file_set_contents(key_path, (char *)key.data, key.size, NULL));
        gnutls_x509_crt_deinit(cert);
        gnutls_free(out.data);
        g_free(pem.data);
        g_free(key.data);
    }
    gnutls_x509_crt_deinit(issuer);
    gnutls_x509_privkey_deinit(issuer_key);
    g_free(ca_cert.data);
    g_free(ca_key.data);
}

static void make_pki(void)
{
    const SfPkiOptions plain = { 0 };
    time_t now = time(NULL);

    pki = g_dir_make_tmp("sf-pki-XXXXXX", NULL);
    g_assert_true(sf_pki_make_ca(pki, &plain, NULL));
    for (const char *const *name = (const char *const[]){ "a", "b", "c", NULL }; *name; name++) {
        g_assert_true(sf_pki_make_host(pki, *name, NULL, &plain, NULL));
    }
    make_timed("expired", now - 2 * DAY, now - DAY);
    make_timed("tomorrow", now + DAY, now + 2 * DAY);
}

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_LEVEL_CRITICAL | G_LOG_FATAL_MASK);
    make_pki();
    g_test_add_func("/peer/talk", test_talk);
    g_test_add_func("/peer/large", test_large);
    g_test_add_func("/peer/timeout", test_timeout);
    g_test_add_func("/peer/both_dial", test_both_dial);
    g_test_add_func("/peer/restart", test_restart);
    g_test_add_func("/peer/remove", test_remove);
    g_test_add_func("/peer/wrong_name", test_wrong_name);
    g_test_add_func("/peer/foreign_ca", test_foreign_ca);
    g_test_add_func("/peer/same_name", test_same_name);
    g_test_add_func("/peer/listen_everywhere", test_listen_everywhere);
    g_test_add_func("/peer/bad_options", test_bad_options);
    for (guint i = 0; i < G_N_ELEMENTS(attacks); i++) {
        g_autofree char *path = g_strdelimit(g_strconcat("/peer/attack/", attacks[i].what, NULL), " ", '_');
        g_test_add_data_func(path, &attacks[i], test_attack);
    }
    g_test_add_func("/peer/flood_is_fair", test_flood_is_fair);
    g_test_add_data_func("/peer/bad_server/tls12", GUINT_TO_POINTER(0), test_bad_server);
    g_test_add_data_func("/peer/bad_server/expired", GUINT_TO_POINTER(1), test_bad_server);
    g_test_add_data_func("/peer/bad_server/pages", GUINT_TO_POINTER(2), test_bad_server);
    g_test_add_data_func("/peer/bad_server/client", GUINT_TO_POINTER(3), test_bad_server);
    g_test_add_func("/peer/silence", test_silence);
    status = g_test_run();
    sf_state_remove_folder(pki);
    g_free(pki);
    return status;
}
