/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Clusters with real frames, of both kinds: who reaches whom, what is refused, and that nothing is left. */
#include <arpa/inet.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "dhcp_request.h"
#include "lab.h"
#include "sfvmm/net/link.h"
#include "sfvmm/net/netns.h"
#include "sfvmm/net/nft.h"
#include "sfvmm/net/policy.h"

#define SUBNET  0x0a4d0000u /* 10.77.0.0/16 */
#define PARENT  (SUBNET + 1)
#define GATEWAY (SUBNET + 0xfffe)
#define NOBODY  65534 /* user and group without rights, that sf-switch runs as when we are root */
#define SOON    10000 /* ms: bound for what comes; a busy machine needs seconds */
#define NEVER   150   /* ms: what has not come by then is taken not to come */

static const char *const no_names[] = { NULL };
static const guint8 everyone[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

static SfNetworkPlace switches;     /* of sf-switch */
static const SfNetworkPlace *place; /* kind of the networks of a test: NULL: bridges */

static SfNetworkOptions options_of(const GArray *outside, guint64 rate)
{
    static guint number; /* a switch has its name for itself */
    static char name[16];

    g_snprintf(name, sizeof(name), "test%u", ++number);
    return (SfNetworkOptions){
        name, PARENT, 16, outside, LAB_LINKS, 16, rate, { 2, 0x5f, 10, 77, 255, 254 }, FALSE, place,
    };
}

static SfNetwork *make_network(const char *const *rules, guint64 rate)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GArray) outside = sf_net_policy_parse(rules, &error);
    SfNetworkOptions options = options_of(outside, rate);
    SfNetwork *network;

    g_assert_no_error(error);
    network = sf_network_new(&options, &error);
    g_assert_no_error(error);
    return network;
}

static gboolean gets(const LabMember *member, const char *text, int ms)
{
    return lab_receive(member, text, strlen(text), ms, NULL);
}

static void say(const LabMember *from, const LabMember *to, const char *text)
{
    LabFrame frame;

    lab_udp(&frame, to->mac, from->mac, from->address, to->address, 1000, 2000, text);
    lab_send(from, &frame);
}

/* Members reach each other from their admission to their dismissal, and not before or after. */
static void test_members(void)
{
    g_autoptr(SfNetwork) network = make_network(NULL, 0);
    g_autoptr(GError) error = NULL;
    LabMember a, b, c;

    lab_join(&a, network, PARENT, TRUE);
    lab_join(&b, network, PARENT + 1, TRUE);
    lab_join(&c, network, PARENT + 2, FALSE);
    g_assert_cmpuint(sf_network_gateway(network), ==, 0);
    say(&a, &b, "hello b");
    g_assert_true(gets(&b, "hello b", SOON));
    say(&b, &a, "hello a");
    g_assert_true(gets(&a, "hello a", SOON));
    say(&c, &a, "too early");
    say(&a, &c, "too early");
    g_assert_false(gets(&a, "too early", NEVER));
    g_assert_false(gets(&c, "too early", NEVER));
    sf_network_admit(network, c.device, c.mac, c.address, &error);
    g_assert_no_error(error);
    say(&c, &a, "now");
    g_assert_true(gets(&a, "now", SOON));
    sf_network_dismiss(network, c.device);
    say(&c, &a, "too late");
    g_assert_false(gets(&a, "too late", NEVER));
    lab_leave(&a, network);
    lab_leave(&b, network);
    lab_leave(&c, NULL);
}

static gboolean is_answered(const LabMember *member, LabFrame *frame)
{
    static const guint8 cookie[] = { 0x63, 0x82, 0x53, 0x63 };
    gboolean answered = FALSE;

    for (gint64 end = g_get_monotonic_time() + SOON * 1000; !answered && g_get_monotonic_time() < end;) {
        while (g_main_context_iteration(NULL, FALSE)) {
        }
        answered = lab_receive(member, cookie, sizeof(cookie), NEVER, frame);
    }
    return answered;
}

