/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * snapshot.json is read member by member; what is unknown, missing, repeated, of another type or out of bounds is an
 * error that names it. File names are plain names: whoever wrote the file can point at nothing outside of its directory,
 * and symbolic links in it are not followed.
 *
 * Sizes are looked at whenever it is read; checksums of the small files whenever they are used; those of memory and
 * disks when somebody asks (load), as a clone that starts at once can't wait until gigabytes have been read.
 */
#include "sfvmm/store/saved.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "sfvmm/store/sha256.h"
#include "sfvmm/wire/json_line.h"

#define FORMAT_NAME "snowflock-snapshot"
#define BLOCK_BYTES 512u /* of st_blocks */

/* ---- the object ---- */

static void file_clear(SfSavedFile *file)
{
    g_free(file->name);
    g_free(file->sha256);
}

static void block_free(gpointer data)
{
    SfSavedBlock *block = data;

    file_clear(&block->file);
    g_free(block->id);
    g_free(block);
}

static void disk_free(gpointer data)
{
    SfSavedDisk *disk = data;

    file_clear(&disk->file);
    g_free(disk->id);
    g_free(disk);
}

SfSaved *sf_saved_new(void)
{
    SfSaved *saved = g_new0(SfSaved, 1);

    saved->blocks = g_ptr_array_new_with_free_func(block_free);
    saved->disks = g_ptr_array_new_with_free_func(disk_free);
    return saved;
}

void sf_saved_free(SfSaved *saved)
{
    if (saved) {
        g_ptr_array_unref(saved->blocks);
        g_ptr_array_unref(saved->disks);
        file_clear(&saved->descriptor);
        g_clear_pointer(&saved->machine, json_object_unref);
        g_free(saved->memory_uri);
        g_free(saved->directory);
        g_free(saved->id);
        g_free(saved->vm);
        g_free(saved);
    }
}

SfSavedBlock *sf_saved_add_block(SfSaved *saved, const char *id, guint64 length)
{
    SfSavedBlock *block = g_new0(SfSavedBlock, 1);

    block->id = g_strdup(id);
    block->file.size = length;
    g_ptr_array_add(saved->blocks, block);
    return block;
}

SfSavedDisk *sf_saved_add_disk(SfSaved *saved, const char *id, guint64 size, gboolean readonly)
{
    SfSavedDisk *disk = g_new0(SfSavedDisk, 1);

    disk->id = g_strdup(id);
    disk->size = size;
    disk->readonly = readonly;
    g_ptr_array_add(saved->disks, disk);
    return disk;
}

gboolean sf_saved_name_is_valid(const char *name)
{
    gsize length = strlen(name);

    return length >= 1 && length <= SF_SAVED_NAME_MAX && g_ascii_isalnum(name[0]) &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") == length;
}

char *sf_saved_path(const SfSaved *saved, const SfSavedFile *file)
{
    return g_build_filename(saved->directory, file->name, NULL);
}

/* ---- writing ---- */

static void add_file(JsonObject *object, const SfSavedFile *file)
{
    json_object_set_string_member(object, "file", file->name);
    json_object_set_int_member(object, "bytes", (gint64)file->size);
    json_object_set_string_member(object, "sha256", file->sha256);
}

char *sf_saved_format(const SfSaved *saved, gsize *length)
{
    g_autoptr(JsonObject) root = json_object_new();
    g_autoptr(JsonGenerator) generator = json_generator_new();
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_OBJECT);
    JsonObject *descriptor = json_object_new();
    JsonArray *blocks = json_array_new(), *disks = json_array_new();

    json_object_set_string_member(root, "format", FORMAT_NAME);
    json_object_set_int_member(root, "version", SF_SAVED_VERSION);
    json_object_set_string_member(root, "id", saved->id);
    json_object_set_string_member(root, "vm", saved->vm);
    json_object_set_int_member(root, "created", (gint64)saved->created);
    json_object_set_boolean_member(root, "agent", saved->agent);
    json_object_set_int_member(root, "request", (gint64)saved->request);
    json_object_set_int_member(root, "device_length", (gint64)saved->device_length);
    json_object_set_object_member(root, "machine", json_object_ref(saved->machine));
    add_file(descriptor, &saved->descriptor);
    json_object_set_object_member(root, "descriptor", descriptor);
    for (guint i = 0; i < saved->blocks->len; i++) {
        const SfSavedBlock *block = g_ptr_array_index(saved->blocks, i);
        JsonObject *object = json_object_new();
        json_object_set_string_member(object, "id", block->id);
        add_file(object, &block->file);
        json_array_add_object_element(blocks, object);
    }
    json_object_set_array_member(root, "blocks", blocks);
    for (guint i = 0; i < saved->disks->len; i++) {
        const SfSavedDisk *disk = g_ptr_array_index(saved->disks, i);
        JsonObject *object = json_object_new();
        json_object_set_string_member(object, "id", disk->id);
        json_object_set_int_member(object, "size", (gint64)disk->size);
        json_object_set_boolean_member(object, "readonly", disk->readonly);
        add_file(object, &disk->file);
        json_array_add_object_element(disks, object);
    }
    json_object_set_array_member(root, "disks", disks);
    json_node_set_object(node, root);
    json_generator_set_root(generator, node);
    json_generator_set_pretty(generator, TRUE); /* people read it */
    return json_generator_to_data(generator, length);
}

