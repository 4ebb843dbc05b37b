/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/fork/fork.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "libsf/wire/message.h"
#include "sfvmm/fork/clone_name.h"
#include "sfvmm/fork/fork_private.h"
#include "sfvmm/fork/fork_record.h"
#include "sfvmm/fork/remote.h"
#include "sfvmm/fork/result.h"

/* A shell may die under a load for reasons of its own; a second failure is the snapshot's or the host's. */
#define CLONE_ATTEMPTS 2u
#define NS_PER_US      1000

struct _SfFork {
    GObject parent_instance;
    guint64 ticket;
    SfForkState state;
    char *reason;
    gboolean refused; /* QEMU can't fork this VM; the reason names the device */
    char *directory;
    char *parent_name;
    SfVm *parent; /* NULL when it has ended */
    SfShellPool *pool;
    gboolean pool_held;
    gboolean source_done; /* other hosts don't need the snapshot any more */
    gboolean elsewhere;   /* its snapshot was taken on another host; only the clones here are in it */
    guint total;          /* clones of all hosts */
    const SfForkRemote *remote;
    const SfForkNetwork *network; /* NULL: none */
    SfPager *pager;  /* fills the memory of clones here */
    SfPager *server; /* gives the snapshot's memory to other hosts */
    gulong lost_handler, failed_handler;
    gboolean with_agent;
    guint32 clone_request;
    guint identify_seconds;
    gint64 called;
    SfForkTiming timing;
    SfSnapshot *snapshot;
    GPtrArray *frozen_disks;
    GPtrArray *clones; /* of SfClone, in the order of their ids */
    gboolean placed_told;
};

G_DEFINE_FINAL_TYPE(SfFork, sf_fork, G_TYPE_OBJECT)

enum { SIGNAL_CHANGED, SIGNAL_PLACED, SIGNAL_DONE, N_SIGNALS };
static guint signals[N_SIGNALS];

static void clone_place(SfClone *clone);
static void fork_hold_pool(SfFork *fork, gboolean hold);

static gint64 now_ns(void)
{
    return g_get_monotonic_time() * NS_PER_US;
}

static void fork_save(SfFork *fork)
{
    g_autoptr(GError) error = NULL;

    if (!sf_fork_record_save(fork, fork->directory, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s; a restart of sfvmmd now would forget its newest state",
                  fork->ticket, error->message);
    }
}

void sf_fork_changed(SfFork *fork, SfClone *clone)
{
    fork_save(fork);
    g_signal_emit(fork, signals[SIGNAL_CHANGED], 0, clone);
}

/* ---- one clone ---- */

gboolean sf_clone_is_alive(const SfClone *clone)
{
    return clone->state == SF_GP_STATE_STARTING || clone->state == SF_GP_STATE_RUNNING;
}

gboolean sf_clone_is_being_placed(const SfClone *clone)
{
    return clone->state == SF_GP_STATE_STARTING && clone->loaded == 0;
}

/* STARTING and not yet running on its own: sf_clone() in the parent waits for these. */
static gboolean clone_is_awaited(const SfClone *clone)
{
    return sf_clone_is_being_placed(clone) || (clone->state == SF_GP_STATE_STARTING && !clone->fork->with_agent);
}

static void clone_drop_vm(SfClone *clone, gboolean kill)
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
    clone->exited = now_ns();
    g_free(clone->reason);
    clone->reason = g_strdup(reason);
    fork_save(fork); /* first: an sfvmmd that finds the process gone and no record of why calls the clone lost */
    clone_drop_vm(clone, TRUE);
    if (state == SF_GP_STATE_EXITED) {
        g_info("ticket %016" G_GINT64_MODIFIER "x clone %u: exited with status %d", fork->ticket, clone->id,
               clone->status);
    } else {
        g_message("ticket %016" G_GINT64_MODIFIER "x clone %u: %s", fork->ticket, clone->id, reason);
    }
    g_signal_emit(fork, signals[SIGNAL_CHANGED], 0, clone);
    sf_fork_review(fork);
}

