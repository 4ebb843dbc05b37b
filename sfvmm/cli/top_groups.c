/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cli/top_groups.h"

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/table.h"
#include "sfvmm/cli/units.h"

#define PPM_PER_PERCENT 10000.0
#define TICKET_DIGITS   4

static void add_number(SfTable *table, gint64 number)
{
    sf_table_add_cellf(table, SF_STYLE_PLAIN, "%" G_GINT64_FORMAT, number);
}

static void add_size(SfTable *table, JsonObject *group, const char *member)
{
    g_autofree char *text = sf_units_format_size((guint64)MAX(sf_ctl_int(group, member), 0));

    sf_table_add_cell(table, text, SF_STYLE_PLAIN);
}

/* What this host sends to the group. */
static void add_origin(SfTable *table, JsonObject *group)
{
    g_autofree char *rate = sf_units_format_size((guint64)MAX(sf_ctl_int(group, "rate"), 0));

    sf_table_add_cellf(table, SF_STYLE_PLAIN, "to %" G_GINT64_FORMAT " hosts", sf_ctl_int(group, "receivers"));
    add_size(table, group, "bytes");
    add_number(table, sf_ctl_int(group, "asked"));
    add_number(table, sf_ctl_int(group, "pushed"));
    add_number(table, sf_ctl_int(group, "repeated"));
    sf_table_add_cellf(table, SF_STYLE_PLAIN, "%.2f", (double)sf_ctl_int(group, "loss_ppm") / PPM_PER_PERCENT);
    sf_table_add_cellf(table, SF_STYLE_PLAIN, "%s/s", rate);
    sf_table_add_cell(table, sf_ctl_string(group, "group"), SF_STYLE_PLAIN);
}

/* What comes here. */
static void add_receiver(SfTable *table, JsonObject *group)
{
    const char *state = sf_ctl_string(group, "state");
    gboolean on = g_strcmp0(state, "multicast") == 0;

    sf_table_add_cell(table, state, on ? SF_STYLE_GREEN : SF_STYLE_YELLOW);
    add_size(table, group, "bytes");
    add_number(table, sf_ctl_int(group, "asked"));
    add_number(table, sf_ctl_int(group, "unasked"));
    add_number(table, sf_ctl_int(group, "again"));
    sf_table_add_cellf(table, SF_STYLE_PLAIN, "%.2f", (double)sf_ctl_int(group, "loss_ppm") / PPM_PER_PERCENT);
    sf_table_add_cell(table, NULL, SF_STYLE_PLAIN);
    sf_table_add_cell(table, sf_ctl_string(group, "reason"), SF_STYLE_PLAIN);
}

void sf_top_append_groups(GString *out, JsonArray *groups, const SfTopView *view)
{
    guint n = groups ? json_array_get_length(groups) : 0;
    g_autoptr(SfTable) table = sf_table_new();

    sf_table_add_column(table, "PAGES OF", SF_COLUMN_LEFT);
    sf_table_add_column(table, "GO BY", SF_COLUMN_LEFT);
    sf_table_add_column(table, "BYTES", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "ASKED", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "UNASKED", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "AGAIN", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
    sf_table_add_column(table, "LOSS %", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "RATE", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
    sf_table_add_column(table, "WHY", SF_COLUMN_ELASTIC);
    for (guint i = 0; i < n; i++) {
        JsonObject *group = json_array_get_object_element(groups, i);
        const char *vm = sf_ctl_string(group, "vm"), *ticket = sf_ctl_string(group, "ticket");
        sf_table_add_row(table);
        sf_table_add_cellf(table, SF_STYLE_PLAIN, "%s %.*s", vm ? vm : "?", TICKET_DIGITS, ticket ? ticket : "");
        if (sf_ctl_bool(group, "origin")) {
            add_origin(table, group);
        } else {
            add_receiver(table, group);
        }
    }
    if (n > 0) {
        g_autofree char *text = sf_table_to_text(table, view->width, view->color);
        g_string_append_printf(out, "\n%s", text);
    }
}
