/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *      QEMU of clone 1 --+                                 +-- demand link --> source     the page somebody waits for
 *      QEMU of clone 2 --+-- userfaultfd --> memtap thread +-- near link ----> source     pages around it
 *      ...             --+                       |
 *            ^                                   | pwrite
 *            |                                   v
 *            +--------- maps ------------ memfd of the block
 *
 * A fault on a page that is absent becomes a read of that one page on the demand link, at once, in the thread that
 * has read the fault: nothing is handed to another thread, nothing else uses that connection, so nothing stands
 * before it. When the page comes it is written to the memfd, noted in the store, and all who waited are woken
 * (UFFDIO_WAKE): they fault again inside the kernel and find it. A page that is zero and not in the memfd is put into
 * the clone by UFFDIO_ZEROPAGE.
 *
 * Faults of many clones on one page wait for one read. A page that another thread writes meanwhile (prefetch) may be
 * written twice, with the same content, which nobody can tell.
 *
 * Neighbours: when the page has come and its waiters are awake, the rest of the aligned unit around it is asked for
 * on the near link; not before, as it would share the source's time with the page. The unit grows as faults follow
 * each other and falls back when they jump. A fault on a page that is on its way so waits for it.
 *
 * A read that fails is sent again, on the demand link, when it is ready again, as long as somebody waits for it. Who
 * has waited for the bound of a fault makes us say "lost", once: sfvmmd stops the clones. We go on trying.
 *
 * Where the origin's host is in a multicast group with this one (route.h), reads go there first, of demand and of
 * neighbours alike; what the group does not answer goes by the links as told above.
 *
 * After a kill of sf-pager the faults that it had read are known to nobody. So attaching wakes everything: who waits
 * faults again, and the fault is read by us. A clone that ends without being detached costs nothing but its
 * descriptor.
 *
 * memtap's thread owns all but `stats` and `recorded`.
 */
#include "sfvmm/pager/memtap.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "sfvmm/pager/route.h"

#define FAULT_SECONDS   60u            /* bound of one fault: a link that is cut for 10 s must fit */
#define FAULTS_PER_READ 32             /* messages of one userfaultfd in one turn */
#define UNIT_FIRST      (64u << 10)    /* bytes around a fault */
#define UNIT_MIN        (32u << 10)    /* of an idle Linux guest's first 5 s: 21 MiB fetched, with 64 KiB 36 MiB */
#define UNIT_MAX        (256u << 10)
#define NEAR_RUNS_MAX   8u             /* reads for one fault's neighbours */
#define NEAR_IN_FLIGHT  32u            /* reads on the near link; more are not asked for */
#define RECORD_MAX      (1u << 16)     /* faults whose order is kept */
#define TICK_MS         100            /* between two looks at the bounds */
#define RETRY_MS        20             /* before a failed read is sent again on a link that stands */

#define ROLE_DEMAND     0u             /* read.user */
#define ROLE_NEAR       1u

struct clone {
    struct loop_target target; /* must be first */
    struct memtap *memtap;
    struct clone *next;
    char *name;
    int uffd;
    bool detached; /* freed at the end of the turn */
    unsigned n_areas;
    struct memtap_area areas[SF_QC_MAX_BLOCKS];
};

struct waiter {
    struct waiter *next;
    struct clone *clone;
    uint64_t address; /* of the page, in the clone */
    int64_t since;
};

/* One page_store_fetch(): several reads. */
struct fetch_group {
    struct fetch_group *next;
    unsigned reads;
    int64_t since;
    page_store_done done; /* NULL: has been called */
    void *data;
};

struct block_links {
    struct link *demand, *near;
    struct read *queue, **last; /* not in flight: the link is down, or they failed */
    int64_t retry_at;
    uint64_t unit, unit_end;    /* of the last fault's neighbours: bytes, offset behind them */
};

