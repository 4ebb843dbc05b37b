/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A fork after a restart of sfvmmd: its record, then the VMs that are its clones, then it goes on.
 *
 *     restore --> adopt (each VM) --> resume    NEW, SNAPSHOT         it is begun again: to its guest, it takes longer
 *                                               PLACING, RUNNING      the snapshot is found again; clones without a
 *                                                                     QEMU are placed, or lost
 */
#include <string.h>

#include "sfvmm/fork/fork_private.h"
#include "sfvmm/fork/fork_record.h"
#include "sfvmm/fork/remote.h"
#include "sfvmm/fork/result.h"
#include "sfvmm/process/clock.h"

SfFork *sf_fork_restore(const SfForkOptions *options, GError **error)
{
    g_autoptr(SfForkRecord) record = sf_fork_record_load(options->directory, error);
    SfForkOptions recorded = *options;
    SfFork *fork;

    if (!record) {
        return NULL;
    }
    recorded.count = record->clones->len;
    recorded.with_agent = record->with_agent;
    recorded.clone_request = record->clone_request;
    fork = sf_fork_new_without_clones(&recorded, record->parent_name);
    fork->elsewhere = record->elsewhere;
    fork->total = record->total;
    fork->state = record->state;
    fork->reason = g_strdup(record->reason);
    fork->called = record->called;
    fork->timing = record->timing;
    for (guint i = 0; i < record->clones->len; i++) {
        SfClone *clone;
        sf_fork_add_clone(fork, sf_fork_record_clone_id(record, i), NULL);
        clone = g_ptr_array_index(fork->clones, i);
        sf_fork_record_clone(record, i, clone);
        clone->result_length = sf_result_length(fork->directory, clone->id);
        clone->received = sf_result_pending(fork->directory, clone->id);
    }
    fork->placed_told = sf_fork_is_placed(fork);
    return fork;
}

gboolean sf_fork_adopt(SfFork *fork, SfVm *vm)
{
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (strcmp(clone->name, sf_vm_name(vm)) == 0 && !clone->host && sf_clone_is_alive(clone) &&
            sf_vm_loaded_snapshot_id(vm)) {
            sf_clone_take_vm(clone, vm);
            /* One that had not been let run yet would have been killed by the launcher. */
            clone->loaded = clone->loaded ? clone->loaded : sf_clock_ns();
            clone->running = clone->running ? clone->running : sf_clock_ns();
            return TRUE;
        }
    }
    return FALSE;
}

/* The pids that may still map the snapshot's memory: the parent's and the clones' that live. */
static GArray *fork_pids(SfFork *fork)
{
    GArray *pids = g_array_new(FALSE, FALSE, sizeof(pid_t));

    if (fork->parent && !sf_vm_is_gone(fork->parent)) {
        pid_t pid = sf_vm_pid(fork->parent);
        g_array_append_val(pids, pid);
    }
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->vm) {
            pid_t pid = sf_vm_pid(clone->vm);
            g_array_append_val(pids, pid);
        }
    }
    return pids;
}

/* An sf-pager that outlived us has the memory; one that was started in its place gets it. */
static void serve_restored(SfFork *fork, gboolean has_it)
{
    g_autoptr(GError) error = NULL;

    if (!fork->server || !fork->snapshot) {
        return;
    }
    if (has_it) {
        sf_pager_keep_snapshot(fork->server, fork->snapshot);
    } else if (!sf_pager_set_snapshot(fork->server, fork->snapshot, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", fork->ticket, error->message);
    }
}

/*
 * The snapshot is needed by those that map it, so that its memory counts as used, and by those still to be loaded. If
 * it can't be restored, the former is still told to the clones that live, or the family would fold into their memory.
 */
static gboolean fork_restore_snapshot(SfFork *fork, SfRamBase *family_base, GError **error)
{
    g_autoptr(GArray) pids = fork_pids(fork);
    g_autoptr(SfRamBase) base = family_base ? sf_ram_base_ref(family_base) : sf_ram_base_new();
    guint n_fds = 0;

    if (!fork->elsewhere) {
        SfPager *holder = fork->server ? fork->server : fork->pager;
        const int *fds = holder ? sf_pager_fds(holder, &n_fds) : NULL;
        fork->snapshot = sf_fork_record_restore_snapshot(fork->directory, base, (const pid_t *)pids->data, pids->len,
                                                         fds, n_fds, &fork->frozen_disks, error);
    } else if (!fork->snapshot) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "its memory on this host is gone");
    }
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->vm && fork->snapshot) {
            sf_vm_set_loaded_snapshot(clone->vm, fork->snapshot);
        } else if (clone->vm) {
            const char *id = sf_vm_loaded_snapshot_id(clone->vm);
            g_autoptr(SfSnapshot) lost = sf_snapshot_new_lost(id ? id : "unknown", base);
            sf_vm_set_loaded_snapshot(clone->vm, lost);
        }
    }
    serve_restored(fork, n_fds > 0);
    return fork->snapshot != NULL;
}

