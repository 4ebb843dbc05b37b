/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     start:  look at the disks (worker thread: qemu-img) --> run directory, sockets, descriptors --> fork, exec
 *             --> vm.json --> QMP, sf channel, agent port (vm.c) --> finished
 *     adopt:  vm.json --> pidfd of pid and start time --> QMP, sf channel, agent port --> finished
 *
 * QEMU is a process in a session of its own, without controlling terminal, its output in qemu.log: it lives on when
 * sfvmmd ends or is killed. The run directory belongs to sfvmmd's user, not QEMU's: vm.json in it names images that a
 * later sfvmmd opens, and a QEMU that its guest has taken over must not choose them. All that QEMU uses of it comes as
 * descriptors.
 *
 * Kernel and initrd are opened by sfvmmd too. QEMU opens them again through /proc/self/fd, for which the kernel asks
 * the rights on the file itself, not those on its path; a file that QEMU's user may not read is copied to a memfd.
 */
#include "sfvmm/vm/launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sfvmm/vm/command_line.h"
#include "sfvmm/process/process.h"
#include "sfvmm/process/socket.h"
#include "sfvmm/vm/domain_commit.h"
#include "sfvmm/vm/launcher_private.h"
#include "sfvmm/wire/state_file.h"

#define LISTEN_BACKLOG 4 /* a connection that is lost and the one made anew */
#define MODE_DIRECTORY 0700

/* sfvmmd serves nobody until all are adopted; a QEMU that opens disks of a server that is gone waits for a minute. */
#define SHELL_ADOPT_SECONDS 10u

/*
 * CPU models when none is given. TCG: what every x86-64-v2 binary asks for, and rdrand, so that a guest's RNG is ready
 * early; not "max", whose 57-bit paging and AVX make an emulated guest slower. KVM: what the host has; but a KVM that
 * works in software lacks registers of "host".
 */
#define CPU_TCG               "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"
#define CPU_KVM               "host"
#define CPU_KVM_SOFTWARE      "qemu64"

/* ---- the launcher ---- */

SfLauncher *sf_launcher_exec_new(const SfLauncherOptions *options)
{
    SfLauncher *launcher = g_new0(SfLauncher, 1);
    g_autofree char *late = NULL;

    launcher->options = *options;
    launcher->options.qemu = g_strdup(options->qemu);
    launcher->options.qemu_img = g_strdup(options->qemu_img);
    launcher->options.firmware = g_strdup(options->firmware);
    launcher->options.run_directory = g_strdup(options->run_directory);
    launcher->options.libvirt_uri = g_strdup(options->libvirt_uri);
    launcher->options.overlay_directory = options->overlay_directory
                                              ? g_strdup(options->overlay_directory)
                                              : g_build_filename(options->run_directory, "disk", NULL);
    late = g_build_filename(launcher->options.overlay_directory, "late", NULL);
    launcher->options.late_commits = sf_late_commits_new(late, launcher->options.qemu_img);
    sf_late_commits_use_libvirt(launcher->options.late_commits, sf_domain_commit, launcher->options.qemu);
    launcher->options.disk_servers = g_hash_table_new(g_str_hash, g_str_equal);
    return launcher;
}

void sf_launcher_set_taps(SfLauncher *launcher, const SfTapProvider *provider)
{
    launcher->taps = *provider;
}

void sf_launcher_free(SfLauncher *launcher)
{
    if (launcher) {
        sf_late_commits_free(launcher->options.late_commits);
        g_hash_table_unref(launcher->options.disk_servers);
        g_free(launcher->options.qemu);
        g_free(launcher->options.qemu_img);
        g_free(launcher->options.firmware);
        g_free(launcher->options.run_directory);
        g_free(launcher->options.libvirt_uri);
        g_free(launcher->options.overlay_directory);
        g_free(launcher->accel);
        g_free(launcher->accel_reason);
        g_free(launcher);
    }
}

const SfLauncherOptions *sf_launcher_options(SfLauncher *launcher)
{
    return &launcher->options;
}