/* As sf_clone_end(), and its host is told, which does not know it yet. */
static void clone_end(SfClone *clone, guint32 state, const char *reason)
{
    if (clone->host && sf_clone_is_alive(clone)) {
        clone->fork->remote->kill(clone->fork->remote->owner, clone, reason);
    }
    sf_clone_end(clone, state, reason);
}

static void on_clone_exited(SfVm *vm, const char *reason, SfClone *clone)
{
    g_autofree char *text = g_strdup_printf("its QEMU ended: %s", reason);

    if (sf_clone_is_being_placed(clone) && clone->attempts < CLONE_ATTEMPTS) {
        return; /* the load in flight fails with SF_VM_ERROR_GONE and tries again */
    }
    clone_end(clone, clone->running ? SF_GP_STATE_LOST : SF_GP_STATE_FAILED, text);
}

/* Without an agent, that its vCPU runs is all there is to wait for. */
static void clone_review(SfClone *clone)
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
    clone_review(clone);
}

static gboolean on_identify_timeout(gpointer data)
{
    SfClone *clone = data;
    g_autofree char *reason =
        g_strdup_printf("its agent did not answer within %u s of the fork, so it could not be made unique",
                        clone->fork->identify_seconds);

    clone->identify_timeout = 0;
    clone_end(clone, SF_GP_STATE_FAILED, reason);
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
        .realtime = (guint64)g_get_real_time() * NS_PER_US,
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

static void clone_identify(SfClone *clone)
{
    g_autoptr(GError) error = NULL;

    if (!sf_clone_tell_network(clone, &error) || !send_identity(clone, &error)) {
        clone_end(clone, SF_GP_STATE_FAILED, error->message);
        return;
    }
    if (!clone->identify_timeout) {
        clone->identify_timeout = g_timeout_add_seconds(clone->fork->identify_seconds, on_identify_timeout, clone);
    }
}

static void clone_take_vm(SfClone *clone, SfVm *vm)
{
    clone->vm = g_object_ref(vm);
    clone->exited_handler = g_signal_connect(vm, "exited", G_CALLBACK(on_clone_exited), clone);
    clone->running_handler = g_signal_connect(vm, "running", G_CALLBACK(on_clone_running), clone);
}

static void clone_loaded(SfClone *clone)
{
    clone->loaded = now_ns();
    if (clone->fork->with_agent) {
        clone_identify(clone);
    }
    clone_review(clone);
}

/* A step of placing failed: another shell, or the end of the clone. */
static void clone_place_failed(SfClone *clone, const char *what, const GError *error)
{
    g_autofree char *reason = g_strdup_printf("%s: %s", what, error->message);

    clone_drop_vm(clone, TRUE);
    if (clone->attempts < CLONE_ATTEMPTS) {
        g_message("ticket %016" G_GINT64_MODIFIER "x clone %u: %s; trying another shell", clone->fork->ticket,
                  clone->id, reason);
        clone_place(clone);
        return;
    }
    clone_end(clone, SF_GP_STATE_FAILED, reason);
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
    clone_take_vm(clone, vm);
    if (!sf_vm_rename(vm, clone->name, &error)) {
        clone_place_failed(clone, "naming the clone", error);
        return;
    }
    sf_vm_load_async(vm, fork->snapshot, fork->frozen_disks, TRUE, fault_handler(fork), on_load, clone);
    g_object_ref(fork);
}

static void clone_place(SfClone *clone)
{
    clone->attempts++;
    g_object_ref(clone->fork);
    sf_shell_pool_take_async(clone->fork->pool, on_shell, clone);
}

/* ---- the fork ---- */

static void fork_hold_pool(SfFork *fork, gboolean hold)
{
    if (fork->pool_held == hold) {
        return;
    }
    fork->pool_held = hold;
    if (hold) {
        sf_shell_pool_hold(fork->pool);
    } else {
        sf_shell_pool_release(fork->pool);
    }
}

/* Other hosts may still fetch pages of the snapshot. */
static gboolean fork_alive_elsewhere(SfFork *fork)
{
    if (fork->source_done) {
        return FALSE;
    }
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->host && sf_clone_is_alive(clone)) {
            return TRUE;
        }
    }
    return FALSE;
}

