/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Buffers. A receiver has to take in what comes while its thread is not running: at 1 Gbit/s 8 MiB are 60 ms. Beyond
 * net.core.rmem_max that needs CAP_NET_ADMIN; what was got is told, not assumed. The origin's send buffer is small on
 * purpose: what a slow link has not sent yet makes the next send wait, instead of being thrown away by a queue
 * below.
 *
 * A receiver's socket is connected, though bound to a group: the kernel then drops what comes from anybody but the
 * origin's address and port, before a byte of it is looked at, without IGMPv3. What it sends goes to the origin, from
 * this host's own address (a group's can't be a source).
 *
 * Datagrams are never fragmented (IP_PMTUDISC_DO): a lost fragment would lose the whole.
 *
 * What this host sends reaches receivers on this very host as well (IP_MULTICAST_LOOP is on): several sfvmmds may run
 * there. It costs nothing where none has joined.
 */
#include "sfvmm/pager/udp_group.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <linux/udp.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECEIVE_BUFFER (8 << 20)
#define SEND_BUFFER    (128 << 10) /* less than any queue below that loses what does not fit */
#define V4_HEADERS     28u         /* IP and UDP */
#define V6_HEADERS     48u
#define NUMBER_BITS    32u /* of a group's address are chosen, at most */

/* ---- addresses ---- */

static gboolean is_v6(const SfUdpAddress *address)
{
    return address->any.sa_family == AF_INET6;
}

static socklen_t address_length(const SfUdpAddress *address)
{
    return is_v6(address) ? sizeof(address->v6) : sizeof(address->v4);
}

static void set_v4(SfUdpAddress *address, guint16 port)
{
    address->v4.sin_family = AF_INET;
    address->v4.sin_port = htons(port);
}

gboolean sf_udp_address_parse(const char *text, guint16 port, SfUdpAddress *address)
{
    g_auto(GStrv) parts = g_strsplit(text, "%", 2);
    struct in6_addr v6;

    memset(address, 0, sizeof(*address));
    if (inet_pton(AF_INET, text, &address->v4.sin_addr) == 1) {
        set_v4(address, port);
        return TRUE;
    }
    if (!parts[0] || inet_pton(AF_INET6, parts[0], &v6) != 1) {
        return FALSE;
    }
    if (IN6_IS_ADDR_V4MAPPED(&v6)) { /* of a socket that takes both: "::ffff:10.0.0.1" */
        memcpy(&address->v4.sin_addr, v6.s6_addr + sizeof(v6) - sizeof(struct in_addr), sizeof(struct in_addr));
        set_v4(address, port);
        return TRUE;
    }
    address->v6.sin6_family = AF_INET6;
    address->v6.sin6_addr = v6;
    address->v6.sin6_port = htons(port);
    address->v6.sin6_scope_id = parts[1] ? if_nametoindex(parts[1]) : 0;
    return !parts[1] || address->v6.sin6_scope_id;
}

char *sf_udp_address_text(const SfUdpAddress *address)
{
    char text[INET6_ADDRSTRLEN] = "";

    inet_ntop(address->any.sa_family,
              is_v6(address) ? (const void *)&address->v6.sin6_addr : (const void *)&address->v4.sin_addr, text,
              sizeof(text));
    return g_strdup(text);
}

guint16 sf_udp_address_port(const SfUdpAddress *address)
{
    return ntohs(is_v6(address) ? address->v6.sin6_port : address->v4.sin_port);
}

static void set_port(SfUdpAddress *address, guint16 port)
{
    if (is_v6(address)) {
        address->v6.sin6_port = htons(port);
    } else {
        address->v4.sin_port = htons(port);
    }
}

static guint8 *address_bytes(SfUdpAddress *address, guint *length)
{
    *length = is_v6(address) ? sizeof(address->v6.sin6_addr) : sizeof(address->v4.sin_addr);
    return is_v6(address) ? address->v6.sin6_addr.s6_addr : (guint8 *)&address->v4.sin_addr;
}

static gboolean is_group(const SfUdpAddress *address)
{
    return is_v6(address) ? IN6_IS_ADDR_MULTICAST(&address->v6.sin6_addr)
                          : IN_MULTICAST(ntohl(address->v4.sin_addr.s_addr));
}

/* ---- ranges ---- */

