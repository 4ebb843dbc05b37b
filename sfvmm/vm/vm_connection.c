/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * QMP and the sf channel come and go together, as one is attached through the other. Connections that break while the
 * process lives are made anew with growing delays, which is also what an adoption does.
 *
 * Connecting is one volley: getfd and sf-attach go out behind each other, and HELLO lies in the sf channel before QEMU
 * has it. QEMU reads all of it when it has started.
 */
#include "sfvmm/vm/vm_private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sfvmm/process/clock.h"
#include "sfvmm/process/process.h"
#include "sfvmm/process/socket.h"
#include "sfvmm/vm/command_line.h"

#define RETRY_MS_FIRST 50u
#define RETRY_MS_MAX   5000u

static void vm_connect(SfVm *vm);

/* ---- QMP ---- */

/* QEMU's words for why it ends, as a person would say them. */
static const char *shutdown_text(const char *reason)
{
    static const struct {
        const char *qemu, *text;
    } texts[] = {
        { "guest-shutdown", "the guest has shut down" },
        { "guest-reset", "the guest has rebooted; a clone can't, its kernel is not at hand" },
        { "guest-panic", "the guest's kernel has panicked" },
        { "host-signal", "QEMU was told to end by a signal" },
        { "host-qmp-quit", "QEMU was told to quit" },
    };

    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        if (strcmp(texts[i].qemu, reason) == 0) {
            return texts[i].text;
        }
    }
    return reason;
}

static const char *text_of(JsonObject *data, const char *member)
{
    JsonNode *node = data ? json_object_get_member(data, member) : NULL;

    return node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : "";
}

static void port_event(SfVm *vm, JsonObject *data)
{
    JsonNode *open = data ? json_object_get_member(data, "open") : NULL;

    if (vm->guest && !vm->guest_hello_held && open && json_node_get_value_type(open) == G_TYPE_BOOLEAN &&
        strcmp(text_of(data, "id"), vm->agent_port ? vm->agent_port : SF_AGENT_PORT_ID) == 0) {
        sf_guest_channel_port_changed(vm->guest, json_node_get_boolean(open));
    }
}

static void on_qmp_event(const char *name, JsonObject *data, gpointer owner)
{
    SfVm *vm = owner;

    if (strcmp(name, "STOP") == 0) {
        vm->running = FALSE;
    } else if (strcmp(name, "RESUME") == 0) {
        vm->running = TRUE;
    } else if (strcmp(name, "SHUTDOWN") == 0 && !vm->shutdown_reason &&
               !(vm->keeper && strcmp(text_of(data, "reason"), "host-signal") == 0)) { /* its keeper knows why */
        vm->shutdown_reason = g_strdup(shutdown_text(text_of(data, "reason")));
    } else if (strcmp(name, "VSERPORT_CHANGE") == 0) {
        port_event(vm, data);
    } else if (g_str_has_prefix(name, "BLOCK_JOB_")) {
        sf_vm_settle_job_event(vm, name, data);
    } else if (strcmp(name, "BLOCK_IO_ERROR") == 0) {
        g_warning("VM %s: an input/output error on its disk %s", vm->name, text_of(data, "qom-path"));
    }
}

static gboolean on_retry(gpointer data)
{
    SfVm *vm = data;

    vm->retry_timer = 0;
    vm_connect(vm);
    return G_SOURCE_REMOVE;
}

static void retry_later(SfVm *vm)
{
    if (vm->gone || vm->retry_timer) {
        return;
    }
    vm->retry_timer = g_timeout_add(vm->retry_ms, on_retry, vm);
    vm->retry_ms = MIN(vm->retry_ms * 2, RETRY_MS_MAX);
}

/* QMP and sf channel come and go together: one is attached through the other. */
static void on_connection_closed(const GError *reason, gpointer owner)
{
    SfVm *vm = owner;

    g_object_ref(vm);
    g_debug("VM %s: %s", vm->name, reason->message);
    g_clear_pointer(&vm->channel, sf_qemu_channel_free);
    g_clear_pointer(&vm->qmp, sf_qmp_free);
    vm->greeted = vm->attached = FALSE;
    sf_vm_settle_lost(vm);
    retry_later(vm);
    g_object_unref(vm);
}

static const SfQmpHandlers qmp_handlers = { on_qmp_event, on_connection_closed };

