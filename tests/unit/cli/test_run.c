/* SPDX-License-Identifier: GPL-2.0-or-later */
/* `sfctl run`: from words to the parameters of vm.run. */
#include <glib/gstdio.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/run.h"

static char *to_text(JsonObject *object)
{
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), object);
    return json_to_string(node, FALSE);
}

static void check(const SfRunOptions *run, const char *image, const char *expected)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) params = sf_ctl_run_params(run, image, &error);

    g_assert_no_error(error);
    g_autofree char *text = to_text(params);
    g_assert_cmpstr(text, ==, expected);
}

static void check_refused(const SfRunOptions *run, const char *image, const char *about)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(sf_ctl_run_params(run, image, &error));
    g_assert_error(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE);
    g_assert_nonnull(strstr(error->message, about));
}

static void test_good(void)
{
    char *disks[] = {(char *)"/b,,c.raw,ro,format=raw", (char *)"/d/../e", NULL};
    char *outside[] = {(char *)"192.0.2.1 tcp 80", NULL};

    check(&(SfRunOptions){0}, "/a.qcow2", "{\"disks\":[{\"path\":\"/a.qcow2\"}]}");
    check(&(SfRunOptions){.ephemeral = TRUE}, "/a.qcow2,format=qcow2",
          "{\"disks\":[{\"path\":\"/a.qcow2\",\"format\":\"qcow2\",\"ephemeral\":true}]}");
    check(&(SfRunOptions){ .name = (char *)"web",
                           .memory = (char *)"1G",
                           .vcpus = (char *)"2",
                           .pool = (char *)"8",
                           .accel = (char *)"tcg",
                           .cpu = (char *)"max",
                           .network = (char *)"cluster",
                           .address = (char *)"10.0.0.1/24",
                           .outside = outside,
                           .disks = disks },
          "/a",
          "{\"name\":\"web\",\"memory\":1073741824,\"accel\":\"tcg\",\"cpu\":\"max\",\"network\":\"cluster\","
          "\"address\":\"10.0.0.1/24\",\"outside\":[\"192.0.2.1 tcp 80\"],\"vcpus\":2,"
          "\"pool\":8,\"disks\":[{\"path\":\"/a\"},{\"path\":\"/b,c.raw\",\"readonly\":true,\"format\":\"raw\"},"
          "{\"path\":\"/e\"}]}");
    check(
        &(SfRunOptions){ .kernel = (char *)"/vmlinuz", .initrd = (char *)"/initrd", .append = (char *)"console=ttyS0" },
        NULL, "{\"kernel\":\"/vmlinuz\",\"initrd\":\"/initrd\",\"append\":\"console=ttyS0\"}");
}

static void test_bad(void)
{
    char *disks[] = {(char *)",ro", NULL};

    check_refused(&(SfRunOptions){0}, NULL, "nothing to boot");
    check_refused(&(SfRunOptions){.memory = (char *)"1Q"}, "/a", "--memory");
    check_refused(&(SfRunOptions){.vcpus = (char *)"0"}, "/a", "--vcpus");
    check_refused(&(SfRunOptions){.pool = (char *)"-1"}, "/a", "--pool");
    check_refused(&(SfRunOptions){.initrd = (char *)"/i"}, "/a", "--initrd");
    check_refused(&(SfRunOptions){.append = (char *)"quiet"}, "/a", "--append");
    check_refused(&(SfRunOptions){.kernel = (char *)"/k", .ephemeral = TRUE}, NULL, "--ephemeral");
    check_refused(&(SfRunOptions){.wait_agent = TRUE, .console = TRUE}, "/a", "--console");
    check_refused(&(SfRunOptions){0}, "/a,rw", "\"rw\"");
    check_refused(&(SfRunOptions){0}, "/a,format=vmdk", "format=vmdk");
    check_refused(&(SfRunOptions){.disks = disks}, "/a", "path is missing");
}

static void test_directory(void)
{
    g_autofree char *directory = g_dir_make_tmp("sfctl-XXXXXX", NULL);
    static const char *const names[] = {"rootfs.qcow2", "vmlinuz", "initrd.img", "cmdline"};

    g_assert_nonnull(directory);
    check_refused(&(SfRunOptions){0}, directory, "rootfs.qcow2");
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(directory, names[i], NULL);
        g_assert_true(g_file_set_contents(path, "root=/dev/vda quiet\n", -1, NULL));
    }
    g_autofree char *whole =
        g_strdup_printf("{\"kernel\":\"%s/vmlinuz\",\"initrd\":\"%s/initrd.img\",\"append\":\"root=/dev/vda "
                        "quiet\",\"disks\":[{\"path\":\"%s/rootfs.qcow2\",\"ephemeral\":true}]}",
                        directory, directory, directory);
    check(&(SfRunOptions){.ephemeral = TRUE}, directory, whole);
    /* Somebody's own kernel brings its own initrd, or none. */
    g_autofree char *own = g_strdup_printf("{\"kernel\":\"/k\",\"append\":\"root=/dev/vda quiet\","
                                           "\"disks\":[{\"path\":\"%s/rootfs.qcow2\"}]}", directory);
    check(&(SfRunOptions){.kernel = (char *)"/k"}, directory, own);
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(directory, names[i], NULL);
        g_unlink(path);
    }
    g_rmdir(directory);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/run/good", test_good);
    g_test_add_func("/run/bad", test_bad);
    g_test_add_func("/run/directory", test_directory);
    return g_test_run();
}
