/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sfctl timeline: gets a ticket, from the daemon or a file, and draws it.
 *
 * Live, it subscribes, asks for the ticket whenever something happened and a few times a second, and draws on the
 * alternate screen; at the end it prints the last picture on the normal one. Memory is only known while a clone lives,
 * so the last figures of each clone are kept. A ticket that its guest joins is forgotten by the daemon: then the last
 * answer, with what the events said since, is what is drawn.
 */
#include "sfvmm/cli/timeline.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/term.h"
#include "sfvmm/cli/units.h"

#define FILE_MAX           (16u << 20)     /* bytes of a file that we read: 1024 clones take less than 1 MiB */
#define LIVE_INTERVAL_MS   250
#define ROWS_DEFAULT       40              /* clones shown in a panel, in text */
#define ROWS_MAX           1024

static char *option_svg, *option_rows;
static gboolean option_live, option_ascii;

const GOptionEntry sf_ctl_timeline_options[] = {
    {"svg", 0, 0, G_OPTION_ARG_FILENAME, &option_svg, "Save a picture as FILE as well", "FILE"},
    {"live", 'l', 0, G_OPTION_ARG_NONE, &option_live, "Draw while it happens, until all clones have ended", NULL},
    {"ascii", 0, 0, G_OPTION_ARG_NONE, &option_ascii, "Draw with ASCII characters only", NULL},
    {"rows", 0, 0, G_OPTION_ARG_STRING, &option_rows, "Show at most N clones (default 40)", "N"},
    {NULL},
};

/* What we know: both as the daemon gave them. */
typedef struct {
    JsonObject *ticket;
    JsonObject *usage;        /* {"vms": [...]}: the last of each clone */
} Known;

static void known_clear(Known *known)
{
    g_clear_pointer(&known->ticket, json_object_unref);
    g_clear_pointer(&known->usage, json_object_unref);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Known, known_clear)

/*
 * The ticket's entries of two samples; of a clone that is in both, the newer one. One that has just ended may still be
 * there, but without memory: then the older one.
 */
static JsonObject *merge_usage(JsonObject *newer, JsonObject *older, const char *ticket)
{
    JsonArray *from[] = { older ? sf_ctl_array(older, "vms") : NULL, sf_ctl_array(newer, "vms") };
    g_autoptr(JsonObject) by_name = json_object_new();
    JsonArray *vms = json_array_new();

    for (guint k = 0; k < G_N_ELEMENTS(from); k++) {
        for (guint i = 0; from[k] && i < json_array_get_length(from[k]); i++) {
            JsonObject *vm = json_array_get_object_element(from[k], i);
            const char *name = sf_ctl_string(vm, "name");
            gboolean ours = name && g_strcmp0(sf_ctl_string(vm, "ticket"), ticket) == 0;
            if (ours && (sf_ctl_int(vm, "private") > 0 || !json_object_has_member(by_name, name))) {
                json_object_set_object_member(by_name, name, json_object_ref(vm));
            }
        }
    }
    g_autoptr(GList) all = json_object_get_values(by_name);
    for (GList *item = all; item; item = item->next) {
        json_array_add_object_element(vms, json_object_ref(json_node_get_object(item->data)));
    }
    JsonObject *usage = json_object_new();
    json_object_set_array_member(usage, "vms", vms);
    return usage;
}

static gboolean ask(SfCtl *ctl, Known *known, const char *id, GError **error)
{
    g_autoptr(JsonObject) status =
        sf_client_call(ctl->client, "ticket.status", sf_ctl_params("ticket", id), SF_CTL_SOON_MS, error);
    if (!status) {
        return FALSE;
    }
    JsonObject *ticket = sf_ctl_object(status, "ticket");
    g_clear_pointer(&known->ticket, json_object_unref);
    known->ticket = ticket ? json_object_ref(ticket) : json_object_new();
    g_autoptr(JsonObject) usage = sf_client_call(ctl->client, "vm.usage", NULL, SF_CTL_SOON_MS, NULL);
    if (usage) {
        JsonObject *merged = merge_usage(usage, known->usage, id);
        g_clear_pointer(&known->usage, json_object_unref);
        known->usage = merged;
    }
    return TRUE;
}

