/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Client side of the control protocol. Theory of operation:
 *
 * One stream socket, one JSON object a line; to another host, TLS on it (tls.h). A call sends its request with a fresh
 * integer id and then takes lines until the one with that id comes. On the way there may be events (kept, in order, for
 * sf_client_next_event()) and answers to calls that we gave up on (dropped). Everything blocks in one place,
 * wait_for(), with a deadline.
 *
 *       call() --> send_all() --> take_line() <--> fill() --> wait_for() --> poll()
 *                                    |                            |
 *                                 dispatch(): reply / event      tick: progress, Ctrl-C
 *
 * The daemon is trusted with what it says, not with how: wire/json_line bounds length and nesting of a line before
 * json-glib sees it; a line that is no JSON object, or an answer that is neither result nor error, ends the connection.
 *
 * A client belongs to the thread that uses it; there are no others.
 */
#include "sfvmm/client/client.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "sfvmm/client/tls.h"
#include "sfvmm/wire/json_line.h"

#define READ_CHUNK   16384u          /* bytes asked from the socket at once */
#define US_PER_MS    G_GINT64_CONSTANT(1000)

typedef struct {
    char *name;
    JsonObject *data;
} Event;

struct SfClient {
    char *socket;
    int fd;
    SfClientTls *tls; /* to another host; NULL: a UNIX socket */
    gint64 last_id;
    SfJsonLineReader *reader;
    GQueue events;                /* of Event */
    char *error_code, *error_hint;
    SfClientTick tick;
    guint tick_interval;          /* ms */
    gpointer tick_data;
};

G_DEFINE_QUARK(sf-client-error-quark, sf_client_error)

static void event_free(Event *event)
{
    g_free(event->name);
    json_object_unref(event->data);
    g_free(event);
}

char *sf_client_default_socket(void)
{
    const char *env = g_getenv(SF_CLIENT_SOCKET_ENV);
    if (env && *env) {
        return g_strdup(env);
    }
    const char *runtime = g_getenv("XDG_RUNTIME_DIR");
    if (geteuid() == 0 || !runtime || !*runtime) {
        return g_strdup(SF_CLIENT_SYSTEM_SOCKET);
    }
    return g_build_filename(runtime, SF_CLIENT_USER_SOCKET, NULL);
}

static SfJsonLineReader *reader_new(void)
{
    SfJsonLineReader *reader = sf_json_line_reader_new();
    sf_json_line_reader_set_max(reader, SF_CLIENT_ANSWER_MAX);
    return reader;
}

SfClient *sf_client_new(const char *socket)
{
    SfClient *client = g_new0(SfClient, 1);
    client->socket = socket ? g_strdup(socket) : sf_client_default_socket();
    client->fd = -1;
    client->reader = reader_new();
    g_queue_init(&client->events);
    return client;
}

static void client_disconnect(SfClient *client)
{
    if (client->tls) {
        g_clear_pointer(&client->tls, sf_client_tls_free);
    } else if (client->fd >= 0) {
        close(client->fd);
    }
    client->fd = -1;
    sf_json_line_reader_free(client->reader);      /* what was half received belongs to the connection that ended */
    client->reader = reader_new();
}

void sf_client_free(SfClient *client)
{
    if (!client) {
        return;
    }
    client_disconnect(client);
    sf_json_line_reader_free(client->reader);
    g_queue_clear_full(&client->events, (GDestroyNotify)event_free);
    g_free(client->socket);
    g_free(client->error_code);
    g_free(client->error_hint);
    g_free(client);
}

const char *sf_client_socket(const SfClient *client)
{
    return client->socket;
}

gboolean sf_client_is_remote(const SfClient *client)
{
    return sf_client_tls_is_address(client->socket);
}

int sf_client_fd(const SfClient *client)
{
    return client->fd;
}

const char *sf_client_error_code(const SfClient *client)
{
    return client->error_code;
}

const char *sf_client_error_hint(const SfClient *client)
{
    return client->error_hint;
}

