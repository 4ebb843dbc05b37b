/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *      member --tap--> [bridge sf: arriving] --> br0 --> [bridge sf: leaving] --tap--> member
 *                                             |
 *                                     own packets    [inet sf: input]    nothing answers but the gateway's ping
 *                                             |
 *                                         forwarding [inet sf: forward]  what the policy allows, NAT
 *                                             |
 *      - - - - - - - - - - - - - - - - - - - out - - - - - -  the cluster's namespace ends here
 *                                             |
 *                                          the host  [inet TABLE]  none of its own addresses, no other cluster
 *
 * Bridge, `arriving`: everything is dropped that is not told to pass. A frame must come with the device's own MAC; ARP
 * must speak of it and of the member's own address; IPv4 and IPv6 must come from the member's own addresses. What makes
 * a member a router or a DHCP server for others is dropped. As this stands before the bridge, a forged frame does not
 * even teach it where a MAC lives. Frames to groups (ARP among them) are limited in number, since each goes to all. Who
 * asks by DHCP has no address yet, and is let pass in bounds: dhcp_service.c answers, on the bridge.
 *
 * What comes by the tunnel was let pass by the filter of another host of the cluster, which is trusted like this one:
 * of that, `far` looks only for what would take a local member's place, or comes from where no member is. That the
 * packets of the tunnel come from such a host is seen to in the host's namespace, where they are packets.
 *
 * IPv6 is for members among themselves: link-local addresses made of their MACs. The namespace has no IPv6 of its own.
 *
 * Everything is in one transaction: there is no moment with half of the rules.
 */
#include "sfvmm/net/rules.h"

#include <string.h>
#include "sfvmm/net/policy.h"

#define BURST_DIVISOR 8u            /* of a second's bytes may come at once */
#define BURST_MIN     (128u << 10)  /* bytes; two of the largest segmented packets of a guest */
#define GROUP_RATE    "2000/second" /* frames to groups of one member: 1,000 siblings are looked up in half a second */
#define GROUP_BURST   "2000 packets"
#define PING_RATE     "100/second"
#define DHCP_RATE     "10/second" /* requests of one member */
#define DHCP_BURST    "20 packets"
#define CONNECTIONS   "4096" /* of one member to the outside, at a time: the host's table has room for all */

