/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * VMs with a patched QEMU and the tiny guest: start, snapshot, load into shells, second fork, settle, abort of a
 * settle, adoption after a restart, and what a failure leaves behind: a running parent and nothing else.
 *
 * The tiny guest prints "cpu0 N" with N growing by one: that it goes on shows in each VM's console log.
 */
#include <glib/gstdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "sfvmm/vm/shell_pool.h"
#include "sfvmm/vm/vm_disk.h"
#include "sfvmm/wire/state_file.h"

#define CLONES       4u
#define WAIT_SECONDS 60          /* for anything that must happen; a busy machine is slow */
#define MANY_FORKS   80u         /* more than twice as many as a disk may have layers */
#define DATA_SIZE    (64u << 20) /* bytes of the second disk */

typedef struct {
    char *directory;
    SfLauncherOptions options;
    SfLauncher *launcher;
    char *data_image;
    SfVmConfig *config;
    SfVm *parent;
} Fixture;

/* ---- waiting ---- */

static gboolean on_tick(gpointer data)
{
    return G_SOURCE_CONTINUE;
}

/* What is looked at may change outside the main loop, so it is looked at from time to time, too. */
#define WAIT_UNTIL(condition)                                                                                          \
    do {                                                                                                               \
        guint tick_ = g_timeout_add(20, on_tick, NULL);                                                                \
        gint64 end_ = g_get_monotonic_time() + WAIT_SECONDS * G_USEC_PER_SEC;                                          \
        while (!(condition) && g_get_monotonic_time() < end_) {                                                        \
            g_main_context_iteration(NULL, TRUE);                                                                      \
        }                                                                                                              \
        g_source_remove(tick_);                                                                                        \
        g_assert_true(condition);                                                                                      \
    } while (0)

static void on_result(GObject *source, GAsyncResult *result, gpointer data)
{
    *(GAsyncResult **)data = g_object_ref(result);
}

/* ---- the guest ---- */

static char *console_of(SfVm *vm)
{
    g_autofree char *path = g_build_filename(sf_vm_directory(vm), "console.log", NULL);
    char *text = NULL;

    g_file_get_contents(path, &text, NULL, NULL);
    return text ? text : g_strdup("");
}

/* The last N of "cpu0 N"; 0: none yet. */
static guint64 beat_of(SfVm *vm)
{
    g_autofree char *text = console_of(vm);
    char *end = strrchr(text, '\n');
    char *last;

    if (!end) {
        return 0;
    }
    *end = '\0';
    last = g_strrstr(text, "cpu0 ");
    return last ? g_ascii_strtoull(last + strlen("cpu0 "), NULL, 10) : 0;
}

static void wait_beats(SfVm *vm, guint64 more)
{
    guint64 from = beat_of(vm);

    WAIT_UNTIL(beat_of(vm) >= from + more);
}

/* ---- calls that wait ---- */

static SfVm *start_vm(Fixture *f, const char *name, SfVmConfig *config, GError **error)
{
    g_autoptr(GAsyncResult) result = NULL;

    sf_launcher_start_async(f->launcher, name, SF_VM_PARENT, config, on_result, &result);
    WAIT_UNTIL(result);
    return sf_launcher_start_finish(f->launcher, result, error);
}

/* As if sfvmmd had ended. Layers are shared in a process: what is under way with the VM must have ended, too. */
static void leave(SfVm **vm)
{
    gpointer left = *vm;

    g_object_add_weak_pointer(G_OBJECT(*vm), &left);
    g_clear_object(vm);
    WAIT_UNTIL(!left);
}

static SfVm *adopt_vm(Fixture *f, const char *name, GError **error)
{
    g_autoptr(GAsyncResult) result = NULL;
    g_autoptr(SfVm) vm = sf_launcher_find(f->launcher, name, error);

    if (!vm) {
        return NULL;
    }
    sf_launcher_adopt_async(f->launcher, vm, on_result, &result);
    WAIT_UNTIL(result);
    return sf_launcher_adopt_finish(f->launcher, result, error);
}

static SfSnapshot *snapshot_of(SfVm *vm, const char *id, GPtrArray **disks, GError **error)
{
    g_autoptr(GAsyncResult) result = NULL;

    sf_vm_snapshot_async(vm, id, on_result, &result);
    WAIT_UNTIL(result);
    return sf_vm_snapshot_finish(vm, result, disks, error);
}

static SfVm *take_shell(SfShellPool *pool, GError **error)
{
    g_autoptr(GAsyncResult) result = NULL;

    sf_shell_pool_take_async(pool, on_result, &result);
    WAIT_UNTIL(result);
    return sf_shell_pool_take_finish(pool, result, error);
}

