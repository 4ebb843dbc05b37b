/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The timeline as text: one or two panels with a row for the parent and for each clone.
 *
 *      THE FORK       0         100 ms     200 ms     300 ms
 *      web            ━█━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━     paused 3.61 ms
 *      clone 1        ··░░▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒████████     ran 31.0 ms, answered 280 ms
 *
 * The first panel ends when all clones are up; the second, drawn only when the clones work longer than that, shows the
 * whole. A cell shows the phase that holds at its middle; a pause shorter than a cell still gets one.
 */
#include <stdio.h>
#include <string.h>

#include "sfvmm/cli/table.h"
#include "sfvmm/cli/timeline.h"
#include "sfvmm/cli/units.h"

#define WIDTH_DEFAULT    100u
#define WIDTH_MIN        60u
#define LABEL_MIN        9u
#define LABEL_MAX        16u
#define BAR_MIN          16u
#define TICK_CELLS       13u       /* at least, between two marks of the axis */
#define TWO_PANELS       1.3       /* the second panel is worth it when all lasts so many times longer than the fork */

typedef enum { PARENT, PAUSED, WAITING, LOADING, WAKING, WORKING, SYNCED, ENDED, FAILED, NOTHING, PHASES } Phase;

static const struct {
    const char *unicode, *ascii;
    SfStyle style;
    const char *legend;
} phases[PHASES] = {
    [PARENT] = {"━", "-", SF_STYLE_PLAIN, "parent runs"},
    [PAUSED] = {"█", "X", SF_STYLE_RED, "parent paused"},
    [WAITING] = {"·", ".", SF_STYLE_DIM, "waits for its turn"},
    [LOADING] = {"░", ":", SF_STYLE_YELLOW, "loaded, waits for a CPU"},
    [WAKING] = {"▒", "=", SF_STYLE_CYAN, "runs, gets its identity"},
    [WORKING] = {"█", "#", SF_STYLE_GREEN, "works"},
    [SYNCED] = {"◆", "S", SF_STYLE_MAGENTA, "synced"},
    [ENDED] = {"●", "o", SF_STYLE_BLUE, "ended"},
    [FAILED] = {"✗", "!", SF_STYLE_RED, "failed or killed"},
    [NOTHING] = {" ", " ", SF_STYLE_PLAIN, NULL},
};

typedef struct {
    const SfTimeline *timeline;
    const SfTimelineStyle *style;
    GString *out;
    guint label, bar, notes;      /* columns of each row's three parts */
    gint64 span;                  /* of the panel: ns from the first cell to the last */
    gboolean seen[PHASES];        /* in any panel so far: the legend explains these */
} Panel;

static const char *glyph(const Panel *panel, Phase phase)
{
    return panel->style->unicode ? phases[phase].unicode : phases[phase].ascii;
}

/* The time at the middle of a cell. */
static gint64 cell_time(const Panel *panel, guint cell)
{
    return (gint64)(((double)cell + 0.5) / panel->bar * (double)panel->span);
}

static guint time_cell(const Panel *panel, gint64 at)
{
    double cell = (double)at / (double)panel->span * panel->bar;
    return (guint)CLAMP(cell, 0, panel->bar - 1);
}

/* Runs of equal phases as one coloured piece each. */
static void append_cells(Panel *panel, const Phase *cells)
{
    g_autoptr(GString) run = g_string_new(NULL);

    for (guint i = 0; i < panel->bar; i++) {
        g_string_append(run, glyph(panel, cells[i]));
        panel->seen[cells[i]] = TRUE;
        if (i + 1 == panel->bar || cells[i + 1] != cells[i]) {
            sf_text_append_styled(panel->out, run->str, phases[cells[i]].style, panel->style->color);
            g_string_truncate(run, 0);
        }
    }
}

static void append_row(Panel *panel, const char *label, const Phase *cells, const char *notes)
{
    g_autofree char *cut = sf_text_cut(label, panel->label);
    g_autofree char *cut_notes = sf_text_cut(notes, panel->notes);

    g_string_append_printf(panel->out, "  %s%*s  ", cut, (int)(panel->label - sf_text_width(cut)), "");
    append_cells(panel, cells);
    g_string_append_printf(panel->out, "%s%s\n", *cut_notes ? "  " : "", cut_notes);
}

static void append_axis(const Panel *panel, const char *title)
{
    gint64 tick = sf_timeline_tick(panel->span, panel->bar / TICK_CELLS);
    g_autoptr(GString) axis = g_string_new(NULL);
    guint used = 0;

    for (gint64 at = 0; at <= panel->span; at += tick) {
        g_autofree char *label = sf_timeline_tick_label(at, tick);
        guint cell = time_cell(panel, at), length = (guint)strlen(label);
        if (cell >= used && cell + length <= panel->bar + panel->notes) {
            g_string_append_printf(axis, "%*s%s", (int)(cell - used), "", label);
            used = cell + length + 1;
            g_string_append_c(axis, ' ');
        }
    }
    g_string_append_c(panel->out, '\n');
    g_autofree char *padded = g_strdup_printf("  %-*s  ", (int)panel->label, title);
    sf_text_append_styled(panel->out, padded, SF_STYLE_BOLD, panel->style->color);
    sf_text_append_styled(panel->out, g_strchomp(axis->str), SF_STYLE_DIM, panel->style->color);
    g_string_append_c(panel->out, '\n');
}