/*
 * A /dev/kvm alone says little: where neither VMX nor SVM is in the CPU's flags, KVM emulates instruction by
 * instruction, which is far slower than TCG and knows too few instructions for Linux.
 */
static gboolean has_hardware_virtualization(void)
{
    g_autofree char *cpuinfo = NULL;

    return g_file_get_contents("/proc/cpuinfo", &cpuinfo, NULL, NULL) &&
           g_regex_match_simple("^flags\\s*:.*\\b(vmx|svm)\\b", cpuinfo, G_REGEX_MULTILINE, 0);
}

const char *sf_launcher_best_accel(SfLauncher *launcher, char **reason)
{
    if (!launcher->accel) {
        gboolean hardware = has_hardware_virtualization();
        int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        int error = errno;

        launcher->accel = g_strdup(fd >= 0 && hardware ? "kvm" : "tcg");
        launcher->accel_reason =
            fd < 0     ? g_strdup_printf("/dev/kvm can't be used (%s): guests are emulated", g_strerror(error))
            : hardware ? g_strdup("/dev/kvm works, and the CPU has hardware virtualization")
                       : g_strdup("/dev/kvm is there, but the CPU shows neither vmx nor svm: such a KVM emulates in "
                                  "software and is too slow for Linux guests; give accel kvm to use it all the same");
        if (fd >= 0) {
            close(fd);
        }
    }
    if (reason) {
        *reason = g_strdup(launcher->accel_reason);
    }
    return launcher->accel;
}

void sf_launcher_sweep(SfLauncher *launcher)
{
    g_autoptr(GDir) dir = g_dir_open(launcher->options.overlay_directory, 0, NULL);
    const char *file;

    while (dir && (file = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(launcher->options.overlay_directory, file, NULL);
        if (g_str_has_suffix(file, ".qcow2")) {
            /* Layers are interned by path: if nobody has this one, then ours is the last reference, and takes the file
             * with it. */
            sf_disk_layer_unref(sf_disk_layer_new(path, "qcow2", TRUE));
        }
    }
    sf_launcher_libvirt_sweep(launcher);
}

/* ---- start ---- */

typedef struct {
    SfLauncher *launcher; /* must outlive the call */
    char *name;
    SfVmRole role;
    SfVmConfig *config; /* our own until the VM has it */
    SfVm *vm;
    GArray *fds;           /* of int: to be closed here after the start */
    GArray *disk_fds;      /* of int: numbers in the child */
    GPtrArray *disk_paths; /* of char *: what they are of */
} StartOp;

static void start_op_free(gpointer data)
{
    StartOp *op = data;

    for (guint i = 0; i < op->fds->len; i++) {
        close(g_array_index(op->fds, int, i));
    }
    g_array_unref(op->fds);
    g_array_unref(op->disk_fds);
    g_ptr_array_unref(op->disk_paths);
    g_clear_object(&op->vm);
    sf_vm_config_unref(op->config);
    g_free(op->name);
    g_free(op);
}

static gboolean fail_errno(GError **error, const char *what)
{
    g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", what, g_strerror(errno));
    return FALSE;
}

/* The child's number of a descriptor (taken). */
static int give_fd(StartOp *op, int fd)
{
    g_array_append_val(op->fds, fd);
    return SF_PROCESS_FIRST_FD + op->fds->len - 1;
}

static gboolean listen_at(StartOp *op, const char *file, int *number, GError **error)
{
    int fd = sf_socket_listen(op->vm->directory, file, SOCK_STREAM, LISTEN_BACKLOG, error);

    if (fd >= 0) {
        *number = give_fd(op, fd);
    }
    return fd >= 0;
}

static gboolean append_to(int directory, const char *file, int *fd, GError **error)
{
    *fd = openat(directory, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    return *fd >= 0 || fail_errno(error, file);
}

/* A copy that any user may open again through /proc/self/fd. */
static int copy_to_memfd(int from, off_t size)
{
    int to = memfd_create("snowflock-boot", MFD_CLOEXEC);

    while (to >= 0 && size > 0) {
        ssize_t n = sendfile(to, from, NULL, size);
        if (n <= 0) {
            close(to);
            return -1;
        }
        size -= n;
    }
    return to;
}

static gboolean open_boot_file(StartOp *op, const char *path, int *number, GError **error)
{
    const SfLauncherOptions *options = &op->launcher->options;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        if (fd >= 0) {
            close(fd);
            errno = EINVAL;
        }
        return fail_errno(error, path);
    }
    if (geteuid() == 0 && options->uid != 0 && !(st.st_mode & S_IROTH)) {
        int copy = copy_to_memfd(fd, st.st_size);
        close(fd);
        fd = copy;
    }
    if (fd < 0) {
        return fail_errno(error, path);
    }
    *number = give_fd(op, fd);
    return TRUE;
}

static gboolean open_kvm(StartOp *op, int *number, GError **error)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    if (fd < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno),
                    "/dev/kvm can't be opened: %s; load the kvm_intel or kvm_amd module, give sfvmmd's user the right "
                    "(group kvm), "
                    "or use accel tcg",
                    g_strerror(errno));
        return FALSE;
    }
    *number = give_fd(op, fd);
    return TRUE;
}

