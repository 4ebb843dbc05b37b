/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_pending: the pages that a receiver is asking for, found by page and by when each is due. Private to mc_receiver.
 */
#ifndef SF_PAGER_MC_PENDING_H
#define SF_PAGER_MC_PENDING_H

#include "sfvmm/pager/mc_datagram.h"

struct mc_pending {
    uint8_t block, priority;
    uint8_t asked; /* how often */
    uint32_t page;
    int64_t due;               /* ns: ask, or ask again */
    int64_t first_at, last_at; /* asked for; once it has been */
    unsigned heap_slot;        /* its place in the heap */
};

struct mc_pending_set {
    unsigned max, n, n_of[MC_PRIORITIES];
    struct mc_pending *items;
    unsigned *heap, n_hash, *hash; /* of item numbers; hash: + 1, 0 is free */
    unsigned *spare;               /* numbers of unused items: max - n of them */
};

void mc_pending_init(struct mc_pending_set *set, unsigned max);
void mc_pending_clear(struct mc_pending_set *set);

struct mc_pending *mc_pending_find(const struct mc_pending_set *set, unsigned block, uint32_t page);
/* Not there yet. NULL: full. */
struct mc_pending *mc_pending_add(struct mc_pending_set *set, unsigned block, uint32_t page, enum mc_priority priority,
                                  int64_t due);
void mc_pending_remove(struct mc_pending_set *set, struct mc_pending *pending);
void mc_pending_set_due(struct mc_pending_set *set, struct mc_pending *pending, int64_t due);
void mc_pending_promote(struct mc_pending_set *set, struct mc_pending *pending); /* prefetch -> demand */

/* The one that is due first. NULL: none. */
struct mc_pending *mc_pending_first(const struct mc_pending_set *set);

#endif
