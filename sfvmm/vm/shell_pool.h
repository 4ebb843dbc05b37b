/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SfShellPool: paused QEMU processes of one configuration, ready to be loaded. Refills itself in the background, one or
 * two at a time and at low priority, up to its target size; a request beyond what is ready starts shells at once
 * (cold).
 */
#ifndef SF_SHELL_POOL_H
#define SF_SHELL_POOL_H

#include "sfvmm/vm/launcher.h"

typedef struct SfShellPool SfShellPool;

/* Shells are named PREFIX-shell-N. A failed refill is retried with growing delay and logged. */
SfShellPool *sf_shell_pool_new(SfLauncher *launcher, const char *prefix, SfVmConfig *config, guint target);

/* References: its owner's, a fork's, each take in flight. close() kills its shells and starts no more; a take then
 * fails. */
SfShellPool *sf_shell_pool_ref(SfShellPool *pool);
void sf_shell_pool_unref(SfShellPool *pool);
void sf_shell_pool_close(SfShellPool *pool);
void sf_shell_pool_set_target(SfShellPool *pool, guint target);
guint sf_shell_pool_ready(SfShellPool *pool);
guint sf_shell_pool_target(SfShellPool *pool);

/* Each ready shell, for `vm.usage`. */
void sf_shell_pool_foreach(SfShellPool *pool, void (*visit)(SfVm *shell, gpointer data), gpointer data);

/* A shell adopted after a restart goes back into its pool. One that has got a clone's name already is killed. */
void sf_shell_pool_give(SfShellPool *pool, SfVm *shell);

/*
 * Refilling competes with a fork for CPU: held while a fork runs, it goes on half a second after the last release.
 * Nests.
 */
void sf_shell_pool_hold(SfShellPool *pool);
void sf_shell_pool_release(SfShellPool *pool);

/* Take one shell: ready, or started for this. The caller owns it. */
void sf_shell_pool_take_async(SfShellPool *pool, GAsyncReadyCallback callback, gpointer data);
SfVm *sf_shell_pool_take_finish(SfShellPool *pool, GAsyncResult *result, GError **error);

#endif
