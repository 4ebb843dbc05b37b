/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * One GSource per link polls the socket for what the link can use now (read, write), and also wakes when GnuTLS or the
 * line reader still hold something that was read. Each turn does a bounded amount of work, so that a host that floods
 * us costs others a turn, not their service:
 *
 *     socket --at most READ_TURN bytes--> GnuTLS --> line reader --at most LINES_TURN lines--> object()
 *     send() --> queue, at most OUTPUT_MAX bytes --> GnuTLS --at most WRITE_TURN bytes--> socket
 *
 * A timer once a second does all that depends on time: the bound on handshake and hello, the keepalive that is sent
 * when nothing else was, and the end of a link on which nothing was heard. When our own main loop stood still for long,
 * the silence was ours: the clock starts again.
 *
 * A link that fails, or is ended, stops its sources and calls ended() from an idle source, so that nobody is called
 * from within a function that he has called.
 */
#include "sfvmm/cluster/peer_link.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "sfvmm/cluster/address.h"
#include "sfvmm/cluster/peer.h"
#include "sfvmm/cluster/peer_message.h"
#include "sfvmm/wire/json_line.h"

#define READ_TURN      (1u << 20)
#define WRITE_TURN     (1u << 20)
#define LINES_TURN     64u
#define RECORD_SIZE    (16u << 10)  /* of TLS: more does not come or go at once */
#define FIRST_LINE_MAX (256u << 10) /* bytes of a hello */
#define OUTPUT_MAX     (2u * SF_PEER_LINE_MAX)
#define TICK_MS        1000u
#define START_MS       10000u /* for handshake and hello together */
#define LINGER_MS      2000u  /* for what is queued when a link is ended */
#define ALERT_MS       500u   /* for an alert to be read before the connection is closed */
#define ALIVE_EVENT    "peer.alive"

enum { HANDSHAKE, OPEN, LINGER, ENDED };

typedef struct {
    GSource base;
    SfPeerLink *link;
    gpointer tag; /* of the socket */
} IoSource;

struct SfPeerLink {
    SfPeerLinkHandlers handlers;
    gpointer owner;
    GSocketConnection *connection;
    gnutls_session_t session; /* NULL: it could not be made */
    gboolean server, established, lines_left, alerted;
    guint turn_lines; /* served in this turn of the main loop */
    int state;
    char *name, *local_ip, *remote_ip;
    SfJsonLineReader *reader;
    GQueue output;                   /* of GBytes */
    gsize output_bytes, output_done; /* of all; sent of the first */
    gsize record; /* bytes of a record that GnuTLS could not send yet: to be offered again as they are */
    IoSource *io;
    guint tick, idle;
    gint64 started, heard, sent, ticked, ending; /* us */
    GError *error;
    guint8 input[RECORD_SIZE];
};

static void link_poll(SfPeerLink *link);

/* ---- its end ---- */

static void stop_sources(SfPeerLink *link)
{
    if (link->io) {
        g_source_destroy(&link->io->base);
        g_source_unref(&link->io->base);
        link->io = NULL;
    }
    g_clear_handle_id(&link->tick, g_source_remove);
}

static gboolean on_ended(gpointer data)
{
    SfPeerLink *link = data;

    link->idle = 0;
    link->handlers.ended(link, link->error, link->owner);
    return G_SOURCE_REMOVE;
}

static gboolean close_connection(gpointer data)
{
    g_io_stream_close(data, NULL, NULL);
    return G_SOURCE_REMOVE;
}

/* With what it sent unread, closing at once would reset the connection, and it would not learn why from our alert. */
static void close_after_alert(SfPeerLink *link)
{
    g_socket_shutdown(g_socket_connection_get_socket(link->connection), FALSE, TRUE, NULL);
    g_timeout_add_full(G_PRIORITY_DEFAULT, ALERT_MS, close_connection, g_object_ref(link->connection), g_object_unref);
}

/* Takes error. The first reason counts. */
static void link_fail(SfPeerLink *link, GError *error)
{
    if (link->state == ENDED) {
        g_error_free(error);
        return;
    }
    link->state = ENDED;
    if (link->error) {
        g_error_free(error);
    } else {
        link->error = error;
    }
    stop_sources(link);
    if (link->alerted) {
        close_after_alert(link);
    } else {
        close_connection(link->connection);
    }
    link->idle = g_idle_add_full(G_PRIORITY_DEFAULT, on_ended, link, NULL);
}