static gboolean settle(SfVm *vm, GError **error)
{
    g_autoptr(GAsyncResult) result = NULL;

    sf_vm_settle_async(vm, on_result, &result);
    WAIT_UNTIL(result);
    return sf_vm_settle_finish(vm, result, error);
}

static void kill_vm(SfVm *vm)
{
    sf_vm_kill(vm);
    WAIT_UNTIL(sf_vm_is_gone(vm));
    g_object_unref(vm);
}

/* Loads n clones side by side, all running at the end. */
static void load_clones(SfShellPool *pool, SfSnapshot *snapshot, GPtrArray *disks, SfVm **clones, guint n)
{
    GAsyncResult *results[CLONES] = { NULL };

    for (guint i = 0; i < n; i++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *name = g_strdup_printf("%s-clone-%u", snapshot->id, i);
        clones[i] = take_shell(pool, &error);
        g_assert_no_error(error);
        g_assert_true(sf_vm_rename(clones[i], name, &error));
        g_assert_cmpstr(sf_vm_name(clones[i]), ==, name);
    }
    for (guint i = 0; i < n; i++) {
        sf_vm_load_async(clones[i], snapshot, disks, TRUE, NULL, on_result, &results[i]);
    }
    for (guint i = 0; i < n; i++) {
        g_autoptr(GError) error = NULL;
        WAIT_UNTIL(results[i]);
        sf_vm_load_finish(clones[i], results[i], &error);
        g_assert_no_error(error);
        g_object_unref(results[i]);
        WAIT_UNTIL(sf_vm_is_running(clones[i]));
        g_assert_cmpint(sf_vm_role(clones[i]), ==, SF_VM_CLONE);
        g_assert_true(sf_vm_loaded_snapshot(clones[i]) == snapshot);
    }
}

static guint layers_of(SfVm *vm, guint disk)
{
    const SfDiskChain *chain = g_ptr_array_index(sf_vm_disks(vm), disk);

    return chain->layers->len;
}

static guint count_files(const char *directory, const char *suffix)
{
    g_autoptr(GDir) dir = g_dir_open(directory, 0, NULL);
    const char *name;
    guint n = 0;

    while (dir && (name = g_dir_read_name(dir))) {
        n += g_str_has_suffix(name, suffix);
    }
    return n;
}

static guint count_overlays(Fixture *f)
{
    return count_files(f->options.overlay_directory, ".qcow2");
}

static guint count_directories(Fixture *f)
{
    g_autofree char *path = g_build_filename(f->options.run_directory, "vm", NULL);

    return count_files(path, "");
}

/* ---- set-up ---- */

static char *prefix_file(const char *name)
{
    const char *prefix = g_getenv("SF_QEMU_PREFIX");
    char *path = g_build_filename(prefix ? prefix : "/nonexistent", "bin", name, NULL);

    return path;
}

/* NULL: all there is. */
static const char *missing(Fixture *f)
{
    const char *tiny = g_getenv("SF_TINY");

    if (!g_file_test(f->options.qemu, G_FILE_TEST_IS_EXECUTABLE) ||
        !g_file_test(f->options.qemu_img, G_FILE_TEST_IS_EXECUTABLE)) {
        return "patched QEMU: SF_QEMU_PREFIX must name the folder of bin/qemu-system-x86_64 and bin/qemu-img";
    }
    if (!tiny || !g_file_test(tiny, G_FILE_TEST_EXISTS)) {
        return "tiny guest: SF_TINY must name tests/tiny/tiny.img of a build folder";
    }
    return NULL;
}

static SfVmConfig *config_new(Fixture *f, const char *accel)
{
    g_autofree char *text = g_strdup_printf(
        "{\"memory\":67108864,\"accel\":\"%s\",\"disks\":[{\"path\":\"%s\",\"format\":\"raw\",\"readonly\":true},"
        "{\"path\":\"%s\",\"format\":\"qcow2\"}]}",
        accel, g_getenv("SF_TINY"), f->data_image);
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonNode) node = json_from_string(text, &error);
    SfVmConfig *config;

    g_assert_no_error(error);
    config = sf_vm_config_from_json(json_node_get_object(node), &error);
    g_assert_no_error(error);
    return config;
}