static gboolean open_layer(SfDiskLayer *layer, gboolean writable, guint *fdset, gpointer data, GError **error)
{
    StartOp *op = data;
    int fd = open(layer->path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    int number;

    if (fd < 0) {
        return fail_errno(error, layer->path);
    }
    number = give_fd(op, fd);
    g_array_append_val(op->disk_fds, number);
    g_ptr_array_add(op->disk_paths, g_strdup(layer->path));
    *fdset = SF_FDSET_DISK_FIRST + op->disk_fds->len - 1;
    return TRUE;
}

static gboolean make_template(StartOp *op, guint64 size, GError **error)
{
    g_autofree char *path = sf_vm_template_path(op->vm, size);

    return g_file_test(path, G_FILE_TEST_EXISTS) ||
           sf_disk_template_create(op->launcher->options.qemu_img, path, size, error);
}

/* A shell's own overlay. Its template is there but for the first shell of a VM that runs on another host. */
static gboolean shell_disk_nodes(StartOp *op, SfVmDisk *disk, const SfDiskConfig *config, GPtrArray *blockdevs,
                                 GError **error)
{
    const SfLauncherOptions *options = &op->launcher->options;
    g_autofree char *template = sf_vm_template_path(op->vm, config->size);
    g_autofree char *path = sf_vm_overlay_path(op->vm, config->id);
    SfDiskLayer *overlay = make_template(op, config->size, error)
                               ? sf_disk_overlay_create(template, path, options->uid, options->gid, error)
                               : NULL;

    return overlay && sf_vm_disk_shell_blockdevs(disk, config->id, overlay, blockdevs, open_layer, op, error);
}

static gboolean disk_nodes(StartOp *op, GPtrArray *blockdevs, GPtrArray *top_nodes, GError **error)
{
    for (guint i = 0; i < op->config->disks->len; i++) {
        SfVmDisk *disk = g_ptr_array_index(op->vm->disks, i);
        if (disk->chain ? !sf_vm_disk_blockdevs(disk, blockdevs, open_layer, op, error)
                        : !shell_disk_nodes(op, disk, g_ptr_array_index(op->config->disks, i), blockdevs, error)) {
            return FALSE;
        }
        g_ptr_array_add(top_nodes, (char *)sf_vm_disk_top_node(disk));
    }
    return TRUE;
}

/* The tap is in QEMU alone when this start has ended: it goes with QEMU. */
static gboolean open_tap(StartOp *op, SfCommandLineFds *fds, GError **error)
{
    const SfTapProvider *taps = &op->launcher->taps;
    struct stat st;
    int tap;

    if (!taps->open_tap) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "nobody here makes cluster networks");
        return FALSE;
    }
    tap = taps->open_tap(taps->owner, op->name, &op->vm->tap, error);
    if (tap < 0) {
        return FALSE;
    }
    fds->tap_is_socket = fstat(tap, &st) == 0 && S_ISSOCK(st.st_mode);
    fds->tap = op->vm->tap_number = give_fd(op, tap);
    return TRUE;
}

