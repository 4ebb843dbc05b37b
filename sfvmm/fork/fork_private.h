/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of fork/ share. Nobody else includes this. */
#ifndef SF_FORK_PRIVATE_H
#define SF_FORK_PRIVATE_H

#include "sfvmm/fork/fork.h"
#include "sfvmm/fork/fork_record.h"

struct _SfFork {
    GObject parent_instance;
    guint64 ticket;
    SfForkState state;
    char *reason;
    gboolean refused; /* QEMU can't fork this VM; the reason names the device */
    char *directory;
    char *parent_name;
    SfVm *parent; /* NULL when it has ended */
    SfShellPool *pool;
    gboolean pool_held;
    gboolean source_done; /* other hosts don't need the snapshot any more */
    gboolean elsewhere;   /* its snapshot was taken on another host; only the clones here are in it */
    guint total;          /* clones of all hosts */
    const SfForkRemote *remote;
    const SfForkNetwork *network; /* NULL: none */
    SfPager *pager;               /* fills the memory of clones here */
    SfPager *server;              /* gives the snapshot's memory to other hosts */
    gulong lost_handler, failed_handler;
    gboolean with_agent;
    guint32 clone_request;
    guint identify_seconds;
    gint64 called;
    guint parent_timeout; /* GSource id while the snapshot waits for the parent's agent, 0: it does not */
    SfForkTiming timing;
    SfSnapshot *snapshot;
    GPtrArray *frozen_disks;
    GPtrArray *clones; /* of SfClone, in the order of their ids */
    gboolean placed_told;
};

/* ---- clone.c ---- */

/* The end of a clone, whichever way. Its QEMU is killed if it lives here; another host is not told. */
void sf_clone_end(SfClone *clone, guint32 state, const char *reason);
/* As sf_clone_end(), and its host is told, which does not know it yet. */
void sf_clone_end_everywhere(SfClone *clone, guint32 state, const char *reason);

/* Not running on its own yet: sf_clone() in the parent waits for it, and the snapshot is kept for another attempt. */
gboolean sf_clone_is_awaited(const SfClone *clone);

void sf_clone_place_here(SfClone *clone);        /* in a shell of this host */
void sf_clone_take_vm(SfClone *clone, SfVm *vm); /* it is this one */
void sf_clone_identify(SfClone *clone);          /* its agent is told who it is */
void sf_clone_drop_vm(SfClone *clone, gboolean kill);
void sf_clone_free(gpointer clone);

/* It is at work: its agent has answered all that it was told. */
void sf_clone_runs(SfClone *clone);
void sf_clone_fail(SfClone *clone, const char *reason); /* it could not be made what it should be: killed, reported */

/* ---- connect.c: a clone's way onto its network ---- */

gboolean sf_clone_tell_network(SfClone *clone, GError **error); /* right before IDENTITY */
void sf_clone_connect(SfClone *clone);                          /* IDENTITY is answered; ends in sf_clone_runs() */

/* ---- fork.c ---- */

void sf_fork_save(SfFork *fork); /* puts it on record */
/* A clone, or with NULL the fork itself, has changed: it is put on record and told. */
void sf_fork_changed(SfFork *fork, SfClone *clone);

const SfForkNetwork *sf_fork_network(SfFork *fork); /* NULL: none */

SfFork *sf_fork_new_without_clones(const SfForkOptions *options, const char *parent_name);
void sf_fork_add_clone(SfFork *fork, guint id, const char *host); /* ids ascend; host NULL: here */

void sf_fork_place(SfFork *fork); /* those that are to be here, and have no VM yet */
void sf_fork_hold_pool(SfFork *fork, gboolean hold);
gboolean sf_fork_alive_elsewhere(SfFork *fork);            /* other hosts may still fetch pages of the snapshot */
void sf_fork_fail_early(SfFork *fork, const char *reason); /* before any clone: nothing was made, the parent runs */

/* After each change of a clone: moves the fork's own state on. */
void sf_fork_review(SfFork *fork);

gboolean sf_fork_is_elsewhere(SfFork *fork); /* see sf_fork_new_placed() */

#endif
