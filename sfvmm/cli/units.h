/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Numbers as people write and read them: sizes in binary units, durations, counts. Pure functions, no state. */
#ifndef SF_CTL_UNITS_H
#define SF_CTL_UNITS_H

#include <glib.h>

/*
 * "512M", "1G", "1.5G", "64KiB", "4096": bytes. Units are binary, in either case, with or without "B" or "iB".
 * what names the value in errors ("--memory"). Errors: G_OPTION_ERROR_BAD_VALUE, and the text says what is wrong.
 */
gboolean sf_units_parse_size(const char *what, const char *text, guint64 *bytes, GError **error);

/* "500ms", "30s", "2m", "1h", or plain "30" (seconds): milliseconds, at most INT_MAX. */
gboolean sf_units_parse_duration(const char *what, const char *text, int *ms, GError **error);

/* A decimal integer of min..max, nothing before or after it. */
gboolean sf_units_parse_count(const char *what, const char *text, gint64 min, gint64 max, gint64 *value,
                              GError **error);

/* "0", "812 B", "1.5 MiB", "23.4 GiB": at most 9 characters below 1 PiB. Caller frees. */
char *sf_units_format_size(guint64 bytes);

/* "12 ns", "3.61 ms", "1.54 s", "2 min 05 s", "3 h 12 min". Three digits that count. Caller frees. */
char *sf_units_format_ns(guint64 ns);

/* "44 s", "2 min", "3 h 12 min", "5 d 2 h": how long something lasts, for people. Caller frees. */
char *sf_units_format_age_ms(guint64 ms);

#endif