void sf_client_set_tick(SfClient *client, SfClientTick tick, guint interval_ms, gpointer data)
{
    client->tick = tick;
    client->tick_interval = MAX(interval_ms, 1);
    client->tick_data = data;
}

static void set_hint(SfClient *client, const char *code, const char *hint)
{
    g_free(client->error_code);
    g_free(client->error_hint);
    client->error_code = g_strdup(code);
    client->error_hint = g_strdup(hint);
}

/* What a person can do when connect() failed with this errno. */
static void hint_no_daemon(SfClient *client, int error_number)
{
    g_autofree char *hint = NULL;

    if (error_number == EACCES || error_number == EPERM) {
        hint = g_strdup("run as the daemon's user, or start one of your own: `sfvmmd`");
    } else if (error_number == ENAMETOOLONG) {
        hint =
            g_strdup_printf("a socket's path has at most %zu bytes", sizeof(((struct sockaddr_un *)0)->sun_path) - 1);
    } else if (strcmp(client->socket, SF_CLIENT_SYSTEM_SOCKET) != 0 && access(SF_CLIENT_SYSTEM_SOCKET, F_OK) == 0) {
        hint = g_strdup_printf("start one: `sfvmmd`; or use the system's: --socket %s",
                               SF_CLIENT_SYSTEM_SOCKET);
    } else if (geteuid() == 0) {
        hint = g_strdup("start one: `systemctl start sfvmmd`, or without systemd `sfvmmd &`");
    } else {
        hint = g_strdup("start one: `sfvmmd &`");
    }
    set_hint(client, "no-daemon", hint);
}

static gboolean connect_tls(SfClient *client, GError **error)
{
    g_autoptr(GError) failure = NULL;
    g_autofree char *hint = NULL;

    client->tls = sf_client_tls_connect(client->socket, &hint, &failure);
    if (!client->tls) {
        set_hint(client, "no-daemon", hint);
        g_set_error_literal(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_NO_DAEMON, failure->message);
        return FALSE;
    }
    client->fd = sf_client_tls_fd(client->tls);
    return TRUE;
}

gboolean sf_client_connect(SfClient *client, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int error_number = 0;

    if (client->fd >= 0) {
        return TRUE;
    }
    set_hint(client, NULL, NULL);
    if (sf_client_is_remote(client)) {
        return connect_tls(client, error);
    }
    if (strlen(client->socket) >= sizeof(address.sun_path)) {
        error_number = ENAMETOOLONG;
    } else {
        strcpy(address.sun_path, client->socket);
        client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (client->fd < 0 || connect(client->fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
            error_number = errno;
        }
    }
    if (error_number) {
        client_disconnect(client);
        hint_no_daemon(client, error_number);
        g_set_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_NO_DAEMON, "no sfvmmd answers at %s: %s", client->socket,
                    g_strerror(error_number));
        return FALSE;
    }
    return TRUE;
}

static void set_lost(SfClient *client, GError **error, const char *why)
{
    client_disconnect(client);
    set_hint(client, "lost", "VMs go on without it; see its log, and start it again: it finds them");
    g_set_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_LOST, "sfvmmd at %s went away: %s", client->socket, why);
}

/* The host does not let us in, or something went wrong on the way. */
static void set_lost_tls(SfClient *client, GError **error)
{
    const char *refusal = sf_client_tls_refusal(client->tls);
    g_autofree char *hint = NULL;

    if (!refusal) {
        set_lost(client, error, sf_client_tls_problem(client->tls));
        return;
    }
    hint = g_strdup_printf("is your certificate of that host's CA, and \"%s\" in group [operators] of its sfvmmd.conf? "
                           "Its log says more",
                           sf_client_tls_name(client->tls));
    g_set_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_NO_DAEMON, "sfvmmd at %s refuses operator \"%s\": %s",
                client->socket, sf_client_tls_name(client->tls), refusal);
    client_disconnect(client);
    set_hint(client, "no-daemon", hint);
}

static void set_lost_errno(SfClient *client, GError **error)
{
    if (client->tls && errno == EPROTO) {
        set_lost_tls(client, error);
    } else {
        set_lost(client, error, g_strerror(errno));
    }
}

