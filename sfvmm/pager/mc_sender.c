/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * First of all, the blob (mc_blob_out.h): every receiver waits for it, and has no use for pages before.
 *
 * Three sources of pages, in this order: what somebody waits for, what hosts fetch ahead, and, when nobody asks, what
 * has not been sent yet: the recorded working set, then everything. A page is sent to all, whoever asked.
 *
 * *Lockstep.* Clones ask for the same pages at nearly the same time. A request says the highest sequence that its
 * receiver had seen. If the page went out with a higher one, the receiver had not seen it when it asked: it is on its
 * way, and is not sent again. If the receiver has seen later datagrams, it has lost the page, and gets it at once. A
 * receiver that sees nothing at all does not wait for ever: what went out more than a moment before its request came is
 * sent again in any case.
 *
 *       sequence   ... 1041 1042 [1043: page 7] 1044 1045 ...
 *       request: page 7, highest 1042         -> on its way
 *       request: page 7, highest 1045         -> lost there, again
 *
 * *Many receivers.* Each datagram says over which time requests are to be spread, how often to report, and how long a
 * request waits here. The first grows when requests come faster than they should, the second is set so that all
 * receivers together send some 200 reports a second.
 *
 * *Bad receivers.* Rate: mc_rate.c looks at most receivers, not at the worst, and each has one voice in a round. Order:
 * mc_peers.c gives them turns and a credit. Who loses far more than the others is dismissed: told to use unicast for a
 * while.
 */
#include "sfvmm/pager/mc_sender.h"

#include <stdlib.h>
#include <string.h>
#include "sfvmm/pager/mc_blob_out.h"
#include "sfvmm/pager/mc_peers.h"
#include "sfvmm/pager/mc_rate.h"

#define NS_PER_S  1000000000ll
#define NS_PER_MS 1000000ll
#define US_PER_S  1000000u
#define PPM       1000000u

#define MIN_RATE (UINT64_C(1) << 20) /* 8 Mbit/s */
#define MAX_RATE UINT64_C(110000000) /* 0.9 Gbit/s: leaves room on a link of 1 Gbit/s */

#define LOCKSTEP_MS 30u /* a datagram's way to a receiver that is busy, and its request's way back */

#define CONTROL_NS         (100 * NS_PER_MS)
#define ACTIVE_NS          (15 * NS_PER_S)
#define REPORTS_PER_S      200u
#define REPORT_MS_MIN      200u
#define REPORT_MS_MAX      60000u
#define ACTIVE_REPORTS     3      /* who has missed as many reports is no longer active */
#define REQUESTS_PER_S     20000u /* more, and the back-off grows; taking one costs some 3 us */
#define BACKOFF_RECEIVERS  32u    /* as many may ask at once */
#define BACKOFF_US         5000u /* with more: some ten times the way there and back, so that few ask before the answer */
#define BACKOFF_US_MAX     2000000u
#define SAMPLE_DATAGRAMS   20u      /* loss of fewer says nothing */
#define REPORTED_MAX       1000000u /* datagrams between two reports: more is no truth */
#define OUTLIER_LOSS       200000u  /* ppm */
#define OUTLIER_TIMES      4u       /* of what is common */
#define OUTLIER_STRIKES    3u
#define DISMISS_NS         (30 * NS_PER_S)
#define DISMISSALS_MAX     64u              /* that wait to be told */
#define CREDIT_SHARE       8                /* of the rate, that one receiver may ask for for ever */
#define LATE_TURN          4u               /* one page in four, when idle push has something as well */
#define HEARTBEAT_FIRST_NS (10 * NS_PER_MS) /* shows a loss at the end of what was sent */
#define HELLO_ANSWER_NS    (5 * NS_PER_MS)  /* many say hello at a time: one answer is enough */
#define HEARTBEAT_NS       (500 * NS_PER_MS)
#define PAGE_BYTES         2200u /* a page's share of a datagram before any has been sent */
#define BLOB_TIMES         4u    /* so many times a receiver may ask for all of the blob; more is no loss */
#define FILL_PAGES         1024u /* looked at for one batch: zero pages and those that can't be had take no room */
#define WAIT_US_MAX        10000000u