static void link_fail_with(SfPeerLink *link, SfPeerError code, const char *text)
{
    link_fail(link, g_error_new_literal(SF_PEER_ERROR, code, text));
}

/* A negative code of GnuTLS, or 0 for the end of the stream, that is none to be patient with. */
static void link_fail_tls(SfPeerLink *link, gssize code)
{
    GError *error = NULL;

    if (code == 0 || code == GNUTLS_E_PREMATURE_TERMINATION || code == GNUTLS_E_PULL_ERROR ||
        code == GNUTLS_E_PUSH_ERROR) {
        link_fail_with(link, SF_PEER_ERROR_LOST,
                       link->state == HANDSHAKE ? "the connection was closed in the middle of TLS's handshake"
                                                : "the connection was closed");
        return;
    }
    sf_peer_identity_set_error(link->session, (int)code, &error);
    if (link->state == HANDSHAKE && code != GNUTLS_E_FATAL_ALERT_RECEIVED) {
        gnutls_alert_send_appropriate(link->session, (int)code);
        link->alerted = TRUE;
    }
    link_fail(link, error);
}

static gboolean is_patience(gssize code)
{
    return code == GNUTLS_E_AGAIN || code == GNUTLS_E_INTERRUPTED;
}

/* ---- handshake ---- */

static void link_handshake(SfPeerLink *link)
{
    GError *error = NULL;
    int result = gnutls_handshake(link->session);

    if (result < 0 && !gnutls_error_is_fatal(result)) {
        return;
    }
    if (result < 0) {
        link_fail_tls(link, result);
        return;
    }
    link->name = sf_peer_identity_name(link->session, SF_CERTIFICATE_HOST, &error);
    if (!link->name) {
        gnutls_alert_send(link->session, GNUTLS_AL_FATAL, GNUTLS_A_CERTIFICATE_UNKNOWN);
        link->alerted = TRUE;
        link_fail(link, error);
        return;
    }
    link->state = OPEN;
    link->handlers.opened(link, link->owner);
}

/* ---- input ---- */

/* Lines that have been read, as many as a turn may still take. */
static void link_serve(SfPeerLink *link)
{
    link->lines_left = FALSE;
    for (; link->turn_lines < LINES_TURN; link->turn_lines++) {
        g_autoptr(JsonObject) object = NULL;
        g_autoptr(GError) error = NULL;

        if (!sf_json_line_reader_next(link->reader, &object, &error)) {
            link_fail_with(link, SF_PEER_ERROR_PROTOCOL, error->message);
            return;
        }
        if (!object) {
            return;
        }
        link->handlers.object(link, object, link->owner);
        if (link->state != OPEN) {
            return;
        }
    }
    link->lines_left = TRUE;
}

static void link_read(SfPeerLink *link)
{
    gsize total = 0;

    while (total < READ_TURN && !link->lines_left && link->state == OPEN) {
        gssize n = gnutls_record_recv(link->session, link->input, sizeof(link->input));
        if (is_patience(n)) {
            return;
        }
        if (n <= 0) {
            link_fail_tls(link, n);
            return;
        }
        total += (gsize)n;
        link->heard = g_get_monotonic_time();
        sf_json_line_reader_push(link->reader, link->input, (gsize)n);
        link_serve(link);
    }
}

/* ---- output ---- */

static void link_write(SfPeerLink *link)
{
    gsize total = 0;

    while (total < WRITE_TURN && !g_queue_is_empty(&link->output)) {
        GBytes *first = g_queue_peek_head(&link->output);
        gsize length, size;
        const char *data = g_bytes_get_data(first, &length);
        gssize n;

        size = link->record ? link->record : MIN(length - link->output_done, RECORD_SIZE);
        n = gnutls_record_send(link->session, data + link->output_done, size);
        if (is_patience(n)) {
            link->record = size;
            return;
        }
        link->record = 0;
        if (n < 0) {
            link_fail_tls(link, n);
            return;
        }
        total += (gsize)n;
        link->output_done += (gsize)n;
        link->output_bytes -= (gsize)n;
        if (link->output_done == length) {
            g_bytes_unref(g_queue_pop_head(&link->output));
            link->output_done = 0;
        }
    }
    if (link->state == LINGER && g_queue_is_empty(&link->output)) {
        gnutls_bye(link->session, GNUTLS_SHUT_WR);
        link_fail_with(link, SF_PEER_ERROR_LOST, "the connection was closed");
    }
}

