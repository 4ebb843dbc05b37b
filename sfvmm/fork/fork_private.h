/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of fork/ share. Nobody else includes this. */
#ifndef SF_FORK_PRIVATE_H
#define SF_FORK_PRIVATE_H

#include "sfvmm/fork/fork.h"

/* The end of a clone, whichever way. Its QEMU is killed if it lives here; another host is not told. */
void sf_clone_end(SfClone *clone, guint32 state, const char *reason);

void sf_clone_place_here(SfClone *clone); /* in a shell of this host */

/* A clone, or with NULL the fork itself, has changed: it is put on record and told. */
void sf_fork_changed(SfFork *fork, SfClone *clone);

/* It is at work: its agent has answered all that it was told. */
void sf_clone_runs(SfClone *clone);
void sf_clone_fail(SfClone *clone, const char *reason); /* it could not be made what it should be: killed, reported */

const SfForkNetwork *sf_fork_network(SfFork *fork); /* NULL: none */

/* connect.c: a clone's way onto its network. */
gboolean sf_clone_tell_network(SfClone *clone, GError **error); /* right before IDENTITY */
void sf_clone_connect(SfClone *clone);                          /* IDENTITY is answered; ends in sf_clone_runs() */

/* After each change of a clone: moves the fork's own state on. */
void sf_fork_review(SfFork *fork);

gboolean sf_fork_is_elsewhere(SfFork *fork); /* see sf_fork_new_placed() */

#endif
