/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Each method has a table of its parameters, checked before its handler runs, so that a handler sees what it declared.
 * A handler that must wait keeps a Wait: it ends with the event it waits for, or with the caller's timeout.
 */
#include "sfvmm/control/api.h"

#include <glib/gstdio.h>
#include <string.h>

#include "sfvmm/control/api_method.h"
#include "sfvmm/control/borrow.h"
#include "sfvmm/control/describe.h"

#define RESULT_CHUNK_MAX (512u << 10) /* bytes of a result in one answer; base64 of it fits a line */
#define TIMEOUT_MAX_MS   (24 * 3600 * 1000)
#define DEFAULT_MEMORY   (1ll << 30)

#define WRITES_LOOK_MS 50u

#define TEXT    SF_API_TEXT
#define INTEGER SF_API_INTEGER
#define BOOLEAN SF_API_BOOLEAN
#define ANY     SF_API_ANY

/* ---- errors ---- */

static const char *const host_codes[] = {
    [SF_HOST_ERROR_NO_SUCH_VM] = "no-such-vm",
    [SF_HOST_ERROR_NO_SUCH_TICKET] = "no-such-ticket",
    [SF_HOST_ERROR_NO_SUCH_SNAPSHOT] = "no-such-snapshot",
    [SF_HOST_ERROR_EXISTS] = "exists",
    [SF_HOST_ERROR_BUSY] = "busy",
    [SF_HOST_ERROR_BAD_PARAMS] = "bad-params",
    [SF_HOST_ERROR_FAILED] = "failed",
    [SF_HOST_ERROR_TIMEOUT] = "timeout",
    [SF_HOST_ERROR_QUOTA] = "quota",
    [SF_HOST_ERROR_GONE] = "gone",
};

static const char *const host_hints[G_N_ELEMENTS(host_codes)] = {
    [SF_HOST_ERROR_NO_SUCH_VM] = "`sfctl list` shows the VMs",
    [SF_HOST_ERROR_NO_SUCH_TICKET] = "`sfctl tickets` shows the tickets",
    [SF_HOST_ERROR_NO_SUCH_SNAPSHOT] = "`sfctl snapshot list` shows the snapshots",
    [SF_HOST_ERROR_EXISTS] = "choose another name, or stop that VM first",
};

static const char *cluster_error_code(const GError *error, const char **hint)
{
    switch (error->code) {
    case SF_CLUSTER_ERROR_QUOTA:
        return "quota";
    case SF_CLUSTER_ERROR_CAPACITY:
        return "no-capacity";
    case SF_CLUSTER_ERROR_NO_SUCH_HOST:
        *hint = "`sfctl host list` shows the hosts";
        return "no-such-host";
    case SF_CLUSTER_ERROR_EXISTS:
        return "exists";
    case SF_CLUSTER_ERROR_SCHEDULER:
        return "scheduler";
    default:
        return "bad-params";
    }
}

const char *sf_api_error_code(const GError *error, const char **hint)
{
    *hint = NULL;
    if (error->domain == SF_HOST_ERROR && (guint)error->code < G_N_ELEMENTS(host_codes)) {
        *hint = host_hints[error->code];
        return host_codes[error->code];
    }
    if (error->domain == SF_CLUSTER_ERROR) {
        return cluster_error_code(error, hint);
    }
    if (g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_REFUSED)) {
        *hint = "remove the device, or run the VM without it; `sfctl check VM` lists all obstacles";
        return "refused";
    }
    if (g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_GONE)) {
        return "gone";
    }
    if (g_error_matches(error, SF_VM_ERROR, SF_VM_ERROR_TIMEOUT)) {
        return "timeout";
    }
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA) ||
        g_error_matches(error, G_IO_ERROR, G_IO_ERROR_MESSAGE_TOO_LARGE)) {
        return "bad-request";
    }
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED)) {
        return "no-such-method";
    }
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_INVALID_ARGUMENT)) {
        return "bad-params";
    }
    return "failed";
}

/* ---- parameters ---- */

