/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is to be avoided, as text. */
#include <glib.h>
#include "sfvmm/wire/avoid.h"

static void test_texts(void)
{
    static const struct {
        const char *text;
        guint avoid;
        const char *again;
    } good[] = {
        { "all", SF_AVOID_ALL, "all" },       { "none", 0, "none" },
        { "free", SF_AVOID_FREE, "free" },    { "read", SF_AVOID_READ, "read" },
        { "read,free", SF_AVOID_ALL, "all" },
    };
    static const char *const bad[] = { "",         ",",    "free,", "free,free", "none,read",
                                       "all,free", "Free", "zero",  "free read" };
    guint avoid = 77;

    for (guint i = 0; i < G_N_ELEMENTS(good); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_true(sf_avoid_parse(good[i].text, &avoid, &error));
        g_assert_no_error(error);
        g_assert_cmpuint(avoid, ==, good[i].avoid);
        g_assert_cmpstr(sf_avoid_to_text(avoid), ==, good[i].again);
    }
    avoid = 77;
    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_false(sf_avoid_parse(bad[i], &avoid, &error));
        g_assert_nonnull(error);
        g_assert_cmpuint(avoid, ==, 77);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/avoid/texts", test_texts);
    return g_test_run();
}
