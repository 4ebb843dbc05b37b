/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What people type and read: sizes, durations, counts, tables, names in order, the console's tail. */
#include <locale.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/console.h"
#include "sfvmm/cli/family.h"
#include "sfvmm/cli/units.h"

static void test_sizes(void)
{
    static const struct {
        const char *text;
        guint64 bytes;
    } good[] = {
        {"0", 0}, {"4096", 4096}, {"1k", 1024}, {"1K", 1024}, {"512M", 512ull << 20}, {"1G", 1ull << 30},
        {"1.5G", 3ull << 29}, {"64KiB", 65536}, {"64kb", 65536}, {"7B", 7}, {"2T", 2ull << 40}, {"0.5K", 512},
        {"999999999999999999", 999999999999999999}, {"1.0", 1},
    };
    static const char *const bad[] = {
        "",         "G",        "-1G",
        "+1G",      " 1G",      "1G ",
        "1 G",      "1.G",      ".5G",
        "1..5G",    "1e3",      "0x10",
        "1Gi2",     "1GG",      "1X",
        "1.5",      "1,5G",     "9999999999999999999",
        "8388608T", "9000000P", "1234567890123456789G",
    };

    for (guint i = 0; i < G_N_ELEMENTS(good); i++) {
        g_autoptr(GError) error = NULL;
        guint64 bytes = 1;
        g_assert_true(sf_units_parse_size("--memory", good[i].text, &bytes, &error));
        g_assert_no_error(error);
        g_assert_cmpuint(bytes, ==, good[i].bytes);
    }
    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        guint64 bytes;
        g_assert_false(sf_units_parse_size("--memory", bad[i], &bytes, &error));
        g_assert_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE);
        g_assert_true(g_str_has_prefix(error->message, "--memory: \""));
    }
}

static void test_durations(void)
{
    static const struct {
        const char *text;
        int ms;
    } good[] = { { "0", 0 },       { "30", 30000 },    { "500ms", 500 }, { "1.5s", 1500 },
                 { "2m", 120000 }, { "2min", 120000 }, { "1h", 3600000 } };
    static const char *const bad[] = {"", "s", "-1s", "1 s", "1d", "1S", "1e3", "600h", "1.s"};

    for (guint i = 0; i < G_N_ELEMENTS(good); i++) {
        g_autoptr(GError) error = NULL;
        int ms = -1;
        g_assert_true(sf_units_parse_duration("--timeout", good[i].text, &ms, &error));
        g_assert_no_error(error);
        g_assert_cmpint(ms, ==, good[i].ms);
    }
    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        int ms;
        g_assert_false(sf_units_parse_duration("--timeout", bad[i], &ms, &error));
        g_assert_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE);
    }
}

static void test_counts(void)
{
    static const char *const bad[] = {"", "0", "9", "1x", " 1", "1 ", "+1", "--1", "-", "1.0", "99999999999999999999"};
    gint64 value = 0;

    g_assert_true(sf_units_parse_count("N", "8", 1, 8, &value, NULL));
    g_assert_cmpint(value, ==, 8);
    g_assert_true(sf_units_parse_count("N", "-3", -5, 8, &value, NULL));
    g_assert_cmpint(value, ==, -3);
    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_false(sf_units_parse_count("N", bad[i], 1, 8, &value, &error));
        g_assert_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE);
    }
}

static void check_text(char *text, const char *expected)
{
    g_assert_cmpstr(text, ==, expected);
    g_free(text);
}

static void test_formats(void)
{
    check_text(sf_units_format_size(0), "0");
    check_text(sf_units_format_size(999), "999 B");
    check_text(sf_units_format_size(1023), "1.00 KiB");
    check_text(sf_units_format_size(1ull << 30), "1 GiB");
    check_text(sf_units_format_size(3ull << 29), "1.50 GiB");
    check_text(sf_units_format_size(23ull << 29), "11.5 GiB");
    check_text(sf_units_format_size(1023ull << 20), "1.00 GiB");
    check_text(sf_units_format_size(G_MAXUINT64), "16 EiB");
    check_text(sf_units_format_ns(0), "0 ns");
    check_text(sf_units_format_ns(999), "999 ns");
    check_text(sf_units_format_ns(210000), "210 us");
    check_text(sf_units_format_ns(999600), "1.00 ms");
    check_text(sf_units_format_ns(3610000), "3.61 ms");
    check_text(sf_units_format_ns(36100000), "36.1 ms");
    check_text(sf_units_format_ns(999700000), "1.00 s");
    check_text(sf_units_format_ns(1540000000), "1.54 s");
    check_text(sf_units_format_ns(125 * SF_CTL_NS_PER_S), "2 min 05 s");
    check_text(sf_units_format_ns(11520 * SF_CTL_NS_PER_S), "3 h 12 min");
    check_text(sf_units_format_age_ms(44999), "44 s");
    check_text(sf_units_format_age_ms(120000), "2 min");
    check_text(sf_units_format_age_ms(440000000), "5 d 2 h");
}

