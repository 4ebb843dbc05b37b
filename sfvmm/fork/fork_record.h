/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What of a fork is kept in its ticket's directory, so that a restart of sfvmmd loses nothing:
 *
 *     fork.json   state, timing, every clone         written at each change, by rename
 *     snapshot/   device state and extents, disks    from the snapshot until the last clone is placed
 *     result-N    see result.h
 *
 * Private to fork/.
 */
#ifndef SF_FORK_RECORD_H
#define SF_FORK_RECORD_H

#include "sfvmm/fork/fork.h"

/* Of the snapshot: durations in ns, `at` on CLOCK_MONOTONIC. Kept when the snapshot itself has gone. */
typedef struct {
    gint64 at, pause, stop, device, ram, disk, start;
    guint64 state_length;
    char snapshot[SF_GP_NAME_LEN];
} SfForkTiming;

void sf_fork_timing_take(SfForkTiming *timing, const SfSnapshot *snapshot);

/* Not in fork.h, as only the record needs them. */
const SfForkTiming *sf_fork_timing(SfFork *fork);
const char *sf_clone_state_name(guint32 state);
int sf_clone_state_from_name(const char *name); /* -1: no such state */
gint64 sf_fork_called(SfFork *fork);

typedef struct {
    SfForkState state;
    char *reason;
    char *parent_name;
    gboolean with_agent;
    gboolean elsewhere;
    guint total;
    guint32 clone_request;
    gint64 called;
    SfForkTiming timing;
    JsonArray *json_clones;
    GPtrArray *clones; /* of JsonObject, borrowed from json_clones */
} SfForkRecord;

gboolean sf_fork_record_save(SfFork *fork, const char *directory, GError **error);
SfForkRecord *sf_fork_record_load(const char *directory, GError **error);
void sf_fork_record_free(SfForkRecord *record);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfForkRecord, sf_fork_record_free)

guint sf_fork_record_clone_id(const SfForkRecord *record, guint index);

/* Fill a clone from entry `index` of the record. */
void sf_fork_record_clone(const SfForkRecord *record, guint index, SfClone *clone);

gboolean sf_fork_record_save_snapshot(SfSnapshot *snapshot, GPtrArray *disks, const char *directory, GError **error);
/* fds: where its memory may be found besides the processes (sf_pager_fds()). */
SfSnapshot *sf_fork_record_restore_snapshot(const char *directory, SfRamBase *base, const pid_t *pids, guint n_pids,
                                            const int *fds, guint n_fds, GPtrArray **disks, GError **error);
void sf_fork_record_drop_snapshot(const char *directory);

#endif
