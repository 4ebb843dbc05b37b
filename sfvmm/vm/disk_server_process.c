/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The process of a disk server: its directory with certificates and sockets, its command line, its monitor.
 *
 * It is QEMU without a machine (-machine none), in QEMU's seccomp sandbox. qemu-storage-daemon would be the natural
 * program, but it knows no add-fd and no sandbox: it would have to open images by their paths, and so run as a user who
 * may read what the owners of all images keep to themselves.
 */
#include "sfvmm/vm/disk_server_private.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sfvmm/process/process.h"
#include "sfvmm/process/socket.h"

#define FILE_QMP       "qmp.sock"
#define FILE_LOG       "log"
#define TLS_DH_PARAMS  "dh-params.pem"
#define MODE_PASS      0711 /* QEMU's user may go through, and see nothing */
#define LISTEN_BACKLOG 64
#define PROGRAM        "the disk server"
#define RESTARTS_MAX   5u /* of one server; what dies more often has a reason that a restart won't cure */
#define RESTART_MS     200u

/*
 * RFC 7919's ffdhe2048. TLS 1.3 has no use for it, but a QEMU that finds no such file searches for primes of its own
 * before it serves, for half a second to three.
 */
static const char dh_params[] = "-----BEGIN DH PARAMETERS-----\n"
                                "MIIBDAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz\n"
                                "+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a\n"
                                "87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7\n"
                                "YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi\n"
                                "7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD\n"
                                "ssbzSibBsu/6iGtCOGEoXJf//////////wIBAgICAQA=\n"
                                "-----END DH PARAMETERS-----\n";

gboolean sf_disk_server_fail_errno(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", what, g_strerror(errno));
    return FALSE;
}

/* ---- its directory ---- */

static gboolean write_tls_file(SfDiskServer *server, const char *name, const char *text, gsize length, GError **error)
{
    g_autofree char *to = g_build_filename(server->directory, SF_DISK_SERVER_TLS, name, NULL);
    int fd;
    gboolean ok;

    fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    ok = fd >= 0 && write(fd, text, length) == (ssize_t)length &&
         (geteuid() != 0 || fchown(fd, server->options->uid, server->options->gid) == 0);
    ok = ok || sf_disk_server_fail_errno(error, to);
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

static gboolean copy_tls_file(SfDiskServer *server, const char *name, GError **error)
{
    g_autofree char *from = g_build_filename(server->tls_directory, name, NULL);
    g_autofree char *text = NULL;
    gsize length;
    gboolean ok;

    if (!g_file_get_contents(from, &text, &length, error)) {
        return FALSE;
    }
    ok = write_tls_file(server, name, text, length, error);
    explicit_bzero(text, length);
    return ok;
}

static gboolean copy_tls(SfDiskServer *server, GError **error)
{
    static const char *const files[] = { "ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem",
                                         "client-key.pem" };
    g_autofree char *folder = g_build_filename(server->directory, SF_DISK_SERVER_TLS, NULL);

    if (mkdir(folder, MODE_PASS) < 0 || chmod(folder, MODE_PASS) < 0) {
        return sf_disk_server_fail_errno(error, folder);
    }
    for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
        if (!copy_tls_file(server, files[i], error)) {
            return FALSE;
        }
    }
    return write_tls_file(server, TLS_DH_PARAMS, dh_params, strlen(dh_params), error);
}

gboolean sf_disk_server_make_directory(SfDiskServer *server, GError **error)
{
    g_autofree char *parent = g_path_get_dirname(server->directory);

    if (g_mkdir_with_parents(parent, MODE_PASS) < 0 || chmod(parent, MODE_PASS) < 0) {
        return sf_disk_server_fail_errno(error, parent);
    }
    if (mkdir(server->directory, MODE_PASS) < 0 || chmod(server->directory, MODE_PASS) < 0) {
        return sf_disk_server_fail_errno(error, server->directory);
    }
    return !server->tls_directory || copy_tls(server, error);
}

/* The socket that clones of this host connect to. */
gboolean sf_disk_server_listen(SfDiskServer *server, GError **error)
{
    server->listener = sf_socket_listen(server->directory, SF_DISK_SERVER_SOCKET, SOCK_STREAM, LISTEN_BACKLOG, error);
    if (server->listener < 0) {
        return FALSE;
    }
    return geteuid() != 0 || chown(server->socket, server->client_uid, server->client_gid) == 0 ||
           sf_disk_server_fail_errno(error, server->socket);
}

/* ---- the process ---- */