static void set_up(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;

    f->directory = g_dir_make_tmp("sf-vm-XXXXXX", &error);
    g_assert_no_error(error);
    f->options.qemu = prefix_file("qemu-system-x86_64");
    f->options.qemu_img = prefix_file("qemu-img");
    f->options.firmware =
        (char *)(g_getenv("SF_FIRMWARE") ? g_getenv("SF_FIRMWARE") : "/usr/share/seabios:/usr/share/qemu");
    f->options.run_directory = g_build_filename(f->directory, "run", NULL);
    f->options.overlay_directory = g_build_filename(f->directory, "overlay", NULL);
    f->options.uid = geteuid() == 0 ? 65534 : geteuid();
    f->options.gid = geteuid() == 0 ? 65534 : getegid();
    f->launcher = sf_launcher_exec_new(&f->options);
    f->data_image = g_build_filename(f->directory, "data.qcow2", NULL);
    if (missing(f)) {
        g_test_skip(missing(f));
        return;
    }
    if (strcmp(data, "kvm") == 0 && access("/dev/kvm", R_OK | W_OK) < 0) {
        g_test_skip("/dev/kvm is missing, or not for this user");
        return;
    }
    g_assert_true(sf_disk_template_create(f->options.qemu_img, f->data_image, DATA_SIZE, &error));
    f->config = config_new(f, data);
    f->parent = start_vm(f, "parent", f->config, &error);
    g_assert_no_error(error);
    wait_beats(f->parent, 1);
}

static void tear_down(Fixture *f, gconstpointer data)
{
    g_autofree char *remove = g_strdup_printf("rm -rf '%s'", f->directory);

    if (f->parent) {
        kill_vm(f->parent);
        WAIT_UNTIL(count_directories(f) == 0);
        WAIT_UNTIL(sf_late_commits_waiting(sf_launcher_options(f->launcher)->late_commits) == 0);
        WAIT_UNTIL(count_overlays(f) == 0); /* all that the parent wrote is in its image */
    }
    g_clear_pointer(&f->config, sf_vm_config_unref);
    sf_launcher_free(f->launcher);
    g_assert_cmpint(system(remove), ==, 0);
    g_free(f->options.qemu);
    g_free(f->options.qemu_img);
    g_free(f->options.run_directory);
    g_free(f->options.overlay_directory);
    g_free(f->data_image);
    g_free(f->directory);
}

/* ---- tests ---- */

static void test_fork(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    SfShellPool *pool;
    SfVm *clones[CLONES];

    if (!f->parent) {
        return;
    }
    pool = sf_shell_pool_new(f->launcher, "parent", sf_vm_config(f->parent), CLONES);
    WAIT_UNTIL(sf_shell_pool_ready(pool) == CLONES);
    g_assert_cmpuint(((SfDiskConfig *)g_ptr_array_index(sf_vm_config(f->parent)->disks, 1))->size, ==, DATA_SIZE);
    for (guint round = 0; round < 3; round++) {
        g_autofree char *id = g_strdup_printf("s%u", round);
        g_autoptr(GPtrArray) disks = NULL;
        g_autoptr(SfSnapshot) snapshot = snapshot_of(f->parent, id, &disks, &error);
        SfVmUsage usage;

        g_assert_no_error(error);
        g_assert_cmpuint(disks->len, ==, 2);
        g_assert_cmpuint(layers_of(f->parent, 0), ==, 1);
        g_assert_cmpuint(layers_of(f->parent, 1), ==, 2);
        g_assert_true(sf_ram_base_in_use(sf_vm_ram_base(f->parent)));
        load_clones(pool, snapshot, disks, clones, CLONES);
        for (guint i = 0; i < CLONES; i++) {
            g_assert_cmpuint(layers_of(clones[i], 0), ==, 1);
            g_assert_cmpuint(layers_of(clones[i], 1), ==, 2);
            wait_beats(clones[i], 2);
            g_assert_true(sf_vm_usage(clones[i], &usage, &error));
            g_assert_cmpuint(usage.private_bytes, >, 0);
            g_assert_cmpuint(usage.cpu_ns, >, 0);
        }
        wait_beats(f->parent, 1);
        g_assert_false(settle(f->parent, &error)); /* its base is in use */
        g_clear_error(&error);
        for (guint i = 0; i < CLONES; i++) {
            kill_vm(clones[i]);
        }
        g_clear_pointer(&disks, g_ptr_array_unref);
        g_clear_pointer(&snapshot, sf_snapshot_unref);
        g_assert_true(settle(f->parent, &error));
        g_assert_no_error(error);
        g_assert_cmpuint(layers_of(f->parent, 1), ==, 1);
        wait_beats(f->parent, 1);
    }
    sf_shell_pool_close(pool);
    sf_shell_pool_unref(pool);
}

