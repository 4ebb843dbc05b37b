/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sfctl run: from the words of a command line to the parameters of vm.run.
 *
 * Paths are made absolute here, for the daemon has another working directory. What is left out of the command line is
 * left out of the request: the defaults are the daemon's.
 */
#include "sfvmm/cli/run.h"

#include <stdio.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/units.h"

/* Files of an image directory, as scripts/guest-image makes it. */
#define IMAGE_KERNEL     "vmlinuz"
#define IMAGE_INITRD     "initrd.img"
#define IMAGE_CMDLINE    "cmdline"
#define IMAGE_ROOT       "rootfs.qcow2"
#define VCPUS_MAX        64
#define POOL_MAX         1024

static SfRunOptions options;

const GOptionEntry sf_ctl_run_options[] = {
    { "name", 'n', 0, G_OPTION_ARG_STRING, &options.name, "Name of the VM (default: vm1, vm2, ...)", "NAME" },
    { "memory", 'm', 0, G_OPTION_ARG_STRING, &options.memory, "Memory, like 512M or 1.5G", "SIZE" },
    { "vcpus", 'c', 0, G_OPTION_ARG_STRING, &options.vcpus, "Virtual CPUs", "N" },
    { "disk", 'd', 0, G_OPTION_ARG_FILENAME_ARRAY, &options.disks, "Another disk: PATH[,ro][,ephemeral][,format=F]",
      "DISK" },
    { "ephemeral", 'e', 0, G_OPTION_ARG_NONE, &options.ephemeral, "Never write IMAGE: changes end with the VM", NULL },
    { "kernel", 'k', 0, G_OPTION_ARG_FILENAME, &options.kernel, "Boot this Linux kernel", "FILE" },
    { "initrd", 'i', 0, G_OPTION_ARG_FILENAME, &options.initrd, "Initial RAM disk for the kernel", "FILE" },
    { "append", 'a', 0, G_OPTION_ARG_STRING, &options.append, "The kernel's command line", "TEXT" },
    { "accel", 0, 0, G_OPTION_ARG_STRING, &options.accel, "auto (default), kvm or tcg", "ACCEL" },
    { "cpu", 0, 0, G_OPTION_ARG_STRING, &options.cpu, "CPU model, as QEMU names it", "MODEL" },
    { "network", 0, 0, G_OPTION_ARG_STRING, &options.network, "none (default), user or cluster", "NET" },
    { "address", 0, 0, G_OPTION_ARG_STRING, &options.address, "Of the VM in its cluster (default: 10.77.0.1/16)",
      "ADDRESS" },
    { "outside", 0, 0, G_OPTION_ARG_STRING_ARRAY, &options.outside,
      "What its cluster may reach: ADDRESS[/PREFIX] [tcp|udp [PORTS] | icmp]", "RULE" },
    { "pool", 'p', 0, G_OPTION_ARG_STRING, &options.pool, "Shells to keep ready for clones", "N" },
    { "wait-agent", 'w', 0, G_OPTION_ARG_NONE, &options.wait_agent, "Wait until the agent in the guest has answered",
      NULL },
    { "timeout", 't', 0, G_OPTION_ARG_STRING, &options.timeout, "Wait at most so long for the agent", "TIME" },
    { "console", 0, 0, G_OPTION_ARG_NONE, &options.console, "Attach to the console; ^] detaches", NULL },
    { "quiet", 'q', 0, G_OPTION_ARG_NONE, &options.quiet, "Print only the VM's name", NULL },
    { NULL },
};

static gboolean bad_value(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

static gboolean bad_value(GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *message = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE, message);
    return FALSE;
}

/* Splits at commas; a doubled comma is one comma of the text, as in QEMU's options. */
static GPtrArray *split_commas(const char *text)
{
    GPtrArray *parts = g_ptr_array_new_with_free_func(g_free);
    GString *part = g_string_new(NULL);

    for (const char *p = text;; p++) {
        if (*p == ',' && p[1] == ',') {
            g_string_append_c(part, *p++);
        } else if (*p == ',' || !*p) {
            g_ptr_array_add(parts, g_strdup(part->str));
            g_string_truncate(part, 0);
            if (!*p) {
                break;
            }
        } else {
            g_string_append_c(part, *p);
        }
    }
    g_string_free(part, TRUE);
    return parts;
}

