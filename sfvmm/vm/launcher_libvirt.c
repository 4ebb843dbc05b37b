/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 *     parent:  a domain that runs: XML twice (as it is now; as it would be sent to another host) --> may it be forked?
 *              --> block nodes of its disks --> SfVm with the domain as its keeper (domain.c)
 *     shell:   overlays --> XML from the parent's --> virDomainCreateXML(paused) --> block nodes --> SfVm
 *
 * Both have a middle part that blocks, in a worker thread (Probe), between two parts in the main thread. The process of
 * a domain is known from its first answer on the sf channel on (vm.c).
 *
 * An active domain cannot be renamed, so a clone keeps the name that its domain got as a shell, sf-PARENT-XXXXXXXX;
 * title and metadata say which clone it is.
 *
 * After a crash: vm.json has the domain's uuid, and the domain has our run directory in its metadata. Domains that have
 * it, and are no VM of ours and not about to be one, are destroyed by the sweep (domain_sweep.c).
 *
 * The overlay of a domain is opened by libvirt's QEMU by its path, as its user: libvirt gives it the file. The folder
 * lets others through to files that they know the name of, which has 64 random bits.
 */
#include "sfvmm/vm/launcher_private.h"

#include <errno.h>
#include <libvirt/virterror.h>
#include <string.h>
#include <sys/stat.h>

#include "sfvmm/vm/domain.h"
#include "sfvmm/vm/domain_network.h"
#include "sfvmm/vm/domain_nic.h"
#include "sfvmm/vm/domain_nodes.h"
#include "sfvmm/vm/domain_sweep.h"
#include "sfvmm/wire/state_file.h"

#define MODE_DIRECTORY    0700
#define MODE_PASS_THROUGH 0711
#define URIS_FILE         "libvirt.json" /* in RUNDIR: where domains of ours may be */
#define NAME_DIGITS       8              /* of the uuid, in a shell's name */
#define DOMAIN_NAME_MAX   40             /* of the parent's name in it: paths of sockets are short */

/* Whatever is started or taken over. */
typedef struct {
    SfLauncher *launcher;
    char *name; /* of the VM */
    SfVmConfig *config;
    SfDomain *domain;
    GPtrArray *overlays; /* of SfDiskLayer: of each writable disk of a shell */
    SfVm *vm;

    /* of the worker thread */
    SfLibvirt *libvirt;
    char *domain_name; /* of a parent */
    char *xml;         /* to create a shell from; of a parent: the template of its shells */
    gboolean created;
    char *uuid;
    SfDomainXml *live;
    char *nic_target, *nic_alias; /* of its NIC in a cluster */
    GPtrArray *nodes; /* of SfDomainNodes */
} Start;

static void start_free(gpointer data)
{
    Start *start = data;

    g_clear_pointer(&start->config, sf_vm_config_unref);
    g_clear_pointer(&start->domain, sf_domain_unref);
    g_clear_pointer(&start->overlays, g_ptr_array_unref);
    g_clear_pointer(&start->live, sf_domain_xml_free);
    g_clear_pointer(&start->nodes, g_ptr_array_unref);
    g_clear_object(&start->vm);
    g_free(start->nic_target);
    g_free(start->nic_alias);
    g_free(start->domain_name);
    g_free(start->uuid);
    g_free(start->xml);
    g_free(start->name);
    g_free(start);
}

/* ---- in the worker thread ---- */

/* What the running domain is, and its nodes. */
static gboolean look_at_domain(Start *start, virDomainPtr domain, GError **error)
{
    char *text = virDomainGetXMLDesc(domain, 0);
    guint32 address;
    gboolean ok;

    if (!text) {
        return sf_libvirt_fail(error, "its XML");
    }
    start->live = sf_domain_xml_parse(text, error);
    address = start->config ? start->config->address : start->live ? start->live->address : 0;
    ok = start->live && (!address || start->live->nic_fault ||
                         sf_domain_nic_names(text, address, &start->nic_target, &start->nic_alias, error));
    free(text);
    start->nodes = ok ? sf_domain_nodes_find(domain, start->live, error) : NULL;
    return start->nodes != NULL;
}