/* ---- reading ---- */

G_GNUC_PRINTF(2, 3)
static gboolean fail(GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, SF_SAVED_JSON ": %s", text);
    return FALSE;
}

/* Has the object these members (NULL-terminated), and no others? */
static gboolean check_members(JsonObject *object, const char *what, const char *const *members, GError **error)
{
    g_autoptr(GList) all = json_object_get_members(object);

    for (GList *item = all; item; item = item->next) {
        if (!g_strv_contains(members, item->data)) {
            return fail(error, "%s: unknown member \"%.64s\"", what, (const char *)item->data);
        }
    }
    for (; *members; members++) {
        if (!json_object_has_member(object, *members)) {
            return fail(error, "%s: \"%s\" is missing", what, *members);
        }
    }
    return TRUE;
}

static gboolean take_int(JsonObject *object, const char *member, guint64 limit, guint64 *value, GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (json_node_get_value_type(node) != G_TYPE_INT64 || json_node_get_int(node) < 0 ||
        (guint64)json_node_get_int(node) > limit) {
        return fail(error, "\"%s\" is no integer from 0 to %" G_GUINT64_FORMAT, member, limit);
    }
    *value = (guint64)json_node_get_int(node);
    return TRUE;
}

static gboolean take_bool(JsonObject *object, const char *member, gboolean *value, GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (json_node_get_value_type(node) != G_TYPE_BOOLEAN) {
        return fail(error, "\"%s\" is neither true nor false", member);
    }
    *value = json_node_get_boolean(node);
    return TRUE;
}

/* Printable ASCII, 1 to max bytes: names, which reach logs, terminals and QEMU. */
static gboolean take_text(JsonObject *object, const char *member, gsize max, char **value, GError **error)
{
    JsonNode *node = json_object_get_member(object, member);
    const char *text = json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : "";

    for (const char *p = text; *p; p++) {
        if (!g_ascii_isgraph(*p)) {
            return fail(error, "\"%s\" has a byte that is not printable", member);
        }
    }
    if (!*text || strlen(text) > max) {
        return fail(error, "\"%s\" is no text of 1 to %" G_GSIZE_FORMAT " bytes", member, max);
    }
    *value = g_strdup(text);
    return TRUE;
}

static gboolean take_file(JsonObject *object, SfSavedFile *file, guint64 limit, GError **error)
{
    if (!take_text(object, "file", SF_SAVED_FILE_MAX, &file->name, error) ||
        !take_int(object, "bytes", limit, &file->size, error) ||
        !take_text(object, "sha256", SF_SAVED_SHA256_LEN, &file->sha256, error)) {
        return FALSE;
    }
    if (!g_ascii_isalnum(file->name[0]) ||
        strspn(file->name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != strlen(file->name)) {
        return fail(error, "\"%s\" is not allowed as the name of a file", file->name);
    }
    if (strlen(file->sha256) != SF_SAVED_SHA256_LEN || strspn(file->sha256, "0123456789abcdef") != SF_SAVED_SHA256_LEN) {
        return fail(error, "file \"%s\": \"sha256\" is no checksum", file->name);
    }
    return TRUE;
}

static JsonObject *element(JsonArray *array, guint i, const char *what, GError **error)
{
    JsonNode *node = json_array_get_element(array, i);

    if (!JSON_NODE_HOLDS_OBJECT(node)) {
        fail(error, "%s %u is no object", what, i);
        return NULL;
    }
    return json_node_get_object(node);
}

static JsonArray *take_array(JsonObject *object, const char *member, guint max, GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (!JSON_NODE_HOLDS_ARRAY(node) || json_array_get_length(json_node_get_array(node)) > max) {
        fail(error, "\"%s\" is no array of at most %u", member, max);
        return NULL;
    }
    return json_node_get_array(node);
}

static gboolean take_blocks(SfSaved *saved, JsonObject *root, GError **error)
{
    static const char *const members[] = { "id", "file", "bytes", "sha256", NULL };
    JsonArray *array = take_array(root, "blocks", SF_DESCRIPTOR_MAX_BLOCKS, error);

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonObject *object = element(array, i, "block", error);
        g_autofree char *id = NULL;
        if (!object || !check_members(object, "block", members, error) ||
            !take_text(object, "id", SF_SAVED_FILE_MAX, &id, error)) {
            return FALSE;
        }
        if (!take_file(object, &sf_saved_add_block(saved, id, 0)->file, SF_DESCRIPTOR_MAX_LENGTH, error)) {
            return FALSE;
        }
    }
    return array && (saved->blocks->len > 0 || fail(error, "it has no memory blocks"));
}

