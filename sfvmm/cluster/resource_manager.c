/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The books of each host, and the list of hosts: what all kinds share. A grant is the smallest of what was asked, of
 * what each quota leaves (admit()), and of what the hosts have room for (place()); what leaves too little is named in
 * the error. request.c has the requests, and calls these.
 */
#include "sfvmm/cluster/resource_manager.h"

#include <string.h>

#include "sfvmm/cluster/resource_manager_kind.h"

G_DEFINE_QUARK(sf - cluster - error - quark, sf_cluster_error)

/*
 * A clone costs its QEMU process and the pages that it writes. 36 MiB is what an idle TCG clone was measured at
 * (docs/figures.md); a sixteenth of the RAM is what a clone at work is expected to write. It is an estimate for
 * admission, not a limit.
 */
#define CLONE_PROCESS_BYTES (36ull << 20)
#define CLONE_WRITTEN_SHARE 16u
#define HOSTS_MAX           1024u

guint64 sf_resource_manager_clone_memory(guint64 vm_memory)
{
    return CLONE_PROCESS_BYTES + vm_memory / CLONE_WRITTEN_SHARE;
}

const char *sf_resource_manager_name(SfResourceManager *manager)
{
    return manager->kind->name;
}

/* ---- hosts ---- */

static void host_free(SfClusterHost *host)
{
    g_free(host->name);
    g_free(host->address);
    g_free(host);
}

static SfClusterHost *own_host(SfResourceManager *manager)
{
    return g_ptr_array_index(manager->hosts, 0);
}

static SfClusterHost *find_host(SfResourceManager *manager, const char *name)
{
    if (!*name) {
        return own_host(manager);
    }
    for (guint i = 0; i < manager->hosts->len; i++) {
        SfClusterHost *host = g_ptr_array_index(manager->hosts, i);
        if (strcmp(host->name, name) == 0) {
            return host;
        }
    }
    return NULL;
}

static SfClusterHost *find_host_or_fail(SfResourceManager *manager, const char *name, GError **error)
{
    SfClusterHost *host = find_host(manager, name);

    if (!host) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_NO_SUCH_HOST, "host \"%s\": not known", name);
    }
    return host;
}

const char *sf_resource_manager_place_name(SfResourceManager *manager, const SfClusterHost *host)
{
    return host == own_host(manager) ? "" : host->name;
}

guint sf_cluster_host_slots(const SfClusterHost *host)
{
    return host->slots ? host->slots : host->told_slots;
}

guint64 sf_cluster_host_memory(const SfClusterHost *host)
{
    return host->memory ? host->memory : host->told_memory;
}

static guint host_slots_left(const SfClusterHost *host)
{
    guint slots = sf_cluster_host_slots(host);

    return slots > host->booked ? slots - host->booked : 0;
}

static guint64 host_memory_left(const SfClusterHost *host)
{
    guint64 memory = sf_cluster_host_memory(host);

    return memory > host->booked_memory ? memory - host->booked_memory : 0;
}

static gboolean has_refused(SfResourceManager *manager, const SfClusterHost *host, const SfTicket *ticket)
{
    return g_ptr_array_find_with_equal_func(ticket->refused_by, sf_resource_manager_place_name(manager, host),
                                            g_str_equal, NULL);
}

gboolean sf_resource_manager_has_room(SfResourceManager *manager, const SfClusterHost *host, const SfTicket *ticket)
{
    return host->up && !host->draining && !host->told_draining && host_slots_left(host) > 0 &&
           host_memory_left(host) >= ticket->reserved && !has_refused(manager, host, ticket);
}

GList *sf_resource_manager_hosts(SfResourceManager *manager)
{
    GList *list = NULL;

    for (guint i = manager->hosts->len; i > 0; i--) {
        list = g_list_prepend(list, g_ptr_array_index(manager->hosts, i - 1));
    }
    return list;
}

const SfClusterHost *sf_resource_manager_host(SfResourceManager *manager, const char *name)
{
    return find_host(manager, name);
}

static int compare_hosts(gconstpointer a, gconstpointer b)
{
    const SfClusterHost *first = *(SfClusterHost *const *)a, *second = *(SfClusterHost *const *)b;

    /* This host, without address, stands first. */
    return (first->address != NULL) - (second->address != NULL) ?: strcmp(first->name, second->name);
}

