/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The group "libvirt": domains as VMs. */
#include <stdio.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/units.h"
#include "sfvmm/cli/view.h"

#define POOL_MAX 1024 /* shells; the daemon has a limit of its own */

static char *option_uri, *option_name, *option_pool;
static char *option_network, *option_address, **option_outside;
static gboolean option_fix;

static const GOptionEntry domain_options[] = {
    { "uri", 'c', 0, G_OPTION_ARG_STRING, &option_uri, "libvirt's URI (default: libvirt-uri of sfvmmd.conf)", "URI" },
    { "name", 'n', 0, G_OPTION_ARG_STRING, &option_name, "adopt: the VM's name (default: from the domain's)", "NAME" },
    { "pool", 0, 0, G_OPTION_ARG_STRING, &option_pool, "adopt: shells kept ready", "N" },
    { "fix", 0, 0, G_OPTION_ARG_NONE, &option_fix, "check: add to the domain's definition what is missing", NULL },
    { "network", 0, 0, G_OPTION_ARG_STRING, &option_network, "check: it is to be in this network: cluster", "NET" },
    { "address", 0, 0, G_OPTION_ARG_STRING, &option_address, "check: its address there (default: 10.77.0.1/16)",
      "ADDRESS/PREFIX" },
    { "outside", 0, 0, G_OPTION_ARG_STRING_ARRAY, &option_outside,
      "check: what the cluster reaches outside, ADDRESS[/PREFIX] [tcp|udp [PORTS] | icmp]; may be repeated", "RULE" },
    { NULL },
};

static JsonObject *domain_params(const char *domain)
{
    JsonObject *params = sf_ctl_params("domain", domain);

    if (option_uri) {
        json_object_set_string_member(params, "uri", option_uri);
    }
    return params;
}

static int run_adopt(SfCtl *ctl, const char *domain)
{
    JsonObject *params = domain_params(domain);
    g_autofree char *what = g_strdup_printf("domain \"%s\" is taken", domain);
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = NULL;
    gint64 pool;

    if (option_pool) {
        if (!sf_units_parse_count("--pool", option_pool, 0, POOL_MAX, &pool, &error)) {
            json_object_unref(params);
            return sf_ctl_usage("domain", "domain adopt: %s", error->message);
        }
        json_object_set_int_member(params, "pool", pool);
    }
    if (option_name) {
        json_object_set_string_member(params, "name", option_name);
    }
    result = sf_ctl_call_patiently(ctl, what, "domain.adopt", params, SF_CTL_NO_LIMIT, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        sf_ctl_print(sf_ctl_string(sf_ctl_object(result, "vm"), "name"));
    }
    return SF_CTL_OK;
}

static void print_lack(JsonObject *lack)
{
    g_autofree char *what = g_strdup_printf("  %s", sf_ctl_string(lack, "what"));
    const char *xml = sf_ctl_string(lack, "xml");

    sf_ctl_print(what);
    if (xml && *xml) {
        g_autofree char *text = g_strdup_printf("      %s", xml);
        sf_ctl_print(text);
    }
}

static void print_check(JsonObject *result)
{
    JsonArray *lacks = sf_ctl_array(result, "lacks");
    g_autofree char *title =
        g_strdup_printf("Domain \"%s\" can%s be forked%s", sf_ctl_string(result, "domain"),
                        sf_ctl_bool(result, "forkable") ? "" : "not", lacks && json_array_get_length(lacks) ? ":" : "");

    sf_ctl_print(title);
    for (guint i = 0; lacks && i < json_array_get_length(lacks); i++) {
        print_lack(json_array_get_object_element(lacks, i));
    }
    if (sf_ctl_bool(result, "fixed")) {
        puts(sf_ctl_bool(result, "running")
                 ? "What has XML above was added to its definition: shut it down and start it again"
                 : "What has XML above was added to its definition");
    }
}

static JsonArray *rules(void)
{
    JsonArray *array = json_array_new();

    for (char **rule = option_outside; *rule; rule++) {
        json_array_add_string_element(array, *rule);
    }
    return array;
}

static int run_check(SfCtl *ctl, const char *domain)
{
    JsonObject *params = domain_params(domain);
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = NULL;

    json_object_set_boolean_member(params, "fix", option_fix);
    if (option_network) {
        json_object_set_string_member(params, "network", option_network);
    }
    if (option_address) {
        json_object_set_string_member(params, "address", option_address);
    }
    if (option_outside) {
        json_object_set_array_member(params, "outside", rules());
    }
    result = sf_ctl_call_patiently(ctl, "the domain is looked at", "domain.check", params, SF_CTL_NO_LIMIT, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        print_check(result);
    }
    return sf_ctl_bool(result, "forkable") || sf_ctl_bool(result, "fixed") ? SF_CTL_OK : SF_CTL_ERROR;
}

static int run_domain(SfCtl *ctl, int argc, char **argv)
{
    if (strcmp(argv[0], "adopt") == 0) {
        return run_adopt(ctl, argv[1]);
    }
    if (strcmp(argv[0], "check") == 0) {
        return run_check(ctl, argv[1]);
    }
    return sf_ctl_usage("domain", "domain: \"%s\" is neither adopt nor check", argv[0]);
}

const SfCtlCommand sf_ctl_domain_commands[] = {
    { "domain", "adopt DOMAIN | check DOMAIN", "Take a libvirt domain as a VM, or see what it lacks",
      "adopt takes a running domain as a VM that clones can be made of, and prints the VM's name. Nothing of the "
      "domain\n"
      "is changed. `sfctl clone DOMAIN` does it by itself. Its clones are domains too: `virsh list --title` shows "
      "them.\n\n"
      "check says what a domain lacks to be forkable, or to be forked well, with the XML to add; --fix adds it to its\n"
      "definition. The exit status is 1 when it can't be forked. With --network cluster it is to be in a network\n"
      "that it and its clones have for themselves (docs/network.md).\n\n"
      "  sfctl domain check web --fix\n"
      "  sfctl domain check web --network cluster --outside '192.0.2.0/24 tcp 443' --fix\n"
      "  sfctl domain adopt web --pool 8\n"
      "  sfctl clone web --count 8",
      domain_options, 2, 2, run_domain, "adopt,check" },
    { NULL },
};
