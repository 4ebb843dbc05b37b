/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     RUNDIR/nbd/ID/  server.json   pid, start time, exports: for the next sfvmmd (disk_server_record.c)
 *                     nbd.sock      where clones of this host connect (mode 0600, QEMU's user), or sf-pager (its user)
 *                     qmp.sock      ours
 *                     tls/          the page certificates, a copy that QEMU's user may read
 *                     log
 *
 * One process (disk_server_process.c), which is told what to serve (disk_server_exports.c): when it starts, and once
 * more when the disks that were announced are frozen.
 *
 * Its end: the last reference, then SIGKILL; nothing that it has is of value. If it dies by itself a new one is started
 * at the same address, at most RESTARTS_MAX times, and its clients connect again: their reads only took longer. What is
 * needed for that is kept: the listener, the chains, and their names. (A listener for other hosts is lost when sfvmmd
 * is restarted: then there is no new process, and clones elsewhere get input/output errors.)
 */
#include "sfvmm/vm/disk_server_private.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sfvmm/wire/state_file.h"

/* ---- the object ---- */

static void announced_free(gpointer data)
{
    SfDiskAnnounced *announced = data;

    g_free(announced->name);
    g_free(announced->node);
    g_free(announced);
}

SfDiskAnnounced *sf_disk_server_announced_add(SfDiskServer *server, const char *name, const char *node, guint64 size)
{
    SfDiskAnnounced *announced = g_new0(SfDiskAnnounced, 1);

    announced->name = g_strdup(name);
    announced->node = g_strdup(node);
    announced->size = size;
    g_ptr_array_add(server->announced, announced);
    return announced;
}

SfDiskServer *sf_disk_server_new(const SfLauncherOptions *options, const char *id)
{
    SfDiskServer *server = g_new0(SfDiskServer, 1);

    server->refs = 1;
    server->options = options;
    server->client_uid = options->uid;
    server->client_gid = options->gid;
    server->id = g_strdup(id);
    server->directory = g_build_filename(options->run_directory, SF_DISK_SERVER_FOLDER, id, NULL);
    server->socket = g_build_filename(server->directory, SF_DISK_SERVER_SOCKET, NULL);
    server->pidfd = server->listener = -1;
    server->chains = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);
    server->names = g_ptr_array_new_with_free_func(g_free);
    server->announced = g_ptr_array_new_with_free_func(announced_free);
    server->all = g_hash_table_ref(options->disk_servers);
    g_hash_table_insert(server->all, server->id, server);
    return server;
}

SfDiskServer *sf_disk_server_ref(SfDiskServer *server)
{
    server->refs++;
    return server;
}

void sf_disk_server_unref(SfDiskServer *server)
{
    if (!server || --server->refs > 0) {
        return;
    }
    if (g_hash_table_lookup(server->all, server->id) == server) {
        g_hash_table_remove(server->all, server->id);
    }
    g_hash_table_unref(server->all);
    g_clear_handle_id(&server->exit_source, g_source_remove);
    g_clear_handle_id(&server->restart_timer, g_source_remove);
    g_clear_pointer(&server->qmp, sf_qmp_free);
    if (server->listener >= 0) {
        close(server->listener);
    }
    if (server->pidfd >= 0) {
        syscall(SYS_pidfd_send_signal, server->pidfd, SIGKILL, NULL, 0);
        siginfo_t info;
        waitid(P_PIDFD, (id_t)server->pidfd, &info, WEXITED); /* fails at once when it is not our child */
        close(server->pidfd);
    }
    g_ptr_array_unref(server->chains);
    g_ptr_array_unref(server->names);
    g_ptr_array_unref(server->announced);
    sf_state_remove_folder(server->directory);
    g_strfreev(server->allowed);
    g_free(server->tls_directory);
    g_free(server->socket);
    g_free(server->directory);
    g_free(server->id);
    g_free(server);
}

