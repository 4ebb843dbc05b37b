/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One picture of `sfctl top`, from two samples, at several sizes of the terminal. */
#include <locale.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/top.h"

static const char sample_before[] =
    "{\"host\":{\"memory_total\":17179869184,\"memory_available\":8589934592},\"vms\":["
    "{\"name\":\"web\",\"role\":\"parent\",\"state\":\"running\",\"private\":104857600,\"shared\":536870912,\"cpu_ns\":"
    "1000000000},"
    "{\"name\":\"web-3f2a-1\",\"role\":\"clone\",\"parent\":\"web\",\"ticket\":\"3f2a\",\"id\":1,\"state\":\"running\","
    "\"private\":10485760,\"shared\":536870912,\"cpu_ns\":0},"
    "{\"name\":\"web-shell-3\",\"role\":\"shell\",\"state\":\"paused\",\"private\":20971520,\"shared\":0,\"cpu_ns\":5},"
    "{\"name\":\"web-shell-4\",\"role\":\"shell\",\"state\":\"paused\",\"private\":20971520,\"shared\":0,\"cpu_ns\":5}]"
    "}";

static const char sample_now[] =
    "{\"host\":{\"memory_total\":17179869184,\"memory_available\":8589934592},\"vms\":["
    "{\"name\":\"web\",\"role\":\"parent\",\"state\":\"running\",\"private\":104857600,\"shared\":536870912,\"cpu_ns\":"
    "1500000000},"
    "{\"name\":\"web-3f2a-2\",\"role\":\"clone\",\"parent\":\"web\",\"ticket\":\"3f2a\",\"id\":2,\"state\":"
    "\"starting\","
    "\"private\":1048576,\"shared\":0,\"cpu_ns\":0},"
    "{\"name\":\"web-3f2a-1\",\"role\":\"clone\",\"parent\":\"web\",\"ticket\":\"3f2a\",\"id\":1,\"state\":\"running\","
    "\"private\":20971520,\"shared\":536870912,\"cpu_ns\":1900000000},"
    "{\"name\":\"web-shell-4\",\"role\":\"shell\",\"state\":\"paused\",\"private\":20971520,\"shared\":0,\"cpu_ns\":5},"
    "{\"name\":\"web-shell-3\",\"role\":\"shell\",\"state\":\"paused\",\"private\":20971520,\"shared\":0,\"cpu_ns\":5},"
    "{\"name\":\"db\",\"role\":\"parent\",\"state\":\"paused\",\"private\":52428800,\"shared\":0,\"cpu_ns\":7}]}";

static JsonObject *parse(const char *text)
{
    g_autoptr(JsonNode) node = json_from_string(text, NULL);
    g_assert_nonnull(node);
    return json_node_dup_object(node);
}

static void check(const SfTopView *view, gboolean first, const char *expected)
{
    g_autoptr(JsonObject) now = parse(sample_now);
    g_autoptr(JsonObject) before = first ? NULL : parse(sample_before);
    g_autofree char *text = sf_top_render(now, before, 2 * SF_CTL_NS_PER_S, view);

    if (strcmp(text, expected) != 0) {
        g_test_message("is:\n%s", text);
    }
    g_assert_cmpstr(text, ==, expected);
}

static void test_wide(void)
{
    check(&(SfTopView){ .width = 110, .cpus = 2, .unicode = TRUE, .clock = "21:04:33" }, FALSE,
          "snowflock: 2 VMs, 2 clones, 2 shells                                                                  "
          "21:04:33\n"
          "CPU     [██████████████████············]  120 % of 200 %\n"
          "Memory  [█▒····························]  own 211 MiB, shared 512 MiB, saved 512 MiB\n"
          "\n"
          "NAME          ROLE    STATE     CPU %  PRIVATE    GROWTH   SHARED\n"
          "db            parent  paused        -   50 MiB         -        0\n"
          "web           parent  running    25.0  100 MiB         -  512 MiB\n"
          "  web-3f2a-1  clone   running    95.0   20 MiB  +5 MiB/s  512 MiB\n"
          "  web-3f2a-2  clone   starting      -    1 MiB         -        0\n"
          "  2 shells    shell   paused      0.0   40 MiB         -        0\n");
}

static void test_narrow(void)
{
    check(&(SfTopView){ .width = 60,
                        .height = 12,
                        .cpus = 2,
                        .keys = TRUE,
                        .shells = TRUE,
                        .skip = 99,
                        .order = SF_TOP_BY_CPU,
                        .clock = "21:04:33" },
          FALSE,
          "snowflock: 2 VMs, 2 clones, 2 shells                21:04:33\n"
          "CPU     [##########------]  120 % of 200 %\n"
          "Memory  [#:--------------]  own 211 MiB, shared 512 MiB\n"
          "\n"
          "NAME           ROLE    STATE     CPU %  PRIVATE   SHARED\n"
          "  web-3f2a-2   clone   starting      -    1 MiB        0\n"
          "  web-shell-3  shell   paused      0.0   20 MiB        0\n"
          "  web-shell-4  shell   paused      0.0   20 MiB        0\n"
          "db             parent  paused        -   50 MiB        0\n"
          "... 2 of 6 rows hidden: scroll with the arrow keys\n"
          "\n"
          "q quit  s shells  sort: c CPU, m memory, n name\n");
}

