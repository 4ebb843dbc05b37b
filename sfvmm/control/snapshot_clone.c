/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     STATEDIR/snapshots/NAME/      ram0.raw  disk0.qcow2  descriptor.dtb  snapshot.json
 *                                      |          |
 *                       RUNDIR/nbd/m-ID/          |          a disk server: memory files by NBD, at a unix socket
 *                                      |          |
 *                     RUNDIR/pager/s-ID/          |          sf-pager: fetches what is touched into the page cache
 *                                      |          |
 *                                     clones -- overlays     loaded by MAP; each writes to overlays of its own
 *
 * ID is that of the first ticket. Tickets that come while clones live use the same pager, cache and server; the pager
 * holds the server, the tickets hold the pager, and the last ticket stops it (host.c).
 *
 * A saved snapshot is somebody's file: the worker thread reads it strictly and has qemu-img look at its disks (no
 * backing file, no data file elsewhere) before anything of it is used; QEMU version and configuration are compared
 * before a shell is started. Its memory and disks are opened by sfvmmd and handed on as descriptors.
 *
 *     tickets/HEX/saved.json   name of the snapshot: for the next sfvmmd
 */
#include "sfvmm/control/snapshots_private.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/describe.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/pager_record.h"
#include "sfvmm/control/qemu_version.h"
#include "sfvmm/control/saved_verify.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/fork/remote.h"
#include "sfvmm/store/working_set.h"
#include "sfvmm/vm/disk_server.h"
#include "sfvmm/wire/state_file.h"

#define SAVED_FILE   "saved.json"
#define RECORD_KEY   "sf-record"
#define RECORD_MS    10000u /* after the first clone has begun: what it touched until then is recorded */
#define SERVER_KEY   "sf-memory-server"
#define SHELL_KERNEL "/kernel" /* a configuration needs something to boot; shells boot nothing */
#define ID_FORMAT    "%016" G_GINT64_MODIFIER "x"

/* ---- what clones of a saved one need ---- */

static SfVmConfig *config_of(const SfSaved *saved, GError **error)
{
    g_autoptr(JsonObject) object = json_object_new();
    g_autoptr(GList) members = json_object_get_members(saved->machine);
    JsonArray *disks = json_array_new();

    for (GList *item = members; item; item = item->next) {
        json_object_set_member(object, item->data, json_object_dup_member(saved->machine, item->data));
    }
    json_object_set_string_member(object, "kernel", SHELL_KERNEL);
    for (guint i = 0; i < saved->disks->len; i++) {
        const SfSavedDisk *disk = g_ptr_array_index(saved->disks, i);
        g_autofree char *path = sf_saved_path(saved, &disk->file);
        JsonObject *entry = json_object_new();
        json_object_set_string_member(entry, "path", path);
        json_object_set_string_member(entry, "format", "qcow2");
        json_object_set_boolean_member(entry, "readonly", disk->readonly);
        json_object_set_int_member(entry, "size", (gint64)disk->size);
        json_array_add_object_element(disks, entry);
    }
    json_object_set_array_member(object, "disks", disks);
    return sf_vm_config_from_json(object, error);
}

static GPtrArray *chains_of(const SfSaved *saved)
{
    GPtrArray *chains = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);

    for (guint i = 0; i < saved->disks->len; i++) {
        const SfSavedDisk *disk = g_ptr_array_index(saved->disks, i);
        g_autofree char *path = sf_saved_path(saved, &disk->file);
        SfDiskChain *chain = sf_disk_chain_new(disk->id, disk->size, disk->readonly);
        g_ptr_array_add(chain->layers, sf_disk_layer_new(path, "qcow2", FALSE));
        g_ptr_array_add(chains, chain);
    }
    return chains;
}