JsonObject *sf_ctl_run_parse_disk(const char *text, GError **error)
{
    g_autoptr(GPtrArray) parts = split_commas(text);
    g_autoptr(JsonObject) disk = json_object_new();
    const char *path = g_ptr_array_index(parts, 0);

    if (!*path) {
        bad_value(error, "disk \"%s\": the path is missing", text);
        return NULL;
    }
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    json_object_set_string_member(disk, "path", absolute);
    for (guint i = 1; i < parts->len; i++) {
        const char *part = g_ptr_array_index(parts, i);
        if (strcmp(part, "ro") == 0) {
            json_object_set_boolean_member(disk, "readonly", TRUE);
        } else if (strcmp(part, "ephemeral") == 0) {
            json_object_set_boolean_member(disk, "ephemeral", TRUE);
        } else if (strcmp(part, "format=raw") == 0 || strcmp(part, "format=qcow2") == 0) {
            json_object_set_string_member(disk, "format", part + strlen("format="));
        } else {
            bad_value(error, "disk \"%s\": \"%s\" is not one of ro, ephemeral, format=raw, format=qcow2 "
                             "(a comma in the path is written twice)", text, part);
            return NULL;
        }
    }
    return g_steal_pointer(&disk);
}

static void set_path(JsonObject *params, const char *member, const char *path)
{
    if (path) {
        g_autofree char *absolute = g_canonicalize_filename(path, NULL);
        json_object_set_string_member(params, member, absolute);
    }
}

static void set_string(JsonObject *params, const char *member, const char *value)
{
    if (value) {
        json_object_set_string_member(params, member, value);
    }
}

static void set_strings(JsonObject *params, const char *member, char **values)
{
    JsonArray *array = values ? json_array_new() : NULL;

    for (guint i = 0; values && values[i]; i++) {
        json_array_add_string_element(array, values[i]);
    }
    if (array) {
        json_object_set_array_member(params, member, array);
    }
}

static gboolean set_count(JsonObject *params, const char *member, const char *option, const char *text, gint64 min,
                          gint64 max, GError **error)
{
    gint64 value;
    if (!text) {
        return TRUE;
    }
    if (!sf_units_parse_count(option, text, min, max, &value, error)) {
        return FALSE;
    }
    json_object_set_int_member(params, member, value);
    return TRUE;
}

/* Kernel, initrd, command line and root disk from an image directory, where the command line does not say otherwise. */
static gboolean set_image_directory(JsonObject *params, JsonArray *disks, const SfRunOptions *run,
                                    const char *directory, GError **error)
{
    g_autofree char *kernel = g_build_filename(directory, IMAGE_KERNEL, NULL);
    g_autofree char *initrd = g_build_filename(directory, IMAGE_INITRD, NULL);
    g_autofree char *cmdline = g_build_filename(directory, IMAGE_CMDLINE, NULL);
    g_autofree char *root = g_build_filename(directory, IMAGE_ROOT, NULL);
    g_autofree char *append = NULL;

    if (!g_file_test(root, G_FILE_TEST_EXISTS)) {
        return bad_value(error, "image directory \"%s\": there is no %s in it", directory, IMAGE_ROOT);
    }
    if (!run->kernel && g_file_test(kernel, G_FILE_TEST_EXISTS)) {
        set_path(params, "kernel", kernel);
    }
    if (!run->kernel && !run->initrd && g_file_test(initrd, G_FILE_TEST_EXISTS)) {
        set_path(params, "initrd", initrd);
    }
    if (!run->append && json_object_has_member(params, "kernel") && g_file_get_contents(cmdline, &append, NULL, NULL)) {
        set_string(params, "append", g_strstrip(append));
    }
    JsonObject *disk = json_object_new();
    set_path(disk, "path", root);
    if (run->ephemeral) {
        json_object_set_boolean_member(disk, "ephemeral", TRUE);
    }
    json_array_add_object_element(disks, disk);
    return TRUE;
}

static gboolean set_disks(JsonObject *params, const SfRunOptions *run, const char *image, GError **error)
{
    g_autoptr(JsonArray) disks = json_array_new();

    if (image && g_file_test(image, G_FILE_TEST_IS_DIR)) {
        if (!set_image_directory(params, disks, run, image, error)) {
            return FALSE;
        }
    } else if (image) {
        JsonObject *disk = sf_ctl_run_parse_disk(image, error);
        if (!disk) {
            return FALSE;
        }
        if (run->ephemeral) {
            json_object_set_boolean_member(disk, "ephemeral", TRUE);
        }
        json_array_add_object_element(disks, disk);
    }
    for (guint i = 0; run->disks && run->disks[i]; i++) {
        JsonObject *disk = sf_ctl_run_parse_disk(run->disks[i], error);
        if (!disk) {
            return FALSE;
        }
        json_array_add_object_element(disks, disk);
    }
    if (json_array_get_length(disks) > 0) {
        json_object_set_array_member(params, "disks", g_steal_pointer(&disks));
    }
    return TRUE;
}

