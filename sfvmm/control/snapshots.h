/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfSnapshots: saved snapshots as sfvmmd uses them: taken from VMs, kept in the store, cloned from.
 *
 *     save     snapshot of a running VM (or that of a ticket's fork) --> store, in the background
 *     clone    disk server of its memory files --> sf-pager --> page cache --> clones, as those of another host's fork
 *
 * Clones of a saved snapshot are a family of their own, "saved-NAME", without a VM that was started. All of them share
 * one sf-pager and one page cache here; the memory is read as they touch it. Those on other hosts have it from that
 * sf-pager too, or from where it lies (borrow.h). A ticket of theirs has `saved` set.
 *
 * Main thread only.
 */
#ifndef SF_SNAPSHOTS_H
#define SF_SNAPSHOTS_H

#include "sfvmm/control/host.h"
#include "sfvmm/store/store.h"

typedef struct SfSnapshots SfSnapshots;

SfSnapshots *sf_snapshots_of(SfHost *host); /* one for each host, made when it is first asked for; borrowed */
SfStore *sf_snapshots_store(SfSnapshots *snapshots);

/*
 * Saves a VM: a snapshot is taken, the VM runs on, and the call finishes when the snapshot is whole on disk. With a
 * ticket: the snapshot that its clones run on, while one of them lives. request: of the agent, 0: an operator.
 */
void sf_snapshots_save_async(SfSnapshots *snapshots, const char *name, SfHostVm *hvm, SfHostTicket *ticket_or_null,
                             guint32 request, GAsyncReadyCallback callback, gpointer data);
gboolean sf_snapshots_save_finish(SfSnapshots *snapshots, GAsyncResult *result, GError **error);

/*
 * Clones of a saved snapshot. user: uid of who asks, whose quotas count. owner: the VM whose ticket it shall be (it
 * joins them), and the request of its agent; NULL and 0: an operator's. Finishes with a ticket whose fork has begun.
 */
void sf_snapshots_clone_async(SfSnapshots *snapshots, const char *name, guint count, guint32 user, const char *owner,
                              guint32 request, GAsyncReadyCallback callback, gpointer data);
SfHostTicket *sf_snapshots_clone_finish(SfSnapshots *snapshots, GAsyncResult *result, GError **error);

/* What a clone of it on another host needed first, packed (working_sets.h): kept for later ones, if nothing is yet. */
void sf_snapshots_note_working_set(SfSnapshots *snapshots, const char *name, GBytes *runs);

/* Of its clones here; NULL: there are none, and no ticket for some. */
SfFamily *sf_snapshots_family(SfSnapshots *snapshots, const char *name);

/* SAVED objects of the control protocol. */
JsonArray *sf_snapshots_describe(SfSnapshots *snapshots);
JsonObject *sf_snapshots_describe_one(SfSnapshots *snapshots, const char *name);

/*
 * After a restart, for each ticket, when it has its sf-pager again: recognizes one of a saved snapshot (ticket->saved
 * is set then), before its fork is restored; then gives that its memory and disks.
 */
void sf_snapshots_recover(SfHostTicket *ticket);
void sf_snapshots_recover_fork(SfHostTicket *ticket);

#endif
