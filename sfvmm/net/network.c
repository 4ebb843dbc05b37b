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
#include "sfvmm/net/network.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
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

struct SfNetwork {
    char *name;
    guint32 address;
    guint prefix;
    guint64 rate;
    GArray *outside; /* of SfNetRule */
    guint32 links;
    guint links_prefix;

    int netns;
    SfLinks *inside;
    SfNft *filter;
    guint last_tap;
    GPtrArray *members; /* of SfNetMember */
    gboolean adopting;  /* the filter of an earlier sfvmmd is in force until sf_network_settle() */

    char *cable;  /* the host's end, and the name of the host's table; NULL: nothing is reachable outside */
    gboolean own; /* it goes with the object */

    guint8 gateway_mac[SF_NET_MAC_LENGTH];
    gboolean lent;
    SfTunnel tunnel; /* number 0: there is none */
    GPtrArray *ends; /* char *; NULL: an earlier sfvmmd laid the tunnel, its ends are not known */
};

static void member_free(gpointer data)
{
    SfNetMember *member = data;

    g_free(member->device);
    g_free(member);
}

static guint32 host_bits(guint prefix)
{
    return prefix == 0 ? G_MAXUINT32 : ~(G_MAXUINT32 << (32 - prefix));
}

guint32 sf_network_gateway_address(guint32 address, guint prefix)
{
    return (address | host_bits(prefix)) - 1;
}

gboolean sf_network_address_is_usable(guint32 address, guint prefix)
{
    guint32 host = address & host_bits(prefix);

    return prefix >= 1 && prefix <= 30 && host != 0 && host != host_bits(prefix) &&
           address != sf_network_gateway_address(address, prefix);
}

guint32 sf_network_gateway(const SfNetwork *network)
{
    gboolean reachable = network->lent ? network->outside->len > 0 : network->cable != NULL;

    return reachable ? sf_network_gateway_address(network->address, network->prefix) : 0;
}

int sf_network_netns(const SfNetwork *network)
{
    return network->netns;
}

/* ---- the filter ---- */

