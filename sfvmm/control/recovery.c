/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * After a restart of sfvmmd. The QEMU processes went on; what is known of them stands in RUNDIR. In this order:
 *
 *     families/NAME.json   their configurations and (still empty) pools
 *     caches/SNAPSHOT/     sf-pagers that have died are started anew: a QEMU may wait for a page, and not answer
 *     vm/NAME/             each process is adopted, all at the same time; those that have ended are swept by vm/
 *     tickets/HEX/         grants are booked again, forks find their clones among the adopted VMs and go on
 *     pools                get their targets back, families without members go
 *
 * A file that can't be read costs what it describes, and nothing else: it is named in the log.
 */
#include <glib/gstdio.h>
#include <string.h>

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/lend.h"
#include "sfvmm/control/networks.h"
#include "sfvmm/control/page_uri.h"
#include "sfvmm/control/pager_record.h"
#include "sfvmm/control/snapshots.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/vm/disk_server.h"
#include "sfvmm/wire/state_file.h"

typedef struct {
    guint pending;  /* adoptions, and one for the loop that starts them */
    GPtrArray *vms; /* of SfVm */
} Recovery;

static void recovery_free(gpointer data)
{
    Recovery *recovery = data;

    g_ptr_array_unref(recovery->vms);
    g_free(recovery);
}

static void recover_family(SfHost *host, const char *file)
{
    g_autofree char *path = sf_host_path(host, "families", file);
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = sf_state_read(path, &error);
    g_autoptr(SfVmConfig) config = NULL;
    g_autoptr(GBytes) working_set = NULL;
    g_autofree char *name = NULL;
    SfFamily *family;
    JsonNode *node;
    gint64 target, user;

    if (!object || !g_str_has_suffix(file, ".json")) {
        g_warning("family \"%s\": %s", file, error ? error->message : "not a state file");
        return;
    }
    node = json_object_get_member(object, "config");
    config = node && JSON_NODE_HOLDS_OBJECT(node) ? sf_vm_config_restore(json_node_get_object(node), &error) : NULL;
    if (!config) {
        g_warning("family \"%s\": %s", file, error ? error->message : "no configuration");
        return;
    }
    name = g_strndup(file, strlen(file) - strlen(".json"));
    target = json_object_get_int_member_with_default(object, "pool", 0);
    working_set = sf_working_set_from_json(object, "working_set");
    user = json_object_get_int_member_with_default(object, "user", 0);
    family = sf_host_family_new(host, name, (guint32)CLAMP(user, 0, G_MAXUINT32), config,
                                (guint)CLAMP(target, 0, SF_GP_MAX_CLONES));
    node = json_object_get_member(object, "network");
    if (node && JSON_NODE_HOLDS_OBJECT(node)) {
        family->network = json_object_ref(json_node_get_object(node));
        sf_host_family_save(host, family);
    }
    if (working_set) {
        sf_host_family_set_working_set(host, family, working_set);
    }
}

/*
 * The family that a VM belongs to by its name: NAME, NAME-shell-N, NAME-TICKET4-ID, again and again for clones of
 * clones.
 */
static SfFamily *family_of_name(SfHost *host, const char *vm)
{
    g_autofree char *name = g_strdup(vm);
    char *dash;

    for (;;) {
        SfFamily *family = sf_host_family(host, name);
        if (family || !(dash = strrchr(name, '-'))) {
            return family;
        }
        *dash = '\0';
    }
}

/* The name of a clone from another host does not tell its family; its ticket does, which its snapshot is called after.
 */
static SfFamily *family_of_clone(SfHost *host, SfVm *vm)
{
    const char *snapshot = sf_vm_loaded_snapshot_id(vm);
    guint64 id;
    SfHostTicket *ticket = NULL;

    if (snapshot && g_str_has_prefix(snapshot, SF_FORK_SNAPSHOT_PREFIX) &&
        sf_ticket_id_from_text(snapshot + strlen(SF_FORK_SNAPSHOT_PREFIX), &id)) {
        ticket = sf_host_ticket(host, id, NULL);
    }
    return ticket ? ticket->family : NULL;
}

/* A family's network is found again by any of its VMs. */
static void adopt_network(SfHost *host, SfVm *vm)
{
    SfFamily *family = sf_vm_role(vm) == SF_VM_CLONE ? family_of_clone(host, vm) : family_of_name(host, sf_vm_name(vm));

    if (family) {
        sf_networks_adopt(sf_host_networks(host), family->name, family->config, vm);
    }
}

/* Those who talked before; a clone that is not identified is admitted when it is. */
static void admit_members(SfHost *host)
{
    g_autoptr(GList) vms = sf_host_vms(host);

    for (GList *item = vms; item; item = item->next) {
        SfHostVm *hvm = item->data;
        const SfClone *clone = sf_host_clone_of(host, hvm);
        g_autoptr(GError) error = NULL;
        if ((!clone || (clone->state == SF_GP_STATE_RUNNING && clone->network_told)) &&
            !sf_networks_admit(sf_host_networks(host), hvm, &error)) {
            g_warning("VM \"%s\": %s", sf_vm_name(hvm->vm), error->message);
        }
    }
    sf_networks_settle(sf_host_networks(host));
}

