/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/host.h"

#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>

#include "sfvmm/control/borrow.h"
#include "sfvmm/control/describe.h"
#include "sfvmm/control/host_private.h"
#include "sfvmm/control/lend.h"
#include "sfvmm/control/networks_hosts.h"
#include "sfvmm/control/pager_record.h"
#include "sfvmm/control/working_sets.h"
#include "sfvmm/wire/state_file.h"

#define US_PER_MS        1000
#define DONE_TICKETS_MAX 64u /* of one VM, kept for a join */

struct _SfHost {
    GObject parent_instance;
    const SfDaemonConfig *config; /* not owned */
    SfLauncher *launcher;
    SfResourceManager *manager;
    SfPeers *peers;       /* not owned */
    SfNetworks *networks;
    SfForkRemote remote;  /* the way to clones on other hosts */
    gint64 started;       /* CLOCK_MONOTONIC, us */
    GHashTable *vms;      /* name -> SfHostVm */
    GHashTable *starting; /* set of names of VMs that are being started */
    GHashTable *families; /* name -> SfFamily */
    GHashTable *tickets;  /* guint64 * -> SfHostTicket */
};

G_DEFINE_FINAL_TYPE(SfHost, sf_host, G_TYPE_OBJECT)
G_DEFINE_QUARK(sf - host - error - quark, sf_host_error)

enum { SIGNAL_EVENT, SIGNAL_GUEST_MESSAGE, SIGNAL_VM_EXITED, N_SIGNALS };
static guint signals[N_SIGNALS];

void sf_host_event(SfHost *host, const char *name, JsonObject *data)
{
    g_signal_emit(host, signals[SIGNAL_EVENT], 0, name, data);
    json_object_unref(data);
}

void sf_host_set_peers(SfHost *host, SfPeers *peers)
{
    host->peers = peers;
}

SfPeers *sf_host_peers(SfHost *host)
{
    return host->peers;
}

SfPeer *sf_host_peer(SfHost *host, const char *name)
{
    return host->peers ? sf_peers_get(host->peers, name) : NULL;
}

SfResourceManager *sf_host_manager(SfHost *host)
{
    return host->manager;
}

const SfDaemonConfig *sf_host_config(SfHost *host)
{
    return host->config;
}

SfLauncher *sf_host_launcher(SfHost *host)
{
    return host->launcher;
}

SfNetworks *sf_host_networks(SfHost *host)
{
    return host->networks;
}

gint64 sf_host_uptime_ms(SfHost *host)
{
    return (g_get_monotonic_time() - host->started) / US_PER_MS;
}

char *sf_host_path(SfHost *host, const char *folder, const char *name)
{
    return g_build_filename(host->config->launcher.run_directory, folder, name, NULL);
}

GHashTable *sf_host_table(SfHost *host, const char *key, GHashFunc hash, GEqualFunc equal, GDestroyNotify free_key,
                          GDestroyNotify free_value)
{
    GHashTable *table = g_object_get_data(G_OBJECT(host), key);

    if (!table) {
        table = g_hash_table_new_full(hash, equal, free_key, free_value);
        g_object_set_data_full(G_OBJECT(host), key, table, (GDestroyNotify)g_hash_table_unref);
    }
    return table;
}

/* ---- families ---- */

static char *family_path(SfHost *host, const char *name)
{
    g_autofree char *file = g_strconcat(name, ".json", NULL);

    return sf_host_path(host, "families", file);
}

void sf_host_family_save(SfHost *host, SfFamily *family)
{
    g_autofree char *path = family_path(host, family->name);
    g_autoptr(JsonObject) object = json_object_new();
    g_autoptr(GError) error = NULL;

    json_object_set_object_member(object, "config", sf_vm_config_to_json(family->config));
    json_object_set_int_member(object, "pool", family->pool_target);
    json_object_set_int_member(object, "user", family->user);
    if (family->working_set) {
        sf_working_set_to_json(family->working_set, object, "working_set");
    }
    if (family->network) {
        json_object_set_object_member(object, "network", json_object_ref(family->network));
    }
    if (!sf_state_write(path, object, &error)) {
        g_warning("family \"%s\": %s", family->name, error->message);
    }
}

