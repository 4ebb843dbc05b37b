/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * "place": the clones that are to be here begin, when their descriptor has come and has been checked.
 *
 *     place --> SfLendPlacing --> descriptor (place_descriptor.h) --> checked --> SfFork, answer
 *               "place" again meanwhile: waits along     all who asked are gone by then: nothing is done, sync tells
 *
 * The descriptor and the chains of the disks are kept in the ticket's directory: after a restart the fork goes on with
 * them.
 */
#include "sfvmm/control/lend_private.h"

#include "sfvmm/cluster/peer_params.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/control/pager_record.h"
#include "sfvmm/control/place_descriptor.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/descriptor/descriptor.h"
#include "sfvmm/fork/remote.h"
#include "sfvmm/process/clock.h"
#include "sfvmm/vm/disk_server.h"
#include "sfvmm/wire/state_file.h"

#define IDENTIFY_MAX   86400 /* seconds */
#define AVOID_TEXT_MAX 64u
#define DISKS_FILE     "disks.json"

/* A "place" that has been checked. */
typedef struct {
    SfSnapshot *snapshot;
    SfForkOptions options; /* ticket and so on; texts and objects are the ticket's */
    guint total;
    GArray *ids; /* of guint */
    gboolean has_working_set;
} Place;

/* A "place" whose descriptor is on its way. */
struct SfLendPlacing {
    SfHost *host;
    guint64 ticket;
    GPtrArray *requests; /* of SfPeerRequest: the first has the params that count */
    gint64 ordered;      /* when that one came, ns of CLOCK_MONOTONIC */
};

static gboolean parse_ids(JsonArray *array, guint total, GArray *ids, GError **error)
{
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *node = json_array_get_element(array, i);
        gint64 value = json_node_get_value_type(node) == G_TYPE_INT64 ? json_node_get_int(node) : 0;
        guint id = (guint)CLAMP(value, 0, SF_GP_MAX_CLONES);
        if (id < 1 || id > total || (ids->len > 0 && id <= g_array_index(ids, guint, ids->len - 1))) {
            return sf_peer_param_bad(error, "ids", "ascending numbers of clones");
        }
        g_array_append_val(ids, id);
    }
    return ids->len > 0 || sf_peer_param_bad(error, "ids", "at least one");
}

static SfDescriptor *decode(GBytes *bytes, GError **error)
{
    SfDescriptor *descriptor = sf_descriptor_decode(bytes, error);

    if (!descriptor) {
        (*error)->domain = SF_PEER_ERROR;
        (*error)->code = SF_PEER_ERROR_REFUSED;
    }
    return descriptor;
}

/* The memory of the snapshot as it is here: nothing of it has arrived. */
static SfSnapshot *cached_snapshot(const SfDescriptor *descriptor, SfPageCache *cache_or_null, guint avoid,
                                   GError **error)
{
    SfCachedBlockSpec specs[SF_QC_MAX_BLOCKS];
    g_autoptr(SfPageCache) cache = cache_or_null ? sf_page_cache_ref(cache_or_null) : NULL;
    g_autoptr(SfRamBase) base = sf_ram_base_new();
    guint n = descriptor->blocks->len;

    if (n == 0 || n > SF_QC_MAX_BLOCKS) {
        sf_lend_refuse(error, "the descriptor has %u memory blocks; 1 to %u are possible", n, SF_QC_MAX_BLOCKS);
        return NULL;
    }
    for (guint i = 0; i < n; i++) {
        const SfDescriptorBlock *block = g_ptr_array_index(descriptor->blocks, i);
        specs[i] = (SfCachedBlockSpec){ block->id, block->length, block->present };
    }
    if (!cache) {
        cache = sf_page_cache_new(specs, n, avoid, error);
    } else {
        cache->avoid = avoid;
    }
    return cache ? sf_snapshot_new_cached(descriptor->id, base, cache, descriptor->device_state,
                                          g_bytes_get_size(descriptor->device_state), error)
                 : NULL;
}

