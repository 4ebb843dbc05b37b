/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     RUNDIR/nbd/ID/  server.json   pid, start time, exports: for the next sfvmmd
 *                     nbd.sock      where clones of this host connect (mode 0600, QEMU's user), or sf-pager (its user)
 *                     qmp.sock      ours
 *                     tls/          the page certificates, a copy that QEMU's user may read
 *                     log
 *
 * The process is QEMU without a machine (-machine none), in QEMU's seccomp sandbox. qemu-storage-daemon would be the
 * natural program, but it knows no add-fd and no sandbox: it would have to open images by their paths, and so run as a
 * user who may read what the owners of all images keep to themselves.
 *
 *     a chain of files        raw/qcow2 over qcow2 over ..., all read-only ---> export
 *     announced               nothing, later a chain <- raw ----------------------> export
 *     a URI                   nbd client <- backing - cache.qcow2 <- copy-on-read ---> export
 *
 * With a URI each block travels once: what any clone of this host has read is in the cache, an overlay of ours that
 * goes with the server. A connection that breaks is made anew, requests wait for RECONNECT_SECONDS before they fail.
 *
 * Its end: the last reference, then SIGKILL; nothing that it has is of value. If it dies by itself a new one is started
 * at the same address, at most RESTARTS_MAX times, and its clients connect again: their reads only took longer. What is
 * needed for that is kept: the listener, the chains, and their names. (A listener for other hosts is lost when sfvmmd
 * is restarted: then there is no new process, and clones elsewhere get input/output errors.)
 */
#include "sfvmm/vm/disk_server.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include "sfvmm/process/process.h"
#include "sfvmm/vm/vm_private.h"
#include "sfvmm/wire/state_file.h"

#define FOLDER         "nbd"
#define FILE_JSON      "server.json"
#define FILE_NBD       "nbd.sock"
#define FILE_QMP       "qmp.sock"
#define FILE_LOG       "log"
#define TLS_FOLDER     "tls"
#define TLS_SERVER_ID  "tls-server"
#define TLS_CLIENT_ID  "tls-client"
#define AUTHZ_ID       "hosts"
#define TLS_DH_PARAMS  "dh-params.pem"
#define TLS_PRIORITY   "NORMAL:-VERS-ALL:+VERS-TLS1.3"
#define MODE_PASS      0711 /* QEMU's user may go through, and see nothing */
#define LISTEN_BACKLOG 64
#define START_SECONDS  60 /* until it must answer; a busy host is slow */
#define PROGRAM        "the disk server"
#define RESTARTS_MAX   5u /* of one server; what dies more often has a reason that a restart won't cure */
#define RESTART_MS     200u

/* An export whose chain has not come yet, or of which QEMU has not said yet that it is under the export. */
typedef struct {
    char *name, *node;
    guint64 size;
    gboolean given; /* the chain has been sent: it is among the server's chains as well */
} Announced;

struct SfDiskServer {
    int refs;
    const SfLauncherOptions *options;
    GHashTable *all; /* options->disk_servers, a reference */
    char *id, *directory, *tls_directory, *socket;
    GStrv allowed;
    gboolean local; /* at a unix socket of its directory */
    uid_t client_uid; /* whose that is */
    gid_t client_gid;
    gboolean tls;   /* to hosts with certificates */
    pid_t pid;
    guint64 start_time;
    int pidfd;
    guint exit_source;
    int listener; /* for a new process; -1: lost in a restart of sfvmmd */
    guint restarts, restart_timer;
    SfQmp *qmp; /* NULL: it has died, or is not connected */
    GPtrArray
        *chains; /* of SfDiskChain: the layers that it has open; those that are not read-only are caches of a URI */
    GPtrArray *names;     /* of char *: exports, as many */
    GPtrArray *announced; /* of Announced */
    guint next_disk;
    gboolean has_client_tls;
};

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

/* ---- the object ---- */

static void announced_free(gpointer data)
{
    Announced *announced = data;

    g_free(announced->name);
    g_free(announced->node);
    g_free(announced);
}

static Announced *announced_add(SfDiskServer *server, const char *name, const char *node, guint64 size)
{
    Announced *announced = g_new0(Announced, 1);

    announced->name = g_strdup(name);
    announced->node = g_strdup(node);
    announced->size = size;
    g_ptr_array_add(server->announced, announced);
    return announced;
}

static SfDiskServer *server_new(const SfLauncherOptions *options, const char *id)
{
    SfDiskServer *server = g_new0(SfDiskServer, 1);

    server->refs = 1;
    server->options = options;
    server->client_uid = options->uid;
    server->client_gid = options->gid;
    server->id = g_strdup(id);
    server->directory = g_build_filename(options->run_directory, FOLDER, id, NULL);
    server->socket = g_build_filename(server->directory, FILE_NBD, NULL);
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

static JsonArray *announced_to_json(const SfDiskServer *server)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < server->announced->len; i++) {
        const Announced *announced = g_ptr_array_index(server->announced, i);
        JsonObject *object = json_object_new();
        json_object_set_string_member(object, "name", announced->name);
        json_object_set_string_member(object, "node", announced->node);
        json_object_set_int_member(object, "size", (gint64)announced->size);
        json_array_add_object_element(array, object);
    }
    return array;
}

