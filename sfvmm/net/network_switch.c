/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     sfvmmd --orders (wire/switch_message.h)--> DIRECTORY/NAME.sock, sf-switch --frames-- stream sockets -- QEMUs
 *
 * One sf-switch for each cluster, in a session of its own: it lives on when sfvmmd ends, and ends by itself when the
 * QEMUs of its members have gone too. A later sfvmmd finds it by its socket, whose name is the cluster's.
 *
 *     new      listener, log; exec; connect
 *     adopt    connect; (admit) ... settle
 *     free     END; the files go
 *
 * A port is a pair of sockets: one end is QEMU's, the other goes to sf-switch, none is kept here. When a process of
 * sf-switch ends before its cluster, its members stay without a network: QEMU's ends are closed for good. The log says
 * so.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sfvmm/net/network_kind.h"
#include "sfvmm/net/policy.h"
#include "sfvmm/process/process.h"
#include "sfvmm/process/socket.h"
#include "sfvmm/wire/switch_message.h"

#define PROGRAM        "sf-switch"
#define SOCKET_SUFFIX  ".sock"
#define LOG_SUFFIX     ".log"
#define ANSWER_SECONDS 30 /* it has nothing to do that takes long; the host may be busy */
#define MODE_DIRECTORY 0700
#define MODE_LOG       0600
#define DEVICE_PREFIX  "t"
#define DEVICES_TRIED  65536u

typedef struct Watch Watch;

typedef struct {
    SfNetwork base;
    char *directory;
    int socket;   /* to sf-switch; -1: there is none */
    Watch *watch; /* of its process; NULL: it has ended, or can't be watched */
    guint last_port;
} Switch;

static gboolean fail_errno(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", what, g_strerror(errno));
    return FALSE;
}

/* ---- files ---- */

static gboolean make_directory(const char *path, GError **error)
{
    return mkdir(path, MODE_DIRECTORY) == 0 || errno == EEXIST || fail_errno(error, path);
}

static void remove_files(const char *directory, const char *name)
{
    g_autofree char *socket = g_strconcat(directory, "/", name, SOCKET_SUFFIX, NULL);
    g_autofree char *log = g_strconcat(directory, "/", name, LOG_SUFFIX, NULL);

    unlink(socket);
    unlink(log);
}

static int listen_at(const char *directory, const char *name, GError **error)
{
    g_autofree char *file = g_strconcat(name, SOCKET_SUFFIX, NULL);

    remove_files(directory, name);
    return sf_socket_listen(directory, file, SOCK_SEQPACKET, 1, error);
}

static int connect_to(const char *directory, const char *name, GError **error)
{
    g_autofree char *file = g_strconcat(name, SOCKET_SUFFIX, NULL);
    struct timeval bound = { .tv_sec = ANSWER_SECONDS };
    int fd = sf_socket_connect(directory, file, SOCK_SEQPACKET, error);

    if (fd < 0) {
        g_prefix_error(error, PROGRAM " is not there: ");
    } else if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound)) < 0) {
        fail_errno(error, PROGRAM);
        close(fd);
        fd = -1;
    }
    return fd;
}

/* ---- the process ---- */

/* Until it has ended, as its network's object may go before it. */
struct Watch {
    Switch *of; /* NULL: it has gone, or left it */
};

static gboolean on_ended(gint pidfd, GIOCondition condition, gpointer data)
{
    Watch *watch = data;
    g_autofree char *how = sf_process_reap(pidfd, PROGRAM);

    if (watch->of) {
        g_warning("network of \"%s\": %s; its members have no network until they are started anew",
                  watch->of->base.name, how ? how : PROGRAM " has ended");
        watch->of->watch = NULL;
    }
    close(pidfd);
    return G_SOURCE_REMOVE;
}

/* Takes pidfd. */
static void watch_process(Switch *self, int pidfd)
{
    self->watch = g_new0(Watch, 1);
    self->watch->of = self;
    g_unix_fd_add_full(G_PRIORITY_DEFAULT, pidfd, G_IO_IN, on_ended, self->watch, g_free);
}