static void sort_vm(SfHost *host, SfVm *vm)
{
    SfFamily *family = family_of_name(host, sf_vm_name(vm));

    if (sf_vm_role(vm) == SF_VM_CLONE) {
        return; /* its ticket finds it; the name of one from another host says nothing */
    }
    if (!family) {
        g_warning("VM \"%s\": belongs to no family that is known; it is ended", sf_vm_name(vm));
        sf_vm_kill(vm);
        return;
    }
    switch (sf_vm_role(vm)) {
    case SF_VM_PARENT:
        family->root = vm;
        sf_host_add_vm(host, vm, family);
        break;
    case SF_VM_SHELL:
        sf_shell_pool_give(family->pool, vm);
        break;
    case SF_VM_CLONE:
        break; /* its ticket finds it */
    }
}

/* Somebody must answer its faults. TRUE also for a clone whose memory is all here. */
static gboolean take_faults(SfHostTicket *ticket, SfVm *vm, GError **error)
{
    if (!sf_vm_is_lazy(vm)) {
        return TRUE;
    }
    if (!ticket->pager || !sf_pager_cache(ticket->pager)) {
        g_set_error(error, SF_VM_ERROR, SF_VM_ERROR_FAILED, "VM \"%s\": the memory that it lacks can't be had any more",
                    sf_vm_name(vm));
        return FALSE;
    }
    return sf_vm_set_fault_handler(vm, sf_pager_fault_handler(ticket->pager),
                                   sf_pager_is_attached(ticket->pager, sf_vm_name(vm)), error);
}

static void recover_clones(SfHost *host, SfHostTicket *ticket, GPtrArray *vms)
{
    for (guint i = 0; i < vms->len; i++) {
        SfVm *vm = g_ptr_array_index(vms, i);
        SfClone *clone;
        if (sf_vm_role(vm) == SF_VM_CLONE && sf_fork_adopt(ticket->fork, vm)) {
            g_autoptr(GError) error = NULL;
            clone = sf_fork_clone_of_vm(ticket->fork, vm);
            sf_host_add_clone(host, ticket, clone);
            if (!take_faults(ticket, vm, &error)) {
                sf_fork_clone_lose(clone, error->message);
            }
        }
    }
}

static void recover_fork(SfHost *host, SfHostTicket *ticket, GPtrArray *vms)
{
    SfForkOptions options;
    g_autoptr(GError) error = NULL;

    sf_host_take_pager(host, ticket);
    options = sf_host_fork_options(host, ticket);
    ticket->fork = sf_fork_restore(&options, &error);
    if (!ticket->fork) {
        g_message("ticket %016" G_GINT64_MODIFIER "x: %s; it may fork anew", ticket->grant->id, error->message);
        ticket->grant->used = FALSE;
        sf_host_ticket_save(ticket);
        return;
    }
    sf_host_connect_fork(ticket);
    if (sf_fork_is_done(ticket->fork)) {
        sf_host_ticket_unbook(ticket);
        sf_borrow_done(ticket);
    }
    if (ticket->grant->origin) {
        sf_lend_recover_fork(ticket);
    } else if (ticket->saved) {
        sf_snapshots_recover_fork(ticket);
    }
    recover_clones(host, ticket, vms);
}

/* Who fills the memory of its clones: several tickets may have the same. */
static SfPager *recover_pager(SfHost *host, const char *id)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);
    g_autoptr(GError) error = NULL;
    SfPager *pager;

    for (GList *item = tickets; item; item = item->next) {
        const SfHostTicket *other = item->data;
        if (other->pager && strcmp(sf_pager_snapshot_id(other->pager), id) == 0) {
            return g_object_ref(other->pager);
        }
    }
    pager = sf_pager_record_take(host, id, &error);
    if (!pager) {
        g_warning("the memory of clones of %s is gone: %s", id, error->message);
    }
    return pager;
}

static void recover_ticket(SfHost *host, const char *folder)
{
    g_autofree char *directory = sf_host_path(host, "tickets", folder);
    g_autofree char *path = g_build_filename(directory, "ticket.json", NULL);
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = sf_state_read(path, &error);
    g_autoptr(SfTicket) grant = object ? sf_ticket_from_json(object, &error) : NULL;
    SfFamily *family =
        grant ? sf_host_family(host, json_object_get_string_member_with_default(object, "family", "")) : NULL;

    if (!family) {
        g_warning("ticket %s: %s; it is dropped", folder, error ? error->message : "its family has gone");
        sf_state_remove_folder(directory);
        return;
    }
    sf_resource_manager_restore(sf_host_manager(host), grant);
    {
        SfHostTicket *ticket = sf_host_add_ticket(host, g_steal_pointer(&grant), family);
        const char *pager = json_object_get_string_member_with_default(object, "pager", NULL);
        if (pager && sf_page_uri_snapshot_is_valid(pager)) {
            ticket->pager = recover_pager(host, pager);
        }
        ticket->first_address = (guint32)json_object_get_int_member_with_default(object, "first_address", 0);
        ticket->parent_address = (guint32)json_object_get_int_member_with_default(object, "parent_address", 0);
        if (ticket->grant->origin) {
            sf_lend_recover(ticket);
        } else {
            sf_snapshots_recover(ticket);
            sf_borrow_recover(ticket, object);
        }
    }
}

