/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What another host says of a clone: what is taken, and what is refused. */
#include <string.h>

#include "sfvmm/fork/remote.h"

static const char good[] = "{\"id\": 7, \"state\": \"exited\", \"status\": -3, \"reason\": \"\", \"result_length\": 5,"
                           " \"loaded\": 10, \"running\": 11, \"answered\": 12, \"synced\": 13, \"exited\": 14}";

static JsonObject *parse(const char *text)
{
    g_autoptr(JsonParser) parser = json_parser_new();

    g_assert_true(json_parser_load_from_data(parser, text, -1, NULL));
    return json_object_ref(json_node_get_object(json_parser_get_root(parser)));
}

static void test_good(void)
{
    g_autoptr(JsonObject) object = parse(good);
    SfCloneReport report;
    GError *error = NULL;

    g_assert_true(sf_clone_report_parse(object, &report, &error));
    g_assert_no_error(error);
    g_assert_cmpuint(report.id, ==, 7);
    g_assert_cmpuint(report.state, ==, SF_GP_STATE_EXITED);
    g_assert_cmpint(report.status, ==, -3);
    g_assert_null(report.reason);
    g_assert_cmpuint(report.result_length, ==, 5);
    g_assert_cmpint(report.loaded, ==, 10);
    g_assert_cmpint(report.running, ==, 11);
    g_assert_cmpint(report.answered, ==, 12);
    g_assert_cmpint(report.synced, ==, 13);
    g_assert_cmpint(report.exited, ==, 14);
}

/* A member that is missing, of another type, or out of bounds; the error names it. */
static void test_bad(void)
{
    static const struct {
        const char *member, *value; /* NULL: without it */
    } cases[] = {
        { "id", NULL },
        { "id", "0" },
        { "id", "1025" },
        { "id", "\"7\"" },
        { "state", NULL },
        { "state", "7" },
        { "state", "null" },
        { "status", "2147483648" },
        { "reason", NULL },
        { "reason", "{}" },
        { "reason", "\"a\\u001bb\"" },
        { "result_length", "-1" },
        { "result_length", "67108865" },
        { "loaded", "-1" },
        { "running", "1.5" },
        { "answered", "[]" },
        { "exited", "9223372036854775807" },
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(JsonObject) object = parse(good);
        g_autoptr(GError) error = NULL;
        SfCloneReport report;

        json_object_remove_member(object, cases[i].member);
        if (cases[i].value) {
            g_autofree char *text = g_strdup_printf("{\"x\": %s}", cases[i].value);
            g_autoptr(JsonObject) value = parse(text);
            json_object_set_member(object, cases[i].member, json_node_copy(json_object_get_member(value, "x")));
        }
        g_assert_false(sf_clone_report_parse(object, &report, &error));
        g_assert_nonnull(error);
        g_assert_nonnull(strstr(error->message, cases[i].member));
    }
}

static void test_unknown_state(void)
{
    g_autoptr(JsonObject) object = parse(good);
    g_autoptr(GError) error = NULL;
    SfCloneReport report;

    json_object_set_string_member(object, "state", "sleeping");
    g_assert_false(sf_clone_report_parse(object, &report, &error));
    g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
}

static void test_long_reason(void)
{
    g_autoptr(JsonObject) object = parse(good);
    g_autofree char *text = g_strnfill(5000, 'x');
    SfCloneReport report;

    json_object_set_string_member(object, "reason", text);
    g_assert_false(sf_clone_report_parse(object, &report, NULL));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/report/good", test_good);
    g_test_add_func("/report/bad", test_bad);
    g_test_add_func("/report/unknown-state", test_unknown_state);
    g_test_add_func("/report/long-reason", test_long_reason);
    return g_test_run();
}
