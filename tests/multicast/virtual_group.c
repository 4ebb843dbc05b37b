/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A heap of events. A batch is kept once, whoever is still to receive it; in sealed runs each arrival has its own copy
 * of one datagram, since opening decrypts in place. The sender's and receivers' timers are events that are ignored when
 * a later look has replaced them.
 */
#include "virtual_group.h"

#include <math.h>
#include <string.h>
#include "sfvmm/pager/mc_seal.h"

#define INCARNATION   1000u
#define PPM           1000000u
#define PAGE_VARIANTS 4u
#define LIE_NS        (20 * VG_MS)
#define LIE_RUNS      16u
#define LIE_MISSING   1000000u

enum kind { SENDER_TURN, RECEIVER_TURN, BATCH, DATAGRAM, REQUEST, THINK, UNICAST, JOIN, LEAVE, LIE };

struct event {
    gint64 at;
    enum kind kind;
    unsigned who;
    gpointer what;
    guint32 page;
};

struct sent { /* what is on its way */
    unsigned holders;
    unsigned n;
    guint64 first_sequence;
    gsize length;
    unsigned payload;
    guint8 bytes[];
};

struct receiver {
    struct group *group;
    struct mc_receiver *core;
    struct mc_opener *opener;
    struct mc_sealer *sealer;
    struct vg_behaviour behaviour;
    guint64 sequence;
    gint64 turn_at, joined_at;
    guint8 *has;                       /* bit per page */
    unsigned n_has, job_at, waits_for; /* page + 1 */
    bool gone, done;
};

struct group {
    const struct vg_config *config;
    struct vg_result *result;
    gint64 now, sender_turn_at, link_free_at, peak_began;
    unsigned peak;
    guint64 random;
    GArray *heap;
    struct mc_sender *sender;
    struct mc_sealer *sealer;
    struct mc_opener **openers;
    struct mc_batch *batch;
    struct receiver *receivers;
    guint32 *job;
    unsigned n_done;
    struct mc_receiver_keys keys;
};

static const guint8 master[MC_KEY_LENGTH] = "a group that exists in thought";

/* ---- events, chance ---- */