static void announced_from_json(SfDiskServer *server, JsonNode *node)
{
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *element = json_array_get_element(array, i);
        JsonObject *object = JSON_NODE_HOLDS_OBJECT(element) ? json_node_get_object(element) : NULL;
        const char *name = object ? json_object_get_string_member_with_default(object, "name", NULL) : NULL;
        const char *id = object ? json_object_get_string_member_with_default(object, "node", NULL) : NULL;
        if (name && id) {
            announced_add(server, name, id, (guint64)json_object_get_int_member_with_default(object, "size", 0));
        }
    }
}

static void server_save(SfDiskServer *server)
{
    g_autofree char *path = g_build_filename(server->directory, FILE_JSON, NULL);
    g_autoptr(JsonObject) object = json_object_new();
    g_autoptr(GError) error = NULL;
    JsonArray *names = json_array_new(), *chains = json_array_new();

    json_object_set_int_member(object, "pid", server->pid);
    json_object_set_int_member(object, "start_time", (gint64)server->start_time);
    json_object_set_boolean_member(object, "local", server->local);
    json_object_set_int_member(object, "client_uid", server->client_uid);
    json_object_set_int_member(object, "client_gid", server->client_gid);
    for (guint i = 0; i < server->names->len; i++) {
        json_array_add_string_element(names, g_ptr_array_index(server->names, i));
    }
    json_object_set_array_member(object, "exports", names);
    for (guint i = 0; i < server->chains->len; i++) {
        json_array_add_object_element(chains, sf_disk_chain_to_json(g_ptr_array_index(server->chains, i)));
    }
    json_object_set_array_member(object, "chains", chains);
    json_object_set_array_member(object, "announced", announced_to_json(server));
    json_object_set_int_member(object, "next_disk", server->next_disk);
    if (!sf_state_write(path, object, &error)) {
        g_warning("disk server %s: %s; a restart of sfvmmd would lose it", server->id, error->message);
    }
}

static gboolean on_restart_time(gpointer data);

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

static void server_watch(SfDiskServer *server)
{
    server->exit_source = g_unix_fd_add(server->pidfd, G_IO_IN, on_process_ended, server);
}

static void close_fd(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

static gboolean fail_errno(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", what, g_strerror(errno));
    return FALSE;
}

/* ---- its directory ---- */

static gboolean write_tls_file(SfDiskServer *server, const char *name, const char *text, gsize length, GError **error)
{
    g_autofree char *to = g_build_filename(server->directory, TLS_FOLDER, name, NULL);
    int fd;
    gboolean ok;

    fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    ok = fd >= 0 && write(fd, text, length) == (ssize_t)length &&
         (geteuid() != 0 || fchown(fd, server->options->uid, server->options->gid) == 0);
    ok = ok || fail_errno(error, to);
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
    g_autofree char *folder = g_build_filename(server->directory, TLS_FOLDER, NULL);

    if (mkdir(folder, MODE_PASS) < 0 || chmod(folder, MODE_PASS) < 0) {
        return fail_errno(error, folder);
    }
    for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
        if (!copy_tls_file(server, files[i], error)) {
            return FALSE;
        }
    }
    return write_tls_file(server, TLS_DH_PARAMS, dh_params, strlen(dh_params), error);
}