static void set_protocol(SfClient *client, GError **error, const char *what)
{
    client_disconnect(client);
    set_hint(client, "protocol", "is this sfvmmd's control socket, and of the same release?");
    g_set_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_PROTOCOL, "%s: %s", client->socket, what);
}

/* Until the socket is ready for `events`, the deadline (monotonic us, -1: none) passes, or the tick function ends it.
 */
static gboolean wait_for(SfClient *client, short events, gint64 began, gint64 deadline, GError **error)
{
    for (;;) {
        gint64 now = g_get_monotonic_time();
        if (client->tick && !client->tick((guint)((now - began) / US_PER_MS), client->tick_data)) {
            set_hint(client, "cancelled", NULL);
            g_set_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_CANCELLED, "interrupted");
            return FALSE;
        }
        int wait = -1;
        if (deadline >= 0) {
            wait = (int)CLAMP((deadline - now + US_PER_MS - 1) / US_PER_MS, 0, G_MAXINT);
        }
        gboolean last = wait >= 0;
        if (client->tick && (wait < 0 || wait > (int)client->tick_interval)) {
            wait = (int)client->tick_interval;
            last = FALSE;
        }
        struct pollfd pollfd = {.fd = client->fd, .events = events};
        int n = poll(&pollfd, 1, wait);
        if (n > 0) {
            return TRUE;
        }
        if (n < 0 && errno != EINTR) {
            set_lost(client, error, g_strerror(errno));
            return FALSE;
        }
        if (n == 0 && last) {
            set_hint(client, "timeout", NULL);
            g_set_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_TIMEOUT,
                        "sfvmmd did not answer in %" G_GINT64_FORMAT " ms",
                        (g_get_monotonic_time() - began) / US_PER_MS);
            return FALSE;
        }
    }
}

static gboolean send_all(SfClient *client, const char *data, gsize length, gint64 began, gint64 deadline,
                         GError **error)
{
    while (length > 0) {
        ssize_t n = client->tls ? sf_client_tls_send(client->tls, data, length)
                                : send(client->fd, data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            data += n;
            length -= (gsize)n;
        } else if (errno == EAGAIN) {
            if (!wait_for(client, POLLOUT, began, deadline, error)) {
                if (client->fd >= 0) {
                    client_disconnect(client);   /* half a request is on the wire: nothing may follow it */
                }
                return FALSE;
            }
        } else if (errno != EINTR) {
            set_lost_errno(client, error);
            return FALSE;
        }
    }
    return TRUE;
}

/* The next line as an object, from the reader or the socket. */
static JsonObject *take_line(SfClient *client, gint64 began, gint64 deadline, GError **error)
{
    char chunk[READ_CHUNK];

    for (;;) {
        g_autoptr(GError) wrong = NULL;
        JsonObject *line = NULL;
        if (!sf_json_line_reader_next(client->reader, &line, &wrong)) {
            set_protocol(client, error, wrong->message);
            return NULL;
        }
        if (line) {
            return line;
        }
        if (!(client->tls && sf_client_tls_pending(client->tls)) && !wait_for(client, POLLIN, began, deadline, error)) {
            return NULL;
        }
        ssize_t n = client->tls ? sf_client_tls_receive(client->tls, chunk, sizeof(chunk))
                                : recv(client->fd, chunk, sizeof(chunk), MSG_DONTWAIT);
        if (n > 0) {
            sf_json_line_reader_push(client->reader, chunk, (gsize)n);
        } else if (n == 0) {
            set_lost(client, error, "it closed the connection");
            return NULL;
        } else if (errno != EAGAIN && errno != EINTR) {
            set_lost_errno(client, error);
            return NULL;
        }
    }
}

static const char *member_string(JsonObject *object, const char *name)
{
    JsonNode *node = json_object_get_member(object, name);
    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_STRING
               ? json_node_get_string(node)
               : NULL;
}

