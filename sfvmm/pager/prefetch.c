/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *      working set   run 0, run 1, ...      a cursor for each block: what an earlier clone fetched, in its order
 *      completion    0 -------> length      a cursor for each block
 *
 * While a multicast group answers (route.h), reads go there, and the links rest but for what it has not answered. Else
 * each link keeps a few reads in flight, first from the working set, then from the completion. Only absent pages are
 * asked for, and marked as claimed meanwhile, so that memtap does not ask for them as neighbours. What has failed is
 * put right by going over it again: the cursors are set back.
 *
 * All that lasts belongs to the thread.
 */
#include "sfvmm/pager/prefetch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "sfvmm/pager/route.h"

#define CONNECTIONS       3u
#define CONNECTIONS_MAX   16u
#define READ_BYTES        (256u << 10)
#define IN_FLIGHT         8u /* reads of one link */
#define ROUTE_IN_FLIGHT   32u /* reads by multicast: it asks for a bounded number of pages at a time itself */
#define RETRY_MS          50
#define TICK_MS           1000 /* while reads are in flight: links look after their bounds */

struct cursor {
    unsigned run;    /* of the working set */
    uint64_t offset; /* of the completion; before: within the run */
    uint64_t in_run;
    bool set_done, all_done;
};

struct prefetch {
    struct loop *loop;
    struct page_store *store;
    struct prefetch_options options;
    struct sources sources;
    struct route *route;   /* reads that have gone by multicast */
    struct read *returned; /* the group has not answered: for the links, by next */
    bool is_set, want_set, want_all, told_complete;
    unsigned n_links;
    struct link *links[CONNECTIONS_MAX + SF_QC_MAX_BLOCKS];
    struct cursor cursors[SF_QC_MAX_BLOCKS];
    unsigned n_runs;
    struct sf_pager_run *runs;
    int64_t retry_at;
    atomic_uint_fast64_t bytes;
};

/* ---- what next ---- */

static bool next_of_set(struct prefetch *prefetch, unsigned block, uint64_t *start, uint64_t *length)
{
    struct cursor *cursor = &prefetch->cursors[block];
    uint64_t block_length = page_store_block(prefetch->store, block)->length;

    for (; cursor->run < prefetch->n_runs; cursor->run++, cursor->in_run = 0) {
        const struct sf_pager_run *run = &prefetch->runs[cursor->run];
        uint64_t end = run->offset + (uint64_t)run->pages * SF_PAGE_SIZE;
        if (run->block != block || end > block_length || end <= run->offset) {
            continue;
        }
        while (run->offset + cursor->in_run < end &&
               page_store_next_absent(prefetch->store, block, run->offset + cursor->in_run, READ_BYTES, start,
                                      length) &&
               *start < end) {
            *length = *start + *length > end ? end - *start : *length;
            cursor->in_run = *start + *length - run->offset;
            if (!page_store_is_claimed(prefetch->store, block, *start)) {
                return true;
            }
        }
    }
    cursor->set_done = true;
    return false;
}

static bool next_of_all(struct prefetch *prefetch, unsigned block, uint64_t *start, uint64_t *length)
{
    struct cursor *cursor = &prefetch->cursors[block];

    while (page_store_next_absent(prefetch->store, block, cursor->offset, READ_BYTES, start, length)) {
        cursor->offset = *start + *length;
        if (!page_store_is_claimed(prefetch->store, block, *start)) {
            return true;
        }
    }
    cursor->all_done = true;
    return false;
}

static bool next(struct prefetch *prefetch, unsigned block, uint64_t *start, uint64_t *length)
{
    const struct cursor *cursor = &prefetch->cursors[block];

    return (prefetch->want_set && !cursor->set_done && next_of_set(prefetch, block, start, length)) ||
           (prefetch->want_all && !cursor->all_done && next_of_all(prefetch, block, start, length));
}

static void start_again(struct prefetch *prefetch, unsigned block)
{
    prefetch->cursors[block] = (struct cursor){ 0 };
}

/* ---- reads ---- */

static void check_complete(struct prefetch *prefetch)
{
    if (!prefetch->told_complete && page_store_is_cache(prefetch->store) && page_store_is_complete(prefetch->store)) {
        prefetch->told_complete = true;
        prefetch->options.complete(prefetch->options.owner);
    }
}

static void on_read_done(struct link *link, struct read *read, void *owner)
{
    struct prefetch *prefetch = owner;

    page_store_claim(prefetch->store, read->block, read->offset, read->length, false);
    if (read->error || !read_keep(read, prefetch->store, true)) {
        start_again(prefetch, read->block);
        prefetch->retry_at = loop_now() + RETRY_MS * LOOP_NS_PER_MS;
    } else {
        atomic_fetch_add_explicit(&prefetch->bytes, read->length, memory_order_relaxed);
    }
    read_free(read);
    check_complete(prefetch);
}

static void on_link_ready(struct link *link, void *owner)
{
}