static void on_qmp_reply(JsonNode *result, const GError *error, gpointer data)
{
    g_autoptr(GTask) task = data;

    if (error) {
        g_task_return_error(task, g_error_copy(error));
    } else {
        g_task_return_pointer(task, json_node_copy(result), (GDestroyNotify)json_node_unref);
    }
}

void sf_vm_qmp_async(SfVm *vm, const char *command, JsonObject *args, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(vm, NULL, callback, data);

    if (!vm->qmp) {
        g_clear_pointer(&args, json_object_unref);
        sf_vm_fail_gone(vm, task);
        g_object_unref(task);
        return;
    }
    sf_qmp_execute(vm->qmp, command, args, -1, on_qmp_reply, task);
}

JsonNode *sf_vm_qmp_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

void sf_vm_powerdown(SfVm *vm)
{
    if (vm->qmp) {
        sf_qmp_execute(vm->qmp, "system_powerdown", NULL, -1, NULL, NULL);
    }
}

/* ---- the sf channel ---- */

static void clone_runs(SfVm *vm, guint64 at)
{
    vm->running = TRUE;
    sf_vm_load_running(vm);
    sf_vm_gate_running(vm);
    g_signal_emit_by_name(vm, "running", at);
}

static void on_channel_event(SfQcMessage *message, gpointer owner)
{
    SfVm *vm = owner;
    struct sf_qc_running running;
    g_autoptr(GError) error = NULL;

    if (message->header.type != SF_QC_EVENT_RUNNING) {
        return;
    }
    if (!sf_qc_parse_running(message->payload, message->n_fds, &running, &error)) {
        g_warning("VM %s: %s", vm->name, error->message);
        return;
    }
    clone_runs(vm, running.at);
}

static const SfQemuChannelHandlers channel_handlers = { on_channel_event, on_connection_closed };

static void connect_review(SfVm *vm)
{
    if (vm->greeted && vm->attached) {
        vm->retry_ms = RETRY_MS_FIRST;
        if (!sf_vm_doubts_sort_out(vm)) {
            sf_vm_connect_end(vm, NULL);
        }
    }
}

/*
 * A connection that was refused or lost may come back, or QEMU has just ended, and then the pidfd tells more; a QEMU
 * that has answered wrongly won't do better the next time.
 */
static void connect_failed(SfVm *vm, const GError *error, gboolean answered)
{
    if (vm->connect_task && answered) {
        sf_vm_connect_end(vm, g_error_new(SF_VM_ERROR, SF_VM_ERROR_FAILED, "VM %s: %s", vm->name, error->message));
        return;
    }
    g_debug("VM %s: can't connect to its QEMU: %s", vm->name, error->message);
    retry_later(vm);
}

/* Whose process it is the kernel says, as it has sent the answer: so a QEMU that lies cannot point at another. */
static gboolean take_process(SfVm *vm, GError **error)
{
    pid_t pid = sf_qemu_channel_peer(vm->channel);
    guint64 start_time = sf_process_start_time(pid);
    int pidfd = sf_process_open(pid, start_time);

    if (pidfd < 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "its process %d can't be watched: %s", pid,
                    g_strerror(errno));
        return FALSE;
    }
    sf_vm_set_process(vm, pid, start_time, pidfd);
    return sf_vm_save(vm, error);
}

static void on_hello(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    struct sf_qc_block blocks[SF_QC_MAX_BLOCKS];
    g_autoptr(GError) failure = NULL;

    if (!error) {
        sf_qc_parse_hello(message->payload, message->n_fds, &vm->hello, blocks, &failure);
    }
    if (!error && !failure && vm->keeper && vm->pidfd < 0) {
        take_process(vm, &failure);
    }
    if (error || failure) {
        if (!vm->gone) {
            connect_failed(vm, error ? error : failure,
                           !error || g_error_matches(error, G_IO_ERROR, G_IO_ERROR_FAILED));
        }
        return;
    }
    vm->greeted = TRUE;
    vm->running = vm->hello.running;
    if (vm->role == SF_VM_CLONE && vm->running && !vm->passed_gate) {
        clone_runs(vm, (guint64)sf_clock_ns()); /* the event went with an earlier connection */
    }
    connect_review(vm);
}

