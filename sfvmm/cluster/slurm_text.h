/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What Slurm's commands print, taken apart: strictly, so that another version's other words are an error and no wrong
 * number. As Slurm 22.05 prints it. No state.
 */
#ifndef SF_SLURM_TEXT_H
#define SF_SLURM_TEXT_H

#include <gio/gio.h>

#define SF_SLURM_NODES_MAX 1024u  /* of one job */
#define SF_SLURM_CPUS_MAX  65535u /* of one node */

/* A node of a job, or of the cluster. */
typedef struct {
    char *name;
    guint cpus; /* of the job, or idle */
} SfSlurmNode;

/* A line of squeue. */
typedef struct {
    guint64 id;
    char *state, *name;
} SfSlurmJob;

/* salloc's standard error: "salloc: Granted job allocation 12". 0: it says no such thing, or more than one. */
guint64 sf_slurm_parse_grant(const char *text);

/* What a command complained of, without its name: one line, valid UTF-8. Caller frees. "" when it is silent. */
char *sf_slurm_parse_complaint(const char *text);

/* A complaint that only means: not now, or not so much. */
gboolean sf_slurm_means_busy(const char *complaint);

/* scancel's complaint that there is nothing to cancel any more. */
gboolean sf_slurm_means_ended(const char *complaint);

/* `scontrol --oneliner --details show job`: the nodes of that job, of SfSlurmNode, in its order. NULL + error. */
GPtrArray *sf_slurm_parse_nodes(const char *text, guint64 job, GError **error);

/* `squeue --format=%A|%T|%j`: of SfSlurmJob. NULL + error. */
GPtrArray *sf_slurm_parse_queue(const char *text, GError **error);

/* `sinfo --Node --format=%n|%C`: of SfSlurmNode with its idle CPUs, each node once. NULL + error. */
GPtrArray *sf_slurm_parse_idle(const char *text, GError **error);

/* The job runs, or is about to; else it has ended. */
gboolean sf_slurm_state_is_alive(const char *state);

#endif
