/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * "reserve": places are booked, the family and its pool are made, and what clones will fetch memory and disks from.
 *
 *     checked --> libvirt is looked at (a domain) --> a disk server (there are disks) --> booked, sf-pager, answer
 *                       reserves: one of a ticket at a time; "release" meanwhile ends it when the step is done
 *
 * A ticket that has places gets more of them: its family, sf-pager and disk server stand already.
 */
#include "sfvmm/control/lend_private.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#include "sfvmm/cluster/peer_params.h"
#include "sfvmm/control/facts.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/control/page_uri.h"
#include "sfvmm/control/pager_record.h"
#include "sfvmm/vm/disk_server.h"

#define VM_NAME_MAX   63u /* of a clone of a clone: names grow with each level */
#define TEXT_MAX      1024u
#define RESERVES      "sf-lend-reserves"
#define TICKET4_SHIFT 48 /* a ticket's first four digits, as in the names of clones */

/* ---- parameters ---- */

static gboolean name_is_valid(const char *name)
{
    return *name && strlen(name) <= VM_NAME_MAX && g_ascii_isalnum(name[0]) &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") == strlen(name);
}

/* Paths would be read here: the portable form, which the origin sends, has none that mean anything. */
static gboolean config_has_paths(const SfVmConfig *config)
{
    gboolean paths = (config->kernel && strcmp(config->kernel, "/kernel") != 0) || config->initrd || config->append;

    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        paths = paths || strcmp(disk->path, "/disk") != 0 || disk->size == 0 || disk->size > SF_DISK_SIZE_MAX;
    }
    return paths;
}

/* What "pages" has for a saved snapshot. */
static gboolean parse_page_source(JsonObject *pages, SfLendReserve *params, GError **error)
{
    if (json_object_has_member(pages, "snapshot") &&
        (!sf_peer_param_text(pages, "snapshot", TEXT_MAX, &params->snapshot, error) ||
         (!sf_page_uri_snapshot_is_valid(params->snapshot) &&
          !sf_peer_param_bad(error, "snapshot", "a snapshot's name")))) {
        return FALSE;
    }
    return !json_object_has_member(pages, "uri") ||
           sf_peer_param_text(pages, "uri", SF_PAGE_URI_MAX, &params->uri, error);
}

static gboolean parse_reserve(JsonObject *object, SfLendReserve *params, GError **error)
{
    JsonObject *config, *pages;

    params->object = object;

    if (!sf_peer_param_text(object, "vm", VM_NAME_MAX, &params->vm, error) ||
        !sf_peer_param_text(object, "qemu_version", TEXT_MAX, &params->qemu_version, error) ||
        !sf_peer_param_text(object, "config_hash", TEXT_MAX, &params->config_hash, error) ||
        !sf_peer_param_text(object, "machine", TEXT_MAX, &params->machine, error) ||
        !sf_peer_param_texts(object, "cpu_flags", SF_FACTS_LIST_MAX, &params->cpu_flags, error) ||
        !sf_peer_param_int(object, "count", 1, SF_GP_MAX_CLONES, &params->count, error) ||
        !sf_peer_param_object(object, "config", &config, error) ||
        !sf_peer_param_object(object, "pages", &pages, error) ||
        !sf_peer_param_int(pages, "port", 1, G_MAXUINT16, &params->port, error) ||
        !sf_peer_param_int(object, "disks_port", 0, G_MAXUINT16, &params->disks_port, error) ||
        !sf_peer_param_text(pages, "security", TEXT_MAX, &params->security, error) ||
        !parse_page_source(pages, params, error)) {
        return FALSE;
    }
    if (json_object_has_member(pages, "multicast") &&
        !sf_peer_param_object(pages, "multicast", &params->multicast, error)) {
        return FALSE;
    }
    if (!name_is_valid(params->vm)) {
        return sf_peer_param_bad(error, "vm", "a VM's name");
    }
    params->config = sf_vm_config_from_peer(config, error);
    if (!params->config) {
        (*error)->domain = SF_PEER_ERROR;
        (*error)->code = SF_PEER_ERROR_BAD_REQUEST;
        return FALSE;
    }
    return !config_has_paths(params->config) || sf_peer_param_bad(error, "config", "without paths");
}

