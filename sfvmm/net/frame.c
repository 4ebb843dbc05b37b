/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A frame passes when it comes with its sender's own MAC and is one of three:
 *
 *     ARP    request or reply, which says the same MAC and the sender's own address
 *     IPv4   from the sender's own address
 *     IPv6   from its link-local address, which is made of the MAC; or from :: what a host asks before it has one
 *
 * and is not what makes its sender a router or a DHCP server of others. That is looked for behind IPv6's extension
 * headers too; where a fragment header hides ICMPv6, the packet is dropped (RFC 6980 forbids it for what matters).
 */
#include "sfvmm/net/frame.h"

#include <string.h>

#define IPV6_HEADER          40u
#define IPV6_ADDRESS         16u
#define EXTENSION_HEADER     8u /* bytes, at least */
#define EXTENSIONS_MAX       8u /* of one packet */
#define HOP_BY_HOP           0u
#define ROUTING              43u
#define FRAGMENT             44u
#define DESTINATION          60u
#define ICMP6                58u
#define ROUTER_ADVERTISEMENT 134u
#define NEIGHBOUR_SOLICIT    135u
#define REDIRECT             137u
#define MLD2_REPORT          143u
#define DHCP_SERVER          67u
#define DHCP6_SERVER         547u
#define MORE_OR_OFFSET       0x3fffu /* of IPv4's fragment field */
#define VERSION_AND_LENGTH   0x45u   /* of IPv4's header without options */
#define TTL                  64u

guint16 sf_frame_get16(const guint8 *bytes)
{
    return (guint16)(bytes[0] << 8 | bytes[1]);
}

guint32 sf_frame_get32(const guint8 *bytes)
{
    return (guint32)bytes[0] << 24 | (guint32)bytes[1] << 16 | (guint32)bytes[2] << 8 | bytes[3];
}

void sf_frame_put16(guint8 *bytes, guint16 value)
{
    bytes[0] = (guint8)(value >> 8);
    bytes[1] = (guint8)value;
}

void sf_frame_put32(guint8 *bytes, guint32 value)
{
    sf_frame_put16(bytes, (guint16)(value >> 16));
    sf_frame_put16(bytes + 2, (guint16)value);
}

gboolean sf_frame_is_for_group(const guint8 *frame)
{
    return frame[0] & 1;
}

guint16 sf_frame_type(const guint8 *frame)
{
    return sf_frame_get16(frame + 2 * SF_FRAME_MAC);
}

static gboolean arp_may_pass(const guint8 *frame, gsize length, const guint8 *mac, guint32 address)
{
    const guint8 *arp = frame + SF_FRAME_HEADER;
    guint16 operation;

    if (length < SF_FRAME_ARP_BYTES || memcmp(arp, SF_FRAME_ARP_FIXED, 6) != 0) {
        return FALSE;
    }
    operation = sf_frame_get16(arp + 6);
    return (operation == SF_FRAME_ARP_REQUEST || operation == SF_FRAME_ARP_REPLY) &&
           memcmp(arp + 8, mac, SF_FRAME_MAC) == 0 && sf_frame_get32(arp + 14) == address;
}

/* ---- IPv4 ---- */

gboolean sf_frame_get_ipv4(const guint8 *frame, gsize length, SfFrameIpv4 *packet)
{
    const guint8 *header = frame + SF_FRAME_HEADER;
    gsize room = length - SF_FRAME_HEADER, total;

    if (room < SF_FRAME_IPV4_HEADER || header[0] >> 4 != 4) {
        return FALSE;
    }
    packet->header = header;
    packet->header_length = (header[0] & 15u) * 4u;
    total = sf_frame_get16(header + 2);
    if (packet->header_length < SF_FRAME_IPV4_HEADER || total < packet->header_length || total > room) {
        return FALSE;
    }
    packet->payload = header + packet->header_length;
    packet->payload_length = total - packet->header_length;
    packet->protocol = header[9];
    packet->source = sf_frame_get32(header + 12);
    packet->target = sf_frame_get32(header + 16);
    packet->is_fragment = (sf_frame_get16(header + 6) & MORE_OR_OFFSET) != 0;
    return TRUE;
}

