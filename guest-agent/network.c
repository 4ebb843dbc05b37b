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
 *
 * What can be done once is not done in each clone: before a fork its parent is told what the clones will be (NETWORK
 * with their number), opens sockets, takes an inventory of what has to be changed and writes the names. A clone whose
 * parent did not get to that, or where something has changed since, does it itself.
 *
 * A clone that boots anew becomes one a second time (SF_GP_WHO). Its NIC then has the MAC of the cluster's first VM:
 * that is what QEMU's device was made with. Until it has its own again the host lets nothing pass.
 */
#include "guest-agent/network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
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
#include "guest-agent/netlink.h"

#define SETUP_TRIES           60 /* once a second: until the NIC's driver is there */
#define DESTROYED_AT_ONCE     64 /* connections */
#define DESTROY_ROUNDS        64 /* of so many */
#define PREFIX_POINT_TO_POINT 31 /* RFC 3021: from here on no broadcast address */

static bool fail(struct sf_gp_error *error, int number, const char *what)
{
    error->error = (uint32_t)number;
    sf_gp_text_set(error->text, sizeof(error->text), "cluster network: %s: %s", what, strerror(number));
    return false;
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

/* Members have link-local addresses alone. A guest without IPv6 has none to lose. */
static void renew_ipv6(struct netlink *netlink, const struct inventory *old, const uint8_t *mac)
{
    struct ifaddrmsg like = { .ifa_family = AF_INET6,
                              .ifa_prefixlen = 64,
                              .ifa_scope = RT_SCOPE_LINK,
                              .ifa_index = (uint32_t)inventory_interface(old) };
    uint8_t address[IPV6_LENGTH];

    for (unsigned i = 0; i < old->ipv6s; i++) {
        change_address(netlink, RTM_DELADDR, &old->ipv6[i].info, old->ipv6[i].address);
    }
    if (old->ipv6s > 0) {
        link_local(address, mac);
        change_address(netlink, RTM_NEWADDR, &like, address);
    }
}

/* ---- routes ---- */

/* The routes that the kernel has dropped with the old address; those that it makes with the new one are there. */
static void put_routes_back(struct netlink *netlink, struct inventory *old, uint32_t address)
{
    for (unsigned i = 0; i < old->routes; i++) {
        struct inventory_route *route = &old->route[i];
        int number;

        if (route->source_at > 0) {
            memcpy((char *)&route->request + route->source_at, &address, IPV4_LENGTH);
        }
        number = netlink_change(netlink, &route->request);
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
static void destroy_connections(struct netlink *netlink, uint32_t address)
{
    static const uint8_t families[] = { AF_INET, AF_INET6 };
    struct connections connections = { .address = address };
    int number = 0;

    for (unsigned i = 0; i < sizeof(families); i++) {
        for (unsigned round = 0; round < DESTROY_ROUNDS && number == 0; round++) {
            list_connections(netlink, families[i], &connections);
            for (unsigned c = 0; c < connections.count && (number == 0 || number == ENOENT); c++) {
                number = destroy_connection(netlink, &connections.list[c]);
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
}

/* ---- a NIC that nobody sets up ---- */

static int set_nic_up(struct netlink *netlink, const struct sf_gp_network *value, int nic)
{
    struct ifaddrmsg like = { .ifa_family = AF_INET,
                              .ifa_prefixlen = (uint8_t)value->prefix,
                              .ifa_scope = RT_SCOPE_UNIVERSE,
                              .ifa_index = (uint32_t)nic };
    uint32_t address = htonl(value->address);
    struct ifaddrmsg as_held;
    int number;

    if (inventory_find_holder(netlink, value->address, &as_held) > 0) {
        return 0;
    }
    number = set_up(netlink, nic);
    if (number == 0) {
        number = change_address(netlink, RTM_NEWADDR, &like, &address);
    }
    if (number == 0 && value->gateway != 0) {
        number = add_default_route(netlink, nic, value->gateway);
        number = number == EEXIST ? 0 : number;
    }
    return number;
}

/* ---- becoming a member ---- */

/* The first time. A clone has its parent's. False with errno; without that for connections those can't be ended. */
static bool open_sockets(struct network *network)
{
    if (network->netlink.fd < 0 && !netlink_open(&network->netlink, NETLINK_ROUTE)) {
        return false;
    }
    if (network->diag.fd < 0 && !netlink_open(&network->diag, NETLINK_SOCK_DIAG)) {
        agent_log(LOG_WARNING, "TCP connections of the parent can't be looked for: %s", strerror(errno));
    }
    return true;
}

/* The holder of the old address gets the new one. */
static int move_address(struct netlink *netlink, const struct sf_gp_network *value, struct inventory *old)
{
    uint32_t from = htonl(value->parent), to = htonl(value->address);
    int number = change_address(netlink, RTM_DELADDR, &old->as_held, &from);

    if (number != 0) {
        return number;
    }
    number = change_address(netlink, RTM_NEWADDR, &old->as_held, &to);
    put_routes_back(netlink, old, to);
    return number;
}

static bool become(struct network *network, struct sf_gp_error *error)
{
    const struct sf_gp_network *value = &network->value;
    struct inventory *old = &network->inventory;
    struct netlink *netlink = &network->netlink;
    uint8_t mac[SF_GP_MAC_LENGTH];
    int number;

    inventory_refresh(old, netlink, value, value->parent);
    if (old->nic == 0) {
        return fail(error, ENODEV, "no network device has the parent's MAC; has the guest changed it?");
    }
    memcpy(network->interface, old->interface, sizeof(network->interface));
    if (old->holder > 0 && network->diag.fd >= 0) {
        destroy_connections(&network->diag, htonl(value->parent));
    }
    sf_gp_mac_of_address(mac, value->address);
    number = set_mac(netlink, old->nic, mac);
    if (number != 0) {
        return fail(error, number, "setting the MAC");
    }
    number = old->holder > 0            ? move_address(netlink, value, old)
             : network->setup_tries > 0 ? set_nic_up(netlink, value, old->nic)
                                        : 0; /* the guest has not set it up */
    if (number != 0) {
        return fail(error, number, "setting the address");
    }
    network->setup_tries = 0;
    renew_ipv6(netlink, old, mac);
    return true;
}

/* Those that run have the address from somewhere, and would set it again. */
static void take_managers(struct network *network)
{
    network->managers = network->inventory.interface[0] != '\0' ? managers_running() : 0;
}

bool network_become(struct network *network, struct sf_gp_error *error)
{
    if (!open_sockets(network)) {
        return fail(error, errno, "netlink");
    }
    if (!become(network, error)) {
        return false;
    }
    if (network->prepared != network->value.ticket) {
        take_managers(network);
        names_write(&network->names, network->hosts, &network->value, network->parent_host);
    }
    return true;
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
    network->netlink.fd = network->diag.fd = -1;
    network->hosts = hosts;
    network->with_ssh = with_ssh;
    inventory_init(&network->inventory);
}

/* A clone should not have to load the kernel's modules for it. */
static void warm_up(struct network *network)
{
    struct connections none = { .address = htonl(INADDR_NONE) };

    if (network->diag.fd >= 0) {
        list_connections(&network->diag, AF_INET, &none);
        list_connections(&network->diag, AF_INET6, &none);
    }
}

/* A fork of this VM is to come, or has been. */
static void prepare(struct network *network)
{
    const struct sf_gp_network *value = &network->value;

    inventory_refresh(&network->inventory, &network->netlink, value, value->parent);
    take_managers(network);
    names_write(&network->names, network->hosts, value, network->parent_host);
    network->prepared = value->ticket;
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
        network->setup_tries = first && !managers_are_there() ? SETUP_TRIES : network->setup_tries;
        return; /* a clone: IDENTITY comes, or has come to an earlier agent */
    }
    if (open_sockets(network) && first) {
        warm_up(network);
    }
    if (first && network->with_ssh) {
        cluster_ssh_prepare(value);
    }
    if (first && !managers_are_there()) {
        network->setup_tries = SETUP_TRIES;
        network_retry(network);
    }
    if (value->count > 0) {
        prepare(network);
    }
}

bool network_wants_retry(const struct network *network)
{
    return network->setup_tries > 0;
}

void network_retry(struct network *network)
{
    uint8_t mac[SF_GP_MAC_LENGTH];
    int nic, number;

    network->setup_tries--;
    if (!open_sockets(network)) {
        return;
    }
    sf_gp_mac_of_address(mac, network->value.address);
    nic = inventory_find_nic(&network->netlink, mac);
    if (nic > 0) {
        network->setup_tries = 0;
        number = set_nic_up(&network->netlink, &network->value, nic);
        if (number != 0) {
            agent_log(LOG_WARNING, "the cluster's address can't be set: %s", strerror(number));
        }
    }
}

bool network_has_nic(struct network *network)
{
    return network->value.prefix == 0 || !open_sockets(network) ||
           inventory_find_members_nic(&network->netlink, &network->value) > 0;
}