/* ---- the sf-pager ---- */

/* Its memory's own place first: the origin may end. */
static gboolean add_sources(SfPager *pager, const SfDaemonConfig *config, const char *own_uri, const char *origin_uri,
                            GError **error)
{
    SfPageSource source = { .security = config->cluster.pages, .keys = config->cluster.pages_directory };

    source.uri = own_uri;
    if (own_uri && !sf_pager_add_source(pager, &source, error)) {
        return FALSE;
    }
    source.uri = origin_uri;
    return sf_pager_add_source(pager, &source, error);
}

/* Into the origin's multicast group; if that can't be, the pager knows why. */
static void join_group(SfHost *host, SfPeer *peer, guint64 id, SfPager *pager, JsonObject *invitation)
{
    g_autoptr(GError) error = NULL;
    const char *reason = NULL;

    if (sf_host_config(host)->cluster.multicast.mode == SF_MULTICAST_OFF) {
        reason = "multicast=off at this host";
    } else if (!invitation) {
        reason = "its origin has not invited this host";
    } else if (!sf_multicast_join(pager, invitation, sf_peer_local_ip(peer), sf_peer_remote_ip(peer), &error)) {
        reason = error->message;
        g_message("ticket %016" G_GINT64_MODIFIER "x: pages come by unicast: %s", id, reason);
    }
    g_object_set_data_full(G_OBJECT(pager), SF_NO_MULTICAST, g_strdup(reason), g_free);
}

/* The sf-pager connects at once: the fork shall not wait for it. */
static SfPager *start_pager(SfHost *host, SfPeer *peer, guint64 id, const SfLendReserve *params, GError **error)
{
    const SfDaemonConfig *config = sf_host_config(host);
    g_autofree char *snapshot = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, id);
    g_autofree char *uri = sf_page_uri_of_host(sf_peer_remote_ip(peer), (guint)params->port, config->cluster.pages,
                                               params->snapshot ? params->snapshot : snapshot);
    SfPagerOptions options = sf_daemon_config_pager(config, snapshot);
    SfPager *pager = sf_pager_start(&options, error);

    if (pager) {
        join_group(host, peer, id, pager, params->multicast);
    }
    if (pager && !add_sources(pager, config, params->uri, uri, error)) {
        sf_pager_stop(pager);
        g_clear_object(&pager);
    }
    if (pager) {
        sf_lend_watch_pager(pager, host);
    }
    return pager;
}

/* ---- the ticket ---- */

static gboolean has_readonly_disk(const SfVmConfig *config)
{
    gboolean has = FALSE;

    for (guint i = 0; i < config->disks->len; i++) {
        has = has || ((const SfDiskConfig *)g_ptr_array_index(config->disks, i))->readonly;
    }
    return has;
}

/*
 * "ORIGIN:VM": no VM of ours has a name with a colon. Read-only disks are opened by shells, and read through what this
 * ticket makes be served: then the family is the ticket's alone.
 */
static SfFamily *take_family(SfHost *host, const char *origin, guint64 id, const SfLendReserve *params, GError **error)
{
    g_autofree char *name = has_readonly_disk(params->config)
                                ? g_strdup_printf("%s:%s:%04x", origin, params->vm, (guint)(id >> TICKET4_SHIFT))
                                : g_strdup_printf("%s:%s", origin, params->vm);
    SfFamily *family = sf_host_family(host, name);
    g_autofree char *hash = family ? sf_vm_config_hash(family->config, params->qemu_version) : NULL;

    if (family && strcmp(hash, params->config_hash) != 0) {
        sf_lend_refuse(error, "clones of an earlier VM \"%s\" are still here", params->vm);
        return NULL;
    }
    return family ? family : sf_host_family_new(host, name, 0, params->config, 0);
}

static void warm_pool(SfHost *host, SfHostTicket *ticket)
{
    guint target = MIN(ticket->grant->granted, sf_host_config(host)->pool_max);

    if (target > sf_shell_pool_target(ticket->family->pool)) {
        sf_host_set_pool(host, ticket->family, target);
    }
}

