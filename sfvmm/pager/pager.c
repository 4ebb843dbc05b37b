/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * One connection to one process. Every order is a message with descriptors (wire/pager_message.h). Orders that make
 * the process what it is go into the ledger first, then out; the process keeps the same ledger.
 *
 *     start    directory, listener, pager.json; exec; connect; (orders)
 *     dies     pidfd tells; a new process on the same listener; the whole ledger again; "restarted"
 *     adopt    pager.json -> pidfd, connect, recall 0, 1, 2 ... -> ledger
 *
 * Answers come in the order of the orders; an order that the process refuses is logged, and told to who asked.
 * Packets that the socket does not take are queued with copies of their descriptors: few, as each is small and the
 * process reads all the time.
 *
 * A process that dies again and again is given up ("failed") when RESTARTS_MAX have not lasted; clones that still
 * need it wait until sfvmmd ends them.
 *
 * Keys: sf-pager's user can't read those of sfvmmd. What it needs of them is copied into a directory of its own below
 * the run directory, and given as a descriptor.
 */
#include "sfvmm/pager/pager.h"

#include <errno.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include "sfvmm/process/process.h"
#include "sfvmm/wire/state_file.h"

#define RESTARTS_MAX     5      /* processes in a row that did not last */
#define RESTART_LASTS_MS 10000  /* a process that has lived so long counts from anew */
#define ANSWER_SECONDS   10     /* an adopted process has to answer one question */
#define KEY_BYTES_MAX    (1 << 20)
#define MODE_DIRECTORY   0700
#define MODE_KEY         0400
#define SAMPLES          1024 /* pages that are looked at for what was fetched in vain */
#define PAGEMAP_MAPPED   (3ull << 62) /* present, or swapped out */

typedef struct {
    SfPagerRequest *request;
    int fds[SF_PAGER_MAX_FDS];
    guint n_fds;
} Order;

/* An order under way. */
typedef struct {
    gint64 id;
    GTask *task; /* or NULL */
    char *what;  /* for the log */
} Waiting;

typedef struct {
    JsonObject *object;
    int fds[SF_PAGER_MAX_FDS];
    guint n_fds;
} Unsent;

struct _SfPager {
    GObject parent_instance;
    char *id, *binary, *directory;
    uid_t uid;
    gid_t gid;
    SfFaultHandler handler;

    int listener; /* of pager.sock */
    int socket;
    guint in_source, out_source;
    GQueue waiting; /* of Waiting */
    GQueue unsent;  /* of Unsent */
    gint64 last_id;

    pid_t pid;
    guint64 start_time;
    int pidfd;
    guint exit_source;
    gint64 started; /* g_get_monotonic_time() */
    guint short_lives;
    gboolean stopped;
    gboolean failed; /* given up */
    gboolean complete;
    guint n_keys;   /* names of directories of keys that are taken */
    GQueue early;   /* of JsonObject: events that came during the adoption */
    guint early_source;
    guint fault_seconds; /* 0: the default */

    GPtrArray *ledger; /* of Order */
    SfSnapshot *snapshot;
    SfPageCache *cache;
    GArray *fds; /* of sf_pager_fds() */
    SfPrefetch prefetch;
    JsonObject *multicast_stats; /* as told last; NULL: none */
};

G_DEFINE_FINAL_TYPE(SfPager, sf_pager, G_TYPE_OBJECT)

enum { SIGNAL_LOST, SIGNAL_COMPLETE, SIGNAL_RESTARTED, SIGNAL_FAILED, SIGNAL_SOURCES, SIGNAL_BLOB, N_SIGNALS };
static guint signals[N_SIGNALS];

static gboolean start_process(SfPager *pager, GError **error);
static gboolean connect_process(SfPager *pager, GError **error);
static gboolean listen_at_directory(SfPager *pager, GError **error);

/* ---- small things ---- */

static void order_free(gpointer data)
{
    Order *order = data;

    for (guint i = 0; i < order->n_fds; i++) {
        close(order->fds[i]);
    }
    sf_pager_request_free(order->request);
    g_free(order);
}

static void unsent_free(gpointer data)
{
    Unsent *unsent = data;

    for (guint i = 0; i < unsent->n_fds; i++) {
        close(unsent->fds[i]);
    }
    json_object_unref(unsent->object);
    g_free(unsent);
}

static gboolean fail_errno(SfPager *pager, GError **error, const char *what)
{
    int saved = errno;

    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(saved), "pager of %s: %s: %s", pager->id, what,
                g_strerror(saved));
    return FALSE;
}

static char *pager_path(const SfPager *pager, const char *file)
{
    return g_build_filename(pager->directory, file, NULL);
}

/* Copies descriptors; n_copied tells how far it came. */
static gboolean copy_fds(SfPager *pager, const int *fds, guint n, int *copies, guint *n_copied, GError **error)
{
    for (guint i = 0; i < n; i++) {
        copies[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (copies[i] < 0) {
            return fail_errno(pager, error, "a descriptor can't be duplicated; raise the limit of open files");
        }
        ++*n_copied;
    }
    return TRUE;
}

/* ---- the connection ---- */

static void waiting_end(Waiting *waiting, JsonObject *answer, GError *error)
{
    if (waiting->task && error) {
        g_task_return_error(waiting->task, error);
    } else if (waiting->task) {
        g_task_return_pointer(waiting->task, json_object_ref(answer), (GDestroyNotify)json_object_unref);
    } else {
        g_clear_error(&error);
    }
    g_clear_object(&waiting->task);
    g_free(waiting->what);
    g_free(waiting);
}

static void disconnect(SfPager *pager, const char *reason)
{
    Waiting *waiting;

    g_clear_handle_id(&pager->in_source, g_source_remove);
    g_clear_handle_id(&pager->out_source, g_source_remove);
    if (pager->socket >= 0) {
        close(pager->socket);
        pager->socket = -1;
    }
    g_queue_clear_full(&pager->unsent, unsent_free);
    while ((waiting = g_queue_pop_head(&pager->waiting))) {
        waiting_end(waiting, NULL,
                    g_error_new(G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED, "pager of %s: %s", pager->id, reason));
    }
}

static const char *text_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);

    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_STRING
               ? json_node_get_string(node)
               : NULL;
}

static guint64 int_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);

    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_INT64 &&
                   json_node_get_int(node) > 0
               ? json_node_get_int(node)
               : 0;
}

static gboolean flag_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);

    return node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_BOOLEAN &&
           json_node_get_boolean(node);
}

/* A reference, or NULL. */
static JsonObject *object_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);

    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_dup_object(node) : NULL;
}

