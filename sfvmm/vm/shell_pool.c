/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     start --> ready queue --> take
 *       |                        ^
 *       +--- for a waiting take -+
 *
 * One rule, applied whenever something changes: as many shells are being started as takes wait, plus, while nobody
 * holds the pool nor has held it in the last REST_MS, at most REFILLS_AT_ONCE towards the target. A started shell goes
 * to the oldest waiting take, else to the ready queue. A shell that dies in the queue is dropped and replaced; a start
 * that fails is told to the oldest waiting take, else tried again after a delay that doubles. Main thread only.
 */
#include "sfvmm/vm/shell_pool.h"

#include <string.h>

#define REFILLS_AT_ONCE 2u /* the host's other work goes on beside it */
#define STARTS_AT_ONCE  8u /* for takes: more at once only make each later */
#define REST_MS         500u /* new clones begin their work, those on other hosts may still be on their way */
#define RETRY_MS_FIRST  1000u
#define RETRY_MS_MAX    60000u
#define SHELL_INFIX     "-shell-" /* PREFIX-shell-N */

struct SfShellPool {
    int refs; /* one for each start under way, too, and one is while a take waits */
    SfLauncher *launcher;
    char *prefix;
    SfVmConfig *config;
    guint target;
    guint holds;
    guint starting;
    guint last_number;
    GQueue ready;   /* of SfVm */
    GQueue waiting; /* of GTask */
    guint rest_timer;
    guint retry_timer;
    guint retry_ms;
    gboolean closed;
};

static void pool_review(SfShellPool *pool);

SfShellPool *sf_shell_pool_ref(SfShellPool *pool)
{
    pool->refs++;
    return pool;
}

void sf_shell_pool_unref(SfShellPool *pool)
{
    if (pool && --pool->refs == 0) {
        sf_shell_pool_close(pool);
        sf_vm_config_unref(pool->config);
        g_free(pool->prefix);
        g_free(pool);
    }
}

static void on_shell_exited(SfVm *shell, const char *reason, gpointer data)
{
    SfShellPool *pool = data;

    if (g_queue_remove(&pool->ready, shell)) {
        g_message("shell %s has ended while it waited: %s", sf_vm_name(shell), reason);
        g_signal_handlers_disconnect_by_data(shell, pool);
        g_object_unref(shell);
        pool_review(pool);
    }
}

static void put_ready(SfShellPool *pool, SfVm *shell)
{
    g_signal_connect(shell, "exited", G_CALLBACK(on_shell_exited), pool);
    g_queue_push_tail(&pool->ready, g_object_ref(shell));
}

static SfVm *get_ready(SfShellPool *pool)
{
    SfVm *shell = g_queue_pop_head(&pool->ready);

    if (shell) {
        g_signal_handlers_disconnect_by_data(shell, pool);
    }
    return shell;
}

/* Ends the take; the pool must have another reference. */
static void take_end(GTask *task, SfVm *shell, GError *error)
{
    if (shell) {
        g_task_return_pointer(task, shell, g_object_unref);
    } else {
        g_task_return_error(task, error);
    }
    g_object_unref(task);
}

static GError *closed_error(SfShellPool *pool)
{
    return g_error_new(SF_VM_ERROR, SF_VM_ERROR_GONE, "pool of %s: it was closed", pool->prefix);
}

static gboolean on_retry(gpointer data)
{
    SfShellPool *pool = data;

    pool->retry_timer = 0;
    pool_review(pool);
    return G_SOURCE_REMOVE;
}

static gboolean on_rested(gpointer data)
{
    SfShellPool *pool = data;

    pool->rest_timer = 0;
    pool_review(pool);
    return G_SOURCE_REMOVE;
}

static void start_failed(SfShellPool *pool, GError *error)
{
    GTask *task = g_queue_pop_head(&pool->waiting);

    if (task) {
        take_end(task, NULL, error);
        return;
    }
    g_warning("pool of %s: %s; next try in %u ms", pool->prefix, error->message, pool->retry_ms);
    g_error_free(error);
    if (!pool->retry_timer) {
        pool->retry_timer = g_timeout_add(pool->retry_ms, on_retry, pool);
        pool->retry_ms = MIN(pool->retry_ms * 2, RETRY_MS_MAX);
    }
}

static void on_started(GObject *source, GAsyncResult *result, gpointer data)
{
    SfShellPool *pool = data;
    GError *error = NULL;
    g_autoptr(SfVm) shell = sf_launcher_start_finish(pool->launcher, result, &error);

    pool->starting--;
    if (pool->closed) {
        if (shell) {
            sf_vm_kill(shell);
        }
        g_clear_error(&error);
    } else if (!shell) {
        start_failed(pool, error);
        pool_review(pool);
    } else {
        GTask *task = g_queue_pop_head(&pool->waiting);
        pool->retry_ms = RETRY_MS_FIRST;
        if (task) {
            take_end(task, g_steal_pointer(&shell), NULL);
        } else {
            put_ready(pool, shell);
        }
        pool_review(pool);
    }
    sf_shell_pool_unref(pool);
}