struct memtap {
    struct loop *loop;
    struct page_store *store;
    struct memtap_options options;
    struct memtap_stats stats;
    struct loop_target fetch_target;
    struct sources sources;
    bool is_set, neighbours, lost;
    unsigned n_blocks;
    struct block_links blocks[SF_QC_MAX_BLOCKS];
    struct link *early_demand, *early_near; /* connected before the blocks are known */
    struct route *route;                    /* reads that have gone by multicast */
    struct clone *clones;
    struct read *in_flight; /* of all links, and queued ones: by `next` */
    struct fetch_group *groups;
    int64_t next_tick;
    char reason[512]; /* why a connection failed last */

    pthread_mutex_t lock; /* of what follows */
    unsigned n_recorded;
    struct sf_pager_run *recorded;
};

/* ---- waking ---- */

/* A clone that is ending answers ESRCH: nothing is left to wake. EAGAIN: its memory map is being changed. */
static void wake(const struct clone *clone, uint64_t address, uint64_t length)
{
    struct uffdio_range range = { .start = address, .len = length };

    while (ioctl(clone->uffd, UFFDIO_WAKE, &range) < 0 && errno == EAGAIN) {
    }
}

static void fill_with_zero(const struct clone *clone, uint64_t address)
{
    struct uffdio_zeropage zero = { .range = { .start = address, .len = SF_PAGE_SIZE } };

    while (ioctl(clone->uffd, UFFDIO_ZEROPAGE, &zero) < 0 && errno == EAGAIN) {
        zero.zeropage = 0;
    }
    if (zero.zeropage != SF_PAGE_SIZE) { /* it is there already: another vCPU's fault */
        wake(clone, address, SF_PAGE_SIZE);
    }
}

/* The page is no longer absent. */
static void let_go_on(struct memtap *memtap, const struct clone *clone, uint64_t address, unsigned block,
                      uint64_t offset)
{
    if (page_store_base_state(memtap->store, block, offset) == PAGE_ZERO) {
        fill_with_zero(clone, address);
    } else {
        wake(clone, address, SF_PAGE_SIZE);
    }
}

/* ---- reads ---- */

static void list_add(struct memtap *memtap, struct read *read)
{
    read->next = memtap->in_flight;
    memtap->in_flight = read;
}

static void list_remove(struct memtap *memtap, const struct read *read)
{
    struct read **place = &memtap->in_flight;

    while (*place != read) {
        place = &(*place)->next;
    }
    *place = read->next;
}

static struct read *find_read(const struct memtap *memtap, unsigned block, uint64_t offset)
{
    for (struct read *read = memtap->in_flight; read; read = read->next) {
        if (read->block == block && offset >= read->offset && offset - read->offset < read->length) {
            return read;
        }
    }
    return NULL;
}

/* Queued reads use next_in_flight: they are in no link. */
static void enqueue(struct memtap *memtap, struct read *read)
{
    struct block_links *links = &memtap->blocks[read->block];

    read->next_in_flight = NULL;
    *links->last = read;
    links->last = &read->next_in_flight;
}

static void send_queue(struct memtap *memtap, struct block_links *links)
{
    struct read *read = links->queue, *next;

    links->queue = NULL;
    links->last = &links->queue;
    for (; read; read = next) {
        next = read->next_in_flight;
        link_read(links->demand, read);
    }
}

static void send_or_queue(struct memtap *memtap, struct read *read)
{
    struct block_links *links = &memtap->blocks[read->block];

    if (route_is_open(memtap->route)) {
        route_read(memtap->route, read, MC_DEMAND);
    } else if (link_is_ready(links->demand) && !links->queue) {
        link_read(links->demand, read);
    } else {
        enqueue(memtap, read);
    }
}

static void record(struct memtap *memtap, unsigned block, uint64_t offset, uint64_t length)
{
    pthread_mutex_lock(&memtap->lock);
    if (memtap->n_recorded < RECORD_MAX) {
        memtap->recorded[memtap->n_recorded++] =
            (struct sf_pager_run){ .block = block, .pages = length / SF_PAGE_SIZE, .offset = offset };
    }
    pthread_mutex_unlock(&memtap->lock);
}

