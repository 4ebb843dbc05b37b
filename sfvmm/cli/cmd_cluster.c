/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The group "Hosts": host talks to sfvmmd, pki makes keys where it is run and needs no sfvmmd. */
#include <stdio.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/units.h"
#include "sfvmm/cluster/pki.h"

#define SLOTS_MAX 65535

static char *option_slots, *option_memory, *option_dir, *option_days;
static gboolean option_undo, option_quiet, option_rsa, option_force;
static char **option_addresses;

static const GOptionEntry host_options[] = {
    { "slots", 'n', 0, G_OPTION_ARG_STRING, &option_slots, "add: clones that it takes; default: what it says itself",
      "N" },
    { "memory", 'm', 0, G_OPTION_ARG_STRING, &option_memory, "add: memory for clones; default: what it says itself",
      "SIZE" },
    { "undo", 'u', 0, G_OPTION_ARG_NONE, &option_undo, "drain: it gets clones again", NULL },
    { "quiet", 'q', 0, G_OPTION_ARG_NONE, &option_quiet, "list: only the names, one a line", NULL },
    { NULL },
};

static const GOptionEntry pki_options[] = {
    { "dir", 'd', 0, G_OPTION_ARG_FILENAME, &option_dir, "Where the CA is; default /etc/snowflock/pki for root",
      "DIR" },
    { "address", 'a', 0, G_OPTION_ARG_STRING_ARRAY, &option_addresses,
      "host: an address or DNS name of it; may be repeated", "ADDRESS" },
    { "days", 0, 0, G_OPTION_ARG_STRING, &option_days, "Validity; default 3650 for a CA, 730 for others", "N" },
    { "rsa", 0, 0, G_OPTION_ARG_NONE, &option_rsa, "RSA 3072 instead of ECDSA P-256", NULL },
    { "force", 'f', 0, G_OPTION_ARG_NONE, &option_force, "Replace what is there", NULL },
    { NULL },
};

/* ---- host ---- */

static int host_add(SfCtl *ctl, const char *name, const char *address)
{
    JsonObject *params = sf_ctl_params("name", name);
    g_autoptr(GError) error = NULL;
    guint64 memory = 0;
    gint64 slots = 0;

    if ((option_slots && !sf_units_parse_count("--slots", option_slots, 1, SLOTS_MAX, &slots, &error)) ||
        (option_memory && !sf_units_parse_size("--memory", option_memory, &memory, &error))) {
        json_object_unref(params);
        return sf_ctl_usage("host", "host: %s", error->message);
    }
    json_object_set_string_member(params, "address", address);
    json_object_set_int_member(params, "slots", slots);
    json_object_set_int_member(params, "memory", (gint64)memory);
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "host.add", params, SF_CTL_SOON_MS, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        g_autofree char *text =
            g_strdup_printf("Host \"%s\" at %s is added; `sfctl host list` shows when it is up", name, address);
        sf_ctl_print(text);
    }
    return SF_CTL_OK;
}

static void host_row(SfTable *table, JsonObject *host, gboolean with_reason)
{
    const char *state = sf_ctl_string(host, "state"), *address = sf_ctl_string(host, "address");
    const char *reason = sf_ctl_string(host, "reason"), *qemu = sf_ctl_string(host, "qemu_version");
    const char *accel = sf_ctl_string(host, "accel");
    gboolean draining = sf_ctl_bool(host, "draining"), up = g_strcmp0(state, "up") == 0;
    g_autofree char *used = sf_units_format_size((guint64)sf_ctl_int(host, "booked_memory"));
    g_autofree char *memory = sf_units_format_size((guint64)sf_ctl_int(host, "memory"));

    sf_table_add_row(table);
    sf_table_add_cell(table, sf_ctl_string(host, "name"), SF_STYLE_BOLD);
    sf_table_add_cell(table, sf_ctl_bool(host, "self") ? "(this host)" : address, SF_STYLE_PLAIN);
    sf_table_add_cell(table, up && draining ? "draining" : state,
                      !up        ? SF_STYLE_RED
                      : draining ? SF_STYLE_YELLOW
                                 : SF_STYLE_GREEN);
    sf_table_add_cellf(table, SF_STYLE_PLAIN, "%" G_GINT64_FORMAT, sf_ctl_int(host, "booked"));
    sf_table_add_cellf(table, SF_STYLE_PLAIN, "%" G_GINT64_FORMAT, sf_ctl_int(host, "slots"));
    sf_table_add_cell(table, used, SF_STYLE_PLAIN);
    sf_table_add_cell(table, memory, SF_STYLE_PLAIN);
    sf_table_add_cell(table, qemu && *qemu ? qemu : NULL, SF_STYLE_PLAIN);
    sf_table_add_cell(table, accel && *accel ? accel : NULL, SF_STYLE_PLAIN);
    if (with_reason) {
        sf_table_add_cell(table, reason && *reason ? reason : NULL, SF_STYLE_DIM);
    }
}

