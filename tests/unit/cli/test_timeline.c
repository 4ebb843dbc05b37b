/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The timeline: its model, both drawings, and tickets full of nonsense. */
#include <locale.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/timeline.h"

/* Called at 1 s; the CPUs stood at 1.0022 s; 4 clones: one ended well, one with status 3, one failed, one works. */
static const char ticket_text[] =
    "{\"ticket\":\"3f2a9c0011223344\",\"vm\":\"web\",\"granted\":4,\"state\":\"running\",\"reason\":\"\",\"created\":"
    "900000000,"
    "\"fork\":{\"called\":1000000000,\"at\":1002200000,\"pause_ns\":3610000,\"stop_ns\":200000,\"device_ns\":920000,"
    "\"ram_ns\":1700000,\"disk_ns\":610000,\"start_ns\":180000},\"clones\":["
    "{\"id\":2,\"vm\":\"web-3f2a-2\",\"state\":\"exited\",\"status\":3,\"reason\":\"\",\"loaded\":1012000000,"
    "\"running\":1014000000,"
    "\"answered\":1310000000,\"synced\":2000000000,\"exited\":4500000000},"
    "{\"id\":1,\"vm\":\"web-3f2a-1\",\"state\":\"exited\",\"status\":0,\"reason\":\"\",\"loaded\":1010000000,"
    "\"running\":1012000000,"
    "\"answered\":1200000000,\"synced\":0,\"exited\":4000000000},"
    "{\"id\":3,\"vm\":\"web-3f2a-3\",\"state\":\"failed\",\"status\":0,\"reason\":\"no "
    "shell\",\"loaded\":0,\"running\":0,"
    "\"answered\":0,\"synced\":0,\"exited\":1100000000},"
    "{\"id\":4,\"vm\":\"web-3f2a-4\",\"state\":\"running\",\"status\":0,\"reason\":\"\",\"loaded\":1016000000,"
    "\"running\":1018000000,"
    "\"answered\":1400000000,\"synced\":0,\"exited\":0}]}";

static const char usage_text[] = "{\"vms\":[{\"name\":\"web-3f2a-1\",\"private\":31457280,\"shared\":209715200},"
                                 "{\"name\":\"web-3f2a-4\",\"private\":33554432,\"shared\":104857600},{\"name\":"
                                 "\"web\",\"private\":1,\"shared\":1}]}";

#define MS          G_GINT64_CONSTANT(1000000)
#define NOW         G_GINT64_CONSTANT(6000000000)
#define NEVER       SF_TIMELINE_NEVER

static JsonObject *parse(const char *text)
{
    g_autoptr(JsonNode) node = json_from_string(text, NULL);
    g_assert_nonnull(node);
    return json_node_dup_object(node);
}

static SfTimeline *make(void)
{
    g_autoptr(JsonObject) ticket = parse(ticket_text);
    g_autoptr(JsonObject) usage = parse(usage_text);
    g_autoptr(GError) error = NULL;
    SfTimeline *timeline = sf_timeline_new(ticket, usage, NOW, &error);

    g_assert_no_error(error);
    return timeline;
}

static void test_model(void)
{
    g_autoptr(SfTimeline) timeline = make();
    const SfTimelineClone *first = g_ptr_array_index(timeline->clones, 0),
                          *third = g_ptr_array_index(timeline->clones, 2);

    g_assert_cmpint(timeline->pause_at, ==, 2 * MS);
    g_assert_cmpint(timeline->pause, ==, 3610000);
    g_assert_cmpint(first->id, ==, 1);
    g_assert_cmpint(first->loaded, ==, 10 * MS);
    g_assert_cmpint(first->synced, ==, NEVER);
    g_assert_cmpuint(first->private_bytes, ==, 31457280);
    g_assert_cmpint(third->running, ==, NEVER);
    g_assert_true(sf_timeline_failed(third));
    g_assert_false(sf_timeline_failed(first));
    g_assert_cmpuint(timeline->answered.count, ==, 3);
    g_assert_cmpint(timeline->answered.last, ==, 400 * MS);
    g_assert_cmpuint(timeline->ended.count, ==, 3);
    g_assert_cmpint(timeline->fork_end, ==, 400 * MS);
    g_assert_cmpint(timeline->end, ==, 5000 * MS);
    g_assert_false(timeline->finished);
    g_assert_cmpuint(timeline->private_total, ==, 65011712);
    g_assert_cmpuint(timeline->shared_once, ==, 209715200);
}