SfFamily *sf_host_family_new(SfHost *host, const char *name, guint32 user, SfVmConfig *config, guint pool_target)
{
    SfFamily *family = g_new0(SfFamily, 1);

    family->name = g_strdup(name);
    family->user = user;
    family->config = sf_vm_config_ref(config);
    family->pool_target = pool_target;
    family->pool = sf_shell_pool_new(host->launcher, name, config, 0);
    g_hash_table_insert(host->families, family->name, family);
    sf_host_family_save(host, family);
    return family;
}

SfFamily *sf_host_family(SfHost *host, const char *name)
{
    return g_hash_table_lookup(host->families, name);
}

static void family_free(gpointer data)
{
    SfFamily *family = data;

    g_clear_handle_id(&family->settle_timer, g_source_remove);
    sf_shell_pool_close(family->pool);
    sf_shell_pool_unref(family->pool);
    sf_vm_config_unref(family->config);
    g_clear_pointer(&family->working_set, g_bytes_unref);
    g_clear_pointer(&family->network, json_object_unref);
    g_free(family->name);
    g_free(family);
}

void sf_host_family_set_working_set(SfHost *host, SfFamily *family, GBytes *runs)
{
    g_clear_pointer(&family->working_set, g_bytes_unref);
    family->working_set = g_bytes_ref(runs);
    sf_host_family_save(host, family);
}

void sf_host_family_join(SfFamily *family)
{
    family->members++;
}

void sf_host_family_leave(SfHost *host, SfFamily *family)
{
    g_assert(family->members > 0);
    if (--family->members == 0) {
        g_autofree char *path = family_path(host, family->name);
        g_autofree char *name = g_strdup(family->name);
        g_unlink(path);
        g_hash_table_remove(host->families, name);
        sf_networks_close(host->networks, name); /* behind its shells */
    }
}

void sf_host_set_pool(SfHost *host, SfFamily *family, guint target)
{
    family->pool_target = target;
    sf_shell_pool_set_target(family->pool, target);
    sf_host_family_save(host, family);
}

/* A fork of the family's root that has not taken its snapshot yet, or is placing clones from it. */
static gboolean family_is_forking(SfHost *host, SfFamily *family)
{
    GHashTableIter iter;
    SfHostTicket *ticket;

    g_hash_table_iter_init(&iter, host->tickets);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&ticket)) {
        if (ticket->family == family && ticket->fork && !sf_fork_is_placed(ticket->fork)) {
            return TRUE;
        }
    }
    return FALSE;
}

typedef struct {
    SfHost *host;
    SfFamily *family;
} SettleCall;

static void on_settled(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autofree SettleCall *call = data;
    g_autoptr(SfHost) host = call->host;
    g_autoptr(GError) error = NULL;

    call->family->settling = FALSE;
    if (!sf_vm_settle_finish(SF_VM(source), result, &error) && !g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_GONE)) {
        g_message("VM \"%s\": memory and disks stay layered for now: %s", call->family->name, error->message);
    }
    sf_host_family_leave(host, call->family);
}

static gboolean on_settle_timer(gpointer data)
{
    SettleCall *timer = data;
    SfFamily *family = timer->family;
    SettleCall *call;

    family->settle_timer = 0;
    if (family->settling || !family->root || sf_vm_is_gone(family->root) ||
        sf_ram_base_in_use(sf_vm_ram_base(family->root)) || family_is_forking(timer->host, family)) {
        return G_SOURCE_REMOVE; /* the end of the next clone asks again */
    }
    family->settling = TRUE;
    sf_host_family_join(family);
    call = g_new0(SettleCall, 1);
    call->host = g_object_ref(timer->host);
    call->family = family;
    sf_vm_settle_async(family->root, on_settled, call);
    return G_SOURCE_REMOVE;
}

void sf_host_family_settle_later(SfHost *host, SfFamily *family)
{
    SettleCall *timer;

    if (family->settle_timer || !family->root) {
        return;
    }
    timer = g_new0(SettleCall, 1);
    timer->host = host;
    timer->family = family;
    family->settle_timer = g_timeout_add_full(G_PRIORITY_LOW, host->config->settle_ms, on_settle_timer, timer, g_free);
}

/* ---- VMs ---- */

