/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The group "Forking": tickets, clones, their results, their end. */
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/units.h"
#include "sfvmm/cli/view.h"

#define COUNT_MAX       1024                       /* clones of one ticket: SF_GP_MAX_CLONES */
#define RESULT_PIECE    (512 * 1024)               /* bytes that one `result` call returns at most */
#define RESULT_MAX      (G_GINT64_CONSTANT(64) << 20)   /* bytes that a clone may hand back */

static char *option_avoid, *option_count, *option_timeout, *option_ticket, *option_results, *option_queue;
static gboolean option_no_wait, option_all, option_quiet, option_keep, option_check;

static const GOptionEntry clone_options[] = {
    { "count", 'n', 0, G_OPTION_ARG_STRING, &option_count, "How many clones (default 1)", "N" },
    { "ticket", 0, 0, G_OPTION_ARG_STRING, &option_ticket, "Use a ticket of `sfctl ticket` instead of VM and --count",
      "TICKET" },
    { "avoid", 0, 0, G_OPTION_ARG_STRING, &option_avoid,
      "What clones on other hosts need not fetch: all, none, free, read (default: avoid= in sfvmmd.conf)", "WHAT" },
    { "queue", 0, 0, G_OPTION_ARG_STRING, &option_queue, "Wait at most so long for room, if there is none", "TIME" },
    { "timeout", 't', 0, G_OPTION_ARG_STRING, &option_timeout, "Fail when it takes longer", "TIME" },
    { "no-wait", 0, 0, G_OPTION_ARG_NONE, &option_no_wait, "Return when the clones run; don't wait for their agents",
      NULL },
    { "quiet", 'q', 0, G_OPTION_ARG_NONE, &option_quiet, "Print only the ticket", NULL },
    { NULL },
};

static const GOptionEntry ticket_options[] = {
    { "all", 0, 0, G_OPTION_ARG_NONE, &option_all, "All N or an error, not fewer", NULL },
    { "queue", 0, 0, G_OPTION_ARG_STRING, &option_queue, "Wait at most so long for room, if there is none", "TIME" },
    { "quiet", 'q', 0, G_OPTION_ARG_NONE, &option_quiet, "Print only the ticket", NULL },
    { NULL },
};

static const GOptionEntry tickets_options[] = {
    {"quiet", 'q', 0, G_OPTION_ARG_NONE, &option_quiet, "Only the tickets, one a line", NULL},
    {NULL},
};

static const GOptionEntry complete_options[] = {
    {"timeout", 't', 0, G_OPTION_ARG_STRING, &option_timeout, "Wait at most so long; the fetching goes on", "TIME"},
    {NULL},
};

static const GOptionEntry join_options[] = {
    {"timeout", 't', 0, G_OPTION_ARG_STRING, &option_timeout, "Wait at most so long", "TIME"},
    {"results", 'r', 0, G_OPTION_ARG_FILENAME, &option_results, "Save each clone's result as DIR/ID", "DIR"},
    {"keep", 0, 0, G_OPTION_ARG_NONE, &option_keep, "Keep ticket and results for later", NULL},
    {"check", 0, 0, G_OPTION_ARG_NONE, &option_check, "Exit status 1 unless every clone ended with status 0", NULL},
    {NULL},
};

/* --timeout in ms, or SF_CTL_NO_LIMIT. FALSE: wrong, and said so. */
static gboolean get_timeout(const char *command, int *timeout)
{
    g_autoptr(GError) error = NULL;

    *timeout = SF_CTL_NO_LIMIT;
    if (option_timeout && !sf_units_parse_duration("--timeout", option_timeout, timeout, &error)) {
        sf_ctl_usage(command, "%s: %s", command, error->message);
        return FALSE;
    }
    return TRUE;
}

static void set_timeout(JsonObject *params, int timeout)
{
    if (timeout != SF_CTL_NO_LIMIT) {
        json_object_set_int_member(params, "timeout_ms", timeout);
    }
}

/* --queue, into the params of a request for a ticket. FALSE: wrong, and said so. */
static gboolean set_queue(const char *command, JsonObject *params)
{
    g_autoptr(GError) error = NULL;
    int queue;

    if (!option_queue) {
        return TRUE;
    }
    if (!sf_units_parse_duration("--queue", option_queue, &queue, &error)) {
        sf_ctl_usage(command, "%s: %s", command, error->message);
        return FALSE;
    }
    json_object_set_int_member(params, "queue_ms", queue);
    return TRUE;
}

