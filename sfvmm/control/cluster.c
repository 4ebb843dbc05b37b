/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/cluster.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/facts.h"
#include "sfvmm/control/lend.h"
#include "sfvmm/wire/json_line.h"
#include "sfvmm/wire/state_file.h"

#define HOST_KEY        "sf-cluster" /* of the host's object data */
#define STATE_MODE      0600
#define FOLDER_MODE     0700
#define HOST_SLOTS_MAX  G_MAXUINT16
#define REPROBE_SECONDS 30u /* QEMU may be installed a little later than sfvmmd */

struct SfCluster {
    SfHost *host;   /* not owned */
    SfPeers *peers; /* NULL: there are no other hosts */
    JsonObject *facts;
    char *path; /* of hosts.json */
    guint timer;
};

SfCluster *sf_cluster_of(SfHost *host)
{
    return g_object_get_data(G_OBJECT(host), HOST_KEY);
}

SfResourceManager *sf_cluster_manager_new(const SfDaemonConfig *config)
{
    switch (config->cluster.manager) {
    case SF_MANAGER_LOCAL:
        return sf_resource_manager_local_new(&config->limits);
    case SF_MANAGER_STATIC:
        return sf_resource_manager_static_new(&config->limits, config->cluster.name, config->cluster.policy);
    case SF_MANAGER_SLURM:
        return sf_resource_manager_slurm_new(&config->limits, config->cluster.name, &config->cluster.slurm);
    }
    g_assert_not_reached();
}

JsonObject *sf_cluster_facts(SfCluster *cluster)
{
    return cluster->facts;
}

/* ---- the list of hosts ---- */

static gboolean save(SfCluster *cluster, GError **error)
{
    g_autoptr(GList) hosts = sf_resource_manager_hosts(sf_host_manager(cluster->host));
    g_autoptr(JsonObject) object = json_object_new();
    g_autofree char *folder = g_path_get_dirname(cluster->path), *text = NULL;
    JsonArray *array = json_array_new();

    for (GList *item = hosts; item; item = item->next) {
        const SfClusterHost *host = item->data;
        JsonObject *entry = json_object_new();
        json_object_set_string_member(entry, "name", item == hosts ? "" : host->name);
        if (host->address) {
            json_object_set_string_member(entry, "address", host->address);
            json_object_set_int_member(entry, "slots", host->slots);
            json_object_set_int_member(entry, "memory", (gint64)host->memory);
        }
        json_object_set_boolean_member(entry, "draining", host->draining);
        json_array_add_object_element(array, entry);
    }
    json_object_set_array_member(object, "hosts", array);
    text = sf_json_line_format(object, NULL);
    if (g_mkdir_with_parents(folder, FOLDER_MODE) < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno), "state directory \"%s\": can't make it: %s",
                    folder, g_strerror(errno));
        return FALSE;
    }
    return g_file_set_contents_full(cluster->path, text, -1,
                                    G_FILE_SET_CONTENTS_CONSISTENT | G_FILE_SET_CONTENTS_DURABLE, STATE_MODE, error);
}

/* One entry of hosts.json. */
static gboolean load_host(SfCluster *cluster, JsonNode *node, GError **error)
{
    SfResourceManager *manager = sf_host_manager(cluster->host);
    JsonObject *entry = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    const char *name = sf_facts_text(entry, "name"), *address = sf_facts_text(entry, "address");
    gint64 slots = sf_facts_integer(entry, "slots"), memory = sf_facts_integer(entry, "memory");

    if (!name || slots < 0 || slots > HOST_SLOTS_MAX || memory < 0 || (*name && !address)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "host \"%s\": its record is damaged",
                    name ? name : "?");
        return FALSE;
    }
    if (*name && (!cluster->peers ||
                  !sf_resource_manager_add_host(manager, name, address, (guint)slots, (guint64)memory, error) ||
                  !sf_peers_add(cluster->peers, name, address, error))) {
        return cluster->peers == NULL; /* hosts wait for [cluster] to come back */
    }
    sf_resource_manager_drain_host(manager, name, sf_facts_flag(entry, "draining"), NULL);
    return TRUE;
}

static gboolean load(SfCluster *cluster, GError **error)
{
    g_autoptr(GError) local = NULL;
    g_autoptr(JsonObject) object = sf_state_read(cluster->path, &local);
    JsonNode *node = object ? json_object_get_member(object, "hosts") : NULL;

    if (!object && g_error_matches(local, G_FILE_ERROR, G_FILE_ERROR_NOENT)) {
        return TRUE;
    }
    if (!object || !node || !JSON_NODE_HOLDS_ARRAY(node)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "list of hosts \"%s\": %s", cluster->path,
                    local ? local->message : "it has no hosts");
        return FALSE;
    }
    for (guint i = 0; i < json_array_get_length(json_node_get_array(node)); i++) {
        if (!load_host(cluster, json_array_get_element(json_node_get_array(node), i), &local)) {
            g_warning("list of hosts \"%s\": %s; it is left out", cluster->path, local->message);
            g_clear_error(&local);
        }
    }
    return TRUE;
}

/* ---- peers ---- */

