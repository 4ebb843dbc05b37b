/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a hierarchical ticket's holder learns of its workers:
 *
 *    ticket --- clone 1 --- worker 1            a clone's state is the host's; its workers' stand in the table that is
 *          |           +--- worker 2            the clone's result (worker_table.h)
 *          +--- clone 2 --- worker 3
 *                      +--- worker 4
 *
 * A worker that had ended before its clone did has the state of the table; one that had not shares its clone's fate.
 * A table that is missing or malformed says nothing of anybody.
 */
#include "libsf/tree.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libsf/call.h"
#include "libsf/members.h"
#include "libsf/worker_table.h"

#define READ_TRIES 100 /* of a result that its clone replaces meanwhile */

/* The workers of one clone. */
struct branch {
    unsigned clone;     /* 1.. */
    unsigned first;     /* id of its first worker */
    unsigned count;
    bool known;         /* the table could be read */
    uint64_t generation;
    struct sf_worker_entry *entries;
};

static unsigned clones_of(const sf_ticket *ticket)
{
    return (atomic_load(&ticket->granted) + ticket->per_vm - 1) / ticket->per_vm;
}

static void branch_of(const sf_ticket *ticket, unsigned clone, struct branch *branch)
{
    unsigned granted = atomic_load(&ticket->granted), before = (clone - 1) * ticket->per_vm;

    branch->clone = clone;
    branch->first = before + 1;
    branch->count = granted - before < ticket->per_vm ? granted - before : ticket->per_vm;
}

/* Reads the clone's table. -1 only if the host cannot be asked. */
static int branch_read(const sf_ticket *ticket, struct branch *branch)
{
    size_t length = sf_worker_table_length(branch->count);
    uint8_t *table = malloc(length);
    ssize_t got;

    if (!table) {
        return sf_failed(ENOMEM, "no memory for the workers of clone %u", branch->clone);
    }
    got = sf_member_read(ticket->id, branch->clone, table, length, 0);
    branch->known = got == (ssize_t)length &&
                    sf_worker_table_parse(table, &branch->generation, branch->entries, branch->count);
    free(table);
    return got < 0 ? -1 : 0;
}

static void describe(struct sf_result *result, const struct sf_worker_entry *entry)
{
    result->state = (int)entry->state;
    result->status = result->state == SF_EXITED ? entry->status : 0;
    result->result_length = entry->length;
    result->text[0] = '\0';
    if (result->state == SF_FAILED) {
        snprintf(result->text, sizeof(result->text), "fork: %s", strerror(entry->status));
    } else if (result->state == SF_LOST && entry->signal > 0) {
        result->signal = (int)entry->signal;
        snprintf(result->text, sizeof(result->text), "ended by signal %u (%s)", entry->signal,
                 strsignal((int)entry->signal));
    } else if (result->state == SF_LOST) {
        snprintf(result->text, sizeof(result->text), "ended with status %d, without sf_exit()", entry->status);
    }
}

static void branch_describe(const struct branch *branch, const struct sf_result *clone, struct sf_result *results,
                            size_t n)
{
    for (unsigned i = 0; i < branch->count && branch->first + i <= n; i++) {
        struct sf_result *result = &results[branch->first - 1 + i];

        *result = *clone;
        result->id = branch->first + i;
        result->status = 0;
        result->result_length = branch->known ? branch->entries[i].length : 0;
        if (branch->known && branch->entries[i].state != SF_GP_STATE_RUNNING) {
            describe(result, &branch->entries[i]);
        } else if (clone->state == SF_EXITED) {
            result->state = SF_LOST;
            snprintf(result->text, sizeof(result->text), "another program ended its VM, clone %u", branch->clone);
        }
    }
}

int sf_tree_look(const sf_ticket *ticket, struct sf_result *results, size_t n, uint32_t flags, uint64_t deadline_ms,
                 bool *running)
{
    unsigned count = clones_of(ticket);
    struct sf_result *clones = calloc(count, sizeof(*clones));
    struct branch branch = { .entries = calloc(ticket->per_vm, sizeof(*branch.entries)) };
    int all = clones && branch.entries ? sf_members_look(ticket->id, clones, count, flags, deadline_ms, running)
                                       : sf_failed(ENOMEM, "no memory for the tables of %u clones", count);

    if (all >= 0 && all != (int)count) {
        all = sf_malformed(SF_GP_JOIN);
    }
    for (unsigned clone = 1; all >= 0 && clone <= count; clone++) {
        branch_of(ticket, clone, &branch);
        branch.known = false;
        if (branch.first > n) {
            break;
        }
        if (clones[clone - 1].result_length > 0 && branch_read(ticket, &branch) < 0) {
            all = -1;
        } else {
            branch_describe(&branch, &clones[clone - 1], results, n);
        }
    }
    free(branch.entries);
    free(clones);
    return all < 0 ? -1 : (int)atomic_load(&ticket->granted);
}

/* One try: -1; *again: the clone replaced its table meanwhile. */
static ssize_t read_once(const sf_ticket *ticket, struct branch *branch, unsigned slot, void *buffer, size_t length,
                         uint64_t offset, bool *again)
{
    const struct sf_worker_entry *entry = &branch->entries[slot];
    uint64_t generation;
    ssize_t got = 0;

    *again = false;
    if (branch_read(ticket, branch) < 0) {
        return -1;
    }
    if (!branch->known || offset >= entry->length) {
        return 0;
    }
    generation = branch->generation;
    if (length > entry->length - offset) {
        length = (size_t)(entry->length - offset);
    }
    if (length > 0) {
        got = sf_member_read(ticket->id, branch->clone, buffer, length, entry->offset + offset);
    }
    if (got < 0 || branch_read(ticket, branch) < 0) {
        return -1;
    }
    *again = !branch->known || branch->generation != generation;
    return *again || got == (ssize_t)length ? got : sf_malformed(SF_GP_FETCH);
}

ssize_t sf_tree_read(const sf_ticket *ticket, unsigned id, void *buffer, size_t length, uint64_t offset)
{
    struct branch branch = { 0 };
    bool again = true;
    ssize_t got = -1;

    if (id > atomic_load(&ticket->granted)) {
        return sf_failed(EINVAL, "result of worker %u: there are %u", id, atomic_load(&ticket->granted));
    }
    branch_of(ticket, (id - 1) / ticket->per_vm + 1, &branch);
    branch.entries = calloc(branch.count, sizeof(*branch.entries));
    if (!branch.entries) {
        return sf_failed(ENOMEM, "no memory for the workers of clone %u", branch.clone);
    }
    for (int i = 0; i < READ_TRIES && again; i++) {
        got = read_once(ticket, &branch, id - branch.first, buffer, length, offset, &again);
    }
    free(branch.entries);
    return again ? sf_failed(EAGAIN, "result of worker %u: it is replaced faster than it can be read", id) : got;
}
