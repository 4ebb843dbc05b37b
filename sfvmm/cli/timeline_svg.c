/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The timeline as a picture: SVG, written directly.
 *
 *      title                                       figures: pause, ran, answered, ended, memory
 *      THE PAUSE   one bar, cut into its parts
 *      THE FORK    parent and clones up to the last answer; a dashed line where the fork took place
 *      THE WORK    the same up to the end, when that is much longer
 *      legend
 *
 * Coordinates are in px of a canvas CANVAS_WIDTH wide; its height follows from the number of rows. Rows of many clones
 * become thin and lose their texts. Nothing outside the document is needed to show it.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sfvmm/cli/timeline.h"
#include "sfvmm/cli/units.h"

#define CANVAS_WIDTH      1200.0
#define MARGIN            40.0
#define LABEL_WIDTH       120.0
#define NOTES_WIDTH       230.0
#define BAR_X             (MARGIN + LABEL_WIDTH)
#define BAR_WIDTH         (CANVAS_WIDTH - 2 * MARGIN - LABEL_WIDTH - NOTES_WIDTH)
#define NOTES_X           (BAR_X + BAR_WIDTH + 16)
#define ROW_HEIGHT        24.0      /* of a few clones */
#define ROW_HEIGHT_MIN    4.0
#define ROWS_HEIGHT       760.0     /* of all rows of a panel, before they become thinner */
#define TEXT_ROW_HEIGHT   14.0      /* rows lower than this have no texts */
#define TICKS_MOST        9u
#define TWO_PANELS        1.3       /* as in timeline_text.c */
#define TILE_GAP          16.0
#define TILE_HEIGHT       68.0
#define PART_TEXT_MIN     70.0      /* a part of the pause narrower than this has its name only in the line below */

#define INK          "#1c2430"
#define INK_SOFT     "#667085"
#define GRID         "#e4e7ec"
#define PAPER        "#ffffff"
#define TILE         "#f5f7fa"
#define PAUSED       "#d6455d"
#define PARENT       "#344054"
#define WAITING      "#d9dee6"
#define LOADING      "#f4b740"
#define WAKING       "#5aa9e6"
#define WORKING      "#3fa776"
#define SYNCED       "#8250c4"

static const char *const part_colors[SF_TIMELINE_PARTS] = {"#b83248", "#d6455d", "#e2707f", "#ec9aa4", "#f4c4ca"};

typedef struct {
    const SfTimeline *timeline;
    GString *out;
    double y;                 /* where the next part begins */
    double row;               /* height of a row */
} Svg;

static void text(Svg *svg, double x, double y, const char *classes, const char *anchor, const char *content)
{
    g_autofree char *safe = g_markup_escape_text(content, -1);
    g_string_append_printf(svg->out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\">%s</text>\n", x, y,
                           classes, anchor, safe);
}

static void rect(Svg *svg, double x, double y, double width, double height, double radius, const char *color)
{
    g_string_append_printf(svg->out,
                           "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" rx=\"%.1f\" fill=\"%s\"/>\n", x,
                           y, MAX(width, 0), height, radius, color);
}

static void line(Svg *svg, double x1, double y1, double x2, double y2, const char *classes)
{
    g_string_append_printf(svg->out, "<line x1=\"%.2f\" y1=\"%.2f\" x2=\"%.2f\" y2=\"%.2f\" class=\"%s\"/>\n", x1, y1,
                           x2, y2, classes);
}

static double x_of(gint64 at, gint64 span)
{
    return BAR_X + CLAMP((double)at / (double)span, 0, 1) * BAR_WIDTH;
}

/* ---- Head ---- */

static void tile(Svg *svg, double x, double width, const char *label, const char *value)
{
    rect(svg, x, svg->y, width, TILE_HEIGHT, 8, TILE);
    text(svg, x + 16, svg->y + 25, "label", "start", label);
    text(svg, x + 16, svg->y + 53, "figure", "start", value);
}

