/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation: a snapshot outlives the sfvmmd that made it.
 *
 * Small things are saved as files: device state, the extents of each layer, and snapshot.json. The memory itself is
 * only in memfds, which have no name; but the QEMU processes that map them live on, and /proc lends them out:
 *
 *     /proc/PID/fd/N              if the process still has it open; needs only to be the same user
 *     /proc/PID/map_files/A-B     if it is only mapped; needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE (root)
 *
 * Which memfd is the right one is told by device and inode number, saved in snapshot.json. A memfd that nobody has any
 * more has lost its memory, and then nobody can run on it either, so a number can't be taken over by a file that we
 * would confuse with it while a process of the given list still maps the snapshot; the size is compared all the same.
 * Whatever is opened is looked at again with fstat(): the process may have changed its mappings in between.
 *
 * An sf-pager that serves or fills the snapshot has its descriptors too, and gives them back; they are looked at
 * first. The base of a lazy snapshot is a page cache: it is opened for writing again, and its present runs stand in a
 * file.
 *
 *     DIRECTORY/  snapshot.json  state  extents-BLOCK-LAYER  present-BLOCK
 *
 * snapshot.json is written last: without it the directory is no snapshot.
 */
#include "sfvmm/memory/snapshot_private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "sfvmm/wire/json_line.h"
#include "sfvmm/wire/state_file.h"
#include "sfvmm/wire/qemu_message.h"

#define SAVE_VERSION   1
#define DIRECTORY_MODE 0700
#define FILE_MODE      0600
#define COPY_CHUNK     (1u << 20) /* bytes */

/* ---- Save ---- */

static gboolean save_file(const SfSnapshot *snapshot, const char *directory, const char *name, int fd, guint64 length,
                          GError **error)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    g_autofree char *buffer = g_malloc(COPY_CHUNK);
    int out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, FILE_MODE);
    gboolean ok = out >= 0;

    for (guint64 done = 0; ok && done < length;) {
        ssize_t n = pread(fd, buffer, MIN(COPY_CHUNK, length - done), done);
        if (n == 0) {
            errno = EIO;
        }
        ok = n > 0 && write(out, buffer, n) == n;
        done += ok ? n : 0;
    }
    int saved = errno;
    if (out >= 0 && close(out) < 0 && ok) {
        saved = errno;
        ok = FALSE;
    }
    if (!ok) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved), "snapshot %s: %s can't be written: %s",
                    snapshot->id, path, g_strerror(saved));
    }
    return ok;
}

/* Device and inode of a memfd: its identity until nobody has it any more. */
static gboolean add_identity(JsonBuilder *builder, const char *member, const SfSnapshot *snapshot, int fd,
                             GError **error)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "snapshot %s: %s: %s", snapshot->id, member,
                    g_strerror(errno));
        return FALSE;
    }
    json_builder_set_member_name(builder, member);
    json_builder_begin_object(builder);
    json_builder_set_member_name(builder, "device");
    json_builder_add_int_value(builder, st.st_dev);
    json_builder_set_member_name(builder, "inode");
    json_builder_add_int_value(builder, st.st_ino);
    json_builder_end_object(builder);
    return TRUE;
}

static void add_int(JsonBuilder *builder, const char *member, guint64 value)
{
    json_builder_set_member_name(builder, member);
    json_builder_add_int_value(builder, value);
}

static char *extents_name(guint block, guint layer)
{
    return g_strdup_printf("extents-%u-%u", block, layer);
}

static char *present_name(guint block)
{
    return g_strdup_printf("present-%u", block);
}

/* What the page cache is below the base. */
static gboolean save_cached(JsonBuilder *builder, const SfSnapshot *snapshot, guint index, const char *directory,
                            GError **error)
{
    const SfCachedBlock *block = &snapshot->cache->blocks[index];
    g_autofree char *name = present_name(index);

    add_int(builder, "n_present", block->n_present);
    return save_file(snapshot, directory, name, block->present, block->n_present * sizeof(struct sf_qc_extent), error);
}