static JsonObject *member_object(JsonObject *object, const char *name)
{
    JsonNode *node = json_object_get_member(object, name);
    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

/* Keeps the line if it is an event. */
static gboolean keep_event(SfClient *client, JsonObject *line)
{
    const char *name = member_string(line, "event");
    if (!name) {
        return FALSE;
    }
    JsonObject *data = member_object(line, "data");
    Event *event = g_new0(Event, 1);
    event->name = g_strdup(name);
    event->data = data ? json_object_ref(data) : json_object_new();
    if (client->events.length >= SF_CLIENT_EVENTS_MAX) {
        event_free(g_queue_pop_head(&client->events));
    }
    g_queue_push_tail(&client->events, event);
    return TRUE;
}

static gboolean has_id(JsonObject *line, gint64 id)
{
    JsonNode *node = json_object_get_member(line, "id");
    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_INT64 &&
           json_node_get_int(node) == id;
}

/* An answer to a request that the daemon could not even read has the id null: it can only be for the last one sent. */
static gboolean has_null_id(JsonObject *line)
{
    JsonNode *node = json_object_get_member(line, "id");
    return !node || JSON_NODE_HOLDS_NULL(node);
}

static JsonObject *take_answer(SfClient *client, JsonObject *line, GError **error)
{
    JsonObject *result = member_object(line, "result");
    JsonObject *failure = member_object(line, "error");

    if (result) {
        return json_object_ref(result);
    }
    if (!failure) {
        set_protocol(client, error, "sent an answer with neither result nor error");
        return NULL;
    }
    const char *code = member_string(failure, "code");
    const char *message = member_string(failure, "message");
    set_hint(client, code ? code : "failed", member_string(failure, "hint"));
    g_set_error_literal(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_REPLY, message ? message : "the daemon gave no reason");
    return NULL;
}

static char *make_request(gint64 id, const char *method, JsonObject *params, gsize *length)
{
    g_autoptr(JsonObject) request = json_object_new();
    json_object_set_int_member(request, "id", id);
    json_object_set_string_member(request, "method", method);
    json_object_set_object_member(request, "params", params ? params : json_object_new());
    return sf_json_line_format(request, length);
}

static gint64 make_deadline(gint64 began, int timeout_ms)
{
    return timeout_ms < 0 ? -1 : began + timeout_ms * US_PER_MS;
}

JsonObject *sf_client_call(SfClient *client, const char *method, JsonObject *params, int timeout_ms, GError **error)
{
    gint64 id = ++client->last_id;
    gsize length;
    g_autofree char *request = make_request(id, method, params, &length);
    gint64 began = g_get_monotonic_time();
    gint64 deadline = make_deadline(began, timeout_ms);

    set_hint(client, NULL, NULL);
    if (length - 1 > SF_JSON_LINE_MAX) {
        set_hint(client, "bad-request", NULL);
        g_set_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_PROTOCOL,
                    "%s: the request has %zu bytes, at most %u are taken", method, length - 1, SF_JSON_LINE_MAX);
        return NULL;
    }
    if (!sf_client_connect(client, error) ||
        !send_all(client, request, length, began, deadline, error)) {
        return NULL;
    }
    for (;;) {
        g_autoptr(JsonObject) line = take_line(client, began, deadline, error);
        if (!line) {
            return NULL;
        }
        if (!keep_event(client, line) &&
            (has_id(line, id) || (has_null_id(line) && json_object_has_member(line, "error")))) {
            return take_answer(client, line, error);
        }
    }
}

gboolean sf_client_next_event(SfClient *client, int timeout_ms, char **name, JsonObject **data, GError **error)
{
    gint64 began = g_get_monotonic_time();
    gint64 deadline = make_deadline(began, timeout_ms);

    set_hint(client, NULL, NULL);
    while (g_queue_is_empty(&client->events)) {
        if (client->fd < 0) {
            set_lost(client, error, "not connected");
            return FALSE;
        }
        g_autoptr(JsonObject) line = take_line(client, began, deadline, error);
        if (!line) {
            return FALSE;
        }
        keep_event(client, line);
    }
    Event *event = g_queue_pop_head(&client->events);
    *name = g_steal_pointer(&event->name);
    *data = json_object_ref(event->data);
    event_free(event);
    return TRUE;
}
