/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * libvirt holds the only monitor of its QEMU, and passes commands on by calls that block. SfQmp pipelines commands over
 * a socket. Between the two stands a thread for each connection, which serves QMP on one end of a socket pair:
 *
 *     SfQmp ==== socket pair ==== monitor thread --- virDomainQemuMonitorCommandWithFiles() ---> libvirtd ---> QEMU
 *       ^            ^
 *       |            +--- events, written by the main thread as libvirt tells them
 *       +--- the main loop
 *
 * So order, errors, and the end of a connection are those of any other VM. Three commands are not passed on, because
 * libvirt has calls of its own for them, and would not know of it otherwise: qmp_capabilities (libvirt's affair), cont
 * (virDomainResume) and system_powerdown (virDomainShutdown). A descriptor comes beside the bytes of its command; only
 * getfd and add-fd take one, in order.
 *
 * When libvirtd is not there, or the domain has gone, the thread ends and closes its end: the VM connects anew later,
 * or learns by its pidfd that it has ended.
 *
 * The end: virDomainDestroy() in a worker thread, so that libvirt knows what it is; when that fails, SIGKILL.
 */
#include "sfvmm/vm/domain.h"

#include <errno.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sfvmm/process/socket.h"
#include "sfvmm/vm/domain_port.h"
#include "sfvmm/wire/json_line.h"

#define READ_BYTES      16384u
#define FDS_PER_READ    8 /* descriptors beside the bytes of one read; SfQmp sends one at a time */
#define REPLY_BYTES_MAX (16u << 20)

typedef struct {
    gatomicrefcount refs; /* the thread's and the domain's */
    SfDomain *domain;
    int fd;              /* our end of the pair */
    GMutex lock;         /* of writes: the thread answers, both tell events */
    GAsyncQueue *events; /* of char *: lines to be told */
    GQueue fds;          /* of int as pointers, received and not used yet: the thread's */
} Monitor;

struct SfDomain {
    gatomicrefcount refs;
    SfLibvirt *libvirt;
    char *name, *uuid;
    gboolean ours;
    SfVm *vm;         /* whose keeper it is, not owned; NULL: nobody's (any more) */
    Monitor *monitor; /* the latest; NULL: none */
};

/* ---- the object ---- */

SfDomain *sf_domain_new(SfLibvirt *libvirt, const char *name, const char *uuid, gboolean ours)
{
    SfDomain *domain = g_new0(SfDomain, 1);

    g_atomic_ref_count_init(&domain->refs);
    domain->libvirt = libvirt;
    domain->name = g_strdup(name);
    domain->uuid = g_strdup(uuid);
    domain->ours = ours;
    return domain;
}

SfDomain *sf_domain_ref(SfDomain *domain)
{
    g_atomic_ref_count_inc(&domain->refs);
    return domain;
}

void sf_domain_unref(SfDomain *domain)
{
    if (g_atomic_ref_count_dec(&domain->refs)) {
        g_free(domain->name);
        g_free(domain->uuid);
        g_free(domain);
    }
}

const char *sf_domain_name(const SfDomain *domain)
{
    return domain->name;
}

const char *sf_domain_uuid(const SfDomain *domain)
{
    return domain->uuid;
}

SfLibvirt *sf_domain_libvirt(const SfDomain *domain)
{
    return domain->libvirt;
}

static JsonObject *domain_to_json(gpointer data)
{
    const SfDomain *domain = data;
    JsonObject *object = json_object_new();

    json_object_set_string_member(object, "uri", sf_libvirt_uri(domain->libvirt));
    json_object_set_string_member(object, "name", domain->name);
    json_object_set_string_member(object, "uuid", domain->uuid);
    json_object_set_boolean_member(object, "ours", domain->ours);
    return object;
}

SfDomain *sf_domain_from_json(JsonObject *object, GError **error)
{
    const char *uri = json_object_get_string_member_with_default(object, "uri", NULL);
    const char *name = json_object_get_string_member_with_default(object, "name", NULL);
    const char *uuid = json_object_get_string_member_with_default(object, "uuid", NULL);

    if (!uri || !name || !uuid || !g_uuid_string_is_valid(uuid)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "no uri, name or uuid of its domain");
        return NULL;
    }
    return sf_domain_new(sf_libvirt_get(uri), name, uuid,
                         json_object_get_boolean_member_with_default(object, "ours", FALSE));
}

