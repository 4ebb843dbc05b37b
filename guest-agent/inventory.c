/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "guest-agent/inventory.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_arp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NEWS_GROUPS (RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR)

/* ---- the NIC ---- */

struct nic {
    const uint8_t *mac;                  /* NULL: that of any member of the cluster */
    const struct sf_gp_network *cluster; /* NULL if mac is not */
    int index;                           /* 0: there is none */
};

static bool is_wanted(const struct nic *nic, const uint8_t *mac)
{
    uint32_t address = (uint32_t)mac[2] << 24 | (uint32_t)mac[3] << 16 | (uint32_t)mac[4] << 8 | mac[5];
    uint8_t member[SF_GP_MAC_LENGTH];

    if (nic->mac) {
        return memcmp(mac, nic->mac, SF_GP_MAC_LENGTH) == 0;
    }
    sf_gp_mac_of_address(member, address);
    return memcmp(mac, member, SF_GP_MAC_LENGTH) == 0 &&
           (address ^ nic->cluster->address) <= UINT32_MAX >> nic->cluster->prefix;
}

/* What stands on other devices and may have got the MAC of one. */
static bool is_upper(const struct nlmsghdr *message)
{
    static const char *const kinds[] = { "bridge", "bond", "team", "vlan", "macvlan", "macvtap" };
    const char *kind = netlink_get_nested(message, sizeof(struct ifinfomsg), IFLA_LINKINFO, IFLA_INFO_KIND, 1);

    for (size_t i = 0; kind && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(kind, kinds[i]) == 0) { /* the kernel ends it with NUL */
            return true;
        }
    }
    return false;
}

static void look_at_link(void *opaque, const struct nlmsghdr *message)
{
    const struct ifinfomsg *info = NLMSG_DATA(message);
    const uint8_t *mac = netlink_get(message, sizeof(*info), IFLA_ADDRESS, SF_GP_MAC_LENGTH);
    struct nic *nic = opaque;

    if (message->nlmsg_type == RTM_NEWLINK && info->ifi_type == ARPHRD_ETHER && mac && is_wanted(nic, mac) &&
        !is_upper(message)) {
        nic->index = info->ifi_index;
    }
}

static int find(struct netlink *netlink, struct nic *nic)
{
    struct netlink_request request;
    struct ifinfomsg *info = netlink_begin(&request, RTM_GETLINK, 0, sizeof(*info));

    netlink_dump(netlink, &request, look_at_link, nic);
    return nic->index;
}

int inventory_find_nic(struct netlink *netlink, const uint8_t *mac)
{
    return find(netlink, &(struct nic){ .mac = mac });
}

int inventory_find_members_nic(struct netlink *netlink, const struct sf_gp_network *cluster)
{
    return find(netlink, &(struct nic){ .cluster = cluster });
}

/* ---- addresses ---- */

struct holder {
    uint32_t address; /* network byte order */
    int index;        /* 0: no interface has it */
    struct ifaddrmsg *as_held;
};

static void look_at_address(void *opaque, const struct nlmsghdr *message)
{
    const struct ifaddrmsg *info = NLMSG_DATA(message);
    const uint32_t *local = netlink_get(message, sizeof(*info), IFA_LOCAL, IPV4_LENGTH);
    struct holder *holder = opaque;

    if (message->nlmsg_type == RTM_NEWADDR && info->ifa_family == AF_INET && local && *local == holder->address) {
        holder->index = (int)info->ifa_index;
        *holder->as_held = *info;
    }
}

int inventory_find_holder(struct netlink *netlink, uint32_t address, struct ifaddrmsg *as_held)
{
    struct holder holder = { .address = htonl(address), .as_held = as_held };
    struct netlink_request request;
    struct ifaddrmsg *info = netlink_begin(&request, RTM_GETADDR, 0, sizeof(*info));

    info->ifa_family = AF_INET;
    netlink_dump(netlink, &request, look_at_address, &holder);
    return holder.index;
}

int inventory_interface(const struct inventory *inventory)
{
    return inventory->holder > 0 ? inventory->holder : inventory->nic;
}

static void take_ipv6(void *opaque, const struct nlmsghdr *message)
{
    const struct ifaddrmsg *info = NLMSG_DATA(message);
    const void *address = netlink_get(message, sizeof(*info), IFA_ADDRESS, IPV6_LENGTH);
    struct inventory *inventory = opaque;

    if (message->nlmsg_type == RTM_NEWADDR && info->ifa_family == AF_INET6 && address &&
        (int)info->ifa_index == inventory_interface(inventory) && inventory->ipv6s < INVENTORY_ADDRESSES) {
        inventory->ipv6[inventory->ipv6s].info = *info;
        memcpy(inventory->ipv6[inventory->ipv6s++].address, address, IPV6_LENGTH);
    }
}

