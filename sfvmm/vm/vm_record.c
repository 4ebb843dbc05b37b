/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * vm.json: what an adoption needs. It is written (tmp file, rename) whenever a step is complete: after start, snapshot,
 * load, commit.
 */
#include "sfvmm/vm/vm_private.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "sfvmm/wire/state_file.h"

static JsonObject *vm_to_json(SfVm *vm)
{
    JsonObject *object = json_object_new();
    JsonArray *disks = json_array_new();

    json_object_set_string_member(object, "role", sf_vm_role_names[vm->role]);
    json_object_set_int_member(object, "pid", vm->pid);
    json_object_set_int_member(object, "start_time", vm->start_time);
    json_object_set_boolean_member(object, "agent", vm->agent_seen);
    json_object_set_boolean_member(object, "anonymous", vm->anonymous);
    json_object_set_object_member(object, "config", sf_vm_config_to_json(vm->config));
    if (vm->keeper) {
        json_object_set_object_member(object, "keeper", vm->keeper->to_json(vm->keeper_data));
        json_object_set_string_member(object, "agent_socket", vm->agent_socket ? vm->agent_socket : "");
        json_object_set_string_member(object, "agent_port", vm->agent_port ? vm->agent_port : "");
    }
    if (vm->snapshot_id) {
        json_object_set_string_member(object, "snapshot", vm->snapshot_id);
    }
    sf_vm_lazy_to_json(vm, object);
    sf_vm_nic_to_json(vm, object);
    for (guint i = 0; i < vm->disks->len; i++) {
        json_array_add_object_element(disks, sf_vm_disk_to_json(g_ptr_array_index(vm->disks, i)));
    }
    json_object_set_array_member(object, "disks", disks);
    return object;
}

gboolean sf_vm_save(SfVm *vm, GError **error)
{
    g_autoptr(JsonObject) object = vm_to_json(vm);
    g_autofree char *path = sf_vm_path(vm, SF_VM_FILE_JSON);
    g_autoptr(GError) failure = NULL;

    if (sf_state_write(path, object, &failure)) {
        return TRUE;
    }
    g_warning("VM %s: %s; a restarted sfvmmd would not find this VM as it is", vm->name, failure->message);
    g_propagate_error(error, g_steal_pointer(&failure));
    return FALSE;
}

static gboolean restore_disks(SfVm *vm, JsonObject *object, GError **error)
{
    JsonNode *disks = json_object_get_member(object, "disks");

    if (!disks || !JSON_NODE_HOLDS_ARRAY(disks)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "no \"disks\"");
        return FALSE;
    }
    for (guint i = 0; i < json_array_get_length(json_node_get_array(disks)); i++) {
        JsonNode *node = json_array_get_element(json_node_get_array(disks), i);
        SfVmDisk *disk = JSON_NODE_HOLDS_OBJECT(node) ? sf_vm_disk_from_json(json_node_get_object(node), error) : NULL;
        if (!disk) {
            return FALSE;
        }
        sf_vm_add_disk(vm, disk);
    }
    return TRUE;
}

static SfVm *vm_from_json(const SfLauncherOptions *options, const char *name, JsonObject *object, GError **error)
{
    const char *role_name = json_object_get_string_member_with_default(object, "role", "");
    const char *snapshot = json_object_get_string_member_with_default(object, "snapshot", NULL);
    JsonNode *config_node = json_object_get_member(object, "config");
    g_autoptr(SfVmConfig) config = NULL;
    g_autoptr(SfVm) vm = NULL;
    guint role = 0;

    while (role < G_N_ELEMENTS(sf_vm_role_names) && strcmp(sf_vm_role_names[role], role_name) != 0) {
        role++;
    }
    if (role == G_N_ELEMENTS(sf_vm_role_names) || !config_node || !JSON_NODE_HOLDS_OBJECT(config_node)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "no \"role\" or \"config\"");
        return NULL;
    }
    config = sf_vm_config_restore(json_node_get_object(config_node), error);
    if (!config) {
        return NULL;
    }
    vm = sf_vm_new(options, name, role, config);
    vm->snapshot_id = g_strdup(snapshot);
    vm->pid = json_object_get_int_member_with_default(object, "pid", 0);
    vm->start_time = json_object_get_int_member_with_default(object, "start_time", 0);
    vm->agent_seen = json_object_get_boolean_member_with_default(object, "agent", FALSE);
    vm->anonymous = json_object_get_boolean_member_with_default(object, "anonymous", FALSE);
    sf_vm_nic_from_json(vm, object);
    if (json_object_has_member(object, "keeper") && JSON_NODE_HOLDS_OBJECT(json_object_get_member(object, "keeper"))) {
        vm->keeper_json = json_object_ref(json_object_get_object_member(object, "keeper"));
        vm->agent_socket = g_strdup(json_object_get_string_member_with_default(object, "agent_socket", ""));
        vm->agent_port = g_strdup(json_object_get_string_member_with_default(object, "agent_port", ""));
    }
    return restore_disks(vm, object, error) && sf_vm_lazy_from_json(vm, object, error) ? g_steal_pointer(&vm) : NULL;
}

SfVm *sf_vm_restore(const SfLauncherOptions *options, const char *name, GError **error)
{
    g_autofree char *path = g_build_filename(options->run_directory, "vm", name, SF_VM_FILE_JSON, NULL);
    g_autoptr(JsonObject) object = sf_state_read(path, error);
    SfVm *vm = object ? vm_from_json(options, name, object, error) : NULL;

    if (object && !vm) {
        g_prefix_error(error, "%s: ", path);
    }
    return vm;
}

gboolean sf_vm_rename(SfVm *vm, const char *name, GError **error)
{
    g_autofree char *parent = g_path_get_dirname(vm->directory);
    g_autofree char *directory = g_build_filename(parent, name, NULL);

    /* An existing directory that is not empty makes it fail. */
    if (rename(vm->directory, directory) < 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "VM %s can't be renamed to %s: %s", vm->name, name,
                    g_strerror(errno));
        return FALSE;
    }
    g_free(vm->directory);
    vm->directory = g_steal_pointer(&directory);
    g_free(vm->name);
    vm->name = g_strdup(name);
    if (vm->guest) {
        sf_guest_channel_set_name(vm->guest, name);
    }
    return TRUE; /* vm.json holds no name: that of the directory counts */
}
