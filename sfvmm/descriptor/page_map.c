/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/descriptor/page_map.h"

#define VARINT_BITS 7
#define VARINT_MORE 0x80u
#define VARINT_MAX  9 /* bytes: 63 bits, far above any page number */

static void append_varint(GByteArray *bytes, guint64 value)
{
    guint8 byte;

    do {
        byte = value & (VARINT_MORE - 1);
        value >>= VARINT_BITS;
        byte |= value ? VARINT_MORE : 0;
        g_byte_array_append(bytes, &byte, 1);
    } while (value);
}

GByteArray *sf_page_map_pack(const GArray *runs)
{
    GByteArray *bytes = g_byte_array_new();
    guint64 end = 0; /* of the run before, bytes */

    for (guint i = 0; i < runs->len; i++) {
        const SfRun *run = &g_array_index(runs, SfRun, i);
        append_varint(bytes, (run->offset - end) / SF_PAGE_SIZE);
        append_varint(bytes, run->length / SF_PAGE_SIZE);
        end = run->offset + run->length;
    }
    return bytes;
}

/* Takes one varint off; FALSE when it is cut, too long or has a needless last byte. */
static gboolean take_varint(const guint8 **p, const guint8 *end, guint64 *value)
{
    *value = 0;
    for (guint i = 0; i < VARINT_MAX && *p < end; i++) {
        guint8 byte = *(*p)++;
        *value |= (guint64)(byte & (VARINT_MORE - 1)) << (i * VARINT_BITS);
        if (!(byte & VARINT_MORE)) {
            return byte != 0 || i == 0;
        }
    }
    return FALSE;
}

GArray *sf_page_map_unpack(const guint8 *bytes, gsize n_bytes, guint64 length, guint max_runs, GError **error)
{
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(SfRun));
    const guint8 *p = bytes, *end = n_bytes ? bytes + n_bytes : bytes;
    guint64 pages = length / SF_PAGE_SIZE, at = 0, gap, count;

    while (p < end) {
        if (!take_varint(&p, end, &gap) || !take_varint(&p, end, &count)) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "page map: broken number before byte %zu",
                        (gsize)(p - bytes));
            return NULL;
        }
        if ((gap == 0 && runs->len) || gap > pages - at || count == 0 || count > pages - at - gap) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "page map: run %u is empty or out of order",
                        runs->len);
            return NULL;
        }
        if (runs->len == max_runs) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "page map: more than %u runs", max_runs);
            return NULL;
        }
        SfRun run = { .offset = (at + gap) * SF_PAGE_SIZE, .length = count * SF_PAGE_SIZE };
        g_array_append_val(runs, run);
        at += gap + count;
    }
    return g_steal_pointer(&runs);
}

gboolean sf_page_map_check(const GArray *runs, guint64 length, GError **error)
{
    guint64 end = 0;

    for (guint i = 0; i < runs->len; i++) {
        const SfRun *run = &g_array_index(runs, SfRun, i);
        if (run->offset % SF_PAGE_SIZE || run->length % SF_PAGE_SIZE || run->length == 0 || run->offset < end ||
            (i && run->offset == end) || run->offset > length || run->length > length - run->offset) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                        "page map: run %u, %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT
                        ", is empty, unaligned or out of order",
                        i, run->offset, run->length);
            return FALSE;
        }
        end = run->offset + run->length;
    }
    return TRUE;
}