static gboolean save_descriptor(SfHostTicket *ticket, GBytes *bytes, GError **error)
{
    g_autofree char *path = g_build_filename(ticket->directory, SF_HOST_FILE_DESCRIPTOR, NULL);
    gsize length;
    const char *data = g_bytes_get_data(bytes, &length);

    return g_file_set_contents_full(path, data, (gssize)length, G_FILE_SET_CONTENTS_CONSISTENT, 0600, error);
}

static gboolean save_disks(SfHostTicket *ticket, GPtrArray *chains, GError **error)
{
    g_autofree char *path = g_build_filename(ticket->directory, DISKS_FILE, NULL);
    g_autoptr(JsonObject) object = json_object_new();
    JsonArray *array = json_array_new();

    for (guint i = 0; i < chains->len; i++) {
        json_array_add_object_element(array, sf_disk_chain_to_json(g_ptr_array_index(chains, i)));
    }
    json_object_set_array_member(object, "disks", array);
    return sf_state_write(path, object, error);
}

static void reply_reports(SfPeerRequest *request, SfHostTicket *ticket)
{
    JsonObject *result = json_object_new();

    json_object_set_array_member(result, "clones", sf_lend_reports(ticket));
    sf_peer_request_reply(request, result);
}

/* The disks as the server of this host has them, to put overlays over. */
static GPtrArray *served_disks(const SfLend *lend)
{
    GPtrArray *chains = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);

    for (guint i = 0; i < lend->ticket->family->config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(lend->ticket->family->config->disks, i);
        SfDiskChain *chain = sf_disk_chain_new(disk->id, disk->size, disk->readonly);
        g_ptr_array_add(chain->layers, sf_disk_server_layer(lend->disks, disk->id));
        g_ptr_array_add(chains, chain);
    }
    return chains;
}

/* Everything is there: the clones get their shells. Who asked is answered. */
static void place_begin(SfLend *lend, const Place *place, const SfLendPlacing *placing)
{
    SfHostTicket *ticket = lend->ticket;
    g_autoptr(GPtrArray) disks = served_disks(lend);
    SfForkOptions options = sf_host_fork_options(ticket->host, ticket);
    SfForkPlaced placed = {
        .parent_name = ticket->grant->vm,
        .total = place->total,
        .ids = (const guint *)place->ids->data,
        .snapshot = place->snapshot,
        .frozen_disks = disks,
        .ordered = placing->ordered,
    };
    g_autoptr(GError) error = NULL;

    if (!save_disks(ticket, disks, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, error->message);
    }
    options.count = place->ids->len;
    options.with_agent = place->options.with_agent;
    options.clone_request = place->options.clone_request;
    options.identify_seconds = place->options.identify_seconds;
    ticket->grant->used = TRUE;
    sf_host_ticket_save(ticket);
    ticket->fork = sf_fork_new_placed(&options, &placed);
    sf_host_connect_fork(ticket);
    for (guint i = 0; i < placing->requests->len; i++) {
        reply_reports(g_ptr_array_index(placing->requests, i), ticket);
    }
    if (!place->has_working_set) {
        sf_lend_record_later(lend);
    }
    sf_fork_start(ticket->fork);
    sf_pager_record_save(ticket->host, ticket->pager);
}

/* Absent from hosts of an earlier version: as it was. */
static gboolean avoid_param(JsonObject *params, guint *avoid, GError **error)
{
    const char *text;

    if (!json_object_has_member(params, "avoid")) {
        return TRUE;
    }
    return sf_peer_param_text(params, "avoid", AVOID_TEXT_MAX, &text, error) &&
           (sf_avoid_parse(text, avoid, NULL) || sf_peer_param_bad(error, "avoid", "all, none, free or read"));
}

