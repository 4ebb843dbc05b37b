/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     a parent of which two snapshots were made:                        a shell:
 *
 *     virtio-blk --> disk0-2 (qcow2) --> disk0-2-file                   virtio-blk --> disk0-0 (qcow2) --> disk0-0-file
 *                       | backing
 *                    disk0-1 (qcow2) --> disk0-1-file
 *                       | backing
 *                    disk0-0 (raw)   --> disk0-0-file
 *
 * A shell's disk is its own overlay, empty and with nothing below: a virtual disk of the right size. At the load the
 * frozen layers are added in one nested blockdev-add and put below it with a blockdev-reopen. Everything else (making
 * the overlay, opening it) was done when the shell was started, as each QMP command costs two threads of QEMU 0.2 ms
 * and more: with a null-co placeholder and the overlay added at the load there were 14 commands, now 3 for a disk that
 * was frozen for the first time.
 *
 * File nodes are nodes of their own with an explicit read-only, as a nested file node would follow its format node to
 * read-only at the snapshot and then need another descriptor. So the descriptor of a former top stays writable, but its
 * format node is reopened read-only, which gives up QEMU's write lock on the image: clones, that open the same file in
 * their own processes, are refused while anybody holds that lock. And while clones have it open, nobody can get it: the
 * base is locked.
 *
 * QEMU opens no path: each layer comes as a descriptor in an fdset, which is removed when the node has its copy (after
 * a load: later). Read-only layers get descriptors that can't be written. "backing" is always given, or QEMU would open
 * what a guest that has taken over its QEMU wrote into the image's header.
 */
#include "sfvmm/vm/vm_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sfvmm/wire/json_line.h"

#define FDSET_LOAD_FIRST 1000u /* ids of fdsets that live for one batch only */
#define FDSETS_PER_DISK  1000u /* above SF_DISK_LAYERS_MAX: ids never clash within a batch */
#define LAYERS_LONG      32u   /* of a chain; to open 300 takes QEMU 12 s, as each sees the options of all below it */
#define BLOCK_BYTES      512u  /* of st_blocks */
#define NBD_SECONDS      300   /* a lost connection is tried again for so long before a read fails */
#define NBD_OPEN_SECONDS 10    /* and the first one */

SfVmDisk *sf_vm_disk_new(SfDiskChain *chain_or_null)
{
    SfVmDisk *disk = g_new0(SfVmDisk, 1);

    disk->chain = chain_or_null;
    disk->nodes = g_ptr_array_new_with_free_func(g_free);
    disk->stale = g_ptr_array_new_with_free_func(g_free);
    disk->commit_to = G_MAXUINT;
    return disk;
}

static void drop_overlay(SfVmDisk *disk)
{
    g_clear_pointer(&disk->overlay, sf_disk_layer_unref);
    g_clear_pointer(&disk->overlay_node, g_free);
}

void sf_vm_disk_free(SfVmDisk *disk)
{
    if (disk) {
        drop_overlay(disk);
        g_clear_pointer(&disk->chain, sf_disk_chain_free);
        g_ptr_array_unref(disk->nodes);
        g_ptr_array_unref(disk->stale);
        g_clear_pointer(&disk->domain_node, json_object_unref);
        g_free(disk);
    }
}

void sf_vm_disk_leave(SfVmDisk *disk)
{
    for (guint i = 0; disk->chain && i < disk->chain->layers->len; i++) {
        ((SfDiskLayer *)g_ptr_array_index(disk->chain->layers, i))->owned = FALSE;
    }
    if (disk->overlay) {
        disk->overlay->owned = FALSE;
    }
}

JsonObject *sf_vm_disk_to_json(const SfVmDisk *disk)
{
    JsonObject *object = json_object_new();
    JsonArray *nodes = json_array_new();

    if (disk->chain) {
        json_object_set_object_member(object, "chain", sf_disk_chain_to_json(disk->chain));
    }
    for (guint i = 0; i < disk->nodes->len; i++) {
        json_array_add_string_element(nodes, g_ptr_array_index(disk->nodes, i));
    }
    json_object_set_array_member(object, "nodes", nodes);
    json_object_set_int_member(object, "writable", disk->writable);
    json_object_set_int_member(object, "next_node", disk->next_node);
    if (disk->commit_to != G_MAXUINT) {
        json_object_set_int_member(object, "commit_to", disk->commit_to);
        json_object_set_boolean_member(object, "streaming", disk->streaming);
    }
    if (disk->domain_node) {
        json_object_set_object_member(object, "domain_node", json_object_ref(disk->domain_node));
    }
    if (disk->overlay) {
        json_object_set_string_member(object, "overlay", disk->overlay->path);
        json_object_set_string_member(object, "overlay_node", disk->overlay_node);
    }
    return object;
}

