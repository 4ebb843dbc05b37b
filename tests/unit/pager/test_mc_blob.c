/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A blob that goes to all before the pages: the origin's mc_sender and hosts' mc_blob_in on a virtual clock, with a
 * network that loses what a test says.
 */
#include <glib.h>
#include <string.h>
#include "sfvmm/pager/mc_blob_in.h"
#include "sfvmm/pager/mc_sender.h"

#define INCARNATION 5u
#define MS          1000000ll
#define ID          UINT64_C(0x0123456789abcdef)
#define HOSTS_MAX   8u
#define CONTENT_MAX (MC_PAYLOAD_DEFAULT - MC_OVERHEAD)

struct host {
    struct mc_blob_in *blob; /* NULL: not yet */
    gint64 begins_at, ended_at;
    unsigned requests;
};

struct net {
    struct mc_sender *sender;
    struct mc_batch batch;
    guint8 *bytes;
    guint32 total;
    gint64 now;
    unsigned n_hosts, loss, request_loss; /* loss: percent */
    struct host hosts[HOSTS_MAX];
};

static unsigned read_page(void *owner, unsigned block, uint32_t page, uint8_t body[SF_PAGE_SIZE], unsigned *total)
{
    return MC_KIND_ZERO;
}

static struct net *new_net(unsigned n_hosts, guint32 total)
{
    struct mc_sender_config config = {
        .shape = { 1, { 16 } }, .max_receivers = HOSTS_MAX, .expected = n_hosts, .push = true, .read = read_page
    };
    struct net *net = g_new0(struct net, 1);
    guint8 *copy = malloc(total); /* as sf-pager does */

    g_assert_nonnull(copy);
    net->now = 1000 * MS;
    net->n_hosts = n_hosts;
    net->total = total;
    net->bytes = g_malloc(total);
    for (guint32 i = 0; i < total; i++) {
        net->bytes[i] = (guint8)g_test_rand_int();
    }
    memcpy(copy, net->bytes, total);
    net->sender = mc_sender_new(&config, net->now);
    mc_sender_set_incarnation(net->sender, INCARNATION);
    mc_sender_set_blob(net->sender, copy, total, ID);
    return net;
}

static void free_net(struct net *net)
{
    for (unsigned i = 0; i < net->n_hosts; i++) {
        mc_blob_in_free(net->hosts[i].blob);
    }
    mc_sender_free(net->sender);
    g_free(net->bytes);
    g_free(net);
}

static bool is_lost(unsigned percent)
{
    return (unsigned)g_test_rand_int_range(0, 100) < percent;
}

static void deliver(struct net *net, struct host *host)
{
    for (unsigned i = 0; i < net->batch.n_datagrams; i++) {
        size_t length;
        const guint8 *content = mc_batch_datagram(&net->batch, i, &length) + MC_HEADER_LENGTH;
        if (host->blob && !is_lost(net->loss)) {
            g_assert_true(mc_blob_in_take(host->blob, INCARNATION, net->batch.first_sequence + i, content,
                                          length - MC_OVERHEAD, net->now));
        }
    }
}

static void look_after(struct net *net, struct host *host, unsigned number)
{
    guint8 content[CONTENT_MAX];
    size_t n;

    if (!host->blob && net->now >= host->begins_at) {
        host->blob = mc_blob_in_new(ID, net->total, MC_PAYLOAD_DEFAULT, number, net->now);
    }
    if (!host->blob || host->ended_at) {
        return;
    }
    n = mc_blob_in_poll(host->blob, content, net->now);
    if (n > 0) {
        host->requests++;
        if (!is_lost(net->request_loss)) {
            g_assert_true(mc_sender_take(net->sender, number, content, n, net->now));
        }
    }
    if (mc_blob_in_state(host->blob) != MC_BLOB_WAITED_FOR) {
        host->ended_at = net->now;
        g_assert_cmpint(mc_blob_in_next(host->blob), ==, INT64_MAX);
    }
}

/* Until all hosts have come to an end. */
static void run(struct net *net)
{
    gint64 limit = net->now + 3000 * MS;
    unsigned ended = 0;

    for (; ended < net->n_hosts; net->now += MS / 4) {
        g_assert_cmpint(net->now, <, limit);
        ended = 0;
        for (unsigned i = 0; i < net->n_hosts; i++) {
            look_after(net, &net->hosts[i], i + 1);
            ended += net->hosts[i].ended_at != 0;
        }
        while (mc_sender_fill(net->sender, &net->batch, net->now) > 0) {
            for (unsigned i = 0; i < net->n_hosts; i++) {
                deliver(net, &net->hosts[i]);
            }
        }
    }
}

static void assert_whole(struct net *net)
{
    for (unsigned i = 0; i < net->n_hosts; i++) {
        g_assert_cmpint(mc_blob_in_state(net->hosts[i].blob), ==, MC_BLOB_WHOLE);
        g_assert_cmpmem(mc_blob_in_bytes(net->hosts[i].blob), net->total, net->bytes, net->total);
    }
}

static struct mc_sender_stats stats_of(struct net *net)
{
    struct mc_sender_stats stats;

    mc_sender_stats(net->sender, &stats);
    return stats;
}

/* One pass, for any number of hosts; no request, and so no page is pushed at hosts that have no snapshot yet. */
static void test_one_pass(void)
{
    static const guint32 totals[] = { 1, 1318, 1319, 80000, MC_BLOB_MAX };

    for (unsigned i = 0; i < G_N_ELEMENTS(totals); i++) {
        struct net *net = new_net(HOSTS_MAX, totals[i]);
        run(net);
        assert_whole(net);
        g_assert_cmpuint(stats_of(net).chunks, ==, mc_chunk_count(totals[i], MC_PAYLOAD_DEFAULT));
        g_assert_cmpuint(stats_of(net).requests + stats_of(net).pages_push + stats_of(net).receivers, ==, 0);
        free_net(net);
    }
}

