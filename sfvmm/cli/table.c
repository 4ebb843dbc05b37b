/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation: cells are collected first and laid out at the end, when all widths are known.
 *
 *     NAME            STATE     MEMORY   PRIVATE      two blanks between columns; none after the last
 *     web             running    1 GiB   212 MiB
 *
 * Too wide: first the optional columns go, the last one first; then the elastic ones share what is missing, the widest
 * giving first; a table that still does not fit is printed as it is, for a terminal breaks lines better than we do.
 */
#include "sfvmm/cli/table.h"

#include <string.h>

#define GAP          "  "
#define GAP_WIDTH    2u

typedef struct {
    char *heading;
    SfColumnFlags flags;
} Column;

typedef struct {
    char *text;
    SfStyle style;
} Cell;

struct SfTable {
    GArray *columns;      /* of Column */
    GPtrArray *rows;      /* of GArray of Cell */
};

static void column_clear(Column *column)
{
    g_free(column->heading);
}

static void cell_clear(Cell *cell)
{
    g_free(cell->text);
}

SfTable *sf_table_new(void)
{
    SfTable *table = g_new0(SfTable, 1);
    table->columns = g_array_new(FALSE, TRUE, sizeof(Column));
    g_array_set_clear_func(table->columns, (GDestroyNotify)column_clear);
    table->rows = g_ptr_array_new_with_free_func((GDestroyNotify)g_array_unref);
    return table;
}

void sf_table_free(SfTable *table)
{
    if (table) {
        g_array_unref(table->columns);
        g_ptr_array_unref(table->rows);
        g_free(table);
    }
}

void sf_table_add_column(SfTable *table, const char *heading, SfColumnFlags flags)
{
    Column column = {g_strdup(heading), flags};
    g_array_append_val(table->columns, column);
}

void sf_table_add_row(SfTable *table)
{
    GArray *row = g_array_new(FALSE, TRUE, sizeof(Cell));
    g_array_set_clear_func(row, (GDestroyNotify)cell_clear);
    g_ptr_array_add(table->rows, row);
}

void sf_table_add_cell(SfTable *table, const char *text, SfStyle style)
{
    g_return_if_fail(table->rows->len > 0);
    Cell cell = {text && *text ? sf_text_harmless(text) : g_strdup("-"), text && *text ? style : SF_STYLE_DIM};
    g_array_append_val((GArray *)g_ptr_array_index(table->rows, table->rows->len - 1), cell);
}

void sf_table_add_cellf(SfTable *table, SfStyle style, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    sf_table_add_cell(table, text, style);
}

guint sf_text_width(const char *text)
{
    guint width = 0;
    for (const char *p = text; *p; p = g_utf8_next_char(p)) {
        gunichar c = g_utf8_get_char(p);
        width += g_unichar_iszerowidth(c) ? 0 : g_unichar_iswide(c) ? 2 : 1;
    }
    return width;
}

char *sf_text_harmless(const char *text)
{
    char *valid = g_utf8_make_valid(text, -1);
    GString *out = g_string_sized_new(strlen(valid));

    for (const char *p = valid; *p; p = g_utf8_next_char(p)) {
        gunichar c = g_utf8_get_char(p);
        GUnicodeType type = g_unichar_type(c);
        if (type == G_UNICODE_CONTROL || type == G_UNICODE_FORMAT || type == G_UNICODE_LINE_SEPARATOR ||
            type == G_UNICODE_PARAGRAPH_SEPARATOR) {
            c = c == '\t' || c == '\n' ? ' ' : '?';
        }
        g_string_append_unichar(out, c);
    }
    g_free(valid);
    return g_string_free(out, FALSE);
}

char *sf_text_cut(const char *text, guint width)
{
    if (sf_text_width(text) <= width) {
        return g_strdup(text);
    }
    GString *out = g_string_new(NULL);
    guint used = 0;
    for (const char *p = text; *p && width > 0; p = g_utf8_next_char(p)) {
        gunichar c = g_utf8_get_char(p);
        guint own = g_unichar_iszerowidth(c) ? 0 : g_unichar_iswide(c) ? 2 : 1;
        if (used + own > width - 1) {
            break;
        }
        g_string_append_unichar(out, c);
        used += own;
    }
    if (width > 0) {
        g_string_append(out, g_get_charset(NULL) ? "…" : "~");      /* one column, in the terminal's character set */
    }
    return g_string_free(out, FALSE);
}

