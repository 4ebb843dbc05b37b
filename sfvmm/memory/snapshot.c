/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A snapshot is a bundle of read-only descriptors. Where its layers come from:
 *
 *     fork of                            layers of the snapshot
 *     a VM that was started, 1st time    base
 *     the same, base needed by others    base, delta with all private pages of that VM
 *     a clone                            the layers it was loaded from, delta with all its private pages
 *     (elsewhere)                        a page cache, which has all layers of the source flattened; filled on demand
 *
 * A delta always holds everything that is private to its VM, so layers grow by one with each generation of clones, not
 * with each fork. Generations are bounded twice: by SF_QC_MAX_LAYERS, and by the descriptors that one LOAD can carry. A
 * fork beyond is refused at the snapshot, when the parent still has everything.
 *
 * SfRamBase counts the snapshots over one family's memfds; nothing else may say whether those may be written again.
 */
#include "sfvmm/memory/snapshot_private.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "sfvmm/wire/qemu_message.h"

struct SfRamBase {
    int refs;
    guint snapshots;
};

SfRamBase *sf_ram_base_new(void)
{
    SfRamBase *base = g_new0(SfRamBase, 1);

    base->refs = 1;
    return base;
}

SfRamBase *sf_ram_base_ref(SfRamBase *base)
{
    base->refs++;
    return base;
}

void sf_ram_base_unref(SfRamBase *base)
{
    if (base && --base->refs == 0) {
        g_assert(base->snapshots == 0);
        g_free(base);
    }
}

gboolean sf_ram_base_in_use(const SfRamBase *base)
{
    return base->snapshots > 0;
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
}

SfSnapshot *sf_snapshot_new_empty(const char *id, SfRamBase *base)
{
    SfSnapshot *snapshot = g_new0(SfSnapshot, 1);

    snapshot->refs = 1;
    snapshot->id = g_strdup(id);
    snapshot->base = sf_ram_base_ref(base);
    snapshot->base->snapshots++;
    snapshot->state = -1;
    for (guint i = 0; i < SF_QC_MAX_BLOCKS; i++) {
        snapshot->blocks[i].base = -1;
        for (guint j = 0; j < SF_QC_MAX_LAYERS; j++) {
            snapshot->blocks[i].layers[j].delta = snapshot->blocks[i].layers[j].extents = -1;
        }
    }
    return snapshot;
}

SfSnapshot *sf_snapshot_new_lost(const char *id, SfRamBase *base)
{
    SfSnapshot *snapshot = sf_snapshot_new_empty(id, base);

    snapshot->lost = TRUE;
    return snapshot;
}

SfSnapshot *sf_snapshot_ref(SfSnapshot *snapshot)
{
    snapshot->refs++;
    return snapshot;
}

void sf_snapshot_unref(SfSnapshot *snapshot)
{
    if (!snapshot || --snapshot->refs > 0) {
        return;
    }
    close_fd(&snapshot->state);
    g_clear_pointer(&snapshot->cache, sf_page_cache_unref);
    for (guint i = 0; i < SF_QC_MAX_BLOCKS; i++) {
        close_fd(&snapshot->blocks[i].base);
        for (guint j = 0; j < SF_QC_MAX_LAYERS; j++) {
            close_fd(&snapshot->blocks[i].layers[j].delta);
            close_fd(&snapshot->blocks[i].layers[j].extents);
        }
    }
    snapshot->base->snapshots--;
    sf_ram_base_unref(snapshot->base);
    g_free(snapshot->id);
    g_free(snapshot);
}

G_GNUC_PRINTF(3, 4)
static gboolean fail(const SfSnapshot *snapshot, GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "snapshot %s: %s", snapshot->id, text);
    return FALSE;
}

/* Is fd a regular file (a memfd) of at least length bytes? */
static gboolean check_file(const SfSnapshot *snapshot, int fd, guint64 length, const char *what, GError **error)
{
    struct stat st;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        return fail(snapshot, error, "the descriptor of %s is no memory file", what);
    }
    if ((guint64)st.st_size < length) {
        return fail(snapshot, error, "%s has %" G_GINT64_FORMAT " bytes, %" G_GUINT64_FORMAT " expected", what,
                    (gint64)st.st_size, length);
    }
    return TRUE;
}

static gboolean duplicate_fd(const SfSnapshot *snapshot, int fd, int *copy, GError **error)
{
    *copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (*copy < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                    "snapshot %s: a descriptor can't be duplicated: %s; raise the limit of open files (LimitNOFILE)",
                    snapshot->id, g_strerror(errno));
        return FALSE;
    }
    return TRUE;
}

