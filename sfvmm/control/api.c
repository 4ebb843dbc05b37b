/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Each method has a table of its parameters, checked before its handler runs, so that a handler sees what it declared.
 * The handlers stand in one file for each group of methods: api_vm.c, api_ticket.c, api_snapshot.c, api_cluster.c,
 * api_domain.c.
 */
#include "sfvmm/control/api.h"

#include <string.h>

#include "sfvmm/control/api_method.h"
#include "sfvmm/control/describe.h"

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

/* ---- daemon ---- */

static void api_daemon_status(SfHost *host, JsonObject *params, SfCall *call)
{
    sf_call_reply(call, sf_describe_host(host));
}

static void api_subscribe(SfHost *host, JsonObject *params, SfCall *call)
{
    sf_call_subscribe(call);
    sf_api_reply_empty(call);
}

/* ---- the table ---- */

static const SfApiMethod methods[] = {
    { "daemon.status", api_daemon_status, { { 0 } } },
    { "subscribe", api_subscribe, { { 0 } } },
    { 0 },
};

static const SfApiMethod *const tables[] = { methods,
                                             sf_api_vm_methods,
                                             sf_api_ticket_methods,
                                             sf_api_cluster_methods,
                                             sf_api_snapshot_methods,
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

    if (method && sf_api_check_params(method, params, &error)) {
        method->handle(host, params, call);
        return;
    }
    if (!method) {
        error = g_error_new(G_IO_ERROR, G_IO_ERROR_NOT_SUPPORTED, "method \"%.64s\": not known", name);
    }
    sf_call_fail(call, error);
}
