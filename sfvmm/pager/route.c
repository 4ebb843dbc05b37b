/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Reads stand in a list. When the listener has news, each is looked at: pages of it that are no longer absent have
 * come, by whichever way. What the client has given up, and what it has kept for BOUND_MS without a word, goes back to
 * the owner. The bound is a safety net: mc_receiver gives up earlier, by what it knows of the group.
 */
#include "sfvmm/pager/route.h"

#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>

#define BOUND_MS 1000 /* of a read that somebody waits for */
#define TICK_MS  100

struct route {
    struct loop_target target; /* must be first */
    struct loop *loop;
    struct page_store *store;
    const struct route_handlers *handlers;
    void *owner;
    struct mc_client *client; /* NULL: no group */
    struct mc_listener *listener;
    struct read *first; /* by next_in_flight; seen: bytes of it that are there */
    unsigned n;
    bool news;
    int64_t next_tick;
};

struct route *route_new(struct loop *loop, struct page_store *store, const struct route_handlers *handlers, void *owner)
{
    struct route *route = calloc(1, sizeof(*route));

    if (!route) {
        abort();
    }
    route->loop = loop;
    route->store = store;
    route->handlers = handlers;
    route->owner = owner;
    return route;
}

void route_free(struct route *route)
{
    struct read *read;

    if (!route) {
        return;
    }
    while ((read = route->first)) {
        route->first = read->next_in_flight;
        read_free(read);
    }
    free(route);
}

static void on_news(struct loop_target *target, uint32_t events)
{
    ((struct route *)target)->news = true;
}

void route_set_client(struct route *route, struct mc_client *client, struct mc_listener *listener)
{
    route->client = client;
    route->listener = listener;
    route->target.handle = on_news;
    loop_poll(route->loop, mc_listener_fd(listener), EPOLLIN, &route->target);
}

bool route_is_open(const struct route *route)
{
    return route->client && mc_client_state(route->client) == MC_MULTICAST;
}

bool route_is_probing(const struct route *route)
{
    return route->client && mc_client_state(route->client) == MC_PROBING;
}

unsigned route_in_flight(const struct route *route)
{
    return route->n;
}

static uint32_t bytes_there(const struct route *route, const struct read *read)
{
    uint32_t there = 0;

    for (uint32_t at = 0; at < read->length; at += SF_PAGE_SIZE) {
        if (page_store_base_state(route->store, read->block, read->offset + at) != PAGE_ABSENT) {
            there += SF_PAGE_SIZE;
        }
    }
    return there;
}

void route_read(struct route *route, struct read *read, enum mc_priority priority)
{
    mc_listener_wait(route->listener, true);
    read->routed = true;
    read->urgent = priority == MC_DEMAND;
    read->since = loop_now();
    read->seen = 0;
    read->next_in_flight = route->first;
    route->first = read;
    route->n++;
    if (!read->urgent) {
        page_store_mark_unasked(route->store, read->block, read->offset, read->length);
    }
    mc_client_want(route->client, read->block, read->offset, read->length, priority);
}

void route_urge(struct route *route, const struct read *read, uint64_t offset)
{
    if (read->routed && !read->urgent) {
        mc_client_want(route->client, read->block, offset, SF_PAGE_SIZE, MC_DEMAND);
    }
}

/* ---- news ---- */

/* Takes reads out of the list for which `leaves` holds; they are returned, by next_in_flight. */
static struct read *take_out(struct route *route,
                             bool (*leaves)(struct route *route, struct read *read, const void *data), const void *data)
{
    struct read **place = &route->first, *read, *taken = NULL;

    while ((read = *place)) {
        if (!leaves(route, read, data)) {
            place = &read->next_in_flight;
            continue;
        }
        *place = read->next_in_flight;
        read->next_in_flight = taken;
        read->routed = false;
        taken = read;
        route->n--;
    }
    mc_listener_wait(route->listener, route->n > 0);
    return taken;
}

/* Only now: the owner may add reads meanwhile. */
static void hand_over(struct route *route, struct read *taken, void (*how)(struct read *read, void *owner))
{
    struct read *read;

    while ((read = taken)) {
        taken = read->next_in_flight;
        read->next_in_flight = NULL;
        how(read, route->owner);
    }
}

static bool has_come(struct route *route, struct read *read, const void *data)
{
    uint32_t there = bytes_there(route, read);

    if (there > read->seen && there < read->length && route->handlers->some) {
        route->handlers->some(read, route->owner);
    }
    read->seen = there;
    return there == read->length;
}

static bool has_fallen(struct route *route, struct read *read, const void *data)
{
    const struct mc_fallen *fallen = data;

    return read->block == fallen->block && read->offset < fallen->offset + fallen->length &&
           fallen->offset < read->offset + read->length;
}

static bool waits_too_long(struct route *route, struct read *read, const void *data)
{
    return read->urgent && *(const int64_t *)data - read->since > BOUND_MS * LOOP_NS_PER_MS;
}

static void take_news(struct route *route)
{
    unsigned n;
    struct mc_fallen *fallen = mc_listener_take(route->listener, &n);

    route->news = false;
    hand_over(route, take_out(route, has_come, NULL), route->handlers->come);
    for (unsigned i = 0; i < n && route->n > 0; i++) {
        hand_over(route, take_out(route, has_fallen, &fallen[i]), route->handlers->back);
    }
    free(fallen);
}

int route_turn(struct route *route, int64_t now)
{
    if (!route->client) {
        return -1;
    }
    if (route->n > 0 && now >= route->next_tick) { /* pages also come by other ways, of which nobody tells */
        route->next_tick = now + TICK_MS * LOOP_NS_PER_MS;
        route->news = true;
        hand_over(route, take_out(route, waits_too_long, &now), route->handlers->back);
    }
    if (route->news) {
        take_news(route);
    }
    return route->n > 0 ? TICK_MS : -1;
}