static gboolean save_block(JsonBuilder *builder, const SfSnapshot *snapshot, guint index, const char *directory,
                           GError **error)
{
    const SfBlock *block = &snapshot->blocks[index];

    json_builder_begin_object(builder);
    json_builder_set_member_name(builder, "id");
    json_builder_add_string_value(builder, block->id);
    add_int(builder, "length", block->length);
    if (!add_identity(builder, "base", snapshot, block->base, error) ||
        (snapshot->cache && !save_cached(builder, snapshot, index, directory, error))) {
        return FALSE;
    }
    json_builder_set_member_name(builder, "layers");
    json_builder_begin_array(builder);
    for (guint i = 0; i < block->n_layers; i++) {
        const SfLayer *layer = &block->layers[i];
        g_autofree char *name = extents_name(index, i);
        json_builder_begin_object(builder);
        add_int(builder, "n_extents", layer->n_extents);
        if (!add_identity(builder, "delta", snapshot, layer->delta, error) ||
            !save_file(snapshot, directory, name, layer->extents, layer->n_extents * sizeof(struct sf_qc_extent),
                       error)) {
            return FALSE;
        }
        json_builder_end_object(builder);
    }
    json_builder_end_array(builder);
    json_builder_end_object(builder);
    return TRUE;
}

/* The parts of the timing that are reported later; the lengths stand beside it. */
#define TIMING(X) X(at) X(pause) X(stop) X(device) X(ram) X(disk) X(start)

static void add_timing(JsonBuilder *builder, const struct sf_qc_snapshot_reply *timing)
{
    json_builder_set_member_name(builder, "timing");
    json_builder_begin_object(builder);
#define ADD(field) add_int(builder, #field, timing->field);
    TIMING(ADD)
#undef ADD
    json_builder_end_object(builder);
}

gboolean sf_snapshot_save(const SfSnapshot *snapshot, const char *directory, GError **error)
{
    g_autoptr(JsonBuilder) builder = json_builder_new();
    g_autofree char *path = g_build_filename(directory, "snapshot.json", NULL);

    if (g_mkdir_with_parents(directory, DIRECTORY_MODE) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "snapshot %s: directory %s can't be made: %s",
                    snapshot->id, directory, g_strerror(errno));
        return FALSE;
    }
    if (!save_file(snapshot, directory, "state", snapshot->state, snapshot->state_length, error)) {
        return FALSE;
    }
    json_builder_begin_object(builder);
    add_int(builder, "version", SAVE_VERSION);
    json_builder_set_member_name(builder, "id");
    json_builder_add_string_value(builder, snapshot->id);
    add_int(builder, "state_length", snapshot->state_length);
    add_int(builder, "device_length", snapshot->device_length);
    add_timing(builder, &snapshot->timing);
    json_builder_set_member_name(builder, "blocks");
    json_builder_begin_array(builder);
    for (guint i = 0; i < snapshot->n_blocks; i++) {
        if (!save_block(builder, snapshot, i, directory, error)) {
            return FALSE;
        }
    }
    json_builder_end_array(builder);
    json_builder_end_object(builder);

    g_autoptr(JsonNode) root = json_builder_get_root(builder);
    return sf_state_write(path, json_node_get_object(root), error);
}

/* ---- Restore: reading the files ---- */

/* A memfd that has to be found. */
typedef struct {
    dev_t device;
    ino_t inode;
    guint64 length;
    int *fd; /* its place in the snapshot; -1: not found yet */
} Wanted;

typedef struct {
    const char *directory;
    SfSnapshot *snapshot;
    GArray *wanted; /* of Wanted */
    guint n_cached; /* blocks whose base is a page cache: all or none */
    SfCachedBlock cached[SF_QC_MAX_BLOCKS];
} Restore;

G_GNUC_PRINTF(3, 4) static gboolean fail(const char *directory, GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "saved snapshot %s: %s", directory, text);
    return FALSE;
}

static gboolean get_int(const Restore *r, JsonObject *object, const char *member, guint64 limit, guint64 *value,
                        GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (!node || json_node_get_value_type(node) != G_TYPE_INT64 || json_node_get_int(node) < 0 ||
        (guint64)json_node_get_int(node) > limit) {
        return fail(r->directory, error, "%s is missing, no integer or out of bounds", member);
    }
    *value = json_node_get_int(node);
    return TRUE;
}

static const char *get_text(const Restore *r, JsonObject *object, const char *member, GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (!node || json_node_get_value_type(node) != G_TYPE_STRING || !*json_node_get_string(node)) {
        fail(r->directory, error, "%s is missing or no text", member);
        return NULL;
    }
    return json_node_get_string(node);
}