static SfPageCache *cache_of(const SfDescriptor *descriptor, guint avoid, GError **error)
{
    SfCachedBlockSpec specs[SF_DESCRIPTOR_MAX_BLOCKS] = { 0 };

    for (guint i = 0; i < descriptor->blocks->len; i++) {
        const SfDescriptorBlock *block = g_ptr_array_index(descriptor->blocks, i);
        specs[i] = (SfCachedBlockSpec){ block->id, block->length, block->present };
    }
    return sf_page_cache_new(specs, descriptor->blocks->len, avoid, error);
}

/* ---- clone ---- */

typedef struct {
    SfSnapshots *snapshots;
    char *name, *owner;
    guint count;
    guint32 request; /* of the owner's agent, or 0 */
    guint32 user;    /* uid */
    SfSaved *saved;
    SfDescriptor *descriptor; /* read by the worker */
    SfVmConfig *config;
    SfFamily *family;     /* joined, or NULL */
    SfHostTicket *ticket; /* NULL: not granted yet */
    guint64 ticket_id;    /* of it: it may be released while we wait */
    SfSnapshot *snapshot;
    GPtrArray *chains;
} CloneCall;

static void clone_call_free(gpointer data)
{
    CloneCall *call = data;

    g_clear_pointer(&call->snapshot, sf_snapshot_unref);
    g_clear_pointer(&call->chains, g_ptr_array_unref);
    g_clear_pointer(&call->config, sf_vm_config_unref);
    g_clear_pointer(&call->descriptor, sf_descriptor_free);
    g_clear_pointer(&call->saved, sf_saved_free);
    if (call->family) {
        sf_host_family_leave(call->snapshots->host, call->family);
    }
    g_free(call->owner);
    g_free(call->name);
    g_free(call);
}

/* Takes error. The ticket goes, and with it all that was started. */
static void clone_fail(GTask *task, GError *error)
{
    CloneCall *call = g_task_get_task_data(task);
    SfHostTicket *ticket = call->ticket_id ? sf_host_ticket(call->snapshots->host, call->ticket_id, NULL) : NULL;

    if (ticket) {
        sf_host_release_ticket(call->snapshots->host, ticket);
    }
    g_prefix_error(&error, "snapshot \"%s\": ", call->name);
    g_task_return_error(task, error);
    g_object_unref(task);
}

/* The ticket still, or the call has failed. */
static gboolean clone_lives(GTask *task)
{
    CloneCall *call = g_task_get_task_data(task);

    if (sf_host_ticket(call->snapshots->host, call->ticket_id, NULL)) {
        return TRUE;
    }
    clone_fail(task, g_error_new(SF_HOST_ERROR, SF_HOST_ERROR_GONE, "its ticket was released"));
    return FALSE;
}

static gboolean save_ticket_record(CloneCall *call, GError **error)
{
    g_autofree char *path = g_build_filename(call->ticket->directory, SAVED_FILE, NULL);
    g_autoptr(JsonObject) object = json_object_new();

    json_object_set_string_member(object, "name", call->name);
    return sf_state_write(path, object, error);
}

static void clone_begin(GTask *task)
{
    CloneCall *call = g_task_get_task_data(task);
    SfHostTicket *ticket = call->ticket;
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(guint));
    g_autoptr(GArray) places = sf_borrow_fork_places(ticket);
    g_autoptr(GError) error = NULL;
    SfForkPlaced placed = { .parent_name = ticket->family->name,
                            .total = ticket->grant->granted,
                            .snapshot = call->snapshot,
                            .frozen_disks = call->chains };
    SfForkOptions options = sf_host_fork_options(call->snapshots->host, ticket);

    for (guint id = 1; id <= ticket->grant->granted; id++) {
        g_array_append_val(ids, id);
    }
    placed.ids = (const guint *)(void *)ids->data;
    if (!save_ticket_record(call, &error)) {
        g_warning("ticket " ID_FORMAT ": %s; a restart of sfvmmd would lose its clones", ticket->grant->id,
                  error->message);
    }
    options.count = ids->len;
    options.places = (const SfForkPlace *)(void *)places->data;
    options.n_places = places->len;
    options.with_agent = call->saved->agent;
    options.clone_request = (guint32)call->saved->request;
    g_clear_handle_id(&ticket->expiry, g_source_remove);
    ticket->grant->used = TRUE;
    sf_host_ticket_save(ticket);
    ticket->fork = sf_fork_new_placed(&options, &placed);
    sf_host_connect_fork(ticket);
    sf_fork_start(ticket->fork);
    g_task_return_pointer(task, g_memdup2(&call->ticket_id, sizeof(guint64)), g_free);
    g_object_unref(task);
}

