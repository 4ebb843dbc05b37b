/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *             hello                 first datagram
 *   PROBING --------> (nothing) --> MULTICAST ------------------------------------+
 *      |   nothing for PROBE_NS         |  silence, loss, no answers, dismissed   |
 *      v                                v                                         |
 *   UNICAST <---------------------------+        asks for nothing, takes what comes
 *      |                                                                          |
 *      +-- after RETRY_FIRST_NS, twice as long each time --> PROBING <------------+
 *
 * *Wanted pages.* Demand goes straight to the pending set, prefetch waits in a list of runs and enters it a bounded
 * number at a time. A pending page is asked for when it is due: at once, or, when the origin says that there are many
 * receivers, after a random part of the back-off; mostly late, so that few ask first and the others see the answer. A
 * page that comes meanwhile, whoever asked, is no longer pending. Asked for, it is due again after what the origin
 * says that requests wait, plus ASK_AGAIN_NS, twice as long each time and never just that long, and is given to
 * unicast after a few times.
 *
 * *Loss* is counted by sequences that are missing between the first and the highest that have come. A page of which
 * fragments have come, but no more for FRAGMENTS_LATE datagrams, has lost one: if it is pending it is due soon. So is,
 * when sequences are missing, what somebody waits for and should have come by now.
 *
 * *Bodies* that come whole go to page() where they stand in the datagram; fragments are gathered in mc_partial.
 */
#include "sfvmm/pager/mc_receiver.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "sfvmm/pager/mc_partial.h"
#include "sfvmm/pager/mc_pending.h"

#define NS_PER_S  1000000000ll
#define NS_PER_MS 1000000ll
#define NS_PER_US 1000ll
#define PPM       1000000u

#define MAX_PARTIAL 64u
#define MAX_PENDING 1024u /* half of them for prefetch: 2 MiB, what 1 Gbit/s carries in 17 ms */

#define HELLO_NS        (250 * NS_PER_MS) /* between hellos */
#define HELLO_SPREAD_NS (100 * NS_PER_US) /* for each receiver that is expected: 10,000 a second */
#define HELLO_AT_ONCE   32u               /* receivers that need not be spread */
#define PROBE_NS        (1 * NS_PER_S)    /* four hellos */
#define SILENCE_NS      (2 * NS_PER_S)    /* four heartbeats */
#define RETRY_FIRST_NS  (5 * NS_PER_S)
#define RETRY_MAX_NS    (60 * NS_PER_S)

#define ASK_AGAIN_NS   (40 * NS_PER_MS) /* above the origin's lockstep (30 ms) */
#define ASK_SHIFT_MAX  3u               /* eight times as long at most */
#define ASK_DEMAND     3u               /* times, and DEMAND_NS: then by unicast */
#define DEMAND_NS      (200 * NS_PER_MS)
#define GAP_ANSWER_NS  (5 * NS_PER_MS) /* an answer takes so long, at least: what was asked later is not in a gap */
#define GAP_NS         (1 * NS_PER_MS) /* what seems lost may only be late */
#define ASK_PREFETCH   5u              /* times, and PREFETCH_NS */
#define PREFETCH_NS    (1 * NS_PER_S)
#define UNANSWERED     16u /* pages given up, and for UNANSWERED_NS no answer: the way to the origin is cut */
#define UNANSWERED_NS  (1 * NS_PER_S)
#define FRAGMENTS_LATE 80u /* datagrams: two batches may overtake each other */
#define FRAGMENTS_LOOK 16u /* datagrams between looks */

#define LOSS_DATAGRAMS   200u
#define LOSS_NS          (2 * NS_PER_S) /* the origin has had some rounds to slow down */
#define LOSS_MAX         300000u        /* ppm */
#define BACKOFF_US       5000u          /* before anything has been heard, with many receivers expected */
#define REPORT_MS        200u
#define REPORT_IDLE_NS   (5 * NS_PER_S) /* when there is nothing new to report */
#define REPORT_DATAGRAMS 20u            /* fewer are nothing new */
#define EXPAND_MAX       65536u         /* pages looked at in one poll */
#define RUNS_MAX         (1u << 20)     /* of prefetch that wait */
#define COLLECT_MAX      512u           /* pages of one request */

struct run_list { /* a ring */
    unsigned first, n, size;
    struct want {
        uint8_t block;
        uint32_t page, pages;
    } * runs;
};

