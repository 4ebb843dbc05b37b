/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Clones on other hosts. Their host reports each change of a clone, as JSON; the origin applies the report:
 *
 *     host of the clone                                       origin
 *     SfClone --sf_clone_report()--> JSON --> peers --> sf_clone_report_parse() --> sf_clone_apply_report()
 *
 * A report says all of the clone's state, so that a lost one costs nothing once a later one comes (after a reconnection
 * or a restart of either side). Times in it count from the order to place the clone, as the hosts' clocks differ: the
 * origin adds the time at which it gave the order.
 *
 * Main thread only.
 */
#ifndef SF_FORK_REMOTE_H
#define SF_FORK_REMOTE_H

#include "sfvmm/fork/fork.h"

typedef struct {
    guint id;
    guint32 state;
    gint32 status;
    const char *reason; /* of the JSON; NULL: none */
    guint64 result_length;
    gint64 loaded, running, answered, synced, exited; /* ns since the order to place it; 0: not yet */
} SfCloneReport;

/* {"id","state","status","reason","result_length","loaded","running","answered","synced","exited"} */
JsonObject *sf_clone_report(const SfClone *clone);

/* Unknown states, values out of bounds and texts with control characters are errors. *report borrows of object. */
gboolean sf_clone_report_parse(JsonObject *object, SfCloneReport *report, GError **error);

/* The clone is as its host says. Nothing happens to one that has ended here. */
void sf_clone_apply_report(SfClone *clone, const SfCloneReport *report);

/* Its host has been ordered to place it, now. */
void sf_clone_ordered(SfClone *clone);

/* It is to be placed on another host, NULL: here. For one that is being placed. */
void sf_clone_move(SfClone *clone, const char *host);

/* Its host can't place it (FAILED), or it is not to be heard of any more (LOST). */
void sf_clone_give_up(SfClone *clone, guint32 state, const char *reason);

/* Not loaded yet as far as is known. (One without an agent is awaited longer, until it runs: sf_fork_is_placed().) */
gboolean sf_clone_is_being_placed(const SfClone *clone);
gboolean sf_clone_is_alive(const SfClone *clone);

/* The hosts of its clones have all that they need of the snapshot. */
void sf_fork_source_done(SfFork *fork);

/* Of sf_fork_restore() of an SfFork of sf_fork_new_placed(), before sf_fork_resume(): its memory and disks. */
void sf_fork_set_placed(SfFork *fork, SfSnapshot *snapshot, GPtrArray *frozen_disks);

#endif