/* ---- neighbours ---- */

static uint64_t next_unit(struct block_links *links, uint64_t offset)
{
    uint64_t start;

    if (links->unit == 0) {
        links->unit = UNIT_FIRST;
    } else if (offset >= links->unit_end && offset - links->unit_end < links->unit) {
        links->unit = links->unit * 2 > UNIT_MAX ? UNIT_MAX : links->unit * 2;
    } else {
        links->unit = links->unit / 2 < UNIT_MIN ? UNIT_MIN : links->unit / 2;
    }
    start = offset - offset % links->unit;
    links->unit_end = start + links->unit;
    return start;
}

static bool wanted_near(const struct memtap *memtap, unsigned block, uint64_t offset, uint64_t fault)
{
    return offset != fault && page_store_base_state(memtap->store, block, offset) == PAGE_ABSENT &&
           !page_store_is_claimed(memtap->store, block, offset) && !find_read(memtap, block, offset);
}

/* Asks for what is absent around a fault. */
static void fetch_neighbours(struct memtap *memtap, unsigned block, uint64_t fault)
{
    struct block_links *links = &memtap->blocks[block];
    uint64_t start = next_unit(links, fault), length = page_store_block(memtap->store, block)->length;
    uint64_t end = links->unit_end < length ? links->unit_end : length;
    unsigned runs = 0;

    record(memtap, block, start, end - start);
    if (!link_is_ready(links->near) && !route_is_open(memtap->route)) {
        return;
    }
    for (uint64_t offset = start; offset < end && runs < NEAR_RUNS_MAX; offset += SF_PAGE_SIZE) {
        uint64_t first = offset;
        while (offset < end && wanted_near(memtap, block, offset, fault)) {
            offset += SF_PAGE_SIZE;
        }
        if (offset == first || link_in_flight(links->near) >= NEAR_IN_FLIGHT) {
            continue;
        }
        struct read *read = read_new(block, first, offset - first);
        read->user = ROLE_NEAR;
        list_add(memtap, read);
        if (route_is_open(memtap->route)) {
            route_read(memtap->route, read, MC_PREFETCH);
        } else {
            link_read(links->near, read);
        }
        runs++;
    }
}

/* ---- faults ---- */

static void add_waiter(struct read *read, struct clone *clone, uint64_t address, int64_t now)
{
    struct waiter *waiter = malloc(sizeof(*waiter));

    if (!waiter) {
        abort();
    }
    *waiter = (struct waiter){ .next = read->waiters, .clone = clone, .address = address, .since = now };
    read->waiters = waiter;
}

static void fault_in_block(struct memtap *memtap, struct clone *clone, unsigned block, uint64_t offset,
                           uint64_t address, int64_t now)
{
    struct read *read;

    if (page_store_base_state(memtap->store, block, offset) != PAGE_ABSENT ||
        page_store_recheck(memtap->store, block, offset)) {
        let_go_on(memtap, clone, address, block, offset);
        return;
    }
    read = find_read(memtap, block, offset);
    if (read) {
        add_waiter(read, clone, address, now);
        route_urge(memtap->route, read, offset);
        return;
    }
    read = read_new(block, offset, SF_PAGE_SIZE);
    read->user = ROLE_DEMAND;
    add_waiter(read, clone, address, now);
    list_add(memtap, read);
    send_or_queue(memtap, read);
    atomic_fetch_add_explicit(&memtap->stats.demand_faults, 1, memory_order_relaxed);
    if (!memtap->neighbours) {
        record(memtap, block, offset, SF_PAGE_SIZE);
    }
}