static void draw_head(Svg *svg)
{
    const SfTimeline *t = svg->timeline;
    g_autofree char *title = g_strdup_printf("%s forked into %u", t->vm, t->clones->len);
    g_autofree char *ticket = g_strdup_printf("ticket %s%s%s", t->ticket, *t->reason ? ": " : "", t->reason);
    const struct {
        const SfTimelineMark *mark;
        const char *what;
    } marks[] = {{&t->ran, "ran"}, {&t->answered, "answered"}, {&t->ended, "had ended"}};
    guint n = 1 + (t->private_median > 0);

    text(svg, MARGIN, 54, "title", "start", title);
    text(svg, MARGIN, 78, "label", "start", ticket);
    svg->y = 100;
    for (guint i = 0; i < G_N_ELEMENTS(marks); i++) {
        n += marks[i].mark->count > 0;
    }
    double width = (CANVAS_WIDTH - 2 * MARGIN - (n - 1) * TILE_GAP) / n, x = MARGIN;
    g_autofree char *pause = sf_units_format_ns((guint64)t->pause);
    tile(svg, x, width, "parent paused", pause);
    for (guint i = 0; i < G_N_ELEMENTS(marks); i++) {
        const SfTimelineMark *mark = marks[i].mark;
        if (mark->count > 0) {
            g_autofree char *value = sf_units_format_ns((guint64)mark->last);
            g_autofree char *label = mark->count == t->clones->len
                ? g_strdup_printf("every clone %s after", marks[i].what)
                : g_strdup_printf("%u of %u %s after", mark->count, t->clones->len, marks[i].what);
            x += width + TILE_GAP;
            tile(svg, x, width, label, value);
        }
    }
    if (t->private_median > 0) {
        g_autofree char *value = sf_units_format_size(t->private_median);
        tile(svg, x + width + TILE_GAP, width, "own memory of a clone", value);
    }
    svg->y += TILE_HEIGHT + 40;
}

/* ---- The pause ---- */

static void draw_pause(Svg *svg)
{
    const SfTimeline *t = svg->timeline;
    double x = BAR_X;
    gint64 sum = 0;

    for (guint i = 0; i < SF_TIMELINE_PARTS; i++) {
        sum += t->parts[i];
    }
    if (sum == 0) {
        return;
    }
    g_autofree char *pause = sf_units_format_ns((guint64)t->pause);
    text(svg, MARGIN, svg->y, "heading", "start", "The pause");
    svg->y += 14;
    text(svg, MARGIN, svg->y + 21, "row", "start", t->vm);
    for (guint i = 0; i < SF_TIMELINE_PARTS; i++) {
        double width = (double)t->parts[i] / (double)sum * BAR_WIDTH;
        g_autofree char *time = sf_units_format_ns((guint64)t->parts[i]);
        rect(svg, x, svg->y, MAX(width - 1, 0.5), 32, 3, part_colors[i]);
        if (width >= PART_TEXT_MIN) {
            const char *classes = i < 3 ? "part" : "part-dark";
            text(svg, x + 8, svg->y + 14, classes, "start", sf_timeline_part_names[i]);
            text(svg, x + 8, svg->y + 27, classes, "start", time);
        }
        x += width;
    }
    g_autofree char *notes = g_strdup_printf("paused %s", pause);
    text(svg, NOTES_X, svg->y + 21, "note", "start", notes);
    svg->y += 72;
}

/* ---- Panels ---- */

static void draw_axis(Svg *svg, gint64 span, double bottom)
{
    gint64 tick = sf_timeline_tick(span, TICKS_MOST);

    for (gint64 at = 0; at <= span; at += tick) {
        g_autofree char *label = sf_timeline_tick_label(at, tick);
        double x = x_of(at, span);
        line(svg, x, svg->y + 8, x, bottom, "grid");
        text(svg, x, svg->y, "tick", "middle", label);
    }
}

static void draw_parent(Svg *svg, gint64 span, double y)
{
    const SfTimeline *t = svg->timeline;
    double middle = y + svg->row / 2, x = x_of(t->pause_at, span);
    double height = MIN(svg->row, ROW_HEIGHT) * 0.66;

    rect(svg, BAR_X, middle - height / 6, BAR_WIDTH, height / 3, height / 6, PARENT);
    rect(svg, x, middle - height / 2, MAX(x_of(t->pause_at + t->pause, span) - x, 3), height, 1.5, PAUSED);
    text(svg, MARGIN, middle + 5, "row", "start", t->vm);
    g_autofree char *pause = sf_units_format_ns((guint64)t->pause);
    g_autofree char *notes = g_strdup_printf("paused %s", pause);
    text(svg, NOTES_X, middle + 5, "note", "start", notes);
}

/* From one time to the next; nothing when the second has not come. */
static void draw_phase(Svg *svg, gint64 span, gint64 from, gint64 to, double y, double height, const char *color)
{
    if (from != SF_TIMELINE_NEVER && to > from && from < span) {
        rect(svg, x_of(from, span), y, MAX(x_of(to, span) - x_of(from, span), 1), height, MIN(height / 4, 3), color);
    }
}