static gboolean fork_any_loaded(SfFork *fork)
{
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->loaded) {
            return TRUE;
        }
    }
    return FALSE;
}

static void resume_clone(SfClone *clone, const char *why_not_placed)
{
    if (!sf_clone_is_alive(clone) || clone->host) {
        return; /* its host tells what has become of it */
    }
    if (clone->vm) {
        if (clone->state == SF_GP_STATE_STARTING && clone->fork->with_agent) {
            sf_clone_identify(clone);
        } else {
            clone->state = SF_GP_STATE_RUNNING;
        }
    } else if (clone->loaded) {
        sf_clone_end_everywhere(clone, SF_GP_STATE_LOST, "its QEMU ended while sfvmmd was not running");
    } else if (why_not_placed) {
        sf_clone_end_everywhere(clone, SF_GP_STATE_FAILED, why_not_placed);
    }
}

/*
 * Loaded when sfvmmd ended, gone now, and never seen outside: its sf_clone() has not returned, or it has not run. It is
 * placed again, and nobody can tell.
 */
static void forget_unseen(SfClone *clone)
{
    gint64 seen = clone->fork->with_agent ? clone->answered : clone->running;

    if (sf_clone_is_alive(clone) && !clone->vm && !clone->host && !seen) {
        clone->state = SF_GP_STATE_STARTING;
        clone->loaded = clone->running = 0;
    }
}

/* Nothing of the fork is left that its parent could not do again: to its guest, sf_clone() only takes longer. */
static void fork_begin_again(SfFork *fork)
{
    gboolean ordered = fork->state == SF_FORK_PLACING && sf_fork_alive_elsewhere(fork);

    if (fork->elsewhere || ordered) {
        sf_fork_fail_early(fork,
                           "sfvmmd was restarted before the first clone ran, and the snapshot could not be found");
    } else if (fork->parent) {
        fork->state = SF_FORK_NEW;
        sf_fork_start(fork);
    } else {
        sf_fork_fail_early(fork, "sfvmmd was restarted before the first clone ran, and the parent has ended since");
    }
}

void sf_fork_resume(SfFork *fork, SfRamBase *base)
{
    g_autoptr(SfFork) keep = g_object_ref(fork);
    g_autoptr(GError) error = NULL;
    g_autofree char *why = NULL;
    gboolean taken = fork->state == SF_FORK_PLACING || fork->state == SF_FORK_RUNNING;

    if (sf_fork_is_done(fork)) {
        return;
    }
    for (guint i = 0; i < fork->clones->len; i++) {
        forget_unseen(g_ptr_array_index(fork->clones, i));
    }
    if (!taken || (!fork_restore_snapshot(fork, base, &error) && !fork_any_loaded(fork))) {
        fork_begin_again(fork);
        return;
    }
    if (error) {
        why = g_strdup_printf("sfvmmd was restarted during the fork: %s", error->message);
        g_message("ticket %016" G_GINT64_MODIFIER "x: %s", fork->ticket, error->message);
    }
    fork->state = SF_FORK_PLACING; /* sf_fork_review() finds out */
    fork->placed_told = FALSE;     /* to those who ask in this process */
    for (guint i = 0; i < fork->clones->len; i++) {
        resume_clone(g_ptr_array_index(fork->clones, i), why);
    }
    if (fork->snapshot && fork->state == SF_FORK_PLACING) {
        sf_fork_hold_pool(fork, TRUE);
        sf_fork_place(fork);
    }
    sf_fork_changed(fork, NULL);
    sf_fork_review(fork);
}
