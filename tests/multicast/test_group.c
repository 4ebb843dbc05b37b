/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Groups as a whole on a virtual network: whatever it loses, doubles, reorders or forges, everybody ends with the right
 * content; and no receiver's trouble is another's.
 */
#include "virtual_group.h"

#define MBIT 125000u

static const struct vg_config ordinary = {
    .n = 8,
    .pages = 2048,
    .job_pages = 512,
    .think_ns = 200000,
    .link_rate = 1000 * MBIT,
    .link_queue = 500000,
    .max_rate = 900 * MBIT,
    .latency_ns = 100000,
    .jitter_ns = 50000,
    .unicast_ns = 5 * VG_MS,
    .verify = true,
    .seed = 1,
    .give_up_ns = 600 * VG_S,
};

static void run(const struct vg_config *config, struct vg_result *result)
{
    vg_run(config, result);
    g_assert_true(result->complete);
    g_assert_cmpuint(result->wrong_pages, ==, 0);
}

static gint64 median_job(const struct vg_config *config, const struct vg_result *result)
{
    GArray *times = g_array_new(FALSE, FALSE, sizeof(gint64));
    gint64 median;

    for (unsigned i = 0; i < config->n; i++) {
        gint64 *sorted;
        unsigned at = times->len;
        if (result->job_ns[i] == 0) {
            continue;
        }
        g_array_append_val(times, result->job_ns[i]);
        sorted = (gint64 *)(void *)times->data;
        for (; at > 0 && sorted[at - 1] > sorted[at]; at--) {
            gint64 other = sorted[at];
            sorted[at] = sorted[at - 1];
            sorted[at - 1] = other;
        }
    }
    median = g_array_index(times, gint64, times->len / 2);
    g_array_unref(times);
    return median;
}

static void test_bytes(void)
{
    struct vg_config config = ordinary;
    struct vg_result one, many;

    config.n = 1;
    run(&config, &one);
    config.n = 32;
    run(&config, &many);
    g_test_message("1: %" G_GUINT64_FORMAT " bytes, 32: %" G_GUINT64_FORMAT " bytes", one.sender.bytes,
                   many.sender.bytes);
    g_assert_cmpuint(many.sender.bytes * 100, <, one.sender.bytes * 120);
    g_assert_cmpuint(many.unicast_pages, ==, 0);
    vg_result_clear(&one);
    vg_result_clear(&many);
}

static void test_loss(void)
{
    struct vg_config config = ordinary;
    struct vg_result result;

    config.want_all = config.push = true;
    config.loss = config.request_loss = 50000;
    run(&config, &result);
    g_test_message("5 %% loss: %" G_GUINT64_FORMAT " pages sent, %" G_GUINT64_FORMAT " again, %" G_GUINT64_FORMAT
                   " by unicast, %.3f s",
                   result.sender.pages_demand + result.sender.pages_prefetch + result.sender.pages_push,
                   result.sender.pages_again, result.unicast_pages, (double)result.end_ns / VG_S);
    g_assert_cmpuint(result.unicast_pages, <, config.pages * config.n / 100);
    vg_result_clear(&result);
}

/* Any network, through AEAD: nothing but the right content comes out, and all of it. */
static void test_any_network(void)
{
    for (unsigned i = 0; i < 24; i++) {
        struct vg_config config = ordinary;
        struct vg_result result;
        config.seed = g_test_rand_int() | (guint64)i << 32;
        config.n = (unsigned)g_test_rand_int_range(1, 8);
        config.pages = (unsigned)g_test_rand_int_range(1, 600);
        config.job_pages = (unsigned)g_test_rand_int_range(0, (gint32)config.pages + 1);
        config.want_all = g_test_rand_bit();
        config.push = g_test_rand_bit();
        config.link_rate = (guint64)g_test_rand_int_range(8, 4000) * MBIT;
        config.link_queue = (guint64)g_test_rand_int_range(60000, 2000000);
        config.latency_ns = g_test_rand_int_range(10000, 20000000);
        config.jitter_ns = g_test_rand_int_range(0, 10000000);
        config.loss = (guint32)g_test_rand_int_range(0, 300000) * g_test_rand_bit();
        config.request_loss = (guint32)g_test_rand_int_range(0, 300000) * g_test_rand_bit();
        config.duplicates = (guint32)g_test_rand_int_range(0, 100000);
        config.forged = (guint32)g_test_rand_int_range(0, 20000);
        config.max_pending = (unsigned)g_test_rand_int_range(4, 600);
        config.max_partial = (unsigned)g_test_rand_int_range(1, 64);
        config.sealed = true;
        run(&config, &result);
        vg_result_clear(&result);
    }
}

