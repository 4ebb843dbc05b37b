/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Programs and their requests.
 *
 * Bounds, so that no program harms another one: a slot for each connection, a limit for each user, one request at a
 * time for each connection (its next packet stays in its socket), one packet of each program in each turn, requests
 * sent to the host in turn, and one buffer for the only request that carries data: SYNC, as a VM has one result. A
 * program that does not read its answers is cut off. Nothing is allocated.
 *
 * When a program goes away its request goes too, with two exceptions that stay behind without it: a TICKET (or CREATE),
 * which is given back when it is granted; and a waiting JOIN, which the next program that asks the same takes over, so that
 * asking again and again (sf_join_timed()) leaves one request at the host and not a heap of them.
 */
#include "guest-agent/agent.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <syslog.h>
#include <unistd.h>

void slots_init(struct slots *slots, const struct identity *identity, const struct network *network)
{
    memset(slots, 0, sizeof(*slots));
    slots->identity = identity;
    slots->network = network;
    /* The host knows a request by its id: an agent that is started anew must not begin with the ids of the last one. */
    if (getrandom(&slots->last_request, sizeof(slots->last_request), GRND_NONBLOCK) < 0) {
        slots->last_request = (uint32_t)agent_now_ms();
    }
}

static uint32_t next_request(struct slots *slots)
{
    if (++slots->last_request == 0) {
        slots->last_request = 1;
    }
    return slots->last_request;
}

static void slot_free(struct slots *slots, struct slot *slot)
{
    if (slot->fd >= 0) {
        close(slot->fd);
    }
    if (slots->sync_owner == slot) {
        slots->sync_owner = NULL;
    }
    slot->used = false;
    slot->pending = false;
    slot->fd = -1;
    while (slots->end > 0 && !slots->slot[slots->end - 1].used) {
        slots->end--;
    }
}

/* Sends one packet to the program; one that does not take it is cut off. */
static void slot_send(struct slots *slots, struct slot *slot, uint8_t type, const void *payload, size_t length)
{
    struct sf_gp_header header = { .version = SF_GP_VERSION, .type = type, .request = slot->program_request,
                                   .length = (uint32_t)length };
    uint8_t head[SF_GP_HEADER_LENGTH];
    struct iovec parts[] = { { head, sizeof(head) }, { (void *)payload, length } };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };

    slot->pending = false;
    if (slot->fd < 0) {
        return;
    }
    sf_gp_header_pack(head, &header);
    if (sendmsg(slot->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        slot_free(slots, slot);
    }
}

__attribute__((format(printf, 4, 5))) static void slot_error(struct slots *slots, struct slot *slot, int error,
                                                              const char *format, ...)
{
    struct sf_gp_error value = { .error = (uint32_t)error };
    uint8_t payload[SF_GP_ERROR_LENGTH];
    char text[SF_GP_TEXT_LEN];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    sf_gp_text_set(value.text, sizeof(value.text), "%s", text);
    sf_gp_error_pack(payload, &value);
    if (slots->sync_owner == slot) {
        slots->sync_owner = NULL;
    }
    slot_send(slots, slot, SF_GP_ERROR, payload, sizeof(payload));
}

/* A request without program that is worth least: the oldest JOIN. */
static struct slot *oldest_orphan(struct slots *slots)
{
    struct slot *oldest = NULL;

    for (unsigned i = 0; i < slots->end; i++) {
        struct slot *slot = &slots->slot[i];

        if (slot->used && slot->fd < 0 && slot->type == SF_GP_JOIN && (!oldest || slot->age < oldest->age)) {
            oldest = slot;
        }
    }
    return oldest;
}

static struct slot *free_slot(struct slots *slots)
{
    for (unsigned i = 0; i < slots->end; i++) {
        if (!slots->slot[i].used) {
            return &slots->slot[i];
        }
    }
    return slots->end < AGENT_MAX_SLOTS ? &slots->slot[slots->end++] : oldest_orphan(slots);
}

bool slots_room(const struct slots *slots)
{
    if (slots->end < AGENT_MAX_SLOTS) {
        return true;
    }
    for (unsigned i = 0; i < slots->end; i++) {
        const struct slot *slot = &slots->slot[i];

        if (!slot->used || (slot->fd < 0 && slot->type == SF_GP_JOIN)) {
            return true;
        }
    }
    return false;
}

void slots_connect(struct slots *slots, int fd, uid_t uid)
{
    struct slot *slot = free_slot(slots);
    unsigned of_user = 0;

    for (unsigned i = 0; i < slots->end; i++) {
        of_user += slots->slot[i].used && slots->slot[i].fd >= 0 && slots->slot[i].uid == uid;
    }
    *slot = (struct slot){ .used = true, .fd = fd, .uid = uid };
    if (uid != 0 && of_user >= AGENT_MAX_PER_USER) {
        slot_error(slots, slot, EUSERS, "user %u has %u requests waiting at sf-agent: let some of them end", uid,
                   of_user);
        if (slot->used) {
            slot_free(slots, slot);
        }
    }
}

