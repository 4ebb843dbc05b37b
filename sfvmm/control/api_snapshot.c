/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The methods snapshot.* of the control protocol. */
#include <string.h>

#include "sfvmm/control/api_method.h"
#include "sfvmm/control/describe.h"
#include "sfvmm/control/snapshot_remove.h"

#define TIMEOUT_MAX_MS (24 * 3600 * 1000)

static const char *text_param(JsonObject *params, const char *name)
{
    return json_object_get_string_member_with_default(params, name, NULL);
}

G_GNUC_PRINTF(3, 4)
static void fail(SfCall *call, SfHostError code, const char *format, ...)
{
    g_autoptr(GError) error = NULL;
    va_list args;

    va_start(args, format);
    error = g_error_new_valist(SF_HOST_ERROR, code, format, args);
    va_end(args);
    sf_call_fail(call, error);
}

/* The store knows nothing of the control protocol. Takes error. */
static void fail_store(SfCall *call, GError *error)
{
    if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_FOUND)) {
        error->domain = SF_HOST_ERROR;
        error->code = SF_HOST_ERROR_NO_SUCH_SNAPSHOT;
    } else if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_EXISTS)) {
        error->domain = SF_HOST_ERROR;
        error->code = SF_HOST_ERROR_EXISTS;
    } else if (g_error_matches(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA) ||
               g_error_matches(error, G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED)) {
        error->domain = SF_HOST_ERROR;
        error->code = SF_HOST_ERROR_FAILED;
    }
    sf_call_fail(call, error);
    g_error_free(error);
}

static void reply_snapshot(SfHost *host, const char *name, SfCall *call)
{
    JsonObject *result = json_object_new();

    json_object_set_object_member(result, "snapshot", sf_snapshots_describe_one(sf_snapshots_of(host), name));
    sf_call_reply(call, result);
}

/* ---- save, load ---- */

typedef struct {
    SfHost *host;
    SfCall *call;
    char *name;
} NameCall;

static NameCall *name_call_new(SfHost *host, SfCall *call, const char *name)
{
    NameCall *wait = g_new0(NameCall, 1);

    wait->host = host;
    wait->call = call;
    wait->name = g_strdup(name);
    return wait;
}

/* Takes error. */
static void name_call_end(NameCall *wait, GError *error)
{
    if (error) {
        fail_store(wait->call, error);
    } else {
        reply_snapshot(wait->host, wait->name, wait->call);
    }
    g_free(wait->name);
    g_free(wait);
}

static void on_saved(GObject *source, GAsyncResult *result, gpointer data)
{
    NameCall *wait = data;
    GError *error = NULL;

    sf_snapshots_save_finish(sf_snapshots_of(wait->host), result, &error);
    name_call_end(wait, error);
}

static void api_save(SfHost *host, JsonObject *params, SfCall *call)
{
    const char *vm = text_param(params, "vm"), *text = text_param(params, "ticket"), *name = text_param(params, "name");
    SfHostTicket *ticket = NULL;
    SfHostVm *hvm = NULL;
    GError *error = NULL;
    guint64 id;

    if ((vm != NULL) == (text != NULL)) {
        fail(call, SF_HOST_ERROR_BAD_PARAMS, "snapshot.save: either \"vm\" or \"ticket\" must be given");
        return;
    }
    if (vm) {
        hvm = sf_host_vm(host, vm, &error);
    } else if (sf_ticket_id_from_text(text, &id)) {
        ticket = sf_host_ticket(host, id, &error);
    } else {
        g_set_error(&error, SF_HOST_ERROR, SF_HOST_ERROR_NO_SUCH_TICKET,
                    "ticket \"%s\": %u hexadecimal digits are needed", text, SF_TICKET_ID_DIGITS);
    }
    if (error) {
        fail_store(call, error);
        return;
    }
    sf_snapshots_save_async(sf_snapshots_of(host), name, hvm, ticket, 0, on_saved, name_call_new(host, call, name));
}

static void on_loaded(GObject *source, GAsyncResult *result, gpointer data)
{
    NameCall *wait = data;
    GError *error = NULL;

    sf_store_load_finish(sf_snapshots_store(sf_snapshots_of(wait->host)), result, &error);
    name_call_end(wait, error);
}

static void api_load(SfHost *host, JsonObject *params, SfCall *call)
{
    const char *name = text_param(params, "name");

    sf_store_load_async(sf_snapshots_store(sf_snapshots_of(host)), text_param(params, "directory"),
                        text_param(params, "memory_uri"), name, on_loaded, name_call_new(host, call, name));
}

/* ---- list, rm ---- */

static void api_list(SfHost *host, JsonObject *params, SfCall *call)
{
    JsonObject *result = json_object_new();

    json_object_set_array_member(result, "snapshots", sf_snapshots_describe(sf_snapshots_of(host)));
    sf_call_reply(call, result);
}

static void on_removed(GObject *source, GAsyncResult *result, gpointer data)
{
    GError *error = NULL;

    if (sf_snapshot_remove_finish(SF_HOST(source), result, &error)) {
        sf_call_reply(data, json_object_new());
    } else {
        fail_store(data, error);
    }
}

static void api_rm(SfHost *host, JsonObject *params, SfCall *call)
{
    sf_snapshot_remove_async(host, text_param(params, "name"), on_removed, call);
}

/* ---- clone ---- */

