/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * One object for one QEMU process, and three connections to it:
 *
 *     QMP         qmp.sock: QEMU listens on a socket that we have bound       what stock QEMU can: disks, power button
 *     sf channel  a socket pair: one end goes in by QMP (getfd, sf-attach)    snapshot, load, fold
 *     agent port  agent.sock                                                  frames to and from the guest's agent
 *
 * The process is the truth: connections that break while it lives are made anew with growing delays (also what an
 * adoption does), and only the pidfd says that the VM has gone. At its end all calls under way finish with
 * SF_VM_ERROR_GONE, then "exited" is told, then the directory is removed.
 *
 * Connecting is one volley: getfd and sf-attach go out behind each other, and HELLO lies in the sf channel before QEMU
 * has it. QEMU reads all of it when it has started.
 *
 * vm.json holds what an adoption needs. It is written (tmp file, rename) whenever a step is complete: after start,
 * snapshot, load, commit. A process that sfvmmd left in the middle of a load is marked by the file "loading" and killed
 * at the adoption; what became of a snapshot or a commit that was under way is asked of QEMU (vm_doubt.c).
 *
 * Main thread only.
 */
#include "sfvmm/vm/vm_private.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include "sfvmm/vm/command_line.h"
#include "sfvmm/process/process.h"
#include "sfvmm/wire/state_file.h"

#define CONNECT_SECONDS 60 /* a start or an adoption; 32 shells that start at once are slow */
#define RETRY_MS_FIRST  50u
#define RETRY_MS_MAX    5000u
#define GUEST_RETRY_MS  500u
#define CLEAN_MS        2000u     /* after a load: descriptors that it has left in QEMU go */
#define LOG_BYTES_MAX   (8 << 20) /* a log that is longer begins anew */
#define LOG_SECONDS     5         /* between two looks at the logs */
#define KEEPER_END_MS   2000u     /* after its process, until libvirt has put away what it had of a domain */
#define LOG_TAIL_BYTES  2048      /* of qemu.log, to find its last message */
#define NS_PER_S        1000000000

G_DEFINE_QUARK(sf - vm - error - quark, sf_vm_error)
G_DEFINE_FINAL_TYPE(SfVm, sf_vm, G_TYPE_OBJECT)

enum { SIGNAL_EXITED, SIGNAL_GUEST_MESSAGE, SIGNAL_GUEST_CONNECTED, SIGNAL_RUNNING, N_SIGNALS };
static guint signals[N_SIGNALS];

static void vm_connect(SfVm *vm);

/* ---- small things ---- */

static const char *const role_names[] = { [SF_VM_PARENT] = "parent", [SF_VM_SHELL] = "shell", [SF_VM_CLONE] = "clone" };

const char *sf_vm_name(SfVm *vm)
{
    return vm->name;
}

SfVmRole sf_vm_role(SfVm *vm)
{
    return vm->role;
}

void sf_vm_set_role(SfVm *vm, SfVmRole role)
{
    vm->role = role;
    sf_vm_save(vm, NULL);
}

const char *sf_vm_domain(SfVm *vm)
{
    return vm->keeper ? vm->keeper->name(vm->keeper_data) : NULL;
}

void sf_vm_label(SfVm *vm, const char *parent, guint64 ticket, guint id)
{
    g_autofree char *text = g_strdup_printf("%016" G_GINT64_MODIFIER "x", ticket);
    const SfDomainLineage lineage = { .role = role_names[vm->role], .owner = vm->owner, .vm = vm->name,
                                      .parent = parent, .ticket = text, .snapshot = vm->snapshot_id, .id = id };

    if (vm->keeper) {
        vm->keeper->label(vm->keeper_data, &lineage);
    }
}

pid_t sf_vm_pid(SfVm *vm)
{
    return vm->pid;
}

SfVmConfig *sf_vm_config(SfVm *vm)
{
    return vm->config;
}

const char *sf_vm_directory(SfVm *vm)
{
    return vm->directory;
}

gboolean sf_vm_is_running(SfVm *vm)
{
    return vm->running && !vm->gone;
}

gboolean sf_vm_is_gone(SfVm *vm)
{
    return vm->gone;
}

gboolean sf_vm_has_agent(SfVm *vm)
{
    return vm->guest && sf_guest_channel_is_connected(vm->guest);
}

gboolean sf_vm_expects_agent(SfVm *vm)
{
    return vm->agent_seen;
}

SfRamBase *sf_vm_ram_base(SfVm *vm)
{
    if (!vm->base && vm->role != SF_VM_SHELL) {
        vm->base = sf_ram_base_new();
    }
    return vm->base;
}

SfSnapshot *sf_vm_loaded_snapshot(SfVm *vm)
{
    return vm->snapshot;
}

const char *sf_vm_loaded_snapshot_id(SfVm *vm)
{
    return vm->snapshot_id;
}

void sf_vm_set_loaded_snapshot(SfVm *vm, SfSnapshot *snapshot)
{
    SfSnapshot *old = vm->snapshot;

    vm->snapshot = sf_snapshot_ref(snapshot);
    g_free(vm->snapshot_id);
    vm->snapshot_id = g_strdup(snapshot->id);
    g_clear_pointer(&vm->base, sf_ram_base_unref);
    vm->base = sf_ram_base_ref(snapshot->base);
    if (old) {
        sf_snapshot_unref(old);
    }
}

GPtrArray *sf_vm_disks(SfVm *vm)
{
    return vm->chains;
}

const char *sf_vm_qemu_version(SfVm *vm)
{
    return vm->hello.qemu_version;
}

const char *sf_vm_machine(SfVm *vm)
{
    return vm->hello.machine;
}

gint64 sf_vm_started(SfVm *vm)
{
    return (gint64)vm->start_time * (NS_PER_S / sysconf(_SC_CLK_TCK));
}

const char *sf_vm_cpu(SfVm *vm)
{
    return vm->hello.cpu;
}