static void host_vm_free(gpointer data)
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

    g_signal_emit(host, signals[SIGNAL_VM_EXITED], 0, hvm);
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
    g_signal_emit(hvm->host, signals[SIGNAL_GUEST_MESSAGE], 0, hvm, header, payload);
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

static gint by_name(gconstpointer a, gconstpointer b)
{
    const SfHostVm *left = a, *right = b;

    return strcmp(sf_vm_name(left->vm), sf_vm_name(right->vm));
}

GList *sf_host_vms(SfHost *host)
{
    return g_list_sort(g_hash_table_get_values(host->vms), by_name);
}

static gint by_family_name(gconstpointer a, gconstpointer b)
{
    return strcmp(((const SfFamily *)a)->name, ((const SfFamily *)b)->name);
}

GList *sf_host_families(SfHost *host)
{
    return g_list_sort(g_hash_table_get_values(host->families), by_family_name);
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
        sf_vm_kill(vm);
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

/* ---- tickets ---- */

gboolean sf_host_ticket_is_of(const SfHostTicket *ticket, const char *vm)
{
    return !ticket->grant->origin && strcmp(ticket->grant->vm, vm) == 0;
}

static void host_ticket_free(gpointer data)
{
    SfHostTicket *ticket = data;

    sf_borrow_free(ticket->borrow);
    sf_lend_free(ticket->lend);
    g_clear_object(&ticket->pager);
    g_clear_handle_id(&ticket->expiry, g_source_remove);
    if (ticket->fork) {
        g_signal_handlers_disconnect_by_data(ticket->fork, ticket);
    }
    g_clear_object(&ticket->fork);
    sf_ticket_free(ticket->grant);
    g_free(ticket->saved);
    g_free(ticket->directory);
    g_free(ticket);
}

void sf_host_ticket_save(SfHostTicket *ticket)
{
    g_autofree char *path = g_build_filename(ticket->directory, "ticket.json", NULL);
    g_autoptr(JsonObject) object = sf_ticket_to_json(ticket->grant);
    g_autoptr(GError) error = NULL;

    json_object_set_string_member(object, "family", ticket->family->name);
    if (ticket->pager) {
        json_object_set_string_member(object, "pager", sf_pager_snapshot_id(ticket->pager));
    }
    json_object_set_int_member(object, "first_address", ticket->first_address);
    json_object_set_int_member(object, "parent_address", ticket->parent_address);
    sf_borrow_save(ticket, object);
    if (!sf_state_write(path, object, &error)) {
        g_warning("ticket %016" G_GINT64_MODIFIER "x: %s; a restart of sfvmmd would lose it", ticket->grant->id,
                  error->message);
    }
}

static gboolean on_ticket_expired(gpointer data)
{
    SfHostTicket *ticket = data;

    ticket->expiry = 0;
    g_message("ticket %016" G_GINT64_MODIFIER "x: expired unused", ticket->grant->id);
    sf_host_release_ticket(ticket->host, ticket);
    return G_SOURCE_REMOVE;
}

SfHostTicket *sf_host_add_ticket(SfHost *host, SfTicket *grant, SfFamily *family)
{
    SfHostTicket *ticket = g_new0(SfHostTicket, 1);
    g_autofree char *id = sf_ticket_id_to_text(grant->id);

    ticket->host = host;
    ticket->grant = grant;
    ticket->family = family;
    ticket->directory = sf_host_path(host, "tickets", id);
    ticket->booked = TRUE;
    sf_host_family_join(family);
    g_hash_table_insert(host->tickets, &grant->id, ticket);
    if (!grant->used && !grant->origin) {
        ticket->expiry = g_timeout_add_seconds(host->config->ticket_seconds, on_ticket_expired, ticket);
    }
    return ticket;
}

SfHostTicket *sf_host_ticket(SfHost *host, guint64 id, GError **error)
{
    SfHostTicket *ticket = g_hash_table_lookup(host->tickets, &id);

    if (!ticket) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_NO_SUCH_TICKET,
                    "ticket %016" G_GINT64_MODIFIER "x: not known on this host", id);
    }
    return ticket;
}

