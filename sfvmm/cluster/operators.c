/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A session takes TLS off a connection and hands what is left on, through a socket pair whose other end the control
 * server serves as it serves any connection:
 *
 *     operator ==TLS==> [in]  --> plain --+
 *                                         | socket pair: SfServer has the other end
 *     operator <==TLS== [out] <-- plain --+
 *
 *     HANDSHAKE --his certificate, his name in users--> OPEN --either side ends--> ending
 *
 * A session holds a record at most in each direction and reads no more until that is gone, so who reads slowly is read
 * slowly, end to end. The server's limits (lines, answers that nobody reads) hold as on its own socket; here stand
 * those on the number of sessions, and on time: for the handshake, for an alert to be read, for the last answer to be
 * taken. A peer that is gone without a word is noticed by TCP.
 *
 * A session that is over is freed from an idle source or a timer, never from within its own callbacks.
 */
#include "sfvmm/cluster/operators.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sfvmm/cluster/address.h"
#include "sfvmm/cluster/peer_identity.h"
#include "sfvmm/process/socket.h"
#include "sfvmm/wire/tls.h"

#define RECORD_SIZE    (16u << 10) /* of TLS */
#define PENDING_MAX    64u         /* connections whose handshake is not over */
#define PENDING_IP_MAX 16u         /* of them from one address */
#define OPEN_MAX       64u         /* sessions: a part of what SfServer takes, so that this host's own users get in */
#define HANDSHAKE_MS   10000u
#define ENDING_MS      500u  /* for an alert, or the last answer, to be read before the connection is closed */
#define DRAIN_MS       5000u /* for what the server has still said to be taken */
#define ALIVE_IDLE_S   30    /* TCP asks whether a silent peer is still there: so long after the last word, */
#define ALIVE_EACH_S   10    /* then as often as this, */
#define ALIVE_TIMES    3     /* so many times */

enum { HANDSHAKE, OPEN, ENDING };

/* Bytes on their way in one direction. */
typedef struct {
    guint8 bytes[RECORD_SIZE];
    gsize start, length;
} Piece;

typedef struct {
    GSource base;
    struct Session *session;
    gpointer tls_tag, plain_tag; /* plain_tag NULL: not polled */
} SessionSource;

typedef struct Session {
    SfOperators *operators;
    GSocketConnection *connection;
    gnutls_session_t tls;
    int fd, plain; /* of the connection; our end of the pair, -1: none */
    int state;
    gboolean deaf; /* the server takes no more: what comes in is dropped */
    char *ip, *name;
    SessionSource *source;
    guint timer; /* until it is given up */
    Piece in, out;
} Session;

struct SfOperators {
    SfPeerIdentity *identity;
    GSocketService *service;
    guint port;
    GHashTable *users;
    GPtrArray *sessions; /* of Session, owned */
    SfOperatorsAccept accept;
    gpointer owner;
};

/* ---- its end ---- */

static void session_free(Session *session)
{
    if (session->source) {
        g_source_destroy(&session->source->base);
        g_source_unref(&session->source->base);
    }
    g_clear_handle_id(&session->timer, g_source_remove);
    if (session->tls) {
        gnutls_deinit(session->tls);
    }
    if (session->plain >= 0) {
        close(session->plain);
    }
    g_io_stream_close(G_IO_STREAM(session->connection), NULL, NULL);
    g_object_unref(session->connection);
    g_free(session->ip);
    g_free(session->name);
    g_free(session);
}

static gboolean on_over(gpointer data)
{
    Session *session = data;

    session->timer = 0;
    g_ptr_array_remove_fast(session->operators->sessions, session);
    return G_SOURCE_REMOVE;
}

/* Frees it after so many ms. */
static void session_end(Session *session, guint ms)
{
    if (session->state == ENDING) {
        return;
    }
    session->state = ENDING;
    g_source_destroy(&session->source->base);
    g_clear_handle_id(&session->timer, g_source_remove);
    if (session->plain >= 0) {
        close(session->plain);
        session->plain = -1;
    }
    shutdown(session->fd, SHUT_WR);
    session->timer = g_timeout_add(ms, on_over, session);
}

/* He must learn why. Closing with something of his unread would reset the connection before he has. */
static void session_refuse(Session *session, gnutls_alert_description_t alert, const char *why)
{
    g_message("operators: a connection from %s is refused: %s", session->ip, why);
    gnutls_alert_send(session->tls, GNUTLS_AL_FATAL, alert);
    session_end(session, ENDING_MS);
}

static gboolean on_too_late(gpointer data)
{
    Session *session = data;

    session->timer = 0;
    if (session->state == HANDSHAKE) {
        g_message("operators: a connection from %s did not show a certificate in time", session->ip);
    }
    session_end(session, 0);
    return G_SOURCE_REMOVE;
}

static gboolean is_patience(gssize code)
{
    return code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED;
}

/* ---- handshake ---- */