char *sf_vm_path(SfVm *vm, const char *file)
{
    return g_build_filename(vm->directory, file, NULL);
}

/* Names of VMs come again while clones still stand on an overlay of the last one of that name: so a random part. */
char *sf_vm_overlay_path(SfVm *vm, const char *disk)
{
    g_autofree char *file = g_strdup_printf("%s-%s-%08x%08x.qcow2", vm->name, disk, g_random_int(), g_random_int());

    return g_build_filename(vm->overlay_directory, file, NULL);
}

char *sf_vm_template_path(SfVm *vm, guint64 size)
{
    g_autofree char *file = g_strdup_printf("%" G_GUINT64_FORMAT ".qcow2", size);

    return g_build_filename(vm->template_directory, file, NULL);
}

static void fail_gone(SfVm *vm, GTask *task)
{
    g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: %s", vm->name,
                            vm->gone ? "it has ended" : "its QEMU is not connected at present; try again");
}

gboolean sf_vm_refuse(SfVm *vm, GTask *task)
{
    if (!vm->gone && vm->channel && vm->greeted && vm->qmp) {
        return FALSE;
    }
    fail_gone(vm, task);
    g_object_unref(task);
    return TRUE;
}

/* ---- vm.json ---- */

static JsonObject *vm_to_json(SfVm *vm)
{
    JsonObject *object = json_object_new();
    JsonArray *disks = json_array_new();

    json_object_set_string_member(object, "role", role_names[vm->role]);
    json_object_set_int_member(object, "pid", vm->pid);
    json_object_set_int_member(object, "start_time", vm->start_time);
    json_object_set_boolean_member(object, "agent", vm->agent_seen);
    json_object_set_object_member(object, "config", sf_vm_config_to_json(vm->config));
    if (vm->keeper) {
        json_object_set_object_member(object, "keeper", vm->keeper->to_json(vm->keeper_data));
        json_object_set_string_member(object, "agent_socket", vm->agent_socket ? vm->agent_socket : "");
        json_object_set_string_member(object, "agent_port", vm->agent_port ? vm->agent_port : "");
    }
    if (vm->snapshot_id) {
        json_object_set_string_member(object, "snapshot", vm->snapshot_id);
    }
    sf_vm_lazy_to_json(vm, object);
    sf_vm_nic_to_json(vm, object);
    for (guint i = 0; i < vm->disks->len; i++) {
        json_array_add_object_element(disks, sf_vm_disk_to_json(g_ptr_array_index(vm->disks, i)));
    }
    json_object_set_array_member(object, "disks", disks);
    return object;
}

gboolean sf_vm_save(SfVm *vm, GError **error)
{
    g_autoptr(JsonObject) object = vm_to_json(vm);
    g_autofree char *path = sf_vm_path(vm, SF_VM_FILE_JSON);
    g_autoptr(GError) failure = NULL;

    if (sf_state_write(path, object, &failure)) {
        return TRUE;
    }
    g_warning("VM %s: %s; a restarted sfvmmd would not find this VM as it is", vm->name, failure->message);
    g_propagate_error(error, g_steal_pointer(&failure));
    return FALSE;
}

static gboolean restore_disks(SfVm *vm, JsonObject *object, GError **error)
{
    JsonNode *disks = json_object_get_member(object, "disks");

    if (!disks || !JSON_NODE_HOLDS_ARRAY(disks)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "no \"disks\"");
        return FALSE;
    }
    for (guint i = 0; i < json_array_get_length(json_node_get_array(disks)); i++) {
        JsonNode *node = json_array_get_element(json_node_get_array(disks), i);
        SfVmDisk *disk = JSON_NODE_HOLDS_OBJECT(node) ? sf_vm_disk_from_json(json_node_get_object(node), error) : NULL;
        if (!disk) {
            return FALSE;
        }
        sf_vm_add_disk(vm, disk);
    }
    return TRUE;
}

static SfVm *vm_from_json(const SfLauncherOptions *options, const char *name, JsonObject *object, GError **error)
{
    const char *role_name = json_object_get_string_member_with_default(object, "role", "");
    const char *snapshot = json_object_get_string_member_with_default(object, "snapshot", NULL);
    JsonNode *config_node = json_object_get_member(object, "config");
    g_autoptr(SfVmConfig) config = NULL;
    g_autoptr(SfVm) vm = NULL;
    guint role = 0;

    while (role < G_N_ELEMENTS(role_names) && strcmp(role_names[role], role_name) != 0) {
        role++;
    }
    if (role == G_N_ELEMENTS(role_names) || !config_node || !JSON_NODE_HOLDS_OBJECT(config_node)) {
        g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "no \"role\" or \"config\"");
        return NULL;
    }
    config = sf_vm_config_restore(json_node_get_object(config_node), error);
    if (!config) {
        return NULL;
    }
    vm = sf_vm_new(options, name, role, config);
    vm->snapshot_id = g_strdup(snapshot);
    vm->pid = json_object_get_int_member_with_default(object, "pid", 0);
    vm->start_time = json_object_get_int_member_with_default(object, "start_time", 0);
    vm->agent_seen = json_object_get_boolean_member_with_default(object, "agent", FALSE);
    sf_vm_nic_from_json(vm, object);
    if (json_object_has_member(object, "keeper") &&
        JSON_NODE_HOLDS_OBJECT(json_object_get_member(object, "keeper"))) {
        vm->keeper_json = json_object_ref(json_object_get_object_member(object, "keeper"));
        vm->agent_socket = g_strdup(json_object_get_string_member_with_default(object, "agent_socket", ""));
        vm->agent_port = g_strdup(json_object_get_string_member_with_default(object, "agent_port", ""));
    }
    return restore_disks(vm, object, error) && sf_vm_lazy_from_json(vm, object, error) ? g_steal_pointer(&vm) : NULL;
}

