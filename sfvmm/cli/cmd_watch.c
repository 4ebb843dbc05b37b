/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The group "Watching". top and timeline have files of their own. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/units.h"

#define EVENT_WIDTH   16      /* of the column of event names */

static char *option_count, *option_timeout;

static const GOptionEntry events_options[] = {
    { "count", 'n', 0, G_OPTION_ARG_STRING, &option_count, "End after N events", "N" },
    { "timeout", 't', 0, G_OPTION_ARG_STRING, &option_timeout, "End with status 1 when nothing happens for so long",
      "TIME" },
    { NULL },
};

static SfStyle event_style(const char *name)
{
    return g_str_has_suffix(name, ".exited")    ? SF_STYLE_BLUE
           : g_str_has_prefix(name, "fork.")   ? SF_STYLE_MAGENTA
           : g_str_has_prefix(name, "ticket.") ? SF_STYLE_CYAN
                                               : SF_STYLE_GREEN;
}

/* " member=value" for what a person looks for; all members are for --json. */
static void append_members(GString *line, JsonObject *data)
{
    static const char *const members[] = { "name",    "vm",    "role",   "parent", "ticket", "id",
                                           "granted", "state", "status", "reason", "pid" };
    gboolean exited = g_strcmp0(sf_ctl_string(data, "state"), "exited") == 0;

    for (guint i = 0; i < G_N_ELEMENTS(members); i++) {
        JsonNode *node = json_object_get_member(data, members[i]);
        if (!node || !JSON_NODE_HOLDS_VALUE(node) || (strcmp(members[i], "status") == 0 && !exited)) {
            continue;
        }
        const char *text = sf_ctl_string(data, members[i]);
        g_autofree char *number = text ? NULL : json_to_string(node, FALSE);
        g_autofree char *clean = sf_text_harmless(text ? text : number);
        if (*clean) {
            g_string_append_printf(line, " %s=%s", members[i], clean);
        }
    }
    gint64 pause = sf_ctl_int(sf_ctl_object(data, "fork"), "pause_ns");
    if (pause > 0) {
        g_autofree char *text = sf_units_format_ns((guint64)pause);
        g_string_append_printf(line, " pause=%s", text);
    }
}

static void print_event(const SfCtl *ctl, const char *name, JsonObject *data)
{
    g_autoptr(GDateTime) now = g_date_time_new_now_local();
    g_autofree char *clock = g_date_time_format(now, "%H:%M:%S");
    g_autofree char *clean = sf_text_harmless(name);
    g_autofree char *padded = g_strdup_printf("%-*s", EVENT_WIDTH, clean);
    GString *line = g_string_new(NULL);

    g_string_append_printf(line, "%s.%03d ", clock, g_date_time_get_microsecond(now) / 1000);
    sf_text_append_styled(line, padded, event_style(clean), ctl->color);
    append_members(line, data);
    puts(line->str);
    fflush(stdout);
    g_string_free(line, TRUE);
}

static void print_event_json(const char *name, JsonObject *data)
{
    g_autoptr(JsonObject) object = json_object_new();
    json_object_set_string_member(object, "event", name);
    json_object_set_object_member(object, "data", json_object_ref(data));
    sf_ctl_print_json(object);
}

static int run_events(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    gint64 count = G_MAXINT64;
    int timeout = SF_CTL_NO_LIMIT;

    if ((option_count && !sf_units_parse_count("--count", option_count, 1, G_MAXINT64, &count, &error)) ||
        (option_timeout && !sf_units_parse_duration("--timeout", option_timeout, &timeout, &error))) {
        return sf_ctl_usage("events", "events: %s", error->message);
    }
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "subscribe", NULL, SF_CTL_SOON_MS, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    for (gint64 i = 0; i < count; i++) {
        g_autofree char *name = NULL;
        g_autoptr(JsonObject) data = NULL;
        if (!sf_client_next_event(ctl->client, timeout, &name, &data, &error)) {
            return sf_ctl_fail_call(ctl, error);
        }
        if (ctl->json) {
            print_event_json(name, data);
        } else {
            print_event(ctl, name, data);
        }
    }
    return SF_CTL_OK;
}

static const char top_help[] =
    "Keys: q quits; s shows or hides the shells; c, m, n sort families by CPU, private memory or name; the arrow keys\n"
    "scroll; space refreshes. When stdout is not a terminal, and with --once, one table is printed; --batch prints "
    "one\n"
    "after the other.\n"
    "\n"
    "PRIVATE is memory that only this VM has: what QEMU needs and what the guest wrote. SHARED is memory of the "
    "common\n"
    "snapshot that this VM uses; it is there once for all of a family, and so counted once in the total.";

static const char timeline_help[] =
    "TICKET may be shortened to its first digits; left out, the newest ticket is shown. FILE is what --json of this\n"
    "command, of clone or of join has printed, \"-\" is standard input: a ticket that was joined is forgotten by the\n"
    "daemon, but not by such a file.\n"
    "\n"
    "--live draws while it happens, and ends with the last clone; without TICKET it waits for the next fork.\n"
    "\n"
    "Examples:\n"
    "  sfctl timeline --live --svg fork.svg\n"
    "  sfctl join 3f2a --json > ticket.json; sfctl timeline ticket.json";

const SfCtlCommand sf_ctl_watch_commands[] = {
    { "top", "", "Live table of VMs, clones and shells: CPU, memory shared and private", top_help, sf_ctl_top_options,
      0, 0, sf_ctl_top, NULL },
    { "timeline", "[TICKET|FILE]", "Draw a fork: pause, and when each clone ran, answered, ended", timeline_help,
      sf_ctl_timeline_options, 0, 1, sf_ctl_timeline, "ticket file" },
    { "events", "", "Follow what happens, a line for each event", NULL, events_options, 0, 0, run_events, NULL },
    { NULL },
};
