/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/client/domain.h"

#define NO_LIMIT (-1) /* ms; the daemon has limits of its own */

static gboolean code_is(SfClient *client, const char *code)
{
    return g_strcmp0(sf_client_error_code(client), code) == 0;
}

/* The name of the VM that the domain is from now on, or NULL. Caller owns. */
static char *adopt(SfClient *client, const char *domain, const char *uri, GError **error)
{
    JsonObject *params = json_object_new();
    g_autoptr(JsonObject) result = NULL;
    JsonObject *vm;

    json_object_set_string_member(params, "domain", domain);
    if (uri) {
        json_object_set_string_member(params, "uri", uri);
    }
    result = sf_client_call(client, "domain.adopt", params, NO_LIMIT, error);
    if (!result) {
        return NULL;
    }
    vm = json_object_has_member(result, "vm") && JSON_NODE_HOLDS_OBJECT(json_object_get_member(result, "vm"))
             ? json_object_get_object_member(result, "vm")
             : NULL;
    return g_strdup(vm ? json_object_get_string_member_with_default(vm, "name", domain) : domain);
}

JsonObject *sf_client_clone(SfClient *client, JsonObject *params, const char *uri, GError **error)
{
    g_autoptr(JsonObject) mine = params;
    g_autofree char *vm = g_strdup(json_object_get_string_member_with_default(mine, "vm", ""));
    g_autofree char *name = NULL;
    g_autoptr(GError) failure = NULL;
    JsonObject *result = sf_client_call(client, "clone", json_object_ref(mine), NO_LIMIT, &failure);

    if (result || !code_is(client, "no-such-vm")) {
        if (!result) {
            g_propagate_error(error, g_steal_pointer(&failure));
        }
        return result;
    }
    g_clear_error(&failure);
    name = adopt(client, vm, uri, &failure);
    if (!name && !code_is(client, "gone") && !code_is(client, "no-such-method")) {
        g_propagate_error(error, g_steal_pointer(&failure)); /* the domain is there, but can't be forked */
        return NULL;
    }
    if (name) {
        json_object_set_string_member(mine, "vm", name);
    }
    return sf_client_call(client, "clone", json_object_ref(mine), NO_LIMIT, error); /* or says again what it said */
}
