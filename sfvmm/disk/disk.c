/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Layers are interned by path: a table maps the path of each living layer to it. Chains of several VMs share layers,
 * and after a restart of sfvmmd each chain is read back from its own VM's file; without the table the first VM to end
 * would unlink an overlay that others still stand on.
 *
 * qemu-img is run only for what happens rarely: probing a user's image, one template for each size, the final commit. A
 * fork copies the template with copy_file_range().
 *
 * Overlays carry no backing file name while they are in use: a QEMU that was taken over could write any name there, and
 * it would be opened by whoever opens the overlay next. The commit therefore writes the names itself, and refuses
 * overlays with an external data file, the other way for an image to name files.
 */
#include "sfvmm/disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "sfvmm/wire/json_line.h"

#define OVERLAY_MODE 0600
#define COPY_CHUNK   65536 /* bytes, where copy_file_range() can't help */

/* ---- Layers ---- */

G_LOCK_DEFINE_STATIC(layers);
static GHashTable *layers; /* path -> SfDiskLayer, without a reference; under the lock */

SfDiskLayer *sf_disk_layer_new(const char *path, const char *format, gboolean owned)
{
    G_LOCK(layers);
    if (!layers) {
        layers = g_hash_table_new(g_str_hash, g_str_equal);
    }
    SfDiskLayer *layer = g_hash_table_lookup(layers, path);
    if (layer) {
        layer->refs++;
    } else {
        layer = g_new0(SfDiskLayer, 1);
        layer->refs = 1;
        layer->path = g_strdup(path);
        layer->format = g_strdup(format);
        layer->owned = owned;
        g_hash_table_insert(layers, layer->path, layer);
    }
    G_UNLOCK(layers);
    return layer;
}

SfDiskLayer *sf_disk_layer_ref(SfDiskLayer *layer)
{
    G_LOCK(layers);
    layer->refs++;
    G_UNLOCK(layers);
    return layer;
}

void sf_disk_layer_unref(SfDiskLayer *layer)
{
    if (!layer) {
        return;
    }
    G_LOCK(layers);
    gboolean last = --layer->refs == 0;
    if (last) {
        g_hash_table_remove(layers, layer->path);
        /* Under the lock: a new layer of this path must not lose its file. */
        if (layer->owned && unlink(layer->path) < 0 && errno != ENOENT) {
            g_warning("overlay %s can't be removed: %s", layer->path, g_strerror(errno));
        }
    }
    G_UNLOCK(layers);
    if (last) {
        if (layer->kept) {
            layer->kept_free(layer->kept);
        }
        g_free(layer->path);
        g_free(layer->format);
        g_free(layer);
    }
}

SfDiskLayer *sf_disk_layer_find(const char *path)
{
    SfDiskLayer *layer;

    G_LOCK(layers);
    layer = layers ? g_hash_table_lookup(layers, path) : NULL;
    if (layer) {
        layer->refs++;
    }
    G_UNLOCK(layers);
    return layer;
}

void sf_disk_layer_keep(SfDiskLayer *layer, gpointer kept, GDestroyNotify kept_free)
{
    g_assert(!layer->kept);
    layer->kept = kept;
    layer->kept_free = kept_free;
}

gboolean sf_disk_layer_keeps(const SfDiskLayer *layer)
{
    return layer->kept != NULL;
}

gboolean sf_disk_layer_is_nbd(const SfDiskLayer *layer)
{
    return strcmp(layer->format, SF_DISK_FORMAT_NBD) == 0;
}

static gboolean is_shared(SfDiskLayer *layer)
{
    G_LOCK(layers);
    gboolean shared = layer->refs > 1;
    G_UNLOCK(layers);
    return shared;
}

/* ---- Chains ---- */

SfDiskChain *sf_disk_chain_new(const char *id, guint64 size, gboolean readonly)
{
    SfDiskChain *chain = g_new0(SfDiskChain, 1);

    chain->id = g_strdup(id);
    chain->size = size;
    chain->readonly = readonly;
    chain->layers = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_layer_unref);
    return chain;
}