static gboolean create(Start *start, virConnectPtr connection, GError **error)
{
    virDomainPtr domain = virDomainCreateXML(connection, start->xml, VIR_DOMAIN_START_PAUSED);
    gboolean ok;

    if (!domain) {
        return sf_libvirt_fail(error, "libvirt can't create it");
    }
    start->created = TRUE;
    ok = look_at_domain(start, domain, error);
    virDomainFree(domain);
    return ok;
}

static void shell_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    Start *start = data;
    GError *error = NULL;
    virConnectPtr connection = sf_libvirt_connect(start->libvirt, SF_LIBVIRT_SLOW, &error);
    gboolean ok;

    sf_libvirt_begin(start->libvirt, SF_LIBVIRT_SLOW);
    ok = connection && create(start, connection, &error);
    sf_libvirt_end(start->libvirt, SF_LIBVIRT_SLOW);
    if (connection) {
        virConnectClose(connection);
    }
    if (ok) {
        g_task_return_boolean(task, TRUE);
    } else {
        g_task_return_error(task, error);
    }
}

static gboolean is_forkable(Start *start, GError **error)
{
    g_autoptr(GPtrArray) lacks = sf_domain_xml_lacks(start->live, start->launcher->options.qemu);
    g_autoptr(GString) text = NULL;

    if (sf_domain_lacks_forkable(lacks)) {
        return TRUE;
    }
    text = g_string_new(NULL);
    for (guint i = 0; i < lacks->len; i++) {
        const SfDomainLack *lack = g_ptr_array_index(lacks, i);
        if (lack->needed) {
            g_string_append_printf(text, "%s%s", text->len > 0 ? "; " : "", lack->what);
        }
    }
    g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_REFUSED, "it can't be forked: %s; `sfctl domain check %s` says more",
                text->str, start->domain_name);
    return FALSE;
}

static gboolean take_domain(Start *start, virDomainPtr domain, GError **error)
{
    char uuid[VIR_UUID_STRING_BUFLEN];
    char *xml;

    if (virDomainIsActive(domain) != 1) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "it does not run: `virsh start %s` first",
                    start->domain_name);
        return FALSE;
    }
    if (virDomainGetUUIDString(domain, uuid) < 0 ||
        !(xml = virDomainGetXMLDesc(domain, VIR_DOMAIN_XML_MIGRATABLE | VIR_DOMAIN_XML_SECURE))) {
        return sf_libvirt_fail(error, "its XML");
    }
    start->uuid = g_strdup(uuid);
    start->xml = g_strdup(xml);
    free(xml);
    return look_at_domain(start, domain, error) && is_forkable(start, error);
}

static void parent_thread(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    Start *start = data;
    GError *error = NULL;
    virConnectPtr connection = sf_libvirt_connect(start->libvirt, SF_LIBVIRT_SLOW, &error);
    virDomainPtr domain = connection ? virDomainLookupByName(connection, start->domain_name) : NULL;
    gboolean ok = FALSE;

    if (domain) {
        ok = take_domain(start, domain, &error);
        virDomainFree(domain);
    } else if (connection) {
        ok = sf_libvirt_fail(&error, "it is not there");
    }
    if (connection) {
        virConnectClose(connection);
    }
    if (ok) {
        g_task_return_boolean(task, TRUE);
    } else {
        g_prefix_error(&error, "domain %s of %s: ", start->domain_name, sf_libvirt_uri(start->libvirt));
        g_task_return_error(task, error);
    }
}

/* ---- the VM of a domain: main thread ---- */

/* Of a running domain: where its agent's port is. */
static void set_agent(Start *start)
{
    g_free(start->vm->agent_socket);
    g_free(start->vm->agent_port);
    start->vm->agent_socket = g_strdup(start->live->agent_path ? start->live->agent_path : "");
    start->vm->agent_port = g_strdup(start->live->agent_alias ? start->live->agent_alias : "");
}

static void start_end(GTask *task, GError *error)
{
    Start *start = g_task_get_task_data(task);

    if (error) {
        if (start->created) {
            sf_domain_destroy(start->domain);
        }
        if (start->domain) {
            sf_domain_unwatch(start->domain);
        }
        if (start->vm && !start->vm->gone) {
            start->vm->gone = TRUE;
            sf_state_remove_folder(start->vm->directory);
        }
        g_prefix_error(&error, "VM %s: ", start->name);
        g_task_return_error(task, error);
    } else {
        g_task_return_pointer(task, g_object_ref(start->vm), g_object_unref);
    }
    g_object_unref(task);
}