/*
 * Clones here hold what they need of it themselves, those elsewhere don't. Its record stays while one of them may have
 * to be adopted.
 */
static void fork_drop_snapshot(SfFork *fork)
{
    if (fork_alive_elsewhere(fork)) {
        return;
    }
    g_clear_pointer(&fork->snapshot, sf_snapshot_unref);
    g_clear_pointer(&fork->frozen_disks, g_ptr_array_unref);
    if (sf_fork_alive(fork) == 0) {
        sf_fork_record_drop_snapshot(fork->directory);
    }
}

static void fork_fail(SfFork *fork, const char *reason)
{
    fork->state = SF_FORK_FAILED;
    fork->reason = g_strdup(reason);
    g_message("ticket %016" G_GINT64_MODIFIER "x: fork of VM \"%s\" failed: %s", fork->ticket, fork->parent_name,
              reason);
}

/* Why every clone failed, told by the first of them. */
static const char *first_reason(SfFork *fork)
{
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->reason) {
            return clone->reason;
        }
    }
    return "no clone could be made";
}

static gboolean fork_none_ran(SfFork *fork)
{
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->state != SF_GP_STATE_FAILED || clone->loaded) {
            return FALSE;
        }
    }
    return TRUE;
}

/* Called after every change of a clone: moves the fork's own state on. */
void sf_fork_review(SfFork *fork)
{
    g_autoptr(SfFork) keep = g_object_ref(fork);
    guint placing = 0, alive = 0;

    if (fork->state != SF_FORK_PLACING && fork->state != SF_FORK_RUNNING) {
        return;
    }
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        placing += clone_is_awaited(clone);
        alive += sf_clone_is_alive(clone);
    }
    if (placing == 0 && fork->state == SF_FORK_PLACING) {
        fork->state = SF_FORK_RUNNING;
        fork_drop_snapshot(fork);
        if (fork_none_ran(fork)) {
            fork_fail(fork, first_reason(fork));
        }
        sf_fork_changed(fork, NULL);
    }
    if (placing == 0 && !fork->placed_told) {
        fork->placed_told = TRUE;
        g_signal_emit(fork, signals[SIGNAL_PLACED], 0);
    }
    if (sf_fork_is_answered(fork)) {
        fork_hold_pool(fork, FALSE);
    }
    if (alive == 0) {
        fork_drop_snapshot(fork);
        if (fork->state == SF_FORK_RUNNING) {
            fork->state = SF_FORK_DONE;
            sf_fork_changed(fork, NULL);
        }
        g_signal_emit(fork, signals[SIGNAL_DONE], 0);
    }
}

/* Before any clone: nothing was made, the parent runs. */
static void fork_fail_early(SfFork *fork, const char *reason)
{
    fork_fail(fork, reason);
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->host) {
            fork->remote->kill(fork->remote->owner, clone, reason);
        }
        clone->state = SF_GP_STATE_FAILED;
        clone->exited = now_ns();
        clone->reason = g_strdup(reason);
    }
    fork_drop_snapshot(fork);
    fork_hold_pool(fork, FALSE);
    sf_fork_changed(fork, NULL);
    fork->placed_told = TRUE;
    g_signal_emit(fork, signals[SIGNAL_PLACED], 0);
    g_signal_emit(fork, signals[SIGNAL_DONE], 0);
}