guint16 sf_frame_checksum(const guint8 *bytes, gsize length, guint32 sum)
{
    for (gsize i = 0; i < length; i++) {
        sum += i % 2 ? bytes[i] : (guint32)bytes[i] << 8;
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (guint16)~sum;
}

gsize sf_frame_put_ipv4(guint8 *frame, const guint8 *to, const guint8 *from, const SfFrameIpv4 *packet, guint16 flags)
{
    guint8 *header = frame + SF_FRAME_HEADER;
    gsize length = SF_FRAME_IPV4_HEADER + packet->payload_length;

    memcpy(frame, to, SF_FRAME_MAC);
    memcpy(frame + SF_FRAME_MAC, from, SF_FRAME_MAC);
    sf_frame_put16(frame + 2 * SF_FRAME_MAC, SF_FRAME_IPV4);
    memset(header, 0, SF_FRAME_IPV4_HEADER);
    header[0] = VERSION_AND_LENGTH;
    sf_frame_put16(header + 2, (guint16)length);
    sf_frame_put16(header + 6, flags);
    header[8] = TTL;
    header[9] = packet->protocol;
    sf_frame_put32(header + 12, packet->source);
    sf_frame_put32(header + 16, packet->target);
    sf_frame_put16(header + 10, sf_frame_checksum(header, SF_FRAME_IPV4_HEADER, 0));
    return SF_FRAME_HEADER + length;
}

/* A fragment behind the first has no ports; its first one has been looked at. */
static gboolean is_dhcp_answer(const SfFrameIpv4 *packet)
{
    return packet->protocol == SF_FRAME_UDP && packet->payload_length >= SF_FRAME_UDP_HEADER &&
           sf_frame_get16(packet->payload) == DHCP_SERVER;
}

static gboolean ipv4_may_pass(const guint8 *frame, gsize length, guint32 address)
{
    SfFrameIpv4 packet;

    return sf_frame_get_ipv4(frame, length, &packet) && packet.source == address && !is_dhcp_answer(&packet);
}

/* ---- IPv6 ---- */

static void link_local(const guint8 *mac, guint8 *address)
{
    const guint8 bytes[IPV6_ADDRESS] = { 0xfe,       0x80,   0,      0,    0,    0,      0,      0,
                                         mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5] };

    memcpy(address, bytes, sizeof(bytes));
}

typedef struct {
    guint8 protocol;
    const guint8 *payload; /* of `length` bytes, perhaps none */
    gsize length;
    gboolean is_fragment;
} Upper;

static gboolean is_extension(guint8 protocol)
{
    return protocol == HOP_BY_HOP || protocol == ROUTING || protocol == FRAGMENT || protocol == DESTINATION;
}

/* FALSE: an extension header is cut off, or there are too many. */
static gboolean find_upper(const guint8 *packet, gsize length, Upper *upper)
{
    *upper = (Upper){ packet[6], packet + IPV6_HEADER, length - IPV6_HEADER, FALSE };
    for (guint i = 0; is_extension(upper->protocol); i++) {
        gsize size = EXTENSION_HEADER;
        if (i == EXTENSIONS_MAX || upper->length < EXTENSION_HEADER) {
            return FALSE;
        }
        if (upper->protocol == FRAGMENT) {
            upper->is_fragment = TRUE;
            if (sf_frame_get16(upper->payload + 2) & 0xfff8) { /* no upper header in it */
                upper->protocol = upper->payload[0];
                upper->length = 0;
                return TRUE;
            }
        } else {
            size += upper->payload[1] * EXTENSION_HEADER;
        }
        if (size > upper->length) {
            return FALSE;
        }
        upper->protocol = upper->payload[0];
        upper->payload += size;
        upper->length -= size;
    }
    return TRUE;
}

static gboolean is_for_servers(const Upper *upper)
{
    if (upper->protocol == ICMP6) {
        return upper->is_fragment || upper->length == 0 || upper->payload[0] == ROUTER_ADVERTISEMENT ||
               upper->payload[0] == REDIRECT;
    }
    return upper->protocol == SF_FRAME_UDP && !(upper->is_fragment && upper->length == 0) &&
           (upper->length < SF_FRAME_UDP_HEADER || sf_frame_get16(upper->payload) == DHCP6_SERVER);
}

static gboolean ipv6_may_pass(const guint8 *frame, gsize length, const guint8 *mac)
{
    static const guint8 unspecified[IPV6_ADDRESS] = { 0 };
    const guint8 *packet = frame + SF_FRAME_HEADER;
    guint8 own[IPV6_ADDRESS];
    Upper upper;

    if (length < SF_FRAME_HEADER + IPV6_HEADER || packet[0] >> 4 != 6 ||
        !find_upper(packet, length - SF_FRAME_HEADER, &upper) || is_for_servers(&upper)) {
        return FALSE;
    }
    link_local(mac, own);
    if (memcmp(packet + 8, unspecified, sizeof(unspecified)) == 0) {
        return upper.protocol == ICMP6 && (upper.payload[0] == NEIGHBOUR_SOLICIT || upper.payload[0] == MLD2_REPORT);
    }
    return memcmp(packet + 8, own, sizeof(own)) == 0;
}

gboolean sf_frame_may_pass(const guint8 *frame, gsize length, const guint8 *mac, guint32 address)
{
    if (length < SF_FRAME_HEADER || memcmp(frame + SF_FRAME_MAC, mac, SF_FRAME_MAC) != 0) {
        return FALSE;
    }
    switch (sf_frame_type(frame)) {
    case SF_FRAME_ARP:
        return arp_may_pass(frame, length, mac, address);
    case SF_FRAME_IPV4:
        return ipv4_may_pass(frame, length, address);
    case SF_FRAME_IPV6:
        return ipv6_may_pass(frame, length, mac);
    default:
        return FALSE;
    }
}