struct mc_receiver {
    struct mc_receiver_config config;
    uint64_t random;
    enum mc_state state;
    const char *reason;
    int64_t heard_at, answered_at, hello_at, probe_until, report_at, retry_at, retry_after;

    struct mc_announcement said;                                 /* last */
    uint64_t incarnation, first, highest, received, lost_before; /* lost_before: by earlier incarnations */
    uint64_t reported;                                           /* datagrams received at the last report */
    int64_t loss_since;
    uint64_t loss_received, loss_span; /* at loss_since */

    struct mc_pending_set pending;
    struct mc_partial_set partial;
    struct run_list prefetch;
    unsigned unanswered;
    bool expand_more;
    struct mc_receiver_stats stats;
};

/* ---- random delays ---- */

static double random_unit(struct mc_receiver *receiver) /* splitmix64; [0, 1) */
{
    uint64_t z = receiver->random += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (double)((z ^ z >> 31) >> 11) / (double)(UINT64_C(1) << 53);
}

/*
 * How long before this host asks: within the back-off, distributed so that of any number of receivers a few ask first,
 * whatever their number (the truncated exponential of RFC 5740, 3.2).
 */
static int64_t first_delay(struct mc_receiver *receiver)
{
    double window = (double)receiver->said.backoff_us * NS_PER_US;
    double lambda = log(receiver->said.receivers > 1 ? receiver->said.receivers : 1) + 1;

    if (receiver->said.backoff_us == 0) {
        return 0;
    }
    return (int64_t)(window / lambda * log(random_unit(receiver) * (exp(lambda) - 1) + 1));
}

static int64_t again_delay(struct mc_receiver *receiver, const struct mc_pending *pending)
{
    int64_t wait = receiver->said.wait_us[pending->priority] * NS_PER_US;
    unsigned shift = pending->asked - 1u;
    int64_t bound = wait + (ASK_AGAIN_NS << (shift < ASK_SHIFT_MAX ? shift : ASK_SHIFT_MAX));

    return (int64_t)((double)bound * (1 + random_unit(receiver) / 2)) + first_delay(receiver);
}

static int64_t report_delay(struct mc_receiver *receiver)
{
    return (int64_t)((0.5 + random_unit(receiver)) * receiver->said.report_ms * (double)NS_PER_MS);
}

/* ---- state ---- */

static void give_up(struct mc_receiver *receiver, struct mc_pending *pending)
{
    struct mc_pending page = *pending;

    mc_pending_remove(&receiver->pending, pending);
    receiver->stats.fallen_back++;
    receiver->config.fall_back(receiver->config.owner, page.block, page.page, 1, (enum mc_priority)page.priority);
}

/* Hands on what this host lacks of a run. */
static void fall_back_run(struct mc_receiver *receiver, unsigned block, uint32_t page, uint32_t pages,
                          enum mc_priority priority)
{
    const struct mc_receiver_config *config = &receiver->config;

    for (uint32_t at = page; at < page + pages;) {
        uint32_t end = at;
        while (end < page + pages && config->lacks(config->owner, block, end)) {
            end++;
        }
        if (end > at) {
            receiver->stats.fallen_back += end - at;
            config->fall_back(config->owner, block, at, end - at, priority);
        }
        at = end + 1;
    }
}

static void fall_back_all(struct mc_receiver *receiver)
{
    struct run_list *list = &receiver->prefetch;
    struct mc_pending *pending;

    while ((pending = mc_pending_first(&receiver->pending)) != NULL) {
        give_up(receiver, pending);
    }
    for (; list->n > 0; list->n--) {
        struct want run = list->runs[list->first];
        list->first = (list->first + 1) % list->size;
        fall_back_run(receiver, run.block, run.page, run.pages, MC_PREFETCH);
    }
    receiver->expand_more = false;
}

static uint64_t span(const struct mc_receiver *receiver)
{
    return receiver->highest == 0 ? 0 : receiver->highest - receiver->first + 1;
}

static void begin_loss(struct mc_receiver *receiver, int64_t now)
{
    receiver->loss_since = now;
    receiver->loss_received = receiver->received;
    receiver->loss_span = span(receiver);
}

