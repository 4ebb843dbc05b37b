/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the two kinds of network are to network.c. Nobody else includes this. */
#ifndef SF_NETWORK_KIND_H
#define SF_NETWORK_KIND_H

#include "sfvmm/net/network.h"

/* Each as the function of network.h that has its name; errors without the network's name. */
typedef struct {
    SfNetwork *(*new)(const SfNetworkOptions *options, GError **error);
    SfNetwork *(*adopt)(const SfNetworkOptions *options, int tap, GError **error);
    gboolean (*settle)(SfNetwork *network, GError **error);
    void (*free)(SfNetwork *network); /* what is its own; all of it goes if `own` */
    gboolean (*span)(SfNetwork *network, guint32 number, guint port, const char *const *hosts, GError **error);
    guint32 (*number)(const SfNetwork *network);
    int (*open_port)(SfNetwork *network, char **device, GError **error);
    int (*pin)(SfNetwork *network, GError **error); /* NULL, as plug: it takes no taps of others */
    gboolean (*plug)(SfNetwork *network, int tap, char **device, GError **error);
    gboolean (*admit)(SfNetwork *network, const char *device, const guint8 *mac, guint32 address, GError **error);
    void (*dismiss)(SfNetwork *network, const char *device);
} SfNetworkKind;

struct SfNetwork {
    const SfNetworkKind *kind;
    char *name;
    guint32 address;
    guint prefix;
    guint64 rate;
    GArray *outside; /* of SfNetRule */
    guint8 gateway_mac[SF_NET_MAC_LENGTH];
    gboolean lent;
    gboolean has_gateway;
    gboolean own; /* what it stands for goes with the object */
};

extern const SfNetworkKind sf_network_bridge, sf_network_switch;

void sf_network_init(SfNetwork *network, const SfNetworkKind *kind, const SfNetworkOptions *options);
guint32 sf_network_host_bits(guint prefix);

void sf_network_bridge_sweep(void);
void sf_network_switch_sweep(const char *directory, const char *const *live);

#endif