/* While the clones of a first snapshot run, a second one is made, and a clone forks too. */
static void test_nested(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) disks1 = NULL, disks2 = NULL, disks3 = NULL;
    g_autoptr(SfSnapshot) one = NULL, two = NULL, three = NULL;
    SfShellPool *pool;
    SfVm *first[1], *second[1], *third[1];

    if (!f->parent) {
        return;
    }
    pool = sf_shell_pool_new(f->launcher, "parent", sf_vm_config(f->parent), 0);
    one = snapshot_of(f->parent, "one", &disks1, &error);
    g_assert_no_error(error);
    load_clones(pool, one, disks1, first, 1);
    wait_beats(first[0], 1);
    two = snapshot_of(f->parent, "two", &disks2, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(two->blocks[0].n_layers, ==, 1);
    g_assert_cmpuint(layers_of(f->parent, 1), ==, 3);
    load_clones(pool, two, disks2, second, 1);
    three = snapshot_of(first[0], "three", &disks3, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(layers_of(first[0], 1), ==, 3);
    load_clones(pool, three, disks3, third, 1);
    wait_beats(second[0], 1);
    wait_beats(third[0], 1);
    wait_beats(f->parent, 1);
    kill_vm(third[0]);
    g_clear_pointer(&disks3, g_ptr_array_unref);
    g_clear_pointer(&three, sf_snapshot_unref);
    g_assert_true(settle(first[0], &error)); /* its disk only */
    g_assert_cmpuint(layers_of(first[0], 1), ==, 2);
    wait_beats(first[0], 1);
    kill_vm(first[0]);
    kill_vm(second[0]);
    g_clear_pointer(&disks1, g_ptr_array_unref);
    g_clear_pointer(&disks2, g_ptr_array_unref);
    g_clear_pointer(&one, sf_snapshot_unref);
    g_clear_pointer(&two, sf_snapshot_unref);
    g_assert_true(settle(f->parent, &error));
    g_assert_no_error(error);
    g_assert_cmpuint(layers_of(f->parent, 1), ==, 1);
    sf_shell_pool_close(pool);
    sf_shell_pool_unref(pool);
}

/* A fork that comes while a VM settles does not wait for the end of that, and finds a whole VM. */
static void test_settle_interrupted(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;

    if (!f->parent) {
        return;
    }
    for (guint round = 0; round < 5; round++) {
        g_autofree char *id = g_strdup_printf("i%u", round);
        g_autoptr(GPtrArray) disks = NULL, later = NULL;
        g_autoptr(SfSnapshot) snapshot = snapshot_of(f->parent, id, &disks, &error);
        g_autoptr(GAsyncResult) settled = NULL, forked = NULL;
        guint turns = round * 8;

        g_assert_no_error(error);
        g_clear_pointer(&disks, g_ptr_array_unref);
        g_clear_pointer(&snapshot, sf_snapshot_unref);
        sf_vm_settle_async(f->parent, on_result, &settled);
        while (turns-- > 0 && !settled) {
            g_main_context_iteration(NULL, TRUE);
        }
        sf_vm_snapshot_async(f->parent, "late", on_result, &forked);
        WAIT_UNTIL(settled && forked);
        sf_vm_settle_finish(f->parent, settled, NULL); /* either way */
        snapshot = sf_vm_snapshot_finish(f->parent, forked, &later, &error);
        g_assert_no_error(error);
        wait_beats(f->parent, 1);
    }
    g_assert_true(settle(f->parent, &error));
    g_assert_no_error(error);
    g_assert_cmpuint(layers_of(f->parent, 1), ==, 1);
}

/* What sfvmmd keeps of frozen disks on disk, and reads back. */
static JsonArray *store_disks(GPtrArray *disks)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < disks->len; i++) {
        json_array_add_object_element(array, sf_disk_chain_to_json(g_ptr_array_index(disks, i)));
    }
    return array;
}

static GPtrArray *restore_disks(JsonArray *array)
{
    GPtrArray *disks = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);

    for (guint i = 0; i < json_array_get_length(array); i++) {
        g_autoptr(GError) error = NULL;
        g_ptr_array_add(disks, sf_disk_chain_from_json(json_array_get_object_element(array, i), &error));
        g_assert_no_error(error);
    }
    return disks;
}