void slots_hangup(struct slots *slots, struct slot *slot)
{
    bool keep = slot->pending && slot->sent && !slot->foreign &&
                (slot->type == SF_GP_TICKET || slot->type == SF_GP_CREATE || slot->type == SF_GP_JOIN);

    if (!keep) {
        slot_free(slots, slot);
        return;
    }
    close(slot->fd);
    slot->fd = -1;
}

/* A JOIN that an earlier program left behind and that asks the same. */
static void adopt_join(struct slots *slots, struct slot *slot)
{
    for (unsigned i = 0; i < slots->end; i++) {
        struct slot *orphan = &slots->slot[i];

        if (orphan != slot && orphan->used && orphan->fd < 0 && orphan->type == SF_GP_JOIN && !orphan->foreign &&
            memcmp(orphan->argument, slot->argument, SF_GP_JOIN_LENGTH) == 0) {
            slot->host_request = orphan->host_request;
            slot->sent = orphan->sent;
            slot_free(slots, orphan);
            return;
        }
    }
}

static void answer_self(struct slots *slots, struct slot *slot)
{
    const struct sf_gp_identity *identity = &slots->identity->value;
    struct sf_gp_self self = { .ticket = identity->ticket, .id = identity->id, .count = identity->count };
    uint8_t payload[SF_GP_SELF_LENGTH];

    slot_send(slots, slot, SF_GP_SELF | SF_GP_REPLY, payload, sf_gp_self_pack(payload, &self));
}

static void answer_addresses(struct slots *slots, struct slot *slot)
{
    uint8_t payload[SF_GP_NETWORK_LENGTH];

    if (slots->network->value.prefix == 0) {
        slot_error(slots, slot, ENOTCONN, "this VM is in no cluster network: it was not started with one");
        return;
    }
    slot_send(slots, slot, SF_GP_ADDRESSES | SF_GP_REPLY, payload, sf_gp_network_pack(payload, &slots->network->value));
}

/* Takes SYNC's payload into the one buffer; false: somebody else's is there. */
static bool take_sync(struct slots *slots, struct slot *slot, const uint8_t *payload, size_t length)
{
    if (slots->sync_owner && slots->sync_owner != slot) {
        return false;
    }
    slots->sync_owner = slot;
    memcpy(slots->sync, payload, length);
    return true;
}

static void take_request(struct slots *slots, struct slot *slot, uint8_t type, const uint8_t *payload, size_t length)
{
    slot->type = type;
    slot->length = length;
    slot->sent = slot->resent = false;
    slot->foreign = false;
    slot->pending = true;
    if (type == SF_GP_SELF) {
        answer_self(slots, slot);
        return;
    }
    if (type == SF_GP_ADDRESSES) {
        answer_addresses(slots, slot);
        return;
    }
    if (!slots->have_port) {
        slot_error(slots, slot, ENODEV, "this VM has no virtio-serial port " SF_GP_PORT
                   ": it was not started by sfvmmd, or the device is not ready yet");
        return;
    }
    if (type != SF_GP_SYNC) {
        memcpy(slot->argument, payload, length);
    } else if (!take_sync(slots, slot, payload, length)) {
        slot_error(slots, slot, EBUSY, "another program of this clone is handing over its result");
        return;
    }
    slot->age = ++slots->last_age;
    slot->host_request = next_request(slots);
    if (type == SF_GP_JOIN) {
        adopt_join(slots, slot);
    }
}

void slots_read(struct slots *slots, struct slot *slot)
{
    ssize_t got = recv(slot->fd, slots->packet, sizeof(slots->packet), MSG_DONTWAIT | MSG_TRUNC);
    struct sf_gp_header header;
    const uint8_t *payload;

    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (got <= 0) {
        slots_hangup(slots, slot);
        return;
    }
    if ((size_t)got <= sizeof(slots->packet) &&
        sf_gp_packet_parse(&header, &payload, slots->packet, (size_t)got) && header.request != 0 &&
        sf_gp_request_valid(header.type, payload, header.length)) {
        slot->program_request = header.request;
        take_request(slots, slot, header.type, payload, header.length);
        return;
    }
    agent_log(LOG_WARNING, "a program of user %u sent a malformed packet of %zd bytes: cut off", slot->uid, got);
    slot->program_request = 0;
    slot_error(slots, slot, EPROTO, "malformed packet");
    if (slot->used) {
        slot_free(slots, slot);
    }
}

