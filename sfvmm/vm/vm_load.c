/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A snapshot is loaded into an empty shell, which becomes a clone.
 *
 *     disks (QMP) --> memory: MAP, when it comes on demand (vm_lazy.c) --> LOAD (sf channel) --> it runs, if it shall:
 *     at once, told by QEMU, or by "cont" when all clones of the fork are loaded (vm_gate.c)
 *
 * The file "loading" marks the process meanwhile: a sfvmmd that starts anew could not tell what it is, and kills it.
 */
#include "sfvmm/vm/vm_private.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define CLEAN_MS 2000u /* after a load: descriptors that it has left in QEMU go */

/* On record while a restarted sfvmmd could not tell what the process is. */
static void mark_loading(SfVm *vm, gboolean loading)
{
    g_autofree char *path = sf_vm_path(vm, SF_VM_FILE_LOADING);
    int fd;

    if (!loading) {
        unlink(path);
        return;
    }
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0) {
        close(fd);
    }
}

typedef struct {
    SfSnapshot *snapshot;
    gboolean resume;
    gboolean gated;
} LoadOp;

static void load_op_free(gpointer data)
{
    LoadOp *op = data;

    g_clear_pointer(&op->snapshot, sf_snapshot_unref);
    g_free(op);
}

static void on_cleaned(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    if (error) {
        g_debug("VM %s: %s", vm->name, error->message);
    }
}

static gboolean on_clean_time(gpointer data)
{
    SfVm *vm = data;

    vm->clean_timer = 0;
    if (vm->qmp) {
        SfQmpBatch *batch = sf_qmp_batch_new(vm->qmp);
        for (guint i = 0; i < vm->disks->len; i++) {
            sf_vm_disk_load_clean(g_ptr_array_index(vm->disks, i), batch);
        }
        sf_qmp_batch_run(batch, on_cleaned, g_object_ref(vm));
    }
    return G_SOURCE_REMOVE;
}

static void load_complete(SfVm *vm)
{
    mark_loading(vm, FALSE);
    vm->clean_timer = g_timeout_add_full(G_PRIORITY_LOW, CLEAN_MS, on_clean_time, vm, NULL);
}

static void on_resumed(JsonNode *result, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    if (!error) {
        load_complete(vm);
    } else if (!vm->gone) {
        g_free(vm->shutdown_reason);
        vm->shutdown_reason = g_strdup_printf("it can't be resumed: %s", error->message);
        sf_vm_kill(vm);
    }
}

void sf_vm_resume_loaded(SfVm *vm)
{
    if (vm->qmp) {
        sf_vm_nic_loaded(vm);
        sf_qmp_execute(vm->qmp, "cont", NULL, -1, on_resumed, g_object_ref(vm));
    }
}

static void load_end(SfVm *vm, GError *error)
{
    GTask *task = g_steal_pointer(&vm->load_task);

    sf_vm_gate_leave();
    if (error) {
        g_prefix_error(&error, "VM %s: load: ", vm->name);
        g_task_return_error(task, error);
    } else {
        g_task_return_boolean(task, TRUE);
    }
    g_object_unref(task);
}

static void on_load_reply(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    LoadOp *op = g_task_get_task_data(vm->load_task);
    struct sf_qc_load_reply reply;
    GError *failure = NULL;

    if (error) {
        failure = g_error_new_literal(SF_VM_ERROR, vm->gone ? SF_VM_ERROR_GONE : SF_VM_ERROR_FAILED, error->message);
    } else {
        sf_qc_parse_load(message->payload, message->n_fds, &reply, &failure);
    }
    if (failure) {
        load_end(vm, failure);
        return;
    }
    g_debug("VM %s: loaded in %" G_GUINT64_FORMAT " us: map %" G_GUINT64_FORMAT ", device %" G_GUINT64_FORMAT
            ", blocks %" G_GUINT64_FORMAT,
            vm->name, (guint64)reply.total / 1000, (guint64)reply.map / 1000, (guint64)reply.device / 1000,
            (guint64)reply.blocks / 1000);
    vm->role = SF_VM_CLONE;
    sf_vm_set_loaded_snapshot(vm, op->snapshot);
    sf_vm_save(vm, NULL);
    vm->guest_hello_held = FALSE;
    if (op->gated) {
        sf_vm_gate_wait(vm);
    } else {
        load_complete(vm);
    }
    load_end(vm, NULL);
}