/* sfvmmd ends and comes again: the objects go, the processes and files stay. */
static void test_adopt(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) disks = NULL;
    g_autoptr(SfSnapshot) snapshot = NULL;
    SfShellPool *pool;
    SfVm *clones[2], *clone, *shell, *stale;
    pid_t pid, shell_pid;
    g_autofree char *shell_name = NULL, *clone_name = NULL;
    g_autoptr(JsonArray) stored = NULL;

    if (!f->parent) {
        return;
    }
    pool = sf_shell_pool_new(f->launcher, "parent", sf_vm_config(f->parent), 0);
    snapshot = snapshot_of(f->parent, "s", &disks, &error);
    g_assert_no_error(error);
    load_clones(pool, snapshot, disks, clones, 2);
    shell = take_shell(pool, &error);
    g_assert_no_error(error);
    shell_name = g_strdup(sf_vm_name(shell));
    shell_pid = sf_vm_pid(shell);
    clone_name = g_strdup(sf_vm_name(clones[0]));
    pid = sf_vm_pid(f->parent);
    kill(sf_vm_pid(clones[1]), SIGKILL);
    stored = store_disks(disks);
    g_clear_object(&clones[1]);
    g_clear_object(&clones[0]);
    g_clear_object(&shell);
    g_clear_object(&f->parent);
    g_clear_pointer(&disks, g_ptr_array_unref);
    sf_shell_pool_close(pool);
    sf_shell_pool_unref(pool);

    disks = restore_disks(stored);
    f->parent = adopt_vm(f, "parent", &error);
    g_assert_no_error(error);
    g_assert_cmpint(sf_vm_pid(f->parent), ==, pid);
    g_assert_cmpint(sf_vm_role(f->parent), ==, SF_VM_PARENT);
    g_assert_true(sf_vm_is_running(f->parent));
    g_assert_cmpuint(layers_of(f->parent, 1), ==, 2);
    clone = adopt_vm(f, clone_name, &error);
    g_assert_no_error(error);
    g_assert_cmpint(sf_vm_role(clone), ==, SF_VM_CLONE);
    g_assert_cmpstr(sf_vm_loaded_snapshot_id(clone), ==, "s");
    g_assert_null(sf_vm_loaded_snapshot(clone));
    g_assert_null(snapshot_of(clone, "no", NULL, &error)); /* its snapshot is not known yet */
    g_clear_error(&error);
    sf_vm_set_loaded_snapshot(clone, snapshot);
    stale = adopt_vm(f, "s-clone-1", &error);
    g_assert_null(stale);
    g_assert_error(error, SF_VM_ERROR, SF_VM_ERROR_GONE);
    g_clear_error(&error);
    shell = adopt_vm(f, shell_name, &error);
    g_assert_no_error(error);
    g_assert_cmpint(sf_vm_role(shell), ==, SF_VM_SHELL);
    g_assert_cmpint(sf_vm_pid(shell), ==, shell_pid);
    sf_launcher_sweep(f->launcher);

    /* All of it works as before. */
    pool = sf_shell_pool_new(f->launcher, "parent", sf_vm_config(f->parent), 0);
    sf_shell_pool_give(pool, shell);
    g_assert_cmpuint(sf_shell_pool_ready(pool), ==, 1);
    g_clear_object(&shell);
    g_clear_pointer(&disks, g_ptr_array_unref);
    {
        g_autoptr(SfSnapshot) next = snapshot_of(f->parent, "t", &disks, &error);
        g_assert_no_error(error);
        load_clones(pool, next, disks, clones, 2);
        wait_beats(clones[0], 1);
        wait_beats(clone, 1);
        kill_vm(clones[0]);
        kill_vm(clones[1]);
    }
    kill_vm(clone);
    g_clear_pointer(&disks, g_ptr_array_unref);
    g_clear_pointer(&snapshot, sf_snapshot_unref);
    g_assert_true(settle(f->parent, &error));
    g_assert_no_error(error);
    g_assert_cmpuint(layers_of(f->parent, 1), ==, 1);
    sf_shell_pool_close(pool);
    sf_shell_pool_unref(pool);
}

