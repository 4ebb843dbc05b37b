/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sf-switch: started by sfvmmd, one for each cluster on a host where sfvmmd has no privileges. Descriptor 3 is the
 * listening socket on which sfvmmd talks to it.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include "sfvmm/net/network.h"
#include "sfvmm/net/policy.h"
#include "sfvmm/net/switch.h"
#include "sfvmm/process/sandbox.h"

#define FD_LISTENER 3
#define FILES_MAX   8192u /* connections to the outside are descriptors: enough, and bounded */

static void set_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max = MIN(limit.rlim_max, FILES_MAX);
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static gboolean take_address(const char *text, SfSwitchOptions *options)
{
    g_auto(GStrv) parts = g_strsplit(text ? text : "", "/", 2);
    guint64 prefix;

    if (!parts[0] || !parts[1] || !sf_net_address_parse(parts[0], &options->address) ||
        !g_ascii_string_to_unsigned(parts[1], 10, 1, 30, &prefix, NULL)) {
        return FALSE;
    }
    options->prefix = (guint)prefix;
    return sf_network_address_is_usable(options->address, options->prefix);
}

static gboolean serve(const SfSwitchOptions *options, GError **error)
{
    SfSwitch *self;

    /* It listens already, but as sfvmmd's: who connects shall find this process by it. */
    if (listen(FD_LISTENER, 1) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "descriptor %d: %s", FD_LISTENER,
                    g_strerror(errno));
        return FALSE;
    }
    self = sf_switch_new(options, FD_LISTENER, error);

    if (self) {
        sf_switch_run(self);
        sf_switch_free(self);
    }
    return self != NULL;
}

int main(int argc, char **argv)
{
    g_auto(GStrv) rules = NULL;
    g_autofree char *address = NULL;
    gint64 rate = 0;
    gboolean version = FALSE;
    GOptionEntry entries[] = {
        { "address", 'a', 0, G_OPTION_ARG_STRING, &address, "of the first VM", "ADDRESS/PREFIX" },
        { "outside", 'o', 0, G_OPTION_ARG_STRING_ARRAY, &rules, "what members may reach, again for each rule", "RULE" },
        { "rate", 'r', 0, G_OPTION_ARG_INT64, &rate, "bound of each member in each direction", "BYTES/S" },
        { "version", 'V', 0, G_OPTION_ARG_NONE, &version, "print the version", NULL },
        { NULL },
    };
    g_autoptr(GOptionContext) context = g_option_context_new("NAME");
    g_autoptr(GError) error = NULL;
    g_autoptr(GArray) policy = NULL;
    SfSwitchOptions options = { 0 };

    g_option_context_set_summary(context, "The network of the cluster NAME. Started by sfvmmd.");
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        g_printerr("sf-switch: %s\n", error->message);
        return EXIT_FAILURE;
    }
    if (version) {
        g_print("sf-switch %s\n", SF_VERSION);
        return EXIT_SUCCESS;
    }
    if (argc != 2 || rate < 0 || !take_address(address, &options)) {
        g_printerr("usage: sf-switch --address ADDRESS/PREFIX [--outside RULE]... [--rate BYTES/S] NAME\n");
        return EXIT_FAILURE;
    }
    signal(SIGPIPE, SIG_IGN);
    set_file_limit();
    options.rate = (guint64)rate;
    policy = sf_net_policy_parse((const char *const *)rules, &error);
    options.rules = policy;
    if (!policy || !sf_sandbox_enter("sf-switch", NULL, &error) || !serve(&options, &error)) {
        g_printerr("sf-switch: network of \"%s\": %s\n", argv[1], error->message);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