static void handle_fault(struct memtap *memtap, struct clone *clone, uint64_t address, int64_t now)
{
    address -= address % SF_PAGE_SIZE;
    atomic_fetch_add_explicit(&memtap->stats.faults, 1, memory_order_relaxed);
    for (unsigned i = 0; i < clone->n_areas; i++) {
        const struct memtap_area *area = &clone->areas[i];
        if (address >= area->address && address - area->address < area->length) {
            fault_in_block(memtap, clone, area->block, address - area->address, address, now);
            return;
        }
    }
    fill_with_zero(clone, address); /* QEMU registers nothing else; whoever touches it must not hang */
}

static void on_uffd(struct loop_target *target, uint32_t events)
{
    struct clone *clone = (struct clone *)target;
    struct uffd_msg messages[FAULTS_PER_READ];
    ssize_t n;

    (void)events;
    if (clone->detached) {
        return;
    }
    n = read(clone->uffd, messages, sizeof(messages));
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            loop_forget(clone->memtap->loop, clone->uffd);
        }
        return;
    }
    int64_t now = loop_now();
    for (unsigned i = 0; i < n / sizeof(messages[0]); i++) {
        if (messages[i].event == UFFD_EVENT_PAGEFAULT) {
            handle_fault(clone->memtap, clone, messages[i].arg.pagefault.address, now);
        }
    }
}

/* ---- what comes ---- */

static void group_read_ended(struct memtap *memtap, struct fetch_group *group)
{
    struct fetch_group **place = &memtap->groups;

    if (!group || --group->reads > 0) {
        return;
    }
    while (*place != group) {
        place = &(*place)->next;
    }
    *place = group->next;
    if (group->done) {
        group->done(group->data, 0);
    }
    free(group);
}

static void count_latency(struct memtap_stats *stats, int64_t ns)
{
    uint64_t n = atomic_fetch_add_explicit(&stats->n_latencies, 1, memory_order_relaxed);

    atomic_store_explicit(&stats->latency_ns[n % MEMTAP_LATENCIES], ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns,
                          memory_order_relaxed);
}

/* Of the page that it waits for, in its block. */
static uint64_t waiter_offset(const struct waiter *waiter, unsigned block)
{
    for (unsigned i = 0; i < waiter->clone->n_areas; i++) {
        if (waiter->clone->areas[i].block == block) {
            return waiter->address - waiter->clone->areas[i].address;
        }
    }
    return 0;
}

/* Its page is no longer absent. Frees the waiter. */
static void end_wait(struct memtap *memtap, struct waiter *waiter, unsigned block)
{
    let_go_on(memtap, waiter->clone, waiter->address, block, waiter_offset(waiter, block));
    count_latency(&memtap->stats, loop_now() - waiter->since);
    free(waiter);
}

static void wake_waiters(struct memtap *memtap, struct read *read)
{
    struct waiter *waiter;

    while ((waiter = read->waiters)) {
        read->waiters = waiter->next;
        end_wait(memtap, waiter, read->block);
    }
}

static void read_succeeded(struct memtap *memtap, struct read *read)
{
    struct memtap_stats *stats = &memtap->stats;

    bool waited_for = read->waiters;

    wake_waiters(memtap, read);
    list_remove(memtap, read);
    if (memtap->neighbours && waited_for && read->user == ROLE_DEMAND) {
        fetch_neighbours(memtap, read->block, read->offset);
    }
    atomic_fetch_add_explicit(&stats->fetched_bytes, read->length, memory_order_relaxed);
    if (read->user == ROLE_DEMAND) {
        atomic_fetch_add_explicit(&stats->demand_bytes, read->length, memory_order_relaxed);
    } else {
        atomic_fetch_add_explicit(&stats->neighbour_bytes, read->length, memory_order_relaxed);
    }
    group_read_ended(memtap, read->group);
    read_free(read);
    if (page_store_is_complete(memtap->store)) {
        memtap->options.handlers.complete(memtap->options.owner);
    }
}