static JsonObject *on_describe(gpointer owner)
{
    SfCluster *cluster = owner;
    const SfClusterHost *self = sf_resource_manager_host(sf_host_manager(cluster->host), "");
    g_autoptr(GList) members = json_object_get_members(cluster->facts);
    JsonObject *facts = json_object_new();

    for (GList *item = members; item; item = item->next) {
        json_object_set_member(facts, item->data, json_node_copy(json_object_get_member(cluster->facts, item->data)));
    }
    json_object_set_int_member(facts, "slots", self->slots);
    json_object_set_int_member(facts, "memory", (gint64)self->memory);
    json_object_set_boolean_member(facts, "draining", self->draining);
    return facts;
}

static void take_facts(SfCluster *cluster, SfPeer *peer)
{
    JsonObject *facts = sf_peer_facts(peer);
    gint64 slots = sf_facts_integer(facts, "slots"), memory = sf_facts_integer(facts, "memory");

    sf_resource_manager_host_up(sf_host_manager(cluster->host), sf_peer_name(peer),
                                (guint)CLAMP(slots, 0, HOST_SLOTS_MAX), (guint64)MAX(memory, 0),
                                sf_facts_flag(facts, "draining"));
}

static void tell(SfCluster *cluster, const char *event, SfPeer *peer)
{
    const SfClusterHost *host = sf_resource_manager_host(sf_host_manager(cluster->host), sf_peer_name(peer));

    if (host) {
        sf_host_event(cluster->host, event, sf_cluster_describe(cluster, host));
    }
}

static void on_up(SfPeer *peer, gpointer owner)
{
    SfCluster *cluster = owner;

    take_facts(cluster, peer);
    tell(cluster, "host.up", peer);
    sf_borrow_peer_up(cluster->host, peer);
    sf_lend_peer_up(cluster->host, peer);
}

static void on_down(SfPeer *peer, const GError *reason, gpointer owner)
{
    SfCluster *cluster = owner;

    sf_resource_manager_host_down(sf_host_manager(cluster->host), sf_peer_name(peer));
    tell(cluster, "host.down", peer);
    sf_borrow_peer_down(cluster->host, peer);
    sf_lend_peer_down(cluster->host, peer);
}

static void on_facts(SfPeer *peer, gpointer owner)
{
    take_facts(owner, peer);
}

static void on_request(SfPeerRequest *request, gpointer owner)
{
    SfHost *host = ((SfCluster *)owner)->host;

    if (strcmp(sf_peer_request_method(request), "descriptor") == 0) { /* the only one of a host that has been lent */
        sf_borrow_descriptor_request(host, request);
    } else {
        sf_lend_request(host, request);
    }
}

static void on_event(SfPeer *peer, const char *name, JsonObject *data, gpointer owner)
{
    sf_borrow_event(((SfCluster *)owner)->host, peer, name, data);
}

static const SfPeersHandlers peers_handlers = {
    .request = on_request,
    .event = on_event,
    .up = on_up,
    .down = on_down,
    .facts = on_facts,
    .describe = on_describe,
};

/* ---- what an operator changes ---- */

static gboolean need_peers(SfCluster *cluster, GError **error)
{
    if (!cluster->peers) {
        g_set_error(
            error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_HOST,
            "this sfvmmd is alone: set listen= and pki-directory= in group [cluster] of sfvmmd.conf, and start it "
            "anew");
    }
    return cluster->peers != NULL;
}

gboolean sf_cluster_add(SfCluster *cluster, const char *name, const char *address, guint slots, guint64 memory,
                        GError **error)
{
    SfResourceManager *manager = sf_host_manager(cluster->host);
    SfPeer *peer;

    if (!need_peers(cluster, error)) {
        return FALSE;
    }
    if (!sf_peer_name_is_valid(name)) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_HOST,
                    "host \"%.64s\": a name is made of a-z, 0-9, dots and hyphens, and has at most %u", name,
                    SF_PEER_NAME_MAX);
        return FALSE;
    }
    if (!sf_resource_manager_add_host(manager, name, address, slots, memory, error)) {
        return FALSE;
    }
    if (!sf_peers_add(cluster->peers, name, address, error) || !save(cluster, error)) {
        sf_resource_manager_remove_host(manager, name, NULL);
        sf_peers_remove(cluster->peers, name);
        return FALSE;
    }
    peer = sf_peers_get(cluster->peers, name);
    if (sf_peer_is_up(peer)) {
        take_facts(cluster, peer);
    }
    return TRUE;
}

gboolean sf_cluster_remove(SfCluster *cluster, const char *name, GError **error)
{
    if (!need_peers(cluster, error) || !sf_resource_manager_remove_host(sf_host_manager(cluster->host), name, error)) {
        return FALSE;
    }
    sf_peers_remove(cluster->peers, name);
    return save(cluster, error);
}

gboolean sf_cluster_drain(SfCluster *cluster, const char *name, gboolean drain, GError **error)
{
    SfResourceManager *manager = sf_host_manager(cluster->host);

    if (!sf_resource_manager_drain_host(manager, name, drain, error)) {
        return FALSE;
    }
    if (cluster->peers && sf_resource_manager_host(manager, name) == sf_resource_manager_host(manager, "")) {
        sf_peers_facts_changed(cluster->peers);
    }
    return save(cluster, error);
}

