/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Places on other hosts that tickets of this host's VMs use: what this host, as the origin, orders and is told.
 *
 *     ticket     reserve --> each host; what one refuses goes to others; an sf-pager begins to listen
 *     fork       place --> each host, with the descriptor; pages are fetched from the sf-pager
 *     clones     report --> applied to the SfFork; results are fetched before an end is told
 *     release    release --> each host
 *
 * A host that is not there: orders wait for it. When its connection is made again both sides tell each other all that
 * they know (sync); when it stays away longer than `away-seconds`, its clones are lost.
 *
 * Main thread only.
 */
#ifndef SF_BORROW_H
#define SF_BORROW_H

#include "sfvmm/control/host.h"

/* What the ticket's clones are clones of. Everything is borrowed, and copied where it is needed longer. */
typedef struct {
    const char *vm; /* clones are called after it */
    SfVmConfig *config;
    const char *qemu_version, *machine, *cpu;
    GPtrArray *disks; /* of SfDiskChain: now; those that are not read-only may still change until the fork */
    /* Of a snapshot that has been taken: */
    SfPager *pager;     /* who serves its memory: the ticket's own starts one; NULL: none does yet */
    const char *uri;    /* where its memory is as well, or NULL */
    GBytes *descriptor; /* its descriptor, under the ticket's name; NULL: it is made after the fork */
} SfBorrowSubject;

SfBorrowSubject sf_borrow_subject_of_vm(SfHostVm *hvm);

/* Asks the other hosts of a new ticket. Finishes with the ticket when each has answered or its time is over. */
void sf_borrow_reserve_async(SfHostTicket *ticket, const SfBorrowSubject *subject, GAsyncReadyCallback callback,
                             gpointer data);
SfHostTicket *sf_borrow_reserve_finish(SfHost *host, GAsyncResult *result, GError **error);
gboolean sf_borrow_is_asking(SfHostTicket *ticket);
gboolean sf_borrow_is_whole(SfHostTicket *ticket);  /* all places of the first grant were found */
const char *sf_borrow_reason(SfHostTicket *ticket); /* why one was not */

/* For the ticket's fork: its places (of SfForkPlace, borrowing of the grant), and who serves its memory. */
GArray *sf_borrow_fork_places(SfHostTicket *ticket);
SfPager *sf_borrow_server(SfHostTicket *ticket); /* that the fork gives the snapshot to; NULL: none has to be */
SfForkRemote sf_borrow_remote(SfHost *host);

/* Have the other hosts fetch all of the memory; then this host is not needed any more (but for disks). */
void sf_borrow_complete(SfHostTicket *ticket);
gboolean sf_borrow_is_complete(SfHostTicket *ticket); /* all hosts with living clones have it */
gboolean sf_borrow_is_complete_at(const SfHostTicket *ticket, const char *host);

void sf_borrow_done(SfHostTicket *ticket);    /* all clones have ended */
void sf_borrow_release(SfHostTicket *ticket); /* tells the hosts */
void sf_borrow_free(SfBorrow *borrow);

/*
 * After a restart, before the ticket's fork is restored: takes over the sf-pager; of a saved snapshot, that of the
 * ticket, which is there already. Then, for such a one, what its clones are clones of.
 */
void sf_borrow_recover(SfHostTicket *ticket, JsonObject *record);
void sf_borrow_recover_subject(SfHostTicket *ticket, const SfBorrowSubject *subject);
void sf_borrow_save(SfHostTicket *ticket, JsonObject *record); /* into ticket.json */

/* Answers "descriptor": a host with places of a ticket that has forked has not got it by multicast. */
void sf_borrow_descriptor_request(SfHost *host, SfPeerRequest *request);

/* Of SfPeersHandlers. */
void sf_borrow_event(SfHost *host, SfPeer *peer, const char *name, JsonObject *data);
void sf_borrow_peer_up(SfHost *host, SfPeer *peer);
void sf_borrow_peer_down(SfHost *host, SfPeer *peer);

#endif