/* The first of the times that has come, else otherwise. */
static gint64 first_of(gint64 a, gint64 b, gint64 c, gint64 otherwise)
{
    return a != SF_TIMELINE_NEVER ? a : b != SF_TIMELINE_NEVER ? b : c != SF_TIMELINE_NEVER ? c : otherwise;
}

static void draw_marks(Svg *svg, const SfTimelineClone *clone, gint64 span, double middle, double height)
{
    double size = CLAMP(height * 0.55, 2, 7);

    if (clone->synced != SF_TIMELINE_NEVER && clone->synced <= span) {
        double x = x_of(clone->synced, span);
        g_string_append_printf(svg->out,
                               "<path d=\"M%.2f %.2fl%.2f %.2fl-%.2f %.2fl-%.2f -%.2fz\" fill=\"%s\" stroke=\"%s\"/>\n",
                               x, middle - size, size, size, size, size, size, size, SYNCED, PAPER);
    }
    if (clone->exited == SF_TIMELINE_NEVER || clone->exited > span) {
        return;
    }
    double x = x_of(clone->exited, span);
    if (sf_timeline_failed(clone)) {
        g_string_append_printf(svg->out, "<path d=\"M%.2f %.2fl%.2f %.2fm0 -%.2fl-%.2f %.2f\" class=\"cross\"/>\n",
                               x - size, middle - size, 2 * size, 2 * size, 2 * size, 2 * size, 2 * size);
    } else {
        g_string_append_printf(svg->out, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"%.2f\" fill=\"%s\" stroke=\"%s\" "
                               "stroke-width=\"1.5\"/>\n", x, middle, size * 0.75, PARENT, PAPER);
    }
}

static void draw_clone(Svg *svg, const SfTimelineClone *clone, gint64 span, double y, const char *notes,
                       gboolean bad)
{
    const SfTimeline *t = svg->timeline;
    double middle = y + svg->row / 2, height = svg->row >= 8 ? svg->row * 0.58 : svg->row * 0.8;
    double top = middle - height / 2;
    gint64 never = SF_TIMELINE_NEVER, end = clone->exited != never ? clone->exited : t->end;
    gint64 born = t->pause_at + t->pause;

    draw_phase(svg, span, born, first_of(clone->loaded, clone->running, clone->answered, end), top, height, WAITING);
    draw_phase(svg, span, clone->loaded, first_of(clone->running, clone->answered, never, end), top, height, LOADING);
    if (clone->answered != never) {
        draw_phase(svg, span, clone->running, clone->answered, top, height, WAKING);
        draw_phase(svg, span, clone->answered, end, top, height, WORKING);
    } else {
        draw_phase(svg, span, clone->running, end, top, height, t->answered.count > 0 ? WAKING : WORKING);
    }
    draw_marks(svg, clone, span, middle, height);
    if (svg->row >= TEXT_ROW_HEIGHT) {
        g_autofree char *label = g_strdup_printf("clone %" G_GINT64_FORMAT, clone->id);
        text(svg, MARGIN, middle + 5, "row", "start", label);
        text(svg, NOTES_X, middle + 5, bad ? "note bad" : "note", "start", notes);
    }
}

static void draw_panel(Svg *svg, const char *heading, gint64 span, char *(*notes_of)(const SfTimelineClone *clone))
{
    const SfTimeline *t = svg->timeline;
    double parent = MAX(svg->row, ROW_HEIGHT);
    double top = svg->y + 26, bottom = top + parent + t->clones->len * svg->row + 6;

    text(svg, MARGIN, svg->y, "heading", "start", heading);
    svg->y += 14;
    draw_axis(svg, span, bottom);
    double fork = x_of(t->pause_at + t->pause, span), row = svg->row;
    line(svg, fork, top + parent / 2, fork, bottom, "fork");
    svg->row = parent;
    draw_parent(svg, span, top);
    svg->row = row;
    for (guint i = 0; i < t->clones->len; i++) {
        const SfTimelineClone *clone = g_ptr_array_index(t->clones, i);
        g_autofree char *notes = notes_of(clone);
        draw_clone(svg, clone, span, top + parent + i * svg->row, notes,
                   sf_timeline_failed(clone) && clone->exited <= span);
    }
    svg->y = bottom + 40;
}

