/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is on record of an sf-pager that fills memory here, so that the clones go on when it and sfvmmd have both died.
 *
 *     RUNDIR/caches/SNAPSHOT/  sources.json           where pages come from
 *                              snapshot.json, ...     the snapshot (memory/recover.c): its page cache is found again in
 *                                                     the clones' QEMUs, which map it
 *
 * Main thread only.
 */
#ifndef SF_PAGER_RECORD_H
#define SF_PAGER_RECORD_H

#include "sfvmm/control/host.h"

/* Its sources as they are now; and soon, when there is nothing more urgent, its snapshot, if it has one. */
void sf_pager_record_save(SfHost *host, SfPager *pager);

/*
 * After a restart. First, before anything is asked of a QEMU (vms: of SfVm): sf-pagers that have died are started anew
 * and get the userfaultfds. Then each ticket takes its own: one that was started anew, or one that lives and is
 * adopted; NULL
 * + error: it can't be had. At last those go that nobody has taken.
 */
void sf_pager_records_begin(SfHost *host, GPtrArray *vms);
SfPager *sf_pager_record_take(SfHost *host, const char *snapshot, GError **error);
void sf_pager_records_end(SfHost *host);

void sf_pager_record_drop(SfHost *host, const char *snapshot);

#endif
