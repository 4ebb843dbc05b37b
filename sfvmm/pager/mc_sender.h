/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_sender: what the origin sends to the group, and when. Logic alone: time is an argument, pages come from a
 * callback, datagrams leave as a batch. One thread.
 *
 *      opened requests --> mc_sender_take() --+
 *                                             v              read page, pack
 *                                   demand, prefetch, push -----------------> mc_sender_fill() --> seal, send
 *                                             ^
 *      loss reports -------> rate ------------+-- token bucket
 *
 * Times are ns of any steady clock, rates bytes of UDP payload a second. docs/multicast.md says why each number is
 * what it is.
 */
#ifndef SF_PAGER_MC_SENDER_H
#define SF_PAGER_MC_SENDER_H

#include "sfvmm/pager/mc_batch.h"
#include "sfvmm/pager/mc_datagram.h"
#include "sfvmm/wire/pager_message.h"

struct mc_sender;

struct mc_sender_config {
    struct mc_shape shape;
    unsigned payload;                        /* of a datagram; 0: MC_PAYLOAD_DEFAULT */
    uint64_t min_rate, max_rate, start_rate; /* 0: defaults */
    unsigned expected;                       /* receivers that there will be about; 0: unknown */
    unsigned max_receivers;                  /* ids above are refused; 0: MC_RECEIVERS_MAX */
    bool push;                               /* send in idle time what nobody has asked for */
    /*
     * A page's body, into `body`: returns MC_KIND_RAW, MC_KIND_LZ4 or MC_KIND_ZERO (mc_page_pack() makes them), or
     * MC_KIND_PAD: the page can't be had now; it is skipped.
     */
    unsigned (*read)(void *owner, unsigned block, uint32_t page, uint8_t body[SF_PAGE_SIZE], unsigned *total);
    void *owner;
};

struct mc_sender *mc_sender_new(const struct mc_sender_config *config, int64_t now);
void mc_sender_free(struct mc_sender *sender);

/* What idle push begins with, in order; copied; what lies outside the shape is left out. */
void mc_sender_set_working_set(struct mc_sender *sender, const struct sf_pager_run *runs, unsigned n);
void mc_sender_set_push(struct mc_sender *sender, bool push);

/*
 * A blob that all are to have, once: it is sent before all else, then again what is asked for. bytes: total of them, 1
 * to MC_BLOB_MAX, malloc'd, taken. id: the first bytes of its digest. Another one takes its place.
 */
void mc_sender_set_blob(struct mc_sender *sender, uint8_t *bytes, uint32_t total, uint64_t id);
void mc_sender_set_incarnation(struct mc_sender *sender, uint64_t incarnation); /* reports about others are ignored */

/*
 * An opened MC_REQUEST (decrypted content) of a receiver. false: malformed, or no such receiver; nothing has been done
 * but counting it.
 */
bool mc_sender_take(struct mc_sender *sender, unsigned receiver, const uint8_t *content, size_t length, int64_t now);

/* When mc_sender_fill() has something to send: now or earlier means at once. Changes with mc_sender_take(). */
int64_t mc_sender_next(struct mc_sender *sender, int64_t now);

/*
 * The next batch, finished but not sealed, charged to the token bucket. Returns its datagrams, 0: nothing is due.
 * Sequences: batch->first_sequence and following.
 */
unsigned mc_sender_fill(struct mc_sender *sender, struct mc_batch *batch, int64_t now);

/* The socket did not take the last batch: it is lost for all, and the rate too high for this host itself. */
void mc_sender_not_sent(struct mc_sender *sender, int64_t now);

struct mc_sender_stats {
    uint64_t datagrams, bytes;                                      /* bytes: payload of UDP */
    uint64_t pages_demand, pages_prefetch, pages_push, pages_again; /* again: sent before */
    uint64_t requests, refused, runs, pages_asked;
    uint64_t suppressed; /* pages asked for that were on their way */
    uint64_t chunks;     /* of the blob, sent */
    uint64_t dismissed;  /* receivers told to use unicast */
    uint64_t rate;       /* now */
    uint32_t loss_ppm;   /* that the rate is adapted to */
    unsigned receivers;  /* heard of lately */
    bool pushed_all;     /* every page has been sent at least once, or can't be had */
};
void mc_sender_stats(const struct mc_sender *sender, struct mc_sender_stats *stats);

#endif
