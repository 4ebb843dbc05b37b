/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfFaultHandler: who fills pages of a lazily mapped clone. vm/ calls it, pager/ is it; neither knows the other.
 */
#ifndef SF_FAULT_HANDLER_H
#define SF_FAULT_HANDLER_H

#include <glib.h>
#include <sys/types.h>
#include "sfvmm/wire/qemu_channel.h"

/* Where a RAM block lies in a QEMU process. All in bytes, multiples of the page size. */
typedef struct {
    char id[SF_QC_NAME_LEN];
    guint64 address, length;
} SfMappedBlock;

typedef struct SfFaultHandler {
    /* A GObject. Whoever keeps the handler holds a reference to it; the handler lives as long. */
    gpointer owner;
    const char *id; /* on record with each VM, so that a later sfvmmd knows who has to be there for it */
    /*
     * From now on faults of this userfaultfd are answered; it is borrowed (duplicated by the handler). vm: a name for
     * messages and for detach(), unique among those attached; pid: of its QEMU, for statistics. Returns when the
     * order is on its way: faults that come earlier wait in the kernel.
     */
    gboolean (*attach)(gpointer owner, const char *vm, pid_t pid, int uffd, const SfMappedBlock *blocks, guint n,
                       GError **error);
    void (*detach)(gpointer owner, const char *vm); /* harmless if it is not attached */
} SfFaultHandler;

#endif
