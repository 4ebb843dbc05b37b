/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/describe.h"

#include <string.h>
#include <unistd.h>

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/lend.h"
#include "sfvmm/control/networks.h"
#include "sfvmm/control/qemu_version.h"
#include "sfvmm/descriptor/descriptor.h"
#include "sfvmm/net/policy.h"
#include "sfvmm/process/clock.h"

#define PAGER_COUNTERS "sf-describe-counters"

static const char *role_name(SfVm *vm)
{
    switch (sf_vm_role(vm)) {
    case SF_VM_PARENT:
        return "parent";
    case SF_VM_SHELL:
        return "shell";
    case SF_VM_CLONE:
        return "clone";
    }
    g_assert_not_reached();
}

static const char *state_name(SfVm *vm)
{
    if (sf_vm_is_gone(vm)) {
        return "gone";
    }
    return sf_vm_is_running(vm) ? "running" : "paused";
}

static void set_path(JsonObject *object, const char *member, SfVm *vm, const char *file)
{
    g_autofree char *path = g_build_filename(sf_vm_directory(vm), file, NULL);

    json_object_set_string_member(object, member, path);
}

static JsonArray *describe_disks(SfVm *vm)
{
    GPtrArray *disks = sf_vm_disks(vm);
    JsonArray *array = json_array_new();

    for (guint i = 0; disks && i < disks->len; i++) {
        SfDiskChain *chain = g_ptr_array_index(disks, i);
        SfDiskLayer *top = g_ptr_array_index(chain->layers, chain->layers->len - 1);
        JsonObject *disk = json_object_new();
        json_object_set_string_member(disk, "id", chain->id);
        json_object_set_string_member(disk, "path", top->path);
        json_object_set_int_member(disk, "size", (gint64)chain->size);
        json_object_set_int_member(disk, "layers", chain->layers->len);
        json_array_add_object_element(array, disk);
    }
    return array;
}

static JsonObject *describe_pool(const SfFamily *family)
{
    JsonObject *pool = json_object_new();

    json_object_set_int_member(pool, "target", sf_shell_pool_target(family->pool));
    json_object_set_int_member(pool, "ready", sf_shell_pool_ready(family->pool));
    return pool;
}

static void describe_copied(JsonObject *object, SfVm *vm)
{
    JsonObject *member;
    SfVmCopied copied;

    if (sf_vm_copied(vm, &copied)) {
        member = json_object_new();
        json_object_set_int_member(member, "bytes", (gint64)copied.bytes);
        json_object_set_int_member(member, "total", (gint64)copied.total);
        json_object_set_int_member(member, "pauses", copied.pauses);
        json_object_set_int_member(member, "pause", (gint64)copied.pause);
        json_object_set_int_member(member, "longest", (gint64)copied.longest);
        json_object_set_object_member(object, "copied", member);
    }
}

JsonObject *sf_describe_vm(SfHostVm *hvm)
{
    SfVm *vm = hvm->vm;
    SfVmConfig *config = sf_vm_config(vm);
    JsonObject *object = json_object_new();

    json_object_set_string_member(object, "name", sf_vm_name(vm));
    json_object_set_string_member(object, "role", role_name(vm));
    json_object_set_string_member(object, "state", state_name(vm));
    json_object_set_int_member(object, "pid", sf_vm_pid(vm));
    json_object_set_int_member(object, "memory", (gint64)config->memory);
    json_object_set_int_member(object, "vcpus", config->vcpus);
    json_object_set_string_member(object, "accel", config->accel);
    json_object_set_boolean_member(object, "agent", sf_vm_has_agent(vm));
    json_object_set_string_member(object, "family", hvm->family->name);
    json_object_set_string_member(object, "host", sf_host_config(hvm->host)->cluster.name);
    if (sf_networks_address(hvm)) {
        g_autofree char *address = sf_net_address_to_text(sf_networks_address(hvm));
        json_object_set_string_member(object, "address", address);
    }
    if (hvm->ticket) {
        g_autofree char *ticket = sf_ticket_id_to_text(hvm->ticket);
        json_object_set_string_member(object, "parent", hvm->parent);
        json_object_set_string_member(object, "ticket", ticket);
        json_object_set_int_member(object, "id", hvm->id);
    }
    describe_copied(object, vm);
    json_object_set_string_member(object, "directory", sf_vm_directory(vm));
    if (sf_vm_domain(vm)) {
        json_object_set_string_member(object, "domain", sf_vm_domain(vm));
        json_object_set_string_member(object, "uri", config->uri);
    } else {
        set_path(object, "console", vm, "console.sock");
        set_path(object, "console_log", vm, "console.log");
    }
    json_object_set_object_member(object, "pool", describe_pool(hvm->family));
    json_object_set_array_member(object, "disks", describe_disks(vm));
    json_object_set_int_member(object, "started", sf_vm_started(vm));
    return object;
}