/* By DHCP a member gets the address that it has, whatever it asks for. */
static void test_dhcp(void)
{
    static const char *const rules[] = { "0.0.0.0/0", NULL };
    g_autoptr(SfNetwork) network = make_network(rules, 0);
    LabMember a, b;
    LabFrame frame;

    lab_join(&a, network, PARENT, TRUE);
    lab_join(&b, network, PARENT + 1, TRUE);
    frame.length = dhcp_request(frame.bytes, b.mac, 0, DHCP_DISCOVER, PARENT, 0);
    lab_send(&b, &frame);
    g_assert_true(is_answered(&b, &frame));
    g_assert_cmpint(dhcp_option(frame.bytes, frame.length, 53), ==, DHCP_OFFER);
    g_assert_cmpmem(frame.bytes, 6, b.mac, 6);
    frame.length = dhcp_request(frame.bytes, b.mac, 0, DHCP_REQUEST, PARENT, GATEWAY);
    lab_send(&b, &frame);
    g_assert_true(is_answered(&b, &frame));
    g_assert_cmpint(dhcp_option(frame.bytes, frame.length, 53), ==, DHCP_NAK);
    frame.length = dhcp_request(frame.bytes, b.mac, b.address, DHCP_REQUEST, b.address, 0);
    lab_send(&b, &frame);
    g_assert_true(is_answered(&b, &frame));
    g_assert_cmpint(dhcp_option(frame.bytes, frame.length, 53), ==, DHCP_ACK);
    g_assert_cmphex(dhcp_option(frame.bytes, frame.length, 3), ==, GATEWAY);
    lab_leave(&a, network);
    lab_leave(&b, network);
}

/* Two clusters with the same addresses at the same time, each with a policy: no frame of one gets to the other. */
static void test_apart(void)
{
    static const char *const rules[] = { "0.0.0.0/0", NULL };
    g_autoptr(SfNetwork) red = make_network(rules, 0), blue = make_network(rules, 0);
    LabMember a, b, c, d;
    LabFrame frame;

    lab_join(&a, red, PARENT, TRUE);
    lab_join(&b, red, PARENT + 1, TRUE);
    lab_join(&c, blue, PARENT, TRUE);
    lab_join(&d, blue, PARENT + 1, TRUE);
    say(&a, &b, "red to red");
    say(&c, &d, "blue to blue");
    g_assert_true(gets(&b, "red to red", SOON));
    g_assert_true(gets(&d, "blue to blue", SOON));
    lab_udp(&frame, everyone, a.mac, a.address, 0xffffffff, 1, 2, "red to all");
    lab_send(&a, &frame);
    g_assert_true(gets(&b, "red to all", SOON));
    g_assert_false(gets(&d, "red", NEVER));
    g_assert_false(gets(&c, "red", NEVER));
    lab_leave(&a, red);
    lab_leave(&b, red);
    lab_leave(&c, blue);
    lab_leave(&d, blue);
}

static void expect_refused(const LabMember *from, const LabMember *to, const LabFrame *frame, const void *mark,
                           gsize length)
{
    lab_drain(to);
    lab_send(from, frame);
    g_assert_false(lab_receive(to, mark, length, NEVER, NULL));
}

