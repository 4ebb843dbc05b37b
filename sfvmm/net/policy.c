/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/net/policy.h"

#include <arpa/inet.h>
#include <string.h>

#define PREFIX_MAX 32u
#define BLANKS     " \t"

/* What no rule may name; sfvmm/net/rules.c drops it too. */
static const struct {
    guint32 address;
    guint prefix;
    const char *what;
} never[] = {
    { 0x00000000, 8, "no address of a machine; systems take it for their own" },
    { 0x7f000000, 8, "loopback" },
    { 0xa9fe0000, 16, "link-local, where clouds keep credentials" },
    { 0xe0000000, 4, "multicast" },
    { 0xf0000000, 4, "reserved" },
};

static const char *const protocols[] = {
    [SF_NET_ANY] = "", [SF_NET_TCP] = "tcp", [SF_NET_UDP] = "udp", [SF_NET_ICMP] = "icmp"
};

static guint32 mask_of(guint prefix)
{
    return prefix == 0 ? 0 : G_MAXUINT32 << (PREFIX_MAX - prefix);
}

gboolean sf_net_address_parse(const char *text, guint32 *address)
{
    struct in_addr parsed;

    /* inet_pton() takes no shortened or octal forms, no blanks, nothing behind it. */
    if (inet_pton(AF_INET, text, &parsed) != 1) {
        return FALSE;
    }
    *address = ntohl(parsed.s_addr);
    return TRUE;
}

char *sf_net_address_to_text(guint32 address)
{
    return g_strdup_printf("%u.%u.%u.%u", address >> 24, address >> 16 & 0xff, address >> 8 & 0xff, address & 0xff);
}

static gboolean parse_number(const char *text, guint64 min, guint64 max, guint64 *value)
{
    return g_ascii_isdigit(text[0]) && (text[0] != '0' || text[1] == '\0') &&
           g_ascii_string_to_unsigned(text, 10, min, max, value, NULL);
}

/* Each returns what is wrong with its part, or NULL. */

static char *take_network(SfNetRule *rule, const char *text)
{
    g_auto(GStrv) parts = g_strsplit(text, "/", 2);
    guint64 prefix = PREFIX_MAX;

    if (strchr(text, ':')) {
        return g_strdup("only IPv4 can leave a cluster");
    }
    if (!sf_net_address_parse(parts[0], &rule->address)) {
        return g_strdup_printf("\"%s\" is no IPv4 address; names are not looked up", parts[0]);
    }
    if (parts[1] && !parse_number(parts[1], 0, PREFIX_MAX, &prefix)) {
        return g_strdup_printf("\"/%s\" is no prefix, /0 to /%u", parts[1], PREFIX_MAX);
    }
    rule->prefix = (guint)prefix;
    if (rule->address & ~mask_of(rule->prefix)) {
        g_autofree char *network = sf_net_address_to_text(rule->address & mask_of(rule->prefix));
        return g_strdup_printf("the address has bits behind its prefix; %s/%u is the network", network, rule->prefix);
    }
    for (guint i = 0; i < G_N_ELEMENTS(never); i++) {
        if (rule->prefix >= never[i].prefix && (rule->address & mask_of(never[i].prefix)) == never[i].address) {
            return g_strdup_printf("%s is never reachable (%s)", text, never[i].what);
        }
    }
    return NULL;
}

static char *take_protocol(SfNetRule *rule, const char *text)
{
    for (guint i = SF_NET_TCP; i <= SF_NET_ICMP; i++) {
        if (strcmp(text, protocols[i]) == 0) {
            rule->protocol = i;
            return NULL;
        }
    }
    return g_strdup_printf("\"%s\" is no protocol: tcp, udp or icmp", text);
}

static char *take_ports(SfNetRule *rule, const char *text)
{
    g_auto(GStrv) ranges = g_strsplit(text, ",", -1);

    if (rule->protocol == SF_NET_ICMP) {
        return g_strdup("icmp has no ports");
    }
    for (guint i = 0; ranges[i]; i++) {
        g_auto(GStrv) ends = g_strsplit(ranges[i], "-", 2);
        guint64 first = 0, last = 0;

        if (i == SF_NET_PORTS_MAX) {
            return g_strdup_printf("more than %u ports or ranges", SF_NET_PORTS_MAX);
        }
        if (!ends[0] || !parse_number(ends[0], 1, G_MAXUINT16, &first) ||
            !parse_number(ends[1] ? ends[1] : ends[0], first, G_MAXUINT16, &last)) {
            return g_strdup_printf("\"%s\" is no port or range of ports from 1 to %u", ranges[i], G_MAXUINT16);
        }
        for (guint j = 0; j < i; j++) {
            if (first <= rule->ports[j].last && last >= rule->ports[j].first) {
                return g_strdup_printf("\"%s\" overlaps what stands before it", ranges[i]);
            }
        }
        rule->ports[i].first = (guint16)first;
        rule->ports[i].last = (guint16)last;
        rule->n_ports++;
    }
    return NULL;
}