struct page_state {
    uint32_t sequence; /* low bits, of the last datagram with a piece of it */
    uint32_t at_ms;    /* 0: never sent */
};

enum reason { BY_DEMAND, BY_PREFETCH, BY_PUSH };

/* The next page to be sent. */
struct choice {
    enum reason reason;
    uint8_t block;
    uint32_t page;
    struct mc_peer *peer; /* NULL: push */
};

struct cursor {
    unsigned run; /* of the working set; then of blocks */
    uint32_t in_run;
};

struct mc_sender {
    struct mc_sender_config config;
    int64_t began;
    uint64_t incarnation, sequence; /* of the last datagram */
    struct mc_rate rate;
    struct mc_peers peers;
    struct mc_blob_out blob;

    uint32_t first_page[MC_BLOCKS_MAX]; /* of a block in the arrays below */
    struct page_state *pages;
    uint8_t *queued; /* bit of each priority */
    uint32_t n_pages, n_queued[MC_PRIORITIES], n_unsent;
    bool has_held;
    struct choice held; /* did not fit into the last batch */

    unsigned n_runs;
    struct sf_pager_run *runs;
    struct cursor set_cursor, all_cursor;
    bool nothing_to_push;
    unsigned late_turn;

    unsigned n_dismissals;
    uint16_t dismissals[DISMISSALS_MAX];

    int64_t control_at, sent_at, heartbeat_at, heartbeat_after;
    unsigned requests_lately, n_reported; /* receivers with enough to say in this round */
    uint32_t backoff_us, page_bytes;
    struct mc_sender_stats stats;
};

struct mc_sender *mc_sender_new(const struct mc_sender_config *config, int64_t now)
{
    struct mc_sender *sender = calloc(1, sizeof(*sender));
    uint64_t max = config->max_rate > 0 ? config->max_rate : MAX_RATE;
    uint64_t min = config->min_rate > 0 ? config->min_rate : MIN_RATE;
    uint64_t start = config->start_rate > 0 ? config->start_rate : max / 4;

    if (sender == NULL) {
        abort();
    }
    sender->config = *config;
    if (config->payload == 0) {
        sender->config.payload = MC_PAYLOAD_DEFAULT;
    }
    min = min < max ? min : max;
    start = start < min ? min : start > max ? max : start;
    mc_rate_init(&sender->rate, min, max, start, now);
    for (unsigned i = 0; i < config->shape.n_blocks; i++) {
        sender->first_page[i] = sender->n_pages;
        sender->n_pages += config->shape.pages[i];
    }
    sender->n_unsent = sender->n_pages;
    sender->pages = calloc(sender->n_pages + 1, sizeof(*sender->pages));
    sender->queued = calloc(sender->n_pages + 1, 1);
    if (sender->pages == NULL || sender->queued == NULL) {
        abort();
    }
    mc_peers_init(&sender->peers, config->max_receivers > 0 ? config->max_receivers : MC_RECEIVERS_MAX,
                  (int64_t)sender->n_pages + sender->n_pages / 4);
    sender->began = now;
    sender->control_at = now + CONTROL_NS;
    sender->heartbeat_at = now;
    sender->sent_at = now - HELLO_ANSWER_NS;
    sender->heartbeat_after = HEARTBEAT_FIRST_NS;
    sender->page_bytes = PAGE_BYTES;
    sender->backoff_us = config->expected > BACKOFF_RECEIVERS ? BACKOFF_US : 0;
    return sender;
}

void mc_sender_free(struct mc_sender *sender)
{
    if (sender == NULL) {
        return;
    }
    mc_peers_clear(&sender->peers);
    mc_blob_out_clear(&sender->blob);
    free(sender->runs);
    free(sender->pages);
    free(sender->queued);
    free(sender);
}

void mc_sender_set_incarnation(struct mc_sender *sender, uint64_t incarnation)
{
    sender->incarnation = incarnation;
}

void mc_sender_set_push(struct mc_sender *sender, bool push)
{
    sender->config.push = push;
}

