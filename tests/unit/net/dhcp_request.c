/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "dhcp_request.h"

#include <string.h>
#include "sfvmm/net/frame.h"

#define ROOM 400u

static guint8 *put_address(guint8 *at, guint8 option, guint32 address)
{
    if (address == 0) {
        return at;
    }
    at[0] = option;
    at[1] = 4;
    sf_frame_put32(at + 2, address);
    return at + 6;
}

gsize dhcp_request(guint8 *frame, const guint8 *mac, guint32 source, guint8 type, guint32 requested, guint32 server)
{
    guint8 *ip = frame + SF_FRAME_HEADER, *udp = ip + 20, *bootp = udp + 8, *at = frame + DHCP_OPTIONS_AT;

    memset(frame, 0, ROOM);
    memset(frame, 0xff, SF_FRAME_MAC);
    memcpy(frame + SF_FRAME_MAC, mac, SF_FRAME_MAC);
    sf_frame_put16(frame + 12, SF_FRAME_IPV4);
    bootp[0] = 1;
    sf_frame_put16(bootp + 1, 0x0106);
    sf_frame_put32(bootp + 4, 0x12345678);
    memcpy(bootp + 28, mac, SF_FRAME_MAC);
    sf_frame_put32(bootp + 236, 0x63825363);
    at[0] = 53;
    at[1] = 1;
    at[2] = type;
    at = put_address(at + 3, 50, requested);
    *at++ = 0; /* padding */
    at = put_address(at, 54, server);
    *at++ = 255;
    ip[0] = 0x45;
    sf_frame_put16(ip + 2, (guint16)(at - ip));
    ip[8] = 64;
    ip[9] = SF_FRAME_UDP;
    sf_frame_put32(ip + 12, source);
    sf_frame_put32(ip + 16, 0xffffffff);
    sf_frame_put16(udp, 68);
    sf_frame_put16(udp + 2, 67);
    sf_frame_put16(udp + 4, (guint16)(at - udp));
    return (gsize)(at - frame);
}

guint32 dhcp_option(const guint8 *frame, gsize length, guint8 option)
{
    for (gsize at = DHCP_OPTIONS_AT; at + 2 < length && frame[at] != 255; at += 2u + frame[at + 1]) {
        if (frame[at] == option) {
            const guint8 *value = frame + at + 2;
            return frame[at + 1] == 4 ? sf_frame_get32(value) : frame[at + 1] == 2 ? sf_frame_get16(value) : value[0];
        }
    }
    return 0;
}