gboolean sf_peer_link_send(SfPeerLink *link, JsonObject *object, GError **error)
{
    gsize length;
    char *line;

    if (link->state != OPEN) {
        return TRUE; /* its end is on the way to whoever should know */
    }
    line = sf_json_line_format(object, &length);
    if (length > SF_PEER_LINE_MAX) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "a message of %zu bytes is too long, %u are the most",
                    length, SF_PEER_LINE_MAX);
        g_free(line);
        return FALSE;
    }
    if (link->output_bytes + length > OUTPUT_MAX) {
        g_free(line);
        link_fail_with(link, SF_PEER_ERROR_PROTOCOL, "it does not read what it is sent");
        return TRUE;
    }
    g_queue_push_tail(&link->output, g_bytes_new_take(line, length));
    link->output_bytes += length;
    link->sent = g_get_monotonic_time();
    link_poll(link);
    return TRUE;
}

/* ---- the source ---- */

/* What the socket is polled for now. */
static void link_poll(SfPeerLink *link)
{
    GIOCondition condition = 0;

    if (!link->io) {
        return;
    }
    if (link->state == HANDSHAKE) {
        condition = gnutls_record_get_direction(link->session) ? G_IO_OUT : G_IO_IN;
    } else {
        condition = (link->state == OPEN ? G_IO_IN : 0) | (g_queue_is_empty(&link->output) ? 0 : G_IO_OUT);
    }
    g_source_modify_unix_fd(&link->io->base, link->io->tag, condition);
}

static gboolean has_pending(SfPeerLink *link)
{
    return link->state == OPEN && (link->lines_left || gnutls_record_check_pending(link->session) > 0);
}

static gboolean io_prepare(GSource *source, gint *timeout)
{
    *timeout = -1;
    return has_pending(((IoSource *)source)->link);
}

static gboolean io_check(GSource *source)
{
    IoSource *io = (IoSource *)source;

    return g_source_query_unix_fd(source, io->tag) != 0 || has_pending(io->link);
}

