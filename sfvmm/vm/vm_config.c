/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A configuration is immutable once the VM that it was made for has started; all VMs of a family share one by
 * reference. Main thread makes it, any thread may read it and drop references.
 *
 * The JSON form is that of `vm.run` without the members that name things of one VM. It is also what vm.json holds,
 * where disks have their `id` and `size` too, and a libvirt domain its `domain`, which `vm.run` does not take.
 */
#include "sfvmm/vm/vm_config.h"

#include <arpa/inet.h>
#include <gio/gio.h>
#include <string.h>
#include "sfvmm/disk/disk.h"
#include "sfvmm/vm/domain_portable.h"
#include "sfvmm/vm/domain_xml.h"

#define PAGE_BYTES          4096u
#define MEMORY_DEFAULT      (256ull << 20) /* bytes; boots a small Debian */
#define APPEND_LENGTH_MAX   2047u          /* the kernel's COMMAND_LINE_SIZE on x86, less its NUL */
#define CPU_LENGTH_MAX      1024u
#define CLUSTER_ADDRESS     "10.77.0.1/16" /* when none is given: clusters may all have the same */
#define PREFIX_MIN          8u             /* of a cluster's subnet */
#define PREFIX_MAX          30u
#define OUTSIDE_MAX         64u  /* rules, and characters of one; sfvmm/net/policy.h has the same */
#define OUTSIDE_LENGTH_MAX  255u
#define CONFIG_HASH_VERSION "snowflock-config-1" /* change it when the command line changes what the guest sees */

static void disk_config_free(gpointer data)
{
    SfDiskConfig *disk = data;

    g_free(disk->id);
    g_free(disk->path);
    g_free(disk->format);
    g_free(disk);
}

gboolean sf_vm_config_has_cluster(const SfVmConfig *config)
{
    return strcmp(config->network, "cluster") == 0;
}

SfVmConfig *sf_vm_config_ref(SfVmConfig *config)
{
    g_atomic_ref_count_inc(&config->refs);
    return config;
}

void sf_vm_config_unref(SfVmConfig *config)
{
    if (!config || !g_atomic_ref_count_dec(&config->refs)) {
        return;
    }
    g_free(config->accel);
    g_free(config->cpu);
    g_free(config->kernel);
    g_free(config->initrd);
    g_free(config->append);
    g_free(config->network);
    g_strfreev(config->outside);
    g_free(config->uri);
    g_free(config->domain_xml);
    g_ptr_array_unref(config->disks);
    g_free(config);
}

G_GNUC_PRINTF(2, 3)
static gboolean fail(GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, text);
    return FALSE;
}

/* Takes one member; *value stays as it is when the member is absent. */
static gboolean take_integer(JsonNode *node, const char *name, guint64 min, guint64 max, guint64 *value, GError **error)
{
    gint64 number;

    if (json_node_get_value_type(node) != G_TYPE_INT64) {
        return fail(error, "\"%s\" must be an integer", name);
    }
    number = json_node_get_int(node);
    if (number < 0 || (guint64)number < min || (guint64)number > max) {
        return fail(error, "\"%s\" is %" G_GINT64_FORMAT ", must be from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT,
                    name, number, min, max);
    }
    *value = number;
    return TRUE;
}

static gboolean take_boolean(JsonNode *node, const char *name, gboolean *value, GError **error)
{
    if (json_node_get_value_type(node) != G_TYPE_BOOLEAN) {
        return fail(error, "\"%s\" must be true or false", name);
    }
    *value = json_node_get_boolean(node);
    return TRUE;
}

/* Control characters are refused: these texts reach logs, terminals and QEMU's command line. */
static gboolean take_text(JsonNode *node, const char *name, gsize max, char **value, GError **error)
{
    const char *text;

    if (json_node_get_value_type(node) != G_TYPE_STRING) {
        return fail(error, "\"%s\" must be a string", name);
    }
    text = json_node_get_string(node);
    if (strlen(text) > max) {
        return fail(error, "\"%s\" is longer than %" G_GSIZE_FORMAT " bytes", name, max);
    }
    for (const char *p = text; *p; p++) {
        if (g_ascii_iscntrl(*p)) {
            return fail(error, "\"%s\" has a control character", name);
        }
    }
    g_free(*value);
    *value = g_strdup(text);
    return TRUE;
}

static gboolean take_path(JsonNode *node, const char *name, char **value, GError **error)
{
    if (!take_text(node, name, PATH_MAX - 1, value, error)) {
        return FALSE;
    }
    return g_path_is_absolute(*value) || fail(error, "\"%s\" must be an absolute path, not \"%s\"", name, *value);
}