/* Forged MACs, addresses, ARP, IPv6, and what would make a member a router or a DHCP server. */
static void test_spoofing(void)
{
    g_autoptr(SfNetwork) network = make_network(NULL, 0);
    const guint8 own6[16] = { 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0x5f, 0x0a, 0xff, 0xfe, 0x4d, 0, 2 };
    const guint8 others6[16] = { 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0x5f, 0x0a, 0xff, 0xfe, 0x4d, 0, 1 };
    LabMember a, b;
    LabFrame frame;

    lab_join(&a, network, PARENT, TRUE);
    lab_join(&b, network, PARENT + 1, TRUE);
    lab_udp(&frame, a.mac, a.mac, b.address, a.address, 1, 2, "forged MAC");
    expect_refused(&b, &a, &frame, "forged", 6);
    lab_udp(&frame, a.mac, b.mac, PARENT + 7, a.address, 1, 2, "forged address");
    expect_refused(&b, &a, &frame, "forged", 6);
    lab_udp(&frame, a.mac, b.mac, b.address, a.address, 67, 68, "forged DHCP");
    expect_refused(&b, &a, &frame, "forged", 6);
    lab_arp(&frame, &b, b.mac, PARENT, PARENT);
    expect_refused(&b, &a, &frame, b.mac, 6);
    lab_arp(&frame, &b, a.mac, b.address, PARENT);
    expect_refused(&b, &a, &frame, b.mac, 6);
    lab_ipv6(&frame, b.mac, others6, 58, 136);
    expect_refused(&b, &a, &frame, others6, 16);
    lab_ipv6(&frame, b.mac, own6, 58, 134);
    expect_refused(&b, &a, &frame, own6, 16);
    lab_ethernet(&frame, a.mac, b.mac, 0x8100); /* a VLAN tag */
    memcpy(frame.bytes + frame.length, "\x00\x01\x08\x00 forged", 12);
    frame.length = 60;
    expect_refused(&b, &a, &frame, "forged", 6);

    lab_arp(&frame, &b, b.mac, b.address, PARENT); /* and the same, honestly */
    lab_send(&b, &frame);
    g_assert_true(lab_receive(&a, b.mac, 6, SOON, NULL));
    lab_ipv6(&frame, b.mac, own6, 58, 136);
    lab_send(&b, &frame);
    g_assert_true(lab_receive(&a, own6, 16, SOON, NULL));
    lab_leave(&a, network);
    lab_leave(&b, network);
}

/*
 * The MAC that the gateway has, by asking as a guest does: again and again, as an answer is lost while its bridge is not
 * fully up. Not every frame with its address is the answer: its kernel reports to multicast routers, too.
 */
static void find_gateway(const LabMember *member, guint8 *mac)
{
    static const guint8 reply[] = { 0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x02 };
    guint32 address = htonl(GATEWAY);
    gboolean answered = FALSE;
    LabFrame ask, frame;

    lab_arp(&ask, member, member->mac, member->address, GATEWAY);
    for (guint i = 0; i < SOON / NEVER && !answered; i++) {
        lab_send(member, &ask);
        answered = lab_receive(member, reply, sizeof(reply), NEVER, &frame);
    }
    g_assert_true(answered);
    g_assert_cmpmem(frame.bytes + 28, sizeof(address), &address, sizeof(address));
    memcpy(mac, frame.bytes + 22, 6);
}

static gboolean outside_gets(int socket, const char *text, int ms, struct sockaddr_in *from)
{
    struct pollfd look = { .fd = socket, .events = POLLIN };
    socklen_t size = sizeof(*from);
    char got[64];
    gssize n;

    if (poll(&look, 1, ms) <= 0) {
        return FALSE;
    }
    n = recvfrom(socket, got, sizeof(got), 0, (struct sockaddr *)from, &size);
    g_assert_cmpint(n, ==, (gssize)strlen(text));
    g_assert_cmpint(memcmp(got, text, n), ==, 0);
    return TRUE;
}

static void send_out(const LabMember *from, const guint8 *gateway, guint32 target, guint16 port, const char *text)
{
    LabFrame frame;

    lab_udp(&frame, gateway, from->mac, from->address, target, 1234, port, text);
    lab_send(from, &frame);
}

/* Again and again: a new cable takes a moment, and who sends into it before then has sent in vain. */
static gboolean gets_out(const LabMember *from, const guint8 *gateway, int socket, guint16 port, const char *text,
                         struct sockaddr_in *sender)
{
    for (guint i = 0; i < SOON / NEVER; i++) {
        send_out(from, gateway, LAB_OUTSIDE, port, text);
        if (outside_gets(socket, text, NEVER, sender)) {
            return TRUE;
        }
    }
    return FALSE;
}