void sf_text_append_styled(GString *out, const char *text, SfStyle style, gboolean color)
{
    static const char *const codes[] = {
        [SF_STYLE_PLAIN] = "",      [SF_STYLE_BOLD] = "1",      [SF_STYLE_DIM] = "2",
        [SF_STYLE_RED] = "31",      [SF_STYLE_GREEN] = "32",    [SF_STYLE_YELLOW] = "33",
        [SF_STYLE_BLUE] = "34",     [SF_STYLE_MAGENTA] = "35",  [SF_STYLE_CYAN] = "36",
    };

    if (color && style != SF_STYLE_PLAIN && *text) {
        g_string_append_printf(out, "\033[%sm%s\033[0m", codes[style], text);
    } else {
        g_string_append(out, text);
    }
}

static const Cell *cell_at(const SfTable *table, guint row, guint column)
{
    static const Cell nothing = {(char *)"", SF_STYLE_PLAIN};
    const GArray *cells = g_ptr_array_index(table->rows, row);
    return column < cells->len ? &g_array_index(cells, Cell, column) : &nothing;
}

static guint total_width(const guint *widths, guint n)
{
    guint total = 0, shown = 0;
    for (guint i = 0; i < n; i++) {
        total += widths[i];
        shown += widths[i] > 0;
    }
    return total + (shown > 1 ? (shown - 1) * GAP_WIDTH : 0);
}

/* Width of each column, 0: left out. */
static guint *lay_out(const SfTable *table, guint limit)
{
    guint n = table->columns->len;
    guint *widths = g_new0(guint, n);

    for (guint i = 0; i < n; i++) {
        widths[i] = sf_text_width(g_array_index(table->columns, Column, i).heading);
        for (guint row = 0; row < table->rows->len; row++) {
            widths[i] = MAX(widths[i], sf_text_width(cell_at(table, row, i)->text));
        }
    }
    if (limit == 0) {
        return widths;
    }
    for (guint i = n; i-- > 0 && total_width(widths, n) > limit;) {
        if (g_array_index(table->columns, Column, i).flags & SF_COLUMN_OPTIONAL) {
            widths[i] = 0;
        }
    }
    while (total_width(widths, n) > limit) {
        guint widest = n;
        for (guint i = 0; i < n; i++) {
            const Column *column = &g_array_index(table->columns, Column, i);
            if ((column->flags & SF_COLUMN_ELASTIC) && widths[i] > sf_text_width(column->heading) &&
                (widest == n || widths[i] > widths[widest])) {
                widest = i;
            }
        }
        if (widest == n) {
            break;
        }
        widths[widest]--;
    }
    return widths;
}

static void append_cell(GString *line, const char *text, guint width, SfColumnFlags flags, SfStyle style, gboolean last,
                        gboolean color)
{
    g_autofree char *cut = sf_text_cut(text, width);
    guint padding = width - MIN(width, sf_text_width(cut));

    if (flags & SF_COLUMN_RIGHT) {
        g_string_append_printf(line, "%*s", (int)padding, "");
    }
    sf_text_append_styled(line, cut, style, color);
    if (!(flags & SF_COLUMN_RIGHT) && !last) {
        g_string_append_printf(line, "%*s", (int)padding, "");
    }
}

char *sf_table_to_text(const SfTable *table, guint width, gboolean color)
{
    guint n = table->columns->len, last = 0;
    g_autofree guint *widths = lay_out(table, width);
    GString *out = g_string_new(NULL);

    for (guint i = 0; i < n; i++) {
        last = widths[i] > 0 ? i : last;
    }
    for (guint line = 0; line <= table->rows->len; line++) {
        gboolean first = TRUE;
        for (guint i = 0; i < n; i++) {
            const Column *column = &g_array_index(table->columns, Column, i);
            const Cell *cell = line > 0 ? cell_at(table, line - 1, i) : NULL;
            if (widths[i] == 0) {
                continue;
            }
            g_string_append(out, first ? "" : GAP);
            append_cell(out, cell ? cell->text : column->heading, widths[i], column->flags,
                        cell ? cell->style : SF_STYLE_BOLD, i == last, color);
            first = FALSE;
        }
        g_string_append_c(out, '\n');
    }
    return g_string_free(out, FALSE);
}
