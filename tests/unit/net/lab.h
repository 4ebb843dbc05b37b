/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A laboratory for the network tests: the process is moved to a namespace of its own (the "host"), which has a cable to
 * another one (the "outside"), and members of clusters are played by writing and reading frames at their ports.
 *
 *     outside 192.0.2.9 --- host 192.0.2.1 --- clusters
 */
#ifndef SF_TEST_NET_LAB_H
#define SF_TEST_NET_LAB_H

#include <gio/gio.h>
#include "sfvmm/net/netns.h"
#include "sfvmm/net/network.h"

#define LAB_HOST    0xc0000201u /* 192.0.2.1 */
#define LAB_OUTSIDE 0xc0000209u /* 192.0.2.9 */
#define LAB_LINKS   0xc6120000u /* 198.18.0.0/16 */

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_ARP  0x0806
#define ETHERTYPE_IPV6 0x86dd

/* FALSE: not possible here; the reason is printed as a TAP skip. */
gboolean lab_open(void);
int lab_outside_socket(int type, guint16 port);     /* bound to 192.0.2.9, in the outside; listening if SOCK_STREAM */
void lab_visit(SfNetnsFunc *inside, gpointer data); /* in a thread that is in the outside, which plays another host */
guint lab_count(const char *pattern);               /* devices and filter tables of the host whose names have it */

/* A member by its port: a tap, or a stream socket. */
typedef struct {
    int port;
    gboolean is_socket;
    char *device;
    guint8 mac[6];
    guint32 address;
} LabMember;

void lab_join(LabMember *member, SfNetwork *network, guint32 address, gboolean admit);
void lab_leave(LabMember *member, SfNetwork *network);

typedef struct {
    guint8 bytes[2048];
    gsize length;
} LabFrame;

/* Frames: Ethernet and what is in it; checksums are right. */
void lab_ethernet(LabFrame *frame, const guint8 *to, const guint8 *from, guint16 type);
void lab_arp(LabFrame *frame, const LabMember *from, const guint8 *mac, guint32 address, guint32 wanted);
void lab_udp(LabFrame *frame, const guint8 *to, const guint8 *from, guint32 source, guint32 target, guint16 source_port,
             guint16 port, const char *text);
void lab_tcp_syn(LabFrame *frame, const guint8 *to, const guint8 *from, guint32 source, guint32 target, guint16 port);
void lab_ipv6(LabFrame *frame, const guint8 *from, const guint8 *source, guint8 next, guint8 icmp_type);

void lab_send(const LabMember *member, const LabFrame *frame);

/* The next frame at the member's port that has these bytes anywhere; FALSE: none within `ms`. */
gboolean lab_receive(const LabMember *member, const void *bytes, gsize length, int ms, LabFrame *frame);
void lab_drain(const LabMember *member);

#endif
