/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/fork/clone_name.h"

#include <string.h>

#define HOST_NAME_LENGTH 63u /* RFC 1035, 2.3.4 */

char *sf_clone_vm_name(const char *parent, guint64 ticket, guint id)
{
    return g_strdup_printf("%s-%04x-%u", parent, (guint)(ticket >> 48), id);
}

char *sf_clone_host_name(const char *parent, guint id)
{
    g_autofree char *suffix = g_strdup_printf("-%u", id);
    gsize room = HOST_NAME_LENGTH - strlen(suffix);
    gsize length = strlen(parent);

    if (length > room) {
        length = room;
        while (length > 1 && (parent[length - 1] == '-' || parent[length - 1] == '.')) {
            length--; /* no label ends in these */
        }
    }
    return g_strdup_printf("%.*s%s", (int)length, parent, suffix);
}
