/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QEMU is asked over QMP on its standard streams: all questions at once, `quit` as the last. Its answers come in their
 * order, between events that are passed over.
 */
#include "sfvmm/control/facts.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include "sfvmm/wire/json_line.h"

#define TEXT_MAX      128u
#define ANSWER_MAX    (4u << 20) /* bytes of one answer of QEMU */
#define PROBE_SECONDS 60u

static const char questions[] = "{\"execute\":\"qmp_capabilities\"}\n"
                                "{\"execute\":\"query-version\"}\n"
                                "{\"execute\":\"query-machines\"}\n"
                                "{\"execute\":\"query-cpu-definitions\"}\n"
                                "{\"execute\":\"quit\"}\n";

enum { CAPABILITIES, VERSION, MACHINES, CPUS, QUIT, ANSWERS };

typedef struct {
    GSubprocess *process;
    char *accel;
    guint timer;
} Probe;

static void probe_free(gpointer data)
{
    Probe *probe = data;

    g_clear_handle_id(&probe->timer, g_source_remove);
    g_clear_object(&probe->process);
    g_free(probe->accel);
    g_free(probe);
}

/* ---- answers ---- */

/* The member "return" of each answer, in order. */
static GPtrArray *parse_answers(const char *text, gsize length)
{
    g_autoptr(SfJsonLineReader) reader = sf_json_line_reader_new();
    GPtrArray *answers = g_ptr_array_new_with_free_func((GDestroyNotify)json_node_unref);

    sf_json_line_reader_set_max(reader, ANSWER_MAX);
    sf_json_line_reader_push(reader, text, length);
    for (;;) {
        g_autoptr(JsonObject) object = NULL;
        if (!sf_json_line_reader_next(reader, &object, NULL) || !object) {
            return answers;
        }
        if (json_object_has_member(object, "return")) {
            g_ptr_array_add(answers, json_node_copy(json_object_get_member(object, "return")));
        }
    }
}

static char *version_of(JsonNode *answer)
{
    JsonObject *object = JSON_NODE_HOLDS_OBJECT(answer) ? json_node_get_object(answer) : NULL;
    JsonNode *node = object ? json_object_get_member(object, "qemu") : NULL;
    JsonObject *qemu = node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;

    return qemu ? g_strdup_printf("%" G_GINT64_FORMAT ".%" G_GINT64_FORMAT ".%" G_GINT64_FORMAT,
                                  json_object_get_int_member_with_default(qemu, "major", 0),
                                  json_object_get_int_member_with_default(qemu, "minor", 0),
                                  json_object_get_int_member_with_default(qemu, "micro", 0))
                : NULL;
}

/* The names in an array of objects; with `missing`, of those whose array of that name is there and empty. */
static JsonArray *names_of(JsonNode *answer, const char *missing)
{
    JsonArray *from = JSON_NODE_HOLDS_ARRAY(answer) ? json_node_get_array(answer) : NULL, *names = json_array_new();

    for (guint i = 0; from && i < json_array_get_length(from); i++) {
        JsonNode *node = json_array_get_element(from, i), *list = NULL;
        JsonObject *object = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
        const char *name = object ? sf_facts_text(object, "name") : NULL;
        if (!name) {
            continue;
        }
        list = missing ? json_object_get_member(object, missing) : NULL;
        if (!missing ||
            (list && JSON_NODE_HOLDS_ARRAY(list) && json_array_get_length(json_node_get_array(list)) == 0)) {
            json_array_add_string_element(names, name);
        }
    }
    return names;
}

/* ---- the CPU ---- */

/* The value behind the first "key : " of /proc/cpuinfo. Caller frees; NULL: none. */
static char *cpuinfo_value(const char *text, const char *key)
{
    g_autofree char *pattern = g_strdup_printf("^%s\\s*:\\s*(.*)$", key);
    g_autoptr(GRegex) regex = g_regex_new(pattern, G_REGEX_MULTILINE, 0, NULL);
    g_autoptr(GMatchInfo) match = NULL;

    return g_regex_match(regex, text, 0, &match) ? g_match_info_fetch(match, 1) : NULL;
}

static void add_cpu(JsonObject *facts)
{
    g_autofree char *text = NULL, *vendor = NULL, *flags = NULL;
    JsonArray *array = json_array_new();
    g_auto(GStrv) words = NULL;

    if (g_file_get_contents("/proc/cpuinfo", &text, NULL, NULL)) {
        vendor = cpuinfo_value(text, "vendor_id");
        flags = cpuinfo_value(text, "flags");
    }
    words = g_strsplit(flags ? flags : "", " ", -1);
    for (char **word = words; *word; word++) {
        if (**word) {
            json_array_add_string_element(array, *word);
        }
    }
    json_object_set_string_member(facts, "cpu_vendor", vendor ? vendor : "");
    json_object_set_array_member(facts, "cpu_flags", array);
}

/* ---- the probe ---- */

static gboolean on_probe_timeout(gpointer data)
{
    Probe *probe = data;

    probe->timer = 0;
    g_subprocess_force_exit(probe->process);
    return G_SOURCE_REMOVE;
}

