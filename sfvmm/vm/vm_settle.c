/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * After its last snapshot has gone, a parent still runs on private copies of RAM pages over its frozen memfd, and
 * writes to an overlay. Settling makes it again what it was before its first fork:
 *
 *     FOLD, FOLD, ... --> THAW --> for each disk: block-commit --READY--> job-complete --COMPLETED--> files removed
 *     small steps         the rest in one pause
 *
 * Where clones never all end, as forks go on and on, each fork adds a layer to the disks. Before a fork that would be
 * one too many, the layers below the top are copied into the top (block-stream); those who use them keep the files:
 *
 *     shorten: for each long disk: block-stream --COMPLETED--> files removed, by the last who uses them --> the fork
 *
 * It is never urgent and a fork is: a snapshot that is asked for meanwhile stops it after the present step; a running
 * block job is cancelled, which loses nothing (what was copied is below the overlay anyway), or, if QEMU says that it
 * has just completed, is taken as completed. Then the snapshot begins.
 *
 * A killed sfvmmd: FOLD and THAW need no memory of ours. Before a job is started `commit_to` is in vm.json: vm_doubt.c
 * finds out what became of it.
 *
 * RAM of clones is never folded: its layers are their family's. Only their own overlays are committed.
 */
#include "sfvmm/vm/vm_private.h"

#include <string.h>

#define FOLD_STEP_BYTES   (4u << 20) /* some 2 to 7 ms of pause */
#define FOLD_ENOUGH_BYTES (1u << 20) /* THAW does the rest in one pause */
#define FOLD_STEPS_MAX    4096u      /* a guest that writes faster than we fold: THAW copies the rest */

typedef struct SfSettle {
    GTask *task;
    guint steps;
    guint disk;          /* index of the one being committed */
    char *job;           /* its id; NULL: no job is under way */
    gboolean completing; /* job-complete has been sent */
    gboolean shorten;    /* only that */
    gboolean abort;
} SfSettle;

static void settle_fold(SfVm *vm);
static void settle_next_disk(SfVm *vm);

static void settle_end(SfVm *vm, GError *error)
{
    SfSettle *settle = g_steal_pointer(&vm->settle);
    GTask *task = settle->task;

    if (error) {
        g_prefix_error(&error, "VM %s: settle: ", vm->name);
        g_task_return_error(task, error);
    } else {
        g_task_return_boolean(task, TRUE);
    }
    g_free(settle->job);
    g_free(settle);
    if (vm->snapshot_task) {
        sf_vm_snapshot_begin(vm);
    }
    g_object_unref(task);
}

/* TRUE if it ends here because a fork wants the VM. */
static gboolean settle_yields(SfVm *vm)
{
    if (!vm->settle->abort) {
        return FALSE;
    }
    settle_end(vm, g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_FAILED, "interrupted by a new fork"));
    return TRUE;
}

/* ---- RAM ---- */

/* Of FOLD or THAW. FALSE: it failed, and so it ends here. */
static gboolean take_reply(SfVm *vm, SfQcMessage *message, const GError *error, struct sf_qc_fold_reply *reply)
{
    GError *failure = error ? g_error_copy(error) : NULL;

    if (failure || !sf_qc_parse_fold(message->payload, message->n_fds, reply, &failure)) {
        settle_end(vm, failure);
        return FALSE;
    }
    return TRUE;
}

static void on_thawed(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    struct sf_qc_fold_reply reply;

    if (!take_reply(vm, message, error, &reply)) {
        return;
    }
    g_debug("VM %s: thawed after %u steps, pause %" G_GUINT64_FORMAT " us", vm->name, vm->settle->steps,
            (guint64)reply.pause / 1000);
    settle_next_disk(vm);
}

static void settle_thaw(SfVm *vm)
{
    sf_qemu_channel_request(vm->channel, SF_QC_THAW, sf_qc_request_thaw(sf_qemu_channel_serial(vm->channel)), NULL, 0,
                            on_thawed, g_object_ref(vm));
}

static void on_folded(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    struct sf_qc_fold_reply reply;

    if (!take_reply(vm, message, error, &reply)) {
        return;
    }
    if (settle_yields(vm)) {
        return;
    }
    if (reply.left > FOLD_ENOUGH_BYTES && reply.folded > 0 && ++vm->settle->steps < FOLD_STEPS_MAX) {
        settle_fold(vm);
    } else {
        settle_thaw(vm);
    }
}

static void settle_fold(SfVm *vm)
{
    GBytes *packet;

    if (!vm->channel || !vm->greeted) {
        settle_end(vm, g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "its QEMU is not connected at present"));
        return;
    }
    packet = sf_qc_request_fold(sf_qemu_channel_serial(vm->channel), FOLD_STEP_BYTES);
    sf_qemu_channel_request(vm->channel, SF_QC_FOLD, packet, NULL, 0, on_folded, g_object_ref(vm));
}

/* ---- disks ---- */

char *sf_vm_settle_job(const SfVmDisk *disk)
{
    return g_strdup_printf("settle-%s", disk->chain->id);
}

static SfVmDisk *present_disk(SfVm *vm)
{
    return g_ptr_array_index(vm->disks, vm->settle->disk);
}

static void on_commit_cleaned(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    if (sf_vm_has_answered(vm, error)) { /* else they are deleted by the next connection, in vm_doubt.c */
        g_ptr_array_set_size(present_disk(vm)->stale, 0);
    }
    if (error) {
        settle_end(vm, g_error_copy(error));
        return;
    }
    vm->settle->disk++;
    settle_next_disk(vm);
}

