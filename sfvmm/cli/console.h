/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The parts of `sfctl console` that can be tested without a terminal. */
#ifndef SF_CTL_CONSOLE_H
#define SF_CTL_CONSOLE_H

#include <glib.h>

/* Where the last `lines` lines of log[length] begin. A last line without newline counts. */
const char *sf_console_tail(const char *log, gsize length, guint lines);

/* Bytes of the input that go to the guest: up to the escape character. *detach: there was one. */
gsize sf_console_filter(char *input, gsize length, gboolean *detach);

#endif