static JsonObject *as_object(const Restore *r, JsonNode *node, const char *what, GError **error)
{
    if (!node || !JSON_NODE_HOLDS_OBJECT(node)) {
        fail(r->directory, error, "%s is missing or no object", what);
        return NULL;
    }
    return json_node_get_object(node);
}

static JsonArray *get_array(const Restore *r, JsonObject *object, const char *member, guint limit, GError **error)
{
    JsonNode *node = json_object_get_member(object, member);

    if (!node || !JSON_NODE_HOLDS_ARRAY(node) || json_array_get_length(json_node_get_array(node)) > limit) {
        fail(r->directory, error, "%s is missing, no array or too long", member);
        return NULL;
    }
    return json_node_get_array(node);
}

static gboolean want(Restore *r, JsonObject *object, const char *member, guint64 length, int *fd, GError **error)
{
    JsonObject *identity = as_object(r, json_object_get_member(object, member), member, error);
    guint64 device, inode;

    if (!identity || !get_int(r, identity, "device", G_MAXINT64, &device, error) ||
        !get_int(r, identity, "inode", G_MAXINT64, &inode, error)) {
        return FALSE;
    }
    Wanted wanted = { .device = device, .inode = inode, .length = length, .fd = fd };
    g_array_append_val(r->wanted, wanted);
    return TRUE;
}

static gboolean open_saved(const Restore *r, const char *name, int *fd, GError **error)
{
    g_autofree char *path = g_build_filename(r->directory, name, NULL);

    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    return *fd >= 0 || fail(r->directory, error, "%s can't be opened: %s", name, g_strerror(errno));
}

static gboolean load_layer(Restore *r, JsonNode *node, guint block_index, guint index, GError **error)
{
    JsonObject *object = as_object(r, node, "layer", error);
    SfBlock *block = &r->snapshot->blocks[block_index];
    SfLayer *layer = &block->layers[index];
    g_autofree char *name = extents_name(block_index, index);
    guint64 n_extents;

    if (!object || !get_int(r, object, "n_extents", SF_QC_MAX_EXTENTS, &n_extents, error) ||
        !want(r, object, "delta", block->length, &layer->delta, error)) {
        return FALSE;
    }
    layer->n_extents = n_extents;
    return open_saved(r, name, &layer->extents, error);
}

/* Of a lazy snapshot; its memory is opened for writing when it has been found. */
static gboolean load_cached(Restore *r, JsonObject *object, guint index, GError **error)
{
    const SfBlock *block = &r->snapshot->blocks[index];
    SfCachedBlock *cached = &r->cached[index];
    g_autofree char *name = present_name(index);
    guint64 n_present;

    if (index != r->n_cached) {
        return fail(r->directory, error, "only some blocks are cached");
    }
    if (!get_int(r, object, "n_present", SF_QC_MAX_EXTENTS, &n_present, error)) {
        return FALSE;
    }
    memcpy(cached->id, block->id, sizeof(cached->id));
    cached->length = block->length;
    cached->n_present = n_present;
    cached->memory = -1;
    if (!open_saved(r, name, &cached->present, error)) {
        return FALSE;
    }
    r->n_cached++;
    return TRUE;
}