/* Words of a process that talks to the network: for people, short and printable. */
static char *printable(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text ? text : "no reason given", -1);

    for (char *p = valid; *p; p++) {
        if (g_ascii_iscntrl(*p)) {
            *p = ' ';
        }
    }
    return g_utf8_substring(valid, 0, MIN(g_utf8_strlen(valid, -1), (glong)SF_PAGER_MAX_TEXT));
}

static void handle_event(SfPager *pager, const char *event, JsonObject *object)
{
    g_autofree char *reason = printable(text_of(object, "reason"));

    if (strcmp(event, "lost") == 0) {
        g_signal_emit(pager, signals[SIGNAL_LOST], 0, reason);
    } else if (strcmp(event, "complete") == 0) {
        pager->complete = TRUE;
        g_signal_emit(pager, signals[SIGNAL_COMPLETE], 0);
    } else if (strcmp(event, "sources") == 0) {
        guint up = int_of(object, "up");
        if (up == 0 && text_of(object, "reason")) {
            g_message("pager of %s: page source %s", pager->id, reason);
        }
        g_signal_emit(pager, signals[SIGNAL_SOURCES], 0, up);
    } else if (strcmp(event, "blob") == 0) {
        const char *text = text_of(object, "blob");
        guint64 id;
        if (text && g_ascii_string_to_unsigned(text, 16, 0, G_MAXUINT64, &id, NULL)) {
            g_signal_emit(pager, signals[SIGNAL_BLOB], 0, id, flag_of(object, "whole"));
        }
    }
}

static void handle_answer(SfPager *pager, SfPagerPacket *packet)
{
    Waiting *waiting = g_queue_peek_head(&pager->waiting);
    const char *failure = text_of(packet->object, "error");

    if (!waiting || (gint64)int_of(packet->object, "id") != waiting->id) {
        g_warning("pager of %s: it answers what nobody asked", pager->id);
        return;
    }
    g_queue_pop_head(&pager->waiting);
    if (failure) {
        g_autofree char *text = printable(failure);
        g_warning("pager of %s: %s: %s", pager->id, waiting->what, text);
        waiting_end(waiting, NULL,
                    g_error_new(G_IO_ERROR, G_IO_ERROR_FAILED, "pager of %s: %s: %s", pager->id, waiting->what, text));
        return;
    }
    if (waiting->task && packet->n_fds) {
        g_object_set_data(G_OBJECT(waiting->task), "fd", GINT_TO_POINTER(packet->fds[0] + 1));
        packet->fds[0] = -1;
    }
    waiting_end(waiting, packet->object, NULL);
}

static gboolean on_readable(int fd, GIOCondition condition, gpointer data)
{
    g_autoptr(SfPager) pager = g_object_ref(SF_PAGER(data));
    g_autoptr(GError) error = NULL;
    g_autoptr(SfPagerPacket) packet = sf_pager_receive(pager->socket, &error);
    const char *event = packet ? text_of(packet->object, "event") : NULL;

    if (event) {
        handle_event(pager, event, packet->object);
    } else if (packet) {
        handle_answer(pager, packet);
    } else if (!g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
        /* It has died, which the pidfd tells, or talks nonsense: then it is of no use any more. */
        pager->in_source = 0;
        disconnect(pager, error->message);
        if (pager->pidfd >= 0 && !pager->stopped) {
            syscall(SYS_pidfd_send_signal, pager->pidfd, SIGKILL, NULL, 0);
        }
        return G_SOURCE_REMOVE;
    }
    return pager->socket == fd ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static gboolean on_writable(int fd, GIOCondition condition, gpointer data)
{
    SfPager *pager = data;
    Unsent *unsent;

    while ((unsent = g_queue_peek_head(&pager->unsent))) {
        g_autoptr(GError) error = NULL;
        if (!sf_pager_send(pager->socket, unsent->object, unsent->fds, unsent->n_fds, &error) &&
            g_error_matches(error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
            return G_SOURCE_CONTINUE;
        }
        unsent_free(g_queue_pop_head(&pager->unsent));
    }
    pager->out_source = 0;
    return G_SOURCE_REMOVE;
}

/* A broken socket shows at the reading side. */
static gboolean send_or_queue(SfPager *pager, JsonObject *object, const int *fds, guint n_fds, GError **error)
{
    g_autoptr(GError) failure = NULL;

    if (!pager->out_source && (sf_pager_send(pager->socket, object, fds, n_fds, &failure) ||
                               !g_error_matches(failure, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))) {
        return TRUE;
    }
    Unsent *unsent = g_new0(Unsent, 1);
    unsent->object = json_object_ref(object);
    if (!copy_fds(pager, fds, n_fds, unsent->fds, &unsent->n_fds, error)) {
        unsent_free(unsent);
        return FALSE;
    }
    g_queue_push_tail(&pager->unsent, unsent);
    if (!pager->out_source) {
        pager->out_source = g_unix_fd_add(pager->socket, G_IO_OUT, on_writable, pager);
    }
    return TRUE;
}

/* Sends; the request gets its number here. task: gets the answer (a JsonObject), taken in every case; or NULL. */
static gboolean send_request(SfPager *pager, SfPagerRequest *request, const int *fds, guint n_fds, GTask *task,
                             GError **error)
{
    g_autoptr(JsonObject) object = NULL;
    g_autoptr(GError) failure = NULL;
    Waiting *waiting = g_new0(Waiting, 1);

    waiting->id = request->id = ++pager->last_id;
    waiting->task = task;
    object = sf_pager_request_format(request);
    waiting->what = g_strdup_printf("%s %s", text_of(object, "do"), request->text ? request->text : "");
    if (pager->socket < 0) {
        failure = g_error_new(G_IO_ERROR, G_IO_ERROR_NOT_CONNECTED, "pager of %s: it is not running", pager->id);
    } else {
        send_or_queue(pager, object, fds, n_fds, &failure);
    }
    if (failure) {
        g_propagate_error(error, g_error_copy(failure));
        waiting_end(waiting, NULL, g_steal_pointer(&failure));
        return FALSE;
    }
    g_queue_push_tail(&pager->waiting, waiting);
    return TRUE;
}

/* ---- the ledger ---- */

static void ledger_remove(SfPager *pager, SfPagerDo what, const char *text)
{
    for (guint i = pager->ledger->len; i-- > 0;) {
        const Order *order = g_ptr_array_index(pager->ledger, i);
        if (order->request->what == what && (!text || strcmp(order->request->text, text) == 0)) {
            g_ptr_array_remove_index(pager->ledger, i);
        }
    }
}

static const Order *ledger_find(SfPager *pager, SfPagerDo what, const char *text)
{
    for (guint i = 0; i < pager->ledger->len; i++) {
        const Order *order = g_ptr_array_index(pager->ledger, i);
        if (order->request->what == what && (!text || strcmp(order->request->text, text) == 0)) {
            return order;
        }
    }
    return NULL;
}

/*
 * Into the ledger and out. Takes the request; copies the descriptors. While the process is being replaced, the ledger
 * alone counts: TRUE.
 */
static gboolean order(SfPager *pager, SfPagerRequest *request, const int *fds, guint n_fds, GError **error)
{
    Order *entry = g_new0(Order, 1);

    entry->request = request;
    g_assert(n_fds == sf_pager_request_n_fds(request));
    if (pager->failed) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_CONNECTED, "pager of %s: it was given up", pager->id);
    }
    if (pager->failed || !copy_fds(pager, fds, n_fds, entry->fds, &entry->n_fds, error)) {
        order_free(entry);
        return FALSE;
    }
    g_ptr_array_add(pager->ledger, entry);
    if (pager->socket < 0) {
        return TRUE;
    }
    if (!send_request(pager, request, fds, n_fds, NULL, error)) {
        g_ptr_array_remove(pager->ledger, entry);
        return FALSE;
    }
    return TRUE;
}

