/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The QMP client against a socket that this test plays QEMU on: messages, order, descriptors, and how a connection
 * ends. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "sfvmm/vm/qmp.h"
#include "sfvmm/vm/vm.h"
#include "sfvmm/wire/json_line.h"

static void test_parse(void)
{
    static const struct {
        const char *text;
        int kind; /* -1: refused */
    } cases[] = {
        { "{\"QMP\":{\"version\":{},\"capabilities\":[]}}", SF_QMP_GREETING },
        { "{\"return\":{},\"id\":1}", SF_QMP_RETURN },
        { "{\"return\":[],\"id\":9007199254740993}", SF_QMP_RETURN },
        { "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":2}", SF_QMP_ERROR },
        { "{\"event\":\"STOP\",\"timestamp\":{}}", SF_QMP_EVENT },
        { "{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true}}", SF_QMP_EVENT },
        { "{\"return\":{}}", -1 },
        { "{\"return\":{},\"id\":\"1\"}", -1 },
        { "{\"return\":{},\"id\":0}", -1 },
        { "{\"return\":{},\"id\":-4}", -1 },
        { "{\"error\":{\"class\":\"GenericError\",\"desc\":\"bad JSON\"}}", -1 },
        { "{\"error\":\"no\",\"id\":1}", -1 },
        { "{\"event\":1}", -1 },
        { "{\"event\":\"A\",\"data\":[]}", -1 },
        { "{}", -1 },
        { "{\"execute\":\"quit\"}", -1 },
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) object = sf_json_line_parse(cases[i].text, strlen(cases[i].text), &error);
        SfQmpMessage message;
        g_assert_no_error(error);
        if (sf_qmp_message_parse(object, &message, &error)) {
            g_assert_cmpint(message.kind, ==, cases[i].kind);
        } else {
            g_assert_cmpint(cases[i].kind, ==, -1);
            g_assert_nonnull(error);
        }
        sf_qmp_message_clear(&message);
    }
}

/* ---- a connection ---- */

typedef struct {
    SfQmp *qmp;
    int qemu;     /* our end */
    GString *log; /* what the client has told, in order */
    gboolean closed;
} Fixture;

static void on_event(const char *name, JsonObject *data, gpointer owner)
{
    g_string_append_printf(((Fixture *)owner)->log, "event %s;", name);
}

static void on_closed(const GError *reason, gpointer owner)
{
    Fixture *f = owner;

    g_assert_false(f->closed);
    f->closed = TRUE;
}

static void on_reply(JsonNode *result, const GError *error, gpointer data)
{
    Fixture *f = data;

    g_string_append_printf(f->log, "%s;", error ? error->message : "ok");
}

static const SfQmpHandlers handlers = { on_event, on_closed };

static void set_up(Fixture *f, gconstpointer data)
{
    int pair[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), ==, 0);
    f->qemu = pair[1];
    f->log = g_string_new(NULL);
    f->qmp = sf_qmp_new(pair[0], &handlers, f);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    sf_qmp_free(f->qmp);
    close(f->qemu);
    g_string_free(f->log, TRUE);
}

static void say(Fixture *f, const char *text)
{
    g_assert_cmpint(write(f->qemu, text, strlen(text)), ==, strlen(text));
}

static void run(void)
{
    while (g_main_context_iteration(NULL, FALSE)) {
    }
}

/* One read as QEMU does it: text, and whether a descriptor came along. */
static char *hear(Fixture *f, gboolean *with_fd)
{
    char text[4096];
    union {
        char bytes[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = { text, sizeof(text) - 1 };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control)
    };
    ssize_t n = recvmsg(f->qemu, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    *with_fd = FALSE;
    if (n <= 0) {
        return NULL;
    }
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
        int fd;
        memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
        g_assert_cmpuint(cmsg->cmsg_len, ==, CMSG_LEN(sizeof(int)));
        close(fd);
        *with_fd = TRUE;
    }
    text[n] = '\0';
    return g_strdup(text);
}

static void test_order(Fixture *f, gconstpointer data)
{
    sf_qmp_execute(f->qmp, "a", NULL, -1, on_reply, f);
    sf_qmp_execute(f->qmp, "b", NULL, -1, on_reply, f);
    run();
    say(f, "{\"QMP\":{}}\r\n{\"return\":{},\"id\":1}\r\n{\"event\":\"STOP\"}\r\n{\"return\":{},\"i");
    run();
    say(f, "d\":2}\r\n{\"error\":{\"class\":\"X\",\"desc\":\"not b\"},\"id\":3}\r\n");
    run();
    g_assert_cmpstr(f->log->str, ==, "event STOP;ok;QEMU: b: not b;");
    g_assert_false(f->closed);
}

