/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A snapshot is saved: of a VM, which forks for it and runs on, or of a ticket, whose clone that has not changed yet
 * has it.
 *
 * A VM whose memory comes from elsewhere is saved when all of it has come (background completion).
 */
#include "sfvmm/control/snapshots_private.h"

#include <string.h>

#include "sfvmm/control/describe.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/fork/remote.h"

typedef struct {
    SfSnapshots *snapshots;
    char *name;
    char *ticket_vm; /* the VM that was forked; NULL: the VM itself is saved */
    SfFamily *family;
    guint32 request;
    gboolean agent;
    SfVm *vm;       /* to be saved, or NULL */
    guint64 ticket; /* or what its clones were made from */
    SfPager *pager; /* that must be complete first; NULL: the memory is all here */
    gulong complete, lost, failed;
    gboolean fetching;
} SaveCall;

static void save_call_free(gpointer data)
{
    SaveCall *call = data;

    if (call->pager) {
        g_clear_signal_handler(&call->complete, call->pager);
        g_clear_signal_handler(&call->lost, call->pager);
        g_clear_signal_handler(&call->failed, call->pager);
        g_object_unref(call->pager);
    }
    g_clear_object(&call->vm);
    g_free(call->ticket_vm);
    g_free(call->name);
    g_free(call);
}

static void save_call_end(GTask *task, GError *error)
{
    SaveCall *call = g_task_get_task_data(task);
    SfHost *host = call->snapshots->host;
    SfFamily *family = call->family;

    if (error) {
        g_task_return_error(task, error);
    } else {
        JsonObject *data = sf_snapshots_describe_one(call->snapshots, call->name);
        sf_host_event(host, "snapshot.saved", data);
        g_task_return_boolean(task, TRUE);
    }
    g_object_unref(task);
    sf_host_family_settle_later(host, family);
    sf_host_family_leave(host, family);
}

static void on_stored(GObject *source, GAsyncResult *result, gpointer data)
{
    SaveCall *call = g_task_get_task_data(data);
    GError *error = NULL;

    if (sf_store_save_finish(call->snapshots->store, result, &error)) {
        g_message("snapshot \"%s\": saved", call->name);
    }
    save_call_end(data, error);
}

/* What clones need to be the same machine; the rest of `vm.run` is in their memory. */
static JsonObject *machine_of(const SfVmConfig *config)
{
    JsonObject *machine = json_object_new();

    json_object_set_int_member(machine, "memory", (gint64)config->memory);
    json_object_set_int_member(machine, "vcpus", config->vcpus);
    json_object_set_string_member(machine, "accel", config->accel);
    json_object_set_string_member(machine, "cpu", config->cpu);
    json_object_set_string_member(machine, "network", config->network);
    return machine;
}

/* Takes nothing. */
static void store_snapshot(GTask *task, SfHostVm *holder, SfSnapshot *snapshot, GPtrArray *disks)
{
    SaveCall *call = g_task_get_task_data(task);
    GError *error = NULL;
    g_autoptr(GBytes) bytes = sf_describe_snapshot_of(
        holder->vm, call->ticket_vm ? call->ticket_vm : sf_vm_name(holder->vm), snapshot, disks, &error);
    SfDescriptor *descriptor = bytes ? sf_descriptor_decode(bytes, &error) : NULL;

    if (!descriptor) {
        save_call_end(task, error);
        return;
    }
    sf_store_save_async(call->snapshots->store, call->name, snapshot, disks, descriptor,
                        machine_of(sf_vm_config(holder->vm)), call->agent, call->request, on_stored, task);
}