/* ---- the process ---- */

static gboolean save(SfPager *pager, GError **error)
{
    g_autoptr(JsonObject) object = json_object_new();
    g_autofree char *path = pager_path(pager, "pager.json");

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
    g_signal_emit(pager, signals[SIGNAL_FAILED], 0, text);
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
    disconnect(pager, reason ? reason : "it has ended");
    if (pager->stopped) {
        return G_SOURCE_REMOVE;
    }
    pager->short_lives = short_life ? pager->short_lives + 1 : 1;
    if (pager->short_lives > RESTARTS_MAX) {
        give_up(pager, reason ? reason : "it has ended");
        return G_SOURCE_REMOVE;
    }
    if ((pager->listener < 0 && !listen_at_directory(pager, &error)) || !start_process(pager, &error) ||
        !connect_process(pager, &error)) {
        give_up(pager, error->message);
        return G_SOURCE_REMOVE;
    }
    for (guint i = 0; i < pager->ledger->len; i++) {
        Order *entry = g_ptr_array_index(pager->ledger, i);
        send_request(pager, entry->request, entry->fds, entry->n_fds, NULL, NULL);
    }
    g_message("pager of %s: %s; started anew", pager->id, reason ? reason : "sf-pager has ended");
    g_signal_emit(pager, signals[SIGNAL_RESTARTED], 0, reason ? reason : "it has ended");
    return G_SOURCE_REMOVE;
}

static void watch_process(SfPager *pager, int pidfd)
{
    pager->pidfd = pidfd;
    pager->exit_source = g_unix_fd_add(pidfd, G_IO_IN, on_process_ended, pager);
}

static gboolean start_process(SfPager *pager, GError **error)
{
    g_autofree char *log_path = pager_path(pager, "pager.log");
    g_autofree char *fault_seconds = g_strdup_printf("--fault-seconds=%u", pager->fault_seconds);
    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    g_autoptr(GArray) fds = g_array_new(FALSE, FALSE, sizeof(int));
    int directory = open(pager->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    SfProcessOptions process = { .program = pager->binary, .argv = argv, .fds = fds, .log = log,
                                 .uid = pager->uid, .gid = pager->gid };
    int pidfd = -1;
    gboolean ok = directory >= 0 && log >= 0;

    if (!ok) {
        fail_errno(pager, error, "its directory or log can't be opened");
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
        return FALSE;
    }
    pager->start_time = sf_process_start_time(pager->pid);
    pager->started = g_get_monotonic_time();
    watch_process(pager, pidfd);
    return save(pager, error);
}

/* By a short way: a run directory may have a longer path than a socket address can hold. */
static gboolean socket_address(SfPager *pager, struct sockaddr_un *address, int *directory, GError **error)
{
    address->sun_family = AF_UNIX;
    *directory = open(pager->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*directory < 0) {
        return fail_errno(pager, error, pager->directory);
    }
    g_snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/pager.sock", *directory);
    return TRUE;
}

static gboolean listen_at_directory(SfPager *pager, GError **error)
{
    struct sockaddr_un address = { 0 };
    int directory;
    gboolean ok;

    if (!socket_address(pager, &address, &directory, error)) {
        return FALSE;
    }
    unlink(address.sun_path); /* after an adoption: that of the process that has died */
    pager->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ok = (pager->listener >= 0 && bind(pager->listener, (struct sockaddr *)&address, sizeof(address)) == 0 &&
          listen(pager->listener, 1) == 0) ||
         fail_errno(pager, error, "pager.sock can't be made");
    close(directory);
    return ok;
}

static gboolean connect_process(SfPager *pager, GError **error)
{
    struct sockaddr_un address = { 0 };
    int directory;
    gboolean ok;

    if (!socket_address(pager, &address, &directory, error)) {
        return FALSE;
    }
    pager->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ok = pager->socket >= 0 && connect(pager->socket, (struct sockaddr *)&address, sizeof(address)) == 0;
    if (!ok) {
        fail_errno(pager, error, "pager.sock can't be connected to");
        if (pager->socket >= 0) {
            close(pager->socket);
            pager->socket = -1;
        }
    } else {
        pager->in_source = g_unix_fd_add(pager->socket, G_IO_IN | G_IO_HUP | G_IO_ERR, on_readable, pager);
    }
    close(directory);
    return ok;
}

/* ---- keys ---- */

static gboolean copy_key(SfPager *pager, const char *from, int directory, const char *name, GError **error)
{
    g_autofree char *bytes = NULL;
    gsize length;
    int fd;
    gboolean ok;

    if (!g_file_get_contents(from, &bytes, &length, error)) {
        return FALSE;
    }
    fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, MODE_KEY);
    ok = fd >= 0 && length <= KEY_BYTES_MAX && write(fd, bytes, length) == (ssize_t)length &&
         (geteuid() != 0 || fchown(fd, pager->uid, pager->gid) == 0);
    explicit_bzero(bytes, length);
    if (!ok) {
        fail_errno(pager, error, name);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

/*
 * A directory that sf-pager's user can read. names: of the files, NULL-terminated; from: the directory they are in, or
 * the one file. An open descriptor of it; -1 + error.
 */
static int copy_keys(SfPager *pager, const char *from, const char *const *names, gboolean is_directory, GError **error)
{
    g_autofree char *path = NULL;
    int directory = -1;

    if (!from) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT, "pager of %s: no keys are given", pager->id);
        return -1;
    }
    do { /* those of an earlier sfvmmd are there still */
        g_autofree char *name = g_strdup_printf("tls-%u", pager->n_keys++);
        g_free(path);
        path = pager_path(pager, name);
        errno = 0;
    } while (mkdir(path, MODE_DIRECTORY) < 0 && errno == EEXIST);
    if (errno == 0) {
        directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    if (directory < 0) {
        fail_errno(pager, error, path);
        return -1;
    }
    for (; *names; names++) {
        g_autofree char *file = is_directory ? g_build_filename(from, *names, NULL) : g_strdup(from);
        if (!copy_key(pager, file, directory, *names, error)) {
            close(directory);
            return -1;
        }
    }
    if (geteuid() == 0 && fchown(directory, pager->uid, pager->gid) < 0) {
        fail_errno(pager, error, path);
        close(directory);
        return -1;
    }
    return directory;
}

/* Appends the descriptor of what `security` needs; nothing for PLAIN. */
static gboolean add_keys(SfPager *pager, SfPagerSecurity security, const char *keys, gboolean server, int *fds,
                         guint *n_fds, GError **error)
{
    static const char *const server_files[] = { "ca-cert.pem", "server-cert.pem", "server-key.pem", NULL };
    static const char *const client_files[] = { "ca-cert.pem", "client-cert.pem", "client-key.pem", NULL };
    static const char *const psk_files[] = { SF_PAGER_KEYS_FILE, NULL };
    int fd;

    if (security == SF_PAGER_PLAIN) {
        return TRUE;
    }
    fd = security == SF_PAGER_PSK ? copy_keys(pager, keys, psk_files, FALSE, error)
                                  : copy_keys(pager, keys, server ? server_files : client_files, TRUE, error);
    if (fd < 0) {
        return FALSE;
    }
    fds[(*n_fds)++] = fd;
    return TRUE;
}

static SfPagerRequest *request_new(SfPagerDo what, const char *text)
{
    SfPagerRequest *request = g_new0(SfPagerRequest, 1);

    request->what = what;
    request->text = g_strdup(text);
    return request;
}

static void close_fds(int *fds, guint n)
{
    for (guint i = 0; i < n; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
}

gboolean sf_pager_serve(SfPager *pager, int listen_fd, SfPagerSecurity security, const char *keys, GError **error)
{
    SfPagerRequest *request = request_new(SF_PAGER_DO_SERVE, NULL);
    int fds[2] = { listen_fd };
    guint n = 1;
    gboolean ok = FALSE;

    request->security = security;
    if (ledger_find(pager, SF_PAGER_DO_SERVE, NULL)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_EXISTS, "pager of %s: it serves already", pager->id);
    } else {
        ok = add_keys(pager, security, keys, TRUE, fds, &n, error);
    }
    if (ok) {
        ok = order(pager, request, fds, n, error);
    } else {
        sf_pager_request_free(request);
    }
    close_fds(fds, n);
    return ok;
}

guint sf_pager_port(SfPager *pager)
{
    const Order *entry = ledger_find(pager, SF_PAGER_DO_SERVE, NULL);
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);

    if (!entry || getsockname(entry->fds[0], (struct sockaddr *)&address, &length) < 0) {
        return 0;
    }
    switch (address.ss_family) {
    case AF_INET6:
        return ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
    case AF_INET:
        return ntohs(((struct sockaddr_in *)&address)->sin_port);
    default:
        return 0;
    }
}

