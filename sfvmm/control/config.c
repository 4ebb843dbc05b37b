/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/config.h"

#include <errno.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

#include "libsf/wire/guest_protocol.h"

#define GROUP        "sfvmmd"
#define DEFAULT_USER "snowflock-qemu"
#define DEFAULT_POOL 8u
#define MAX_POOL     256u
#define MAX_VMS      4096u
#define MAX_SECONDS  86400u
#define DEFAULT_IDENTIFY_SECONDS                                                                                       \
    120u /* 32 clones at once under TCG on 2 cores answer within 2 s; a loaded host is slower */
#define DEFAULT_TICKET_SECONDS 600u
#define DEFAULT_SETTLE_MS      1000u
#define MEMORY_SHARE_PERCENT   80u /* of the host's RAM, for all clones' private pages */

typedef struct {
    const char *key;
    guint *value;
    guint min, max;
} UintKey;

typedef struct {
    const char *key;
    char **value;
} TextKey;

static guint64 host_memory(void)
{
    return (guint64)sysconf(_SC_PHYS_PAGES) * (guint64)sysconf(_SC_PAGESIZE);
}

static gboolean check_keys(GKeyFile *file, const char *path, const TextKey *texts, guint n_texts, const UintKey *uints,
                           guint n_uints, GError **error)
{
    g_auto(GStrv) groups = g_key_file_get_groups(file, NULL);
    g_auto(GStrv) keys = g_key_file_get_keys(file, GROUP, NULL, NULL);

    for (char **group = groups; *group; group++) {
        if (strcmp(*group, GROUP) != 0) {
            g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                        "\"%s\": group [%s] is not known; [%s] is", path, *group, GROUP);
            return FALSE;
        }
    }
    for (char **key = keys; key && *key; key++) {
        gboolean known = strcmp(*key, "memory") == 0 || strcmp(*key, "user") == 0;
        for (guint i = 0; i < n_texts; i++) {
            known |= strcmp(*key, texts[i].key) == 0;
        }
        for (guint i = 0; i < n_uints; i++) {
            known |= strcmp(*key, uints[i].key) == 0;
        }
        if (!known) {
            g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                        "\"%s\": key \"%s\" is not known; see sfvmmd.conf(5)", path, *key);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean read_uint(GKeyFile *file, const char *path, const UintKey *key, GError **error)
{
    g_autofree char *text = g_key_file_get_string(file, GROUP, key->key, NULL);
    guint64 value;

    if (!text) {
        return TRUE;
    }
    if (!g_ascii_string_to_unsigned(g_strstrip(text), 10, key->min, key->max, &value, NULL)) {
        g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                    "\"%s\": %s=%s: a number from %u to %u is needed", path, key->key, text, key->min, key->max);
        return FALSE;
    }
    *key->value = (guint)value;
    return TRUE;
}

/* The account that QEMU runs as: only root can change to it. */
static gboolean find_user(SfDaemonConfig *config, const char *user, GError **error)
{
    const char *name = user ? user : DEFAULT_USER;
    struct passwd *entry;

    config->launcher.uid = getuid();
    config->launcher.gid = getgid();
    if (geteuid() != 0) {
        return TRUE;
    }
    entry = getpwnam(name);
    if (!entry) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND,
                    "user \"%s\", which QEMU shall run as, does not exist: `useradd --system --no-create-home --shell "
                    "/usr/sbin/nologin %s`, or name another with user= in sfvmmd.conf",
                    name, name);
        return FALSE;
    }
    config->launcher.uid = entry->pw_uid;
    config->launcher.gid = entry->pw_gid;
    return TRUE;
}

static char *default_run_directory(void)
{
    return geteuid() == 0 ? g_strdup("/run/snowflock") : g_build_filename(g_get_user_runtime_dir(), "snowflock", NULL);
}

static SfDaemonConfig *config_defaults(void)
{
    SfDaemonConfig *config = g_new0(SfDaemonConfig, 1);

    config->launcher.qemu = g_strdup(SF_QEMU_DEFAULT);
    config->launcher.qemu_img = g_strdup(SF_QEMU_IMG_DEFAULT);
    config->launcher.firmware = g_strdup(SF_FIRMWARE_DEFAULT);
    config->limits = (SfLimits){
        .clones_per_ticket = 256,
        .clones_per_vm = 256,
        .clones = 512,
        .memory = host_memory() / 100 * MEMORY_SHARE_PERCENT,
    };
    config->vms = 64;
    config->pool = DEFAULT_POOL;
    config->pool_max = MAX_POOL;
    config->identify_seconds = DEFAULT_IDENTIFY_SECONDS;
    config->ticket_seconds = DEFAULT_TICKET_SECONDS;
    config->settle_ms = DEFAULT_SETTLE_MS;
    return config;
}

