/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One command of Slurm, as a child that nobody waits for but its callback: the main loop goes on. Main thread only.
 */
#ifndef SF_SLURM_COMMAND_H
#define SF_SLURM_COMMAND_H

#include <gio/gio.h>

#include "sfvmm/cluster/slurm.h"

typedef struct {
    gboolean ok; /* it ended with status 0 */
    char *out, *err;
} SfSlurmOutput;

void sf_slurm_output_free(SfSlurmOutput *output);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SfSlurmOutput, sf_slurm_output_free)

/*
 * argv ends in NULL; the program is looked for in PATH. cancellable, or NULL: ends it by SIGTERM, on which salloc gives
 * back what it waits for; the callback comes when it has ended. So does it when timeout_ms are over, and, with
 * dies_with_us, when we die.
 */
void sf_slurm_command_async(const SfSlurmOptions *options, const char *const *argv, guint timeout_ms,
                            gboolean dies_with_us, GCancellable *cancellable, GAsyncReadyCallback callback,
                            gpointer data);

/* What it printed, also when it failed; NULL + error: it could not be run, or printed too much. Caller frees. */
SfSlurmOutput *sf_slurm_command_finish(GAsyncResult *result, GError **error);

#endif
