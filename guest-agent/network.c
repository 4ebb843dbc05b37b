/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A clone's NIC still has the MAC of its parent, and some interface (the NIC, or a bridge over it) its parent's
 * address. By these both are found. While the host keeps the clone without a link:
 *
 *     TCP connections from the old address --> destroyed (SOCK_DESTROY): programs get ECONNABORTED, not a time-out
 *     MAC                                  --> that of the new address
 *     address, as it was: prefix, scope    --> the new one in its place
 *     routes of the interface              --> put back where the kernel dropped them with the address
 *     IPv6 addresses                       --> one link-local address, of the new MAC
 *     file of names                        --> sf-parent, sf-1, ...
 *
 * All of it is done through the kernel, whoever had set the parent's up: a static configuration, ifupdown, a DHCP
 * client, networkd or NetworkManager. Those that would undo it are told then (managers.c).
 *
 * The link never goes down in the guest's eyes, so that nobody there starts to configure the interface anew.
 */
#include "guest-agent/network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/if_arp.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <syslog.h>
#include <unistd.h>

#include "guest-agent/agent.h"
#include "guest-agent/cluster_ssh.h"
#include "guest-agent/managers.h"
#include "guest-agent/names.h"
#include "guest-agent/netlink.h"

#define SETUP_TRIES           60 /* once a second: until the NIC's driver is there */
#define SAVED_ROUTES          32
#define SAVED_ADDRESSES       16
#define DESTROYED_AT_ONCE     64 /* connections */
#define DESTROY_ROUNDS        64 /* of so many */
#define IPV4_LENGTH           4
#define PREFIX_POINT_TO_POINT 31 /* RFC 3021: from here on no broadcast address */
#define IPV6_LENGTH           16
#define NDP_HOPS              255
#define NDP_ADVERT            136
#define NDP_OVERRIDE          0x20
#define NDP_TARGET_MAC        2

static bool fail(struct sf_gp_error *error, int number, const char *what)
{
    error->error = (uint32_t)number;
    sf_gp_text_set(error->text, sizeof(error->text), "cluster network: %s: %s", what, strerror(number));
    return false;
}

/* ---- what there is ---- */

struct nic {
    const uint8_t *mac;
    int index; /* 0: none has this MAC */
};

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

    if (message->nlmsg_type == RTM_NEWLINK && info->ifi_type == ARPHRD_ETHER && mac &&
        memcmp(mac, nic->mac, SF_GP_MAC_LENGTH) == 0 && !is_upper(message)) {
        nic->index = info->ifi_index;
    }
}

static int find_nic(struct netlink *netlink, const uint8_t *mac)
{
    struct nic nic = { .mac = mac };
    struct netlink_request request;
    struct ifinfomsg *info = netlink_begin(&request, RTM_GETLINK, 0, sizeof(*info));

    netlink_dump(netlink, &request, look_at_link, &nic);
    return nic.index;
}

struct holder {
    uint32_t address;      /* network byte order */
    int index;             /* 0: no interface has it */
    struct ifaddrmsg info; /* as it has it */
};

static void look_at_address(void *opaque, const struct nlmsghdr *message)
{
    const struct ifaddrmsg *info = NLMSG_DATA(message);
    const uint32_t *local = netlink_get(message, sizeof(*info), IFA_LOCAL, IPV4_LENGTH);
    struct holder *holder = opaque;

    if (message->nlmsg_type == RTM_NEWADDR && info->ifa_family == AF_INET && local && *local == holder->address) {
        holder->index = (int)info->ifa_index;
        holder->info = *info;
    }
}

static void find_holder(struct netlink *netlink, struct holder *holder)
{
    struct netlink_request request;
    struct ifaddrmsg *info = netlink_begin(&request, RTM_GETADDR, 0, sizeof(*info));

    info->ifa_family = AF_INET;
    netlink_dump(netlink, &request, look_at_address, holder);
}

/* ---- MAC and addresses ---- */

static int set_mac(struct netlink *netlink, int index, const uint8_t *mac)
{
    struct netlink_request request;
    struct ifinfomsg *info = netlink_begin(&request, RTM_NEWLINK, 0, sizeof(*info));

    info->ifi_index = index;
    netlink_put(&request, IFLA_ADDRESS, mac, SF_GP_MAC_LENGTH);
    return netlink_change(netlink, &request);
}