/* A shell that sfvmmd had begun to load is killed, whatever became of it. */
static void test_adopt_half_loaded(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) disks = NULL;
    g_autoptr(SfSnapshot) snapshot = NULL;
    g_autoptr(GAsyncResult) loaded = NULL;
    SfShellPool *pool;
    SfVm *shell;
    pid_t pid;
    g_autofree char *name = NULL;

    if (!f->parent) {
        return;
    }
    pool = sf_shell_pool_new(f->launcher, "parent", sf_vm_config(f->parent), 0);
    snapshot = snapshot_of(f->parent, "s", &disks, &error);
    g_assert_no_error(error);
    shell = take_shell(pool, &error);
    g_assert_no_error(error);
    name = g_strdup(sf_vm_name(shell));
    pid = sf_vm_pid(shell);
    {
        g_autofree char *mark = g_build_filename(sf_vm_directory(shell), "loading", NULL);
        g_assert_true(g_file_set_contents(mark, "", 0, NULL));
    }
    g_clear_object(&shell);
    g_assert_null(adopt_vm(f, name, &error));
    g_assert_error(error, SF_VM_ERROR, SF_VM_ERROR_GONE);
    g_clear_error(&error);
    WAIT_UNTIL(kill(pid, 0) < 0 || waitpid(pid, NULL, WNOHANG) != 0);
    sf_shell_pool_close(pool);
    sf_shell_pool_unref(pool);
    sf_launcher_sweep(f->launcher);
}

/* A shell that had got its clone's name, and no more: that name will be needed. */
static void test_adopt_renamed(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    SfShellPool *pool;
    SfVm *shell;

    if (!f->parent) {
        return;
    }
    pool = sf_shell_pool_new(f->launcher, "parent", sf_vm_config(f->parent), 0);
    shell = take_shell(pool, &error);
    g_assert_no_error(error);
    g_assert_true(sf_vm_rename(shell, "parent-1234-1", &error));
    leave(&shell);
    shell = adopt_vm(f, "parent-1234-1", &error);
    g_assert_no_error(error);
    sf_shell_pool_give(pool, shell);
    g_assert_cmpuint(sf_shell_pool_ready(pool), ==, 0);
    WAIT_UNTIL(sf_vm_is_gone(shell));
    g_object_unref(shell);
    sf_shell_pool_close(pool);
    sf_shell_pool_unref(pool);
}

/* ---- a commit that nobody saw the end of ---- */

static void on_qmp_event(const char *name, JsonObject *data, gpointer owner)
{
    if (strcmp(name, "BLOCK_JOB_READY") == 0 || strcmp(name, "BLOCK_JOB_COMPLETED") == 0) {
        ++*(guint *)owner;
    }
}

static void on_qmp_closed(const GError *reason, gpointer owner)
{
}

static const SfQmpHandlers qmp_handlers = { on_qmp_event, on_qmp_closed };

static SfQmp *connect_qmp(const char *directory, guint *events)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    g_snprintf(address.sun_path, sizeof(address.sun_path), "%s/qmp.sock", directory);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    return sf_qmp_new(fd, &qmp_handlers, events);
}

/*
 * As sfvmmd leaves them when it ends in the middle of a job: the file, and QEMU with a commit that is READY, with a
 * stream that was about to begin, or with what either has completed.
 */
static void leave_in_job(const char *directory, gboolean streaming, gboolean completed)
{
    g_autofree char *path = g_build_filename(directory, "vm.json", NULL);
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) state = sf_state_read(path, &error);
    JsonObject *object = json_array_get_object_element(json_object_get_array_member(state, "disks"), 1);
    SfVmDisk *disk;
    guint events = 0;
    SfQmp *qmp = connect_qmp(directory, &events);

    json_object_set_int_member(object, "commit_to", 0);
    json_object_set_boolean_member(object, "streaming", streaming);
    g_assert_true(sf_state_write(path, state, &error));
    disk = sf_vm_disk_from_json(object, &error);
    g_assert_no_error(error);
    if (!streaming || completed) {
        sf_qmp_execute(qmp, sf_vm_disk_job_command(disk), sf_vm_disk_job_arguments(disk, "settle-disk1"), -1, NULL,
                       NULL);
        WAIT_UNTIL(events == 1);
    }
    if (!streaming && completed) {
        JsonObject *complete = json_object_new();
        json_object_set_string_member(complete, "id", "settle-disk1");
        sf_qmp_execute(qmp, "job-complete", complete, -1, NULL, NULL);
        WAIT_UNTIL(events == 2);
    }
    sf_qmp_free(qmp);
    sf_vm_disk_leave(disk);
    sf_vm_disk_free(disk);
}