SfVm *sf_vm_restore(const SfLauncherOptions *options, const char *name, GError **error)
{
    g_autofree char *path = g_build_filename(options->run_directory, "vm", name, SF_VM_FILE_JSON, NULL);
    g_autoptr(JsonObject) object = sf_state_read(path, error);
    SfVm *vm = object ? vm_from_json(options, name, object, error) : NULL;

    if (object && !vm) {
        g_prefix_error(error, "%s: ", path);
    }
    return vm;
}

gboolean sf_vm_rename(SfVm *vm, const char *name, GError **error)
{
    g_autofree char *parent = g_path_get_dirname(vm->directory);
    g_autofree char *directory = g_build_filename(parent, name, NULL);

    /* An existing directory that is not empty makes it fail. */
    if (rename(vm->directory, directory) < 0) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "VM %s can't be renamed to %s: %s", vm->name, name,
                    g_strerror(errno));
        return FALSE;
    }
    g_free(vm->directory);
    vm->directory = g_steal_pointer(&directory);
    g_free(vm->name);
    vm->name = g_strdup(name);
    if (vm->guest) {
        sf_guest_channel_set_name(vm->guest, name);
    }
    return TRUE; /* vm.json holds no name: that of the directory counts */
}

/* ---- logs ---- */

/*
 * Both logs are written by QEMU, the console's with all that the guest prints, into a directory that is memory on most
 * hosts. They are opened for appending, so QEMU goes on at the new end.
 */
static gboolean on_log_time(gpointer data)
{
    static const char *const files[] = { SF_VM_FILE_CONSOLE_LOG, SF_VM_FILE_LOG };
    SfVm *vm = data;

    for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autofree char *path = sf_vm_path(vm, files[i]);
        struct stat st;
        if (lstat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > LOG_BYTES_MAX && truncate(path, 0) == 0) {
            g_message("VM %s: %s was longer than %d bytes and begins anew", vm->name, files[i], LOG_BYTES_MAX);
        }
    }
    return G_SOURCE_CONTINUE;
}

/* ---- the end ---- */

/* "2026-01-31T12:00:00.000000Z program: ..." */
static gboolean line_is_stamped(const char *line)
{
    return g_ascii_isdigit(line[0]) && strcspn(line, "Z \n") > strlen("2026-01-31T") &&
           line[strlen("2026-01-31")] == 'T';
}

/* QEMU's last message: from its last time stamp on, without that, the program's name and the option it is about. */
static char *last_message(char *text)
{
    char *message = text, *option;

    for (char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        if (line_is_stamped(line)) {
            message = line + strcspn(line, " ");
        }
    }
    option = g_strrstr(message, "}: ");
    message = option ? option + strlen("}: ") : message;
    return g_utf8_make_valid(g_strstrip(g_strdelimit(message, "\n", ' ')), -1);
}

static char *last_log_message(SfVm *vm)
{
    g_autofree char *path = sf_vm_path(vm, SF_VM_FILE_LOG);
    char text[LOG_TAIL_BYTES + 1];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    ssize_t n = fd < 0 ? -1 : pread(fd, text, LOG_TAIL_BYTES, MAX(0, size - LOG_TAIL_BYTES));

    if (fd >= 0) {
        close(fd);
    }
    if (n <= 0) {
        return NULL;
    }
    text[n] = '\0';
    return last_message(g_strchomp(text));
}

static char *exit_reason(SfVm *vm)
{
    g_autofree char *status = vm->pidfd >= 0 ? sf_process_reap(vm->pidfd, "QEMU") : NULL;
    g_autofree char *line = NULL;

    if (vm->shutdown_reason) {
        return g_strdup(vm->shutdown_reason);
    }
    line = last_log_message(vm);
    return g_strdup_printf("%s%s%s", status ? status : "QEMU ended", line && *line ? ": " : "",
                           line && *line ? line : "");
}

static void vm_disconnect(SfVm *vm)
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

void sf_vm_keep_writes(SfVm *vm)
{
    for (guint i = 0; vm->role == SF_VM_PARENT && i < vm->disks->len; i++) {
        const SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        const SfDiskConfig *config = g_ptr_array_index(vm->config->disks, i);
        if (disk->chain && !config->ephemeral) {
            SfDiskChain *chain = sf_disk_chain_copy(disk->chain);
            if (disk->overlay) { /* of a snapshot that was perhaps made; if not, it is empty */
                g_ptr_array_add(chain->layers, sf_disk_layer_ref(disk->overlay));
            }
            sf_late_commits_add(vm->late_commits, vm->name, chain);
        }
    }
}