static int set_up(struct netlink *netlink, int index)
{
    struct netlink_request request;
    struct ifinfomsg *info = netlink_begin(&request, RTM_NEWLINK, 0, sizeof(*info));

    info->ifi_index = index;
    info->ifi_flags = info->ifi_change = IFF_UP;
    return netlink_change(netlink, &request);
}

/* type: RTM_NEWADDR or RTM_DELADDR. like: prefix, scope and interface. */
static int change_address(struct netlink *netlink, uint16_t type, const struct ifaddrmsg *like, const void *address)
{
    size_t length = like->ifa_family == AF_INET ? IPV4_LENGTH : IPV6_LENGTH;
    struct netlink_request request;
    struct ifaddrmsg *info =
        netlink_begin(&request, type, type == RTM_NEWADDR ? NLM_F_CREATE | NLM_F_REPLACE : 0, sizeof(*info));

    info->ifa_family = like->ifa_family;
    info->ifa_prefixlen = like->ifa_prefixlen;
    info->ifa_scope = like->ifa_scope;
    info->ifa_index = like->ifa_index;
    netlink_put(&request, IFA_LOCAL, address, length);
    netlink_put(&request, IFA_ADDRESS, address, length);
    if (type == RTM_NEWADDR && like->ifa_family == AF_INET && like->ifa_prefixlen < PREFIX_POINT_TO_POINT) {
        uint32_t hosts = htonl(UINT32_MAX >> like->ifa_prefixlen), own;

        memcpy(&own, address, sizeof(own));
        own |= hosts;
        netlink_put(&request, IFA_BROADCAST, &own, IPV4_LENGTH);
    }
    if (type == RTM_NEWADDR && like->ifa_family == AF_INET6) {
        info->ifa_flags = IFA_F_NODAD; /* made of a MAC that nobody else has */
    }
    return netlink_change(netlink, &request);
}

/* fe80:: with the MAC as modified EUI-64: what the host lets pass. */
static void link_local(uint8_t address[IPV6_LENGTH], const uint8_t *mac)
{
    const uint8_t value[IPV6_LENGTH] = { 0xfe,       0x80,   0,      0,    0,    0,      0,      0,
                                         mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5] };

    memcpy(address, value, IPV6_LENGTH);
}

struct addresses {
    int index; /* of the interface */
    unsigned count;
    struct {
        struct ifaddrmsg info;
        uint8_t address[IPV6_LENGTH];
    } list[SAVED_ADDRESSES];
};

static void save_ipv6(void *opaque, const struct nlmsghdr *message)
{
    const struct ifaddrmsg *info = NLMSG_DATA(message);
    const void *address = netlink_get(message, sizeof(*info), IFA_ADDRESS, IPV6_LENGTH);
    struct addresses *addresses = opaque;

    if (message->nlmsg_type == RTM_NEWADDR && info->ifa_family == AF_INET6 && address &&
        (int)info->ifa_index == addresses->index && addresses->count < SAVED_ADDRESSES) {
        addresses->list[addresses->count].info = *info;
        memcpy(addresses->list[addresses->count++].address, address, IPV6_LENGTH);
    }
}

/* Members have link-local addresses alone. A guest without IPv6 has none to lose. */
static void renew_ipv6(struct netlink *netlink, int index, const uint8_t *mac)
{
    struct addresses old = { .index = index };
    struct ifaddrmsg like = {
        .ifa_family = AF_INET6, .ifa_prefixlen = 64, .ifa_scope = RT_SCOPE_LINK, .ifa_index = (uint32_t)index
    };
    struct netlink_request request;
    struct ifaddrmsg *info = netlink_begin(&request, RTM_GETADDR, 0, sizeof(*info));
    uint8_t address[IPV6_LENGTH];

    info->ifa_family = AF_INET6;
    netlink_dump(netlink, &request, save_ipv6, &old);
    for (unsigned i = 0; i < old.count; i++) {
        change_address(netlink, RTM_DELADDR, &old.list[i].info, old.list[i].address);
    }
    if (old.count > 0) {
        link_local(address, mac);
        change_address(netlink, RTM_NEWADDR, &like, address);
    }
}

