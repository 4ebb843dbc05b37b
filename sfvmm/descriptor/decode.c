/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation: a version has exactly the nodes and properties that encode.c writes; anything unknown, missing,
 * twice or of another size is an error, and so is anything behind the tree. The order of work is such that nothing is
 * believed before it is checked:
 *
 *   size -> version of the tree -> fdt_check_full (its own structure) -> compatible, version -> nodes and properties by
 * name -> packed parts: claimed length within bounds, compressed frame says the same, unpacks to just that, CRC ->
 * values within bounds
 *
 * What a claimed length may allocate is bounded by SF_DESCRIPTOR_MAX_STATE, for a page map also by its block's size.
 */
#include "sfvmm/descriptor/descriptor_private.h"

#include <libfdt.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include "sfvmm/descriptor/page_map.h"

#define FDT_VERSION    17  /* of the format; libfdt writes no other */
#define INDEX_NAME_MAX 32u /* "block@0" */

/* Where we are: for messages, and to walk the properties. */
typedef struct {
    const void *tree;
    int node;
    const char *name;
} Node;

/* Has the node no property but these (NULL-terminated), and each at most once? */
static gboolean check_properties(const Node *node, const char *const *names, GError **error)
{
    guint seen = 0; /* a bit for each of names */
    int offset;

    fdt_for_each_property_offset (offset, node->tree, node->node) {
        const char *name = NULL;
        int length;
        guint i = 0;

        if (!fdt_getprop_by_offset(node->tree, offset, &name, &length) || !name) {
            return sf_descriptor_invalid(error, "%s: broken property", node->name);
        }
        while (names[i] && !g_str_equal(names[i], name)) {
            i++;
        }
        if (!names[i] || (seen & (1u << i))) {
            return sf_descriptor_invalid(error, "%s: %s property", node->name, names[i] ? "repeated" : "unknown");
        }
        seen |= 1u << i;
    }
    return TRUE;
}

static const void *get(const Node *node, const char *name, int *length, GError **error)
{
    const void *value = fdt_getprop(node->tree, node->node, name, length);

    if (!value) {
        sf_descriptor_invalid(error, "%s: %s is missing", node->name, name);
    }
    return value;
}

static gboolean get_u32(const Node *node, const char *name, guint32 *value, GError **error)
{
    int length;
    const fdt32_t *raw = get(node, name, &length, error);

    if (raw && length != sizeof(*raw)) {
        sf_descriptor_invalid(error, "%s: %s is no 32-bit number", node->name, name);
        return FALSE;
    }
    if (raw) {
        *value = fdt32_ld(raw);
    }
    return raw != NULL;
}

static gboolean get_u64(const Node *node, const char *name, guint64 *value, GError **error)
{
    int length;
    const fdt64_t *raw = get(node, name, &length, error);

    if (raw && length != sizeof(*raw)) {
        sf_descriptor_invalid(error, "%s: %s is no 64-bit number", node->name, name);
        return FALSE;
    }
    if (raw) {
        *value = fdt64_ld(raw);
    }
    return raw != NULL;
}

/* A copy of a text; its characters are checked by sf_descriptor_check(). */
static char *get_text(const Node *node, const char *name, GError **error)
{
    int length;
    const char *raw = get(node, name, &length, error);

    if (raw && (length < 1 || memchr(raw, '\0', length) != raw + length - 1)) {
        sf_descriptor_invalid(error, "%s: %s is no text", node->name, name);
        return NULL;
    }
    return g_strdup(raw);
}

/* A list of texts; NULL and no error when there is none. */
static gboolean get_list(const Node *node, const char *name, GStrv *list, GError **error)
{
    int length;
    const char *raw = fdt_getprop(node->tree, node->node, name, &length);
    g_autoptr(GPtrArray) entries = g_ptr_array_new_with_free_func(g_free);

    if (!raw) {
        return length == -FDT_ERR_NOTFOUND || sf_descriptor_invalid(error, "%s: %s is broken", node->name, name);
    }
    if (length < 1 || raw[length - 1] != '\0') {
        return sf_descriptor_invalid(error, "%s: %s is no list of texts", node->name, name);
    }
    for (const char *p = raw; p < raw + length; p += strlen(p) + 1) {
        if (entries->len == SF_DESCRIPTOR_MAX_LIST) {
            return sf_descriptor_invalid(error, "%s: %s has more than %u entries", node->name, name,
                                         SF_DESCRIPTOR_MAX_LIST);
        }
        g_ptr_array_add(entries, g_strdup(p));
    }
    g_ptr_array_add(entries, NULL);
    *list = (GStrv)g_ptr_array_free(g_steal_pointer(&entries), FALSE);
    return TRUE;
}

