/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     save:  name --> disk server over the frozen chains (unix socket) --> worker thread: memory, disks, descriptor,
 *            snapshot.json, each with its checksum, fsync --> rename --> fsync of the directory
 *
 * Disks are read through a disk server, not by qemu-img from the files: the layers of a chain were written by a QEMU
 * that its guest may have taken over, and their headers must be opened by a process without rights.
 *
 * A directory that is being written is called .NAME.part; it is removed after any error, and at the next start when
 * sfvmmd was killed. So whatever has the name of a snapshot is whole.
 */
#include "sfvmm/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "sfvmm/store/memory_file.h"
#include "sfvmm/store/sha256.h"
#include "sfvmm/vm/disk_server.h"
#include "sfvmm/wire/state_file.h"

#define DIRECTORY_MODE 0700
#define FILE_MODE      0600
#define PART_SUFFIX    ".part"
#define SOURCE_FILE    "source.json"
#define URI_MAX        1024u /* bytes */

struct SfStore {
    char *directory;
    SfLauncher *launcher; /* not owned */
    GHashTable *busy;     /* set of names that are being saved or loaded */
};

static gboolean fail_errno(GError **error, const char *path)
{
    int number = errno;

    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(number), "\"%s\": %s%s", path, g_strerror(number),
                number == ENOSPC || number == EDQUOT ? "; make room, or save it elsewhere (state-directory)" : "");
    return FALSE;
}

static char *store_path(SfStore *store, const char *name)
{
    return g_build_filename(store->directory, name, NULL);
}

SfStore *sf_store_new(const char *directory, SfLauncher *launcher)
{
    SfStore *store = g_new0(SfStore, 1);
    g_auto(GStrv) entries = sf_state_list(directory);

    store->directory = g_strdup(directory);
    store->launcher = launcher;
    store->busy = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (char **entry = entries; *entry; entry++) {
        if (**entry == '.' && g_str_has_suffix(*entry, PART_SUFFIX)) {
            g_autofree char *path = store_path(store, *entry);
            g_message("saved snapshot \"%s\": sfvmmd ended while it was written; removed", path);
            sf_state_remove_folder(path);
        }
    }
    return store;
}

void sf_store_free(SfStore *store)
{
    if (store) {
        g_hash_table_unref(store->busy);
        g_free(store->directory);
        g_free(store);
    }
}

GStrv sf_store_names(SfStore *store)
{
    GStrv entries = sf_state_list(store->directory);
    guint kept = 0;

    for (guint i = 0; entries[i]; i++) {
        if (sf_saved_name_is_valid(entries[i]) && !g_hash_table_contains(store->busy, entries[i])) {
            entries[kept++] = entries[i];
        } else {
            g_free(entries[i]);
        }
    }
    entries[kept] = NULL;
    return entries;
}

GStrv sf_store_busy(SfStore *store)
{
    g_autofree char **names = (char **)g_hash_table_get_keys_as_array(store->busy, NULL);

    return g_strdupv(names);
}

static gboolean check_name(const char *name, GError **error)
{
    if (!sf_saved_name_is_valid(name)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "snapshot name \"%.64s\": 1 to %u of a-z, 0-9, '.' and '-' are needed, a letter or digit first", name,
                    SF_SAVED_NAME_MAX);
        return FALSE;
    }
    return TRUE;
}

/* Is there one of that name? */
static gboolean check_exists(SfStore *store, const char *name, GError **error)
{
    g_autofree char *path = store_path(store, name);
    struct stat st;

    if (!check_name(name, error)) {
        return FALSE;
    }
    if (lstat(path, &st) < 0 || g_hash_table_contains(store->busy, name)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "snapshot \"%s\": %s", name,
                    g_hash_table_contains(store->busy, name) ? "it is being saved; try again when it is whole"
                                                             : "no snapshot of that name is saved on this host");
        return FALSE;
    }
    return TRUE;
}