static void on_read_done(struct link *link, struct read *read, void *owner)
{
    struct memtap *memtap = owner;

    if (!read->error && !read_keep(read, memtap->store, read->user == ROLE_NEAR)) {
        read->error = errno;
        snprintf(memtap->reason, sizeof(memtap->reason), "a page can't be kept: %s", strerror(errno));
    }
    if (!read->error) {
        read_succeeded(memtap, read);
        return;
    }
    if (!read->waiters && !read->group) {
        list_remove(memtap, read);
        read_free(read);
        return;
    }
    if (link_is_ready(link)) {
        snprintf(memtap->reason, sizeof(memtap->reason), "%s: block %u, offset %llu: %s", link_source(link),
                 read->block, (unsigned long long)read->offset, strerror(read->error));
    }
    read->user = ROLE_DEMAND;
    memtap->blocks[read->block].retry_at = loop_now() + RETRY_MS * LOOP_NS_PER_MS;
    enqueue(memtap, read);
}

static void on_link_ready(struct link *link, void *owner)
{
    struct memtap *memtap = owner;

    memtap->options.handlers.source(true, link_source(link), NULL, memtap->options.owner);
}

static void on_link_down(struct link *link, const char *reason, void *owner)
{
    struct memtap *memtap = owner;

    snprintf(memtap->reason, sizeof(memtap->reason), "%s", reason);
    memtap->options.handlers.source(false, link_source(link), reason, memtap->options.owner);
}

static const struct link_handlers link_handlers = { on_link_ready, on_read_done, on_link_down };

/* ---- what comes by multicast ---- */

static void on_come(struct read *read, void *owner)
{
    read_succeeded(owner, read);
}

/* Who waits for one of the pages that have come goes on; the others wait for the rest. */
static void on_some(struct read *read, void *owner)
{
    struct memtap *memtap = owner;
    struct waiter **place = &read->waiters, *waiter;

    while ((waiter = *place)) {
        if (page_store_base_state(memtap->store, read->block, waiter_offset(waiter, read->block)) == PAGE_ABSENT) {
            place = &waiter->next;
        } else {
            *place = waiter->next;
            end_wait(memtap, waiter, read->block);
        }
    }
}

/* The group has not answered. */
static void on_back(struct read *read, void *owner)
{
    struct memtap *memtap = owner;
    struct block_links *links = &memtap->blocks[read->block];

    if (read->user == ROLE_NEAR && !read->waiters && !link_is_ready(links->near)) {
        list_remove(memtap, read);
        read_free(read);
    } else if (read->user == ROLE_NEAR && !read->waiters) {
        link_read(links->near, read);
    } else {
        read->user = ROLE_DEMAND;
        enqueue(memtap, read); /* sent in this turn, if the link is up */
    }
}

static const struct route_handlers route_handlers = { on_come, on_some, on_back };

/* ---- fetches for the page server ---- */

static void start_fetch(struct memtap *memtap, const struct page_fetch *fetch, int64_t now)
{
    struct fetch_group *group = calloc(1, sizeof(*group));
    uint64_t offset = fetch->offset, end = fetch->offset + fetch->length, start, length;

    if (!group) {
        abort();
    }
    *group = (struct fetch_group){ .next = memtap->groups, .reads = 1, .since = now, .done = fetch->done,
                                   .data = fetch->data };
    memtap->groups = group;
    page_store_recheck_range(memtap->store, fetch->block, offset, fetch->length);
    while (offset < end && page_store_next_absent(memtap->store, fetch->block, offset, end - offset, &start, &length) &&
           start < end) {
        struct read *read = read_new(fetch->block, start, start + length > end ? end - start : length);
        read->user = ROLE_DEMAND;
        read->group = group;
        group->reads++;
        list_add(memtap, read);
        send_or_queue(memtap, read);
        offset = start + length;
    }
    group_read_ended(memtap, group); /* our own count: all may be there already */
}