static gboolean type_fits(JsonNode *node, SfApiType type)
{
    if (type == ANY) {
        return TRUE;
    }
    if (!JSON_NODE_HOLDS_VALUE(node)) {
        return FALSE;
    }
    switch (json_node_get_value_type(node)) {
    case G_TYPE_STRING:
        return type == TEXT;
    case G_TYPE_INT64:
        return type == INTEGER;
    case G_TYPE_BOOLEAN:
        return type == BOOLEAN;
    default:
        return FALSE;
    }
}

static const SfApiParam *find_param(const SfApiMethod *method, const char *name)
{
    for (guint i = 0; i < SF_API_PARAMS_MAX && method->params[i].name; i++) {
        if (strcmp(method->params[i].name, name) == 0) {
            return &method->params[i];
        }
    }
    return NULL;
}

static gboolean check_params(const SfApiMethod *method, JsonObject *params, GError **error)
{
    static const char *const type_names[] = { "a string", "an integer", "a boolean", "a value" };
    g_autoptr(GList) members = json_object_get_members(params);

    for (GList *item = members; item; item = item->next) {
        const SfApiParam *param = find_param(method, item->data);
        if (!param) {
            g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS, "%s: parameter \"%s\" is not known",
                        method->name, (const char *)item->data);
            return FALSE;
        }
        if (!type_fits(json_object_get_member(params, item->data), param->type)) {
            g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS, "%s: parameter \"%s\" must be %s", method->name,
                        param->name, type_names[param->type]);
            return FALSE;
        }
    }
    for (guint i = 0; i < SF_API_PARAMS_MAX && method->params[i].name; i++) {
        if (method->params[i].required && !json_object_has_member(params, method->params[i].name)) {
            g_set_error(error, SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS, "%s: parameter \"%s\" is missing", method->name,
                        method->params[i].name);
            return FALSE;
        }
    }
    return TRUE;
}

static const char *text_param(JsonObject *params, const char *name)
{
    return json_object_get_string_member_with_default(params, name, NULL);
}

static gboolean bool_param(JsonObject *params, const char *name, gboolean fallback)
{
    return json_object_get_boolean_member_with_default(params, name, fallback);
}

/* An integer within bounds, or FALSE and the call has been answered. */
static gboolean int_param(JsonObject *params, const char *name, gint64 min, gint64 max, gint64 fallback, gint64 *value,
                          SfCall *call)
{
    *value = json_object_get_int_member_with_default(params, name, fallback);
    if (*value < min || *value > max) {
        g_autoptr(GError) error = g_error_new(SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS,
                                              "parameter \"%s\": %" G_GINT64_FORMAT " given, %" G_GINT64_FORMAT
                                              " to %" G_GINT64_FORMAT " allowed",
                                              name, *value, min, max);
        sf_call_fail(call, error);
        return FALSE;
    }
    return TRUE;
}

static void fail(SfCall *call, SfHostError code, const char *format, ...) G_GNUC_PRINTF(3, 4);
static void fail(SfCall *call, SfHostError code, const char *format, ...)
{
    g_autoptr(GError) error = NULL;
    va_list args;

    va_start(args, format);
    error = g_error_new_valist(SF_HOST_ERROR, code, format, args);
    va_end(args);
    sf_call_fail(call, error);
}

static void reply_empty(SfCall *call)
{
    sf_call_reply(call, json_object_new());
}

static void reply_with(SfCall *call, const char *member, JsonObject *object)
{
    JsonObject *result = json_object_new();

    json_object_set_object_member(result, member, object);
    sf_call_reply(call, result);
}

/* The VM that "vm" names, or NULL and the call has been answered. */
static SfHostVm *vm_param(SfHost *host, JsonObject *params, SfCall *call)
{
    g_autoptr(GError) error = NULL;
    SfHostVm *hvm = sf_host_vm(host, text_param(params, "vm"), &error);

    if (!hvm) {
        sf_call_fail(call, error);
    }
    return hvm;
}

