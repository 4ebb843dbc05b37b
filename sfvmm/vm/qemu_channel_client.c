/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * One packet is one message, so there is no buffering: a request is sent at once or, when the socket is full, kept with
 * copies of its descriptors. Answers are checked by wire/ and matched with the oldest request. Anything wrong ends the
 * channel, as does an answer that takes longer than REQUEST_SECONDS: the process goes on, and the owner attaches a new
 * channel.
 */
#include "sfvmm/vm/qemu_channel_client.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "sfvmm/vm/vm.h"

#define REQUEST_SECONDS   120 /* copying all private pages of a big guest into a delta takes long */
#define MESSAGES_PER_TURN 8

typedef struct {
    guint32 serial;
    guint16 type;
    gint64 deadline;        /* g_get_monotonic_time() */
    GBytes *packet;         /* NULL: sent */
    int fds[SF_QC_MAX_FDS]; /* copies, of a packet that is not sent */
    guint n_fds;
    SfQemuChannelReply reply;
    gpointer data;
} Request;

struct SfQemuChannel {
    int refs;
    int fd; /* -1: closed */
    guint32 last_serial;
    GQueue requests; /* of Request, in order; the unsent ones at its end */
    guint in_source, out_source, timer;
    gboolean peer_asked;
    pid_t peer; /* of the first message */
    const SfQemuChannelHandlers *handlers; /* NULL after free */
    gpointer owner;
};

static void request_drop_packet(Request *request)
{
    g_clear_pointer(&request->packet, g_bytes_unref);
    for (guint i = 0; i < request->n_fds; i++) {
        close(request->fds[i]);
    }
    request->n_fds = 0;
}

static void request_end(Request *request, SfQcMessage *message, const GError *error)
{
    request_drop_packet(request);
    request->reply(message, error, request->data);
    g_free(request);
}

static void channel_unref(SfQemuChannel *channel)
{
    if (--channel->refs == 0) {
        g_free(channel);
    }
}

static void channel_close(SfQemuChannel *channel, const GError *reason)
{
    Request *request;

    if (channel->fd < 0) {
        return;
    }
    channel->refs++;
    g_clear_handle_id(&channel->in_source, g_source_remove);
    g_clear_handle_id(&channel->out_source, g_source_remove);
    g_clear_handle_id(&channel->timer, g_source_remove);
    close(channel->fd);
    channel->fd = -1;
    while ((request = g_queue_pop_head(&channel->requests))) {
        request_end(request, NULL, reason);
    }
    if (channel->handlers) {
        channel->handlers->closed(reason, channel->owner);
    }
    channel_unref(channel);
}

static void channel_close_with(SfQemuChannel *channel, SfVmError code, const char *text)
{
    g_autoptr(GError) reason = g_error_new_literal(SF_VM_ERROR, code, text);

    channel_close(channel, reason);
}

static gboolean on_timer(gpointer data)
{
    SfQemuChannel *channel = data;
    Request *oldest = g_queue_peek_head(&channel->requests);

    if (oldest && oldest->deadline > g_get_monotonic_time()) {
        return G_SOURCE_CONTINUE;
    }
    channel->timer = 0;
    if (oldest) {
        g_autofree char *text = g_strdup_printf("QEMU has not answered a request (0x%04x) on the sf channel for %d s",
                                                oldest->type, REQUEST_SECONDS);
        channel_close_with(channel, SF_VM_ERROR_TIMEOUT, text);
    }
    return G_SOURCE_REMOVE;
}

static void handle_reply(SfQemuChannel *channel, SfQcMessage *message)
{
    Request *request = g_queue_peek_head(&channel->requests);
    g_autoptr(GError) error = NULL;

    if (!request || request->packet) {
        channel_close_with(channel, SF_VM_ERROR_FAILED, "QEMU has answered what nobody asked on the sf channel");
        return;
    }
    if (!sf_qc_check_reply(message, request->type, request->serial, &error)) {
        if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_FAILED)) {
            channel_close(channel, error);
            return;
        }
        g_clear_pointer(&message, sf_qc_message_free);
    }
    g_queue_pop_head(&channel->requests);
    request_end(request, message, error);
    sf_qc_message_free(message);
}

/*
 * The sender's credentials lie in front of a message's descriptors: a look with room for them alone takes no
 * descriptor. From then on they are not wanted any more.
 */
static void look_at_peer(SfQemuChannel *channel)
{
    union {
        char room[CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr align;
    } control;
    char byte;
    struct iovec iov = { &byte, 1 };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof(control.room)
    };
    const int off = 0;

    if (recvmsg(channel->fd, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0) {
        return;
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) {
            struct ucred sender;
            memcpy(&sender, CMSG_DATA(c), sizeof(sender));
            channel->peer = sender.pid;
        }
    }
    channel->peer_asked = FALSE;
    setsockopt(channel->fd, SOL_SOCKET, SO_PASSCRED, &off, sizeof(off));
}

