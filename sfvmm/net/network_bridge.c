/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     namespace of the cluster                                    namespace of the host
 *
 *     QEMU ===== t1 --+                                           sfn7   198.18.0.14/31
 *     QEMU ===== t2 --+-- br0  10.77.255.254/16 --- out 198.18.0.15/31 ---+
 *     QEMU ===== t3 --+     (the gateway; only with a policy)
 *
 * Why a namespace. Two clusters have the same subnet, so their routes, neighbours and connections must not be in one
 * table; and "nothing of the host is reachable" is easiest to believe where there is nothing of the host. VRFs would
 * give the tables, not the empty room. What is in the namespace ends with it.
 *
 * Why it has no name. It lives as long as sfvmmd or one of its QEMUs does. Every sfvmmd that comes later finds it
 * by the tap of any of its VMs, and when the last one has ended, killed or not, the kernel removes all of it, the
 * host's end of the cable too. Only the host's filter table has to be deleted, or swept later.
 *
 * Taps are not persistent, for the same reason. Their names are counted up and not used again, as the filter knows
 * members by them. A tap is not on the bridge before its member is admitted: so a clone that still has the
 * MAC and address of its parent is not kept silent by a rule, it has no cable.
 *
 * The two addresses of a cable are of no meaning elsewhere: the cluster translates its members' addresses to its
 * end of it, the host that to its own. The number of the cable is the first one whose device name is free, so several
 * sfvmmds can share a host.
 */
#include "sfvmm/net/network_kind.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "sfvmm/net/announcer.h"
#include "sfvmm/net/dhcp_service.h"
#include "sfvmm/net/link.h"
#include "sfvmm/net/netns.h"
#include "sfvmm/net/nft.h"
#include "sfvmm/net/policy.h"

#define CABLE_PREFIX    "sfn" /* and a number: the host's end, and the host's table */
#define CABLE_BITS      31u   /* RFC 3021: a network of two addresses */
#define CABLES_TRIED    4096u
#define IP_FORWARD      "/proc/sys/net/ipv4/ip_forward"
#define TAP_PREFIX      "t"
#define TAP_NAMES_TRIED 65536u
#define TUNNEL_FORMAT   "sfx%u_%u" /* number and port: the host's table for a tunnel */
#define TUNNEL_PROBE    "sfprobe"

typedef struct {
    SfNetwork base;
    guint32 links;
    guint links_prefix;

    int netns;
    SfLinks *inside;
    SfNft *filter;
    guint last_tap;
    GPtrArray *members; /* of SfNetMember */
    SfDhcpService *dhcp;
    gboolean adopting; /* the filter of an earlier sfvmmd is in force until settle() */

    char *cable;            /* the host's end, and the name of the host's table; NULL: nothing is reachable outside */
    SfTunnel tunnel;        /* number 0: there is none */
    SfAnnouncer *announcer; /* on the tunnel; NULL: there is none */
    GPtrArray *ends;        /* char *; NULL: an earlier sfvmmd laid the tunnel, its ends are not known */
} Bridge;

static void member_free(gpointer data)
{
    SfNetMember *member = data;

    g_free(member->device);
    g_free(member);
}

/* ---- the filter ---- */

static gboolean build_filter(Bridge *bridge, GError **error)
{
    SfNetRulesOptions options = {
        .outside = bridge->base.outside,
        .subnet = bridge->base.address & ~sf_network_host_bits(bridge->base.prefix),
        .prefix = bridge->base.prefix,
        .gateway_mac = bridge->base.gateway_mac,
        .lent = bridge->base.lent,
        .link = bridge->links,
        .link_prefix = bridge->links_prefix,
        .rate = bridge->base.rate,
    };
    g_autofree char *text = sf_net_rules_cluster(&options, bridge->members);

    return sf_nft_run(bridge->filter, text, error);
}

/* ---- the cable ---- */

static gboolean host_forwards(GError **error)
{
    g_autofree char *value = NULL;

    if (!g_file_get_contents(IP_FORWARD, &value, NULL, error)) {
        return FALSE;
    }
    if (value[0] == '0') {
        g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_FAILED,
                            "this host does not forward IPv4, so nothing outside can be reached: set "
                            "net.ipv4.ip_forward=1 in sysctl.conf(5), or give no outside rules");
        return FALSE;
    }
    return TRUE;
}

