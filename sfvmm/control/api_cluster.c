/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The methods host.* of the control protocol. */
#include "sfvmm/control/api_method.h"
#include "sfvmm/control/cluster.h"

#define SLOTS_MAX G_MAXUINT16

static void reply_with_host(SfHost *host, const char *name, SfCall *call)
{
    const SfClusterHost *entry = sf_resource_manager_host(sf_host_manager(host), name);

    sf_api_reply_with(call, "host", sf_cluster_describe(sf_cluster_of(host), entry));
}

static void api_host_add(SfHost *host, JsonObject *params, SfCall *call)
{
    const char *name = sf_api_text(params, "name"), *address = sf_api_text(params, "address");
    gint64 slots = json_object_get_int_member_with_default(params, "slots", 0);
    gint64 memory = json_object_get_int_member_with_default(params, "memory", 0);
    g_autoptr(GError) error = NULL;

    if (slots < 0 || slots > SLOTS_MAX || memory < 0) {
        error = g_error_new(SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS,
                            "host.add: \"slots\" must be from 0 to %u, and \"memory\" bytes", SLOTS_MAX);
        sf_call_fail(call, error);
    } else if (!sf_cluster_add(sf_cluster_of(host), name, address, (guint)slots, (guint64)memory, &error)) {
        sf_call_fail(call, error);
    } else {
        reply_with_host(host, name, call);
    }
}

static void api_host_list(SfHost *host, JsonObject *params, SfCall *call)
{
    SfResourceManager *manager = sf_host_manager(host);
    g_autoptr(GList) hosts = sf_resource_manager_hosts(manager);
    JsonObject *result = json_object_new();
    JsonArray *array = json_array_new();

    for (GList *item = hosts; item; item = item->next) {
        json_array_add_object_element(array, sf_cluster_describe(sf_cluster_of(host), item->data));
    }
    json_object_set_array_member(result, "hosts", array);
    json_object_set_string_member(result, "resource_manager", sf_resource_manager_name(manager));
    json_object_set_string_member(result, "policy",
                                  sf_host_config(host)->cluster.policy == SF_POLICY_PACK ? "pack" : "spread");
    sf_call_reply(call, result);
}

static void api_host_drain(SfHost *host, JsonObject *params, SfCall *call)
{
    gboolean drain = json_object_get_boolean_member_with_default(params, "drain", TRUE);
    g_autoptr(GError) error = NULL;

    if (sf_cluster_drain(sf_cluster_of(host), sf_api_text(params, "name"), drain, &error)) {
        reply_with_host(host, sf_api_text(params, "name"), call);
    } else {
        sf_call_fail(call, error);
    }
}

static void api_host_remove(SfHost *host, JsonObject *params, SfCall *call)
{
    g_autoptr(GError) error = NULL;

    if (sf_cluster_remove(sf_cluster_of(host), sf_api_text(params, "name"), &error)) {
        sf_api_reply_empty(call);
    } else {
        sf_call_fail(call, error);
    }
}

/* clang-format off */
#define NAME_REQUIRED { "name", SF_API_TEXT, TRUE }

const SfApiMethod sf_api_cluster_methods[] = {
    { "host.add", api_host_add, { NAME_REQUIRED, { "address", SF_API_TEXT, TRUE }, { "slots", SF_API_INTEGER, FALSE },
      { "memory", SF_API_INTEGER, FALSE } } },
    { "host.list", api_host_list, { { 0 } } },
    { "host.drain", api_host_drain, { NAME_REQUIRED, { "drain", SF_API_BOOLEAN, FALSE } } },
    { "host.remove", api_host_remove, { NAME_REQUIRED } },
    { 0 },
};
/* clang-format on */
