/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The group "The daemon". */
#include <stdio.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/units.h"

#define LABEL_WIDTH   10

static void print_line(const char *label, const char *text)
{
    if (text && *text) {
        g_autofree char *line = g_strdup_printf("  %-*s %s", LABEL_WIDTH, label, text);
        sf_ctl_print(line);
    }
}

static void print_accel(JsonObject *status)
{
    const char *reason = sf_ctl_string(status, "accel_reason");
    g_autofree char *text = g_strdup_printf("%s%s%s%s", sf_ctl_string(status, "accel"), reason && *reason ? " (" : "",
                                            reason && *reason ? reason : "", reason && *reason ? ")" : "");
    print_line("accel", text);
}

static void print_counts(JsonObject *status)
{
    static const struct {
        const char *member, *one, *many;
    } counts[] = {
        { "vms", "VM", "VMs" },
        { "clones", "clone", "clones" },
        { "shells", "shell", "shells" },
        { "tickets", "ticket", "tickets" },
    };
    g_autoptr(GString) text = g_string_new(NULL);

    for (guint i = 0; i < G_N_ELEMENTS(counts); i++) {
        gint64 n = sf_ctl_int(status, counts[i].member);
        g_string_append_printf(text, "%s%" G_GINT64_FORMAT " %s", i ? ", " : "", n,
                               n == 1 ? counts[i].one : counts[i].many);
    }
    print_line("has", text->str);
}

static void print_limits(JsonObject *limits)
{
    gint64 memory = sf_ctl_int(limits, "memory");
    g_autofree char *size = memory > 0 ? sf_units_format_size((guint64)memory) : g_strdup("no limit");
    g_autofree char *text = g_strdup_printf(
        "%" G_GINT64_FORMAT " clones a ticket, %" G_GINT64_FORMAT " a VM; %" G_GINT64_FORMAT " VMs; memory: %s",
        sf_ctl_int(limits, "clones_per_ticket"), sf_ctl_int(limits, "clones_per_vm"), sf_ctl_int(limits, "vms"), size);
    print_line("limits", text);
}

int sf_ctl_daemon_status(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) status = sf_client_call(ctl->client, "daemon.status", NULL, SF_CTL_SOON_MS, &error);

    if (!status) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (ctl->json) {
        sf_ctl_print_json(status);
        return SF_CTL_OK;
    }
    g_autofree char *title = g_strdup_printf("sfvmmd %s, pid %" G_GINT64_FORMAT, sf_ctl_string(status, "version"),
                                             sf_ctl_int(status, "pid"));
    sf_ctl_print(title);
    if (json_object_has_member(status, "uptime_ms")) {
        g_autofree char *up = sf_units_format_age_ms((guint64)sf_ctl_int(status, "uptime_ms"));
        print_line("up", up);
    }
    print_line("socket", sf_client_socket(ctl->client));
    print_line("state", sf_ctl_string(status, "run_directory"));
    print_line("QEMU", sf_ctl_string(status, "qemu"));
    print_line("version", sf_ctl_string(status, "qemu_version"));
    print_accel(status);
    print_line("launcher", sf_ctl_string(status, "launcher"));
    print_counts(status);
    print_limits(sf_ctl_object(status, "limits"));
    return SF_CTL_OK;
}

/* Our own version needs no daemon; one that does not answer is no failure here. */
static int run_version(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(JsonObject) status = sf_client_call(ctl->client, "daemon.status", NULL, SF_CTL_SOON_MS, NULL);
    const char *daemon = sf_ctl_string(status, "version"), *qemu = sf_ctl_string(status, "qemu_version");

    if (ctl->json) {
        g_autoptr(JsonObject) object = json_object_new();
        json_object_set_string_member(object, "sfctl", SF_VERSION);
        if (daemon) {
            json_object_set_string_member(object, "sfvmmd", daemon);
        }
        if (qemu) {
            json_object_set_string_member(object, "qemu", qemu);
        }
        sf_ctl_print_json(object);
        return SF_CTL_OK;
    }
    g_autofree char *daemon_line = g_strconcat("sfvmmd ", daemon ? daemon : "does not answer", NULL);
    puts("sfctl  " SF_VERSION);
    sf_ctl_print(daemon_line);
    if (qemu) {
        g_autofree char *qemu_line = g_strconcat("QEMU   ", qemu, NULL);
        sf_ctl_print(qemu_line);
    }
    return SF_CTL_OK;
}

const SfCtlCommand sf_ctl_daemon_commands[] = {
    {"daemon", "", "Show what sfvmmd is, has and allows", NULL, NULL, 0, 0, sf_ctl_daemon_status, NULL},
    {"version", "", "Show the versions of sfctl, sfvmmd and QEMU", NULL, NULL, 0, 0, run_version, NULL},
    {NULL},
};