/* Makes the cable with the first free number. */
static gboolean lay_cable(Bridge *bridge, guint *number, GError **error)
{
    g_autoptr(SfLinks) host = sf_links_new(-1, error);
    guint cables = MIN(CABLES_TRIED, (sf_network_host_bits(bridge->links_prefix) >> 1) + 1);

    for (guint i = 0; host && i < cables; i++) {
        g_autofree char *device = g_strdup_printf(CABLE_PREFIX "%u", i);
        g_autoptr(GError) local = NULL;
        if (sf_links_add_veth(host, device, SF_NET_OUT, bridge->netns, &local)) {
            bridge->cable = g_steal_pointer(&device);
            *number = i;
            return sf_links_add_address(host, bridge->cable, bridge->links + 2 * i, CABLE_BITS, error) &&
                   sf_links_set_up(host, bridge->cable, error);
        }
        if (!g_error_matches(local, G_IO_ERROR, G_IO_ERROR_EXISTS)) {
            g_propagate_error(error, g_steal_pointer(&local));
            return FALSE;
        }
    }
    if (host) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE, "all %u links between clusters and this host are in use",
                    cables);
    }
    return FALSE;
}

static gboolean filter_on_host(Bridge *bridge, guint32 address, GError **error)
{
    g_autofree char *text = sf_net_rules_host(bridge->cable, bridge->cable, CABLE_PREFIX, address);
    g_autoptr(SfNft) nft = sf_nft_new(-1, error);

    return nft && sf_nft_run(nft, text, error);
}

/* The host's filter is there before the cluster's end is up: no packet passes between them. */
static gboolean connect_outside(Bridge *bridge, GError **error)
{
    guint number = 0;
    guint32 here, there;

    if (!host_forwards(error) || !lay_cable(bridge, &number, error)) {
        return FALSE;
    }
    here = bridge->links + 2 * number;
    there = here + 1;
    return filter_on_host(bridge, there, error) && sf_links_sysctl(bridge->inside, "net/ipv4/ip_forward", "1", error) &&
           sf_links_set_mac(bridge->inside, SF_NET_BRIDGE, bridge->base.gateway_mac, error) &&
           sf_links_add_address(bridge->inside, SF_NET_BRIDGE,
                                sf_network_gateway_address(bridge->base.address, bridge->base.prefix),
                                bridge->base.prefix, error) &&
           sf_links_add_address(bridge->inside, SF_NET_OUT, there, CABLE_BITS, error) &&
           sf_links_set_up(bridge->inside, SF_NET_OUT, error) &&
           sf_links_add_default_route(bridge->inside, SF_NET_OUT, here, error);
}

static void delete_host_table(const char *table)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(SfNft) nft = sf_nft_new(-1, &error);
    g_autofree char *text = g_strdup_printf("delete table inet %s\n", table);

    if (!nft || !sf_nft_run(nft, text, &error)) {
        g_message("network filter %s: %s", table, error->message);
    }
}

static void cut_cable(Bridge *bridge)
{
    g_autoptr(SfLinks) host = bridge->cable ? sf_links_new(-1, NULL) : NULL;

    if (host) {
        sf_links_delete(host, bridge->cable, NULL); /* it goes with the namespace, too */
        delete_host_table(bridge->cable);
    }
    g_clear_pointer(&bridge->cable, g_free);
}

/* ---- the tunnel ---- */

static void cut_tunnel(Bridge *bridge)
{
    g_autofree char *table = g_strdup_printf(TUNNEL_FORMAT, bridge->tunnel.number, bridge->tunnel.port);

    if (bridge->tunnel.number) {
        sf_links_delete(bridge->inside, SF_NET_FAR, NULL);
        delete_host_table(table);
    }
    bridge->tunnel.number = 0;
    g_clear_pointer(&bridge->ends, g_ptr_array_unref);
    g_clear_pointer(&bridge->announcer, sf_announcer_free);
}

/* Without ends it reaches nobody, and nobody reaches it: the host's table has none either. */
static gboolean lay_tunnel(Bridge *bridge, guint32 number, guint port, gboolean ipv6, GError **error)
{
    g_autoptr(SfLinks) host = sf_links_new(-1, error);
    SfTunnel tunnel = { SF_NET_FAR, bridge->netns, number, (guint16)port, ipv6, SF_NET_MTU };

    if (!host || !sf_links_add_tunnel(host, &tunnel, error)) {
        return FALSE;
    }
    bridge->tunnel = tunnel;
    bridge->ends = g_ptr_array_new_with_free_func(g_free);
    bridge->announcer = sf_announcer_new(bridge->netns, SF_NET_FAR, error);
    return bridge->announcer && sf_links_enslave(bridge->inside, SF_NET_FAR, SF_NET_BRIDGE, error);
}

