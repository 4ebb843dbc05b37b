/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What members of a cluster may reach outside. One rule is one text:
 *
 *     ADDRESS[/PREFIX] [tcp|udp [PORT[-PORT][,PORT[-PORT]]...] | icmp]
 *
 *     192.0.2.0/24              everything there
 *     192.0.2.7 tcp 80,443      two ports of one machine
 *     0.0.0.0/0 udp 53          name service, everywhere
 *
 * Without a rule nothing is reachable. Never reachable, whatever a rule says: addresses of the host itself, other
 * clusters, loopback, link-local (where clouds keep credentials), multicast and reserved addresses. IPv4 alone leaves a
 * cluster. docs/network.md has the reasons.
 */
#ifndef SF_NET_POLICY_H
#define SF_NET_POLICY_H

#include <gio/gio.h>

#define SF_NET_RULES_MAX 64u
#define SF_NET_PORTS_MAX 16u  /* ranges of one rule */
#define SF_NET_RULE_MAX  255u /* characters of a text */

typedef enum { SF_NET_ANY, SF_NET_TCP, SF_NET_UDP, SF_NET_ICMP } SfNetProtocol;

typedef struct {
    guint32 address; /* host byte order; bits behind the prefix are 0 */
    guint prefix;
    SfNetProtocol protocol;
    guint n_ports; /* 0: all */
    struct {
        guint16 first, last;
    } ports[SF_NET_PORTS_MAX];
} SfNetRule;

/* Strict; the error quotes the text and says what is wrong with it. */
gboolean sf_net_rule_parse(SfNetRule *rule, const char *text, GError **error);

/* A text that is parsed to the same rule. To be freed. */
char *sf_net_rule_to_text(const SfNetRule *rule);

/* The same in one form only, as nft(8) takes it: "ip daddr 192.0.2.7 tcp dport { 80, 443 }". To be freed. */
char *sf_net_rule_to_nft(const SfNetRule *rule);

/* "10.77.0.1" to host byte order; leading zeros, spaces, missing parts are refused. */
gboolean sf_net_address_parse(const char *text, guint32 *address);
char *sf_net_address_to_text(guint32 address); /* to be freed */

/*
 * A rule lets this pass: to a port of TCP and UDP (host byte order), 0 for other protocols; SF_NET_ANY: none of the
 * named ones. What is never reachable for every host is not; what is the host's own is for the caller to know.
 */
gboolean sf_net_policy_allows(const GArray *rules, guint32 address, SfNetProtocol protocol, guint16 port);

/* All rules of a cluster, of SfNetRule; NULL + error when one is wrong or there are more than SF_NET_RULES_MAX. */
GArray *sf_net_policy_parse(const char *const *texts, GError **error);

#endif