/* The layers below the new one: those that the forked clone was loaded from. */
static gboolean inherit_layers(SfSnapshot *snapshot, const SfSnapshot *parent, guint index, GError **error)
{
    SfBlock *block = &snapshot->blocks[index];
    const SfBlock *below = &parent->blocks[index];

    if (strcmp(block->id, below->id) != 0 || block->length != below->length) {
        return fail(snapshot, error, "RAM block %s differs from %s of snapshot %s, which the VM was loaded from",
                    block->id, below->id, parent->id);
    }
    for (guint i = 0; i < below->n_layers; i++) {
        SfLayer *layer = &block->layers[block->n_layers++];
        layer->n_extents = below->layers[i].n_extents;
        if (!duplicate_fd(snapshot, below->layers[i].delta, &layer->delta, error) ||
            !duplicate_fd(snapshot, below->layers[i].extents, &layer->extents, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* How many descriptors a LOAD of it carries, or a MAP. */
static guint count_fds(const SfSnapshot *snapshot)
{
    guint n = 1; /* state; of a MAP the userfaultfd device */

    for (guint i = 0; i < snapshot->n_blocks; i++) {
        n += 1 + !!snapshot->cache + 2 * snapshot->blocks[i].n_layers;
    }
    return n;
}

gboolean sf_snapshot_validate(const SfSnapshot *snapshot, GError **error)
{
    if (!check_file(snapshot, snapshot->state, snapshot->state_length, "device state", error)) {
        return FALSE;
    }
    for (guint i = 0; i < snapshot->n_blocks; i++) {
        const SfBlock *block = &snapshot->blocks[i];
        if (!check_file(snapshot, block->base, block->length, block->id, error)) {
            return FALSE;
        }
        for (guint j = 0; j < block->n_layers; j++) {
            const SfLayer *layer = &block->layers[j];
            if (!check_file(snapshot, layer->delta, block->length, "a delta", error) ||
                !check_file(snapshot, layer->extents, layer->n_extents * sizeof(struct sf_qc_extent), "an extent list",
                            error)) {
                return FALSE;
            }
        }
    }
    if (count_fds(snapshot) > SF_QC_MAX_FDS) {
        g_set_error(
            error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
            "snapshot %s: %u memory files, at most %d can be loaded: clones of clones of clones too deep; fork an "
            "older generation",
            snapshot->id, count_fds(snapshot), SF_QC_MAX_FDS);
        return FALSE;
    }
    return TRUE;
}

/* Another open file of the same memory, with an offset of its own. -1 and errno. */
static int open_read_only(int fd)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);

    return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

/* A clone that got a writable descriptor could change its siblings' memory: whatever QEMU sent, keep it read-only. */
static gboolean make_all_read_only(const SfSnapshot *snapshot, int *fds, guint n_fds, GError **error)
{
    for (guint i = 0; i < n_fds; i++) {
        int flags = fcntl(fds[i], F_GETFL);
        if (flags >= 0 && (flags & O_ACCMODE) == O_RDONLY) {
            continue;
        }
        int reopened = open_read_only(fds[i]);
        if (reopened < 0) {
            return fail(snapshot, error, "a memory file can't be opened read-only: %s", g_strerror(errno));
        }
        close(fds[i]);
        fds[i] = reopened;
    }
    return TRUE;
}

/* Moves the received descriptors into the snapshot's places; what is taken becomes -1 in fds. */
static gboolean fill(SfSnapshot *snapshot, const SfSnapshot *parent, const struct sf_qc_snapshot_block *blocks,
                     int *fds, GError **error)
{
    guint next = 0;

#define TAKE(place) (place = fds[next], fds[next++] = -1)
    if (parent && parent->lost) {
        return fail(snapshot, error, "snapshot %s, which the VM was loaded from, was lost when sfvmmd restarted",
                    parent->id);
    }
    if (parent && parent->n_blocks != snapshot->n_blocks) {
        return fail(snapshot, error, "%u RAM blocks, but the VM was loaded with %u", snapshot->n_blocks,
                    parent->n_blocks);
    }
    if (parent && parent->cache) {
        snapshot->cache = sf_page_cache_ref(parent->cache);
    }
    TAKE(snapshot->state);
    for (guint i = 0; i < snapshot->n_blocks; i++) {
        SfBlock *block = &snapshot->blocks[i];
        memcpy(block->id, blocks[i].id, sizeof(block->id));
        block->length = blocks[i].length;
        TAKE(block->base);
        if (parent && !inherit_layers(snapshot, parent, i, error)) {
            return FALSE;
        }
        if (!blocks[i].has_delta) {
            continue;
        }
        if (block->n_layers == SF_QC_MAX_LAYERS) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                        "snapshot %s: more than %d generations of clones; fork an older generation", snapshot->id,
                        SF_QC_MAX_LAYERS);
            return FALSE;
        }
        SfLayer *layer = &block->layers[block->n_layers++];
        layer->n_extents = blocks[i].n_extents;
        TAKE(layer->delta);
        TAKE(layer->extents);
    }
#undef TAKE
    return TRUE;
}

SfSnapshot *sf_snapshot_new(const char *id, SfRamBase *base, const SfSnapshot *parent_snapshot, GBytes *payload,
                            int *fds, guint n_fds, GError **error)
{
    g_autoptr(SfSnapshot) snapshot = sf_snapshot_new_empty(id, base);
    struct sf_qc_snapshot_block blocks[SF_QC_MAX_BLOCKS];
    gboolean ok = FALSE;

    if (sf_qc_parse_snapshot(payload, n_fds, &snapshot->timing, blocks, error)) {
        snapshot->state_length = snapshot->timing.state_length;
        snapshot->device_length = snapshot->timing.device_length;
        snapshot->n_blocks = snapshot->timing.n_blocks;
        ok = make_all_read_only(snapshot, fds, n_fds, error) && fill(snapshot, parent_snapshot, blocks, fds, error) &&
             sf_snapshot_validate(snapshot, error);
    }
    for (guint i = 0; i < n_fds; i++) {
        close_fd(&fds[i]);
    }
    return ok ? g_steal_pointer(&snapshot) : NULL;
}

/*
 * Clones are loaded at the same time, and descriptors that were sent with SCM_RIGHTS share one file offset: who reads
 * the state with read() would read past others. So each clone gets an open file of its own.
 */
static gboolean renew_state(SfSnapshot *snapshot, GError **error)
{
    int fd = open_read_only(snapshot->state);

    if (fd < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                    "snapshot %s: its state can't be opened again: %s; raise the limit of open files (LimitNOFILE)",
                    snapshot->id, g_strerror(errno));
        return FALSE;
    }
    close(snapshot->state);
    snapshot->state = fd;
    return TRUE;
}