static gboolean filter_tunnel(Bridge *bridge, const char *const *hosts, GError **error)
{
    g_autofree char *table = g_strdup_printf(TUNNEL_FORMAT, bridge->tunnel.number, bridge->tunnel.port);
    g_autofree char *text = sf_net_rules_tunnel(table, bridge->tunnel.number, bridge->tunnel.port, hosts);
    g_autoptr(SfNft) nft = sf_nft_new(-1, error);

    return nft && sf_nft_run(nft, text, error);
}

static gboolean change_ends(Bridge *bridge, const char *const *hosts, GError **error)
{
    for (guint i = bridge->ends->len; i > 0; i--) {
        const char *end = g_ptr_array_index(bridge->ends, i - 1);
        if (!g_strv_contains(hosts, end)) {
            sf_links_remove_end(bridge->inside, SF_NET_FAR, end, NULL);
            g_ptr_array_remove_index(bridge->ends, i - 1);
        }
    }
    for (guint i = 0; hosts[i]; i++) {
        if (!g_ptr_array_find_with_equal_func(bridge->ends, hosts[i], g_str_equal, NULL)) {
            if (!sf_links_add_end(bridge->inside, SF_NET_FAR, hosts[i], error)) {
                return FALSE;
            }
            g_ptr_array_add(bridge->ends, g_strdup(hosts[i]));
        }
    }
    return TRUE;
}

