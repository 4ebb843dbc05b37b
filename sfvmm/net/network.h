/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfNetwork: the network of one cluster on this host. VMs are put on it, one by one, when they may talk; and, if the
 * policy allows anything outside, there is a gateway with NAT.
 *
 *                          sf_network_plug()
 *     sf_network_new() --> sf_network_open_port() --> sf_network_admit() --> sf_network_dismiss() --> sf_network_free()
 *                                  a VM is started        it has its own          it has ended
 *                                                         MAC and address
 *
 * There are two kinds. Guests see no difference between them:
 *
 *     bridge    a network namespace with a bridge of the kernel; needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
 *               sf_network_span() makes it one with the networks of other hosts
 *     switch    a process, sf-switch, which is the bridge, the filter and the gateway; needs no privilege. This host
 * only
 *
 * Any number of clusters may have the same addresses. Addresses are IPv4 in host byte order. Main thread only; each
 * call is done when it returns.
 */
#ifndef SF_NETWORK_H
#define SF_NETWORK_H

#include <gio/gio.h>
#include "sfvmm/net/rules.h"

#define SF_NET_MTU 1450u /* leaves room for VXLAN in Ethernet's 1500 */

/* Where and how sf-switch runs. */
typedef struct {
    const char *program;   /* absolute path */
    const char *directory; /* for its sockets and logs; made when needed */
    uid_t uid;             /* that it runs as; counts when we are root */
    gid_t gid;
} SfNetworkPlace;

typedef struct {
    const char *name;      /* of the cluster: for messages, and for files */
    guint32 address;       /* of its first VM */
    guint prefix;          /* of its subnet; the gateway is the last address of it */
    const GArray *outside; /* of SfNetRule (policy.h); copied. NULL: nothing is reachable outside */
    guint32 links;         /* addresses of the cables between clusters and this host: a network of `links_prefix`, two
                              for each cluster, of no meaning elsewhere */
    guint links_prefix;
    guint64 rate; /* bytes/s of each member in each direction; 0: no limit */
    guint8 gateway_mac[SF_NET_MAC_LENGTH];
    gboolean lent;               /* the cluster's gateway, and so its way outside, is on another host */
    const SfNetworkPlace *place; /* of a switch; NULL: a bridge */
} SfNetworkOptions;

typedef struct SfNetwork SfNetwork;

/* NULL + error: nothing is left of the attempt. */
SfNetwork *sf_network_new(const SfNetworkOptions *options, GError **error);

/*
 * After a restart of sfvmmd: the network that a VM's tap is in (a bridge's; a switch is found by its name). Its members
 * are not known: admit() each, then settle(), from which on no other passes. Those who stay notice nothing.
 */
SfNetwork *sf_network_adopt(const SfNetworkOptions *options, int tap, GError **error);
gboolean sf_network_settle(SfNetwork *network, GError **error);

/*
 * Makes it one with the networks that have the same number at other hosts (their IP addresses; the list may change from
 * call to call, empty: this host alone). number: 24 bits, not 0. G_IO_ERROR_EXISTS: another cluster of this host has
 * it.
 */
gboolean sf_network_span(SfNetwork *network, guint32 number, guint port, const char *const *hosts, GError **error);
guint32 sf_network_number(const SfNetwork *network); /* 0: it does not span hosts */

/* All of it goes; ports that QEMUs still hold lead nowhere. */
void sf_network_free(SfNetwork *network);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfNetwork, sf_network_free)

/* After adoption the object goes, but not what it stands for: sfvmmd ends, VMs go on. */
void sf_network_leave(SfNetwork *network);

/*
 * A port for a QEMU, which goes with it: a tap, or a stream socket of frames. It reaches nothing. Returns its
 * descriptor, for the caller to close, and the name of the device, to be freed; -1 + error.
 */
int sf_network_open_port(SfNetwork *network, char **device, GError **error);

/*
 * The same for a QEMU that somebody else has started, with a tap of his: plug() takes that, wherever it is. It keeps no
 * bridge alive as ours do, so such a QEMU must be given what pin() returns, for the caller to close, before. *device:
 * the tap's name, to be freed. A switch can't have such members.
 */
int sf_network_pin(SfNetwork *network, GError **error);
gboolean sf_network_plug(SfNetwork *network, int tap, char **device, GError **error);

/* A VM whose guest has its own MAC and address by now: it may talk, as these only. */
gboolean sf_network_admit(SfNetwork *network, const char *device, const guint8 *mac, guint32 address, GError **error);

/* It has ended. Unknown devices are no error. */
void sf_network_dismiss(SfNetwork *network, const char *device);

/* Where members send what is not for the cluster; 0: nothing is reachable outside. */
guint32 sf_network_gateway(const SfNetwork *network);

guint32 sf_network_gateway_address(guint32 address, guint prefix); /* that a subnet's gateway has, if there is one */

/* The addresses of a subnet that VMs can have: without its first and last one and the gateway. */
gboolean sf_network_address_is_usable(guint32 address, guint prefix);

/* Removes what a killed sfvmmd left of clusters that are gone. place: as in options; live: names of those that are
 * there. */
void sf_network_sweep(const SfNetworkPlace *place, const char *const *live);

#endif