SfVmDisk *sf_vm_disk_from_json(JsonObject *object, GError **error)
{
    SfVmDisk *disk = sf_vm_disk_new(NULL);
    JsonNode *chain = json_object_get_member(object, "chain");
    JsonNode *nodes = json_object_get_member(object, "nodes");

    for (guint i = 0; nodes && JSON_NODE_HOLDS_ARRAY(nodes) && i < json_array_get_length(json_node_get_array(nodes));
         i++) {
        JsonNode *node = json_array_get_element(json_node_get_array(nodes), i);
        g_ptr_array_add(disk->nodes,
                        g_strdup(json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : ""));
    }
    disk->writable = json_object_get_int_member_with_default(object, "writable", 0);
    disk->next_node = json_object_get_int_member_with_default(object, "next_node", 0);
    disk->commit_to = json_object_get_int_member_with_default(object, "commit_to", G_MAXUINT);
    disk->streaming = json_object_get_boolean_member_with_default(object, "streaming", FALSE);
    if (chain && JSON_NODE_HOLDS_OBJECT(chain)) {
        disk->chain = sf_disk_chain_from_json(json_node_get_object(chain), error);
        if (!disk->chain) {
            sf_vm_disk_free(disk);
            return NULL;
        }
    }
    if (json_object_has_member(object, "overlay")) {
        disk->overlay =
            sf_disk_layer_new(json_object_get_string_member_with_default(object, "overlay", ""), "qcow2", TRUE);
        disk->overlay_node = g_strdup(json_object_get_string_member_with_default(object, "overlay_node", ""));
    }
    if (json_object_has_member(object, "domain_node") &&
        JSON_NODE_HOLDS_OBJECT(json_object_get_member(object, "domain_node"))) {
        disk->domain_node = json_object_ref(json_object_get_object_member(object, "domain_node"));
    }
    if (disk->nodes->len != (disk->chain ? disk->chain->layers->len : 0) || disk->writable > disk->nodes->len ||
        (disk->commit_to != G_MAXUINT && disk->commit_to + (disk->streaming ? 1 : 0) >= disk->nodes->len)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "its disks and their nodes don't fit together");
        sf_vm_disk_free(disk);
        return NULL;
    }
    return disk;
}

/* ---- nodes as JSON ---- */

static char *file_node(const char *node)
{
    return g_strconcat(node, "-file", NULL);
}

static char *next_node(SfVmDisk *disk, const char *id)
{
    return g_strdup_printf("%s-%u", id, disk->next_node++);
}

static JsonObject *file_options(const char *node_or_null, guint fdset, gboolean writable)
{
    JsonObject *object = json_object_new();
    g_autofree char *file = g_strdup_printf("/dev/fdset/%u", fdset);

    json_object_set_string_member(object, "driver", "file");
    if (node_or_null) {
        g_autofree char *name = file_node(node_or_null);
        json_object_set_string_member(object, "node-name", name);
    }
    json_object_set_string_member(object, "filename", file);
    json_object_set_boolean_member(object, "read-only", !writable);
    json_object_set_string_member(object, "discard", "unmap");
    return object;
}

/* A format node over its file node; "backing" is left to the caller, and must be set for qcow2. */
static JsonObject *format_options(const char *node, const char *format, gboolean writable)
{
    JsonObject *object = json_object_new();
    g_autofree char *file = file_node(node);

    json_object_set_string_member(object, "driver", format);
    json_object_set_string_member(object, "node-name", node);
    json_object_set_boolean_member(object, "read-only", !writable);
    json_object_set_string_member(object, "file", file);
    json_object_set_string_member(object, "discard", "unmap");
    return object;
}

