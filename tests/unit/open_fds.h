/* SPDX-License-Identifier: GPL-2.0-or-later */
/* For tests that no descriptor is left open. */
#ifndef SF_OPEN_FDS_H
#define SF_OPEN_FDS_H

#include <glib.h>

/* How many descriptors this process has open. */
static inline guint count_open_fds(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    guint n = 0;

    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

#endif
