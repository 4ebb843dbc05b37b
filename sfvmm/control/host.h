/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfHost: what this host knows: its VMs, the families they belong to, tickets and their forks; and the operations on
 * them that both ways in (api.c for operators, guest_api.c for agents) share.
 *
 *     family  one VM that was started and all its descendants: one configuration, one memory base, one shell pool
 *     vm      a parent or a clone that runs; shells are the pool's
 *     ticket  a grant, and, once used, its fork. Its clones may be on other hosts (borrow.h); a ticket with an `origin`
 *             is the part of another host's ticket whose clones are here (lend.h)
 *
 * RUNDIR/vm/NAME/            each QEMU (vm/)
 *       /families/NAME.json  configuration and pool target
 *       /tickets/HEX/        ticket.json, fork.json, snapshot/, result-N, descriptor.dtb
 *
 * Main thread only. Signals
 *   "event" (const char *name, JsonObject *data)   for subscribers; names are those of docs/control-protocol.md
 *   "guest-message" (SfHostVm *, const struct sf_gp_header *, GBytes *)   of any VM of the host
 *   "vm-exited" (SfHostVm *)   before the VM is forgotten
 */
#ifndef SF_HOST_H
#define SF_HOST_H

#include "sfvmm/cluster/peer.h"
#include "sfvmm/cluster/resource_manager.h"
#include "sfvmm/control/config.h"
#include "sfvmm/fork/fork.h"
#include "sfvmm/vm/launcher.h"

#define SF_TYPE_HOST (sf_host_get_type())
G_DECLARE_FINAL_TYPE(SfHost, sf_host, SF, HOST, GObject)

#define SF_HOST_ERROR (sf_host_error_quark())
GQuark sf_host_error_quark(void);
typedef enum {
    SF_HOST_ERROR_NO_SUCH_VM,
    SF_HOST_ERROR_NO_SUCH_TICKET,
    SF_HOST_ERROR_NO_SUCH_SNAPSHOT,
    SF_HOST_ERROR_EXISTS,
    SF_HOST_ERROR_BUSY,
    SF_HOST_ERROR_BAD_PARAMS,
    SF_HOST_ERROR_FAILED,
    SF_HOST_ERROR_TIMEOUT,
    SF_HOST_ERROR_QUOTA,
    SF_HOST_ERROR_GONE,
} SfHostError;

typedef struct {
    char *name;
    SfVmConfig *config;
    SfShellPool *pool;
    guint pool_target;
    guint32 user;        /* uid of who started the VM: quotas count for it */
    GBytes *working_set; /* what the first clone on another host touched first, for the next; NULL: not known yet */
    SfVm *root;         /* the VM that was started; NULL when it has ended */
    JsonObject *network; /* networks_hosts.h's record of its network between hosts; NULL: it is on this host alone */
    guint members;      /* VMs, forks in progress and unreleased tickets that need it */
    guint settle_timer; /* GSource id, 0: none */
    gboolean settling;
} SfFamily;

typedef struct {
    SfHost *host; /* not owned */
    SfVm *vm;
    SfFamily *family;
    guint64 ticket; /* of a clone; 0: it was started */
    guint id;       /* of a clone */
    char *parent;   /* name of the VM that a clone was forked from, or NULL */
    gboolean hears_network; /* its agent has answered NETWORK */
} SfHostVm;

typedef struct SfNetworks SfNetworks;
typedef struct SfBorrow SfBorrow;
typedef struct SfLend SfLend;

typedef struct {
    SfHost *host; /* not owned */
    SfTicket *grant;
    SfFamily *family;
    char *directory;
    SfFork *fork;    /* NULL until it is used */
    gboolean booked; /* its slots are taken in the resource manager: until its last clone has ended */
    guint expiry;    /* GSource id that will release it, 0: none */
    SfPager *pager;  /* fills the memory of its clones here, which came from another host; shared with the tickets of
                      * their forks. NULL: it is all here */
    SfBorrow *borrow; /* its clones on other hosts; NULL: it has none */
    SfLend *lend;     /* lent to another host's VM; NULL: the VM is ours */
    char *saved;      /* name of the saved snapshot that its clones are made from (snapshots.h), or NULL */
    guint32 first_address; /* of clone 1 in its cluster, IPv4; 0: none, or not forked yet */
    guint32 parent_address; /* lent: of the VM that it forks, in the cluster */
    gint64 away;      /* lent: since when its origin has not been there, us; 0: it is */
} SfHostTicket;

