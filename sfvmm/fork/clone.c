/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One clone: from a shell of the pool to its end.
 *
 *     shell --> named, loaded --> IDENTITY to its agent, answered (or it has none) --> at work --> its end
 *        a step fails: the shell is killed, another one tried once
 *
 * One that is on another host has no VM here: its host's reports (remote.c) move it on.
 */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "libsf/wire/message.h"
#include "sfvmm/fork/clone_name.h"
#include "sfvmm/fork/fork_private.h"
#include "sfvmm/fork/remote.h"
#include "sfvmm/fork/result.h"
#include "sfvmm/process/clock.h"

/* A shell may die under a load for reasons of its own; a second failure is the snapshot's or the host's. */
#define CLONE_ATTEMPTS   2u
#define REMINDERS_LOGGED 4u /* of a clone: its guest must not fill the log */

gboolean sf_clone_is_alive(const SfClone *clone)
{
    return clone->state == SF_GP_STATE_STARTING || clone->state == SF_GP_STATE_RUNNING;
}

gboolean sf_clone_is_being_placed(const SfClone *clone)
{
    return clone->state == SF_GP_STATE_STARTING && clone->loaded == 0;
}

gboolean sf_clone_is_awaited(const SfClone *clone)
{
    return clone->state == SF_GP_STATE_STARTING && (clone->loaded == 0 || !clone->fork->with_agent);
}

/* ---- its end ---- */

void sf_clone_drop_vm(SfClone *clone, gboolean kill)
{
    g_autoptr(SfVm) vm = g_steal_pointer(&clone->vm);

    g_clear_handle_id(&clone->identify_timeout, g_source_remove);
    if (!vm) {
        return;
    }
    g_clear_signal_handler(&clone->exited_handler, vm);
    g_clear_signal_handler(&clone->running_handler, vm);
    if (kill && !sf_vm_is_gone(vm)) {
        sf_vm_kill(vm);
    }
}

void sf_clone_end(SfClone *clone, guint32 state, const char *reason)
{
    SfFork *fork = clone->fork;

    if (!sf_clone_is_alive(clone)) {
        return;
    }
    clone->state = state;
    clone->exited = sf_clock_ns();
    g_free(clone->reason);
    clone->reason = g_strdup(reason);
    sf_fork_save(fork); /* first: an sfvmmd that finds the process gone and no record of why calls the clone lost */
    sf_clone_drop_vm(clone, TRUE);
    if (state == SF_GP_STATE_EXITED) {
        g_info("ticket %016" G_GINT64_MODIFIER "x clone %u: exited with status %d", fork->ticket, clone->id,
               clone->status);
    } else {
        g_message("ticket %016" G_GINT64_MODIFIER "x clone %u: %s", fork->ticket, clone->id, reason);
    }
    g_signal_emit_by_name(fork, "changed", clone);
    sf_fork_review(fork);
}

/* As sf_clone_end(), and its host is told, which does not know it yet. */
void sf_clone_end_everywhere(SfClone *clone, guint32 state, const char *reason)
{
    if (clone->host && sf_clone_is_alive(clone)) {
        clone->fork->remote->kill(clone->fork->remote->owner, clone, reason);
    }
    sf_clone_end(clone, state, reason);
}

void sf_clone_free(gpointer data)
{
    SfClone *clone = data;

    sf_clone_drop_vm(clone, FALSE);
    g_free(clone->name);
    g_free(clone->host);
    g_free(clone->reason);
    g_free(clone);
}

static void on_clone_exited(SfVm *vm, const char *reason, SfClone *clone)
{
    g_autofree char *text = g_strdup_printf("its QEMU ended: %s", reason);

    if (sf_clone_is_being_placed(clone) && clone->attempts < CLONE_ATTEMPTS) {
        return; /* the load in flight fails with SF_VM_ERROR_GONE and tries again */
    }
    sf_clone_end_everywhere(clone, clone->running ? SF_GP_STATE_LOST : SF_GP_STATE_FAILED, text);
}

/* ---- made unique ---- */

/* Without an agent there is no more to wait for than that it is loaded and its vCPU runs, told in either order. */
static void clone_progressed(SfClone *clone)
{
    if (clone->state == SF_GP_STATE_STARTING && !clone->fork->with_agent && clone->loaded && clone->running) {
        clone->state = SF_GP_STATE_RUNNING;
    }
    sf_fork_changed(clone->fork, clone);
    sf_fork_review(clone->fork);
}