/* ---- routes ---- */

struct routes {
    int index;         /* of the interface */
    uint32_t from, to; /* preferred source address, network byte order: old and new */
    unsigned count;
    struct netlink_request list[SAVED_ROUTES];
};

/* Copies the attributes of a route into a request that makes it again. */
static void copy_route(struct netlink_request *copy, const struct nlmsghdr *message, const struct routes *routes)
{
    static const uint16_t kept[] = { RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE };
    struct rtmsg *info = netlink_begin(copy, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof(*info));

    *info = *(const struct rtmsg *)NLMSG_DATA(message);
    info->rtm_flags &= (unsigned)RTNH_F_ONLINK;
    for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
        const uint32_t *value = netlink_get(message, sizeof(*info), kept[i], sizeof(*value));

        if (value) {
            netlink_put(copy, kept[i], kept[i] == RTA_PREFSRC && *value == routes->from ? &routes->to : value,
                        sizeof(*value));
        }
    }
}

/* The routes that the kernel makes with an address come again by themselves. */
static void save_route(void *opaque, const struct nlmsghdr *message)
{
    const struct rtmsg *info = NLMSG_DATA(message);
    const int *index = netlink_get(message, sizeof(*info), RTA_OIF, sizeof(*index));
    struct routes *routes = opaque;

    if (message->nlmsg_type == RTM_NEWROUTE && info->rtm_family == AF_INET && info->rtm_protocol != RTPROT_KERNEL &&
        info->rtm_type == RTN_UNICAST && index && *index == routes->index && routes->count < SAVED_ROUTES) {
        copy_route(&routes->list[routes->count++], message, routes);
    }
}

static void save_routes(struct netlink *netlink, struct routes *routes)
{
    struct netlink_request request;
    struct rtmsg *info = netlink_begin(&request, RTM_GETROUTE, 0, sizeof(*info));

    info->rtm_family = AF_INET;
    netlink_dump(netlink, &request, save_route, routes);
}

static void put_routes_back(struct netlink *netlink, struct routes *routes)
{
    for (unsigned i = 0; i < routes->count; i++) {
        int number = netlink_change(netlink, &routes->list[i]);

        if (number != 0 && number != EEXIST) {
            agent_log(LOG_WARNING, "a route of the parent can't be made again: %s", strerror(number));
        }
    }
}

static int add_default_route(struct netlink *netlink, int index, uint32_t gateway)
{
    struct netlink_request request;
    struct rtmsg *info = netlink_begin(&request, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof(*info));
    uint32_t via = htonl(gateway);

    info->rtm_family = AF_INET;
    info->rtm_table = RT_TABLE_MAIN;
    info->rtm_protocol = RTPROT_BOOT;
    info->rtm_scope = RT_SCOPE_UNIVERSE;
    info->rtm_type = RTN_UNICAST;
    netlink_put(&request, RTA_OIF, &index, sizeof(index));
    netlink_put(&request, RTA_GATEWAY, &via, sizeof(via));
    return netlink_change(netlink, &request);
}

/* ---- TCP connections ---- */

struct connections {
    uint32_t address; /* network byte order */
    unsigned count;
    struct inet_diag_msg list[DESTROYED_AT_ONCE];
};

/* From the old address, plain or mapped, or from a link-local one. */
static bool is_inherited(const struct inet_diag_msg *connection, uint32_t address)
{
    const uint8_t *source = (const uint8_t *)connection->id.idiag_src;
    static const uint8_t mapped[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };

    if (connection->idiag_family == AF_INET) {
        return memcmp(source, &address, IPV4_LENGTH) == 0;
    }
    return (memcmp(source, mapped, sizeof(mapped)) == 0 &&
            memcmp(source + sizeof(mapped), &address, IPV4_LENGTH) == 0) ||
           (source[0] == 0xfe && source[1] == 0x80);
}

static void save_connection(void *opaque, const struct nlmsghdr *message)
{
    const struct inet_diag_msg *connection = NLMSG_DATA(message);
    struct connections *connections = opaque;

    if (message->nlmsg_type == SOCK_DIAG_BY_FAMILY && message->nlmsg_len >= NLMSG_LENGTH(sizeof(*connection)) &&
        connections->count < DESTROYED_AT_ONCE && is_inherited(connection, connections->address)) {
        connections->list[connections->count++] = *connection;
    }
}