static void set_state(struct mc_receiver *receiver, enum mc_state state, const char *reason, int64_t now)
{
    receiver->state = state;
    receiver->reason = reason;
    receiver->unanswered = 0;
    receiver->answered_at = now;
    if (state == MC_PROBING) {
        receiver->hello_at = now;
        if (receiver->said.receivers > HELLO_AT_ONCE) {
            receiver->hello_at += (int64_t)(random_unit(receiver) * receiver->said.receivers * HELLO_SPREAD_NS);
        }
        receiver->probe_until = receiver->hello_at + PROBE_NS;
    }
    if (state == MC_MULTICAST) {
        receiver->report_at = now + report_delay(receiver);
        begin_loss(receiver, now);
    }
    receiver->config.changed(receiver->config.owner, state, reason);
}

static void use_unicast(struct mc_receiver *receiver, const char *reason, int64_t at_least, int64_t now)
{
    int64_t wait = receiver->retry_after > at_least ? receiver->retry_after : at_least;

    receiver->retry_at = now + wait;
    receiver->retry_after = receiver->retry_after * 2 < RETRY_MAX_NS ? receiver->retry_after * 2 : RETRY_MAX_NS;
    receiver->report_at = now; /* the origin shall know */
    set_state(receiver, MC_UNICAST, reason, now);
    fall_back_all(receiver);
}

static void check_state(struct mc_receiver *receiver, int64_t now)
{
    switch (receiver->state) {
    case MC_PROBING:
        if (now >= receiver->probe_until) {
            use_unicast(receiver, "nothing comes from the group: multicast is absent or filtered", 0, now);
        }
        break;
    case MC_MULTICAST:
        if (now - receiver->heard_at >= SILENCE_NS) {
            use_unicast(receiver, "the group has fallen silent", 0, now);
        } else if (receiver->unanswered >= UNANSWERED && now - receiver->answered_at >= UNANSWERED_NS) {
            use_unicast(receiver, "the origin does not answer", 0, now);
        }
        break;
    case MC_UNICAST:
        if (now >= receiver->retry_at) {
            set_state(receiver, MC_PROBING, "tries multicast again", now);
        }
        break;
    }
}

static int64_t next_of_state(const struct mc_receiver *receiver)
{
    int64_t until;

    switch (receiver->state) {
    case MC_PROBING:
        return receiver->probe_until < receiver->hello_at ? receiver->probe_until : receiver->hello_at;
    case MC_MULTICAST:
        until = receiver->heard_at + SILENCE_NS;
        return until < receiver->report_at ? until : receiver->report_at;
    default:
        return receiver->retry_at < receiver->report_at ? receiver->retry_at : receiver->report_at;
    }
}

struct mc_receiver *mc_receiver_new(const struct mc_receiver_config *config, int64_t now)
{
    struct mc_receiver *receiver = calloc(1, sizeof(*receiver));

    if (receiver == NULL) {
        abort();
    }
    receiver->config = *config;
    if (config->payload == 0) {
        receiver->config.payload = MC_PAYLOAD_DEFAULT;
    }
    receiver->random = config->seed;
    receiver->retry_after = RETRY_FIRST_NS;
    receiver->said.report_ms = REPORT_MS;
    receiver->said.receivers = (uint16_t)(config->expected < UINT16_MAX ? config->expected : UINT16_MAX);
    receiver->said.backoff_us = config->expected > HELLO_AT_ONCE ? BACKOFF_US : 0;
    mc_pending_init(&receiver->pending, config->max_pending > 0 ? config->max_pending : MAX_PENDING);
    mc_partial_init(&receiver->partial, config->max_partial > 0 ? config->max_partial : MAX_PARTIAL);
    receiver->heard_at = now;
    set_state(receiver, MC_PROBING, "has just begun", now);
    return receiver;
}

void mc_receiver_free(struct mc_receiver *receiver)
{
    if (receiver == NULL) {
        return;
    }
    mc_pending_clear(&receiver->pending);
    mc_partial_clear(&receiver->partial);
    free(receiver->prefetch.runs);
    free(receiver);
}

/* ---- wanting ---- */

static void push_run(struct run_list *list, const struct want *run)
{
    if (list->n == list->size) {
        unsigned size = list->size == 0 ? 16 : list->size * 2;
        struct want *runs = malloc(size * sizeof(*runs));
        if (runs == NULL) {
            abort();
        }
        for (unsigned i = 0; i < list->n; i++) {
            runs[i] = list->runs[(list->first + i) % list->size];
        }
        free(list->runs);
        list->runs = runs;
        list->size = size;
        list->first = 0;
    }
    list->runs[(list->first + list->n++) % list->size] = *run;
}