/* Takes error. */
static void start_fail(GTask *task, GError *error)
{
    Start *start = g_task_get_task_data(task);

    if (start->created && start->vm->pidfd >= 0) {
        sf_vm_kill(start->vm); /* its end removes the folder */
        g_task_return_error(task, error);
        g_object_unref(task);
        return;
    }
    start_end(task, error);
}

static void on_plugged(const GError *error, gpointer data)
{
    if (error) {
        start_fail(data, g_error_copy(error));
    } else {
        start_end(data, NULL);
    }
}

static void on_connected(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    Start *start = g_task_get_task_data(task);
    GError *error = NULL;

    if (!sf_vm_connect_finish(SF_VM(source), result, &error)) {
        start_fail(task, error);
    } else if (sf_vm_config_has_cluster(start->config)) {
        sf_domain_nic_plug(start->vm, &start->launcher->taps, start->nic_target, start->nic_alias, on_plugged, task);
    } else {
        start_end(task, NULL);
    }
}

static void connect_vm(GTask *task)
{
    Start *start = g_task_get_task_data(task);
    GError *error = NULL;

    set_agent(start);
    sf_domain_keep(start->domain, start->vm);
    if (!sf_vm_save(start->vm, &error)) {
        start_end(task, error);
        return;
    }
    sf_vm_connect_async(start->vm, SF_VM_CONNECT_SECONDS, on_connected, task);
}

static gboolean make_vm_directory(Start *start, GError **error)
{
    if (mkdir(start->vm->directory, MODE_DIRECTORY) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s", start->vm->directory, g_strerror(errno));
        return FALSE;
    }
    return TRUE;
}

/* On record before the first domain of ours is made there: a sweep looks for them. */
static gboolean remember_uri(Start *start, GError **error)
{
    g_autofree char *path = g_build_filename(start->launcher->options.run_directory, URIS_FILE, NULL);
    g_autoptr(JsonObject) object = sf_state_read(path, NULL);

    if (!object) {
        object = json_object_new();
    }
    if (json_object_has_member(object, sf_libvirt_uri(start->libvirt))) {
        return TRUE;
    }
    json_object_set_boolean_member(object, sf_libvirt_uri(start->libvirt), TRUE);
    return sf_state_write(path, object, error);
}

/* Overlays are made from a template of the disk's size. */
static gboolean make_template(Start *start, guint64 size, GError **error)
{
    g_autofree char *path = sf_vm_template_path(start->vm, size);

    return g_file_test(path, G_FILE_TEST_EXISTS) ||
           sf_disk_template_create(start->launcher->options.qemu_img, path, size, error);
}

static Start *start_new(SfLauncher *launcher, const char *name, SfLibvirt *libvirt, GTask *task)
{
    Start *start = g_new0(Start, 1);

    start->launcher = launcher;
    start->name = g_strdup(name);
    start->libvirt = libvirt;
    g_task_set_task_data(task, start, start_free);
    return start;
}

static void run_thread(Start *start, GTaskThreadFunc run, GAsyncReadyCallback done, GTask *task)
{
    g_autoptr(GTask) work = g_task_new(NULL, NULL, done, task);

    g_task_set_task_data(work, start, NULL); /* of the outer task, which outlives it */
    g_task_run_in_thread(work, run);
}

/* ---- a shell ---- */

static void on_shell_created(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    Start *start = g_task_get_task_data(task);
    GError *error = NULL;
    guint overlay = 0;

    if (!g_task_propagate_boolean(G_TASK(result), &error)) {
        start_end(task, error);
        return;
    }
    for (guint i = 0; i < start->config->disks->len; i++) {
        const SfDiskConfig *config = g_ptr_array_index(start->config->disks, i);
        SfDomainNodes *nodes = g_ptr_array_index(start->nodes, i);
        SfVmDisk *disk;
        if (config->readonly) {
            SfDiskChain *chain = sf_disk_chain_new(config->id, config->size, TRUE);
            g_ptr_array_add(chain->layers, sf_disk_layer_new(config->path, config->format, FALSE));
            disk = sf_vm_disk_new(chain);
            sf_vm_disk_adopt_nodes(disk, (const char *const *)&g_ptr_array_index(nodes->nodes, nodes->nodes->len - 1),
                                   json_object_ref(nodes->top));
        } else {
            disk = sf_vm_disk_new(NULL);
            sf_vm_disk_adopt_overlay(disk, sf_disk_layer_ref(g_ptr_array_index(start->overlays, overlay++)),
                                     json_object_ref(nodes->top));
        }
        sf_vm_add_disk(start->vm, disk);
    }
    start->vm->unlinked = g_strdupv(start->live->unlinked);
    connect_vm(task);
}