SfDiskChain *sf_disk_chain_copy(const SfDiskChain *chain)
{
    SfDiskChain *copy = sf_disk_chain_new(chain->id, chain->size, chain->readonly);

    for (guint i = 0; i < chain->layers->len; i++) {
        g_ptr_array_add(copy->layers, sf_disk_layer_ref(g_ptr_array_index(chain->layers, i)));
    }
    return copy;
}

void sf_disk_chain_free(SfDiskChain *chain)
{
    if (chain) {
        g_ptr_array_unref(chain->layers);
        g_free(chain->id);
        g_free(chain);
    }
}

gboolean sf_disk_chain_is_shared(const SfDiskChain *chain)
{
    for (guint i = 0; i < chain->layers->len; i++) {
        if (is_shared(g_ptr_array_index(chain->layers, i))) {
            return TRUE;
        }
    }
    return FALSE;
}

void sf_disk_chain_drop_bases(SfDiskChain *chain)
{
    guint image = chain->layers->len;

    while (image > 0 && ((const SfDiskLayer *)g_ptr_array_index(chain->layers, image - 1))->owned) {
        image--;
    }
    if (image > 1) {
        g_ptr_array_remove_range(chain->layers, 0, image - 1);
    }
}

JsonObject *sf_disk_chain_to_json(const SfDiskChain *chain)
{
    JsonObject *object = json_object_new();
    JsonArray *array = json_array_new();

    for (guint i = 0; i < chain->layers->len; i++) {
        const SfDiskLayer *layer = g_ptr_array_index(chain->layers, i);
        JsonObject *entry = json_object_new();
        json_object_set_string_member(entry, "path", layer->path);
        json_object_set_string_member(entry, "format", layer->format);
        json_object_set_boolean_member(entry, "owned", layer->owned);
        json_array_add_object_element(array, entry);
    }
    json_object_set_string_member(object, "id", chain->id);
    json_object_set_int_member(object, "size", chain->size);
    json_object_set_boolean_member(object, "readonly", chain->readonly);
    json_object_set_array_member(object, "layers", array);
    return object;
}

static gboolean is_format(const char *format)
{
    return g_str_equal(format, "raw") || g_str_equal(format, "qcow2");
}

/* The member of that type, or an error that names it. */
static JsonNode *get_member(JsonObject *object, const char *name, GType type, GError **error)
{
    JsonNode *node = json_object_get_member(object, name);

    if (!node || json_node_get_value_type(node) != type) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "disk chain: \"%s\" is missing or of a wrong type",
                    name);
        return NULL;
    }
    return node;
}

/* Only looks: taking a layer and giving it back because a later one is wrong would remove its file. */
static gboolean check_layer(JsonNode *node, GError **error)
{
    if (!JSON_NODE_HOLDS_OBJECT(node)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "disk chain: a layer is no object");
        return FALSE;
    }
    JsonObject *object = json_node_get_object(node);
    JsonNode *path = get_member(object, "path", G_TYPE_STRING, error);
    JsonNode *format = path ? get_member(object, "format", G_TYPE_STRING, error) : NULL;
    if (!format || !get_member(object, "owned", G_TYPE_BOOLEAN, error)) {
        return FALSE;
    }
    gboolean known = g_str_equal(json_node_get_string(format), SF_DISK_FORMAT_NBD)
                         ? g_str_has_prefix(json_node_get_string(path), "nbd")
                         : g_path_is_absolute(json_node_get_string(path)) && is_format(json_node_get_string(format));
    if (!known) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "disk chain: layer %s of format %s",
                    json_node_get_string(path), json_node_get_string(format));
        return FALSE;
    }
    return TRUE;
}