static gboolean collect_fds(StartOp *op, int directory, SfCommandLineFds *fds, GError **error)
{
    const SfVmConfig *config = op->config;
    int log;

    *fds = (SfCommandLineFds){ -1, -1, -1, -1, -1, -1, -1, -1, FALSE };
    if (!listen_at(op, SF_VM_FILE_QMP, &fds->qmp, error) ||
        !listen_at(op, SF_VM_FILE_AGENT, &fds->agent, error) ||
        !listen_at(op, SF_VM_FILE_CONSOLE, &fds->console, error) ||
        !append_to(directory, SF_VM_FILE_CONSOLE_LOG, &log, error)) {
        return FALSE;
    }
    fds->console_log = give_fd(op, log);
    if (strcmp(config->accel, "kvm") == 0 && !open_kvm(op, &fds->kvm, error)) {
        return FALSE;
    }
    if (sf_vm_config_has_cluster(config) && !open_tap(op, fds, error)) {
        return FALSE;
    }
    if (op->role != SF_VM_PARENT || !config->kernel) {
        return TRUE;
    }
    return open_boot_file(op, config->kernel, &fds->kernel, error) &&
           (!config->initrd || open_boot_file(op, config->initrd, &fds->initrd, error));
}

/* On record before the program runs: a sfvmmd that is killed now finds the process again. */
static void on_forked(pid_t pid, gpointer data)
{
    SfVm *vm = data;

    vm->pid = pid;
    vm->start_time = sf_process_start_time(pid);
    sf_vm_save(vm, NULL);
}

static gboolean start_process(StartOp *op, int directory, GError **error)
{
    const SfLauncherOptions *options = &op->launcher->options;
    g_autoptr(GPtrArray) blockdevs = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) top_nodes = g_ptr_array_new();
    g_autoptr(GPtrArray) argv = NULL;
    SfCommandLineFds fds;
    SfProcessOptions process = { .program = options->qemu, .fds = op->fds, .uid = options->uid, .gid = options->gid,
                                 .forked = on_forked, .data = op->vm };
    pid_t pid;
    int pidfd;
    gboolean ok;

    if (!collect_fds(op, directory, &fds, error) || !disk_nodes(op, blockdevs, top_nodes, error) ||
        !append_to(directory, SF_VM_FILE_LOG, &process.log, error)) {
        return FALSE;
    }
    argv = sf_command_line_new(options, op->name, op->role, op->config, &fds, blockdevs, top_nodes, op->disk_fds);
    process.argv = argv;
    ok = sf_process_start(&process, &pid, &pidfd, error);
    close(process.log);
    if (ok) {
        sf_vm_set_process(op->vm, pid, op->vm->start_time, pidfd);
    }
    return ok;
}

