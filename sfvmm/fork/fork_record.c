/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/fork/fork_record.h"

#include <string.h>

#include "sfvmm/fork/fork_private.h"
#include "sfvmm/wire/state_file.h"

#define SNAPSHOT_FOLDER "snapshot"
#define DISKS_FILE      "disks.json"
#define FORK_FILE       "fork.json"

static const char *const fork_state_names[] = {
    [SF_FORK_NEW] = "granted",     [SF_FORK_SNAPSHOT] = "forking", [SF_FORK_PLACING] = "placing",
    [SF_FORK_RUNNING] = "running", [SF_FORK_DONE] = "done",        [SF_FORK_FAILED] = "failed",
};

static const char *const clone_state_names[] = {
    [SF_GP_STATE_STARTING] = "starting", [SF_GP_STATE_RUNNING] = "running", [SF_GP_STATE_EXITED] = "exited",
    [SF_GP_STATE_FAILED] = "failed",     [SF_GP_STATE_LOST] = "lost",       [SF_GP_STATE_KILLED] = "killed",
};

/* Index of a name in a table, or -1. */
static int name_index(const char *const *names, guint n, const char *name)
{
    for (guint i = 0; i < n; i++) {
        if (g_strcmp0(names[i], name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

const char *sf_clone_state_name(guint32 state)
{
    return clone_state_names[state];
}

int sf_clone_state_from_name(const char *name)
{
    return name_index(clone_state_names, G_N_ELEMENTS(clone_state_names), name);
}

void sf_fork_timing_take(SfForkTiming *timing, const SfSnapshot *snapshot)
{
    const struct sf_qc_snapshot_reply *reply = &snapshot->timing;

    *timing = (SfForkTiming){
        .at = (gint64)reply->at,
        .pause = (gint64)reply->pause,
        .stop = (gint64)reply->stop,
        .device = (gint64)reply->device,
        .ram = (gint64)reply->ram,
        .disk = (gint64)reply->disk,
        .start = (gint64)reply->start,
        .state_length = snapshot->state_length,
    };
    g_strlcpy(timing->snapshot, snapshot->id, sizeof(timing->snapshot));
}

/* ---- JSON ---- */

static JsonObject *timing_to_json(const SfForkTiming *timing, gint64 called)
{
    JsonObject *object = json_object_new();

    json_object_set_int_member(object, "called", called);
    json_object_set_int_member(object, "at", timing->at);
    json_object_set_int_member(object, "pause_ns", timing->pause);
    json_object_set_int_member(object, "stop_ns", timing->stop);
    json_object_set_int_member(object, "device_ns", timing->device);
    json_object_set_int_member(object, "ram_ns", timing->ram);
    json_object_set_int_member(object, "disk_ns", timing->disk);
    json_object_set_int_member(object, "start_ns", timing->start);
    json_object_set_int_member(object, "state_length", (gint64)timing->state_length);
    json_object_set_string_member(object, "snapshot", timing->snapshot);
    return object;
}

static void timing_from_json(SfForkTiming *timing, JsonObject *object)
{
    timing->at = json_object_get_int_member_with_default(object, "at", 0);
    timing->pause = json_object_get_int_member_with_default(object, "pause_ns", 0);
    timing->stop = json_object_get_int_member_with_default(object, "stop_ns", 0);
    timing->device = json_object_get_int_member_with_default(object, "device_ns", 0);
    timing->ram = json_object_get_int_member_with_default(object, "ram_ns", 0);
    timing->disk = json_object_get_int_member_with_default(object, "disk_ns", 0);
    timing->start = json_object_get_int_member_with_default(object, "start_ns", 0);
    timing->state_length = (guint64)json_object_get_int_member_with_default(object, "state_length", 0);
    g_strlcpy(timing->snapshot, json_object_get_string_member_with_default(object, "snapshot", ""),
              sizeof(timing->snapshot));
}

JsonObject *sf_fork_describe_clone(const SfClone *clone)
{
    JsonObject *object = json_object_new();

    json_object_set_int_member(object, "id", clone->id);
    json_object_set_string_member(object, "vm", clone->name);
    json_object_set_string_member(object, "host", clone->host ? clone->host : "");
    json_object_set_string_member(object, "state", clone_state_names[clone->state]);
    json_object_set_int_member(object, "status", clone->status);
    json_object_set_string_member(object, "reason", clone->reason ? clone->reason : "");
    json_object_set_int_member(object, "result_length", (gint64)clone->result_length);
    json_object_set_int_member(object, "placed", clone->placed);
    json_object_set_int_member(object, "loaded", clone->loaded);
    json_object_set_int_member(object, "running", clone->running);
    json_object_set_int_member(object, "answered", clone->answered);
    json_object_set_boolean_member(object, "network", clone->network_told);
    json_object_set_int_member(object, "synced", clone->synced);
    json_object_set_int_member(object, "exited", clone->exited);
    return object;
}

void sf_fork_describe(SfFork *fork, JsonObject *ticket)
{
    const char *reason = sf_fork_reason(fork);
    JsonArray *clones = json_array_new();

    for (guint i = 0; i < sf_fork_count(fork); i++) {
        json_array_add_object_element(clones, sf_fork_describe_clone(sf_fork_nth(fork, i)));
    }
    json_object_set_string_member(ticket, "state", fork_state_names[sf_fork_state(fork)]);
    json_object_set_string_member(ticket, "reason", reason ? reason : "");
    json_object_set_object_member(ticket, "fork", timing_to_json(sf_fork_timing(fork), sf_fork_called(fork)));
    json_object_set_array_member(ticket, "clones", clones);
}

/* ---- fork.json ---- */

gboolean sf_fork_record_save(SfFork *fork, const char *directory, GError **error)
{
    g_autoptr(JsonObject) object = json_object_new();
    g_autofree char *path = g_build_filename(directory, FORK_FILE, NULL);

    sf_fork_describe(fork, object);
    json_object_set_string_member(object, "parent", sf_fork_parent_name(fork));
    json_object_set_int_member(object, "total", sf_fork_total(fork));
    json_object_set_boolean_member(object, "elsewhere", sf_fork_is_elsewhere(fork));
    json_object_set_boolean_member(object, "with_agent", sf_fork_with_agent(fork));
    json_object_set_int_member(object, "clone_request", sf_fork_clone_request(fork));
    return sf_state_write(path, object, error);
}

SfForkRecord *sf_fork_record_load(const char *directory, GError **error)
{
    g_autofree char *path = g_build_filename(directory, FORK_FILE, NULL);
    g_autoptr(JsonObject) object = sf_state_read(path, error);
    g_autoptr(SfForkRecord) record = g_new0(SfForkRecord, 1);
    const char *reason;
    int state;

    if (!object) {
        return NULL;
    }
    state = name_index(fork_state_names, G_N_ELEMENTS(fork_state_names),
                       json_object_get_string_member_with_default(object, "state", ""));
    reason = json_object_get_string_member_with_default(object, "reason", "");
    if (state < 0 || !json_object_has_member(object, "clones") || !json_object_has_member(object, "fork") ||
        json_array_get_length(json_object_get_array_member(object, "clones")) > SF_GP_MAX_CLONES) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "\"%s\": record of a fork is damaged", path);
        return NULL;
    }
    record->state = (SfForkState)state;
    record->reason = *reason ? g_strdup(reason) : NULL;
    record->parent_name = g_strdup(json_object_get_string_member_with_default(object, "parent", ""));
    record->with_agent = json_object_get_boolean_member_with_default(object, "with_agent", FALSE);
    record->elsewhere = json_object_get_boolean_member_with_default(object, "elsewhere", FALSE);
    record->total = (guint)CLAMP(json_object_get_int_member_with_default(object, "total", 0), 0, SF_GP_MAX_CLONES);
    record->clone_request = (guint32)json_object_get_int_member_with_default(object, "clone_request", 0);
    record->called =
        json_object_get_int_member_with_default(json_object_get_object_member(object, "fork"), "called", 0);
    timing_from_json(&record->timing, json_object_get_object_member(object, "fork"));
    record->json_clones = json_array_ref(json_object_get_array_member(object, "clones"));
    record->clones = g_ptr_array_new();
    for (guint i = 0; i < json_array_get_length(record->json_clones); i++) {
        g_ptr_array_add(record->clones, json_array_get_object_element(record->json_clones, i));
    }
    return g_steal_pointer(&record);
}

guint sf_fork_record_clone_id(const SfForkRecord *record, guint index)
{
    gint64 id = json_object_get_int_member_with_default(g_ptr_array_index(record->clones, index), "id", 0);

    return (guint)CLAMP(id, 0, SF_GP_MAX_CLONES);
}

void sf_fork_record_clone(const SfForkRecord *record, guint index, SfClone *clone)
{
    JsonObject *object = g_ptr_array_index(record->clones, index);
    const char *reason = json_object_get_string_member_with_default(object, "reason", "");
    const char *host = json_object_get_string_member_with_default(object, "host", "");
    int state = sf_clone_state_from_name(json_object_get_string_member_with_default(object, "state", ""));

    clone->host = *host ? g_strdup(host) : NULL;
    clone->placed = json_object_get_int_member_with_default(object, "placed", 0);
    clone->state = state < 0 ? SF_GP_STATE_FAILED : (guint32)state;
    clone->status = (gint32)json_object_get_int_member_with_default(object, "status", 0);
    clone->reason = *reason ? g_strdup(reason) : NULL;
    clone->loaded = json_object_get_int_member_with_default(object, "loaded", 0);
    clone->running = json_object_get_int_member_with_default(object, "running", 0);
    clone->answered = json_object_get_int_member_with_default(object, "answered", 0);
    clone->network_told = json_object_get_boolean_member_with_default(object, "network", FALSE);
    clone->synced = json_object_get_int_member_with_default(object, "synced", 0);
    clone->exited = json_object_get_int_member_with_default(object, "exited", 0);
}

void sf_fork_record_free(SfForkRecord *record)
{
    if (!record) {
        return;
    }
    g_clear_pointer(&record->clones, g_ptr_array_unref);
    g_clear_pointer(&record->json_clones, json_array_unref);
    g_free(record->reason);
    g_free(record->parent_name);
    g_free(record);
}

/* ---- snapshot/ ---- */

gboolean sf_fork_record_save_snapshot(SfSnapshot *snapshot, GPtrArray *disks, const char *directory, GError **error)
{
    g_autofree char *folder = g_build_filename(directory, SNAPSHOT_FOLDER, NULL);
    g_autofree char *path = g_build_filename(folder, DISKS_FILE, NULL);
    g_autoptr(JsonObject) object = json_object_new();
    JsonArray *array = json_array_new();

    for (guint i = 0; i < disks->len; i++) {
        json_array_add_object_element(array, sf_disk_chain_to_json(g_ptr_array_index(disks, i)));
    }
    json_object_set_array_member(object, "disks", array);
    return sf_snapshot_save(snapshot, folder, error) && sf_state_write(path, object, error);
}

SfSnapshot *sf_fork_record_restore_snapshot(const char *directory, SfRamBase *base, const pid_t *pids, guint n_pids,
                                            const int *fds, guint n_fds, GPtrArray **disks, GError **error)
{
    g_autofree char *folder = g_build_filename(directory, SNAPSHOT_FOLDER, NULL);
    g_autofree char *path = g_build_filename(folder, DISKS_FILE, NULL);
    g_autoptr(JsonObject) object = sf_state_read(path, error);
    g_autoptr(GPtrArray) chains = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);
    SfSnapshot *snapshot;
    JsonArray *array;

    if (!object) {
        return NULL;
    }
    array = json_object_has_member(object, "disks") ? json_object_get_array_member(object, "disks") : NULL;
    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        SfDiskChain *chain = sf_disk_chain_from_json(json_array_get_object_element(array, i), error);
        if (!chain) {
            return NULL;
        }
        g_ptr_array_add(chains, chain);
    }
    snapshot = sf_snapshot_restore_from(folder, base, pids, n_pids, fds, n_fds, error);
    if (snapshot) {
        *disks = g_steal_pointer(&chains);
    }
    return snapshot;
}

void sf_fork_record_drop_snapshot(const char *directory)
{
    g_autofree char *folder = g_build_filename(directory, SNAPSHOT_FOLDER, NULL);

    sf_state_remove_folder(folder);
}