static guint64 chance(struct group *group)
{
    guint64 z = group->random += G_GUINT64_CONSTANT(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * G_GUINT64_CONSTANT(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * G_GUINT64_CONSTANT(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static bool happens(struct group *group, guint32 ppm)
{
    return ppm > 0 && chance(group) % PPM < ppm;
}

static double unit(struct group *group)
{
    return (double)(chance(group) >> 11) / (double)(G_GUINT64_CONSTANT(1) << 53);
}

static gint64 way(struct group *group)
{
    return group->config->latency_ns + (gint64)(unit(group) * (double)group->config->jitter_ns);
}

static struct event *at(struct group *group, unsigned i)
{
    return &g_array_index(group->heap, struct event, i);
}

static void schedule(struct group *group, gint64 when, enum kind kind, unsigned who, gpointer what, guint32 page)
{
    struct event event = { MAX(when, group->now), kind, who, what, page };
    unsigned i = group->heap->len;

    g_array_append_val(group->heap, event);
    for (; i > 0 && event.at < at(group, (i - 1) / 2)->at; i = (i - 1) / 2) {
        *at(group, i) = *at(group, (i - 1) / 2);
    }
    *at(group, i) = event;
}

static struct event take_event(struct group *group)
{
    struct event first = *at(group, 0), last = *at(group, group->heap->len - 1);
    unsigned n = group->heap->len - 1, i = 0;

    g_array_set_size(group->heap, n);
    while (n > 0) {
        unsigned child = 2 * i + 1;
        if (child + 1 < n && at(group, child + 1)->at < at(group, child)->at) {
            child++;
        }
        if (child >= n || at(group, child)->at >= last.at) {
            *at(group, i) = last;
            break;
        }
        *at(group, i) = *at(group, child);
        i = child;
    }
    return first;
}

static bool is_stalled(const struct receiver *receiver)
{
    gint64 now = receiver->group->now;

    return receiver->gone || receiver->core == NULL ||
           (now >= receiver->behaviour.stalls_from && now < receiver->behaviour.stalls_until);
}

static void look_at_sender(struct group *group)
{
    gint64 next = MAX(mc_sender_next(group->sender, group->now), group->now);

    if (next != group->sender_turn_at) {
        group->sender_turn_at = next;
        schedule(group, next, SENDER_TURN, 0, NULL, 0);
    }
}

static void look_at_receiver(struct group *group, struct receiver *receiver)
{
    gint64 next = MAX(mc_receiver_next(receiver->core), group->now);

    if (is_stalled(receiver)) {
        next = receiver->behaviour.stalls_until;
    }
    if (next != receiver->turn_at) {
        receiver->turn_at = next;
        schedule(group, next, RECEIVER_TURN, (unsigned)(receiver - group->receivers), NULL, 0);
    }
}

/* ---- pages ---- */

/* One in eight is zero, one does not shrink, the others do to some half. */
static void make_page(guint32 page, guint8 bytes[SF_PAGE_SIZE])
{
    struct group dice = { .random = page };

    memset(bytes, 0, SF_PAGE_SIZE);
    if (page % 8 == 0) {
        return;
    }
    for (unsigned i = 0; i < (page % 8 == 1 ? SF_PAGE_SIZE : SF_PAGE_SIZE / 2 - page % 7 * 100); i += 8) {
        guint64 value = chance(&dice);
        memcpy(bytes + i, &value, 8);
    }
    bytes[0] = 1;
}

static unsigned read_page(void *owner, unsigned block, uint32_t page, uint8_t body[SF_PAGE_SIZE], unsigned *total)
{
    guint8 bytes[SF_PAGE_SIZE];

    make_page(page, bytes);
    return mc_page_pack(bytes, body, total);
}

static bool has(const struct receiver *receiver, guint32 page)
{
    return receiver->has[page / 8] >> page % 8 & 1;
}

static void finish_if_done(struct receiver *receiver)
{
    const struct vg_config *config = receiver->group->config;

    if (!receiver->done && receiver->job_at == config->job_pages &&
        (!config->want_all || receiver->n_has == config->pages)) {
        receiver->done = true;
        receiver->group->n_done++;
    }
}

static void job_goes_on(struct receiver *receiver)
{
    struct group *group = receiver->group;
    gint64 think = (gint64)(-log(1 - unit(group)) * (double)group->config->think_ns);

    schedule(group, group->now + think, THINK, (unsigned)(receiver - group->receivers), NULL, 0);
}

static void note(struct receiver *receiver, guint32 page)
{
    if (has(receiver, page)) {
        return;
    }
    receiver->has[page / 8] |= (guint8)(1u << page % 8);
    receiver->n_has++;
    if (receiver->waits_for == page + 1) {
        receiver->waits_for = 0;
        job_goes_on(receiver);
    }
    finish_if_done(receiver);
}

static bool lacks(void *owner, unsigned block, uint32_t page)
{
    return !has(owner, page);
}

static bool page_came(void *owner, unsigned block, uint32_t page, unsigned pages, const struct mc_body *body,
                      bool asked)
{
    struct receiver *receiver = owner;
    struct group *group = receiver->group;
    guint8 bytes[SF_PAGE_SIZE], truth[SF_PAGE_SIZE];

    for (unsigned i = 0; i < pages; i++) {
        if (group->config->verify) {
            if (!mc_page_unpack(body->kind, body->bytes, body->total, bytes)) {
                return false;
            }
            make_page(page + i, truth);
            group->result->wrong_pages += memcmp(bytes, truth, SF_PAGE_SIZE) != 0;
        }
        note(receiver, page + i);
    }
    return true;
}

static void fall_back(void *owner, unsigned block, uint32_t page, unsigned pages, enum mc_priority priority)
{
    struct receiver *receiver = owner;
    struct group *group = receiver->group;

    group->result->unicast_pages += pages;
    for (unsigned i = 0; i < pages; i++) {
        schedule(group, group->now + group->config->unicast_ns, UNICAST, (unsigned)(receiver - group->receivers), NULL,
                 page + i);
    }
}

/* Back at multicast: what was wanted of it is wanted again. */
static void changed(void *owner, enum mc_state state, const char *reason)
{
}

/* ---- the network ---- */

static void let_go(struct sent *sent)
{
    if (--sent->holders == 0) {
        g_free(sent);
    }
}

static const guint8 *datagram_of(const struct sent *sent, unsigned i, gsize *length)
{
    *length = i + 1 < sent->n ? sent->payload : sent->length - (gsize)i * sent->payload;
    return sent->bytes + (gsize)i * sent->payload;
}

static guint32 loss_of(const struct receiver *receiver)
{
    return receiver->group->config->loss + receiver->behaviour.loss;
}

/* Each datagram by itself, through AEAD: with delays of its own, twice, or changed by somebody. */
static void send_sealed(struct group *group, struct receiver *receiver, const struct sent *sent, gint64 leaves)
{
    const struct vg_config *config = group->config;

    for (unsigned i = 0; i < sent->n; i++) {
        unsigned copies = happens(group, loss_of(receiver)) ? 0 : happens(group, config->duplicates) ? 2 : 1;
        gsize length;
        const guint8 *bytes = datagram_of(sent, i, &length);
        for (; copies > 0; copies--) {
            GByteArray *copy = g_byte_array_new();
            g_byte_array_append(copy, bytes, (guint)length);
            if (happens(group, config->forged)) {
                copy->data[chance(group) % length] ^= (guint8)(1 + chance(group) % 255);
            }
            schedule(group, leaves + way(group), DATAGRAM, (unsigned)(receiver - group->receivers), copy, 0);
        }
    }
}

/* What the link's queue has room for; the rest is dropped, as a queue does. */
static gint64 pass_link(struct group *group, struct sent *sent)
{
    const struct vg_config *config = group->config;
    double queued = group->link_free_at > group->now
                        ? (double)(group->link_free_at - group->now) * (double)config->link_rate / VG_S
                        : 0;
    unsigned fit = queued + (double)sent->length <= (double)config->link_queue
                       ? sent->n
                       : (unsigned)(MAX((double)config->link_queue - queued, 0) / sent->payload);

    fit = MIN(fit, sent->n);
    group->result->link_drops += sent->n - fit;
    if (fit < sent->n) {
        sent->length = (gsize)fit * sent->payload;
        sent->n = fit;
    }
    group->link_free_at =
        MAX(group->link_free_at, group->now) + (gint64)((double)sent->length * VG_S / (double)config->link_rate);
    return group->link_free_at;
}

static void send_batch(struct group *group)
{
    struct mc_batch *batch = group->batch;
    struct sent *sent = g_malloc(sizeof(*sent) + batch->length);
    gint64 leaves;

    *sent = (struct sent){ 1, batch->n_datagrams, batch->first_sequence, batch->length, batch->payload };
    if (group->config->sealed) {
        g_assert_true(mc_sealer_seal_batch(group->sealer, batch));
    }
    memcpy(sent->bytes, batch->bytes, batch->length);
    leaves = pass_link(group, sent);
    for (unsigned i = 0; i < group->config->n && sent->n > 0; i++) {
        struct receiver *receiver = &group->receivers[i];
        if (receiver->core == NULL || receiver->gone || receiver->behaviour.deaf) {
            continue;
        }
        if (group->config->sealed) {
            send_sealed(group, receiver, sent, leaves);
        } else {
            sent->holders++;
            schedule(group, leaves + way(group), BATCH, i, sent, 0);
        }
    }
    let_go(sent);
}

static void take(struct group *group, struct receiver *receiver, guint64 sequence, const guint8 *content, gsize length)
{
    group->result->takes++;
    g_assert_true(mc_receiver_take(receiver->core, INCARNATION, sequence, content, length, group->now));
}

static void batch_arrives(struct group *group, struct receiver *receiver, struct sent *sent)
{
    for (unsigned i = 0; i < sent->n && !is_stalled(receiver); i++) {
        gsize length;
        const guint8 *bytes = datagram_of(sent, i, &length);
        if (!happens(group, loss_of(receiver))) {
            take(group, receiver, sent->first_sequence + i, bytes + MC_HEADER_LENGTH, length - MC_OVERHEAD);
        }
    }
    let_go(sent);
}

static void datagram_arrives(struct group *group, struct receiver *receiver, GByteArray *bytes)
{
    struct mc_header header;
    const guint8 *content;
    gsize length;

    if (!is_stalled(receiver) &&
        mc_opener_open(receiver->opener, bytes->data, bytes->len, &header, &content, &length) == MC_OPENED) {
        take(group, receiver, header.sequence, content, length);
    }
    g_byte_array_unref(bytes);
}

static void send_request(struct group *group, struct receiver *receiver, guint8 *bytes, gsize n)
{
    GByteArray *copy;

    if (group->config->sealed) {
        n = mc_sealer_seal(receiver->sealer, ++receiver->sequence, bytes, n);
    }
    if (happens(group, group->config->request_loss)) {
        return;
    }
    copy = g_byte_array_new();
    g_byte_array_append(copy, bytes, (guint)(n + (group->config->sealed ? 0 : MC_OVERHEAD)));
    schedule(group, group->now + way(group), REQUEST, (unsigned)(receiver - group->receivers), copy, 0);
}

static void request_arrives(struct group *group, unsigned who, GByteArray *bytes)
{
    const guint8 *content = bytes->data + MC_HEADER_LENGTH;
    gsize length = bytes->len - MC_OVERHEAD;
    struct mc_header header;

    if (group->now - group->peak_began >= VG_PEAK_NS) {
        group->peak_began = group->now;
        group->peak = 0;
    }
    group->result->peak_requests = MAX(group->result->peak_requests, ++group->peak);
    group->result->requests++;
    group->result->request_bytes += bytes->len;
    if (!group->config->sealed ||
        mc_opener_open(group->openers[who], bytes->data, bytes->len, &header, &content, &length) == MC_OPENED) {
        mc_sender_take(group->sender, who + 1, content, length, group->now);
    }
    g_byte_array_unref(bytes);
}

/* ---- who does what ---- */

static void sender_turn(struct group *group)
{
    if (group->now != group->sender_turn_at) {
        return;
    }
    group->sender_turn_at = G_MAXINT64;
    if (mc_sender_fill(group->sender, group->batch, group->now) > 0) {
        send_batch(group);
    } else if (mc_sender_next(group->sender, group->now) <= group->now) {
        group->sender_turn_at = group->now + 1; /* it has skipped pages; and goes on */
        schedule(group, group->sender_turn_at, SENDER_TURN, 0, NULL, 0);
    }
}

static void receiver_turn(struct group *group, struct receiver *receiver)
{
    guint8 bytes[MC_PAYLOAD_DEFAULT];
    gsize n;

    if (group->now != receiver->turn_at || is_stalled(receiver)) {
        return;
    }
    receiver->turn_at = G_MAXINT64;
    while ((n = mc_receiver_poll(receiver->core, bytes + MC_HEADER_LENGTH, group->now)) > 0) {
        send_request(group, receiver, bytes, n);
    }
}

static void think(struct group *group, struct receiver *receiver)
{
    if (receiver->gone) {
        return;
    }
    if (receiver->job_at == group->config->job_pages) {
        group->result->job_ns[receiver - group->receivers] = group->now - receiver->joined_at;
        if (group->config->want_all) {
            mc_receiver_want(receiver->core, 0, 0, group->config->pages, MC_PREFETCH, group->now);
        }
        finish_if_done(receiver);
        return;
    }
    if (has(receiver, group->job[receiver->job_at])) {
        receiver->job_at++;
        job_goes_on(receiver);
        return;
    }
    receiver->waits_for = group->job[receiver->job_at] + 1;
    mc_receiver_want(receiver->core, 0, group->job[receiver->job_at], 1, MC_DEMAND, group->now);
}

static void join(struct group *group, unsigned who)
{
    const struct vg_config *config = group->config;
    struct receiver *receiver = &group->receivers[who];
    struct mc_receiver_config core = { .shape = { 1, { config->pages } },
                                       .id = (uint16_t)(who + 1),
                                       .expected = config->knows_n ? config->n : 0,
                                       .max_pending = config->max_pending,
                                       .max_partial = config->max_partial,
                                       .seed = config->seed + who * 977,
                                       .lacks = lacks,
                                       .page = page_came,
                                       .fall_back = fall_back,
                                       .changed = changed,
                                       .owner = receiver };
    struct mc_receiver_keys keys;

    receiver->joined_at = group->now;
    receiver->core = mc_receiver_new(&core, group->now);
    if (config->sealed) {
        g_assert_true(mc_keys_derive(master, (uint16_t)(who + 1), &keys));
        receiver->opener = mc_opener_new(MC_DATA, 0, keys.tag, keys.data);
        receiver->sealer = mc_sealer_new(MC_REQUEST, keys.receiver, keys.tag, keys.request, who + 1);
        group->openers[who] = mc_opener_new(MC_REQUEST, keys.receiver, keys.tag, keys.request);
    }
    if (receiver->behaviour.lies) {
        schedule(group, group->now, LIE, who, NULL, 0);
    }
    think(group, receiver);
}

static void leave(struct group *group, struct receiver *receiver)
{
    guint8 bytes[MC_PAYLOAD_DEFAULT];

    send_request(group, receiver, bytes, mc_receiver_leave(receiver->core, bytes + MC_HEADER_LENGTH));
    receiver->gone = true;
    group->n_done += !receiver->done;
    receiver->done = true;
}

static void lie(struct group *group, struct receiver *receiver)
{
    struct mc_report report = { INCARNATION, UINT64_MAX / 4, receiver->sequence, receiver->sequence * LIE_MISSING, 0 };
    struct mc_run runs[LIE_RUNS];
    guint8 bytes[MC_PAYLOAD_DEFAULT];

    for (unsigned i = 0; i < LIE_RUNS; i++) {
        guint32 pages = MIN(MC_RUN_MAX, group->config->pages);
        runs[i] = (struct mc_run){ MC_DEMAND, 0, (uint16_t)pages, group->config->pages - pages };
    }
    send_request(group, receiver, bytes, mc_request_encode(bytes + MC_HEADER_LENGTH, &report, runs, LIE_RUNS));
    schedule(group, group->now + LIE_NS, LIE, (unsigned)(receiver - group->receivers), NULL, 0);
}

static void handle(struct group *group, const struct event *event)
{
    struct receiver *receiver = &group->receivers[event->who];

    switch (event->kind) {
    case SENDER_TURN:
        sender_turn(group);
        break;
    case RECEIVER_TURN:
        receiver_turn(group, receiver);
        break;
    case BATCH:
        batch_arrives(group, receiver, event->what);
        break;
    case DATAGRAM:
        datagram_arrives(group, receiver, event->what);
        break;
    case REQUEST:
        request_arrives(group, event->who, event->what);
        break;
    case THINK:
        think(group, receiver);
        break;
    case UNICAST:
        mc_receiver_have(receiver->core, 0, event->page, 1);
        note(receiver, event->page);
        break;
    case JOIN:
        join(group, event->who);
        break;
    case LEAVE:
        leave(group, receiver);
        break;
    case LIE:
        lie(group, receiver);
        break;
    }
    if (event->kind == SENDER_TURN || event->kind == REQUEST) {
        if (group->sender_turn_at == G_MAXINT64 || event->kind == REQUEST) {
            look_at_sender(group);
        }
    } else if (receiver->core != NULL && !receiver->gone) {
        look_at_receiver(group, receiver);
    }
}

/* ---- a run ---- */

static void make_job(struct group *group)
{
    const struct vg_config *config = group->config;

    group->job = g_new(guint32, MAX(config->pages, 1));
    for (guint32 i = 0; i < config->pages; i++) {
        guint32 other = (guint32)(chance(group) % (i + 1));
        group->job[i] = group->job[other];
        group->job[other] = i;
    }
}

static void begin(struct group *group)
{
    const struct vg_config *config = group->config;
    struct mc_sender_config sender = { .shape = { 1, { config->pages } },
                                       .min_rate = config->min_rate,
                                       .max_rate = config->max_rate,
                                       .expected = config->knows_n ? config->n : 0,
                                       .max_receivers = config->n,
                                       .push = config->push,
                                       .read = read_page,
                                       .owner = group };

    group->heap = g_array_new(FALSE, FALSE, sizeof(struct event));
    group->batch = g_new(struct mc_batch, 1);
    group->receivers = g_new0(struct receiver, config->n);
    group->openers = g_new0(struct mc_opener *, config->n);
    group->sender = mc_sender_new(&sender, 0);
    mc_sender_set_incarnation(group->sender, INCARNATION);
    g_assert_true(mc_keys_derive(master, 1, &group->keys));
    group->sealer = mc_sealer_new(MC_DATA, 0, group->keys.tag, group->keys.data, INCARNATION);
    group->sender_turn_at = G_MAXINT64;
    make_job(group);
    for (unsigned i = 0; i < config->n; i++) {
        struct receiver *receiver = &group->receivers[i];
        receiver->group = group;
        receiver->turn_at = G_MAXINT64;
        receiver->has = g_malloc0(config->pages / 8 + 1);
        if (config->behaviour != NULL) {
            receiver->behaviour = config->behaviour(i);
        }
        schedule(group, receiver->behaviour.joins_at, JOIN, i, NULL, 0);
        if (receiver->behaviour.leaves_at > 0) {
            schedule(group, receiver->behaviour.leaves_at, LEAVE, i, NULL, 0);
        }
    }
    look_at_sender(group);
}

static void drop(struct event *event)
{
    if (event->kind == BATCH) {
        let_go(event->what);
    } else if (event->kind == DATAGRAM || event->kind == REQUEST) {
        g_byte_array_unref(event->what);
    }
}

static void end(struct group *group)
{
    const struct vg_config *config = group->config;

    for (unsigned i = 0; i < group->heap->len; i++) {
        drop(at(group, i));
    }
    for (unsigned i = 0; i < config->n; i++) {
        struct receiver *receiver = &group->receivers[i];
        if (receiver->core != NULL) {
            mc_receiver_stats(receiver->core, &group->result->receivers[i]);
        }
        mc_receiver_free(receiver->core);
        mc_opener_free(receiver->opener);
        mc_sealer_free(receiver->sealer);
        mc_opener_free(group->openers[i]);
        g_free(receiver->has);
    }
    mc_sender_free(group->sender);
    mc_sealer_free(group->sealer);
    g_free(group->openers);
    g_free(group->receivers);
    g_free(group->batch);
    g_free(group->job);
    g_array_unref(group->heap);
}

void vg_run(const struct vg_config *config, struct vg_result *result)
{
    struct group group = { .config = config, .result = result, .random = config->seed };

    *result = (struct vg_result){ .job_ns = g_new0(gint64, config->n),
                                  .receivers = g_new0(struct mc_receiver_stats, config->n) };
    begin(&group);
    while (group.heap->len > 0 && group.n_done < config->n && at(&group, 0)->at <= config->give_up_ns) {
        struct event event = take_event(&group);
        group.now = event.at;
        handle(&group, &event);
    }
    result->complete = group.n_done == config->n;
    result->end_ns = group.now;
    mc_sender_stats(group.sender, &result->sender);
    end(&group);
}

void vg_result_clear(struct vg_result *result)
{
    g_free(result->job_ns);
    g_free(result->receivers);
}
