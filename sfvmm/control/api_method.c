/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "sfvmm/control/api_method.h"

#include <string.h>

#include "sfvmm/control/describe.h"

/* ---- parameters ---- */

static gboolean type_fits(JsonNode *node, SfApiType type)
{
    if (type == SF_API_ANY) {
        return TRUE;
    }
    if (!JSON_NODE_HOLDS_VALUE(node)) {
        return FALSE;
    }
    switch (json_node_get_value_type(node)) {
    case G_TYPE_STRING:
        return type == SF_API_TEXT;
    case G_TYPE_INT64:
        return type == SF_API_INTEGER;
    case G_TYPE_BOOLEAN:
        return type == SF_API_BOOLEAN;
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

gboolean sf_api_check_params(const SfApiMethod *method, JsonObject *params, GError **error)
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

const char *sf_api_text(JsonObject *params, const char *name)
{
    return json_object_get_string_member_with_default(params, name, NULL);
}

gboolean sf_api_flag(JsonObject *params, const char *name, gboolean fallback)
{
    return json_object_get_boolean_member_with_default(params, name, fallback);
}

/* An integer within bounds, or FALSE and the call has been answered. */
gboolean sf_api_int(JsonObject *params, const char *name, gint64 min, gint64 max, gint64 fallback, gint64 *value,
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

/* The VM that "vm" names, or NULL and the call has been answered. */
SfHostVm *sf_api_vm(SfHost *host, JsonObject *params, SfCall *call)
{
    g_autoptr(GError) error = NULL;
    SfHostVm *hvm = sf_host_vm(host, sf_api_text(params, "vm"), &error);

    if (!hvm) {
        sf_call_fail(call, error);
    }
    return hvm;
}

SfHostTicket *sf_api_ticket(SfHost *host, JsonObject *params, SfCall *call)
{
    const char *text = sf_api_text(params, "ticket");
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

/* ---- answers ---- */

void sf_api_fail(SfCall *call, SfHostError code, const char *format, ...)
{
    g_autoptr(GError) error = NULL;
    va_list args;

    va_start(args, format);
    error = g_error_new_valist(SF_HOST_ERROR, code, format, args);
    va_end(args);
    sf_call_fail(call, error);
}

void sf_api_reply_empty(SfCall *call)
{
    sf_call_reply(call, json_object_new());
}

void sf_api_reply_with(SfCall *call, const char *member, JsonObject *object)
{
    JsonObject *result = json_object_new();

    json_object_set_object_member(result, member, object);
    sf_call_reply(call, result);
}

void sf_api_reply_started(GObject *source, GAsyncResult *result, gpointer data)
{
    g_autoptr(GError) error = NULL;
    SfHostVm *hvm = sf_host_run_finish(SF_HOST(source), result, &error);

    if (hvm) {
        sf_api_reply_with(data, "vm", sf_describe_vm(hvm));
    } else {
        sf_call_fail(data, error);
    }
}