static gboolean is_domain_node(const SfVmDisk *disk, const char *node)
{
    return disk->domain_node &&
           g_strcmp0(json_object_get_string_member_with_default(disk->domain_node, "node-name", NULL), node) == 0;
}

/* libvirt's node, with all that it was opened with: what is left out of a reopen would fall back to defaults. */
static JsonObject *domain_node_options(const SfVmDisk *disk, gboolean writable)
{
    JsonObject *object = json_object_new();
    g_autoptr(GList) members = json_object_get_members(disk->domain_node);

    for (GList *item = members; item; item = item->next) {
        json_object_set_member(object, item->data,
                               json_node_copy(json_object_get_member(disk->domain_node, item->data)));
    }
    json_object_set_boolean_member(object, "read-only", !writable);
    return object;
}

static void set_backing(JsonObject *options, const char *format, const char *backing_or_null)
{
    if (backing_or_null) {
        json_object_set_string_member(options, "backing", backing_or_null);
    } else if (strcmp(format, "qcow2") == 0) {
        json_object_set_null_member(options, "backing"); /* else QEMU would believe the image's own header */
    }
}

/*
 * The node of an NBD layer, which has no file node. nbd[s]://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH; our
 * own URIs, or those of a host that we trust with the content anyway.
 */
static JsonObject *nbd_options(const char *node, const char *uri, const char *tls_creds, GError **error)
{
    g_autoptr(GUri) parsed = g_uri_parse(uri, G_URI_FLAGS_NONE, error);
    g_autoptr(GHashTable) query = parsed && g_uri_get_query(parsed)
                                      ? g_uri_parse_params(g_uri_get_query(parsed), -1, "&", G_URI_PARAMS_NONE, NULL)
                                      : NULL;
    const char *path = query ? g_hash_table_lookup(query, "socket") : NULL;
    const char *host = parsed ? g_uri_get_host(parsed) : NULL;
    JsonObject *options, *server;

    if (!parsed) {
        return NULL;
    }
    if (!path && !(host && *host && g_uri_get_port(parsed) > 0)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "%s: neither a socket nor a host and a port", uri);
        return NULL;
    }
    server = json_object_new();
    json_object_set_string_member(server, "type", path ? "unix" : "inet");
    if (path) {
        json_object_set_string_member(server, "path", path);
    } else {
        g_autofree char *port = g_strdup_printf("%d", g_uri_get_port(parsed));
        json_object_set_string_member(server, "host", host);
        json_object_set_string_member(server, "port", port);
    }
    options = json_object_new();
    json_object_set_string_member(options, "driver", "nbd");
    json_object_set_string_member(options, "node-name", node);
    json_object_set_boolean_member(options, "read-only", TRUE);
    json_object_set_object_member(options, "server", server);
    json_object_set_string_member(options, "export", g_uri_get_path(parsed)[0] ? g_uri_get_path(parsed) + 1 : "");
    json_object_set_int_member(options, "reconnect-delay", NBD_SECONDS);
    json_object_set_int_member(options, "open-timeout", NBD_OPEN_SECONDS);
    if (g_str_has_prefix(g_uri_get_scheme(parsed), "nbds")) {
        json_object_set_string_member(options, "tls-creds", tls_creds ? tls_creds : "");
    }
    return options;
}

static void add_text(GPtrArray *json_texts, JsonObject *options)
{
    char *text = sf_json_line_format(options, NULL);

    g_ptr_array_add(json_texts, g_strchomp(text));
    json_object_unref(options);
}

gboolean sf_vm_disk_blockdevs(SfVmDisk *disk, GPtrArray *json_texts, SfVmDiskOpen open_layer, gpointer data,
                              GError **error)
{
    SfDiskChain *chain = disk->chain;
    const char *below = NULL;

    disk->writable = chain->readonly ? chain->layers->len : chain->layers->len - 1;
    for (guint i = 0; i < chain->layers->len; i++) {
        SfDiskLayer *layer = g_ptr_array_index(chain->layers, i);
        char *node = next_node(disk, chain->id);
        gboolean writable = i >= disk->writable;
        JsonObject *format;
        guint fdset = 0;

        g_ptr_array_add(disk->nodes, node);
        if (sf_disk_layer_is_nbd(layer)) {
            JsonObject *options = nbd_options(node, layer->path, NULL, error);
            if (!options) {
                return FALSE;
            }
            add_text(json_texts, options);
            below = node;
            continue;
        }
        if (!open_layer(layer, writable, &fdset, data, error)) {
            return FALSE;
        }
        add_text(json_texts, file_options(node, fdset, writable));
        format = format_options(node, layer->format, writable);
        set_backing(format, layer->format, below);
        add_text(json_texts, format);
        below = node;
    }
    return TRUE;
}

