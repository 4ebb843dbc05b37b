/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Network namespaces without a name: one lives as long as a descriptor of it or a socket in it is open, a process is in
 * it, or a tap that was opened in it is attached. So there is nothing to clean up, and nothing that a killed sfvmmd
 * could leave behind.
 */
#ifndef SF_NETNS_H
#define SF_NETNS_H

#include <gio/gio.h>

/* A new, empty namespace: a descriptor (O_CLOEXEC) that the caller closes; -1 + error. */
int sf_netns_new(GError **error);

/* The namespace that a tap is in, found by a descriptor of the tap. As sf_netns_new(). */
int sf_netns_of_tap(int tap, GError **error);

/*
 * What keeps a namespace alive in the hands of one who can do nothing else with it: a socket in it that reaches nobody.
 * As sf_netns_new().
 */
int sf_netns_pin(int netns, GError **error);

/*
 * Runs `inside` in a namespace and waits for it. It runs in a thread of its own, which ends with it: a thread never has
 * to find its way back. What it opens there (netlink sockets, taps) stays of that namespace. netns -1: the caller's.
 */
typedef gboolean SfNetnsFunc(gpointer data, GError **error);
gboolean sf_netns_run(int netns, SfNetnsFunc *inside, gpointer data, GError **error);

#endif