void mc_sender_set_working_set(struct mc_sender *sender, const struct sf_pager_run *runs, unsigned n)
{
    free(sender->runs);
    sender->runs = calloc(n + 1, sizeof(*runs));
    if (sender->runs == NULL) {
        abort();
    }
    sender->n_runs = 0;
    for (unsigned i = 0; i < n; i++) {
        uint64_t page = runs[i].offset / SF_PAGE_SIZE;
        uint32_t of_block =
            runs[i].block < sender->config.shape.n_blocks ? sender->config.shape.pages[runs[i].block] : 0;
        if (page < of_block && runs[i].pages <= of_block - page) {
            sender->runs[sender->n_runs++] = runs[i];
        }
    }
    sender->set_cursor = (struct cursor){ 0 };
    sender->nothing_to_push = false;
}

void mc_sender_set_blob(struct mc_sender *sender, uint8_t *bytes, uint32_t total, uint64_t id)
{
    mc_blob_out_set(&sender->blob, bytes, total, id, sender->config.payload);
}

/* Of the sender's life, never 0. */
static uint32_t ms_of(const struct mc_sender *sender, int64_t now)
{
    return (uint32_t)((now - sender->began) / NS_PER_MS) + 1;
}

static struct page_state *page_of(const struct mc_sender *sender, unsigned block, uint32_t page)
{
    return &sender->pages[sender->first_page[block] + page];
}

/* ---- what receivers say ---- */

static void mark_queued(struct mc_sender *sender, unsigned block, uint32_t page, enum mc_priority priority, bool on)
{
    uint8_t *queued = &sender->queued[sender->first_page[block] + page], bit = (uint8_t)(1u << priority);

    if (on == ((*queued & bit) != 0)) {
        return;
    }
    *queued ^= bit;
    if (on) {
        sender->n_queued[priority]++;
    } else {
        sender->n_queued[priority]--;
    }
}

static bool on_its_way(const struct mc_sender *sender, const struct mc_wish *wish, uint32_t page)
{
    const struct page_state *state = page_of(sender, wish->block, page);

    return state->at_ms != 0 && (int32_t)(state->sequence - wish->highest) > 0 &&
           (int32_t)(state->at_ms + LOCKSTEP_MS - wish->at_ms) >= 0;
}

static void hasten_heartbeat(struct mc_sender *sender, int64_t now)
{
    int64_t soon = sender->sent_at + HELLO_ANSWER_NS;

    soon = soon > now ? soon : now;
    if (soon < sender->heartbeat_at) {
        sender->heartbeat_at = soon;
    }
}

static bool has_sample(const struct mc_peer *peer)
{
    return peer->round_received + peer->round_missing >= SAMPLE_DATAGRAMS;
}

static void take_report(struct mc_sender *sender, struct mc_peer *peer, const struct mc_report *report, int64_t now)
{
    uint64_t received, missing;
    bool had_sample = has_sample(peer);

    peer->flags = report->flags;
    if (report->incarnation != sender->incarnation) { /* a hello: it has heard nothing yet */
        hasten_heartbeat(sender, now);
        return;
    }
    received = report->received - peer->received;
    missing = report->missing > peer->missing ? report->missing - peer->missing : 0;
    if (report->received < peer->received || received > REPORTED_MAX || missing > REPORTED_MAX) {
        received = missing = 0; /* it has begun anew, or talks nonsense */
    }
    peer->received = report->received;
    peer->missing = report->missing;
    if (now < peer->dismissed_until || (report->flags & (MC_FLAG_UNICAST | MC_FLAG_LEAVING))) {
        return;
    }
    peer->round_received += received;
    peer->round_missing += missing;
    sender->n_reported += !had_sample && has_sample(peer);
}

static void take_run(struct mc_sender *sender, struct mc_peer *peer, const struct mc_run *run, uint64_t highest,
                     int64_t now)
{
    struct mc_wish wish = { run->block, run->pages, run->page, (uint32_t)highest, ms_of(sender, now) };
    bool wanted = false;

    sender->stats.runs++;
    sender->stats.pages_asked += run->pages;
    for (uint32_t page = run->page; page < run->page + run->pages; page++) {
        if (on_its_way(sender, &wish, page)) {
            sender->stats.suppressed++;
        } else {
            wanted = true;
        }
    }
    if (!wanted) {
        return;
    }
    if (!mc_peers_add(&sender->peers, peer, (enum mc_priority)run->priority, &wish)) {
        sender->stats.refused++;
        return;
    }
    for (uint32_t page = run->page; page < run->page + run->pages; page++) {
        if (!on_its_way(sender, &wish, page)) {
            mark_queued(sender, run->block, page, (enum mc_priority)run->priority, true);
        }
    }
}

