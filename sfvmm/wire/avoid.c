/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/wire/avoid.h"

#include <gio/gio.h>
#include <string.h>

static const struct {
    const char *name;
    guint avoid;
} names[] = { { "none", 0 }, { "free", SF_AVOID_FREE }, { "read", SF_AVOID_READ }, { "all", SF_AVOID_ALL } };

static gboolean find_name(const char *name, guint *avoid)
{
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        if (strcmp(name, names[i].name) == 0) {
            *avoid = names[i].avoid;
            return TRUE;
        }
    }
    return FALSE;
}

gboolean sf_avoid_parse(const char *text, guint *avoid, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(text, ",", -1);
    guint n = g_strv_length(parts), sum = 0, one = 0;
    gboolean ok = n > 0;

    for (guint i = 0; ok && i < n; i++) {
        /* Only single ones have a comma beside them, each once */
        ok = find_name(parts[i], &one) && (n == 1 || (one != 0 && one != SF_AVOID_ALL && !(sum & one)));
        sum |= one;
    }
    if (!ok) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "\"%.64s\": what to avoid is all, none, or of free,read", text);
        return FALSE;
    }
    *avoid = sum;
    return TRUE;
}

const char *sf_avoid_to_text(guint avoid)
{
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        if (names[i].avoid == (avoid & SF_AVOID_ALL)) {
            return names[i].name;
        }
    }
    g_assert_not_reached();
}
