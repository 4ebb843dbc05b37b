/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The origin's and the receiver's logic, each by itself: what one datagram or one moment does. Groups as a whole:
 * tests/multicast.
 */
#include <glib.h>
#include <string.h>
#include "sfvmm/pager/mc_receiver.h"
#include "sfvmm/pager/mc_sender.h"

#define PAGES       256u
#define INCARNATION 5u
#define MS          1000000ll
#define S           1000000000ll
#define CONTENT_MAX (MC_PAYLOAD_DEFAULT - MC_OVERHEAD)

/* ---- the origin ---- */

struct origin {
    struct mc_sender *sender;
    struct mc_batch batch;
    gint64 now;
    guint64 highest; /* that the receivers have seen */
};

static unsigned read_page(void *owner, unsigned block, uint32_t page, uint8_t body[SF_PAGE_SIZE], unsigned *total)
{
    if (page == PAGES - 1) {
        return MC_KIND_PAD;
    }
    *total = 500;
    memset(body, (int)page, *total);
    return MC_KIND_LZ4;
}

static struct origin *new_origin(bool push)
{
    struct mc_sender_config config = { .shape = { 1, { PAGES } }, .max_receivers = 9, .push = push, .read = read_page };
    struct origin *origin = g_new0(struct origin, 1);

    origin->now = S;
    origin->sender = mc_sender_new(&config, origin->now);
    mc_sender_set_incarnation(origin->sender, INCARNATION);
    return origin;
}

static void free_origin(struct origin *origin)
{
    mc_sender_free(origin->sender);
    g_free(origin);
}

static void ask(struct origin *origin, unsigned receiver, enum mc_priority priority, guint32 page, guint16 pages)
{
    struct mc_report report = { INCARNATION, origin->highest, origin->highest, 0, 0 };
    struct mc_run run = { (uint8_t)priority, 0, pages, page };
    uint8_t content[CONTENT_MAX];
    size_t n = mc_request_encode(content, &report, &run, 1);

    g_assert_true(mc_sender_take(origin->sender, receiver, content, n, origin->now));
}

/* Pages of the next batch, in order; time goes on as far as needed, at most that long. */
static GArray *sent(struct origin *origin, gint64 at_most)
{
    GArray *pages = g_array_new(FALSE, FALSE, sizeof(guint32));
    gint64 end = origin->now + at_most;

    while (mc_sender_fill(origin->sender, &origin->batch, origin->now) == 0 && origin->now < end) {
        origin->now += MS;
    }
    for (unsigned i = 0; i < origin->batch.n_datagrams; i++) {
        struct mc_record record;
        size_t length, at = 0;
        const uint8_t *content = mc_batch_datagram(&origin->batch, i, &length) + MC_HEADER_LENGTH;
        while (mc_data_next(content, length - MC_OVERHEAD, &at, &record)) {
            if (record.offset == 0 && record.kind == MC_KIND_LZ4) {
                g_array_append_val(pages, record.page);
            }
        }
    }
    origin->batch.n_datagrams = 0;
    return pages;
}

static void assert_pages(GArray *pages, const guint32 *want, unsigned n)
{
    g_assert_cmpuint(pages->len, ==, n);
    g_assert_cmpmem(pages->data, pages->len * sizeof(guint32), want, n * sizeof(guint32));
    g_array_unref(pages);
}

static void test_lockstep(void)
{
    struct origin *origin = new_origin(false);
    static const guint32 seven[] = { 7 };

    ask(origin, 1, MC_DEMAND, 7, 1);
    ask(origin, 2, MC_DEMAND, 7, 1);
    assert_pages(sent(origin, 5 * MS), seven, 1);
    ask(origin, 3, MC_DEMAND, 7, 1); /* had not seen it when it asked */
    assert_pages(sent(origin, 5 * MS), NULL, 0);
    origin->highest = origin->batch.first_sequence; /* has seen it go by */
    ask(origin, 3, MC_DEMAND, 7, 1);
    assert_pages(sent(origin, 5 * MS), seven, 1);
    origin->highest = 0; /* hears nothing, but asks on */
    origin->now += 100 * MS;
    ask(origin, 4, MC_DEMAND, 7, 1);
    assert_pages(sent(origin, 5 * MS), seven, 1);
    free_origin(origin);
}