/* Is this sub-node's (full) name just that? */
static gboolean is_named(const void *tree, int node, const char *name)
{
    int length;
    const char *found = fdt_get_name(tree, node, &length);

    return found && (gsize)length == strlen(name) && memcmp(found, name, length) == 0;
}

/* Steps to the next sub-node (first: *at is negative), which must have this name. */
static gboolean next_node(const Node *parent, int *at, const char *name, Node *node, GError **error)
{
    *at = *at < 0 ? fdt_first_subnode(parent->tree, parent->node) : fdt_next_subnode(parent->tree, *at);
    if (*at < 0 || !is_named(parent->tree, *at, name)) {
        return sf_descriptor_invalid(error, "%s: %s is missing or not in its place", parent->name, name);
    }
    *node = (Node){ .tree = parent->tree, .node = *at, .name = name };
    return TRUE;
}

static gboolean no_more_nodes(const Node *parent, int at, GError **error)
{
    int next = at < 0 ? fdt_first_subnode(parent->tree, parent->node) : fdt_next_subnode(parent->tree, at);

    return next == -FDT_ERR_NOTFOUND || sf_descriptor_invalid(error, "%s: unknown node", parent->name);
}

static guint count_nodes(const Node *parent, guint limit)
{
    guint n = 0;
    int node;

    fdt_for_each_subnode (node, parent->tree, parent->node) {
        if (n++ == limit) {
            break;
        }
    }
    return n;
}

static GBytes *unpack_zstd(const Node *node, const void *data, gsize size, gsize length, GError **error)
{
    if (ZSTD_getFrameContentSize(data, size) != length || ZSTD_findFrameCompressedSize(data, size) != size) {
        sf_descriptor_invalid(error, "%s: is no single zstd frame of %zu bytes", node->name, length);
        return NULL;
    }
    g_autofree void *raw = g_try_malloc(length);
    if (!raw || ZSTD_decompress(raw, length, data, size) != length) {
        sf_descriptor_invalid(error, "%s: can't be decompressed", node->name);
        return NULL;
    }
    return g_bytes_new_take(g_steal_pointer(&raw), length);
}

/* The raw bytes of a packed part; at most limit of them. */
static GBytes *decode_packed(const Node *node, guint64 limit, GError **error)
{
    static const char *const names[] = { "encoding", "length", "crc32", "data", NULL };
    g_autofree char *encoding = get_text(node, "encoding", error);
    g_autoptr(GBytes) raw = NULL;
    guint64 length;
    guint32 crc;
    int size;

    if (!encoding || !check_properties(node, names, error) || !no_more_nodes(node, -1, error) ||
        !get_u64(node, "length", &length, error) || !get_u32(node, "crc32", &crc, error)) {
        return NULL;
    }
    const void *data = get(node, "data", &size, error);
    if (!data) {
        return NULL;
    }
    if (length > limit) {
        sf_descriptor_invalid(error, "%s: claims %" G_GUINT64_FORMAT " bytes, at most %" G_GUINT64_FORMAT, node->name,
                              length, limit);
        return NULL;
    }
    if (g_str_equal(encoding, SF_DT_ENCODING_ZSTD)) {
        raw = unpack_zstd(node, data, size, length, error);
    } else if (g_str_equal(encoding, SF_DT_ENCODING_NONE) && (guint64)size == length) {
        raw = g_bytes_new(data, length);
    } else {
        sf_descriptor_invalid(error, "%s: unknown encoding or wrong length", node->name);
    }
    if (!raw) {
        return NULL;
    }
    if (crc32(0, g_bytes_get_data(raw, NULL), length) != crc) {
        sf_descriptor_invalid(error, "%s: wrong CRC, the descriptor was damaged", node->name);
        return NULL;
    }
    return g_steal_pointer(&raw);
}

