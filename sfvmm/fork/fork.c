/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/fork/fork.h"

#include "sfvmm/fork/clone_name.h"
#include "sfvmm/fork/fork_private.h"
#include "sfvmm/fork/fork_record.h"
#include "sfvmm/fork/remote.h"
#include "sfvmm/process/clock.h"

#define PARENT_MS 500 /* for its agent to write a file, in a guest that is busy; then its clones do it */

G_DEFINE_FINAL_TYPE(SfFork, sf_fork, G_TYPE_OBJECT)

void sf_fork_save(SfFork *fork)
{
    g_autoptr(GError) error = NULL;

    if (!sf_fork_record_save(fork, fork->directory, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s; a restart of sfvmmd now would forget its newest state",
                  fork->ticket, error->message);
    }
}

void sf_fork_changed(SfFork *fork, SfClone *clone)
{
    sf_fork_save(fork);
    g_signal_emit_by_name(fork, "changed", clone);
}

/* ---- the fork ---- */

void sf_fork_hold_pool(SfFork *fork, gboolean hold)
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
gboolean sf_fork_alive_elsewhere(SfFork *fork)
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
    if (sf_fork_alive_elsewhere(fork)) {
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
        placing += sf_clone_is_awaited(clone);
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
        g_signal_emit_by_name(fork, "placed");
    }
    if (sf_fork_is_answered(fork)) {
        sf_fork_hold_pool(fork, FALSE);
    }
    if (alive == 0) {
        fork_drop_snapshot(fork);
        if (fork->state == SF_FORK_RUNNING) {
            fork->state = SF_FORK_DONE;
            sf_fork_changed(fork, NULL);
        }
        g_signal_emit_by_name(fork, "done");
    }
}

/* Before any clone: nothing was made, the parent runs. */
void sf_fork_fail_early(SfFork *fork, const char *reason)
{
    g_clear_handle_id(&fork->parent_timeout, g_source_remove);
    fork_fail(fork, reason);
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (clone->host) {
            fork->remote->kill(fork->remote->owner, clone, reason);
        }
        clone->state = SF_GP_STATE_FAILED;
        clone->exited = sf_clock_ns();
        clone->reason = g_strdup(reason);
    }
    fork_drop_snapshot(fork);
    sf_fork_hold_pool(fork, FALSE);
    sf_fork_changed(fork, NULL);
    fork->placed_told = TRUE;
    g_signal_emit_by_name(fork, "placed");
    g_signal_emit_by_name(fork, "done");
}

void sf_fork_place(SfFork *fork)
{
    fork->state = SF_FORK_PLACING;
    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (sf_clone_is_being_placed(clone) && !clone->vm && !clone->host) {
            sf_clone_place_here(clone);
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
        sf_fork_fail_early(fork, error->message);
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
    sf_fork_place(fork);
    sf_fork_changed(fork, NULL);
    fork_place_elsewhere(fork); /* it is on record: after a restart we know that others may have been ordered */
}

static void fork_take_snapshot(SfFork *fork)
{
    g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, fork->ticket);

    sf_vm_snapshot_async(fork->parent, id, on_snapshot, g_object_ref(fork));
}

static gboolean on_parent_silent(gpointer data)
{
    SfFork *fork = data;

    fork->parent_timeout = 0;
    g_debug("ticket %016" G_GINT64_MODIFIER "x: the agent of \"%s\" does not answer; its clones do themselves what it "
            "could have done for all",
            fork->ticket, fork->parent_name);
    fork_take_snapshot(fork);
    return G_SOURCE_REMOVE;
}

void sf_fork_parent_told(SfFork *fork)
{
    if (fork->parent_timeout) {
        g_clear_handle_id(&fork->parent_timeout, g_source_remove);
        fork_take_snapshot(fork);
    }
}

void sf_fork_start(SfFork *fork)
{
    g_return_if_fail(fork->state == SF_FORK_NEW);
    fork->called = fork->called ? fork->called : sf_clock_ns();
    sf_fork_hold_pool(fork, TRUE);
    if (fork->elsewhere) {
        sf_fork_place(fork);
        sf_fork_changed(fork, NULL);
        fork_place_elsewhere(fork);
        return;
    }
    fork->state = SF_FORK_SNAPSHOT;
    sf_fork_changed(fork, NULL);
    if (fork->with_agent && fork->network && fork->network->tell_parent(fork->network->owner, fork)) {
        fork->parent_timeout = g_timeout_add(PARENT_MS, on_parent_silent, fork);
    } else {
        fork_take_snapshot(fork);
    }
}

void sf_fork_kill(SfFork *fork, const char *reason)
{
    g_autoptr(SfFork) keep = g_object_ref(fork);

    if (fork->state == SF_FORK_NEW || fork->state == SF_FORK_SNAPSHOT) {
        sf_fork_fail_early(fork, reason);
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

/* The memory that clones here still lack can't be had any more. */
static void on_pager_lost(SfPager *pager, const char *reason, SfFork *fork)
{
    g_autoptr(SfFork) keep = g_object_ref(fork);

    for (guint i = 0; i < fork->clones->len; i++) {
        SfClone *clone = g_ptr_array_index(fork->clones, i);
        if (!clone->host) {
            sf_clone_end_everywhere(clone, SF_GP_STATE_LOST, reason);
        }
    }
}

void sf_fork_add_clone(SfFork *fork, guint id, const char *host)
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
SfFork *sf_fork_new_without_clones(const SfForkOptions *options, const char *parent_name)
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
    SfFork *fork = sf_fork_new_without_clones(options, sf_vm_name(options->parent));

    for (guint i = 0; i < n_places; i++) {
        for (guint n = 0; n < places[i].count; n++) {
            sf_fork_add_clone(fork, id++, places[i].host);
        }
    }
    return fork;
}

SfFork *sf_fork_new_placed(const SfForkOptions *options, const SfForkPlaced *placed)
{
    const SfForkPlace here = { NULL, options->count };
    const SfForkPlace *places = options->places ? options->places : &here;
    guint n_places = options->places ? options->n_places : 1, index = 0;
    SfFork *fork = sf_fork_new_without_clones(options, placed->parent_name);

    fork->elsewhere = TRUE;
    fork->called = placed->ordered;
    fork->total = placed->total;
    fork->snapshot = sf_snapshot_ref(placed->snapshot);
    fork->frozen_disks = g_ptr_array_ref(placed->frozen_disks);
    g_strlcpy(fork->timing.snapshot, placed->snapshot->id, sizeof(fork->timing.snapshot));
    for (guint i = 0; i < n_places; i++) {
        for (guint n = 0; n < places[i].count; n++) {
            sf_fork_add_clone(fork, placed->ids[index++], places[i].host);
        }
    }
    return fork;
}

static void sf_fork_init(SfFork *fork)
{
    fork->clones = g_ptr_array_new_with_free_func(sf_clone_free);
}

static void sf_fork_finalize(GObject *object)
{
    SfFork *fork = SF_FORK(object);

    g_clear_handle_id(&fork->parent_timeout, g_source_remove);
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
    g_signal_new("changed", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_POINTER);
    g_signal_new("placed", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 0);
    g_signal_new("done", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 0);
}
