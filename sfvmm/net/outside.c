/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     member --frame--> policy, packet by packet --> slirp --> sockets of this process --> outside
 *     member <--frame-- policy, for what answers <-- slirp <--
 *
 * libslirp ends TCP, UDP and pings of members and speaks for them with sockets of an ordinary user. Each packet is held
 * against the policy before slirp sees it, and each that slirp brings back too, the other way round: so there is no
 * table of connections to keep right. Fragments have no ports to look at: they don't leave a cluster.
 *
 * Never reachable are the host's own addresses, all of them (own_addresses.h), what policy.c forbids, and the cluster's
 * subnet. Of slirp's services none is in reach: members may but ping the gateway. ARP for the gateway is answered here,
 * and slirp's ARP for members too: no member hears or tells slirp anything but IPv4.
 *
 * What is refused is refused at once, by a TCP reset or an ICMP message, in bounds.
 */
#include "sfvmm/net/outside.h"

#include <arpa/inet.h>
#include <slirp/libslirp.h>
#include <string.h>
#include "sfvmm/net/frame.h"
#include "sfvmm/net/limit.h"
#include "sfvmm/net/network.h"
#include "sfvmm/net/own_addresses.h"
#include "sfvmm/net/policy.h"

#define SLIRP_VERSION    4u
#define REFUSALS         100u /* a second, and at once */
#define PINGS            100u
#define TCP_HEADER       20u
#define ICMP_HEADER      8u
#define ICMP_QUOTE       8u /* bytes of the refused packet's payload */
#define ICMP_ECHO        8u
#define ICMP_UNREACHABLE 3u
#define ICMP_PROHIBITED  13u /* by the administrator (RFC 1812) */
#define TCP_FIN          0x01u
#define TCP_SYN          0x02u
#define TCP_RST          0x04u
#define TCP_ACK          0x10u
#define ANSWER_MAX       128u /* bytes of a frame that is made here */

struct SfOutside {
    guint32 gateway, subnet, mask;
    guint8 mac[SF_FRAME_MAC];
    const GArray *rules;
    SfOutsideOptions options;
    Slirp *slirp;
    SfOwnAddresses own;
    SfLimit refusals, pings;
    GArray *pollfds; /* during sf_outside_prepare() and _dispatch() */
};

/* ---- what passes ---- */

static SfNetProtocol protocol_of(guint8 protocol)
{
    return protocol == SF_FRAME_TCP    ? SF_NET_TCP
           : protocol == SF_FRAME_UDP  ? SF_NET_UDP
           : protocol == SF_FRAME_ICMP ? SF_NET_ICMP
                                       : SF_NET_ANY;
}

/* port_at: where in the payload the port of the outside is. */
static gboolean is_allowed(SfOutside *outside, const SfFrameIpv4 *packet, guint32 address, guint port_at, gint64 now)
{
    gboolean has_ports = packet->protocol == SF_FRAME_TCP || packet->protocol == SF_FRAME_UDP;
    guint16 port;

    if (packet->is_fragment || packet->payload_length < ICMP_HEADER || (address & outside->mask) == outside->subnet) {
        return FALSE;
    }
    port = has_ports ? sf_frame_get16(packet->payload + port_at) : 0;
    return sf_net_policy_allows(outside->rules, address, protocol_of(packet->protocol), port) &&
           !sf_own_addresses_has(&outside->own, address, now);
}

/* ---- refusals ---- */

/* The headers of an answer to a packet; the payload is in place. Returns the frame's length. */
static gsize finish_answer(SfOutside *outside, guint8 *answer, const guint8 *frame, const SfFrameIpv4 *packet,
                           guint8 protocol, guint32 source, gsize payload)
{
    SfFrameIpv4 own = { .protocol = protocol, .source = source, .target = packet->source, .payload_length = payload };

    return sf_frame_put_ipv4(answer, frame + SF_FRAME_MAC, outside->mac, &own, 0);
}