/* Somebody waits for this page. false: too many are pending. */
static bool demand(struct mc_receiver *receiver, unsigned block, uint32_t page, int64_t due)
{
    struct mc_pending *pending = mc_pending_find(&receiver->pending, block, page);

    if (pending == NULL) {
        return mc_pending_add(&receiver->pending, block, page, MC_DEMAND, due) != NULL;
    }
    if (pending->priority != MC_DEMAND) { /* whatever is under way may stand behind much else */
        mc_pending_promote(&receiver->pending, pending);
        pending->asked = 0;
        mc_pending_set_due(&receiver->pending, pending, due);
    }
    return true;
}

void mc_receiver_want(struct mc_receiver *receiver, unsigned block, uint32_t page, uint32_t pages,
                      enum mc_priority priority, int64_t now)
{
    const struct mc_receiver_config *config = &receiver->config;
    const struct mc_shape *shape = &config->shape;
    struct want run = { (uint8_t)block, page, pages };
    int64_t due;

    if (block >= shape->n_blocks || page >= shape->pages[block] || pages > shape->pages[block] - page) {
        return;
    }
    if (receiver->state == MC_UNICAST || (priority == MC_PREFETCH && receiver->prefetch.n == RUNS_MAX)) {
        fall_back_run(receiver, block, page, pages, priority);
        return;
    }
    if (priority == MC_PREFETCH) {
        push_run(&receiver->prefetch, &run);
        receiver->expand_more = true;
        return;
    }
    due = now + first_delay(receiver);
    for (; pages > 0; page++, pages--) {
        if (config->lacks(config->owner, block, page) && !demand(receiver, block, page, due)) {
            fall_back_run(receiver, block, page, 1, priority);
        }
    }
}

void mc_receiver_have(struct mc_receiver *receiver, unsigned block, uint32_t page, uint32_t pages)
{
    for (; pages > 0; page++, pages--) {
        struct mc_pending *pending = mc_pending_find(&receiver->pending, block, page);
        if (pending != NULL) {
            mc_pending_remove(&receiver->pending, pending);
        }
    }
}

/* Pages of the prefetch list become pending, as many as may be asked for at a time. */
static void expand(struct mc_receiver *receiver, int64_t now)
{
    const struct mc_receiver_config *config = &receiver->config;
    struct run_list *list = &receiver->prefetch;
    int64_t due = now + first_delay(receiver);
    unsigned looked = 0;

    receiver->expand_more = false;
    while (list->n > 0 && receiver->pending.n_of[MC_PREFETCH] < receiver->pending.max / 2 &&
           receiver->pending.n < receiver->pending.max) {
        struct want *run = &list->runs[list->first];
        if (looked++ == EXPAND_MAX) {
            receiver->expand_more = true;
            return;
        }
        if (run->pages == 0) {
            list->first = (list->first + 1) % list->size;
            list->n--;
            continue;
        }
        if (config->lacks(config->owner, run->block, run->page) &&
            mc_pending_find(&receiver->pending, run->block, run->page) == NULL) {
            mc_pending_add(&receiver->pending, run->block, run->page, MC_PREFETCH, due);
        }
        run->page++;
        run->pages--;
    }
}

/* When the pending set has room for a good part of a request again. */
static void expand_later(struct mc_receiver *receiver)
{
    if (receiver->prefetch.n > 0 && receiver->pending.n_of[MC_PREFETCH] < receiver->pending.max / 4) {
        receiver->expand_more = true;
    }
}

/* ---- what comes ---- */

static void landed(struct mc_receiver *receiver, struct mc_pending *pending)
{
    if (pending->asked == 0) {
        receiver->stats.suppressed++;
    } else {
        receiver->unanswered = 0;
        receiver->answered_at = receiver->heard_at;
    }
    mc_pending_remove(&receiver->pending, pending);
}