/* What the policy allows passes both ways, with the host's address; nothing else does. */
static void test_outside(void)
{
    static const char *const rules[] = { "192.0.2.9 udp 53", "192.0.2.1", "198.18.0.0/15", NULL };
    g_autoptr(SfNetwork) network = make_network(rules, 0), other = make_network(rules, 0);
    int allowed = lab_outside_socket(SOCK_DGRAM, 53), refused = lab_outside_socket(SOCK_DGRAM, 54);
    int own = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in from, here = { .sin_family = AF_INET, .sin_port = htons(53) };
    guint8 gateway[6];
    LabMember a;

    g_assert_cmpint(bind(own, (struct sockaddr *)&here, sizeof(here)), ==, 0);
    g_assert_cmpuint(sf_network_gateway(network), ==, GATEWAY);
    lab_join(&a, network, PARENT, TRUE);
    find_gateway(&a, gateway);
    g_assert_true(gets_out(&a, gateway, allowed, 53, "question", &from));
    g_assert_cmpuint(ntohl(from.sin_addr.s_addr), ==, LAB_HOST);
    g_assert_cmpint(sendto(allowed, "answer", 6, 0, (struct sockaddr *)&from, sizeof(from)), ==, 6);
    g_assert_true(gets(&a, "answer", SOON));

    send_out(&a, gateway, LAB_OUTSIDE, 54, "no rule");
    g_assert_false(outside_gets(refused, "no rule", NEVER, &from));
    send_out(&a, gateway, LAB_HOST, 53, "host");  /* though a rule names it */
    send_out(&a, gateway, LAB_LINKS, 53, "host"); /* its ends of the cables */
    send_out(&a, gateway, LAB_LINKS + 2, 53, "host");
    g_assert_false(outside_gets(own, "host", NEVER, &from));
    send_out(&a, gateway, GATEWAY, 53, "gateway");
    send_out(&a, gateway, LAB_LINKS + 3, 53, "other cluster");
    g_assert_false(gets(&a, "nothing comes back", NEVER));
    lab_leave(&a, network);
    close(allowed);
    close(refused);
    close(own);
}

/* A refused TCP connection fails at once. */
static void test_refused_at_once(void)
{
    static const char *const rules[] = { "192.0.2.9 tcp 80", NULL };
    g_autoptr(SfNetwork) network = make_network(rules, 0);
    guint8 gateway[6];
    LabMember a;
    LabFrame frame;

    lab_join(&a, network, PARENT, TRUE);
    find_gateway(&a, gateway);
    lab_tcp_syn(&frame, gateway, a.mac, a.address, LAB_OUTSIDE, 81);
    lab_send(&a, &frame);
    g_assert_true(lab_receive(&a, "\x50\x14", 2, SOON, &frame)); /* RST, ACK */
    lab_leave(&a, network);
}

static guint count_frames(const LabMember *member, const char *text)
{
    guint count = 0;

    while (gets(member, text, NEVER)) {
        count++;
    }
    return count;
}

/* Who floods all, or has a limit, loses what is too much. */
static void test_floods(void)
{
    g_autoptr(SfNetwork) network = make_network(NULL, 20000);
    LabMember a, b;
    LabFrame frame;
    char text[1001] = { 0 };
    gboolean arrived_now = FALSE;
    guint arrived;

    memset(text, 'x', sizeof(text) - 1);
    lab_join(&a, network, PARENT, TRUE);
    lab_join(&b, network, PARENT + 1, TRUE);
    for (guint i = 0; i < 400; i++) {
        say(&a, &b, text);
    }
    arrived = count_frames(&b, "xxxxx");
    g_assert_cmpuint(arrived, >, 0);
    g_assert_cmpuint(arrived, <, 200); /* 64 KiB at once, and some more while it was sent */
    lab_leave(&b, network);
    lab_leave(&a, network);
    g_clear_pointer(&network, sf_network_free);

    network = make_network(NULL, 0);
    lab_join(&a, network, PARENT, TRUE);
    lab_join(&b, network, PARENT + 1, TRUE);
    lab_udp(&frame, everyone, a.mac, a.address, 0xffffffff, 1, 2, "storm");
    for (guint i = 0; i < 20000; i++) {
        lab_send(&a, &frame);
        if (i % 256 == 0) {
            lab_drain(&b);
        }
    }
    for (guint i = 0; i < SOON / NEVER && !arrived_now; i++) { /* what comes behind a storm may still be lost with it */
        say(&a, &b, "still there");
        arrived_now = gets(&b, "still there", NEVER);
    }
    g_assert_true(arrived_now);
    lab_leave(&b, network);
    lab_leave(&a, network);
}

