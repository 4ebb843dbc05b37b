/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The NIC of a domain in a cluster: its tap, which libvirt has opened, becomes the cluster's. Main thread. */
#ifndef SF_DOMAIN_NIC_H
#define SF_DOMAIN_NIC_H

#include "sfvmm/vm/vm_private.h"

/*
 * Of a connected VM: takes the tap with that name out of its QEMU into the cluster, where it reaches nothing yet.
 * alias: of its device. done is called once; the error is the VM's name's to be put before.
 */
typedef void (*SfDomainNicDone)(const GError *error_or_null, gpointer data);
void sf_domain_nic_plug(SfVm *vm, const SfTapProvider *taps, const char *target, const char *alias,
                        SfDomainNicDone done, gpointer data);

#endif
