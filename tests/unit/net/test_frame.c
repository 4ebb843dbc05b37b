/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a member may send, by frames that are built byte by byte. tests/unit/net/test_network.c sends the plain cases.
 */
#include "sfvmm/net/frame.h"

#include <string.h>

#define ADDRESS  0x0a4d0002u
#define HOP      0u
#define UDP      17u
#define FRAGMENT 44u
#define ICMP6    58u
#define OPTIONS  60u

static const guint8 mac[] = { 2, 0x5f, 10, 77, 0, 2 };
static const guint8 own6[] = { 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0x5f, 0x0a, 0xff, 0xfe, 0x4d, 0, 2 };

typedef struct {
    guint8 bytes[256];
    gsize length;
} Frame;

static void put(Frame *frame, const void *bytes, gsize length)
{
    memcpy(frame->bytes + frame->length, bytes, length);
    frame->length += length;
}

static void begin(Frame *frame, guint16 type)
{
    const guint8 to[] = { 2, 0x5f, 10, 77, 0, 1 };

    memset(frame, 0, sizeof(*frame));
    put(frame, to, sizeof(to));
    put(frame, mac, sizeof(mac));
    sf_frame_put16(frame->bytes + frame->length, type);
    frame->length += 2;
}

static void begin6(Frame *frame, const guint8 *source, guint8 next)
{
    guint8 header[40] = { 0x60 };

    begin(frame, SF_FRAME_IPV6);
    header[6] = next;
    memcpy(header + 8, source, 16);
    put(frame, header, sizeof(header));
}

/* An extension header of 8 bytes; bytes 2 and 3 are a fragment's offset. */
static void extend(Frame *frame, guint8 next, guint16 offset)
{
    guint8 header[8] = { next };

    sf_frame_put16(header + 2, offset);
    put(frame, header, sizeof(header));
}

static gboolean passes(const Frame *frame)
{
    gboolean whole = sf_frame_may_pass(frame->bytes, frame->length, mac, ADDRESS);

    for (gsize i = 0; i < frame->length; i++) { /* cut anywhere: nothing behind it is read (ASan sees to that) */
        g_autofree guint8 *copy = g_memdup2(frame->bytes, MAX(i, 1));
        sf_frame_may_pass(copy, i, mac, ADDRESS);
    }
    return whole;
}

static gboolean icmp6_passes(const guint8 *source, guint8 type, guint extensions)
{
    Frame frame;
    guint8 message[8] = { type };

    begin6(&frame, source, extensions ? HOP : ICMP6);
    for (guint i = 0; i < extensions; i++) {
        extend(&frame, i + 1 < extensions ? OPTIONS : ICMP6, 0);
    }
    put(&frame, message, sizeof(message));
    return passes(&frame);
}

static void test_icmp6(void)
{
    static const guint8 none[16] = { 0 };
    static const guint8 others[] = { 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0x5f, 0x0a, 0xff, 0xfe, 0x4d, 0, 1 };

    g_assert_true(icmp6_passes(own6, 128, 0));
    g_assert_true(icmp6_passes(own6, 128, 2));
    g_assert_false(icmp6_passes(others, 128, 0));
    g_assert_false(icmp6_passes(own6, 134, 0));
    g_assert_false(icmp6_passes(own6, 134, 1)); /* a router behind options */
    g_assert_false(icmp6_passes(own6, 137, 3));
    g_assert_false(icmp6_passes(own6, 128, 20)); /* nobody needs so many */
    g_assert_true(icmp6_passes(none, 135, 0));
    g_assert_true(icmp6_passes(none, 143, 1));
    g_assert_false(icmp6_passes(none, 136, 0));
    g_assert_false(icmp6_passes(none, 128, 0));
}

/* What a fragment header hides is not guessed. */
static void test_fragments6(void)
{
    guint8 advertisement[8] = { 134 }, datagram[16] = { 0x02, 0x23 }; /* from port 547 */
    Frame frame;

    begin6(&frame, own6, FRAGMENT);
    extend(&frame, ICMP6, 1);
    put(&frame, advertisement, sizeof(advertisement));
    g_assert_false(passes(&frame));
    begin6(&frame, own6, FRAGMENT);
    extend(&frame, OPTIONS, 1);
    extend(&frame, ICMP6, 0);
    g_assert_false(passes(&frame));
    begin6(&frame, own6, FRAGMENT);
    extend(&frame, UDP, 1);
    put(&frame, datagram, sizeof(datagram));
    g_assert_false(passes(&frame));
    begin6(&frame, own6, FRAGMENT);
    extend(&frame, UDP, 8 << 3); /* the middle of a datagram whose first part was looked at */
    put(&frame, datagram, sizeof(datagram));
    g_assert_true(passes(&frame));
}

static void begin4(Frame *frame, guint8 length_nibble, guint16 total, guint32 source)
{
    guint8 header[20] = { 0 };

    begin(frame, SF_FRAME_IPV4);
    header[0] = (guint8)(0x40 | length_nibble);
    sf_frame_put16(header + 2, total);
    header[9] = UDP;
    sf_frame_put32(header + 12, source);
    put(frame, header, sizeof(header));
}

static void test_ipv4(void)
{
    guint8 dhcp[8] = { 0, 67, 0, 68 }, other[8] = { 0, 99, 0, 68 };
    Frame frame;

    begin4(&frame, 5, 28, ADDRESS);
    put(&frame, other, sizeof(other));
    g_assert_true(passes(&frame));
    begin4(&frame, 5, 28, ADDRESS);
    put(&frame, dhcp, sizeof(dhcp));
    g_assert_false(passes(&frame));
    begin4(&frame, 6, 32, ADDRESS); /* behind an option */
    put(&frame, "\0\0\0\0", 4);
    put(&frame, dhcp, sizeof(dhcp));
    g_assert_false(passes(&frame));
    begin4(&frame, 5, 28, ADDRESS + 1);
    put(&frame, other, sizeof(other));
    g_assert_false(passes(&frame));
    begin4(&frame, 5, 200, ADDRESS); /* longer than the frame */
    put(&frame, other, sizeof(other));
    g_assert_false(passes(&frame));
    begin4(&frame, 4, 28, ADDRESS);
    put(&frame, other, sizeof(other));
    g_assert_false(passes(&frame));
    begin4(&frame, 15, 28, ADDRESS);
    put(&frame, other, sizeof(other));
    g_assert_false(passes(&frame));
}

static void test_arp(void)
{
    guint8 arp[28] = { 0, 1, 8, 0, 6, 4, 0, 1 };
    Frame frame;

    memcpy(arp + 8, mac, sizeof(mac));
    sf_frame_put32(arp + 14, ADDRESS);
    begin(&frame, SF_FRAME_ARP);
    put(&frame, arp, sizeof(arp));
    g_assert_true(passes(&frame));
    frame.bytes[SF_FRAME_HEADER + 7] = 8; /* InARP */
    g_assert_false(passes(&frame));
    frame.bytes[SF_FRAME_HEADER + 7] = 2;
    frame.bytes[SF_FRAME_HEADER + 17] ^= 1;
    g_assert_false(passes(&frame));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/net/frame/arp", test_arp);
    g_test_add_func("/net/frame/ipv4", test_ipv4);
    g_test_add_func("/net/frame/icmp6", test_icmp6);
    g_test_add_func("/net/frame/fragments6", test_fragments6);
    return g_test_run();
}
