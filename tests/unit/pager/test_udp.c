/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The sockets of a multicast group, and batches of datagrams, of both families, within one host. */
#include <errno.h>
#include <glib.h>
#include <linux/udp.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>
#include "sfvmm/pager/udp_batch.h"
#include "sfvmm/pager/udp_group.h"

#define WAIT_MS 5000
#define PAYLOAD 1200u

typedef struct {
    const char *name, *local, *range;
} Family;

static const Family families[] = {
    { "4", "127.0.0.1", "239.195.0.0/16" },
    { "6", "fd5f::1", "ff12::5f00:0:0/96" }, /* of the interface that enter_namespace() makes */
};

typedef struct {
    SfUdpSocket origin, receiver;
    SfUdpAddress local, group, origin_address;
} Pair;

/* FALSE: this family is not to be had here, which has been told as a skip. */
static gboolean pair_open(Pair *pair, const Family *family)
{
    g_autoptr(GError) error = NULL;
    SfUdpRange range;

    g_assert_true(sf_udp_range_parse(family->range, &range, &error));
    g_assert_true(sf_udp_address_parse(family->local, 0, &pair->local));
    sf_udp_range_choose(&range, (guint64)getpid(), SF_UDP_GROUP_PORT, &pair->group);
    if (!sf_udp_group_open_origin(&pair->local, &pair->group, 1, &pair->origin, &error)) {
        g_test_skip(error->message);
        return FALSE;
    }
    g_assert_true(sf_udp_address_parse(family->local, pair->origin.port, &pair->origin_address));
    g_assert_true(
        sf_udp_group_open_receiver(&pair->local, &pair->group, &pair->origin_address, &pair->receiver, &error));
    return TRUE;
}

static void pair_close(Pair *pair)
{
    close(pair->origin.fd);
    close(pair->receiver.fd);
}

static struct udp_out *out_of(const Pair *pair)
{
    socklen_t length = pair->group.any.sa_family == AF_INET6 ? sizeof(pair->group.v6) : sizeof(pair->group.v4);

    return udp_out_new(pair->origin.fd, &pair->group.any, length);
}

/* `length` bytes in datagrams of PAYLOAD; all bytes of a datagram are its number, from `first` on. */
static void send_all(struct udp_out *out, guint first, gsize length)
{
    g_autofree guint8 *bytes = g_malloc(length);

    for (gsize i = 0; i < length; i++) {
        bytes[i] = first + i / PAYLOAD;
    }
    g_assert_cmpuint(udp_out_send(out, bytes, length, PAYLOAD), ==, length);
}

typedef struct {
    GArray *lengths; /* of gsize, as they came; the content must tell the same number */
} Got;

static void on_datagram(void *owner, uint8_t *bytes, size_t length)
{
    Got *got = owner;

    for (size_t i = 0; i < length; i++) {
        g_assert_cmpuint(bytes[i], ==, (guint8)got->lengths->len);
    }
    g_array_append_val(got->lengths, length);
}

static void wait_readable(int fd)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

    g_assert_cmpint(poll(&poll_fd, 1, WAIT_MS), ==, 1);
}

static void receive(const Pair *pair, struct udp_in *in, Got *got, guint n)
{
    while (got->lengths->len < n) {
        wait_readable(pair->receiver.fd);
        udp_in_receive(in, on_datagram, got);
    }
    g_assert_cmpuint(got->lengths->len, ==, n);
}

/* Five datagrams and a part of one, then one alone, then a short one: they come as they were sent. */
static void check_lengths(const Family *family, gboolean in_offload)
{
    Pair pair;
    Got got = { .lengths = g_array_new(FALSE, FALSE, sizeof(gsize)) };

    if (pair_open(&pair, family)) {
        struct udp_out *out = out_of(&pair);
        struct udp_in *in = udp_in_new(pair.receiver.fd, PAYLOAD, in_offload && pair.receiver.offload);
        int on = in_offload && pair.receiver.offload;
        setsockopt(pair.receiver.fd, IPPROTO_UDP, UDP_GRO, &on, sizeof(on));
        send_all(out, 0, 5 * PAYLOAD + 77);
        send_all(out, 6, PAYLOAD);
        send_all(out, 7, 1);
        receive(&pair, in, &got, 8);
        for (guint i = 0; i < 8; i++) {
            g_assert_cmpuint(g_array_index(got.lengths, gsize, i), ==, i == 5 ? 77 : i == 7 ? 1 : PAYLOAD);
        }
        g_assert_cmpuint(udp_out_stats(out)->datagrams, ==, 8);
        g_assert_cmpuint(udp_out_stats(out)->dropped, ==, 0);
        g_assert_cmpuint(udp_in_stats(in)->bytes, ==, udp_out_stats(out)->bytes);
        udp_out_free(out);
        udp_in_free(in);
        pair_close(&pair);
    }
    g_array_unref(got.lengths);
}