static void on_fetch(struct loop_target *target, uint32_t events)
{
    struct memtap *memtap = (struct memtap *)((char *)target - offsetof(struct memtap, fetch_target));
    struct page_fetch *fetch = page_store_take_fetches(memtap->store), *next;
    int64_t now = loop_now();

    (void)events;
    for (; fetch; fetch = next) {
        next = fetch->next;
        start_fetch(memtap, fetch, now);
        free(fetch);
    }
}

/* ---- bounds ---- */

static void say_lost(struct memtap *memtap)
{
    char text[sizeof(memtap->reason) + 128];

    if (!memtap->lost) {
        memtap->lost = true;
        snprintf(text, sizeof(text), "a page could not be had for %u s; %s", memtap->options.fault_seconds,
                 memtap->sources.n == 0 ? "there is no page source" : *memtap->reason ? memtap->reason : "no answer");
        memtap->options.handlers.lost(text, memtap->options.owner);
    }
}

static void check_bounds(struct memtap *memtap, int64_t now)
{
    int64_t oldest = now - (int64_t)memtap->options.fault_seconds * 1000 * LOOP_NS_PER_MS;

    for (const struct read *read = memtap->in_flight; read; read = read->next) {
        for (const struct waiter *waiter = read->waiters; waiter; waiter = waiter->next) {
            if (waiter->since < oldest) {
                say_lost(memtap);
            }
        }
    }
    for (struct fetch_group *group = memtap->groups; group; group = group->next) {
        if (group->done && group->since < oldest) {
            page_store_done done = group->done;
            group->done = NULL;
            done(group->data, ETIMEDOUT);
        }
    }
}

static int sooner(int a, int b)
{
    return a < 0 ? b : b < 0 ? a : a < b ? a : b;
}

static void free_detached(struct memtap *memtap)
{
    struct clone **place = &memtap->clones, *clone;

    while ((clone = *place)) {
        if (clone->detached) {
            *place = clone->next;
            free(clone->name);
            free(clone);
        } else {
            place = &clone->next;
        }
    }
}

static int turn(void *owner, int64_t now)
{
    struct memtap *memtap = owner;
    int wish;

    free_detached(memtap);
    wish = route_turn(memtap->route, now);
    if (memtap->early_demand) {
        wish = sooner(wish, sooner(link_turn(memtap->early_demand, now), link_turn(memtap->early_near, now)));
    }
    for (unsigned i = 0; i < memtap->n_blocks; i++) {
        struct block_links *links = &memtap->blocks[i];
        if (!links->demand) {
            continue;
        }
        wish = sooner(wish, link_turn(links->demand, now));
        wish = sooner(wish, link_turn(links->near, now));
        if (links->queue && link_is_ready(links->demand)) {
            if (now >= links->retry_at) {
                send_queue(memtap, links);
                wish = 0;
            } else {
                wish = sooner(wish, RETRY_MS);
            }
        }
    }
    if (memtap->in_flight || memtap->groups) {
        if (now >= memtap->next_tick) {
            memtap->next_tick = now + TICK_MS * LOOP_NS_PER_MS;
            check_bounds(memtap, now);
        }
        wish = sooner(wish, TICK_MS);
    }
    return wish;
}

/* ---- orders ---- */

struct order {
    struct memtap *memtap;
    struct mc_client *client;
    struct mc_listener *listener;
    const struct source *source;
    struct clone *clone;
    char *name;
    bool on;
};

static struct order *order_new(struct memtap *memtap)
{
    struct order *order = calloc(1, sizeof(*order));

    if (!order) {
        abort();
    }
    order->memtap = memtap;
    return order;
}