/* What some host lost goes out again, not all of it. */
static void test_loss(void)
{
    for (unsigned i = 0; i < 40; i++) {
        guint32 total = (guint32)g_test_rand_int_range(1, 200000);
        struct net *net = new_net((unsigned)g_test_rand_int_range(1, HOSTS_MAX + 1), total);
        guint64 n = mc_chunk_count(total, MC_PAYLOAD_DEFAULT);
        net->loss = (unsigned)g_test_rand_int_range(1, 10);
        run(net);
        assert_whole(net);
        g_assert_cmpuint(stats_of(net).chunks, <=, 3 * n + 20);
        g_assert_cmpuint(stats_of(net).pages_push, ==, 0);
        free_net(net);
    }
}

/* A host that hears nothing, or is not heard, is soon told to look elsewhere; the others do not notice. */
static void test_nothing_comes(void)
{
    struct net *net = new_net(1, 80000);

    net->loss = 100;
    run(net);
    g_assert_cmpint(mc_blob_in_state(net->hosts[0].blob), ==, MC_BLOB_GIVEN_UP);
    g_assert_cmpint(net->hosts[0].ended_at, <, (1000 + 150) * MS);
    g_assert_cmpuint(net->hosts[0].requests, ==, 3);
    free_net(net);
    net = new_net(2, 80000);
    net->hosts[1].begins_at = (1000 + 200) * MS; /* after all of it has gone by */
    net->request_loss = 100;
    run(net);
    g_assert_cmpint(mc_blob_in_state(net->hosts[0].blob), ==, MC_BLOB_WHOLE);
    g_assert_cmpint(mc_blob_in_state(net->hosts[1].blob), ==, MC_BLOB_GIVEN_UP);
    free_net(net);
}

static void test_late(void)
{
    struct net *net = new_net(2, 80000);

    net->hosts[1].begins_at = (1000 + 200) * MS;
    run(net);
    assert_whole(net);
    g_assert_cmpuint(net->hosts[1].requests, ==, 1);
    free_net(net);
}

/* Asks for all of it on and on, always as if it had lost it. */
static void test_liar(void)
{
    struct net *net = new_net(1, 80000);
    const guint64 n = mc_chunk_count(80000, MC_PAYLOAD_DEFAULT);
    struct mc_report report = { .incarnation = INCARNATION, .highest = G_MAXINT32 };
    struct mc_run run = { MC_CHUNKS, 0, 4096, 0 };
    guint8 content[CONTENT_MAX];
    size_t length = mc_request_encode(content, &report, &run, 1);

    for (unsigned i = 0; i < 1000; i++, net->now += MS) {
        g_assert_true(mc_sender_take(net->sender, 1, content, length, net->now));
        while (mc_sender_fill(net->sender, &net->batch, net->now) > 0) {
        }
    }
    g_assert_cmpuint(stats_of(net).chunks, ==, n + 4 * n);
    run.page = MC_BLOB_MAX - 1; /* there are not so many */
    length = mc_request_encode(content, &report, &run, 1);
    g_assert_true(mc_sender_take(net->sender, 2, content, length, net->now));
    g_assert_cmpuint(stats_of(net).chunks, ==, n + 4 * n);
    free_net(net);
}

/* Chunks of another blob, or cut in another way, are none of ours. */
static void test_foreign(void)
{
    static const struct {
        guint64 id;
        guint32 total;
        unsigned payload;
    } foreign[] = {
        { ID + 1, 80000, MC_PAYLOAD_DEFAULT },
        { ID, 80001, MC_PAYLOAD_DEFAULT },
        { ID, 80000, MC_PAYLOAD_MIN },
    };
    static const struct mc_announcement said = { 0, { 0, 0 }, 200, 1 };
    struct mc_blob_in *blob = mc_blob_in_new(ID, 80000, MC_PAYLOAD_DEFAULT, 1, 0);
    struct mc_batch *batch = g_new(struct mc_batch, 1);
    guint8 bytes[MC_PAYLOAD_DEFAULT] = { 0 };

    for (unsigned i = 0; i < G_N_ELEMENTS(foreign); i++) {
        size_t length;
        const guint8 *content;
        mc_batch_begin(batch, foreign[i].payload, 1, 1, &said);
        g_assert_true(
            mc_batch_add_chunk(batch, foreign[i].id, foreign[i].total, 0, bytes, mc_chunk_length(foreign[i].payload)));
        mc_batch_finish(batch);
        content = mc_batch_datagram(batch, 0, &length) + MC_HEADER_LENGTH;
        g_assert_true(mc_blob_in_take(blob, INCARNATION, 1, content, length - MC_OVERHEAD, MS));
    }
    g_assert_cmpint(mc_blob_in_next(blob), ==, 10 * MS); /* as if nothing had come */
    mc_blob_in_free(blob);
    g_free(batch);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mc-blob/one-pass", test_one_pass);
    g_test_add_func("/mc-blob/loss", test_loss);
    g_test_add_func("/mc-blob/nothing-comes", test_nothing_comes);
    g_test_add_func("/mc-blob/late", test_late);
    g_test_add_func("/mc-blob/liar", test_liar);
    g_test_add_func("/mc-blob/foreign", test_foreign);
    return g_test_run();
}
