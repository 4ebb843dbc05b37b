/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * What a page of a snapshot is, is decided from the top:
 *
 *        delta k     covered by an extent?  --> data, in that delta; zero, where it has a hole
 *        ...
 *        delta 1     covered?               --> the same
 *        base        complete: SEEK_DATA    --> data or zero
 *                    cache: two bits        --> data, zero or absent
 *
 * A cache's bits are words of atomics:
 *
 *        known  has
 *          0     -     absent
 *          1     0     zero, and not in the memfd
 *          1     1     in the memfd
 *
 * The writer fills the memfd first, sets `has`, then `known`, with release order; who sees the bits with acquire
 * order sees the page. Pages outside the present runs are known to be zero from the start, so the runs are not looked
 * at again. Both are never cleared, which is why no reader needs a lock; `claimed` is a hint and may be stale.
 *
 * page_store_set() fills everything before it publishes `set`. What it publishes does not change any more but for the
 * bits.
 *
 * SEEK_DATA on a memfd tells a page only when it is whole: the kernel marks it so after the copy. A pager that takes
 * over a cache from a dead one finds its pages so.
 */
#include "sfvmm/pager/page_store.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BITS             64u
/*
 * Up to this length a run of data is not searched for its end: SEEK_HOLE walks all pages of a run, which is too slow
 * for each small read, and a hole that is read as data gives zeros.
 */
#define SEARCH_HOLES_MIN (1u << 20)

typedef _Atomic uint64_t word;

struct bits {
    word *known, *has, *claimed, *unasked; /* one bit per page; NULL: no cache */
    uint64_t n_pages;
};

struct when_set {
    void (*callback)(void *data);
    void *data;
};

#define WHEN_SET_MAX 4

struct page_store {
    atomic_bool set;
    char *id;
    unsigned n_blocks;
    struct page_block *blocks;
    struct bits *bits;
    int state;
    uint64_t state_length;
    atomic_uint_fast64_t resident, absent; /* pages of caches */

    struct when_set when_set[WHEN_SET_MAX]; /* control thread */
    unsigned n_when_set;

    pthread_mutex_t lock; /* of the list */
    struct page_fetch *first, **last;
    int eventfd;
};

struct page_store *page_store_new(void)
{
    struct page_store *store = calloc(1, sizeof(*store));

    if (!store) {
        return NULL;
    }
    store->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (store->eventfd < 0) {
        free(store);
        return NULL;
    }
    store->state = -1;
    store->last = &store->first;
    pthread_mutex_init(&store->lock, NULL);
    return store;
}

