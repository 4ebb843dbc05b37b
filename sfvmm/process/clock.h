/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The time in nanoseconds, as QEMU's events and the protocols have it. Resolution: a microsecond.
 */
#ifndef SF_CLOCK_H
#define SF_CLOCK_H

#include <glib.h>

#define SF_CLOCK_NS_PER_US 1000

/* CLOCK_MONOTONIC. */
static inline gint64 sf_clock_ns(void)
{
    return g_get_monotonic_time() * SF_CLOCK_NS_PER_US;
}

/* CLOCK_REALTIME: since 1970. */
static inline gint64 sf_clock_real_ns(void)
{
    return g_get_real_time() * SF_CLOCK_NS_PER_US;
}

#endif
