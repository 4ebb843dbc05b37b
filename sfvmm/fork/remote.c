/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/fork/remote.h"

#include <string.h>

#include "sfvmm/fork/fork_private.h"
#include "sfvmm/fork/fork_record.h"
#include "sfvmm/process/clock.h"

#define REASON_MAX   4096u             /* bytes */
#define TIME_MAX     (G_MAXINT64 >> 2) /* ns; two of them can be added */
#define ENDED(state) ((state) != SF_GP_STATE_STARTING && (state) != SF_GP_STATE_RUNNING)

/* ---- the host of the clone ---- */

static gint64 since(gint64 start, gint64 time)
{
    return time ? MAX(time - start, 1) : 0;
}

JsonObject *sf_clone_report(const SfClone *clone)
{
    JsonObject *object = json_object_new();
    gint64 start = sf_fork_called(clone->fork);

    json_object_set_int_member(object, "id", clone->id);
    json_object_set_string_member(object, "state", sf_clone_state_name(clone->state));
    json_object_set_int_member(object, "status", clone->status);
    json_object_set_string_member(object, "reason", clone->reason ? clone->reason : "");
    json_object_set_int_member(object, "result_length", (gint64)clone->result_length);
    json_object_set_int_member(object, "loaded", since(start, clone->loaded));
    json_object_set_int_member(object, "running", since(start, clone->running));
    json_object_set_int_member(object, "answered", since(start, clone->answered));
    json_object_set_int_member(object, "synced", since(start, clone->synced));
    json_object_set_int_member(object, "exited", since(start, clone->exited));
    return object;
}

/* ---- the origin ---- */

static gboolean take_integer(JsonObject *object, const char *member, gint64 min, gint64 max, gint64 *value,
                             GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (!node || json_node_get_value_type(node) != G_TYPE_INT64 || json_node_get_int(node) < min ||
        json_node_get_int(node) > max) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "report of a clone: \"%s\" must be an integer from %" G_GINT64_FORMAT " to %" G_GINT64_FORMAT,
                    member, min, max);
        return FALSE;
    }
    *value = json_node_get_int(node);
    return TRUE;
}

static gboolean take_text(JsonObject *object, const char *member, gsize max, const char **value, GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    *value = node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : NULL;
    if (!*value || strlen(*value) > max) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "report of a clone: \"%s\" must be a text", member);
        return FALSE;
    }
    for (const char *p = *value; *p; p++) {
        if (g_ascii_iscntrl(*p)) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "report of a clone: control character in \"%s\"",
                        member);
            return FALSE;
        }
    }
    return TRUE;
}

gboolean sf_clone_report_parse(JsonObject *object, SfCloneReport *report, GError **error)
{
    gint64 id, status, length;
    const char *state, *reason;
    int number;

    *report = (SfCloneReport){ 0 };
    if (!take_integer(object, "id", 1, SF_GP_MAX_CLONES, &id, error) ||
        !take_text(object, "state", REASON_MAX, &state, error) ||
        !take_integer(object, "status", G_MININT32, G_MAXINT32, &status, error) ||
        !take_text(object, "reason", REASON_MAX, &reason, error) ||
        !take_integer(object, "result_length", 0, SF_GP_MAX_RESULT, &length, error) ||
        !take_integer(object, "loaded", 0, TIME_MAX, &report->loaded, error) ||
        !take_integer(object, "running", 0, TIME_MAX, &report->running, error) ||
        !take_integer(object, "answered", 0, TIME_MAX, &report->answered, error) ||
        !take_integer(object, "synced", 0, TIME_MAX, &report->synced, error) ||
        !take_integer(object, "exited", 0, TIME_MAX, &report->exited, error)) {
        return FALSE;
    }
    number = sf_clone_state_from_name(state);
    if (number < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "report of a clone: unknown state");
        return FALSE;
    }
    report->id = (guint)id;
    report->state = (guint32)number;
    report->status = (gint32)status;
    report->reason = *reason ? reason : NULL;
    report->result_length = (guint64)length;
    return TRUE;
}

static void take_time(gint64 *time, gint64 start, gint64 reported)
{
    if (reported) {
        *time = start + reported;
    }
}

void sf_clone_apply_report(SfClone *clone, const SfCloneReport *report)
{
    SfFork *fork = clone->fork;
    g_autoptr(SfFork) keep = g_object_ref(fork);

    if (!clone->host || !sf_clone_is_alive(clone)) {
        return;
    }
    take_time(&clone->loaded, clone->placed, report->loaded);
    take_time(&clone->running, clone->placed, report->running);
    take_time(&clone->answered, clone->placed, report->answered);
    if (ENDED(report->state)) {
        g_autofree char *reason = report->reason ? g_strdup_printf("host %s: %s", clone->host, report->reason) : NULL;
        clone->status = report->status;
        sf_clone_end(clone, report->state, reason);
        return;
    }
    if (report->loaded) {
        clone->state = report->state;
    }
    sf_fork_changed(fork, clone);
    sf_fork_review(fork);
}

void sf_clone_ordered(SfClone *clone)
{
    clone->placed = sf_clock_ns();
}

void sf_clone_move(SfClone *clone, const char *host)
{
    if (!sf_clone_is_being_placed(clone)) {
        return;
    }
    g_free(clone->host);
    clone->host = g_strdup(host);
    clone->placed = 0;
    sf_fork_changed(clone->fork, clone);
    if (!host && sf_fork_snapshot(clone->fork)) {
        sf_clone_place_here(clone);
    }
}

void sf_clone_give_up(SfClone *clone, guint32 state, const char *reason)
{
    sf_clone_end(clone, state, reason);
}