/* Until the clones run ("resumed") or are unique ("answered"), as with the method clone. */
typedef struct {
    SfHost *host;
    SfCall *call;
    guint64 ticket;
    SfFork *fork;
    char *until; /* or NULL */
    gulong changed, placed;
    guint timeout_ms, timer;
} CloneWait;

static void wait_free(CloneWait *wait)
{
    if (wait->fork) {
        g_clear_signal_handler(&wait->changed, wait->fork);
        g_clear_signal_handler(&wait->placed, wait->fork);
        g_object_unref(wait->fork);
    }
    g_clear_handle_id(&wait->timer, g_source_remove);
    g_free(wait->until);
    g_free(wait);
}

static gboolean wait_is_over(const CloneWait *wait)
{
    gboolean answered = wait->until ? strcmp(wait->until, "answered") == 0 : sf_fork_with_agent(wait->fork);

    return answered ? sf_fork_is_answered(wait->fork) : sf_fork_is_placed(wait->fork);
}

static void wait_end(CloneWait *wait)
{
    SfHostTicket *ticket = sf_host_ticket(wait->host, wait->ticket, NULL);
    JsonObject *result;

    if (!ticket) {
        fail(wait->call, SF_HOST_ERROR_GONE, "the ticket was released meanwhile");
    } else if (sf_fork_state(wait->fork) == SF_FORK_FAILED) {
        fail(wait->call, SF_HOST_ERROR_FAILED, "no clone could be made: %s", sf_fork_reason(wait->fork));
        sf_host_release_ticket_later(ticket);
    } else {
        result = json_object_new();
        json_object_set_object_member(result, "ticket", sf_describe_ticket(ticket));
        sf_call_reply(wait->call, result);
    }
    wait_free(wait);
}

static void on_placed(SfFork *fork, CloneWait *wait)
{
    if (wait_is_over(wait)) {
        wait_end(wait);
    }
}

static void on_changed(SfFork *fork, SfClone *clone, CloneWait *wait)
{
    on_placed(fork, wait);
}

static gboolean on_timeout(gpointer data)
{
    CloneWait *wait = data;

    wait->timer = 0;
    fail(wait->call, SF_HOST_ERROR_TIMEOUT, "the clones: not within the time given");
    wait_free(wait);
    return G_SOURCE_REMOVE;
}

static void on_forked(GObject *source, GAsyncResult *result, gpointer data)
{
    CloneWait *wait = data;
    GError *error = NULL;
    SfHostTicket *ticket = sf_snapshots_clone_finish(sf_snapshots_of(wait->host), result, &error);

    if (!ticket) {
        fail_store(wait->call, error);
        wait_free(wait);
        return;
    }
    wait->ticket = ticket->grant->id;
    wait->fork = g_object_ref(ticket->fork);
    if (wait_is_over(wait)) {
        wait_end(wait);
        return;
    }
    wait->changed = g_signal_connect(wait->fork, "changed", G_CALLBACK(on_changed), wait);
    wait->placed = g_signal_connect(wait->fork, "placed", G_CALLBACK(on_placed), wait);
    if (wait->timeout_ms) {
        wait->timer = g_timeout_add(wait->timeout_ms, on_timeout, wait);
    }
}

static void api_clone(SfHost *host, JsonObject *params, SfCall *call)
{
    const char *until = text_param(params, "wait");
    gint64 count = json_object_get_int_member_with_default(params, "count", 1);
    gint64 timeout = json_object_get_int_member_with_default(params, "timeout_ms", 0);
    CloneWait *wait;

    if (until && strcmp(until, "resumed") != 0 && strcmp(until, "answered") != 0) {
        fail(call, SF_HOST_ERROR_BAD_PARAMS, "snapshot.clone: parameter \"wait\" must be \"resumed\" or \"answered\"");
        return;
    }
    if (count < 1 || count > SF_GP_MAX_CLONES || timeout < 0 || timeout > TIMEOUT_MAX_MS) {
        fail(call, SF_HOST_ERROR_BAD_PARAMS, "snapshot.clone: \"count\" must be 1 to %u, \"timeout_ms\" 0 to %d",
             SF_GP_MAX_CLONES, TIMEOUT_MAX_MS);
        return;
    }
    wait = g_new0(CloneWait, 1);
    wait->host = host;
    wait->call = call;
    wait->until = g_strdup(until);
    wait->timeout_ms = (guint)timeout;
    sf_snapshots_clone_async(sf_snapshots_of(host), text_param(params, "name"), (guint)count, sf_call_user(call), NULL,
                             0, on_forked, wait);
}

/* clang-format off */
#define NAME { "name", SF_API_TEXT, TRUE }

const SfApiMethod sf_api_snapshot_methods[] = {
    { "snapshot.save", api_save, { NAME, { "vm", SF_API_TEXT, FALSE }, { "ticket", SF_API_TEXT, FALSE } } },
    { "snapshot.load", api_load, { NAME, { "directory", SF_API_TEXT, TRUE },
      { "memory_uri", SF_API_TEXT, FALSE } } },
    { "snapshot.list", api_list, { { 0 } } },
    { "snapshot.rm", api_rm, { NAME } },
    { "snapshot.clone", api_clone, { NAME, { "count", SF_API_INTEGER, FALSE }, { "wait", SF_API_TEXT, FALSE },
      { "timeout_ms", SF_API_INTEGER, FALSE } } },
    { 0 },
};
