/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SfLimit: so much a second, and a burst of it at once. Units are the caller's. No clock of its own. */
#ifndef SF_LIMIT_H
#define SF_LIMIT_H

#include <glib.h>

typedef struct {
    guint64 rate; /* a second; 0: no limit */
    guint64 burst;
    guint64 left; /* of the burst, times a second in microseconds */
    gint64 last;  /* microseconds of the monotonic clock */
} SfLimit;

SfLimit sf_limit_new(guint64 rate, guint64 burst, gint64 now);

/* TRUE: `amount` may pass now, and is counted. */
gboolean sf_limit_take(SfLimit *limit, guint64 amount, gint64 now);

#endif