static GPtrArray *command_line(const SfNetworkOptions *options)
{
    GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *address = sf_net_address_to_text(options->address);

    g_ptr_array_add(argv, g_strdup(options->place->program));
    g_ptr_array_add(argv, g_strdup_printf("--address=%s/%u", address, options->prefix));
    g_ptr_array_add(argv, g_strdup_printf("--rate=%" G_GUINT64_FORMAT, options->rate));
    for (guint i = 0; options->outside && i < options->outside->len; i++) {
        g_autofree char *rule = sf_net_rule_to_text(&g_array_index(options->outside, SfNetRule, i));
        g_ptr_array_add(argv, g_strdup_printf("--outside=%s", rule));
    }
    g_ptr_array_add(argv, g_strdup(options->name));
    g_ptr_array_add(argv, NULL);
    return argv;
}

static gboolean start_process(Switch *self, const SfNetworkOptions *options, int listener, GError **error)
{
    g_autoptr(GPtrArray) argv = command_line(options);
    g_autoptr(GArray) fds = g_array_new(FALSE, FALSE, sizeof(int));
    g_autofree char *log = g_strconcat(self->directory, "/", options->name, LOG_SUFFIX, NULL);
    SfProcessOptions process = { .program = options->place->program,
                                 .argv = argv,
                                 .fds = fds,
                                 .uid = options->place->uid,
                                 .gid = options->place->gid };
    int pidfd;
    pid_t pid;
    gboolean ok;

    g_array_append_val(fds, listener);
    process.log = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, MODE_LOG);
    if (process.log < 0) {
        return fail_errno(error, log);
    }
    ok = sf_process_start(&process, &pid, &pidfd, error);
    close(process.log);
    if (ok) {
        watch_process(self, pidfd);
    }
    return ok;
}

/* That of who listens, which sf-switch does itself. */
static int process_of(int socket)
{
    struct ucred who;
    socklen_t size = sizeof(who);

    return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 ? (int)syscall(SYS_pidfd_open, who.pid, 0)
                                                                         : -1;
}

static gboolean order(Switch *self, guint32 what, const char *device, const guint8 *mac, guint32 address, int fd,
                      GError **error)
{
    struct sf_switch_order order = { .what = what, .address = address };

    g_strlcpy(order.device, device, sizeof(order.device));
    if (mac) {
        memcpy(order.mac, mac, sizeof(order.mac));
    }
    return sf_switch_order_send(self->socket, &order, fd, error);
}

/* ---- life ---- */

static Switch *switch_alloc(const SfNetworkOptions *options)
{
    Switch *self = g_new0(Switch, 1);

    sf_network_init(&self->base, &sf_network_switch, options);
    self->base.has_gateway = self->base.outside->len > 0;
    self->directory = g_strdup(options->place->directory);
    self->socket = -1;
    return self;
}

static SfNetwork *switch_new(const SfNetworkOptions *options, GError **error)
{
    Switch *self = switch_alloc(options);
    g_autoptr(SfNetwork) network = &self->base;
    int listener = make_directory(self->directory, error) ? listen_at(self->directory, options->name, error) : -1;
    gboolean ok = listener >= 0 && start_process(self, options, listener, error) &&
                  (self->socket = connect_to(self->directory, options->name, error)) >= 0;

    if (listener >= 0) {
        close(listener);
    }
    return ok ? g_steal_pointer(&network) : NULL;
}

static SfNetwork *switch_adopt(const SfNetworkOptions *options, int tap, GError **error)
{
    Switch *self = switch_alloc(options);
    g_autoptr(SfNetwork) network = &self->base;
    int pidfd;

    network->own = FALSE; /* until it is known: an error here must not cut off VMs that run */
    self->socket = connect_to(self->directory, options->name, error);
    if (self->socket < 0) {
        return NULL;
    }
    network->own = TRUE;
    pidfd = process_of(self->socket);
    if (pidfd >= 0) {
        watch_process(self, pidfd);
    }
    return g_steal_pointer(&network);
}

static gboolean switch_settle(SfNetwork *network, GError **error)
{
    return order((Switch *)network, SF_SWITCH_SETTLE, "", NULL, 0, -1, error);
}

