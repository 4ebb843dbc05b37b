/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Receivers take turns, page by page, so that none has to wait for another's long list; within a receiver it is first
 * come, first served. Each has a credit of pages: more than all there are, and it grows while time passes. Whoever
 * asks on and on beyond that, lying or hopelessly lossy, ends in the class that is served last.
 */
#include "sfvmm/pager/mc_peers.h"

#include <stdlib.h>

#define QUEUE_FIRST 8u
#define QUEUE_MAX   1024u /* wishes of one receiver and priority: some six requests */

void mc_peers_init(struct mc_peers *peers, unsigned max, int64_t credit)
{
    *peers = (struct mc_peers){ .max = max, .credit_max = credit };
    peers->peers = calloc((size_t)max + 1, sizeof(*peers->peers));
    if (peers->peers == NULL) {
        abort();
    }
    for (unsigned i = 0; i < MC_CLASSES; i++) {
        TAILQ_INIT(&peers->classes[i]);
    }
}

void mc_peers_clear(struct mc_peers *peers)
{
    for (unsigned i = 0; i <= peers->max; i++) {
        if (peers->peers[i] != NULL) {
            free(peers->peers[i]->queues[MC_DEMAND].wishes);
            free(peers->peers[i]->queues[MC_PREFETCH].wishes);
            free(peers->peers[i]);
        }
    }
    free(peers->peers);
}

struct mc_peer *mc_peers_get(struct mc_peers *peers, unsigned id)
{
    struct mc_peer *peer;

    if (id == 0 || id > peers->max) {
        return NULL;
    }
    if (peers->peers[id] != NULL) {
        return peers->peers[id];
    }
    peer = calloc(1, sizeof(*peer));
    if (peer == NULL) {
        abort();
    }
    peer->id = (uint16_t)id;
    peer->heard_at = INT64_MIN;
    peer->credit = peers->credit_max;
    for (unsigned i = 0; i < MC_PRIORITIES; i++) {
        peer->queues[i].peer = peer;
        peer->queues[i].priority = (enum mc_priority)i;
    }
    peers->peers[id] = peer;
    return peer;
}

/* At the end of the class that its receiver's credit allows. */
static void line_up(struct mc_peers *peers, struct mc_queue *queue)
{
    queue->class = queue->peer->credit <= 0       ? MC_CLASS_LATE
                   : queue->priority == MC_DEMAND ? MC_CLASS_DEMAND
                                                  : MC_CLASS_PREFETCH;
    TAILQ_INSERT_TAIL(&peers->classes[queue->class], queue, link);
}

static void grow(struct mc_queue *queue)
{
    unsigned size = queue->size == 0 ? QUEUE_FIRST : queue->size * 2;
    struct mc_wish *wishes = malloc(size * sizeof(*wishes));

    if (wishes == NULL) {
        abort();
    }
    for (unsigned i = 0; i < queue->n; i++) {
        wishes[i] = queue->wishes[(queue->first + i) % queue->size];
    }
    free(queue->wishes);
    queue->wishes = wishes;
    queue->size = size;
    queue->first = 0;
}

bool mc_peers_add(struct mc_peers *peers, struct mc_peer *peer, enum mc_priority priority, const struct mc_wish *wish)
{
    struct mc_queue *queue = &peer->queues[priority];

    if (queue->n == QUEUE_MAX) {
        return false;
    }
    if (queue->n == queue->size) {
        grow(queue);
    }
    queue->wishes[(queue->first + queue->n++) % queue->size] = *wish;
    if (queue->n == 1) {
        line_up(peers, queue);
    }
    return true;
}

bool mc_peers_is_empty(const struct mc_peers *peers, enum mc_class class)
{
    return TAILQ_EMPTY(&peers->classes[class]);
}

bool mc_peers_next(struct mc_peers *peers, enum mc_class class, struct mc_wish *wish, struct mc_peer **who)
{
    struct mc_queue *queue = TAILQ_FIRST(&peers->classes[class]);
    struct mc_wish *first;

    if (queue == NULL) {
        return false;
    }
    TAILQ_REMOVE(&peers->classes[class], queue, link);
    first = &queue->wishes[queue->first];
    *wish = *first;
    wish->pages = 1;
    *who = queue->peer;
    first->page++;
    first->pages--;
    if (first->pages == 0) {
        queue->first = (queue->first + 1) % queue->size;
        queue->n--;
    }
    if (queue->n > 0) {
        line_up(peers, queue);
    }
    return true;
}

void mc_peer_forget(struct mc_peers *peers, struct mc_peer *peer)
{
    for (unsigned i = 0; i < MC_PRIORITIES; i++) {
        struct mc_queue *queue = &peer->queues[i];
        if (queue->n > 0) {
            TAILQ_REMOVE(&peers->classes[queue->class], queue, link);
        }
        free(queue->wishes);
        queue->wishes = NULL;
        queue->n = queue->size = queue->first = 0;
    }
}

void mc_peers_refill(struct mc_peers *peers, int64_t credit)
{
    struct mc_queues late = TAILQ_HEAD_INITIALIZER(late);
    struct mc_queue *queue;

    for (unsigned i = 1; i <= peers->max; i++) {
        struct mc_peer *peer = peers->peers[i];
        if (peer != NULL) {
            peer->credit += credit;
            if (peer->credit > peers->credit_max) {
                peer->credit = peers->credit_max;
            }
        }
    }
    TAILQ_CONCAT(&late, &peers->classes[MC_CLASS_LATE], link);
    while ((queue = TAILQ_FIRST(&late)) != NULL) {
        TAILQ_REMOVE(&late, queue, link);
        line_up(peers, queue);
    }
}

void mc_peers_count(struct mc_peers *peers, int64_t heard_since)
{
    peers->n_active = 0;
    for (unsigned i = 1; i <= peers->max; i++) {
        const struct mc_peer *peer = peers->peers[i];
        if (peer != NULL && peer->heard_at >= heard_since && !(peer->flags & MC_FLAG_LEAVING)) {
            peers->n_active++;
        }
    }
}