/* libvirt gives the file to the user of its QEMU. */
static gboolean make_overlays(Start *start, GPtrArray *paths, GError **error)
{
    start->overlays = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_layer_unref);
    if (chmod(start->launcher->options.overlay_directory, MODE_PASS_THROUGH) < 0) {
        g_set_error(error, G_IO_ERROR, g_io_error_from_errno(errno), "%s: %s",
                    start->launcher->options.overlay_directory, g_strerror(errno));
        return FALSE;
    }
    for (guint i = 0; i < start->config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(start->config->disks, i);
        g_autofree char *template = sf_vm_template_path(start->vm, disk->size);
        g_autofree char *path = sf_vm_overlay_path(start->vm, disk->id);
        SfDiskLayer *overlay;
        if (disk->readonly) {
            continue;
        }
        overlay = make_template(start, disk->size, error)
                      ? sf_disk_overlay_create(template, path, getuid(), getgid(), error)
                      : NULL;
        if (!overlay) {
            return FALSE;
        }
        g_ptr_array_add(start->overlays, overlay);
        g_ptr_array_add(paths, g_steal_pointer(&path));
    }
    return TRUE;
}

static char *shell_domain_name(const SfVmConfig *config, const char *uuid)
{
    g_autoptr(SfDomainXml) parent = sf_domain_xml_parse(config->domain_xml, NULL);

    return g_strdup_printf(SF_DOMAIN_PREFIX "%.*s-%.*s", DOMAIN_NAME_MAX, parent ? parent->name : "vm", NAME_DIGITS,
                           uuid);
}

static gboolean prepare_shell(Start *start, GError **error)
{
    const SfDomainLineage lineage = { .role = "shell",
                                      .owner = start->launcher->options.run_directory,
                                      .vm = start->name };
    g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *uuid = g_uuid_string_random();
    g_autofree char *name = shell_domain_name(start->config, uuid);

    if (!sf_launcher_make_directories(start->launcher, error) || !remember_uri(start, error) ||
        !make_vm_directory(start, error) || !make_overlays(start, paths, error)) {
        return FALSE;
    }
    start->domain = sf_domain_new(start->libvirt, name, uuid, TRUE);
    sf_domain_watch(start->domain);
    start->xml = sf_domain_xml_shell(&(SfDomainShell){ start->config->domain_xml, name, uuid, &lineage,
                                                       start->launcher->options.qemu, paths, start->config->address },
                                     error);
    return start->xml != NULL;
}

void sf_launcher_libvirt_shell(SfLauncher *launcher, const char *name, SfVmConfig *config, GTask *task)
{
    Start *start = start_new(launcher, name, sf_libvirt_get(config->uri), task);
    GError *error = NULL;

    start->config = sf_vm_config_ref(config);
    start->vm = sf_vm_new(&launcher->options, name, SF_VM_SHELL, config);
    if (prepare_shell(start, &error)) {
        run_thread(start, shell_thread, on_shell_created, task);
    } else {
        start_end(task, error);
    }
}

/* ---- a parent ---- */

/* Layers, lowest first. */
static SfDiskChain *domain_chain(const SfDiskConfig *config, const SfDomainDisk *disk)
{
    SfDiskChain *chain = sf_disk_chain_new(config->id, config->size, config->readonly);

    for (guint i = disk->backing->len; i > 0; i--) {
        const SfDomainImage *image = g_ptr_array_index(disk->backing, i - 1);
        g_ptr_array_add(chain->layers, sf_disk_layer_new(image->path, image->format, FALSE));
    }
    g_ptr_array_add(chain->layers, sf_disk_layer_new(disk->path, disk->format, FALSE));
    return chain;
}

