/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A binary heap by due time, and a hash with linear probing by page, over the same items. All is allocated once.
 */
#include "sfvmm/pager/mc_pending.h"

#include <stdlib.h>

#define HASH_SLOTS   2u /* for each item */
#define GOLDEN_RATIO UINT64_C(0x9e3779b97f4a7c15)

static void *need(size_t n, size_t size)
{
    void *p = calloc(n, size);

    if (p == NULL) {
        abort();
    }
    return p;
}

void mc_pending_init(struct mc_pending_set *set, unsigned max)
{
    *set = (struct mc_pending_set){ .max = max, .n_hash = 1 };
    while (set->n_hash < max * HASH_SLOTS) {
        set->n_hash *= 2;
    }
    set->items = need(max, sizeof(*set->items));
    set->heap = need(max, sizeof(*set->heap));
    set->spare = need(max, sizeof(*set->spare));
    set->hash = need(set->n_hash, sizeof(*set->hash));
    for (unsigned i = 0; i < max; i++) {
        set->spare[i] = i;
    }
}

void mc_pending_clear(struct mc_pending_set *set)
{
    free(set->items);
    free(set->heap);
    free(set->spare);
    free(set->hash);
}

/* ---- by page ---- */

static unsigned slot_of(const struct mc_pending_set *set, unsigned block, uint32_t page)
{
    return (unsigned)((((uint64_t)block << 32 | page) * GOLDEN_RATIO) >> 32) & (set->n_hash - 1);
}

/* Where it is, or the free slot where it would be. */
static unsigned probe(const struct mc_pending_set *set, unsigned block, uint32_t page)
{
    unsigned slot = slot_of(set, block, page);

    while (set->hash[slot] != 0) {
        const struct mc_pending *item = &set->items[set->hash[slot] - 1];
        if (item->page == page && item->block == block) {
            break;
        }
        slot = (slot + 1) & (set->n_hash - 1);
    }
    return slot;
}

/* Frees a slot; what stands behind it and could not be found any more moves up. */
static void unhash(struct mc_pending_set *set, unsigned slot)
{
    unsigned mask = set->n_hash - 1, free_slot = slot;

    for (unsigned next = (slot + 1) & mask; set->hash[next] != 0; next = (next + 1) & mask) {
        const struct mc_pending *item = &set->items[set->hash[next] - 1];
        unsigned home = slot_of(set, item->block, item->page);
        if (((next - home) & mask) >= ((next - free_slot) & mask)) {
            set->hash[free_slot] = set->hash[next];
            free_slot = next;
        }
    }
    set->hash[free_slot] = 0;
}

/* ---- by time ---- */

static void put(struct mc_pending_set *set, unsigned slot, unsigned item)
{
    set->heap[slot] = item;
    set->items[item].heap_slot = slot;
}

static int64_t due_at(const struct mc_pending_set *set, unsigned slot)
{
    return set->items[set->heap[slot]].due;
}

static void swap(struct mc_pending_set *set, unsigned a, unsigned b)
{
    unsigned item = set->heap[a];

    put(set, a, set->heap[b]);
    put(set, b, item);
}

static void sift(struct mc_pending_set *set, unsigned slot)
{
    for (; slot > 0 && due_at(set, slot) < due_at(set, (slot - 1) / 2); slot = (slot - 1) / 2) {
        swap(set, slot, (slot - 1) / 2);
    }
    for (;;) {
        unsigned least = slot;
        for (unsigned child = 2 * slot + 1; child <= 2 * slot + 2 && child < set->n; child++) {
            if (due_at(set, child) < due_at(set, least)) {
                least = child;
            }
        }
        if (least == slot) {
            return;
        }
        swap(set, slot, least);
        slot = least;
    }
}

/* ---- both ---- */

struct mc_pending *mc_pending_find(const struct mc_pending_set *set, unsigned block, uint32_t page)
{
    unsigned item = set->hash[probe(set, block, page)];

    return item == 0 ? NULL : &set->items[item - 1];
}

struct mc_pending *mc_pending_add(struct mc_pending_set *set, unsigned block, uint32_t page, enum mc_priority priority,
                                  int64_t due)
{
    unsigned item;

    if (set->n == set->max) {
        return NULL;
    }
    item = set->spare[set->max - set->n - 1];
    set->items[item] =
        (struct mc_pending){ .block = (uint8_t)block, .priority = (uint8_t)priority, .page = page, .due = due };
    set->hash[probe(set, block, page)] = item + 1;
    put(set, set->n++, item);
    set->n_of[priority]++;
    sift(set, set->n - 1);
    return &set->items[item];
}

void mc_pending_remove(struct mc_pending_set *set, struct mc_pending *pending)
{
    unsigned item = (unsigned)(pending - set->items), slot = pending->heap_slot;

    unhash(set, probe(set, pending->block, pending->page));
    set->n_of[pending->priority]--;
    set->n--;
    if (slot != set->n) {
        put(set, slot, set->heap[set->n]);
        sift(set, slot);
    }
    set->spare[set->max - set->n - 1] = item;
}

void mc_pending_set_due(struct mc_pending_set *set, struct mc_pending *pending, int64_t due)
{
    pending->due = due;
    sift(set, pending->heap_slot);
}

void mc_pending_promote(struct mc_pending_set *set, struct mc_pending *pending)
{
    set->n_of[pending->priority]--;
    pending->priority = MC_DEMAND;
    set->n_of[MC_DEMAND]++;
}

struct mc_pending *mc_pending_first(const struct mc_pending_set *set)
{
    return set->n == 0 ? NULL : &set->items[set->heap[0]];
}