/* A name for a new one: taken until sf_store_end(). */
static gboolean take_name(SfStore *store, const char *name, GError **error)
{
    g_autofree char *path = store_path(store, name);
    struct stat st;

    if (!check_name(name, error)) {
        return FALSE;
    }
    if (lstat(path, &st) == 0 || g_hash_table_contains(store->busy, name)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_EXISTS,
                    "snapshot \"%s\": the name is taken; choose another, or remove it first", name);
        return FALSE;
    }
    if (g_mkdir_with_parents(store->directory, DIRECTORY_MODE) < 0) {
        return fail_errno(error, store->directory);
    }
    g_hash_table_add(store->busy, g_strdup(name));
    return TRUE;
}

static char *source_path(SfStore *store, const char *name)
{
    return g_build_filename(store->directory, name, SOURCE_FILE, NULL);
}

SfSaved *sf_store_read(SfStore *store, const char *name, GError **error)
{
    g_autofree char *path = store_path(store, name);
    g_autofree char *source = source_path(store, name);
    g_autoptr(JsonObject) object = NULL;

    if (!check_exists(store, name, error)) {
        return NULL;
    }
    if (!g_file_test(source, G_FILE_TEST_EXISTS)) {
        return sf_saved_read(path, NULL, error);
    }
    object = sf_state_read(source, error);
    return object ? sf_saved_read(json_object_get_string_member_with_default(object, "directory", ""),
                                  json_object_get_string_member_with_default(object, "memory_uri", ""), error)
                  : NULL;
}

gboolean sf_store_is_link(SfStore *store, const char *name)
{
    g_autofree char *path = store_path(store, name);
    g_autofree char *source = source_path(store, name);

    return g_file_test(path, G_FILE_TEST_IS_SYMLINK) || g_file_test(source, G_FILE_TEST_EXISTS);
}

gboolean sf_store_remove(SfStore *store, const char *name, GError **error)
{
    g_autofree char *path = store_path(store, name);
    g_autofree char *hidden = g_strdup_printf("%s/.%s" PART_SUFFIX, store->directory, name);

    if (!check_exists(store, name, error)) {
        return FALSE;
    }
    if (g_file_test(path, G_FILE_TEST_IS_SYMLINK)) {
        return unlink(path) == 0 || fail_errno(error, path);
    }
    if (rename(path, hidden) < 0) { /* whole or gone, whatever happens while it is removed */
        return fail_errno(error, path);
    }
    sf_state_remove_folder(hidden);
    return TRUE;
}

/* ---- save ---- */

typedef struct {
    SfStore *store;
    char *name;
    char *part; /* the directory that is being written */
    SfSnapshot *snapshot;
    GPtrArray *frozen_disks; /* of SfDiskChain */
    SfDescriptor *descriptor;
    SfSaved *saved;
    SfDiskServer *server;  /* NULL: it has no disks */
    GPtrArray *disk_uris; /* of char * */
} SaveOp;

static void save_op_free(gpointer data)
{
    SaveOp *op = data;

    g_clear_pointer(&op->server, sf_disk_server_unref);
    g_clear_pointer(&op->snapshot, sf_snapshot_unref);
    g_clear_pointer(&op->frozen_disks, g_ptr_array_unref);
    g_clear_pointer(&op->descriptor, sf_descriptor_free);
    g_clear_pointer(&op->saved, sf_saved_free);
    g_ptr_array_unref(op->disk_uris);
    g_free(op->part);
    g_free(op->name);
    g_free(op);
}

/* A new file of the directory, to be filled and closed by sync_file(). */
static int create_file(const SaveOp *op, const char *name, GError **error)
{
    g_autofree char *path = g_build_filename(op->part, name, NULL);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, FILE_MODE);

    if (fd < 0) {
        fail_errno(error, path);
    }
    return fd;
}

/* Takes fd. ok FALSE: only closes it. */
static gboolean sync_file(int fd, gboolean ok, const char *name, GError **error)
{
    int saved;

    ok = ok && (fsync(fd) == 0 || fail_errno(error, name));
    saved = close(fd);
    return ok && (saved == 0 || fail_errno(error, name));
}

static gboolean write_bytes(const SaveOp *op, const char *name, const char *data, gsize length, GError **error)
{
    int fd = create_file(op, name, error);
    gboolean ok = TRUE;

    if (fd < 0) {
        return FALSE;
    }
    for (gsize done = 0; ok && done < length;) {
        ssize_t n = write(fd, data + done, length - done);
        ok = n > 0 || fail_errno(error, name);
        done += ok ? (gsize)n : 0;
    }
    return sync_file(fd, ok, name, error);
}