static gboolean any_reason(JsonArray *hosts)
{
    for (guint i = 0; hosts && i < json_array_get_length(hosts); i++) {
        const char *reason = sf_ctl_string(json_array_get_object_element(hosts, i), "reason");
        if (reason && *reason) {
            return TRUE;
        }
    }
    return FALSE;
}

static int host_list(SfCtl *ctl)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "host.list", NULL, SF_CTL_SOON_MS, &error);
    g_autoptr(SfTable) table = sf_table_new();
    JsonArray *hosts = sf_ctl_array(result, "hosts");
    gboolean with_reason = any_reason(hosts);

    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
        return SF_CTL_OK;
    }
    sf_table_add_column(table, "HOST", SF_COLUMN_LEFT);
    sf_table_add_column(table, "ADDRESS", SF_COLUMN_LEFT);
    sf_table_add_column(table, "STATE", SF_COLUMN_LEFT);
    sf_table_add_column(table, "CLONES", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "SLOTS", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "SET ASIDE", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "MEMORY", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "QEMU", SF_COLUMN_LEFT | SF_COLUMN_OPTIONAL);
    sf_table_add_column(table, "ACCEL", SF_COLUMN_LEFT | SF_COLUMN_OPTIONAL);
    if (with_reason) {
        sf_table_add_column(table, "WHY", SF_COLUMN_LEFT | SF_COLUMN_ELASTIC);
    }
    for (guint i = 0; hosts && i < json_array_get_length(hosts); i++) {
        JsonObject *host = json_array_get_object_element(hosts, i);
        if (option_quiet) {
            sf_ctl_print(sf_ctl_string(host, "name"));
        } else {
            host_row(table, host, with_reason);
        }
    }
    if (!option_quiet) {
        sf_ctl_print_table(ctl, table);
    }
    return SF_CTL_OK;
}

/* A call whose answer is only told in words. */
static int host_call(SfCtl *ctl, const char *method, JsonObject *params, const char *said)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, method, params, SF_CTL_SOON_MS, &error);

    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        sf_ctl_print(said);
    }
    return SF_CTL_OK;
}

static int host_drain(SfCtl *ctl, const char *name)
{
    JsonObject *params = sf_ctl_params("name", name);
    g_autofree char *said =
        g_strdup_printf("Host \"%s\" %s", name, option_undo ? "gets clones again" : "gets no more clones");

    json_object_set_boolean_member(params, "drain", !option_undo);
    return host_call(ctl, "host.drain", params, said);
}

static int host_remove(SfCtl *ctl, const char *name)
{
    g_autofree char *said = g_strdup_printf("Host \"%s\" is removed", name);

    return host_call(ctl, "host.remove", sf_ctl_params("name", name), said);
}

static int run_host(SfCtl *ctl, int argc, char **argv)
{
    if (strcmp(argv[0], "add") == 0 && argc == 3) {
        return host_add(ctl, argv[1], argv[2]);
    }
    if (strcmp(argv[0], "list") == 0 && argc == 1) {
        return host_list(ctl);
    }
    if (strcmp(argv[0], "drain") == 0 && argc == 2) {
        return host_drain(ctl, argv[1]);
    }
    if (strcmp(argv[0], "remove") == 0 && argc == 2) {
        return host_remove(ctl, argv[1]);
    }
    return sf_ctl_usage("host", "host: it is \"add NAME ADDRESS[:PORT]\", \"list\", \"drain NAME\" or \"remove NAME\"");
}

/* ---- pki ---- */

static void say_until(SfCtl *ctl, const char *what, const char *folder, const char *cert)
{
    g_autofree char *path = g_build_filename(folder, cert, NULL);
    g_autoptr(SfCertificateInfo) info = sf_certificate_read(path, NULL);
    g_autoptr(GDateTime) end = info ? g_date_time_new_from_unix_utc(info->not_after) : NULL;
    g_autofree char *date = end ? g_date_time_format(end, "%Y-%m-%d") : g_strdup("?");

    if (ctl->json) {
        g_autoptr(JsonObject) object = sf_ctl_params("directory", folder);
        json_object_set_int_member(object, "not_after", info ? info->not_after : 0);
        sf_ctl_print_json(object);
    } else {
        g_autofree char *text = g_strdup_printf("%s in %s, valid until %s", what, folder, date);
        sf_ctl_print(text);
    }
}

