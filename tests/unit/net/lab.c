/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "lab.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "sfvmm/net/link.h"
#include "sfvmm/net/netns.h"
#include "sfvmm/net/nft.h"

#define HEAD_MAX       10
#define VNET_HEADER    10 /* of a frame at a tap, all zero: nothing is left to be done to it */
#define LENGTH_HEADER  4  /* of a frame in a stream: its length, big-endian */
#define PROTOCOL_TCP   6
#define PROTOCOL_UDP   17
#define PROTOCOL_ICMP6 58

static int outside_netns = -1;

static gboolean write_map(const char *path, const char *text)
{
    return g_file_set_contents_full(path, text, -1, G_FILE_SET_CONTENTS_NONE, 0600, NULL);
}

/* A thread may not enter a user namespace: root does without. */
static gboolean own_namespace(void)
{
    if (geteuid() == 0) {
        return unshare(CLONE_NEWNET) == 0;
    }
    g_autofree char *uids = g_strdup_printf("0 %u 1", geteuid());
    return unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 && write_map("/proc/self/uid_map", uids);
}

gboolean lab_open(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(SfLinks) host = NULL, outside = NULL;

    if (!own_namespace() || access("/dev/net/tun", R_OK | W_OK) < 0) {
        printf("1..0 # SKIP network namespaces and /dev/net/tun are needed: %s\n", g_strerror(errno));
        return FALSE;
    }
    outside_netns = sf_netns_new(&error);
    g_assert_no_error(error);
    host = sf_links_new(-1, &error);
    outside = sf_links_new(outside_netns, &error);
    g_assert_true(sf_links_add_veth(host, "wan", "lan", outside_netns, &error));
    g_assert_true(sf_links_add_address(host, "wan", LAB_HOST, 24, &error));
    g_assert_true(sf_links_set_up(host, "wan", &error));
    g_assert_true(sf_links_set_up(host, "lo", &error));
    g_assert_true(sf_links_add_address(outside, "lan", LAB_OUTSIDE, 24, &error));
    g_assert_true(sf_links_set_up(outside, "lan", &error));
    g_assert_true(sf_links_sysctl(host, "net/ipv4/ip_forward", "1", &error));
    g_assert_no_error(error);
    return TRUE;
}

typedef struct {
    int type, fd;
    guint16 port;
} Opening;