static guint count_open(const SfOperators *operators)
{
    guint n = 0;

    for (guint i = 0; i < operators->sessions->len; i++) {
        n += ((const Session *)g_ptr_array_index(operators->sessions, i))->state == OPEN;
    }
    return n;
}

static void session_open(Session *session, guint32 user)
{
    SfOperators *operators = session->operators;
    g_autoptr(GError) error = NULL;
    int pair[2];

    if (count_open(operators) >= OPEN_MAX) {
        session_refuse(session, GNUTLS_A_INTERNAL_ERROR, "there are too many sessions");
        return;
    }
    if (!sf_socket_pair(SOCK_STREAM | SOCK_NONBLOCK, pair, &error)) {
        session_refuse(session, GNUTLS_A_INTERNAL_ERROR, error->message);
        return;
    }
    session->plain = pair[0];
    session->state = OPEN;
    g_clear_handle_id(&session->timer, g_source_remove);
    session->source->plain_tag = g_source_add_unix_fd(&session->source->base, session->plain, G_IO_IN);
    g_message("operator \"%s\" is connected, from %s", session->name, session->ip);
    operators->accept(pair[1], user, operators->owner);
}

static void session_handshake(Session *session)
{
    int result = gnutls_handshake(session->tls);
    g_autoptr(GError) error = NULL;
    gpointer user;

    if (result < 0 && !gnutls_error_is_fatal(result)) {
        return;
    }
    if (result < 0) {
        sf_peer_identity_set_error(session->tls, result, &error);
        g_message("operators: a connection from %s: %s", session->ip, error->message);
        if (result != GNUTLS_E_FATAL_ALERT_RECEIVED) {
            gnutls_alert_send_appropriate(session->tls, result);
        }
        session_end(session, ENDING_MS);
        return;
    }
    session->name = sf_peer_identity_name(session->tls, SF_CERTIFICATE_OPERATOR, &error);
    if (!session->name) {
        session_refuse(session, GNUTLS_A_UNSUPPORTED_CERTIFICATE, error->message);
    } else if (!g_hash_table_lookup_extended(session->operators->users, session->name, NULL, &user)) {
        g_autofree char *why =
            g_strdup_printf("operator \"%s\" is not in group [operators] of sfvmmd.conf", session->name);
        session_refuse(session, GNUTLS_A_ACCESS_DENIED, why);
    } else {
        session_open(session, GPOINTER_TO_UINT(user));
    }
}

/* ---- both ways ---- */

/* From the operator to the server. FALSE: the operator is gone. */
static gboolean move_in(Session *session)
{
    Piece *in = &session->in;

    for (;;) {
        if (in->length == 0) {
            gssize n = gnutls_record_recv(session->tls, in->bytes, sizeof(in->bytes));
            if (n <= 0) {
                return is_patience(n);
            }
            in->start = 0;
            in->length = session->deaf ? 0 : (gsize)n;
            continue;
        }
        gssize n = send(session->plain, in->bytes + in->start, in->length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            return TRUE;
        }
        session->deaf = n < 0;
        in->start += n < 0 ? 0 : (gsize)n;
        in->length -= n < 0 ? in->length : (gsize)n;
    }
}

/* From the server to the operator. FALSE: the server has said all, or the operator is gone. */
static gboolean move_out(Session *session)
{
    Piece *out = &session->out;

    for (;;) {
        if (out->length == 0) {
            gssize n = recv(session->plain, out->bytes, sizeof(out->bytes), MSG_DONTWAIT);
            if (n <= 0) {
                return n < 0 && (errno == EAGAIN || errno == EINTR);
            }
            out->start = 0;
            out->length = (gsize)n;
        }
        gssize n = gnutls_record_send(session->tls, out->bytes + out->start, out->length);
        if (n < 0) {
            return is_patience(n); /* the same bytes are offered again */
        }
        out->start += (gsize)n;
        out->length -= (gsize)n;
    }
}

static void session_poll(Session *session)
{
    SessionSource *source = session->source;
    GIOCondition tls, plain;

    if (session->state == HANDSHAKE) {
        tls = gnutls_record_get_direction(session->tls) ? G_IO_OUT : G_IO_IN;
    } else {
        tls = (session->in.length == 0 ? G_IO_IN : 0) | (session->out.length ? G_IO_OUT : 0);
    }
    plain = (session->in.length ? G_IO_OUT : 0) | (session->out.length == 0 ? G_IO_IN : 0);
    g_source_modify_unix_fd(&source->base, source->tls_tag, tls);
    if (source->plain_tag) {
        g_source_modify_unix_fd(&source->base, source->plain_tag, plain);
    }
}

/* The server has closed; what it said last is taken by the operator soon, or not at all. */
static void session_drain(Session *session)
{
    SessionSource *source = session->source;

    g_source_remove_unix_fd(&source->base, g_steal_pointer(&source->plain_tag)); /* it would be ready all the time */
    session->timer = g_timeout_add(DRAIN_MS, on_too_late, session);
}