static void test_congestion(void)
{
    struct vg_config config = ordinary;
    struct vg_result result;

    config.pages = 30000;
    config.job_pages = 16;
    config.want_all = config.push = true;
    config.verify = false;
    config.link_rate = 200 * MBIT;
    config.link_queue = 200000;
    run(&config, &result);
    g_test_message(
        "200 Mbit/s link, 900 allowed: %.3f s, the link alone %.3f, %.1f %% dropped, rate at the end %.0f Mbit/s",
        (double)result.end_ns / VG_S, (double)result.sender.bytes / (double)config.link_rate,
        100.0 * (double)result.link_drops / (double)result.sender.datagrams, (double)result.sender.rate / MBIT);
    g_assert_cmpuint(result.unicast_pages, <, config.pages * config.n / 100);
    g_assert_cmpfloat((double)result.link_drops, <, (double)result.sender.datagrams * 0.1);
    g_assert_cmpfloat((double)result.end_ns / VG_S, <, (double)result.sender.bytes / (double)config.link_rate * 1.5);
    vg_result_clear(&result);
}

static struct vg_behaviour one_lossy(unsigned receiver)
{
    return (struct vg_behaviour){ .loss = receiver == 0 ? 500000 : 0 };
}

static struct vg_behaviour one_liar(unsigned receiver)
{
    return (struct vg_behaviour){ .lies = receiver == 0 };
}

static struct vg_behaviour one_stalls(unsigned receiver)
{
    return (struct vg_behaviour){ .stalls_from = receiver == 0 ? 20 * VG_MS : 0,
                                  .stalls_until = receiver == 0 ? VG_S : 0 };
}

static struct vg_behaviour one_deaf(unsigned receiver)
{
    return (struct vg_behaviour){ .deaf = receiver == 0 };
}

static struct vg_behaviour come_and_go(unsigned receiver)
{
    return (struct vg_behaviour){ .joins_at = receiver * 30 * VG_MS,
                                  .leaves_at = receiver % 3 == 2 ? receiver * 30 * VG_MS + 60 * VG_MS : 0 };
}

/* The job may take at most this much, in per cent, of what it takes without them. */
static void with_one(struct vg_behaviour (*behaviour)(unsigned), const char *name, unsigned at_most)
{
    struct vg_config config = ordinary;
    struct vg_result good, bad;
    gint64 before, after;

    config.push = true;
    run(&config, &good);
    config.behaviour = behaviour;
    run(&config, &bad);
    before = median_job(&config, &good);
    after = median_job(&config, &bad);
    g_test_message("%s: job %.1f -> %.1f ms, unicast %" G_GUINT64_FORMAT " pages, dismissed %" G_GUINT64_FORMAT, name,
                   (double)before / VG_MS, (double)after / VG_MS, bad.unicast_pages, bad.sender.dismissed);
    g_assert_cmpint(after * 100, <, before * at_most);
    vg_result_clear(&good);
    vg_result_clear(&bad);
}

static void test_lossy_one(void)
{
    with_one(one_lossy, "one loses half", 125);
}

static void test_liar(void)
{
    with_one(one_liar, "one lies", 125);
}

static void test_stall(void)
{
    with_one(one_stalls, "one stalls", 125);
}

static void test_deaf(void)
{
    with_one(one_deaf, "one hears nothing", 125);
}

static void test_late_join(void)
{
    with_one(come_and_go, "they come and go", 200); /* who comes late has missed what was pushed */
}

static void test_many(void)
{
    struct vg_config config = ordinary;
    struct vg_result result;

    config.n = 300;
    config.knows_n = true;
    config.verify = false;
    config.max_pending = 128;
    config.max_partial = 8;
    config.push = true;
    config.loss = 1000;
    run(&config, &result);
    g_test_message("300: %u requests in the worst 10 ms, %" G_GUINT64_FORMAT " in %.3f s", result.peak_requests,
                   result.requests, (double)result.end_ns / VG_S);
    g_assert_cmpuint(result.peak_requests, <, 100);
    vg_result_clear(&result);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mc/group/bytes", test_bytes);
    g_test_add_func("/mc/group/loss", test_loss);
    g_test_add_func("/mc/group/any-network", test_any_network);
    g_test_add_func("/mc/group/congestion", test_congestion);
    g_test_add_func("/mc/group/lossy-one", test_lossy_one);
    g_test_add_func("/mc/group/liar", test_liar);
    g_test_add_func("/mc/group/stall", test_stall);
    g_test_add_func("/mc/group/deaf", test_deaf);
    g_test_add_func("/mc/group/late-join", test_late_join);
    g_test_add_func("/mc/group/many", test_many);
    return g_test_run();
}
