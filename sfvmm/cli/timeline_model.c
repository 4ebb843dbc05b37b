/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From the daemon's objects to the model of a timeline. Nothing in them is believed further than it is drawn. */
#include <stdlib.h>
#include <string.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/timeline.h"
#include "sfvmm/cli/units.h"

#define US          G_GINT64_CONSTANT(1000)
#define MS          G_GINT64_CONSTANT(1000000)
#define S           G_GINT64_CONSTANT(1000000000)
#define MIN_        (60 * S)
#define SPAN_MAX    (G_GINT64_CONSTANT(366) * 24 * 3600 * S)     /* a year: times beyond it are not drawn */

const char *const sf_timeline_part_names[SF_TIMELINE_PARTS] = {"stop", "devices", "RAM", "disks", "start"};

static const char *const part_members[SF_TIMELINE_PARTS] = {"stop_ns", "device_ns", "ram_ns", "disk_ns", "start_ns"};

static void clone_free(SfTimelineClone *clone)
{
    g_free(clone->vm);
    g_free(clone->state);
    g_free(clone->reason);
    g_free(clone);
}

void sf_timeline_free(SfTimeline *timeline)
{
    if (timeline) {
        g_ptr_array_unref(timeline->clones);
        g_free(timeline->ticket);
        g_free(timeline->vm);
        g_free(timeline->state);
        g_free(timeline->reason);
        g_free(timeline);
    }
}

static char *copy_text(JsonObject *object, const char *member)
{
    const char *text = sf_ctl_string(object, member);
    return sf_text_harmless(text ? text : "");
}

/* A duration or a distance in time: never negative, never beyond SPAN_MAX. */
static gint64 bounded(gint64 ns)
{
    return CLAMP(ns, 0, SPAN_MAX);
}

static gint64 since(JsonObject *clone, const char *member, gint64 origin)
{
    gint64 at = sf_ctl_int(clone, member);
    return at > 0 ? bounded(at - origin) : SF_TIMELINE_NEVER;
}

static gboolean works(const SfTimelineClone *clone)
{
    return strcmp(clone->state, "starting") == 0 || strcmp(clone->state, "running") == 0;
}

gboolean sf_timeline_failed(const SfTimelineClone *clone)
{
    return !works(clone) && (strcmp(clone->state, "exited") != 0 || clone->status != 0);
}

/* How a clone ended, or what it does: "exit 0", "killed", "running". */
static char *outcome(const SfTimelineClone *clone)
{
    return strcmp(clone->state, "exited") == 0 ? g_strdup_printf("exit %" G_GINT64_FORMAT, clone->status)
                                               : g_strdup(clone->state);
}

char *sf_timeline_fork_note(const SfTimelineClone *clone)
{
    gint64 never = SF_TIMELINE_NEVER;
    g_autofree char *ran = clone->running != never ? sf_units_format_ns((guint64)clone->running) : NULL;
    g_autofree char *answered = clone->answered != never ? sf_units_format_ns((guint64)clone->answered) : NULL;

    if (!ran) {
        return g_strdup(sf_timeline_failed(clone) ? clone->state : "starts");
    }
    return g_strconcat("ran ", ran, answered ? ", answered " : NULL, answered, NULL);
}

char *sf_timeline_work_note(const SfTimelineClone *clone)
{
    g_autofree char *how = outcome(clone);
    g_autofree char *when = clone->exited != SF_TIMELINE_NEVER ? sf_units_format_ns((guint64)clone->exited) : NULL;
    g_autofree char *own = clone->private_bytes ? sf_units_format_size(clone->private_bytes) : NULL;

    return g_strconcat(how, when ? " at " : "", when ? when : "", own ? ", own " : "", own ? own : "", NULL);
}

static SfTimelineClone *make_clone(JsonObject *object, gint64 origin)
{
    SfTimelineClone *clone = g_new0(SfTimelineClone, 1);

    clone->id = sf_ctl_int(object, "id");
    clone->vm = copy_text(object, "vm");
    clone->state = copy_text(object, "state");
    clone->reason = copy_text(object, "reason");
    clone->status = sf_ctl_int(object, "status");
    clone->loaded = since(object, "loaded", origin);
    clone->running = since(object, "running", origin);
    clone->answered = since(object, "answered", origin);
    clone->synced = since(object, "synced", origin);
    clone->exited = since(object, "exited", origin);
    return clone;
}

