/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc_peers: the receivers as the origin knows them: what each has asked for and not got, what it reported, what it may
 * still cost. Private to mc_sender. Times in ns unless named ms.
 */
#ifndef SF_PAGER_MC_PEERS_H
#define SF_PAGER_MC_PEERS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include "sfvmm/pager/mc_datagram.h"

/* Served in this order. */
enum mc_class {
    MC_CLASS_DEMAND,
    MC_CLASS_PREFETCH,
    MC_CLASS_LATE, /* of receivers that have had more than their share */
    MC_CLASSES
};

/* Pages that a receiver asked for. */
struct mc_wish {
    uint8_t block;
    uint16_t pages;
    uint32_t page;
    uint32_t highest; /* low bits of the highest sequence that it had seen */
    uint32_t at_ms;   /* when the request came */
};

struct mc_queue {
    TAILQ_ENTRY(mc_queue) link; /* in a class while n > 0 */
    struct mc_peer *peer;
    enum mc_priority priority;
    enum mc_class class;
    unsigned first, n, size; /* a ring */
    struct mc_wish *wishes;
};

struct mc_peer {
    uint16_t id;
    uint8_t flags;
    int64_t heard_at;
    uint64_t received, missing;             /* of its last report */
    uint64_t round_received, round_missing; /* in this round of mc_rate */
    unsigned strikes;                       /* rounds in a row in which it lost far more than the others */
    int64_t dismissed_until;
    int64_t credit; /* pages that may be sent for it before it stands back behind others */
    uint32_t chunks; /* of the blob, sent again for it */
    struct mc_queue queues[MC_PRIORITIES];
};

struct mc_peers {
    unsigned max; /* highest id */
    int64_t credit_max;
    struct mc_peer **peers; /* max + 1 of them; NULL: never heard of */
    unsigned n_active;
    TAILQ_HEAD(mc_queues, mc_queue) classes[MC_CLASSES];
};

void mc_peers_init(struct mc_peers *peers, unsigned max, int64_t credit);
void mc_peers_clear(struct mc_peers *peers);

/* Made when it is heard of for the first time. NULL: no such id. */
struct mc_peer *mc_peers_get(struct mc_peers *peers, unsigned id);

/* false: it has asked for so much already that this is dropped. */
bool mc_peers_add(struct mc_peers *peers, struct mc_peer *peer, enum mc_priority priority, const struct mc_wish *wish);
bool mc_peers_is_empty(const struct mc_peers *peers, enum mc_class class);

/*
 * One page of the class, receivers in turn: wish->pages is 1. Who: the receiver whose turn it was. false: the class is
 * empty.
 */
bool mc_peers_next(struct mc_peers *peers, enum mc_class class, struct mc_wish *wish, struct mc_peer **who);

/* All that a receiver asked for is dropped. */
void mc_peer_forget(struct mc_peers *peers, struct mc_peer *peer);

/* Once in a while: everybody's credit grows, and who has not been heard of since is no longer active. */
void mc_peers_refill(struct mc_peers *peers, int64_t credit);
void mc_peers_count(struct mc_peers *peers, int64_t heard_since);

#endif
