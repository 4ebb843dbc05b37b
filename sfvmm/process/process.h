/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfProcess: starting a program that shall outlive us, and finding it again. No state.
 */
#ifndef SF_PROCESS_H
#define SF_PROCESS_H

#include <glib.h>
#include <sys/types.h>

typedef struct {
    const char *program; /* absolute path; opened by us, so that the child's user need not reach it */
    GPtrArray *argv;     /* of char *, ends in NULL */
    GArray *fds;         /* of int: they become 3, 4, ... in the child; still the caller's */
    int log;             /* becomes stdout and stderr */
    uid_t uid;
    gid_t gid; /* uid and gid are changed only when we are root */
    /* Called when the pid is known; the program runs after it has returned, and never if we die before. Or NULL. */
    void (*forked)(pid_t pid, gpointer data);
    gpointer data;
} SfProcessOptions;

#define SF_PROCESS_FIRST_FD 3
#define SF_PROCESS_FDS_MAX  512

/* In a session of its own. *pidfd is the caller's. */
gboolean sf_process_start(const SfProcessOptions *options, pid_t *pid, int *pidfd, GError **error);

/* Clock ticks since boot at which the process began; 0: no such process. With the pid it names a process for good. */
guint64 sf_process_start_time(pid_t pid);

/* A pidfd, if the process of that pid and start time still lives; else -1. */
int sf_process_open(pid_t pid, guint64 start_time);

/* How it ended ("PROGRAM ended with status 1"), if it was our child: reaps it. NULL: not our child, or not ended. Caller
 * owns the text. */
char *sf_process_reap(int pidfd, const char *program);

#endif