static void close_fd(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

void page_store_free(struct page_store *store)
{
    struct page_fetch *fetch;

    if (!store) {
        return;
    }
    while ((fetch = store->first)) {
        store->first = fetch->next;
        free(fetch);
    }
    for (unsigned i = 0; i < store->n_blocks; i++) {
        struct page_block *block = &store->blocks[i];
        close_fd(block->base);
        free((void *)block->present);
        for (unsigned j = 0; j < block->n_layers; j++) {
            close_fd(block->layers[j].delta);
            free((void *)block->layers[j].extents);
        }
        free(store->bits[i].has);
        free(store->bits[i].known);
        free(store->bits[i].claimed);
        free(store->bits[i].unasked);
    }
    free(store->bits);
    free(store->blocks);
    close_fd(store->state);
    close(store->eventfd);
    pthread_mutex_destroy(&store->lock);
    free(store->id);
    free(store);
}

/* ---- bits ---- */

static bool bit_get(const word *words, uint64_t page)
{
    return atomic_load_explicit(&words[page / BITS], memory_order_acquire) >> (page % BITS) & 1;
}

/* TRUE: it was not set before. */
static bool bit_set(word *words, uint64_t page)
{
    uint64_t bit = 1ull << (page % BITS);

    return !(atomic_fetch_or_explicit(&words[page / BITS], bit, memory_order_acq_rel) & bit);
}

static void bit_clear(word *words, uint64_t page)
{
    atomic_fetch_and_explicit(&words[page / BITS], ~(1ull << (page % BITS)), memory_order_relaxed);
}

static enum page_state bits_state(const struct bits *bits, uint64_t page)
{
    return !bit_get(bits->known, page) ? PAGE_ABSENT : bit_get(bits->has, page) ? PAGE_DATA : PAGE_ZERO;
}

/* ---- setting up ---- */

static uint64_t minimum(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void page_store_recheck_range(struct page_store *store, unsigned index, uint64_t offset, uint64_t length)
{
    const struct page_block *block = &store->blocks[index];
    uint64_t end = offset + length;
    off_t hole = (off_t)offset;

    while ((uint64_t)hole < end) {
        off_t data = lseek(block->base, hole, SEEK_DATA);
        hole = data < 0 || (uint64_t)data >= end ? -1 : lseek(block->base, data, SEEK_HOLE);
        if (hole < 0) {
            return;
        }
        page_store_note(store, index, data, minimum(hole, end) - data, false);
    }
}

static void set_up_bits(struct page_store *store, unsigned index)
{
    const struct page_block *block = &store->blocks[index];
    struct bits *bits = &store->bits[index];
    uint64_t n_words, present = 0, page = 0;

    bits->n_pages = block->length / SF_PAGE_SIZE;
    n_words = (bits->n_pages + BITS - 1) / BITS;
    bits->has = calloc(n_words, sizeof(word));
    bits->known = calloc(n_words, sizeof(word));
    bits->claimed = calloc(n_words, sizeof(word));
    bits->unasked = calloc(n_words, sizeof(word));
    if (!bits->known || !bits->has || !bits->claimed || !bits->unasked) {
        abort(); /* 32 KiB per GiB; sfvmmd starts us anew */
    }
    for (unsigned i = 0; i <= block->n_present; i++) {
        uint64_t start = i < block->n_present ? block->present[i].offset / SF_PAGE_SIZE : n_words * BITS;
        while (page < start) {
            bit_set(bits->known, page++);
        }
        if (i < block->n_present) {
            page += block->present[i].length / SF_PAGE_SIZE;
            present += block->present[i].length / SF_PAGE_SIZE;
        }
    }
    atomic_fetch_add(&store->absent, present);
    page_store_recheck_range(store, index, 0, block->length);
}

void page_store_set(struct page_store *store, const char *id, struct page_block *blocks, unsigned n_blocks, int state,
                    uint64_t state_length)
{
    assert(!atomic_load(&store->set));
    store->id = strdup(id);
    store->blocks = blocks;
    store->n_blocks = n_blocks;
    store->bits = calloc(n_blocks ? n_blocks : 1, sizeof(*store->bits));
    store->state = state;
    store->state_length = state_length;
    if (!store->id || !store->bits) {
        abort();
    }
    for (unsigned i = 0; i < n_blocks; i++) {
        if (blocks[i].is_cache) {
            set_up_bits(store, i);
        }
    }
    atomic_store_explicit(&store->set, true, memory_order_release);
    for (unsigned i = 0; i < store->n_when_set; i++) {
        store->when_set[i].callback(store->when_set[i].data);
    }
}

bool page_store_is_set(const struct page_store *store)
{
    return atomic_load_explicit(&store->set, memory_order_acquire);
}

void page_store_when_set(struct page_store *store, void (*callback)(void *data), void *data)
{
    if (page_store_is_set(store)) {
        callback(data);
        return;
    }
    assert(store->n_when_set < WHEN_SET_MAX);
    store->when_set[store->n_when_set++] = (struct when_set){ callback, data };
}

const char *page_store_id(const struct page_store *store)
{
    return store->id;
}

unsigned page_store_n_blocks(const struct page_store *store)
{
    return store->n_blocks;
}

const struct page_block *page_store_block(const struct page_store *store, unsigned block)
{
    return &store->blocks[block];
}

int page_store_find(const struct page_store *store, const char *id)
{
    for (unsigned i = 0; i < store->n_blocks; i++) {
        if (strcmp(store->blocks[i].id, id) == 0) {
            return i;
        }
    }
    return -1;
}

int page_store_state(const struct page_store *store, uint64_t *length)
{
    *length = store->state_length;
    return store->state;
}

/* ---- looking ---- */

/* Is offset in an extent of the layer? *length: how far (at most what it was) the answer holds. */
static bool layer_covers(const struct page_layer *layer, uint64_t offset, uint64_t *length)
{
    uint32_t low = 0, high = layer->n_extents; /* the first extent that ends behind offset is in [low, high] */

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (layer->extents[middle].offset + layer->extents[middle].length <= offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == layer->n_extents) {
        return false;
    }
    const struct sf_qc_extent *extent = &layer->extents[low];
    if (extent->offset > offset) {
        *length = minimum(*length, extent->offset - offset);
        return false;
    }
    *length = minimum(*length, extent->offset + extent->length - offset);
    return true;
}

static enum page_state look_cache(const struct bits *bits, uint64_t offset, uint64_t *length)
{
    uint64_t first = offset / SF_PAGE_SIZE, page = first + 1;
    uint64_t end = minimum((offset + *length + SF_PAGE_SIZE - 1) / SF_PAGE_SIZE, bits->n_pages);
    enum page_state state = bits_state(bits, first);

    while (page < end && bits_state(bits, page) == state) {
        page++;
    }
    *length = minimum(*length, page * SF_PAGE_SIZE - offset);
    return state;
}

/*
 * The base of a snapshot taken here does not change. The offset of the open file may be shared: each seek is
 * absolute.
 */
static enum page_state look_complete(int fd, uint64_t offset, uint64_t *length)
{
    off_t data = lseek(fd, offset, SEEK_DATA);
    uint64_t page_end = (offset / SF_PAGE_SIZE + 1) * SF_PAGE_SIZE;

    if (data < 0) { /* only a hole is left; or it can't be searched, and reading tells */
        return errno == ENXIO ? PAGE_ZERO : PAGE_DATA;
    }
    if ((uint64_t)data >= page_end) {
        *length = minimum(*length, data - offset);
        return PAGE_ZERO;
    }
    if (*length > SEARCH_HOLES_MIN) {
        off_t hole = lseek(fd, offset, SEEK_HOLE);
        if (hole > 0 && (uint64_t)hole > offset) {
            *length = minimum(*length, hole - offset);
        }
    }
    return PAGE_DATA;
}

static enum page_state look_base(const struct page_store *store, unsigned index, uint64_t offset, uint64_t *length)
{
    return store->blocks[index].is_cache ? look_cache(&store->bits[index], offset, length)
                                         : look_complete(store->blocks[index].base, offset, length);
}

enum page_state page_store_look(const struct page_store *store, unsigned index, uint64_t offset, uint64_t max_length,
                                uint64_t *length, int *fd, uint64_t *fd_offset)
{
    const struct page_block *block = &store->blocks[index];

    *length = minimum(max_length, block->length - offset);
    *fd_offset = offset;
    for (unsigned i = block->n_layers; i-- > 0;) {
        if (layer_covers(&block->layers[i], offset, length)) {
            *fd = block->layers[i].delta;
            return look_complete(*fd, offset, length); /* what the VM has given away is a hole of it */
        }
    }
    *fd = block->base;
    return look_base(store, index, offset, length);
}

enum page_state page_store_look_layer(const struct page_store *store, unsigned index, unsigned layer, uint64_t offset,
                                      uint64_t max_length, uint64_t *length, int *fd, uint64_t *fd_offset)
{
    const struct page_block *block = &store->blocks[index];

    *length = minimum(max_length, block->length - offset);
    *fd_offset = offset;
    if (layer == 0) {
        *fd = block->base;
        return look_base(store, index, offset, length);
    }
    *fd = block->layers[layer - 1].delta;
    return layer_covers(&block->layers[layer - 1], offset, length) ? PAGE_DATA : PAGE_ZERO;
}

enum page_state page_store_base_state(const struct page_store *store, unsigned block, uint64_t offset)
{
    return store->blocks[block].is_cache ? bits_state(&store->bits[block], offset / SF_PAGE_SIZE) : PAGE_DATA;
}

/* ---- noting ---- */

unsigned page_store_note(struct page_store *store, unsigned index, uint64_t offset, uint64_t length, bool zero)
{
    struct bits *bits = &store->bits[index];
    uint64_t end = (offset + length) / SF_PAGE_SIZE;
    unsigned arrived = 0, resident = 0;

    if (!bits->has) {
        return 0;
    }
    for (uint64_t page = offset / SF_PAGE_SIZE; page < end && page < bits->n_pages; page++) {
        resident += !zero && bit_set(bits->has, page);
        arrived += bit_set(bits->known, page);
    }
    atomic_fetch_add(&store->resident, resident);
    atomic_fetch_sub(&store->absent, arrived);
    return arrived;
}

void page_store_mark_unasked(struct page_store *store, unsigned index, uint64_t offset, uint64_t length)
{
    struct bits *bits = &store->bits[index];

    for (uint64_t page = offset / SF_PAGE_SIZE; page < (offset + length) / SF_PAGE_SIZE; page++) {
        if (bits_state(bits, page) == PAGE_ABSENT) {
            bit_set(bits->unasked, page);
        }
    }
}

uint64_t page_store_unasked(const struct page_store *store, unsigned index, uint64_t *words, uint64_t max)
{
    const struct bits *bits = &store->bits[index];
    uint64_t n = minimum(max, (bits->n_pages + BITS - 1) / BITS);

    for (uint64_t i = 0; i < n; i++) {
        words[i] = atomic_load_explicit(&bits->unasked[i], memory_order_relaxed) &
                   atomic_load_explicit(&bits->known[i], memory_order_relaxed);
    }
    return n;
}

bool page_store_recheck(struct page_store *store, unsigned index, uint64_t offset)
{
    if (lseek(store->blocks[index].base, offset, SEEK_DATA) != (off_t)offset) {
        return false;
    }
    page_store_note(store, index, offset, SF_PAGE_SIZE, false);
    return true;
}

void page_store_claim(struct page_store *store, unsigned index, uint64_t offset, uint64_t length, bool claimed)
{
    struct bits *bits = &store->bits[index];

    for (uint64_t page = offset / SF_PAGE_SIZE; page < (offset + length) / SF_PAGE_SIZE; page++) {
        if (claimed) {
            bit_set(bits->claimed, page);
        } else {
            bit_clear(bits->claimed, page);
        }
    }
}

bool page_store_is_claimed(const struct page_store *store, unsigned index, uint64_t offset)
{
    return bit_get(store->bits[index].claimed, offset / SF_PAGE_SIZE);
}

bool page_store_next_absent(const struct page_store *store, unsigned index, uint64_t offset, uint64_t max_length,
                            uint64_t *start, uint64_t *length)
{
    const struct bits *bits = &store->bits[index];
    uint64_t page = offset / SF_PAGE_SIZE, limit;

    if (!bits->has) {
        return false;
    }
    while (page < bits->n_pages) {
        uint64_t absent = ~atomic_load_explicit(&bits->known[page / BITS], memory_order_acquire) >> (page % BITS);
        if (absent) {
            page += __builtin_ctzll(absent);
            break;
        }
        page = (page / BITS + 1) * BITS;
    }
    if (page >= bits->n_pages) {
        return false;
    }
    *start = page * SF_PAGE_SIZE;
    limit = minimum(page + max_length / SF_PAGE_SIZE, bits->n_pages);
    while (page < limit && bits_state(bits, page) == PAGE_ABSENT) {
        page++;
    }
    *length = page * SF_PAGE_SIZE - *start;
    return true;
}

uint64_t page_store_resident(const struct page_store *store)
{
    return atomic_load(&store->resident) * SF_PAGE_SIZE;
}

bool page_store_is_cache(const struct page_store *store)
{
    for (unsigned i = 0; page_store_is_set(store) && i < store->n_blocks; i++) {
        if (store->blocks[i].is_cache) {
            return true;
        }
    }
    return false;
}

bool page_store_is_complete(const struct page_store *store)
{
    return page_store_is_set(store) && atomic_load(&store->absent) == 0;
}

/* ---- fetching ---- */

void page_store_fetch(struct page_store *store, unsigned block, uint64_t offset, uint64_t length, page_store_done done,
                      void *data)
{
    struct page_fetch *fetch = malloc(sizeof(*fetch));
    uint64_t one = 1;

    if (!fetch) {
        abort();
    }
    *fetch = (struct page_fetch){ .block = block, .offset = offset, .length = length, .done = done, .data = data };
    pthread_mutex_lock(&store->lock);
    *store->last = fetch;
    store->last = &fetch->next;
    pthread_mutex_unlock(&store->lock);
    ssize_t ignored = write(store->eventfd, &one, sizeof(one)); /* fails only when it is readable anyway */
    (void)ignored;
}

int page_store_fetch_eventfd(const struct page_store *store)
{
    return store->eventfd;
}

struct page_fetch *page_store_take_fetches(struct page_store *store)
{
    struct page_fetch *first;
    uint64_t count;
    ssize_t ignored = read(store->eventfd, &count, sizeof(count));

    (void)ignored;
    pthread_mutex_lock(&store->lock);
    first = store->first;
    store->first = NULL;
    store->last = &store->first;
    pthread_mutex_unlock(&store->lock);
    return first;
}