static char *mac_text(const guint8 *mac)
{
    return g_strdup_printf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

/* fe80:: with the MAC as modified EUI-64 (RFC 4291). */
static char *link_local(const guint8 *mac)
{
    return g_strdup_printf("fe80::%x:%xff:fe%02x:%x", (mac[0] ^ 2u) << 8 | mac[1], mac[2], mac[3],
                           mac[4] << 8 | mac[5]);
}

static void append_elements(GString *text, const char *verb, const SfNetMember *member)
{
    g_autofree char *mac = mac_text(member->mac);
    g_autofree char *ipv4 = sf_net_address_to_text(member->address);
    g_autofree char *ipv6 = link_local(member->mac);

    g_string_append_printf(text, "%s element bridge sf macs { \"%s\" . %s }\n", verb, member->device, mac);
    g_string_append_printf(text, "%s element bridge sf own { %s }\n", verb, mac);
    g_string_append_printf(text, "%s element bridge sf hosts4 { \"%s\" . %s . %s }\n", verb, member->device, mac, ipv4);
    g_string_append_printf(text, "%s element bridge sf hosts6 { \"%s\" . %s . %s }\n", verb, member->device, mac, ipv6);
}

char *sf_net_rules_add_member(const SfNetMember *member)
{
    GString *text = g_string_new(NULL);

    append_elements(text, "add", member);
    return g_string_free(text, FALSE);
}

char *sf_net_rules_remove_member(const SfNetMember *member)
{
    GString *text = g_string_new(NULL);

    append_elements(text, "delete", member);
    return g_string_free(text, FALSE);
}

/* Who sends or gets more than its share in a moment loses the rest. */
static void append_rate(GString *text, const SfNetRulesOptions *options, const char *set, const char *key)
{
    guint64 burst = MAX(options->rate / BURST_DIVISOR, BURST_MIN);

    if (options->rate > 0) {
        g_string_append_printf(text,
                               "    update @%s { %s limit rate over %" G_GUINT64_FORMAT
                               " bytes/second burst %" G_GUINT64_FORMAT " bytes } drop\n",
                               set, key, options->rate, burst);
    }
}

static void append_far(GString *text, const SfNetRulesOptions *options)
{
    g_autofree char *subnet = sf_net_address_to_text(options->subnet);
    g_autofree char *gateway = mac_text(options->gateway_mac);

    g_string_append_printf(text,
                           "  chain far {\n"
                           "    ether saddr @own drop\n"
                           "    jump servers\n"
                           "    ether type arp arp operation { request, reply } arp saddr ip %s/%u accept\n"
                           "    ether type ip ip saddr %s/%u accept\n"
                           "    ether type ip6 ip6 saddr { ::, fe80::/10 } accept\n"
                           "    ether type ip ether saddr %s %s\n"
                           "    drop\n"
                           "  }\n",
                           subnet, options->prefix, subnet, options->prefix, gateway,
                           options->lent ? "accept" : "drop");
}

static void append_bridge(GString *text, const SfNetRulesOptions *options)
{
    g_autofree char *gateway = mac_text(options->gateway_mac);

    g_string_append(text, "table bridge sf\ndelete table bridge sf\ntable bridge sf {\n"
                          "  set macs { type ifname . ether_addr; }\n"
                          "  set own { type ether_addr; }\n"
                          "  set hosts4 { type ifname . ether_addr . ipv4_addr; }\n"
                          "  set hosts6 { type ifname . ether_addr . ipv6_addr; }\n"
                          "  set storms { type ifname; size 65535; flags dynamic; timeout 60s; }\n"
                          "  set asking { type ifname; size 65535; flags dynamic; timeout 60s; }\n"
                          "  set sending { type ifname; size 65535; flags dynamic; timeout 60s; }\n"
                          "  set receiving { type ifname; size 65535; flags dynamic; timeout 60s; }\n"
                          "  chain servers {\n"
                          "    ether type ip udp sport 67 drop\n"
                          "    ether type ip6 icmpv6 type { nd-router-advert, nd-redirect } drop\n"
                          "    ether type ip6 udp sport 547 drop\n"
                          "  }\n");
    append_far(text, options);
    g_string_append(text, "  chain arriving {\n"
                          "    type filter hook prerouting priority -300; policy drop;\n"
                          "    iifname \"" SF_NET_FAR "\" goto far\n"
                          "    iifname . ether saddr != @macs drop\n"
                          "    ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00"
                          " update @storms { iifname limit rate over " GROUP_RATE " burst " GROUP_BURST " } drop\n");
    append_rate(text, options, "sending", "iifname");
    g_string_append(text,
                    "    ether type arp arp operation { request, reply }"
                    " iifname . arp saddr ether . arp saddr ip @hosts4 accept\n"
                    "    ether type ip udp dport 67 update @asking"
                    " { iifname limit rate over " DHCP_RATE " burst " DHCP_BURST " } drop\n"
                    "    ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept\n"
                    "    jump servers\n"
                    "    ether type ip iifname . ether saddr . ip saddr @hosts4 accept\n"
                    "    ether type ip6 ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld2-listener-report } accept\n"
                    "    ether type ip6 iifname . ether saddr . ip6 saddr @hosts6 accept\n"
                    "  }\n"
                    "  chain leaving {\n"
                    "    type filter hook postrouting priority 0; policy accept;\n"
                    "    oifname \"" SF_NET_FAR "\" accept\n");
    append_rate(text, options, "receiving", "oifname");
    g_string_append(text, "  }\n}\n");
    if (!options->lent) {
        g_string_append_printf(text, "add element bridge sf own { %s }\n", gateway);
    }
}

static void append_gateway(GString *text, const SfNetRulesOptions *options)
{
    g_autofree char *link = sf_net_address_to_text(options->link);

    g_string_append(text, "table inet sf\ndelete table inet sf\ntable inet sf {\n"
                          "  set connections { type ipv4_addr; size 65535; flags dynamic; }\n"
                          "  chain input {\n"
                          "    type filter hook input priority 0; policy drop;\n"
                          "    iifname \"" SF_NET_BRIDGE "\" icmp type echo-request limit rate " PING_RATE " accept\n"
                          "    ct state established,related accept\n"
                          "  }\n"
                          "  chain forward {\n"
                          "    type filter hook forward priority 0; policy drop;\n"
                          "    ct state established,related accept\n"
                          "    iifname \"" SF_NET_BRIDGE "\" oifname \"" SF_NET_OUT "\" jump outside\n"
                          "  }\n"
                          "  chain outside {\n"
                          "    add @connections { ip saddr ct count over " CONNECTIONS " } drop\n");
    g_string_append_printf(text, "    ip daddr { 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3, %s/%u } goto refused\n",
                           link, options->link_prefix);
    for (guint i = 0; i < options->outside->len; i++) {
        g_autofree char *rule = sf_net_rule_to_nft(&g_array_index(options->outside, SfNetRule, i));
        g_string_append_printf(text, "    %s accept\n", rule);
    }
    g_string_append(text, "    goto refused\n"
                          "  }\n"
                          "  chain refused {\n"
                          "    limit rate over " PING_RATE " drop\n"
                          "    meta l4proto tcp reject with tcp reset\n"
                          "    reject with icmpx admin-prohibited\n"
                          "  }\n"
                          "  chain nat {\n"
                          "    type nat hook postrouting priority srcnat; policy accept;\n"
                          "    oifname \"" SF_NET_OUT "\" masquerade\n"
                          "  }\n}\n");
}

char *sf_net_rules_cluster(const SfNetRulesOptions *options, const GPtrArray *members)
{
    GString *text = g_string_new(NULL);

    append_bridge(text, options);
    append_gateway(text, options);
    for (guint i = 0; i < members->len; i++) {
        append_elements(text, "add", g_ptr_array_index(members, i));
    }
    return g_string_free(text, FALSE);
}

char *sf_net_rules_host(const char *table, const char *device, const char *prefix, guint32 address)
{
    g_autofree char *from = sf_net_address_to_text(address);
    GString *text = g_string_new(NULL);

    g_string_append_printf(text, "table inet %s\ndelete table inet %s\ntable inet %s {\n", table, table, table);
    g_string_append_printf(text,
                           "  chain input {\n"
                           "    type filter hook input priority -10; policy accept;\n"
                           "    iifname \"%s\" drop\n"
                           "  }\n",
                           device);
    g_string_append_printf(text,
                           "  chain forward {\n"
                           "    type filter hook forward priority -10; policy accept;\n"
                           "    iifname \"%s\" oifname \"%s*\" drop\n"
                           "    iifname \"%s\" ip saddr != %s drop\n"
                           "    iifname \"%s\" meta nfproto ipv6 drop\n"
                           "    oifname \"%s\" ct state established,related accept\n"
                           "    oifname \"%s\" drop\n"
                           "  }\n",
                           device, prefix, device, from, device, device, device);
    g_string_append_printf(text,
                           "  chain nat {\n"
                           "    type nat hook postrouting priority srcnat; policy accept;\n"
                           "    ip saddr %s masquerade\n"
                           "  }\n}\n",
                           from);
    return g_string_free(text, FALSE);
}

#define VNI_AT "@th,96,24" /* behind 8 bytes of UDP and 4 of VXLAN (RFC 7348) */

char *sf_net_rules_tunnel(const char *table, guint32 number, guint port, const char *const *hosts)
{
    const char *family = strchr(hosts[0], ':') ? "ip6" : "ip";
    g_autofree char *list = g_strjoinv(", ", (char **)hosts);

    return g_strdup_printf("table inet %s\ndelete table inet %s\ntable inet %s {\n"
                           "  chain input {\n"
                           "    type filter hook input priority -10; policy accept;\n"
                           "    udp dport %u " VNI_AT " %u %s saddr { %s } accept\n"
                           "    udp dport %u " VNI_AT " %u drop\n"
                           "  }\n}\n",
                           table, table, table, port, number, family, list, port, number);
}
