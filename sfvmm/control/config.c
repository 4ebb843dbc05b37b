/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/config.h"

#include <errno.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

#include "libsf/wire/guest_protocol.h"
#include "sfvmm/cluster/peer.h"
#include "sfvmm/control/config_operators.h"
#include "sfvmm/control/config_quotas.h"
#include "sfvmm/net/policy.h"

#define GROUP        "sfvmmd"
#define CLUSTER      "cluster"
#define SLURM              "slurm"
#define DEFAULT_USER       "snowflock-qemu"
#define DEFAULT_PAGER_USER "snowflock-pager"
#define DEFAULT_POOL 8u
#define MAX_POOL     256u
#define MAX_VMS      4096u
#define MAX_SECONDS  86400u
#define DEFAULT_IDENTIFY_SECONDS                                                                                       \
    120u /* 32 clones at once under TCG on 2 cores answer within 2 s; a loaded host is slower */
#define DEFAULT_TICKET_SECONDS 600u
#define DEFAULT_SETTLE_MS      1000u
#define DEFAULT_CLUSTERS         64u
#define MAX_CLUSTERS             4096u
#define DEFAULT_TUNNEL_PORT      4789u       /* VXLAN's (RFC 7348) */
#define DEFAULT_LINKS            0xc6120000u /* 198.18.0.0, kept for benchmarks of network devices (RFC 2544) */
#define DEFAULT_LINKS_PREFIX     16u
#define LINKS_PREFIX_MIN         8u
#define LINKS_PREFIX_MAX         30u
#define DEFAULT_AWAY_SECONDS   60u
#define DEFAULT_WAITING          64u
#define DEFAULT_SLURM_MINUTES    60u
#define MAX_SLURM_MINUTES        527040u /* a year */
#define DEFAULT_SLURM_POLL       5u
#define MULTICAST_HOPS_MAX     255u
#define MULTICAST_MBIT_MAX     400000u
#define MEMORY_SHARE_PERCENT   80u /* of the host's RAM, for all clones' private pages */

typedef struct {
    const char *group, *key;
    guint *value;
    guint min, max;
} UintKey;

typedef struct {
    const char *group, *key;
    char **value;
} TextKey;

static guint64 host_memory(void)
{
    return (guint64)sysconf(_SC_PHYS_PAGES) * (guint64)sysconf(_SC_PAGESIZE);
}

/* Keys that need more than a text or a number. */
static const struct {
    const char *group, *key;
} special_keys[] = {
    { GROUP, "memory" },
    { GROUP, "memory-per-vm" },
    { GROUP, "memory-per-user" },
    { SLURM, "user" },
    { GROUP, "user" },
    { GROUP, "pager-user" },
    { GROUP, "cluster-links" },
    { GROUP, "cluster-kind" },
    { CLUSTER, "resource-manager" },
    { CLUSTER, "policy" },
    { CLUSTER, "page-ports" },
    { CLUSTER, "pages" },
    { CLUSTER, "complete" },
    { CLUSTER, "multicast" },
    { CLUSTER, "multicast-range" },
    { CLUSTER, "multicast-range6" },
    { CLUSTER, "multicast-push" },
    { CLUSTER, "avoid" },
};

static gboolean is_same(const char *group, const char *key, const char *known_group, const char *known_key)
{
    return strcmp(group, known_group) == 0 && strcmp(key, known_key) == 0;
}

