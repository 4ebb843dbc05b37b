/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/net/limit.h"

#define SECOND G_USEC_PER_SEC

static guint taken(SfLimit *limit, guint tries, gint64 now)
{
    guint count = 0;

    for (guint i = 0; i < tries; i++) {
        count += sf_limit_take(limit, 1, now) ? 1 : 0;
    }
    return count;
}

/* The burst at once, then the rate; never more than the burst, however long it was quiet. */
static void test_rate(void)
{
    SfLimit limit = sf_limit_new(10, 20, 0);

    g_assert_cmpuint(taken(&limit, 100, 0), ==, 20);
    g_assert_cmpuint(taken(&limit, 100, SECOND), ==, 10);
    g_assert_cmpuint(taken(&limit, 100, SECOND + SECOND / 10), ==, 1);
    g_assert_cmpuint(taken(&limit, 100, SECOND), ==, 0); /* a clock that goes back gives nothing */
    g_assert_cmpuint(taken(&limit, 100, (gint64)1000000 * SECOND), ==, 20);
    g_assert_false(sf_limit_take(&limit, 21, (gint64)2000000 * SECOND));
    g_assert_cmpuint(taken(&limit, 100, G_MAXINT64), ==, 20);
}

static void test_none(void)
{
    SfLimit limit = sf_limit_new(0, 0, 0);

    g_assert_true(sf_limit_take(&limit, G_MAXUINT32, 0));
    g_assert_true(sf_limit_take(&limit, G_MAXUINT32, 0));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/net/limit/rate", test_rate);
    g_test_add_func("/net/limit/none", test_none);
    return g_test_run();
}