gboolean sf_udp_range_parse(const char *text, SfUdpRange *range, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(text, "/", 2);
    guint64 bits = 0;
    guint length;

    if (!parts[0] || !parts[1] || !sf_udp_address_parse(parts[0], 0, &range->first) || !is_group(&range->first)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "\"%s\" is no range of multicast addresses, like 239.195.0.0/16 or ff15::5f00:0:0/96", text);
        return FALSE;
    }
    address_bytes(&range->first, &length);
    if (!g_ascii_string_to_unsigned(parts[1], 10, 4, length * 8, &bits, NULL)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "\"%s\": a prefix of 4 to %u bits is needed", text,
                    length * 8);
        return FALSE;
    }
    range->bits = bits;
    return TRUE;
}

/* Each bit of the number goes where the prefix leaves room, the lowest last. */
void sf_udp_range_choose(const SfUdpRange *range, guint64 number, guint16 port, SfUdpAddress *group)
{
    guint length, room;
    guint8 *bytes;

    *group = range->first;
    bytes = address_bytes(group, &length);
    room = MIN(length * 8 - range->bits, NUMBER_BITS);
    number ^= number >> NUMBER_BITS;
    for (guint i = 0; i < room; i++) {
        guint at = length * 8 - 1 - i;
        guint8 bit = 1u << (7 - at % 8);
        bytes[at / 8] = (number >> i & 1) ? bytes[at / 8] | bit : bytes[at / 8] & ~bit;
    }
    set_port(group, port);
}

/* ---- the interface ---- */

static gboolean same_address(const SfUdpAddress *a, const struct sockaddr *b)
{
    if (!b || a->any.sa_family != b->sa_family) {
        return FALSE;
    }
    return is_v6(a) ? IN6_ARE_ADDR_EQUAL(&a->v6.sin6_addr, &((const struct sockaddr_in6 *)b)->sin6_addr)
                    : a->v4.sin_addr.s_addr == ((const struct sockaddr_in *)b)->sin_addr.s_addr;
}

/* Name of the interface that has the address; freed by the caller. NULL + error. */
static char *find_interface(const SfUdpAddress *local, GError **error)
{
    g_autofree char *text = sf_udp_address_text(local);
    struct ifaddrs *all = NULL;
    char *name = NULL;

    if (getifaddrs(&all) == 0) {
        for (const struct ifaddrs *one = all; one && !name; one = one->ifa_next) {
            name = same_address(local, one->ifa_addr) ? g_strdup(one->ifa_name) : NULL;
        }
        freeifaddrs(all);
    }
    if (!name) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "no interface of this host has the address %s", text);
    }
    return name;
}

static guint payload_of(int fd, const char *interface, gboolean v6)
{
    struct ifreq request = { 0 };
    guint headers = v6 ? V6_HEADERS : V4_HEADERS;

    g_strlcpy(request.ifr_name, interface, sizeof(request.ifr_name));
    if (ioctl(fd, SIOCGIFMTU, &request) < 0 || request.ifr_mtu < (int)headers) {
        return 0;
    }
    return MIN(request.ifr_mtu - headers, SF_UDP_GROUP_PAYLOAD_MAX);
}

/* ---- sockets ---- */

static gboolean set(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof(value)) == 0;
}

static guint get(int fd, int level, int name)
{
    int value = 0;
    socklen_t length = sizeof(value);

    return getsockopt(fd, level, name, &value, &length) == 0 && value > 0 ? value : 0;
}

static gboolean fail_errno(GError **error, const char *what, const SfUdpAddress *address)
{
    int saved = errno;
    g_autofree char *text = sf_udp_address_text(address);

    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved), "multicast: %s %s: %s", what, text, g_strerror(saved));
    return FALSE;
}

/* What both kinds have. *interface: its name, the caller's. */
static gboolean open_socket(const SfUdpAddress *local, const SfUdpAddress *group, SfUdpSocket *socket_,
                            char **interface, GError **error)
{
    gboolean v6 = is_v6(group);

    *socket_ = (SfUdpSocket){ .fd = -1 };
    if (local->any.sa_family != group->any.sa_family || !is_group(group)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "multicast: group and address of the link are not of one family");
        return FALSE;
    }
    *interface = find_interface(local, error);
    if (!*interface) {
        return FALSE;
    }
    socket_->fd = socket(group->any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (socket_->fd < 0) {
        return fail_errno(error, "no socket for", local);
    }
    socket_->payload = payload_of(socket_->fd, *interface, v6);
    if (socket_->payload < SF_UDP_GROUP_PAYLOAD_MIN) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    "multicast: interface %s takes datagrams of %u bytes only, at least %u are needed", *interface,
                    socket_->payload, SF_UDP_GROUP_PAYLOAD_MIN);
        return FALSE;
    }
    if (!set(socket_->fd, SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)) {
        set(socket_->fd, SOL_SOCKET, SO_RCVBUF, RECEIVE_BUFFER);
    }
    socket_->buffer = get(socket_->fd, SOL_SOCKET, SO_RCVBUF);
    set(socket_->fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER);
    set(socket_->fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
    return (v6 ? set(socket_->fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) &&
                     set(socket_->fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)
               : set(socket_->fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)) ||
           fail_errno(error, "a socket can't be set up for", local);
}

