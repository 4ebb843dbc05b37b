/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Frames that ask a DHCP server, byte by byte. Addresses are IPv4 in host byte order, 0: none. */
#ifndef SF_TEST_NET_DHCP_REQUEST_H
#define SF_TEST_NET_DHCP_REQUEST_H

#include <glib.h>

#define DHCP_DISCOVER 1
#define DHCP_OFFER    2
#define DHCP_REQUEST  3
#define DHCP_RELEASE  7
#define DHCP_ACK      5
#define DHCP_NAK      6

#define DHCP_OPTIONS_AT (14u + 20u + 8u + 240u) /* in a frame */

/* Into `frame`, 400 bytes of room; returns its length. */
gsize dhcp_request(guint8 *frame, const guint8 *mac, guint32 source, guint8 type, guint32 requested, guint32 server);

/* The value of an option of an answer, as a number; 0: it has none. */
guint32 dhcp_option(const guint8 *frame, gsize length, guint8 option);

#endif