/* One block of a LOAD or MAP; the descriptors stay the snapshot's. */
static void add_block(const SfSnapshot *snapshot, guint index, gboolean map, GByteArray *payload, int *fds, guint *n)
{
    const SfBlock *block = &snapshot->blocks[index];
    struct sf_qc_load_block entry = { .length = block->length, .n_layers = block->n_layers };

    memcpy(entry.id, block->id, sizeof(entry.id));
    fds[(*n)++] = block->base;
    if (map && snapshot->cache) {
        entry.flags = SF_QC_BLOCK_LAZY;
        entry.n_present = snapshot->cache->blocks[index].n_mapped;
        fds[(*n)++] = snapshot->cache->blocks[index].mapped;
    }
    for (guint i = 0; i < block->n_layers; i++) {
        entry.n_extents[i] = block->layers[i].n_extents;
        fds[(*n)++] = block->layers[i].delta;
        fds[(*n)++] = block->layers[i].extents;
    }
    g_byte_array_append(payload, (const guint8 *)&entry, sizeof(entry));
}

GBytes *sf_snapshot_load_request(SfSnapshot *snapshot, guint32 flags, int fds[SF_QC_MAX_FDS], guint *n_fds,
                                 GError **error)
{
    gboolean mapped = flags & SF_QC_LOAD_MAPPED;
    struct sf_qc_load load = { .flags = flags,
                               .n_blocks = mapped ? 0 : snapshot->n_blocks,
                               .state_length = snapshot->state_length };
    GByteArray *payload;
    guint n = 0;

    if (!renew_state(snapshot, error)) {
        return NULL;
    }
    payload = g_byte_array_new();
    g_byte_array_append(payload, (const guint8 *)&load, sizeof(load));
    fds[n++] = snapshot->state;
    for (guint i = 0; i < load.n_blocks; i++) {
        add_block(snapshot, i, FALSE, payload, fds, &n);
    }
    *n_fds = n;
    return g_byte_array_free_to_bytes(payload);
}