/* Of a receiver that has no snapshot yet: nothing is pushed for it. */
static void take_chunks(struct mc_sender *sender, struct mc_peer *peer, const struct mc_run *run, uint64_t highest,
                        int64_t now)
{
    uint32_t now_ms = ms_of(sender, now);

    for (uint32_t chunk = run->page; chunk < run->page + run->pages; chunk++) {
        if (peer->chunks == BLOB_TIMES * sender->blob.n_chunks) {
            sender->stats.refused++;
            return;
        }
        peer->chunks += mc_blob_out_ask(&sender->blob, chunk, (uint32_t)highest, now_ms, LOCKSTEP_MS);
    }
}

bool mc_sender_take(struct mc_sender *sender, unsigned receiver, const uint8_t *content, size_t length, int64_t now)
{
    struct mc_peer *peer = mc_peers_get(&sender->peers, receiver);
    struct mc_report report;
    unsigned n_runs;
    uint64_t highest;

    if (peer == NULL || !mc_request_decode(content, length, &sender->config.shape, &report, &n_runs)) {
        sender->stats.refused++;
        return false;
    }
    sender->stats.requests++;
    highest = report.incarnation == sender->incarnation ? report.highest : 0;
    if (n_runs > 0 && mc_request_run(content, 0).priority == MC_CHUNKS) {
        for (unsigned i = 0; i < n_runs; i++) {
            struct mc_run run = mc_request_run(content, i);
            take_chunks(sender, peer, &run, highest, now);
        }
        return true;
    }
    if (peer->heard_at == INT64_MIN) {
        sender->peers.n_active++;
    }
    peer->heard_at = now;
    take_report(sender, peer, &report, now);
    if (report.flags & MC_FLAG_LEAVING) {
        mc_peer_forget(&sender->peers, peer);
        return true;
    }
    if (n_runs > 0) {
        sender->requests_lately++;
    }
    for (unsigned i = 0; i < n_runs; i++) {
        struct mc_run run = mc_request_run(content, i);
        take_run(sender, peer, &run, highest, now);
    }
    return true;
}

/* ---- control ---- */

static unsigned receivers(const struct mc_sender *sender)
{
    return sender->peers.n_active > sender->config.expected ? sender->peers.n_active : sender->config.expected;
}

static uint32_t report_ms(const struct mc_sender *sender)
{
    uint32_t ms = receivers(sender) * 1000u / REPORTS_PER_S;

    return ms < REPORT_MS_MIN ? REPORT_MS_MIN : ms > REPORT_MS_MAX ? REPORT_MS_MAX : ms;
}

static void control_backoff(struct mc_sender *sender, int64_t lasted)
{
    uint32_t least = receivers(sender) > BACKOFF_RECEIVERS ? BACKOFF_US : 0;
    uint64_t bound = (uint64_t)REQUESTS_PER_S * (uint64_t)lasted / NS_PER_S;

    if (sender->requests_lately > bound) {
        sender->backoff_us = sender->backoff_us < BACKOFF_US ? BACKOFF_US : sender->backoff_us * 3 / 2;
    } else if (sender->requests_lately < bound / 2) {
        sender->backoff_us = sender->backoff_us * 4 / 5;
    }
    if (sender->backoff_us > BACKOFF_US_MAX) {
        sender->backoff_us = BACKOFF_US_MAX;
    }
    if (sender->backoff_us < least || sender->backoff_us < BACKOFF_US / 5) {
        sender->backoff_us = least;
    }
    sender->requests_lately = 0;
}

static uint32_t loss_of(const struct mc_peer *peer)
{
    return (uint32_t)(peer->round_missing * PPM / (peer->round_received + peer->round_missing));
}