JsonObject *sf_ctl_run_params(const SfRunOptions *run, const char *image, GError **error)
{
    g_autoptr(JsonObject) params = json_object_new();
    guint64 memory;

    if (!image && !run->kernel) {
        bad_value(error, "nothing to boot: give an IMAGE, or --kernel FILE");
        return NULL;
    }
    if (run->ephemeral && !image) {
        bad_value(error, "--ephemeral is about IMAGE, and there is none; use --disk PATH,ephemeral");
        return NULL;
    }
    if (run->initrd && !run->kernel) {
        bad_value(error, "--initrd needs --kernel");
        return NULL;
    }
    if (run->wait_agent && run->console) {
        bad_value(error, "--wait-agent and --console: only one of them; the console shows the boot at once");
        return NULL;
    }
    set_string(params, "name", run->name);
    if (run->memory) {
        if (!sf_units_parse_size("--memory", run->memory, &memory, error)) {
            return NULL;
        }
        json_object_set_int_member(params, "memory", (gint64)memory);
    }
    set_string(params, "accel", run->accel);
    set_string(params, "cpu", run->cpu);
    set_path(params, "kernel", run->kernel);
    set_path(params, "initrd", run->initrd);
    set_string(params, "append", run->append);
    set_string(params, "network", run->network);
    set_string(params, "address", run->address);
    set_strings(params, "outside", run->outside);
    if (!set_count(params, "vcpus", "--vcpus", run->vcpus, 1, VCPUS_MAX, error) ||
        !set_count(params, "pool", "--pool", run->pool, 0, POOL_MAX, error) ||
        !set_disks(params, run, image, error)) {
        return NULL;
    }
    if (run->append && !json_object_has_member(params, "kernel")) {
        bad_value(error, "--append needs --kernel: a disk image brings its own command line");
        return NULL;
    }
    return g_steal_pointer(&params);
}

static void print_started(JsonObject *vm)
{
    g_autofree char *memory = sf_units_format_size((guint64)sf_ctl_int(vm, "memory"));
    const char *name = sf_ctl_string(vm, "name");
    gint64 vcpus = sf_ctl_int(vm, "vcpus");

    g_autofree char *line =
        g_strdup_printf("VM \"%s\" runs: %s, %" G_GINT64_FORMAT " vCPU%s, %s, pid %" G_GINT64_FORMAT "%s", name, memory,
                        vcpus, vcpus == 1 ? "" : "s", sf_ctl_string(vm, "accel"), sf_ctl_int(vm, "pid"),
                        sf_ctl_bool(vm, "agent") ? "; its agent has answered" : "");
    sf_ctl_print(line);
}

int sf_ctl_run(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    int timeout = SF_CTL_NO_LIMIT;

    if (options.timeout && !sf_units_parse_duration("--timeout", options.timeout, &timeout, &error)) {
        return sf_ctl_usage("run", "run: %s", error->message);
    }
    if (options.timeout && !options.wait_agent) {
        return sf_ctl_usage("run", "run: --timeout is for --wait-agent");
    }
    if (options.console && ctl->json) {
        return sf_ctl_usage("run", "run: --console and --json: only one of them");
    }
    if (!sf_ctl_is_local(ctl, "run")) {
        return SF_CTL_ERROR;
    }
    JsonObject *params = sf_ctl_run_params(&options, argc > 0 ? argv[0] : NULL, &error);
    if (!params) {
        return sf_ctl_usage("run", "run: %s", error->message);
    }
    g_autoptr(JsonObject) result =
        sf_ctl_call_patiently(ctl, "the VM starts", "vm.run", params, SF_CTL_NO_LIMIT, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    g_autofree char *name = g_strdup(sf_ctl_string(sf_ctl_object(result, "vm"), "name"));
    if (!name) {
        return sf_ctl_fail(ctl, NULL, "sfvmmd did not say the VM's name");
    }
    if (options.wait_agent) {
        g_autofree char *what = g_strdup_printf("VM \"%s\" boots", name);
        params = sf_ctl_params("vm", name);
        json_object_set_boolean_member(params, "agent", TRUE);
        if (timeout != SF_CTL_NO_LIMIT) {
            json_object_set_int_member(params, "timeout_ms", timeout);
        }
        JsonObject *waited = sf_ctl_call_patiently(ctl, what, "vm.wait", params, SF_CTL_NO_LIMIT, &error);
        if (!waited) {
            return sf_ctl_fail_call(ctl, error);
        }
        json_object_unref(result);
        result = waited;
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else if (options.quiet) {
        sf_ctl_print(name);
    } else {
        print_started(sf_ctl_object(result, "vm"));
    }
    return options.console ? sf_ctl_console_attach(ctl, name) : SF_CTL_OK;
}