/* ---- start and stop ---- */

static SfPager *pager_new(const char *run_directory, const char *snapshot)
{
    SfPager *pager = g_object_new(SF_TYPE_PAGER, NULL);

    pager->id = g_strdup(snapshot);
    pager->handler.id = pager->id;
    pager->directory = g_build_filename(run_directory, "pager", snapshot, NULL);
    return pager;
}

static gboolean pager_start(SfPager *pager, const SfPagerOptions *options, GError **error)
{
    sf_state_remove_folder(pager->directory);
    if (g_mkdir_with_parents(pager->directory, MODE_DIRECTORY) < 0) {
        return fail_errno(pager, error, pager->directory);
    }
    return listen_at_directory(pager, error) && start_process(pager, error) && connect_process(pager, error);
}

SfPager *sf_pager_start(const SfPagerOptions *options, GError **error)
{
    g_autoptr(SfPager) pager = pager_new(options->run_directory, options->snapshot);
    gboolean ok;

    pager->binary = g_strdup(options->binary);
    pager->uid = options->uid;
    pager->gid = options->gid;
    pager->fault_seconds = options->fault_seconds;
    ok = pager_start(pager, options, error);
    if (ok && options->listen_fd >= 0) {
        ok = sf_pager_serve(pager, options->listen_fd, options->security, options->keys, error);
    } else if (options->listen_fd >= 0) {
        close(options->listen_fd);
    }
    if (!ok) {
        sf_pager_stop(pager);
        return NULL;
    }
    return g_steal_pointer(&pager);
}

void sf_pager_stop(SfPager *pager)
{
    pager->stopped = TRUE;
    disconnect(pager, "it is stopped");
    g_clear_handle_id(&pager->exit_source, g_source_remove);
    g_clear_handle_id(&pager->early_source, g_source_remove);
    if (pager->pidfd >= 0) {
        g_autofree char *reason = NULL;
        syscall(SYS_pidfd_send_signal, pager->pidfd, SIGKILL, NULL, 0);
        for (guint i = 0; i < 100 && pager->pid && !reason; i++) { /* a child of ours is gone within ms */
            reason = sf_process_reap(pager->pidfd, "sf-pager");
            if (!reason) {
                g_usleep(1000);
            }
        }
        close(pager->pidfd);
        pager->pidfd = -1;
        pager->pid = 0;
    }
    if (pager->listener >= 0) {
        close(pager->listener);
        pager->listener = -1;
    }
    g_ptr_array_set_size(pager->ledger, 0);
    g_clear_pointer(&pager->snapshot, sf_snapshot_unref);
    g_clear_pointer(&pager->cache, sf_page_cache_unref);
    sf_state_remove_folder(pager->directory);
}

const char *sf_pager_snapshot_id(SfPager *pager)
{
    return pager->id;
}

pid_t sf_pager_pid(SfPager *pager)
{
    return pager->pid;
}

/* ---- adoption ---- */

