/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a member of a cluster may send, seen in one frame: the rules that rules.c has for the kernel, for sf-switch. A
 * frame is bytes of a guest: nothing in it is trusted. And the headers of frames that members are answered with. No
 * state, any thread.
 */
#ifndef SF_FRAME_H
#define SF_FRAME_H

#include <glib.h>

#define SF_FRAME_MAC         6u
#define SF_FRAME_HEADER      14u /* bytes of Ethernet's header */
#define SF_FRAME_IPV4        0x0800u
#define SF_FRAME_ARP         0x0806u
#define SF_FRAME_IPV6        0x86ddu
#define SF_FRAME_ARP_BYTES   42u /* a whole frame of ARP for IPv4 */
#define SF_FRAME_ARP_REQUEST 1u
#define SF_FRAME_ARP_REPLY   2u
#define SF_FRAME_ARP_FIXED   "\x00\x01\x08\x00\x06\x04" /* begins it: Ethernet, IPv4, lengths of their addresses */
#define SF_FRAME_ICMP        1u
#define SF_FRAME_TCP         6u
#define SF_FRAME_UDP         17u

#define SF_FRAME_IPV4_HEADER   20u /* bytes, without options */
#define SF_FRAME_UDP_HEADER    8u
#define SF_FRAME_DONT_FRAGMENT 0x4000u

/* TRUE: its sender has this MAC and address (IPv4, host byte order), and it is none that members may not send. */
gboolean sf_frame_may_pass(const guint8 *frame, gsize length, const guint8 *mac, guint32 address);

gboolean sf_frame_is_for_group(const guint8 *frame); /* of at least SF_FRAME_HEADER bytes, here and below */
guint16 sf_frame_type(const guint8 *frame);

guint16 sf_frame_get16(const guint8 *bytes);
guint32 sf_frame_get32(const guint8 *bytes);
void sf_frame_put16(guint8 *bytes, guint16 value);
void sf_frame_put32(guint8 *bytes, guint32 value);

/* An IPv4 packet in a frame: where its parts are. */
typedef struct {
    const guint8 *header;
    gsize header_length;
    const guint8 *payload;
    gsize payload_length;
    guint8 protocol;
    guint32 source, target;
    gboolean is_fragment;
} SfFrameIpv4;

/* FALSE: its lengths are wrong. `frame` is of SF_FRAME_IPV4. */
gboolean sf_frame_get_ipv4(const guint8 *frame, gsize length, SfFrameIpv4 *packet);

/* Fills Ethernet's header and IPv4's, without options, before a payload that is in place. Of `packet` count protocol,
 * source, target and payload_length. flags: 0 or SF_FRAME_DONT_FRAGMENT. Returns the frame's length. */
gsize sf_frame_put_ipv4(guint8 *frame, const guint8 *to, const guint8 *from, const SfFrameIpv4 *packet, guint16 flags);

/* The Internet's checksum (RFC 1071) of bytes; sum: of what belongs to it besides, as of a pseudo header. */
guint16 sf_frame_checksum(const guint8 *bytes, gsize length, guint32 sum);

#endif
