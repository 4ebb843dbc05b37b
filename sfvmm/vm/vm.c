/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * One object for one QEMU process, and three connections to it:
 *
 *     QMP         qmp.sock: QEMU listens on a socket that we have bound       what stock QEMU can: disks, power button
 *     sf channel  a socket pair: one end goes in by QMP (getfd, sf-attach)    snapshot, load, fold
 *     agent port  agent.sock                                                  frames to and from the guest's agent
 *
 * The process is the truth (vm_process.c): connections that break while it lives are made anew (vm_connection.c,
 * vm_guest.c), and only the pidfd says that the VM has gone.
 *
 * vm.json holds what an adoption needs (vm_record.c). What became of a snapshot (vm_snapshot.c) or a commit
 * (vm_settle.c) that was under way when sfvmmd ended is asked of QEMU (vm_doubt.c); a process in the middle of a load
 * (vm_load.c) is killed.
 *
 * Main thread only.
 */
#include "sfvmm/vm/vm_private.h"

#include <stdio.h>
#include <unistd.h>

#define NS_PER_S 1000000000

G_DEFINE_QUARK(sf - vm - error - quark, sf_vm_error)
G_DEFINE_FINAL_TYPE(SfVm, sf_vm, G_TYPE_OBJECT)

const char *const sf_vm_role_names[SF_VM_ROLES] = {
    [SF_VM_PARENT] = "parent",
    [SF_VM_SHELL] = "shell",
    [SF_VM_CLONE] = "clone",
};

/* ---- what it is ---- */

const char *sf_vm_name(SfVm *vm)
{
    return vm->name;
}

SfVmRole sf_vm_role(SfVm *vm)
{
    return vm->role;
}

void sf_vm_set_role(SfVm *vm, SfVmRole role)
{
    vm->role = role;
    sf_vm_save(vm, NULL);
}

const char *sf_vm_domain(SfVm *vm)
{
    return vm->keeper ? vm->keeper->name(vm->keeper_data) : NULL;
}

void sf_vm_label(SfVm *vm, const char *parent, guint64 ticket, guint id)
{
    g_autofree char *text = g_strdup_printf("%016" G_GINT64_MODIFIER "x", ticket);
    const SfDomainLineage lineage = { .role = sf_vm_role_names[vm->role],
                                      .owner = vm->owner,
                                      .vm = vm->name,
                                      .parent = parent,
                                      .ticket = text,
                                      .snapshot = vm->snapshot_id,
                                      .id = id };

    if (vm->keeper) {
        vm->keeper->label(vm->keeper_data, &lineage);
    }
}

pid_t sf_vm_pid(SfVm *vm)
{
    return vm->pid;
}

SfVmConfig *sf_vm_config(SfVm *vm)
{
    return vm->config;
}

const char *sf_vm_directory(SfVm *vm)
{
    return vm->directory;
}

gboolean sf_vm_is_running(SfVm *vm)
{
    return vm->running && !vm->gone;
}

gboolean sf_vm_is_gone(SfVm *vm)
{
    return vm->gone;
}

gboolean sf_vm_has_agent(SfVm *vm)
{
    return vm->guest && sf_guest_channel_is_connected(vm->guest);
}

gboolean sf_vm_expects_agent(SfVm *vm)
{
    return vm->agent_seen;
}

SfRamBase *sf_vm_ram_base(SfVm *vm)
{
    if (!vm->base && vm->role != SF_VM_SHELL) {
        vm->base = sf_ram_base_new();
    }
    return vm->base;
}

SfSnapshot *sf_vm_loaded_snapshot(SfVm *vm)
{
    return vm->snapshot;
}

const char *sf_vm_loaded_snapshot_id(SfVm *vm)
{
    return vm->snapshot_id;
}

void sf_vm_set_loaded_snapshot(SfVm *vm, SfSnapshot *snapshot)
{
    SfSnapshot *old = vm->snapshot;

    vm->snapshot = sf_snapshot_ref(snapshot);
    g_free(vm->snapshot_id);
    vm->snapshot_id = g_strdup(snapshot->id);
    g_clear_pointer(&vm->base, sf_ram_base_unref);
    vm->base = sf_ram_base_ref(snapshot->base);
    if (old) {
        sf_snapshot_unref(old);
    }
}

GPtrArray *sf_vm_disks(SfVm *vm)
{
    return vm->chains;
}

const char *sf_vm_qemu_version(SfVm *vm)
{
    return vm->hello.qemu_version;
}

const char *sf_vm_machine(SfVm *vm)
{
    return vm->hello.machine;
}

gint64 sf_vm_started(SfVm *vm)
{
    return (gint64)vm->start_time * (NS_PER_S / sysconf(_SC_CLK_TCK));
}

const char *sf_vm_cpu(SfVm *vm)
{
    return vm->hello.cpu;
}

char *sf_vm_path(SfVm *vm, const char *file)
{
    return g_build_filename(vm->directory, file, NULL);
}

/* Names of VMs come again while clones still stand on an overlay of the last one of that name: so a random part. */
char *sf_vm_overlay_path(SfVm *vm, const char *disk)
{
    g_autofree char *file = g_strdup_printf("%s-%s-%08x%08x.qcow2", vm->name, disk, g_random_int(), g_random_int());

    return g_build_filename(vm->overlay_directory, file, NULL);
}