GBytes *sf_snapshot_map_request(SfSnapshot *snapshot, int userfaultfd, int fds[SF_QC_MAX_FDS], guint *n_fds,
                                GError **error)
{
    struct sf_qc_load load = { .n_blocks = snapshot->n_blocks };
    GByteArray *payload;
    guint n = 0;

    if (count_fds(snapshot) > SF_QC_MAX_FDS) {
        fail(snapshot, error, "%u memory files, at most %d can be mapped", count_fds(snapshot), SF_QC_MAX_FDS);
        return NULL;
    }
    if (snapshot->cache && (snapshot->cache->avoid & SF_AVOID_READ)) {
        load.flags = SF_QC_MAP_OVERWRITES;
    }
    payload = g_byte_array_new();
    g_byte_array_append(payload, (const guint8 *)&load, sizeof(load));
    fds[n++] = userfaultfd;
    for (guint i = 0; i < snapshot->n_blocks; i++) {
        add_block(snapshot, i, TRUE, payload, fds, &n);
    }
    *n_fds = n;
    return g_byte_array_free_to_bytes(payload);
}

/* ---- Snapshots from elsewhere ---- */

static int state_memfd(const SfSnapshot *snapshot, GBytes *state, GError **error)
{
    gsize length;
    const char *bytes = g_bytes_get_data(state, &length);
    int fd = memfd_create("sf-state", MFD_CLOEXEC), read_only = -1;
    gsize done = 0;

    while (fd >= 0 && done < length) {
        ssize_t n = pwrite(fd, bytes + done, length - done, done);
        if (n <= 0) {
            break;
        }
        done += n;
    }
    if (fd >= 0 && done == length) {
        read_only = open_read_only(fd);
    }
    if (read_only < 0) {
        fail(snapshot, error, "no memory file for its device state: %s", g_strerror(errno));
    }
    close_fd(&fd);
    return read_only;
}

SfSnapshot *sf_snapshot_new_cached(const char *id, SfRamBase *base, SfPageCache *cache, GBytes *device_state,
                                   guint64 device_length, GError **error)
{
    g_autoptr(SfSnapshot) snapshot = sf_snapshot_new_empty(id, base);

    snapshot->cache = sf_page_cache_ref(cache);
    snapshot->state_length = g_bytes_get_size(device_state);
    snapshot->device_length = device_length;
    snapshot->timing.state_length = snapshot->state_length;
    snapshot->timing.device_length = device_length;
    snapshot->timing.n_blocks = snapshot->n_blocks = cache->n_blocks;
    if (snapshot->state_length == 0 || snapshot->state_length > SF_QC_MAX_STATE || device_length == 0 ||
        device_length > snapshot->state_length) {
        fail(snapshot, error, "device state of %" G_GUINT64_FORMAT " bytes, %" G_GUINT64_FORMAT " of them of devices",
             snapshot->state_length, device_length);
        return NULL;
    }
    snapshot->state = state_memfd(snapshot, device_state, error);
    if (snapshot->state < 0) {
        return NULL;
    }
    for (guint i = 0; i < cache->n_blocks; i++) {
        SfBlock *block = &snapshot->blocks[i];
        memcpy(block->id, cache->blocks[i].id, sizeof(block->id));
        block->length = cache->blocks[i].length;
        if (!duplicate_fd(snapshot, cache->blocks[i].memory_ro, &block->base, error)) {
            return NULL;
        }
    }
    return sf_snapshot_validate(snapshot, error) ? g_steal_pointer(&snapshot) : NULL;
}

gboolean sf_snapshot_is_lazy(const SfSnapshot *snapshot)
{
    return snapshot->cache != NULL;
}

/* ---- Page map ---- */

static void add_run(GArray *runs, guint64 start, guint64 end, guint64 length)
{
    SfRun run = { .offset = start - start % SF_PAGE_SIZE };

    end = MIN((end + SF_PAGE_SIZE - 1) / SF_PAGE_SIZE * SF_PAGE_SIZE, length);
    if (run.offset < end) {
        run.length = end - run.offset;
        g_array_append_val(runs, run);
    }
}

/* The parts of a memfd in a range that have memory behind them. Each lseek is absolute: sharing the file offset with
 * QEMU is harmless. */
static gboolean add_file_runs(const SfSnapshot *snapshot, int fd, guint64 start, guint64 end, GArray *runs,
                              GError **error)
{
    off_t hole = start;

    while ((guint64)hole < end) {
        off_t data = lseek(fd, hole, SEEK_DATA);
        if ((data < 0 && errno == ENXIO) || (data >= 0 && (guint64)data >= end)) {
            break; /* only a hole is left */
        }
        hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
        if (hole < 0) {
            g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                        "snapshot %s: its memory file can't be searched: %s", snapshot->id, g_strerror(errno));
            return FALSE;
        }
        add_run(runs, data, hole, end);
    }
    return TRUE;
}

