/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A small table, searched from end to end: fragments of one page come close together, so few are there at a time.
 * Bodies of a page are the same whenever the same process packs them; if kind or total differ, the fragments are of a
 * newer body and the old ones are thrown away.
 */
#include "sfvmm/pager/mc_partial.h"

#include <stdlib.h>
#include <string.h>

#define WORD_BITS 64u

void mc_partial_init(struct mc_partial_set *set, unsigned max)
{
    *set = (struct mc_partial_set){ .max = max };
    set->items = calloc(max, sizeof(*set->items));
    if (set->items == NULL) {
        abort();
    }
}

void mc_partial_clear(struct mc_partial_set *set)
{
    for (unsigned i = 0; i < set->max; i++) {
        free(set->items[i].body);
    }
    free(set->items);
}

struct mc_partial *mc_partial_find(const struct mc_partial_set *set, unsigned block, uint32_t page)
{
    for (unsigned i = 0; i < set->max && set->n > 0; i++) {
        struct mc_partial *partial = &set->items[i];
        if (partial->used && partial->page == page && partial->block == block) {
            return partial;
        }
    }
    return NULL;
}

void mc_partial_drop(struct mc_partial_set *set, struct mc_partial *partial)
{
    partial->used = false;
    set->n--;
}

void mc_partial_drop_all(struct mc_partial_set *set)
{
    for (unsigned i = 0; i < set->max; i++) {
        set->items[i].used = false;
    }
    set->n = 0;
}

/* A free one, or the one that has waited longest. */
static struct mc_partial *make_room(struct mc_partial_set *set)
{
    struct mc_partial *oldest = &set->items[0];

    for (unsigned i = 0; i < set->max; i++) {
        if (!set->items[i].used) {
            return &set->items[i];
        }
        if (set->items[i].sequence < oldest->sequence) {
            oldest = &set->items[i];
        }
    }
    set->dropped++;
    mc_partial_drop(set, oldest);
    return oldest;
}

static void begin(struct mc_partial_set *set, struct mc_partial *partial, const struct mc_record *record)
{
    uint8_t *body = partial->body;

    if (body == NULL) {
        body = malloc(SF_PAGE_SIZE);
        if (body == NULL) {
            abort();
        }
    }
    *partial = (struct mc_partial){ .used = true,
                                    .kind = record->kind,
                                    .block = record->block,
                                    .page = record->page,
                                    .total = record->total,
                                    .body = body };
    set->n++;
}

struct mc_partial *mc_partial_take(struct mc_partial_set *set, const struct mc_record *record, uint64_t sequence)
{
    struct mc_partial *partial = mc_partial_find(set, record->block, record->page);
    unsigned first = record->offset / MC_FRAGMENT_UNIT;
    unsigned end = (record->offset + record->length + MC_FRAGMENT_UNIT - 1) / MC_FRAGMENT_UNIT;

    if (partial != NULL && (partial->kind != record->kind || partial->total != record->total)) {
        mc_partial_drop(set, partial);
        partial = NULL;
    }
    if (partial == NULL) {
        partial = make_room(set);
        begin(set, partial, record);
    }
    memcpy(partial->body + record->offset, record->bytes, record->length);
    for (unsigned unit = first; unit < end; unit++) {
        uint64_t bit = UINT64_C(1) << unit % WORD_BITS, *word = &partial->has[unit / WORD_BITS];
        partial->units += (*word & bit) == 0;
        *word |= bit;
    }
    if (sequence > partial->sequence) {
        partial->sequence = sequence;
        partial->given_up = false;
    }
    return partial->units == (partial->total + MC_FRAGMENT_UNIT - 1) / MC_FRAGMENT_UNIT ? partial : NULL;
}

struct mc_partial *mc_partial_give_up(struct mc_partial_set *set, uint64_t sequence)
{
    for (unsigned i = 0; i < set->max && set->n > 0; i++) {
        struct mc_partial *partial = &set->items[i];
        if (partial->used && !partial->given_up && partial->sequence < sequence) {
            partial->given_up = true;
            return partial;
        }
    }
    return NULL;
}