/* The run directory and the process in it. */
static gboolean start_vm(StartOp *op, GError **error)
{
    int directory;
    gboolean ok;

    if (mkdir(op->vm->directory, MODE_DIRECTORY) < 0) {
        return fail_errno(error, op->vm->directory);
    }
    directory = open(op->vm->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ok = directory >= 0 ? start_process(op, directory, error) : fail_errno(error, op->vm->directory);
    if (directory >= 0) {
        close(directory);
    }
    if (!ok) {
        sf_state_remove_folder(op->vm->directory);
    }
    return ok;
}

/* QEMU knows images by the numbers of their fdsets only. */
static void name_images(StartOp *op, GError *error)
{
    g_autoptr(GString) text = g_string_new(error->message);

    for (guint i = op->disk_paths->len; i > 0; i--) { /* the longer numbers first */
        g_autofree char *fdset = g_strdup_printf("/dev/fdset/%u", SF_FDSET_DISK_FIRST + i - 1);
        g_string_replace(text, fdset, g_ptr_array_index(op->disk_paths, i - 1), 0);
    }
    g_free(error->message);
    error->message = g_strdup(text->str);
}

static void on_connected(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    SfVm *vm = SF_VM(source);
    GError *error = NULL;

    if (sf_vm_connect_finish(vm, result, &error)) {
        g_task_return_pointer(task, g_object_ref(vm), g_object_unref);
        return;
    }
    sf_vm_kill(vm);
    name_images(g_task_get_task_data(task), error);
    g_task_return_error(task, error);
}

/* Ends the task's reference that the caller has given. */
static void start_continue(GTask *task)
{
    StartOp *op = g_task_get_task_data(task);
    GError *error = NULL;

    if (!start_vm(op, &error)) {
        g_prefix_error(&error, "VM %s: ", op->name);
        g_task_return_error(task, error);
        g_object_unref(task);
        return;
    }
    sf_vm_connect_async(op->vm, SF_VM_CONNECT_SECONDS, on_connected, task);
}

/* ---- the disks of a VM that is to boot: in a worker thread, as qemu-img is run ---- */

static gboolean prepare_disk(StartOp *op, SfDiskConfig *config, GError **error)
{
    const SfLauncherOptions *options = &op->launcher->options;
    g_autofree char *format = NULL;
    g_autoptr(SfDiskChain) chain = NULL;

    if (!sf_disk_probe(options->qemu_img, config->path, config->format, &format, &config->size, error)) {
        return FALSE;
    }
    g_free(config->format);
    config->format = g_steal_pointer(&format);
    chain = sf_disk_chain_new(config->id, config->size, config->readonly);
    g_ptr_array_add(chain->layers, sf_disk_layer_new(config->path, config->format, FALSE));
    if (!config->readonly && !make_template(op, config->size, error)) {
        return FALSE;
    }
    if (config->ephemeral) {
        g_autofree char *template = sf_vm_template_path(op->vm, config->size);
        g_autofree char *path = sf_vm_overlay_path(op->vm, config->id);
        SfDiskLayer *overlay = sf_disk_overlay_create(template, path, options->uid, options->gid, error);
        if (!overlay) {
            return FALSE;
        }
        g_ptr_array_add(chain->layers, overlay);
    }
    sf_vm_add_disk(op->vm, sf_vm_disk_new(g_steal_pointer(&chain)));
    return TRUE;
}

static void prepare_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    StartOp *op = data;
    GError *error = NULL;

    for (guint i = 0; i < op->config->disks->len; i++) {
        if (!prepare_disk(op, g_ptr_array_index(op->config->disks, i), &error)) {
            g_prefix_error(&error, "VM %s: ", op->name);
            g_task_return_error(task, error);
            return;
        }
    }
    g_task_return_boolean(task, TRUE);
}

static void on_prepared(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    GError *error = NULL;

    if (g_task_propagate_boolean(G_TASK(result), &error)) {
        start_continue(task);
    } else {
        g_task_return_error(task, error);
        g_object_unref(task);
    }
}

/* ---- */

/* What never changes is opened by the shell itself; a writable disk gets its chain at the load. */
static SfDiskChain *shell_chain(const SfDiskConfig *config)
{
    SfDiskChain *chain = config->readonly ? sf_disk_chain_new(config->id, config->size, TRUE) : NULL;

    if (chain) {
        g_ptr_array_add(chain->layers, sf_disk_layer_new(config->path, config->format, FALSE));
    }
    return chain;
}

static SfVmConfig *resolve_config(SfLauncher *launcher, const SfVmConfig *config, GError **error)
{
    g_autoptr(JsonObject) object = sf_vm_config_to_json(config);
    SfVmConfig *copy = sf_vm_config_from_json(object, error);

    if (copy && strcmp(copy->accel, "auto") == 0) {
        g_free(copy->accel);
        copy->accel = g_strdup(sf_launcher_best_accel(launcher, NULL));
    }
    if (copy && !copy->cpu) {
        copy->cpu = g_strdup(strcmp(copy->accel, "kvm") != 0     ? CPU_TCG
                             : has_hardware_virtualization() ? CPU_KVM
                                                             : CPU_KVM_SOFTWARE);
    }
    return copy;
}

