/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The descriptor as an object: its life, its bounds, and how people and programs see it. */
#include "sfvmm/descriptor/descriptor_private.h"

#include <string.h>
#include "sfvmm/descriptor/page_map.h"

#define NS_PER_SECOND 1000000000ull

static void free_block(gpointer data)
{
    SfDescriptorBlock *block = data;

    g_free(block->id);
    g_array_unref(block->present);
    g_free(block);
}

static void free_disk(gpointer data)
{
    SfDescriptorDisk *disk = data;

    g_free(disk->id);
    g_free(disk->format);
    g_free(disk->base);
    g_free(disk);
}

SfDescriptor *sf_descriptor_new(void)
{
    SfDescriptor *d = g_new0(SfDescriptor, 1);

    d->version = SF_DESCRIPTOR_VERSION;
    d->blocks = g_ptr_array_new_with_free_func(free_block);
    d->disks = g_ptr_array_new_with_free_func(free_disk);
    return d;
}

void sf_descriptor_free(SfDescriptor *d)
{
    if (!d) {
        return;
    }
    g_free(d->id);
    g_free(d->vm);
    g_strfreev(d->lineage);
    g_free(d->machine);
    g_free(d->cpu);
    g_free(d->accel);
    g_free(d->qemu_version);
    g_free(d->config_hash);
    g_ptr_array_unref(d->blocks);
    g_ptr_array_unref(d->disks);
    g_strfreev(d->page_sources);
    g_clear_pointer(&d->device_state, g_bytes_unref);
    g_free(d);
}

void sf_descriptor_add_block(SfDescriptor *descriptor, const char *id, guint64 length, GArray *present)
{
    SfDescriptorBlock *block = g_new0(SfDescriptorBlock, 1);

    block->id = g_strdup(id);
    block->length = length;
    block->present = present;
    g_ptr_array_add(descriptor->blocks, block);
}

void sf_descriptor_add_disk(SfDescriptor *descriptor, const char *id, guint64 size, const char *format,
                            const char *base)
{
    SfDescriptorDisk *disk = g_new0(SfDescriptorDisk, 1);

    disk->id = g_strdup(id);
    disk->size = size;
    disk->format = g_strdup(format);
    disk->base = g_strdup(base);
    g_ptr_array_add(descriptor->disks, disk);
}

/* ---- Bounds ---- */

gboolean sf_descriptor_invalid(GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "VM descriptor: %s", text);
    return FALSE;
}

static gboolean check_text(const char *text, const char *what, GError **error)
{
    if (!text || !*text || strlen(text) > SF_DESCRIPTOR_MAX_TEXT || !g_utf8_validate(text, -1, NULL)) {
        return sf_descriptor_invalid(error, "%s is missing, too long or not UTF-8", what);
    }
    for (const char *p = text; *p; p++) {
        if (g_ascii_iscntrl(*p)) {
            return sf_descriptor_invalid(error, "%s has control characters", what);
        }
    }
    return TRUE;
}