SfDiskChain *sf_disk_chain_from_json(JsonObject *object, GError **error)
{
    JsonNode *id = get_member(object, "id", G_TYPE_STRING, error);
    JsonNode *size = id ? get_member(object, "size", G_TYPE_INT64, error) : NULL;
    JsonNode *readonly = size ? get_member(object, "readonly", G_TYPE_BOOLEAN, error) : NULL;
    JsonNode *array = readonly ? json_object_get_member(object, "layers") : NULL;

    if (!readonly) {
        return NULL;
    }
    if (json_node_get_int(size) <= 0 || (guint64)json_node_get_int(size) > SF_DISK_SIZE_MAX || !array ||
        !JSON_NODE_HOLDS_ARRAY(array) || json_array_get_length(json_node_get_array(array)) == 0 ||
        json_array_get_length(json_node_get_array(array)) > SF_DISK_LAYERS_MAX || !*json_node_get_string(id)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "disk chain \"%s\": id, size or layers are out of bounds", json_node_get_string(id));
        return NULL;
    }
    JsonArray *entries = json_node_get_array(array);
    for (guint i = 0; i < json_array_get_length(entries); i++) {
        if (!check_layer(json_array_get_element(entries, i), error)) {
            return NULL;
        }
    }
    SfDiskChain *chain =
        sf_disk_chain_new(json_node_get_string(id), json_node_get_int(size), json_node_get_boolean(readonly));
    for (guint i = 0; i < json_array_get_length(entries); i++) {
        JsonObject *entry = json_array_get_object_element(entries, i);
        g_ptr_array_add(chain->layers, sf_disk_layer_new(json_object_get_string_member(entry, "path"),
                                                         json_object_get_string_member(entry, "format"),
                                                         json_object_get_boolean_member(entry, "owned")));
    }
    return chain;
}

/* ---- qemu-img ---- */

/* Runs it with these arguments (NULL-terminated). *output: what it printed; may be NULL. what: for the error. */
static gboolean run_qemu_img(const char *qemu_img, const char *const *args, const char *what, char **output,
                             GError **error)
{
    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    g_autofree char *complaint = NULL;
    g_autofree char *ignored = NULL;
    g_autoptr(GError) inner = NULL;
    int status;

    g_ptr_array_add(argv, (char *)qemu_img);
    for (; *args; args++) {
        g_ptr_array_add(argv, (char *)*args);
    }
    g_ptr_array_add(argv, NULL);
    if (!g_spawn_sync(NULL, (char **)argv->pdata, NULL, G_SPAWN_DEFAULT, NULL, NULL, output ? output : &ignored,
                      &complaint, &status, error)) {
        g_prefix_error(error, "%s: %s can't be run: ", what, qemu_img);
        return FALSE;
    }
    if (!g_spawn_check_wait_status(status, &inner)) {
        g_strchomp(complaint);
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "%s: %s", what, *complaint ? complaint : inner->message);
        if (output) {
            g_clear_pointer(output, g_free);
        }
        return FALSE;
    }
    return TRUE;
}

/* `qemu-img info` of one image, its backing chain not opened. */
static JsonObject *image_info(const char *qemu_img, const char *path, const char *format_or_null, GError **error)
{
    const char *with_format[] = { "info", "-U", "--output=json", "-f", format_or_null, path, NULL };
    const char *without[] = { "info", "-U", "--output=json", path, NULL };
    g_autofree char *what = g_strdup_printf("image %s", path);
    g_autofree char *text = NULL;

    if (!run_qemu_img(qemu_img, format_or_null ? with_format : without, what, &text, error)) {
        return NULL;
    }
    JsonObject *info = sf_json_line_parse(text, strlen(text), error);
    if (!info) {
        g_prefix_error(error, "image %s: qemu-img info: ", path);
    }
    return info;
}

/* The file outside that holds the image's data, or NULL. */
static const char *data_file(JsonObject *info)
{
    JsonNode *specific = json_object_get_member(info, "format-specific");

    if (!specific || !JSON_NODE_HOLDS_OBJECT(specific)) {
        return NULL;
    }
    JsonNode *data = json_object_get_member(json_node_get_object(specific), "data");
    if (!data || !JSON_NODE_HOLDS_OBJECT(data)) {
        return NULL;
    }
    return json_object_get_string_member_with_default(json_node_get_object(data), "data-file", NULL);
}