static gboolean build_filter(SfNetwork *network, GError **error)
{
    SfNetRulesOptions options = {
        .outside = network->outside,
        .subnet = network->address & ~host_bits(network->prefix),
        .prefix = network->prefix,
        .gateway_mac = network->gateway_mac,
        .lent = network->lent,
        .link = network->links,
        .link_prefix = network->links_prefix,
        .rate = network->rate,
    };
    g_autofree char *text = sf_net_rules_cluster(&options, network->members);

    return sf_nft_run(network->filter, text, error);
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
static gboolean lay_cable(SfNetwork *network, guint *number, GError **error)
{
    g_autoptr(SfLinks) host = sf_links_new(-1, error);
    guint cables = MIN(CABLES_TRIED, (host_bits(network->links_prefix) >> 1) + 1);

    for (guint i = 0; host && i < cables; i++) {
        g_autofree char *device = g_strdup_printf(CABLE_PREFIX "%u", i);
        g_autoptr(GError) local = NULL;
        if (sf_links_add_veth(host, device, SF_NET_OUT, network->netns, &local)) {
            network->cable = g_steal_pointer(&device);
            *number = i;
            return sf_links_add_address(host, network->cable, network->links + 2 * i, CABLE_BITS, error) &&
                   sf_links_set_up(host, network->cable, error);
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

static gboolean filter_on_host(SfNetwork *network, guint32 address, GError **error)
{
    g_autofree char *text = sf_net_rules_host(network->cable, network->cable, CABLE_PREFIX, address);
    g_autoptr(SfNft) nft = sf_nft_new(-1, error);

    return nft && sf_nft_run(nft, text, error);
}

/* The host's filter is there before the cluster's end is up: no packet passes between them. */
static gboolean connect_outside(SfNetwork *network, GError **error)
{
    guint number = 0;
    guint32 here, there;

    if (!host_forwards(error) || !lay_cable(network, &number, error)) {
        return FALSE;
    }
    here = network->links + 2 * number;
    there = here + 1;
    return filter_on_host(network, there, error) &&
           sf_links_sysctl(network->inside, "net/ipv4/ip_forward", "1", error) &&
           sf_links_set_mac(network->inside, SF_NET_BRIDGE, network->gateway_mac, error) &&
           sf_links_add_address(network->inside, SF_NET_BRIDGE,
                                sf_network_gateway_address(network->address, network->prefix), network->prefix,
                                error) &&
           sf_links_add_address(network->inside, SF_NET_OUT, there, CABLE_BITS, error) &&
           sf_links_set_up(network->inside, SF_NET_OUT, error) &&
           sf_links_add_default_route(network->inside, SF_NET_OUT, here, error);
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

static void cut_cable(SfNetwork *network)
{
    g_autoptr(SfLinks) host = network->cable ? sf_links_new(-1, NULL) : NULL;

    if (host) {
        sf_links_delete(host, network->cable, NULL); /* it goes with the namespace, too */
        delete_host_table(network->cable);
    }
    g_clear_pointer(&network->cable, g_free);
}

/* ---- the tunnel ---- */

static void cut_tunnel(SfNetwork *network)
{
    g_autofree char *table = g_strdup_printf(TUNNEL_FORMAT, network->tunnel.number, network->tunnel.port);

    if (network->tunnel.number) {
        sf_links_delete(network->inside, SF_NET_FAR, NULL);
        delete_host_table(table);
    }
    network->tunnel.number = 0;
    g_clear_pointer(&network->ends, g_ptr_array_unref);
}

/* Without ends it reaches nobody, and nobody reaches it: the host's table has none either. */
static gboolean lay_tunnel(SfNetwork *network, guint32 number, guint port, gboolean ipv6, GError **error)
{
    g_autoptr(SfLinks) host = sf_links_new(-1, error);
    SfTunnel tunnel = { SF_NET_FAR, network->netns, number, (guint16)port, ipv6, SF_NET_MTU };

    if (!host || !sf_links_add_tunnel(host, &tunnel, error)) {
        return FALSE;
    }
    network->tunnel = tunnel;
    network->ends = g_ptr_array_new_with_free_func(g_free);
    return sf_links_enslave(network->inside, SF_NET_FAR, SF_NET_BRIDGE, error);
}

static gboolean filter_tunnel(SfNetwork *network, const char *const *hosts, GError **error)
{
    g_autofree char *table = g_strdup_printf(TUNNEL_FORMAT, network->tunnel.number, network->tunnel.port);
    g_autofree char *text = sf_net_rules_tunnel(table, network->tunnel.number, network->tunnel.port, hosts);
    g_autoptr(SfNft) nft = sf_nft_new(-1, error);

    return nft && sf_nft_run(nft, text, error);
}

static gboolean change_ends(SfNetwork *network, const char *const *hosts, GError **error)
{
    for (guint i = network->ends->len; i > 0; i--) {
        const char *end = g_ptr_array_index(network->ends, i - 1);
        if (!g_strv_contains(hosts, end)) {
            sf_links_remove_end(network->inside, SF_NET_FAR, end, NULL);
            g_ptr_array_remove_index(network->ends, i - 1);
        }
    }
    for (guint i = 0; hosts[i]; i++) {
        if (!g_ptr_array_find_with_equal_func(network->ends, hosts[i], g_str_equal, NULL)) {
            if (!sf_links_add_end(network->inside, SF_NET_FAR, hosts[i], error)) {
                return FALSE;
            }
            g_ptr_array_add(network->ends, g_strdup(hosts[i]));
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

gboolean sf_network_span(SfNetwork *network, guint32 number, guint port, const char *const *hosts, GError **error)
{
    if (network->tunnel.number && (!hosts[0] || network->tunnel.number != number || !network->ends)) {
        cut_tunnel(network);
    }
    if (!hosts[0]) {
        return TRUE;
    }
    if (are_of_one_family(hosts, error) &&
        (network->tunnel.number || lay_tunnel(network, number, port, strchr(hosts[0], ':') != NULL, error)) &&
        filter_tunnel(network, hosts, error) && change_ends(network, hosts, error) &&
        sf_links_set_up(network->inside, SF_NET_FAR, error)) {
        return TRUE;
    }
    g_prefix_error(error, "network of \"%s\", between hosts: ", network->name);
    return FALSE;
}

guint32 sf_network_number(const SfNetwork *network)
{
    return network->tunnel.number;
}

/* ---- life ---- */

static SfNetwork *network_alloc(const SfNetworkOptions *options)
{
    SfNetwork *network = g_new0(SfNetwork, 1);

    network->name = g_strdup(options->name);
    network->address = options->address;
    network->prefix = options->prefix;
    network->rate = options->rate;
    network->outside =
        options->outside ? g_array_copy((GArray *)options->outside) : g_array_new(FALSE, FALSE, sizeof(SfNetRule));
    network->links = options->links;
    network->links_prefix = options->links_prefix;
    network->lent = options->lent;
    memcpy(network->gateway_mac, options->gateway_mac, SF_NET_MAC_LENGTH);
    network->members = g_ptr_array_new_with_free_func(member_free);
    network->netns = -1;
    network->own = TRUE;
    return network;
}

void sf_network_leave(SfNetwork *network)
{
    if (network) {
        network->own = FALSE;
        sf_network_free(network);
    }
}

void sf_network_free(SfNetwork *network)
{
    if (!network) {
        return;
    }
    if (network->own) {
        cut_cable(network);
        cut_tunnel(network);
    }
    g_clear_pointer(&network->ends, g_ptr_array_unref);
    sf_nft_free(network->filter);
    sf_links_free(network->inside);
    if (network->netns >= 0) {
        close(network->netns);
    }
    g_ptr_array_unref(network->members);
    g_array_unref(network->outside);
    g_free(network->cable);
    g_free(network->name);
    g_free(network);
}

/* Takes netns. */
static gboolean open_namespace(SfNetwork *network, int netns, GError **error)
{
    network->netns = netns;
    network->inside = netns < 0 ? NULL : sf_links_new(netns, error);
    network->filter = network->inside ? sf_nft_new(netns, error) : NULL;
    return network->filter != NULL;
}

/* With br_netfilter loaded, frames between members would be put before the filter for what leaves the cluster. */
static gboolean prepare_namespace(SfNetwork *network, GError **error)
{
    return sf_links_sysctl(network->inside, "net/ipv4/ip_forward", "0", error) &&
           sf_links_sysctl(network->inside, "net/ipv6/conf/all/disable_ipv6", "1", error) &&
           sf_links_sysctl(network->inside, "net/ipv6/conf/default/disable_ipv6", "1", error) &&
           sf_links_sysctl(network->inside, "net/bridge/bridge-nf-call-iptables", "0", error) &&
           sf_links_sysctl(network->inside, "net/bridge/bridge-nf-call-ip6tables", "0", error) &&
           sf_links_sysctl(network->inside, "net/bridge/bridge-nf-call-arptables", "0", error);
}

SfNetwork *sf_network_new(const SfNetworkOptions *options, GError **error)
{
    g_autoptr(SfNetwork) network = network_alloc(options);

    if (!open_namespace(network, sf_netns_new(error), error) || !prepare_namespace(network, error) ||
        !build_filter(network, error) || !sf_links_add_bridge(network->inside, SF_NET_BRIDGE, SF_NET_MTU, error) ||
        (network->outside->len > 0 && !network->lent && !connect_outside(network, error))) {
        g_prefix_error(error, "network of \"%s\": ", options->name);
        return NULL;
    }
    return g_steal_pointer(&network);
}

/* The cable that an earlier sfvmmd has laid: its other end is the host's device whose peer is there. */
static char *find_cable(SfNetwork *network)
{
    g_autoptr(SfLinks) host = sf_links_new(-1, NULL);
    int peer = sf_links_exists(network->inside, SF_NET_OUT) ? sf_links_peer(network->inside, SF_NET_OUT) : 0;

    return host && peer > 0 ? sf_links_name_of(host, peer) : NULL;
}

SfNetwork *sf_network_adopt(const SfNetworkOptions *options, int tap, GError **error)
{
    g_autoptr(SfNetwork) network = network_alloc(options);

    network->own = FALSE; /* until it is known: an error here must not cut off VMs that run */
    if (!open_namespace(network, sf_netns_of_tap(tap, error), error)) {
        g_prefix_error(error, "network of \"%s\": ", options->name);
        return NULL;
    }
    network->cable = find_cable(network);
    sf_links_get_tunnel(network->inside, SF_NET_FAR, &network->tunnel);
    network->adopting = TRUE;
    network->own = TRUE;
    return g_steal_pointer(&network);
}

gboolean sf_network_settle(SfNetwork *network, GError **error)
{
    network->adopting = FALSE;
    if (build_filter(network, error)) {
        return TRUE;
    }
    g_prefix_error(error, "network of \"%s\": ", network->name);
    return FALSE;
}

/* ---- members ---- */

int sf_network_open_tap(SfNetwork *network, char **device, GError **error)
{
    for (guint i = 0; i < TAP_NAMES_TRIED; i++) {
        g_autofree char *name = g_strdup_printf(TAP_PREFIX "%u", ++network->last_tap);
        if (!sf_links_exists(network->inside, name)) {
            int tap = sf_links_open_tap(network->inside, name, SF_NET_MTU, error);
            if (tap < 0) {
                g_prefix_error(error, "network of \"%s\": ", network->name);
            } else {
                *device = g_steal_pointer(&name);
            }
            return tap;
        }
    }
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE, "network of \"%s\": no name for a tap is free", network->name);
    return -1;
}

static SfNetMember *find_member(SfNetwork *network, const char *device, guint *index)
{
    *index = 0;
    for (guint i = 0; i < network->members->len; i++) {
        SfNetMember *member = g_ptr_array_index(network->members, i);
        if (strcmp(member->device, device) == 0) {
            *index = i;
            return member;
        }
    }
    return NULL;
}

/* Of an adopted network the names that are taken are only known by its members. */
static void note_tap_number(SfNetwork *network, const char *device)
{
    guint number;

    if (sscanf(device, TAP_PREFIX "%u", &number) == 1) {
        network->last_tap = MAX(network->last_tap, number);
    }
}

static gboolean pass(SfNetwork *network, const SfNetMember *member, GError **error)
{
    g_autofree char *text = sf_net_rules_add_member(member);

    return network->adopting || sf_nft_run(network->filter, text, error);
}

gboolean sf_network_admit(SfNetwork *network, const char *device, const guint8 *mac, guint32 address, GError **error)
{
    SfNetMember *member;
    guint index;

    sf_network_dismiss(network, device);
    member = g_new0(SfNetMember, 1);
    member->device = g_strdup(device);
    memcpy(member->mac, mac, SF_NET_MAC_LENGTH);
    member->address = address;
    note_tap_number(network, device);
    g_ptr_array_add(network->members, member);
    if (pass(network, member, error) && sf_links_enslave(network->inside, device, SF_NET_BRIDGE, error)) {
        return TRUE;
    }
    g_prefix_error(error, "network of \"%s\": ", network->name);
    find_member(network, device, &index);
    g_ptr_array_remove_index(network->members, index);
    return FALSE;
}

void sf_network_dismiss(SfNetwork *network, const char *device)
{
    guint index;
    SfNetMember *member = find_member(network, device, &index);
    g_autofree char *text = member ? sf_net_rules_remove_member(member) : NULL;
    g_autoptr(GError) error = NULL;

    if (!member) {
        return;
    }
    if (!network->adopting && !sf_nft_run(network->filter, text, &error)) {
        g_message("network of \"%s\": %s: %s", network->name, device, error->message);
    }
    g_ptr_array_remove_index(network->members, index);
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

void sf_network_sweep(void)
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
