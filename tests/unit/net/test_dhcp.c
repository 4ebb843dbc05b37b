/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a member that asks by DHCP is told. tests/unit/net/test_network.c asks through ports, test_network_managers.py
 * with clients that people use.
 */
#include "sfvmm/net/dhcp.h"

#include <string.h>
#include "dhcp_request.h"
#include "sfvmm/net/frame.h"

#define OWN    0x0a4d0002u
#define PARENT 0x0a4d0001u
#define SERVER 0x0a4dfffeu

static const guint8 mac[] = { 2, 0x5f, 10, 77, 0, 2 };
static const guint8 gateway[] = { 2, 0x5f, 10, 77, 255, 254 };
static const SfDhcpSubnet subnet = { SERVER, SERVER, 16, 1450, gateway };

static guint8 frame[SF_DHCP_ANSWER_MAX], answer[SF_DHCP_ANSWER_MAX];
static gsize answer_length;

static gsize ask(gsize length)
{
    /* A copy of that size: what is read behind it is seen. */
    g_autofree guint8 *copy = g_memdup2(frame, length);

    answer_length = sf_dhcp_answer(&subnet, mac, OWN, copy, length, answer);
    return answer_length;
}

static guint8 ask_for(guint32 source, guint8 type, guint32 requested, guint32 server)
{
    return ask(dhcp_request(frame, mac, source, type, requested, server)) > 0
               ? (guint8)dhcp_option(answer, answer_length, 53)
               : 0;
}

static void test_answers(void)
{
    SfFrameIpv4 packet;

    g_assert_cmpint(ask_for(0, DHCP_DISCOVER, 0, 0), ==, DHCP_OFFER);
    g_assert_cmpmem(answer, SF_FRAME_MAC, mac, sizeof(mac));
    g_assert_cmpmem(answer + SF_FRAME_MAC, SF_FRAME_MAC, gateway, sizeof(gateway));
    g_assert_true(sf_frame_get_ipv4(answer, answer_length, &packet));
    g_assert_cmphex(packet.source, ==, SERVER);
    g_assert_cmphex(sf_frame_get32(packet.payload + 8 + 4), ==, 0x12345678);
    g_assert_cmphex(sf_frame_get32(packet.payload + 8 + 16), ==, OWN);
    g_assert_cmphex(dhcp_option(answer, answer_length, 1), ==, 0xffff0000);
    g_assert_cmphex(dhcp_option(answer, answer_length, 3), ==, SERVER);
    g_assert_cmphex(dhcp_option(answer, answer_length, 28), ==, 0x0a4dffff);
    g_assert_cmpint(dhcp_option(answer, answer_length, 26), ==, 1450);
    g_assert_cmphex(dhcp_option(answer, answer_length, 51), ==, 0xffffffff);
    g_assert_cmphex(dhcp_option(answer, answer_length, 54), ==, SERVER);

    g_assert_cmpint(ask_for(0, DHCP_REQUEST, OWN, SERVER), ==, DHCP_ACK);
    g_assert_cmpint(ask_for(OWN, DHCP_REQUEST, OWN, 0), ==, DHCP_ACK);
    g_assert_cmpint(ask_for(0, DHCP_REQUEST, PARENT, 0), ==, DHCP_NAK);
    g_assert_cmphex(sf_frame_get32(answer + 14 + 20 + 8 + 16), ==, 0);
    g_assert_cmpint(ask_for(0, DHCP_REQUEST, OWN, SERVER - 1), ==, 0);
    g_assert_cmpint(ask_for(OWN, DHCP_RELEASE, 0, SERVER), ==, 0);
}

static void test_refused(void)
{
    const guint8 other[] = { 2, 0x5f, 10, 77, 0, 3 };
    gsize length = dhcp_request(frame, mac, 0, DHCP_DISCOVER, 0, 0);

    g_assert_true(sf_dhcp_is_request(frame, length));
    for (gsize cut = 0; cut < length - 1; cut++) {
        g_assert_cmpuint(ask(cut), ==, 0);
    }
    g_assert_cmpint(ask_for(PARENT, DHCP_REQUEST, OWN, 0), ==, 0); /* from an address that is not its own */

    dhcp_request(frame, mac, 0, DHCP_DISCOVER, 0, 0);
    memcpy(frame + SF_FRAME_MAC, other, sizeof(other));
    g_assert_cmpuint(ask(length), ==, 0);
    dhcp_request(frame, mac, 0, DHCP_DISCOVER, 0, 0);
    frame[14 + 20 + 8 + 28 + 5] = 3; /* the MAC in it */
    g_assert_cmpuint(ask(length), ==, 0);
    dhcp_request(frame, mac, 0, DHCP_DISCOVER, 0, 0);
    frame[DHCP_OPTIONS_AT + 1] = 200; /* an option longer than the packet */
    g_assert_cmpuint(ask(length), ==, 0);
    dhcp_request(frame, mac, 0, DHCP_DISCOVER, 0, 0);
    frame[14 + 20 + 3] = 68; /* not to a server */
    g_assert_false(sf_dhcp_is_request(frame, length));
    g_assert_cmpuint(ask(length), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/net/dhcp/answers", test_answers);
    g_test_add_func("/net/dhcp/refused", test_refused);
    return g_test_run();
}