static gboolean check_file(const char *path, GError **error)
{
    struct stat st;

    if (!g_path_is_absolute(path)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_FILENAME, "image %s: give its absolute path", path);
        return FALSE;
    }
    if (stat(path, &st) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "image %s: %s", path, g_strerror(errno));
        return FALSE;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_REGULAR_FILE, "image %s: neither a file nor a block device",
                    path);
        return FALSE;
    }
    return TRUE;
}

gboolean sf_disk_probe(const char *qemu_img, const char *path, const char *format_or_null, char **format, guint64 *size,
                       GError **error)
{
    if (format_or_null && !is_format(format_or_null)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    "image %s: format %s is not supported; raw and qcow2 are", path, format_or_null);
        return FALSE;
    }
    if (!check_file(path, error)) {
        return FALSE;
    }
    g_autoptr(JsonObject) info = image_info(qemu_img, path, format_or_null, error);
    if (!info) {
        return FALSE;
    }

    const char *found = json_object_get_string_member_with_default(info, "format", "");
    const char *backing = json_object_get_string_member_with_default(info, "backing-filename", NULL);
    gint64 found_size = json_object_get_int_member_with_default(info, "virtual-size", -1);
    if (!is_format(found)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    "image %s: format %s is not supported; convert it: qemu-img convert -O qcow2", path, found);
        return FALSE;
    }
    if (backing || data_file(info)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    "image %s: needs a second file, %s; make one image of both: qemu-img convert -O qcow2", path,
                    backing ? backing : data_file(info));
        return FALSE;
    }
    if (json_object_get_boolean_member_with_default(info, "encrypted", FALSE)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED, "image %s: encrypted images are not supported", path);
        return FALSE;
    }
    if (found_size <= 0 || (guint64)found_size > SF_DISK_SIZE_MAX) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "image %s: has a size of %" G_GINT64_FORMAT " bytes",
                    path, found_size);
        return FALSE;
    }
    *format = g_strdup(found);
    *size = found_size;
    return TRUE;
}

/* ---- Overlays ---- */

gboolean sf_disk_template_create(const char *qemu_img, const char *path, guint64 size, GError **error)
{
    g_autofree char *partial = g_strconcat(path, ".part", NULL);
    g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, size);
    g_autofree char *what = g_strdup_printf("template overlay %s", path);
    const char *args[] = { "create", "-q", "-f", "qcow2", partial, bytes, NULL };

    if (!run_qemu_img(qemu_img, args, what, NULL, error)) {
        unlink(partial);
        return FALSE;
    }
    if (rename(partial, path) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", what, g_strerror(errno));
        unlink(partial);
        return FALSE;
    }
    return TRUE;
}

/* All of one file to the (empty) other. 0 or -1 with errno. */
static int copy_by_hand(int from, int to)
{
    g_autofree char *buffer = g_malloc(COPY_CHUNK);
    ssize_t n;

    while ((n = read(from, buffer, COPY_CHUNK)) > 0) {
        for (ssize_t done = 0; done < n;) {
            ssize_t written = write(to, buffer + done, n - done);
            if (written < 0) {
                return -1;
            }
            done += written;
        }
    }
    return n < 0 ? -1 : 0;
}

static int copy_file(int from, int to)
{
    ssize_t n;

    do {
        n = copy_file_range(from, NULL, to, NULL, G_MAXINT32, 0);
    } while (n > 0);
    /* Where the file systems can't do it between them: from where it stopped. */
    return n == 0                                                                        ? 0
           : errno == EXDEV || errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS ? copy_by_hand(from, to)
                                                                                         : -1;
}

