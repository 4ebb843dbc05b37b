/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a VM's place in its network looks like to the kernel: the NIC, the interface that has the address, routes.
 *
 * A parent takes it before it forks. A clone that nothing has changed since needs not ask: each question costs it, as
 * under TCG it translates all kernel code that it runs anew. Whether something has, a socket tells, to which the kernel
 * sends news of all of this: it is empty, or not.
 */
#ifndef SF_AGENT_INVENTORY_H
#define SF_AGENT_INVENTORY_H

#include <net/if.h>

#include "guest-agent/netlink.h"
#include "libsf/wire/message.h"

#define INVENTORY_ROUTES    32
#define INVENTORY_ADDRESSES 16
#define IPV4_LENGTH         4
#define IPV6_LENGTH         16

/* A route as a request that makes it again. */
struct inventory_route {
    struct netlink_request request;
    size_t source_at; /* of the preferred source address in it, if that is the address; 0: it is not */
};

struct inventory {
    struct netlink news;
    uint32_t address;            /* of whom it is, host byte order; 0: not taken */
    int nic;                     /* index; 0: none has the MAC of the address, or of any member of the cluster */
    int holder;                  /* index of the interface with the address; 0: none */
    struct ifaddrmsg as_held;    /* prefix, scope and interface of it */
    char interface[IF_NAMESIZE]; /* name of the holder, else of the NIC; empty: there is none */
    unsigned routes;             /* by the holder, without those that the kernel makes with an address */
    struct inventory_route route[INVENTORY_ROUTES];
    unsigned ipv6s; /* IPv6 addresses of that interface */
    struct {
        struct ifaddrmsg info;
        uint8_t address[IPV6_LENGTH];
    } ipv6[INVENTORY_ADDRESSES];
};

void inventory_init(struct inventory *inventory);

/* Takes that of the VM with this address, unless what was taken is of it and still right. */
void inventory_refresh(struct inventory *inventory, struct netlink *netlink, const struct sf_gp_network *cluster,
                       uint32_t address);

/* Index of the interface that has the address, or would get it: the NIC; 0: there is none. */
int inventory_interface(const struct inventory *inventory);

/* Index of the NIC with that MAC, or of any member of the cluster; 0: there is none. */
int inventory_find_nic(struct netlink *netlink, const uint8_t *mac);
int inventory_find_members_nic(struct netlink *netlink, const struct sf_gp_network *cluster);

/* Index of the interface with that address (host byte order); 0: there is none. */
int inventory_find_holder(struct netlink *netlink, uint32_t address, struct ifaddrmsg *as_held);

#endif
