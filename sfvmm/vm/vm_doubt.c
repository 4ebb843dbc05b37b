/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * sfvmmd ends, or loses its connection, while QEMU makes a snapshot or commits an overlay. vm.json then says what was
 * begun, and QEMU alone knows how it ended. It is asked on the next connection, before anybody may use the VM:
 *
 *     overlay on its way    delete the overlay:  refused, it is in use --> the snapshot was made, it is the top
 *                                                done                  --> it was not made
 *     commit_to set         cancel the job, wait until it is gone, then
 *                           delete the top (of a stream, the one below it):
 *                                                refused, it is in use --> the job had not completed
 *                                                done, or not there    --> it had; what was above the target has gone
 *
 * QEMU deletes no node that is in use: that is what makes the question harmless. Nodes of a commit that was known to
 * have completed, but not to have been deleted, are deleted without asking. A job that is cancelled lives on for a
 * moment, and QEMU makes no snapshot meanwhile: so its end is awaited. A connection that is lost again leaves the doubt
 * for the next one.
 */
#include <string.h>

#include "sfvmm/vm/vm_private.h"

#define JOB_LOOK_MS 20u /* a cancelled job is gone when its last write has come back */

typedef struct {
    SfVm *vm;
    guint disk;
    gboolean of_overlay; /* else of a commit */
} Doubt;

static void look_for_job(Doubt *doubt);

gboolean sf_vm_has_answered(SfVm *vm, const GError *error)
{
    return vm->qmp && (!error || g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_FAILED));
}

static gboolean is_of_overlay(const SfVmDisk *disk)
{
    return disk->chain && disk->overlay;
}

static gboolean is_of_commit(const SfVm *vm, const SfVmDisk *disk)
{
    return disk->commit_to != G_MAXUINT && !vm->settle;
}

gboolean sf_vm_doubts_any(SfVm *vm)
{
    for (guint i = 0; i < vm->disks->len; i++) {
        const SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        if (is_of_overlay(disk) || is_of_commit(vm, disk)) {
            return TRUE;
        }
    }
    return FALSE;
}

/* The disk that is asked about; NULL: it can't be known now. */
static SfVmDisk *disk_of(const Doubt *doubt, const GError *error)
{
    return doubt->disk < doubt->vm->disks->len && sf_vm_has_answered(doubt->vm, error)
               ? g_ptr_array_index(doubt->vm->disks, doubt->disk)
               : NULL;
}

static void on_cleared(const GError *error, gpointer data)
{
    g_autofree Doubt *doubt = data;
    g_autoptr(SfVm) vm = doubt->vm;
    SfVmDisk *disk = disk_of(doubt, error);

    if (disk) {
        g_ptr_array_set_size(disk->stale, 0);
    }
    if (--vm->doubts == 0) {
        sf_vm_connect_end(vm, NULL);
    }
}

static gboolean was_not_there(const GError *error)
{
    return strstr(error->message, "Failed to find node") != NULL;
}

static void overlay_known(SfVm *vm, SfVmDisk *disk, gboolean in_use, SfQmpBatch *batch)
{
    if (in_use) {
        g_message("VM %s: a snapshot was made that nobody has; its overlay of %s stays", vm->name, disk->chain->id);
        sf_vm_disk_overlay_done(disk, batch);
    } else {
        sf_vm_disk_overlay_undo(disk, batch); /* deletes the node again, which fails and does no harm */
    }
}

static void commit_known(SfVmDisk *disk, gboolean in_use, SfQmpBatch *batch)
{
    if (in_use) {
        sf_vm_disk_job_over(disk);
    } else {
        sf_vm_disk_job_done(disk);
        sf_vm_disk_delete_stale(disk, batch); /* that node again, as above */
    }
}

