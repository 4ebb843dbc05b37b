/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The VMs of this host: parents are started, or domains taken over; clones come with their forks. */
#include <string.h>

#include "sfvmm/control/describe.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/networks.h"

void sf_host_vm_free(gpointer data)
{
    SfHostVm *hvm = data;

    g_signal_handlers_disconnect_by_data(hvm->vm, hvm);
    g_object_unref(hvm->vm);
    g_free(hvm->parent);
    g_free(hvm);
}

SfHostVm *sf_host_vm_of(SfHost *host, SfVm *vm)
{
    SfHostVm *hvm = g_hash_table_lookup(host->vms, sf_vm_name(vm));

    return hvm && hvm->vm == vm ? hvm : NULL;
}

SfHostVm *sf_host_vm(SfHost *host, const char *name, GError **error)
{
    SfHostVm *hvm = g_hash_table_lookup(host->vms, name);

    if (!hvm) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_NO_SUCH_VM, "VM \"%s\": not known on this host", name);
    }
    return hvm;
}

static gint by_name(gconstpointer a, gconstpointer b)
{
    const SfHostVm *left = a, *right = b;

    return strcmp(sf_vm_name(left->vm), sf_vm_name(right->vm));
}

GList *sf_host_vms(SfHost *host)
{
    return g_list_sort(g_hash_table_get_values(host->vms), by_name);
}

/* A parent that has ended: nobody can use its unused tickets, or join its finished forks. */
static void drop_tickets_of(SfHost *host, const char *vm)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        if (sf_host_ticket_is_of(ticket, vm) && (!ticket->fork || sf_fork_is_done(ticket->fork))) {
            sf_host_release_ticket(host, ticket);
        }
    }
}

static void on_vm_exited(SfVm *vm, const char *reason, SfHostVm *hvm)
{
    SfHost *host = hvm->host;
    SfFamily *family = hvm->family;
    g_autoptr(SfVm) keep = g_object_ref(vm);
    g_autofree char *name = g_strdup(sf_vm_name(vm));
    JsonObject *data = json_object_new();

    g_signal_emit_by_name(host, "vm-exited", hvm);
    sf_networks_dismiss(host->networks, hvm);
    json_object_set_string_member(data, "vm", name);
    json_object_set_string_member(data, "reason", reason);
    if (family->root == vm) {
        g_message("VM \"%s\": ended: %s", name, reason);
        family->root = NULL;
        sf_shell_pool_set_target(family->pool, 0);
    }
    g_hash_table_remove(host->vms, name);
    sf_host_event(host, "vm.exited", data);
    sf_resource_manager_forget_vm(host->manager, name);
    drop_tickets_of(host, name);
    sf_host_family_settle_later(host, family);
    sf_host_family_leave(host, family);
}

static void on_guest_message(SfVm *vm, const struct sf_gp_header *header, GBytes *payload, SfHostVm *hvm)
{
    g_signal_emit_by_name(hvm->host, "guest-message", hvm, header, payload);
}

/* A clone that is not identified yet is told its addresses with its identity. */
static void on_guest_connected(SfVm *vm, SfHostVm *hvm)
{
    const SfClone *clone = sf_host_clone_of(hvm->host, hvm);

    if (!clone || clone->state == SF_GP_STATE_RUNNING) {
        sf_networks_tell(hvm->host->networks, hvm);
    }
    sf_host_event(hvm->host, "vm.agent", sf_describe_vm(hvm));
}

SfHostVm *sf_host_add_vm(SfHost *host, SfVm *vm, SfFamily *family)
{
    SfHostVm *hvm = g_new0(SfHostVm, 1);

    hvm->host = host;
    hvm->vm = g_object_ref(vm);
    hvm->family = family;
    sf_host_family_join(family);
    g_hash_table_insert(host->vms, g_strdup(sf_vm_name(vm)), hvm);
    g_signal_connect(vm, "exited", G_CALLBACK(on_vm_exited), hvm);
    g_signal_connect(vm, "guest-message", G_CALLBACK(on_guest_message), hvm);
    g_signal_connect(vm, "guest-connected", G_CALLBACK(on_guest_connected), hvm);
    sf_vm_guest_greet(vm);
    return hvm;
}

void sf_host_add_clone(SfHost *host, SfHostTicket *ticket, SfClone *clone)
{
    SfHostVm *hvm = sf_host_add_vm(host, clone->vm, ticket->family);

    hvm->ticket = ticket->grant->id;
    hvm->id = clone->id;
    hvm->parent = g_strdup(ticket->grant->vm);
}

/* ---- starting a VM ---- */

typedef struct {
    char *name;
    guint32 user;
    SfVmConfig *config;
    guint pool_target;
} RunCall;

static void run_call_free(gpointer data)
{
    RunCall *call = data;

    g_free(call->name);
    sf_vm_config_unref(call->config); /* NULL: of a domain */
    g_free(call);
}

static gboolean name_is_free(SfHost *host, const char *name)
{
    return !g_hash_table_contains(host->vms, name) && !g_hash_table_contains(host->starting, name) &&
           !g_hash_table_contains(host->families, name);
}

/* [a-z0-9][a-z0-9.-]{0,39}: fit for a host name, a file name and a terminal. */
static gboolean name_is_valid(const char *name)
{
    gsize length = strlen(name);

    return length >= 1 && length <= SF_HOST_NAME_MAX && g_ascii_isalnum(name[0]) &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") == length;
}