SfHostTicket *sf_host_ticket_of_request(SfHost *host, const char *vm, guint32 request)
{
    GHashTableIter iter;
    SfHostTicket *ticket;

    g_hash_table_iter_init(&iter, host->tickets);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&ticket)) {
        if (!ticket->fork && ticket->grant->request == request && sf_host_ticket_is_of(ticket, vm) &&
            !sf_borrow_is_asking(ticket)) {
            return ticket;
        }
    }
    return NULL;
}

static gint by_age(gconstpointer a, gconstpointer b)
{
    const SfHostTicket *left = a, *right = b;

    return left->grant->created < right->grant->created ? -1 : left->grant->created > right->grant->created;
}

GList *sf_host_tickets(SfHost *host)
{
    return g_list_sort(g_hash_table_get_values(host->tickets), by_age);
}

SfClone *sf_host_clone_of(SfHost *host, SfHostVm *hvm)
{
    SfHostTicket *ticket = hvm->ticket ? g_hash_table_lookup(host->tickets, &hvm->ticket) : NULL;

    return ticket && ticket->fork ? sf_fork_clone_of_vm(ticket->fork, hvm->vm) : NULL;
}

/* Its scheduler has ended what it gave for a ticket. */
static void on_revoked(guint64 id, const char *reason, gpointer owner)
{
    SfHost *host = owner;
    SfHostTicket *ticket = sf_host_ticket(host, id, NULL);

    if (!ticket) {
        return;
    }
    g_message("ticket %016" G_GINT64_MODIFIER "x: %s", id, reason);
    g_free(ticket->grant->revoked);
    ticket->grant->revoked = g_strdup(reason);
    sf_host_ticket_save(ticket);
    sf_host_event(host, "ticket.revoked", sf_describe_ticket(ticket));
    if (ticket->fork) {
        sf_fork_kill(ticket->fork, reason);
    }
}

void sf_host_ticket_unbook(SfHostTicket *ticket)
{
    if (ticket->booked) {
        ticket->booked = FALSE;
        sf_resource_manager_release(ticket->host->manager, ticket->grant);
    }
}

/* The last ticket of a pager ends it. */
static void drop_pager(SfHost *host, SfHostTicket *ticket)
{
    GHashTableIter iter;
    SfHostTicket *other;

    if (!ticket->pager) {
        return;
    }
    g_hash_table_iter_init(&iter, host->tickets);
    while (g_hash_table_iter_next(&iter, NULL, (gpointer *)&other)) {
        if (other->pager == ticket->pager) {
            return;
        }
    }
    sf_pager_stop(ticket->pager);
    sf_pager_record_drop(host, sf_pager_snapshot_id(ticket->pager));
}

void sf_host_release_ticket(SfHost *host, SfHostTicket *ticket)
{
    SfFamily *family = ticket->family;

    g_hash_table_steal(host->tickets, &ticket->grant->id);
    if (ticket->fork) {
        g_signal_handlers_disconnect_by_data(ticket->fork, ticket);
        sf_fork_kill(ticket->fork, "its ticket was released");
    }
    if (ticket->pager) {
        sf_lend_pager_used_less(host, ticket->pager);
    }
    sf_borrow_release(ticket);
    drop_pager(host, ticket);
    sf_host_ticket_unbook(ticket);
    sf_state_remove_folder(ticket->directory);
    host_ticket_free(ticket);
    sf_networks_spread(host, family);
    sf_host_family_settle_later(host, family);
    sf_host_family_leave(host, family);
}

/* ---- forks ---- */

static JsonObject *describe_clone_event(SfHostTicket *ticket, SfClone *clone)
{
    JsonObject *data = sf_fork_describe_clone(clone);
    g_autofree char *id = sf_ticket_id_to_text(ticket->grant->id);

    json_object_set_string_member(data, "ticket", id);
    return data;
}

static const char *clone_event_name(const SfClone *clone)
{
    if (clone->exited) {
        return "clone.exited";
    }
    if (clone->synced) {
        return "clone.synced";
    }
    return clone->answered ? "clone.answered" : "clone.running";
}

