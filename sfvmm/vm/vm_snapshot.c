/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A snapshot of a VM that runs on: overlays are added to its disks, then QEMU freezes memory and disks at one moment.
 *
 *     begin --> overlays (QMP) --> SNAPSHOT (sf channel) --> taken over: vm.json, the frozen chains --> told
 *                  failed, refused: the overlays go again, the VM is as it was
 *                  no reply: vm_doubt.c asks QEMU on the next connection
 *
 * One at a time; others wait. A settling (vm_settle.c) that is under way is given up first, and disks of very many
 * layers are made shorter.
 */
#include "sfvmm/vm/vm_private.h"

typedef struct {
    char *id;
    guint n_disks;
    struct sf_qc_disk disks[SF_QC_MAX_DISKS];
    SfSnapshot *snapshot;
    GPtrArray *frozen; /* of SfDiskChain */
    GError *error;
} SnapshotOp;

static void snapshot_op_free(gpointer data)
{
    SnapshotOp *op = data;

    g_clear_pointer(&op->snapshot, sf_snapshot_unref);
    g_clear_pointer(&op->frozen, g_ptr_array_unref);
    g_clear_error(&op->error);
    g_free(op->id);
    g_free(op);
}

/* The next of those that wait, if none is under way. */
static void snapshot_next(SfVm *vm)
{
    while (!vm->snapshot_task && !g_queue_is_empty(&vm->snapshot_queue)) {
        GTask *task = g_queue_pop_head(&vm->snapshot_queue);
        if (sf_vm_refuse(vm, task)) {
            continue;
        }
        vm->snapshot_task = task;
        if (vm->settle) {
            sf_vm_settle_abort(vm);
        } else if (!sf_vm_settle_shorten(vm)) {
            sf_vm_snapshot_begin(vm);
        }
    }
}

static void snapshot_end(SfVm *vm)
{
    GTask *task = g_steal_pointer(&vm->snapshot_task);
    SnapshotOp *op = g_task_get_task_data(task);

    if (op->error) {
        g_task_return_error(task, g_steal_pointer(&op->error));
    } else {
        g_task_return_pointer(task, sf_snapshot_ref(op->snapshot), (GDestroyNotify)sf_snapshot_unref);
    }
    snapshot_next(vm);
    g_object_unref(task);
}

static void on_snapshot_disks_done(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);

    /* The snapshot stands, whatever this says; clones over it might be refused QEMU's lock on an image. */
    if (error && !op->error) {
        g_warning("VM %s: snapshot %s: %s", vm->name, op->id, error->message);
    }
    snapshot_end(vm);
}

static void snapshot_undo(SfVm *vm)
{
    SfQmpBatch *batch = vm->qmp ? sf_qmp_batch_new(vm->qmp) : NULL;

    for (guint i = 0; i < vm->disks->len; i++) {
        SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        if (disk->overlay && batch) {
            sf_vm_disk_overlay_undo(disk, batch);
        }
    }
    if (batch) {
        sf_qmp_batch_run(batch, on_snapshot_disks_done, g_object_ref(vm));
    } else {
        snapshot_end(vm);
    }
}

static void snapshot_fail(SfVm *vm, const GError *error, SfVmError code)
{
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);

    op->error =
        g_error_new(SF_VM_ERROR, vm->gone ? SF_VM_ERROR_GONE : code, "VM %s: snapshot: %s", vm->name, error->message);
    snapshot_undo(vm);
}

/* QEMU has done it: from here on the disks are what they are, even if the reply turns out to be of no use. */
static void snapshot_take_over(SfVm *vm, SnapshotOp *op)
{
    SfQmpBatch *batch = sf_qmp_batch_new(vm->qmp);

    op->frozen = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);
    for (guint i = 0; i < vm->disks->len; i++) {
        SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        g_ptr_array_add(op->frozen, sf_disk_chain_copy(disk->chain));
        if (disk->overlay) {
            sf_vm_disk_overlay_done(disk, batch);
        }
    }
    sf_vm_save(vm, NULL);
    sf_qmp_batch_run(batch, on_snapshot_disks_done, g_object_ref(vm));
}

static void on_snapshot_reply(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);
    int fds[SF_QC_MAX_FDS];
    guint n;

    if (error && g_error_matches(error, G_IO_ERROR, G_IO_ERROR_FAILED)) {
        snapshot_fail(vm, error, SF_VM_ERROR_REFUSED);
        return;
    }
    if (error) { /* no reply: whether it was made is sorted out when QEMU is connected again */
        op->error = g_error_new(SF_VM_ERROR, vm->gone ? SF_VM_ERROR_GONE : SF_VM_ERROR_FAILED, "VM %s: snapshot: %s",
                                vm->name, error->message);
        snapshot_end(vm);
        return;
    }
    n = sf_qc_message_steal_fds(message, fds);
    op->snapshot = sf_snapshot_new(op->id, sf_vm_ram_base(vm), vm->snapshot, message->payload, fds, n, &op->error);
    snapshot_take_over(vm, op);
}