/* One question to an adopted process, in a blocking manner. */
static SfPagerPacket *ask(SfPager *pager, SfPagerRequest *request, GError **error)
{
    g_autoptr(JsonObject) object = NULL;

    request->id = ++pager->last_id;
    object = sf_pager_request_format(request);
    if (!sf_pager_send(pager->socket, object, NULL, 0, error)) {
        return NULL;
    }
    for (;;) {
        GPollFD poll = { .fd = pager->socket, .events = G_IO_IN };
        if (g_poll(&poll, 1, ANSWER_SECONDS * 1000) <= 0) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_TIMED_OUT, "pager of %s: no answer for %d s", pager->id,
                        ANSWER_SECONDS);
            return NULL;
        }
        g_autoptr(SfPagerPacket) packet = sf_pager_receive(pager->socket, error);
        if (!packet) {
            return NULL;
        }
        if (text_of(packet->object, "event")) {
            g_queue_push_tail(&pager->early, json_object_ref(packet->object));
        } else if ((gint64)int_of(packet->object, "id") == request->id) {
            return g_steal_pointer(&packet);
        }
    }
}

/* FALSE without error: that was the last. */
static gboolean recall(SfPager *pager, guint index, GError **error)
{
    g_autoptr(SfPagerRequest) question = request_new(SF_PAGER_DO_RECALL, NULL);
    g_autoptr(SfPagerPacket) packet = NULL;
    Order *entry;

    question->number = index;
    packet = ask(pager, question, error);
    if (!packet || flag_of(packet->object, "last")) {
        return FALSE;
    }
    JsonNode *node = json_object_get_member(packet->object, "message");
    SfPagerRequest *request = node && JSON_NODE_HOLDS_OBJECT(node)
                                  ? sf_pager_request_parse(json_node_get_object(node), packet->n_fds, error)
                                  : NULL;
    if (!request) {
        g_prefix_error(error, "pager of %s: recalled order %u: ", pager->id, index);
        return FALSE;
    }
    entry = g_new0(Order, 1);
    entry->request = request;
    entry->n_fds = packet->n_fds;
    memcpy(entry->fds, packet->fds, packet->n_fds * sizeof(int));
    packet->n_fds = 0;
    g_ptr_array_add(pager->ledger, entry);
    return TRUE;
}

/* Where the descriptors of a block begin in the order `snapshot`. */
static guint next_block_fds(const SfPagerBlock *block, guint at)
{
    return at + 1 + !!block->is_cache + 2 * block->n_layers;
}

static gboolean rebuild_cache(SfPager *pager, GError **error)
{
    const Order *entry = ledger_find(pager, SF_PAGER_DO_SNAPSHOT, NULL);
    SfCachedBlock blocks[SF_QC_MAX_BLOCKS] = { 0 };
    guint at = 1, n = 0;

    for (guint i = 0; entry && i < entry->request->n_blocks; i++) {
        const SfPagerBlock *block = &entry->request->blocks[i];
        if (block->is_cache) {
            memcpy(blocks[n].id, block->id, sizeof(block->id));
            blocks[n].length = block->length;
            blocks[n].n_present = block->n_present;
            blocks[n].memory = fcntl(entry->fds[at], F_DUPFD_CLOEXEC, 0);
            blocks[n].present = fcntl(entry->fds[at + 1], F_DUPFD_CLOEXEC, 0);
            n++;
        }
        at = next_block_fds(block, at);
    }
    if (n > 0) {
        pager->cache = sf_page_cache_new_from_fds(blocks, n, error);
    }
    return n == 0 || pager->cache;
}

static gboolean pager_adopt(SfPager *pager, GError **error)
{
    g_autofree char *path = pager_path(pager, "pager.json");
    g_autoptr(JsonObject) object = sf_state_read(path, error);
    g_autoptr(GError) failure = NULL;
    int pidfd;

    if (!object) {
        return FALSE;
    }
    pager->binary = g_strdup(text_of(object, "binary"));
    pager->uid = int_of(object, "uid");
    pager->gid = int_of(object, "gid");
    pager->pid = int_of(object, "pid");
    pager->start_time = int_of(object, "start_time");
    pager->fault_seconds = int_of(object, "fault_seconds");
    pidfd = sf_process_open(pager->pid, pager->start_time);
    if (!pager->binary || pidfd < 0) {
        pager->pid = 0;
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND, "pager of %s: it ended while sfvmmd was not running",
                    pager->id);
        return FALSE;
    }
    watch_process(pager, pidfd);
    if (!connect_process(pager, error)) {
        return FALSE;
    }
    for (guint i = 0; recall(pager, i, &failure); i++) {
    }
    if (failure) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    return rebuild_cache(pager, error);
}

/* When those who took it over have connected to its signals. */
static gboolean on_early(gpointer data)
{
    g_autoptr(SfPager) pager = g_object_ref(SF_PAGER(data));
    JsonObject *object;

    pager->early_source = 0;
    while ((object = g_queue_pop_head(&pager->early))) {
        handle_event(pager, text_of(object, "event"), object);
        json_object_unref(object);
    }
    return G_SOURCE_REMOVE;
}

SfPager *sf_pager_adopt(const char *run_directory, const char *snapshot, GError **error)
{
    g_autoptr(SfPager) pager = pager_new(run_directory, snapshot);
    const Order *prefetch;

    if (!pager_adopt(pager, error)) {
        sf_pager_stop(pager);
        return NULL;
    }
    pager->early_source = g_idle_add(on_early, pager);
    prefetch = ledger_find(pager, SF_PAGER_DO_PREFETCH, NULL);
    if (prefetch) {
        pager->prefetch = (prefetch->request->working_set ? SF_PREFETCH_WORKING_SET : 0) |
                          (prefetch->request->neighbours ? SF_PREFETCH_NEIGHBOURS : 0) |
                          (prefetch->request->complete ? SF_PREFETCH_COMPLETE : 0);
    }
    return g_steal_pointer(&pager);
}

gboolean sf_pager_is_running(const char *run_directory, const char *snapshot)
{
    g_autofree char *path = g_build_filename(run_directory, "pager", snapshot, "pager.json", NULL);
    g_autoptr(JsonObject) object = sf_state_read(path, NULL);
    int pidfd = object ? sf_process_open((pid_t)int_of(object, "pid"), int_of(object, "start_time")) : -1;

    if (pidfd >= 0) {
        close(pidfd);
    }
    return pidfd >= 0;
}

gboolean sf_pager_is_complete(SfPager *pager)
{
    return pager->complete;
}

SfSnapshot *sf_pager_snapshot(SfPager *pager)
{
    return pager->snapshot;
}