/* Only what is in the picture. */
static void draw_legend(Svg *svg)
{
    const SfTimeline *t = svg->timeline;
    gboolean loading = FALSE, synced = FALSE, ended = FALSE, failed = FALSE;

    for (guint i = 0; i < t->clones->len; i++) {
        const SfTimelineClone *clone = g_ptr_array_index(t->clones, i);
        loading = loading || clone->running > clone->loaded;
        synced = synced || clone->synced != SF_TIMELINE_NEVER;
        ended = ended || (clone->exited != SF_TIMELINE_NEVER && !sf_timeline_failed(clone));
        failed = failed || sf_timeline_failed(clone);
    }
    const struct {
        gboolean shown;
        const char *color, *name;
    } entries[] = {
        {TRUE, PAUSED, failed ? "parent paused; clone failed or killed" : "parent paused"},
        {TRUE, WAITING, "waits for its turn"},
        {loading, LOADING, "loaded, waits for a CPU"},
        {t->answered.count > 0, WAKING, "runs, gets its identity"},
        {TRUE, WORKING, "works"},
        {synced, SYNCED, "synced"},
        {ended, PARENT, "ended"},
    };
    double x = MARGIN;
    for (guint i = 0; i < G_N_ELEMENTS(entries); i++) {
        if (entries[i].shown) {
            rect(svg, x, svg->y - 10, 12, 12, 3, entries[i].color);
            text(svg, x + 18, svg->y, "label", "start", entries[i].name);
            x += 44 + 6.3 * (double)strlen(entries[i].name);     /* the width of such letters, roughly */
        }
    }
    svg->y += 22;
}

static void draw_memory(Svg *svg)
{
    const SfTimeline *t = svg->timeline;

    if (t->private_median == 0) {
        return;
    }
    g_autofree char *total = sf_units_format_size(t->private_total);
    g_autofree char *shared = sf_units_format_size(t->shared_once);
    g_autofree char *note = g_strdup_printf("Memory of the clones: %s of their own together; up to %s of the snapshot, "
                                            "shared by all.", total, shared);
    text(svg, MARGIN, svg->y, "label", "start", note);
    svg->y += 22;
}

char *sf_timeline_to_svg(const SfTimeline *timeline)
{
    Svg svg = {.timeline = timeline, .out = g_string_new(NULL)};
    guint n = MAX(timeline->clones->len, 1);

    svg.row = CLAMP(ROWS_HEIGHT / n, ROW_HEIGHT_MIN, ROW_HEIGHT);
    draw_head(&svg);
    draw_pause(&svg);
    draw_panel(&svg, "The fork", timeline->fork_end, sf_timeline_fork_note);
    if ((double)timeline->end > TWO_PANELS * (double)timeline->fork_end) {
        draw_panel(&svg, "The work", timeline->end, sf_timeline_work_note);
    }
    draw_legend(&svg);
    draw_memory(&svg);
    double height = svg.y + MARGIN / 2;
    g_autofree char *title = g_markup_printf_escaped("Fork of %s, ticket %s", timeline->vm, timeline->ticket);
    g_autofree char *head = g_strdup_printf(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" "
        "role=\"img\">\n"
        "<title>%s</title>\n"
        "<style>\n"
        "text{font-family:Inter,'Helvetica Neue',Helvetica,Arial,'DejaVu Sans',sans-serif;font-size:13px;fill:" INK
        "}\n"
        ".title{font-size:26px;font-weight:600}\n"
        ".heading{font-size:15px;font-weight:600}\n"
        ".figure{font-size:24px;font-weight:600}\n"
        ".label,.note,.tick{fill:" INK_SOFT "}\n"
        ".note,.tick,.label{font-size:12px}\n"
        ".bad{fill:" PAUSED "}\n"
        ".part{font-size:11px;fill:" PAPER "}\n"
        ".part-dark{font-size:11px;fill:" INK "}\n"
        ".grid{stroke:" GRID ";stroke-width:1}\n"
        ".fork{stroke:" PAUSED ";stroke-width:1;stroke-dasharray:3 3}\n"
        ".cross{stroke:" PAUSED ";stroke-width:2.5;fill:none}\n"
        "</style>\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"" PAPER "\"/>\n",
        CANVAS_WIDTH, height, CANVAS_WIDTH, height, title);
    g_string_prepend(svg.out, head);
    g_string_append(svg.out, "</svg>\n");
    return g_string_free(svg.out, FALSE);
}