/* Loses far more than the others, round for round: it would only slow itself and us down. */
static void judge(struct mc_sender *sender, struct mc_peer *peer, int64_t now)
{
    uint32_t loss = loss_of(peer);

    if (sender->peers.n_active < 2 || loss < OUTLIER_LOSS || loss / OUTLIER_TIMES < sender->rate.loss) {
        peer->strikes = 0;
        return;
    }
    if (++peer->strikes < OUTLIER_STRIKES || sender->n_dismissals == DISMISSALS_MAX) {
        return;
    }
    peer->strikes = 0;
    peer->dismissed_until = now + DISMISS_NS;
    sender->dismissals[sender->n_dismissals++] = peer->id;
    sender->stats.dismissed++;
}

/* One word from each receiver that has something to say; of very many, of some from all over their numbers. */
static void end_round(struct mc_sender *sender, int64_t now)
{
    unsigned every = sender->n_reported / MC_RATE_SAMPLES + 1, n = 0;

    for (unsigned i = 1; i <= sender->peers.max; i++) {
        const struct mc_peer *peer = sender->peers.peers[i];
        if (peer != NULL && has_sample(peer) && n++ % every == 0) {
            mc_rate_sample(&sender->rate, loss_of(peer));
        }
    }
    mc_rate_decide(&sender->rate, now);
    for (unsigned i = 1; i <= sender->peers.max; i++) {
        struct mc_peer *peer = sender->peers.peers[i];
        if (peer != NULL && has_sample(peer)) {
            judge(sender, peer, now);
            peer->round_received = peer->round_missing = 0;
        }
    }
    sender->n_reported = 0;
}

static void control(struct mc_sender *sender, int64_t now)
{
    int64_t lasted = now - sender->control_at + CONTROL_NS, silence;

    mc_rate_refill(&sender->rate, now);
    if (now < sender->control_at) {
        return;
    }
    sender->control_at = now + CONTROL_NS;
    silence = (int64_t)report_ms(sender) * ACTIVE_REPORTS * NS_PER_MS;
    mc_peers_count(&sender->peers, now - (silence > ACTIVE_NS ? silence : ACTIVE_NS));
    mc_peers_refill(&sender->peers,
                    1 + (int64_t)(sender->rate.rate / sender->page_bytes) * (lasted / NS_PER_MS) / 1000 / CREDIT_SHARE);
    if (mc_rate_is_due(&sender->rate, sender->n_reported, sender->peers.n_active, now)) {
        end_round(sender, now);
    }
    control_backoff(sender, lasted);
}

static struct mc_announcement announcement(const struct mc_sender *sender)
{
    struct mc_announcement said = { .backoff_us = sender->backoff_us, .report_ms = (uint16_t)report_ms(sender) };
    uint64_t pages = 0;

    said.receivers = (uint16_t)(receivers(sender) < UINT16_MAX ? receivers(sender) : UINT16_MAX);
    for (unsigned i = 0; i < MC_PRIORITIES; i++) {
        uint64_t wait;
        pages += sender->n_queued[i];
        wait = pages * sender->page_bytes * US_PER_S / sender->rate.rate;
        said.wait_us[i] = (uint32_t)(wait < WAIT_US_MAX ? wait : WAIT_US_MAX);
    }
    return said;
}

/* ---- which page next ---- */

static bool push_of_set(struct mc_sender *sender, struct choice *choice)
{
    struct cursor *cursor = &sender->set_cursor;

    for (; cursor->run < sender->n_runs; cursor->run++, cursor->in_run = 0) {
        const struct sf_pager_run *run = &sender->runs[cursor->run];
        while (cursor->in_run < run->pages) {
            uint32_t page = (uint32_t)(run->offset / SF_PAGE_SIZE) + cursor->in_run++;
            if (page_of(sender, run->block, page)->at_ms == 0) {
                *choice = (struct choice){ BY_PUSH, (uint8_t)run->block, page, NULL };
                return true;
            }
        }
    }
    return false;
}

static bool push_of_all(struct mc_sender *sender, struct choice *choice)
{
    struct cursor *cursor = &sender->all_cursor;

    for (; cursor->run < sender->config.shape.n_blocks; cursor->run++, cursor->in_run = 0) {
        while (cursor->in_run < sender->config.shape.pages[cursor->run]) {
            uint32_t page = cursor->in_run++;
            if (page_of(sender, cursor->run, page)->at_ms == 0) {
                *choice = (struct choice){ BY_PUSH, (uint8_t)cursor->run, page, NULL };
                return true;
            }
        }
    }
    return false;
}

