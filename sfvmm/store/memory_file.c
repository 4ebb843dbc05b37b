/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * For each stretch of a present run the newest layer that covers it is found, and read; what no layer covers is the
 * base's. Extents are sorted, so each layer has a cursor that only moves on:
 *
 *     delta 2          [====]                          offset ----->
 *     delta 1     [===========]        [===]
 *     base     [xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx]
 *     read      b  1   2    1     b      1    b
 */
#include "sfvmm/store/memory_file.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>
#include "sfvmm/store/sha256.h"
#include "sfvmm/wire/qemu_message.h"

#define CHUNK (1u << 20) /* bytes, a multiple of the page size */

typedef struct {
    int delta;
    struct sf_qc_extent *extents;
    guint n, next; /* next: the first extent that does not end before the present offset */
} Cursor;

typedef struct {
    const SfBlock *block;
    Cursor cursors[SF_QC_MAX_LAYERS]; /* lowest first */
    int fd;
    SfSha256 *sum;
    GArray *runs; /* of SfRun, written */
    guint8 buffer[CHUNK];
} Writer;

static gboolean fail_errno(const Writer *w, const char *what, GError **error)
{
    int number = errno;

    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(number), "memory %s can't be %s: %s%s", w->block->id, what,
                g_strerror(number), number == ENOSPC || number == EDQUOT ? "; make room, or save it elsewhere" : "");
    return FALSE;
}

static gboolean load_extents(Writer *w, guint index, GError **error)
{
    const SfLayer *layer = &w->block->layers[index];
    Cursor *cursor = &w->cursors[index];
    gsize size = layer->n_extents * sizeof(struct sf_qc_extent);

    cursor->delta = layer->delta;
    cursor->n = layer->n_extents;
    cursor->extents = g_try_malloc(MAX(size, 1));
    if (!cursor->extents || pread(layer->extents, cursor->extents, size, 0) != (ssize_t)size) {
        return fail_errno(w, "read", error);
    }
    return sf_qc_check_extents(cursor->extents, cursor->n, w->block->length, error);
}

/* The memfd that has the content at offset, and for how many bytes (at most *length) it does. */
static int find_source(Writer *w, guint64 offset, guint64 *length)
{
    for (guint i = w->block->n_layers; i-- > 0;) {
        Cursor *cursor = &w->cursors[i];
        const struct sf_qc_extent *extent;
        while (cursor->next < cursor->n && cursor->extents[cursor->next].offset + cursor->extents[cursor->next].length <= offset) {
            cursor->next++;
        }
        if (cursor->next == cursor->n) {
            continue;
        }
        extent = &cursor->extents[cursor->next];
        if (extent->offset <= offset) {
            *length = MIN(*length, extent->offset + extent->length - offset);
            return cursor->delta;
        }
        *length = MIN(*length, extent->offset - offset);
    }
    return w->block->base;
}

static gboolean read_stretch(Writer *w, guint64 offset, gsize length, GError **error)
{
    for (gsize done = 0; done < length;) {
        guint64 n = length - done;
        int fd = find_source(w, offset + done, &n);
        ssize_t got = pread(fd, w->buffer + done, n, (off_t)(offset + done));
        if (got <= 0) {
            errno = got < 0 ? errno : EIO;
            return fail_errno(w, "read", error);
        }
        done += (gsize)got;
    }
    return TRUE;
}

static gboolean is_zero(const guint8 *page)
{
    return page[0] == 0 && memcmp(page, page + 1, SF_PAGE_SIZE - 1) == 0;
}

static gboolean write_run(Writer *w, const guint8 *data, guint64 offset, gsize length, GError **error)
{
    SfRun *last = w->runs->len ? &g_array_index(w->runs, SfRun, w->runs->len - 1) : NULL;

    for (gsize done = 0; done < length;) {
        ssize_t n = pwrite(w->fd, data + done, length - done, (off_t)(offset + done));
        if (n <= 0) {
            return fail_errno(w, "written", error);
        }
        done += (gsize)n;
    }
    if (last && last->offset + last->length == offset) {
        last->length += length;
    } else {
        SfRun run = { offset, length };
        g_array_append_val(w->runs, run);
    }
    return TRUE;
}

/* The pages of the buffer that are not zero. */
static gboolean write_stretch(Writer *w, guint64 offset, gsize length, GError **error)
{
    gsize start = 0;

    for (gsize at = 0; at <= length; at += SF_PAGE_SIZE) {
        if (at < length && !is_zero(w->buffer + at)) {
            continue;
        }
        if (at > start && !write_run(w, w->buffer + start, offset + start, at - start, error)) {
            return FALSE;
        }
        start = at + SF_PAGE_SIZE;
    }
    return TRUE;
}

static gboolean write_all(Writer *w, const GArray *present, GError **error)
{
    guint64 done = 0;

    if (ftruncate(w->fd, (off_t)w->block->length) < 0) {
        return fail_errno(w, "written", error);
    }
    for (guint i = 0; i < present->len; i++) {
        const SfRun *run = &g_array_index(present, SfRun, i);
        sf_sha256_zeros(w->sum, run->offset - done);
        for (done = run->offset; done < run->offset + run->length;) {
            gsize length = MIN(CHUNK, run->offset + run->length - done);
            if (!read_stretch(w, done, length, error) || !write_stretch(w, done, length, error)) {
                return FALSE;
            }
            sf_sha256_update(w->sum, w->buffer, length);
            done += length;
        }
    }
    sf_sha256_zeros(w->sum, w->block->length - done);
    return TRUE;
}

GArray *sf_memory_file_write(const SfBlock *block, const GArray *present, int fd, char **sha256, GError **error)
{
    Writer *w = g_new0(Writer, 1);
    gboolean ok = TRUE;

    w->block = block;
    w->fd = fd;
    w->sum = sf_sha256_new();
    w->runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    for (guint i = 0; ok && i < block->n_layers; i++) {
        ok = load_extents(w, i, error);
    }
    ok = ok && write_all(w, present, error);
    for (guint i = 0; i < block->n_layers; i++) {
        g_free(w->cursors[i].extents);
    }
    GArray *runs = w->runs;
    if (ok) {
        *sha256 = sf_sha256_finish(w->sum);
    } else {
        sf_sha256_free(w->sum);
        g_clear_pointer(&runs, g_array_unref);
    }
    g_free(w);
    return runs;
}