/* ---- in worker threads ---- */

/* The domain, or NULL. *connection must be closed when it is not NULL. */
static virDomainPtr look_up(SfDomain *domain, SfLibvirtLane lane, virConnectPtr *connection, GError **error)
{
    virDomainPtr found;

    *connection = sf_libvirt_connect(domain->libvirt, lane, error);
    if (!*connection) {
        return NULL;
    }
    found = virDomainLookupByUUIDString(*connection, domain->uuid);
    if (!found) {
        g_autofree char *what = g_strdup_printf("domain %s", domain->name);
        (void)!sf_libvirt_fail(error, what);
    }
    return found;
}

static void let_go(virDomainPtr found, virConnectPtr connection)
{
    if (found) {
        virDomainFree(found);
    }
    if (connection) {
        virConnectClose(connection);
    }
}

/* One command as text; the whole answer of QEMU, its errors too. */
static JsonObject *pass_on(virDomainPtr found, const char *text, int fd, GError **error)
{
    g_autofree char *what = g_strdup_printf("domain %s", virDomainGetName(found));
    JsonObject *object = NULL;
    unsigned int n_out = 0;
    int *out = NULL;
    char *answer = NULL;

    if (virDomainQemuMonitorCommandWithFiles(found, text, fd >= 0 ? 1 : 0, fd >= 0 ? &fd : NULL, &n_out, &out, &answer,
                                             0) < 0) {
        (void)!sf_libvirt_fail(error, what);
        if (error && virConnectIsAlive(virDomainGetConnect(found)) != 1) {
            (*error)->code = SF_VM_ERROR_GONE;
        }
        return NULL;
    }
    for (unsigned int i = 0; i < n_out; i++) {
        close(out[i]);
    }
    free(out);
    object = sf_json_line_parse(answer, strnlen(answer, REPLY_BYTES_MAX), error);
    free(answer);
    return object;
}

JsonNode *sf_domain_command(virDomainPtr found, const char *command, JsonObject *args_or_null, GError **error)
{
    g_autoptr(JsonObject) request = json_object_new();
    g_autoptr(JsonObject) answer = NULL;
    g_autofree char *text = NULL;

    json_object_set_string_member(request, "execute", command);
    if (args_or_null) {
        json_object_set_object_member(request, "arguments", args_or_null);
    }
    text = sf_json_line_format(request, NULL);
    answer = pass_on(found, g_strchomp(text), -1, error);
    if (!answer) {
        return NULL;
    }
    if (!json_object_has_member(answer, "return")) {
        JsonNode *node = json_object_get_member(answer, "error");
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "QEMU: %s: %s", command,
                    node && JSON_NODE_HOLDS_OBJECT(node)
                        ? json_object_get_string_member_with_default(json_node_get_object(node), "desc", "refused")
                        : "refused");
        return NULL;
    }
    return json_node_copy(json_object_get_member(answer, "return"));
}

/* ---- the monitor thread ---- */

static void monitor_unref(Monitor *monitor)
{
    if (g_atomic_ref_count_dec(&monitor->refs)) {
        while (!g_queue_is_empty(&monitor->fds)) {
            close(GPOINTER_TO_INT(g_queue_pop_head(&monitor->fds)));
        }
        close(monitor->fd);
        g_mutex_clear(&monitor->lock);
        g_async_queue_unref(monitor->events);
        sf_domain_unref(monitor->domain);
        g_free(monitor);
    }
}

/* Under the lock. A reader that has gone, or does not read, loses the connection. flags: of send(). */
static gboolean send_line(Monitor *monitor, const char *line, int flags)
{
    gsize length = strlen(line), sent = 0;

    while (sent < length) {
        ssize_t n = send(monitor->fd, line + sent, length - sent, MSG_NOSIGNAL | flags);
        if (n < 0 && errno != EINTR) {
            shutdown(monitor->fd, SHUT_RDWR);
            break;
        }
        sent += n > 0 ? (gsize)n : 0;
    }
    return sent == length;
}