static gboolean are_of_one_family(const char *const *hosts, GError **error)
{
    for (guint i = 1; hosts[i]; i++) {
        if (!strchr(hosts[i], ':') != !strchr(hosts[0], ':')) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                        "hosts %s and %s are reached by IPv4 and by IPv6; a cluster's network needs one of both",
                        hosts[0], hosts[i]);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean bridge_span(SfNetwork *network, guint32 number, guint port, const char *const *hosts, GError **error)
{
    Bridge *bridge = (Bridge *)network;

    if (bridge->tunnel.number && (!hosts[0] || bridge->tunnel.number != number || !bridge->ends)) {
        cut_tunnel(bridge);
    }
    return !hosts[0] ||
           (are_of_one_family(hosts, error) &&
            (bridge->tunnel.number || lay_tunnel(bridge, number, port, strchr(hosts[0], ':') != NULL, error)) &&
            filter_tunnel(bridge, hosts, error) && change_ends(bridge, hosts, error) &&
            sf_links_set_up(bridge->inside, SF_NET_FAR, error));
}

static guint32 bridge_number(const SfNetwork *network)
{
    return ((const Bridge *)network)->tunnel.number;
}

/* ---- life ---- */

static Bridge *bridge_alloc(const SfNetworkOptions *options)
{
    Bridge *bridge = g_new0(Bridge, 1);

    sf_network_init(&bridge->base, &sf_network_bridge, options);
    bridge->links = options->links;
    bridge->links_prefix = options->links_prefix;
    bridge->members = g_ptr_array_new_with_free_func(member_free);
    bridge->netns = -1;
    return bridge;
}

static void bridge_free(SfNetwork *network)
{
    Bridge *bridge = (Bridge *)network;

    if (network->own) {
        cut_cable(bridge);
        cut_tunnel(bridge);
    }
    g_clear_pointer(&bridge->ends, g_ptr_array_unref);
    sf_announcer_free(bridge->announcer);
    sf_dhcp_service_free(bridge->dhcp);
    sf_nft_free(bridge->filter);
    sf_links_free(bridge->inside);
    if (bridge->netns >= 0) {
        close(bridge->netns);
    }
    g_ptr_array_unref(bridge->members);
    g_free(bridge->cable);
}

/* Takes netns. */
static gboolean open_namespace(Bridge *bridge, int netns, GError **error)
{
    bridge->netns = netns;
    bridge->inside = netns < 0 ? NULL : sf_links_new(netns, error);
    bridge->filter = bridge->inside ? sf_nft_new(netns, error) : NULL;
    return bridge->filter != NULL;
}

/* With br_netfilter loaded, frames between members would be put before the filter for what leaves the cluster. */
static gboolean prepare_namespace(Bridge *bridge, GError **error)
{
    return sf_links_sysctl(bridge->inside, "net/ipv4/ip_forward", "0", error) &&
           sf_links_sysctl(bridge->inside, "net/ipv6/conf/all/disable_ipv6", "1", error) &&
           sf_links_sysctl(bridge->inside, "net/ipv6/conf/default/disable_ipv6", "1", error) &&
           sf_links_sysctl(bridge->inside, "net/bridge/bridge-nf-call-iptables", "0", error) &&
           sf_links_sysctl(bridge->inside, "net/bridge/bridge-nf-call-ip6tables", "0", error) &&
           sf_links_sysctl(bridge->inside, "net/bridge/bridge-nf-call-arptables", "0", error);
}

/* When it is known whether there is a gateway. */
static gboolean open_dhcp(Bridge *bridge, GError **error)
{
    SfDhcpSubnet subnet = {
        .server = sf_network_gateway_address(bridge->base.address, bridge->base.prefix),
        .router = sf_network_gateway(&bridge->base),
        .prefix = bridge->base.prefix,
        .mtu = SF_NET_MTU,
        .mac = bridge->base.gateway_mac,
    };

    bridge->dhcp = sf_dhcp_service_new(bridge->netns, SF_NET_BRIDGE, &subnet, bridge->members, error);
    return bridge->dhcp != NULL;
}

static SfNetwork *bridge_new(const SfNetworkOptions *options, GError **error)
{
    Bridge *bridge = bridge_alloc(options);
    g_autoptr(SfNetwork) network = &bridge->base;

    if (!open_namespace(bridge, sf_netns_new(error), error) || !prepare_namespace(bridge, error) ||
        !build_filter(bridge, error) || !sf_links_add_bridge(bridge->inside, SF_NET_BRIDGE, SF_NET_MTU, error) ||
        (network->outside->len > 0 && !network->lent && !connect_outside(bridge, error))) {
        return NULL;
    }
    network->has_gateway = network->outside->len > 0;
    return open_dhcp(bridge, error) ? g_steal_pointer(&network) : NULL;
}

/* The cable that an earlier sfvmmd has laid: its other end is the host's device whose peer is there. */
static char *find_cable(Bridge *bridge)
{
    g_autoptr(SfLinks) host = sf_links_new(-1, NULL);
    int peer = sf_links_exists(bridge->inside, SF_NET_OUT) ? sf_links_peer(bridge->inside, SF_NET_OUT) : 0;

    return host && peer > 0 ? sf_links_name_of(host, peer) : NULL;
}

static SfNetwork *bridge_adopt(const SfNetworkOptions *options, int tap, GError **error)
{
    Bridge *bridge = bridge_alloc(options);
    g_autoptr(SfNetwork) network = &bridge->base;

    network->own = FALSE; /* until it is known: an error here must not cut off VMs that run */
    if (!open_namespace(bridge, sf_netns_of_tap(tap, error), error)) {
        return NULL;
    }
    bridge->cable = find_cable(bridge);
    network->has_gateway = network->lent ? network->outside->len > 0 : bridge->cable != NULL;
    if (sf_links_get_tunnel(bridge->inside, SF_NET_FAR, &bridge->tunnel)) {
        bridge->announcer = sf_announcer_new(bridge->netns, SF_NET_FAR, error);
    }
    bridge->adopting = TRUE;
    if ((bridge->tunnel.number && !bridge->announcer) || !open_dhcp(bridge, error)) {
        return NULL;
    }
    network->own = TRUE;
    return g_steal_pointer(&network);
}

static gboolean bridge_settle(SfNetwork *network, GError **error)
{
    Bridge *bridge = (Bridge *)network;

    bridge->adopting = FALSE;
    return build_filter(bridge, error);
}

/* ---- members ---- */

static int bridge_open_port(SfNetwork *network, char **device, GError **error)
{
    Bridge *bridge = (Bridge *)network;

    for (guint i = 0; i < TAP_NAMES_TRIED; i++) {
        g_autofree char *name = g_strdup_printf(TAP_PREFIX "%u", ++bridge->last_tap);
        if (!sf_links_exists(bridge->inside, name)) {
            int tap = sf_links_open_tap(bridge->inside, name, SF_NET_MTU, error);
            if (tap >= 0) {
                *device = g_steal_pointer(&name);
            }
            return tap;
        }
    }
    g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE, "no name for a tap is free");
    return -1;
}

static int bridge_pin(SfNetwork *network, GError **error)
{
    return sf_netns_pin(((Bridge *)network)->netns, error);
}

/* The cluster's own names are its own though it may have no such device yet. */
static gboolean name_is_free(Bridge *bridge, const char *name)
{
    return strcmp(name, SF_NET_OUT) != 0 && strcmp(name, SF_NET_FAR) != 0 && !sf_links_exists(bridge->inside, name);
}

static gboolean bridge_plug(SfNetwork *network, int tap, char **device, GError **error)
{
    Bridge *bridge = (Bridge *)network;
    g_autofree char *name = sf_links_tap_name(tap, error);

    if (name && !name_is_free(bridge, name)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_EXISTS, "network device %s: the cluster has another of that name",
                    name);
        return FALSE;
    }
    if (!name || !sf_links_take_tap(bridge->inside, tap, name, SF_NET_MTU, error)) {
        return FALSE;
    }
    *device = g_steal_pointer(&name);
    return TRUE;
}