/* Fewer than asked is no error, but nothing that should go unnoticed. */
static void note_fewer(const SfCtl *ctl, JsonObject *result, gint64 asked)
{
    gint64 granted = sf_ctl_int(sf_ctl_object(result, "ticket"), "granted");

    if (!ctl->json && granted < asked) {
        fprintf(stderr, "sfctl: note: %" G_GINT64_FORMAT " of %" G_GINT64_FORMAT " clones were granted\n", granted,
                asked);
        fputs("       hint: `sfctl daemon` shows the limits\n", stderr);
    }
}

static int run_clone(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) params = json_object_new();
    g_autofree char *ticket = NULL;
    g_autofree char *what = NULL;
    gint64 count = 1;
    int timeout;

    if ((argc == 1) == (option_ticket != NULL)) {
        return sf_ctl_usage("clone", "clone: give a VM, or --ticket TICKET");
    }
    if (option_ticket && (option_count || option_queue)) {
        return sf_ctl_usage("clone", "clone: --count or --queue and --ticket: the ticket has been granted");
    }
    if (option_count && !sf_units_parse_count("--count", option_count, 1, COUNT_MAX, &count, &error)) {
        return sf_ctl_usage("clone", "clone: %s", error->message);
    }
    if (!get_timeout("clone", &timeout) || !set_queue("clone", params)) {
        return SF_CTL_USAGE;
    }
    set_timeout(params, timeout);
    if (option_avoid) {
        json_object_set_string_member(params, "avoid", option_avoid);
    }
    if (option_ticket) {
        ticket = sf_ctl_find_ticket(ctl, option_ticket, &error);
        if (!ticket) {
            return sf_ctl_fail_call(ctl, error);
        }
        json_object_set_string_member(params, "ticket", ticket);
        what = g_strdup("the clones start");
    } else {
        json_object_set_string_member(params, "vm", argv[0]);
        json_object_set_int_member(params, "count", count);
        what = g_strdup_printf("VM \"%s\" forks into %" G_GINT64_FORMAT, argv[0], count);
    }
    if (option_no_wait) {
        json_object_set_string_member(params, "wait", "resumed");
    }
    g_autoptr(JsonObject) result =
        option_ticket ? sf_ctl_call_patiently(ctl, what, "clone", g_steal_pointer(&params), SF_CTL_NO_LIMIT, &error)
                      : sf_ctl_clone_patiently(ctl, what, g_steal_pointer(&params), &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (!option_ticket) {
        note_fewer(ctl, result, count);
    }
    sf_view_ticket_of(ctl, result, option_quiet);
    return SF_CTL_OK;
}

static int run_ticket(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    gint64 count;

    if (!sf_units_parse_count("N", argv[1], 1, COUNT_MAX, &count, &error)) {
        return sf_ctl_usage("ticket", "ticket: %s", error->message);
    }
    g_autoptr(JsonObject) params = sf_ctl_params("vm", argv[0]);
    json_object_set_int_member(params, "count", count);
    if (option_all) {
        json_object_set_boolean_member(params, "all", TRUE);
    }
    if (!set_queue("ticket", params)) {
        return SF_CTL_USAGE;
    }
    g_autofree char *what = g_strdup_printf("VM \"%s\" waits for room", argv[0]);
    g_autoptr(JsonObject) result = sf_ctl_call_patiently(ctl, what, "ticket.request", g_steal_pointer(&params),
                                                         option_queue ? SF_CTL_NO_LIMIT : SF_CTL_SOON_MS, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    note_fewer(ctl, result, count);
    sf_view_ticket_of(ctl, result, option_quiet);
    return SF_CTL_OK;
}

static int run_tickets(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "ticket.list", NULL, SF_CTL_SOON_MS, &error);

    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    JsonArray *tickets = sf_ctl_array(result, "tickets");
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else if (option_quiet) {
        for (guint i = 0; tickets && i < json_array_get_length(tickets); i++) {
            sf_ctl_print(sf_ctl_string(json_array_get_object_element(tickets, i), "ticket"));
        }
    } else {
        sf_view_ticket_list(ctl, tickets);
    }
    return SF_CTL_OK;
}

/* ---- join ---- */

