/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The objects VM and TICKET of the control protocol (docs/control-protocol.md). The caller owns each result. */
#ifndef SF_DESCRIBE_H
#define SF_DESCRIBE_H

#include "sfvmm/control/host.h"

JsonObject *sf_describe_vm(SfHostVm *vm);
JsonObject *sf_describe_ticket(SfHostTicket *ticket);
JsonObject *sf_describe_host(SfHost *host);  /* daemon.status */

/* vm.usage; asks each sf-pager for its counters first. */
void sf_describe_usage_async(SfHost *host, GAsyncReadyCallback callback, gpointer data);
JsonObject *sf_describe_usage_finish(GAsyncResult *result);

/* The descriptor of a snapshot that a VM or a ticket has at the moment. */
GBytes *sf_describe_snapshot(SfHostVm *vm, SfSnapshot *snapshot, GError **error);

/* Of a VM that was forked; name: what the descriptor calls it. frozen_disks: of SfDiskChain. */
GBytes *sf_describe_snapshot_of(SfVm *vm, const char *name, SfSnapshot *snapshot, GPtrArray *frozen_disks,
                                GError **error);

#endif