static void append_parent(Panel *panel)
{
    const SfTimeline *timeline = panel->timeline;
    g_autofree Phase *cells = g_new(Phase, panel->bar);
    gint64 pause_end = timeline->pause_at + timeline->pause;
    g_autofree char *pause = sf_units_format_ns((guint64)timeline->pause);
    g_autofree char *notes = g_strdup_printf("paused %s", pause);

    for (guint i = 0; i < panel->bar; i++) {
        gint64 at = cell_time(panel, i);
        cells[i] = at >= timeline->pause_at && at < pause_end ? PAUSED : PARENT;
    }
    cells[time_cell(panel, timeline->pause_at)] = PAUSED;
    append_row(panel, timeline->vm, cells, notes);
}

static gboolean reached(gint64 event, gint64 at)
{
    return event != SF_TIMELINE_NEVER && event <= at;
}

static Phase phase_at(const SfTimelineClone *clone, const SfTimeline *timeline, gint64 at)
{
    gboolean agent = timeline->answered.count > 0;      /* without one, who runs works */

    if (at < timeline->pause_at || at > timeline->end || reached(clone->exited, at)) {
        return NOTHING;      /* not born yet, or gone */
    }
    if (reached(clone->answered, at) || (!agent && reached(clone->running, at))) {
        return WORKING;
    }
    if (reached(clone->running, at)) {
        return WAKING;
    }
    return reached(clone->loaded, at) ? LOADING : WAITING;
}

static void fill_clone(const Panel *panel, const SfTimelineClone *clone, Phase *cells)
{
    for (guint i = 0; i < panel->bar; i++) {
        cells[i] = phase_at(clone, panel->timeline, cell_time(panel, i));
    }
    if (clone->synced != SF_TIMELINE_NEVER && clone->synced <= panel->span) {
        cells[time_cell(panel, clone->synced)] = SYNCED;
    }
    if (clone->exited != SF_TIMELINE_NEVER && clone->exited <= panel->span) {
        cells[time_cell(panel, clone->exited)] = sf_timeline_failed(clone) ? FAILED : ENDED;
    }
}

static void append_panel(Panel *panel, const char *title, gint64 span, char *(*notes_of)(const SfTimelineClone *clone))
{
    const GPtrArray *clones = panel->timeline->clones;
    g_autofree Phase *cells = g_new(Phase, panel->bar);
    guint shown = panel->style->rows ? MIN(panel->style->rows, clones->len) : clones->len;

    panel->span = MAX(span, 1);
    append_axis(panel, title);
    append_parent(panel);
    for (guint i = 0; i < shown; i++) {
        const SfTimelineClone *clone = g_ptr_array_index(clones, i);
        g_autofree char *label = g_strdup_printf("clone %" G_GINT64_FORMAT, clone->id);
        g_autofree char *notes = notes_of(clone);
        fill_clone(panel, clone, cells);
        append_row(panel, label, cells, notes);
    }
    if (shown < clones->len) {
        g_string_append_printf(panel->out, "  and %u more clones\n", clones->len - shown);
    }
}

static void append_title(const Panel *panel)
{
    const SfTimeline *timeline = panel->timeline;
    g_autofree char *title = g_strdup_printf("%s forked into %u", timeline->vm, timeline->clones->len);

    g_string_append(panel->out, "  ");
    sf_text_append_styled(panel->out, title, SF_STYLE_BOLD, panel->style->color);
    sf_text_append_styled(panel->out, "  ticket ", SF_STYLE_DIM, panel->style->color);
    sf_text_append_styled(panel->out, timeline->ticket, SF_STYLE_DIM, panel->style->color);
    g_string_append_c(panel->out, '\n');
    if (*timeline->reason) {
        g_string_append(panel->out, "  ");
        sf_text_append_styled(panel->out, timeline->reason, SF_STYLE_RED, panel->style->color);
        g_string_append_c(panel->out, '\n');
    }
}

/* "all ran after 31.0 ms", "7 of 8 ran after 31.0 ms" */
static void append_mark(const Panel *panel, GString *line, const SfTimelineMark *mark, const char *what)
{
    guint n = panel->timeline->clones->len;

    if (mark->count > 0) {
        g_autofree char *time = sf_units_format_ns((guint64)mark->last);
        g_autofree char *who = mark->count == n ? g_strdup("all") : g_strdup_printf("%u of %u", mark->count, n);
        g_string_append_printf(line, "%s%s %s after %s", line->len ? ", " : "", who, what, time);
    }
}