gboolean sf_vm_disk_shell_blockdevs(SfVmDisk *disk, const char *id, SfDiskLayer *overlay, GPtrArray *json_texts,
                                    SfVmDiskOpen open_layer, gpointer data, GError **error)
{
    JsonObject *format;
    guint fdset = 0;

    disk->overlay = overlay;
    disk->overlay_node = next_node(disk, id);
    if (!open_layer(overlay, TRUE, &fdset, data, error)) {
        return FALSE;
    }
    add_text(json_texts, file_options(disk->overlay_node, fdset, TRUE));
    format = format_options(disk->overlay_node, overlay->format, TRUE);
    set_backing(format, overlay->format, NULL);
    add_text(json_texts, format);
    return TRUE;
}

/* ---- nodes that libvirt has made ---- */

void sf_vm_disk_adopt_nodes(SfVmDisk *disk, const char *const *nodes, JsonObject *options)
{
    disk->domain_node = options;
    disk->writable = disk->chain->readonly ? disk->chain->layers->len : disk->chain->layers->len - 1;
    for (guint i = 0; i < disk->chain->layers->len; i++) {
        g_ptr_array_add(disk->nodes, g_strdup(nodes[i]));
    }
}

void sf_vm_disk_adopt_overlay(SfVmDisk *disk, SfDiskLayer *overlay, JsonObject *options)
{
    disk->domain_node = options;
    disk->overlay = overlay;
    disk->overlay_node = g_strdup(json_object_get_string_member_with_default(options, "node-name", ""));
}

const char *sf_vm_disk_top_node(const SfVmDisk *disk)
{
    return disk->chain ? g_ptr_array_index(disk->nodes, disk->nodes->len - 1) : disk->overlay_node;
}

/* ---- QMP ---- */

static void add_del(SfQmpBatch *batch, const char *node)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "node-name", node);
    sf_qmp_batch_add(batch, "blockdev-del", args, -1);
}

static void add_remove_fd(SfQmpBatch *batch, guint fdset)
{
    JsonObject *args = json_object_new();

    json_object_set_int_member(args, "fdset-id", fdset);
    sf_qmp_batch_add(batch, "remove-fd", args, -1);
}

static gboolean add_fd(SfQmpBatch *batch, const SfDiskLayer *layer, gboolean writable, guint fdset, GError **error)
{
    int fd = open(layer->path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | (layer->owned ? O_NOFOLLOW : 0));
    JsonObject *args;

    if (fd < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "disk layer %s: %s", layer->path,
                    g_strerror(errno));
        return FALSE;
    }
    args = json_object_new();
    json_object_set_int_member(args, "fdset-id", fdset);
    sf_qmp_batch_add(batch, "add-fd", args, fd);
    return TRUE;
}

/* Which fdset a layer comes by, in a batch for disk N: from its id "diskN". */
static guint fdset_of(const char *id, guint layer)
{
    return FDSET_LOAD_FIRST + (guint)g_ascii_strtoull(id + strlen("disk"), NULL, 10) * FDSETS_PER_DISK + layer;
}

gboolean sf_vm_disk_add_overlay(SfVmDisk *disk, SfQmpBatch *batch, const char *template_path, const char *path,
                                uid_t uid, gid_t gid, GError **error)
{
    guint fdset = fdset_of(disk->chain->id, 0);
    JsonObject *options;

    if (disk->chain->layers->len >= SF_DISK_LAYERS_MAX) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE,
                    "disk %s: has %u layers, as clones still stand on those of all earlier forks; end some",
                    disk->chain->id, disk->chain->layers->len);
        return FALSE;
    }
    disk->overlay = sf_disk_overlay_create(template_path, path, uid, gid, error);
    if (!disk->overlay || !add_fd(batch, disk->overlay, TRUE, fdset, error)) {
        drop_overlay(disk);
        return FALSE;
    }
    disk->overlay_node = next_node(disk, disk->chain->id);
    sf_qmp_batch_add(batch, "blockdev-add", file_options(disk->overlay_node, fdset, TRUE), -1);
    options = format_options(disk->overlay_node, disk->overlay->format, TRUE);
    set_backing(options, disk->overlay->format, NULL);
    sf_qmp_batch_add(batch, "blockdev-add", options, -1);
    add_remove_fd(batch, fdset);
    return TRUE;
}

