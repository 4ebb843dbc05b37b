/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The client library against a peer that the test plays in a thread: good and slow answers, events in between, errors,
 * garbage, lines without end, lost connections, nobody there.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "sfvmm/client/client.h"

#define LONG_MS      60000      /* a bound that is never reached */
#define SHORT_MS     50         /* for what must time out */
#define HUGE_LINE    (SF_CLIENT_ANSWER_MAX + 4096u)

/* What the peer does with a connection: reads a line for each request, sends the texts. */
typedef struct {
    const char *answers[8];     /* one for each request, NULL ends; "\x01..." is sent byte by byte; "" hangs up */
    gboolean huge;              /* send a line without end first */
    gboolean silent;            /* never answer */
    char *directory, *path;
    int listener;
    GThread *thread;
} Peer;

static void send_text(int fd, const char *text, gsize length)
{
    while (length > 0) {
        ssize_t n = send(fd, text, length, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) {
            return;
        }
        if (n > 0) {
            text += n;
            length -= (gsize)n;
        }
    }
}

/* FALSE: the client has gone. */
static gboolean read_request(int fd)
{
    char c = 0;

    while (c != '\n') {
        if (read(fd, &c, 1) <= 0) {
            return FALSE;
        }
    }
    return TRUE;
}

static gpointer play(gpointer data)
{
    Peer *peer = data;
    int fd = accept4(peer->listener, NULL, NULL, SOCK_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    for (guint i = 0; read_request(fd); i++) {
        if (peer->huge) {
            g_autofree char *line = g_malloc(HUGE_LINE);
            memset(line, ' ', HUGE_LINE);
            send_text(fd, line, HUGE_LINE);
        }
        const char *answer = peer->answers[i];
        if (peer->silent || !answer) {
            continue;
        }
        if (!*answer) {
            break;
        }
        if (*answer == '\x01') {
            for (const char *p = answer + 1; *p; p++) {
                send_text(fd, p, 1);
            }
        } else {
            send_text(fd, answer, strlen(answer));
        }
    }
    close(fd);
    return NULL;
}

static SfClient *start(Peer *peer)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    peer->directory = g_dir_make_tmp("sfctl-XXXXXX", NULL);
    peer->path = g_build_filename(peer->directory, "socket", NULL);
    g_strlcpy(address.sun_path, peer->path, sizeof(address.sun_path));
    peer->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(peer->listener, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    g_assert_cmpint(listen(peer->listener, 1), ==, 0);
    peer->thread = g_thread_new("peer", play, peer);
    return sf_client_new(peer->path);
}

static void stop(Peer *peer, SfClient *client)
{
    sf_client_free(client);
    g_thread_join(peer->thread);
    close(peer->listener);
    g_unlink(peer->path);
    g_rmdir(peer->directory);
    g_free(peer->path);
    g_free(peer->directory);
}

static void test_call(void)
{
    Peer peer = {
        .answers = { "{\"id\":1,\"result\":{\"n\":1}}\n", "\x01{\"id\":2,\"result\":{\"n\":2}}\n",
                     "{\"id\":99,\"result\":{}}\n\n{\"id\":\"3\",\"result\":{}}\n{\"id\":3,\"result\":{\"n\":3}}\n" }
    };
    SfClient *client = start(&peer);

    for (int i = 1; i <= 3; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) result = sf_client_call(client, "m", NULL, LONG_MS, &error);
        g_assert_no_error(error);
        g_assert_cmpint(json_object_get_int_member(result, "n"), ==, i);
        g_assert_null(sf_client_error_code(client));
    }
    stop(&peer, client);
}

static void test_events(void)
{
    Peer peer = {.answers = {"{\"event\":\"vm.started\",\"data\":{\"name\":\"web\"}}\n{\"id\":1,\"result\":{}}\n"
                             "{\"event\":\"vm.exited\"}\n"}};
    SfClient *client = start(&peer);
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = sf_client_call(client, "subscribe", NULL, LONG_MS, &error);
    static const char *const names[] = {"vm.started", "vm.exited"};

    g_assert_no_error(error);
    g_assert_nonnull(result);
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *name = NULL;
        g_autoptr(JsonObject) data = NULL;
        g_assert_true(sf_client_next_event(client, LONG_MS, &name, &data, &error));
        g_assert_no_error(error);
        g_assert_cmpstr(name, ==, names[i]);
        g_assert_cmpuint(json_object_get_size(data), ==, i == 0 ? 1 : 0);
    }
    g_autofree char *name = NULL;
    g_autoptr(JsonObject) data = NULL;
    g_assert_false(sf_client_next_event(client, 0, &name, &data, &error));
    g_assert_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_TIMEOUT);
    stop(&peer, client);
}

static void test_error(void)
{
    Peer peer = { .answers = {
                      "{\"id\":1,\"error\":{\"code\":\"no-such-vm\",\"message\":\"VM \\\"x\\\"\",\"hint\":\"look\"}}\n",
                      "{\"id\":2,\"error\":{}}\n",
                      "{\"id\":null,\"error\":{\"code\":\"bad-request\",\"message\":\"m\"}}\n" } };
    static const char *const codes[] = {"no-such-vm", "failed", "bad-request"};
    SfClient *client = start(&peer);

    for (guint i = 0; i < G_N_ELEMENTS(codes); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(sf_client_call(client, "m", NULL, LONG_MS, &error));
        g_assert_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_REPLY);
        g_assert_cmpstr(sf_client_error_code(client), ==, codes[i]);
        g_assert_cmpstr(sf_client_error_hint(client), ==, i == 0 ? "look" : NULL);
    }
    stop(&peer, client);
}

