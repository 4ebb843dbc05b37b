/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sfctl top: samples vm.usage and draws.
 *
 *      snowflock: 1 VM, 8 clones, 4 shells                                            21:04:33
 *      CPU     [######----------]  142 % of 200 %
 *      Memory  [##:-------------]  private 312 MiB, shared 1.0 GiB, of 23.5 GiB; sharing saves 7.1 GiB
 *
 *      NAME          STATE     CPU %   ...        a row for each VM, below it its clones; shells summed up
 *
 * Rates come from two samples: each name's cpu_ns and private bytes against the same name's before. On a terminal it
 * waits with poll() for a key or the next sample; a resize interrupts poll() and draws anew. Single-threaded.
 */
#include "sfvmm/cli/top.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sfvmm/cli/cli.h"
#include "sfvmm/cli/family.h"
#include "sfvmm/cli/term.h"
#include "sfvmm/cli/top_groups.h"
#include "sfvmm/cli/units.h"

#define INTERVAL_MS_DEFAULT   1000
#define INTERVAL_MS_MIN       100
#define BAR_WIDTH             30u
#define BAR_WIDTH_NARROW      16u
#define BAR_OTHERS            12u      /* columns beside the bar: its name, brackets and two blanks */
#define NARROW                100u     /* columns: below, the bars are shorter */
#define HEAD_LINES            5u       /* above the rows: three of totals, a blank one, the headings */

/* ---- The picture ---- */

typedef struct {
    const char *name;         /* borrowed */
    const char *role, *state;
    guint depth, shells;      /* shells: this row sums up so many */
    guint64 private_bytes, shared_bytes;
    double cpu;               /* percent of one CPU; < 0: not known yet */
    double growth;            /* private bytes per second */
    JsonObject *pages;        /* borrowed: counters of its sf-pager; NULL: its memory is all here */
    guint64 overwritten;      /* bytes that it has not fetched because disk reads have filled them */
} Row;

typedef struct {
    GArray *rows;             /* of Row, the family's head first */
    guint64 private_bytes, shared_once;
    double cpu;
    const char *name;
} Family;

static void family_free(Family *family)
{
    g_array_unref(family->rows);
    g_free(family);
}

static GHashTable *index_by_name(JsonObject *usage)
{
    GHashTable *table = g_hash_table_new(g_str_hash, g_str_equal);
    JsonArray *vms = usage ? sf_ctl_array(usage, "vms") : NULL;

    for (guint i = 0; vms && i < json_array_get_length(vms); i++) {
        JsonObject *vm = json_array_get_object_element(vms, i);
        if (sf_ctl_string(vm, "name")) {
            g_hash_table_insert(table, (gpointer)sf_ctl_string(vm, "name"), vm);
        }
    }
    return table;
}

static Row make_row(const SfFamilyRow *member, GHashTable *before, guint64 elapsed_ns)
{
    JsonObject *vm = member->vm;
    Row row = {
        .name = sf_ctl_string(vm, "name") ? sf_ctl_string(vm, "name") : "?",
        .role = sf_ctl_string(vm, "role"),
        .state = sf_ctl_string(vm, "state"),
        .depth = member->depth,
        .private_bytes = (guint64)sf_ctl_int(vm, "private"),
        .shared_bytes = (guint64)sf_ctl_int(vm, "shared"),
        .cpu = -1,
        .pages = sf_ctl_object(vm, "pages"),
        .overwritten = (guint64)MAX(sf_ctl_int(vm, "overwritten"), 0),
    };
    JsonObject *old = g_hash_table_lookup(before, row.name);
    if (old && elapsed_ns > 0) {
        double cpu_ns = (double)(sf_ctl_int(vm, "cpu_ns") - sf_ctl_int(old, "cpu_ns"));
        double bytes = (double)(sf_ctl_int(vm, "private") - sf_ctl_int(old, "private"));
        row.cpu = MAX(cpu_ns, 0) * 100 / (double)elapsed_ns;
        row.growth = bytes * (double)SF_CTL_NS_PER_S / (double)elapsed_ns;
    }
    return row;
}

static gboolean is_shell(const Row *row)
{
    return g_strcmp0(row->role, "shell") == 0;
}

/* Into the family's row that stands for all its shells. */
static void add_to_shells(Family *family, const Row *shell)
{
    Row *sum = NULL;

    for (guint i = 0; i < family->rows->len; i++) {
        Row *row = &g_array_index(family->rows, Row, i);
        sum = row->shells > 0 ? row : sum;
    }
    if (!sum) {
        Row row = *shell;
        row.shells = 1;
        g_array_append_val(family->rows, row);
        return;
    }
    sum->shells++;
    sum->private_bytes += shell->private_bytes;
    sum->shared_bytes += shell->shared_bytes;
    sum->growth += shell->growth;
    sum->cpu = sum->cpu < 0 ? shell->cpu : sum->cpu + MAX(shell->cpu, 0);
}

static GPtrArray *make_families(JsonObject *now, JsonObject *before, guint64 elapsed_ns, gboolean shells)
{
    GPtrArray *families = g_ptr_array_new_with_free_func((GDestroyNotify)family_free);
    g_autoptr(GArray) members = sf_family_sort(sf_ctl_array(now, "vms"));
    g_autoptr(GHashTable) old = index_by_name(before);
    Family *family = NULL;

    for (guint i = 0; i < members->len; i++) {
        const SfFamilyRow *member = &g_array_index(members, SfFamilyRow, i);
        Row row = make_row(member, old, elapsed_ns);
        if (member->depth == 0) {
            family = g_new0(Family, 1);
            family->rows = g_array_new(FALSE, TRUE, sizeof(Row));
            family->name = row.name;
            g_ptr_array_add(families, family);
        }
        family->private_bytes += row.private_bytes;
        family->shared_once = MAX(family->shared_once, row.shared_bytes);
        family->cpu += MAX(row.cpu, 0);
        if (is_shell(&row) && !shells) {
            add_to_shells(family, &row);
        } else {
            g_array_append_val(family->rows, row);
        }
    }
    return families;
}

static int compare_families(gconstpointer a, gconstpointer b, gpointer order)
{
    const Family *x = *(const Family *const *)a, *y = *(const Family *const *)b;
    int result = 0;

    if (GPOINTER_TO_INT(order) == SF_TOP_BY_CPU) {
        result = (x->cpu < y->cpu) - (x->cpu > y->cpu);
    } else if (GPOINTER_TO_INT(order) == SF_TOP_BY_PRIVATE) {
        result = (x->private_bytes < y->private_bytes) - (x->private_bytes > y->private_bytes);
    }
    return result != 0 ? result : sf_family_compare_names(x->name, y->name);
}

static void append_count(GString *line, guint n, const char *what)
{
    g_string_append_printf(line, "%s%u %s%s", line->len ? ", " : "", n, what, n == 1 ? "" : "s");
}

static void append_title(GString *out, JsonObject *now, const SfTopView *view)
{
    JsonArray *vms = sf_ctl_array(now, "vms");
    guint parents = 0, clones = 0, shells = 0;
    g_autoptr(GString) counts = g_string_new(NULL);

    for (guint i = 0; vms && i < json_array_get_length(vms); i++) {
        const char *role = sf_ctl_string(json_array_get_object_element(vms, i), "role");
        parents += g_strcmp0(role, "parent") == 0;
        clones += g_strcmp0(role, "clone") == 0;
        shells += g_strcmp0(role, "shell") == 0;
    }
    append_count(counts, parents, "VM");
    append_count(counts, clones, "clone");
    append_count(counts, shells, "shell");
    sf_text_append_styled(out, "snowflock", SF_STYLE_BOLD, view->color);
    g_string_append_printf(out, ": %s", counts->str);
    guint used = (guint)(strlen("snowflock: ") + counts->len + strlen(view->clock));
    g_string_append_printf(out, "%*s%s\n", (int)(view->width > used + 2 ? view->width - used : 2), "", view->clock);
}

static guint bar_width(const SfTopView *view)
{
    return view->width >= NARROW ? BAR_WIDTH : BAR_WIDTH_NARROW;
}

/* part of so many cells; at least one when there is anything. */
static guint cells(double part, guint width)
{
    guint n = (guint)(CLAMP(part, 0, 1) * width + 0.5);
    return part > 0 && n == 0 ? 1 : n;
}

static void append_bar(GString *out, double first, double second, SfStyle style, const SfTopView *view)
{
    guint width = bar_width(view);
    guint n = MIN(cells(first, width), width), m = MIN(cells(second, width), width - n);
    g_autoptr(GString) part = g_string_new(NULL);

    g_string_append_c(out, '[');
    for (guint i = 0; i < n; i++) {
        g_string_append(part, view->unicode ? "█" : "#");
    }
    sf_text_append_styled(out, part->str, style, view->color);
    g_string_truncate(part, 0);
    for (guint i = 0; i < m; i++) {
        g_string_append(part, view->unicode ? "▒" : ":");
    }
    sf_text_append_styled(out, part->str, SF_STYLE_BLUE, view->color);
    g_string_truncate(part, 0);
    for (guint i = n + m; i < width; i++) {
        g_string_append(part, view->unicode ? "·" : "-");
    }
    sf_text_append_styled(out, part->str, SF_STYLE_DIM, view->color);
    g_string_append(out, "]  ");
}

/* The longest that fits beside the bar. Caller frees. */
static char *memory_sentence(const SfTopView *view, const char *own, const char *shared, const char *saved,
                             const char *left)
{
    guint room = view->width > BAR_OTHERS + bar_width(view) ? view->width - BAR_OTHERS - bar_width(view) : 0;
    char *text =
        g_strdup_printf("private %s + shared %s; sharing saves %s; host has %s free", own, shared, saved, left);

    if (view->width > 0 && strlen(text) > room) {
        g_free(text);
        text = g_strdup_printf("own %s, shared %s, saved %s", own, shared, saved);
    }
    if (view->width > 0 && strlen(text) > room) {
        g_free(text);
        text = g_strdup_printf("own %s, shared %s", own, shared);
    }
    return text;
}

static void append_totals(GString *out, JsonObject *now, GPtrArray *families, gboolean have_rates,
                          const SfTopView *view)
{
    guint64 total = (guint64)sf_ctl_int(sf_ctl_object(now, "host"), "memory_total");
    guint64 available = (guint64)sf_ctl_int(sf_ctl_object(now, "host"), "memory_available");
    guint64 private_bytes = 0, shared_once = 0, shared_sum = 0;
    double cpu = 0, capacity = 100.0 * MAX(view->cpus, 1);

    for (guint i = 0; i < families->len; i++) {
        const Family *family = g_ptr_array_index(families, i);
        private_bytes += family->private_bytes;
        shared_once += family->shared_once;
        cpu += family->cpu;
        for (guint j = 0; j < family->rows->len; j++) {
            shared_sum += g_array_index(family->rows, Row, j).shared_bytes;
        }
    }
    g_string_append(out, "CPU     ");
    append_bar(out, cpu / capacity, 0, cpu > 0.9 * capacity ? SF_STYLE_RED : SF_STYLE_GREEN, view);
    if (have_rates) {
        g_string_append_printf(out, "%.0f %% of %.0f %%\n", cpu, capacity);
    } else {
        g_string_append(out, "measuring\n");
    }
    g_autofree char *private_text = sf_units_format_size(private_bytes);
    g_autofree char *shared_text = sf_units_format_size(shared_once);
    g_autofree char *free_text = sf_units_format_size(available);
    g_autofree char *saved_text = sf_units_format_size(shared_sum - shared_once);
    g_string_append(out, "Memory  ");
    append_bar(out, total ? (double)private_bytes / (double)total : 0, total ? (double)shared_once / (double)total : 0,
               SF_STYLE_GREEN, view);
    g_autofree char *text = memory_sentence(view, private_text, shared_text, saved_text, free_text);
    g_string_append_printf(out, "%s\n\n", text);
}

static void add_size(SfTable *table, guint64 bytes, SfStyle style)
{
    g_autofree char *text = sf_units_format_size(bytes);
    sf_table_add_cell(table, text, style);
}

static void add_growth(SfTable *table, const Row *row)
{
    if (row->cpu < 0 || (row->growth < 1 && row->growth > -1)) {
        sf_table_add_cell(table, NULL, SF_STYLE_PLAIN);
        return;
    }
    g_autofree char *text = sf_units_format_size((guint64)(row->growth < 0 ? -row->growth : row->growth));
    sf_table_add_cellf(table, SF_STYLE_PLAIN, "%c%s/s", row->growth < 0 ? '-' : '+', text);
}

/* What all clones of the snapshot on this host have fetched together, and what they need not; then what this one has
 * overwritten. */
static void add_pages(SfTable *table, const Row *row, SfStyle style)
{
    static const char *const sizes[] = {"fetched", "prefetched", "unused", "resident", "free"};

    if (!row->pages) {
        for (guint i = 0; i < 2 + G_N_ELEMENTS(sizes); i++) {
            sf_table_add_cell(table, NULL, style);
        }
        return;
    }
    sf_table_add_cellf(table, style, "%" G_GINT64_FORMAT, sf_ctl_int(row->pages, "demand_faults"));
    for (guint i = 0; i < G_N_ELEMENTS(sizes); i++) {
        add_size(table, (guint64)MAX(sf_ctl_int(row->pages, sizes[i]), 0), style);
    }
    add_size(table, row->overwritten, style);
}

static void add_row(SfTable *table, const Row *row, gboolean pages)
{
    SfStyle style = row->shells || is_shell(row) ? SF_STYLE_DIM : SF_STYLE_PLAIN;

    sf_table_add_row(table);
    if (row->shells) {
        sf_table_add_cellf(table, style, "%*s%u shell%s", (int)row->depth * 2, "", row->shells,
                           row->shells == 1 ? "" : "s");
    } else {
        sf_table_add_cellf(table, row->depth == 0 ? SF_STYLE_BOLD : style, "%*s%s", (int)row->depth * 2, "", row->name);
    }
    sf_table_add_cell(table, row->role, style);
    sf_table_add_cell(table, row->state, style == SF_STYLE_PLAIN ? sf_ctl_state_style(row->state) : style);
    if (row->cpu < 0) {
        sf_table_add_cell(table, NULL, style);
    } else {
        sf_table_add_cellf(table, row->cpu >= 50 ? SF_STYLE_YELLOW : style, "%.1f", row->cpu);
    }
    add_size(table, row->private_bytes, style);
    add_growth(table, row);
    add_size(table, row->shared_bytes, style);
    if (pages) {
        add_pages(table, row, style);
    }
}

static gboolean any_pages(const GPtrArray *families)
{
    for (guint i = 0; i < families->len; i++) {
        const Family *family = g_ptr_array_index(families, i);
        for (guint j = 0; j < family->rows->len; j++) {
            if (g_array_index(family->rows, Row, j).pages) {
                return TRUE;
            }
        }
    }
    return FALSE;
}

static char *render_rows(GPtrArray *families, const SfTopView *view)
{
    g_autoptr(SfTable) table = sf_table_new();
    gboolean pages = any_pages(families);

    sf_table_add_column(table, "NAME", SF_COLUMN_ELASTIC);
    sf_table_add_column(table, "ROLE", SF_COLUMN_LEFT);
    sf_table_add_column(table, "STATE", SF_COLUMN_LEFT);
    sf_table_add_column(table, "CPU %", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "PRIVATE", SF_COLUMN_RIGHT);
    sf_table_add_column(table, "GROWTH", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
    sf_table_add_column(table, "SHARED", SF_COLUMN_RIGHT);
    if (pages) {
        sf_table_add_column(table, "FAULTS", SF_COLUMN_RIGHT);
        sf_table_add_column(table, "FETCHED", SF_COLUMN_RIGHT);
        sf_table_add_column(table, "AHEAD", SF_COLUMN_RIGHT);
        sf_table_add_column(table, "UNUSED", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
        sf_table_add_column(table, "HERE", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
        sf_table_add_column(table, "FREE", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
        sf_table_add_column(table, "SPARED", SF_COLUMN_RIGHT | SF_COLUMN_OPTIONAL);
    }
    for (guint i = 0; i < families->len; i++) {
        const Family *family = g_ptr_array_index(families, i);
        for (guint j = 0; j < family->rows->len; j++) {
            add_row(table, &g_array_index(family->rows, Row, j), pages);
        }
    }
    return sf_table_to_text(table, view->width, view->color);
}

/* The headings, then as many rows as the height leaves room for, from the one scrolled to. */
static void append_rows(GString *out, const char *text, const SfTopView *view)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    guint n = g_strv_length(lines) - 1;      /* the last newline ends the last line */
    guint rows = n - 1, room = rows, skip = 0;

    if (view->height > 0) {
        guint taken = HEAD_LINES + (view->keys ? 2 : 0);
        room = view->height > taken + 1 ? view->height - taken : 1;
        if (rows > room) {
            room = room > 1 ? room - 1 : 1;     /* one for the line that says how many are hidden */
        }
        skip = rows > room ? MIN(view->skip, rows - room) : 0;
    }
    g_string_append_printf(out, "%s\n", lines[0]);
    for (guint i = skip; i < MIN(rows, skip + room); i++) {
        g_string_append_printf(out, "%s\n", lines[i + 1]);
    }
    if (rows > room) {
        g_string_append_printf(out, "%s %u of %u rows hidden: scroll with the arrow keys\n",
                               view->unicode ? "…" : "...", rows - room, rows);
    }
}

char *sf_top_render(JsonObject *now, JsonObject *before, guint64 elapsed_ns, const SfTopView *view)
{
    GString *out = g_string_new(NULL);
    g_autoptr(GPtrArray) families = make_families(now, before, elapsed_ns, view->shells);
    JsonArray *groups = sf_ctl_array(now, "multicast");
    guint group_lines = groups && json_array_get_length(groups) ? json_array_get_length(groups) + 2 : 0;
    SfTopView rows_view = *view;

    if (rows_view.height > group_lines) {
        rows_view.height -= group_lines;
    }
    g_ptr_array_sort_with_data(families, compare_families, GINT_TO_POINTER(view->order));
    append_title(out, now, view);
    append_totals(out, now, families, before != NULL, view);
    if (families->len == 0) {
        g_string_append(out, "No VM runs. `sfctl run IMAGE` starts one.\n");
    } else {
        g_autofree char *rows = render_rows(families, view);
        append_rows(out, rows, &rows_view);
    }
    sf_top_append_groups(out, groups, view);
    if (view->keys) {
        g_string_append_c(out, '\n');
        sf_text_append_styled(out,
                              view->width >= NARROW ? "q quit   s shells   sort: c CPU  m memory  n name   space now"
                                                    : "q quit  s shells  sort: c CPU, m memory, n name",
                              SF_STYLE_DIM, view->color);
        g_string_append_c(out, '\n');
    }
    return g_string_free(out, FALSE);
}

/* ---- The command ---- */

static gboolean option_once, option_batch, option_shells;
static char *option_interval, *option_count;

const GOptionEntry sf_ctl_top_options[] = {
    {"once", '1', 0, G_OPTION_ARG_NONE, &option_once, "Print one table and end", NULL},
    {"batch", 'b', 0, G_OPTION_ARG_NONE, &option_batch, "Print one table after the other", NULL},
    {"interval", 'i', 0, G_OPTION_ARG_STRING, &option_interval, "Time between two samples (default 1s)", "TIME"},
    {"count", 'n', 0, G_OPTION_ARG_STRING, &option_count, "End after N tables", "N"},
    {"shells", 0, 0, G_OPTION_ARG_NONE, &option_shells, "A row for each shell", NULL},
    {NULL},
};

typedef struct {
    JsonObject *now, *before;
    gint64 now_us, before_us;
} Samples;

static gboolean take_sample(SfCtl *ctl, Samples *samples, GError **error)
{
    JsonObject *usage = sf_client_call(ctl->client, "vm.usage", NULL, SF_CTL_SOON_MS, error);

    if (!usage) {
        return FALSE;
    }
    g_clear_pointer(&samples->before, json_object_unref);
    samples->before = samples->now;
    samples->before_us = samples->now_us;
    samples->now = usage;
    samples->now_us = g_get_monotonic_time();
    return TRUE;
}

static char *render(const Samples *samples, SfTopView *view)
{
    g_autoptr(GDateTime) time = g_date_time_new_now_local();
    g_autofree char *clock = g_date_time_format(time, "%H:%M:%S");

    view->clock = clock;
    char *text =
        sf_top_render(samples->now, samples->before, (guint64)(samples->now_us - samples->before_us) * 1000, view);
    view->clock = NULL;
    return text;
}

/* Every line over what stands there, then the rest of the screen empty: no flicker. */
static void draw(const Samples *samples, SfTopView *view)
{
    sf_term_size(&view->width, &view->height);
    g_autofree char *text = g_strchomp(render(samples, view));     /* a newline on the last row would scroll */
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autofree char *joined = g_strjoinv("\033[K\n", lines);
    printf("\033[H%s\033[K\033[J", joined);
    fflush(stdout);
}

/* FALSE: quit. *now: sample at once. */
static gboolean handle_key(char key, SfTopView *view, gboolean *now)
{
    switch (key) {
    case 'q':
    case 'Q':
        return FALSE;
    case 's':
        view->shells = !view->shells;
        break;
    case 'c':
        view->order = SF_TOP_BY_CPU;
        break;
    case 'm':
        view->order = SF_TOP_BY_PRIVATE;
        break;
    case 'n':
        view->order = SF_TOP_BY_NAME;
        break;
    case ' ':
        *now = TRUE;
        break;
    default:
        break;
    }
    return TRUE;
}

static gboolean handle_keys(SfTopView *view, gboolean *now)
{
    char keys[32];
    ssize_t n = read(STDIN_FILENO, keys, sizeof(keys) - 1);

    if (n <= 0) {
        return n < 0 && errno == EINTR;      /* the terminal is gone: quit */
    }
    keys[n] = '\0';
    if (strcmp(keys, "\033[A") == 0 || strcmp(keys, "\033OA") == 0) {
        view->skip -= view->skip > 0;
        return TRUE;
    }
    if (strcmp(keys, "\033[B") == 0 || strcmp(keys, "\033OB") == 0) {
        view->skip++;
        return TRUE;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (!handle_key(keys[i], view, now)) {
            return FALSE;
        }
    }
    return TRUE;
}

static int run_live(SfCtl *ctl, SfTopView *view, int interval_ms)
{
    g_autoptr(GError) error = NULL;
    Samples samples = {0};
    gboolean now = TRUE;
    int code = SF_CTL_OK;

    for (;;) {
        gint64 due = samples.now_us + interval_ms * G_GINT64_CONSTANT(1000);
        if (now || g_get_monotonic_time() >= due) {
            if (!take_sample(ctl, &samples, &error)) {
                sf_term_leave();
                code = sf_ctl_fail_call(ctl, error);
                break;
            }
            /* The first rates come soon, not after a whole interval. */
            due = samples.now_us + (samples.before ? interval_ms : INTERVAL_MS_MIN) * G_GINT64_CONSTANT(1000);
            now = FALSE;
        }
        draw(&samples, view);
        struct pollfd pollfd = {.fd = STDIN_FILENO, .events = POLLIN};
        gint64 wait_ms = (due - g_get_monotonic_time()) / 1000;
        int n = poll(&pollfd, 1, (int)CLAMP(wait_ms, 0, G_MAXINT));
        if (n > 0 && !handle_keys(view, &now)) {
            break;
        }
        now = now || (n == 0 && !samples.before);
    }
    sf_term_leave();
    g_clear_pointer(&samples.now, json_object_unref);
    g_clear_pointer(&samples.before, json_object_unref);
    return code;
}

static int run_batch(SfCtl *ctl, SfTopView *view, int interval_ms, gint64 count)
{
    g_autoptr(GError) error = NULL;
    Samples samples = {0};
    int code = SF_CTL_OK;

    view->width = ctl->width;
    for (gint64 i = 0; i < count; i++) {
        if (i > 0) {
            g_usleep((gulong)interval_ms * 1000);
        }
        if (!take_sample(ctl, &samples, &error)) {
            code = sf_ctl_fail_call(ctl, error);
            break;
        }
        if (ctl->json) {
            sf_ctl_print_json(samples.now);
            continue;
        }
        if (!samples.before) {      /* a table without rates says little: take the second sample first */
            g_usleep((gulong)interval_ms * 1000);
            if (!take_sample(ctl, &samples, &error)) {
                code = sf_ctl_fail_call(ctl, error);
                break;
            }
        }
        g_autofree char *text = render(&samples, view);
        printf("%s%s", i > 0 ? "\n" : "", text);
        fflush(stdout);
    }
    g_clear_pointer(&samples.now, json_object_unref);
    g_clear_pointer(&samples.before, json_object_unref);
    return code;
}

int sf_ctl_top(SfCtl *ctl, int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    int interval_ms = INTERVAL_MS_DEFAULT;
    gint64 count = G_MAXINT64;
    SfTopView view = {
        .cpus = (guint)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1),
        .color = ctl->color,
        .unicode = ctl->unicode,
        .shells = option_shells,
    };

    if ((option_interval && !sf_units_parse_duration("--interval", option_interval, &interval_ms, &error)) ||
        (option_count && !sf_units_parse_count("--count", option_count, 1, G_MAXINT64, &count, &error))) {
        return sf_ctl_usage("top", "top: %s", error->message);
    }
    if (interval_ms < INTERVAL_MS_MIN) {
        return sf_ctl_usage("top", "top: --interval: at least %d ms", INTERVAL_MS_MIN);
    }
    gboolean batch = option_batch || option_count;
    if (option_once || (!batch && (ctl->json || ctl->width == 0))) {
        return run_batch(ctl, &view, interval_ms, 1);
    }
    if (batch) {
        return run_batch(ctl, &view, interval_ms, count);
    }
    /* Errors that are there from the start belong on the shell's screen. */
    if (!sf_client_connect(ctl->client, &error)) {
        return sf_ctl_fail_call(ctl, error);
    }
    if (!sf_term_enter(SF_TERM_SCREEN)) {
        return run_batch(ctl, &view, interval_ms, 1);
    }
    view.keys = TRUE;
    return run_live(ctl, &view, interval_ms);
}