gboolean sf_resource_manager_add_host(SfResourceManager *manager, const char *name, const char *address, guint slots,
                                      guint64 memory, GError **error)
{
    SfClusterHost *host = find_host(manager, name);

    if (!manager->kind->many_hosts) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_HOST,
                    "host \"%s\": the resource manager \"%s\" has no other hosts; set resource-manager=static in group "
                    "[cluster] of sfvmmd.conf",
                    name, manager->kind->name);
        return FALSE;
    }
    if (host) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_EXISTS, "host \"%s\": %s", name,
                    host == own_host(manager) ? "that is this host"
                                              : "it was added already; remove it first to change it");
        return FALSE;
    }
    if (manager->hosts->len >= HOSTS_MAX) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_HOST,
                    "host \"%s\": there are %u hosts, more can't be added", name, HOSTS_MAX);
        return FALSE;
    }
    host = g_new0(SfClusterHost, 1);
    host->name = g_strdup(name);
    host->address = g_strdup(address);
    host->slots = slots;
    host->memory = memory;
    g_ptr_array_add(manager->hosts, host);
    g_ptr_array_sort(manager->hosts, compare_hosts);
    return TRUE;
}

gboolean sf_resource_manager_remove_host(SfResourceManager *manager, const char *name, GError **error)
{
    SfClusterHost *host = find_host_or_fail(manager, name, error);

    if (!host) {
        return FALSE;
    }
    if (host == own_host(manager)) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_HOST, "host \"%s\": that is this host, which stays",
                    name);
        return FALSE;
    }
    if (host->booked > 0) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_HOST,
                    "host \"%s\": %u clones have places there; drain it and join or kill their tickets first", name,
                    host->booked);
        return FALSE;
    }
    g_ptr_array_remove(manager->hosts, host);
    return TRUE;
}

gboolean sf_resource_manager_drain_host(SfResourceManager *manager, const char *name, gboolean drain, GError **error)
{
    SfClusterHost *host = find_host_or_fail(manager, name, error);

    if (host) {
        host->draining = drain;
        sf_requests_wake(manager);
    }
    return host != NULL;
}

void sf_resource_manager_host_up(SfResourceManager *manager, const char *name, guint slots, guint64 memory,
                                 gboolean draining)
{
    SfClusterHost *host = find_host(manager, name);

    if (host && host != own_host(manager)) {
        host->up = TRUE;
        host->told_slots = slots;
        host->told_memory = memory;
        host->told_draining = draining;
        sf_requests_wake(manager);
    }
}

void sf_resource_manager_host_down(SfResourceManager *manager, const char *name)
{
    SfClusterHost *host = find_host(manager, name);

    if (host && host != own_host(manager)) {
        host->up = FALSE;
    }
}

/* ---- books ---- */

static void book(SfClusterHost *host, guint clones, guint64 each)
{
    host->booked += clones;
    host->booked_memory += each * clones;
}

static void unbook(SfClusterHost *host, guint clones, guint64 each)
{
    host->booked -= MIN(host->booked, clones);
    host->booked_memory -= MIN(host->booked_memory, each * clones);
}

void sf_resource_manager_restore(SfResourceManager *manager, const SfTicket *ticket)
{
    for (guint i = 0; i < ticket->places->len; i++) {
        const SfPlace *place = g_ptr_array_index(ticket->places, i);
        SfClusterHost *host = find_host(manager, place->host);
        if (host) {
            book(host, place->count, ticket->reserved);
        }
    }
    if (!ticket->origin) {
        sf_quotas_book(manager->quotas, ticket->vm, ticket->user, ticket->granted, ticket->reserved, 1);
    }
    if (ticket->allocation && !ticket->revoked && manager->kind->restore) {
        manager->kind->restore(manager, ticket);
    }
}

void sf_resource_manager_restored(SfResourceManager *manager)
{
    if (manager->kind->restored) {
        manager->kind->restored(manager);
    }
}

void sf_resource_manager_release(SfResourceManager *manager, const SfTicket *ticket)
{
    for (guint i = 0; i < ticket->places->len; i++) {
        const SfPlace *place = g_ptr_array_index(ticket->places, i);
        SfClusterHost *host = find_host(manager, place->host);
        if (host) {
            unbook(host, place->count, ticket->reserved);
        }
    }
    if (!ticket->origin) {
        sf_quotas_unbook(manager->quotas, ticket->vm, ticket->user, ticket->granted, ticket->reserved, 1);
    }
    if (ticket->allocation && !ticket->revoked && manager->kind->release) {
        manager->kind->release(manager, ticket);
    }
    sf_requests_wake(manager);
}

void sf_resource_manager_set_revoked_handler(SfResourceManager *manager, SfRevokedHandler handler, gpointer owner)
{
    manager->revoked = handler;
    manager->revoked_owner = owner;
}

void sf_resource_manager_revoke(SfResourceManager *manager, guint64 ticket, const char *reason)
{
    if (manager->revoked) {
        manager->revoked(ticket, reason, manager->revoked_owner);
    }
}

/* ---- grants ---- */