static void on_node_deleted(JsonNode *result, const GError *error, gpointer data)
{
    Doubt *doubt = data;
    SfVmDisk *disk = disk_of(doubt, error);
    gboolean in_use = error && !was_not_there(error);
    SfQmpBatch *batch;

    if (!disk) {
        on_cleared(error, doubt);
        return;
    }
    batch = sf_qmp_batch_new(doubt->vm->qmp);
    if (doubt->of_overlay) {
        overlay_known(doubt->vm, disk, in_use, batch);
    } else {
        commit_known(disk, in_use, batch);
    }
    sf_vm_save(doubt->vm, NULL);
    sf_qmp_batch_run(batch, on_cleared, doubt);
}

static void delete_node(Doubt *doubt, const char *node)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "node-name", node);
    sf_qmp_execute(doubt->vm->qmp, "blockdev-del", args, -1, on_node_deleted, doubt);
}

/* ---- a commit's job ---- */

static gboolean has_job(JsonNode *jobs, const char *id)
{
    JsonArray *array = JSON_NODE_HOLDS_ARRAY(jobs) ? json_node_get_array(jobs) : NULL;

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *job = json_array_get_element(array, i);
        if (JSON_NODE_HOLDS_OBJECT(job) &&
            strcmp(json_object_get_string_member_with_default(json_node_get_object(job), "device", ""), id) == 0) {
            return TRUE;
        }
    }
    return FALSE;
}

static gboolean on_look_again(gpointer data)
{
    Doubt *doubt = data;

    if (doubt->vm->qmp) {
        look_for_job(doubt);
    } else {
        on_cleared(NULL, doubt);
    }
    return G_SOURCE_REMOVE;
}

static void on_jobs(JsonNode *jobs, const GError *error, gpointer data)
{
    Doubt *doubt = data;
    SfVmDisk *disk = disk_of(doubt, error);
    g_autofree char *job = disk ? sf_vm_settle_job(disk) : NULL;

    if (!disk) {
        on_cleared(error, doubt);
    } else if (jobs && has_job(jobs, job)) {
        g_timeout_add(JOB_LOOK_MS, on_look_again, doubt);
    } else {
        delete_node(doubt, sf_vm_disk_job_node(disk));
    }
}

static void look_for_job(Doubt *doubt)
{
    sf_qmp_execute(doubt->vm->qmp, "query-block-jobs", NULL, -1, on_jobs, doubt);
}

static void cancel_job(SfVm *vm, const SfVmDisk *disk)
{
    g_autofree char *job = sf_vm_settle_job(disk);
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "device", job);
    json_object_set_boolean_member(args, "force", TRUE);
    sf_qmp_execute(vm->qmp, "block-job-cancel", args, -1, NULL, NULL);
}

/* ---- what is known to be of no use ---- */

static void on_stale_deleted(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    for (guint i = 0; sf_vm_has_answered(vm, error) && i < vm->disks->len; i++) {
        g_ptr_array_set_size(((SfVmDisk *)g_ptr_array_index(vm->disks, i))->stale, 0);
    }
}

static void delete_stale(SfVm *vm)
{
    SfQmpBatch *batch = sf_qmp_batch_new(vm->qmp);

    for (guint i = 0; i < vm->disks->len; i++) {
        sf_vm_disk_delete_stale(g_ptr_array_index(vm->disks, i), batch);
    }
    sf_qmp_batch_run(batch, on_stale_deleted, g_object_ref(vm));
}

/* ---- all ---- */

gboolean sf_vm_doubts_sort_out(SfVm *vm)
{
    gboolean ask = vm->doubts == 0 && !vm->snapshot_task && vm->qmp;

    if (ask && !vm->settle) {
        delete_stale(vm);
    }
    for (guint i = 0; ask && i < vm->disks->len; i++) {
        SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        Doubt *doubt;
        if (!is_of_overlay(disk) && !is_of_commit(vm, disk)) {
            continue;
        }
        doubt = g_new0(Doubt, 1);
        doubt->vm = g_object_ref(vm);
        doubt->disk = i;
        doubt->of_overlay = is_of_overlay(disk);
        vm->doubts++;
        if (doubt->of_overlay) {
            delete_node(doubt, disk->overlay_node);
        } else {
            cancel_job(vm, disk);
            look_for_job(doubt);
        }
    }
    return vm->doubts > 0;
}
