/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a disk server serves, as orders to QEMU.
 *
 *     a chain of files        raw/qcow2 over qcow2 over ..., all read-only ---> export
 *     announced               nothing, later a chain <- raw ----------------------> export
 *     a URI                   nbd client <- backing - cache.qcow2 <- copy-on-read ---> export
 *
 * With a URI each block travels once: what any clone of this host has read is in the cache, an overlay of ours that
 * goes with the server. A connection that breaks is made anew, requests wait for RECONNECT_SECONDS before they fail.
 */
#include "sfvmm/vm/disk_server_private.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>

#define TLS_SERVER_ID "tls-server"
#define TLS_CLIENT_ID "tls-client"
#define AUTHZ_ID      "hosts"
#define TLS_PRIORITY  "NORMAL:-VERS-ALL:+VERS-TLS1.3"

/* ---- to whom ---- */

static void add_tls_object(SfDiskServer *server, SfQmpBatch *batch, const char *id, const char *endpoint)
{
    g_autofree char *folder = g_build_filename(server->directory, SF_DISK_SERVER_TLS, NULL);
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "qom-type", "tls-creds-x509");
    json_object_set_string_member(args, "id", id);
    json_object_set_string_member(args, "endpoint", endpoint);
    json_object_set_string_member(args, "dir", folder);
    json_object_set_boolean_member(args, "verify-peer", TRUE);
    json_object_set_string_member(args, "priority", TLS_PRIORITY);
    sf_qmp_batch_add(batch, "object-add", args, -1);
}

static void add_rule(JsonArray *rules, const char *format, const char *name)
{
    JsonObject *rule = json_object_new();
    g_autofree char *match = g_strdup_printf(format, name); /* a constant of ours */

    json_object_set_string_member(rule, "match", match);
    json_object_set_string_member(rule, "policy", "allow");
    json_object_set_string_member(rule, "format", "exact");
    json_array_add_object_element(rules, rule);
}

/* Hosts by the names in their page certificates; versions of GnuTLS differ in the order of a name's parts. */
static void add_authz(SfDiskServer *server, SfQmpBatch *batch)
{
    JsonObject *args = json_object_new();
    JsonArray *rules = json_array_new();

    for (char **name = server->allowed; name && *name; name++) {
        add_rule(rules, "CN=%s,OU=pages", *name);
        add_rule(rules, "OU=pages,CN=%s", *name);
    }
    json_object_set_string_member(args, "qom-type", "authz-list");
    json_object_set_string_member(args, "id", AUTHZ_ID);
    json_object_set_string_member(args, "policy", "deny");
    json_object_set_array_member(args, "rules", rules);
    sf_qmp_batch_add(batch, "object-add", args, -1);
}

static void add_nbd_server(SfDiskServer *server, SfQmpBatch *batch)
{
    JsonObject *getfd = json_object_new(), *args = json_object_new(), *address = json_object_new();
    JsonObject *data = json_object_new();

    json_object_set_string_member(getfd, "fdname", "listener");
    sf_qmp_batch_add(batch, "getfd", getfd, fcntl(server->listener, F_DUPFD_CLOEXEC, 0));
    json_object_set_string_member(data, "str", "listener");
    json_object_set_string_member(address, "type", "fd");
    json_object_set_object_member(address, "data", data);
    json_object_set_object_member(args, "addr", address);
    json_object_set_int_member(args, "max-connections", 0); /* no bound: the clones of a host are bounded elsewhere */
    if (server->tls) {
        json_object_set_string_member(args, "tls-creds", TLS_SERVER_ID);
        json_object_set_string_member(args, "tls-authz", AUTHZ_ID);
    }
    sf_qmp_batch_add(batch, "nbd-server-start", args, -1);
}

void sf_disk_server_add_listener(SfDiskServer *server, SfQmpBatch *batch)
{
    if (server->tls) {
        add_tls_object(server, batch, TLS_SERVER_ID, "server");
        add_authz(server, batch);
    }
    if (server->tls_directory) {
        add_tls_object(server, batch, TLS_CLIENT_ID, "client");
    }
    add_nbd_server(server, batch);
}

/* ---- an export of files ---- */

static void add_export(SfQmpBatch *batch, const char *name, const char *node)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "type", "nbd");
    json_object_set_string_member(args, "id", node);
    json_object_set_string_member(args, "node-name", node);
    json_object_set_string_member(args, "name", name);
    json_object_set_boolean_member(args, "writable", FALSE);
    sf_qmp_batch_add(batch, "block-export-add", args, -1);
}

/* Nodes are named by us: two chains of one server may have the same id. */
static SfDiskChain *own_copy(SfDiskServer *server, const SfDiskChain *chain)
{
    SfDiskChain *copy = sf_disk_chain_copy(chain);

    g_free(copy->id);
    copy->id = g_strdup_printf("disk%u", server->next_disk++);
    copy->readonly = TRUE;
    return copy;
}

/* announced_or_null: the node that is exported already; else an export is added. */
gboolean sf_disk_server_add_frozen(const char *name, const SfDiskChain *chain, const SfDiskAnnounced *announced_or_null,
                                   SfQmpBatch *batch, GError **error)
{
    SfVmDisk *disk = sf_vm_disk_new(sf_disk_chain_copy(chain));
    gboolean ok = sf_vm_disk_add_frozen(disk, batch, error);

    if (ok && announced_or_null) {
        sf_vm_disk_fill_empty_node(batch, announced_or_null->node, sf_vm_disk_top_node(disk));
    } else if (ok) {
        add_export(batch, name, sf_vm_disk_top_node(disk));
    }
    sf_vm_disk_free(disk);
    return ok;
}

