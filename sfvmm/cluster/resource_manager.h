/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfResourceManager: decides how many clones a VM gets, and on which hosts. One interface; docs/resource-managers.md
 * says how to write another one.
 *
 *     local    this host's capacity; the default
 *     static   slots on a list of hosts
 *     slurm    allocations of the cluster's scheduler
 *
 * It only counts: starting and ending clones is fork/'s work.
 *
 *     request() -> ticket with places     on this host and on others
 *     lend()    -> ticket of another host's VM, all of its places here
 *     reassign()                          a host refused its part: places elsewhere
 *     release()                           all of the ticket's slots are free again
 *
 * Main thread only. A grant is booked until sf_resource_manager_release().
 */
#ifndef SF_RESOURCE_MANAGER_H
#define SF_RESOURCE_MANAGER_H

#include "sfvmm/cluster/quota.h"
#include "sfvmm/cluster/ticket.h"

#define SF_CLUSTER_ERROR (sf_cluster_error_quark())
GQuark sf_cluster_error_quark(void);
typedef enum {
    SF_CLUSTER_ERROR_QUOTA,    /* the VM or the user has all that it may have; asking again helps only after a join */
    SF_CLUSTER_ERROR_CAPACITY, /* the hosts are full now; asking later may help */
    SF_CLUSTER_ERROR_NO_SUCH_HOST,
    SF_CLUSTER_ERROR_EXISTS,    /* a host of this name was added already */
    SF_CLUSTER_ERROR_HOST,      /* it can't be done with this host, or not with this manager */
    SF_CLUSTER_ERROR_SCHEDULER, /* what gives the manager its slots can't be asked, or refuses for good */
} SfClusterError;

/* Upper bounds, each of them counts. */
typedef struct {
    guint clones_per_ticket;
    SfQuotaRules quotas;
    guint clones;   /* of this host */
    guint64 memory; /* bytes that all clones of this host together may be expected to use privately */
    guint waiting;  /* requests that wait */
} SfLimits;

/* How `static` chooses among hosts that have room. */
typedef enum {
    SF_POLICY_SPREAD, /* the host of which the smallest part is used */
    SF_POLICY_PACK,   /* fill this host, then the others by name */
} SfPolicy;

/* A host that a manager knows. */
typedef struct {
    char *name;       /* never "": this host has its own name here */
    char *address;    /* ADDRESS:PORT as it was added, NULL: this host */
    guint slots;      /* clones that it takes; 0: what it says itself when it is up */
    guint64 memory;   /* bytes for clones; 0: likewise */
    guint told_slots; /* what it says itself; 0: has not said yet */
    guint64 told_memory;
    gboolean draining;      /* gets nothing new, by our operator's will */
    gboolean told_draining; /* by its own's */
    gboolean up;            /* can be reached; this host always is */
    guint booked;           /* clones of our tickets there */
    guint64 booked_memory;
} SfClusterHost;

typedef struct SfResourceManager SfResourceManager;

/* The resource manager of this host alone. Each borrows the tables of limits->quotas. */
SfResourceManager *sf_resource_manager_local_new(const SfLimits *limits);

/* This host, called `name`, and those that are added. limits->clones and ->memory are this host's, the quotas all's. */
SfResourceManager *sf_resource_manager_static_new(const SfLimits *limits, const char *name, SfPolicy policy);
void sf_resource_manager_free(SfResourceManager *manager); /* requests that wait fail */
const char *sf_resource_manager_name(SfResourceManager *manager);

/* A ticket that is asked for. */
typedef struct {
    const char *vm;
    guint32 user;    /* uid of who started it */
    guint64 memory;  /* bytes of RAM that it has */
    guint vcpus;     /* that it has */
    guint count;     /* clones */
    gboolean all;    /* exactly count, else from one to count */
    gboolean here;   /* with places on this host only: other hosts can't make clones of it */
    guint32 request; /* of its agent, 0: an operator's */
    guint wait_ms;   /* how long it may wait when it can't be granted at once; 0: not at all */
} SfTicketRequest;

