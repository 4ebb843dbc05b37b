/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The process of a VM: watched from its start on, its logs kept short, ended, and told to have ended.
 *
 * Only the pidfd says that it has gone. Then all calls under way finish with SF_VM_ERROR_GONE, then "exited" is told,
 * then the directory is removed. With a keeper, that one's word is awaited too: it has things of the VM to put away.
 */
#include "sfvmm/vm/vm_private.h"

#include <fcntl.h>
#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sfvmm/process/process.h"
#include "sfvmm/wire/state_file.h"

#define LOG_BYTES_MAX  (8 << 20) /* a log that is longer begins anew */
#define LOG_SECONDS    5         /* between two looks at the logs */
#define LOG_TAIL_BYTES 2048      /* of qemu.log, to find its last message */
#define KEEPER_END_MS  2000u     /* after its process, until libvirt has put away what it had of a domain */

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
            sf_late_commits_add(vm->late_commits, vm->name, vm->config->uri, chain);
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
    sf_vm_disconnect(vm);
    sf_vm_lazy_end(vm);
    sf_vm_settle_lost(vm);
    sf_vm_connect_end(vm, g_error_new(SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: %s", vm->name, reason));
    g_message("VM %s: ended: %s", vm->name, reason);
    sf_vm_keep_writes(vm);
    g_signal_emit_by_name(vm, "exited", reason);
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
        sf_vm_disconnect(vm);
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