SfDiskAnnounced *sf_disk_server_find_announced(const SfDiskServer *server, const char *name)
{
    for (guint i = 0; i < server->announced->len; i++) {
        SfDiskAnnounced *announced = g_ptr_array_index(server->announced, i);
        if (strcmp(announced->name, name) == 0) {
            return announced;
        }
    }
    return NULL;
}

static gboolean export_chain(SfDiskServer *server, const SfDiskExport *export, SfQmpBatch *batch, GError **error)
{
    SfDiskChain *chain = own_copy(server, export->chain);
    SfDiskAnnounced *announced = sf_disk_server_find_announced(server, export->name);
    gboolean ok;

    g_ptr_array_add(server->chains, chain);
    ok = sf_disk_server_add_frozen(export->name, chain, announced, batch, error);
    if (announced) {
        announced->given = TRUE;
    }
    return ok;
}

void sf_disk_server_add_announced(const SfDiskAnnounced *announced, SfQmpBatch *batch)
{
    sf_vm_disk_add_empty_node(batch, announced->node, announced->size);
    add_export(batch, announced->name, announced->node);
}

static void announce(SfDiskServer *server, const SfDiskExport *export, SfQmpBatch *batch)
{
    g_autofree char *node = g_strdup_printf("announced%u", server->next_disk++);

    sf_disk_server_add_announced(sf_disk_server_announced_add(server, export->name, node, export->size), batch);
}

/* ---- an export of a URI ---- */

gboolean sf_disk_server_add_cache(SfDiskServer *server, const char *name, const SfDiskChain *chain, SfQmpBatch *batch,
                                  GError **error)
{
    SfVmDisk *disk = sf_vm_disk_new(sf_disk_chain_copy(chain));
    g_autofree char *filter = g_strdup_printf("%s-cor", chain->id);
    gboolean ok = sf_vm_disk_add_cache(disk, server->tls_directory ? TLS_CLIENT_ID : NULL, batch, error);

    if (ok) {
        JsonObject *args = json_object_new();
        json_object_set_string_member(args, "driver", "copy-on-read");
        json_object_set_string_member(args, "node-name", filter);
        json_object_set_string_member(args, "file", sf_vm_disk_top_node(disk));
        sf_qmp_batch_add(batch, "blockdev-add", args, -1);
        add_export(batch, name, filter);
    }
    sf_vm_disk_free(disk);
    return ok;
}

static gboolean export_uri(SfDiskServer *server, const SfDiskExport *export, SfQmpBatch *batch, GError **error)
{
    g_autofree char *id = g_strdup_printf("disk%u", server->next_disk++);
    g_autofree char *template = g_strdup_printf("%s/%s.template", server->directory, id);
    g_autofree char *cache =
        g_strdup_printf("%s/nbd-%s-%s-%08x.qcow2", server->options->overlay_directory, server->id, id, g_random_int());
    SfDiskChain *chain = sf_disk_chain_new(id, export->size, FALSE);
    SfDiskLayer *overlay;

    if (g_mkdir_with_parents(server->options->overlay_directory, 0700) < 0) {
        sf_disk_chain_free(chain);
        return sf_disk_server_fail_errno(error, server->options->overlay_directory);
    }
    overlay = sf_disk_template_create(server->options->qemu_img, template, export->size, error)
                  ? sf_disk_overlay_create(template, cache, server->options->uid, server->options->gid, error)
                  : NULL;
    g_unlink(template);
    if (!overlay) {
        sf_disk_chain_free(chain);
        return FALSE;
    }
    g_ptr_array_add(chain->layers, sf_disk_layer_new(export->uri, SF_DISK_FORMAT_NBD, FALSE));
    g_ptr_array_add(chain->layers, overlay);
    g_ptr_array_add(server->chains, chain);
    return sf_disk_server_add_cache(server, export->name, chain, batch, error);
}

/* ---- all of them ---- */

gboolean sf_disk_server_add_exports(SfDiskServer *server, const SfDiskExport *exports, guint n, SfQmpBatch *batch,
                                    GError **error)
{
    for (guint i = 0; i < n; i++) {
        const SfDiskExport *export = &exports[i];
        if (export->uri && g_str_has_prefix(export->uri, "nbds") && !server->tls_directory) {
            g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "disk %s: %s needs certificates", export->name,
                        export->uri);
            return FALSE;
        }
        if (server->names->len + server->announced->len >= SF_DISK_SERVER_EXPORTS_MAX &&
            !sf_disk_server_find_announced(server, export->name)) {
            g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "disk %s: more than %u exports", export->name,
                        SF_DISK_SERVER_EXPORTS_MAX);
            return FALSE;
        }
        if (!export->uri && !export->chain) {
            announce(server, export, batch);
            continue;
        }
        if (export->uri ? !export_uri(server, export, batch, error) : !export_chain(server, export, batch, error)) {
            return FALSE;
        }
        g_ptr_array_add(server->names, g_strdup(export->name));
    }
    return TRUE;
}
