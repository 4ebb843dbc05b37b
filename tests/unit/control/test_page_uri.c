/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which URIs of pages one host may name to another. */
#include "sfvmm/control/page_uri.h"

#include <string.h>

static void test_of_host(void)
{
    g_autofree char *v4 = sf_page_uri_of_host("10.0.0.1", 7420, SF_PAGER_X509, "s-4f31");
    g_autofree char *v6 = sf_page_uri_of_host("2001:db8::1", 7420, SF_PAGER_PLAIN, "s-4f31");

    g_assert_cmpstr(v4, ==, "nbds://10.0.0.1:7420/s-4f31/{block}");
    g_assert_cmpstr(v6, ==, "nbd://[2001:db8::1]:7420/s-4f31/{block}");
    g_assert_true(sf_page_uri_is_portable(v4, SF_PAGER_X509, "10.0.0.2"));
    g_assert_true(sf_page_uri_is_portable(v6, SF_PAGER_PLAIN, "10.0.0.2"));
}

static void test_portable(void)
{
    static const char *const good[] = {
        "nbds://store.example.org:10809/{block}.raw",
        "nbds://store.example.org/",
        "nbds://10.0.0.1",
        "nbds://[2001:db8::1]:10809/a/b/{block}",
    };
    static const char *const bad[] = {
        "",
        "nbds:",
        "nbds://",
        "nbds:///{block}",
        "nbd://store.example.org/x",           /* plain, in a cluster that encrypts */
        "nbds+unix:///x?socket=/run/nbd.sock", /* of this host */
        "nbd+unix:///x",
        "nbds://store/x?tls-certificates=/etc", /* files of the other host */
        "nbds://store/x#y",
        "nbds://user@store/x",
        "nbds://store/a b",
        "nbds://store/\n",
        "nbds://store:x/y",
        "nbds://[::/y",
        "nbds://127.0.0.1:10809/x", /* another place there */
        "nbds://[::1]/x",
        "nbds://LocalHost/x",
        "file:///etc/passwd",
    };
    g_autofree char *path = g_strnfill(SF_PAGE_URI_MAX, 'x');
    g_autofree char *longer = g_strconcat("nbds://store/", path, NULL);

    for (guint i = 0; i < G_N_ELEMENTS(good); i++) {
        g_test_message("%s", good[i]);
        g_assert_true(sf_page_uri_is_portable(good[i], SF_PAGER_X509, "10.0.0.2"));
        g_assert_false(sf_page_uri_is_portable(good[i], SF_PAGER_PLAIN, "10.0.0.2"));
    }
    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_test_message("%s", bad[i]);
        g_assert_false(sf_page_uri_is_portable(bad[i], SF_PAGER_X509, "10.0.0.2"));
    }
    g_assert_false(sf_page_uri_is_portable(longer, SF_PAGER_X509, "10.0.0.2"));
    g_assert_true(sf_page_uri_is_portable("nbd://127.0.0.1:10809/x", SF_PAGER_PLAIN, "127.0.0.1"));
    g_assert_true(sf_page_uri_is_portable("nbds://[::1]/x", SF_PAGER_X509, "::1"));
}

static void test_snapshot(void)
{
    g_assert_true(sf_page_uri_snapshot_is_valid("s-0123456789abcdef"));
    g_assert_false(sf_page_uri_snapshot_is_valid("s-0123456789abcde"));
    g_assert_false(sf_page_uri_snapshot_is_valid("s-0123456789abcdef/"));
    g_assert_false(sf_page_uri_snapshot_is_valid("m-0123456789abcdef"));
    g_assert_false(sf_page_uri_snapshot_is_valid("s-../../../../etc/x"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/page-uri/of-host", test_of_host);
    g_test_add_func("/page-uri/portable", test_portable);
    g_test_add_func("/page-uri/snapshot", test_snapshot);
    return g_test_run();
}