static void vm_ended(SfVm *vm)
{
    g_autofree char *reason = NULL;

    g_object_ref(vm);
    if (vm->qmp) {
        sf_qmp_drain(vm->qmp); /* its last words: SHUTDOWN and why */
    }
    reason = exit_reason(vm);
    vm->gone = TRUE;
    vm->running = FALSE;
    vm_disconnect(vm);
    sf_vm_lazy_end(vm);
    sf_vm_settle_lost(vm);
    sf_vm_connect_end(vm, g_error_new(SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: %s", vm->name, reason));
    g_message("VM %s: ended: %s", vm->name, reason);
    sf_vm_keep_writes(vm);
    g_signal_emit(vm, signals[SIGNAL_EXITED], 0, reason);
    g_ptr_array_set_size(vm->chains, 0); /* whoever still holds the object needs no layer any more */
    g_ptr_array_set_size(vm->disks, 0);
    sf_state_remove_folder(vm->directory);
    if (vm->killed) {
        g_object_unref(vm);
    }
    g_object_unref(vm);
}

static gboolean on_keeper_is_late(gpointer data)
{
    SfVm *vm = data;

    vm->end_timer = 0;
    vm_ended(vm);
    return G_SOURCE_REMOVE;
}

static gboolean on_process_ended(int fd, GIOCondition condition, gpointer data)
{
    SfVm *vm = data;

    vm->exit_source = 0;
    if (vm->keeper && !vm->keeper_ended) {
        vm->end_timer = g_timeout_add(KEEPER_END_MS, on_keeper_is_late, vm);
    } else {
        vm_ended(vm);
    }
    return G_SOURCE_REMOVE;
}

void sf_vm_keeper_ended(SfVm *vm, const char *reason)
{
    vm->keeper_ended = TRUE;
    if (!vm->shutdown_reason) {
        vm->shutdown_reason = g_strdup(reason);
    }
    if (vm->end_timer) {
        g_clear_handle_id(&vm->end_timer, g_source_remove);
        vm_ended(vm);
    } else if (vm->pidfd < 0 && !vm->gone) { /* there is no process whose end would tell */
        sf_vm_connect_end(vm, g_error_new(SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: %s", vm->name, reason));
    }
}

void sf_vm_set_process(SfVm *vm, pid_t pid, guint64 start_time, int pidfd)
{
    vm->pid = pid;
    vm->start_time = start_time;
    vm->pidfd = pidfd;
    vm->exit_source = g_unix_fd_add(pidfd, G_IO_IN, on_process_ended, vm);
    vm->log_timer = g_timeout_add_seconds_full(G_PRIORITY_LOW, LOG_SECONDS, on_log_time, vm, NULL);
}

/* Its name can be given to another VM at once. */
static void free_name(SfVm *vm)
{
    g_autofree char *directory = g_strdup_printf("%s" SF_VM_DYING "%d", vm->directory, vm->pid);

    if (rename(vm->directory, directory) == 0) {
        g_free(vm->directory);
        vm->directory = g_steal_pointer(&directory);
    }
}

void sf_vm_kill(SfVm *vm)
{
    if (vm->keeper && vm->pidfd < 0 && !vm->gone) { /* it has not told us its process yet */
        vm->keeper->kill(vm->keeper_data, -1);
        vm->gone = TRUE;
        vm_disconnect(vm);
        sf_state_remove_folder(vm->directory);
        return;
    }
    if (vm->gone || vm->pidfd < 0) {
        return;
    }
    if (!vm->shutdown_reason) {
        vm->shutdown_reason = g_strdup("killed");
    }
    if (!vm->killed) {
        vm->killed = TRUE;
        g_object_ref(vm); /* until the process is reaped and its directory removed */
        free_name(vm);
    }
    if (vm->keeper) {
        vm->keeper->kill(vm->keeper_data, vm->pidfd);
    } else {
        syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0);
    }
}

void sf_vm_powerdown(SfVm *vm)
{
    if (vm->qmp) {
        sf_qmp_execute(vm->qmp, "system_powerdown", NULL, -1, NULL, NULL);
    }
}

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
        fail_gone(vm, task);
        g_object_unref(task);
        return;
    }
    sf_qmp_execute(vm->qmp, command, args, -1, on_qmp_reply, task);
}

JsonNode *sf_vm_qmp_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

/* ---- the sf channel ---- */

/* On record while a restarted sfvmmd could not tell what the process is. */
static void mark_loading(SfVm *vm, gboolean loading)
{
    g_autofree char *path = sf_vm_path(vm, SF_VM_FILE_LOADING);
    int fd;

    if (!loading) {
        unlink(path);
        return;
    }
    fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd >= 0) {
        close(fd);
    }
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
    vm->running = TRUE;
    if (vm->role == SF_VM_CLONE) {
        mark_loading(vm, FALSE); /* from here on others hear that it runs; the answer to its "cont" may be late */
    }
    sf_vm_gate_running(vm);
    g_signal_emit(vm, signals[SIGNAL_RUNNING], 0, (guint64)running.at);
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

/* By a short way, as a run directory may have a longer path than a socket address can hold. errno is kept. */
static int connect_socket(const char *folder, const char *file, GError **error)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int directory = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = directory < 0 ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int saved = 0;

    g_snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", directory, file);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        saved = errno;
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "%s/%s: %s", folder, file, g_strerror(saved));
        if (fd >= 0) {
            close(fd);
        }
        fd = -1;
    }
    if (directory >= 0) {
        close(directory);
    }
    errno = saved;
    return fd;
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
                    : connect_socket(vm->directory, SF_VM_FILE_QMP, &error);
    if (fd >= 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        g_set_error(&error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "no socket pair: %s", g_strerror(errno));
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

/* ---- the agent's port ---- */

static void connect_guest(SfVm *vm);

static void on_guest_connected(gpointer owner)
{
    SfVm *vm = owner;

    if (!vm->agent_seen) {
        vm->agent_seen = TRUE;
        sf_vm_save(vm, NULL);
    }
    g_signal_emit(owner, signals[SIGNAL_GUEST_CONNECTED], 0);
}

static void on_guest_message(const struct sf_gp_header *header, const guint8 *payload, gpointer owner)
{
    SfVm *vm = g_object_ref(SF_VM(owner));
    struct sf_gp_header copy = *header;
    g_autoptr(GBytes) bytes = g_bytes_new(payload, header->length);

    g_signal_emit(vm, signals[SIGNAL_GUEST_MESSAGE], 0, &copy, bytes);
    g_object_unref(vm);
}

static gboolean on_guest_retry(gpointer data)
{
    SfVm *vm = data;

    vm->guest_timer = 0;
    connect_guest(vm);
    return G_SOURCE_REMOVE;
}

static void connect_guest_later(SfVm *vm)
{
    if (!vm->gone && !vm->guest_timer) {
        vm->guest_timer = g_timeout_add(GUEST_RETRY_MS, on_guest_retry, vm);
    }
}

static void on_guest_closed(gpointer owner)
{
    SfVm *vm = owner;

    g_clear_pointer(&vm->guest, sf_guest_channel_free);
    connect_guest_later(vm);
}

static const SfGuestChannelHandlers guest_handlers = { on_guest_connected, on_guest_message, on_guest_closed };

static void connect_guest(SfVm *vm)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *folder = vm->agent_socket ? g_path_get_dirname(vm->agent_socket) : g_strdup(vm->directory);
    g_autofree char *file = g_path_get_basename(vm->agent_socket ? vm->agent_socket : SF_VM_FILE_AGENT);
    int fd = connect_socket(folder, file, &error);

    if (fd < 0 && errno == EACCES && vm->keeper) {
        g_clear_error(&error);
        fd = vm->keeper->open_port(vm->keeper_data, &error);
    }
    if (fd < 0) {
        g_debug("VM %s: the port of its agent: %s", vm->name, error->message); /* it has most likely just ended */
        connect_guest_later(vm);
        return;
    }
    vm->guest = sf_guest_channel_new(fd, vm->name, &guest_handlers, vm);
    if (!vm->guest_hello_held) {
        sf_guest_channel_hello(vm->guest);
    }
}