static SfNetMember *find_member(Bridge *bridge, const char *device, guint *index)
{
    *index = 0;
    for (guint i = 0; i < bridge->members->len; i++) {
        SfNetMember *member = g_ptr_array_index(bridge->members, i);
        if (strcmp(member->device, device) == 0) {
            *index = i;
            return member;
        }
    }
    return NULL;
}

/* Of an adopted network the names that are taken are only known by its members. */
static void note_tap_number(Bridge *bridge, const char *device)
{
    guint number;

    if (sscanf(device, TAP_PREFIX "%u", &number) == 1) {
        bridge->last_tap = MAX(bridge->last_tap, number);
    }
}

static gboolean pass(Bridge *bridge, const SfNetMember *member, GError **error)
{
    g_autofree char *text = sf_net_rules_add_member(member);

    return bridge->adopting || sf_nft_run(bridge->filter, text, error);
}

static void bridge_dismiss(SfNetwork *network, const char *device)
{
    Bridge *bridge = (Bridge *)network;
    guint index;
    SfNetMember *member = find_member(bridge, device, &index);
    g_autofree char *text = member ? sf_net_rules_remove_member(member) : NULL;
    g_autoptr(GError) error = NULL;

    if (!member) {
        return;
    }
    if (!bridge->adopting && !sf_nft_run(bridge->filter, text, &error)) {
        g_message("network of \"%s\": %s: %s", network->name, device, error->message);
    }
    g_ptr_array_remove_index(bridge->members, index);
}

static gboolean bridge_admit(SfNetwork *network, const char *device, const guint8 *mac, guint32 address, GError **error)
{
    Bridge *bridge = (Bridge *)network;
    SfNetMember *member;
    guint index;

    bridge_dismiss(network, device);
    member = g_new0(SfNetMember, 1);
    member->device = g_strdup(device);
    memcpy(member->mac, mac, SF_NET_MAC_LENGTH);
    member->address = address;
    note_tap_number(bridge, device);
    g_ptr_array_add(bridge->members, member);
    if (pass(bridge, member, error) && sf_links_enslave(bridge->inside, device, SF_NET_BRIDGE, error)) {
        if (bridge->announcer) {
            sf_announcer_tell(bridge->announcer, member);
        }
        return TRUE;
    }
    find_member(bridge, device, &index);
    g_ptr_array_remove_index(bridge->members, index);
    return FALSE;
}

/* ---- leftovers ---- */

/* A tunnel of that number could be laid: nobody has one. */
static gboolean tunnel_is_free(SfLinks *host, guint32 number, guint port)
{
    for (int ipv6 = 0; ipv6 <= 1; ipv6++) {
        SfTunnel probe = { TUNNEL_PROBE, -1, number, (guint16)port, ipv6, SF_NET_MTU };
        if (!sf_links_add_tunnel(host, &probe, NULL)) {
            return FALSE;
        }
        sf_links_delete(host, TUNNEL_PROBE, NULL);
    }
    return TRUE;
}

void sf_network_bridge_sweep(void)
{
    g_autoptr(SfNft) nft = sf_nft_new(-1, NULL);
    g_autoptr(SfLinks) host = sf_links_new(-1, NULL);
    g_autofree char *tables = nft ? sf_nft_query(nft, "list tables inet\n", NULL) : NULL;
    g_auto(GStrv) lines = g_strsplit(tables ? tables : "", "\n", -1);

    for (char **line = lines; host && *line; line++) {
        guint number, port;
        if (sscanf(*line, "table inet " TUNNEL_FORMAT, &number, &port) == 2) {
            if (tunnel_is_free(host, number, port)) {
                g_autofree char *name = g_strdup_printf(TUNNEL_FORMAT, number, port);
                delete_host_table(name);
            }
        } else if (sscanf(*line, "table inet " CABLE_PREFIX "%u", &number) == 1) {
            g_autofree char *name = g_strdup_printf(CABLE_PREFIX "%u", number);
            if (!sf_links_exists(host, name)) {
                delete_host_table(name);
            }
        }
    }
}

const SfNetworkKind sf_network_bridge = {
    .new = bridge_new,
    .adopt = bridge_adopt,
    .settle = bridge_settle,
    .free = bridge_free,
    .span = bridge_span,
    .number = bridge_number,
    .open_port = bridge_open_port,
    .pin = bridge_pin,
    .plug = bridge_plug,
    .admit = bridge_admit,
    .dismiss = bridge_dismiss,
};