/* Every host by its name, this one too. */
static JsonArray *describe_places(const SfHostTicket *ticket)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < ticket->grant->places->len; i++) {
        const SfPlace *place = g_ptr_array_index(ticket->grant->places, i);
        JsonObject *object = json_object_new();
        json_object_set_string_member(
            object, "host", sf_place_is_local(place) ? sf_host_config(ticket->host)->cluster.name : place->host);
        json_object_set_int_member(object, "count", place->count);
        json_object_set_boolean_member(object, "complete",
                                       sf_place_is_local(place) || sf_borrow_is_complete_at(ticket, place->host));
        json_array_add_object_element(array, object);
    }
    return array;
}

JsonObject *sf_describe_ticket(SfHostTicket *ticket)
{
    JsonObject *object = json_object_new();
    g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);

    json_object_set_string_member(object, "ticket", id);
    json_object_set_string_member(object, "vm", ticket->grant->vm);
    json_object_set_int_member(object, "granted", ticket->grant->granted);
    json_object_set_int_member(object, "created", ticket->grant->created * SF_CLOCK_NS_PER_US);
    json_object_set_string_member(object, "origin", ticket->grant->origin ? ticket->grant->origin : "");
    json_object_set_array_member(object, "places", describe_places(ticket));
    json_object_set_string_member(object, "avoid", sf_avoid_to_text(ticket->grant->avoid));
    json_object_set_string_member(object, "allocation", ticket->grant->allocation ? ticket->grant->allocation : "");
    json_object_set_string_member(object, "revoked", ticket->grant->revoked ? ticket->grant->revoked : "");
    if (ticket->fork) {
        sf_fork_describe(ticket->fork, object);
    } else {
        json_object_set_string_member(object, "state", ticket->grant->revoked ? "revoked" : "granted");
        json_object_set_array_member(object, "clones", json_array_new());
    }
    return object;
}

static guint count_shells(SfHost *host)
{
    g_autoptr(GList) families = sf_host_families(host);
    guint shells = 0;

    for (GList *item = families; item; item = item->next) {
        shells += sf_shell_pool_ready(((SfFamily *)item->data)->pool);
    }
    return shells;
}

JsonObject *sf_describe_host(SfHost *host)
{
    const SfDaemonConfig *config = sf_host_config(host);
    const char *version = sf_host_qemu_version(host, NULL);
    JsonObject *object = json_object_new(), *limits = json_object_new();
    g_autoptr(GList) vms = sf_host_vms(host);
    g_autoptr(GList) tickets = sf_host_tickets(host);
    g_autofree char *reason = NULL;
    guint clones = 0;

    for (GList *item = vms; item; item = item->next) {
        clones += ((SfHostVm *)item->data)->ticket != 0;
    }
    json_object_set_string_member(object, "version", SF_VERSION);
    json_object_set_int_member(object, "pid", getpid());
    json_object_set_int_member(object, "uptime_ms", sf_host_uptime_ms(host));
    json_object_set_int_member(object, "monotonic", g_get_monotonic_time() * 1000);
    json_object_set_string_member(object, "run_directory", config->launcher.run_directory);
    json_object_set_string_member(object, "qemu", config->launcher.qemu);
    json_object_set_string_member(object, "qemu_version", version ? version : "");
    json_object_set_string_member(object, "accel", sf_launcher_best_accel(sf_host_launcher(host), &reason));
    json_object_set_string_member(object, "accel_reason", reason ? reason : "");
    json_object_set_string_member(object, "launcher", "exec");
    json_object_set_int_member(limits, "clones_per_ticket", config->limits.clones_per_ticket);
    json_object_set_int_member(limits, "clones_per_vm", config->limits.quotas.vm.clones);
    json_object_set_int_member(limits, "clones", config->limits.clones);
    json_object_set_int_member(limits, "vms", config->vms);
    json_object_set_int_member(limits, "memory", (gint64)config->limits.memory);
    json_object_set_object_member(object, "limits", limits);
    json_object_set_int_member(object, "vms", g_list_length(vms) - clones);
    json_object_set_int_member(object, "clones", clones);
    json_object_set_int_member(object, "shells", count_shells(host));
    json_object_set_int_member(object, "tickets", g_list_length(tickets));
    json_object_set_int_member(object, "waiting", sf_resource_manager_waiting(sf_host_manager(host)));
    return object;
}