static void order_source(void *data)
{
    struct order *order = data;
    struct memtap *memtap = order->memtap;

    if (memtap->sources.n < SOURCES_MAX) {
        memtap->sources.all[memtap->sources.n++] = order->source;
    }
    if (!memtap->is_set && !memtap->early_demand) {
        memtap->early_demand = link_new(memtap->loop, &memtap->sources, "demand", &link_handlers, memtap);
        memtap->early_near = link_new(memtap->loop, &memtap->sources, "near", &link_handlers, memtap);
    }
    if (memtap->early_demand) {
        link_sources_changed(memtap->early_demand);
        link_sources_changed(memtap->early_near);
    }
    for (unsigned i = 0; i < memtap->n_blocks; i++) {
        if (memtap->blocks[i].demand) {
            link_sources_changed(memtap->blocks[i].demand);
            link_sources_changed(memtap->blocks[i].near);
        }
    }
    free(order);
}

/* The links that wait already take the first block: most VMs have but one. */
static void set_up_block(struct memtap *memtap, unsigned index)
{
    const struct page_block *block = page_store_block(memtap->store, index);
    struct block_links *links = &memtap->blocks[index];

    links->last = &links->queue;
    links->demand = memtap->early_demand;
    links->near = memtap->early_near;
    memtap->early_demand = memtap->early_near = NULL;
    if (!links->demand) {
        links->demand = link_new(memtap->loop, &memtap->sources, "demand", &link_handlers, memtap);
        links->near = link_new(memtap->loop, &memtap->sources, "near", &link_handlers, memtap);
    }
    link_assign(links->demand, index, block->id, block->length);
    link_assign(links->near, index, block->id, block->length);
}

static void order_set(void *data)
{
    struct order *order = data;
    struct memtap *memtap = order->memtap;

    memtap->is_set = true;
    memtap->n_blocks = page_store_n_blocks(memtap->store);
    for (unsigned i = 0; i < memtap->n_blocks; i++) {
        if (page_store_block(memtap->store, i)->is_cache) {
            set_up_block(memtap, i);
        }
    }
    memtap->fetch_target.handle = on_fetch;
    loop_poll(memtap->loop, page_store_fetch_eventfd(memtap->store), EPOLLIN, &memtap->fetch_target);
    free(order);
}

static void order_neighbours(void *data)
{
    struct order *order = data;

    order->memtap->neighbours = order->on;
    free(order);
}

static void order_multicast(void *data)
{
    struct order *order = data;

    route_set_client(order->memtap->route, order->client, order->listener);
    free(order);
}

static void order_attach(void *data)
{
    struct order *order = data;
    struct memtap *memtap = order->memtap;
    struct clone *clone = order->clone;

    clone->next = memtap->clones;
    memtap->clones = clone;
    loop_poll(memtap->loop, clone->uffd, EPOLLIN, &clone->target);
    for (unsigned i = 0; i < clone->n_areas; i++) {
        wake(clone, clone->areas[i].address, clone->areas[i].length);
    }
    free(order);
}

static void forget_waiters(struct memtap *memtap, const struct clone *clone)
{
    for (struct read *read = memtap->in_flight; read; read = read->next) {
        struct waiter **place = &read->waiters, *waiter;
        while ((waiter = *place)) {
            if (waiter->clone == clone) {
                *place = waiter->next;
                free(waiter);
            } else {
                place = &waiter->next;
            }
        }
    }
}

static void order_detach(void *data)
{
    struct order *order = data;
    struct memtap *memtap = order->memtap;

    for (struct clone *clone = memtap->clones; clone; clone = clone->next) {
        if (!clone->detached && strcmp(clone->name, order->name) == 0) {
            forget_waiters(memtap, clone);
            loop_forget(memtap->loop, clone->uffd);
            close(clone->uffd);
            clone->detached = true;
        }
    }
    free(order->name);
    free(order);
}

/* ---- from the control thread ---- */

struct memtap *memtap_new(struct page_store *store, const struct memtap_options *options)
{
    struct memtap *memtap = calloc(1, sizeof(*memtap));

