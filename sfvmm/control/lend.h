/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Places of this host that tickets of other hosts' VMs use: the methods that other sfvmmds call (docs/peers.md).
 *
 *     reserve    books, makes the family "ORIGIN:VM" and its pool, starts an sf-pager that connects to the origin
 *     place      checks the descriptor, then begins an SfFork with the clones that are to be here
 *     kill, result, release
 *     sync       what the origin and this host know is made one again, after they have met again
 *
 * A peer may speak of its own tickets only. When the origin stays away longer than `away-seconds`, tickets whose clones
 * can't go on are released; others wait for it.
 *
 * Main thread only.
 */
#ifndef SF_LEND_H
#define SF_LEND_H

#include "sfvmm/control/host.h"

/* Data of the sf-pager of a lent ticket: why it is in no multicast group, a text. */
#define SF_NO_MULTICAST "sf-no-multicast"

/* Carries out a request of a peer and answers it, now or later. */
void sf_lend_request(SfHost *host, SfPeerRequest *request);

/* A clone of a lent ticket has changed: its origin is told. */
void sf_lend_clone_changed(SfHostTicket *ticket, SfClone *clone);

/* Another ticket whose clones had their memory from this sf-pager has none left: ends that were held back are told. */
void sf_lend_pager_used_less(SfHost *host, SfPager *pager);

void sf_lend_done(SfHostTicket *ticket); /* all clones here have ended */
void sf_lend_free(SfLend *lend);
void sf_lend_peer_up(SfHost *host, SfPeer *peer);
void sf_lend_peer_down(SfHost *host, SfPeer *peer);

/* After a restart, when it has its sf-pager again: its disks, before its fork is restored; its snapshot, before clones
 * are adopted. */
void sf_lend_recover(SfHostTicket *ticket);
void sf_lend_recover_fork(SfHostTicket *ticket);

#endif