/* The newest ticket's id; with `open`, of those that are not over. NULL without error: there is none. */
static char *newest_ticket(SfCtl *ctl, gboolean open, GError **error)
{
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "ticket.list", NULL, SF_CTL_SOON_MS, error);
    JsonArray *tickets = result ? sf_ctl_array(result, "tickets") : NULL;
    const char *newest = NULL;
    gint64 created = G_MININT64;

    for (guint i = 0; tickets && i < json_array_get_length(tickets); i++) {
        JsonObject *ticket = json_array_get_object_element(tickets, i);
        const char *state = sf_ctl_string(ticket, "state");
        gboolean over = g_strcmp0(state, "done") == 0 || g_strcmp0(state, "failed") == 0;
        if (sf_ctl_int(ticket, "created") >= created && !(open && over)) {
            created = sf_ctl_int(ticket, "created");
            newest = sf_ctl_string(ticket, "ticket");
        }
    }
    return g_strdup(newest);
}

/* ---- A file ---- */

static JsonObject *read_object(const char *path, GError **error)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_autoptr(JsonParser) parser = json_parser_new();
    guint8 chunk[4096];
    gsize n;

    if (!file) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_FAILED, "timeline \"%s\": %s", path, g_strerror(errno));
        return NULL;
    }
    while (bytes->len <= FILE_MAX && (n = fread(chunk, 1, sizeof(chunk), file)) > 0) {
        g_byte_array_append(bytes, chunk, (guint)n);
    }
    if (file != stdin) {
        fclose(file);
    }
    if (bytes->len > FILE_MAX || !json_parser_load_from_data(parser, (const char *)bytes->data, bytes->len, NULL) ||
        !json_parser_get_root(parser) || !JSON_NODE_HOLDS_OBJECT(json_parser_get_root(parser))) {
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_FAILED, "timeline \"%s\": it does not hold one JSON object",
                    path);
        return NULL;
    }
    return json_object_ref(json_node_get_object(json_parser_get_root(parser)));
}

/* {"ticket": TICKET, "usage": {...}}, or TICKET alone. */
static gboolean load(Known *known, const char *path, GError **error)
{
    g_autoptr(JsonObject) object = read_object(path, error);

    if (!object) {
        return FALSE;
    }
    JsonObject *ticket = sf_ctl_object(object, "ticket"), *usage = sf_ctl_object(object, "usage");
    known->ticket = json_object_ref(ticket ? ticket : object);
    known->usage = usage ? json_object_ref(usage) : NULL;
    return TRUE;
}

/* ---- Output ---- */

static gboolean save_svg(const SfTimeline *timeline, GError **error)
{
    g_autofree char *svg = sf_timeline_to_svg(timeline);
    return g_file_set_contents(option_svg, svg, -1, error);
}

static void print_json(const Known *known)
{
    g_autoptr(JsonObject) object = json_object_new();
    json_object_set_object_member(object, "ticket", json_object_ref(known->ticket));
    if (known->usage) {
        json_object_set_object_member(object, "usage", json_object_ref(known->usage));
    }
    sf_ctl_print_json(object);
}

static int show(SfCtl *ctl, const Known *known, const SfTimelineStyle *style, gint64 now)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(SfTimeline) timeline = sf_timeline_new(known->ticket, known->usage, now, &error);

    if (!timeline) {
        return sf_ctl_fail(ctl, "`sfctl clone --ticket TICKET` forks", "%s", error->message);
    }
    if (ctl->json) {
        print_json(known);
    } else {
        g_autofree char *text = sf_timeline_to_text(timeline, style);
        fputs(text, stdout);
    }
    if (option_svg) {
        if (!save_svg(timeline, &error)) {
            return sf_ctl_fail(ctl, NULL, "%s", error->message);
        }
        if (!ctl->json) {
            printf("  saved as %s\n", option_svg);
        }
    }
    return SF_CTL_OK;
}

/* ---- Live ---- */