static gboolean make_directory(SfDiskServer *server, GError **error)
{
    g_autofree char *parent = g_path_get_dirname(server->directory);

    if (g_mkdir_with_parents(parent, MODE_PASS) < 0 || chmod(parent, MODE_PASS) < 0) {
        return fail_errno(error, parent);
    }
    if (mkdir(server->directory, MODE_PASS) < 0 || chmod(server->directory, MODE_PASS) < 0) {
        return fail_errno(error, server->directory);
    }
    return !server->tls_directory || copy_tls(server, error);
}

/* A listening unix socket of that name in it; -1 + error. */
static int listen_at(SfDiskServer *server, const char *file, GError **error)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int directory = open(server->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = directory < 0 ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    mode_t mask = umask(0177);
    gboolean ok;

    g_snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", directory, file);
    ok = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, LISTEN_BACKLOG) == 0;
    umask(mask);
    if (!ok) {
        fail_errno(error, file);
        close_fd(fd);
        fd = -1;
    }
    close_fd(directory);
    return fd;
}

/* A socket of an earlier process is in its way. */
static int listen_anew(SfDiskServer *server, const char *file, GError **error)
{
    g_autofree char *path = g_build_filename(server->directory, file, NULL);

    g_unlink(path);
    return listen_at(server, file, error);
}

static int connect_to(SfDiskServer *server, const char *file, GError **error)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int directory = open(server->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = directory < 0 ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    g_snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", directory, file);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        fail_errno(error, file);
        close_fd(fd);
        fd = -1;
    }
    close_fd(directory);
    return fd;
}

/* ---- the process ---- */

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
    server_save(server);
}

static gboolean start_process(SfDiskServer *server, GError **error)
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
    int qmp = listen_anew(server, FILE_QMP, error);
    gboolean ok;

    if (qmp < 0) {
        return FALSE;
    }
    g_array_append_val(fds, qmp);
    process.log = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    ok = process.log >= 0 ? sf_process_start(&process, &server->pid, &server->pidfd, error) : fail_errno(error, log);
    close_fd(process.log);
    close(qmp);
    if (ok) {
        server_watch(server);
    }
    return ok;
}

/* ---- QMP ---- */

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

static void add_tls_object(SfDiskServer *server, SfQmpBatch *batch, const char *id, const char *endpoint)
{
    g_autofree char *folder = g_build_filename(server->directory, TLS_FOLDER, NULL);
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "qom-type", "tls-creds-x509");
    json_object_set_string_member(args, "id", id);
    json_object_set_string_member(args, "endpoint", endpoint);
    json_object_set_string_member(args, "dir", folder);
    json_object_set_boolean_member(args, "verify-peer", TRUE);
    json_object_set_string_member(args, "priority", TLS_PRIORITY);
    sf_qmp_batch_add(batch, "object-add", args, -1);
}

static void add_rule(JsonArray *rules, const char *format, const char *name)
{
    JsonObject *rule = json_object_new();
    g_autofree char *match = g_strdup_printf(format, name); /* a constant of ours */

    json_object_set_string_member(rule, "match", match);
    json_object_set_string_member(rule, "policy", "allow");
    json_object_set_string_member(rule, "format", "exact");
    json_array_add_object_element(rules, rule);
}

/* Hosts by the names in their page certificates; versions of GnuTLS differ in the order of a name's parts. */
static void add_authz(SfDiskServer *server, SfQmpBatch *batch)
{
    JsonObject *args = json_object_new();
    JsonArray *rules = json_array_new();

    for (char **name = server->allowed; name && *name; name++) {
        add_rule(rules, "CN=%s,OU=pages", *name);
        add_rule(rules, "OU=pages,CN=%s", *name);
    }
    json_object_set_string_member(args, "qom-type", "authz-list");
    json_object_set_string_member(args, "id", AUTHZ_ID);
    json_object_set_string_member(args, "policy", "deny");
    json_object_set_array_member(args, "rules", rules);
    sf_qmp_batch_add(batch, "object-add", args, -1);
}