/* The format node of layer i, with other rights or over another layer than it was opened with. */
static void add_reopen(const SfVmDisk *disk, SfQmpBatch *batch, guint i, gboolean writable)
{
    const SfDiskLayer *layer = g_ptr_array_index(disk->chain->layers, i);
    const char *node = g_ptr_array_index(disk->nodes, i);
    JsonObject *options = is_domain_node(disk, node) ? domain_node_options(disk, writable)
                                                     : format_options(node, layer->format, writable);
    JsonArray *list = json_array_new();
    JsonObject *args = json_object_new();

    set_backing(options, layer->format, i > 0 ? g_ptr_array_index(disk->nodes, i - 1) : NULL);
    json_array_add_object_element(list, options);
    json_object_set_array_member(args, "options", list);
    sf_qmp_batch_add(batch, "blockdev-reopen", args, -1);
}

void sf_vm_disk_overlay_done(SfVmDisk *disk, SfQmpBatch *batch)
{
    add_reopen(disk, batch, disk->nodes->len - 1, FALSE);
    g_ptr_array_add(disk->chain->layers, g_steal_pointer(&disk->overlay));
    g_ptr_array_add(disk->nodes, g_steal_pointer(&disk->overlay_node));
}

void sf_vm_disk_overlay_undo(SfVmDisk *disk, SfQmpBatch *batch)
{
    if (disk->overlay_node) {
        g_autofree char *file = file_node(disk->overlay_node);
        add_del(batch, disk->overlay_node);
        add_del(batch, file);
    }
    drop_overlay(disk);
}

/* The read-only layers below the top, nested, so that one command adds all. */
static JsonObject *nested_options(SfVmDisk *disk, guint i)
{
    const SfDiskLayer *layer = g_ptr_array_index(disk->chain->layers, i);
    const char *node = g_ptr_array_index(disk->nodes, i);
    JsonObject *options;

    if (sf_disk_layer_is_nbd(layer)) {
        return nbd_options(node, layer->path, NULL, NULL); /* looked at by check_nbd() */
    }
    options = format_options(node, layer->format, FALSE);

    json_object_set_object_member(options, "file", file_options(node, fdset_of(disk->chain->id, i), FALSE));
    if (i > 0) {
        json_object_set_object_member(options, "backing", nested_options(disk, i - 1));
    } else {
        set_backing(options, layer->format, NULL);
    }
    return options;
}

static gboolean check_nbd(const SfDiskLayer *layer, GError **error)
{
    JsonObject *options = nbd_options("", layer->path, NULL, error);

    g_clear_pointer(&options, json_object_unref);
    return !error || !*error;
}

/* Layers 0 to n - 1 of the chain, read-only. */
static gboolean add_nested(SfVmDisk *disk, guint n, SfQmpBatch *batch, GError **error)
{
    for (guint i = 0; i < n; i++) {
        const SfDiskLayer *layer = g_ptr_array_index(disk->chain->layers, i);
        g_ptr_array_add(disk->nodes, next_node(disk, disk->chain->id));
        if (sf_disk_layer_is_nbd(layer) ? !check_nbd(layer, error)
                                        : !add_fd(batch, layer, FALSE, fdset_of(disk->chain->id, i), error)) {
            return FALSE;
        }
    }
    sf_qmp_batch_add(batch, "blockdev-add", nested_options(disk, n - 1), -1);
    return TRUE;
}

gboolean sf_vm_disk_add_frozen(SfVmDisk *disk, SfQmpBatch *batch, GError **error)
{
    guint n = disk->chain->layers->len;

    disk->writable = n;
    if (!add_nested(disk, n, batch, error)) {
        return FALSE;
    }
    for (guint i = 0; i < n; i++) {
        if (!sf_disk_layer_is_nbd(g_ptr_array_index(disk->chain->layers, i))) {
            add_remove_fd(batch, fdset_of(disk->chain->id, i));
        }
    }
    return TRUE;
}