/* It is found out before anybody else may use the disk: a fork that waits for the adoption goes on from a whole VM. */
static void adopt_in_job(Fixture *f, guint forks, gboolean streaming, gboolean completed)
{
    g_autofree char *directory = g_strdup(sf_vm_directory(f->parent));
    guint layers = completed ? forks : forks + 1;
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) disks = NULL;
    g_autoptr(SfSnapshot) snapshot = NULL;

    for (guint i = 0; i < forks; i++) {
        snapshot = snapshot_of(f->parent, "s", NULL, &error);
        g_assert_no_error(error);
        g_clear_pointer(&snapshot, sf_snapshot_unref);
    }
    g_clear_object(&f->parent);
    leave_in_job(directory, streaming, completed);
    f->parent = adopt_vm(f, "parent", &error);
    g_assert_no_error(error);
    g_assert_cmpuint(layers_of(f->parent, 1), ==, layers);
    snapshot = snapshot_of(f->parent, "t", &disks, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(layers_of(f->parent, 1), ==, layers + 1);
    wait_beats(f->parent, 1);
    g_clear_pointer(&disks, g_ptr_array_unref);
    g_clear_pointer(&snapshot, sf_snapshot_unref);
    g_assert_true(settle(f->parent, &error));
    g_assert_no_error(error);
    g_assert_cmpuint(layers_of(f->parent, 1), ==, 1);
}

static void test_adopt_in_commit(Fixture *f, gconstpointer data)
{
    if (f->parent) {
        adopt_in_job(f, 1, FALSE, FALSE);
        adopt_in_job(f, 1, FALSE, TRUE);
    }
}

static void test_adopt_in_stream(Fixture *f, gconstpointer data)
{
    if (f->parent) {
        adopt_in_job(f, 2, TRUE, FALSE);
        adopt_in_job(f, 2, TRUE, TRUE);
    }
}

/* Forks that go on and on, with a clone of an earlier one there each time: the disk does not get a layer for each. */
static void test_many_forks(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) before = NULL;
    g_autoptr(SfSnapshot) last = NULL;
    SfVm *clones[1];
    SfShellPool *pool;
    guint most = 0;

    if (!f->parent) {
        return;
    }
    pool = sf_shell_pool_new(f->launcher, "parent", sf_vm_config(f->parent), 0);
    for (guint i = 0; i < MANY_FORKS; i++) {
        g_autoptr(GPtrArray) disks = NULL;
        g_autoptr(SfSnapshot) snapshot = snapshot_of(f->parent, "s", &disks, &error);
        g_assert_no_error(error);
        g_clear_pointer(&before, g_ptr_array_unref);
        g_clear_pointer(&last, sf_snapshot_unref);
        before = g_steal_pointer(&disks);
        last = g_steal_pointer(&snapshot);
        most = MAX(most, layers_of(f->parent, 1));
    }
    g_assert_cmpuint(most, <, MANY_FORKS / 2);
    wait_beats(f->parent, 1);
    load_clones(pool, last, before, clones, 1);
    wait_beats(clones[0], 2);
    kill_vm(clones[0]);
    g_clear_pointer(&before, g_ptr_array_unref);
    g_clear_pointer(&last, sf_snapshot_unref);
    g_assert_true(settle(f->parent, &error));
    g_assert_no_error(error);
    g_assert_cmpuint(layers_of(f->parent, 1), ==, 1);
    wait_beats(f->parent, 1);
    sf_shell_pool_close(pool);
    sf_shell_pool_unref(pool);
}

static gboolean is_forkable(SfVm *vm)
{
    g_autoptr(GAsyncResult) result = NULL;
    g_autofree char *obstacles = NULL;

    sf_vm_check_async(vm, on_result, &result);
    WAIT_UNTIL(result);
    obstacles = sf_vm_check_finish(vm, result, NULL);
    return obstacles && strcmp(obstacles, "") == 0;
}

/* The sf channel breaks while a snapshot waits for it: the call ends, and the VM is attached anew and can be forked. */
static void test_reattach(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    guint broken = 0;

    if (!f->parent) {
        return;
    }
    for (guint round = 0; round < 3; round++) {
        g_autoptr(GAsyncResult) result = NULL;
        g_autoptr(GPtrArray) disks = NULL;
        g_autoptr(SfSnapshot) snapshot = NULL;
        sf_vm_check_async(f->parent, on_result, &result);
        for (int fd = 0; fd < 1024; fd++) {
            int type = 0;
            socklen_t length = sizeof(type);
            if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_SEQPACKET) {
                g_assert_cmpint(shutdown(fd, SHUT_RDWR), ==, 0);
                broken++;
            }
        }
        WAIT_UNTIL(result);
        WAIT_UNTIL(is_forkable(f->parent));
        g_assert_false(sf_vm_is_gone(f->parent));
        snapshot = snapshot_of(f->parent, "s", &disks, &error);
        g_assert_no_error(error);
        wait_beats(f->parent, 1);
    }
    g_assert_cmpuint(broken, ==, 3);
}