static void test_first(void)
{
    check(&(SfTopView){.cpus = 2, .order = SF_TOP_BY_PRIVATE, .clock = "21:04:33"}, TRUE,
          "snowflock: 2 VMs, 2 clones, 2 shells  21:04:33\n"
          "CPU     [----------------]  measuring\n"
          "Memory  [#:--------------]  private 211 MiB + shared 512 MiB; sharing saves 512 MiB; host has 8 GiB free\n"
          "\n"
          "NAME          ROLE    STATE     CPU %  PRIVATE  GROWTH   SHARED\n"
          "web           parent  running       -  100 MiB       -  512 MiB\n"
          "  web-3f2a-1  clone   running       -   20 MiB       -  512 MiB\n"
          "  web-3f2a-2  clone   starting      -    1 MiB       -        0\n"
          "  2 shells    shell   paused        -   40 MiB       -        0\n"
          "db            parent  paused        -   50 MiB       -        0\n");
}

/* A line for each group: what this host sends, what it gets, and why it does not. */
static void test_groups(void)
{
    static const char sample[] =
        "{\"host\":{\"memory_total\":17179869184,\"memory_available\":8589934592},\"vms\":[],\"multicast\":["
        "{\"ticket\":\"3f2a9c0011223344\",\"vm\":\"web\",\"origin\":true,\"group\":\"239.195.1.2 port 7411\","
        "\"bytes\":104857600,\"receivers\":31,\"asked\":2000,\"pushed\":5,\"repeated\":17,\"loss_ppm\":2500,"
        "\"rate\":110000000},"
        "{\"ticket\":\"77aa9c0011223344\",\"vm\":\"db\",\"origin\":false,\"state\":\"unicast\",\"reason\":"
        "\"nothing comes from the group\",\"bytes\":0,\"asked\":0,\"unasked\":0,\"again\":3,\"loss_ppm\":0},"
        "{\"vm\":4}]}";
    SfTopView view = { .width = 120, .cpus = 2, .unicode = TRUE, .clock = "21:04:33" };
    g_autoptr(JsonObject) now = parse(sample);
    g_autofree char *text = sf_top_render(now, NULL, 0, &view);

    g_test_message("%s", text);
    g_assert_nonnull(strstr(text, "web 3f2a  to 31 hosts"));
    g_assert_nonnull(strstr(text, "0.25"));
    g_assert_nonnull(strstr(text, "db 77aa   unicast"));
    g_assert_nonnull(strstr(text, "nothing comes from the group"));
}

/* What clones fetched, and what they need not. */
static void test_pages(void)
{
    static const char sample[] =
        "{\"host\":{\"memory_total\":17179869184,\"memory_available\":8589934592},\"vms\":["
        "{\"name\":\"web-3f2a-1\",\"role\":\"clone\",\"parent\":\"web\",\"ticket\":\"3f2a\",\"id\":1,"
        "\"state\":\"running\",\"private\":20971520,\"shared\":1048576,\"cpu_ns\":0,\"overwritten\":67108864,"
        "\"pages\":{\"demand_faults\":1081,\"fetched\":17825792,\"prefetched\":2097152,\"unused\":1048576,"
        "\"resident\":18874368,\"free\":943718400}}]}";
    SfTopView view = { .width = 160, .cpus = 2, .unicode = TRUE, .clock = "21:04:33" };
    g_autoptr(JsonObject) now = parse(sample);
    g_autofree char *text = sf_top_render(now, NULL, 0, &view);

    g_test_message("%s", text);
    g_assert_nonnull(strstr(text, "FAULTS  FETCHED  AHEAD  UNUSED    HERE     FREE  SPARED"));
    g_assert_nonnull(strstr(text, "1081   17 MiB  2 MiB   1 MiB  18 MiB  900 MiB  64 MiB"));
}

static void test_nothing(void)
{
    g_autoptr(JsonObject) empty = json_object_new();
    SfTopView view = {.width = 80, .cpus = 1, .clock = "21:04:33"};
    g_autofree char *text = sf_top_render(empty, empty, 0, &view);

    g_assert_nonnull(strstr(text, "0 VMs, 0 clones, 0 shells"));
    g_assert_nonnull(strstr(text, "sfctl run IMAGE"));
}

/* Whatever the sizes of a terminal, nothing is wider or higher than it. */
static void test_sizes(void)
{
    g_autoptr(JsonObject) now = parse(sample_now);

    for (guint width = 62; width <= 200; width += 7) {
        for (guint height = 11; height < 30; height++) {
            SfTopView view = { .width = width,
                               .height = height,
                               .cpus = 64,
                               .unicode = TRUE,
                               .shells = TRUE,
                               .keys = TRUE,
                               .clock = "21:04:33" };
            g_autofree char *text = sf_top_render(now, now, SF_CTL_NS_PER_S, &view);
            g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
            g_assert_cmpuint(g_strv_length(lines) - 1, <=, height);
            for (guint i = 0; lines[i]; i++) {
                g_assert_cmpuint(sf_text_width(lines[i]), <=, width);
            }
        }
    }
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "C.UTF-8");
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/top/wide", test_wide);
    g_test_add_func("/top/narrow", test_narrow);
    g_test_add_func("/top/first", test_first);
    g_test_add_func("/top/groups", test_groups);
    g_test_add_func("/top/pages", test_pages);
    g_test_add_func("/top/nothing", test_nothing);
    g_test_add_func("/top/sizes", test_sizes);
    return g_test_run();
}