static void add_nbd_server(SfDiskServer *server, SfQmpBatch *batch)
{
    JsonObject *getfd = json_object_new(), *args = json_object_new(), *address = json_object_new();
    JsonObject *data = json_object_new();

    json_object_set_string_member(getfd, "fdname", "listener");
    sf_qmp_batch_add(batch, "getfd", getfd, fcntl(server->listener, F_DUPFD_CLOEXEC, 0));
    json_object_set_string_member(data, "str", "listener");
    json_object_set_string_member(address, "type", "fd");
    json_object_set_object_member(address, "data", data);
    json_object_set_object_member(args, "addr", address);
    json_object_set_int_member(args, "max-connections", 0); /* no bound: the clones of a host are bounded elsewhere */
    if (server->tls) {
        json_object_set_string_member(args, "tls-creds", TLS_SERVER_ID);
        json_object_set_string_member(args, "tls-authz", AUTHZ_ID);
    }
    sf_qmp_batch_add(batch, "nbd-server-start", args, -1);
}

static void add_export(SfQmpBatch *batch, const char *name, const char *node)
{
    JsonObject *args = json_object_new();

    json_object_set_string_member(args, "type", "nbd");
    json_object_set_string_member(args, "id", node);
    json_object_set_string_member(args, "node-name", node);
    json_object_set_string_member(args, "name", name);
    json_object_set_boolean_member(args, "writable", FALSE);
    sf_qmp_batch_add(batch, "block-export-add", args, -1);
}

/* ---- an export of files ---- */

/* Nodes are named by us: two chains of one server may have the same id. */
static SfDiskChain *own_copy(SfDiskServer *server, const SfDiskChain *chain)
{
    SfDiskChain *copy = sf_disk_chain_copy(chain);

    g_free(copy->id);
    copy->id = g_strdup_printf("disk%u", server->next_disk++);
    copy->readonly = TRUE;
    return copy;
}

/* announced_or_null: the node that is exported already; else an export is added. */
static gboolean add_frozen(const char *name, const SfDiskChain *chain, const Announced *announced_or_null,
                           SfQmpBatch *batch, GError **error)
{
    SfVmDisk *disk = sf_vm_disk_new(sf_disk_chain_copy(chain));
    gboolean ok = sf_vm_disk_add_frozen(disk, batch, error);

    if (ok && announced_or_null) {
        sf_vm_disk_fill_empty_node(batch, announced_or_null->node, sf_vm_disk_top_node(disk));
    } else if (ok) {
        add_export(batch, name, sf_vm_disk_top_node(disk));
    }
    sf_vm_disk_free(disk);
    return ok;
}

static Announced *find_announced(const SfDiskServer *server, const char *name)
{
    for (guint i = 0; i < server->announced->len; i++) {
        Announced *announced = g_ptr_array_index(server->announced, i);
        if (strcmp(announced->name, name) == 0) {
            return announced;
        }
    }
    return NULL;
}

static gboolean export_chain(SfDiskServer *server, const SfDiskExport *export, SfQmpBatch *batch, GError **error)
{
    SfDiskChain *chain = own_copy(server, export->chain);
    Announced *announced = find_announced(server, export->name);
    gboolean ok;

    g_ptr_array_add(server->chains, chain);
    ok = add_frozen(export->name, chain, announced, batch, error);
    if (announced) {
        announced->given = TRUE;
    }
    return ok;
}

static void add_announced(const Announced *announced, SfQmpBatch *batch)
{
    sf_vm_disk_add_empty_node(batch, announced->node, announced->size);
    add_export(batch, announced->name, announced->node);
}

static void announce(SfDiskServer *server, const SfDiskExport *export, SfQmpBatch *batch)
{
    g_autofree char *node = g_strdup_printf("announced%u", server->next_disk++);

    add_announced(announced_add(server, export->name, node, export->size), batch);
}

/* ---- an export of a URI ---- */