static gboolean check_list(const char *const *list, const char *what, GError **error)
{
    for (guint i = 0; list && list[i]; i++) {
        if (i == SF_DESCRIPTOR_MAX_LIST) {
            return sf_descriptor_invalid(error, "%s has more than %u entries", what, SF_DESCRIPTOR_MAX_LIST);
        }
        if (!check_text(list[i], what, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean check_number(guint64 value, guint64 limit, const char *what, GError **error)
{
    return (value > 0 && value <= limit) ||
           sf_descriptor_invalid(error, "%s is %" G_GUINT64_FORMAT ", not within 1..%" G_GUINT64_FORMAT, what, value,
                                 limit);
}

static gboolean check_blocks(const SfDescriptor *d, GError **error)
{
    guint runs = 0;

    if (d->blocks->len > SF_DESCRIPTOR_MAX_BLOCKS) {
        return sf_descriptor_invalid(error, "%u RAM blocks, at most %u", d->blocks->len, SF_DESCRIPTOR_MAX_BLOCKS);
    }
    for (guint i = 0; i < d->blocks->len; i++) {
        const SfDescriptorBlock *block = g_ptr_array_index(d->blocks, i);
        if (!check_text(block->id, "a block's id", error) ||
            !check_number(block->length, SF_DESCRIPTOR_MAX_LENGTH, "a block's length", error)) {
            return FALSE;
        }
        if (block->length % SF_PAGE_SIZE) {
            return sf_descriptor_invalid(error, "block %s is no whole number of pages", block->id);
        }
        if (!sf_page_map_check(block->present, block->length, error)) {
            g_prefix_error(error, "VM descriptor: block %s: ", block->id);
            return FALSE;
        }
        runs += block->present->len; /* each at most 2^32 / 16 elements: 16 of them can't wrap */
        if (runs > SF_DESCRIPTOR_MAX_RUNS) {
            return sf_descriptor_invalid(error, "page maps of more than %u runs", SF_DESCRIPTOR_MAX_RUNS);
        }
    }
    return TRUE;
}

static gboolean check_disks(const SfDescriptor *d, GError **error)
{
    if (d->disks->len > SF_DESCRIPTOR_MAX_DISKS) {
        return sf_descriptor_invalid(error, "%u disks, at most %u", d->disks->len, SF_DESCRIPTOR_MAX_DISKS);
    }
    for (guint i = 0; i < d->disks->len; i++) {
        const SfDescriptorDisk *disk = g_ptr_array_index(d->disks, i);
        if (!check_text(disk->id, "a disk's id", error) || !check_text(disk->base, "a disk's base", error) ||
            !check_text(disk->format, "a disk's format", error) ||
            !check_number(disk->size, SF_DESCRIPTOR_MAX_DISK, "a disk's size", error)) {
            return FALSE;
        }
        if (!g_str_equal(disk->format, "raw") && !g_str_equal(disk->format, "qcow2")) {
            return sf_descriptor_invalid(error, "disk %s has the unknown format %s", disk->id, disk->format);
        }
    }
    return TRUE;
}

gboolean sf_descriptor_check(const SfDescriptor *d, GError **error)
{
    if (d->version != SF_DESCRIPTOR_VERSION) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    "VM descriptor: version %u, but this program knows version %u; use the same release on all hosts",
                    d->version, SF_DESCRIPTOR_VERSION);
        return FALSE;
    }
    if (!check_text(d->id, "id", error) || !check_text(d->vm, "vm", error) ||
        !check_text(d->machine, "machine type", error) || !check_text(d->cpu, "CPU model", error) ||
        !check_text(d->accel, "accel", error) || !check_text(d->qemu_version, "QEMU's version", error) ||
        !check_text(d->config_hash, "configuration hash", error) ||
        !check_list((const char *const *)d->lineage, "lineage", error) ||
        !check_list((const char *const *)d->page_sources, "page sources", error) ||
        !check_number(d->vcpus, SF_DESCRIPTOR_MAX_VCPUS, "number of CPUs", error) ||
        !check_number(d->memory, SF_DESCRIPTOR_MAX_LENGTH, "memory", error)) {
        return FALSE;
    }
    if (!d->device_state || g_bytes_get_size(d->device_state) == 0 ||
        g_bytes_get_size(d->device_state) > SF_DESCRIPTOR_MAX_STATE) {
        return sf_descriptor_invalid(error, "device state is missing or larger than %u bytes", SF_DESCRIPTOR_MAX_STATE);
    }
    return check_blocks(d, error) && check_disks(d, error);
}

/* ---- For people and programs ---- */

static guint64 present_bytes(const SfDescriptorBlock *block)
{
    guint64 bytes = 0;

    for (guint i = 0; i < block->present->len; i++) {
        bytes += g_array_index(block->present, SfRun, i).length;
    }
    return bytes;
}

static char *created_text(const SfDescriptor *d)
{
    g_autoptr(GDateTime) time = g_date_time_new_from_unix_utc(d->created / NS_PER_SECOND);

    return time ? g_date_time_format_iso8601(time) : g_strdup("unknown");
}

static char *list_text(GStrv list, const char *none)
{
    return list && *list ? g_strjoinv(", ", list) : g_strdup(none);
}

static void append_block(GString *text, const SfDescriptorBlock *block)
{
    g_autofree char *length = g_format_size_full(block->length, G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *present = g_format_size_full(present_bytes(block), G_FORMAT_SIZE_IEC_UNITS);

    g_string_append_printf(text, "  RAM block      %s: %s, %s with content in %u runs\n", block->id, length, present,
                           block->present->len);
}

static void append_disk(GString *text, const SfDescriptorDisk *disk)
{
    g_autofree char *size = g_format_size_full(disk->size, G_FORMAT_SIZE_IEC_UNITS);

    g_string_append_printf(text, "  disk           %s: %s, %s %s\n", disk->id, size, disk->format, disk->base);
}

char *sf_descriptor_to_text(const SfDescriptor *d)
{
    GString *text = g_string_new(NULL);
    g_autofree char *created = created_text(d);
    g_autofree char *lineage = list_text(d->lineage, "none: a VM that was started, not cloned");
    g_autofree char *sources = list_text(d->page_sources, "none: only on the host that made it");
    g_autofree char *memory = g_format_size_full(d->memory, G_FORMAT_SIZE_IEC_UNITS);

    g_string_append_printf(text, "VM descriptor %s, version %u\n", d->id, d->version);
    g_string_append_printf(text, "  VM             %s\n", d->vm);
    g_string_append_printf(text, "  created        %s\n", created);
    g_string_append_printf(text, "  lineage        %s\n", lineage);
    g_string_append_printf(text, "  machine        %s, %s, QEMU %s\n", d->machine, d->accel, d->qemu_version);
    g_string_append_printf(text, "  CPUs           %u of %s\n", d->vcpus, d->cpu);
    g_string_append_printf(text, "  memory         %s\n", memory);
    g_string_append_printf(text, "  configuration  %s\n", d->config_hash);
    for (guint i = 0; i < d->blocks->len; i++) {
        append_block(text, g_ptr_array_index(d->blocks, i));
    }
    for (guint i = 0; i < d->disks->len; i++) {
        append_disk(text, g_ptr_array_index(d->disks, i));
    }
    g_string_append_printf(text, "  page sources   %s\n", sources);
    g_string_append_printf(text, "  device state   %zu bytes\n", g_bytes_get_size(d->device_state));
    return g_string_free(text, FALSE);
}

static void set_list(JsonObject *object, const char *member, GStrv list)
{
    JsonArray *array = json_array_new();

    for (char **entry = list; entry && *entry; entry++) {
        json_array_add_string_element(array, *entry);
    }
    json_object_set_array_member(object, member, array);
}

static JsonArray *blocks_to_json(const SfDescriptor *d)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < d->blocks->len; i++) {
        const SfDescriptorBlock *block = g_ptr_array_index(d->blocks, i);
        JsonObject *object = json_object_new();
        json_object_set_string_member(object, "id", block->id);
        json_object_set_int_member(object, "length", block->length);
        json_object_set_int_member(object, "present", present_bytes(block));
        json_object_set_int_member(object, "runs", block->present->len);
        json_array_add_object_element(array, object);
    }
    return array;
}

static JsonArray *disks_to_json(const SfDescriptor *d)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < d->disks->len; i++) {
        const SfDescriptorDisk *disk = g_ptr_array_index(d->disks, i);
        JsonObject *object = json_object_new();
        json_object_set_string_member(object, "id", disk->id);
        json_object_set_int_member(object, "size", disk->size);
        json_object_set_string_member(object, "format", disk->format);
        json_object_set_string_member(object, "base", disk->base);
        json_array_add_object_element(array, object);
    }
    return array;
}

JsonNode *sf_descriptor_to_json(const SfDescriptor *d)
{
    JsonNode *root = json_node_new(JSON_NODE_OBJECT);
    JsonObject *object = json_object_new();

    json_object_set_int_member(object, "version", d->version);
    json_object_set_string_member(object, "id", d->id);
    json_object_set_string_member(object, "vm", d->vm);
    json_object_set_int_member(object, "created", d->created);
    set_list(object, "lineage", d->lineage);
    json_object_set_string_member(object, "machine", d->machine);
    json_object_set_string_member(object, "accel", d->accel);
    json_object_set_string_member(object, "qemu_version", d->qemu_version);
    json_object_set_string_member(object, "config_hash", d->config_hash);
    json_object_set_string_member(object, "cpu", d->cpu);
    json_object_set_int_member(object, "vcpus", d->vcpus);
    json_object_set_int_member(object, "memory", d->memory);
    json_object_set_array_member(object, "blocks", blocks_to_json(d));
    json_object_set_array_member(object, "disks", disks_to_json(d));
    set_list(object, "page_sources", d->page_sources);
    json_object_set_int_member(object, "device_state", g_bytes_get_size(d->device_state));
    json_node_take_object(root, object);
    return root;
}
