/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The terminal in another mode than the shell's, and always back. One mode at a time, one per process. */
#ifndef SF_CTL_TERM_H
#define SF_CTL_TERM_H

#include <glib.h>

typedef enum {
    SF_TERM_RAW,    /* every key goes to the reader, output as it is: a console */
    SF_TERM_SCREEN, /* keys without Enter and echo, Ctrl-C still ends us; the alternate screen, no cursor: a live table
                     */
} SfTermMode;

/* FALSE: stdin (and for SCREEN stdout) is not a terminal; nothing has changed then. */
gboolean sf_term_enter(SfTermMode mode);

/* Back to what it was. Also done at exit() and by every signal that ends the process. Harmless when not entered. */
void sf_term_leave(void);

/* Columns and rows of stdout's terminal, 80 x 24 when it does not say. */
void sf_term_size(guint *columns, guint *rows);

#endif
