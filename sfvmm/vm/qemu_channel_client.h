/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfQemuChannel: our end of one sf channel (wire/qemu_channel.h). Requests can be asked for at any time; QEMU answers
 * them in order. Main thread only.
 */
#ifndef SF_QEMU_CHANNEL_CLIENT_H
#define SF_QEMU_CHANNEL_CLIENT_H

#include "sfvmm/wire/qemu_message.h"

typedef struct SfQemuChannel SfQemuChannel;

typedef struct {
    void (*event)(SfQcMessage *message, gpointer owner);
    void (*closed)(const GError *reason, gpointer owner); /* once; all requests have been failed before */
} SfQemuChannelHandlers;

/* The answer (its descriptors can be stolen), or an error. Called from the main loop or from sf_qemu_channel_free(). */
typedef void (*SfQemuChannelReply)(SfQcMessage *message, const GError *error, gpointer data);

/* Takes fd, one end of a SOCK_SEQPACKET pair. handlers and owner must outlive it. */
SfQemuChannel *sf_qemu_channel_new(int fd, const SfQemuChannelHandlers *handlers, gpointer owner);

/* No handler is called any more, but requests that wait are failed with SF_VM_ERROR_GONE. */
void sf_qemu_channel_free(SfQemuChannel *channel);

/*
 * Before the first request: the kernel shall say whose process the first answer comes from. peer(): its pid, in our
 * pid namespace; 0 before the first answer, or when nobody asked.
 */
void sf_qemu_channel_ask_peer(SfQemuChannel *channel);
pid_t sf_qemu_channel_peer(const SfQemuChannel *channel);

/* For the next request: build its packet with this serial. */
guint32 sf_qemu_channel_serial(SfQemuChannel *channel);

/*
 * Sends packet (taken) of this type, which has the last serial from sf_qemu_channel_serial(), with descriptors (still
 * the caller's). reply is called exactly once.
 */
void sf_qemu_channel_request(SfQemuChannel *channel, guint16 type, GBytes *packet, const int *fds, guint n_fds,
                             SfQemuChannelReply reply, gpointer data);

#endif