static void list_connections(struct netlink *netlink, uint8_t family, struct connections *connections)
{
    struct netlink_request request;
    struct inet_diag_req_v2 *wanted = netlink_begin(&request, SOCK_DIAG_BY_FAMILY, 0, sizeof(*wanted));

    connections->count = 0;
    wanted->sdiag_family = family;
    wanted->sdiag_protocol = IPPROTO_TCP;
    wanted->idiag_states = ~(1u << TCP_LISTEN | 1u << TCP_TIME_WAIT);
    netlink_dump(netlink, &request, save_connection, connections);
}

static int destroy_connection(struct netlink *netlink, const struct inet_diag_msg *connection)
{
    struct netlink_request request;
    struct inet_diag_req_v2 *which = netlink_begin(&request, SOCK_DESTROY, 0, sizeof(*which));

    which->sdiag_family = connection->idiag_family;
    which->sdiag_protocol = IPPROTO_TCP;
    which->idiag_states = UINT32_MAX;
    which->id = connection->id;
    return netlink_change(netlink, &request);
}

/* Not being able to is no reason to end the clone: its connections then end by time-outs. */
static void destroy_connections(uint32_t address)
{
    static const uint8_t families[] = { AF_INET, AF_INET6 };
    struct connections connections = { .address = address };
    struct netlink netlink;
    int number = 0;

    if (!netlink_open(&netlink, NETLINK_SOCK_DIAG)) {
        agent_log(LOG_WARNING, "TCP connections of the parent can't be looked for: %s", strerror(errno));
        return;
    }
    for (unsigned i = 0; i < sizeof(families); i++) {
        for (unsigned round = 0; round < DESTROY_ROUNDS && number == 0; round++) {
            list_connections(&netlink, families[i], &connections);
            for (unsigned c = 0; c < connections.count && (number == 0 || number == ENOENT); c++) {
                number = destroy_connection(&netlink, &connections.list[c]);
            }
            number = number == ENOENT ? 0 : number;
            if (connections.count < DESTROYED_AT_ONCE) {
                break;
            }
        }
    }
    if (number != 0) {
        agent_log(LOG_WARNING, "TCP connections of the parent can't be ended: %s", strerror(number));
    }
    netlink_close(&netlink);
}

/* ---- becoming a member ---- */

/* The holder of the old address gets the new one. */
static int move_address(struct netlink *netlink, const struct sf_gp_network *value, struct holder *holder)
{
    struct routes routes = { .index = holder->index, .from = htonl(value->parent), .to = htonl(value->address) };
    int number;

    save_routes(netlink, &routes);
    number = change_address(netlink, RTM_DELADDR, &holder->info, &routes.from);
    if (number != 0) {
        return number;
    }
    number = change_address(netlink, RTM_NEWADDR, &holder->info, &routes.to);
    put_routes_back(netlink, &routes);
    return number;
}

static bool become(struct netlink *netlink, struct network *network, struct sf_gp_error *error)
{
    const struct sf_gp_network *value = &network->value;
    uint8_t old[SF_GP_MAC_LENGTH], mac[SF_GP_MAC_LENGTH];
    struct holder holder = { .address = htonl(value->parent) };
    int nic, number;

    sf_gp_mac_of_address(old, value->parent);
    sf_gp_mac_of_address(mac, value->address);
    nic = find_nic(netlink, old);
    if (nic == 0) {
        return fail(error, ENODEV, "no network device has the parent's MAC; has the guest changed it?");
    }
    find_holder(netlink, &holder);
    if (holder.index > 0) {
        destroy_connections(holder.address);
    }
    number = set_mac(netlink, nic, mac);
    if (number != 0) {
        return fail(error, number, "setting the MAC");
    }
    number = holder.index > 0 ? move_address(netlink, value, &holder) : 0; /* else the guest has not set it up */
    if (number != 0) {
        return fail(error, number, "setting the address");
    }
    if (holder.index == 0 || !if_indextoname((unsigned)holder.index, network->interface)) {
        network->interface[0] = '\0';
    }
    renew_ipv6(netlink, holder.index > 0 ? holder.index : nic, mac);
    return true;
}