static void fork_place(SfFork *fork)
{
    fork->state = SF_FORK_PLACING;
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (sf_clone_is_being_placed(clone) && !clone->vm && !clone->host) {
            clone_place(clone);
        }
    }
}

/* One order for each host that clones wait for. */
static void fork_place_elsewhere(SfFork *fork)
{
    g_autoptr(GHashTable) hosts = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    GHashTableIter iter;
    const char *host;

    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (sf_clone_is_being_placed(clone) && clone->host) {
            g_hash_table_add(hosts, g_strdup(clone->host));
        }
    }
    g_hash_table_iter_init(&iter, hosts);
    while (g_hash_table_iter_next(&iter, (gpointer *)&host, NULL)) {
        fork->remote->place(fork->remote->owner, fork, host);
    }
}

void sf_clone_place_here(SfClone *clone)
{
    clone_place(clone);
}

/* Nobody would serve their memory. */
static void fork_lose_elsewhere(SfFork *fork, const char *reason)
{
    g_autofree char *text = g_strdup_printf("the snapshot can't be given to other hosts: %s", reason);

    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->host) {
            sf_clone_end(clone, SF_GP_STATE_FAILED, text);
        }
    }
}

static void on_snapshot(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(SfFork) fork = data;
    g_autoptr(GError) error = NULL;

    fork->snapshot = sf_vm_snapshot_finish(SF_VM(source), result, &fork->frozen_disks, &error);
    if (fork->state != SF_FORK_SNAPSHOT) {
        fork_drop_snapshot(fork); /* killed meanwhile */
        return;
    }
    if (!fork->snapshot) {
        fork->refused = g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_REFUSED);
        fork_fail_early(fork, error->message);
        return;
    }
    sf_fork_timing_take(&fork->timing, fork->snapshot);
    if (!sf_fork_record_save_snapshot(fork->snapshot, fork->frozen_disks, fork->directory, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s; a restart of sfvmmd now would end the fork", fork->ticket,
                  error->message);
        g_clear_error(&error);
    }
    if (fork->server && !sf_pager_set_snapshot(fork->server, fork->snapshot, &error)) {
        fork_lose_elsewhere(fork, error->message);
    }
    fork_place(fork);
    sf_fork_changed(fork, NULL);
    fork_place_elsewhere(fork); /* it is on record: after a restart we know that others may have been ordered */
}

void sf_fork_start(SfFork *fork)
{
    g_return_if_fail(fork->state == SF_FORK_NEW);
    fork->called = fork->called ? fork->called : now_ns();
    fork_hold_pool(fork, TRUE);
    if (fork->elsewhere) {
        fork_place(fork);
        sf_fork_changed(fork, NULL);
        fork_place_elsewhere(fork);
        return;
    }
    fork->state = SF_FORK_SNAPSHOT;
    sf_fork_changed(fork, NULL);
    {
        g_autofree char *id = g_strdup_printf("s-%016" G_GINT64_MODIFIER "x", fork->ticket);
        sf_vm_snapshot_async(fork->parent, id, on_snapshot, g_object_ref(fork));
    }
}

/* ---- what clones say ---- */

void sf_fork_clone_identified(SfClone *clone, const char *error_text)
{
    if (clone->state != SF_GP_STATE_STARTING || clone->loaded == 0) {
        return;
    }
    if (error_text) {
        g_autofree char *reason = g_strdup_printf("it could not be made unique: %s", error_text);
        clone_end(clone, SF_GP_STATE_FAILED, reason);
    } else {
        sf_clone_connect(clone);
    }
}

void sf_clone_runs(SfClone *clone)
{
    g_clear_handle_id(&clone->identify_timeout, g_source_remove);
    clone->state = SF_GP_STATE_RUNNING;
    clone->answered = now_ns();
    sf_fork_changed(clone->fork, clone);
    sf_fork_review(clone->fork);
}

