/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The methods vm.* and descriptor of the control protocol. */
#include <string.h>

#include "sfvmm/control/api_method.h"
#include "sfvmm/control/api_wait.h"
#include "sfvmm/control/describe.h"

#define DEFAULT_MEMORY (1ll << 30)
#define WRITES_LOOK_MS 50u

#define TEXT    SF_API_TEXT
#define INTEGER SF_API_INTEGER
#define BOOLEAN SF_API_BOOLEAN
#define ANY     SF_API_ANY

/* What vm.run leaves out; "auto" becomes what works here. */
static JsonObject *config_of_params(SfHost *host, JsonObject *params)
{
    JsonObject *object = json_object_new();
    g_autoptr(GList) members = json_object_get_members(params);

    for (GList *item = members; item; item = item->next) {
        if (strcmp(item->data, "name") != 0 && strcmp(item->data, "pool") != 0) {
            json_object_set_member(object, item->data, json_node_copy(json_object_get_member(params, item->data)));
        }
    }
    if (!json_object_has_member(object, "memory")) {
        json_object_set_int_member(object, "memory", DEFAULT_MEMORY);
    }
    if (!json_object_has_member(object, "vcpus")) {
        json_object_set_int_member(object, "vcpus", 1);
    }
    if (strcmp(json_object_get_string_member_with_default(object, "accel", "auto"), "auto") == 0) {
        g_autofree char *reason = NULL;
        const char *accel = sf_launcher_best_accel(sf_host_launcher(host), &reason);
        g_message("accelerator %s: %s", accel, reason ? reason : "it works here");
        json_object_set_string_member(object, "accel", accel);
    }
    return object;
}

static void api_vm_run(SfHost *host, JsonObject *params, SfCall *call)
{
    g_autoptr(JsonObject) object = config_of_params(host, params);
    g_autoptr(GError) error = NULL;
    g_autoptr(SfVmConfig) config = sf_vm_config_from_json(object, &error);
    const SfDaemonConfig *daemon = sf_host_config(host);
    gint64 pool;

    if (!config) {
        g_autoptr(GError) bad = g_error_new_literal(SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS, error->message);
        sf_call_fail(call, bad);
        return;
    }
    if (sf_api_int(params, "pool", 0, daemon->pool_max, daemon->pool, &pool, call)) {
        sf_host_run_async(host, sf_api_text(params, "name"), sf_call_user(call), config, (guint)pool,
                          sf_api_reply_started, call);
    }
}

static void on_agent_of_waited(SfVm *vm, SfApiWait *wait)
{
    sf_api_reply_with(wait->call, "vm", sf_describe_vm(wait->hvm));
    sf_api_wait_free(wait);
}

static void on_exit_of_waited(SfVm *vm, const char *reason, SfApiWait *wait)
{
    sf_api_fail(wait->call, SF_HOST_ERROR_GONE, "VM \"%s\": it ended: %s", sf_vm_name(vm), reason);
    sf_api_wait_free(wait);
}