static GArray *decode_present(const Node *node, guint64 length, guint max_runs, GError **error)
{
    /* A number of n bytes is at least 2^(7(n-1)) >= n pages, but for a first gap of 0: no map has more bytes than this.
     */
    guint64 limit = MIN(length / SF_PAGE_SIZE + 1, SF_DESCRIPTOR_MAX_STATE);
    g_autoptr(GBytes) raw = decode_packed(node, limit, error);
    gsize n_bytes;

    if (!raw) {
        return NULL;
    }
    const guint8 *bytes = g_bytes_get_data(raw, &n_bytes);
    GArray *runs = sf_page_map_unpack(bytes, n_bytes, length, max_runs, error);
    if (!runs) {
        g_prefix_error(error, "VM descriptor: ");
    }
    return runs;
}

static gboolean decode_block(const Node *node, SfDescriptor *d, guint *runs_left, GError **error)
{
    static const char *const names[] = { "id", "length", NULL };
    g_autofree char *id = get_text(node, "id", error);
    guint64 length;
    Node map;
    int at = -1;

    if (!id || !check_properties(node, names, error) || !get_u64(node, "length", &length, error)) {
        return FALSE;
    }
    if (length == 0 || length % SF_PAGE_SIZE || length > SF_DESCRIPTOR_MAX_LENGTH) {
        return sf_descriptor_invalid(error, "%s: length of %" G_GUINT64_FORMAT " bytes", node->name, length);
    }
    if (!next_node(node, &at, "present", &map, error) || !no_more_nodes(node, at, error)) {
        return FALSE;
    }
    GArray *present = decode_present(&map, length, *runs_left, error);
    if (!present) {
        return FALSE;
    }
    *runs_left -= present->len;
    sf_descriptor_add_block(d, id, length, present);
    return TRUE;
}