bool network_become(struct network *network, struct sf_gp_error *error)
{
    struct netlink netlink;
    bool ok;

    if (!netlink_open(&netlink, NETLINK_ROUTE)) {
        return fail(error, errno, "netlink");
    }
    ok = become(&netlink, network, error);
    netlink_close(&netlink);
    if (ok) {
        names_write(network->hosts, &network->value, network->parent_host);
    }
    return ok;
}

static void put_address(char *text, const char *name, uint32_t a)
{
    int length = snprintf(text, NETWORK_VARIABLE_LEN, "%s=", name);

    if (a != 0) {
        snprintf(text + length, NETWORK_VARIABLE_LEN - (size_t)length, "%u.%u.%u.%u", a >> 24, a >> 16 & 0xff,
                 a >> 8 & 0xff, a & 0xff);
    }
}

void network_describe(const struct network *network, struct network_environment *environment)
{
    const struct sf_gp_network *value = &network->value;

    snprintf(environment->text[0], NETWORK_VARIABLE_LEN, "SF_INTERFACE=%s", network->interface);
    snprintf(environment->text[1], NETWORK_VARIABLE_LEN, "SF_PREFIX=%" PRIu32, value->prefix);
    put_address(environment->text[2], "SF_ADDRESS", value->address);
    put_address(environment->text[3], "SF_PARENT_ADDRESS", value->parent);
    put_address(environment->text[4], "SF_GATEWAY", value->gateway);
}

/* ---- the parent ---- */

void network_init(struct network *network, const char *hosts, bool with_ssh)
{
    memset(network, 0, sizeof(*network));
    network->hosts = hosts;
    network->with_ssh = with_ssh;
}

/* A clone should not have to load the kernel's modules for it. */
static void warm_up(void)
{
    struct connections none = { .address = htonl(INADDR_NONE) };
    struct netlink netlink;

    if (netlink_open(&netlink, NETLINK_SOCK_DIAG)) {
        list_connections(&netlink, AF_INET, &none);
        list_connections(&netlink, AF_INET6, &none);
        netlink_close(&netlink);
    }
}

void network_told(struct network *network, const struct sf_gp_network *value)
{
    bool first = network->value.prefix == 0;

    network->value = *value;
    network->fresh = true;
    if (gethostname(network->parent_host, sizeof(network->parent_host)) < 0) {
        network->parent_host[0] = '\0';
    }
    network->parent_host[SF_GP_NAME_LEN] = '\0';
    if (value->id > 0) {
        return; /* a clone: IDENTITY comes, or has come to an earlier agent */
    }
    if (first) {
        warm_up();
    }
    if (first && network->with_ssh) {
        cluster_ssh_prepare(value);
    }
    if (first && !managers_are_there()) {
        network->setup_tries = SETUP_TRIES;
        network_retry(network);
    }
    if (value->count > 0) {
        names_write(network->hosts, value, network->parent_host);
    }
}

bool network_wants_retry(const struct network *network)
{
    return network->setup_tries > 0;
}

static int set_nic_up(struct netlink *netlink, const struct sf_gp_network *value, int nic)
{
    struct holder holder = { .address = htonl(value->address) };
    struct ifaddrmsg like = { .ifa_family = AF_INET,
                              .ifa_prefixlen = (uint8_t)value->prefix,
                              .ifa_scope = RT_SCOPE_UNIVERSE,
                              .ifa_index = (uint32_t)nic };
    int number;

    find_holder(netlink, &holder);
    if (holder.index > 0) {
        return 0;
    }
    number = set_up(netlink, nic);
    if (number == 0) {
        number = change_address(netlink, RTM_NEWADDR, &like, &holder.address);
    }
    if (number == 0 && value->gateway != 0) {
        number = add_default_route(netlink, nic, value->gateway);
        number = number == EEXIST ? 0 : number;
    }
    return number;
}