static void on_link_down(struct link *link, const char *reason, void *owner)
{
    struct prefetch *prefetch = owner;

    prefetch->options.down(link_source(link), reason, prefetch->options.owner);
}

static const struct link_handlers link_handlers = { on_link_ready, on_read_done, on_link_down };

static void on_come(struct read *read, void *owner)
{
    struct prefetch *prefetch = owner;

    page_store_claim(prefetch->store, read->block, read->offset, read->length, false);
    atomic_fetch_add_explicit(&prefetch->bytes, read->length, memory_order_relaxed);
    read_free(read);
    check_complete(prefetch);
}

static void on_back(struct read *read, void *owner)
{
    struct prefetch *prefetch = owner;

    read->next = prefetch->returned;
    prefetch->returned = read;
}

static const struct route_handlers route_handlers = { on_come, NULL, on_back };

/* A read of this block that the group has not answered; NULL. */
static struct read *take_returned(struct prefetch *prefetch, unsigned block)
{
    struct read **place = &prefetch->returned, *read;

    while ((read = *place) && read->block != block) {
        place = &read->next;
    }
    if (read) {
        *place = read->next;
    }
    return read;
}

/* The next read of a block, claimed; NULL: none. */
static struct read *next_read(struct prefetch *prefetch, unsigned block)
{
    uint64_t start, length;
    struct read *read;

    if (!next(prefetch, block, &start, &length)) {
        return NULL;
    }
    read = read_new(block, start, length);
    page_store_claim(prefetch->store, block, start, length, true);
    return read;
}

static void fill(struct prefetch *prefetch, struct link *link)
{
    bool returned_only = route_is_open(prefetch->route) || route_is_probing(prefetch->route);
    struct read *read;

    while (link_is_ready(link) && link_in_flight(link) < IN_FLIGHT &&
           ((read = take_returned(prefetch, link_block(link))) ||
            (!returned_only && (read = next_read(prefetch, link_block(link)))))) {
        link_read(link, read);
    }
}

static void fill_route(struct prefetch *prefetch)
{
    unsigned n_blocks = page_store_n_blocks(prefetch->store);
    struct read *read;

    for (unsigned i = 0; i < n_blocks; i++) {
        while (page_store_block(prefetch->store, i)->is_cache && route_is_open(prefetch->route) &&
               route_in_flight(prefetch->route) < ROUTE_IN_FLIGHT && (read = next_read(prefetch, i))) {
            route_read(prefetch->route, read, MC_PREFETCH);
        }
    }
}

static int turn(void *owner, int64_t now)
{
    struct prefetch *prefetch = owner;
    unsigned in_flight;
    int wish = route_turn(prefetch->route, now);

    if (prefetch->is_set && now >= prefetch->retry_at) {
        fill_route(prefetch);
    }
    in_flight = route_in_flight(prefetch->route);
    for (unsigned i = 0; i < prefetch->n_links; i++) {
        int one = link_turn(prefetch->links[i], now);
        wish = wish < 0 ? one : one < 0 || wish < one ? wish : one;
        if (prefetch->is_set && now >= prefetch->retry_at) {
            fill(prefetch, prefetch->links[i]);
        }
        in_flight += link_in_flight(prefetch->links[i]);
    }
    if (in_flight == 0 && prefetch->want_all && prefetch->is_set && now >= prefetch->retry_at &&
        !page_store_is_complete(prefetch->store)) {
        /* Passed by because it was claimed, and did not come. */
        for (unsigned i = 0; i < page_store_n_blocks(prefetch->store); i++) {
            start_again(prefetch, i);
        }
        prefetch->retry_at = now + RETRY_MS * LOOP_NS_PER_MS;
    }
    if (in_flight > 0) {
        wish = wish < 0 || wish > TICK_MS ? TICK_MS : wish;
    }
    if (now < prefetch->retry_at) {
        wish = wish < 0 || wish > RETRY_MS ? RETRY_MS : wish;
    }
    return wish;
}

/* ---- orders ---- */

struct order {
    struct prefetch *prefetch;
    struct mc_client *client;
    struct mc_listener *listener;
    const struct source *source;
    struct sf_pager_run *runs;
    unsigned n;
    bool set, all;
};

static struct order *order_new(struct prefetch *prefetch)
{
    struct order *order = calloc(1, sizeof(*order));

    if (!order) {
        abort();
    }
    order->prefetch = prefetch;
    return order;
}

static struct link *add_link(struct prefetch *prefetch)
{
    return prefetch->links[prefetch->n_links++] =
               link_new(prefetch->loop, &prefetch->sources, "prefetch", &link_handlers, prefetch);
}

static void order_source(void *data)
{
    struct order *order = data;
    struct prefetch *prefetch = order->prefetch;

    if (prefetch->sources.n < SOURCES_MAX) {
        prefetch->sources.all[prefetch->sources.n++] = order->source;
    }
    while (!prefetch->is_set && prefetch->n_links < prefetch->options.connections) {
        add_link(prefetch);
    }
    for (unsigned i = 0; i < prefetch->n_links; i++) {
        link_sources_changed(prefetch->links[i]);
    }
    free(order);
}

