/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     add --> WAITING --- no layer is shared ---> RUNNING (worker thread) ---> gone
 *              ^  |                                  |
 *              |  |                                  |
 *              '--|------ failed: again after 1, 2, 4 ... 60 s
 *                 |
 *                 '--- somebody else has written to the image ---> REFUSED: image and overlays are kept as they are
 *
 * Images of a domain are libvirtd's to give away: a sfvmmd that may not write to them has libvirtd commit.
 *
 * While there is anything to do, a timer looks at what waits; one commit runs at a time. The frozen layers of an ended
 * VM are released by its last clone, which nobody announces, but looking costs next to nothing.
 *
 * Each chain has a file in the directory, written before it is waited for and removed after its overlays are. A process
 * that ends in between leaves it to the next one; doing a commit again does no harm. An overlay that is missing then
 * says that only the file was left to be removed.
 */
#include "sfvmm/disk/late_commit.h"

#include <errno.h>
#include <gio/gio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sfvmm/wire/state_file.h"

#define LOOK_MS           100u
#define RETRY_SECONDS_MIN 1u /* files that libvirt has still to give back, a lock of a process that is just ending */
#define RETRY_SECONDS_MAX 60u
#define DIRECTORY_MODE    0700
#define NS_PER_S          1000000000ll

typedef struct {
    char *record; /* path of its file */
    char *vm;
    char *uri;          /* of its domain's libvirtd; NULL: it was none */
    SfDiskChain *chain; /* the worker's while it runs */
    char *image;        /* path of its lowest layer */
    gint64 written;     /* to that, when the VM had ended: its mtime in ns. 0: nobody knows */
    gboolean begun;     /* since then we have perhaps written to it, too */
    gint64 not_before;  /* g_get_monotonic_time(), after a failure */
    guint retry;        /* seconds from the last failure until then */
} Entry;

struct SfLateCommits {
    char *directory;
    char *qemu_img;
    SfLateCommitByLibvirt by_libvirt; /* NULL: it can't be asked */
    char *qemu;
    GPtrArray *entries; /* of Entry */
    Entry *running;     /* one of them, or NULL */
    guint timer;
};

static void entry_free(gpointer data)
{
    Entry *entry = data;

    g_clear_pointer(&entry->chain, sf_disk_chain_free);
    g_free(entry->image);
    g_free(entry->record);
    g_free(entry->vm);
    g_free(entry->uri);
    g_free(entry);
}

/* Takes chain, which has no bases. */
static Entry *entry_new(const char *record, const char *vm, const char *uri, SfDiskChain *chain)
{
    const SfDiskLayer *image = g_ptr_array_index(chain->layers, 0);
    Entry *entry = g_new0(Entry, 1);

    entry->record = g_strdup(record);
    entry->vm = g_strdup(vm);
    entry->uri = g_strdup(uri);
    entry->chain = chain;
    entry->image = g_strdup(image->path);
    return entry;
}

/* ---- its record ---- */

static gboolean write_record(const SfLateCommits *commits, const Entry *entry, GError **error)
{
    g_autoptr(JsonObject) object = json_object_new();

    if (g_mkdir_with_parents(commits->directory, DIRECTORY_MODE) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", commits->directory, g_strerror(errno));
        return FALSE;
    }
    json_object_set_string_member(object, "vm", entry->vm);
    if (entry->uri) {
        json_object_set_string_member(object, "uri", entry->uri);
    }
    json_object_set_int_member(object, "written", entry->written);
    json_object_set_boolean_member(object, "begun", entry->begun);
    json_object_set_object_member(object, "chain", sf_disk_chain_to_json(entry->chain));
    return sf_state_write(entry->record, object, error);
}

static Entry *read_record(const char *path, GError **error)
{
    g_autoptr(JsonObject) object = sf_state_read(path, error);
    JsonNode *chain_node = object ? json_object_get_member(object, "chain") : NULL;
    const char *vm = object ? json_object_get_string_member_with_default(object, "vm", "?") : NULL;
    const char *uri = object ? json_object_get_string_member_with_default(object, "uri", NULL) : NULL;
    SfDiskChain *chain;
    Entry *entry;

    if (!object) {
        return NULL;
    }
    if (!chain_node || !JSON_NODE_HOLDS_OBJECT(chain_node)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "%s: no chain in it", path);
        return NULL;
    }
    chain = sf_disk_chain_from_json(json_node_get_object(chain_node), error);
    if (!chain) {
        return NULL;
    }
    sf_disk_chain_drop_bases(chain);
    entry = entry_new(path, vm, uri, chain);
    entry->written = json_object_get_int_member_with_default(object, "written", 0);
    entry->begun = json_object_get_boolean_member_with_default(object, "begun", FALSE);
    return entry;
}