static void on_answered(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    Probe *probe = g_task_get_task_data(task);
    g_autoptr(GBytes) out = NULL;
    g_autoptr(GPtrArray) answers = NULL;
    g_autofree char *version = NULL;
    GError *error = NULL;
    JsonObject *facts;

    if (!g_subprocess_communicate_finish(G_SUBPROCESS(source), result, &out, NULL, &error)) {
        g_task_return_error(task, error);
        return;
    }
    answers = parse_answers(g_bytes_get_data(out, NULL), g_bytes_get_size(out));
    version = answers->len == ANSWERS ? version_of(g_ptr_array_index(answers, VERSION)) : NULL;
    if (!version) {
        g_task_return_new_error(task, G_IO_ERROR, G_IO_ERROR_FAILED,
                                "QEMU did not answer what it is; other hosts can't use this one");
        return;
    }
    facts = json_object_new();
    json_object_set_string_member(facts, "qemu_version", version);
    json_object_set_string_member(facts, "accel", probe->accel);
    json_object_set_array_member(facts, "machine_types", names_of(g_ptr_array_index(answers, MACHINES), NULL));
    json_object_set_array_member(facts, "cpu_models",
                                 names_of(g_ptr_array_index(answers, CPUS), "unavailable-features"));
    add_cpu(facts);
    g_task_return_pointer(task, facts, (GDestroyNotify)json_object_unref);
}

/* In the child. It has no guest and reads nothing but our questions, so it may keep our rights; but not outlive us. */
static void end_with_us(gpointer data)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

void sf_facts_probe_async(SfLauncher *launcher, GAsyncReadyCallback callback, gpointer data)
{
    g_autoptr(GTask) task = g_task_new(NULL, NULL, callback, data);
    g_autoptr(GBytes) input = g_bytes_new_static(questions, strlen(questions));
    g_autoptr(GSubprocessLauncher) child = NULL;
    const SfLauncherOptions *options = sf_launcher_options(launcher);
    Probe *probe = g_new0(Probe, 1);
    GError *error = NULL;

    g_task_set_task_data(task, probe, probe_free);
    probe->accel = g_strdup(sf_launcher_best_accel(launcher, NULL));
    child = g_subprocess_launcher_new(G_SUBPROCESS_FLAGS_STDIN_PIPE | G_SUBPROCESS_FLAGS_STDOUT_PIPE |
                                      G_SUBPROCESS_FLAGS_STDERR_SILENCE);
    g_subprocess_launcher_set_child_setup(child, end_with_us, NULL, NULL);
    probe->process =
        g_subprocess_launcher_spawn(child, &error, options->qemu, "-nodefaults", "-no-user-config", "-display", "none",
                                    "-machine", "none", "-accel", probe->accel, "-qmp", "stdio", NULL);
    if (!probe->process) {
        g_task_return_error(task, error);
        return;
    }
    probe->timer = g_timeout_add_seconds(PROBE_SECONDS, on_probe_timeout, probe);
    g_subprocess_communicate_async(probe->process, input, NULL, on_answered, g_steal_pointer(&task));
}

JsonObject *sf_facts_probe_finish(GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

/* ---- reading facts ---- */

static JsonNode *value_of(JsonObject *facts, const char *member, GType type)
{
    JsonNode *node = facts ? json_object_get_member(facts, member) : NULL;

    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == type ? node : NULL;
}

const char *sf_facts_text(JsonObject *facts, const char *member)
{
    JsonNode *node = value_of(facts, member, G_TYPE_STRING);
    const char *text = node ? json_node_get_string(node) : NULL;

    return text && strlen(text) <= TEXT_MAX ? text : NULL;
}

gint64 sf_facts_integer(JsonObject *facts, const char *member)
{
    JsonNode *node = value_of(facts, member, G_TYPE_INT64);

    return node ? json_node_get_int(node) : 0;
}

gboolean sf_facts_flag(JsonObject *facts, const char *member)
{
    JsonNode *node = value_of(facts, member, G_TYPE_BOOLEAN);

    return node && json_node_get_boolean(node);
}

JsonArray *sf_facts_list(JsonObject *facts, const char *member)
{
    JsonNode *node = facts ? json_object_get_member(facts, member) : NULL;
    JsonArray *from = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL, *list = json_array_new();

    for (guint i = 0; from && i < MIN(json_array_get_length(from), SF_FACTS_LIST_MAX); i++) {
        JsonNode *item = json_array_get_element(from, i);
        if (JSON_NODE_HOLDS_VALUE(item) && json_node_get_value_type(item) == G_TYPE_STRING &&
            strlen(json_node_get_string(item)) <= TEXT_MAX) {
            json_array_add_string_element(list, json_node_get_string(item));
        }
    }
    return list;
}

gboolean sf_facts_has(JsonObject *facts, const char *member, const char *text)
{
    g_autoptr(JsonArray) list = sf_facts_list(facts, member);

    for (guint i = 0; i < json_array_get_length(list); i++) {
        if (strcmp(json_array_get_string_element(list, i), text) == 0) {
            return TRUE;
        }
    }
    return FALSE;
}