/* A guest that prints without end does not fill the host's memory. */
static void test_log(Fixture *f, gconstpointer data)
{
    g_autofree char *path = NULL;
    GStatBuf st;

    if (!f->parent) {
        return;
    }
    path = g_build_filename(sf_vm_directory(f->parent), "console.log", NULL);
    g_assert_cmpint(truncate(path, 100 << 20), ==, 0);
    WAIT_UNTIL(g_stat(path, &st) == 0 && st.st_size < 1 << 20);
    wait_beats(f->parent, 2);
}

static void on_exited(SfVm *vm, const char *reason, gpointer data)
{
    g_assert_null(*(char **)data);
    *(char **)data = g_strdup(reason);
}

/* Deaths and refusals: what is told, and that the parent goes on. */
static void test_failures(Fixture *f, gconstpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) disks = NULL;
    g_autoptr(SfSnapshot) snapshot = NULL;
    g_autoptr(GAsyncResult) loaded = NULL;
    g_autofree char *reason = NULL;
    SfShellPool *pool;
    SfVm *shell;

    if (!f->parent) {
        return;
    }
    g_assert_true(is_forkable(f->parent));
    /* The name is taken; an image that is in use; no image. */
    g_assert_null(start_vm(f, "parent", f->config, &error));
    g_assert_nonnull(strstr(error->message, "parent"));
    g_clear_error(&error);
    g_assert_null(start_vm(f, "other", f->config, &error));
    g_test_message("%s", error->message);
    g_assert_nonnull(strstr(error->message, "lock"));
    g_assert_nonnull(strstr(error->message, f->data_image));
    g_clear_error(&error);
    WAIT_UNTIL(count_directories(f) == 1);

    /* A shell dies before and during a load. */
    pool = sf_shell_pool_new(f->launcher, "parent", sf_vm_config(f->parent), 0);
    snapshot = snapshot_of(f->parent, "s", &disks, &error);
    g_assert_no_error(error);
    shell = take_shell(pool, &error);
    g_assert_no_error(error);
    g_assert_null(snapshot_of(shell, "x", NULL, &error)); /* it is empty */
    g_clear_error(&error);
    g_signal_connect(shell, "exited", G_CALLBACK(on_exited), &reason);
    sf_vm_load_async(shell, snapshot, disks, TRUE, NULL, on_result, &loaded);
    kill(sf_vm_pid(shell), SIGKILL);
    WAIT_UNTIL(loaded && reason);
    g_assert_false(sf_vm_load_finish(shell, loaded, &error));
    g_clear_error(&error);
    g_assert_nonnull(strstr(reason, "signal 9"));
    g_object_unref(shell);

    /* The overlay can't be made: no snapshot, and the VM runs. */
    g_assert_cmpint(g_rename(f->options.overlay_directory, f->data_image), !=, 0);
    {
        g_autofree char *away = g_strconcat(f->options.overlay_directory, ".away", NULL);
        g_assert_cmpint(g_rename(f->options.overlay_directory, away), ==, 0);
        g_assert_null(snapshot_of(f->parent, "y", NULL, &error));
        g_assert_nonnull(error);
        g_clear_error(&error);
        g_assert_cmpint(g_rename(away, f->options.overlay_directory), ==, 0);
    }
    wait_beats(f->parent, 1);
    g_clear_pointer(&snapshot, sf_snapshot_unref);
    g_clear_pointer(&disks, g_ptr_array_unref);
    snapshot = snapshot_of(f->parent, "z", &disks, &error);
    g_assert_no_error(error);
    sf_shell_pool_close(pool);
    sf_shell_pool_unref(pool);
}

#define ADD(name, accel, function) g_test_add("/vm/" name, Fixture, accel, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD("fork", "tcg", test_fork);
    ADD("fork_kvm", "kvm", test_fork);
    ADD("nested", "tcg", test_nested);
    ADD("settle_interrupted", "tcg", test_settle_interrupted);
    ADD("adopt", "tcg", test_adopt);
    ADD("adopt_half_loaded", "tcg", test_adopt_half_loaded);
    ADD("adopt_renamed", "tcg", test_adopt_renamed);
    ADD("adopt_in_commit", "tcg", test_adopt_in_commit);
    ADD("adopt_in_stream", "tcg", test_adopt_in_stream);
    ADD("many_forks", "tcg", test_many_forks);
    ADD("reattach", "tcg", test_reattach);
    ADD("log", "tcg", test_log);
    ADD("failures", "tcg", test_failures);
    return g_test_run();
}
