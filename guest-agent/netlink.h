/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Netlink for the agent: requests that are acknowledged, dumps, attributes. The kernel is the only one who answers; all
 * the same nothing is read behind what it has said it sent. One thread.
 */
#ifndef SF_AGENT_NETLINK_H
#define SF_AGENT_NETLINK_H

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct netlink {
    int fd;
    uint32_t sequence;
};

/* A request: header, the fixed part of its type, attributes. */
struct netlink_request {
    struct nlmsghdr header;
    char body[1024];
};

typedef void netlink_each(void *opaque, const struct nlmsghdr *message);

bool netlink_open(struct netlink *netlink, int protocol); /* NETLINK_ROUTE, ...; false with errno */
void netlink_close(struct netlink *netlink);

/* Begins a request of this type and returns its fixed part, zeroed. */
void *netlink_begin(struct netlink_request *request, uint16_t type, uint16_t flags, size_t fixed);
/* Adds an attribute; what does not fit is a mistake of the caller (assert). */
void netlink_put(struct netlink_request *request, uint16_t type, const void *data, size_t length);

/* Sends it and waits for its acknowledgement: 0, or what went wrong as an errno. */
int netlink_change(struct netlink *netlink, struct netlink_request *request);
/* Sends it and hands on each message of the answer: 0 or an errno. The callback must not use the netlink. */
int netlink_dump(struct netlink *netlink, struct netlink_request *request, netlink_each *each, void *opaque);

/* The data of an attribute behind a fixed part of that size, if it has at least `length` bytes; else NULL. */
const void *netlink_get(const struct nlmsghdr *message, size_t fixed, uint16_t type, size_t length);
/* The same of an attribute within another one. */
const void *netlink_get_nested(const struct nlmsghdr *message, size_t fixed, uint16_t outer, uint16_t type,
                               size_t length);

#endif
