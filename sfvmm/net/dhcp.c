/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A DHCP server (RFC 2131) without leases: each member has one address, the host knows which, and a MAC tells members
 * apart, as no frame leaves a port with another one. So there is nothing to remember:
 *
 *     DISCOVER                            --> OFFER of the member's address
 *     REQUEST of it                       --> ACK
 *     REQUEST of another address          --> NAK: a clone's client asks for its parent's; it begins anew
 *     REQUEST to another server, the rest --> nothing
 *
 * A lease has no end, so no client of a clone comes back to give up an address, or to keep its parent's.
 *
 *     Ethernet 14 | IPv4 20 | UDP 8 | 236 bytes of BOOTP, the magic cookie, options
 */
#include "sfvmm/net/dhcp.h"

#include <string.h>
#include "sfvmm/net/frame.h"

#define SERVER_PORT 67u
#define CLIENT_PORT 68u
#define BROADCAST   0xffffffffu

/* In BOOTP's part. */
#define AT_OPERATION   0u
#define AT_HARDWARE    1u /* type and length of the address */
#define AT_TRANSACTION 4u
#define AT_FLAGS       10u
#define AT_CLIENT      12u /* the address that the client has */
#define AT_YOURS       16u
#define AT_MAC         28u
#define AT_COOKIE      236u
#define AT_OPTIONS     240u
#define BOOTP_MIN      300u /* RFC 1542: shorter ones are dropped by some */
#define BOOT_REQUEST   1u
#define BOOT_REPLY     2u
#define ETHERNET       0x0106u /* 1, and 6 bytes */
#define COOKIE         0x63825363u

enum {
    OPTION_PAD = 0,
    OPTION_MASK = 1,
    OPTION_ROUTER = 3,
    OPTION_MTU = 26,
    OPTION_BROADCAST = 28,
    OPTION_REQUESTED = 50,
    OPTION_LEASE = 51,
    OPTION_TYPE = 53,
    OPTION_SERVER = 54,
    OPTION_END = 255,
};

enum { DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5, NAK = 6 };

/* What counts of a request. */
typedef struct {
    const guint8 *bootp;
    guint8 type;               /* 0: none was said */
    guint32 server, requested; /* 0: none was said */
} Request;

/* ---- requests ---- */

static gboolean get_request(const guint8 *frame, gsize length, SfFrameIpv4 *packet)
{
    return length >= SF_FRAME_HEADER && sf_frame_type(frame) == SF_FRAME_IPV4 &&
           sf_frame_get_ipv4(frame, length, packet) && packet->protocol == SF_FRAME_UDP && !packet->is_fragment &&
           packet->payload_length >= SF_FRAME_UDP_HEADER && sf_frame_get16(packet->payload + 2) == SERVER_PORT;
}

gboolean sf_dhcp_is_request(const guint8 *frame, gsize length)
{
    SfFrameIpv4 packet;

    return get_request(frame, length, &packet);
}

/* Options of other lengths than theirs are none. */
static void take_option(Request *request, guint8 option, const guint8 *value, gsize length)
{
    if (option == OPTION_TYPE && length == 1) {
        request->type = value[0];
    } else if (option == OPTION_SERVER && length == 4) {
        request->server = sf_frame_get32(value);
    } else if (option == OPTION_REQUESTED && length == 4) {
        request->requested = sf_frame_get32(value);
    }
}

/* FALSE: an option is cut off. */
static gboolean take_options(Request *request, const guint8 *options, gsize length)
{
    for (gsize at = 0; at < length && options[at] != OPTION_END;) {
        if (options[at] == OPTION_PAD) {
            at++;
            continue;
        }
        if (length - at < 2 || length - at - 2 < options[at + 1]) {
            return FALSE;
        }
        take_option(request, options[at], options + at + 2, options[at + 1]);
        at += 2u + options[at + 1];
    }
    return TRUE;
}

/* A request of the member with this MAC and, as far as it has one yet, this address. */
static gboolean parse(Request *request, const guint8 *mac, guint32 address, const guint8 *frame, gsize length)
{
    SfFrameIpv4 packet;
    gsize size;

    *request = (Request){ NULL, 0, 0, 0 };
    if (!get_request(frame, length, &packet) || memcmp(frame + SF_FRAME_MAC, mac, SF_FRAME_MAC) != 0 ||
        (packet.source != 0 && packet.source != address)) {
        return FALSE;
    }
    size = sf_frame_get16(packet.payload + 4);
    if (size > packet.payload_length || size < SF_FRAME_UDP_HEADER + AT_OPTIONS) {
        return FALSE;
    }
    request->bootp = packet.payload + SF_FRAME_UDP_HEADER;
    return request->bootp[AT_OPERATION] == BOOT_REQUEST && sf_frame_get16(request->bootp + AT_HARDWARE) == ETHERNET &&
           memcmp(request->bootp + AT_MAC, mac, SF_FRAME_MAC) == 0 &&
           sf_frame_get32(request->bootp + AT_COOKIE) == COOKIE &&
           take_options(request, request->bootp + AT_OPTIONS, size - SF_FRAME_UDP_HEADER - AT_OPTIONS);
}