static gboolean io_dispatch(GSource *source, GSourceFunc callback, gpointer data)
{
    IoSource *io = (IoSource *)source;
    SfPeerLink *link = io->link;
    GIOCondition condition = g_source_query_unix_fd(source, io->tag);

    link->turn_lines = 0;
    if (link->state == HANDSHAKE) {
        link_handshake(link);
        condition = 0;
    }
    if (link->state == OPEN && link->lines_left) {
        link_serve(link);
    }
    if (link->state == OPEN && (has_pending(link) || condition & (G_IO_IN | G_IO_HUP | G_IO_ERR))) {
        link_read(link);
    }
    if ((link->state == OPEN || link->state == LINGER) && condition & (G_IO_OUT | G_IO_HUP | G_IO_ERR)) {
        link_write(link);
    }
    link_poll(link);
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs io_functions = { .prepare = io_prepare, .check = io_check, .dispatch = io_dispatch };

/* ---- time ---- */

static void send_alive(SfPeerLink *link)
{
    const SfPeerMessage alive = { .kind = SF_PEER_EVENT, .word = ALIVE_EVENT };
    g_autoptr(JsonObject) object = sf_peer_message_format(&alive);

    sf_peer_link_send(link, object, NULL);
}

static gboolean on_tick(gpointer data)
{
    SfPeerLink *link = data;
    gint64 now = g_get_monotonic_time();

    if (now - link->ticked > SF_PEER_DEAD_MS * 1000ll / 2) {
        link->heard = now;
    }
    link->ticked = now;
    if (link->state == LINGER && now - link->ending > LINGER_MS * 1000ll) {
        link_fail_with(link, SF_PEER_ERROR_LOST, "the connection was closed");
    } else if (!link->established && now - link->started > START_MS * 1000ll) {
        link_fail_with(link, SF_PEER_ERROR_PROTOCOL, "it did not prove its name and say hello in time");
    } else if (link->established && now - link->heard > SF_PEER_DEAD_MS * 1000ll) {
        link_fail_with(link, SF_PEER_ERROR_LOST, "nothing was heard of it for 10 s");
    } else if (link->established && now - link->sent > (SF_PEER_KEEPALIVE_MS - TICK_MS) * 1000ll) {
        send_alive(link);
    }
    return link->tick ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

/* ---- life ---- */

void sf_peer_link_establish(SfPeerLink *link)
{
    link->established = TRUE;
    sf_json_line_reader_set_max(link->reader, SF_PEER_LINE_MAX);
}

void sf_peer_link_end(SfPeerLink *link, GError *error)
{
    if (link->state == ENDED || link->error) {
        g_error_free(error);
        return;
    }
    link->error = error;
    if (link->state == OPEN && !g_queue_is_empty(&link->output)) {
        link->state = LINGER;
        link->ending = g_get_monotonic_time();
        link_poll(link);
        return;
    }
    link_fail_with(link, SF_PEER_ERROR_LOST, "ended");
}

static void set_socket_options(int fd)
{
    const int on = 1;
    const unsigned int dead = SF_PEER_DEAD_MS;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &dead, sizeof(dead));
}

SfPeerLink *sf_peer_link_new(SfPeerIdentity *identity, GSocketConnection *connection, gboolean server,
                             const SfPeerLinkHandlers *handlers, gpointer owner)
{
    SfPeerLink *link = g_new0(SfPeerLink, 1);
    GSocket *socket = g_socket_connection_get_socket(connection);
    GError *error = NULL;

    link->handlers = *handlers;
    link->owner = owner;
    link->connection = g_object_ref(connection);
    link->server = server;
    link->reader = sf_json_line_reader_new();
    sf_json_line_reader_set_max(link->reader, FIRST_LINE_MAX);
    g_queue_init(&link->output);
    link->local_ip = sf_address_ip_text(g_socket_connection_get_local_address(connection, NULL));
    link->remote_ip = sf_address_ip_text(g_socket_connection_get_remote_address(connection, NULL));
    link->started = link->heard = link->sent = link->ticked = g_get_monotonic_time();
    g_socket_set_blocking(socket, FALSE);
    set_socket_options(g_socket_get_fd(socket));
    link->session = sf_peer_identity_session(identity, server, g_socket_get_fd(socket), &error);
    if (!link->session) {
        link_fail(link, error);
        return link;
    }
    link->io = (IoSource *)g_source_new(&io_functions, sizeof(IoSource));
    link->io->link = link;
    link->io->tag = g_source_add_unix_fd(&link->io->base, g_socket_get_fd(socket), server ? G_IO_IN : G_IO_OUT);
    g_source_set_name(&link->io->base, "peer link");
    g_source_attach(&link->io->base, NULL);
    link->tick = g_timeout_add(TICK_MS, on_tick, link);
    return link;
}

void sf_peer_link_free(SfPeerLink *link)
{
    if (!link) {
        return;
    }
    stop_sources(link);
    g_clear_handle_id(&link->idle, g_source_remove);
    if (link->session) {
        gnutls_deinit(link->session);
    }
    if (!link->alerted) {
        close_connection(link->connection);
    }
    g_object_unref(link->connection);
    sf_json_line_reader_free(link->reader);
    g_queue_clear_full(&link->output, (GDestroyNotify)g_bytes_unref);
    g_clear_error(&link->error);
    g_free(link->name);
    g_free(link->local_ip);
    g_free(link->remote_ip);
    g_free(link);
}

const char *sf_peer_link_name(const SfPeerLink *link)
{
    return link->name;
}

const char *sf_peer_link_local_ip(const SfPeerLink *link)
{
    return link->local_ip;
}

const char *sf_peer_link_remote_ip(const SfPeerLink *link)
{
    return link->remote_ip;
}

gboolean sf_peer_link_is_server(const SfPeerLink *link)
{
    return link->server;
}