/* ---- who writes to the image ---- */

/* 0: it can't be known (a block device, perhaps). */
static gint64 last_written(const char *image)
{
    struct stat st;

    return stat(image, &st) == 0 && S_ISREG(st.st_mode) ? st.st_mtim.tv_sec * NS_PER_S + st.st_mtim.tv_nsec : 0;
}

/* Overlays hold blocks of the image as it was: over one that has changed they would be ruin. */
static gboolean image_is_as_it_was(const Entry *entry)
{
    gint64 now = last_written(entry->image);

    return entry->begun || entry->written == 0 || now == 0 || now == entry->written;
}

/* On record before it is so, as sfvmmd may be killed meanwhile. */
static void set_begun(const SfLateCommits *commits, Entry *entry, gboolean begun)
{
    g_autoptr(GError) error = NULL;

    entry->begun = begun;
    if (!write_record(commits, entry, &error)) {
        g_warning("VM %s: %s; what it wrote to %s is lost if sfvmmd ends before it is committed", entry->vm,
                  error->message, entry->image);
    }
}

static void refuse(Entry *entry)
{
    const SfDiskLayer *top = g_ptr_array_index(entry->chain->layers, entry->chain->layers->len - 1);

    g_warning(
        "VM %s: %s was written to since the VM ended, so what it wrote is not put into it; it is kept in %s and below "
        "(to give that up, end sfvmmd and remove %s)",
        entry->vm, entry->image, top->path, entry->record);
    entry->not_before = G_MAXINT64;
}

/* ---- a commit ---- */

/* What libvirt gave its QEMUs it gives back in its own time, or to others than us. */
static gboolean may_write(const SfDiskChain *chain)
{
    for (guint i = 0; i < chain->layers->len; i++) {
        const SfDiskLayer *layer = g_ptr_array_index(chain->layers, i);
        if (access(layer->path, R_OK | W_OK) < 0) {
            return FALSE;
        }
    }
    return TRUE;
}

typedef struct {
    SfLateCommits *commits;
    Entry *entry;
    gboolean begun;
} Work;

static void commit_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    Work *work = data;
    const SfLateCommits *commits = work->commits;
    SfDiskChain *chain = work->entry->chain;
    GError *error = NULL;
    gboolean ok;

    if (work->entry->uri && commits->by_libvirt && !may_write(chain)) {
        ok = commits->by_libvirt(commits->qemu, work->entry->uri, chain, &work->begun, &error);
        if (ok) {
            g_ptr_array_set_size(chain->layers, 1); /* removes the overlays */
        }
    } else {
        ok = sf_disk_commit_offline(commits->qemu_img, chain, &work->begun, &error);
    }
    if (ok) {
        g_task_return_boolean(task, TRUE);
    } else {
        g_task_return_error(task, error);
    }
}

static void on_committed(GObject *source, GAsyncResult *result, gpointer data)
{
    Work *work = g_task_get_task_data(G_TASK(result));
    Entry *entry = work->entry;
    g_autoptr(GError) error = NULL;

    work->commits->running = NULL;
    if (g_task_propagate_boolean(G_TASK(result), &error)) {
        g_message("VM %s: what it wrote to %s is in %s", entry->vm, entry->chain->id, entry->image);
        unlink(entry->record);
        g_ptr_array_remove(work->commits->entries, entry);
        return;
    }
    entry->retry = CLAMP(2 * entry->retry, RETRY_SECONDS_MIN, RETRY_SECONDS_MAX);
    g_warning(
        "VM %s: %s; tried again in %u s, until it succeeds its overlays are kept (to give them up, end sfvmmd and "
        "remove %s)",
        entry->vm, error->message, entry->retry, entry->record);
    entry->not_before = g_get_monotonic_time() + (gint64)entry->retry * G_USEC_PER_SEC;
    set_begun(work->commits, entry, work->begun);
}

static void start_commit(SfLateCommits *commits, Entry *entry)
{
    GTask *task;
    Work *work;

    if (!image_is_as_it_was(entry)) {
        refuse(entry);
        return;
    }
    task = g_task_new(NULL, NULL, on_committed, NULL);
    work = g_new0(Work, 1);
    work->commits = commits;
    work->entry = entry;
    work->begun = entry->begun;
    commits->running = entry;
    set_begun(commits, entry, TRUE);
    g_task_set_task_data(task, work, g_free);
    g_task_run_in_thread(task, commit_thread);
    g_object_unref(task);
}