static gboolean on_ready(GSource *base, GSourceFunc callback, gpointer data)
{
    SessionSource *source = (SessionSource *)base;
    Session *session = source->session;
    GIOCondition tls = g_source_query_unix_fd(base, source->tls_tag);
    GIOCondition plain = source->plain_tag ? g_source_query_unix_fd(base, source->plain_tag) : 0;

    if (session->state == HANDSHAKE) {
        session_handshake(session);
    }
    if (session->state == OPEN && !move_out(session)) {
        gnutls_bye(session->tls, GNUTLS_SHUT_WR);
        session_end(session, ENDING_MS);
    } else if (session->state == OPEN && (!move_in(session) || tls & (G_IO_HUP | G_IO_ERR))) {
        session_end(session, 0);
    } else if (session->state == OPEN && plain & G_IO_HUP && session->out.length) {
        session_drain(session);
    }
    if (session->state != ENDING) {
        session_poll(session);
    }
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs session_functions = { .dispatch = on_ready };

/* ---- new ones ---- */

static void set_socket_options(int fd)
{
    const int on = 1, idle = ALIVE_IDLE_S, each = ALIVE_EACH_S, times = ALIVE_TIMES;
    const unsigned int dead = (ALIVE_IDLE_S + ALIVE_TIMES * ALIVE_EACH_S) * 1000u; /* ms: also for what is not taken */

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &each, sizeof(each));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof(times));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &dead, sizeof(dead));
}

/* Connections without a certificate yet; with ip: of those from there. */
static guint count_pending(const SfOperators *operators, const char *ip)
{
    guint n = 0;

    for (guint i = 0; i < operators->sessions->len; i++) {
        const Session *session = g_ptr_array_index(operators->sessions, i);
        n += session->state != OPEN && (!ip || strcmp(ip, session->ip) == 0);
    }
    return n;
}

static gboolean on_incoming(GSocketService *service, GSocketConnection *connection, GObject *object,
                            SfOperators *operators)
{
    GSocket *socket = g_socket_connection_get_socket(connection);
    g_autofree char *ip = sf_address_ip_text(g_socket_connection_get_remote_address(connection, NULL));
    g_autoptr(GError) error = NULL;
    gnutls_session_t tls;
    Session *session;

    if (count_pending(operators, NULL) >= PENDING_MAX || count_pending(operators, ip) >= PENDING_IP_MAX) {
        return TRUE; /* it is closed */
    }
    tls = sf_peer_identity_session(operators->identity, TRUE, g_socket_get_fd(socket), &error);
    if (!tls) {
        g_warning("operators: %s", error->message);
        return TRUE;
    }
    session = g_new0(Session, 1);
    session->operators = operators;
    session->connection = g_object_ref(connection);
    session->tls = tls;
    session->fd = g_socket_get_fd(socket);
    session->plain = -1;
    session->ip = g_steal_pointer(&ip);
    g_socket_set_blocking(socket, FALSE);
    set_socket_options(session->fd);
    session->source = (SessionSource *)g_source_new(&session_functions, sizeof(SessionSource));
    session->source->session = session;
    session->source->tls_tag = g_source_add_unix_fd(&session->source->base, session->fd, G_IO_IN);
    g_source_set_name(&session->source->base, "operator");
    g_source_attach(&session->source->base, NULL);
    session->timer = g_timeout_add(HANDSHAKE_MS, on_too_late, session);
    g_ptr_array_add(operators->sessions, session);
    return TRUE;
}

SfOperators *sf_operators_new(const SfOperatorsOptions *options, GError **error)
{
    SfOperators *operators = g_new0(SfOperators, 1);

    operators->users = g_hash_table_ref(options->users);
    operators->sessions = g_ptr_array_new_with_free_func((GDestroyNotify)session_free);
    operators->identity = sf_peer_identity_load(options->directory, options->name, error);
    if (operators->identity) {
        operators->service =
            sf_address_listen("control-listen", options->listen, SF_TLS_OPERATORS_PORT, &operators->port, error);
    }
    if (!operators->service) {
        sf_operators_free(operators);
        return NULL;
    }
    g_signal_connect(operators->service, "incoming", G_CALLBACK(on_incoming), operators);
    return operators;
}

void sf_operators_start(SfOperators *operators, SfOperatorsAccept accept, gpointer owner)
{
    operators->accept = accept;
    operators->owner = owner;
    g_socket_service_start(operators->service);
}

void sf_operators_free(SfOperators *operators)
{
    if (!operators) {
        return;
    }
    if (operators->service) {
        g_signal_handlers_disconnect_by_data(operators->service, operators);
        g_socket_service_stop(operators->service);
        g_socket_listener_close(G_SOCKET_LISTENER(operators->service));
        g_object_unref(operators->service);
    }
    g_ptr_array_unref(operators->sessions);
    sf_peer_identity_free(operators->identity);
    g_hash_table_unref(operators->users);
    g_free(operators);
}

guint sf_operators_port(const SfOperators *operators)
{
    return operators->port;
}