SfPageCache *sf_pager_cache(SfPager *pager)
{
    return pager->cache;
}

const int *sf_pager_fds(SfPager *pager, guint *n_fds)
{
    const Order *entry = ledger_find(pager, SF_PAGER_DO_SNAPSHOT, NULL);

    *n_fds = entry ? entry->n_fds : 0;
    return entry ? entry->fds : NULL;
}

void sf_pager_keep_snapshot(SfPager *pager, SfSnapshot *snapshot)
{
    g_clear_pointer(&pager->snapshot, sf_snapshot_unref);
    pager->snapshot = sf_snapshot_ref(snapshot);
}

gboolean sf_pager_is_attached(SfPager *pager, const char *vm)
{
    return ledger_find(pager, SF_PAGER_DO_ATTACH, vm) != NULL;
}

/* ---- orders ---- */

/* One block of the snapshot, and its descriptors, which stay the snapshot's. */
static void describe_block(const SfSnapshot *snapshot, guint index, SfPagerBlock *block, int *fds, guint *n)
{
    const SfBlock *from = &snapshot->blocks[index];

    memcpy(block->id, from->id, sizeof(block->id));
    block->length = from->length;
    block->is_cache = snapshot->cache != NULL;
    if (snapshot->cache) {
        const SfCachedBlock *cached = &snapshot->cache->blocks[index];
        block->n_present = cached->n_present;
        fds[(*n)++] = cached->memory;
        fds[(*n)++] = cached->present;
    } else {
        fds[(*n)++] = from->base;
    }
    block->n_layers = from->n_layers;
    for (guint i = 0; i < from->n_layers; i++) {
        block->n_extents[i] = from->layers[i].n_extents;
        fds[(*n)++] = from->layers[i].delta;
        fds[(*n)++] = from->layers[i].extents;
    }
}

gboolean sf_pager_set_snapshot(SfPager *pager, SfSnapshot *snapshot, GError **error)
{
    SfPagerRequest *request;
    int fds[SF_PAGER_MAX_FDS];
    guint n = 0;

    if (pager->snapshot || ledger_find(pager, SF_PAGER_DO_SNAPSHOT, NULL)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_EXISTS, "pager of %s: it has its snapshot already", pager->id);
        return FALSE;
    }
    request = request_new(SF_PAGER_DO_SNAPSHOT, pager->id);
    request->number = snapshot->state_length;
    request->n_blocks = snapshot->n_blocks;
    request->blocks = g_new0(SfPagerBlock, MAX(snapshot->n_blocks, 1));
    fds[n++] = snapshot->state;
    for (guint i = 0; i < snapshot->n_blocks; i++) {
        describe_block(snapshot, i, &request->blocks[i], fds, &n);
    }
    if (!order(pager, request, fds, n, error)) {
        return FALSE;
    }
    pager->snapshot = sf_snapshot_ref(snapshot);
    if (snapshot->cache) {
        pager->cache = sf_page_cache_ref(snapshot->cache);
    }
    return TRUE;
}

gboolean sf_pager_add_source(SfPager *pager, const SfPageSource *source, GError **error)
{
    SfPagerRequest *request = request_new(SF_PAGER_DO_SOURCE, source->uri);
    int fds[1];
    guint n = 0;
    gboolean ok;

    request->security = source->security;
    request->number = MIN(source->connections, SF_PAGER_MAX_CONNECTIONS);
    if (source->security == SF_PAGER_PSK) {
        request->user = g_strdup(source->user ? source->user : "");
    }
    if (strlen(source->uri) > SF_PAGER_MAX_TEXT || (request->user && !*request->user) ||
        !add_keys(pager, source->security, source->keys, FALSE, fds, &n, error)) {
        if (error && !*error) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT,
                        "pager of %s: the page source has too long a URI, or a key without a user", pager->id);
        }
        sf_pager_request_free(request);
        return FALSE;
    }
    ok = order(pager, request, fds, n, error);
    close_fds(fds, n);
    return ok;
}

gboolean sf_pager_set_multicast(SfPager *pager, const char *group, const SfPagerMulticast *multicast, int socket,
                                const void *keys, gsize length, GError **error)
{
    SfPagerRequest *request = request_new(SF_PAGER_DO_MULTICAST, group);
    int fds[] = { socket, memfd_create("sf-multicast", MFD_CLOEXEC) };
    gboolean ok = fds[1] >= 0 && write(fds[1], keys, length) == (ssize_t)length;

    request->multicast = *multicast;
    if (!ok) {
        fail_errno(pager, error, "keys of multicast");
        sf_pager_request_free(request);
    } else {
        ok = order(pager, request, fds, G_N_ELEMENTS(fds), error);
    }
    if (fds[1] >= 0) {
        close(fds[1]);
    }
    return ok;
}

gboolean sf_pager_get_multicast(SfPager *pager, const char **group, const SfPagerMulticast **multicast, const int **fds)
{
    const Order *entry = ledger_find(pager, SF_PAGER_DO_MULTICAST, NULL);

    if (entry) {
        *group = entry->request->text;
        *multicast = &entry->request->multicast;
        *fds = entry->fds;
    }
    return entry != NULL;
}

gboolean sf_pager_is_in_group(SfPager *pager)
{
    return ledger_find(pager, SF_PAGER_DO_MULTICAST, NULL) != NULL;
}

void sf_pager_blob_async(SfPager *pager, const char *digest, gsize length, int memfd, GAsyncReadyCallback callback,
                         gpointer data)
{
    g_autoptr(SfPagerRequest) request = request_new(SF_PAGER_DO_BLOB, digest);

    request->number = length;
    send_request(pager, request, &memfd, 1, g_task_new(pager, NULL, callback, data), NULL);
}

gboolean sf_pager_blob_finish(SfPager *pager, GAsyncResult *result, GError **error)
{
    g_autoptr(JsonObject) answer = g_task_propagate_pointer(G_TASK(result), error);

    return answer != NULL;
}

JsonObject *sf_pager_describe_sources(SfPager *pager)
{
    JsonObject *object = json_object_new();
    JsonArray *sources = json_array_new();

    for (guint i = 0; i < pager->ledger->len; i++) {
        const SfPagerRequest *request = ((const Order *)g_ptr_array_index(pager->ledger, i))->request;
        if (request->what == SF_PAGER_DO_SOURCE && request->security != SF_PAGER_PSK) {
            JsonObject *source = json_object_new();
            json_object_set_string_member(source, "uri", request->text);
            json_object_set_string_member(source, "security", request->security == SF_PAGER_X509 ? "tls" : "plain");
            json_array_add_object_element(sources, source);
        }
    }
    json_object_set_array_member(object, "sources", sources);
    json_object_set_boolean_member(object, "complete", !!(pager->prefetch & SF_PREFETCH_COMPLETE));
    return object;
}