static char *next_free_name(SfHost *host)
{
    for (guint i = 1;; i++) {
        g_autofree char *name = g_strdup_printf("vm%u", i);
        if (name_is_free(host, name)) {
            return g_steal_pointer(&name);
        }
    }
}

static void on_started(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    SfHost *host = g_task_get_source_object(task);
    RunCall *call = g_task_get_task_data(task);
    g_autoptr(GError) error = NULL;
    g_autoptr(SfVm) vm = sf_launcher_start_finish(host->launcher, result, &error);
    SfFamily *family;
    SfHostVm *hvm;

    g_hash_table_remove(host->starting, call->name);
    if (!vm) {
        sf_networks_close(host->networks, call->name);
        g_task_return_error(task, g_steal_pointer(&error));
        return;
    }
    family = sf_host_family_new(host, call->name, call->user, sf_vm_config(vm), call->pool_target);
    family->root = vm;
    sf_shell_pool_set_target(family->pool, call->pool_target);
    hvm = sf_host_add_vm(host, vm, family);
    if (!sf_networks_admit(host->networks, hvm, &error)) {
        if (!sf_vm_domain(vm)) { /* a domain is its owner's: it goes on, without a network */
            sf_vm_kill(vm);
        }
        g_task_return_error(task, g_steal_pointer(&error));
        return;
    }
    sf_host_event(host, "vm.started", sf_describe_vm(hvm));
    g_task_return_pointer(task, hvm, NULL);
}

/* FALSE: the task (not taken) has its error. */
static gboolean run_is_allowed(SfHost *host, GTask *task, const RunCall *call)
{
    GError *error = NULL;

    if (!name_is_valid(call->name)) {
        g_task_return_new_error(task, SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS,
                                "VM name \"%s\": 1 to %u of a-z, 0-9, '.' and '-' are needed, a letter or digit first",
                                call->name, SF_HOST_NAME_MAX);
    } else if (!name_is_free(host, call->name)) {
        g_task_return_new_error(task, SF_HOST_ERROR, SF_HOST_ERROR_EXISTS, "VM \"%s\": the name is taken", call->name);
    } else if (g_hash_table_size(host->vms) + g_hash_table_size(host->starting) >=
               host->config->vms + host->config->limits.clones) {
        g_task_return_new_error(task, SF_HOST_ERROR, SF_HOST_ERROR_QUOTA,
                                "VM \"%s\": this host runs as many VMs as it may (vms in sfvmmd.conf)", call->name);
    } else if (call->config && !sf_networks_open(host->networks, call->name, call->config, &error)) {
        g_task_return_error(task, error);
    } else {
        g_hash_table_add(host->starting, g_strdup(call->name));
        return TRUE;
    }
    return FALSE;
}

void sf_host_run_async(SfHost *host, const char *name, guint32 user, SfVmConfig *config, guint pool_target,
                       GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(host, NULL, callback, data);
    RunCall *call = g_new0(RunCall, 1);

    call->name = name ? g_strdup(name) : next_free_name(host);
    call->user = user;
    call->config = sf_vm_config_ref(config);
    call->pool_target = pool_target;
    g_task_set_task_data(task, call, run_call_free);
    if (run_is_allowed(host, task, call)) {
        sf_launcher_start_async(host->launcher, call->name, SF_VM_PARENT, config, on_started, task);
    } else {
        g_object_unref(task);
    }
}

/* What a domain's name has that a VM's cannot have becomes '-'. */
static char *name_of_domain(const char *domain)
{
    char *name = g_strndup(domain, SF_HOST_NAME_MAX);

    for (char *p = name; *p; p++) {
        *p = g_ascii_tolower(*p);
        if (!g_ascii_isalnum(*p) && !(p > name && (*p == '.' || *p == '-'))) {
            *p = p > name ? '-' : 'd';
        }
    }
    return name;
}

/* The parent that this domain is already, or NULL. */
static SfHostVm *vm_of_domain(SfHost *host, const char *uri, const char *domain)
{
    const char *where = uri ? uri : sf_launcher_options(host->launcher)->libvirt_uri;
    GHashTableIter iter;
    SfHostVm *hvm;

    g_hash_table_iter_init(&iter, host->vms);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&hvm)) {
        if (g_strcmp0(sf_vm_domain(hvm->vm), domain) == 0 && g_strcmp0(hvm->family->config->uri, where) == 0) {
            return hvm;
        }
    }
    return NULL;
}

void sf_host_adopt_async(SfHost *host, const char *name, guint32 user, const char *uri, const char *domain,
                         guint pool_target, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(host, NULL, callback, data);
    SfHostVm *known = vm_of_domain(host, uri, domain);
    RunCall *call;

    if (known) {
        g_task_return_pointer(task, known, NULL);
        g_object_unref(task);
        return;
    }
    call = g_new0(RunCall, 1);
    call->name = name ? g_strdup(name) : name_of_domain(domain);
    call->user = user;
    call->pool_target = pool_target;
    g_task_set_task_data(task, call, run_call_free);
    if (run_is_allowed(host, task, call)) {
        sf_launcher_adopt_domain_async(host->launcher, call->name, uri, domain, on_started, task);
    } else {
        g_object_unref(task);
    }
}

SfHostVm *sf_host_run_finish(SfHost *host, GAsyncResult *result, GError **error)
{
    return g_task_propagate_pointer(G_TASK(result), error);
}