static void test_order(void)
{
    struct origin *origin = new_origin(true);
    struct sf_pager_run run = { 0, 2, 50 * SF_PAGE_SIZE };
    static const guint32 want[] = { 20, 22, 21, 10, 11, 50, 51, 0, 1 };
    GArray *pages;

    mc_sender_set_working_set(origin->sender, &run, 1);
    ask(origin, 1, MC_PREFETCH, 10, 2);
    ask(origin, 1, MC_DEMAND, 20, 2);
    ask(origin, 2, MC_DEMAND, 22, 1); /* takes turns with the other's two */
    pages = sent(origin, 50 * MS);
    g_assert_cmpuint(pages->len, >, G_N_ELEMENTS(want));
    g_array_set_size(pages, G_N_ELEMENTS(want));
    assert_pages(pages, want, G_N_ELEMENTS(want));
    free_origin(origin);
}

static void test_push_is_once(void)
{
    struct origin *origin = new_origin(true);
    unsigned n = 0, count[PAGES] = { 0 };
    struct mc_sender_stats stats;
    GArray *nothing = sent(origin, 20 * MS);

    g_assert_cmpuint(nothing->len, ==, 0); /* nobody is there yet */
    g_array_unref(nothing);
    ask(origin, 1, MC_DEMAND, 3, 1);
    for (unsigned turn = 0; turn < 100; turn++) {
        GArray *pages = sent(origin, 5 * MS);
        for (unsigned i = 0; i < pages->len; i++, n++) {
            count[g_array_index(pages, guint32, i)]++;
        }
        g_array_unref(pages);
    }
    g_assert_cmpuint(n, ==, PAGES - 1); /* one can't be had */
    for (unsigned i = 0; i < PAGES - 1; i++) {
        g_assert_cmpuint(count[i], ==, 1);
    }
    mc_sender_stats(origin->sender, &stats);
    g_assert_true(stats.pushed_all);
    free_origin(origin);
}

static void test_absurd_requests(void)
{
    struct origin *origin = new_origin(false);
    struct mc_report report = { INCARNATION, 1, 1, 0, 0 };
    struct mc_run runs[] = { { MC_DEMAND, 0, 1, 3 }, { MC_DEMAND, 0, 1, PAGES } };
    uint8_t content[CONTENT_MAX];
    size_t n = mc_request_encode(content, &report, runs, 2);

    g_assert_false(mc_sender_take(origin->sender, 1, content, n, origin->now)); /* nothing of it is done */
    n = mc_request_encode(content, &report, runs, 1);
    g_assert_false(mc_sender_take(origin->sender, 0, content, n, origin->now));
    g_assert_false(mc_sender_take(origin->sender, 10, content, n, origin->now));
    g_assert_false(mc_sender_take(origin->sender, 1, content, n - 1, origin->now));
    assert_pages(sent(origin, 5 * MS), NULL, 0);
    free_origin(origin);
}

static void test_pace(void)
{
    struct origin *origin = new_origin(false);
    struct mc_sender_stats before, after;
    gint64 begin = origin->now;

    mc_sender_stats(origin->sender, &before);
    for (unsigned i = 0; i < 400; i++) {
        origin->highest = origin->batch.first_sequence + 100; /* always lost */
        ask(origin, 1 + i % 9, MC_PREFETCH, 0, PAGES - 1);
        g_array_unref(sent(origin, 5 * MS));
    }
    mc_sender_stats(origin->sender, &after);
    g_assert_cmpfloat((double)after.bytes, >, (double)before.rate * (double)(origin->now - begin) / S * 0.5);
    g_assert_cmpfloat((double)after.bytes, <, (double)before.rate * (double)(origin->now - begin) / S * 1.1 + 200000);
    free_origin(origin);
}

/* ---- a receiver ---- */

struct host {
    struct mc_receiver *receiver;
    bool has[PAGES];
    unsigned fallen, pages, asked;
    guint64 sequence;
    gint64 now;
    enum mc_state state;
};

static bool lacks(void *owner, unsigned block, uint32_t page)
{
    return !((struct host *)owner)->has[page];
}

static bool page_came(void *owner, unsigned block, uint32_t page, unsigned pages, const struct mc_body *body,
                      bool asked)
{
    struct host *host = owner;

    for (unsigned i = 0; i < pages; i++) {
        host->has[page + i] = true;
    }
    host->pages += pages;
    host->asked += asked ? pages : 0;
    return true;
}