static gboolean take_disks(SfSaved *saved, JsonObject *root, GError **error)
{
    static const char *const members[] = { "id", "size", "readonly", "file", "bytes", "sha256", NULL };
    JsonArray *array = take_array(root, "disks", SF_DESCRIPTOR_MAX_DISKS, error);

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonObject *object = element(array, i, "disk", error);
        g_autofree char *id = NULL;
        g_autofree char *expected = g_strdup_printf("disk%u", i);
        guint64 size;
        gboolean readonly = FALSE;
        if (!object || !check_members(object, "disk", members, error) ||
            !take_text(object, "id", SF_SAVED_FILE_MAX, &id, error) ||
            !take_int(object, "size", SF_DESCRIPTOR_MAX_DISK, &size, error) ||
            !take_bool(object, "readonly", &readonly, error)) {
            return FALSE;
        }
        if (strcmp(id, expected) != 0 || size == 0) {
            return fail(error, "disk %u has the id \"%s\" and %" G_GUINT64_FORMAT " bytes", i, id, size);
        }
        if (!take_file(object, &sf_saved_add_disk(saved, id, size, readonly)->file, SF_DESCRIPTOR_MAX_DISK, error)) {
            return FALSE;
        }
    }
    return array != NULL;
}

static gboolean take_machine(SfSaved *saved, JsonObject *root, GError **error)
{
    static const char *const members[] = { "memory", "vcpus", "accel", "cpu", "network", NULL };
    JsonNode *node = json_object_get_member(root, "machine");

    if (!JSON_NODE_HOLDS_OBJECT(node)) {
        return fail(error, "\"machine\" is no object");
    }
    if (!check_members(json_node_get_object(node), "machine", members, error)) {
        return FALSE;
    }
    saved->machine = json_object_ref(json_node_get_object(node)); /* vm_config.c checks the values */
    return TRUE;
}

/* Two files of one name would be one file. */
static gboolean check_file_names(const SfSaved *saved, GError **error)
{
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);

    g_hash_table_add(names, (char *)SF_SAVED_JSON);
    if (!g_hash_table_add(names, saved->descriptor.name)) {
        return fail(error, "file \"%s\" stands for two things", saved->descriptor.name);
    }
    for (guint i = 0; i < saved->blocks->len + saved->disks->len; i++) {
        char *name = i < saved->blocks->len
                         ? ((SfSavedBlock *)g_ptr_array_index(saved->blocks, i))->file.name
                         : ((SfSavedDisk *)g_ptr_array_index(saved->disks, i - saved->blocks->len))->file.name;
        if (!g_hash_table_add(names, name)) {
            return fail(error, "file \"%s\" stands for two things", name);
        }
    }
    return TRUE;
}

static gboolean check_version(JsonObject *root, GError **error)
{
    JsonNode *format = json_object_get_member(root, "format");
    JsonNode *version = json_object_get_member(root, "version");

    if (!format || json_node_get_value_type(format) != G_TYPE_STRING ||
        strcmp(json_node_get_string(format), FORMAT_NAME) != 0 || !version ||
        json_node_get_value_type(version) != G_TYPE_INT64) {
        return fail(error, "it is no saved snapshot");
    }
    if (json_node_get_int(version) != SF_SAVED_VERSION) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    SF_SAVED_JSON ": version %" G_GINT64_FORMAT " of the format, this sfvmmd reads version %u",
                    json_node_get_int(version), SF_SAVED_VERSION);
        return FALSE;
    }
    return TRUE;
}