    if (!memtap) {
        return NULL;
    }
    memtap->store = store;
    memtap->options = *options;
    if (memtap->options.fault_seconds == 0) {
        memtap->options.fault_seconds = FAULT_SECONDS;
    }
    memtap->neighbours = true;
    memtap->recorded = malloc(RECORD_MAX * sizeof(*memtap->recorded));
    pthread_mutex_init(&memtap->lock, NULL);
    memtap->loop = memtap->recorded ? loop_new("memtap", turn, memtap) : NULL;
    if (!memtap->loop) {
        memtap_free(memtap);
        return NULL;
    }
    memtap->route = route_new(memtap->loop, store, &route_handlers, memtap);
    return memtap;
}

bool memtap_start(struct memtap *memtap)
{
    return loop_start(memtap->loop);
}

static void free_queue(struct block_links *links)
{
    struct read *read;

    while ((read = links->queue)) {
        links->queue = read->next_in_flight;
        read_free(read);
    }
}

void memtap_free(struct memtap *memtap)
{
    if (!memtap) {
        return;
    }
    if (memtap->loop) {
        loop_stop(memtap->loop);
    }
    for (struct clone *clone = memtap->clones; clone; clone = clone->next) {
        if (!clone->detached) {
            forget_waiters(memtap, clone);
            close(clone->uffd);
            clone->detached = true;
        }
    }
    free_detached(memtap);
    for (struct fetch_group *group = memtap->groups, *next; group; group = next) {
        next = group->next;
        free(group);
    }
    for (unsigned i = 0; i < memtap->n_blocks; i++) {
        free_queue(&memtap->blocks[i]);
        link_free(memtap->blocks[i].demand);
        link_free(memtap->blocks[i].near);
    }
    link_free(memtap->early_demand);
    link_free(memtap->early_near);
    route_free(memtap->route);
    loop_free(memtap->loop);
    pthread_mutex_destroy(&memtap->lock);
    free(memtap->recorded);
    free(memtap);
}

void memtap_add_source(struct memtap *memtap, const struct source *source)
{
    struct order *order = order_new(memtap);

    order->source = source;
    loop_post(memtap->loop, order_source, order);
}

void memtap_store_is_set(struct memtap *memtap)
{
    loop_post(memtap->loop, order_set, order_new(memtap));
}

void memtap_set_neighbours(struct memtap *memtap, bool on)
{
    struct order *order = order_new(memtap);

    order->on = on;
    loop_post(memtap->loop, order_neighbours, order);
}

void memtap_set_multicast(struct memtap *memtap, struct mc_client *client, struct mc_listener *listener)
{
    struct order *order = order_new(memtap);

    order->client = client;
    order->listener = listener;
    loop_post(memtap->loop, order_multicast, order);
}

void memtap_attach(struct memtap *memtap, const char *name, int uffd, const struct memtap_area *areas,
                   unsigned n_areas)
{
    struct order *order = order_new(memtap);
    struct clone *clone = calloc(1, sizeof(*clone));

    if (!clone || !(clone->name = strdup(name))) {
        abort();
    }
    clone->target.handle = on_uffd;
    clone->memtap = memtap;
    clone->uffd = uffd;
    clone->n_areas = n_areas;
    memcpy(clone->areas, areas, n_areas * sizeof(*areas));
    order->clone = clone;
    loop_post(memtap->loop, order_attach, order);
}

void memtap_detach(struct memtap *memtap, const char *name)
{
    struct order *order = order_new(memtap);

    order->name = strdup(name);
    if (!order->name) {
        abort();
    }
    loop_post(memtap->loop, order_detach, order);
}

const struct memtap_stats *memtap_stats(const struct memtap *memtap)
{
    return &memtap->stats;
}

unsigned memtap_recorded(struct memtap *memtap, struct sf_pager_run *runs, unsigned max)
{
    unsigned n;

    pthread_mutex_lock(&memtap->lock);
    n = memtap->n_recorded < max ? memtap->n_recorded : max;
    memcpy(runs, memtap->recorded, n * sizeof(*runs));
    pthread_mutex_unlock(&memtap->lock);
    return n;
}
