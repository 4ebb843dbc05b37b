/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * A block is three memfds: its memory, sparse and of sealed size; the runs that are present at the source, for
 * sf-pager; and these with small gaps closed, for QEMU, which maps each as an area of its own and can have only so
 * many. How small a gap may be is chosen so that the list fits: gaps of one page first, then ever wider ones.
 */
#include "sfvmm/memory/page_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "sfvmm/wire/qemu_message.h"

#define GAP_FIRST  (16 * SF_PAGE_SIZE) /* bytes; up to here a fault of its own is cheaper than an area */
#define STAT_BLOCK 512                 /* bytes, of st_blocks */

G_GNUC_PRINTF(2, 3) static gboolean fail(GError **error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "page cache: %s", text);
    return FALSE;
}

static gboolean fail_errno(GError **error, const char *id, const char *what)
{
    int saved = errno;

    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved), "page cache of block %s: %s: %s", id, what,
                g_strerror(saved));
    return FALSE;
}

static SfPageCache *cache_new(guint n_blocks)
{
    SfPageCache *cache = g_new0(SfPageCache, 1);

    cache->refs = 1;
    cache->n_blocks = n_blocks;
    for (guint i = 0; i < SF_QC_MAX_BLOCKS; i++) {
        SfCachedBlock *block = &cache->blocks[i];
        block->memory = block->memory_ro = block->present = block->mapped = -1;
    }
    return cache;
}

static int reopen_read_only(int fd)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);

    return open(path, O_RDONLY | O_CLOEXEC);
}

/* ---- extents ---- */

/* Closes gaps of at most `gap` bytes. */
static GArray *close_gaps(const struct sf_qc_extent *extents, guint n, guint64 gap)
{
    GArray *closed = g_array_new(FALSE, FALSE, sizeof(struct sf_qc_extent));

    for (guint i = 0; i < n; i++) {
        struct sf_qc_extent *last =
            closed->len ? &g_array_index(closed, struct sf_qc_extent, closed->len - 1) : NULL;
        if (last && extents[i].offset - (last->offset + last->length) <= gap) {
            last->length = extents[i].offset + extents[i].length - last->offset;
        } else {
            g_array_append_val(closed, extents[i]);
        }
    }
    return closed;
}

