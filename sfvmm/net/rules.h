/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The packet filters of a cluster, as texts for nft(8). rules.c has what each is for.
 */
#ifndef SF_NET_RULES_H
#define SF_NET_RULES_H

#include <glib.h>

/* Names in a cluster's namespace. */
#define SF_NET_BRIDGE "br0"
#define SF_NET_OUT    "out" /* the cable to the host */
#define SF_NET_FAR    "far" /* the tunnel to the same network on other hosts */

#define SF_NET_MAC_LENGTH 6

/* A member: who may send what, by which device. */
typedef struct {
    char *device;
    guint8 mac[SF_NET_MAC_LENGTH];
    guint32 address; /* IPv4, host byte order */
} SfNetMember;

typedef struct {
    const GArray *outside; /* of SfNetRule; may be empty */
    guint32 subnet;        /* of the members, with `prefix` */
    guint prefix;
    const guint8 *gateway_mac;
    gboolean lent;         /* the gateway is on another host */
    guint32 link;          /* of the cable to the host, with `link_prefix` */
    guint link_prefix;
    guint64 rate; /* bytes/s of each member in each direction; 0: no limit */
} SfNetRulesOptions;

/* The whole filter of a cluster's namespace with these members (of SfNetMember *), in place of what is there. */
char *sf_net_rules_cluster(const SfNetRulesOptions *options, const GPtrArray *members);

char *sf_net_rules_add_member(const SfNetMember *member);
char *sf_net_rules_remove_member(const SfNetMember *member);

/*
 * The filter of the host for one cluster. device: the host's end of the cable; all of their names begin with `prefix`.
 * address: of the cluster's end.
 */
char *sf_net_rules_host(const char *table, const char *device, const char *prefix, guint32 address);

/* The filter of the host for a tunnel: its packets come from `hosts` alone, IP addresses of one family. */
char *sf_net_rules_tunnel(const char *table, guint32 number, guint port, const char *const *hosts);

#endif
