/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The group "Saved snapshots": save, load, list, remove, clone. */
#include <stdio.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/units.h"
#include "sfvmm/cli/view.h"

#define COUNT_MAX 1024 /* clones of one ticket: SF_GP_MAX_CLONES */

static char *option_count, *option_timeout, *option_ticket, *option_memory_uri;
static gboolean option_no_wait, option_quiet;

static const GOptionEntry snapshot_options[] = {
    { "ticket", 0, 0, G_OPTION_ARG_STRING, &option_ticket, "save: what the clones of this ticket were made from",
      "TICKET" },
    { "memory-uri", 0, 0, G_OPTION_ARG_STRING, &option_memory_uri,
      "load: an NBD server has the memory; {block} in it is a block's id", "URI" },
    { "count", 'n', 0, G_OPTION_ARG_STRING, &option_count, "clone: how many (default 1)", "N" },
    { "timeout", 't', 0, G_OPTION_ARG_STRING, &option_timeout, "clone: fail when it takes longer", "TIME" },
    { "no-wait", 0, 0, G_OPTION_ARG_NONE, &option_no_wait,
      "clone: return when the clones run; don't wait for their agents", NULL },
    { "quiet", 'q', 0, G_OPTION_ARG_NONE, &option_quiet, "list: only names; clone: only the ticket", NULL },
    { NULL },
};

/* Name, state and what it takes, in words. */
static int show_saved(SfCtl *ctl, JsonObject *result, const char *done)
{
    JsonObject *saved = sf_ctl_object(result, "snapshot");

    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        g_autofree char *size = sf_units_format_size((guint64)MAX(sf_ctl_int(saved, "bytes"), 0));
        g_autofree char *text = g_strdup_printf("Snapshot \"%s\" of \"%s\" %s %s (%s)", sf_ctl_string(saved, "name"),
                                                sf_ctl_string(saved, "vm"), done, sf_ctl_string(saved, "directory"), size);
        sf_ctl_print(text);
    }
    return SF_CTL_OK;
}

static int run_save(SfCtl *ctl, int argc, char **argv)
{
    const char *name = argv[argc - 1];
    g_autoptr(GError) error = NULL;
    g_autofree char *ticket = NULL;
    g_autofree char *what = NULL;
    JsonObject *params;

    if (argc != (option_ticket ? 1 : 2)) {
        return sf_ctl_usage("snapshot", "snapshot save: give a VM and a name, or --ticket TICKET and a name");
    }
    if (option_ticket) {
        ticket = sf_ctl_find_ticket(ctl, option_ticket, &error);
        if (!ticket) {
            return sf_ctl_fail_call(ctl, error);
        }
    }
    params = option_ticket ? sf_ctl_params("ticket", ticket) : sf_ctl_params("vm", argv[0]);
    json_object_set_string_member(params, "name", name);
    what = g_strdup_printf("snapshot \"%s\" is saved", name);
    g_autoptr(JsonObject) result = sf_ctl_call_patiently(ctl, what, "snapshot.save", params, SF_CTL_NO_LIMIT, &error);
    return result ? show_saved(ctl, result, "saved in") : sf_ctl_fail_call(ctl, error);
}

static int run_load(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *directory = NULL;
    g_autofree char *name = NULL;
    g_autofree char *what = NULL;
    JsonObject *params;

    if (argc < 1 || argc > 2) {
        return sf_ctl_usage("snapshot", "snapshot load: give a directory, and a name unless it is the directory's");
    }
    if (!sf_ctl_is_local(ctl, "snapshot load")) {
        return SF_CTL_ERROR;
    }
    directory = g_canonicalize_filename(argv[0], NULL);
    name = argc == 2 ? g_strdup(argv[1]) : g_path_get_basename(directory);
    params = sf_ctl_params("directory", directory);
    json_object_set_string_member(params, "name", name);
    if (option_memory_uri) {
        json_object_set_string_member(params, "memory_uri", option_memory_uri);
    }
    what = g_strdup_printf("snapshot \"%s\" is checked", name);
    g_autoptr(JsonObject) result = sf_ctl_call_patiently(ctl, what, "snapshot.load", params, SF_CTL_NO_LIMIT, &error);
    return result ? show_saved(ctl, result, "loaded from") : sf_ctl_fail_call(ctl, error);
}

