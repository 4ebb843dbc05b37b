/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The agent's port against a socket that this test plays the agent on: HELLO, old frames, noise, a flood, a reader that
 * sleeps. */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "libsf/wire/frame.h"
#include "sfvmm/vm/guest_channel.h"
#include "sfvmm/vm/vm.h"

#define FLOOD_SECONDS    1.0
#define FLOOD_FRAMES_MAX 200000 /* burst, and what comes back in that time, with much room */

typedef struct {
    SfGuestChannel *channel;
    int agent; /* our end */
    struct sf_frame_decoder decoder;
    guint connected, closed;
    guint64 messages;
    guint8 last_type;
} Fixture;

static void on_connected(gpointer owner)
{
    ((Fixture *)owner)->connected++;
}

static void on_message(const struct sf_gp_header *header, const guint8 *payload, gpointer owner)
{
    Fixture *f = owner;

    f->messages++;
    f->last_type = header->type;
}

static void on_closed(gpointer owner)
{
    ((Fixture *)owner)->closed++;
}

static const SfGuestChannelHandlers handlers = { on_connected, on_message, on_closed };

static void set_up(Fixture *f, gconstpointer data)
{
    int pair[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), ==, 0);
    f->agent = pair[1];
    sf_frame_decoder_init(&f->decoder);
    f->channel = sf_guest_channel_new(pair[0], "test", &handlers, f);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    sf_guest_channel_free(f->channel);
    close(f->agent);
}

static void run(void)
{
    while (g_main_context_iteration(NULL, FALSE)) {
    }
}

static void agent_send(Fixture *f, guint8 type, guint32 request, const void *payload, gsize length)
{
    guint8 frame[512];
    gsize size = sf_frame_encode(frame, sizeof(frame), type, request, payload, length);

    g_assert_cmpuint(size, >, 0);
    g_assert_cmpint(send(f->agent, frame, size, 0), ==, size);
}

/* The next frame that the host has sent; FALSE: none. */
static gboolean agent_receive(Fixture *f, struct sf_gp_header *header, struct sf_gp_hello *hello)
{
    static guint8 buf[65536];
    static const guint8 *data;
    static gsize length;
    const guint8 *payload;

    run();
    for (;;) {
        ssize_t n;
        if (length > 0 && sf_frame_decoder_next(&f->decoder, &data, &length, header, &payload)) {
            if (header->type == SF_GP_HELLO) {
                g_assert_true(sf_gp_hello_parse(hello, payload, header->length));
            }
            return TRUE;
        }
        n = recv(f->agent, buf, sizeof(buf), MSG_DONTWAIT);
        if (n <= 0) {
            length = 0;
            return FALSE;
        }
        data = buf;
        length = n;
    }
}

static void agent_answer(Fixture *f, guint64 nonce)
{
    struct sf_gp_hello hello = { .version = SF_GP_VERSION, .nonce = nonce };
    guint8 payload[SF_GP_HELLO_LENGTH];

    sf_gp_hello_pack(payload, &hello);
    agent_send(f, SF_GP_HELLO | SF_GP_REPLY, 1, payload, sizeof(payload));
    run();
}

static guint64 agent_greeted(Fixture *f)
{
    struct sf_gp_header header;
    struct sf_gp_hello hello;

    g_assert_true(agent_receive(f, &header, &hello));
    g_assert_cmpuint(header.type, ==, SF_GP_HELLO);
    return hello.nonce;
}

static void connect_agent(Fixture *f)
{
    sf_guest_channel_hello(f->channel);
    agent_answer(f, agent_greeted(f));
    g_assert_true(sf_guest_channel_is_connected(f->channel));
}

static void test_hello(Fixture *f, gconstpointer data)
{
    struct sf_gp_header header;
    struct sf_gp_hello hello;
    guint64 nonce;

    sf_guest_channel_hello(f->channel);
    sf_guest_channel_hello(f->channel);
    nonce = agent_greeted(f);
    g_assert_false(agent_receive(f, &header, &hello));     /* one on its way is enough */
    agent_send(f, SF_GP_TICKET, 5, "\1\0\0\0\0\0\0\0", 8); /* before the answer: of another time */
    agent_answer(f, nonce + 1);
    g_assert_false(sf_guest_channel_is_connected(f->channel));
    g_assert_cmpuint(f->messages, ==, 0);
    agent_answer(f, nonce);
    g_assert_true(sf_guest_channel_is_connected(f->channel));
    g_assert_cmpuint(f->connected, ==, 1);
    agent_answer(f, nonce); /* twice: no harm */
    g_assert_cmpuint(f->connected, ==, 1);
    agent_send(f, SF_GP_TICKET, 5, "\1\0\0\0\0\0\0\0", 8);
    run();
    g_assert_cmpuint(f->messages, ==, 1);
    g_assert_cmpuint(f->last_type, ==, SF_GP_TICKET);
}