void sf_clone_fail(SfClone *clone, const char *reason)
{
    clone_end(clone, SF_GP_STATE_FAILED, reason);
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
        clone->synced = now_ns();
        sf_fork_changed(clone->fork, clone);
    }
    return TRUE;
}

void sf_fork_clone_exit(SfClone *clone, gint32 status)
{
    clone->status = status;
    clone_end(clone, SF_GP_STATE_EXITED, NULL);
}

GBytes *sf_fork_clone_fetch(SfClone *clone, guint64 offset, gsize length, GError **error)
{
    return sf_result_read(clone->fork->directory, clone->id, offset, length, error);
}

void sf_fork_clone_kill(SfClone *clone, const char *reason)
{
    clone_end(clone, SF_GP_STATE_KILLED, reason);
}

void sf_fork_clone_lose(SfClone *clone, const char *reason)
{
    clone_end(clone, SF_GP_STATE_LOST, reason);
}

void sf_fork_kill(SfFork *fork, const char *reason)
{
    g_autoptr(SfFork) keep = g_object_ref(fork);

    if (fork->state == SF_FORK_NEW || fork->state == SF_FORK_SNAPSHOT) {
        fork_fail_early(fork, reason);
        return;
    }
    for (guint i = 0; i < fork->clones->len; i++) {
        sf_fork_clone_kill(g_ptr_array_index(fork->clones, i), reason);
    }
}

/* ---- what others ask ---- */

SfForkState sf_fork_state(SfFork *fork)
{
    return fork->state;
}

const char *sf_fork_reason(SfFork *fork)
{
    return fork->reason;
}

gboolean sf_fork_is_refused(SfFork *fork)
{
    return fork->refused;
}

guint64 sf_fork_ticket(SfFork *fork)
{
    return fork->ticket;
}

guint sf_fork_count(SfFork *fork)
{
    return fork->clones->len;
}

guint sf_fork_total(SfFork *fork)
{
    return fork->total;
}

SfClone *sf_fork_nth(SfFork *fork, guint index)
{
    return g_ptr_array_index(fork->clones, index);
}

gboolean sf_fork_is_elsewhere(SfFork *fork)
{
    return fork->elsewhere;
}

SfVm *sf_fork_parent(SfFork *fork)
{
    return fork->parent;
}

const char *sf_fork_parent_name(SfFork *fork)
{
    return fork->parent_name;
}

gboolean sf_fork_with_agent(SfFork *fork)
{
    return fork->with_agent;
}

guint32 sf_fork_clone_request(SfFork *fork)
{
    return fork->clone_request;
}

const SfForkNetwork *sf_fork_network(SfFork *fork)
{
    return fork->network;
}

const SfForkTiming *sf_fork_timing(SfFork *fork)
{
    return &fork->timing;
}

gint64 sf_fork_called(SfFork *fork)
{
    return fork->called;
}

gboolean sf_fork_is_placed(SfFork *fork)
{
    return fork->state == SF_FORK_RUNNING || sf_fork_is_done(fork);
}

gboolean sf_fork_is_done(SfFork *fork)
{
    return fork->state == SF_FORK_DONE || fork->state == SF_FORK_FAILED;
}

gboolean sf_fork_is_answered(SfFork *fork)
{
    if (!sf_fork_is_placed(fork)) {
        return FALSE;
    }
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->state == SF_GP_STATE_STARTING) {
            return FALSE;
        }
    }
    return TRUE;
}

guint sf_fork_alive(SfFork *fork)
{
    guint alive = 0;

    for (guint i = 0; i < fork->clones->len; i++) {
        alive += sf_clone_is_alive(g_ptr_array_index(fork->clones, i));
    }
    return alive;
}

guint sf_fork_placed_count(SfFork *fork)
{
    guint placed = 0;

    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        placed += clone->loaded != 0;
    }
    return placed;
}

SfClone *sf_fork_clone(SfFork *fork, guint id)
{
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->id == id) {
            return clone;
        }
    }
    return NULL;
}

