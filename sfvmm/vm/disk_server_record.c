/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server.json of a disk server, and what becomes of one after a restart of sfvmmd: it is found again by who needs it;
 * the layers of clones here hold it; others end.
 */
#include "sfvmm/vm/disk_server_private.h"

#include "sfvmm/process/process.h"
#include "sfvmm/wire/state_file.h"

#define FILE_JSON "server.json"

static JsonArray *announced_to_json(const SfDiskServer *server)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < server->announced->len; i++) {
        const SfDiskAnnounced *announced = g_ptr_array_index(server->announced, i);
        JsonObject *object = json_object_new();
        json_object_set_string_member(object, "name", announced->name);
        json_object_set_string_member(object, "node", announced->node);
        json_object_set_int_member(object, "size", (gint64)announced->size);
        json_array_add_object_element(array, object);
    }
    return array;
}

static void announced_from_json(SfDiskServer *server, JsonNode *node)
{
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *element = json_array_get_element(array, i);
        JsonObject *object = JSON_NODE_HOLDS_OBJECT(element) ? json_node_get_object(element) : NULL;
        const char *name = object ? json_object_get_string_member_with_default(object, "name", NULL) : NULL;
        const char *id = object ? json_object_get_string_member_with_default(object, "node", NULL) : NULL;
        if (name && id) {
            sf_disk_server_announced_add(server, name, id,
                                         (guint64)json_object_get_int_member_with_default(object, "size", 0));
        }
    }
}

void sf_disk_server_save(SfDiskServer *server)
{
    g_autofree char *path = g_build_filename(server->directory, FILE_JSON, NULL);
    g_autoptr(JsonObject) object = json_object_new();
    g_autoptr(GError) error = NULL;
    JsonArray *names = json_array_new(), *chains = json_array_new();

    json_object_set_int_member(object, "pid", server->pid);
    json_object_set_int_member(object, "start_time", (gint64)server->start_time);
    json_object_set_boolean_member(object, "local", server->local);
    json_object_set_int_member(object, "client_uid", server->client_uid);
    json_object_set_int_member(object, "client_gid", server->client_gid);
    for (guint i = 0; i < server->names->len; i++) {
        json_array_add_string_element(names, g_ptr_array_index(server->names, i));
    }
    json_object_set_array_member(object, "exports", names);
    for (guint i = 0; i < server->chains->len; i++) {
        json_array_add_object_element(chains, sf_disk_chain_to_json(g_ptr_array_index(server->chains, i)));
    }
    json_object_set_array_member(object, "chains", chains);
    json_object_set_array_member(object, "announced", announced_to_json(server));
    json_object_set_int_member(object, "next_disk", server->next_disk);
    if (!sf_state_write(path, object, &error)) {
        g_warning("disk server %s: %s; a restart of sfvmmd would lose it", server->id, error->message);
    }
}

/* ---- after a restart of sfvmmd ---- */

/* The copy of the certificates that its process has is there still. */
static void adopt_tls(SfDiskServer *server)
{
    g_autofree char *folder = g_build_filename(server->directory, SF_DISK_SERVER_TLS, NULL);

    if (g_file_test(folder, G_FILE_TEST_IS_DIR)) {
        server->tls_directory = g_steal_pointer(&folder);
    }
}

/* Chains that QEMU may have got or not: they are to be given again, and if QEMU has them it says so. */
static void drop_doubtful(SfDiskServer *server)
{
    for (guint i = MIN(server->names->len, server->chains->len); i-- > 0;) {
        if (sf_disk_server_find_announced(server, g_ptr_array_index(server->names, i))) {
            g_ptr_array_remove_index(server->names, i);
            g_ptr_array_remove_index(server->chains, i);
        }
    }
}

