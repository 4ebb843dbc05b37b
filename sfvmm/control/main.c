/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sfvmmd: one per host (or per user). Its end ends nothing else: VMs, shells and clones go on, and the next sfvmmd on
 * the same run directory finds them again.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sfvmm/cluster/operators.h"
#include "sfvmm/control/cluster.h"
#include "sfvmm/control/guest_api.h"
#include "sfvmm/control/server.h"
#include "sfvmm/wire/certificate.h"

#define DEFAULT_CONFIG_FILE "/etc/snowflock/sfvmmd.conf"
#define SYSTEMD_FIRST_FD    3     /* sd_listen_fds(3) */
#define DAEMON_NICE         (-10) /* clones that run already must not delay those still to be loaded */

typedef struct {
    GMainLoop *loop;
    SfDaemonConfig *config;
    SfHost *host;
    SfCluster *cluster;
    SfGuestApi *guest_api;
    SfServer *server;
    SfOperators *operators; /* NULL: none from elsewhere */
    int status;
} Daemon;

static gboolean make_folder(const char *parent, const char *name, mode_t mode, GError **error)
{
    g_autofree char *path = name ? g_build_filename(parent, name, NULL) : g_strdup(parent);

    if (g_mkdir_with_parents(path, mode) < 0 || chmod(path, mode) < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno), "run directory \"%s\": can't make it: %s",
                    path, g_strerror(errno));
        return FALSE;
    }
    return TRUE;
}

/* QEMU's user passes through RUNDIR and vm/ to its own VM's directory; the rest is ours. */
static gboolean make_run_directory(const char *path, GError **error)
{
    return make_folder(path, NULL, 0711, error) && make_folder(path, "vm", 0711, error) &&
           make_folder(path, "families", 0700, error) && make_folder(path, "tickets", 0700, error);
}

/* The lock lives as long as the process: the descriptor is kept open on purpose. */
static gboolean lock_run_directory(const char *directory, GError **error)
{
    g_autofree char *path = g_build_filename(directory, "sfvmmd.lock", NULL);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd < 0) {
        g_set_error(error, G_FILE_ERROR, g_file_error_from_errno(errno), "lock \"%s\": %s", path, g_strerror(errno));
        return FALSE;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_ADDRESS_IN_USE,
                    "run directory \"%s\": another sfvmmd serves it; stop that one, or give this one its own --run-dir",
                    directory);
        close(fd);
        return FALSE;
    }
    return TRUE;
}