SfDiskLayer *sf_disk_overlay_create(const char *template_path, const char *path, uid_t owner, gid_t group,
                                    GError **error)
{
    int from = open(template_path, O_RDONLY | O_CLOEXEC);
    int to = from < 0 ? -1 : open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, OVERLAY_MODE);
    gboolean ok = to >= 0 && copy_file(from, to) == 0 && fchown(to, owner, group) == 0;
    int saved = errno;

    if (from >= 0) {
        close(from);
    }
    if (to >= 0 && close(to) < 0 && ok) {
        saved = errno;
        ok = FALSE;
    }
    if (!ok) {
        if (to >= 0) {
            unlink(path);
        }
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved), "overlay %s can't be made from %s: %s%s", path,
                    template_path, g_strerror(saved), saved == ENOSPC ? "; make room on its file system" : "");
        return NULL;
    }
    return sf_disk_layer_new(path, "qcow2", TRUE);
}

gboolean sf_disk_convert(const char *qemu_img, const char *uri, const char *path, GError **error)
{
    const char *args[] = { "convert", "-q", "-f", "raw", "-O", "qcow2", uri, path, NULL };
    g_autofree char *what = g_strdup_printf("image %s", path);

    return run_qemu_img(qemu_img, args, what, NULL, error);
}

/* ---- Commit ---- */

/* Writes into an overlay what stands below it. */
static gboolean set_backing(const char *qemu_img, const SfDiskLayer *overlay, const SfDiskLayer *below, GError **error)
{
    const char *args[] = { "rebase",      "-u", "-f",        overlay->format, "-F",
                           below->format, "-b", below->path, overlay->path,   NULL };
    g_autofree char *what = g_strdup_printf("overlay %s over %s", overlay->path, below->path);
    g_autoptr(JsonObject) info = image_info(qemu_img, overlay->path, overlay->format, error);

    if (!info) {
        return FALSE;
    }
    if (data_file(info)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_PERMISSION_DENIED,
                    "overlay %s names an external data file, %s, which we never wrote: not committed", overlay->path,
                    data_file(info));
        return FALSE;
    }
    return run_qemu_img(qemu_img, args, what, NULL, error);
}

/* Not while another QEMU writes to it. */
static gboolean may_be_opened(const char *qemu_img, const SfDiskLayer *image, GError **error)
{
    const char *args[] = { "info", "-f", image->format, image->path, NULL };
    g_autofree char *what = g_strdup_printf("image %s", image->path);

    return run_qemu_img(qemu_img, args, what, NULL, error);
}

gboolean sf_disk_commit_offline(const char *qemu_img, SfDiskChain *chain, gboolean *begun, GError **error)
{
    if (chain->layers->len < 2 || chain->readonly) {
        return TRUE;
    }
    if (sf_disk_chain_is_shared(chain)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_BUSY, "disk %s: its layers are still used by another VM", chain->id);
        return FALSE;
    }
    for (guint i = 1; i < chain->layers->len; i++) {
        const SfDiskLayer *layer = g_ptr_array_index(chain->layers, i);
        if (!layer->owned) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                        "disk %s: %s is no overlay of ours: not committed", chain->id, layer->path);
            return FALSE;
        }
    }
    for (guint i = 1; i < chain->layers->len; i++) {
        if (!set_backing(qemu_img, g_ptr_array_index(chain->layers, i), g_ptr_array_index(chain->layers, i - 1),
                         error)) {
            return FALSE;
        }
    }
    const SfDiskLayer *image = g_ptr_array_index(chain->layers, 0);
    if (!may_be_opened(qemu_img, image, error)) {
        return FALSE;
    }
    const SfDiskLayer *top = g_ptr_array_index(chain->layers, chain->layers->len - 1);
    const char *args[] = { "commit", "-q", "-d", "-f", top->format, "-b", image->path, top->path, NULL };
    g_autofree char *what = g_strdup_printf("disk %s: writing its overlays into %s", chain->id, image->path);
    *begun = TRUE;
    if (!run_qemu_img(qemu_img, args, what, NULL, error)) {
        return FALSE;
    }
    g_ptr_array_set_size(chain->layers, 1);
    return TRUE;
}