static bool may_push(const struct mc_sender *sender)
{
    return sender->config.push && !sender->nothing_to_push && sender->peers.n_active > 0;
}

static bool choose_push(struct mc_sender *sender, struct choice *choice)
{
    if (!may_push(sender)) {
        return false;
    }
    sender->nothing_to_push = !push_of_set(sender, choice) && !push_of_all(sender, choice);
    return !sender->nothing_to_push;
}

/* A page of the class that is not on its way already. */
static bool choose_asked(struct mc_sender *sender, enum mc_class class, struct choice *choice)
{
    struct mc_wish wish;
    struct mc_peer *peer;

    while (mc_peers_next(&sender->peers, class, &wish, &peer)) {
        if (!on_its_way(sender, &wish, wish.page)) {
            *choice =
                (struct choice){ class == MC_CLASS_DEMAND ? BY_DEMAND : BY_PREFETCH, wish.block, wish.page, peer };
            return true;
        }
        for (unsigned i = 0; i < MC_PRIORITIES; i++) {
            mark_queued(sender, wish.block, wish.page, (enum mc_priority)i, false);
        }
    }
    return false;
}

static bool choose(struct mc_sender *sender, struct choice *choice)
{
    bool late_first;

    if (sender->has_held) {
        *choice = sender->held;
        sender->has_held = false;
        return true;
    }
    if (choose_asked(sender, MC_CLASS_DEMAND, choice) || choose_asked(sender, MC_CLASS_PREFETCH, choice)) {
        return true;
    }
    late_first = sender->late_turn++ % LATE_TURN == 0;
    return (late_first && choose_asked(sender, MC_CLASS_LATE, choice)) || choose_push(sender, choice) ||
           choose_asked(sender, MC_CLASS_LATE, choice);
}

/* ---- sending ---- */

static bool is_asked(const struct mc_sender *sender)
{
    return !mc_peers_is_empty(&sender->peers, MC_CLASS_PREFETCH) || !mc_peers_is_empty(&sender->peers, MC_CLASS_LATE);
}

/* The smallest batch: what a page that does not shrink needs. */
static unsigned least_datagrams(const struct mc_sender *sender)
{
    return SF_PAGE_SIZE / (sender->config.payload - MC_OVERHEAD - MC_ANNOUNCEMENT_LENGTH - MC_PAGE_HEADER_LENGTH -
                           MC_FRAGMENT_UNIT) +
           1;
}

int64_t mc_sender_next(struct mc_sender *sender, int64_t now)
{
    int64_t burst = mc_rate_burst(&sender->rate), batch = (int64_t)sender->config.payload * MC_BATCH_DATAGRAMS;

    mc_rate_refill(&sender->rate, now);
    if (sender->has_held || sender->n_dismissals > 0 || sender->blob.n_due > 0 ||
        !mc_peers_is_empty(&sender->peers, MC_CLASS_DEMAND)) {
        return mc_rate_when(&sender->rate, 1);
    }
    if (is_asked(sender) || may_push(sender)) {
        return mc_rate_when(&sender->rate, burst / 2 < batch ? burst / 2 : batch);
    }
    return sender->heartbeat_at;
}

static void note_sent(struct mc_sender *sender, const struct choice *choice, uint64_t sequence, int64_t now)
{
    struct page_state *state = page_of(sender, choice->block, choice->page);

    for (unsigned i = 0; i < MC_PRIORITIES; i++) {
        mark_queued(sender, choice->block, choice->page, (enum mc_priority)i, false);
    }
    if (choice->peer != NULL) {
        choice->peer->credit--;
    }
    if (state->at_ms != 0) {
        sender->stats.pages_again++;
    } else {
        sender->n_unsent--;
    }
    state->sequence = (uint32_t)sequence;
    state->at_ms = ms_of(sender, now);
}

static void count_sent(struct mc_sender *sender, enum reason reason)
{
    sender->stats.pages_demand += reason == BY_DEMAND;
    sender->stats.pages_prefetch += reason == BY_PREFETCH;
    sender->stats.pages_push += reason == BY_PUSH;
}

/*
 * false: the batch is full. A page that can't be had counts as sent, but adds no record: who needs it will notice, and
 * use unicast.
 */