static gboolean restore(SfDiskServer *server, JsonObject *object)
{
    JsonNode *names = json_object_get_member(object, "exports");
    JsonNode *chains = json_object_get_member(object, "chains");

    for (guint i = 0; chains && JSON_NODE_HOLDS_ARRAY(chains) && i < json_array_get_length(json_node_get_array(chains));
         i++) {
        JsonNode *node = json_array_get_element(json_node_get_array(chains), i);
        SfDiskChain *chain =
            JSON_NODE_HOLDS_OBJECT(node) ? sf_disk_chain_from_json(json_node_get_object(node), NULL) : NULL;
        if (chain) {
            g_ptr_array_add(server->chains, chain);
        }
    }
    for (guint i = 0; names && JSON_NODE_HOLDS_ARRAY(names) && i < json_array_get_length(json_node_get_array(names));
         i++) {
        JsonNode *node = json_array_get_element(json_node_get_array(names), i);
        if (json_node_get_value_type(node) == G_TYPE_STRING) {
            g_ptr_array_add(server->names, g_strdup(json_node_get_string(node)));
        }
    }
    announced_from_json(server, json_object_get_member(object, "announced"));
    drop_doubtful(server);
    server->next_disk = (guint)json_object_get_int_member_with_default(object, "next_disk", server->chains->len);
    server->pid = (pid_t)json_object_get_int_member_with_default(object, "pid", 0);
    server->start_time = (guint64)json_object_get_int_member_with_default(object, "start_time", 0);
    server->pidfd = sf_process_open(server->pid, server->start_time);
    if (server->pidfd < 0) {
        return FALSE;
    }
    sf_disk_server_watch(server);
    server->local = json_object_get_boolean_member_with_default(object, "local", FALSE);
    server->client_uid = (uid_t)json_object_get_int_member_with_default(object, "client_uid", server->client_uid);
    server->client_gid = (gid_t)json_object_get_int_member_with_default(object, "client_gid", server->client_gid);
    adopt_tls(server);
    sf_disk_server_connect(server, NULL);
    return TRUE;
}

SfDiskServer *sf_disk_server_find(SfLauncher *launcher, const char *id)
{
    const SfLauncherOptions *options = sf_launcher_options(launcher);
    g_autofree char *path = g_build_filename(options->run_directory, SF_DISK_SERVER_FOLDER, id, FILE_JSON, NULL);
    SfDiskServer *server = g_hash_table_lookup(options->disk_servers, id);
    g_autoptr(JsonObject) object = server ? NULL : sf_state_read(path, NULL);

    if (server) {
        return sf_disk_server_ref(server);
    }
    if (!object) {
        return NULL;
    }
    server = sf_disk_server_new(options, id);
    if (!restore(server, object)) {
        g_clear_pointer(&server, sf_disk_server_unref); /* removes the directory */
    }
    return server;
}

/* Layers that VMs of this host have in their chains get the server to hold. */
static void give_to_layers(SfDiskServer *server)
{
    for (guint i = 0; i < server->names->len; i++) {
        g_autofree char *uri = sf_disk_server_uri(server, g_ptr_array_index(server->names, i));
        SfDiskLayer *layer = sf_disk_layer_find(uri);
        if (layer && !sf_disk_layer_keeps(layer)) {
            sf_disk_layer_keep(layer, sf_disk_server_ref(server), (GDestroyNotify)sf_disk_server_unref);
        }
        sf_disk_layer_unref(layer);
    }
}

void sf_disk_servers_sweep(SfLauncher *launcher)
{
    g_autofree char *folder =
        g_build_filename(sf_launcher_options(launcher)->run_directory, SF_DISK_SERVER_FOLDER, NULL);
    g_auto(GStrv) ids = sf_state_list(folder);

    for (char **id = ids; *id; id++) {
        SfDiskServer *server = sf_disk_server_find(launcher, *id);
        if (server) {
            give_to_layers(server);
            sf_disk_server_unref(server);
        } else {
            g_autofree char *path = g_build_filename(folder, *id, NULL);
            sf_state_remove_folder(path);
        }
    }
}
