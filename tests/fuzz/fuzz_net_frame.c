/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Any frame of a guest: what passes has its sender's MAC, and its IPv4 packet lies within it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/net/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t mac[SF_FRAME_MAC] = { 2, 0x5f, 10, 77, 0, 2 };
    SfFrameIpv4 packet;

    if (!sf_frame_may_pass(data, size, mac, 0x0a4d0002)) {
        return 0;
    }
    if (size < SF_FRAME_HEADER || memcmp(data + SF_FRAME_MAC, mac, sizeof(mac)) != 0 ||
        (sf_frame_type(data) == SF_FRAME_ARP && size < SF_FRAME_ARP_BYTES)) {
        abort();
    }
    if (sf_frame_type(data) == SF_FRAME_IPV4 &&
        (!sf_frame_get_ipv4(data, size, &packet) || packet.source != 0x0a4d0002 ||
         packet.payload + packet.payload_length > data + size)) {
        abort();
    }
    return 0;
}
