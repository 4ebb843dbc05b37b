/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A manager that runs has left a sign in /run, so that a guest without it pays for one system call, not for a process;
 * that is made before the fork. Its script, in the folder managers/, knows how it is talked to. A DHCP client needs
 * none that does not watch addresses: the lease that the host gives has no end, and who asks again is given the clone's
 * own address.
 */
#include "guest-agent/managers.h"

#include <stddef.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const char *const installed[] = {
    "/sbin/ifup",
    "/usr/sbin/NetworkManager",
    "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
    "/usr/sbin/connmand",
    "/sbin/dhcpcd",
    "/usr/sbin/dhcpcd",
};

static const struct {
    const char *sign, *script;
} running[] = {
    { "/run/systemd/netif/state", SF_MANAGERS "/networkd" },
    { "/run/NetworkManager/devices", SF_MANAGERS "/networkmanager" },
    { "/run/network/ifstate", SF_MANAGERS "/ifupdown" },
    { "/run/dhcpcd", SF_MANAGERS "/dhcpcd" },
};

bool managers_are_there(void)
{
    for (size_t i = 0; i < COUNT(installed); i++) {
        if (access(installed[i], F_OK) == 0) {
            return true;
        }
    }
    return false;
}

unsigned managers_running(void)
{
    unsigned set = 0;

    for (unsigned i = 0; i < COUNT(running); i++) {
        if (access(running[i].sign, F_OK) == 0 && access(running[i].script, X_OK) == 0) {
            set |= 1u << i;
        }
    }
    return set;
}

const char *managers_next_script(unsigned *set)
{
    for (unsigned i = 0; i < COUNT(running); i++) {
        if (*set & 1u << i) {
            *set &= ~(1u << i);
            return running[i].script;
        }
    }
    return NULL;
}
