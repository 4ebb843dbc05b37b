/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What sfvmmd and sf-switch say to each other, over an AF_UNIX SOCK_SEQPACKET socket on which sf-switch accepts (a new
 * connection takes the place of the old one: a restarted sfvmmd). An order is one packet, and so is its answer.
 *
 *     bytes   0        4        8        12      18     20              36
 *             +--------+--------+--------+-------+------+---------------+
 *     order   | version| what   | address| mac   | 0    | device, 0 ... |    OPEN: + the switch's end of a socket pair
 *             +--------+--------+--------+-------+------+---------------+
 *     answer  | what   | error  |                                            error: 0, or what errno says
 *             +--------+--------+
 *
 * In the host's byte order: neither leaves the host. No state, any thread.
 */
#ifndef SF_SWITCH_MESSAGE_H
#define SF_SWITCH_MESSAGE_H

#include <gio/gio.h>

#define SF_SWITCH_VERSION    1u
#define SF_SWITCH_MAC_LENGTH 6
#define SF_SWITCH_DEVICE_LEN 16

#define SF_SWITCH_OPEN    1u /* a port for this device, with a stream socket of frames; it reaches nothing */
#define SF_SWITCH_ADMIT   2u /* its member may talk, as this MAC and address alone */
#define SF_SWITCH_DISMISS 3u /* its member has ended */
#define SF_SWITCH_SETTLE  4u /* who was not admitted over this connection may not talk any more */
#define SF_SWITCH_END     5u /* the cluster is gone: sf-switch answers, and ends */

struct sf_switch_order {
    guint32 version;
    guint32 what;
    guint32 address; /* IPv4; of ADMIT, else 0 */
    guint8 mac[SF_SWITCH_MAC_LENGTH];
    guint8 zero[2];
    char device[SF_SWITCH_DEVICE_LEN]; /* letters and digits; of OPEN, ADMIT, DISMISS, else empty */
};

struct sf_switch_answer {
    guint32 what;
    gint32 error;
};

/* TRUE: it is an order, with as many descriptors as it needs. Else INVALID_DATA that says what is wrong. */
gboolean sf_switch_order_check(const void *bytes, gsize length, guint n_fds, struct sf_switch_order *order,
                               GError **error);

/* The next order; *fd: its descriptor, the caller's, or -1. Errors are those of packet.h. */
gboolean sf_switch_order_receive(int socket, struct sf_switch_order *order, int *fd, GError **error);

gboolean sf_switch_answer_send(int socket, guint32 what, int error_number, GError **error);

/*
 * Sends an order (version and zeros are filled in) with `fd`, or -1, which stays the caller's, and waits for the
 * answer: as long as the socket's SO_RCVTIMEO. An errno in the answer becomes a G_IO_ERROR.
 */
gboolean sf_switch_order_send(int socket, struct sf_switch_order *order, int fd, GError **error);

#endif
