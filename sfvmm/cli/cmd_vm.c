/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The group "Virtual machines". run and console have files of their own. */
#include <stdio.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/units.h"
#include "sfvmm/cli/view.h"

#define POOL_MAX        1024

static gboolean option_quiet, option_force;
static char *option_timeout;

static const GOptionEntry list_options[] = {
    {"quiet", 'q', 0, G_OPTION_ARG_NONE, &option_quiet, "Only the names, one a line", NULL},
    {NULL},
};

static const GOptionEntry stop_options[] = {
    { "force", 'f', 0, G_OPTION_ARG_NONE, &option_force, "Kill it instead of pressing its power button", NULL },
    { "timeout", 't', 0, G_OPTION_ARG_STRING, &option_timeout, "Wait at most so long for the guest to power down",
      "TIME" },
    { NULL },
};

static JsonObject *find_vm(JsonArray *vms, const char *name)
{
    for (guint i = 0; i < json_array_get_length(vms); i++) {
        JsonObject *vm = json_array_get_object_element(vms, i);
        if (g_strcmp0(sf_ctl_string(vm, "name"), name) == 0) {
            return vm;
        }
    }
    return NULL;
}

/* A clone on another host as the VM that it is there, as far as its ticket and its parent tell. */
static JsonObject *vm_elsewhere(JsonObject *clone, JsonObject *ticket, JsonObject *parent)
{
    JsonObject *vm = json_object_new();

    json_object_set_string_member(vm, "name", sf_ctl_string(clone, "vm"));
    json_object_set_string_member(vm, "role", "clone");
    json_object_set_string_member(vm, "state", sf_ctl_string(clone, "state"));
    json_object_set_string_member(vm, "host", sf_ctl_string(clone, "host"));
    json_object_set_string_member(vm, "parent", sf_ctl_string(ticket, "vm"));
    json_object_set_string_member(vm, "ticket", sf_ctl_string(ticket, "ticket"));
    json_object_set_int_member(vm, "id", sf_ctl_int(clone, "id"));
    json_object_set_boolean_member(vm, "agent", sf_ctl_int(clone, "answered") > 0);
    json_object_set_int_member(vm, "started", sf_ctl_int(clone, "running"));
    if (parent) {
        json_object_set_int_member(vm, "memory", sf_ctl_int(parent, "memory"));
        json_object_set_int_member(vm, "vcpus", sf_ctl_int(parent, "vcpus"));
        json_object_set_string_member(vm, "accel", sf_ctl_string(parent, "accel"));
        json_object_set_string_member(vm, "family", sf_ctl_string(parent, "family"));
    }
    return vm;
}

/* vm.list says what runs on this host; clones of its VMs that live on others stand in their tickets. */
static gboolean add_vms_elsewhere(SfCtl *ctl, JsonArray *vms, GError **error)
{
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "ticket.list", NULL, SF_CTL_SOON_MS, error);
    JsonArray *tickets = result ? sf_ctl_array(result, "tickets") : NULL;

    for (guint i = 0; tickets && i < json_array_get_length(tickets); i++) {
        JsonObject *ticket = json_array_get_object_element(tickets, i);
        JsonArray *clones = sf_ctl_array(ticket, "clones");
        for (guint c = 0; clones && c < json_array_get_length(clones); c++) {
            JsonObject *clone = json_array_get_object_element(clones, c);
            const char *host = sf_ctl_string(clone, "host"), *state = sf_ctl_string(clone, "state");
            if (host && *host && (g_strcmp0(state, "running") == 0 || g_strcmp0(state, "starting") == 0)) {
                json_array_add_object_element(vms,
                                              vm_elsewhere(clone, ticket, find_vm(vms, sf_ctl_string(ticket, "vm"))));
            }
        }
    }
    return result != NULL;
}

static int run_list(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "vm.list", NULL, SF_CTL_SOON_MS, &error);

    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    JsonArray *vms = sf_ctl_array(result, "vms");
    if (!ctl->json && !option_quiet && vms && !add_vms_elsewhere(ctl, vms, &error)) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else if (option_quiet) {
        for (guint i = 0; vms && i < json_array_get_length(vms); i++) {
            sf_ctl_print(sf_ctl_string(json_array_get_object_element(vms, i), "name"));
        }
    } else {
        sf_view_vm_list(ctl, vms);
    }
    return SF_CTL_OK;
}

static int show_ticket(SfCtl *ctl, const char *text, GError **error)
{
    g_autofree char *id = sf_ctl_find_ticket(ctl, text, error);
    g_autoptr(JsonObject) result = id ? sf_client_call(ctl->client, "ticket.status", sf_ctl_params("ticket", id),
                                                       SF_CTL_SOON_MS, error)
                                      : NULL;
    if (!result) {
        return SF_CTL_ERROR;
    }
    sf_view_ticket_of(ctl, result, FALSE);
    return SF_CTL_OK;
}