/* Pages that are whole. */
static void give(struct mc_receiver *receiver, unsigned block, uint32_t page, unsigned pages,
                 const struct mc_body *body)
{
    const struct mc_receiver_config *config = &receiver->config;
    unsigned lacking = 0, asked = 0;

    for (unsigned i = 0; i < pages; i++) {
        if (config->lacks(config->owner, block, page + i)) {
            lacking++;
            asked += mc_pending_find(&receiver->pending, block, page + i) != NULL;
        }
    }
    receiver->stats.pages_known += pages - lacking;
    if (lacking > 0) {
        if (!config->page(config->owner, block, page, pages, body, asked > 0)) {
            receiver->stats.malformed++;
            return;
        }
        receiver->stats.pages_asked += asked;
        receiver->stats.pages_unasked += lacking - asked;
    }
    for (unsigned i = 0; i < pages; i++) {
        struct mc_pending *pending = mc_pending_find(&receiver->pending, block, page + i);
        if (pending != NULL) {
            landed(receiver, pending);
        }
    }
}

static void take_body(struct mc_receiver *receiver, const struct mc_record *record, uint64_t sequence)
{
    const struct mc_receiver_config *config = &receiver->config;
    struct mc_body body = { record->kind, record->total, record->bytes };
    struct mc_partial *partial;

    if (record->length < record->total) {
        if (!config->lacks(config->owner, record->block, record->page)) {
            receiver->stats.pages_known += record->offset == 0;
            return;
        }
        partial = mc_partial_take(&receiver->partial, record, sequence);
        if (partial == NULL) {
            return;
        }
        body.bytes = partial->body;
    } else {
        partial = mc_partial_find(&receiver->partial, record->block, record->page);
    }
    give(receiver, record->block, record->page, 1, &body);
    if (partial != NULL) {
        mc_partial_drop(&receiver->partial, partial);
    }
}

static void take_record(struct mc_receiver *receiver, const struct mc_record *record, uint64_t sequence, int64_t now)
{
    static const struct mc_body zero = { MC_KIND_ZERO, 0, NULL };

    switch (record->kind) {
    case MC_KIND_ZERO:
        give(receiver, record->block, record->page, record->pages, &zero);
        break;
    case MC_KIND_RAW:
    case MC_KIND_LZ4:
        take_body(receiver, record, sequence);
        break;
    case MC_KIND_DISMISS:
        if (record->receiver == receiver->config.id && receiver->state == MC_MULTICAST) {
            use_unicast(receiver, "the origin says so: other hosts lose far less", record->dismiss_ms * NS_PER_MS, now);
        }
        break;
    default:
        break;
    }
}

/* Fragments that have got stuck: what is missing was lost. */
static void look_after_fragments(struct mc_receiver *receiver, int64_t now)
{
    struct mc_partial *partial;

    if (receiver->highest % FRAGMENTS_LOOK != 0 || receiver->highest < FRAGMENTS_LATE) {
        return;
    }
    while ((partial = mc_partial_give_up(&receiver->partial, receiver->highest - FRAGMENTS_LATE)) != NULL) {
        struct mc_pending *pending = mc_pending_find(&receiver->pending, partial->block, partial->page);
        if (pending != NULL && pending->asked > 0) {
            int64_t due = now + first_delay(receiver);
            if (due < pending->due) {
                mc_pending_set_due(&receiver->pending, pending, due);
            }
        }
    }
}