/* Most connections go to the block with the most pages; each other one gets one of its own. */
static void order_set(void *data)
{
    struct order *order = data;
    struct prefetch *prefetch = order->prefetch;
    unsigned n_blocks = page_store_n_blocks(prefetch->store), biggest = n_blocks;

    for (unsigned i = 0; i < n_blocks; i++) {
        const struct page_block *block = page_store_block(prefetch->store, i);
        if (block->is_cache &&
            (biggest == n_blocks || block->length > page_store_block(prefetch->store, biggest)->length)) {
            biggest = i;
        }
    }
    if (biggest < n_blocks) {
        const struct page_block *block = page_store_block(prefetch->store, biggest);
        while (prefetch->n_links < prefetch->options.connections) {
            add_link(prefetch);
        }
        for (unsigned i = 0; i < prefetch->n_links; i++) {
            link_assign(prefetch->links[i], biggest, block->id, block->length);
        }
    }
    for (unsigned i = 0; i < n_blocks; i++) {
        const struct page_block *block = page_store_block(prefetch->store, i);
        if (block->is_cache && i != biggest) {
            link_assign(add_link(prefetch), i, block->id, block->length);
        }
    }
    prefetch->is_set = true;
    check_complete(prefetch);
    free(order);
}

static void order_multicast(void *data)
{
    struct order *order = data;

    route_set_client(order->prefetch->route, order->client, order->listener);
    free(order);
}

static void order_what(void *data)
{
    struct order *order = data;
    struct prefetch *prefetch = order->prefetch;

    prefetch->want_set = order->set;
    prefetch->want_all = order->all;
    free(order);
}

static void order_runs(void *data)
{
    struct order *order = data;
    struct prefetch *prefetch = order->prefetch;

    free(prefetch->runs);
    prefetch->runs = order->runs;
    prefetch->n_runs = order->n;
    memset(prefetch->cursors, 0, sizeof(prefetch->cursors));
    free(order);
}

/* ---- from the control thread ---- */

struct prefetch *prefetch_new(struct page_store *store, const struct prefetch_options *options)
{
    struct prefetch *prefetch = calloc(1, sizeof(*prefetch));

    if (!prefetch) {
        return NULL;
    }
    prefetch->store = store;
    prefetch->options = *options;
    if (prefetch->options.connections == 0 || prefetch->options.connections > CONNECTIONS_MAX) {
        prefetch->options.connections = CONNECTIONS;
    }
    prefetch->want_set = true;
    prefetch->loop = loop_new("prefetch", turn, prefetch);
    if (!prefetch->loop) {
        free(prefetch);
        return NULL;
    }
    prefetch->route = route_new(prefetch->loop, store, &route_handlers, prefetch);
    return prefetch;
}

bool prefetch_start(struct prefetch *prefetch)
{
    return loop_start(prefetch->loop);
}

void prefetch_free(struct prefetch *prefetch)
{
    struct read *read;

    if (prefetch) {
        loop_stop(prefetch->loop);
        for (unsigned i = 0; i < prefetch->n_links; i++) {
            link_free(prefetch->links[i]);
        }
        while ((read = prefetch->returned)) {
            prefetch->returned = read->next;
            read_free(read);
        }
        route_free(prefetch->route);
        loop_free(prefetch->loop);
        free(prefetch->runs);
        free(prefetch);
    }
}

void prefetch_add_source(struct prefetch *prefetch, const struct source *source)
{
    struct order *order = order_new(prefetch);

    order->source = source;
    loop_post(prefetch->loop, order_source, order);
}

void prefetch_store_is_set(struct prefetch *prefetch)
{
    loop_post(prefetch->loop, order_set, order_new(prefetch));
}

void prefetch_set_multicast(struct prefetch *prefetch, struct mc_client *client, struct mc_listener *listener)
{
    struct order *order = order_new(prefetch);

    order->client = client;
    order->listener = listener;
    loop_post(prefetch->loop, order_multicast, order);
}

void prefetch_set(struct prefetch *prefetch, bool working_set, bool complete)
{
    struct order *order = order_new(prefetch);

    order->set = working_set;
    order->all = complete;
    loop_post(prefetch->loop, order_what, order);
}

void prefetch_set_working_set(struct prefetch *prefetch, const struct sf_pager_run *runs, unsigned n)
{
    struct order *order = order_new(prefetch);

    order->runs = malloc((n ? n : 1) * sizeof(*runs));
    if (!order->runs) {
        abort();
    }
    memcpy(order->runs, runs, n * sizeof(*runs));
    order->n = n;
    loop_post(prefetch->loop, order_runs, order);
}

uint64_t prefetch_bytes(const struct prefetch *prefetch)
{
    return atomic_load_explicit(&prefetch->bytes, memory_order_relaxed);
}