/* Whoever has the lock tells what waits; who finds it taken leaves that to the other. */
static void tell_events(Monitor *monitor, int flags)
{
    while (g_async_queue_length(monitor->events) > 0 && g_mutex_trylock(&monitor->lock)) {
        char *line;
        while ((line = g_async_queue_try_pop(monitor->events))) {
            send_line(monitor, line, flags);
            g_free(line);
        }
        g_mutex_unlock(&monitor->lock);
    }
}

/* The thread's; may wait for the reader. */
static gboolean monitor_answer(Monitor *monitor, JsonObject *answer)
{
    g_autofree char *line = sf_json_line_format(answer, NULL);
    gboolean ok;

    g_mutex_lock(&monitor->lock);
    ok = send_line(monitor, line, 0);
    g_mutex_unlock(&monitor->lock);
    tell_events(monitor, 0);
    return ok;
}

/* TRUE: the command is none that QEMU is asked, and *failure says how it went. */
static gboolean monitor_is_ours(virDomainPtr found, const char *command, GError **failure)
{
    g_autofree char *what = g_strdup_printf("domain %s", virDomainGetName(found));

    if (strcmp(command, "qmp_capabilities") == 0) {
        return TRUE;
    }
    if (strcmp(command, "cont") == 0) {
        if (virDomainResume(found) < 0) {
            (void)!sf_libvirt_fail(failure, what);
        }
        return TRUE;
    }
    if (strcmp(command, "system_powerdown") == 0) {
        if (virDomainShutdown(found) < 0) {
            (void)!sf_libvirt_fail(failure, what);
        }
        return TRUE;
    }
    return FALSE;
}

static JsonObject *answer_of(const GError *failure)
{
    JsonObject *answer = json_object_new();

    if (failure) {
        JsonObject *details = json_object_new();
        json_object_set_string_member(details, "class", "GenericError");
        json_object_set_string_member(details, "desc", failure->message);
        json_object_set_object_member(answer, "error", details);
    } else {
        json_object_set_object_member(answer, "return", json_object_new());
    }
    return answer;
}

/* FALSE: the domain or libvirtd has gone. */
static gboolean monitor_execute(Monitor *monitor, virDomainPtr found, JsonObject *request)
{
    const char *command = json_object_get_string_member_with_default(request, "execute", "");
    gint64 id = json_object_get_int_member_with_default(request, "id", 0);
    gboolean with_fd = strcmp(command, "getfd") == 0 || strcmp(command, "add-fd") == 0;
    int fd = with_fd && !g_queue_is_empty(&monitor->fds) ? GPOINTER_TO_INT(g_queue_pop_head(&monitor->fds)) : -1;
    g_autoptr(GError) failure = NULL;
    g_autoptr(JsonObject) answer = NULL;

    sf_libvirt_begin(monitor->domain->libvirt, SF_LIBVIRT_QUICK);
    if (!monitor_is_ours(found, command, &failure)) {
        g_autofree char *text = NULL;
        json_object_remove_member(request, "id"); /* libvirt has one of its own */
        text = sf_json_line_format(request, NULL);
        answer = pass_on(found, g_strchomp(text), fd, &failure);
    }
    sf_libvirt_end(monitor->domain->libvirt, SF_LIBVIRT_QUICK);
    if (fd >= 0) {
        close(fd);
    }
    if (g_error_matches(failure, SF_VM_ERROR, SF_VM_ERROR_GONE)) {
        g_debug("%s", failure->message);
        return FALSE;
    }
    if (!answer) {
        answer = answer_of(failure);
    }
    json_object_set_int_member(answer, "id", id);
    return monitor_answer(monitor, answer);
}

static void take_fds(Monitor *monitor, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            for (gsize i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                g_queue_push_tail(&monitor->fds, GINT_TO_POINTER(fd));
            }
        }
    }
}