void network_retry(struct network *network)
{
    uint8_t mac[SF_GP_MAC_LENGTH];
    struct netlink netlink;
    int nic, number;

    network->setup_tries--;
    if (!netlink_open(&netlink, NETLINK_ROUTE)) {
        return;
    }
    sf_gp_mac_of_address(mac, network->value.address);
    nic = find_nic(&netlink, mac);
    if (nic > 0) {
        network->setup_tries = 0;
        number = set_nic_up(&netlink, &network->value, nic);
        if (number != 0) {
            agent_log(LOG_WARNING, "the cluster's address can't be set: %s", strerror(number));
        }
    }
    netlink_close(&netlink);
}

/* ---- announcing ---- */

static void send_frame(int fd, int index, uint16_t protocol, const uint8_t *to, const void *data, size_t length)
{
    struct sockaddr_ll target = {
        .sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = index, .sll_halen = SF_GP_MAC_LENGTH
    };

    memcpy(target.sll_addr, to, SF_GP_MAC_LENGTH);
    if (sendto(fd, data, length, 0, (struct sockaddr *)&target, sizeof(target)) < 0) {
        agent_log(LOG_DEBUG, "announcing the address: %s", strerror(errno));
    }
}

/* An ARP announcement (RFC 5227): a request for the own address. */
static void announce_ipv4(int fd, int index, const uint8_t *mac, uint32_t address)
{
    static const uint8_t all[SF_GP_MAC_LENGTH] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    uint8_t arp[28] = { 0, 1, 8, 0, SF_GP_MAC_LENGTH, IPV4_LENGTH, 0, 1 };

    memcpy(arp + 8, mac, SF_GP_MAC_LENGTH);
    memcpy(arp + 14, &address, IPV4_LENGTH);
    memcpy(arp + 24, &address, IPV4_LENGTH);
    send_frame(fd, index, ETH_P_ARP, all, arp, sizeof(arp));
}

static uint16_t checksum(const uint8_t *bytes, size_t length, uint32_t sum)
{
    for (size_t i = 0; i < length; i++) {
        sum += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
    }
    while (sum >> 16) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return (uint16_t)~sum;
}

/* An unsolicited neighbour advertisement (RFC 4861) to all nodes. */
static void announce_ipv6(int fd, int index, const uint8_t *mac)
{
    static const uint8_t all_mac[SF_GP_MAC_LENGTH] = { 0x33, 0x33, 0, 0, 0, 1 };
    static const uint8_t all[IPV6_LENGTH] = { 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 };
    enum { HEADER = 40, ADVERT = 32 };
    uint8_t packet[HEADER + ADVERT] = { 0x60, 0, 0, 0, 0, ADVERT, IPPROTO_ICMPV6, NDP_HOPS };
    uint8_t *advert = packet + HEADER;
    uint16_t sum;

    link_local(packet + 8, mac);
    memcpy(packet + 24, all, IPV6_LENGTH);
    advert[0] = NDP_ADVERT;
    advert[4] = NDP_OVERRIDE;
    link_local(advert + 8, mac);
    advert[24] = NDP_TARGET_MAC;
    advert[25] = 1; /* in units of 8 bytes */
    memcpy(advert + 26, mac, SF_GP_MAC_LENGTH);
    sum = checksum(packet + 8, 2 * IPV6_LENGTH + ADVERT, ADVERT + IPPROTO_ICMPV6); /* addresses and advert: adjacent */
    advert[2] = (uint8_t)(sum >> 8);
    advert[3] = (uint8_t)sum;
    send_frame(fd, index, ETH_P_IPV6, all_mac, packet, sizeof(packet));
}

void network_announce(const struct network *network)
{
    struct holder holder = { .address = htonl(network->value.address) };
    uint8_t mac[SF_GP_MAC_LENGTH];
    struct netlink netlink;
    int fd;

    if (!netlink_open(&netlink, NETLINK_ROUTE)) {
        return;
    }
    find_holder(&netlink, &holder);
    netlink_close(&netlink);
    fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || holder.index == 0) {
        agent_log(LOG_DEBUG, "this clone's address is not announced: %s", fd < 0 ? strerror(errno) : "nobody has it");
    } else {
        sf_gp_mac_of_address(mac, network->value.address);
        announce_ipv4(fd, holder.index, mac, holder.address);
        announce_ipv6(fd, holder.index, mac);
    }
    if (fd >= 0) {
        close(fd);
    }
}