gboolean sf_pager_add_described_sources(SfPager *pager, JsonObject *object, const char *keys, GError **error)
{
    JsonNode *node = json_object_get_member(object, "sources");
    JsonArray *array = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;

    for (guint i = 0; array && i < json_array_get_length(array); i++) {
        JsonNode *element = json_array_get_element(array, i);
        JsonObject *source = JSON_NODE_HOLDS_OBJECT(element) ? json_node_get_object(element) : NULL;
        const char *uri = source ? text_of(source, "uri") : NULL;
        gboolean tls = source && g_strcmp0(text_of(source, "security"), "tls") == 0;
        SfPageSource page_source = { .uri = uri, .security = tls ? SF_PAGER_X509 : SF_PAGER_PLAIN, .keys = keys };
        if (uri && !sf_pager_add_source(pager, &page_source, error)) {
            return FALSE;
        }
    }
    return !flag_of(object, "complete") || sf_pager_complete(pager, error);
}

static gboolean on_attach(gpointer owner, const char *vm, pid_t pid, int uffd, const SfMappedBlock *blocks, guint n,
                          GError **error)
{
    SfPager *pager = owner;
    SfPagerRequest *request = request_new(SF_PAGER_DO_ATTACH, vm);

    request->number = pid;
    request->n_blocks = n;
    request->blocks = g_new0(SfPagerBlock, MAX(n, 1));
    for (guint i = 0; i < n; i++) {
        memcpy(request->blocks[i].id, blocks[i].id, sizeof(blocks[i].id));
        request->blocks[i].address = blocks[i].address;
        request->blocks[i].length = blocks[i].length;
    }
    return order(pager, request, &uffd, 1, error);
}

static void on_detach(gpointer owner, const char *vm)
{
    SfPager *pager = owner;
    g_autoptr(SfPagerRequest) request = request_new(SF_PAGER_DO_DETACH, vm);

    if (ledger_find(pager, SF_PAGER_DO_ATTACH, vm)) {
        ledger_remove(pager, SF_PAGER_DO_ATTACH, vm);
        send_request(pager, request, NULL, 0, NULL, NULL);
    }
}

const SfFaultHandler *sf_pager_fault_handler(SfPager *pager)
{
    return &pager->handler;
}

gboolean sf_pager_allow(SfPager *pager, const char *const *names, GError **error)
{
    SfPagerRequest *request = request_new(SF_PAGER_DO_ALLOW, NULL);

    request->names = g_strdupv((GStrv)names);
    ledger_remove(pager, SF_PAGER_DO_ALLOW, NULL);
    return order(pager, request, NULL, 0, error);
}

gboolean sf_pager_set_prefetch(SfPager *pager, SfPrefetch what, GError **error)
{
    SfPagerRequest *request = request_new(SF_PAGER_DO_PREFETCH, NULL);

    pager->prefetch = what;
    request->working_set = !!(what & SF_PREFETCH_WORKING_SET);
    request->neighbours = !!(what & SF_PREFETCH_NEIGHBOURS);
    request->complete = !!(what & SF_PREFETCH_COMPLETE);
    ledger_remove(pager, SF_PAGER_DO_PREFETCH, NULL);
    return order(pager, request, NULL, 0, error);
}

gboolean sf_pager_complete(SfPager *pager, GError **error)
{
    return sf_pager_set_prefetch(pager, pager->prefetch | SF_PREFETCH_COMPLETE, error);
}

gboolean sf_pager_set_working_set(SfPager *pager, const GArray *runs, GError **error)
{
    SfPagerRequest *request = request_new(SF_PAGER_DO_WORKING_SET, NULL);
    gsize size = MIN(runs->len, SF_PAGER_MAX_RUNS) * sizeof(struct sf_pager_run);
    int fd = memfd_create("sf-working-set", MFD_CLOEXEC);
    gboolean ok = fd >= 0 && pwrite(fd, runs->data, size, 0) == (ssize_t)size;

    request->number = size / sizeof(struct sf_pager_run);
    if (!ok) {
        fail_errno(pager, error, "the working set");
        sf_pager_request_free(request);
    } else {
        ledger_remove(pager, SF_PAGER_DO_WORKING_SET, NULL);
        ok = order(pager, request, &fd, 1, error);
    }
    if (fd >= 0) {
        close(fd);
    }
    return ok;
}

/* ---- questions ---- */

static void ask_async(SfPager *pager, SfPagerDo what, GAsyncReadyCallback callback, gpointer data)
{
    g_autoptr(SfPagerRequest) request = request_new(what, NULL);

    send_request(pager, request, NULL, 0, g_task_new(pager, NULL, callback, data), NULL);
}

void sf_pager_working_set_async(SfPager *pager, GAsyncReadyCallback callback, gpointer data)
{
    ask_async(pager, SF_PAGER_DO_RECORDED, callback, data);
}

GArray *sf_pager_working_set_finish(SfPager *pager, GAsyncResult *result, GError **error)
{
    g_autoptr(JsonObject) answer = g_task_propagate_pointer(G_TASK(result), error);
    int fd = GPOINTER_TO_INT(g_object_get_data(G_OBJECT(result), "fd")) - 1;
    g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(struct sf_pager_run));
    gsize n = answer ? int_of(answer, "n") : 0;
    gboolean ok = answer && fd >= 0 && n <= SF_PAGER_MAX_RUNS;

    if (ok) {
        g_array_set_size(runs, n);
        ok = pread(fd, runs->data, n * sizeof(struct sf_pager_run), 0) == (ssize_t)(n * sizeof(struct sf_pager_run));
    }
    if (fd >= 0) {
        close(fd);
    }
    if (!ok && answer) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "pager of %s: its working set can't be read",
                    pager->id);
    }
    return ok ? g_steal_pointer(&runs) : NULL;
}

void sf_pager_stats_async(SfPager *pager, GAsyncReadyCallback callback, gpointer data)
{
    ask_async(pager, SF_PAGER_DO_STATS, callback, data);
}

/* ---- pages that came unasked, and who has mapped them ---- */

typedef struct {
    guint block;
    guint64 page;
} Sample;