static void reply_granted(SfPeerRequest *request, const SfHostTicket *ticket, guint granted)
{
    JsonObject *result = json_object_new();

    json_object_set_int_member(result, "granted", granted);
    json_object_set_boolean_member(result, "multicast", sf_pager_is_in_group(ticket->pager));
    sf_peer_request_reply(request, result);
}

/* More places for a ticket that has some: what `count` says is the new sum. */
static gboolean extend(SfHost *host, SfHostTicket *ticket, guint count, GError **error)
{
    g_autoptr(SfTicket) more = NULL;
    guint held = ticket->grant->granted;

    if (count <= held || !ticket->booked) {
        return TRUE;
    }
    more = sf_resource_manager_lend(sf_host_manager(host), ticket->grant->origin, ticket->grant->id, ticket->grant->vm,
                                    ticket->family->config->memory, count - held, FALSE, error);
    if (!more) {
        return held > 0;
    }
    ticket->grant->granted += more->granted; /* booked with this one: released with it */
    sf_ticket_add_place(ticket->grant, "", (gint)more->granted);
    sf_host_ticket_save(ticket);
    warm_pool(host, ticket);
    return TRUE;
}

static SfHostTicket *lend(SfHost *host, SfPeer *peer, guint64 id, const SfLendReserve *params, GError **error)
{
    const char *origin = sf_peer_name(peer);
    SfHostTicket *ticket = NULL;
    SfFamily *family = take_family(host, origin, id, params, error);
    SfTicket *grant = NULL;

    if (!family) {
        return NULL;
    }
    sf_host_family_join(family); /* so that it goes again, when it is new and anything below fails */
    grant = sf_networks_accept(host, family, peer, params->object, error)
                ? sf_resource_manager_lend(sf_host_manager(host), origin, id, params->vm, params->config->memory,
                                           (guint)params->count, FALSE, error)
                : NULL;
    if (grant) {
        ticket = sf_host_add_ticket(host, grant, family);
        sf_lend_new(ticket);
        ticket->pager = g_mkdir(ticket->directory, 0700) == 0 ? start_pager(host, peer, id, params, error) : NULL;
        if (!ticket->pager) {
            if (error && !*error) {
                g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "\"%s\": %s", ticket->directory,
                            g_strerror(errno));
            }
            sf_host_release_ticket(host, ticket);
            ticket = NULL;
        } else {
            sf_pager_record_save(host, ticket->pager);
        }
    }
    sf_host_family_leave(host, family);
    return ticket;
}

/* ---- what it waits for ---- */

/* A "reserve" for which libvirt is being looked at, or the disks are being made ready. */
typedef struct {
    SfHost *host;
    SfPeerRequest *request;
    guint64 id;
    SfLendReserve params; /* texts are the request's */
    uid_t uid;            /* whose QEMUs will read the disks; 0: the launcher's */
    gid_t gid;
    gboolean released; /* the origin has given it up meanwhile */
} Reserve;

static GHashTable *reserves(SfHost *host)
{
    return sf_host_table(host, RESERVES, g_int64_hash, g_int64_equal, NULL, NULL);
}

static void reserve_end(SfHost *host, SfPeerRequest *request, SfHostTicket *ticket, const SfLendReserve *params,
                        const GError *error)
{
    if (ticket) {
        sf_host_ticket_save(ticket);
        warm_pool(host, ticket);
        g_message("ticket %016" G_GINT64_MODIFIER "x: %u places for VM \"%s\" of host %s", ticket->grant->id,
                  ticket->grant->granted, params->vm, ticket->grant->origin);
        reply_granted(request, ticket, ticket->grant->granted);
    } else {
        sf_peer_request_fail(request, error);
    }
}

static Reserve *reserve_begin(SfHost *host, SfPeerRequest *request, guint64 id, const SfLendReserve *params)
{
    Reserve *reserve = g_new0(Reserve, 1);

    reserve->host = g_object_ref(host);
    reserve->request = request;
    reserve->id = id;
    reserve->params = *params;
    sf_vm_config_ref(params->config);
    g_hash_table_insert(reserves(host), &reserve->id, reserve);
    return reserve;
}

