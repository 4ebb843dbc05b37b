/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A table for people: columns sized to their content, numbers to the right, states coloured, cut to the terminal's
 * width where it must be. Text that came from elsewhere is made harmless: no control character reaches the terminal.
 */
#ifndef SF_CTL_TABLE_H
#define SF_CTL_TABLE_H

#include <glib.h>

typedef enum {
    SF_STYLE_PLAIN,
    SF_STYLE_BOLD,
    SF_STYLE_DIM,
    SF_STYLE_RED,
    SF_STYLE_GREEN,
    SF_STYLE_YELLOW,
    SF_STYLE_BLUE,
    SF_STYLE_MAGENTA,
    SF_STYLE_CYAN,
} SfStyle;

typedef enum {
    SF_COLUMN_LEFT = 0,
    SF_COLUMN_RIGHT = 1,
    SF_COLUMN_ELASTIC = 2,     /* gives way when the table is too wide: cut with an ellipsis, at least to its heading */
    SF_COLUMN_OPTIONAL = 4,    /* left out when all else does not fit; the last such column first */
} SfColumnFlags;

typedef struct SfTable SfTable;

SfTable *sf_table_new(void);
void sf_table_free(SfTable *table);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfTable, sf_table_free)

void sf_table_add_column(SfTable *table, const char *heading, SfColumnFlags flags);
void sf_table_add_row(SfTable *table);

/* The next cell of the last row. text: copied, made harmless; NULL is "-". */
void sf_table_add_cell(SfTable *table, const char *text, SfStyle style);
void sf_table_add_cellf(SfTable *table, SfStyle style, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* width: columns of the terminal, 0 means no limit. Every line ends in a newline. Caller frees. */
char *sf_table_to_text(const SfTable *table, guint width, gboolean color);

/* Columns of a terminal that the text takes. */
guint sf_text_width(const char *text);

/* The text with every control character replaced by '?' and invalid UTF-8 made valid. Caller frees. */
char *sf_text_harmless(const char *text);

/* Appends the text in a style (as it is when color is FALSE or the style is plain). */
void sf_text_append_styled(GString *out, const char *text, SfStyle style, gboolean color);

/* Cut to width columns, with an ellipsis when something was cut. Caller frees. */
char *sf_text_cut(const char *text, guint width);

#endif
