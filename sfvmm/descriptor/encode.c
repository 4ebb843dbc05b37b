/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation: libfdt's sequential writer fills a buffer of fixed size from the first property to the last.
 * What is large (page maps, device state) is packed once, before, so the size is known well enough; if it still does
 * not fit, the buffer is doubled and the tree written again. Errors of libfdt stick in Writer.err, so that the writing
 * itself reads as the tree does.
 */
#include "sfvmm/descriptor/descriptor_private.h"

#include <libfdt.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include "sfvmm/descriptor/page_map.h"

#define TREE_SIZE      65536u /* bytes for all but the packed parts, at first */
#define ZSTD_LEVEL     1      /* 6 makes 7 % less, but takes ms to touch its tables for the first time */
#define INDEX_NAME_MAX 32u    /* "block@0" */

/* A part that is packed: raw bytes, as they are or compressed. */
typedef struct {
    GBytes *data;
    const char *encoding;
    guint64 length; /* of the raw bytes */
    guint32 crc;
} Packed;

typedef struct {
    void *tree;
    int err; /* libfdt's; 0: none yet */
} Writer;

static void clear_packed(gpointer data)
{
    g_bytes_unref(((Packed *)data)->data);
}

static Packed pack(const void *raw, gsize length)
{
    gsize room = ZSTD_compressBound(length);
    g_autofree void *compressed = g_malloc(room);
    size_t size = ZSTD_compress(compressed, room, raw, length, ZSTD_LEVEL);
    gboolean smaller = !ZSTD_isError(size) && size < length;

    return (Packed){
        .data = smaller ? g_bytes_new(compressed, size) : g_bytes_new(raw, length),
        .encoding = smaller ? SF_DT_ENCODING_ZSTD : SF_DT_ENCODING_NONE,
        .length = length,
        .crc = crc32(0, raw, length),
    };
}

static void put_bytes(Writer *w, const char *name, const void *bytes, gsize length)
{
    w->err = w->err ? w->err : fdt_property(w->tree, name, bytes, length);
}

static void put_text(Writer *w, const char *name, const char *text)
{
    put_bytes(w, name, text, strlen(text) + 1);
}

static void put_u32(Writer *w, const char *name, guint32 value)
{
    w->err = w->err ? w->err : fdt_property_u32(w->tree, name, value);
}

static void put_u64(Writer *w, const char *name, guint64 value)
{
    w->err = w->err ? w->err : fdt_property_u64(w->tree, name, value);
}

/* Texts one behind the other, each with its NUL; an empty list has no property. */
static void put_list(Writer *w, const char *name, GStrv list)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    for (char **entry = list; entry && *entry; entry++) {
        g_byte_array_append(bytes, (const guint8 *)*entry, strlen(*entry) + 1);
    }
    if (bytes->len) {
        put_bytes(w, name, bytes->data, bytes->len);
    }
}

static void begin(Writer *w, const char *name)
{
    w->err = w->err ? w->err : fdt_begin_node(w->tree, name);
}

static void begin_indexed(Writer *w, const char *name, guint index)
{
    char full[INDEX_NAME_MAX];

    g_snprintf(full, sizeof(full), "%s@%x", name, index);
    begin(w, full);
}

static void end(Writer *w)
{
    w->err = w->err ? w->err : fdt_end_node(w->tree);
}

static void put_packed(Writer *w, const char *name, const Packed *packed)
{
    gsize size;
    const void *data = g_bytes_get_data(packed->data, &size);

    begin(w, name);
    put_text(w, "encoding", packed->encoding);
    put_u64(w, "length", packed->length);
    put_u32(w, "crc32", packed->crc);
    put_bytes(w, "data", data ? data : "", size);
    end(w);
}

static void put_memory(Writer *w, const SfDescriptor *d, const Packed *maps)
{
    begin(w, "memory");
    put_u64(w, "size", d->memory);
    put_u32(w, "page-size", SF_PAGE_SIZE);
    for (guint i = 0; i < d->blocks->len; i++) {
        const SfDescriptorBlock *block = g_ptr_array_index(d->blocks, i);
        begin_indexed(w, "block", i);
        put_text(w, "id", block->id);
        put_u64(w, "length", block->length);
        put_packed(w, "present", &maps[i]);
        end(w);
    }
    end(w);
}

