/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cli/view.h"

#include <stdio.h>
#include <string.h>

#include "sfvmm/cli/family.h"
#include "sfvmm/cli/units.h"

#define LABEL_WIDTH   10     /* of the left column of `status` */

/* How long ago, for a CLOCK_MONOTONIC time of sfvmmd's host; NULL: not yet. Caller frees. */
static char *format_ago(SfCtl *ctl, gint64 monotonic_ns)
{
    if (monotonic_ns <= 0) {
        return NULL;
    }
    g_autofree char *age =
        sf_units_format_age_ms((guint64)MAX(sf_ctl_now_ns(ctl) - monotonic_ns, 0) / SF_CTL_NS_PER_MS);
    return g_strconcat(age, " ago", NULL);
}

static void add_size(SfTable *table, gint64 bytes)
{
    g_autofree char *text = sf_units_format_size((guint64)MAX(bytes, 0));
    sf_table_add_cell(table, text, SF_STYLE_PLAIN);
}

static void add_state(SfTable *table, JsonObject *object)
{
    const char *state = sf_ctl_string(object, "state");
    sf_table_add_cell(table, state, sf_ctl_state_style(state));
}

/* Clones have their family's pool: it is shown where it was asked for. */
static void add_pool(SfTable *table, JsonObject *vm)
{
    JsonObject *pool = sf_ctl_object(vm, "pool");
    gint64 ready = sf_ctl_int(pool, "ready"), target = sf_ctl_int(pool, "target");

    if (!pool || target == 0 || g_strcmp0(sf_ctl_string(vm, "role"), "parent") != 0) {
        sf_table_add_cell(table, NULL, SF_STYLE_PLAIN);
    } else {
        sf_table_add_cellf(table, ready < target ? SF_STYLE_YELLOW : SF_STYLE_PLAIN,
                           "%" G_GINT64_FORMAT "/%" G_GINT64_FORMAT, ready, target);
    }
}

/* Of a clone that is on another host; NULL: it is here. */
static const char *host_of(JsonObject *clone)
{
    const char *host = sf_ctl_string(clone, "host");
    return host && *host ? host : NULL;
}

static gboolean any_elsewhere(JsonArray *clones)
{
    for (guint i = 0; i < json_array_get_length(clones); i++) {
        if (host_of(json_array_get_object_element(clones, i))) {
            return TRUE;
        }
    }
    return FALSE;
}

/* A VM whose process is on another host has no pid here. */
static gboolean is_elsewhere(JsonObject *vm)
{
    return sf_ctl_int(vm, "pid") == 0;
}

static gboolean any_vm_elsewhere(const GArray *rows)
{
    for (guint i = 0; i < rows->len; i++) {
        if (is_elsewhere(g_array_index(rows, SfFamilyRow, i).vm)) {
            return TRUE;
        }
    }
    return FALSE;
}