/* ---- clones on other hosts ---- */

/* There it is called after the ticket, as all that is placed. */
static GBytes *descriptor_for_others(SfDescriptor *descriptor, guint64 ticket, GError **error)
{
    g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, ticket);
    char *own = descriptor->id;
    GBytes *bytes;

    descriptor->id = id;
    bytes = sf_descriptor_encode(descriptor, error);
    descriptor->id = own;
    return bytes;
}

/* bytes: of descriptor_for_others(). */
static SfBorrowSubject subject_of(const SfSaved *saved, const SfDescriptor *descriptor, const SfHostTicket *ticket,
                                  GPtrArray *chains, GBytes *bytes)
{
    return (SfBorrowSubject){
        .vm = ticket->family->name,
        .config = ticket->family->config,
        .qemu_version = descriptor->qemu_version,
        .machine = descriptor->machine,
        .cpu = descriptor->cpu,
        .disks = chains,
        .pager = ticket->pager,
        .uri = saved->memory_uri,
        .descriptor = bytes,
    };
}

static void on_reserved(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    CloneCall *call = g_task_get_task_data(task);
    GError *error = NULL;
    SfHostTicket *ticket = sf_borrow_reserve_finish(call->snapshots->host, result, &error);

    if (ticket && ticket->grant->granted > 0) {
        clone_begin(task);
        return;
    }
    if (ticket) {
        g_set_error_literal(&error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY, sf_borrow_reason(ticket));
    }
    clone_fail(task, error);
}

static void give_working_set(SfHost *host, SfFamily *family, const SfSaved *saved);

/* Its memory is served here; other hosts are asked for the places that the ticket has there. */
static void clone_spread(GTask *task)
{
    CloneCall *call = g_task_get_task_data(task);
    GError *error = NULL;
    g_autoptr(GBytes) bytes = descriptor_for_others(call->descriptor, call->ticket_id, &error);
    SfBorrowSubject subject;

    if (!bytes) {
        clone_fail(task, error);
        return;
    }
    subject = subject_of(call->saved, call->descriptor, call->ticket, call->chains, bytes);
    give_working_set(call->snapshots->host, call->family, call->saved);
    sf_borrow_reserve_async(call->ticket, &subject, on_reserved, task);
}

/* ---- the working set ---- */

static void on_recorded(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(SfSaved) saved = data;
    g_autoptr(GArray) runs = sf_pager_working_set_finish(SF_PAGER(source), result, NULL);
    g_autoptr(GError) error = NULL;

    if (runs && runs->len > 0 && !sf_working_set_write(saved, runs, &error)) {
        g_message("snapshot \"%s\": what its clones need first is not recorded: %s", saved->directory, error->message);
    }
}

void sf_snapshots_note_working_set(SfSnapshots *snapshots, const char *name, GBytes *packed)
{
    g_autoptr(SfSaved) saved = sf_store_read(snapshots->store, name, NULL);
    g_autoptr(GArray) known = saved ? sf_working_set_read(saved) : NULL;
    g_autoptr(GArray) runs = sf_working_set_unpack(packed, NULL);
    g_autoptr(GError) error = NULL;

    if (saved && !known && !sf_working_set_write(saved, runs, &error)) {
        g_message("snapshot \"%s\": what its clones need first is not recorded: %s", name, error->message);
    }
}