static gboolean configure(Start *start, GError **error)
{
    const SfDomainXml *live = start->live;
    SfVmConfig *config = sf_vm_config_new();

    start->config = config;
    config->memory = live->memory;
    config->vcpus = live->vcpus;
    g_free(config->accel);
    config->accel = g_strdup(strcmp(live->type, "kvm") == 0 ? "kvm" : "tcg");
    config->uri = g_strdup(sf_libvirt_uri(start->libvirt));
    config->domain_xml = g_steal_pointer(&start->xml);
    for (guint i = 0; i < live->disks->len; i++) {
        const SfDomainDisk *disk = g_ptr_array_index(live->disks, i);
        const SfDomainNodes *nodes = g_ptr_array_index(start->nodes, i);
        SfDiskConfig *entry = sf_vm_config_add_disk(config);
        entry->path = g_strdup(disk->path);
        entry->format = g_strdup(disk->format);
        entry->readonly = disk->readonly;
        entry->size = nodes->size;
    }
    return !live->network || sf_vm_config_set_network(config, live->network, error);
}

/* That of a parent is opened by its start, as nobody has known of it before. */
static gboolean open_network(Start *start, GError **error)
{
    const SfTapProvider *taps = &start->launcher->taps;

    return !sf_vm_config_has_cluster(start->config) || !taps->open ||
           taps->open(taps->owner, start->name, start->config, error);
}

static gboolean add_disks(Start *start, GError **error)
{
    for (guint i = 0; i < start->config->disks->len; i++) {
        const SfDiskConfig *config = g_ptr_array_index(start->config->disks, i);
        const SfDomainNodes *nodes = g_ptr_array_index(start->nodes, i);
        SfVmDisk *disk = sf_vm_disk_new(domain_chain(config, g_ptr_array_index(start->live->disks, i)));
        sf_vm_disk_adopt_nodes(disk, (const char *const *)nodes->nodes->pdata, json_object_ref(nodes->top));
        sf_vm_add_disk(start->vm, disk);
        if (!config->readonly && !make_template(start, config->size, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean prepare_parent(Start *start, GError **error)
{
    if (sf_libvirt_is_watched(start->libvirt, start->uuid)) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "domain %s is a VM of this sfvmmd already",
                    start->domain_name);
        return FALSE;
    }
    if (start->live->disks->len > SF_VM_DISKS_MAX || start->live->vcpus > SF_VM_VCPUS_MAX) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_REFUSED, "domain %s: more than %u disks or %u CPUs",
                    start->domain_name, SF_VM_DISKS_MAX, SF_VM_VCPUS_MAX);
        return FALSE;
    }
    if (!configure(start, error)) {
        return FALSE;
    }
    if (!remember_uri(start, error) || !sf_launcher_images_are_whole(start->launcher, start->config, error)) {
        return FALSE;
    }
    start->vm = sf_vm_new(&start->launcher->options, start->name, SF_VM_PARENT, start->config);
    start->vm->anonymous = start->live->anonymous;
    start->domain = sf_domain_new(start->libvirt, start->domain_name, start->uuid, FALSE);
    return make_vm_directory(start, error) && add_disks(start, error) && open_network(start, error);
}

static void on_parent_found(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    GError *error = NULL;

    if (g_task_propagate_boolean(G_TASK(result), &error) && prepare_parent(g_task_get_task_data(task), &error)) {
        connect_vm(task);
    } else {
        start_end(task, error);
    }
}

void sf_launcher_libvirt_parent(SfLauncher *launcher, const char *name, const char *uri, const char *domain,
                                GTask *task)
{
    Start *start = start_new(launcher, name, sf_libvirt_get(uri), task);

    start->domain_name = g_strdup(domain);
    run_thread(start, parent_thread, on_parent_found, task);
}

/* ---- after a restart ---- */

gboolean sf_launcher_libvirt_restore(SfLauncher *launcher, SfVm *vm, GError **error)
{
    SfDomain *domain = sf_domain_from_json(vm->keeper_json, error);

    if (!domain) {
        return FALSE;
    }
    sf_domain_keep(domain, vm);
    sf_domain_unref(domain);
    return TRUE;
}

void sf_launcher_libvirt_sweep(SfLauncher *launcher)
{
    g_autofree char *path = g_build_filename(launcher->options.run_directory, URIS_FILE, NULL);
    g_autoptr(JsonObject) object = sf_state_read(path, NULL);
    g_autoptr(GList) uris = object ? json_object_get_members(object) : NULL;

    for (GList *uri = uris; uri; uri = uri->next) {
        sf_domain_sweep(sf_libvirt_get(uri->data), launcher->options.run_directory);
    }
}