static void on_attached(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    g_autoptr(GError) better = NULL;

    if (!error) {
        vm->attached = TRUE;
        connect_review(vm);
        return;
    }
    if (vm->gone) {
        return;
    }
    if (strstr(error->message, "sf-attach has not been found")) {
        better = g_error_new(SF_VM_ERROR, SF_VM_ERROR_FAILED,
                             "this QEMU lacks the snowflock patches, scripts/setup builds one (%s)", error->message);
    }
    connect_failed(vm, better ? better : error, g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_FAILED));
}

static void attach_channel(SfVm *vm, int pair[2])
{
    SfQmpBatch *batch = sf_qmp_batch_new(vm->qmp);
    JsonObject *getfd = json_object_new();
    JsonObject *attach = json_object_new();

    json_object_set_string_member(getfd, "fdname", "sf");
    sf_qmp_batch_add(batch, "getfd", getfd, pair[1]);
    json_object_set_string_member(attach, "fd", "sf");
    sf_qmp_batch_add(batch, "sf-attach", attach, -1);
    sf_qmp_batch_run(batch, on_attached, g_object_ref(vm));
    sf_vm_gate_learn(vm);

    vm->channel = sf_qemu_channel_new(pair[0], &channel_handlers, vm);
    if (vm->keeper) {
        sf_qemu_channel_ask_peer(vm->channel);
    }
    sf_qemu_channel_request(vm->channel, SF_QC_HELLO, sf_qc_request_hello(sf_qemu_channel_serial(vm->channel)), NULL, 0,
                            on_hello, g_object_ref(vm));
}

static void vm_connect(SfVm *vm)
{
    g_autoptr(GError) error = NULL;
    int pair[2];
    int fd;

    if (vm->gone || vm->channel) {
        return;
    }
    fd = vm->keeper ? vm->keeper->open_monitor(vm->keeper_data, &error)
                    : sf_socket_connect(vm->directory, SF_VM_FILE_QMP, SOCK_STREAM | SOCK_NONBLOCK, &error);
    if (fd >= 0 && !sf_socket_pair(SOCK_SEQPACKET, pair, &error)) {
        close(fd);
        fd = -1;
    }
    if (fd < 0) {
        connect_failed(vm, error, FALSE);
        return;
    }
    vm->qmp = sf_qmp_new(fd, &qmp_handlers, vm);
    attach_channel(vm, pair);
}

/* ---- connecting ---- */

static gboolean on_connect_timeout(gpointer data)
{
    SfVm *vm = data;

    vm->connect_timer = 0;
    sf_vm_connect_end(vm, g_error_new(SF_VM_ERROR, SF_VM_ERROR_TIMEOUT, "VM %s: its QEMU has not answered within %u s",
                                      vm->name, vm->connect_seconds));
    return G_SOURCE_REMOVE;
}

void sf_vm_connect_async(SfVm *vm, guint seconds, GAsyncReadyCallback callback, gpointer data)
{
    vm->connect_task = g_task_new(vm, NULL, callback, data);
    vm->connect_seconds = seconds;
    vm->connect_timer = g_timeout_add_seconds(seconds, on_connect_timeout, vm);
    vm->retry_ms = RETRY_MS_FIRST;
    vm->guest_hello_held = TRUE;
    sf_vm_connect_guest(vm);
    vm_connect(vm);
}

gboolean sf_vm_connect_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}

void sf_vm_connect_end(SfVm *vm, GError *error)
{
    GTask *task = g_steal_pointer(&vm->connect_task);

    g_clear_handle_id(&vm->connect_timer, g_source_remove);
    if (!task) {
        g_clear_error(&error);
    } else if (error) {
        g_task_return_error(task, error);
    } else {
        g_task_return_boolean(task, TRUE);
    }
    g_clear_object(&task);
}

void sf_vm_disconnect(SfVm *vm)
{
    g_clear_handle_id(&vm->retry_timer, g_source_remove);
    g_clear_handle_id(&vm->connect_timer, g_source_remove);
    g_clear_handle_id(&vm->guest_timer, g_source_remove);
    g_clear_handle_id(&vm->clean_timer, g_source_remove);
    g_clear_handle_id(&vm->log_timer, g_source_remove);
    g_clear_pointer(&vm->qmp, sf_qmp_free);
    g_clear_pointer(&vm->channel, sf_qemu_channel_free);
    g_clear_pointer(&vm->guest, sf_guest_channel_free);
    vm->greeted = vm->attached = FALSE;
}
