/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_partial: pages of which only fragments have come, in bounded memory: when there are too many, the one whose last
 * fragment is the oldest gives way. Private to mc_receiver.
 *
 *      body   |....|####|####|....|##|      a bit for each MC_FRAGMENT_UNIT bytes that have come
 */
#ifndef SF_PAGER_MC_PARTIAL_H
#define SF_PAGER_MC_PARTIAL_H

#include "sfvmm/pager/mc_datagram.h"

#define MC_PARTIAL_WORDS (SF_PAGE_SIZE / MC_FRAGMENT_UNIT / 64u)

struct mc_partial {
    bool used, given_up; /* given up: the rest of it will not come by itself */
    uint8_t kind, block;
    uint16_t total;
    unsigned units; /* that have come */
    uint32_t page;
    uint64_t sequence; /* of the last fragment */
    uint64_t has[MC_PARTIAL_WORDS];
    uint8_t *body; /* SF_PAGE_SIZE; allocated when used for the first time */
};

struct mc_partial_set {
    unsigned max, n;
    struct mc_partial *items;
    uint64_t dropped;
};

void mc_partial_init(struct mc_partial_set *set, unsigned max);
void mc_partial_clear(struct mc_partial_set *set);

/*
 * Takes a fragment (record of a RAW or LZ4 that is not whole). Returns the partial when the body is whole with it: use
 * it, then mc_partial_drop(). NULL: not yet.
 */
struct mc_partial *mc_partial_take(struct mc_partial_set *set, const struct mc_record *record, uint64_t sequence);

/* NULL: none. */
struct mc_partial *mc_partial_find(const struct mc_partial_set *set, unsigned block, uint32_t page);
void mc_partial_drop(struct mc_partial_set *set, struct mc_partial *partial);
void mc_partial_drop_all(struct mc_partial_set *set);

/* One that has had nothing since `sequence` and is not given up yet; it is from now on. NULL: none. */
struct mc_partial *mc_partial_give_up(struct mc_partial_set *set, uint64_t sequence);

#endif