/* All that is checked before anything is touched. */
static gboolean prepare_place(SfHostTicket *ticket, JsonObject *params, GBytes *bytes, Place *place, GError **error)
{
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(guint));
    g_autoptr(SfDescriptor) descriptor = NULL;
    g_autoptr(SfSnapshot) snapshot = NULL;
    gint64 total, clone_request, identify;
    gboolean with_agent, complete;
    const char *text;
    JsonArray *array;

    if (!sf_peer_param_int(params, "total", 1, SF_GP_MAX_CLONES, &total, error) ||
        !sf_peer_param_array(params, "ids", ticket->grant->granted, &array, error) ||
        !parse_ids(array, (guint)total, ids, error) || !sf_peer_param_bool(params, "with_agent", &with_agent, error) ||
        !sf_peer_param_bool(params, "complete", &complete, error) ||
        !sf_peer_param_int(params, "clone_request", 0, G_MAXUINT32, &clone_request, error) ||
        !sf_peer_param_int(params, "identify_seconds", 1, IDENTIFY_MAX, &identify, error) ||
        !avoid_param(params, &ticket->grant->avoid, error)) {
        return FALSE;
    }
    descriptor = decode(bytes, error);
    if (!descriptor || !sf_lend_fits_descriptor(ticket, descriptor, error) ||
        !sf_networks_take_place(ticket, params, error)) {
        return FALSE;
    }
    snapshot = cached_snapshot(descriptor, NULL, ticket->grant->avoid, error);
    if (!snapshot || !sf_pager_set_snapshot(ticket->pager, snapshot, error) || !save_descriptor(ticket, bytes, error)) {
        return FALSE;
    }
    if (json_object_has_member(params, "working_set")) {
        if (!sf_peer_param_text(params, "working_set", SF_WORKING_SET_TEXT_MAX, &text, error)) {
            return FALSE;
        }
        g_autoptr(GBytes) packed = sf_working_set_from_json(params, "working_set");
        g_autoptr(GArray) runs = packed ? sf_working_set_unpack(packed, snapshot) : NULL;
        if (!runs) {
            return sf_peer_param_bad(error, "working_set", "runs of pages");
        }
        if (!sf_pager_set_working_set(ticket->pager, runs, error)) {
            return FALSE;
        }
        place->has_working_set = TRUE;
    }
    if (complete && !sf_pager_complete(ticket->pager, error)) {
        return FALSE;
    }
    place->snapshot = g_steal_pointer(&snapshot);
    place->options.with_agent = with_agent;
    place->options.clone_request = (guint32)clone_request;
    place->options.identify_seconds = (guint)identify;
    place->total = (guint)total;
    place->ids = g_steal_pointer(&ids);
    return TRUE;
}

static void placing_free(SfLendPlacing *placing)
{
    g_object_unref(placing->host);
    g_ptr_array_unref(placing->requests);
    g_free(placing);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfLendPlacing, placing_free)

/* Where it is still wanted. Nobody would hear of clones that are placed for a connection that has ended: sync, which
 * comes first on the next one, has told that there are none. */
static SfLend *placing_lend(SfLendPlacing *placing, GError **error)
{
    SfHostTicket *ticket = sf_host_ticket(placing->host, placing->ticket, NULL);
    SfLend *lend = ticket && ticket->lend && ticket->lend->placing == placing ? ticket->lend : NULL;
    gboolean heard = FALSE;

    if (!lend) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_GONE, "it was released meanwhile");
        return NULL;
    }
    lend->placing = NULL;
    for (guint i = 0; i < placing->requests->len; i++) {
        heard = heard || sf_peer_request_peer(g_ptr_array_index(placing->requests, i));
    }
    if (!heard) {
        g_set_error(error, SF_PEER_ERROR, SF_PEER_ERROR_LOST, "the connection has ended");
    }
    return heard ? lend : NULL;
}

static void on_descriptor(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(SfLendPlacing) placing = data;
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) bytes = sf_place_descriptor_get_finish(result, &error);
    SfLend *lend = placing_lend(placing, error ? NULL : &error);
    JsonObject *params = sf_peer_request_params(g_ptr_array_index(placing->requests, 0));
    Place place = { 0 };

    if (lend && bytes && prepare_place(lend->ticket, params, bytes, &place, &error)) {
        place_begin(lend, &place, placing);
    } else {
        for (guint i = 0; i < placing->requests->len; i++) {
            sf_peer_request_fail(g_ptr_array_index(placing->requests, i), error);
        }
    }
    g_clear_pointer(&place.snapshot, sf_snapshot_unref);
    g_clear_pointer(&place.ids, g_array_unref);
}

