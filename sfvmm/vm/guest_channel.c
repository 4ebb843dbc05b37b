/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * HELLO. The socket lives as long as QEMU, the guest's end comes and goes: an agent opens the port, is restarted, a
 * snapshot is loaded. QEMU reads from us only while the guest has the port open, so a HELLO may lie in the socket for
 * long; it reaches whoever opens the port next. One HELLO at a time is on its way:
 *
 *     IDLE --hello()--> ASKED --answer with our nonce--> CONNECTED
 *      ^                  |                                 |
 *      +---- port closed -+---------------------------------+        (then port opened: hello() again)
 *
 * An answer with another nonce is that of a snapshot's past, or of an earlier sfvmmd: dropped. Nor is it sure that an
 * agent that has read our HELLO could answer it: its kernel may learn of our predecessor's going only then. And QEMU
 * tells of the port's state at most once a second, so an agent that was replaced at once is not seen that way. Hence an
 * agent that has opened the port, or finds us back at its end, says HELLO itself, and is greeted again.
 *
 * Bounds. A guest is not trusted, and one that floods must not take the daemon's time from others. Each frame, good or
 * broken, and each KiB costs a token; tokens come back at a fixed rate; without tokens nothing is read, the socket
 * fills, QEMU stops taking bytes from the guest, whose write() blocks. The burst is large enough for a whole result of
 * 64 MiB in its chunks. Also nothing is read while more than OUT_HIGH bytes of answers wait for a guest that does not
 * read them.
 */
#include "sfvmm/vm/guest_channel.h"

#include <errno.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>
#include "libsf/wire/frame.h"
#include "sfvmm/vm/vm.h"

#define READ_BYTES         16384u        /* in one turn of the main loop */
#define OUT_HIGH           (256u << 10)  /* bytes; above: the guest's requests wait */
#define OUT_MAX            (4u << 20)    /* bytes; above: nothing more is taken for this guest */
#define TOKEN_BYTES        1024u         /* each costs one token */
#define TOKENS_BURST       (80.0 * 1024) /* 64 MiB of result, its frames and some */
#define TOKENS_PER_SECOND  (16.0 * 1024) /* 16 MiB/s, or so many empty frames; a few percent of a CPU */
#define PAUSE_MS           20u           /* without tokens: time until the next look */
#define BROKEN_LOG_SECONDS 10            /* at most one log line about broken frames in this time */

typedef enum { HELLO_IDLE, HELLO_ASKED, HELLO_CONNECTED } HelloState;

struct SfGuestChannel {
    int refs;
    int fd; /* -1: closed */
    char *name;
    HelloState hello;
    guint64 nonce;
    GByteArray *out;
    gsize sent; /* of out */
    struct sf_frame_decoder decoder;
    guint64 broken_told;
    gint64 broken_time; /* of the last log line, us */
    double tokens;
    gint64 tokens_time; /* when they were counted, us */
    guint in_source, out_source, pause_timer;
    const SfGuestChannelHandlers *handlers; /* NULL after free */
    gpointer owner;
};

static gboolean on_readable(int fd, GIOCondition condition, gpointer data);

static void channel_unref(SfGuestChannel *channel)
{
    if (--channel->refs == 0) {
        g_byte_array_unref(channel->out);
        g_free(channel->name);
        g_free(channel);
    }
}

static void channel_close(SfGuestChannel *channel)
{
    if (channel->fd < 0) {
        return;
    }
    g_clear_handle_id(&channel->in_source, g_source_remove);
    g_clear_handle_id(&channel->out_source, g_source_remove);
    g_clear_handle_id(&channel->pause_timer, g_source_remove);
    close(channel->fd);
    channel->fd = -1;
    channel->hello = HELLO_IDLE;
    if (channel->handlers) {
        channel->handlers->closed(channel->owner);
    }
}

/* ---- out ---- */

static gboolean on_writable(int fd, GIOCondition condition, gpointer data)
{
    SfGuestChannel *channel = data;
    ssize_t n = send(channel->fd, channel->out->data + channel->sent, channel->out->len - channel->sent,
                     MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return G_SOURCE_CONTINUE;
    }
    if (n > 0) {
        channel->sent += n;
    }
    if (n > 0 && channel->sent < channel->out->len) {
        return G_SOURCE_CONTINUE;
    }
    g_byte_array_set_size(channel->out, 0); /* all sent, or the socket is broken, which the reading side finds out */
    channel->sent = 0;
    channel->out_source = 0;
    return G_SOURCE_REMOVE;
}

