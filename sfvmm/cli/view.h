/* SPDX-License-Identifier: GPL-2.0-or-later */
/* VMs and tickets as text for people. Each takes objects as docs/control-protocol.md has them. */
#ifndef SF_CTL_VIEW_H
#define SF_CTL_VIEW_H

#include "sfvmm/cli/cli.h"

void sf_view_vm_list(SfCtl *ctl, JsonArray *vms);
void sf_view_vm(SfCtl *ctl, JsonObject *vm);
void sf_view_ticket_list(SfCtl *ctl, JsonArray *tickets);

/* One ticket: a heading, the parent's pause and its parts, a table of the clones. */
void sf_view_ticket(SfCtl *ctl, JsonObject *ticket);

/* The answer to a call that has a "ticket" in it: with --json as it is, quiet: its id alone, else as above. */
void sf_view_ticket_of(SfCtl *ctl, JsonObject *result, gboolean quiet);

#endif