static void commit_completed(SfVm *vm)
{
    SfQmpBatch *batch;

    g_clear_pointer(&vm->settle->job, g_free);
    if (!vm->qmp) {
        settle_end(vm, g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "its QEMU is not connected at present"));
        return;
    }
    batch = sf_qmp_batch_new(vm->qmp);
    sf_vm_disk_job_done(present_disk(vm));
    sf_vm_disk_delete_stale(present_disk(vm), batch);
    sf_vm_save(vm, NULL);
    sf_qmp_batch_run(batch, on_commit_cleaned, g_object_ref(vm));
}

static void commit_failed(SfVm *vm, const char *text)
{
    sf_vm_disk_job_over(present_disk(vm));
    sf_vm_save(vm, NULL);
    if (!settle_yields(vm)) {
        settle_end(vm, g_error_new(SF_VM_ERROR, SF_VM_ERROR_FAILED, "%s: %s", vm->settle->job, text));
    }
}

static void on_job_started(JsonNode *result, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    if (error && vm->settle && vm->settle->job) {
        commit_failed(vm, error->message);
    }
}

/* Errors of these say that the job ends by itself just now: its event tells how. */
static void job_command(SfVm *vm, const char *command, const char *member, gboolean force)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, member, vm->settle->job);
    if (force) {
        json_object_set_boolean_member(args, "force", TRUE);
    }
    sf_qmp_execute(vm->qmp, command, args, -1, NULL, NULL);
}

static void settle_next_disk(SfVm *vm)
{
    SfSettle *settle = vm->settle;

    if (settle_yields(vm)) {
        return;
    }
    for (; settle->disk < vm->disks->len; settle->disk++) {
        SfVmDisk *disk = present_disk(vm);
        guint target;
        if (!(settle->shorten ? sf_vm_disk_stream_target(disk, &target) : sf_vm_disk_commit_target(disk, &target))) {
            continue;
        }
        if (!vm->qmp) {
            settle_end(vm, g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "its QEMU is not connected at present"));
            return;
        }
        disk->commit_to = target;
        disk->streaming = settle->shorten;
        settle->completing = FALSE;
        settle->job = sf_vm_settle_job(disk);
        sf_vm_save(vm, NULL);
        sf_qmp_execute(vm->qmp, sf_vm_disk_job_command(disk), sf_vm_disk_job_arguments(disk, settle->job), -1,
                       on_job_started, g_object_ref(vm));
        return;
    }
    settle_end(vm, NULL);
}

void sf_vm_settle_job_event(SfVm *vm, const char *event, JsonObject *data)
{
    const char *job = json_object_get_string_member_with_default(data, "device", "");
    const char *error = json_object_get_string_member_with_default(data, "error", NULL);

    if (!vm->settle || !vm->settle->job || strcmp(job, vm->settle->job) != 0) {
        return;
    }
    if (strcmp(event, "BLOCK_JOB_READY") == 0) {
        if (!vm->settle->abort && !vm->settle->completing) {
            vm->settle->completing = TRUE;
            job_command(vm, "job-complete", "id", FALSE);
        }
    } else if (strcmp(event, "BLOCK_JOB_COMPLETED") == 0) {
        if (error) {
            commit_failed(vm, error);
        } else {
            commit_completed(vm);
        }
    } else if (strcmp(event, "BLOCK_JOB_CANCELLED") == 0) {
        commit_failed(vm, "cancelled");
    }
}

/* ---- the whole ---- */

void sf_vm_settle_abort(SfVm *vm)
{
    vm->settle->abort = TRUE;
    if (vm->settle->job && vm->qmp && !vm->settle->completing) {
        job_command(vm, "block-job-cancel", "device", TRUE);
    }
}

void sf_vm_settle_lost(SfVm *vm)
{
    if (vm->settle && vm->settle->job) {
        settle_end(vm, g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "the connection to its QEMU was lost"));
    }
}

static void on_shortened(GObject *source, GAsyncResult *result, gpointer data)
{
    SfVm *vm = SF_VM(source);
    g_autoptr(GError) error = NULL;

    if (!sf_vm_settle_finish(vm, result, &error)) {
        g_message("VM %s: its disks keep their many layers until the next fork: %s", vm->name, error->message);
    }
}

gboolean sf_vm_settle_shorten(SfVm *vm)
{
    gboolean any = FALSE;
    guint target;

    for (guint i = 0; i < vm->disks->len && !any; i++) {
        any = sf_vm_disk_stream_target(g_ptr_array_index(vm->disks, i), &target);
    }
    if (!any || !vm->qmp || sf_vm_doubts_any(vm)) {
        return FALSE;
    }
    vm->settle = g_new0(SfSettle, 1);
    vm->settle->task = g_task_new(vm, NULL, on_shortened, NULL);
    vm->settle->shorten = TRUE;
    settle_next_disk(vm);
    return TRUE;
}

void sf_vm_settle_async(SfVm *vm, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(vm, NULL, callback, data);

    if (sf_vm_refuse(vm, task)) {
        return;
    }
    if (vm->settle || vm->snapshot_task || vm->load_task || vm->doubts || vm->role == SF_VM_SHELL ||
        (vm->role == SF_VM_PARENT && sf_ram_base_in_use(sf_vm_ram_base(vm)))) {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_FAILED, "VM %s: settle: %s", vm->name,
                                vm->settle          ? "under way already"
                                : vm->snapshot_task ? "a snapshot is being made"
                                : vm->doubts        ? "what became of its disks is being sorted out"
                                                    : "a snapshot over it is still in use");
        g_object_unref(task);
        return;
    }
    vm->settle = g_new0(SfSettle, 1);
    vm->settle->task = task;
    if (vm->role == SF_VM_PARENT) {
        settle_fold(vm);
    } else {
        settle_next_disk(vm);
    }
}

gboolean sf_vm_settle_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}
