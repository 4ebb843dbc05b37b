/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfNetworks: the cluster networks of this host, one for each family whose VMs are members of one (network "cluster"),
 * and the addresses in them. docs/network.md has the model.
 *
 *     of a family    the network (sfvmm/net/network.h), from before its first VM is started until its last has gone.
 *                    Families of one VM of another host share it
 *     of a ticket    a range of addresses, one for each clone, from its fork until the ticket goes
 *     of a VM        a place on the bridge, from when its guest has its own address until it ends
 *
 * Main thread only.
 */
#ifndef SF_NETWORKS_H
#define SF_NETWORKS_H

#include "sfvmm/control/host.h"
#include "sfvmm/net/network.h"

SfNetworks *sf_networks_new(SfHost *host, SfLauncher *launcher);
void sf_networks_free(SfNetworks *networks);

/* Before the first VM of a family. Nothing happens for VMs in no cluster. */
gboolean sf_networks_open(SfNetworks *networks, const char *family, const SfVmConfig *config, GError **error);
void sf_networks_close(SfNetworks *networks, const char *family);
SfNetwork *sf_networks_network(SfNetworks *networks, const SfFamily *family); /* NULL: it has none */
gboolean sf_networks_is_lent(const SfFamily *family); /* its first VM, and its gateway, are on another host */

/* Addresses for the clones of a ticket that is to fork: parent + 1 and on, or the next that are free. */
gboolean sf_networks_reserve(SfNetworks *networks, SfHostTicket *ticket, SfHostVm *parent, GError **error);

/* For SfForkOptions; NULL: its clones are in no cluster. */
const SfForkNetwork *sf_networks_of_fork(SfNetworks *networks, SfHostTicket *ticket);

guint32 sf_networks_address(SfHostVm *hvm);                     /* IPv4, host byte order; 0: none */
guint32 sf_networks_parent_address(const SfHostTicket *ticket); /* of the VM that it forks */

/* A VM whose guest has its address: it may talk. It ends: sf_networks_dismiss(). */
gboolean sf_networks_admit(SfNetworks *networks, SfHostVm *hvm, GError **error);
void sf_networks_dismiss(SfNetworks *networks, SfHostVm *hvm);

/* Tells a VM's agent its addresses, and those of the clones of its newest fork. */
void sf_networks_tell(SfNetworks *networks, SfHostVm *hvm);
/* It has answered. */
void sf_networks_told(SfHostVm *hvm, guint32 request);

/* After a restart: by any VM of each family, in this order; then those that talked before are admitted again; settle.
 */
void sf_networks_adopt(SfNetworks *networks, const char *family, const SfVmConfig *config, SfVm *vm);
void sf_networks_settle(SfNetworks *networks);

#endif