/* A ticket came for a program that has gone: give it back. */
static void give_back(struct slots *slots, struct slot *slot, const uint8_t *payload, size_t length)
{
    struct sf_gp_granted granted;

    if (!sf_gp_granted_parse(&granted, payload, length)) {
        slot_free(slots, slot);
        return;
    }
    agent_log(LOG_DEBUG, "ticket %016" PRIx64 ": its program has gone, given back", granted.ticket);
    slot->type = SF_GP_RELEASE;
    slot->host_request = next_request(slots);
    slot->length = sf_gp_kill_pack(slot->argument, &(struct sf_gp_kill){ .ticket = granted.ticket });
    slot->sent = false;
}

/* The ticket is gone because an sfvmmd that ended before it could say so has released it. */
static bool is_released_already(const struct slot *slot, const struct sf_gp_header *header, const uint8_t *payload)
{
    struct sf_gp_error error;

    return slot->type == SF_GP_RELEASE && slot->resent && header->type == SF_GP_ERROR &&
           sf_gp_error_parse(&error, payload, header->length) && error.error == ECHILD;
}

void slots_answer(struct slots *slots, const struct sf_gp_header *header, const uint8_t *payload)
{
    struct slot *slot = NULL;

    for (unsigned i = 0; i < slots->end && !slot; i++) {
        if (slots->slot[i].pending && slots->slot[i].host_request == header->request) {
            slot = &slots->slot[i];
        }
    }
    if (!slot) {
        return; /* its program has gone */
    }
    if (header->type != SF_GP_ERROR && header->type != (slot->type | SF_GP_REPLY)) {
        agent_log(LOG_WARNING, "the host answered %s with %s", sf_gp_type_name(slot->type),
                  sf_gp_type_name(header->type));
        slot_error(slots, slot, EPROTO, "the host answered %s with %s: versions of sf-agent and sfvmmd may not fit",
                   sf_gp_type_name(slot->type), sf_gp_type_name(header->type));
        return;
    }
    if (slot->fd < 0) {
        if ((slot->type == SF_GP_TICKET || slot->type == SF_GP_CREATE) && header->type != SF_GP_ERROR) {
            give_back(slots, slot, payload, header->length);
        } else {
            slot_free(slots, slot);
        }
        return;
    }
    if (slots->sync_owner == slot) {
        struct sf_gp_sync sync;
        const uint8_t *data;
        size_t length;

        if (header->type == SF_GP_ERROR || !sf_gp_sync_parse(&sync, &data, &length, slots->sync, slot->length) ||
            sync.offset + length == sync.total) {
            slots->sync_owner = NULL;
        }
    }
    if (is_released_already(slot, header, payload)) {
        slot_send(slots, slot, SF_GP_RELEASE | SF_GP_REPLY, NULL, 0);
        return;
    }
    slot_send(slots, slot, header->type, payload, header->length);
}

void slots_unsend(struct slots *slots)
{
    for (unsigned i = 0; i < slots->end; i++) {
        slots->slot[i].resent |= slots->slot[i].sent;
        slots->slot[i].sent = false;
    }
}

struct slot *slots_next(struct slots *slots, const uint8_t **payload)
{
    for (unsigned i = 0; i < slots->end; i++) {
        struct slot *slot = &slots->slot[(slots->turn + i) % slots->end];

        if (slot->pending && !slot->sent && !slot->foreign) {
            slots->turn = (slots->turn + i + 1) % slots->end;
            *payload = slot->type == SF_GP_SYNC ? slots->sync : slot->argument;
            return slot;
        }
    }
    return NULL;
}

void slots_fork(struct slots *slots)
{
    for (unsigned i = 0; i < slots->end; i++) {
        slots->slot[i].foreign = slots->slot[i].pending;
    }
}

void slots_forked(struct slots *slots, uint32_t clone_request)
{
    const struct sf_gp_identity *identity = &slots->identity->value;
    struct sf_gp_cloned cloned = { .id = identity->id, .count = identity->count };
    uint8_t payload[SF_GP_CLONED_LENGTH];

    sf_gp_cloned_pack(payload, &cloned);
    for (unsigned i = 0; i < slots->end; i++) {
        struct slot *slot = &slots->slot[i];

        if (slot->foreign && slot->pending && (slot->type == SF_GP_CLONE || slot->type == SF_GP_CHECKPOINT) &&
            slot->host_request == clone_request) {
            slot->foreign = false;
            slot_send(slots, slot, slot->type | SF_GP_REPLY, payload, sizeof(payload));
            break;
        }
    }
    for (unsigned i = 0; i < slots->end; i++) {
        struct slot *slot = &slots->slot[i];

        if (!slot->used || !slot->foreign) {
            continue;
        }
        slot->foreign = false;
        if (slot->fd < 0) {
            slot_free(slots, slot);
        } else if (slot->pending) {
            slot_error(slots, slot, ECHILD, "this VM is now clone %u of ticket %016" PRIx64
                       "; the request was that of its parent", identity->id, identity->ticket);
        }
    }
}
