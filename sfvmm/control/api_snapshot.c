/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The methods snapshot.* of the control protocol. */
#include <string.h>

#include "sfvmm/control/api_method.h"
#include "sfvmm/control/api_wait.h"
#include "sfvmm/control/describe.h"
#include "sfvmm/control/snapshot_remove.h"

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
    sf_api_reply_with(call, "snapshot", sf_snapshots_describe_one(sf_snapshots_of(host), name));
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
    const char *vm = sf_api_text(params, "vm"), *text = sf_api_text(params, "ticket"),
               *name = sf_api_text(params, "name");
    SfHostTicket *ticket = NULL;
    SfHostVm *hvm = NULL;
    GError *error = NULL;
    guint64 id;

    if ((vm != NULL) == (text != NULL)) {
        sf_api_fail(call, SF_HOST_ERROR_BAD_PARAMS, "snapshot.save: either \"vm\" or \"ticket\" must be given");
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
    const char *name = sf_api_text(params, "name");

    sf_store_load_async(sf_snapshots_store(sf_snapshots_of(host)), sf_api_text(params, "directory"),
                        sf_api_text(params, "memory_uri"), name, on_loaded, name_call_new(host, call, name));
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
        sf_api_reply_empty(data);
    } else {
        fail_store(data, error);
    }
}

static void api_rm(SfHost *host, JsonObject *params, SfCall *call)
{
    sf_snapshot_remove_async(host, sf_api_text(params, "name"), on_removed, call);
}

/* ---- clone ---- */

typedef struct {
    SfHost *host;
    SfCall *call;
    char *until; /* "resumed", "answered", or NULL */
    gint64 timeout;
} CloneCall;

static void on_forked(GObject *source, GAsyncResult *result, gpointer data)
{
    CloneCall *clone = data;
    GError *error = NULL;
    SfHostTicket *ticket = sf_snapshots_clone_finish(sf_snapshots_of(clone->host), result, &error);

    if (ticket) {
        sf_api_wait_for_clones(clone->call, ticket, clone->timeout, clone->until);
    } else {
        fail_store(clone->call, error);
    }
    g_free(clone->until);
    g_free(clone);
}

static void api_clone(SfHost *host, JsonObject *params, SfCall *call)
{
    const char *until = sf_api_text(params, "wait");
    gint64 count = json_object_get_int_member_with_default(params, "count", 1);
    gint64 timeout = json_object_get_int_member_with_default(params, "timeout_ms", 0);
    CloneCall *clone;

    if (until && strcmp(until, "resumed") != 0 && strcmp(until, "answered") != 0) {
        sf_api_fail(call, SF_HOST_ERROR_BAD_PARAMS,
                    "snapshot.clone: parameter \"wait\" must be \"resumed\" or \"answered\"");
        return;
    }
    if (count < 1 || count > SF_GP_MAX_CLONES || timeout < 0 || timeout > SF_API_TIMEOUT_MAX_MS) {
        sf_api_fail(call, SF_HOST_ERROR_BAD_PARAMS, "snapshot.clone: \"count\" must be 1 to %u, \"timeout_ms\" 0 to %d",
                    SF_GP_MAX_CLONES, SF_API_TIMEOUT_MAX_MS);
        return;
    }
    clone = g_new0(CloneCall, 1);
    *clone = (CloneCall){ host, call, g_strdup(until), timeout };
    sf_snapshots_clone_async(sf_snapshots_of(host), sf_api_text(params, "name"), (guint)count, sf_call_user(call), NULL,
                             0, on_forked, clone);
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