/* ---- start and add ---- */

typedef struct {
    SfDiskServer *server;
    GError *error; /* of before the batch ran */
} AddOp;

static void add_op_free(gpointer data)
{
    AddOp *op = data;

    sf_disk_server_unref(op->server);
    g_clear_error(&op->error);
    g_free(op);
}

/* QEMU has all that it was given: from now on the exports have their content, whoever looks. */
static void forget_given(SfDiskServer *server)
{
    for (guint i = server->announced->len; i-- > 0;) {
        if (((const SfDiskAnnounced *)g_ptr_array_index(server->announced, i))->given) {
            g_ptr_array_remove_index(server->announced, i);
        }
    }
}

static void on_added(const GError *error, gpointer data)
{
    g_autoptr(GTask) task = data;
    AddOp *op = g_task_get_task_data(task);

    if (!op->error && !error) {
        forget_given(op->server);
    }
    sf_disk_server_save(op->server);
    if (op->error || error) {
        GError *failure = op->error ? g_steal_pointer(&op->error) : g_error_copy(error);
        g_prefix_error(&failure, "disk server %s: ", op->server->id);
        g_task_return_error(task, failure);
    } else {
        g_task_return_pointer(task, sf_disk_server_ref(op->server), (GDestroyNotify)sf_disk_server_unref);
    }
}

static GTask *add_task(SfDiskServer *server, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    AddOp *op = g_new0(AddOp, 1);

    op->server = sf_disk_server_ref(server);
    g_task_set_task_data(task, op, add_op_free);
    return task;
}

void sf_disk_server_add_async(SfDiskServer *server, const SfDiskExport *exports, guint n_exports,
                              GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = add_task(server, callback, data);
    AddOp *op = g_task_get_task_data(task);
    SfQmpBatch *batch;

    if (server->restart_timer) { /* it has died just now: what comes is for the new one */
        g_clear_handle_id(&server->restart_timer, g_source_remove);
        sf_disk_server_start_anew(server);
    }
    if (!server->qmp) {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_GONE, "disk server %s: it has ended", server->id);
        g_object_unref(task);
        return;
    }
    batch = sf_qmp_batch_new(server->qmp);
    sf_disk_server_add_exports(server, exports, n_exports, batch, &op->error);
    sf_disk_server_save(server);
    sf_qmp_batch_run(batch, on_added, task);
}

gboolean sf_disk_server_add_finish(SfDiskServer *server, GAsyncResult *result, GError **error)
{
    SfDiskServer *same = g_task_propagate_pointer(G_TASK(result), error);

    sf_disk_server_unref(same);
    return same != NULL;
}

/* Process, monitor, listener: orders are given at once; NULL + error, or a batch for more of them. */
static SfQmpBatch *start_serving(SfDiskServer *server, GError **error)
{
    SfQmpBatch *batch;

    if (!sf_disk_server_start_process(server, error) || !sf_disk_server_connect(server, error)) {
        return NULL;
    }
    batch = sf_qmp_batch_new(server->qmp);
    sf_disk_server_add_listener(server, batch);
    return batch;
}

static gboolean start(SfDiskServer *server, int listen_fd, const SfDiskExport *exports, guint n, GTask *task,
                      GError **error)
{
    AddOp *op = g_task_get_task_data(task);
    SfQmpBatch *batch;

    if (!sf_disk_server_make_directory(server, error)) {
        return FALSE;
    }
    if (listen_fd < 0) {
        if (!sf_disk_server_listen(server, error)) {
            return FALSE;
        }
    } else if ((server->listener = fcntl(listen_fd, F_DUPFD_CLOEXEC, 0)) < 0) {
        return sf_disk_server_fail_errno(error, "a listening socket");
    }
    batch = start_serving(server, error);
    if (!batch) {
        return FALSE;
    }
    sf_disk_server_add_exports(server, exports, n, batch, &op->error);
    sf_disk_server_save(server);
    sf_qmp_batch_run(batch, on_added, task);
    return TRUE;
}

