/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The process of one sf-pager: started, watched, started anew when it dies, connected to.
 *
 * A process that dies again and again is given up ("failed") when RESTARTS_MAX have not lasted; clones that still
 * need it wait until sfvmmd ends them.
 */
#include "sfvmm/pager/pager_private.h"

#include <fcntl.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sfvmm/process/process.h"
#include "sfvmm/process/socket.h"
#include "sfvmm/wire/state_file.h"

#define FILE_SOCKET      "pager.sock"
#define RESTARTS_MAX     5     /* processes in a row that did not last */
#define RESTART_LASTS_MS 10000 /* a process that has lived so long counts from anew */

static gboolean save(SfPager *pager, GError **error)
{
    g_autoptr(JsonObject) object = json_object_new();
    g_autofree char *path = sf_pager_path(pager, SF_PAGER_FILE_JSON);

    json_object_set_string_member(object, "binary", pager->binary);
    json_object_set_int_member(object, "uid", pager->uid);
    json_object_set_int_member(object, "gid", pager->gid);
    json_object_set_int_member(object, "pid", pager->pid);
    json_object_set_int_member(object, "start_time", pager->start_time);
    json_object_set_int_member(object, "fault_seconds", pager->fault_seconds);
    return sf_state_write(path, object, error);
}

static void give_up(SfPager *pager, const char *reason)
{
    g_autofree char *text = g_strdup_printf("%s; given up after %u attempts", reason, pager->short_lives);

    g_warning("pager of %s: %s", pager->id, text);
    pager->failed = TRUE;
    g_signal_emit_by_name(pager, "failed", text);
}

static gboolean on_process_ended(int fd, GIOCondition condition, gpointer data)
{
    g_autoptr(SfPager) pager = g_object_ref(SF_PAGER(data));
    g_autofree char *reason = sf_process_reap(pager->pidfd, "sf-pager");
    g_autoptr(GError) error = NULL;
    gboolean short_life = g_get_monotonic_time() - pager->started < RESTART_LASTS_MS * 1000;

    pager->exit_source = 0;
    close(pager->pidfd);
    pager->pidfd = -1;
    pager->pid = 0;
    sf_pager_disconnect(pager, reason ? reason : "it has ended");
    if (pager->stopped) {
        return G_SOURCE_REMOVE;
    }
    pager->short_lives = short_life ? pager->short_lives + 1 : 1;
    if (pager->short_lives > RESTARTS_MAX) {
        give_up(pager, reason ? reason : "it has ended");
        return G_SOURCE_REMOVE;
    }
    if ((pager->listener < 0 && !sf_pager_listen(pager, &error)) || !sf_pager_start_process(pager, &error) ||
        !sf_pager_connect(pager, &error)) {
        give_up(pager, error->message);
        return G_SOURCE_REMOVE;
    }
    for (guint i = 0; i < pager->ledger->len; i++) {
        SfPagerOrder *entry = g_ptr_array_index(pager->ledger, i);
        sf_pager_send_request(pager, entry->request, entry->fds, entry->n_fds, NULL, NULL);
    }
    g_message("pager of %s: %s; started anew", pager->id, reason ? reason : "sf-pager has ended");
    g_signal_emit_by_name(pager, "restarted", reason ? reason : "it has ended");
    return G_SOURCE_REMOVE;
}

void sf_pager_watch_process(SfPager *pager, int pidfd)
{
    pager->pidfd = pidfd;
    pager->exit_source = g_unix_fd_add(pidfd, G_IO_IN, on_process_ended, pager);
}

typedef struct {
    SfPager *pager;
    GError *error; /* of the record */
} Start;

/* On record before it runs: a sfvmmd that is killed now finds it again. */
static void on_forked(pid_t pid, gpointer data)
{
    Start *start = data;

    start->pager->pid = pid;
    start->pager->start_time = sf_process_start_time(pid);
    save(start->pager, &start->error);
}

gboolean sf_pager_start_process(SfPager *pager, GError **error)
{
    g_autofree char *log_path = sf_pager_path(pager, "pager.log");
    g_autofree char *fault_seconds = g_strdup_printf("--fault-seconds=%u", pager->fault_seconds);
    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    g_autoptr(GArray) fds = g_array_new(FALSE, FALSE, sizeof(int));
    int directory = open(pager->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    Start start = { .pager = pager };
    SfProcessOptions process = { .program = pager->binary,
                                 .argv = argv,
                                 .fds = fds,
                                 .log = log,
                                 .uid = pager->uid,
                                 .gid = pager->gid,
                                 .forked = on_forked,
                                 .data = &start };
    int pidfd = -1;
    gboolean ok = directory >= 0 && log >= 0;

    if (!ok) {
        sf_pager_fail_errno(pager, error, "its directory or log can't be opened");
    } else {
        g_array_append_val(fds, pager->listener);
        g_array_append_val(fds, directory);
        g_ptr_array_add(argv, (gpointer) "sf-pager");
        g_ptr_array_add(argv, fault_seconds);
        g_ptr_array_add(argv, pager->id);
        g_ptr_array_add(argv, NULL);
        ok = sf_process_start(&process, &pager->pid, &pidfd, error);
    }
    if (directory >= 0) {
        close(directory);
    }
    if (log >= 0) {
        close(log);
    }
    if (!ok) {
        pager->pid = 0;
        g_clear_error(&start.error);
        return FALSE;
    }
    pager->started = g_get_monotonic_time();
    sf_pager_watch_process(pager, pidfd);
    if (start.error) {
        g_propagate_error(error, start.error);
        return FALSE;
    }
    return TRUE;
}

gboolean sf_pager_listen(SfPager *pager, GError **error)
{
    pager->listener = sf_socket_listen(pager->directory, FILE_SOCKET, SOCK_SEQPACKET | SOCK_NONBLOCK, 1, error);
    if (pager->listener < 0) {
        g_prefix_error(error, "pager of %s: ", pager->id);
    }
    return pager->listener >= 0;
}

gboolean sf_pager_connect(SfPager *pager, GError **error)
{
    pager->socket = sf_socket_connect(pager->directory, FILE_SOCKET, SOCK_SEQPACKET | SOCK_NONBLOCK, error);
    if (pager->socket < 0) {
        g_prefix_error(error, "pager of %s: ", pager->id);
        return FALSE;
    }
    sf_pager_read(pager);
    return TRUE;
}