static void copy_facts(JsonObject *object, JsonObject *facts)
{
    static const char *const texts[] = { "qemu_version", "accel", "cpu_vendor" };
    static const char *const lists[] = { "machine_types", "cpu_models", "cpu_flags" };

    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        const char *text = sf_facts_text(facts, texts[i]);
        json_object_set_string_member(object, texts[i], text ? text : "");
    }
    for (guint i = 0; i < G_N_ELEMENTS(lists); i++) {
        json_object_set_array_member(object, lists[i], sf_facts_list(facts, lists[i]));
    }
}

JsonObject *sf_cluster_describe(SfCluster *cluster, const SfClusterHost *host)
{
    gboolean self = host == sf_resource_manager_host(sf_host_manager(cluster->host), "");
    SfPeer *peer = !self && cluster->peers ? sf_peers_get(cluster->peers, host->name) : NULL;
    const char *reason = peer ? sf_peer_reason(peer) : NULL, *version = peer ? sf_peer_version(peer) : NULL;
    JsonObject *object = json_object_new();

    json_object_set_string_member(object, "name", host->name);
    json_object_set_string_member(object, "address", host->address ? host->address : "");
    json_object_set_boolean_member(object, "self", self);
    json_object_set_string_member(object, "state", host->up ? "up" : "down");
    json_object_set_string_member(object, "reason", host->up || !reason ? "" : reason);
    json_object_set_boolean_member(object, "draining", host->draining || host->told_draining);
    json_object_set_int_member(object, "slots", host->slots ? host->slots : host->told_slots);
    json_object_set_int_member(object, "memory", (gint64)(host->memory ? host->memory : host->told_memory));
    json_object_set_int_member(object, "booked", host->booked);
    json_object_set_int_member(object, "booked_memory", (gint64)host->booked_memory);
    json_object_set_string_member(object, "version", self ? SF_VERSION : version ? version : "");
    copy_facts(object, self ? cluster->facts : peer ? sf_peer_facts(peer) : NULL);
    return object;
}

/* ---- life ---- */

SfCluster *sf_cluster_new(SfHost *host, GError **error)
{
    const SfDaemonConfig *config = sf_host_config(host);
    SfCluster *cluster = g_new0(SfCluster, 1);

    cluster->host = host;
    cluster->facts = json_object_new();
    cluster->path = g_build_filename(config->state_directory, "hosts.json", NULL);
    if (config->cluster.pki_directory) {
        g_autofree char *directory = g_build_filename(config->cluster.pki_directory, "host", NULL);
        const SfPeersOptions options = {
            .name = config->cluster.name,
            .listen = config->cluster.listen,
            .directory = directory,
            .version = SF_VERSION,
        };
        cluster->peers = sf_peers_new(&options, &peers_handlers, cluster, error);
        if (!cluster->peers) {
            sf_cluster_free(cluster);
            return NULL;
        }
    }
    g_object_set_data(G_OBJECT(host), HOST_KEY, cluster);
    if (!load(cluster, error)) {
        sf_cluster_free(cluster);
        return NULL;
    }
    sf_host_set_peers(host, cluster->peers);
    return cluster;
}

void sf_cluster_free(SfCluster *cluster)
{
    if (!cluster) {
        return;
    }
    g_object_set_data(G_OBJECT(cluster->host), HOST_KEY, NULL);
    sf_host_set_peers(cluster->host, NULL);
    g_clear_handle_id(&cluster->timer, g_source_remove);
    sf_peers_free(cluster->peers);
    json_object_unref(cluster->facts);
    g_free(cluster->path);
    g_free(cluster);
}

static gboolean on_probe_again(gpointer data);

static void on_probed(GObject *source, GAsyncResult *result, gpointer data)
{
    SfCluster *cluster = data;
    g_autoptr(GError) error = NULL;
    JsonObject *facts = sf_facts_probe_finish(result, &error);

    if (facts) {
        json_object_unref(cluster->facts);
        cluster->facts = facts;
        sf_peers_facts_changed(cluster->peers);
    } else {
        g_warning("QEMU \"%s\": %s", sf_launcher_options(sf_host_launcher(cluster->host))->qemu, error->message);
        cluster->timer = g_timeout_add_seconds(REPROBE_SECONDS, on_probe_again, cluster);
    }
    sf_peers_start(cluster->peers); /* nothing when it has been done */
}

static gboolean on_probe_again(gpointer data)
{
    SfCluster *cluster = data;

    cluster->timer = 0;
    sf_facts_probe_async(sf_host_launcher(cluster->host), on_probed, cluster);
    return G_SOURCE_REMOVE;
}

void sf_cluster_start(SfCluster *cluster)
{
    if (!cluster->peers) {
        return; /* nobody would be told */
    }
    g_message("host \"%s\" of a cluster, port %u", sf_peers_name(cluster->peers), sf_peers_listen_port(cluster->peers));
    on_probe_again(cluster);
}