/* 0: none is due. */
static gsize make_reset(SfOutside *outside, guint8 *answer, const guint8 *frame, const SfFrameIpv4 *packet)
{
    const guint8 *tcp = packet->payload;
    guint8 *reset = answer + SF_FRAME_HEADER + SF_FRAME_IPV4_HEADER;
    guint32 next;
    gsize length, data;

    if (packet->payload_length < TCP_HEADER || (tcp[13] & TCP_RST)) {
        return 0;
    }
    data = packet->payload_length - MIN(packet->payload_length, (gsize)(tcp[12] >> 4) * 4);
    next = sf_frame_get32(tcp + 4) + (guint32)data + ((tcp[13] & TCP_SYN) ? 1 : 0) + ((tcp[13] & TCP_FIN) ? 1 : 0);
    memset(reset, 0, TCP_HEADER);
    sf_frame_put16(reset, sf_frame_get16(tcp + 2));
    sf_frame_put16(reset + 2, sf_frame_get16(tcp));
    reset[12] = TCP_HEADER / 4 << 4;
    if (tcp[13] & TCP_ACK) {
        memcpy(reset + 4, tcp + 8, 4);
        reset[13] = TCP_RST;
    } else {
        sf_frame_put32(reset + 8, next);
        reset[13] = TCP_RST | TCP_ACK;
    }
    length = finish_answer(outside, answer, frame, packet, SF_FRAME_TCP, packet->target, TCP_HEADER);
    sf_frame_put16(reset + 16, sf_frame_checksum(reset - 8, 8 + TCP_HEADER, SF_FRAME_TCP + TCP_HEADER));
    return length;
}

static gsize make_prohibited(SfOutside *outside, guint8 *answer, const guint8 *frame, const SfFrameIpv4 *packet)
{
    guint8 *icmp = answer + SF_FRAME_HEADER + SF_FRAME_IPV4_HEADER;
    gsize quote = packet->header_length + MIN(packet->payload_length, ICMP_QUOTE);

    if (packet->protocol == SF_FRAME_ICMP && packet->payload_length > 0 && packet->payload[0] != ICMP_ECHO) {
        return 0; /* no error about an error */
    }
    memset(icmp, 0, ICMP_HEADER);
    icmp[0] = ICMP_UNREACHABLE;
    icmp[1] = ICMP_PROHIBITED;
    memcpy(icmp + ICMP_HEADER, packet->header, quote);
    sf_frame_put16(icmp + 2, sf_frame_checksum(icmp, ICMP_HEADER + quote, 0));
    return finish_answer(outside, answer, frame, packet, SF_FRAME_ICMP, outside->gateway, ICMP_HEADER + quote);
}

static void refuse(SfOutside *outside, const guint8 *frame, const SfFrameIpv4 *packet, gint64 now)
{
    guint8 answer[ANSWER_MAX];
    gsize length;

    if (packet->target >> 28 >= 0xe || !sf_limit_take(&outside->refusals, 1, now)) { /* nobody answers for groups */
        return;
    }
    length = packet->protocol == SF_FRAME_TCP && !packet->is_fragment ? make_reset(outside, answer, frame, packet)
                                                                      : make_prohibited(outside, answer, frame, packet);
    if (length > 0) {
        outside->options.deliver(outside->options.owner, answer, length);
    }
}

/* ---- from members ---- */

static void put_arp_reply(guint8 *reply, const guint8 *request, const guint8 *mac, guint32 address)
{
    memcpy(reply, request, SF_FRAME_ARP_BYTES);
    memcpy(reply, request + SF_FRAME_MAC, SF_FRAME_MAC);
    memcpy(reply + SF_FRAME_MAC, mac, SF_FRAME_MAC);
    sf_frame_put16(reply + 20, SF_FRAME_ARP_REPLY);
    memcpy(reply + 22, mac, SF_FRAME_MAC);
    sf_frame_put32(reply + 28, address);
    memcpy(reply + 32, request + 22, SF_FRAME_MAC + 4);
}

