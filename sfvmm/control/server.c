/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/server.h"

#include <errno.h>
#include <gio/gunixsocketaddress.h>
#include <grp.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "sfvmm/control/api.h"
#include "sfvmm/wire/json_line.h"

#define READ_SIZE       (64u << 10)
#define OUTPUT_PAUSE    (2u << 20)  /* bytes queued, above which no more requests are read */
#define OUTPUT_MAX      (16u << 20) /* bytes queued, above which the peer has given up reading */
#define CONNECTIONS_MAX 256u

struct SfServer {
    SfHost *host;
    GSocketService *service;
    GPtrArray *connections; /* of Connection, owned */
    gulong event_handler;
};

typedef struct {
    int refs;
    SfServer *server; /* NULL when closed */
    GSocketConnection *stream;
    guint32 user; /* uid of the peer */
    SfJsonLineReader *reader;
    GQueue output; /* of GBytes */
    gsize output_bytes;
    gsize output_done; /* of the first */
    gboolean reading, writing, subscribed;
    char input[READ_SIZE];
} Connection;

struct SfCall {
    Connection *connection;
    JsonNode *id;
};

static void connection_read(Connection *connection);

static Connection *connection_ref(Connection *connection)
{
    connection->refs++;
    return connection;
}

static void connection_unref(Connection *connection)
{
    if (--connection->refs > 0) {
        return;
    }
    g_queue_clear_full(&connection->output, (GDestroyNotify)g_bytes_unref);
    sf_json_line_reader_free(connection->reader);
    g_object_unref(connection->stream);
    g_free(connection);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Connection, connection_unref)

static void connection_close(Connection *connection)
{
    SfServer *server = g_steal_pointer(&connection->server);

    if (server) {
        g_io_stream_close(G_IO_STREAM(connection->stream), NULL, NULL);
        g_ptr_array_remove_fast(server->connections, connection);
    }
}

/* ---- output ---- */

static void connection_write(Connection *connection);

static void on_written(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Connection) connection = data;
    gssize n = g_output_stream_write_finish(G_OUTPUT_STREAM(source), result, NULL);
    GBytes *first = g_queue_peek_head(&connection->output);

    connection->writing = FALSE;
    if (n <= 0 || !connection->server) {
        connection_close(connection);
        return;
    }
    connection->output_done += (gsize)n;
    connection->output_bytes -= (gsize)n;
    if (connection->output_done == g_bytes_get_size(first)) {
        g_bytes_unref(g_queue_pop_head(&connection->output));
        connection->output_done = 0;
    }
    connection_write(connection);
    connection_read(connection);
}

static void connection_write(Connection *connection)
{
    GBytes *first = g_queue_peek_head(&connection->output);
    const char *data;
    gsize length;

    if (!first || connection->writing || !connection->server) {
        return;
    }
    data = g_bytes_get_data(first, &length);
    connection->writing = TRUE;
    g_output_stream_write_async(g_io_stream_get_output_stream(G_IO_STREAM(connection->stream)),
                                data + connection->output_done, length - connection->output_done, G_PRIORITY_DEFAULT,
                                NULL, on_written, connection_ref(connection));
}

static void connection_send(Connection *connection, JsonObject *object)
{
    gsize length;
    char *line;

    if (!connection->server) {
        return;
    }
    line = sf_json_line_format(object, &length);
    g_queue_push_tail(&connection->output, g_bytes_new_take(line, length));
    connection->output_bytes += length;
    if (connection->output_bytes > OUTPUT_MAX) {
        g_message("control connection: the peer does not read; it is closed");
        connection_close(connection);
        return;
    }
    connection_write(connection);
}

/* ---- calls ---- */

static void call_send(SfCall *call, const char *member, JsonObject *value)
{
    g_autoptr(JsonObject) object = json_object_new();

    if (call->id) {
        json_object_set_member(object, "id", g_steal_pointer(&call->id));
    } else {
        json_object_set_null_member(object, "id");
    }
    json_object_set_object_member(object, member, value);
    connection_send(call->connection, object);
    connection_unref(call->connection);
    g_free(call);
}

void sf_call_reply(SfCall *call, JsonObject *result)
{
    call_send(call, "result", result);
}

void sf_call_fail(SfCall *call, const GError *error)
{
    JsonObject *object = json_object_new();
    const char *hint, *code = sf_api_error_code(error, &hint);

    json_object_set_string_member(object, "code", code);
    json_object_set_string_member(object, "message", error->message);
    if (hint) {
        json_object_set_string_member(object, "hint", hint);
    }
    call_send(call, "error", object);
}

guint32 sf_call_user(SfCall *call)
{
    return call->connection->user;
}

void sf_call_subscribe(SfCall *call)
{
    call->connection->subscribed = TRUE;
}