static gboolean on_readable(int fd, GIOCondition condition, gpointer data)
{
    SfQemuChannel *channel = data;
    gboolean open;

    channel->refs++;
    if (channel->peer_asked) {
        look_at_peer(channel);
    }
    for (guint i = 0; i < MESSAGES_PER_TURN && channel->fd >= 0; i++) {
        g_autoptr(GError) error = NULL;
        SfQcMessage *message = sf_qc_receive(channel->fd, &error);

        if (!message) {
            if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
                channel_close(channel, error);
            }
            break;
        }
        if (message->header.serial != 0) {
            handle_reply(channel, message);
            continue;
        }
        if (channel->handlers) {
            channel->handlers->event(message, channel->owner);
        }
        sf_qc_message_free(message);
    }
    open = channel->fd >= 0;
    channel_unref(channel);
    return open ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

/* FALSE: the socket is full. After any other error the channel is of no use: the reading side closes it. */
static gboolean send_request(SfQemuChannel *channel, Request *request, const int *fds, guint n_fds)
{
    g_autoptr(GError) error = NULL;

    if (!sf_qc_send(channel->fd, request->packet, fds, n_fds, &error)) {
        if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
            return FALSE;
        }
        g_warning("sf channel: %s", error->message);
        shutdown(channel->fd, SHUT_RDWR);
    }
    request_drop_packet(request);
    return TRUE;
}

static gboolean on_writable(int fd, GIOCondition condition, gpointer data)
{
    SfQemuChannel *channel = data;

    for (GList *r = channel->requests.head; r; r = r->next) {
        Request *request = r->data;
        if (request->packet && !send_request(channel, request, request->fds, request->n_fds)) {
            return G_SOURCE_CONTINUE;
        }
    }
    channel->out_source = 0;
    return G_SOURCE_REMOVE;
}

void sf_qemu_channel_ask_peer(SfQemuChannel *channel)
{
    const int on = 1;

    channel->peer_asked = setsockopt(channel->fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) == 0;
}

pid_t sf_qemu_channel_peer(const SfQemuChannel *channel)
{
    return channel->peer;
}

guint32 sf_qemu_channel_serial(SfQemuChannel *channel)
{
    if (++channel->last_serial == 0) {
        channel->last_serial = 1; /* 0 is for events */
    }
    return channel->last_serial;
}

/* Keeps copies of the descriptors until the packet can be sent. */
static gboolean request_keep(Request *request, const int *fds, guint n_fds)
{
    for (guint i = 0; i < n_fds; i++) {
        int copy = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (copy < 0) {
            return FALSE;
        }
        request->fds[request->n_fds++] = copy;
    }
    return TRUE;
}

void sf_qemu_channel_request(SfQemuChannel *channel, guint16 type, GBytes *packet, const int *fds, guint n_fds,
                             SfQemuChannelReply reply, gpointer data)
{
    Request *request = g_new0(Request, 1);

    request->serial = channel->last_serial;
    request->type = type;
    request->packet = packet;
    request->deadline = g_get_monotonic_time() + REQUEST_SECONDS * G_USEC_PER_SEC;
    request->reply = reply;
    request->data = data;
    if (channel->fd < 0) {
        g_autoptr(GError) error =
            g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "the sf channel to QEMU is not connected");
        request_end(request, NULL, error);
        return;
    }
    g_assert(n_fds <= SF_QC_MAX_FDS);
    if (channel->out_source || !send_request(channel, request, fds, n_fds)) {
        if (!request_keep(request, fds, n_fds)) {
            g_autoptr(GError) error = g_error_new(SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                                  "the sf channel: no more descriptors: %s", g_strerror(errno));
            request_end(request, NULL, error);
            return;
        }
        if (!channel->out_source) {
            channel->out_source = g_unix_fd_add(channel->fd, G_IO_OUT, on_writable, channel);
        }
    }
    g_queue_push_tail(&channel->requests, request);
    if (!channel->timer) {
        channel->timer = g_timeout_add_seconds(REQUEST_SECONDS / 4, on_timer, channel);
    }
}

SfQemuChannel *sf_qemu_channel_new(int fd, const SfQemuChannelHandlers *handlers, gpointer owner)
{
    SfQemuChannel *channel = g_new0(SfQemuChannel, 1);

    channel->refs = 1;
    channel->fd = fd;
    channel->handlers = handlers;
    channel->owner = owner;
    g_queue_init(&channel->requests);
    g_unix_set_fd_nonblocking(fd, TRUE, NULL);
    channel->in_source = g_unix_fd_add(fd, G_IO_IN | G_IO_HUP | G_IO_ERR, on_readable, channel);
    return channel;
}

void sf_qemu_channel_free(SfQemuChannel *channel)
{
    if (!channel) {
        return;
    }
    channel->handlers = NULL;
    channel_close_with(channel, SF_VM_ERROR_GONE, "the VM has ended");
    channel_unref(channel);
}