/* The agent is restarted: the port is closed and opened, the new one is greeted anew. */
static void test_restart(Fixture *f, gconstpointer data)
{
    guint64 first, second;

    sf_guest_channel_hello(f->channel);
    first = agent_greeted(f);
    agent_answer(f, first);
    sf_guest_channel_port_changed(f->channel, FALSE);
    g_assert_false(sf_guest_channel_is_connected(f->channel));
    sf_guest_channel_port_changed(f->channel, TRUE);
    second = agent_greeted(f);
    g_assert_cmpuint(first, !=, second);
    agent_answer(f, first);
    g_assert_false(sf_guest_channel_is_connected(f->channel));
    agent_answer(f, second);
    g_assert_true(sf_guest_channel_is_connected(f->channel));
    g_assert_cmpuint(f->connected, ==, 2);
}

static void test_noise(Fixture *f, gconstpointer data)
{
    guint8 noise[4096];

    connect_agent(f);
    for (guint i = 0; i < sizeof(noise); i++) {
        noise[i] = g_test_rand_int();
    }
    g_assert_cmpint(send(f->agent, noise, sizeof(noise), 0), ==, sizeof(noise));
    g_assert_cmpint(send(f->agent, "", 1, 0), ==, 1);
    agent_send(f, SF_GP_TICKET, 5, "\1\0\0\0\0\0\0\0", 8);
    run();
    g_assert_cmpuint(f->messages, ==, 1);
    g_assert_cmpuint(f->closed, ==, 0);
}

/* Small frames as fast as they go: the daemon takes the burst and then no more than its rate. */
static void test_flood(Fixture *f, gconstpointer data)
{
    guint8 frames[16384];
    gsize used = 0, size;
    g_autoptr(GTimer) timer = NULL;

    connect_agent(f);
    while ((size = sf_frame_encode(frames + used, sizeof(frames) - used, SF_GP_RELEASE, 9, "\1\2\3\4\5\6\7\7", 8)) >
           0) {
        used += size;
    }
    timer = g_timer_new();
    while (g_timer_elapsed(timer, NULL) < FLOOD_SECONDS) {
        if (send(f->agent, frames, used, MSG_DONTWAIT) < 0) {
            g_main_context_iteration(NULL, TRUE);
        }
    }
    g_assert_cmpuint(f->messages, >, 0);
    g_assert_cmpuint(f->messages, <, FLOOD_FRAMES_MAX * g_timer_elapsed(timer, NULL));
}

/* An agent that asks and does not read: the queue is bounded, and its requests wait. */
static void test_sleeper(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autofree guint8 *payload = g_malloc0(SF_GP_MAX_CHUNK);
    guint sent = 0;

    connect_agent(f);
    while (sent < 10000 &&
           sf_guest_channel_send(f->channel, SF_GP_FETCH | SF_GP_REPLY, 1, payload, SF_GP_MAX_CHUNK, &error)) {
        sent++;
        run();
    }
    g_assert_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED);
    g_assert_cmpuint(sent, <, 1000);
    agent_send(f, SF_GP_TICKET, 5, "\1\0\0\0\0\0\0\0", 8);
    run();
    g_assert_cmpuint(f->messages, ==, 0);
    g_assert_false(
        sf_guest_channel_send(f->channel, SF_GP_FETCH | SF_GP_REPLY, 1, payload, SF_GP_MAX_PAYLOAD + 1, NULL));
}

static void test_hangup(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;

    connect_agent(f);
    g_assert_cmpint(shutdown(f->agent, SHUT_RDWR), ==, 0);
    run();
    g_assert_cmpuint(f->closed, ==, 1);
    g_assert_false(sf_guest_channel_is_connected(f->channel));
    g_assert_false(sf_guest_channel_send(f->channel, SF_GP_IDENTITY, 1, NULL, 0, &error));
    g_assert_error(error, SF_VM_ERROR, SF_VM_ERROR_GONE);
}

#define ADD(name, function) g_test_add("/guest_channel/" name, Fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD("hello", test_hello);
    ADD("restart", test_restart);
    ADD("noise", test_noise);
    ADD("flood", test_flood);
    ADD("sleeper", test_sleeper);
    ADD("hangup", test_hangup);
    return g_test_run();
}