static gboolean read_file(SfDaemonConfig *config, GKeyFile *file, const char *path, GError **error)
{
    const TextKey texts[] = {
        { "socket", &config->socket },
        { "group", &config->group },
        { "run-directory", &config->launcher.run_directory },
        { "overlay-directory", &config->launcher.overlay_directory },
        { "qemu", &config->launcher.qemu },
        { "qemu-img", &config->launcher.qemu_img },
        { "firmware", &config->launcher.firmware },
    };
    const UintKey uints[] = {
        { "clones-per-ticket", &config->limits.clones_per_ticket, 1, SF_GP_MAX_CLONES },
        { "clones-per-vm", &config->limits.clones_per_vm, 1, G_MAXUINT16 },
        { "clones", &config->limits.clones, 1, G_MAXUINT16 },
        { "vms", &config->vms, 1, MAX_VMS },
        { "pool", &config->pool, 0, MAX_POOL },
        { "pool-max", &config->pool_max, 0, SF_GP_MAX_CLONES },
        { "identify-seconds", &config->identify_seconds, 1, MAX_SECONDS },
        { "ticket-seconds", &config->ticket_seconds, 1, MAX_SECONDS },
        { "settle-ms", &config->settle_ms, 0, MAX_SECONDS * 1000u },
    };
    g_autofree char *memory = g_key_file_get_string(file, GROUP, "memory", NULL);

    if (!check_keys(file, path, texts, G_N_ELEMENTS(texts), uints, G_N_ELEMENTS(uints), error)) {
        return FALSE;
    }
    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        char *value = g_key_file_get_string(file, GROUP, texts[i].key, NULL);
        if (value) {
            g_free(*texts[i].value);
            *texts[i].value = value;
        }
    }
    for (guint i = 0; i < G_N_ELEMENTS(uints); i++) {
        if (!read_uint(file, path, &uints[i], error)) {
            return FALSE;
        }
    }
    if (memory &&
        !g_ascii_string_to_unsigned(g_strstrip(memory), 10, 1, G_MAXUINT64 >> 20, &config->limits.memory, NULL)) {
        g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                    "\"%s\": memory=%s: a number of MiB is needed", path, memory);
        return FALSE;
    }
    if (memory) {
        config->limits.memory <<= 20;
    }
    return TRUE;
}

SfDaemonConfig *sf_daemon_config_load(const char *path, gboolean required, const char *run_directory, GError **error)
{
    g_autoptr(SfDaemonConfig) config = config_defaults();
    g_autoptr(GKeyFile) file = g_key_file_new();
    g_autoptr(GError) local = NULL;
    g_autofree char *user = NULL;

    if (!g_key_file_load_from_file(file, path, G_KEY_FILE_NONE, &local)) {
        if (required || !g_error_matches(local, G_FILE_ERROR, G_FILE_ERROR_NOENT)) {
            g_set_error(error, local->domain, local->code, "\"%s\": %s", path, local->message);
            return NULL;
        }
    } else if (!read_file(config, file, path, error)) {
        return NULL;
    }
    user = g_key_file_get_string(file, GROUP, "user", NULL);
    if (!find_user(config, user, error)) {
        return NULL;
    }
    if (run_directory) {
        g_free(config->launcher.run_directory);
        config->launcher.run_directory = g_canonicalize_filename(run_directory, NULL);
    } else if (!config->launcher.run_directory) {
        config->launcher.run_directory = default_run_directory();
    }
    if (!config->socket) {
        config->socket = g_build_filename(config->launcher.run_directory, "control.sock", NULL);
    }
    return g_steal_pointer(&config);
}

void sf_daemon_config_free(SfDaemonConfig *config)
{
    if (!config) {
        return;
    }
    g_free(config->socket);
    g_free(config->group);
    g_free(config->launcher.qemu);
    g_free(config->launcher.qemu_img);
    g_free(config->launcher.firmware);
    g_free(config->launcher.run_directory);
    g_free(config->launcher.overlay_directory);
    g_free(config);
}