/*
 * The ticket belongs to the caller, who gives its slots back with release() before freeing it. Requests that wait are
 * served in the order that they came; one that waits for room holds back those behind it, one that waits for a quota of
 * its VM or user does not. Errors: SF_CLUSTER_ERROR_QUOTA, _CAPACITY, _SCHEDULER.
 */
void sf_resource_manager_request_async(SfResourceManager *manager, const SfTicketRequest *request,
                                       GAsyncReadyCallback callback, gpointer data);
SfTicket *sf_resource_manager_request_finish(SfResourceManager *manager, GAsyncResult *result, GError **error);
void sf_resource_manager_forget_vm(SfResourceManager *manager, const char *vm); /* it has ended: its requests fail */
guint sf_resource_manager_waiting(SfResourceManager *manager);                  /* requests that wait */

/*
 * The scheduler has taken back, before its release, what it gave for a ticket: its clones have no right to run any
 * more. The ticket is still to be released.
 */
typedef void (*SfRevokedHandler)(guint64 ticket, const char *reason, gpointer owner);
void sf_resource_manager_set_revoked_handler(SfResourceManager *manager, SfRevokedHandler handler, gpointer owner);

/* The ticket is `count` clones smaller: those that `host` was to take. It may have none left. */
void sf_resource_manager_give_back(SfResourceManager *manager, SfTicket *ticket, const char *host, guint count);

/*
 * `count` of the ticket's clones were refused by `host`, before or after it was asked to load them: they get other
 * places, never again with that host. Returns the new places (of SfPlace, "" is this host; counts add up to `count`;
 * caller unrefs), which are in ticket->places already. NULL + error: nobody else has room; then nothing has changed but
 * that the host is not offered again: the caller fails these clones.
 */
GPtrArray *sf_resource_manager_reassign(SfResourceManager *manager, SfTicket *ticket, const char *host, guint count,
                                        GError **error);

/*
 * Places on this host for clones of the VM of another host, `origin`, under that host's ticket id: up to count (with
 * `all`: exactly). The quotas per ticket and VM are the origin's matter; clones and memory of this host count, and a
 * host that drains lends nothing. Release as any ticket.
 */
SfTicket *sf_resource_manager_lend(SfResourceManager *manager, const char *origin, guint64 id, const char *vm,
                                   guint64 vm_memory, guint count, gboolean all, GError **error);

/*
 * Hosts. `local` knows this one only: adding is SF_CLUSTER_ERROR_HOST. Removing one that has clones of ours is refused;
 * drain it first. Draining this host (by its own name or "") works with each manager.
 */
gboolean sf_resource_manager_add_host(SfResourceManager *manager, const char *name, const char *address, guint slots,
                                      guint64 memory, GError **error);
gboolean sf_resource_manager_remove_host(SfResourceManager *manager, const char *name, GError **error);
gboolean sf_resource_manager_drain_host(SfResourceManager *manager, const char *name, gboolean drain, GError **error);
/* It is up, and says so much of itself (draining: it takes nothing new); or it is not up any more. */
void sf_resource_manager_host_up(SfResourceManager *manager, const char *name, guint slots, guint64 memory,
                                 gboolean draining);
void sf_resource_manager_host_down(SfResourceManager *manager, const char *name);
/* SfClusterHost, this host first, then by name; borrowed, valid until hosts change. Caller frees the list. */
GList *sf_resource_manager_hosts(SfResourceManager *manager);
const SfClusterHost *sf_resource_manager_host(SfResourceManager *manager, const char *name); /* NULL: not known */

/* Book a ticket that was granted before a restart of sfvmmd; then, once: those were all. */
void sf_resource_manager_restore(SfResourceManager *manager, const SfTicket *ticket);
void sf_resource_manager_restored(SfResourceManager *manager);
void sf_resource_manager_release(SfResourceManager *manager, const SfTicket *ticket);

/* What a clone of a VM with that much RAM is expected to use privately, bytes. */
guint64 sf_resource_manager_clone_memory(guint64 vm_memory);

#endif