static gboolean write_memory(SaveOp *op, guint index, GError **error)
{
    SfDescriptorBlock *described = g_ptr_array_index(op->descriptor->blocks, index);
    SfSavedBlock *block = g_ptr_array_index(op->saved->blocks, index);
    int fd = create_file(op, block->file.name, error);
    GArray *runs;

    if (fd < 0) {
        return FALSE;
    }
    runs = sf_memory_file_write(&op->snapshot->blocks[index], described->present, fd, &block->file.sha256, error);
    if (runs) {
        g_array_unref(described->present);
        described->present = runs;
    }
    return sync_file(fd, runs != NULL, block->file.name, error);
}

static gboolean write_disk(SaveOp *op, guint index, GError **error)
{
    SfSavedDisk *disk = g_ptr_array_index(op->saved->disks, index);
    g_autofree char *path = g_build_filename(op->part, disk->file.name, NULL);
    int fd;

    if (!sf_disk_convert(sf_launcher_options(op->store->launcher)->qemu_img, g_ptr_array_index(op->disk_uris, index),
                         path, error)) {
        return FALSE;
    }
    disk->file.sha256 = sf_sha256_of_file(path, &disk->file.size, error);
    fd = disk->file.sha256 ? open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    if (fd < 0) {
        return disk->file.sha256 ? fail_errno(error, path) : FALSE;
    }
    return sync_file(fd, fchmod(fd, FILE_MODE) == 0 || fail_errno(error, path), disk->file.name, error);
}

static gboolean write_descriptions(SaveOp *op, GError **error)
{
    g_autoptr(GBytes) descriptor = sf_descriptor_encode(op->descriptor, error);
    g_autofree char *json = NULL;
    gsize length;

    if (!descriptor) {
        return FALSE;
    }
    op->saved->descriptor.name = g_strdup(SF_SAVED_DESCRIPTOR);
    op->saved->descriptor.size = g_bytes_get_size(descriptor);
    op->saved->descriptor.sha256 = sf_sha256_of_bytes(descriptor);
    json = sf_saved_format(op->saved, &length);
    return write_bytes(op, SF_SAVED_DESCRIPTOR, g_bytes_get_data(descriptor, NULL), g_bytes_get_size(descriptor),
                       error) &&
           write_bytes(op, SF_SAVED_JSON, json, length, error);
}

static gboolean sync_directory(const char *path, GError **error)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0) {
        return fail_errno(error, path);
    }
    return sync_file(fd, TRUE, path, error);
}

static gboolean save_all(SaveOp *op, GError **error)
{
    g_autofree char *path = store_path(op->store, op->name);

    for (guint i = 0; i < op->saved->blocks->len; i++) {
        if (!write_memory(op, i, error)) {
            return FALSE;
        }
    }
    for (guint i = 0; i < op->saved->disks->len; i++) {
        if (!write_disk(op, i, error)) {
            return FALSE;
        }
    }
    if (!write_descriptions(op, error) || !sync_directory(op->part, error)) {
        return FALSE;
    }
    return (rename(op->part, path) == 0 || fail_errno(error, path)) && sync_directory(op->store->directory, error);
}

static void save_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    SaveOp *op = data;
    GError *error = NULL;

    if (save_all(op, &error)) {
        g_task_return_boolean(task, TRUE);
    } else {
        sf_state_remove_folder(op->part);
        g_prefix_error(&error, "snapshot \"%s\" is not saved: ", op->name);
        g_task_return_error(task, error);
    }
}

/* Ends the outer task, of the caller. */
static void save_end(GTask *task, GError *error)
{
    SaveOp *op = g_task_get_task_data(task);

    g_hash_table_remove(op->store->busy, op->name);
    if (error) {
        sf_state_remove_folder(op->part);
        g_task_return_error(task, error);
    } else {
        g_task_return_boolean(task, TRUE);
    }
    g_object_unref(task);
}