/* Oldest first: a clone that forked is known by its own, older ticket before its younger one looks for it. */
static void recover_tickets(SfHost *host, GPtrArray *vms)
{
    g_autofree char *folder = sf_host_path(host, "tickets", NULL);
    g_auto(GStrv) names = sf_state_list(folder);
    g_autoptr(GList) tickets = NULL;

    for (char **name = names; *name; name++) {
        recover_ticket(host, *name);
    }
    for (guint i = 0; i < vms->len; i++) {
        adopt_network(host, g_ptr_array_index(vms, i)); /* forks ask for it */
    }
    tickets = sf_host_tickets(host);
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (ticket->grant->used) {
            recover_fork(host, ticket, vms);
        }
    }
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        SfVm *root = ticket->family->root;
        if (ticket->fork) {
            sf_fork_resume(ticket->fork, root ? sf_vm_ram_base(root) : NULL);
        }
    }
}

/* Clones whose ticket is gone serve nobody. */
static void sweep_clones(SfHost *host, GPtrArray *vms)
{
    for (guint i = 0; i < vms->len; i++) {
        SfVm *vm = g_ptr_array_index(vms, i);
        if (sf_vm_role(vm) == SF_VM_CLONE && !sf_vm_is_gone(vm) && !sf_host_vm_of(host, vm)) {
            g_message("VM \"%s\": its ticket has gone; it is ended", sf_vm_name(vm));
            sf_vm_kill(vm);
        }
    }
}

static void wake_families(SfHost *host)
{
    g_autoptr(GList) families = sf_host_families(host);

    for (GList *item = families; item; item = item->next) {
        SfFamily *family = item->data;
        if (family->root || strchr(family->name, ':')) {
            sf_shell_pool_set_target(family->pool, family->pool_target);
        }
        sf_host_family_settle_later(host, family); /* its last clone may have gone just before we did */
        sf_host_family_join(family);
        sf_host_family_leave(host, family); /* a family without members goes */
    }
}

static void recovery_step_done(GTask *task)
{
    SfHost *host = g_task_get_source_object(task);
    Recovery *recovery = g_task_get_task_data(task);

    if (--recovery->pending > 0) {
        return;
    }
    for (guint i = 0; i < recovery->vms->len; i++) {
        sort_vm(host, g_ptr_array_index(recovery->vms, i));
    }
    recover_tickets(host, recovery->vms);
    sf_resource_manager_restored(sf_host_manager(host));
    admit_members(host);
    sweep_clones(host, recovery->vms);
    sf_pager_records_end(host);
    sf_launcher_sweep(sf_host_launcher(host));
    sf_disk_servers_sweep(sf_host_launcher(host));
    wake_families(host);
    g_task_return_boolean(task, TRUE);
}

static void on_adopted(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    SfHost *host = g_task_get_source_object(task);
    Recovery *recovery = g_task_get_task_data(task);
    g_autoptr(GError) error = NULL;
    SfVm *vm = sf_launcher_adopt_finish(sf_host_launcher(host), result, &error);

    if (vm) {
        g_ptr_array_add(recovery->vms, vm);
    } else {
        g_message("%s", error->message);
    }
    recovery_step_done(task);
}

void sf_host_recover_async(SfHost *host, GAsyncReadyCallback callback, gpointer data)
{
    g_autoptr(GTask) task = g_task_new(host, NULL, callback, data);
    Recovery *recovery = g_new0(Recovery, 1);
    g_autofree char *families = sf_host_path(host, "families", NULL);
    g_autofree char *vms = sf_host_path(host, "vm", NULL);
    g_auto(GStrv) family_files = sf_state_list(families);
    g_auto(GStrv) vm_folders = sf_state_list(vms);
    g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(g_object_unref);

    recovery->vms = g_ptr_array_new_with_free_func(g_object_unref);
    recovery->pending = 1;
    g_task_set_task_data(task, recovery, recovery_free);
    for (char **name = family_files; *name; name++) {
        recover_family(host, *name);
    }
    for (char **name = vm_folders; *name; name++) {
        g_autoptr(GError) error = NULL;
        SfVm *vm = sf_launcher_find(sf_host_launcher(host), *name, &error);
        if (vm) {
            g_ptr_array_add(found, vm);
        } else {
            g_message("%s", error->message);
        }
    }
    sf_pager_records_begin(host, found);
    for (guint i = 0; i < found->len; i++) {
        recovery->pending++;
        sf_launcher_adopt_async(sf_host_launcher(host), g_ptr_array_index(found, i), on_adopted, g_object_ref(task));
    }
    recovery_step_done(task);
}

void sf_host_recover_finish(SfHost *host, GAsyncResult *result)
{
    g_task_propagate_boolean(G_TASK(result), NULL);
}