static gboolean open_outside(gpointer data, GError **error)
{
    Opening *opening = data;
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_port = htons(opening->port),
                                   .sin_addr.s_addr = htonl(LAB_OUTSIDE) };

    opening->fd = socket(AF_INET, opening->type | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(opening->fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    g_assert_true(opening->type != SOCK_STREAM || listen(opening->fd, 1) == 0);
    return TRUE;
}

int lab_outside_socket(int type, guint16 port)
{
    Opening opening = { type, -1, port };

    sf_netns_run(outside_netns, open_outside, &opening, NULL);
    return opening.fd;
}

void lab_visit(SfNetnsFunc *inside, gpointer data)
{
    g_autoptr(GError) error = NULL;

    g_assert_true(sf_netns_run(outside_netns, inside, data, &error));
    g_assert_no_error(error);
}

guint lab_count(const char *pattern)
{
    g_autoptr(SfNft) nft = sf_nft_new(-1, NULL);
    g_autofree char *tables = sf_nft_query(nft, "list tables\n", NULL);
    g_autofree char *devices = NULL;
    guint count = 0;

    /* "self" is the process, whose namespace has been changed; the file's length is not known before. */
    g_assert_true(g_file_get_contents("/proc/thread-self/net/dev", &devices, NULL, NULL));
    for (const char *at = tables; (at = strstr(at, pattern)); at++) {
        count++;
    }
    for (const char *at = devices; (at = strstr(at, pattern)); at++) {
        count++;
    }
    return count;
}

/* ---- members ---- */

void lab_join(LabMember *member, SfNetwork *network, guint32 address, gboolean admit)
{
    g_autoptr(GError) error = NULL;
    const guint8 mac[] = { 0x02, 0x5f, address >> 24, address >> 16 & 0xff, address >> 8 & 0xff, address & 0xff };

    struct stat st;

    member->port = sf_network_open_port(network, &member->device, &error);
    g_assert_no_error(error);
    g_assert_cmpint(fstat(member->port, &st), ==, 0);
    member->is_socket = S_ISSOCK(st.st_mode);
    memcpy(member->mac, mac, sizeof(mac));
    member->address = address;
    if (admit) {
        sf_network_admit(network, member->device, member->mac, address, &error);
        g_assert_no_error(error);
    }
}

void lab_leave(LabMember *member, SfNetwork *network)
{
    close(member->port);
    if (network) {
        sf_network_dismiss(network, member->device);
    }
    g_clear_pointer(&member->device, g_free);
}

/* ---- frames ---- */

static void put(LabFrame *frame, const void *bytes, gsize length)
{
    g_assert_cmpuint(frame->length + length, <=, sizeof(frame->bytes));
    memcpy(frame->bytes + frame->length, bytes, length);
    frame->length += length;
}

static void put16(LabFrame *frame, guint16 value)
{
    value = htons(value);
    put(frame, &value, sizeof(value));
}

static void put32(LabFrame *frame, guint32 value)
{
    value = htonl(value);
    put(frame, &value, sizeof(value));
}

void lab_ethernet(LabFrame *frame, const guint8 *to, const guint8 *from, guint16 type)
{
    frame->length = 0;
    put(frame, to, 6);
    put(frame, from, 6);
    put16(frame, type);
}

void lab_arp(LabFrame *frame, const LabMember *from, const guint8 *mac, guint32 address, guint32 wanted)
{
    static const guint8 all[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff }, nobody[6] = { 0 };

    lab_ethernet(frame, all, from->mac, ETHERTYPE_ARP);
    put(frame, "\x00\x01\x08\x00\x06\x04\x00\x01", 8);
    put(frame, mac, 6);
    put32(frame, address);
    put(frame, nobody, 6);
    put32(frame, wanted);
}

static guint32 sum_of(const guint8 *bytes, gsize length, guint32 sum)
{
    for (gsize i = 0; i < length; i++) {
        sum += i % 2 ? bytes[i] : bytes[i] << 8;
    }
    return sum;
}

static guint16 fold(guint32 sum)
{
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return ~sum;
}

static void put_checksum(guint8 *at, guint32 sum)
{
    guint16 value = htons(fold(sum));

    memcpy(at, &value, sizeof(value));
}

static guint8 *put_ipv4(LabFrame *frame, guint8 protocol, gsize payload, guint32 source, guint32 target)
{
    guint8 *header = frame->bytes + frame->length;

    put(frame, "\x45\x00", 2);
    put16(frame, 20 + payload);
    put(frame, "\x00\x01\x00\x00\x40", 5);
    put(frame, &protocol, 1);
    put16(frame, 0);
    put32(frame, source);
    put32(frame, target);
    put_checksum(header + 10, sum_of(header, 20, 0));
    return header + 20;
}

static guint32 pseudo_sum(const guint8 *header, guint8 protocol, gsize length)
{
    return sum_of(header - 8, 8, 0) + protocol + (guint32)length;
}

void lab_udp(LabFrame *frame, const guint8 *to, const guint8 *from, guint32 source, guint32 target, guint16 source_port,
             guint16 port, const char *text)
{
    gsize length = 8 + strlen(text);
    guint8 *udp;

    lab_ethernet(frame, to, from, ETHERTYPE_IPV4);
    udp = put_ipv4(frame, PROTOCOL_UDP, length, source, target);
    put16(frame, source_port);
    put16(frame, port);
    put16(frame, length);
    put16(frame, 0);
    put(frame, text, strlen(text));
    put_checksum(udp + 6, sum_of(udp, length, pseudo_sum(udp, PROTOCOL_UDP, length)));
}

void lab_tcp_syn(LabFrame *frame, const guint8 *to, const guint8 *from, guint32 source, guint32 target, guint16 port)
{
    guint8 *tcp;

    lab_ethernet(frame, to, from, ETHERTYPE_IPV4);
    tcp = put_ipv4(frame, PROTOCOL_TCP, 20, source, target);
    put16(frame, 40000);
    put16(frame, port);
    put(frame, "\x01\x02\x03\x04\x00\x00\x00\x00\x50\x02\xff\xff\x00\x00\x00\x00", 16);
    put_checksum(tcp + 16, sum_of(tcp, 20, pseudo_sum(tcp, PROTOCOL_TCP, 20)));
}

void lab_ipv6(LabFrame *frame, const guint8 *from, const guint8 *source, guint8 next, guint8 icmp_type)
{
    static const guint8 all_mac[6] = { 0x33, 0x33, 0, 0, 0, 1 };
    static const guint8 all[16] = { 0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 };
    guint8 payload[24] = { icmp_type };
    guint32 sum = sum_of(source, 16, 0) + sum_of(all, 16, 0) + next + sizeof(payload);

    put_checksum(payload + 2, sum_of(payload, sizeof(payload), sum));
    lab_ethernet(frame, all_mac, from, ETHERTYPE_IPV6);
    put(frame, "\x60\x00\x00\x00", 4);
    put16(frame, sizeof(payload));
    put(frame, &next, 1);
    put(frame, "\xff", 1);
    put(frame, source, 16);
    put(frame, all, 16);
    put(frame, payload, sizeof(payload));
}

void lab_send(const LabMember *member, const LabFrame *frame)
{
    guint8 bytes[HEAD_MAX + sizeof(frame->bytes)] = { 0 };
    gsize head = member->is_socket ? LENGTH_HEADER : VNET_HEADER;
    gssize size = (gssize)(head + frame->length);
    guint32 length = htonl(frame->length);

    memcpy(bytes + head, frame->bytes, frame->length);
    if (member->is_socket) {
        memcpy(bytes, &length, sizeof(length));
        g_assert_true(send(member->port, bytes, size, MSG_NOSIGNAL) == size || errno == EPIPE); /* it was dismissed */
    } else {
        g_assert_cmpint(write(member->port, bytes, size), ==, size);
    }
}

/* One frame that is there. FALSE: the port is closed. */
static gboolean read_frame(const LabMember *member, LabFrame *frame)
{
    guint8 bytes[VNET_HEADER + sizeof(frame->bytes)];
    guint32 length;
    gssize got;

    if (member->is_socket) {
        got = recv(member->port, &length, sizeof(length), MSG_WAITALL);
        if (got == 0) {
            return FALSE;
        }
        g_assert_cmpint(got, ==, sizeof(length));
        frame->length = ntohl(length);
        g_assert_cmpuint(frame->length, <=, sizeof(frame->bytes));
        g_assert_cmpint(recv(member->port, frame->bytes, frame->length, MSG_WAITALL), ==, (gssize)frame->length);
    } else {
        got = read(member->port, bytes, sizeof(bytes));
        g_assert_cmpint(got, >, VNET_HEADER);
        frame->length = got - VNET_HEADER;
        memcpy(frame->bytes, bytes + VNET_HEADER, frame->length);
    }
    return TRUE;
}

gboolean lab_receive(const LabMember *member, const void *wanted, gsize length, int ms, LabFrame *frame)
{
    gint64 end = g_get_monotonic_time() + ms * 1000;
    LabFrame own;

    for (;;) {
        struct pollfd look = { .fd = member->port, .events = POLLIN };
        gint64 left = (end - g_get_monotonic_time()) / 1000;

        if (poll(&look, 1, (int)MAX(0, left)) <= 0 || !(look.revents & POLLIN) || !read_frame(member, &own)) {
            return FALSE;
        }
        if (memmem(own.bytes, own.length, wanted, length)) {
            if (frame) {
                *frame = own;
            }
            return TRUE;
        }
    }
}

void lab_drain(const LabMember *member)
{
    static const char nowhere[] = "a text that no frame has";

    lab_receive(member, nowhere, sizeof(nowhere), 0, NULL);
}