static void on_fork_changed(SfFork *fork, SfClone *clone, SfHostTicket *ticket)
{
    SfHost *host = ticket->host;

    if (clone && ticket->grant->origin) {
        sf_lend_clone_changed(ticket, clone);
    }
    if (!clone) {
        if (sf_fork_state(fork) == SF_FORK_PLACING) {
            sf_host_event(host, "fork.snapshot", sf_describe_ticket(ticket));
        }
        return;
    }
    if (clone->vm && clone->loaded && !sf_host_vm_of(host, clone->vm)) {
        sf_host_add_clone(host, ticket, clone);
    }
    if (clone->running || clone->exited) {
        sf_host_event(host, clone_event_name(clone), describe_clone_event(ticket, clone));
    }
}

static gboolean on_release_idle(gpointer data)
{
    SfHostTicket *ticket = data;

    ticket->expiry = 0;
    sf_host_release_ticket(ticket->host, ticket);
    return G_SOURCE_REMOVE;
}

/* Before any more requests are read: who was told that a ticket has been joined finds it no more. */
void sf_host_release_ticket_later(SfHostTicket *ticket)
{
    if (!ticket->expiry) {
        ticket->expiry = g_idle_add_full(G_PRIORITY_HIGH, on_release_idle, ticket, NULL);
    }
}

/* Finished forks that nobody joins are kept for a while, but not without bound. */
static void drop_oldest_done(SfHost *host, const char *vm)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);
    guint done = 0;

    for (GList *item = g_list_last(tickets); item; item = item->prev) {
        SfHostTicket *ticket = item->data;
        if (sf_host_ticket_is_of(ticket, vm) && ticket->fork && sf_fork_is_done(ticket->fork) &&
            ++done > DONE_TICKETS_MAX) {
            g_message("ticket %016" G_GINT64_MODIFIER
                      "x: nobody joined it, and newer ones of its VM have ended; it is forgotten",
                      ticket->grant->id);
            sf_host_release_ticket_later(ticket);
        }
    }
}

static void on_fork_done(SfFork *fork, SfHostTicket *ticket)
{
    SfHost *host = ticket->host;

    sf_host_ticket_unbook(ticket);
    sf_host_event(host, "ticket.done", sf_describe_ticket(ticket));
    sf_borrow_done(ticket);
    if (ticket->pager) {
        sf_lend_pager_used_less(host, ticket->pager);
    }
    sf_host_family_settle_later(host, ticket->family);
    if (ticket->grant->origin) {
        sf_lend_done(ticket);
        return; /* its origin releases it, when it has fetched the results */
    }
    if (!ticket->saved && !g_hash_table_contains(host->vms, ticket->grant->vm)) {
        sf_host_release_ticket_later(ticket); /* nobody is left to join it */
    } else {
        drop_oldest_done(host, ticket->grant->vm);
    }
}

/* Before its sf_clone() returns, which waits for the same signal. */
static void on_fork_placed(SfFork *fork, SfHostTicket *ticket)
{
    SfHostVm *parent = ticket->grant->origin ? NULL : sf_host_vm(ticket->host, ticket->grant->vm, NULL);

    if (parent && ticket->first_address) {
        sf_networks_tell(ticket->host->networks, parent);
    }
}

void sf_host_connect_fork(SfHostTicket *ticket)
{
    g_signal_connect(ticket->fork, "placed", G_CALLBACK(on_fork_placed), ticket);
    g_signal_connect(ticket->fork, "changed", G_CALLBACK(on_fork_changed), ticket);
    g_signal_connect(ticket->fork, "done", G_CALLBACK(on_fork_done), ticket);
}

SfForkOptions sf_host_fork_options(SfHost *host, SfHostTicket *ticket)
{
    SfHostVm *parent = ticket->grant->origin ? NULL : g_hash_table_lookup(host->vms, ticket->grant->vm);

    return (SfForkOptions){
        .ticket = ticket->grant->id,
        .count = ticket->grant->granted,
        .parent = parent ? parent->vm : NULL,
        .pool = ticket->family->pool,
        .with_agent = parent && sf_vm_expects_agent(parent->vm),
        .directory = ticket->directory,
        .identify_seconds = host->config->identify_seconds,
        .network = sf_networks_of_fork(host->networks, ticket),
        .remote = &host->remote,
        .pager = ticket->pager,
        .server = sf_borrow_server(ticket),
    };
}