/* Memory is there, or comes on demand from now on: device state. */
static void load_state(SfVm *vm, guint32 flags)
{
    LoadOp *op = g_task_get_task_data(vm->load_task);
    gboolean at_once = op->resume && sf_vm_gate_is_alone() && !vm->keeper; /* a keeper resumes it itself */
    int fds[SF_QC_MAX_FDS];
    guint n = 0;
    g_autoptr(GBytes) payload = NULL;
    GError *failure = NULL;
    GBytes *packet;

    payload = sf_snapshot_load_request(op->snapshot, flags | (at_once ? SF_QC_LOAD_RESUME : 0), fds, &n, &failure);
    if (!payload) {
        load_end(vm, failure);
        return;
    }
    op->gated = op->resume && !at_once;
    if (vm->guest) {
        sf_guest_channel_hello(vm->guest); /* waits at the port until the guest is there */
    }
    packet = sf_qc_request_load(sf_qemu_channel_serial(vm->channel), payload);
    sf_qemu_channel_request(vm->channel, SF_QC_LOAD, packet, fds, n, on_load_reply, g_object_ref(vm));
}

/* Takes the error. */
static void on_load_mapped(SfVm *vm, GError *error)
{
    if (!error && !vm->channel) {
        error = g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "QEMU is not connected");
    }
    if (error) {
        load_end(vm, error);
    } else {
        load_state(vm, SF_QC_LOAD_MAPPED);
    }
}

static void on_load_disks(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    LoadOp *op = g_task_get_task_data(vm->load_task);
    GError *failure = NULL;

    if (error || !vm->channel) {
        load_end(vm, error ? g_error_copy(error)
                           : g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "QEMU is not connected"));
    } else if (!vm->lazy) {
        load_state(vm, 0);
    } else if (!sf_vm_lazy_map(vm, op->snapshot, on_load_mapped, &failure)) {
        load_end(vm, failure);
    }
}

static gboolean load_disk(SfVm *vm, const SfDiskChain *frozen, SfQmpBatch *batch, GError **error)
{
    for (guint i = 0; i < vm->disks->len; i++) {
        SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        const SfDiskConfig *config = g_ptr_array_index(vm->config->disks, i);
        if (strcmp(config->id, frozen->id) == 0) {
            gboolean ok = sf_vm_disk_load(disk, sf_disk_chain_copy(frozen), batch, error);
            if (!g_ptr_array_find(vm->chains, disk->chain, NULL)) {
                g_ptr_array_add(vm->chains, disk->chain);
            }
            return ok;
        }
    }
    g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "the snapshot has a disk %s, this shell has none", frozen->id);
    return FALSE;
}

static void on_load_disks_failed(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    load_end(vm, g_object_steal_data(G_OBJECT(vm->load_task), "error"));
}

void sf_vm_load_async(SfVm *vm, SfSnapshot *snapshot, GPtrArray *frozen_disks, gboolean resume,
                      const SfFaultHandler *handler, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(vm, NULL, callback, data);
    LoadOp *op = g_new0(LoadOp, 1);
    GError *error = NULL;
    SfQmpBatch *batch;

    op->snapshot = sf_snapshot_ref(snapshot);
    op->resume = resume;
    g_task_set_task_data(task, op, load_op_free);
    if (sf_vm_refuse(vm, task)) {
        return;
    }
    if (vm->role != SF_VM_SHELL || vm->load_task || (frozen_disks ? frozen_disks->len : 0) != vm->disks->len) {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                "VM %s: load: it is no empty shell, or has other disks", vm->name);
        g_object_unref(task);
        return;
    }
    if (sf_snapshot_is_lazy(snapshot) && !sf_vm_lazy_begin(vm, handler, snapshot, &error)) {
        g_task_return_error(task, error);
        g_object_unref(task);
        return;
    }
    vm->load_task = task;
    sf_vm_gate_enter();
    mark_loading(vm, TRUE);
    batch = sf_qmp_batch_new(vm->qmp);
    sf_vm_nic_load(vm, batch);
    for (guint i = 0; i < vm->disks->len && !error; i++) {
        load_disk(vm, g_ptr_array_index(frozen_disks, i), batch, &error);
    }
    if (error) {
        g_object_set_data(G_OBJECT(task), "error", error);
    }
    sf_qmp_batch_run(batch, error ? on_load_disks_failed : on_load_disks, g_object_ref(vm));
}

gboolean sf_vm_load_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}

void sf_vm_load_running(SfVm *vm)
{
    if (vm->role == SF_VM_CLONE) {
        mark_loading(vm, FALSE); /* from here on others hear that it runs; the answer to its "cont" may be late */
    }
}