/* A sentence, broken between words where the width ends; further lines are indented. */
static void append_sentence(const Panel *panel, const char *sentence)
{
    g_auto(GStrv) words = g_strsplit(sentence, " ", -1);
    guint used = 0;

    for (guint i = 0; words[i]; i++) {
        guint length = sf_text_width(words[i]);
        if (i > 0 && used + 1 + length <= panel->style->width) {
            g_string_append_printf(panel->out, " %s", words[i]);
            used += 1 + length;
        } else {
            g_string_append_printf(panel->out, "%s%s", i == 0 ? "  " : "\n    ", words[i]);
            used = (i == 0 ? 2 : 4) + length;
        }
    }
    g_string_append_c(panel->out, '\n');
}

static void append_pause(const Panel *panel)
{
    const SfTimeline *timeline = panel->timeline;
    g_autofree char *pause = sf_units_format_ns((guint64)timeline->pause);
    g_autoptr(GString) sentence = g_string_new(NULL);

    g_string_append_printf(sentence, "parent paused %s:", pause);
    for (guint i = 0; i < SF_TIMELINE_PARTS; i++) {
        g_autofree char *part = sf_units_format_ns((guint64)timeline->parts[i]);
        g_string_append_printf(sentence, "%s %s %s", i ? "," : "", sf_timeline_part_names[i], part);
    }
    append_sentence(panel, sentence->str);
}

static void append_memory(const Panel *panel)
{
    const SfTimeline *timeline = panel->timeline;
    g_autofree char *median = sf_units_format_size(timeline->private_median);
    g_autofree char *total = sf_units_format_size(timeline->private_total);
    g_autofree char *shared = sf_units_format_size(timeline->shared_once);
    g_autofree char *sentence = g_strdup_printf(
        "memory: %s of its own per clone (median), %s together; up to %s shared by all", median, total, shared);
    append_sentence(panel, sentence);
}

static void append_summary(const Panel *panel)
{
    const SfTimeline *timeline = panel->timeline;
    g_autoptr(GString) facts = g_string_new(NULL);

    g_string_append_c(panel->out, '\n');
    append_pause(panel);
    append_mark(panel, facts, &timeline->ran, "ran");
    append_mark(panel, facts, &timeline->answered, "answered");
    append_mark(panel, facts, &timeline->ended, "ended");
    if (facts->len > 0) {
        append_sentence(panel, facts->str);
    }
    if (timeline->private_median > 0) {
        append_memory(panel);
    }
}

/* Only what the panels show. */
static void append_legend(const Panel *panel)
{
    guint used = 2;

    g_string_append(panel->out, "\n  ");
    for (Phase i = PAUSED; i < NOTHING; i++) {
        if (!panel->seen[i]) {
            continue;
        }
        guint length = sf_text_width(phases[i].legend) + 2;
        if (used + length + 3 > panel->style->width && used > 2) {
            g_string_append(panel->out, "\n  ");
            used = 2;
        }
        g_string_append(panel->out, used > 2 ? "   " : "");
        used += length + (used > 2 ? 3 : 0);
        sf_text_append_styled(panel->out, glyph(panel, i), phases[i].style, panel->style->color);
        g_string_append_printf(panel->out, " %s", phases[i].legend);
    }
    g_string_append_c(panel->out, '\n');
}

/* Columns: as many for the notes as they need, the rest is the bar's. */
static void lay_out(Panel *panel, guint width)
{
    const SfTimeline *timeline = panel->timeline;

    panel->label = CLAMP(sf_text_width(timeline->vm), LABEL_MIN, LABEL_MAX);
    panel->notes = 0;
    for (guint i = 0; i < timeline->clones->len; i++) {
        g_autofree char *fork = sf_timeline_fork_note(g_ptr_array_index(timeline->clones, i));
        g_autofree char *work = sf_timeline_work_note(g_ptr_array_index(timeline->clones, i));
        panel->notes = MAX(panel->notes, MAX(sf_text_width(fork), sf_text_width(work)));
    }
    guint fixed = 2 + panel->label + 2 + 2;
    panel->notes = MIN(panel->notes, width - fixed - BAR_MIN);
    panel->bar = width - fixed - panel->notes;
}

char *sf_timeline_to_text(const SfTimeline *timeline, const SfTimelineStyle *style)
{
    SfTimelineStyle own = *style;
    Panel panel = {.timeline = timeline, .style = &own, .out = g_string_new(NULL)};

    own.width = style->width ? MAX(style->width, WIDTH_MIN) : WIDTH_DEFAULT;
    lay_out(&panel, own.width);
    append_title(&panel);
    gboolean works = (double)timeline->end > TWO_PANELS * (double)timeline->fork_end;
    if (!works || !style->one_panel) {
        append_panel(&panel, "THE FORK", timeline->fork_end, sf_timeline_fork_note);
    }
    if (works) {
        append_panel(&panel, "THE WORK", timeline->end, sf_timeline_work_note);
    }
    append_legend(&panel);
    append_summary(&panel);
    return g_string_free(panel.out, FALSE);
}