/* Whatever is not the protocol ends the connection, with an error that says so. */
static void check_broken(Peer *peer, SfClientError code)
{
    SfClient *client = start(peer);
    g_autoptr(GError) error = NULL;

    g_assert_null(sf_client_call(client, "m", NULL, LONG_MS, &error));
    g_assert_error(error, SF_CLIENT_ERROR, (int)code);
    g_assert_nonnull(strstr(error->message, peer->path));
    g_assert_cmpint(sf_client_fd(client), ==, -1);
    g_assert_nonnull(sf_client_error_hint(client));
    stop(peer, client);
}

static void test_broken(void)
{
    static const char *const garbage[] = {
        "garbage\n", "[]\n",   "{\"id\":1}\n", "{\"id\":1,\"result\":7}\n", "{\"id\":1,\"result\":{}\n",
        "\xff\n",    "{}{}\n",
    };
    for (guint i = 0; i < G_N_ELEMENTS(garbage); i++) {
        check_broken(&(Peer){.answers = {garbage[i]}}, SF_CLIENT_ERROR_PROTOCOL);
    }
    check_broken(&(Peer){.huge = TRUE}, SF_CLIENT_ERROR_PROTOCOL);
    check_broken(&(Peer){.answers = {""}}, SF_CLIENT_ERROR_LOST);
}

static void test_deep(void)
{
    g_autoptr(GString) line = g_string_new("{\"id\":1,\"result\":");
    for (guint i = 0; i < 100000; i++) {
        g_string_append(line, "{\"a\":");
    }
    g_string_append_c(line, '\n');
    check_broken(&(Peer){.answers = {line->str}}, SF_CLIENT_ERROR_PROTOCOL);
}

static void test_timeout(void)
{
    Peer peer = {.silent = TRUE};
    SfClient *client = start(&peer);
    g_autoptr(GError) error = NULL;

    g_assert_null(sf_client_call(client, "m", NULL, SHORT_MS, &error));
    g_assert_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_TIMEOUT);
    g_assert_cmpint(sf_client_fd(client), >=, 0);      /* a late answer will be passed over */
    stop(&peer, client);
}

static gboolean cancel_third(guint waited_ms, gpointer data)
{
    guint *ticks = data;
    return ++*ticks < 3;
}

static void test_tick(void)
{
    Peer peer = {.silent = TRUE};
    SfClient *client = start(&peer);
    g_autoptr(GError) error = NULL;
    guint ticks = 0;

    sf_client_set_tick(client, cancel_third, 1, &ticks);
    g_assert_null(sf_client_call(client, "m", NULL, -1, &error));
    g_assert_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_CANCELLED);
    g_assert_cmpuint(ticks, ==, 3);
    stop(&peer, client);
}

static void test_large_request(void)
{
    Peer peer = {.answers = {"{\"id\":2,\"result\":{}}\n"}};
    SfClient *client = start(&peer);
    g_autoptr(GError) error = NULL;
    g_autofree char *text = g_strnfill(2u << 20, 'x');
    JsonObject *params = json_object_new();

    json_object_set_string_member(params, "name", text);
    g_assert_null(sf_client_call(client, "m", params, LONG_MS, &error));
    g_assert_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_PROTOCOL);
    g_clear_error(&error);
    /* It was not sent: the connection serves the next call. */
    g_autoptr(JsonObject) result = sf_client_call(client, "m", NULL, LONG_MS, &error);
    g_assert_no_error(error);
    g_assert_nonnull(result);
    stop(&peer, client);
}

static void test_nobody(void)
{
    static const char *const paths[] = {"/nonexistent/socket", "/dev/null"};
    g_autofree char *long_path = g_strnfill(200, 'x');

    for (guint i = 0; i <= G_N_ELEMENTS(paths); i++) {
        const char *path = i < G_N_ELEMENTS(paths) ? paths[i] : long_path;
        g_autoptr(SfClient) client = sf_client_new(path);
        g_autoptr(GError) error = NULL;
        g_assert_false(sf_client_connect(client, &error));
        g_assert_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_NO_DAEMON);
        g_assert_nonnull(strstr(error->message, path));
        g_assert_cmpstr(sf_client_error_code(client), ==, "no-daemon");
        g_assert_nonnull(sf_client_error_hint(client));
    }
}

static void test_default_socket(void)
{
    g_setenv("SF_SOCKET", "/somewhere/else", TRUE);
    g_autofree char *given = sf_client_default_socket();
    g_assert_cmpstr(given, ==, "/somewhere/else");
    g_unsetenv("SF_SOCKET");
    g_setenv("XDG_RUNTIME_DIR", "/run/user/1", TRUE);
    g_autofree char *own = sf_client_default_socket();
    g_assert_cmpstr(own, ==, geteuid() == 0 ? "/run/snowflock/control.sock" : "/run/user/1/snowflock/control.sock");
    g_unsetenv("XDG_RUNTIME_DIR");
    g_autofree char *system = sf_client_default_socket();
    g_assert_cmpstr(system, ==, "/run/snowflock/control.sock");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/client/call", test_call);
    g_test_add_func("/client/events", test_events);
    g_test_add_func("/client/error", test_error);
    g_test_add_func("/client/broken", test_broken);
    g_test_add_func("/client/deep", test_deep);
    g_test_add_func("/client/timeout", test_timeout);
    g_test_add_func("/client/tick", test_tick);
    g_test_add_func("/client/large-request", test_large_request);
    g_test_add_func("/client/nobody", test_nobody);
    g_test_add_func("/client/default-socket", test_default_socket);
    return g_test_run();
}
