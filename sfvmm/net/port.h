/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfPort: a member's place on sf-switch: a stream socket whose other end is QEMU's netdev of type `stream`. Each frame
 * has its length before it, in four bytes, big-endian. One thread.
 */
#ifndef SF_PORT_H
#define SF_PORT_H

#include <glib.h>
#include "sfvmm/net/frame.h"
#include "sfvmm/net/limit.h"
#include "sfvmm/wire/switch_message.h"

#define SF_PORT_FRAME_MAX 2048u       /* bytes; a longer one, which no MTU here allows, is dropped */
#define SF_PORT_BUFFER    (64u << 10) /* bytes read at once */

typedef struct {
    char device[SF_SWITCH_DEVICE_LEN];
    int socket;        /* owned */
    gboolean admitted; /* its member may talk, as: */
    guint8 mac[SF_FRAME_MAC];
    guint32 address;
    gboolean confirmed; /* by this sfvmmd */
    SfLimit groups, sending, receiving;

    guint8 *in; /* of SF_PORT_BUFFER bytes, `in_length` of them not looked at yet */
    gsize in_length;
    gsize skip;                        /* bytes of a frame that is too long, to come */
    guint8 out[SF_PORT_FRAME_MAX + 4]; /* the rest of a frame that the socket has taken a part of */
    gsize out_length;
} SfPort;

SfPort *sf_port_new(const char *device, int socket, guint64 rate, gint64 now);
void sf_port_free(SfPort *port);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfPort, sf_port_free)

/* Reads what is there. FALSE: its QEMU has gone, or breaks the framing. */
gboolean sf_port_fill(SfPort *port);

/* The next whole frame of what was read, valid until the next fill; 0: there is none. */
gsize sf_port_next(SfPort *port, gsize *at, const guint8 **frame);
void sf_port_consume(SfPort *port, gsize at); /* up to where sf_port_next() has come */

/* A frame that the socket does not take is lost, as at any switch. */
void sf_port_send(SfPort *port, const guint8 *frame, gsize length);
void sf_port_flush(SfPort *port); /* what is left in `out` */

#endif