/* ---- usage ---- */

/* Counters of an sf-pager as it last told them; kept with the object. */
static JsonObject *pager_counters(SfPager *pager)
{
    return pager ? g_object_get_data(G_OBJECT(pager), PAGER_COUNTERS) : NULL;
}

/* cache: of its snapshot; NULL: it has none yet, or only serves. */
static JsonObject *counters_to_json(const SfPagerStats *stats, const SfPageCache *cache)
{
    JsonObject *object = json_object_new();

    json_object_set_int_member(object, "faults", (gint64)stats->faults);
    json_object_set_int_member(object, "demand_faults", (gint64)stats->demand_faults);
    json_object_set_int_member(object, "fetched", (gint64)stats->fetched_bytes);
    json_object_set_int_member(object, "demand", (gint64)stats->demand_bytes);
    json_object_set_int_member(object, "prefetched", (gint64)stats->prefetched_bytes);
    json_object_set_int_member(object, "unused", (gint64)stats->prefetched_unused);
    json_object_set_int_member(object, "resident", (gint64)stats->resident_bytes);
    json_object_set_int_member(object, "free", cache ? (gint64)sf_page_cache_free_bytes(cache) : 0);
    json_object_set_int_member(object, "served", (gint64)stats->served_bytes);
    json_object_set_int_member(object, "fault_ns_median", (gint64)stats->fault_ns_median);
    json_object_set_int_member(object, "fault_ns_p99", (gint64)stats->fault_ns_p99);
    json_object_set_int_member(object, "sources_up", stats->sources_up);
    json_object_set_boolean_member(object, "complete", stats->complete);
    return object;
}

static SfPager *pager_of(SfHostVm *hvm)
{
    SfHostTicket *ticket = hvm && hvm->ticket ? sf_host_ticket(hvm->host, hvm->ticket, NULL) : NULL;

    return ticket ? ticket->pager : NULL;
}

static void add_usage(JsonArray *array, SfVm *vm, const char *parent, SfHostVm *hvm)
{
    JsonObject *object = json_object_new();
    SfVmUsage usage = { 0 };
    g_autoptr(GError) error = NULL;

    if (!sf_vm_usage(vm, &usage, &error)) {
        g_debug("VM \"%s\": %s", sf_vm_name(vm), error->message);
    }
    json_object_set_string_member(object, "name", sf_vm_name(vm));
    json_object_set_string_member(object, "role", role_name(vm));
    json_object_set_string_member(object, "state", state_name(vm));
    json_object_set_int_member(object, "pid", sf_vm_pid(vm));
    json_object_set_int_member(object, "private", (gint64)usage.private_bytes);
    json_object_set_int_member(object, "shared", (gint64)usage.shared_bytes);
    json_object_set_int_member(object, "cpu_ns", (gint64)usage.cpu_ns);
    if (parent) {
        json_object_set_string_member(object, "parent", parent);
    }
    if (hvm && hvm->ticket) {
        g_autofree char *ticket = sf_ticket_id_to_text(hvm->ticket);
        json_object_set_string_member(object, "ticket", ticket);
        json_object_set_int_member(object, "id", hvm->id);
    }
    if (pager_counters(pager_of(hvm))) {
        json_object_set_object_member(object, "pages", json_object_ref(pager_counters(pager_of(hvm))));
        json_object_set_int_member(object, "overwritten", (gint64)sf_vm_overwritten(vm));
    }
    if (hvm && hvm->vm == hvm->family->root) {
        json_object_set_int_member(object, "shells_ready", sf_shell_pool_ready(hvm->family->pool));
    }
    json_array_add_object_element(array, object);
}

typedef struct {
    JsonArray *array;
    const char *parent;
} ShellVisit;

static void add_shell_usage(SfVm *vm, gpointer data)
{
    const ShellVisit *visit = data;

    add_usage(visit->array, vm, visit->parent, NULL);
}

/* A line "Key:  N kB" of /proc/meminfo, in bytes; 0 when it is not there. */
static guint64 meminfo(const char *text, const char *key)
{
    const char *line = strstr(text, key);

    return line ? g_ascii_strtoull(line + strlen(key), NULL, 10) << 10 : 0;
}

