/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "guest-agent/netlink.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_SIZE 16384 /* the kernel's dumps come in pieces of at most that */

bool netlink_open(struct netlink *netlink, int protocol)
{
    netlink->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    netlink->sequence = 0;
    return netlink->fd >= 0;
}

void netlink_close(struct netlink *netlink)
{
    close(netlink->fd);
    netlink->fd = -1;
}

void *netlink_begin(struct netlink_request *request, uint16_t type, uint16_t flags, size_t fixed)
{
    memset(request, 0, sizeof(*request));
    request->header.nlmsg_type = type;
    request->header.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    request->header.nlmsg_len = (uint32_t)NLMSG_LENGTH(fixed);
    return NLMSG_DATA(&request->header);
}

void netlink_put(struct netlink_request *request, uint16_t type, const void *data, size_t length)
{
    size_t at = NLMSG_ALIGN(request->header.nlmsg_len);
    struct rtattr *attribute = (struct rtattr *)((char *)request + at);

    assert(at + RTA_LENGTH(length) <= sizeof(*request));
    attribute->rta_type = type;
    attribute->rta_len = (unsigned short)RTA_LENGTH(length);
    memcpy(RTA_DATA(attribute), data, length);
    request->header.nlmsg_len = (uint32_t)(at + RTA_LENGTH(length));
}

/* Reads messages until the answer to this request is at its end. */
static int read_answer(struct netlink *netlink, netlink_each *each, void *opaque)
{
    _Alignas(struct nlmsghdr) char buffer[ANSWER_SIZE];

    for (;;) {
        ssize_t got = recv(netlink->fd, buffer, sizeof(buffer), 0);
        struct nlmsghdr *message = (struct nlmsghdr *)buffer;
        size_t left = got < 0 ? 0 : (size_t)got;

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return got < 0 ? errno : EPROTO;
        }
        for (; NLMSG_OK(message, left); message = NLMSG_NEXT(message, left)) {
            if (message->nlmsg_seq != netlink->sequence) {
                continue; /* of an earlier request that was given up */
            }
            if (message->nlmsg_type == NLMSG_DONE) {
                return 0;
            }
            if (message->nlmsg_type == NLMSG_ERROR) {
                return message->nlmsg_len < NLMSG_LENGTH(sizeof(struct nlmsgerr))
                           ? EPROTO
                           : -((struct nlmsgerr *)NLMSG_DATA(message))->error;
            }
            if (each) {
                each(opaque, message);
            }
        }
    }
}

static int ask(struct netlink *netlink, struct netlink_request *request, netlink_each *each, void *opaque)
{
    request->header.nlmsg_seq = ++netlink->sequence;
    if (send(netlink->fd, request, request->header.nlmsg_len, 0) < 0) {
        return errno;
    }
    return read_answer(netlink, each, opaque);
}

int netlink_change(struct netlink *netlink, struct netlink_request *request)
{
    request->header.nlmsg_flags |= NLM_F_ACK;
    return ask(netlink, request, NULL, NULL);
}

int netlink_dump(struct netlink *netlink, struct netlink_request *request, netlink_each *each, void *opaque)
{
    request->header.nlmsg_flags |= NLM_F_DUMP;
    return ask(netlink, request, each, opaque);
}

static const struct rtattr *find(const struct rtattr *attribute, size_t left, uint16_t type)
{
    for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
        if (attribute->rta_type == type) {
            return attribute;
        }
    }
    return NULL;
}

static const struct rtattr *find_in(const struct nlmsghdr *message, size_t fixed, uint16_t type)
{
    size_t left = message->nlmsg_len < NLMSG_SPACE(fixed) ? 0 : message->nlmsg_len - NLMSG_SPACE(fixed);

    return find((const struct rtattr *)((const char *)message + NLMSG_SPACE(fixed)), left, type);
}

static const void *data_of(const struct rtattr *attribute, size_t length)
{
    return attribute && RTA_PAYLOAD(attribute) >= length ? RTA_DATA(attribute) : NULL;
}

const void *netlink_get(const struct nlmsghdr *message, size_t fixed, uint16_t type, size_t length)
{
    return data_of(find_in(message, fixed, type), length);
}

const void *netlink_get_nested(const struct nlmsghdr *message, size_t fixed, uint16_t outer, uint16_t type,
                               size_t length)
{
    const struct rtattr *nest = find_in(message, fixed, outer);

    return nest ? data_of(find(RTA_DATA(nest), RTA_PAYLOAD(nest), type), length) : NULL;
}