/* All is there, or error says what is not. Takes the server, which may be NULL. */
static void reserve_finish(Reserve *reserve, SfDiskServer *server, GError *failure)
{
    SfPeer *peer = sf_peer_request_peer(reserve->request);
    g_autoptr(SfDiskServer) disks = server;
    g_autoptr(GError) error = failure;
    SfHostTicket *ticket = NULL;

    g_hash_table_remove(reserves(reserve->host), &reserve->id);
    if (!error && (!peer || reserve->released)) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_GONE, "it was released meanwhile");
    } else if (!error) {
        ticket = lend(reserve->host, peer, reserve->id, &reserve->params, &error);
    }
    if (ticket) {
        ticket->lend->disks = g_steal_pointer(&disks);
    }
    reserve_end(reserve->host, reserve->request, ticket, &reserve->params, error);
    sf_vm_config_unref(reserve->params.config);
    g_object_unref(reserve->host);
    g_free(reserve);
}

/* The read-only disks are what the server serves here. */
static SfVmConfig *config_with_disks(SfVmConfig *config, SfDiskServer *server, GError **error)
{
    g_autoptr(JsonObject) object = sf_vm_config_to_json(config);
    JsonArray *disks = json_object_get_array_member(object, "disks");

    if (!has_readonly_disk(config)) {
        return sf_vm_config_ref(config);
    }
    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        g_autofree char *uri = sf_disk_server_uri(server, disk->id);
        if (disk->readonly) {
            json_object_set_string_member(json_array_get_object_element(disks, i), "path", uri);
            json_object_set_string_member(json_array_get_object_element(disks, i), "format", SF_DISK_FORMAT_NBD);
        }
    }
    return sf_vm_config_from_json(object, error);
}

static void on_disk_server(GObject *source, GAsyncResult *result, gpointer data)
{
    Reserve *reserve = data;
    GError *error = NULL;
    SfDiskServer *server = sf_disk_server_start_finish(result, &error);
    SfVmConfig *config = server ? config_with_disks(reserve->params.config, server, &error) : NULL;

    if (config) {
        sf_vm_config_unref(reserve->params.config);
        reserve->params.config = config;
    } else {
        g_prefix_error(&error, "the disks can't be read here: ");
    }
    reserve_finish(reserve, server, error);
}

/* host:port/SNAPSHOT/DISK of the origin's disk server, which has announced those that are to be frozen. */
static GArray *disk_exports(SfHost *host, guint64 id, const SfVmConfig *config, const char *ip, gint64 port,
                            GPtrArray *uris)
{
    GArray *exports = g_array_new(FALSE, FALSE, sizeof(SfDiskExport));

    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        SfDiskExport export = { .name = disk->id, .size = disk->size };
        g_ptr_array_add(uris, g_strdup_printf("%s://%s:%" G_GINT64_FORMAT "/" SF_FORK_SNAPSHOT_FORMAT "/%s",
                                              sf_page_uri_scheme(sf_host_config(host)->cluster.pages), ip, port, id,
                                              disk->id));
        export.uri = g_ptr_array_index(uris, uris->len - 1);
        g_array_append_val(exports, export);
    }
    return exports;
}

/* All clones here read their disks through one process of this host; it is there before their shells. */
static void serve_disks(Reserve *reserve, SfPeer *peer)
{
    const SfDaemonConfig *config = sf_host_config(reserve->host);
    const SfLendReserve *params = &reserve->params;
    g_autofree char *snapshot = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, reserve->id);
    g_autofree char *ip = sf_page_uri_ip(sf_peer_remote_ip(peer));
    g_autoptr(GPtrArray) uris = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) exports = disk_exports(reserve->host, reserve->id, params->config, ip, params->disks_port, uris);
    SfDiskServerOptions options = {
        .id = snapshot,
        .tls_directory = config->cluster.pages == SF_PAGER_X509 ? config->cluster.pages_directory : NULL,
        .listen_fd = -1,
        .client_uid = reserve->uid,
        .client_gid = reserve->gid,
    };

    sf_disk_server_start_async(sf_host_launcher(reserve->host), &options, (const SfDiskExport *)exports->data,
                               exports->len, on_disk_server, reserve);
}