/* A descriptor begins a message of its own; what has none may follow it in the same one. */
static void test_descriptors(Fixture *f, gconstpointer data)
{
    gboolean with_fd;

    sf_qmp_execute(f->qmp, "first", NULL, open("/dev/null", O_RDONLY | O_CLOEXEC), on_reply, f);
    sf_qmp_execute(f->qmp, "second", NULL, -1, on_reply, f);
    sf_qmp_execute(f->qmp, "third", NULL, open("/dev/null", O_RDONLY | O_CLOEXEC), on_reply, f);
    run();
    g_autofree char *one = hear(f, &with_fd);
    g_assert_true(with_fd);
    g_assert_nonnull(strstr(one, "\"first\""));
    g_assert_nonnull(strstr(one, "\"second\""));
    g_assert_null(strstr(one, "\"third\""));
    g_autofree char *two = hear(f, &with_fd);
    g_assert_true(with_fd);
    g_assert_nonnull(strstr(two, "\"third\""));
    g_assert_null(hear(f, &with_fd));
}

static void on_batch(const GError *error, gpointer data)
{
    g_string_append_printf(((Fixture *)data)->log, "batch %s;", error ? error->message : "ok");
}

static void test_batch(Fixture *f, gconstpointer data)
{
    SfQmpBatch *batch = sf_qmp_batch_new(f->qmp);

    sf_qmp_batch_add(batch, "a", NULL, -1);
    sf_qmp_batch_add(batch, "b", NULL, -1);
    sf_qmp_batch_add(batch, "c", NULL, -1);
    sf_qmp_batch_run(batch, on_batch, f);
    run();
    say(f, "{\"return\":{},\"id\":1}\n{\"return\":{},\"id\":2}\n{\"error\":{\"desc\":\"one\"},\"id\":3}\n");
    run();
    g_assert_cmpstr(f->log->str, ==, "");
    say(f, "{\"error\":{\"desc\":\"two\"},\"id\":4}\n");
    run();
    g_assert_cmpstr(f->log->str, ==, "batch QEMU: b: one;");
    sf_qmp_batch_run(sf_qmp_batch_new(f->qmp), on_batch, f);
    g_assert_cmpstr(f->log->str, ==, "batch QEMU: b: one;batch ok;");
}

/* Whatever breaks the protocol ends the connection, and every command that waits. */
static void test_broken(Fixture *f, gconstpointer data)
{
    sf_qmp_execute(f->qmp, "a", NULL, -1, on_reply, f);
    say(f, data);
    run();
    g_assert_true(f->closed);
    g_assert_cmpstr(f->log->str, !=, "ok;");
    g_assert_cmpuint(f->log->len, >, 0);
    g_string_truncate(f->log, 0);
    sf_qmp_execute(f->qmp, "late", NULL, open("/dev/null", O_RDONLY | O_CLOEXEC), on_reply, f);
    g_assert_nonnull(strstr(f->log->str, "late"));
}

static void test_hangup(Fixture *f, gconstpointer data)
{
    sf_qmp_execute(f->qmp, "a", NULL, -1, on_reply, f);
    run();
    g_assert_cmpint(shutdown(f->qemu, SHUT_RDWR), ==, 0);
    run();
    g_assert_true(f->closed);
    g_assert_cmpstr(f->log->str, ==, "QEMU has closed its monitor;");
}

/* Free with commands that wait: they end, but the handlers are not called any more. */
static void test_free(Fixture *f, gconstpointer data)
{
    sf_qmp_execute(f->qmp, "a", NULL, -1, on_reply, f);
    sf_qmp_free(g_steal_pointer(&f->qmp));
    g_assert_false(f->closed);
    g_assert_cmpstr(f->log->str, ==, "the VM has ended;");
}

static void test_long_line(Fixture *f, gconstpointer data)
{
    g_autofree char *much = g_strnfill(65536, 'x');

    for (guint i = 0; i < 40 && !f->closed; i++) {
        if (send(f->qemu, much, 65536, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN) {
            break;
        }
        run();
    }
    g_assert_true(f->closed);
}

#define ADD(name, text, function) g_test_add("/qmp/" name, Fixture, text, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp/parse", test_parse);
    ADD("order", NULL, test_order);
    ADD("descriptors", NULL, test_descriptors);
    ADD("batch", NULL, test_batch);
    ADD("hangup", NULL, test_hangup);
    ADD("free", NULL, test_free);
    ADD("long_line", NULL, test_long_line);
    ADD("broken/no_json", "hello\n", test_broken);
    ADD("broken/no_qmp", "{\"hello\":1}\n", test_broken);
    ADD("broken/not_asked", "{\"return\":{},\"id\":7}\n", test_broken);
    ADD("broken/order", "{\"return\":{},\"id\":2}\n", test_broken);
    ADD("broken/no_id", "{\"error\":{\"desc\":\"x\"}}\n", test_broken);
    return g_test_run();
}