/* Chooses and books up to `count` places, one by one; returns how many there were. They go into ticket->places. */
static guint take_places(SfResourceManager *manager, SfTicket *ticket, guint count)
{
    guint taken = 0;

    while (taken < count) {
        SfClusterHost *host = manager->kind->choose(manager, ticket);
        if (!host) {
            break;
        }
        book(host, 1, ticket->reserved);
        sf_ticket_add_place(ticket, sf_resource_manager_place_name(manager, host), 1);
        taken++;
    }
    return taken;
}

/* Why the hosts had room for `placed` clones only. */
static void set_capacity_error(SfResourceManager *manager, const SfTicket *ticket, guint count, guint placed,
                               GError **error)
{
    const char *who = manager->hosts->len > 1 ? "the hosts have" : "this host has";
    gboolean slots = FALSE, draining = TRUE, refused = FALSE;

    for (guint i = 0; i < manager->hosts->len; i++) {
        const SfClusterHost *host = g_ptr_array_index(manager->hosts, i);
        gboolean usable = host->up && !host->draining && !host->told_draining;
        draining = draining && !usable;
        if (usable && host_slots_left(host) > 0) {
            gboolean no = has_refused(manager, host, ticket);
            refused = refused || no;
            slots = slots || !no;
        }
    }
    if (draining) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                    "VM \"%s\": %u clones asked, but every host drains or can't be reached; see `sfctl host list`",
                    ticket->vm, count);
    } else if (refused && !slots) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                    "VM \"%s\": %u clones asked, but every host that has room has refused it", ticket->vm, count);
    } else if (slots) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                    "VM \"%s\": %u clones asked, but %s memory for %u more clones of it (%" G_GUINT64_FORMAT
                    " MiB each are set aside; limit memory in sfvmmd.conf)",
                    ticket->vm, count, who, placed, ticket->reserved >> 20);
    } else {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                    "VM \"%s\": %u clones asked, but %s slots for %u more (clones in sfvmmd.conf)", ticket->vm, count,
                    who, placed);
    }
}

static void set_quota_error(SfResourceManager *manager, const SfTicketRequest *request, const char *why, guint room,
                            GError **error)
{
    if (why) {
        g_set_error(
            error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_QUOTA,
            "VM \"%s\": %u clones asked, but %s, and only %u clones are left of that; join or kill a ticket first",
            request->vm, request->count, why, room);
    } else {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_QUOTA,
                    "VM \"%s\": %u clones asked, but a ticket may have %u (clones-per-ticket in sfvmmd.conf)",
                    request->vm, request->count, manager->limits.clones_per_ticket);
    }
}

SfTicket *sf_resource_manager_admit(SfResourceManager *manager, const SfTicketRequest *request, GError **error)
{
    const guint64 each = sf_resource_manager_clone_memory(request->memory);
    const guint most = MIN(request->count, manager->limits.clones_per_ticket);
    g_autofree char *why = NULL;
    guint room = sf_quotas_room(manager->quotas, request->vm, request->user, each, most, &why);
    SfTicket *ticket;

    if (room == 0 || (request->all && room < request->count)) {
        set_quota_error(manager, request, why, room, error);
        return NULL;
    }
    ticket = sf_ticket_new(sf_ticket_random_id(), request->vm, room, request->request);
    ticket->user = request->user;
    ticket->reserved = each;
    for (guint i = 1; request->here && i < manager->hosts->len; i++) {
        const SfClusterHost *other = g_ptr_array_index(manager->hosts, i);
        g_ptr_array_add(ticket->refused_by, g_strdup(other->name));
    }
    sf_quotas_book(manager->quotas, ticket->vm, ticket->user, ticket->granted, each, 1);
    return ticket;
}

void sf_resource_manager_dismiss(SfResourceManager *manager, SfTicket *ticket)
{
    sf_quotas_unbook(manager->quotas, ticket->vm, ticket->user, ticket->granted, ticket->reserved, 1);
    sf_ticket_free(ticket);
}

gboolean sf_resource_manager_place(SfResourceManager *manager, SfTicket *ticket, const SfTicketRequest *request,
                                   GError **error)
{
    guint placed = take_places(manager, ticket, ticket->granted);

    if (placed == 0 || (request->all && placed < request->count)) {
        set_capacity_error(manager, ticket, request->count, placed, error);
        for (guint i = 0; i < ticket->places->len; i++) {
            const SfPlace *place = g_ptr_array_index(ticket->places, i);
            unbook(find_host(manager, place->host), place->count, ticket->reserved);
        }
        g_ptr_array_set_size(ticket->places, 0);
        return FALSE;
    }
    sf_quotas_unbook(manager->quotas, ticket->vm, ticket->user, ticket->granted - placed, ticket->reserved, 0);
    ticket->granted = placed;
    return TRUE;
}