static void put_disks(Writer *w, const SfDescriptor *d)
{
    begin(w, "disks");
    for (guint i = 0; i < d->disks->len; i++) {
        const SfDescriptorDisk *disk = g_ptr_array_index(d->disks, i);
        begin_indexed(w, "disk", i);
        put_text(w, "id", disk->id);
        put_u64(w, "size", disk->size);
        put_text(w, "format", disk->format);
        put_text(w, "base", disk->base);
        end(w);
    }
    end(w);
}

static void put_tree(Writer *w, const SfDescriptor *d, const Packed *maps, const Packed *state)
{
    begin(w, "");
    put_text(w, "compatible", SF_DT_COMPATIBLE);
    put_u32(w, "version", d->version);
    put_text(w, "id", d->id);
    put_text(w, "vm", d->vm);
    put_u64(w, "created", d->created);
    put_list(w, "lineage", d->lineage);
    put_list(w, "page-sources", d->page_sources);

    begin(w, "machine");
    put_text(w, "type", d->machine);
    put_text(w, "accel", d->accel);
    put_text(w, "qemu-version", d->qemu_version);
    put_text(w, "config-hash", d->config_hash);
    end(w);

    begin(w, "cpus");
    put_text(w, "model", d->cpu);
    put_u32(w, "count", d->vcpus);
    end(w);

    put_memory(w, d, maps);
    put_disks(w, d);
    put_packed(w, "device-state", state);
    end(w);
}

/* One attempt with a buffer of size bytes: the tree, or NULL and libfdt's error. */
static GBytes *write_tree(const SfDescriptor *d, const Packed *maps, const Packed *state, gsize size, int *err)
{
    g_autofree void *tree = g_malloc0(size);
    Writer w = { .tree = tree };

    w.err = fdt_create(tree, size);
    w.err = w.err ? w.err : fdt_finish_reservemap(tree);
    put_tree(&w, d, maps, state);
    w.err = w.err ? w.err : fdt_finish(tree);
    *err = w.err;
    return w.err ? NULL : g_bytes_new(tree, fdt_totalsize(tree));
}

static gsize packed_size(const GArray *parts)
{
    gsize size = 0;

    for (guint i = 0; i < parts->len; i++) {
        size += g_bytes_get_size(g_array_index(parts, Packed, i).data);
    }
    return size;
}

GBytes *sf_descriptor_encode(const SfDescriptor *d, GError **error)
{
    g_autoptr(GArray) parts = g_array_new(FALSE, FALSE, sizeof(Packed)); /* the page maps, then the state */
    int err = -FDT_ERR_NOSPACE;
    gsize length;

    if (!sf_descriptor_check(d, error)) {
        return NULL;
    }
    g_array_set_clear_func(parts, clear_packed);
    for (guint i = 0; i < d->blocks->len; i++) {
        const SfDescriptorBlock *block = g_ptr_array_index(d->blocks, i);
        g_autoptr(GByteArray) map = sf_page_map_pack(block->present);
        Packed packed = pack(map->data, map->len);
        g_array_append_val(parts, packed);
    }
    const void *raw = g_bytes_get_data(d->device_state, &length);
    Packed state = pack(raw, length);
    g_array_append_val(parts, state);

    const Packed *maps = &g_array_index(parts, Packed, 0);
    for (gsize size = packed_size(parts) + TREE_SIZE; err == -FDT_ERR_NOSPACE; size *= 2) {
        g_autoptr(GBytes) bytes = write_tree(d, maps, &state, size, &err);
        if (bytes && g_bytes_get_size(bytes) > SF_DESCRIPTOR_MAX_SIZE) {
            g_set_error(
                error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                "VM descriptor %s: %zu bytes, at most %u are allowed: its device state hardly compresses, or its "
                "memory is in too many pieces",
                d->id, g_bytes_get_size(bytes), SF_DESCRIPTOR_MAX_SIZE);
            return NULL;
        }
        if (bytes) {
            return g_steal_pointer(&bytes);
        }
    }
    g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "VM descriptor %s: libfdt: %s", d->id, fdt_strerror(err));
    return NULL;
}