/* A later sfvmmd finds the network by a tap; a connection that passes goes on, who is not admitted again does not. */
static void test_adopted(void)
{
    static const char *const rules[] = { "192.0.2.9 udp 53", NULL };
    g_autoptr(GError) error = NULL;
    g_autoptr(GArray) outside = sf_net_policy_parse(rules, &error);
    SfNetworkOptions options = options_of(outside, 0);
    SfNetwork *network = sf_network_new(&options, &error);
    int service = lab_outside_socket(SOCK_DGRAM, 53);
    struct sockaddr_in from;
    guint8 gateway[6];
    LabMember a, b, c;

    lab_join(&a, network, PARENT, TRUE);
    lab_join(&b, network, PARENT + 1, TRUE);
    sf_network_leave(network);
    network = sf_network_adopt(&options, a.port, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(sf_network_gateway(network), ==, GATEWAY);
    say(&b, &a, "not settled");
    g_assert_true(gets(&a, "not settled", SOON));
    sf_network_admit(network, a.device, a.mac, a.address, &error);
    g_assert_no_error(error);
    g_assert_true(sf_network_settle(network, &error));
    g_assert_no_error(error);
    say(&b, &a, "not admitted");
    g_assert_false(gets(&a, "not admitted", NEVER));
    lab_join(&c, network, PARENT + 2, TRUE); /* its tap's name is a new one */
    say(&c, &a, "new");
    g_assert_true(gets(&a, "new", SOON));
    find_gateway(&a, gateway);
    g_assert_true(gets_out(&a, gateway, service, 53, "question", &from));
    lab_leave(&a, network);
    lab_leave(&b, network);
    lab_leave(&c, network);
    sf_network_free(network);
    g_assert_cmpuint(lab_count("sfn"), ==, 0);
    close(service);
}

/* Many cycles, and one whose daemon was killed: nothing is left. */
static void test_nothing_left(void)
{
    static const char *const rules[] = { "192.0.2.9", NULL };
    g_autoptr(GError) error = NULL;
    SfNetwork *network;
    LabMember a;

    for (guint i = 0; i < 20; i++) {
        network = make_network(rules, 1000000);
        lab_join(&a, network, PARENT, TRUE);
        g_assert_cmpuint(lab_count("sfn"), ==, 2); /* a device and a table */
        lab_leave(&a, network);
        sf_network_free(network);
        g_assert_cmpuint(lab_count("sfn"), ==, 0);
    }
    network = make_network(rules, 0);
    lab_join(&a, network, PARENT, TRUE);
    sf_network_leave(network);
    g_assert_cmpuint(lab_count("sfn"), ==, 2);
    sf_network_sweep(NULL, no_names);
    g_assert_cmpuint(lab_count("sfn"), ==, 2); /* a VM runs in it */
    lab_leave(&a, NULL);
    for (guint i = 0; lab_count("sfn") > 1 && i < SOON; i++) {
        g_usleep(1000); /* the kernel ends a namespace in the background */
    }
    sf_network_sweep(NULL, no_names);
    g_assert_cmpuint(lab_count("sfn"), ==, 0);
}

/* ---- two hosts ---- */

#define NUMBER 0x5f0001u
#define PORT   4789u

static const char *const near_host[] = { "192.0.2.1", NULL };
static const char *const far_host[] = { "192.0.2.9", NULL };
static const char *const other_host[] = { "192.0.2.55", NULL };
static const char *const no_host[] = { NULL };

static const char *const near_ipv6[] = { "fd5f::1", NULL };
static const char *const far_ipv6[] = { "fd5f::9", NULL };

typedef struct {
    const char *const *near; /* its only end */
    SfNetwork *network;
    LabMember member;
} Far;

static gboolean make_far(gpointer data, GError **error)
{
    SfNetworkOptions options = {
        "far", PARENT, 16, NULL, LAB_LINKS, 16, 0, { 2, 0x5f, 10, 77, 255, 254 }, TRUE, NULL,
    };
    Far *far = data;

    far->network = sf_network_new(&options, error);
    g_assert_no_error(*error);
    lab_join(&far->member, far->network, PARENT + 1, TRUE);
    return sf_network_span(far->network, NUMBER, PORT, far->near, error);
}

static gboolean deafen_far(gpointer data, GError **error)
{
    return sf_network_span(((Far *)data)->network, NUMBER, PORT, other_host, error);
}

static gboolean end_far(gpointer data, GError **error)
{
    Far *far = data;

    lab_leave(&far->member, far->network);
    sf_network_free(far->network);
    return TRUE;
}

static void say_to_all(const LabMember *from, const char *text)
{
    LabFrame frame;

    lab_udp(&frame, everyone, from->mac, from->address, 0xffffffff, 1, 2, text);
    lab_send(from, &frame);
}

/* One cluster on two hosts, beside one that is not. A host that is none of the cluster's is not heard. */
static void test_two_hosts(void)
{
    g_autoptr(SfNetwork) red = make_network(NULL, 0), blue = make_network(NULL, 0);
    g_autoptr(GError) error = NULL;
    LabMember a, b;
    LabFrame frame;
    Far far = { .near = near_host };

    lab_visit(make_far, &far);
    lab_join(&a, red, PARENT, TRUE);
    lab_join(&b, blue, PARENT, TRUE);
    sf_network_span(red, NUMBER, PORT, far_host, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(sf_network_number(red), ==, NUMBER);
    say_to_all(&a, "red to all");
    g_assert_true(gets(&far.member, "red to all", SOON));
    say(&far.member, &a, "far to red");
    g_assert_true(gets(&a, "far to red", SOON));
    say_to_all(&far.member, "far to all");
    g_assert_true(gets(&a, "far to all", SOON));
    g_assert_false(gets(&b, "far", NEVER));
    lab_udp(&frame, a.mac, a.mac, a.address, a.address, 1, 2, "forged");
    lab_send(&far.member, &frame);
    g_assert_false(gets(&a, "forged", NEVER));

    g_assert_false(sf_network_span(blue, NUMBER, PORT, far_host, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_EXISTS);
    lab_visit(deafen_far, &far);
    say_to_all(&a, "a stranger");
    g_assert_false(gets(&far.member, "a stranger", NEVER));
    lab_visit(end_far, &far);
    g_assert_cmpuint(lab_count("sfx"), ==, 1);
    g_clear_error(&error);
    sf_network_span(red, NUMBER, PORT, no_host, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(lab_count("sfx"), ==, 0);
    lab_leave(&a, red);
    lab_leave(&b, blue);
}

static gboolean number_far(gpointer data, GError **error)
{
    return g_spawn_command_line_sync(data, NULL, NULL, NULL, error);
}

static void test_two_hosts_ipv6(void)
{
    static const char *const mixed[] = { "fd5f::9", "192.0.2.9", NULL };
    g_autoptr(SfNetwork) network = make_network(NULL, 0);
    g_autoptr(GError) error = NULL;
    char far_command[] = "ip address add fd5f::9/64 dev lan nodad";
    Far far = { .near = near_ipv6 };
    LabMember a;

    if (!g_spawn_command_line_sync("ip address add fd5f::1/64 dev wan nodad", NULL, NULL, NULL, NULL)) {
        g_test_skip("ip is missing (package iproute2)");
        return;
    }
    lab_visit(number_far, far_command);
    lab_visit(make_far, &far);
    lab_join(&a, network, PARENT, TRUE);
    sf_network_span(network, NUMBER, PORT, far_ipv6, &error);
    g_assert_no_error(error);
    say_to_all(&a, "by IPv6");
    g_assert_true(gets(&far.member, "by IPv6", SOON));
    say(&far.member, &a, "and back");
    g_assert_true(gets(&a, "and back", SOON));
    g_assert_false(sf_network_span(network, NUMBER, PORT, mixed, &error));
    g_assert_nonnull(strstr(error->message, "192.0.2.9"));
    lab_visit(end_far, &far);
    lab_leave(&a, network);
}

/* The tunnel of a killed sfvmmd: its filter goes when nobody has a tunnel of that number. */
static void test_tunnel_swept(void)
{
    SfNetwork *network = make_network(NULL, 0);
    g_autoptr(GError) error = NULL;
    LabMember a;

    lab_join(&a, network, PARENT, TRUE);
    sf_network_span(network, NUMBER, PORT, far_host, &error);
    g_assert_no_error(error);
    sf_network_leave(network);
    sf_network_sweep(NULL, no_names);
    g_assert_cmpuint(lab_count("sfx"), ==, 1); /* a VM runs in it */
    lab_leave(&a, NULL);
    for (guint i = 0; lab_count("sfx") > 0 && i < SOON; i++) {
        g_usleep(1000); /* the kernel ends a namespace in the background */
        sf_network_sweep(NULL, no_names);
    }
    g_assert_cmpuint(lab_count("sfx"), ==, 0);
    g_assert_cmpuint(lab_count("sfprobe"), ==, 0);
}

static void test_host_must_forward(void)
{
    static const char *const rules[] = { "192.0.2.9", NULL };
    g_autoptr(GError) error = NULL;
    g_autoptr(GArray) outside = sf_net_policy_parse(rules, &error);
    SfNetworkOptions options = { "web", PARENT, 16, outside, LAB_LINKS, 16, 0, { 0 }, FALSE, NULL };
    g_autoptr(SfLinks) host = sf_links_new(-1, &error);

    g_assert_true(sf_links_sysctl(host, "net/ipv4/ip_forward", "0", &error));
    g_assert_null(sf_network_new(&options, &error));
    g_assert_nonnull(strstr(error->message, "web"));
    g_assert_nonnull(strstr(error->message, "ip_forward"));
    g_assert_cmpuint(lab_count("sfn"), ==, 0);
    g_assert_true(sf_links_sysctl(host, "net/ipv4/ip_forward", "1", NULL));
}

/* ---- switches ---- */

static guint count_files(void)
{
    g_autoptr(GDir) dir = g_dir_open(switches.directory, 0, NULL);
    guint count = 0;

    while (dir && g_dir_read_name(dir)) {
        count++;
    }
    return count;
}

/* Its process and its files go with it; what a killed sfvmmd left goes when it is swept, or with the last VM. */
static void test_switch_ends(void)
{
    static const char *const rules[] = { "192.0.2.9", NULL };
    g_autoptr(GError) error = NULL;
    g_autoptr(GArray) outside = sf_net_policy_parse(rules, NULL);
    SfNetworkOptions options = options_of(outside, 0);
    const char *const live[] = { options.name, NULL };
    SfNetwork *network;
    LabMember a;

    for (guint i = 0; i < 10; i++) {
        network = sf_network_new(&options, &error);
        g_assert_no_error(error);
        lab_join(&a, network, PARENT, TRUE);
        g_assert_cmpuint(count_files(), ==, 2); /* socket and log */
        sf_network_free(network);
        g_assert_cmpuint(count_files(), ==, 0);
        g_assert_false(gets(&a, "it is closed", SOON));
        lab_leave(&a, NULL);
    }
    network = sf_network_new(&options, &error);
    lab_join(&a, network, PARENT, TRUE);
    sf_network_leave(network);
    sf_network_sweep(place, live);
    g_assert_cmpuint(count_files(), ==, 2); /* a VM runs in it */
    sf_network_sweep(place, no_names);
    g_assert_cmpuint(count_files(), ==, 0);
    lab_leave(&a, NULL);

    network = sf_network_new(&options, &error);
    g_assert_no_error(error);
    lab_join(&a, network, PARENT, TRUE);
    sf_network_leave(network);
    lab_leave(&a, NULL);
    for (guint i = 0; i < SOON && (network = sf_network_adopt(&options, -1, NULL)); i++) {
        sf_network_leave(network);
        g_usleep(1000);
    }
    g_assert_null(network);
    sf_network_sweep(place, no_names);
}

static void test_switch_spans_not(void)
{
    g_autoptr(SfNetwork) network = make_network(NULL, 0);
    g_autoptr(GError) error = NULL;

    g_assert_false(sf_network_span(network, NUMBER, PORT, far_host, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED);
    g_assert_true(sf_network_span(network, NUMBER, PORT, no_host, NULL));
}

static void test_switch_missing(void)
{
    SfNetworkPlace nowhere = switches;
    SfNetworkOptions options = options_of(NULL, 0);
    g_autoptr(GError) error = NULL;

    nowhere.program = "/nowhere/sf-switch";
    options.place = &nowhere;
    g_assert_null(sf_network_new(&options, &error));
    g_assert_nonnull(strstr(error->message, options.name));
    g_assert_nonnull(strstr(error->message, nowhere.program));
    sf_network_sweep(place, no_names);
}

/* ---- */

static void as_bridge(gconstpointer test)
{
    place = NULL;
    ((void (*)(void))test)();
}

static void as_switch(gconstpointer test)
{
    place = &switches;
    ((void (*)(void))test)();
}

static void add_both(const char *name, void (*test)(void))
{
    g_autofree char *bridge = g_strconcat("/net/bridge/", name, NULL);
    g_autofree char *other = g_strconcat("/net/switch/", name, NULL);

    g_test_add_data_func(bridge, (gconstpointer)test, as_bridge);
    g_test_add_data_func(other, (gconstpointer)test, as_switch);
}

int main(int argc, char **argv)
{
    g_autofree char *directory = g_dir_make_tmp("sf-switch-XXXXXX", NULL);
    int status;

    g_test_init(&argc, &argv, NULL);
    if (!lab_open()) {
        return 0;
    }
    switches = (SfNetworkPlace){ g_getenv("SF_SWITCH"), directory, geteuid() == 0 ? NOBODY : geteuid(),
                                 geteuid() == 0 ? NOBODY : getegid() };
    add_both("members", test_members);
    add_both("dhcp", test_dhcp);
    add_both("apart", test_apart);
    add_both("spoofing", test_spoofing);
    add_both("outside", test_outside);
    add_both("refused-at-once", test_refused_at_once);
    add_both("floods", test_floods);
    add_both("adopted", test_adopted);
    g_test_add_data_func("/net/bridge/nothing-left", (gconstpointer)test_nothing_left, as_bridge);
    g_test_add_data_func("/net/bridge/two-hosts", (gconstpointer)test_two_hosts, as_bridge);
    g_test_add_data_func("/net/bridge/two-hosts-ipv6", (gconstpointer)test_two_hosts_ipv6, as_bridge);
    g_test_add_data_func("/net/bridge/tunnel-swept", (gconstpointer)test_tunnel_swept, as_bridge);
    g_test_add_data_func("/net/bridge/host-must-forward", (gconstpointer)test_host_must_forward, as_bridge);
    g_test_add_data_func("/net/switch/ends", (gconstpointer)test_switch_ends, as_switch);
    g_test_add_data_func("/net/switch/spans-not", (gconstpointer)test_switch_spans_not, as_switch);
    g_test_add_data_func("/net/switch/missing", (gconstpointer)test_switch_missing, as_switch);
    status = g_test_run();
    rmdir(directory);
    return status;
}