/* Extents of a layer or a cache, as runs: of SfRun. */
static GArray *read_extents(const SfSnapshot *snapshot, int fd, guint n, guint64 length, GError **error)
{
    gsize size = n * sizeof(struct sf_qc_extent);
    g_autofree struct sf_qc_extent *extents = g_try_malloc(size);
    GArray *runs;

    if (size && !extents) {
        fail(snapshot, error, "no memory for %u extents", n);
        return NULL;
    }
    if (size && pread(fd, extents, size, 0) != (ssize_t)size) {
        fail(snapshot, error, "its extents can't be read: %s", g_strerror(errno));
        return NULL;
    }
    if (!sf_qc_check_extents(extents, n, length, error)) {
        g_prefix_error(error, "snapshot %s: ", snapshot->id);
        return NULL;
    }
    runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    for (guint i = 0; i < n; i++) {
        add_run(runs, extents[i].offset, extents[i].offset + extents[i].length, length);
    }
    return runs;
}

/* What the source of a cache has, arrived or not. */
static gboolean add_present_runs(const SfSnapshot *snapshot, const SfCachedBlock *block, GArray *runs, GError **error)
{
    g_autoptr(GArray) present = read_extents(snapshot, block->present, block->n_present, block->length, error);

    if (present) {
        g_array_append_vals(runs, present->data, present->len);
    }
    return present != NULL;
}

static int compare_runs(gconstpointer a, gconstpointer b)
{
    const SfRun *x = a, *y = b;

    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Sorts, and joins what touches or overlaps, in place. */
static void merge_runs(GArray *runs)
{
    guint kept = 0;

    g_array_sort(runs, compare_runs);
    for (guint i = 1; i < runs->len; i++) {
        SfRun *last = &g_array_index(runs, SfRun, kept);
        SfRun run = g_array_index(runs, SfRun, i);
        if (run.offset <= last->offset + last->length) {
            last->length = MAX(last->offset + last->length, run.offset + run.length) - last->offset;
        } else {
            g_array_index(runs, SfRun, ++kept) = run;
        }
    }
    if (runs->len) {
        g_array_set_size(runs, kept + 1);
    }
}

/* Runs without what others cover; both sorted and disjoint. */
static GArray *subtract_runs(const GArray *runs, const GArray *others)
{
    GArray *rest = g_array_new(FALSE, FALSE, sizeof(SfRun));
    guint j = 0;

    for (guint i = 0; i < runs->len; i++) {
        SfRun run = g_array_index(runs, SfRun, i);
        guint64 at = run.offset, end = run.offset + run.length;
        while (j < others->len && at < end) {
            const SfRun *other = &g_array_index(others, SfRun, j);
            if (other->offset >= end) {
                break;
            }
            add_run(rest, at, MIN(MAX(other->offset, at), end), end);
            at = MAX(at, other->offset + other->length);
            if (at <= end) {
                j++; /* else it may cover the next one too */
            }
        }
        add_run(rest, at, end, end);
    }
    return rest;
}

/* A layer's extents hide what is below; of them, what has no memory behind it is zero (the VM has given it away). */
static GArray *put_layer(const SfSnapshot *snapshot, const SfBlock *block, const SfLayer *layer, const GArray *below,
                         GError **error)
{
    g_autoptr(GArray) extents = read_extents(snapshot, layer->extents, layer->n_extents, block->length, error);
    g_autoptr(GArray) runs = NULL;

    if (!extents) {
        return NULL;
    }
    runs = subtract_runs(below, extents);
    for (guint i = 0; i < extents->len; i++) {
        const SfRun *extent = &g_array_index(extents, SfRun, i);
        if (!add_file_runs(snapshot, layer->delta, extent->offset, extent->offset + extent->length, runs, error)) {
            return NULL;
        }
    }
    merge_runs(runs);
    return g_steal_pointer(&runs);
}

GArray *sf_snapshot_present_runs(const SfSnapshot *snapshot, guint index, GError **error)
{
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));

    g_assert(index < snapshot->n_blocks);
    const SfBlock *block = &snapshot->blocks[index];
    if (snapshot->cache ? !add_present_runs(snapshot, &snapshot->cache->blocks[index], runs, error)
                        : !add_file_runs(snapshot, block->base, 0, block->length, runs, error)) {
        return NULL;
    }
    merge_runs(runs);
    for (guint i = 0; i < block->n_layers; i++) {
        GArray *above = put_layer(snapshot, block, &block->layers[i], runs, error);
        if (!above) {
            return NULL;
        }
        g_array_unref(runs);
        runs = above;
    }
    return g_steal_pointer(&runs);
}