gboolean sf_launcher_make_directories(SfLauncher *launcher, GError **error)
{
    g_autofree char *vms = g_build_filename(launcher->options.run_directory, "vm", NULL);
    g_autofree char *templates = g_build_filename(launcher->options.run_directory, "template", NULL);
    const char *const directories[] = { vms, templates, launcher->options.overlay_directory };

    for (guint i = 0; i < G_N_ELEMENTS(directories); i++) {
        if (g_mkdir_with_parents(directories[i], MODE_DIRECTORY) < 0) {
            return fail_errno(error, directories[i]);
        }
    }
    return TRUE;
}

/* An image that still lacks writes of a VM that has ended would be read as it was before its first fork. */
gboolean sf_launcher_images_are_whole(SfLauncher *launcher, const SfVmConfig *config, GError **error)
{
    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        const char *owner = sf_late_commits_owner(launcher->options.late_commits, disk->path);
        if (owner) {
            g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                        "image %s: what VM %s wrote is not in it yet, as clones still stand on it or it is being "
                        "written; kill the "
                        "clones or try again",
                        disk->path, owner);
            return FALSE;
        }
    }
    return TRUE;
}

void sf_launcher_start_async(SfLauncher *launcher, const char *name, SfVmRole role, SfVmConfig *config,
                             GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    StartOp *op = g_new0(StartOp, 1);
    GError *error = NULL;
    g_autoptr(GTask) work = NULL;

    if (config->domain_xml) {
        g_free(op);
        sf_launcher_libvirt_shell(launcher, name, config, task);
        return;
    }
    op->launcher = launcher;
    op->name = g_strdup(name);
    op->role = role;
    op->fds = g_array_new(FALSE, FALSE, sizeof(int));
    op->disk_fds = g_array_new(FALSE, FALSE, sizeof(int));
    op->disk_paths = g_ptr_array_new_with_free_func(g_free);
    g_task_set_task_data(task, op, start_op_free);
    op->config = role == SF_VM_SHELL ? sf_vm_config_ref(config) : resolve_config(launcher, config, &error);
    if (!op->config || !sf_launcher_make_directories(launcher, &error) ||
        (role == SF_VM_PARENT && !sf_launcher_images_are_whole(launcher, op->config, &error))) {
        g_prefix_error(&error, "VM %s: ", name);
        g_task_return_error(task, error);
        g_object_unref(task);
        return;
    }
    op->vm = sf_vm_new(&launcher->options, name, role, op->config);
    if (role == SF_VM_SHELL || op->config->disks->len == 0) {
        for (guint i = 0; i < op->config->disks->len; i++) {
            sf_vm_add_disk(op->vm, sf_vm_disk_new(shell_chain(g_ptr_array_index(op->config->disks, i))));
        }
        start_continue(task);
        return;
    }
    work = g_task_new(NULL, NULL, on_prepared, task);
    g_task_set_task_data(work, op, NULL);
    g_task_run_in_thread(work, prepare_thread);
}

SfVm *sf_launcher_start_finish(SfLauncher *launcher, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

/* ---- domains: launcher_libvirt.c ---- */

/* Of this host; others could name a program to be run (qemu+ssh with "command"). */
static gboolean uri_is_local(const char *uri)
{
    return g_regex_match_simple("^qemu(\\+unix)?:///(system|session)(\\?socket=[^&]*)?$", uri, G_REGEX_DOLLAR_ENDONLY,
                                0);
}

/* Where a domain is looked for; NULL: the task (taken) has its error. */
static const char *libvirt_uri(SfLauncher *launcher, const char *uri, const char *domain, GTask *task)
{
    const char *known = launcher->options.libvirt_uri;
    const char *where = uri ? uri : known;

    if (where && (g_strcmp0(where, known) == 0 || uri_is_local(where))) {
        return where;
    }
    if (where) {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                "domain %s: %s is not this host's libvirt: qemu:///system and qemu:///session are",
                                domain, where);
    } else {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                "domain %s: no libvirt is known: libvirt-uri in sfvmmd.conf", domain);
    }
    g_object_unref(task);
    return NULL;
}

void sf_launcher_adopt_domain_async(SfLauncher *launcher, const char *name, const char *uri, const char *domain,
                                    GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    const char *where = libvirt_uri(launcher, uri, domain, task);
    GError *error = NULL;

    if (where && sf_launcher_make_directories(launcher, &error)) {
        sf_launcher_libvirt_parent(launcher, name, where, domain, task);
    } else if (where) {
        g_task_return_error(task, error);
        g_object_unref(task);
    }
}