static gboolean load_block(Restore *r, JsonNode *node, guint index, GError **error)
{
    JsonObject *object = as_object(r, node, "block", error);
    SfBlock *block = &r->snapshot->blocks[index];
    const char *id = object ? get_text(r, object, "id", error) : NULL;

    if (!id || !get_int(r, object, "length", SF_QC_MAX_LENGTH, &block->length, error)) {
        return FALSE;
    }
    if (strlen(id) >= sizeof(block->id) || block->length == 0 || block->length % SF_PAGE_SIZE) {
        return fail(r->directory, error, "block %s of %" PRIu64 " bytes", id, block->length);
    }
    memcpy(block->id, id, strlen(id)); /* the snapshot is new: the rest is zero */
    JsonArray *layers = get_array(r, object, "layers", SF_QC_MAX_LAYERS, error);
    if (!layers || !want(r, object, "base", block->length, &block->base, error) ||
        (json_object_has_member(object, "n_present") && !load_cached(r, object, index, error))) {
        return FALSE;
    }
    block->n_layers = json_array_get_length(layers);
    for (guint i = 0; i < block->n_layers; i++) {
        if (!load_layer(r, json_array_get_element(layers, i), index, i, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean load_timing(const Restore *r, JsonObject *root, GError **error)
{
    JsonObject *object = as_object(r, json_object_get_member(root, "timing"), "timing", error);
    struct sf_qc_snapshot_reply *timing = &r->snapshot->timing;
    gboolean ok = object != NULL;

#define GET(field) ok = ok && get_int(r, object, #field, G_MAXINT64, &timing->field, error);
    TIMING(GET)
#undef GET
    timing->state_length = r->snapshot->state_length;
    timing->device_length = r->snapshot->device_length;
    timing->n_blocks = r->snapshot->n_blocks;
    return ok;
}

/* Everything but the memfds. */
static gboolean load_description(Restore *r, JsonObject *root, GError **error)
{
    SfSnapshot *snapshot = r->snapshot;
    JsonArray *blocks = get_array(r, root, "blocks", SF_QC_MAX_BLOCKS, error);

    if (!blocks || !get_int(r, root, "state_length", SF_QC_MAX_STATE, &snapshot->state_length, error) ||
        !get_int(r, root, "device_length", snapshot->state_length, &snapshot->device_length, error)) {
        return FALSE;
    }
    snapshot->n_blocks = json_array_get_length(blocks);
    for (guint i = 0; i < snapshot->n_blocks; i++) {
        if (!load_block(r, json_array_get_element(blocks, i), i, error)) {
            return FALSE;
        }
    }
    return load_timing(r, root, error) && open_saved(r, "state", &snapshot->state, error);
}

/* ---- Restore: finding the memfds ---- */

static gboolean all_found(const Restore *r)
{
    for (guint i = 0; i < r->wanted->len; i++) {
        if (*g_array_index(r->wanted, Wanted, i).fd < 0) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean is_wanted(const Wanted *wanted, const struct stat *st)
{
    return st->st_dev == wanted->device && st->st_ino == wanted->inode && S_ISREG(st->st_mode) &&
           (guint64)st->st_size >= wanted->length;
}

/* Opens a link below /proc/PID for every wanted memfd that it is (one memfd may be wanted at several places). */
static void try_link(const Restore *r, int directory, const char *name)
{
    struct stat st;

    for (guint i = 0; i < r->wanted->len; i++) {
        Wanted *wanted = &g_array_index(r->wanted, Wanted, i);
        if (*wanted->fd >= 0 || fstatat(directory, name, &st, 0) < 0 || !is_wanted(wanted, &st)) {
            continue;
        }
        int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd >= 0 && fstat(fd, &st) == 0 && is_wanted(wanted, &st)) {
            *wanted->fd = fd;
        } else if (fd >= 0) {
            close(fd);
        }
    }
}

static void search_fds(const Restore *r, pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", (int)pid);
    DIR *directory = opendir(path);
    const struct dirent *entry;

    if (!directory) {
        return;
    }
    while (!all_found(r) && (entry = readdir(directory))) {
        if (g_ascii_isdigit(entry->d_name[0])) {
            try_link(r, dirfd(directory), entry->d_name);
        }
    }
    closedir(directory);
}

/* maps tells device and inode of each mapping, so only the right links of map_files are touched. */
static void search_mappings(const Restore *r, pid_t pid)
{
    g_autofree char *maps_path = g_strdup_printf("/proc/%d/maps", (int)pid);
    g_autofree char *links_path = g_strdup_printf("/proc/%d/map_files", (int)pid);
    g_autofree char *line = NULL;
    size_t size = 0;
    FILE *maps = fopen(maps_path, "re");
    int links = open(links_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    while (maps && links >= 0 && !all_found(r) && getline(&line, &size, maps) > 0) {
        uint64_t start, end, inode;
        unsigned major_number, minor_number;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %*x %x:%x %" SCNu64, &start, &end, &major_number, &minor_number,
                   &inode) != 5) {
            continue;
        }
        for (guint i = 0; i < r->wanted->len; i++) {
            const Wanted *wanted = &g_array_index(r->wanted, Wanted, i);
            if (*wanted->fd < 0 && wanted->inode == inode && wanted->device == makedev(major_number, minor_number)) {
                g_autofree char *name = g_strdup_printf("%" PRIx64 "-%" PRIx64, start, end);
                try_link(r, links, name);
            }
        }
    }
    if (maps) {
        fclose(maps);
    }
    if (links >= 0) {
        close(links);
    }
}

/* An own open file: what others hold may be writable, and shares its offset. */
static void search_given(const Restore *r, const int *fds, guint n_fds)
{
    int directory = n_fds ? open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    for (guint i = 0; directory >= 0 && i < n_fds && !all_found(r); i++) {
        g_autofree char *name = g_strdup_printf("%d", fds[i]);
        try_link(r, directory, name);
    }
    if (directory >= 0) {
        close(directory);
    }
}

/* The page cache of a lazy snapshot, from its memfds and the saved runs, which it takes. */
static gboolean restore_cache(Restore *r, GError **error)
{
    guint n = r->n_cached;

    r->n_cached = 0;
    for (guint i = 0; i < n; i++) {
        g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", r->snapshot->blocks[i].base);
        r->cached[i].memory = open(path, O_RDWR | O_CLOEXEC);
    }
    if (n > 0 && n != r->snapshot->n_blocks) {
        for (guint i = 0; i < n; i++) {
            close(r->cached[i].present);
            close(r->cached[i].memory);
        }
        return fail(r->directory, error, "only some blocks are cached");
    }
    r->snapshot->cache = n > 0 ? sf_page_cache_new_from_fds(r->cached, n, error) : NULL;
    return n == 0 || r->snapshot->cache;
}

static SfSnapshot *restore(Restore *r, JsonObject *root, const pid_t *pids, guint n_pids, const int *fds, guint n_fds,
                           GError **error)
{
    if (!load_description(r, root, error)) {
        return NULL;
    }
    search_given(r, fds, n_fds);
    for (guint i = 0; i < n_pids && !all_found(r); i++) {
        search_fds(r, pids[i]);
    }
    for (guint i = 0; i < n_pids && !all_found(r); i++) {
        search_mappings(r, pids[i]);
    }
    if (!all_found(r)) {
        g_set_error(
            error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND,
            "snapshot %s: its memory is in none of %u processes: they have ended, or /proc/PID/fd and map_files can't "
            "be read (run sfvmmd as the user that started them)",
            r->snapshot->id, n_pids);
        return NULL;
    }
    return restore_cache(r, error) && sf_snapshot_validate(r->snapshot, error) ? sf_snapshot_ref(r->snapshot) : NULL;
}

SfSnapshot *sf_snapshot_restore_from(const char *directory, SfRamBase *base, const pid_t *pids, guint n_pids,
                                     const int *fds, guint n_fds, GError **error)
{
    g_autofree char *path = g_build_filename(directory, "snapshot.json", NULL);
    g_autofree char *text = NULL;
    g_autoptr(GArray) wanted = g_array_new(FALSE, FALSE, sizeof(Wanted));
    Restore r = { .directory = directory, .wanted = wanted };
    SfSnapshot *result;
    gsize length;
    guint64 version;

    if (!g_file_get_contents(path, &text, &length, error)) {
        return NULL;
    }
    g_autoptr(JsonObject) root = sf_json_line_parse(text, length, error);
    if (!root) {
        g_prefix_error(error, "%s: ", path);
        return NULL;
    }
    const char *id = get_text(&r, root, "id", error);
    if (!id || !get_int(&r, root, "version", SAVE_VERSION, &version, error)) {
        return NULL;
    }
    if (version != SAVE_VERSION) {
        fail(directory, error, "version %" PRIu64 ", expected %d", version, SAVE_VERSION);
        return NULL;
    }
    g_autoptr(SfSnapshot) snapshot = r.snapshot = sf_snapshot_new_empty(id, base);
    result = restore(&r, root, pids, n_pids, fds, n_fds, error);
    for (guint i = 0; i < r.n_cached; i++) { /* not taken by a cache */
        close(r.cached[i].present);
    }
    return result;
}

SfSnapshot *sf_snapshot_restore(const char *directory, SfRamBase *base, const pid_t *pids, guint n_pids, GError **error)
{
    return sf_snapshot_restore_from(directory, base, pids, n_pids, NULL, 0, error);
}