/* Clones on other hosts get what is recorded with their order. */
static void give_working_set(SfHost *host, SfFamily *family, const SfSaved *saved)
{
    g_autoptr(GArray) runs = family->working_set ? NULL : sf_working_set_read(saved);

    if (runs) {
        g_autoptr(GBytes) packed = sf_working_set_pack(runs);
        sf_host_family_set_working_set(host, family, packed);
    }
}

typedef struct {
    SfPager *pager;
    SfSaved *saved;
    guint timer;
} Record;

static gboolean on_record_time(gpointer data)
{
    Record *record = data;

    record->timer = 0;
    sf_pager_working_set_async(record->pager, on_recorded, g_steal_pointer(&record->saved));
    return G_SOURCE_REMOVE;
}

/* With the pager: nothing is recorded of clones that ended earlier. */
static void record_free(gpointer data)
{
    Record *record = data;

    g_clear_handle_id(&record->timer, g_source_remove);
    sf_saved_free(record->saved);
    g_free(record);
}

/* What the first clone touched is fetched first for the next ones; the first one is watched. */
static void use_working_set(SfPager *pager, const SfSaved *saved)
{
    g_autoptr(GArray) runs = sf_working_set_read(saved);
    g_autoptr(GError) error = NULL;
    Record *record;

    if (runs && !sf_pager_set_working_set(pager, runs, &error)) {
        g_message("snapshot \"%s\": its working set is not used: %s", saved->directory, error->message);
    }
    if (!runs) {
        record = g_new0(Record, 1);
        record->pager = pager;
        record->saved = sf_saved_read(saved->directory, saved->memory_uri, NULL);
        record->timer = record->saved ? g_timeout_add(RECORD_MS, on_record_time, record) : 0;
        g_object_set_data_full(G_OBJECT(pager), RECORD_KEY, record, record_free);
    }
}

/* ---- its memory ---- */

/* Memory that somebody else serves: over TLS with this host's page certificates, or plain if the URI says so. */
static SfPageSource other_source(const SfDaemonConfig *config, const char *uri)
{
    gboolean tls = g_str_has_prefix(uri, "nbds");

    return (SfPageSource){ .uri = uri,
                           .security = tls ? SF_PAGER_X509 : SF_PAGER_PLAIN,
                           .keys = tls ? config->cluster.pages_directory : NULL };
}

/* The memory is served, by the disk server or by somebody else (server NULL): the pager connects. */
static gboolean start_pager(CloneCall *call, SfDiskServer *server, const char *id, GError **error)
{
    const SfDaemonConfig *config = sf_host_config(call->snapshots->host);
    g_autofree char *uri = server ? sf_disk_server_uri(server, "{block}") : g_strdup(call->saved->memory_uri);
    g_autoptr(SfPageCache) cache = cache_of(call->descriptor, config->cluster.avoid, error);
    g_autoptr(SfRamBase) base = sf_ram_base_new();
    SfPagerOptions options = sf_daemon_config_pager(config, id);
    SfPageSource source = other_source(config, uri);
    SfPager *pager;

    if (!cache) {
        return FALSE;
    }
    if (source.security == SF_PAGER_X509 && !source.keys) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_FAILED,
                    "its memory is at %s, and this host has no certificates (pki-directory in sfvmmd.conf)", uri);
        return FALSE;
    }
    call->snapshot =
        sf_snapshot_new_cached(id, base, cache, call->descriptor->device_state, call->saved->device_length, error);
    pager = call->snapshot ? sf_pager_start(&options, error) : NULL;
    if (!pager) {
        return FALSE;
    }
    if (!sf_pager_add_source(pager, &source, error) || !sf_pager_set_snapshot(pager, call->snapshot, error)) {
        sf_pager_stop(pager);
        g_object_unref(pager);
        return FALSE;
    }
    if (server) {
        g_object_set_data_full(G_OBJECT(pager), SERVER_KEY, sf_disk_server_ref(server),
                               (GDestroyNotify)sf_disk_server_unref);
    }
    use_working_set(pager, call->saved);
    sf_saved_verify_when_complete(call->snapshots->host, pager, call->saved);
    call->ticket->pager = pager;
    sf_pager_record_save(call->snapshots->host, pager);
    return TRUE;
}