static void test_offload(gconstpointer family)
{
    check_lengths(family, TRUE);
}

static void test_plain(gconstpointer family)
{
    check_lengths(family, FALSE);
}

/* What a receiver sends reaches the origin. */
static void on_request(void *owner, uint8_t *bytes, size_t length)
{
    g_assert_cmpmem(bytes, length, "abc", 3);
}

static void test_request(gconstpointer family)
{
    Pair pair;

    if (!pair_open(&pair, family)) {
        return;
    }
    struct udp_in *in = udp_in_new(pair.origin.fd, PAYLOAD, FALSE);
    struct udp_out *out = udp_out_new(pair.receiver.fd, NULL, 0);
    g_assert_cmpuint(udp_out_send(out, (const guint8 *)"abc", 3, PAYLOAD), ==, 3);
    wait_readable(pair.origin.fd);
    g_assert_cmpuint(udp_in_receive(in, on_request, NULL), ==, 1);
    g_assert_cmpuint(udp_in_receive(in, on_request, NULL), ==, 0);
    udp_in_free(in);
    udp_out_free(out);
    pair_close(&pair);
}

/* A stranger that sends to the same group, from another port, is not heard. */
static void test_stranger(gconstpointer family)
{
    g_autoptr(GError) error = NULL;
    Pair pair;
    Got got = { .lengths = g_array_new(FALSE, FALSE, sizeof(gsize)) };

    if (pair_open(&pair, family)) {
        Pair stranger = pair;
        g_assert_true(sf_udp_group_open_origin(&pair.local, &pair.group, 1, &stranger.origin, &error));
        struct udp_out *theirs = out_of(&stranger), *ours = out_of(&pair);
        struct udp_in *in = udp_in_new(pair.receiver.fd, PAYLOAD, TRUE);
        send_all(theirs, 99, 10);
        send_all(ours, 0, 20);
        receive(&pair, in, &got, 1);
        g_assert_cmpuint(g_array_index(got.lengths, gsize, 0), ==, 20);
        udp_out_free(theirs);
        udp_out_free(ours);
        udp_in_free(in);
        close(stranger.origin.fd);
        pair_close(&pair);
    }
    g_array_unref(got.lengths);
}

/* A buffer that nobody empties overflows; how much is told, and what comes afterwards is right. */
static void count_datagram(void *owner, uint8_t *bytes, size_t length)
{
    ++*(guint64 *)owner;
}

static void test_overflow(gconstpointer family)
{
    Pair pair;
    guint64 sent = 0, got = 0;
    int small = 4096;

    if (!pair_open(&pair, family)) {
        return;
    }
    struct udp_out *out = out_of(&pair);
    struct udp_in *in = udp_in_new(pair.receiver.fd, PAYLOAD, TRUE);
    g_assert_cmpint(setsockopt(pair.receiver.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), ==, 0);
    for (guint turn = 0; turn < 2; turn++) {
        for (guint i = 0; i < 60; i++, sent++) {
            send_all(out, 1, PAYLOAD);
        }
        wait_readable(pair.receiver.fd);
        while (udp_in_receive(in, count_datagram, &got) > 0) {
        }
    }
    g_assert_cmpuint(got, <, sent);
    send_all(out, 1, 10); /* it carries the count */
    wait_readable(pair.receiver.fd);
    udp_in_receive(in, count_datagram, &got);
    g_assert_cmpuint(got + udp_in_stats(in)->overflows, ==, sent + 1);
    udp_out_free(out);
    udp_in_free(in);
    pair_close(&pair);
}

