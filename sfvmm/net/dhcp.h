/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a guest that asks by DHCP is told: the address that is its own anyway. A request is bytes of a guest: nothing in
 * it is trusted. No state, any thread.
 */
#ifndef SF_DHCP_H
#define SF_DHCP_H

#include <glib.h>

#define SF_DHCP_ANSWER_MAX 400u /* bytes of a frame */

/* What all members of a cluster are told. Addresses are IPv4 in host byte order. */
typedef struct {
    guint32 server; /* the gateway's address, whether or not there is one */
    guint32 router; /* 0: there is no way out */
    guint prefix;
    guint16 mtu;
    const guint8 *mac; /* that answers come from */
} SfDhcpSubnet;

/* TRUE: a frame (of any length) that is for a DHCP server. */
gboolean sf_dhcp_is_request(const guint8 *frame, gsize length);

/*
 * The answer to such a frame of the member that has this MAC and address: a frame in `answer`, SF_DHCP_ANSWER_MAX bytes
 * of room. Returns its length; 0: there is none.
 */
gsize sf_dhcp_answer(const SfDhcpSubnet *subnet, const guint8 *mac, guint32 address, const guint8 *frame, gsize length,
                     guint8 *answer);

#endif
