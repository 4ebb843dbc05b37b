/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SfSwitch: what sf-switch consists of: ports, what passes between them, and orders of sfvmmd. One thread. */
#ifndef SF_SWITCH_H
#define SF_SWITCH_H

#include <gio/gio.h>

typedef struct {
    guint32 address;     /* of the cluster's first VM, IPv4 in host byte order */
    guint prefix;        /* of its subnet */
    const GArray *rules; /* of SfNetRule; none: nothing is reachable outside. Outlives the object */
    guint64 rate;        /* bytes/s of each member in each direction; 0: no limit */
} SfSwitchOptions;

typedef struct SfSwitch SfSwitch;

/* listener: an AF_UNIX SOCK_SEQPACKET socket on which sfvmmd connects; stays the caller's. */
SfSwitch *sf_switch_new(const SfSwitchOptions *options, int listener, GError **error);
void sf_switch_free(SfSwitch *self);

/* Until sfvmmd says that the cluster is gone, or has itself gone with the QEMU of the last member. */
void sf_switch_run(SfSwitch *self);

#endif