/* A name is looked up as a VM first; what looks like a ticket and is no VM is one. */
static int run_status(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;

    if (argc == 0) {
        return sf_ctl_daemon_status(ctl, 0, NULL);
    }
    g_autoptr(JsonObject) result =
        sf_client_call(ctl->client, "vm.status", sf_ctl_params("vm", argv[0]), SF_CTL_SOON_MS, &error);
    if (!result && sf_ctl_error_is(ctl, "no-such-vm") && sf_ctl_looks_like_ticket(argv[0])) {
        g_clear_error(&error);
        return show_ticket(ctl, argv[0], &error) == SF_CTL_OK ? SF_CTL_OK : sf_ctl_fail_call(ctl, error);
    }
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        sf_view_vm(ctl, sf_ctl_object(result, "vm"));
    }
    return SF_CTL_OK;
}

static int run_stop(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    int timeout = SF_CTL_NO_LIMIT;

    if (option_timeout && !sf_units_parse_duration("--timeout", option_timeout, &timeout, &error)) {
        return sf_ctl_usage("stop", "stop: %s", error->message);
    }
    JsonObject *params = sf_ctl_params("vm", argv[0]);
    if (option_force) {
        json_object_set_boolean_member(params, "force", TRUE);
    }
    if (timeout != SF_CTL_NO_LIMIT) {
        json_object_set_int_member(params, "timeout_ms", timeout);
    }
    g_autofree char *what = g_strdup_printf("VM \"%s\" powers down", argv[0]);
    g_autoptr(JsonObject) result = sf_ctl_call_patiently(ctl, what, "vm.stop", params, SF_CTL_NO_LIMIT, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        printf("VM \"%s\" is gone\n", argv[0]);
    }
    return SF_CTL_OK;
}

static int run_check(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "vm.check", sf_ctl_params("vm", argv[0]), SF_CTL_SOON_MS,
                                                  &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    gboolean forkable = sf_ctl_bool(result, "forkable");
    JsonNode *node = json_object_get_member(result, "obstacles");
    JsonArray *obstacles = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else if (forkable) {
        printf("VM \"%s\" can be forked\n", argv[0]);
    } else {
        printf("VM \"%s\" can't be forked:\n", argv[0]);
        for (guint i = 0; obstacles && i < json_array_get_length(obstacles); i++) {
            JsonNode *element = json_array_get_element(obstacles, i);
            if (JSON_NODE_HOLDS_VALUE(element) && json_node_get_string(element)) {
                g_autofree char *clean = sf_text_harmless(json_node_get_string(element));
                printf("  %s\n", clean);
            }
        }
    }
    return forkable ? SF_CTL_OK : SF_CTL_ERROR;
}

static int run_pool(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    gint64 target;

    if (!sf_units_parse_count("N", argv[1], 0, POOL_MAX, &target, &error)) {
        return sf_ctl_usage("pool", "pool: %s", error->message);
    }
    JsonObject *params = sf_ctl_params("vm", argv[0]);
    json_object_set_int_member(params, "target", target);
    g_autoptr(JsonObject) result = sf_client_call(ctl->client, "vm.pool", params, SF_CTL_SOON_MS, &error);
    if (!result) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(result);
    } else {
        printf("VM \"%s\": %" G_GINT64_FORMAT " of %" G_GINT64_FORMAT " shells ready\n", argv[0],
               sf_ctl_int(result, "ready"), sf_ctl_int(result, "target"));
    }
    return SF_CTL_OK;
}

static const char run_help[] =
    "IMAGE is a disk image (qcow2 or raw, written as PATH[,ro][,ephemeral][,format=raw|qcow2]), or a directory with\n"
    "vmlinuz, initrd.img, cmdline and rootfs.qcow2, as scripts/guest-image makes it. Sizes are binary: 1G = 1024M.\n"
    "\n"
    "Examples:\n"
    "  sfctl run debian.qcow2 --name web --memory 1G --vcpus 2 --pool 8 --wait-agent\n"
    "  sfctl run image/ --ephemeral --console\n"
    "  sfctl run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --disk data.raw,ro,format=raw";

static const char console_help[] =
    "What the console has shown lately is replayed first. ^] (Ctrl and the right square bracket) detaches; the VM "
    "goes\n"
    "on. The input may be a pipe; then what it says is typed, and the output is shown until the VM ends or sfctl is\n"
    "stopped.";

const SfCtlCommand sf_ctl_vm_commands[] = {
    { "run", "[IMAGE] [OPTIONS]", "Start a VM from a disk image or a kernel", run_help, sf_ctl_run_options, 0, 1,
      sf_ctl_run, "file" },
    { "list", "", "List VMs, each with its clones below it", NULL, list_options, 0, 0, run_list, NULL },
    { "status", "[VM|TICKET]", "Show all about a VM, a ticket, or the daemon", NULL, NULL, 0, 1, run_status,
      "vm ticket" },
    { "console", "VM", "Attach the terminal to a VM's serial console", console_help, NULL, 1, 1, sf_ctl_console, "vm" },
    { "check", "VM", "Say whether a VM can be forked, and what stands in the way", "Exit status 1 when it can't.", NULL,
      1, 1, run_check, "vm" },
    { "pool", "VM N", "Keep N shells ready for clones of a VM",
      "A shell is a paused QEMU of the same configuration; a clone that finds one starts in milliseconds.", NULL, 2, 2,
      run_pool, "vm" },
    { "stop", "VM", "Power a VM down", NULL, stop_options, 1, 1, run_stop, "vm" },
    { NULL },
};