static void arp_input(SfOutside *outside, const guint8 *frame)
{
    guint8 reply[SF_FRAME_ARP_BYTES];

    if (sf_frame_get16(frame + 20) != SF_FRAME_ARP_REPLY && sf_frame_get32(frame + 38) == outside->gateway) {
        put_arp_reply(reply, frame, outside->mac, outside->gateway);
        outside->options.deliver(outside->options.owner, reply, sizeof(reply));
    }
}

static void ipv4_input(SfOutside *outside, const guint8 *frame, gsize length, gint64 now)
{
    SfFrameIpv4 packet;

    if (!sf_frame_get_ipv4(frame, length, &packet)) {
        return;
    }
    if (packet.target == outside->gateway) {
        if (packet.protocol == SF_FRAME_ICMP && !packet.is_fragment && packet.payload_length >= ICMP_HEADER &&
            packet.payload[0] == ICMP_ECHO && sf_limit_take(&outside->pings, 1, now)) {
            slirp_input(outside->slirp, frame, (int)length);
        }
    } else if (is_allowed(outside, &packet, packet.target, 2, now)) {
        slirp_input(outside->slirp, frame, (int)length);
    } else {
        refuse(outside, frame, &packet, now);
    }
}

void sf_outside_input(SfOutside *outside, const guint8 *frame, gsize length, gint64 now)
{
    guint16 type = sf_frame_type(frame);

    if (type == SF_FRAME_ARP) {
        arp_input(outside, frame);
    } else if (type == SF_FRAME_IPV4 && !sf_frame_is_for_group(frame)) {
        ipv4_input(outside, frame, length, now);
    }
}

/* ---- from slirp ---- */

/* slirp looks for a member's MAC. */
static void answer_slirp(SfOutside *outside, const guint8 *request)
{
    guint32 address = sf_frame_get32(request + 38);
    const guint8 *mac = outside->options.mac_of(outside->options.owner, address);
    guint8 reply[SF_FRAME_ARP_BYTES];

    if (mac && sf_frame_get16(request + 20) != SF_FRAME_ARP_REPLY) {
        put_arp_reply(reply, request, mac, address);
        slirp_input(outside->slirp, reply, sizeof(reply));
    }
}

static void bring_back(SfOutside *outside, const guint8 *frame, gsize length)
{
    g_autofree guint8 *copy = NULL;
    const guint8 *mac;
    SfFrameIpv4 packet;

    if (!sf_frame_get_ipv4(frame, length, &packet) ||
        (packet.source != outside->gateway && packet.protocol != SF_FRAME_ICMP &&
         !is_allowed(outside, &packet, packet.source, 0, g_get_monotonic_time()))) {
        return;
    }
    mac = outside->options.mac_of(outside->options.owner, packet.target);
    if (mac) {
        copy = g_memdup2(frame, length);
        memcpy(copy, mac, SF_FRAME_MAC);
        memcpy(copy + SF_FRAME_MAC, outside->mac, SF_FRAME_MAC);
        outside->options.deliver(outside->options.owner, copy, length);
    }
}

static ssize_t on_send_packet(const void *bytes, size_t length, void *opaque)
{
    SfOutside *outside = opaque;
    const guint8 *frame = bytes;

    if (length >= SF_FRAME_ARP_BYTES && sf_frame_type(frame) == SF_FRAME_ARP) {
        answer_slirp(outside, frame);
    } else if (length > SF_FRAME_HEADER && sf_frame_type(frame) == SF_FRAME_IPV4) {
        bring_back(outside, frame, length);
    }
    return (ssize_t)length;
}

static void on_guest_error(const char *message, void *opaque)
{
    g_debug("slirp: %s", message);
}

static int64_t on_clock(void *opaque)
{
    return g_get_monotonic_time() * 1000;
}

static void on_poll_fd(int fd, void *opaque)
{
}

static void on_notify(void *opaque)
{
}

