/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the commands of sfctl share: errors, calls, output. */
#include "sfvmm/cli/cli.h"
#include "sfvmm/client/domain.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sfvmm/cli/units.h"

#define PROGRESS_INTERVAL_MS   200u
#define PROGRESS_AFTER_MS      600u       /* what is faster needs no progress */

static gboolean progress_shown;

void sf_ctl_progress_clear(void)
{
    if (progress_shown) {
        fputs("\r\033[K", stderr);
        progress_shown = FALSE;
    }
}

static void print_failure(const char *message, const char *hint)
{
    g_autofree char *clean = sf_text_harmless(message);

    sf_ctl_progress_clear();
    fflush(stdout);
    fprintf(stderr, "sfctl: %s\n", clean);
    if (hint && *hint) {
        g_autofree char *clean_hint = sf_text_harmless(hint);
        fprintf(stderr, "       hint: %s\n", clean_hint);
    }
}

static void print_failure_json(const char *code, const char *message, const char *hint)
{
    g_autoptr(JsonObject) object = json_object_new();
    JsonObject *failure = json_object_new();

    json_object_set_string_member(failure, "code", code);
    json_object_set_string_member(failure, "message", message);
    if (hint) {
        json_object_set_string_member(failure, "hint", hint);
    }
    json_object_set_object_member(object, "error", failure);
    sf_ctl_print_json(object);
}

int sf_ctl_fail(SfCtl *ctl, const char *hint, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *message = g_strdup_vprintf(format, args);
    va_end(args);
    print_failure(message, hint);
    if (ctl->json) {
        print_failure_json("failed", message, hint);
    }
    return SF_CTL_ERROR;
}

int sf_ctl_usage(const char *command, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *message = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *hint = command ? g_strdup_printf("`sfctl help %s` shows how", command)
                                    : g_strdup("`sfctl help` shows the commands");
    print_failure(message, hint);
    return SF_CTL_USAGE;
}

gboolean sf_ctl_is_local(SfCtl *ctl, const char *what)
{
    if (!sf_client_is_remote(ctl->client)) {
        return TRUE;
    }
    sf_ctl_fail(ctl, "run it on that host, by ssh perhaps",
                "%s: it uses files of the host of sfvmmd, and %s is another", what, sf_client_socket(ctl->client));
    return FALSE;
}

gint64 sf_ctl_now_ns(SfCtl *ctl)
{
    if (!ctl->clock_known && sf_client_is_remote(ctl->client)) {
        g_autoptr(JsonObject) status = sf_client_call(ctl->client, "daemon.status", NULL, SF_CTL_SOON_MS, NULL);
        ctl->clock_ahead = status ? sf_ctl_int(status, "monotonic") - g_get_monotonic_time() * 1000 : 0;
    }
    ctl->clock_known = TRUE;
    return g_get_monotonic_time() * 1000 + ctl->clock_ahead;
}

int sf_ctl_fail_call(SfCtl *ctl, const GError *error)
{
    const char *code = sf_client_error_code(ctl->client);
    const char *hint = sf_client_error_hint(ctl->client);

    print_failure(error->message, hint);
    if (ctl->json) {
        print_failure_json(code ? code : "failed", error->message, hint);
    }
    return SF_CTL_ERROR;
}

gboolean sf_ctl_error_is(const SfCtl *ctl, const char *code)
{
    return g_strcmp0(sf_client_error_code(ctl->client), code) == 0;
}

static gboolean show_progress(guint waited_ms, gpointer data)
{
    if (waited_ms >= PROGRESS_AFTER_MS) {
        g_autofree char *age = sf_units_format_age_ms(waited_ms);
        fprintf(stderr, "\r\033[K%s ... %s", (const char *)data, age);
        fflush(stderr);
        progress_shown = TRUE;
    }
    return TRUE;
}

/* what: harmless, until progress_end(). */
static void progress_begin(SfCtl *ctl, char *what)
{
    if (isatty(STDERR_FILENO) && g_strcmp0(g_getenv("TERM"), "dumb") != 0) {
        sf_client_set_tick(ctl->client, show_progress, PROGRESS_INTERVAL_MS, what);
    }
}

static void progress_end(SfCtl *ctl)
{
    sf_client_set_tick(ctl->client, NULL, 0, NULL);
    sf_ctl_progress_clear();
}

