/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The methods domain.* of the control protocol: libvirt domains as VMs. */
#include "sfvmm/control/api_method.h"

#include "sfvmm/net/policy.h"

static void api_domain_adopt(SfHost *host, JsonObject *params, SfCall *call)
{
    const SfDaemonConfig *config = sf_host_config(host);
    gint64 pool = json_object_get_int_member_with_default(params, "pool", config->pool);
    g_autoptr(GError) error = NULL;

    if (pool < 0 || pool > config->pool_max) {
        error = g_error_new(SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS,
                            "domain.adopt: \"pool\" must be from 0 to %u (pool-max in sfvmmd.conf)", config->pool_max);
        sf_call_fail(call, error);
        return;
    }
    sf_host_adopt_async(host, sf_api_text(params, "name"), sf_call_user(call), sf_api_text(params, "uri"),
                        sf_api_text(params, "domain"), (guint)pool, sf_api_reply_started, call);
}

static void on_checked(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    JsonObject *object = sf_launcher_check_domain_finish(NULL, result, &error);

    if (object) {
        sf_call_reply(data, object);
    } else {
        sf_call_fail(data, error);
    }
}

/* The network that the parameters say, or NULL. */
static JsonObject *network_of(JsonObject *params, GError **error)
{
    static const char *const members[] = { "network", "address", "outside" };
    g_autoptr(JsonObject) network = json_object_new();
    g_autoptr(GArray) outside = NULL;
    g_autoptr(SfVmConfig) config = sf_vm_config_new();

    for (guint i = 0; i < G_N_ELEMENTS(members); i++) {
        if (json_object_has_member(params, members[i])) {
            json_object_set_member(network, members[i], json_object_dup_member(params, members[i]));
        }
    }
    if (json_object_get_size(network) == 0 || !sf_vm_config_set_network(config, network, error)) {
        return NULL;
    }
    if (!sf_vm_config_has_cluster(config)) {
        g_set_error_literal(error, SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS,
                            "domain.check: \"network\" can be \"cluster\" only");
        return NULL;
    }
    outside = sf_net_policy_parse((const char *const *)config->outside, error);
    return outside ? sf_vm_config_network_check(network, NULL, error) : NULL;
}

static void api_domain_check(SfHost *host, JsonObject *params, SfCall *call)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) network = network_of(params, &error);

    if (error) {
        g_autoptr(GError) bad = g_error_new_literal(SF_HOST_ERROR, SF_HOST_ERROR_BAD_PARAMS, error->message);
        sf_call_fail(call, bad);
        return;
    }
    sf_launcher_check_domain_async(sf_host_launcher(host), sf_api_text(params, "uri"), sf_api_text(params, "domain"),
                                   network, sf_api_flag(params, "fix", FALSE), on_checked, call);
}

/* clang-format off */
const SfApiMethod sf_api_domain_methods[] = {
    { "domain.adopt", api_domain_adopt, { { "domain", SF_API_TEXT, TRUE }, { "uri", SF_API_TEXT, FALSE },
      { "name", SF_API_TEXT, FALSE }, { "pool", SF_API_INTEGER, FALSE } } },
    { "domain.check", api_domain_check, { { "domain", SF_API_TEXT, TRUE }, { "uri", SF_API_TEXT, FALSE },
      { "fix", SF_API_BOOLEAN, FALSE }, { "network", SF_API_TEXT, FALSE }, { "address", SF_API_TEXT, FALSE },
      { "outside", SF_API_ANY, FALSE } } },
    { 0 },
};
/* clang-format on */