SfSaved *sf_saved_parse(const char *text, gsize length, GError **error)
{
    static const char *const members[] = { "format",        "version", "id",         "vm",     "created", "agent", "request",
                                           "device_length", "machine", "descriptor", "blocks", "disks",   NULL };
    static const char *const file_members[] = { "file", "bytes", "sha256", NULL };
    g_autoptr(SfSaved) saved = sf_saved_new();
    g_autoptr(JsonObject) root = NULL;
    JsonNode *descriptor;

    if (length > SF_SAVED_JSON_MAX) {
        fail(error, "more than %u bytes", SF_SAVED_JSON_MAX);
        return NULL;
    }
    root = sf_json_line_parse(text, length, error);
    if (!root) {
        g_prefix_error(error, SF_SAVED_JSON ": ");
        return NULL;
    }
    if (!check_version(root, error) || !check_members(root, "the object", members, error)) {
        return NULL;
    }
    descriptor = json_object_get_member(root, "descriptor");
    if (!JSON_NODE_HOLDS_OBJECT(descriptor)) {
        fail(error, "\"descriptor\" is no object");
        return NULL;
    }
    if (!check_members(json_node_get_object(descriptor), "descriptor", file_members, error) ||
        !take_file(json_node_get_object(descriptor), &saved->descriptor, SF_DESCRIPTOR_MAX_SIZE, error) ||
        !take_text(root, "id", SF_SAVED_FILE_MAX, &saved->id, error) ||
        !take_text(root, "vm", SF_SAVED_FILE_MAX, &saved->vm, error) ||
        !take_int(root, "created", G_MAXINT64, &saved->created, error) ||
        !take_bool(root, "agent", &saved->agent, error) ||
        !take_int(root, "request", G_MAXUINT32, &saved->request, error) ||
        !take_int(root, "device_length", SF_DESCRIPTOR_MAX_STATE, &saved->device_length, error) ||
        !take_machine(saved, root, error) || !take_blocks(saved, root, error) || !take_disks(saved, root, error) ||
        !check_file_names(saved, error)) {
        return NULL;
    }
    return g_steal_pointer(&saved);
}

/* ---- the files ---- */

/* All of a small file; a symbolic link is not followed, more than max bytes are refused unread. */
static gboolean read_small(const char *path, gsize max, char **bytes, gsize *length, GError **error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat st;
    gboolean ok = fd >= 0 && fstat(fd, &st) == 0;

    if (ok && (!S_ISREG(st.st_mode) || (guint64)st.st_size > max)) {
        errno = S_ISREG(st.st_mode) ? EFBIG : EINVAL;
        ok = FALSE;
    }
    *bytes = ok ? g_malloc((gsize)st.st_size + 1) : NULL;
    for (*length = 0; ok && *length < (gsize)st.st_size;) {
        ssize_t n = read(fd, *bytes + *length, (gsize)st.st_size - *length);
        if (n <= 0) {
            errno = n < 0 ? errno : EIO;
            ok = FALSE;
        } else {
            *length += (gsize)n;
        }
    }
    if (!ok) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "\"%s\" can't be read: %s", path,
                    g_strerror(errno));
        g_clear_pointer(bytes, g_free);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static gboolean check_size(const SfSaved *saved, const SfSavedFile *file, guint64 *usage, GError **error)
{
    g_autofree char *path = sf_saved_path(saved, file);
    struct stat st;

    if (lstat(path, &st) < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "saved snapshot: \"%s\": %s", path, g_strerror(errno));
        return FALSE;
    }
    if (!S_ISREG(st.st_mode) || (guint64)st.st_size != file->size) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "saved snapshot: \"%s\" is %s of %" G_GINT64_FORMAT " bytes, a file of %" G_GUINT64_FORMAT
                    " is expected: it is damaged, or its copy is not complete",
                    path, S_ISREG(st.st_mode) ? "a file" : "no file", (gint64)st.st_size, file->size);
        return FALSE;
    }
    if (usage) {
        *usage += (guint64)st.st_blocks * BLOCK_BYTES;
    }
    return TRUE;
}

typedef gboolean (*FileVisit)(const SfSaved *saved, const SfSavedFile *file, guint64 *sum, GError **error);

