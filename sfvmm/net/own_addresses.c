/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An address is the host's also when no interface has it as its first one, and the broadcast address of each of its
 * networks reaches the host too.
 */
#include "sfvmm/net/own_addresses.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#define GOOD_FOR (1 * G_USEC_PER_SEC)

void sf_own_addresses_init(SfOwnAddresses *own)
{
    own->addresses = g_array_new(FALSE, FALSE, sizeof(guint32));
    own->read = 0;
    own->known = FALSE;
}

void sf_own_addresses_clear(SfOwnAddresses *own)
{
    g_clear_pointer(&own->addresses, g_array_unref);
}

static void add(GArray *addresses, const struct sockaddr *address)
{
    if (address && address->sa_family == AF_INET) {
        guint32 value = ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr);
        g_array_append_val(addresses, value);
    }
}

static void read_them(SfOwnAddresses *own)
{
    struct ifaddrs *list = NULL;

    g_array_set_size(own->addresses, 0);
    own->known = getifaddrs(&list) == 0;
    for (struct ifaddrs *each = own->known ? list : NULL; each; each = each->ifa_next) {
        add(own->addresses, each->ifa_addr);
        if (each->ifa_flags & IFF_BROADCAST) {
            add(own->addresses, each->ifa_broadaddr);
        }
    }
    if (own->known) {
        freeifaddrs(list);
    }
}

gboolean sf_own_addresses_has(SfOwnAddresses *own, guint32 address, gint64 now)
{
    if (own->read == 0 || now - own->read > GOOD_FOR) {
        read_them(own);
        own->read = now;
    }
    for (guint i = 0; i < own->addresses->len; i++) {
        if (g_array_index(own->addresses, guint32, i) == address) {
            return TRUE;
        }
    }
    return !own->known;
}
