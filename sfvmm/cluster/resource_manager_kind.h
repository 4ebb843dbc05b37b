/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a kind of resource manager implements. Quotas, books, requests that wait and the list of hosts are common
 * (quota.c, resource_manager.c, request.c). docs/resource-managers.md explains it by the example of slurm.c. Private to
 * cluster/.
 *
 * A kind that counts alone (local.c, static.c) is its choice of a host. One that has a scheduler behind it gets slots
 * from that first, and chooses among them:
 *
 *     allocate() ---> sf_allocation_done()     slots for one ticket. The main loop goes on meanwhile
 *     choose()                                 the slot of the next clone: one of these
 *     release()                                they are free again
 *     sf_resource_manager_revoke()             the scheduler took them back
 *     restore(), restored()                    after a restart of sfvmmd: tickets that have slots; these were all
 */
#ifndef SF_RESOURCE_MANAGER_KIND_H
#define SF_RESOURCE_MANAGER_KIND_H

#include "sfvmm/cluster/resource_manager.h"

/* Slots that are asked of a scheduler. Belongs to who asks, until sf_allocation_done(). */
typedef struct {
    SfTicket *ticket; /* id, vm, reserved and granted (so many slots) are set; allocation and allotted are to be */
    guint least;      /* so many will do */
    guint vcpus;      /* of each clone */
    gboolean here;    /* on this host only */
    guint wait_ms;    /* how long it may wait for its turn */
    gpointer state;   /* the kind's */
} SfAllocation;

/* It has been tried: error NULL: the ticket's allocation and allotted are set. Takes error. Not before allocate() has
 * returned. */
void sf_allocation_done(SfAllocation *allocation, GError *error);

typedef struct {
    const char *name;
    gboolean many_hosts; /* hosts may be added */
    /* The host that gets the next clone, among those where sf_resource_manager_has_room(); NULL: all are full. */
    SfClusterHost *(*choose)(SfResourceManager *manager, const SfTicket *ticket);

    /* The others are NULL in a kind without a scheduler. */
    void (*allocate)(SfResourceManager *manager, SfAllocation *allocation);
    /* Nobody waits for it any more. It ends by sf_allocation_done() all the same, later. */
    void (*abandon)(SfResourceManager *manager, SfAllocation *allocation);
    void (*release)(SfResourceManager *manager, const SfTicket *ticket);
    void (*restore)(SfResourceManager *manager, const SfTicket *ticket);
    void (*restored)(SfResourceManager *manager);
    void (*free)(SfResourceManager *manager); /* its state */
} SfResourceManagerKind;

struct SfResourceManager {
    const SfResourceManagerKind *kind;
    gpointer state; /* of the kind */
    SfLimits limits;
    SfPolicy policy;
    GPtrArray *hosts;      /* of SfClusterHost, owned; the first is this one, the others are sorted by name */
    SfQuotas *quotas;      /* of our own VMs */
    GQueue waiting;        /* of requests (request.c), in the order that they came */
    GPtrArray *allocating; /* requests that the scheduler has; not owned */
    guint wake;            /* GSource id, 0: none */
    SfRevokedHandler revoked;
    gpointer revoked_owner;
};

SfResourceManager *sf_resource_manager_new(const SfResourceManagerKind *kind, const SfLimits *limits, const char *name);

/* One more clone of the ticket fits on the host, and the host has not refused the ticket. */
gboolean sf_resource_manager_has_room(SfResourceManager *manager, const SfClusterHost *host, const SfTicket *ticket);
guint sf_cluster_host_slots(const SfClusterHost *host);    /* as configured, or else as it says */
guint64 sf_cluster_host_memory(const SfClusterHost *host); /* bytes, likewise */

/* As tickets write a host's name: "" for this one. */
const char *sf_resource_manager_place_name(SfResourceManager *manager, const SfClusterHost *host);

/* For kinds with a scheduler: what it gave for that ticket is gone. */
void sf_resource_manager_revoke(SfResourceManager *manager, guint64 ticket, const char *reason);

/* ---- between resource_manager.c and request.c ---- */

/* What the quotas allow of a request: a ticket without places, booked. `granted` is what it may have. */
SfTicket *sf_resource_manager_admit(SfResourceManager *manager, const SfTicketRequest *request, GError **error);
void sf_resource_manager_dismiss(SfResourceManager *manager, SfTicket *ticket); /* that has no places; frees it */
/* Gives an admitted ticket its places: at least one, with `all` as many as the request has. On error it is unchanged.
 */
gboolean sf_resource_manager_place(SfResourceManager *manager, SfTicket *ticket, const SfTicketRequest *request,
                                   GError **error);

void sf_requests_wake(SfResourceManager *manager); /* something may be free now: look at the requests that wait */
void sf_requests_end(SfResourceManager *manager);  /* they all fail */

#endif