static SfCall *call_new(Connection *connection, JsonNode *id)
{
    SfCall *call = g_new0(SfCall, 1);

    call->connection = connection_ref(connection);
    call->id = id ? json_node_copy(id) : NULL;
    return call;
}

static gboolean id_is_valid(JsonNode *id)
{
    return id && JSON_NODE_HOLDS_VALUE(id) &&
           (json_node_get_value_type(id) == G_TYPE_INT64 || json_node_get_value_type(id) == G_TYPE_STRING);
}

static void call_refuse(SfCall *call, const char *message)
{
    g_autoptr(GError) error = g_error_new_literal(G_IO_ERROR, G_IO_ERROR_INVALID_DATA, message);

    sf_call_fail(call, error);
}

/* The first member that no request has, or NULL. */
static const char *unknown_member(JsonObject *request)
{
    static const char *const known[] = { "id", "method", "params", NULL };
    g_autoptr(GList) members = json_object_get_members(request);

    for (GList *item = members; item; item = item->next) {
        if (!g_strv_contains(known, item->data)) {
            return item->data;
        }
    }
    return NULL;
}

static void connection_request(Connection *connection, JsonObject *request)
{
    const char *unknown = unknown_member(request);
    JsonNode *id = json_object_get_member(request, "id");
    JsonNode *method = json_object_get_member(request, "method");
    JsonNode *params = json_object_get_member(request, "params");
    SfCall *call = call_new(connection, id_is_valid(id) ? id : NULL);
    g_autoptr(JsonObject) none = json_object_new();

    if (!id_is_valid(id)) {
        call_refuse(call, "request: \"id\" must be an integer or a string");
    } else if (!method || !JSON_NODE_HOLDS_VALUE(method) || json_node_get_value_type(method) != G_TYPE_STRING) {
        call_refuse(call, "request: \"method\" must be a string");
    } else if (params && !JSON_NODE_HOLDS_OBJECT(params)) {
        call_refuse(call, "request: \"params\" must be an object");
    } else if (unknown) {
        g_autofree char *message = g_strdup_printf("request: member \"%s\": not known", unknown);
        call_refuse(call, message);
    } else {
        sf_api_call(connection->server->host, json_node_get_string(method),
                    params ? json_node_get_object(params) : none, call);
    }
}

/* ---- input ---- */

/* Serves what has been read. FALSE: the connection is at its end. */
static gboolean connection_serve(Connection *connection)
{
    for (;;) {
        g_autoptr(JsonObject) request = NULL;
        g_autoptr(GError) error = NULL;

        if (!sf_json_line_reader_next(connection->reader, &request, &error)) {
            gboolean fatal = g_error_matches(error, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE);
            g_autofree char *message = g_strconcat("request: ", error->message, NULL);
            call_refuse(call_new(connection, NULL), message);
            if (fatal) {
                return FALSE;
            }
            continue;
        }
        if (!request) {
            return TRUE;
        }
        connection_request(connection, request);
        if (!connection->server) {
            return FALSE;
        }
    }
}

static void on_read(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(Connection) connection = data;
    gssize n = g_input_stream_read_finish(G_INPUT_STREAM(source), result, NULL);

    connection->reading = FALSE;
    if (n <= 0 || !connection->server) {
        connection_close(connection);
        return;
    }
    sf_json_line_reader_push(connection->reader, connection->input, (gsize)n);
    if (!connection_serve(connection)) {
        connection_close(connection);
        return;
    }
    connection_read(connection);
}

static void connection_read(Connection *connection)
{
    if (connection->reading || !connection->server || connection->output_bytes > OUTPUT_PAUSE) {
        return;
    }
    connection->reading = TRUE;
    g_input_stream_read_async(g_io_stream_get_input_stream(G_IO_STREAM(connection->stream)), connection->input,
                              READ_SIZE, G_PRIORITY_DEFAULT, NULL, on_read, connection_ref(connection));
}

/* Who cannot be told from the daemon's own user counts as that: the socket lets nobody else in without a group. */
static guint32 user_of(GSocketConnection *stream)
{
    g_autoptr(GCredentials) peer = g_socket_get_credentials(g_socket_connection_get_socket(stream), NULL);
    uid_t user = peer ? g_credentials_get_unix_user(peer, NULL) : (uid_t)-1;

    return user == (uid_t)-1 ? geteuid() : user;
}

static void server_add(SfServer *server, GSocketConnection *stream, guint32 user)
{
    Connection *connection;

    if (server->connections->len >= CONNECTIONS_MAX) {
        g_message("control socket: %u connections are open; a new one is refused", CONNECTIONS_MAX);
        return;
    }
    connection = g_new0(Connection, 1);
    connection->refs = 1;
    connection->server = server;
    connection->stream = g_object_ref(stream);
    connection->user = user;
    connection->reader = sf_json_line_reader_new();
    g_queue_init(&connection->output);
    g_ptr_array_add(server->connections, connection);
    connection_read(connection);
}