/* This host's part in a group, as its sf-pager told last, or why it is in none; NULL: it sends to none. */
static JsonObject *describe_group(const SfHostTicket *ticket, SfPager *pager)
{
    JsonObject *told = pager ? sf_pager_multicast_stats(pager) : NULL, *object;
    g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);
    g_autoptr(GList) members = told ? json_object_get_members(told) : NULL;
    gboolean receives = pager && pager == ticket->pager && ticket->grant->origin;

    if (!told && !receives) {
        return NULL;
    }
    object = json_object_new();
    json_object_set_string_member(object, "ticket", id);
    json_object_set_string_member(object, "vm", ticket->grant->vm);
    if (!told) {
        const char *reason = g_object_get_data(G_OBJECT(pager), SF_NO_MULTICAST);
        json_object_set_boolean_member(object, "origin", FALSE);
        json_object_set_string_member(object, "state", "unicast");
        json_object_set_string_member(object, "reason", reason ? reason : "it is in no group");
    }
    for (GList *item = members; item; item = item->next) {
        json_object_set_member(object, item->data, json_object_dup_member(told, item->data));
    }
    return object;
}

static JsonArray *describe_groups(SfHost *host)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);
    JsonArray *array = json_array_new();

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        JsonObject *groups[] = { describe_group(ticket, ticket->pager),
                                 describe_group(ticket, sf_borrow_server(ticket)) };
        for (guint i = 0; i < G_N_ELEMENTS(groups); i++) {
            if (groups[i]) {
                json_array_add_object_element(array, groups[i]);
            }
        }
    }
    return array;
}

static JsonObject *describe_usage(SfHost *host)
{
    JsonObject *object = json_object_new(), *memory = json_object_new();
    JsonArray *array = json_array_new();
    g_autoptr(GList) vms = sf_host_vms(host);
    g_autoptr(GList) families = sf_host_families(host);
    g_autofree char *text = NULL;

    if (g_file_get_contents("/proc/meminfo", &text, NULL, NULL)) {
        json_object_set_int_member(memory, "memory_total", (gint64)meminfo(text, "MemTotal:"));
        json_object_set_int_member(memory, "memory_available", (gint64)meminfo(text, "MemAvailable:"));
    }
    for (GList *item = vms; item; item = item->next) {
        SfHostVm *hvm = item->data;
        add_usage(array, hvm->vm, hvm->parent, hvm);
    }
    for (GList *item = families; item; item = item->next) {
        SfFamily *family = item->data;
        ShellVisit visit = { array, family->name };
        sf_shell_pool_foreach(family->pool, add_shell_usage, &visit);
    }
    json_object_set_object_member(object, "host", memory);
    json_object_set_array_member(object, "vms", array);
    json_object_set_array_member(object, "multicast", describe_groups(host));
    return object;
}

typedef struct {
    guint pending;
} UsageCall;

static void usage_step_done(GTask *task)
{
    UsageCall *call = g_task_get_task_data(task);

    if (--call->pending == 0) {
        g_task_return_pointer(task, describe_usage(g_task_get_source_object(task)),
                              (GDestroyNotify)json_object_unref);
    }
}

static void on_stats(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GTask) task = data;
    g_autoptr(GError) error = NULL;
    SfPagerStats stats = { 0 };

    if (sf_pager_stats_finish(SF_PAGER(source), result, &stats, &error)) {
        g_object_set_data_full(source, PAGER_COUNTERS, counters_to_json(&stats, sf_pager_cache(SF_PAGER(source))),
                               (GDestroyNotify)json_object_unref);
    } else {
        g_debug("%s", error->message); /* its last ones are shown */
    }
    usage_step_done(task);
}

void sf_describe_usage_async(SfHost *host, GAsyncReadyCallback callback, gpointer data)
{
    g_autoptr(GTask) task = g_task_new(host, NULL, callback, data);
    g_autoptr(GList) tickets = sf_host_tickets(host);
    g_autoptr(GHashTable) asked = g_hash_table_new(NULL, NULL);
    UsageCall *call = g_new0(UsageCall, 1);

    call->pending = 1;
    g_task_set_task_data(task, call, g_free);
    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        SfPager *pagers[] = { ticket->pager, sf_borrow_server(ticket) };
        for (guint i = 0; i < G_N_ELEMENTS(pagers); i++) {
            if (pagers[i] && g_hash_table_add(asked, pagers[i])) {
                call->pending++;
                sf_pager_stats_async(pagers[i], on_stats, g_object_ref(task));
            }
        }
    }
    usage_step_done(task);
}

JsonObject *sf_describe_usage_finish(GAsyncResult *result)
{
    return g_task_propagate_pointer(G_TASK(result), NULL);
}

/* ---- descriptor ---- */

