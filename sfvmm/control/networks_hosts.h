/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cluster networks that span hosts: what the host of the first VM (the origin) and the hosts that lend places for its
 * clones tell each other of it. docs/network.md has the model, docs/peers.md the messages.
 *
 *     origin                                               lender
 *     reserve  --- number, port, a range of addresses -->  makes its part of the network, with one end: the origin
 *     network  --- the other hosts of the cluster ------>  gives its part these ends
 *     place    --- address of clone 1, of the parent --->  its clones get theirs
 *
 * Main thread only.
 */
#ifndef SF_NETWORKS_HOSTS_H
#define SF_NETWORKS_HOSTS_H

#include "sfvmm/control/networks.h"

/* ---- the origin ---- */

/* Into the params of a reserve: nothing for VMs in no cluster, or when it can't be; then the host refuses. */
void sf_networks_invite(SfHostTicket *ticket, SfPeer *peer, JsonObject *params);

/* Into the params of a place. */
void sf_networks_add_place(const SfHostTicket *ticket, JsonObject *params);

/* The hosts of this family's tickets have changed, or a connection was made: all of them are told. */
void sf_networks_spread(SfHost *host, SfFamily *family);
void sf_networks_spread_all(SfHost *host);

/* ---- a lender ---- */

/* Before the first shell of the family. Nothing happens for VMs in no cluster. params: of a reserve, unchecked. */
gboolean sf_networks_accept(SfHost *host, SfFamily *family, SfPeer *origin, JsonObject *params, GError **error);

/* params: of a place, unchecked. */
gboolean sf_networks_take_place(SfHostTicket *ticket, JsonObject *params, GError **error);

/* params: of a call "network", unchecked. */
gboolean sf_networks_take_hosts(SfHostTicket *ticket, SfPeer *origin, JsonObject *params, GError **error);

/* ---- addresses ---- */

/* Those that forks of this host may use. FALSE: none. */
gboolean sf_networks_range(const SfFamily *family, guint32 *first, guint32 *last);

#endif