static void queue_bytes(SfGuestChannel *channel, const void *bytes, gsize length)
{
    if (channel->sent == channel->out->len) {
        g_byte_array_set_size(channel->out, 0);
        channel->sent = 0;
    } else if (channel->sent > OUT_HIGH) {
        g_byte_array_remove_range(channel->out, 0, channel->sent);
        channel->sent = 0;
    }
    g_byte_array_append(channel->out, bytes, length);
    if (!channel->out_source) {
        channel->out_source = g_unix_fd_add(channel->fd, G_IO_OUT, on_writable, channel);
    }
}

static gsize out_waiting(const SfGuestChannel *channel)
{
    return channel->out->len - channel->sent;
}

gboolean sf_guest_channel_send(SfGuestChannel *channel, guint8 type, guint32 request, const void *payload, gsize length,
                               GError **error)
{
    g_autofree guint8 *frame = NULL;
    gsize size;

    if (channel->fd < 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: the port of its agent is not connected",
                    channel->name);
        return FALSE;
    }
    if (length > SF_GP_MAX_PAYLOAD || out_waiting(channel) > OUT_MAX) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "VM %s: %s", channel->name,
                    length > SF_GP_MAX_PAYLOAD ? "a message to its agent is too long"
                                               : "its agent does not read; the queue of messages is full");
        return FALSE;
    }
    frame = g_malloc(SF_FRAME_MAX_ENCODED);
    size = sf_frame_encode(frame, SF_FRAME_MAX_ENCODED, type, request, payload, length);
    g_assert(size > 0);
    queue_bytes(channel, frame, size);
    return TRUE;
}

static void send_hello(SfGuestChannel *channel)
{
    struct sf_gp_hello hello = { .version = SF_GP_VERSION, .nonce = channel->nonce };
    guint8 payload[SF_GP_HELLO_LENGTH];

    sf_gp_hello_pack(payload, &hello);
    queue_bytes(channel, "", 1);
    sf_guest_channel_send(channel, SF_GP_HELLO, 1, payload, sizeof(payload), NULL);
    channel->hello = HELLO_ASKED;
}

void sf_guest_channel_hello(SfGuestChannel *channel)
{
    if (channel->fd < 0 || channel->hello == HELLO_ASKED) {
        return;
    }
    if (getrandom(&channel->nonce, sizeof(channel->nonce), 0) != sizeof(channel->nonce)) {
        channel->nonce = (guint64)g_get_monotonic_time(); /* it only tells connections apart, it keeps no secret */
    }
    send_hello(channel);
}

/*
 * An agent that was not greeted, or whose answers are lost. The nonce is the same, as the connection is: one that has
 * seen it answers again what it has answered since.
 */
static void greet_again(SfGuestChannel *channel)
{
    if (channel->hello == HELLO_IDLE) {
        sf_guest_channel_hello(channel);
    } else {
        send_hello(channel);
    }
}

void sf_guest_channel_port_changed(SfGuestChannel *channel, gboolean open)
{
    if (open) {
        if (channel->hello != HELLO_CONNECTED) {
            sf_guest_channel_hello(channel);
        }
        return;
    }
    /* A frame that is sent in part stays, or the next agent would see its tail as a broken frame of its own. */
    if (channel->sent == 0 && channel->out->len > 0) {
        g_byte_array_set_size(channel->out, 0);
        g_clear_handle_id(&channel->out_source, g_source_remove);
    }
    channel->hello = HELLO_IDLE;
}

/* ---- in ---- */

static void refill_tokens(SfGuestChannel *channel)
{
    gint64 now = g_get_monotonic_time();
    double more = (double)(now - channel->tokens_time) / G_USEC_PER_SEC * TOKENS_PER_SECOND;

    channel->tokens = MIN(TOKENS_BURST, channel->tokens + more);
    channel->tokens_time = now;
}

static gboolean may_read(SfGuestChannel *channel)
{
    refill_tokens(channel);
    return channel->tokens >= READ_BYTES / TOKEN_BYTES && out_waiting(channel) <= OUT_HIGH;
}

