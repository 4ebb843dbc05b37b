/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Any frame of a guest as a DHCP request: an answer goes to the member, fits its room, and names no address but its
 * own. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sfvmm/net/dhcp.h"
#include "sfvmm/net/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t mac[SF_FRAME_MAC] = { 2, 0x5f, 10, 77, 0, 2 },
                         gateway[SF_FRAME_MAC] = { 2, 0x5f, 10, 77, 0, 254 };
    static const SfDhcpSubnet subnet = { 0x0a4d00fe, 0x0a4d00fe, 24, 1450, gateway };
    uint8_t answer[SF_DHCP_ANSWER_MAX];
    size_t length = sf_dhcp_answer(&subnet, mac, 0x0a4d0002, data, size, answer);
    SfFrameIpv4 packet;
    uint32_t yours;

    if (length == 0) {
        return 0;
    }
    if (length > sizeof(answer) || memcmp(answer, mac, sizeof(mac)) != 0 || !sf_dhcp_is_request(data, size) ||
        !sf_frame_get_ipv4(answer, length, &packet) || packet.payload + packet.payload_length != answer + length) {
        abort();
    }
    yours = sf_frame_get32(packet.payload + 8 + 16);
    if (yours != 0 && yours != 0x0a4d0002) {
        abort();
    }
    return 0;
}