static void begin_placing(SfHostTicket *ticket, SfPeerRequest *request)
{
    SfLendPlacing *placing = g_new0(SfLendPlacing, 1);

    placing->host = g_object_ref(ticket->host);
    placing->ticket = ticket->grant->id;
    placing->requests = g_ptr_array_new();
    placing->ordered = sf_clock_ns();
    g_ptr_array_add(placing->requests, request);
    ticket->lend->placing = placing;
    sf_place_descriptor_get_async(ticket, sf_peer_request_params(request), on_descriptor, placing);
}

void sf_lend_place(SfHost *host, SfPeerRequest *request)
{
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_lend_ticket(host, sf_peer_request_from(request), sf_peer_request_params(request), &error);

    if (!ticket) {
        sf_peer_request_fail(request, error);
    } else if (ticket->fork) {
        reply_reports(request, ticket); /* its answer was lost */
    } else if (!ticket->lend || !ticket->pager || (ticket->family->config->disks->len > 0 && !ticket->lend->disks)) {
        g_set_error(&error, SF_PEER_ERROR, SF_PEER_ERROR_FAILED, "it can't be placed now");
        sf_peer_request_fail(request, error);
    } else if (ticket->lend->placing) {
        g_ptr_array_add(ticket->lend->placing->requests, request);
    } else {
        begin_placing(ticket, request);
    }
}

/* ---- after a restart ---- */

static GPtrArray *restore_disks(SfHostTicket *ticket, GError **error)
{
    g_autofree char *path = g_build_filename(ticket->directory, DISKS_FILE, NULL);
    g_autoptr(GPtrArray) chains = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);
    g_autoptr(JsonObject) object = sf_state_read(path, error);
    JsonArray *array = object ? json_object_get_array_member(object, "disks") : NULL;

    if (!array) {
        return NULL;
    }
    for (guint i = 0; i < json_array_get_length(array); i++) {
        SfDiskChain *chain = sf_disk_chain_from_json(json_array_get_object_element(array, i), error);
        if (!chain) {
            return NULL;
        }
        g_ptr_array_add(chains, chain);
    }
    return g_steal_pointer(&chains);
}

static gboolean restore_placed(SfHostTicket *ticket, GError **error)
{
    g_autofree char *path = g_build_filename(ticket->directory, SF_HOST_FILE_DESCRIPTOR, NULL);
    g_autoptr(GPtrArray) disks = restore_disks(ticket, error);
    g_autoptr(SfDescriptor) descriptor = NULL;
    g_autoptr(SfSnapshot) snapshot = NULL;
    g_autoptr(GBytes) bytes = NULL;
    char *data;
    gsize length;

    if (!disks || !g_file_get_contents(path, &data, &length, error)) {
        return FALSE;
    }
    bytes = g_bytes_new_take(data, length);
    descriptor = sf_descriptor_decode(bytes, error);
    if (!descriptor) {
        return FALSE;
    }
    if (!ticket->pager || !sf_pager_cache(ticket->pager)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "its memory on this host is gone");
        return FALSE;
    }
    snapshot = cached_snapshot(descriptor, sf_pager_cache(ticket->pager), ticket->grant->avoid, error);
    if (!snapshot) {
        return FALSE;
    }
    sf_pager_keep_snapshot(ticket->pager, snapshot);
    sf_fork_set_placed(ticket->fork, snapshot, disks);
    return TRUE;
}

void sf_lend_recover_fork(SfHostTicket *ticket)
{
    g_autoptr(GError) error = NULL;

    if (!sf_fork_is_done(ticket->fork) && !restore_placed(ticket, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s", ticket->grant->id, error->message);
    }
}