static void check(const SfTimelineStyle *style, const char *expected)
{
    g_autoptr(SfTimeline) timeline = make();
    g_autofree char *text = sf_timeline_to_text(timeline, style);

    if (strcmp(text, expected) != 0) {
        g_test_message("is:\n%s", text);
    }
    g_assert_cmpstr(text, ==, expected);
}

static void test_text(void)
{
    check(&(SfTimelineStyle){.width = 100, .unicode = TRUE},
          "  web forked into 4  ticket 3f2a9c0011223344\n"
          "\n"
          "  THE FORK   0             100 ms        200 ms        300 ms        400 ms\n"
          "  web        █━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  paused 3.61 ms\n"
          "  clone 1    ·░▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒█████████████████████████████  ran 12.0 ms, answered 200 ms\n"
          "  clone 2    ··▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒█████████████  ran 14.0 ms, answered 310 ms\n"
          "  clone 3    ··············✗                                            failed\n"
          "  clone 4    ··░▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒  ran 18.0 ms, answered 400 ms\n"
          "\n"
          "  THE WORK   0                     2 s                    4 s\n"
          "  web        █━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  paused 3.61 ms\n"
          "  clone 1    ▒▒████████████████████████████████●                        exit 0 at 3.00 s, own 30 MiB\n"
          "  clone 2    ▒▒▒▒███████◆███████████████████████████✗                   exit 3 at 3.50 s\n"
          "  clone 3    ·✗                                                         failed at 100 ms\n"
          "  clone 4    ▒▒▒▒▒████████████████████████████████████████████████████  running, own 32 MiB\n"
          "\n"
          "  █ parent paused   · waits for its turn   ░ loaded, waits for a CPU   ▒ runs, gets its identity\n"
          "  █ works   ◆ synced   ● ended   ✗ failed or killed\n"
          "\n"
          "  parent paused 3.61 ms: stop 200 us, devices 920 us, RAM 1.70 ms, disks 610 us, start 180 us\n"
          "  3 of 4 ran after 18.0 ms, 3 of 4 answered after 400 ms, 3 of 4 ended after 3.50 s\n"
          "  memory: 32 MiB of its own per clone (median), 62 MiB together; up to 200 MiB shared by all\n");
    check(&(SfTimelineStyle){.width = 70, .rows = 2},
          "  web forked into 4  ticket 3f2a9c0011223344\n"
          "\n"
          "  THE FORK   0            200 ms       400 ms\n"
          "  web        X--------------------------  paused 3.61 ms\n"
          "  clone 1    .============##############  ran 12.0 ms, answered 200 ms\n"
          "  clone 2    .====================######  ran 14.0 ms, answered 310 ms\n"
          "  and 2 more clones\n"
          "\n"
          "  THE WORK   0         2 s        4 s\n"
          "  web        X--------------------------  paused 3.61 ms\n"
          "  clone 1    =###############o            exit 0 at 3.00 s, own 30 MiB\n"
          "  clone 2    ==###S############!          exit 3 at 3.50 s\n"
          "  and 2 more clones\n"
          "\n"
          "  X parent paused   . waits for its turn   = runs, gets its identity\n"
          "  # works   S synced   o ended   ! failed or killed\n"
          "\n"
          "  parent paused 3.61 ms: stop 200 us, devices 920 us, RAM 1.70 ms,\n"
          "    disks 610 us, start 180 us\n"
          "  3 of 4 ran after 18.0 ms, 3 of 4 answered after 400 ms, 3 of 4 ended\n"
          "    after 3.50 s\n"
          "  memory: 32 MiB of its own per clone (median), 62 MiB together; up to\n"
          "    200 MiB shared by all\n");
}

static void test_widths(void)
{
    g_autoptr(SfTimeline) timeline = make();

    for (guint width = 60; width < 240; width += 3) {
        SfTimelineStyle style = {.width = width, .unicode = TRUE};
        g_autofree char *text = sf_timeline_to_text(timeline, &style);
        g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
        for (guint i = 0; lines[i]; i++) {
            g_assert_cmpuint(sf_text_width(lines[i]), <=, width);
        }
    }
}