void sf_vm_guest_greet(SfVm *vm)
{
    if (vm->guest_hello_held && vm->role != SF_VM_SHELL) {
        vm->guest_hello_held = FALSE;
        if (vm->guest) {
            sf_guest_channel_hello(vm->guest);
        }
    }
}

gboolean sf_vm_guest_send(SfVm *vm, guint8 type, guint32 request, const void *payload, gsize length, GError **error)
{
    if (vm->gone || !vm->guest) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: %s", vm->name,
                    vm->gone ? "it has ended" : "the port of its agent is not connected");
        return FALSE;
    }
    return sf_guest_channel_send(vm->guest, type, request, payload, length, error);
}

/* ---- connecting ---- */

static gboolean on_connect_timeout(gpointer data)
{
    SfVm *vm = data;

    vm->connect_timer = 0;
    sf_vm_connect_end(vm, g_error_new(SF_VM_ERROR, SF_VM_ERROR_TIMEOUT, "VM %s: its QEMU has not answered within %d s",
                                vm->name, CONNECT_SECONDS));
    return G_SOURCE_REMOVE;
}

void sf_vm_connect_async(SfVm *vm, GAsyncReadyCallback callback, gpointer data)
{
    vm->connect_task = g_task_new(vm, NULL, callback, data);
    vm->connect_timer = g_timeout_add_seconds(CONNECT_SECONDS, on_connect_timeout, vm);
    vm->guest_hello_held = TRUE;
    connect_guest(vm);
    vm_connect(vm);
}

gboolean sf_vm_connect_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}

/* ---- snapshot ---- */

typedef struct {
    char *id;
    guint n_disks;
    struct sf_qc_disk disks[SF_QC_MAX_DISKS];
    SfSnapshot *snapshot;
    GPtrArray *frozen; /* of SfDiskChain */
    GError *error;
} SnapshotOp;

static void snapshot_op_free(gpointer data)
{
    SnapshotOp *op = data;

    g_clear_pointer(&op->snapshot, sf_snapshot_unref);
    g_clear_pointer(&op->frozen, g_ptr_array_unref);
    g_clear_error(&op->error);
    g_free(op->id);
    g_free(op);
}

/* The next of those that wait, if none is under way. */
static void snapshot_next(SfVm *vm)
{
    while (!vm->snapshot_task && !g_queue_is_empty(&vm->snapshot_queue)) {
        GTask *task = g_queue_pop_head(&vm->snapshot_queue);
        if (sf_vm_refuse(vm, task)) {
            continue;
        }
        vm->snapshot_task = task;
        if (vm->settle) {
            sf_vm_settle_abort(vm);
        } else {
            sf_vm_snapshot_begin(vm);
        }
    }
}

static void snapshot_end(SfVm *vm)
{
    GTask *task = g_steal_pointer(&vm->snapshot_task);
    SnapshotOp *op = g_task_get_task_data(task);

    if (op->error) {
        g_task_return_error(task, g_steal_pointer(&op->error));
    } else {
        g_task_return_pointer(task, sf_snapshot_ref(op->snapshot), (GDestroyNotify)sf_snapshot_unref);
    }
    snapshot_next(vm);
    g_object_unref(task);
}

static void on_snapshot_disks_done(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);

    /* The snapshot stands, whatever this says; clones over it might be refused QEMU's lock on an image. */
    if (error && !op->error) {
        g_warning("VM %s: snapshot %s: %s", vm->name, op->id, error->message);
    }
    snapshot_end(vm);
}

static void snapshot_undo(SfVm *vm)
{
    SfQmpBatch *batch = vm->qmp ? sf_qmp_batch_new(vm->qmp) : NULL;

    for (guint i = 0; i < vm->disks->len; i++) {
        SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        if (disk->overlay && batch) {
            sf_vm_disk_overlay_undo(disk, batch);
        }
    }
    if (batch) {
        sf_qmp_batch_run(batch, on_snapshot_disks_done, g_object_ref(vm));
    } else {
        snapshot_end(vm);
    }
}

static void snapshot_fail(SfVm *vm, const GError *error, SfVmError code)
{
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);

    op->error =
        g_error_new(SF_VM_ERROR, vm->gone ? SF_VM_ERROR_GONE : code, "VM %s: snapshot: %s", vm->name, error->message);
    snapshot_undo(vm);
}

/* QEMU has done it: from here on the disks are what they are, even if the reply turns out to be of no use. */
static void snapshot_take_over(SfVm *vm, SnapshotOp *op)
{
    SfQmpBatch *batch = sf_qmp_batch_new(vm->qmp);

    op->frozen = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);
    for (guint i = 0; i < vm->disks->len; i++) {
        SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        g_ptr_array_add(op->frozen, sf_disk_chain_copy(disk->chain));
        if (disk->overlay) {
            sf_vm_disk_overlay_done(disk, batch);
        }
    }
    sf_vm_save(vm, NULL);
    sf_qmp_batch_run(batch, on_snapshot_disks_done, g_object_ref(vm));
}