void sf_resource_manager_give_back(SfResourceManager *manager, SfTicket *ticket, const char *name, guint count)
{
    SfClusterHost *host = find_host(manager, name);

    g_return_if_fail(sf_ticket_count_at(ticket, name) >= count);
    if (host) {
        unbook(host, count, ticket->reserved);
    }
    sf_ticket_add_place(ticket, name, -(gint)count);
    ticket->granted -= count;
    if (!ticket->origin) {
        sf_quotas_unbook(manager->quotas, ticket->vm, ticket->user, count, ticket->reserved, 0);
    }
    sf_requests_wake(manager);
}

GPtrArray *sf_resource_manager_reassign(SfResourceManager *manager, SfTicket *ticket, const char *name, guint count,
                                        GError **error)
{
    SfClusterHost *host = find_host(manager, name);
    const char *from = host ? sf_resource_manager_place_name(manager, host) : name;
    g_autoptr(SfTicket) part = sf_ticket_new(ticket->id, ticket->vm, count, ticket->request);
    g_autoptr(GPtrArray) places = NULL;
    guint taken;

    g_return_val_if_fail(count > 0 && sf_ticket_count_at(ticket, from) >= count, NULL);
    if (!g_ptr_array_find_with_equal_func(ticket->refused_by, from, g_str_equal, NULL)) {
        g_ptr_array_add(ticket->refused_by, g_strdup(from));
    }
    part->reserved = ticket->reserved;
    for (guint i = 0; i < ticket->refused_by->len; i++) {
        g_ptr_array_add(part->refused_by, g_strdup(g_ptr_array_index(ticket->refused_by, i)));
    }
    for (guint i = 0; i < ticket->allotted->len; i++) {
        const SfPlace *slots = g_ptr_array_index(ticket->allotted, i);
        guint used = sf_ticket_count_at(ticket, slots->host);
        sf_places_add(part->allotted, slots->host, (gint)(slots->count - MIN(slots->count, used)));
    }
    taken = take_places(manager, part, count);
    if (taken < count) {
        set_capacity_error(manager, part, count, taken, error);
        for (guint i = 0; i < part->places->len; i++) {
            const SfPlace *place = g_ptr_array_index(part->places, i);
            unbook(find_host(manager, place->host), place->count, part->reserved);
        }
        return NULL;
    }
    if (host) {
        unbook(host, count, ticket->reserved);
    }
    sf_ticket_add_place(ticket, from, -(gint)count);
    for (guint i = 0; i < part->places->len; i++) {
        const SfPlace *place = g_ptr_array_index(part->places, i);
        sf_ticket_add_place(ticket, place->host, (gint)place->count);
    }
    places = g_ptr_array_ref(part->places);
    return g_steal_pointer(&places);
}

SfTicket *sf_resource_manager_lend(SfResourceManager *manager, const char *origin, guint64 id, const char *vm,
                                   guint64 vm_memory, guint count, gboolean all, GError **error)
{
    SfClusterHost *host = own_host(manager);
    guint64 each = sf_resource_manager_clone_memory(vm_memory);
    guint room = (guint)MIN(host_slots_left(host), host_memory_left(host) / each);
    guint granted = host->draining ? 0 : MIN(MIN(room, count), manager->limits.clones_per_ticket);
    SfTicket *ticket;

    if (granted == 0 || (all && granted < count)) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY, "%u clones asked, but it %s %u", count,
                    host->draining ? "drains and takes" : "has room for", granted);
        return NULL;
    }
    ticket = sf_ticket_new(id, vm, granted, 0);
    ticket->reserved = each;
    ticket->origin = g_strdup(origin);
    sf_ticket_add_place(ticket, "", (gint)granted);
    book(host, granted, each);
    return ticket;
}

/* ---- life ---- */

SfResourceManager *sf_resource_manager_new(const SfResourceManagerKind *kind, const SfLimits *limits, const char *name)
{
    SfResourceManager *manager = g_new0(SfResourceManager, 1);
    SfClusterHost *host = g_new0(SfClusterHost, 1);

    manager->kind = kind;
    manager->limits = *limits;
    manager->quotas = sf_quotas_new(&limits->quotas);
    manager->allocating = g_ptr_array_new();
    manager->hosts = g_ptr_array_new_with_free_func((GDestroyNotify)host_free);
    host->name = g_strdup(name);
    host->slots = limits->clones;
    host->memory = limits->memory;
    host->up = TRUE;
    g_ptr_array_add(manager->hosts, host);
    return manager;
}

void sf_resource_manager_free(SfResourceManager *manager)
{
    if (!manager) {
        return;
    }
    sf_requests_end(manager);
    if (manager->kind->free) {
        manager->kind->free(manager);
    }
    g_ptr_array_unref(manager->allocating);
    g_ptr_array_unref(manager->hosts);
    sf_quotas_free(manager->quotas);
    g_free(manager);
}