static void on_memory_served(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    CloneCall *call = g_task_get_task_data(task);
    GError *error = NULL;
    g_autoptr(SfDiskServer) server = sf_disk_server_start_finish(result, &error);
    g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, call->ticket_id);

    if (!clone_lives(task)) {
        g_clear_error(&error);
        return;
    }
    if (!server || !start_pager(call, server, id, &error)) {
        clone_fail(task, error);
        return;
    }
    clone_spread(task);
}

static void serve_memory(GTask *task)
{
    CloneCall *call = g_task_get_task_data(task);
    g_autofree char *id = g_strdup_printf("m-" ID_FORMAT, call->ticket_id);
    g_autoptr(GPtrArray) chains = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);
    const SfDaemonConfig *config = sf_host_config(call->snapshots->host);
    SfDiskServerOptions options = {
        .id = id, .listen_fd = -1, .client_uid = config->pager_uid, .client_gid = config->pager_gid
    };
    SfDiskExport exports[SF_DESCRIPTOR_MAX_BLOCKS] = { 0 };

    for (guint i = 0; i < call->saved->blocks->len; i++) {
        const SfSavedBlock *block = g_ptr_array_index(call->saved->blocks, i);
        g_autofree char *path = sf_saved_path(call->saved, &block->file);
        SfDiskChain *chain = sf_disk_chain_new(block->id, block->file.size, TRUE);
        g_ptr_array_add(chain->layers, sf_disk_layer_new(path, "raw", FALSE));
        g_ptr_array_add(chains, chain);
        exports[i].name = block->id;
        exports[i].chain = chain;
    }
    sf_disk_server_start_async(sf_host_launcher(call->snapshots->host), &options, exports, call->saved->blocks->len,
                               on_memory_served, task);
}

/* Memory of this snapshot that clones of an earlier ticket have from here. */
static gboolean share_pager(CloneCall *call)
{
    g_autoptr(GList) tickets = sf_host_tickets(call->snapshots->host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *other = item->data;
        SfSnapshot *snapshot = other->pager ? sf_pager_snapshot(other->pager) : NULL;
        if (other != call->ticket && g_strcmp0(other->saved, call->name) == 0 && snapshot && !snapshot->lost &&
            other->fork && sf_fork_alive(other->fork) > 0) {
            call->ticket->pager = g_object_ref(other->pager);
            call->snapshot = sf_snapshot_ref(snapshot);
            return TRUE;
        }
    }
    return FALSE;
}

/* ---- the order of it all ---- */

static gboolean can_run(CloneCall *call, GError **error)
{
    const SfDescriptor *descriptor = call->descriptor;
    const char *version = sf_host_qemu_version(call->snapshots->host, error);
    g_autofree char *hash = version ? sf_vm_config_hash(call->config, version) : NULL;

    if (!version) {
        return FALSE;
    }
    if (strcmp(descriptor->qemu_version, version) != 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_REFUSED,
                    "it was saved with QEMU %s, this host has %s, which can't load it", descriptor->qemu_version,
                    version);
        return FALSE;
    }
    if (strcmp(descriptor->config_hash, hash) != 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "its machine and its descriptor don't fit together (configuration hash)");
        return FALSE;
    }
    return TRUE;
}

static SfFamily *take_family(CloneCall *call, GError **error)
{
    SfHost *host = call->snapshots->host;
    g_autofree char *name = sf_snapshots_family_name(call->name);
    SfFamily *family = sf_host_family(host, name);
    g_autofree char *hash = family ? sf_vm_config_hash(family->config, call->descriptor->qemu_version) : NULL;

    if (family && (family->root || strcmp(hash, call->descriptor->config_hash) != 0)) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_EXISTS, "clones of another snapshot or VM \"%s\" live", name);
        return NULL;
    }
    return family ? family : sf_host_family_new(host, name, call->user, call->config, 0);
}