static void on_snapshot(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    SaveCall *call = g_task_get_task_data(task);
    GPtrArray *disks = NULL;
    GError *error = NULL;
    g_autoptr(SfSnapshot) snapshot = sf_vm_snapshot_finish(SF_VM(source), result, &disks, &error);
    SfHostVm *hvm = sf_host_vm_of(call->snapshots->host, SF_VM(source));

    if (snapshot && !hvm) {
        g_set_error(&error, SF_HOST_ERROR, SF_HOST_ERROR_GONE, "VM \"%s\": it has ended", sf_vm_name(SF_VM(source)));
    }
    if (error) {
        save_call_end(task, error);
    } else {
        store_snapshot(task, hvm, snapshot, disks);
    }
    g_clear_pointer(&disks, g_ptr_array_unref);
}

static const SfDiskChain *find_chain(GPtrArray *chains, const char *id)
{
    for (guint i = 0; i < chains->len; i++) {
        const SfDiskChain *chain = g_ptr_array_index(chains, i);
        if (strcmp(chain->id, id) == 0) {
            return chain;
        }
    }
    return NULL;
}

/* The clone's chains without their own tops: what it was made from, in the order of its configuration. */
static GPtrArray *frozen_disks_of(SfVm *clone)
{
    GPtrArray *disks = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);
    const SfVmConfig *config = sf_vm_config(clone);

    for (guint i = 0; i < config->disks->len; i++) {
        const SfDiskConfig *disk = g_ptr_array_index(config->disks, i);
        const SfDiskChain *own = find_chain(sf_vm_disks(clone), disk->id);
        SfDiskChain *chain = own ? sf_disk_chain_copy(own) : NULL;
        if (chain && !chain->readonly) {
            g_ptr_array_set_size(chain->layers, (gint)chain->layers->len - 1);
        }
        if (chain) {
            g_ptr_array_add(disks, chain);
        }
    }
    return disks;
}

/* A clone of the ticket that has not forked itself, so that its chains are still those that it was loaded with. */
static SfHostVm *pristine_clone(SfHostTicket *ticket)
{
    for (guint i = 0; ticket->fork && i < sf_fork_count(ticket->fork); i++) {
        SfClone *clone = sf_fork_nth(ticket->fork, i);
        SfHostVm *hvm = clone->vm ? sf_host_vm_of(ticket->host, clone->vm) : NULL;
        if (hvm && sf_vm_loaded_snapshot(clone->vm)) {
            const GPtrArray *chains = sf_vm_disks(clone->vm);
            const GPtrArray *frozen = sf_fork_frozen_disks(ticket->fork);
            if (!frozen || chains->len == frozen->len) {
                return hvm;
            }
        }
    }
    return NULL;
}

static void save_ticket(GTask *task, SfHostTicket *ticket)
{
    SfHostVm *holder = pristine_clone(ticket);
    GPtrArray *disks;

    if (!holder) {
        save_call_end(task, g_error_new(SF_HOST_ERROR, SF_HOST_ERROR_GONE,
                                        "no snapshot is alive: it ends with the last clone of its fork"));
        return;
    }
    disks = sf_fork_frozen_disks(ticket->fork) ? g_ptr_array_ref(sf_fork_frozen_disks(ticket->fork))
                                               : frozen_disks_of(holder->vm);
    store_snapshot(task, holder, sf_vm_loaded_snapshot(holder->vm), disks);
    g_ptr_array_unref(disks);
}

/* All of its memory is here. */
static void save_begin(GTask *task)
{
    SaveCall *call = g_task_get_task_data(task);
    g_autofree char *id = g_strdup_printf(SF_FORK_SNAPSHOT_FORMAT, sf_ticket_random_id());
    SfHostTicket *ticket = call->ticket ? sf_host_ticket(call->snapshots->host, call->ticket, NULL) : NULL;

    if (call->vm) {
        sf_vm_snapshot_async(call->vm, id, on_snapshot, task);
    } else if (ticket) {
        save_ticket(task, ticket);
    } else {
        save_call_end(task, g_error_new(SF_HOST_ERROR, SF_HOST_ERROR_GONE, "the ticket was released meanwhile"));
    }
}

static void on_pager_complete(SfPager *pager, gpointer data)
{
    SaveCall *call = g_task_get_task_data(data);

    if (call->fetching) {
        call->fetching = FALSE;
        save_begin(data);
    }
}

