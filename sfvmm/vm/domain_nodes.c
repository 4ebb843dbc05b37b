/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * libvirt numbers the nodes of its disks as it likes, and leaves the format node out where it can. So they are looked
 * up: query-block tells the top node of each device, x-debug-query-block-graph what is below it.
 *
 *     device (alias of the XML) --> top --file--> protocol node
 *                                    +--backing--> next layer ...
 *
 * What QEMU says is believed only for names that go back to the same QEMU. Paths come from libvirt.
 */
#include "sfvmm/vm/domain_nodes.h"

#include <string.h>

#define LAYERS_MAX 64u

static void nodes_free(gpointer data)
{
    SfDomainNodes *nodes = data;

    g_ptr_array_unref(nodes->nodes);
    g_clear_pointer(&nodes->top, json_object_unref);
    g_free(nodes);
}

/* ---- JSON that may be anything ---- */

static JsonArray *array_of(JsonNode *node)
{
    return node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
}

static JsonObject *object_at(JsonArray *array, guint i)
{
    JsonNode *node = json_array_get_element(array, i);

    return JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

static JsonObject *object_in(JsonObject *object, const char *member)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;

    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

static const char *text_in(JsonObject *object, const char *member)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;

    return node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : "";
}

static gint64 int_in(JsonObject *object, const char *member)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;

    return node && json_node_get_value_type(node) == G_TYPE_INT64 ? json_node_get_int(node) : 0;
}

static gboolean bool_in(JsonObject *object, const char *member)
{
    JsonNode *node = object ? json_object_get_member(object, member) : NULL;

    return node && json_node_get_value_type(node) == G_TYPE_BOOLEAN && json_node_get_boolean(node);
}

/* ---- the graph ---- */

/* Of a node that the block layer has, by its name; 0: none. */
static gint64 id_of(JsonObject *graph, const char *name)
{
    JsonArray *nodes = array_of(json_object_get_member(graph, "nodes"));

    for (guint i = 0; nodes && i < json_array_get_length(nodes); i++) {
        JsonObject *node = object_at(nodes, i);
        if (node && strcmp(text_in(node, "type"), "block-driver") == 0 && strcmp(text_in(node, "name"), name) == 0) {
            return int_in(node, "id");
        }
    }
    return 0;
}

static const char *name_of(JsonObject *graph, gint64 id)
{
    JsonArray *nodes = array_of(json_object_get_member(graph, "nodes"));

    for (guint i = 0; nodes && i < json_array_get_length(nodes); i++) {
        JsonObject *node = object_at(nodes, i);
        if (node && int_in(node, "id") == id) {
            return text_in(node, "name");
        }
    }
    return NULL;
}

/* Name of the child that hangs at this edge, or NULL. */
static const char *child_of(JsonObject *graph, const char *name, const char *edge_name)
{
    JsonArray *edges = array_of(json_object_get_member(graph, "edges"));
    gint64 id = id_of(graph, name);

    for (guint i = 0; edges && id != 0 && i < json_array_get_length(edges); i++) {
        JsonObject *edge = object_at(edges, i);
        if (edge && int_in(edge, "parent") == id && strcmp(text_in(edge, "name"), edge_name) == 0) {
            return name_of(graph, int_in(edge, "child"));
        }
    }
    return NULL;
}

/* ---- a disk ---- */

/* qdev: an id, or a QOM path in which it is a part. */
static gboolean is_device(const char *qdev, const char *alias)
{
    g_auto(GStrv) parts = g_strsplit(qdev, "/", -1);

    return alias && g_strv_contains((const char *const *)parts, alias);
}

static JsonObject *device_of(JsonArray *devices, const SfDomainDisk *disk)
{
    for (guint i = 0; devices && i < json_array_get_length(devices); i++) {
        JsonObject *device = object_at(devices, i);
        if (device && is_device(text_in(device, "qdev"), disk->alias)) {
            return object_in(device, "inserted");
        }
    }
    return NULL;
}

/* All that the node was opened with, as far as a reopen would change it. */
static JsonObject *top_options(JsonObject *inserted, JsonObject *graph, const SfDomainDisk *disk)
{
    JsonObject *options = json_object_new(), *cache = json_object_new();
    const char *file = child_of(graph, text_in(inserted, "node-name"), "file");

    json_object_set_string_member(options, "driver", text_in(inserted, "drv"));
    json_object_set_string_member(options, "node-name", text_in(inserted, "node-name"));
    if (file) {
        json_object_set_string_member(options, "file", file);
    } else { /* a raw image without a format node */
        json_object_set_string_member(options, "filename", disk->path);
        json_object_set_boolean_member(options, "auto-read-only", TRUE);
    }
    json_object_set_string_member(options, "discard", disk->unmap || !file ? "unmap" : "ignore");
    json_object_set_string_member(options, "detect-zeroes", text_in(inserted, "detect_zeroes"));
    json_object_set_boolean_member(cache, "direct", bool_in(object_in(inserted, "cache"), "direct"));
    json_object_set_boolean_member(cache, "no-flush", bool_in(object_in(inserted, "cache"), "no-flush"));
    json_object_set_object_member(options, "cache", cache);
    return options;
}

static SfDomainNodes *find_disk(JsonArray *devices, JsonObject *graph, const SfDomainDisk *disk, GError **error)
{
    JsonObject *inserted = device_of(devices, disk);
    SfDomainNodes *nodes;
    const char *name;

    if (!inserted || !*text_in(inserted, "node-name")) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "disk %s: QEMU has no such device (%s)", disk->target,
                    disk->alias ? disk->alias : "without an alias");
        return NULL;
    }
    nodes = g_new0(SfDomainNodes, 1);
    nodes->nodes = g_ptr_array_new_with_free_func(g_free);
    nodes->size = (guint64)MAX(0, int_in(object_in(inserted, "image"), "virtual-size"));
    nodes->top = top_options(inserted, graph, disk);
    for (name = text_in(inserted, "node-name"); name && nodes->nodes->len < LAYERS_MAX;
         name = child_of(graph, name, "backing")) {
        g_ptr_array_insert(nodes->nodes, 0, g_strdup(name));
    }
    if (nodes->nodes->len != disk->backing->len + 1) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                    "disk %s: it has %u layers in QEMU, and %u in libvirt's XML; an operation on it may be under way: "
                    "try again",
                    disk->target, nodes->nodes->len, disk->backing->len + 1);
        nodes_free(nodes);
        return NULL;
    }
    return nodes;
}

GPtrArray *sf_domain_nodes_find(virDomainPtr domain, const SfDomainXml *xml, GError **error)
{
    g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(nodes_free);
    g_autoptr(JsonNode) devices = NULL, graph = NULL;

    if (xml->disks->len == 0) {
        return g_steal_pointer(&found);
    }
    devices = sf_domain_command(domain, "query-block", NULL, error);
    graph = devices ? sf_domain_command(domain, "x-debug-query-block-graph", NULL, error) : NULL;
    if (!graph) {
        return NULL;
    }
    if (!JSON_NODE_HOLDS_OBJECT(graph)) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "QEMU: its block graph is no object");
        return NULL;
    }
    for (guint i = 0; i < xml->disks->len; i++) {
        SfDomainNodes *nodes =
            find_disk(array_of(devices), json_node_get_object(graph), g_ptr_array_index(xml->disks, i), error);
        if (!nodes) {
            return NULL;
        }
        g_ptr_array_add(found, nodes);
    }
    return g_steal_pointer(&found);
}