/* At most SAMPLES of the set bits, evenly spread; *n_set: how many there are. */
static GArray *take_samples(const SfPageCache *cache, int fd, guint64 *n_set)
{
    GArray *samples = g_array_new(FALSE, FALSE, sizeof(Sample));
    guint64 step = 0;

    for (guint pass = 0; pass < 2; pass++) { /* the first one counts */
        off_t at = 0;
        guint64 seen = 0;
        for (guint i = 0; i < cache->n_blocks; i++) {
            guint64 n = (cache->blocks[i].length / SF_PAGE_SIZE + 63) / 64;
            g_autofree guint64 *words = g_new0(guint64, n);
            if (pread(fd, words, n * sizeof(*words), at) != (ssize_t)(n * sizeof(*words))) {
                return samples;
            }
            at += n * sizeof(*words);
            for (guint64 j = 0; j < n; j++) {
                for (guint64 word = words[j]; word; word &= word - 1, seen++) {
                    Sample sample = { i, j * 64 + __builtin_ctzll(word) };
                    if (pass == 1 && seen % step == 0) {
                        g_array_append_val(samples, sample);
                    }
                }
            }
        }
        *n_set = seen;
        step = seen / SAMPLES + 1;
    }
    return samples;
}

/* Has this clone mapped the page, or a copy of it? */
static gboolean has_mapped(int pagemap, const SfPagerRequest *attach, const char *block, guint64 page)
{
    for (guint i = 0; i < attach->n_blocks; i++) {
        guint64 entry = 0, address = attach->blocks[i].address + page * SF_PAGE_SIZE;
        if (strcmp(attach->blocks[i].id, block) == 0 &&
            pread(pagemap, &entry, sizeof(entry), address / SF_PAGE_SIZE * sizeof(entry)) == sizeof(entry)) {
            return (entry & PAGEMAP_MAPPED) != 0;
        }
    }
    return FALSE;
}

/* Bytes that came unasked and that no clone has mapped: of the samples, as a part of all. */
static guint64 estimate_unused(SfPager *pager, int fd)
{
    guint64 n_set = 0;
    g_autoptr(GArray) samples = take_samples(pager->cache, fd, &n_set);
    guint left = samples->len;

    for (guint i = 0; i < pager->ledger->len && left > 0; i++) {
        const Order *attach = g_ptr_array_index(pager->ledger, i);
        g_autofree char *path = g_strdup_printf("/proc/%" G_GUINT64_FORMAT "/pagemap", attach->request->number);
        int pagemap = attach->request->what == SF_PAGER_DO_ATTACH ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        for (guint j = 0; pagemap >= 0 && j < left;) {
            Sample *sample = &g_array_index(samples, Sample, j);
            if (has_mapped(pagemap, attach->request, pager->cache->blocks[sample->block].id, sample->page)) {
                *sample = g_array_index(samples, Sample, --left); /* it is used: not looked at any more */
            } else {
                j++;
            }
        }
        if (pagemap >= 0) {
            close(pagemap);
        }
    }
    return samples->len ? n_set * SF_PAGE_SIZE / samples->len * left : 0;
}

gboolean sf_pager_stats_finish(SfPager *pager, GAsyncResult *result, SfPagerStats *stats, GError **error)
{
    g_autoptr(JsonObject) answer = g_task_propagate_pointer(G_TASK(result), error);
    int fd = GPOINTER_TO_INT(g_object_get_data(G_OBJECT(result), "fd")) - 1;

    memset(stats, 0, sizeof(*stats));
    if (fd >= 0 && answer && pager->cache) {
        stats->prefetched_unused = estimate_unused(pager, fd);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (!answer) {
        return FALSE;
    }
#define GET(member) stats->member = int_of(answer, #member)
    GET(faults);
    GET(demand_faults);
    GET(fetched_bytes);
    GET(demand_bytes);
    GET(prefetched_bytes);
    GET(resident_bytes);
    GET(served_bytes);
    GET(fault_ns_median);
    GET(fault_ns_p99);
    GET(sources);
    GET(sources_up);
    GET(clones);
#undef GET
    stats->prefetched_unused = MIN(stats->prefetched_unused, stats->prefetched_bytes); /* which counts whole reads */
    stats->complete = flag_of(answer, "complete");
    g_clear_pointer(&pager->multicast_stats, json_object_unref);
    pager->multicast_stats = object_of(answer, "multicast");
    return TRUE;
}

JsonObject *sf_pager_multicast_stats(SfPager *pager)
{
    return pager->multicast_stats;
}

/* ---- the object ---- */

static void sf_pager_finalize(GObject *object)
{
    SfPager *pager = SF_PAGER(object);

    disconnect(pager, "nobody listens any more");
    g_clear_handle_id(&pager->exit_source, g_source_remove);
    g_clear_handle_id(&pager->early_source, g_source_remove);
    g_queue_clear_full(&pager->early, (GDestroyNotify)json_object_unref);
    if (pager->pidfd >= 0) {
        close(pager->pidfd);
    }
    if (pager->listener >= 0) {
        close(pager->listener);
    }
    g_ptr_array_unref(pager->ledger);
    g_clear_pointer(&pager->snapshot, sf_snapshot_unref);
    g_clear_pointer(&pager->cache, sf_page_cache_unref);
    g_clear_pointer(&pager->multicast_stats, json_object_unref);
    g_free(pager->id);
    g_free(pager->binary);
    g_free(pager->directory);
    G_OBJECT_CLASS(sf_pager_parent_class)->finalize(object);
}

static void sf_pager_init(SfPager *pager)
{
    pager->listener = pager->socket = pager->pidfd = -1;
    pager->ledger = g_ptr_array_new_with_free_func(order_free);
    pager->handler = (SfFaultHandler){ .owner = pager, .attach = on_attach, .detach = on_detach };
    pager->prefetch = SF_PREFETCH_WORKING_SET | SF_PREFETCH_NEIGHBOURS;
    g_queue_init(&pager->early);
    g_queue_init(&pager->waiting);
    g_queue_init(&pager->unsent);
}

static void sf_pager_class_init(SfPagerClass *class)
{
    G_OBJECT_CLASS(class)->finalize = sf_pager_finalize;
    signals[SIGNAL_LOST] =
        g_signal_new("lost", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_STRING);
    signals[SIGNAL_COMPLETE] =
        g_signal_new("complete", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 0);
    signals[SIGNAL_RESTARTED] =
        g_signal_new("restarted", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_STRING);
    signals[SIGNAL_FAILED] =
        g_signal_new("failed", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_STRING);
    signals[SIGNAL_SOURCES] =
        g_signal_new("sources", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_UINT);
    signals[SIGNAL_BLOB] = g_signal_new("blob", SF_TYPE_PAGER, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 2,
                                        G_TYPE_UINT64, G_TYPE_BOOLEAN);
}