static void fall_back(void *owner, unsigned block, uint32_t page, unsigned pages, enum mc_priority priority)
{
    ((struct host *)owner)->fallen += pages;
}

static void changed(void *owner, enum mc_state state, const char *reason)
{
    ((struct host *)owner)->state = state;
}

static struct host *new_host(void)
{
    struct host *host = g_new0(struct host, 1);
    struct mc_receiver_config config = { .shape = { 1, { PAGES } },
                                         .id = 3,
                                         .seed = 42,
                                         .lacks = lacks,
                                         .page = page_came,
                                         .fall_back = fall_back,
                                         .changed = changed,
                                         .owner = host };

    host->now = S;
    host->receiver = mc_receiver_new(&config, host->now);
    return host;
}

static void free_host(struct host *host)
{
    mc_receiver_free(host->receiver);
    g_free(host);
}

/* One datagram of the origin, after `lost` others. pages: a run of zeros, 0: a heartbeat. */
static void hear(struct host *host, guint32 backoff_us, guint32 page, unsigned pages, unsigned lost)
{
    struct mc_announcement said = { .backoff_us = backoff_us, .report_ms = 200, .receivers = 100 };
    struct mc_batch *batch = g_new(struct mc_batch, 1);
    size_t length;
    const uint8_t *bytes;

    mc_batch_begin(batch, MC_PAYLOAD_DEFAULT, 1, 1, &said);
    if (pages > 0) {
        mc_batch_add_zero(batch, 0, page, pages);
    }
    mc_batch_finish(batch);
    bytes = mc_batch_datagram(batch, 0, &length);
    host->sequence += 1 + lost;
    g_assert_true(mc_receiver_take(host->receiver, INCARNATION, host->sequence, bytes + MC_HEADER_LENGTH,
                                   length - MC_OVERHEAD, host->now));
    g_free(batch);
}

/* What it sends now: number of runs, -1: nothing. */
static int said_now(struct host *host, struct mc_report *report, struct mc_run *first)
{
    const struct mc_shape shape = { 1, { PAGES } };
    uint8_t content[CONTENT_MAX];
    size_t n = mc_receiver_poll(host->receiver, content, host->now);
    unsigned n_runs;

    if (n == 0) {
        return -1;
    }
    g_assert_true(mc_request_decode(content, n, &shape, report, &n_runs));
    if (n_runs > 0) {
        *first = mc_request_run(content, 0);
    }
    return (int)n_runs;
}

/* The next that it sends, whenever that is. */
static int said_next(struct host *host, struct mc_report *report, struct mc_run *first)
{
    int n;

    while ((n = said_now(host, report, first)) < 0) {
        gint64 next = mc_receiver_next(host->receiver);
        g_assert_cmpint(next, <, INT64_MAX);
        host->now = MAX(next, host->now);
    }
    return n;
}

static void test_hello(void)
{
    struct host *host = new_host();
    struct mc_report report;
    struct mc_run run;

    g_assert_cmpint(said_now(host, &report, &run), ==, 0);
    g_assert_cmpuint(report.incarnation, ==, 0);
    hear(host, 0, 0, 0, 0);
    g_assert_cmpint(host->state, ==, MC_MULTICAST);
    host->now += 3 * S;
    while (said_now(host, &report, &run) >= 0) {
    }
    g_assert_cmpint(host->state, ==, MC_UNICAST); /* silence */
    mc_receiver_want(host->receiver, 0, 0, 5, MC_DEMAND, host->now);
    g_assert_cmpuint(host->fallen, ==, 5);
    hear(host, 0, 9, 2, 0); /* but listens */
    g_assert_cmpuint(host->pages, ==, 2);
    for (unsigned i = 0; i < 100 && host->state == MC_UNICAST; i++) {
        said_next(host, &report, &run);
    }
    g_assert_cmpint(host->state, ==, MC_PROBING);
    free_host(host);
}

static void test_nothing_comes(void)
{
    struct host *host = new_host();
    struct mc_report report;
    struct mc_run run;
    gint64 begin = host->now;

    mc_receiver_want(host->receiver, 0, 4, 3, MC_DEMAND, host->now);
    while (host->state == MC_PROBING) {
        said_next(host, &report, &run);
    }
    g_assert_cmpint(host->now - begin, <, 2 * S);
    g_assert_cmpuint(host->fallen, ==, 3);
    free_host(host);
}

