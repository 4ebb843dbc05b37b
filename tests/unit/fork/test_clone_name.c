/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names of clones: readable, and different however long the parent's is. */
#include "libsf/wire/guest_protocol.h"
#include "sfvmm/fork/clone_name.h"

#define FIFTY "abcdefghijklmnopqrstuvwxyz-abcdefghijklmnopqrstuvw"

static void test_vm(void)
{
    g_autofree char *name = sf_clone_vm_name("web", 0x4f31000000000001, 3);

    g_assert_cmpstr(name, ==, "web-4f31-3");
}

static void test_host(void)
{
    static const struct {
        const char *parent;
        guint id;
        const char *name;
    } cases[] = {
        { "web", 3, "web-3" },
        { FIFTY "-4f31-12345", 1, FIFTY "-4f31-12345-1" },
        { FIFTY "-4f31-12345", 10, FIFTY "-4f31-1234-10" },
        { FIFTY "-4f31-1-8a10-2", 1024, FIFTY "-4f31-1-1024" },
        { "-", 1, "--1" }, /* no VM is called so */
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *name = sf_clone_host_name(cases[i].parent, cases[i].id);
        g_assert_cmpstr(name, ==, cases[i].name);
        g_assert_cmpuint(strlen(name), <, SF_GP_NAME_LEN);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/clone-name/vm", test_vm);
    g_test_add_func("/clone-name/host", test_host);
    return g_test_run();
}
