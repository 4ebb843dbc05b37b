/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The calls of a ticket's holder about its clones. Those of a hierarchical ticket are processes in VMs (tree.c), all
 * others are VMs (members.c).
 */
#include <errno.h>
#include <stdlib.h>

#include "libsf/call.h"
#include "libsf/members.h"
#include "libsf/ticket.h"
#include "libsf/tree.h"
#include "snowflock.h"

#define RESULT_START (64u * 1024) /* first allocation of sf_result_get() */

static int look(const sf_ticket *ticket, struct sf_result *results, size_t n, uint32_t flags, uint64_t deadline_ms,
                bool *running)
{
    return ticket->per_vm > 0 ? sf_tree_look(ticket, results, n, flags, deadline_ms, running)
                              : sf_members_look(ticket->id, results, n, flags, deadline_ms, running);
}

int sf_join_timed(sf_ticket *ticket, struct sf_result *results, size_t n, int timeout_ms)
{
    uint64_t deadline_ms = timeout_ms > 0 ? sf_now_ms() + (uint64_t)timeout_ms : 0;
    bool running;
    int all;

    if (sf_ticket_check(ticket) < 0) {
        return -1;
    }
    if (!results && n > 0) {
        return sf_failed(EINVAL, "no room for %zu results", n);
    }
    all = look(ticket, results, n, timeout_ms == 0 ? SF_GP_JOIN_NOHANG : 0, deadline_ms, &running);
    if (all < 0 && errno == ETIMEDOUT && timeout_ms > 0) {
        all = look(ticket, results, n, SF_GP_JOIN_NOHANG, 0, &running);
    }
    return all < 0 ? -1 : running ? 0 : all;
}

int sf_join(sf_ticket *ticket, struct sf_result *results, size_t n)
{
    return sf_join_timed(ticket, results, n, -1);
}

ssize_t sf_result_read(sf_ticket *ticket, unsigned id, void *buffer, size_t length, uint64_t offset)
{
    if (sf_ticket_check(ticket) < 0) {
        return -1;
    }
    if (id < 1 || id > SF_MAX_CLONES || (!buffer && length > 0)) {
        return sf_failed(EINVAL, "result of clone %u: no such clone, or no room for it", id);
    }
    return ticket->per_vm > 0 ? sf_tree_read(ticket, id, buffer, length, offset)
                              : sf_member_read(ticket->id, id, buffer, length, offset);
}

char *sf_result_get(sf_ticket *ticket, unsigned id, size_t *length)
{
    size_t capacity = RESULT_START, have = 0;
    char *data = malloc(capacity + 1);

    while (data) {
        ssize_t got = sf_result_read(ticket, id, data + have, capacity - have, have);
        char *larger;

        if (got < 0 || have + (size_t)got > SF_MAX_RESULT) {
            int error = got < 0 ? errno : EFBIG;

            free(data);
            errno = error;
            return NULL;
        }
        have += (size_t)got;
        if (have < capacity) {
            data[have] = '\0';
            if (length) {
                *length = have;
            }
            return data;
        }
        capacity *= 2;
        larger = realloc(data, capacity + 1);
        if (!larger) {
            free(data);
        }
        data = larger;
    }
    sf_failed(ENOMEM, "no memory for the result of clone %u", id);
    return NULL;
}

/* A request that names a ticket and is answered by an empty message. */
static int tell(sf_ticket *ticket, uint8_t type)
{
    uint8_t argument[SF_GP_KILL_LENGTH], reply[SF_GP_ERROR_LENGTH];
    ssize_t length;

    if (sf_ticket_check(ticket) < 0) {
        return -1;
    }
    sf_gp_kill_pack(argument, &(struct sf_gp_kill){ .ticket = ticket->id });
    length = sf_ask(type, argument, sizeof(argument), reply, sizeof(reply));
    if (length < 0) {
        return -1;
    }
    return length == 0 ? 0 : sf_malformed(type);
}

int sf_kill(sf_ticket *ticket)
{
    return tell(ticket, SF_GP_KILL);
}

int sf_release(sf_ticket *ticket)
{
    return tell(ticket, SF_GP_RELEASE);
}