static void on_snapshot_reply(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);
    int fds[SF_QC_MAX_FDS];
    guint n;

    if (error && g_error_matches(error, G_IO_ERROR, G_IO_ERROR_FAILED)) {
        snapshot_fail(vm, error, SF_VM_ERROR_REFUSED);
        return;
    }
    if (error) { /* no reply: whether it was made is sorted out when QEMU is connected again */
        op->error = g_error_new(SF_VM_ERROR, vm->gone ? SF_VM_ERROR_GONE : SF_VM_ERROR_FAILED, "VM %s: snapshot: %s",
                                vm->name, error->message);
        snapshot_end(vm);
        return;
    }
    n = sf_qc_message_steal_fds(message, fds);
    op->snapshot = sf_snapshot_new(op->id, sf_vm_ram_base(vm), vm->snapshot, message->payload, fds, n, &op->error);
    snapshot_take_over(vm, op);
}

static void on_overlays_added(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);
    guint32 flags = sf_ram_base_in_use(sf_vm_ram_base(vm)) ? SF_QC_SNAPSHOT_SHARED_BASE : 0;
    GBytes *packet;

    if (error || !vm->channel) {
        g_autoptr(GError) failure =
            error ? g_error_copy(error) : g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "QEMU is not connected");
        snapshot_fail(vm, failure, SF_VM_ERROR_FAILED);
        return;
    }
    packet = sf_qc_request_snapshot(sf_qemu_channel_serial(vm->channel), flags, op->disks, op->n_disks);
    sf_qemu_channel_request(vm->channel, SF_QC_SNAPSHOT, packet, NULL, 0, on_snapshot_reply, g_object_ref(vm));
}

static gboolean snapshot_add_overlay(SfVm *vm, SnapshotOp *op, SfVmDisk *disk, SfQmpBatch *batch, GError **error)
{
    g_autofree char *path = sf_vm_overlay_path(vm, disk->chain->id);
    g_autofree char *template = sf_vm_template_path(vm, disk->chain->size);
    struct sf_qc_disk *entry = &op->disks[op->n_disks++];

    if (!sf_vm_disk_add_overlay(disk, batch, template, path, vm->uid, vm->gid, error)) {
        return FALSE;
    }
    g_strlcpy(entry->node, g_ptr_array_index(disk->nodes, disk->nodes->len - 1), sizeof(entry->node));
    g_strlcpy(entry->overlay, disk->overlay_node, sizeof(entry->overlay));
    return TRUE;
}

static void on_overlays_failed(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    snapshot_undo(vm);
}

void sf_vm_snapshot_begin(SfVm *vm)
{
    SnapshotOp *op = g_task_get_task_data(vm->snapshot_task);
    SfQmpBatch *batch;

    if (!vm->qmp || !vm->channel || !vm->greeted) {
        fail_gone(vm, vm->snapshot_task);
        g_clear_object(&vm->snapshot_task);
        snapshot_next(vm);
        return;
    }
    if (sf_vm_doubts_any(vm)) { /* of an earlier snapshot or commit; the disks must not be changed meanwhile */
        op->error = g_error_new(SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                "VM %s: what became of its disks is being sorted out; try again", vm->name);
        snapshot_end(vm);
        sf_vm_doubts_sort_out(vm);
        return;
    }
    batch = sf_qmp_batch_new(vm->qmp);
    for (guint i = 0; i < vm->disks->len && !op->error; i++) {
        SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        if (!disk->chain->readonly) {
            snapshot_add_overlay(vm, op, disk, batch, &op->error);
        }
    }
    sf_vm_save(vm, NULL); /* before QEMU is asked: a killed sfvmmd does not learn which of the overlays it has taken */
    sf_qmp_batch_run(batch, op->error ? on_overlays_failed : on_overlays_added, g_object_ref(vm));
}

void sf_vm_snapshot_async(SfVm *vm, const char *id, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(vm, NULL, callback, data);
    SnapshotOp *op = g_new0(SnapshotOp, 1);

    op->id = g_strdup(id);
    g_task_set_task_data(task, op, snapshot_op_free);
    if (sf_vm_refuse(vm, task)) {
        return;
    }
    if (vm->load_task || vm->role == SF_VM_SHELL || (vm->snapshot_id && !vm->snapshot)) {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_FAILED, "VM %s: no snapshot now: %s", vm->name,
                                vm->role == SF_VM_SHELL ? "it is an empty shell"
                                : vm->load_task         ? "it is being loaded"
                                                : "the snapshot it was made from was lost when sfvmmd restarted");
        g_object_unref(task);
        return;
    }
    g_queue_push_tail(&vm->snapshot_queue, task);
    snapshot_next(vm);
}

SfSnapshot *sf_vm_snapshot_finish(SfVm *vm, GAsyncResult *result, GPtrArray **frozen_disks, GError **error)
{
    SnapshotOp *op = g_task_get_task_data(G_TASK(result));
    SfSnapshot *snapshot = g_task_propagate_pointer(G_TASK(result), error);

    if (frozen_disks) {
        *frozen_disks = snapshot ? g_steal_pointer(&op->frozen) : NULL;
    }
    return snapshot;
}

/* ---- load ---- */

typedef struct {
    SfSnapshot *snapshot;
    gboolean resume;
    gboolean gated;
} LoadOp;

static void load_op_free(gpointer data)
{
    LoadOp *op = data;

    g_clear_pointer(&op->snapshot, sf_snapshot_unref);
    g_free(op);
}

static void on_cleaned(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    if (error) {
        g_debug("VM %s: %s", vm->name, error->message);
    }
}

static gboolean on_clean_time(gpointer data)
{
    SfVm *vm = data;

    vm->clean_timer = 0;
    if (vm->qmp) {
        SfQmpBatch *batch = sf_qmp_batch_new(vm->qmp);
        for (guint i = 0; i < vm->disks->len; i++) {
            sf_vm_disk_load_clean(g_ptr_array_index(vm->disks, i), batch);
        }
        sf_qmp_batch_run(batch, on_cleaned, g_object_ref(vm));
    }
    return G_SOURCE_REMOVE;
}

