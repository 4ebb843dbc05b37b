/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/config_quotas.h"

#include <pwd.h>
#include <string.h>

#define VM_PREFIX   "vm "
#define USER_PREFIX "user "

const char *sf_config_quotas_vm(const char *group)
{
    return g_str_has_prefix(group, VM_PREFIX) ? group + strlen(VM_PREFIX) : NULL;
}

const char *sf_config_quotas_user(const char *group)
{
    return g_str_has_prefix(group, USER_PREFIX) ? group + strlen(USER_PREFIX) : NULL;
}

gboolean sf_config_read_mib(GKeyFile *file, const char *path, const char *group, const char *key, guint64 *bytes,
                            GError **error)
{
    g_autofree char *text = g_key_file_get_string(file, group, key, NULL);
    guint64 mib;

    if (!text) {
        return TRUE;
    }
    if (!g_ascii_string_to_unsigned(g_strstrip(text), 10, 1, G_MAXUINT64 >> 20, &mib, NULL)) {
        g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE, "\"%s\": %s=%s: a number of MiB is needed",
                    path, key, text);
        return FALSE;
    }
    *bytes = mib << 20;
    return TRUE;
}

static gboolean read_count(GKeyFile *file, const char *path, const char *group, const char *key, guint *count,
                           GError **error)
{
    g_autofree char *text = g_key_file_get_string(file, group, key, NULL);
    guint64 value;

    if (!text) {
        return TRUE;
    }
    if (!g_ascii_string_to_unsigned(g_strstrip(text), 10, 1, G_MAXUINT16, &value, NULL)) {
        g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                    "\"%s\": [%s] %s=%s: a number from 1 to %u is needed", path, group, key, text, G_MAXUINT16);
        return FALSE;
    }
    *count = (guint)value;
    return TRUE;
}

/* The quota of a group that may have the keys clones, memory and tickets. NULL + error. Caller frees. */
static SfQuota *read_quota(GKeyFile *file, const char *path, const char *group, const SfQuota *common, GError **error)
{
    static const char *const known[] = { "clones", "memory", "tickets", NULL };
    g_auto(GStrv) keys = g_key_file_get_keys(file, group, NULL, NULL);
    g_autofree SfQuota *quota = g_memdup2(common, sizeof(*common));

    for (char **key = keys; key && *key; key++) {
        if (!g_strv_contains(known, *key)) {
            g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                        "\"%s\": key \"%s\" is not known in group [%s]; clones, memory and tickets are", path, *key,
                        group);
            return NULL;
        }
    }
    if (!read_count(file, path, group, "clones", &quota->clones, error) ||
        !read_count(file, path, group, "tickets", &quota->tickets, error) ||
        !sf_config_read_mib(file, path, group, "memory", &quota->memory, error)) {
        return NULL;
    }
    return g_steal_pointer(&quota);
}

gboolean sf_config_find_user(const char *name, guint32 *uid)
{
    const struct passwd *entry = getpwnam(name);
    guint64 number;

    if (entry) {
        *uid = entry->pw_uid;
    } else if (g_ascii_string_to_unsigned(name, 10, 0, G_MAXUINT32 - 1, &number, NULL)) {
        *uid = (guint32)number;
    } else {
        return FALSE;
    }
    return TRUE;
}

gboolean sf_config_quotas_read(SfQuotaRules *rules, GKeyFile *file, const char *path, GError **error)
{
    g_auto(GStrv) groups = g_key_file_get_groups(file, NULL);

    rules->own_vm = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    rules->own_user = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    for (char **group = groups; *group; group++) {
        const char *vm = sf_config_quotas_vm(*group), *user = sf_config_quotas_user(*group);
        guint32 uid = 0;
        SfQuota *quota;

        if (!vm && !user) {
            continue;
        }
        if (user && !sf_config_find_user(user, &uid)) {
            g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                        "\"%s\": group [" USER_PREFIX "%s]: there is no such user", path, user);
            return FALSE;
        }
        quota = read_quota(file, path, *group, vm ? &rules->vm : &rules->user, error);
        if (!quota) {
            return FALSE;
        }
        if (vm) {
            g_hash_table_insert(rules->own_vm, g_strdup(vm), quota);
        } else {
            g_hash_table_insert(rules->own_user, GUINT_TO_POINTER(uid), quota);
        }
    }
    return TRUE;
}

void sf_config_quotas_clear(SfQuotaRules *rules)
{
    g_clear_pointer(&rules->own_vm, g_hash_table_unref);
    g_clear_pointer(&rules->own_user, g_hash_table_unref);
}
