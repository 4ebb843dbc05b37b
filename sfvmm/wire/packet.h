/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Packets of an AF_UNIX SOCK_SEQPACKET socket: bytes, and descriptors beside them (SCM_RIGHTS). What the bytes mean is
 * for qemu_message.h and pager_message.h to say.
 *
 * Errors are G_IO_ERROR: WOULD_BLOCK, CONNECTION_CLOSED, INVALID_DATA (the peer breaks the limits: drop the
 * connection), MESSAGE_TOO_LARGE, or what errno says. No state: any thread may call anything.
 */
#ifndef SF_PACKET_H
#define SF_PACKET_H

#include <gio/gio.h>

#define SF_PACKET_MAX_FDS 253u /* the kernel's SCM_MAX_FD */

/* What goes over one kind of socket. */
typedef struct {
    const char *channel; /* "sf channel": begins each error */
    const char *peer;    /* "QEMU" */
    gsize max_bytes;
    guint max_fds; /* at most SF_PACKET_MAX_FDS */
} SfPacketKind;

/*
 * Receives one packet; whether it waits depends on the socket. bytes has room for max_bytes, fds for max_fds (they come
 * with O_CLOEXEC and are the caller's). Returns its length in bytes, more than 0; or 0 + error, and no descriptor is
 * left open, whatever the peer sent.
 */
gsize sf_packet_receive(const SfPacketKind *kind, int socket, void *bytes, int *fds, guint *n_fds, GError **error);

/* Sends one packet with descriptors (still the caller's), whole or not at all. No SIGPIPE. */
gboolean sf_packet_send(const SfPacketKind *kind, int socket, const void *bytes, gsize length, const int *fds,
                        guint n_fds, GError **error);

/* Closes descriptors that came with a packet; negative ones are skipped. */
void sf_packet_close_fds(const int *fds, guint n_fds);

#endif
