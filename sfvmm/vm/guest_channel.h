/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfGuestChannel: our end of the virtio-serial port of a VM's agent. Frames of libsf/wire both ways; what the guest
 * sends is bounded in size and rate. Main thread only.
 */
#ifndef SF_GUEST_CHANNEL_H
#define SF_GUEST_CHANNEL_H

#include <gio/gio.h>
#include "libsf/wire/guest_protocol.h"

typedef struct SfGuestChannel SfGuestChannel;

typedef struct {
    void (*connected)(gpointer owner); /* the agent has answered HELLO */
    void (*message)(const struct sf_gp_header *header, const guint8 *payload, gpointer owner); /* not HELLO */
    void (*closed)(gpointer owner); /* QEMU has closed its end */
} SfGuestChannelHandlers;

/* Takes fd, a connected unix stream socket. name: for log lines. handlers and owner must outlive it. */
SfGuestChannel *sf_guest_channel_new(int fd, const char *name, const SfGuestChannelHandlers *handlers, gpointer owner);
void sf_guest_channel_free(SfGuestChannel *channel);
void sf_guest_channel_set_name(SfGuestChannel *channel, const char *name);

/* A zero byte and HELLO with a new nonce, unless one is on its way already. */
void sf_guest_channel_hello(SfGuestChannel *channel);

/* The guest has opened or closed the port. What was on its way to the last agent is dropped; the new one gets a HELLO.
 */
void sf_guest_channel_port_changed(SfGuestChannel *channel, gboolean open);

gboolean sf_guest_channel_is_connected(const SfGuestChannel *channel);

/* Queued until QEMU takes it. FALSE + error: too long, or the guest does not read and the queue is full. */
gboolean sf_guest_channel_send(SfGuestChannel *channel, guint8 type, guint32 request, const void *payload, gsize length,
                               GError **error);

#endif
