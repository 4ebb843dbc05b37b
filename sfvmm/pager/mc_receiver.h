/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_receiver: what a host does with the datagrams of the group, and what it asks the origin for. Logic alone: time is
 * an argument, datagrams come opened and leave unsealed. One thread.
 *
 *      opened data ---> mc_receiver_take() --> whole pages --> page()
 *                            | gaps, loss
 *      want() --> asked for: at once or within the back-off, again after a bound --> mc_receiver_poll() --> seal, send
 *                            |
 *                            +-- no answer, too lossy, dismissed --> fall_back(): by unicast
 *
 * Times are ns of any steady clock.
 */
#ifndef SF_PAGER_MC_RECEIVER_H
#define SF_PAGER_MC_RECEIVER_H

#include "sfvmm/pager/mc_datagram.h"

struct mc_receiver;

enum mc_state {
    MC_PROBING,   /* has said hello, nothing has come from the group yet */
    MC_MULTICAST, /* asks the group's origin */
    MC_UNICAST,   /* asks for nothing, still takes what comes; probes again later */
};

struct mc_body {
    unsigned kind; /* MC_KIND_ZERO, RAW, LZ4: for mc_page_unpack() */
    unsigned total;
    const uint8_t *bytes; /* valid during the call */
};

struct mc_receiver_config {
    struct mc_shape shape;
    uint16_t id;
    unsigned expected;    /* receivers that there will be about; 0: few */
    unsigned payload;     /* of requests; 0: MC_PAYLOAD_DEFAULT */
    unsigned max_partial; /* pages half received that are kept; 0: the default */
    unsigned max_pending; /* pages that are asked for at a time; 0: the default */
    uint64_t seed;        /* of its random delays: different on each host */

    /* Pages that this host does not have, any priority. All three are called within the functions below. */
    bool (*lacks)(void *owner, unsigned block, uint32_t page);
    /*
     * Pages that have come: `pages` many of one kind ZERO, or one RAW or LZ4. At least one of them is lacking. asked:
     * this host had asked for it. false: the body is not good, nothing has come.
     */
    bool (*page)(void *owner, unsigned block, uint32_t page, unsigned pages, const struct mc_body *body, bool asked);
    /* These wanted pages have to be fetched by unicast. They are no longer wanted here. */
    void (*fall_back)(void *owner, unsigned block, uint32_t page, unsigned pages, enum mc_priority priority);
    /* The state has changed; reason: a sentence for people, static. */
    void (*changed)(void *owner, enum mc_state state, const char *reason);
    void *owner;
};

struct mc_receiver *mc_receiver_new(const struct mc_receiver_config *config, int64_t now);
void mc_receiver_free(struct mc_receiver *receiver);

/*
 * Pages that are wanted; those that are there already are left out. Demand is asked for before prefetch, of which a
 * bounded number is asked for at a time. In MC_UNICAST they are handed to fall_back() at once.
 */
void mc_receiver_want(struct mc_receiver *receiver, unsigned block, uint32_t page, uint32_t pages,
                      enum mc_priority priority, int64_t now);

/* Pages have come by other ways (optional: it is also seen by lacks() before they would be asked for). */
void mc_receiver_have(struct mc_receiver *receiver, unsigned block, uint32_t page, uint32_t pages);

/*
 * An opened MC_DATA: header and decrypted content. false: malformed; nothing has been done but counting it.
 * Take all that has come before mc_receiver_poll(), or silence is seen where there is none.
 */
bool mc_receiver_take(struct mc_receiver *receiver, uint64_t incarnation, uint64_t sequence, const uint8_t *content,
                      size_t length, int64_t now);

/* When mc_receiver_poll() has something to do: now or earlier means at once; INT64_MAX: never. */
int64_t mc_receiver_next(const struct mc_receiver *receiver);

/*
 * Does what is due at `now`; a request to be sealed and sent to the origin goes into content (room for the configured
 * payload - MC_OVERHEAD bytes). Returns its length, 0: nothing to send. Call until it returns 0.
 */
size_t mc_receiver_poll(struct mc_receiver *receiver, uint8_t *content, int64_t now);

/* The last word to the origin, before the end. As mc_receiver_poll(). */
size_t mc_receiver_leave(struct mc_receiver *receiver, uint8_t *content);

struct mc_receiver_stats {
    enum mc_state state;
    const char *reason;                 /* why it is in that state */
    uint64_t datagrams, bytes, missing; /* missing: by gaps in sequences that have not been filled */
    uint64_t malformed;
    uint64_t pages_asked, pages_unasked, pages_known; /* come: asked for, not asked for, there already */
    uint64_t requests, runs, again;                   /* sent; runs that were asked for again */
    uint64_t suppressed;                              /* came before this host's turn to ask */
    uint64_t fallen_back;                             /* pages */
    uint64_t partial_dropped;                         /* pages half received that had to give way */
    uint32_t loss_ppm;                                /* lately */
    unsigned pending, partial;                        /* now */
};
void mc_receiver_stats(const struct mc_receiver *receiver, struct mc_receiver_stats *stats);

#endif