static void end_switch(Switch *self)
{
    g_autoptr(GError) error = NULL;

    if (self->socket >= 0 && !order(self, SF_SWITCH_END, "", NULL, 0, -1, &error)) {
        g_message("network of \"%s\": %s", self->base.name, error->message);
    }
    remove_files(self->directory, self->base.name);
}

static void switch_free(SfNetwork *network)
{
    Switch *self = (Switch *)network;

    if (self->watch) {
        self->watch->of = NULL;
    }
    if (network->own) {
        end_switch(self);
    }
    if (self->socket >= 0) {
        close(self->socket);
    }
    g_free(self->directory);
}

/* ---- other hosts ---- */

static gboolean switch_span(SfNetwork *network, guint32 number, guint port, const char *const *hosts, GError **error)
{
    if (!hosts[0]) {
        return TRUE;
    }
    g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED,
                        "it can't span hosts, as sfvmmd has no privileges here");
    return FALSE;
}

static guint32 switch_number(const SfNetwork *network)
{
    return 0;
}

/* ---- members ---- */

/* An earlier sfvmmd may have given some names. */
static gboolean give_port(Switch *self, int socket, char **device, GError **error)
{
    for (guint i = 0; i < DEVICES_TRIED; i++) {
        g_autofree char *name = g_strdup_printf(DEVICE_PREFIX "%u", ++self->last_port);
        g_autoptr(GError) local = NULL;
        if (order(self, SF_SWITCH_OPEN, name, NULL, 0, socket, &local)) {
            *device = g_steal_pointer(&name);
            return TRUE;
        }
        if (!g_error_matches(local, G_IO_ERROR, G_IO_ERROR_EXISTS)) {
            g_propagate_error(error, g_steal_pointer(&local));
            return FALSE;
        }
    }
    g_set_error_literal(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE, "no name for a port is free");
    return FALSE;
}

static int switch_open_port(SfNetwork *network, char **device, GError **error)
{
    int pair[2];
    gboolean ok;

    if (!sf_socket_pair(SOCK_STREAM, pair, error)) {
        return -1;
    }
    ok = give_port((Switch *)network, pair[1], device, error);
    close(pair[1]);
    if (!ok) {
        close(pair[0]);
    }
    return ok ? pair[0] : -1;
}

static gboolean switch_admit(SfNetwork *network, const char *device, const guint8 *mac, guint32 address, GError **error)
{
    return order((Switch *)network, SF_SWITCH_ADMIT, device, mac, address, -1, error);
}

static void switch_dismiss(SfNetwork *network, const char *device)
{
    g_autoptr(GError) error = NULL;

    if (!order((Switch *)network, SF_SWITCH_DISMISS, device, NULL, 0, -1, &error)) {
        g_message("network of \"%s\": %s: %s", network->name, device, error->message);
    }
}

/* ---- leftovers ---- */

static void end_left_over(const char *directory, const char *name)
{
    struct sf_switch_order order = { .what = SF_SWITCH_END };
    int socket = connect_to(directory, name, NULL);

    if (socket >= 0) {
        sf_switch_order_send(socket, &order, -1, NULL);
        close(socket);
    }
    remove_files(directory, name);
}

void sf_network_switch_sweep(const char *directory, const char *const *live)
{
    g_autoptr(GDir) dir = g_dir_open(directory, 0, NULL);
    const char *file;

    while (dir && (file = g_dir_read_name(dir))) {
        if (g_str_has_suffix(file, SOCKET_SUFFIX)) {
            g_autofree char *name = g_strndup(file, strlen(file) - strlen(SOCKET_SUFFIX));
            if (!g_strv_contains(live, name)) {
                end_left_over(directory, name);
            }
        }
    }
}

const SfNetworkKind sf_network_switch = {
    .new = switch_new,
    .adopt = switch_adopt,
    .settle = switch_settle,
    .free = switch_free,
    .span = switch_span,
    .number = switch_number,
    .open_port = switch_open_port,
    .admit = switch_admit,
    .dismiss = switch_dismiss,
};
