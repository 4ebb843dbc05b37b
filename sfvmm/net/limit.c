/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/net/limit.h"

SfLimit sf_limit_new(guint64 rate, guint64 burst, gint64 now)
{
    return (SfLimit){ rate, burst, burst * G_USEC_PER_SEC, now };
}

gboolean sf_limit_take(SfLimit *limit, guint64 amount, gint64 now)
{
    guint64 full = limit->burst * G_USEC_PER_SEC;
    guint64 needed = amount * G_USEC_PER_SEC;
    guint64 passed = now > limit->last ? (guint64)(now - limit->last) : 0;

    if (limit->rate == 0) {
        return TRUE;
    }
    limit->left = passed >= full / limit->rate ? full : MIN(full, limit->left + passed * limit->rate);
    limit->last = now;
    if (needed > limit->left) {
        return FALSE;
    }
    limit->left -= needed;
    return TRUE;
}
