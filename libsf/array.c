/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An array that the clones of a ticket fill together. Made before the fork, so all have it; what a clone has filled is its
 * result, and the parent puts the results into its own array. The result is runs of slots that follow each other:
 *
 *     0            8            16
 *     first slot   slots        slots * slot_size bytes      first slot   slots     ...
 *
 * All is as memory has it: parent and clones are one program. An array belongs to one thread.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "libsf/array.h"
#include "libsf/call.h"
#include "snowflock.h"

struct run {
    uint64_t first, slots;
};

struct sf_array {
    size_t slots, slot_size;
    unsigned char *data;
    unsigned char *filled;  /* one byte for each slot */
};

sf_array *sf_array_new(size_t slots, size_t slot_size)
{
    sf_array *array;

    if (slots == 0 || slot_size == 0) {
        sf_failed(EINVAL, "an array of %zu slots of %zu bytes: it needs one at least", slots, slot_size);
        return NULL;
    }
    array = slots <= SIZE_MAX / slot_size ? calloc(1, sizeof(*array)) : NULL;
    if (array) {
        array->slots = slots;
        array->slot_size = slot_size;
        array->data = calloc(slots, slot_size);
        array->filled = calloc(slots, 1);
    }
    if (!array || !array->data || !array->filled) {
        sf_array_free(array);
        sf_failed(ENOMEM, "no memory for an array of %zu slots of %zu bytes", slots, slot_size);
        return NULL;
    }
    return array;
}

void sf_array_free(sf_array *array)
{
    if (array) {
        free(array->data);
        free(array->filled);
        free(array);
    }
}

size_t sf_array_length(const sf_array *array)
{
    return array ? array->slots : 0;
}

const void *sf_array_get(const sf_array *array, size_t slot)
{
    if (!array || slot >= array->slots) {
        sf_failed(EINVAL, "slot %zu: the array has %zu", slot, sf_array_length(array));
        return NULL;
    }
    return array->data + slot * array->slot_size;
}

void *sf_array_fill(sf_array *array, size_t slot)
{
    if (!sf_array_get(array, slot)) {
        return NULL;
    }
    array->filled[slot] = 1;
    return array->data + slot * array->slot_size;
}

/* The next run of filled slots from *first on: *first is moved to it. 0: there is none. */
static size_t next_run(const sf_array *array, size_t *first)
{
    const unsigned char *begin = memchr(array->filled + *first, 1, array->slots - *first), *end;

    if (!begin) {
        return 0;
    }
    *first = (size_t)(begin - array->filled);
    end = memchr(begin, 0, array->slots - *first);
    return end ? (size_t)(end - begin) : array->slots - *first;
}

unsigned char *sf_array_pack(const sf_array *array, size_t *length)
{
    unsigned char *data, *at;
    size_t run;

    *length = 0;
    for (size_t first = 0; first < array->slots && (run = next_run(array, &first)) > 0; first += run) {
        *length += sizeof(struct run) + run * array->slot_size;
    }
    at = data = malloc(*length + 1); /* not of 0 bytes */
    for (size_t first = 0; data && first < array->slots && (run = next_run(array, &first)) > 0; first += run) {
        memcpy(at, &(struct run){ .first = first, .slots = run }, sizeof(struct run));
        memcpy(at + sizeof(struct run), array->data + first * array->slot_size, run * array->slot_size);
        at += sizeof(struct run) + run * array->slot_size;
    }
    return data;
}

bool sf_array_unpack(sf_array *array, const unsigned char *data, size_t length)
{
    while (length > 0) {
        struct run run;

        if (length < sizeof(run)) {
            return false;
        }
        memcpy(&run, data, sizeof(run));
        data += sizeof(run);
        length -= sizeof(run);
        if (run.slots == 0 || run.first >= array->slots || run.slots > array->slots - run.first ||
            run.slots > length / array->slot_size) {
            return false;
        }
        memcpy(array->data + run.first * array->slot_size, data, run.slots * array->slot_size);
        memset(array->filled + run.first, 1, run.slots);
        data += run.slots * array->slot_size;
        length -= run.slots * array->slot_size;
    }
    return true;
}

int sf_array_exit(sf_array *array, int status)
{
    unsigned char *data;
    size_t length;
    int error;

    if (!array) {
        return sf_failed(EINVAL, "no array");
    }
    data = sf_array_pack(array, &length);
    if (!data) {
        return sf_failed(ENOMEM, "no memory to hand over %zu bytes of an array", length);
    }
    sf_exit_with(status, data, length);
    error = errno;
    free(data);
    errno = error;
    return -1;
}

/* What a clone has filled. */
static int take(sf_array *array, sf_ticket *ticket, unsigned id)
{
    size_t length;
    char *data = sf_result_get(ticket, id, &length);
    bool ok = data && sf_array_unpack(array, (const unsigned char *)data, length);

    if (data && !ok) {
        sf_failed(EPROTO, "what clone %u handed over is no part of this array", id);
    }
    free(data);
    return ok ? 0 : -1;
}

int sf_array_join(sf_array *array, sf_ticket *ticket, struct sf_result *results, size_t n)
{
    struct sf_result *all = NULL;
    int count = -1;

    if (!array || (!results && n > 0)) {
        return sf_failed(EINVAL, array ? "no room for results" : "no array");
    }
    all = calloc(SF_MAX_CLONES, sizeof(*all));
    if (!all) {
        return sf_failed(ENOMEM, "no memory for the results of clones");
    }
    count = sf_join(ticket, all, SF_MAX_CLONES);
    for (int i = 0; i < count; i++) {
        if (all[i].state == SF_EXITED && all[i].result_length > 0 && take(array, ticket, all[i].id) < 0) {
            count = -1;
        }
    }
    if (count > 0 && n > 0) {
        memcpy(results, all, (n < (size_t)count ? n : (size_t)count) * sizeof(*all));
    }
    free(all);
    return count;
}