/* FALSE: SfQmp has closed its end. */
static gboolean monitor_read(Monitor *monitor, SfJsonLineReader *lines)
{
    char buf[READ_BYTES];
    union {
        char room[CMSG_SPACE(FDS_PER_READ * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = { buf, sizeof(buf) };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof(control.room)
    };
    ssize_t n;

    do {
        n = recvmsg(monitor->fd, &msg, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (n <= 0) {
        return FALSE;
    }
    take_fds(monitor, &msg);
    sf_json_line_reader_push(lines, buf, (gsize)n);
    return TRUE;
}

static void monitor_serve(Monitor *monitor, virDomainPtr found)
{
    g_autoptr(SfJsonLineReader) lines = sf_json_line_reader_new();
    gboolean open = TRUE;

    while (open && monitor_read(monitor, lines)) {
        for (;;) {
            g_autoptr(JsonObject) request = NULL;
            if (!sf_json_line_reader_next(lines, &request, NULL) || !request) {
                break;
            }
            open = monitor_execute(monitor, found, request);
            if (!open) {
                break;
            }
        }
    }
}

/* In the main thread, as it may have ended before anybody watched it. */
static gboolean on_domain_missing(gpointer data)
{
    SfDomain *domain = data;

    if (domain->vm) {
        sf_vm_keeper_ended(domain->vm, "its domain has gone");
    }
    return G_SOURCE_REMOVE;
}

static gpointer monitor_thread(gpointer data)
{
    Monitor *monitor = data;
    virConnectPtr connection = NULL;
    g_autoptr(GError) error = NULL;
    virDomainPtr found = look_up(monitor->domain, SF_LIBVIRT_QUICK, &connection, &error);

    if (found) {
        monitor_serve(monitor, found);
    } else {
        if (connection && virGetLastErrorCode() == VIR_ERR_NO_DOMAIN) {
            g_idle_add_full(G_PRIORITY_DEFAULT, on_domain_missing, sf_domain_ref(monitor->domain),
                            (GDestroyNotify)sf_domain_unref);
        }
        g_debug("%s", error->message);
    }
    shutdown(monitor->fd, SHUT_RDWR);
    let_go(found, connection);
    monitor_unref(monitor);
    return NULL;
}

/* ---- as a VM's keeper: main thread ---- */

static int keeper_open_monitor(gpointer data, GError **error)
{
    SfDomain *domain = data;
    Monitor *monitor;
    int pair[2];

    if (!sf_socket_pair(SOCK_STREAM, pair, error)) {
        return -1;
    }
    monitor = g_new0(Monitor, 1);
    g_atomic_ref_count_init(&monitor->refs);
    g_atomic_ref_count_inc(&monitor->refs);
    monitor->domain = sf_domain_ref(domain);
    monitor->fd = pair[1];
    g_mutex_init(&monitor->lock);
    monitor->events = g_async_queue_new_full(g_free);
    g_queue_init(&monitor->fds);
    g_clear_pointer(&domain->monitor, monitor_unref);
    domain->monitor = monitor;
    g_thread_unref(g_thread_new("sf-monitor", monitor_thread, monitor));
    return pair[0];
}

static void on_domain_event(const char *name, const char *details, gpointer owner)
{
    SfDomain *domain = owner;
    g_autoptr(JsonObject) event = json_object_new();
    JsonObject *data = details ? sf_json_line_parse(details, strnlen(details, SF_JSON_LINE_MAX), NULL) : NULL;

    json_object_set_string_member(event, "event", name);
    if (data) {
        json_object_set_object_member(event, "data", data);
    }
    if (domain->monitor) { /* the main thread, which reads the other end, must not wait here */
        g_async_queue_push(domain->monitor->events, sf_json_line_format(event, NULL));
        tell_events(domain->monitor, MSG_DONTWAIT);
    }
}

static void on_domain_stopped(const char *reason, gpointer owner)
{
    SfDomain *domain = owner;

    if (domain->vm) {
        sf_vm_keeper_ended(domain->vm, reason);
    }
}

/* The VM sees its monitor closed, and connects anew. */
static void on_libvirt_lost(gpointer owner)
{
    SfDomain *domain = owner;

    if (domain->monitor) {
        shutdown(domain->monitor->fd, SHUT_RDWR);
    }
}

static const SfLibvirtHandlers handlers = { on_domain_event, on_domain_stopped, on_libvirt_lost };

typedef struct Job Job;
struct Job {
    SfDomain *domain;
    void (*run)(Job *job); /* in a thread of its own */
    int pidfd;             /* a copy, or -1 */
    char *title, *lineage;
};

static void job_free(gpointer data)
{
    Job *job = data;

    sf_domain_unref(job->domain);
    if (job->pidfd >= 0) {
        close(job->pidfd);
    }
    g_free(job->title);
    g_free(job->lineage);
    g_free(job);
}

static void job_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    Job *job = data;

    sf_libvirt_begin(job->domain->libvirt, SF_LIBVIRT_SLOW);
    job->run(job);
    sf_libvirt_end(job->domain->libvirt, SF_LIBVIRT_SLOW);
}

/* Takes job. Nobody waits for it. */
static void job_start(SfDomain *domain, Job *job, void (*run)(Job *job))
{
    g_autoptr(GTask) task = g_task_new(NULL, NULL, NULL, NULL);

    job->domain = sf_domain_ref(domain);
    job->run = run;
    g_task_set_task_data(task, job, job_free);
    g_task_run_in_thread(task, job_thread);
}

static void destroy_domain(Job *job)
{
    virConnectPtr connection = NULL;
    g_autoptr(GError) error = NULL;
    virDomainPtr found = look_up(job->domain, SF_LIBVIRT_SLOW, &connection, &error);

    if (!found || virDomainDestroy(found) < 0) {
        if (job->pidfd >= 0) {
            syscall(SYS_pidfd_send_signal, job->pidfd, SIGKILL, NULL, 0);
        }
        g_debug("domain %s: %s", job->domain->name, error ? error->message : "it has gone");
    }
    let_go(found, connection);
}

static void destroy(SfDomain *domain, int pidfd)
{
    Job *job = g_new0(Job, 1);

    job->pidfd = pidfd >= 0 ? dup(pidfd) : -1;
    job_start(domain, job, destroy_domain);
}

void sf_domain_destroy(SfDomain *domain)
{
    destroy(domain, -1);
}

static void keeper_kill(gpointer data, int pidfd)
{
    destroy(data, pidfd);
}

static void label_domain(Job *job)
{
    virConnectPtr connection = NULL;
    g_autoptr(GError) error = NULL;
    virDomainPtr found = look_up(job->domain, SF_LIBVIRT_SLOW, &connection, &error);

    if (!found ||
        virDomainSetMetadata(found, VIR_DOMAIN_METADATA_TITLE, job->title, NULL, NULL, VIR_DOMAIN_AFFECT_LIVE) < 0 ||
        virDomainSetMetadata(found, VIR_DOMAIN_METADATA_ELEMENT, job->lineage, SF_DOMAIN_METADATA_KEY,
                             SF_DOMAIN_METADATA_URI, VIR_DOMAIN_AFFECT_LIVE) < 0) {
        g_debug("domain %s: its title and lineage can't be set; it has perhaps just ended: %s", job->domain->name,
                error ? error->message : virGetLastErrorMessage());
    }
    let_go(found, connection);
}

static void keeper_label(gpointer data, const SfDomainLineage *lineage)
{
    SfDomain *domain = data;
    Job *job;

    if (!domain->ours) {
        return;
    }
    job = g_new0(Job, 1);
    job->pidfd = -1;
    job->title = g_strdup(lineage->vm);
    job->lineage = sf_domain_lineage_format(lineage);
    job_start(domain, job, label_domain);
}

void sf_domain_watch(SfDomain *domain)
{
    sf_libvirt_watch(domain->libvirt, domain->uuid, &handlers, domain);
}

void sf_domain_unwatch(SfDomain *domain)
{
    sf_libvirt_unwatch(domain->libvirt, domain->uuid, domain);
}

/* Its last events have told all that there is to tell. */
static void keeper_free(gpointer data)
{
    SfDomain *domain = data;

    domain->vm = NULL;
    sf_domain_unwatch(domain);
    g_clear_pointer(&domain->monitor, monitor_unref);
    sf_domain_unref(domain);
}

static const char *keeper_name(gpointer data)
{
    return sf_domain_name(data);
}

static int keeper_open_port(gpointer data, GError **error)
{
    return sf_domain_port_open(data, error);
}

static const SfVmKeeper keeper = { .name = keeper_name,
                                   .open_monitor = keeper_open_monitor,
                                   .open_port = keeper_open_port,
                                   .kill = keeper_kill,
                                   .label = keeper_label,
                                   .to_json = domain_to_json,
                                   .free = keeper_free };

void sf_domain_keep(SfDomain *domain, SfVm *vm)
{
    domain->vm = vm;
    vm->keeper = &keeper;
    vm->keeper_data = sf_domain_ref(domain);
    sf_domain_watch(domain);
}