static SfTable *make_table(void)
{
    SfTable *table = sf_table_new();

    sf_table_add_column(table, "NAME", SF_COLUMN_ELASTIC);
    sf_table_add_column(table, "STATE", SF_COLUMN_LEFT);
    sf_table_add_column(table, "MEMORY", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "NOTE", SF_COLUMN_OPTIONAL);
    sf_table_add_row(table);
    sf_table_add_cell(table, "web", SF_STYLE_PLAIN);
    sf_table_add_cell(table, "running", SF_STYLE_GREEN);
    sf_table_add_cell(table, "1 GiB", SF_STYLE_PLAIN);
    sf_table_add_cell(table, "first", SF_STYLE_PLAIN);
    sf_table_add_row(table);
    sf_table_add_cell(table, "größe-of-a-long-name", SF_STYLE_PLAIN);
    sf_table_add_cell(table, NULL, SF_STYLE_GREEN);
    sf_table_add_cell(table, "512 MiB", SF_STYLE_PLAIN);
    return table;
}

static void test_table(void)
{
    g_autoptr(SfTable) table = make_table();

    check_text(sf_table_to_text(table, 0, FALSE),
               "NAME                  STATE     MEMORY  NOTE\n"
               "web                   running    1 GiB  first\n"
               "größe-of-a-long-name  -        512 MiB  \n");
    check_text(sf_table_to_text(table, 40, FALSE),
               "NAME                  STATE     MEMORY\n"
               "web                   running    1 GiB\n"
               "größe-of-a-long-name  -        512 MiB\n");
    check_text(sf_table_to_text(table, 30, FALSE),
               "NAME          STATE     MEMORY\n"
               "web           running    1 GiB\n"
               "größe-of-a-…  -        512 MiB\n");
    /* No narrower than its headings: the terminal breaks what is left. */
    check_text(sf_table_to_text(table, 10, FALSE),
               "NAME  STATE     MEMORY\n"
               "web   running    1 GiB\n"
               "grö…  -        512 MiB\n");
    check_text(sf_table_to_text(table, 30, TRUE),
               "\033[1mNAME\033[0m          \033[1mSTATE\033[0m     \033[1mMEMORY\033[0m\n"
               "web           \033[32mrunning\033[0m    1 GiB\n"
               "größe-of-a-…  \033[2m-\033[0m        512 MiB\n");
}

static void test_harmless(void)
{
    check_text(sf_text_harmless("a\033[31mb\tc\nd\x7f"), "a?[31mb c d?");
    check_text(sf_text_harmless("right\xe2\x80\xae" "left"), "right?left");
    check_text(sf_text_harmless("bad \xff utf-8"), "bad \xef\xbf\xbd utf-8");
    check_text(sf_text_harmless("größe"), "größe");
    check_text(sf_text_cut("abcdef", 4), "abc…");
    check_text(sf_text_cut("abcd", 4), "abcd");
    check_text(sf_text_cut("abcd", 0), "");
    check_text(sf_text_cut("日本語", 4), "日…");
    g_assert_cmpuint(sf_text_width("日本a"), ==, 5);
}

static JsonArray *parse_array(const char *text)
{
    g_autoptr(JsonNode) node = json_from_string(text, NULL);
    g_assert_nonnull(node);
    return json_node_dup_array(node);
}