/* ---- a new process in place of one that died ---- */

static void on_restarted(const GError *error, gpointer data)
{
    g_autoptr(SfDiskServer) server = data;

    if (error) {
        g_warning("disk server %s: started anew, but: %s", server->id, error->message);
    } else {
        g_message("disk server %s: serves again", server->id);
    }
}

void sf_disk_server_start_anew(SfDiskServer *server)
{
    g_autoptr(GError) error = NULL;
    SfQmpBatch *batch = NULL;

    if (server->listener >= 0 || sf_disk_server_listen(server, &error)) {
        batch = start_serving(server, &error);
    }
    for (guint i = 0; batch && !error && i < MIN(server->chains->len, server->names->len); i++) {
        const SfDiskChain *chain = g_ptr_array_index(server->chains, i);
        const char *name = g_ptr_array_index(server->names, i);
        if (chain->readonly) {
            sf_disk_server_add_frozen(name, chain, NULL, batch, &error);
        } else {
            sf_disk_server_add_cache(server, name, chain, batch, &error);
        }
    }
    for (guint i = 0; batch && !error && i < server->announced->len; i++) {
        const SfDiskAnnounced *announced = g_ptr_array_index(server->announced, i);
        if (!announced->given) {
            sf_disk_server_add_announced(announced, batch);
        }
    }
    if (error) {
        g_warning("disk server %s: can't be started anew: %s", server->id, error->message);
    }
    if (batch) {
        sf_qmp_batch_run(batch, on_restarted, sf_disk_server_ref(server));
    }
}

void sf_disk_server_start_async(SfLauncher *launcher, const SfDiskServerOptions *options, const SfDiskExport *exports,
                                guint n_exports, GAsyncReadyCallback callback, gpointer data)
{
    const SfLauncherOptions *host = sf_launcher_options(launcher);
    g_autoptr(SfDiskServer) server = NULL;
    GError *error = NULL;
    GTask *task;

    if (g_hash_table_contains(host->disk_servers, options->id)) {
        g_task_report_new_error(NULL, callback, data, NULL, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                "disk server %s: there is one already", options->id);
        return;
    }
    server = sf_disk_server_new(host, options->id);
    server->local = options->listen_fd < 0;
    if (options->client_uid) {
        server->client_uid = options->client_uid;
        server->client_gid = options->client_gid;
    }
    server->tls = options->listen_fd >= 0 && options->tls_directory;
    server->tls_directory = g_strdup(options->tls_directory);
    server->allowed = options->allowed ? g_strdupv((char **)options->allowed) : NULL;
    task = add_task(server, callback, data);
    if (!start(server, options->listen_fd, exports, n_exports, task, &error)) {
        g_prefix_error(&error, "disk server %s: ", server->id);
        g_task_return_error(task, error);
        g_object_unref(task);
    }
}

SfDiskServer *sf_disk_server_start_finish(GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

gboolean sf_disk_server_is_waiting(const SfDiskServer *server)
{
    return server->announced->len > 0;
}

/* ---- what clones get of it ---- */

char *sf_disk_server_uri(SfDiskServer *server, const char *name)
{
    g_autofree char *socket = g_uri_escape_string(server->socket, "/", FALSE);

    return g_strdup_printf("nbd+unix:///%s?socket=%s", name, socket);
}

SfDiskLayer *sf_disk_server_layer(SfDiskServer *server, const char *name)
{
    g_autofree char *uri = sf_disk_server_uri(server, name);
    SfDiskLayer *layer = sf_disk_layer_new(uri, SF_DISK_FORMAT_NBD, FALSE);

    if (!sf_disk_layer_keeps(layer)) {
        sf_disk_layer_keep(layer, sf_disk_server_ref(server), (GDestroyNotify)sf_disk_server_unref);
    }
    return layer;
}