static void on_clone_running(SfVm *vm, guint64 at, SfClone *clone)
{
    clone->running = (gint64)at;
    sf_vm_label(vm, clone->fork->parent_name, clone->fork->ticket, clone->id);
    clone_progressed(clone);
}

static gboolean on_identify_timeout(gpointer data)
{
    SfClone *clone = data;
    g_autofree char *reason =
        g_strdup_printf("its agent did not answer within %u s of the fork, so it could not be made unique",
                        clone->fork->identify_seconds);

    clone->identify_timeout = 0;
    sf_clone_end_everywhere(clone, SF_GP_STATE_FAILED, reason);
    return G_SOURCE_REMOVE;
}

static gboolean send_identity(SfClone *clone, GError **error)
{
    SfFork *fork = clone->fork;
    g_autofree char *host_name = sf_clone_host_name(fork->parent_name, clone->id);
    struct sf_gp_identity identity = {
        .ticket = fork->ticket,
        .id = clone->id,
        .count = fork->total,
        .clone_request = fork->clone_request,
        .realtime = (guint64)sf_clock_real_ns(),
    };
    guint8 payload[SF_GP_IDENTITY_LENGTH];
    gboolean sent;

    if (getrandom(identity.seed, sizeof(identity.seed), 0) != sizeof(identity.seed)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "getrandom: %s", g_strerror(errno));
        return FALSE;
    }
    sf_gp_text_set(identity.hostname, sizeof(identity.hostname), "%s", host_name);
    sf_gp_text_set(identity.parent, sizeof(identity.parent), "%s", fork->parent_name);
    sent =
        sf_vm_guest_send(clone->vm, SF_GP_IDENTITY, clone->id, payload, sf_gp_identity_pack(payload, &identity), error);
    explicit_bzero(identity.seed, sizeof(identity.seed));
    explicit_bzero(payload, sizeof(payload));
    return sent;
}

void sf_clone_identify(SfClone *clone)
{
    g_autoptr(GError) error = NULL;

    if (!sf_clone_tell_network(clone, &error) || !send_identity(clone, &error)) {
        sf_clone_end_everywhere(clone, SF_GP_STATE_FAILED, error->message);
        return;
    }
    if (!clone->identify_timeout) {
        clone->identify_timeout = g_timeout_add_seconds(clone->fork->identify_seconds, on_identify_timeout, clone);
    }
}

/* ---- placed ---- */

void sf_clone_take_vm(SfClone *clone, SfVm *vm)
{
    clone->vm = g_object_ref(vm);
    clone->exited_handler = g_signal_connect(vm, "exited", G_CALLBACK(on_clone_exited), clone);
    clone->running_handler = g_signal_connect(vm, "running", G_CALLBACK(on_clone_running), clone);
}

static void clone_loaded(SfClone *clone)
{
    clone->loaded = sf_clock_ns();
    if (clone->fork->with_agent) {
        sf_clone_identify(clone);
    }
    clone_progressed(clone);
}

/* A step of placing failed: another shell, or the end of the clone. */
static void clone_place_failed(SfClone *clone, const char *what, const GError *error)
{
    g_autofree char *reason = g_strdup_printf("%s: %s", what, error->message);

    sf_clone_drop_vm(clone, TRUE);
    if (clone->attempts < CLONE_ATTEMPTS) {
        g_message("ticket %016" G_GINT64_MODIFIER "x clone %u: %s; trying another shell", clone->fork->ticket,
                  clone->id, reason);
        sf_clone_place_here(clone);
        return;
    }
    sf_clone_end_everywhere(clone, SF_GP_STATE_FAILED, reason);
}

static void on_load(GObject *source, GAsyncResult *result, gpointer data)
{
    SfClone *clone = data;
    g_autoptr(SfFork) fork = clone->fork; /* the reference of the call */
    g_autoptr(GError) error = NULL;
    gboolean loaded = sf_vm_load_finish(SF_VM(source), result, &error);

    if (!sf_clone_is_alive(clone)) {
        return; /* killed meanwhile */
    }
    if (!loaded) {
        clone_place_failed(clone, "loading the snapshot", error);
        return;
    }
    clone_loaded(clone);
}

static const SfFaultHandler *fault_handler(SfFork *fork)
{
    return fork->pager ? sf_pager_fault_handler(fork->pager) : NULL;
}