void sf_launcher_check_domain_async(SfLauncher *launcher, const char *uri, const char *domain,
                                    JsonObject *network_or_null, gboolean fix, GAsyncReadyCallback callback,
                                    gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    const char *where = libvirt_uri(launcher, uri, domain, task);

    if (where) {
        sf_launcher_libvirt_check(launcher, where, domain, network_or_null, fix, task);
    }
}

JsonObject *sf_launcher_check_domain_finish(SfLauncher *launcher, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}

void sf_launcher_look_at_libvirt_async(SfLauncher *launcher, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);

    if (launcher->options.libvirt_uri) {
        sf_launcher_libvirt_look(launcher, launcher->options.libvirt_uri, task);
    } else {
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_FAILED,
                                "no libvirt is known: libvirt-uri in sfvmmd.conf");
        g_object_unref(task);
    }
}

gboolean sf_launcher_look_at_libvirt_finish(GAsyncResult *result, char **uri, uid_t *uid, gid_t *gid, GError **error)
{
    g_autofree SfLibvirtHost *host = g_task_propagate_pointer(G_TASK(result), error);

    if (host) {
        *uri = host->uri;
        *uid = host->uid;
        *gid = host->gid;
    }
    return host != NULL;
}

/* ---- adopt ---- */

static void on_adopted(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    SfVm *vm = SF_VM(source);
    GError *error = NULL;

    if (!sf_vm_connect_finish(vm, result, &error)) {
        if (vm->role == SF_VM_SHELL) {
            sf_vm_kill(vm); /* there is nothing in it; others live but do not answer, and are left to the operator */
        }
        g_task_return_error(task, error);
    } else if (vm->role == SF_VM_SHELL && vm->hello.loaded) {
        sf_vm_kill(vm);
        g_task_return_new_error(task, SF_VM_ERROR, SF_VM_ERROR_GONE,
                                "VM %s: sfvmmd ended while it was being loaded; killed", vm->name);
    } else {
        g_task_return_pointer(task, g_object_ref(vm), g_object_unref);
    }
}

/* NULL, and whatever there is of it has been removed. */
SfVm *sf_launcher_find(SfLauncher *launcher, const char *name, GError **error)
{
    g_autofree char *directory = g_build_filename(launcher->options.run_directory, "vm", name, NULL);
    g_autoptr(SfVm) vm = sf_vm_restore(&launcher->options, name, error);
    g_autofree char *loading = vm ? sf_vm_path(vm, SF_VM_FILE_LOADING) : NULL;
    int pidfd = vm ? sf_process_open(vm->pid, vm->start_time) : -1;

    if (pidfd >= 0 && !strstr(name, SF_VM_DYING) && !g_file_test(loading, G_FILE_TEST_EXISTS) &&
        (!vm->keeper_json || sf_launcher_libvirt_restore(launcher, vm, error))) {
        sf_vm_set_process(vm, vm->pid, vm->start_time, pidfd);
        return g_steal_pointer(&vm);
    }
    if (pidfd >= 0) {
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
        close(pidfd);
    }
    if (vm) {
        sf_vm_keep_writes(vm);
    }
    sf_state_remove_folder(directory);
    if (vm) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_GONE, "VM %s: %s", name,
                    pidfd >= 0 ? "sfvmmd ended while it was being loaded or killed; killed"
                               : "it ended while sfvmmd was not running");
    }
    return NULL;
}

void sf_launcher_adopt_async(SfLauncher *launcher, SfVm *vm, GAsyncReadyCallback callback, gpointer data)
{
    guint seconds = vm->role == SF_VM_SHELL ? SHELL_ADOPT_SECONDS : SF_VM_CONNECT_SECONDS;

    sf_vm_connect_async(vm, seconds, on_adopted, g_task_new(NULL, NULL, callback, data));
}

SfVm *sf_launcher_adopt_finish(SfLauncher *launcher, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}