static gboolean add_cache(SfDiskServer *server, const char *name, const SfDiskChain *chain, SfQmpBatch *batch,
                          GError **error)
{
    SfVmDisk *disk = sf_vm_disk_new(sf_disk_chain_copy(chain));
    g_autofree char *filter = g_strdup_printf("%s-cor", chain->id);
    gboolean ok = sf_vm_disk_add_cache(disk, server->tls_directory ? TLS_CLIENT_ID : NULL, batch, error);

    if (ok) {
        JsonObject *args = json_object_new();
        json_object_set_string_member(args, "driver", "copy-on-read");
        json_object_set_string_member(args, "node-name", filter);
        json_object_set_string_member(args, "file", sf_vm_disk_top_node(disk));
        sf_qmp_batch_add(batch, "blockdev-add", args, -1);
        add_export(batch, name, filter);
    }
    sf_vm_disk_free(disk);
    return ok;
}

static gboolean export_uri(SfDiskServer *server, const SfDiskExport *export, SfQmpBatch *batch, GError **error)
{
    g_autofree char *id = g_strdup_printf("disk%u", server->next_disk++);
    g_autofree char *template = g_strdup_printf("%s/%s.template", server->directory, id);
    g_autofree char *cache =
        g_strdup_printf("%s/nbd-%s-%s-%08x.qcow2", server->options->overlay_directory, server->id, id, g_random_int());
    SfDiskChain *chain = sf_disk_chain_new(id, export->size, FALSE);
    SfDiskLayer *overlay;

    if (g_mkdir_with_parents(server->options->overlay_directory, 0700) < 0) {
        sf_disk_chain_free(chain);
        return fail_errno(error, server->options->overlay_directory);
    }
    overlay = sf_disk_template_create(server->options->qemu_img, template, export->size, error)
                  ? sf_disk_overlay_create(template, cache, server->options->uid, server->options->gid, error)
                  : NULL;
    g_unlink(template);
    if (!overlay) {
        sf_disk_chain_free(chain);
        return FALSE;
    }
    g_ptr_array_add(chain->layers, sf_disk_layer_new(export->uri, SF_DISK_FORMAT_NBD, FALSE));
    g_ptr_array_add(chain->layers, overlay);
    g_ptr_array_add(server->chains, chain);
    return add_cache(server, export->name, chain, batch, error);
}

/* ---- start and add ---- */

static gboolean add_exports(SfDiskServer *server, const SfDiskExport *exports, guint n, SfQmpBatch *batch,
                            GError **error)
{
    for (guint i = 0; i < n; i++) {
        const SfDiskExport *export = &exports[i];
        if (export->uri && g_str_has_prefix(export->uri, "nbds") && !server->tls_directory) {
            g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "disk %s: %s needs certificates", export->name,
                        export->uri);
            return FALSE;
        }
        if (server->names->len + server->announced->len >= SF_DISK_SERVER_EXPORTS_MAX &&
            !find_announced(server, export->name)) {
            g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "disk %s: more than %u exports", export->name,
                        SF_DISK_SERVER_EXPORTS_MAX);
            return FALSE;
        }
        if (!export->uri && !export->chain) {
            announce(server, export, batch);
            continue;
        }
        if (export->uri ? !export_uri(server, export, batch, error) : !export_chain(server, export, batch, error)) {
            return FALSE;
        }
        g_ptr_array_add(server->names, g_strdup(export->name));
    }
    return TRUE;
}

static void start_anew(SfDiskServer *server);

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
        if (((const Announced *)g_ptr_array_index(server->announced, i))->given) {
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
    server_save(op->server);
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
        start_anew(server);
    }
    if (!server->qmp) {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_GONE, "disk server %s: it has ended", server->id);
        g_object_unref(task);
        return;
    }
    batch = sf_qmp_batch_new(server->qmp);
    add_exports(server, exports, n_exports, batch, &op->error);
    server_save(server);
    sf_qmp_batch_run(batch, on_added, task);
}

gboolean sf_disk_server_add_finish(SfDiskServer *server, GAsyncResult *result, GError **error)
{
    SfDiskServer *same = g_task_propagate_pointer(G_TASK(result), error);

    sf_disk_server_unref(same);
    return same != NULL;
}

