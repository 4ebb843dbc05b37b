/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A message is one packet, so there is no framing to lose: a packet is right or wrong as a whole.
 *
 * Receiving descriptors has one trap: the kernel installs them into our table before we see the message. The control
 * buffer has room for as many as the kind allows; alignment may let one more in. So all that arrived are looked at
 * first: more than the kind allows are closed at once, and the others too on every way out but success. What did not
 * fit into the buffer at all (MSG_CTRUNC) the kernel has dropped itself.
 */
#include "sfvmm/wire/packet.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef union {
    char room[CMSG_SPACE(SF_PACKET_MAX_FDS * sizeof(int))];
    struct cmsghdr align;
} Control;

void sf_packet_close_fds(const int *fds, guint n_fds)
{
    for (guint i = 0; i < n_fds; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

static gboolean fail_errno(const SfPacketKind *kind, const char *what, GError **error)
{
    int saved = errno;

    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved), "%s: %s %s failed: %s", kind->channel, what,
                kind->peer, g_strerror(saved));
    return FALSE;
}

/* All that came, so that none leaks; more than max_fds are closed. TRUE: there were no more. */
static gboolean take_fds(struct msghdr *msg, int *fds, guint max_fds, guint *n_fds)
{
    gboolean fit = TRUE;

    *n_fds = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        guint n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (guint i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (*n_fds < max_fds) {
                fds[(*n_fds)++] = fd;
            } else {
                close(fd);
                fit = FALSE;
            }
        }
    }
    return fit;
}

gsize sf_packet_receive(const SfPacketKind *kind, int socket, void *bytes, int *fds, guint *n_fds, GError **error)
{
    Control control;
    struct iovec iov = { .iov_base = bytes, .iov_len = kind->max_bytes };
    struct msghdr msg = { .msg_iov = &iov,
                          .msg_iovlen = 1,
                          .msg_control = &control,
                          .msg_controllen = CMSG_SPACE(kind->max_fds * sizeof(int)) };
    ssize_t length;

    do {
        length = recvmsg(socket, &msg, MSG_CMSG_CLOEXEC);
    } while (length < 0 && errno == EINTR);
    if (length < 0) {
        *n_fds = 0;
        fail_errno(kind, "receiving from", error);
        return 0;
    }
    if (take_fds(&msg, fds, kind->max_fds, n_fds) && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && length > 0) {
        return length;
    }
    sf_packet_close_fds(fds, *n_fds);
    *n_fds = 0;
    if (length == 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED, "%s: %s has closed it", kind->channel, kind->peer);
    } else {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "%s: %s sent more than %zu bytes or %u descriptors in one message", kind->channel, kind->peer,
                    kind->max_bytes, kind->max_fds);
    }
    return 0;
}

gboolean sf_packet_send(const SfPacketKind *kind, int socket, const void *bytes, gsize length, const int *fds,
                        guint n_fds, GError **error)
{
    Control control = { 0 };
    struct iovec iov = { .iov_base = (void *)bytes, .iov_len = length };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    ssize_t sent;

    if (length > kind->max_bytes || n_fds > kind->max_fds) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE,
                    "%s: a message of %zu bytes and %u descriptors; at most %zu and %u fit", kind->channel, length,
                    n_fds, kind->max_bytes, kind->max_fds);
        return FALSE;
    }
    if (n_fds) {
        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    }
    do {
        sent = sendmsg(socket, &msg, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent >= 0 || fail_errno(kind, "sending to", error);
}