static void test_family(void)
{
    g_autoptr(JsonArray) vms = parse_array(
        "[{\"name\":\"web-aaaa-10\",\"role\":\"clone\",\"parent\":\"web\",\"ticket\":\"aaaa\",\"id\":10},"
        " {\"name\":\"web-shell-2\",\"role\":\"shell\"},"
        " {\"name\":\"web-aaaa-2-bbbb-1\",\"role\":\"clone\",\"parent\":\"web-aaaa-2\",\"ticket\":\"bbbb\",\"id\":1},"
        " {\"name\":\"vm10\",\"role\":\"parent\"}, {\"name\":\"vm9\",\"role\":\"parent\"},"
        " {\"name\":\"web-aaaa-2\",\"role\":\"clone\",\"parent\":\"web\",\"ticket\":\"aaaa\",\"id\":2},"
        " {\"name\":\"web\",\"role\":\"parent\"},"
        " {\"name\":\"x\",\"role\":\"clone\",\"parent\":\"y\"}, {\"name\":\"y\",\"role\":\"clone\",\"parent\":\"x\"},"
        " {\"name\":\"orphan\",\"role\":\"clone\",\"parent\":\"gone\"}]");
    static const struct {
        const char *name;
        guint depth;
    } expected[] = {
        { "orphan", 0 },      { "vm9", 0 },         { "vm10", 0 },
        { "web", 0 },         { "web-aaaa-2", 1 },  { "web-aaaa-2-bbbb-1", 2 },
        { "web-aaaa-10", 1 }, { "web-shell-2", 1 }, { "x", 0 },
        { "y", 1 },
    };
    g_autoptr(GArray) rows = sf_family_sort(vms);

    g_assert_cmpuint(rows->len, ==, G_N_ELEMENTS(expected));
    for (guint i = 0; i < rows->len; i++) {
        const SfFamilyRow *row = &g_array_index(rows, SfFamilyRow, i);
        g_assert_cmpstr(sf_ctl_string(row->vm, "name"), ==, expected[i].name);
        g_assert_cmpuint(row->depth, ==, expected[i].depth);
    }
    g_assert_cmpint(sf_family_compare_names("web-2", "web-10"), <, 0);
    g_assert_cmpint(sf_family_compare_names("web", "web-1"), <, 0);
    g_assert_cmpint(sf_family_compare_names("a", "a"), ==, 0);
}

static void test_tail(void)
{
    const char *log = "one\ntwo\nthree\nlogin: ";

    g_assert_cmpstr(sf_console_tail(log, strlen(log), 1), ==, "login: ");
    g_assert_cmpstr(sf_console_tail(log, strlen(log), 2), ==, "three\nlogin: ");
    g_assert_cmpstr(sf_console_tail(log, strlen(log), 99), ==, log);
    g_assert_cmpstr(sf_console_tail("a\nb\n", 4, 1), ==, "b\n");
    g_assert_cmpstr(sf_console_tail("", 0, 3), ==, "");
}

static void test_escape(void)
{
    char input[] = "ab\x1d" "cd";
    gboolean detach;

    g_assert_cmpuint(sf_console_filter(input, 5, &detach), ==, 2);
    g_assert_true(detach);
    g_assert_cmpuint(sf_console_filter(input, 2, &detach), ==, 2);
    g_assert_false(detach);
}

static void test_tickets(void)
{
    g_assert_true(sf_ctl_looks_like_ticket("3f2a"));
    g_assert_true(sf_ctl_looks_like_ticket("3f2a9c0011223344"));
    g_assert_false(sf_ctl_looks_like_ticket("3f2"));
    g_assert_false(sf_ctl_looks_like_ticket("3f2a9c00112233445"));
    g_assert_false(sf_ctl_looks_like_ticket("3F2A"));
    g_assert_false(sf_ctl_looks_like_ticket("web1"));
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "C.UTF-8");
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/units/sizes", test_sizes);
    g_test_add_func("/units/durations", test_durations);
    g_test_add_func("/units/counts", test_counts);
    g_test_add_func("/units/formats", test_formats);
    g_test_add_func("/table/layout", test_table);
    g_test_add_func("/table/harmless", test_harmless);
    g_test_add_func("/family/order", test_family);
    g_test_add_func("/console/tail", test_tail);
    g_test_add_func("/console/escape", test_escape);
    g_test_add_func("/tickets/prefix", test_tickets);
    return g_test_run();
}