/* The control socket that systemd holds for us, or -1. */
static int systemd_socket(void)
{
    const char *pid = g_getenv("LISTEN_PID"), *n = g_getenv("LISTEN_FDS");
    int fd = -1;

    if (pid && n && strtol(pid, NULL, 10) == getpid() && strcmp(n, "1") == 0) {
        fd = SYSTEMD_FIRST_FD;
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    g_unsetenv("LISTEN_PID");
    g_unsetenv("LISTEN_FDS");
    return fd;
}

static gboolean on_terminate(gpointer data)
{
    Daemon *daemon = data;

    g_message("sfvmmd ends; its VMs go on");
    g_main_loop_quit(daemon->loop);
    return G_SOURCE_CONTINUE;
}

static void on_operator(int fd, guint32 user, gpointer data)
{
    sf_server_take(((Daemon *)data)->server, fd, user);
}

/* The way in for operators elsewhere, if the configuration wants one. */
static gboolean make_operators(Daemon *daemon, GError **error)
{
    const SfDaemonConfig *config = daemon->config;
    g_autofree char *certificates = NULL;

    if (!config->cluster.control_listen) {
        return TRUE;
    }
    certificates = g_build_filename(config->cluster.pki_directory, SF_CERTIFICATE_HOST, NULL);
    daemon->operators = sf_operators_new(
        &(SfOperatorsOptions){
            .name = config->cluster.name,
            .listen = config->cluster.control_listen,
            .directory = certificates,
            .users = config->cluster.operators,
        },
        error);
    return daemon->operators != NULL;
}

static void on_recovered(GObject *source, GAsyncResult *result, gpointer data)
{
    Daemon *daemon = data;
    g_autoptr(GError) error = NULL;

    sf_host_recover_finish(SF_HOST(source), result);
    daemon->server = sf_server_new(daemon->host, systemd_socket(), &error);
    if (!daemon->server) {
        g_printerr("sfvmmd: %s\n", error->message);
        daemon->status = EXIT_FAILURE;
        g_main_loop_quit(daemon->loop);
        return;
    }
    sf_cluster_start(daemon->cluster);
    if (daemon->operators) {
        sf_operators_start(daemon->operators, on_operator, daemon);
    }
    g_message("sfvmmd " SF_VERSION " serves \"%s\"", daemon->config->socket);
}

static int run(SfDaemonConfig *config)
{
    Daemon daemon = { .config = config, .status = EXIT_SUCCESS };
    SfLauncher *launcher = sf_launcher_exec_new(&config->launcher);
    g_autoptr(GError) error = NULL;

    daemon.loop = g_main_loop_new(NULL, FALSE);
    daemon.host = sf_host_new(config, launcher, sf_cluster_manager_new(config));
    daemon.cluster = sf_cluster_new(daemon.host, &error);
    if (!daemon.cluster || !make_operators(&daemon, &error)) {
        g_printerr("sfvmmd: %s\n", error->message);
        return EXIT_FAILURE;
    }
    daemon.guest_api = sf_guest_api_new(daemon.host);
    g_unix_signal_add(SIGTERM, on_terminate, &daemon);
    g_unix_signal_add(SIGINT, on_terminate, &daemon);
    signal(SIGPIPE, SIG_IGN);
    setpriority(PRIO_PROCESS, 0,
                DAEMON_NICE); /* as root or with CAP_SYS_NICE; without it a large fork takes a little longer */
    sf_host_recover_async(daemon.host, on_recovered, &daemon);
    g_main_loop_run(daemon.loop);

    /* The VMs must outlive us, so nothing of the host is torn down: the process ends, and with it all that it held. */
    g_clear_pointer(&daemon.operators, sf_operators_free);
    g_clear_pointer(&daemon.server, sf_server_free);
    return daemon.status;
}

int main(int argc, char **argv)
{
    g_autofree char *config_file = NULL, *run_directory = NULL;
    gboolean version = FALSE;
    const GOptionEntry options[] = {
        { "config", 'c', 0, G_OPTION_ARG_FILENAME, &config_file, "Read this file instead of " DEFAULT_CONFIG_FILE,
          "FILE" },
        { "run-dir", 'r', 0, G_OPTION_ARG_FILENAME, &run_directory, "Sockets and state of running VMs", "DIR" },
        { "version", 'V', 0, G_OPTION_ARG_NONE, &version, "Print the version", NULL },
        { NULL, 0, 0, 0, NULL, NULL, NULL },
    };
    g_autoptr(GOptionContext) context = g_option_context_new("- forks running virtual machines");
    g_autoptr(SfDaemonConfig) config = NULL;
    g_autoptr(GError) error = NULL;

    setlocale(LC_ALL, "");
    g_option_context_add_main_entries(context, options, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || argc > 1) {
        g_printerr("sfvmmd: %s\n", error ? error->message : "it takes options only; see --help");
        return 2;
    }
    if (version) {
        g_print("sfvmmd %s\n", SF_VERSION);
        return EXIT_SUCCESS;
    }
    config = sf_daemon_config_load(config_file ? config_file : DEFAULT_CONFIG_FILE, config_file != NULL, run_directory,
                                   &error);
    if (!config || !make_run_directory(config->launcher.run_directory, &error) ||
        !lock_run_directory(config->launcher.run_directory, &error)) {
        g_printerr("sfvmmd: %s\n", error->message);
        return EXIT_FAILURE;
    }
    return run(config);
}