static int pki_init(SfCtl *ctl, const char *directory, const SfPkiOptions *options)
{
    g_autoptr(GError) error = NULL;

    if (!sf_pki_make_ca(directory, options, &error)) {
        return sf_ctl_fail(ctl, NULL, "%s", error->message);
    }
    say_until(ctl, "CA", directory, "ca-cert.pem");
    return SF_CTL_OK;
}

static int pki_host(SfCtl *ctl, const char *directory, const char *name, const SfPkiOptions *options)
{
    g_autofree char *folder = g_build_filename(directory, name, NULL);
    g_autoptr(GError) error = NULL;

    if (!sf_pki_make_host(directory, name, (const char *const *)option_addresses, options, &error)) {
        return sf_ctl_fail(ctl, NULL, "%s", error->message);
    }
    g_autofree char *what = g_strdup_printf("Certificates of host \"%s\"", name);
    say_until(ctl, what, folder, "host/server-cert.pem");
    if (!ctl->json) {
        sf_ctl_print("Copy that folder to the host (scp -r) and name it in its sfvmmd.conf: [cluster] pki-directory=");
    }
    return SF_CTL_OK;
}

static int pki_operator(SfCtl *ctl, const char *directory, const char *name, const SfPkiOptions *options)
{
    g_autofree char *folder = g_build_filename(directory, name, NULL);
    g_autoptr(GError) error = NULL;

    if (option_addresses) {
        return sf_ctl_usage("pki", "pki operator: --address is for hosts");
    }
    if (!sf_pki_make_operator(directory, name, options, &error)) {
        return sf_ctl_fail(ctl, NULL, "%s", error->message);
    }
    g_autofree char *what = g_strdup_printf("Certificate of operator \"%s\"", name);
    say_until(ctl, what, folder, SF_CERTIFICATE_OPERATOR "/client-cert.pem");
    if (!ctl->json) {
        g_autofree char *text =
            g_strdup_printf("Copy that folder to where the operator is, as ~/.config/snowflock/keys, "
                            "and name him in sfvmmd.conf of each host: [operators] %s=USER",
                            name);
        sf_ctl_print(text);
    }
    return SF_CTL_OK;
}

static int run_pki(SfCtl *ctl, int argc, char **argv)
{
    g_autofree char *directory = option_dir ? g_canonicalize_filename(option_dir, NULL) : sf_pki_default_directory();
    SfPkiOptions options = { .rsa = option_rsa, .force = option_force };
    g_autoptr(GError) error = NULL;
    gint64 days = 0;

    if (option_days && !sf_units_parse_count("--days", option_days, 1, SF_PKI_DAYS_MAX, &days, &error)) {
        return sf_ctl_usage("pki", "pki: %s", error->message);
    }
    options.days = (guint)days;
    if (strcmp(argv[0], "init") == 0 && argc == 1) {
        return pki_init(ctl, directory, &options);
    }
    if (strcmp(argv[0], "host") == 0 && argc == 2) {
        return pki_host(ctl, directory, argv[1], &options);
    }
    if (strcmp(argv[0], "operator") == 0 && argc == 2) {
        return pki_operator(ctl, directory, argv[1], &options);
    }
    return sf_ctl_usage("pki", "pki: it is \"init\", \"host NAME\" or \"operator NAME\"");
}

const SfCtlCommand sf_ctl_cluster_commands[] = {
    { "host", "add NAME ADDRESS[:PORT] | list | drain NAME | remove NAME", "Hosts that clones may be placed on",
      "Hosts know each other by the names in their certificates (see pki). A host that drains gets no more clones;\n"
      "those that it has go on. One can be removed when it has none.",
      host_options, 1, 3, run_host, "add,list,drain,remove host" },
    { "pki", "init | host NAME | operator NAME", "Make keys and certificates for hosts and operators",
      "init makes a CA, host NAME and operator NAME certificates that it signs. Run all on one machine, which keeps "
      "the\n"
      "CA's key, and copy the folder NAME to its host; or to an operator, who reaches hosts with --socket tls://HOST:\n"
      "  sfctl pki init\n"
      "  sfctl pki host h2 --address 192.0.2.12\n"
      "  sfctl pki operator alice",
      pki_options, 1, 2, run_pki, "init,host,operator" },
    { NULL },
};
