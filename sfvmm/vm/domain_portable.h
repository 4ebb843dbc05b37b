/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A domain's XML as one host may give it to another: nothing in it is of the host that it comes from. Any thread. */
#ifndef SF_DOMAIN_PORTABLE_H
#define SF_DOMAIN_PORTABLE_H

#include <gio/gio.h>

/*
 * The portable form of a template of shells: equal for equal machines, and its own portable form. NULL + error: the
 * domain has something that another host can't have, or should not take from a peer; it says what. address: of the
 * first VM in its cluster, 0: none. Caller owns.
 */
char *sf_domain_portable(const char *template_text, guint32 address, GError **error);

/*
 * A text from a peer is such a form, of a machine with so much memory, so many CPUs and writable disks: what the places
 * that it takes are counted by; and in that cluster or none. accel: "kvm" or "tcg". FALSE + error.
 */
gboolean sf_domain_portable_check(const char *text, guint32 address, guint64 memory, guint vcpus, guint disks,
                                  const char *accel, GError **error);

#endif