static gboolean for_each_file(const SfSaved *saved, FileVisit visit, guint64 *sum, GError **error)
{
    if (!visit(saved, &saved->descriptor, sum, error)) {
        return FALSE;
    }
    for (guint i = 0; i < saved->blocks->len && !saved->memory_uri; i++) {
        if (!visit(saved, &((SfSavedBlock *)g_ptr_array_index(saved->blocks, i))->file, sum, error)) {
            return FALSE;
        }
    }
    for (guint i = 0; i < saved->disks->len; i++) {
        if (!visit(saved, &((SfSavedDisk *)g_ptr_array_index(saved->disks, i))->file, sum, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

SfSaved *sf_saved_read(const char *directory, const char *memory_uri, GError **error)
{
    g_autofree char *path = g_build_filename(directory, SF_SAVED_JSON, NULL);
    g_autofree char *text = NULL;
    g_autoptr(SfSaved) saved = NULL;
    gsize length;

    if (!read_small(path, SF_SAVED_JSON_MAX, &text, &length, error)) {
        if (error && *error) {
            (*error)->code = G_IO_ERROR_INVALID_DATA; /* the snapshot is there, or was said to be, but is none */
        }
        return NULL;
    }
    saved = sf_saved_parse(text, length, error);
    if (!saved) {
        g_prefix_error(error, "\"%s\": ", directory);
        return NULL;
    }
    saved->directory = g_strdup(directory);
    saved->memory_uri = g_strdup(memory_uri);
    return for_each_file(saved, check_size, NULL, error) ? g_steal_pointer(&saved) : NULL;
}

static gboolean add_usage(const SfSaved *saved, const SfSavedFile *file, guint64 *usage, GError **error)
{
    check_size(saved, file, usage, NULL);
    return TRUE;
}

guint64 sf_saved_disk_usage(const SfSaved *saved)
{
    guint64 usage = 0;

    for_each_file(saved, add_usage, &usage, NULL);
    return usage;
}

static gboolean damaged(const char *path, GError **error)
{
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                "saved snapshot: \"%s\" is damaged: its content has another checksum than it was saved with", path);
    return FALSE;
}

static gboolean verify_file(const SfSaved *saved, const SfSavedFile *file, guint64 *sum, GError **error)
{
    g_autofree char *path = sf_saved_path(saved, file);
    g_autofree char *found = sf_sha256_of_file(path, NULL, error);

    return found && (strcmp(found, file->sha256) == 0 || damaged(path, error));
}

gboolean sf_saved_verify(const SfSaved *saved, GError **error)
{
    g_autoptr(SfDescriptor) descriptor = NULL;

    if (!for_each_file(saved, verify_file, NULL, error)) {
        return FALSE;
    }
    descriptor = sf_saved_descriptor(saved, error);
    return descriptor != NULL;
}

/* ---- the descriptor ---- */

static gboolean fits_together(const SfSaved *saved, const SfDescriptor *descriptor, GError **error)
{
    gboolean ok = strcmp(descriptor->id, saved->id) == 0 && descriptor->blocks->len == saved->blocks->len &&
                  descriptor->disks->len == saved->disks->len &&
                  g_bytes_get_size(descriptor->device_state) >= saved->device_length;

    for (guint i = 0; ok && i < saved->blocks->len; i++) {
        const SfSavedBlock *block = g_ptr_array_index(saved->blocks, i);
        const SfDescriptorBlock *other = g_ptr_array_index(descriptor->blocks, i);
        ok = strcmp(block->id, other->id) == 0 && block->file.size == other->length;
    }
    for (guint i = 0; ok && i < saved->disks->len; i++) {
        const SfSavedDisk *disk = g_ptr_array_index(saved->disks, i);
        const SfDescriptorDisk *other = g_ptr_array_index(descriptor->disks, i);
        ok = strcmp(disk->id, other->id) == 0 && disk->size == other->size;
    }
    if (!ok) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "saved snapshot \"%s\": " SF_SAVED_JSON " and " SF_SAVED_DESCRIPTOR " are of different snapshots",
                    saved->directory);
    }
    return ok;
}

SfDescriptor *sf_saved_descriptor(const SfSaved *saved, GError **error)
{
    g_autofree char *path = sf_saved_path(saved, &saved->descriptor);
    g_autofree char *found = NULL;
    g_autoptr(GBytes) bytes = NULL;
    g_autoptr(SfDescriptor) descriptor = NULL;
    char *content;
    gsize length;

    if (!read_small(path, SF_DESCRIPTOR_MAX_SIZE, &content, &length, error)) {
        return NULL;
    }
    bytes = g_bytes_new_take(content, length);
    found = sf_sha256_of_bytes(bytes);
    if (strcmp(found, saved->descriptor.sha256) != 0) {
        damaged(path, error);
        return NULL;
    }
    descriptor = sf_descriptor_decode(bytes, error);
    if (!descriptor) {
        g_prefix_error(error, "\"%s\": ", path);
        return NULL;
    }
    return fits_together(saved, descriptor, error) ? g_steal_pointer(&descriptor) : NULL;
}