static void on_saved(GObject *source, GAsyncResult *result, gpointer data)
{
    GError *error = NULL;

    g_task_propagate_boolean(G_TASK(result), &error);
    save_end(data, error);
}

static void save_run(GTask *task)
{
    g_autoptr(GTask) work = g_task_new(NULL, NULL, on_saved, task);

    g_task_set_task_data(work, g_task_get_task_data(task), NULL);
    g_task_run_in_thread(work, save_thread);
}

static void on_disks_served(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    SaveOp *op = g_task_get_task_data(task);
    GError *error = NULL;

    op->server = sf_disk_server_start_finish(result, &error);
    if (!op->server) {
        g_prefix_error(&error, "snapshot \"%s\" is not saved: its disks: ", op->name);
        save_end(task, error);
        return;
    }
    for (guint i = 0; i < op->saved->disks->len; i++) {
        const SfSavedDisk *disk = g_ptr_array_index(op->saved->disks, i);
        g_ptr_array_add(op->disk_uris, sf_disk_server_uri(op->server, disk->id));
    }
    save_run(task);
}

static void serve_disks(GTask *task)
{
    SaveOp *op = g_task_get_task_data(task);
    g_autofree char *id = g_strdup_printf("save-%s", op->name);
    SfDiskServerOptions options = { .id = id, .listen_fd = -1 };
    SfDiskExport exports[SF_DISK_SERVER_EXPORTS_MAX] = { 0 };

    for (guint i = 0; i < op->frozen_disks->len; i++) {
        const SfDiskChain *chain = g_ptr_array_index(op->frozen_disks, i);
        exports[i].name = chain->id;
        exports[i].chain = chain;
    }
    sf_disk_server_start_async(op->store->launcher, &options, exports, op->frozen_disks->len, on_disks_served, task);
}

/* After its id when that is fit for it, so that a server of the whole directory needs no table. */
static char *block_file_name(const char *id, guint index)
{
    gboolean fit = g_ascii_isalnum(*id) && strlen(id) < SF_SAVED_FILE_MAX / 2 &&
                   strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == strlen(id);

    return fit ? g_strdup_printf("%s.raw", id) : g_strdup_printf("block%u.raw", index);
}

/* What of snapshot.json is known before anything is written. */
static SfSaved *describe(const SaveOp *op, JsonObject *machine, gboolean agent, guint32 request)
{
    SfSaved *saved = sf_saved_new();

    saved->id = g_strdup(op->snapshot->id);
    saved->vm = g_strdup(op->descriptor->vm);
    saved->created = op->descriptor->created;
    saved->agent = agent;
    saved->request = request;
    saved->device_length = op->snapshot->device_length;
    saved->machine = machine;
    for (guint i = 0; i < op->snapshot->n_blocks; i++) {
        const SfBlock *block = &op->snapshot->blocks[i];
        sf_saved_add_block(saved, block->id, block->length)->file.name = block_file_name(block->id, i);
    }
    for (guint i = 0; i < op->frozen_disks->len; i++) {
        const SfDiskChain *chain = g_ptr_array_index(op->frozen_disks, i);
        sf_saved_add_disk(saved, chain->id, chain->size, chain->readonly)->file.name =
            g_strdup_printf("%s.qcow2", chain->id);
    }
    return saved;
}

void sf_store_save_async(SfStore *store, const char *name, SfSnapshot *snapshot, GPtrArray *frozen_disks,
                         SfDescriptor *descriptor, JsonObject *machine, gboolean agent, guint32 request, GAsyncReadyCallback callback,
                         gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    SaveOp *op = g_new0(SaveOp, 1);
    GError *error = NULL;

    op->store = store;
    op->name = g_strdup(name);
    op->part = g_strdup_printf("%s/.%s" PART_SUFFIX, store->directory, name);
    op->snapshot = sf_snapshot_ref(snapshot);
    op->frozen_disks = g_ptr_array_ref(frozen_disks);
    op->descriptor = descriptor;
    op->disk_uris = g_ptr_array_new_with_free_func(g_free);
    op->saved = describe(op, machine, agent, request);
    g_task_set_task_data(task, op, save_op_free);
    if (!take_name(store, name, &error)) {
        g_task_return_error(task, error);
        g_object_unref(task);
        return;
    }
    if (mkdir(op->part, DIRECTORY_MODE) < 0) {
        fail_errno(&error, op->part);
        save_end(task, error);
    } else if (frozen_disks->len > 0) {
        serve_disks(task);
    } else {
        save_run(task);
    }
}

