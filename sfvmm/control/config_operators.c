/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/config_operators.h"

#include "sfvmm/cluster/pki.h"
#include "sfvmm/control/config_quotas.h"

GHashTable *sf_config_operators_read(GKeyFile *file, const char *path, GError **error)
{
    g_autoptr(GHashTable) users = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_auto(GStrv) names = g_key_file_get_keys(file, SF_CONFIG_OPERATORS, NULL, NULL);

    for (char **name = names; name && *name; name++) {
        g_autofree char *user = g_key_file_get_string(file, SF_CONFIG_OPERATORS, *name, NULL);
        guint32 uid;

        if (!sf_pki_name_is_valid(*name)) {
            g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                        "\"%s\": group [" SF_CONFIG_OPERATORS
                        "]: \"%s\" is no operator's name: it is made of a-z, 0-9, "
                        "dots and hyphens, at most 40",
                        path, *name);
            return NULL;
        }
        if (!sf_config_find_user(user ? g_strstrip(user) : "", &uid)) {
            g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                        "\"%s\": group [" SF_CONFIG_OPERATORS
                        "], %s=%s: a user of this host is needed, by name or number",
                        path, *name, user ? user : "");
            return NULL;
        }
        g_hash_table_insert(users, g_strdup(*name), GUINT_TO_POINTER(uid));
    }
    return g_steal_pointer(&users);
}
