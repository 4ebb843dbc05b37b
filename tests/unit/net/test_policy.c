/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The language of outside rules: what is taken, what is refused, and what nft is told. */
#include <string.h>
#include "sfvmm/net/network.h"
#include "sfvmm/net/policy.h"

static void test_accepted(void)
{
    static const struct {
        const char *text, *nft;
    } cases[] = {
        { "192.0.2.7", "ip daddr 192.0.2.7/32" },
        { "192.0.2.0/24", "ip daddr 192.0.2.0/24" },
        { "0.0.0.0/0", "ip daddr 0.0.0.0/0" },
        { "192.0.2.7 tcp", "ip daddr 192.0.2.7/32 ip protocol tcp" },
        { "192.0.2.7 udp 53", "ip daddr 192.0.2.7/32 udp dport { 53 }" },
        { "192.0.2.7 tcp 80,443,8000-8080", "ip daddr 192.0.2.7/32 tcp dport { 80, 443, 8000-8080 }" },
        { "  192.0.2.0/25\ttcp   1-65535 ", "ip daddr 192.0.2.0/25 tcp dport { 1-65535 }" },
        { "192.0.2.7 icmp", "ip daddr 192.0.2.7/32 ip protocol icmp" },
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *nft = NULL, *again = NULL;
        SfNetRule rule, same;
        g_assert_true(sf_net_rule_parse(&rule, cases[i].text, &error));
        g_assert_no_error(error);
        nft = sf_net_rule_to_nft(&rule);
        g_assert_cmpstr(nft, ==, cases[i].nft);
        again = sf_net_rule_to_text(&rule);
        g_assert_true(sf_net_rule_parse(&same, again, &error));
        g_assert_no_error(error);
        g_assert_cmpmem(&rule, sizeof(rule), &same, sizeof(same));
    }
}

static void test_refused(void)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        { "", "empty" },
        { "   ", "empty" },
        { "example.org", "names are not looked up" },
        { "2001:db8::1", "only IPv4" },
        { "::ffff:192.0.2.1", "only IPv4" },
        { "192.0.2", "no IPv4 address" },
        { "192.0.2.256", "no IPv4 address" },
        { "192.0.2.07", "no IPv4 address" },
        { "3221225985", "no IPv4 address" },
        { "192.0.2.0/33", "no prefix" },
        { "192.0.2.0/-1", "no prefix" },
        { "192.0.2.0/", "no prefix" },
        { "192.0.2.0/024", "no prefix" },
        { "192.0.2.7/24", "192.0.2.0/24 is the network" },
        { "0.0.0.0", "no address of a machine" },
        { "127.0.0.1 tcp 80", "loopback" },
        { "169.254.169.254 tcp 80", "credentials" },
        { "224.0.0.0/4", "multicast" },
        { "255.255.255.255", "reserved" },
        { "192.0.2.7 sctp", "no protocol" },
        { "192.0.2.7 TCP", "no protocol" },
        { "192.0.2.7 icmp 8", "no ports" },
        { "192.0.2.7 tcp 0", "no port" },
        { "192.0.2.7 tcp 65536", "no port" },
        { "192.0.2.7 tcp 90-80", "no port" },
        { "192.0.2.7 tcp 80,", "no port" },
        { "192.0.2.7 tcp 80-", "no port" },
        { "192.0.2.7 tcp 80,70-90", "overlaps" },
        { "192.0.2.7 tcp 80 443", "one word too many" },
        { "192.0.2.7 tcp 80; drop", "no port" },
        { "192.0.2.7 tcp 80} accept #", "no port" },
        { "192.0.2.7 tcp 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", "more than 16" },
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        SfNetRule rule;
        g_assert_false(sf_net_rule_parse(&rule, cases[i].text, &error));
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT);
        g_assert_nonnull(strstr(error->message, cases[i].says));
    }
}

static void test_many(void)
{
    g_auto(GStrv) texts = g_new0(char *, SF_NET_RULES_MAX + 2);
    g_autoptr(GError) error = NULL;
    g_autoptr(GArray) none = sf_net_policy_parse(NULL, &error);
    g_autoptr(GArray) all = NULL;

    g_assert_cmpuint(none->len, ==, 0);
    for (guint i = 0; i < SF_NET_RULES_MAX; i++) {
        texts[i] = g_strdup_printf("192.0.2.%u tcp 80", i);
    }
    all = sf_net_policy_parse((const char *const *)texts, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(all->len, ==, SF_NET_RULES_MAX);
    texts[SF_NET_RULES_MAX] = g_strdup("192.0.2.200");
    g_assert_null(sf_net_policy_parse((const char *const *)texts, &error));
    g_assert_nonnull(strstr(error->message, "more than"));
}

static void test_allows(void)
{
    static const char *const texts[] = {
        "192.0.2.0/24 tcp 80,8000-8099", "192.0.2.7 udp", "198.51.100.0/24", "0.0.0.0/0 udp 53", "192.0.2.9 icmp", NULL
    };
    static const struct {
        guint32 address;
        SfNetProtocol protocol;
        guint16 port;
        gboolean allowed;
    } cases[] = {
        { 0xc0000201, SF_NET_TCP, 80, TRUE },   { 0xc0000201, SF_NET_TCP, 81, FALSE },
        { 0xc00002ff, SF_NET_TCP, 8099, TRUE }, { 0xc0000301, SF_NET_TCP, 80, FALSE },
        { 0xc0000201, SF_NET_UDP, 80, FALSE },  { 0xc0000207, SF_NET_UDP, 9, TRUE },
        { 0xc6336405, SF_NET_ANY, 0, TRUE },    { 0xc6336405, SF_NET_TCP, 1, TRUE },
        { 0x08080808, SF_NET_UDP, 53, TRUE },   { 0x08080808, SF_NET_TCP, 53, FALSE },
        { 0xc0000209, SF_NET_ICMP, 0, TRUE },   { 0xc0000208, SF_NET_ICMP, 0, FALSE },
        { 0x7f000001, SF_NET_UDP, 53, FALSE },  { 0x00000000, SF_NET_UDP, 53, FALSE },
        { 0xa9fea9fe, SF_NET_UDP, 53, FALSE },  { 0xffffffff, SF_NET_UDP, 53, FALSE },
    };
    g_autoptr(GArray) rules = sf_net_policy_parse(texts, NULL);

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_assert_cmpint(sf_net_policy_allows(rules, cases[i].address, cases[i].protocol, cases[i].port), ==,
                        cases[i].allowed);
    }
}

static void test_usable_addresses(void)
{
    g_assert_true(sf_network_address_is_usable(0x0a4d0001, 16));
    g_assert_false(sf_network_address_is_usable(0x0a4d0000, 16)); /* the network */
    g_assert_false(sf_network_address_is_usable(0x0a4dffff, 16)); /* its broadcast */
    g_assert_false(sf_network_address_is_usable(0x0a4dfffe, 16)); /* the gateway */
    g_assert_true(sf_network_address_is_usable(0x0a4dfffd, 16));
    g_assert_true(sf_network_address_is_usable(0xc0000201, 30));
    g_assert_false(sf_network_address_is_usable(0xc0000201, 31));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/net/policy/accepted", test_accepted);
    g_test_add_func("/net/policy/refused", test_refused);
    g_test_add_func("/net/policy/many", test_many);
    g_test_add_func("/net/policy/allows", test_allows);
    g_test_add_func("/net/policy/usable-addresses", test_usable_addresses);
    return g_test_run();
}
