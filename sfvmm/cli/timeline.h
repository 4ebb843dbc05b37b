/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The timeline of one fork: a model made of a TICKET object (and vm.usage, for memory), and two ways to draw it.
 * All times are ns since the fork was called; SF_TIMELINE_NEVER: it has not happened.
 */
#ifndef SF_CTL_TIMELINE_H
#define SF_CTL_TIMELINE_H

#include <glib.h>
#include <json-glib/json-glib.h>

#define SF_TIMELINE_NEVER     G_MININT64
#define SF_TIMELINE_PARTS     5u

typedef struct {
    gint64 id;
    char *vm;
    char *state;              /* "running", "exited", ... */
    char *reason;             /* "" when there is none */
    gint64 status;
    gint64 loaded, running, answered, synced, exited;
    guint64 private_bytes, shared_bytes;    /* 0: not known */
} SfTimelineClone;

/* How many clones have got somewhere, and when the last of them did. */
typedef struct {
    guint count;
    gint64 last;
} SfTimelineMark;

typedef struct {
    char *ticket, *vm, *state, *reason;
    gint64 granted;
    gint64 pause_at, pause;                 /* of the parent */
    gint64 parts[SF_TIMELINE_PARTS];        /* of the pause: see sf_timeline_part_names */
    GPtrArray *clones;                      /* of SfTimelineClone, by id */
    gint64 fork_end;                        /* all are up: the last answer, or the last first instruction */
    gint64 end;                             /* the last event, or now when clones still work */
    gboolean finished;                      /* no clone works any more */
    SfTimelineMark ran, answered, ended;
    guint64 parent_memory;                  /* bytes of the VM's memory; 0: not known */
    guint64 private_total, private_median;  /* over the clones; 0: not known */
    guint64 shared_once;                    /* the largest that one clone shares */
} SfTimeline;

extern const char *const sf_timeline_part_names[SF_TIMELINE_PARTS];

/*
 * ticket: a TICKET with fork and clones. usage: a result of vm.usage, or NULL. now: CLOCK_MONOTONIC ns up to which
 * clones that still work are drawn, 0: up to the last event. NULL + error: there is no fork in it.
 */
SfTimeline *sf_timeline_new(JsonObject *ticket, JsonObject *usage, gint64 now, GError **error);
void sf_timeline_free(SfTimeline *timeline);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfTimeline, sf_timeline_free)

/* What is written beside a clone's bar, of the fork and of its work: "ran 31.0 ms, answered 280 ms",
 * "exit 0 at 12.1 s, own 31.2 MiB". Caller frees. */
char *sf_timeline_fork_note(const SfTimelineClone *clone);
char *sf_timeline_work_note(const SfTimelineClone *clone);
gboolean sf_timeline_failed(const SfTimelineClone *clone);

typedef struct {
    guint width;              /* columns; 0: 100 */
    guint rows;               /* clones at most in a panel; 0: no limit */
    gboolean color, unicode;
    gboolean one_panel;       /* of two, only that of the whole */
} SfTimelineStyle;

char *sf_timeline_to_text(const SfTimeline *timeline, const SfTimelineStyle *style);

/* A whole SVG document; needs no fonts or scripts of its own. */
char *sf_timeline_to_svg(const SfTimeline *timeline);

/* A step of 1, 2 or 5 times a power of ten that cuts `span` into at most `most` pieces; the axes of both drawings. */
gint64 sf_timeline_tick(gint64 span, guint most);

/* "0", "250 ms", "1.5 s": a mark on an axis whose step is `tick`. Caller frees. */
char *sf_timeline_tick_label(gint64 at, gint64 tick);

#endif