/* Takes grant. */
static gboolean take_ticket(CloneCall *call, SfTicket *grant, GError **error)
{
    call->ticket = sf_host_add_ticket(call->snapshots->host, grant, call->family);
    call->ticket->saved = g_strdup(call->name);
    call->ticket_id = grant->id;
    if (g_mkdir(call->ticket->directory, 0700) < 0) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_FAILED, "can't make \"%s\": %s", call->ticket->directory,
                    g_strerror(errno));
        return FALSE;
    }
    return TRUE;
}

static void on_granted(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    CloneCall *call = g_task_get_task_data(task);
    GError *error = NULL;
    SfTicket *grant = sf_resource_manager_request_finish(sf_host_manager(call->snapshots->host), result, &error);

    if (!grant || !take_ticket(call, grant, &error)) {
        clone_fail(task, error);
        return;
    }
    call->chains = chains_of(call->saved);
    if (share_pager(call)) {
        clone_spread(task);
    } else if (!call->saved->memory_uri) {
        serve_memory(task);
    } else {
        g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, call->ticket_id);
        if (start_pager(call, NULL, id, &error)) {
            clone_spread(task);
        } else {
            clone_fail(task, error);
        }
    }
}

static void on_prepared(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    CloneCall *call = g_task_get_task_data(task);
    SfHost *host = call->snapshots->host;
    SfTicketRequest request;
    GError *error = NULL;

    if (!g_task_propagate_boolean(G_TASK(result), &error) || !can_run(call, &error)) {
        clone_fail(task, error);
        return;
    }
    call->family = take_family(call, &error);
    if (!call->family) {
        clone_fail(task, error);
        return;
    }
    sf_host_family_join(call->family);
    request = (SfTicketRequest){
        .vm = call->owner ? call->owner : call->family->name,
        .user = call->family->user,
        .memory = call->config->memory,
        .vcpus = call->config->vcpus,
        .count = call->count,
        .here = sf_host_peers(host) == NULL,
        .request = call->request,
    };
    sf_resource_manager_request_async(sf_host_manager(host), &request, on_granted, task);
}

static gboolean check_disk(CloneCall *call, const SfSavedDisk *disk, GError **error)
{
    const SfLauncherOptions *launcher = sf_launcher_options(sf_host_launcher(call->snapshots->host));
    g_autofree char *path = sf_saved_path(call->saved, &disk->file);
    g_autofree char *format = NULL;
    guint64 size;

    if (!sf_disk_probe(launcher->qemu_img, path, "qcow2", &format, &size, error)) {
        return FALSE;
    }
    if (size != disk->size) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA,
                    "\"%s\" is a disk of %" G_GUINT64_FORMAT " bytes, not %" G_GUINT64_FORMAT, path, size, disk->size);
        return FALSE;
    }
    return TRUE;
}

static gboolean prepare(CloneCall *call, GError **error)
{
    call->descriptor = sf_saved_descriptor(call->saved, error);
    call->config = call->descriptor ? config_of(call->saved, error) : NULL;
    for (guint i = 0; call->config && i < call->saved->disks->len; i++) {
        if (!check_disk(call, g_ptr_array_index(call->saved->disks, i), error)) {
            return FALSE;
        }
    }
    return call->config != NULL;
}

static void prepare_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    GError *error = NULL;

    if (prepare(data, &error)) {
        g_task_return_boolean(task, TRUE);
    } else {
        g_task_return_error(task, error);
    }
}

