/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * route: the reads of one thread (memtap, prefetch) that have gone by multicast. Its owner asks route_is_open() before
 * it sends a read by NBD; what the group does not answer comes back, to be sent by NBD after all.
 *
 *        read --> open? --yes--> route_read() --> come()                all of its pages are in the store
 *                   |                  '--------> back()                by NBD, please
 *                   '--no---> link_read()
 *
 * A route belongs to its owner's thread and loop.
 */
#ifndef SF_PAGER_ROUTE_H
#define SF_PAGER_ROUTE_H

#include "sfvmm/pager/loop.h"
#include "sfvmm/pager/mc_client.h"
#include "sfvmm/pager/source.h"

struct route;

struct route_handlers {                           /* none is called from within route_read() */
    void (*come)(struct read *read, void *owner); /* the owner has it back; its data is empty */
    void (*some)(struct read *read, void *owner); /* some of its pages have come; NULL: not wanted */
    void (*back)(struct read *read, void *owner); /* the owner has it back; pages may have come meanwhile */
};

struct route *route_new(struct loop *loop, struct page_store *store, const struct route_handlers *handlers,
                        void *owner);
void route_free(struct route *route); /* reads on their way are freed */

/* From now on there is a group. Client and listener outlive the route. */
void route_set_client(struct route *route, struct mc_client *client, struct mc_listener *listener);

bool route_is_open(const struct route *route);
bool route_is_probing(const struct route *route);    /* it may be open soon: what nobody waits for can wait for that */
unsigned route_in_flight(const struct route *route); /* reads */

/* Takes the read, when it is open. */
void route_read(struct route *route, struct read *read, enum mc_priority priority);
/* Somebody waits for this page of a read that is on its way. Nothing happens if the read is not the route's. */
void route_urge(struct route *route, const struct read *read, uint64_t offset);

/* Once in each turn of the loop. Returns ms until it wants to be called again; -1. */
int route_turn(struct route *route, int64_t now);

#endif