static void load_complete(SfVm *vm)
{
    mark_loading(vm, FALSE);
    vm->clean_timer = g_timeout_add_full(G_PRIORITY_LOW, CLEAN_MS, on_clean_time, vm, NULL);
}

static void on_resumed(JsonNode *result, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    if (!error) {
        load_complete(vm);
    } else if (!vm->gone) {
        g_free(vm->shutdown_reason);
        vm->shutdown_reason = g_strdup_printf("it can't be resumed: %s", error->message);
        sf_vm_kill(vm);
    }
}

void sf_vm_resume_loaded(SfVm *vm)
{
    if (vm->qmp) {
        sf_qmp_execute(vm->qmp, "cont", NULL, -1, on_resumed, g_object_ref(vm));
    }
}

static void load_end(SfVm *vm, GError *error)
{
    GTask *task = g_steal_pointer(&vm->load_task);

    sf_vm_gate_leave();
    if (error) {
        g_prefix_error(&error, "VM %s: load: ", vm->name);
        g_task_return_error(task, error);
    } else {
        g_task_return_boolean(task, TRUE);
    }
    g_object_unref(task);
}

static void on_load_reply(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    LoadOp *op = g_task_get_task_data(vm->load_task);
    struct sf_qc_load_reply reply;
    GError *failure = NULL;

    if (error) {
        failure = g_error_new_literal(SF_VM_ERROR, vm->gone ? SF_VM_ERROR_GONE : SF_VM_ERROR_FAILED, error->message);
    } else {
        sf_qc_parse_load(message->payload, message->n_fds, &reply, &failure);
    }
    if (failure) {
        load_end(vm, failure);
        return;
    }
    g_debug("VM %s: loaded in %" G_GUINT64_FORMAT " us: map %" G_GUINT64_FORMAT ", device %" G_GUINT64_FORMAT
            ", blocks %" G_GUINT64_FORMAT,
            vm->name, (guint64)reply.total / 1000, (guint64)reply.map / 1000, (guint64)reply.device / 1000,
            (guint64)reply.blocks / 1000);
    vm->role = SF_VM_CLONE;
    sf_vm_set_loaded_snapshot(vm, op->snapshot);
    sf_vm_save(vm, NULL);
    vm->guest_hello_held = FALSE;
    if (op->gated) {
        sf_vm_gate_wait(vm);
    } else {
        load_complete(vm);
    }
    load_end(vm, NULL);
}

/* Memory is there, or comes on demand from now on: device state. */
static void load_state(SfVm *vm, guint32 flags)
{
    LoadOp *op = g_task_get_task_data(vm->load_task);
    gboolean at_once = op->resume && sf_vm_gate_is_alone() && !vm->keeper; /* a keeper resumes it itself */
    int fds[SF_QC_MAX_FDS];
    guint n = 0;
    g_autoptr(GBytes) payload = NULL;
    GError *failure = NULL;
    GBytes *packet;

    payload = sf_snapshot_load_request(op->snapshot, flags | (at_once ? SF_QC_LOAD_RESUME : 0), fds, &n, &failure);
    if (!payload) {
        load_end(vm, failure);
        return;
    }
    op->gated = op->resume && !at_once;
    if (vm->guest) {
        sf_guest_channel_hello(vm->guest); /* waits at the port until the guest is there */
    }
    packet = sf_qc_request_load(sf_qemu_channel_serial(vm->channel), payload);
    sf_qemu_channel_request(vm->channel, SF_QC_LOAD, packet, fds, n, on_load_reply, g_object_ref(vm));
}

/* Takes the error. */
static void on_load_mapped(SfVm *vm, GError *error)
{
    if (!error && !vm->channel) {
        error = g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "QEMU is not connected");
    }
    if (error) {
        load_end(vm, error);
    } else {
        load_state(vm, SF_QC_LOAD_MAPPED);
    }
}

static void on_load_disks(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    LoadOp *op = g_task_get_task_data(vm->load_task);
    GError *failure = NULL;

    if (error || !vm->channel) {
        load_end(vm, error ? g_error_copy(error)
                           : g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_GONE, "QEMU is not connected"));
    } else if (!vm->lazy) {
        load_state(vm, 0);
    } else if (!sf_vm_lazy_map(vm, op->snapshot, on_load_mapped, &failure)) {
        load_end(vm, failure);
    }
}

static gboolean load_disk(SfVm *vm, const SfDiskChain *frozen, SfQmpBatch *batch, GError **error)
{
    for (guint i = 0; i < vm->disks->len; i++) {
        SfVmDisk *disk = g_ptr_array_index(vm->disks, i);
        const SfDiskConfig *config = g_ptr_array_index(vm->config->disks, i);
        if (strcmp(config->id, frozen->id) == 0) {
            gboolean ok = sf_vm_disk_load(disk, sf_disk_chain_copy(frozen), batch, error);
            if (!g_ptr_array_find(vm->chains, disk->chain, NULL)) {
                g_ptr_array_add(vm->chains, disk->chain);
            }
            return ok;
        }
    }
    g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "the snapshot has a disk %s, this shell has none", frozen->id);
    return FALSE;
}

static void on_load_disks_failed(const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;

    load_end(vm, g_object_steal_data(G_OBJECT(vm->load_task), "error"));
}

