/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checkpoints of this VM, and clones of them.
 */
#include <errno.h>
#include <string.h>

#include "libsf/call.h"
#include "libsf/ticket.h"
#include "snowflock.h"

static int check_name(const char *name)
{
    if (!name || !sf_gp_checkpoint_name_valid(name)) {
        return sf_failed(EINVAL, "checkpoint name \"%.64s\": 1 to %d of a-z, 0-9 and '-' are needed, a letter or digit "
                         "first", name ? name : "", SF_MAX_CHECKPOINT);
    }
    return 0;
}

/* A request that is a name. */
static ssize_t ask_name(uint8_t type, const char *name, uint8_t *reply, size_t capacity)
{
    struct sf_gp_checkpoint checkpoint = { .name = "" };
    uint8_t argument[SF_GP_CHECKPOINT_LENGTH];

    if (check_name(name) < 0) {
        return -1;
    }
    memcpy(checkpoint.name, name, strlen(name));
    sf_gp_checkpoint_pack(argument, &checkpoint);
    return sf_ask(type, argument, sizeof(argument), reply, capacity);
}

int sf_checkpoint_parent(const char *name)
{
    uint8_t reply[SF_GP_ERROR_LENGTH];
    struct sf_gp_cloned cloned;
    ssize_t length = ask_name(SF_GP_CHECKPOINT, name, reply, sizeof(reply));

    if (length < 0) {
        return -1;
    }
    return sf_gp_cloned_parse(&cloned, reply, (size_t)length) ? (int)cloned.id : sf_malformed(SF_GP_CHECKPOINT);
}

sf_ticket *sf_create_clones(const char *name, unsigned count)
{
    struct sf_gp_create create = { .count = count };
    uint8_t argument[SF_GP_CREATE_LENGTH], reply[SF_GP_ERROR_LENGTH];
    struct sf_gp_granted granted;
    sf_ticket *ticket;
    ssize_t length;

    if (check_name(name) < 0) {
        return NULL;
    }
    if (count < 1 || count > SF_MAX_CLONES) {
        sf_failed(EINVAL, "%u clones: 1 to %u are possible", count, SF_MAX_CLONES);
        return NULL;
    }
    memcpy(create.name, name, strlen(name));
    sf_gp_create_pack(argument, &create);
    length = sf_ask(SF_GP_CREATE, argument, sizeof(argument), reply, sizeof(reply));
    if (length < 0) {
        return NULL;
    }
    if (!sf_gp_granted_parse(&granted, reply, (size_t)length) || granted.granted > count) {
        sf_malformed(SF_GP_CREATE);
        return NULL;
    }
    ticket = sf_ticket_new(granted.ticket, granted.granted, 0);
    if (ticket) {
        atomic_store(&ticket->state, TICKET_FORKED);
    }
    return ticket;
}

int sf_checkpoint_forget(const char *name)
{
    uint8_t reply[SF_GP_ERROR_LENGTH];
    ssize_t length = ask_name(SF_GP_FORGET, name, reply, sizeof(reply));

    if (length < 0) {
        return -1;
    }
    return length == 0 ? 0 : sf_malformed(SF_GP_FORGET);
}