static gboolean on_restart_time(gpointer data)
{
    SfDiskServer *server = data;

    server->restart_timer = 0;
    sf_disk_server_start_anew(server);
    return G_SOURCE_REMOVE;
}

static gboolean on_process_ended(int fd, GIOCondition condition, gpointer data)
{
    SfDiskServer *server = data;
    g_autofree char *status = sf_process_reap(server->pidfd, PROGRAM);
    gboolean again = ++server->restarts <= RESTARTS_MAX && (server->local || server->listener >= 0);

    server->exit_source = 0;
    close(server->pidfd);
    server->pidfd = -1;
    g_warning("disk server %s: %s; %s/" FILE_LOG " says more. %s", server->id, status ? status : "it has ended",
              server->directory, again ? "It is started anew" : "Clones that read from it get errors now");
    g_clear_pointer(&server->qmp, sf_qmp_free);
    if (again) {
        server->restart_timer = g_timeout_add(RESTART_MS, on_restart_time, server);
    }
    return G_SOURCE_REMOVE;
}

void sf_disk_server_watch(SfDiskServer *server)
{
    server->exit_source = g_unix_fd_add(server->pidfd, G_IO_IN, on_process_ended, server);
}

static void add(GPtrArray *argv, const char *option, const char *value)
{
    g_ptr_array_add(argv, g_strdup(option));
    if (value) {
        g_ptr_array_add(argv, g_strdup(value));
    }
}

static GPtrArray *command_line(SfDiskServer *server)
{
    GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *name = g_strdup_printf("snowflock-nbd-%s", server->id);
    g_autofree char *monitor = g_strdup_printf("socket,id=qmp,fd=%d,server=on,wait=off", SF_PROCESS_FIRST_FD);

    add(argv, server->options->qemu, NULL);
    add(argv, "-name", name);
    add(argv, "-machine", "none");
    add(argv, "-accel", "tcg");
    add(argv, "-nodefaults", NULL);
    add(argv, "-no-user-config", NULL);
    add(argv, "-display", "none");
    add(argv, "-chardev", monitor);
    add(argv, "-mon", "chardev=qmp,mode=control");
    add(argv, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    add(argv, "-msg", "timestamp=on");
    g_ptr_array_add(argv, NULL);
    return argv;
}

/* On record before it runs: a sfvmmd that is killed now finds it again. */
static void on_forked(pid_t pid, gpointer data)
{
    SfDiskServer *server = data;

    server->pid = pid;
    server->start_time = sf_process_start_time(pid);
    sf_disk_server_save(server);
}

gboolean sf_disk_server_start_process(SfDiskServer *server, GError **error)
{
    g_autoptr(GPtrArray) argv = command_line(server);
    g_autoptr(GArray) fds = g_array_new(FALSE, FALSE, sizeof(int));
    g_autofree char *log = g_build_filename(server->directory, FILE_LOG, NULL);
    SfProcessOptions process = { .program = server->options->qemu,
                                 .argv = argv,
                                 .fds = fds,
                                 .uid = server->options->uid,
                                 .gid = server->options->gid,
                                 .forked = on_forked,
                                 .data = server };
    int qmp = sf_socket_listen(server->directory, FILE_QMP, SOCK_STREAM, LISTEN_BACKLOG, error);
    gboolean ok;

    if (qmp < 0) {
        return FALSE;
    }
    g_array_append_val(fds, qmp);
    process.log = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    ok = process.log >= 0 ? sf_process_start(&process, &server->pid, &server->pidfd, error)
                          : sf_disk_server_fail_errno(error, log);
    if (process.log >= 0) {
        close(process.log);
    }
    close(qmp);
    if (ok) {
        sf_disk_server_watch(server);
    }
    return ok;
}

/* ---- its monitor ---- */

static void on_qmp_event(const char *name, JsonObject *data, gpointer owner)
{
}

static void on_qmp_closed(const GError *reason, gpointer owner)
{
    SfDiskServer *server = owner;

    g_debug("disk server %s: %s", server->id, reason->message);
    g_clear_pointer(&server->qmp, sf_qmp_free);
}

static const SfQmpHandlers qmp_handlers = { on_qmp_event, on_qmp_closed };

gboolean sf_disk_server_connect(SfDiskServer *server, GError **error)
{
    int fd = sf_socket_connect(server->directory, FILE_QMP, SOCK_STREAM | SOCK_NONBLOCK, error);

    if (fd >= 0) {
        server->qmp = sf_qmp_new(fd, &qmp_handlers, server);
    }
    return fd >= 0;
}
