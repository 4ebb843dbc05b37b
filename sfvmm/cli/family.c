/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/cli/family.h"

#include <string.h>

#include "sfvmm/cli/cli.h"

#define SHELL_MARK   "-shell-"

int sf_family_compare_names(const char *a, const char *b)
{
    while (*a && *b) {
        if (g_ascii_isdigit(*a) && g_ascii_isdigit(*b)) {
            guint64 x = g_ascii_strtoull(a, (char **)&a, 10);
            guint64 y = g_ascii_strtoull(b, (char **)&b, 10);
            if (x != y) {
                return x < y ? -1 : 1;
            }
        } else if (*a != *b) {
            return (guchar)*a < (guchar)*b ? -1 : 1;
        } else {
            a++;
            b++;
        }
    }
    return (*a != 0) - (*b != 0);
}

static const char *name_of(JsonObject *vm)
{
    const char *name = sf_ctl_string(vm, "name");
    return name ? name : "";
}

/* The name of a VM's parent, NULL: none. Shells are called PARENT-shell-N. Caller frees. */
static char *parent_of(JsonObject *vm)
{
    const char *parent = sf_ctl_string(vm, "parent"), *mark = g_strrstr(name_of(vm), SHELL_MARK);

    if (!parent && mark && g_strcmp0(sf_ctl_string(vm, "role"), "shell") == 0) {
        return g_strndup(name_of(vm), (gsize)(mark - name_of(vm)));
    }
    return g_strdup(parent);
}

/* Siblings: clones before shells, by ticket, then by id, then by name. */
static int compare_siblings(gconstpointer a, gconstpointer b)
{
    JsonObject *x = *(JsonObject *const *)a, *y = *(JsonObject *const *)b;
    const char *x_ticket = sf_ctl_string(x, "ticket"), *y_ticket = sf_ctl_string(y, "ticket");
    int order = x_ticket && y_ticket ? strcmp(x_ticket, y_ticket) : (y_ticket != NULL) - (x_ticket != NULL);
    gint64 ids = sf_ctl_int(x, "id") - sf_ctl_int(y, "id");

    if (order == 0 && ids != 0) {
        order = ids < 0 ? -1 : 1;
    }
    return order != 0 ? order : sf_family_compare_names(name_of(x), name_of(y));
}

/* Takes what was placed out of `rest`: so a daemon that names a circle of parents cannot send us round it. */
static void place_children(GArray *rows, GPtrArray *rest, const char *parent, guint depth, guint root)
{
    for (guint i = 0; i < rest->len; i++) {
        JsonObject *vm = g_ptr_array_index(rest, i);
        g_autofree char *own = vm ? parent_of(vm) : NULL;
        if (vm && g_strcmp0(own, parent) == 0) {
            SfFamilyRow row = {vm, depth, depth == 0 ? rows->len : root};
            g_array_append_val(rows, row);
            g_ptr_array_index(rest, i) = NULL;
            place_children(rows, rest, name_of(vm), depth + 1, row.root);
        }
    }
}

GArray *sf_family_sort(JsonArray *vms)
{
    GArray *rows = g_array_new(FALSE, TRUE, sizeof(SfFamilyRow));
    g_autoptr(GPtrArray) rest = g_ptr_array_new();
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);

    for (guint i = 0; vms && i < json_array_get_length(vms); i++) {
        JsonObject *vm = json_array_get_object_element(vms, i);
        g_ptr_array_add(rest, vm);
        g_hash_table_add(names, (gpointer)name_of(vm));
    }
    g_ptr_array_sort(rest, compare_siblings);
    for (guint pass = 0; pass < 2; pass++) {      /* first the roots; then what only names itself as an ancestor */
        for (guint i = 0; i < rest->len; i++) {
            JsonObject *vm = g_ptr_array_index(rest, i);
            g_autofree char *parent = vm ? parent_of(vm) : NULL;
            if (vm && (pass == 1 || !parent || !g_hash_table_contains(names, parent))) {
                SfFamilyRow row = {vm, 0, rows->len};
                g_array_append_val(rows, row);
                g_ptr_array_index(rest, i) = NULL;
                place_children(rows, rest, name_of(vm), 1, row.root);
            }
        }
    }
    return rows;
}