/* The socket that clones of this host connect to. */
static gboolean listen_here(SfDiskServer *server, GError **error)
{
    server->listener = listen_anew(server, FILE_NBD, error);
    if (server->listener < 0) {
        return FALSE;
    }
    return geteuid() != 0 || chown(server->socket, server->client_uid, server->client_gid) == 0 ||
           fail_errno(error, server->socket);
}

/* Process, monitor, listener: orders are given at once; NULL + error, or a batch for more of them. */
static SfQmpBatch *start_serving(SfDiskServer *server, GError **error)
{
    SfQmpBatch *batch;
    int fd = start_process(server, error) ? connect_to(server, FILE_QMP, error) : -1;

    if (fd < 0) {
        return NULL;
    }
    server->qmp = sf_qmp_new(fd, &qmp_handlers, server);
    batch = sf_qmp_batch_new(server->qmp);
    if (server->tls) {
        add_tls_object(server, batch, TLS_SERVER_ID, "server");
        add_authz(server, batch);
    }
    if (server->tls_directory) {
        add_tls_object(server, batch, TLS_CLIENT_ID, "client");
    }
    add_nbd_server(server, batch);
    return batch;
}

static gboolean start(SfDiskServer *server, int listen_fd, const SfDiskExport *exports, guint n, GTask *task,
                      GError **error)
{
    AddOp *op = g_task_get_task_data(task);
    SfQmpBatch *batch;

    if (!make_directory(server, error)) {
        return FALSE;
    }
    if (listen_fd < 0) {
        if (!listen_here(server, error)) {
            return FALSE;
        }
    } else if ((server->listener = fcntl(listen_fd, F_DUPFD_CLOEXEC, 0)) < 0) {
        return fail_errno(error, "a listening socket");
    }
    batch = start_serving(server, error);
    if (!batch) {
        return FALSE;
    }
    add_exports(server, exports, n, batch, &op->error);
    server_save(server);
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

static void start_anew(SfDiskServer *server)
{
    g_autoptr(GError) error = NULL;
    SfQmpBatch *batch = NULL;

    if (server->listener >= 0 || listen_here(server, &error)) {
        batch = start_serving(server, &error);
    }
    for (guint i = 0; batch && !error && i < MIN(server->chains->len, server->names->len); i++) {
        const SfDiskChain *chain = g_ptr_array_index(server->chains, i);
        const char *name = g_ptr_array_index(server->names, i);
        if (chain->readonly) {
            add_frozen(name, chain, NULL, batch, &error);
        } else {
            add_cache(server, name, chain, batch, &error);
        }
    }
    for (guint i = 0; batch && !error && i < server->announced->len; i++) {
        const Announced *announced = g_ptr_array_index(server->announced, i);
        if (!announced->given) {
            add_announced(announced, batch);
        }
    }
    if (error) {
        g_warning("disk server %s: can't be started anew: %s", server->id, error->message);
    }
    if (batch) {
        sf_qmp_batch_run(batch, on_restarted, sf_disk_server_ref(server));
    }
}

static gboolean on_restart_time(gpointer data)
{
    SfDiskServer *server = data;

    server->restart_timer = 0;
    start_anew(server);
    return G_SOURCE_REMOVE;
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
    server = server_new(host, options->id);
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

/* ---- after a restart of sfvmmd ---- */

/* The copy of the certificates that its process has is there still. */
static void adopt_tls(SfDiskServer *server)
{
    g_autofree char *folder = g_build_filename(server->directory, TLS_FOLDER, NULL);

    if (g_file_test(folder, G_FILE_TEST_IS_DIR)) {
        server->tls_directory = g_steal_pointer(&folder);
    }
}

/* Chains that QEMU may have got or not: they are to be given again, and if QEMU has them it says so. */
static void drop_doubtful(SfDiskServer *server)
{
    for (guint i = MIN(server->names->len, server->chains->len); i-- > 0;) {
        if (find_announced(server, g_ptr_array_index(server->names, i))) {
            g_ptr_array_remove_index(server->names, i);
            g_ptr_array_remove_index(server->chains, i);
        }
    }
}

static gboolean restore(SfDiskServer *server, JsonObject *object)
{
    int fd;
    JsonNode *names = json_object_get_member(object, "exports");
    JsonNode *chains = json_object_get_member(object, "chains");

    for (guint i = 0; chains && JSON_NODE_HOLDS_ARRAY(chains) && i < json_array_get_length(json_node_get_array(chains));
         i++) {
        JsonNode *node = json_array_get_element(json_node_get_array(chains), i);
        SfDiskChain *chain =
            JSON_NODE_HOLDS_OBJECT(node) ? sf_disk_chain_from_json(json_node_get_object(node), NULL) : NULL;
        if (chain) {
            g_ptr_array_add(server->chains, chain);
        }
    }
    for (guint i = 0; names && JSON_NODE_HOLDS_ARRAY(names) && i < json_array_get_length(json_node_get_array(names));
         i++) {
        JsonNode *node = json_array_get_element(json_node_get_array(names), i);
        if (json_node_get_value_type(node) == G_TYPE_STRING) {
            g_ptr_array_add(server->names, g_strdup(json_node_get_string(node)));
        }
    }
    announced_from_json(server, json_object_get_member(object, "announced"));
    drop_doubtful(server);
    server->next_disk = (guint)json_object_get_int_member_with_default(object, "next_disk", server->chains->len);
    server->pid = (pid_t)json_object_get_int_member_with_default(object, "pid", 0);
    server->start_time = (guint64)json_object_get_int_member_with_default(object, "start_time", 0);
    server->pidfd = sf_process_open(server->pid, server->start_time);
    if (server->pidfd < 0) {
        return FALSE;
    }
    server_watch(server);
    server->local = json_object_get_boolean_member_with_default(object, "local", FALSE);
    server->client_uid = (uid_t)json_object_get_int_member_with_default(object, "client_uid", server->client_uid);
    server->client_gid = (gid_t)json_object_get_int_member_with_default(object, "client_gid", server->client_gid);
    adopt_tls(server);
    fd = connect_to(server, FILE_QMP, NULL);
    if (fd >= 0) {
        server->qmp = sf_qmp_new(fd, &qmp_handlers, server);
    }
    return TRUE;
}

SfDiskServer *sf_disk_server_find(SfLauncher *launcher, const char *id)
{
    const SfLauncherOptions *options = sf_launcher_options(launcher);
    g_autofree char *path = g_build_filename(options->run_directory, FOLDER, id, FILE_JSON, NULL);
    SfDiskServer *server = g_hash_table_lookup(options->disk_servers, id);
    g_autoptr(JsonObject) object = server ? NULL : sf_state_read(path, NULL);

    if (server) {
        return sf_disk_server_ref(server);
    }
    if (!object) {
        return NULL;
    }
    server = server_new(options, id);
    if (!restore(server, object)) {
        g_clear_pointer(&server, sf_disk_server_unref); /* removes the directory */
    }
    return server;
}

/* Layers that VMs of this host have in their chains get the server to hold. */
static void give_to_layers(SfDiskServer *server)
{
    for (guint i = 0; i < server->names->len; i++) {
        g_autofree char *uri = sf_disk_server_uri(server, g_ptr_array_index(server->names, i));
        SfDiskLayer *layer = sf_disk_layer_find(uri);
        if (layer && !sf_disk_layer_keeps(layer)) {
            sf_disk_layer_keep(layer, sf_disk_server_ref(server), (GDestroyNotify)sf_disk_server_unref);
        }
        sf_disk_layer_unref(layer);
    }
}

void sf_disk_servers_sweep(SfLauncher *launcher)
{
    g_autofree char *folder = g_build_filename(sf_launcher_options(launcher)->run_directory, FOLDER, NULL);
    g_auto(GStrv) ids = sf_state_list(folder);

    for (char **id = ids; *id; id++) {
        SfDiskServer *server = sf_disk_server_find(launcher, *id);
        if (server) {
            give_to_layers(server);
            sf_disk_server_unref(server);
        } else {
            g_autofree char *path = g_build_filename(folder, *id, NULL);
            sf_state_remove_folder(path);
        }
    }
}