gboolean sf_store_save_finish(SfStore *store, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}

/* ---- load ---- */

typedef struct {
    SfStore *store;
    char *directory;
    char *memory_uri; /* or NULL */
    char *name;
} LoadOp;

static void load_op_free(gpointer data)
{
    LoadOp *op = data;

    g_free(op->directory);
    g_free(op->memory_uri);
    g_free(op->name);
    g_free(op);
}

static void load_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    LoadOp *op = data;
    GError *error = NULL;
    g_autoptr(SfSaved) saved = sf_saved_read(op->directory, op->memory_uri, &error);

    if (saved && sf_saved_verify(saved, &error)) {
        g_task_return_boolean(task, TRUE);
    } else {
        g_task_return_error(task, error);
    }
}

static gboolean make_link(LoadOp *op, GError **error)
{
    g_autofree char *path = store_path(op->store, op->name);
    g_autofree char *source = source_path(op->store, op->name);
    g_autoptr(JsonObject) object = NULL;

    if (!op->memory_uri) {
        return symlink(op->directory, path) == 0 || fail_errno(error, path);
    }
    object = json_object_new();
    json_object_set_string_member(object, "directory", op->directory);
    json_object_set_string_member(object, "memory_uri", op->memory_uri);
    if (mkdir(path, DIRECTORY_MODE) < 0) {
        return fail_errno(error, path);
    }
    if (!sf_state_write(source, object, error)) {
        sf_state_remove_folder(path);
        return FALSE;
    }
    return TRUE;
}

/* An NBD URI (of the kinds that libnbd knows) in printable characters. */
static gboolean check_uri(const char *uri, GError **error)
{
    static const char *const schemes[] = { "nbd://", "nbds://", "nbd+unix://", "nbds+unix://" };
    gboolean ok = strlen(uri) <= URI_MAX;
    gboolean known = FALSE;

    for (const char *p = uri; *p; p++) {
        ok = ok && g_ascii_isgraph(*p);
    }
    for (guint i = 0; i < G_N_ELEMENTS(schemes); i++) {
        known = known || g_str_has_prefix(uri, schemes[i]);
    }
    if (!ok || !known) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                    "memory at \"%.64s\": an NBD URI is needed, nbds://HOST:PORT/EXPORT for instance, with {block} for the "
                    "id of a block",
                    uri);
    }
    return ok && known;
}

static void on_verified(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    LoadOp *op = g_task_get_task_data(task);
    GError *error = NULL;
    gboolean ok = g_task_propagate_boolean(G_TASK(result), &error) && make_link(op, &error);

    g_hash_table_remove(op->store->busy, op->name);
    if (ok) {
        g_task_return_boolean(task, TRUE);
    } else {
        g_task_return_error(task, error);
    }
}

void sf_store_load_async(SfStore *store, const char *directory, const char *memory_uri, const char *name,
                         GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    LoadOp *op = g_new0(LoadOp, 1);
    g_autoptr(GTask) work = NULL;
    GError *error = NULL;

    op->store = store;
    op->directory = g_strdup(directory);
    op->memory_uri = g_strdup(memory_uri);
    op->name = g_strdup(name);
    g_task_set_task_data(task, op, load_op_free);
    if (!g_path_is_absolute(directory)) {
        g_set_error(&error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "snapshot in \"%s\": give its absolute path",
                    directory);
    } else if (!memory_uri || check_uri(memory_uri, &error)) {
        take_name(store, name, &error);
    }
    if (error) {
        g_task_return_error(task, error);
        g_object_unref(task);
        return;
    }
    work = g_task_new(NULL, NULL, on_verified, task);
    g_task_set_task_data(work, op, NULL);
    g_task_run_in_thread(work, load_thread);
}

gboolean sf_store_load_finish(SfStore *store, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}