static void start_one(SfShellPool *pool)
{
    g_autofree char *name = g_strdup_printf("%s" SHELL_INFIX "%u", pool->prefix, ++pool->last_number);

    pool->starting++;
    pool->refs++;
    sf_launcher_start_async(pool->launcher, name, SF_VM_SHELL, pool->config, on_started, pool);
}

static void pool_review(SfShellPool *pool)
{
    guint wanted = MIN(pool->waiting.length, STARTS_AT_ONCE);

    if (pool->closed) {
        return;
    }
    if (wanted == 0 && pool->holds == 0 && !pool->rest_timer && !pool->retry_timer &&
        pool->ready.length < pool->target) {
        wanted = MIN(pool->target - pool->ready.length, REFILLS_AT_ONCE);
    }
    while (pool->starting < wanted) {
        start_one(pool);
    }
}

SfShellPool *sf_shell_pool_new(SfLauncher *launcher, const char *prefix, SfVmConfig *config, guint target)
{
    SfShellPool *pool = g_new0(SfShellPool, 1);

    pool->refs = 1;
    pool->launcher = launcher;
    pool->prefix = g_strdup(prefix);
    pool->config = sf_vm_config_ref(config);
    pool->target = target;
    pool->retry_ms = RETRY_MS_FIRST;
    g_queue_init(&pool->ready);
    g_queue_init(&pool->waiting);
    pool_review(pool);
    return pool;
}

void sf_shell_pool_close(SfShellPool *pool)
{
    SfVm *shell;
    GTask *task;

    pool->closed = TRUE;
    g_clear_handle_id(&pool->rest_timer, g_source_remove);
    g_clear_handle_id(&pool->retry_timer, g_source_remove);
    while ((shell = get_ready(pool))) {
        sf_vm_kill(shell);
        g_object_unref(shell);
    }
    while ((task = g_queue_pop_head(&pool->waiting))) {
        take_end(task, NULL, closed_error(pool));
    }
}

void sf_shell_pool_foreach(SfShellPool *pool, void (*visit)(SfVm *shell, gpointer data), gpointer data)
{
    for (GList *shell = pool->ready.head; shell; shell = shell->next) {
        visit(shell->data, data);
    }
}

void sf_shell_pool_set_target(SfShellPool *pool, guint target)
{
    pool->target = target;
    while (pool->ready.length > target) {
        g_autoptr(SfVm) shell = get_ready(pool);
        sf_vm_kill(shell);
    }
    pool_review(pool);
}

guint sf_shell_pool_ready(SfShellPool *pool)
{
    return pool->ready.length;
}

guint sf_shell_pool_target(SfShellPool *pool)
{
    return pool->target;
}

void sf_shell_pool_give(SfShellPool *pool, SfVm *shell)
{
    g_autofree char *prefix = g_strdup_printf("%s" SHELL_INFIX, pool->prefix);
    const char *name = sf_vm_name(shell);

    if (!g_str_has_prefix(name, prefix)) { /* a clone's name, which will be given again */
        g_message("VM %s: sfvmmd ended when it was about to be loaded; killed", name);
        sf_vm_kill(shell);
        return;
    }
    /* The number must not be given again. */
    pool->last_number = MAX(pool->last_number, (guint)g_ascii_strtoull(name + strlen(prefix), NULL, 10));
    put_ready(pool, shell);
    pool_review(pool);
}

void sf_shell_pool_hold(SfShellPool *pool)
{
    pool->holds++;
}

void sf_shell_pool_release(SfShellPool *pool)
{
    g_assert(pool->holds > 0);
    pool->holds--;
    if (pool->holds == 0 && !pool->closed) {
        g_clear_handle_id(&pool->rest_timer, g_source_remove);
        pool->rest_timer = g_timeout_add(REST_MS, on_rested, pool);
    }
}

void sf_shell_pool_take_async(SfShellPool *pool, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    SfVm *shell;

    while ((shell = get_ready(pool)) && sf_vm_is_gone(shell)) {
        g_object_unref(shell);
    }
    if (shell) {
        take_end(task, shell, NULL);
    } else if (pool->closed) {
        take_end(task, NULL, closed_error(pool));
    } else {
        g_queue_push_tail(&pool->waiting, task);
    }
    pool_review(pool);
}

SfVm *sf_shell_pool_take_finish(SfShellPool *pool, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}