static void take_ipv6s(struct inventory *inventory, struct netlink *netlink)
{
    struct netlink_request request;
    struct ifaddrmsg *info = netlink_begin(&request, RTM_GETADDR, 0, sizeof(*info));

    info->ifa_family = AF_INET6;
    inventory->ipv6s = 0;
    netlink_dump(netlink, &request, take_ipv6, inventory);
}

/* ---- routes ---- */

/* Copies the attributes of a route into a request that makes it again. */
static void copy_route(struct inventory_route *copy, const struct nlmsghdr *message, uint32_t address)
{
    static const uint16_t kept[] = { RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE };
    struct rtmsg *info = netlink_begin(&copy->request, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof(*info));

    *info = *(const struct rtmsg *)NLMSG_DATA(message);
    info->rtm_flags &= (unsigned)RTNH_F_ONLINK;
    copy->source_at = 0;
    for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
        const uint32_t *value = netlink_get(message, sizeof(*info), kept[i], sizeof(*value));

        if (!value) {
            continue;
        }
        netlink_put(&copy->request, kept[i], value, sizeof(*value));
        if (kept[i] == RTA_PREFSRC && *value == htonl(address)) {
            copy->source_at = copy->request.header.nlmsg_len - sizeof(*value);
        }
    }
}

static void take_route(void *opaque, const struct nlmsghdr *message)
{
    const struct rtmsg *info = NLMSG_DATA(message);
    const int *index = netlink_get(message, sizeof(*info), RTA_OIF, sizeof(*index));
    struct inventory *inventory = opaque;

    if (message->nlmsg_type == RTM_NEWROUTE && info->rtm_family == AF_INET && info->rtm_protocol != RTPROT_KERNEL &&
        info->rtm_type == RTN_UNICAST && index && *index == inventory->holder && inventory->routes < INVENTORY_ROUTES) {
        copy_route(&inventory->route[inventory->routes++], message, inventory->address);
    }
}

static void take_routes(struct inventory *inventory, struct netlink *netlink)
{
    struct netlink_request request;
    struct rtmsg *info = netlink_begin(&request, RTM_GETROUTE, 0, sizeof(*info));

    info->rtm_family = AF_INET;
    inventory->routes = 0;
    netlink_dump(netlink, &request, take_route, inventory);
}

/* ---- all of it ---- */

void inventory_init(struct inventory *inventory)
{
    memset(inventory, 0, sizeof(*inventory));
    inventory->news.fd = -1;
}

/* Reads what is there; true: nothing was. An error is news as well: some may have been lost. */
static bool no_news(struct inventory *inventory)
{
    char message;
    bool none = true;

    while (recv(inventory->news.fd, &message, sizeof(message), MSG_DONTWAIT) >= 0 ||
           (errno != EAGAIN && errno != EBADF)) {
        none = false;
    }
    return none && errno == EAGAIN;
}

static void hear_news(struct inventory *inventory)
{
    const struct sockaddr_nl groups = { .nl_family = AF_NETLINK, .nl_groups = NEWS_GROUPS };

    if (inventory->news.fd < 0 && netlink_open(&inventory->news, NETLINK_ROUTE) &&
        bind(inventory->news.fd, (const struct sockaddr *)&groups, sizeof(groups)) < 0) {
        netlink_close(&inventory->news); /* then it is taken anew each time */
    }
}

void inventory_refresh(struct inventory *inventory, struct netlink *netlink, const struct sf_gp_network *cluster,
                       uint32_t address)
{
    uint8_t mac[SF_GP_MAC_LENGTH];

    if (no_news(inventory) && inventory->address == address) {
        return;
    }
    hear_news(inventory);
    inventory->address = address;
    sf_gp_mac_of_address(mac, address);
    inventory->nic = inventory_find_nic(netlink, mac);
    if (inventory->nic == 0) {
        inventory->nic = inventory_find_members_nic(netlink, cluster);
    }
    inventory->holder = inventory_find_holder(netlink, address, &inventory->as_held);
    if (!if_indextoname((unsigned)inventory_interface(inventory), inventory->interface)) {
        inventory->interface[0] = '\0';
    }
    take_routes(inventory, netlink);
    take_ipv6s(inventory, netlink);
    if (inventory->nic == 0) {
        inventory->address = 0; /* not there yet, or not to be seen for a moment */
    }
}