static void add_row(SfTable *table, JsonObject *saved)
{
    const char *state = sf_ctl_string(saved, "state");
    gboolean whole = g_strcmp0(state, "saved") == 0;
    SfStyle style = whole ? SF_STYLE_GREEN : g_strcmp0(state, "damaged") == 0 ? SF_STYLE_RED : SF_STYLE_YELLOW;

    sf_table_add_row(table);
    sf_table_add_cell(table, sf_ctl_string(saved, "name"), SF_STYLE_BOLD);
    sf_table_add_cell(table, whole && sf_ctl_bool(saved, "in_use") ? "in use" : state, style);
    if (!whole) {
        sf_table_add_cell(table, sf_ctl_string(saved, "reason"), SF_STYLE_PLAIN);
        return;
    }
    g_autofree char *memory = sf_units_format_size((guint64)MAX(sf_ctl_int(saved, "memory"), 0));
    g_autofree char *bytes = sf_units_format_size((guint64)MAX(sf_ctl_int(saved, "bytes"), 0));
    g_autoptr(GDateTime) time = g_date_time_new_from_unix_local(sf_ctl_int(saved, "created") / (gint64)SF_CTL_NS_PER_S);
    g_autofree char *created = time ? g_date_time_format(time, "%Y-%m-%d %H:%M") : NULL;
    sf_table_add_cell(table, sf_ctl_string(saved, "vm"), SF_STYLE_PLAIN);
    sf_table_add_cell(table, memory, SF_STYLE_PLAIN);
    sf_table_add_cellf(table, SF_STYLE_PLAIN, "%" G_GINT64_FORMAT, sf_ctl_int(saved, "vcpus"));
    sf_table_add_cellf(table, SF_STYLE_PLAIN, "%" G_GINT64_FORMAT, sf_ctl_int(saved, "disks"));
    sf_table_add_cell(table, bytes, SF_STYLE_PLAIN);
    sf_table_add_cell(table, created, SF_STYLE_PLAIN);
    sf_table_add_cell(table, sf_ctl_string(saved, "directory"), SF_STYLE_DIM);
}