static gboolean take_choice(JsonNode *node, const char *name, const char *const *choices, char **value, GError **error)
{
    g_autofree char *all = NULL;

    if (!take_text(node, name, PATH_MAX - 1, value, error)) {
        return FALSE;
    }
    all = g_strjoinv(", ", (char **)choices);
    return g_strv_contains(choices, *value) || fail(error, "\"%s\" is \"%s\", must be one of: %s", name, *value, all);
}

static gboolean take_disk_member(SfDiskConfig *disk, const char *member, JsonNode *node, GError **error)
{
    static const char *const formats[] = { "raw", "qcow2", SF_DISK_FORMAT_NBD, NULL };

    if (strcmp(member, "path") == 0) {
        /* A read-only disk of a family whose VM is on another host; vm.run finds no image there, and refuses it. */
        if (json_node_get_value_type(node) == G_TYPE_STRING && g_str_has_prefix(json_node_get_string(node), "nbd+unix:")) {
            return take_text(node, "disks.path", PATH_MAX - 1, &disk->path, error);
        }
        return take_path(node, "disks.path", &disk->path, error);
    }
    if (strcmp(member, "format") == 0) {
        return take_choice(node, "disks.format", formats, &disk->format, error);
    }
    if (strcmp(member, "readonly") == 0) {
        return take_boolean(node, "disks.readonly", &disk->readonly, error);
    }
    if (strcmp(member, "ephemeral") == 0) {
        return take_boolean(node, "disks.ephemeral", &disk->ephemeral, error);
    }
    if (strcmp(member, "size") == 0) {
        return take_integer(node, "disks.size", 0, G_MAXINT64, &disk->size, error);
    }
    if (strcmp(member, "id") == 0) {
        g_autofree char *id = NULL;
        return take_text(node, "disks.id", strlen(disk->id), &id, error) &&
               (strcmp(id, disk->id) == 0 ||
                fail(error, "\"disks.id\" is \"%s\", must be \"%s\" by its place", id, disk->id));
    }
    return fail(error, "unknown member \"disks.%s\"", member);
}

SfDiskConfig *sf_vm_config_add_disk(SfVmConfig *config)
{
    SfDiskConfig *disk = g_new0(SfDiskConfig, 1);

    disk->id = g_strdup_printf("disk%u", config->disks->len);
    g_ptr_array_add(config->disks, disk);
    return disk;
}

static gboolean take_disk(SfVmConfig *config, JsonNode *node, GError **error)
{
    SfDiskConfig *disk;
    g_autoptr(GList) members = NULL;
    JsonObject *object;

    if (!JSON_NODE_HOLDS_OBJECT(node)) {
        return fail(error, "each of \"disks\" must be an object");
    }
    object = json_node_get_object(node);
    disk = sf_vm_config_add_disk(config);
    members = json_object_get_members(object);
    for (GList *m = members; m; m = m->next) {
        if (!take_disk_member(disk, m->data, json_object_get_member(object, m->data), error)) {
            return FALSE;
        }
    }
    if (!disk->path) {
        return fail(error, "\"disks.path\" is missing");
    }
    if (g_strcmp0(disk->format, SF_DISK_FORMAT_NBD) == 0 && !(disk->readonly && g_str_has_prefix(disk->path, "nbd+unix:"))) {
        return fail(error, "disk \"%s\" of format nbd must be read-only, and a URI of a unix socket", disk->path);
    }
    return !(disk->readonly && disk->ephemeral) ||
           fail(error, "disk \"%s\" can't be \"readonly\" and \"ephemeral\" at once", disk->path);
}