/* Takes launcher and manager. */
SfHost *sf_host_new(const SfDaemonConfig *config, SfLauncher *launcher, SfResourceManager *manager);
/* The other hosts, once and before recovery; not owned. Without it there are none. */
void sf_host_set_peers(SfHost *host, SfPeers *peers);
SfPeers *sf_host_peers(SfHost *host); /* NULL: none */
SfPeer *sf_host_peer(SfHost *host, const char *name); /* NULL: there is none of that name */
SfResourceManager *sf_host_manager(SfHost *host);
const SfDaemonConfig *sf_host_config(SfHost *host);
SfLauncher *sf_host_launcher(SfHost *host);
SfNetworks *sf_host_networks(SfHost *host);
gint64 sf_host_uptime_ms(SfHost *host);

/* Take over what an earlier sfvmmd left in RUNDIR. Call before anything else is asked of it. */
void sf_host_recover_async(SfHost *host, GAsyncReadyCallback callback, gpointer data);
void sf_host_recover_finish(SfHost *host, GAsyncResult *result);

/* Start a VM. name NULL: the next free vmN. user: uid of who asks for it. */
void sf_host_run_async(SfHost *host, const char *name, guint32 user, SfVmConfig *config, guint pool_target,
                       GAsyncReadyCallback callback, gpointer data);
/*
 * Take a running libvirt domain as a VM; one that is taken already is found. name NULL: made from the domain's. uri
 * NULL: the default. Finishes by sf_host_run_finish().
 */
void sf_host_adopt_async(SfHost *host, const char *name, guint32 user, const char *uri, const char *domain,
                         guint pool_target, GAsyncReadyCallback callback, gpointer data);
SfHostVm *sf_host_run_finish(SfHost *host, GAsyncResult *result, GError **error);

SfHostVm *sf_host_vm(SfHost *host, const char *name, GError **error);
SfHostVm *sf_host_vm_of(SfHost *host, SfVm *vm); /* NULL: not a VM of ours any more */
GList *sf_host_vms(SfHost *host);                /* of SfHostVm, sorted by name; free the list */
GList *sf_host_families(SfHost *host);           /* of SfFamily, sorted by name; free the list */
void sf_host_set_pool(SfHost *host, SfFamily *family, guint target);

SfHostTicket *sf_host_ticket(SfHost *host, guint64 id, GError **error);
gboolean sf_host_ticket_is_of(const SfHostTicket *ticket, const char *vm); /* of that VM of this host */
GList *sf_host_tickets(SfHost *host); /* of SfHostTicket, oldest first; free the list */
/* An unused ticket that was granted to this request of this VM's agent, or NULL. */
SfHostTicket *sf_host_ticket_of_request(SfHost *host, const char *vm, guint32 request);
/*
 * A ticket for a VM. Finishes when it has been granted, and every host that shall have clones of it has been asked and
 * has answered, or its time is over; then the ticket may have fewer clones than the first grant.
 */
typedef struct {
    guint count;     /* clones */
    gboolean all;    /* exactly count, else up to count */
    guint32 request; /* of its agent, 0: an operator's */
    guint queue_ms;  /* how long it may wait to be granted; 0: not at all */
} SfHostTicketOrder;
void sf_host_request_ticket_async(SfHost *host, SfHostVm *vm, const SfHostTicketOrder *order,
                                  GAsyncReadyCallback callback, gpointer data);
SfHostTicket *sf_host_request_ticket_finish(SfHost *host, GAsyncResult *result, GError **error);

/* Use a ticket. The fork is the ticket's; its signals tell the rest. */
SfFork *sf_host_fork(SfHost *host, SfHostTicket *ticket, guint32 clone_request, GError **error);

/* Kill what lives of it, forget it and its results. */
void sf_host_release_ticket(SfHost *host, SfHostTicket *ticket);
void sf_host_release_ticket_later(SfHostTicket *ticket); /* from the main loop: others may still look at it now */

/* The fork and clone that a VM is, or NULL. */
SfClone *sf_host_clone_of(SfHost *host, SfHostVm *vm);

void sf_host_event(SfHost *host, const char *name, JsonObject *data); /* takes data */

#endif