static int compare_clones(gconstpointer a, gconstpointer b)
{
    gint64 x = (*(const SfTimelineClone *const *)a)->id, y = (*(const SfTimelineClone *const *)b)->id;
    return (x > y) - (x < y);
}

static int compare_sizes(gconstpointer a, gconstpointer b)
{
    guint64 x = *(const guint64 *)a, y = *(const guint64 *)b;
    return (x > y) - (x < y);
}

static void add_memory(SfTimeline *timeline, JsonObject *usage)
{
    JsonArray *vms = usage ? sf_ctl_array(usage, "vms") : NULL;
    g_autoptr(GHashTable) by_name = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GArray) sizes = g_array_new(FALSE, FALSE, sizeof(guint64));

    for (guint i = 0; i < timeline->clones->len; i++) {
        SfTimelineClone *clone = g_ptr_array_index(timeline->clones, i);
        g_hash_table_insert(by_name, clone->vm, clone);
    }
    for (guint i = 0; vms && i < json_array_get_length(vms); i++) {
        JsonObject *vm = json_array_get_object_element(vms, i);
        const char *name = sf_ctl_string(vm, "name");
        SfTimelineClone *clone = name ? g_hash_table_lookup(by_name, name) : NULL;
        if (clone && sf_ctl_int(vm, "private") > 0) {
            clone->private_bytes = (guint64)sf_ctl_int(vm, "private");
            clone->shared_bytes = (guint64)MAX(sf_ctl_int(vm, "shared"), 0);
            timeline->private_total += clone->private_bytes;
            timeline->shared_once = MAX(timeline->shared_once, clone->shared_bytes);
            g_array_append_val(sizes, clone->private_bytes);
        }
    }
    if (sizes->len > 0) {
        g_array_sort(sizes, compare_sizes);
        timeline->private_median = g_array_index(sizes, guint64, sizes->len / 2);
    }
}

static SfTimelineMark make_mark(const SfTimeline *timeline, gsize offset)
{
    SfTimelineMark mark = {0, SF_TIMELINE_NEVER};

    for (guint i = 0; i < timeline->clones->len; i++) {
        gint64 at = *(const gint64 *)((const char *)g_ptr_array_index(timeline->clones, i) + offset);
        mark.count += at != SF_TIMELINE_NEVER;
        mark.last = MAX(mark.last, at);
    }
    return mark;
}

/* A clone that works but is not up yet: without first instruction, or without answer when its siblings have one. */
static gboolean comes_up(const SfTimeline *timeline, const SfTimelineClone *clone)
{
    return works(clone) && (clone->running == SF_TIMELINE_NEVER ||
                            (clone->answered == SF_TIMELINE_NEVER && timeline->answered.count > 0));
}

static void find_ends(SfTimeline *timeline, gint64 origin, gint64 now)
{
    gint64 up = timeline->pause_at + timeline->pause;
    gboolean coming = FALSE;

    timeline->end = up;
    timeline->finished = timeline->clones->len > 0;
    for (guint i = 0; i < timeline->clones->len; i++) {
        const SfTimelineClone *clone = g_ptr_array_index(timeline->clones, i);
        gint64 first = clone->answered != SF_TIMELINE_NEVER  ? clone->answered
                       : clone->running != SF_TIMELINE_NEVER ? clone->running
                                                             : clone->loaded;
        up = MAX(up, first);
        timeline->end = MAX(timeline->end, MAX(first, MAX(clone->synced, clone->exited)));
        timeline->finished = timeline->finished && !works(clone);
        coming = coming || comes_up(timeline, clone);
    }
    if (!timeline->finished && now > 0) {
        timeline->end = MAX(timeline->end, bounded(now - origin));
        up = coming ? timeline->end : up;
    }
    timeline->fork_end = MAX(up, 1);
    timeline->end = MAX(timeline->end, timeline->fork_end);
}