/* A VM whose memory comes from elsewhere passes that on to its clones. */
void sf_host_take_pager(SfHost *host, SfHostTicket *ticket)
{
    SfHostVm *parent = ticket->grant->origin ? NULL : g_hash_table_lookup(host->vms, ticket->grant->vm);
    SfHostTicket *of = parent && parent->ticket ? g_hash_table_lookup(host->tickets, &parent->ticket) : NULL;

    if (of && of->pager && !ticket->pager) {
        ticket->pager = g_object_ref(of->pager);
    }
}

SfFork *sf_host_fork(SfHost *host, SfHostTicket *ticket, guint32 clone_request, GError **error)
{
    g_autoptr(GArray) places = sf_borrow_fork_places(ticket);
    SfHostVm *parent = sf_host_vm(host, ticket->grant->vm, NULL);
    SfForkOptions options;

    if (parent && !ticket->fork && !sf_networks_reserve(host->networks, ticket, parent, error)) {
        return NULL;
    }
    sf_host_take_pager(host, ticket);
    options = sf_host_fork_options(host, ticket);
    options.places = (const SfForkPlace *)places->data;
    options.n_places = places->len;
    if (sf_borrow_is_asking(ticket)) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_BUSY,
                    "ticket %016" G_GINT64_MODIFIER "x: other hosts are still being asked for places",
                    ticket->grant->id);
        return NULL;
    }
    if (ticket->fork) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_BUSY,
                    "ticket %016" G_GINT64_MODIFIER "x: it has forked already; ask for another", ticket->grant->id);
        return NULL;
    }
    if (ticket->grant->revoked) {
        g_set_error(error, SF_CLUSTER_ERROR, SF_CLUSTER_ERROR_CAPACITY,
                    "ticket %016" G_GINT64_MODIFIER "x: %s; ask for another", ticket->grant->id,
                    ticket->grant->revoked);
        return NULL;
    }
    if (!options.parent) {
        g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_NO_SUCH_VM, "VM \"%s\": it has ended", ticket->grant->vm);
        return NULL;
    }
    g_clear_handle_id(&ticket->expiry, g_source_remove);
    options.clone_request = clone_request;
    ticket->grant->used = TRUE;
    sf_host_ticket_save(ticket);
    ticket->fork = sf_fork_new(&options);
    sf_host_connect_fork(ticket);
    sf_fork_start(ticket->fork);
    return ticket->fork;
}

/* ---- life ---- */

static void sf_host_init(SfHost *host)
{
    host->vms = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, host_vm_free);
    host->starting = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    host->families = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, family_free);
    host->tickets = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, host_ticket_free);
}

static void sf_host_finalize(GObject *object)
{
    SfHost *host = SF_HOST(object);

    g_hash_table_unref(host->tickets);
    g_hash_table_unref(host->vms);
    g_hash_table_unref(host->families);
    g_hash_table_unref(host->starting);
    sf_resource_manager_free(host->manager);
    sf_networks_free(host->networks);
    sf_launcher_free(host->launcher);
    G_OBJECT_CLASS(sf_host_parent_class)->finalize(object);
}

static void sf_host_class_init(SfHostClass *class)
{
    GType type = G_TYPE_FROM_CLASS(class);

    G_OBJECT_CLASS(class)->finalize = sf_host_finalize;
    signals[SIGNAL_EVENT] = g_signal_new("event", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 2,
                                         G_TYPE_STRING, G_TYPE_POINTER);
    signals[SIGNAL_GUEST_MESSAGE] = g_signal_new("guest-message", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL,
                                                 G_TYPE_NONE, 3, G_TYPE_POINTER, G_TYPE_POINTER, G_TYPE_POINTER);
    signals[SIGNAL_VM_EXITED] =
        g_signal_new("vm-exited", type, G_SIGNAL_RUN_LAST, 0, NULL, NULL, NULL, G_TYPE_NONE, 1, G_TYPE_POINTER);
}

SfHost *sf_host_new(const SfDaemonConfig *config, SfLauncher *launcher, SfResourceManager *manager)
{
    SfHost *host = g_object_new(SF_TYPE_HOST, NULL);

    host->config = config;
    host->launcher = launcher;
    host->manager = manager;
    host->started = g_get_monotonic_time();
    host->remote = sf_borrow_remote(host);
    host->networks = sf_networks_new(host, launcher);
    sf_resource_manager_set_revoked_handler(manager, on_revoked, host);
    return host;
}