/* Where multicasts leave, and how far they go. */
static gboolean direct(int fd, const SfUdpAddress *local, const char *interface, guint hops)
{
    struct ip_mreqn request = { .imr_address = local->v4.sin_addr, .imr_ifindex = (int)if_nametoindex(interface) };

    return is_v6(local) ? set(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, request.imr_ifindex) &&
                              set(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, (int)hops)
                        : setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &request, sizeof(request)) == 0 &&
                              set(fd, IPPROTO_IP, IP_MULTICAST_TTL, (int)hops);
}

static guint16 bound_port(int fd)
{
    SfUdpAddress bound = { 0 };
    socklen_t length = sizeof(bound);

    return getsockname(fd, &bound.any, &length) == 0 ? sf_udp_address_port(&bound) : 0;
}

/* Closes what was made when ok is FALSE. */
static gboolean finish(SfUdpSocket *socket_, gboolean ok)
{
    if (ok) {
        socket_->port = bound_port(socket_->fd);
    } else if (socket_->fd >= 0) {
        close(socket_->fd);
        socket_->fd = -1;
    }
    return ok;
}

/* Of link-local scope: which link. */
static SfUdpAddress on_link(const SfUdpAddress *address, const char *interface)
{
    SfUdpAddress on = *address;

    if (is_v6(address) && interface &&
        (IN6_IS_ADDR_LINKLOCAL(&on.v6.sin6_addr) || IN6_IS_ADDR_MC_LINKLOCAL(&on.v6.sin6_addr))) {
        on.v6.sin6_scope_id = if_nametoindex(interface);
    }
    return on;
}

gboolean sf_udp_group_open_origin(const SfUdpAddress *local, const SfUdpAddress *group, guint hops,
                                  SfUdpSocket *socket_, GError **error)
{
    g_autofree char *interface = NULL;
    gboolean ok = open_socket(local, group, socket_, &interface, error);
    SfUdpAddress at = on_link(local, interface);

    ok = ok && (direct(socket_->fd, local, interface, hops) || fail_errno(error, "no way out at", local)) &&
         (bind(socket_->fd, &at.any, address_length(&at)) == 0 || fail_errno(error, "can't be bound to", local));
    if (ok) { /* 0: each datagram is a packet of its own unless a send says otherwise */
        socket_->offload = set(socket_->fd, IPPROTO_UDP, UDP_SEGMENT, 0);
    }
    return finish(socket_, ok);
}

static gboolean join(int fd, const SfUdpAddress *group, const char *interface)
{
    struct group_req request = { .gr_interface = if_nametoindex(interface) };

    memcpy(&request.gr_group, group, address_length(group));
    return setsockopt(fd, is_v6(group) ? IPPROTO_IPV6 : IPPROTO_IP, MCAST_JOIN_GROUP, &request, sizeof(request)) == 0;
}

gboolean sf_udp_group_open_receiver(const SfUdpAddress *local, const SfUdpAddress *group, const SfUdpAddress *origin,
                                    SfUdpSocket *socket_, GError **error)
{
    g_autofree char *interface = NULL;
    gboolean ok = open_socket(local, group, socket_, &interface, error);
    SfUdpAddress at = on_link(group, interface), from = on_link(origin, interface);

    ok = ok &&
         ((set(socket_->fd, SOL_SOCKET, SO_REUSEADDR, 1) && direct(socket_->fd, local, interface, 1) &&
           bind(socket_->fd, &at.any, address_length(&at)) == 0) ||
          fail_errno(error, "can't be bound to group", group)) &&
         (join(socket_->fd, group, interface) || fail_errno(error, "can't join group", group)) &&
         (connect(socket_->fd, &from.any, address_length(&from)) == 0 ||
          fail_errno(error, "no way to the origin at", origin));
    if (ok) {
        socket_->offload = set(socket_->fd, IPPROTO_UDP, UDP_GRO, 1);
    }
    return finish(socket_, ok);
}