static int extents_memfd(const char *id, const struct sf_qc_extent *extents, guint n, GError **error)
{
    gsize size = n * sizeof(*extents);
    int fd = memfd_create("sf-extents", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    for (gsize done = 0; fd >= 0 && done < size;) {
        ssize_t written = pwrite(fd, (const char *)extents + done, size - done, done);
        if (written <= 0) {
            fail_errno(error, id, "a list of extents can't be written");
            close(fd);
            return -1;
        }
        done += written;
    }
    if (fd < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        fail_errno(error, id, "no memory file");
        return -1;
    }
    return fd;
}

/* What follows from the present runs. */
static gboolean set_mapped(SfCachedBlock *block, const struct sf_qc_extent *extents, GError **error)
{
    guint64 gap = GAP_FIRST;
    g_autoptr(GArray) closed = close_gaps(extents, block->n_present, gap);

    while (closed->len > SF_QC_MAX_PRESENT) {
        g_array_unref(closed);
        gap *= 2;
        closed = close_gaps(extents, block->n_present, gap);
    }
    block->present_bytes = 0;
    for (guint i = 0; i < block->n_present; i++) {
        block->present_bytes += extents[i].length;
    }
    block->n_mapped = closed->len;
    block->mapped = extents_memfd(block->id, (const void *)closed->data, closed->len, error);
    return block->mapped >= 0;
}

/* ---- making ---- */

static gboolean set_present(SfCachedBlock *block, const GArray *runs, GError **error)
{
    g_autofree struct sf_qc_extent *extents = g_try_new(struct sf_qc_extent, MAX(runs->len, 1));

    if (!extents || runs->len > SF_QC_MAX_EXTENTS) {
        return fail(error, "block %s has %u present runs, at most %u can be", block->id, runs->len, SF_QC_MAX_EXTENTS);
    }
    for (guint i = 0; i < runs->len; i++) {
        const SfRun *run = &g_array_index(runs, SfRun, i);
        extents[i] = (struct sf_qc_extent){ .offset = run->offset, .length = run->length };
    }
    block->n_present = runs->len;
    if (!sf_qc_check_extents(extents, block->n_present, block->length, error)) {
        g_prefix_error(error, "page cache of block %s: ", block->id);
        return FALSE;
    }
    block->present = extents_memfd(block->id, extents, block->n_present, error);
    return block->present >= 0 && set_mapped(block, extents, error);
}

/* All of a block, as if the VM had used it. */
static gboolean set_all_present(SfCachedBlock *block, GError **error)
{
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    SfRun all = { .offset = 0, .length = block->length };

    g_array_append_val(runs, all);
    return set_present(block, runs, error);
}

static gboolean fill_block(SfCachedBlock *block, const SfCachedBlockSpec *spec, guint avoid, GError **error)
{
    if (strlen(spec->id) == 0 || strlen(spec->id) >= sizeof(block->id) || spec->length == 0 ||
        spec->length % SF_PAGE_SIZE || spec->length > SF_QC_MAX_LENGTH) {
        return fail(error, "a block %.64s of %" G_GUINT64_FORMAT " bytes", spec->id, spec->length);
    }
    strcpy(block->id, spec->id);
    block->length = spec->length;
    block->memory = memfd_create("sf-cache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (block->memory < 0 || ftruncate(block->memory, spec->length) < 0 ||
        fcntl(block->memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        return fail_errno(error, spec->id, "no memory file");
    }
    block->memory_ro = reopen_read_only(block->memory);
    if (block->memory_ro < 0) {
        return fail_errno(error, spec->id, "it can't be opened read-only");
    }
    return avoid & SF_AVOID_FREE ? set_present(block, spec->present, error) : set_all_present(block, error);
}

SfPageCache *sf_page_cache_new(const SfCachedBlockSpec *blocks, guint n_blocks, guint avoid, GError **error)
{
    g_autoptr(SfPageCache) cache = NULL;

    if (n_blocks == 0 || n_blocks > SF_QC_MAX_BLOCKS) {
        fail(error, "%u RAM blocks; 1 to %d can be", n_blocks, SF_QC_MAX_BLOCKS);
        return NULL;
    }
    cache = cache_new(n_blocks);
    cache->avoid = avoid;
    for (guint i = 0; i < n_blocks; i++) {
        if (!fill_block(&cache->blocks[i], &blocks[i], avoid, error)) {
            return NULL;
        }
    }
    return g_steal_pointer(&cache);
}

static gboolean check_block(SfCachedBlock *block, GError **error)
{
    gsize size = block->n_present * sizeof(struct sf_qc_extent);
    g_autofree struct sf_qc_extent *extents = g_try_malloc(MAX(size, 1));
    struct stat st;

    if (fstat(block->memory, &st) < 0 || !S_ISREG(st.st_mode) || (guint64)st.st_size < block->length ||
        (fcntl(block->memory, F_GETFL) & O_ACCMODE) != O_RDWR) {
        return fail(error, "block %s: the descriptor is no writable memory file of its size", block->id);
    }
    if (!extents || pread(block->present, extents, size, 0) != (ssize_t)size ||
        !sf_qc_check_extents(extents, block->n_present, block->length, NULL)) {
        return fail(error, "block %s: its present runs can't be read", block->id);
    }
    block->memory_ro = reopen_read_only(block->memory);
    return block->memory_ro >= 0 ? set_mapped(block, extents, error)
                                 : fail_errno(error, block->id, "it can't be opened read-only");
}

SfPageCache *sf_page_cache_new_from_fds(const SfCachedBlock *blocks, guint n_blocks, GError **error)
{
    g_autoptr(SfPageCache) cache = cache_new(n_blocks);

    cache->avoid = SF_AVOID_ALL;
    for (guint i = 0; i < n_blocks; i++) {
        SfCachedBlock *block = &cache->blocks[i];
        memcpy(block->id, blocks[i].id, sizeof(block->id));
        block->length = blocks[i].length;
        block->n_present = blocks[i].n_present;
        block->memory = blocks[i].memory;
        block->present = blocks[i].present;
    }
    for (guint i = 0; i < n_blocks; i++) {
        if (!check_block(&cache->blocks[i], error)) {
            return NULL;
        }
    }
    return g_steal_pointer(&cache);
}

SfPageCache *sf_page_cache_ref(SfPageCache *cache)
{
    cache->refs++;
    return cache;
}

void sf_page_cache_unref(SfPageCache *cache)
{
    if (!cache || --cache->refs > 0) {
        return;
    }
    for (guint i = 0; i < SF_QC_MAX_BLOCKS; i++) {
        const int fds[] = { cache->blocks[i].memory, cache->blocks[i].memory_ro, cache->blocks[i].present,
                            cache->blocks[i].mapped };
        for (guint j = 0; j < G_N_ELEMENTS(fds); j++) {
            if (fds[j] >= 0) {
                close(fds[j]);
            }
        }
    }
    g_free(cache);
}

/* ---- looking ---- */

guint64 sf_page_cache_present_bytes(const SfPageCache *cache)
{
    guint64 bytes = 0;

    for (guint i = 0; i < cache->n_blocks; i++) {
        bytes += cache->blocks[i].present_bytes;
    }
    return bytes;
}

guint64 sf_page_cache_free_bytes(const SfPageCache *cache)
{
    guint64 bytes = 0;

    for (guint i = 0; i < cache->n_blocks; i++) {
        bytes += cache->blocks[i].length - cache->blocks[i].present_bytes;
    }
    return bytes;
}

guint64 sf_page_cache_resident_bytes(const SfPageCache *cache)
{
    guint64 bytes = 0;
    struct stat st;

    for (guint i = 0; i < cache->n_blocks; i++) {
        if (fstat(cache->blocks[i].memory, &st) == 0) {
            bytes += (guint64)st.st_blocks * STAT_BLOCK;
        }
    }
    return bytes;
}