static void api_vm_wait(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostVm *hvm = sf_api_vm(host, params, call);
    gint64 timeout;
    SfApiWait *wait;

    if (!hvm || !sf_api_int(params, "timeout_ms", 0, SF_API_TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    if (sf_vm_has_agent(hvm->vm)) {
        sf_api_reply_with(call, "vm", sf_describe_vm(hvm));
        return;
    }
    wait = sf_api_wait_new(call, hvm->vm, timeout,
                           g_strdup_printf("VM \"%s\": no answer of its agent", sf_vm_name(hvm->vm)));
    wait->hvm = hvm;
    sf_api_wait_watch(wait, hvm->vm, "guest-connected", G_CALLBACK(on_agent_of_waited));
    sf_api_wait_watch(wait, hvm->vm, "exited", G_CALLBACK(on_exit_of_waited));
}

static void api_vm_list(SfHost *host, JsonObject *params, SfCall *call)
{
    g_autoptr(GList) vms = sf_host_vms(host);
    JsonObject *result = json_object_new();
    JsonArray *array = json_array_new();

    for (GList *item = vms; item; item = item->next) {
        json_array_add_object_element(array, sf_describe_vm(item->data));
    }
    json_object_set_array_member(result, "vms", array);
    sf_call_reply(call, result);
}

static void api_vm_status(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostVm *hvm = sf_api_vm(host, params, call);

    if (hvm) {
        sf_api_reply_with(call, "vm", sf_describe_vm(hvm));
    }
}

/* ---- stop ---- */

static gboolean on_look_at_writes(gpointer data)
{
    SfApiWait *wait = data;

    if (sf_late_commits_active(wait->commits, sf_vm_name(SF_VM(wait->object)))) {
        return G_SOURCE_CONTINUE;
    }
    wait->timer = 0;
    sf_api_reply_empty(wait->call);
    sf_api_wait_free(wait);
    return G_SOURCE_REMOVE;
}

/* Whoever stops a VM looks at its disks next. */
static void on_exit_of_stopped(SfVm *vm, const char *reason, SfApiWait *wait)
{
    g_clear_handle_id(&wait->timer, g_source_remove);
    wait->timer = g_timeout_add(WRITES_LOOK_MS, on_look_at_writes, wait);
}

void sf_api_end_vm(SfHost *host, SfHostVm *hvm)
{
    SfClone *clone = sf_host_clone_of(host, hvm);

    if (clone) {
        sf_fork_clone_kill(clone, "killed by an operator");
    } else {
        sf_vm_kill(hvm->vm);
    }
}

static void api_vm_stop(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostVm *hvm = sf_api_vm(host, params, call);
    gint64 timeout;
    SfApiWait *wait;

    if (!hvm || !sf_api_int(params, "timeout_ms", 0, SF_API_TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    wait =
        sf_api_wait_new(call, hvm->vm, timeout,
                        g_strdup_printf("VM \"%s\": it does not power down (--force kills it)", sf_vm_name(hvm->vm)));
    wait->commits = sf_launcher_options(sf_host_launcher(host))->late_commits;
    sf_api_wait_watch(wait, hvm->vm, "exited", G_CALLBACK(on_exit_of_stopped));
    if (sf_api_flag(params, "force", FALSE)) {
        sf_api_end_vm(host, hvm);
    } else {
        sf_vm_powerdown(hvm->vm);
    }
}

/* ---- check, pool, usage ---- */

static void on_checked(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *text = sf_vm_check_finish(SF_VM(source), result, &error);
    g_auto(GStrv) lines = NULL;
    JsonObject *object;
    JsonArray *array;

    if (!text) {
        sf_call_fail(data, error);
        return;
    }
    lines = g_strsplit(text, "\n", -1);
    object = json_object_new();
    array = json_array_new();
    for (char **line = lines; *line; line++) {
        if (**line) {
            json_array_add_string_element(array, *line);
        }
    }
    json_object_set_boolean_member(object, "forkable", json_array_get_length(array) == 0);
    json_object_set_array_member(object, "obstacles", array);
    sf_call_reply(data, object);
}

static void api_vm_check(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostVm *hvm = sf_api_vm(host, params, call);

    if (hvm) {
        sf_vm_check_async(hvm->vm, on_checked, call);
    }
}

static void api_vm_pool(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostVm *hvm = sf_api_vm(host, params, call);
    JsonObject *result;
    gint64 target;

    if (!hvm || !sf_api_int(params, "target", 0, sf_host_config(host)->pool_max, 0, &target, call)) {
        return;
    }
    sf_host_set_pool(host, hvm->family, (guint)target);
    result = json_object_new();
    json_object_set_int_member(result, "target", target);
    json_object_set_int_member(result, "ready", sf_shell_pool_ready(hvm->family->pool));
    sf_call_reply(call, result);
}

static void on_usage(GObject *source, GAsyncResult *result, gpointer data)
{
    sf_call_reply(data, sf_describe_usage_finish(result));
}

static void api_vm_usage(SfHost *host, JsonObject *params, SfCall *call)
{
    sf_describe_usage_async(host, on_usage, call);
}

/* ---- descriptor ---- */

/* A living clone of the ticket holds its snapshot. */
static SfHostVm *vm_with_snapshot(SfHost *host, SfHostTicket *ticket)
{
    for (guint i = 0; ticket->fork && i < sf_fork_count(ticket->fork); i++) {
        SfClone *clone = sf_fork_nth(ticket->fork, i);
        SfHostVm *hvm = clone->vm ? sf_host_vm_of(host, clone->vm) : NULL;
        if (hvm && sf_vm_loaded_snapshot(hvm->vm)) {
            return hvm;
        }
    }
    return NULL;
}

/* The newest fork of a VM that still has a snapshot; a clone without forks of its own shows what it was loaded from. */
static SfHostVm *vm_with_snapshot_of(SfHost *host, SfHostVm *hvm)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);
    SfHostVm *found = sf_vm_loaded_snapshot(hvm->vm) ? hvm : NULL;

    for (GList *item = tickets; item; item = item->next) {
        SfHostTicket *ticket = item->data;
        SfHostVm *holder = sf_host_ticket_is_of(ticket, sf_vm_name(hvm->vm)) ? vm_with_snapshot(host, ticket) : NULL;
        if (holder) {
            found = holder;
        }
    }
    return found;
}

static void api_descriptor(SfHost *host, JsonObject *params, SfCall *call)
{
    gboolean by_ticket = json_object_has_member(params, "ticket");
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) bytes = NULL;
    g_autofree char *data = NULL;
    SfHostVm *holder;
    JsonObject *result;

    if (by_ticket == json_object_has_member(params, "vm")) {
        sf_api_fail(call, SF_HOST_ERROR_BAD_PARAMS, "descriptor: either \"ticket\" or \"vm\" must be given");
        return;
    }
    if (by_ticket) {
        SfHostTicket *ticket = sf_api_ticket(host, params, call);
        if (!ticket) {
            return;
        }
        holder = vm_with_snapshot(host, ticket);
    } else {
        SfHostVm *hvm = sf_api_vm(host, params, call);
        if (!hvm) {
            return;
        }
        holder = vm_with_snapshot_of(host, hvm);
    }
    if (!holder) {
        sf_api_fail(call, SF_HOST_ERROR_GONE, "no snapshot is alive: it ends with the last clone of its fork");
        return;
    }
    bytes = sf_describe_snapshot(holder, sf_vm_loaded_snapshot(holder->vm), &error);
    if (!bytes) {
        sf_call_fail(call, error);
        return;
    }
    data = g_base64_encode(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
    result = json_object_new();
    json_object_set_string_member(result, "id", sf_vm_loaded_snapshot(holder->vm)->id);
    json_object_set_int_member(result, "size", (gint64)g_bytes_get_size(bytes));
    json_object_set_string_member(result, "data", data);
    sf_call_reply(call, result);
}

/* ---- the table ---- */

/* clang-format off */
#define VM_REQUIRED      { "vm", TEXT, TRUE }
#define TIMEOUT          { "timeout_ms", INTEGER, FALSE }

const SfApiMethod sf_api_vm_methods[] = {
    { "vm.run", api_vm_run, { { "name", TEXT, FALSE }, { "memory", INTEGER, FALSE }, { "vcpus", INTEGER, FALSE },
      { "accel", TEXT, FALSE }, { "cpu", TEXT, FALSE }, { "kernel", TEXT, FALSE }, { "initrd", TEXT, FALSE },
      { "append", TEXT, FALSE }, { "network", TEXT, FALSE },
      { "address", TEXT, FALSE }, { "outside", ANY, FALSE }, { "disks", ANY, FALSE }, { "pool", INTEGER, FALSE } } },
    { "vm.wait", api_vm_wait, { VM_REQUIRED, { "agent", BOOLEAN, FALSE }, TIMEOUT } },
    { "vm.list", api_vm_list, { { 0 } } },
    { "vm.status", api_vm_status, { VM_REQUIRED } },
    { "vm.stop", api_vm_stop, { VM_REQUIRED, { "force", BOOLEAN, FALSE }, TIMEOUT } },
    { "vm.check", api_vm_check, { VM_REQUIRED } },
    { "vm.pool", api_vm_pool, { VM_REQUIRED, { "target", INTEGER, TRUE } } },
    { "vm.usage", api_vm_usage, { { 0 } } },
    { "descriptor", api_descriptor, { { "vm", TEXT, FALSE }, { "ticket", TEXT, FALSE } } },
    { 0 },
};
/* clang-format on */
