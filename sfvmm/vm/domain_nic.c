/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     libvirt:  opens /dev/net/tun in the host's namespace --> vnet7 --> QEMU gets the descriptor
 *     here:     a pin for the cluster's namespace --> QEMU (getfd)
 *               QEMU's descriptor of vnet7, found by the kernel's word for it (fdinfo) --> into the cluster's namespace
 *
 * A tap's frames go through its descriptor, wherever its device is: the guest sees nothing of the move. But the device
 * does not keep its new namespace alive, as a tap that was opened there would. So QEMU holds a socket that was: the
 * monitor's list of named descriptors keeps it, through restarts of libvirtd and sfvmmd. It is there before the tap is
 * moved, so there is no moment at which a killed sfvmmd takes a running domain's NIC with it. Its name there is new
 * each time: a domain that another sfvmmd takes has an old pin, which must not go before its tap has left that
 * namespace.
 *
 * libvirt is told nothing. It knows the tap by name: domiflist shows it, domifstat does not find it on the host. When
 * the domain ends, the tap goes with QEMU, and libvirt, which deletes taps by name, makes one of that name for a moment
 * (virNetDevTapDelete), as it does when there is none.
 */
#include "sfvmm/vm/domain_nic.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIN_NAME      "sf-cluster-%" G_GUINT64_FORMAT /* with the socket's inode: no two live ones have the same */
#define NETDEV_PREFIX "host"                          /* libvirt's netdev ids: this and the device's alias */
#define FDINFO_IS_TAP "\niff:\t"

typedef struct {
    SfVm *vm;
    const SfTapProvider *taps;
    char *target, *alias;
    char *pin_name;
    SfDomainNicDone done;
    gpointer data;
} Plug;

static void plug_end(Plug *plug, const GError *error)
{
    plug->done(error, plug->data);
    g_object_unref(plug->vm);
    g_free(plug->target);
    g_free(plug->alias);
    g_free(plug->pin_name);
    g_free(plug);
}

/* The descriptor of the process behind which the tap is; -1: none. */
static int find_descriptor(pid_t pid, const char *target)
{
    g_autofree char *folder = g_strdup_printf("/proc/%d/fdinfo", pid);
    g_autofree char *line = g_strdup_printf(FDINFO_IS_TAP "%s\n", target);
    g_autoptr(GDir) entries = g_dir_open(folder, 0, NULL);
    const char *entry;

    while (entries && (entry = g_dir_read_name(entries))) {
        g_autofree char *path = g_build_filename(folder, entry, NULL);
        g_autofree char *text = NULL;
        if (g_file_get_contents(path, &text, NULL, NULL) && strstr(text, line)) {
            return (int)g_ascii_strtoll(entry, NULL, 10);
        }
    }
    return -1;
}

static gboolean take_tap(Plug *plug, GError **error)
{
    SfVm *vm = plug->vm;
    int tap;
    gboolean ok;

    vm->tap_number = find_descriptor(vm->pid, plug->target);
    if (vm->tap_number < 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "its QEMU has no tap %s, as libvirt says", plug->target);
        return FALSE;
    }
    tap = sf_vm_borrow_tap(vm, error);
    if (tap < 0) {
        return FALSE;
    }
    ok = plug->taps->plug(plug->taps->owner, vm->name, tap, &vm->tap, error);
    close(tap);
    if (!ok) {
        return FALSE;
    }
    vm->netdev = g_strconcat(NETDEV_PREFIX, plug->alias, NULL);
    return sf_vm_save(vm, error);
}

static JsonObject *pin_arguments(const Plug *plug)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "fdname", plug->pin_name);
    return args;
}

static void on_pinned(JsonNode *result, const GError *error, gpointer data)
{
    Plug *plug = data;
    g_autoptr(GError) failure = NULL;

    if (!error && !plug->vm->gone) {
        if (!take_tap(plug, &failure) && !plug->vm->tap && plug->vm->qmp) {
            sf_qmp_execute(plug->vm->qmp, "closefd", pin_arguments(plug), -1, NULL, NULL);
        }
    } else if (!error) {
        failure = g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "it has ended");
    }
    plug_end(plug, error ? error : failure);
}

void sf_domain_nic_plug(SfVm *vm, const SfTapProvider *taps, const char *target, const char *alias,
                        SfDomainNicDone done, gpointer data)
{
    Plug *plug = g_new0(Plug, 1);
    g_autoptr(GError) error = NULL;
    struct stat st = { 0 };
    int pin;

    *plug = (Plug){ g_object_ref(vm), taps, g_strdup(target), g_strdup(alias), NULL, done, data };
    pin = taps->pin ? taps->pin(taps->owner, vm->name, &error) : -1;
    if (pin < 0 || !vm->qmp) {
        if (pin >= 0) {
            close(pin);
        }
        if (!error) {
            error = g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                        taps->pin ? "its monitor has closed" : "nobody here makes cluster networks");
        }
        plug_end(plug, error);
        return;
    }
    fstat(pin, &st);
    plug->pin_name = g_strdup_printf(PIN_NAME, (guint64)st.st_ino);
    sf_qmp_execute(vm->qmp, "getfd", pin_arguments(plug), pin, on_pinned, plug);
}