void sf_view_vm_list(SfCtl *ctl, JsonArray *vms)
{
    g_autoptr(SfTable) table = sf_table_new();
    g_autoptr(GArray) rows = sf_family_sort(vms);
    gboolean elsewhere = any_vm_elsewhere(rows);

    if (rows->len == 0) {
        puts("No VM runs. `sfctl run IMAGE` starts one.");
        return;
    }
    sf_table_add_column(table, "NAME", SF_COLUMN_ELASTIC);
    sf_table_add_column(table, "ROLE", SF_COLUMN_LEFT);
    if (elsewhere) {
        sf_table_add_column(table, "HOST", SF_COLUMN_LEFT);
    }
    sf_table_add_column(table, "STATE", SF_COLUMN_LEFT);
    sf_table_add_column(table, "AGENT", SF_COLUMN_LEFT);
    sf_table_add_column(table, "MEMORY", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "VCPUS", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "ACCEL", SF_COLUMN_LEFT);
    sf_table_add_column(table, "POOL", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "PID", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "UP", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
    sf_table_add_column(table, "TICKET", SF_COLUMN_OPTIONAL);
    for (guint i = 0; i < rows->len; i++) {
        const SfFamilyRow *row = &g_array_index(rows, SfFamilyRow, i);
        gboolean agent = sf_ctl_bool(row->vm, "agent");
        g_autofree char *ago = format_ago(ctl, sf_ctl_int(row->vm, "started"));
        if (ago) {
            ago[strlen(ago) - strlen(" ago")] = '\0';
        }
        sf_table_add_row(table);
        sf_table_add_cellf(table, SF_STYLE_PLAIN, "%*s%s", (int)row->depth * 2, "", sf_ctl_string(row->vm, "name"));
        sf_table_add_cell(table, sf_ctl_string(row->vm, "role"), SF_STYLE_PLAIN);
        if (elsewhere) {
            sf_table_add_cell(table, is_elsewhere(row->vm) ? host_of(row->vm) : NULL, SF_STYLE_PLAIN);
        }
        add_state(table, row->vm);
        sf_table_add_cell(table, agent ? "yes" : NULL, SF_STYLE_GREEN);
        add_size(table, sf_ctl_int(row->vm, "memory"));
        sf_table_add_cellf(table, SF_STYLE_PLAIN, "%" G_GINT64_FORMAT, sf_ctl_int(row->vm, "vcpus"));
        sf_table_add_cell(table, sf_ctl_string(row->vm, "accel"), SF_STYLE_PLAIN);
        add_pool(table, row->vm);
        if (is_elsewhere(row->vm)) {
            sf_table_add_cell(table, NULL, SF_STYLE_PLAIN);
        } else {
            sf_table_add_cellf(table, SF_STYLE_PLAIN, "%" G_GINT64_FORMAT, sf_ctl_int(row->vm, "pid"));
        }
        sf_table_add_cell(table, ago, SF_STYLE_PLAIN);
        sf_table_add_cell(table, sf_ctl_string(row->vm, "ticket"), SF_STYLE_DIM);
    }
    sf_ctl_print_table(ctl, table);
}

static void print_line(const char *label, const char *text)
{
    if (text && *text) {
        g_autofree char *line = g_strdup_printf("  %-*s %s", LABEL_WIDTH, label ? label : "?", text);
        sf_ctl_print(line);
    }
}

static void print_heading(const SfCtl *ctl, const char *kind, const char *name, const char *state)
{
    GString *line = g_string_new(NULL);
    g_autofree char *clean = sf_text_harmless(name ? name : "?");

    g_autofree char *clean_state = sf_text_harmless(state ? state : "?");

    g_string_append_printf(line, "%s ", kind);
    sf_text_append_styled(line, clean, SF_STYLE_BOLD, ctl->color);
    g_string_append(line, ": ");
    sf_text_append_styled(line, clean_state, sf_ctl_state_style(state), ctl->color);
    fputs(line->str, stdout);
    g_string_free(line, TRUE);
}

void sf_view_vm(SfCtl *ctl, JsonObject *vm)
{
    const char *role = sf_ctl_string(vm, "role"), *parent = sf_ctl_string(vm, "parent");
    JsonObject *pool = sf_ctl_object(vm, "pool");
    JsonArray *disks = sf_ctl_array(vm, "disks");
    g_autofree char *memory = sf_units_format_size((guint64)sf_ctl_int(vm, "memory"));
    g_autofree char *ago = format_ago(ctl, sf_ctl_int(vm, "started"));
    g_autofree char *pid = g_strdup_printf("%" G_GINT64_FORMAT, sf_ctl_int(vm, "pid"));
    g_autofree char *vcpus = g_strdup_printf("%" G_GINT64_FORMAT, sf_ctl_int(vm, "vcpus"));

    print_heading(ctl, role && *role == 'c' ? "Clone" : "VM", sf_ctl_string(vm, "name"), sf_ctl_string(vm, "state"));
    putchar('\n');
    if (parent) {
        g_autofree char *lineage = g_strdup_printf("%s (ticket %s, clone %" G_GINT64_FORMAT ")", parent,
                                                   sf_ctl_string(vm, "ticket"), sf_ctl_int(vm, "id"));
        print_line("parent", lineage);
    }
    print_line("memory", memory);
    print_line("vCPUs", vcpus);
    print_line("accel", sf_ctl_string(vm, "accel"));
    print_line("agent", sf_ctl_bool(vm, "agent") ? "answers" : "has not answered");
    if (sf_ctl_int(pool, "target") > 0) {
        g_autofree char *text = g_strdup_printf("%" G_GINT64_FORMAT " of %" G_GINT64_FORMAT " shells ready",
                                                sf_ctl_int(pool, "ready"), sf_ctl_int(pool, "target"));
        print_line("pool", text);
    }
    for (guint i = 0; disks && i < json_array_get_length(disks); i++) {
        JsonObject *disk = json_array_get_object_element(disks, i);
        g_autofree char *size = sf_units_format_size((guint64)sf_ctl_int(disk, "size"));
        g_autofree char *text = g_strdup_printf("%s (%s)", sf_ctl_string(disk, "path"), size);
        print_line(sf_ctl_string(disk, "id"), text);
    }
    print_line("started", ago);
    print_line("pid", pid);
    print_line("directory", sf_ctl_string(vm, "directory"));
    print_line("log", sf_ctl_string(vm, "console_log"));
}

/* Clones of a ticket in this state. */
static guint count_clones(JsonObject *ticket, const char *state)
{
    JsonArray *clones = sf_ctl_array(ticket, "clones");
    guint n = 0;

    for (guint i = 0; clones && i < json_array_get_length(clones); i++) {
        n += g_strcmp0(sf_ctl_string(json_array_get_object_element(clones, i), "state"), state) == 0;
    }
    return n;
}

/* "8 running, 1 lost"; NULL: no clones. Caller frees. */
static char *format_clone_states(JsonObject *ticket)
{
    static const char *const states[] = {"starting", "running", "exited", "failed", "lost", "killed"};
    GString *text = g_string_new(NULL);

    for (guint i = 0; i < G_N_ELEMENTS(states); i++) {
        guint n = count_clones(ticket, states[i]);
        if (n > 0) {
            g_string_append_printf(text, "%s%u %s", text->len ? ", " : "", n, states[i]);
        }
    }
    return g_string_free(text, text->len == 0);
}

void sf_view_ticket_list(SfCtl *ctl, JsonArray *tickets)
{
    g_autoptr(SfTable) table = sf_table_new();

    if (!tickets || json_array_get_length(tickets) == 0) {
        puts("No ticket is open. `sfctl clone VM --count N` forks a VM.");
        return;
    }
    sf_table_add_column(table, "TICKET", SF_COLUMN_LEFT);
    sf_table_add_column(table, "VM", SF_COLUMN_ELASTIC);
    sf_table_add_column(table, "STATE", SF_COLUMN_LEFT);
    sf_table_add_column(table, "GRANTED", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "PAUSE", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "CREATED", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "CLONES", SF_COLUMN_ELASTIC);
    for (guint i = 0; i < json_array_get_length(tickets); i++) {
        JsonObject *ticket = json_array_get_object_element(tickets, i);
        gint64 pause = sf_ctl_int(sf_ctl_object(ticket, "fork"), "pause_ns");
        g_autofree char *pause_text = pause > 0 ? sf_units_format_ns((guint64)pause) : NULL;
        g_autofree char *ago = format_ago(ctl, sf_ctl_int(ticket, "created"));
        g_autofree char *clones = format_clone_states(ticket);
        sf_table_add_row(table);
        sf_table_add_cell(table, sf_ctl_string(ticket, "ticket"), SF_STYLE_PLAIN);
        sf_table_add_cell(table, sf_ctl_string(ticket, "vm"), SF_STYLE_PLAIN);
        add_state(table, ticket);
        sf_table_add_cellf(table, SF_STYLE_PLAIN, "%" G_GINT64_FORMAT, sf_ctl_int(ticket, "granted"));
        sf_table_add_cell(table, pause_text, SF_STYLE_PLAIN);
        sf_table_add_cell(table, ago, SF_STYLE_PLAIN);
        sf_table_add_cell(table, clones, SF_STYLE_PLAIN);
    }
    sf_ctl_print_table(ctl, table);
}

static void print_pause(JsonObject *fork)
{
    static const struct {
        const char *member, *name;
    } parts[] = {
        {"stop_ns", "stop"}, {"device_ns", "devices"}, {"ram_ns", "RAM"}, {"disk_ns", "disks"}, {"start_ns", "start"},
    };
    g_autofree char *pause = sf_units_format_ns((guint64)sf_ctl_int(fork, "pause_ns"));
    GString *text = g_string_new(pause);

    for (guint i = 0; i < G_N_ELEMENTS(parts); i++) {
        g_autofree char *part = sf_units_format_ns((guint64)sf_ctl_int(fork, parts[i].member));
        g_string_append_printf(text, "%s%s %s", i == 0 ? " = " : " + ", parts[i].name, part);
    }
    print_line("pause", text->str);
    g_string_free(text, TRUE);
}

/* A clone's time, counted from the call; "-": not yet. */
static void add_since(SfTable *table, JsonObject *clone, const char *member, gint64 called)
{
    gint64 at = sf_ctl_int(clone, member);
    g_autofree char *text = at > 0 ? sf_units_format_ns((guint64)MAX(at - called, 0)) : NULL;

    sf_table_add_cell(table, text, SF_STYLE_PLAIN);
}

static void print_clones(const SfCtl *ctl, JsonArray *clones, gint64 called)
{
    static const struct {
        const char *member, *heading;
        SfColumnFlags flags;
    } times[] = {
        {"running", "RAN", SF_COLUMN_RIGHT},
        {"answered", "ANSWERED", SF_COLUMN_RIGHT},
        {"synced", "SYNCED", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL},
        {"exited", "EXITED", SF_COLUMN_RIGHT},
    };
    g_autoptr(SfTable) table = sf_table_new();
    gboolean elsewhere = any_elsewhere(clones);

    sf_table_add_column(table, "ID", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "CLONE", SF_COLUMN_ELASTIC);
    if (elsewhere) {
        sf_table_add_column(table, "HOST", SF_COLUMN_LEFT);
    }
    sf_table_add_column(table, "STATE", SF_COLUMN_LEFT);
    sf_table_add_column(table, "STATUS", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "RESULT", SF_COLUMN_RIGHT);
    for (guint i = 0; i < G_N_ELEMENTS(times); i++) {
        sf_table_add_column(table, times[i].heading, times[i].flags);
    }
    sf_table_add_column(table, "REASON", SF_COLUMN_ELASTIC);
    for (guint i = 0; i < json_array_get_length(clones); i++) {
        JsonObject *clone = json_array_get_object_element(clones, i);
        const char *state = sf_ctl_string(clone, "state");
        gint64 status = sf_ctl_int(clone, "status");
        sf_table_add_row(table);
        sf_table_add_cellf(table, SF_STYLE_PLAIN, "%" G_GINT64_FORMAT, sf_ctl_int(clone, "id"));
        sf_table_add_cell(table, sf_ctl_string(clone, "vm"), SF_STYLE_PLAIN);
        if (elsewhere) {
            sf_table_add_cell(table, host_of(clone), SF_STYLE_PLAIN);
        }
        add_state(table, clone);
        if (g_strcmp0(state, "exited") == 0) {
            sf_table_add_cellf(table, status == 0 ? SF_STYLE_PLAIN : SF_STYLE_RED, "%" G_GINT64_FORMAT, status);
        } else {
            sf_table_add_cell(table, NULL, SF_STYLE_PLAIN);
        }
        if (sf_ctl_int(clone, "result_length") > 0) {
            add_size(table, sf_ctl_int(clone, "result_length"));
        } else {
            sf_table_add_cell(table, NULL, SF_STYLE_PLAIN);
        }
        for (guint t = 0; t < G_N_ELEMENTS(times); t++) {
            add_since(table, clone, times[t].member, called);
        }
        sf_table_add_cell(table, sf_ctl_string(clone, "reason"), SF_STYLE_PLAIN);
    }
    sf_ctl_print_table(ctl, table);
}

void sf_view_ticket(SfCtl *ctl, JsonObject *ticket)
{
    JsonObject *fork = sf_ctl_object(ticket, "fork");
    JsonArray *clones = sf_ctl_array(ticket, "clones");
    g_autofree char *ago = format_ago(ctl, sf_ctl_int(ticket, "created"));
    g_autofree char *states = format_clone_states(ticket);
    const char *avoid = sf_ctl_string(ticket, "avoid");
    gint64 granted = sf_ctl_int(ticket, "granted");

    print_heading(ctl, "Ticket", sf_ctl_string(ticket, "ticket"), sf_ctl_string(ticket, "state"));
    putchar('\n');
    print_line("of VM", sf_ctl_string(ticket, "vm"));
    print_line("asked for", ago);
    print_line("reason", sf_ctl_string(ticket, "reason"));
    print_line("allocation", sf_ctl_string(ticket, "allocation"));
    print_line("revoked", sf_ctl_string(ticket, "revoked"));
    g_autofree char *clones_text = states ? g_strdup_printf("%" G_GINT64_FORMAT ": %s", granted, states)
                                          : g_strdup_printf("%" G_GINT64_FORMAT ", none made yet", granted);
    print_line("clones", clones_text);
    if (avoid && strcmp(avoid, "all") != 0) {
        print_line("avoids", avoid); /* not as it is by default */
    }
    if (sf_ctl_int(fork, "pause_ns") > 0) {
        print_pause(fork);
    }
    if (clones && json_array_get_length(clones) > 0) {
        putchar('\n');
        print_clones(ctl, clones, sf_ctl_int(fork, "called"));
    }
}

void sf_view_ticket_of(SfCtl *ctl, JsonObject *result, gboolean quiet)
{
    JsonObject *ticket = sf_ctl_object(result, "ticket");

    if (ctl->json) {
        sf_ctl_print_json(result);
    } else if (quiet) {
        sf_ctl_print(sf_ctl_string(ticket, "ticket"));
    } else {
        sf_view_ticket(ctl, ticket);
    }
}