SfClone *sf_fork_clone_of_vm(SfFork *fork, SfVm *vm)
{
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (vm && clone->vm == vm) {
            return clone;
        }
    }
    return NULL;
}

void sf_fork_source_done(SfFork *fork)
{
    if (fork->state != SF_FORK_RUNNING) {
        return; /* more clones may be placed from it */
    }
    fork->source_done = TRUE;
    g_clear_object(&fork->server);
    fork_drop_snapshot(fork);
    sf_fork_changed(fork, NULL);
}

void sf_fork_set_placed(SfFork *fork, SfSnapshot *snapshot, GPtrArray *frozen_disks)
{
    fork->snapshot = sf_snapshot_ref(snapshot);
    fork->frozen_disks = g_ptr_array_ref(frozen_disks);
}

SfSnapshot *sf_fork_snapshot(SfFork *fork)
{
    return fork->snapshot;
}

GPtrArray *sf_fork_frozen_disks(SfFork *fork)
{
    return fork->frozen_disks;
}

/* ---- life ---- */

static void clone_free(gpointer data)
{
    SfClone *clone = data;

    clone_drop_vm(clone, FALSE);
    g_free(clone->name);
    g_free(clone->host);
    g_free(clone->reason);
    g_free(clone);
}

/* The memory that clones here still lack can't be had any more. */
static void on_pager_lost(SfPager *pager, const char *reason, SfFork *fork)
{
    g_autoptr(SfFork) keep = g_object_ref(fork);

    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (!clone->host) {
            clone_end(clone, SF_GP_STATE_LOST, reason);
        }
    }
}

static void add_clone(SfFork *fork, guint id, const char *host)
{
    SfClone *clone = g_new0(SfClone, 1);

    clone->fork = fork;
    clone->id = id;
    clone->name = sf_clone_vm_name(fork->parent_name, fork->ticket, id);
    clone->host = g_strdup(host);
    clone->state = SF_GP_STATE_STARTING;
    g_ptr_array_add(fork->clones, clone);
}

/* Without clones. */
static SfFork *fork_new(const SfForkOptions *options, const char *parent_name)
{
    SfFork *fork = g_object_new(SF_TYPE_FORK, NULL);

    fork->ticket = options->ticket;
    fork->directory = g_strdup(options->directory);
    fork->parent = options->parent ? g_object_ref(options->parent) : NULL;
    fork->parent_name = g_strdup(parent_name);
    fork->pool = sf_shell_pool_ref(options->pool);
    fork->with_agent = options->with_agent;
    fork->clone_request = options->clone_request;
    fork->identify_seconds = options->identify_seconds;
    fork->total = options->count;
    fork->remote = options->remote;
    fork->network = options->network;
    if (options->pager) {
        fork->pager = g_object_ref(options->pager);
        fork->lost_handler = g_signal_connect(fork->pager, "lost", G_CALLBACK(on_pager_lost), fork);
        fork->failed_handler = g_signal_connect(fork->pager, "failed", G_CALLBACK(on_pager_lost), fork);
    }
    fork->server = options->server ? g_object_ref(options->server) : NULL;
    return fork;
}

SfFork *sf_fork_new(const SfForkOptions *options)
{
    const SfForkPlace here = { NULL, options->count };
    const SfForkPlace *places = options->places ? options->places : &here;
    guint n_places = options->places ? options->n_places : 1, id = 1;
    SfFork *fork = fork_new(options, sf_vm_name(options->parent));

    for (guint i = 0; i < n_places; i++) {
        for (guint n = 0; n < places[i].count; n++) {
            add_clone(fork, id++, places[i].host);
        }
    }
    return fork;
}

