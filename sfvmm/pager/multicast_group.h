/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfMulticast: the multicast group of a ticket's snapshot, in sfvmmd. The origin makes it and invites other hosts, one
 * by one, over TLS; each joins with its sf-pager. docs/multicast.md.
 *
 *     origin   sf_multicast_new(): socket, master key, order to its sf-pager      invitation of host 1, 2, ...
 *     others   sf_multicast_join(): socket, that host's keys, order to its sf-pager
 *
 * Main thread only.
 */
#ifndef SF_MULTICAST_GROUP_H
#define SF_MULTICAST_GROUP_H

#include <json-glib/json-glib.h>
#include "sfvmm/pager/pager.h"
#include "sfvmm/pager/udp_group.h"

typedef enum { SF_MULTICAST_OFF, SF_MULTICAST_AUTO, SF_MULTICAST_ON } SfMulticastMode;

typedef struct {
    SfMulticastMode mode; /* AUTO: when there are at least two other hosts */
    SfUdpRange v4, v6;
    guint port;                      /* of all groups */
    guint origin_first, origin_last; /* ports at which this host may get requests; 0: any */
    guint hops;                      /* routers that it may pass, 1: none */
    guint min_mbit, max_mbit;        /* bounds of the rate, Mbit/s; 0: the default */
    gboolean push;                   /* in idle time, pages that nobody has asked for */
} SfMulticastConfig;

/* Defaults: off, the ranges and the port of sfvmmd.conf(5). */
void sf_multicast_config_init(SfMulticastConfig *config);

typedef struct SfMulticast SfMulticast;

/*
 * A group for the snapshot that `server` serves. number: chooses the group. local_ip: of this host on the link to the
 * others. receivers: how many are expected. NULL + error: the others use unicast.
 */
SfMulticast *sf_multicast_new(const SfMulticastConfig *config, SfPager *server, guint64 number, const char *local_ip,
                              guint receivers, GError **error);
/* After adoption of its sf-pager; last_receiver: as saved. NULL: it has no group. */
SfMulticast *sf_multicast_recover(SfPager *server, guint last_receiver);
void sf_multicast_free(SfMulticast *multicast);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfMulticast, sf_multicast_free)

/* For a host that reaches us at local_ip: what it needs to join; it has secrets. NULL: that is another link. */
JsonObject *sf_multicast_invite(SfMulticast *multicast, const char *host, const char *local_ip);
guint sf_multicast_last_receiver(const SfMulticast *multicast); /* to be saved: numbers are not given twice */

/*
 * Joins with `pager`. local_ip, origin_ip: the ends of the connection to the origin. FALSE + error: the invitation is
 * malformed, or this host can't; then it uses unicast.
 */
gboolean sf_multicast_join(SfPager *pager, JsonObject *invitation, const char *local_ip, const char *origin_ip,
                           GError **error);

#endif
