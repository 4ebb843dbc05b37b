/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "libsf/worker_table.h"

#include "libsf/wire/guest_protocol.h"

#define SIGNAL_MAX 127 /* what a wait status has room for */

static void put(uint8_t **at, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        *(*at)++ = (uint8_t)(value >> (8 * i));
    }
}

static uint64_t get(const uint8_t **at, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++) {
        value |= (uint64_t)*(*at)++ << (8 * i);
    }
    return value;
}

size_t sf_worker_table_length(unsigned count)
{
    return SF_WORKER_HEAD_LENGTH + (size_t)count * SF_WORKER_ENTRY_LENGTH;
}

void sf_worker_table_pack(uint8_t *table, uint64_t generation, const struct sf_worker_entry *entries, unsigned count)
{
    put(&table, SF_WORKER_TABLE_MAGIC, 4);
    put(&table, count, 4);
    put(&table, generation, 8);
    for (unsigned i = 0; i < count; i++) {
        put(&table, entries[i].state, 4);
        put(&table, (uint32_t)entries[i].status, 4);
        put(&table, entries[i].signal, 4);
        put(&table, 0, 4);
        put(&table, entries[i].offset, 8);
        put(&table, entries[i].length, 8);
    }
}

static bool entry_parse(const uint8_t **at, struct sf_worker_entry *entry, size_t table_length)
{
    uint64_t zero;

    entry->state = (uint32_t)get(at, 4);
    entry->status = (int32_t)(uint32_t)get(at, 4);
    entry->signal = (uint32_t)get(at, 4);
    zero = get(at, 4);
    entry->offset = get(at, 8);
    entry->length = get(at, 8);
    if (entry->state != SF_GP_STATE_RUNNING && entry->state != SF_GP_STATE_EXITED &&
        entry->state != SF_GP_STATE_FAILED && entry->state != SF_GP_STATE_LOST) {
        return false;
    }
    return zero == 0 && entry->signal <= SIGNAL_MAX && (entry->signal == 0 || entry->state == SF_GP_STATE_LOST) &&
           entry->offset >= table_length && entry->offset <= SF_GP_MAX_RESULT &&
           entry->length <= SF_GP_MAX_RESULT - entry->offset;
}

bool sf_worker_table_parse(const uint8_t *table, uint64_t *generation, struct sf_worker_entry *entries, unsigned count)
{
    const size_t length = sf_worker_table_length(count);

    if (get(&table, 4) != SF_WORKER_TABLE_MAGIC || get(&table, 4) != count) {
        return false;
    }
    *generation = get(&table, 8);
    for (unsigned i = 0; i < count; i++) {
        if (!entry_parse(&table, &entries[i], length)) {
            return false;
        }
    }
    return true;
}