static SfHostTicket *ticket_param(SfHost *host, JsonObject *params, SfCall *call)
{
    const char *text = text_param(params, "ticket");
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = NULL;
    guint64 id;

    if (!sf_ticket_id_from_text(text, &id)) {
        g_set_error(&error, SF_HOST_ERROR, SF_HOST_ERROR_NO_SUCH_TICKET,
                    "ticket \"%s\": %u hexadecimal digits are needed", text, SF_TICKET_ID_DIGITS);
    } else {
        ticket = sf_host_ticket(host, id, &error);
    }
    if (!ticket) {
        sf_call_fail(call, error);
    }
    return ticket;
}

/* ---- waiting ---- */

/* An object whose signal may end a Wait. */
typedef struct {
    GObject *object;
    gulong handler;
} Watch;

#define WATCHES_MAX 4u

typedef struct Wait Wait;
struct Wait {
    SfCall *call;
    GObject *object; /* what is waited for: a VM or a fork */
    Watch watches[WATCHES_MAX];
    guint n_watches;
    guint timer;
    SfHost *host;   /* outlives all calls */
    guint64 ticket; /* by its id: it may be released meanwhile */
    SfHostVm *hvm;
    const SfLateCommits *commits;
    gboolean answered, release;
    char *what; /* for the timeout's message */
};

static void wait_watch(Wait *wait, gpointer object, const char *signal, GCallback callback)
{
    Watch *watch = &wait->watches[wait->n_watches++];

    g_assert(wait->n_watches <= WATCHES_MAX);
    watch->object = g_object_ref(object);
    watch->handler = g_signal_connect(object, signal, callback, wait);
}

static void wait_free(Wait *wait)
{
    for (guint i = 0; i < wait->n_watches; i++) {
        g_clear_signal_handler(&wait->watches[i].handler, wait->watches[i].object);
        g_object_unref(wait->watches[i].object);
    }
    g_clear_handle_id(&wait->timer, g_source_remove);
    g_object_unref(wait->object);
    g_free(wait->what);
    g_free(wait);
}

static gboolean on_wait_timeout(gpointer data)
{
    Wait *wait = data;

    wait->timer = 0;
    fail(wait->call, SF_HOST_ERROR_TIMEOUT, "%s: not within the time given", wait->what);
    wait_free(wait);
    return G_SOURCE_REMOVE;
}

/* Takes what. The caller says which signals end it. */
static Wait *wait_new(SfCall *call, gpointer object, gint64 timeout_ms, char *what)
{
    Wait *wait = g_new0(Wait, 1);

    wait->call = call;
    wait->object = g_object_ref(object);
    wait->what = what;
    if (timeout_ms > 0) {
        wait->timer = g_timeout_add((guint)timeout_ms, on_wait_timeout, wait);
    }
    return wait;
}

/* For something of the ticket's fork. */
static Wait *wait_for_ticket(SfCall *call, SfHostTicket *ticket, gint64 timeout_ms, char *what)
{
    Wait *wait = wait_new(call, ticket->fork, timeout_ms, what);

    wait->host = ticket->host;
    wait->ticket = ticket->grant->id;
    return wait;
}

/* The ticket; NULL: it has been released, and the call ends with that. */
static SfHostTicket *wait_ticket(Wait *wait)
{
    SfHostTicket *ticket = sf_host_ticket(wait->host, wait->ticket, NULL);

    if (!ticket) {
        fail(wait->call, SF_HOST_ERROR_GONE, "%s: the ticket was released meanwhile", wait->what);
        wait_free(wait);
    }
    return ticket;
}

/* ---- daemon ---- */

static void api_daemon_status(SfHost *host, JsonObject *params, SfCall *call)
{
    sf_call_reply(call, sf_describe_host(host));
}

static void api_subscribe(SfHost *host, JsonObject *params, SfCall *call)
{
    sf_call_subscribe(call);
    reply_empty(call);
}

/* ---- VMs ---- */