static void show_list(SfCtl *ctl, JsonArray *snapshots)
{
    g_autoptr(SfTable) table = sf_table_new();

    sf_table_add_column(table, "NAME", SF_COLUMN_LEFT);
    sf_table_add_column(table, "STATE", SF_COLUMN_LEFT);
    sf_table_add_column(table, "VM", SF_COLUMN_ELASTIC);
    sf_table_add_column(table, "MEMORY", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "VCPUS", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
    sf_table_add_column(table, "DISKS", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
    sf_table_add_column(table, "ON DISK", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "CREATED", SF_COLUMN_LEFT | SF_COLUMN_OPTIONAL);
    sf_table_add_column(table, "DIRECTORY", SF_COLUMN_ELASTIC | SF_COLUMN_OPTIONAL);
    for (guint i = 0; i < json_array_get_length(snapshots); i++) {
        add_row(table, json_array_get_object_element(snapshots, i));
    }
    sf_ctl_print_table(ctl, table);
}

static int run_list(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = NULL;
    JsonArray *snapshots;

    if (argc != 0) {
        return sf_ctl_usage("snapshot", "snapshot list: it takes no argument");
    }
    result = sf_client_call(ctl->client, "snapshot.list", NULL, SF_CTL_SOON_MS, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    snapshots = sf_ctl_array(result, "snapshots");
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else if (option_quiet) {
        for (guint i = 0; snapshots && i < json_array_get_length(snapshots); i++) {
            sf_ctl_print(sf_ctl_string(json_array_get_object_element(snapshots, i), "name"));
        }
    } else if (!snapshots || json_array_get_length(snapshots) == 0) {
        sf_ctl_print("No snapshots are saved. `sfctl snapshot save VM NAME` saves one.");
    } else {
        show_list(ctl, snapshots);
    }
    return SF_CTL_OK;
}

static int run_rm(SfCtl *ctl, int argc, char **argv)
{
    if (argc < 1) {
        return sf_ctl_usage("snapshot", "snapshot rm: a name is missing");
    }
    for (int i = 0; i < argc; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) result =
            sf_client_call(ctl->client, "snapshot.rm", sf_ctl_params("name", argv[i]), SF_CTL_NO_LIMIT, &error);
        if (!result) {
            return sf_ctl_fail_call(ctl, error);
        }
    }
    if (ctl->json) {
        g_autoptr(JsonObject) nothing = json_object_new();
        sf_ctl_print_json(nothing);
    }
    return SF_CTL_OK;
}

static int run_clone(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *what = NULL;
    gint64 count = 1;
    JsonObject *params;
    int timeout;

    if (argc != 1) {
        return sf_ctl_usage("snapshot", "snapshot clone: give the name of a snapshot");
    }
    if (option_count && !sf_units_parse_count("--count", option_count, 1, COUNT_MAX, &count, &error)) {
        return sf_ctl_usage("snapshot", "snapshot clone: %s", error->message);
    }
    if (option_timeout && !sf_units_parse_duration("--timeout", option_timeout, &timeout, &error)) {
        return sf_ctl_usage("snapshot", "snapshot clone: %s", error->message);
    }
    params = sf_ctl_params("name", argv[0]);
    json_object_set_int_member(params, "count", count);
    if (option_timeout) {
        json_object_set_int_member(params, "timeout_ms", timeout);
    }
    if (option_no_wait) {
        json_object_set_string_member(params, "wait", "resumed");
    }
    what = g_strdup_printf("clones of snapshot \"%s\" start", argv[0]);
    g_autoptr(JsonObject) result = sf_ctl_call_patiently(ctl, what, "snapshot.clone", params, SF_CTL_NO_LIMIT, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    sf_view_ticket_of(ctl, result, option_quiet);
    return SF_CTL_OK;
}

static int run_snapshot(SfCtl *ctl, int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(SfCtl *ctl, int argc, char **argv);
    } verbs[] = {
        { "save", run_save }, { "load", run_load }, { "list", run_list }, { "rm", run_rm }, { "clone", run_clone },
    };

    for (guint i = 0; i < G_N_ELEMENTS(verbs); i++) {
        if (strcmp(argv[0], verbs[i].name) == 0) {
            return verbs[i].run(ctl, argc - 1, argv + 1);
        }
    }
    return sf_ctl_usage("snapshot", "snapshot: \"%s\" is not one of save, load, list, rm, clone", argv[0]);
}

const SfCtlCommand sf_ctl_snapshot_commands[] = {
    { "snapshot", "save VM NAME | load DIR [NAME] | list | rm NAME... | clone NAME", "Save VMs, and make clones of them later",
      "A saved snapshot is a directory: one sparse file per RAM block, a qcow2 image per disk, the descriptor, and\n"
      "snapshot.json with checksums. The VM is paused as for a fork, for milliseconds; the rest is copied while it runs.\n"
      "Clones start at once and read its memory as they touch it: after a reboot too, or on another host, where\n"
      "`snapshot load` checks all of a copied directory first. rm of a loaded one leaves the directory.\n"
      "\n"
      "  sfctl snapshot save web web-warm\n"
      "  sfctl snapshot clone web-warm --count 8",
      snapshot_options, 1, G_MAXINT, run_snapshot, "save,load,list,rm,clone vm snapshot file" },
    { NULL },
};