static int save_failed(SfCtl *ctl, const char *path, int error_number)
{
    return sf_ctl_fail(ctl, "the ticket and its results are kept: join again, with another DIR", "result \"%s\": %s",
                       path, g_strerror(error_number));
}

/* One clone's result, piece by piece, into an open file. */
static int copy_result(SfCtl *ctl, const char *ticket, gint64 id, gint64 length, FILE *file, const char *path)
{
    for (gint64 offset = 0; offset < length;) {
        g_autoptr(GError) error = NULL;
        JsonObject *params = sf_ctl_params("ticket", ticket);
        json_object_set_int_member(params, "id", id);
        json_object_set_int_member(params, "offset", offset);
        json_object_set_int_member(params, "length", MIN(length - offset, RESULT_PIECE));
        g_autoptr(JsonObject) result = sf_client_call(ctl->client, "result", params, SF_CTL_SOON_MS, &error);
        if (!result) {
            return sf_ctl_fail_call(ctl, error);
        }
        gsize n = 0;
        g_autofree guchar *bytes =
            g_base64_decode(sf_ctl_string(result, "data") ? sf_ctl_string(result, "data") : "", &n);
        if (n == 0 || n > RESULT_PIECE || (gint64)n > length - offset) {
            return sf_ctl_fail(ctl, NULL,
                               "result of clone %" G_GINT64_FORMAT ": sfvmmd gave %zu bytes at %" G_GINT64_FORMAT
                               " of %" G_GINT64_FORMAT,
                               id, n, offset, length);
        }
        if (fwrite(bytes, 1, n, file) != n) {
            return save_failed(ctl, path, errno);
        }
        offset += (gint64)n;
    }
    return SF_CTL_OK;
}

/* DIR/ID: written as DIR/.ID.part first, so that a file with the final name is whole. */
static int save_result(SfCtl *ctl, const char *ticket, JsonObject *clone)
{
    gint64 id = sf_ctl_int(clone, "id"), length = sf_ctl_int(clone, "result_length");
    g_autofree char *path = g_strdup_printf("%s/%" G_GINT64_FORMAT, option_results, id);
    g_autofree char *part = g_strdup_printf("%s/.%" G_GINT64_FORMAT ".part", option_results, id);

    if (length < 0 || length > RESULT_MAX) {
        return sf_ctl_fail(ctl, NULL, "result of clone %" G_GINT64_FORMAT ": a length of %" G_GINT64_FORMAT
                           " bytes can't be", id, length);
    }
    FILE *file = fopen(part, "we");
    if (!file) {
        return save_failed(ctl, part, errno);
    }
    int code = copy_result(ctl, ticket, id, length, file, path);
    if (fclose(file) != 0 && code == SF_CTL_OK) {
        code = save_failed(ctl, path, errno);
    }
    if (code == SF_CTL_OK && rename(part, path) != 0) {
        code = save_failed(ctl, path, errno);
    }
    if (code != SF_CTL_OK) {
        unlink(part);
    }
    return code;
}

static int save_results(SfCtl *ctl, const char *id, JsonObject *ticket)
{
    JsonArray *clones = sf_ctl_array(ticket, "clones");

    if (g_mkdir_with_parents(option_results, 0777) != 0) {
        return save_failed(ctl, option_results, errno);
    }
    for (guint i = 0; clones && i < json_array_get_length(clones); i++) {
        JsonObject *clone = json_array_get_object_element(clones, i);
        if (g_strcmp0(sf_ctl_string(clone, "state"), "exited") == 0) {
            int code = save_result(ctl, id, clone);
            if (code != SF_CTL_OK) {
                return code;
            }
        }
    }
    return SF_CTL_OK;
}

static gboolean all_succeeded(JsonObject *ticket)
{
    JsonArray *clones = sf_ctl_array(ticket, "clones");

    for (guint i = 0; clones && i < json_array_get_length(clones); i++) {
        JsonObject *clone = json_array_get_object_element(clones, i);
        if (g_strcmp0(sf_ctl_string(clone, "state"), "exited") != 0 || sf_ctl_int(clone, "status") != 0) {
            return FALSE;
        }
    }
    return clones != NULL;
}

static JsonObject *join_params(const char *ticket, gboolean release)
{
    JsonObject *params = sf_ctl_params("ticket", ticket);
    if (!release) {
        json_object_set_boolean_member(params, "release", FALSE);
    }
    return params;
}