static void on_shell(GObject *source, GAsyncResult *result, gpointer data)
{
    SfClone *clone = data;
    g_autoptr(SfFork) fork = clone->fork; /* the reference of the call */
    g_autoptr(GError) error = NULL;
    g_autoptr(SfVm) vm = sf_shell_pool_take_finish(fork->pool, result, &error);

    if (!sf_clone_is_alive(clone)) {
        if (vm) {
            sf_vm_kill(vm);
        }
        return;
    }
    if (!vm) {
        clone_place_failed(clone, "starting a shell", error);
        return;
    }
    sf_clone_take_vm(clone, vm);
    if (!sf_vm_rename(vm, clone->name, &error)) {
        clone_place_failed(clone, "naming the clone", error);
        return;
    }
    sf_vm_load_async(vm, fork->snapshot, fork->frozen_disks, TRUE, fault_handler(fork), on_load, clone);
    g_object_ref(fork);
}

void sf_clone_place_here(SfClone *clone)
{
    clone->attempts++;
    g_object_ref(clone->fork);
    sf_shell_pool_take_async(clone->fork->pool, on_shell, clone);
}

/* ---- what clones say ---- */

void sf_fork_clone_remind(SfClone *clone)
{
    g_autoptr(GError) error = NULL;

    if (clone->state != SF_GP_STATE_RUNNING || !clone->vm || !clone->fork->with_agent) {
        return; /* it is told, or was never */
    }
    if (clone->reminders++ < REMINDERS_LOGGED) {
        g_message("ticket %016" G_GINT64_MODIFIER "x clone %u: its guest has booted anew", clone->fork->ticket,
                  clone->id);
    }
    if (!sf_clone_tell_network(clone, &error) || !send_identity(clone, &error)) {
        g_debug("VM \"%s\": it is not told who it is: %s", clone->name, error->message);
    }
}

/* Its tap takes nothing that is not from the clone, so it needs not be ended if it can't be made unique again. */
static void reminded(SfClone *clone, const char *error_text)
{
    if (!error_text) {
        if (clone->network_told && clone->vm) {
            sf_vm_guest_send(clone->vm, SF_GP_LINK, clone->id, NULL, 0, NULL);
        }
    } else if (clone->reminders > 0 && clone->reminders++ <= REMINDERS_LOGGED) {
        g_message("ticket %016" G_GINT64_MODIFIER "x clone %u: it booted anew and could not be made unique, so it has no "
                  "network: %s",
                  clone->fork->ticket, clone->id, error_text);
    }
}

void sf_fork_clone_identified(SfClone *clone, const char *error_text)
{
    if (clone->state == SF_GP_STATE_RUNNING) {
        reminded(clone, error_text);
        return;
    }
    if (clone->state != SF_GP_STATE_STARTING || clone->loaded == 0) {
        return;
    }
    if (error_text) {
        g_autofree char *reason = g_strdup_printf("it could not be made unique: %s", error_text);
        sf_clone_end_everywhere(clone, SF_GP_STATE_FAILED, reason);
    } else {
        sf_clone_connect(clone);
    }
}

void sf_clone_runs(SfClone *clone)
{
    g_clear_handle_id(&clone->identify_timeout, g_source_remove);
    clone->state = SF_GP_STATE_RUNNING;
    clone->answered = sf_clock_ns();
    sf_fork_changed(clone->fork, clone);
    sf_fork_review(clone->fork);
}

void sf_clone_fail(SfClone *clone, const char *reason)
{
    sf_clone_end_everywhere(clone, SF_GP_STATE_FAILED, reason);
}

gboolean sf_fork_clone_sync(SfClone *clone, guint64 offset, guint64 total, const void *data, gsize length,
                            GError **error)
{
    gboolean whole;

    if (!sf_result_write(clone->fork->directory, clone->id, offset, total, data, length, &clone->received, &whole,
                         error)) {
        return FALSE;
    }
    if (whole) {
        clone->result_length = total;
        clone->synced = sf_clock_ns();
        sf_fork_changed(clone->fork, clone);
    }
    return TRUE;
}

void sf_fork_clone_exit(SfClone *clone, gint32 status)
{
    clone->status = status;
    sf_clone_end_everywhere(clone, SF_GP_STATE_EXITED, NULL);
}

GBytes *sf_fork_clone_fetch(SfClone *clone, guint64 offset, gsize length, GError **error)
{
    return sf_result_read(clone->fork->directory, clone->id, offset, length, error);
}

void sf_fork_clone_kill(SfClone *clone, const char *reason)
{
    sf_clone_end_everywhere(clone, SF_GP_STATE_KILLED, reason);
}

void sf_fork_clone_lose(SfClone *clone, const char *reason)
{
    sf_clone_end_everywhere(clone, SF_GP_STATE_LOST, reason);
}