static void test_ranges(void)
{
    static const char *const wrong[] = { "",           "239.1.0.0", "10.0.0.0/8", "239.1.0.0/33", "239.1.0.0/x",
                                         "ff15::/129", "fe80::/64", "239.1.0.0/", "/16",          "239.1.0.0/3" };
    g_autofree char *text = NULL;
    SfUdpRange range;
    SfUdpAddress one, other;

    for (guint i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_false(sf_udp_range_parse(wrong[i], &range, &error));
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT);
    }
    g_assert_true(sf_udp_range_parse("239.195.0.0/24", &range, NULL));
    sf_udp_range_choose(&range, 0x1234567812345678, 7411, &one);
    sf_udp_range_choose(&range, 0x1234567812345678, 7411, &other);
    g_assert_cmpmem(&one, sizeof(one), &other, sizeof(other));
    text = sf_udp_address_text(&one);
    g_assert_true(g_str_has_prefix(text, "239.195.0."));
    g_assert_cmpuint(sf_udp_address_port(&one), ==, 7411);
    sf_udp_range_choose(&range, 0x1234567812345679, 7411, &other);
    g_assert_cmpint(memcmp(&one, &other, sizeof(one)), !=, 0);
    g_assert_true(sf_udp_range_parse("239.195.7.9/32", &range, NULL));
    sf_udp_range_choose(&range, 12345, 1, &one);
    g_free(text);
    text = sf_udp_address_text(&one);
    g_assert_cmpstr(text, ==, "239.195.7.9");
}

static void test_refusals(void)
{
    SfUdpAddress elsewhere, local, group6, group;
    SfUdpSocket made;
    g_autoptr(GError) error = NULL;

    g_assert_true(sf_udp_address_parse("192.0.2.1", 0, &elsewhere));
    g_assert_true(sf_udp_address_parse("127.0.0.1", 0, &local));
    g_assert_true(sf_udp_address_parse("239.195.1.1", 1, &group));
    g_assert_true(sf_udp_address_parse("ff15::1", 1, &group6));
    g_assert_false(sf_udp_address_parse("127.0.0.1x", 0, &local));
    g_assert_false(sf_udp_address_parse("", 0, &local));
    g_assert_true(sf_udp_address_parse("::ffff:127.0.0.1", 0, &local));
    g_assert_cmpint(local.any.sa_family, ==, AF_INET);
    g_assert_true(sf_udp_address_parse("127.0.0.1", 0, &local));
    g_assert_false(sf_udp_group_open_origin(&elsewhere, &group, 1, &made, &error));
    g_assert_nonnull(strstr(error->message, "192.0.2.1"));
    g_clear_error(&error);
    g_assert_false(sf_udp_group_open_origin(&local, &group6, 1, &made, &error));
    g_clear_error(&error);
    g_assert_false(sf_udp_group_open_origin(&local, &local, 1, &made, &error));
}

/* IPv6 has no multicast on the loopback interface: a namespace of our own, with an interface that has. */
static void enter_namespace(void)
{
    static const char *const commands[] = { "ip link set lo up", "ip link add sf0 type veth peer name sf1",
                                            "ip address add fd5f::1/64 dev sf0 nodad", "ip link set sf1 up",
                                            "ip link set sf0 up" };

    if (unshare(CLONE_NEWNET) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0) {
        for (guint i = 0; i < G_N_ELEMENTS(commands); i++) {
            g_spawn_command_line_sync(commands[i], NULL, NULL, NULL, NULL);
        }
    }
}

int main(int argc, char **argv)
{
    enter_namespace();
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/udp/ranges", test_ranges);
    g_test_add_func("/udp/refusals", test_refusals);
    for (guint i = 0; i < G_N_ELEMENTS(families); i++) {
        static const struct {
            const char *name;
            void (*test)(gconstpointer family);
        } tests[] = { { "offload", test_offload },
                      { "plain", test_plain },
                      { "request", test_request },
                      { "stranger", test_stranger },
                      { "overflow", test_overflow } };
        for (guint j = 0; j < G_N_ELEMENTS(tests); j++) {
            g_autofree char *path = g_strdup_printf("/udp/%s/%s", families[i].name, tests[j].name);
            g_test_add_data_func(path, &families[i], tests[j].test);
        }
    }
    return g_test_run();
}