/* 0: none. */
static guint8 answer_type(const SfDhcpSubnet *subnet, const Request *request, guint32 address)
{
    guint32 wanted = request->requested ? request->requested : sf_frame_get32(request->bootp + AT_CLIENT);

    if (request->type == DISCOVER) {
        return OFFER;
    }
    if (request->type != REQUEST || (request->server != 0 && request->server != subnet->server)) {
        return 0;
    }
    return wanted == address ? ACK : NAK;
}

/* ---- answers ---- */

static guint8 *put_option(guint8 *at, guint8 option, guint32 value, guint8 length)
{
    *at++ = option;
    *at++ = length;
    for (guint8 i = length; i > 0; i--) {
        *at++ = (guint8)(value >> 8 * (i - 1u));
    }
    return at;
}

static guint8 *put_options(guint8 *at, const SfDhcpSubnet *subnet, guint8 type, guint32 address)
{
    guint32 hosts = (guint32)(G_MAXUINT32 >> subnet->prefix);

    at = put_option(at, OPTION_TYPE, type, 1);
    at = put_option(at, OPTION_SERVER, subnet->server, 4);
    if (type != NAK) {
        at = put_option(at, OPTION_LEASE, G_MAXUINT32, 4); /* for ever */
        at = put_option(at, OPTION_MASK, ~hosts, 4);
        at = put_option(at, OPTION_BROADCAST, address | hosts, 4);
        at = put_option(at, OPTION_MTU, subnet->mtu, 2);
        if (subnet->router != 0) {
            at = put_option(at, OPTION_ROUTER, subnet->router, 4);
        }
    }
    *at++ = OPTION_END;
    return at;
}

static gsize put_bootp(guint8 *bootp, const SfDhcpSubnet *subnet, const Request *request, guint8 type, guint32 address)
{
    bootp[AT_OPERATION] = BOOT_REPLY;
    sf_frame_put16(bootp + AT_HARDWARE, ETHERNET);
    memcpy(bootp + AT_TRANSACTION, request->bootp + AT_TRANSACTION, 4);
    memcpy(bootp + AT_FLAGS, request->bootp + AT_FLAGS, 2);
    if (type != NAK) {
        memcpy(bootp + AT_CLIENT, request->bootp + AT_CLIENT, 4);
        sf_frame_put32(bootp + AT_YOURS, address);
    }
    memcpy(bootp + AT_MAC, request->bootp + AT_MAC, SF_FRAME_MAC);
    sf_frame_put32(bootp + AT_COOKIE, COOKIE);
    return MAX((gsize)(put_options(bootp + AT_OPTIONS, subnet, type, address) - bootp), BOOTP_MIN);
}

/* To the member's MAC, and to all addresses: that of a client counts only when it has taken it. No UDP checksum. */
static gsize put_headers(guint8 *frame, const SfDhcpSubnet *subnet, const guint8 *mac, gsize bootp_length)
{
    guint8 *udp = frame + SF_FRAME_HEADER + SF_FRAME_IPV4_HEADER;
    SfFrameIpv4 packet = { .protocol = SF_FRAME_UDP,
                           .source = subnet->server,
                           .target = BROADCAST,
                           .payload_length = SF_FRAME_UDP_HEADER + bootp_length };

    sf_frame_put16(udp, SERVER_PORT);
    sf_frame_put16(udp + 2, CLIENT_PORT);
    sf_frame_put16(udp + 4, (guint16)packet.payload_length);
    return sf_frame_put_ipv4(frame, mac, subnet->mac, &packet, SF_FRAME_DONT_FRAGMENT);
}

gsize sf_dhcp_answer(const SfDhcpSubnet *subnet, const guint8 *mac, guint32 address, const guint8 *frame, gsize length,
                     guint8 *answer)
{
    guint8 *bootp = answer + SF_FRAME_HEADER + SF_FRAME_IPV4_HEADER + SF_FRAME_UDP_HEADER;
    Request request;
    guint8 type;

    if (!parse(&request, mac, address, frame, length)) {
        return 0;
    }
    type = answer_type(subnet, &request, address);
    if (type == 0) {
        return 0;
    }
    memset(answer, 0, SF_DHCP_ANSWER_MAX);
    return put_headers(answer, subnet, mac, put_bootp(bootp, subnet, &request, type, address));
}