/* With --results the ticket is released by a second join, when all of them are safely in their files. */
static int run_join(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    int timeout;

    if (!get_timeout("join", &timeout)) {
        return SF_CTL_USAGE;
    }
    g_autofree char *id = sf_ctl_find_ticket(ctl, argv[0], &error);
    if (!id) {
        return sf_ctl_fail_call(ctl, error);
    }
    JsonObject *params = join_params(id, !option_keep && !option_results);
    set_timeout(params, timeout);
    g_autofree char *what = g_strdup_printf("ticket %s: clones work", id);
    g_autoptr(JsonObject) result = sf_ctl_call_patiently(ctl, what, "join", params, SF_CTL_NO_LIMIT, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    JsonObject *ticket = sf_ctl_object(result, "ticket");
    if (option_results) {
        int code = save_results(ctl, id, ticket);
        if (code != SF_CTL_OK) {
            return code;
        }
        if (!option_keep) {
            g_autoptr(JsonObject) released = sf_client_call(ctl->client, "join", join_params(id, TRUE), SF_CTL_SOON_MS,
                                                            &error);
            if (!released) {
                return sf_ctl_fail_call(ctl, error);
            }
        }
    }
    sf_view_ticket_of(ctl, result, option_quiet);
    return option_check && !all_succeeded(ticket) ? SF_CTL_ERROR : SF_CTL_OK;
}

static int run_kill(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result =
        sf_client_call(ctl->client, "kill", sf_ctl_params("vm", argv[0]), SF_CTL_SOON_MS, &error);

    if (!result && sf_ctl_error_is(ctl, "no-such-vm") && sf_ctl_looks_like_ticket(argv[0])) {
        g_clear_error(&error);
        g_autofree char *id = sf_ctl_find_ticket(ctl, argv[0], &error);
        result = id ? sf_client_call(ctl->client, "kill", sf_ctl_params("ticket", id), SF_CTL_SOON_MS, &error) : NULL;
    }
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        printf("%" G_GINT64_FORMAT " killed\n", sf_ctl_int(result, "killed"));
    }
    return SF_CTL_OK;
}

static const char clone_help[] =
    "The VM goes on after a pause of some milliseconds; the clones go on from the same instant. With an agent in the\n"
    "guest, the command returns when every clone has got its identity; without, when the clones run.\n"
    "\n"
    "Examples:\n"
    "  sfctl clone web --count 8\n"
    "  sfctl join $(sfctl clone web -n 8 -q) --results out/";

static int run_complete(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    int timeout;

    if (!get_timeout("complete", &timeout)) {
        return SF_CTL_USAGE;
    }
    g_autofree char *id = sf_ctl_find_ticket(ctl, argv[0], &error);
    JsonObject *params = id ? sf_ctl_params("ticket", id) : NULL;
    if (params && timeout != SF_CTL_NO_LIMIT) {
        json_object_set_int_member(params, "timeout_ms", timeout);
    }
    g_autofree char *what = g_strdup_printf("memory of the clones of ticket %s", argv[0]);
    g_autoptr(JsonObject) result =
        params ? sf_ctl_call_patiently(ctl, what, "complete", params, SF_CTL_NO_LIMIT, &error) : NULL;
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        puts("Its clones have all of their memory where they run.");
    }
    return SF_CTL_OK;
}

const SfCtlCommand sf_ctl_fork_commands[] = {
    { "complete", "TICKET", "Fetch all memory of clones on other hosts, so that they need this host no more",
      "Returns when it is there. Their disks are still read from this host.", complete_options, 1, 1, run_complete,
      "ticket" },
    { "clone", "VM --count N", "Fork a running VM", clone_help, clone_options, 0, 1, run_clone, "vm" },
    { "join", "TICKET", "Wait until all clones of a ticket have ended; show statuses, save results",
      "A ticket may be shortened to its first digits, at least 4. When the clones have ended, the ticket is\n"
      "forgotten, unless --keep is given.",
      join_options, 1, 1, run_join, "ticket" },
    { "kill", "VM|TICKET", "End a VM, a clone, or all clones of a ticket, at once", NULL, NULL, 1, 1, run_kill,
      "vm ticket" },
    { "ticket", "VM N", "Reserve room for N clones, to fork later with `clone --ticket`", NULL, ticket_options, 2, 2,
      run_ticket, "vm" },
    { "tickets", "", "List tickets and the states of their clones", NULL, tickets_options, 0, 0, run_tickets, NULL },
    { NULL },
};