SfTimeline *sf_timeline_new(JsonObject *ticket, JsonObject *usage, gint64 now, GError **error)
{
    JsonObject *fork = sf_ctl_object(ticket, "fork");
    JsonArray *clones = sf_ctl_array(ticket, "clones");
    gint64 at = sf_ctl_int(fork, "at"), stop = bounded(sf_ctl_int(fork, "stop_ns"));
    gint64 called = sf_ctl_int(fork, "called");

    if (!fork || at <= 0) {
        const char *id = sf_ctl_string(ticket, "ticket"), *reason = sf_ctl_string(ticket, "reason");
        g_set_error(error, G_OPTION_ERROR, G_OPTION_ERROR_FAILED, "ticket \"%s\": nothing was forked with it%s%s",
                    id ? id : "?", reason && *reason ? ": " : " yet", reason ? reason : "");
        return NULL;
    }
    gint64 pause_began = at - MIN(stop, at);
    gint64 origin = called > 0 ? MIN(called, pause_began) : pause_began;
    SfTimeline *timeline = g_new0(SfTimeline, 1);
    timeline->ticket = copy_text(ticket, "ticket");
    timeline->vm = copy_text(ticket, "vm");
    timeline->state = copy_text(ticket, "state");
    timeline->reason = copy_text(ticket, "reason");
    timeline->granted = sf_ctl_int(ticket, "granted");
    timeline->pause_at = bounded(pause_began - origin);
    timeline->pause = bounded(sf_ctl_int(fork, "pause_ns"));
    for (guint i = 0; i < SF_TIMELINE_PARTS; i++) {
        timeline->parts[i] = bounded(sf_ctl_int(fork, part_members[i]));
    }
    timeline->clones = g_ptr_array_new_with_free_func((GDestroyNotify)clone_free);
    for (guint i = 0; clones && i < json_array_get_length(clones); i++) {
        g_ptr_array_add(timeline->clones, make_clone(json_array_get_object_element(clones, i), origin));
    }
    g_ptr_array_sort(timeline->clones, compare_clones);
    timeline->ran = make_mark(timeline, G_STRUCT_OFFSET(SfTimelineClone, running));
    timeline->answered = make_mark(timeline, G_STRUCT_OFFSET(SfTimelineClone, answered));
    timeline->ended = make_mark(timeline, G_STRUCT_OFFSET(SfTimelineClone, exited));
    find_ends(timeline, origin, now);
    add_memory(timeline, usage);
    return timeline;
}

gint64 sf_timeline_tick(gint64 span, guint most)
{
    static const gint64 digits[] = { 1, 2, 5 };
    static const gint64 seconds[] = { 1,   2,   5,    10,   20,   30,    60,    120,   300,    600,
                                      1200, 1800, 3600, 7200, 21600, 43200, 86400, 604800, 2592000, 8640000 };

    for (gint64 unit = 1; unit < S; unit *= 10) {
        for (guint i = 0; i < G_N_ELEMENTS(digits); i++) {
            if (span / (unit * digits[i]) <= MAX(most, 1)) {
                return unit * digits[i];
            }
        }
    }
    for (guint i = 0; i < G_N_ELEMENTS(seconds); i++) {
        if (span / (seconds[i] * S) <= MAX(most, 1)) {
            return seconds[i] * S;
        }
    }
    return SPAN_MAX;
}

char *sf_timeline_tick_label(gint64 at, gint64 tick)
{
    if (at == 0) {
        return g_strdup("0");
    }
    if (tick < MS) {
        return at % MS == 0 ? g_strdup_printf("%" G_GINT64_FORMAT " ms", at / MS)
                            : g_strdup_printf("%.*f ms", tick < 10 * US ? 3 : tick < 100 * US ? 2 : 1, (double)at / MS);
    }
    if (tick < 100 * MS && at < S) {
        return g_strdup_printf("%" G_GINT64_FORMAT " ms", at / MS);
    }
    if (tick < S) {
        if (at < S && tick < 500 * MS) {
            return g_strdup_printf("%" G_GINT64_FORMAT " ms", at / MS);
        }
        return g_strdup_printf("%.*f s", tick < 10 * MS ? 3 : tick < 100 * MS ? 2 : 1, (double)at / S);
    }
    if (tick < MIN_) {
        return at < MIN_ ? g_strdup_printf("%" G_GINT64_FORMAT " s", at / S)
                         : g_strdup_printf("%" G_GINT64_FORMAT ":%02" G_GINT64_FORMAT, at / MIN_, at % MIN_ / S);
    }
    return at < 60 * MIN_ ? g_strdup_printf("%" G_GINT64_FORMAT " min", at / MIN_)
                          : g_strdup_printf("%" G_GINT64_FORMAT ":%02" G_GINT64_FORMAT " h", at / (60 * MIN_),
                                            at % (60 * MIN_) / MIN_);
}