/* Datagrams are missing: perhaps what somebody waits for was in them. */
static void look_after_demand(struct mc_receiver *receiver, int64_t now)
{
    int64_t asked_before = now - GAP_ANSWER_NS - receiver->said.wait_us[MC_DEMAND] * NS_PER_US;
    struct mc_pending *late[COLLECT_MAX];
    unsigned n = 0;

    for (unsigned i = 0; i < receiver->pending.n && n < COLLECT_MAX; i++) {
        struct mc_pending *pending = &receiver->pending.items[receiver->pending.heap[i]];
        if (pending->priority == MC_DEMAND && pending->asked > 0 && pending->last_at < asked_before) {
            late[n++] = pending;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        int64_t due = now + GAP_NS + first_delay(receiver);
        if (due < late[i]->due) {
            mc_pending_set_due(&receiver->pending, late[i], due);
        }
    }
}

static void count_sequence(struct mc_receiver *receiver, uint64_t incarnation, uint64_t sequence, int64_t now)
{
    if (incarnation != receiver->incarnation) {
        receiver->lost_before += span(receiver) - receiver->received;
        receiver->incarnation = incarnation;
        receiver->first = sequence;
        receiver->highest = receiver->received = receiver->reported = 0;
        mc_partial_drop_all(&receiver->partial);
        begin_loss(receiver, now);
    }
    receiver->received++;
    if (sequence > receiver->highest) {
        receiver->highest = sequence;
    }
    if (sequence < receiver->first) {
        receiver->first = sequence;
    }
}

static void check_loss(struct mc_receiver *receiver, int64_t now)
{
    uint64_t spanned = span(receiver) - receiver->loss_span, got = receiver->received - receiver->loss_received;

    if (spanned < LOSS_DATAGRAMS || now - receiver->loss_since < LOSS_NS) {
        return;
    }
    receiver->stats.loss_ppm = got < spanned ? (uint32_t)((double)(spanned - got) / (double)spanned * PPM) : 0;
    begin_loss(receiver, now);
    if (receiver->state != MC_MULTICAST) {
        return;
    }
    if (receiver->stats.loss_ppm > LOSS_MAX) {
        use_unicast(receiver, "too many datagrams are lost on the way here", 0, now);
    } else {
        receiver->retry_after = RETRY_FIRST_NS; /* it works */
    }
}

/* So many have come since the last report that the next is worth while before its idle time. */
static void hasten_report(struct mc_receiver *receiver, int64_t now)
{
    int64_t due = now + report_delay(receiver);

    if (receiver->received - receiver->reported == REPORT_DATAGRAMS && due < receiver->report_at) {
        receiver->report_at = due;
    }
}

bool mc_receiver_take(struct mc_receiver *receiver, uint64_t incarnation, uint64_t sequence, const uint8_t *content,
                      size_t length, int64_t now)
{
    struct mc_announcement said;
    struct mc_record record;
    bool gap = sequence > receiver->highest + 1 && incarnation == receiver->incarnation;
    size_t at = 0;

    if (!mc_data_decode(content, length, &receiver->config.shape, &said)) {
        receiver->stats.malformed++;
        return false;
    }
    receiver->said = said;
    if (said.report_ms < REPORT_MS) {
        receiver->said.report_ms = REPORT_MS;
    }
    receiver->heard_at = now;
    receiver->stats.datagrams++;
    receiver->stats.bytes += length + MC_OVERHEAD;
    count_sequence(receiver, incarnation, sequence, now);
    if (receiver->state == MC_PROBING) {
        set_state(receiver, MC_MULTICAST, "the group is heard", now);
    }
    while (mc_data_next(content, length, &at, &record)) {
        take_record(receiver, &record, sequence, now);
    }
    look_after_fragments(receiver, now);
    if (gap && receiver->pending.n_of[MC_DEMAND] > 0) {
        look_after_demand(receiver, now);
    }
    check_loss(receiver, now);
    hasten_report(receiver, now);
    expand_later(receiver);
    return true;
}

/* ---- asking ---- */

struct collected {
    struct mc_pending *pages[COLLECT_MAX];
    unsigned n;
};

static int by_place(const void *a, const void *b)
{
    const struct mc_pending *x = *(struct mc_pending *const *)a, *y = *(struct mc_pending *const *)b;

    if (x->priority != y->priority) {
        return x->priority < y->priority ? -1 : 1;
    }
    if (x->block != y->block) {
        return x->block < y->block ? -1 : 1;
    }
    return x->page < y->page ? -1 : x->page > y->page;
}

/* Asked for often enough, and for long enough. */
static bool is_hopeless(const struct mc_pending *pending, int64_t now)
{
    return pending->priority == MC_DEMAND ? pending->asked >= ASK_DEMAND && now - pending->first_at >= DEMAND_NS
                                          : pending->asked >= ASK_PREFETCH && now - pending->first_at >= PREFETCH_NS;
}

/*
 * What is due and still lacking. Those collected are no longer due: they are asked for now, or, when the request has no
 * room, come next.
 */
static void collect(struct mc_receiver *receiver, struct collected *collected, int64_t now)
{
    const struct mc_receiver_config *config = &receiver->config;
    struct mc_pending *pending;

    collected->n = 0;
    while (collected->n < COLLECT_MAX && (pending = mc_pending_first(&receiver->pending)) != NULL &&
           pending->due <= now) {
        if (!config->lacks(config->owner, pending->block, pending->page)) {
            mc_pending_remove(&receiver->pending, pending);
        } else if (is_hopeless(pending, now)) {
            receiver->unanswered++;
            give_up(receiver, pending);
        } else {
            mc_pending_set_due(&receiver->pending, pending, INT64_MAX);
            collected->pages[collected->n++] = pending;
        }
    }
}

static bool extends(const struct mc_run *run, const struct mc_pending *pending)
{
    return run->priority == pending->priority && run->block == pending->block &&
           run->page + run->pages == pending->page && run->pages < MC_RUN_MAX;
}

static unsigned make_runs(struct mc_receiver *receiver, struct collected *collected, struct mc_run *runs, unsigned max,
                          int64_t now)
{
    unsigned n = 0;

    qsort(collected->pages, collected->n, sizeof(collected->pages[0]), by_place);
    for (unsigned i = 0; i < collected->n; i++) {
        struct mc_pending *pending = collected->pages[i];
        if (n > 0 && extends(&runs[n - 1], pending)) {
            runs[n - 1].pages++;
        } else if (n < max) {
            runs[n++] = (struct mc_run){ pending->priority, pending->block, 1, pending->page };
        } else {
            mc_pending_set_due(&receiver->pending, pending, now);
            continue;
        }
        receiver->stats.again += pending->asked > 0;
        pending->first_at = pending->asked > 0 ? pending->first_at : now;
        pending->last_at = now;
        pending->asked += pending->asked < UINT8_MAX;
        mc_pending_set_due(&receiver->pending, pending, now + again_delay(receiver, pending));
    }
    return n;
}

static void set_report(struct mc_receiver *receiver, int64_t now)
{
    int64_t delay = report_delay(receiver);

    receiver->hello_at = now + HELLO_NS;
    if (receiver->received - receiver->reported < REPORT_DATAGRAMS && delay < REPORT_IDLE_NS) {
        delay = REPORT_IDLE_NS;
    }
    receiver->report_at = now + delay;
    receiver->reported = receiver->received;
}

static size_t write_request(struct mc_receiver *receiver, uint8_t *content, const struct mc_run *runs, unsigned n_runs,
                            uint8_t flags)
{
    uint64_t spanned = span(receiver);
    struct mc_report report = { .incarnation = receiver->incarnation,
                                .highest = receiver->highest,
                                .received = receiver->received,
                                .missing = spanned - receiver->received,
                                .flags = flags };

    receiver->stats.requests++;
    receiver->stats.runs += n_runs;
    return mc_request_encode(content, &report, runs, n_runs);
}

size_t mc_receiver_poll(struct mc_receiver *receiver, uint8_t *content, int64_t now)
{
    unsigned max = (receiver->config.payload - MC_OVERHEAD - MC_REPORT_LENGTH) / MC_RUN_LENGTH, n_runs;
    struct collected collected;
    struct mc_run runs[COLLECT_MAX];
    bool report;

    check_state(receiver, now);
    report = receiver->state == MC_PROBING ? now >= receiver->hello_at : now >= receiver->report_at;
    if (receiver->state == MC_MULTICAST && receiver->expand_more) {
        expand(receiver, now);
    }
    collect(receiver, &collected, now);
    n_runs = make_runs(receiver, &collected, runs, max < COLLECT_MAX ? max : COLLECT_MAX, now);
    expand_later(receiver);
    if (n_runs == 0 && !report) {
        return 0;
    }
    set_report(receiver, now);
    return write_request(receiver, content, runs, n_runs, receiver->state == MC_UNICAST ? MC_FLAG_UNICAST : 0);
}

int64_t mc_receiver_next(const struct mc_receiver *receiver)
{
    const struct mc_pending *first = mc_pending_first(&receiver->pending);
    int64_t next = next_of_state(receiver);

    if (receiver->state == MC_MULTICAST && receiver->expand_more) {
        return 0;
    }
    return first != NULL && first->due < next ? first->due : next;
}

size_t mc_receiver_leave(struct mc_receiver *receiver, uint8_t *content)
{
    return write_request(receiver, content, NULL, 0, MC_FLAG_LEAVING);
}

void mc_receiver_stats(const struct mc_receiver *receiver, struct mc_receiver_stats *stats)
{
    *stats = receiver->stats;
    stats->state = receiver->state;
    stats->reason = receiver->reason;
    stats->missing = receiver->lost_before + span(receiver) - receiver->received;
    stats->partial_dropped = receiver->partial.dropped;
    stats->pending = receiver->pending.n;
    stats->partial = receiver->partial.n;
}
