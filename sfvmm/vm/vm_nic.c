/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * QEMU has a link state on both ends of a NIC's connection: the device's, which the guest sees and which is part of the
 * device state, and the netdev's, which nobody sees and which stays as it is when a snapshot is loaded. `set_link` off
 * before the load changes both; the load puts the device's back to what the parent's was. So the guest of a clone
 * notices nothing, while QEMU drops all frames both ways at the netdev, until `set_link` on.
 *
 * A NIC whose state was loaded is a machine that has moved, for QEMU: it has the guest announce its addresses, five
 * times in the first second. Of a clone they are the parent's at first, and each later time disturbs all others. So the
 * NICs that we make can't have it announce anything (guest_announce); for those of domains, which are not of our
 * making, there is one round, which comes when the clone has no link yet.
 *
 * A domain may have NICs in other networks. What libvirt has set them to before the load, a link that is down, the load
 * has undone as well, and libvirt does not know of it. There the guest still has its parent's MAC, so it is done again
 * behind the load, at the device, where libvirt does it and where `virsh domif-setlink` undoes it.
 */
#include "sfvmm/vm/vm_private.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sfvmm/vm/command_line.h"

#define ANNOUNCEMENTS 1 /* with none QEMU 10.0 ends at the next reset of the NIC, which has no timer for them then */

static JsonObject *arguments_for(const char *name, gboolean up)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "name", name);
    json_object_set_boolean_member(args, "up", up);
    return args;
}

static JsonObject *link_arguments(SfVm *vm, gboolean up)
{
    return arguments_for(vm->netdev ? vm->netdev : SF_NETDEV_ID, up);
}

static JsonObject *few_announcements(void)
{
    JsonObject *args = json_object_new();

    json_object_set_int_member(args, "announce-rounds", ANNOUNCEMENTS);
    return args;
}

void sf_vm_nic_load(SfVm *vm, SfQmpBatch *batch)
{
    if (vm->tap) {
        sf_qmp_batch_add(batch, "migrate-set-parameters", few_announcements(), -1);
        sf_qmp_batch_add(batch, "set_link", link_arguments(vm, FALSE), -1);
    }
}

/* It must not run with a link there. */
static void on_unlinked(JsonNode *result, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    if (error && !vm->gone && !vm->shutdown_reason) {
        vm->shutdown_reason =
            g_strdup_printf("the link of one of its interfaces can't be set down: %s", error->message);
        sf_vm_kill(vm);
    }
}

void sf_vm_nic_loaded(SfVm *vm)
{
    for (char **nic = vm->unlinked; nic && *nic; nic++) {
        sf_qmp_execute(vm->qmp, "set_link", arguments_for(*nic, FALSE), -1, on_unlinked, g_object_ref(vm));
    }
}

static void unlinked_to_json(SfVm *vm, JsonObject *object)
{
    JsonArray *array = json_array_new();

    for (char **nic = vm->unlinked; *nic; nic++) {
        json_array_add_string_element(array, *nic);
    }
    json_object_set_array_member(object, "unlinked", array);
}

static char **unlinked_from_json(JsonObject *object)
{
    JsonNode *node = json_object_get_member(object, "unlinked");
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
    g_autoptr(GStrvBuilder) builder = g_strv_builder_new();

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *nic = json_array_get_element(array, i);
        if (json_node_get_value_type(nic) == G_TYPE_STRING) {
            g_strv_builder_add(builder, json_node_get_string(nic));
        }
    }
    return array ? g_strv_builder_end(builder) : NULL;
}

void sf_vm_nic_to_json(SfVm *vm, JsonObject *object)
{
    if (vm->unlinked) {
        unlinked_to_json(vm, object);
    }
    if (vm->tap) {
        json_object_set_string_member(object, "tap", vm->tap);
        json_object_set_int_member(object, "tap_number", vm->tap_number);
    }
    if (vm->netdev) {
        json_object_set_string_member(object, "netdev", vm->netdev);
    }
}

void sf_vm_nic_from_json(SfVm *vm, JsonObject *object)
{
    vm->tap = g_strdup(json_object_get_string_member_with_default(object, "tap", NULL));
    vm->tap_number = (int)json_object_get_int_member_with_default(object, "tap_number", -1);
    vm->unlinked = unlinked_from_json(object);
    vm->netdev = g_strdup(json_object_get_string_member_with_default(object, "netdev", NULL));
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
    sf_vm_qmp_async(vm, "set_link", link_arguments(vm, TRUE), on_linked, g_task_new(vm, NULL, callback, data));
}

gboolean sf_vm_link_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}