static void test_ask(void)
{
    struct host *host = new_host();
    struct mc_report report;
    struct mc_run run;
    gint64 before;

    said_now(host, &report, &run);
    hear(host, 0, 0, 0, 0);
    hear(host, 0, 0, 0, 3);
    mc_receiver_want(host->receiver, 0, 40, 3, MC_DEMAND, host->now);
    g_assert_cmpint(said_now(host, &report, &run), ==, 1);
    g_assert_true(run.page == 40 && run.pages == 3 && run.priority == MC_DEMAND);
    g_assert_true(report.highest == 5 && report.received == 2 && report.missing == 3);
    hear(host, 0, 41, 1, 0);
    before = host->now;
    while (said_next(host, &report, &run) == 0) {
    }
    g_assert_true(run.page == 40 && run.pages == 1); /* again, what is still missing */
    g_assert_cmpint(host->now - before, >=, 40 * MS);
    while (host->fallen < 2) {
        said_now(host, &report, &run);
        host->now += MS;
    }
    g_assert_cmpint(host->now - before, <, S);
    g_assert_cmpint(host->state, ==, MC_MULTICAST);
    free_host(host);
}

static void test_suppression(void)
{
    struct host *host = new_host();
    struct mc_receiver_stats stats;
    struct mc_report report;
    struct mc_run run;

    said_now(host, &report, &run);
    hear(host, 50000, 0, 0, 0); /* there are many: wait */
    mc_receiver_want(host->receiver, 0, 40, 3, MC_DEMAND, host->now);
    g_assert_cmpint(said_now(host, &report, &run), ==, -1);
    hear(host, 50000, 39, 9, 0); /* somebody else was faster */
    host->now += 60 * MS;
    g_assert_cmpint(said_now(host, &report, &run), <=, 0);
    mc_receiver_stats(host->receiver, &stats);
    g_assert_cmpuint(stats.suppressed, ==, 3);
    g_assert_cmpuint(stats.runs, ==, 0);
    free_host(host);
}

static void test_prefetch_is_bounded(void)
{
    struct host *host = new_host();
    struct mc_receiver_stats stats;
    struct mc_report report;
    struct mc_run run;

    said_now(host, &report, &run);
    hear(host, 0, 0, 0, 0);
    memset(host->has + 10, true, 20);
    mc_receiver_want(host->receiver, 0, 0, PAGES, MC_PREFETCH, host->now);
    mc_receiver_want(host->receiver, 0, 100, 1, MC_DEMAND, host->now);
    g_assert_cmpint(said_now(host, &report, &run), >=, 3);
    g_assert_cmpuint(run.page, ==, 100);
    g_assert_cmpuint(run.priority, ==, MC_DEMAND);
    mc_receiver_stats(host->receiver, &stats);
    g_assert_cmpuint(stats.pending, ==, PAGES - 20);
    hear(host, 0, 0, PAGES, 0);
    mc_receiver_stats(host->receiver, &stats);
    g_assert_cmpuint(stats.pending, ==, 0);
    free_host(host);
}

static void test_too_lossy(void)
{
    struct host *host = new_host();

    hear(host, 0, 0, 0, 0);
    for (unsigned i = 0; i < 400 && host->state == MC_MULTICAST; i++) {
        host->now += 10 * MS;
        hear(host, 0, 0, 0, 1); /* every other one is lost */
    }
    g_assert_cmpint(host->state, ==, MC_UNICAST);
    free_host(host);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mc/sender/lockstep", test_lockstep);
    g_test_add_func("/mc/sender/order", test_order);
    g_test_add_func("/mc/sender/push-is-once", test_push_is_once);
    g_test_add_func("/mc/sender/absurd-requests", test_absurd_requests);
    g_test_add_func("/mc/sender/pace", test_pace);
    g_test_add_func("/mc/receiver/hello", test_hello);
    g_test_add_func("/mc/receiver/nothing-comes", test_nothing_comes);
    g_test_add_func("/mc/receiver/ask", test_ask);
    g_test_add_func("/mc/receiver/suppression", test_suppression);
    g_test_add_func("/mc/receiver/prefetch-is-bounded", test_prefetch_is_bounded);
    g_test_add_func("/mc/receiver/too-lossy", test_too_lossy);
    return g_test_run();
}
