/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "libsf/members.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "libsf/call.h"

#define MEMBERS_LENGTH (SF_GP_MEMBERS_PER_REPLY * SF_GP_MEMBER_LENGTH)

/* One window of the member table. Returns the members in it; *all: of the whole table; *running: some still run. */
static int join_window(struct sf_call *call, const struct sf_gp_join *join, struct sf_result *results, size_t n,
                       unsigned *all, bool *running, uint8_t *reply)
{
    uint8_t argument[SF_GP_JOIN_LENGTH];
    struct sf_gp_member member;
    ssize_t length;
    int members;

    sf_gp_join_pack(argument, join);
    length = sf_call_ask(call, SF_GP_JOIN, argument, sizeof(argument), NULL, 0, reply, MEMBERS_LENGTH);
    if (length < 0) {
        return -1;
    }
    members = (int)(length / SF_GP_MEMBER_LENGTH);
    if (members == 0 || length % SF_GP_MEMBER_LENGTH != 0) {
        return sf_malformed(SF_GP_JOIN);
    }
    for (int i = 0; i < members; i++) {
        if (!sf_gp_member_parse(&member, reply + (size_t)i * SF_GP_MEMBER_LENGTH, SF_GP_MEMBER_LENGTH) ||
            member.id != join->first + (unsigned)i) {
            return sf_malformed(SF_GP_JOIN);
        }
        *all = member.count;
        *running = *running || member.state == SF_GP_STATE_STARTING || member.state == SF_GP_STATE_RUNNING;
        if (member.id <= n) {
            struct sf_result *result = &results[member.id - 1];

            *result = (struct sf_result){ .id = member.id, .state = (int)member.state, .status = member.status,
                                          .result_length = member.result_length };
            memcpy(result->text, member.text, sizeof(result->text));
        }
    }
    return members;
}

int sf_members_look(uint64_t ticket, struct sf_result *results, size_t n, uint32_t flags, uint64_t deadline_ms,
                    bool *running)
{
    struct sf_gp_join join = { .ticket = ticket, .flags = flags, .first = 1 };
    uint8_t *reply = malloc(MEMBERS_LENGTH);
    struct sf_call call;
    unsigned all = 0;
    int members = -1;

    *running = false;
    if (!reply) {
        return sf_failed(ENOMEM, "no memory for the table of clones");
    }
    if (sf_call_begin(&call) == 0) {
        call.interruptible = true;
        call.deadline_ms = deadline_ms;
        do {
            members = join_window(&call, &join, results, n, &all, running, reply);
            join.first += members > 0 ? (uint32_t)members : 0;
            join.flags = SF_GP_JOIN_NOHANG; /* what comes behind the first window has ended too */
        } while (members > 0 && join.first <= all);
    }
    sf_call_end(&call);
    free(reply);
    return members < 0 ? -1 : (int)all;
}

ssize_t sf_member_read(uint64_t ticket, unsigned id, void *buffer, size_t length, uint64_t offset)
{
    struct sf_gp_fetch fetch = { .ticket = ticket, .id = id };
    uint8_t argument[SF_GP_FETCH_LENGTH], *reply;
    struct sf_call call;
    size_t done = 0;
    ssize_t got = -1;

    reply = malloc(SF_GP_MAX_CHUNK);
    if (!reply) {
        return sf_failed(ENOMEM, "no memory for a piece of a result");
    }
    if (sf_call_begin(&call) == 0) {
        call.interruptible = true;
        do {
            fetch.length = (uint32_t)(length - done < SF_GP_MAX_CHUNK ? length - done : SF_GP_MAX_CHUNK);
            fetch.offset = offset + done;
            sf_gp_fetch_pack(argument, &fetch);
            got = sf_call_ask(&call, SF_GP_FETCH, argument, sizeof(argument), NULL, 0, reply, SF_GP_MAX_CHUNK);
            if (got > (ssize_t)fetch.length) {
                got = sf_malformed(SF_GP_FETCH);
            } else if (got > 0) {
                memcpy((char *)buffer + done, reply, (size_t)got);
                done += (size_t)got;
            }
        } while (got > 0 && got == (ssize_t)fetch.length && done < length);
    }
    sf_call_end(&call);
    free(reply);
    return got < 0 ? -1 : (ssize_t)done;
}