static gboolean on_incoming(GSocketService *service, GSocketConnection *stream, GObject *source, SfServer *server)
{
    server_add(server, stream, user_of(stream));
    return TRUE;
}

void sf_server_take(SfServer *server, int fd, guint32 user)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GSocket) socket = g_socket_new_from_fd(fd, &error);
    g_autoptr(GSocketConnection) stream = socket ? g_socket_connection_factory_create_connection(socket) : NULL;

    if (!stream) {
        g_warning("control connection: %s", error->message);
        close(fd);
        return;
    }
    server_add(server, stream, user);
}

static void on_event(SfHost *host, const char *name, JsonObject *data, SfServer *server)
{
    g_autoptr(GPtrArray) connections =
        g_ptr_array_copy(server->connections, (GCopyFunc)(void (*)(void))connection_ref, NULL);

    for (guint i = 0; i < connections->len; i++) {
        Connection *connection = g_ptr_array_index(connections, i);
        if (connection->subscribed) {
            g_autoptr(JsonObject) event = json_object_new();
            json_object_set_string_member(event, "event", name);
            json_object_set_object_member(event, "data", json_object_ref(data));
            connection_send(connection, event);
        }
    }
}

/* ---- the socket ---- */

/* A stale socket file may be replaced, one that answers may not. */
static gboolean socket_is_served(const char *path)
{
    g_autoptr(GSocketClient) client = g_socket_client_new();
    g_autoptr(GSocketAddress) address = g_unix_socket_address_new(path);
    g_autoptr(GSocketConnection) connection =
        g_socket_client_connect(client, G_SOCKET_CONNECTABLE(address), NULL, NULL);

    return connection != NULL;
}

static gboolean give_to_group(const char *path, const char *group, GError **error)
{
    struct group *entry = group ? getgrnam(group) : NULL;

    if (group && !entry) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "control socket \"%s\": group \"%s\" does not exist", path,
                    group);
        return FALSE;
    }
    if ((entry && chown(path, (uid_t)-1, entry->gr_gid) < 0) || chmod(path, entry ? 0660 : 0600) < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "control socket \"%s\": can't set its owner and mode: %s",
                    path, g_strerror(errno));
        return FALSE;
    }
    return TRUE;
}

static gboolean listen_at(SfServer *server, const SfDaemonConfig *config, GError **error)
{
    g_autoptr(GSocketAddress) address = NULL;

    if (strlen(config->socket) >= sizeof(((struct sockaddr_un *)NULL)->sun_path)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "control socket \"%s\": the path is too long",
                    config->socket);
        return FALSE;
    }
    if (socket_is_served(config->socket)) {
        g_set_error(
            error, G_IO_ERROR, G_IO_ERROR_ADDRESS_IN_USE,
            "control socket \"%s\": another sfvmmd serves it; stop that one, or give this one its own --run-dir",
            config->socket);
        return FALSE;
    }
    unlink(config->socket);
    address = g_unix_socket_address_new(config->socket);
    if (!g_socket_listener_add_address(G_SOCKET_LISTENER(server->service), address, G_SOCKET_TYPE_STREAM,
                                       G_SOCKET_PROTOCOL_DEFAULT, NULL, NULL, error)) {
        g_prefix_error(error, "control socket \"%s\": ", config->socket);
        return FALSE;
    }
    return give_to_group(config->socket, config->group, error);
}

static gboolean listen_on(SfServer *server, int fd, GError **error)
{
    g_autoptr(GSocket) socket = g_socket_new_from_fd(fd, error);

    return socket && g_socket_listener_add_socket(G_SOCKET_LISTENER(server->service), socket, NULL, error);
}

SfServer *sf_server_new(SfHost *host, int fd, GError **error)
{
    SfServer *server = g_new0(SfServer, 1);

    server->host = g_object_ref(host);
    server->service = g_socket_service_new();
    server->connections = g_ptr_array_new_with_free_func((GDestroyNotify)connection_unref);
    if (!(fd >= 0 ? listen_on(server, fd, error) : listen_at(server, sf_host_config(host), error))) {
        sf_server_free(server);
        return NULL;
    }
    g_signal_connect(server->service, "incoming", G_CALLBACK(on_incoming), server);
    server->event_handler = g_signal_connect(host, "event", G_CALLBACK(on_event), server);
    g_socket_service_start(server->service);
    return server;
}

void sf_server_free(SfServer *server)
{
    g_clear_signal_handler(&server->event_handler, server->host);
    g_socket_service_stop(server->service);
    g_socket_listener_close(G_SOCKET_LISTENER(server->service));
    while (server->connections->len > 0) {
        connection_close(g_ptr_array_index(server->connections, 0));
    }
    g_ptr_array_unref(server->connections);
    g_object_unref(server->service);
    g_object_unref(server->host);
    g_free(server);
}
