/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a clone is called: its VM on the host, itself in the guest. No state. */
#ifndef SF_CLONE_NAME_H
#define SF_CLONE_NAME_H

#include <glib.h>

/* PARENT-TICKET4-ID, for its VM: short enough to read, and unique with the ticket's first digits. Caller frees. */
char *sf_clone_vm_name(const char *parent, guint64 ticket, guint id);

/*
 * PARENT-ID, for the guest's kernel: at most 63 bytes, what a label of DNS may have (sethostname(2) takes 64). Each
 * level of clones makes the parent's name longer; the end of one that is too long is left out, the id never. Caller
 * frees.
 */
char *sf_clone_host_name(const char *parent, guint id);

#endif
