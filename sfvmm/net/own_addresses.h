/* SPDX-License-Identifier: GPL-2.0-or-later */
/* SfOwnAddresses: the IPv4 addresses that this host has, as of a moment ago. One thread. */
#ifndef SF_OWN_ADDRESSES_H
#define SF_OWN_ADDRESSES_H

#include <glib.h>

typedef struct {
    GArray *addresses; /* of guint32, host byte order */
    gint64 read;       /* when, microseconds of the monotonic clock; 0: never */
    gboolean known;    /* the last look succeeded */
} SfOwnAddresses;

void sf_own_addresses_init(SfOwnAddresses *own);
void sf_own_addresses_clear(SfOwnAddresses *own);

/* Also TRUE when the host can't be asked: nothing is then reachable. Looked up anew when older than a second. */
gboolean sf_own_addresses_has(SfOwnAddresses *own, guint32 address, gint64 now);

#endif