static guint count_lines(const char *text)
{
    guint n = 0;
    for (; *text; text++) {
        n += *text == '\n';
    }
    return n;
}

/* The most that fits a screen: both panels, else one, else one with fewer rows. Caller frees. */
static char *render_to_fit(const SfTimeline *timeline, const SfTimelineStyle *style, guint height)
{
    SfTimelineStyle own = *style;
    char *text = sf_timeline_to_text(timeline, &own);

    if (count_lines(text) > height) {
        own.one_panel = TRUE;
        g_free(text);
        text = sf_timeline_to_text(timeline, &own);
    }
    guint lines = count_lines(text), rows = MIN(own.rows, timeline->clones->len);
    if (lines > height && rows > 1) {
        guint hidden = lines - height + 1;      /* one more, for the line that counts what is hidden */
        own.rows = rows > hidden ? rows - hidden : 1;
        g_free(text);
        text = sf_timeline_to_text(timeline, &own);
    }
    return text;
}

/* Lines over what stands there, and the keys on the last row; no more than the screen has. */
static void draw_screen(SfCtl *ctl, const Known *known, const SfTimelineStyle *style)
{
    SfTimelineStyle own = *style;
    guint height;

    sf_term_size(&own.width, &height);
    g_autoptr(SfTimeline) timeline = sf_timeline_new(known->ticket, known->usage, sf_ctl_now_ns(ctl), NULL);
    g_autofree char *text = timeline ? render_to_fit(timeline, &own, height - 1) : g_strdup("  waiting for the fork\n");
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    fputs("\033[H", stdout);
    for (guint i = 0; lines[i] && i + 1 < height; i++) {
        printf("%s\033[K\n", lines[i]);
    }
    fputs("\033[J  q quits\033[K", stdout);
    fflush(stdout);
}

static gboolean is_over(const Known *known)
{
    const char *state = known->ticket ? sf_ctl_string(known->ticket, "state") : NULL;
    return g_strcmp0(state, "done") == 0 || g_strcmp0(state, "failed") == 0;
}

/* What an event says of our ticket, into what we know: fork.* and ticket.* have a whole TICKET, clone.* members of one
 * clone. */
static void learn(Known *known, const char *id, const char *name, JsonObject *data)
{
    JsonArray *clones = known->ticket ? sf_ctl_array(known->ticket, "clones") : NULL;

    if (g_strcmp0(sf_ctl_string(data, "ticket"), id) != 0) {
        return;
    }
    if (sf_ctl_object(data, "fork")) {
        g_clear_pointer(&known->ticket, json_object_unref);
        known->ticket = json_object_ref(data);
        return;
    }
    if (!clones || !g_str_has_prefix(name, "clone.")) {
        return;
    }
    static const char *const members[] = {"state",   "status",   "reason", "result_length", "loaded",
                                          "running", "answered", "synced", "exited"};
    for (guint i = 0; i < json_array_get_length(clones); i++) {
        JsonObject *clone = json_array_get_object_element(clones, i);
        for (guint m = 0; sf_ctl_int(clone, "id") == sf_ctl_int(data, "id") && m < G_N_ELEMENTS(members); m++) {
            if (json_object_has_member(data, members[m])) {
                json_object_set_member(clone, members[m], json_object_dup_member(data, members[m]));
            }
        }
    }
}

/* Takes the events that are here. *id: set to the ticket of the first fork seen, when it was not known. */
static gboolean take_events(SfCtl *ctl, Known *known, char **id, int timeout_ms, gboolean *any, GError **error)
{
    for (;; timeout_ms = 0) {
        g_autofree char *name = NULL;
        g_autoptr(JsonObject) data = NULL;
        g_autoptr(GError) inner = NULL;
        if (!sf_client_next_event(ctl->client, timeout_ms, &name, &data, &inner)) {
            if (g_error_matches(inner, SF_CLIENT_ERROR, SF_CLIENT_ERROR_TIMEOUT)) {
                return TRUE;
            }
            g_propagate_error(error, g_steal_pointer(&inner));
            return FALSE;
        }
        *any = TRUE;
        if (!*id && (strcmp(name, "fork.snapshot") == 0 || strcmp(name, "ticket.granted") == 0)) {
            *id = g_strdup(sf_ctl_string(data, "ticket"));
        }
        if (*id) {
            learn(known, *id, name, data);
        }
    }
}