/* "file": the content, by name or as an object. */
static JsonObject *raw_options(const char *node)
{
    JsonObject *options = json_object_new();

    json_object_set_string_member(options, "driver", "raw");
    json_object_set_string_member(options, "node-name", node);
    json_object_set_boolean_member(options, "read-only", TRUE);
    return options;
}

void sf_vm_disk_add_empty_node(SfQmpBatch *batch, const char *node, guint64 size)
{
    JsonObject *options = raw_options(node), *nothing = json_object_new();

    json_object_set_string_member(nothing, "driver", "null-co");
    json_object_set_int_member(nothing, "size", (gint64)size);
    json_object_set_boolean_member(nothing, "read-zeroes", TRUE);
    json_object_set_object_member(options, "file", nothing);
    sf_qmp_batch_add(batch, "blockdev-add", options, -1);
}

void sf_vm_disk_fill_empty_node(SfQmpBatch *batch, const char *node, const char *content)
{
    JsonObject *options = raw_options(node), *args = json_object_new();
    JsonArray *list = json_array_new();

    json_object_set_string_member(options, "file", content);
    json_array_add_object_element(list, options);
    json_object_set_array_member(args, "options", list);
    sf_qmp_batch_add(batch, "blockdev-reopen", args, -1);
}

gboolean sf_vm_disk_add_cache(SfVmDisk *disk, const char *tls_creds, SfQmpBatch *batch, GError **error)
{
    const SfDiskLayer *source = g_ptr_array_index(disk->chain->layers, 0);
    const SfDiskLayer *cache = g_ptr_array_index(disk->chain->layers, 1);
    guint fdset = fdset_of(disk->chain->id, 1);
    char *below = next_node(disk, disk->chain->id), *node = next_node(disk, disk->chain->id);
    JsonObject *options = nbd_options(below, source->path, tls_creds, error);

    g_ptr_array_add(disk->nodes, below);
    g_ptr_array_add(disk->nodes, node);
    if (!options) {
        return FALSE;
    }
    if (!add_fd(batch, cache, TRUE, fdset, error)) {
        json_object_unref(options);
        return FALSE;
    }
    sf_qmp_batch_add(batch, "blockdev-add", options, -1);
    sf_qmp_batch_add(batch, "blockdev-add", file_options(node, fdset, TRUE), -1);
    options = format_options(node, cache->format, TRUE);
    set_backing(options, cache->format, below);
    sf_qmp_batch_add(batch, "blockdev-add", options, -1);
    add_remove_fd(batch, fdset);
    return TRUE;
}

gboolean sf_vm_disk_load(SfVmDisk *disk, SfDiskChain *chain, SfQmpBatch *batch, GError **error)
{
    guint n = chain->layers->len;

    if (disk->chain) { /* read-only: it was opened at the start, and has not changed since */
        sf_disk_chain_free(chain);
        return TRUE;
    }
    if (!disk->overlay) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED,
                    "disk %s: the shell has no overlay for it; an sfvmmd of another version started it", chain->id);
        sf_disk_chain_free(chain);
        return FALSE;
    }
    disk->chain = chain;
    disk->writable = n;
    if (!add_nested(disk, n, batch, error)) {
        return FALSE;
    }
    g_ptr_array_add(chain->layers, g_steal_pointer(&disk->overlay));
    g_ptr_array_add(disk->nodes, g_steal_pointer(&disk->overlay_node));
    add_reopen(disk, batch, n, TRUE);
    return TRUE;
}

void sf_vm_disk_load_clean(SfVmDisk *disk, SfQmpBatch *batch)
{
    for (guint i = 0; i < disk->writable && !disk->chain->readonly; i++) {
        if (sf_disk_layer_is_nbd(g_ptr_array_index(disk->chain->layers, i))) {
            continue;
        }
        add_remove_fd(batch, fdset_of(disk->chain->id, i));
    }
}

/* ---- fewer layers ---- */

static gboolean layer_is_shared(const SfDiskLayer *layer)
{
    return layer->refs > 1;
}