static bool add(struct mc_sender *sender, struct mc_batch *batch, const struct choice *choice, unsigned *records,
                int64_t now)
{
    uint8_t body[SF_PAGE_SIZE];
    unsigned total = 0, kind;

    kind = sender->config.read(sender->config.owner, choice->block, choice->page, body, &total);
    if (kind == MC_KIND_ZERO
            ? !mc_batch_add_zero(batch, choice->block, choice->page, 1)
            : kind != MC_KIND_PAD && !mc_batch_add_page(batch, kind, choice->block, choice->page, body, total)) {
        return false;
    }
    if (kind != MC_KIND_PAD) {
        count_sent(sender, choice->reason);
        ++*records;
    }
    note_sent(sender, choice, batch->first_sequence + batch->n_datagrams - 1, now);
    return true;
}

static unsigned add_dismissals(struct mc_sender *sender, struct mc_batch *batch)
{
    unsigned n = 0;

    while (sender->n_dismissals > 0 &&
           mc_batch_add_dismiss(batch, sender->dismissals[sender->n_dismissals - 1], DISMISS_NS / NS_PER_MS)) {
        sender->n_dismissals--;
        n++;
    }
    return n;
}

static unsigned add_chunks(struct mc_sender *sender, struct mc_batch *batch, int64_t now)
{
    unsigned n = 0;

    while (mc_blob_out_add(&sender->blob, batch, ms_of(sender, now))) {
        n++;
    }
    sender->stats.chunks += n;
    return n;
}

static void finish(struct mc_sender *sender, struct mc_batch *batch)
{
    mc_batch_finish(batch);
    sender->sequence += batch->n_datagrams;
    sender->stats.datagrams += batch->n_datagrams;
    sender->stats.bytes += batch->length;
    mc_rate_charge(&sender->rate, batch->length);
}

static void set_heartbeat(struct mc_sender *sender, bool had_content, int64_t now)
{
    sender->heartbeat_after = had_content                                  ? HEARTBEAT_FIRST_NS
                              : sender->heartbeat_after * 2 < HEARTBEAT_NS ? sender->heartbeat_after * 2
                                                                           : HEARTBEAT_NS;
    sender->heartbeat_at = now + sender->heartbeat_after;
    sender->sent_at = now;
}

unsigned mc_sender_fill(struct mc_sender *sender, struct mc_batch *batch, int64_t now)
{
    struct mc_announcement said;
    struct choice choice;
    int64_t allowed;
    unsigned records, chunks, pages = 0;

    control(sender, now);
    if (now < mc_sender_next(sender, now)) {
        return 0;
    }
    said = announcement(sender);
    allowed = sender->rate.tokens / sender->config.payload;
    if (allowed < least_datagrams(sender)) {
        allowed = least_datagrams(sender);
    }
    mc_batch_begin(batch, sender->config.payload,
                   (unsigned)(allowed < MC_BATCH_DATAGRAMS ? allowed : MC_BATCH_DATAGRAMS), sender->sequence + 1,
                   &said);
    records = add_dismissals(sender, batch);
    chunks = add_chunks(sender, batch, now);
    records += chunks;
    for (; pages < FILL_PAGES && choose(sender, &choice); pages++) {
        if (!add(sender, batch, &choice, &records, now)) {
            sender->held = choice;
            sender->has_held = true;
            break;
        }
    }
    if (records == 0 && now < sender->heartbeat_at) {
        return 0;
    }
    finish(sender, batch);
    set_heartbeat(sender, records > 0, now);
    if (pages > 0 && chunks == 0) {
        sender->page_bytes = (uint32_t)((sender->page_bytes * 7ull + batch->length / pages) / 8) + 1;
    }
    return batch->n_datagrams;
}

void mc_sender_not_sent(struct mc_sender *sender, int64_t now)
{
    mc_rate_choked(&sender->rate);
}

void mc_sender_stats(const struct mc_sender *sender, struct mc_sender_stats *stats)
{
    *stats = sender->stats;
    stats->rate = sender->rate.rate;
    stats->loss_ppm = sender->rate.loss;
    stats->receivers = sender->peers.n_active;
    stats->pushed_all = sender->n_unsent == 0;
}