/* Clones of a domain are domains of this host's libvirtd: it answers, and says whose they are. */
static void on_libvirt(GObject *source, GAsyncResult *result, gpointer data)
{
    Reserve *reserve = data;
    SfVmConfig *config = reserve->params.config;
    SfPeer *peer = sf_peer_request_peer(reserve->request);
    GError *error = NULL;
    char *uri;

    if (!sf_launcher_look_at_libvirt_finish(result, &uri, &reserve->uid, &reserve->gid, &error)) {
        g_prefix_error(&error, "it is a domain, and there is no libvirt here: ");
        reserve_finish(reserve, NULL, error);
        return;
    }
    g_free(config->uri);
    config->uri = uri;
    if (config->disks->len > 0 && peer) {
        serve_disks(reserve, peer);
    } else {
        reserve_finish(reserve, NULL, NULL);
    }
}

/* Everything that is checked before anything is begun. */
static gboolean check_reserve(SfHost *host, SfPeerRequest *request, guint64 *id, SfLendReserve *params, GError **error)
{
    JsonObject *object = sf_peer_request_params(request);
    const char *security = sf_host_config(host)->cluster.pages == SF_PAGER_X509 ? "tls" : "plain";
    SfHostTicket *ticket;

    if (!sf_peer_param_ticket(object, id, error) || !parse_reserve(object, params, error)) {
        return FALSE;
    }
    if (!sf_peer_request_peer(request)) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_LOST, "the connection has ended");
        return FALSE;
    }
    if (strcmp(params->security, security) != 0) {
        return sf_lend_refuse(error, "pages are fetched with %s here, not with %s (pages= in sfvmmd.conf)", security,
                              params->security);
    }
    if (params->uri && !sf_page_uri_is_portable(params->uri, sf_host_config(host)->cluster.pages,
                                                sf_peer_remote_ip(sf_peer_request_peer(request)))) {
        return sf_peer_param_bad(error, "uri", "one of NBD over TCP, encrypted as pages are here, without a query");
    }
    ticket = sf_host_ticket(host, *id, NULL);
    if (ticket && g_strcmp0(ticket->grant->origin, sf_peer_request_from(request)) != 0) {
        return sf_peer_param_bad(error, "ticket", "of one's own");
    }
    if (g_hash_table_contains(reserves(host), id)) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "it is being reserved already");
        return FALSE;
    }
    return TRUE;
}

void sf_lend_reserve(SfHost *host, SfPeerRequest *request)
{
    SfLendReserve params = { 0 };
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket;
    guint64 id;

    if (!check_reserve(host, request, &id, &params, &error)) {
        sf_peer_request_fail(request, error);
    } else if ((ticket = sf_host_ticket(host, id, NULL))) {
        if (extend(host, ticket, (guint)params.count, &error)) {
            reply_granted(request, ticket, MIN(ticket->grant->granted, (guint)params.count));
        } else {
            sf_peer_request_fail(request, error);
        }
    } else if (!sf_lend_fits(host, &params, &error)) {
        sf_peer_request_fail(request, error);
    } else if (params.config->domain_xml) {
        sf_launcher_look_at_libvirt_async(sf_host_launcher(host), on_libvirt,
                                          reserve_begin(host, request, id, &params));
    } else if (params.config->disks->len > 0) {
        serve_disks(reserve_begin(host, request, id, &params), sf_peer_request_peer(request));
    } else {
        ticket = lend(host, sf_peer_request_peer(request), id, &params, &error);
        reserve_end(host, request, ticket, &params, error);
    }
    sf_vm_config_unref(params.config);
}

void sf_lend_reserve_release(SfHost *host, SfPeerRequest *request)
{
    Reserve *reserve = NULL;
    guint64 id;

    if (sf_peer_param_ticket(sf_peer_request_params(request), &id, NULL)) {
        reserve = g_hash_table_lookup(reserves(host), &id);
    }
    if (reserve && strcmp(sf_peer_request_from(reserve->request), sf_peer_request_from(request)) == 0) {
        reserve->released = TRUE;
    }
}