static void watch(SfGuestChannel *channel)
{
    /* Below QMP and control: an agent's message can wait for a turn. */
    channel->in_source = g_unix_fd_add_full(G_PRIORITY_DEFAULT + 10, channel->fd, G_IO_IN | G_IO_HUP | G_IO_ERR,
                                            on_readable, channel, NULL);
}

static gboolean on_pause_over(gpointer data)
{
    SfGuestChannel *channel = data;

    if (!may_read(channel)) {
        return G_SOURCE_CONTINUE;
    }
    channel->pause_timer = 0;
    watch(channel);
    return G_SOURCE_REMOVE;
}

static void handle_frame(SfGuestChannel *channel, const struct sf_gp_header *header, const guint8 *payload)
{
    struct sf_gp_hello hello;

    if (header->type != (SF_GP_HELLO | SF_GP_REPLY)) {
        /* Before the answer to HELLO: of another time; the agent sends again what matters. */
        if (header->type == SF_GP_HELLO) {
            greet_again(channel);
        } else if (channel->hello == HELLO_CONNECTED) {
            channel->handlers->message(header, payload, channel->owner);
        }
        return;
    }
    if (channel->hello == HELLO_ASKED && sf_gp_hello_parse(&hello, payload, header->length) &&
        hello.nonce == channel->nonce) {
        channel->hello = HELLO_CONNECTED;
        channel->handlers->connected(channel->owner);
    }
}

static void tell_broken(SfGuestChannel *channel)
{
    gint64 now = g_get_monotonic_time();

    if (channel->decoder.broken > channel->broken_told &&
        (channel->broken_time == 0 || now - channel->broken_time > BROKEN_LOG_SECONDS * G_USEC_PER_SEC)) {
        g_message("VM %s: %" G_GUINT64_FORMAT " broken frames from its agent's port so far", channel->name,
                  (guint64)channel->decoder.broken);
        channel->broken_told = channel->decoder.broken;
        channel->broken_time = now;
    }
}

static void decode(SfGuestChannel *channel, const guint8 *data, gsize length)
{
    struct sf_gp_header header;
    const guint8 *payload;
    guint64 frames = channel->decoder.frames + channel->decoder.broken;

    channel->tokens -= (double)length / TOKEN_BYTES;
    while (channel->handlers && channel->fd >= 0 &&
           sf_frame_decoder_next(&channel->decoder, &data, &length, &header, &payload)) {
        handle_frame(channel, &header, payload);
    }
    channel->tokens -= (double)(channel->decoder.frames + channel->decoder.broken - frames);
    tell_broken(channel);
}

static gboolean on_readable(int fd, GIOCondition condition, gpointer data)
{
    SfGuestChannel *channel = data;
    guint8 buf[READ_BYTES];
    gboolean go_on = G_SOURCE_CONTINUE;
    ssize_t n;

    if (!may_read(channel)) {
        channel->in_source = 0;
        channel->pause_timer = g_timeout_add(PAUSE_MS, on_pause_over, channel);
        return G_SOURCE_REMOVE;
    }
    n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return G_SOURCE_CONTINUE;
    }
    channel->refs++;
    if (n <= 0) {
        channel_close(channel);
    } else {
        decode(channel, buf, n);
    }
    if (channel->fd < 0) {
        go_on = G_SOURCE_REMOVE;
    }
    channel_unref(channel);
    return go_on;
}

SfGuestChannel *sf_guest_channel_new(int fd, const char *name, const SfGuestChannelHandlers *handlers, gpointer owner)
{
    SfGuestChannel *channel = g_new0(SfGuestChannel, 1);

    channel->refs = 1;
    channel->fd = fd;
    channel->name = g_strdup(name);
    channel->handlers = handlers;
    channel->owner = owner;
    channel->out = g_byte_array_new();
    channel->tokens = TOKENS_BURST;
    channel->tokens_time = g_get_monotonic_time();
    sf_frame_decoder_init(&channel->decoder);
    watch(channel);
    return channel;
}

void sf_guest_channel_free(SfGuestChannel *channel)
{
    if (!channel) {
        return;
    }
    channel->handlers = NULL;
    channel_close(channel);
    channel_unref(channel);
}

void sf_guest_channel_set_name(SfGuestChannel *channel, const char *name)
{
    g_free(channel->name);
    channel->name = g_strdup(name);
}

gboolean sf_guest_channel_is_connected(const SfGuestChannel *channel)
{
    return channel->hello == HELLO_CONNECTED;
}