static gboolean on_look(gpointer data)
{
    SfLateCommits *commits = data;
    gint64 now = g_get_monotonic_time();

    for (guint i = 0; i < commits->entries->len && !commits->running; i++) {
        Entry *entry = g_ptr_array_index(commits->entries, i);
        if (entry->not_before <= now && !sf_disk_chain_is_shared(entry->chain)) {
            start_commit(commits, entry);
        }
    }
    if (commits->entries->len == 0) {
        commits->timer = 0;
        return G_SOURCE_REMOVE;
    }
    return G_SOURCE_CONTINUE;
}

static void watch(SfLateCommits *commits)
{
    if (!commits->timer) {
        commits->timer = g_timeout_add_full(G_PRIORITY_LOW, LOOK_MS, on_look, commits, NULL);
    }
}

/* ---- what waits ---- */

static gboolean has_all_files(const SfDiskChain *chain)
{
    for (guint i = 1; i < chain->layers->len; i++) {
        const SfDiskLayer *layer = g_ptr_array_index(chain->layers, i);
        if (!g_file_test(layer->path, G_FILE_TEST_EXISTS)) {
            return FALSE;
        }
    }
    return TRUE;
}

static void take_over(SfLateCommits *commits, const char *file)
{
    g_autofree char *path = g_build_filename(commits->directory, file, NULL);
    g_autoptr(GError) error = NULL;
    Entry *entry = read_record(path, &error);

    if (!entry) {
        g_warning("late commit: %s", error->message);
    } else if (!has_all_files(entry->chain)) {
        unlink(path);
        entry_free(entry);
    } else {
        g_ptr_array_add(commits->entries, entry);
        watch(commits);
    }
}

SfLateCommits *sf_late_commits_new(const char *directory, const char *qemu_img)
{
    SfLateCommits *commits = g_new0(SfLateCommits, 1);
    g_auto(GStrv) files = sf_state_list(directory);

    commits->directory = g_strdup(directory);
    commits->qemu_img = g_strdup(qemu_img);
    commits->entries = g_ptr_array_new_with_free_func(entry_free);
    for (char **file = files; *file; file++) {
        if (g_str_has_suffix(*file, ".json")) {
            take_over(commits, *file);
        }
    }
    return commits;
}

void sf_late_commits_use_libvirt(SfLateCommits *commits, SfLateCommitByLibvirt by_libvirt, const char *qemu)
{
    commits->by_libvirt = by_libvirt;
    commits->qemu = g_strdup(qemu);
}

void sf_late_commits_free(SfLateCommits *commits)
{
    if (!commits) {
        return;
    }
    g_assert(commits->entries->len == 0);
    g_clear_handle_id(&commits->timer, g_source_remove);
    g_ptr_array_unref(commits->entries);
    g_free(commits->directory);
    g_free(commits->qemu_img);
    g_free(commits->qemu);
    g_free(commits);
}

void sf_late_commits_add(SfLateCommits *commits, const char *vm, const char *uri_or_null, SfDiskChain *chain)
{
    g_autofree char *file = NULL, *path = NULL;
    Entry *entry;

    sf_disk_chain_drop_bases(chain);
    if (chain->readonly || chain->layers->len < 2) {
        sf_disk_chain_free(chain);
        return;
    }
    file = g_strdup_printf("%s-%s-%08x.json", vm, chain->id, g_random_int());
    path = g_build_filename(commits->directory, file, NULL);
    entry = entry_new(path, vm, uri_or_null, chain);
    entry->written = last_written(entry->image);
    set_begun(commits, entry, FALSE);
    g_ptr_array_add(commits->entries, entry);
    watch(commits);
}

const char *sf_late_commits_owner(const SfLateCommits *commits, const char *image)
{
    for (guint i = 0; i < commits->entries->len; i++) {
        const Entry *entry = g_ptr_array_index(commits->entries, i);
        if (g_str_equal(entry->image, image)) {
            return entry->vm;
        }
    }
    return NULL;
}

gboolean sf_late_commits_active(const SfLateCommits *commits, const char *vm)
{
    for (guint i = 0; i < commits->entries->len; i++) {
        const Entry *entry = g_ptr_array_index(commits->entries, i);
        if (g_str_equal(entry->vm, vm) &&
            (commits->running == entry || (entry->not_before == 0 && !sf_disk_chain_is_shared(entry->chain)))) {
            return TRUE;
        }
    }
    return FALSE;
}

guint sf_late_commits_waiting(const SfLateCommits *commits)
{
    return commits->entries->len;
}