void sf_snapshots_clone_async(SfSnapshots *snapshots, const char *name, guint count, guint32 user, const char *owner,
                              guint32 request, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    CloneCall *call = g_new0(CloneCall, 1);
    g_autoptr(GTask) work = NULL;
    GError *error = NULL;

    call->snapshots = snapshots;
    call->name = g_strdup(name);
    call->user = user;
    call->owner = g_strdup(owner);
    call->count = count;
    call->request = request;
    g_task_set_task_data(task, call, clone_call_free);
    call->saved = sf_store_read(snapshots->store, name, &error);
    if (!call->saved) {
        clone_fail(task, error);
        return;
    }
    work = g_task_new(NULL, NULL, on_prepared, task);
    g_task_set_task_data(work, call, NULL);
    g_task_run_in_thread(work, prepare_thread);
}

/* By its id: it may have been released since. */
SfHostTicket *sf_snapshots_clone_finish(SfSnapshots *snapshots, GAsyncResult *result, GError **error)
{
    g_autofree guint64 *id = g_task_propagate_pointer(G_TASK(result), error);

    return id ? sf_host_ticket(snapshots->host, *id, error) : NULL;
}

/* ---- after a restart ---- */

/* The server of the memory files, which the pager reads from. */
static void keep_memory_server(SfHost *host, SfPager *pager)
{
    g_autofree char *id = g_strconcat("m-", sf_pager_snapshot_id(pager) + strlen("s-"), NULL);
    SfDiskServer *server =
        g_object_get_data(G_OBJECT(pager), SERVER_KEY) ? NULL : sf_disk_server_find(sf_host_launcher(host), id);

    if (server) {
        g_object_set_data_full(G_OBJECT(pager), SERVER_KEY, server, (GDestroyNotify)sf_disk_server_unref);
    }
}

void sf_snapshots_recover(SfHostTicket *ticket)
{
    g_autofree char *path = g_build_filename(ticket->directory, SAVED_FILE, NULL);
    g_autoptr(JsonObject) object = g_file_test(path, G_FILE_TEST_EXISTS) ? sf_state_read(path, NULL) : NULL;
    const char *name = object ? json_object_get_string_member_with_default(object, "name", NULL) : NULL;

    ticket->saved = g_strdup(name);
    if (name && ticket->pager) {
        keep_memory_server(ticket->host, ticket->pager);
    }
}

static gboolean restore_placed(SfHostTicket *ticket, GError **error)
{
    SfSnapshots *snapshots = sf_snapshots_of(ticket->host);
    g_autoptr(SfSaved) saved = sf_store_read(snapshots->store, ticket->saved, error);
    g_autoptr(SfDescriptor) descriptor = saved ? sf_saved_descriptor(saved, error) : NULL;
    g_autoptr(GPtrArray) chains = NULL;
    g_autoptr(SfRamBase) base = NULL;
    g_autoptr(SfSnapshot) snapshot = NULL;
    g_autoptr(GBytes) bytes = NULL;

    if (!descriptor) {
        return FALSE;
    }
    if (!ticket->pager || !sf_pager_cache(ticket->pager)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "its memory on this host is gone");
        return FALSE;
    }
    base = sf_ram_base_new();
    snapshot = sf_snapshot_new_cached(sf_pager_snapshot_id(ticket->pager), base, sf_pager_cache(ticket->pager),
                                      descriptor->device_state, saved->device_length, error);
    if (!snapshot) {
        return FALSE;
    }
    chains = chains_of(saved);
    sf_pager_keep_snapshot(ticket->pager, snapshot);
    sf_saved_verify_when_complete(ticket->host, ticket->pager, saved);
    sf_fork_set_placed(ticket->fork, snapshot, chains);
    bytes = descriptor_for_others(descriptor, ticket->grant->id, error);
    if (bytes) {
        SfBorrowSubject subject = subject_of(saved, descriptor, ticket, chains, bytes);
        sf_borrow_recover_subject(ticket, &subject);
    }
    return bytes != NULL;
}

void sf_snapshots_recover_fork(SfHostTicket *ticket)
{
    g_autoptr(GError) error = NULL;

    if (!sf_fork_is_done(ticket->fork) && !restore_placed(ticket, &error)) {
        g_warning("ticket " ID_FORMAT ": %s", ticket->grant->id, error->message);
    }
}