static gboolean check_group(GKeyFile *file, const char *path, const char *group, const TextKey *texts, guint n_texts,
                            const UintKey *uints, guint n_uints, GError **error)
{
    g_auto(GStrv) keys = g_key_file_get_keys(file, group, NULL, NULL);

    for (char **key = keys; key && *key; key++) {
        gboolean known = FALSE;
        for (guint i = 0; i < G_N_ELEMENTS(special_keys); i++) {
            known |= is_same(group, *key, special_keys[i].group, special_keys[i].key);
        }
        for (guint i = 0; i < n_texts; i++) {
            known |= is_same(group, *key, texts[i].group, texts[i].key);
        }
        for (guint i = 0; i < n_uints; i++) {
            known |= is_same(group, *key, uints[i].group, uints[i].key);
        }
        if (!known) {
            g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                        "\"%s\": key \"%s\" is not known in group [%s]; see sfvmmd.conf(5)", path, *key, group);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean check_keys(GKeyFile *file, const char *path, const TextKey *texts, guint n_texts, const UintKey *uints,
                           guint n_uints, GError **error)
{
    g_auto(GStrv) groups = g_key_file_get_groups(file, NULL);

    for (char **group = groups; *group; group++) {
        if (sf_config_quotas_vm(*group) || sf_config_quotas_user(*group)) {
            continue; /* it looks at its keys itself */
        }
        if (strcmp(*group, SF_CONFIG_OPERATORS) == 0) {
            continue; /* its keys are names */
        }
        if (strcmp(*group, GROUP) != 0 && strcmp(*group, CLUSTER) != 0 && strcmp(*group, SLURM) != 0) {
            g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                        "\"%s\": group [%s] is not known; [%s], [%s], [%s], [%s], [vm NAME] and [user NAME] are", path,
                        *group, GROUP, CLUSTER, SLURM, SF_CONFIG_OPERATORS);
            return FALSE;
        }
        if (!check_group(file, path, *group, texts, n_texts, uints, n_uints, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean read_uint(GKeyFile *file, const char *path, const UintKey *key, GError **error)
{
    g_autofree char *text = g_key_file_get_string(file, key->group, key->key, NULL);
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

/* The account that a program runs as, named by that key of the file: only root can change to it. by_default NULL: ours.
 */
static gboolean find_user(GKeyFile *file, const char *group, const char *key, const char *by_default,
                          const char *program, uid_t *uid, gid_t *gid, GError **error)
{
    g_autofree char *user = g_key_file_get_string(file, group, key, NULL);
    const char *name = user ? user : by_default;
    const struct passwd *entry;

    *uid = getuid();
    *gid = getgid();
    if (geteuid() != 0 || !name) {
        return TRUE;
    }
    entry = getpwnam(name);
    if (!entry) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND,
                    "user \"%s\", which %s shall run as, does not exist: `useradd --system --no-create-home --shell "
                    "/usr/sbin/nologin %s`, or name another with %s= in sfvmmd.conf",
                    name, program, name, key);
        return FALSE;
    }
    *uid = entry->pw_uid;
    *gid = entry->pw_gid;
    return TRUE;
}

SfPagerOptions sf_daemon_config_pager(const SfDaemonConfig *config, const char *snapshot)
{
    return (SfPagerOptions){
        .binary = config->pager,
        .run_directory = config->launcher.run_directory,
        .snapshot = snapshot,
        .uid = config->pager_uid,
        .gid = config->pager_gid,
        .listen_fd = -1,
        .security = config->cluster.pages,
        .keys = config->cluster.pages_directory,
    };
}

static char *default_run_directory(void)
{
    return geteuid() == 0 ? g_strdup("/run/snowflock") : g_build_filename(g_get_user_runtime_dir(), "snowflock", NULL);
}

static char *default_state_directory(void)
{
    g_autofree char *home = NULL;

    if (geteuid() == 0) {
        return g_strdup("/var/lib/snowflock");
    }
    home = g_strdup(g_getenv("XDG_STATE_HOME"));
    return home && *home ? g_build_filename(home, "snowflock", NULL)
                         : g_build_filename(g_get_home_dir(), ".local", "state", "snowflock", NULL);
}

/* The machine's name up to its first dot, as far as it can be a host's. */
static char *default_name(void)
{
    g_autofree char *name = g_ascii_strdown(g_get_host_name(), -1);

    *strchrnul(name, '.') = '\0';
    return sf_peer_name_is_valid(name) ? g_steal_pointer(&name) : g_strdup("host");
}

static SfDaemonConfig *config_defaults(void)
{
    SfDaemonConfig *config = g_new0(SfDaemonConfig, 1);

    config->launcher.qemu = g_strdup(SF_QEMU_DEFAULT);
    config->launcher.qemu_img = g_strdup(SF_QEMU_IMG_DEFAULT);
    config->launcher.firmware = g_strdup(SF_FIRMWARE_DEFAULT);
    config->launcher.libvirt_uri = g_strdup(geteuid() == 0 ? "qemu:///system" : "qemu:///session");
    config->limits = (SfLimits){
        .clones_per_ticket = 256,
        .quotas = { .vm = { .clones = 256 } },
        .waiting = DEFAULT_WAITING,
        .clones = 512,
        .memory = host_memory() / 100 * MEMORY_SHARE_PERCENT,
    };
    config->vms = 64;
    config->pool = DEFAULT_POOL;
    config->pool_max = MAX_POOL;
    config->identify_seconds = DEFAULT_IDENTIFY_SECONDS;
    config->ticket_seconds = DEFAULT_TICKET_SECONDS;
    config->settle_ms = DEFAULT_SETTLE_MS;
    config->pager = g_strdup(SF_PAGER_DEFAULT);
    config->cluster.pages = SF_PAGER_X509;
    config->cluster.away_seconds = DEFAULT_AWAY_SECONDS;
    config->cluster.slurm.minutes = DEFAULT_SLURM_MINUTES;
    config->cluster.slurm.poll_seconds = DEFAULT_SLURM_POLL;
    sf_multicast_config_init(&config->cluster.multicast);
    config->network.bridge = geteuid() == 0;
    config->network.switch_program = g_strdup(SF_SWITCH_DEFAULT);
    config->network.clusters = DEFAULT_CLUSTERS;
    config->network.port = DEFAULT_TUNNEL_PORT;
    config->network.links = DEFAULT_LINKS;
    config->network.links_prefix = DEFAULT_LINKS_PREFIX;
    return config;
}

static gboolean set_value_error(const char *path, const char *key, const char *value, const char *needed, GError **error)
{
    g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE, "\"%s\": %s=%s: %s is needed", path, key, value,
                needed);
    return FALSE;
}

/* "A-B", ports from A to B. */
static gboolean read_ports(SfDaemonConfig *config, const char *text)
{
    g_auto(GStrv) parts = g_strsplit(text, "-", 2);
    guint64 first, last;

    if (g_strv_length(parts) != 2 || !g_ascii_string_to_unsigned(parts[0], 10, 1, G_MAXUINT16, &first, NULL) ||
        !g_ascii_string_to_unsigned(parts[1], 10, first, G_MAXUINT16, &last, NULL)) {
        return FALSE;
    }
    config->cluster.page_port_first = (guint)first;
    config->cluster.page_port_last = (guint)last;
    return TRUE;
}

static gboolean read_range(GKeyFile *file, const char *path, const char *key, gushort family, SfUdpRange *range,
                           GError **error)
{
    g_autofree char *text = g_key_file_get_string(file, CLUSTER, key, NULL);

    if (!text) {
        return TRUE;
    }
    if (!sf_udp_range_parse(g_strstrip(text), range, error)) {
        g_prefix_error(error, "\"%s\": %s: ", path, key);
        return FALSE;
    }
    return range->first.any.sa_family == family ||
           set_value_error(path, key, text, family == AF_INET ? "a range of IPv4" : "a range of IPv6", error);
}

static gboolean read_multicast(SfMulticastConfig *multicast, GKeyFile *file, const char *path, GError **error)
{
    static const char *const modes[] = { "off", "auto", "on" }; /* as in SfMulticastMode */
    g_autofree char *mode = g_key_file_get_string(file, CLUSTER, "multicast", NULL);
    g_autofree char *push = g_key_file_get_string(file, CLUSTER, "multicast-push", NULL);
    guint i = 0;

    while (mode && i < G_N_ELEMENTS(modes) && strcmp(mode, modes[i]) != 0) {
        i++;
    }
    if (i == G_N_ELEMENTS(modes)) {
        return set_value_error(path, "multicast", mode, "off, auto or on", error);
    }
    if (push && strcmp(push, "yes") != 0 && strcmp(push, "no") != 0) {
        return set_value_error(path, "multicast-push", push, "yes or no", error);
    }
    multicast->mode = mode ? (SfMulticastMode)i : multicast->mode;
    multicast->push = push ? strcmp(push, "yes") == 0 : multicast->push;
    if (multicast->max_mbit && multicast->min_mbit > multicast->max_mbit) {
        g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                    "\"%s\": multicast-min-rate=%u is more than multicast-max-rate=%u", path, multicast->min_mbit,
                    multicast->max_mbit);
        return FALSE;
    }
    return read_range(file, path, "multicast-range", AF_INET, &multicast->v4, error) &&
           read_range(file, path, "multicast-range6", AF_INET6, &multicast->v6, error);
}

static gboolean read_manager(SfDaemonConfig *config, GKeyFile *file, const char *path, GError **error)
{
    static const char *const names[] = { "local", "static", "slurm" }; /* as in SfResourceManagerName */
    g_autofree char *manager = g_key_file_get_string(file, CLUSTER, "resource-manager", NULL);

    config->cluster.manager = config->cluster.pki_directory ? SF_MANAGER_STATIC : SF_MANAGER_LOCAL;
    for (guint i = 0; manager && i < G_N_ELEMENTS(names); i++) {
        if (strcmp(manager, names[i]) == 0) {
            config->cluster.manager = (SfResourceManagerName)i;
            return TRUE;
        }
    }
    return !manager || set_value_error(path, "resource-manager", manager, "local, static or slurm", error);
}

/* control-listen= and [operators] go together, and need certificates. */
static gboolean read_operators(SfDaemonConfig *config, GKeyFile *file, const char *path, GError **error)
{
    const char *missing = NULL;

    config->cluster.operators = sf_config_operators_read(file, path, error);
    if (!config->cluster.operators) {
        return FALSE;
    }
    if (config->cluster.control_listen && g_hash_table_size(config->cluster.operators) == 0) {
        missing = "control-listen= lets nobody in without group [" SF_CONFIG_OPERATORS "], lines NAME=USER";
    } else if (config->cluster.control_listen && !config->cluster.pki_directory) {
        missing = "control-listen= needs pki-directory= in group [" CLUSTER "]; `sfctl pki host NAME` makes one";
    } else if (!config->cluster.control_listen && g_hash_table_size(config->cluster.operators) > 0) {
        missing = "group [" SF_CONFIG_OPERATORS "] is of no use without control-listen= in group [" CLUSTER "]";
    }
    if (missing) {
        g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE, "\"%s\": %s; see sfvmmd.conf(5)", path,
                    missing);
    }
    return !missing;
}

/* The keys of [cluster] that are no plain texts, and what its keys ask of each other. */
static gboolean read_cluster(SfDaemonConfig *config, GKeyFile *file, const char *path, GError **error)
{
    g_autofree char *policy = g_key_file_get_string(file, CLUSTER, "policy", NULL);
    g_autofree char *ports = g_key_file_get_string(file, CLUSTER, "page-ports", NULL);
    g_autofree char *pages = g_key_file_get_string(file, CLUSTER, "pages", NULL);
    g_autofree char *complete = g_key_file_get_string(file, CLUSTER, "complete", NULL);
    g_autofree char *avoid = g_key_file_get_string(file, CLUSTER, "avoid", NULL);

    if (!read_manager(config, file, path, error)) {
        return FALSE;
    }
    if (policy && strcmp(policy, "spread") != 0 && strcmp(policy, "pack") != 0) {
        return set_value_error(path, "policy", policy, "spread or pack", error);
    }
    if (pages && strcmp(pages, "tls") != 0 && strcmp(pages, "plain") != 0) {
        return set_value_error(path, "pages", pages, "tls or plain", error);
    }
    if (complete && strcmp(complete, "yes") != 0 && strcmp(complete, "no") != 0) {
        return set_value_error(path, "complete", complete, "yes or no", error);
    }
    config->cluster.complete = complete && strcmp(complete, "yes") == 0;
    config->cluster.avoid = SF_AVOID_ALL;
    if (avoid && !sf_avoid_parse(avoid, &config->cluster.avoid, NULL)) {
        return set_value_error(path, "avoid", avoid, "all, none, free or read", error);
    }
    if (ports && !read_ports(config, ports)) {
        return set_value_error(path, "page-ports", ports, "a range of ports like 7420-7519", error);
    }
    if (config->cluster.name && !sf_peer_name_is_valid(config->cluster.name)) {
        return set_value_error(path, "name", config->cluster.name,
                               "a name of a-z, 0-9, dots and hyphens, at most 40 of them,", error);
    }
    config->cluster.pages = pages && strcmp(pages, "plain") == 0 ? SF_PAGER_PLAIN : SF_PAGER_X509;
    if (config->cluster.pki_directory) {
        config->cluster.pages_directory = g_build_filename(config->cluster.pki_directory, "pages", NULL);
    }
    config->cluster.policy = policy && strcmp(policy, "pack") == 0 ? SF_POLICY_PACK : SF_POLICY_SPREAD;
    if (!config->cluster.pki_directory && (config->cluster.listen || config->cluster.manager == SF_MANAGER_STATIC)) {
        g_set_error(error, G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_INVALID_VALUE,
                    "\"%s\": other hosts need pki-directory= in group [%s]; `sfctl pki host NAME` makes one", path, CLUSTER);
        return FALSE;
    }
    config->cluster.multicast.origin_first = config->cluster.page_port_first;
    config->cluster.multicast.origin_last = config->cluster.page_port_last;
    return read_multicast(&config->cluster.multicast, file, path, error);
}

/* "198.18.0.0/16": a network with room for two addresses for each cluster. */
static gboolean read_links(SfDaemonConfig *config, const char *text)
{
    SfNetRule rule;

    if (!strchr(text, '/') || !sf_net_rule_parse(&rule, text, NULL) || rule.protocol != SF_NET_ANY ||
        rule.prefix < LINKS_PREFIX_MIN || rule.prefix > LINKS_PREFIX_MAX) {
        return FALSE;
    }
    config->network.links = rule.address;
    config->network.links_prefix = rule.prefix;
    return TRUE;
}

static gboolean read_file(SfDaemonConfig *config, GKeyFile *file, const char *path, GError **error)
{
    const TextKey texts[] = {
        { GROUP, "socket", &config->socket },
        { GROUP, "group", &config->group },
        { GROUP, "run-directory", &config->launcher.run_directory },
        { GROUP, "overlay-directory", &config->launcher.overlay_directory },
        { GROUP, "qemu", &config->launcher.qemu },
        { GROUP, "qemu-img", &config->launcher.qemu_img },
        { GROUP, "firmware", &config->launcher.firmware },
        { GROUP, "state-directory", &config->state_directory },
        { GROUP, "pager", &config->pager },
        { GROUP, "switch", &config->network.switch_program },
        { GROUP, "libvirt-uri", &config->launcher.libvirt_uri },
        { CLUSTER, "name", &config->cluster.name },
        { CLUSTER, "listen", &config->cluster.listen },
        { CLUSTER, "control-listen", &config->cluster.control_listen },
        { CLUSTER, "pki-directory", &config->cluster.pki_directory },
        { SLURM, "account", &config->cluster.slurm.account },
        { SLURM, "partition", &config->cluster.slurm.partition },
        { SLURM, "constraint", &config->cluster.slurm.constraint },
        { SLURM, "conf", &config->cluster.slurm.conf },
    };
    const UintKey uints[] = {
        { GROUP, "clones-per-ticket", &config->limits.clones_per_ticket, 1, SF_GP_MAX_CLONES },
        { GROUP, "clones-per-vm", &config->limits.quotas.vm.clones, 1, G_MAXUINT16 },
        { GROUP, "clones-per-user", &config->limits.quotas.user.clones, 1, G_MAXUINT16 },
        { GROUP, "tickets-per-vm", &config->limits.quotas.vm.tickets, 1, G_MAXUINT16 },
        { GROUP, "tickets-per-user", &config->limits.quotas.user.tickets, 1, G_MAXUINT16 },
        { GROUP, "waiting", &config->limits.waiting, 0, G_MAXUINT16 },
        { GROUP, "clones", &config->limits.clones, 1, G_MAXUINT16 },
        { GROUP, "vms", &config->vms, 1, MAX_VMS },
        { GROUP, "pool", &config->pool, 0, MAX_POOL },
        { GROUP, "pool-max", &config->pool_max, 0, SF_GP_MAX_CLONES },
        { GROUP, "identify-seconds", &config->identify_seconds, 1, MAX_SECONDS },
        { GROUP, "ticket-seconds", &config->ticket_seconds, 1, MAX_SECONDS },
        { GROUP, "settle-ms", &config->settle_ms, 0, MAX_SECONDS * 1000u },
        { GROUP, "clusters", &config->network.clusters, 0, MAX_CLUSTERS },
        { GROUP, "member-rate", &config->network.rate, 0, G_MAXINT32 },
        { GROUP, "cluster-port", &config->network.port, 1, G_MAXUINT16 },
        { SLURM, "minutes", &config->cluster.slurm.minutes, 1, MAX_SLURM_MINUTES },
        { SLURM, "poll-seconds", &config->cluster.slurm.poll_seconds, 1, MAX_SECONDS },
        { CLUSTER, "away-seconds", &config->cluster.away_seconds, 1, MAX_SECONDS },
        { CLUSTER, "multicast-port", &config->cluster.multicast.port, 1, G_MAXUINT16 },
        { CLUSTER, "multicast-hops", &config->cluster.multicast.hops, 1, MULTICAST_HOPS_MAX },
        { CLUSTER, "multicast-min-rate", &config->cluster.multicast.min_mbit, 1, MULTICAST_MBIT_MAX },
        { CLUSTER, "multicast-max-rate", &config->cluster.multicast.max_mbit, 1, MULTICAST_MBIT_MAX },
    };
    SfQuotaRules *quotas = &config->limits.quotas;
    g_autofree char *links = g_key_file_get_string(file, GROUP, "cluster-links", NULL);
    g_autofree char *kind = g_key_file_get_string(file, GROUP, "cluster-kind", NULL);

    if (!check_keys(file, path, texts, G_N_ELEMENTS(texts), uints, G_N_ELEMENTS(uints), error)) {
        return FALSE;
    }
    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        char *value = g_key_file_get_string(file, texts[i].group, texts[i].key, NULL);
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
    if (!sf_config_read_mib(file, path, GROUP, "memory", &config->limits.memory, error) ||
        !sf_config_read_mib(file, path, GROUP, "memory-per-vm", &quotas->vm.memory, error) ||
        !sf_config_read_mib(file, path, GROUP, "memory-per-user", &quotas->user.memory, error) ||
        !sf_config_quotas_read(quotas, file, path, error)) {
        return FALSE;
    }
    if (kind && strcmp(kind, "bridge") != 0 && strcmp(kind, "switch") != 0) {
        return set_value_error(path, "cluster-kind", kind, "bridge or switch", error);
    }
    config->network.bridge = kind ? strcmp(kind, "bridge") == 0 : config->network.bridge;
    if (links && !read_links(config, links)) {
        return set_value_error(path, "cluster-links", links, "an IPv4 network like 198.18.0.0/16", error);
    }
    return read_cluster(config, file, path, error) && read_operators(config, file, path, error);
}

SfDaemonConfig *sf_daemon_config_load(const char *path, gboolean required, const char *run_directory, GError **error)
{
    g_autoptr(SfDaemonConfig) config = config_defaults();
    g_autoptr(GKeyFile) file = g_key_file_new();
    g_autoptr(GError) local = NULL;

    if (!g_key_file_load_from_file(file, path, G_KEY_FILE_NONE, &local)) {
        if (required || !g_error_matches(local, G_FILE_ERROR, G_FILE_ERROR_NOENT)) {
            g_set_error(error, local->domain, local->code, "\"%s\": %s", path, local->message);
            return NULL;
        }
    } else if (!read_file(config, file, path, error)) {
        return NULL;
    }
    if (!find_user(file, GROUP, "user", DEFAULT_USER, "QEMU", &config->launcher.uid, &config->launcher.gid, error) ||
        !find_user(file, GROUP, "pager-user", DEFAULT_PAGER_USER, "sf-pager", &config->pager_uid, &config->pager_gid,
                   error) ||
        !find_user(file, SLURM, "user", NULL, "Slurm's commands", &config->cluster.slurm.uid,
                   &config->cluster.slurm.gid, error)) {
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
    if (!config->state_directory) {
        config->state_directory = default_state_directory();
    }
    if (!config->cluster.name) {
        config->cluster.name = default_name();
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
    g_free(config->pager);
    g_free(config->network.switch_program);
    g_free(config->cluster.pages_directory);
    g_free(config->launcher.qemu);
    g_free(config->launcher.qemu_img);
    g_free(config->launcher.firmware);
    g_free(config->launcher.run_directory);
    g_free(config->launcher.overlay_directory);
    g_free(config->launcher.libvirt_uri);
    g_free(config->state_directory);
    g_free(config->cluster.name);
    g_free(config->cluster.listen);
    g_free(config->cluster.control_listen);
    g_clear_pointer(&config->cluster.operators, g_hash_table_unref);
    g_free(config->cluster.pki_directory);
    g_free(config->cluster.slurm.account);
    g_free(config->cluster.slurm.partition);
    g_free(config->cluster.slurm.constraint);
    g_free(config->cluster.slurm.conf);
    sf_config_quotas_clear(&config->limits.quotas);
    g_free(config);
}