static char *take_words(SfNetRule *rule, const char *text)
{
    static char *(*const takers[])(SfNetRule *, const char *) = { take_network, take_protocol, take_ports };
    g_auto(GStrv) words = g_strsplit_set(text, BLANKS, -1);
    guint n = 0;
    char *problem = NULL;

    for (char **word = words; *word && !problem; word++) {
        if (**word && n == G_N_ELEMENTS(takers)) {
            problem = g_strdup_printf("\"%s\" is one word too many", *word);
        } else if (**word) {
            problem = takers[n++](rule, *word);
        }
    }
    return problem || n > 0 ? problem : g_strdup("it is empty");
}

gboolean sf_net_rule_parse(SfNetRule *rule, const char *text, GError **error)
{
    g_autofree char *problem = NULL;
    g_autofree char *shown = NULL;

    memset(rule, 0, sizeof(*rule));
    problem = strlen(text) > SF_NET_RULE_MAX ? g_strdup_printf("it is longer than %u characters", SF_NET_RULE_MAX)
                                             : take_words(rule, text);
    if (!problem) {
        return TRUE;
    }
    shown = g_strndup(text, SF_NET_RULE_MAX);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                "outside rule \"%s\": %s; it must be ADDRESS[/PREFIX] [tcp|udp [PORTS] | icmp]", shown, problem);
    return FALSE;
}

static void append_ports(GString *text, const SfNetRule *rule, const char *between)
{
    for (guint i = 0; i < rule->n_ports; i++) {
        g_string_append_printf(text, "%s%u", i > 0 ? between : "", rule->ports[i].first);
        if (rule->ports[i].last != rule->ports[i].first) {
            g_string_append_printf(text, "-%u", rule->ports[i].last);
        }
    }
}

char *sf_net_rule_to_text(const SfNetRule *rule)
{
    g_autofree char *address = sf_net_address_to_text(rule->address);
    GString *text = g_string_new(NULL);

    g_string_append_printf(text, "%s/%u %s ", address, rule->prefix, protocols[rule->protocol]);
    append_ports(text, rule, ",");
    return g_string_free(text, FALSE);
}

char *sf_net_rule_to_nft(const SfNetRule *rule)
{
    g_autofree char *address = sf_net_address_to_text(rule->address);
    GString *text = g_string_new(NULL);

    g_string_append_printf(text, "ip daddr %s/%u", address, rule->prefix);
    if (rule->protocol != SF_NET_ANY && rule->n_ports > 0) {
        g_string_append_printf(text, " %s dport { ", protocols[rule->protocol]);
        append_ports(text, rule, ", ");
        g_string_append(text, " }");
    } else if (rule->protocol != SF_NET_ANY) {
        g_string_append_printf(text, " ip protocol %s", protocols[rule->protocol]);
    }
    return g_string_free(text, FALSE);
}

static gboolean has_port(const SfNetRule *rule, guint16 port)
{
    for (guint i = 0; i < rule->n_ports; i++) {
        if (port >= rule->ports[i].first && port <= rule->ports[i].last) {
            return TRUE;
        }
    }
    return rule->n_ports == 0;
}

gboolean sf_net_policy_allows(const GArray *rules, guint32 address, SfNetProtocol protocol, guint16 port)
{
    for (guint i = 0; i < G_N_ELEMENTS(never); i++) {
        if ((address & mask_of(never[i].prefix)) == never[i].address) {
            return FALSE;
        }
    }
    for (guint i = 0; i < rules->len; i++) {
        const SfNetRule *rule = &g_array_index(rules, SfNetRule, i);
        if ((address & mask_of(rule->prefix)) == rule->address &&
            (rule->protocol == SF_NET_ANY || rule->protocol == protocol) && has_port(rule, port)) {
            return TRUE;
        }
    }
    return FALSE;
}

GArray *sf_net_policy_parse(const char *const *texts, GError **error)
{
    g_autoptr(GArray) rules = g_array_new(FALSE, FALSE, sizeof(SfNetRule));

    for (guint i = 0; texts && texts[i]; i++) {
        SfNetRule rule;
        if (i == SF_NET_RULES_MAX) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "more than %u outside rules", SF_NET_RULES_MAX);
            return NULL;
        }
        if (!sf_net_rule_parse(&rule, texts[i], error)) {
            return NULL;
        }
        g_array_append_val(rules, rule);
    }
    return g_steal_pointer(&rules);
}