gboolean sf_vm_disk_commit_target(const SfVmDisk *disk, guint *target)
{
    guint top;

    if (!disk->chain || disk->chain->readonly || disk->overlay) {
        return FALSE;
    }
    top = disk->chain->layers->len - 1;
    *target = top;
    while (*target > disk->writable && !layer_is_shared(g_ptr_array_index(disk->chain->layers, *target)) &&
           !layer_is_shared(g_ptr_array_index(disk->chain->layers, *target - 1))) {
        --*target;
    }
    return *target < top;
}

static guint64 allocated_bytes(const SfDiskLayer *layer)
{
    struct stat st;

    return stat(layer->path, &st) == 0 ? (guint64)st.st_blocks * BLOCK_BYTES : 0;
}

/*
 * The highest layer that must stay: others' images, what libvirt has opened, and the one that this QEMU began to write
 * to, of which it keeps a descriptor from its command line.
 */
static guint lowest_stream_target(const SfVmDisk *disk)
{
    guint lowest = disk->writable;

    for (guint i = lowest; i < disk->nodes->len; i++) {
        const SfDiskLayer *layer = g_ptr_array_index(disk->chain->layers, i);
        if (!layer->owned || is_domain_node(disk, g_ptr_array_index(disk->nodes, i))) {
            lowest = i;
        }
    }
    return lowest;
}

gboolean sf_vm_disk_stream_target(const SfVmDisk *disk, guint *target)
{
    guint lowest, top;
    guint64 above = 0;

    if (!disk->chain || disk->chain->readonly || disk->overlay || disk->chain->layers->len <= LAYERS_LONG) {
        return FALSE;
    }
    lowest = lowest_stream_target(disk);
    top = disk->chain->layers->len - 1;
    for (*target = top - 1; *target > lowest; --*target) {
        guint64 bytes = allocated_bytes(g_ptr_array_index(disk->chain->layers, *target));
        if (top - *target > LAYERS_LONG / 2 && bytes > 2 * above) {
            break;
        }
        above += bytes;
    }
    return top - *target > 1;
}

const char *sf_vm_disk_job_command(const SfVmDisk *disk)
{
    return disk->streaming ? "block-stream" : "block-commit";
}

JsonObject *sf_vm_disk_job_arguments(const SfVmDisk *disk, const char *job)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "device", sf_vm_disk_top_node(disk));
    json_object_set_string_member(args, "job-id", job);
    json_object_set_string_member(args, "base-node", g_ptr_array_index(disk->nodes, disk->commit_to));
    if (disk->streaming) { /* what it writes into the top's header; nobody reads it, but the default may be too long */
        const SfDiskLayer *base = g_ptr_array_index(disk->chain->layers, disk->commit_to);
        json_object_set_string_member(args, "backing-file", base->path);
    } else {
        json_object_set_string_member(args, "top-node", g_ptr_array_index(disk->nodes, disk->nodes->len - 1));
    }
    return args;
}

const char *sf_vm_disk_job_node(const SfVmDisk *disk)
{
    return g_ptr_array_index(disk->nodes, disk->nodes->len - (disk->streaming ? 2 : 1));
}

void sf_vm_disk_job_over(SfVmDisk *disk)
{
    disk->commit_to = G_MAXUINT;
    disk->streaming = FALSE;
}

void sf_vm_disk_job_done(SfVmDisk *disk)
{
    guint first = disk->commit_to + 1, last = disk->nodes->len - (disk->streaming ? 1 : 0);

    for (guint i = last; i > first; i--) {
        char *node = g_ptr_array_index(disk->nodes, i - 1);
        g_ptr_array_add(disk->stale, g_strdup(node));
        g_ptr_array_add(disk->stale, file_node(node));
    }
    if (last > first) {
        g_ptr_array_remove_range(disk->nodes, first, last - first);
        g_ptr_array_remove_range(disk->chain->layers, first, last - first);
    }
    sf_vm_disk_job_over(disk);
}

void sf_vm_disk_delete_stale(const SfVmDisk *disk, SfQmpBatch *batch)
{
    for (guint i = 0; i < disk->stale->len; i++) {
        add_del(batch, g_ptr_array_index(disk->stale, i));
    }
}
