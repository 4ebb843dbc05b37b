/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * QEMU has a link state on both ends of a NIC's connection: the device's, which the guest sees and which is part of the
 * device state, and the netdev's, which nobody sees and which stays as it is when a snapshot is loaded. `set_link` off
 * before the load changes both; the load puts the device's back to what the parent's was. So the guest of a clone
 * notices nothing, while QEMU drops all frames both ways at the netdev, until `set_link` on.
 */
#include "sfvmm/vm/vm_private.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sfvmm/vm/command_line.h"

static JsonObject *link_arguments(gboolean up)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "name", SF_NETDEV_ID);
    json_object_set_boolean_member(args, "up", up);
    return args;
}

void sf_vm_nic_load(SfVm *vm, SfQmpBatch *batch)
{
    if (vm->tap) {
        sf_qmp_batch_add(batch, "set_link", link_arguments(FALSE), -1);
    }
}

void sf_vm_nic_to_json(SfVm *vm, JsonObject *object)
{
    if (vm->tap) {
        json_object_set_string_member(object, "tap", vm->tap);
        json_object_set_int_member(object, "tap_number", vm->tap_number);
    }
}

void sf_vm_nic_from_json(SfVm *vm, JsonObject *object)
{
    vm->tap = g_strdup(json_object_get_string_member_with_default(object, "tap", NULL));
    vm->tap_number = (int)json_object_get_int_member_with_default(object, "tap_number", -1);
}

const char *sf_vm_tap(SfVm *vm)
{
    return vm->tap;
}

int sf_vm_borrow_tap(SfVm *vm, GError **error)
{
    int tap = (int)syscall(SYS_pidfd_getfd, vm->pidfd, vm->tap_number, 0);

    if (tap < 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "VM %s: its tap can't be taken from QEMU: %s", vm->name,
                    g_strerror(errno));
    }
    return tap;
}

static void on_linked(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    g_autoptr(JsonNode) node = NULL;
    GError *error = NULL;

    node = sf_vm_qmp_finish(SF_VM(source), result, &error);
    if (error) {
        g_task_return_error(task, error);
    } else {
        g_task_return_boolean(task, TRUE);
    }
}

void sf_vm_link_async(SfVm *vm, GAsyncReadyCallback callback, gpointer data)
{
    sf_vm_qmp_async(vm, "set_link", link_arguments(TRUE), on_linked, g_task_new(vm, NULL, callback, data));
}

gboolean sf_vm_link_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}