static void on_overlays_added(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);
    guint32 flags = sf_ram_base_in_use(sf_vm_ram_base(vm)) ? SF_QC_SNAPSHOT_SHARED_BASE : 0;
    GBytes *packet;

    if (error || !vm->channel) {
        g_autoptr(GError) failure =
            error ? g_error_copy(error) : g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "QEMU is not connected");
        snapshot_fail(vm, failure, SF_VM_ERROR_FAILED);
        return;
    }
    packet = sf_qc_request_snapshot(sf_qemu_channel_serial(vm->channel), flags, op->disks, op->n_disks);
    sf_qemu_channel_request(vm->channel, SF_QC_SNAPSHOT, packet, NULL, 0, on_snapshot_reply, g_object_ref(vm));
}

static gboolean snapshot_add_overlay(SfVm *vm, SnapshotOp *op, SfVmDisk *disk, SfQmpBatch *batch, GError **error)
{
    g_autofree char *path = sf_vm_overlay_path(vm, disk->chain->id);
    g_autofree char *template = sf_vm_template_path(vm, disk->chain->size);
    struct sf_qc_disk *entry = &op->disks[op->n_disks++];

    if (!sf_vm_disk_add_overlay(disk, batch, template, path, vm->uid, vm->gid, error)) {
        return FALSE;
    }
    g_strlcpy(entry->node, g_ptr_array_index(disk->nodes, disk->nodes->len - 1), sizeof(entry->node));
    g_strlcpy(entry->overlay, disk->overlay_node, sizeof(entry->overlay));
    return TRUE;
}

static void on_overlays_failed(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    snapshot_undo(vm);
}

static void on_memory_shared(SfVm *vm, const GError *error)
{
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);
    SfVmError code;

    if (!error) {
        sf_vm_snapshot_begin(vm);
        return;
    }
    code = g_error_matches(error, G_IO_ERROR, G_IO_ERROR_FAILED) ? SF_VM_ERROR_REFUSED : SF_VM_ERROR_FAILED;
    op->error = g_error_new(SF_VM_ERROR, vm->gone ? SF_VM_ERROR_GONE : code,
                            "VM %s: its anonymous memory can't become a memfd: %s", vm->name, error->message);
    snapshot_end(vm);
}

void sf_vm_snapshot_begin(SfVm *vm)
{
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);
    SfQmpBatch *batch;

    if (!vm->qmp || !vm->channel || !vm->greeted) {
        sf_vm_fail_gone(vm, vm->snapshot_task);
        g_clear_object(&vm->snapshot_task);
        snapshot_next(vm);
        return;
    }
    if (sf_vm_doubts_any(vm)) { /* of an earlier snapshot or commit; the disks must not be changed meanwhile */
        op->error = g_error_new(SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                "VM %s: what became of its disks is being sorted out; try again", vm->name);
        snapshot_end(vm);
        sf_vm_doubts_sort_out(vm);
        return;
    }
    if (vm->anonymous) {
        sf_vm_share(vm, on_memory_shared);
        return;
    }
    batch = sf_qmp_batch_new(vm->qmp);
    for (guint i = 0; i < vm->disks->len && !op->error; i++) {
        SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        if (!disk->chain->readonly) {
            snapshot_add_overlay(vm, op, disk, batch, &op->error);
        }
    }
    sf_vm_save(vm, NULL); /* before QEMU is asked: a killed sfvmmd does not learn which of the overlays it has taken */
    sf_qmp_batch_run(batch, op->error ? on_overlays_failed : on_overlays_added, g_object_ref(vm));
}

void sf_vm_snapshot_async(SfVm *vm, const char *id, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(vm, NULL, callback, data);
    SnapshotOp *op = g_new0(SnapshotOp, 1);

    op->id = g_strdup(id);
    g_task_set_task_data(task, op, snapshot_op_free);
    if (sf_vm_refuse(vm, task)) {
        return;
    }
    if (vm->load_task || vm->role == SF_VM_SHELL || (vm->snapshot_id && !vm->snapshot)) {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_FAILED, "VM %s: no snapshot now: %s", vm->name,
                                vm->role == SF_VM_SHELL ? "it is an empty shell"
                                : vm->load_task         ? "it is being loaded"
                                                : "the snapshot it was made from was lost when sfvmmd restarted");
        g_object_unref(task);
        return;
    }
    g_queue_push_tail(&vm->snapshot_queue, task);
    snapshot_next(vm);
}

SfSnapshot *sf_vm_snapshot_finish(SfVm *vm, GAsyncResult *result, GPtrArray **frozen_disks, GError **error)
{
    SnapshotOp *op = g_task_get_task_data(G_TASK(result));
    SfSnapshot *snapshot = g_task_propagate_pointer(G_TASK(result), error);

    if (frozen_disks) {
        *frozen_disks = snapshot ? g_steal_pointer(&op->frozen) : NULL;
    }
    return snapshot;
}