static GBytes *read_state(const SfSnapshot *snapshot, GError **error)
{
    g_autofree char *state = g_malloc(snapshot->state_length);
    gsize done = 0;

    while (done < snapshot->state_length) {
        ssize_t n = pread(snapshot->state, state + done, snapshot->state_length - done, (off_t)done);
        if (n <= 0) {
            g_set_error(error, G_IO_ERROR, G_IO_ERROR_FAILED, "snapshot \"%s\": its device state can't be read",
                        snapshot->id);
            return NULL;
        }
        done += (gsize)n;
    }
    return g_bytes_new_take(g_steal_pointer(&state), snapshot->state_length);
}

static gboolean add_blocks(SfDescriptor *descriptor, const SfSnapshot *snapshot, GError **error)
{
    for (guint i = 0; i < snapshot->n_blocks; i++) {
        GArray *present = sf_snapshot_present_runs(snapshot, i, error);
        SfDescriptorBlock *block;
        if (!present) {
            return FALSE;
        }
        block = g_new0(SfDescriptorBlock, 1);
        block->id = g_strdup(snapshot->blocks[i].id);
        block->length = snapshot->blocks[i].length;
        block->present = present;
        g_ptr_array_add(descriptor->blocks, block);
    }
    return TRUE;
}

/* chains: as they were frozen, the last layer is the frozen top. */
static void add_disks(SfDescriptor *descriptor, GPtrArray *chains)
{
    for (guint i = 0; chains && i < chains->len; i++) {
        const SfDiskChain *chain = g_ptr_array_index(chains, i);
        const SfDiskLayer *top = g_ptr_array_index(chain->layers, chain->layers->len - 1);
        const gboolean known = strcmp(top->format, "raw") == 0 || strcmp(top->format, "qcow2") == 0;
        sf_descriptor_add_disk(descriptor, chain->id, chain->size, known ? top->format : "raw", top->path);
    }
}

/* The chains of a clone without its own overlays: what it was loaded with. */
static GPtrArray *chains_below(SfVm *vm)
{
    GPtrArray *disks = sf_vm_disks(vm);
    GPtrArray *chains = g_ptr_array_new_with_free_func((GDestroyNotify)sf_disk_chain_free);

    for (guint i = 0; disks && i < disks->len; i++) {
        SfDiskChain *chain = sf_disk_chain_copy(g_ptr_array_index(disks, i));
        if (chain->layers->len > 1) {
            g_ptr_array_remove_index(chain->layers, chain->layers->len - 1);
        }
        g_ptr_array_add(chains, chain);
    }
    return chains;
}

/* When the vCPUs were stopped, ns since the epoch. */
static guint64 created_at(const SfSnapshot *snapshot)
{
    guint64 age = (guint64)sf_clock_ns() - snapshot->timing.at;

    return (guint64)sf_clock_real_ns() - age;
}

GBytes *sf_describe_snapshot_of(SfVm *vm, const char *name, SfSnapshot *snapshot, GPtrArray *frozen_disks,
                                GError **error)
{
    g_autoptr(SfDescriptor) descriptor = sf_descriptor_new();
    SfVmConfig *config = sf_vm_config(vm);

    descriptor->version = SF_DESCRIPTOR_VERSION;
    descriptor->id = g_strdup(snapshot->id);
    descriptor->vm = g_strdup(name);
    descriptor->lineage = g_new0(char *, 1);
    descriptor->machine = g_strdup(sf_vm_machine(vm));
    descriptor->cpu = g_strdup(sf_vm_cpu(vm));
    descriptor->accel = g_strdup(config->accel);
    descriptor->qemu_version = g_strdup(sf_vm_qemu_version(vm));
    descriptor->config_hash = sf_vm_config_hash(config, descriptor->qemu_version);
    descriptor->vcpus = config->vcpus;
    descriptor->memory = config->memory;
    descriptor->created = created_at(snapshot);
    descriptor->page_sources = g_new0(char *, 1);
    descriptor->device_state = read_state(snapshot, error);
    if (!descriptor->device_state || !add_blocks(descriptor, snapshot, error)) {
        return NULL;
    }
    add_disks(descriptor, frozen_disks);
    return sf_descriptor_encode(descriptor, error);
}

GBytes *sf_describe_snapshot(SfHostVm *hvm, SfSnapshot *snapshot, GError **error)
{
    g_autoptr(GPtrArray) chains = chains_below(hvm->vm);

    return sf_describe_snapshot_of(hvm->vm, hvm->parent ? hvm->parent : sf_vm_name(hvm->vm), snapshot, chains, error);
}
