/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * udp_group: the sockets of a multicast group, made in sfvmmd and given to sf-pager.
 *
 *     origin      one socket, bound to its own address: sends pages to the group, gets requests
 *     receiver    one socket, bound to the group, connected to the origin: gets pages, sends requests
 *
 *        origin 10.0.0.1:40001  ---- pages ---->  239.195.7.9:7411  ====>  every host that has joined
 *               10.0.0.1:40001  <--- requests --  10.0.0.2:7411
 *
 * sfvmmd makes them, because it may do what sf-pager may not (a large receive buffer needs CAP_NET_ADMIN), and because
 * they outlive a killed sf-pager that way: the port stays, and so does the membership.
 *
 * Any thread; no state.
 */
#ifndef SF_UDP_GROUP_H
#define SF_UDP_GROUP_H

#include <gio/gio.h>
#include <netinet/in.h>

#define SF_UDP_GROUP_PORT        7411u /* of all groups, unless configured */
#define SF_UDP_GROUP_PAYLOAD_MIN 512u  /* bytes of a datagram: a link with less is not used */
#define SF_UDP_GROUP_PAYLOAD_MAX 8972u /* a jumbo frame's; more would be lost whole too often, loopback has 64 KiB */

/* An address with its port, of either family. */
typedef union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} SfUdpAddress;

/* text: a numeric address without port, IPv6 with or without "%interface"; an IPv4-mapped one is taken as
 * IPv4. FALSE: it is none. */
gboolean sf_udp_address_parse(const char *text, guint16 port, SfUdpAddress *address);
/* As text, without port and interface. */
char *sf_udp_address_text(const SfUdpAddress *address);
guint16 sf_udp_address_port(const SfUdpAddress *address);

/* A range of groups, "239.195.0.0/16" or "ff15::5f00:0:0/96". */
typedef struct {
    SfUdpAddress first; /* port 0 */
    guint bits;         /* of the prefix */
} SfUdpRange;
/* G_IO_ERROR_INVALID_ARGUMENT says what is wrong: no such notation, no multicast addresses. */
gboolean sf_udp_range_parse(const char *text, SfUdpRange *range, GError **error);
/* One group of the range, the same for the same number; different numbers give different groups as far as they go. */
void sf_udp_range_choose(const SfUdpRange *range, guint64 number, guint16 port, SfUdpAddress *group);

typedef struct {
    int fd;           /* nonblocking, the caller's */
    guint16 port;     /* that it is bound to */
    guint payload;    /* bytes that one datagram takes on this link */
    guint buffer;     /* bytes of the receive buffer, as the kernel counts */
    gboolean offload; /* several datagrams in one call (UDP_SEGMENT at the origin, UDP_GRO at a receiver) */
} SfUdpSocket;

/*
 * The origin's: local is its address on the link to use (port 0: any), the group's is that of what will be sent. hops:
 * routers that pages may pass, 1: none. The interface is the one that has the address.
 */
gboolean sf_udp_group_open_origin(const SfUdpAddress *local, const SfUdpAddress *group, guint hops, SfUdpSocket *socket,
                                  GError **error);

/*
 * A receiver's: joins the group at the interface that has the address `local`, and hears nobody but the origin. Hosts
 * on one machine may share the group.
 */
gboolean sf_udp_group_open_receiver(const SfUdpAddress *local, const SfUdpAddress *group, const SfUdpAddress *origin,
                                    SfUdpSocket *socket, GError **error);

#endif