void sf_vm_load_async(SfVm *vm, SfSnapshot *snapshot, GPtrArray *frozen_disks, gboolean resume,
                      const SfFaultHandler *handler, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(vm, NULL, callback, data);
    LoadOp *op = g_new0(LoadOp, 1);
    GError *error = NULL;
    SfQmpBatch *batch;

    op->snapshot = sf_snapshot_ref(snapshot);
    op->resume = resume;
    g_task_set_task_data(task, op, load_op_free);
    if (sf_vm_refuse(vm, task)) {
        return;
    }
    if (vm->role != SF_VM_SHELL || vm->load_task || (frozen_disks ? frozen_disks->len : 0) != vm->disks->len) {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                "VM %s: load: it is no empty shell, or has other disks", vm->name);
        g_object_unref(task);
        return;
    }
    if (sf_snapshot_is_lazy(snapshot) && !sf_vm_lazy_begin(vm, handler, snapshot, &error)) {
        g_task_return_error(task, error);
        g_object_unref(task);
        return;
    }
    vm->load_task = task;
    sf_vm_gate_enter();
    mark_loading(vm, TRUE);
    batch = sf_qmp_batch_new(vm->qmp);
    sf_vm_nic_load(vm, batch);
    for (guint i = 0; i < vm->disks->len && !error; i++) {
        load_disk(vm, g_ptr_array_index(frozen_disks, i), batch, &error);
    }
    if (error) {
        g_object_set_data(G_OBJECT(task), "error", error);
    }
    sf_qmp_batch_run(batch, error ? on_load_disks_failed : on_load_disks, g_object_ref(vm));
}

gboolean sf_vm_load_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}

/* ---- check ---- */

static void on_check_reply(SfQcMessage *message, const GError *error, gpointer data)
{
    g_autoptr(GTask) task = data;
    GError *failure = NULL;
    char *text = NULL;

    if (error) {
        g_task_return_error(task, g_error_copy(error));
    } else if (!sf_qc_parse_check(message->payload, message->n_fds, &text, &failure)) {
        g_task_return_error(task, failure);
    } else {
        g_task_return_pointer(task, text, g_free);
    }
}

void sf_vm_check_async(SfVm *vm, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(vm, NULL, callback, data);

    if (sf_vm_refuse(vm, task)) {
        return;
    }
    sf_qemu_channel_request(vm->channel, SF_QC_CHECK, sf_qc_request_check(sf_qemu_channel_serial(vm->channel)), NULL, 0,
                            on_check_reply, task);
}

char *sf_vm_check_finish(SfVm *vm, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

/* ---- the object ---- */

void sf_vm_add_disk(SfVm *vm, SfVmDisk *disk)
{
    g_ptr_array_add(vm->disks, disk);
    if (disk->chain) {
        g_ptr_array_add(vm->chains, disk->chain);
    }
}

SfVm *sf_vm_new(const SfLauncherOptions *options, const char *name, SfVmRole role, SfVmConfig *config)
{
    SfVm *vm = g_object_new(SF_TYPE_VM, NULL);

    vm->name = g_strdup(name);
    vm->directory = g_build_filename(options->run_directory, "vm", name, NULL);
    vm->overlay_directory = options->overlay_directory ? g_strdup(options->overlay_directory)
                                                       : g_build_filename(options->run_directory, "disk", NULL);
    vm->template_directory = g_build_filename(options->run_directory, "template", NULL);
    vm->owner = g_strdup(options->run_directory);
    vm->late_commits = options->late_commits;
    vm->uid = options->uid;
    vm->gid = options->gid;
    vm->role = role;
    vm->config = sf_vm_config_ref(config);
    return vm;
}

/* The process goes on, and so must its files: sfvmmd may end while its VMs run. The next one takes them over from
 * vm.json. */
static void sf_vm_finalize(GObject *object)
{
    SfVm *vm = SF_VM(object);

    for (guint i = 0; i < vm->disks->len && vm->pidfd >= 0 && !vm->gone; i++) {
        sf_vm_disk_leave(g_ptr_array_index(vm->disks, i));
    }
    g_clear_handle_id(&vm->exit_source, g_source_remove);
    g_clear_handle_id(&vm->end_timer, g_source_remove);
    vm_disconnect(vm);
    if (vm->keeper) {
        vm->keeper->free(vm->keeper_data);
    }
    g_clear_pointer(&vm->keeper_json, json_object_unref);
    g_clear_object((GObject **)&vm->handler.owner);
    g_free(vm->handler_id);
    if (vm->pidfd >= 0) {
        close(vm->pidfd);
    }
    g_clear_pointer(&vm->snapshot, sf_snapshot_unref);
    g_clear_pointer(&vm->base, sf_ram_base_unref);
    g_ptr_array_unref(vm->chains);
    g_ptr_array_unref(vm->disks);
    g_array_unref(vm->vcpu_threads);
    g_clear_pointer(&vm->config, sf_vm_config_unref);
    g_free(vm->tap);
    g_free(vm->agent_socket);
    g_free(vm->agent_port);
    g_free(vm->snapshot_id);
    g_free(vm->shutdown_reason);
    g_free(vm->template_directory);
    g_free(vm->owner);
    g_free(vm->overlay_directory);
    g_free(vm->directory);
    g_free(vm->name);
    G_OBJECT_CLASS(sf_vm_parent_class)->finalize(object);
}

static void sf_vm_init(SfVm *vm)
{
    vm->pidfd = -1;
    vm->retry_ms = RETRY_MS_FIRST;
    vm->disks = g_ptr_array_new_with_free_func((GDestroyNotify)sf_vm_disk_free);
    vm->chains = g_ptr_array_new();
    vm->vcpu_threads = g_array_new(FALSE, FALSE, sizeof(pid_t));
}

static void sf_vm_class_init(SfVmClass *class)
{
    G_OBJECT_CLASS(class)->finalize = sf_vm_finalize;
    signals[SIGNAL_EXITED] =
        g_signal_new("exited", SF_TYPE_VM, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_STRING);
    signals[SIGNAL_GUEST_MESSAGE] = g_signal_new("guest-message", SF_TYPE_VM, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL,
                                                 G_TYPE_NONE, 2, G_TYPE_POINTER, G_TYPE_BYTES);
    signals[SIGNAL_GUEST_CONNECTED] =
        g_signal_new("guest-connected", SF_TYPE_VM, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 0);
    signals[SIGNAL_RUNNING] =
        g_signal_new("running", SF_TYPE_VM, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_UINT64);
}