static gboolean decode_memory(const Node *node, SfDescriptor *d, GError **error)
{
    static const char *const names[] = { "size", "page-size", NULL };
    guint n = count_nodes(node, SF_DESCRIPTOR_MAX_BLOCKS + 1), runs_left = SF_DESCRIPTOR_MAX_RUNS;
    guint32 page_size;
    int at = -1;

    if (!check_properties(node, names, error) || !get_u64(node, "size", &d->memory, error) ||
        !get_u32(node, "page-size", &page_size, error)) {
        return FALSE;
    }
    if (page_size != SF_PAGE_SIZE || n > SF_DESCRIPTOR_MAX_BLOCKS) {
        return sf_descriptor_invalid(error, "memory: pages of %u bytes, %u blocks or more", page_size, n);
    }
    for (guint i = 0; i < n; i++) {
        char name[INDEX_NAME_MAX];
        Node block;
        g_snprintf(name, sizeof(name), "block@%x", i);
        if (!next_node(node, &at, name, &block, error) || !decode_block(&block, d, &runs_left, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean decode_disk(const Node *node, SfDescriptor *d, GError **error)
{
    static const char *const names[] = { "id", "size", "format", "base", NULL };
    g_autofree char *id = get_text(node, "id", error);
    g_autofree char *format = id ? get_text(node, "format", error) : NULL;
    g_autofree char *base = format ? get_text(node, "base", error) : NULL;
    guint64 size;

    if (!base || !check_properties(node, names, error) || !no_more_nodes(node, -1, error) ||
        !get_u64(node, "size", &size, error)) {
        return FALSE;
    }
    sf_descriptor_add_disk(d, id, size, format, base);
    return TRUE;
}

static gboolean decode_disks(const Node *node, SfDescriptor *d, GError **error)
{
    static const char *const names[] = { NULL };
    guint n = count_nodes(node, SF_DESCRIPTOR_MAX_DISKS + 1);
    int at = -1;

    if (!check_properties(node, names, error)) {
        return FALSE;
    }
    if (n > SF_DESCRIPTOR_MAX_DISKS) {
        return sf_descriptor_invalid(error, "disks: more than %u", SF_DESCRIPTOR_MAX_DISKS);
    }
    for (guint i = 0; i < n; i++) {
        char name[INDEX_NAME_MAX];
        Node disk;
        g_snprintf(name, sizeof(name), "disk@%x", i);
        if (!next_node(node, &at, name, &disk, error) || !decode_disk(&disk, d, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean decode_machine(const Node *node, SfDescriptor *d, GError **error)
{
    static const char *const names[] = { "type", "accel", "qemu-version", "config-hash", NULL };

    return check_properties(node, names, error) && no_more_nodes(node, -1, error) &&
           (d->machine = get_text(node, "type", error)) && (d->accel = get_text(node, "accel", error)) &&
           (d->qemu_version = get_text(node, "qemu-version", error)) &&
           (d->config_hash = get_text(node, "config-hash", error));
}

static gboolean decode_cpus(const Node *node, SfDescriptor *d, GError **error)
{
    static const char *const names[] = { "model", "count", NULL };

    return check_properties(node, names, error) && no_more_nodes(node, -1, error) &&
           (d->cpu = get_text(node, "model", error)) && get_u32(node, "count", &d->vcpus, error);
}

/* What it is, and whether we know its version: before anything else, for a message that helps. */
static gboolean decode_version(const Node *root, SfDescriptor *d, GError **error)
{
    g_autofree char *compatible = get_text(root, "compatible", error);

    if (!compatible || !get_u32(root, "version", &d->version, error)) {
        return FALSE;
    }
    if (!g_str_equal(compatible, SF_DT_COMPATIBLE)) {
        return sf_descriptor_invalid(error, "it is a device tree, but of something else");
    }
    if (d->version != SF_DESCRIPTOR_VERSION) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                    "VM descriptor: version %u, but this program knows version %u; use the same release on all hosts",
                    d->version, SF_DESCRIPTOR_VERSION);
        return FALSE;
    }
    return TRUE;
}

static gboolean decode_root(const Node *root, SfDescriptor *d, GError **error)
{
    static const char *const names[] = {
        "compatible", "version", "id", "vm", "created", "lineage", "page-sources", NULL
    };
    Node node;
    int at = -1;

    if (!decode_version(root, d, error) || !check_properties(root, names, error) ||
        !(d->id = get_text(root, "id", error)) || !(d->vm = get_text(root, "vm", error)) ||
        !get_u64(root, "created", &d->created, error) || !get_list(root, "lineage", &d->lineage, error) ||
        !get_list(root, "page-sources", &d->page_sources, error)) {
        return FALSE;
    }
    if (!next_node(root, &at, "machine", &node, error) || !decode_machine(&node, d, error) ||
        !next_node(root, &at, "cpus", &node, error) || !decode_cpus(&node, d, error) ||
        !next_node(root, &at, "memory", &node, error) || !decode_memory(&node, d, error) ||
        !next_node(root, &at, "disks", &node, error) || !decode_disks(&node, d, error) ||
        !next_node(root, &at, "device-state", &node, error) || !no_more_nodes(root, at, error)) {
        return FALSE;
    }
    d->device_state = decode_packed(&node, SF_DESCRIPTOR_MAX_STATE, error);
    return d->device_state != NULL;
}

SfDescriptor *sf_descriptor_decode(GBytes *bytes, GError **error)
{
    g_autoptr(SfDescriptor) d = sf_descriptor_new();
    gsize size;
    const void *given = g_bytes_get_data(bytes, &size);

    if (size < sizeof(struct fdt_header) || size > SF_DESCRIPTOR_MAX_SIZE) {
        sf_descriptor_invalid(error, "%zu bytes", size);
        return NULL;
    }
    g_autofree void *tree = g_memdup2(given, size); /* libfdt wants it aligned */
    /* The format's version first: fdt_check_full() of libfdt 1.6 reads through NULL in some trees of old versions. */
    if (fdt_magic(tree) != FDT_MAGIC || fdt_version(tree) != FDT_VERSION || fdt_totalsize(tree) != size) {
        sf_descriptor_invalid(error, "it is no device tree of version %d and of its own length", FDT_VERSION);
        return NULL;
    }
    int err = fdt_check_full(tree, size);
    if (err) {
        sf_descriptor_invalid(error, "its tree is broken: %s", fdt_strerror(err));
        return NULL;
    }
    if (fdt_num_mem_rsv(tree) != 0 || !is_named(tree, 0, "")) {
        sf_descriptor_invalid(error, "it is a device tree with parts that no descriptor has");
        return NULL;
    }
    Node root = { .tree = tree, .node = 0, .name = "root" };
    if (!decode_root(&root, d, error) || !sf_descriptor_check(d, error)) {
        return NULL;
    }
    return g_steal_pointer(&d);
}