char *sf_vm_template_path(SfVm *vm, guint64 size)
{
    g_autofree char *file = g_strdup_printf("%" G_GUINT64_FORMAT ".qcow2", size);

    return g_build_filename(vm->template_directory, file, NULL);
}

void sf_vm_fail_gone(SfVm *vm, GTask *task)
{
    g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: %s", vm->name,
                            vm->gone ? "it has ended" : "its QEMU is not connected at present; try again");
}

gboolean sf_vm_refuse(SfVm *vm, GTask *task)
{
    if (!vm->gone && vm->channel && vm->greeted && vm->qmp) {
        return FALSE;
    }
    sf_vm_fail_gone(vm, task);
    g_object_unref(task);
    return TRUE;
}

/* ---- check ---- */

static void on_check_reply(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(GTask) task = data;
    GError *failure = NULL;
    char *text = NULL;

    if (error) {
        g_task_return_error(task, g_error_copy(error));
    } else if (!sf_qc_parse_check(message->payload, message->n_fds, &text, &failure)) {
        g_task_return_error(task, failure);
    } else {
        g_task_return_pointer(task, text, g_free);
    }
}

void sf_vm_check_async(SfVm *vm, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(vm, NULL, callback, data);

    if (sf_vm_refuse(vm, task)) {
        return;
    }
    sf_qemu_channel_request(vm->channel, SF_QC_CHECK, sf_qc_request_check(sf_qemu_channel_serial(vm->channel)), NULL, 0,
                            on_check_reply, task);
}

char *sf_vm_check_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

/* ---- the object ---- */

void sf_vm_add_disk(SfVm *vm, SfVmDisk *disk)
{
    g_ptr_array_add(vm->disks, disk);
    if (disk->chain) {
        g_ptr_array_add(vm->chains, disk->chain);
    }
}

SfVm *sf_vm_new(const SfLauncherOptions *options, const char *name, SfVmRole role, SfVmConfig *config)
{
    SfVm *vm = g_object_new(SF_TYPE_VM, NULL);

    vm->name = g_strdup(name);
    vm->directory = g_build_filename(options->run_directory, "vm", name, NULL);
    vm->overlay_directory = options->overlay_directory ? g_strdup(options->overlay_directory)
                                                       : g_build_filename(options->run_directory, "disk", NULL);
    vm->template_directory = g_build_filename(options->run_directory, "template", NULL);
    vm->owner = g_strdup(options->run_directory);
    vm->late_commits = options->late_commits;
    vm->uid = options->uid;
    vm->gid = options->gid;
    vm->role = role;
    vm->config = sf_vm_config_ref(config);
    return vm;
}

/* The process goes on, and so must its files: sfvmmd may end while its VMs run. The next one takes them over from
 * vm.json. */
static void sf_vm_finalize(GObject *object)
{
    SfVm *vm = SF_VM(object);

    for (guint i = 0; i < vm->disks->len && vm->pidfd >= 0 && !vm->gone; i++) {
        sf_vm_disk_leave(g_ptr_array_index(vm->disks, i));
    }
    g_clear_handle_id(&vm->exit_source, g_source_remove);
    g_clear_handle_id(&vm->end_timer, g_source_remove);
    sf_vm_disconnect(vm);
    if (vm->keeper) {
        vm->keeper->free(vm->keeper_data);
    }
    g_clear_pointer(&vm->keeper_json, json_object_unref);
    g_clear_object((GObject **)&vm->handler.owner);
    g_free(vm->handler_id);
    if (vm->pidfd >= 0) {
        close(vm->pidfd);
    }
    g_clear_pointer(&vm->snapshot, sf_snapshot_unref);
    g_clear_pointer(&vm->base, sf_ram_base_unref);
    g_ptr_array_unref(vm->chains);
    g_ptr_array_unref(vm->disks);
    g_array_unref(vm->vcpu_threads);
    g_clear_pointer(&vm->config, sf_vm_config_unref);
    g_free(vm->tap);
    g_free(vm->netdev);
    g_strfreev(vm->unlinked);
    g_free(vm->agent_socket);
    g_free(vm->agent_port);
    g_free(vm->snapshot_id);
    g_free(vm->shutdown_reason);
    g_free(vm->template_directory);
    g_free(vm->owner);
    g_free(vm->overlay_directory);
    g_free(vm->directory);
    g_free(vm->name);
    G_OBJECT_CLASS(sf_vm_parent_class)->finalize(object);
}

static void sf_vm_init(SfVm *vm)
{
    vm->pidfd = -1;
    vm->disks = g_ptr_array_new_with_free_func((GDestroyNotify)sf_vm_disk_free);
    vm->chains = g_ptr_array_new();
    vm->vcpu_threads = g_array_new(FALSE, FALSE, sizeof(pid_t));
}

static void sf_vm_class_init(SfVmClass *class)
{
    G_OBJECT_CLASS(class)->finalize = sf_vm_finalize;
    g_signal_new("exited", SF_TYPE_VM, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_STRING);
    g_signal_new("guest-message", SF_TYPE_VM, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 2, G_TYPE_POINTER,
                 G_TYPE_BYTES);
    g_signal_new("guest-connected", SF_TYPE_VM, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 0);
    g_signal_new("running", SF_TYPE_VM, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_UINT64);
}
