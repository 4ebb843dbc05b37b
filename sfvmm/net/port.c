/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A frame is given to the socket whole. The kernel takes it whole or not at all as long as it fits into one of its
 * buffers; should it take a part, the rest goes before the next frame, or QEMU would read lengths in the middle of it.
 */
#include "sfvmm/net/port.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define LENGTH_BYTES  4u
#define GROUP_RATE    2000u /* frames to groups a second, as in rules.c */
#define BURST_DIVISOR 8u    /* of a second's bytes may come at once */
#define BURST_MIN     (128u << 10)
#define SEND_BUFFER   (1 << 20) /* bytes on their way to a guest that is busy; what the kernel allows of it */

SfPort *sf_port_new(const char *device, int socket, guint64 rate, gint64 now)
{
    SfPort *port = g_new0(SfPort, 1);
    guint64 burst = MAX(rate / BURST_DIVISOR, BURST_MIN);
    int size = SEND_BUFFER;

    g_strlcpy(port->device, device, sizeof(port->device));
    port->socket = socket;
    port->in = g_malloc(SF_PORT_BUFFER);
    port->groups = sf_limit_new(GROUP_RATE, GROUP_RATE, now);
    port->sending = sf_limit_new(rate, burst, now);
    port->receiving = sf_limit_new(rate, burst, now);
    setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    return port;
}

void sf_port_free(SfPort *port)
{
    if (port) {
        close(port->socket);
        g_free(port->in);
        g_free(port);
    }
}

static void skip(SfPort *port)
{
    gsize drop = MIN(port->skip, port->in_length);

    if (drop > 0) {
        memmove(port->in, port->in + drop, port->in_length - drop);
        port->in_length -= drop;
        port->skip -= drop;
    }
}

gboolean sf_port_fill(SfPort *port)
{
    ssize_t n = recv(port->socket, port->in + port->in_length, SF_PORT_BUFFER - port->in_length, MSG_DONTWAIT);

    if (n <= 0) {
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    port->in_length += (gsize)n;
    skip(port);
    return TRUE;
}

gsize sf_port_next(SfPort *port, gsize *at, const guint8 **frame)
{
    while (port->in_length - *at >= LENGTH_BYTES) {
        const guint8 *here = port->in + *at;
        gsize length = sf_frame_get32(here), left = port->in_length - *at - LENGTH_BYTES;
        if (length > SF_PORT_FRAME_MAX) {
            gsize drop = MIN(length, left);
            port->skip = length - drop;
            *at += LENGTH_BYTES + drop;
        } else if (length > left) {
            return 0;
        } else {
            *at += LENGTH_BYTES + length;
            *frame = here + LENGTH_BYTES;
            if (length > 0) {
                return length;
            }
        }
    }
    return 0;
}

void sf_port_consume(SfPort *port, gsize at)
{
    memmove(port->in, port->in + at, port->in_length - at);
    port->in_length -= at;
}

void sf_port_flush(SfPort *port)
{
    ssize_t n = send(port->socket, port->out, port->out_length, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n > 0) {
        port->out_length -= (gsize)n;
        memmove(port->out, port->out + n, port->out_length);
    }
}

void sf_port_send(SfPort *port, const guint8 *frame, gsize length)
{
    guint8 head[LENGTH_BYTES];
    struct iovec parts[] = { { head, sizeof(head) }, { (void *)frame, length } };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = G_N_ELEMENTS(parts) };
    ssize_t n;

    if (length > SF_PORT_FRAME_MAX || port->out_length > 0) {
        return;
    }
    sf_frame_put32(head, (guint32)length);
    n = sendmsg(port->socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0 && (gsize)n < sizeof(head) + length) {
        memcpy(port->out, head, sizeof(head));
        memcpy(port->out + sizeof(head), frame, length);
        port->out_length = sizeof(head) + length - (gsize)n;
        memmove(port->out, port->out + n, port->out_length);
    }
}