static gboolean take_disks(SfVmConfig *config, JsonNode *node, GError **error)
{
    JsonArray *array;

    if (!JSON_NODE_HOLDS_ARRAY(node)) {
        return fail(error, "\"disks\" must be an array");
    }
    array = json_node_get_array(node);
    if (json_array_get_length(array) > SF_VM_DISKS_MAX) {
        return fail(error, "\"disks\" has %u entries, at most %u are possible", json_array_get_length(array),
                    SF_VM_DISKS_MAX);
    }
    for (guint i = 0; i < json_array_get_length(array); i++) {
        if (!take_disk(config, json_array_get_element(array, i), error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* "10.77.0.1/16": neither the subnet's first address nor its last two, which are the gateway's and for all. */
static gboolean parse_address(SfVmConfig *config, const char *text, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(text, "/", 2);
    struct in_addr address;
    guint64 prefix;
    guint32 host, hosts;

    if (!parts[0] || !parts[1] || inet_pton(AF_INET, parts[0], &address) != 1 ||
        !g_ascii_string_to_unsigned(parts[1], 10, PREFIX_MIN, PREFIX_MAX, &prefix, NULL)) {
        return fail(error, "\"address\" is \"%s\", must be an IPv4 address and a prefix from /%u to /%u", text, PREFIX_MIN,
                    PREFIX_MAX);
    }
    hosts = G_MAXUINT32 >> prefix;
    host = ntohl(address.s_addr) & hosts;
    if (host == 0 || host >= hosts - 1) {
        return fail(error, "\"address\" is \"%s\": the first and the last two addresses of a subnet can't be a VM's", text);
    }
    config->address = ntohl(address.s_addr);
    config->prefix = (guint)prefix;
    return TRUE;
}

static gboolean take_address(SfVmConfig *config, JsonNode *node, GError **error)
{
    g_autofree char *text = NULL;

    return take_text(node, "address", INET_ADDRSTRLEN + 3, &text, error) && parse_address(config, text, error);
}

static gboolean take_outside(SfVmConfig *config, JsonNode *node, GError **error)
{
    g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
    JsonArray *array = JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    if (!array || json_array_get_length(array) > OUTSIDE_MAX) {
        return fail(error, "\"outside\" must be an array of at most %u rules", OUTSIDE_MAX);
    }
    for (guint i = 0; i < json_array_get_length(array); i++) {
        g_autofree char *rule = NULL;
        if (!take_text(json_array_get_element(array, i), "outside", OUTSIDE_LENGTH_MAX, &rule, error)) {
            return FALSE;
        }
        g_strv_builder_add(builder, rule);
    }
    g_strfreev(config->outside);
    config->outside = g_strv_builder_end(builder);
    return TRUE;
}

/* What the members about networks ask of each other. */
static gboolean complete_network(SfVmConfig *config, GError **error)
{
    if (sf_vm_config_has_cluster(config)) {
        return config->address || parse_address(config, CLUSTER_ADDRESS, error);
    }
    if (config->address || config->outside) {
        return fail(error, "\"%s\" needs \"network\" to be \"cluster\"", config->address ? "address" : "outside");
    }
    return TRUE;
}

/* {"uri", "xml"}: libvirt reads the XML, we only bound it. */
static gboolean take_domain(SfVmConfig *config, JsonNode *node, GError **error)
{
    JsonObject *object = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    const char *xml = object ? json_object_get_string_member_with_default(object, "xml", NULL) : NULL;
    JsonNode *uri = object ? json_object_get_member(object, "uri") : NULL;

    if (!xml || strlen(xml) > SF_DOMAIN_XML_MAX || !uri) {
        return fail(error, "\"domain\" must have a \"uri\", and an \"xml\" of at most %u bytes", SF_DOMAIN_XML_MAX);
    }
    g_free(config->domain_xml);
    config->domain_xml = g_strdup(xml);
    return take_text(uri, "domain.uri", PATH_MAX - 1, &config->uri, error);
}

static gboolean is_of_network(const char *member)
{
    static const char *const members[] = { "network", "address", "outside", NULL };

    return g_strv_contains(members, member);
}

static gboolean take_network_member(SfVmConfig *config, const char *member, JsonNode *node, GError **error)
{
    static const char *const networks[] = { "none", "user", "cluster", NULL };

    if (strcmp(member, "network") == 0) {
        return take_choice(node, member, networks, &config->network, error);
    }
    return strcmp(member, "address") == 0 ? take_address(config, node, error) : take_outside(config, node, error);
}

static gboolean take_member(SfVmConfig *config, const char *member, JsonNode *node, GError **error)
{
    static const char *const accels[] = { "auto", "kvm", "tcg", NULL };

    if (is_of_network(member)) {
        return take_network_member(config, member, node, error);
    }
    if (strcmp(member, "memory") == 0) {
        return take_integer(node, member, SF_VM_MEMORY_MIN, SF_VM_MEMORY_MAX, &config->memory, error) &&
               (config->memory % PAGE_BYTES == 0 ||
                fail(error, "\"memory\" must be a multiple of %u bytes", PAGE_BYTES));
    }
    if (strcmp(member, "vcpus") == 0) {
        guint64 vcpus = 0;
        gboolean ok = take_integer(node, member, 1, SF_VM_VCPUS_MAX, &vcpus, error);
        config->vcpus = vcpus;
        return ok;
    }
    if (strcmp(member, "accel") == 0) {
        return take_choice(node, member, accels, &config->accel, error);
    }
    if (strcmp(member, "cpu") == 0) {
        return take_text(node, member, CPU_LENGTH_MAX, &config->cpu, error) &&
               ((config->cpu[0] && config->cpu[0] != '-' && !strchr(config->cpu, ' ')) ||
                fail(error, "\"cpu\" must be a CPU model of QEMU, with features perhaps"));
    }
    if (strcmp(member, "kernel") == 0) {
        return take_path(node, member, &config->kernel, error);
    }
    if (strcmp(member, "initrd") == 0) {
        return take_path(node, member, &config->initrd, error);
    }
    if (strcmp(member, "append") == 0) {
        return take_text(node, member, APPEND_LENGTH_MAX, &config->append, error);
    }
    if (strcmp(member, "disks") == 0) {
        return take_disks(config, node, error);
    }
    return fail(error, "unknown member \"%s\"", member);
}

SfVmConfig *sf_vm_config_new(void)
{
    SfVmConfig *config = g_new0(SfVmConfig, 1);

    g_atomic_ref_count_init(&config->refs);
    config->memory = MEMORY_DEFAULT;
    config->vcpus = 1;
    config->accel = g_strdup("auto");
    config->network = g_strdup("none");
    config->disks = g_ptr_array_new_with_free_func(disk_config_free);
    return config;
}

gboolean sf_vm_config_set_network(SfVmConfig *config, JsonObject *members, GError **error)
{
    g_autoptr(GList) names = json_object_get_members(members);

    for (GList *m = names; m; m = m->next) {
        if (!is_of_network(m->data)) {
            return fail(error, "unknown member \"%s\"", (const char *)m->data);
        }
        if (!take_network_member(config, m->data, json_object_get_member(members, m->data), error)) {
            return FALSE;
        }
    }
    return complete_network(config, error);
}

static SfVmConfig *config_from_json(JsonObject *object, gboolean may_be_domain, GError **error)
{
    g_autoptr(SfVmConfig) config = sf_vm_config_new();
    g_autoptr(GList) members = json_object_get_members(object);

    for (GList *m = members; m; m = m->next) {
        JsonNode *node = json_object_get_member(object, m->data);
        if (may_be_domain && strcmp(m->data, "domain") == 0 ? !take_domain(config, node, error)
                                                           : !take_member(config, m->data, node, error)) {
            return NULL;
        }
    }
    if (!config->kernel && (config->initrd || config->append)) {
        fail(error, "\"%s\" needs a \"kernel\"", config->initrd ? "initrd" : "append");
        return NULL;
    }
    if (!config->kernel && config->disks->len == 0 && !config->domain_xml) {
        fail(error, "nothing to boot: give a \"kernel\" or a bootable one of \"disks\"");
        return NULL;
    }
    if (!complete_network(config, error)) {
        return NULL;
    }
    return g_steal_pointer(&config);
}

SfVmConfig *sf_vm_config_from_json(JsonObject *object, GError **error)
{
    return config_from_json(object, FALSE, error);
}

SfVmConfig *sf_vm_config_restore(JsonObject *object, GError **error)
{
    return config_from_json(object, TRUE, error);
}

SfVmConfig *sf_vm_config_from_peer(JsonObject *object, GError **error)
{
    g_autoptr(SfVmConfig) config = config_from_json(object, TRUE, error);

    if (config && config->domain_xml &&
        !sf_domain_portable_check(config->domain_xml, config->address, config->memory, config->vcpus,
                                  config->disks->len, config->accel, error)) {
        return NULL;
    }
    return g_steal_pointer(&config);
}

static void add_text(JsonObject *object, const char *member, const char *text)
{
    if (text) {
        json_object_set_string_member(object, member, text);
    }
}

static void add_network(JsonObject *object, const SfVmConfig *config)
{
    JsonArray *outside;

    add_text(object, "network", config->network);
    if (config->address) {
        g_autofree char *address =
            g_strdup_printf("%u.%u.%u.%u/%u", config->address >> 24, config->address >> 16 & 0xff,
                            config->address >> 8 & 0xff, config->address & 0xff, config->prefix);
        json_object_set_string_member(object, "address", address);
    }
    if (config->outside) {
        outside = json_array_new();
        for (char **rule = config->outside; *rule; rule++) {
            json_array_add_string_element(outside, *rule);
        }
        json_object_set_array_member(object, "outside", outside);
    }
}

JsonObject *sf_vm_config_network_check(JsonObject *members, guint32 *address, GError **error)
{
    g_autoptr(SfVmConfig) config = sf_vm_config_new();
    JsonObject *object;

    if (!sf_vm_config_set_network(config, members, error)) {
        return NULL;
    }
    if (address) {
        *address = config->address;
    }
    object = json_object_new();
    add_network(object, config);
    return object;
}

gboolean sf_vm_config_is_portable(const SfVmConfig *config, GError **error)
{
    g_autofree char *domain =
        config->domain_xml ? sf_domain_portable(config->domain_xml, config->address, error) : NULL;

    return !config->domain_xml || domain;
}

JsonObject *sf_vm_config_to_portable_json(const SfVmConfig *config)
{
    JsonObject *object = sf_vm_config_to_json(config);
    JsonArray *disks = json_object_get_array_member(object, "disks");

    if (config->kernel) {
        json_object_set_string_member(object, "kernel", "/kernel");
    }
    json_object_remove_member(object, "initrd");
    json_object_remove_member(object, "append");
    for (guint i = 0; i < json_array_get_length(disks); i++) {
        json_object_set_string_member(json_array_get_object_element(disks, i), "path", "/disk");
        json_object_set_string_member(json_array_get_object_element(disks, i), "format", "raw"); /* how it is served */
    }
    if (config->domain_xml) {
        g_autofree char *xml = sf_domain_portable(config->domain_xml, config->address, NULL);
        JsonObject *domain = json_object_get_object_member(object, "domain");
        json_object_set_string_member(domain, "uri", ""); /* the other host has one of its own */
        json_object_set_string_member(domain, "xml", xml ? xml : "");
    }
    return object;
}

JsonObject *sf_vm_config_to_json(const SfVmConfig *config)
{
    JsonObject *object = json_object_new();
    JsonArray *disks = json_array_new();

    json_object_set_int_member(object, "memory", config->memory);
    json_object_set_int_member(object, "vcpus", config->vcpus);
    add_text(object, "accel", config->accel);
    add_text(object, "cpu", config->cpu);
    add_text(object, "kernel", config->kernel);
    add_text(object, "initrd", config->initrd);
    add_text(object, "append", config->append);
    add_network(object, config);
    if (config->domain_xml) {
        JsonObject *domain = json_object_new();
        add_text(domain, "uri", config->uri);
        add_text(domain, "xml", config->domain_xml);
        json_object_set_object_member(object, "domain", domain);
    }
    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        JsonObject *entry = json_object_new();
        add_text(entry, "id", disk->id);
        add_text(entry, "path", disk->path);
        add_text(entry, "format", disk->format);
        json_object_set_boolean_member(entry, "readonly", disk->readonly);
        json_object_set_boolean_member(entry, "ephemeral", disk->ephemeral);
        json_object_set_int_member(entry, "size", disk->size);
        json_array_add_object_element(disks, entry);
    }
    json_object_set_array_member(object, "disks", disks);
    return object;
}

/*
 * Not in it: kernel, initrd, append (they are in the guest's RAM by then; shells have none), and the paths of disks
 * (each VM has its own). No text has a newline, so that no two lists of fields look alike.
 */
char *sf_vm_config_hash(const SfVmConfig *config, const char *qemu_version)
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    g_autoptr(GString) text = g_string_new(CONFIG_HASH_VERSION);

    g_string_append_printf(text, "\nqemu %s\nmemory %" G_GUINT64_FORMAT "\nvcpus %u\naccel %s\ncpu %s\nnetwork %s\n",
                           qemu_version, config->memory, config->vcpus, config->accel, config->cpu ? config->cpu : "",
                           config->network);
    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        g_string_append_printf(text, "disk %s %" G_GUINT64_FORMAT " %s\n", disk->id, disk->size,
                               disk->readonly ? "readonly" : "writable");
    }
    if (config->domain_xml) {
        g_autofree char *portable =
            sf_domain_portable(config->domain_xml, config->address, NULL); /* the same on every host */
        g_autofree char *domain =
            g_compute_checksum_for_string(G_CHECKSUM_SHA256, portable ? portable : config->domain_xml, -1);
        g_string_append_printf(text, "domain %s\n", domain);
    }
    g_checksum_update(sum, (const guchar *)text->str, text->len);
    return g_strdup(g_checksum_get_string(sum));
}