/* Timers are for IPv6 alone, which is off. */
static const SlirpCb callbacks = {
    .send_packet = on_send_packet,
    .guest_error = on_guest_error,
    .clock_get_ns = on_clock,
    .register_poll_fd = on_poll_fd,
    .unregister_poll_fd = on_poll_fd,
    .notify = on_notify,
};

/* ---- poll ---- */

static const struct {
    int slirp, poll;
} conditions[] = {
    { SLIRP_POLL_IN, POLLIN },   { SLIRP_POLL_OUT, POLLOUT }, { SLIRP_POLL_PRI, POLLPRI },
    { SLIRP_POLL_ERR, POLLERR }, { SLIRP_POLL_HUP, POLLHUP },
};

static int on_add_poll(int fd, int events, void *opaque)
{
    SfOutside *outside = opaque;
    struct pollfd entry = { .fd = fd };

    for (guint i = 0; i < G_N_ELEMENTS(conditions); i++) {
        entry.events |= (short)(events & conditions[i].slirp ? conditions[i].poll : 0);
    }
    g_array_append_val(outside->pollfds, entry);
    return (int)outside->pollfds->len - 1;
}

static int on_get_events(int index, void *opaque)
{
    SfOutside *outside = opaque;
    short seen = g_array_index(outside->pollfds, struct pollfd, index).revents;
    int events = 0;

    for (guint i = 0; i < G_N_ELEMENTS(conditions); i++) {
        events |= seen & conditions[i].poll ? conditions[i].slirp : 0;
    }
    return events;
}

void sf_outside_prepare(SfOutside *outside, GArray *pollfds, int *timeout)
{
    guint32 wait = *timeout < 0 ? G_MAXUINT32 : (guint32)*timeout;

    outside->pollfds = pollfds;
    slirp_pollfds_fill(outside->slirp, &wait, on_add_poll, outside);
    *timeout = wait > G_MAXINT32 ? -1 : (int)wait;
}

void sf_outside_dispatch(SfOutside *outside, GArray *pollfds, gboolean failed)
{
    outside->pollfds = pollfds;
    slirp_pollfds_poll(outside->slirp, failed, on_get_events, outside);
}

/* ---- life ---- */

SfOutside *sf_outside_new(const SfOutsideOptions *options, GError **error)
{
    g_autoptr(SfOutside) outside = g_new0(SfOutside, 1);
    gint64 now = g_get_monotonic_time();
    SlirpConfig config = {
        .version = SLIRP_VERSION,
        .in_enabled = true,
        .if_mtu = SF_NET_MTU,
        .if_mru = SF_NET_MTU,
        .disable_host_loopback = true,
        .disable_dns = true,
        .disable_dhcp = true,
    };

    outside->mask = G_MAXUINT32 << (32 - options->prefix);
    outside->gateway = options->gateway;
    outside->subnet = options->gateway & outside->mask;
    outside->rules = options->rules;
    outside->options = *options;
    memcpy(outside->mac, options->mac, SF_FRAME_MAC);
    sf_own_addresses_init(&outside->own);
    outside->refusals = sf_limit_new(REFUSALS, REFUSALS, now);
    outside->pings = sf_limit_new(PINGS, PINGS, now);
    config.vnetwork.s_addr = htonl(outside->subnet);
    config.vnetmask.s_addr = htonl(outside->mask);
    config.vhost.s_addr = htonl(outside->gateway);
    config.vnameserver.s_addr = htonl(outside->gateway); /* not served, but must be none of a member */
    outside->slirp = slirp_new(&config, &callbacks, outside);
    if (!outside->slirp) {
        g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_FAILED, "libslirp does not take its configuration");
        return NULL;
    }
    return g_steal_pointer(&outside);
}

void sf_outside_free(SfOutside *outside)
{
    if (outside) {
        if (outside->slirp) {
            slirp_cleanup(outside->slirp);
        }
        sf_own_addresses_clear(&outside->own);
        g_free(outside);
    }
}