SfFork *sf_fork_new_placed(const SfForkOptions *options, const SfForkPlaced *placed)
{
    const SfForkPlace here = { NULL, options->count };
    const SfForkPlace *places = options->places ? options->places : &here;
    guint n_places = options->places ? options->n_places : 1, index = 0;
    SfFork *fork = fork_new(options, placed->parent_name);

    fork->elsewhere = TRUE;
    fork->called = placed->ordered;
    fork->total = placed->total;
    fork->snapshot = sf_snapshot_ref(placed->snapshot);
    fork->frozen_disks = g_ptr_array_ref(placed->frozen_disks);
    g_strlcpy(fork->timing.snapshot, placed->snapshot->id, sizeof(fork->timing.snapshot));
    for (guint i = 0; i < n_places; i++) {
        for (guint n = 0; n < places[i].count; n++) {
            add_clone(fork, placed->ids[index++], places[i].host);
        }
    }
    return fork;
}

static void sf_fork_init(SfFork *fork)
{
    fork->clones = g_ptr_array_new_with_free_func(clone_free);
}

static void sf_fork_finalize(GObject *object)
{
    SfFork *fork = SF_FORK(object);

    if (fork->pool_held) {
        sf_shell_pool_release(fork->pool);
    }
    sf_shell_pool_unref(fork->pool);
    if (fork->pager) {
        g_clear_signal_handler(&fork->lost_handler, fork->pager);
        g_clear_signal_handler(&fork->failed_handler, fork->pager);
        g_clear_object(&fork->pager);
    }
    g_clear_object(&fork->server);
    g_clear_pointer(&fork->snapshot, sf_snapshot_unref);
    g_clear_pointer(&fork->frozen_disks, g_ptr_array_unref);
    g_ptr_array_unref(fork->clones);
    g_clear_object(&fork->parent);
    g_free(fork->parent_name);
    g_free(fork->directory);
    g_free(fork->reason);
    G_OBJECT_CLASS(sf_fork_parent_class)->finalize(object);
}

static void sf_fork_class_init(SfForkClass *class)
{
    GType type = G_TYPE_FROM_CLASS(class);

    G_OBJECT_CLASS(class)->finalize = sf_fork_finalize;
    signals[SIGNAL_CHANGED] =
        g_signal_new("changed", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_POINTER);
    signals[SIGNAL_PLACED] = g_signal_new("placed", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 0);
    signals[SIGNAL_DONE] = g_signal_new("done", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 0);
}

/* ---- after a restart of sfvmmd ---- */

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
    fork = fork_new(&recorded, record->parent_name);
    fork->elsewhere = record->elsewhere;
    fork->total = record->total;
    fork->state = record->state;
    fork->reason = g_strdup(record->reason);
    fork->called = record->called;
    fork->timing = record->timing;
    for (guint i = 0; i < record->clones->len; i++) {
        SfClone *clone;
        add_clone(fork, sf_fork_record_clone_id(record, i), NULL);
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
            clone_take_vm(clone, vm);
            if (!clone->loaded) {
                clone->loaded = clone->running = now_ns();
            }
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
            clone_identify(clone);
        } else {
            clone->state = SF_GP_STATE_RUNNING;
        }
    } else if (clone->loaded) {
        clone_end(clone, SF_GP_STATE_LOST, "its QEMU ended while sfvmmd was not running");
    } else if (why_not_placed) {
        clone_end(clone, SF_GP_STATE_FAILED, why_not_placed);
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
    gboolean ordered = fork->state == SF_FORK_PLACING && fork_alive_elsewhere(fork);

    if (fork->elsewhere || ordered) {
        fork_fail_early(fork, "sfvmmd was restarted before the first clone ran, and the snapshot could not be found");
    } else if (fork->parent) {
        fork->state = SF_FORK_NEW;
        sf_fork_start(fork);
    } else {
        fork_fail_early(fork, "sfvmmd was restarted before the first clone ran, and the parent has ended since");
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
        fork_hold_pool(fork, TRUE);
        fork_place(fork);
    }
    sf_fork_changed(fork, NULL);
    sf_fork_review(fork);
}