/* TRUE: the person wants to go. */
static gboolean quit_pressed(gboolean screen)
{
    struct pollfd pollfd = {.fd = STDIN_FILENO, .events = POLLIN};
    char key;

    return screen && poll(&pollfd, 1, 0) > 0 && (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q');
}

/* Until the ticket is over, the daemon has forgotten it, or q. */
static gboolean follow(SfCtl *ctl, Known *known, char **id, const SfTimelineStyle *style, gboolean screen,
                       GError **error)
{
    while (!is_over(known) && !quit_pressed(screen)) {
        g_autoptr(GError) inner = NULL;
        gboolean any = FALSE;
        if (*id && !ask(ctl, known, *id, &inner)) {
            if (known->ticket && sf_ctl_error_is(ctl, "no-such-ticket")) {
                return take_events(ctl, known, id, 0, &any, NULL) || TRUE;
            }
            g_propagate_error(error, g_steal_pointer(&inner));
            return FALSE;
        }
        if (screen) {
            draw_screen(ctl, known, style);
        }
        if (!is_over(known) && !take_events(ctl, known, id, LIVE_INTERVAL_MS, &any, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static int run_live(SfCtl *ctl, const char *ticket, const SfTimelineStyle *style)
{
    g_autoptr(GError) error = NULL;
    g_auto(Known) known = {0};
    g_autofree char *id = NULL;
    g_autoptr(JsonObject) subscribed = sf_client_call(ctl->client, "subscribe", NULL, SF_CTL_SOON_MS, &error);

    if (subscribed) {
        id = ticket ? sf_ctl_find_ticket(ctl, ticket, &error) : newest_ticket(ctl, TRUE, &error);
    }
    if (error) {
        return sf_ctl_fail_call(ctl, error);
    }
    gboolean screen = !ctl->json && sf_term_enter(SF_TERM_SCREEN);
    gboolean good = follow(ctl, &known, &id, style, screen, &error);
    sf_term_leave();
    if (!good) {
        return sf_ctl_fail_call(ctl, error);
    }
    return known.ticket ? show(ctl, &known, style, sf_ctl_now_ns(ctl)) : SF_CTL_OK;
}

int sf_ctl_timeline(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_auto(Known) known = {0};
    const char *what = argc > 0 ? argv[0] : NULL;
    gint64 rows = ROWS_DEFAULT;

    if (option_rows && !sf_units_parse_count("--rows", option_rows, 1, ROWS_MAX, &rows, &error)) {
        return sf_ctl_usage("timeline", "timeline: %s", error->message);
    }
    SfTimelineStyle style = {
        .width = ctl->width,
        .rows = (guint)rows,
        .color = ctl->color,
        .unicode = ctl->unicode && !option_ascii,
    };
    gboolean is_file =
        what && (strcmp(what, "-") == 0 || strchr(what, '/') || g_file_test(what, G_FILE_TEST_IS_REGULAR));
    if (option_live) {
        return is_file ? sf_ctl_usage("timeline", "timeline: --live is for tickets, \"%s\" is a file", what)
                       : run_live(ctl, what, &style);
    }
    if (is_file) {
        if (!load(&known, what, &error)) {
            return sf_ctl_fail(ctl, "`sfctl timeline TICKET --json` makes such a file", "%s", error->message);
        }
        return show(ctl, &known, &style, 0);
    }
    g_autofree char *id = what ? sf_ctl_find_ticket(ctl, what, &error) : newest_ticket(ctl, FALSE, &error);
    if (!id && !error) {
        return sf_ctl_fail(ctl, "`sfctl clone VM --count N` forks a VM; --live waits for the next fork",
                           "no ticket is open");
    }
    if (!id || !ask(ctl, &known, id, &error)) {
        return sf_ctl_fail_call(ctl, error);
    }
    return show(ctl, &known, &style, sf_ctl_now_ns(ctl));
}