JsonObject *sf_ctl_call_patiently(SfCtl *ctl, const char *what, const char *method, JsonObject *params, int timeout_ms,
                                  GError **error)
{
    g_autofree char *clean = sf_text_harmless(what);

    progress_begin(ctl, clean);
    JsonObject *result = sf_client_call(ctl->client, method, params, timeout_ms, error);
    progress_end(ctl);
    return result;
}

JsonObject *sf_ctl_clone_patiently(SfCtl *ctl, const char *what, JsonObject *params, GError **error)
{
    g_autofree char *clean = sf_text_harmless(what);

    progress_begin(ctl, clean);
    JsonObject *result = sf_client_clone(ctl->client, params, NULL, error);
    progress_end(ctl);
    return result;
}

void sf_ctl_print(const char *text)
{
    g_autofree char *clean = sf_text_harmless(text ? text : "?");
    puts(clean);
}

void sf_ctl_print_json(JsonObject *object)
{
    g_autoptr(JsonNode) root = json_node_init_object(json_node_alloc(), object);
    g_autofree char *text = json_to_string(root, FALSE);
    puts(text);
    fflush(stdout);
}

void sf_ctl_print_table(const SfCtl *ctl, const SfTable *table)
{
    g_autofree char *text = sf_table_to_text(table, ctl->width, ctl->color);
    fputs(text, stdout);
}

JsonObject *sf_ctl_params(const char *member, const char *value)
{
    JsonObject *params = json_object_new();
    json_object_set_string_member(params, member, value);
    return params;
}

gboolean sf_ctl_looks_like_ticket(const char *text)
{
    gsize length = strlen(text);
    return length >= SF_CTL_TICKET_PREFIX_MIN && length <= SF_CTL_TICKET_LENGTH &&
           strspn(text, "0123456789abcdef") == length;
}

char *sf_ctl_find_ticket(SfCtl *ctl, const char *text, GError **error)
{
    g_autofree char *found = NULL;

    if (strlen(text) == SF_CTL_TICKET_LENGTH || !sf_ctl_looks_like_ticket(text)) {
        return g_strdup(text);      /* as it is: the daemon says what is wrong with it */
    }
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "ticket.list", NULL, SF_CTL_SOON_MS, error);
    if (!result) {
        return NULL;
    }
    JsonArray *tickets = sf_ctl_array(result, "tickets");
    for (guint i = 0; tickets && i < json_array_get_length(tickets); i++) {
        const char *id = sf_ctl_string(json_array_get_object_element(tickets, i), "ticket");
        if (!id || !g_str_has_prefix(id, text)) {
            continue;
        }
        if (found) {
            g_set_error(error, SF_CLIENT_ERROR, SF_CLIENT_ERROR_REPLY, "ticket \"%s\": several start so, %s and %s",
                        text, found, id);
            return NULL;
        }
        found = g_strdup(id);
    }
    return found ? g_steal_pointer(&found) : g_strdup(text);
}

const char *sf_ctl_string(JsonObject *object, const char *member)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;
    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_STRING
               ? json_node_get_string(node)
               : NULL;
}

gint64 sf_ctl_int(JsonObject *object, const char *member)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;
    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) != G_TYPE_STRING
               ? json_node_get_int(node)
               : 0;
}

gboolean sf_ctl_bool(JsonObject *object, const char *member)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;
    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_BOOLEAN &&
           json_node_get_boolean(node);
}

JsonObject *sf_ctl_object(JsonObject *object, const char *member)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;
    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

JsonArray *sf_ctl_array(JsonObject *object, const char *member)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        if (!JSON_NODE_HOLDS_OBJECT(json_array_get_element(array, i))) {
            return NULL;
        }
    }
    return array;
}

SfStyle sf_ctl_state_style(const char *state)
{
    static const struct {
        const char *state;
        SfStyle style;
    } styles[] = {
        { "running", SF_STYLE_GREEN }, { "done", SF_STYLE_GREEN },    { "exited", SF_STYLE_BLUE },
        { "starting", SF_STYLE_CYAN }, { "forking", SF_STYLE_CYAN },  { "granted", SF_STYLE_CYAN },
        { "placing", SF_STYLE_CYAN },  { "paused", SF_STYLE_YELLOW }, { "killed", SF_STYLE_YELLOW },
        { "failed", SF_STYLE_RED },    { "lost", SF_STYLE_RED },      { "gone", SF_STYLE_DIM },
        { "revoked", SF_STYLE_RED },
    };
    for (guint i = 0; state && i < G_N_ELEMENTS(styles); i++) {
        if (strcmp(state, styles[i].state) == 0) {
            return styles[i].style;
        }
    }
    return SF_STYLE_PLAIN;
}