static void on_pager_lost(SfPager *pager, const char *reason, gpointer data)
{
    SaveCall *call = g_task_get_task_data(data);

    if (call->fetching) {
        call->fetching = FALSE;
        save_call_end(data,
                      g_error_new(SF_HOST_ERROR, SF_HOST_ERROR_FAILED,
                                  "snapshot \"%s\" is not saved: memory that is not on this host yet can't be had: "
                                  "%s",
                                  call->name, reason));
    }
}

static void on_pager_stats(GObject *source, GAsyncResult *result, gpointer data)
{
    GTask *task = data;
    SaveCall *call = g_task_get_task_data(task);
    SfPagerStats stats = { 0 };
    GError *error = NULL;

    if (sf_pager_stats_finish(call->pager, result, &stats, NULL) && stats.complete) {
        save_begin(task);
        return;
    }
    call->fetching = TRUE;
    call->complete = g_signal_connect(call->pager, "complete", G_CALLBACK(on_pager_complete), task);
    call->lost = g_signal_connect(call->pager, "lost", G_CALLBACK(on_pager_lost), task);
    call->failed = g_signal_connect(call->pager, "failed", G_CALLBACK(on_pager_lost), task);
    if (!sf_pager_complete(call->pager, &error)) {
        call->fetching = FALSE;
        save_call_end(task, error);
    }
}

/* Who fills the memory of this VM, or of the clones of this ticket; NULL: nobody has to. */
static SfPager *pager_of(SfHost *host, SfHostVm *hvm, SfHostTicket *ticket)
{
    if (!ticket && sf_vm_is_lazy(hvm->vm)) {
        ticket = sf_host_ticket(host, hvm->ticket, NULL);
    }
    return ticket ? ticket->pager : NULL;
}

void sf_snapshots_save_async(SfSnapshots *snapshots, const char *name, SfHostVm *hvm, SfHostTicket *ticket,
                             guint32 request, GAsyncReadyCallback callback, gpointer data)
{
    GTask *task = g_task_new(NULL, NULL, callback, data);
    const SfFamily *family = ticket ? ticket->family : hvm->family;
    SfPager *pager = pager_of(snapshots->host, hvm, ticket);
    SaveCall *call;

    if (family->config->domain_xml) {
        g_task_return_new_error(task, SF_HOST_ERROR, SF_HOST_ERROR_FAILED,
                                "VM \"%s\": it is a libvirt domain, and those can't be saved yet", family->name);
        g_object_unref(task);
        return;
    }
    call = g_new0(SaveCall, 1);
    call->snapshots = snapshots;
    call->name = g_strdup(name);
    call->request = request;
    call->ticket_vm = ticket ? g_strdup(ticket->grant->vm) : NULL;
    call->family = ticket ? ticket->family : hvm->family;
    call->agent = ticket ? ticket->fork && sf_fork_with_agent(ticket->fork) : sf_vm_expects_agent(hvm->vm);
    g_task_set_task_data(task, call, save_call_free);
    sf_host_family_join(call->family);
    call->vm = ticket ? NULL : g_object_ref(hvm->vm);
    call->ticket = ticket ? ticket->grant->id : 0;
    call->pager = pager ? g_object_ref(pager) : NULL;
    if (sf_vm_config_has_cluster(call->family->config)) {
        save_call_end(task, g_error_new(SF_VM_ERROR, SF_VM_ERROR_REFUSED,
                                        "VM \"%s\" is in a cluster network; such VMs can't be saved yet",
                                        ticket ? ticket->grant->vm : sf_vm_name(hvm->vm)));
    } else if (pager) {
        sf_pager_stats_async(pager, on_pager_stats, task);
    } else {
        save_begin(task);
    }
}

gboolean sf_snapshots_save_finish(SfSnapshots *snapshots, GAsyncResult *result, GError **error)
{
    return g_task_propagate_boolean(G_TASK(result), error);
}