static void on_run(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    SfHostVm *hvm = sf_host_run_finish(SF_HOST(source), result, &error);

    if (hvm) {
        reply_with(data, "vm", sf_describe_vm(hvm));
    } else {
        sf_call_fail(data, error);
    }
}

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
    if (int_param(params, "pool", 0, daemon->pool_max, daemon->pool, &pool, call)) {
        sf_host_run_async(host, text_param(params, "name"), sf_call_user(call), config, (guint)pool, on_run, call);
    }
}

static void on_agent_of_waited(SfVm *vm, Wait *wait)
{
    reply_with(wait->call, "vm", sf_describe_vm(wait->hvm));
    wait_free(wait);
}

static void on_exit_of_waited(SfVm *vm, const char *reason, Wait *wait)
{
    fail(wait->call, SF_HOST_ERROR_GONE, "VM \"%s\": it ended: %s", sf_vm_name(vm), reason);
    wait_free(wait);
}

static void api_vm_wait(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostVm *hvm = vm_param(host, params, call);
    gint64 timeout;
    Wait *wait;

    if (!hvm || !int_param(params, "timeout_ms", 0, TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    if (sf_vm_has_agent(hvm->vm)) {
        reply_with(call, "vm", sf_describe_vm(hvm));
        return;
    }
    wait = wait_new(call, hvm->vm, timeout, g_strdup_printf("VM \"%s\": no answer of its agent", sf_vm_name(hvm->vm)));
    wait->hvm = hvm;
    wait_watch(wait, hvm->vm, "guest-connected", G_CALLBACK(on_agent_of_waited));
    wait_watch(wait, hvm->vm, "exited", G_CALLBACK(on_exit_of_waited));
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
    SfHostVm *hvm = vm_param(host, params, call);

    if (hvm) {
        reply_with(call, "vm", sf_describe_vm(hvm));
    }
}

static gboolean on_look_at_writes(gpointer data)
{
    Wait *wait = data;

    if (sf_late_commits_active(wait->commits, sf_vm_name(SF_VM(wait->object)))) {
        return G_SOURCE_CONTINUE;
    }
    wait->timer = 0;
    reply_empty(wait->call);
    wait_free(wait);
    return G_SOURCE_REMOVE;
}

/* Whoever stops a VM looks at its disks next. */
static void on_exit_of_stopped(SfVm *vm, const char *reason, Wait *wait)
{
    g_clear_handle_id(&wait->timer, g_source_remove);
    wait->timer = g_timeout_add(WRITES_LOOK_MS, on_look_at_writes, wait);
}

static void end_vm(SfHost *host, SfHostVm *hvm)
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
    SfHostVm *hvm = vm_param(host, params, call);
    gint64 timeout;
    Wait *wait;

    if (!hvm || !int_param(params, "timeout_ms", 0, TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    wait = wait_new(call, hvm->vm, timeout,
                    g_strdup_printf("VM \"%s\": it does not power down (--force kills it)", sf_vm_name(hvm->vm)));
    wait->commits = sf_launcher_options(sf_host_launcher(host))->late_commits;
    wait_watch(wait, hvm->vm, "exited", G_CALLBACK(on_exit_of_stopped));
    if (bool_param(params, "force", FALSE)) {
        end_vm(host, hvm);
    } else {
        sf_vm_powerdown(hvm->vm);
    }
}

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
    SfHostVm *hvm = vm_param(host, params, call);

    if (hvm) {
        sf_vm_check_async(hvm->vm, on_checked, call);
    }
}

static void api_vm_pool(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostVm *hvm = vm_param(host, params, call);
    JsonObject *result;
    gint64 target;

    if (!hvm || !int_param(params, "target", 0, sf_host_config(host)->pool_max, 0, &target, call)) {
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

/* ---- tickets ---- */

/* The callback has data; nothing is called when the parameters are wrong, and the call has been answered. */
static gboolean request_ticket(SfHost *host, JsonObject *params, gboolean all, SfCall *call,
                               GAsyncReadyCallback callback, gpointer data)
{
    SfHostVm *hvm = vm_param(host, params, call);
    SfHostTicketOrder order = { .all = all };
    gint64 count, queue_ms;

    if (!hvm || !int_param(params, "count", 1, SF_GP_MAX_CLONES, 0, &count, call) ||
        !int_param(params, "queue_ms", 0, TIMEOUT_MAX_MS, 0, &queue_ms, call)) {
        return FALSE;
    }
    order.count = (guint)count;
    order.queue_ms = (guint)queue_ms;
    sf_host_request_ticket_async(host, hvm, &order, callback, data);
    return TRUE;
}

static void on_ticket(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_host_request_ticket_finish(SF_HOST(source), result, &error);

    if (ticket) {
        reply_with(data, "ticket", sf_describe_ticket(ticket));
    } else {
        sf_call_fail(data, error);
    }
}

static void api_ticket_request(SfHost *host, JsonObject *params, SfCall *call)
{
    request_ticket(host, params, bool_param(params, "all", FALSE), call, on_ticket, call);
}

static void api_ticket_list(SfHost *host, JsonObject *params, SfCall *call)
{
    g_autoptr(GList) tickets = sf_host_tickets(host);
    JsonObject *result = json_object_new();
    JsonArray *array = json_array_new();

    for (GList *item = tickets; item; item = item->next) {
        json_array_add_object_element(array, sf_describe_ticket(item->data));
    }
    json_object_set_array_member(result, "tickets", array);
    sf_call_reply(call, result);
}

static void api_ticket_status(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostTicket *ticket = ticket_param(host, params, call);

    if (ticket) {
        reply_with(call, "ticket", sf_describe_ticket(ticket));
    }
}

/* ---- clone ---- */

static gboolean clone_wait_is_over(const Wait *wait)
{
    SfFork *fork = SF_FORK(wait->object);

    return wait->answered ? sf_fork_is_answered(fork) : sf_fork_is_placed(fork);
}

static void clone_wait_finish(Wait *wait)
{
    SfFork *fork = SF_FORK(wait->object);
    SfHostTicket *ticket = wait_ticket(wait);

    if (!ticket) {
        return;
    }
    if (sf_fork_state(fork) == SF_FORK_FAILED) {
        if (sf_fork_is_refused(fork)) {
            g_autoptr(GError) error = g_error_new_literal(SF_VM_ERROR, SF_VM_ERROR_REFUSED, sf_fork_reason(fork));
            sf_call_fail(wait->call, error);
        } else {
            fail(wait->call, SF_HOST_ERROR_FAILED, "VM \"%s\": fork failed: %s", sf_fork_parent_name(fork),
                 sf_fork_reason(fork));
        }
        sf_host_release_ticket_later(ticket);
    } else {
        reply_with(wait->call, "ticket", sf_describe_ticket(ticket));
    }
    wait_free(wait);
}

static void on_clone_signal(SfFork *fork, Wait *wait)
{
    if (clone_wait_is_over(wait)) {
        clone_wait_finish(wait);
    }
}

static void on_clone_changed(SfFork *fork, SfClone *clone, Wait *wait)
{
    on_clone_signal(fork, wait);
}

/* A clone call whose parameters are right. */
typedef struct {
    SfCall *call;
    gint64 timeout;
    char *until; /* "resumed", "answered", or NULL */
    gboolean has_avoid;
    guint avoid; /* SF_AVOID_*, if it is given */
} CloneCall;

static void clone_call_free(CloneCall *clone)
{
    g_free(clone->until);
    g_free(clone);
}

/* Frees clone. */
static void clone_with(SfHost *host, SfHostTicket *ticket, CloneCall *clone)
{
    g_autoptr(GError) error = NULL;
    Wait *wait;

    if (clone->has_avoid) {
        ticket->grant->avoid = clone->avoid;
    }
    if (!sf_host_fork(host, ticket, 0, &error)) {
        sf_call_fail(clone->call, error);
        clone_call_free(clone);
        return;
    }
    wait = wait_for_ticket(clone->call, ticket, clone->timeout,
                           g_strdup_printf("VM \"%s\": its clones", ticket->grant->vm));
    wait->answered = clone->until ? strcmp(clone->until, "answered") == 0 : sf_fork_with_agent(ticket->fork);
    clone_call_free(clone);
    if (clone_wait_is_over(wait)) {
        clone_wait_finish(wait);
        return;
    }
    wait_watch(wait, ticket->fork, "changed", G_CALLBACK(on_clone_changed));
    wait_watch(wait, ticket->fork, "placed", G_CALLBACK(on_clone_signal));
}

static void on_clone_ticket(GObject *source, GAsyncResult *result, gpointer data)
{
    CloneCall *clone = data;
    g_autoptr(GError) error = NULL;
    SfHostTicket *ticket = sf_host_request_ticket_finish(SF_HOST(source), result, &error);

    if (ticket) {
        clone_with(SF_HOST(source), ticket, clone);
    } else {
        sf_call_fail(clone->call, error);
        clone_call_free(clone);
    }
}

static void api_clone(SfHost *host, JsonObject *params, SfCall *call)
{
    const char *until = text_param(params, "wait"), *avoid = text_param(params, "avoid");
    g_autoptr(GError) error = NULL;
    guint what = 0;
    SfHostTicket *ticket;
    gint64 timeout;
    CloneCall *clone;

    if (until && strcmp(until, "resumed") != 0 && strcmp(until, "answered") != 0) {
        fail(call, SF_HOST_ERROR_BAD_PARAMS, "clone: parameter \"wait\" must be \"resumed\" or \"answered\"");
        return;
    }
    if (json_object_has_member(params, "ticket") == json_object_has_member(params, "vm")) {
        fail(call, SF_HOST_ERROR_BAD_PARAMS, "clone: either \"ticket\" or \"vm\" and \"count\" must be given");
        return;
    }
    if (!int_param(params, "timeout_ms", 0, TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    if (avoid && !sf_avoid_parse(avoid, &what, &error)) {
        fail(call, SF_HOST_ERROR_BAD_PARAMS, "clone: parameter \"avoid\": %s", error->message);
        return;
    }
    clone = g_new0(CloneCall, 1);
    *clone = (CloneCall){ call, timeout, g_strdup(until), avoid != NULL, what };
    if (!json_object_has_member(params, "ticket")) {
        if (!request_ticket(host, params, FALSE, call, on_clone_ticket, clone)) {
            clone_call_free(clone);
        }
        return;
    }
    ticket = ticket_param(host, params, call);
    if (ticket) {
        clone_with(host, ticket, clone);
    } else {
        clone_call_free(clone);
    }
}

/* ---- join, result, kill ---- */

static void join_finish(Wait *wait)
{
    SfHostTicket *ticket = wait_ticket(wait);

    if (!ticket) {
        return;
    }
    reply_with(wait->call, "ticket", sf_describe_ticket(ticket));
    if (wait->release) {
        sf_host_release_ticket_later(ticket);
    }
    wait_free(wait);
}

static void on_join_done(SfFork *fork, Wait *wait)
{
    join_finish(wait);
}

static void api_join(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostTicket *ticket = ticket_param(host, params, call);
    gint64 timeout;
    Wait *wait;

    if (!ticket || !int_param(params, "timeout_ms", 0, TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    if (!ticket->fork) {
        fail(call, SF_HOST_ERROR_BUSY, "ticket %s: it has not forked, so there is nothing to join",
             text_param(params, "ticket"));
        return;
    }
    wait = wait_for_ticket(call, ticket, timeout,
                           g_strdup_printf("ticket %s: clones still run", text_param(params, "ticket")));
    wait->release = bool_param(params, "release", TRUE);
    if (sf_fork_is_done(ticket->fork)) {
        join_finish(wait);
    } else {
        wait_watch(wait, ticket->fork, "done", G_CALLBACK(on_join_done));
    }
}

/* Over when the other hosts have it all, and those clones here whose memory comes from elsewhere. */
static void complete_review(Wait *wait)
{
    SfHostTicket *ticket = wait_ticket(wait);

    if (ticket && sf_borrow_is_complete(ticket) && (!ticket->pager || sf_pager_is_complete(ticket->pager))) {
        reply_with(wait->call, "ticket", sf_describe_ticket(ticket));
        wait_free(wait);
    }
}

static void on_pager_complete(SfPager *pager, Wait *wait)
{
    complete_review(wait);
}

static void on_pager_lost(SfPager *pager, const char *reason, Wait *wait)
{
    fail(wait->call, SF_HOST_ERROR_FAILED, "%s: %s", wait->what, reason);
    wait_free(wait);
}

static void on_complete_changed(SfFork *fork, SfClone *clone, Wait *wait)
{
    complete_review(wait);
}

static void api_complete(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostTicket *ticket = ticket_param(host, params, call);
    g_autoptr(GError) error = NULL;
    gint64 timeout;
    Wait *wait;

    if (!ticket || !int_param(params, "timeout_ms", 0, TIMEOUT_MAX_MS, 0, &timeout, call)) {
        return;
    }
    if (!ticket->fork || !sf_fork_is_placed(ticket->fork)) {
        fail(call, SF_HOST_ERROR_BUSY, "ticket %s: it has no clones yet", text_param(params, "ticket"));
        return;
    }
    if (ticket->pager && !sf_pager_complete(ticket->pager, &error)) {
        sf_call_fail(call, error);
        return;
    }
    sf_borrow_complete(ticket);
    wait = wait_for_ticket(call, ticket, timeout,
                           g_strdup_printf("ticket %s: memory is still being fetched", text_param(params, "ticket")));
    wait_watch(wait, ticket->fork, "changed", G_CALLBACK(on_complete_changed));
    if (ticket->pager) {
        wait_watch(wait, ticket->pager, "complete", G_CALLBACK(on_pager_complete));
        wait_watch(wait, ticket->pager, "lost", G_CALLBACK(on_pager_lost));
    }
    complete_review(wait);
}

static void api_result(SfHost *host, JsonObject *params, SfCall *call)
{
    SfHostTicket *ticket = ticket_param(host, params, call);
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) data = NULL;
    g_autofree char *text = NULL;
    gint64 id, offset, length;
    JsonObject *result;
    SfClone *clone;

    if (!ticket || !int_param(params, "id", 1, SF_GP_MAX_CLONES, 0, &id, call) ||
        !int_param(params, "offset", 0, SF_GP_MAX_RESULT, 0, &offset, call) ||
        !int_param(params, "length", 1, RESULT_CHUNK_MAX, RESULT_CHUNK_MAX, &length, call)) {
        return;
    }
    clone = ticket->fork ? sf_fork_clone(ticket->fork, (guint)id) : NULL;
    if (!clone) {
        fail(call, SF_HOST_ERROR_BAD_PARAMS, "ticket %s: it has no clone %" G_GINT64_FORMAT,
             text_param(params, "ticket"), id);
        return;
    }
    data = sf_fork_clone_fetch(clone, (guint64)offset, (gsize)length, &error);
    if (!data) {
        sf_call_fail(call, error);
        return;
    }
    text = g_base64_encode(g_bytes_get_data(data, NULL), g_bytes_get_size(data));
    result = json_object_new();
    json_object_set_string_member(result, "data", text);
    json_object_set_int_member(result, "length", (gint64)g_bytes_get_size(data));
    json_object_set_int_member(result, "total", (gint64)clone->result_length);
    sf_call_reply(call, result);
}

static void api_kill(SfHost *host, JsonObject *params, SfCall *call)
{
    gboolean by_ticket = json_object_has_member(params, "ticket");
    JsonObject *result;
    gint64 killed = 1;

    if (by_ticket == json_object_has_member(params, "vm")) {
        fail(call, SF_HOST_ERROR_BAD_PARAMS, "kill: either \"ticket\" or \"vm\" must be given");
        return;
    }
    if (by_ticket) {
        SfHostTicket *ticket = ticket_param(host, params, call);
        if (!ticket) {
            return;
        }
        killed = ticket->fork ? sf_fork_alive(ticket->fork) : 0;
        if (ticket->fork) {
            sf_fork_kill(ticket->fork, "killed by an operator");
        } else {
            sf_host_release_ticket(host, ticket);
        }
    } else {
        SfHostVm *hvm = vm_param(host, params, call);
        if (!hvm) {
            return;
        }
        end_vm(host, hvm);
    }
    result = json_object_new();
    json_object_set_int_member(result, "killed", killed);
    sf_call_reply(call, result);
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
        SfHostVm *holder =
            sf_host_ticket_is_of(ticket, sf_vm_name(hvm->vm)) ? vm_with_snapshot(host, ticket) : NULL;
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
        fail(call, SF_HOST_ERROR_BAD_PARAMS, "descriptor: either \"ticket\" or \"vm\" must be given");
        return;
    }
    if (by_ticket) {
        SfHostTicket *ticket = ticket_param(host, params, call);
        if (!ticket) {
            return;
        }
        holder = vm_with_snapshot(host, ticket);
    } else {
        SfHostVm *hvm = vm_param(host, params, call);
        if (!hvm) {
            return;
        }
        holder = vm_with_snapshot_of(host, hvm);
    }
    if (!holder) {
        fail(call, SF_HOST_ERROR_GONE, "no snapshot is alive: it ends with the last clone of its fork");
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

/* A table that a newcomer reads in a minute. */
/* clang-format off */
#define VM_REQUIRED      { "vm", TEXT, TRUE }
#define TICKET_REQUIRED  { "ticket", TEXT, TRUE }
#define TIMEOUT          { "timeout_ms", INTEGER, FALSE }

static const SfApiMethod methods[] = {
    { "daemon.status", api_daemon_status, { { 0 } } },
    { "subscribe", api_subscribe, { { 0 } } },
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
    { "ticket.request", api_ticket_request, { VM_REQUIRED, { "count", INTEGER, TRUE }, { "all", BOOLEAN, FALSE },
      { "queue_ms", INTEGER, FALSE } } },
    { "ticket.list", api_ticket_list, { { 0 } } },
    { "ticket.status", api_ticket_status, { TICKET_REQUIRED } },
    { "clone", api_clone, { { "vm", TEXT, FALSE }, { "count", INTEGER, FALSE }, { "queue_ms", INTEGER, FALSE },
      { "ticket", TEXT, FALSE },
      { "wait", TEXT, FALSE }, { "avoid", TEXT, FALSE }, TIMEOUT } },
    { "join", api_join, { TICKET_REQUIRED, { "release", BOOLEAN, FALSE }, TIMEOUT } },
    { "complete", api_complete, { TICKET_REQUIRED, TIMEOUT } },
    { "result", api_result, { TICKET_REQUIRED, { "id", INTEGER, TRUE }, { "offset", INTEGER, FALSE },
      { "length", INTEGER, FALSE } } },
    { "kill", api_kill, { { "ticket", TEXT, FALSE }, { "vm", TEXT, FALSE } } },
    { "descriptor", api_descriptor, { { "vm", TEXT, FALSE }, { "ticket", TEXT, FALSE } } },
    { 0 },
};
/* clang-format on */

static const SfApiMethod *const tables[] = { methods, sf_api_cluster_methods, sf_api_snapshot_methods,
                                             sf_api_domain_methods };

static const SfApiMethod *find_method(const char *name)
{
    for (guint i = 0; i < G_N_ELEMENTS(tables); i++) {
        for (const SfApiMethod *method = tables[i]; method->name; method++) {
            if (strcmp(method->name, name) == 0) {
                return method;
            }
        }
    }
    return NULL;
}

void sf_api_call(SfHost *host, const char *name, JsonObject *params, SfCall *call)
{
    const SfApiMethod *method = find_method(name);
    g_autoptr(GError) error = NULL;

    if (method && check_params(method, params, &error)) {
        method->handle(host, params, call);
        return;
    }
    if (!method) {
        error = g_error_new(G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED, "method \"%.64s\": not known", name);
    }
    sf_call_fail(call, error);
}