static void test_svg(void)
{
    g_autoptr(SfTimeline) timeline = make();
    g_autoptr(GError) error = NULL;
    const GMarkupParser nothing = {0};
    GMarkupParseContext *context = g_markup_parse_context_new(&nothing, 0, NULL, NULL);

    g_free(timeline->vm);
    timeline->vm = g_strdup("<web> & \"co\"");
    g_autofree char *svg = sf_timeline_to_svg(timeline);
    g_assert_true(g_markup_parse_context_parse(context, svg, (gssize)strlen(svg), &error));
    g_assert_true(g_markup_parse_context_end_parse(context, &error));
    g_assert_no_error(error);
    g_markup_parse_context_free(context);
    g_assert_nonnull(strstr(svg, "&lt;web&gt; &amp; &quot;co&quot;"));
    g_assert_null(strstr(svg, "nan"));
    g_assert_null(strstr(svg, "inf"));
}

static void test_nonsense(void)
{
    static const char *const refused[] = {"{}", "{\"fork\":{}}", "{\"fork\":{\"at\":-5}}", "{\"fork\":7,\"clones\":[]}",
                                          "{\"ticket\":\"aaaa\",\"clones\":[]}"};
    static const char *const drawn[] = {
        "{\"fork\":{\"at\":1}}",
        "{\"fork\":{\"at\":5,\"called\":9223372036854775807,\"pause_ns\":-7,\"stop_ns\":9223372036854775807},"
        "\"clones\":[7]}",
        "{\"fork\":{\"at\":9223372036854775807,\"called\":1,\"pause_ns\":9223372036854775807,\"ram_ns\":"
        "9223372036854775807,"
        "\"device_ns\":9223372036854775807},\"clones\":[{\"id\":-1,\"loaded\":1,\"running\":9223372036854775807},{}]}",
        "{\"vm\":7,\"state\":{},\"fork\":{\"at\":50,\"called\":40},\"clones\":[{\"id\":\"x\",\"state\":\"weird\","
        "\"answered\":45,"
        "\"exited\":41}]}",
    };

    for (guint i = 0; i < G_N_ELEMENTS(refused); i++) {
        g_autoptr(JsonObject) ticket = parse(refused[i]);
        g_autoptr(GError) error = NULL;
        g_assert_null(sf_timeline_new(ticket, NULL, 0, &error));
        g_assert_nonnull(error);
    }
    for (guint i = 0; i < G_N_ELEMENTS(drawn); i++) {
        g_autoptr(JsonObject) ticket = parse(drawn[i]);
        g_autoptr(SfTimeline) timeline = sf_timeline_new(ticket, ticket, NOW, NULL);
        SfTimelineStyle style = {.width = 80, .unicode = TRUE, .color = TRUE};
        g_assert_nonnull(timeline);
        g_autofree char *text = sf_timeline_to_text(timeline, &style);
        g_autofree char *svg = sf_timeline_to_svg(timeline);
        g_assert_null(strstr(svg, "nan"));
    }
}

static void check_label(gint64 at, gint64 tick, const char *expected)
{
    g_autofree char *label = sf_timeline_tick_label(at, tick);
    g_assert_cmpstr(label, ==, expected);
}

static void test_ticks(void)
{
    g_assert_cmpint(sf_timeline_tick(359 * MS, 9), ==, 50 * MS);
    g_assert_cmpint(sf_timeline_tick(1, 9), ==, 1);
    g_assert_cmpint(sf_timeline_tick(13 * 1000 * MS, 4), ==, 5000 * MS);
    check_label(0, 50 * MS, "0");
    check_label(150 * MS, 50 * MS, "150 ms");
    check_label(1500 * MS, 500 * MS, "1.5 s");
    check_label(500 * MS, 500 * MS, "0.5 s");
    check_label(1250 * MS, 50 * MS, "1.25 s");
    check_label(20000 * MS, 5000 * MS, "20 s");
    check_label(90000 * MS, 30000 * MS, "1:30");
    check_label(120000 * MS, 60000 * MS, "2 min");
    check_label(MS / 2, MS / 10, "0.5 ms");
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "C.UTF-8");
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/timeline/model", test_model);
    g_test_add_func("/timeline/text", test_text);
    g_test_add_func("/timeline/widths", test_widths);
    g_test_add_func("/timeline/svg", test_svg);
    g_test_add_func("/timeline/nonsense", test_nonsense);
    g_test_add_func("/timeline/ticks", test_ticks);
    return g_test_run();
}
