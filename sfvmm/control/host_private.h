/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What host.c, host_family.c, host_vm.c, host_ticket.c, recovery.c, and those of borrow.h and lend.h share. */
#ifndef SF_HOST_PRIVATE_H
#define SF_HOST_PRIVATE_H

#include "sfvmm/control/host.h"

#define SF_HOST_FILE_DESCRIPTOR "descriptor.dtb" /* of a ticket's directory: that of the fork's snapshot */

#define SF_HOST_NAME_MAX 40u /* of a VM that was started; leaves room for -TICKET4-ID within a host name */

struct _SfHost {
    GObject parent_instance;
    const SfDaemonConfig *config; /* not owned */
    SfLauncher *launcher;
    SfResourceManager *manager;
    SfPeers *peers; /* not owned */
    SfNetworks *networks;
    SfForkRemote remote;  /* the way to clones on other hosts */
    gint64 started;       /* CLOCK_MONOTONIC, us */
    GHashTable *vms;      /* name -> SfHostVm */
    GHashTable *starting; /* set of names of VMs that are being started */
    GHashTable *families; /* name -> SfFamily */
    GHashTable *tickets;  /* guint64 * -> SfHostTicket */
};

char *sf_host_path(SfHost *host, const char *folder, const char *name); /* RUNDIR/folder/name; caller frees */

/* A table that a part of control/ keeps of this host: made when it is first asked for, ended with the host. Borrowed.
 */
GHashTable *sf_host_table(SfHost *host, const char *key, GHashFunc hash, GEqualFunc equal, GDestroyNotify free_key,
                          GDestroyNotify free_value);

/* With an empty pool: it begins to fill when its target is set. */
SfFamily *sf_host_family_new(SfHost *host, const char *name, guint32 user, SfVmConfig *config, guint pool_target);
SfFamily *sf_host_family(SfHost *host, const char *name);
void sf_host_family_set_working_set(SfHost *host, SfFamily *family, GBytes *runs); /* and puts it on record */
void sf_host_family_save(SfHost *host, SfFamily *family);                          /* puts it on record */
void sf_host_family_join(SfFamily *family);
void sf_host_family_leave(SfHost *host, SfFamily *family);
void sf_host_family_settle_later(SfHost *host, SfFamily *family); /* when nobody needs its snapshots any more */

void sf_host_family_free(gpointer family);

SfHostVm *sf_host_add_vm(SfHost *host, SfVm *vm, SfFamily *family);
void sf_host_add_clone(SfHost *host, SfHostTicket *ticket, SfClone *clone);
void sf_host_vm_free(gpointer hvm);

SfHostTicket *sf_host_add_ticket(SfHost *host, SfTicket *grant,
                                 SfFamily *family); /* takes grant; its slots are booked */
void sf_host_ticket_save(SfHostTicket *ticket);
void sf_host_ticket_free(gpointer ticket);
void sf_host_ticket_unbook(SfHostTicket *ticket);
void sf_host_connect_fork(SfHostTicket *ticket);
void sf_host_take_pager(SfHost *host, SfHostTicket *ticket); /* of the ticket that its VM is a clone of */
SfForkOptions sf_host_fork_options(SfHost *host, SfHostTicket *ticket);

#endif
